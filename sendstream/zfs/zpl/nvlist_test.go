package zpl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// everything has a value of each type.
func everything() NVList {
	inner := NVList{{"x", NVUint64, uint64(7)}, {"s", NVString, "inner"}}
	return NVList{
		{"present", NVBoolean, true},
		{"byte", NVByte, uint64(200)},
		{"i16", NVInt16, int64(-2)},
		{"u16", NVUint16, uint64(65535)},
		{"i32", NVInt32, int64(math.MinInt32)},
		{"u32", NVUint32, uint64(math.MaxUint32)},
		{"i64", NVInt64, int64(math.MinInt64)},
		{"u64", NVUint64, uint64(math.MaxUint64)},
		{"string", NVString, "tank/home@mon"},
		{"bytes", NVByteArray, []byte{1, 2, 3, 4, 5}},
		{"no bytes", NVByteArray, []byte{}},
		{"i16s", NVInt16Array, []int64{-1, 2, -3}},
		{"u16s", NVUint16Array, []uint64{1, 65535}},
		{"i32s", NVInt32Array, []int64{-1}},
		{"u32s", NVUint32Array, []uint64{1, 2, 3}},
		{"i64s", NVInt64Array, []int64{-1, math.MaxInt64}},
		{"u64s", NVUint64Array, []uint64{1, math.MaxUint64}},
		{"strings", NVStringArray, []string{"a", "", "long enough to be padded"}},
		{"time", NVHrtime, int64(-5)},
		{"list", NVNvlist, inner},
		{"empty list", NVNvlist, NVList(nil)},
		{"lists", NVNvlistArray, []NVList{inner, nil, {{"deep", NVNvlist, inner}}}},
		{"yes", NVBooleanValue, true},
		{"no", NVBooleanValue, false},
		{"i8", NVInt8, int64(-128)},
		{"u8", NVUint8, uint64(255)},
		{"bools", NVBooleanArray, []bool{true, false, true}},
		{"i8s", NVInt8Array, []byte{255, 1}},
		{"u8s", NVUint8Array, []byte{255, 1, 2}},
		{"double", NVDouble, 2.5},
		{"", NVUint64, uint64(0)}, // a name of no bytes
	}
}

// packXDR writes a list as section 2.1 says.
func packXDR(w *builder, l NVList) {
	w.u32(0, 1)
	for _, p := range l {
		at := len(w.b)
		w.u32(0, 99, uint32(len(p.Name)))
		w.bytes(p.Name)
		w.pad(4)
		str := func(s string) {
			w.u32(uint32(len(s)))
			w.bytes(s)
			w.pad(4)
		}
		w.u32(uint32(p.Type))
		switch v := p.Value.(type) {
		case NVList:
			w.u32(1)
			packXDR(w, v)
		case []NVList:
			w.u32(uint32(len(v)))
			for _, l := range v {
				packXDR(w, l)
			}
		case string:
			w.u32(1)
			str(v)
		case []string:
			w.u32(uint32(len(v)))
			for _, s := range v {
				str(s)
			}
		case []byte:
			w.u32(uint32(len(v)))
			if p.Type == NVByteArray {
				w.bytes(string(v))
				w.pad(4)
				break
			}
			w.u32(uint32(len(v)))
			for _, x := range v {
				w.u32(uint32(x))
			}
		default:
			numbers, array := numbersOf(v)
			if p.Type == NVBoolean {
				w.u32(0)
				break
			}
			w.u32(uint32(len(numbers)))
			if array {
				w.u32(uint32(len(numbers)))
			}
			for _, x := range numbers {
				if size, _ := nativeSize(p.Type); size == 8 {
					w.u64(x)
				} else {
					w.u32(uint32(x))
				}
			}
		}
		w.order.PutUint32(w.b[at:], uint32(len(w.b)-at))
	}
	w.u32(0, 0)
}

