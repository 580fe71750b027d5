package backup_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/btrfsvolume"
	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/dir"
	"github.com/secrate/secrate/sendstream/btrfs"
	"github.com/secrate/secrate/testenv/manifest"
)

// A fixture is a repository in a directory with one writer.
type fixture struct {
	t          testing.TB
	store      store.Store
	state      string
	cat        *catalog.DB
	identity   s3history.WriterIdentity
	identities []age.Identity
	recipients *seal.Recipients
	w          *s3history.Writer
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, state: t.TempDir()}
	var err error
	if f.store, err = dir.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	id, rec, err := seal.GenerateIdentity(true)
	if err != nil {
		t.Fatal(err)
	}
	if f.identities, err = seal.ParseIdentityFile([]byte(id), seal.Options{}); err != nil {
		t.Fatal(err)
	}
	if f.recipients, err = seal.ParseRecipients([]string{rec}, seal.Options{}); err != nil {
		t.Fatal(err)
	}
	repo, _, err := s3history.InitRepository(t.Context(), f.store)
	if err != nil {
		t.Fatal(err)
	}
	if f.identity, err = s3history.NewWriterIdentity(t.Context(), f.store, repo, "host", f.recipients); err != nil {
		t.Fatal(err)
	}
	if f.cat, err = catalog.Open(filepath.Join(f.state, "catalog.db"), catalog.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.cat.Close() })
	f.w, err = s3history.NewWriter(t.Context(), s3history.WriterOptions{Store: f.store, StateDir: f.state, Catalog: f.cat,
		Identity: f.identity, Recipients: f.recipients})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) source(name string) catalog.Source {
	f.t.Helper()
	s, err := f.w.Source(name)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// ingest feeds a stream to a source and returns what each unit made.
func (f *fixture) ingest(source string, r io.Reader) ([]backup.Result, error) {
	f.t.Helper()
	job, err := backup.New(backup.Options{Writer: f.w, Source: source})
	if err != nil {
		f.t.Fatal(err)
	}
	var out []backup.Result
	for u, err := range btrfs.NewUnits(r).All() {
		if err != nil {
			return out, err
		}
		unit := btrfsvolume.UnitOf(u, func([]string) {})
		var res backup.Result
		if err := job.Ingest(f.t.Context(), unit, filetree.Time{Sec: int64(len(out) + 1)}, &res); err != nil {
			return out, fmt.Errorf("unit %s: %w", u.Name, err)
		}
		out = append(out, res)
	}
	return out, nil
}

// entries describes a state of the history as a manifest does a tree.
func (f *fixture) entries(cat *catalog.DB, source catalog.Source, seq uint64) []manifest.Entry {
	f.t.Helper()
	v := cat.At(source.ID, seq)
	c := s3history.NewContent(f.store, f.identity, cat, f.identities)
	var out []manifest.Entry
	add := func(path string, n filetree.NodeID, a filetree.Attr) {
		names, err := v.Entries(n, 0)
		if err != nil {
			f.t.Fatal(err)
		}
		e := manifest.Entry{Path: path, Ino: cmp.Or(a.Ino, uint64(n)), Kind: a.Kind, Mode: a.Mode, UID: a.UID, GID: a.GID, Size: a.Size,
			Nlink: uint64(max(1, len(names))), Mtime: a.Mtime, Ctime: a.Ctime, Otime: a.Btime, FSFlags: int64(a.Flags), Target: a.Target,
			Major: a.Major, Minor: a.Minor, Xattrs: a.Xattrs}
		if a.Kind != filetree.File && a.Kind != filetree.Dir {
			e.FSFlags = -1 // a manifest has none
		}
		if a.Kind == filetree.Symlink {
			e.Size = int64(len(a.Target))
		}
		if a.Kind == filetree.File {
			f.content(c, v, n, &e)
		}
		out = append(out, e)
	}
	root, err := v.Attr(filetree.RootNode)
	if err != nil {
		f.t.Fatal(err)
	}
	add("", filetree.RootNode, root)
	var walk func(dir filetree.NodeID, prefix string)
	walk = func(dir filetree.NodeID, prefix string) {
		for ch, err := range v.Children(dir) {
			if err != nil {
				f.t.Fatal(err)
			}
			add(prefix+ch.Name, ch.Node, ch.Attr)
			if ch.Attr.Kind == filetree.Dir {
				walk(ch.Node, prefix+ch.Name+"/")
			}
		}
	}
	walk(filetree.RootNode, "")
	return out
}

const sparseAbove = 64 << 20

func (f *fixture) content(c *s3history.Content, v catalog.View, n filetree.NodeID, e *manifest.Entry) {
	f.t.Helper()
	parts, err := v.Parts(n, 0, e.Size)
	if err != nil {
		f.t.Fatal(err)
	}
	e.Sparse = e.Size > sparseAbove
	h := sha256.New()
	off := int64(0)
	block, blockNo := make([]byte, 4096), int64(-1)
	flush := func() {
		if blockNo >= 0 && !bytes.Equal(block, make([]byte, 4096)) {
			h.Write(binary.LittleEndian.AppendUint64(nil, uint64(blockNo)))
			h.Write(block)
		}
		clear(block)
	}
	for _, p := range parts {
		if k := len(e.Extents); k > 0 && e.Extents[k-1].Hole == p.Hole() {
			e.Extents[k-1].Length += p.Length
		} else {
			e.Extents = append(e.Extents, filetree.Segment{Range: filetree.Range{Offset: off, Length: p.Length}, Hole: p.Hole()})
		}
		switch {
		case p.Hole() && e.Sparse:
		case p.Hole():
			io.CopyN(h, zeros{}, p.Length)
		default:
			b, err := c.Read(f.t.Context(), p)
			if err != nil {
				f.t.Fatalf("%s: %v", e.Path, err)
			}
			if !e.Sparse {
				h.Write(b)
				break
			}
			for i, x := range b {
				at := off + int64(i)
				if at/4096 != blockNo {
					flush()
					blockNo = at / 4096
				}
				block[at%4096] = x
			}
		}
		off += p.Length
	}
	flush()
	h.Sum(e.SHA256[:0])
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// corpus returns the directory of recorded streams.
func corpus(t testing.TB) string {
	if d := os.Getenv("SECRATE_CORPUS"); d != "" {
		return d
	}
	return "../../sendstream/btrfs/testdata/corpus"
}

func open(t testing.TB, name string) io.Reader {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// TestCorpus feeds every recorded stream that has its data through the history, and
// compares every snapshot with what it held. Streams of one send that differ only in
// version have histories of their own.
func TestCorpus(t *testing.T) {
	cases, err := filepath.Glob(filepath.Join(corpus(t), "*", "*.bsend.zst"))
	if err != nil || len(cases) == 0 {
		t.Fatal("no corpus: ", err)
	}
	dirs := map[string][]string{}
	for _, c := range cases {
		if !strings.Contains(c, "-nodata") {
			dirs[filepath.Dir(c)] = append(dirs[filepath.Dir(c)], c)
		}
	}
	for d, streams := range dirs {
		t.Run(filepath.Base(d), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			if filepath.Base(d) == "received" {
				// The same UUIDs come twice, from where the snapshots were made and
				// from where they were received: two histories.
				rx := slices.DeleteFunc(slices.Clone(streams), func(s string) bool { return filepath.Base(s) < "002" })
				f.corpusCase(t, d, "", rx)
				f = newFixture(t)
				streams = slices.DeleteFunc(slices.Clone(streams), func(s string) bool { return filepath.Base(s) >= "002" })
			}
			for _, variant := range []string{"", "-v2", "-v2-compressed"} {
				f.corpusCase(t, d, variant, streams)
			}
		})
	}
}

// variantOf splits a stream's name into what it is without its version, and that.
func variantOf(name string) (send, variant string) {
	send = strings.TrimSuffix(filepath.Base(name), ".bsend.zst")
	for _, v := range []string{"-v2-compressed", "-v2"} {
		if s, ok := strings.CutSuffix(send, v); ok {
			return s, v
		}
	}
	return send, ""
}

func (f *fixture) corpusCase(t *testing.T, dir, variant string, streams []string) {
	f.t = t
	prefix := ""
	if strings.HasPrefix(filepath.Base(streams[0]), "00") && filepath.Base(dir) == "received" && filepath.Base(streams[0]) >= "002" {
		prefix = "rx-" // what the manifests of received snapshots are called
	}
	pick := map[string]string{}
	for _, s := range streams {
		send, v := variantOf(s)
		if v == variant || v == "" && pick[send] == "" || v == "-v2" && variant == "-v2-compressed" && !strings.Contains(pick[send], "compressed") {
			pick[send] = s
		}
	}
	sends := make([]string, 0, len(pick))
	for s := range pick {
		sends = append(sends, s)
	}
	slices.Sort(sends)
	pure := map[string]bool{} // histories whose every stream is of version 2
	main := "s" + variant
	pure[main] = true
	for _, send := range sends {
		_, v := variantOf(pick[send])
		if strings.Contains(send, "mixed") {
			v = "" // both versions in one file
		}
		_, err := f.ingest(main, open(t, pick[send]))
		if errors.Is(err, backup.ErrBase) && !strings.Contains(send, "full") && send == sends[0] {
			t.Logf("%s: what it starts from is not in this selection", filepath.Base(pick[send]))
			return
		}
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(pick[send]), err)
			return
		}
		pure[main] = pure[main] && v != ""
		if strings.Contains(send, "full") { // also as the first of a history
			own := "own" + send + variant
			if _, err := f.ingest(own, open(t, pick[send])); err != nil {
				t.Errorf("%s: %v", filepath.Base(pick[send]), err)
				continue
			}
			f.compareCorpus(t, dir, own, v != "", prefix)
		}
	}
	f.compareCorpus(t, dir, main, pure[main], prefix)
}

