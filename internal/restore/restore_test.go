package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/delta"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/storetest"
)

// noise returns bytes that do not compress.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	r.Read(b)
	return b
}

// makeTree makes a directory that has everything.
func makeTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("sub/deep"), 0o755))
	must(t, os.Mkdir(at("empty-dir"), 0o700))
	for i := range 300 {
		must(t, os.WriteFile(at(fmt.Sprintf("sub/f%03d", i)), noise(uint64(i), 100+i*7), 0o640))
	}
	must(t, os.WriteFile(at("empty"), nil, 0o600))
	must(t, os.WriteFile(at("one"), []byte("1"), 0o444))
	must(t, os.WriteFile(at("big"), noise(9, 5<<20+12345), 0o755))
	must(t, os.WriteFile(at("n\xffo\ntext"), []byte("name of bytes"), 0o600))
	must(t, os.WriteFile(at("sub/deep/again"), noise(9, 5<<20+12345), 0o600))
	must(t, os.Symlink("../nowhere\xfe", at("sub/link")))
	must(t, os.Link(at("one"), at("sub/deep/one-more")))
	must(t, os.Link(at("one"), at("a-third")))
	must(t, os.Link(at("empty"), at("sub/empty-too")))
	must(t, os.Link(at("sub/link"), at("link-too")))
	must(t, unix.Mkfifo(at("fifo"), 0o620))
	must(t, unix.Mknod(at("sock"), unix.S_IFSOCK|0o600, 0))
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(t, unix.Mknod(at("disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 300))))
		must(t, os.Lchown(at("one"), 1234, 5678))
		must(t, os.Lchown(at("sub/link"), 12, 34))
	}
	sparse, err := os.Create(at("sparse"))
	must(t, err)
	must(t, sparse.Truncate(64<<20))
	_, err = sparse.WriteAt(noise(3, 100_000), 10<<20)
	must(t, err)
	_, err = sparse.WriteAt([]byte("end"), 64<<20-3)
	must(t, err)
	must(t, sparse.Close())
	hole, err := os.Create(at("hole"))
	must(t, err)
	must(t, hole.Truncate(1<<20))
	must(t, hole.Close())
	must(t, unix.Setxattr(at("big"), "user.note", []byte("v\x00w"), 0))
	must(t, unix.Setxattr(at("sub"), "user.dir", []byte("d"), 0))
	stamp := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: -5, Nsec: 123456789}}
	for _, name := range []string{"one", "sub/link", "fifo", "big", "sub/deep", "sub", "empty-dir", "."} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(name), stamp, unix.AT_SYMLINK_NOFOLLOW))
	}
	return dir
}

// setWindow makes a restore finish directories after every few.
func setWindow(t testing.TB, dirs int) {
	old := windowDirs
	windowDirs = dirs
	t.Cleanup(func() { windowDirs = old })
}

func TestRoundTrip(t *testing.T) {
	from := makeTree(t)
	for _, c := range []struct {
		packSize int64
		window   int
	}{{0, 1 << 16}, {64 << 10, 2}, {0, 1}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			setWindow(t, c.window)
			f := newFixture(t, c.packSize)
			f.commit(func(u *s3history.Update) { f.addTree(u, from) })
			o := f.options()
			o.Sync = true
			res := f.run(o)
			if res.Failures != 0 {
				t.Fatal(res.Failed)
			}
			if diff := cmp.Diff(see(t, from), see(t, o.To)); diff != "" {
				t.Errorf("restored (-want +got):\n%s", diff)
			}
			special := int64(2)
			if os.Geteuid() == 0 {
				special = 4
			}
			if res.Files != 307 || res.Dirs != 4 || res.Links != 1 || res.HardLinks != 4 || res.Special != special {
				t.Errorf("counts %+v", res)
			}
			if res.Holes < 60<<20 || res.Bytes < 10<<20 {
				t.Errorf("%d bytes, %d of holes", res.Bytes, res.Holes)
			}
		})
	}
}

