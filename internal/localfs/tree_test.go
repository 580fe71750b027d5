package localfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// walkPaths returns the paths of a walk in its order, directories with a slash.
func walkPaths(t testing.TB, d *Dir) []string {
	t.Helper()
	var paths []string
	for it, err := range d.Walk() {
		if err != nil {
			t.Fatalf("%s: %v", it.Path(), err)
		}
		switch p := it.Path(); {
		case it.Boundary != nil:
			paths = append(paths, fmt.Sprintf("%s: %v", p, it.Boundary))
		case it.Dir != nil:
			paths = append(paths, p+"/")
		default:
			paths = append(paths, p)
		}
	}
	return paths
}

func TestWalkOrder(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"b.d", "a", "a/sub"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	for _, f := range []string{"z.c", "a.txt", "b.c", "none", ".hidden", "b.d/x", "a/y", "a/sub/z", "dot."} {
		must(t, os.WriteFile(filepath.Join(dir, f), nil, 0o600))
	}
	tree := openTree(t, dir)
	want := []string{".hidden", "dot.", "none", "b.c", "z.c", "a.txt", "a/", "a/y", "a/sub/", "a/sub/z", "b.d/", "b.d/x"}
	if diff := cmp.Diff(want, walkPaths(t, tree.Root())); diff != "" {
		t.Errorf("walk (-want +got):\n%s", diff)
	}
	sub, err := tree.OpenDir("a")
	must(t, err)
	defer sub.Close()
	if diff := cmp.Diff([]string{"y", "sub/", "sub/z"}, walkPaths(t, sub)); diff != "" {
		t.Errorf("walk of a directory (-want +got):\n%s", diff)
	}
	var skipped []string
	for it := range tree.Walk() {
		if it.Name == "a" {
			it.SkipDir()
		}
		if it.Name == "x" {
			break
		}
		skipped = append(skipped, it.Path())
	}
	if got := strings.Join(skipped[6:], " "); got != "a b.d" {
		t.Errorf("after the files of the root: %s", got)
	}
}

func TestWalkBoundaries(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"bind", "plain", "mount"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for to, args := range map[string][3]string{
		"mount": {"none", "tmpfs"},
		"bind":  {filepath.Join(dir, "plain"), "", "bind"},
		"file":  {"/proc/version", "", "bind"},
	} {
		flags := uintptr(0)
		if args[2] != "" {
			flags = unix.MS_BIND
		}
		at := filepath.Join(dir, to)
		if err := unix.Mount(args[0], at, args[1], flags, ""); err != nil {
			t.Skip("SKIP-MISSING: mount:", err)
		}
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	}
	tree := openTree(t, dir)
	want := []string{"file", "bind: " + ErrMount.Error(), "mount: " + ErrMount.Error(), "plain/"}
	if diff := cmp.Diff(want, walkPaths(t, tree.Root())); diff != "" {
		t.Errorf("walk (-want +got):\n%s", diff)
	}
	for _, name := range []string{"bind", "mount", "file"} {
		_, err := tree.Root().StatAt(name, 0)
		wantErr(t, err, ErrMount)
	}
	_, err := tree.OpenFile("file")
	wantErr(t, err, ErrMount)
	_, err = tree.OpenDir("mount")
	wantErr(t, err, ErrMount)
}

