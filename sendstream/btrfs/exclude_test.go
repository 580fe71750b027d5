package btrfs

import (
	"bytes"
	"hash/fnv"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/sendtest"
)

// excludeRules are ways to exclude a part of any tree.
var excludeRules = map[string]func(path string, dir bool) bool{
	"path":     func(p string, _ bool) bool { return hash(p)%4 == 0 },
	"name":     func(p string, _ bool) bool { return hash(path.Base(p))%4 == 0 },
	"dirs":     func(p string, dir bool) bool { return dir && hash(p)%3 == 0 },
	"files":    func(p string, dir bool) bool { return !dir && hash(p)%3 == 0 },
	"top dirs": func(p string, dir bool) bool { return dir && !strings.Contains(p, "/") && hash(p)%2 == 0 },
	"o*":       func(p string, _ bool) bool { return strings.HasPrefix(path.Base(p), "o") },
	"all":      func(string, bool) bool { return true },
}

func hash(s string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(s))
	return h.Sum32() >> 8
}

// filtered returns m without what is excluded.
func filtered(t tester, m *sendtest.Model, e *excludes) *sendtest.Model {
	t.Helper()
	c := m.Copy()
	var out []string
	skip := "\x00"
	c.Walk(func(p string, n *sendtest.Node) {
		if p != "" && !strings.HasPrefix(p, skip+"/") && e.covers(p, n.Attr.Kind) {
			skip = p
			out = append(out, p)
		}
	})
	for _, p := range out {
		removePath(t, c, p)
	}
	return c
}

// removePath takes a path of m away with all below it, if it is there.
func removePath(t tester, m *sendtest.Model, p string) {
	t.Helper()
	dir, name := filetree.RootNode, p
	for {
		first, rest, ok := strings.Cut(name, "/")
		if !ok {
			break
		}
		n, _, err := m.Lookup(dir, first)
		if err != nil {
			return
		}
		dir, name = n, rest
	}
	if _, _, err := m.Lookup(dir, name); err != nil {
		return
	}
	if err := m.RemoveAll(dir, name); err != nil {
		t.Fatal(err)
	}
}

// byPath returns the nodes of m.
func byPath(m *sendtest.Model) map[string]*sendtest.Node {
	all := make(map[string]*sendtest.Node)
	m.Walk(func(p string, n *sendtest.Node) { all[p] = n })
	return all
}

// outsideOf returns the names that are excluded of nodes that kept has, too.
func outsideOf(all, kept *sendtest.Model) []outsider {
	names := byPath(kept)
	var list []outsider
	all.Walk(func(p string, n *sendtest.Node) {
		if names[p] == nil && n.Attr.Kind != filetree.Dir && kept.Node(n.ID) != nil {
			list = append(list, outsider{p, n.ID, n.Attr.Kind})
		}
	})
	return list
}

// TestExcludeCorpus applies every unit to its parent without what is excluded, and
// wants the result without what is excluded, but for what the Result says is not known.
func TestExcludeCorpus(t *testing.T) {
	var skipped, unknown, moved, outside, compared int
	forEachCase(t, func(t *testing.T, _ string, rs []recording) {
		r := newReplay()
		for _, rec := range rs {
			if rec.noData() {
				continue
			}
			stream := rec.stream(t)
			for unit, err := range NewUnits(bytes.NewReader(stream)).All() {
				if err != nil {
					t.Fatal(err)
				}
				truth := r.parent(unit)
				if truth == nil {
					break
				}
				parent := truth.Copy()
				if _, err := unit.Apply(t.Context(), truth, Options{}); err != nil {
					t.Fatal(err)
				}
				for name, rule := range excludeRules {
					e := &excludes{match: rule}
					m := filtered(t, parent, e)
					m.Snapshots = make(map[[16]byte]*sendtest.Model)
					for id, s := range r.snapshots {
						m.Snapshots[id] = filtered(t, s, e)
					}
					before := outsideOf(parent, m)
					outside += len(before)
					res, err := unitAt(t, stream, unit.Offset).Apply(t.Context(), m,
						Options{Excluded: rule, Outside: encodeOutside(before)})
					if err != nil {
						t.Errorf("%s without %s: %v", rec.name, name, err)
						continue
					}
					if res.Skipped > 0 {
						skipped++
					}
					unknown += len(res.Unknown)
					moved += len(res.Moved)
					c := excludedCase{e: e, before: parent, after: truth, got: m, res: res}
					c.compare(t, rec.name+" without "+name)
					names, there := byPath(truth), byPath(m)
					for _, u := range res.Unknown {
						if there[u] == nil && parent.Node(names[u].ID) == nil {
							t.Errorf("%s without %s: all of %q came, and it is not known", rec.name, name, u)
						}
					}
					compared += m.Len()
				}
				r.snapshots[unit.UUID] = truth
			}
		}
	})
	t.Logf("%d nodes compared, %d units with skipped data, %d unknown paths, %d moved directories, %d names outside",
		compared, skipped, unknown, moved, outside)
	if skipped == 0 || unknown == 0 || moved == 0 || outside == 0 {
		t.Error("the test tests nothing")
	}
}