func TestPath(t *testing.T) {
	from := makeTree(t)
	f := newFixture(t, 0)
	f.commit(func(u *s3history.Update) { f.addTree(u, from) })
	t.Run("directory", func(t *testing.T) {
		o := f.options()
		o.Path = []string{"sub"}
		res := f.run(o)
		want := see(t, filepath.Join(from, "sub"))
		got := see(t, o.To)
		// Their other names are not in it.
		for _, name := range []string{"link", "empty-too", "deep/one-more"} {
			want[name], got[name] = "", ""
		}
		if diff := cmp.Diff(want, got); diff != "" || res.Failures != 0 {
			t.Errorf("%v restored (-want +got):\n%s", res.Failed, diff)
		}
	})
	for _, name := range []string{"big", "one", "link-too", "fifo", "empty", "sparse", "hole"} {
		t.Run(name, func(t *testing.T) {
			o := f.options()
			o.Path = []string{name}
			f.run(o)
			want := strings.SplitAfter(see(t, from)[name], "links ")
			got := strings.SplitAfter(see(t, o.To)[name], "links ")
			if want[0] != got[0] {
				t.Errorf("got %s, want %s", got, want)
			}
			if diff := cmp.Diff([]string{name}, names(t, o.To)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		o := f.options()
		o.Path = []string{"sub", "no"}
		if _, err := Run(t.Context(), o); !errors.Is(err, filetree.ErrNotExist) {
			t.Errorf("error %v", err)
		}
		if _, err := os.Lstat(o.To); err == nil {
			t.Error("a target was made for nothing")
		}
	})
}

// Files whose bytes come from patches, on patches, and from pieces of several snapshots.
func TestPatches(t *testing.T) {
	f := newFixture(t, 32<<10)
	const files = 40
	var ids []filetree.NodeID
	var want [][]byte
	f.commit(func(u *s3history.Update) {
		for i := range files {
			want = append(want, noise(uint64(i), 3000+i))
			ids = append(ids, f.add(u, filetree.RootNode, fmt.Sprint("f", i), want[i]))
		}
	})
	for round := range 5 {
		f.commit(func(u *s3history.Update) {
			for i, n := range ids {
				old := bytes.Clone(want[i])
				switch (i + round) % 3 {
				case 0: // a patch on all of it
					base, err := u.Before().Parts(n, 0, int64(len(old)))
					must(t, err)
					want[i][round*100]++
					must(t, u.Put(n, s3history.Piece{Items: []s3history.Item{{Patch: &s3history.NewPatch{
						Patch: delta.Patch(old, want[i]), Base: base, Result: len(old)}}}}))
				case 1: // some bytes in it
					copy(want[i][500:], noise(uint64(round), 700))
					f.put(u, n, 500, want[i][500:1200])
				}
			}
		})
	}
	o := f.options()
	res := f.run(o)
	if res.Failures != 0 || res.Files != files {
		t.Fatalf("%+v", res)
	}
	for i := range want {
		checkFile(t, filepath.Join(o.To, fmt.Sprint("f", i)), want[i])
	}
}

// TestLostPacks takes packs away: exactly the files with bytes in them fail.
func TestLostPacks(t *testing.T) {
	f := newFixture(t, 16<<10)
	want := map[string][]byte{}
	ids := map[string]filetree.NodeID{}
	f.commit(func(u *s3history.Update) {
		for i := range 150 {
			name := fmt.Sprintf("f%03d", i)
			// Blobs of many files, and of one.
			want[name] = noise(uint64(i), 1+i*i*7)
			if i%10 == 0 {
				want[name] = noise(uint64(i), 1<<20+i*5000)
			}
			ids[name] = f.add(u, filetree.RootNode, name, want[name])
		}
	})
	f.commit(func(u *s3history.Update) {
		for i := 0; i < 150; i += 4 {
			name := fmt.Sprintf("f%03d", i)
			old := bytes.Clone(want[name])
			if len(old) < 3000 || len(old) > 1<<20 {
				continue
			}
			base, err := u.Before().Parts(ids[name], 0, int64(len(old)))
			must(t, err)
			want[name][2000] ^= 1
			must(t, u.Put(ids[name], s3history.Piece{Items: []s3history.Item{{Patch: &s3history.NewPatch{
				Patch: delta.Patch(old, want[name]), Base: base, Result: len(old)}}}}))
		}
	})
	whole := f.mem
	var packs []catalog.Pack
	for p, err := range f.cat.Packs() {
		must(t, err)
		packs = append(packs, p)
	}
	if len(packs) < 5 {
		t.Fatalf("only %d packs", len(packs))
	}
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		f.mem = whole.Clone()
		lost := map[string]bool{}
		for range 1 + rnd.IntN(3) {
			p := packs[rnd.IntN(len(packs))]
			f.mem.Lose(fmt.Sprintf("packs/%x/%x", p.SHA[:1], p.SHA))
			uses, err := f.cat.UsesOf(f.source.ID, p.ID, 1000)
			must(t, err)
			for _, use := range uses {
				if use.LastSeq == 2 {
					path, err := f.cat.At(f.source.ID, 2).Path(use.Node)
					must(t, err)
					lost[path[0]] = true
				}
			}
		}
		o := f.options()
		var told []string
		o.Failed = func(f Failure) { told = append(told, f.Path) }
		res := f.run(o)
		var wantFailed, wantNames []string
		for name := range want {
			if lost[name] {
				wantFailed = append(wantFailed, name)
			} else {
				wantNames = append(wantNames, name)
				checkFile(t, filepath.Join(o.To, name), want[name])
			}
		}
		slices.Sort(wantFailed)
		slices.Sort(wantNames)
		slices.Sort(told)
		if diff := cmp.Diff(wantFailed, failed(res)); diff != "" {
			t.Errorf("seed %d: failed (-want +got):\n%s", seed, diff)
		}
		if diff := cmp.Diff(wantFailed, told); diff != "" {
			t.Errorf("seed %d: told (-want +got):\n%s", seed, diff)
		}
		if diff := cmp.Diff(wantNames, names(t, o.To)); diff != "" {
			t.Errorf("seed %d: names (-want +got):\n%s", seed, diff)
		}
		for _, fail := range res.Failed {
			if !errors.Is(fail, store.ErrNotExist) {
				t.Errorf("seed %d: %v", seed, fail)
			}
		}
		if int(res.Failures) != len(wantFailed) || int(res.Files) != len(wantNames) {
			t.Errorf("seed %d: %d failures, %d files", seed, res.Failures, res.Files)
		}
	}
}

// A hostile history says what no file system could: rows are written as they are.
func TestHostile(t *testing.T) {
	for _, window := range []int{1 << 16, 1} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			setWindow(t, window)
			testHostile(t)
		})
	}
}

