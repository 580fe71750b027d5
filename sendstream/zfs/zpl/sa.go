package zpl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// A Class says what the integers of an attribute are, and so how bytes are swapped.
type Class uint8

// The classes of attributes (section 4.3).
const (
	ClassUint64 Class = 0
	ClassUint32 Class = 1
	ClassUint16 Class = 2
	ClassBytes  Class = 3
	ClassACL    Class = 4
)

// ErrLayout is wrapped by the errors of [Registry.Decode] that report a layout the
// registry does not have: it may come later in the stream.
var ErrLayout = errors.New("unknown layout")

// ErrTwice is wrapped by the errors of [Registry.Decode] that report an attribute
// which is in both the bonus and the spill. If the stream does not say which objects
// have a spill block, the spill is then a stale one (section 3.6).
var ErrTwice = errors.New("attribute in bonus and spill")

// known are the attributes with a meaning, by their names in the registry, with
// their lengths; 0 is any.
var known = map[string]struct {
	attr   AttrSet
	length uint16
}{
	"ZPL_ATIME":      {HasAtime, 16},
	"ZPL_MTIME":      {HasMtime, 16},
	"ZPL_CTIME":      {HasCtime, 16},
	"ZPL_CRTIME":     {HasCrtime, 16},
	"ZPL_GEN":        {HasGen, 8},
	"ZPL_MODE":       {HasMode, 8},
	"ZPL_SIZE":       {HasSize, 8},
	"ZPL_PARENT":     {HasParent, 8},
	"ZPL_LINKS":      {HasLinks, 8},
	"ZPL_XATTR":      {HasXattr, 8},
	"ZPL_RDEV":       {HasRdev, 8},
	"ZPL_FLAGS":      {HasFlags, 8},
	"ZPL_UID":        {HasUID, 8},
	"ZPL_GID":        {HasGID, 8},
	"ZPL_PAD":        {HasPad, 32},
	"ZPL_ZNODE_ACL":  {HasZnodeACL, znodeACLSize},
	"ZPL_DACL_COUNT": {HasDACLCount, 8},
	"ZPL_SYMLINK":    {HasSymlink, 0},
	"ZPL_SCANSTAMP":  {HasScanStamp, scanStampSize},
	"ZPL_DACL_ACES":  {HasDACLACEs, 0},
	"ZPL_DXATTR":     {HasDXattr, 0},
	"ZPL_PROJID":     {HasProjID, 8},
	"ZPL_SEQ":        {HasSeq, 8},
}

// A Registry knows the attributes and layouts of a dataset. The zero Registry knows
// none, which is right for datasets of ZPL < 5. A Registry is not changed once made
// and may be used concurrently.
type Registry struct {
	layouts map[uint16]*layout
}

// A layout is the list of attributes of a buffer.
type layout struct {
	fields   []field
	variable int   // fields of variable length
	err      error // why it cannot be used
}

// A field is an attribute at its place in a layout.
type field struct {
	attr   AttrSet // 0: not known
	id     uint16
	class  Class
	length uint16 // in bytes; 0: variable
}

const (
	firstLayout = 2 // 0 and 1 are empty
	maxLayout   = 1<<10 - 1
	maxFields   = 1000
)

// NewRegistry makes a Registry from the entries of the objects REGISTRY and LAYOUTS
// (section 4.3), either of which may be empty. A layout that is damaged makes
// NewRegistry succeed and the objects that use it fail. Errors are *FormatError.
func NewRegistry(registry, layouts []Entry) (*Registry, error) {
	attrs := make(map[uint16]field, len(registry))
	for i := range registry {
		e := &registry[i]
		v, ok := e.Uint64()
		if !ok {
			return nil, bad("SA registry", 0, "%q is not one integer of 64 bits", e.Name)
		}
		f := field{id: uint16(v), class: Class(v >> 16), length: uint16(v >> 24)}
		k, ok := known[string(e.Name)]
		if ok && k.length != f.length {
			return nil, bad("SA registry", 0, "%s has %d bytes, not %d", e.Name, f.length, k.length)
		}
		f.attr = k.attr
		if _, taken := attrs[f.id]; taken {
			return nil, bad("SA registry", 0, "two attributes have the id %d", f.id)
		}
		attrs[f.id] = f
	}
	r := &Registry{layouts: make(map[uint16]*layout, len(layouts))}
	for i := range layouts {
		e := &layouts[i]
		n, err := strconv.ParseUint(string(e.Name), 10, 16)
		if err != nil || n < firstLayout || n > maxLayout {
			return nil, bad("SA layouts", 0, "%q is no number of a layout", e.Name)
		}
		r.layouts[uint16(n)] = compile(e, attrs)
	}
	return r, nil
}

// compile looks up the attributes that a layout lists.
func compile(e *Entry, attrs map[uint16]field) *layout {
	ids := e.Integers()
	if len(ids) > maxFields || e.IntSize != 2 {
		return &layout{err: fmt.Errorf("layout %s: %d attributes of %d bytes", e.Name, len(ids), e.IntSize)}
	}
	l := &layout{fields: make([]field, 0, len(ids))}
	var seen AttrSet
	for _, id := range ids {
		f, ok := attrs[uint16(id)]
		if !ok {
			return &layout{err: fmt.Errorf("layout %s: attribute %d is not registered", e.Name, id)}
		}
		if seen&f.attr != 0 {
			return &layout{err: fmt.Errorf("layout %s: attribute %d twice", e.Name, id)}
		}
		seen |= f.attr
		if f.length == 0 {
			l.variable++
		}
		l.fields = append(l.fields, f)
	}
	return l
}

