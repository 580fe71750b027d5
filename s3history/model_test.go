package s3history

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/delta"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/sendtest"
)

var (
	modelSeed  = flag.Uint64("model.seed", 0, "run the model test with this seed only")
	modelSeeds = flag.Int("model.seeds", 8, "run the model test with so many seeds")
)

// TestModel makes random changes to a history and to a model of a tree, and compares
// every snapshot with what the model was, in the catalog that made it and in those that
// are made from what is stored.
func TestModel(t *testing.T) {
	for seed := uint64(1); seed <= uint64(*modelSeeds); seed++ {
		if *modelSeed != 0 {
			seed = *modelSeed
		}
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			m := newModelRun(t, seed)
			for range 8 {
				m.snapshot()
			}
			m.checkStored()
		})
		if *modelSeed != 0 {
			break
		}
	}
}

// A modelRun is a history under change, and what it has to be.
type modelRun struct {
	t     *testing.T
	f     *fixture
	r     *rand.Rand
	w     *Writer
	u     *Update
	now   modelState
	snaps map[uint64]modelState
	head  uint64
	log   []string
}

// A modelState is a tree and the numbers its nodes have in the history.
type modelState struct {
	*sendtest.Model
	ids map[filetree.NodeID]filetree.NodeID
}

func (s modelState) copy() modelState { return modelState{s.Model.Copy(), maps.Clone(s.ids)} }

func emptyState() modelState {
	m := sendtest.NewModel()
	must(0, m.SetAttr(filetree.RootNode, func(a *filetree.Attr) { a.Mode = 0o755 }))
	return modelState{m, map[filetree.NodeID]filetree.NodeID{filetree.RootNode: filetree.RootNode}}
}

func newModelRun(t *testing.T, seed uint64) *modelRun {
	m := &modelRun{t: t, f: newFixture(t), r: rand.New(rand.NewPCG(seed, 17)), now: emptyState(), snaps: map[uint64]modelState{}}
	m.f.options = WriterOptions{PackSize: 1 + m.r.Int64N(200<<10), SegmentSize: 100 + m.r.IntN(8000), PartialAfter: -1}
	m.w = m.f.writer()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("changes:\n%s", strings.ReplaceAll(strings.Join(m.log, "\n"), longName, "long"))
		}
	})
	return m
}

// snapshot makes a few changes and commits them, or gives them up.
func (m *modelRun) snapshot() {
	if m.r.IntN(4) == 0 {
		m.w = m.f.writer()
	}
	source := must(m.w.Source("s"))
	sec := int64(len(m.log) + 1000)
	guid := [16]byte{1}
	binary.LittleEndian.PutUint64(guid[8:], uint64(sec))
	u, err := m.w.Begin(m.t.Context(), source, SnapshotInfo{Time: filetree.Time{Sec: sec}, GUID: guid})
	if err != nil {
		m.t.Fatal(err)
	}
	m.u = u
	before := m.now.copy()
	switch k := m.r.IntN(12); {
	case k == 0 && m.head > 0:
		m.logf("clear")
		m.ok(u.Clear())
		m.now = emptyState()
		m.now.Snapshots = before.Snapshots
	case k <= 2 && m.head > 1:
		seq := 1 + m.r.Uint64N(m.head)
		m.logf("revert to #%d", seq)
		m.ok(u.Revert(seq))
		m.now = m.snaps[seq].copy()
		m.now.Snapshots = before.Snapshots
	}
	if m.head == 0 {
		for range 10 {
			m.create()
		}
	}
	for range m.r.IntN(40) {
		m.change()
	}
	defer m.f.checkSignatures(source)
	if m.r.IntN(6) == 0 {
		m.logf("abort")
		u.Abort()
		m.now = before
		return
	}
	s, err := u.Commit()
	if errors.Is(err, ErrUnchanged) {
		m.logf("unchanged")
		if was, is := m.describeModel(before), m.describeModel(m.now); is != was {
			m.t.Fatalf("said to be unchanged (-was +is):\n%s", differing(was, is))
		}
		m.now = before
		return
	}
	m.ok(err)
	m.logf("commit #%d", s.Seq)
	m.head = s.Seq
	m.snaps[s.Seq] = m.now.copy()
	m.now.Snapshots[guid] = m.snaps[s.Seq].Model
	if m.r.IntN(3) == 0 {
		seq := m.head - m.r.Uint64N(min(m.head, 2))
		m.logf("checkpoint #%d", seq)
		if _, err := m.w.Checkpoint(m.t.Context(), source, seq); err != nil {
			m.t.Fatal(err)
		}
	}
	m.check(m.f.cat, source, 1)
}

