package catalog

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// changes is what a View and a Loader both do.
type changes interface {
	SetAttr(n filetree.NodeID, a *filetree.Attr) error
	AddEntry(dir filetree.NodeID, name string, n filetree.NodeID) error
	RemoveEntry(dir filetree.NodeID, name string, n filetree.NodeID) error
	EndNode(n filetree.NodeID) error
	Punch(n filetree.NodeID, from, to int64) error
	Parts(n filetree.NodeID, from, to int64) ([]Part, error)
}

// TestLoader makes random changes through a View and through a Loader, and expects the
// same answers and the same rows: of nodes that come in order, as in a first snapshot, of
// nodes out of order and of some that are met again and again, in several snapshots.
func TestLoader(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			slow, slowSource := open(t)
			fast, fastSource := open(t)
			r := rand.New(rand.NewPCG(seed, 3))
			again := 1 + r.IntN(40) // one change in so many is of a node that may have been met
			next := filetree.NodeID(1)
			for seq := uint64(1); seq <= 4; seq++ {
				v := slow.At(slowSource.ID, seq)
				check(slow.Begin())
				check(fast.Begin())
				if r.IntN(4) == 0 {
					check(v.EndAll())
					check(fast.At(fastSource.ID, seq).EndAll())
				}
				l := must(fast.At(fastSource.ID, seq).NewLoader())
				at := int64(0) // where the node that came last ends
				for range r.IntN(4 * batchRows) {
					n := next
					switch k := r.IntN(again * 4); {
					case k == 0:
						n = 1 + filetree.NodeID(r.IntN(int(next)+3))
					case k < again*2:
						next++
						n, at = next, 0
					}
					dir := 1 + filetree.NodeID(r.IntN(int(next)))
					name := fmt.Sprint(r.IntN(50))
					if r.IntN(again) > 0 {
						dir, name = next-next%100+1, fmt.Sprint(n)
					}
					off, length := at, 1+r.Int64N(100)
					if r.IntN(again) == 0 {
						off = r.Int64N(500)
					}
					at = max(at, off+length)
					both := func(do func(c changes) error) {
						t.Helper()
						if a, b := do(v), do(l); a != nil || b != nil {
							t.Fatal(a, b)
						}
					}
					switch r.IntN(12 + 2*again) {
					case 0:
						both(func(c changes) error { return c.EndNode(n) })
					case 1:
						both(func(c changes) error { return c.RemoveEntry(dir, name, n) })
					case 2:
						both(func(c changes) error { return c.Punch(n, off, off+length) })
					case 3:
						if diff := cmp.Diff(must(v.Parts(n, 0, 500)), must(l.Parts(n, 0, 500))); diff != "" {
							t.Fatalf("#%d: parts of %d (-view +loader):\n%s", seq, n, diff)
						}
					case 4:
						want, err := v.Attr(n)
						got, ok, lerr := l.Attr(n)
						if ok != (err == nil) || lerr != nil || cmp.Diff(want, got) != "" {
							t.Fatalf("#%d: node %d: %v, %v; %v, %v, %v", seq, n, want, err, got, ok, lerr)
						}
					case 5, 6, 7:
						p := Part{Length: length, Pack: PackID(1 + r.IntN(3)), Blob: uint32(r.IntN(3))}
						if r.IntN(10) == 0 {
							p = Part{Length: length, Patch: &Patch{Pack: 1, Length: 1, ResultLength: 100, Base: []Part{{Length: 5}}}}
						}
						check(v.SetParts(n, off, []Part{p}))
						check(l.SetPart(n, off, p))
					case 8, 9:
						both(func(c changes) error { return c.AddEntry(dir, name, n) })
					case 10:
						cid, parts := [16]byte{byte(r.IntN(200))}, []Part{{Length: length, Pack: 1}}
						check(slow.SetContent(cid, parts))
						check(l.SetContent(cid, parts))
					default:
						a := &filetree.Attr{Kind: filetree.File, Mode: r.Uint32N(0o1000)}
						both(func(c changes) error { return c.SetAttr(n, a) })
					}
				}
				check(l.Flush())
				check(slow.Commit())
				check(fast.Commit())
				if diff := cmp.Diff(rows(t, slow), rows(t, fast)); diff != "" {
					t.Fatalf("#%d: rows (-view +loader):\n%s", seq, diff)
				}
			}
		})
	}
}

