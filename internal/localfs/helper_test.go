package localfs

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP-MISSING: root")
	}
}

// mount mounts a file system for the length of the test.
func mount(t testing.TB, args ...string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Skipf("SKIP-MISSING: mount %v: %v: %s", args, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func mountTmpfs(t testing.TB, options string) string {
	return mount(t, "-t", "tmpfs", "-o", options, "none")
}

// mountLoop makes a file system in a file and mounts it.
func mountLoop(t testing.TB, mkfs ...string) string {
	t.Helper()
	return mount(t, "-o", "loop", makeImage(t, 320<<20, mkfs...))
}

// makeImage makes a file system in a file of that size.
func makeImage(t testing.TB, size int64, mkfs ...string) string {
	t.Helper()
	needRoot(t)
	img := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs[0], append(slices.Clone(mkfs[1:]), img)...).CombinedOutput(); err != nil {
		t.Skipf("SKIP-MISSING: %v: %v: %s", mkfs, err, out)
	}
	return img
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openTree(t testing.TB, dir string) *Tree {
	t.Helper()
	tree, err := Open(dir)
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

func openTestTarget(t testing.TB, dir string, o TargetOptions) *Target {
	t.Helper()
	target, err := OpenTarget(dir, o)
	must(t, err)
	t.Cleanup(func() { target.Close() })
	return target
}

// A seen is all of a node that a restore has to bring back.
type seen struct {
	Stat
	Segments []filetree.Segment
	Sum      [32]byte
}

// see reads a whole tree. Content of more than 1 GiB of data is not for it.
func see(t testing.TB, dir string) map[string]seen {
	t.Helper()
	tree := openTree(t, dir)
	all := map[string]seen{}
	add := func(path string, st Stat, err error, f *File) {
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		s := seen{Stat: st}
		s.Ctime, s.Btime, s.Ino, s.Dev, s.Blocks = filetree.Time{}, filetree.Time{}, 0, 0, 0
		if s.Kind == filetree.Dir {
			s.Nlink = 0 // each file system counts in its own way
		}
		if f != nil {
			s.Segments, s.Sum = content(t, f)
		}
		all[path] = s
	}
	st, err := tree.Root().Stat()
	add("", st, err, nil)
	for it, err := range tree.Walk() {
		must(t, err)
		switch {
		case it.Kind == filetree.File:
			f, err := it.Parent.OpenFile(it.Name)
			must(t, err)
			st, err := f.Stat()
			add(it.Path(), st, err, f)
			must(t, f.Close())
		case it.Dir != nil:
			st, err := it.Dir.Stat()
			add(it.Path(), st, err, nil)
		default:
			st, err := it.Parent.StatAt(it.Name, it.Kind)
			add(it.Path(), st, err, nil)
		}
	}
	return all
}

func content(t testing.TB, f *File) ([]filetree.Segment, [32]byte) {
	t.Helper()
	segs, err := f.Segments(0, f.Size())
	must(t, err)
	h := sha256.New()
	for _, s := range segs {
		if s.Hole {
			continue
		}
		_, err := io.Copy(h, io.NewSectionReader(f, s.Offset, s.Length))
		must(t, err)
	}
	return segs, [32]byte(h.Sum(nil))
}

// copyTree restores what is below from into target, as a pipeline would.
func copyTree(t testing.TB, from string, target *Target) {
	t.Helper()
	tree := openTree(t, from)
	type place struct {
		dir  filetree.NodeID
		name string
	}
	type dir struct {
		id   filetree.NodeID
		attr filetree.Attr
	}
	ids := map[string]filetree.NodeID{"": filetree.RootNode}
	links := map[uint64]place{}
	root, err := tree.Root().Stat()
	must(t, err)
	dirs := []dir{{filetree.RootNode, root.Attr}}
	for it, err := range tree.Walk() {
		must(t, err)
		path := it.Path()
		parent := ""
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			parent = path[:i]
		}
		at := place{ids[parent], it.Name}
		if it.Dir != nil {
			st, err := it.Dir.Stat()
			must(t, err)
			id := filetree.NodeID(len(ids) + 1)
			ids[path] = id
			dirs = append(dirs, dir{id, st.Attr})
			must(t, target.Mkdir(at.dir, at.name, id))
			continue
		}
		st, err := it.Parent.StatAt(it.Name, it.Kind)
		must(t, err)
		if first, ok := links[st.Ino]; ok {
			must(t, target.Link(first.dir, first.name, at.dir, at.name))
			continue
		}
		if st.Nlink > 1 {
			links[st.Ino] = at
		}
		switch it.Kind {
		case filetree.File:
			must(t, copyFile(target, at.dir, at.name, it, &st.Attr))
		case filetree.Symlink:
			must(t, target.Symlink(at.dir, at.name, &st.Attr))
		default:
			must(t, target.Mknod(at.dir, at.name, &st.Attr))
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		must(t, target.FinishDir(dirs[i].id, &dirs[i].attr))
	}
}

func copyFile(target *Target, dir filetree.NodeID, name string, it *Item, a *filetree.Attr) error {
	f, err := it.Parent.OpenFile(it.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	segs, err := f.Segments(0, f.Size())
	if err != nil {
		return err
	}
	if len(segs) == 0 || len(segs) == 1 && !segs[0].Hole && segs[0].Length < 1<<20 {
		data := make([]byte, a.Size)
		if _, err := f.ReadAt(data, 0); err != nil {
			return err
		}
		return target.WriteFile(dir, name, a, data)
	}
	w, err := target.Create(dir, name, a)
	if err != nil {
		return err
	}
	defer w.Abort()
	for _, s := range segs {
		if s.Hole {
			continue
		}
		data := make([]byte, s.Length)
		if _, err := f.ReadAt(data, s.Offset); err != nil {
			return err
		}
		if _, err := w.WriteAt(data, s.Offset); err != nil {
			return err
		}
	}
	return w.Finish()
}

// acl is a POSIX ACL as the kernel keeps it: owner rwx, user 1234 r-x, group r-x,
// mask r-x, others none.
func acl() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, 5, 1234}, {4, 5, ^uint32(0)}, {0x10, 5, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// capability is cap_net_raw=ep.
func capability() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, 1<<13)
	return append(b, make([]byte, 12)...)
}

// long returns a name of 255 bytes that is no UTF-8.
func long() string { return strings.Repeat("\xff\xfe\x80", 85) }

// makeSource fills dir with one of everything, as far as its file system holds it,
// and returns a function that makes it deletable.
func makeSource(t testing.TB, dir string) {
	t.Helper()
	p := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, data string) { must(t, os.WriteFile(p(name), []byte(data), 0o644)) }
	// optional ignores that a file system has no such thing.
	optional := func(err error) {
		if err != nil && !unsupported(err) {
			t.Fatal(err)
		}
	}
	stamp := func(name string, sec int64, nsec int64) {
		ts := []unix.Timespec{{Sec: 1, Nsec: 0}, {Sec: sec, Nsec: nsec}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}

	write("plain.txt", "hello")
	stamp("plain.txt", 1_600_000_000, 123_456_789)
	write("empty", "")
	write("old", "before 1970")
	stamp("old", -1_000_000_000, 1)
	write("readonly", "x")
	must(t, os.Chmod(p("readonly"), 0o400))
	optional(unix.Setxattr(p("readonly"), "user.note", []byte("text"), 0))
	write("big.bin", strings.Repeat("0123456789abcdef", 80_000))
	write(long(), "odd name")
	write("new\nline\x1b[31m", "odd name")

	write("owned", "x")
	must(t, os.Chown(p("owned"), 1000, 1001))
	must(t, os.Chmod(p("owned"), 0o640))
	write("setuid", "program")
	must(t, os.Chown(p("setuid"), 1000, 1001))
	must(t, unix.Chmod(p("setuid"), 0o6755))
	optional(unix.Setxattr(p("setuid"), "security.capability", capability(), 0))
	optional(unix.Setxattr(p("setuid"), "user.empty", nil, 0))
	optional(unix.Setxattr(p("setuid"), "user.large", make([]byte, 2000), 0))
	optional(unix.Setxattr(p("setuid"), "trusted.t", []byte{0, 1, 255}, 0))
	optional(unix.Setxattr(p("setuid"), xattrACL, acl(), 0))

	must(t, os.Mkdir(p("dir"), 0o700))
	write("dir/child", "x")
	write("dir/other.txt", "x")
	must(t, os.Link(p("plain.txt"), p("dir/link")))
	must(t, os.Mkdir(p("dir/acl"), 0o700))
	optional(unix.Setxattr(p("dir/acl"), xattrACL, acl(), 0))
	optional(unix.Setxattr(p("dir/acl"), xattrDefaultACL, acl(), 0))
	write("dir/acl/inherits", "x")
	stamp("dir/acl", -5, 999_999_999)
	must(t, os.Mkdir(p("dir/readonly"), 0o700))
	write("dir/readonly/f", "x")
	must(t, unix.Chmod(p("dir/readonly"), 0o3555))
	stamp("dir/readonly", 4_000_000_000, 5)
	stamp("dir", 1_700_000_000, 987_654_321)

	err := unix.Symlink(strings.Repeat("t/", 2047)+"x", p("longlink")) // 4095 bytes
	if err == unix.ENAMETOOLONG {                                      // XFS
		err = unix.Symlink(strings.Repeat("t/", 511)+"x", p("longlink"))
	}
	must(t, err)
	must(t, os.Symlink("nowhere\xff", p("symlink")))
	must(t, os.Lchown(p("symlink"), 7, 8))
	optional(unix.Lsetxattr(p("symlink"), "trusted.onlink", []byte("v"), 0))
	stamp("symlink", -1, 3)
	must(t, os.Link(p("symlink"), p("symlink2")))
	must(t, unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(p("disk"), unix.S_IFBLK|0o640, int(unix.Mkdev(259, 70000))))
	must(t, os.Chown(p("disk"), 0, 6))
	must(t, unix.Mknod(p("sock"), unix.S_IFSOCK|0o755, 0))
	must(t, unix.Mknod(p("fifo"), unix.S_IFIFO|0o604, 0))
	optional(unix.Lsetxattr(p("fifo"), "trusted.onfifo", []byte("v"), 0))
	stamp("fifo", 77, 88)

	f, err := os.Create(p("sparse"))
	must(t, err)
	must(t, f.Truncate(1<<40))
	_, err = f.WriteAt(make([]byte, 1<<16), 1<<20) // zeros, but no hole
	must(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("end.", 1<<14)), 1<<40-1<<16)
	must(t, err)
	must(t, f.Close())
	must(t, os.WriteFile(p("allhole"), nil, 0o600))
	must(t, os.Truncate(p("allhole"), 1<<20))

	for name, flags := range map[string]uint32{
		"nodump": flagNodump | flagNoatime,
		"nocow":  flagNocow,
		"compr":  flagCompr,
		"immut":  flagImmutable,
		"append": flagAppend | flagNodump,
	} {
		write(name, "")
		if name == "immut" {
			must(t, os.Link(p("immut"), p("immut2")))
		}
		if flags&flagsOfData == 0 {
			write(name, "content")
		}
		f, err := os.Open(p(name))
		must(t, err)
		setFlags(int(f.Fd()), flags, flags) // those that it has
		must(t, f.Close())
	}

	deep := dir
	fd, err := unix.Open(deep, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	for i := range 21 {
		name := fmt.Sprintf("%02d", i) + strings.Repeat("d", 200)
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	at, err := unix.Openat(fd, "bottom", unix.O_CREAT|unix.O_WRONLY, 0o600)
	must(t, err)
	unix.Close(at)
	unix.Close(fd)
	must(t, unix.Chmod(dir, 0o751))
	stamp("", 1_500_000_000, 42)
}

// clearFlags makes all below dir deletable.
func clearFlags(t testing.TB, dir string) {
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && (d.Type().IsRegular() || d.IsDir()) {
			if f, err := os.Open(path); err == nil {
				setFlags(int(f.Fd()), 0, flagsLast)
				f.Close()
			}
		}
		return nil
	})
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}