// unitAt returns the unit of stream at an offset.
func unitAt(t *testing.T, stream []byte, offset int64) *Unit {
	t.Helper()
	for unit, err := range NewUnits(bytes.NewReader(stream)).All() {
		if err != nil {
			t.Fatal(err)
		}
		if unit.Offset == offset {
			return unit
		}
	}
	t.Fatalf("no unit at %d", offset)
	return nil
}

// An excludedCase is a unit that was applied to a tree without what is excluded.
type excludedCase struct {
	e             *excludes
	before, after *sendtest.Model // the whole trees
	got           *sendtest.Model
	res           Result
	missing       bool // set by compare: something is not there and not in Unknown
}

// compare compares what there is with what should be there. Missing may be what the
// Result has in Unknown, and what was excluded before a directory above it was moved.
func (c *excludedCase) compare(t tester, what string) {
	t.Helper()
	want := filtered(t, c.after, c.e)
	got, there := byPath(c.got), byPath(c.after)
	for _, u := range c.res.Unknown {
		if there[u] == nil {
			t.Errorf("%s: unknown path %q is not in the snapshot", what, u)
		}
		if got[u] == nil {
			removePath(t, want, u)
		}
	}
	wasKept := filtered(t, c.before, c.e)
	var gone []string
	want.Walk(func(p string, n *sendtest.Node) {
		if got[p] != nil || wasKept.Node(n.ID) != nil || c.before.Node(n.ID) == nil {
			return
		}
		for _, m := range c.res.Moved {
			if strings.HasPrefix(p, m+"/") {
				gone = append(gone, p)
			}
		}
	})
	for _, p := range gone {
		c.missing = true
		removePath(t, want, p)
	}
	lines := func(m *sendtest.Model) map[string]string {
		byPath := make(map[string]string)
		for _, l := range m.Lines() {
			byPath[unquotePath(l)] = l
		}
		return byPath
	}
	g, w := lines(c.got), lines(want)
	for p, l := range w {
		if g[p] != l && !slices.Contains(c.res.Unknown, p) {
			t.Errorf("%s:\nhave %q\nwant %q", what, g[p], l)
		}
	}
	for p, l := range g {
		if _, ok := w[p]; !ok {
			t.Errorf("%s:\nhave %q\nwant nothing", what, l)
		}
	}
	c.compareOutside(t, what, want)
}

// compareOutside compares the names outside that are handed on with those there are. Those
// that are no longer excluded, but below what is not known, count for no name.
func (c *excludedCase) compareOutside(t tester, what string, want *sendtest.Model) {
	t.Helper()
	got, there := byPath(c.got), byPath(c.after)
	ids := make(map[filetree.NodeID]filetree.NodeID) // of the whole tree, by those there are
	want.Walk(func(p string, n *sendtest.Node) {
		if got[p] != nil {
			ids[got[p].ID] = n.ID
		}
	})
	list := make(map[string]filetree.NodeID)
	err := decodeOutside(c.res.Outside, func(o outsider) error {
		switch {
		case o.node == 0 && (!slices.Contains(c.res.Unknown, o.path) || got[o.path] != nil):
			t.Errorf("%s: %q is handed on as not known", what, o.path)
		case o.node == 0:
		case got[o.path] != nil && !slices.Contains(c.res.Unknown, o.path):
			t.Errorf("%s: the content of %q is handed on as not known", what, o.path)
		case got[o.path] != nil:
		case there[o.path] == nil || there[o.path].ID != ids[o.node] || there[o.path].Attr.Kind != o.kind:
			t.Errorf("%s: %q is not a name of node %d", what, o.path, o.node)
		default:
			list[o.path] = o.node
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range outsideOf(c.after, want) {
		if list[o.path] == 0 {
			t.Errorf("%s: %q, a name of a file that is kept, is not handed on", what, o.path)
		}
	}
}
