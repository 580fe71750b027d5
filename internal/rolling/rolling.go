// Package rolling finds what of an old file is in a new one, at whatever offset, when the
// old bytes cannot be read and only a signature of them is known.
//
// A [Signature] has, for each block of the old file, a weak checksum that can be rolled
// over the new file byte by byte, and a strong one that decides. It is what rsync's
// algorithm rests on (Tridgell, 1999):
//
//	old   |  block 0  |  block 1  |  block 2  | (the last L bytes) |
//	new   | line |  block 0  |  block 1  | other |  block 2  | ...
//	         new    copy from 0 on ....     new     copy ...
//
// Blocks have one length, L, and follow one another from where data begins, be that the
// file's begin or the end of a hole. What is left at the end of data is too short for a
// block, so that the last block is of the last L bytes, and reaches into the one before.
//
// The weak checksum is a polynomial in a fixed odd multiplier, modulo 2⁶⁴, as Rabin and
// Karp have it. rsync's own has 32 bits, and with the large blocks that large files have
// a chance hit costs more than all the rest: among 2¹⁸ blocks of 4 MiB there would be one
// every 16 KiB. With 64 bits there are none but those that somebody made on purpose, and
// these can cost no more than to hash everything twice (see [Matcher.Match]).
//
// The strong checksum is the caller's, a keyed one of 128 bits: bytes are taken for others
// with a probability of at most 2⁻¹¹⁰ for each byte of the new file, as there are at most
// 2¹⁸ blocks, even if the weak one said nothing. The package reads no files and knows of no
// history: what it does follows from its arguments alone.
package rolling

import (
	"cmp"
	"math/bits"
	"slices"
)

// A Sum is a strong checksum.
type Sum [16]byte

const (
	// MinBlock and MaxBlock bound the length of a block, in bytes. Who takes over the host
	// has the key and the sums; fewer bytes than this could be found out by them.
	MinBlock = 64
	MaxBlock = 4 << 20
	// MaxBlocks bounds the blocks of a signature.
	MaxBlocks = 1 << 18
	// MaxFile is the size of the largest file that has a signature.
	MaxFile = MaxBlock * MaxBlocks

	leastBlock = 4 << 10
)

// BlockSize returns the length of the blocks of a file of that size: the next power of two
// to the square root, which balances what a change costs (a block) against the signature,
// but 4 KiB at least, and so much that there are at most [MaxBlocks].
func BlockSize(size int64) int {
	root := leastBlock
	for int64(root) < MaxBlock && (int64(root)*int64(root) < size || size/int64(root) >= MaxBlocks) {
		root *= 2
	}
	return root
}

// A Block is what is known of the L bytes at Offset.
type Block struct {
	Offset int64
	Weak   uint64
	Strong Sum
}

// A Signature has the blocks of a file, each of Length bytes, in order of their offsets.
type Signature struct {
	Length int
	Blocks []Block
}

// at returns the number of the block at an offset, or -1.
func (s *Signature) at(off int64) int {
	i, ok := slices.BinarySearchFunc(s.Blocks, off, func(b Block, off int64) int { return cmp.Compare(b.Offset, off) })
	if !ok {
		return -1
	}
	return i
}

// multiplier is that of the polynomial. Any odd number of no special form does.
const multiplier = 0x9e3779b97f4a7c15 ^ 0x2545f4914f6cdd1d<<1

// powers are multiplier^0 to multiplier^8.
var powers = func() (p [9]uint64) {
	p[0] = 1
	for i := 1; i < len(p); i++ {
		p[i] = p[i-1] * multiplier
	}
	return p
}()

// Weak returns the weak checksum of a block.
func Weak(b []byte) uint64 {
	h := uint64(0)
	p := &powers
	for len(b) >= 8 {
		c := b[:8:8]
		h = h*p[8] + (uint64(c[0])*p[7] + uint64(c[1])*p[6] + uint64(c[2])*p[5] + uint64(c[3])*p[4]) +
			(uint64(c[4])*p[3] + uint64(c[5])*p[2] + uint64(c[6])*p[1] + uint64(c[7]))
		b = b[8:]
	}
	for _, c := range b {
		h = h*multiplier + uint64(c)
	}
	return h
}

