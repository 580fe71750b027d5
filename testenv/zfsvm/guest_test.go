//go:build linux && zfs

package zfsvm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/treegen"
	"github.com/secrate/secrate/testenv/zfspool"
)

// file makes a file of dir.
func file(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// scan makes the manifest of a tree without the inode number of its root: a snapshot
// that is mounted has one there that nothing else has.
func scan(t *testing.T, dir string) []manifest.Entry {
	t.Helper()
	all, err := manifest.Scan(dir)
	if err != nil {
		t.Fatal(err)
	}
	all[0].Ino = 0
	return all
}

// sendReceive sends a snapshot, from the one before unless that is "", by way of a
// file, and receives it as to. It returns the length of the stream.
func sendReceive(t *testing.T, to *zfspool.Dataset, from, snapshot string, flags ...string) int64 {
	t.Helper()
	stream, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	args := flags
	if from != "" {
		args = append(args, "-i", from)
	}
	if err := zfspool.Send(stream, append(args, snapshot)...); err != nil {
		t.Fatal(err)
	}
	size, err := stream.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	if err := zfspool.Receive(stream, "-o", "readonly=on", to.Name); err != nil {
		t.Fatal(err)
	}
	return size
}

// The environment works: what is written, sent and received comes out as it was,
// and an incremental stream has what changed and little more.
func TestSendReceive(t *testing.T) {
	for name, o := range map[string]zfspool.Options{"file": {}, "disk": {Disk: true}} {
		t.Run(name, func(t *testing.T) {
			pool := zfspool.New(t, o)
			fs := pool.Create(t, "fs", "compression=off")
			data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
			file(t, fs.Dir, "large", data)
			file(t, fs.Dir, "small", []byte("small\n"))
			first := fs.Snapshot(t, "1")
			before := scan(t, fs.Mount(t, "1"))

			copied := pool.Dataset("copy")
			if size := sendReceive(t, copied, "", first); size < int64(len(data)) {
				t.Errorf("a stream of %d bytes for a file of %d", size, len(data))
			}
			if diff := manifest.Diff(before, scan(t, copied.Dir), manifest.Ignore{}); diff != nil {
				t.Errorf("the full stream:\n%s", manifest.Report(diff, 10))
			}

			file(t, fs.Dir, "small", []byte("changed\n"))
			if err := os.Rename(filepath.Join(fs.Dir, "large"), filepath.Join(fs.Dir, "renamed")); err != nil {
				t.Fatal(err)
			}
			second := fs.Snapshot(t, "2")
			after := scan(t, fs.Mount(t, "2"))
			if size := sendReceive(t, copied, first, second); size > 200_000 {
				t.Errorf("an incremental stream of %d bytes for a small change", size)
			}
			if diff := manifest.Diff(after, scan(t, copied.Dir), manifest.Ignore{}); diff != nil {
				t.Errorf("the incremental stream:\n%s", manifest.Report(diff, 10))
			}
			if manifest.Diff(before, after, manifest.Ignore{}) == nil {
				t.Error("the manifests of both snapshots are equal: the comparison sees nothing")
			}
		})
	}
}

// A tree under random change goes through zfs send and zfs receive with all that
// belongs to it. Numbers of objects, and so of inodes, are the same there; so are
// all times and holes.
func TestRandomTrees(t *testing.T) {
	cloned, clones := int64(0), true // bytes; whether this OpenZFS can do it
	for _, tt := range []struct {
		name       string
		seed       uint64
		properties []string // of both datasets: they are not in the streams
	}{
		{"default", 0, nil},
		{"attributes in the dnode", 1, []string{"xattr=sa", "acltype=posixacl", "dnodesize=auto"}},
		{"attributes in directories", 2, []string{"xattr=on", "acltype=posixacl", "recordsize=4K", "compression=zstd"}},
		{"uncompressed", 3, []string{"compression=off", "recordsize=1M"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pool := zfspool.New(t, zfspool.Options{FS: tt.properties})
			fs, copied := pool.Create(t, "fs"), pool.Dataset("copy")
			outside, tree := filepath.Join(fs.Dir, "outside"), filepath.Join(fs.Dir, "tree")
			for _, dir := range []string{outside, tree} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			g, err := treegen.New(tree, treegen.Options{Seed: tt.seed, Outside: outside})
			if err != nil {
				t.Fatal(err)
			}
			from := ""
			for i := range 3 {
				if err := g.Step(200); err != nil {
					t.Fatal(err)
				}
				live := scan(t, fs.Dir)
				name := fmt.Sprint(i)
				snapshot := fs.Snapshot(t, name)
				want := scan(t, fs.Mount(t, name))
				if diff := manifest.Diff(live, want, manifest.Ignore{}); diff != nil {
					t.Errorf("snapshot %s is not the tree:\n%s", snapshot, manifest.Report(diff, 10))
				}
				sendReceive(t, copied, from, snapshot)
				if diff := manifest.Diff(want, scan(t, copied.Dir), manifest.Ignore{}); diff != nil {
					t.Errorf("what was received of %s:\n%s", snapshot, manifest.Report(diff, 10))
				}
				from = snapshot
			}
			out, err := exec.Command("zpool", "get", "-Hp", "-o", "value", "bcloneused", pool.Name).Output()
			if err != nil { // OpenZFS 2.1
				clones = false
			} else if n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64); err != nil {
				t.Error(err)
			} else {
				cloned += n
			}
			if t.Failed() {
				log := g.Log()
				t.Logf("seed %d:\n…%s", tt.seed, log[max(0, len(log)-4000):])
			}
		})
	}
	if clones && cloned == 0 {
		t.Error("files of no tree share blocks: nothing was cloned")
	}
}

// The guest is what the package's documents say it is.
func TestGuest(t *testing.T) {
	var st unix.Statfs_t
	if err := unix.Statfs("/tmp", &st); err != nil {
		t.Fatal(err)
	}
	if os.Getpid() == 1 || os.Geteuid() != 0 {
		t.Errorf("process %d of user %d", os.Getpid(), os.Geteuid())
	}
	if st.Type != unix.TMPFS_MAGIC {
		t.Errorf("/tmp has type %#x", st.Type)
	}
}
