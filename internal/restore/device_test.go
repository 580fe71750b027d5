package restore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/testenv/loopfs"
)

// dirty writes to all of a device, and returns what is on it then.
func dirty(t *testing.T, dev string, size int) []byte {
	t.Helper()
	b := bytes.Repeat([]byte("what was here before, and is no zero. "), size/38+1)[:size]
	must(t, os.WriteFile(dev, b, 0))
	return b
}

// addSparse adds a file of that size with data at some offsets, and returns its content.
func (f *fixture) addSparse(u *s3history.Update, name string, size int, data map[int64][]byte) []byte {
	f.t.Helper()
	n, err := u.Add(filetree.RootNode, name, &filetree.Attr{Kind: filetree.File, Mode: 0o600, Size: int64(size)})
	must(f.t, err)
	all := make([]byte, size)
	for off, b := range data {
		copy(all[off:], b)
		for i := 0; i < len(b); i += catalog.MaxPart {
			f.put(u, n, off+int64(i), b[i:min(i+catalog.MaxPart, len(b))])
		}
	}
	return all
}

// All kinds of files onto a device that is dirty and larger: the bytes, zeros where they
// have holes, and nothing behind their end.
func TestDevice(t *testing.T) {
	const size = 80 << 20
	dev := loopfs.NewDevice(t, size)
	f := newFixture(t, 1<<20)
	want := map[string][]byte{}
	ids := map[string]filetree.NodeID{}
	var sub filetree.NodeID
	f.commit(func(u *s3history.Update) {
		add := func(name string, data []byte) {
			want[name] = data
			ids[name] = f.add(u, filetree.RootNode, name, data)
		}
		add("slice", noise(1, 5000))
		add("other slice", noise(2, 100))
		add("pieces", noise(3, 3<<20+777))
		add("empty", nil)
		add("changed", noise(4, 2<<20))
		want["holes"] = f.addSparse(u, "holes", 70<<20+123, map[int64][]byte{
			512: noise(5, 4096), 1 << 20: noise(6, 1<<20+1), 3<<20 + 5: noise(7, 10), 66 << 20: noise(8, 2<<20),
		})
		want["all hole"] = f.addSparse(u, "all hole", 3<<20+1, nil)
		want["ends with data"] = f.addSparse(u, "ends with data", 5<<20, map[int64][]byte{5<<20 - 700: noise(9, 700)})
		var err error
		sub, err = u.Add(filetree.RootNode, "sub", &filetree.Attr{Kind: filetree.Dir, Mode: 0o755})
		must(t, err)
		want["sub/deep"] = noise(10, 70_000)
		f.add(u, sub, "deep", want["sub/deep"])
	})
	f.commit(func(u *s3history.Update) {
		f.put(u, ids["changed"], 1000, noise(11, 50_000))
		copy(want["changed"][1000:], noise(11, 50_000))
	})
	for name, data := range want {
		t.Run(name, func(t *testing.T) {
			f.t = t
			after := dirty(t, dev, size)
			copy(after, data)
			o := f.options()
			link := filepath.Join(t.TempDir(), "link")
			must(t, os.Symlink(dev, link))
			o.Path, o.To, o.IntoExisting = strings.Split(name, "/"), link, true
			res := f.run(o)
			got, err := os.ReadFile(dev)
			must(t, err)
			if !bytes.Equal(got, after) {
				t.Errorf("the device differs at %d of %d bytes", differAt(got, after), len(data))
			}
			if res.Files != 1 || res.Bytes+res.Holes != int64(len(data)) || res.Failures != 0 || len(res.Notes) != 0 ||
				*res.Device != (Device{dev, size, len(data) > 0}) {
				t.Errorf("%+v, %+v", res, res.Device)
			}
		})
	}
}

