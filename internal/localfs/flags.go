package localfs

import (
	"golang.org/x/sys/unix"
)

// Inode flags, FS_*_FL in linux/fs.h.
const (
	flagCompr     = 0x00000004
	flagSync      = 0x00000008
	flagImmutable = 0x00000010
	flagAppend    = 0x00000020
	flagNodump    = 0x00000040
	flagNoatime   = 0x00000080
	flagNocomp    = 0x00000400
	flagDirsync   = 0x00010000
	flagNocow     = 0x00800000
	// flagProject makes a directory hand down its project id. It is set, with the id, but
	// never taken away: where the history has none, the ids of a target are the quotas of
	// whoever made it.
	flagProject = 0x20000000

	// flagsOfData shape how data is stored, so they are set while a file is empty.
	flagsOfData = flagCompr | flagNocomp | flagNocow
	// flagsLast forbid whatever would come after them.
	flagsLast = flagImmutable | flagAppend
	// flagsSettable are all those that a Target restores.
	flagsSettable = flagsOfData | flagsLast | flagSync | flagNodump | flagNoatime | flagDirsync

	// flagsOfState tell how a file system keeps a node just now: dirty, with
	// compressed blocks, indexed, huge, in extents, with attribute inodes, blocks
	// after its end or inline data. Nobody chose them, and some change by themselves.
	flagsOfState = 0x00000100 | 0x00000200 | 0x00001000 | 0x00040000 | 0x00080000 |
		0x00200000 | 0x00400000 | 0x10000000 | 0x80000000
)

// getFlags returns the flags of an open file or directory without those of state,
// and whether the file system has any.
func getFlags(fd int) (flags uint32, ok bool, err error) {
	flags, err = unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		if unsupported(err) {
			err = nil
		}
		return 0, false, err
	}
	return flags &^ flagsOfState, true, nil
}

// setFlags makes the flags in mask those of want, as far as they can be set, and
// returns those that could not.
func setFlags(fd int, want, mask uint32) (lost uint32) {
	now, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return want & mask
	}
	next := now&^mask | want&mask
	if next == now || unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(next)) == nil {
		return 0
	}
	// A file system refuses them all for one that it does not know.
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if (now^next)&bit == 0 {
			continue
		}
		if unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(now^bit)) == nil {
			now ^= bit
		} else {
			lost |= bit
		}
	}
	return lost
}
