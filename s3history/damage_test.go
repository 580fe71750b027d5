package s3history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/storetest"
)

// A restored is what can be read of a history from the store alone: of each snapshot
// each file's content, or why it cannot be.
type restored struct {
	problems []error
	files    map[string]string // "#seq path" to a hash of the content
	failed   map[string]error
}

// restoreAll reads all there is, as a machine does that has only the identities.
func restoreAll(ctx context.Context, t testing.TB, f *fixture, s store.Store) (*restored, error) {
	r := &restored{files: map[string]string{}, failed: map[string]error{}}
	repo, err := Open(ctx, s, f.identities)
	if err != nil {
		return nil, err
	}
	x, err := ReadIndex(ctx, s, repo.Writers[0])
	if err != nil {
		return nil, err
	}
	for i := range x.Sources {
		db := tempCatalog(t)
		defer db.Close()
		src, err := x.LoadAll(ctx, db, &x.Sources[i], nil)
		if err != nil {
			return nil, err
		}
		c := NewContent(s, repo.Writers[0], db, f.identities)
		snaps, err := Snapshots(db, src)
		if err != nil {
			return nil, err
		}
		for _, sn := range snaps {
			if err := r.snapshot(ctx, c, db.At(src.ID, sn.Seq), sn.Seq); err != nil {
				return nil, err
			}
		}
	}
	r.problems = x.Problems
	checkLoad(ctx, t, s, repo.Writers[0], 0)
	return r, nil
}

