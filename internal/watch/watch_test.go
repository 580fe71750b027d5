package watch

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/treegen"
)

// TestChanges: what is told of single operations.
func TestChanges(t *testing.T) {
	tests := []struct {
		name         string
		before, do   func(b *bench)
		paths, trees []string
		after        func(b *bench) // and then, everything must still be seen
		unknown      bool           // the caller has to know more than he is told
	}{
		{name: "a file is made", do: func(b *bench) { b.write("f", "1") }, paths: []string{"", "f"}},
		{
			name:   "a file is written to",
			before: func(b *bench) { b.mkdir("d"); b.write("d/f", "1") },
			do: func(b *bench) {
				f, err := os.OpenFile(b.at("d/f"), os.O_WRONLY|os.O_APPEND, 0)
				b.must(err)
				f.WriteString("2")
				b.must(f.Close())
			},
			paths: []string{"d/f"},
		},
		{
			name:   "reading is nothing",
			before: func(b *bench) { b.mkdir("d"); b.write("d/f", "1") },
			do: func(b *bench) {
				_, err := os.ReadFile(b.at("d/f"))
				b.must(err)
				_, err = os.ReadDir(b.at("d"))
				b.must(err)
			},
		},
		{
			name:   "attributes",
			before: func(b *bench) { b.mkdir("d"); b.write("d/f", "1"); b.write("d/g", "1"); b.write("d/h", "1") },
			do: func(b *bench) {
				b.must(os.Chmod(b.at("d/f"), 0o600))
				b.must(unix.Setxattr(b.at("d/g"), "user.x", []byte("y"), 0))
				b.must(os.Chtimes(b.at("d/h"), time.Time{}, time.Unix(1, 0)))
				b.must(os.Chmod(b.at("d"), 0o700))
			},
			paths: []string{"d", "d/f", "d/g", "d/h"},
		},
		{
			name:   "by a mapping",
			before: func(b *bench) { b.write("f", strings.Repeat("x", 4096)) },
			do: func(b *bench) {
				fd, err := unix.Open(b.at("f"), unix.O_RDWR, 0)
				b.must(err)
				mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				b.must(err)
				b.must(unix.Close(fd))
				mem[100] = 'y'
				b.must(unix.Munmap(mem))
			},
			paths: []string{"f"},
		},
		{
			name: "mkdir -p with files at once",
			do: func(b *bench) {
				b.mkdir("a/b/c/d")
				b.write("a/b/c/d/f", "1")
				b.write("a/b/g", "1")
			},
			paths: []string{""}, trees: []string{"a"},
			after: func(b *bench) { b.write("a/b/c/d/later", "1") },
		},
		{
			name:   "vim saves: a backup, a new file, a swap file",
			before: func(b *bench) { b.mkdir("d"); b.write("d/f", "old") },
			do: func(b *bench) {
				b.write("d/.f.swp", "")
				b.write("d/4913", "")
				b.must(os.Remove(b.at("d/4913")))
				b.mv("d/f", "d/f~")
				b.write("d/f", "new")
				b.must(os.Remove(b.at("d/f~")))
				b.must(os.Remove(b.at("d/.f.swp")))
			},
			paths: []string{"d", "d/.f.swp", "d/4913", "d/f", "d/f~"},
		},
		{
			name:   "an atomic save",
			before: func(b *bench) { b.write("f", "old") },
			do:     func(b *bench) { b.write("f.tmp", "new"); b.mv("f.tmp", "f") },
			paths:  []string{"", "f", "f.tmp"},
		},
		{
			name:   "a chain of renames",
			before: func(b *bench) { b.mkdir("a/x/y"); b.write("a/x/y/f", "1") },
			do:     func(b *bench) { b.mv("a", "b"); b.mv("b", "c"); b.write("c/x/y/g", "1") },
			paths:  []string{"", "a", "b"}, trees: []string{"c"},
			after: func(b *bench) { b.write("c/x/y/later", "1"); b.mv("c/x", "c/z"); b.write("c/z/y/later2", "1") },
		},
		{
			name:   "into a directory that is new",
			before: func(b *bench) { b.mkdir("a/x") },
			do:     func(b *bench) { b.mkdir("p"); b.mv("a", "p/b") },
			paths:  []string{"", "a"}, trees: []string{"p"},
			after: func(b *bench) { b.write("p/b/x/later", "1") },
		},
		{
			name:   "an exchange of directories",
			before: func(b *bench) { b.mkdir("a/x"); b.mkdir("b/y"); b.write("a/x/f", "1"); b.write("b/y/f", "1") },
			do: func(b *bench) {
				b.must(unix.Renameat2(unix.AT_FDCWD, b.at("a"), unix.AT_FDCWD, b.at("b"), unix.RENAME_EXCHANGE))
			},
			paths: []string{""}, trees: []string{"a", "b"},
			after: func(b *bench) { b.write("a/y/later", "1"); b.write("b/x/later", "1") },
		},
		{
			name:   "parent and child change places",
			before: func(b *bench) { b.mkdir("a/b/c") },
			do:     func(b *bench) { b.mv("a/b", "b"); b.mv("a", "b/a") },
			paths:  []string{"", "a", "a/b"}, trees: []string{"b"},
			after: func(b *bench) { b.write("b/later", "1"); b.write("b/a/later", "1"); b.write("b/c/later", "1") },
		},
		{
			name:   "a directory is replaced while somebody sits in it",
			before: func(b *bench) { b.mkdir("d"); b.write("d/f", "1") },
			do: func(b *bench) {
				f, err := os.Open(b.at("d"))
				b.must(err)
				b.t.Cleanup(func() { f.Close() })
				b.must(os.RemoveAll(b.at("d")))
				b.mkdir("d")
				b.write("d/g", "1")
			},
			paths: []string{""}, trees: []string{"d"},
			after: func(b *bench) { b.write("d/later", "1") },
		},
		{
			name:   "out, changed there, and in again",
			before: func(b *bench) { b.mkdir("d/e"); b.write("d/e/f", "1") },
			do: func(b *bench) {
				out := b.dir + ".out"
				b.must(os.Rename(b.at("d"), out))
				b.settle()
				b.must(os.WriteFile(out+"/e/g", nil, 0o644))
				b.must(os.Rename(out, b.at("n")))
			},
			paths: []string{"", "d"}, trees: []string{"n"},
			after: func(b *bench) { b.write("n/e/later", "1") },
		},
		{
			name:   "a directory becomes a link to elsewhere",
			before: func(b *bench) { b.mkdir("d/e") },
			do: func(b *bench) {
				out := b.dir + ".out"
				b.must(os.MkdirAll(out+"/e", 0o755))
				b.must(os.RemoveAll(b.at("d")))
				b.must(os.Symlink(out, b.at("d")))
				b.settle()
				b.must(os.WriteFile(out+"/e/secret", nil, 0o644))
			},
			paths: []string{"", "d", "d/e"},
		},
		{
			name:   "a directory takes the place of an empty one",
			before: func(b *bench) { b.mkdir("a/x"); b.mkdir("b") },
			do:     func(b *bench) { b.must(unix.Rename(b.at("a"), b.at("b"))) },
			paths:  []string{"", "a"}, trees: []string{"b"},
			after: func(b *bench) { b.write("b/x/later", "1") },
		},
		{
			name:   "a file written to after its name was removed",
			before: func(b *bench) { b.write("f", "1"); b.must(os.Link(b.at("f"), b.at("g"))) },
			do: func(b *bench) {
				f, err := os.OpenFile(b.at("f"), os.O_WRONLY, 0)
				b.must(err)
				b.must(os.Remove(b.at("f")))
				b.settle()
				b.got = nil
				f.WriteString("2")
				b.must(f.Close())
			},
			paths: []string{"f"}, unknown: true, // that it was g, too
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "root")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.before != nil {
				tt.before(&bench{t: t, dir: dir})
			}
			b := start(t, dir, quick)
			tt.do(b)
			b.settle()
			paths, trees := b.paths()
			got := map[string]bool{}
			for _, p := range slices.Concat(paths, trees) {
				// Of what was moved again the place between may be told, or not.
				if !slices.ContainsFunc(tt.trees, func(tr string) bool { return p == tr || below(p, tr) }) {
					got[p] = true
				}
			}
			got[""] = true // the files that settle makes are in the root
			want := map[string]bool{"": true}
			for _, p := range tt.paths {
				want[p] = true
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("paths (-want +got):\n%s", diff)
			}
			for _, tr := range tt.trees {
				if !slices.Contains(trees, tr) {
					t.Errorf("the tree %q is not among %q", tr, trees)
				}
			}
			if tt.unknown {
				return
			}
			b.mirror.check(t)
			if tt.after != nil {
				tt.after(b)
				b.settle()
				b.mirror.check(t)
			}
		})
	}
}

