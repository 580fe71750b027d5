package btrfs

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/filetree"
)

func zlibOf(s string) []byte {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	w.Write([]byte(s))
	w.Close()
	return b.Bytes()
}

func zstdOf(s string, o ...zstd.EOption) []byte {
	w, err := zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return w.EncodeAll([]byte(s), nil)
}

// lzoSegment returns s as LZO1X literals, 4 to 238 bytes.
func lzoSegment(s string) []byte {
	b := append([]byte{byte(len(s) + 17)}, s...)
	return append(b, 0x11, 0, 0)
}

// lzoRun returns a segment of n times the byte c; n is at least 4 and less than
// 4 + 2 + 7 + 255.
func lzoRun(c byte, n int) []byte {
	b := append([]byte{17 + 4}, c, c, c, c)
	if n -= 4; n > 0 {
		// M3: copy from a distance of 1, of 2 + 31 + x bytes.
		b = append(b, 0x20, byte(n-33), 0, 0)
	}
	return append(b, 0x11, 0, 0)
}

// lzoExtent puts segments into an extent for a sector size.
func lzoExtent(sector int, segments ...[]byte) []byte {
	b := make([]byte, 4)
	for _, s := range segments {
		if left := sector - len(b)%sector; left < 4 {
			b = append(b, make([]byte, left)...)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

func pad(b []byte, n int) []byte { return append(b, make([]byte, n-len(b))...) }

func TestDecode(t *testing.T) {
	text := repeat("all work and no play ", 500) // 10500 bytes
	flip := func(b []byte, off int) []byte {
		b[off] ^= 0xff
		return b
	}
	// Segments that leave 3, 2, 1 and 0 bytes of a sector to the next header.
	tail := func(left int) []byte {
		var segs [][]byte
		for size := 4; ; {
			s := lzoRun('r', 200)
			if rest := 4096 - left - size - 4; rest <= len(s)+4+20 {
				segs = append(segs, lzoSegment(repeat("l", rest-4)), lzoSegment("behind"))
				break
			}
			segs = append(segs, s)
			size += 4 + len(s)
		}
		return lzoExtent(4096, segs...)
	}
	var tails [4]int // what comes out of tail
	for left := range tails {
		out := make([]byte, maxExtent)
		n, err := unlzo(out, tail(left), 4096)
		if err != nil || !bytes.HasSuffix(out[:n], []byte("behind")) {
			t.Fatalf("tail of %d bytes: %q, %v", left, out[max(0, n-20):n], err)
		}
	}
	tests := []struct {
		name string
		by   Compression
		data []byte
		len  int    // of the extent
		want string // without the zeros behind
		bad  bool
	}{
		{"none", None, []byte("hello"), 5, "hello", false},
		{"none, short", None, []byte("hello"), 8, "hello", false},
		{"none, long", None, []byte("hello"), 4, "", true},

		{"zlib", Zlib, zlibOf(text), len(text), text, false},
		{"zlib, padded", Zlib, pad(zlibOf(text), 4096), len(text), text, false},
		{"zlib, short", Zlib, pad(zlibOf(text), 4096), 12288, text, false},
		{"zlib, long", Zlib, zlibOf(text), len(text) - 1, "", true},
		{"zlib, empty", Zlib, zlibOf(""), 0, "", false},
		{"zlib, cut", Zlib, zlibOf(text)[:40], 12288, "", true},
		{"zlib, cut in the sum", Zlib, zlibOf(text)[:len(zlibOf(text))-1], 12288, "", true},
		{"zlib, wrong sum", Zlib, flip(zlibOf(text), len(zlibOf(text))-1), len(text), "", true},
		{"zlib, nothing", Zlib, nil, 5, "", true},

		{"zstd", Zstd, zstdOf(text), len(text), text, false},
		{"zstd, padded", Zstd, pad(zstdOf(text), 4096), len(text), text, false},
		{"zstd, padded, with a sum", Zstd, pad(zstdOf(text, zstd.WithEncoderCRC(true)), 4096), 12288, text, false},
		{"zstd, without a sum", Zstd, zstdOf(text, zstd.WithEncoderCRC(false)), 12288, text, false},
		{"zstd, second frame is padding", Zstd, append(zstdOf("one"), zstdOf("two")...), 6, "one", false},
		{"zstd, long", Zstd, zstdOf(text), len(text) - 1, "", true},
		{"zstd, cut", Zstd, zstdOf(text)[:20], 12288, "", true},
		{"zstd, skippable", Zstd, []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}, 5, "", true},
		{"zstd, nothing", Zstd, nil, 5, "", true},

		{"lzo", LZO4K, lzoExtent(4096, lzoSegment("hello"), lzoRun('x', 100)), 105, "hello" + repeat("x", 100), false},
		{"lzo, padded and short", LZO4K, pad(lzoExtent(4096, lzoSegment("hello")), 4096), 4096, "hello", false},
		{"lzo, long", LZO4K, lzoExtent(4096, lzoSegment("hello")), 4, "", true},
		{"lzo, stops when all is out", LZO4K, lzoExtent(4096, lzoSegment("hello"), []byte("garbage")), 5, "hello", false},
		{"lzo, total too long", LZO4K, []byte{9, 0, 0, 0, 1, 0, 0, 0}, 5, "", true},
		{"lzo, total too short", LZO4K, []byte{3, 0, 0, 0}, 5, "", true},
		{"lzo, segment too long", LZO4K, []byte{9, 0, 0, 0, 2, 0, 0, 0, 1}, 5, "", true},
		{"lzo, segment header cut", LZO4K, []byte{7, 0, 0, 0, 2, 0, 0}, 5, "", true},
		{"lzo, segment cut", LZO4K, lzoExtent(4096, lzoSegment("hello")[:5]), 5, "", true},
		{"lzo, segment of nothing", LZO4K, lzoExtent(4096, nil), 5, "", true},
		{"lzo, garbage", LZO4K, lzoExtent(4096, []byte("\x00\x00\x00\x00")), 5, "", true},
		{"lzo, looks behind the start", LZO4K, lzoExtent(4096, []byte{0x20, 1, 0xff, 0xff, 0x11, 0, 0}), 50, "", true},
		{"lzo, nothing", LZO4K, nil, 5, "", true},
		{"lzo, 64 KiB sectors", LZO64K, lzoExtent(64<<10, lzoRun('a', 200), lzoSegment("end.")), 65536, repeat("a", 200) + "end.", false},
		{"lzo, sector boundary of 8 KiB", LZO8K, tail(2), 65536, "", true},
	}
	var d Decoder
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Command{Type: EncodedWrite, Data: tt.data, Compression: tt.by, UnencodedLen: tt.len,
				Range: filetree.Range{Length: int64(tt.len)}}
			got, err := d.Decode(&c)
			switch {
			case tt.bad && !errors.Is(err, ErrEncoded):
				t.Errorf("%d bytes and error %v, want ErrEncoded", len(got), err)
			case tt.bad:
			case err != nil:
				t.Error(err)
			case !bytes.Equal(got, pad([]byte(tt.want), tt.len)):
				t.Errorf("got %.40q…, want %.40q…", got, tt.want)
			}
		})
	}

	t.Run("a part", func(t *testing.T) {
		c := Command{Type: EncodedWrite, Data: zlibOf("0123456789"), Compression: Zlib, UnencodedLen: 12,
			UnencodedOffset: 7, Range: filetree.Range{Offset: 4096, Length: 5}}
		if got, err := d.Decode(&c); err != nil || string(got) != "789\x00\x00" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("allocations", func(t *testing.T) {
		c := Command{Type: EncodedWrite, Data: zstdOf(text), Compression: Zstd, UnencodedLen: len(text),
			Range: filetree.Range{Length: int64(len(text))}}
		if n := testing.AllocsPerRun(100, func() { d.Decode(&c) }); n > 1 {
			t.Errorf("%v allocations", n)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	stream := recording{corpusDir() + "/compress", "000-full-s0-v2-compressed"}.stream(b)
	for _, by := range []Compression{Zlib, Zstd, LZO4K} {
		b.Run([]string{Zlib: "zlib", Zstd: "zstd", LZO4K: "lzo"}[by], func(b *testing.B) {
			var cs []Command
			size := 0
			for c, err := range NewReader(bytes.NewReader(stream)).All() {
				if err != nil {
					b.Fatal(err)
				}
				if c.Type == EncodedWrite && c.Compression == by {
					c.Data = bytes.Clone(c.Data)
					cs = append(cs, c)
					size += c.UnencodedLen
				}
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var d Decoder
			for b.Loop() {
				for i := range cs {
					if _, err := d.Decode(&cs[i]); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
