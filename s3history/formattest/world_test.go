package formattest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/delta"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/dir"
)

// must is for what cannot fail here.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func get[T any](v T, err error) T {
	must(err)
	return v
}

// A file is what the world knows of a node.
type file struct {
	attr filetree.Attr
	data []byte
	mask []bool // false where there is a hole
}

// A world makes a history with the product, and knows by itself what is in it: every
// change is made twice, to the Update and to a plain map.
type world struct {
	t          testing.TB
	store      store.Store
	state      string
	cat        *catalog.DB
	who        s3history.WriterIdentity
	identities []age.Identity
	recipients *seal.Recipients
	options    s3history.WriterOptions
	w          *s3history.Writer

	files  map[string]map[string]*file // by source, by path
	states map[string]map[uint64]string
	now    map[string]*file // of the source at work
	u      *s3history.Update
	clock  int64
}

// newWorld makes a repository in a directory. The identity is a classic one, as any
// age of the last years opens.
func newWorld(t testing.TB, repository string) (w *world, identityFile string) {
	t.Helper()
	identity, recipient, err := seal.GenerateIdentity(true)
	must(err)
	w = &world{t: t, state: t.TempDir(), files: map[string]map[string]*file{}, states: map[string]map[uint64]string{}}
	w.identities = get(seal.ParseIdentityFile([]byte(identity), seal.Options{}))
	w.recipients = get(seal.ParseRecipients([]string{recipient}, seal.Options{}))
	s := get(dir.Create(repository))
	t.Cleanup(func() { s.Close() })
	w.store = s
	repo, _, err := s3history.InitRepository(t.Context(), s)
	must(err)
	w.who = get(s3history.NewWriterIdentity(t.Context(), s, repo, "host", w.recipients))
	w.open()
	return w, identity + "\n"
}

func (w *world) open() {
	w.cat = get(catalog.Open(filepath.Join(w.state, "catalog.db"), catalog.Options{}))
	w.t.Cleanup(func() { w.cat.Close() })
	w.reopen()
}

func (w *world) reopen() {
	o := w.options
	o.Store, o.StateDir, o.Catalog, o.Identity, o.Recipients = w.store, w.state, w.cat, w.who, w.recipients
	w.w = get(s3history.NewWriter(w.t.Context(), o))
}

// snap commits one snapshot of a source, with what change does.
func (w *world) snap(source string, change func()) uint64 {
	w.t.Helper()
	w.begin(source)
	change()
	s := get(w.u.Commit())
	w.note(source, s.Seq)
	return s.Seq
}

func (w *world) begin(source string) {
	w.clock++
	src := get(w.w.Source(source))
	if w.files[source] == nil {
		w.files[source] = map[string]*file{"": {attr: filetree.Attr{Kind: filetree.Dir, Mode: 0o755}}}
		w.states[source] = map[uint64]string{}
	}
	w.now = w.files[source]
	w.u = get(w.w.Begin(w.t.Context(), src, s3history.SnapshotInfo{Time: filetree.Time{Sec: 1790000000 + 3600*w.clock, Nsec: 5},
		Origin: fmt.Sprint(source, "@", w.clock), GUID: [16]byte{1, byte(w.clock)}, Exclude: []string{"*.tmp"}, Host: "host"}))
}

// note keeps what the world looks like, for the comparison.
func (w *world) note(source string, seq uint64) {
	w.states[source][seq] = listing(w.items())
}

func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:i], path[i+1:]
}

func (w *world) node(path string) filetree.NodeID {
	n, err := w.u.View().Resolve(s3history.SplitPath(path))
	if err != nil {
		panic(fmt.Sprintf("%q: %v", path, err))
	}
	return n
}

var attr = filetree.Attr{Mode: 0o644, UID: 1000, GID: 100, Mtime: filetree.Time{Sec: 1780000000, Nsec: 123456789},
	Ctime: filetree.Time{Sec: 1780000001, Nsec: 1}, Btime: filetree.Time{Sec: -5, Nsec: 7}}

