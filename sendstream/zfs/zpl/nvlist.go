package zpl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// An NVType is the type of the value of an [NVPair] (DATA_TYPE_*, section 2).
type NVType uint32

// The types of values, and what they are in Go.
const (
	NVBoolean      NVType = 1  // bool, true: being there is the value
	NVByte         NVType = 2  // uint64
	NVInt16        NVType = 3  // int64
	NVUint16       NVType = 4  // uint64
	NVInt32        NVType = 5  // int64
	NVUint32       NVType = 6  // uint64
	NVInt64        NVType = 7  // int64
	NVUint64       NVType = 8  // uint64
	NVString       NVType = 9  // string
	NVByteArray    NVType = 10 // []byte
	NVInt16Array   NVType = 11 // []int64
	NVUint16Array  NVType = 12 // []uint64
	NVInt32Array   NVType = 13 // []int64
	NVUint32Array  NVType = 14 // []uint64
	NVInt64Array   NVType = 15 // []int64
	NVUint64Array  NVType = 16 // []uint64
	NVStringArray  NVType = 17 // []string
	NVHrtime       NVType = 18 // int64
	NVNvlist       NVType = 19 // NVList
	NVNvlistArray  NVType = 20 // []NVList
	NVBooleanValue NVType = 21 // bool
	NVInt8         NVType = 22 // int64
	NVUint8        NVType = 23 // uint64
	NVBooleanArray NVType = 24 // []bool
	NVInt8Array    NVType = 25 // []byte
	NVUint8Array   NVType = 26 // []byte
	NVDouble       NVType = 27 // float64
)

// An NVPair is a name and a value, whose Go type [NVType] says.
type NVPair struct {
	Name  string
	Type  NVType
	Value any
}

// An NVList is a list of pairs, in the order in which they came. Names may repeat.
type NVList []NVPair

// Get returns the value of the first pair of that name and type. T must be the Go
// type that goes with typ.
func Get[T any](l NVList, name string, typ NVType) (value T, ok bool) {
	for i := range l {
		if l[i].Name == name && l[i].Type == typ {
			value, ok = l[i].Value.(T)
			return value, ok
		}
	}
	return value, false
}

// Bounds of lists (section 8).
const (
	nvMaxDepth = 20
	nvMaxPairs = 1 << 20
	nvMaxName  = 4096
)

// ParseNVList decodes a packed nvlist, XDR or native (section 2), and returns it with
// the number of bytes it takes; what is behind it is not looked at. Byte arrays are
// parts of b. Errors are *FormatError.
func ParseNVList(b []byte) (NVList, int, error) {
	if len(b) < 4 {
		return nil, 0, &FormatError{nvlist, 0, errShort}
	}
	p := nvParser{buf: b, end: len(b)}
	var list NVList
	var off int
	var err error
	switch encoding, endian := b[0], b[1]; {
	case encoding == 1:
		p.order = binary.BigEndian
		list, off, err = p.xdrList(4, len(b), 0)
	case encoding == 0 && endian == 0:
		p.order = binary.BigEndian
		list, off, err = p.nativeList(4)
	case encoding == 0 && endian == 1:
		p.order = binary.LittleEndian
		list, off, err = p.nativeList(4)
	default:
		err = bad(nvlist, 0, "encoding %d, byte order %d", encoding, endian)
	}
	if err != nil {
		return nil, 0, err
	}
	return list, off, nil
}

const nvlist = "nvlist"

// An nvParser walks through packed lists. Offsets count from the start of buf.
type nvParser struct {
	buf   []byte
	end   int // no byte from here on is read
	order binary.ByteOrder
	pairs int // seen so far, in all lists
}

// u32 reads a word before end.
func (p *nvParser) u32(off, end int) (uint32, error) {
	if off > end-4 {
		return 0, &FormatError{nvlist, off, errShort}
	}
	return p.order.Uint32(p.buf[off:]), nil
}

// count notes one more pair.
func (p *nvParser) count(off int) error {
	if p.pairs++; p.pairs > nvMaxPairs {
		return bad(nvlist, off, "more than %d pairs", nvMaxPairs)
	}
	return nil
}

func roundup4(n int) int { return (n + 3) &^ 3 }

