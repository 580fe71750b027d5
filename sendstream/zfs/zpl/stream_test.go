package zpl

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"
)

// This file reads the records of a recorded stream, as far as the tests need it: it
// trusts the corpus, and checks no sums. It shares nothing with package sendstream/zfs,
// so that either can be held against the other.

// Types of records (section 1.3).
const (
	recBegin       = 0
	recObject      = 1
	recFreeObjects = 2
	recWrite       = 3
	recFree        = 4
	recEnd         = 5
	recSpill       = 7
	recEmbedded    = 8
)

// Feature bits and flags of BEGIN (section 1.4).
const (
	featureResuming = 1 << 20
	featureRedacted = 1 << 21
	featureRaw      = 1 << 24

	flagSpillBlock = 8 // of a stream: OBJECT says whether there is a spill block

	objectSpill     = 4 // of OBJECT: there is one
	spillUnmodified = 4 // of SPILL: the base has it, too

	fileSystem = 2 // the type of an object set
)

const recordSize = 312

// A record is a header of a stream, and its payload.
type record struct {
	typ     uint32
	offset  int
	order   binary.ByteOrder
	head    []byte
	payload []byte
}

func (r *record) u8(off int) uint8   { return r.head[off] }
func (r *record) u32(off int) uint32 { return r.order.Uint32(r.head[off:]) }
func (r *record) u64(off int) uint64 { return r.order.Uint64(r.head[off:]) }

// payloadSize returns the bytes that follow the header.
func (r *record) payloadSize() (uint64, error) {
	switch r.typ {
	case recBegin:
		return uint64(r.u32(4)), nil
	case recObject:
		if n := r.u32(36); n != 0 {
			return uint64(n), nil
		}
		return uint64(roundup8(int(r.u32(28)))), nil
	case recWrite:
		if r.u8(50) != 0 {
			return r.u64(96), nil
		}
		return r.u64(32), nil
	case recSpill:
		if n := r.u64(40); n != 0 {
			return n, nil
		}
		return r.u64(16), nil
	case recEmbedded:
		return uint64(roundup8(int(r.u32(52)))), nil
	case recFreeObjects, recFree, recEnd:
		return 0, nil
	}
	return 0, fmt.Errorf("record of type %d", r.typ)
}

// records returns the records of a stream.
func records(stream []byte) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		order := streamOrder(stream)
		for off := 0; off < len(stream); {
			r := record{offset: off, order: order}
			rest := stream[off:]
			if len(rest) < recordSize {
				yield(r, io.ErrUnexpectedEOF)
				return
			}
			r.head, rest = rest[:recordSize], rest[recordSize:]
			r.typ = r.u32(0)
			n, err := r.payloadSize()
			if err == nil && n > uint64(len(rest)) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				yield(r, fmt.Errorf("at %d: %w", off, err))
				return
			}
			r.payload = rest[:n]
			if !yield(r, nil) {
				return
			}
			off += recordSize + int(n)
		}
	}
}

func streamOrder(stream []byte) binary.ByteOrder {
	if len(stream) >= 16 && binary.BigEndian.Uint64(stream[8:]) == 0x2F5BACBAC {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// A begin is what BEGIN says of a substream.
type begin struct {
	isPackage bool
	features  uint64
	objset    uint32
	flags     uint32
	to, from  uint64
	name      string
}

func (r *record) begin() begin {
	name, _, _ := bytes.Cut(r.head[56:recordSize], []byte{0})
	info := r.u64(16)
	return begin{
		isPackage: info&3 == 2, features: info >> 2 & (1<<56 - 1), objset: r.u32(32), flags: r.u32(36),
		to: r.u64(40), from: r.u64(48), name: string(name),
	}
}

var zstdDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))

// decompress undoes the compression of a block of size bytes (section 3.8).
func decompress(kind uint8, b []byte, size int) ([]byte, error) {
	var out []byte
	var err error
	switch {
	case kind == 0 || kind == 2:
		return b, nil
	case kind >= 5 && kind <= 13: // gzip
		var z io.ReadCloser
		if z, err = zlib.NewReader(bytes.NewReader(b)); err == nil {
			out, err = io.ReadAll(z)
		}
	case kind == 14:
		out, err = unZLE(b, size)
	case kind == 15:
		out, err = unLZ4(b[4:][:binary.BigEndian.Uint32(b)], size)
	case kind == 16:
		frame := append([]byte{0x28, 0xb5, 0x2f, 0xfd}, b[8:][:binary.BigEndian.Uint32(b)]...)
		out, err = zstdDecoder.DecodeAll(frame, nil)
	default:
		err = fmt.Errorf("compression %d", kind)
	}
	if err == nil && len(out) != size {
		err = fmt.Errorf("compression %d gives %d bytes, not %d", kind, len(out), size)
	}
	return out, err
}

var errOverrun = errors.New("compressed block overruns")

func unZLE(b []byte, size int) ([]byte, error) {
	out := make([]byte, 0, size)
	for len(b) > 0 && len(out) < size {
		n := int(b[0]) + 1
		b = b[1:]
		if n <= 64 {
			if n > len(b) {
				return nil, errOverrun
			}
			out, b = append(out, b[:n]...), b[n:]
		} else {
			out = append(out, make([]byte, n-64)...)
		}
	}
	return out, nil
}

func unLZ4(b []byte, size int) ([]byte, error) {
	out := make([]byte, 0, size)
	length := func(n int) int { // 15 goes on in further bytes, up to one that is not 255
		for more := n == 15; more && len(b) > 0; b = b[1:] {
			n += int(b[0])
			more = b[0] == 255
		}
		return n
	}
	for len(b) > 0 {
		token := b[0]
		b = b[1:]
		n := length(int(token >> 4))
		if n > len(b) {
			return nil, errOverrun
		}
		out, b = append(out, b[:n]...), b[n:]
		if len(b) == 0 {
			break
		}
		if len(b) < 2 {
			return nil, errOverrun
		}
		distance := int(binary.LittleEndian.Uint16(b))
		b = b[2:]
		if distance == 0 || distance > len(out) {
			return nil, errOverrun
		}
		for n = length(int(token&15)) + 4; n > 0; n-- {
			out = append(out, out[len(out)-distance])
		}
	}
	return out, nil
}