// TestLoaderEdges makes changes at the border of what a Loader takes to be new.
func TestLoaderEdges(t *testing.T) {
	entry := func(dir filetree.NodeID, name string, n filetree.NodeID) func(View, *Loader) {
		return func(v View, l *Loader) { check(v.AddEntry(dir, name, n)); check(l.AddEntry(dir, name, n)) }
	}
	attr := func(n filetree.NodeID, mode uint32) func(View, *Loader) {
		a := &filetree.Attr{Kind: filetree.File, Mode: mode}
		return func(v View, l *Loader) { check(v.SetAttr(n, a)); check(l.SetAttr(n, a)) }
	}
	part := func(n filetree.NodeID, off int64) func(View, *Loader) {
		p := Part{Length: 100, Pack: 1}
		return func(v View, l *Loader) { check(v.SetParts(n, off, []Part{p})); check(l.SetPart(n, off, p)) }
	}
	for _, tt := range []struct {
		name   string
		before []func(View, *Loader) // in the snapshot before
		now    []func(View, *Loader)
	}{
		{"the highest was a directory", []func(View, *Loader){entry(50, "a", 5)}, []func(View, *Loader){entry(50, "a", 6), attr(50, 1), part(50, 0)}},
		{"the highest was a node", []func(View, *Loader){attr(50, 1)}, []func(View, *Loader){entry(50, "a", 6), attr(50, 2), part(50, 0)}},
		{"the highest was a file", []func(View, *Loader){part(50, 0)}, []func(View, *Loader){entry(50, "a", 6), attr(50, 2), part(50, 50)}},
		{"a name twice", nil, []func(View, *Loader){entry(50, "a", 5), entry(50, "a", 6), entry(51, "a", 7), entry(50, "a", 5)}},
		{"attributes twice", nil, []func(View, *Loader){attr(50, 1), attr(51, 1), attr(50, 2), attr(50, 3)}},
		{"an extent over the end", nil, []func(View, *Loader){part(7, 0), part(7, 50), part(7, 120), part(7, 220), part(7, 10)}},
		{"files in turn", nil, []func(View, *Loader){part(7, 0), part(8, 0), part(7, 50), part(8, 50), part(8, 150), part(7, 150)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			slow, source := open(t)
			fast, _ := open(t)
			for i, changes := range [][]func(View, *Loader){tt.before, tt.now} {
				v, l := slow.At(source.ID, uint64(i+1)), must(fast.At(source.ID, uint64(i+1)).NewLoader())
				for _, c := range changes {
					c(v, l)
				}
				check(l.Flush())
			}
			if diff := cmp.Diff(rows(t, slow), rows(t, fast)); diff != "" {
				t.Errorf("rows (-view +loader):\n%s", diff)
			}
		})
	}
}

// rows returns all rows of the tables that changes are made in.
func rows(t *testing.T, db *DB) []string {
	t.Helper()
	db.mu.Lock()
	defer db.mu.Unlock()
	var all []string
	for _, table := range []string{"nodes", "entries", "extents", "recipes", "content"} {
		check(db.query("SELECT * FROM "+table, func(s *sqlite.Stmt) bool {
			row := table
			for i := range s.ColumnCount() {
				row += fmt.Sprintf(" %q", column(s, i))
			}
			all = append(all, row)
			return true
		}))
	}
	return all
}

// TestLoaderRefuses expects that a Loader refuses the attributes that a View does.
func TestLoaderRefuses(t *testing.T) {
	db, source := open(t)
	l := must(db.At(source.ID, 1).NewLoader())
	bad := &filetree.Attr{Kind: filetree.File, Mode: 0o100644}
	if a, b := l.SetAttr(5, bad), db.At(source.ID, 1).SetAttr(5, bad); a == nil || b == nil || a.Error() != b.Error() {
		t.Errorf("%v, %v", a, b)
	}
}

