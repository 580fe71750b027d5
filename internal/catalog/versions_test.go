package catalog

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

func describeVersion(x Version) string {
	s := fmt.Sprintf("#%d %q size %d", x.Seq, x.Path, x.Attr.Size)
	if x.From != "" {
		s += fmt.Sprintf(" from %q", x.From)
	}
	if x.Created {
		s += " created"
	}
	if x.Removed {
		s += " removed"
	}
	return s + fmt.Sprintf(" %v %d bytes, %d stored, got %q, lost %q, +%d -%d", x.What.Names(), x.Bytes, x.Stored, x.Got, x.Lost, x.Added, x.Gone)
}

// versions works out what became of a node from listings of all there is.
func versions(lists []listing, n filetree.NodeID, prefer string, first map[PackID]int) []string {
	var all []string
	for seq := 1; seq < len(lists); seq++ {
		a, b := lists[seq-1].nodes[n], lists[seq].nodes[n]
		if a == nil && b == nil {
			continue
		}
		of := func(n *listed) string {
			if slices.Contains(n.paths(), prefer) {
				return prefer
			}
			return n.paths()[0]
		}
		x := Version{Seq: uint64(seq), Created: a == nil}
		if b == nil {
			x.Removed, x.Path, x.Attr = true, of(a), a.attr
			all = append(all, describeVersion(x))
			continue
		}
		x.Path, x.Attr = of(b), b.attr
		if a != nil {
			if x.What, x.Bytes = aspects(a, b); of(a) != x.Path {
				x.From = of(a)
			}
		} else {
			a = &listed{}
		}
		for e, p := range b.names {
			if _, ok := a.names[e]; !ok && p != x.Path {
				x.Got = append(x.Got, p)
			}
		}
		for e, p := range a.names {
			if _, ok := b.names[e]; !ok && p != x.From {
				x.Lost = append(x.Lost, p)
			}
		}
		slices.Sort(x.Got)
		slices.Sort(x.Lost)
		stored := map[string]bool{}
		for _, place := range b.places {
			var q PackID
			if _, err := fmt.Sscanf(place, "%d/", &q); err == nil && first[q] == seq {
				stored[place] = true
			}
		}
		x.Stored = int64(len(stored))
		entries := func(l listing) map[string]bool {
			m := map[string]bool{}
			for id, c := range l.nodes {
				for e := range c.names {
					if e.Dir == n {
						m[fmt.Sprint(id, e.Name)] = true
					}
				}
			}
			return m
		}
		was, is := entries(lists[seq-1]), entries(lists[seq])
		for e := range is {
			if !was[e] {
				x.Added++
			}
		}
		for e := range was {
			if !is[e] {
				x.Gone++
			}
		}
		if x.Created || x.From != "" || x.What != 0 || len(x.Got)+len(x.Lost)+x.Added+x.Gone > 0 {
			all = append(all, describeVersion(x))
		}
	}
	return all
}

// TestVersions compares the versions of every node with those that listings of all
// snapshots show, and who had its path with the same.
func TestVersions(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			h := newHistory(t, seed)
			h.noPatches = true // whose bytes are not those of the file
			const last = 8
			lists := make([]listing, last+1)
			lists[0] = listing{}
			nodes := map[filetree.NodeID]bool{}
			first := map[PackID]int{}
			for seq := 1; seq <= last; seq++ {
				h.snapshot(uint64(seq))
				lists[seq] = list(h.db.At(h.source.ID, uint64(seq)))
				for id, n := range lists[seq].nodes {
					nodes[id] = true
					for _, place := range n.places {
						var q PackID
						if _, err := fmt.Sscanf(place, "%d/", &q); err == nil && first[q] == 0 {
							first[q] = seq
						}
					}
				}
			}
			v := h.db.At(h.source.ID, last)
			paths := map[string]bool{}
			for _, id := range slices.Sorted(maps.Keys(nodes)) {
				prefer := ""
				for _, l := range lists {
					if n := l.nodes[id]; n != nil {
						prefer = n.paths()[h.r.IntN(len(n.names))]
						paths[prefer] = true
					}
				}
				var got []string
				for _, x := range must(v.Versions(t.Context(), id, prefer)) {
					got = append(got, describeVersion(x))
				}
				if diff := cmp.Diff(versions(lists, id, prefer, first), got); diff != "" {
					t.Fatalf("node %d, %q (-listings +versions):\n%s", id, prefer, diff)
				}
			}
			for path := range paths {
				var want []Holder
				for seq := uint64(1); seq <= last; seq++ {
					n, err := h.db.At(h.source.ID, seq).Resolve(split(path))
					k := len(want) - 1
					switch {
					case err != nil:
						if k >= 0 && want[k].To == 0 {
							want[k].To = seq
						}
					case k < 0 || want[k].To != 0 || want[k].Node != n:
						if k >= 0 && want[k].To == 0 {
							want[k].To = seq
						}
						want = append(want, Holder{n, seq, 0})
					}
				}
				if diff := cmp.Diff(want, must(v.Holders(split(path)))); diff != "" {
					t.Fatalf("%q (-states +holders):\n%s", path, diff)
				}
			}
		})
	}
}

