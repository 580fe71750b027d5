package localfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// withProject gives attributes a project id.
func withProject(a *filetree.Attr, id string) *filetree.Attr {
	a.Xattrs = append(a.Xattrs, filetree.Xattr{Name: filetree.ProjectXattr, Value: []byte(id)})
	return a
}

// A projectOf is what a node has of a project.
type projectOf struct {
	ID       uint32
	Inherits bool
}

// projects reads what all nodes below a directory have, but those that have nothing.
func projects(t *testing.T, dir string) map[string]projectOf {
	t.Helper()
	all := map[string]projectOf{}
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() && !e.IsDir() {
			return err
		}
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		var x fsxattr
		must(t, ioctlFSXattr(int(f.Fd()), fsIocFSGetXattr, &x))
		flags, _, err := getFlags(int(f.Fd()))
		must(t, err)
		// Of files only ZFS keeps it, where it says nothing.
		if p := (projectOf{x.projid, e.IsDir() && flags&flagProject != 0}); p != (projectOf{}) {
			name, err := filepath.Rel(dir, path)
			must(t, err)
			all[name] = p
		}
		return nil
	}))
	return all
}

// makeProject makes a directory that hands down a project id.
func makeProject(t *testing.T, dir string, id uint32) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	must(t, setProject(int(f.Fd()), id))
	if setFlags(int(f.Fd()), flagProject, flagProject) != 0 {
		t.Fatal("the flag cannot be set")
	}
}

// projectFileSystems runs a test on those that have project ids, as far as this kernel
// has. In the virtual machine it is run on ZFS, and in any case on ext4.
func projectFileSystems(t *testing.T, run func(t *testing.T, base string)) {
	kinds := map[string][]string{"xfs": {"mkfs.xfs", "-q"}}
	ext4 := []string{"mkfs.ext4", "-q", "-O", "project,quota", "-I", "256"}
	if err := mountable(t, ext4); err != nil {
		t.Logf("not on ext4, of which this kernel mounts none with projects (CONFIG_QFMT_V2): %v", err)
	} else {
		kinds["ext4"] = ext4
	}
	for name, mkfs := range kinds {
		t.Run(name, func(t *testing.T) {
			base := mountLoop(t, mkfs...)
			t.Cleanup(func() { clearFlags(t, base) })
			run(t, base)
		})
	}
}

// mountable tries whether the kernel mounts a file system.
func mountable(t *testing.T, mkfs []string) error {
	t.Helper()
	img, dir := makeImage(t, 16<<20, mkfs...), t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", img, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return unix.Unmount(dir, 0)
}

// Project ids come back, to files that are made in either way and to directories, beside
// everything else, and the same again over itself.
func TestProject(t *testing.T) { projectFileSystems(t, testProject) }