// create makes a node by way of a send stream; data is written and there are no holes.
func (w *world) create(path string, a filetree.Attr, data []byte) {
	d, name := split(path)
	a.Size = 0
	n := get(w.u.Create(w.node(d), name, a))
	f := &file{attr: a}
	w.now[path] = f
	if data != nil {
		must(w.u.Write(n, 0, data))
		f.write(0, data)
	}
}

// add makes a file by way of a walk.
func (w *world) add(path string, a filetree.Attr, data []byte) {
	d, name := split(path)
	a.Size = int64(len(data))
	n := get(w.u.Add(w.node(d), name, &a))
	f := &file{attr: a}
	w.now[path] = f
	for off := 0; off < len(data); off += catalog.MaxPart {
		piece := data[off:min(off+catalog.MaxPart, len(data))]
		p := s3history.Piece{Offset: int64(off), Items: []s3history.Item{{Data: piece, CID: w.u.ContentID(piece)}}}
		if len(piece) >= s3history.MinContent {
			p.CID = w.u.ContentID(piece)
		}
		must(w.u.Put(n, p))
	}
	f.write(0, data)
}

func (f *file) resize(size int64) {
	for int64(len(f.data)) < size {
		f.data, f.mask = append(f.data, 0), append(f.mask, false)
	}
	f.data, f.mask = f.data[:size:size], f.mask[:size:size]
	f.attr.Size = size
}

func (f *file) write(off int64, data []byte) {
	f.resize(max(f.attr.Size, off+int64(len(data))))
	copy(f.data[off:], data)
	for i := range data {
		f.mask[off+int64(i)] = true
	}
}

func (f *file) hole(off, length int64) {
	for i := off; i < off+length; i++ {
		f.data[i], f.mask[i] = 0, false
	}
}

func (w *world) write(path string, off int64, data []byte) {
	must(w.u.Write(w.node(path), off, data))
	w.now[path].write(off, data)
}

func (w *world) punch(path string, off, length int64) {
	must(w.u.Hole(w.node(path), off, length))
	w.now[path].hole(off, length)
}

func (w *world) truncate(path string, size int64) {
	must(w.u.Truncate(w.node(path), size))
	w.now[path].resize(size)
}

func (w *world) clone(to string, off int64, from string, at, length int64) {
	must(w.u.Clone(w.node(to), off, w.node(from), at, length))
	src := w.now[from]
	data, mask := bytes.Clone(src.data[at:at+length]), slices.Clone(src.mask[at:at+length])
	f := w.now[to]
	f.resize(max(f.attr.Size, off+length))
	copy(f.data[off:], data)
	copy(f.mask[off:], mask)
}

func (w *world) link(path, to string) {
	d, name := split(to)
	must(w.u.Link(w.node(d), name, w.node(path)))
	w.now[to] = w.now[path]
}

func (w *world) rename(path, to string) {
	d, name := split(path)
	td, tname := split(to)
	must(w.u.Rename(w.node(d), name, w.node(td), tname))
	for p, f := range w.now {
		if p == path || strings.HasPrefix(p, path+"/") {
			delete(w.now, p)
			w.now[to+p[len(path):]] = f
		}
	}
}

func (w *world) unlink(path string) {
	d, name := split(path)
	must(w.u.Unlink(w.node(d), name))
	delete(w.now, path)
}

func (w *world) remove(path string) { // with everything below
	must(w.u.Remove(w.node(path)))
	for p := range w.now {
		if p == path || strings.HasPrefix(p, path+"/") {
			delete(w.now, p)
		}
	}
}

func (w *world) setAttr(path string, change func(a *filetree.Attr)) {
	must(w.u.SetAttr(w.node(path), change))
	change(&w.now[path].attr)
	filetree.SortXattrs(w.now[path].attr.Xattrs)
}

