package localfs

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// A Tree is a directory and all below it that belongs to the same file system and
// subvolume. Its methods may be called concurrently.
type Tree struct {
	root  *Dir
	dev   uint64
	btrfs bool
}

// Open opens the directory at path as a Tree. Links in path itself are followed:
// whoever names it means where it leads.
func Open(path string) (*Tree, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	t := &Tree{}
	t.root = newDir(t, fd)
	var fs unix.Statfs_t
	err = errors.Join(needProc(fd), t.root.h.statx(&t.root.st), unix.Fstatfs(fd, &fs))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	t.dev = devOf(&t.root.st)
	t.btrfs = int64(fs.Type) == unix.BTRFS_SUPER_MAGIC
	return t, nil
}

// OpenFile opens as a Tree the directory that is open as f, which stays open and is the
// caller's: it may be mounted nowhere.
func OpenFile(f *os.File) (*Tree, error) {
	t, err := Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	runtime.KeepAlive(f)
	return t, err
}

// Close closes the tree. Handles opened from it stay good.
func (t *Tree) Close() error { return t.root.Close() }

// Root returns the directory that the tree was opened at. It is closed with the
// tree.
func (t *Tree) Root() *Dir { return t.root }

// Walk is Walk of the root.
func (t *Tree) Walk() iter.Seq2[*Item, error] { return t.root.Walk() }

// OpenDir opens the directory at path: names separated by slashes, of any length
// in all; "" is the root.
func (t *Tree) OpenDir(path string) (*Dir, error) {
	if path == "" {
		return t.root.Again()
	}
	return at(t, path, "open", t.openDir)
}

// OpenFile opens the regular file at path, as OpenDir does a directory.
func (t *Tree) OpenFile(path string) (*File, error) { return at(t, path, "open", t.openFile) }

// Stat returns the attributes of what is at path; "" is the root.
func (t *Tree) Stat(path string) (Stat, error) {
	if path == "" {
		return t.root.Stat()
	}
	return at(t, path, "stat", func(dirfd int, rest string) (Stat, error) {
		return t.stat(dirfd, rest, 0)
	})
}

// maxStep is how much of a path one call may be given, below PATH_MAX.
const maxStep = 4000

// at calls do with the descriptor of a directory and the last part of path, having
// gone to that directory in steps that the kernel accepts.
func at[T any](t *Tree, path, op string, do func(dirfd int, rest string) (T, error)) (T, error) {
	var zero T
	for name := range strings.SplitSeq(path, "/") {
		if err := filetree.CheckName(name); err != nil {
			return zero, fmt.Errorf("%s %q: %w", op, path, err)
		}
	}
	dirfd, rest := t.root.h.fd, path
	defer func() {
		if dirfd != t.root.h.fd {
			unix.Close(dirfd)
		}
	}()
	for {
		cut := -1
		if !hasOpenat2() {
			cut = strings.IndexByte(rest, '/')
		} else if len(rest) > maxStep {
			cut = strings.LastIndexByte(rest[:maxStep], '/')
		}
		if cut < 0 {
			break
		}
		fd, err := openBeneath(dirfd, rest[:cut], unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			var st unix.Statx_t
			if err = statx(fd, "", &st); err == nil {
				err = t.check(&st)
			}
			if err != nil {
				unix.Close(fd)
			}
		}
		if err != nil {
			return zero, fmt.Errorf("%s %q: %w", op, path, err)
		}
		if dirfd != t.root.h.fd {
			unix.Close(dirfd)
		}
		dirfd, rest = fd, rest[cut+1:]
	}
	v, err := do(dirfd, rest)
	if err != nil {
		return zero, fmt.Errorf("%s %q: %w", op, path, err)
	}
	return v, nil
}

// Object ids of Btrfs: a subvolume's root directory, and the empty directory that a
// snapshot has in place of a nested subvolume.
const (
	btrfsFirstFree   = 256
	btrfsEmptySubvol = 2
)

// check returns ErrMount or ErrSubvolume unless the node belongs to the tree. Every
// subvolume has a device number of its own. Of other nodes than directories it
// means nothing but on Btrfs: overlayfs shows that of the layer below.
func (t *Tree) check(st *unix.Statx_t) error {
	dir := kindOf(uint32(st.Mode)) == filetree.Dir
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return ErrMount
	}
	if t.btrfs && dir && st.Ino == btrfsEmptySubvol {
		return ErrSubvolume
	}
	if (dir || t.btrfs) && devOf(st) != t.dev {
		if t.btrfs && (!dir || st.Ino == btrfsFirstFree) {
			return ErrSubvolume
		}
		return ErrMount
	}
	return nil
}

