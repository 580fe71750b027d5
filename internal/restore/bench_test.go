package restore

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
)

// text returns bytes that compress about as source code does.
func text(seed uint64, n int) []byte {
	var b bytes.Buffer
	for _, x := range noise(seed, n/6+1) {
		fmt.Fprintf(&b, "word%02d ", x%64)
	}
	return b.Bytes()[:n]
}

func benchmark(b *testing.B, f *fixture, size int64, files int) {
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		o := f.options()
		if res := f.run(o); res.Failures > 0 {
			b.Fatal(res.Failed[0])
		}
		b.StopTimer()
		must(b, os.RemoveAll(o.To))
		b.StartTimer()
	}
	b.ReportMetric(float64(files)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

func BenchmarkSmallFiles(b *testing.B) {
	const files, size = 10_000, 4000
	f := newFixture(b, 0)
	f.commit(func(u *s3history.Update) {
		dir := filetree.RootNode
		for i := range files {
			if i%100 == 0 {
				var err error
				dir, err = u.Add(filetree.RootNode, fmt.Sprint("d", i), &filetree.Attr{Kind: filetree.Dir, Mode: 0o755})
				must(b, err)
			}
			f.add(u, dir, fmt.Sprint("f", i), text(uint64(i), size))
		}
	})
	benchmark(b, f, files*size, files)
}

func BenchmarkLargeFile(b *testing.B) {
	for _, kind := range []string{"noise", "text"} {
		b.Run(kind, func(b *testing.B) {
			const size = 256 << 20
			f := newFixture(b, 0)
			f.commit(func(u *s3history.Update) {
				n, err := u.Add(filetree.RootNode, "image", &filetree.Attr{Kind: filetree.File, Mode: 0o600, Size: size})
				must(b, err)
				for off := int64(0); off < size; off += catalog.MaxPart {
					data := noise(uint64(off>>20), catalog.MaxPart)
					if kind == "text" {
						data = text(uint64(off>>20), catalog.MaxPart)
					}
					f.put(u, n, off, data)
				}
			})
			benchmark(b, f, size, 1)
		})
	}
}

// BenchmarkManyFiles says how memory grows with the tree. The peak is the process's, with
// the making of the history: run it alone.
func BenchmarkManyFiles(b *testing.B) {
	for _, shape := range []struct{ files, perDir int }{{100_000, 100}, {100_000, 1}} {
		b.Run(fmt.Sprintf("%d/%d", shape.files, shape.perDir), func(b *testing.B) {
			f := newFixture(b, 0)
			writeRows(b, f, shape.files, shape.perDir)
			benchmark(b, f, int64(shape.files)*100, shape.files)
			b.ReportMetric(float64(peakMemory(b))/(1<<20), "peak-MiB")
		})
	}
}

// writeRows makes a state of many files in the catalog alone: all are slices of one
// blob.
func writeRows(b testing.TB, f *fixture, files, perDir int) {
	var part catalog.Part
	f.commit(func(u *s3history.Update) {
		n := f.add(u, filetree.RootNode, "first", noise(1, 1<<20))
		parts, err := u.View().Parts(n, 0, 1<<20)
		must(b, err)
		part = parts[0]
	})
	must(b, f.cat.Begin())
	v := f.cat.At(f.source.ID, 1)
	next, dir := filetree.NodeID(10), filetree.RootNode
	for i := range files {
		if i%perDir == 0 {
			dir = next
			next++
			must(b, v.AddNode(dir, &filetree.Attr{Kind: filetree.Dir, Mode: 0o755}))
			must(b, v.AddNewEntry(filetree.RootNode, fmt.Sprintf("directory-%07d", i), dir))
		}
		must(b, v.AddNode(next, &filetree.Attr{Kind: filetree.File, Mode: 0o644, Size: 100, Mtime: filetree.Time{Sec: 1e9}}))
		must(b, v.AddNewEntry(dir, fmt.Sprintf("file-%07d.txt", i), next))
		part.Length, part.Offset = 100, uint32(i%10_000)*100
		must(b, v.AddParts(next, 0, []catalog.Part{part}))
		next++
	}
	must(b, f.cat.Commit())
}

// peakMemory is the most that the process had at once, in bytes.
func peakMemory(t testing.TB) int64 {
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.ParseInt(kb, 10, 64)
	must(t, err)
	return n << 10
}