func TestExcluded(t *testing.T) {
	o := quick
	o.Excluded = func(path string, dir bool) bool {
		for name := range strings.SplitSeq(path, "/") {
			if name == "cache" {
				return true
			}
		}
		return strings.HasSuffix(path, ".o") && !dir
	}
	dir := t.TempDir()
	b := &bench{t: t, dir: dir}
	b.mkdir("a/cache/deep/deeper")
	b.mkdir("a/src")
	b = start(t, dir, o)
	if got := b.w.State().Dirs; got != 3 {
		t.Errorf("%d directories are watched", got)
	}
	b.write("a/cache/x", "1")
	b.write("a/src/x.o", "1")
	b.mkdir("a/src/cache")
	b.write("a/src/cache/y", "1")
	b.settle()
	paths, trees := b.paths()
	if diff := cmp.Diff([]string{""}, paths); diff != "" || trees != nil {
		t.Errorf("trees %q, paths (-want +got):\n%s", trees, diff)
	}
	// What is taken out of the cache is new, what is put into it is gone.
	b.mv("a/cache/deep", "a/deep")
	b.settle()
	b.write("a/deep/deeper/f", "1")
	b.settle()
	paths, trees = b.paths()
	if diff := cmp.Diff([]string{"", "a", "a/deep/deeper", "a/deep/deeper/f"}, paths); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a/deep"}, trees); diff != "" {
		t.Errorf("trees (-want +got):\n%s", diff)
	}
	b.got = nil
	b.mv("a/deep", "a/src/cache/deep")
	b.settle()
	b.eventually("watches in the cache end", func(s State) bool { return s.Dirs == 3 })
	b.got = nil
	b.write("a/src/cache/deep/deeper/f", "2")
	b.settle()
	if paths, trees = b.paths(); !slices.Equal(paths, []string{""}) || trees != nil {
		t.Errorf("told of what is excluded: %q %q", paths, trees)
	}
}

