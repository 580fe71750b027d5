package backup_test

import (
	"os"
	"os/exec"
	"testing"
	"time"
	"path/filepath"
	"runtime"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/btrfsvolume"
	"github.com/secrate/secrate/testenv/loopfs"
)

func TestPerf(t *testing.T) {
	n := os.Getenv("PERF")
	if n == "" { t.SkipNow() }
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 20 << 30})
	dir := newSubvolume(t, filepath.Join(fs.Dir, "sub"))
	data := "/tmp/benchdata"
	run := func(args ...string) { out, err := exec.Command(data, args...).CombinedOutput(); if err != nil { t.Fatal(err, string(out)) } }
	run("small", dir, n)
	exec.Command("sync").Run()
	f := newFixture(t)
	v, _ := btrfsvolume.Open("s", dir, "")
	j := f.job("s")
	drop := func() { exec.Command("sync").Run(); os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) }
	step := func(name string) {
		drop()
		s := time.Now()
		res := f.snap(j, v)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if res.Unchanged { t.Logf("%s: unchanged %v", name, time.Since(s)); return }
		c := res.Committed[0]
		t.Logf("%s: %v, %d bytes, %d objects, manifest %d; heap sys %d MB", name, time.Since(s), c.Uploaded, c.Objects, c.Manifest, m.Sys>>20)
	}
	if os.Getenv("PERFW") != "" {
		for range 2 {
		for _, w := range []int{2, 4, 8, 16} {
			f := newFixture(t)
			j, _ := backup.New(backup.Options{Writer: f.w, Source: "s", Workers: w})
			drop()
			s := time.Now()
			f.snap(j, v)
			t.Logf("%d workers: %v", w, time.Since(s))
			all, _ := v.List(t.Context())
			for _, s := range all { v.Release(t.Context(), s) }
		}
		}
		return
	}
	step("first")
	if os.Getenv("PERF1") != "" { return }
	run("edit", dir, "10"); step("edit 10")
	step("nothing")
	run("insert", dir, "200"); run("rename", dir, "50"); step("insert 200 rename 50")
	run("save", dir, "200"); step("save 200")
	os.Rename(filepath.Join(dir, "d000"), filepath.Join(dir, "moved")); step("rename dir")
	run("image", filepath.Join(dir, "image"), "1024"); step("image")
	run("byte", filepath.Join(dir, "image")); step("byte")
	run("scatter", filepath.Join(dir, "image"), "100"); step("scatter 100")
}
