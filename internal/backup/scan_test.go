package backup_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/treegen"
)

// scan makes what a directory has the next snapshot.
func (f *fixture) scan(source, dir string, o backup.ScanOptions, exclude ...string) backup.Result {
	f.t.Helper()
	res, err := f.job(source, exclude...).Scan(f.t.Context(), dir, o)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range res.Failed {
		f.t.Error(p)
	}
	return res
}

// TestScanRandom changes a tree on ordinary file systems at random, scans it every few
// changes, and compares every snapshot of the history with what the tree was.
func TestScanRandom(t *testing.T) {
	t.Run("in mind", func(t *testing.T) { onEach(t, scanRandom) })
	t.Run("skimmed", func(t *testing.T) {
		backup.SetMaxKnown(t, 3, 2)
		onEach(t, scanRandom)
	})
}

// onEach runs a test on several file systems, with seeds that are new each time: dir is for the
// tree and outside for what is moved out of it.
func onEach(t *testing.T, test func(t *testing.T, seed uint64, dir, outside string)) {
	onThese(t, test, loopfs.Ext4, loopfs.XFS, loopfs.Btrfs)
}

func onThese(t *testing.T, test func(t *testing.T, seed uint64, dir, outside string), kinds ...loopfs.Kind) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			fs := loopfs.New(t, kind, loopfs.Options{Size: 1 << 30})
			seeds := []uint64{*seedFlag}
			if *seedFlag == 0 {
				seeds = nil
				for i := range 3 {
					seeds = append(seeds, uint64(time.Now().UnixNano())+uint64(i))
				}
			}
			for _, seed := range seeds {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					base := filepath.Join(fs.Dir, fmt.Sprint(seed))
					dir, outside := filepath.Join(base, "tree"), filepath.Join(base, "outside")
					if err := errors.Join(os.MkdirAll(dir, 0o755), os.Mkdir(outside, 0o755)); err != nil {
						t.Fatal(err)
					}
					test(t, seed, dir, outside)
				})
			}
		})
	}
}

func scanRandom(t *testing.T, seed uint64, dir, outside string) {
	f := newFixture(t)
	g, err := treegen.New(dir, treegen.Options{Seed: seed, Outside: outside})
	if err != nil {
		t.Fatal(err)
	}
	var want [][]manifest.Entry
	for range 12 {
		if err := g.Step(25); err != nil {
			t.Fatal(err)
		}
		g.Note("scan %d", len(want)+1)
		if res := f.scan("s", dir, backup.ScanOptions{}); res.Unchanged {
			continue
		}
		want = append(want, scanned(t, dir))
		if res := f.scan("s", dir, backup.ScanOptions{}); !res.Unchanged {
			t.Errorf("#%d: scanned again there are %+v", len(want), res)
		}
	}
	// What was allocated ahead is a hole on ext4 and XFS until somebody has read it.
	extents := func(ig *manifest.Ignore) { ig.Extents = true }
	f.compareAll(t, f.cat, f.source("s"), want, extents)
	rebuilt, src := f.rebuilt()
	f.compareAll(t, rebuilt, src, want, extents)
	if t.Failed() {
		log := filepath.Join(os.TempDir(), fmt.Sprintf("secrate-seed-%d.log", seed))
		os.WriteFile(log, []byte(g.Log()), 0o600)
		t.Logf("-seed %d; operations in %s", seed, log)
	}
}

// scanned is the manifest of a tree, without the flags that ext4 sets by itself.
func scanned(t *testing.T, dir string) []manifest.Entry {
	t.Helper()
	const extents, inline, index = 0x80000, 0x10000000, 0x1000 // EXT4_EXTENTS_FL, EXT4_INLINE_DATA_FL, EXT4_INDEX_FL
	all, err := manifest.Scan(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if all[i].FSFlags > 0 {
			all[i].FSFlags &^= extents | inline | index
		}
	}
	return all
}

// A scanCase is a tree that is scanned, as a list of paths with what is in them.
type scanCase struct {
	f   *fixture
	dir string
}

func newScanCase(t *testing.T) *scanCase {
	c := &scanCase{newFixture(t), filepath.Join(t.TempDir(), "tree")}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *scanCase) path(name string) string { return filepath.Join(c.dir, name) }

func (c *scanCase) must(err error) {
	c.f.t.Helper()
	if err != nil {
		c.f.t.Fatal(err)
	}
}

