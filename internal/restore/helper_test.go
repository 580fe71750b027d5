package restore

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store/storetest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A fixture is a repository in memory with one writer and one source.
type fixture struct {
	t          testing.TB
	mem        *storetest.Mem
	cat        *catalog.DB
	identity   s3history.WriterIdentity
	identities []age.Identity
	recipients *seal.Recipients
	writer     *s3history.Writer
	source     catalog.Source
	packSize   int64
}

func newFixture(t testing.TB, packSize int64) *fixture {
	t.Helper()
	f := &fixture{t: t, mem: storetest.NewMem(), packSize: packSize}
	id, rec, err := seal.GenerateIdentity(true)
	must(t, err)
	f.identities, err = seal.ParseIdentityFile([]byte(id), seal.Options{})
	must(t, err)
	f.recipients, err = seal.ParseRecipients([]string{rec}, seal.Options{})
	must(t, err)
	repo, _, err := s3history.InitRepository(t.Context(), f.mem)
	must(t, err)
	f.identity, err = s3history.NewWriterIdentity(t.Context(), f.mem, repo, "host", f.recipients)
	must(t, err)
	dir := t.TempDir()
	f.cat, err = catalog.Open(filepath.Join(dir, "catalog.db"), catalog.Options{Temporary: true})
	must(t, err)
	t.Cleanup(func() { f.cat.Close() })
	f.writer, err = s3history.NewWriter(t.Context(), s3history.WriterOptions{Store: f.mem, StateDir: dir, Catalog: f.cat,
		Identity: f.identity, Recipients: f.recipients, PackSize: packSize})
	must(t, err)
	f.source, err = f.writer.Source("s")
	must(t, err)
	return f
}

// commit makes a snapshot with the changes that change makes.
func (f *fixture) commit(change func(u *s3history.Update)) s3history.Snapshot {
	f.t.Helper()
	u, err := f.writer.Begin(f.t.Context(), f.source, s3history.SnapshotInfo{})
	must(f.t, err)
	change(u)
	s, err := u.Commit()
	must(f.t, err)
	return s
}

// add adds a file.
func (f *fixture) add(u *s3history.Update, dir filetree.NodeID, name string, data []byte) filetree.NodeID {
	f.t.Helper()
	n, err := u.Add(dir, name, &filetree.Attr{Kind: filetree.File, Mode: 0o644, Size: int64(len(data)), Mtime: filetree.Time{Sec: 1e9, Nsec: 7}})
	must(f.t, err)
	for off := 0; off < len(data); off += catalog.MaxPart {
		f.put(u, n, int64(off), data[off:min(off+catalog.MaxPart, len(data))])
	}
	return n
}

func (f *fixture) put(u *s3history.Update, n filetree.NodeID, off int64, data []byte) {
	f.t.Helper()
	p := s3history.Piece{Offset: off, Items: []s3history.Item{{Data: data, CID: u.ContentID(data)}}}
	if len(data) >= s3history.MinContent {
		p.CID = u.ContentID(data)
	}
	must(f.t, u.Put(n, p))
}

// options are those that restore the newest state into a new directory.
func (f *fixture) options() Options {
	f.t.Helper()
	head, err := f.cat.Head(f.source.ID)
	must(f.t, err)
	return Options{
		Catalog: f.cat,
		View:    f.cat.At(f.source.ID, head.Seq),
		Content: s3history.NewContent(f.mem, f.identity, f.cat, f.identities),
		To:      filepath.Join(f.t.TempDir(), "to"),
	}
}

// run restores, and expects that at least that is no error.
func (f *fixture) run(o Options) Result {
	f.t.Helper()
	res, err := Run(f.t.Context(), o)
	must(f.t, err)
	return res
}

// failed are the paths of what failed, sorted.
func failed(res Result) []string {
	var paths []string
	for _, f := range res.Failed {
		paths = append(paths, f.Path)
	}
	slices.Sort(paths)
	return paths
}

// addTree adds a directory with all that is in it, as a scan would.
func (f *fixture) addTree(u *s3history.Update, dir string) {
	t := f.t
	t.Helper()
	tree, err := localfs.Open(dir)
	must(t, err)
	defer tree.Close()
	ids := map[string]filetree.NodeID{"": filetree.RootNode}
	links := map[uint64]filetree.NodeID{}
	root, err := tree.Root().Stat()
	must(t, err)
	must(t, u.Replace(filetree.RootNode, &root.Attr))
	for it, err := range tree.Walk() {
		must(t, err)
		path, parent := it.Path(), ""
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			parent = path[:i]
		}
		st, err := it.Parent.StatAt(it.Name, it.Kind)
		must(t, err)
		if n, ok := links[st.Ino]; ok && it.Dir == nil && st.Nlink > 1 {
			must(t, u.Link(ids[parent], it.Name, n))
			continue
		}
		n, err := u.Add(ids[parent], it.Name, &st.Attr)
		must(t, err)
		links[st.Ino] = n
		if it.Dir != nil {
			ids[path] = n
		}
		if it.Kind != filetree.File {
			continue
		}
		file, err := it.Parent.OpenFile(it.Name)
		must(t, err)
		segs, err := file.Segments(0, file.Size())
		must(t, err)
		for _, s := range segs {
			for off := s.Offset; off < s.End() && !s.Hole; off += catalog.MaxPart {
				data := make([]byte, min(catalog.MaxPart, s.End()-off))
				_, err := io.ReadFull(io.NewSectionReader(file, off, int64(len(data))), data)
				must(t, err)
				f.put(u, n, off, data)
			}
		}
		must(t, file.Close())
	}
}

// see describes a directory and all that is in it, by path.
func see(t testing.TB, dir string) map[string]string {
	t.Helper()
	tree, err := localfs.Open(dir)
	must(t, err)
	defer tree.Close()
	all := map[string]string{}
	inodes := map[uint64]int{}
	add := func(path string, st localfs.Stat, content string) {
		ino := 0
		if st.Kind != filetree.Dir && st.Nlink > 1 {
			if inodes[st.Ino] == 0 {
				inodes[st.Ino] = len(inodes) + 1
			}
			ino = inodes[st.Ino]
		}
		a := st.Attr
		a.Ino, a.Gen, a.Ctime, a.Btime = 0, 0, filetree.Time{}, filetree.Time{}
		all[path] = fmt.Sprintf("%+v links %d %s", a, ino, content)
	}
	root, err := tree.Root().Stat()
	must(t, err)
	add("", root, "")
	for it, err := range tree.Walk() {
		must(t, err)
		st, err := it.Parent.StatAt(it.Name, it.Kind)
		must(t, err)
		content := ""
		if it.Kind == filetree.File {
			file, err := it.Parent.OpenFile(it.Name)
			must(t, err)
			segs, err := file.Segments(0, file.Size())
			must(t, err)
			h := sha256.New()
			_, err = io.Copy(h, io.NewSectionReader(file, 0, file.Size()))
			must(t, err)
			must(t, file.Close())
			content = fmt.Sprintf("%v %x", segs, h.Sum(nil))
		}
		add(it.Path(), st, content)
	}
	return all
}

// names are the paths of all that is below a directory, sorted.
func names(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	for path := range see(t, dir) {
		if path != "" {
			all = append(all, path)
		}
	}
	slices.Sort(all)
	return all
}

func checkFile(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, not the %d that were stored", path, len(got), len(want))
	}
}
