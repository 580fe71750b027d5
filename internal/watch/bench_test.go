package watch

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func rss() float64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kib / 1024
		}
	}
	return 0
}

func cpu() time.Duration {
	var ru unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// manyDirs makes 102,051 directories.
func manyDirs(b *testing.B) string {
	b.Helper()
	if l := watchLimit(); l.n < 110_000 {
		b.Skipf("SKIP-MISSING: %d watches are too few: %s", l.n, l.remedy(1<<20))
	}
	dir := b.TempDir()
	for i := range 50 {
		for j := range 40 {
			parent := fmt.Sprintf("%s/project-%03d/module-%03d", dir, i, j)
			if err := os.MkdirAll(parent, 0o755); err != nil {
				b.Fatal(err)
			}
			for k := range 50 {
				if err := os.Mkdir(fmt.Sprintf("%s/component-%03d", parent, k), 0o755); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	return dir
}

// BenchmarkDirs watches 100,000 directories. MiB is what the process has resident then,
// MiB-before without them; idle is the share of a core in 20 s without a change.
func BenchmarkDirs(b *testing.B) {
	dir := manyDirs(b)
	debug.FreeOSMemory()
	before := rss()
	for b.Loop() {
		w, err := Open(dir, Options{Settle: time.Millisecond})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); w.Run(ctx) }()
		<-w.Due()
		b.StopTimer()
		if batch, ok := w.Take(); !ok || !batch.All || w.State().Dirs != 102_051 {
			b.Fatalf("%t %+v", ok, w.State())
		} else {
			batch.Done(true)
		}
		b.ReportMetric(rss(), "MiB")
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")
		began, at := cpu(), time.Now()
		time.Sleep(5 * time.Second) // what is measured is time
		b.ReportMetric(100*float64(cpu()-began)/float64(time.Since(at)), "%idle")
		b.ReportMetric(before, "MiB-before")
		cancel()
		<-ended
		b.StartTimer()
	}
}

// BenchmarkEvents appends to files, of which each append is two events, until they are
// dealt with. The time is that of both, the program that writes and the watcher.
func BenchmarkEvents(b *testing.B) {
	dir := b.TempDir()
	w, err := Open(dir, Options{Settle: 10 * time.Millisecond, MaxDelay: 50 * time.Millisecond})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	<-w.Due()
	if batch, ok := w.Take(); ok {
		batch.Done(true)
	}
	n := 0
	for b.Loop() {
		f, err := os.OpenFile(fmt.Sprintf("%s/f%d", dir, n%1000), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			b.Fatal(err)
		}
		f.WriteString("x")
		f.Close()
		n++
		select {
		case <-w.Due():
			if batch, ok := w.Take(); ok {
				batch.Done(true)
			}
		default:
		}
	}
	if st := w.State(); !strings.HasPrefix(st.Reconcile, "watching") {
		b.Errorf("events were lost: %s", st.Reconcile)
	}
}

// BenchmarkDeal is the watcher alone: events that have been read, for 1,000 names.
func BenchmarkDeal(b *testing.B) {
	w, err := Open(b.TempDir(), Options{Settle: time.Hour, MaxDelay: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer w.m.close()
	s := &session{w: w, dirs: newDirs()}
	s.dirs.add(1)
	for i := range 10 {
		s.dirs.link(s.dirs.add(int32(2+i)), root, fmt.Sprintf("directory-%d", i))
	}
	names := make([][]byte, 100)
	for i := range names {
		names[i] = fmt.Appendf(nil, "file-%d.txt", i)
	}
	b.ReportAllocs()
	i := 0
	now := time.Now()
	for b.Loop() {
		s.event(b.Context(), event{wd: int32(2 + i/100%10), mask: unix.IN_MODIFY, name: names[i%100]}, now)
		i++
	}
}
