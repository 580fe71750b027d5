package catalog

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/secrate/secrate/internal/filetree"
)

// A listing is all there is in one state, found by walking the tree.
type listing struct {
	nodes map[filetree.NodeID]*listed
}

// A listed is a node in a listing.
type listed struct {
	attr   filetree.Attr
	names  map[Entry]string // their paths
	places []string         // where each byte of a file is
}

func (n *listed) paths() []string { return slices.Sorted(maps.Values(n.names)) }

func list(v View) listing {
	l := listing{map[filetree.NodeID]*listed{}}
	attr, err := v.Attr(filetree.RootNode)
	if err != nil {
		return l
	}
	l.nodes[filetree.RootNode] = &listed{attr: attr, names: map[Entry]string{{}: ""}}
	var walk func(dir filetree.NodeID, path string)
	walk = func(dir filetree.NodeID, path string) {
		for c, err := range v.Children(dir) {
			check(err)
			n := l.nodes[c.Node]
			if n == nil {
				n = &listed{attr: c.Attr, names: map[Entry]string{}}
				l.nodes[c.Node] = n
				if c.Attr.Kind == filetree.File {
					for _, p := range must(v.Parts(c.Node, 0, c.Attr.Size)) {
						for i := range p.Length {
							place := "hole"
							if p.Patch != nil {
								place = fmt.Sprintf("%x+%d", appendPatch(nil, p.Patch), int64(p.Offset)+i)
							} else if p.Pack != 0 {
								place = fmt.Sprintf("%d/%d+%d", p.Pack, p.Blob, int64(p.Offset)+i)
							}
							n.places = append(n.places, place)
						}
					}
				}
			}
			n.names[Entry{Dir: dir, Name: c.Name}] = joinPath(path, c.Name)
			if c.Attr.Kind == filetree.Dir {
				walk(c.Node, joinPath(path, c.Name))
			}
		}
	}
	walk(filetree.RootNode, "")
	return l
}

// changedBytes compares what is in two files, byte by byte.
func changedBytes(a, b *listed) (later int64, differ bool) {
	for i, p := range b.places {
		was := "hole"
		if i < len(a.places) {
			was = a.places[i]
		}
		if p != was {
			later++
		}
	}
	return later, !slices.Equal(a.places, b.places)
}

func aspects(a, b *listed) (Aspects, int64) {
	w := compareAttr(&a.attr, &b.attr)
	n, differ := changedBytes(a, b)
	if differ {
		w |= Content
	}
	return w, n
}

// differences compares two listings.
func differences(a, b listing) []string {
	type path struct {
		node *listed
		id   filetree.NodeID
		link bool
	}
	removed, added := map[string]path{}, map[string]path{}
	var all []Difference
	for _, id := range slices.Sorted(maps.Keys(merged(a.nodes, b.nodes))) {
		x, y := a.nodes[id], b.nodes[id]
		var lost, got, kept []string
		if x != nil {
			for e, p := range x.names {
				if y == nil || y.names[e] == "" && e.Dir != 0 {
					lost = append(lost, p)
				}
			}
		}
		if y != nil {
			for e, p := range y.names {
				if x == nil || x.names[e] == "" && e.Dir != 0 {
					got = append(got, p)
				} else {
					kept = append(kept, p)
				}
			}
		}
		slices.Sort(lost)
		slices.Sort(got)
		slices.Sort(kept)
		var what Aspects
		var bytes int64
		if x != nil && y != nil {
			what, bytes = aspects(x, y)
		}
		for len(lost) > 0 && len(got) > 0 {
			all = append(all, Difference{Change: Renamed, Path: got[0], From: lost[0], Node: id, What: what, Bytes: bytes})
			lost, got, what, bytes = lost[1:], got[1:], 0, 0
		}
		for _, p := range lost {
			removed[p] = path{x, id, y != nil}
		}
		for _, p := range got {
			added[p] = path{y, id, x != nil}
		}
		if what != 0 {
			all = append(all, Difference{Change: Modified, Path: kept[0], Node: id, What: what, Bytes: bytes})
		}
	}
	for p, r := range removed {
		n, ok := added[p]
		if !ok || n.node.attr.Kind != r.node.attr.Kind {
			all = append(all, Difference{Change: Removed, Path: p, Node: r.id, Link: r.link})
			continue
		}
		delete(added, p)
		if what, bytes := aspects(r.node, n.node); what != 0 {
			all = append(all, Difference{Change: Modified, Path: p, Node: n.id, What: what | Replaced, Bytes: bytes})
		}
	}
	for p, n := range added {
		all = append(all, Difference{Change: Added, Path: p, Node: n.id, Link: n.link})
	}
	slices.SortFunc(all, func(x, y Difference) int {
		if c := strings.Compare(x.Path, y.Path); c != 0 {
			return c
		}
		return int(x.Change) - int(y.Change)
	})
	var text []string
	for _, d := range all {
		text = append(text, describe(d))
	}
	return text
}

