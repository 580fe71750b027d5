package nvlist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A packer packs lists, to be parsed.
type packer struct {
	xdr   bool
	order interface {
		binary.ByteOrder
		binary.AppendByteOrder
	}
}

var packers = map[string]packer{
	"xdr":                   {true, binary.BigEndian},
	"native, little endian": {false, binary.LittleEndian},
	"native, big endian":    {false, binary.BigEndian},
}

func (p packer) pack(l List) []byte {
	b := []byte{0, 1, 0, 0}
	switch {
	case p.xdr:
		b[0] = 1
	case p.order.String() == "BigEndian":
		b[1] = 0
	}
	return append(b, p.list(l)...)
}

func (p packer) u32(n int) []byte { return p.order.AppendUint32(nil, uint32(n)) }

func padTo(b []byte, n int) []byte { return append(b, make([]byte, (n-len(b)%n)%n)...) }

func (p packer) list(l List) []byte {
	b := append(p.u32(0), p.u32(1)...)
	return append(b, p.pairs(l)...)
}

func (p packer) pairs(l List) []byte {
	var b []byte
	for _, pair := range l {
		v, n, follows := p.value(pair)
		if p.xdr {
			body := append(p.u32(len(pair.Name)), padTo([]byte(pair.Name), 4)...)
			body = append(append(append(body, p.u32(int(pair.Type))...), p.u32(n)...), v...)
			b = append(append(append(b, p.u32(len(body)+8)...), p.u32(1)...), body...)
			continue
		}
		head := p.order.AppendUint16(nil, uint16(len(pair.Name)+1))
		head = append(append(append(head, 0, 0), p.u32(n)...), p.u32(int(pair.Type))...)
		head = append(append(head, pair.Name...), 0)
		body := append(make([]byte, 4), head...)
		body = padTo(append(padTo(body, 8), v...), 8)
		copy(body, p.u32(len(body)))
		b = append(append(b, body...), follows...)
	}
	if p.xdr {
		return append(b, make([]byte, 8)...)
	}
	return append(b, make([]byte, 4)...)
}

// value packs a value; n is the number of its elements, follows what comes behind
// the pair.
func (p packer) value(pair Pair) (v []byte, n int, follows []byte) {
	// number has size bytes, in XDR at least 4.
	number := func(size int, x uint64) {
		if p.xdr {
			size = max(size, 4)
		}
		switch size {
		case 1:
			v = append(v, byte(x))
		case 2:
			v = p.order.AppendUint16(v, uint16(x))
		case 4:
			v = p.order.AppendUint32(v, uint32(x))
		case 8:
			v = p.order.AppendUint64(v, x)
		}
	}
	count := func(n int) int {
		if p.xdr {
			v = append(v, p.u32(n)...)
		}
		return n
	}
	text := func(s string) {
		if p.xdr {
			v = append(append(v, p.u32(len(s))...), padTo([]byte(s), 4)...)
			return
		}
		v = append(append(v, s...), 0)
	}
	truth := func(x bool) {
		if x {
			number(4, 1)
		} else {
			number(4, 0)
		}
	}
	n = 1
	switch x := pair.Value.(type) {
	case nil:
		n = 0
	case uint8:
		number(1, uint64(x))
	case int8:
		number(1, uint64(x))
	case int16:
		number(2, uint64(x))
	case uint16:
		number(2, uint64(x))
	case int32:
		number(4, uint64(x))
	case uint32:
		number(4, uint64(x))
	case int64:
		number(8, uint64(x))
	case uint64:
		number(8, x)
	case float64:
		number(8, math.Float64bits(x))
	case bool:
		truth(x)
	case string:
		text(x)
	case []byte:
		n = len(x)
		if pair.Type == ByteArray {
			v = append(v, x...)
			if p.xdr {
				v = padTo(v, 4)
			}
			break
		}
		count(n)
		for _, e := range x {
			number(1, uint64(e))
		}
	case []int8:
		n = count(len(x))
		for _, e := range x {
			number(1, uint64(e))
		}
	case []int16:
		n = count(len(x))
		for _, e := range x {
			number(2, uint64(e))
		}
	case []uint16:
		n = count(len(x))
		for _, e := range x {
			number(2, uint64(e))
		}
	case []int32:
		n = count(len(x))
		for _, e := range x {
			number(4, uint64(e))
		}
	case []uint32:
		n = count(len(x))
		for _, e := range x {
			number(4, uint64(e))
		}
	case []int64:
		n = count(len(x))
		for _, e := range x {
			number(8, uint64(e))
		}
	case []uint64:
		n = count(len(x))
		for _, e := range x {
			number(8, e)
		}
	case []bool:
		n = count(len(x))
		for _, e := range x {
			truth(e)
		}
	case []string:
		n = len(x)
		if !p.xdr {
			v = make([]byte, 8*n)
		}
		for _, e := range x {
			text(e)
		}
	case List:
		if p.xdr {
			return p.list(x), 1, nil
		}
		return make([]byte, 24), 1, p.pairs(x)
	case []List:
		n = len(x)
		for _, e := range x {
			if p.xdr {
				v = append(v, p.list(e)...)
				continue
			}
			v = append(v, make([]byte, 8+24)...)
			follows = append(follows, p.pairs(e)...)
		}
	}
	return v, n, follows
}