func TestWalkSubvolumes(t *testing.T) {
	dir := mountLoop(t, "mkfs.btrfs", "-q")
	run := func(args ...string) {
		if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil {
			t.Skipf("SKIP-MISSING: btrfs %v: %v: %s", args, err, out)
		}
	}
	vol, snap := filepath.Join(dir, "vol"), filepath.Join(dir, "snap")
	run("subvolume", "create", vol)
	run("subvolume", "create", filepath.Join(vol, "nested"))
	must(t, os.WriteFile(filepath.Join(vol, "f"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(vol, "nested", "f"), nil, 0o600))
	run("subvolume", "snapshot", vol, snap)
	for _, d := range []string{vol, snap} {
		tree := openTree(t, d)
		want := []string{"f", "nested: " + ErrSubvolume.Error()}
		if diff := cmp.Diff(want, walkPaths(t, tree.Root())); diff != "" {
			t.Errorf("walk of %s (-want +got):\n%s", d, diff)
		}
		_, err := tree.Stat("nested")
		wantErr(t, err, ErrSubvolume)
	}
	_, err := openTree(t, vol).OpenFile("nested/f")
	wantErr(t, err, ErrSubvolume)
}

// A directory too large to be sorted is read in batches, and goes on where it was
// when it had to be closed because of the depth below it.
func TestWalkLarge(t *testing.T) {
	dir := mountTmpfs(t, "size=200m,nr_inodes=0")
	const files = maxSorted + 5000
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Mkdirat(fd, "sub", 0o755))
	large, err := unix.Openat(fd, "sub", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(large)
	for i := range files {
		if i == files/2 {
			mkdirs(t, large, "deep", walkOpen+50)
		}
		must(t, unix.Mknodat(large, fmt.Sprint("file", i), unix.S_IFREG|0o600, 0))
	}
	seen := map[string]int{}
	n := 0
	for it, err := range openTree(t, dir).Walk() {
		must(t, err)
		n++
		seen[it.Path()]++
	}
	if want := 1 + files + walkOpen + 50; n != want || len(seen) != want {
		t.Errorf("%d items, %d paths, want %d", n, len(seen), want)
	}
	d, err := openTree(t, dir).OpenDir("sub")
	must(t, err)
	defer d.Close()
	es, all, err := d.ReadAll(100)
	must(t, err)
	if all || len(es) <= 100 {
		t.Errorf("ReadAll of %d entries of many: all %v", len(es), all)
	}
	for {
		more, err := d.ReadDir(1000)
		if err == io.EOF {
			break
		}
		must(t, err)
		es = append(es, more...)
	}
	if len(es) != files+1 {
		t.Errorf("%d entries, want %d", len(es), files+1)
	}
	must(t, d.Rewind())
	if es, err := d.ReadDir(10); len(es) != 10 || err != nil {
		t.Errorf("%d entries after Rewind, %v", len(es), err)
	}
}

// mkdirs makes a chain of directories below fd.
func mkdirs(t testing.TB, fd int, name string, depth int) {
	t.Helper()
	at, err := unix.Dup(fd)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(at, name, 0o755))
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(at)
		at = next
	}
	unix.Close(at)
}

// Trees deeper than PATH_MAX and than there are descriptors can be walked, opened by
// path, and restored.
func TestDeep(t *testing.T) {
	base := mountTmpfs(t, "size=64m")
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	few := old
	few.Cur = 600
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)

	const depth = 3000
	source := filepath.Join(base, "source")
	must(t, os.Mkdir(source, 0o700))
	fd, err := unix.Open(source, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	mkdirs(t, fd, "dd", depth)
	unix.Close(fd)
	path := strings.TrimSuffix(strings.Repeat("dd/", depth), "/")
	st, err := openTree(t, source).Stat(path)
	must(t, err)
	if st.Kind != filetree.Dir {
		t.Errorf("%v at the bottom", st.Kind)
	}
	target := openTestTarget(t, filepath.Join(base, "target"), TargetOptions{})
	copyTree(t, source, target)
	must(t, target.WriteFile(depth+1, "f", &filetree.Attr{Kind: filetree.File, Size: 1}, []byte("x")))
	f, err := openTree(t, filepath.Join(base, "target")).OpenFile(path + "/f")
	must(t, err)
	must(t, f.Close())
	if n := len(target.open); n > maxOpen+1 {
		t.Errorf("%d directories open", n)
	}
}

// A directory that is moved away under a walk loses what was still to come of it,
// which is said, and nothing else.
func TestWalkMoved(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "a"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "z"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "a", "z"), 0o755))
	fd, err := unix.Open(filepath.Join(dir, "a"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	mkdirs(t, fd, "d", walkOpen+20)
	tree := openTree(t, dir)
	before := openFDs(t)
	var failed []string
	last := ""
	n := 0
	for it, err := range tree.Walk() {
		n++
		if err != nil {
			failed = append(failed, it.Path())
		}
		if n == walkOpen+21 { // at the bottom
			must(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
			must(t, os.MkdirAll(filepath.Join(dir, "a", "z"), 0o755))
		}
		last = it.Path()
	}
	if diff := cmp.Diff([]string{"a"}, failed); diff != "" || last != "z" {
		t.Errorf("ended at %q; errors (-want +got):\n%s", last, diff)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, were %d", after, before)
	}
}

// Kernels before 5.6 have no openat2.
func TestWithoutOpenat2(t *testing.T) {
	defer func(f func() bool) { hasOpenat2 = f }(hasOpenat2)
	hasOpenat2 = func() bool { return false }
	t.Run("boundaries", TestWalkBoundaries)
	t.Run("subvolumes", TestWalkSubvolumes)
	t.Run("deep", TestDeep)
	t.Run("errors", TestOpenErrors)
}

// A file on which somebody has a lease is read once he has given it up.
func TestLease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGIO)
	defer signal.Stop(asked)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skip("SKIP-MISSING: leases:", err)
	}
	done := make(chan error)
	go func() {
		<-asked
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		done <- err
	}()
	file, err := openTree(t, filepath.Dir(path)).OpenFile("f")
	must(t, err)
	must(t, file.Close())
	must(t, <-done)
}

