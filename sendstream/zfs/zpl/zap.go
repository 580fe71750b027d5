package zpl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// A BlockKind says what a block of a ZAP is.
type BlockKind uint8

// The kinds of blocks (section 5).
const (
	Micro        BlockKind = 1 // block 0, the only one: entries in slots of 64 bytes
	FatHeader    BlockKind = 2 // block 0 of a ZAP with leaves
	Leaf         BlockKind = 3 // entries in chunks of 24 bytes
	PointerTable BlockKind = 4 // numbers of leaves
)

func (k BlockKind) String() string {
	if k >= Micro && k <= PointerTable {
		return [...]string{"micro ZAP", "fat ZAP header", "ZAP leaf", "ZAP pointer table"}[k-1]
	}
	return "ZAP block"
}

// The first words of blocks, and the magic numbers behind them.
const (
	zapLeaf      = 0x8000000000000000
	zapFatHeader = 0x8000000000000001
	zapMicro     = 0x8000000000000003

	fatMagic  = 0x2F52AB2AB
	leafMagic = 0x2AB1EAF
)

// Bounds of ZAPs (section 8).
const (
	minZAPBlock   = 512
	maxZAPBlock   = 1 << 20
	maxEntryName  = 1023 // without the NUL
	maxEntryValue = 8192 // bytes
)

// An Entry maps a name to one or more integers. Its slices may be parts of the block
// it was decoded from.
type Entry struct {
	Name    []byte
	IntSize uint8  // bytes of an integer: 1, 2, 4 or 8
	Value   uint64 // the first integer; most entries have one
	// Values are all integers. It is nil if there is exactly one.
	Values []uint64
}

// Uint64 returns the value if it is one integer of 64 bits, as it is in everything
// but layouts.
func (e *Entry) Uint64() (uint64, bool) { return e.Value, e.Values == nil && e.IntSize == 8 }

// Integers returns all integers.
func (e *Entry) Integers() []uint64 {
	if e.Values == nil {
		return []uint64{e.Value}
	}
	return e.Values
}

// A Header is what the first block of a ZAP says of the whole. A micro ZAP has Salt
// and Normalization only.
type Header struct {
	TableStart    uint64 // first block of the pointer table; 0 if it is in the header
	TableBlocks   uint64 // 0 likewise
	TableShift    uint64 // log2 of its entries
	NextTable     uint64 // first block of the one that takes its place while it grows
	Copied        uint64 // blocks of the old one copied
	FirstFree     uint64 // the first block not in use
	Leaves        uint64
	Entries       uint64 // in all leaves
	Salt          uint64
	Normalization uint64 // see Master.Normalization
	Flags         uint64
}

// A Block is one block of a ZAP.
type Block struct {
	Kind    BlockKind
	Order   binary.ByteOrder // of the block; for a pointer table the one passed in
	Header  Header           // of Micro and FatHeader
	Entries []Entry          // of Micro and Leaf, in the order of the bytes, which means nothing

	// Of a Leaf: the hashes of its names begin with these bits.
	Prefix    uint64
	PrefixLen uint16

	table []byte // pointers
}

// Pointers returns the block numbers of leaves that a pointer table, or the one in a
// header, has. Many follow each other that are equal.
func (b *Block) Pointers() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for t := b.table; len(t) >= 8; t = t[8:] {
			if !yield(b.Order.Uint64(t)) {
				return
			}
		}
	}
}

// DecodeBlock decodes a block of a ZAP by itself. index is its number: its offset in
// the object divided by the object's block size, which is len(block). order is the
// byte order of the stream, but a block's own tells more. Names in the result are not
// checked for what they mean: see [Entry.Dirent]. Errors are *FormatError.
func DecodeBlock(block []byte, index uint64, order binary.ByteOrder) (Block, error) {
	n := len(block)
	if n < minZAPBlock || n > maxZAPBlock || n%minZAPBlock != 0 {
		return Block{}, bad("ZAP block", 0, "%d bytes", n)
	}
	b := Block{Order: blockOrder(block, order)}
	first := b.Order.Uint64(block)
	var err error
	switch {
	case index == 0 && first == zapMicro:
		b.Kind = Micro
		err = b.micro(block)
	case n&(n-1) != 0:
		err = bad("ZAP block", 0, "%d bytes, not a power of two", n)
	case index == 0 && first == zapFatHeader:
		b.Kind = FatHeader
		err = b.fatHeader(block)
	case index == 0:
		err = bad("ZAP block", 0, "block 0 is of type %#x", first)
	case first == zapLeaf && b.Order.Uint32(block[24:]) == leafMagic:
		b.Kind = Leaf
		err = b.leaf(block)
	case first>>63 != 0: // no block has such a number
		err = bad("ZAP block", 0, "block %d is of type %#x", index, first)
	default:
		b = Block{Kind: PointerTable, Order: order, table: block}
	}
	if err != nil {
		return Block{}, err
	}
	return b, nil
}

