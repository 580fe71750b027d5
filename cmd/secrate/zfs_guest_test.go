//go:build linux && zfs

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/secrate/secrate/testenv/zfspool"
)

// TestZFSScripts runs those on a real ZFS: each has a pool $POOL, mounted on $DIR.
func TestZFSScripts(t *testing.T) {
	if err := os.Chmod("/dev/zfs", 0o666); err != nil { // as udev does it elsewhere
		t.Fatal(err)
	}
	// Others have to get at it, too.
	bin, err := exec.LookPath("secrate")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(filepath.Dir(bin)), filepath.Dir(bin), bin} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	runScripts(t, "zfs", func(env *testscript.Env) error {
		pool := zfspool.New(env.T().(testing.TB), zfspool.Options{})
		env.Setenv("POOL", pool.Name)
		env.Setenv("DIR", pool.Dir)
		env.Setenv("VDEV", pool.File())
		for _, dir := range []string{env.WorkDir, pool.Dir} {
			for ; dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
				if err := os.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
