package s3history

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/secrate/secrate/internal/filetree"
)

// walkInto does what a walk of a tree of so many files does: what the history has it
// leaves, the rest it adds. It stops before the file numbered stop.
func walkInto(u *Update, files, stop int) error {
	for i := range files {
		if i == stop {
			return errStopped
		}
		name := fmt.Sprintf("f%02d", i)
		a := fileAttr
		a.Size = 3000
		if n, _, err := u.Lookup(filetree.RootNode, name); err == nil {
			if err := u.Replace(n, &a); err != nil {
				return err
			}
			continue
		}
		n, err := u.Add(filetree.RootNode, name, &a)
		if err != nil {
			return err
		}
		data := noise(i, 3000)
		cid := u.ContentID(data)
		if err := u.Put(n, Piece{CID: cid, Items: []Item{{Data: data, CID: cid}}}); err != nil {
			return err
		}
		u.CountBytes(3000)
		if err := u.MaybePartial(); err != nil {
			return err
		}
	}
	return nil
}

var errStopped = errors.New("stopped")

// TestPartial makes a first snapshot in many parts, stops in the middle, and goes on.
func TestPartial(t *testing.T) {
	const files = 20
	f := newFixture(t)
	smallObjects(f)
	f.options.PartialAfter = time.Nanosecond
	w := f.writer()
	source := must(w.Source("s"))
	u := must(w.Begin(t.Context(), source, SnapshotInfo{}))
	if err := walkInto(u, files, 11); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	u.Abort()
	head := must(w.Head(source))
	if head.Seq != 11 || !head.Partial {
		t.Fatalf("head: %+v", head)
	}
	// What there is can be read.
	f.checkRebuild()

	before := packBytes(f.mem)
	f.options.PartialAfter = -1
	w = f.writer()
	u = must(w.Begin(t.Context(), source, SnapshotInfo{}))
	must(0, walkInto(u, files, -1))
	s := must(u.Commit())
	if s.Partial || s.Seq != 12 {
		t.Errorf("%+v", s)
	}
	if n := packBytes(f.mem) - before; n > 9*3000*3/2 {
		t.Errorf("%d bytes for 9 files", n)
	}
	checkTwice(t, f, "partial")
	f.checkRebuild()

	g := newFixture(t)
	w = g.writer()
	u = must(w.Begin(t.Context(), must(w.Source("s")), SnapshotInfo{}))
	must(0, walkInto(u, files, -1))
	must(u.Commit())
	g.checkRebuild()
	got := describeView(t, f.content(f.cat), f.cat.At(source.ID, 12))
	want := describeView(t, g.content(g.cat), g.cat.At(1, 1))
	if got != want {
		t.Errorf("in parts (-want +got):\n%s", differing(want, got))
	}
}

