package localfs

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/secrate/secrate/internal/filetree"
)

// fileAttr is for a file of the content data.
func fileAttr(data string) *filetree.Attr {
	return &filetree.Attr{Kind: filetree.File, Mode: 0o644, Size: int64(len(data)),
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mtime: filetree.Time{Sec: 1e9}}
}

func kindAttr(k filetree.Kind, mode uint32) *filetree.Attr {
	a := fileAttr("")
	a.Kind, a.Mode, a.Target, a.Major, a.Minor = k, mode, "to", 1, 3
	return a
}

func TestOpenTarget(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenTarget(filepath.Join(dir, "a/b"), TargetOptions{})
	wantErr(t, err, fs.ErrNotExist)

	target := openTestTarget(t, filepath.Join(dir, "a"), TargetOptions{Root: 77})
	st, err := os.Stat(filepath.Join(dir, "a"))
	must(t, err)
	if st.Mode().Perm() != 0o700 || !target.Fresh() {
		t.Errorf("mode %v, fresh %v", st.Mode(), target.Fresh())
	}
	must(t, target.WriteFile(77, "f", fileAttr("x"), []byte("x")))

	_, err = OpenTarget(filepath.Join(dir, "a"), TargetOptions{})
	wantErr(t, err, ErrNotEmpty)
	_, err = OpenTarget(filepath.Join(dir, "a/f"), TargetOptions{IntoExisting: true})
	wantErr(t, err, unix.ENOTDIR)
}

// Until a node is finished nobody else can read it.
func TestUnfinishedIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "t")
	target := openTestTarget(t, dir, TargetOptions{})
	must(t, target.Mkdir(1, "d", 2))
	f, err := target.Create(2, "f", fileAttr("secret"))
	must(t, err)
	for it, err := range openTree(t, dir).Walk() {
		must(t, err)
		st, err := it.Parent.StatAt(it.Name, it.Kind)
		must(t, err)
		if st.Mode&0o077 != 0 {
			t.Errorf("%s has mode %o", it.Path(), st.Mode)
		}
		if it.Name == "f" {
			t.Error("a file has its name before it is finished")
		}
	}
	f.Abort()
	f.Abort() // does nothing
	if es, _ := os.ReadDir(filepath.Join(dir, "d")); len(es) != 0 {
		t.Errorf("left behind: %v", es)
	}
	_, err = f.n.t.Create(2, "f", &filetree.Attr{Size: -1})
	if err == nil {
		t.Error("negative size")
	}
}

func TestWriteBounds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "t")
	target := openTestTarget(t, dir, TargetOptions{})
	f, err := target.Create(1, "f", fileAttr("12345"))
	must(t, err)
	defer f.Abort()
	for _, off := range []int64{-1, 4, 6, 1<<63 - 1} {
		if _, err := f.WriteAt([]byte("ab"), off); err == nil {
			t.Errorf("write at %d", off)
		}
	}
	if err := target.WriteFile(1, "g", fileAttr("12345"), []byte("123")); err == nil {
		t.Error("data shorter than the size")
	}
}

// In a directory that was there before, nodes replace nodes, directories are
// reused, and the two do not replace each other.
func TestIntoExisting(t *testing.T) {
	needRoot(t)
	kinds := []filetree.Kind{filetree.File, filetree.Dir, filetree.Symlink, filetree.Fifo, filetree.Socket, filetree.CharDev, filetree.BlkDev}
	restore := func(target *Target, name string, k filetree.Kind, id filetree.NodeID) error {
		a := kindAttr(k, 0o600)
		switch k {
		case filetree.File:
			return target.WriteFile(1, name, a, nil)
		case filetree.Dir:
			return target.Mkdir(1, name, id)
		case filetree.Symlink:
			return target.Symlink(1, name, a)
		}
		return target.Mknod(1, name, a)
	}
	base := t.TempDir()
	for _, old := range kinds {
		for _, new := range kinds {
			t.Run(fmt.Sprint(old, " to ", new), func(t *testing.T) {
				dir := filepath.Join(base, fmt.Sprint(old, new))
				must(t, restore(openTestTarget(t, dir, TargetOptions{}), "x", old, 2))
				target := openTestTarget(t, dir, TargetOptions{IntoExisting: true})
				err := restore(target, "x", new, 2)
				want := new
				if (old == filetree.Dir) != (new == filetree.Dir) {
					wantErr(t, err, ErrOccupied)
					want = old
				} else {
					must(t, err)
				}
				st, err := openTree(t, dir).Stat("x")
				must(t, err)
				if es, _ := os.ReadDir(dir); st.Kind != want || len(es) != 1 {
					t.Errorf("%v is there, want %v; entries %v", st.Kind, want, es)
				}
				if new != filetree.Dir {
					return
				}
				// What is made in a target that was empty has no second of its name.
				fresh := openTestTarget(t, dir+"fresh", TargetOptions{})
				must(t, restore(fresh, "x", old, 2))
				for _, k := range kinds {
					wantErr(t, restore(fresh, "x", k, 3), ErrOccupied)
				}
				f, err := fresh.Create(1, "x", fileAttr(""))
				must(t, err)
				wantErr(t, f.Finish(), ErrOccupied)
				must(t, fresh.WriteFile(1, "y", fileAttr(""), nil))
				wantErr(t, fresh.Link(1, "y", 1, "x"), ErrOccupied)
				if es, _ := os.ReadDir(dir + "fresh"); len(es) != 2 {
					t.Errorf("entries %v", es)
				}
			})
		}
	}
}

