//go:build linux

package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// Scan makes the manifest of the tree below dir. It does not look into nested
// subvolumes and other mounted file systems. Access times stay as they are where
// the user may have that. Nothing in the tree may change meanwhile.
func Scan(dir string) ([]Entry, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("manifest: scan %s: %w", dir, err)
	}
	defer unix.Close(fd)
	s := scanner{buf: make([]byte, 256<<10), hash: sha256.New()}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return nil, fmt.Errorf("manifest: scan %s: %w", dir, err)
	}
	s.btrfs = uint32(sfs.Type) == unix.BTRFS_SUPER_MAGIC
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return nil, fmt.Errorf("manifest: scan %s: %w", dir, err)
	}
	s.major, s.minor = st.Dev_major, st.Dev_minor
	if err := s.dir(fd, "", &st); err != nil {
		return nil, fmt.Errorf("manifest: scan %s: %w", dir, err)
	}
	return s.entries, nil
}

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// A scanner works with descriptors of directories, as paths may be longer than the
// kernel takes.
type scanner struct {
	entries      []Entry
	major, minor uint32 // of the file system
	btrfs        bool
	buf          []byte
	hash         hash.Hash
}

// dir adds the directory that is open as fd, and all below it.
func (s *scanner) dir(fd int, name string, st *unix.Statx_t) error {
	e, err := s.entry(name, st)
	if err != nil {
		return err
	}
	if err := finish(fd, &e); err != nil {
		return fmt.Errorf("%s: %w", Escape(name), err)
	}
	s.entries = append(s.entries, e)

	names, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", Escape(name), err)
	}
	for _, base := range names {
		if err := s.child(fd, base, path.Join(name, base)); err != nil {
			return err
		}
	}
	return nil
}

func readNames(fd int) ([]string, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// child adds the entry base of the directory dirfd, and all below it.
func (s *scanner) child(dirfd int, base, name string) error {
	var st unix.Statx_t
	if err := unix.Statx(dirfd, base, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statxMask, &st); err != nil {
		return fmt.Errorf("%s: %w", Escape(name), err)
	}
	e, err := s.entry(name, &st)
	if err != nil {
		return err
	}
	switch {
	case e.Nested:
		e.Ino = nestedIno
	case e.Kind == filetree.Dir:
		fd, err := openNoAtime(dirfd, base, unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("%s: %w", Escape(name), err)
		}
		defer unix.Close(fd)
		return s.dir(fd, name, &st)
	case e.Kind == filetree.File:
		fd, err := openNoAtime(dirfd, base, unix.O_NONBLOCK)
		if err != nil {
			return fmt.Errorf("%s: %w", Escape(name), err)
		}
		defer unix.Close(fd)
		if err := s.content(fd, &e); err != nil {
			return fmt.Errorf("%s: %w", Escape(name), err)
		}
		if err := finish(fd, &e); err != nil {
			return fmt.Errorf("%s: %w", Escape(name), err)
		}
	default:
		// These cannot be opened without doing something; their attributes are
		// read by a path that is short however deep they are.
		proc := "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + base
		if e.Kind == filetree.Symlink {
			n, err := unix.Readlinkat(dirfd, base, s.buf)
			if err != nil {
				return fmt.Errorf("%s: %w", Escape(name), err)
			}
			e.Target = string(s.buf[:n])
		}
		e.Xattrs, err = readXattrs(
			func(b []byte) (int, error) { return unix.Llistxattr(proc, b) },
			func(attr string, b []byte) (int, error) { return unix.Lgetxattr(proc, attr, b) })
		if err != nil {
			return fmt.Errorf("%s: attributes: %w", Escape(name), err)
		}
	}
	s.entries = append(s.entries, e)
	return nil
}

// openNoAtime opens without touching the access time if that is allowed.
func openNoAtime(dirfd int, base string, flags int) (int, error) {
	flags |= unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dirfd, base, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = unix.Openat(dirfd, base, flags, 0)
	}
	return fd, err
}

