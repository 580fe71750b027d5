package zpl

import (
	"errors"
	"fmt"

	"github.com/secrate/secrate/internal/filetree"
)

// Types of objects and bonuses that matter here (DMU_OT_*, section 4.1).
const (
	TypeZnode       = 17 // bonus: znode of ZPL < 5
	TypeOldACL      = 18 // external ACL, version 0
	TypeFile        = 19 // contents of all that is no directory
	TypeDirectory   = 20
	TypeMasterNode  = 21
	TypeDeleteQueue = 22
	TypeACL         = 33 // external ACL
	TypeFUID        = 35 // FUID table
	TypeFUIDSize    = 36 // bonus: bytes used of a FUID table
	TypeSA          = 44 // bonus: system attributes
	TypeSAMaster    = 45
	TypeSARegistry  = 46
	TypeSALayouts   = 47
)

// MasterNodeObject is the number of the master node.
const MasterNodeObject = 1

// IsZAP reports whether the data of objects of this type is a ZAP that is needed to
// tell what the files of a dataset are.
func IsZAP(objectType uint32) bool {
	switch objectType {
	case TypeDirectory, TypeMasterNode, TypeDeleteQueue, TypeSAMaster, TypeSARegistry, TypeSALayouts:
		return true
	}
	return false
}

// A FormatError reports bytes that are not what they should be.
type FormatError struct {
	What   string // the structure
	Offset int    // of what is wrong, in the bytes passed in
	Err    error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("zpl: %s at offset %d: %v", e.What, e.Offset, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

// errShort says that a structure ends too early.
var errShort = errors.New("cut short")

func bad(what string, offset int, format string, args ...any) error {
	return &FormatError{what, offset, fmt.Errorf(format, args...)}
}

// KindOf returns the kind of a node by the type bits of its mode (0170000), and 0 if
// they are none of the known ones.
func KindOf(mode uint64) filetree.Kind { return kinds[mode>>12&15] }

// kinds is indexed by the type bits of a mode, as directory entries have them, too.
var kinds = [16]filetree.Kind{
	1: filetree.Fifo, 2: filetree.CharDev, 4: filetree.Dir, 6: filetree.BlkDev,
	8: filetree.File, 10: filetree.Symlink, 12: filetree.Socket,
}

// roundup8 returns n rounded up to a multiple of 8.
func roundup8(n int) int { return (n + 7) &^ 7 }