func testHostile(t *testing.T) {
	f := newFixture(t, 0)
	data := noise(1, 5000)
	var part catalog.Part
	f.commit(func(u *s3history.Update) {
		n := f.add(u, filetree.RootNode, "good", data)
		f.add(u, filetree.RootNode, "linked", data[:50])
		parts, err := u.View().Parts(n, 0, 5000)
		must(t, err)
		part = parts[0]
	})
	v := f.cat.At(f.source.ID, 1)
	dirAttr := &filetree.Attr{Kind: filetree.Dir, Mode: 0o755}
	next := filetree.NodeID(1000)
	node := func(dir filetree.NodeID, name string, a *filetree.Attr) filetree.NodeID {
		next++
		must(t, v.AddNode(next, a))
		must(t, v.AddEntry(dir, name, next))
		return next
	}
	file := func(name string, size int64, ext ...catalog.Extent) {
		n := node(filetree.RootNode, name, &filetree.Attr{Kind: filetree.File, Mode: 0o600, Size: size})
		for _, e := range ext {
			must(t, v.AddParts(n, e.Offset, []catalog.Part{e.Part}))
		}
	}
	slice := func(off, length int64) catalog.Part { p := part; p.Offset += uint32(off); p.Length = length; return p }

	must(t, f.cat.Begin())
	a := node(filetree.RootNode, "a", dirAttr)
	b := node(a, "b", dirAttr)
	must(t, v.AddEntry(b, "a-again", a))
	must(t, v.AddEntry(b, "root", filetree.RootNode))
	must(t, v.AddEntry(b, "b", b))
	must(t, v.AddEntry(filetree.RootNode, "b-too", b))
	must(t, v.AddEntry(b, "nothing", 999_999))
	must(t, v.AddEntry(b, "..", 2))
	must(t, v.AddEntry(b, "x/y", 2))
	must(t, v.AddEntry(2, "below-a-file", 3))
	must(t, v.AddEntry(b, "further", 3)) // a link in order
	far := node(b, "far", dirAttr)
	must(t, v.AddNode(1<<40-1, dirAttr))
	must(t, v.AddEntry(far, "high", 1<<40-1))
	file("beyond", 5000, catalog.Extent{Offset: 4000, Part: slice(0, 1001)})
	file("beyond-whole", 4999, catalog.Extent{Part: part})
	file("overlap", 8000, catalog.Extent{Part: part}, catalog.Extent{Offset: 4999, Part: slice(0, 100)})
	file("no-pack", 100, catalog.Extent{Part: catalog.Part{Length: 100, Pack: 77}})
	file("no-blob", 100, catalog.Extent{Part: catalog.Part{Length: 100, Pack: part.Pack, Blob: 5}})
	file("past-blob", 5000, catalog.Extent{Part: slice(1<<19, 5000)})
	file("past-part", 5000, catalog.Extent{Part: slice(1<<20-1, 5000)})
	file("past-blob-piece", 6000, catalog.Extent{Part: slice(1<<19, 5000)})
	file("huge", 1<<62, catalog.Extent{Offset: 1<<62 - 10, Part: slice(0, 10)})
	file("bad-patch", 5000, catalog.Extent{Part: catalog.Part{Length: 5000, Patch: &catalog.Patch{
		Base: []catalog.Part{part}, Pack: part.Pack, Length: 100, ResultLength: 5000}}})
	file("sparse", 5100, catalog.Extent{Offset: 100, Part: part}) // in order
	must(t, f.cat.Commit())

	o := f.options()
	res := f.run(o)
	// Which of its names a directory gets is not said; it is the last in the deepest place.
	wantFailed := []string{
		"a", "b-too/..", "b-too/a-again/b", "b-too/b", "b-too/nothing", "b-too/root", "b-too/x/y", "bad-patch", "beyond",
		"beyond-whole", "no-blob", "no-pack", "overlap", "past-blob", "past-blob-piece", "past-part",
	}
	got := failed(res)
	// Some file systems can hold a file of that size.
	got = slices.DeleteFunc(got, func(p string) bool { return p == "huge" })
	if diff := cmp.Diff(wantFailed, got); diff != "" {
		t.Errorf("failed (-want +got):\n%s", diff)
	}
	checkFile(t, filepath.Join(o.To, "good"), data)
	checkFile(t, filepath.Join(o.To, "linked"), data[:50])
	checkFile(t, filepath.Join(o.To, "sparse"), append(make([]byte, 100), data...))
	if res.HardLinks != 1 {
		t.Errorf("%d hard links", res.HardLinks)
	}
	entries, err := os.ReadDir(filepath.Dir(o.To))
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("beside the target: %v", entries)
	}
}