// Decode decodes the attributes of an object by the type of its bonus: system
// attributes or a znode. spill is nil if there is none. order is the byte order of
// the stream; buffers of system attributes have their own. Other types of bonus, and
// objects under construction, have no attributes, which is no error. The slices of
// the Attr are parts of bonus and spill. Errors are *FormatError, with ErrLayout and
// ErrTwice to test for.
func (r *Registry) Decode(bonusType uint32, bonus, spill []byte, order binary.ByteOrder) (Attr, error) {
	switch bonusType {
	case TypeZnode:
		return DecodeZnode(bonus, order)
	case TypeSA:
		var a Attr
		if err := r.decode(&a, "SA bonus", bonus); err != nil {
			return Attr{}, err
		}
		if spill == nil {
			return a, nil
		}
		if err := r.decode(&a, "SA spill", spill); err != nil {
			return Attr{}, err
		}
		return a, nil
	}
	return Attr{}, nil
}

const saMagic = 0x002F505A

// IsSA reports whether a block begins as a buffer of system attributes does.
func IsSA(b []byte) bool {
	return len(b) >= 8 && (binary.LittleEndian.Uint32(b) == saMagic || binary.BigEndian.Uint32(b) == saMagic)
}

// saHeader reads the header of a buffer: its byte order, the number of its layout and
// where values start. An empty buffer, or one that begins with zeros, has layout 0.
func saHeader(buf []byte) (order binary.ByteOrder, layout uint16, start int, err error) {
	if len(buf) == 0 {
		return nil, 0, 0, nil
	}
	if len(buf) < 8 {
		return nil, 0, 0, &FormatError{"SA buffer", len(buf), errShort}
	}
	switch {
	case binary.LittleEndian.Uint64(buf) == 0:
		return nil, 0, 0, nil
	case binary.LittleEndian.Uint32(buf) == saMagic:
		order = binary.LittleEndian
	case binary.BigEndian.Uint32(buf) == saMagic:
		order = binary.BigEndian
	default:
		return nil, 0, 0, bad("SA buffer", 0, "magic %#x", binary.LittleEndian.Uint32(buf))
	}
	info := order.Uint16(buf[4:])
	layout, start = info&maxLayout, int(info>>10)*8
	if start < 8 || start > len(buf) {
		return nil, 0, 0, bad("SA buffer", 4, "header of %d bytes in %d", start, len(buf))
	}
	return order, layout, start, nil
}

// decode adds the attributes of a buffer to a (section 4.2).
func (r *Registry) decode(a *Attr, what string, buf []byte) error {
	order, number, p, err := saHeader(buf)
	if err != nil || number < firstLayout {
		return err
	}
	var l *layout
	if r != nil {
		l = r.layouts[number]
	}
	switch {
	case l == nil:
		return &FormatError{what, 4, fmt.Errorf("%w %d", ErrLayout, number)}
	case l.err != nil:
		return &FormatError{what, 4, l.err}
	case roundup8(6+2*l.variable) != p:
		return bad(what, 4, "header of %d bytes, layout %d has %d lengths", p, number, l.variable)
	}
	lengths := buf[6:p]
	for i := range l.fields {
		f := &l.fields[i]
		n := int(f.length)
		if n == 0 {
			n = int(order.Uint16(lengths))
			lengths = lengths[2:]
		}
		if n > len(buf)-p {
			return bad(what, p, "attribute %d of %d bytes, %d left", f.id, n, len(buf)-p)
		}
		if f.attr&a.Present != 0 {
			return &FormatError{what, p, fmt.Errorf("%w: %d", ErrTwice, f.id)}
		}
		a.set(f, buf[p:p+n:p+n], order)
		p = min(p+roundup8(n), len(buf)) // the last one is not padded
	}
	return nil
}

// set takes over one value.
func (a *Attr) set(f *field, v []byte, order binary.ByteOrder) {
	a.Present |= f.attr
	switch f.attr {
	case HasMode:
		a.Mode = order.Uint64(v)
	case HasSize:
		a.Size = order.Uint64(v)
	case HasGen:
		a.Gen = order.Uint64(v)
	case HasUID:
		a.UID = FUID(order.Uint64(v))
	case HasGID:
		a.GID = FUID(order.Uint64(v))
	case HasParent:
		a.Parent = order.Uint64(v)
	case HasFlags:
		a.Flags = Flags(order.Uint64(v))
	case HasAtime:
		a.Atime = timeOf(order.Uint64(v), order.Uint64(v[8:]))
	case HasMtime:
		a.Mtime = timeOf(order.Uint64(v), order.Uint64(v[8:]))
	case HasCtime:
		a.Ctime = timeOf(order.Uint64(v), order.Uint64(v[8:]))
	case HasCrtime:
		a.Crtime = timeOf(order.Uint64(v), order.Uint64(v[8:]))
	case HasLinks:
		a.Links = order.Uint64(v)
	case HasXattr:
		a.Xattr = order.Uint64(v)
	case HasRdev:
		a.Rdev = order.Uint64(v)
	case HasProjID:
		a.ProjID = order.Uint64(v)
	case HasSeq:
		a.Seq = order.Uint64(v)
	case HasDACLCount:
		a.daclCount = order.Uint64(v)
	case HasDACLACEs:
		a.dacl, a.order = v, order
	case HasZnodeACL:
		a.znodeACL, a.order = v, order
	case HasSymlink:
		a.Symlink = v
	case HasScanStamp:
		a.ScanStamp = v
	case HasDXattr:
		a.DXattr = v
	case HasPad:
	default:
		a.Other = append(a.Other, Opaque{f.id, f.class, v})
	}
}
