package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	"github.com/secrate/secrate/internal/exclude"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/sendstream/btrfs"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/treegen"
)

// An excludedTree is a subvolume of which a part is excluded, and its two histories: one by
// streams, one by snapshots that secrate takes.
type excludedTree struct {
	*fixture
	dir     string
	exclude []string
	sent    []string // read-only snapshots
	job     *backup.Job
	volume  *btrfsvolume.Volume

	unknown []string        // what the last unit said of itself
	moved   []string        // and which directories
	unsure  map[string]bool // paths that it said too little of
}

func newExcludedTree(t *testing.T, exclude ...string) *excludedTree {
	dir := subvolume(t)
	v, err := btrfsvolume.Open("0123456789abcdef", "vol", dir, "")
	if err != nil {
		t.Fatal(err)
	}
	// Made by the first snapshot, it would change the root.
	if err := os.Mkdir(filepath.Join(dir, ".secrate"), 0o700); err != nil {
		t.Fatal(err)
	}
	x := &excludedTree{fixture: newFixture(t), dir: dir, exclude: append(exclude, "/.secrate"), volume: v}
	x.job = x.fixture.job("vol", x.exclude...)
	return x
}

// snapshot makes a read-only snapshot of the tree as it is.
func (x *excludedTree) snapshot() string {
	x.t.Helper()
	snap := fmt.Sprintf("%s-%d", x.dir, len(x.sent))
	x.command("btrfs", "subvolume", "snapshot", "-r", x.dir, snap)
	x.sent = append(x.sent, snap)
	return snap
}

func (x *excludedTree) command(args ...string) []byte {
	x.t.Helper()
	var stderr bytes.Buffer
	c := exec.CommandContext(x.t.Context(), args[0], args[1:]...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		x.t.Fatalf("%q: %v: %s", args, err, &stderr)
	}
	return out
}

// send ingests a snapshot, from another if parent is one, and returns what came of it.
func (x *excludedTree) send(snap, parent string) (backup.Result, error) {
	x.t.Helper()
	args := []string{"btrfs", "send", "-q", "--proto", "2", snap}
	if parent != "" {
		args = append(args, "-p", parent)
	}
	unit, err := btrfs.NewUnits(bytes.NewReader(x.command(args...))).Next()
	if err != nil {
		x.t.Fatal(err)
	}
	x.unknown, x.moved = nil, nil
	u := btrfsvolume.UnitOf(unit, func(paths []string) { x.moved = paths })
	apply := u.Apply
	u.Apply = func(ctx context.Context, up *s3history.Update, excluded func(string, bool) bool, before []byte) (_ []string, after []byte, err error) {
		x.unknown, after, err = apply(ctx, up, excluded, before)
		return x.unknown, after, err
	}
	var res backup.Result
	err = x.fixture.job("fed", x.exclude...).Ingest(x.t.Context(), u, filetree.Time{Sec: int64(len(x.sent))}, &res)
	return res, err
}

// step makes a snapshot after a change, and compares both histories with it.
func (x *excludedTree) step(name string) {
	x.t.Helper()
	parent := ""
	if n := len(x.sent); n > 0 {
		parent = x.sent[n-1]
	}
	snap := x.snapshot()
	res, err := x.send(snap, parent)
	if err != nil {
		x.t.Fatalf("%s: %v", name, err)
	}
	for _, f := range res.Failed {
		x.t.Errorf("%s: %s", name, f)
	}
	x.compare(name, "fed", snap)
	x.snap(x.job, x.volume)
	x.compare(name, "vol", snap)
}

// compare compares the newest state of a history with what is not excluded of snap.
func (x *excludedTree) compare(name, source, snap string) {
	x.t.Helper()
	src := x.source(source)
	head, err := x.w.Head(src)
	if err != nil {
		x.t.Fatal(err)
	}
	sure := func(all []manifest.Entry) []manifest.Entry {
		return relinked(slices.DeleteFunc(all, func(e manifest.Entry) bool { return source == "fed" && x.unsure[e.Path] }))
	}
	ig := manifest.Ignore{Ino: true, DirSize: true, DirNlink: true, FSFlags: true, Nested: true, Extents: true}
	if d := manifest.Diff(sure(x.kept(snap)), sure(x.entries(x.cat, src, head.Seq)), ig); len(d) > 0 {
		x.t.Errorf("%s: %s #%d:\n%s", name, source, head.Seq, manifest.Report(d, 10))
	}
}