func TestSegments(t *testing.T) {
	dir := mountTmpfs(t, "size=64m") // holes of pages
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	const k = 1 << 20
	must(t, f.Truncate(10*k))
	for _, off := range []int64{2 * k, 3 * k, 6 * k} {
		_, err := f.WriteAt(make([]byte, k), off)
		must(t, err)
	}
	file, err := openTree(t, dir).OpenFile("f")
	must(t, err)
	defer file.Close()
	for _, tt := range []struct {
		name     string
		from, to int64
		want     []filetree.Segment
	}{
		{"all", 0, 20 * k, []filetree.Segment{segment(0, 2*k, true), segment(2*k, 4*k, false),
			segment(4*k, 6*k, true), segment(6*k, 7*k, false), segment(7*k, 10*k, true)}},
		{"in data", 2*k + 1, 4*k - 1, []filetree.Segment{segment(2*k+1, 4*k-1, false)}},
		{"in a hole", k, k + 5, []filetree.Segment{segment(k, k+5, true)}},
		{"the end", 8 * k, 10 * k, []filetree.Segment{segment(8*k, 10*k, true)}},
		{"beyond", 10 * k, 11 * k, nil},
		{"nothing", 5, 5, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := file.Segments(tt.from, tt.to)
			must(t, err)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("segments (-want +got):\n%s", diff)
			}
		})
	}
	if changed, err := file.Changed(); changed || err != nil {
		t.Errorf("changed %v, %v", changed, err)
	}
	must(t, f.Truncate(k))
	if changed, err := file.Changed(); !changed || err != nil {
		t.Errorf("after truncate: changed %v, %v", changed, err)
	}
	if n, err := file.ReadAt(make([]byte, 10), k-5); n != 5 || err != io.EOF {
		t.Errorf("read %d, %v at the end", n, err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, os.Symlink("d", filepath.Join(dir, "link")))
	must(t, os.WriteFile(filepath.Join(dir, "d", "f"), nil, 0o644))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(t, unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0o600, 0))
	tree := openTree(t, dir)
	for _, tt := range []struct {
		path string
		want error
	}{
		{"link/f", unix.ELOOP},
		{"link", unix.ELOOP},
		{"none", fs.ErrNotExist},
		{"d/none", fs.ErrNotExist},
		{"d", ErrNotFile},
		{"fifo", ErrNotFile},
		{"sock", ErrNotFile},
		{"d/f/x", unix.ENOTDIR},
	} {
		f, err := tree.OpenFile(tt.path)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, tt.want) && !(tt.want == unix.ELOOP && errors.Is(err, unix.ENOTDIR)) {
			t.Errorf("%s: got %v, want %v", tt.path, err, tt.want)
		}
	}
	for _, path := range []string{"..", "d/../..", "/etc", "d//f", "d/", ".", "a\x00b"} {
		if _, err := tree.OpenFile(path); err == nil {
			t.Errorf("opened %q", path)
		}
		if _, err := tree.Stat(path); err == nil {
			t.Errorf("stat of %q", path)
		}
		if _, err := tree.Root().StatAt(path, 0); err == nil {
			t.Errorf("StatAt of %q", path)
		}
	}
	// A wrong kind does no harm.
	for _, name := range []string{"d", "link", "fifo", "sock"} {
		var all []Stat
		for _, k := range []filetree.Kind{0, filetree.File, filetree.Dir, filetree.Symlink, filetree.Fifo} {
			st, err := tree.Root().StatAt(name, k)
			must(t, err)
			all = append(all, st)
		}
		for _, st := range all[1:] {
			if diff := cmp.Diff(all[0], st); diff != "" {
				t.Errorf("%s (-unknown kind +kind):\n%s", name, diff)
			}
		}
	}
}

func BenchmarkStat(b *testing.B) {
	dir := b.TempDir()
	const files = 10_000
	makeFiles(b, dir, files)
	tree := openTree(b, dir)
	b.ReportAllocs()
	for b.Loop() {
		for it, err := range tree.Walk() {
			must(b, err)
			f, err := it.Parent.OpenFile(it.Name)
			must(b, err)
			_, err = f.Stat()
			must(b, err)
			must(b, f.Close())
		}
	}
	b.ReportMetric(float64(b.N)*files/b.Elapsed().Seconds(), "files/s")
}

func makeFiles(b *testing.B, dir string, n int) {
	for i := range n {
		must(b, os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), []byte("some content"), 0o644))
	}
}
