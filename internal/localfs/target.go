package localfs

import (
	"container/list"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// ErrNotEmpty is wrapped by the error of OpenTarget for a directory that has
// entries already.
var ErrNotEmpty = errors.New("the directory is not empty")

// ErrNoDevice is wrapped by the error of OpenTarget for a name in /dev that nothing has.
var ErrNoDevice = errors.New("there is no such device, and a directory is not made among devices")

// ErrOccupied is wrapped by errors that report something else where a node should
// be, which was left as it is: a directory in place of a file, a link in place of a
// directory, anything where the target did not exist before.
var ErrOccupied = errors.New("something else is there")

// TargetOptions say how a Target treats what is there. The zero value is for a
// target that does not exist yet or is empty.
type TargetOptions struct {
	// IntoExisting allows a directory with entries: nodes other than directories
	// replace what has their name and is no directory, directories are reused.
	IntoExisting bool
	// Root is the id of the target directory itself; 0 means filetree.RootNode.
	Root filetree.NodeID
}

// A Target restores nodes below a directory. Its methods may be called
// concurrently, as long as a directory is made before what is in it.
//
// Errors name the node and wrap the errno: unix.ENOSPC, unix.EIO. A node that could
// not be made leaves nothing behind.
type Target struct {
	fresh bool
	root  filetree.NodeID
	notes notes
	nanos atomic.Bool // times of nanoseconds have been seen to be kept

	mu   sync.Mutex // guards what follows
	dirs map[filetree.NodeID]dirInfo
	open map[filetree.NodeID]*openDir
	lru  *list.List // of *openDir, the last used first; without the root
}

// A dirInfo is what is remembered of every directory.
type dirInfo struct {
	parent filetree.NodeID
	name   string
	dev    uint64
	ino    uint64
	// fresh is set if nothing but the Target's own is in it, so that names are free.
	fresh bool
	// inherits is set if what is made in it starts with attributes of its own: a
	// default ACL, compression.
	inherits bool
}

// An openDir is a directory whose descriptor is kept, of type O_PATH but for the
// root.
type openDir struct {
	dirInfo
	id   filetree.NodeID
	fd   int
	refs int           // in use so often; guarded by Target.mu
	elem *list.Element // nil for the root
}

// maxOpen is the most directories that are kept open while they are not in use.
const maxOpen = 256

// OpenTarget opens the directory at path to restore into it, and makes it, with
// mode 0700, if there is none; what it is in must exist. The error wraps
// [ErrNotEmpty] if it has entries and o does not allow them, and [ErrNoDevice] for a name
// in /dev that nothing has.
func OpenTarget(path string, o TargetOptions) (*Target, error) {
	t, err := openTarget(path, o)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", path, err)
	}
	return t, nil
}

