package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// The encoders here are for tests alone and know only what the formats allow, not
// what is good.

// lz4Of packs sequences into a block with its length in front.
func lz4Of(seqs ...[]byte) []byte {
	block := bytes.Join(seqs, nil)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(block))), block...)
}

// lz4Seq is a sequence; one without a match is the last.
func lz4Seq(literals string, distance, match int) []byte {
	var out []byte
	length := func(n int) (token byte, more []byte) {
		if n < 15 {
			return byte(n), nil
		}
		for n -= 15; n >= 255; n -= 255 {
			more = append(more, 255)
		}
		return 15, append(more, byte(n))
	}
	lt, lmore := length(len(literals))
	if match == 0 {
		return append(append(append(out, lt<<4), lmore...), literals...)
	}
	mt, mmore := length(match - 4)
	out = append(append(append(out, lt<<4|mt), lmore...), literals...)
	return append(binary.LittleEndian.AppendUint16(out, uint16(distance)), mmore...)
}

func zstdOf(tb testing.TB, b []byte) []byte {
	tb.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		tb.Fatal(err)
	}
	defer enc.Close()
	frame := enc.EncodeAll(b, nil)[4:]
	return append(binary.BigEndian.AppendUint64(nil, uint64(len(frame))<<32|0x03002905), frame...)
}

