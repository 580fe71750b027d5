//go:build linux && zfs

package zfs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/secrate/secrate/snapshot/zfs"
	"github.com/secrate/secrate/testenv/zfspool"
)

// snapshots returns those of a dataset, which are to be so many.
func snapshots(t *testing.T, name string, n int) []zfs.Snapshot {
	t.Helper()
	all, err := zfs.Snapshots(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != n {
		t.Fatalf("%d snapshots, want %d: %v", len(all), n, all)
	}
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestZFSSteps takes each step of a snapshot's life twice: the second time it has no effect.
func TestZFSSteps(t *testing.T) {
	pool := zfspool.New(t, zfspool.Options{})
	a, b := pool.Create(t, "a"), pool.Create(t, "a/b c:d")
	ctx := t.Context()
	must(t, zfs.Take(ctx, []string{a.Name, b.Name}, "one"))
	if err := zfs.Take(ctx, []string{b.Name, a.Name}, "one"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: %v", err)
	}
	if err := zfs.Take(ctx, []string{a.Name, pool.Name + "/none"}, "two"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dataset that is not there: %v", err)
	}
	one, other := snapshots(t, a.Name, 1)[0], snapshots(t, b.Name, 1)[0]
	if one.TXG != other.TXG {
		t.Errorf("taken in transactions %d and %d", one.TXG, other.TXG)
	}
	for range 2 {
		must(t, zfs.Hold(ctx, "tag", one))
	}
	if held, err := zfs.Held(ctx, "tag", snapshots(t, a.Name, 1)); err != nil || len(held) != 1 {
		t.Errorf("held are %v, %v", held, err)
	}
	if held, err := zfs.Held(ctx, "other", snapshots(t, a.Name, 1)); err != nil || len(held) != 0 {
		t.Errorf("held by another are %v, %v", held, err)
	}
	if err := zfs.Destroy(ctx, one); err == nil {
		t.Error("destroyed while it is held")
	}
	for range 2 {
		must(t, zfs.Bookmark(ctx, one, "mark"))
	}
	if all := snapshots(t, a.Name, 2); all[0].Bookmark || !all[1].Bookmark || all[0].GUID != all[1].GUID || all[0].TXG != all[1].TXG {
		t.Errorf("%+v", all)
	}
	must(t, zfs.Take(ctx, []string{a.Name}, "two"))
	two := snapshots(t, a.Name, 3)[2]
	if err := zfs.Bookmark(ctx, two, "mark"); err == nil {
		t.Error("a bookmark of another snapshot is taken for its own")
	}
	for range 2 {
		must(t, zfs.Release(ctx, "tag", one))
	}
	for range 2 {
		must(t, zfs.Destroy(ctx, one))
	}
	// What has its name now is not it.
	must(t, zfs.Take(ctx, []string{a.Name}, "one"))
	must(t, zfs.Destroy(ctx, one))
	if err := zfs.Hold(ctx, "tag", one); !errors.Is(err, zfs.ErrReplaced) {
		t.Errorf("hold of one that was replaced: %v", err)
	}
	if _, err := zfs.Send(ctx, one, zfs.SendOptions{}); !errors.Is(err, zfs.ErrReplaced) {
		t.Errorf("send of one that was replaced: %v", err)
	}
	snapshots(t, a.Name, 3)
	mark := snapshots(t, a.Name, 3)[0]
	must(t, zfs.Destroy(ctx, mark))
	snapshots(t, a.Name, 2)

	if d, err := zfs.DatasetAt(ctx, b.Dir); err != nil || d.Name != b.Name || d.Mountpoint != b.Dir {
		t.Errorf("at %s: %+v, %v", b.Dir, d, err)
	}
	if _, err := zfs.DatasetAt(ctx, "/proc"); !errors.Is(err, zfs.ErrNotZFS) {
		t.Errorf("at /proc: %v", err)
	}
}

// TestZFSSend compares streams with those of the command, and ends one in the midst.
func TestZFSSend(t *testing.T) {
	pool := zfspool.New(t, zfspool.Options{})
	d := pool.Create(t, "d")
	ctx := t.Context()
	must(t, os.WriteFile(filepath.Join(d.Dir, "f"), bytes.Repeat([]byte("some text, "), 1<<20), 0o600))
	must(t, zfs.Take(ctx, []string{d.Name}, "one"))
	must(t, os.WriteFile(filepath.Join(d.Dir, "g"), []byte("more"), 0o600))
	must(t, zfs.Take(ctx, []string{d.Name}, "two"))
	all := snapshots(t, d.Name, 2)
	for _, o := range []struct {
		zfs.SendOptions
		args []string
	}{
		{zfs.SendOptions{}, []string{"-L", "-e"}},
		{zfs.SendOptions{Base: &all[0]}, []string{"-L", "-e", "-i", all[0].String()}},
		{zfs.SendOptions{Base: &all[0], Compressed: true}, []string{"-L", "-e", "-c", "-i", all[0].String()}},
	} {
		var want bytes.Buffer
		must(t, zfspool.Send(&want, append(o.args, all[1].String())...))
		r, err := zfs.Send(ctx, all[1], o.SendOptions)
		must(t, err)
		got, err := io.ReadAll(r)
		must(t, err)
		must(t, r.Close())
		if !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%q: %d bytes, want %d", o.args, len(got), want.Len())
		}
	}
	// In the wrong order: the command says so after the stream would have begun.
	r, err := zfs.Send(ctx, all[0], zfs.SendOptions{Base: &all[1]})
	must(t, err)
	if _, err := io.ReadAll(r); !errors.As(err, new(*zfs.CommandError)) {
		t.Errorf("in the wrong order: %v", err)
	}
	must(t, r.Close())

	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(ctx)
	r, err = zfs.Send(ctx, all[1], zfs.SendOptions{})
	must(t, err)
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel(stop)
	if _, err := io.ReadAll(r); !errors.Is(err, stop) {
		t.Errorf("after a cancel: %v", err)
	}
	must(t, r.Close())
	// Given up in the midst it lets go of the snapshot.
	r, err = zfs.Send(t.Context(), all[1], zfs.SendOptions{})
	must(t, err)
	start := time.Now()
	must(t, r.Close())
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("the command ended %v after it was closed", took)
	}
	must(t, zfs.Destroy(t.Context(), all[1]))
}

