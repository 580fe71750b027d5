// Package delta finds how little must be stored for a new version of some
// bytes when the old ones, the base, are at hand. It has two answers, and its
// caller stores the smaller one, or neither if the compressed bytes are smaller
// still:
//
//	base ─┬─► Diff ──► ops: copy base[a:b], insert data[c:d], …
//	data ─┘
//	base ─┬─► Patch ─► one zstd frame that has base as its dictionary
//	data ─┘
//
// Diff is for bytes that were moved, inserted and overwritten: a copy costs its
// user a row that refers to what is stored already, so reading it back needs
// only what it refers to. Patch is for bytes that changed a little everywhere,
// as a relinked program does; reading it back needs all of the base.
//
// Diff first trims what base and data have in common at both ends. What is left
// is walked from left to right. Where a copy has ended, the next one is looked
// for nearby and at the same distance between base and data, as after bytes
// that were overwritten; that costs a comparison. Only where it fails is base
// indexed, by a hash of every 16 bytes of it, and the index asked at every byte
// of data, so that any run of 31 bytes which both have is found, unless base
// repeats itself more often than the index cares to follow. A match is extended
// byte by byte in both directions.
//
// The package trusts base and data to be plain bytes in memory, and a patch not
// at all. It does no I/O and knows nothing of where bytes are stored.
package delta

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// An Op says where a range of the new version comes from: from the base, or
// from nowhere but the new version itself.
type Op struct {
	Copy       bool
	BaseOffset int // of a copy; 0 for an insert
	NewOffset  int
	Length     int // never 0
}

// Options say what is worth a copy. The zero value is the default.
type Options struct {
	// CopyCost is what an op costs its user, in bytes. A copy is made only
	// if it saves more: once the cost at the edge of an insert, twice in
	// the midst of one, which it splits. 0 means 18.
	CopyCost int
	// MinCopy is the length of the shortest copy. 0 means 32.
	MinCopy int
	// InPlace is the offset in base of what data replaces. With it, base may
	// be a window of an old file that begins before the new data does.
	InPlace int
}

// Sizes of the index. See [Differ].
const (
	window     = 16      // bytes that are hashed
	maxEntries = 1 << 18 // blocks of base that are indexed
	maxChain   = 8       // candidates that are tried for one hash
	filterBits = 16      // bits in the filter for an entry of the hash table
	minTable   = 8       // log of the size of the smallest hash table
)

// A Differ is the memory that Diff needs, for reuse. It must not be used
// concurrently. It holds up to 4 MiB and the ops: of a base longer than 4 MiB
// fewer blocks are indexed, and short matches are missed.
//
// Any lengths work; meant are a base of up to a few MiB and data of up to one.
// Time grows with the sum of both whatever the bytes are, since no more than
// maxChain candidates are tried at a byte.
type Differ struct {
	filter []uint64 // a bit by hash: 0 if no block has it; filterBits for each of head
	head   []int32  // by hash: 1 + the number of the first block, or 0
	next   []int32  // by block: 1 + the number of the next block with this hash, or 0
	ops    []Op

	// The rest is valid during a call of Diff.

	base, data []byte
	step       int  // bytes from block to block
	shift      uint // of a hash, so that it counts the bits in filter
	indexed    bool
}

// Diff is [Differ.Diff] with memory of its own.
func Diff(base, data []byte, o Options) []Op {
	return new(Differ).Diff(base, data, o)
}

// Diff returns ops that make data from base. They cover data exactly, in order.
// No insert follows another, no copy continues the one before it, and none is
// shorter than MinCopy or costs more than it saves. For empty data there are
// none. The slice is valid until the next call.
func (d *Differ) Diff(base, data []byte, o Options) []Op {
	if o.CopyCost <= 0 {
		o.CopyCost = 18
	}
	if o.MinCopy <= 0 {
		o.MinCopy = 32
	}
	d.base, d.data, d.indexed = base, data, false
	d.ops = d.ops[:0]
	// A shift is the distance from an offset in data to the one in base.
	inPlace := min(max(o.InPlace, 0), len(base))

	// What is common by chance would only cut a byte or two off the copies
	// that middle finds.
	edge := max(o.MinCopy, o.CopyCost+1)

	prefix := matchForward(base[inPlace:], data)
	if prefix < edge && prefix < len(data) {
		prefix = 0
	}
	d.copy(inPlace, 0, prefix)
	if prefix < len(data) {
		// The end of data stayed with the end of base, or where it was.
		suffix, suffixEnd := matchBackward(base, data[prefix:]), len(base)
		if end := inPlace + len(data); end < len(base) {
			if n := matchBackward(base[:end], data[prefix:]); n >= suffix {
				suffix, suffixEnd = n, end
			}
		}
		if suffix < edge {
			suffix = 0
		}
		d.middle(prefix, len(data)-suffix, inPlace, o)
		d.copy(suffixEnd-suffix, len(data)-suffix, suffix)
	}
	d.merge(o)
	d.base, d.data = nil, nil // nobody should hold on to them through d
	return d.ops
}