func gzipOf(b []byte) []byte {
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// lzjbOf encodes greedily, with the nearest match of 3 bytes or more.
func lzjbOf(b []byte) []byte {
	var out []byte
	control, bit := 0, 8
	for i := 0; i < len(b); bit++ {
		if bit == 8 {
			control, bit = len(out), 0
			out = append(out, 0)
		}
		n, distance := 0, 0
		for d := 1; d <= min(i, 1023) && n < 66; d++ {
			m := 0
			for m < 66 && i+m < len(b) && b[i+m] == b[i+m-d] {
				m++
			}
			if m > n {
				n, distance = m, d
			}
		}
		if n < 3 {
			out = append(out, b[i])
			i++
			continue
		}
		out[control] |= 1 << bit
		out = append(out, byte((n-3)<<2|distance>>8), byte(distance))
		i += n
	}
	return out
}

// zleOf encodes runs of zeros and of the rest.
func zleOf(b []byte) []byte {
	var out []byte
	for len(b) > 0 {
		n := 0
		for n < len(b) && n < 192 && b[n] == 0 {
			n++
		}
		if n > 0 {
			out = append(out, byte(n+zleLiterals-1))
		} else {
			for n < len(b) && n < zleLiterals && b[n] != 0 {
				n++
			}
			out = append(append(out, byte(n-1)), b[:n]...)
		}
		b = b[n:]
	}
	return out
}

func pad(b []byte, n int) []byte { return append(b, make([]byte, n)...) }

// write returns a WRITE of size bytes.
func write(by Compression, size int, data []byte) *Record {
	return &Record{Type: Write, Compression: by, Length: uint64(size), LogicalSize: uint32(size), Payload: data}
}

func TestDecode(t *testing.T) {
	text := []byte(strings.Repeat("all work and no play ", 50))
	short := func(n int) []byte { return text[:n] }
	long := strings.Repeat("long literals, ", 40)
	tests := []struct {
		name string
		rec  *Record
		want []byte
	}{
		{"plain", write(Plain, 512, short(512)), short(512)},
		{"off", write(Off, 512, short(512)), short(512)},
		{"empty", write(Empty, 512, short(8)), make([]byte, 512)},
		{"lz4 literals", write(LZ4, 5, lz4Of(lz4Seq("hello", 0, 0))), []byte("hello")},
		{"lz4 padded", write(LZ4, 5, pad(lz4Of(lz4Seq("hello", 0, 0)), 503)), []byte("hello")},
		{"lz4 run", write(LZ4, 106, lz4Of(lz4Seq("x", 1, 100), lz4Seq("yzxyz", 0, 0))), []byte(strings.Repeat("x", 101) + "yzxyz")},
		{"lz4 overlap", write(LZ4, 15, lz4Of(lz4Seq("abc", 3, 7), lz4Seq("12345", 0, 0))), []byte("abcabcabca12345")},
		{"lz4 long", write(LZ4, 2*len(long)+5, lz4Of(lz4Seq(long, len(long), len(long)), lz4Seq("12345", 0, 0))), []byte(long + long + "12345")},
		{"zstd", write(Zstd, len(text), pad(zstdOf(t, text), 300)), text},
		{"gzip", write(Gzip9, len(text), pad(gzipOf(text), 300)), text},
		{"lzjb", write(LZJB, len(text), pad(lzjbOf(text), 30)), text},
		// 3 literals, then a match of 66 at 3 that the end cuts to 7.
		{"lzjb by hand", write(LZJB, 10, []byte{0b1000, 'a', 'b', 'c', 63 << 2, 3}), []byte("abcabcabca")},
		{"zle", write(ZLE, len(text), pad(zleOf(text), 30)), text},
		{"zle by hand", write(ZLE, 260, append([]byte{2, 'a', 'b', 'c', 64, 255, 63}, short(64)...)), append(append([]byte("abc"), make([]byte, 193)...), short(64)...)},
		{"embedded", &Record{Type: WriteEmbedded, Compression: ZLE, Length: 512, LogicalSize: 5, Payload: []byte("\x04hello")}, pad([]byte("hello"), 507)},
		{"embedded, off", &Record{Type: WriteEmbedded, Compression: Off, Length: 512, LogicalSize: 5, Payload: []byte("hello")}, pad([]byte("hello"), 507)},
		{"spill", &Record{Type: Spill, Length: 512, LogicalSize: 512, Payload: short(512)}, short(512)},
	}
	var d Decoder
	for range 2 { // the second time with what the first has left
		for _, tt := range tests {
			got, err := d.Decode(tt.rec)
			if err != nil || !bytes.Equal(got, tt.want) {
				t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
			}
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	text := []byte(strings.Repeat("all work and no play ", 50))
	frame := zstdOf(t, text)
	long := bytes.Clone(frame)
	binary.BigEndian.PutUint32(long, uint32(len(frame)))
	broken := gzipOf(text)
	broken[len(broken)-1] ^= 1
	wide := append([]byte{0, 0, 0, 12, 3, 0, 0, 0}, 0, 15<<3, 1, 0, 0) // 32 MiB of window, an empty block
	binary.BigEndian.PutUint32(wide, 5)
	tests := []struct {
		name string
		rec  *Record
	}{
		{"off, short", write(Off, 512, text[:511])},
		{"off, long", write(Off, 512, text[:513])},
		{"on", write(1, 512, text[:512])},
		{"17", write(17, 512, text[:512])},
		{"lz4 without a length", write(LZ4, 5, []byte{0, 0, 0})},
		{"lz4 of nothing", write(LZ4, 5, lz4Of())},
		{"lz4 of more than there is", write(LZ4, 5, append([]byte{0, 0, 0, 7}, lz4Seq("hello", 0, 0)...))},
		{"lz4 of 4 GiB", write(LZ4, 5, append([]byte{255, 255, 255, 255}, lz4Seq("hello", 0, 0)...))},
		{"lz4 short", write(LZ4, 6, lz4Of(lz4Seq("hello", 0, 0)))},
		{"lz4 long", write(LZ4, 4, lz4Of(lz4Seq("hello", 0, 0)))},
		{"lz4 match long", write(LZ4, 20, lz4Of(lz4Seq("hello", 5, 16), lz4Seq("", 0, 0)))},
		{"lz4 distance 0", write(LZ4, 14, lz4Of(lz4Seq("hello", 0, 4), lz4Seq("world", 0, 0)))},
		{"lz4 distance before the start", write(LZ4, 14, lz4Of(lz4Seq("hello", 6, 4), lz4Seq("world", 0, 0)))},
		{"lz4 ends in a literal", write(LZ4, 5, lz4Of([]byte("\x50hell")))},
		{"lz4 ends in a length", write(LZ4, 500, lz4Of([]byte("\xf0\xff")))},
		{"lz4 ends in a distance", write(LZ4, 5, lz4Of([]byte("\x10x\x01")))},
		{"lz4 ends behind a match", write(LZ4, 9, lz4Of(lz4Seq("hello", 5, 4)))},
		{"lz4 length without end", write(LZ4, 5, lz4Of(append([]byte{0xf0}, bytes.Repeat([]byte{255}, 1000)...)))},
		{"zstd without a header", write(Zstd, 5, frame[:7])},
		{"zstd short", write(Zstd, len(text)+1, frame)},
		{"zstd long", write(Zstd, len(text)-1, frame)},
		{"zstd cut", write(Zstd, len(text), frame[:len(frame)-1])},
		{"zstd with a byte too much", write(Zstd, len(text), pad(long, 8))},
		{"zstd window above 16 MiB", write(Zstd, 512, wide)},
		{"gzip of nothing", write(Gzip1, 5, nil)},
		{"gzip short", write(Gzip1, len(text)+1, gzipOf(text))},
		{"gzip long", write(Gzip1, len(text)-1, gzipOf(text))},
		{"gzip cut", write(Gzip1, len(text), gzipOf(text)[:20])},
		{"gzip cut in the sum", write(Gzip1, len(text), broken[:len(broken)-1])},
		{"gzip sum", write(Gzip1, len(text), broken)},
		{"lzjb short", write(LZJB, len(text), lzjbOf(text[:200]))},
		{"lzjb ends in a match", write(LZJB, 10, []byte{0b1000, 'a', 'b', 'c', 63 << 2})},
		{"lzjb distance 0", write(LZJB, 10, []byte{0b1000, 'a', 'b', 'c', 63 << 2, 0})},
		{"lzjb distance before the start", write(LZJB, 10, []byte{0b1000, 'a', 'b', 'c', 63 << 2, 4})},
		{"zle short", write(ZLE, 6, []byte("\x04hello"))},
		{"zle long", write(ZLE, 4, []byte("\x04hello"))},
		{"zle too many zeros", write(ZLE, 100, []byte{64 + 100})},
		{"zle ends in literals", write(ZLE, 10, []byte("\x09hello"))},
	}
	var d Decoder
	for _, tt := range tests {
		if got, err := d.Decode(tt.rec); !errors.Is(err, ErrEncoded) {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
		// An error leaves nothing behind.
		if got, err := d.Decode(write(Gzip1, len(text), gzipOf(text))); err != nil || !bytes.Equal(got, text) {
			t.Fatalf("after %s: %v", tt.name, err)
		}
		if got, err := d.Decode(write(Zstd, len(text), frame)); err != nil || !bytes.Equal(got, text) {
			t.Fatalf("after %s: %v", tt.name, err)
		}
	}
}

// TestDecodeRandom decodes what was encoded of bytes with runs and repetitions.
func TestDecodeRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var d Decoder
	for range 200 {
		b := make([]byte, 0, 4096)
		for len(b) < 1+rnd.IntN(4000) {
			switch n := 1 + rnd.IntN(300); rnd.IntN(3) {
			case 0:
				b = append(b, make([]byte, n)...)
			case 1:
				for range n {
					b = append(b, byte(rnd.IntN(256)))
				}
			case 2:
				at := rnd.IntN(len(b) + 1)
				b = append(b, b[at:min(at+n, len(b))]...)
			}
		}
		for by, data := range map[Compression][]byte{LZJB: lzjbOf(b), ZLE: zleOf(b), Gzip1: gzipOf(b), Zstd: zstdOf(t, b)} {
			if got, err := d.Decode(write(by, len(b), data)); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("%v of %q: %q, %v", by, b, got, err)
			}
		}
	}
}

// TestDecodeAllocs checks that a Decoder uses its memory again.
func TestDecodeAllocs(t *testing.T) {
	text := bytes.Repeat([]byte("all work and no play "), 5000)
	var d Decoder
	recs := []*Record{
		write(LZ4, 101, lz4Of(lz4Seq("x", 1, 95), lz4Seq("12345", 0, 0))), write(LZJB, 2000, lzjbOf(text[:2000])), write(ZLE, 2000, zleOf(text[:2000])),
		write(Gzip1, len(text), gzipOf(text)), write(Zstd, len(text), zstdOf(t, text)),
	}
	for _, rec := range recs {
		n := testing.AllocsPerRun(50, func() {
			if _, err := d.Decode(rec); err != nil {
				t.Fatal(err)
			}
		})
		// The library makes one of its tables anew for each block of gzip.
		if n > 0 && rec.Compression != Gzip1 || n > 5 {
			t.Errorf("%v: %v allocations", rec.Compression, n)
		}
	}
}

// BenchmarkDecode decodes the recorded payloads of a codec.
func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"d_lz4/050-s1-s2.c", "d_zstd/050-s1-s2.c", "d_gzip/060-s2-s3.c", "d_zle/060-s2-s3.c"} {
		dir, file, _ := strings.Cut(name, "/")
		b.Run(dir, func(b *testing.B) {
			var recs []Record
			size := 0
			for _, r := range must(readAll(recording{corpusDir() + "/" + dir, file}.stream(b))) {
				if r.Type == Write && r.Compression != Plain {
					recs = append(recs, r)
					size += int(r.Length)
				}
			}
			if size == 0 {
				b.Fatal("nothing compressed")
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var d Decoder
			for b.Loop() {
				for i := range recs {
					if _, err := d.Decode(&recs[i]); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run("lzjb", func(b *testing.B) {
		text := bytes.Repeat(seq(300), 400)[:100000]
		rec := write(LZJB, len(text), lzjbOf(text))
		b.SetBytes(int64(len(text)))
		var d Decoder
		for b.Loop() {
			if _, err := d.Decode(rec); err != nil {
				b.Fatal(err)
			}
		}
	})
}