func merged[K comparable, V any](a, b map[K]V) map[K]V {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

func describe(d Difference) string {
	s := fmt.Sprintf("%d %q node %d", d.Change, d.Path, d.Node)
	if d.From != "" {
		s += fmt.Sprintf(" from %q", d.From)
	}
	if d.What != 0 {
		s += fmt.Sprintf(" %v, %d bytes", d.What.Names(), d.Bytes)
	}
	if d.Link {
		s += " a link"
	}
	return s
}

// A history is a source under random changes that leave a tree a tree.
type history struct {
	r      *rand.Rand
	db     *DB
	source Source
	v      View
	next   filetree.NodeID

	noPatches bool
}

func newHistory(t testing.TB, seed uint64) *history {
	db, source := open(t)
	h := &history{r: rand.New(rand.NewPCG(seed, 11)), db: db, source: source, next: 2}
	return h
}

// snapshot makes a few changes, and one more snapshot of them.
func (h *history) snapshot(seq uint64) {
	h.v = h.db.At(h.source.ID, seq)
	check(h.db.Begin())
	if seq == 1 {
		check(h.v.AddNode(filetree.RootNode, dirAttr))
		for range 12 {
			h.create()
		}
	}
	if h.r.IntN(10) == 0 {
		h.retell()
	}
	for range h.r.IntN(12) {
		h.change()
	}
	check(h.db.AddSnapshot(h.source.ID, Snapshot{Seq: seq, Time: filetree.Time{Sec: int64(seq)}, Info: []byte{}}))
	check(h.db.Commit())
}

// retell ends all and tells it anew, as a checkpoint after a gap does.
func (h *history) retell() {
	before := h.db.At(h.source.ID, h.v.seq-1)
	if h.v.seq == 1 {
		return
	}
	check(h.v.EndAll())
	for id, n := range list(before).nodes {
		check(h.v.AddNode(id, &n.attr))
		for e := range n.names {
			if e.Dir != 0 {
				check(h.v.AddEntry(e.Dir, e.Name, id))
			}
		}
		check(h.v.AddParts(id, 0, must(before.Parts(id, 0, n.attr.Size))))
	}
}

// pick returns a node of the tree as it is now, and one of its names.
func (h *history) pick(kind filetree.Kind) (id filetree.NodeID, n *listed, e Entry) {
	l := list(h.v)
	var all []filetree.NodeID
	for id, n := range l.nodes {
		if kind == 0 && id != filetree.RootNode || n.attr.Kind == kind {
			all = append(all, id)
		}
	}
	if len(all) == 0 {
		return 0, nil, e
	}
	slices.Sort(all)
	id = all[h.r.IntN(len(all))]
	n = l.nodes[id]
	names := slices.SortedFunc(maps.Keys(n.names), func(a, b Entry) int { return strings.Compare(n.names[a], n.names[b]) })
	return id, n, names[h.r.IntN(len(names))]
}

func (h *history) name() string { return []string{"a", "b", "c", "\xff", "d e"}[h.r.IntN(5)] }

// free makes sure that nothing has a name: a node goes with what is in it.
func (h *history) free(dir filetree.NodeID, name string) {
	n, err := h.v.Lookup(dir, name)
	if err == nil {
		h.remove(dir, name, n)
	}
}

func (h *history) remove(dir filetree.NodeID, name string, n filetree.NodeID) {
	var children []Child
	for c, err := range h.v.Children(n) {
		check(err)
		children = append(children, c)
	}
	for _, c := range children {
		h.remove(n, c.Name, c.Node)
	}
	if len(must(h.v.Entries(n, 0))) > 1 {
		check(h.v.RemoveEntry(dir, name, n))
		return
	}
	check(h.v.EndNode(n))
}

func (h *history) create() {
	dir, _, _ := h.pick(filetree.Dir)
	name := h.name()
	h.free(dir, name)
	n := h.next
	h.next++
	a := filetree.Attr{Kind: []filetree.Kind{filetree.File, filetree.File, filetree.Dir, filetree.Symlink}[h.r.IntN(4)], Mode: 0o644}
	if a.Kind == filetree.Symlink {
		a.Target = h.name()
	}
	check(h.v.AddNode(n, &a))
	check(h.v.AddEntry(dir, name, n))
	if a.Kind == filetree.File {
		h.write(n, &a)
	}
}

// write makes a few bytes of a file come from somewhere.
func (h *history) write(n filetree.NodeID, a *filetree.Attr) {
	off := h.r.Int64N(a.Size + 3)
	p := Part{Length: 1 + h.r.Int64N(20), Pack: PackID(int(h.v.seq)/2 + h.r.IntN(2) + 1), Blob: uint32(h.r.IntN(2)), Offset: uint32(h.r.IntN(3))}
	if h.r.IntN(4) == 0 && !h.noPatches {
		p.Patch = &Patch{Pack: p.Pack, Length: 3, ResultLength: 30, Base: []Part{{Length: 5}}}
		p.Pack, p.Blob = 0, 0
	}
	check(h.v.SetParts(n, off, []Part{p}))
	if off+p.Length > a.Size {
		a.Size = off + p.Length
		check(h.v.SetAttr(n, a))
	}
}

func (h *history) change() {
	switch h.r.IntN(10) {
	case 0, 1:
		h.create()
	case 2:
		id, _, e := h.pick(0)
		if id != 0 {
			h.remove(e.Dir, e.Name, id)
		}
	case 3, 4: // rename
		id, n, e := h.pick(0)
		dir, to, _ := h.pick(filetree.Dir)
		name := h.name()
		if id == 0 || n.attr.Kind == filetree.Dir && strings.HasPrefix(to.paths()[0]+"/", n.paths()[0]+"/") || e == (Entry{Dir: dir, Name: name}) {
			return
		}
		if there, err := h.v.Lookup(dir, name); err == nil && there != id {
			l := list(h.v)
			if strings.HasPrefix(n.names[e]+"/", l.nodes[there].names[Entry{Dir: dir, Name: name}]+"/") {
				return
			}
		}
		h.free(dir, name)
		if n := len(must(h.v.Entries(id, 0))); n == 0 {
			return // it was below, or the other name of it
		}
		check(h.v.RemoveEntry(e.Dir, e.Name, id))
		check(h.v.AddEntry(dir, name, id))
	case 5: // link
		id, _, _ := h.pick(filetree.File)
		dir, _, _ := h.pick(filetree.Dir)
		name := h.name()
		if _, err := h.v.Lookup(dir, name); id != 0 && err != nil {
			check(h.v.AddEntry(dir, name, id))
		}
	case 6: // attributes, also of the root
		id, n, _ := h.pick([]filetree.Kind{0, filetree.Dir}[h.r.IntN(2)])
		if id != 0 {
			switch h.r.IntN(4) {
			case 0:
				n.attr.Mode = uint32(h.r.IntN(3))
			case 1:
				n.attr.Mtime.Sec = h.r.Int64N(3)
			case 2:
				n.attr.Ctime.Sec++
			case 3:
				n.attr.UID = uint32(h.r.IntN(3))
			}
			check(h.v.SetAttr(id, &n.attr))
		}
	case 7, 8:
		if id, n, _ := h.pick(filetree.File); id != 0 {
			h.write(id, &n.attr)
		}
	case 9: // a hole, or a shorter file
		if id, n, _ := h.pick(filetree.File); id != 0 && n.attr.Size > 0 {
			from := h.r.Int64N(n.attr.Size)
			if h.r.IntN(2) == 0 {
				check(h.v.Punch(id, from, from+1+h.r.Int64N(5)))
				return
			}
			check(h.v.Punch(id, from, 1<<40))
			n.attr.Size = from
			check(h.v.SetAttr(id, &n.attr))
		}
	}
}

func since(t testing.TB, v View, seq uint64) []string {
	t.Helper()
	var got []string
	for d, err := range v.Since(t.Context(), seq) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, describe(d))
	}
	return got
}

