package zfs

import (
	"encoding/binary"
	"slices"
	"testing"
)

// A field is a value in a header or, at -1, the payload.
type field struct {
	at, size int
	v        uint64
	payload  []byte
}

func u8(at int, v uint64) field  { return field{at: at, size: 1, v: v} }
func u32(at int, v uint64) field { return field{at: at, size: 4, v: v} }
func u64(at int, v uint64) field { return field{at: at, size: 8, v: v} }
func payload(b ...byte) field    { return field{at: -1, payload: b} }
func zeros(n int) field          { return payload(make([]byte, n)...) }
func name(s string) field        { return field{at: 56, payload: []byte(s)} }

// ownGUID is that of the snapshots that a builder makes.
const ownGUID = 0x1122334455667788

// A builder makes little-endian streams, whose sums mend puts in.
type builder struct{ b []byte }

func newStream(features Features, more ...field) *builder {
	return new(builder).begin(1, features, more...)
}

func (b *builder) rec(t Type, fields ...field) *builder {
	h := make([]byte, headerSize)
	var p []byte
	binary.LittleEndian.PutUint32(h, uint32(t))
	for _, f := range fields {
		switch {
		case f.at < 0:
			p = f.payload
			if t == Begin {
				binary.LittleEndian.PutUint32(h[4:], uint32(len(p)))
			}
		case f.payload != nil:
			copy(h[f.at:], f.payload)
		case f.size == 1:
			h[f.at] = byte(f.v)
		case f.size == 4:
			binary.LittleEndian.PutUint32(h[f.at:], uint32(f.v))
		case f.size == 8:
			binary.LittleEndian.PutUint64(h[f.at:], f.v)
		}
	}
	b.b = append(append(b.b, h...), p...)
	return b
}

func (b *builder) begin(hdrtype uint64, features Features, more ...field) *builder {
	return b.rec(Begin, append([]field{u64(8, magic), u64(16, hdrtype|uint64(features)<<2), u64(24, 1000),
		u32(32, 2), u32(36, uint64(FlagSpillBlock|FlagFreeRecords)), u64(40, ownGUID), name("t/fs@s")}, more...)...)
}

// pkg begins a package: BEGIN and END.
func (b *builder) pkg(more ...field) *builder {
	return b.begin(2, 0, append([]field{u32(32, 0), u64(40, 0)}, more...)...).rec(End)
}

func (b *builder) object(n uint64, more ...field) *builder {
	return b.rec(Object, append([]field{u64(8, n), u32(16, 19), u32(20, 44), u32(24, 512), u64(40, ownGUID), u8(34, 1)}, more...)...)
}

func (b *builder) write(n, off uint64, p []byte, more ...field) *builder {
	return b.rec(Write, append([]field{u64(8, n), u32(16, 19), u64(24, off), u64(32, uint64(len(p))), u64(40, ownGUID),
		payload(p...)}, more...)...)
}

func (b *builder) spill(n uint64, p []byte, more ...field) *builder {
	return b.rec(Spill, append([]field{u64(8, n), u64(16, uint64(len(p))), u64(24, ownGUID), payload(p...)}, more...)...)
}

func (b *builder) embedded(n, off, length, lsize uint64, c Compression, p []byte, more ...field) *builder {
	padded := append(slices.Clone(p), make([]byte, -len(p)&7)...)
	return b.rec(WriteEmbedded, append([]field{u64(8, n), u64(16, off), u64(24, length), u64(32, ownGUID), u8(40, uint64(c)),
		u32(48, lsize), u32(52, uint64(len(p))), payload(padded...)}, more...)...)
}

func (b *builder) free(n, off, length uint64) *builder {
	return b.rec(Free, u64(8, n), u64(16, off), u64(24, length), u64(32, ownGUID))
}

func (b *builder) freeObjects(first, count uint64) *builder {
	return b.rec(FreeObjects, u64(8, first), u64(16, count), u64(24, ownGUID))
}

// pos is where the next record begins.
func (b *builder) pos() int64 { return int64(len(b.b)) }

// end returns the stream so far and an END, with sums.
func (b *builder) end() []byte { return mend(slices.Clone(b.rec(End, u64(40, ownGUID)).b), false) }

