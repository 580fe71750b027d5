package s3history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/storetest"
)

// checkLoad loads every source of a writer twice, the state at seq or, if that is 0, the
// whole history: as it is done, and into a catalog that has a node of the highest number
// already, so that nothing is known to be new and all is looked up. It expects the same
// rows and the same problems.
func checkLoad(ctx context.Context, t testing.TB, s store.Store, w WriterIdentity, seq uint64) {
	t.Helper()
	const highest = 1<<40 - 1
	x := must(ReadIndex(ctx, s, w)) // one for both: of two checkpoints of one number it takes either
	load := func(slow bool) (rows []string, problems string) {
		x.Problems = nil
		for i := range x.Sources {
			path := filepath.Join(t.TempDir(), "catalog.db")
			db := must(catalog.Open(path, catalog.Options{Temporary: true}))
			src := &x.Sources[i]
			if slow {
				added := must(db.AddSource(w.ID, src.ident, src.Name))
				must(0, db.At(added.ID, 0).AddNode(highest, &filetree.Attr{Kind: filetree.File}))
			}
			var err error
			if seq == 0 {
				_, err = x.LoadAll(ctx, db, src, nil)
			} else {
				_, err = x.LoadAt(ctx, db, src, seq, nil)
			}
			must(0, errors.Join(err, db.Close()))
			rows = append(rows, catalogRows(path, highest)...)
		}
		return rows, fmt.Sprint(x.Problems)
	}
	rows, problems := load(false)
	slowRows, slowProblems := load(true)
	if diff := cmp.Diff(slowRows, rows); diff != "" {
		t.Errorf("loaded at #%d (-slow +fast):\n%s", seq, diff)
	}
	if problems != slowProblems {
		t.Errorf("loaded at #%d: problems %s, slow %s", seq, problems, slowProblems)
	}
}

// catalogRows returns all rows of a catalog but those of one node.
func catalogRows(path string, without filetree.NodeID) (rows []string) {
	conn := must(sqlite.OpenConn(path, sqlite.OpenReadOnly))
	defer conn.Close()
	for _, table := range []string{"sources", "snapshots", "nodes", "entries", "extents", "recipes", "content", "packs", "told", "meta"} {
		where := ""
		if table == "nodes" {
			where = fmt.Sprintf(" WHERE node & %d != %d", 1<<40-1, without)
		}
		must(0, sqlitex.ExecuteTransient(conn, "SELECT * FROM "+table+where, &sqlitex.ExecOptions{ResultFunc: func(s *sqlite.Stmt) error {
			row := table
			for i := range s.ColumnCount() {
				b := make([]byte, s.ColumnLen(i))
				s.ColumnBytes(i, b)
				row += fmt.Sprintf(" %q", b)
			}
			rows = append(rows, row)
			return nil
		}}))
	}
	return rows
}

// TestSegments reads the bodies of many segments ahead: they come in their order, no
// more objects at once than may be, and what is wrong with one is said in its place.
func TestSegments(t *testing.T) {
	f := newFixture(t)
	f.options.SegmentSize = 500
	w := f.writer()
	must(f.commit(w, 1, func(u *Update) {
		for i := range 200 {
			n := must(u.Add(filetree.RootNode, fmt.Sprintf("f%03d", i), &filetree.Attr{Kind: filetree.File, Size: 10}))
			must(0, u.Put(n, Piece{Items: []Item{{Data: fmt.Appendf(nil, "%010d", i)}}}))
		}
	}))
	f.checkRebuild()
	x := must(ReadIndex(t.Context(), f.store, f.identity))
	src := x.Sources[0]
	r := &src.roots[0].root
	if len(r.Segments) < 3*objectsAhead {
		t.Fatalf("%d segments", len(r.Segments))
	}
	place := metaPlace{x.writer.Repo, x.writer.ID, src.ident, 1, labelSegment, 0}
	object := func(ref segmentRef) []byte {
		return f.mem.Bytes(metaPrefixes[0] + metaName{x.writer.ID, src.ident, 1, kindSegment, [32]byte(ref.SHA)}.String())
	}
	failed := errors.New("not to be had")
	bad := len(r.Segments) / 2
	for _, tt := range []struct {
		name string
		read func(i int) ([]byte, error)
		n    int // bodies that come
		err  error
	}{
		{"whole", func(i int) ([]byte, error) { return object(r.Segments[i]), nil }, len(r.Segments), nil},
		{"not read", func(i int) ([]byte, error) {
			if i == bad {
				return nil, failed
			}
			return object(r.Segments[i]), nil
		}, bad, failed},
		{"swapped", func(i int) ([]byte, error) {
			if i == bad {
				i++
			}
			return object(r.Segments[i]), nil
		}, bad, nil}, // the seal does not open: an error all the same
	} {
		t.Run(tt.name, func(t *testing.T) {
			var reading, most atomic.Int32
			read := func(ctx context.Context, ref segmentRef) ([]byte, error) {
				if n := reading.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer reading.Add(-1)
				return tt.read(slices.IndexFunc(r.Segments, func(s segmentRef) bool { return string(s.SHA) == string(ref.SHA) }))
			}
			var last uint64
			n := 0
			for b, err := range r.segments(t.Context(), x.writer.Key, place, read) {
				if err != nil {
					if n != tt.n || tt.n == len(r.Segments) || tt.err != nil && !errors.Is(err, tt.err) {
						t.Errorf("segment %d: %v", n, err)
					}
					continue
				}
				for _, rec := range b.Nodes {
					if rec.ID < last && rec.ID != uint64(filetree.RootNode) {
						t.Fatalf("node %d after %d", rec.ID, last)
					}
					last = rec.ID
				}
				n++
			}
			if n != tt.n || most.Load() > objectsAhead {
				t.Errorf("%d bodies, want %d; %d read at once", n, tt.n, most.Load())
			}
		})
	}
	// Whoever has enough stops, and whoever cancels hears of it.
	for range r.segments(t.Context(), x.writer.Key, place, func(ctx context.Context, ref segmentRef) ([]byte, error) { return object(ref), nil }) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range r.segments(ctx, x.writer.Key, place, func(ctx context.Context, ref segmentRef) ([]byte, error) { return object(ref), ctx.Err() }) {
		n++
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	if n >= len(r.Segments) {
		t.Error("went on after it was cancelled")
	}
}

// A distantStore is a store on the other side of the sea.
type distantStore struct {
	store.Store
}

func (s distantStore) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	time.Sleep(50 * time.Millisecond) // of the bubble's time
	return s.Store.Get(ctx, key, off, n)
}