// TestSince compares what it finds with two listings of all there is, for every pair of
// snapshots of random histories.
func TestSince(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			h := newHistory(t, seed)
			const last = 7
			lists := make([]listing, last+1)
			for seq := uint64(1); seq <= last; seq++ {
				h.snapshot(seq)
				lists[seq] = list(h.db.At(h.source.ID, seq))
			}
			for to := uint64(1); to <= last; to++ {
				for from := uint64(1); from <= to; from++ {
					want := differences(lists[from], lists[to])
					if diff := cmp.Diff(want, since(t, h.db.At(h.source.ID, to), from)); diff != "" {
						t.Fatalf("#%d to #%d (-listings +query):\n%s", from, to, diff)
					}
				}
			}
		})
	}
}

// TestSinceEnds breaks off, and asks again.
func TestSinceEnds(t *testing.T) {
	h := newHistory(t, 5)
	for seq := uint64(1); seq <= 4; seq++ {
		h.snapshot(seq)
	}
	v := h.db.At(h.source.ID, 4)
	want := since(t, v, 1)
	if len(want) < 2 {
		t.Fatal("too few differences")
	}
	for range v.Since(t.Context(), 1) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range v.Since(ctx, 1) {
		if err != context.Canceled {
			t.Errorf("cancelled: %v", err)
		}
	}
	if diff := cmp.Diff(want, since(t, v, 1)); diff != "" {
		t.Errorf("asked again (-want +got):\n%s", diff)
	}
}

