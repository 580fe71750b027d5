package backup_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store/storetest"
	"github.com/secrate/secrate/testenv/loopfs"
)

// hexLines is text that compresses to half its size, and of which no two parts are alike.
func hexLines(seed uint64, n int) []byte {
	const digits = "0123456789abcdef"
	raw := make([]byte, n/2+1)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(raw)
	b := make([]byte, 0, n+2)
	for i, c := range raw {
		b = append(b, digits[c>>4], digits[c&15])
		if i%32 == 31 {
			b[len(b)-1] = '\n'
		}
	}
	return b[:n]
}

// A rollCase scans a directory with one file, "f", again and again.
type rollCase struct {
	*scanCase
	t    *testing.T
	want [][]byte // the file in each snapshot
	// wrong ends a test in which a snapshot has not what the file had.
	wrong func(format string, args ...any)
}

func newRollCase(t *testing.T) *rollCase { return &rollCase{newScanCase(t), t, nil, t.Fatalf} }

// put writes the file in its place, as a program that truncates it does.
func (c *rollCase) put(b []byte) {
	c.t.Helper()
	c.must(os.WriteFile(c.path("f"), b, 0o644))
}

// scanned scans, compares the newest snapshot with the file, and returns how many bytes were
// uploaded.
func (c *rollCase) scanned() int64 {
	c.t.Helper()
	res := c.f.scan("s", c.dir, backup.ScanOptions{})
	if len(res.Committed) != 1 {
		c.t.Fatalf("%+v", res)
	}
	s := res.Committed[0]
	b, err := os.ReadFile(c.path("f"))
	c.must(err)
	for len(c.want) < int(s.Seq)-1 {
		c.want = append(c.want, nil)
	}
	c.want = append(c.want, b)
	if got := c.f.contentAt("s", s.Seq, "f"); !bytes.Equal(got, b) {
		c.wrong("#%d has %d bytes that are not the %d of the file", s.Seq, len(got), len(b))
	}
	return int64(s.Uploaded)
}

// signature returns the signature that the catalog has of a file, and of which snapshot.
func (c *rollCase) signature(name string) ([]byte, uint64) {
	c.t.Helper()
	head, err := c.f.w.Head(c.f.source("s"))
	c.must(err)
	v := c.f.cat.At(c.f.source("s").ID, head.Seq)
	n, err := v.Resolve([]string{name})
	c.must(err)
	sig, of, err := v.Rolling(n)
	c.must(err)
	return sig, of.Seq()
}

// rebuild makes the catalog anew.
func (c *rollCase) rebuild() {
	c.t.Helper()
	f := c.f
	f.cat.Close()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		os.Remove(filepath.Join(f.state, "catalog.db"+suffix))
	}
	var err error
	f.cat, err = catalog.Open(filepath.Join(f.state, "catalog.db"), catalog.Options{})
	c.must(err)
	x, err := s3history.ReadIndex(c.t.Context(), f.store, f.identity)
	c.must(err)
	_, err = x.LoadAll(c.t.Context(), f.cat, &x.Sources[0], nil)
	c.must(err)
	c.open()
}

// open makes a writer anew, which completes what was broken off.
func (c *rollCase) open() {
	c.t.Helper()
	var err error
	c.f.w, err = s3history.NewWriter(c.t.Context(), s3history.WriterOptions{Store: c.f.store, StateDir: c.f.state, Catalog: c.f.cat,
		Identity: c.f.identity, Recipients: c.f.recipients})
	c.must(err)
	_, err = c.f.w.Recover(c.t.Context())
	c.must(err)
}

// restored compares all snapshots, in the catalog and in one made of what is stored.
func (c *rollCase) restored() {
	c.t.Helper()
	rebuilt, src := c.f.rebuilt()
	for i, want := range c.want {
		if want == nil {
			continue
		}
		v := rebuilt.At(src.ID, uint64(i+1))
		n, err := v.Resolve([]string{"f"})
		c.must(err)
		var b bytes.Buffer
		c.must(s3history.NewContent(c.f.store, c.f.identity, rebuilt, c.f.identities).WriteFile(c.t.Context(), v, n, int64(len(want)), &b))
		if !bytes.Equal(b.Bytes(), want) || !bytes.Equal(c.f.contentAt("s", uint64(i+1), "f"), want) {
			c.wrong("#%d is not what the file was", i+1)
		}
	}
}

