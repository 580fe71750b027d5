package s3history

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store"
)

// A pack object:
//
//	+-------+-----------------+------------+-------+--- ... ---+-------+-----------------+------+
//	| scrp1 | key len (2B LE) | sealed key | blob  | more blobs | index | index len (4B LE) | scre |
//	+-------+-----------------+------------+-------+--- ... ---+-------+-----------------+------+
//
// Each blob is sealed under its own key, derived from the pack's; the index under
// one derived from the metadata key. The offsets of blobs follow from their lengths.
const packHeader = len(packMagic) + 2
const packFooter = 4 + len(packEndMagic)

func blobKey(pack seal.Key, repo RepoID, blob uint32) seal.Key {
	return pack.Derive(labelBlob, repo[:], binary.LittleEndian.AppendUint32(nil, blob))
}

// A blob is stored as one byte that says how, then the bytes, all sealed.
const (
	methodStored = 0
	methodZstd   = 1
)

// newEncoder returns an encoder for blobs: one thread, no checksum (the seal is one).
func newEncoder(level zstd.EncoderLevel) *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(level),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(maxBlob), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic("s3history: internal error: " + err.Error())
	}
	return e
}

// newDecoder returns a decoder that gives at most limit bytes.
func newDecoder(limit uint64) *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(limit),
		zstd.WithDecoderMaxWindow(max(limit, 1<<10)), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic("s3history: internal error: " + err.Error())
	}
	return d
}

// compress returns the method byte and plain, compressed where that is smaller.
func compress(e *zstd.Encoder, dst, plain []byte) []byte {
	dst = append(dst[:0], methodZstd)
	dst = e.EncodeAll(plain, dst)
	if len(dst) > len(plain) {
		dst = append(append(dst[:0], methodStored), plain...)
	}
	return dst
}

// decompress undoes compress. The result has exactly size bytes, or, when size is
// negative, at most limit.
func decompress(d *zstd.Decoder, b []byte, size, limit int) ([]byte, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("empty: %w", ErrFormat)
	}
	var out []byte
	switch b[0] {
	case methodStored:
		out = b[1:]
	case methodZstd:
		var err error
		if out, err = d.DecodeAll(b[1:], make([]byte, 0, max(size, 0))); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
	default:
		return nil, fmt.Errorf("compressed by method %d: %w", b[0], ErrNewer)
	}
	if len(out) > limit || size >= 0 && len(out) != size {
		return nil, fmt.Errorf("%d bytes instead of %d: %w", len(out), size, ErrFormat)
	}
	return out, nil
}

// An indexEntry is what a pack's index says of one slice: enough to know, without
// any manifest, of which file it was.
type indexEntry struct {
	_      struct{} `cbor:",toarray"`
	Blob   uint32
	Offset uint32
	Length uint32
	Node   uint64
	At     int64 // offset in the file
	CID    []byte
}

// A packIndex is the plaintext of a pack's index.
type packIndex struct {
	Source []byte       `cbor:"1,keyasint"`
	Seq    uint64       `cbor:"2,keyasint"`
	Blobs  []uint32     `cbor:"3,keyasint"` // stored length, plain length, and so on
	Slices []indexEntry `cbor:"4,keyasint"`
}

func indexKey(meta seal.Key, repo RepoID, sealedKey []byte) seal.Key {
	sum := sha256.Sum256(sealedKey)
	return meta.Derive(labelIndex, repo[:], sum[:])
}

// A packObject is a pack in the pieces it is made of, so that its blobs, most of what
// is in memory, are there once. It is an io.ReaderAt.
type packObject struct {
	pieces [][]byte
	size   int64
}

// buildPack returns the object. blobs are sealed already.
func buildPack(meta seal.Key, repo RepoID, sealedKey []byte, blobs [][]byte, index packIndex, e *zstd.Encoder) (*packObject, error) {
	plain, err := encMode.Marshal(&index)
	if err != nil {
		return nil, err
	}
	head := append(make([]byte, 0, packHeader+len(sealedKey)), packMagic...)
	head = binary.LittleEndian.AppendUint16(head, uint16(len(sealedKey)))
	head = append(head, sealedKey...)
	tail := indexKey(meta, repo, sealedKey).Seal(nil, nil, compress(e, nil, plain))
	tail = binary.LittleEndian.AppendUint32(tail, uint32(len(tail)))
	tail = append(tail, packEndMagic...)
	p := &packObject{pieces: slices.Concat([][]byte{head}, blobs, [][]byte{tail})}
	for _, b := range p.pieces {
		p.size += int64(len(b))
	}
	return p, nil
}

// sum returns the SHA-256 of the object.
func (p *packObject) sum() (sha [32]byte) {
	h := sha256.New()
	for _, b := range p.pieces {
		h.Write(b)
	}
	h.Sum(sha[:0])
	return sha
}

// ReadAt implements io.ReaderAt.
func (p *packObject) ReadAt(b []byte, off int64) (n int, err error) {
	for _, piece := range p.pieces {
		if n == len(b) {
			return n, nil
		}
		if off >= int64(len(piece)) {
			off -= int64(len(piece))
			continue
		}
		n += copy(b[n:], piece[off:])
		off = 0
	}
	if n < len(b) {
		err = io.EOF
	}
	return n, err
}

