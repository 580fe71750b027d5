//go:build linux && zfs

package main

import (
	"errors"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/secrate/secrate/testenv/zfspool"
)

// TestZFSScripts runs those on a real ZFS: each has a pool $POOL, mounted on $DIR.
func TestZFSScripts(t *testing.T) {
	if err := os.Chmod("/dev/zfs", 0o666); err != nil { // as udev does it elsewhere
		t.Fatal(err)
	}
	openCommand(t)
	runScripts(t, "zfs", func(env *testscript.Env) error {
		pool := zfspool.New(env.T().(testing.TB), zfspool.Options{})
		env.Setenv("POOL", pool.Name)
		env.Setenv("DIR", pool.Dir)
		env.Setenv("VDEV", pool.File())
		return errors.Join(openPath(env.WorkDir), openPath(pool.Dir))
	})
}