// put gives a piece of a file, with what it makes of its bytes.
func (w *world) put(path string, p s3history.Piece, want []byte, withID bool) {
	if withID {
		p.CID = w.u.ContentID(want)
	}
	must(w.u.Put(w.node(path), p))
	f := w.now[path]
	off := p.Offset
	for _, it := range p.Items {
		n := int64(len(it.Data)) + it.Keep + it.Hole
		for _, q := range it.Parts {
			n += q.Length
		}
		if it.Patch != nil {
			n += int64(it.Patch.Result)
		}
		switch {
		case it.Hole > 0:
			f.hole(off, n)
		case it.Keep == 0:
			f.write(off, want[off-p.Offset:][:n])
		}
		off += n
	}
}

// patch changes bytes of a file by a patch on what it has in [from, to).
func (w *world) patch(path string, from, to int64, change func(b []byte) []byte) {
	f := w.now[path]
	old := bytes.Clone(f.data[from:to])
	data := change(bytes.Clone(old))
	base := get(w.u.View().Parts(w.node(path), from, to))
	w.put(path, s3history.Piece{Offset: from, Items: []s3history.Item{{Patch: &s3history.NewPatch{
		Patch: delta.Patch(old, data), Base: base, Result: len(data)}}}}, data, true)
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rnd.Read(b)
	return b
}

func text(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var b []byte
	for len(b) < n {
		b = fmt.Appendf(b, "line %d of %x\n", len(b), rnd.IntN(1<<16))
	}
	return b[:n]
}

// items are what the world has, as the decoder says it.
func (w *world) items() []item {
	var all []item
	for path, f := range w.now {
		it := item{path: path, attr: recOf(&f.attr), content: f.data}
		for i, set := range f.mask {
			if !set {
				continue
			}
			if k := len(it.data); k > 0 && it.data[k-1][1] == uint64(i) {
				it.data[k-1][1]++
			} else {
				it.data = append(it.data, [2]uint64{uint64(i), uint64(i) + 1})
			}
		}
		for other, g := range w.now { // a number that all its names have
			if g == f && (it.node == 0 || w.number(other) < it.node) {
				it.node = w.number(other)
			}
		}
		all = append(all, it)
	}
	slices.SortFunc(all, func(a, b item) int { return strings.Compare(a.path, b.path) })
	return all
}

func (w *world) number(path string) uint64 {
	return uint64(len(slices.DeleteFunc(sortedPaths(w.now), func(p string) bool { return p > path })))
}

func sortedPaths(m map[string]*file) []string {
	var all []string
	for p := range m {
		all = append(all, p)
	}
	slices.Sort(all)
	return all
}

func recOf(a *filetree.Attr) attrRec {
	pair := func(t filetree.Time) [2]int64 { return [2]int64{t.Sec, int64(t.Nsec)} }
	r := attrRec{Kind: uint8(a.Kind), Mode: a.Mode, UID: a.UID, GID: a.GID, Size: uint64(a.Size), Mtime: pair(a.Mtime), Ctime: pair(a.Ctime),
		Btime: pair(a.Btime), Rdev: [2]uint32{a.Major, a.Minor}, Flags: a.Flags, Target: []byte(a.Target), Ino: a.Ino, Gen: a.Gen, Lacks: a.Incomplete}
	for _, x := range a.Xattrs {
		r.Xattrs = append(r.Xattrs, [2][]byte{[]byte(x.Name), x.Value})
	}
	return r
}

// ours reads every snapshot with the product, from the store alone. A history with
// problems is an error.
func ours(t testing.TB, repository string, identityFile []byte, source string) map[uint64]string {
	t.Helper()
	states, problems := oursWith(t, repository, identityFile, source)
	for _, p := range problems {
		t.Errorf("our reader: %v", p)
	}
	return states
}

func oursWith(t testing.TB, repository string, identityFile []byte, source string) (states map[uint64]string, problems []error) {
	t.Helper()
	s := get(dir.Open(repository))
	defer s.Close()
	r := get(s3history.Open(t.Context(), s, get(seal.ParseIdentityFile(identityFile, seal.Options{}))))
	x := get(s3history.ReadIndex(t.Context(), s, r.Writers[0]))
	db := get(catalog.Open(filepath.Join(t.TempDir(), "catalog.db"), catalog.Options{Temporary: true}))
	defer db.Close()
	out := map[uint64]string{}
	for i := range x.Sources {
		if x.Sources[i].Name != source {
			continue
		}
		src := get(x.LoadAll(t.Context(), db, &x.Sources[i], nil))
		c := s3history.NewContent(s, r.Writers[0], db, get(seal.ParseIdentityFile(identityFile, seal.Options{})))
		for _, snap := range get(s3history.Snapshots(db, src)) {
			out[snap.Seq] = listing(oursAt(t, db.At(src.ID, snap.Seq), c))
		}
	}
	return out, x.Problems
}