func openTarget(path string, o TargetOptions) (*Target, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	if amongDevices(path) {
		return nil, ErrNoDevice
	}
	err := unix.Mkdir(path, 0o700)
	made := err == nil
	if made {
		flags |= unix.O_NOFOLLOW
	} else if err != unix.EEXIST {
		return nil, err
	}
	fd, err := retry(func() (int, error) { return unix.Open(path, flags, 0) })
	if err != nil {
		return nil, err
	}
	t := &Target{
		root: o.Root,
		dirs: map[filetree.NodeID]dirInfo{},
		open: map[filetree.NodeID]*openDir{},
		lru:  list.New(),
	}
	if t.root == 0 {
		t.root = filetree.RootNode
	}
	info, err := describe(fd)
	if err == nil {
		err = needProc(fd)
	}
	if err == nil {
		t.fresh, err = isEmpty(fd)
	}
	if err == nil && !t.fresh && !o.IntoExisting {
		err = ErrNotEmpty
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	info.fresh = t.fresh
	if made {
		info.inherits = !disinherit(fd)
	} else {
		info.inherits = bequeaths(fd)
	}
	t.dirs[t.root] = info
	t.open[t.root] = &openDir{dirInfo: info, id: t.root, fd: fd, refs: 1}
	return t, nil
}

// amongDevices reports whether path is the name of nothing among devices. A directory
// there would be in memory, and is a device's name misspelt.
func amongDevices(path string) bool {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != unix.ENOENT {
		return false
	}
	parent, err := filepath.Abs(filepath.Dir(filepath.Clean(path)))
	if err == nil {
		parent, err = filepath.EvalSymlinks(parent)
	}
	parent += "/"
	return err == nil && strings.HasPrefix(parent, "/dev/") && !strings.HasPrefix(parent, "/dev/shm/")
}

func isEmpty(fd int) (bool, error) {
	d := newDir(nil, fd)
	_, all, err := d.ReadAll(0)
	return all, err
}

// describe fills in what makes a directory known again.
func describe(fd int) (dirInfo, error) {
	var st unix.Statx_t
	if err := statx(fd, "", &st); err != nil {
		return dirInfo{}, err
	}
	return dirInfo{dev: devOf(&st), ino: st.Ino}, nil
}

// bequeaths reports whether what is made in a directory starts with attributes of
// its own.
func bequeaths(fd int) bool {
	h := handle{fd: fd}
	if _, err := h.getxattr(xattrDefaultACL, nil); err == nil {
		return true
	}
	flags, _, _ := getFlags(fd)
	return flags&flagsSettable != 0
}

// disinherit takes from a directory just made what it got from its parent, and
// reports whether it could.
func disinherit(fd int) bool {
	h := handle{fd: fd}
	for _, name := range []string{xattrACL, xattrDefaultACL} {
		if err := h.removexattr(name); err != nil && err != unix.ENODATA && !unsupported(err) {
			return false
		}
	}
	// Set-group-id too: it would hand down the group.
	return h.chmod(0o700) == nil && setFlags(fd, 0, flagsSettable) == 0
}

// Fresh reports whether the target directory was empty or has been made.
func (t *Target) Fresh() bool { return t.fresh }

// Sync makes durable what has been restored, on the whole file system that the
// target directory is on. It reports write errors that came after the call that
// wrote.
func (t *Target) Sync() error {
	if err := unix.Syncfs(t.rootFD()); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

func (t *Target) rootFD() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open[t.root].fd
}

// Close closes the target. Every TargetFile must have been finished or aborted.
func (t *Target) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, d := range t.open {
		errs = append(errs, unix.Close(d.fd))
	}
	clear(t.open)
	clear(t.dirs)
	t.lru.Init()
	return errors.Join(errs...)
}

// fail wraps err as an error of doing op to an entry.
func (t *Target) fail(op string, dir filetree.NodeID, name string, err error) error {
	return fmt.Errorf("%s %q: %w", op, t.path(dir, name), err)
}

// path returns the path of an entry, relative to the target.
func (t *Target) path(dir filetree.NodeID, name string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	names := []string{name}
	for id := dir; id != t.root; {
		info, ok := t.dirs[id]
		if !ok {
			break
		}
		names = append(names, info.name)
		id = info.parent
	}
	slices.Reverse(names)
	return strings.TrimSuffix(strings.Join(names, "/"), "/")
}

// dir returns an open directory, to be given back with release.
func (t *Target) dir(id filetree.NodeID) (*openDir, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// chain leads from id up to the first directory that is open.
	var chain []filetree.NodeID
	at := id
	for t.open[at] == nil {
		info, ok := t.dirs[at]
		if !ok {
			return nil, fmt.Errorf("directory %d: unknown", at)
		}
		chain = append(chain, at)
		at = info.parent
	}
	d := t.open[at]
	d.refs++
	for i, id := range slices.Backward(chain) {
		sub, err := t.reopen(d, id)
		t.releaseLocked(d)
		if err != nil {
			return nil, err
		}
		// The nearest ones are kept: on the way back from a deep place they are
		// wanted next.
		if i < maxOpen/2 {
			t.keep(sub)
		}
		d = sub
	}
	if d.elem != nil {
		t.lru.MoveToFront(d.elem)
	}
	return d, nil
}