// compareCorpus compares every snapshot of a history with its manifest. Birth times
// come in version 2 only. Where the holes are is not said for preallocated ranges, nor
// in version 1 for new holes: of version 2 it is asked that no data became a hole.
func (f *fixture) compareCorpus(t *testing.T, dir, source string, version2 bool, prefix string) {
	src := f.source(source)
	snaps, err := s3history.Snapshots(f.cat, src)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range snaps {
		name := s.Info.Origin
		if name != "cont" {
			name = prefix + name
		}
		want, err := manifest.ReadFile(filepath.Join(dir, name+".manifest.jsonl.zst"))
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		for i := range want { // a defect of the sender: see the case's description
			want[i].Xattrs = slices.DeleteFunc(want[i].Xattrs, func(x filetree.Xattr) bool {
				return x.Name != "security.capability" && strings.HasPrefix("security.capability", x.Name)
			})
		}
		got := f.entries(f.cat, src, s.Seq)
		ig := manifest.Ignore{Ino: true, DirSize: true, DirNlink: true, FSFlags: true, Nested: true, Otime: !version2, Extents: true}
		want = slices.DeleteFunc(want, func(e manifest.Entry) bool { return e.Ino == 2 && e.Kind == filetree.Dir })
		if d := manifest.Diff(want, got, ig); len(d) > 0 {
			t.Errorf("%s: #%d %s:\n%s", source, s.Seq, s.Info.Origin, manifest.Report(d, 8))
		}
		if version2 {
			checkHoles(t, want, got)
		}
	}
}

func checkHoles(t *testing.T, want, got []manifest.Entry) {
	byPath := map[string]manifest.Entry{}
	for _, e := range got {
		byPath[e.Path] = e
	}
	for _, w := range want {
		for _, h := range byPath[w.Path].Extents {
			for _, d := range w.Extents {
				if h.Hole && !d.Hole && h.Offset < d.End() && d.Offset < h.End() {
					t.Errorf("%q: data at %d is a hole of %d bytes at %d", w.Path, d.Offset, h.Length, h.Offset)
				}
			}
		}
	}
}