// TestSinceDir expects that a directory of many files is one difference when it is
// renamed.
func TestSinceDir(t *testing.T) {
	db, source := open(t)
	v := db.At(source.ID, 1)
	check(v.AddNode(1, dirAttr))
	check(v.AddNode(2, dirAttr))
	check(v.AddEntry(1, "old", 2))
	for n := filetree.NodeID(3); n < 2000; n++ {
		check(v.AddNode(n, fileAttr))
		check(v.AddEntry(2, fmt.Sprint(n), n))
	}
	v = db.At(source.ID, 2)
	check(v.RemoveEntry(1, "old", 2))
	check(v.AddEntry(1, "new", 2))
	check(v.SetAttr(7, &filetree.Attr{Kind: filetree.File, Mode: 0o600}))
	want := []string{`4 "new" node 2 from "old"`, `3 "new/7" node 7 [mode], 0 bytes`}
	if diff := cmp.Diff(want, since(t, v, 1)); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
}

// manyRows makes a catalog to be kept, of so many files, of which few have changed since
// the first snapshot.
func manyRows(t testing.TB, files int) (*DB, Source) {
	db := must(Open(filepath.Join(t.TempDir(), "catalog.db"), Options{}))
	t.Cleanup(func() { db.Close() })
	source := must(db.AddSource("w", "s", "s"))
	check(db.Begin())
	v := db.At(source.ID, 1)
	l := must(v.NewLoader())
	check(l.SetAttr(1, dirAttr))
	for i := range files {
		n := filetree.NodeID(i + 2)
		dir := max(1, n-n%100)
		a := fileAttr
		if n%100 == 0 {
			a, dir = dirAttr, 1
		}
		check(l.SetAttr(n, a))
		check(l.AddEntry(dir, fmt.Sprint(n), n))
		if a == fileAttr {
			check(l.SetPart(n, 0, Part{Length: 100, Pack: PackID(1 + i/1000), Offset: uint32(i % 1000)}))
		}
	}
	check(l.Flush())
	check(db.AddSnapshot(source.ID, Snapshot{Seq: 1, Info: []byte{}}))
	check(db.Commit())
	for seq := uint64(2); seq <= 4; seq++ {
		check(db.Begin())
		v := db.At(source.ID, seq)
		for i := range filetree.NodeID(10) {
			n := 201 + i + 100*filetree.NodeID(seq)
			check(v.SetAttr(n, &filetree.Attr{Kind: filetree.File, Mode: 0o600}))
			check(v.SetParts(n, 50, []Part{{Length: 10, Pack: 1000 + PackID(seq)}}))
			check(v.EndNode(n + 20))
		}
		check(db.AddSnapshot(source.ID, Snapshot{Seq: seq, Info: []byte{}}))
		check(db.Commit())
	}
	return db, source
}

