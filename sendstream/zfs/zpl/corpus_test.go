package zpl

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/sendtest"
)

// corpusDir has the recorded streams: a part of them, unless SECRATE_CORPUS_ZFS names
// a directory with all.
func corpusDir() string { return cmp.Or(os.Getenv("SECRATE_CORPUS_ZFS"), "testdata/corpus") }

func readZst(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
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

// recordings returns the paths of streams by case, in the order in which they were
// made.
func recordings(tb testing.TB) map[string][]string {
	tb.Helper()
	paths, err := filepath.Glob(filepath.Join(corpusDir(), "*", "*.zsend.zst"))
	if err != nil || len(paths) == 0 {
		tb.Fatalf("no streams in %s: %v", corpusDir(), err)
	}
	slices.Sort(paths)
	cases := make(map[string][]string)
	for _, p := range paths {
		c := filepath.Base(filepath.Dir(p))
		cases[c] = append(cases[c], p)
	}
	return cases
}

// unreadable says why a stream does not give the files of a snapshot.
func unreadable(path string, b begin) string {
	switch {
	case b.features&featureRaw != 0:
		return "raw"
	case b.features&featureRedacted != 0:
		return "redacted"
	case b.features&featureResuming != 0:
		return "resumed"
	case b.objset != fileSystem:
		return "a volume"
	case strings.HasSuffix(path, ".saved.zsend.zst"):
		return "saved, which is cut off"
	}
	return ""
}

// eachDataset applies the streams of a case, full ones to nothing and the others to
// their base, and calls f with each state that a whole substream gives.
func eachDataset(tb testing.TB, paths []string, f func(path string, b begin, d *dataset)) {
	states := make(map[uint64]*dataset) // by GUID of the snapshot
	for _, path := range paths {
		var b begin
		var d *dataset
		for r, err := range records(readZst(tb, path)) {
			if err != nil {
				tb.Fatalf("%s: %v", path, err)
			}
			switch {
			case r.typ == recBegin:
				if b = r.begin(); b.isPackage {
					continue
				}
				d = newDataset(r.order)
				if b.from != 0 {
					base := states[b.from]
					if base == nil {
						tb.Fatalf("%s: no base for %s", path, b.name)
					}
					d = base.clone()
				}
				d.start(b.flags)
			case r.typ == recEnd && d == nil: // of the package
			case r.typ == recEnd:
				if !strings.Contains(b.name, "@--head--") {
					states[b.to] = d
				}
				f(path, b, d)
				d.base = nil // let it go
				d = nil
			default:
				if err := d.apply(&r); err != nil {
					tb.Fatalf("%s: at %d: %v", path, r.offset, err)
				}
			}
		}
	}
}

// lastDataset returns the state that the last stream of a case leads to, or nil if none
// can be read.
func lastDataset(tb testing.TB, paths []string) (last *dataset) {
	eachDataset(tb, readable(tb, paths), func(_ string, _ begin, d *dataset) { last = d })
	return last
}

// readable returns those of paths that can be applied, and logs why others cannot.
func readable(tb testing.TB, paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(path string) bool {
		for r, err := range records(readZst(tb, path)) {
			if err != nil {
				tb.Fatal(err)
			}
			if r.typ == recEnd {
				continue // of a package
			}
			if b := r.begin(); !b.isPackage {
				if why := unreadable(path, b); why != "" {
					tb.Logf("%s: skipped, %s", filepath.Base(path), why)
					return true
				}
				return false
			}
		}
		return false
	})
}

// TestCorpus decodes every state that a recorded stream leads to, and compares it with
// what was seen in the mounted snapshot.
func TestCorpus(t *testing.T) {
	cases := recordings(t)
	streams, snapshots, lines := 0, 0, 0
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) {
			paths := readable(t, cases[name])
			streams += len(paths)
			eachDataset(t, paths, func(path string, b begin, d *dataset) {
				tr, err := d.decode()
				if err != nil {
					t.Errorf("%s: %s: %v", path, b.name, err)
					return
				}
				want := manifest(t, path, b.name)
				if diff := gocmp.Diff(manifestLines(want), tr.lines()); diff != "" {
					t.Errorf("%s: %s (-manifest +decoded):\n%s", path, b.name, diff)
				}
				tr.compareContent(t, path, want)
				if err := tr.checkBase(); err != nil {
					t.Errorf("%s: %s: %v", path, b.name, err)
				}
				snapshots++
				lines += len(want)
			})
		})
	}
	t.Logf("%d streams, %d snapshots, %d paths", streams, snapshots, lines)
}