// outside makes a directory with something to destroy, and returns a check that
// all of it is as it was.
func outside(t testing.TB) (dir string, check func(testing.TB)) {
	dir = t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("precious"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "d", "file"), []byte("precious"), 0o644))
	want := see(t, dir)
	return dir, func(t testing.TB) {
		t.Helper()
		if diff := cmp.Diff(want, see(t, dir)); diff != "" {
			t.Fatalf("changed outside the target (-want +got):\n%s", diff)
		}
	}
}

// everything does all that a Target can with one name, and ignores errors.
func everything(target *Target, dir filetree.NodeID, name string, id filetree.NodeID) {
	target.WriteFile(dir, name, fileAttr("overwritten"), []byte("overwritten"))
	if f, err := target.Create(dir, name, fileAttr("overwritten")); err == nil {
		f.WriteAt([]byte("overwritten"), 0)
		f.Finish()
	}
	target.Symlink(dir, name, kindAttr(filetree.Symlink, 0o777))
	target.Mknod(dir, name, kindAttr(filetree.Fifo, 0o777))
	target.Link(dir, name, dir, "other")
	target.Link(dir, "other", dir, name)
	if target.Mkdir(dir, name, id) == nil {
		target.WriteFile(id, "file", fileAttr("overwritten"), []byte("overwritten"))
		target.FinishDir(id, kindAttr(filetree.Dir, 0o777))
	}
}

func TestHostileNames(t *testing.T) {
	out, check := outside(t)
	dir := filepath.Join(filepath.Dir(out), "target")
	target := openTestTarget(t, dir, TargetOptions{})
	rel := "../" + filepath.Base(out)
	for i, name := range []string{"", ".", "..", "/", rel, rel + "/file", out, out + "/file", "a/b", "a\x00b",
		strings.Repeat("n", 256), "./x", "x/"} {
		everything(target, 1, name, filetree.NodeID(i+2))
		if err := target.Mkdir(1, name, 100); err == nil {
			t.Errorf("made directory %q", name)
		}
		if err := target.Link(1, name, 1, "l"); err == nil {
			t.Errorf("linked %q", name)
		}
	}
	check(t)
	if es, _ := os.ReadDir(dir); len(es) != 0 {
		t.Errorf("entries %v", es)
	}
	if err := target.Mkdir(99, "x", 100); err == nil {
		t.Error("made a directory in an unknown one")
	}
}

// Links that are in the target already do not lead out of it.
func TestExistingLinks(t *testing.T) {
	out, check := outside(t)
	dir := t.TempDir()
	must(t, os.Symlink(out, filepath.Join(dir, "d")))
	must(t, os.Symlink(filepath.Join(out, "file"), filepath.Join(dir, "file")))
	target := openTestTarget(t, dir, TargetOptions{IntoExisting: true})
	wantErr(t, target.Mkdir(1, "d", 2), ErrOccupied)
	must(t, target.WriteFile(1, "file", fileAttr("x"), []byte("x")))
	check(t)
	if st, err := openTree(t, dir).Stat("file"); err != nil || st.Kind != filetree.File {
		t.Errorf("%v is there, %v", st.Kind, err)
	}
	everything(target, 1, "d", 3)
	check(t)
}