// kept returns what is not excluded of a snapshot.
func (x *excludedTree) kept(snap string) []manifest.Entry {
	x.t.Helper()
	m, err := exclude.Compile(x.exclude)
	x.do(err)
	return relinked(slices.DeleteFunc(x.scan(snap), func(e manifest.Entry) bool {
		return m.Excluded(e.Path, e.Kind == filetree.Dir)
	}))
}

func (x *excludedTree) scan(snap string) []manifest.Entry {
	x.t.Helper()
	all, err := manifest.Scan(snap)
	x.do(err)
	return all
}

// relinked counts the names of files again: one that is not there is no link.
func relinked(all []manifest.Entry) []manifest.Entry {
	links := map[uint64]uint64{}
	for _, e := range all {
		links[e.Ino]++
	}
	for i := range all {
		all[i].Nlink = links[all[i].Ino]
	}
	return all
}

// The operations return no errors: what fails, fails the test.
func (x *excludedTree) do(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *excludedTree) path(p string) string { return filepath.Join(x.dir, p) }
func (x *excludedTree) mkdir(p string)       { x.t.Helper(); x.do(os.Mkdir(x.path(p), 0o755)) }
func (x *excludedTree) link(from, to string) { x.t.Helper(); x.do(os.Link(x.path(from), x.path(to))) }
func (x *excludedTree) mv(from, to string)   { x.t.Helper(); x.do(os.Rename(x.path(from), x.path(to))) }
func (x *excludedTree) rm(p string)          { x.t.Helper(); x.do(os.Remove(x.path(p))) }

// write appends.
func (x *excludedTree) write(p, text string) {
	x.t.Helper()
	f, err := os.OpenFile(x.path(p), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	x.do(err)
	_, err = f.WriteString(text)
	x.do(errors.Join(err, f.Close()))
}

func (x *excludedTree) reflink(from, to string) {
	x.t.Helper()
	src, err := os.Open(x.path(from))
	x.do(err)
	defer src.Close()
	dst, err := os.Create(x.path(to))
	x.do(err)
	x.do(errors.Join(unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())), dst.Close()))
}

// TestNamesAcrossExcludes has files with one name that is excluded and one that is not,
// in directories made before and after: the sender names a file by the directory with the
// lowest number.
func TestNamesAcrossExcludes(t *testing.T) {
	x := newExcludedTree(t, "/x", "/y", "*.tmp")
	block := string(bytes.Repeat([]byte("0123456789abcdef"), 1024))

	for _, d := range []string{"x", "d", "e", "y"} {
		x.mkdir(d)
	}
	for _, f := range []string{"d/a", "d/b", "d/c", "x/only", "e/plain"} {
		x.write(f, f+block)
	}
	x.link("d/a", "x/a")
	x.link("d/b", "y/b")
	x.link("d/c", "d/c.tmp")
	x.link("x/only", "y/only")
	x.step("full")

	x.write("x/a", "1")
	x.write("y/b", "2")
	x.write("d/c.tmp", "3")
	x.write("y/only", "4")
	x.step("written by excluded names")
	x.write("d/a", "1"+block)
	x.write("d/b", "2"+block)
	x.write("d/c", "3"+block)
	x.step("written by names that are kept")

	x.do(os.Truncate(x.path("x/a"), 5000))
	x.do(os.Chmod(x.path("y/b"), 0o600))
	x.do(unix.Setxattr(x.path("d/c.tmp"), "user.a", []byte("value"), 0))
	x.do(os.Lchown(x.path("x/a"), 7, 8))
	x.step("attributes by excluded names")

	x.reflink("x/a", "e/clone")
	x.write("x/a", "more")
	x.step("cloned from and written by the excluded name")

	x.link("x/a", "e/a2")
	x.link("x/a", "x/a3")
	x.link("y/b", "b.tmp")
	x.step("more names")
	x.rm("d/a")
	x.write("x/a3", "5")
	x.step("a name that is kept goes")

	x.mkdir("x/s")
	x.mv("x/a", "x/s/a")
	x.step("moved to a directory that is excluded, too")
	x.mv("x/s", "y/s")
	x.write("y/s/a", "6")
	x.step("the directory is moved")
	x.mv("x", "y/x")
	x.write("y/x/a3", "7")
	x.step("and the one it was in")

	x.mkdir("e/deep")
	x.mv("d", "e/deep/d")
	x.write("e/deep/d/c.tmp", "8")
	x.step("directories above both names are moved")

	x.mv("e/deep/d/b", "e/deep/d/b2")
	x.write("e/deep/d/b", "new")
	x.write("y/b", "9")
	x.step("another file takes the name")
	x.mv("e/deep/d/b", "x.tmp")
	x.link("b.tmp", "e/deep/d/b")
	x.rm("e/deep/d/b2")
	x.write("b.tmp", "10")
	x.step("a name goes and one comes from an excluded one")

	x.link("e/deep/d/c", "e/c2")
	x.mv("e/deep", "y/deep")
	x.step("a directory becomes excluded")
	x.write("y/deep/d/c", "11")
	x.write("b.tmp", "12") // which has no name that is kept now
	x.step("and files in it are written")
	x.mv("y/s/a", "e/back")
	x.write("e/back", "13")
	x.rm("e/a2")
	x.step("a name comes out")

	x.rm("y/deep/d/c")
	x.rm("y/deep/d/c.tmp")
	x.write("e/c2", "14")
	x.rm("y/x/a3")
	x.step("excluded names go")
	x.write("e/c2", "15")
	x.write("e/back", "16")
	x.step("and are not missed")

	x.write("first.tmp", "new"+block)
	x.link("first.tmp", "second")
	x.link("first.tmp", "e/third.tmp")
	x.step("a new file with excluded names")
	x.write("e/third.tmp", "17")
	x.step("written by one")
}

