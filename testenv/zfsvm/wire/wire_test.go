package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestStream(t *testing.T) {
	var b bytes.Buffer
	long := bytes.Repeat([]byte("0123456789"), MaxFrame/5)
	for _, p := range [][]byte{[]byte("one"), nil, long} {
		if n, err := (Stream{W: &b, Kind: KindStderr}).Write(p); n != len(p) || err != nil {
			t.Fatalf("%d bytes of %d written: %v", n, len(p), err)
		}
	}
	if err := WriteJSON(&b, KindExit, Exit{Status: 3}); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		kind, p, err := Read(&b)
		if err != nil {
			t.Fatal(err)
		}
		if kind == KindExit {
			break
		}
		if kind != KindStderr {
			t.Fatalf("kind %q", kind)
		}
		got = append(got, p...)
	}
	if want := append([]byte("one"), long...); !bytes.Equal(got, want) {
		t.Errorf("%d bytes read, which are not the %d written", len(got), len(want))
	}
	if _, _, err := Read(&b); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if err := Write(io.Discard, KindStdout, make([]byte, MaxFrame+1)); !errors.Is(err, ErrFrame) {
		t.Errorf("a frame that is too long: %v", err)
	}
}

func TestReadBad(t *testing.T) {
	for name, tt := range map[string]struct {
		in  string
		err error
	}{
		"cut in the header":  {"o\x00\x00", io.ErrUnexpectedEOF},
		"cut in the payload": {"o\x00\x00\x00\x05abc", io.ErrUnexpectedEOF},
		"no payload":         {"o\x00\x00\x00\x05", io.ErrUnexpectedEOF},
		"too long":           {"o\x00\x10\x00\x01", ErrFrame},
		"of no kind":         {"?\x00\x00\x00\x00", ErrFrame},
	} {
		if _, _, err := Read(bytes.NewReader([]byte(tt.in))); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x03abcx\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var out bytes.Buffer
		for {
			kind, p, err := Read(r)
			if err != nil {
				break
			}
			if err := Write(&out, kind, p); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(in, out.Bytes()) {
			t.Errorf("read and written again %q becomes %q", in, out.Bytes())
		}
	})
}
