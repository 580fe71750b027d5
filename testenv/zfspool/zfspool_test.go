//go:build linux && zfs

package zfspool

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestPools(t *testing.T) {
	var names []string
	t.Run("made", func(t *testing.T) {
		plain := New(t, Options{})
		other := New(t, Options{
			Disk: true, Pool: []string{"ashift=12", "comment=ours"}, FS: []string{"compression=off", "atime=on"},
		})
		names = append(names, plain.Name, other.Name)
		if got := Run(t, "zpool", "get", "-H", "-o", "value", "ashift,comment", other.Name); got != "12\nours" {
			t.Errorf("properties of the pool: %q", got)
		}
		d := other.Create(t, "d", "recordsize=16K")
		if got := Run(t, "zfs", "get", "-H", "-o", "value", "recordsize,compression,atime,mounted", d.Name); got != "16K\noff\non\nyes" {
			t.Errorf("properties of the dataset: %q", got)
		}
		if got := Run(t, "zfs", "get", "-H", "-o", "value", "mountpoint", d.Name); got != d.Dir {
			t.Errorf("mounted on %s, not on %s", got, d.Dir)
		}
		if err := os.WriteFile(filepath.Join(d.Dir, "f"), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if full := d.Snapshot(t, "s"); full != d.Name+"@s" {
			t.Errorf("snapshot %s", full)
		}
		if err := os.WriteFile(filepath.Join(d.Dir, "f"), []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		// Mounted, it does not keep the pool from going at the end.
		if b, err := os.ReadFile(filepath.Join(d.Mount(t, "s"), "f")); err != nil || string(b) != "old" {
			t.Errorf("in the snapshot: %q, %v", b, err)
		}
		plain.Reimport(t)
		if got := Run(t, "zpool", "get", "-H", "-o", "value", "cachefile,health", plain.Name); got != "none\nONLINE" {
			t.Errorf("after an import: %q", got)
		}
		err := Send(&bytes.Buffer{}, d.Name+"@none")
		if err == nil || !strings.Contains(err.Error(), "none") {
			t.Errorf("send of what is not there: %v", err)
		}
		if err := Receive(strings.NewReader("no stream"), plain.Name+"/x"); err == nil {
			t.Error("received what is no stream")
		}
	})
	for _, name := range names {
		if out, err := exec.Command("zpool", "list", name).CombinedOutput(); err == nil {
			t.Errorf("%s is left: %s", name, out)
		}
	}
	again := New(t, Options{Disk: true})
	Run(t, "zpool", "status", again.Name)
}