func oursAt(t testing.TB, v catalog.View, c *s3history.Content) []item {
	var all []item
	var walk func(path string, n filetree.NodeID, a *filetree.Attr)
	walk = func(path string, n filetree.NodeID, a *filetree.Attr) {
		it := item{path: path, node: uint64(n), attr: recOf(a)}
		if a.Kind == filetree.File {
			var b bytes.Buffer
			must(c.WriteFile(t.Context(), v, n, a.Size, &b))
			it.content = b.Bytes()
			off := uint64(0)
			for _, p := range get(v.Parts(n, 0, a.Size)) {
				end := off + uint64(p.Length)
				if k := len(it.data); p.Hole() {
				} else if k > 0 && it.data[k-1][1] == off {
					it.data[k-1][1] = end
				} else {
					it.data = append(it.data, [2]uint64{off, end})
				}
				off = end
			}
		}
		all = append(all, it)
		if a.Kind == filetree.Dir {
			for ch, err := range v.Children(n) {
				must(err)
				walk(path+"/"+ch.Name, ch.Node, &ch.Attr)
			}
		}
	}
	root := get(v.Attr(filetree.RootNode))
	walk("", filetree.RootNode, &root)
	slices.SortFunc(all, func(a, b item) int { return strings.Compare(a.path, b.path) })
	return all
}

var kinds = [...]string{"?", "file", "dir", "symlink", "fifo", "socket", "chardev", "blkdev"}

// listing writes items as text, a line each. Node numbers are not in it, but which
// paths have the same.
func listing(items []item) string {
	first := map[uint64]string{}
	var b strings.Builder
	for _, it := range items {
		a := &it.attr
		fmt.Fprintf(&b, "%q %s mode=%04o owner=%d:%d size=%d mtime=%d.%09d ctime=%d.%09d btime=%d.%09d", it.path, kinds[a.Kind], a.Mode, a.UID, a.GID, a.Size,
			a.Mtime[0], a.Mtime[1], a.Ctime[0], a.Ctime[1], a.Btime[0], a.Btime[1])
		if a.Rdev != ([2]uint32{}) {
			fmt.Fprintf(&b, " rdev=%d:%d", a.Rdev[0], a.Rdev[1])
		}
		if a.Flags != 0 {
			fmt.Fprintf(&b, " flags=%#x", a.Flags)
		}
		if len(a.Target) > 0 {
			fmt.Fprintf(&b, " target=%q", a.Target)
		}
		for _, x := range a.Xattrs {
			fmt.Fprintf(&b, " %q=%s", x[0], brief(x[1]))
		}
		if a.Ino != 0 {
			fmt.Fprintf(&b, " ino=%d.%d", a.Ino, a.Gen)
		}
		if a.Lacks {
			b.WriteString(" incomplete")
		}
		if a.Kind == 1 {
			b.WriteString(" data=")
			for _, r := range it.data {
				fmt.Fprintf(&b, "[%d,%d)", r[0], r[1])
			}
			b.WriteString(" content=" + brief(it.content))
		}
		if f, ok := first[it.node]; ok {
			fmt.Fprintf(&b, " same=%q", f)
		}
		if _, ok := first[it.node]; !ok {
			first[it.node] = it.path
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func brief(v []byte) string {
	if len(v) <= 24 {
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprintf("%d bytes, sha256 %x", len(v), hashOf(v))
}

// copyTree copies a repository, without what is still being written.
func copyTree(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	must(os.CopyFS(to, os.DirFS(from)))
	return to
}
