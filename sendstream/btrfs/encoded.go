package btrfs

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/zstd"
)

// ErrEncoded reports an ENCODED_WRITE whose data cannot be decoded.
var ErrEncoded = errors.New("malformed encoded extent")

// A Decoder decodes the data of ENCODED_WRITE commands. The zero Decoder is ready
// to use. Its memory is a few hundred KiB, whatever it is given.
type Decoder struct {
	out  []byte
	in   bytes.Reader
	zlib io.ReadCloser
	zstd *zstd.Decoder
}

// Decode returns the bytes that belong to c.Range. They are valid until the next
// call. Encoded data may be followed by padding and may yield less than the whole
// extent, in which case the rest is zeros; data that yields more is refused with an
// error that wraps [ErrEncoded].
func (d *Decoder) Decode(c *Command) ([]byte, error) {
	if c.Type != EncodedWrite {
		panic("btrfs: internal error: Decode of " + c.Type.String())
	}
	if d.out == nil {
		d.out = make([]byte, maxExtent)
	}
	out := d.out[:c.UnencodedLen:c.UnencodedLen]
	n, err := d.decode(out, c.Data, c.Compression)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncoded, err)
	}
	clear(out[n:])
	return out[c.UnencodedOffset:][:c.Range.Length], nil
}

// errTooLong says that an extent is longer than it was announced.
var errTooLong = errors.New("more data than announced")

func (d *Decoder) decode(out, data []byte, by Compression) (int, error) {
	switch by {
	case None:
		if len(data) > len(out) {
			return 0, errTooLong
		}
		return copy(out, data), nil
	case Zlib:
		return d.unzlib(out, data)
	case Zstd:
		return d.unzstd(out, data)
	default:
		return unlzo(out, data, 4<<10<<(by-LZO4K))
	}
}

func (d *Decoder) unzlib(out, data []byte) (int, error) {
	d.in.Reset(data)
	var err error
	if d.zlib == nil {
		d.zlib, err = zlib.NewReader(&d.in)
	} else {
		err = d.zlib.(zlib.Resetter).Reset(&d.in, nil)
	}
	if err != nil {
		return 0, fmt.Errorf("zlib: %w", err)
	}
	n, err := io.ReadFull(d.zlib, out)
	if err == nil {
		// All there may be. To read on is to see the checksum, too.
		var more [1]byte
		var m int
		if m, err = io.ReadFull(d.zlib, more[:]); m > 0 {
			return 0, errTooLong
		}
	}
	// ReadFull's own ErrUnexpectedEOF says that the extent is short, which it may
	// be. zlib gives the same error for data that are cut: at the end of a good
	// stream it goes on giving EOF.
	if err == io.ErrUnexpectedEOF {
		_, err = d.zlib.Read(out[n:])
	}
	if err != io.EOF {
		return 0, fmt.Errorf("zlib: %w", err)
	}
	return n, nil
}

func (d *Decoder) unzstd(out, data []byte) (int, error) {
	frame, err := zstdFrame(data)
	if err != nil {
		return 0, fmt.Errorf("zstd: %w", err)
	}
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1), // no goroutines: there is no Close to end them
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxPayload),
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic("btrfs: internal error: " + err.Error())
		}
	}
	got, err := d.zstd.DecodeAll(frame, out[:0:len(out)])
	if err != nil {
		return 0, fmt.Errorf("zstd: %w", err)
	}
	return len(got), nil
}

var errCut = errors.New("data end too early")

// zstdFrame returns the first frame of data: the library takes what follows a
// frame for another one, and here padding follows.
func zstdFrame(data []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(data); err != nil {
		return nil, err
	}
	if h.Skippable {
		return nil, errors.New("skippable frame")
	}
	end := h.HeaderSize
	for last := false; !last; {
		if len(data)-end < 3 {
			return nil, errCut
		}
		b := uint32(data[end]) | uint32(data[end+1])<<8 | uint32(data[end+2])<<16
		last = b&1 != 0
		size := int(b >> 3)
		if b>>1&3 == 1 { // RLE: one byte stands for all
			size = 1
		}
		end += 3 + size
	}
	if h.HasCheckSum {
		end += 4
	}
	if end > len(data) {
		return nil, errCut
	}
	return data[:end], nil
}

// unlzo decodes a total length, itself included, then segments: a length and that
// many bytes of LZO1X, each of which yields at most one sector. The header of a
// segment does not cross a sector boundary of data; what is left of the sector is
// skipped instead.
func unlzo(out, data []byte, sector int) (int, error) {
	if len(data) < 4 {
		return 0, fmt.Errorf("lzo: %w", errCut)
	}
	total := binary.LittleEndian.Uint32(data)
	if total < 4 || uint64(total) > uint64(len(data)) {
		return 0, fmt.Errorf("lzo: total length %d of %d", total, len(data))
	}
	data = data[:total]
	n := 0
	for pos := 4; n < len(out); {
		if left := sector - pos%sector; left < 4 {
			pos += left
		}
		if pos >= len(data) {
			break
		}
		if len(data)-pos < 4 {
			return 0, fmt.Errorf("lzo: %w", errCut)
		}
		size := binary.LittleEndian.Uint32(data[pos:])
		pos += 4
		if uint64(size) > uint64(len(data)-pos) {
			return 0, fmt.Errorf("lzo: segment of %d bytes, %d left", size, len(data)-pos)
		}
		m, err := lzo.Decompress(data[pos:pos+int(size)], out[n:min(n+sector, len(out))])
		if err != nil {
			return 0, fmt.Errorf("lzo: segment at %d: %w", pos, err)
		}
		pos += int(size)
		n += m
	}
	return n, nil
}
