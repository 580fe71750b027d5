package backup_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/btrfsvolume"
	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
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

// A hearer is told what the user is warned of.
type hearer struct {
	logger
	said *[]string
}

func (h hearer) Warn(source, message string) { *h.said = append(*h.said, message) }

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
	res := f.snapUnread(j, v)
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
	v, err := btrfsvolume.Open("0123456789abcdef", "s", dir, "")
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

// TestTwoWriters lets two writers keep one subvolume, in turns: neither takes the other's
// snapshots for its own, or away.
func TestTwoWriters(t *testing.T) {
	dir := subvolume(t)
	type writer struct {
		*fixture
		job *backup.Job
		vol *btrfsvolume.Volume
	}
	var writers []writer
	var said []string
	for range 2 {
		f := newFixture(t)
		j, err := backup.New(backup.Options{Writer: f.w, Source: "s", Observer: hearer{logger{t}, &said}})
		if err != nil {
			t.Fatal(err)
		}
		v, err := btrfsvolume.Open(f.identity.ID, "s", dir, "")
		if err != nil {
			t.Fatal(err)
		}
		writers = append(writers, writer{f, j, v})
	}
	for round := 1; round <= 3; round++ {
		for i, w := range writers {
			if err := os.WriteFile(filepath.Join(dir, "file"), fmt.Appendf(nil, "%d by %d", round, i), 0o600); err != nil {
				t.Fatal(err)
			}
			if res := w.snap(w.job, w.vol); len(res.Committed) != 1 || res.Committed[0].Seq != uint64(round) {
				t.Errorf("writer %d, round %d: committed %v", i, round, res.Committed)
			}
		}
	}
	for i, w := range writers {
		if all, err := w.vol.List(t.Context()); len(all) != 1 || err != nil {
			t.Errorf("writer %d has the snapshots %v, %v; want its base", i, all, err)
		}
	}
	if len(said) > 0 { // that a base is gone, and everything is read
		t.Errorf("warned of %q", said)
	}
}