// TestScanShifted edits a file of some mebibytes as people and programs do. What is uploaded is
// what is new, and some metadata.
func TestScanShifted(t *testing.T) {
	const mib, block = 1 << 20, 4 << 10
	c := newRollCase(t)
	now := hexLines(1, 9*mib+777)
	c.put(now)
	first := c.scanned()
	line := []byte("a line that was not there before\n")
	for i, step := range []struct {
		name  string
		make  func(b []byte) []byte
		limit int64
	}{
		{"a line at the front", func(b []byte) []byte { return slices.Concat(line, b) }, 2500},
		{"one more", func(b []byte) []byte { return slices.Concat([]byte("x"), b) }, 2500},
		{"a line in the middle", func(b []byte) []byte { return slices.Concat(b[:4*mib+99], line, b[4*mib+99:]) }, 2500 + block},
		{"a byte changed in its place", func(b []byte) []byte { b[3*mib]++; return b }, 2500 + block},
		{"lines appended", func(b []byte) []byte { return slices.Concat(b, hexLines(2, 5000)) }, 2500 + 5000},
		{"a stretch moved", func(b []byte) []byte {
			return slices.Concat(b[:mib+5], b[2*mib+5:6*mib], b[mib+5:2*mib+5], b[6*mib:])
		}, 2500 + 3*block},
		{"the front cut off", func(b []byte) []byte { return b[5*block+3:] }, 2500 + block},
		{"the end cut off", func(b []byte) []byte { return b[:8*mib+9] }, 2500},
		{"all of it twice", func(b []byte) []byte { return slices.Concat(b, b) }, 2500},
		{"touched", func(b []byte) []byte { return b }, 2500},
		{"other content", func([]byte) []byte { return hexLines(3, 2*mib) }, 3 * mib / 2},
		{"a line before that", func(b []byte) []byte { return slices.Concat(line, b) }, 2500},
	} {
		now = step.make(slices.Clone(now))
		c.put(now)
		uploaded := c.scanned()
		t.Logf("%s: %d bytes uploaded", step.name, uploaded)
		if uploaded > step.limit {
			t.Errorf("%s: %d bytes uploaded, the first time %d", step.name, uploaded, first)
		}
		if _, seq := c.signature("f"); seq != uint64(i+2) {
			t.Errorf("%s: the signature is of #%d, not #%d", step.name, seq, i+2)
		}
	}
	// A copy of what was put together of many pieces is known.
	c.must(os.WriteFile(c.path("copy"), now, 0o644))
	if uploaded := c.scanned(); uploaded > 2500 {
		t.Errorf("a copy: %d bytes uploaded", uploaded)
	}
	c.restored()
}

// TestScanShiftedAgain puts forty lines before a file, and forty into it, one at a time: it has not
// an extent or two for each, and what each costs hardly grows.
func TestScanShiftedAgain(t *testing.T) {
	c := newRollCase(t)
	now := hexLines(4, 3<<20)
	c.put(now)
	c.scanned()
	extents := func() int {
		src := c.f.source("s")
		head, err := c.f.w.Head(src)
		c.must(err)
		v := c.f.cat.At(src.ID, head.Seq)
		n, err := v.Resolve([]string{"f"})
		c.must(err)
		k, err := v.Fragments(n, 0, 1<<40)
		c.must(err)
		return k
	}
	for i := range 40 {
		now = slices.Concat(fmt.Appendf(nil, "line %d\n", i), now)
		c.put(now)
		if uploaded := c.scanned(); uploaded > 2500 {
			t.Fatalf("line %d: %d bytes uploaded", i, uploaded)
		}
	}
	if k := extents(); k > 3+4 { // the lines come to 300 bytes
		t.Errorf("%d extents", k)
	}
	for i := range 40 { // some of them in places where others were
		at := i * 37 % 20 * 100000
		now = slices.Concat(now[:at], fmt.Appendf(nil, "line %d\n", i), now[at:])
		c.put(now)
		if uploaded := c.scanned(); uploaded > 8000 {
			t.Fatalf("line %d, in its place: %d bytes uploaded", i, uploaded)
		}
	}
	if k := extents(); k > 3+4+3*20 {
		t.Errorf("%d extents", k)
	}
	c.restored()
}

