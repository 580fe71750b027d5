package zfs

import "encoding/binary"

// A fletcher4 is the state of the checksum that runs over a substream, of section
// 1.8 of the specification: four sums, each of the one before.
type fletcher4 [4]uint64

// update adds p, whose length is a multiple of 4, as 32-bit words in the byte
// order of the stream. Each step waits for nothing but the sum before its own, so
// that four sums of neighbouring words are made at once; a loop over two words a
// time, without branches or bounds checks, is all that this needs.
func (f *fletcher4) update(p []byte, big bool) {
	a, b, c, d := f[0], f[1], f[2], f[3]
	add := func(w uint64) {
		a += w
		b += a
		c += b
		d += c
	}
	if big {
		for ; len(p) >= 16; p = p[16:] {
			x, y := binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])
			add(x >> 32)
			add(x & 0xffffffff)
			add(y >> 32)
			add(y & 0xffffffff)
		}
		for ; len(p) >= 4; p = p[4:] {
			add(uint64(binary.BigEndian.Uint32(p)))
		}
	} else {
		for ; len(p) >= 16; p = p[16:] {
			x, y := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
			add(x & 0xffffffff)
			add(x >> 32)
			add(y & 0xffffffff)
			add(y >> 32)
		}
		for ; len(p) >= 4; p = p[4:] {
			add(uint64(binary.LittleEndian.Uint32(p)))
		}
	}
	*f = fletcher4{a, b, c, d}
}
