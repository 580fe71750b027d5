package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/secrate/secrate/internal/filetree"
)

func open(t testing.TB) (*DB, Source) {
	t.Helper()
	db, err := Open(filepath.Join(t.TempDir(), "catalog.db"), Options{Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	// Another source beside it must not matter.
	other := must(db.AddSource("w", "other", "other"))
	v := db.At(other.ID, 1)
	check(v.AddNode(1, dirAttr))
	check(v.AddNode(5, fileAttr))
	check(v.AddEntry(1, "a", 5))
	check(v.AddParts(5, 0, []Part{{Length: 1000, Pack: 99}}))
	return db, must(db.AddSource("w", "s", "s"))
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

var (
	dirAttr  = &filetree.Attr{Kind: filetree.Dir, Mode: 0o755}
	fileAttr = &filetree.Attr{Kind: filetree.File, Mode: 0o644}
)

func TestOpenDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	db := must(Open(path, Options{}))
	source := must(db.AddSource("w", "s", "s"))
	v := db.At(source.ID, 1)
	check(db.Begin())
	for n := range filetree.NodeID(5000) {
		check(v.AddNode(n+1, fileAttr))
	}
	check(db.Commit())
	check(db.Close())
	whole := must(os.ReadFile(path))
	if info := must(os.Stat(path)); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	for _, tt := range []struct {
		name string
		file func() []byte
		is   error
	}{
		{"no database", func() []byte { return []byte("something else altogether, and long enough to be looked at") }, ErrDamaged},
		{"altered", func() []byte {
			b := bytes.Clone(whole)
			for i := 4096; i < len(b); i += 64 {
				b[i] ^= 0x55
			}
			return b
		}, ErrDamaged},
		{"cut", func() []byte { return whole[:len(whole)/2] }, ErrDamaged},
		{"newer", func() []byte {
			check(os.WriteFile(path, whole, 0o600))
			c := must(sqlite.OpenConn(path, sqlite.OpenReadWrite))
			check(sqlitex.ExecuteTransient(c, "PRAGMA user_version = 99", nil))
			check(c.Close())
			return must(os.ReadFile(path))
		}, ErrVersion},
	} {
		for _, readOnly := range []bool{false, true} {
			check(errors.Join(os.RemoveAll(path+"-wal"), os.RemoveAll(path+"-shm"), os.WriteFile(path, tt.file(), 0o600)))
			db, err := Open(path, Options{ReadOnly: readOnly})
			if err == nil {
				_, err = db.At(source.ID, 1).Attr(4000)
				for _, e := range db.At(source.ID, 1).Nodes() {
					err = errors.Join(err, e)
				}
				db.Close()
			}
			if !errors.Is(err, tt.is) || !strings.Contains(fmt.Sprint(err), "secrate catalog rebuild") {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
	}
	if _, err := Open(filepath.Join(path, "none"), Options{}); err == nil {
		t.Error("a catalog in a file")
	}
	// What is in the rows may be damaged, too.
	check(os.WriteFile(path, whole, 0o600))
	db = must(Open(path, Options{}))
	defer db.Close()
	db.mu.Lock()
	check(errors.Join(db.exec("UPDATE nodes SET attr = x'00'"), db.exec("INSERT INTO content VALUES (x'00000000000000000000000000000000', x'05')"),
		db.exec("INSERT INTO packs VALUES (7, NULL, 5, x'', x'00')")))
	db.mu.Unlock()
	_, err := db.At(source.ID, 1).Attr(1)
	_, err2 := db.Content([16]byte{})
	_, err3 := db.Pack(7)
	for _, err := range []error{err, err2, err3} {
		if !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	}
}

// TestRollback expects that a part of a transaction can be dropped, in catalogs of
// either kind, when it is larger than the page cache.
func TestRollback(t *testing.T) {
	for _, temporary := range []bool{false, true} {
		db := must(Open(filepath.Join(t.TempDir(), "catalog.db"), Options{Temporary: temporary, CacheBytes: 64 << 10}))
		source := must(db.AddSource("w", "s", "s"))
		fill := func(seq uint64, mode uint32) {
			for n := range filetree.NodeID(3000) {
				check(db.At(source.ID, seq).SetAttr(n+1, &filetree.Attr{Kind: filetree.File, Mode: mode, Xattrs: []filetree.Xattr{{Name: "a", Value: make([]byte, 100)}}}))
			}
		}
		check(db.Begin())
		check(db.Savepoint())
		fill(1, 0o600)
		check(db.Release(true))
		check(db.Savepoint())
		fill(2, 0o700)
		check(db.Release(false))
		check(db.Commit())
		for n := range filetree.NodeID(3000) {
			if a, err := db.At(source.ID, 5).Attr(n + 1); err != nil || a.Mode != 0o600 {
				t.Fatalf("temporary %v: node %d: %o, %v", temporary, n+1, a.Mode, err)
			}
		}
		check(db.Begin())
		check(db.At(source.ID, 3).EndAll())
		check(db.Rollback())
		check(db.Rollback())
		if _, err := db.At(source.ID, 5).Attr(1); err != nil {
			t.Error(err)
		}
		if err := db.script("PRAGMA integrity_check"); err != nil {
			t.Error(err)
		}
		check(db.Close())
	}
}

// TestLife asks for nodes and entries at each snapshot of a life.
func TestLife(t *testing.T) {
	db, source := open(t)
	at := func(seq uint64) View { return db.At(source.ID, seq) }
	check(at(1).AddNode(1, dirAttr))
	check(at(2).AddNode(5, fileAttr)) // born at 2
	check(at(2).AddEntry(1, "a", 5))
	check(at(4).SetAttr(5, &filetree.Attr{Kind: filetree.File, Mode: 0o600}))
	check(at(4).RemoveEntry(1, "a", 5)) // renamed at 4
	check(at(4).AddEntry(1, "b", 5))
	check(at(6).EndNode(5)) // gone at 6
	check(at(7).AddNode(6, fileAttr))
	check(at(7).AddEntry(1, "a", 6)) // the name comes back, for another

	type state struct {
		Mode  uint32
		Names []string
		A     filetree.NodeID
	}
	var got []state
	for seq := uint64(1); seq <= 8; seq++ {
		s := state{}
		a, err := at(seq).Attr(5)
		if err != nil && !errors.Is(err, filetree.ErrNotExist) {
			t.Fatal(err)
		}
		s.Mode = a.Mode
		for c, err := range at(seq).Children(1) {
			check(err)
			s.Names = append(s.Names, fmt.Sprint(c.Name, c.Node))
		}
		if s.A, err = at(seq).Lookup(1, "a"); err != nil && !errors.Is(err, filetree.ErrNotExist) {
			t.Fatal(err)
		}
		if empty := must(at(seq).Empty(1)); empty != (len(s.Names) == 0) {
			t.Errorf("#%d: empty is %v", seq, empty)
		}
		got = append(got, s)
	}
	want := []state{
		{},
		{0o644, []string{"a5"}, 5}, {0o644, []string{"a5"}, 5},
		{0o600, []string{"b5"}, 0}, {0o600, []string{"b5"}, 0},
		{},
		{0, []string{"a6"}, 6}, {0, []string{"a6"}, 6},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	for seq, want := range map[uint64]string{2: "a", 5: "b"} {
		if p, err := at(seq).Path(5); err != nil || strings.Join(p, "/") != want {
			t.Errorf("#%d: %q, %v", seq, p, err)
		}
	}
	changed := map[uint64][]filetree.NodeID{0: {1, 5, 6}, 1: {5, 6}, 2: {5, 6}, 4: {5, 6}, 6: {6}, 7: nil}
	for seq, want := range changed {
		if got := must(at(8).ChangedSince(seq)); !slices.Equal(got, want) {
			t.Errorf("changed since #%d: %v, want %v", seq, got, want)
		}
	}
	check(at(9).EndAll())
	if _, err := at(9).Attr(1); !errors.Is(err, filetree.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := at(8).Attr(1); err != nil {
		t.Errorf("before the end: %v", err)
	}
	if _, err := db.At(1, 9).Attr(1); err != nil {
		t.Errorf("another source: %v", err)
	}
}

// TestEntryChanges gives and takes names within one snapshot.
func TestEntryChanges(t *testing.T) {
	for _, tt := range []struct {
		name      string
		do        func(v View)
		got, lost []string // of node 5, which had "a"; node 6 has "z"
		a         filetree.NodeID
	}{
		{"nothing", func(View) {}, nil, nil, 5},
		{"link", func(v View) { check(v.AddEntry(1, "b", 5)) }, []string{"b"}, nil, 5},
		{"unlink", func(v View) { check(v.RemoveEntry(1, "a", 5)) }, nil, []string{"a"}, 0},
		{"away and back", func(v View) {
			check(v.RemoveEntry(1, "a", 5))
			check(v.AddEntry(1, "a", 5))
		}, nil, nil, 5},
		{"there and away", func(v View) {
			check(v.AddEntry(1, "b", 5))
			check(v.RemoveEntry(1, "b", 5))
		}, nil, nil, 5},
		{"twice", func(v View) {
			check(v.AddEntry(1, "a", 5))
			check(v.AddEntry(1, "a", 5))
		}, nil, nil, 5},
		{"replaced", func(v View) { check(v.AddEntry(1, "a", 6)) }, nil, []string{"a"}, 6},
		{"replaced, and back", func(v View) {
			check(v.AddEntry(1, "a", 6))
			check(v.AddEntry(1, "a", 5))
		}, nil, nil, 5},
		{"lent", func(v View) {
			check(v.RemoveEntry(1, "a", 5))
			check(v.AddEntry(1, "a", 6))
			check(v.RemoveEntry(1, "a", 6))
			check(v.AddEntry(1, "a", 5))
		}, nil, nil, 5},
		{"of another", func(v View) { check(v.RemoveEntry(1, "a", 6)) }, nil, nil, 5},
		{"swapped", func(v View) {
			check(v.RemoveEntry(1, "a", 5))
			check(v.AddEntry(1, "z", 5))
			check(v.RemoveEntry(1, "z", 6))
			check(v.AddEntry(1, "a", 6))
		}, []string{"z"}, []string{"a"}, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			db, source := open(t)
			v := db.At(source.ID, 1)
			check(v.AddNode(5, fileAttr))
			check(v.AddNode(6, fileAttr))
			check(v.AddEntry(1, "a", 5))
			check(v.AddEntry(1, "z", 6))
			v = db.At(source.ID, 2)
			tt.do(v)
			names := func(all []Entry) (s []string) {
				for _, e := range all {
					s = append(s, e.Name)
				}
				return s
			}
			got, lost, err := v.EntryChanges(5)
			check(err)
			if !slices.Equal(names(got), tt.got) || !slices.Equal(names(lost), tt.lost) {
				t.Errorf("got %v, lost %v", got, lost)
			}
			var a []filetree.NodeID
			for c, err := range v.List(1) {
				check(err)
				if c.Name == "a" {
					a = append(a, c.Node)
				}
			}
			if n, err := v.Lookup(1, "a"); n != tt.a || err != nil && !errors.Is(err, filetree.ErrNotExist) || len(a) > 1 {
				t.Errorf("a is %d, %v; %v", n, err, a)
			}
			if n := must(db.At(source.ID, 1).Lookup(1, "a")); n != 5 {
				t.Errorf("a was %d", n)
			}
		})
	}
}

func TestReviveAttr(t *testing.T) {
	db, source := open(t)
	check(db.At(source.ID, 1).AddNode(5, fileAttr))
	v := db.At(source.ID, 3)
	check(v.SetAttr(5, &filetree.Attr{Kind: filetree.File, Mode: 1}))
	check(v.SetAttr(5, fileAttr))
	if a, ok, err := v.Before(5); !ok || err != nil || a.Mode != fileAttr.Mode {
		t.Error(a, ok, err)
	}
	if _, ok, err := v.Before(7); ok || err != nil {
		t.Error(ok, err)
	}
	check(v.ReviveAttr(5))
	check(v.ReviveAttr(5))
	if got := must(v.ChangedSince(1)); len(got) > 0 {
		t.Errorf("changed: %v", got)
	}
	if a := must(db.At(source.ID, 9).Attr(5)); a.Mode != fileAttr.Mode {
		t.Error(a)
	}
}

// TestPunch cuts holes into a file of extents [10, 20), [20, 30) and [50, 60).
func TestPunch(t *testing.T) {
	for _, same := range []bool{false, true} { // within the snapshot that made them
		for _, tt := range []struct {
			from, to int64
			want     string
		}{
			{0, 0, "10-20@0 20-30@0 50-60@0"},
			{0, 10, "10-20@0 20-30@0 50-60@0"},
			{30, 50, "10-20@0 20-30@0 50-60@0"},
			{60, math.MaxInt64, "10-20@0 20-30@0 50-60@0"},
			{15, 15, "10-20@0 20-30@0 50-60@0"},
			{20, 10, "10-20@0 20-30@0 50-60@0"},
			{10, 20, "20-30@0 50-60@0"},
			{12, 15, "10-12@0 15-20@5 20-30@0 50-60@0"},
			{5, 15, "15-20@5 20-30@0 50-60@0"},
			{15, 25, "10-15@0 25-30@5 50-60@0"},
			{15, 55, "10-15@0 55-60@5"},
			{19, 51, "10-19@0 51-60@1"},
			{0, math.MaxInt64, ""},
			{29, 30, "10-20@0 20-29@0 50-60@0"},
			{59, math.MaxInt64, "10-20@0 20-30@0 50-59@0"},
		} {
			db, source := open(t)
			v := db.At(source.ID, 1)
			for i, off := range []int64{10, 20, 50} {
				check(v.AddParts(5, off, []Part{{Length: 10, Pack: PackID(i + 1)}}))
			}
			if !same {
				v = db.At(source.ID, 2)
			}
			check(v.Punch(5, tt.from, tt.to))
			if got := extents(v); got != tt.want {
				t.Errorf("[%d, %d): %q, want %q", tt.from, tt.to, got, tt.want)
			}
			if got := extents(db.At(source.ID, 1)); !same && got != "10-20@0 20-30@0 50-60@0" {
				t.Errorf("[%d, %d): before: %q", tt.from, tt.to, got)
			}
		}
	}
}

// extents describes those of node 5.
func extents(v View) string {
	var s []string
	for _, e := range must(v.Extents(5, 0, math.MaxInt64)) {
		s = append(s, fmt.Sprintf("%d-%d@%d", e.Offset, e.Offset+e.Length, e.Part.Offset))
	}
	return strings.Join(s, " ")
}

// TestPunchPatch cuts a patch in two: both are pieces of its result.
func TestPunchPatch(t *testing.T) {
	db, source := open(t)
	v := db.At(source.ID, 1)
	patch := &Patch{Base: []Part{{Length: 7, Pack: 3}, {Length: 5}}, Pack: 4, Blob: 2, Offset: 1, Length: 9, ResultLength: 100}
	check(v.AddParts(5, 1000, []Part{{Length: 100, Patch: patch}}))
	check(v.Punch(5, 1010, 1020))
	got := must(v.Parts(5, 990, 1100))
	want := []Part{{Length: 10}, {Length: 10, Patch: patch}, {Length: 10}, {Length: 80, Offset: 20, Patch: patch}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
}

func TestExtentQueries(t *testing.T) {
	db, source := open(t)
	v := db.At(source.ID, 2)
	check(v.AddParts(5, 10, []Part{{Length: 10, Pack: 1}, {Length: 10, Pack: 2}}))
	check(v.AddParts(5, 5<<20, []Part{{Length: MaxPart, Pack: 3}}))
	check(v.AddParts(5, math.MaxInt64-10, []Part{{Length: 5, Pack: 4}}))
	check(db.At(source.ID, 3).Punch(5, 0, 25))
	for _, tt := range []struct{ from, want int64 }{
		{0, 10}, {10, 10}, {19, 19}, {29, 29}, {30, 5 << 20}, {6<<20 - 1, 6<<20 - 1}, {6 << 20, math.MaxInt64 - 10}, {math.MaxInt64 - 5, math.MaxInt64},
	} {
		if got := must(v.NextExtent(5, tt.from)); got != tt.want {
			t.Errorf("next from %d: %d, want %d", tt.from, got, tt.want)
		}
	}
	if got := must(db.At(source.ID, 3).NextExtent(5, 0)); got != 25 {
		t.Errorf("next at #3: %d", got)
	}
	if got := must(db.At(source.ID, 1).NextExtent(5, 0)); got != math.MaxInt64 {
		t.Errorf("next at #1: %d", got)
	}
	for _, tt := range []struct {
		from, to int64
		want     int
	}{{0, 10, 0}, {0, 11, 1}, {10, 30, 2}, {15, 30, 1}, {0, math.MaxInt64, 4}} {
		if got := must(v.Fragments(5, tt.from, tt.to)); got != tt.want {
			t.Errorf("fragments of [%d, %d): %d, want %d", tt.from, tt.to, got, tt.want)
		}
	}
	want := []Part{{Length: 5, Pack: 1, Offset: 5}, {Length: 10, Pack: 2}, {Length: 5<<20 - 30}, {Length: 7, Pack: 3}}
	if diff := cmp.Diff(want, must(v.Parts(5, 15, 5<<20+7))); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
}

func TestEndNode(t *testing.T) {
	db, source := open(t)
	v := db.At(source.ID, 1)
	check(v.AddNode(5, fileAttr))
	check(v.AddEntry(1, "a", 5))
	check(v.AddParts(5, 0, []Part{{Length: 10, Pack: 1}}))
	v = db.At(source.ID, 2)
	check(v.AddEntry(1, "b", 5))
	check(v.AddParts(5, 10, []Part{{Length: 10, Pack: 2}}))
	check(v.SetAttr(5, &filetree.Attr{Kind: filetree.File, Mode: 1}))
	check(v.AddNode(6, fileAttr)) // made and ended in one
	check(v.EndNode(6))
	check(v.EndNode(5))
	check(v.EndNode(5))
	for seq, want := range map[uint64]string{1: "0-10@0", 2: "", 3: ""} {
		if got := extents(db.At(source.ID, seq)); got != want {
			t.Errorf("#%d: %q", seq, got)
		}
		if got := must(db.At(source.ID, seq).Entries(5, 0)); len(got) != min(1, len(want)) {
			t.Errorf("#%d: %v", seq, got)
		}
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, table := range []string{"nodes", "entries", "extents"} {
		check(db.query("SELECT count(*) FROM "+table+" WHERE born = 2", func(s *sqlite.Stmt) bool {
			if n := s.ColumnInt64(0); n != 0 {
				t.Errorf("%d %s of #2 are left", n, table)
			}
			return false
		}))
	}
}

func TestUsesOf(t *testing.T) {
	db, source := open(t)
	on := func(pack PackID) *Patch { return &Patch{Pack: pack, Length: 1, ResultLength: 10} }
	deep := on(8)
	deep.Base = []Part{{Length: 10, Patch: &Patch{Pack: 8, Length: 1, ResultLength: 10, Base: []Part{{Length: 5, Pack: 7}}}}}
	v := db.At(source.ID, 1)
	check(v.AddParts(2, 0, []Part{{Length: 10, Pack: 7}}))
	check(v.AddParts(3, 0, []Part{{Length: 10, Pack: 8}}))
	check(v.AddParts(4, 0, []Part{{Length: 10, Patch: on(7)}}))
	check(v.AddParts(5, 0, []Part{{Length: 10, Patch: deep}}))
	check(db.At(source.ID, 3).Punch(2, 0, 5)) // what is left of it needs the pack
	check(db.At(source.ID, 3).EndNode(4))
	for seq := uint64(1); seq <= 4; seq++ {
		check(db.AddSnapshot(source.ID, Snapshot{Seq: seq, Info: []byte{}}))
	}
	want := []Use{{2, 4}, {4, 2}, {5, 4}}
	if diff := cmp.Diff(want, must(db.UsesOf(source.ID, 7, 10))); diff != "" {
		t.Errorf("uses (-want +got):\n%s", diff)
	}
	if got := must(db.UsesOf(source.ID, 7, 1)); len(got) != 1 {
		t.Errorf("limited: %v", got)
	}
	if got := must(db.UsesOf(source.ID, 99, 10)); len(got) != 0 {
		t.Errorf("of another source: %v", got)
	}
}

func TestPacks(t *testing.T) {
	db, source := open(t)
	a := Pack{SHA: [32]byte{9}, Size: 5, Key: []byte("k"), Blobs: []Blob{{1, 2}, {math.MaxUint32, 4}}}
	named := must(db.AddPack(Pack{SHA: a.SHA})) // by name alone
	if id := must(db.PackNamed(a.SHA)); id != 0 {
		t.Errorf("known as %d", id)
	}
	a.ID = must(db.AddPack(a))
	if a.ID != named || must(db.AddPack(Pack{SHA: a.SHA, Size: 77})) != named || must(db.PackNamed(a.SHA)) != named {
		t.Error("one pack, two numbers")
	}
	if diff := cmp.Diff(a, must(db.Pack(a.ID))); diff != "" {
		t.Errorf("pack (-want +got):\n%s", diff)
	}
	r := must(db.ReservePack())
	var all []PackID
	for p, err := range db.PacksByName() {
		check(err)
		all = append(all, p.ID)
	}
	if !slices.Equal(all, []PackID{a.ID}) {
		t.Errorf("with a name: %v", all)
	}
	check(db.FillPack(Pack{ID: r, SHA: [32]byte{3}, Size: 1}))
	all = nil
	for p, err := range db.PacksByName() {
		check(err)
		all = append(all, p.ID)
	}
	if !slices.Equal(all, []PackID{r, a.ID}) {
		t.Errorf("by name: %v", all)
	}
	if _, err := db.Pack(1000); !errors.Is(err, filetree.ErrNotExist) {
		t.Error(err)
	}
	for i, want := range []bool{true, false} {
		if told := must(db.Told(source.ID, r)); told == want {
			t.Errorf("%d: told is %v", i, told)
		}
		if news := must(db.Tell(source.ID, r)); news != want {
			t.Errorf("%d: news is %v", i, news)
		}
	}
}

func TestCheckPart(t *testing.T) {
	patch := func(depth int) Part {
		p := Part{Length: 10, Pack: 1}
		for range depth {
			p = Part{Length: 10, Patch: &Patch{Pack: 1, Length: 1, ResultLength: 10, Base: []Part{p}}}
		}
		return p
	}
	for _, tt := range []struct {
		name string
		p    Part
		ok   bool
	}{
		{"none", Part{}, false},
		{"negative", Part{Length: -1, Pack: 1}, false},
		{"hole", Part{Length: 1 << 62}, true},
		{"slice", Part{Length: MaxPart, Pack: 1}, true},
		{"long", Part{Length: MaxPart + 1, Pack: 1}, false},
		{"beyond", Part{Length: MaxPart, Offset: 1, Pack: 1}, false},
		{"far", Part{Length: 1, Offset: math.MaxUint32, Pack: 1}, false},
		{"deepest", patch(MaxDepth), true},
		{"too deep", patch(MaxDepth + 1), false},
		{"beyond its patch", Part{Length: 10, Offset: 1, Patch: patch(1).Patch}, false},
		{"on a hole", Part{Length: 1, Patch: &Patch{Pack: 1, Length: 1, ResultLength: 1, Base: []Part{{Length: MaxBase}}}}, true},
		{"on a large hole", Part{Length: 1, Patch: &Patch{Pack: 1, Length: 1, ResultLength: 1, Base: []Part{{Length: 1 << 62}}}}, false},
		{"on holes", Part{Length: 1, Patch: &Patch{Pack: 1, Length: 1, ResultLength: 1, Base: []Part{{Length: MaxBase}, {Length: 1}}}}, false},
		{"on many", Part{Length: 1, Patch: &Patch{Pack: 1, Length: 1, ResultLength: 1, Base: slices.Repeat([]Part{{Length: 1}}, maxBaseParts+1)}}, false},
	} {
		if err := tt.p.Check(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if d := patch(3).Depth(); d != 3 {
		t.Errorf("depth %d", d)
	}
}

// FuzzParts decodes lists of parts.
func FuzzParts(f *testing.F) {
	f.Add(appendParts(nil, []Part{{Length: 5, Pack: 1, Blob: 2, Offset: 3}, {Length: 1 << 40},
		{Length: 1, Offset: 7, Patch: &Patch{Pack: 1, Length: 9, ResultLength: 8, Base: []Part{{Length: 3, Pack: 4}, {Length: 5}}}}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add(bytes.Repeat([]byte{1, 1, 0, 1, 0, 0, 0, 0, 0, 0}, 40))
	f.Add(bytes.Repeat([]byte{0x20}, 300))
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, err := decodeParts(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		for _, p := range parts {
			p.Check()
			p.Depth()
		}
		again, err := decodeParts(appendParts(nil, parts))
		if diff := cmp.Diff(parts, again); err != nil || diff != "" {
			t.Fatalf("%v (-first +again):\n%s", err, diff)
		}
		decodePatch(b)
	})
}

// FuzzAttr decodes attributes; what can be decoded can be said again.
func FuzzAttr(f *testing.F) {
	full := filetree.Attr{Kind: filetree.CharDev, Mode: 0o7777, UID: 1, GID: 2, Size: math.MaxInt64, Mtime: filetree.Time{Sec: -5, Nsec: 999_999_999},
		Ctime: filetree.Time{Sec: math.MaxInt64}, Btime: filetree.Time{Sec: math.MinInt64, Nsec: 1}, Major: 3, Minor: math.MaxUint32, Flags: 9,
		Target: "\xff/..", Xattrs: []filetree.Xattr{{Name: "a", Value: []byte{}}, {Name: "b", Value: []byte("v")}}, Ino: math.MaxUint64, Gen: 1, Incomplete: true}
	f.Add(must(encodeAttr(&full)))
	f.Add(must(encodeAttr(fileAttr)))
	f.Add([]byte{0xa1, 0x05, 0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0xa1, 0x0d, 0x9a, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decodeAttr(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		enc, err := encodeAttr(&a)
		if err != nil {
			if len(b) < maxAttr {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeAttr(enc)
		same := func(x, y filetree.Attr) bool {
			eq := filetree.EqualXattrs(x.Xattrs, y.Xattrs)
			x.Xattrs, y.Xattrs = nil, nil
			return eq && fmt.Sprint(x) == fmt.Sprint(y)
		}
		if err != nil || !same(a, again) {
			t.Fatalf("%v: %+v, again %+v", err, a, again)
		}
		// All says it whatever was there, Diff from what was there.
		for _, w := range []Attr{All(&a), Diff(&full, &a)} {
			other := full
			if a.Target == "" {
				other.Target = "" // there is no saying that a link leads nowhere
			}
			if err := w.Apply(&other); err != nil || !same(a, other) {
				t.Fatalf("%v: %+v, applied %+v", err, a, other)
			}
		}
	})
}
