package watch

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
)

func isAll(c Changes) bool { return c.All }

// TestRootAway: a root that is renamed away is said to be gone; when it is back, or
// another is there, everything is looked at and live again.
func TestRootAway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.MkdirAll(dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	b := start(t, dir, quick)
	b.must(os.Rename(dir, dir+".away"))
	b.eventually("it is gone", func(s State) bool {
		return !s.Watching && strings.Contains(s.Reason, "no such file")
	})
	b.must(os.WriteFile(dir+".away/d/f", nil, 0o644))
	b.must(os.Rename(dir+".away", dir))
	b.until("all, when it is back", isAll)
	b.mirror.check(t)
	b.write("d/g", "1")
	b.settle()
	b.mirror.check(t)

	// Away and back again at once may be seen or not.
	b.must(os.Rename(dir, dir+".away"))
	b.must(os.Rename(dir+".away", dir))
	b.settle()
	b.mirror.check(t)

	// Another one in its place.
	before := b.w.State().ReconcileAt
	b.must(os.Rename(dir, dir+".away"))
	b.mkdir("other/e")
	b.eventually("all of the other", func(s State) bool { return s.Watching && s.ReconcileAt.After(before) && s.Waiting == 0 && !s.All })
	b.write("other/e/f", "1")
	b.settle()
	b.mirror.check(t)
	b.must(os.WriteFile(dir+".away/d/unseen", nil, 0o644))
	b.got = nil
	b.settle()
	if paths, trees := b.paths(); !slices.Equal(paths, []string{""}) || trees != nil {
		t.Errorf("told of the root that was: %q %q", paths, trees)
	}
}