// TestScanReplacedFile writes a new file and renames it over the old one, as editors do, and
// other ways in which a name comes to be that of another file.
func TestScanReplacedFile(t *testing.T) {
	c := newRollCase(t)
	now := hexLines(5, 3<<20)
	c.put(now)
	c.scanned()
	for i := range 3 {
		now = slices.Concat(fmt.Appendf(nil, "edited %d\n", i), now)
		c.must(os.WriteFile(c.path("f.tmp"), now, 0o644))
		if i == 1 { // a backup stays
			c.must(os.Rename(c.path("f"), c.path("f~")))
		}
		c.must(os.Rename(c.path("f.tmp"), c.path("f")))
		if uploaded := c.scanned(); uploaded > 2500 {
			t.Errorf("edited %d: %d bytes uploaded", i, uploaded)
		}
		if _, seq := c.signature("f"); seq != uint64(i+2) {
			t.Errorf("edited %d: the signature is of #%d", i, seq)
		}
	}
	// Moved and written to.
	c.must(os.Rename(c.path("f"), c.path("g")))
	now = slices.Concat([]byte("moved\n"), now)
	c.must(os.WriteFile(c.path("g"), now, 0o644))
	c.must(os.Symlink("g", c.path("f"))) // whose content is read through the link
	res := c.f.scan("s", c.dir, backup.ScanOptions{})
	if s := res.Committed[0]; s.Uploaded > 3000 || !bytes.Equal(c.f.contentAt("s", s.Seq, "g"), now) {
		t.Errorf("moved: %d bytes uploaded", s.Uploaded)
	}
	// The end of a file takes its signature along.
	c.must(errors.Join(os.Remove(c.path("f")), os.Remove(c.path("g")), os.Remove(c.path("f~"))))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	src := c.f.source("s")
	for n := range filetree.NodeID(20) {
		if sig, _, err := c.f.cat.At(src.ID, 1).Rolling(n); sig != nil || err != nil {
			t.Errorf("node %d has a signature: %v", n, err)
		}
	}
}

// TestScanChangesShifted looks at the names alone that an editor has touched.
func TestScanChangesShifted(t *testing.T) {
	c := newRollCase(t)
	now := hexLines(23, 3<<20)
	c.put(now)
	c.scanned()
	for i := range 2 {
		now = slices.Concat(fmt.Appendf(nil, "edited %d\n", i), now)
		c.must(os.WriteFile(c.path("f.tmp"), now, 0o644))
		c.must(os.Rename(c.path("f.tmp"), c.path("f")))
		res := c.f.scan("s", c.dir, backup.ScanOptions{Only: &backup.Changes{Paths: []string{"f.tmp", "f"}}})
		if s := res.Committed[0]; s.Uploaded > 2500 || !bytes.Equal(c.f.contentAt("s", s.Seq, "f"), now) {
			t.Errorf("edited %d: %d bytes uploaded", i, s.Uploaded)
		}
	}
}