// A Signer makes the signature of a file from its bytes, given in order.
type Signer struct {
	sum  func([]byte) Sum
	sig  *Signature
	end  int64  // of what was given
	part []byte // what has come of the next block
	last []byte // the block before it, if part may end the data
}

// NewSigner returns a Signer for blocks of some length. sum is the strong checksum.
func NewSigner(length int, sum func([]byte) Sum) *Signer {
	if length < MinBlock || length > MaxBlock {
		panic("rolling: internal error: length of blocks")
	}
	return &Signer{sum: sum, sig: &Signature{Length: length}}
}

// Write signs data, which the file has at off. Where it does not continue what was
// written before, there is a hole.
func (s *Signer) Write(off int64, data []byte) {
	if off != s.end {
		s.flush()
		s.end = off
	}
	n := s.sig.Length
	if k := len(s.part); k > 0 && k+len(data) >= n {
		rest := n - k
		s.part = append(s.part, data[:rest]...)
		s.end += int64(rest)
		s.block(s.part)
		s.last = append(s.last[:0], s.part...)
		s.part, data = s.part[:0], data[rest:]
	}
	var last []byte
	for ; len(s.part) == 0 && len(data) >= n; data = data[n:] {
		s.end += int64(n)
		last = data[:n]
		s.block(last)
	}
	if last != nil {
		s.last = append(s.last[:0], last...)
	}
	s.part = append(s.part, data...)
	s.end += int64(len(data))
}

// block adds one that ends at s.end.
func (s *Signer) block(b []byte) {
	if len(s.sig.Blocks) < MaxBlocks {
		s.sig.Blocks = append(s.sig.Blocks, Block{s.end - int64(len(b)), Weak(b), s.sum(b)})
	}
}

// flush ends a run of data.
func (s *Signer) flush() {
	if k := len(s.part); k > 0 && len(s.last) > 0 {
		s.block(append(s.last[k:], s.part...))
	}
	s.part, s.last = s.part[:0], s.last[:0]
}

// Signature returns the signature of all that was written.
func (s *Signer) Signature() *Signature {
	s.flush()
	return s.sig
}

// A Copy says that the Length bytes at At of some data are those that the old file has
// at Old.
type Copy struct {
	At     int
	Length int
	Old    int64
}

// A Matcher looks for the blocks of one signature. It takes 8 to 16 bytes for each, 3 more
// in a filter that is small enough for a processor's cache, and keeps no data.
type Matcher struct {
	sig    *Signature
	sum    func([]byte) Sum
	leave  [256]uint64 // what a byte is worth that leaves the window
	filter []uint64
	shift  int      // a weak checksum's bits above are its place in filter
	table  []uint32 // number + 1 of blocks, by weak checksum
	tshift int

	next   int   // the block that would follow the last copy; -1: none
	nextAt int64 // where in the new file

	looked, wasted int64 // bytes that were looked at, and that were hashed in vain
}

// maxSame bounds the blocks of one weak checksum and different strong ones. There are none
// but those that somebody made.
const maxSame = 8

// NewMatcher returns a Matcher. sum is the strong checksum that the signature was made with.
func NewMatcher(sig *Signature, sum func([]byte) Sum) *Matcher {
	n := max(len(sig.Blocks), 32)
	m := &Matcher{sig: sig, sum: sum, next: -1}
	logBits := bits.Len(uint(n-1)) + 5 // 32 to 64 bits a block: 1 in 32 or less is looked up in vain
	m.filter, m.shift = make([]uint64, 1<<(logBits-6)), 64-logBits
	logTable := bits.Len(uint(n-1)) + 1
	m.table, m.tshift = make([]uint32, 1<<logTable), 64-logTable
	leave := uint64(1)
	for range sig.Length {
		leave *= multiplier
	}
	for i := range m.leave {
		m.leave[i] = uint64(i) * leave
	}
	for i := range sig.Blocks {
		m.add(i)
	}
	return m
}

// golden spreads a weak checksum over the table, in another way than over the filter.
const golden = 0x9e3779b97f4a7c15

// add puts a block into the table, unless there is one that is the same.
func (m *Matcher) add(i int) {
	b, same := &m.sig.Blocks[i], 0
	at := b.Weak * golden >> m.tshift
	for ; m.table[at] != 0; at = (at + 1) & uint64(len(m.table)-1) {
		if c := &m.sig.Blocks[m.table[at]-1]; c.Weak == b.Weak {
			if same++; c.Strong == b.Strong || same == maxSame {
				return
			}
		}
	}
	m.table[at] = uint32(i + 1)
	m.filter[b.Weak>>m.shift>>6] |= 1 << (b.Weak >> m.shift & 63)
}