// TestUnmount: watching does not hold up an unmount, and is taken up again.
func TestUnmount(t *testing.T) {
	fs := loopfs.New(t, loopfs.Ext4, loopfs.Options{})
	if err := os.Mkdir(fs.Dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	// A second mount, which does not keep the device busy when it is gone.
	at := t.TempDir()
	mount := func() {
		t.Helper()
		if err := unix.Mount(fs.Dir, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount()
	defer unix.Unmount(at, unix.MNT_DETACH)
	b := start(t, at, quick)
	b.write("d/f", "1")
	b.settle()
	b.mirror.check(t)
	b.must(unix.Unmount(at, 0)) // EBUSY if something were open
	before := b.w.State().ReconcileAt
	b.eventually("the empty directory below is another", func(s State) bool { return s.ReconcileAt.After(before) })
	b.must(os.WriteFile(fs.Dir+"/d/g", nil, 0o644))
	before = b.w.State().ReconcileAt
	mount()
	b.eventually("mounted again", func(s State) bool { return s.ReconcileAt.After(before) && s.Watching && !s.All })
	b.write("d/h", "1")
	b.settle()
	b.mirror.check(t)
}

// TestUnmountOfFileSystem: the kernel says IN_UNMOUNT.
func TestUnmountOfFileSystem(t *testing.T) {
	testenv.Need(t, testenv.Root)
	at := t.TempDir()
	mount := func() {
		t.Helper()
		if err := unix.Mount("none", at, "tmpfs", 0, ""); err != nil {
			t.Skipf("SKIP-MISSING: tmpfs: %v", err)
		}
	}
	mount()
	defer unix.Unmount(at, unix.MNT_DETACH)
	o := quick
	o.Poll = 500 * time.Millisecond
	b := start(t, at, o)
	b.mkdir("d/e")
	b.settle()
	b.must(unix.Unmount(at, 0))
	b.eventually("unmounted", func(s State) bool {
		return !s.Watching && s.Reason == "the file system was unmounted" || s.ReconcileAt.After(time.Now())
	})
	b.eventually("the directory below", func(s State) bool { return s.Watching && s.Dirs == 1 })
	mount()
	b.eventually("what is mounted on it", func(s State) bool {
		return s.Watching && strings.Contains(s.Reconcile, "another directory")
	})
	b.mkdir("x/y")
	b.settle()
	b.write("x/y/z", "1")
	b.settle()
	b.mirror.check(t)
}

// TestMountBelow: what is mounted below is not ours, until it is unmounted.
func TestMountBelow(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/m/under", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir+"/m", "tmpfs", 0, ""); err != nil {
		t.Skipf("SKIP-MISSING: tmpfs: %v", err)
	}
	mounted := true
	defer func() {
		if mounted {
			unix.Unmount(dir+"/m", unix.MNT_DETACH)
		}
	}()
	b := start(t, dir, quick)
	if st := b.w.State(); st.Dirs != 1 || st.Unwatched != 0 {
		t.Errorf("state %+v", st)
	}
	b.must(os.Mkdir(dir+"/m/x", 0o755))
	b.settle()
	if paths, trees := b.paths(); !slices.Equal(paths, []string{""}) || trees != nil {
		t.Errorf("told of another file system: %q %q", paths, trees)
	}
	b.must(unix.Unmount(dir+"/m", 0))
	mounted = false
	b.until("what was covered", func(c Changes) bool { return slices.Contains(c.Trees, "m") })
	b.write("m/under/f", "1")
	b.settle()
	b.mirror.check(t)
}

// TestOverflow: 200,000 events while nobody reads. The kernel keeps 16,384 of them.
func TestOverflow(t *testing.T) {
	dir := t.TempDir()
	for i := range 100 {
		if err := os.Mkdir(fmt.Sprintf("%s/d%02d", dir, i), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name   string
		limit  int // of what is kept of what was read
		reason string
	}{
		{"of the kernel", maxRead, "the kernel's queue of events ran over (fs.inotify.max_queued_events)"},
		{"of our own", 64 << 10, "events came faster than they could be dealt with"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t, dir, quick, func(w *Watcher) { w.maxQueue = tt.limit })
			// Stopped is what reads for the kernel's queue, what deals with it for ours.
			reading, dealing := make(chan struct{}), make(chan struct{})
			if tt.limit == maxRead {
				b.w.pause.Store(&pause{reading: reading})
			} else {
				b.w.pause.Store(&pause{dealing: dealing})
			}
			files := 50_000 // four events each: made, closed, attributes, removed; and some renamed
			for i := range files {
				name := fmt.Sprintf("d%02d/f%d", i%100, i)
				fd, err := unix.Open(b.at(name), unix.O_CREAT|unix.O_WRONLY, 0o644)
				b.must(err)
				b.must(unix.Close(fd))
				b.must(unix.Chmod(b.at(name), 0o600))
				if i%50 != 0 {
					b.must(unix.Unlink(b.at(name)))
				}
			}
			// Last, when all is full, what changes places.
			b.mv("d00", "d01/moved")
			b.mkdir("d00/new/deep")
			b.mv("d02", "e02")
			b.must(os.RemoveAll(b.at("d03")))
			b.w.pause.Store(nil)
			close(reading)
			close(dealing)
			b.eventually("a reconciling scan", func(s State) bool { return s.Reconcile == tt.reason && s.Waiting == 0 && !s.All })
			for _, p := range []string{"d00/new/deep/x", "d01/moved/x", "e02/x"} {
				b.write(p, "later")
			}
			b.settle()
			b.mirror.check(t)
			for _, p := range []string{"d00", "d01/moved", "e02"} {
				b.must(os.RemoveAll(b.at(p)))
			}
			for i := range 4 {
				b.mkdir(fmt.Sprintf("d%02d", i))
			}
			b.settle()
			b.mirror.check(t)
		})
	}
}

// TestInsideItself: an event is dealt with when the path of its directory leads to another
// one, in which there is one that the directory is in.
func TestInsideItself(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/z/k", 0o755); err != nil {
		t.Fatal(err)
	}
	b := start(t, dir, quick)
	dealing := make(chan struct{})
	b.w.pause.Store(&pause{dealing: dealing})
	b.mkdir("z/k/q")
	b.mv("z", "zz")
	b.mkdir("z/k")
	b.mv("zz", "z/k/q")
	b.w.pause.Store(nil)
	close(dealing)
	b.until("all", isAll)
	if got, want := b.w.State().Reconcile, "directories were moved while they were looked at"; got != want {
		t.Errorf("reconciled for %q, want %q", got, want)
	}
	for _, p := range []string{"z", "z/k", "z/k/q", "z/k/q/k", "z/k/q/k/q"} {
		b.write(p+"/later", "1")
	}
	b.settle()
	b.mirror.check(t)
	if got := b.w.State().Dirs; got != 6 {
		t.Errorf("%d directories", got)
	}
}

