package localfs

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// ErrMount is wrapped by errors that report a mount point: what is there belongs
// to another file system.
var ErrMount = errors.New("another file system is mounted here")

// ErrSubvolume is wrapped by errors that report another Btrfs subvolume, or the
// empty directory that stands for one in a snapshot.
var ErrSubvolume = errors.New("another subvolume is here")

// ErrNotFile is wrapped by errors of opening what is no regular file.
var ErrNotFile = errors.New("not a regular file")

// retry calls f until it is not interrupted: on FUSE and NFS even calls that
// should restart by themselves can be.
func retry[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if err != unix.EINTR {
			return v, err
		}
	}
}

// writeAt writes all of data at off, and returns how much of it is written.
func writeAt(fd int, data []byte, off int64) (int, error) {
	n := 0
	for n < len(data) {
		m, err := retry(func() (int, error) { return unix.Pwrite(fd, data[n:], off+int64(n)) })
		if err == nil && m == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// hasOpenat2 reports whether the kernel has openat2 (since Linux 5.6) and lets us
// use it: old seccomp filters answer EPERM to calls they do not know.
var hasOpenat2 = sync.OnceValue(func() bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
})

// openBeneath opens path below dirfd. It follows no link in any component and
// enters no mount point. Without openat2, path must be one component, and mount
// points are for the caller to find by their device.
func openBeneath(dirfd int, path string, flags int) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	if !hasOpenat2() {
		return retry(func() (int, error) { return unix.Openat(dirfd, path, flags, 0) })
	}
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_LARGEFILE // openat2 refuses it beside O_PATH
	}
	how := unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(dirfd, path, &how) })
	if err == unix.EXDEV {
		return -1, ErrMount
	}
	return fd, err
}

// openRead opens path for reading. It cannot block, whatever is there, and it
// leaves the access time alone where that is allowed.
func openRead(dirfd int, path string, flags int) (int, error) {
	flags |= unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := openBeneath(dirfd, path, flags|unix.O_NOATIME)
	if err == unix.EPERM { // neither the owner nor root
		fd, err = openBeneath(dirfd, path, flags)
	}
	if err == unix.EAGAIN {
		// Somebody (Samba, usually) holds a lease, and O_NONBLOCK does not wait for
		// it. It is a regular file then, as the handle can prove.
		h, err := openPath(dirfd, path)
		if err != nil {
			return -1, err
		}
		defer h.close()
		var st unix.Statx_t
		if err := h.statx(&st); err != nil {
			return -1, err
		}
		if kindOf(uint32(st.Mode)) != filetree.File {
			return -1, unix.EAGAIN
		}
		return h.reopen(unix.O_RDONLY)
	}
	return fd, err
}

// A handle holds a node of any kind open. With a path (of /proc/self/fd) it is an
// O_PATH descriptor: it can be had for a link or a device and without permission
// to read.
type handle struct {
	fd   int
	path string
}