// reopen opens a directory that parent is known to have, with one reference.
func (t *Target) reopen(parent *openDir, id filetree.NodeID) (*openDir, error) {
	info := t.dirs[id]
	fd, err := openPathDir(parent.fd, info.name)
	if err != nil {
		return nil, fmt.Errorf("open %q again: %w", info.name, err)
	}
	now, err := describe(fd)
	if err == nil && (now.dev != info.dev || now.ino != info.ino) {
		err = fmt.Errorf("open %q again: %w", info.name, ErrOccupied)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &openDir{dirInfo: info, id: id, fd: fd, refs: 1}, nil
}

// openPathDir opens one directory below another. It needs no permission to read it.
func openPathDir(dirfd int, name string) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat(dirfd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// keep puts d among the open directories and closes the one that was not used for
// longest.
func (t *Target) keep(d *openDir) {
	t.open[d.id] = d
	d.elem = t.lru.PushFront(d)
	for e := t.lru.Back(); e != nil && t.lru.Len() > maxOpen; {
		old := e.Value.(*openDir)
		e = e.Prev()
		if old.refs == 0 {
			t.drop(old)
		}
	}
}

func (t *Target) drop(d *openDir) {
	t.lru.Remove(d.elem)
	delete(t.open, d.id)
	d.elem = nil
	unix.Close(d.fd)
}

func (t *Target) release(d *openDir) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.releaseLocked(d)
}

func (t *Target) releaseLocked(d *openDir) {
	d.refs--
	if d.refs == 0 && t.open[d.id] != d { // opened in passing
		unix.Close(d.fd)
	}
}

// Mkdir makes the directory name in parent and gives it an id of the caller's
// choice. It has mode 0700 until FinishDir. In a directory that was there before, an
// existing directory is used; the error wraps [ErrOccupied] if something else has
// the name.
func (t *Target) Mkdir(parent filetree.NodeID, name string, id filetree.NodeID) error {
	if err := filetree.CheckName(name); err != nil {
		return t.fail("mkdir", parent, name, err)
	}
	d, err := t.dir(parent)
	if err != nil {
		return t.fail("mkdir", parent, name, err)
	}
	defer t.release(d)
	sub, err := makeDir(d, name)
	if err != nil {
		return t.fail("mkdir", parent, name, err)
	}
	sub.parent, sub.name, sub.id = parent, name, id

	t.mu.Lock()
	if _, taken := t.dirs[id]; taken {
		err = fmt.Errorf("node %d is in use", id)
		unix.Close(sub.fd)
	} else {
		t.dirs[id] = sub.dirInfo
		t.keep(sub)
	}
	t.mu.Unlock()
	if err != nil {
		return t.fail("mkdir", parent, name, err)
	}
	return nil
}

// makeDir makes or reuses a directory in d.
func makeDir(d *openDir, name string) (*openDir, error) {
	err := unix.Mkdirat(d.fd, name, 0o700)
	made := err == nil
	if !made && (err != unix.EEXIST || d.fresh) {
		return nil, occupied(err)
	}
	fd, err := openPathDir(d.fd, name)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return nil, ErrOccupied
	}
	if err != nil {
		return nil, err
	}
	info, err := describe(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	info.fresh = made
	if !made || d.inherits {
		info.inherits = true // unless it can be seen, or made, not to
		if h, err := readable(fd); err == nil {
			info.inherits = made && !disinherit(h.fd) || !made && bequeaths(h.fd)
			h.close()
		}
	}
	return &openDir{dirInfo: info, fd: fd}, nil
}

// readable opens again, for reading, the directory that an O_PATH descriptor holds.
func readable(fd int) (handle, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	return handle{fd: fd}, err
}

// occupied makes an ErrOccupied of the errors that mean one.
func occupied(err error) error {
	switch err {
	case unix.EEXIST, unix.EISDIR, unix.ENOTEMPTY, unix.ENOTDIR:
		return ErrOccupied
	}
	return err
}

// FinishDir gives a directory its attributes. It is called when everything below it
// is finished, children first: making entries changes times, and the mode or a flag
// may forbid it. The directory can still be used, for example as the place of a file
// to link to.
func (t *Target) FinishDir(id filetree.NodeID, a *filetree.Attr) error {
	d, err := t.dir(id)
	if err != nil {
		return t.fail("finish directory", id, "", err)
	}
	defer t.release(d)
	h, err := readable(d.fd)
	if err == unix.EACCES {
		h, err = handle{d.fd, procPath(d.fd)}, nil
	} else if err == nil {
		defer h.close()
	}
	if err == nil {
		n := node{t: t, dir: id, kind: filetree.Dir, attr: a, prune: true}
		if err = n.setAttr(h); err == nil {
			n.setLast(h)
		}
	}
	if err != nil {
		return t.fail("finish directory", id, "", err)
	}
	return nil
}

// Forget frees what is remembered of a directory. Nothing can be done in or below it
// afterwards; its id is free again.
func (t *Target) Forget(id filetree.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id == t.root {
		return
	}
	delete(t.dirs, id)
	if d := t.open[id]; d != nil {
		if d.refs == 0 {
			t.drop(d)
		} else { // release closes it
			t.lru.Remove(d.elem)
			d.elem = nil
			delete(t.open, id)
		}
	}
}

// Symlink makes a symbolic link to a.Target.
func (t *Target) Symlink(dir filetree.NodeID, name string, a *filetree.Attr) error {
	return t.make("symlink", dir, name, a, func(dirfd int, name string) error {
		return unix.Symlinkat(a.Target, dirfd, name)
	})
}

// Mknod makes a fifo, a socket or a device, as a.Kind says. Devices need root; the
// error wraps unix.EPERM otherwise.
func (t *Target) Mknod(dir filetree.NodeID, name string, a *filetree.Attr) error {
	return t.make("mknod", dir, name, a, func(dirfd int, name string) error {
		mode, dev := uint32(0o600), uint64(0)
		switch a.Kind {
		case filetree.Fifo:
			mode |= unix.S_IFIFO
		case filetree.Socket:
			mode |= unix.S_IFSOCK
		case filetree.CharDev:
			mode, dev = mode|unix.S_IFCHR, unix.Mkdev(a.Major, a.Minor)
		case filetree.BlkDev:
			mode, dev = mode|unix.S_IFBLK, unix.Mkdev(a.Major, a.Minor)
		default:
			return fmt.Errorf("%v: no special file", a.Kind)
		}
		return unix.Mknodat(dirfd, name, mode, int(dev))
	})
}

// make makes a node without content, sets its attributes and puts it in its place.
func (t *Target) make(op string, dir filetree.NodeID, name string, a *filetree.Attr, mk func(dirfd int, name string) error) error {
	if err := filetree.CheckName(name); err != nil {
		return t.fail(op, dir, name, err)
	}
	d, err := t.dir(dir)
	if err != nil {
		return t.fail(op, dir, name, err)
	}
	defer t.release(d)
	err = t.makeIn(d, name, a, mk, d.fresh)
	if err == unix.EXDEV {
		// On ZFS such a node has no project, and nothing gets by rename to where one is
		// handed down. So what has its name goes first: a crash here leaves neither.
		if err = occupied(unix.Unlinkat(d.fd, name, 0)); err == nil || err == unix.ENOENT {
			err = t.makeIn(d, name, a, mk, true)
		}
	}
	if err != nil {
		return t.fail(op, dir, name, err)
	}
	return nil
}

func (t *Target) makeIn(d *openDir, name string, a *filetree.Attr, mk func(dirfd int, name string) error, direct bool) (err error) {
	tmp, err := d.create(name, direct, func(name string) error { return mk(d.fd, name) })
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			unix.Unlinkat(d.fd, tmp, 0)
		}
	}()
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, tmp, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return err
	}
	h := handle{fd, procPath(fd)}
	defer h.close()
	// In a directory that others can write to, someone may have put a link to a file
	// of his choice in its place, for us to change its owner.
	var st unix.Statx_t
	if err := h.statx(&st); err != nil {
		return err
	}
	if kindOf(uint32(st.Mode)) != a.Kind || st.Nlink != 1 {
		return ErrOccupied
	}
	n := node{t: t, dir: d.id, name: name, kind: a.Kind, attr: a, prune: d.inherits}
	if err := n.setAttr(h); err != nil {
		return err
	}
	if lost := a.Flags &^ flagsOfState; lost != 0 {
		n.note(LostFlags)
	}
	if n.hasProject() { // it takes a descriptor that only files and directories have
		n.note(LostProject)
	}
	return d.place(tmp, name)
}