// has reports whether there is a block of a weak checksum.
func (m *Matcher) has(weak uint64) bool {
	for at := weak * golden >> m.tshift; m.table[at] != 0; at = (at + 1) & uint64(len(m.table)-1) {
		if m.sig.Blocks[m.table[at]-1].Weak == weak {
			return true
		}
	}
	return false
}

// find returns the block of a strong checksum among those of the weak one, or -1. The one at
// off of the old file is preferred, since what is in its place need not be said.
func (m *Matcher) find(weak uint64, strong Sum, off int64) int {
	if i := m.sig.at(off); i >= 0 && m.sig.Blocks[i].Strong == strong {
		return i
	}
	for at := weak * golden >> m.tshift; m.table[at] != 0; at = (at + 1) & uint64(len(m.table)-1) {
		if b := &m.sig.Blocks[m.table[at]-1]; b.Weak == weak && b.Strong == strong {
			return int(m.table[at] - 1)
		}
	}
	return -1
}

// Match returns what of data[from:to] is in the old file, in order. The last copy may reach
// beyond to, and none beyond data: what lies behind to, a block at least unless data ends there,
// is there to be looked at, as is what lies before from, a block at most. off is where the new
// file has data[0].
//
// It takes time proportional to the length, whatever the content: in vain it hashes at most
// as many bytes as it has looked at, and 16 blocks. After that what has the weak checksum of a
// block is not looked at.
func (m *Matcher) Match(data []byte, from, to int, off int64) []Copy {
	var all []Copy
	n := m.sig.Length
	add := func(at, length, i, skip int) {
		all = append(all, Copy{at, length, m.sig.Blocks[i].Offset + int64(skip)})
		m.next, m.nextAt = i+1, off+int64(at+length)
	}
	p := from
	for p < to {
		if i := m.next; i >= 0 && i < len(m.sig.Blocks) && m.nextAt == off+int64(p) {
			// Mostly what follows is what followed before. The last block of a run reaches
			// into the one before it, which has been found: a part of it is new.
			m.next = -1
			prev := m.sig.Blocks[max(i-1, 0)].Offset + int64(n)
			skip := int(max(prev-m.sig.Blocks[i].Offset, 0))
			if q := p - skip; i > 0 && m.sig.Blocks[i].Offset <= prev && q >= 0 && q+n <= len(data) {
				strong := m.sum(data[q : q+n])
				if m.sig.Blocks[i].Strong == strong {
					if j := m.sig.at(off + int64(q)); j >= 0 && m.sig.Blocks[j].Strong == strong {
						i = j
					}
					add(p, n-skip, i, skip)
					m.looked += int64(n - skip)
					p += n - skip
					continue
				}
				m.wasted += int64(n)
			}
		}
		if p+n > len(data) {
			break
		}
		at, i := m.roll(data[p:min(to-1+n, len(data))], off+int64(p))
		if i < 0 {
			break
		}
		add(p+at, n, i, 0)
		p += at + n
	}
	return all
}

// roll returns where the first block is in data, which has at least as many bytes as one, and
// its number; -1 if there is none.
func (m *Matcher) roll(data []byte, off int64) (at, block int) {
	n := m.sig.Length
	in, out := data[n:], data[:len(data)-n]
	out = out[:len(in)]
	h := Weak(data[:n])
	filter, shift := m.filter, m.shift&63
	seen := 0
	for i := 0; ; i++ {
		if place := h >> shift; filter[place>>6]>>(place&63)&1 != 0 && m.has(h) {
			m.looked += int64(i - seen)
			seen = i
			if m.wasted <= m.looked+16*int64(n) {
				if j := m.find(h, m.sum(data[i:i+n]), off+int64(i)); j >= 0 {
					m.looked += int64(n)
					return i, j
				}
				m.wasted += int64(n)
			}
		}
		if i >= len(in) {
			break
		}
		h = h*multiplier + (uint64(in[i]) - m.leave[out[i]])
	}
	m.looked += int64(len(in) - seen)
	return 0, -1
}
