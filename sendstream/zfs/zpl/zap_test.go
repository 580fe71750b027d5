package zpl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

// leafBlock returns a leaf of size bytes with those entries, chunk after chunk, and
// the offset of its first chunk.
func leafBlock(order binary.ByteOrder, size int, entries ...Entry) (block []byte, chunks int) {
	w := builder{order: order}
	w.u64(zapLeaf, 0, 0)
	w.u32(leafMagic)
	w.u16(0, uint16(len(entries)), 0, endOfChain)
	chunks = leafHeads + size/32*2
	w.b = append(w.b, make([]byte, size-len(w.b))...)
	n := 0
	chunk := func() []byte {
		n++
		return w.b[chunks+(n-1)*chunkSize:][:chunkSize]
	}
	chain := func(data []byte) (first uint16) {
		first = uint16(n)
		for len(data) > 0 {
			c := chunk()
			c[0] = chunkArray
			data = data[copy(c[arrayStart:arrayNext], data):]
			next := uint16(n)
			if len(data) == 0 {
				next = endOfChain
			}
			order.PutUint16(c[arrayNext:], next)
		}
		return first
	}
	for _, e := range entries {
		c := chunk()
		c[0], c[1] = chunkEntry, e.IntSize
		order.PutUint16(c[2:], endOfChain)
		order.PutUint16(c[4:], chain(append(slices.Clone(e.Name), 0)))
		order.PutUint16(c[6:], uint16(len(e.Name)+1))
		var value []byte
		for _, v := range e.Integers() {
			b := binary.BigEndian.AppendUint64(nil, v)
			value = append(value, b[8-e.IntSize:]...)
		}
		order.PutUint16(c[8:], chain(value))
		order.PutUint16(c[10:], uint16(len(e.Integers())))
	}
	for off := chunks + n*chunkSize; off < size; off += chunkSize {
		w.b[off] = chunkFree
	}
	return w.b, chunks
}

func TestLeaf(t *testing.T) {
	var squares []uint64
	for i := range uint64(30) {
		squares = append(squares, i*i)
	}
	want := []Entry{
		{Name: []byte("a"), IntSize: 8, Value: 1<<63 | 5},
		{Name: []byte(strings.Repeat("n", 20)), IntSize: 1, Value: 200},
		{Name: []byte(strings.Repeat("n", 21)), IntSize: 4, Value: 1 << 31},
		{Name: []byte(strings.Repeat("long", 255) + "123"), IntSize: 2, Value: 0, Values: squares},
		{Name: []byte(strings.Repeat("n", 42)), IntSize: 8, Value: 0, Values: squares},
		{Name: []byte("empty"), IntSize: 8, Values: []uint64{}},
	}
	for name, order := range orders {
		for _, size := range []int{4096, 16384, 131072} {
			b, _ := leafBlock(order, size, want...)
			// The stream's order is not the block's.
			got, err := DecodeBlock(b, 3, binary.LittleEndian)
			if err != nil {
				t.Fatalf("%s %d: %v", name, size, err)
			}
			if diff := cmp.Diff(want, got.Entries); diff != "" || got.Kind != Leaf || got.Order != order {
				t.Errorf("%s %d: %v, (-want +got):\n%s", name, size, got.Kind, diff)
			}
		}
	}
	for n, ok := range map[int]bool{1024: true, 1025: false} {
		long, _ := leafBlock(binary.BigEndian, 32768, manyIntegers(n))
		if _, err := DecodeBlock(long, 1, binary.BigEndian); (err == nil) != ok {
			t.Errorf("value of %d integers of 8 bytes: %v", n, err)
		}
	}
	empty, _ := leafBlock(binary.BigEndian, 512)
	if b, err := DecodeBlock(empty, 1, binary.BigEndian); err != nil || b.Kind != Leaf || b.Entries != nil {
		t.Errorf("empty: %+v, %v", b, err)
	}
}

// manyIntegers returns an entry of n integers.
func manyIntegers(n int) Entry {
	return Entry{Name: []byte("n"), IntSize: 8, Value: 1, Values: slices.Repeat([]uint64{1}, n)}
}