// everything has a pair of each type.
var everything = List{
	{"boolean", Boolean, nil},
	{"byte", Byte, uint8(200)},
	{"int16", Int16, int16(-2)},
	{"uint16", Uint16, uint16(65535)},
	{"int32", Int32, int32(-3)},
	{"uint32", Uint32, uint32(4e9)},
	{"int64", Int64, int64(-4)},
	{"uint64", Uint64, uint64(1 << 63)},
	{"string", String, "pool/fs"},
	{"empty string", String, ""},
	{"bytes", ByteArray, []byte("hello")},
	{"no bytes", ByteArray, []byte{}},
	{"int16s", Int16Array, []int16{1, -2, 3}},
	{"uint16s", Uint16Array, []uint16{1, 65535, 3}},
	{"int32s", Int32Array, []int32{-1}},
	{"uint32s", Uint32Array, []uint32{1, 2, 3}},
	{"int64s", Int64Array, []int64{-1, 1}},
	{"uint64s", Uint64Array, []uint64{1, 1 << 63}},
	{"strings", StringArray, []string{"a", "", "some more"}},
	{"hrtime", HRTime, int64(1e18)},
	{"nested", Nested, List{{"x", Uint64, uint64(1)}, {"deeper", Nested, List{{"y", Boolean, nil}}}}},
	{"empty", Nested, List{}},
	{"lists", NestedArray, []List{{{"a", Uint64, uint64(1)}}, {}, {{"b", String, "b"}}}},
	{"true", BooleanValue, true},
	{"false", BooleanValue, false},
	{"int8", Int8, int8(-5)},
	{"uint8", Uint8, uint8(250)},
	{"booleans", BooleanArray, []bool{true, false, true}},
	{"int8s", Int8Array, []int8{-1, 2, -3}},
	{"uint8s", Uint8Array, []uint8{255, 0, 1, 2, 3}},
	{"double", Double, 1.5},
	{"", String, "without a name"},
	{"string", String, "the second of this name"},
}

func TestParse(t *testing.T) {
	for name, p := range packers {
		t.Run(name, func(t *testing.T) {
			b := p.pack(everything)
			got, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(everything, got); diff != "" {
				t.Errorf("pairs (-want +got):\n%s", diff)
			}
			if _, err := Parse(append(b, make([]byte, 12)...)); err != nil {
				t.Errorf("with padding: %v", err)
			}
			clear(b) // got has copies
			if diff := cmp.Diff(everything, got); diff != "" {
				t.Errorf("pairs, after the input is gone (-want +got):\n%s", diff)
			}
		})
	}
}

// TestExamples has lists of real writers, of sections 10.3 and 10.7 of the
// specification.
func TestExamples(t *testing.T) {
	tests := map[string]List{
		"\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x24\x00\x00\x00\x28\x00\x00\x00\x09user.note\x00\x00\x00" +
			"\x00\x00\x00\x0a\x00\x00\x00\x02hi\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00": {{"user.note", ByteArray, []byte("hi")}},
		"\x00\x01\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00" +
			"\x28\x00\x00\x00\x0e\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00resume_object\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00" +
			"\x28\x00\x00\x00\x0e\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00resume_offset\x00\x00\x00\x00\x00\x14\x00\x00\x00\x00\x00" +
			"\x00\x00\x00\x00": {{"resume_object", Uint64, uint64(4)}, {"resume_offset", Uint64, uint64(1310720)}},
	}
	for packed, want := range tests {
		got, err := Parse([]byte(packed))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v, pairs (-want +got):\n%s", err, diff)
		}
	}
}

func TestLookup(t *testing.T) {
	l := List{{"a", String, "one"}, {"n", Uint64, uint64(2)}, {"a", Uint64, uint64(3)}, {"s", Uint64Array, []uint64{4}}, {"l", Nested, List{{"b", Boolean, nil}}}}
	if v, ok := l.String("a"); v != "one" || !ok {
		t.Errorf("string a: %q, %v", v, ok)
	}
	if v, ok := l.Uint64("a"); v != 3 || !ok {
		t.Errorf("number a: %d, %v", v, ok)
	}
	if v, ok := l.Uint64("b"); v != 0 || ok {
		t.Errorf("number b: %d, %v", v, ok)
	}
	if v, ok := l.Uint64s("s"); !ok || !cmp.Equal(v, []uint64{4}) {
		t.Errorf("numbers s: %v, %v", v, ok)
	}
	if v, ok := (List{{"a", NestedArray, []List{l}}}).Lists("a"); !ok || len(v) != 1 || !v[0].Has("n") {
		t.Errorf("lists a: %v, %v", v, ok)
	}
	if v, ok := l.List("l"); !ok || !v.Has("b") || v.Has("a") {
		t.Errorf("list l: %v, %v", v, ok)
	}
}