// In what follows the sender names a file by what is in x, which is older than z.

// TestStreamsUnchanged has a change of excluded names alone, which makes no snapshot of the
// history, and a stream that starts from there.
func TestStreamsUnchanged(t *testing.T) {
	x := newExcludedTree(t, "/x")
	x.mkdir("x")
	x.mkdir("x/a")
	x.write("x/a/f", "1")
	x.mkdir("z")
	x.link("x/a/f", "z/f")
	x.step("full")
	x.mv("x/a", "x/b")
	parent := x.sent[0]
	snap := x.snapshot()
	if res, err := x.send(snap, parent); err != nil || !res.Unchanged {
		t.Fatalf("%+v, %v", res, err)
	}
	x.write("x/b/f", "2")
	x.step("written by the name it has now")
}

// TestStreamsFromOlder sends a snapshot that starts from one before the newest.
func TestStreamsFromOlder(t *testing.T) {
	x := newExcludedTree(t, "/x")
	x.mkdir("x")
	x.write("x/f", "1")
	x.mkdir("z")
	x.link("x/f", "z/f")
	x.step("full")
	x.mv("x/f", "x/g")
	x.step("renamed")
	x.rm("x/g")
	x.step("removed")
	x.write("z/f", "2")
	x.link("z/f", "x/h")
	x.write("x/h", "3")
	snap := x.snapshot()
	for i, parent := range x.sent[:3] {
		if i > 0 { // what was sent may be sent but once
			x.write("x/h", "more")
			snap = x.snapshot()
		}
		if _, err := x.send(snap, parent); err != nil {
			t.Fatal(err)
		}
		x.compare(fmt.Sprint("from ", i), "fed", snap)
	}
	x.write("x/h", "4")
	x.step("and on")
}

// TestStreamsNotKnown has a catalog that no longer knows which excluded names lead to files
// that are kept.
func TestStreamsNotKnown(t *testing.T) {
	x := newExcludedTree(t, "/x")
	x.mkdir("x")
	x.write("x/f", "1")
	x.mkdir("z")
	x.link("x/f", "z/f")
	x.step("full")
	src := x.source("fed")
	head, err := x.w.Head(src)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.w.SetNote(src, fmt.Sprintf("stream-%x", head.Info.GUID), nil); err != nil {
		t.Fatal(err)
	}
	x.write("x/f", "2")
	parent, snap := x.sent[0], x.snapshot()
	if _, err := x.send(snap, parent); !errors.Is(err, backup.ErrNames) {
		t.Fatalf("error is %v, want ErrNames", err)
	}
	if res, err := x.send(snap, ""); err != nil || res.Failures > 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	x.compare("full again", "fed", snap)
	x.write("x/f", "3")
	x.step("and on")
}

