// Package nvlist reads packed name-value lists, which ZFS puts into the BEGIN of
// send streams and into extended attributes.
//
// A packed list has four bytes that name its encoding, then the pairs. In XDR all
// is big endian and in units of 4 bytes, and a nested list is inside of its pair:
//
//	| encoding (1) | endian (1) | 0 (2) | version (4) | flags (4) | pair* | 0 (8) |
//	pair: | size (4) | decoded size (4) | name len (4) | name | type (4) | nelem (4) | value |
//
// In the native encoding, the layout of the writer's memory, the byte order is that
// of the endian byte and a nested list's pairs follow the pair that has it:
//
//	| encoding (1) | endian (1) | 0 (2) | version (4) | flags (4) | pair* | 0 (4) |
//	pair: | size (4) | name size (2) | 0 (2) | nelem (4) | type (4) | name | value |
//
// Section 2 of the specification has the values of each type.
package nvlist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// A Type is the type of a pair's value. The comments have the Go type of
// [Pair].Value.
type Type uint32

// The types, with the names of the specification.
const (
	Boolean      Type = 1  // nil: it is there or it is not
	Byte         Type = 2  // uint8
	Int16        Type = 3  // int16
	Uint16       Type = 4  // uint16
	Int32        Type = 5  // int32
	Uint32       Type = 6  // uint32
	Int64        Type = 7  // int64
	Uint64       Type = 8  // uint64
	String       Type = 9  // string
	ByteArray    Type = 10 // []byte
	Int16Array   Type = 11 // []int16
	Uint16Array  Type = 12 // []uint16
	Int32Array   Type = 13 // []int32
	Uint32Array  Type = 14 // []uint32
	Int64Array   Type = 15 // []int64
	Uint64Array  Type = 16 // []uint64
	StringArray  Type = 17 // []string
	HRTime       Type = 18 // int64, in nanoseconds
	Nested       Type = 19 // List
	NestedArray  Type = 20 // []List
	BooleanValue Type = 21 // bool
	Int8         Type = 22 // int8
	Uint8        Type = 23 // uint8
	BooleanArray Type = 24 // []bool
	Int8Array    Type = 25 // []int8
	Uint8Array   Type = 26 // []uint8
	Double       Type = 27 // float64
)

// A Pair is a name and its value, which are copies of what was parsed.
type Pair struct {
	Name  string
	Type  Type
	Value any // of the Go type that belongs to Type
}

// A List is a list of pairs in their order. Names may be there twice.
type List []Pair

// lookup returns the first value called name that is a T.
func lookup[T any](l List, name string) (T, bool) {
	for _, p := range l {
		if p.Name == name {
			if v, ok := p.Value.(T); ok {
				return v, true
			}
		}
	}
	var zero T
	return zero, false
}

// Uint64 returns the value of the first [Uint64] called name.
func (l List) Uint64(name string) (uint64, bool) { return lookup[uint64](l, name) }

// Uint64s returns the value of the first [Uint64Array] called name.
func (l List) Uint64s(name string) ([]uint64, bool) { return lookup[[]uint64](l, name) }

// String returns the value of the first [String] called name.
func (l List) String(name string) (string, bool) { return lookup[string](l, name) }

// List returns the value of the first [Nested] list called name.
func (l List) List(name string) (List, bool) { return lookup[List](l, name) }

// Lists returns the value of the first [NestedArray] called name.
func (l List) Lists(name string) ([]List, bool) { return lookup[[]List](l, name) }

// Has reports whether there is a pair called name, of whatever type.
func (l List) Has(name string) bool {
	for _, p := range l {
		if p.Name == name {
			return true
		}
	}
	return false
}

// ErrMalformed is wrapped by all errors of [Parse], which name the offset at which
// it stopped.
var ErrMalformed = errors.New("malformed nvlist")

// The limits of section 8.
const (
	maxDepth = 20
	maxPairs = 1 << 20
	maxName  = 4096
)

// Parse parses a packed list of either encoding and byte order. Zeros may follow
// it. What it allocates is at most some ten times the length of b.
func Parse(b []byte) (List, error) {
	p := &parser{b: b, all: len(b)}
	l, err := p.parse()
	if err != nil {
		return nil, fmt.Errorf("%w at %d: %w", ErrMalformed, p.pos(), err)
	}
	return l, nil
}

// A parser takes values off the front of b.
type parser struct {
	b     []byte
	all   int // the length of b at the start
	xdr   bool
	big   bool
	pairs int // so far
	depth int
}

