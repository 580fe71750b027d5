package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// ErrEncoded reports a payload that cannot be decoded to what its record promises.
var ErrEncoded = errors.New("malformed compressed data")

// A Decoder decodes payloads. The zero Decoder is ready to use; it may not be used
// concurrently. It keeps the memory of the largest block that it was given, at most
// 16 MiB, as much again for Zstandard, and tables.
type Decoder struct {
	out   []byte
	frame []byte // a Zstandard frame with its magic number
	in    bytes.Reader
	zlib  io.ReadCloser
	zstd  *zstd.Decoder
}

// Decode returns the Length bytes that rec, a WRITE, WRITE_EMBEDDED or SPILL, puts
// in place. They are valid until the next call or the Reader's next record. Errors
// wrap [ErrEncoded]. Data that yield less or more than LogicalSize are refused;
// zeros fill a WRITE_EMBEDDED from there on. Section 3.8 has the encodings.
func (d *Decoder) Decode(rec *Record) ([]byte, error) {
	switch rec.Type {
	case Write, WriteEmbedded, Spill:
	default:
		panic("zfs: internal error: Decode of " + rec.Type.String())
	}
	size, length := int(rec.LogicalSize), int(rec.Length)
	if rec.Compression == Plain || rec.Compression == Off {
		switch {
		case len(rec.Payload) != size:
			return nil, fmt.Errorf("%w: %d bytes for %d", ErrEncoded, len(rec.Payload), size)
		case size == length:
			return rec.Payload, nil
		}
	}
	d.out = slices.Grow(d.out[:0], length)
	out := d.out[:length]
	if err := d.decode(out[:size:size], rec.Payload, rec.Compression); err != nil {
		return nil, fmt.Errorf("%w: %v: %w", ErrEncoded, rec.Compression, err)
	}
	clear(out[size:])
	return out, nil
}

var (
	errShort = errors.New("data end too early")
	errLong  = errors.New("more data than announced")
)

// decode fills out from data.
func (d *Decoder) decode(out, data []byte, by Compression) error {
	switch by {
	case Plain, Off:
		copy(out, data)
		return nil
	case LZJB:
		return unLZJB(out, data)
	case Empty:
		clear(out)
		return nil
	case ZLE:
		return unZLE(out, data)
	case LZ4:
		block, err := prefixed(data, 4)
		if err != nil {
			return err
		}
		return unLZ4(out, block)
	case Zstd:
		return d.unzstd(out, data)
	}
	if Gzip1 <= by && by <= Gzip9 {
		return d.unzlib(out, data)
	}
	return errors.New("no such encoding")
}

// prefixed returns the compressed data of a payload: as long as its first word,
// always big endian, says, behind a header of size bytes. Padding follows.
func prefixed(data []byte, size int) ([]byte, error) {
	if len(data) < size {
		return nil, errShort
	}
	n := binary.BigEndian.Uint32(data)
	if data = data[size:]; uint64(n) > uint64(len(data)) {
		return nil, fmt.Errorf("%w: %d bytes of %d", errShort, len(data), n)
	}
	return data[:n], nil
}

// unzlib decodes any gzip level. The stream ends itself; padding follows.
func (d *Decoder) unzlib(out, data []byte) error {
	d.in.Reset(data)
	var err error
	if d.zlib == nil {
		d.zlib, err = zlib.NewReader(&d.in)
	} else {
		err = d.zlib.(zlib.Resetter).Reset(&d.in, nil)
	}
	if err != nil {
		return err
	}
	switch _, err := io.ReadFull(d.zlib, out); {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return errShort // io.ErrUnexpectedEOF is for input that stops
	case err != nil:
		return err
	}
	// To read on is to see the checksum, too.
	var more [1]byte
	switch n, err := io.ReadFull(d.zlib, more[:]); {
	case n > 0:
		return errLong
	case err == io.ErrUnexpectedEOF:
		return errShort
	case err != io.EOF:
		return err
	}
	return nil
}

// unzstd decodes a frame, which comes without its magic number behind its length
// and a word that tells version and level.
func (d *Decoder) unzstd(out, data []byte) error {
	frame, err := prefixed(data, 8)
	if err != nil {
		return err
	}
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1), // no goroutines: there is no Close to end them
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxBlock),
			zstd.WithDecoderMaxWindow(maxBlock),
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic("zfs: internal error: " + err.Error())
		}
	}
	d.frame = append(append(d.frame[:0], 0x28, 0xb5, 0x2f, 0xfd), frame...)
	got, err := d.zstd.DecodeAll(d.frame, out[:0:len(out)])
	switch {
	case err != nil:
		return err
	case len(got) < len(out):
		return errShort
	}
	return nil
}