// entry fills in what statx says.
func (s *scanner) entry(name string, st *unix.Statx_t) (Entry, error) {
	e := Entry{
		Path:    name,
		Ino:     st.Ino,
		Mode:    uint32(st.Mode) & 0o7777,
		UID:     st.Uid,
		GID:     st.Gid,
		Size:    int64(st.Size),
		Nlink:   uint64(st.Nlink),
		Mtime:   filetree.Time{Sec: st.Mtime.Sec, Nsec: st.Mtime.Nsec},
		Ctime:   filetree.Time{Sec: st.Ctime.Sec, Nsec: st.Ctime.Nsec},
		FSFlags: -1,
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		e.Otime = filetree.Time{Sec: st.Btime.Sec, Nsec: st.Btime.Nsec}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Kind = filetree.File
	case unix.S_IFDIR:
		e.Kind = filetree.Dir
		e.Nested = st.Dev_major != s.major || st.Dev_minor != s.minor ||
			s.btrfs && st.Ino == nestedIno
	case unix.S_IFLNK:
		e.Kind = filetree.Symlink
	case unix.S_IFIFO:
		e.Kind = filetree.Fifo
	case unix.S_IFSOCK:
		e.Kind = filetree.Socket
	case unix.S_IFCHR:
		e.Kind, e.Major, e.Minor = filetree.CharDev, st.Rdev_major, st.Rdev_minor
	case unix.S_IFBLK:
		e.Kind, e.Major, e.Minor = filetree.BlkDev, st.Rdev_major, st.Rdev_minor
	default:
		return e, fmt.Errorf("%s: mode %o", Escape(name), st.Mode)
	}
	return e, nil
}

// finish adds what is asked of an open file or directory.
func finish(fd int, e *Entry) error {
	if flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); err == nil {
		e.FSFlags = int64(flags)
	}
	var err error
	e.Xattrs, err = readXattrs(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(attr string, b []byte) (int, error) { return unix.Fgetxattr(fd, attr, b) })
	if err != nil {
		return fmt.Errorf("attributes: %w", err)
	}
	return nil
}

// readXattrs reads attributes by functions that behave as listxattr(2) and
// getxattr(2).
func readXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]filetree.Xattr, error) {
	var small [512]byte
	n, err := list(small[:])
	names := small[:]
	if err == unix.ERANGE {
		names = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = list(names)
	}
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil || n == 0 {
		return nil, err
	}
	var all []filetree.Xattr
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for _, name := range bytes.Split(bytes.TrimSuffix(names[:n], []byte{0}), []byte{0}) {
		n, err := get(string(name), value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, filetree.Xattr{Name: string(name), Value: bytes.Clone(value[:n])})
	}
	filetree.SortXattrs(all)
	return all, nil
}

// content fills in Extents and the hash.
func (s *scanner) content(fd int, e *Entry) error {
	var err error
	if e.Extents, err = extents(fd, e.Size); err != nil {
		return err
	}
	s.hash.Reset()
	if e.Size > sparseSize {
		e.Sparse = true
		err = s.hashBlocks(fd, e)
	} else {
		r := io.NewSectionReader(readerAt(fd), 0, e.Size)
		var n int64
		if n, err = io.CopyBuffer(struct{ io.Writer }{s.hash}, struct{ io.Reader }{r}, s.buf); err == nil && n != e.Size {
			err = fmt.Errorf("%d bytes read of %d", n, e.Size)
		}
	}
	s.hash.Sum(e.SHA256[:0])
	return err
}

// readerAt is a descriptor as an io.ReaderAt.
type readerAt int

func (fd readerAt) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(int(fd), p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// extents asks for data and holes from 0 to size.
func extents(fd int, size int64) ([]filetree.Segment, error) {
	var all []filetree.Segment
	add := func(from, to int64, hole bool) {
		if to > from {
			all = append(all, filetree.Segment{Range: filetree.Range{Offset: from, Length: to - from}, Hole: hole})
		}
	}
	for off := int64(0); off < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO { // none after off
			data, err = size, nil
		}
		if err != nil {
			return nil, fmt.Errorf("seek for data: %w", err)
		}
		data = min(data, size)
		add(off, data, true)
		if data == size {
			break
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("seek for a hole: %w", err)
		}
		off = min(hole, size)
		add(data, off, false)
	}
	return all, nil
}

// hashBlocks hashes the blocks of 4 KiB that are not all zero. A last one that the
// file fills only in part ends in zeros.
func (s *scanner) hashBlocks(fd int, e *Entry) error {
	const block = 4096
	var zero [block]byte
	next := int64(0) // block
	for _, x := range e.Extents {
		if x.Hole {
			continue
		}
		end := (x.End() + block - 1) / block
		for next = max(next, x.Offset/block); next < end; {
			buf := s.buf[:min(int64(len(s.buf)/block), end-next)*block]
			n, err := readerAt(fd).ReadAt(buf, next*block)
			if err != nil && err != io.EOF {
				return err
			}
			clear(buf[n:])
			for b := range slices.Chunk(buf, block) {
				if !bytes.Equal(b, zero[:]) {
					binary.Write(s.hash, binary.LittleEndian, next)
					s.hash.Write(b)
				}
				next++
			}
		}
	}
	return nil
}