var (
	errShort = errors.New("ends too early")
	errSize  = errors.New("size of a pair does not fit")
	errName  = errors.New("name")
	errCount = errors.New("number of elements")
	errZero  = errors.New("something else than zeros")
)

func (p *parser) pos() int { return p.all - len(p.b) }

func (p *parser) parse() (List, error) {
	h, err := p.take(4)
	if err != nil {
		return nil, err
	}
	switch {
	case h[0] > 1 || h[1] > 1:
		return nil, fmt.Errorf("encoding %d, endian %d", h[0], h[1])
	case h[0] == 1:
		p.xdr, p.big = true, true
	default:
		p.big = h[1] == 0
	}
	l, err := p.list()
	if err != nil {
		return nil, err
	}
	if len(bytes.Trim(p.b, "\x00")) > 0 {
		return nil, fmt.Errorf("behind the list: %w", errZero)
	}
	return l, nil
}

// take returns the next n bytes.
func (p *parser) take(n int) ([]byte, error) {
	if n < 0 || n > len(p.b) {
		return nil, errShort
	}
	v := p.b[:n:n]
	p.b = p.b[n:]
	return v, nil
}

func (p *parser) u16(b []byte) uint16 {
	if p.big {
		return binary.BigEndian.Uint16(b)
	}
	return binary.LittleEndian.Uint16(b)
}

func (p *parser) u32(b []byte) uint32 {
	if p.big {
		return binary.BigEndian.Uint32(b)
	}
	return binary.LittleEndian.Uint32(b)
}

func (p *parser) u64(b []byte) uint64 {
	if p.big {
		return binary.BigEndian.Uint64(b)
	}
	return binary.LittleEndian.Uint64(b)
}

func (p *parser) word() (uint32, error) {
	b, err := p.take(4)
	if err != nil {
		return 0, err
	}
	return p.u32(b), nil
}

// list parses version, flags and pairs.
func (p *parser) list() (List, error) {
	h, err := p.take(8)
	if err != nil {
		return nil, err
	}
	if v := p.u32(h); v != 0 {
		return nil, fmt.Errorf("version %d", v)
	}
	return p.pairList()
}

// pairList parses pairs up to the mark of their end.
func (p *parser) pairList() (List, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	defer func() { p.depth-- }()
	l := List{}
	for {
		next := p.nativePair
		if p.xdr {
			next = p.xdrPair
		}
		pair, more, err := next()
		if err != nil || !more {
			return l, err
		}
		if p.pairs++; p.pairs > maxPairs {
			return nil, fmt.Errorf("more than %d pairs", maxPairs)
		}
		l = append(l, pair)
	}
}

// size checks the size of a pair, read bytes of which have been taken already.
func (p *parser) size(word uint32, read, least, unit int) (int, error) {
	n := int64(int32(word))
	if n < int64(least) || n%int64(unit) != 0 || n > int64(len(p.b)+read) {
		return 0, fmt.Errorf("%w: %d, %d left", errSize, n, len(p.b)+read)
	}
	return int(n), nil
}

func (p *parser) xdrPair() (pair Pair, more bool, err error) {
	if len(p.b) < 8 {
		return Pair{}, false, errShort
	}
	if p.u64(p.b) == 0 {
		p.b = p.b[8:]
		return Pair{}, false, nil
	}
	size, err := p.size(p.u32(p.b), 0, 20, 4)
	if err != nil {
		return Pair{}, false, err
	}
	// Within the pair, p has the pair's bytes alone.
	rest := p.b[size:]
	p.all, p.b = p.all-len(rest), p.b[:size]
	p.b = p.b[8:]
	name, err := p.xdrString(maxName)
	if err != nil {
		return Pair{}, false, fmt.Errorf("%w: %w", errName, err)
	}
	h, err := p.take(8)
	if err != nil {
		return Pair{}, false, err
	}
	pair = Pair{Name: name, Type: Type(p.u32(h))}
	if pair.Value, err = p.xdrValue(pair.Type, p.u32(h[4:])); err != nil {
		return Pair{}, false, fmt.Errorf("%.40q: %w", name, err)
	}
	if len(p.b) > 0 {
		return Pair{}, false, fmt.Errorf("%.40q: %w: %d left", name, errSize, len(p.b))
	}
	p.all, p.b = p.all+len(rest), rest
	return pair, true, nil
}