func openPath(dirfd int, path string) (handle, error) {
	fd, err := openBeneath(dirfd, path, unix.O_PATH)
	if err != nil {
		return handle{fd: -1}, err
	}
	return handle{fd, procPath(fd)}, nil
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// needProc returns an error unless /proc/self/fd leads to fd.
func needProc(fd int) error {
	var st unix.Stat_t
	if err := unix.Stat(procPath(fd), &st); err != nil {
		return fmt.Errorf("/proc is not mounted, and reading attributes needs it: %w", err)
	}
	return nil
}

func (h handle) close() error { return unix.Close(h.fd) }

// reopen opens the very node that an O_PATH handle holds.
func (h handle) reopen(flags int) (int, error) {
	return retry(func() (int, error) { return unix.Open(h.path, flags|unix.O_CLOEXEC, 0) })
}

func (h handle) statx(st *unix.Statx_t) error { return statx(h.fd, "", st) }

func (h handle) chown(uid, gid int) error {
	if h.path == "" {
		return unix.Fchown(h.fd, uid, gid)
	}
	return unix.Chown(h.path, uid, gid)
}

func (h handle) chmod(mode uint32) error {
	if h.path == "" {
		return unix.Fchmod(h.fd, mode)
	}
	return unix.Chmod(h.path, mode)
}

func (h handle) utimes(ts *[2]unix.Timespec) error {
	if h.path != "" {
		return unix.UtimesNanoAt(unix.AT_FDCWD, h.path, ts[:], 0)
	}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(h.fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func (h handle) listxattr(buf []byte) (int, error) {
	if h.path == "" {
		return unix.Flistxattr(h.fd, buf)
	}
	return unix.Listxattr(h.path, buf)
}

func (h handle) getxattr(name string, buf []byte) (int, error) {
	if h.path == "" {
		return unix.Fgetxattr(h.fd, name, buf)
	}
	return unix.Getxattr(h.path, name, buf)
}

func (h handle) setxattr(name string, value []byte) error {
	if h.path == "" {
		return unix.Fsetxattr(h.fd, name, value, 0)
	}
	return unix.Setxattr(h.path, name, value, 0)
}

func (h handle) removexattr(name string) error {
	if h.path == "" {
		return unix.Fremovexattr(h.fd, name)
	}
	return unix.Removexattr(h.path, name)
}

// grow calls f with a buffer that it finds large enough for what f reads. It
// begins small: the kernel allocates as much as it is offered.
func grow(f func(buf []byte) (int, error)) ([]byte, error) {
	var small [512]byte
	n, err := f(small[:])
	if err == nil {
		return small[:n:n], nil
	}
	if err != unix.ERANGE {
		return nil, err
	}
	buf := make([]byte, 1<<16) // the most that Linux allows for either
	n, err = f(buf)
	if err != nil {
		return nil, err
	}
	return buf[:n:n], nil
}

// unsupported reports whether err says that a file system has no such thing.
func unsupported(err error) bool {
	switch err {
	case unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS, unix.EINVAL:
		return true
	}
	return false
}

// keptXattr reports whether an attribute belongs to the node, rather than being a
// view that the file system makes up (system.nfs4_acl, system.ntfs_attrib).
func keptXattr(name string) bool {
	switch name {
	case xattrACL, xattrDefaultACL:
		return true
	}
	return strings.HasPrefix(name, "user.") ||
		strings.HasPrefix(name, "trusted.") ||
		strings.HasPrefix(name, "security.") ||
		strings.HasPrefix(name, "btrfs.")
}

const (
	xattrACL        = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
)

func (h handle) xattrNames() ([]string, error) {
	list, err := grow(h.listxattr)
	if err != nil {
		if unsupported(err) {
			return nil, nil
		}
		return nil, err
	}
	var names []string
	for len(list) > 0 {
		name, rest, _ := strings.Cut(string(list), "\x00")
		if keptXattr(name) {
			names = append(names, name)
		}
		list = list[len(list)-len(rest):]
	}
	return names, nil
}

// xattrs returns the extended attributes, sorted by name.
func (h handle) xattrs() ([]filetree.Xattr, error) {
	names, err := h.xattrNames()
	if err != nil {
		return nil, err
	}
	var xs []filetree.Xattr
	for _, name := range names {
		value, err := grow(func(buf []byte) (int, error) { return h.getxattr(name, buf) })
		if err == unix.ENODATA || unsupported(err) { // gone since, or only listed
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		xs = append(xs, filetree.Xattr{Name: name, Value: value})
	}
	filetree.SortXattrs(xs)
	return xs, nil
}

// statx reads what is at name below fd, or fd itself if name is empty. Before
// Linux 4.11 birth times are missing.
func statx(fd int, name string, st *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := unix.Statx(fd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, st)
	if err != unix.ENOSYS {
		return err
	}
	var old unix.Stat_t
	if name == "" {
		err = unix.Fstat(fd, &old)
	} else {
		err = unix.Fstatat(fd, name, &old, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return err
	}
	rdev, dev := uint64(old.Rdev), uint64(old.Dev)
	*st = unix.Statx_t{
		Nlink: uint32(old.Nlink), Uid: old.Uid, Gid: old.Gid, Mode: uint16(old.Mode),
		Ino: old.Ino, Size: uint64(old.Size), Blocks: uint64(old.Blocks),
		Ctime:      unix.StatxTimestamp{Sec: int64(old.Ctim.Sec), Nsec: uint32(old.Ctim.Nsec)},
		Mtime:      unix.StatxTimestamp{Sec: int64(old.Mtim.Sec), Nsec: uint32(old.Mtim.Nsec)},
		Rdev_major: unix.Major(rdev), Rdev_minor: unix.Minor(rdev),
		Dev_major: unix.Major(dev), Dev_minor: unix.Minor(dev),
	}
	return nil
}

func kindOf(mode uint32) filetree.Kind {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return filetree.File
	case unix.S_IFDIR:
		return filetree.Dir
	case unix.S_IFLNK:
		return filetree.Symlink
	case unix.S_IFIFO:
		return filetree.Fifo
	case unix.S_IFSOCK:
		return filetree.Socket
	case unix.S_IFCHR:
		return filetree.CharDev
	case unix.S_IFBLK:
		return filetree.BlkDev
	}
	return 0
}

func devOf(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

func timeOf(t unix.StatxTimestamp) filetree.Time { return filetree.Time{Sec: t.Sec, Nsec: t.Nsec} }
