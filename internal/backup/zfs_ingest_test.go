package backup_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/sendstream/zfs"
)

// zfsDir returns a case of the corpus, with a history of its own.
func zfsDir(t *testing.T, name string) *zfsCase {
	t.Helper()
	return newZFSCase(t, filepath.Join(zfsCorpus(), name))
}

// stream returns the bytes of the only stream whose name begins so.
func (c *zfsCase) stream(t *testing.T, prefix string) []byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(c.dir, prefix+"*.zsend.zst"))
	if err != nil || len(names) != 1 {
		t.Fatalf("streams %s: %v, %v", prefix, names, err)
	}
	b, err := io.ReadAll(openZFS(t, names[0]))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// one brings the first unit of a stream into a source.
func (c *zfsCase) one(t *testing.T, source string, stream []byte) (u *zfs.Unit, res backup.Result, failed []string, err error) {
	t.Helper()
	if u, err = zfs.NewUnits(bytes.NewReader(stream)).Next(); err == nil {
		res, failed, err = c.ingest(t, source, u)
	}
	return u, res, failed, err
}

// good is one, and compares what it made with the manifest.
func (c *zfsCase) good(t *testing.T, source, prefix string) backup.Result {
	t.Helper()
	u, res, failed, err := c.one(t, source, c.stream(t, prefix))
	if err != nil {
		t.Fatalf("%s: %v", prefix, err)
	}
	c.compare(t, source, u, res, failed, prefix)
	return res
}

// bad is one that gives an error and changes nothing.
func (c *zfsCase) bad(t *testing.T, source string, stream []byte, want error) {
	t.Helper()
	before := c.dump(source)
	if _, _, _, err := c.one(t, source, stream); !errors.Is(err, want) {
		t.Fatalf("%v, want %v", err, want)
	}
	if after := c.dump(source); after != before {
		t.Fatalf("history was %s, is %s", before, after)
	}
}