// xdrString parses a length and as many bytes, without a NUL and padded to 4.
func (p *parser) xdrString(limit int) (string, error) {
	n, err := p.word()
	if err != nil {
		return "", err
	}
	if int64(n) > int64(limit) {
		return "", fmt.Errorf("of %d bytes", n)
	}
	b, err := p.take(pad(int(n), 4))
	if err != nil {
		return "", err
	}
	if bytes.IndexByte(b[:n], 0) >= 0 {
		return "", fmt.Errorf("NUL in %.40q", b[:n])
	}
	return string(b[:n]), nil
}

func pad(n, unit int) int { return (n + unit - 1) / unit * unit }

// An element says how a number or truth value is laid out.
type element struct {
	size  int // in an array of the native encoding
	xdr   int // always there
	array Type
}

// elements has what is no string or list, by the type of one; those without an
// array have none.
var elements = map[Type]element{
	Byte:         {1, 4, ByteArray},
	Int16:        {2, 4, Int16Array},
	Uint16:       {2, 4, Uint16Array},
	Int32:        {4, 4, Int32Array},
	Uint32:       {4, 4, Uint32Array},
	Int64:        {8, 8, Int64Array},
	Uint64:       {8, 8, Uint64Array},
	HRTime:       {8, 8, 0},
	BooleanValue: {4, 4, BooleanArray},
	Int8:         {1, 4, Int8Array},
	Uint8:        {1, 4, Uint8Array},
	Double:       {8, 8, 0},
}

// elementOf has the type of one by that of the array.
var elementOf = func() map[Type]Type {
	m := make(map[Type]Type)
	for t, e := range elements {
		if e.array != 0 {
			m[e.array] = t
		}
	}
	return m
}()

func (p *parser) xdrValue(t Type, n uint32) (any, error) {
	if t == ByteArray { // as no other array, packed and without a count
		b, err := p.elements(n, 1)
		if err != nil {
			return nil, err
		}
		if _, err := p.take(pad(len(b), 4) - len(b)); err != nil {
			return nil, err
		}
		return bytes.Clone(b), nil
	}
	if e, ok := elements[t]; ok {
		b, err := p.take(e.xdr)
		if err != nil {
			return nil, err
		}
		return p.scalar(t, b), nil
	}
	if one, ok := elementOf[t]; ok {
		count, err := p.word()
		if err != nil {
			return nil, err
		}
		if count != n {
			return nil, fmt.Errorf("%w: %d and %d", errCount, n, count)
		}
		b, err := p.elements(n, elements[one].xdr)
		if err != nil {
			return nil, err
		}
		return p.array(one, b, elements[one].xdr), nil
	}
	switch t {
	case Boolean:
		return nil, nil
	case String:
		return wrap(p.xdrString(len(p.b)))
	case StringArray:
		return several(p, n, 4, func() (string, error) { return p.xdrString(len(p.b)) })
	case Nested:
		return wrap(p.list())
	case NestedArray:
		return several(p, n, 16, p.list)
	}
	return nil, fmt.Errorf("type %d", t)
}

