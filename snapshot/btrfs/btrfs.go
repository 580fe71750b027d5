//go:build linux

// Package btrfs takes, finds, sends and destroys snapshots of Btrfs subvolumes.
//
// A subvolume is a directory with inode number 256 and a tree of its own. A
// snapshot is a subvolume too, made in one transaction as a copy of another; it is
// read by its path like any directory. Snapshots of a source live in a subvolume
// below it, so that taking one changes nothing in the source itself and an unchanged
// source has an empty increment:
//
//	/home                                    the source
//	/home/.secrate                           mode 0700, made by SnapshotDir
//	/home/.secrate/home@20060102T150405.000000000Z.065d436d
//	                                         a snapshot, read-only, and whose it is; in
//	                                         it .secrate is an empty directory, inode
//	                                         number 2, of which no stream speaks
//
// The kernel is asked directly, by ioctl: it answers at once, in numbers, in the same
// words on every machine; btrfs(8) need not be installed. What is trusted is the
// kernel and that only root can change the snapshot directory.
// What a stream says is package sendstream/btrfs's to know.
//
// Reading the properties of subvolumes needs no privileges and Linux 4.18. Sending,
// and destroying in most cases, needs CAP_SYS_ADMIN in the initial user namespace.
// An error for lack of them wraps [fs.ErrPermission], one for a name taken
// [fs.ErrExist], one for something that is gone [fs.ErrNotExist].
//
// BUG(secrate): On 32-bit ARM and MIPS the kernel lays out the argument of
// BTRFS_IOC_SEND otherwise than Go does, and refuses to send.
package btrfs

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// Errors that callers may test for.
var (
	// ErrNotBtrfs says that a path is on another file system.
	ErrNotBtrfs = errors.New("not on a Btrfs file system")
	// ErrNotSubvolume says that a path is on Btrfs, but not the root of a
	// subvolume.
	ErrNotSubvolume = errors.New("not the root of a Btrfs subvolume")
	// ErrNotSnapshot says that a subvolume is not a read-only snapshot, and
	// therefore not sent from and not destroyed.
	ErrNotSnapshot = errors.New("not a read-only snapshot")
	// ErrReplaced says that a path now leads to another subvolume than before.
	ErrReplaced = errors.New("another subvolume is at this path now")
	// ErrInterrupted says that the process was stopped or the system suspended
	// during a send. It can be started again from the beginning.
	ErrInterrupted = errors.New("interrupted by a stop or a suspend; start the send again")
)

// A UUID is the identity that Btrfs gives a subvolume for life.
type UUID [16]byte

// String returns the UUID as btrfs(8) prints it.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// IsZero reports whether there is no UUID.
func (u UUID) IsZero() bool { return u == UUID{} }

// ParseUUID parses what String returns.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) || len(s) != 36 {
		return u, fmt.Errorf("btrfs: %q is not a UUID", s)
	}
	copy(u[:], b)
	if u.String() != strings.ToLower(s) {
		return UUID{}, fmt.Errorf("btrfs: %q is not a UUID", s)
	}
	return u, nil
}

// A Subvolume is a subvolume, a snapshot or not, as it was when it was asked for.
type Subvolume struct {
	Path string // absolute, without symbolic links
	Info
}

// Info is what Btrfs knows of a subvolume (BTRFS_IOC_GET_SUBVOL_INFO).
type Info struct {
	ID       uint64 // number in this file system; after an unmount that of a destroyed one may come again
	Name     string // in the directory that holds it; empty for the top level
	ParentID uint64 // ID of the subvolume that holds it; 0 for the top level
	ReadOnly bool

	UUID         UUID // zero for the top level of old file systems
	ParentUUID   UUID // of what it is a snapshot of; zero if it is none
	ReceivedUUID UUID // of what it was received as; zero if it was not

	Generation uint64    // transaction of the last change of anything
	CTransID   uint64    // transaction of the last change of an inode
	OTransID   uint64    // transaction that made it
	CTime      time.Time // when CTransID was
	OTime      time.Time // when OTransID was
}

// StreamUUID returns the UUID by which send streams name the subvolume: that of
// the original if it was received, else its own.
func (i Info) StreamUUID() UUID {
	if !i.ReceivedUUID.IsZero() {
		return i.ReceivedUUID
	}
	return i.UUID
}

// IsSnapshot reports whether it is a read-only snapshot of something.
func (i Info) IsSnapshot() bool { return i.ReadOnly && !i.ParentUUID.IsZero() }

// A Place is what a path is to Btrfs.
type Place int

// The places there are.
const (
	Elsewhere Place = iota // on another file system
	Inside                 // something in a subvolume
	Root                   // the root of a subvolume
)