// packNative writes pairs as section 2.2 says.
func packNative(w *builder, l NVList) {
	for _, p := range l {
		at := len(w.b)
		pad := func() {
			for (len(w.b)-at)%8 != 0 {
				w.b = append(w.b, 0)
			}
		}
		w.u32(0)
		w.u16(uint16(len(p.Name)+1), 0)
		w.u32(1, uint32(p.Type))
		count := func(n int) { w.order.PutUint32(w.b[at+8:], uint32(n)) }
		w.bytes(p.Name + "\x00")
		pad()
		var lists []NVList
		switch v := p.Value.(type) {
		case NVList:
			lists = []NVList{v}
			w.b = append(w.b, make([]byte, 24)...)
		case []NVList:
			lists = v
			count(len(v))
			w.b = append(w.b, make([]byte, 32*len(v))...)
		case string:
			w.bytes(v + "\x00")
		case []string:
			count(len(v))
			w.b = append(w.b, make([]byte, 8*len(v))...)
			for _, s := range v {
				w.bytes(s + "\x00")
			}
		case []byte:
			count(len(v))
			w.bytes(string(v))
		default:
			if p.Type == NVBoolean {
				count(0)
				break
			}
			numbers, _ := numbersOf(v)
			count(len(numbers))
			for _, x := range numbers {
				switch size, _ := nativeSize(p.Type); size {
				case 1:
					w.b = append(w.b, byte(x))
				case 2:
					w.u16(uint16(x))
				case 4:
					w.u32(uint32(x))
				default:
					w.u64(x)
				}
			}
		}
		pad()
		w.order.PutUint32(w.b[at:], uint32(len(w.b)-at))
		for _, l := range lists {
			packNative(w, l)
		}
	}
	w.u32(0)
}

// numbersOf returns the bits of a number, or of several.
func numbersOf(v any) (numbers []uint64, array bool) {
	one := func(x bool) uint64 {
		if x {
			return 1
		}
		return 0
	}
	switch v := v.(type) {
	case bool:
		return []uint64{one(v)}, false
	case int64:
		return []uint64{uint64(v)}, false
	case uint64:
		return []uint64{v}, false
	case float64:
		return []uint64{math.Float64bits(v)}, false
	case []bool:
		for _, x := range v {
			numbers = append(numbers, one(x))
		}
	case []int64:
		for _, x := range v {
			numbers = append(numbers, uint64(x))
		}
	case []uint64:
		numbers = v
	}
	return numbers, true
}

// packings returns l in each encoding.
func packings(l NVList) map[string][]byte {
	xdr := builder{b: []byte{1, 1, 0, 0}, order: binary.BigEndian}
	packXDR(&xdr, l)
	m := map[string][]byte{"XDR": xdr.b}
	for name, order := range orders {
		w := builder{b: []byte{0, 0, 0, 0}, order: order}
		if name == "little" {
			w.b[1] = 1
		}
		w.u32(0, 1)
		packNative(&w, l)
		m["native "+name] = w.b
	}
	return m
}

func TestNVList(t *testing.T) {
	for name, b := range packings(everything()) {
		got, n, err := ParseNVList(append(b, 0, 0, 0, 0))
		if diff := cmp.Diff(everything(), got); err != nil || n != len(b) || diff != "" {
			t.Errorf("%s: %v, %d of %d bytes (-want +got):\n%s", name, err, n, len(b), diff)
		}
		for n := range len(b) {
			_, _, err := ParseNVList(b[:n:n])
			if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Offset > n {
				t.Fatalf("%s: cut at %d of %d: %v", name, n, len(b), err)
			}
		}
	}
	for name, b := range packings(nil) {
		if got, n, err := ParseNVList(b); len(got) != 0 || n != len(b) || err != nil {
			t.Errorf("%s: empty: %v, %d of %d bytes, %v", name, got, n, len(b), err)
		}
	}
}

// TestNVListExample is the list of section 10.7.
func TestNVListExample(t *testing.T) {
	b := unhex(t, `
		0001 0000 0000 0000 0100 0000
		2800 0000 0e00 0000 0100 0000 0800 0000
		7265 7375 6d65 5f6f 626a 6563 7400 0000
		0400 0000 0000 0000
		2800 0000 0e00 0000 0100 0000 0800 0000
		7265 7375 6d65 5f6f 6666 7365 7400 0000
		0000 1400 0000 0000
		0000 0000`)
	got, n, err := ParseNVList(b)
	want := NVList{{"resume_object", NVUint64, uint64(4)}, {"resume_offset", NVUint64, uint64(1310720)}}
	if diff := cmp.Diff(want, got); err != nil || n != 96 || diff != "" {
		t.Errorf("%v, %d bytes (-want +got):\n%s", err, n, diff)
	}
	if v, ok := Get[uint64](got, "resume_offset", NVUint64); v != 1310720 || !ok {
		t.Errorf("resume_offset: %d %v", v, ok)
	}
	if v, ok := Get[string](got, "resume_offset", NVString); ok {
		t.Errorf("resume_offset is %q", v)
	}
}