// TestNestedSubvolumes wants each named once: in the first snapshot, and in the one in
// which it appears, unless it is excluded.
func TestNestedSubvolumes(t *testing.T) {
	dir := subvolume(t)
	f := newFixture(t)
	var said []string
	j, err := backup.New(backup.Options{Writer: f.w, Source: "s", Exclude: []string{"/out"}, Observer: hearer{logger{t}, &said}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := btrfsvolume.Open(f.identity.ID, "s", dir, "")
	if err != nil {
		t.Fatal(err)
	}
	for i, make := range [][]string{{"first", "out"}, nil, {"second"}, nil} {
		for _, name := range make {
			newSubvolume(t, filepath.Join(dir, name))
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), fmt.Append(nil, i), 0o600); err != nil {
			t.Fatal(err)
		}
		said = nil
		f.snap(j, v)
		make = slices.DeleteFunc(make, func(n string) bool { return n == "out" })
		if len(said) != len(make) || len(make) > 0 && !strings.HasPrefix(said[0], make[0]+" is a subvolume of its own") {
			t.Errorf("snapshot %d warned of %q, want %q", i+1, said, make)
		}
	}
}

// TestCopyOfChanged copies a large file of which a little has changed: all of the copy is
// known, though no piece of it was ever stored as it is.
func TestCopyOfChanged(t *testing.T) {
	dir := subvolume(t)
	f := newFixture(t)
	j := f.job("s")
	v, err := btrfsvolume.Open(f.identity.ID, "s", dir, "")
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 5<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	put := func(name string) int64 {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		res := f.snap(j, v)
		return res.Committed[0].Uploaded
	}
	put("disk")
	for _, at := range []int{100, 3 << 20, 3<<20 + 5000} {
		data[at]++
	}
	disk, err := os.OpenFile(filepath.Join(dir, "disk"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{100, 3 << 20, 3<<20 + 5000} {
		if _, err := disk.WriteAt(data[at:at+1], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	if res := f.snap(j, v); res.Committed[0].Uploaded > 4096 {
		t.Errorf("three bytes changed: %d uploaded", res.Committed[0].Uploaded)
	}
	if n := put("copy"); n > 4096 {
		t.Errorf("a copy: %d uploaded", n)
	}
}

// TestUnreadable damages blocks of files on the disk, in the first snapshot and in a later
// one. What can be read is kept, each snapshot says what could not, and a file that is
// mended is whole in the next.
func TestUnreadable(t *testing.T) {
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{})
	dir := newSubvolume(t, filepath.Join(fs.Dir, "sub"))
	f := newFixture(t)
	v, err := btrfsvolume.Open(f.identity.ID, "s", dir, "")
	if err != nil {
		t.Fatal(err)
	}
	j := f.job("s")
	rng := rand.NewChaCha8([32]byte{2})
	noise := func(n int) []byte {
		b := make([]byte, n)
		rng.Read(b)
		return b
	}
	src := f.source("s")
	// check takes a snapshot in which just the files of want are incomplete.
	check := func(what string, want map[string][]byte, incomplete ...string) {
		t.Helper()
		res := f.snapUnread(j, v)
		if len(res.Committed) != 1 {
			t.Fatalf("%s: %+v", what, res)
		}
		var failed []string
		for _, line := range res.Failed {
			name, _, _ := strings.Cut(line, ":")
			failed = append(failed, name)
		}
		slices.Sort(failed)
		if !slices.Equal(failed, incomplete) {
			t.Errorf("%s: not read: %q, want %q", what, res.Failed, incomplete)
		}
		view := f.cat.At(src.ID, res.Committed[0].Seq)
		for name, content := range want {
			n, err := view.Resolve([]string{name})
			if err != nil {
				t.Fatalf("%s: %s: %v", what, name, err)
			}
			a, err := view.Attr(n)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := s3history.NewContent(f.store, f.identity, f.cat, f.identities).WriteFile(t.Context(), view, n, a.Size, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), content) {
				t.Errorf("%s: %s is not what could be read", what, name)
			}
			if a.Incomplete != slices.Contains(incomplete, name) {
				t.Errorf("%s: %s is incomplete: %v", what, name, a.Incomplete)
			}
		}
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damage := func(block []byte) {
		t.Helper()
		if err := fs.Damage(block); err != nil {
			t.Fatal(err)
		}
	}
	lacking := func(data []byte, at int) []byte {
		b := bytes.Clone(data)
		clear(b[at : at+4096])
		return b
	}

	first, later, other := noise(3<<20), noise(1<<20+50_000), noise(20_000)
	write("first", first)
	write("later", later)
	write("other", other)
	damage(first[1<<20+8192:][:4096])
	want := map[string][]byte{"first": lacking(first, 1<<20+8192), "later": later, "other": other}
	check("damaged when it was new", want, "first")
	if res := f.snapUnread(j, v); !res.Unchanged || res.Failures != 1 {
		t.Errorf("nothing changed: %+v", res)
	}
	write("other", other[:100])
	want["other"] = other[:100]
	check("damaged still", want, "first")

	file, err := os.OpenFile(filepath.Join(dir, "later"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fresh := noise(8192)
	if _, err := file.WriteAt(fresh, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	copy(later[1<<20:], fresh)
	damage(fresh[4096:])
	want["later"] = lacking(later, 1<<20+4096)
	check("damaged when it was changed", want, "first", "later")

	write("first", first)
	want["first"] = first
	check("one mended", want, "later")
	write("later", later)
	want["later"] = later
	check("both mended", want)
}

// snapUnread is snap where files cannot be read.
func (f *fixture) snapUnread(j *backup.Job, v backup.Volume) backup.Result {
	f.t.Helper()
	if _, err := j.Take(f.t.Context(), v); err != nil {
		f.t.Fatal(err)
	}
	res, err := j.Upload(f.t.Context(), v)
	if err != nil {
		f.t.Fatal(err)
	}
	return res
}

// TestManyXattrs keeps a node with more extended attributes than fit, without them.
func TestManyXattrs(t *testing.T) {
	dir := subvolume(t)
	f := newFixture(t)
	v, err := btrfsvolume.Open(f.identity.ID, "s", dir, "")
	if err != nil {
		t.Fatal(err)
	}
	j := f.job("s")
	file := filepath.Join(dir, "file")
	for _, name := range []string{file, filepath.Join(dir, "other")} {
		if err := os.WriteFile(name, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	value := make([]byte, 15_000)
	for i := range 300 {
		if err := unix.Setxattr(file, fmt.Sprintf("user.%d", i), value, 0); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 { // by a walk, by an increment
		res := f.snapUnread(j, v)
		if len(res.Committed) != 1 || len(res.Failed) != 1 || !strings.HasPrefix(res.Failed[0], "file: not all of it is kept: ") {
			t.Fatalf("%+v", res)
		}
		view := f.cat.At(f.source("s").ID, res.Committed[0].Seq)
		n, err := view.Resolve([]string{"file"})
		if err != nil {
			t.Fatal(err)
		}
		if a, err := view.Attr(n); err != nil || !a.Incomplete || len(a.Xattrs) > 0 || a.Size != int64(7+i) {
			t.Errorf("#%d: %+v, %v", i+1, a, err)
		}
		if err := os.WriteFile(file, []byte("contents"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMisfit takes a file out of the history behind the back of the file system: the next
// increment speaks of it and does not fit. All is read then, and it is there again.
func TestMisfit(t *testing.T) {
	dir := subvolume(t)
	f := newFixture(t)
	var said []string
	j, err := backup.New(backup.Options{Writer: f.w, Source: "s", Observer: hearer{logger{t}, &said}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := btrfsvolume.Open(f.identity.ID, "s", dir, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lost", "kept"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	res := f.snap(j, v)
	src := f.source("s")
	u, err := f.w.Begin(t.Context(), src, res.Committed[0].Info)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.RemoveName(filetree.RootNode, "lost"); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "lost"), []byte("found"), 0o600); err != nil {
		t.Fatal(err)
	}
	res = f.snap(j, v)
	if len(said) != 1 || !strings.HasPrefix(said[0], "reading everything") {
		t.Errorf("warned of %q", said)
	}
	view := f.cat.At(src.ID, res.Committed[0].Seq)
	for _, name := range []string{"lost", "kept"} {
		if _, err := view.Resolve([]string{name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (f *fixture) compareAll(t *testing.T, cat *catalog.DB, src catalog.Source, want [][]manifest.Entry, ignore ...func(*manifest.Ignore)) {
	for i, w := range want {
		got := f.entries(cat, src, uint64(i+1))
		ig := manifest.Ignore{Ino: true, DirSize: true, DirNlink: true, Nested: true}
		for _, set := range ignore {
			set(&ig)
		}
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
