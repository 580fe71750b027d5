package zfs

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// apply brings the units of a stream into a tree, each whole or not at all.
func apply(t testing.TB, m *modelTree, stream []byte) (*modelTree, error) {
	t.Helper()
	units := NewUnits(bytes.NewReader(stream))
	for {
		u, err := units.Next()
		if err == io.EOF {
			return m, nil
		}
		if err != nil {
			return m, err
		}
		if m, err = applyUnit(t, m, u); err != nil {
			return m, err
		}
	}
}

func applyUnit(t testing.TB, m *modelTree, u *Unit) (*modelTree, error) {
	t.Helper()
	next := m.clone()
	next.volume = u.ObjectSet == Volume
	_, err := u.Apply(t.Context(), next)
	if len(next.broken) > 0 {
		t.Fatalf("%s: %q", u.Name, next.broken)
	}
	if err != nil {
		return m, err
	}
	if wrong := next.check(); len(wrong) > 0 {
		t.Fatalf("%s: %q", u.Name, wrong)
	}
	return next, nil
}

// sameAgain expects that a full stream that made m makes the same on top of it, whether
// what is kept is there or lost, of the same nodes.
func sameAgain(t testing.TB, m *modelTree, stream []byte) {
	t.Helper()
	for _, lost := range []bool{false, true} {
		again := m.clone()
		if lost {
			again.forget()
		}
		again, err := apply(t, again, stream)
		if err != nil {
			t.Fatalf("lost=%v: %v", lost, err)
		}
		if diff := gocmp.Diff(m.dump(), again.dump()); diff != "" {
			t.Fatalf("lost=%v (-first +again):\n%s", lost, diff)
		}
		if again.next != m.next {
			t.Errorf("lost=%v: %d new nodes", lost, again.next-m.next)
		}
		if diff := gocmp.Diff(m.kept, again.kept); diff != "" {
			t.Errorf("lost=%v: kept (-first +again):\n%s", lost, diff)
		}
	}
}

// TestApplyCorpus applies every recorded stream of one dataset that there are bases for.
// What they make is compared with manifests in internal/backup; here trees are trees, and
// full streams make the same on top of whatever there is.
func TestApplyCorpus(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(cmp.Or(os.Getenv("SECRATE_CORPUS_ZFS"), "zpl/testdata/corpus"), "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no streams: %v", err)
	}
	var before *modelTree // of another dataset
	for _, dir := range dirs {
		paths, _ := filepath.Glob(filepath.Join(dir, "*.zsend.zst"))
		if len(paths) == 0 {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			trees := map[uint64]*modelTree{}
			for _, path := range paths {
				stream := readZst(t, path)
				name := filepath.Base(path)
				u, err := NewUnits(bytes.NewReader(stream)).Next()
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if u.Package != nil {
					continue
				}
				base := newModel()
				if u.Incremental() {
					if base = trees[u.FromGUID]; base == nil {
						continue
					}
				}
				m, err := apply(t, base, stream)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				for guid, other := range trees {
					if _, err := apply(t, other, stream); u.Incremental() && guid != u.FromGUID && !errors.Is(err, ErrState) {
						t.Errorf("%s on another snapshot: %v", name, err)
					}
				}
				if !u.Incremental() {
					sameAgain(t, m, stream)
					onTop := []*modelTree{before}
					for _, tree := range trees {
						onTop = append(onTop, tree)
					}
					for _, old := range onTop {
						for _, lost := range []bool{false, true} {
							if old == nil {
								continue
							}
							old = old.clone()
							if lost {
								old.forget()
							}
							top, err := apply(t, old, stream)
							if err != nil {
								t.Fatalf("%s on top, lost=%v: %v", name, lost, err)
							}
							if diff := gocmp.Diff(m.dump(), top.dump()); diff != "" {
								t.Errorf("%s on top, lost=%v (-want +got):\n%s", name, lost, diff)
							}
						}
					}
					before = m
				}
				if was := trees[u.ToGUID]; was != nil {
					if diff := gocmp.Diff(was.dump(), m.dump()); diff != "" {
						t.Errorf("%s (-other stream +this one):\n%s", name, diff)
					}
				}
				trees[u.ToGUID] = m
			}
		})
	}
}