// create calls mk with the name that a node is made under: its own one if direct
// is set, else a temporary one, which it returns.
func (d *openDir) create(name string, direct bool, mk func(name string) error) (string, error) {
	if direct {
		return name, occupied(mk(name))
	}
	for range 10 {
		tmp := tempName()
		if err := mk(tmp); err != unix.EEXIST {
			return tmp, err
		}
	}
	return "", unix.EEXIST
}

// tempPrefix begins the names of what is not finished.
const tempPrefix = ".secrate-"

func tempName() string {
	var b [8]byte
	rand.Read(b[:])
	return tempPrefix + hex.EncodeToString(b[:])
}

// place gives a finished node its name. A crash before leaves the temporary name
// behind, never a half-written file under its own. In a fresh directory the name
// must be free: whatever has it came from this restore, so two entries have one
// name, or names that the file system takes for one.
func (d *openDir) place(tmp, name string) error {
	if tmp == name {
		return nil
	}
	if !d.fresh {
		return occupied(unix.Renameat(d.fd, tmp, d.fd, name))
	}
	err := unix.Renameat2(d.fd, tmp, d.fd, name, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // NFS and old kernels
		var st unix.Statx_t
		if statx(d.fd, name, &st) == nil {
			return ErrOccupied
		}
		err = unix.Renameat(d.fd, tmp, d.fd, name)
	}
	return occupied(err)
}