func (c *scanCase) write(name, text string) {
	c.f.t.Helper()
	c.must(os.MkdirAll(filepath.Dir(c.path(name)), 0o755))
	c.must(os.WriteFile(c.path(name), []byte(text), 0o644))
}

// same compares the newest snapshot with the tree.
func (c *scanCase) same(t *testing.T, what string) {
	t.Helper()
	want := scanned(t, c.dir)
	src := c.f.source("s")
	head, err := c.f.w.Head(src)
	c.must(err)
	ig := manifest.Ignore{Ino: true, DirSize: true, DirNlink: true, Nested: true, Extents: true}
	if d := manifest.Diff(want, c.f.entries(c.f.cat, src, head.Seq), ig); len(d) > 0 {
		t.Errorf("%s:\n%s", what, manifest.Report(d, 10))
	}
}

// TestScanMoved moves things about between two scans: nothing is stored again, and a directory
// costs the same whatever is in it.
func TestScanMoved(t *testing.T) {
	c := newScanCase(t)
	for i := range 500 {
		c.write(fmt.Sprintf("big/d%d/f%d", i%10, i), strings.Repeat(fmt.Sprintf("file %d ", i), 40))
	}
	c.write("a/x", strings.Repeat("x", 1000))
	c.write("b/y", strings.Repeat("y", 1000))
	c.must(os.Link(c.path("a/x"), c.path("linked")))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	rename := func(from, to string) { c.must(os.Rename(c.path(from), c.path(to))) }
	for _, step := range []struct {
		name  string
		do    func()
		files uint64
	}{
		{"a directory", func() { rename("big", "a/large") }, 0},
		{"back, under another name", func() { rename("a/large", "Big") }, 0},
		{"two change places", func() { rename("a", "t"); rename("b", "a"); rename("t", "b") }, 0},
		{"a child takes its parent's place", func() { rename("Big/d3", "d3"); rename("Big", "d3/Big"); rename("d3", "Big") }, 0},
		{"and its parent's name", func() { rename("Big/Big", "Big/d3") }, 0},
		{"files change places", func() { rename("a/y", "t"); rename("b/x", "a/y"); rename("t", "b/x") }, 2},
		{"one name of two", func() { rename("linked", "b/linked") }, 1},
		{"a name more", func() { c.must(os.Link(c.path("a/y"), c.path("a/third"))) }, 1},
		{"out of a directory that goes", func() { rename("Big/d3/d1/f1", "f1"); c.must(os.RemoveAll(c.path("Big/d3/d1"))) }, 50},
		{"over another", func() { rename("f1", "a/y") }, 2},
		{"where a directory was", func() {
			rename("a", "aside")
			c.write("a", "now a file")
		}, 1},
	} {
		before, err := c.f.w.Head(c.f.source("s"))
		c.must(err)
		step.do()
		res := c.f.scan("s", c.dir, backup.ScanOptions{})
		c.same(t, step.name)
		if len(res.Committed) != 1 {
			t.Errorf("%s: %d snapshots", step.name, len(res.Committed))
			continue
		}
		// A file costs its record, no content.
		if s := res.Committed[0]; s.Uploaded > 3000 || s.Files > step.files {
			t.Errorf("%s: %d files, %d bytes uploaded after #%d", step.name, s.Files, s.Uploaded, before.Seq)
		}
	}
}

// TestScanReplaced does not take an empty directory for the tree.
func TestScanReplaced(t *testing.T) {
	c := newScanCase(t)
	c.write("x", "text")
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.must(os.Rename(c.dir, c.dir+"-away"))
	c.must(os.Mkdir(c.dir, 0o755))
	if _, err := c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{}); !errors.Is(err, backup.ErrReplaced) {
		t.Errorf("another directory: %v", err)
	}
	head, err := c.f.w.Head(c.f.source("s"))
	c.must(err)
	if head.Seq != 1 {
		t.Errorf("the history is at #%d", head.Seq)
	}
	c.f.scan("s", c.dir, backup.ScanOptions{Replaced: true})
	c.same(t, "one that is meant")
	c.write("y", "more")
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.same(t, "the same again")
}

