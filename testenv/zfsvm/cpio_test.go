package zfsvm

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A cpioEntry is one that readCPIO has read.
type cpioEntry struct {
	Name string
	Mode uint64
	Data string
}

// readCPIO reads an archive by the words of the kernel's buffer-format.rst.
func readCPIO(t *testing.T, b []byte) []cpioEntry {
	t.Helper()
	var all []cpioEntry
	off := 0
	take := func(n int) []byte {
		if off+n > len(b) {
			t.Fatalf("%d bytes wanted at %d of %d", n, off, len(b))
		}
		off += n
		return b[off-n : off]
	}
	align := func() { take((4 - off%4) % 4) }
	for {
		h := string(take(110))
		if !strings.HasPrefix(h, "070701") {
			t.Fatalf("no header at %d: %q", off-110, h)
		}
		field := func(i int) int {
			v, err := strconv.ParseUint(h[6+8*i:14+8*i], 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(v)
		}
		name := string(take(field(11)))
		align()
		data := string(take(field(6)))
		align()
		if name == "TRAILER!!!\x00" {
			if rest := b[off:]; len(b)%512 != 0 || len(bytes.Trim(rest, "\x00")) != 0 {
				t.Errorf("%d bytes, of which after the end %q", len(b), rest)
			}
			return all
		}
		all = append(all, cpioEntry{strings.TrimSuffix(name, "\x00"), uint64(field(1)), data})
	}
}

func TestCPIO(t *testing.T) {
	var b bytes.Buffer
	c := newCPIO(&b)
	for _, err := range []error{
		c.File("/init", 0o755, 3, strings.NewReader("abc and what is beyond")),
		c.File("a/b/c", 0o600, 0, nil),
		c.Dir("a/b", 0o700), // made before for the sake of c
		c.Symlink("bin", "usr/bin"),
		c.Dir("tmp", 0o1777),
		c.File("odd \xff\nname", 0o644, 4, strings.NewReader("1234")),
		c.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []cpioEntry{
		{"init", 0o100755, "abc"},
		{"a", 0o040755, ""},
		{"a/b", 0o040755, ""},
		{"a/b/c", 0o100600, ""},
		{"bin", 0o120777, "usr/bin"},
		{"tmp", 0o041777, ""},
		{"odd \xff\nname", 0o100644, "1234"},
	}
	if diff := cmp.Diff(want, readCPIO(t, b.Bytes())); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func TestCPIORefuses(t *testing.T) {
	c := newCPIO(io.Discard)
	if err := c.File("twice", 0o644, 0, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "/", ".", "..", "../a", "a/../../b", "a//b", "a/", "TRAILER!!!", "nul\x00", "twice", strings.Repeat("n", 4096)} {
		if err := c.File(name, 0o644, 0, nil); !errors.Is(err, errCPIO) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	for _, size := range []int64{-1, 1 << 32} {
		if err := c.File("size", 0o644, size, nil); !errors.Is(err, errCPIO) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if err := c.File("short", 0o644, 10, strings.NewReader("123")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is shorter than was said: %v", err)
	}
}