// xdrList decodes a list that begins at off: version, flags, pairs, two zero words.
func (p *nvParser) xdrList(off, end, depth int) (NVList, int, error) {
	if depth > nvMaxDepth {
		return nil, 0, bad(nvlist, off, "lists nested deeper than %d", nvMaxDepth)
	}
	if err := p.version(off, end); err != nil {
		return nil, 0, err
	}
	var list NVList
	for off += 8; ; {
		if off > end-8 {
			return nil, 0, &FormatError{nvlist, off, errShort}
		}
		encoded, decoded := p.order.Uint32(p.buf[off:]), p.order.Uint32(p.buf[off+4:])
		if encoded == 0 && decoded == 0 {
			return list, off + 8, nil
		}
		if encoded < 20 || encoded%4 != 0 || decoded == 0 || uint64(encoded) > uint64(end-off) {
			return nil, 0, bad(nvlist, off, "pair of %d bytes, %d in memory, with %d left", encoded, decoded, end-off)
		}
		if err := p.count(off); err != nil {
			return nil, 0, err
		}
		pair, err := p.xdrPair(off, off+int(encoded), depth)
		if err != nil {
			return nil, 0, err
		}
		list = append(list, pair)
		off += int(encoded)
	}
}

// version checks the first word of a list; of the flags nothing matters.
func (p *nvParser) version(off, end int) error {
	if off > end-8 {
		return &FormatError{nvlist, off, errShort}
	}
	if v := p.order.Uint32(p.buf[off:]); v != 0 {
		return bad(nvlist, off, "version %d", v)
	}
	return nil
}

// xdrPair decodes the pair that takes the bytes from off to end.
func (p *nvParser) xdrPair(off, end, depth int) (NVPair, error) {
	name, pos, err := p.xdrString(off+8, end)
	if err == nil && len(name) > nvMaxName {
		err = bad(nvlist, off, "name of %d bytes", len(name))
	}
	if err != nil {
		return NVPair{}, err
	}
	if pos > end-8 {
		return NVPair{}, &FormatError{nvlist, pos, errShort}
	}
	pair := NVPair{Name: name, Type: NVType(p.order.Uint32(p.buf[pos:]))}
	nelem := p.order.Uint32(p.buf[pos+4:])
	pair.Value, pos, err = p.xdrValue(pair.Type, nelem, pos+8, end, depth)
	if err != nil {
		return NVPair{}, err
	}
	if (pair.Type == NVNvlist || pair.Type == NVNvlistArray) && pos != end {
		return NVPair{}, bad(nvlist, pos, "a list ends %d bytes before its pair", end-pos)
	}
	return pair, nil
}

// xdrString reads a length, that many bytes and their padding to a whole word.
func (p *nvParser) xdrString(off, end int) (string, int, error) {
	n, err := p.u32(off, end)
	if err != nil {
		return "", 0, err
	}
	b, pos, err := p.xdrOpaque(off+4, end, n)
	if err == nil && bytes.IndexByte(b, 0) >= 0 {
		err = bad(nvlist, off, "string with a NUL in it")
	}
	return string(b), pos, err
}

// xdrOpaque reads n bytes and their padding.
func (p *nvParser) xdrOpaque(off, end int, n uint32) ([]byte, int, error) {
	if uint64(n) > uint64(end-off) || roundup4(int(n)) > end-off {
		return nil, 0, bad(nvlist, off, "%d bytes with %d left", n, end-off)
	}
	return p.buf[off : off+int(n) : off+int(n)], off + roundup4(int(n)), nil
}

// xdrValue decodes a value at off and returns where it ends.
func (p *nvParser) xdrValue(typ NVType, nelem uint32, off, end, depth int) (any, int, error) {
	switch typ {
	case NVBoolean:
		return true, off, nil
	case NVByte, NVUint8, NVInt8, NVUint16, NVInt16, NVUint32, NVInt32, NVBooleanValue:
		w, err := p.u32(off, end)
		return scalar(typ, uint64(w)), off + 4, err
	case NVUint64, NVInt64, NVHrtime, NVDouble:
		if off > end-8 {
			return nil, 0, &FormatError{nvlist, off, errShort}
		}
		return scalar(typ, p.order.Uint64(p.buf[off:])), off + 8, nil
	case NVString:
		return anyPos(p.xdrString(off, end))
	case NVByteArray:
		return anyPos(p.xdrOpaque(off, end, nelem))
	case NVStringArray:
		if err := p.fits(off, end, nelem, 4); err != nil {
			return nil, 0, err
		}
		strs := make([]string, nelem)
		for i := range strs {
			s, pos, err := p.xdrString(off, end)
			if err != nil {
				return nil, 0, err
			}
			strs[i], off = s, pos
		}
		return strs, off, nil
	case NVNvlist:
		return anyPos(p.xdrList(off, end, depth+1))
	case NVNvlistArray:
		if err := p.fits(off, end, nelem, 16); err != nil {
			return nil, 0, err
		}
		lists := make([]NVList, nelem)
		for i := range lists {
			l, pos, err := p.xdrList(off, end, depth+1)
			if err != nil {
				return nil, 0, err
			}
			lists[i], off = l, pos
		}
		return lists, off, nil
	}
	size := 4
	switch typ {
	case NVInt64Array, NVUint64Array:
		size = 8
	case NVInt8Array, NVUint8Array, NVInt16Array, NVUint16Array, NVInt32Array, NVUint32Array, NVBooleanArray:
	default:
		return nil, 0, bad(nvlist, off, "type %d", typ)
	}
	n, err := p.u32(off, end)
	if err == nil && n != nelem {
		err = bad(nvlist, off, "%d elements announced, %d there", nelem, n)
	}
	if err == nil {
		err = p.fits(off+4, end, n, size)
	}
	if err != nil {
		return nil, 0, err
	}
	off += 4
	return p.array(typ, int(n), off, size), off + int(n)*size, nil
}