// endless changes something without end, for the i-th time from 0 on, until what it returns is
// called.
func endless(t *testing.T, change func(i int64) error) (stop func()) {
	ended, done := make(chan struct{}), make(chan error)
	go func() {
		for i := int64(0); ; i++ {
			select {
			case <-ended:
				done <- nil
				return
			default:
			}
			if err := change(i); err != nil {
				done <- err
				return
			}
		}
	}()
	return func() {
		t.Helper()
		close(ended)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestScanWhileItChanges scans a tree that is changed at random all the while. No scan fails,
// and once it stands still the next one makes it what it is.
func TestScanWhileItChanges(t *testing.T) {
	c := newScanCase(t)
	g, err := treegen.New(c.dir, treegen.Options{Seed: uint64(time.Now().UnixNano())})
	c.must(err)
	stop := endless(t, func(int64) error { return g.Step(5) })
	j := c.f.job("s")
	for range 15 {
		if _, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.same(t, "after it stands still")
}

// TestScanTorn reads a file that somebody writes to without end: it is kept, and marked, until
// it stands still.
func TestScanTorn(t *testing.T) {
	c := newScanCase(t)
	c.write("db", strings.Repeat("a page ", 4<<20))
	c.write("still", "x")
	f, err := os.OpenFile(c.path("db"), os.O_WRONLY, 0)
	c.must(err)
	defer f.Close()
	stop := endless(t, func(i int64) error {
		_, err := f.WriteAt([]byte{byte(i)}, i%1000)
		return err
	})
	incomplete := func() bool {
		v := c.f.cat.At(c.f.source("s").ID, 1)
		if head, err := c.f.w.Head(c.f.source("s")); err == nil {
			v = c.f.cat.At(c.f.source("s").ID, head.Seq)
		}
		n, err := v.Resolve([]string{"db"})
		c.must(err)
		a, err := v.Attr(n)
		c.must(err)
		return a.Incomplete
	}
	res, err := c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{})
	c.must(err)
	if len(res.Failed) != 1 || !strings.Contains(res.Failed[0], "db: not all of it is kept: it was changed each of 3 times that it was read") || !incomplete() {
		t.Errorf("failed %q, incomplete %v", res.Failed, incomplete())
	}
	stop()
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.same(t, "after it stands still")
	if incomplete() {
		t.Error("it is still incomplete")
	}
}

// TestScanInParts commits what there is after every entry: each part can be restored, and the
// last one is the tree, whether the run before it was broken off or not.
func TestScanInParts(t *testing.T) {
	c := newScanCase(t)
	var err error
	c.f.w, err = s3history.NewWriter(t.Context(), s3history.WriterOptions{Store: c.f.store, StateDir: c.f.state, Catalog: c.f.cat,
		Identity: c.f.identity, Recipients: c.f.recipients, PartialAfter: time.Nanosecond})
	c.must(err)
	g, err := treegen.New(c.dir, treegen.Options{Seed: uint64(time.Now().UnixNano()), Entries: 40})
	c.must(err)
	scan := func() {
		t.Helper()
		c.f.scan("s", c.dir, backup.ScanOptions{})
		c.same(t, "in parts")
		head, err := c.f.w.Head(c.f.source("s"))
		c.must(err)
		if head.Partial {
			t.Errorf("#%d is partial", head.Seq)
		}
	}
	for range 4 {
		c.must(g.Step(25))
		scan()
	}
	// Broken off in the midst of it: what it committed is there, and the next run goes on.
	c.must(g.Step(25))
	ctx, cancel := context.WithCancel(t.Context())
	j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", Observer: &cancelling{cancel: cancel, after: 8}})
	c.must(err)
	if _, err := j.Scan(ctx, c.dir, backup.ScanOptions{}); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	_, err = c.f.w.Recover(t.Context()) // what it had decided to commit, as every command does first
	c.must(err)
	scan()
	known, err := c.f.w.Known(c.f.source("s"))
	c.must(err)
	parts := 0
	for _, s := range known.All {
		if s.Partial {
			parts++
		}
	}
	if parts < 8 {
		t.Errorf("%d of %d snapshots are partial", parts, len(known.All))
	}
}

// TestScanYields makes room for others after each part, for as long as they wait: each run goes
// on from there, and the last one has all of the tree.
func TestScanYields(t *testing.T) {
	c := newScanCase(t)
	var err error
	c.f.w, err = s3history.NewWriter(t.Context(), s3history.WriterOptions{Store: c.f.store, StateDir: c.f.state, Catalog: c.f.cat,
		Identity: c.f.identity, Recipients: c.f.recipients, PartialAfter: time.Nanosecond})
	c.must(err)
	for i := range 30 {
		c.write(fmt.Sprintf("d%d/f%d", i%3, i), strings.Repeat(fmt.Sprint(i, " "), 1000))
	}
	others := 5
	yield := func() bool { others--; return others >= 0 }
	j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", Yield: yield})
	c.must(err)
	runs := 0
	for {
		res, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{})
		if runs++; errors.Is(err, backup.ErrYielded) {
			continue
		}
		c.must(err)
		if len(res.Committed) != 1 {
			t.Errorf("committed %+v", res.Committed)
		}
		break
	}
	if runs != 6 {
		t.Errorf("%d runs", runs)
	}
	c.same(t, "at last")
}

// cancelling cancels after so many files.
type cancelling struct {
	cancel context.CancelFunc
	after  int64
	seen   atomic.Int64
}

func (c *cancelling) Phase(string, string) {}
func (c *cancelling) Warn(string, string)  {}
func (c *cancelling) Seen(files, _ int64) {
	if c.seen.Add(files) >= c.after {
		c.cancel()
	}
}

// TestScanNumberAgain makes a directory where one was removed, which ext4 gives the same inode
// number, and brings back to it what was in the other: it is not looked for where it was.
func TestScanNumberAgain(t *testing.T) {
	c := newScanCase(t)
	c.dir = filepath.Join(loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 64 << 20}).Dir, "tree")
	c.write("d/f", strings.Repeat("text ", 100))
	ino := func() uint64 {
		var st unix.Stat_t
		c.must(unix.Stat(c.path("d"), &st))
		return st.Ino
	}
	before := ino()
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.must(os.Rename(c.path("d/f"), c.path("../f")))
	c.must(os.Remove(c.path("d")))
	c.must(os.Mkdir(c.path("d"), 0o755))
	if again := ino(); again != before {
		t.Logf("the directory has number %d, and had %d", again, before)
	}
	c.must(os.Rename(c.path("../f"), c.path("d/f")))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.same(t, "a directory of the same number")
}

