package watch

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func rawEvent(wd int32, mask uint32, name string, size int) []byte {
	b := make([]byte, eventHeader+size)
	binary.NativeEndian.PutUint32(b, uint32(wd))
	binary.NativeEndian.PutUint32(b[4:], mask)
	binary.NativeEndian.PutUint32(b[12:], uint32(size))
	copy(b[eventHeader:], name)
	return b
}

func TestEvents(t *testing.T) {
	type plain struct {
		WD   int32
		Mask uint32
		Name string
	}
	create := rawEvent(7, unix.IN_CREATE, "a\xff", 16)
	whole := string(create) + string(rawEvent(-1, unix.IN_Q_OVERFLOW, "", 0))
	long := rawEvent(1, unix.IN_DELETE, strings.Repeat("n", 255), 256)
	tests := []struct {
		name string
		read string
		want []plain
		err  error
	}{
		{name: "nothing"},
		{name: "two", read: whole, want: []plain{{7, unix.IN_CREATE, "a\xff"}, {-1, unix.IN_Q_OVERFLOW, ""}}},
		{name: "a long name", read: string(long), want: []plain{{1, unix.IN_DELETE, strings.Repeat("n", 255)}}},
		{name: "no NUL", read: string(rawEvent(1, 2, "abcd", 4)), want: []plain{{1, 2, "abcd"}}},
		{name: "cut in a head", read: whole[:len(whole)-1], want: []plain{{7, unix.IN_CREATE, "a\xff"}}, err: errEvents},
		{name: "cut in a name", read: whole[:20], err: errEvents},
		{name: "an impossible length", read: string(create[:12]) + "\xff\xff\xff\xff" + string(create[16:]), err: errEvents},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []plain
			var gotErr error
			for e, err := range events([]byte(tt.read)) {
				if gotErr = err; err == nil {
					got = append(got, plain{e.wd, e.mask, string(e.name)})
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if !errors.Is(gotErr, tt.err) {
				t.Errorf("error %v, want %v", gotErr, tt.err)
			}
		})
	}
}

// FuzzEvents: whatever is read, events are inside of it, and those before a cut are told.
func FuzzEvents(f *testing.F) {
	f.Add([]byte{})
	f.Add(rawEvent(7, unix.IN_CREATE, "name", 16))
	f.Add(append(rawEvent(7, unix.IN_CREATE, "name", 16), rawEvent(-1, unix.IN_Q_OVERFLOW, "", 0)...))
	f.Add(rawEvent(7, unix.IN_CREATE, "name", 16)[:19])
	f.Fuzz(func(t *testing.T, b []byte) {
		size, cut := 0, false
		for e, err := range events(b) {
			if cut {
				t.Fatal("an event after the error")
			}
			if err != nil {
				cut = true
				continue
			}
			size += eventHeader + len(e.name)
			if strings.IndexByte(string(e.name), 0) >= 0 {
				t.Fatal("NUL in a name")
			}
		}
		if size > len(b) {
			t.Fatalf("events of %d bytes in %d", size, len(b))
		}
		if !cut && len(b) > 0 && size == 0 {
			t.Fatal("nothing told, no error")
		}
	})
}
