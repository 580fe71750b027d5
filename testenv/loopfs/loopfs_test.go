//go:build linux

package loopfs

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv"
)

func TestKinds(t *testing.T) {
	magic := map[Kind]int64{Btrfs: unix.BTRFS_SUPER_MAGIC, Ext4: unix.EXT4_SUPER_MAGIC, XFS: unix.XFS_SUPER_MAGIC}
	for k, want := range magic {
		t.Run(string(k), func(t *testing.T) {
			f := New(t, k, Options{})
			var st unix.Statfs_t
			if err := unix.Statfs(f.Dir, &st); err != nil {
				t.Fatal(err)
			}
			if int64(st.Type) != want {
				t.Errorf("file system type %#x, want %#x", st.Type, want)
			}
			if err := os.WriteFile(filepath.Join(f.Dir, "a"), []byte("a"), 0o600); err != nil {
				t.Error(err)
			}
		})
	}
}

// More file systems at a time than there are loop devices at boot (often 8), made
// at the same moment.
func TestMany(t *testing.T) {
	testenv.Need(t, Needs(Ext4)...)
	all := make([]*FS, 12)
	base := t.TempDir()
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			f, err := Mount(Ext4, Options{Size: 8 << 20, Base: base})
			if err != nil {
				t.Error(err)
				return
			}
			all[i] = f
		})
	}
	wg.Wait()
	devices := map[string]bool{}
	for _, f := range all {
		if f == nil {
			continue
		}
		if devices[f.Device] {
			t.Errorf("%s was given out twice", f.Device)
		}
		devices[f.Device] = true
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(base); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A file system in use goes out of sight, and a mount that lost its process is
// found by the next one.
func TestBusyAndLost(t *testing.T) {
	f := New(t, Ext4, Options{Size: 8 << 20})
	lost, err := Mount(Ext4, Options{Size: 8 << 20, Base: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	lost.lock.Close() // as the end of its process would
	busy, err := Mount(Ext4, Options{Size: 8 << 20, Base: filepath.Dir(filepath.Dir(f.Dir))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lost.base); err == nil {
		t.Errorf("%s was not swept", lost.base)
	}
	if _, err := os.Stat(filepath.Join(f.Dir, "lost+found")); err != nil {
		t.Errorf("the file system of a living process was swept: %v", err)
	}
	open, err := os.Create(filepath.Join(busy.Dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := busy.Close(); err != nil {
		t.Errorf("close a file system in use: %v", err)
	}
	if _, err := open.WriteString("still there"); err != nil {
		t.Error(err)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a`: "/a", `/a\040b\134`: `/a b\`, `\04`: `\04`, `\999`: `\999`} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}