// TestOldCatalog expects that a catalog without the indexes answers all the same, and has
// them when it was opened to be written to.
func TestOldCatalog(t *testing.T) {
	db, source := manyRows(t, 1000)
	want := since(t, db.At(source.ID, 4), 1)
	check(db.Close())
	old := must(sqlite.OpenConn(db.Path(), sqlite.OpenReadWrite))
	for _, name := range []string{"nodes_born", "entries_born", "entries_died", "extents_born", "extents_died"} {
		check(sqlitex.ExecuteTransient(old, "DROP INDEX "+name, nil))
	}
	check(old.Close())
	for _, o := range []Options{{ReadOnly: true}, {}} {
		db := must(Open(db.Path(), o))
		if diff := cmp.Diff(want, since(t, db.At(source.ID, 4), 1)); diff != "" {
			t.Errorf("read only %v: differences (-want +got):\n%s", o.ReadOnly, diff)
		}
		plan := strings.Join(plans(db, "SELECT node FROM nodes WHERE node >> 40 = 1 AND born <> 1 AND born > 2"), "")
		if indexed := strings.Contains(plan, "nodes_born"); indexed == o.ReadOnly {
			t.Errorf("read only %v: %s", o.ReadOnly, plan)
		}
		check(db.Close())
	}
}

// plans returns how SQLite goes about a query, a line a step.
func plans(db *DB, query string) []string {
	db.mu.Lock()
	defer db.mu.Unlock()
	var steps []string
	check(db.query("EXPLAIN QUERY PLAN "+query, func(r *sqlite.Stmt) bool {
		steps = append(steps, columnString(r, 3))
		return true
	}))
	return steps
}

// TestPlans expects that questions about changes read an index, from where the changes
// begin, in a catalog of many rows.
func TestPlans(t *testing.T) {
	db, source := manyRows(t, 100_000)
	v := db.At(source.ID, 4)
	if got := since(t, v, 3); len(got) != 20 {
		t.Errorf("%d differences: %q", len(got), got)
	}
	d := &sinceRun{differ: newDiffer(db.At(source.ID, 3), v)}
	check(d.begin())
	defer func() { check(d.end()) }()
	for i, want := range []string{
		"SEARCH nodes USING COVERING INDEX nodes_born (<expr>=? AND born>? AND born<?)",
		"SEARCH entries USING INDEX entries_born (<expr>=? AND born>? AND born<?)",
		"SEARCH entries USING INDEX entries_died (<expr>=? AND died>? AND died<?)",
		"SEARCH extents USING INDEX extents_born (<expr>=? AND born>? AND born<?)",
		"SEARCH extents USING INDEX extents_died (<expr>=? AND died>? AND died<?)",
	} {
		if got := plans(db, diffQueries[i]); len(got) != 1 || got[0] != want {
			t.Errorf("query %d: %q, want %q", i, got, want)
		}
	}
}