// check compares all snapshots from the given one on.
func (m *modelRun) check(cat *catalog.DB, source catalog.Source, from uint64) {
	m.t.Helper()
	c := NewContent(m.f.store, m.f.identity, cat, m.f.identities)
	for seq := from; seq <= m.head; seq++ {
		got, want := describeView(m.t, c, cat.At(source.ID, seq)), m.describeModel(m.snaps[seq])
		if got != want {
			m.t.Fatalf("#%d (-want +got):\n%s", seq, differing(want, got))
		}
	}
}

// checkStored compares what is stored with the model.
func (m *modelRun) checkStored() {
	if m.head == 0 {
		return
	}
	db, src := m.f.rebuilt()
	m.logf("rebuilt")
	m.check(db, src, 1)
	m.checkSince(db, src)
	x, err := ReadIndex(m.t.Context(), m.f.store, m.f.identity)
	m.ok(err)
	checkLoad(m.t.Context(), m.t, m.f.store, m.f.identity, 0)
	for seq := uint64(1); seq <= m.head; seq++ {
		m.logf("load at #%d", seq)
		checkLoad(m.t.Context(), m.t, m.f.store, m.f.identity, seq)
		db := tempCatalog(m.t)
		src, err := x.LoadAt(m.t.Context(), db, &x.Sources[0], seq, nil)
		m.ok(err)
		c := NewContent(m.f.store, m.f.identity, db, m.f.identities)
		if got, want := describeView(m.t, c, db.At(src.ID, seq)), m.describeModel(m.snaps[seq]); got != want {
			m.t.Fatalf("#%d (-want +got):\n%s", seq, differing(want, got))
		}
		db.Close()
	}
	if len(x.Problems) > 0 {
		m.t.Error(x.Problems)
	}
	checkVerify(m.t, m.f, db)
}

// checkSince expects that a rebuilt catalog tells of the same differences as that of the
// writer, and that there are none only where there are none in the model.
func (m *modelRun) checkSince(db *catalog.DB, src catalog.Source) {
	source := must(m.w.Source("s"))
	since := func(v catalog.View, from uint64) string {
		var text strings.Builder
		for d, err := range v.Since(m.t.Context(), from) {
			m.ok(err)
			fmt.Fprintf(&text, "%d %q %q node %d %v %d %v\n", d.Change, d.Path, d.From, d.Node, d.What.Names(), d.Bytes, d.Link)
		}
		return text.String()
	}
	for to := uint64(1); to <= m.head; to++ {
		for from := uint64(1); from <= to; from++ {
			want, got := since(m.f.cat.At(source.ID, to), from), since(db.At(src.ID, to), from)
			if got != want {
				m.t.Fatalf("#%d to #%d (-writer +rebuilt):\n%s", from, to, differing(want, got))
			}
			if want == "" && m.snaps[from].paths() != m.snaps[to].paths() {
				m.t.Fatalf("#%d to #%d: nothing differs, but\n%s\n%s", from, to, m.snaps[from].paths(), m.snaps[to].paths())
			}
		}
	}
}