// TestWindows restores many directories, wide and deep, in small parts, with hard links
// between them.
func TestWindows(t *testing.T) {
	f := newFixture(t, 0)
	rnd := rand.New(rand.NewPCG(1, 2))
	dirs, linked := []filetree.NodeID{filetree.RootNode}, []filetree.NodeID{}
	want := map[string]int{} // bytes of files
	paths := map[filetree.NodeID]string{filetree.RootNode: ""}
	sizes := map[filetree.NodeID]int{}
	mtime := filetree.Time{Sec: 12345, Nsec: 6}
	f.commit(func(u *s3history.Update) {
		for i := range 1500 {
			parent := dirs[rnd.IntN(len(dirs))]
			switch {
			case i < 1100 && i%3 > 0: // more than the plan keeps in memory
				parent = filetree.RootNode
				fallthrough
			case rnd.IntN(3) > 0:
				d, err := u.Add(parent, fmt.Sprint("d", i), &filetree.Attr{Kind: filetree.Dir, Mode: 0o500, Mtime: mtime})
				must(t, err)
				dirs = append(dirs, d)
				paths[d] = paths[parent] + fmt.Sprint("d", i, "/")
			case rnd.IntN(3) > 0 || len(linked) == 0:
				n := f.add(u, parent, fmt.Sprint("f", i), noise(uint64(i), i))
				linked = append(linked, n)
				sizes[n] = i
				want[paths[parent]+fmt.Sprint("f", i)] = i
			default:
				n := linked[rnd.IntN(len(linked))]
				must(t, u.Link(parent, fmt.Sprint("l", i), n))
				want[paths[parent]+fmt.Sprint("l", i)] = sizes[n]
			}
		}
	})
	for _, window := range []int{20, 300} {
		setWindow(t, window)
		o := f.options()
		res := f.run(o)
		if res.Failures != 0 || int(res.Dirs) != len(dirs) || int(res.Files+res.HardLinks) != len(want) {
			t.Fatalf("window of %d: %+v", window, res)
		}
		for path, seed := range want {
			checkFile(t, filepath.Join(o.To, path), noise(uint64(seed), seed))
		}
		for _, d := range dirs[1:] {
			st, err := os.Lstat(filepath.Join(o.To, paths[d]))
			must(t, err)
			if filetree.TimeOf(st.ModTime()) != mtime || st.Mode().Perm() != 0o500 {
				t.Errorf("window of %d: %s: %v", window, paths[d], st)
			}
		}
	}
}