// parsePackHeader returns the sealed key that a pack begins with.
func parsePackHeader(b []byte) ([]byte, error) {
	if len(b) < packHeader || !bytes.Equal(b[:4], []byte(packMagic[:4])) {
		return nil, fmt.Errorf("not a pack: %w", ErrFormat)
	}
	if b[4] != packMagic[4] {
		return nil, fmt.Errorf("pack of version %d: %w", b[4], ErrNewer)
	}
	n := int(binary.LittleEndian.Uint16(b[5:]))
	if n > maxSealedKey || packHeader+n > len(b) {
		return nil, fmt.Errorf("sealed key of %d bytes: %w", n, ErrFormat)
	}
	return b[packHeader : packHeader+n], nil
}

// readPackIndex reads a pack's sealed key and index from the store: two requests.
func readPackIndex(ctx context.Context, s store.Store, meta seal.Key, repo RepoID, key string, size int64) ([]byte, *packIndex, error) {
	if size < int64(packHeader+packFooter+seal.Overhead) {
		return nil, nil, fmt.Errorf("pack of %d bytes: %w", size, ErrFormat)
	}
	head, err := getRange(ctx, s, key, 0, min(size, int64(packHeader+maxSealedKey)))
	if err != nil {
		return nil, nil, err
	}
	sealed, err := parsePackHeader(head)
	if err != nil {
		return nil, nil, err
	}
	tail, err := getRange(ctx, s, key, max(0, size-(256<<10)), min(size, 256<<10))
	if err != nil {
		return nil, nil, err
	}
	end := tail[len(tail)-packFooter:]
	n := int64(binary.LittleEndian.Uint32(end))
	if string(end[4:]) != packEndMagic || n > maxIndex || n+int64(packHeader+len(sealed)+packFooter) > size {
		return nil, nil, fmt.Errorf("index of %d bytes in a pack of %d: %w", n, size, ErrFormat)
	}
	box := tail[:len(tail)-packFooter]
	if int64(len(box)) >= n {
		box = box[int64(len(box))-n:]
	} else if box, err = getRange(ctx, s, key, size-int64(packFooter)-n, n); err != nil {
		return nil, nil, err
	}
	index, err := openIndex(meta, repo, sealed, box)
	return sealed, index, err
}

func openIndex(meta seal.Key, repo RepoID, sealed, box []byte) (*packIndex, error) {
	plain, err := indexKey(meta, repo, sealed).Open(nil, nil, box)
	if err != nil {
		return nil, fmt.Errorf("pack index: %w", err)
	}
	if plain, err = decompress(newDecoder(maxIndex), plain, -1, maxIndex); err != nil {
		return nil, fmt.Errorf("pack index: %w", err)
	}
	var index packIndex
	if err := decMode.Unmarshal(plain, &index); err != nil {
		return nil, fmt.Errorf("pack index: %w: %w", ErrFormat, err)
	}
	if len(index.Blobs)%2 != 0 || len(index.Blobs) > 2*maxPackBlobs {
		return nil, fmt.Errorf("pack index: %d numbers in the table: %w", len(index.Blobs), ErrFormat)
	}
	return &index, nil
}

func flatBlobs(blobs []catalog.Blob) []uint32 {
	flat := make([]uint32, 0, 2*len(blobs))
	for _, b := range blobs {
		flat = append(flat, b.Length, b.Plain)
	}
	return flat
}

// parseBlobs undoes flatBlobs and bounds each.
func parseBlobs(flat []uint32) ([]catalog.Blob, error) {
	if len(flat)%2 != 0 || len(flat) > 2*maxPackBlobs {
		return nil, fmt.Errorf("table of %d numbers: %w", len(flat), ErrFormat)
	}
	blobs := make([]catalog.Blob, len(flat)/2)
	for i := range blobs {
		b := catalog.Blob{Length: flat[2*i], Plain: flat[2*i+1]}
		if b.Length <= seal.Overhead || b.Length > maxBlobObject || b.Plain == 0 || b.Plain > maxBlob {
			return nil, fmt.Errorf("blob of %d bytes, %d plain: %w", b.Length, b.Plain, ErrFormat)
		}
		blobs[i] = b
	}
	return blobs, nil
}

// getRange reads n bytes of an object from off on, all of them.
func getRange(ctx context.Context, s store.Store, key string, off, n int64) ([]byte, error) {
	rc, err := s.Get(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(rc, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return b, nil
}

// getObject reads a whole object of at most limit bytes, and checks its bytes
// against the hash that its name ends in.
func getObject(ctx context.Context, s store.Store, key string, sha [32]byte, limit int64) ([]byte, error) {
	rc, err := s.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes: %w", key, limit, ErrFormat)
	}
	if sha256.Sum256(b) != sha {
		return nil, fmt.Errorf("%s: its bytes are not those its name says: %w", key, ErrFormat)
	}
	return b, nil
}