// TestScanShiftedSparse has holes in the file, before and after.
func TestScanShiftedSparse(t *testing.T) {
	for _, kind := range []loopfs.Kind{loopfs.Ext4, loopfs.XFS, loopfs.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			fs := loopfs.New(t, kind, loopfs.Options{Size: 512 << 20})
			c := &rollCase{&scanCase{newFixture(t), filepath.Join(fs.Dir, "tree")}, t, nil, t.Fatalf}
			c.must(os.Mkdir(c.dir, 0o755))
			const mib = 1 << 20
			a, b := hexLines(6, 2*mib+4096), hexLines(7, mib+100)
			sparse := func(size int64, at map[int64][]byte) {
				t.Helper()
				f, err := os.Create(c.path("f"))
				c.must(err)
				c.must(f.Truncate(size))
				for off, data := range at {
					_, err := f.WriteAt(data, off)
					c.must(err)
				}
				c.must(f.Close())
			}
			for _, step := range []struct {
				name  string
				size  int64
				at    map[int64][]byte
				limit int64
			}{
				{"first", 30 * mib, map[int64][]byte{4 * mib: a, 20 * mib: b}, 4 * mib},
				{"moved", 30 * mib, map[int64][]byte{9*mib + 4096: a, 17*mib + 5: b}, 15000},
				{"where a hole was", 40 * mib, map[int64][]byte{0: b, 4 * mib: a, 25 * mib: b}, 15000},
				{"one after the other", 4 * mib, map[int64][]byte{77: append(slices.Clone(a), b...)}, 15000},
				{"holes all over", 8 * mib, map[int64][]byte{0: a[:mib], 2 * mib: a[mib:], 6*mib + 1: b}, 30000},
				{"no data", 8 * mib, nil, 3000},
			} {
				sparse(step.size, step.at)
				uploaded := c.scanned()
				t.Logf("%s: %d bytes uploaded", step.name, uploaded)
				if uploaded > step.limit {
					t.Errorf("%s: %d bytes uploaded", step.name, uploaded)
				}
			}
			c.restored()
		})
	}
}

// TestScanRebuiltSigned loses the signatures with the catalog: content ids say what has not
// changed, and the file is signed again.
func TestScanRebuiltSigned(t *testing.T) {
	const mib = 1 << 20
	c := newRollCase(t)
	now := hexLines(8, 9*mib)
	c.put(now)
	c.scanned()
	now = slices.Concat([]byte("a line\n"), now)
	c.put(now)
	c.scanned()
	c.rebuild()
	if sig, _ := c.signature("f"); sig != nil {
		t.Error("a rebuilt catalog has a signature")
	}
	now = append(now, "appended\n"...)
	c.put(now)
	uploaded := c.scanned()
	t.Logf("appended, after the catalog was lost: %d bytes uploaded", uploaded)
	if uploaded > mib {
		t.Errorf("%d bytes uploaded", uploaded)
	}
	now = slices.Concat([]byte("one more\n"), now)
	c.put(now)
	if uploaded := c.scanned(); uploaded > 2500 {
		t.Errorf("signed again: %d bytes uploaded", uploaded)
	}
	// Once more, and written anew.
	c.rebuild()
	now = append(slices.Clone(now), "appended once more\n"...)
	c.must(os.WriteFile(c.path("new"), now, 0o644))
	c.must(os.Rename(c.path("new"), c.path("f")))
	if uploaded := c.scanned(); uploaded > 3000 {
		t.Errorf("replaced, after the catalog was lost again: %d bytes uploaded", uploaded)
	}
	// A byte changed in its place, when it has no signature either, costs the extent it is in.
	c.rebuild()
	now = slices.Clone(now)
	now[5*mib]++
	c.put(now)
	if uploaded := c.scanned(); uploaded > mib {
		t.Errorf("a byte, after the catalog was lost again: %d bytes uploaded", uploaded)
	}
	c.restored()
}

// TestScanAfterOther changes a file that was signed by other ways than a scan. The signature is
// of what it was, and is believed of that alone.
func TestScanAfterOther(t *testing.T) {
	c := newRollCase(t)
	old := hexLines(9, 3<<20)
	c.put(old)
	c.scanned()
	other := hexLines(10, 2<<20)
	update := func(do func(u *s3history.Update, n filetree.NodeID) error) {
		t.Helper()
		src := c.f.source("s")
		u, err := c.f.w.Begin(t.Context(), src, s3history.SnapshotInfo{})
		c.must(err)
		defer u.Abort()
		n, _, err := u.Lookup(filetree.RootNode, "f")
		c.must(err)
		c.must(do(u, n))
		_, err = u.Commit()
		c.must(err)
	}
	for i, do := range []func(u *s3history.Update, n filetree.NodeID) error{
		func(u *s3history.Update, n filetree.NodeID) error { return u.Write(n, 100000, other) },
		func(u *s3history.Update, n filetree.NodeID) error { return u.Hole(n, 65536, 2<<20) },
		func(u *s3history.Update, n filetree.NodeID) error { return u.Truncate(n, 1000) },
		func(u *s3history.Update, n filetree.NodeID) error { return u.Revert(1) },
	} {
		update(do)
		now := slices.Concat(fmt.Appendf(nil, "%d\n", i), old[:2<<20], other[:1<<20], old[2<<20:])
		c.put(now)
		t.Logf("%d: %d bytes uploaded", i, c.scanned())
	}
	c.restored()
}

