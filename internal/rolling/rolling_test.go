package rolling

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/secrate/secrate/internal/seal"
)

// strong is a strong checksum as the tests need it.
func strong(b []byte) Sum {
	h := sha256.Sum256(b)
	return Sum(h[:])
}

func sign(length int, old []byte) *Signature {
	s := NewSigner(length, strong)
	s.Write(0, old)
	return s.Signature()
}

// match looks for sig in data as a reader of files does: step bytes at a time, with a block
// before and behind them.
func match(m *Matcher, data []byte, step int) []Copy {
	n := m.sig.Length
	var all []Copy
	done := 0
	for pos := 0; pos < len(data); {
		to := min(pos+step, len(data))
		first, end := max(pos-n, 0), min(to+n, len(data))
		for _, c := range m.Match(data[first:end], max(pos, done)-first, to-first, int64(first)) {
			c.At += first
			all = append(all, c)
			done = c.At + c.Length
		}
		pos = to
	}
	return all
}

// rebuild makes data of copies, and of itself between them; it returns how many bytes it
// took from there.
func rebuild(t interface{ Fatalf(string, ...any) }, old, data []byte, copies []Copy) ([]byte, int) {
	var got []byte
	fresh, at := 0, 0
	for _, c := range copies {
		if c.At < at || c.Length <= 0 || c.At+c.Length > len(data) || c.Old < 0 || c.Old+int64(c.Length) > int64(len(old)) {
			t.Fatalf("copy %+v after %d, of %d bytes from %d", c, at, len(data), len(old))
		}
		got = append(got, data[at:c.At]...)
		fresh += c.At - at
		got = append(got, old[c.Old:c.Old+int64(c.Length)]...)
		at = c.At + c.Length
	}
	fresh += len(data) - at
	return append(got, data[at:]...), fresh
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func TestMatch(t *testing.T) {
	const n = 256
	old := random(1, 100*n+77)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	line := []byte("one line more\n")
	zeros := make([]byte, 40*n)
	for _, tt := range []struct {
		name     string
		old, new []byte
		fresh    int // bytes that are not found in old
	}{
		{"the same", old, old, 0},
		{"a line at the front", old, join(line, old), len(line)},
		{"a line in the middle", old, join(old[:50*n+9], line, old[50*n+9:]), len(line) + n},
		{"a line at the end", old, join(old, line), len(line)},
		{"cut off", old, old[:70*n+5], 5},
		{"the front cut off", old, old[3:], n - 3},
		{"a block moved", old, join(old[:10*n], old[20*n:60*n], old[10*n:20*n], old[60*n:]), 0},
		{"a byte changed", old, join(old[:30*n+1], []byte{old[30*n+1] + 1}, old[30*n+2:]), n},
		{"a byte of the last block changed", old, join(old[:len(old)-1], []byte{old[len(old)-1] + 1}), 77},
		{"twice", old, join(old, old), 0},
		{"another", old, random(2, 100*n), 100 * n},
		{"less than a block", old, old[:n-1], n - 1},
		{"empty", old, nil, 0},
		{"of one that was less than a block", old[:n-1], old, len(old)},
		{"zeros", zeros, join(line, zeros), len(line)},
		{"zeros among others", join(old[:2*n], zeros, old[2*n:4*n]), join(old[:2*n], zeros, line, zeros, old[2*n:4*n]), len(line)},
		{"fewer zeros", join(old[:2*n], zeros, old[2*n:4*n]), join(old[:2*n], zeros[5:], old[2*n:4*n]), n - 5},
	} {
		for _, step := range []int{1, n - 1, n, 5*n + 3, 1 << 20} {
			m := NewMatcher(sign(n, tt.old), strong)
			got, fresh := rebuild(t, tt.old, tt.new, match(m, tt.new, step))
			if !bytes.Equal(got, tt.new) || fresh != tt.fresh {
				t.Errorf("%s, %d at a time: %d bytes are new, expected %d; right: %v", tt.name, step, fresh, tt.fresh, bytes.Equal(got, tt.new))
			}
		}
	}
}

// TestMatchInPlace sees to it that of blocks that are the same the one in its place is taken.
func TestMatchInPlace(t *testing.T) {
	const n = 128
	block := random(3, n)
	old := bytes.Repeat(block, 50)
	data := bytes.Clone(old)
	copy(data[10*n:], "changed")
	for _, c := range match(NewMatcher(sign(n, old), strong), data, 7*n) {
		if c.Old != int64(c.At) {
			t.Errorf("%+v", c)
		}
	}
}

// TestMatchAny makes a new file of an old one in any way, with holes in both.
func TestMatchAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{MinBlock, 100, 256}).Draw(t, "length")
		alphabet := rapid.SampledFrom([]int{1, 2, 256}).Draw(t, "alphabet")
		content := func(name string, limit int) []byte {
			b := random(rapid.Uint64().Draw(t, name+" seed"), rapid.IntRange(0, limit).Draw(t, name+" length"))
			for i := range b {
				b[i] %= byte(alphabet - 1 | 1)
			}
			return b
		}
		old := content("old", 40*n)
		s := NewSigner(n, strong)
		for at := 0; at < len(old); {
			k := rapid.IntRange(1, 10*n).Draw(t, "write")
			end := min(at+k, len(old))
			if rapid.IntRange(0, 5).Draw(t, "hole") == 0 {
				clear(old[at:end])
			} else {
				s.Write(int64(at), old[at:end])
			}
			at = end
		}
		sig := s.Signature()
		for i, b := range sig.Blocks {
			if in := old[b.Offset:][:n]; Weak(in) != b.Weak || strong(in) != b.Strong {
				t.Fatalf("block %d at %d is of other bytes", i, b.Offset)
			}
		}
		var data []byte
		for range rapid.IntRange(0, 8).Draw(t, "pieces") {
			if len(old) == 0 || rapid.Bool().Draw(t, "new") {
				data = append(data, content("new", 3*n)...)
				continue
			}
			from := rapid.IntRange(0, len(old)-1).Draw(t, "from")
			data = append(data, old[from:rapid.IntRange(from, len(old)).Draw(t, "to")]...)
		}
		copies := match(NewMatcher(sig, strong), data, rapid.IntRange(1, 20*n).Draw(t, "step"))
		if got, _ := rebuild(t, old, data, copies); !bytes.Equal(got, data) {
			t.Fatalf("%d bytes became %d others", len(data), len(got))
		}
		again, err := Decode(sig.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(sig, again); diff != "" {
			t.Fatalf("encoded and decoded (-want +got):\n%s", diff)
		}
	})
}