// A directory that becomes a link, or another directory, after it was made is not
// written through, whether it is still open or not.
func TestSwapped(t *testing.T) {
	for _, evict := range []bool{false, true} {
		for _, link := range []bool{false, true} {
			t.Run(fmt.Sprintf("evict=%v,link=%v", evict, link), func(t *testing.T) {
				out, check := outside(t)
				dir := t.TempDir()
				target := openTestTarget(t, dir, TargetOptions{})
				must(t, target.Mkdir(1, "d", 2))
				must(t, target.Mkdir(2, "sub", 3))
				if evict {
					for i := range filetree.NodeID(maxOpen) {
						must(t, target.Mkdir(1, fmt.Sprint("n", i), 10+i))
					}
				}
				must(t, os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "away")))
				if link {
					must(t, os.Symlink(out, filepath.Join(dir, "d")))
				} else {
					must(t, os.Rename(out, filepath.Join(dir, "d")))
				}
				everything(target, 2, "file", 4)
				everything(target, 3, "file", 5)
				err := target.WriteFile(2, "last", fileAttr("x"), []byte("x"))
				if evict && err == nil {
					t.Error("wrote to a directory that was replaced")
				}
				target.FinishDir(2, kindAttr(filetree.Dir, 0o777))
				if !link {
					must(t, os.Rename(filepath.Join(dir, "d"), out))
				}
				check(t)
			})
		}
	}
}

// The same with somebody who swaps all the time.
func TestSwapRace(t *testing.T) {
	out, check := outside(t)
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "x"), 0o755))
	must(t, os.Symlink(out, filepath.Join(dir, "evil")))
	target := openTestTarget(t, dir, TargetOptions{IntoExisting: true})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "x"), unix.AT_FDCWD, filepath.Join(dir, "evil"), unix.RENAME_EXCHANGE)
			}
		}
	})
	for i := range filetree.NodeID(500) {
		id := 10 + i
		if target.Mkdir(1, "x", id) != nil {
			continue
		}
		target.WriteFile(id, "file", fileAttr("overwritten"), []byte("overwritten"))
		target.mu.Lock() // the next use opens it again
		if d := target.open[id]; d != nil {
			target.drop(d)
		}
		target.mu.Unlock()
		target.WriteFile(id, "file", fileAttr("overwritten"), []byte("overwritten"))
		target.FinishDir(id, kindAttr(filetree.Dir, 0o755))
		target.Forget(id)
	}
	close(stop)
	wg.Wait()
	check(t)
}

// Whatever is called in whatever order with whatever names, nothing outside the
// target changes, no descriptor is lost and no temporary name is left.
func TestNothingOutsideChanges(t *testing.T) {
	needRoot(t)
	out, check := outside(t)
	base := filepath.Dir(out)
	rel := "../" + filepath.Base(out)
	names := rapid.SampledFrom([]string{"a", "b", "c", "file", "d", "..", ".", "", rel, rel + "/file", out, "a/b", "\x00", "\xff"})
	targets := rapid.SampledFrom([]string{"to", "..", rel, out, out + "/file", "a", "/", strings.Repeat("x", 5000), ""})
	ids := rapid.Uint64Range(0, 6)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		dir := filepath.Join(base, fmt.Sprint("target", run))
		must(t, os.Mkdir(dir, 0o755))
		if rapid.Bool().Draw(rt, "existing") {
			must(t, os.Symlink(out, filepath.Join(dir, "a")))
			must(t, os.Symlink(out+"/file", filepath.Join(dir, "file")))
			must(t, os.Mkdir(filepath.Join(dir, "b"), 0o755))
		}
		before := openFDs(t)
		target, err := OpenTarget(dir, TargetOptions{IntoExisting: true})
		must(t, err)
		for range rapid.IntRange(1, 30).Draw(rt, "calls") {
			id, name := filetree.NodeID(ids.Draw(rt, "dir")), names.Draw(rt, "name")
			switch rapid.IntRange(0, 8).Draw(rt, "call") {
			case 0, 1:
				target.Mkdir(id, name, filetree.NodeID(ids.Draw(rt, "id")))
			case 2:
				target.WriteFile(id, name, fileAttr("overwritten"), []byte("overwritten"))
			case 3:
				a := kindAttr(filetree.Symlink, 0o777)
				a.Target = targets.Draw(rt, "target")
				target.Symlink(id, name, a)
			case 4:
				target.Link(filetree.NodeID(ids.Draw(rt, "from")), names.Draw(rt, "old"), id, name)
			case 5:
				target.FinishDir(id, kindAttr(filetree.Dir, 0o777))
			case 6:
				target.Mknod(id, name, kindAttr(filetree.Fifo, 0o666))
			case 7: // somebody else
				if filetree.CheckName(name) == nil {
					unix.Rename(filepath.Join(dir, name), filepath.Join(dir, "moved"))
					unix.Symlink(out, filepath.Join(dir, name))
				}
			case 8:
				target.Forget(id)
			}
		}
		must(t, target.Close())
		if after := openFDs(t); after != before {
			rt.Errorf("%d descriptors open, were %d", after, before)
		}
		check(t)
		for it, err := range openTree(t, dir).Walk() {
			must(t, err)
			if strings.HasPrefix(it.Name, tempPrefix) {
				rt.Errorf("left behind: %s", it.Path())
			}
		}
	})
}

