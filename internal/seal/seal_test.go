package seal

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// testKey returns the key whose bytes count up from first.
func testKey(first byte) Key {
	var k Key
	for i := range k {
		k[i] = first + byte(i)
	}
	return k
}

// TestVectors checks testdata/vectors.txt, which docs/format.md quotes. Its
// lines were checked against other implementations: see testdata/README.md.
func TestVectors(t *testing.T) {
	f, err := os.Open("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	checked := make(map[string]int)
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		fields := strings.Fields(sc.Text())
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		var args [][]byte
		for _, field := range fields[1:] {
			// A word is text after a colon, hexadecimal without; "-" is empty.
			if text, ok := strings.CutPrefix(field, ":"); ok {
				args = append(args, []byte(text))
				continue
			}
			b, err := hex.DecodeString(strings.TrimPrefix(field, "-"))
			if err != nil {
				t.Fatalf("line %d: %v", n, err)
			}
			args = append(args, b)
		}
		var k Key
		copy(k[:], args[0])
		want := args[len(args)-1]
		var got []byte
		switch fields[0] {
		case "derive": // key label context… result
			d := k.Derive(string(args[1]), args[2:len(args)-1]...)
			got = d[:]
		case "seal": // key aad plain result
			got = k.Seal(nil, args[1], args[2])
			if plain, err := k.Open(nil, args[1], want); err != nil || !bytes.Equal(plain, args[2]) {
				t.Errorf("line %d: open: %x, %v", n, plain, err)
			}
		case "contentid": // key data… result
			id := k.ContentID(args[1 : len(args)-1]...)
			got = id[:]
		default:
			t.Fatalf("line %d: unknown operation %q", n, fields[0])
		}
		if !bytes.Equal(got, want) {
			t.Errorf("line %d: %s = %x, want %x", n, fields[0], got, want)
		}
		checked[fields[0]]++
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"derive", "seal", "contentid"} {
		if checked[op] < 3 {
			t.Errorf("%d vectors for %s, want 3 at least", checked[op], op)
		}
	}
}

func TestKeyDoesNotPrint(t *testing.T) {
	k := testKey(0x41)
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("m", "key", k)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("m", "key", k)
	out := fmt.Sprintf("%v %+v %#v %s %q %x %X %d %v %v", k, k, k, k, k, k, k, k, &k, struct{ K Key }{k}) + logged.String()
	for _, leak := range []string{"ABCD", "4142", "65 66", "65,66", "0x41, 0x42", hex.EncodeToString(k[:4])} {
		if strings.Contains(out, leak) {
			t.Errorf("%q in %q", leak, out)
		}
	}
}

func TestNewKey(t *testing.T) {
	if a, b := NewKey(), NewKey(); a == b || a == (Key{}) {
		t.Error("keys are not random")
	}
}

func TestDeriveKeepsContextsApart(t *testing.T) {
	k := testKey(1)
	x, y := []byte("x"), []byte("y")
	seen := make(map[Key]string)
	for name, d := range map[string]Key{
		"itself":   k,
		"a":        k.Derive("a"),
		"a/":       k.Derive("a", nil),
		"a//":      k.Derive("a", nil, nil),
		"a/x":      k.Derive("a", x),
		"a/x/y":    k.Derive("a", x, y),
		"a/xy":     k.Derive("a", []byte("xy")),
		"a/y/x":    k.Derive("a", y, x),
		"ax":       k.Derive("ax"),
		"ax/y":     k.Derive("ax", y),
		"":         k.Derive(""),
		"//a":      k.Derive("", nil, []byte("a")),
		"a framed": k.Derive("", []byte("\x00\x00\x00\x01a")),
		"a, k2":    testKey(2).Derive("a"),
	} {
		if other, ok := seen[d]; ok {
			t.Errorf("%q and %q give one key", name, other)
		}
		seen[d] = name
	}
}

func TestSealOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := NewKey()
		plain := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "plain")
		aad := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "aad")
		dst := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "dst")
		box := k.Seal(bytes.Clone(dst), aad, plain)
		if !bytes.HasPrefix(box, dst) || len(box) != len(dst)+len(plain)+Overhead {
			t.Fatalf("box of %d bytes after %d of dst, for %d", len(box), len(dst), len(plain))
		}
		got, err := k.Open(bytes.Clone(dst), aad, box[len(dst):])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, append(bytes.Clone(dst), plain...)) {
			t.Fatal("another plaintext")
		}
	})
}

func TestSealInPlace(t *testing.T) {
	k := testKey(1)
	buf := make([]byte, 100, 100+Overhead)
	want := k.Seal(nil, nil, buf)
	box := k.Seal(buf[:0], nil, buf)
	if !bytes.Equal(box, want) || &box[0] != &buf[0] {
		t.Error("not sealed in place")
	}
	if plain, err := k.Open(box[:0], nil, box); err != nil || !bytes.Equal(plain, make([]byte, 100)) {
		t.Errorf("not opened in place: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	k := testKey(1).Derive("blob", []byte{1})
	aad, plain := []byte("pack 7, blob 1"), []byte("forty-two bytes of somebody's family photo")
	box := k.Seal(nil, aad, plain)
	refused := func(name string, k Key, aad, box []byte) {
		t.Helper()
		got, err := k.Open(nil, aad, box)
		if !errors.Is(err, ErrAuthentication) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for i := range box {
		for bit := range 8 {
			box[i] ^= 1 << bit
			refused(fmt.Sprintf("byte %d bit %d", i, bit), k, aad, box)
			box[i] ^= 1 << bit
		}
		refused(fmt.Sprintf("cut at %d", i), k, aad, box[:i])
	}
	refused("longer", k, aad, append(bytes.Clone(box), 0))
	refused("no aad", k, nil, box)
	refused("other aad", k, []byte("pack 7, blob 2"), box)
	refused("other key", testKey(2).Derive("blob", []byte{1}), aad, box)
	refused("other label", testKey(1).Derive("index", []byte{1}), aad, box)
	refused("other context", testKey(1).Derive("blob", []byte{2}), aad, box)
	if _, err := k.Open(nil, aad, box); err != nil {
		t.Fatalf("untouched: %v", err)
	}
}

func TestContentID(t *testing.T) {
	k := testKey(1)
	data := bytes.Repeat([]byte("secrate"), 5000)
	want := k.ContentID(data)
	for _, cut := range []int{0, 1, 1024, 8191, 8192, 8193, len(data)} {
		if got := k.ContentID(data[:cut], data[cut:]); got != want {
			t.Errorf("cut at %d: %v, want %v", cut, got, want)
		}
	}
	if testKey(2).ContentID(data) == want {
		t.Error("the key does not matter")
	}
	if k.ContentID(data[1:]) == want {
		t.Error("the data does not matter")
	}
	if k.ContentID() != k.ContentID(nil, []byte{}) {
		t.Error("nothing has two ids")
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			k, want := k, want
			if i%2 == 1 {
				k = testKey(byte(i))
				want = k.ContentID(data)
			}
			for range 50 {
				if got := k.ContentID(data); got != want {
					t.Errorf("concurrent: %v, want %v", got, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestContentIDString(t *testing.T) {
	id := ContentID{0: 0xab, 15: 0x01}
	if got, want := id.String(), "ab000000000000000000000000000001"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func BenchmarkContentID(b *testing.B) {
	k := testKey(1)
	for _, size := range []int{64, 4 << 10, 1 << 20} {
		data := make([]byte, size)
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				k.ContentID(data)
			}
		})
	}
}

func BenchmarkSeal(b *testing.B) {
	k := testKey(1)
	data := make([]byte, 1<<20)
	dst := make([]byte, 0, len(data)+Overhead)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		k.Seal(dst, nil, data)
	}
}

func BenchmarkDerive(b *testing.B) {
	k := testKey(1)
	b.ReportAllocs()
	for b.Loop() {
		k.Derive("secrate blob", make([]byte, 8))
	}
}