func TestDeep(t *testing.T) {
	f := newFixture(t, 0)
	const depth = 3000
	f.commit(func(u *s3history.Update) {
		dir := filetree.RootNode
		for range depth {
			var err error
			dir, err = u.Add(dir, "d", &filetree.Attr{Kind: filetree.Dir, Mode: 0o700})
			must(t, err)
		}
		f.add(u, dir, "bottom", []byte("here"))
	})
	o := f.options()
	res := f.run(o)
	if res.Failures != 0 || res.Dirs != depth+1 || res.Files != 1 {
		t.Errorf("%+v", res)
	}
	must(t, os.RemoveAll(o.To))
}

func TestHardLinks(t *testing.T) {
	f := newFixture(t, 0)
	const links = 1500
	f.commit(func(u *s3history.Update) {
		n := f.add(u, filetree.RootNode, "m", noise(1, 100))
		for i := range links {
			must(t, u.Link(filetree.RootNode, fmt.Sprintf("l%05d", i), n))
		}
	})
	o := f.options()
	res := f.run(o)
	if res.Failures != 0 || res.Files != 1 || res.HardLinks != links {
		t.Errorf("%+v", res)
	}
	// If the first fails, all do.
	for _, key := range f.mem.Keys() {
		if strings.HasPrefix(key, "packs/") {
			f.mem.Lose(key)
		}
	}
	o = f.options()
	res = f.run(o)
	if res.Failures != links+1 || len(res.Failed) != MaxFailed || res.HardLinks != 0 || len(names(t, o.To)) != 0 {
		t.Errorf("%d failures, %d named, %d links", res.Failures, len(res.Failed), res.HardLinks)
	}
}

func TestIntoExisting(t *testing.T) {
	f := newFixture(t, 0)
	f.commit(func(u *s3history.Update) {
		f.add(u, filetree.RootNode, "file", []byte("new"))
		f.add(u, filetree.RootNode, "blocked", []byte("new"))
		d, err := u.Add(filetree.RootNode, "dir", &filetree.Attr{Kind: filetree.Dir, Mode: 0o750})
		must(t, err)
		f.add(u, d, "in", []byte("new"))
	})
	o := f.options()
	must(t, os.MkdirAll(filepath.Join(o.To, "dir"), 0o755))
	must(t, os.MkdirAll(filepath.Join(o.To, "blocked/by"), 0o755))
	for _, name := range []string{"file", "other", "dir/other", "blocked/by/this"} {
		must(t, os.WriteFile(filepath.Join(o.To, name), []byte("old"), 0o600))
	}
	if _, err := Run(t.Context(), o); !errors.Is(err, localfs.ErrNotEmpty) {
		t.Fatalf("error %v", err)
	}
	checkFile(t, filepath.Join(o.To, "file"), []byte("old"))
	o.IntoExisting = true
	res := f.run(o)
	if diff := cmp.Diff([]string{"blocked"}, failed(res)); diff != "" || !errors.Is(res.Failed[0], localfs.ErrOccupied) {
		t.Errorf("failed (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{"file": "new", "dir/in": "new", "other": "old", "dir/other": "old", "blocked/by/this": "old"} {
		checkFile(t, filepath.Join(o.To, name), []byte(want))
	}
}

// A stopper cancels after so many bytes were read.
type stopper struct {
	*storetest.Mem
	left   atomic.Int64
	cancel context.CancelFunc
}

func (s *stopper) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	rc, err := s.Mem.Get(ctx, key, off, n)
	return stoppingReader{rc, s}, err
}

type stoppingReader struct {
	io.ReadCloser
	s *stopper
}

func (r stoppingReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	if r.s.left.Add(-int64(n)) < 0 {
		r.s.cancel()
	}
	return n, err
}

