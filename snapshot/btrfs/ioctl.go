//go:build linux

package btrfs

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers from linux/btrfs.h and linux/btrfs_tree.h.
const (
	firstFreeObjectID = 256 // BTRFS_FIRST_FREE_OBJECTID: the inode number of a subvolume's root

	subvolReadOnly = 1 << 1 // BTRFS_SUBVOL_RDONLY
	subvolSpecByID = 1 << 4 // BTRFS_SUBVOL_SPEC_BY_ID

	rootSubvolReadOnly = 1 << 0 // BTRFS_ROOT_SUBVOL_RDONLY, in subvolInfo.flags

	sendNoFileData = 1 << 0 // BTRFS_SEND_FLAG_NO_FILE_DATA
	sendVersion    = 1 << 3 // BTRFS_SEND_FLAG_VERSION
	sendCompressed = 1 << 4 // BTRFS_SEND_FLAG_COMPRESSED
)

// volArgs is struct btrfs_ioctl_vol_args.
type volArgs struct {
	fd   int64
	name [4088]byte
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2.
type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	_       [4]uint64
	name    [4040]byte // or, with subvolSpecByID, the number in its first 8 bytes
}

// timespec is struct btrfs_ioctl_timespec. C pads it to 16 bytes; Go does not where
// 64-bit numbers need no alignment.
type timespec struct {
	sec  uint64
	nsec uint32
	_    uint32
}

func (t timespec) time() time.Time { return time.Unix(int64(t.sec), int64(t.nsec)).UTC() }

// subvolInfo is struct btrfs_ioctl_get_subvol_info_args.
type subvolInfo struct {
	treeid       uint64
	name         [256]byte
	parentID     uint64
	dirid        uint64
	generation   uint64
	flags        uint64
	uuid         [16]byte
	parentUUID   [16]byte
	receivedUUID [16]byte
	ctransid     uint64
	otransid     uint64
	stransid     uint64
	rtransid     uint64
	ctime        timespec
	otime        timespec
	stime        timespec
	rtime        timespec
	_            [8]uint64
}

// sendArgs is struct btrfs_ioctl_send_args.
type sendArgs struct {
	fd                int64
	cloneSourcesCount uint64
	cloneSources      *uint64
	parentRoot        uint64
	flags             uint64
	version           uint32
	_                 [28]byte
}

// rootRefs is struct btrfs_ioctl_get_subvol_rootref_args.
type rootRefs struct {
	minTreeID uint64
	refs      [255]struct{ treeID, dirID uint64 }
	count     uint8
	_         [7]byte
}

// inoLookup is struct btrfs_ioctl_ino_lookup_user_args.
type inoLookup struct {
	dirID  uint64
	treeID uint64
	name   [256]byte
	path   [3824]byte
}

// Request numbers as _IOR and _IOW of asm/ioctl.h make them. The bits for the
// direction differ between architectures; they are taken from requests that package
// unix knows for each.
const (
	ioctlMagic = 0x94
	iow        = unix.FICLONE & 0xe0000000         // _IOW(0x94, 9, int)
	ior        = unix.FS_IOC_GETFLAGS & 0xe0000000 // _IOR('f', 1, long)
	iowr       = iow | ior

	ioctlSubvolCreate  = iow | unsafe.Sizeof(volArgs{})<<16 | ioctlMagic<<8 | 14    // BTRFS_IOC_SUBVOL_CREATE
	ioctlSnapDestroy   = iow | unsafe.Sizeof(volArgs{})<<16 | ioctlMagic<<8 | 15    // BTRFS_IOC_SNAP_DESTROY
	ioctlSnapCreateV2  = iow | unsafe.Sizeof(volArgsV2{})<<16 | ioctlMagic<<8 | 23  // BTRFS_IOC_SNAP_CREATE_V2
	ioctlSend          = iow | unsafe.Sizeof(sendArgs{})<<16 | ioctlMagic<<8 | 38   // BTRFS_IOC_SEND
	ioctlGetSubvolInfo = ior | unsafe.Sizeof(subvolInfo{})<<16 | ioctlMagic<<8 | 60 // BTRFS_IOC_GET_SUBVOL_INFO
	ioctlGetRootRef    = iowr | unsafe.Sizeof(rootRefs{})<<16 | ioctlMagic<<8 | 61  // BTRFS_IOC_GET_SUBVOL_ROOTREF
	ioctlInoLookup     = iowr | unsafe.Sizeof(inoLookup{})<<16 | ioctlMagic<<8 | 62 // BTRFS_IOC_INO_LOOKUP_USER
	ioctlSnapDestroyV2 = iow | unsafe.Sizeof(volArgsV2{})<<16 | ioctlMagic<<8 | 63  // BTRFS_IOC_SNAP_DESTROY_V2
)

