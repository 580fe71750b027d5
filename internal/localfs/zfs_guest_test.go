//go:build linux && zfs

package localfs

import (
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/secrate/secrate/testenv/zfspool"
)

// TestProjectZFS is TestProject, and the one after it, on ZFS.
func TestProjectZFS(t *testing.T) {
	pool := zfspool.New(t, zfspool.Options{})
	for name, test := range map[string]func(*testing.T, string){"project": testProject, "handed-down": testProjectHandedDown} {
		t.Run(name, func(t *testing.T) {
			dir := pool.Create(t, name).Dir
			t.Cleanup(func() { clearFlags(t, dir) })
			test(t, dir)
		})
	}
}

// TestProjectExt4 is the same on ext4, which not every kernel has with projects.
func TestProjectExt4(t *testing.T) {
	for name, test := range map[string]func(*testing.T, string){"project": testProject, "handed-down": testProjectHandedDown} {
		t.Run(name, func(t *testing.T) {
			base := mountLoop(t, "mkfs.ext4", "-q", "-O", "project", "-I", "256")
			t.Cleanup(func() { clearFlags(t, base) })
			test(t, base)
		})
	}
}

// TestDeviceZFS is TestDevice on volumes, which give the space of holes back.
func TestDeviceZFS(t *testing.T) {
	pool := zfspool.New(t, zfspool.Options{})
	for _, block := range []string{"4K", "16K", "128K"} {
		t.Run(block, func(t *testing.T) {
			name := pool.Name + "/" + block
			dev := newVolume(t, name, "8M", block)
			testDevice(t, dev, 8<<20, zeroDiscard)

			fill(t, dev, 8<<20)
			d, err := OpenDevice(dev, 8<<20, true)
			must(t, err)
			must(t, d.Zero(1<<20, 7<<20))
			must(t, d.Sync())
			must(t, d.Close())
			zfspool.Run(t, "zpool", "sync", pool.Name)
			used := zfspool.Run(t, "zfs", "get", "-Hpo", "value", "referenced", name)
			if n, err := strconv.Atoi(used); err != nil || n > 2<<20 {
				t.Errorf("%s bytes are used, %v", used, err)
			}
		})
	}
}

// newVolume makes a volume and returns its device, which comes some time after it.
func newVolume(t *testing.T, name, size, block string) string {
	t.Helper()
	known, err := filepath.Glob("/dev/zd*")
	must(t, err)
	zfspool.Run(t, "zfs", "create", "-V", size, "-b", block, "-o", "compression=off", name)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		all, err := filepath.Glob("/dev/zd*")
		must(t, err)
		for _, dev := range all {
			if !slices.Contains(known, dev) {
				return dev
			}
		}
	}
	t.Fatal("there is no device for the volume")
	return ""
}
