package rolling

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A signature is kept as one zstd frame of
//
//	length of a block          uvarint
//	number of blocks           uvarint
//	runs of blocks             until that number is reached:
//	  from the end of the      varint
//	  block before
//	  blocks one after another uvarint
//	weak checksums             8 bytes each, little endian
//	strong checksums           16 bytes each
//
// Sums do not compress, but those of blocks that are the same do.

// ErrEncoding is wrapped by the errors of Decode.
var ErrEncoding = errors.New("no signature")

const (
	sumSize = 8 + len(Sum{})
	// maxEncoded bounds what is in the frame: a run takes at most 20 bytes.
	maxEncoded = 2*binary.MaxVarintLen64 + MaxBlocks*(sumSize+2*binary.MaxVarintLen64)
)

// EncodedSize returns about how many bytes the signature of a file of that size takes.
func EncodedSize(size int64) int64 { return 16 + int64(sumSize)*(1+size/int64(BlockSize(size))) }

var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		panic("rolling: internal error: " + err.Error())
	}
	return e
})

var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(maxEncoded)))
	if err != nil {
		panic("rolling: internal error: " + err.Error())
	}
	return d
})

// Encode returns a signature as bytes.
func (s *Signature) Encode() []byte {
	b := binary.AppendUvarint(nil, uint64(s.Length))
	b = binary.AppendUvarint(b, uint64(len(s.Blocks)))
	n := int64(s.Length)
	for end, i := int64(0), 0; i < len(s.Blocks); {
		k := i + 1
		for k < len(s.Blocks) && s.Blocks[k].Offset == s.Blocks[k-1].Offset+n {
			k++
		}
		b = binary.AppendVarint(b, s.Blocks[i].Offset-end)
		b = binary.AppendUvarint(b, uint64(k-i))
		end, i = s.Blocks[k-1].Offset+n, k
	}
	for i := range s.Blocks {
		b = binary.LittleEndian.AppendUint64(b, s.Blocks[i].Weak)
	}
	for i := range s.Blocks {
		b = append(b, s.Blocks[i].Strong[:]...)
	}
	return encoder().EncodeAll(b, nil)
}

// Decode returns the signature that Encode made bytes of. It allocates in proportion to what
// is in them, and at most for [MaxBlocks]. What is wrong wraps [ErrEncoding].
func Decode(b []byte) (*Signature, error) {
	b, err := decoder().DecodeAll(b, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	bad := func(what string) (*Signature, error) { return nil, fmt.Errorf("%w: %s", ErrEncoding, what) }
	uvarint := func() (v uint64, ok bool) {
		v, k := binary.Uvarint(b)
		if k > 0 {
			b = b[k:]
		}
		return v, k > 0
	}
	length, ok1 := uvarint()
	count, ok2 := uvarint()
	if !ok1 || !ok2 || length < MinBlock || length > MaxBlock || count > MaxBlocks || count > uint64(len(b)/sumSize) {
		return bad("length or number of blocks")
	}
	n := int64(length)
	s := &Signature{Length: int(length)}
	if count > 0 {
		s.Blocks = make([]Block, 0, count)
	}
	for end := int64(0); uint64(len(s.Blocks)) < count; {
		gap, k := binary.Varint(b)
		if k <= 0 {
			return bad("cut off")
		}
		b = b[k:]
		run, ok := uvarint()
		if !ok || run == 0 || run > count-uint64(len(s.Blocks)) {
			return bad("more blocks than there are")
		}
		// A block reaches at most into the one before it. The first has none.
		if gap <= -n || gap < 0 && len(s.Blocks) == 0 || gap > 1<<62-end {
			return bad("offset of a block")
		}
		for at := end + gap; run > 0; run-- {
			if at > 1<<62-n {
				return bad("offset of a block")
			}
			s.Blocks = append(s.Blocks, Block{Offset: at})
			at += n
			end = at
		}
	}
	if len(b) != int(count)*sumSize {
		return bad(fmt.Sprintf("%d bytes of sums for %d blocks", len(b), count))
	}
	for i := range s.Blocks {
		s.Blocks[i].Weak = binary.LittleEndian.Uint64(b[8*i:])
	}
	b = b[8*count:]
	for i := range s.Blocks {
		s.Blocks[i].Strong = Sum(b[len(Sum{})*i:])
	}
	return s, nil
}