// ioctl returns a bare unix.Errno.
func ioctl(fd uintptr, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

// info returns the properties of the subvolume that f is in.
func info(f *os.File) (Info, error) {
	var a subvolInfo
	err := ioctl(f.Fd(), ioctlGetSubvolInfo, unsafe.Pointer(&a))
	runtime.KeepAlive(f)
	if err == unix.ENOTTY {
		return Info{}, fmt.Errorf("btrfs: %s: the kernel does not tell properties of subvolumes: Linux 4.18 is needed", f.Name())
	}
	if err != nil {
		return Info{}, explain("read properties of", f.Name(), err)
	}
	name, _, _ := bytes.Cut(a.name[:], []byte{0})
	return Info{
		ID:           a.treeid,
		Name:         string(name),
		ParentID:     a.parentID,
		ReadOnly:     a.flags&rootSubvolReadOnly != 0,
		UUID:         a.uuid,
		ParentUUID:   a.parentUUID,
		ReceivedUUID: a.receivedUUID,
		Generation:   a.generation,
		CTransID:     a.ctransid,
		OTransID:     a.otransid,
		CTime:        a.ctime.time(),
		OTime:        a.otime.time(),
	}, nil
}

// nested returns the paths of the subvolumes that lie directly in the one whose root is
// open as f. The error is a unix.Errno.
func nested(f *os.File) ([]string, error) {
	var paths []string
	var refs rootRefs
	for {
		err := ioctl(f.Fd(), ioctlGetRootRef, unsafe.Pointer(&refs))
		if err != nil && err != unix.EOVERFLOW { // that says that there are more
			return nil, err
		}
		for _, r := range refs.refs[:refs.count] {
			look := inoLookup{dirID: r.dirID, treeID: r.treeID}
			switch err := ioctl(f.Fd(), ioctlInoLookup, unsafe.Pointer(&look)); err {
			case nil:
			case unix.ENOENT: // destroyed or moved meanwhile
				continue
			default:
				return nil, err
			}
			dir, _, _ := bytes.Cut(look.path[:], []byte{0}) // ends in a slash, or is empty
			name, _, _ := bytes.Cut(look.name[:], []byte{0})
			paths = append(paths, string(dir)+string(name))
			refs.minTreeID = r.treeID + 1
		}
		if err == nil || refs.count == 0 {
			runtime.KeepAlive(f)
			return paths, nil
		}
	}
}

// createSubvolume makes an empty subvolume as entry name of d. The error is a
// unix.Errno.
func createSubvolume(d *os.File, name string) error {
	var a volArgs
	copy(a.name[:], name)
	err := ioctl(d.Fd(), ioctlSubvolCreate, unsafe.Pointer(&a))
	runtime.KeepAlive(d)
	return err
}

// createSnapshot makes a read-only snapshot of src as entry name of d, and commits the
// transaction. The error is a unix.Errno.
func createSnapshot(d, src *os.File, name string) error {
	a := volArgsV2{fd: int64(src.Fd()), flags: subvolReadOnly}
	copy(a.name[:], name)
	err := ioctl(d.Fd(), ioctlSnapCreateV2, unsafe.Pointer(&a))
	runtime.KeepAlive(d)
	runtime.KeepAlive(src)
	return err
}

// destroyByID destroys a subvolume of the file system that d is on. The error is a
// unix.Errno.
func destroyByID(d *os.File, id uint64) error {
	a := volArgsV2{flags: subvolSpecByID}
	*(*uint64)(unsafe.Pointer(&a.name)) = id // 8-byte aligned: at offset 56
	err := ioctl(d.Fd(), ioctlSnapDestroyV2, unsafe.Pointer(&a))
	runtime.KeepAlive(d)
	return err
}

// destroyByName destroys the subvolume that is entry name of d. The error is a
// unix.Errno.
func destroyByName(d *os.File, name string) error {
	var a volArgs
	copy(a.name[:], name)
	err := ioctl(d.Fd(), ioctlSnapDestroy, unsafe.Pointer(&a))
	runtime.KeepAlive(d)
	return err
}

// explain returns an error that says what to do about err, where we know.
func explain(op, path string, err error) error {
	if hint := hint(op, err); hint != "" {
		return fmt.Errorf("btrfs: %s %s: %w: %s", op, path, err, hint)
	}
	return fmt.Errorf("btrfs: %s %s: %w", op, path, err)
}

func hint(op string, err error) string {
	send := op == "send"
	switch err {
	case unix.EPERM, unix.EACCES:
		switch {
		case os.Geteuid() != 0:
			return "run as root"
		case op == "destroy snapshot":
			return "is it being sent, or is CAP_SYS_ADMIN missing, as in a container?"
		case send:
			return "has it or its base been made writable, or is CAP_SYS_ADMIN missing, as in a container?"
		}
		return "is CAP_SYS_ADMIN missing, as in a container?"
	case unix.EAGAIN:
		if send {
			return "its extents are being deduplicated; try again when that is done"
		}
	case unix.ENAMETOOLONG:
		if send {
			return "a path in it is longer than the 4096 bytes that the kernel can send; shorten it in the source and take a new snapshot"
		}
		return "Btrfs has names of at most 255 bytes"
	case unix.EXDEV:
		return "the source and its snapshots have to be on one file system"
	case unix.ETXTBSY:
		return "a swap file in the source is in use"
	case unix.EROFS:
		return "the file system is mounted read-only, perhaps after an error; see dmesg"
	case unix.EDQUOT:
		return "a quota group is full"
	case unix.ENOSPC:
		return "free some space, or see btrfs filesystem usage"
	case unix.EIO, unix.EUCLEAN:
		return "the file system is damaged; see dmesg and run btrfs scrub"
	case unix.ENOTTY, unix.EOPNOTSUPP:
		return "this kernel cannot do it"
	case unix.EPROTO, unix.EINVAL:
		if send {
			return "this kernel does not know the version of the stream that was asked for"
		}
	}
	return ""
}