// TestScanShiftedWhileItChanges reads a file that is written to meanwhile. Whatever is kept, the
// signature is of that: what is written later comes out right.
func TestScanShiftedWhileItChanges(t *testing.T) {
	c := newRollCase(t)
	now := hexLines(11, 6<<20)
	c.put(now)
	c.scanned()
	for round := range 4 {
		f, err := os.OpenFile(c.path("f"), os.O_RDWR, 0)
		c.must(err)
		stop, done := make(chan struct{}), make(chan error)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				line := slices.Concat(fmt.Appendf(nil, "%d %d\n", round, i), now[:1<<20])
				_, err := f.WriteAt(line, int64(i%5)<<20)
				if err == nil {
					err = f.Truncate(int64(4<<20 + i%3*70000 + i%1000))
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
		_, err = c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{})
		c.must(err)
		close(stop)
		c.must(errors.Join(<-done, f.Close()))
		c.must(os.Chtimes(c.path("f"), time.Time{}, time.Now()))
		c.scanned()
		now, err = os.ReadFile(c.path("f"))
		c.must(err)
		now = slices.Concat([]byte("still\n"), now)
		c.put(now)
		if uploaded := c.scanned(); uploaded > 5000 {
			t.Errorf("a line, when it stands still: %d bytes uploaded", uploaded)
		}
		now = slices.Concat(now[:min(len(now), 6<<20)], hexLines(uint64(20+round), max(0, 6<<20-len(now))))
	}
	c.restored()
}

// TestScanShiftedFaults fails each upload in turn, once before and once after it was done, and
// goes on with what is left: a commit that is completed by Recover has no signature of the new
// file, and the old one is of the old.
func TestScanShiftedFaults(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for n := int64(1); ; n++ {
			c := newRollCase(t)
			now := hexLines(12, 1<<20+4711)
			c.put(now)
			c.scanned()
			sound := c.f.store
			fault := &storetest.Fault{Store: sound, N: n, Applied: applied}
			c.f.store = fault
			c.open()
			now = slices.Concat(hexLines(13, 3000), now[:500000], hexLines(14, 9000), now[500000:])
			c.put(now)
			_, err := c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{})
			hit := fault.Hit()
			if hit != (err != nil) {
				t.Fatalf("call %d, applied %v: hit %v, %v", n, applied, hit, err)
			}
			c.f.store = sound
			c.open()
			if sig, seq := c.signature("f"); hit && (sig == nil || seq != 1) {
				t.Errorf("call %d, applied %v: the signature is of #%d", n, applied, seq)
			}
			now = slices.Concat([]byte("again\n"), now)
			c.put(now)
			if uploaded := c.scanned(); uploaded > 40000 {
				t.Errorf("call %d, applied %v: %d bytes uploaded", n, applied, uploaded)
			}
			now = slices.Concat([]byte("and again\n"), now)
			c.put(now)
			if uploaded := c.scanned(); uploaded > 2500 {
				t.Errorf("call %d, applied %v: %d bytes uploaded", n, applied, uploaded)
			}
			c.restored()
			if !hit {
				break
			}
		}
	}
}

// TestScanSigned says which files are signed.
func TestScanSigned(t *testing.T) {
	c := newRollCase(t)
	c.write("small", string(hexLines(15, 64<<10-1)))
	c.write("text", string(hexLines(16, 64<<10)))
	c.must(os.WriteFile(c.path("film"), randomBytes(17, 300000), 0o644))
	c.must(os.WriteFile(c.path("edited"), randomBytes(18, 300000), 0o644))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	for name, want := range map[string]bool{"small": false, "text": true, "film": false, "edited": false} {
		if sig, _ := c.signature(name); (sig != nil) != want {
			t.Errorf("%s, new: signed %v", name, sig != nil)
		}
	}
	c.must(os.WriteFile(c.path("edited"), randomBytes(19, 300000), 0o644))
	c.f.scan("s", c.dir, backup.ScanOptions{})
	if sig, _ := c.signature("edited"); len(sig) < 1700 || len(sig) > 2000 {
		t.Errorf("edited: a signature of %d bytes", len(sig))
	}
}

