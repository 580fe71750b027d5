package zfs

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The decoders here are ours. For LZJB and ZLE there is no library. Those for LZ4
// decode in assembly, in which nothing but care keeps a hostile block within
// bounds; these few lines the language keeps there, they save a dependency, and are
// fast enough beside the checksum. Each fills out and nothing but out, whatever
// data are.

var errDistance = errors.New("match before the start of the data")

// unLZ4 decodes a block of LZ4 that fills out exactly.
//
// A block is sequences: a token, whose high half is the number of literals and whose
// low half is the length of the match less 4, 15 being continued in bytes of which
// the first below 255 is the last; the literals; the distance of the match, two
// bytes, little endian. The last sequence ends with its literals.
func unLZ4(out, data []byte) error {
	o, i := 0, 0
	for {
		if i >= len(data) {
			return errShort
		}
		token := data[i]
		i++

		literals := int(token >> 4)
		if literals == 15 {
			var err error
			if literals, i, err = lz4Length(literals, data, i, len(out)); err != nil {
				return err
			}
		}
		if literals > len(data)-i {
			return errShort
		}
		if literals > len(out)-o {
			return errLong
		}
		o += copy(out[o:], data[i:i+literals])
		i += literals
		if i == len(data) {
			if o < len(out) {
				return errShort
			}
			return nil
		}

		if len(data)-i < 2 {
			return errShort
		}
		distance := int(binary.LittleEndian.Uint16(data[i:]))
		i += 2
		match := int(token & 15)
		if match == 15 {
			var err error
			if match, i, err = lz4Length(match, data, i, len(out)); err != nil {
				return err
			}
		}
		match += 4
		if distance == 0 || distance > o {
			return fmt.Errorf("%w: %d at %d", errDistance, distance, o)
		}
		if match > len(out)-o {
			return errLong
		}
		repeat(out, o, distance, match)
		o += match
	}
}

// lz4Length adds to n what continues a length at data[i:], and returns the index
// behind it. A length above limit is an error: it might not fit an int otherwise.
func lz4Length(n int, data []byte, i, limit int) (int, int, error) {
	for ; i < len(data); i++ {
		n += int(data[i])
		if n > limit {
			return 0, 0, errLong
		}
		if data[i] < 255 {
			return n, i + 1, nil
		}
	}
	return 0, 0, errShort
}

// repeat fills out[at:at+n] from distance before it. If the distance is shorter than
// n, what was just written is repeated.
func repeat(out []byte, at, distance, n int) {
	from, end := at-distance, at+n
	for at < end {
		at += copy(out[at:end], out[from:at]) // twice as much each time
	}
}

// unLZJB decodes LZJB until out is full: a control byte, then an item for each of
// its bits, the lowest first. Of a 0 it is a literal. Of a 1 it is a match, in two
// bytes: 6 bits of its length less 3, 10 bits of its distance; the end of out cuts
// it.
func unLZJB(out, data []byte) error {
	var control, mask byte
	for o := 0; o < len(out); {
		if mask <<= 1; mask == 0 {
			if len(data) == 0 {
				return errShort
			}
			control, mask = data[0], 1
			data = data[1:]
		}
		if control&mask == 0 {
			if len(data) == 0 {
				return errShort
			}
			out[o] = data[0]
			data = data[1:]
			o++
			continue
		}
		if len(data) < 2 {
			return errShort
		}
		item := binary.BigEndian.Uint16(data)
		data = data[2:]
		n, distance := min(int(item>>10)+3, len(out)-o), int(item&1023)
		if distance == 0 || distance > o {
			return fmt.Errorf("%w: %d at %d", errDistance, distance, o)
		}
		repeat(out, o, distance, n)
		o += n
	}
	return nil
}

// zleLiterals is how many literals a byte of ZLE may announce.
const zleLiterals = 64

// unZLE decodes ZLE until out is full: a byte b, then b+1 literals if these are not
// more than 64; else it stands for b+1-64 zeros.
func unZLE(out, data []byte) error {
	for o := 0; o < len(out); {
		if len(data) == 0 {
			return errShort
		}
		n := int(data[0]) + 1
		data = data[1:]
		zeros := n > zleLiterals
		if zeros {
			n -= zleLiterals
		}
		switch {
		case n > len(out)-o:
			return errLong
		case zeros:
			clear(out[o : o+n])
		case n > len(data):
			return errShort
		default:
			copy(out[o:], data[:n])
			data = data[n:]
		}
		o += n
	}
	return nil
}
