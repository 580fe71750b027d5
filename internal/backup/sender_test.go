package backup_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
)

// Units that are read beside their streams, and a Sender whose pool does what a test says. What
// a real one makes of them is tested in the virtual machine.

var unitState = []byte("G")

func unitGUID(n byte) (g [16]byte) { g[15] = n; return g }

// unitOf makes the unit of snapshot n, from another or, if that is 0, of all.
func unitOf(n, parent byte, apply func(u *s3history.Update) error) backup.Unit {
	unit := backup.Unit{Name: fmt.Sprint("s", n), GUID: unitGUID(n), Time: filetree.Time{Sec: int64(n)}, StateKey: unitState,
		Apply: func(_ context.Context, u *s3history.Update, _ func(string, bool) bool, _ []byte) ([]string, []byte, error) {
			g := unitGUID(n)
			return nil, nil, errors.Join(apply(u), u.Keep(unitState, g[:]))
		}}
	if parent != 0 {
		g := unitGUID(parent)
		unit.Parent = &g
	}
	return unit
}

// treeOf is a tree with these files.
func treeOf(t *testing.T, files map[string][]byte) *localfs.Tree {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := localfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b[:n]
}

// contentAt returns a file as it is in a snapshot.
func (f *fixture) contentAt(source string, seq uint64, path string) []byte {
	f.t.Helper()
	v := f.cat.At(f.source(source).ID, seq)
	n, err := v.Resolve(s3history.SplitPath(path))
	if err != nil {
		f.t.Fatal(err)
	}
	a, err := v.Attr(n)
	if err != nil {
		f.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s3history.NewContent(f.store, f.identity, f.cat, f.identities).WriteFile(f.t.Context(), v, n, a.Size, &b); err != nil {
		f.t.Fatal(err)
	}
	return b.Bytes()
}

func (f *fixture) ingestUnits(units ...backup.Unit) {
	f.t.Helper()
	for _, u := range units {
		var res backup.Result
		if err := f.job("s").Ingest(f.t.Context(), u, filetree.Time{}, &res); err != nil {
			f.t.Fatal(err)
		}
	}
}

// TestUnitFromOlder reads a snapshot that starts from an older one than the newest: the old
// bytes are those of that one, in the history as well as in the tree.
func TestUnitFromOlder(t *testing.T) {
	f := newFixture(t)
	a, b := randomBytes(1, 300000), randomBytes(2, 300000)
	c := slices.Concat(a[:1000], []byte("inserted"), a[1000:])
	var n filetree.NodeID
	whole := unitOf(1, 0, func(u *s3history.Update) (err error) {
		n, err = u.NewNode(filetree.Attr{Kind: filetree.File, Mode: 0o644})
		return errors.Join(err, u.Write(n, 0, a), u.AddName(filetree.RootNode, "f", n))
	})
	other := unitOf(2, 1, func(u *s3history.Update) error { return u.Write(n, 0, b) })
	back := unitOf(3, 1, func(u *s3history.Update) error {
		return errors.Join(u.Truncate(n, int64(len(c))), u.Changed(n, 0, int64(len(c))))
	})
	back.Base, back.Now = treeOf(t, map[string][]byte{"f": a}), treeOf(t, map[string][]byte{"f": c})
	f.ingestUnits(whole, other, back)
	for i, want := range [][]byte{a, b, c} {
		if got := f.contentAt("s", uint64(i+1), "f"); !bytes.Equal(got, want) {
			t.Errorf("#%d: %d bytes that are not the %d of the file", i+1, len(got), len(want))
		}
	}
}

// TestUnitNameless gives a file its name in a later snapshot than its content.
func TestUnitNameless(t *testing.T) {
	f := newFixture(t)
	c := randomBytes(1, 300000)
	var n filetree.NodeID
	empty := treeOf(t, nil)
	written := unitOf(2, 1, func(u *s3history.Update) (err error) {
		n, err = u.NewNode(filetree.Attr{Kind: filetree.File, Mode: 0o644})
		return errors.Join(err, u.Truncate(n, int64(len(c))), u.Changed(n, 0, int64(len(c))))
	})
	written.Base, written.Now = empty, empty
	unrelated := unitOf(3, 2, func(u *s3history.Update) error {
		return u.SetAttr(filetree.RootNode, func(a *filetree.Attr) { a.Mode = 0o700 })
	})
	unrelated.Base, unrelated.Now = empty, empty
	named := unitOf(4, 3, func(u *s3history.Update) error { return u.AddName(filetree.RootNode, "f", n) })
	named.Base, named.Now = empty, treeOf(t, map[string][]byte{"f": c})
	f.ingestUnits(unitOf(1, 0, func(u *s3history.Update) error {
		return u.SetAttr(filetree.RootNode, func(a *filetree.Attr) { a.Mode = 0o755 })
	}), written, unrelated, named)
	if !bytes.Equal(f.contentAt("s", 4, "f"), c) {
		t.Error("the content is lost")
	}
	v := f.cat.At(f.source("s").ID, 4)
	if a, err := v.Attr(n); err != nil || a.Incomplete {
		t.Errorf("incomplete %v, %v", a.Incomplete, err)
	}
	if a, err := f.cat.At(f.source("s").ID, 3).Attr(n); err != nil || !a.Incomplete {
		t.Errorf("without a name: incomplete %v, %v", a.Incomplete, err)
	}
}

// A scriptedPool is a Sender of which a test says what fails.
type scriptedPool struct {
	all     []backup.Snapshot
	damaged map[string]bool
	stuck   map[string]bool // cannot be destroyed
	did     []string
}

func (p *scriptedPool) Take(context.Context) (backup.Snapshot, error) { return backup.Snapshot{}, nil }
func (p *scriptedPool) List(context.Context) ([]backup.Snapshot, error) {
	return slices.Clone(p.all), nil
}
func (p *scriptedPool) Nested(context.Context) ([]string, string, error) { return nil, "", nil }
func (p *scriptedPool) Hold(context.Context, backup.Snapshot) error      { return nil }
func (p *scriptedPool) StateKey() []byte                                 { return unitState }
func (p *scriptedPool) Mark(_ context.Context, s backup.Snapshot) error  { return nil }
func (p *scriptedPool) Release(_ context.Context, s backup.Snapshot, destroy bool) error {
	i := slices.IndexFunc(p.all, func(o backup.Snapshot) bool { return o.GUID == s.GUID })
	p.all[i].Held = false
	if !destroy {
		p.did = append(p.did, "let go of "+s.Name)
		return nil
	}
	if p.stuck[s.Name] {
		return errors.New("it has a clone")
	}
	p.did = append(p.did, "destroyed "+s.Name)
	p.all = slices.Delete(p.all, i, i+1)
	return nil
}

func (p *scriptedPool) Bases(_ context.Context, s backup.Snapshot) (guids [][16]byte, err error) {
	for _, o := range slices.Backward(p.all) {
		if o.Time.Before(s.Time) {
			guids = append(guids, o.GUID)
		}
	}
	return guids, nil
}

func (p *scriptedPool) Send(_ context.Context, s backup.Snapshot, base *[16]byte, _ backup.Told) (*backup.Stream, error) {
	if p.damaged[s.Name] {
		return nil, fmt.Errorf("%w: a block is bad", backup.ErrUnsendable)
	}
	var parent byte
	if base != nil {
		parent = base[15]
	}
	p.did = append(p.did, fmt.Sprintf("sent %s from s%d", s.Name, parent))
	return &backup.Stream{Close: func() {}, Unit: unitOf(s.GUID[15], parent, func(u *s3history.Update) error {
		return u.SetAttr(filetree.RootNode, func(a *filetree.Attr) { a.Mode = 0o700 + uint32(s.GUID[15]) })
	})}, nil
}

func (p *scriptedPool) take(numbers ...byte) {
	for _, n := range numbers {
		p.all = append(p.all, backup.Snapshot{Name: fmt.Sprint("s", n), GUID: unitGUID(n), Time: time.Unix(int64(n), 0), Held: true})
	}
}

// TestSenderGoesOn has snapshots that cannot be sent and ones that cannot be destroyed: neither
// keeps the others waiting.
func TestSenderGoesOn(t *testing.T) {
	f := newFixture(t)
	p := &scriptedPool{damaged: map[string]bool{}, stuck: map[string]bool{}}
	upload := func(wantErr string, want ...string) {
		t.Helper()
		p.did = nil
		_, err := f.job("s").Upload(t.Context(), p)
		if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("%v, want %q", err, wantErr)
		}
		if diff := cmp.Diff(want, p.did); diff != "" {
			t.Errorf("done (-want +got):\n%s", diff)
		}
	}
	p.take(1)
	upload("", "sent s1 from s0")
	p.take(2, 3)
	p.damaged["s2"] = true
	upload("snapshot s2: it cannot be sent", "sent s3 from s1", "destroyed s1")
	// What is older than the newest cannot be kept any more, but is not destroyed either.
	p.damaged["s2"] = false
	upload("snapshot s2 was never uploaded, and is older than #2", "let go of s2")
	p.take(4)
	p.stuck["s3"] = true
	upload("it has a clone", "sent s4 from s3")
	p.take(5)
	upload("it has a clone", "sent s5 from s4", "destroyed s4")
	p.stuck["s3"] = false
	upload("s2 was never uploaded", "destroyed s3")
	// Another's that is older is let go of, and is no failure.
	p.all = slices.DeleteFunc(p.all, func(s backup.Snapshot) bool { return s.Name == "s2" })
	p.all = slices.Insert(p.all, 0, backup.Snapshot{Name: "auto", GUID: unitGUID(100), Time: time.Unix(2, 0), Held: true, Adopted: true})
	upload("", "let go of auto")
}