func TestLeafErrors(t *testing.T) {
	le := binary.LittleEndian
	entry := Entry{Name: []byte(strings.Repeat("n", 30)), IntSize: 8, Value: 7} // chunks 0; 1, 2; 3
	second := Entry{Name: []byte("m"), IntSize: 8, Value: 8}                    // chunks 4; 5; 6
	_, start := leafBlock(le, 1024)
	put16 := func(chunk, off int, v uint16) func([]byte) {
		return func(b []byte) { le.PutUint16(b[start+chunk*chunkSize+off:], v) }
	}
	put8 := func(chunk, off int, v byte) func([]byte) {
		return func(b []byte) { b[start+chunk*chunkSize+off] = v }
	}
	for name, edit := range map[string]func([]byte){
		"type of a chunk":         put8(9, 0, 250),
		"number of entries":       func(b []byte) { le.PutUint16(b[30:], 3) },
		"name chunk out of range": put16(0, 4, 38),
		"name chunk at the end":   put16(0, 4, endOfChain),
		"name of no bytes":        put16(0, 6, 1),
		"name too long":           put16(0, 6, 1025),
		"name chain too short":    put16(1, arrayNext, endOfChain),
		"name chain to an entry":  put16(1, arrayNext, 4),
		"name chain to itself":    put16(1, arrayNext, 1),
		"name chain to a free":    put16(1, arrayNext, 20),
		"name chain of another":   put16(4, 4, 2),
		"name ends early":         put8(1, 5, 0),
		"name has no end":         put8(2, arrayStart+9, 'x'),
		"size of integers":        put8(0, 1, 3),
		"too many integers":       put16(0, 10, 1025),
		"value chain too short":   put16(0, 10, 3),
		"value chain of another":  put16(4, 8, 3),
		"value is the name":       put16(4, 8, 5),
		"value chunk a free one":  put16(4, 8, 30),
	} {
		b, _ := leafBlock(le, 1024, entry, second)
		if _, err := DecodeBlock(b, 1, le); err != nil {
			t.Fatal(err)
		}
		edit(b)
		got, err := DecodeBlock(b, 1, le)
		if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Offset >= len(b) {
			t.Errorf("%s: %+v, %v", name, got.Entries, err)
		}
	}
}

// headerBlock returns the header of a fat ZAP with one leaf, block 1.
func headerBlock(order binary.ByteOrder, size int, entries uint64) []byte {
	shift := uint64(0)
	for 1<<shift < size/16 {
		shift++
	}
	w := builder{order: order}
	w.u64(zapFatHeader, fatMagic, 0, 0, shift, 0, 0, 2, 1, entries, 0xabc, 0x50, 1)
	w.pad(size / 2)
	for len(w.b) < size {
		w.u64(1)
	}
	return w.b
}

func TestFatHeader(t *testing.T) {
	for name, order := range orders {
		b, err := DecodeBlock(headerBlock(order, 1024, 2), 0, binary.LittleEndian)
		want := Header{TableShift: 6, FirstFree: 2, Leaves: 1, Entries: 2, Salt: 0xabc, Normalization: 0x50, Flags: 1}
		if diff := cmp.Diff(want, b.Header); err != nil || diff != "" || b.Kind != FatHeader {
			t.Errorf("%s: %v, %v (-want +got):\n%s", name, b.Kind, err, diff)
		}
		if diff := cmp.Diff(slices.Repeat([]uint64{1}, 64), slices.Collect(b.Pointers())); diff != "" {
			t.Errorf("%s: pointers (-want +got):\n%s", name, diff)
		}
	}
	le := binary.LittleEndian
	external := headerBlock(le, 1024, 2)
	le.PutUint64(external[16:], 5)
	le.PutUint64(external[24:], 2)
	le.PutUint64(external[32:], 8)
	if b, err := DecodeBlock(external, 0, le); err != nil || b.Header.TableStart != 5 || len(slices.Collect(b.Pointers())) != 0 {
		t.Errorf("external table: %+v, %v", b, err)
	}
	for off, v := range map[int]uint64{8: 1, 24: 1, 32: 63, 96: 2} {
		b := headerBlock(le, 1024, 2)
		le.PutUint64(b[off:], v)
		_, err := DecodeBlock(b, 0, le)
		if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Offset > off {
			t.Errorf("%d at %d: %v", v, off, err)
		}
	}
}

