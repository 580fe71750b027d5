package zpl

import (
	"encoding/binary"

	"github.com/secrate/secrate/internal/filetree"
)

// An ACE is an entry of an NFSv4 access control list (section 4.6). Type, Flags and
// Mask have the numbers of NFSv4, and two flags more: group@ and everyone@.
type ACE struct {
	Type  uint16
	Flags uint16
	Mask  uint32
	// Who is the user or, with ACEGroup, the group. It is 0 for owner@, group@ and
	// everyone@.
	Who FUID
	// Object and InheritedObject are there in types 5 to 8 only.
	Object, InheritedObject [16]byte
}

// Flags of an ACE that say whom it is for.
const (
	ACEGroup    = 0x0040 // who is a group
	ACEOwner    = 0x1000 // owner@
	ACEOwnGroup = 0x2000 // with ACEGroup: group@
	ACEEveryone = 0x4000 // everyone@
)

// Types of ACEs.
const (
	ACEAllow = 0
	ACEDeny  = 1

	firstObjectACE = 5 // with object types
	lastObjectACE  = 8
)

// Special reports whether the ACE is for owner@, group@ or everyone@. Only together
// with a plain type the ACE is then stored without an id.
func (e *ACE) Special() bool {
	switch e.Flags & (ACEOwner | ACEOwnGroup | ACEEveryone | ACEGroup) {
	case ACEOwner, ACEOwnGroup | ACEGroup, ACEEveryone:
		return true
	}
	return false
}

// short reports whether it is stored in 8 bytes.
func (e *ACE) short() bool { return e.Type <= ACEDeny && e.Special() }

// object reports whether it has the two object types.
func (e *ACE) object() bool { return e.Type >= firstObjectACE && e.Type <= lastObjectACE }

const (
	oldACESize    = 12 // version 0
	shortACESize  = 8
	userACESize   = 16
	objectACESize = 48
)

// ParseACEs decodes count entries of an ACL of version 0 or 1, which must fill b but
// for padding: what is behind them is not looked at. Errors are *FormatError.
func ParseACEs(b []byte, version uint16, count uint64, order binary.ByteOrder) ([]ACE, error) {
	least := shortACESize
	if version == 0 {
		least = oldACESize
	}
	if version > 1 || count > uint64(len(b)/least) {
		return nil, bad("ACL", 0, "version %d, %d entries in %d bytes", version, count, len(b))
	}
	aces := make([]ACE, count)
	off := 0
	for i := range aces {
		n, err := aces[i].parse(b[off:], version, order)
		if err != nil {
			return nil, &FormatError{"ACL", off, err}
		}
		off += n
	}
	return aces, nil
}

// parse decodes the entry at the start of b and returns its length.
func (e *ACE) parse(b []byte, version uint16, order binary.ByteOrder) (int, error) {
	if version == 0 {
		if len(b) < oldACESize {
			return 0, errShort
		}
		e.Who, e.Mask = FUID(order.Uint32(b)), order.Uint32(b[4:])
		e.Flags, e.Type = order.Uint16(b[8:]), order.Uint16(b[10:])
		if e.Special() {
			e.Who = 0 // all ones in what was seen
		}
		return oldACESize, nil
	}
	if len(b) < shortACESize {
		return 0, errShort
	}
	e.Type, e.Flags, e.Mask = order.Uint16(b), order.Uint16(b[2:]), order.Uint32(b[4:])
	if e.short() {
		return shortACESize, nil
	}
	size := userACESize
	if e.object() {
		size = objectACESize
	}
	if len(b) < size {
		return 0, errShort
	}
	e.Who = FUID(order.Uint64(b[8:]))
	if e.object() {
		copy(e.Object[:], b[16:])
		copy(e.InheritedObject[:], b[32:])
	}
	return size, nil
}

// AppendACEs appends aces in version 1 and little endian, whatever they were read
// from: the value of [ACLXattr].
func AppendACEs(b []byte, aces []ACE) []byte {
	le := binary.LittleEndian
	for i := range aces {
		e := &aces[i]
		b = le.AppendUint16(b, e.Type)
		b = le.AppendUint16(b, e.Flags)
		b = le.AppendUint32(b, e.Mask)
		if e.short() {
			continue
		}
		b = le.AppendUint64(b, uint64(e.Who))
		if e.object() {
			b = append(b, e.Object[:]...)
			b = append(b, e.InheritedObject[:]...)
		}
	}
	return b
}

// ACLXattr is the name under which an ACL that says more than the mode is kept with
// the extended attributes. It is ours: no kernel has it, so nothing but a ZFS restore
// that knows it will take it for an ACL. Its value is the ACEs in version 1, little
// endian, without a header (section 4.6); owners are FUIDs of the dataset.
const ACLXattr = filetree.ACLXattr

// An ACL is the access control list of an object.
type ACL struct {
	// External is the object whose data has the entries, or 0 if ACEs does: see
	// ParseACEs. Only znodes have it.
	External uint64
	Version  uint16
	Count    uint64
	ACEs     []ACE
}

// ACL decodes the list. It is empty if there is none. Errors are *FormatError, with
// offsets from the beginning of the attribute.
func (a *Attr) ACL() (ACL, error) {
	switch {
	case a.Present.Has(HasDACLACEs):
		aces, err := ParseACEs(a.dacl, 1, a.daclCount, a.order)
		return ACL{Version: 1, Count: a.daclCount, ACEs: aces}, err
	case a.Present.Has(HasZnodeACL):
		return parseZnodeACL(a.znodeACL, a.order)
	}
	return ACL{}, nil
}

// TrivialACL reports whether the ACL says no more than the mode, as ZFS has found, or
// there is none. Then Mode is all there is to keep.
func (a *Attr) TrivialACL() bool {
	return a.Flags&FlagACLTrivial != 0 || a.Present&(HasDACLACEs|HasZnodeACL) == 0
}

// ACLXattr returns the extended attribute for an ACL that is not trivial and is among
// the attributes; ok says whether there is one. Errors are *FormatError.
func (a *Attr) ACLXattr() (x filetree.Xattr, ok bool, err error) {
	if a.TrivialACL() {
		return x, false, nil
	}
	acl, err := a.ACL()
	if err != nil || len(acl.ACEs) == 0 {
		return x, false, err
	}
	return filetree.Xattr{Name: ACLXattr, Value: AppendACEs(nil, acl.ACEs)}, true, nil
}

// parseZnodeACL decodes the 88 bytes that a znode has for its ACL.
func parseZnodeACL(b []byte, order binary.ByteOrder) (ACL, error) {
	const inline = 16 // where entries begin
	acl := ACL{External: order.Uint64(b), Version: order.Uint16(b[12:]), Count: uint64(order.Uint16(b[14:]))}
	if acl.Version == 0 {
		acl.Count = uint64(order.Uint32(b[8:])) // and the other one is the size in bytes
	}
	if acl.External != 0 {
		return acl, nil
	}
	var err error
	acl.ACEs, err = ParseACEs(b[inline:], acl.Version, acl.Count, order)
	return acl, err
}