// TestLoadAhead loads histories from afar, one of a snapshot with many segments, one of
// many snapshots whose roots are read twice as they are large, one of which is missing:
// to wait for each object by itself would take several times as long.
func TestLoadAhead(t *testing.T) {
	commit := func(f *fixture, w *Writer, s, files int) {
		must(f.commit(w, int64(s), func(u *Update) {
			for i := range files {
				x := noise(1000*s+i, 30) // what cannot be compressed
				must(u.Add(filetree.RootNode, fmt.Sprintf("%x", x), &filetree.Attr{Kind: filetree.File, Xattrs: []filetree.Xattr{{Name: "user.x", Value: x}}}))
			}
		}))
	}
	for _, tt := range []struct {
		name             string
		segment          int
		snapshots, files int
		objects          int // at the least
	}{
		{"segments", 1000, 1, 500, 30},
		{"roots", 0, 30, 150, 30},
	} {
		f := newFixture(t)
		f.options.SegmentSize = tt.segment
		w := f.writer()
		for s := range tt.snapshots {
			commit(f, w, s+1, tt.files)
		}
		lost := f.mem.Clone()
		if tt.snapshots > 1 {
			lose(lost, rootKeys(f.mem, kindRoot)[tt.snapshots/2])
		}
		for _, m := range []*storetest.Mem{f.mem, lost} {
			checkLoad(t.Context(), t, m, f.identity, 0)
			synctest.Test(t, func(t *testing.T) {
				x := must(ReadIndex(t.Context(), distantStore{m}, f.identity))
				src := &x.Sources[0]
				objects := len(src.roots[0].root.Segments)
				for _, r := range src.roots {
					if r.obj == nil {
						objects++
					}
				}
				db := must(catalog.Open(filepath.Join(t.TempDir(), "catalog.db"), catalog.Options{Temporary: true}))
				began := time.Now()
				must(x.LoadAll(t.Context(), db, src, nil))
				took := time.Since(began) / (50 * time.Millisecond)
				must(0, db.Close())
				if objects < tt.objects-1 || int(took) > objects/objectsAhead+2 {
					t.Errorf("%s: %d objects in the time of %d", tt.name, objects, took)
				}
			})
		}
	}
}

// TestLoadDropsPart damages the last segment of a full snapshot: nothing is left of those
// before it, and the catalog is as good as one that never saw them.
func TestLoadDropsPart(t *testing.T) {
	f := newFixture(t)
	f.options.SegmentSize = 500
	w := f.writer()
	for s := range 2 {
		must(f.commit(w, int64(s+1), func(u *Update) {
			if s > 0 {
				must(0, u.Clear())
			}
			for i := range 100 {
				must(u.Add(filetree.RootNode, fmt.Sprintf("f%d%03d", s, i), &filetree.Attr{Kind: filetree.File}))
			}
		}))
	}
	for lost := uint64(1); lost <= 2; lost++ {
		x := must(ReadIndex(t.Context(), f.store, f.identity))
		refs := x.Sources[0].roots[lost-1].root.Segments
		m := f.mem.Clone()
		lose(m, metaName{x.writer.ID, x.Sources[0].ident, lost, kindSegment, [32]byte(refs[len(refs)-1].SHA)}.String())
		checkLoad(t.Context(), t, m, f.identity, 0)
		x = must(ReadIndex(t.Context(), m, f.identity))
		db := tempCatalog(t)
		src := must(x.LoadAll(t.Context(), db, &x.Sources[0], nil))
		for seq := uint64(1); seq <= 2; seq++ {
			v := db.At(src.ID, seq)
			files := 0
			for c, err := range v.List(filetree.RootNode) {
				must(0, err)
				files++
				if e := must(v.Entries(c.Node, 0)); len(e) != 1 || e[0].Name != c.Name {
					t.Errorf("%s has names %v", c.Name, e)
				}
			}
			want := 100
			if lost == 1 && seq == 1 {
				want = 0
			}
			if files != want {
				t.Errorf("without a segment of #%d: %d files in #%d", lost, files, seq)
			}
		}
		if s := fmt.Sprint(x.Problems); len(x.Problems) == 0 || !strings.Contains(s, fmt.Sprintf("#%d", lost)) {
			t.Errorf("problems: %s", s)
		}
	}
}