// Detect says what path is to Btrfs. Symbolic links are followed.
func Detect(path string) (Place, error) {
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return Elsewhere, fmt.Errorf("btrfs: %w", err)
	}
	defer f.Close()
	return place(f)
}

// place is Detect for an open file, which may be open by O_PATH.
func place(f *os.File) (Place, error) {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
		return Elsewhere, explain("look at", f.Name(), err)
	}
	if uint32(sfs.Type) != unix.BTRFS_SUPER_MAGIC {
		return Elsewhere, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Elsewhere, explain("look at", f.Name(), err)
	}
	if st.Ino != firstFreeObjectID {
		return Inside, nil
	}
	return Root, nil
}

// Open returns the subvolume whose root is path. The error wraps [ErrNotBtrfs] or
// [ErrNotSubvolume] if there is none.
func Open(path string) (*Subvolume, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	s, f, err := open(path)
	if err != nil {
		return nil, err
	}
	return s, f.Close()
}

// open is Open for a path that is absolute and clean. It returns the directory too.
func open(path string) (*Subvolume, *os.File, error) {
	f, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("btrfs: %w", err)
	}
	s, err := subvolumeOf(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return s, f, nil
}

// subvolumeOf describes the subvolume whose root is open as f.
func subvolumeOf(f *os.File) (*Subvolume, error) {
	p, err := place(f)
	switch {
	case err != nil:
		return nil, err
	case p == Elsewhere:
		return nil, fmt.Errorf("btrfs: %s: %w", f.Name(), ErrNotBtrfs)
	case p == Inside:
		if root := rootAbove(f.Name()); root != "" {
			return nil, fmt.Errorf("btrfs: %s: %w: it is in the subvolume %s", f.Name(), ErrNotSubvolume, root)
		}
		return nil, fmt.Errorf("btrfs: %s: %w", f.Name(), ErrNotSubvolume)
	}
	info, err := info(f)
	if err != nil {
		return nil, err
	}
	return &Subvolume{Path: f.Name(), Info: info}, nil
}

// rootAbove returns the root of the subvolume that path is in, or "" if it cannot be
// seen from here: when only a part of it is mounted.
func rootAbove(path string) string {
	for {
		up := filepath.Dir(path)
		if up == path {
			return ""
		}
		path = up
		if p, err := Detect(path); err != nil || p == Elsewhere {
			return ""
		} else if p == Root {
			return path
		}
	}
}

// reopen opens what s says, if it is still that.
func (s *Subvolume) reopen() (*Subvolume, *os.File, error) {
	now, f, err := open(s.Path)
	if err != nil {
		return nil, nil, err
	}
	if now.UUID != s.UUID || now.ID != s.ID {
		f.Close()
		return nil, nil, fmt.Errorf("btrfs: %s: %w", s.Path, ErrReplaced)
	}
	return now, f, nil
}

// DirName is the name of the directory below a source that holds its snapshots.
const DirName = ".secrate"

