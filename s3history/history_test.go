package s3history

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/storetest"
)

// A fixture is a repository in memory with one writer.
type fixture struct {
	t          testing.TB
	store      store.Store
	mem        *storetest.Mem
	dir        string
	cat        *catalog.DB
	identity   WriterIdentity
	identities []age.Identity
	recipients *seal.Recipients
	options    WriterOptions
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, mem: storetest.NewMem(), dir: t.TempDir()}
	f.store = f.mem
	id, rec, err := seal.GenerateIdentity(true)
	if err != nil {
		t.Fatal(err)
	}
	if f.identities, err = seal.ParseIdentityFile([]byte(id), seal.Options{}); err != nil {
		t.Fatal(err)
	}
	if f.recipients, err = seal.ParseRecipients([]string{rec}, seal.Options{}); err != nil {
		t.Fatal(err)
	}
	repo, _, err := InitRepository(t.Context(), f.store)
	if err != nil {
		t.Fatal(err)
	}
	if f.identity, err = NewWriterIdentity(t.Context(), f.store, repo, "host", f.recipients); err != nil {
		t.Fatal(err)
	}
	f.openCatalog()
	t.Cleanup(func() { f.cat.Close() })
	return f
}

func (f *fixture) openCatalog() {
	f.t.Helper()
	var err error
	if f.cat, err = catalog.Open(filepath.Join(f.dir, "catalog.db"), catalog.Options{}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) writer() *Writer {
	f.t.Helper()
	o := f.options
	o.Store, o.StateDir, o.Catalog, o.Identity, o.Recipients = f.store, f.dir, f.cat, f.identity, f.recipients
	w, err := NewWriter(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := w.Recover(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	return w
}

// commit makes a snapshot of source s with the changes that change makes.
func (f *fixture) commit(w *Writer, sec int64, change func(u *Update)) (Snapshot, error) {
	f.t.Helper()
	src, err := w.Source("s")
	if err != nil {
		f.t.Fatal(err)
	}
	u, err := w.Begin(f.t.Context(), src, SnapshotInfo{Time: filetree.Time{Sec: sec}, Origin: fmt.Sprint("snap", sec), GUID: [16]byte{byte(sec)}})
	if err != nil {
		f.t.Fatal(err)
	}
	change(u)
	return u.Commit()
}

// tree describes a state, content and all, as text.
func (f *fixture) tree(cat *catalog.DB, source catalog.Source, seq uint64) string {
	f.t.Helper()
	var b strings.Builder
	c := NewContent(f.store, f.identity, cat, f.identities)
	v := cat.At(source.ID, seq)
	var walk func(dir filetree.NodeID, path string)
	walk = func(dir filetree.NodeID, path string) {
		for ch, err := range v.Children(dir) {
			if err != nil {
				f.t.Fatal(err)
			}
			p := path + "/" + ch.Name
			fmt.Fprintf(&b, "%s %d %+v", p, ch.Node, ch.Attr)
			if ch.Attr.Kind == filetree.File {
				var data bytes.Buffer
				if err := c.WriteFile(f.t.Context(), v, ch.Node, ch.Attr.Size, &data); err != nil {
					f.t.Fatalf("%s: %v", p, err)
				}
				fmt.Fprintf(&b, " %x", hashOf(data.Bytes()))
			}
			b.WriteByte('\n')
			if ch.Attr.Kind == filetree.Dir {
				walk(ch.Node, p)
			}
		}
	}
	a, err := v.Attr(filetree.RootNode)
	if err != nil {
		f.t.Fatal(err)
	}
	fmt.Fprintf(&b, "/ %+v\n", a)
	walk(filetree.RootNode, "")
	return b.String()
}

// rebuilt returns a catalog made from what is stored.
func (f *fixture) rebuilt() (*catalog.DB, catalog.Source) {
	f.t.Helper()
	db, err := catalog.Open(filepath.Join(f.t.TempDir(), "rebuilt.db"), catalog.Options{Temporary: true})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { db.Close() })
	r, err := Open(f.t.Context(), f.store, f.identities)
	if err != nil {
		f.t.Fatal(err)
	}
	x, err := ReadIndex(f.t.Context(), f.store, r.Writers[0])
	if err != nil {
		f.t.Fatal(err)
	}
	src, err := x.LoadAll(f.t.Context(), db, &x.Sources[0], nil)
	if err != nil {
		f.t.Fatal(err)
	}
	if len(x.Problems) > 0 {
		f.t.Fatal(x.Problems)
	}
	return db, src
}

func (f *fixture) checkRebuild() {
	f.t.Helper()
	db, src := f.rebuilt()
	sources, err := f.cat.Sources()
	if err != nil {
		f.t.Fatal(err)
	}
	snaps, err := Snapshots(f.cat, sources[0])
	if err != nil {
		f.t.Fatal(err)
	}
	again, err := Snapshots(db, src)
	if err != nil {
		f.t.Fatal(err)
	}
	if fmt.Sprint(snaps) != fmt.Sprint(again) {
		f.t.Errorf("snapshots:\n%v\nrebuilt:\n%v", snaps, again)
	}
	for _, s := range snaps {
		want, got := f.tree(f.cat, sources[0], s.Seq), f.tree(db, src, s.Seq)
		if want != got {
			f.t.Errorf("#%d:\n%s\nrebuilt:\n%s", s.Seq, want, got)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestCommit(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	file := filetree.Attr{Kind: filetree.File, Mode: 0o644}
	s, err := f.commit(w, 100, func(u *Update) {
		d := must(u.Create(filetree.RootNode, "dir", filetree.Attr{Kind: filetree.Dir, Mode: 0o755}))
		n := must(u.Create(d, "a", file))
		must(0, u.Write(n, 0, bytes.Repeat([]byte("hello"), 1000)))
		must(0, u.Write(n, 2<<20, bytes.Repeat([]byte("x"), 3<<20)))
		must(0, u.Link(filetree.RootNode, "b", n))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	f.checkRebuild()
	if _, err = f.commit(w, 200, func(u *Update) {}); !errors.Is(err, ErrUnchanged) {
		t.Fatal(err)
	}
	objects := len(f.mem.Keys())
	s, err = f.commit(w, 300, func(u *Update) {
		n, _, err := u.Lookup(filetree.RootNode, "b")
		must(0, err)
		must(0, u.Put(n, Piece{Offset: 2<<20 + 77, Items: []Item{{Data: []byte("y")}}}))
		must(0, u.Rename(filetree.RootNode, "dir", filetree.RootNode, "dir2"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.mem.Keys()) - objects; n != 3 || s.Objects != 3 {
		t.Errorf("%d new objects, says %d", n, s.Objects)
	}
	t.Logf("1 byte: %d bytes in %d objects", s.Uploaded, s.Objects)
	f.checkRebuild()
	_, err = f.commit(w, 400, func(u *Update) {
		n, _, err := u.Lookup(filetree.RootNode, "b")
		must(0, err)
		must(0, u.Truncate(n, 100))
		must(0, u.Unlink(filetree.RootNode, "b"))
		m := must(u.Create(filetree.RootNode, "c", file))
		must(0, u.Clone(m, 0, n, 0, 50))
		src := must(u.Resolve([16]byte{44}, "dir2/a")) // snapshot 300
		must(0, u.CloneFrom(m, 50, [16]byte{44}, src, 2<<20, 1<<20))
	})
	if err != nil {
		t.Fatal(err)
	}
	f.checkRebuild()
}

// TestResolveOwn has a snapshot of the same UUID in two sources: each finds its own.
func TestResolveOwn(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	for i, name := range []string{"a", "b"} {
		u := must(w.Begin(t.Context(), must(w.Source(name)), SnapshotInfo{GUID: [16]byte{7}}))
		for range i {
			must(u.Create(filetree.RootNode, "other", fileAttr))
		}
		n := must(u.Create(filetree.RootNode, "f", fileAttr))
		must(0, u.Write(n, 0, []byte(name)))
		must(u.Commit())
	}
	for i, name := range []string{"a", "b"} {
		u := must(w.Begin(t.Context(), must(w.Source(name)), SnapshotInfo{GUID: [16]byte{8}}))
		if n, want := must(u.Resolve([16]byte{7}, "f")), filetree.NodeID(2+i); n != want {
			t.Errorf("%s: node is %d, want %d", name, n, want)
		}
		u.Abort()
	}
}