func (r *restored) snapshot(ctx context.Context, c *Content, v catalog.View, seq uint64) error {
	var walk func(n filetree.NodeID, path string) error
	walk = func(n filetree.NodeID, path string) error {
		for ch, err := range v.Children(n) {
			if err != nil {
				return err
			}
			p := path + "/" + ch.Name
			name := fmt.Sprintf("#%d %s", seq, p)
			r.files[name] = "dir"
			if ch.Attr.Kind == filetree.File {
				var b bytes.Buffer
				if err := c.WriteFile(ctx, v, ch.Node, ch.Attr.Size, &b); err != nil {
					delete(r.files, name)
					r.failed[name] = err
				} else {
					r.files[name] = fmt.Sprintf("%x", hashOf(b.Bytes()))
				}
			}
			if err := walk(ch.Node, p); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(filetree.RootNode, "")
}

// damaged is a fixture with the history of steps, and what it is when it is whole.
func damaged(t *testing.T) (*fixture, *restored) {
	f := newFixture(t)
	smallObjects(f)
	if err := runSteps(t, f); err != nil {
		t.Fatal(err)
	}
	whole, err := restoreAll(t.Context(), t, f, f.mem)
	if err != nil || len(whole.failed) > 0 || len(whole.problems) > 0 {
		t.Fatal(err, whole)
	}
	return f, whole
}

func isCopied(key string) bool {
	return slices.ContainsFunc([]string{"meta", "keys"}, func(p string) bool { return strings.HasPrefix(key, p) })
}

// TestLoseOne loses each object in turn.
func TestLoseOne(t *testing.T) {
	f, whole := damaged(t)
	source := must(f.cat.Sources())[0]
	for _, key := range f.mem.Keys() {
		m := f.mem.Clone()
		m.Lose(key)
		got, err := restoreAll(t.Context(), t, f, m)
		if err != nil {
			t.Errorf("without %s: %v", key, err)
			continue
		}
		if len(got.problems) > 0 {
			t.Errorf("without %s: %v", key, got.problems)
		}
		want := map[string]bool{}
		if strings.HasPrefix(key, "packs/") {
			id := must(f.cat.PackNamed([32]byte(unhex(t, key[len(key)-64:]))))
			for _, sn := range must(f.cat.Snapshots(source.ID)) {
				want = merge(want, filesOf(t, f.cat.At(source.ID, sn.Seq), sn.Seq, id))
			}
			if len(want) == 0 {
				t.Errorf("no file needs %s", key)
			}
		}
		for name, err := range got.failed {
			if !want[name] {
				t.Errorf("without %s: %s: %v", key, name, err)
			}
			if !errors.Is(err, store.ErrNotExist) || !strings.Contains(err.Error(), key) {
				t.Errorf("without %s: %s fails with %v", key, name, err)
			}
			delete(want, name)
		}
		for name := range want {
			t.Errorf("without %s: %s can be read", key, name)
		}
		for name, sum := range got.files {
			if whole.files[name] != sum {
				t.Errorf("without %s: %s is something else", key, name)
			}
		}
		if len(got.files)+len(got.failed) != len(whole.files) {
			t.Errorf("without %s: %d files and %d failed of %d", key, len(got.files), len(got.failed), len(whole.files))
		}
	}
}

func merge(a, b map[string]bool) map[string]bool { maps.Copy(a, b); return a }

func unhex(t *testing.T, s string) []byte {
	var b [32]byte
	must(0, parseHex(s, b[:]))
	return b[:]
}

// needs reports whether the bytes of a part are in a pack, or are made of some that are.
func needs(p catalog.Part, pack catalog.PackID) bool {
	if q := p.Patch; q != nil {
		return q.Pack == pack || slices.ContainsFunc(q.Base, func(b catalog.Part) bool { return needs(b, pack) })
	}
	return p.Pack == pack
}

// filesOf returns the files of a snapshot that have bytes in a pack, found by looking
// at all of them.
func filesOf(t *testing.T, v catalog.View, seq uint64, pack catalog.PackID) map[string]bool {
	found := map[string]bool{}
	var walk func(n filetree.NodeID, path string)
	walk = func(n filetree.NodeID, path string) {
		for ch, err := range v.Children(n) {
			must(0, err)
			p := path + "/" + ch.Name
			for _, e := range must(v.Extents(ch.Node, 0, math.MaxInt64)) {
				if needs(e.Part, pack) {
					found[fmt.Sprintf("#%d %s", seq, p)] = true
				}
			}
			walk(ch.Node, p)
		}
	}
	walk(filetree.RootNode, "")
	return found
}

// TestAlterOne alters each object in turn. What can be read is what it was, and what
// cannot fails with the object's name; where there is a copy nothing fails.
func TestAlterOne(t *testing.T) {
	f, whole := damaged(t)
	other := map[string]string{} // of each kind some other key
	keys := f.mem.Keys()
	for _, k := range keys {
		kind, _, _ := strings.Cut(k, "/")
		other[kind] = k
	}
	alter := map[string]func(m *storetest.Mem, key string) bool{
		"flipped": func(m *storetest.Mem, key string) bool {
			b := m.Bytes(key)
			b[len(b)/2] ^= 1
			m.Set(key, b)
			return true
		},
		"cut":   func(m *storetest.Mem, key string) bool { b := m.Bytes(key); m.Set(key, b[:len(b)/2]); return true },
		"empty": func(m *storetest.Mem, key string) bool { m.Set(key, nil); return true },
		"junk":  func(m *storetest.Mem, key string) bool { m.Set(key, noise(3, len(m.Bytes(key)))); return true },
		"swapped": func(m *storetest.Mem, key string) bool {
			kind, _, _ := strings.Cut(key, "/")
			if other[kind] == key {
				return false
			}
			a, b := m.Bytes(key), m.Bytes(other[kind])
			m.Set(key, b)
			m.Set(other[kind], a)
			return true
		},
	}
	for _, how := range slices.Sorted(maps.Keys(alter)) {
		for i, key := range keys {
			if i%4 != len(how)%4 && !strings.HasPrefix(key, "packs/") && !strings.HasPrefix(key, "keys") && key != configKey {
				continue // manifests are many
			}
			m := f.mem.Clone()
			if !alter[how](m, key) {
				continue
			}
			got, err := restoreAll(t.Context(), t, f, m)
			if err != nil {
				t.Errorf("%s %s: %v", key, how, err)
				continue
			}
			if isCopied(key) && (len(got.problems) > 0 || len(got.failed) > 0) {
				t.Errorf("%s %s: %v %v", key, how, got.problems, got.failed)
			}
			if strings.HasPrefix(key, "packs/") && how != "flipped" && len(got.failed) == 0 {
				t.Errorf("%s %s: nobody noticed", key, how)
			}
			for name, err := range got.failed {
				sha := key[len(key)-64:]
				if !strings.Contains(err.Error(), sha) && !(how == "swapped" && strings.Contains(err.Error(), other["packs"][len("packs/00/"):])) {
					t.Errorf("%s %s: %s fails with %v", key, how, name, err)
				}
			}
			for name, sum := range got.files {
				if whole.files[name] != sum {
					t.Errorf("%s %s: %s is something else", key, how, name)
				}
			}
			if len(got.files)+len(got.failed) != len(whole.files) {
				t.Errorf("%s %s: %d files and %d failed of %d", key, how, len(got.files), len(got.failed), len(whole.files))
			}
			// Verify names what is wrong, all of it.
			x, err := ReadIndex(t.Context(), m, f.identity)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(key, "packs/") && !strings.HasPrefix(key, "meta") {
				continue
			}
			found := false
			for d := range Verify(t.Context(), m, x, f.cat, VerifyOptions{ReadData: true}, &VerifyResult{}) {
				found = found || d.Key == key
				if d.Copy != isCopied(key) || d.Key != key && how != "swapped" {
					t.Errorf("%s %s: verify says %+v", key, how, d)
				}
			}
			if !found {
				t.Errorf("%s %s: verify says nothing", key, how)
			}
		}
	}
}

// TestSwapNames gives manifests each other's names, in both copies.
func TestSwapNames(t *testing.T) {
	f, whole := damaged(t)
	names := rootKeys(f.mem, "")
	m := f.mem.Clone()
	for _, prefix := range metaPrefixes {
		a, b := m.Bytes(prefix+names[0]), m.Bytes(prefix+names[1])
		m.Set(prefix+names[0], b)
		m.Set(prefix+names[1], a)
		// And under a name that is right for the bytes, but for another number.
		n := must(parseMetaName(names[2]))
		n.seq = 9
		m.Set(prefix+n.String(), m.Bytes(prefix+names[2]))
	}
	got, err := restoreAll(t.Context(), t, f, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{names[0], names[1], "#9"} {
		if !strings.Contains(fmt.Sprint(got.problems), want) {
			t.Errorf("problems do not name %s: %v", want, got.problems)
		}
	}
	for name, sum := range got.files {
		if strings.HasPrefix(name, "#9") || whole.files[name] != sum {
			t.Errorf("%s is something else", name)
		}
	}
}

// rootKeys returns the names of manifests of a kind, in order, without their prefixes.
func rootKeys(m *storetest.Mem, kind rootKind) (names []string) {
	for _, k := range m.Keys() {
		if name, ok := strings.CutPrefix(k, metaPrefixes[0]); ok {
			if n := must(parseMetaName(name)); n.kind == kind {
				names = append(names, name)
			}
		}
	}
	return names
}

func lose(m *storetest.Mem, name string) {
	for _, prefix := range metaPrefixes {
		m.Lose(prefix + name)
	}
}

// TestLoseManifest loses both copies of each root and segment in turn: the history says
// so, the checkpoint heals what it can, and nothing that is read is wrong from there on.
func TestLoseManifest(t *testing.T) {
	f, whole := damaged(t) // its checkpoint is of #2
	for _, name := range slices.Concat(rootKeys(f.mem, kindRoot), rootKeys(f.mem, kindSegment)) {
		n := must(parseMetaName(name))
		m := f.mem.Clone()
		lose(m, name)
		got, err := restoreAll(t.Context(), t, f, m)
		if err != nil {
			t.Errorf("without %s: %v", name, err)
			continue
		}
		says := strings.Contains(fmt.Sprint(got.problems), fmt.Sprintf("#%d", n.seq))
		needed := n.kind != kindRoot || n.seq < 3 // that there was a newest one only the catalog knows
		if n.kind == kindSegment && n.seq == 2 {
			needed = says // it may be the checkpoint's, which nobody needs
		}
		if needed && !says {
			t.Errorf("without %s: problems are %v", name, got.problems)
		}
		for file, sum := range got.files {
			healed := n.seq <= 2 && !strings.HasPrefix(file, "#1 ")
			if healed && whole.files[file] != sum {
				t.Errorf("without %s: %s is something else", name, file)
			}
		}
		count := func(r *restored, snap string) (n int) {
			for file := range r.files {
				if strings.HasPrefix(file, snap) {
					n++
				}
			}
			return n
		}
		for seq := 2; n.seq <= 2 && seq <= 3; seq++ {
			if a, b := count(got, fmt.Sprintf("#%d ", seq)), count(whole, fmt.Sprintf("#%d ", seq)); a != b {
				t.Errorf("without %s: #%d has %d files of %d", name, seq, a, b)
			}
		}
		// Verify knows from the catalog what the store does not have.
		x := must(ReadIndex(t.Context(), m, f.identity))
		found := 0
		for d := range Verify(t.Context(), m, x, f.cat, VerifyOptions{}, &VerifyResult{}) {
			if strings.HasSuffix(d.Key, name) && !d.Copy && errors.Is(d.Err, store.ErrNotExist) {
				found++
			}
		}
		if found != len(metaPrefixes) {
			t.Errorf("without %s: verify found %d", name, found)
		}
	}
}

// TestHealLater loses a root for which only a later checkpoint makes up.
func TestHealLater(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	file := func(i int) func(u *Update) {
		return func(u *Update) {
			n := must(u.Create(filetree.RootNode, fmt.Sprint("f", i), fileAttr))
			must(0, u.Write(n, 0, noise(i, 500)))
			if i > 1 {
				n, _, err := u.Lookup(filetree.RootNode, fmt.Sprint("f", i-1))
				must(0, err)
				must(0, u.SetAttr(n, func(a *filetree.Attr) { a.Mode = 0o600 }))
			}
		}
	}
	for i := 1; i <= 6; i++ {
		must(f.commit(w, int64(i), file(i)))
	}
	source := must(w.Source("s"))
	must(w.Checkpoint(t.Context(), source, 5))
	whole, err := restoreAll(t.Context(), t, f, f.mem)
	if err != nil {
		t.Fatal(err)
	}
	for lost := 1; lost <= 4; lost++ {
		m := f.mem.Clone()
		lose(m, rootKeys(f.mem, kindRoot)[lost-1])
		got, err := restoreAll(t.Context(), t, f, m)
		if err != nil || len(got.problems) == 0 {
			t.Fatalf("without #%d: %v, %v", lost, err, got)
		}
		files := map[int]int{}
		for name, sum := range got.files {
			if whole.files[name] != sum {
				t.Errorf("without #%d: %s is something else", lost, name)
			}
			var seq int
			must(fmt.Sscanf(name, "#%d", &seq))
			files[seq]++
		}
		// Before the checkpoint only the file of the lost snapshot is missing.
		for seq := 1; seq <= 6; seq++ {
			want := seq
			switch {
			case seq == lost:
				want = 0
			case seq > lost && seq < 5:
				want--
			}
			if files[seq] != want {
				t.Errorf("without #%d: %d files in #%d, want %d: %v", lost, files[seq], seq, want, got.problems)
			}
		}
	}
	// The newest root is lost, and a checkpoint is of it: what follows, follows it.
	must(w.Checkpoint(t.Context(), source, 6))
	m := f.mem.Clone()
	lose(m, rootKeys(f.mem, kindRoot)[5])
	g := *f
	g.mem, g.store, g.dir = m, m, t.TempDir()
	g.cat = tempCatalog(t)
	x := must(ReadIndex(t.Context(), m, f.identity))
	must(x.LoadAll(t.Context(), g.cat, &x.Sources[0], nil))
	if _, err := g.commit(g.writer(), 7, file(7)); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range metaPrefixes { // it is found again
		name := rootKeys(f.mem, kindRoot)[5]
		m.Set(prefix+name, f.mem.Bytes(prefix+name))
	}
	if x := must(ReadIndex(t.Context(), m, f.identity)); len(x.Problems) > 0 {
		t.Error(x.Problems)
	}
}

// TestHealPack loses the manifest that told of a pack: the pack tells of itself. It is
// not believed when it is another's.
func TestHealPack(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	one := func(i int) func(u *Update) {
		return func(u *Update) {
			n := must(u.Create(filetree.RootNode, fmt.Sprint("f", i), fileAttr))
			must(0, u.Write(n, 0, noise(i, 5000)))
		}
	}
	must(f.commit(w, 1, one(1)))
	must(f.commit(w, 2, one(2)))
	must(f.commit(w, 3, one(3)))
	must(f.commit(w, 4, func(u *Update) { // names the packs of the others
		for i := 1; i <= 3; i++ {
			n, _, err := u.Lookup(filetree.RootNode, fmt.Sprint("f", i))
			must(0, err)
			c := must(u.Create(filetree.RootNode, fmt.Sprint("c", i), fileAttr))
			must(0, u.Clone(c, 0, n, 0, 5000))
		}
	}))
	m := f.mem.Clone()
	for _, name := range rootKeys(m, "")[1:3] {
		lose(m, name)
	}
	got, err := restoreAll(t.Context(), t, f, m)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 3; i++ {
		if sum := fmt.Sprintf("%x", hashOf(noise(i, 5000))); got.files[fmt.Sprint("#4 /c", i)] != sum {
			t.Errorf("c%d: %q, %v", i, got.files[fmt.Sprint("#4 /c", i)], got.failed)
		}
	}
	var packs []string
	for _, k := range m.Keys() {
		if strings.HasPrefix(k, "packs/") {
			packs = append(packs, k)
		}
	}
	a, b, c := m.Bytes(packs[0]), m.Bytes(packs[1]), m.Bytes(packs[2])
	m.Set(packs[0], b)
	m.Set(packs[1], c)
	m.Set(packs[2], a)
	if got, err = restoreAll(t.Context(), t, f, m); err != nil {
		t.Fatal(err)
	}
	for name := range got.files {
		t.Errorf("%s was read from another's pack", name)
	}
}

// TestFork lets two writers with the same state make the same snapshot.
func TestFork(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	add := func(name string) func(u *Update) {
		return func(u *Update) { must(u.Create(filetree.RootNode, name, fileAttr)) }
	}
	must(f.commit(w, 1, add("a")))
	g := *f
	g.cat, g.dir = tempCatalog(t), t.TempDir()
	x := must(ReadIndex(t.Context(), f.mem, f.identity))
	must(x.LoadAll(t.Context(), g.cat, &x.Sources[0], nil))
	mine := f.mem
	g.mem = mine.Clone()
	g.store = g.mem
	v := g.writer()
	for sec := int64(2); sec <= 4; sec++ {
		must(f.commit(w, sec, add(fmt.Sprint("w", sec))))
		must(g.commit(v, sec, add(fmt.Sprint("v", sec))))
	}
	must(f.commit(w, 5, add("w5")))
	both := mine.Clone()
	for _, k := range g.mem.Keys() {
		both.Set(k, g.mem.Bytes(k))
	}
	x = must(ReadIndex(t.Context(), both, f.identity))
	said := fmt.Sprint(x.Problems)
	if len(x.Problems) != 3 {
		t.Errorf("problems: %v", x.Problems)
	}
	for _, m := range []*storetest.Mem{mine, g.mem} {
		for _, name := range rootKeys(m, "")[1:4] {
			if !strings.Contains(said, name) {
				t.Errorf("nobody speaks of %s", name)
			}
		}
	}
	// What is taken is one of the two, and not some of each.
	db := tempCatalog(t)
	src := must(x.LoadAll(t.Context(), db, &x.Sources[0], nil))
	h := *f
	h.store = both
	if got, want := h.tree(db, src, 5), f.tree(f.cat, must(w.Source("s")), 5); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// The writer that is behind does not go on in this store.
	g.store = both
	w2 := g.writer()
	if _, err := w2.Begin(t.Context(), must(w2.Source("s")), SnapshotInfo{}); !errors.Is(err, ErrBehind) {
		t.Errorf("begin: %v", err)
	}
}

// TestRolledBack takes the newest snapshots out of the store.
func TestRolledBack(t *testing.T) {
	f, _ := damaged(t)
	m := f.mem.Clone()
	for _, k := range m.Keys() {
		if strings.Contains(k, "/0000000003") {
			m.Lose(k)
		}
	}
	x := must(ReadIndex(t.Context(), m, f.identity))
	var keys []string
	for d := range Verify(t.Context(), m, x, f.cat, VerifyOptions{}, &VerifyResult{}) {
		keys = append(keys, d.Key)
	}
	want := rootKeys(f.mem, "")[2]
	if len(keys) != 2 || keys[0] != "meta/"+want || keys[1] != "meta2/"+want {
		t.Errorf("verify says %v, want %s", keys, want)
	}
}

// TestConfigLost loses and alters secrate.json.
func TestConfigLost(t *testing.T) {
	f, whole := damaged(t)
	id := []byte(f.identity.Repo.String())
	wrong := bytes.Clone(id)
	wrong[3] ^= 1
	if wrong[3] > '9' && wrong[3] < 'a' {
		wrong[3] = '0'
	}
	for name, b := range map[string][]byte{
		"lost": nil, "junk": []byte("{"), "of another repository": bytes.ReplaceAll(f.mem.Bytes(configKey), id, wrong),
	} {
		m := f.mem.Clone()
		m.Lose(configKey)
		if b != nil {
			m.Set(configKey, b)
		}
		got, err := restoreAll(t.Context(), t, f, m)
		if err != nil || !maps.Equal(got.files, whole.files) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := f.mem.Clone()
	m.Set(configKey, bytes.Replace(m.Bytes(configKey), []byte(`"secrate_format": 1`), []byte(`"secrate_format": 2`), 1))
	if _, err := Open(t.Context(), m, f.identities); !errors.Is(err, ErrNewer) {
		t.Errorf("newer: %v", err)
	}
	if _, err := Open(t.Context(), storetest.NewMem(), f.identities); !errors.Is(err, ErrNoRepository) {
		t.Errorf("empty: %v", err)
	}
	// Another identity opens nothing, and it is said what.
	g := newFixture(t)
	if _, err := Open(t.Context(), f.mem, g.identities); !errors.Is(err, seal.ErrNoIdentity) || !strings.Contains(err.Error(), f.identity.ID) {
		t.Errorf("another identity: %v", err)
	}
}

// TestVerify has a case for each level.
func TestVerify(t *testing.T) {
	f, _ := damaged(t)
	var pack string
	for _, k := range f.mem.Keys() {
		if strings.HasPrefix(k, "packs/") {
			pack = k
		}
	}
	manifest := "meta2/" + rootKeys(f.mem, "")[0]
	checkpoint := "meta/" + rootKeys(f.mem, kindCheckpoint)[0]
	_, ck, err := must(ReadIndex(t.Context(), f.mem, f.identity)).readCheckpoint(t.Context(), must(parseMetaName(checkpoint[5:])))
	must(0, err)
	segment := fmt.Sprintf("meta/%s/%s/0000000002s-%x", f.identity.ID, must(parseMetaName(checkpoint[5:])).source, ck.Segments[0].SHA)
	flip := func(key string) func(m *storetest.Mem) {
		return func(m *storetest.Mem) {
			b := m.Bytes(key)
			b[len(b)-200] ^= 4
			m.Set(key, b)
		}
	}
	listing, read, open := VerifyOptions{}, VerifyOptions{ReadData: true}, VerifyOptions{Identities: f.identities}
	for _, tt := range []struct {
		name   string
		do     func(m *storetest.Mem)
		o      VerifyOptions
		key    string
		is     error
		copied bool
	}{
		{"whole", func(*storetest.Mem) {}, open, "", nil, false},
		{"pack missing", func(m *storetest.Mem) { m.Lose(pack) }, listing, pack, store.ErrNotExist, false},
		{"pack short", func(m *storetest.Mem) { b := m.Bytes(pack); m.Set(pack, b[1:]) }, listing, pack, ErrFormat, false},
		{"pack altered, not looked at", flip(pack), listing, "", nil, false},
		{"pack altered", flip(pack), read, pack, ErrFormat, false},
		{"pack altered, opened", flip(pack), open, pack, ErrFormat, false},
		{"copy missing", func(m *storetest.Mem) { m.Lose(manifest) }, listing, manifest, store.ErrNotExist, true},
		{"copy altered, not looked at", flip(manifest), listing, "", nil, false},
		{"copy altered", flip(manifest), read, manifest, ErrFormat, true},
		{"copy altered, opened", flip(manifest), open, manifest, ErrFormat, true},
		{"copy of a checkpoint", func(m *storetest.Mem) { m.Lose(checkpoint) }, listing, checkpoint, store.ErrNotExist, true},
		{"copy of a checkpoint's segment", func(m *storetest.Mem) { m.Lose(segment) }, listing, segment, store.ErrNotExist, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := f.mem.Clone()
			tt.do(m)
			x := must(ReadIndex(t.Context(), m, f.identity))
			var got []Damage
			var res VerifyResult
			steps := 0
			tt.o.Step = func(int, int64) { steps++ }
			for d := range Verify(t.Context(), m, x, f.cat, tt.o, &res) {
				got = append(got, d)
			}
			if tt.key == "" {
				if len(got) > 0 {
					t.Fatal(got)
				}
				if steps != res.Objects || (res.Read == res.Bytes) != (tt.o.ReadData || tt.o.Identities != nil) {
					t.Errorf("%d steps, %+v", steps, res)
				}
				return
			}
			if len(got) != 1 || got[0].Key != tt.key || !errors.Is(got[0].Err, tt.is) || got[0].Copy != tt.copied || got[0].Pack != 0 != (tt.key == pack) {
				t.Fatalf("%+v", got)
			}
			if tt.key == pack {
				source := must(f.cat.Sources())[0]
				names := must(Affected(f.cat, source, got[0].Pack, 100))
				want := map[string]bool{}
				for seq := uint64(1); seq <= 3; seq++ {
					want = merge(want, filesOf(t, f.cat.At(source.ID, seq), seq, got[0].Pack))
				}
				for file := range want {
					_, path, _ := strings.Cut(file, " /")
					if !slices.Contains(names, path) && !slices.Contains(names, "g") {
						t.Errorf("%s is not among %q", path, names)
					}
				}
			}
		})
	}
}

// TestVerifyEnds expects that Verify stops when it is asked to, and when it cannot go on.
func TestVerifyEnds(t *testing.T) {
	f, _ := damaged(t)
	x := must(ReadIndex(t.Context(), f.mem, f.identity))
	empty := storetest.NewMem()
	for range Verify(t.Context(), empty, x, f.cat, VerifyOptions{}, &VerifyResult{}) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := 0
	for d := range Verify(ctx, f.mem, x, f.cat, VerifyOptions{ReadData: true}, &VerifyResult{}) {
		n++
		if d.Key != "" || !errors.Is(d.Err, context.Canceled) {
			t.Errorf("%+v", d)
		}
	}
	if n != 1 {
		t.Errorf("%d errors", n)
	}
}

// TestSparse makes and reads files with holes of almost all there can be: nothing takes
// steps for them.
func TestSparse(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	const far = math.MaxInt64 - 5000
	must(f.commit(w, 1, func(u *Update) {
		n := must(u.Create(filetree.RootNode, "huge", fileAttr))
		must(0, u.Write(n, 0, noise(1, 1000)))
		must(0, u.Write(n, far, noise(2, 1000)))
		must(0, u.Truncate(n, math.MaxInt64))
		c := must(u.Create(filetree.RootNode, "clone", fileAttr))
		must(0, u.Clone(c, 0, n, 0, math.MaxInt64))
	}))
	must(f.commit(w, 2, func(u *Update) {
		n, _, err := u.Lookup(filetree.RootNode, "huge")
		must(0, err)
		must(0, u.Truncate(n, 0))
		c, _, err := u.Lookup(filetree.RootNode, "clone")
		must(0, err)
		must(0, u.Hole(c, 500, math.MaxInt64-500))
	}))
	must(f.commit(w, 3, func(u *Update) { must(0, u.Revert(1)) }))
	source := must(w.Source("s"))
	must(w.Checkpoint(t.Context(), source, 3))
	db, src := f.rebuilt()
	for seq := uint64(1); seq <= 3; seq++ {
		a, b := describeView(t, f.content(f.cat), f.cat.At(source.ID, seq)), describeView(t, f.content(db), db.At(src.ID, seq))
		if a != b {
			t.Errorf("#%d (-live +rebuilt):\n%s", seq, differing(a, b))
		}
	}
	one := strings.ReplaceAll(describeView(t, f.content(db), db.At(src.ID, 1)), " ", "")
	if three := strings.ReplaceAll(describeView(t, f.content(db), db.At(src.ID, 3)), " ", ""); one != three {
		t.Errorf("reverted (-was +is):\n%s", differing(one, three))
	}
	// To write it out takes for ever, but can be stopped.
	ctx, cancel := context.WithCancel(t.Context())
	v := db.At(src.ID, 1)
	n := must(v.Lookup(filetree.RootNode, "huge"))
	out := &stopAfter{n: 1 << 20, stop: cancel}
	if err := f.content(db).WriteFile(ctx, v, n, math.MaxInt64, out); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !bytes.Equal(out.head[:1000], noise(1, 1000)) || !bytes.Equal(out.head[1000:2000], make([]byte, 1000)) {
		t.Error("its head is something else")
	}
}

type stopAfter struct {
	n    int
	head []byte
	stop func()
}

func (s *stopAfter) Write(b []byte) (int, error) {
	if len(s.head) < 4096 {
		s.head = append(s.head, b...)
	}
	if s.n -= len(b); s.n < 0 {
		s.stop()
	}
	return len(b), nil
}

// TestManyPacks makes so many packs, with keys as large as they get, that what tells of
// them is more than all else: no segment may be too large.
func TestManyPacks(t *testing.T) {
	f := newFixture(t)
	_, rec, err := seal.GenerateIdentity(false)
	must(0, err)
	f.recipients = must(seal.ParseRecipients([]string{rec}, seal.Options{}))
	w := f.writer()
	source := must(w.Source("s"))
	u := must(w.Begin(t.Context(), source, SnapshotInfo{}))
	big := bytes.Repeat([]byte{7}, 16000)
	const packs = 600
	flushes := 0
	for i := range packs {
		sha := hashOf(fmt.Append(nil, i))
		id := must(f.cat.AddPack(catalog.Pack{SHA: sha, Size: 1e6, Key: big, Blobs: []catalog.Blob{{Length: 1000, Plain: 1000}}}))
		n := must(u.Add(filetree.RootNode, fmt.Sprint(i), &filetree.Attr{Kind: filetree.File, Size: 10}))
		must(0, u.Put(n, Piece{Items: []Item{{Parts: []catalog.Part{{Length: 10, Pack: id}}}}}))
		flushes = max(flushes, len(u.segments))
	}
	s := must(u.Commit())
	if flushes < 2 {
		t.Errorf("%d segments for %d MB of keys", flushes, packs*len(big)/1e6)
	}
	must(w.Checkpoint(t.Context(), source, s.Seq))
	f.recipients = nil
	x := must(ReadIndex(t.Context(), f.mem, f.identity))
	db := tempCatalog(t)
	must(x.LoadAll(t.Context(), db, &x.Sources[0], nil))
	if len(x.Problems) > 0 {
		t.Error(x.Problems)
	}
}

// TestManyRecipients expects that nothing is committed that no reader would take.
func TestManyRecipients(t *testing.T) {
	f := newFixture(t)
	var recs []string
	for range 45 {
		_, rec, err := seal.GenerateIdentity(false)
		must(0, err)
		recs = append(recs, rec)
	}
	for _, n := range []int{20, 45} {
		f.recipients = must(seal.ParseRecipients(recs[:n], seal.Options{}))
		_, err := f.commit(f.writer(), int64(n), func(u *Update) {
			file := must(u.Create(filetree.RootNode, fmt.Sprint(n), fileAttr))
			must(0, u.Write(file, 0, noise(n, 1000)))
		})
		if (err == nil) != (n == 20) {
			t.Errorf("%d recipients: %v", n, err)
		}
	}
	x := must(ReadIndex(t.Context(), f.mem, f.identity))
	must(x.LoadAll(t.Context(), tempCatalog(t), &x.Sources[0], nil))
	if len(x.Problems) > 0 {
		t.Error(x.Problems)
	}
}

// TestContentErrors expects an error, not a panic, of parts that cannot be.
func TestContentErrors(t *testing.T) {
	f, _ := damaged(t)
	c := f.content(f.cat)
	for _, p := range []catalog.Part{
		{}, {Length: -1}, {Length: 10, Pack: 9999}, {Length: 10, Pack: 1, Blob: 1 << 31}, {Length: 1 << 20, Pack: 1, Offset: 1},
		{Length: 1 << 21, Pack: 1}, {Length: 1 << 20, Pack: 1},
		{Length: 5, Patch: &catalog.Patch{Pack: 1, Length: 50, ResultLength: 5}},
		{Length: 5, Patch: &catalog.Patch{Pack: 1, Length: 0, ResultLength: 5}},
		{Length: 5, Offset: math.MaxUint32, Patch: &catalog.Patch{Pack: 1, Length: 5, ResultLength: math.MaxUint32}},
	} {
		if _, err := c.Read(t.Context(), p); err == nil {
			t.Errorf("%+v was read", p)
		}
	}
	got := 0
	err := c.Blobs(t.Context(), 1, []uint32{0, 7000, 1 << 31}, func(n uint32, data []byte, err error) error {
		got++
		if (err == nil) != (n == 0) {
			t.Errorf("blob %d: %v", n, err)
		}
		return nil
	})
	if err != nil || got != 3 {
		t.Error(got, err)
	}
}

var _ io.Writer = (*stopAfter)(nil)

// A behind lists as of some time before, but for single objects.
type behind struct {
	store.Store
	old *storetest.Mem
}

func (b *behind) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	if strings.HasSuffix(prefix, "/") {
		return b.old.List(ctx, prefix)
	}
	return b.Store.List(ctx, prefix)
}

// TestVerifyBeside verifies while snapshots are added: what is not listed since it is new is not lost.
func TestVerifyBeside(t *testing.T) {
	f, _ := damaged(t)
	old := f.mem.Clone()
	x := must(ReadIndex(t.Context(), old, f.identity))
	must(f.commit(f.writer(), 9, func(u *Update) {
		n := must(u.Create(filetree.RootNode, "beside", filetree.Attr{Kind: filetree.File}))
		if err := u.Write(n, 0, []byte("stored while others look")); err != nil {
			t.Fatal(err)
		}
	}))
	for _, o := range []VerifyOptions{{}, {ReadData: true}} {
		for d := range Verify(t.Context(), &behind{f.mem, old}, x, f.cat, o, &VerifyResult{}) {
			t.Error(d)
		}
	}
}
