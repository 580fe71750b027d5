package s3history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/delta"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/storetest"
)

var fileAttr = filetree.Attr{Kind: filetree.File, Mode: 0o644}

// noise returns bytes that do not compress, the same for the same seed.
func noise(seed, size int) []byte {
	var b []byte
	for i := 0; len(b) < size; i++ {
		sum := hashOf(fmt.Append(nil, seed, i))
		b = append(b, sum[:]...)
	}
	return b[:size]
}

// steps are the changes of four snapshots, of several packs and segments.
var steps = []func(u *Update){
	func(u *Update) {
		d := must(u.Create(filetree.RootNode, "d", filetree.Attr{Kind: filetree.Dir, Mode: 0o755}))
		for i := range 12 {
			n := must(u.Create(d, fmt.Sprint("f", i), fileAttr))
			must(0, u.Write(n, 0, noise(i, 9000)))
		}
	},
	func(u *Update) {
		d, _, err := u.Lookup(filetree.RootNode, "d")
		must(0, err)
		n, _, err := u.Lookup(d, "f3")
		must(0, err)
		must(0, u.Write(n, 4000, noise(77, 3000)))
		n, _, err = u.Lookup(d, "f6")
		must(0, err)
		base := must(u.Before().Parts(n, 0, 9000))
		// A patch that replaces all of its base: what it gives is its own bytes.
		patch := delta.Patch(noise(6, 9000), noise(78, 9000))
		must(0, u.Put(n, Piece{Items: []Item{{Patch: &NewPatch{Patch: patch, Base: base, Result: 9000}}}}))
		must(0, u.Rename(d, "f4", filetree.RootNode, "g"))
		must(0, u.Unlink(d, "f5"))
	},
	func(u *Update) {
		for i := range 4 {
			n := must(u.Create(filetree.RootNode, fmt.Sprint("late", i), fileAttr))
			must(0, u.Write(n, 1<<20-100, noise(100+i, 5000)))
		}
	},
	func(u *Update) {
		d, _, err := u.Lookup(filetree.RootNode, "d")
		must(0, err)
		n, _, err := u.Lookup(d, "f3")
		must(0, err)
		// Little of it is other than what the second wrote, and signed.
		data := noise(77, 3000)
		data[1700]++
		must(0, u.Write(n, 4000, data))
	},
}

func smallObjects(f *fixture) {
	f.options = WriterOptions{PackSize: 20000, SegmentSize: 400, PartialAfter: -1, Uploads: 2}
}

// runSteps brings the history up to the last of the steps, from wherever it is.
func runSteps(t *testing.T, f *fixture) error {
	ctx := t.Context()
	o := f.options
	o.Store, o.StateDir, o.Catalog, o.Identity, o.Recipients = f.store, f.dir, f.cat, f.identity, f.recipients
	w, err := NewWriter(ctx, o)
	if err != nil {
		return err
	}
	if _, err := w.Recover(ctx); err != nil {
		return err
	}
	source, err := w.Source("s")
	if err != nil {
		return err
	}
	for {
		head, err := w.Head(source)
		if err != nil {
			return err
		}
		if head.Seq == uint64(len(steps)) {
			return nil
		}
		u, err := w.Begin(ctx, source, SnapshotInfo{Time: filetree.Time{Sec: int64(head.Seq)}})
		if err != nil {
			return err
		}
		err = func() (err error) {
			// A step's call that fails panics with its error.
			defer func() {
				if e, ok := recover().(error); ok {
					u.Abort()
					err = e
				}
			}()
			steps[head.Seq](u)
			_, err = u.Commit()
			return err
		}()
		if err != nil {
			return err
		}
		if head.Seq+1 == 2 {
			if _, err := w.Checkpoint(ctx, source, 2); err != nil {
				return err
			}
		}
	}
}

// expectedSteps returns what each snapshot is, and how many bytes of packs it takes.
func expectedSteps(t *testing.T) (trees []string, packs int64) {
	f := newFixture(t)
	smallObjects(f)
	if err := runSteps(t, f); err != nil {
		t.Fatal(err)
	}
	sources, err := f.cat.Sources()
	if err != nil {
		t.Fatal(err)
	}
	for seq := range steps {
		trees = append(trees, describeView(t, f.content(f.cat), f.cat.At(sources[0].ID, uint64(seq+1))))
	}
	if n := len(f.mem.Keys()); n < 40 {
		t.Errorf("%d objects only: not what this test is for", n)
	}
	return trees, packBytes(f.mem)
}

