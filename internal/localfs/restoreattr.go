package localfs

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// A node is what is being given attributes, and where it will be.
type node struct {
	t    *Target
	dir  filetree.NodeID
	name string // empty for dir itself
	kind filetree.Kind
	attr *filetree.Attr
	// prune is set if the node may have attributes already.
	prune bool
}

func (n *node) note(what string) {
	n.t.notes.add(what, func() string { return n.t.path(n.dir, n.name) })
}

// notHeld reports whether err says that the target cannot hold an attribute, rather
// than that it is broken.
func notHeld(err error) bool {
	switch err {
	case unix.EPERM, unix.EACCES, unix.ERANGE, unix.E2BIG, unix.EOVERFLOW, unix.ENAMETOOLONG:
		return true
	}
	return unsupported(err)
}

// setAttr sets all attributes but those of setLast, in the order that the package comment
// gives.
func (n *node) setAttr(h handle) error {
	a := n.attr
	if n.prune {
		if err := n.pruneXattrs(h); err != nil {
			return err
		}
	}
	// The value of an attribute user.* needs write permission, which root always and
	// an owner only for now has.
	if err := n.setXattrs(h, func(name string) bool { return strings.HasPrefix(name, "user.") }); err != nil {
		return err
	}
	owned, err := n.setOwner(h)
	if err != nil {
		return err
	}
	if n.kind != filetree.Symlink {
		if err := n.setMode(h, owned); err != nil {
			return err
		}
	}
	if err := n.setXattrs(h, func(name string) bool { return !strings.HasPrefix(name, "user.") }); err != nil {
		return err
	}
	if n.kind == filetree.File || n.kind == filetree.Dir {
		if a.Flags&^(flagsSettable|flagProject|flagsOfState) != 0 {
			n.note(LostFlags)
		}
		n.setFlags(h, flagsSettable&^flagsLast)
	}
	if !a.Ctime.IsZero() || !a.Btime.IsZero() {
		n.note(LostBirth)
	}
	return n.setTime(h)
}

// setOwner reports whether the node has its owner and group now.
func (n *node) setOwner(h handle) (bool, error) {
	a := n.attr
	const none = ^uint32(0) // to chown: leave it as it is
	err := error(unix.EINVAL)
	if a.UID != none && a.GID != none {
		err = h.chown(int(a.UID), int(a.GID))
	}
	if err == nil {
		return true, nil
	}
	if !notHeld(err) {
		return false, err
	}
	// Whoever is not root may still give a file to a group of his.
	if err := h.chown(-1, int(a.GID)); err != nil && !notHeld(err) {
		return false, err
	}
	var st unix.Statx_t
	if err := h.statx(&st); err != nil {
		return false, err
	}
	if st.Uid == a.UID && st.Gid == a.GID { // no owners, but the right ones
		return true, nil
	}
	n.note(LostOwner)
	return false, nil
}

// setMode sets the mode. A program that is to run as its owner must not do so as
// another.
func (n *node) setMode(h handle, owned bool) error {
	mode := n.attr.Mode & 0o7777
	if !owned && n.kind == filetree.File {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	if err := h.chmod(mode); err != nil {
		if !notHeld(err) {
			return err
		}
		n.note(LostMode)
		return nil
	}
	lost := mode != n.attr.Mode&0o7777
	if mode&0o7000 != 0 {
		// Set-group-id is dropped without a word for a group that is not ours.
		var st unix.Statx_t
		if err := h.statx(&st); err != nil {
			return err
		}
		lost = lost || uint32(st.Mode)&0o7777 != mode
	}
	if lost {
		n.note(LostMode)
	}
	return nil
}

func (n *node) setXattrs(h handle, which func(name string) bool) error {
	for _, x := range n.attr.Xattrs {
		if !which(x.Name) || x.Name == filetree.ProjectXattr {
			continue
		}
		if x.Name == filetree.ACLXattr {
			n.note(LostACL)
			continue
		}
		err := h.setxattr(x.Name, x.Value)
		switch {
		case err == nil:
		case notHeld(err), err == unix.ENOSPC, err == unix.EDQUOT:
			// ext4 has one block for the attributes of a node, and says ENOSPC when it
			// is full. A full disk shows soon enough.
			space, _, _ := strings.Cut(x.Name, ".")
			n.note(LostXattr(space))
		default:
			return err
		}
	}
	return nil
}

// pruneXattrs removes the attributes that the node should not have. Labels that the
// system gives are left alone.
func (n *node) pruneXattrs(h handle) error {
	names, err := h.xattrNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, "security.") && name != "security.capability" {
			continue
		}
		if slices.ContainsFunc(n.attr.Xattrs, func(x filetree.Xattr) bool { return x.Name == name }) {
			continue
		}
		if err := h.removexattr(name); err != nil && err != unix.ENODATA {
			if !notHeld(err) {
				return err
			}
			space, _, _ := strings.Cut(name, ".")
			n.note(LostXattr(space))
		}
	}
	return nil
}

// setFlags makes the flags in mask those of the node.
func (n *node) setFlags(h handle, mask uint32) {
	want := n.attr.Flags & mask
	if want == 0 && !n.prune {
		return
	}
	if h.path != "" { // a directory that may not be read
		if want != 0 {
			n.note(LostFlags)
		}
		return
	}
	if setFlags(h.fd, want, mask) != 0 {
		n.note(LostFlags)
	}
}

// setLast sets what a node gets in its place: its project, then what forbids all else.
func (n *node) setLast(h handle) {
	n.setProject(h)
	if n.attr.Flags&flagsLast != 0 {
		n.setFlags(h, flagsLast)
	}
}

// setTime sets the time of modification, and that of access to the same.
func (n *node) setTime(h handle) error {
	m := n.attr.Mtime
	ts, err := unix.TimeToTimespec(m.Time())
	if err == nil {
		err = h.utimes(&[2]unix.Timespec{ts, ts})
	}
	if err != nil {
		if !notHeld(err) {
			return err
		}
		n.note(LostTime)
		return nil
	}
	// A time that the file system cannot hold is changed without a word. All hold
	// 1970 to 2038, and whether one holds nanoseconds need only be seen once.
	inRange := m.Sec >= 0 && m.Sec < 1<<31
	if inRange && (m.Nsec == 0 || n.t.nanos.Load()) {
		return nil
	}
	var st unix.Statx_t
	if err := h.statx(&st); err != nil {
		return err
	}
	switch {
	case timeOf(st.Mtime) != m:
		n.note(LostTime)
	case m.Nsec != 0:
		n.t.nanos.Store(true)
	}
	return nil
}