// anyPos turns what a decoder returns into what xdrValue does.
func anyPos[T any](v T, pos int, err error) (any, int, error) { return v, pos, err }

// fits returns an error unless n elements of size bytes can lie between off and end.
func (p *nvParser) fits(off, end int, n uint32, size int) error {
	if off > end || uint64(n) > uint64((end-off)/size) {
		return bad(nvlist, off, "%d elements with %d bytes left", n, end-off)
	}
	return nil
}

// nativeList decodes a list that begins at off with version and flags.
func (p *nvParser) nativeList(off int) (NVList, int, error) {
	if err := p.version(off, p.end); err != nil {
		return nil, 0, err
	}
	return p.nativePairs(off+8, 0)
}

// nativePairs decodes pairs and the zero word behind them.
func (p *nvParser) nativePairs(off, depth int) (NVList, int, error) {
	if depth > nvMaxDepth {
		return nil, 0, bad(nvlist, off, "lists nested deeper than %d", nvMaxDepth)
	}
	var list NVList
	for {
		size, err := p.u32(off, p.end)
		if err != nil {
			return nil, 0, err
		}
		if size == 0 {
			return list, off + 4, nil
		}
		if size < 24 || size%8 != 0 || uint64(size) > uint64(p.end-off) {
			return nil, 0, bad(nvlist, off, "pair of %d bytes with %d left", size, p.end-off)
		}
		if err := p.count(off); err != nil {
			return nil, 0, err
		}
		pair, next, err := p.nativePair(off, off+int(size), depth)
		if err != nil {
			return nil, 0, err
		}
		list = append(list, pair)
		off = next
	}
}

// nativePair decodes the pair between off and end. Lists within it follow it, so it
// returns where the next pair is.
func (p *nvParser) nativePair(off, end, depth int) (NVPair, int, error) {
	fail := func(err error) (NVPair, int, error) { return NVPair{}, 0, err }
	nameSize := int(p.order.Uint16(p.buf[off+4:]))
	if nameSize < 1 || nameSize > nvMaxName+1 || roundup8(16+nameSize) > end-off {
		return fail(bad(nvlist, off, "name of %d bytes in a pair of %d", nameSize, end-off))
	}
	name, ok := cString(p.buf[off+16 : off+16+nameSize])
	if !ok || len(name) != nameSize-1 {
		return fail(bad(nvlist, off+16, "name does not end where it should"))
	}
	nelem := p.order.Uint32(p.buf[off+8:])
	pair := NVPair{Name: name, Type: NVType(p.order.Uint32(p.buf[off+12:]))}
	off += roundup8(16 + nameSize)

	switch pair.Type {
	case NVNvlist:
		if end-off < nvlistSize {
			return fail(&FormatError{nvlist, off, errShort})
		}
		list, next, err := p.nativePairs(end, depth+1)
		pair.Value = list
		return pair, next, err
	case NVNvlistArray:
		if err := p.fits(off, end, nelem, 8+nvlistSize); err != nil {
			return fail(err)
		}
		lists := make([]NVList, nelem)
		next := end
		for i := range lists {
			list, after, err := p.nativePairs(next, depth+1)
			if err != nil {
				return fail(err)
			}
			lists[i], next = list, after
		}
		pair.Value = lists
		return pair, next, nil
	}
	v, err := p.nativeValue(pair.Type, nelem, off, end)
	pair.Value = v
	return pair, end, err
}

// nvlistSize is what a list takes in the value of a pair: an nvlist_t.
const nvlistSize = 24

var errNoNUL = errors.New("string without an end")