// TestScanShiftedAny changes a file at random, in its place and by renaming another over it,
// with holes, and compares every snapshot.
func TestScanShiftedAny(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newRollCase(t)
		c.wrong = rt.Fatalf
		now := hexLines(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(0, 3<<20).Draw(rt, "size"))
		c.put(now)
		c.scanned()
		for range rapid.IntRange(1, 4).Draw(rt, "scans") {
			for range rapid.IntRange(1, 4).Draw(rt, "edits") {
				at := rapid.IntRange(0, len(now)).Draw(rt, "at")
				n := rapid.IntRange(0, min(len(now)-at, 1<<20)).Draw(rt, "length")
				switch rapid.IntRange(0, 4).Draw(rt, "edit") {
				case 0:
					now = slices.Concat(now[:at], hexLines(rapid.Uint64().Draw(rt, "seed"), n/50+1), now[at:])
				case 1:
					now = slices.Concat(now[:at], now[at+n:])
				case 2:
					to := rapid.IntRange(0, len(now)).Draw(rt, "to")
					now = slices.Concat(now[:to], now[at:at+n], now[to:])
				case 3:
					now = slices.Clone(now)
					clear(now[at : at+n])
				case 4:
					now = slices.Concat(now[:at], hexLines(rapid.Uint64().Draw(rt, "seed"), n), now[at+n:])
				}
			}
			name := "f"
			if rapid.Bool().Draw(rt, "replace") {
				name = "new"
			}
			c.must(os.WriteFile(c.path(name), now, 0o644))
			if rapid.Bool().Draw(rt, "dig") { // zeros become holes
				f, err := os.OpenFile(c.path(name), os.O_RDWR, 0)
				c.must(err)
				for at := 0; at+4096 <= len(now); at += 4096 {
					if bytes.Count(now[at:at+4096], []byte{0}) == 4096 {
						c.must(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(at), 4096))
					}
				}
				c.must(f.Close())
			}
			if name != "f" {
				c.must(os.Rename(c.path(name), c.path("f")))
			}
			c.must(os.Chtimes(c.path("f"), time.Time{}, time.Now()))
			c.scanned()
		}
		c.restored()
	})
}

// TestScanShiftedUnreadable has a block that the disk has lost in a file that was shifted: the
// rest is kept, and nothing is signed until all of it can be read.
func TestScanShiftedUnreadable(t *testing.T) {
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 512 << 20})
	c := &rollCase{&scanCase{newFixture(t), filepath.Join(fs.Dir, "tree")}, t, nil, t.Fatalf}
	c.must(os.Mkdir(c.dir, 0o755))
	now := hexLines(21, 9<<20)
	c.put(now)
	c.scanned()
	now = slices.Concat(hexLines(22, 5000), now)
	const lost = 5<<20 + 8192
	c.put(now)
	c.must(fs.Damage(now[lost:][:4096]))
	res, err := c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{})
	c.must(err)
	want := slices.Clone(now)
	clear(want[lost:][:4096])
	if len(res.Failed) != 1 || !bytes.Equal(c.f.contentAt("s", 2, "f"), want) {
		t.Errorf("not read: %q; what is kept is what could be: %v", res.Failed, bytes.Equal(c.f.contentAt("s", 2, "f"), want))
	}
	if _, seq := c.signature("f"); seq != 1 {
		t.Errorf("the signature is of #%d", seq)
	}
	now = slices.Concat([]byte("mended\n"), now)
	c.put(now)
	if uploaded := c.scanned(); uploaded > 100000 {
		t.Errorf("mended: %d bytes uploaded", uploaded)
	}
	c.want[1] = want
	c.restored()
}