// TestScanOwnNames has names in the tree that a scan uses for itself.
func TestScanOwnNames(t *testing.T) {
	c := newScanCase(t)
	c.write("a/x", "x")
	c.write("b/y", "y")
	c.f.scan("s", c.dir, backup.ScanOptions{})
	for i := range 12 {
		c.write(fmt.Sprintf(".secrate-%d", i), fmt.Sprint("mine ", i))
	}
	c.must(os.Rename(c.path("a"), c.path("t")))
	c.must(os.Rename(c.path("b"), c.path("a")))
	c.must(os.Rename(c.path("t"), c.path("b")))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.same(t, "after two have changed places")
}

// TestScanLinkedOver gives the name of something that was moved to a new file, by a second link to
// it: what was moved is what it was, in parts as well.
func TestScanLinkedOver(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before string // is written
		do     func(c *scanCase)
	}{
		{"a file", "x", func(c *scanCase) { c.must(os.Rename(c.path("x"), c.path("z"))) }},
		{"a directory's file", "x/f", func(c *scanCase) {
			c.must(errors.Join(os.Rename(c.path("x/f"), c.path("z")), os.Remove(c.path("x"))))
		}},
		{"a directory's directory", "x/sub/f", func(c *scanCase) {
			c.must(errors.Join(os.Rename(c.path("x/sub"), c.path("z")), os.Remove(c.path("x"))))
		}},
	} {
		for _, parts := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in parts %v", tt.name, parts), func(t *testing.T) {
				c := newScanCase(t)
				c.write(tt.before, strings.Repeat("what was there ", 100))
				c.f.scan("s", c.dir, backup.ScanOptions{})
				tt.do(c)
				c.write("a", "new")
				c.must(os.Link(c.path("a"), c.path("x")))
				c.write("y", "comes between")
				if parts {
					var err error
					c.f.w, err = s3history.NewWriter(t.Context(), s3history.WriterOptions{Store: c.f.store, StateDir: c.f.state, Catalog: c.f.cat,
						Identity: c.f.identity, Recipients: c.f.recipients, PartialAfter: time.Nanosecond})
					c.must(err)
				}
				c.f.scan("s", c.dir, backup.ScanOptions{})
				c.same(t, "linked over")
			})
		}
	}
}