func (t *Tree) openDir(dirfd int, path string) (*Dir, error) {
	fd, err := openRead(dirfd, path, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	d := newDir(t, fd)
	if err := d.h.statx(&d.st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := t.check(&d.st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return d, nil
}

func (t *Tree) openFile(dirfd int, path string) (*File, error) {
	fd, err := openRead(dirfd, path, 0)
	if err == unix.ENXIO { // a socket, or a device that is not there
		return nil, ErrNotFile
	}
	if err != nil {
		return nil, err
	}
	f := &File{h: handle{fd: fd}}
	if err = f.h.statx(&f.st); err == nil {
		err = t.check(&f.st)
	}
	if err == nil && kindOf(uint32(f.st.Mode)) != filetree.File {
		err = ErrNotFile
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return f, nil
}

// stat reads the attributes of any node. A right kind saves calls, a wrong one
// does no harm.
func (t *Tree) stat(dirfd int, path string, kind filetree.Kind) (Stat, error) {
	h := handle{fd: -1}
	err := error(unix.EACCES)
	if kind == filetree.File || kind == filetree.Dir {
		h.fd, err = openRead(dirfd, path, 0)
		if errors.Is(err, ErrMount) {
			return Stat{}, err
		}
	}
	if err != nil {
		// No permission, or it is something else by now: what can be known without
		// opening it is better than nothing.
		if h, err = openPath(dirfd, path); err != nil {
			return Stat{}, err
		}
	}
	defer h.close()
	var st unix.Statx_t
	if err := h.statx(&st); err != nil {
		return Stat{}, err
	}
	if err := t.check(&st); err != nil {
		return Stat{}, err
	}
	return h.stat(&st)
}

// A Stat is all that is known of a node at one time.
type Stat struct {
	filetree.Attr
	Nlink  uint32
	Dev    uint64 // of the file system or subvolume it is in
	Blocks int64  // allocated, of 512 bytes

	// Nodump says that it has that flag, if that is Known: not every file system says it without
	// the file being opened. See [Dir.Nodump].
	Nodump, NodumpKnown bool
}

// basic is what statx tells.
func basic(st *unix.Statx_t) Stat {
	s := Stat{
		Attr: filetree.Attr{
			Kind:  kindOf(uint32(st.Mode)),
			Mode:  uint32(st.Mode) & 0o7777,
			UID:   st.Uid,
			GID:   st.Gid,
			Mtime: timeOf(st.Mtime),
			Ctime: timeOf(st.Ctime),
			Ino:   st.Ino,
		},
		Nlink:  st.Nlink,
		Dev:    devOf(st),
		Blocks: int64(st.Blocks),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		s.Btime = timeOf(st.Btime)
	}
	if s.Kind == filetree.File {
		s.Size = int64(st.Size)
	}
	s.Nodump = st.Attributes&unix.STATX_ATTR_NODUMP != 0
	s.NodumpKnown = st.Attributes_mask&unix.STATX_ATTR_NODUMP != 0
	return s
}

// stat adds to st what statx does not tell.
func (h handle) stat(st *unix.Statx_t) (Stat, error) {
	s := basic(st)
	var err error
	switch s.Kind {
	case filetree.File:
		s.Flags, err = h.flags()
	case filetree.Dir:
		s.Flags, err = h.flags()
	case filetree.Symlink:
		s.Target, err = readlink(h.fd)
	case filetree.CharDev, filetree.BlkDev:
		s.Major, s.Minor = st.Rdev_major, st.Rdev_minor
	case 0:
		err = fmt.Errorf("unknown type %#o", st.Mode&unix.S_IFMT)
	}
	if err != nil {
		return Stat{}, err
	}
	if s.Xattrs, err = h.xattrs(); err != nil {
		return Stat{}, err
	}
	return s, nil
}

// flags returns the flags of a file or directory, 0 when they cannot be known.
func (h handle) flags() (uint32, error) {
	fd := h.fd
	if h.path != "" {
		var err error
		if fd, err = h.reopen(unix.O_RDONLY | unix.O_NONBLOCK); err != nil {
			return 0, nil
		}
		defer unix.Close(fd)
	}
	flags, _, err := getFlags(fd)
	return flags, err
}

func readlink(fd int) (string, error) {
	var buf [filetree.MaxTarget + 1]byte
	n, err := unix.Readlinkat(fd, "", buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// A Dir is an open directory. Its methods may be called concurrently, except
// ReadDir, ReadAll and Rewind.
type Dir struct {
	t    *Tree
	h    handle
	st   unix.Statx_t // when it was opened
	refs atomic.Int32

	buf  []byte // for getdents, while entries are read
	rest []byte // of buf, not yet returned
	eof  bool
}

func newDir(t *Tree, fd int) *Dir {
	d := &Dir{t: t, h: handle{fd: fd}}
	d.refs.Store(1)
	return d
}

// Retain makes d need one more Close. Somebody who got d lent, from a Walk for
// example, keeps it open with it.
func (d *Dir) Retain() *Dir {
	if d.refs.Add(1) <= 1 {
		panic("localfs: Retain of a closed Dir")
	}
	return d
}

// Close closes d when it has been called once, and once for each Retain.
func (d *Dir) Close() error {
	switch n := d.refs.Add(-1); {
	case n < 0:
		panic("localfs: Dir closed twice")
	case n > 0:
		return nil
	}
	return d.h.close()
}

// Stat returns the attributes of the directory itself.
func (d *Dir) Stat() (Stat, error) {
	var st unix.Statx_t
	if err := d.h.statx(&st); err != nil {
		return Stat{}, err
	}
	return d.h.stat(&st)
}

// StatAt returns the attributes of the entry name. kind is what [Entry] says of
// it, or 0; it saves calls if it is right.
func (d *Dir) StatAt(name string, kind filetree.Kind) (Stat, error) {
	if err := filetree.CheckName(name); err != nil {
		return Stat{}, err
	}
	s, err := d.t.stat(d.h.fd, name, kind)
	if err != nil {
		return Stat{}, fmt.Errorf("stat %q: %w", name, err)
	}
	return s, nil
}

// LookAt returns what StatAt does but for flags, extended attributes and a link's target,
// by one call.
func (d *Dir) LookAt(name string) (Stat, error) {
	if err := filetree.CheckName(name); err != nil {
		return Stat{}, err
	}
	var st unix.Statx_t
	if err := statx(d.h.fd, name, &st); err != nil {
		return Stat{}, fmt.Errorf("stat %q: %w", name, err)
	}
	return basic(&st), nil
}

// Nodump reports whether the entry name has the flag nodump, as chattr(1) sets it for a file or
// directory.
func (d *Dir) Nodump(name string) (bool, error) {
	st, err := d.LookAt(name)
	if err != nil {
		return false, err
	}
	return d.nodump(name, &st)
}

// nodump is Nodump where it has been looked at the entry: not every file system says it there.
func (d *Dir) nodump(name string, st *Stat) (bool, error) {
	if st.NodumpKnown || st.Kind != filetree.File && st.Kind != filetree.Dir {
		return st.Nodump, nil
	}
	all, err := d.StatAt(name, st.Kind)
	return all.Flags&flagNodump != 0, err
}

// Look is LookAt for d itself, as it was when it was opened.
func (d *Dir) Look() Stat { return basic(&d.st) }

// OpenDir opens the directory name. The error wraps [ErrMount] or [ErrSubvolume] if
// it does not belong to the tree.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	if err := filetree.CheckName(name); err != nil {
		return nil, err
	}
	sub, err := d.t.openDir(d.h.fd, name)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", name, err)
	}
	return sub, nil
}

// OpenFile opens the regular file name. The error wraps [ErrNotFile] or is ELOOP if
// it is something else.
func (d *Dir) OpenFile(name string) (*File, error) {
	if err := filetree.CheckName(name); err != nil {
		return nil, err
	}
	f, err := d.t.openFile(d.h.fd, name)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", name, err)
	}
	return f, nil
}

// An Entry is a name in a directory.
type Entry struct {
	Name string
	Kind filetree.Kind // 0 where the file system does not say
	Ino  uint64        // of a mount point: what it covers
}

const direntBuffer = 32 << 10

// direntBuffers are those of directories that were read to their end: a walk reads
// hundreds of thousands.
var direntBuffers = sync.Pool{New: func() any { b := make([]byte, direntBuffer); return &b }}

// ReadDir returns at most max of the entries not yet returned, in the order of the
// file system, and io.EOF when there are none left. Memory is bounded by max,
// however large the directory is.
func (d *Dir) ReadDir(max int) ([]Entry, error) {
	var es []Entry
	for len(es) < max {
		if len(d.rest) == 0 {
			if d.eof {
				break
			}
			if d.buf == nil {
				d.buf = *direntBuffers.Get().(*[]byte)
			}
			n, err := retry(func() (int, error) { return unix.Getdents(d.h.fd, d.buf) })
			if err != nil {
				return es, fmt.Errorf("read directory: %w", err)
			}
			if n == 0 {
				buf := d.buf
				direntBuffers.Put(&buf)
				d.eof, d.buf = true, nil
				break
			}
			d.rest = d.buf[:n]
		}
		e, rest, err := parseDirent(d.rest)
		if err != nil {
			return es, err
		}
		d.rest = rest
		if e.Name != "." && e.Name != ".." {
			es = append(es, e)
		}
	}
	if len(es) == 0 && max > 0 {
		return nil, io.EOF
	}
	return es, nil
}

// ReadAll returns all entries in the order of Walk, if they are not more than max.
// Otherwise it returns the first of them (more than max) in the order of the file
// system and false; ReadDir returns the rest.
func (d *Dir) ReadAll(max int) (es []Entry, all bool, err error) {
	for len(es) <= max {
		more, err := d.ReadDir(1024)
		if err == io.EOF {
			sortEntries(es)
			return es, true, nil
		}
		if err != nil {
			return nil, false, err
		}
		es = append(es, more...)
	}
	return es, false, nil
}

// Rewind makes ReadDir begin again.
func (d *Dir) Rewind() error { return d.seek(0) }

func (d *Dir) seek(pos int64) error {
	_, err := unix.Seek(d.h.fd, pos, unix.SEEK_SET)
	d.rest, d.eof = nil, false
	return err
}

// Fd returns the descriptor of d, for calls that this package has no method for. It is
// good until d is closed, and not to be closed.
func (d *Dir) Fd() int { return d.h.fd }