// TestIndex expects that a catalog in which a Loader has begun has the index of names by
// node when something asks for it, when it is committed to be kept, and after what
// brought it was rolled back.
func TestIndex(t *testing.T) {
	indexes := func(db *DB) string {
		var all []string
		db.mu.Lock()
		defer db.mu.Unlock()
		check(db.query("SELECT name FROM sqlite_schema WHERE type = 'index' AND name LIKE '%_node'", func(s *sqlite.Stmt) bool {
			all = append(all, columnString(s, 0))
			return true
		}))
		return strings.Join(all, " ")
	}
	load := func(db *DB, source Source) {
		l := must(db.At(source.ID, 1).NewLoader())
		for n := filetree.NodeID(2); n < 1000; n++ {
			check(l.AddEntry(1, fmt.Sprint(n), n))
		}
		check(l.Flush())
	}
	for _, temporary := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "catalog.db")
		db := must(Open(path, Options{Temporary: temporary}))
		source := must(db.AddSource("w", "s", "s"))
		want := func(when, names string) {
			t.Helper()
			if got := indexes(db); got != names {
				t.Errorf("temporary %v, %s: index %q", temporary, when, got)
			}
		}
		want("new", "entries_node")
		check(db.Begin())
		load(db, source)
		want("loading", "")
		check(db.Rollback())
		want("rolled back", "entries_node")
		check(db.Begin())
		check(db.Savepoint())
		load(db, source)
		check(db.Release(true))
		check(db.Savepoint())
		v := db.At(source.ID, 1)
		if e := must(v.Entries(7, 0)); !slices.Equal(e, []Entry{{Dir: 1, Name: "7"}}) {
			t.Error(e)
		}
		want("asked", "entries_node")
		check(db.Release(false))
		want("dropped again", "")
		check(v.EndNode(8))
		want("asked again", "entries_node")
		check(db.Commit())
		check(db.Close())
		db = must(Open(path, Options{Temporary: temporary, ReadOnly: !temporary}))
		want("opened", "entries_node")
		if e := must(db.At(source.ID, 1).Entries(7, 0)); len(e) != 1 {
			t.Error(e)
		}
		check(db.Close())
	}
	// One that is kept gets it with the commit, a temporary one only when it is asked for.
	for _, temporary := range []bool{false, true} {
		db := must(Open(filepath.Join(t.TempDir(), "catalog.db"), Options{Temporary: temporary}))
		source := must(db.AddSource("w", "s", "s"))
		check(db.Begin())
		load(db, source)
		check(db.Commit())
		if got := indexes(db); (got != "") == temporary {
			t.Errorf("temporary %v, committed: index %q", temporary, got)
		}
		plan := must(db.NewPlan(db.At(source.ID, 1)))
		check(plan.Pin(t.Context()))
		if got := indexes(db); got == "" {
			t.Error("no index for a plan")
		}
		check(plan.Close())
		check(db.Close())
	}
}

// TestLoaderBound expects that few rows that are large do not wait for more.
func TestLoaderBound(t *testing.T) {
	db, source := open(t)
	l := must(db.At(source.ID, 1).NewLoader())
	large := &filetree.Attr{Kind: filetree.File, Xattrs: []filetree.Xattr{{Name: "user.a", Value: make([]byte, maxXattrValue)}}}
	parts := slices.Repeat([]Part{{Length: 1, Pack: 1}, {Length: 1, Pack: 2}}, 1<<16)
	for n := range filetree.NodeID(100) {
		check(l.SetAttr(n+10, large))
		check(l.SetContent([16]byte{byte(n)}, parts))
		if l.nodes.bytes > batchBytes || l.contentBytes > contentBytes {
			t.Fatalf("%d bytes of nodes and %d of content are held back", l.nodes.bytes, l.contentBytes)
		}
	}
	check(l.Flush())
	for n := range filetree.NodeID(100) {
		if a := must(db.At(source.ID, 1).Attr(n + 10)); len(a.Xattrs) != 1 || len(must(db.Content([16]byte{byte(n)}))) != len(parts) {
			t.Errorf("node %d: %v", n, a.Xattrs)
		}
	}
}