func TestNVListErrors(t *testing.T) {
	nest := func(depth int) NVList {
		var l NVList
		for range depth {
			l = NVList{{"l", NVNvlist, l}}
		}
		return l
	}
	bad := map[string]NVList{
		"nested too deep": nest(nvMaxDepth + 1),
		"name too long":   {{strings.Repeat("n", nvMaxName+1), NVBoolean, true}},
		"NUL in a name":   {{"a\x00b", NVBoolean, true}},
		"unknown type":    {{"a", 99, uint64(1)}},
	}
	for name, l := range bad {
		for encoding, b := range packings(l) {
			if got, _, err := ParseNVList(b); err == nil {
				t.Errorf("%s, %s: %v", name, encoding, got)
			}
		}
	}
	for encoding, b := range packings(nest(nvMaxDepth)) {
		if _, _, err := ParseNVList(b); err != nil {
			t.Errorf("%s: lists nested %d deep: %v", encoding, nvMaxDepth, err)
		}
	}
	for name, b := range map[string][]byte{
		"encoding":   {2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"byte order": {0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"version":    {0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		if got, _, err := ParseNVList(b); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	for n, ok := range map[int]bool{nvMaxPairs: true, nvMaxPairs + 1: false} {
		w := builder{order: binary.BigEndian}
		w.u32(20, 1, 0, uint32(NVBoolean), 0)
		b := slices.Concat([]byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, bytes.Repeat(w.b, n), make([]byte, 8))
		if _, _, err := ParseNVList(b); (err == nil) != ok {
			t.Errorf("%d pairs: %v", n, err)
		}
	}
	// A list that ends before its pair does.
	w := builder{b: []byte{1, 1, 0, 0}, order: binary.BigEndian}
	w.u32(0, 1, 44, 1, 1)
	w.bytes("l\x00\x00\x00")
	w.u32(uint32(NVNvlist), 1, 0, 1, 0, 0, 0, 0, 0)
	if got, _, err := ParseNVList(w.b); err == nil {
		t.Errorf("a list shorter than its pair: %v", got)
	}
}

func TestDomains(t *testing.T) {
	domain := func(i uint64, d string) NVList {
		return NVList{{"fuid_idx", NVUint64, i}, {"fuid_domain", NVString, d}, {"fuid_offset", NVUint64, uint64(0)}}
	}
	table := func(l ...NVList) []byte {
		return packings(NVList{{"fuid_nvlist", NVNvlistArray, l}})["XDR"]
	}
	b := table(domain(1, "S-1-5-21-1-2-3"), domain(2, "S-1-5-32"))
	d, err := ParseDomains(append(b, make([]byte, 100)...), uint64(len(b)))
	if diff := cmp.Diff(Domains{1: "S-1-5-21-1-2-3", 2: "S-1-5-32"}, d); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for f, want := range map[FUID]string{1<<32 | 513: "S-1-5-21-1-2-3-513", 2 << 32: "S-1-5-32-0", 3 << 32: "", 1000: ""} {
		if got, ok := d.SID(f); got != want || ok != (want != "") {
			t.Errorf("%#x: %q %v", uint64(f), got, ok)
		}
	}
	if id, ok := FUID(1<<32 - 1).POSIX(); id != 1<<32-1 || !ok {
		t.Errorf("highest id: %d %v", id, ok)
	}
	if _, ok := FUID(1<<32 | 5).POSIX(); ok {
		t.Error("an id with a domain is no POSIX one")
	}
	if d, err := ParseDomains(nil, 0); d != nil || err != nil {
		t.Errorf("no table: %v, %v", d, err)
	}
	for name, f := range map[string]func() (Domains, error){
		"size": func() (Domains, error) { return ParseDomains(b, uint64(len(b))+1) },
		"twice": func() (Domains, error) {
			t := table(domain(1, "a"), domain(1, "b"))
			return ParseDomains(t, uint64(len(t)))
		},
		"index":      func() (Domains, error) { t := table(domain(1<<32, "a")); return ParseDomains(t, uint64(len(t))) },
		"no domain":  func() (Domains, error) { t := table(domain(1, "a")[:1]); return ParseDomains(t, uint64(len(t))) },
		"other list": func() (Domains, error) { t := packings(everything())["XDR"]; return ParseDomains(t, uint64(len(t))) },
		"cut":        func() (Domains, error) { return ParseDomains(b, uint64(len(b))-4) },
	} {
		if d, err := f(); err == nil {
			t.Errorf("%s: %v", name, d)
		}
	}
}
