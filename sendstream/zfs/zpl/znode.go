package zpl

import (
	"encoding/binary"

	"github.com/secrate/secrate/internal/filetree"
)

// Offsets in a znode, the bonus of ZPL versions before 5 (section 4.4).
const (
	znodeAtime    = 0
	znodeMtime    = 16
	znodeCtime    = 32
	znodeCrtime   = 48
	znodeGen      = 64
	znodeMode     = 72
	znodeDataSize = 80
	znodeParent   = 88
	znodeLinks    = 96
	znodeXattr    = 104
	znodeRdev     = 112
	znodeFlags    = 120
	znodeUID      = 128
	znodeGID      = 136
	znodeACL      = 176
	znodeSize     = 264 // what is behind it is a link's target or a scan stamp

	znodeACLSize  = 88
	scanStampSize = 32
)

// DecodeZnode decodes a bonus of type 17, in the byte order of the stream. All but
// Symlink and ScanStamp are always there. A target that does not fit is in the
// object's data.
func DecodeZnode(bonus []byte, order binary.ByteOrder) (Attr, error) {
	if len(bonus) < znodeSize {
		return Attr{}, &FormatError{"znode", len(bonus), errShort}
	}
	u64 := func(off int) uint64 { return order.Uint64(bonus[off:]) }
	time := func(off int) filetree.Time { return timeOf(u64(off), u64(off+8)) }
	a := Attr{
		Present: HasAtime | HasMtime | HasCtime | HasCrtime | HasGen | HasMode | HasSize | HasParent |
			HasLinks | HasXattr | HasRdev | HasFlags | HasUID | HasGID | HasZnodeACL,
		Atime:    time(znodeAtime),
		Mtime:    time(znodeMtime),
		Ctime:    time(znodeCtime),
		Crtime:   time(znodeCrtime),
		Gen:      u64(znodeGen),
		Mode:     u64(znodeMode),
		Size:     u64(znodeDataSize),
		Parent:   u64(znodeParent),
		Links:    u64(znodeLinks),
		Xattr:    u64(znodeXattr),
		Rdev:     u64(znodeRdev),
		Flags:    Flags(u64(znodeFlags)),
		UID:      FUID(u64(znodeUID)),
		GID:      FUID(u64(znodeGID)),
		znodeACL: bonus[znodeACL : znodeACL+znodeACLSize],
		order:    order,
	}
	rest := bonus[znodeSize:]
	switch KindOf(a.Mode) {
	case filetree.Symlink:
		if a.Size <= uint64(len(rest)) {
			a.Symlink = rest[:a.Size:a.Size]
			a.Present |= HasSymlink
		}
	case filetree.File:
		if a.Flags&FlagScanStamp != 0 && len(rest) >= scanStampSize {
			a.ScanStamp = rest[:scanStampSize:scanStampSize]
			a.Present |= HasScanStamp
		}
	}
	return a, nil
}