// middle appends ops for data[pos:end].
func (d *Differ) middle(pos, end, inPlace int, o Options) {
	data := d.data[:end]
	edge, inside := max(o.MinCopy, o.CopyCost+1), max(o.MinCopy, 2*o.CopyCost+1)
	shift := inPlace // of the last copy
	lit := pos       // where what no copy covers yet begins
	for pos < end {
		// What was overwritten is most often short, and after it all goes on as
		// before. That is looked for before base is indexed: an insert as short
		// as this has no room for another copy that is worth its cost.
		if pos == lit {
			if at, n := d.resume(data, pos, pos+inside, shift, inside); n > 0 {
				d.insert(lit, at)
				d.copy(at+shift, at, n)
				pos = at + n
				lit = pos
				continue
			}
		}
		if end-lit < edge {
			break // nothing that is worth a copy fits in
		}
		if pos = d.candidate(data, pos, shift, inPlace); pos == end {
			break
		}
		need := inside
		if pos == lit {
			need = edge
		}
		from, at, n := d.find(data, lit, pos, shift, inPlace, need)
		if n < need {
			pos++
			continue
		}
		d.insert(lit, at)
		d.copy(from, at, n)
		pos = at + n
		lit = pos
		shift = from - at
	}
	d.insert(lit, end)
}

// resume looks from pos to limit for a run of at least need bytes that base has
// at this shift. It returns where the run begins and its length, which is 0 if
// there is none.
func (d *Differ) resume(data []byte, pos, limit, shift, need int) (at, n int) {
	limit = min(limit, len(data)-need, len(d.base)-shift-need)
	for at = max(pos, -shift); at <= limit; {
		n := matchForward(d.base[at+shift:], data[at:])
		if n >= need {
			return at, n
		}
		at += n + 1
	}
	return 0, 0
}

// candidate returns the first position from pos on where a match may begin, or
// len(data). All that no copy covers passes through here byte by byte, so it is
// find without the calls, the cache misses and the branches that go either way.
func (d *Differ) candidate(data []byte, pos, shift, inPlace int) int {
	base := d.base
	if len(base) < window {
		return len(data)
	}
	if !d.indexed {
		d.index()
	}
	last := uint(len(base) - 8) // where 8 bytes of base can be loaded
	for ; pos+window <= len(data); pos++ {
		x := binary.LittleEndian.Uint64(data[pos:])
		if b := uint(pos + shift); b <= last && binary.LittleEndian.Uint64(base[b:]) == x {
			return pos
		}
		if b := uint(pos + inPlace); b <= last && binary.LittleEndian.Uint64(base[b:]) == x {
			return pos
		}
		bit := hash(data[pos:]) >> d.shift
		if d.filter[bit/64]&(1<<(bit%64)) != 0 {
			return pos
		}
	}
	return len(data) // the rest is too short for a copy, unless it is in the suffix
}

// find returns the best match that covers data[pos]: the one at the current
// shift if it is long enough, else the longest of the one in place and those
// that the index has. It may begin before pos, but not before lit.
func (d *Differ) find(data []byte, lit, pos, shift, inPlace, need int) (from, at, n int) {
	try := func(b int) {
		if b < 0 || b >= len(d.base) {
			return
		}
		f := matchForward(d.base[b:], data[pos:])
		if f < 8 {
			return
		}
		r := matchBackward(d.base[:b], data[lit:pos])
		if f+r > n {
			from, at, n = b-r, pos-r, f+r
		}
	}
	if d.agree(data, pos, shift) {
		if try(pos + shift); n >= need {
			return
		}
	}
	if inPlace != shift && d.agree(data, pos, inPlace) {
		try(pos + inPlace)
	}
	block := d.head[hash(data[pos:])>>d.shift/filterBits]
	for range maxChain {
		if block == 0 {
			break
		}
		try(int(block-1) * d.step)
		block = d.next[block-1]
	}
	return
}

// agree reports whether base has the 8 bytes from data[pos] on at this shift.
func (d *Differ) agree(data []byte, pos, shift int) bool {
	b := pos + shift
	return b >= 0 && b+8 <= len(d.base) && pos+8 <= len(data) &&
		binary.LittleEndian.Uint64(d.base[b:]) == binary.LittleEndian.Uint64(data[pos:])
}

