//go:build linux

package treegen

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
)

// ignore leaves out what depends on the clock and the file system.
var ignore = manifest.Ignore{Ino: true, Mtime: true, Ctime: true, Otime: true, DirSize: true, DirNlink: true, Extents: true, FSFlags: true}

// run does steps in a new directory below base and returns what it looks like then.
// On the way it compares the tree with the model.
func run(t *testing.T, base string, steps int, o Options) ([]manifest.Entry, *Gen) {
	t.Helper()
	dir, err := os.MkdirTemp(base, "tree")
	if err != nil {
		t.Fatal(err)
	}
	if o.Outside, err = os.MkdirTemp(base, "outside"); err != nil {
		t.Fatal(err)
	}
	g, err := New(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 4
	for i := range rounds {
		if err := g.Step(steps / rounds); err != nil {
			t.Fatal(err)
		}
		all, err := manifest.Scan(dir)
		if err != nil {
			t.Fatal(err)
		}
		if all := manifest.Diff(g.model(), stripped(all), ignore); all != nil {
			t.Fatalf("seed %d: the tree is not the model:\n%s\nafter\n%s", o.Seed, manifest.Report(all, 10), tail(g.Log()))
		}
		if i == rounds-1 {
			return all, g
		}
	}
	panic("unreachable")
}

func tail(log string) string { return log[max(0, len(log)-1500):] }

// model returns what the Gen knows of the tree.
func (g *Gen) model() []manifest.Entry {
	all := []manifest.Entry{{Kind: filetree.Dir}}
	number := map[*node]uint64{}
	for _, e := range g.all {
		if number[e.n] == 0 {
			number[e.n] = uint64(len(number) + 1)
		}
		x := manifest.Entry{Path: e.rel(), Kind: e.n.kind, Ino: number[e.n], Size: e.n.size}
		if e.n.kind != filetree.Dir {
			x.Nlink = uint64(len(e.n.names))
		}
		all = append(all, x)
	}
	return all
}

// stripped leaves of a manifest what the model knows.
func stripped(entries []manifest.Entry) []manifest.Entry {
	var all []manifest.Entry
	for _, e := range entries {
		x := manifest.Entry{Path: e.Path, Kind: e.Kind, Ino: e.Ino, Nlink: e.Nlink}
		if e.Kind == filetree.File {
			x.Size = e.Size
		}
		all = append(all, x)
	}
	return all
}

func TestSameSeedSameTree(t *testing.T) {
	for seed := range uint64(2) {
		o := Options{Seed: seed, Large: 200_000, Bytes: 3 << 20}
		a, ga := run(t, t.TempDir(), 600, o)
		b, gb := run(t, t.TempDir(), 600, o)
		if diff := manifest.Diff(a, b, ignore); diff != nil {
			t.Errorf("seed %d:\n%s", seed, manifest.Report(diff, 10))
		}
		if ga.Log() != gb.Log() {
			t.Errorf("seed %d: another log", seed)
		}
	}
}

// The same on every file system, but for attributes that not all can hold.
func TestFileSystems(t *testing.T) {
	testenv.Need(t, testenv.Root)
	ignore := ignore
	ignore.Xattrs = true
	o := Options{Seed: 11, Large: 500_000}
	var want []manifest.Entry
	for _, k := range []loopfs.Kind{loopfs.Btrfs, loopfs.Ext4, loopfs.XFS} {
		t.Run(string(k), func(t *testing.T) {
			got, _ := run(t, loopfs.New(t, k, loopfs.Options{}).Dir, 1500, o)
			if want == nil {
				want = got
			}
			if diff := manifest.Diff(want, got, ignore); diff != nil {
				t.Errorf("unlike the first:\n%s", manifest.Report(diff, 10))
			}
		})
	}
}

// Every operation has its turn, and the tree stays within its bounds.
func TestOperations(t *testing.T) {
	testenv.Need(t, loopfs.Needs(loopfs.Btrfs)...)
	seen := map[string]bool{}
	saved := operations
	defer func() { operations = saved }()
	operations = nil
	for _, op := range saved {
		name := runtime.FuncForPC(reflect.ValueOf(op.do).Pointer()).Name()
		do := op.do
		op.do = func(g *Gen) (bool, error) {
			done, err := do(g)
			if done {
				seen[name] = true
			}
			return done, err
		}
		operations = append(operations, op)
	}
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{})
	all, g := run(t, fs.Dir, 3000, Options{Seed: 5})
	if len(seen) != len(saved) {
		t.Errorf("%d of %d operations were done: %v", len(seen), len(saved), seen)
	}
	if len(g.all) > 300 || g.total > 16<<20 {
		t.Errorf("%d entries, %d bytes", len(g.all), g.total)
	}
	kinds := map[filetree.Kind]int{}
	features := map[string]int{}
	for _, e := range all {
		kinds[e.Kind]++
		for what, yes := range map[string]bool{
			"attributes": len(e.Xattrs) > 0, "flags": e.FSFlags > 0, "links": e.Kind != filetree.Dir && e.Nlink > 1,
			"holes": len(e.Extents) > 1, "before 1970": e.Mtime.Sec < 0, "no text": strings.Contains(manifest.Escape(e.Path), `\x`),
			"long name": len(filepath.Base(e.Path)) == 255, "owner": e.UID != 0, "deep": strings.Count(e.Path, "/") > 4,
			"large": e.Size > 1<<20,
		} {
			if yes {
				features[what]++
			}
		}
	}
	t.Logf("%d entries %v %v", len(all), kinds, features)
	if len(kinds) < 7 || len(features) < 9 {
		t.Errorf("kinds %v, features %v", kinds, features)
	}
}

func TestFill(t *testing.T) {
	dir := t.TempDir()
	g, err := New(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Fill(1000); err != nil {
		t.Fatal(err)
	}
	if err := g.Step(200); err != nil {
		t.Fatal(err)
	}
	all, err := manifest.Scan(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 1000 {
		t.Errorf("%d entries", len(all))
	}
	if diff := manifest.Diff(g.model(), stripped(all), ignore); diff != nil {
		t.Errorf("the tree is not the model:\n%s", manifest.Report(diff, 10))
	}
	if _, err := New(dir, Options{}); err == nil {
		t.Error("started in a directory that is not empty")
	}
}

// BenchmarkScan scans and compares trees of 100,000 files.
func BenchmarkScan(b *testing.B) {
	for _, files := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(files), func(b *testing.B) {
			dir := b.TempDir()
			g, err := New(dir, Options{})
			if err != nil {
				b.Fatal(err)
			}
			if err := g.Fill(files); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				all, err := manifest.Scan(dir)
				if err != nil {
					b.Fatal(err)
				}
				if manifest.Diff(all, all, manifest.Ignore{}) != nil {
					b.Fatal("differs from itself")
				}
			}
		})
	}
}
