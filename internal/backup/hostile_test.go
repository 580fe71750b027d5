package backup_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/treegen"
)

// TestScanLinkForDirectory puts a further name of a file where a directory was that has moved.
func TestScanLinkForDirectory(t *testing.T) {
	for _, only := range []bool{false, true} {
		c := newScanCase(t)
		c.write("d/in", "in it")
		c.must(os.Mkdir(c.path("z"), 0o755))
		c.f.scan("s", c.dir, backup.ScanOptions{})
		c.must(os.Rename(c.path("d"), c.path("z/d")))
		c.write("a", strings.Repeat("x", 1000))
		c.must(os.Link(c.path("a"), c.path("d")))
		o := backup.ScanOptions{}
		if only {
			o.Only = &backup.Changes{Paths: []string{"", "a", "z"}, Trees: []string{"d", "z/d"}}
		}
		c.f.scan("s", c.dir, o)
		c.same(t, "a link for a directory")
	}
}

// TestScanChangesIgnoreReplaced replaces a file of patterns by a directory.
func TestScanChangesIgnoreReplaced(t *testing.T) {
	for _, dir := range []string{"", "p/"} {
		t.Run(dir, func(t *testing.T) {
			c := newScanCase(t)
			c.write(dir+".ignore", "*.o\n")
			c.write(dir+"x.o", "object")
			scan := func(o backup.ScanOptions) {
				t.Helper()
				j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", ExcludeFiles: []string{".ignore"}})
				c.must(err)
				_, err = j.Scan(t.Context(), c.dir, o)
				c.must(err)
			}
			scan(backup.ScanOptions{})
			c.must(os.Remove(c.path(dir + ".ignore")))
			c.must(os.Mkdir(c.path(dir+".ignore"), 0o755))
			scan(backup.ScanOptions{Only: &backup.Changes{Paths: []string{strings.TrimSuffix(dir, "/")}, Trees: []string{dir + ".ignore"}}})
			c.same(t, "a directory for a file of patterns")
		})
	}
}

// TestLevelOfChanges has a directory left out after names in it were found not to be.
func TestLevelOfChanges(t *testing.T) {
	c := newScanCase(t)
	c.write("a/b/c/x", "x")
	c.write("q/r/x", "x")
	err := backup.LevelOf(t, c.dir, backup.Options{ExcludeFiles: []string{".ignore"}}, "a/b/c", []string{"a/b/c", "q/r"}, func() { c.write("a/.ignore", "b\n") })
	if err == nil {
		t.Error("a directory that is left out by now has a level")
	}
}

// TestScanFewDescriptors scans a tree that has not changed while there are ever so few
// descriptors to be had: whatever cannot be opened, nothing of it is gone.
func TestScanFewDescriptors(t *testing.T) {
	c := newScanCase(t)
	for _, dir := range []string{"", "a/", "a/b/", "c/"} {
		for i := range 3 {
			c.write(fmt.Sprintf("%sf%d", dir, i), "text")
		}
	}
	c.f.scan("s", c.dir, backup.ScanOptions{})
	src := c.f.source("s")
	var old unix.Rlimit
	c.must(unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	open, err := os.ReadDir("/proc/self/fd")
	c.must(err)
	for _, only := range []*backup.Changes{nil, {Paths: []string{"a/f1"}, Trees: []string{"a", "c"}}} {
		for more := range 40 {
			few := old
			few.Cur = uint64(len(open) - 1 + more)
			c.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
			res, err := c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{Only: only})
			c.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
			_, rerr := c.f.w.Recover(t.Context())
			head, herr := c.f.w.Head(src)
			if c.must(errors.Join(rerr, herr)); head.Seq != 1 {
				t.Fatalf("%d more: #%d, of a tree that has not changed; %v, not read: %q", more, head.Seq, err, res.Failed)
			}
		}
	}
}