func packBytes(m *storetest.Mem) (n int64) {
	for _, k := range m.Keys() {
		if strings.HasPrefix(k, "packs/") {
			n += int64(len(m.Bytes(k)))
		}
	}
	return n
}

func (f *fixture) content(cat *catalog.DB) *Content {
	return NewContent(f.store, f.identity, cat, f.identities)
}

// checkSteps expects that what is stored is the first of the snapshots, whole, without a
// fork and in an unbroken chain, and returns how many.
func checkSteps(t *testing.T, f *fixture, trees []string) int {
	t.Helper()
	x, err := ReadIndex(t.Context(), f.store, f.identity)
	if err != nil {
		t.Fatal(err)
	}
	if len(x.Problems) > 0 {
		t.Errorf("problems: %v", x.Problems)
	}
	if len(x.Sources) == 0 {
		return 0
	}
	db := tempCatalog(t)
	defer db.Close()
	src, err := x.LoadAll(t.Context(), db, &x.Sources[0], nil)
	if err != nil || len(x.Problems) > 0 {
		t.Fatalf("load: %v %v", err, x.Problems)
	}
	snaps, err := Snapshots(db, src)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range snaps {
		if s.Seq != uint64(i+1) {
			t.Fatalf("snapshots: %v", snaps)
		}
		if got := describeView(t, f.content(db), db.At(src.ID, s.Seq)); got != trees[i] {
			t.Errorf("#%d (-want +got):\n%s", s.Seq, differing(trees[i], got))
		}
	}
	return len(snaps)
}

// TestFaults lets each upload fail in turn, as a lost request and as a lost reply.
func TestFaults(t *testing.T) {
	trees, packs := expectedSteps(t)
	for _, applied := range []bool{false, true} {
		for n := int64(1); ; n++ {
			f := newFixture(t)
			smallObjects(f)
			fault := &storetest.Fault{Store: f.mem, N: n, Applied: applied}
			f.store = fault
			err := runSteps(t, f)
			f.store = f.mem
			committed := checkSteps(t, f, trees)
			if !fault.Hit() {
				if err != nil {
					t.Fatal(err)
				}
				f.cat.Close()
				break // every upload has had its turn
			}
			if !errors.Is(err, storetest.ErrFault) {
				t.Errorf("fault at %d was swallowed: %v", n, err)
			}
			if err := runSteps(t, f); err != nil {
				t.Errorf("fault at %d (applied %v): retry: %v", n, applied, err)
			}
			if got := checkSteps(t, f, trees); got != len(steps) || got < committed {
				t.Errorf("fault at %d (applied %v): %d snapshots", n, applied, got)
			}
			// How content falls into packs may differ; how much of it there is, hardly.
			if got := packBytes(f.mem); got > packs+packs/3 {
				t.Errorf("fault at %d (applied %v): %d bytes of packs instead of %d", n, applied, got, packs)
			}
			checkTwice(t, f, fmt.Sprintf("fault at %d (applied %v)", n, applied))
			checkJournal(t, f)
			f.cat.Close()
		}
	}
}

// checkTwice expects that no content and no patch is in two packs.
func checkTwice(t *testing.T, f *fixture, when string) {
	t.Helper()
	seen := map[string]string{}
	for _, k := range f.mem.Keys() {
		if !strings.HasPrefix(k, "packs/") {
			continue
		}
		_, index, err := readPackIndex(t.Context(), f.mem, f.identity.Key, f.identity.Repo, k, int64(len(f.mem.Bytes(k))))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range index.Slices {
			id := string(s.CID)
			if id == "" { // a patch: there is one of each file, if at all
				id = fmt.Sprintf("patch of %d at %d", s.Node, s.At)
			}
			if at, ok := seen[id]; ok {
				t.Errorf("%s: content of node %d is in %s and in %s", when, s.Node, at, k)
			}
			seen[id] = k
		}
	}
}