// A split is where a record lies in a stream.
type split struct {
	typ        Type
	at         int // of the header
	end        int // of the payload
	big        bool
	inside     bool // of a substream or of a package's first pair, and not BEGIN
	unfinished bool // there is less than the header says
}

// splitRecords returns the records of a stream, as far as it is one.
func splitRecords(s []byte) []split {
	var out []split
	var h header
	inside := false
	for at := 0; len(s)-at >= headerSize; {
		copy(h.b[:], s[at:])
		if h.typ() == Begin || at == 0 {
			h.big = binary.BigEndian.Uint64(h.b[8:]) == magic
		}
		r := split{typ: h.typ(), at: at, big: h.big, inside: inside && h.typ() != Begin}
		left := len(s) - at - headerSize
		n := h.payload()
		r.unfinished = n > uint64(left)
		r.end = at + headerSize + int(min(n, uint64(left)))
		out = append(out, r)
		inside = h.typ() != End && (inside || h.typ() == Begin)
		at = r.end
	}
	return out
}

func orderOf(big bool) binary.ByteOrder {
	if big {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// mend puts the right sums into a stream, in place, as far as it is one. Old
// senders have none but END's.
func mend(s []byte, old bool) []byte {
	var sum [4]uint64
	for _, r := range splitRecords(s) {
		h, order := s[r.at:r.at+headerSize], orderOf(r.big)
		put := func(at int) {
			for i, v := range sum {
				order.PutUint64(h[at+8*i:], v)
			}
		}
		if r.typ == Begin {
			sum = plainFletcher4([4]uint64{}, h, order)
		} else {
			if r.inside && r.typ == End {
				put(8)
			}
			sum = plainFletcher4(sum, h[:sumAt], order)
			switch {
			case old:
				clear(h[sumAt:])
			case r.inside:
				put(sumAt)
			}
			sum = plainFletcher4(sum, h[sumAt:], order)
		}
		p := s[r.at+headerSize : r.end]
		sum = plainFletcher4(sum, p[:len(p)&^3], order)
	}
	return s
}

// words has where headers have 32-bit and 64-bit integers, of sections 1.3 to 1.7.
var words = [numTypes]struct{ u32s, u64s []int }{
	Begin:         {[]int{32, 36}, []int{8, 16, 24, 40, 48}},
	Object:        {[]int{16, 20, 24, 28, 36}, []int{8, 40, 56}},
	FreeObjects:   {nil, []int{8, 16, 24}},
	Write:         {[]int{16}, []int{8, 24, 32, 40, 56, 64, 72, 80, 88, 96}},
	Free:          {nil, []int{8, 16, 24, 32}},
	End:           {nil, []int{8, 16, 24, 32, 40}},
	WriteByRef:    {nil, []int{8, 16, 24, 32, 40, 48, 56, 72, 80, 88, 96, 104}},
	Spill:         {[]int{84}, []int{8, 16, 24, 40}},
	WriteEmbedded: {[]int{48, 52}, []int{8, 16, 24, 32}},
	ObjectRange:   {nil, []int{8, 16, 24}},
	Redact:        {nil, []int{8, 16, 24, 32}},
}

// bigEndian returns a little-endian stream as a host of the other byte order would
// have sent it, but for what is in payloads.
func bigEndian(tb testing.TB, s []byte) []byte {
	tb.Helper()
	out := slices.Clone(s)
	for _, r := range splitRecords(s) {
		if r.typ >= numTypes || r.unfinished {
			tb.Fatalf("%v at %d is no good record", r.typ, r.at)
		}
		h := out[r.at : r.at+headerSize]
		for _, at := range append([]int{0, 4}, words[r.typ].u32s...) {
			slices.Reverse(h[at : at+4])
		}
		for _, at := range words[r.typ].u64s {
			slices.Reverse(h[at : at+8])
		}
	}
	return mend(out, !slices.ContainsFunc(splitRecords(s), func(r split) bool {
		return r.inside && binary.LittleEndian.Uint64(s[r.at+sumAt:]) != 0
	}))
}