// TestScanChangesMoved moves what is written to all the time, so that one of its names is not due
// with the other: it is in no snapshot nowhere, and stays what it was.
func TestScanChangesMoved(t *testing.T) {
	for _, dir := range []bool{false, true} {
		for _, first := range []string{"from", "to"} {
			t.Run(fmt.Sprintf("%s, directory %v", first, dir), func(t *testing.T) {
				c := newScanCase(t)
				in := ""
				if dir {
					in = "/f"
				}
				c.write("a/from"+in, "text")
				c.write("b/x", "x")
				c.write("b/busy", "busy")
				c.f.scan("s", c.dir, backup.ScanOptions{})
				src := c.f.source("s")
				node := func(path string) (n filetree.NodeID) {
					t.Helper()
					head, err := c.f.w.Head(src)
					c.must(err)
					n, err = c.f.cat.At(src.ID, head.Seq).Resolve(strings.Split(path, "/"))
					c.must(err)
					return n
				}
				was := node("a/from" + in)
				c.must(os.Rename(c.path("a/from"), c.path("b/to")))
				if dir {
					c.must(os.Mkdir(c.path("a/from"), 0o755))
				} else {
					c.write("a/from", "another")
				}
				c.write("b/busy", "as busy as ever")
				only := backup.Changes{Paths: []string{"a", "a/from", "b"}, Moved: []string{"b/gone", "b/to", "gone/busy"}}
				if first == "to" {
					only = backup.Changes{Paths: []string{"b", "b/to", "a"}, Moved: []string{"a/from", "b/x"}}
				}
				c.f.scan("s", c.dir, backup.ScanOptions{Only: &only})
				if now := node("b/to" + in); now != was {
					t.Errorf("node %d was moved, and %d has its name", was, now)
				}
				c.f.scan("s", c.dir, backup.ScanOptions{Only: &backup.Changes{Paths: []string{"b/busy"}}})
				c.same(t, "moved")
			})
		}
	}
}

// TestScanChangesApart looks at what has changed in parts, in any order, as it is due: when all of
// it was looked at the history is the tree.
func TestScanChangesApart(t *testing.T) {
	t.Run("in mind", func(t *testing.T) { onThese(t, scanChangesApart, loopfs.Ext4) })
	t.Run("skimmed", func(t *testing.T) {
		backup.SetMaxKnown(t, 3, 2)
		onThese(t, scanChangesApart, loopfs.Ext4)
	})
}

func scanChangesApart(t *testing.T, seed uint64, dir, outside string) {
	c := &scanCase{newFixture(t), dir}
	rng := rand.New(rand.NewPCG(seed, 2))
	g, err := treegen.New(c.dir, treegen.Options{Seed: seed, Outside: outside})
	c.must(err)
	c.must(g.Step(60))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	before := scanned(t, c.dir)
	for i := range 25 {
		c.must(g.Step(1 + rng.IntN(15)))
		g.Note("scan %d", i)
		after := scanned(t, c.dir)
		all := changed(rng, before, after)
		parts := make([]backup.Changes, 1+rng.IntN(3))
		some := func() *backup.Changes { return &parts[rng.IntN(len(parts))] }
		for _, path := range all.Paths {
			n := rng.IntN(len(parts))
			p := &parts[n]
			p.Paths = append(p.Paths, path)
			if rng.IntN(4) == 0 {
				p = some()
				p.Moved = append(p.Moved, path)
			}
		}
		for _, path := range all.Trees {
			p := some()
			p.Trees = append(p.Trees, path)
		}
		for _, p := range parts {
			c.f.scan("s", c.dir, backup.ScanOptions{Only: &p})
		}
		c.same(t, fmt.Sprintf("what has changed in step %d, in %d parts", i, len(parts)))
		before = after
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

// A meddler changes the tree when so many files have been seen.
type meddler struct {
	seen   atomic.Int64
	at     int64
	change func()
}

func (*meddler) Phase(string, string) {}
func (*meddler) Warn(string, string)  {}
func (m *meddler) Seen(files, _ int64) {
	if before := m.seen.Add(files) - files; before < m.at && before+files >= m.at {
		m.change()
	}
}

// TestScanLinksNumberAgain has a file of two names go, and another of two names get its inode number
// while the tree is scanned: it is not the first one.
func TestScanLinksNumberAgain(t *testing.T) {
	fs := loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 256 << 20})
	c := &scanCase{newFixture(t), filepath.Join(fs.Dir, "tree")}
	c.write("a/1", "the first")
	c.must(os.Link(c.path("a/1"), c.path("a/2")))
	for i := range 500 {
		c.write(fmt.Sprintf("b/%d", i), "x")
	}
	c.must(os.Mkdir(c.path("c"), 0o755))
	ino := func(name string) uint64 {
		var st unix.Stat_t
		c.must(unix.Stat(c.path(name), &st))
		return st.Ino
	}
	m := &meddler{at: 100, change: func() {
		was := ino("a/1")
		c.must(errors.Join(os.Remove(c.path("a/1")), os.Remove(c.path("a/2"))))
		for i := range 1000 { // the file system gives the number to one of the next
			name := fmt.Sprint("a/new", i)
			if c.write(name, "another one"); ino(name) == was {
				c.must(errors.Join(os.Rename(c.path(name), c.path("c/1")), os.Link(c.path("c/1"), c.path("c/2"))))
				return
			}
		}
		t.Error("the number was not used again")
	}}
	j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", Observer: m})
	c.must(err)
	_, err = j.Scan(t.Context(), c.dir, backup.ScanOptions{})
	c.must(err)
	src := c.f.source("s")
	head, err := c.f.w.Head(src)
	c.must(err)
	v := c.f.cat.At(src.ID, head.Seq)
	for _, name := range []string{"1", "2"} {
		n, err := v.Resolve([]string{"c", name})
		c.must(err)
		a, err := v.Attr(n)
		c.must(err)
		if a.Size != int64(len("another one")) {
			t.Errorf("c/%s is node %d of %d bytes", name, n, a.Size)
		}
	}
}

