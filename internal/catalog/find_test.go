package catalog

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

func TestPattern(t *testing.T) {
	for _, tt := range []struct {
		pattern string
		fold    bool
		yes, no []string
	}{
		{"a", false, []string{"a", "b/a"}, []string{"A", "a/b", "ab", ""}},
		{"*.txt", false, []string{"x.txt", "d/e/.txt"}, []string{"x.txt/y", "x.TXT"}},
		{"*.TXT", true, []string{"x.txt", "x.Txt"}, []string{"x.tx"}},
		{"[ab]?", false, []string{"ax", "c/b\xff"}, []string{"a", "cx"}},
		{"d/*", false, []string{"d/x"}, []string{"d", "d/x/y", "e/d/x"}},
		{"/x", false, []string{"x"}, []string{"d/x"}},
		{"**/x", false, []string{"x", "d/x", "d/e/x"}, []string{"x/d", "dx"}},
		{"d/**", false, []string{"d/x", "d/x/y", "d"}, []string{"e/d", "dx"}},
		{"d/**/x", false, []string{"d/x", "d/e/x", "d/e/f/x", "d/x/x"}, []string{"d", "e/x", "d/xe"}},
		{"**/a/**/b", false, []string{"a/b", "x/a/y/b", "a/a/x/b"}, []string{"a", "b/a", "a/b/c"}},
		{"D/É*", true, []string{"d/éa"}, []string{"d/e"}},
	} {
		p := must(ParsePattern(tt.pattern, tt.fold))
		for _, name := range tt.yes {
			if !p.Match(name) {
				t.Errorf("%q does not match %q", tt.pattern, name)
			}
			if base := name[strings.LastIndexByte(name, '/')+1:]; !p.matchName(base) {
				t.Errorf("%q passes by the name %q", tt.pattern, base)
			}
		}
		for _, name := range tt.no {
			if p.Match(name) {
				t.Errorf("%q matches %q", tt.pattern, name)
			}
		}
	}
	for _, bad := range []string{"[a", "d/[", `x\`} {
		if _, err := ParsePattern(bad, false); err != path.ErrBadPattern {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestFind compares what it finds with listings of all there is.
func TestFind(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			h := newHistory(t, seed)
			const last = 8
			lists := make([]map[string]filetree.NodeID, last+1)
			entries := make([]map[string]string, last+1) // by directory, name and node, the path
			for seq := uint64(1); seq <= last; seq++ {
				h.snapshot(seq)
				lists[seq], entries[seq] = map[string]filetree.NodeID{}, map[string]string{}
				for id, n := range list(h.db.At(h.source.ID, seq)).nodes {
					for e, p := range n.names {
						lists[seq][p] = id
						entries[seq][fmt.Sprint(e, id)] = p
					}
				}
			}
			for _, pattern := range []string{"*", "a", "**/[ab]/*", "c/*"} {
				p := must(ParsePattern(pattern, false))
				for seq := uint64(1); seq <= last; seq++ {
					v := h.db.At(h.source.ID, seq)
					matches := func(deleted bool) (all []string) {
						for m, err := range v.Find(t.Context(), p, deleted) {
							check(err)
							all = append(all, fmt.Sprintf("%q node %d last #%d now %q", m.Path, m.Node, m.Last, m.Now))
						}
						return all
					}
					want, gone := map[string]string{}, map[string]string{}
					for path, id := range lists[seq] {
						if path != "" && p.Match(path) {
							want[path] = fmt.Sprintf("%q node %d last #0 now []", path, id)
						}
					}
					for s := uint64(2); s <= seq; s++ {
						for e, path := range entries[s-1] {
							if _, still := entries[s][e]; !still && lists[seq][path] == 0 && p.Match(path) {
								gone[path] = ""
							}
						}
					}
					for path := range gone {
						n := seq
						for lists[n][path] == 0 {
							n--
						}
						id := lists[n][path]
						now := []string{}
						for p, other := range lists[seq] {
							if other == id {
								now = append(now, p)
							}
						}
						slices.Sort(now)
						gone[path] = fmt.Sprintf("%q node %d last #%d now %q", path, id, n, now)
					}
					for deleted, want := range map[bool]map[string]string{false: want, true: gone} {
						var all []string
						for _, path := range slices.Sorted(maps.Keys(want)) {
							all = append(all, want[path])
						}
						if diff := cmp.Diff(all, matches(deleted)); diff != "" {
							t.Fatalf("%s at #%d, deleted %v (-listings +found):\n%s", pattern, seq, deleted, diff)
						}
					}
				}
			}
		})
	}
}

// TestFindPlans expects that what ended is found without what did not.
func TestFindPlans(t *testing.T) {
	db, source := manyRows(t, 100_000)
	v := db.At(source.ID, 4)
	n := 0
	for m, err := range v.Find(t.Context(), must(ParsePattern("*", false)), true) {
		check(err)
		if n++; m.Last != uint64(m.Node-221)/100%10-1 {
			t.Errorf("%+v", m)
		}
	}
	if n != 30 {
		t.Errorf("%d files are found", n)
	}
	if got := plans(db, v.deletedQuery()); len(got) != 1 || !strings.HasPrefix(got[0], "SEARCH entries USING INDEX entries_died (<expr>=? AND ") {
		t.Errorf("%q", got)
	}
}
