//go:build linux

package zfsvm

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKey(t *testing.T) {
	keys := map[string]string{}
	add := func(what, k string) {
		if other, ok := keys[k]; ok {
			t.Errorf("%s has the key of %s", what, other)
		}
		keys[k] = what
	}
	add("2.3", key(V23, recipe))
	add("2.1", key(V21, recipe))
	add("another recipe", key(V23, append(recipe[:len(recipe):len(recipe)], '\n')))
	for what, list := range map[string]*[]string{"packages": &packages, "programs": &programs, "modules": &modules, "files": &files} {
		saved := *list
		*list = append(saved[:len(saved):len(saved)], "more")
		add("more "+what, key(V23, recipe))
		*list = saved[:len(saved)-1]
		add("fewer "+what, key(V23, recipe))
		*list = saved
	}
	if k := key(V23, recipe); keys[k] != "2.3" {
		t.Errorf("the same image has the key %s, then another", k)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Setenv("SECRATE_CACHE", t.TempDir())
	if _, err := Build(t.Context(), "0.6", io.Discard); err == nil || !strings.Contains(err.Error(), `"0.6"`) {
		t.Errorf("a version that there is no recipe for: %v", err)
	}
}

// An image in the cache is taken, one whose description is damaged is not made anew
// behind the person's back.
func TestCached(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("SECRATE_CACHE", cache)
	dir := filepath.Join(cache, "zfsvm", key(V21, recipe))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	description := filepath.Join(dir, "image.json")
	if err := os.WriteFile(description, []byte(`{"Version": "2.1", "KernelRelease": "6.1"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Build(t.Context(), V21, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := &Image{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd"), Version: V21, KernelRelease: "6.1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	if err := os.WriteFile(description, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), V21, io.Discard); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a damaged description: %v", err)
	}
}

// What a killed build left goes; what another process is making stays.
func TestSweep(t *testing.T) {
	cache := t.TempDir()
	ours, busy := filepath.Join(cache, "zfs-2.3-a"), filepath.Join(cache, "zfs-2.1-b")
	for _, dir := range []string{ours + building + "1/root/etc", busy + building + "2", filepath.Join(cache, "zfs-2.3-c") + building + "3", ours} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	held, err := lock(t.Context(), busy+".lock", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	mine, err := lock(t.Context(), ours+".lock", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	if err := sweep(ours); err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob(filepath.Join(cache, "zfs-?.?-?*"))
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, d := range dirs {
		if !strings.HasSuffix(d, ".lock") {
			left = append(left, filepath.Base(d))
		}
	}
	if diff := cmp.Diff([]string{"zfs-2.1-b.building-2", "zfs-2.3-a"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestLockWaits(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	first, err := lock(t.Context(), name, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	said := said{make(chan struct{})}
	got := make(chan error)
	go func() {
		f, err := lock(t.Context(), name, said)
		if err == nil {
			err = f.Close()
		}
		got <- err
	}()
	<-said.c
	select {
	case err := <-got:
		t.Fatalf("two have the lock: %v", err)
	default:
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestLoadOrder(t *testing.T) {
	const dep = "kernel/a.ko: kernel/b.ko kernel/c-d.ko\nkernel/b.ko: kernel/c-d.ko\nkernel/c-d.ko:\nkernel/x.ko.xz: kernel/y.ko.xz\nnonsense\n"
	for _, tt := range []struct {
		name string
		want []string
		out  string // "" for an error
	}{
		{"needs first", []string{"a"}, "kernel/c-d.ko kernel/b.ko kernel/a.ko"},
		{"each once", []string{"b", "a", "b"}, "kernel/c-d.ko kernel/b.ko kernel/a.ko"},
		{"parameters", []string{"c_d p=1 q=2"}, "kernel/c-d.ko p=1 q=2"},
		{"compressed", []string{"x"}, ""},
		{"missing", []string{"a", "z"}, ""},
	} {
		got, err := loadOrder(strings.NewReader(dep), tt.want)
		if strings.Join(got, " ") != tt.out || (err != nil) != (tt.out == "") {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
}

func TestPartitionTable(t *testing.T) {
	b, err := partitionTable(4 << 30)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte{0, 0xfe, 0xff, 0xff, 0xbf, 0xfe, 0xff, 0xff, 0, 8, 0, 0}, 0, 0xf8, 0x7f, 0) // 2048; 2^23 - 2048
	if len(b) != 512 || b[510] != 0x55 || b[511] != 0xaa || cmp.Diff(want, b[446:462]) != "" {
		t.Errorf("%d bytes, partition % x, end % x", len(b), b[446:462], b[510:])
	}
	for _, size := range []int64{-1, 0, 1 << 20, 1<<41 + 1<<20 + 512} {
		if _, err := partitionTable(size); err == nil {
			t.Errorf("no error for a disk of %d bytes", size)
		}
	}
}

func TestTail(t *testing.T) {
	var w strings.Builder
	c := tail{w: &w}
	for range 3000 {
		c.Write([]byte("line\n"))
	}
	if got := c.String(); len(got) > tailSize || !strings.HasSuffix(got, "line\nline") || w.Len() != 15000 {
		t.Errorf("%d bytes kept, %d handed on", len(got), w.Len())
	}
}

// A said is a log that tells of its first line.
type said struct{ c chan struct{} }

func (s said) Write(p []byte) (int, error) {
	close(s.c)
	return len(p), nil
}
