//go:build linux

package btrfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/treegen"
)

// What is sent of a tree under random change is taken by btrfs(8) and gives the same
// tree.
func TestSendReceive(t *testing.T) {
	testenv.Need(t, testenv.Tool("btrfs"))
	_, src := newSource(t)
	to := loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir
	g, err := treegen.New(src.Path, treegen.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	var parent *Subvolume
	for i := range 4 {
		if err := g.Step(200); err != nil {
			t.Fatal(err)
		}
		s := snap(t, src)
		g.Note("snapshot %d", i)
		// With clones from the parent and without, in turns.
		o := SendOptions{Parent: parent, CloneFromParent: parent != nil && i%2 == 0}
		cmd := exec.Command("btrfs", "-q", "receive", to)
		cmd.Stdin = bytes.NewReader(sendAll(t, s, o))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("receive: %v: %s", err, out)
		}
		want, err := manifest.Scan(s.Path)
		if err != nil {
			t.Fatal(err)
		}
		received, err := Open(filepath.Join(to, s.Name))
		if err != nil {
			t.Fatal(err)
		}
		if received.ReceivedUUID != s.UUID || received.StreamUUID() != s.StreamUUID() {
			t.Errorf("received as %v, sent was %v", received.ReceivedUUID, s.UUID)
		}
		got, err := manifest.Scan(received.Path)
		if err != nil {
			t.Fatal(err)
		}
		ignore := manifest.Ignore{Ino: true, Ctime: true, Otime: true, DirSize: true, FSFlags: true, Extents: true, Nested: true}
		all := slices.DeleteFunc(manifest.Diff(want, got, ignore), func(d manifest.Difference) bool {
			// What btrfs receive makes in a directory with a default ACL inherits from
			// it, and a stream has no word to take that back.
			return strings.HasPrefix(d.Field, "xattr system.posix_acl_") && d.Want == "none"
		})
		if len(all) > 0 {
			log := filepath.Join(t.ArtifactDir(), "log")
			os.WriteFile(log, []byte(g.Log()), 0o644)
			t.Fatalf("snapshot %d, operations in %s:\n%s", i, log, manifest.Report(all, 20))
		}
		parent = s
	}
}