// wrap keeps a value of a failed call out of an interface.
func wrap[T any](v T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

// several parses n values of at least size bytes each.
func several[T any](p *parser, n uint32, size int, next func() (T, error)) (any, error) {
	if int64(n) > int64(len(p.b)/size) {
		return nil, fmt.Errorf("%w: %d in %d bytes", errCount, n, len(p.b))
	}
	vs := make([]T, 0, n)
	for range n {
		v, err := next()
		if err != nil {
			return nil, err
		}
		vs = append(vs, v)
	}
	return vs, nil
}

// elements takes n elements of size bytes.
func (p *parser) elements(n uint32, size int) ([]byte, error) {
	if int64(n) > int64(len(p.b)/size) {
		return nil, fmt.Errorf("%w: %d in %d bytes", errCount, n, len(p.b))
	}
	return p.take(int(n) * size)
}

// scalar returns the number in b, whose length is what the type has in memory or,
// for what XDR makes wider, 4.
func (p *parser) scalar(t Type, b []byte) any {
	var v uint64
	switch len(b) {
	case 1:
		v = uint64(b[0])
	case 2:
		v = uint64(p.u16(b))
	case 4:
		v = uint64(p.u32(b))
	case 8:
		v = p.u64(b)
	}
	switch t {
	case Byte, Uint8:
		return uint8(v)
	case Int8:
		return int8(v)
	case Int16:
		return int16(v)
	case Uint16:
		return uint16(v)
	case Int32:
		return int32(v)
	case Uint32:
		return uint32(v)
	case Int64, HRTime:
		return int64(v)
	case Uint64:
		return v
	case BooleanValue:
		return v != 0
	case Double:
		return math.Float64frombits(v)
	}
	panic(fmt.Sprintf("nvlist: internal error: type %d is no scalar", t))
}

// array returns the numbers of type one in b, each of size bytes.
func (p *parser) array(one Type, b []byte, size int) any {
	switch one {
	case Byte, Uint8:
		return collect[uint8](p, one, b, size)
	case Int8:
		return collect[int8](p, one, b, size)
	case Int16:
		return collect[int16](p, one, b, size)
	case Uint16:
		return collect[uint16](p, one, b, size)
	case Int32:
		return collect[int32](p, one, b, size)
	case Uint32:
		return collect[uint32](p, one, b, size)
	case Int64:
		return collect[int64](p, one, b, size)
	case Uint64:
		return collect[uint64](p, one, b, size)
	case BooleanValue:
		return collect[bool](p, one, b, size)
	}
	panic(fmt.Sprintf("nvlist: internal error: no arrays of type %d", one))
}

func collect[T any](p *parser, one Type, b []byte, size int) []T {
	vs := make([]T, 0, len(b)/size)
	for ; len(b) > 0; b = b[size:] {
		vs = append(vs, p.scalar(one, b[:size]).(T))
	}
	return vs
}

func (p *parser) nativePair() (pair Pair, more bool, err error) {
	first, err := p.word()
	if err != nil || first == 0 {
		return Pair{}, false, err
	}
	size, err := p.size(first, 4, 16, 8)
	if err != nil {
		return Pair{}, false, err
	}
	b, err := p.take(size - 4)
	if err != nil {
		return Pair{}, false, err
	}
	// b begins 4 behind the pair, to which offsets and paddings are relative.
	const nameAt = 16 - 4
	nameSize, n := int(int16(p.u16(b))), p.u32(b[4:])
	valueAt := pad(16+nameSize, 8) - 4
	if nameSize < 1 || nameSize > maxName+1 || nameAt+nameSize > len(b) {
		return Pair{}, false, fmt.Errorf("%w of %d bytes", errName, nameSize)
	}
	name := b[nameAt:][:nameSize]
	if i := bytes.IndexByte(name, 0); i != nameSize-1 {
		return Pair{}, false, fmt.Errorf("%w %.40q", errName, name)
	}
	pair = Pair{Name: string(name[:nameSize-1]), Type: Type(p.u32(b[8:]))}
	if pair.Value, err = p.nativeValue(pair.Type, n, b[min(valueAt, len(b)):]); err != nil {
		return Pair{}, false, fmt.Errorf("%.40q: %w", pair.Name, err)
	}
	return pair, true, nil
}

// nativeValue parses the value of n elements in b. Of lists b has but placeholders;
// their pairs are the next in p.
func (p *parser) nativeValue(t Type, n uint32, b []byte) (any, error) {
	v := &parser{b: b, all: len(b), big: p.big}
	if e, ok := elements[t]; ok {
		b, err := v.take(e.size)
		if err != nil {
			return nil, err
		}
		return p.scalar(t, b), nil
	}
	if one, ok := elementOf[t]; ok {
		b, err := v.elements(n, elements[one].size)
		if err != nil {
			return nil, err
		}
		return p.array(one, b, elements[one].size), nil
	}
	const placeholder = 24 // of a list
	switch t {
	case Boolean:
		return nil, nil
	case String:
		return wrap(v.cString())
	case StringArray: // places for pointers, then the strings
		if _, err := v.elements(n, 8); err != nil {
			return nil, err
		}
		return several(v, n, 1, v.cString)
	case Nested:
		if _, err := v.take(placeholder); err != nil {
			return nil, err
		}
		return wrap(p.pairList())
	case NestedArray:
		if _, err := v.elements(n, 8+placeholder); err != nil {
			return nil, err
		}
		return several(p, n, 4, p.pairList)
	}
	return nil, fmt.Errorf("type %d", t)
}

// cString parses a string and its NUL.
func (p *parser) cString() (string, error) {
	i := bytes.IndexByte(p.b, 0)
	if i < 0 {
		return "", errShort
	}
	b, err := p.take(i + 1)
	return string(b[:i]), err
}