func openFDs(t testing.TB) int {
	es, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(es)
}

// A full disk is an error that names the file, and leaves nothing of it.
func TestNoSpace(t *testing.T) {
	dir := mountTmpfs(t, "size=1m")
	data := make([]byte, 2<<20)
	rand.Read(data)
	for _, existing := range []bool{false, true} {
		target := openTestTarget(t, filepath.Join(dir, fmt.Sprint(existing)), TargetOptions{})
		target.dirs[1] = dirInfo{}
		target.open[1].fresh = !existing
		err := target.WriteFile(1, "large\n", fileAttr(string(data)), data)
		wantErr(t, err, unix.ENOSPC)
		if err != nil && !strings.Contains(err.Error(), `write "large\n": no space left on device`) {
			t.Errorf("message: %v", err)
		}
		if es, _ := os.ReadDir(filepath.Join(dir, fmt.Sprint(existing))); len(es) != 0 {
			t.Errorf("left behind: %v", es)
		}
	}
}

// Times that a file system cannot hold are noted: ext4 with small inodes ends in
// 2038 and knows no nanoseconds.
func TestLostTime(t *testing.T) {
	target := openTestTarget(t, mountLoop(t, "mkfs.ext4", "-q", "-I", "128"), TargetOptions{IntoExisting: true})
	for name, m := range map[string]filetree.Time{
		"held": {Sec: 1e9}, "late": {Sec: 5e9}, "fine": {Sec: 1e9, Nsec: 1}, "ancient": {Sec: -1 << 40}, "extreme": {Sec: 1<<63 - 1},
	} {
		a := fileAttr("")
		a.Mtime = m
		must(t, target.WriteFile(1, name, a, nil))
	}
	ns := target.Notes()
	if len(ns) != 1 || ns[0].What != LostTime || ns[0].Count != 4 {
		t.Errorf("notes: %+v", ns)
	}
}

