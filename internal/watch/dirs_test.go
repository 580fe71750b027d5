package watch

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestDirs compares dirs with a map from descriptors to places.
func TestDirs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type place struct {
			parent int32 // a descriptor; 0: adrift
			name   string
		}
		d := newDirs()
		d.add(1)
		model := map[int32]place{1: {}}
		wds := int32(1)
		pick := func(t *rapid.T, what string) int32 {
			return rapid.SampledFrom(slices.Sorted(maps.Keys(model))).Draw(t, what)
		}
		number := func(wd int32) int32 {
			n, ok := d.byWD[wd]
			if !ok {
				t.Fatalf("descriptor %d is not known", wd)
			}
			return n
		}
		var path func(wd int32) (string, bool)
		path = func(wd int32) (string, bool) {
			if wd == 1 {
				return "", true
			}
			p := model[wd]
			if p.parent == 0 {
				return "", false
			}
			up, ok := path(p.parent)
			return join(up, p.name), ok
		}
		within := func(wd, top int32) bool {
			for ; wd != 0; wd = model[wd].parent {
				if wd == top {
					return true
				}
			}
			return false
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if d.len() != len(model) {
					t.Fatalf("%d, want %d", d.len(), len(model))
				}
				adrift := 0
				for wd, p := range model {
					n := number(wd)
					gotPath, gotOK := d.pathTo(n)
					wantPath, wantOK := path(wd)
					if gotOK != wantOK || wantOK && gotPath != wantPath {
						t.Fatalf("path %q %t, want %q %t", gotPath, gotOK, wantPath, wantOK)
					}
					if wantOK && d.find(wantPath) != n {
						t.Fatalf("%q is not found", wantPath)
					}
					if p.parent != 0 && d.lookup(number(p.parent), p.name) != n {
						t.Fatalf("%d is not in its place", wd)
					}
					if _, ok := d.adrift[n]; ok != (p.parent == 0 && wd != 1) {
						t.Fatalf("%d adrift: %t", wd, ok)
					} else if ok {
						adrift++
					}
					// What is in it, by the list.
					var want, got []string
					for _, c := range model {
						if c.parent == wd {
							want = append(want, c.name)
						}
					}
					for c := d.all[n].first; c != 0; c = d.all[c].next {
						got = append(got, d.all[c].name)
					}
					slices.Sort(want)
					slices.Sort(got)
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("in %d (-want +got):\n%s", wd, diff)
					}
				}
				if adrift != len(d.adrift) {
					t.Fatalf("%d adrift, want %d", len(d.adrift), adrift)
				}
			},
			"add": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "n") {
					wds++
					d.add(wds)
					model[wds] = place{}
				}
			},
			"link": func(t *rapid.T) {
				wd, parent := pick(t, "wd"), pick(t, "parent")
				if wd == 1 || within(parent, wd) {
					if wd != 1 && !d.within(number(parent), number(wd)) {
						t.Fatal("within differs")
					}
					return
				}
				name := fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "name"))
				for o, p := range model {
					if p == (place{parent, name}) {
						model[o] = place{}
					}
				}
				model[wd] = place{parent, name}
				d.link(number(wd), number(parent), name)
			},
			"cut": func(t *rapid.T) {
				if wd := pick(t, "wd"); wd != 1 {
					model[wd] = place{}
					d.cut(number(wd))
				}
			},
			"remove": func(t *rapid.T) {
				wd := pick(t, "wd")
				if wd == 1 {
					return
				}
				d.remove(number(wd))
				delete(model, wd)
				for o, p := range model {
					if p.parent == wd {
						model[o] = place{}
					}
				}
			},
		})
	})
}
