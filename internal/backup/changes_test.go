package backup_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/treegen"
)

// changed returns what somebody who watches a tree hears of when it becomes another: a name that
// came, that went, or one of the names of what has changed, but nothing of the other names of a
// file that has got or lost one.
func changed(rng *rand.Rand, before, after []manifest.Entry) *backup.Changes {
	was, is := map[string]manifest.Entry{}, map[string]manifest.Entry{}
	for _, e := range before {
		was[e.Path] = e
	}
	for _, e := range after {
		is[e.Path] = e
	}
	told := map[uint64]bool{} // inodes that got or lost a name
	c := &backup.Changes{}
	parent := func(path string) { c.Paths = append(c.Paths, strings.TrimSuffix(filepath.Dir("/" + path)[1:], "/")) }
	for path, e := range was {
		if now, ok := is[path]; !ok || now.Ino != e.Ino || now.Otime != e.Otime {
			c.Paths = append(c.Paths, path)
			parent(path)
			told[e.Ino] = true
		}
	}
	for path, e := range is {
		if old, ok := was[path]; !ok || old.Ino != e.Ino || old.Otime != e.Otime {
			c.Paths = append(c.Paths, path)
			parent(path)
			told[e.Ino] = true
		}
	}
	names := map[uint64][]string{}
	for path, e := range is {
		if old, ok := was[path]; ok && (e.Kind == filetree.Dir || !told[e.Ino]) && !cmp.Equal(old, e) {
			names[e.Ino] = append(names[e.Ino], path)
		}
	}
	for _, ino := range slices.Sorted(maps.Keys(names)) {
		slices.Sort(names[ino])
		c.Paths = append(c.Paths, names[ino][rng.IntN(len(names[ino]))])
	}
	for range rng.IntN(3) { // and of some directories nothing more is known
		if len(c.Paths) > 0 {
			c.Trees = append(c.Trees, c.Paths[rng.IntN(len(c.Paths))])
		}
	}
	rng.Shuffle(len(c.Paths), func(i, j int) { c.Paths[i], c.Paths[j] = c.Paths[j], c.Paths[i] })
	return c
}

// TestScanChangesRandom changes trees at random and looks at what has changed only: the history
// is what a scan of everything would have made of it, which finds nothing new.
func TestScanChangesRandom(t *testing.T) {
	t.Run("in mind", func(t *testing.T) { onEach(t, scanChangesRandom) })
	t.Run("skimmed", func(t *testing.T) {
		backup.SetMaxKnown(t, 3, 2)
		onEach(t, scanChangesRandom)
	})
}

func scanChangesRandom(t *testing.T, seed uint64, dir, outside string) {
	c := &scanCase{newFixture(t), dir}
	rng := rand.New(rand.NewPCG(seed, 1))
	g, err := treegen.New(c.dir, treegen.Options{Seed: seed, Outside: outside})
	c.must(err)
	c.must(g.Step(60))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	before := scanned(t, c.dir)
	for i := range 25 {
		c.must(g.Step(1 + rng.IntN(20)))
		g.Note("scan %d", i)
		after := scanned(t, c.dir)
		c.f.scan("s", c.dir, backup.ScanOptions{Only: changed(rng, before, after)})
		c.same(t, fmt.Sprint("what has changed in step ", i))
		before = after
		if rng.IntN(4) == 0 {
			res := c.f.scan("s", c.dir, backup.ScanOptions{})
			if !res.Unchanged {
				t.Errorf("a scan of everything after step %d finds %+v", i, res.Committed)
			}
		}
		if t.Failed() {
			break
		}
	}
	if t.Failed() {
		log := filepath.Join(os.TempDir(), fmt.Sprintf("secrate-seed-%d.log", seed))
		os.WriteFile(log, []byte(g.Log()), 0o600)
		t.Logf("-seed %d; operations in %s", seed, log)
	}
}

// TestScanChangesLinks gives a file of which nothing else has changed one more name, and takes
// one away.
func TestScanChangesLinks(t *testing.T) {
	c := newScanCase(t)
	c.write("a/x", strings.Repeat("x", 1000))
	c.write("b/y", strings.Repeat("y", 1000))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	look := func(what string, paths ...string) {
		t.Helper()
		c.f.scan("s", c.dir, backup.ScanOptions{Only: &backup.Changes{Paths: paths}})
		c.same(t, what)
	}
	c.must(os.Link(c.path("a/x"), c.path("b/x2")))
	look("one more name", "b/x2", "b")
	c.must(os.Chmod(c.path("a/x"), 0o600))
	c.must(os.Link(c.path("a/x"), c.path("x3")))
	look("one more name, and another mode", "x3", "")
	c.must(os.Remove(c.path("a/x")))
	look("a name less", "a/x", "a")
	c.must(os.RemoveAll(c.path("b")))
	look("and a directory less", "b/x2", "b", "b/y", "")
}
