package catalog

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// MaxPart bounds the length of a Part and of a blob, in bytes of plain data.
const MaxPart = 1 << 20

// MaxDepth bounds how many patches stand on one another.
const MaxDepth = 8

// maxBaseParts bounds the parts of one patch's base.
const maxBaseParts = 4096

// A PackID names a pack within one catalog. Zero is none.
type PackID int64

// A Part says where some bytes of a file come from: a slice of a blob, a piece of
// what a patch gives, or nowhere (a hole).
type Part struct {
	Length int64 // 1 to MaxPart; of a hole any positive number
	Pack   PackID
	Blob   uint32 // number in the pack
	Offset uint32 // of the first byte, in the blob's plain data or in the patch's result
	Patch  *Patch // not nil: a piece of its result; Pack and Blob are then unused
}

// A Patch turns its base into ResultLength bytes: the slice (Pack, Blob, Offset,
// Length) holds a zstd frame whose raw dictionary is the base.
type Patch struct {
	Base         []Part
	Pack         PackID
	Blob         uint32
	Offset       uint32
	Length       uint32
	ResultLength uint32
}

// Hole reports whether p is a hole.
func (p Part) Hole() bool { return p.Pack == 0 && p.Patch == nil }

// Depth returns how many patches must be applied to read p.
func (p Part) Depth() int {
	if p.Patch == nil {
		return 0
	}
	d := 0
	for _, b := range p.Patch.Base {
		d = max(d, b.Depth())
	}
	return d + 1
}

// Slice returns the part of p from off on, n bytes long.
func (p Part) Slice(off, n int64) Part {
	if !p.Hole() {
		p.Offset += uint32(off)
	}
	p.Length = n
	return p
}

// follows reports whether q continues p, so that both can be one.
func (p Part) follows(q Part) bool {
	if p.Hole() || q.Hole() {
		return p.Hole() && q.Hole()
	}
	return p.Patch == q.Patch && p.Pack == q.Pack && p.Blob == q.Blob &&
		int64(p.Offset)+p.Length == int64(q.Offset) && p.Length+q.Length <= MaxPart
}

// AppendPart appends p to parts, or lengthens the last one where p continues it.
func AppendPart(parts []Part, p Part) []Part {
	if p.Length == 0 {
		return parts
	}
	if n := len(parts); n > 0 && parts[n-1].follows(p) {
		parts[n-1].Length += p.Length
		return parts
	}
	return append(parts, p)
}

// EqualParts reports whether a and b give the same bytes from the same places.
func EqualParts(a, b []Part) bool { return bytes.Equal(appendParts(nil, a), appendParts(nil, b)) }

// Check returns an error unless p can be: lengths and depth within their bounds.
func (p Part) Check() error { return p.check(0) }

func (p Part) check(depth int) error {
	if p.Length <= 0 {
		return fmt.Errorf("part of %d bytes", p.Length)
	}
	if p.Hole() {
		return nil
	}
	if p.Length > MaxPart || int64(p.Offset)+p.Length > MaxPart {
		return fmt.Errorf("part of %d bytes at %d: beyond %d", p.Length, p.Offset, MaxPart)
	}
	q := p.Patch
	if q == nil {
		return nil
	}
	if depth >= MaxDepth {
		return fmt.Errorf("more than %d patches on one another", MaxDepth)
	}
	if int64(p.Offset)+p.Length > int64(q.ResultLength) || q.ResultLength > MaxPart {
		return fmt.Errorf("patch: %d bytes at %d of %d", p.Length, p.Offset, q.ResultLength)
	}
	if q.Length == 0 || uint64(q.Offset)+uint64(q.Length) > MaxPart {
		return fmt.Errorf("patch of %d bytes at %d", q.Length, q.Offset)
	}
	if len(q.Base) > maxBaseParts {
		return fmt.Errorf("patch on %d parts", len(q.Base))
	}
	total := int64(0)
	for _, b := range q.Base {
		if b.Hole() && b.Length > MaxBase {
			return fmt.Errorf("patch on a hole of %d bytes", b.Length)
		}
		if err := b.check(depth + 1); err != nil {
			return err
		}
		if total += b.Length; total > MaxBase {
			return fmt.Errorf("patch on more than %d bytes", MaxBase)
		}
	}
	return nil
}

// MaxBase bounds the bytes a patch may be based on.
const MaxBase = 4 << 20

// Recipes and lists of parts are kept in the catalog as varints: of each part the
// length, then the pack (0: hole or patch), then what follows from it. A patch
// follows a pack of 0 and a 1.

func appendParts(b []byte, parts []Part) []byte {
	b = binary.AppendUvarint(b, uint64(len(parts)))
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(p.Length))
		b = binary.AppendUvarint(b, uint64(p.Pack))
		switch {
		case p.Pack != 0:
			b = binary.AppendUvarint(b, uint64(p.Blob))
			b = binary.AppendUvarint(b, uint64(p.Offset))
		case p.Patch != nil:
			b = binary.AppendUvarint(b, 1)
			b = binary.AppendUvarint(b, uint64(p.Offset))
			b = appendPatch(b, p.Patch)
		default:
			b = binary.AppendUvarint(b, 0)
		}
	}
	return b
}

func appendPatch(b []byte, q *Patch) []byte {
	for _, v := range []uint64{uint64(q.Pack), uint64(q.Blob), uint64(q.Offset), uint64(q.Length), uint64(q.ResultLength)} {
		b = binary.AppendUvarint(b, v)
	}
	return appendParts(b, q.Base)
}

var errParts = fmt.Errorf("parts: %w", ErrDamaged)

// varints reads what appendParts wrote. err is sticky.
type varints struct {
	b   []byte
	err error
}

func (r *varints) next() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.err = errParts
		r.b = nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *varints) parts(depth int) []Part {
	n := r.next()
	if n > uint64(len(r.b)) || depth > MaxDepth+1 {
		r.err = errParts
		return nil
	}
	parts := make([]Part, 0, n)
	for range n {
		p := Part{Length: int64(r.next()), Pack: PackID(r.next())}
		if p.Pack != 0 {
			p.Blob, p.Offset = uint32(r.next()), uint32(r.next())
		} else if r.next() == 1 {
			p.Offset = uint32(r.next())
			p.Patch = r.patch(depth + 1)
		}
		if r.err != nil {
			return nil
		}
		parts = append(parts, p)
	}
	return parts
}

func (r *varints) patch(depth int) *Patch {
	q := &Patch{Pack: PackID(r.next()), Blob: uint32(r.next()), Offset: uint32(r.next()),
		Length: uint32(r.next()), ResultLength: uint32(r.next())}
	q.Base = r.parts(depth)
	return q
}

func decodeParts(b []byte) ([]Part, error) {
	r := &varints{b: b}
	p := r.parts(0)
	return p, r.err
}

func decodePatch(b []byte) (*Patch, error) {
	r := &varints{b: b}
	q := r.patch(1)
	return q, r.err
}