func differAt(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// What is refused leaves the device as it was.
func TestDeviceRefused(t *testing.T) {
	const size = 1 << 20
	dev := loopfs.NewDevice(t, size)
	f := newFixture(t, 0)
	var part catalog.Part
	f.commit(func(u *s3history.Update) {
		n := f.add(u, filetree.RootNode, "fits", noise(1, size))
		f.add(u, filetree.RootNode, "large", noise(2, size+1))
		_, err := u.Add(filetree.RootNode, "dir", &filetree.Attr{Kind: filetree.Dir})
		must(t, err)
		_, err = u.Add(filetree.RootNode, "link", &filetree.Attr{Kind: filetree.Symlink, Target: "fits"})
		must(t, err)
		parts, err := u.View().Parts(n, 0, 5000)
		must(t, err)
		part = parts[0]
	})
	v := f.cat.At(f.source.ID, 1)
	must(t, f.cat.Begin()) // a history that lies
	must(t, v.AddNode(1000, &filetree.Attr{Kind: filetree.File, Size: 8000}))
	must(t, v.AddEntry(filetree.RootNode, "overlap", 1000))
	must(t, v.AddParts(1000, 10, []catalog.Part{part}))
	part.Length = 100
	must(t, v.AddParts(1000, 4999, []catalog.Part{part}))
	must(t, f.cat.Commit())

	before := dirty(t, dev, size)
	for _, tt := range []struct {
		path []string
		keep bool
		want error
		text string
	}{
		{[]string{"fits"}, true, localfs.ErrOverwrites, "of 1048576 bytes"},
		{[]string{"large"}, false, localfs.ErrTooSmall, "of 1048576 bytes, for a file of 1048577 bytes"},
		{[]string{"dir"}, false, nil, "no regular file"},
		{[]string{"link"}, false, nil, "no regular file"},
		{nil, false, nil, "no regular file"},
		{[]string{"none"}, false, filetree.ErrNotExist, ""},
		{[]string{"overlap"}, false, nil, "overlap"},
	} {
		o := f.options()
		o.Path, o.To, o.IntoExisting = tt.path, dev, !tt.keep
		res, err := Run(t.Context(), o)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v: error %v, want %v with %q", tt.path, err, tt.want, tt.text)
		}
		if res.Device != nil && res.Device.Begun {
			t.Errorf("%v: it says that something was written", tt.path)
		}
	}
	got, err := os.ReadFile(dev)
	must(t, err)
	if !bytes.Equal(got, before) {
		t.Errorf("the device has changed at %d", differAt(got, before))
	}
}

// What fails in the midst is an error, whose result says that the device was begun; the
// same again completes it.
func TestDeviceBrokenOff(t *testing.T) {
	const size = 24 << 20
	dev := loopfs.NewDevice(t, size)
	f := newFixture(t, 1<<20)
	var want []byte
	f.commit(func(u *s3history.Update) {
		want = f.addSparse(u, "volume", 20<<20, map[int64][]byte{4 << 20: noise(1, 12<<20)})
	})
	options := func() Options {
		o := f.options()
		o.Path, o.To, o.IntoExisting = []string{"volume"}, dev, true
		return o
	}
	complete := func() {
		t.Helper()
		f.run(options())
		got, err := os.ReadFile(dev)
		must(t, err)
		if !bytes.Equal(got[:len(want)], want) {
			t.Errorf("the device differs at %d", differAt(got, want))
		}
	}
	for _, bytes := range []int64{0, 1 << 20, 3 << 20, 10 << 20} {
		dirty(t, dev, size)
		o := options()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &stopper{Mem: f.mem, cancel: cancel}
		s.left.Store(bytes)
		o.Content = s3history.NewContent(s, f.identity, f.cat, f.identities)
		if res, err := Run(ctx, o); !errors.Is(err, context.Canceled) || res.Device == nil || !res.Device.Begun || res.Files != 0 {
			t.Errorf("%d bytes: error %v, %+v", bytes, err, res)
		}
		complete()
	}
	for _, key := range f.mem.Keys() { // a pack that is damaged, until it is no more
		if !strings.HasPrefix(key, "packs/") {
			continue
		}
		whole := bytes.Clone(f.mem.Bytes(key))
		bad := bytes.Clone(whole)
		bad[len(bad)/2] ^= 1
		f.mem.Set(key, bad)
		dirty(t, dev, size)
		if res, err := Run(t.Context(), options()); err == nil || !res.Device.Begun || res.Files != 0 {
			t.Errorf("damaged: error %v, %+v", err, res)
		}
		f.mem.Set(key, whole)
		complete()
		break
	}
}

// What could not be read when the snapshot was made is zeros, and said.
func TestDeviceIncomplete(t *testing.T) {
	const size = 1 << 20
	dev := loopfs.NewDevice(t, size)
	f := newFixture(t, 0)
	data := noise(1, 8192)
	f.commit(func(u *s3history.Update) {
		n, err := u.Add(filetree.RootNode, "volume", &filetree.Attr{Kind: filetree.File, Size: size, Incomplete: true})
		must(t, err)
		f.put(u, n, 4096, data)
	})
	want := make([]byte, size)
	copy(want[4096:], data)
	dirty(t, dev, size)
	o := f.options()
	o.Path, o.To, o.IntoExisting = []string{"volume"}, dev, true
	res := f.run(o)
	if res.Failures != 1 || !errors.Is(res.Failed[0], ErrIncomplete) || res.Failed[0].Path != "volume" || res.Files != 1 {
		t.Errorf("%+v", res)
	}
	got, err := os.ReadFile(dev)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("the device differs at %d", differAt(got, want))
	}
}
