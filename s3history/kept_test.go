package s3history

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/filetree"
)

// kept returns what is kept at a snapshot of source s, as text.
func (f *fixture) kept(w *Writer, seq uint64) string {
	f.t.Helper()
	var all []string
	for k, err := range f.cat.At(must(w.Source("s")).ID, seq).KeptFrom(nil, []byte{0xff}) {
		if err != nil {
			f.t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s=%s", k.Key, k.Value))
	}
	return strings.Join(all, " ")
}

// checkJournal expects that nothing in the journal waits for a commit.
func (f *fixture) checkJournal() {
	f.t.Helper()
	for _, pattern := range []string{"kept-*", "commit-*"} {
		if names := must(filepath.Glob(filepath.Join(f.dir, "journal", pattern))); len(names) > 0 {
			f.t.Errorf("left in the journal: %s", names)
		}
	}
}

func keep(u *Update, key, value string) { must(0, u.Keep([]byte(key), []byte(value))) }

// at returns a fixture of what a process that was killed at that moment leaves.
func (f *fixture) at(m *moment) *fixture {
	f.t.Helper()
	g := *f
	g.dir, g.mem, g.store = f.t.TempDir(), m.mem, m.mem
	for name, b := range m.files {
		path := filepath.Join(g.dir, name)
		must(0, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)))
	}
	g.openCatalog()
	return &g
}

func TestKeep(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	source := must(w.Source("s"))
	must(f.commit(w, 1, func(u *Update) {
		must(u.Create(filetree.RootNode, "a", fileAttr))
		keep(u, "k", "1")
		keep(u, "m", "1")
		if v := must(u.Kept([]byte("k"))); string(v) != "1" {
			t.Errorf("within the update: %q", v)
		}
	}))
	must(f.commit(w, 2, func(u *Update) {
		must(u.Create(filetree.RootNode, "b", fileAttr))
		keep(u, "k", "2")
		keep(u, "m", "")
	}))
	// What is kept when nothing changed belongs to the snapshot that there is.
	if _, err := f.commit(w, 3, func(u *Update) { keep(u, "n", "3") }); !errors.Is(err, ErrUnchanged) {
		t.Fatal(err)
	}
	u := must(w.Begin(t.Context(), source, SnapshotInfo{}))
	keep(u, "k", "4")
	u.Abort()
	for seq, want := range []string{1: "k=1 m=1", 2: "k=2 n=3", 3: "k=2 n=3"} {
		if got := f.kept(w, uint64(seq)); got != want {
			t.Errorf("#%d: %q, want %q", seq, got, want)
		}
	}
	if v := must(w.KeptAt(source, 1, []byte("m"))); string(v) != "1" {
		t.Errorf("m at #1: %q", v)
	}
	if _, err := f.commit(w, 4, func(u *Update) {
		must(0, u.Revert(1))
		if v := must(u.Kept([]byte("m"))); string(v) != "1" {
			t.Errorf("m after #1 is back: %q", v)
		}
		keep(u, "k", "5")
	}); err != nil {
		t.Fatal(err)
	}
	if got := f.kept(w, 3); got != "k=5 m=1" {
		t.Errorf("after #1 is back: %q", got)
	}
	f.checkJournal()
	f.checkRebuild()
}

// TestKeepCrash goes on from copies made before and after each upload: what is kept is
// that of the newest snapshot, whichever it is.
func TestKeepCrash(t *testing.T) {
	f := newFixture(t)
	d := &dying{Mem: f.mem, dir: f.dir}
	f.store = d
	w := f.writer()
	must(f.commit(w, 1, func(u *Update) {
		must(u.Create(filetree.RootNode, "a", fileAttr))
		keep(u, "k", "1")
		keep(u, "m", "1")
	}))
	must(f.commit(w, 2, func(u *Update) {
		n := must(u.Create(filetree.RootNode, "b", fileAttr))
		must(0, u.Write(n, 0, noise(1, 1000)))
		keep(u, "k", "2")
		keep(u, "m", "")
		keep(u, "n", "2")
	}))
	f.checkJournal()
	want := []string{0: "", 1: "k=1 m=1", 2: "k=2 n=2"}
	seen := map[uint64]int{}
	for i := range d.states {
		g := f.at(&d.states[i])
		w := g.writer()
		head := must(w.Head(must(w.Source("s"))))
		seen[head.Seq]++
		for seq := range head.Seq + 1 {
			if got := g.kept(w, seq); got != want[seq] {
				t.Errorf("%s: #%d of %d: %q, want %q", d.states[i].what, seq, head.Seq, got, want[seq])
			}
		}
		g.checkJournal()
		g.cat.Close()
	}
	if seen[1] == 0 || seen[2] == 0 {
		t.Errorf("crashes that left each snapshot: %v", seen)
	}
}

// TestKeepElsewhere: what was kept with a commit that came to nothing does not go with
// the next one, not even over a crash.
func TestKeepElsewhere(t *testing.T) {
	f := newFixture(t)
	d := &dying{Mem: f.mem, dir: f.dir}
	f.store = d
	w := f.writer()
	source := must(w.Source("s"))
	block := filepath.Join(f.dir, "journal", "tmp-commit-"+source.Ident)
	must(0, os.Mkdir(block, 0o700))
	if _, err := f.commit(w, 1, func(u *Update) {
		must(u.Create(filetree.RootNode, "a", fileAttr))
		keep(u, "k", "1")
	}); err == nil {
		t.Fatal("a commit without a commit file")
	}
	f.checkJournal()
	must(0, os.RemoveAll(block)) // TestKeepElsewhere made it
	must(f.commit(w, 2, func(u *Update) { must(u.Create(filetree.RootNode, "b", fileAttr)) }))
	for i := range d.states {
		g := f.at(&d.states[i])
		w := g.writer()
		if got := g.kept(w, must(w.Head(must(w.Source("s")))).Seq); got != "" {
			t.Errorf("%s: %q is kept", d.states[i].what, got)
		}
		g.cat.Close()
	}
}

// TestNameless: a file that was unlinked while it is open is in the history as long as
// its sender speaks of it, whatever of it changes.
func TestNameless(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	var n filetree.NodeID
	must(f.commit(w, 1, func(u *Update) {
		n = must(u.NewNode(fileAttr))
		must(0, u.AddName(filetree.RootNode, "a", n))
		keep(u, "k", "1")
	}))
	must(f.commit(w, 2, func(u *Update) { must(0, u.DropName(filetree.RootNode, "a")) }))
	must(f.commit(w, 3, func(u *Update) {
		must(0, u.Write(n, 0, noise(1, 100)))
		keep(u, "k", "3")
	}))
	must(f.commit(w, 4, func(u *Update) {
		if a, err := u.Attr(n); err != nil || a.Size != 100 {
			t.Errorf("written without a name: %+v, %v", a, err)
		}
		must(0, u.AddName(filetree.RootNode, "b", n)) // linkat
	}))
	must(f.commit(w, 5, func(u *Update) {
		must(0, u.EndNode(n))
		if nodes := allNodes(u); len(nodes) != 1 {
			t.Errorf("nodes %v", nodes)
		}
	}))
	f.checkRebuild()
	// One that comes and goes within an update leaves nothing to tell.
	if _, err := f.commit(w, 6, func(u *Update) { must(0, u.EndNode(must(u.NewNode(fileAttr)))) }); !errors.Is(err, ErrUnchanged) {
		t.Error(err)
	}
}

func allNodes(u *Update) (all []filetree.NodeID) {
	for n, err := range u.Nodes() {
		must(0, err)
		all = append(all, n)
	}
	return all
}