// Link makes one more entry for a node that has been restored and is no directory.
func (t *Target) Link(oldDir filetree.NodeID, oldName string, dir filetree.NodeID, name string) error {
	if err := errors.Join(filetree.CheckName(oldName), filetree.CheckName(name)); err != nil {
		return t.fail("link", dir, name, err)
	}
	from, err := t.dir(oldDir)
	if err != nil {
		return t.fail("link", dir, name, err)
	}
	defer t.release(from)
	to, err := t.dir(dir)
	if err != nil {
		return t.fail("link", dir, name, err)
	}
	defer t.release(to)
	err = link(to, name, func(name string) error { return unix.Linkat(from.fd, oldName, to.fd, name, 0) })
	if err == unix.EPERM || err == unix.EXDEV {
		err = linkLoosened(from, oldName, to, name, err)
	}
	if err != nil {
		return t.fail("link", dir, name, fmt.Errorf("to %q: %w", t.path(oldDir, oldName), err))
	}
	return nil
}

func link(to *openDir, name string, mk func(name string) error) error {
	tmp, err := to.create(name, to.fresh, mk)
	if err != nil {
		return err
	}
	err = to.place(tmp, name)
	if tmp != name {
		unix.Unlinkat(to.fd, tmp, 0) // rename leaves it if both are links to one node
	}
	return err
}

// linkLoosened links to a file that may not be linked to as it is, which err says: it is
// immutable or append-only, or the directory hands down another project than it has. For
// as long as that takes it is neither.
func linkLoosened(from *openDir, oldName string, to *openDir, name string, err error) error {
	fd, openErr := retry(func() (int, error) {
		return unix.Openat(from.fd, oldName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if openErr != nil {
		return err
	}
	defer unix.Close(fd)
	flags, _, flagsErr := getFlags(fd)
	forbids := flagsErr == nil && flags&flagsLast != 0
	if forbids {
		if setFlags(fd, 0, flagsLast) != 0 {
			return err
		}
		defer setFlags(fd, flags, flagsLast)
	}
	id, projectErr := getProject(fd)
	other, dirErr := id, error(nil)
	if h, err := readable(to.fd); projectErr == nil && err == nil {
		other, dirErr = getProject(h.fd)
		h.close()
	}
	foreign := projectErr == nil && dirErr == nil && other != id
	if foreign {
		if setProject(fd, other) != nil {
			return err
		}
		defer setProject(fd, id)
	}
	if !forbids && !foreign {
		return err
	}
	return link(to, name, func(name string) error {
		return unix.Linkat(unix.AT_FDCWD, procPath(fd), to.fd, name, unix.AT_SYMLINK_FOLLOW)
	})
}