func split(path string) []string {
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

// TestStored counts what a patch and slices have brought, each once.
func TestStored(t *testing.T) {
	db, source := open(t)
	v := db.At(source.ID, 1)
	check(v.AddNode(1, dirAttr))
	for n, name := range map[filetree.NodeID]string{5: "a", 6: "b"} {
		check(v.AddNode(n, &filetree.Attr{Kind: filetree.File, Size: 1000}))
		check(v.AddEntry(1, name, n))
		check(v.AddParts(n, 0, []Part{{Length: 300, Pack: 1}, {Length: 300, Pack: 1}, {Length: 300, Pack: 1, Blob: 1}}))
	}
	v = db.At(source.ID, 2)
	patch := &Patch{Pack: 2, Length: 17, ResultLength: 100, Base: []Part{{Length: 100, Pack: 1}}}
	check(v.SetParts(5, 0, []Part{{Length: 100, Patch: patch}}))
	v = db.At(source.ID, 3)
	check(v.SetParts(5, 50, []Part{{Length: 10, Pack: 3}})) // what is left of the patch is no news
	check(v.SetParts(6, 0, []Part{{Length: 100, Patch: patch}}))
	var got []string
	for _, n := range []filetree.NodeID{5, 6} {
		for _, x := range must(v.Versions(t.Context(), n, "")) {
			got = append(got, fmt.Sprintf("%d #%d %d %d", n, x.Seq, x.Bytes, x.Stored))
		}
	}
	want := []string{"5 #1 0 600", "5 #2 100 17", "5 #3 10 10", "6 #1 0 600", "6 #3 100 0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("node, snapshot, changed, stored (-want +got):\n%s", diff)
	}
}

// TestSpans compares ranges with a set of numbers.
func TestSpans(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var s spans
		set := map[int64]bool{}
		for range 30 {
			from := r.Int64N(60)
			to := from + r.Int64N(10)
			want := int64(0)
			for i := from; i < to; i++ {
				if !set[i] {
					set[i] = true
					want++
				}
			}
			if got := s.add(from, to); got != want {
				t.Fatalf("[%d, %d): %d, want %d; %v", from, to, got, want, s)
			}
			for i := range s[:max(len(s)-1, 0)] {
				if s[i].to >= s[i+1].from {
					t.Fatalf("not apart: %v", s)
				}
			}
		}
	}
}

// TestVersionPlans expects that one version of a file takes no more than its own rows.
func TestVersionPlans(t *testing.T) {
	db, source := manyRows(t, 100_000)
	v := db.At(source.ID, 3)
	for query, want := range map[string]string{
		v.begunQuery(): "SEARCH extents USING INDEX extents_born (<expr>=? AND born=? AND node=? AND off>?)",
		v.endedQuery(): "SEARCH extents USING INDEX extents_died (<expr>=? AND died=? AND node=? AND off>?)",
		v.addedQuery(): "SEARCH a USING INDEX entries_born (<expr>=? AND born=? AND dir=?)",
		v.goneQuery():  "SEARCH a USING INDEX entries_died (<expr>=? AND died=? AND dir=?)",
	} {
		if got := plans(db, query); got[0] != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}