// An entry is a line of a manifest; the README of the corpus describes it.
type entry struct {
	Path     string      `json:"path"`
	PathB    []byte      `json:"path_b64"`
	Ino      uint64      `json:"ino"`
	Type     string      `json:"type"`
	Mode     string      `json:"mode"`
	UID      uint32      `json:"uid"`
	GID      uint32      `json:"gid"`
	Nlink    uint64      `json:"nlink"`
	Size     uint64      `json:"size"`
	ProjID   *uint64     `json:"projid"`
	Flags    uint32      `json:"fsx_xflags"`
	Mtime    json.Number `json:"mtime_ns"`
	Ctime    json.Number `json:"ctime_ns"`
	Atime    json.Number `json:"atime_ns"`
	Crtime   json.Number `json:"crtime_ns"`
	Rdev     string      `json:"rdev"`
	Target   string      `json:"target"`
	TargetB  []byte      `json:"target_b64"`
	SHA256   string      `json:"sha256"`
	Segments []segment   `json:"segments"`
	Xattrs   []struct {
		Name   string `json:"name"`
		Size   int    `json:"size"`
		SHA256 string `json:"sha256"`
	} `json:"xattrs"`
}

type segment struct {
	Off    uint64 `json:"off"`
	Len    uint64 `json:"len"`
	SHA256 string `json:"sha256"`
}

// manifest reads the manifest of the snapshot with the name pool/dataset@snapshot.
func manifest(tb testing.TB, stream, name string) []entry {
	tb.Helper()
	dir := filepath.Dir(stream)
	dataset, snap, _ := strings.Cut(name, "@")
	dataset = strings.TrimPrefix(dataset, "tank/")
	label := ""
	switch child, ok := strings.CutPrefix(dataset, filepath.Base(dir)+"/"); {
	case ok:
		label = strings.ReplaceAll(child, "/", "_") + "."
	case strings.HasPrefix(dataset, "red-"):
		label = "red."
	}
	if snap == "--head--" {
		snap = "s4" // with nothing changed since
	}
	path := filepath.Join(dir, label+snap+".manifest.jsonl.zst")
	if _, err := os.Stat(path); err != nil {
		path = strings.Replace(path, "kid2new", "kid2", 1) // renamed after the snapshot
	}
	var entries []entry
	lines := bufio.NewScanner(bytes.NewReader(readZst(tb, path)))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			tb.Fatalf("%s: line %d: %v", path, len(entries)+1, err)
		}
		e.Path = cmp.Or(e.Path, string(e.PathB))
		e.Target = cmp.Or(e.Target, string(e.TargetB))
		entries = append(entries, e)
	}
	if lines.Err() != nil || len(entries) == 0 {
		tb.Fatalf("%s: %v", path, lines.Err())
	}
	return entries
}

// manifestLines returns a line for each path with all that attributes and directories
// say; tree.lines returns the same.
func manifestLines(entries []entry) []string {
	var lines []string
	for _, e := range entries {
		var l strings.Builder
		fmt.Fprintf(&l, "%q ino=%d %s %s %d:%d nlink=%d size=%d mtime=%s ctime=%s atime=%s crtime=%s",
			e.Path, e.Ino, e.Type, e.Mode, e.UID, e.GID, e.Nlink, e.Size, e.Mtime, e.Ctime, e.Atime, e.Crtime)
		if e.ProjID != nil {
			fmt.Fprintf(&l, " projid=%d flags=%#x", *e.ProjID, e.Flags)
		}
		if e.Rdev != "" {
			fmt.Fprintf(&l, " rdev=%s", e.Rdev)
		}
		if e.Type == "symlink" {
			fmt.Fprintf(&l, " target=%q", e.Target)
		}
		var xattrs []string
		for _, x := range e.Xattrs {
			xattrs = append(xattrs, fmt.Sprintf(" %q=%d:%s", x.Name, x.Size, x.SHA256))
		}
		slices.Sort(xattrs)
		lines = append(lines, l.String()+strings.Join(xattrs, ""))
	}
	slices.Sort(lines)
	return lines
}

