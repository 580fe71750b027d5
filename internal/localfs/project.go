package localfs

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// An fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	xflags, extsize, nextents, projid, cowextsize uint32
	_                                             [8]byte
}

// The ioctls 'X' 31 and 32, which golang.org/x/sys/unix does not have. What says the
// direction differs between processors; these are as it is in those for flags.
const (
	direction       = 0xe0000000
	fsIocFSGetXattr = unix.FS_IOC_GETFLAGS&direction | uint(unsafe.Sizeof(fsxattr{}))<<16 | 'X'<<8 | 31
	fsIocFSSetXattr = unix.FS_IOC_SETFLAGS&direction | uint(unsafe.Sizeof(fsxattr{}))<<16 | 'X'<<8 | 32
)

func ioctlFSXattr(fd int, req uint, x *fsxattr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(x)))
	if errno != 0 {
		return errno
	}
	return nil
}

// getProject returns the project id of an open file or directory.
func getProject(fd int) (uint32, error) {
	var x fsxattr
	err := ioctlFSXattr(fd, fsIocFSGetXattr, &x)
	return x.projid, err
}

// setProject sets it, and nothing else.
func setProject(fd int, id uint32) error {
	var x fsxattr
	if err := ioctlFSXattr(fd, fsIocFSGetXattr, &x); err != nil || x.projid == id {
		return err
	}
	x.projid = id
	return ioctlFSXattr(fd, fsIocFSSetXattr, &x)
}

// hasProjects reports whether an open file or directory could have a project id.
func hasProjects(fd int) bool {
	_, err := getProject(fd)
	return err == nil
}

// project returns the project id that the node should have; ok says whether there is one.
func (n *node) project() (id string, ok bool) {
	for _, x := range n.attr.Xattrs {
		if x.Name == filetree.ProjectXattr {
			return string(x.Value), true
		}
	}
	return "", false
}

func (n *node) hasProject() bool {
	_, ok := n.project()
	return ok
}

// setProject sets the project id of a file or directory, and whether a directory hands it
// down. What has none is left with what its directory has handed down to it. The node has
// to be in its place: nothing gets by rename into a directory that hands down another id.
func (n *node) setProject(h handle) {
	text, ok := n.project()
	if ok {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil || h.path != "" || setProject(h.fd, uint32(id)) != nil {
			n.note(LostProject)
		}
	}
	if n.attr.Flags&flagProject == 0 || !ok && n.kind != filetree.Dir {
		return
	}
	// A file has nobody to hand it down to, and only ZFS lets it have the flag.
	if lost := h.path != "" || setFlags(h.fd, flagProject, flagProject) != 0; lost && n.kind == filetree.Dir {
		n.note(LostFlags)
	}
}