// TestScanMovedShut moves a directory that may not be read: what is in it has not gone.
func TestScanMovedShut(t *testing.T) {
	if os.Getenv("SECRATE_TEST_SHUT") == "" { // root may read everything
		testenv.Need(t, testenv.Root, testenv.Tool("setpriv"))
		cmd := exec.CommandContext(t.Context(), "setpriv", "--bounding-set=-dac_override,-dac_read_search", os.Args[0], "-test.run=^TestScanMovedShut$")
		cmd.Env = append(os.Environ(), "SECRATE_TEST_SHUT=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	for _, only := range []*backup.Changes{nil, {Paths: []string{"", "a", "b", "b/d"}, Trees: []string{"b/d"}}} {
		c := newScanCase(t)
		c.write("a/in/x", "text")
		c.must(os.Mkdir(c.path("b"), 0o755))
		c.f.scan("s", c.dir, backup.ScanOptions{})
		c.must(errors.Join(os.Rename(c.path("a"), c.path("b/d")), os.Chmod(c.path("b/d"), 0), os.Chmod(c.dir, 0o755)))
		res, err := c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{Only: only})
		c.must(errors.Join(err, os.Chmod(c.path("b/d"), 0o755)))
		if len(res.Failed) != 1 {
			t.Errorf("not read: %q", res.Failed)
		}
		src := c.f.source("s")
		head, err := c.f.w.Head(src)
		c.must(err)
		v := c.f.cat.At(src.ID, head.Seq)
		if _, err := v.Resolve([]string{"b", "d", "in", "x"}); err != nil {
			t.Errorf("only %v: #%d: b/d/in/x: %v", only, head.Seq, err)
		}
		if _, err := v.Resolve([]string{"a"}); err == nil {
			t.Error("a is still there")
		}
	}
}

// TestScanChangesReplacedLink writes to a file by one of its names and puts another file there. That
// comes to light with the directory; the name itself is told of later.
func TestScanChangesReplacedLink(t *testing.T) {
	c := newScanCase(t)
	c.write("x", "text")
	c.write("d/y", "")
	c.must(errors.Join(os.Remove(c.path("d/y")), os.Link(c.path("x"), c.path("d/y"))))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.write("d/y", "another text")
	c.write("d/new", "new")
	c.must(os.Rename(c.path("d/new"), c.path("d/y")))
	c.f.scan("s", c.dir, backup.ScanOptions{Only: &backup.Changes{Trees: []string{"d"}}})
	c.f.scan("s", c.dir, backup.ScanOptions{Only: &backup.Changes{Paths: []string{"d/y"}}})
	c.same(t, "another file for one of two names")
}