// checkJournal expects that a new writer leaves nothing in the journal that it has no
// use for.
func checkJournal(t *testing.T, f *fixture) {
	t.Helper()
	f.writer()
	names, err := os.ReadDir(filepath.Join(f.dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		t.Errorf("left in the journal: %s", n.Name())
	}
}

// A dying store keeps what there is, of itself and of the state directory, before and
// after each upload.
type dying struct {
	*storetest.Mem
	dir    string
	mu     sync.Mutex // one upload at a time, so that a moment is one
	states []moment
}

type moment struct {
	mem   *storetest.Mem
	files map[string][]byte
	what  string
}

func (d *dying) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keep("before " + key)
	err := d.Mem.Put(ctx, key, r, size)
	d.keep("after " + key)
	return err
}

func (d *dying) keep(what string) {
	files := map[string][]byte{}
	for again := true; again; {
		again = false
		filepath.Walk(d.dir, func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() || strings.HasSuffix(path, "-shm") {
				return nil // gone meanwhile; SQLite makes its -shm anew
			}
			if b, err := os.ReadFile(path); err == nil {
				files[strings.TrimPrefix(path, d.dir)] = b
			}
			return nil
		})
	}
	d.states = append(d.states, moment{d.Mem.Clone(), files, what})
}

// TestCrash goes on from copies of all there is, made before and after each upload: a
// process that was killed there leaves that.
func TestCrash(t *testing.T) {
	trees, packs := expectedSteps(t)
	f := newFixture(t)
	smallObjects(f)
	d := &dying{Mem: f.mem, dir: f.dir}
	f.store = d
	if err := runSteps(t, f); err != nil {
		t.Fatal(err)
	}
	if err := f.cat.Close(); err != nil {
		t.Fatal(err)
	}
	for i, at := range d.states {
		if testing.Short() && i%5 > 0 || strings.HasPrefix(at.what, "after") && i%3 > 0 {
			continue // as before the next one, mostly
		}
		dir := t.TempDir()
		for _, name := range slices.Sorted(maps.Keys(at.files)) {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, at.files[name], 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		g := *f
		g.dir, g.mem, g.store = dir, at.mem, at.mem
		g.openCatalog()
		before := checkSteps(t, &g, trees)
		if err := runSteps(t, &g); err != nil {
			t.Errorf("killed %s: %v", at.what, err)
		} else if n := checkSteps(t, &g, trees); n != len(steps) || n < before {
			t.Errorf("killed %s: %d snapshots", at.what, n)
		}
		if got := packBytes(g.mem); got > packs+packs/3 {
			t.Errorf("killed %s: %d bytes of packs instead of %d", at.what, got, packs)
		}
		checkTwice(t, &g, "killed "+at.what)
		checkJournal(t, &g)
		g.cat.Close()
	}
}

// TestAbortKeeps expects that what an update uploaded before it was given up is used by
// the next one of the same process, and not forgotten by another source's commit.
func TestAbortKeeps(t *testing.T) {
	f := newFixture(t)
	smallObjects(f)
	w := f.writer()
	fill := func(u *Update) {
		for i := range 6 {
			n := must(u.Create(filetree.RootNode, fmt.Sprint(i), fileAttr))
			must(0, u.Write(n, 0, noise(i, 12000)))
		}
	}
	begin := func(w *Writer, name string) *Update {
		return must(w.Begin(t.Context(), must(w.Source(name)), SnapshotInfo{}))
	}
	u := begin(w, "a")
	fill(u)
	must(0, errors.Join(u.flushWrite(), u.flushSegment())) // the packs are on their way
	must(0, u.packer.finish())
	u.Abort()
	had := packBytes(f.mem)
	if had == 0 {
		t.Fatal("nothing was uploaded")
	}
	u = begin(w, "b")
	must(u.Create(filetree.RootNode, "other", fileAttr))
	must(u.Commit())
	for _, w := range []*Writer{w, f.writer()} {
		u = begin(w, "a")
		fill(u)
		u.Abort()
	}
	u = begin(f.writer(), "a")
	fill(u)
	must(u.Commit())
	if now := packBytes(f.mem); now != had {
		t.Errorf("%d bytes of packs, %d before the update was given up", now, had)
	}
	checkTwice(t, f, "")
}

// TestRecoverLostSegments expects that a commit is completed even if a power cut took
// the journal's copies of its segments.
func TestRecoverLostSegments(t *testing.T) {
	f := newFixture(t)
	smallObjects(f)
	d := &dying{Mem: f.mem, dir: f.dir}
	f.store = d
	if err := runSteps(t, f); err != nil {
		t.Fatal(err)
	}
	f.cat.Close()
	i := slices.IndexFunc(d.states, func(m moment) bool { return strings.Contains(m.what, "/0000000001-") })
	dir := t.TempDir()
	for name, b := range d.states[i].files {
		if strings.Contains(name, "segment-") {
			b = nil
		}
		path := filepath.Join(dir, name)
		must(0, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)))
	}
	g := *f
	g.dir, g.mem, g.store = dir, d.states[i].mem, d.states[i].mem
	g.openCatalog()
	defer g.cat.Close()
	w, err := NewWriter(t.Context(), WriterOptions{Store: g.store, StateDir: dir, Catalog: g.cat, Identity: g.identity, Recipients: g.recipients})
	if err != nil {
		t.Fatal(err)
	}
	source := must(w.Source("s"))
	if _, err := w.Begin(t.Context(), source, SnapshotInfo{}); !errors.Is(err, ErrPending) {
		t.Errorf("begin: %v", err)
	}
	done, err := w.Recover(t.Context())
	if err != nil || len(done) != 1 || done[0].Seq != 1 {
		t.Errorf("recover: %v, %v", done, err)
	}
}