// TestNamesBelowMoved has a name that is excluded because a directory above it moves: the
// stream that moves it does not speak of the file.
func TestNamesBelowMoved(t *testing.T) {
	x := newExcludedTree(t, "/e/f")
	x.mkdir("d")
	x.write("d/f", "1")
	x.mkdir("z")
	x.link("d/f", "z/f")
	x.step("full")
	x.mv("d", "e")
	x.step("excluded")
	x.write("e/f", "2")
	x.step("written")
	x.mv("e", "d")
	x.step("no longer excluded")
}

// TestStreamsWithoutContent has a file that is no longer excluded: every snapshot says so,
// until it is sent whole.
func TestStreamsWithoutContent(t *testing.T) {
	x := newExcludedTree(t, "/x")
	x.mkdir("x")
	x.write("x/f", "1")
	x.write("g", "1")
	x.step("full")
	x.mv("x/f", "f")
	for range 3 {
		parent, snap := x.sent[len(x.sent)-1], x.snapshot()
		res, err := x.send(snap, parent)
		if err != nil || res.Failures != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		x.write("f", "2")
		x.write("g", "2")
	}
	snap := x.snapshot()
	if res, err := x.send(snap, ""); err != nil || res.Failures > 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	x.compare("full again", "fed", snap)
	x.write("f", "3")
	x.step("and on")
}

// TestRandomStreams changes a small tree at random, of which much is excluded, so that
// names often come to where they are and from there.
func TestRandomStreams(t *testing.T) {
	var seeds []uint64
	for i := range *seedsFlag {
		seeds = append(seeds, uint64(time.Now().UnixNano())+uint64(i))
	}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			x := newExcludedTree(t, "*[13579]", "/*[aeiou]*/*[acegi]*")
			g, err := treegen.New(x.dir, treegen.Options{Seed: seed, Entries: 60, Bytes: 1 << 20, Large: -1, PathMax: 200})
			if err != nil {
				t.Fatal(err)
			}
			x.random(g)
			if t.Failed() {
				log := filepath.Join(os.TempDir(), fmt.Sprintf("secrate-streams-seed-%d.log", seed))
				os.WriteFile(log, []byte(g.Log()), 0o600)
				t.Logf("-seed %d; operations in %s", seed, log)
			}
		})
	}
}

func (x *excludedTree) random(g *treegen.Gen) {
	// blind has the inodes that are no longer excluded below directories that were moved:
	// of these the stream says nothing, and the command only which directories.
	blind := map[uint64]bool{}
	full := 0
	for n := range 16 {
		x.do(g.Step(15))
		g.Note("snapshot %d", n+1)
		snap, parent := x.snapshot(), ""
		had, was := map[uint64]bool{}, map[uint64]bool{}
		err := filetree.ErrNotExist
		if n%6 > 0 {
			parent = x.sent[n-1]
			for _, e := range x.kept(parent) {
				had[e.Ino] = true
			}
			for _, e := range x.scan(parent) {
				was[e.Ino] = true
			}
			if _, err = x.send(snap, parent); err != nil && (len(blind) == 0 || !errors.Is(err, filetree.ErrNotExist)) {
				x.t.Fatalf("snapshot %d: %v", n+1, err)
			}
		}
		if err != nil {
			full++
			clear(blind)
			if _, err := x.send(snap, ""); err != nil {
				x.t.Fatalf("snapshot %d: %v", n+1, err)
			}
			parent = ""
		}
		x.unsure = map[string]bool{}
		for _, e := range x.kept(snap) {
			if was[e.Ino] && !had[e.Ino] && slices.ContainsFunc(x.moved, func(d string) bool { return strings.HasPrefix(e.Path, d+"/") }) {
				blind[e.Ino] = true
			}
			if e.Path != "" && (x.unsure[filepath.Dir(e.Path)] || slices.Contains(x.unknown, e.Path) || blind[e.Ino]) {
				x.unsure[e.Path] = true
			}
		}
		x.compare(fmt.Sprintf("snapshot %d", n+1), "fed", snap)
		x.snap(x.job, x.volume)
		x.compare(fmt.Sprintf("snapshot %d", n+1), "vol", snap)
		if x.t.Failed() {
			return
		}
		if len(x.unsure) > 0 {
			x.t.Logf("snapshot %d: %d paths are not known", n+1, len(x.unsure))
		}
	}
	x.t.Logf("%d of 16 streams were full", full)
}