func TestPointerTable(t *testing.T) {
	for name, order := range orders {
		w := builder{order: order}
		for i := range uint64(64) {
			w.u64(i / 16)
		}
		b, err := DecodeBlock(w.b, 7, order)
		if err != nil || b.Kind != PointerTable {
			t.Fatalf("%s: %v, %v", name, b.Kind, err)
		}
		if diff := cmp.Diff([]uint64{0, 1, 2, 3}, slices.Compact(slices.Collect(b.Pointers()))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestMicro(t *testing.T) {
	for name, order := range orders {
		w := builder{order: order}
		w.u64(zapMicro, 0x1234, 0x10)
		w.pad(64)
		w.u64(0)
		w.pad(64) // a free slot
		w.u64(8<<60 | 9)
		w.u32(0)
		w.u16(0)
		w.bytes(strings.Repeat("n", 49))
		w.pad(512)
		b, err := DecodeBlock(w.b, 0, binary.LittleEndian)
		want := Block{
			Kind: Micro, Order: order, Header: Header{Salt: 0x1234, Normalization: 0x10},
			Entries: []Entry{{Name: []byte(strings.Repeat("n", 49)), IntSize: 8, Value: 8<<60 | 9}},
		}
		if diff := cmp.Diff(want, b, cmp.AllowUnexported(Block{})); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		w.b[128+63] = 'n'
		if _, err := DecodeBlock(w.b, 0, order); err == nil {
			t.Errorf("%s: a name without an end", name)
		}
		w.b[128+63] = 0
		w.b = append(w.b, make([]byte, 320512-len(w.b))...) // as large as in what was recorded
		if b, err := DecodeBlock(w.b, 0, order); err != nil || len(b.Entries) != 1 {
			t.Errorf("%s: %d bytes: %+v, %v", name, len(w.b), b, err)
		}
		clear(w.b[64:])
		if b, err := DecodeBlock(w.b, 0, order); err != nil || b.Entries != nil {
			t.Errorf("%s: empty: %+v, %v", name, b, err)
		}
	}
}

// TestBlockErrors is about blocks that are of no kind, or not where they should be.
func TestBlockErrors(t *testing.T) {
	le := binary.LittleEndian
	block := func(size int, first uint64) []byte {
		b := make([]byte, size)
		if size >= 8 {
			le.PutUint64(b, first)
		}
		return b
	}
	for _, tt := range []struct {
		name  string
		block []byte
		index uint64
	}{
		{"empty", nil, 0},
		{"short", block(511, zapMicro), 0},
		{"no multiple", block(513, zapMicro), 0},
		{"too large", block(2<<20, zapMicro), 0},
		{"micro behind the start", block(512, zapMicro), 1},
		{"header behind the start", headerBlock(le, 1024, 0), 1},
		{"leaf at the start", block(512, zapLeaf), 0},
		{"table at the start", block(512, 1), 0},
		{"fat of odd size", block(1536, zapFatHeader), 0},
		{"leaf of odd size", block(1536, zapLeaf), 1},
		{"leaf without magic", block(512, zapLeaf), 1},
		{"unknown", block(512, 0x8000000000000007), 1},
	} {
		got, err := DecodeBlock(tt.block, tt.index, le)
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
}

func TestDecodeZAP(t *testing.T) {
	le := binary.LittleEndian
	a, b := Entry{Name: []byte("a"), IntSize: 8, Value: 1}, Entry{Name: []byte("b"), IntSize: 8, Value: 2}
	leaf := func(entries ...Entry) []byte { l, _ := leafBlock(le, 1024, entries...); return l }
	got, err := DecodeZAP(map[uint64][]byte{0: headerBlock(le, 1024, 2), 1: leaf(a), 5: leaf(b)}, le)
	if diff := cmp.Diff([]Entry{a, b}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for name, blocks := range map[string]map[uint64][]byte{
		"no block":        {},
		"no first block":  {1: leaf(a)},
		"a leaf missing":  {0: headerBlock(le, 1024, 2), 1: leaf(a)},
		"a name twice":    {0: headerBlock(le, 1024, 2), 1: leaf(a), 2: leaf(a)},
		"a damaged block": {0: headerBlock(le, 1024, 1), 1: leaf(a), 2: make([]byte, 100)},
	} {
		if got, err := DecodeZAP(blocks, le); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestDirent(t *testing.T) {
	entry := func(name string, v uint64) *Entry { return &Entry{Name: []byte(name), IntSize: 8, Value: v} }
	for nibble, want := range map[uint64]filetree.Kind{
		0: 0, 1: filetree.Fifo, 2: filetree.CharDev, 4: filetree.Dir, 6: filetree.BlkDev, 8: filetree.File,
		10: filetree.Symlink, 12: filetree.Socket,
	} {
		got, err := entry(strings.Repeat("n", 1023), nibble<<60|MaxObject).Dirent()
		if err != nil || got != (Dirent{MaxObject, want}) {
			t.Errorf("type %d: %+v, %v", nibble, got, err)
		}
	}
	short := entry("a", 5)
	short.IntSize = 4
	several := layoutEntry("a", 5, 6)
	for i, e := range []*Entry{
		entry("", 5), entry(".", 5), entry("..", 5), entry("a/b", 5), entry(strings.Repeat("n", 1024), 5),
		entry("a", 0), entry("a", 8<<60), entry("a", 1<<48|5), entry("a", 1<<59|5), short, &several,
	} {
		if d, err := e.Dirent(); err == nil {
			t.Errorf("%d: %q %#x: %+v", i, e.Name, e.Value, d)
		}
	}
}

func TestMaster(t *testing.T) {
	entry := func(name string, v uint64) Entry { return Entry{Name: []byte(name), IntSize: 8, Value: v} }
	root := entry("ROOT", 34)
	m, err := DecodeMaster([]Entry{
		root, entry("VERSION", 5), entry("DELETE_QUEUE", 33), entry("SA_ATTRS", 32), entry("FUID", 90),
		entry("SHARES", 6), entry("normalization", 0x50), entry("utf8only", 1), entry("casesensitivity", 2),
		entry("userquota@", 7), layoutEntry("defaultuserquota", 1, 2),
	})
	want := Master{
		Root: 34, Version: 5, DeleteQueue: 33, SAAttrs: 32, FUID: 90, Shares: 6, Normalization: 0x50, UTF8Only: true,
		Case: CaseMixed,
	}
	if diff := cmp.Diff(want, m); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := DecodeMaster([]Entry{root, entry("VERSION", 6)}); !errors.Is(err, ErrVersion) {
		t.Errorf("version 6: %v", err)
	}
	for name, entries := range map[string][]Entry{
		"no root":          {entry("VERSION", 5)},
		"root of several":  {layoutEntry("ROOT", 34, 35)},
		"queue too high":   {root, entry("DELETE_QUEUE", MaxObject+1)},
		"nothing there is": nil,
	} {
		if m, err := DecodeMaster(entries); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}

	registry, layouts, err := DecodeSAMaster([]Entry{entry("REGISTRY", 35), entry("LAYOUTS", 36)})
	if registry != 35 || layouts != 36 || err != nil {
		t.Errorf("SA master node: %d, %d, %v", registry, layouts, err)
	}
	queue, err := DecodeDeleteQueue([]Entry{entry("a1f", 0xa1f), entry("2", 2)})
	if diff := cmp.Diff([]uint64{2, 0xa1f}, queue); err != nil || diff != "" {
		t.Errorf("delete queue: %v (-want +got):\n%s", err, diff)
	}
	for _, e := range []Entry{entry("a1f", 0xa1e), entry("x", 0), layoutEntry("2", 2, 2)} {
		if queue, err := DecodeDeleteQueue([]Entry{e}); err == nil {
			t.Errorf("delete queue: %v", queue)
		}
	}
}

// TestAllocations decodes blocks that claim more than they have: what is allocated is
// bounded by what is there.
func TestAllocations(t *testing.T) {
	le := binary.LittleEndian
	// Each entry of this leaf has the same long name: refused, since a chunk belongs
	// to one chain.
	shared, start := leafBlock(le, 131072, Entry{Name: []byte(strings.Repeat("n", 1023)), IntSize: 8, Value: 1})
	first := slices.Clone(shared[start : start+chunkSize])
	n := uint16(1)
	for off := start + 100*chunkSize; off+chunkSize <= len(shared); off += chunkSize {
		copy(shared[off:], first)
		n++
	}
	le.PutUint16(shared[30:], n)

	for name, f := range map[string]func() error{
		"leaf": func() error { _, err := DecodeBlock(shared, 1, le); return err },
		"ACL":  func() error { _, err := ParseACEs(make([]byte, 64), 1, 1<<40, le); return err },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if f() == nil {
			t.Errorf("%s: no error", name)
		}
		runtime.ReadMemStats(&after)
		got := after.TotalAlloc - before.TotalAlloc
		if got > 4*131072 || got == 0 {
			t.Errorf("%s: %d bytes allocated", name, got)
		}
	}
}

func TestKinds(t *testing.T) {
	if got := fmt.Sprint(KindOf(0o100644), KindOf(0o040755), KindOf(0o120777), KindOf(0o020600), KindOf(0o060600),
		KindOf(0o010600), KindOf(0o140600), uint8(KindOf(0o644))); got != "file dir symlink chr blk fifo sock 0" {
		t.Error(got)
	}
}