// TestScanTimeSetBack writes to a file without that its time of modification tells, as programs do
// that keep volumes in files, and gives it another name: only its ctime is new, and says both.
func TestScanTimeSetBack(t *testing.T) {
	c := newScanCase(t)
	c.write("volume", "before")
	c.f.scan("s", c.dir, backup.ScanOptions{})
	st, err := os.Stat(c.path("volume"))
	c.must(err)
	c.write("volume", "after!")
	c.must(os.Chtimes(c.path("volume"), time.Time{}, st.ModTime()))
	c.must(os.Rename(c.path("volume"), c.path("renamed")))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.same(t, "renamed")
}

// TestScanMapped writes to a page of a mapping, scans, and writes to the page again before it was
// written to the disk: the file's times are to tell of the second time as well.
func TestScanMapped(t *testing.T) {
	for _, kind := range []loopfs.Kind{loopfs.Ext4, loopfs.XFS, loopfs.Btrfs} {
		for _, size := range []int{8192, 2 << 20} { // read as it is, and frozen
			t.Run(fmt.Sprintf("%s, %d bytes", kind, size), func(t *testing.T) {
				c := newScanCase(t)
				c.dir = filepath.Join(loopfs.New(t, kind, loopfs.Options{}).Dir, "tree")
				c.write("db", string(make([]byte, size)))
				f, err := os.OpenFile(c.path("db"), os.O_RDWR, 0)
				c.must(err)
				defer f.Close()
				m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				c.must(err)
				m[5000] = 1
				c.f.scan("s", c.dir, backup.ScanOptions{})
				m[5000] = 2
				c.must(unix.Munmap(m))
				c.f.scan("s", c.dir, backup.ScanOptions{})
				c.same(t, "written to again")
			})
		}
	}
}

// A during does something each time that content was read.
type during struct{ read func() }

func (d during) Phase(string, string) {}
func (d during) Warn(string, string)  {}
func (d during) Seen(_, bytes int64) {
	if bytes > 0 {
		d.read()
	}
}

// TestScanShrinksMeanwhile has a file grow while it is read, and shrink when it is read again:
// nothing stays behind its end.
func TestScanShrinksMeanwhile(t *testing.T) {
	c := newScanCase(t)
	const size, more = 50000, 150000
	c.write("f", string(randomBytes(1, size)))
	n := 0
	j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", Observer: during{func() {
		switch n++; n {
		case 1:
			c.write("f", string(randomBytes(2, more)))
		case 2:
			c.must(os.Truncate(c.path("f"), size))
		}
	}}})
	c.must(err)
	if _, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{}); err != nil || n != 3 {
		t.Fatalf("read %d times: %v", n, err)
	}
	c.same(t, "shrunk")
	v := c.f.cat.At(c.f.source("s").ID, 1)
	f, err := v.Resolve([]string{"f"})
	c.must(err)
	if next, err := v.NextExtent(f, size); err != nil || next != math.MaxInt64 {
		t.Errorf("of %d bytes there is an extent at %d: %v", size, next, err)
	}
}

// TestScanHuge has a file that is a hole of exabytes: it takes no longer than any other.
func TestScanHuge(t *testing.T) {
	for _, kind := range []loopfs.Kind{loopfs.XFS, loopfs.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			c := newScanCase(t)
			c.dir = filepath.Join(loopfs.New(t, kind, loopfs.Options{}).Dir, "tree")
			c.write("f", "data at the front")
			for i, size := range []int64{1<<62 + 1<<61, 1<<62 + 5} {
				c.must(os.Truncate(c.path("f"), size))
				f, err := os.OpenFile(c.path("f"), os.O_WRONLY, 0)
				c.must(err)
				_, err = f.WriteAt([]byte("and at the end"), size-14)
				c.must(errors.Join(err, f.Close()))
				c.f.scan("s", c.dir, backup.ScanOptions{})
				v := c.f.cat.At(c.f.source("s").ID, uint64(i+1))
				n, err := v.Resolve([]string{"f"})
				c.must(err)
				next, err := v.NextExtent(n, 1<<40)
				c.must(err)
				if next <= size-14-4096 || next > size-14 {
					t.Errorf("of %d bytes the last are at %d", size, next)
				}
			}
		})
	}
}

