//go:build linux && zfs

package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/secrate/secrate/testenv/zfspool"
)

// TestZFSVolumeScripts runs those with volumes of a real ZFS. $FROM is the device of the
// volume $POOL/from of 16 MiB, $TO that of $POOL/to, of 24.
func TestZFSVolumeScripts(t *testing.T) {
	pool := zfspool.New(t, zfspool.Options{Size: 512 << 20})
	from := newVolume(t, pool.Name+"/from", "16M")
	to := newVolume(t, pool.Name+"/to", "24M")
	runScripts(t, "zvol", func(env *testscript.Env) error {
		env.Setenv("POOL", pool.Name)
		env.Setenv("FROM", from)
		env.Setenv("TO", to)
		return nil
	})
}

// newVolume makes a volume and returns its device, which comes some time after it.
func newVolume(t *testing.T, name, size string) string {
	t.Helper()
	devices := func() []string {
		all, err := filepath.Glob("/dev/zd*")
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	known := devices()
	zfspool.Run(t, "zfs", "create", "-V", size, name)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, dev := range devices() {
			if _, err := os.Stat(dev); err == nil && !slices.Contains(known, dev) {
				return dev
			}
		}
	}
	t.Fatal("there is no device for the volume")
	return ""
}
