package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/sendtest"
)

// seeds are streams of the corpus of at most size bytes, raw.
func seeds(f *testing.F, size int) [][]byte {
	f.Helper()
	var out [][]byte
	for _, rs := range recordings(f) {
		for _, r := range rs {
			// What is small when packed and large when not is no good seed either.
			if st, err := os.Stat(r.path()); err != nil || st.Size() > int64(size) {
				continue
			}
			if s := r.stream(f); len(s) <= size {
				out = append(out, s)
			}
		}
	}
	if len(out) == 0 {
		f.Fatal("no seeds")
	}
	return out
}

// mend puts the right sums into a stream, as far as it is one: a mutation that
// only breaks a sum finds nothing.
func mend(stream []byte) []byte {
	s := bytes.Clone(stream)
	for p := s; ; {
		if bytes.HasPrefix(p, []byte(magic)) && len(p) >= headerSize {
			p = p[headerSize:]
		}
		if len(p) < cmdSize {
			return s
		}
		size := binary.LittleEndian.Uint32(p)
		if uint64(size) > uint64(len(p)-cmdSize) {
			return s
		}
		c := p[:cmdSize+int(size)]
		clear(c[6:cmdSize])
		binary.LittleEndian.PutUint32(c[6:], ^crc32.Update(math.MaxUint32, castagnoli, c))
		p = p[len(c):]
	}
}

func FuzzReader(f *testing.F) {
	for _, s := range seeds(f, 4096) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		for _, s := range [][]byte{stream, mend(stream)} {
			r := NewReader(bytes.NewReader(s))
			var last int64 = -1
			for c, err := range r.All() {
				if err != nil {
					fe, ok := errors.AsType[*FormatError](err)
					if !ok || fe.Offset < 0 || fe.Offset > int64(len(s)) {
						t.Fatalf("%v of %d bytes", err, len(s))
					}
					break
				}
				if c.Offset <= last || c.Offset >= r.Offset() || r.Offset() > int64(len(s)) {
					t.Fatalf("command at %d after %d; %d of %d bytes read", c.Offset, last, r.Offset(), len(s))
				}
				last = c.Offset
				checkCommand(t, &c)
			}
		}
	})
}

// checkCommand checks what the Reader promises.
func checkCommand(t *testing.T, c *Command) {
	paths := [][]byte{c.Path, c.PathTo, c.ClonePath}
	if c.Type == Link {
		paths = append(paths, c.Link)
	}
	for _, p := range paths {
		if len(p) == 0 {
			continue
		}
		for name := range strings.SplitSeq(string(p), "/") {
			if err := filetree.CheckName(name); err != nil {
				t.Fatalf("%v: path %q: %v", c.Type, p, err)
			}
		}
	}
	if c.Range.Offset < 0 || c.Range.Length < 0 || c.Range.End() < 0 || c.Size < 0 ||
		c.CloneOffset < 0 || c.CloneOffset+c.Range.Length < 0 {
		t.Fatalf("%v: bad range in %+v", c.Type, c)
	}
	if c.Type == Write && int64(len(c.Data)) != c.Range.Length {
		t.Fatalf("write of %d bytes to %v", len(c.Data), c.Range)
	}
}