// SnapshotDir returns the directory for the snapshots of s, which it makes, as a
// subvolume, if it is not there, and sees to it that no other user can look into
// it: snapshots keep what has since been deleted or closed. It refuses one that
// other users could have put there or can write to, as they could exchange what is
// in it.
func (s *Subvolume) SnapshotDir() (string, error) {
	_, f, err := s.reopen()
	if err != nil {
		return "", err
	}
	defer f.Close()
	dir := filepath.Join(s.Path, DirName)
	err = createSubvolume(f, DirName)
	if err != nil && err != unix.EEXIST {
		return "", explain("create subvolume", dir, err)
	}
	created := err == nil
	fd, err := unix.Openat(int(f.Fd()), DirName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return "", fmt.Errorf("btrfs: %s is needed for snapshots but is not a directory: move it away or name another directory on this file system", dir)
	}
	if err != nil {
		return "", explain("open", dir, err)
	}
	defer unix.Close(fd)
	if created {
		// The kernel takes no mode for a new subvolume, only the umask. Nothing is in
		// it yet; after a crash before this line the next call does it.
		if err := unix.Fchmod(fd, 0o700); err != nil {
			return "", explain("chmod", dir, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", explain("look at", dir, err)
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("btrfs: %s belongs to user %d and has mode %04o: it must belong to user %d and be writable by nobody else",
			dir, st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	if st.Mode&0o077 != 0 {
		if err := unix.Fchmod(fd, 0o700); err != nil {
			return "", explain("chmod", dir, err)
		}
	}
	return dir, nil
}

// nameTime is the time in a snapshot's name.
const nameTime = "20060102T150405.000000000Z"

// SnapshotName returns the name of a snapshot of source at t that belongs to owner: 1
// or more hexadecimal digits that tell those apart who take snapshots of one subvolume.
func SnapshotName(source string, t time.Time, owner string) string {
	return source + "@" + t.UTC().Format(nameTime) + "." + owner
}

// ParseName takes a name made by SnapshotName apart.
func ParseName(name string) (source string, t time.Time, owner string, ok bool) {
	i := strings.LastIndexByte(name, '@')
	j := strings.LastIndexByte(name, '.')
	if i < 0 || j < i || j+1 == len(name) || strings.Trim(name[j+1:], "0123456789abcdef") != "" {
		return "", time.Time{}, "", false
	}
	t, err := time.Parse(nameTime, name[i+1:j])
	if err != nil {
		return "", time.Time{}, "", false
	}
	source, owner = name[:i], name[j+1:]
	return source, t, owner, SnapshotName(source, t, owner) == name
}

// Snapshot makes a read-only snapshot of s in dir, a directory on the same file
// system, and returns it. It is on disk when Snapshot returns nil. If name is taken
// the error wraps [fs.ErrExist] and nothing has changed.
func (s *Subvolume) Snapshot(dir, name string) (*Subvolume, error) {
	if err := filetree.CheckName(name); err != nil {
		return nil, fmt.Errorf("btrfs: snapshot of %s: %w", s.Path, err)
	}
	_, src, err := s.reopen()
	if err != nil {
		return nil, err
	}
	defer src.Close()
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	path := filepath.Join(d.Name(), name)
	if err := createSnapshot(d, src, name); err != nil {
		return nil, explain("create snapshot", path, err)
	}
	snap, f, err := openIn(d, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !snap.ReadOnly || snap.ParentUUID != s.UUID {
		return nil, fmt.Errorf("btrfs: %s: %w", path, ErrReplaced)
	}
	return snap, nil
}

// openDir opens a directory for what is in it.
func openDir(dir string) (*os.File, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	d, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	switch p, err := place(d); {
	case err != nil:
		d.Close()
		return nil, err
	case p == Elsewhere:
		d.Close()
		return nil, fmt.Errorf("btrfs: %s: %w", dir, ErrNotBtrfs)
	}
	return d, nil
}

// openIn opens the subvolume that is an entry of d, never through a link.
func openIn(d *os.File, name string) (*Subvolume, *os.File, error) {
	path := filepath.Join(d.Name(), name)
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return nil, nil, fmt.Errorf("btrfs: %s: %w", path, ErrNotSubvolume)
	}
	if err != nil {
		return nil, nil, explain("open", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	s, err := subvolumeOf(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return s, f, nil
}

// List returns the subvolumes in dir, snapshots or not, in the order they were
// made. What is no subvolume is left out, and so is what goes away meanwhile.
func List(dir string) ([]*Subvolume, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("btrfs: %w", err)
	}
	var all []*Subvolume
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		s, f, err := openIn(d, e.Name())
		if errors.Is(err, ErrNotSubvolume) || errors.Is(err, ErrNotBtrfs) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f.Close()
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *Subvolume) int {
		return cmp.Or(cmp.Compare(a.OTransID, b.OTransID), a.OTime.Compare(b.OTime), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

// Find returns the subvolume in dir whose own UUID is id. If there is none the
// error wraps [fs.ErrNotExist].
func Find(dir string, id UUID) (*Subvolume, error) {
	all, err := List(dir)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.UUID == id {
			return s, nil
		}
	}
	return nil, fmt.Errorf("btrfs: no subvolume %v in %s: %w", id, dir, fs.ErrNotExist)
}

// Nested returns the paths, relative to its root, of the subvolumes that lie in s and
// not in one another, sorted. No snapshot of s holds what is in them.
func (s *Subvolume) Nested() ([]string, error) {
	_, f, err := s.reopen()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	paths, err := nested(f)
	if err != nil {
		return nil, explain("list the subvolumes in", s.Path, err)
	}
	slices.Sort(paths)
	return paths, nil
}

// Destroy destroys the read-only snapshot name in dir. Anything else, a writable
// snapshot too, it leaves alone, with an error that wraps [ErrNotSnapshot] or
// [ErrNotSubvolume]. The kernel frees the space in the background.
func Destroy(dir, name string) error {
	if err := filetree.CheckName(name); err != nil {
		return fmt.Errorf("btrfs: destroy a snapshot in %s: %w", dir, err)
	}
	d, err := openDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	s, f, err := openIn(d, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if !s.IsSnapshot() {
		return fmt.Errorf("btrfs: %s will not be destroyed: %w", s.Path, ErrNotSnapshot)
	}
	// By ID: whatever happens to the name, it is the subvolume we looked at. f,
	// which is open, keeps the ID from being given to another.
	err = destroyByID(d, s.ID)
	if err == unix.ENOTTY || err == unix.EOPNOTSUPP { // before Linux 5.7
		err = destroyByName(d, name)
	}
	if err != nil {
		return explain("destroy snapshot", s.Path, err)
	}
	return nil
}