// TestScanLinkedNumberAgain removes a file of two names while a scan goes on, and makes another one of
// two names that ext4 gives the same inode number: it is not taken for a further name of the first.
func TestScanLinkedNumberAgain(t *testing.T) {
	c := newScanCase(t)
	c.dir = filepath.Join(loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 64 << 20}).Dir, "tree")
	c.write("d/a", "the old one")
	c.must(os.Link(c.path("d/a"), c.path("d/b")))
	for i := range 200 { // more than the walk is ahead
		c.write(fmt.Sprintf("d/f%03d", i), fmt.Sprint("file ", i))
	}
	c.write("e/z", "z")
	ino := func(name string) uint64 {
		var st unix.Stat_t
		c.must(unix.Stat(c.path(name), &st))
		return st.Ino
	}
	old, n := ino("d/a"), 0
	var mu sync.Mutex
	j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", Observer: during{func() {
		mu.Lock()
		defer mu.Unlock()
		if n++; n != 30 {
			return
		}
		c.must(errors.Join(os.Remove(c.path("d/a")), os.Remove(c.path("d/b"))))
		for i := 0; ; i++ {
			name := fmt.Sprintf("e/n%d", i)
			c.write(name, "the new one")
			if ino(name) == old {
				c.must(os.Link(c.path(name), c.path("e/c")))
				return
			}
			if i == 1000 {
				t.Error("the number is not given again")
				return
			}
		}
	}}})
	c.must(err)
	_, err = j.Scan(t.Context(), c.dir, backup.ScanOptions{})
	c.must(err)
	if got := c.f.contentAt("s", 1, "e/c"); string(got) != "the new one" {
		t.Errorf("the new file has %q", got)
	}
}

// TestScanCoarseTimes has a file on a file system that notes whole seconds, and a program that writes
// to it without end until the scan has read it, and once more in the same second. That is found.
func TestScanCoarseTimes(t *testing.T) {
	c := newScanCase(t)
	c.dir = filepath.Join(loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 64 << 20, Mkfs: []string{"-I", "128"}}).Dir, "tree")
	c.write("log", strings.Repeat("x", 1000))
	f, err := os.OpenFile(c.path("log"), os.O_RDWR, 0)
	c.must(err)
	defer f.Close()
	write := func(b byte) {
		_, err := f.WriteAt([]byte{b}, 0)
		c.must(err)
	}
	read, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := byte(0); ; i = (i + 1) % 100 {
			select {
			case <-read:
				return
			default:
				write(i)
			}
		}
	}()
	var once sync.Once
	j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", Observer: during{func() {
		once.Do(func() { // between its reading and a look at whether it has changed
			close(read)
			<-done
			write(200)
		})
	}}})
	c.must(err)
	_, err = j.Scan(t.Context(), c.dir, backup.ScanOptions{})
	c.must(err)
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.same(t, "when nobody writes")
}

// TestScanStops ends a scan of files that have not changed.
func TestScanStops(t *testing.T) {
	c := newScanCase(t)
	for i := range 1000 {
		c.write(fmt.Sprint("d/f", i), "")
	}
	c.f.scan("s", c.dir, backup.ScanOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	seen := &cancelling{cancel: cancel, after: 8}
	j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", Observer: seen})
	c.must(err)
	if _, err := j.Scan(ctx, c.dir, backup.ScanOptions{}); !errors.Is(err, context.Canceled) || seen.seen.Load() > 100 {
		t.Errorf("after %d files: %v", seen.seen.Load(), err)
	}
}

// A looking does something when so many files were looked at.
type looking struct {
	after *atomic.Int64
	do    func()
}

func (l looking) Phase(string, string) {}
func (l looking) Warn(string, string)  {}
func (l looking) Seen(files, _ int64) {
	if files > 0 && l.after.Add(-files) == 0 {
		l.do()
	}
}

// TestScanInsideOut moves a directory into one that was in it, while a scan is in that one.
func TestScanInsideOut(t *testing.T) {
	c := newScanCase(t)
	c.write("p/x/f", "text")
	c.write("p/z/f", "text")
	c.f.scan("s", c.dir, backup.ScanOptions{})
	var after atomic.Int64
	after.Store(2) // p and x
	j, err := backup.New(backup.Options{Writer: c.f.w, Source: "s", Observer: looking{&after, func() {
		c.must(errors.Join(os.Rename(c.path("p/x"), c.path("x")), os.Rename(c.path("p"), c.path("x/p"))))
	}}})
	c.must(err)
	if _, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{}); err != nil {
		t.Errorf("turned inside out: %v", err)
	}
	c.f.scan("s", c.dir, backup.ScanOptions{})
	c.same(t, "after it stands still")
}
