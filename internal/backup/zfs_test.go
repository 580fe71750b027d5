package backup_test

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/zfsvolume"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/sendstream/zfs"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
)

// zfsCorpus is the directory of recorded streams.
func zfsCorpus() string {
	return cmp.Or(os.Getenv("SECRATE_CORPUS_ZFS"), "../../sendstream/zfs/zpl/testdata/corpus") // whole chains, with manifests
}

// A zfsCase is the streams of one folder of the corpus.
type zfsCase struct {
	*fixture
	dir   string
	paths []string
	bases map[uint64]string // by GUID of the snapshot: a stream that brings it
}

// refusal says why a stream gives no files; empty for one that does.
func refusal(err error) string {
	for why, is := range map[string]error{"raw": zfs.ErrRaw, "redacted": zfs.ErrRedacted, "cut": io.ErrUnexpectedEOF, "resumed": zfs.ErrResumed} {
		if errors.Is(err, is) {
			return why
		}
	}
	return ""
}

// TestZFSCorpus feeds every recorded stream through the history, each into a source of its
// own that has what it starts from, and compares what it brings with what the mounted
// snapshot held.
func TestZFSCorpus(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(zfsCorpus(), "*", "*.zsend.zst"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no streams in %s: %v", zfsCorpus(), err)
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	for _, dir := range slices.Compact(dirs) {
		t.Run(filepath.Base(dir), func(t *testing.T) { newZFSCase(t, dir).run(t) })
	}
}

func newZFSCase(t *testing.T, dir string) *zfsCase {
	paths, err := filepath.Glob(filepath.Join(dir, "*.zsend.*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	c := &zfsCase{fixture: newFixture(t), dir: dir, paths: paths, bases: map[uint64]string{}}
	// Full streams rather than others, single ones rather than packages.
	for _, choice := range []struct{ full, single bool }{{true, true}, {false, true}, {true, false}, {false, false}} {
		for _, p := range paths {
			for u, err := range zfs.NewUnits(openZFS(t, p)).All() {
				if err != nil {
					break // refused; that is seen when its turn comes
				}
				_, resumed, _ := u.Resume()
				if _, ok := c.bases[u.ToGUID]; !ok && u.Incremental() != choice.full && (u.Package == nil) == choice.single && !u.Head() && resumed == 0 {
					c.bases[u.ToGUID] = p
				}
			}
		}
	}
	return c
}

func openZFS(t testing.TB, path string) io.Reader {
	if !strings.HasSuffix(path, ".zst") {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.NewReader(b)
	}
	return bufio.NewReaderSize(open(t, path), 1<<20)
}

func (c *zfsCase) run(t *testing.T) {
	compared := 0
	for i, p := range c.paths {
		compared += c.feed(t, fmt.Sprintf("s%d", i), p, true)
	}
	t.Logf("%d snapshots compared", compared)
}

// feed brings the units of a stream into sources, one for each dataset, after what they
// start from. It returns how many snapshots it compared.
func (c *zfsCase) feed(t *testing.T, source, path string, compare bool) (compared int) {
	name := filepath.Base(path)
	clones := map[string]bool{} // datasets that begin as one, in a source of which nothing is
	units := zfs.NewUnits(openZFS(t, path))
	for {
		u, err := units.Next()
		if err == io.EOF {
			return compared
		}
		if err != nil {
			if refusal(err) == "" {
				t.Errorf("%s: %v", name, err)
			}
			t.Logf("%s: refused, %s", name, refusal(err))
			return compared
		}
		src := source + "-" + strings.ReplaceAll(u.Dataset(), "/", "-")
		if u.Flags&zfs.FlagClone != 0 {
			clones[src] = true
		}
		if u.Incremental() && !c.has(src, u.FromGUID) && !clones[src] {
			if base := c.bases[u.FromGUID]; base != "" && base != path {
				c.feed(t, source, base, false)
			}
		}
		before := c.dump(src)
		res, failed, err := c.ingest(t, src, u)
		if clones[src] && errors.Is(err, backup.ErrBase) {
			t.Logf("%s: %s is a clone of another dataset, which its source has not", name, u.Name)
			continue
		}
		if err != nil {
			if refusal(err) == "" {
				t.Errorf("%s: %s: %v", name, u.Name, err)
			}
			t.Logf("%s: refused, %s", name, refusal(err))
			if after := c.dump(src); after != before {
				t.Errorf("%s: a stream that is refused changes the history", name)
			}
			return compared
		}
		if compare {
			c.compare(t, src, u, res, failed, name)
			compared++
		}
	}
}

func (c *zfsCase) has(source string, guid uint64) bool {
	if seq, err := c.w.Alias(c.source(source), zfs.GUID(guid)); err != nil || seq != 0 {
		return err == nil // nothing had changed in it
	}
	snaps, err := c.w.Snapshots(c.source(source))
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.ContainsFunc(snaps, func(s s3history.Snapshot) bool { return s.Info.GUID == zfs.GUID(guid) })
}

// dump is what there is of a source, about.
func (c *zfsCase) dump(source string) string {
	snaps, err := c.w.Snapshots(c.source(source))
	if err != nil {
		c.t.Fatal(err)
	}
	return fmt.Sprint(snaps)
}

func (c *zfsCase) ingest(t *testing.T, source string, u *zfs.Unit) (res backup.Result, failed []string, err error) {
	unit := zfsvolume.UnitOf(u, func(what string, err error) { failed = append(failed, what) })
	err = c.job(source).Ingest(t.Context(), unit, filetree.Time{}, &res)
	return res, failed, err
}

// A zfsEntry is a line of a manifest, and what a history has for it.
type zfsEntry struct {
	Path     string
	Ino      uint64
	Kind     filetree.Kind
	Mode     uint32
	UID, GID uint32
	Links    int // of all but directories
	Size     int64
	Mtime    int64
	Ctime    int64
	Btime    int64
	Rdev     string
	Target   string
	Flags    uint32
	Project  string
	SHA256   string
	Data     []filetree.Range // where it is no hole, for files with holes
	Xattrs   []string
}

var zfsKinds = map[string]filetree.Kind{"file": filetree.File, "dir": filetree.Dir, "symlink": filetree.Symlink, "fifo": filetree.Fifo,
	"socket": filetree.Socket, "char": filetree.CharDev, "block": filetree.BlkDev}

// zfsManifest reads a manifest; see the corpus's README.
func zfsManifest(t *testing.T, path string) []zfsEntry {
	var all []zfsEntry
	in := bufio.NewReaderSize(open(t, path), 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var m struct {
			Path, Type, Mode, Target, SHA256, Rdev string
			PathB64                                string `json:"path_b64"`
			TargetB64                              string `json:"target_b64"`
			Ino                                    uint64
			UID, GID                               uint32
			Nlink                                  int
			Size                                   int64
			Projid                                 uint32
			Flags                                  uint32 `json:"fsx_xflags"`
			Mtime                                  int64  `json:"mtime_ns"`
			Ctime                                  int64  `json:"ctime_ns"`
			Crtime                                 int64  `json:"crtime_ns"`
			SegmentsOnly                           bool   `json:"segments_only"`
			Segments                               []struct{ Offset, Length, Start, End int64 }
			Xattrs                                 []struct {
				Name   string
				Size   int
				SHA256 string
			}
		}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%s: %v: %s", path, err, line)
		}
		e := zfsEntry{Path: m.Path, Ino: m.Ino, Kind: zfsKinds[m.Type], UID: m.UID, GID: m.GID, Links: m.Nlink, Size: m.Size, Mtime: m.Mtime,
			Ctime: m.Ctime, Btime: m.Crtime, Rdev: m.Rdev, Target: m.Target, Flags: m.Flags, SHA256: m.SHA256}
		mode, err := strconv.ParseUint(m.Mode, 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		e.Mode = uint32(mode) & 0o7777
		if m.PathB64 != "" {
			b, err := base64.StdEncoding.DecodeString(m.PathB64)
			if err != nil {
				t.Fatal(err)
			}
			e.Path = string(b)
		}
		if m.TargetB64 != "" {
			b, err := base64.StdEncoding.DecodeString(m.TargetB64)
			if err != nil {
				t.Fatal(err)
			}
			e.Target = string(b)
		}
		if m.Projid != 0 {
			e.Project = fmt.Sprint(m.Projid)
		}
		for _, x := range m.Xattrs {
			e.Xattrs = append(e.Xattrs, fmt.Sprintf("%s %d %s", x.Name, x.Size, x.SHA256))
		}
		slices.Sort(e.Xattrs)
		if e.Kind == filetree.Dir {
			e.Links, e.Size = 0, 0
		}
		if e.Kind != filetree.File {
			e.Size = 0
		}
		if m.SegmentsOnly {
			e.SHA256 = "-"
		}
		all = append(all, e)
	}
}

// entriesZFS returns what a history has at a snapshot, in the order of paths. Content is
// not read of files whose manifest has no hash of it.
func (c *zfsCase) entriesZFS(t *testing.T, v catalog.View, unhashed map[string]bool) []zfsEntry {
	content := s3history.NewContent(c.store, c.identity, c.cat, c.identities)
	var all []zfsEntry
	var walk func(n filetree.NodeID, path string)
	add := func(n filetree.NodeID, path string) {
		a, err := v.Attr(n)
		if err != nil {
			t.Fatal(err)
		}
		ns := func(t filetree.Time) int64 { return t.Sec*1e9 + int64(t.Nsec) }
		e := zfsEntry{Path: path, Ino: a.Ino, Kind: a.Kind, Mode: a.Mode, UID: a.UID, GID: a.GID, Size: a.Size, Mtime: ns(a.Mtime), Ctime: ns(a.Ctime),
			Btime: ns(a.Btime), Target: a.Target, Flags: a.Flags}
		if a.Kind != filetree.Dir {
			names, err := v.Entries(n, 0)
			if err != nil {
				t.Fatal(err)
			}
			e.Links = len(names)
		}
		if a.Kind == filetree.CharDev || a.Kind == filetree.BlkDev {
			e.Rdev = fmt.Sprintf("%d:%d", a.Major, a.Minor)
		}
		for _, x := range a.Xattrs {
			switch x.Name {
			case zpl.ACLXattr: // Linux shows none
			case zfs.ProjectXattr:
				e.Project = string(x.Value)
			default:
				sum := sha256.Sum256(x.Value)
				e.Xattrs = append(e.Xattrs, fmt.Sprintf("%s %d %x", x.Name, len(x.Value), sum))
			}
		}
		slices.Sort(e.Xattrs)
		if a.Kind == filetree.File {
			e.SHA256 = "-"
			if !unhashed[path] {
				h := sha256.New()
				if err := content.WriteFile(t.Context(), v, n, a.Size, h); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				e.SHA256 = hex.EncodeToString(h.Sum(nil))
			}
		}
		all = append(all, e)
		if a.Kind == filetree.Dir {
			walk(n, path)
		}
	}
	walk = func(dir filetree.NodeID, path string) {
		for ch, err := range v.Children(dir) {
			if err != nil {
				t.Fatal(err)
			}
			p := ch.Name
			if path != "." {
				p = path + "/" + p
			}
			add(ch.Node, p)
		}
	}
	add(filetree.RootNode, ".")
	slices.SortFunc(all, func(a, b zfsEntry) int { return strings.Compare(a.Path, b.Path) })
	return all
}

func (c *zfsCase) compare(t *testing.T, source string, u *zfs.Unit, res backup.Result, failed []string, stream string) {
	t.Helper()
	src := c.source(source)
	head, err := c.w.Head(src)
	if err != nil {
		t.Fatal(err)
	}
	seq := head.Seq
	guid := zfs.GUID(u.ToGUID)
	if u.Head() {
		guid = [16]byte{}
	}
	if !res.Unchanged && (len(res.Committed) != 1 || res.Committed[0].Info.GUID != guid) {
		t.Errorf("%s: committed %+v", stream, res)
	}
	if res.Unchanged {
		if alias, err := c.w.Alias(src, zfs.GUID(u.ToGUID)); err == nil && alias != 0 {
			seq = alias
		} else if snaps, err := c.w.Snapshots(src); err == nil {
			for _, s := range snaps {
				if s.Info.GUID == zfs.GUID(u.ToGUID) {
					seq = s.Seq
				}
			}
		}
	}
	v := c.cat.At(src.ID, seq)
	label := u.Snapshot()
	if u.Head() {
		label = "head"
	}
	if u.ObjectSet == zfs.Volume {
		c.compareVolume(t, v, label, stream)
		return
	}
	path := filepath.Join(c.dir, label+".manifest.jsonl.zst")
	top, _, _ := strings.Cut(filepath.Base(c.dir), ".")
	if _, child, ok := strings.Cut(u.Dataset(), "/"+top+"/"); ok {
		path = filepath.Join(c.dir, strings.ReplaceAll(child, "/", "_")+"."+label+".manifest.jsonl.zst")
		if _, err := os.Stat(path); err != nil { // it was renamed since
			path = strings.Replace(path, "kid2new", "kid2", 1)
		}
	}
	if _, err := os.Stat(path); err != nil {
		if !u.Head() { // of which nobody made one
			t.Errorf("%s: no manifest %s", stream, filepath.Base(path))
		}
		return
	}
	want := zfsManifest(t, path)
	unhashed := map[string]bool{}
	for i := range want {
		if want[i].SHA256 == "-" {
			unhashed[want[i].Path] = true
		}
	}
	long := 0
	want = slices.DeleteFunc(want, func(e zfsEntry) bool {
		for name := range strings.SplitSeq(e.Path, "/") {
			if len(name) > filetree.MaxName {
				long++
				return true
			}
		}
		return false
	})
	if (long > 0) != (len(failed) > 0) && !res.Unchanged && !u.Incremental() {
		t.Errorf("%s: %d names too long, and told of %q", stream, long, failed)
	}
	got := c.entriesZFS(t, v, unhashed)
	slices.SortFunc(want, func(a, b zfsEntry) int { return strings.Compare(a.Path, b.Path) })
	if diff := gocmp.Diff(want, got); diff != "" {
		if len(diff) > 3000 {
			diff = diff[:3000]
		}
		t.Errorf("%s: #%d (-want +got):\n%s", stream, seq, diff)
	}
}

// compareVolume compares the one file of a volume with what the device was.
func (c *zfsCase) compareVolume(t *testing.T, v catalog.View, label, stream string) {
	b, err := os.ReadFile(filepath.Join(c.dir, label+".volume.json"))
	if err != nil {
		t.Logf("%s: no manifest: %v", stream, err)
		return
	}
	var want struct {
		Size   int64
		SHA256 string
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	n, err := v.Resolve([]string{zfs.VolumeName})
	if err != nil {
		t.Fatal(err)
	}
	a, err := v.Attr(n)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if err := s3history.NewContent(c.store, c.identity, c.cat, c.identities).WriteFile(t.Context(), v, n, a.Size, h); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); a.Size != want.Size || got != want.SHA256 {
		t.Errorf("%s: %d bytes with SHA-256 %s, want %d and %s", stream, a.Size, got, want.Size, want.SHA256)
	}
}