// TestRecoverNotes expects that a commit is completed with the notes of its update, which
// no manifest tells.
func TestRecoverNotes(t *testing.T) {
	f := newFixture(t)
	d := &dying{Mem: f.mem, dir: f.dir}
	f.store = d
	_, err := f.commit(f.writer(), 1, func(u *Update) {
		must(u.Create(filetree.RootNode, "a", fileAttr))
		must(0, u.SetNote("n", []byte("note")))
	})
	if err != nil {
		t.Fatal(err)
	}
	f.cat.Close()
	i := slices.IndexFunc(d.states, func(m moment) bool { return strings.Contains(m.what, "/0000000001") })
	g := *f
	g.dir, g.mem, g.store = t.TempDir(), d.states[i].mem, d.states[i].mem
	for name, b := range d.states[i].files {
		path := filepath.Join(g.dir, name)
		must(0, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)))
	}
	g.openCatalog()
	defer g.cat.Close()
	w := g.writer()
	source := must(w.Source("s"))
	if head := must(w.Head(source)); head.Seq != 1 {
		t.Fatalf("#%d is the newest", head.Seq)
	}
	if note := must(w.Note(source, "n")); string(note) != "note" {
		t.Errorf("note is %q", note)
	}
	_, err = g.commit(w, 2, func(u *Update) {
		if note := must(u.Note("n")); string(note) != "note" {
			t.Errorf("an update sees %q", note)
		}
	})
	if !errors.Is(err, ErrUnchanged) {
		t.Error(err)
	}
}

// TestBehind expects that a writer whose catalog is behind what is stored does not fork
// the history.
func TestBehind(t *testing.T) {
	f := newFixture(t)
	smallObjects(f)
	if err := runSteps(t, f); err != nil {
		t.Fatal(err)
	}
	f.cat.Close()
	f.dir = t.TempDir()
	f.openCatalog()
	w := f.writer()
	source := must(w.Source("s"))
	if _, err := w.Begin(t.Context(), source, SnapshotInfo{}); !errors.Is(err, ErrBehind) || !strings.Contains(err.Error(), "secrate catalog rebuild") {
		t.Errorf("begin: %v", err)
	}
	if w.busy {
		t.Error("busy for ever")
	}
}

// TestBusy expects that whatever goes wrong, the next update can begin.
func TestBusy(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	source := must(w.Source("s"))
	ctx, cancel := context.WithCancel(t.Context())
	u := must(w.Begin(ctx, source, SnapshotInfo{}))
	n := must(u.Create(filetree.RootNode, "a", fileAttr))
	must(0, u.Write(n, 0, bytes.Repeat(noise(1, 1000), 9)))
	cancel()
	if _, err := u.Commit(); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v", err)
	}
	u.Abort()
	u = must(w.Begin(t.Context(), source, SnapshotInfo{}))
	must(u.Create(filetree.RootNode, "a", fileAttr))
	s, err := u.Commit()
	if err != nil || s.Seq != 1 {
		t.Errorf("%v, %v", s, err)
	}
	u.Abort()
}

var _ store.Store = (*dying)(nil)