// paths are the paths, kinds, modes and sizes in a state.
func (s modelState) paths() string {
	var all []string
	s.Walk(func(path string, n *sendtest.Node) {
		all = append(all, fmt.Sprintf("%q %v %o %d", path, n.Attr.Kind, n.Attr.Mode, n.Attr.Size))
	})
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// checkVerify expects Verify to find nothing.
func checkVerify(t *testing.T, f *fixture, cat *catalog.DB) {
	t.Helper()
	x, err := ReadIndex(t.Context(), f.store, f.identity)
	if err != nil {
		t.Fatal(err)
	}
	for d := range Verify(t.Context(), f.store, x, cat, VerifyOptions{Identities: f.identities}, &VerifyResult{}) {
		t.Error(d)
	}
}

func tempCatalog(t testing.TB) *catalog.DB {
	t.Helper()
	db, err := catalog.Open(filepath.Join(t.TempDir(), "catalog.db"), catalog.Options{Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func (m *modelRun) logf(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

func (m *modelRun) ok(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// agree compares the errors of the history and of the model: both refuse or none does.
func (m *modelRun) agree(got, want error) bool {
	m.t.Helper()
	m.log[len(m.log)-1] += fmt.Sprintf(": %v", want)
	refused := errors.Is(got, filetree.ErrNotExist) || errors.Is(got, filetree.ErrInvalid)
	if (got == nil) != (want == nil) || got != nil && !refused {
		m.t.Fatalf("%s: got %v, want %v", m.log[len(m.log)-1], got, want)
	}
	return got == nil
}

const noNode = 99999

// id is the number that a node of the model has in the history.
func (m *modelRun) id(n filetree.NodeID) filetree.NodeID {
	if id, ok := m.now.ids[n]; ok {
		return id
	}
	return noNode
}

// node picks a node, or rarely one that is none.
func (m *modelRun) node(want func(*sendtest.Node) bool) filetree.NodeID {
	if m.r.IntN(40) == 0 {
		return noNode
	}
	var all []filetree.NodeID
	m.now.Walk(func(_ string, n *sendtest.Node) {
		if want(n) || m.r.IntN(40) == 0 {
			all = append(all, n.ID)
		}
	})
	if len(all) == 0 {
		return filetree.RootNode
	}
	return all[m.r.IntN(len(all))]
}

func (m *modelRun) dir() filetree.NodeID {
	return m.node(func(n *sendtest.Node) bool { return n.Attr.Kind == filetree.Dir })
}

func (m *modelRun) file() filetree.NodeID {
	return m.node(func(n *sendtest.Node) bool { return n.Attr.Kind == filetree.File })
}

var longName = strings.Repeat("n", filetree.MaxName)

func (m *modelRun) name() string {
	names := []string{"a", "b", "c", "d", "e\xff", "f g", longName}
	if m.r.IntN(40) == 0 {
		names = []string{"", ".", "..", "a/b", "a\x00", strings.Repeat("n", 256)}
	}
	return names[m.r.IntN(len(names))]
}

// entry picks an entry that most likely is there.
func (m *modelRun) entry() (filetree.NodeID, string) {
	d := m.dir()
	if n := m.now.Node(d); n != nil && len(n.Entries) > 0 && m.r.IntN(10) > 0 {
		names := slices.Sorted(maps.Keys(n.Entries))
		return d, names[m.r.IntN(len(names))]
	}
	return d, m.name()
}

func (m *modelRun) attr(kind filetree.Kind) filetree.Attr {
	a := filetree.Attr{Kind: kind, Mode: uint32(m.r.IntN(0o10000))}
	if m.r.IntN(2) == 0 {
		a.UID, a.GID = uint32(m.r.IntN(3))+1e9, uint32(m.r.IntN(3))+1e9
		a.Mtime = filetree.Time{Sec: m.r.Int64() >> m.r.IntN(63), Nsec: uint32(m.r.IntN(1e9))}
		a.Ctime = a.Mtime
	}
	if m.r.IntN(3) == 0 {
		a.Ctime, a.Btime = filetree.Time{Sec: -m.r.Int64N(1e10), Nsec: 1}, filetree.Time{Sec: 5}
		a.Flags, a.Ino, a.Gen = m.r.Uint32(), m.r.Uint64(), m.r.Uint64N(3)
		a.Incomplete = m.r.IntN(4) == 0
	}
	for i := range m.r.IntN(3) {
		a.Xattrs = append(a.Xattrs, filetree.Xattr{Name: fmt.Sprint("user.", i), Value: []byte(strings.Repeat("v", m.r.IntN(30)))})
	}
	switch kind {
	case filetree.Symlink:
		a.Target = fmt.Sprint("../\xfe", m.r.IntN(9))
	case filetree.CharDev, filetree.BlkDev:
		a.Major, a.Minor = uint32(m.r.IntN(9)), m.r.Uint32N(1<<20)
	}
	return a
}

func (m *modelRun) kind() filetree.Kind {
	if m.r.IntN(3) > 0 {
		return filetree.File
	}
	if m.r.IntN(2) > 0 {
		return filetree.Dir
	}
	return filetree.Kind(m.r.IntN(9)) // 0 and 8 are none
}

// data returns some bytes, often some that were there before.
func (m *modelRun) data() []byte {
	r := rand.New(rand.NewPCG(m.r.Uint64N(12), 0))
	size := []int{1, 10, 63, 64, 65, 4096, 4097, 20000, 70000, 300000, 1 << 20}[r.IntN(11)]
	b := make([]byte, size)
	for i := 0; i < size; i += 8 {
		v := r.Uint64()
		if r.IntN(3) > 0 {
			v = 0x2020202020202020
		}
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], v)
		copy(b[i:], w[:])
	}
	return b
}

func (m *modelRun) off() int64 {
	switch m.r.IntN(12) {
	case 0:
		return -1
	case 1:
		return []int64{1 << 40, 1 << 62, math.MaxInt64 - 100}[m.r.IntN(3)]
	case 2:
		return 0
	case 3:
		return m.r.Int64N(4 << 20)
	}
	return m.r.Int64N(100 << 10)
}

// within returns an offset of a file, mostly.
func (m *modelRun) within(n filetree.NodeID) int64 {
	if nd := m.now.Node(n); nd != nil && nd.Attr.Size > 0 && m.r.IntN(5) > 0 {
		return m.r.Int64N(min(nd.Attr.Size, 5<<20))
	}
	return m.off()
}

func (m *modelRun) length() int64 {
	switch m.r.IntN(10) {
	case 0:
		return 0
	case 1:
		return []int64{-1, 1 << 45, 1 << 62, math.MaxInt64}[m.r.IntN(4)]
	}
	return m.r.Int64N([]int64{10, 5000, 300000, 3 << 20}[m.r.IntN(4)]) + 1
}

func (m *modelRun) change() {
	switch m.r.IntN(18) {
	case 0:
		m.rename()
	case 1:
		d, name := m.entry()
		m.logf("unlink %d %q", d, name)
		m.agree(m.u.Unlink(m.id(d), name), m.now.Unlink(d, name))
	case 2:
		d, name, n := m.dir(), m.name(), m.file()
		m.logf("link %d %q %d", d, name, n)
		m.agree(m.u.Link(m.id(d), name, m.id(n)), m.now.Link(d, name, n))
	case 3:
		m.setAttr()
	case 4, 5:
		n, data := m.file(), m.data()
		off := m.within(n)
		if m.r.IntN(20) == 0 {
			data = nil
		}
		m.logf("write %d at %d, %d bytes", n, off, len(data))
		m.agree(m.u.Write(m.id(n), off, data), m.now.Write(n, off, data))
	case 6:
		n := m.file()
		off, length := m.within(n), m.length()
		m.logf("hole %d at %d, %d bytes", n, off, length)
		m.agree(m.u.Hole(m.id(n), off, length), m.now.Hole(n, off, length))
	case 7:
		n, size := m.file(), m.length()
		if m.r.IntN(4) == 0 {
			size = m.within(n)
		}
		m.logf("truncate %d to %d", n, size)
		m.agree(m.u.Truncate(m.id(n), size), m.now.Truncate(n, size))
	case 8:
		m.clone()
	case 9:
		m.add()
	case 10:
		m.replace()
	case 11:
		d, name := m.entry()
		m.logf("remove %d %q", d, name)
		m.agree(m.u.RemoveName(m.id(d), name), m.now.RemoveAll(d, name))
	case 12:
		d, name, n := m.dir(), m.name(), m.file()
		// AddLink asks no questions.
		if _, _, err := m.now.Lookup(d, name); !errors.Is(err, filetree.ErrNotExist) || m.now.Node(d) == nil || m.now.Node(d).Attr.Kind != filetree.Dir {
			return
		}
		if nd := m.now.Node(n); nd == nil || nd.Attr.Kind == filetree.Dir {
			return
		}
		m.logf("add link %d %q %d", d, name, n)
		m.agree(m.u.AddLink(m.id(d), name, m.id(n)), m.now.Link(d, name, n))
	case 13:
		m.put()
	case 14, 15:
		m.edit()
	default:
		m.create()
	}
}

// edit writes a range of a file as a stream does in which little changed.
func (m *modelRun) edit() {
	n := m.file()
	nd := m.now.Node(n)
	if nd == nil || nd.Attr.Kind != filetree.File || nd.Attr.Size == 0 {
		return
	}
	off := m.within(n) &^ 4095
	if off < 0 || off >= nd.Attr.Size {
		off = 0
	}
	data := m.modelBytes(n, off, min(m.r.Int64N(500_000)+1, nd.Attr.Size-off))
	for range m.r.IntN(4) {
		data[m.r.IntN(len(data))]++
	}
	m.logf("edit %d at %d, %d bytes", n, off, len(data))
	m.agree(m.u.Write(m.id(n), off, data), m.now.Write(n, off, data))
}

func (m *modelRun) create() {
	d, name, a := m.dir(), m.name(), m.attr(m.kind())
	m.logf("create %d %q %v", d, name, a.Kind)
	got, err := m.u.Create(m.id(d), name, a)
	n, want := m.now.Create(d, name, a)
	if m.agree(err, want) {
		m.now.ids[n] = got
	}
}

// add makes a node as a walk does: with its size, and in pieces.
func (m *modelRun) add() {
	d, name, a := m.dir(), m.name(), m.attr(m.kind())
	if _, _, err := m.now.Lookup(d, name); !errors.Is(err, filetree.ErrNotExist) || !a.Kind.Valid() || m.now.Node(d) == nil {
		return // Add asks no questions
	}
	m.logf("add %d %q %v", d, name, a.Kind)
	n, want := m.now.Create(d, name, a)
	if want == nil && a.Kind == filetree.File {
		a.Size = m.r.Int64N(3 << 20)
		must(0, m.now.Truncate(n, a.Size))
	}
	got, err := m.u.Add(m.id(d), name, &a)
	if m.agree(err, want) {
		m.now.ids[n] = got
		for range m.r.IntN(4) {
			m.putInto(n)
		}
	}
}

func (m *modelRun) replace() {
	n := m.node(func(*sendtest.Node) bool { return true })
	nd := m.now.Node(n)
	if nd == nil {
		return
	}
	a := m.attr(nd.Attr.Kind)
	if m.r.IntN(4) == 0 {
		a = nd.Attr
	}
	a.Size = nd.Attr.Size
	if a.Kind == filetree.File && m.r.IntN(2) == 0 {
		a.Size = m.r.Int64N(3 << 20)
	}
	m.logf("replace %d, size %d", n, a.Size)
	m.ok(m.u.Replace(m.id(n), &a))
	size := a.Size
	must(0, m.now.SetAttr(n, func(old *filetree.Attr) { a.Size = old.Size; *old = a }))
	if a.Kind == filetree.File {
		must(0, m.now.Truncate(n, size))
	}
}

func (m *modelRun) setAttr() {
	n := m.node(func(*sendtest.Node) bool { return true })
	change := func(a *filetree.Attr) {}
	switch m.r.IntN(4) {
	case 0:
		change = func(a *filetree.Attr) { a.Mode ^= 0o22 }
	case 1:
		change = func(a *filetree.Attr) { a.Mtime = filetree.Time{} }
	case 2:
		change = func(a *filetree.Attr) { a.Xattrs = nil; a.UID = 0 }
	}
	m.logf("set attr %d", n)
	m.agree(m.u.SetAttr(m.id(n), change), m.now.SetAttr(n, change))
}

func (m *modelRun) rename() {
	d, name := m.entry()
	to, toName := m.dir(), m.name()
	m.logf("rename %d %q to %d %q", d, name, to, toName)
	m.agree(m.u.Rename(m.id(d), name, m.id(to), toName), m.now.Rename(d, name, to, toName))
}

func (m *modelRun) clone() {
	n, src := m.file(), m.file()
	off, srcOff, length := m.within(n), m.within(src), m.length()
	if m.r.IntN(3) > 0 {
		if src == n && length > cloneStep {
			return // refused where the ranges overlap
		}
		m.logf("clone %d at %d from %d at %d, %d bytes", n, off, src, srcOff, length)
		m.agree(m.u.Clone(m.id(n), off, m.id(src), srcOff, length), m.now.Clone(n, off, src, srcOff, length))
		return
	}
	guids := slices.SortedFunc(maps.Keys(m.now.Snapshots), func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	guid, path := [16]byte{9}, "a"
	if len(guids) > 0 && m.r.IntN(10) > 0 {
		guid = guids[m.r.IntN(len(guids))]
		var paths []string
		m.now.Snapshots[guid].Walk(func(p string, n *sendtest.Node) {
			if n.Attr.Kind == filetree.File || m.r.IntN(20) == 0 {
				paths = append(paths, p)
			}
		})
		if len(paths) > 0 {
			path = cmp.Or(paths[m.r.IntN(len(paths))], "none")
		}
	}
	m.logf("clone %d at %d from %x %q at %d, %d bytes", n, off, guid, path, srcOff, length)
	src, err := m.now.Resolve(guid, path)
	got, gotErr := m.u.Resolve(guid, path)
	if m.agree(gotErr, err); err == nil {
		m.agree(m.u.CloneFrom(m.id(n), off, guid, got, srcOff, length), m.now.CloneFrom(n, off, guid, src, srcOff, length))
	}
}

// put sets a piece of a file as a reader of the new tree does.
func (m *modelRun) put() {
	if n := m.file(); m.now.Node(n) != nil && m.now.Node(n).Attr.Kind == filetree.File {
		m.putInto(n)
	}
}

func (m *modelRun) putInto(n filetree.NodeID) {
	size := m.now.Node(n).Attr.Size
	if m.now.Node(n).Attr.Kind != filetree.File || size == 0 {
		return
	}
	m.ok(m.u.flushWrite()) // what is looked at below
	p := Piece{Offset: m.r.Int64N(min(size, 4<<20))}
	off := p.Offset
	left := min(size-off, catalog.MaxPart)
	holes := false
	var patched int64
	for range 1 + m.r.IntN(4) {
		if left == 0 {
			break
		}
		k := min(left, m.length(), 200000)
		if k <= 0 {
			continue
		}
		var it Item
		switch m.r.IntN(5) {
		case 0:
			it.Hole, holes = k, true
			must(0, m.now.Hole(n, off, k))
		case 1:
			it.Keep = k
		case 2: // a patch on what was there
			parts := must(m.u.View().Parts(m.id(n), off, off+k))
			deep := slices.ContainsFunc(parts, func(p catalog.Part) bool { return p.Depth() >= catalog.MaxDepth })
			base := m.modelBytes(n, off, k)
			data := slices.Concat(base[:k/2], []byte("!"), base[k/2:])[:k]
			if deep {
				it.Data = data
			} else {
				it.Patch = &NewPatch{Patch: delta.Patch(base, data), Base: parts, Result: len(data)}
				patched++
			}
			must(0, m.now.Write(n, off, data))
		default:
			it.Data = m.data()
			it.Data = it.Data[:min(k, int64(len(it.Data)))]
			k = int64(len(it.Data))
			must(0, m.now.Write(n, off, it.Data))
			if k >= MinContent {
				it.CID = m.u.ContentID(it.Data)
				if parts := must(m.u.Known(it.CID)); parts != nil && m.r.IntN(2) == 0 {
					it = Item{Parts: parts}
				}
			}
		}
		p.Items = append(p.Items, it)
		off, left = off+k, left-k
	}
	all := m.modelBytes(n, p.Offset, off-p.Offset)
	// What is kept may be a hole, which a content id is not for.
	parts := must(m.u.View().Parts(m.id(n), p.Offset, off))
	for _, it := range p.Items {
		holes = holes || it.Keep > 0 && slices.ContainsFunc(parts, catalog.Part.Hole)
	}
	if !holes && len(all) >= MinContent && m.r.IntN(2) == 0 {
		p.CID = m.u.ContentID(all)
	}
	m.logf("put %d at %d, %d bytes in %d items, %d patches, cid %v", n, p.Offset, off-p.Offset, len(p.Items), patched, p.CID != [16]byte{})
	m.ok(m.u.Put(m.id(n), p))
}

// modelBytes returns bytes of a file of the model.
func (m *modelRun) modelBytes(n filetree.NodeID, off, length int64) []byte {
	nd := m.now.Node(n)
	b := make([]byte, 0, length)
	for int64(len(b)) < length {
		at := off + int64(len(b))
		blk := nd.Block(at / sendtest.BlockSize)[at%sendtest.BlockSize:]
		b = append(b, blk[:min(int64(len(blk)), length-int64(len(b)))]...)
	}
	return b
}

// differing returns the lines of which the other has none.
func differing(want, got string) string {
	a, b := strings.SplitAfter(want, "\n"), strings.SplitAfter(got, "\n")
	var d strings.Builder
	for _, l := range a {
		if !slices.Contains(b, l) {
			d.WriteString("-" + l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			d.WriteString("+" + l)
		}
	}
	return strings.ReplaceAll(d.String(), longName, "long")
}

// A description is text that says all of a tree.
type description struct {
	strings.Builder
}

func (d *description) node(path string, id filetree.NodeID, a filetree.Attr, blocks map[int64]*[sendtest.BlockSize]byte) {
	if len(a.Xattrs) == 0 {
		a.Xattrs = nil
	}
	fmt.Fprintf(d, "%q %d %+v", path, id, a)
	h := sha256.New()
	n := 0
	for _, b := range slices.Sorted(maps.Keys(blocks)) {
		if *blocks[b] != [sendtest.BlockSize]byte{} {
			n++
			h.Write(binary.LittleEndian.AppendUint64(nil, uint64(b)))
			h.Write(blocks[b][:])
		}
	}
	fmt.Fprintf(d, " %d blocks %.4x\n", n, h.Sum(nil))
}

func (m *modelRun) describeModel(s modelState) string {
	var d description
	s.Walk(func(path string, n *sendtest.Node) {
		blocks := map[int64]*[sendtest.BlockSize]byte{}
		for _, b := range n.Blocks() {
			blocks[b] = n.Block(b)
		}
		d.node(path, s.ids[n.ID], n.Attr, blocks)
	})
	return d.String()
}

// describeView describes a state of a history, and reads all there is in it.
func describeView(t testing.TB, c *Content, v catalog.View) string {
	t.Helper()
	d, err := tryDescribe(t.Context(), c, v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func tryDescribe(ctx context.Context, c *Content, v catalog.View) (string, error) {
	var d description
	var walk func(n filetree.NodeID, path string, a filetree.Attr) error
	walk = func(n filetree.NodeID, path string, a filetree.Attr) error {
		blocks := map[int64]*[sendtest.BlockSize]byte{}
		for from := int64(0); ; {
			var err error
			if from, err = v.NextExtent(n, from); err != nil {
				return err
			}
			if from == math.MaxInt64 {
				break
			}
			to := from + min(catalog.MaxPart, math.MaxInt64-from)
			parts, err := v.Parts(n, from, to)
			if err != nil {
				return err
			}
			for _, p := range parts {
				if !p.Hole() {
					b, err := c.Read(ctx, p)
					if err != nil {
						return fmt.Errorf("%s: %w", path, err)
					}
					setBlocks(blocks, from, b)
				}
				from += p.Length
			}
		}
		d.node(path, n, a, blocks)
		for ch, err := range v.Children(n) {
			if err != nil {
				return err
			}
			if err := walk(ch.Node, strings.TrimPrefix(path+"/"+ch.Name, "/"), ch.Attr); err != nil {
				return err
			}
		}
		return nil
	}
	a, err := v.Attr(filetree.RootNode)
	if err == nil {
		err = walk(filetree.RootNode, "", a)
	}
	return d.String(), err
}

func setBlocks(blocks map[int64]*[sendtest.BlockSize]byte, off int64, b []byte) {
	for len(b) > 0 {
		n := off / sendtest.BlockSize
		if blocks[n] == nil {
			blocks[n] = new([sendtest.BlockSize]byte)
		}
		k := copy(blocks[n][off%sendtest.BlockSize:], b)
		off, b = off+int64(k), b[k:]
	}
}
