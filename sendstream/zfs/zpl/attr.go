package zpl

import (
	"encoding/binary"

	"github.com/secrate/secrate/internal/filetree"
)

// An AttrSet says which attributes there are.
type AttrSet uint32

// The attributes that are known, by their names in the registry (section 4.3).
const (
	HasAtime AttrSet = 1 << iota
	HasMtime
	HasCtime
	HasCrtime
	HasGen
	HasMode
	HasSize
	HasParent
	HasLinks
	HasXattr
	HasRdev
	HasFlags
	HasUID
	HasGID
	HasPad
	HasZnodeACL
	HasDACLCount
	HasSymlink
	HasScanStamp
	HasDACLACEs
	HasDXattr
	HasProjID
	HasSeq
)

// Has reports whether all of set are there.
func (s AttrSet) Has(set AttrSet) bool { return s&set == set }

// An Attr is what bonus and spill say of an object. What is not in Present is zero.
// Slices are parts of the buffers that were decoded.
type Attr struct {
	Present AttrSet

	Mode   uint64 // st_mode, with the bits of the type
	Size   uint64 // bytes; of directories entries + 2, of links the length of the target
	Gen    uint64 // transaction group of creation: with the object number it identifies a file
	UID    FUID
	GID    FUID
	Parent uint64 // an object number, right for directories only (section 4.5)
	Flags  Flags
	Links  uint64 // of directories 2 + subdirectories

	Atime, Mtime, Ctime, Crtime filetree.Time

	Xattr  uint64 // object number of the directory of extended attributes; 0 if there is none
	Rdev   uint64 // of devices; see SplitRdev
	ProjID uint64
	Seq    uint64 // change counter

	// Symlink is the target of a link if it is among the attributes; else it is the
	// first Size bytes of the object's data.
	Symlink   []byte
	DXattr    []byte // packed: see Attr.Xattrs
	ScanStamp []byte // of a virus scanner, 32 bytes

	// Other are attributes whose names are not known, in the order of the layout.
	Other []Opaque

	dacl      []byte // ACEs, whose number is
	daclCount uint64
	znodeACL  []byte // 88 bytes, section 4.6
	order     binary.ByteOrder
}

// An Opaque is an attribute that this package does not know.
type Opaque struct {
	ID    uint16
	Class Class
	Data  []byte
}

// Flags are the ZFS flags of a file (section 4.4).
type Flags uint64

// The flags that matter here. Archive and AVModified are set on nearly every file and
// say nothing.
const (
	FlagXattr          Flags = 1 << 0 // the object is a directory of extended attributes or lives in one
	FlagACLTrivial     Flags = 1 << 2 // the ACL says no more than the mode
	FlagScanStamp      Flags = 1 << 7 // of a znode: there is a scan stamp behind it
	FlagNoExecsDenied  Flags = 1 << 8 // a cache
	FlagReadOnly       Flags = 1 << 32
	FlagHidden         Flags = 1 << 33
	FlagSystem         Flags = 1 << 34
	FlagArchive        Flags = 1 << 35
	FlagImmutable      Flags = 1 << 36
	FlagNoUnlink       Flags = 1 << 37
	FlagAppendOnly     Flags = 1 << 38
	FlagNoDump         Flags = 1 << 39
	FlagOpaque         Flags = 1 << 40
	FlagAVQuarantined  Flags = 1 << 41
	FlagAVModified     Flags = 1 << 42
	FlagReparse        Flags = 1 << 43
	FlagOffline        Flags = 1 << 44
	FlagSparse         Flags = 1 << 45
	FlagProjectInherit Flags = 1 << 46
	FlagProjID         Flags = 1 << 47 // there is a project id

	// FlagNoise change without anybody's doing (section 7.4).
	FlagNoise = FlagArchive | FlagAVModified | FlagNoExecsDenied
)

// fsFlags are the flags that FS_IOC_GETFLAGS of Linux knows.
var fsFlags = [...]struct {
	flag Flags
	fs   uint32
}{
	{FlagImmutable, 0x00000010},      // FS_IMMUTABLE_FL
	{FlagAppendOnly, 0x00000020},     // FS_APPEND_FL
	{FlagNoDump, 0x00000040},         // FS_NODUMP_FL
	{FlagProjectInherit, 0x20000000}, // FS_PROJINHERIT_FL
}

// FS returns the flags as FS_IOC_GETFLAGS of ZFS on Linux does. The others have no
// counterpart there.
func (f Flags) FS() uint32 {
	var fs uint32
	for _, m := range fsFlags {
		if f&m.flag != 0 {
			fs |= m.fs
		}
	}
	return fs
}

// SplitRdev returns major and minor of a device number. Linux puts 20 bits of minor
// number into it, FreeBSD and illumos 32, which shows if the major number is not 0.
// zfs-fuse wrote 8, and that cannot be told (section 4.4).
func SplitRdev(rdev uint64) (major, minor uint32) {
	if rdev>>32 != 0 {
		return uint32(rdev >> 32), uint32(rdev)
	}
	return uint32(rdev >> 20), uint32(rdev & (1<<20 - 1))
}

// timeOf converts seconds, which are signed, and nanoseconds, which can be out of
// range in odd pools and are then clamped.
func timeOf(sec, nsec uint64) filetree.Time {
	return filetree.Time{Sec: int64(sec), Nsec: uint32(min(nsec, 999_999_999))}
}

// A Head is the part of a bonus that every known ZPL writes at the same place.
type Head struct {
	Mode, Size, Gen uint64
	UID, GID        FUID
	Parent          uint64
	Flags           Flags
}

// DecodeHead reads the beginning of a bonus by its type, without the layouts of the
// dataset (the shortcut of section 4.2). It is for what cannot wait for them: Gen,
// which tells a file from another one that has taken its number, and Flags. order is
// that of the stream. ok is false if there are no attributes yet.
func DecodeHead(bonusType uint32, bonus []byte, order binary.ByteOrder) (h Head, ok bool) {
	switch bonusType {
	case TypeZnode:
		if len(bonus) < znodeSize {
			return h, false
		}
		u64 := func(off int) uint64 { return order.Uint64(bonus[off:]) }
		return Head{
			Mode: u64(znodeMode), Size: u64(znodeDataSize), Gen: u64(znodeGen),
			UID: FUID(u64(znodeUID)), GID: FUID(u64(znodeGID)),
			Parent: u64(znodeParent), Flags: Flags(u64(znodeFlags)),
		}, true
	case TypeSA:
		order, layout, start, err := saHeader(bonus)
		if err != nil || layout < firstLayout || len(bonus) < start+56 {
			return h, false
		}
		u64 := func(off int) uint64 { return order.Uint64(bonus[start+off:]) }
		return Head{
			Mode: u64(0), Size: u64(8), Gen: u64(16), UID: FUID(u64(24)), GID: FUID(u64(32)),
			Parent: u64(40), Flags: Flags(u64(48)),
		}, true
	}
	return h, false
}