// index fills filter, head and next with the blocks of base, which is no shorter
// than a window.
func (d *Differ) index() {
	d.indexed = true
	d.step = window
	for len(d.base)/d.step > maxEntries {
		d.step *= 2
	}
	blocks := (len(d.base)-window)/d.step + 1
	log := max(bits.Len(uint(blocks)), minTable)
	d.shift = uint(64-log) - 4 // filterBits is 2 to the 4
	d.filter = zeroed(d.filter, filterBits<<log/64)
	d.head = zeroed(d.head, 1<<log)
	d.next = zeroed(d.next, blocks)
	// From the end, so that a chain begins with the leftmost block. Of a run
	// of equal blocks only the first is kept, since a match there extends over
	// all of them; the others would fill the chain.
	var last uint64
	for b := blocks - 1; b >= 0; b-- {
		h := hash(d.base[b*d.step:])
		bit := h >> d.shift
		entry := &d.head[bit/filterBits]
		if b < blocks-1 && h == last {
			d.next[b] = d.next[b+1]
		} else {
			d.next[b] = *entry
			d.filter[bit/64] |= 1 << (bit % 64)
		}
		*entry = int32(b + 1)
		last = h
	}
}

// hash mixes the first 16 bytes of b into the upper bits of the result.
func hash(b []byte) uint64 {
	x := binary.LittleEndian.Uint64(b) * 0x9e3779b97f4a7c15
	y := binary.LittleEndian.Uint64(b[8:])
	return (bits.RotateLeft64(x, 31) ^ y) * 0xc2b2ae3d27d4eb4f
}

// zeroed returns a slice of n zeros, in the memory of s if it suffices.
func zeroed[T int32 | uint64](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// copy appends a copy, or lengthens the last op if that is what it continues.
func (d *Differ) copy(from, at, n int) {
	if n == 0 {
		return
	}
	if last := len(d.ops) - 1; last >= 0 {
		if op := &d.ops[last]; op.Copy && op.BaseOffset+op.Length == from {
			op.Length += n
			return
		}
	}
	d.ops = append(d.ops, Op{Copy: true, BaseOffset: from, NewOffset: at, Length: n})
}

// insert appends an insert of data[from:to].
func (d *Differ) insert(from, to int) {
	if from < to {
		d.ops = append(d.ops, Op{NewOffset: from, Length: to - from})
	}
}

// merge makes inserts of the copies that are too short or too dear, and one op
// of neighbouring inserts. What it keeps moves to the front of d.ops.
func (d *Differ) merge(o Options) {
	out := d.ops[:0]
	// settle makes inserts of the last ops in out that do not pay when an
	// insert follows them, or something else does.
	settle := func(insertFollows bool) {
		for last := len(out) - 1; last >= 0; last-- {
			cost := 0
			if insertFollows {
				cost += o.CopyCost
			}
			afterInsert := last > 0 && !out[last-1].Copy
			if afterInsert {
				cost += o.CopyCost
			}
			if !out[last].Copy || out[last].Length >= o.MinCopy && out[last].Length > cost {
				return
			}
			out[last].Copy, out[last].BaseOffset = false, 0
			if afterInsert {
				last--
				out[last].Length += out[last+1].Length
				out = out[:last+1]
			}
			insertFollows = true
		}
	}
	for _, op := range d.ops {
		settle(!op.Copy)
		if last := len(out) - 1; last >= 0 && !op.Copy && !out[last].Copy {
			out[last].Length += op.Length
			continue
		}
		out = append(out, op)
	}
	settle(false)
	d.ops = out
}

// chunk is the length from which bytes.Equal, which compares 32 bytes at a
// time, is worth its call.
const chunk = 512

// matchForward returns the length of the common prefix of a and b.
func matchForward(a, b []byte) int {
	length := min(len(a), len(b))
	a, b = a[:length], b[:length]
	n := 0
	for n+8 <= length {
		// After a short run of equal bytes a long one is to be expected.
		for n >= 64 && n+chunk <= length && bytes.Equal(a[n:n+chunk], b[n:n+chunk]) {
			n += chunk
		}
		if n+8 > length {
			break
		}
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
		n += 8
	}
	for n < length && a[n] == b[n] {
		n++
	}
	return n
}

// matchBackward returns the length of the common suffix of a and b.
func matchBackward(a, b []byte) int {
	length := min(len(a), len(b))
	a, b = a[len(a)-length:], b[len(b)-length:]
	n := length // where the suffix begins
	for n >= 8 {
		for length-n >= 64 && n >= chunk && bytes.Equal(a[n-chunk:n], b[n-chunk:n]) {
			n -= chunk
		}
		if n < 8 {
			break
		}
		if x := binary.LittleEndian.Uint64(a[n-8:]) ^ binary.LittleEndian.Uint64(b[n-8:]); x != 0 {
			return length - n + bits.LeadingZeros64(x)/8
		}
		n -= 8
	}
	for n > 0 && a[n-1] == b[n-1] {
		n--
	}
	return length - n
}