// TestUnchanged expects that nothing is written when there is nothing to say, and that a
// partial snapshot is completed even then.
func TestUnchanged(t *testing.T) {
	f := newFixture(t)
	f.options.PartialAfter = time.Nanosecond
	w := f.writer()
	// The first snapshot of an empty tree is one.
	if s, err := f.commit(w, 1, func(*Update) {}); err != nil || s.Seq != 1 || s.Partial {
		t.Fatalf("%+v, %v", s, err)
	}
	puts := f.mem.Counts().Puts
	unchanged := func(name string, change func(u *Update)) {
		t.Helper()
		if s, err := f.commit(w, 5, change); !errors.Is(err, ErrUnchanged) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		if n := f.mem.Counts().Puts; n != puts {
			t.Errorf("%s: %d uploads", name, n-puts)
		}
	}
	unchanged("nothing", func(*Update) {})
	unchanged("nothing, in parts", func(u *Update) { must(0, u.MaybePartial()) })
	unchanged("refused", func(u *Update) {
		if err := u.Unlink(filetree.RootNode, "none"); !errors.Is(err, filetree.ErrNotExist) {
			t.Error(err)
		}
	})
	unchanged("there and back", func(u *Update) {
		must(0, u.SetAttr(filetree.RootNode, func(a *filetree.Attr) { a.Mode = 0o700 }))
		must(0, u.SetAttr(filetree.RootNode, func(a *filetree.Attr) { a.Mode = 0o755 }))
		must(u.Create(filetree.RootNode, "a", fileAttr))
		must(0, u.Unlink(filetree.RootNode, "a"))
	})
	must(f.commit(w, 6, func(u *Update) {
		n := must(u.Create(filetree.RootNode, "a", fileAttr))
		must(0, u.Write(n, 0, noise(1, 5000)))
	}))
	puts = f.mem.Counts().Puts
	unchanged("renamed and back", func(u *Update) {
		must(0, u.Rename(filetree.RootNode, "a", filetree.RootNode, "b"))
		must(0, u.Rename(filetree.RootNode, "b", filetree.RootNode, "a"))
	})
	unchanged("no more holes", func(u *Update) {
		n, _, err := u.Lookup(filetree.RootNode, "a")
		must(0, err)
		must(0, u.Hole(n, 5000, 100))
		must(0, u.Truncate(n, 5000))
		must(0, u.Clone(n, 100, n, 100, 300))
	})
	unchanged("reverted to what is", func(u *Update) { must(0, u.Revert(2)) })

	// All was said in a partial snapshot: what remains is to say so.
	source := must(w.Source("t"))
	u := must(w.Begin(t.Context(), source, SnapshotInfo{}))
	must(0, walkInto(u, 1, -1))
	u.Abort()
	if h := must(w.Head(source)); !h.Partial {
		t.Fatalf("%+v", h)
	}
	u = must(w.Begin(t.Context(), source, SnapshotInfo{}))
	if s, err := u.Commit(); err != nil || s.Partial || s.Seq != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	u = must(w.Begin(t.Context(), source, SnapshotInfo{}))
	if _, err := u.Commit(); !errors.Is(err, ErrUnchanged) {
		t.Error(err)
	}
}

// TestRefused expects that what would make the history unreadable is refused, and that
// the state is then as before.
func TestRefused(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	long := make([]byte, 70000)
	bad := map[string]filetree.Attr{
		"kind":   {Kind: 9},
		"mode":   {Kind: filetree.File, Mode: 0o100644},
		"size":   {Kind: filetree.File, Size: -1},
		"time":   {Kind: filetree.File, Mtime: filetree.Time{Nsec: 1e9}},
		"target": {Kind: filetree.Symlink, Target: string(long)},
		"value":  {Kind: filetree.File, Xattrs: []filetree.Xattr{{Name: "user.a", Value: long}}},
		"name":   {Kind: filetree.File, Xattrs: []filetree.Xattr{{Name: "user.a"}, {Name: "user.a"}}},
	}
	var many []filetree.Xattr
	for i := range 100 {
		many = append(many, filetree.Xattr{Name: fmt.Sprintf("user.%03d", i), Value: long[:60000]})
	}
	bad["all"] = filetree.Attr{Kind: filetree.File, Xattrs: many}
	must(f.commit(w, 1, func(u *Update) {
		for name, a := range bad {
			if _, err := u.Add(filetree.RootNode, name, &a); !errors.Is(err, filetree.ErrInvalid) {
				t.Errorf("add %s: %v", name, err)
			}
			if _, err := u.Create(filetree.RootNode, name, a); name != "size" && !errors.Is(err, filetree.ErrInvalid) {
				t.Errorf("create %s: %v", name, err)
			}
		}
		for _, name := range []string{"", "..", "a/b", "\x00"} {
			if _, err := u.Add(filetree.RootNode, name, &fileAttr); !errors.Is(err, filetree.ErrInvalid) {
				t.Errorf("add %q: %v", name, err)
			}
			if err := u.AddLink(filetree.RootNode, name, filetree.RootNode); !errors.Is(err, filetree.ErrInvalid) {
				t.Errorf("add link %q: %v", name, err)
			}
		}
		n := must(u.Add(filetree.RootNode, "a", &fileAttr))
		must(0, u.AddLink(filetree.RootNode, "b", n))
	}))
	f.checkRebuild()
}
