package s3history

import (
	"encoding/binary"
	"flag"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history/store/dir"
)

var benchFiles = flag.Int("bench.files", 20000, "how many files the history of BenchmarkLoad has")

// manyFiles makes a history in a directory: a first snapshot of so many small files, a
// hundred in a directory, and some small ones after it.
func manyFiles(b *testing.B, files int) *fixture {
	f := newFixture(b)
	f.openStore(b)
	w := f.writer()
	_, err := f.commit(w, 1, func(u *Update) {
		var d filetree.NodeID
		content := make([]byte, 400)
		for i := range files {
			if i%100 == 0 {
				d = must(u.Add(filetree.RootNode, fmt.Sprintf("e%05d", i/100), &filetree.Attr{Kind: filetree.Dir, Mode: 0o755}))
			}
			a := filetree.Attr{Kind: filetree.File, Mode: 0o644, UID: 1000, GID: 1000, Size: int64(len(content)), Ino: uint64(i + 1000), Gen: uint64(7 + i/1000),
				Mtime: filetree.Time{Sec: 1_700_000_000 + int64(i), Nsec: uint32(i) * 997}, Ctime: filetree.Time{Sec: 1_700_000_000 + int64(i), Nsec: uint32(i) * 997},
				Btime: filetree.Time{Sec: 1_600_000_000 + int64(i), Nsec: uint32(i) * 991}}
			n := must(u.Add(d, fmt.Sprintf("f%07d.txt", i), &a))
			binary.LittleEndian.PutUint64(content, uint64(i))
			cid := u.ContentID(content)
			must(0, u.Put(n, Piece{CID: cid, Items: []Item{{Data: content, CID: cid}}}))
		}
	})
	must(0, err)
	for s := range 5 {
		_, err := f.commit(w, int64(s)+2, func(u *Update) {
			for i := range 10 {
				d, _, err := u.Lookup(filetree.RootNode, fmt.Sprintf("e%05d", i*7%(files/100)))
				must(0, err)
				n := must(u.Create(d, fmt.Sprintf("new%d-%d", s, i), fileAttr))
				must(0, u.Write(n, 0, fmt.Appendf(nil, "%d %d", s, i)))
			}
		})
		must(0, err)
	}
	return f
}

// openStore moves an empty repository from memory to a directory.
func (f *fixture) openStore(t testing.TB) {
	t.Helper()
	d, err := dir.Create(filepath.Join(f.dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	f.store = d
	repo, _, err := InitRepository(t.Context(), f.store)
	must(0, err)
	f.identity = must(NewWriterIdentity(t.Context(), f.store, repo, "host", f.recipients))
}

// BenchmarkLoad reads a history on a machine that has nothing of it: the newest state
// into a temporary catalog as ls does, and all of it into one that is kept as catalog
// rebuild does.
func BenchmarkLoad(b *testing.B) {
	f := manyFiles(b, *benchFiles)
	for _, bb := range []struct {
		name    string
		options catalog.Options
		load    func(x *Index, db *catalog.DB) (catalog.Source, error)
	}{
		{"bare", catalog.Options{Temporary: true, NoContent: true}, func(x *Index, db *catalog.DB) (catalog.Source, error) {
			return x.LoadAt(b.Context(), db, &x.Sources[0], lastSeq(&x.Sources[0]), nil)
		}},
		{"rebuild", catalog.Options{}, func(x *Index, db *catalog.DB) (catalog.Source, error) {
			return x.LoadAll(b.Context(), db, &x.Sources[0], nil)
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				db := must(catalog.Open(filepath.Join(b.TempDir(), "catalog.db"), bb.options))
				x := must(ReadIndex(b.Context(), f.store, f.identity))
				src := must(bb.load(x, db))
				if len(x.Problems) > 0 {
					b.Fatal(x.Problems)
				}
				must(db.At(src.ID, 1).Lookup(filetree.RootNode, "e00000"))
				must(0, db.Close())
			}
			b.ReportMetric(float64(*benchFiles)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
		})
	}
}