// rebuild goes on with a catalog made from what is stored, and an empty state directory.
func (c *zfsCase) rebuild(t *testing.T) {
	t.Helper()
	c.state = t.TempDir()
	cat, err := catalog.Open(filepath.Join(c.state, "catalog.db"), catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cat.Close() })
	c.cat = cat
	r, err := s3history.Open(t.Context(), c.store, c.identities)
	if err != nil {
		t.Fatal(err)
	}
	x, err := s3history.ReadIndex(t.Context(), c.store, r.Writers[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range x.Sources {
		if _, err := x.LoadAll(t.Context(), c.cat, &x.Sources[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(x.Problems) > 0 {
		t.Fatal(x.Problems)
	}
	c.w, err = s3history.NewWriter(t.Context(), s3history.WriterOptions{Store: c.store, StateDir: c.state, Catalog: c.cat,
		Identity: c.identity, Recipients: c.recipients})
	if err != nil {
		t.Fatal(err)
	}
}

// packs returns how many packs are stored.
func (c *zfsCase) packs(t *testing.T) (n int) {
	t.Helper()
	for o, err := range c.store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(o.Key, "meta") {
			n++
		}
	}
	return n
}

// TestZFSOrder: an increment needs what it starts from, and the one that is there is not
// read again.
func TestZFSOrder(t *testing.T) {
	c := zfsDir(t, "c_512")
	c.bad(t, "s", c.stream(t, "020-s1-s2"), backup.ErrBase)
	c.good(t, "s", "010-full-s1")
	c.bad(t, "s", c.stream(t, "030-s2-s3"), backup.ErrBase)
	c.good(t, "s", "020-s1-s2")
	for _, again := range []string{"010-full-s1", "020-s1-s2"} {
		if res := c.good(t, "s", again); !res.Unchanged {
			t.Errorf("%s again: %+v", again, res)
		}
	}
	c.good(t, "s", "030-s2-s3")
}

// TestZFSOlderBase: an increment may start from any snapshot that there is.
func TestZFSOlderBase(t *testing.T) {
	c := zfsDir(t, "j_multi")
	c.good(t, "s", "010-full-s1")
	c.good(t, "s", "020-s1-s2")
	for u, err := range zfs.NewUnits(bytes.NewReader(c.stream(t, "110-s1-s3.Ri"))).All() {
		if err != nil {
			t.Fatal(err)
		}
		if u.Dataset() != "tank/j_multi" {
			continue
		}
		res, failed, err := c.ingest(t, "s", u)
		if err != nil || res.Unchanged {
			t.Fatalf("%+v, %v", res, err)
		}
		c.compare(t, "s", u, res, failed, "110-s1-s3.Ri")
	}
	c.good(t, "s", "040-s3-s4")
}

// TestZFSOther: a full stream of another dataset replaces what was there, whether what is
// kept of that is at hand or was lost.
func TestZFSOther(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("lost=%v", lost), func(t *testing.T) {
			first := zfsDir(t, "f_dir_16k")
			first.good(t, "s", "010-full-s1")
			for _, next := range []string{"c_512", "f_sa_auto", "g_owners", "e_grow", "o_longname", "f_dir_16k"} {
				if lost {
					first.rebuild(t)
				}
				c := &zfsCase{fixture: first.fixture, dir: filepath.Join(zfsCorpus(), next)}
				if res := c.goodFull(t, "s"); res.Unchanged && next != "f_dir_16k" {
					t.Errorf("%s: unchanged", next)
				}
				if next != "f_dir_16k" {
					c.good(t, "s", "020-s1-s2")
				}
			}
		})
	}
}

// TestZFSMixed has a snapshot in the history that was not made of a ZFS stream: what is kept
// is no longer of what there is. A full stream goes by what there is, an increment by what
// it starts from.
func TestZFSMixed(t *testing.T) {
	for name, change := range map[string]func(u *s3history.Update) error{
		"other files": func(u *s3history.Update) error {
			for c, err := range u.Children(filetree.RootNode) {
				if err == nil {
					err = u.RemoveName(filetree.RootNode, c.Name)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
		"told anew": func(u *s3history.Update) error {
			if err := u.Clear(); err != nil {
				return err
			}
			_, err := u.Create(filetree.RootNode, "file", filetree.Attr{Kind: filetree.File, Mode: 0o600})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := zfsDir(t, "g_owners")
			before.good(t, "s", "010-full-s1")
			u, err := before.w.Begin(t.Context(), before.source("s"), s3history.SnapshotInfo{GUID: [16]byte{1}})
			if err != nil {
				t.Fatal(err)
			}
			if err := change(u); err != nil {
				t.Fatal(err)
			}
			if _, err := u.Commit(); err != nil {
				t.Fatal(err)
			}
			after := &zfsCase{fixture: before.fixture, dir: filepath.Join(zfsCorpus(), "f_sa_auto")}
			after.good(t, "s", "010-full-s1")
			after.good(t, "s", "020-s1-s2")
			before.good(t, "s", "020-s1-s2")
		})
	}
}

// goodFull brings the full stream of s1 into a source, under a GUID that the source does
// not know.
func (c *zfsCase) goodFull(t *testing.T, source string) backup.Result {
	t.Helper()
	if !c.has(source, c.guid(t, "010-full-s1")) {
		return c.good(t, source, "010-full-s1")
	}
	return backup.Result{Unchanged: true}
}

func (c *zfsCase) guid(t *testing.T, prefix string) uint64 {
	t.Helper()
	u, err := zfs.NewUnits(bytes.NewReader(c.stream(t, prefix))).Next()
	if err != nil {
		t.Fatal(err)
	}
	return u.ToGUID
}

// TestZFSRebuild: after a rebuild of the catalog an increment is refused, and a full
// stream makes what it needs anew, records what changed and nothing else, and uploads
// nothing again.
func TestZFSRebuild(t *testing.T) {
	for _, name := range []string{"c_512", "e_grow", "f_dir_16k", "f_reuse", "f_sa_auto", "g_owners", "k_sparse512", "o_longname"} {
		t.Run(name, func(t *testing.T) {
			c := zfsDir(t, name)
			c.good(t, "s", "010-full-s1")
			packs, objects := c.packs(t), c.dump("s")
			c.rebuild(t)
			c.bad(t, "s", c.stream(t, "020-s1-s2"), backup.ErrState)
			if res := c.good(t, "s", "010-full-s1"); !res.Unchanged || c.packs(t) != packs || c.dump("s") != objects {
				t.Errorf("the same, after a rebuild: %+v, %d packs that were %d", res, c.packs(t), packs)
			}
			c.good(t, "s", "020-s1-s2")

			// What the first snapshot had is stored, so that to go back takes no data.
			packs = c.packs(t)
			c.rebuild(t)
			if res := c.good(t, "s", "010-full-s1"); res.Unchanged {
				t.Errorf("unchanged: %+v", res)
			} else if stats := res.Committed[0]; c.packs(t) > packs+1 {
				t.Errorf("back to the first: %d packs that were %d, %+v", c.packs(t), packs, stats)
			}
		})
	}
	t.Run("n_fuzz3", func(t *testing.T) {
		c := zfsDir(t, "n_fuzz3")
		c.good(t, "s", "010-full-s1")
		c.good(t, "s", "080-s1-s5")
		packs := c.packs(t)
		c.rebuild(t)
		if res := c.good(t, "s", "090-full-s5"); !res.Unchanged || c.packs(t) != packs {
			t.Errorf("what two streams made, in one: %+v, %d packs that were %d", res, c.packs(t), packs)
		}
	})
}

// TestZFSCut: a stream that is cut, wherever, changes nothing, and what of it was uploaded
// is not in the way of the whole one.
func TestZFSCut(t *testing.T) {
	c := zfsDir(t, "f_dir_16k")
	for i, prefix := range []string{"010-full-s1", "020-s1-s2"} {
		stream := c.stream(t, prefix)
		var cuts []int
		for n := range 25 {
			cuts = append(cuts, n*len(stream)/25, n*4)
		}
		cuts = append(cuts, len(stream)-1, len(stream)-312)
		slices.Sort(cuts)
		for _, n := range slices.Compact(cuts) {
			if n == 0 {
				continue
			}
			c.bad(t, "s", stream[:n], io.ErrUnexpectedEOF)
		}
		if res := c.good(t, "s", prefix); res.Unchanged || res.Committed[0].Seq != uint64(i+1) {
			t.Errorf("%s: %+v", prefix, res)
		}
	}
}
