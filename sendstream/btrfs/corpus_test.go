package btrfs

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/sendtest"
)

// corpusDir has the recorded streams: a part of them, unless SECRATE_CORPUS names
// a directory with all.
func corpusDir() string { return cmp.Or(os.Getenv("SECRATE_CORPUS"), "testdata/corpus") }

// A recording is a stream of the corpus.
type recording struct {
	dir, name string // name without .bsend.zst
}

func (r recording) path() string { return filepath.Join(r.dir, r.name+".bsend.zst") }
func (r recording) noData() bool { return strings.HasSuffix(r.name, "-nodata") }
func (r recording) v2() bool     { return strings.Contains(r.name, "-v2") }

func (r recording) stream(tb testing.TB) []byte {
	tb.Helper()
	return readZst(tb, r.path())
}

func readZst(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if !strings.HasSuffix(path, ".zst") {
		return b
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		tb.Fatal(err)
	}
	defer dec.Close()
	if b, err = dec.DecodeAll(b, nil); err != nil {
		tb.Fatalf("%s: %v", path, err)
	}
	return b
}

// recordings returns the streams by case, in the order in which they have to be
// replayed.
func recordings(tb testing.TB) map[string][]recording {
	tb.Helper()
	paths, err := filepath.Glob(filepath.Join(corpusDir(), "*", "*.bsend.zst"))
	if err != nil || len(paths) == 0 {
		tb.Fatalf("no streams in %s: %v", corpusDir(), err)
	}
	cases := make(map[string][]recording)
	for _, p := range paths {
		dir := filepath.Dir(p)
		c := filepath.Base(dir)
		cases[c] = append(cases[c], recording{dir, strings.TrimSuffix(filepath.Base(p), ".bsend.zst")})
	}
	for _, rs := range cases {
		slices.SortFunc(rs, func(a, b recording) int {
			// By number; with data before no-data, which is compared with it.
			an, bn := a.name[:3], b.name[:3]
			switch {
			case an != bn:
				return cmp.Compare(an, bn)
			case a.noData() != b.noData():
				if b.noData() {
					return -1
				}
				return 1
			default:
				return cmp.Compare(a.name, b.name)
			}
		})
	}
	return cases
}

// forEachCase runs test for each case of the corpus.
func forEachCase(t *testing.T, test func(t *testing.T, name string, rs []recording)) {
	cases := recordings(t)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) { test(t, name, cases[name]) })
	}
}

func TestReadCorpus(t *testing.T) {
	commands := 0
	forEachCase(t, func(t *testing.T, _ string, rs []recording) {
		for _, rec := range rs {
			stream := rec.stream(t)
			r := NewReader(bytes.NewReader(stream))
			for _, err := range r.All() {
				if err != nil {
					t.Errorf("%s: %v", rec.name, err)
				}
				commands++
			}
			if r.Offset() != int64(len(stream)) {
				t.Errorf("%s: stopped at %d of %d", rec.name, r.Offset(), len(stream))
			}
		}
	})
	t.Logf("%d commands", commands)
}

