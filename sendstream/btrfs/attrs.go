package btrfs

import (
	"bytes"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
)

// attrs collects attribute commands for one node, so that they become one call.
// A later command has the last word on what it sets, as it would have had alone.
type attrs struct {
	offset int64 // of the first command
	what   string

	mode, owner, times, birth, flags bool // are set to:

	perm         uint32
	uid, gid     uint32
	mtime, ctime filetree.Time
	btime        filetree.Time
	fsFlags      uint32

	xattrs []xattrChange
	bytes  int // of xattrs
}

// An xattrChange sets an extended attribute, or removes it.
type xattrChange struct {
	filetree.Xattr
	remove bool
}

// maxXattrs and maxXattrBytes bound what is collected.
const (
	maxXattrs     = 256
	maxXattrBytes = 1 << 20
)

// add notes what c sets. The name and value of c are copied.
func (s *attrs) add(c *Command) {
	switch c.Type {
	case Chmod:
		s.mode, s.perm = true, c.Mode
	case Chown:
		s.owner, s.uid, s.gid = true, c.UID, c.GID
	case Utimes:
		s.times, s.mtime, s.ctime = true, c.Mtime, c.Ctime
		if c.HasOtime {
			s.birth, s.btime = true, c.Otime
		}
	case FileAttr:
		s.flags, s.fsFlags = true, fsFlags(c.FileAttr)
	case SetXattr, RemoveXattr:
		s.xattrs = append(s.xattrs, xattrChange{
			Xattr:  filetree.Xattr{Name: string(c.XattrName), Value: bytes.Clone(c.XattrData)},
			remove: c.Type == RemoveXattr,
		})
		s.bytes += len(c.XattrName) + len(c.XattrData)
	}
}

func (s *attrs) full() bool { return len(s.xattrs) >= maxXattrs || s.bytes >= maxXattrBytes }

// apply changes a. Removing an attribute that is not there changes nothing: the
// sender forgets some when they are set, but not when they are removed.
func (s *attrs) apply(a *filetree.Attr) {
	if s.mode {
		a.Mode = s.perm
	}
	if s.owner {
		a.UID, a.GID = s.uid, s.gid
	}
	if s.times {
		a.Mtime, a.Ctime = s.mtime, s.ctime
	}
	if s.birth {
		a.Btime = s.btime
	}
	if s.flags {
		a.Flags = s.fsFlags
	}
	if len(s.xattrs) == 0 {
		return
	}
	x := slices.Clone(a.Xattrs) // not ours to change
	for _, ch := range s.xattrs {
		i, found := slices.BinarySearchFunc(x, ch.Name, func(x filetree.Xattr, name string) int {
			return strings.Compare(x.Name, name)
		})
		switch {
		case found && ch.remove:
			x = slices.Delete(x, i, i+1)
		case found:
			x[i] = ch.Xattr
		case !ch.remove:
			x = slices.Insert(x, i, ch.Xattr)
		}
	}
	a.Xattrs = x
}

// attribute collects c. Commands about other things may come in between, as long
// as the node does not go away.
func (a *applier) attribute(c *Command) error {
	if a.creating && bytes.Equal(c.Path, a.newborn.path) && !a.attrs.full() {
		a.attrs.add(c)
		return nil
	}
	if err := a.create(); err != nil {
		return err
	}
	n, err := a.resolve(c.Path)
	if err != nil {
		return err
	}
	if n.ghost() {
		a.forget(n)
		return nil
	}
	if a.attrsOf != n.id || a.attrs.full() {
		if err := a.setAttrs(); err != nil {
			return err
		}
		a.attrsOf = n.id
		a.attrs = attrs{offset: c.Offset, what: c.Type.String()}
	}
	a.attrs.add(c)
	return nil
}

// setAttrs passes on what was collected.
func (a *applier) setAttrs() error {
	if a.attrsOf == 0 {
		return nil
	}
	err := a.up.SetAttr(a.attrsOf, a.attrs.apply)
	if err != nil {
		err = refused(a.attrs.offset, a.attrs.what, err)
	}
	a.attrsOf = 0
	a.attrs = attrs{}
	return err
}

// inodeFlags maps the flags of an inode on disk (BTRFS_INODE_*), which FILEATTR
// has, to those of FS_IOC_GETFLAGS. The others have no counterpart: 0x1 no
// checksums, 0x4 read-only; and 0x10, which says that there are or were
// preallocated extents and is nobody's choice.
var inodeFlags = [...]struct {
	inode uint64
	fs    uint32
}{
	{0x2, 0x00800000},   // NODATACOW: FS_NOCOW_FL
	{0x8, 0x00000400},   // NOCOMPRESS: FS_NOCOMP_FL
	{0x20, 0x00000008},  // SYNC: FS_SYNC_FL
	{0x40, 0x00000010},  // IMMUTABLE: FS_IMMUTABLE_FL
	{0x80, 0x00000020},  // APPEND: FS_APPEND_FL
	{0x100, 0x00000040}, // NODUMP: FS_NODUMP_FL
	{0x200, 0x00000080}, // NOATIME: FS_NOATIME_FL
	{0x400, 0x00010000}, // DIRSYNC: FS_DIRSYNC_FL
	{0x800, 0x00000004}, // COMPRESS: FS_COMPR_FL
}

func fsFlags(inode uint64) uint32 {
	var fs uint32
	for _, f := range inodeFlags {
		if inode&f.inode != 0 {
			fs |= f.fs
		}
	}
	return fs
}