// FuzzApply applies streams to a tree of a few files. Seeds are small streams, and
// those of the tests' builder that need the tree.
func FuzzApply(f *testing.F) {
	for _, s := range seeds(f, 3000) {
		f.Add(s, byte(0))
		f.Add(s, byte(0xff))
	}
	for version := range uint32(2) {
		b := newStream(version + 1).snapshot()
		b.rename("d", "x/d").write("x/d/g", 0, "1").rename("x/d", "e/d").link("m", "l").clone("m", 4096, 4096, ownUUID, "l", 0)
		b.cmd(MkDir, at("o301-9-0"), u64(aIno, 301)).file("o301-9-0/c", 300).rename("o301-9-0", "n")
		b.rename("x", "y").clone("l", 0, 10, parentUUID, "d/f", 10).write("m", 0, repeat("\x00", 5000))
		f.Add(b.end(), byte(1))
	}
	f.Fuzz(func(t *testing.T, stream []byte, how byte) {
		m := base(t)
		m.Snapshots = map[[16]byte]*sendtest.Model{{15: parentUUID}: m.Copy()}
		m.MaxBlocks, m.MaxNodes = 1<<12, 1<<10
		o := Options{NoData: how&1 != 0}
		e := &excludes{}
		if how&2 != 0 {
			o.Excluded = func(p string, dir bool) bool { return hash(p)%3 == uint32(how)>>4%3 && (dir || how&4 != 0) }
			e.match = o.Excluded
			all := m
			m = filtered(t, m, e)
			o.Outside = encodeOutside(outsideOf(all, m))
		}
		stream = mend(stream)
		for u, err := range NewUnits(bytes.NewReader(stream)).All() {
			if err != nil {
				return
			}
			res, err := u.Apply(t.Context(), m, o)
			if fe, ok := errors.AsType[*FormatError](err); ok && (fe.Offset < u.Offset || fe.Offset > int64(len(stream))) {
				t.Fatalf("%v of %d bytes", err, len(stream))
			}
			switch {
			case err == nil:
				checkApplied(t, m, e, res)
				if o.Outside = res.Outside; o.NoData {
					return // the caller would have to look
				}
			case err == io.EOF:
				t.Fatal("EOF")
			default:
				return
			}
		}
	})
}

// checkApplied checks that nothing is left that is excluded or waits in the root.
func checkApplied(t tester, m *sendtest.Model, e *excludes, res Result) {
	m.Walk(func(p string, n *sendtest.Node) {
		if e.covers(p, n.Attr.Kind) {
			t.Fatalf("%q is excluded and there; moved %q", p, res.Moved)
		}
		if strings.HasPrefix(p, parkedPrefix) {
			t.Fatalf("%q is left", p)
		}
	})
	for _, p := range res.Unknown {
		if e.covers(p, 0) {
			t.Fatalf("%q is unknown and excluded", p)
		}
	}
}

func FuzzEncoded(f *testing.F) {
	text := repeat("all work and no play ", 50)
	f.Add(byte(Zlib), uint32(4096), pad(zlibOf(text), 2000))
	f.Add(byte(Zstd), uint32(4096), pad(zstdOf(text), 2000))
	f.Add(byte(LZO4K), uint32(4096), lzoExtent(4096, lzoSegment("hello"), lzoRun('x', 100)))
	f.Add(byte(LZO64K), uint32(65536), lzoExtent(65536, lzoSegment("hello"), lzoRun('x', 100)))
	f.Add(byte(None), uint32(5), []byte("hello"))
	for c, err := range NewReader(bytes.NewReader(recording{corpusDir() + "/compress", "001-s0-s1-v2-compressed"}.stream(f))).All() {
		if err != nil {
			f.Fatal(err)
		}
		if c.Type == EncodedWrite && len(c.Data) <= 8192 {
			f.Add(byte(c.Compression), uint32(c.UnencodedLen), bytes.Clone(c.Data))
		}
	}
	var d Decoder
	f.Fuzz(func(t *testing.T, by byte, size uint32, data []byte) {
		c := Command{Type: EncodedWrite, Data: data, Compression: Compression(by % 8), UnencodedLen: int(size % (maxExtent + 1))}
		c.Range.Length = int64(c.UnencodedLen)
		got, err := d.Decode(&c)
		switch {
		case err != nil && !errors.Is(err, ErrEncoded):
			t.Fatal(err)
		case err == nil && len(got) != c.UnencodedLen:
			t.Fatalf("%d bytes, want %d", len(got), c.UnencodedLen)
		case err != nil:
			return
		}
		// What was there before has no part in it.
		want := bytes.Clone(got)
		for i := range d.out {
			d.out[i] = 0xa5
		}
		if again, err := d.Decode(&c); err != nil || !bytes.Equal(again, want) {
			t.Fatalf("the second time it is something else: %v", err)
		}
	})
}