func TestCancel(t *testing.T) {
	f := newFixture(t, 4<<20)
	want := noise(1, 40<<20)
	small := map[string][]byte{}
	f.commit(func(u *s3history.Update) {
		for i := range 200 {
			name := fmt.Sprint("s", i)
			small[name] = noise(uint64(i+2), 20_000)
			f.add(u, filetree.RootNode, name, small[name])
		}
		f.add(u, filetree.RootNode, "big", want)
	})
	for _, bytes := range []int64{0, 1 << 20, 3 << 20, 10 << 20, 30 << 20} {
		o := f.options()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &stopper{Mem: f.mem, cancel: cancel}
		s.left.Store(bytes)
		o.Content = s3history.NewContent(s, f.identity, f.cat, f.identities)
		if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
			t.Errorf("%d bytes: error %v", bytes, err)
		}
		for _, name := range names(t, o.To) {
			if _, ok := small[name]; !ok {
				t.Fatalf("%d bytes: %q is left", bytes, name)
			}
			checkFile(t, filepath.Join(o.To, name), small[name])
		}
	}
}

func TestDamage(t *testing.T) {
	f := newFixture(t, 0)
	f.commit(func(u *s3history.Update) {
		f.add(u, filetree.RootNode, "first", noise(1, 1<<20))
		f.add(u, filetree.RootNode, "second", noise(2, 1<<20))
	})
	for _, key := range f.mem.Keys() {
		if strings.HasPrefix(key, "packs/") {
			b := f.mem.Bytes(key)
			b[1<<20+1<<19] ^= 1
			f.mem.Set(key, b)
		}
	}
	o := f.options()
	res := f.run(o)
	if diff := cmp.Diff([]string{"second"}, failed(res)); diff != "" {
		t.Errorf("failed (-want +got):\n%s", diff)
	}
	checkFile(t, filepath.Join(o.To, "first"), noise(1, 1<<20))
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP-MISSING: root")
	}
	f := newFixture(t, 0)
	f.commit(func(u *s3history.Update) {
		for i := range 8 {
			f.add(u, filetree.RootNode, fmt.Sprint("f", i), noise(uint64(i), 1<<20+i*600_000))
		}
	})
	o := f.options()
	must(t, os.Mkdir(o.To, 0o700))
	if err := unix.Mount("none", o.To, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("SKIP-MISSING: mount tmpfs: %v", err)
	}
	defer unix.Unmount(o.To, unix.MNT_DETACH)
	if _, err := Run(t.Context(), o); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v", err)
	}
	for _, name := range names(t, o.To) {
		var i int
		fmt.Sscanf(name, "f%d", &i)
		checkFile(t, filepath.Join(o.To, name), noise(uint64(i), 1<<20+i*600_000))
	}
}

func TestRequests(t *testing.T) {
	f := newFixture(t, 0)
	const files = 3000
	f.commit(func(u *s3history.Update) {
		for i := range files {
			f.add(u, filetree.RootNode, fmt.Sprint("f", i), noise(uint64(i), 10_000))
		}
	})
	packs := int64(0)
	for _, err := range f.cat.Packs() {
		must(t, err)
		packs++
	}
	o := f.options()
	o.Path = []string{"f1234"}
	before := f.mem.Counts()
	f.run(o)
	if n := f.mem.Counts().Gets - before.Gets; n != 1 {
		t.Errorf("%d requests for one file", n)
	}
	o = f.options()
	before = f.mem.Counts()
	f.run(o)
	after := f.mem.Counts()
	if n := after.Gets - before.Gets; n > packs*4 {
		t.Errorf("%d requests for %d files in %d packs", n, files, packs)
	}
	if n := after.GotBytes - before.GotBytes; n > files*10_000*101/100 {
		t.Errorf("%d bytes read for %d", n, files*10_000)
	}
}

// Two restores cannot use one catalog at once; one after the other they can.
func TestPlanOnce(t *testing.T) {
	f := newFixture(t, 0)
	f.commit(func(u *s3history.Update) { f.add(u, filetree.RootNode, "f", []byte("x")) })
	o := f.options()
	p, err := f.cat.NewPlan(o.View)
	must(t, err)
	if _, err := Run(t.Context(), o); err == nil {
		t.Error("no error")
	}
	must(t, p.Close())
	f.run(o)
}

func TestReadOnlyCatalog(t *testing.T) {
	f := newFixture(t, 0)
	f.commit(func(u *s3history.Update) { f.add(u, filetree.RootNode, "f", []byte("x")) })
	o := f.options()
	path := f.cat.Path()
	must(t, f.cat.Close())
	db, err := catalog.Open(path, catalog.Options{ReadOnly: true})
	must(t, err)
	defer db.Close()
	o.Catalog, o.View = db, db.At(f.source.ID, 1)
	o.Content = s3history.NewContent(f.mem, f.identity, db, f.identities)
	if res := f.run(o); res.Files != 1 {
		t.Errorf("%+v", res)
	}
}