// manifest returns the manifest of the snapshot that a unit makes, or nil if it is
// not in the corpus.
func manifest(t *testing.T, rec recording, unit *Unit) []sendtest.Entry {
	t.Helper()
	name := unit.Name
	if strings.Contains(rec.name, "rx-"+name) {
		name = "rx-" + name // received, and sent on under the old name
	}
	path := filepath.Join(rec.dir, name+".manifest.jsonl.zst")
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	entries, err := sendtest.ReadManifest(bytes.NewReader(readZst(t, path)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	// Nested subvolumes are in no stream, nor are attributes that the sender takes
	// for security.capability.
	entries = slices.DeleteFunc(entries, func(e sendtest.Entry) bool { return e.Ino == 2 })
	for i := range entries {
		entries[i].Xattrs = slices.DeleteFunc(entries[i].Xattrs, func(x filetree.Xattr) bool {
			return x.Name != "security.capability" && strings.HasPrefix("security.capability", x.Name)
		})
	}
	return entries
}

// A replay is a case while its streams are applied.
type replay struct {
	snapshots map[[16]byte]*sendtest.Model
	births    map[[16]byte]bool // whether all birth times are known
	truth     map[string]*sendtest.Model
}

func newReplay() *replay {
	return &replay{
		snapshots: make(map[[16]byte]*sendtest.Model),
		births:    make(map[[16]byte]bool),
		truth:     make(map[string]*sendtest.Model),
	}
}

// parent returns a new tree that unit can be applied to, or nil if its parent is
// not known.
func (r *replay) parent(unit *Unit) *sendtest.Model {
	m := sendtest.NewModel()
	if unit.Incremental {
		base := r.snapshots[unit.ParentUUID]
		if base == nil {
			return nil
		}
		m = base.Copy()
	}
	m.Snapshots = r.snapshots
	return m
}

// TestApplyCorpus replays every stream and compares the trees with the manifests.
func TestApplyCorpus(t *testing.T) {
	units := 0
	forEachCase(t, func(t *testing.T, name string, rs []recording) {
		r := newReplay()
		for _, rec := range rs {
			us := NewUnits(bytes.NewReader(rec.stream(t)))
			for unit, err := range us.All() {
				if err != nil {
					t.Fatalf("%s: %v", rec.name, err)
				}
				m := r.parent(unit)
				if m == nil {
					t.Logf("%s: skipped, no parent", rec.name)
					break
				}
				res, err := unit.Apply(t.Context(), m, Options{NoData: rec.noData()})
				if err != nil {
					t.Fatalf("%s: %v", rec.name, err)
				}
				if len(res.Unknown) > 0 || len(res.Moved) > 0 {
					t.Errorf("%s: unknown %q, moved %q", rec.name, res.Unknown, res.Moved)
				}
				units++
				want := manifest(t, rec, unit)
				if want == nil {
					t.Fatalf("%s: no manifest of %s", rec.name, unit.Name)
				}
				key := rec.name[:3] + unit.Name
				if rec.noData() {
					compareNoData(t, name, rec, m, r.truth[key], want)
					continue
				}
				if diff := gocmp.Diff(sendtest.Lines(want), m.Lines()); diff != "" {
					t.Errorf("%s: tree (-manifest +replayed):\n%s", rec.name, diff)
				}
				births := unit.Version >= 2 && (!unit.Incremental || r.births[unit.ParentUUID])
				compareMore(t, rec, m, want, births)
				r.truth[key] = m
				r.snapshots[unit.UUID], r.births[unit.UUID] = m, births
			}
		}
	})
	t.Logf("%d units", units)
}

// compareMore compares what only some streams carry. v2 says that all that led
// here were of version 2.
func compareMore(t *testing.T, rec recording, m *sendtest.Model, want []sendtest.Entry, v2 bool) {
	byPath := make(map[string]*sendtest.Entry)
	for i := range want {
		byPath[want[i].Path] = &want[i]
	}
	m.Walk(func(path string, n *sendtest.Node) {
		e := byPath[path]
		if e == nil {
			return // reported already
		}
		a := n.Attr
		if btime := sendtest.Nanoseconds(a.Btime); v2 && btime != e.OtimeNs.String() {
			t.Errorf("%s: %q: birth time %s, want %s", rec.name, path, btime, e.OtimeNs)
		}
		if a.Ino != 0 && a.Ino != e.Ino {
			t.Errorf("%s: %q: inode %d, want %d", rec.name, path, a.Ino, e.Ino)
		}
		if v2 && a.Flags != 0 && e.FSFlags != nil && a.Flags != *e.FSFlags {
			t.Errorf("%s: %q: flags %#x, want %#x", rec.name, path, a.Flags, *e.FSFlags)
		}
	})
}

// compareNoData compares a tree whose changed ranges are not known with the
// manifest, but for content, and with the same tree with data: where the content
// differs, a range must have been announced.
func compareNoData(t *testing.T, name string, rec recording, got, truth *sendtest.Model, want []sendtest.Entry) {
	sums := regexp.MustCompile(` sum=\S+`)
	strip := func(lines []string) []string {
		out := make([]string, len(lines))
		for i, l := range lines {
			out[i] = sums.ReplaceAllString(l, "")
		}
		return out
	}
	if diff := gocmp.Diff(strip(sendtest.Lines(want)), strip(got.Lines())); diff != "" {
		t.Errorf("%s: tree (-manifest +replayed):\n%s", rec.name, diff)
	}
	if truth == nil {
		t.Logf("%s: no stream with data", rec.name)
		return
	}
	if name == "big-hole" && !rec.v2() {
		return // the sender cuts the length of the hole to 32 bits
	}
	files := make(map[string]*sendtest.Node)
	truth.Walk(func(path string, n *sendtest.Node) { files[path] = n })
	got.Walk(func(path string, n *sendtest.Node) {
		if n.Attr.Kind != filetree.File {
			return
		}
		for _, block := range slices.Concat(n.Blocks(), files[path].Blocks()) {
			if *n.Block(block) == *files[path].Block(block) {
				continue
			}
			off := block * sendtest.BlockSize
			covered := slices.ContainsFunc(n.Changed, func(r filetree.Range) bool {
				return r.Offset <= off && r.End() >= min(off+sendtest.BlockSize, n.Attr.Size)
			})
			if !covered {
				t.Errorf("%s: %q: block %d changed, but no range in %v has it", rec.name, path, block, n.Changed)
				return
			}
		}
	})
}

// TestDumps compares the commands with what btrfs receive --dump printed.
func TestDumps(t *testing.T) {
	compared := 0
	forEachCase(t, func(t *testing.T, _ string, rs []recording) {
		for _, rec := range rs {
			path := filepath.Join(rec.dir, rec.name+".dump.txt")
			if _, err := os.Stat(path); err != nil {
				if path += ".zst"; !exists(path) {
					continue
				}
			}
			want := dumpLines(bytes.NewReader(readZst(t, path)))
			if diff := gocmp.Diff(want, dumpOf(t, rec.stream(t))); diff != "" {
				t.Errorf("%s: commands (-dump +read):\n%s", rec.name, diff)
			}
			compared++
		}
	})
	t.Logf("%d dumps", compared)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// dumpLine matches a command and its path, in which the dump escapes spaces.
var dumpLine = regexp.MustCompile(`^(\S+)\s+((?:\\.|[^\s\\])+)(.*)$`)

var spaces = regexp.MustCompile(`\s+`)

// dumpLines cuts a dump to what dumpOf makes of a stream.
func dumpLines(r io.Reader) []string {
	var lines []string
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		m := dumpLine.FindStringSubmatch(s.Text())
		if m == nil {
			lines = append(lines, "? "+s.Text())
			continue
		}
		l := m[1] + " " + m[2]
		switch m[1] {
		case "write", "update_extent", "truncate", "fallocate", "rename", "chmod", "chown", "symlink":
			l += " " + strings.TrimSpace(spaces.ReplaceAllString(m[3], " "))
		}
		lines = append(lines, l)
	}
	return lines
}

// dumpOf prints the commands of the first stream as a dump does.
func dumpOf(t *testing.T, stream []byte) []string {
	t.Helper()
	var lines []string
	subvol := ""
	for c, err := range NewReader(bytes.NewReader(stream)).All() {
		if err != nil {
			t.Fatal(err)
		}
		l := c.Type.String() + " "
		at := func(path []byte) string { return subvol + "/" + escapeDump(path) }
		switch c.Type {
		case End:
			return lines
		case Subvol, Snapshot:
			subvol = "./" + escapeDump(c.Path)
			l += subvol
		default:
			l += at(c.Path)
		}
		switch c.Type {
		case Write, UpdateExtent:
			l += fmt.Sprintf(" offset=%d len=%d", c.Range.Offset, c.Range.Length)
		case Truncate:
			l += fmt.Sprintf(" size=%d", c.Size)
		case Fallocate:
			l += fmt.Sprintf(" mode=%d offset=%d len=%d", c.FallocateMode, c.Range.Offset, c.Range.Length)
		case Rename:
			l += " dest=" + at(c.PathTo)
		case Symlink:
			l += " dest=" + escapeDump(c.Link)
		case Chmod:
			l += fmt.Sprintf(" mode=%o", c.Mode)
		case Chown:
			l += fmt.Sprintf(" gid=%d uid=%d", c.GID, c.UID)
		}
		lines = append(lines, l)
	}
	return lines
}

// escapeDump escapes as btrfs-progs does.
func escapeDump(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		switch {
		case c == ' ' || c == '\\':
			s.WriteString(`\` + string(rune(c)))
		case strings.IndexByte("\a\b\x1b\f\n\r\t\v", c) >= 0:
			s.WriteString(`\` + string("abefnrtv"[strings.IndexByte("\a\b\x1b\f\n\r\t\v", c)]))
		case c < 0x20 || c >= 0x7f:
			fmt.Fprintf(&s, `\%03o`, c)
		default:
			s.WriteByte(c)
		}
	}
	return s.String()
}