// nativeValue decodes a value that is no list.
func (p *nvParser) nativeValue(typ NVType, nelem uint32, off, end int) (any, error) {
	switch typ {
	case NVBoolean:
		return true, nil
	case NVString:
		s, ok := cString(p.buf[off:end])
		if !ok {
			return nil, &FormatError{nvlist, off, errNoNUL}
		}
		return s, nil
	case NVStringArray:
		if err := p.fits(off, end, nelem, 9); err != nil { // a pointer and a NUL at least
			return nil, err
		}
		strs := make([]string, nelem)
		off += 8 * int(nelem)
		for i := range strs {
			s, ok := cString(p.buf[off:end])
			if !ok {
				return nil, &FormatError{nvlist, off, errNoNUL}
			}
			strs[i] = s
			off += len(s) + 1
		}
		return strs, nil
	}
	size, isArray := nativeSize(typ)
	switch {
	case size == 0:
		return nil, bad(nvlist, off, "type %d", typ)
	case !isArray:
		nelem = 1
	}
	if err := p.fits(off, end, nelem, size); err != nil {
		return nil, err
	}
	if isArray {
		return p.array(typ, int(nelem), off, size), nil
	}
	return scalar(typ, p.word(off, size)), nil
}

// cString returns what is before the first NUL.
func cString(b []byte) (string, bool) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return "", false
	}
	return string(b[:i]), true
}

// nativeSize returns the bytes of a value, or of an element of one.
func nativeSize(typ NVType) (size int, isArray bool) {
	switch typ {
	case NVByte, NVInt8, NVUint8:
		return 1, false
	case NVInt16, NVUint16:
		return 2, false
	case NVInt32, NVUint32, NVBooleanValue:
		return 4, false
	case NVInt64, NVUint64, NVHrtime, NVDouble:
		return 8, false
	case NVByteArray, NVInt8Array, NVUint8Array:
		return 1, true
	case NVInt16Array, NVUint16Array:
		return 2, true
	case NVInt32Array, NVUint32Array, NVBooleanArray:
		return 4, true
	case NVInt64Array, NVUint64Array:
		return 8, true
	}
	return 0, false
}

// word reads an integer of 1, 2, 4 or 8 bytes.
func (p *nvParser) word(off, size int) uint64 { return integer(p.order, p.buf[off:], size) }

// integer reads an integer of 1, 2, 4 or 8 bytes from the start of b.
func integer(order binary.ByteOrder, b []byte, size int) uint64 {
	switch size {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(order.Uint16(b))
	case 4:
		return uint64(order.Uint32(b))
	default:
		return order.Uint64(b)
	}
}

// scalar gives w, of which the upper bits may be anything, the type it has.
func scalar(typ NVType, w uint64) any {
	switch typ {
	case NVBooleanValue:
		return uint32(w) != 0
	case NVByte, NVUint8:
		return uint64(uint8(w))
	case NVUint16:
		return uint64(uint16(w))
	case NVUint32:
		return uint64(uint32(w))
	case NVUint64:
		return w
	case NVDouble:
		return math.Float64frombits(w)
	}
	return signed(typ, w)
}

func signed(typ NVType, w uint64) int64 {
	switch typ {
	case NVInt8:
		return int64(int8(w))
	case NVInt16, NVInt16Array:
		return int64(int16(w))
	case NVInt32, NVInt32Array:
		return int64(int32(w))
	default:
		return int64(w)
	}
}

// array decodes n elements of size bytes, which are there. Small elements stand in
// words of their own in XDR.
func (p *nvParser) array(typ NVType, n, off, size int) any {
	switch typ {
	case NVByteArray, NVInt8Array, NVUint8Array:
		if size == 1 {
			return p.buf[off : off+n : off+n]
		}
		v := make([]byte, n)
		for i := range v {
			v[i] = byte(p.word(off+i*size, size))
		}
		return v
	case NVBooleanArray:
		v := make([]bool, n)
		for i := range v {
			v[i] = p.word(off+i*size, size) != 0
		}
		return v
	case NVInt16Array, NVInt32Array, NVInt64Array:
		v := make([]int64, n)
		for i := range v {
			v[i] = signed(typ, p.word(off+i*size, size))
		}
		return v
	case NVUint16Array, NVUint32Array, NVUint64Array:
		v := make([]uint64, n)
		for i := range v {
			v[i] = p.word(off+i*size, size)
			if typ == NVUint16Array {
				v[i] &= math.MaxUint16
			}
		}
		return v
	}
	panic(fmt.Sprintf("zpl: internal error: nvlist type %d is no array", typ))
}