// TestAwayAndBack: a directory is away when it is looked at, for an event of before, and is
// back when the events of its moves are dealt with.
func TestAwayAndBack(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/d/e", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/d/e/f", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b := start(t, dir, quick)
	dealing := make(chan struct{})
	b.w.pause.Store(&pause{dealing: dealing})
	b.mv("d", "x")
	b.mirror.apply(Changes{Paths: []string{"d"}})
	b.mv("x", "d")
	b.w.pause.Store(nil)
	close(dealing)
	b.settle()
	b.mirror.check(t)
}

// TestOverlay: what is done by way of the overlay is told, and that not all is is said.
func TestOverlay(t *testing.T) {
	testenv.Need(t, testenv.Root)
	base := mountTmpfs(t)
	for _, d := range []string{"lower/d/e", "upper", "work", "root"} {
		if err := os.MkdirAll(base+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(base+"/lower/d/e/f", []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := base + "/root"
	if err := unix.Mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", base, base, base)); err != nil {
		t.Skipf("SKIP-MISSING: overlay: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	b := start(t, dir, quick)
	if got := b.w.State().Blind; got != "overlay: changes made in its layers" {
		t.Errorf("blind to %q", got)
	}
	b.write("d/e/f", "copied up")
	b.write("d/e/g", "new")
	b.mkdir("d/n/m")
	b.settle()
	b.write("d/n/m/f", "1")
	b.must(os.RemoveAll(b.at("d/e")))
	b.settle()
	b.mirror.check(t)
}

func mountTmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Skipf("SKIP-MISSING: tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestStorm: what git checkout and rm -r do, a few thousand names at once.
func TestStorm(t *testing.T) {
	dir := t.TempDir()
	b := start(t, dir, quick)
	for round := range 3 {
		for i := range 3000 {
			d := fmt.Sprintf("src/m%d/p%d", i%40, i%7)
			if i < 280 {
				b.mkdir(d)
			}
			name := fmt.Sprintf("%s/f%d", d, i)
			os.Remove(b.at(name))
			b.write(name+".tmp", fmt.Sprint(round))
			b.mv(name+".tmp", name)
		}
		if round == 1 {
			b.must(os.RemoveAll(b.at("src/m3")))
			b.mkdir("src/m3/p3")
			b.mv("src/m4", "m4")
		}
		if round == 2 {
			b.must(os.RemoveAll(b.at("src")))
		}
		b.settle()
		b.mirror.check(t)
	}
	b.eventually("no watch is left of what was removed", func(s State) bool { return s.Dirs == 1+1+7 })
}

// TestPathMax: paths that are longer than the kernel takes are watched like others.
func TestPathMax(t *testing.T) {
	dir := t.TempDir()
	b := start(t, dir, quick)
	name := strings.Repeat("n", 250)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	b.must(err)
	var path []string
	for range 20 {
		b.must(unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		b.must(err)
		unix.Close(fd)
		fd = next
		path = append(path, name)
	}
	defer unix.Close(fd)
	deep := strings.Join(path, "/")
	b.eventually("all are watched", func(s State) bool { return s.Dirs == 21 })
	b.settle()
	b.got = nil
	f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	b.must(err)
	unix.Close(f)
	b.settle()
	paths, _ := b.paths()
	if !slices.Contains(paths, deep+"/f") || !slices.Contains(paths, deep) {
		t.Errorf("not told of a path of %d bytes", len(deep))
	}
}

// TestMapping: what is written by way of a mapping is told when the mapping is gone. A scan
// finds it by its time before.
func TestMapping(t *testing.T) {
	for _, kind := range []loopfs.Kind{loopfs.Ext4, loopfs.XFS, loopfs.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			dir := loopfs.New(t, kind, loopfs.Options{}).Dir + "/root"
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			file := dir + "/f"
			old := time.Unix(1e9, 0)
			if err := os.WriteFile(file, make([]byte, 8192), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(file, old, old); err != nil {
				t.Fatal(err)
			}
			b := start(t, dir, quick)
			fd, err := unix.Open(file, unix.O_RDWR, 0)
			b.must(err)
			mem, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			b.must(err)
			b.must(unix.Close(fd))
			mem[5000] = 1
			b.must(unix.Msync(mem, unix.MS_SYNC))
			b.settle()
			if paths, _ := b.paths(); slices.Contains(paths, "f") {
				t.Error("told while it is mapped: the documents say otherwise")
			}
			st, err := os.Stat(file)
			b.must(err)
			if st.ModTime().Equal(old) {
				t.Error("a scan would not find it")
			}
			b.must(unix.Munmap(mem))
			b.settle()
			if paths, _ := b.paths(); !slices.Contains(paths, "f") {
				t.Error("not told when the mapping was gone")
			}
			b.mirror.check(t)
		})
	}
}

// TestNotDurable: what could not be made durable comes again, with what changed since.
func TestNotDurable(t *testing.T) {
	b := start(t, t.TempDir(), quick)
	b.write("a", "1")
	var batch *Batch
	for batch == nil {
		<-b.w.Due()
		if got, ok := b.w.Take(); ok && slices.Contains(got.Paths, "a") {
			batch = got
		} else if ok { // the root alone: the file was written to later than made
			got.Done(true)
		}
	}
	b.write("b", "1")
	if st := b.w.State(); st.Waiting < 1 || st.Oldest.IsZero() {
		t.Errorf("state %+v", st)
	}
	batch.Done(false)
	batch.Done(true) // too late
	got := map[string]bool{}
	for !got["a"] || !got["b"] {
		c := b.next("what failed")
		for _, p := range c.Paths {
			got[p] = true
		}
	}
	b.eventually("nothing waits", func(s State) bool { return s.Waiting == 0 && s.Oldest.IsZero() })
}

// TestPermission: what may not be read is named, and watched when it may.
func TestPermission(t *testing.T) {
	if os.Getenv("WATCH_HELPER") == "" {
		testenv.Need(t, testenv.Root) // to be somebody else
		base := t.TempDir()
		os.Chmod(filepath.Dir(base), 0o755)
		os.Chmod(base, 0o777)
		helper(t, "TestPermission", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}, base)
		return
	}
	dir := filepath.Join(os.Getenv("WATCH_DIR"), "root")
	if err := os.MkdirAll(dir+"/locked/below", 0o755); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir+"/locked", 0)
	b := start(t, dir, quick)
	st := b.w.State()
	if st.Unwatched != 1 || len(st.Named) != 1 || st.Named[0].Path != "locked" || !strings.Contains(st.Named[0].Reason, "permission denied") || st.Remedy != "" {
		t.Errorf("state %+v", st)
	}
	b.must(os.Chmod(dir+"/locked", 0o755))
	b.until("the tree that may be read now", func(c Changes) bool { return slices.Contains(c.Trees, "locked") })
	if st := b.w.State(); st.Unwatched != 0 || st.Dirs != 3 {
		t.Errorf("state %+v", st)
	}
	b.write("locked/below/f", "1")
	b.settle()
	b.mirror.check(t)
}

// TestLimits runs in a user namespace, which has limits of its own.
func TestLimits(t *testing.T) {
	if os.Getenv("WATCH_HELPER") == "" {
		testenv.Need(t, testenv.Root)
		base := t.TempDir()
		helper(t, "TestLimits", &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}},
		}, base)
		return
	}
	set := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			t.Skipf("SKIP-MISSING: limits in a user namespace: %v", err)
		}
	}
	dir := os.Getenv("WATCH_DIR")
	for i := range 50 {
		if err := os.MkdirAll(fmt.Sprintf("%s/d%02d/below", dir, i), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	set(procNSWatches, "20")
	o := quick
	o.Retry = time.Hour // raising the limit is enough
	b := start(t, dir, o)
	st := b.w.State()
	if !st.Watching || st.Dirs != 20 || st.Unwatched == 0 || len(st.Named) != 10 || st.Named[0].Reason != errLimit.Error() {
		t.Errorf("state %+v", st)
	}
	if want := "sysctl user.max_inotify_watches=1048576"; st.Remedy != want {
		t.Errorf("remedy %q, want %q", st.Remedy, want)
	}
	b.write("d33/below/unseen", "1")
	set(procNSWatches, "1000")
	b.eventually("all, when the limit is raised", func(s State) bool {
		return s.Dirs == 101 && s.Unwatched == 0 && s.Remedy == "" && !s.All && s.Waiting == 0
	})
	if got := b.w.State().Reconcile; got != "the limit on watches was raised" {
		t.Errorf("reconciled for %q", got)
	}
	b.write("d44/below/f", "1")
	b.settle()
	b.mirror.check(t)

	// Not even the root.
	b.stop()
	set(procNSWatches, "0")
	b = startUnwatched(t, dir, o)
	b.eventually("the root cannot be watched", func(s State) bool {
		return !s.Watching && s.Reason == errLimit.Error() && s.Unwatched == 1 && s.Remedy != "" && s.Waiting == 0 && !s.All
	})
	set(procNSWatches, "1000")
	b.eventually("it can", func(s State) bool { return s.Watching && s.Dirs == 101 && !s.All })
	b.write("d45/below/f", "1")
	b.settle()
	b.mirror.check(t)

	// A directory that is new when there is no watch left.
	set(procNSWatches, "101")
	b.mkdir("new/below")
	b.settle()
	b.mirror.check(t) // new itself is seen, and below it what is there
	st = b.w.State()
	if st.Unwatched != 1 || len(st.Named) != 1 || st.Named[0].Path != "new" || st.Remedy == "" {
		t.Errorf("state %+v", st)
	}
	b.stop()

	// No instance at all.
	set(procNSInstances, "0")
	c := startUnwatched(t, dir, quick)
	c.eventually("the state says so", func(s State) bool {
		return !s.Watching && s.Reason == "all inotify instances of this user are taken" && s.Remedy == "sysctl user.max_inotify_instances=1024"
	})
	set(procNSInstances, "10")
	c.until("all, when there is an instance", isAll)
	c.mirror.check(t)
}

// helper runs a test of this binary in a process of its own.
func helper(t *testing.T, name string, attr *syscall.SysProcAttr, dir string) {
	t.Helper()
	// Somebody else may not be able to enter where the binary is.
	exe := filepath.Join(dir, "watch.test")
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	f, err := os.OpenFile(exe, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, self); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "work")
	if err := os.Mkdir(root, 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(root, 0o777)
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+name+"$", "-test.v")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "WATCH_HELPER=1", "WATCH_DIR="+root, "TMPDIR="+root)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	for sc := bufio.NewScanner(strings.NewReader(string(out))); sc.Scan(); {
		if _, reason, ok := strings.Cut(sc.Text(), "SKIP-MISSING"); ok {
			t.Skip("SKIP-MISSING" + reason)
		}
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+name) {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