// blockOrder returns the order in which the first word of a block makes sense, and
// otherwise the one of the stream.
func blockOrder(block []byte, stream binary.ByteOrder) binary.ByteOrder {
	for _, o := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch o.Uint64(block) {
		case zapLeaf, zapFatHeader, zapMicro:
			return o
		}
	}
	return stream
}

// Offsets in the slots of a micro ZAP.
const (
	slotSize = 64
	slotName = 14
)

// micro decodes a micro ZAP (section 5.2).
func (b *Block) micro(block []byte) error {
	b.Header.Salt = b.Order.Uint64(block[8:])
	b.Header.Normalization = b.Order.Uint64(block[16:])
	n := 0
	for off := slotSize; off < len(block); off += slotSize {
		if block[off+slotName] != 0 {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	b.Entries = make([]Entry, 0, n)
	for off := slotSize; off < len(block); off += slotSize {
		name := block[off+slotName : off+slotSize]
		switch i := bytes.IndexByte(name, 0); {
		case i < 0:
			return bad(Micro.String(), off+slotName, "name without an end")
		case i > 0:
			b.Entries = append(b.Entries, Entry{Name: name[:i:i], IntSize: 8, Value: b.Order.Uint64(block[off:])})
		}
	}
	return nil
}

// fatHeader decodes the header of a fat ZAP (section 5.3).
func (b *Block) fatHeader(block []byte) error {
	u64 := func(off int) uint64 { return b.Order.Uint64(block[off:]) }
	if u64(8) != fatMagic {
		return bad(FatHeader.String(), 8, "magic %#x", u64(8))
	}
	h := &b.Header
	*h = Header{
		TableStart: u64(16), TableBlocks: u64(24), TableShift: u64(32), NextTable: u64(40), Copied: u64(48),
		FirstFree: u64(56), Leaves: u64(64), Entries: u64(72), Salt: u64(80), Normalization: u64(88), Flags: u64(96),
	}
	if h.Flags > 1 {
		return bad(FatHeader.String(), 96, "flags %#x", h.Flags) // names are numbers, or something new
	}
	if h.TableStart != 0 {
		return nil
	}
	b.table = block[len(block)/2:]
	if h.TableBlocks != 0 || h.TableShift > 32 || 1<<h.TableShift != len(b.table)/8 {
		return bad(FatHeader.String(), 24, "pointer table of %d blocks, 2^%d entries", h.TableBlocks, h.TableShift)
	}
	return nil
}

// Offsets in leaves and their chunks.
const (
	leafHeads = 48 // hash heads; then come chunks
	chunkSize = 24

	chunkEntry = 252
	chunkArray = 251
	chunkFree  = 253

	arrayStart = 1
	arrayNext  = 22
	arraySize  = arrayNext - arrayStart
	endOfChain = 0xFFFF
)

// A leafReader follows the chains of a leaf.
type leafReader struct {
	chunks []byte // whole chunks only
	start  int    // of the chunks in the block
	order  binary.ByteOrder
	// used marks chunks that were seen in a chain: none is in two, so what is read
	// is never more than there is.
	used []uint64
}

// leaf decodes a leaf by looking at every chunk: hash chains say nothing more.
func (b *Block) leaf(block []byte) error {
	heads := len(block) / 32 * 2
	r := leafReader{start: leafHeads + heads, order: b.Order}
	r.chunks = block[r.start:][:((len(block)-heads)/chunkSize-2)*chunkSize]

	announced := int(b.Order.Uint16(block[30:]))
	b.Prefix, b.PrefixLen = b.Order.Uint64(block[16:]), b.Order.Uint16(block[32:])
	n, long := 0, 0 // entries, and bytes of names that are in several chunks
	for c := r.chunks; len(c) > 0; c = c[chunkSize:] {
		switch c[0] {
		case chunkEntry:
			n++
			if l := int(b.Order.Uint16(c[6:])); l > arraySize {
				long += l
			}
		case chunkArray, chunkFree:
		default:
			return bad(Leaf.String(), r.start+len(r.chunks)-len(c), "chunk of type %d", c[0])
		}
	}
	if n != announced {
		return bad(Leaf.String(), 30, "%d entries, %d announced", n, announced)
	}
	if n == 0 {
		return nil
	}
	r.used = make([]uint64, (len(r.chunks)/chunkSize+63)/64)
	names := make([]byte, 0, min(long, len(r.chunks)))
	b.Entries = make([]Entry, 0, n)
	for off := 0; off < len(r.chunks); off += chunkSize {
		c := r.chunks[off : off+chunkSize]
		if c[0] != chunkEntry {
			continue
		}
		var e Entry
		var err error
		if e.Name, names, err = r.name(c, names); err == nil {
			err = r.value(&e, c)
		}
		if err != nil {
			return &FormatError{Leaf.String(), r.start + off, err}
		}
		b.Entries = append(b.Entries, e)
	}
	return nil
}

// name reads the name of an entry. What does not lie in one piece is appended to
// names.
func (r *leafReader) name(c, names []byte) (name, _ []byte, err error) {
	size := int(r.order.Uint16(c[6:])) // with the NUL
	if size < 2 || size > maxEntryName+1 {
		return nil, nil, fmt.Errorf("name of %d bytes", size-1)
	}
	name, names, err = r.chain(names, r.order.Uint16(c[4:]), size)
	if err != nil {
		return nil, nil, err
	}
	if bytes.IndexByte(name, 0) != size-1 {
		return nil, nil, errors.New("name does not end where it should")
	}
	return name[: size-1 : size-1], names, nil
}

// value reads the integers of an entry, which are big endian in all leaves.
func (r *leafReader) value(e *Entry, c []byte) error {
	e.IntSize = c[1]
	size, n := int(e.IntSize), int(r.order.Uint16(c[10:]))
	switch {
	case size != 1 && size != 2 && size != 4 && size != 8:
		return fmt.Errorf("integers of %d bytes", size)
	case n*size > maxEntryValue:
		return fmt.Errorf("%d integers of %d bytes", n, size)
	case n == 0:
		e.Values = []uint64{}
		return nil
	}
	v, _, err := r.chain(nil, r.order.Uint16(c[8:]), n*size)
	if err != nil {
		return err
	}
	e.Value = integer(binary.BigEndian, v, size)
	if n == 1 {
		return nil
	}
	e.Values = make([]uint64, n)
	for i := range e.Values {
		e.Values[i] = integer(binary.BigEndian, v[i*size:], size)
	}
	return nil
}

var (
	errChunkTwice = errors.New("a chunk is in two chains")
	errChain      = errors.New("chain to a chunk that is no array")
)

// chain returns the n bytes, at least one, of the chain of arrays that begins with
// chunk i: a part of the block if they are in one chunk, otherwise appended to buf.
func (r *leafReader) chain(buf []byte, i uint16, n int) (b, _ []byte, err error) {
	from := len(buf)
	for {
		off := int(i) * chunkSize
		if i == endOfChain || off >= len(r.chunks) || r.chunks[off] != chunkArray {
			return nil, nil, errChain
		}
		if word, bit := &r.used[i/64], uint64(1)<<(i%64); *word&bit != 0 {
			return nil, nil, errChunkTwice
		} else {
			*word |= bit
		}
		c := r.chunks[off : off+chunkSize]
		data := c[arrayStart:arrayNext]
		if n <= arraySize {
			if len(buf) == from {
				return data[:n:n], buf, nil
			}
			buf = append(buf, data[:n]...)
			return buf[from:len(buf):len(buf)], buf, nil
		}
		buf = append(buf, data...)
		n -= arraySize
		i = r.order.Uint16(c[arrayNext:])
	}
}

// DecodeZAP decodes a whole ZAP, of which blocks has all blocks by number, and checks
// that they belong together. It is for the few that are needed as a whole; directories
// are kept block by block. Errors are *FormatError, with offsets in a block.
func DecodeZAP(blocks map[uint64][]byte, order binary.ByteOrder) ([]Entry, error) {
	first, err := DecodeBlock(blocks[0], 0, order)
	if err != nil {
		return nil, err
	}
	entries := first.Entries
	if first.Kind == FatHeader {
		for _, i := range slices.Sorted(maps.Keys(blocks)) {
			if i == 0 {
				continue
			}
			b, err := DecodeBlock(blocks[i], i, first.Order)
			if err != nil {
				return nil, err
			}
			entries = append(entries, b.Entries...)
		}
		if uint64(len(entries)) != first.Header.Entries {
			return nil, bad("ZAP", 72, "%d entries, %d announced", len(entries), first.Header.Entries)
		}
	}
	seen := make(map[string]bool, len(entries))
	for i := range entries {
		name := string(entries[i].Name)
		if seen[name] {
			return nil, bad("ZAP", 0, "%q is there twice", name)
		}
		seen[name] = true
	}
	return entries, nil
}

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