func TestParseErrors(t *testing.T) {
	for name, p := range packers {
		t.Run(name, func(t *testing.T) {
			good := p.pack(everything)
			// What is cut is cut; only the zeros of the mark at the end may be longer.
			for n := range len(good) {
				if _, err := Parse(good[:n]); !errors.Is(err, ErrMalformed) {
					t.Fatalf("cut at %d of %d: %v", n, len(good), err)
				}
			}
			deep := List{}
			for range maxDepth {
				deep = List{{"l", Nested, deep}}
			}
			bad := map[string][]byte{
				"encoding":        append([]byte{2}, good[1:]...),
				"endian":          append([]byte{good[0], 2}, good[2:]...),
				"version":         append(append(good[:4:4], 1, 1, 1, 1), good[8:]...),
				"something after": append(good[:len(good):len(good)], 0, 1),
				"deep":            p.pack(deep),
				"long name":       p.pack(List{{strings.Repeat("n", maxName+1), Boolean, nil}}),
				"type 0":          p.pack(List{{"x", 0, nil}}),
				"type 28":         p.pack(List{{"x", 28, nil}}),
				"no value":        p.pack(List{{"x", Uint64, nil}}),
				"no string":       p.pack(List{{"x", StringArray, []string{}}, {"y", String, nil}}),
				"NUL in a name":   p.pack(List{{"a\x00b", Boolean, nil}}),
				"too many pairs":  p.repeat(Pair{"", Boolean, nil}, maxPairs+1),
			}
			for what, b := range bad {
				if l, err := Parse(b); !errors.Is(err, ErrMalformed) {
					t.Errorf("%s: %v, %v", what, l, err)
				}
			}
			if _, err := Parse(p.pack(deep[0].Value.(List))); err != nil {
				t.Errorf("as deep as may be: %v", err)
			}
			if l, err := Parse(p.repeat(Pair{"", Boolean, nil}, maxPairs)); len(l) != maxPairs || err != nil {
				t.Errorf("%d of as many pairs as may be: %v", len(l), err)
			}
			// Sizes and counts that lie, at every place.
			for at := 0; at+4 <= len(good); at += 4 {
				for _, v := range []uint32{0, 1, 4, math.MaxInt32, 1 << 31, math.MaxUint32} {
					b := append([]byte(nil), good...)
					p.order.PutUint32(b[at:], v)
					Parse(b) // does not panic, nor takes memory for what is not there
				}
			}
		})
	}
}

// repeat packs a list of the same pair, n times.
func (p packer) repeat(pair Pair, n int) []byte {
	empty, one := p.pack(nil), p.pack(List{pair})
	mark := len(empty) - 12 // the zeros at the end
	return slices.Concat(one[:12], bytes.Repeat(one[12:len(one)-mark], n), empty[12:])
}

// TestShortNested: a list that ends before the pair it is in.
func TestShortNested(t *testing.T) {
	p := packers["xdr"]
	b := p.pack(List{{"l", Nested, List{}}})
	long := slices.Concat(b[:12], p.u32(len(b)-12-8+4), b[16:len(b)-8], make([]byte, 4+8))
	if l, err := Parse(long); !errors.Is(err, ErrMalformed) {
		t.Errorf("%v, %v", l, err)
	}
}

// TestParseAllocs: what is announced and not there takes no memory.
func TestParseAllocs(t *testing.T) {
	for name, p := range packers {
		huge := slices.Concat(p.u32(1<<28), make([]byte, 4000))
		b := p.pack(List{{"numbers", Uint64Array, []uint64{}}, {"strings", StringArray, []string{}}, {"lists", NestedArray, []List{}}})
		for at := 12; at+4 <= len(b); at += 4 {
			lie := slices.Concat(b[:at], huge)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			Parse(lie)
			runtime.ReadMemStats(&after)
			if got := after.TotalAlloc - before.TotalAlloc; got > 100<<10 {
				t.Errorf("%s, word at %d: %d bytes allocated for %d", name, at, got, len(lie))
			}
		}
	}
}

// FuzzParse: no input makes it panic, or take memory out of proportion.
func FuzzParse(f *testing.F) {
	for _, p := range packers {
		f.Add(p.pack(everything))
		f.Add(p.pack(List{{"resume_object", Uint64, uint64(4)}}))
		f.Add(p.pack(List{{"l", NestedArray, []List{{}, {}}}}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		// What was understood is understood again when packed by the book.
		for name, p := range packers {
			again, err := Parse(p.pack(l))
			if err != nil || !sameList(l, again) {
				t.Fatalf("%s: %v, pairs (-first +again):\n%s", name, err, cmp.Diff(l, again))
			}
		}
	})
}

// sameList compares lists; a number that is none is like another one.
func sameList(a, b List) bool {
	return cmp.Equal(a, b, cmp.Comparer(func(x, y float64) bool { return math.Float64bits(x) == math.Float64bits(y) }))
}
