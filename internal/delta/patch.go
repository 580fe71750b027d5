package delta

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// ErrPatch is wrapped by the errors of [ApplyPatch]: the patch is damaged, or
// was made from another base, or for data of another size.
var ErrPatch = errors.New("patch does not apply")

// smallWindow is the length of base and data together up to which an encoder
// is reused: for 4 KiB that takes 1 ms where a new one takes 5. For more than
// this it is no gain, as ResetWithOptions indexes the base twice.
const smallWindow = 128 << 10

// smallEncoders holds *zstd.Encoder with a window of smallWindow.
var smallEncoders sync.Pool

// Patch returns data as one zstd frame (RFC 8878) with base as its dictionary:
//
//   - the dictionary is raw content, all of base, whatever bytes base begins
//     with; it has no id, so the frame has no Dictionary_ID;
//   - the frame has the Single_Segment_Flag and so its content size and no
//     window descriptor; there is no Content_Checksum. Its header takes 6 to 9
//     bytes;
//   - as RFC 8878 has it, the window then is the content, and all of the
//     dictionary stays in reach. Offsets so go up to len(base) + len(data).
//
// zstd -d -D base decodes it, unless base begins with the magic number of zstd's
// dictionaries (37 a4 30 ec), which the command takes for one.
//
// base and data should be a few MiB at most: memory of 9 MiB and twice both is
// needed, and what is farther apart than zstd.MaxWindowSize, 512 MiB, is not
// found. Patch may be called concurrently.
func Patch(base, data []byte) []byte {
	if len(base)+len(data) > smallWindow {
		return newEncoder(base, len(base)+len(data)).EncodeAll(data, nil)
	}
	enc, _ := smallEncoders.Get().(*zstd.Encoder)
	if enc == nil {
		enc = newEncoder(base, smallWindow)
	} else if err := enc.ResetWithOptions(nil, zstd.WithEncoderDictRaw(0, base)); err != nil {
		panic("delta: internal error: " + err.Error())
	}
	patch := enc.EncodeAll(data, nil)
	smallEncoders.Put(enc)
	return patch
}

// newEncoder returns an encoder whose matches may be size apart.
//
// The level is the lowest whose tables hold all of a base of 1 MiB: the default
// one is three times as fast, but stores twice as much of a relinked program
// and a hundred times as much where bytes that do not compress have changed
// here and there. SpeedBestCompression gains 1 % for three times the work.
func newEncoder(base []byte, size int) *zstd.Encoder {
	log := bits.Len(uint(max(size, zstd.MinWindowSize) - 1))
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderDictRaw(0, base),
		zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithWindowSize(min(1<<log, zstd.MaxWindowSize)),
		zstd.WithSingleSegment(true),
		zstd.WithZeroFrames(true), // empty data is a frame too
		zstd.WithEncoderCRC(false),
		zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic("delta: internal error: " + err.Error())
	}
	return enc
}

// ApplyPatch returns the size bytes that [Patch] made patch of, given the same
// base. It allocates size bytes, and believes nothing the patch says: any
// other length is an error, as is all else that is wrong, and wraps [ErrPatch].
// A patch that was altered, or is applied to another base, may go unnoticed: it
// has no checksum, as what a patch is stored in is authenticated.
//
// Only frames as Patch makes them are accepted, with or without a checksum.
func ApplyPatch(base, patch []byte, size int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(patch); err != nil {
		return nil, fmt.Errorf("%w: frame header: %w", ErrPatch, err)
	}
	if h.Skippable || !h.SingleSegment || h.DictionaryID != 0 {
		return nil, fmt.Errorf("%w: not a single-segment frame without a dictionary id", ErrPatch)
	}
	if size < 0 || h.FrameContentSize != uint64(size) {
		return nil, fmt.Errorf("%w: it makes %d bytes, not %d", ErrPatch, h.FrameContentSize, size)
	}
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderDictRaw(0, base),
		zstd.WithDecodeAllCapLimit(true), // of size bytes, below
		zstd.WithDecoderMaxMemory(uint64(max(size, zstd.MinWindowSize))),
		zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPatch, err)
	}
	defer dec.Close()
	data, err := dec.DecodeAll(patch, make([]byte, 0, size))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPatch, err)
	}
	if len(data) != size {
		return nil, fmt.Errorf("%w: it makes %d bytes, not %d", ErrPatch, len(data), size)
	}
	return data, nil
}

// Compresses reports whether data looks as if it had not been compressed yet, by 4 KiB of its
// middle: those of films and archives do not become less than three quarters.
func Compresses(data []byte) bool {
	some := data[len(data)/2:]
	some = some[:min(len(some), 4096)]
	return len(Patch(nil, some)) < len(some)*3/4
}