// kindNames are those of manifests.
var kindNames = map[filetree.Kind]string{
	filetree.File: "file", filetree.Dir: "dir", filetree.Symlink: "symlink", filetree.Fifo: "fifo",
	filetree.Socket: "socket", filetree.CharDev: "char", filetree.BlkDev: "block",
}

func (t *tree) lines() []string {
	var lines []string
	for _, n := range t.nodes {
		a, kind := n.attr, KindOf(n.attr.Mode)
		uid, uidOK := a.UID.POSIX()
		gid, gidOK := a.GID.POSIX()
		if !uidOK || !gidOK {
			lines = append(lines, fmt.Sprintf("%q: owner %#x:%#x", n.path, a.UID, a.GID))
			continue
		}
		var l strings.Builder
		fmt.Fprintf(&l, "%q ino=%d %s %06o %d:%d nlink=%d size=%d mtime=%s ctime=%s atime=%s crtime=%s",
			n.path, n.number, kindNames[kind], a.Mode, uid, gid, a.Links, a.Size,
			sendtest.Nanoseconds(a.Mtime), sendtest.Nanoseconds(a.Ctime),
			sendtest.Nanoseconds(a.Atime), sendtest.Nanoseconds(a.Crtime))
		switch kind {
		case filetree.File, filetree.Dir:
			fmt.Fprintf(&l, " projid=%d flags=%#x", a.ProjID, a.Flags.FS())
		case filetree.CharDev, filetree.BlkDev:
			major, minor := SplitRdev(a.Rdev)
			fmt.Fprintf(&l, " rdev=%d:%d", major, minor)
		case filetree.Symlink:
			fmt.Fprintf(&l, " target=%q", n.target)
		}
		var xattrs []string
		for _, x := range n.xattrs {
			xattrs = append(xattrs, fmt.Sprintf(" %s=%d:%x", strconv.Quote(x.Name), len(x.Value), sha256.Sum256(x.Value)))
		}
		slices.Sort(xattrs)
		lines = append(lines, l.String()+strings.Join(xattrs, ""))
	}
	slices.Sort(lines)
	return lines
}

// compareContent compares the data of files, which is no part of what this package
// decodes, but of the oracle that the test is.
func (t *tree) compareContent(tb testing.TB, stream string, want []entry) {
	byPath := make(map[string]*entry)
	for i := range want {
		byPath[want[i].Path] = &want[i]
	}
	for _, n := range t.nodes {
		e := byPath[n.path]
		if e == nil || e.Type != "file" {
			continue // reported already
		}
		segments := e.Segments
		if e.SHA256 != "" {
			segments = append(segments, segment{0, e.Size, e.SHA256})
		}
		for _, s := range segments {
			h := sha256.New()
			if err := n.object.content.each(s.Off, s.Off+s.Len, func(b []byte) { h.Write(b) }); err != nil {
				tb.Errorf("%s: %q: %v", stream, n.path, err)
			} else if got := fmt.Sprintf("%x", h.Sum(nil)); got != s.SHA256 {
				tb.Errorf("%s: %q: bytes %d to %d have the sum %s, not %s", stream, n.path, s.Off, s.Off+s.Len, got, s.SHA256)
			}
		}
	}
}

// TestSwapped decodes the last state of each case as if it came from a machine of the
// other byte order, and from one whose attributes alone are in the other order.
func TestSwapped(t *testing.T) {
	cases := recordings(t)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) {
			last := lastDataset(t, cases[name])
			if last == nil {
				return // volumes
			}
			want, err := last.decode()
			if err != nil {
				t.Fatal(err)
			}
			for _, what := range []struct{ sa, rest bool }{{true, true}, {true, false}, {false, true}} {
				d := last.swapped(t, what.sa, what.rest)
				got, err := d.decode()
				if err != nil {
					t.Fatalf("%+v: %v", what, err)
				}
				if diff := gocmp.Diff(want.lines(), got.lines()); diff != "" {
					t.Errorf("%+v (-as recorded +swapped):\n%s", what, diff)
				}
			}
		})
	}
}