// TestMatchHostile counts what is hashed of content that has the weak checksum of a block in
// every place and is none of them: Thue-Morse words, which no multiplier tells apart.
func TestMatchHostile(t *testing.T) {
	const n = 4096
	word, other := make([]byte, n), make([]byte, n)
	for i := range word {
		b := byte(i)
		for v := i >> 8; v > 0; v >>= 8 {
			b ^= byte(v)
		}
		b ^= b >> 4
		b ^= b >> 2
		b ^= b >> 1
		word[i], other[i] = b&1, ^b&1
	}
	if Weak(word) != Weak(other) {
		t.Fatal("they have not got the same weak checksum")
	}
	// The old file has all that a window over the new one can be, but not that.
	data := bytes.Repeat(other, 64)
	old := []byte{}
	for i := range n {
		w := bytes.Clone(data[i : i+n])
		if i == 0 {
			w = word
		}
		old = append(old, w...)
	}
	sig := sign(n, old)
	for i := range sig.Blocks {
		sig.Blocks[i].Strong[0] ^= 1 // as if all of them were such words
	}
	hashed := 0
	m := NewMatcher(sig, func(b []byte) Sum { hashed += len(b); return strong(b) })
	if copies := match(m, data, 1<<16); len(copies) > 0 {
		t.Errorf("found %v", copies)
	}
	if limit := len(data) + 17*n; hashed > limit || hashed < len(data)/2 {
		t.Errorf("hashed %d bytes of %d, at most %d should be", hashed, len(data), limit)
	}
}

func TestBlockSize(t *testing.T) {
	for size, want := range map[int64]int{0: 4 << 10, 64 << 10: 4 << 10, 16 << 20: 4 << 10, 16<<20 + 1: 8 << 10, 1 << 30: 32 << 10,
		60 << 30: 256 << 10, 64 << 30: 512 << 10, MaxFile: MaxBlock, MaxFile + 1: MaxBlock} {
		if got := BlockSize(size); got != want {
			t.Errorf("%d bytes: blocks of %d, expected %d", size, got, want)
		}
	}
}

func TestDecodeWrong(t *testing.T) {
	good := sign(MinBlock, random(4, 10*MinBlock+1)).Encode()
	plain, err := decoder().DecodeAll(good, nil)
	if err != nil {
		t.Fatal(err)
	}
	frame := func(b ...byte) []byte { return encoder().EncodeAll(b, nil) }
	edited := func(at int, v byte) []byte {
		b := bytes.Clone(plain)
		b[at] = v
		return frame(b...)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "no frame": []byte("no frame"), "empty": frame(), "cut off": good[:len(good)-1],
		"short blocks": edited(0, MinBlock-1), "more blocks than sums": edited(1, 12), "fewer": edited(1, 10), "an empty run": edited(3, 0),
		"before the file": edited(2, 1), "bytes behind": frame(append(bytes.Clone(plain), 0)...),
	} {
		if s, err := Decode(b); !errors.Is(err, ErrEncoding) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sign(MinBlock, random(4, 10*MinBlock+1)).Encode(), true)
	f.Add(encoder().EncodeAll([]byte{128, 1, 0}, nil), false)
	f.Add([]byte{128, 32, 1, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, true)
	f.Fuzz(func(t *testing.T, b []byte, plain bool) {
		if plain { // to get past the frame
			b = encoder().EncodeAll(b, nil)
		}
		s, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrEncoding) {
				t.Fatal(err)
			}
			return
		}
		for i, b := range s.Blocks {
			if b.Offset < 0 || i > 0 && b.Offset <= s.Blocks[i-1].Offset {
				t.Fatalf("block %d at %d", i, b.Offset)
			}
		}
		again, err := Decode(s.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s, again); diff != "" {
			t.Fatalf("(-first +again):\n%s", diff)
		}
		m := NewMatcher(s, strong) // of what is in the catalog, whatever it is
		m.Match(b, 0, len(b), 0)
	})
}

func BenchmarkMatch(b *testing.B) {
	const size = 64 << 20
	key := seal.Key{1}
	sum := func(b []byte) Sum { return Sum(key.ContentID(b)) }
	old := random(5, size)
	for _, length := range []int{4 << 10, 32 << 10} {
		s := NewSigner(length, sum)
		s.Write(0, old)
		sig := s.Signature()
		for name, data := range map[string][]byte{"all of it": append([]byte("line\n"), old...), "nothing": random(6, size), "zeros": make([]byte, size)} {
			b.Run(fmt.Sprintf("%d/%s", length, name), func(b *testing.B) {
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					match(NewMatcher(sig, sum), data, 4<<20)
				}
			})
		}
		b.Run(fmt.Sprintf("%d/sign", length), func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				s := NewSigner(length, sum)
				s.Write(0, old)
				s.Signature()
			}
		})
	}
}