func testProject(t *testing.T, base string) {
	dir := filepath.Join(base, "t")
	restore := func() {
		target := openTestTarget(t, dir, TargetOptions{IntoExisting: true})
		a := withProject(fileAttr("x"), "7")
		a.Mtime = filetree.Time{Sec: 1e9, Nsec: 5}
		must(t, target.WriteFile(1, "f", a, []byte("x")))
		f, err := target.Create(1, "pieces", withProject(fileAttr("x"), "4294967294"))
		must(t, err)
		must(t, f.Finish())
		a = withProject(fileAttr(""), "8")
		a.Flags = flagImmutable | flagNodump | flagProject // no file hands it down
		must(t, target.WriteFile(1, "immutable", a, nil))
		must(t, target.WriteFile(1, "none", fileAttr(""), nil))
		must(t, target.Mkdir(1, "heir", 2))
		must(t, target.WriteFile(2, "other", withProject(fileAttr(""), "9"), nil))
		must(t, target.Link(1, "f", 2, "linked"))
		must(t, target.Mkdir(2, "sub", 3))
		must(t, target.WriteFile(3, "deep", withProject(fileAttr(""), "10"), nil))
		must(t, target.Link(1, "immutable", 3, "linked"))
		for id, a := range []*filetree.Attr{3: withProject(kindAttr(filetree.Dir, 0o755), "6"), 2: withProject(kindAttr(filetree.Dir, 0o755), "5")} {
			if a != nil {
				a.Flags = flagProject
				must(t, target.FinishDir(filetree.NodeID(id), a))
			}
		}
		must(t, target.FinishDir(1, kindAttr(filetree.Dir, 0o755)))
		for _, n := range target.Notes() {
			t.Errorf("note: %+v", n)
		}
		must(t, target.Close())
	}
	want := map[string]projectOf{
		"f": {7, false}, "pieces": {4294967294, false}, "immutable": {8, false}, "heir": {5, true}, "heir/other": {9, false},
		"heir/linked": {7, false}, "heir/sub": {6, true}, "heir/sub/deep": {10, false}, "heir/sub/linked": {8, false},
	}
	for range 2 {
		restore()
		if diff := cmp.Diff(want, projects(t, dir)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		st, err := openTree(t, dir).Stat("f")
		must(t, err)
		if want := (filetree.Time{Sec: 1e9, Nsec: 5}); st.Mtime != want || st.Mode != 0o644 {
			t.Errorf("%+v", st)
		}
		st, err = openTree(t, dir).Stat("heir/sub/linked")
		must(t, err)
		if st.Flags&^flagProject != flagImmutable|flagNodump || st.Nlink != 2 {
			t.Errorf("%+v", st)
		}
		clearFlags(t, dir) // what is immutable cannot be replaced
	}
}

// A directory that hands down its project takes what has another one, and what has none
// stays with what it was handed.
func TestProjectHandedDown(t *testing.T) { projectFileSystems(t, testProjectHandedDown) }

func testProjectHandedDown(t *testing.T, base string) {
	for _, existing := range []bool{false, true} {
		heir := filepath.Join(base, fmt.Sprint("heir", existing))
		makeProject(t, heir, 5)
		dir := heir
		if existing {
			must(t, os.Symlink("was", filepath.Join(dir, "link")))
		} else {
			dir = filepath.Join(heir, "new")
		}
		target := openTestTarget(t, dir, TargetOptions{IntoExisting: true})
		must(t, target.WriteFile(1, "f", withProject(fileAttr(""), "7"), nil))
		f, err := target.Create(1, "pieces", withProject(fileAttr(""), "8"))
		must(t, err)
		must(t, f.Finish())
		a := withProject(fileAttr(""), "9")
		a.Flags = flagAppend
		must(t, target.WriteFile(1, "append", a, nil))
		must(t, target.WriteFile(1, "none", fileAttr(""), nil))
		must(t, target.Symlink(1, "link", kindAttr(filetree.Symlink, 0o777)))
		if to, err := os.Readlink(filepath.Join(dir, "link")); err != nil || to != "to" {
			t.Errorf("the link leads to %q, %v", to, err)
		}
		must(t, target.Mkdir(1, "sub", 2))
		for _, name := range []string{"f", "append", "none"} {
			must(t, target.Link(1, name, 2, name))
		}
		must(t, target.FinishDir(2, withProject(kindAttr(filetree.Dir, 0o755), "6")))
		must(t, target.FinishDir(1, kindAttr(filetree.Dir, 0o755)))
		want := map[string]projectOf{
			".": {5, true}, "f": {7, false}, "pieces": {8, false}, "append": {9, false}, "none": {5, false},
			"sub": {6, true}, "sub/f": {7, false}, "sub/append": {9, false}, "sub/none": {5, false},
		}
		if diff := cmp.Diff(want, projects(t, dir)); diff != "" {
			t.Errorf("existing %v (-want +got):\n%s", existing, diff)
		}
		if st, err := openTree(t, dir).Stat("sub/append"); err != nil || st.Flags&flagAppend == 0 {
			t.Errorf("%+v, %v", st, err)
		}
		if ns := target.Notes(); len(ns) != 0 {
			t.Errorf("notes: %+v", ns)
		}
	}
}

// Where a target has no projects that is said, of each node that should have one; so is
// what no target has.
func TestLostProject(t *testing.T) {
	needRoot(t)
	for name, dir := range map[string]string{
		"btrfs":                mountLoop(t, "mkfs.btrfs", "-q"),
		"ext4 without project": mountLoop(t, "mkfs.ext4", "-q", "-O", "^project"),
		"ext4, small inodes":   mountLoop(t, "mkfs.ext4", "-q", "-I", "128"),
		"tmpfs":                mountTmpfs(t, "size=1m"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(dir, "t")
			target := openTestTarget(t, dir, TargetOptions{})
			must(t, target.WriteFile(1, "f", withProject(fileAttr("x"), "7"), []byte("x")))
			must(t, target.Symlink(1, "link", withProject(kindAttr(filetree.Symlink, 0o777), "7")))
			must(t, target.Mknod(1, "fifo", withProject(kindAttr(filetree.Fifo, 0o600), "7")))
			a := fileAttr("")
			a.Xattrs = []filetree.Xattr{{Name: filetree.ACLXattr, Value: []byte("acl")}, {Name: filetree.ProjectXattr, Value: []byte("8")}}
			must(t, target.WriteFile(1, "acl", a, nil))
			must(t, target.FinishDir(1, withProject(kindAttr(filetree.Dir, 0o755), "7")))
			want := []Note{{LostACL, 1, []string{"acl"}}, {LostProject, 5, []string{"f", "link", "fifo", "acl", ""}}}
			if diff := cmp.Diff(want, target.Notes()); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
			if st, err := openTree(t, dir).Stat("f"); err != nil || st.Size != 1 || len(st.Xattrs) != 0 {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

// What is no project id is none, and a link is not followed.
func TestBadProject(t *testing.T) {
	base := mountLoop(t, "mkfs.xfs", "-q")
	outside := filepath.Join(base, "outside")
	must(t, os.WriteFile(outside, nil, 0o600))
	dir := filepath.Join(base, "t")
	target := openTestTarget(t, dir, TargetOptions{})
	for i, id := range []string{"", "-1", "4294967295", "4294967296", "18446744073709551616", "7\n", "seven"} {
		must(t, target.WriteFile(1, fmt.Sprint(i), withProject(fileAttr(""), id), nil))
	}
	a := withProject(kindAttr(filetree.Symlink, 0o777), "7")
	a.Target = outside
	must(t, target.Symlink(1, "link", a))
	if got := projects(t, base); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if ns := target.Notes(); len(ns) != 1 || ns[0].What != LostProject || ns[0].Count != 8 {
		t.Errorf("notes: %+v", ns)
	}
}

// The structure is the kernel's.
func TestFSXattr(t *testing.T) {
	if unix.FS_IOC_GETFLAGS == 0x80086601 && (fsIocFSGetXattr != 0x801c581f || fsIocFSSetXattr != 0x401c5820) {
		t.Errorf("%#x, %#x", fsIocFSGetXattr, fsIocFSSetXattr)
	}
}
