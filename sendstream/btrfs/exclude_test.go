package btrfs

import (
	"bytes"
	"hash/fnv"
	"path"
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
	type entry struct {
		dir  filetree.NodeID
		name string
	}
	var out []entry
	skip := "\x00"
	c.Walk(func(p string, n *sendtest.Node) {
		if p == "" || strings.HasPrefix(p, skip+"/") || !e.covers(p, n.Attr.Kind) {
			return
		}
		skip = p
		dir, name := filetree.RootNode, p
		for {
			first, rest, ok := strings.Cut(name, "/")
			if !ok {
				break
			}
			dir, name = c.Node(dir).Entries[first], rest
		}
		out = append(out, entry{dir, name})
	})
	for _, o := range out {
		if err := c.RemoveAll(o.dir, o.name); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestExcludeCorpus applies every unit to its parent without what is excluded, and
// wants the result without what is excluded. Where the Result says that the caller
// has to look for himself, the trees may differ.
func TestExcludeCorpus(t *testing.T) {
	var skipped, unknown, moved, compared int
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
					res, err := unitAt(t, stream, unit.Offset).Apply(t.Context(), m,
						Options{Excluded: rule, Remove: m.RemoveAll})
					if err != nil {
						t.Errorf("%s without %s: %v", rec.name, name, err)
						continue
					}
					if res.Skipped > 0 {
						skipped++
					}
					unknown += len(res.Unknown)
					moved += len(res.Moved)
					compared += compareExcluded(t, rec.name+" without "+name, m, filtered(t, truth, e), truth, res,
						partlyExcluded(e, parent, truth))
				}
				r.snapshots[unit.UUID] = truth
			}
		}
	})
	t.Logf("%d lines compared, %d units with skipped data, %d unknown paths, %d moved directories",
		compared, skipped, unknown, moved)
	if skipped == 0 || unknown == 0 || moved == 0 {
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

// partlyExcluded returns the paths of files of which another name is excluded. The
// stream may speak of them by that name alone: see BUG in the package comment.
func partlyExcluded(e *excludes, trees ...*sendtest.Model) map[string]bool {
	ids := make(map[filetree.NodeID]bool)
	for _, m := range trees {
		m.Walk(func(p string, n *sendtest.Node) {
			if n.Nlink > 1 && e.covers(p, n.Attr.Kind) {
				ids[n.ID] = true
			}
		})
	}
	paths := make(map[string]bool)
	for _, m := range trees {
		m.Walk(func(p string, n *sendtest.Node) {
			if ids[n.ID] {
				paths[p] = true
			}
		})
	}
	return paths
}

func compareExcluded(t tester, what string, got, want, all *sendtest.Model, res Result, ignore map[string]bool) int {
	t.Helper()
	unsure := func(p string) bool {
		for _, u := range res.Unknown {
			if p == u || strings.HasPrefix(p, u+"/") {
				return true
			}
		}
		for _, m := range res.Moved {
			if strings.HasPrefix(p, m+"/") {
				return true
			}
		}
		return ignore[p]
	}
	// The number of links is not known if one of them is not.
	unsureIDs := make(map[filetree.NodeID]bool)
	want.Walk(func(p string, n *sendtest.Node) {
		if unsure(p) {
			unsureIDs[n.ID] = true
		}
	})
	want.Walk(func(p string, n *sendtest.Node) {
		if n.Attr.Kind != filetree.Dir && unsureIDs[n.ID] {
			ignore[p] = true
		}
	})
	lines := func(m *sendtest.Model) map[string]string {
		byPath := make(map[string]string)
		for _, l := range m.Lines() {
			byPath[unquotePath(l)] = l
		}
		return byPath
	}
	g, w := lines(got), lines(want)
	for p, l := range w {
		if !unsure(p) && g[p] != l {
			t.Errorf("%s:\nhave %q\nwant %q", what, g[p], l)
		}
	}
	for p, l := range g {
		if _, ok := w[p]; !ok && !unsure(p) {
			t.Errorf("%s:\nhave %q\nwant nothing", what, l)
		}
	}
	there := lines(all)
	for _, u := range res.Unknown {
		if _, ok := there[u]; !ok {
			t.Errorf("%s: unknown path %q is not in the snapshot", what, u)
		}
	}
	return len(w)
}