// Without root, what needs it is noted, and no program runs as who restored it.
func TestNotRoot(t *testing.T) {
	if dir := os.Getenv("LOCALFS_TEST_NOT_ROOT"); dir != "" {
		testNotRoot(t, dir)
		return
	}
	needRoot(t)
	dir, err := os.MkdirTemp("/var/tmp", "localfs")
	if err != nil {
		t.Skip("SKIP-MISSING: a directory that others can get to:", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chown(dir, 65534, 65534))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNotRoot$")
	cmd.Env = append(os.Environ(), "LOCALFS_TEST_NOT_ROOT="+dir)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func testNotRoot(t *testing.T, dir string) {
	dir = filepath.Join(dir, "t")
	target := openTestTarget(t, dir, TargetOptions{})
	a := fileAttr("x")
	a.UID, a.GID, a.Mode = 0, 0, 0o6455
	a.Xattrs = []filetree.Xattr{{Name: "security.capability", Value: capability()},
		{Name: "trusted.t", Value: []byte("x")}, {Name: "user.u", Value: []byte("x")}}
	a.Flags = flagImmutable | flagNodump
	for i := range MaxNames + 2 {
		must(t, target.WriteFile(1, fmt.Sprint(i), a, []byte("x")))
	}
	must(t, target.Symlink(1, "link", kindAttr(filetree.Symlink, 0o777)))
	wantErr(t, target.Mknod(1, "dev", kindAttr(filetree.CharDev, 0o600)), unix.EPERM)
	must(t, target.Mkdir(1, "d", 2))
	must(t, target.WriteFile(2, "f", fileAttr(""), nil))
	must(t, target.FinishDir(2, kindAttr(filetree.Dir, 0)))
	must(t, target.FinishDir(1, kindAttr(filetree.Dir, 0o755)))

	names := []string{"0", "1", "2", "3", "4"}
	want := []Note{
		{LostXattr("security"), 7, names},
		{LostXattr("trusted"), 7, names},
		{LostFlags, 7, names},
		{LostMode, 7, names},
		{LostOwner, 7, names},
	}
	if diff := cmp.Diff(want, target.Notes()); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
	tree := openTree(t, dir)
	st, err := tree.Stat("0")
	must(t, err)
	if st.Mode != 0o455 || st.Flags != flagNodump || len(st.Xattrs) != 1 {
		t.Errorf("restored %+v", st)
	}
	// What may not be opened still has attributes.
	if st, err := tree.Stat("d"); err != nil || st.Kind != filetree.Dir || st.Mode != 0 {
		t.Errorf("stat of a closed directory: %+v, %v", st, err)
	}
	var failed []string
	for it, err := range tree.Walk() {
		if err != nil {
			failed = append(failed, it.Path())
			wantErr(t, err, fs.ErrPermission)
		}
	}
	if diff := cmp.Diff([]string{"d"}, failed); diff != "" {
		t.Errorf("errors of the walk (-want +got):\n%s", diff)
	}
	must(t, os.Chmod(filepath.Join(dir, "d"), 0o700))
}

// No owner is not the owner that the file happens to have.
func TestImpossibleOwner(t *testing.T) {
	target := openTestTarget(t, filepath.Join(t.TempDir(), "t"), TargetOptions{})
	a := fileAttr("")
	a.UID, a.Mode = 1<<32-1, 0o4755
	must(t, target.WriteFile(1, "f", a, nil))
	want := []Note{{LostMode, 1, []string{"f"}}, {LostOwner, 1, []string{"f"}}}
	if diff := cmp.Diff(want, target.Notes()); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}

// Many workers may restore at once.
func TestConcurrent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "t")
	target := openTestTarget(t, dir, TargetOptions{})
	const workers, dirs = 4, 150 // more than stay open
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			errs <- func() error {
				for i := range dirs {
					id := filetree.NodeID(10 + w*dirs + i)
					if err := target.Mkdir(1, fmt.Sprint(w, "-", i), id); err != nil {
						return err
					}
				}
				for i := range dirs {
					id := filetree.NodeID(10 + w*dirs + i)
					if err := target.WriteFile(id, "f", fileAttr("content"), []byte("content")); err != nil {
						return err
					}
					if err := target.FinishDir(id, kindAttr(filetree.Dir, 0o755)); err != nil {
						return err
					}
				}
				return nil
			}()
		})
	}
	wg.Wait()
	for range workers {
		must(t, <-errs)
	}
	for path, s := range see(t, dir) {
		if s.Kind == filetree.File && (s.Size != 7 || s.Mtime.Sec != 1e9) {
			t.Errorf("%s: %+v", path, s)
		}
	}
	if n := len(target.open); n > maxOpen+1 {
		t.Errorf("%d directories open", n)
	}
}

// A file of a finished directory can be linked to, also when it is immutable.
func TestLinkUnchangeable(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() { clearFlags(t, dir) })
	target := openTestTarget(t, dir, TargetOptions{})
	must(t, target.Mkdir(1, "d", 2))
	a := fileAttr("x")
	a.Flags = flagImmutable
	must(t, target.WriteFile(2, "f", a, []byte("x")))
	must(t, target.FinishDir(2, kindAttr(filetree.Dir, 0)))
	must(t, target.Link(2, "f", 1, "link"))
	st, err := openTree(t, dir).Stat("link")
	must(t, err)
	if len(target.Notes()) == 0 && (st.Flags&flagImmutable == 0 || st.Nlink != 2) {
		t.Errorf("linked: %+v", st)
	}
	wantErr(t, target.Link(1, "d", 1, "dir"), unix.EPERM)
	target.Forget(2)
	if err := target.Link(2, "f", 1, "link2"); err == nil || errors.Is(err, unix.EPERM) {
		t.Errorf("link from a forgotten directory: %v", err)
	}
}

func BenchmarkWriteFile(b *testing.B) {
	const files = 10_000
	data := bytes.Repeat([]byte("x"), 1000)
	a := fileAttr(string(data))
	base := b.TempDir()
	b.SetBytes(files * int64(len(data)))
	b.ReportAllocs()
	run := 0
	for b.Loop() {
		run++
		target, err := OpenTarget(filepath.Join(base, fmt.Sprint(run)), TargetOptions{})
		must(b, err)
		for i := range files {
			must(b, target.WriteFile(1, fmt.Sprint("file", i), a, data))
		}
		must(b, target.Close())
	}
	b.ReportMetric(float64(b.N)*files/b.Elapsed().Seconds(), "files/s")
}