// TestZFSMount reads a snapshot that nobody else sees.
func TestZFSMount(t *testing.T) {
	pool := zfspool.New(t, zfspool.Options{})
	d := pool.Create(t, "d")
	ctx := t.Context()
	must(t, os.WriteFile(filepath.Join(d.Dir, "f"), []byte("old"), 0o600))
	must(t, zfs.Take(ctx, []string{d.Name}, "one"))
	must(t, os.WriteFile(filepath.Join(d.Dir, "f"), []byte("new"), 0o600))
	s := snapshots(t, d.Name, 1)[0]
	found, err := zfs.Datasets(ctx, d.Name, false)
	must(t, err)
	before, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	f, err := zfs.Mount(found[0], s)
	must(t, err)
	if b, err := os.ReadFile("/proc/self/fd/" + fd(f) + "/f"); err != nil || string(b) != "old" {
		t.Errorf("it has %q, %v", b, err)
	}
	if err := os.WriteFile("/proc/self/fd/"+fd(f)+"/f", nil, 0o600); err == nil {
		t.Error("it can be written to")
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Errorf("mounts were\n%s\nand are\n%s", before, after)
	}
	if err := zfs.Destroy(ctx, s); err == nil {
		t.Error("it can be destroyed while it is mounted")
	}
	must(t, f.Close())
	must(t, zfs.Destroy(ctx, s))
	if _, err := zfs.Mount(found[0], s); err == nil {
		t.Error("one that is gone can be mounted")
	}
}

func fd(f *os.File) string { return strconv.Itoa(int(f.Fd())) }
