package catalog

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

// TestUsage compares it with what listings of all snapshots show: each byte of a blob is
// the file's that was the first to have it.
func TestUsage(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			h := newHistory(t, seed)
			h.noPatches = true
			const last = 6
			for i := range 8 {
				check2(h.db.AddPack(Pack{SHA: [32]byte{byte(i)}, Size: 100, Blobs: []Blob{{10, 20}, {20, 20}}}))
			}
			owner := map[string]filetree.NodeID{}
			names := map[filetree.NodeID]Entry{} // the last
			alive := map[filetree.NodeID]bool{}
			var want Totals
			versions := map[string]bool{}
			for seq := uint64(1); seq <= last; seq++ {
				h.snapshot(seq)
				l := list(h.db.At(h.source.ID, seq))
				clear(alive)
				want.Files, want.Newest = 0, 0
				for _, id := range slices.Sorted(maps.Keys(l.nodes)) {
					n := l.nodes[id]
					alive[id] = true
					names[id] = slices.SortedFunc(maps.Keys(n.names), func(a, b Entry) int {
						return cmp.Or(cmp.Compare(a.Dir, b.Dir), cmp.Compare(a.Name, b.Name))
					})[0]
					for _, place := range n.places {
						if owner[place] == 0 && place != "hole" {
							owner[place] = id
						}
					}
					if n.attr.Kind == filetree.File {
						want.Files++
						want.Newest += n.attr.Size
						want.All += n.attr.Size
						versions[fmt.Sprint(id, n.attr)] = true
					}
				}
			}
			plain, sums := map[filetree.NodeID]int64{}, map[filetree.NodeID]int64{}
			for _, id := range owner {
				plain[id]++
				for d := names[id].Dir; d != 0; d = names[d].Dir {
					sums[d]++
				}
			}
			path := func(id filetree.NodeID) string {
				p := ""
				for at := id; names[at].Dir != 0; at = names[at].Dir {
					p = joinPath(names[at].Name, p)
					if at == id {
						p = names[at].Name
					}
				}
				return p
			}
			files, dirs, err := h.db.Usage(t.Context(), h.source.ID, 1000)
			check(err)
			for id, n := range plain {
				i := slices.IndexFunc(files, func(u Usage) bool { return u.Node == id })
				if i < 0 || files[i].Plain != n || files[i].Path != path(id) || files[i].Gone == alive[id] ||
					files[i].Stored < (n-2)/2 || files[i].Stored > n+1 {
					t.Errorf("file %d, %q: %d bytes: %+v", id, path(id), n, files)
				}
			}
			for _, d := range dirs {
				if d.Plain != sums[d.Node] || d.Path != path(d.Node) || d.Gone == alive[d.Node] {
					t.Errorf("directory %q of %d bytes: %+v", path(d.Node), sums[d.Node], d)
				}
			}
			for _, list := range [][]Usage{files, dirs} {
				if !slices.IsSortedFunc(list, func(a, b Usage) int { return cmp.Compare(b.Stored, a.Stored) }) {
					t.Errorf("not sorted: %+v", list)
				}
			}
			few, _, err := h.db.Usage(t.Context(), h.source.ID, 2)
			check(err)
			if diff := gocmp.Diff(files[:min(2, len(files))], few); diff != "" {
				t.Errorf("two files (-of all +asked for):\n%s", diff)
			}
			got := must(h.db.Totals(t.Context(), h.source.ID))
			if got.Versions < int64(len(versions)) {
				t.Errorf("%d versions, want %d and those that were as before", got.Versions, len(versions))
			}
			got.Versions = 0
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("totals (-want +got):\n%s", diff)
			}
		})
	}
}

func check2[T any](_ T, err error) { check(err) }

// TestUsageDirs shares a blob among files, patches among them, and leaves out directories
// that say nothing.
func TestUsageDirs(t *testing.T) {
	db, source := open(t)
	for i := range 3 {
		id := must(db.AddPack(Pack{SHA: [32]byte{byte(i)}, Size: 1000, Blobs: []Blob{{500, 1000}, {100, 100}}}))
		check2(db.Tell(source.ID, id))
	}
	v := db.At(source.ID, 1)
	check(v.AddNode(1, dirAttr))
	dir := func(parent, n filetree.NodeID, name string) {
		check(v.AddNode(n, dirAttr))
		check(v.AddEntry(parent, name, n))
	}
	file := func(parent, n filetree.NodeID, name string, parts ...Part) {
		check(v.AddNode(n, &filetree.Attr{Kind: filetree.File, Size: 1000}))
		check(v.AddEntry(parent, name, n))
		check(v.AddParts(n, 0, parts))
	}
	dir(1, 2, "outer")
	dir(2, 3, "inner")
	dir(3, 4, "x")
	file(4, 10, "a", Part{Length: 400, Pack: 1})
	file(3, 11, "b", Part{Length: 600, Pack: 1, Offset: 400})
	file(1, 12, "copy", Part{Length: 1000, Pack: 1})
	check(db.AddSnapshot(source.ID, Snapshot{Seq: 1, Info: []byte{}}))
	v = db.At(source.ID, 2)
	check(v.SetParts(12, 0, []Part{{Length: 100, Patch: &Patch{Pack: 2, Blob: 1, Length: 60, ResultLength: 100, Base: []Part{{Length: 100, Pack: 1}}}}}))
	check(v.EndNode(10))
	check(db.AddSnapshot(source.ID, Snapshot{Seq: 2, Info: []byte{}}))
	files, dirs, err := db.Usage(t.Context(), source.ID, 10)
	check(err)
	wantFiles := []Usage{{"outer/inner/b", 11, 600, 300, false}, {"outer/inner/x/a", 10, 400, 200, true}, {"copy", 12, 60, 60, false}}
	if diff := gocmp.Diff(wantFiles, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	wantDirs := []Usage{{"outer/inner", 3, 1000, 500, false}, {"outer/inner/x", 4, 400, 200, false}}
	if diff := gocmp.Diff(wantDirs, dirs); diff != "" {
		t.Errorf("directories (-want +got):\n%s", diff)
	}
	want := Totals{Packs: 3, PackBytes: 3000, Files: 2, Newest: 2000, Versions: 3, All: 5000}
	if diff := gocmp.Diff(want, must(db.Totals(t.Context(), source.ID))); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
	if packs, bytes, err := db.PackTotals(); packs != 3 || bytes != 3000 || err != nil {
		t.Error(packs, bytes, err)
	}
}
