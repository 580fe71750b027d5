package backup_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/btrfsvolume"
	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/treegen"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run the property test with this seed only")
	seedsFlag = flag.Int("seeds", 6, "how many seeds the property test tries beside those it found")
)

// foundSeeds once failed.
var foundSeeds = []uint64{1795382632438436007, 1795382788720767573}

func (f *fixture) job(source string, exclude ...string) *backup.Job {
	f.t.Helper()
	j, err := backup.New(backup.Options{Writer: f.w, Source: source, Exclude: exclude, Observer: logger{f.t}})
	if err != nil {
		f.t.Fatal(err)
	}
	return j
}

type logger struct{ t testing.TB }

func (logger) Phase(string, string)          {}
func (logger) Seen(int64, int64)             {}
func (l logger) Warn(source, message string) { l.t.Logf("%s: %s", source, message) }

// subvolume makes a subvolume on a Btrfs of its own.
func subvolume(t testing.TB) string {
	t.Helper()
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 2 << 30})
	return newSubvolume(t, filepath.Join(fs.Dir, "sub"))
}

// snap takes a snapshot and uploads it.
func (f *fixture) snap(j *backup.Job, v backup.Volume) backup.Result {
	f.t.Helper()
	if _, err := j.Take(f.t.Context(), v); err != nil {
		f.t.Fatal(err)
	}
	res, err := j.Upload(f.t.Context(), v)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range res.Failed {
		f.t.Error(p)
	}
	return res
}

// TestRandom changes a real Btrfs at random, takes a snapshot every few changes, and
// compares every snapshot of the history with what the tree was.
func TestRandom(t *testing.T) {
	seeds := foundSeeds
	for i := range *seedsFlag {
		seeds = append(seeds, uint64(time.Now().UnixNano())+uint64(i))
	}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	sub := subvolume(t)
	for i, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random(t, seed, newSubvolume(t, fmt.Sprintf("%s%d", sub, i)))
		})
	}
}

func random(t *testing.T, seed uint64, dir string) {
	f := newFixture(t)
	g, err := treegen.New(dir, treegen.Options{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	v, err := btrfsvolume.Open("s", dir, "")
	if err != nil {
		t.Fatal(err)
	}
	j := f.job("s")
	var want [][]manifest.Entry
	for range 12 {
		if err := g.Step(25); err != nil {
			t.Fatal(err)
		}
		g.Note("snapshot %d", len(want)+1)
		res := f.snap(j, v)
		if res.Unchanged {
			continue
		}
		scan, err := manifest.Scan(v.Path(res.Committed[0].Info.Origin))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, scan)
	}
	src := f.source("s")
	f.compareAll(t, f.cat, src, want)
	rebuilt, rsrc := f.rebuilt()
	f.compareAll(t, rebuilt, rsrc, want)
	if t.Failed() {
		log := filepath.Join(os.TempDir(), fmt.Sprintf("secrate-seed-%d.log", seed))
		os.WriteFile(log, []byte(g.Log()), 0o600)
		t.Logf("-seed %d; operations in %s", seed, log)
	}
}

func (f *fixture) compareAll(t *testing.T, cat *catalog.DB, src catalog.Source, want [][]manifest.Entry) {
	for i, w := range want {
		got := f.entries(cat, src, uint64(i+1))
		ig := manifest.Ignore{Ino: true, DirSize: true, DirNlink: true, Nested: true}
		if d := manifest.Diff(w, got, ig); len(d) > 0 {
			t.Errorf("#%d:\n%s", i+1, manifest.Report(d, 10))
		}
	}
}

// rebuilt returns a catalog made from what is stored.
func (f *fixture) rebuilt() (*catalog.DB, catalog.Source) {
	f.t.Helper()
	db, err := catalog.Open(filepath.Join(f.t.TempDir(), "rebuilt.db"), catalog.Options{Temporary: true})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { db.Close() })
	x, err := s3history.ReadIndex(f.t.Context(), f.store, f.identity)
	if err != nil {
		f.t.Fatal(err)
	}
	src, err := x.LoadAll(f.t.Context(), db, &x.Sources[0], nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range x.Problems {
		f.t.Error(p)
	}
	return db, src
}

func newSubvolume(t testing.TB, dir string) string {
	t.Helper()
	out, err := exec.Command("btrfs", "subvolume", "create", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("btrfs subvolume create: %v: %s", err, out)
	}
	return dir
}