// TestRandom: random operations while the watcher runs and batches are dealt with. At the
// end he who looked at nothing else knows the tree. Where files have several names, one
// that was made, written to and removed before a batch tells nothing of the others: then
// the content of files is not compared, but what there is.
func TestRandom(t *testing.T) {
	seeds := 3
	if testing.Short() {
		seeds = 1
	}
	for _, kind := range []loopfs.Kind{loopfs.Ext4, loopfs.XFS, loopfs.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			fs := loopfs.New(t, kind, loopfs.Options{})
			for range seeds {
				seed := rand.Uint64()
				t.Run(fmt.Sprint(seed), func(t *testing.T) { random(t, fs.Dir, seed, false) })
				t.Run(fmt.Sprint("links/", seed), func(t *testing.T) { random(t, fs.Dir, seed, true) })
			}
		})
	}
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint("always/", seed), func(t *testing.T) { random(t, t.TempDir(), seed, false) })
	}
}

func random(t *testing.T, base string, seed uint64, links bool) {
	dir, err := os.MkdirTemp(base, "tree")
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.MkdirTemp(base, "outside")
	if err != nil {
		t.Fatal(err)
	}
	g, err := treegen.New(dir, treegen.Options{Seed: seed, Outside: out, Entries: 300, NoLinks: !links})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Step(150); err != nil {
		t.Fatal(err)
	}
	b := start(t, dir, Options{Settle: 2 * time.Millisecond, MaxDelay: 10 * time.Millisecond})
	b.mirror.namesOnly = links
	for range 3 {
		stepped := make(chan error, 1)
		go func() { stepped <- g.Step(400) }()
		for busy := true; busy; {
			select {
			case err := <-stepped:
				if err != nil {
					t.Fatal(err)
				}
				busy = false
			case <-b.w.Due():
				if batch, ok := b.w.Take(); ok {
					b.mirror.apply(batch.Changes)
					batch.Done(true)
				}
			}
		}
		b.settle()
		b.mirror.check(t)
		if err := os.Remove(b.at(fmt.Sprintf(".settle%d", b.n-1))); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("seed %d, after %d operations; state %+v", seed, strings.Count(g.Log(), "\n"), b.w.State())
		}
	}
	if st := b.w.State(); st.Unwatched != 0 || st.Reconcile != "watching has begun" {
		t.Logf("state %+v", st)
	}
}
