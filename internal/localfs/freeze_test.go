package localfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv/loopfs"
)

// TestFreeze freezes a file with holes and writes to it: what is read is what it was, and the
// directory is as before.
func TestFreeze(t *testing.T) {
	for _, tt := range []struct {
		name  string
		kind  loopfs.Kind
		flags int
	}{{"xfs", loopfs.XFS, 0}, {"btrfs", loopfs.Btrfs, 0}, {"btrfs without sums", loopfs.Btrfs, flagNocow}} {
		t.Run(tt.name, func(t *testing.T) {
			fs := loopfs.New(t, tt.kind, loopfs.Options{})
			name := filepath.Join(fs.Dir, "d", "f")
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(os.Mkdir(filepath.Dir(name), 0o755))
			w, err := os.Create(name)
			must(err)
			defer w.Close()
			if tt.flags != 0 {
				must(unix.IoctlSetPointerInt(int(w.Fd()), unix.FS_IOC_SETFLAGS, tt.flags))
			}
			data := bytes.Repeat([]byte("0123456789abcdef"), 8192) // 128 KiB
			for _, at := range []int64{0, 1 << 20, 3 << 20} {
				_, err := w.WriteAt(data, at)
				must(err)
			}
			must(unix.Fallocate(int(w.Fd()), 0, 2<<20, 1<<16)) // allocated ahead
			must(w.Truncate(4<<20 - 100))
			tree, err := Open(fs.Dir)
			must(err)
			defer tree.Close()
			dir, err := tree.OpenDir("d")
			must(err)
			defer dir.Close()
			before, err := tree.Stat("d")
			must(err)
			f, err := dir.OpenFile("f")
			must(err)
			defer f.Close()
			wantStat, err := f.Stat()
			must(err)
			wantSegments, err := f.Segments(0, f.Size()) // reading makes data of what is allocated ahead
			must(err)
			want := make([]byte, f.Size())
			_, err = f.ReadAt(want, 0)
			must(err)

			still, err := f.Freeze(dir)
			if err != nil || !still {
				t.Fatalf("Freeze: %v, %v", still, err)
			}
			_, err = w.WriteAt([]byte("changed"), 100)
			must(err)
			must(w.Truncate(1 << 20))
			check := func(what string, want []byte, changed bool) {
				t.Helper()
				got := make([]byte, len(want))
				if f.Size() != int64(len(want)) {
					t.Fatalf("%s: it has %d bytes", what, f.Size())
				}
				_, err := f.ReadAt(got, 0)
				must(err)
				if !bytes.Equal(got, want) {
					t.Errorf("%s: other bytes are read", what)
				}
				if c, err := f.Changed(); err != nil || c {
					t.Errorf("%s: changed %v, %v", what, c, err)
				}
				if m, err := f.Moved(); err != nil || m != changed {
					t.Errorf("%s: moved %v, %v", what, m, err)
				}
			}
			check("frozen", want, true)
			segments, err := f.Segments(0, f.Size())
			must(err)
			if diff := cmp.Diff(wantSegments, segments); diff != "" {
				t.Errorf("segments (-file +frozen):\n%s", diff)
			}
			stat, err := f.Stat()
			must(err)
			stat.Blocks, wantStat.Blocks = 0, 0 // those of the file itself
			if diff := cmp.Diff(wantStat, stat); diff != "" {
				t.Errorf("attributes (-before +frozen):\n%s", diff)
			}
			_, err = f.Freeze(dir)
			must(err)
			now, err := os.ReadFile(name)
			must(err)
			check("frozen again", now, false)
			_, err = f.Refresh()
			must(err)
			if f.frozen != nil {
				t.Error("it is still frozen")
			}

			after, err := tree.Stat("d")
			must(err)
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("the directory has changed:\n%s", diff)
			}
			names, err := os.ReadDir(filepath.Dir(name))
			if err != nil || len(names) != 1 {
				t.Errorf("there are %v, %v", names, err)
			}
		})
	}
}

// TestFreezeNot does not freeze where that cannot be.
func TestFreezeNot(t *testing.T) {
	t.Run("ext4", func(t *testing.T) {
		freezeNot(t, loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 64 << 20}).Dir, func() bool { return true })
	})
	t.Run("read-only", func(t *testing.T) {
		dir := loopfs.New(t, loopfs.XFS, loopfs.Options{}).Dir
		freezeNot(t, dir, func() bool {
			return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_BIND, "") == nil
		})
	})
	t.Run("full", func(t *testing.T) {
		// It cannot have more inodes than these.
		dir := loopfs.New(t, loopfs.XFS, loopfs.Options{Mkfs: []string{"-i", "maxpct=1"}}).Dir
		freezeNot(t, dir, func() bool {
			for i := 0; ; i++ {
				if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600); errors.Is(err, unix.ENOSPC) {
					return false
				} else if err != nil {
					t.Fatal(err)
				}
			}
		})
	})
}

// freezeNot fails to freeze a file; prepare makes it so, and says whether no file there can be.
func freezeNot(t *testing.T, at string, prepare func() bool) {
	name := filepath.Join(at, "f")
	if err := os.WriteFile(name, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	never := prepare()
	tree, err := Open(at)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	f, err := tree.OpenFile("f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.Freeze(tree.Root())
	if err == nil || errors.Is(err, errors.ErrUnsupported) != never || !never && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Freeze: %v", err)
	}
	got := make([]byte, 7)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "content" || f.Size() != 7 {
		t.Errorf("%q, %v of %d bytes", got, err, f.Size())
	}
}
