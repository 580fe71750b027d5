//go:build linux

package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a": "a", "ü": "ü", "\xff1": `\xff1`, `a\b`: `a\x5cb`, "\xed\xa0\x80": `\xed\xa0\x80`, "\uFFFD": "\uFFFD",
	} {
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
	}
	for _, bad := range []string{`\`, `\x`, `\x1`, `\xgg`, `\y41`} {
		if got, err := Unescape(bad); err == nil {
			t.Errorf("Unescape(%q) = %q", bad, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := string(rapid.SliceOf(rapid.Byte()).Draw(t, "name"))
		if got, err := Unescape(Escape(name)); got != name || err != nil {
			t.Fatalf("%q became %q, %v", name, got, err)
		}
		if got, err := Unescape(Show(name)); got != name || err != nil || strings.Contains(Show(name), "\n") {
			t.Fatalf("%q became %q, %v", name, got, err)
		}
	})
}

// A manifest file as the corpora have them, with a time that 64 bits do not hold.
const sample = `{"path": "", "ino": 256, "type": "dir", "mode": "0755", "uid": 0, "gid": 0, "size": 52, "nlink": 1, "mtime_ns": -1, "ctime_ns": -2000000000, "otime_ns": 17179869183999999999, "fsflags": 0}
{"path": "\\xff1", "ino": 258, "type": "symlink", "mode": "0777", "uid": 0, "gid": 7, "size": 3, "nlink": 3, "mtime_ns": 1, "ctime_ns": 1, "otime_ns": 1, "target": "t\\x5c7"}
{"path": "chr", "ino": 259, "type": "chr", "mode": "4600", "uid": 0, "gid": 0, "size": 0, "nlink": 1, "mtime_ns": 1, "ctime_ns": 1, "otime_ns": 1, "rdev": [4000, 300000]}
{"path": "f", "ino": 260, "type": "file", "mode": "0644", "uid": 0, "gid": 0, "size": 5000, "nlink": 1, "mtime_ns": 1, "ctime_ns": 1, "otime_ns": 1, "fsflags": 128, "extents": [["data", 0, 4096], ["hole", 4096, 904]], "sha256": "ffc91830ae8d1c6540bcf43ce24d4f6e4cf0ca6621d2a3bd78171aa889bab0ec", "xattrs": {"user.\\xff": "MQ==", "user.a": ""}}
{"path": "huge", "ino": 261, "type": "file", "mode": "0644", "uid": 0, "gid": 0, "size": 1099511615431, "nlink": 1, "mtime_ns": 1, "ctime_ns": 1, "otime_ns": 1, "fsflags": 0, "extents": [["hole", 0, 1099511615431]], "sha256": null, "nz4k_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
{"path": "nested", "ino": 2, "type": "dir", "mode": "0755", "uid": 0, "gid": 0, "size": 0, "nlink": 1, "mtime_ns": 1, "ctime_ns": 1, "otime_ns": 0, "fsflags": null}
`

func TestReadWrite(t *testing.T) {
	got, err := Read(strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	one := filetree.Time{Nsec: 1}
	hash := func(b []byte) [32]byte { return [32]byte(b) }
	want := []Entry{
		{Ino: 256, Kind: filetree.Dir, Mode: 0o755, Size: 52, Nlink: 1, Mtime: filetree.Time{Sec: -1, Nsec: 999999999},
			Ctime: filetree.Time{Sec: -2}, Otime: filetree.Time{Sec: 17179869183, Nsec: 999999999}},
		{Path: "\xff1", Ino: 258, Kind: filetree.Symlink, Mode: 0o777, GID: 7, Size: 3, Nlink: 3, Mtime: one, Ctime: one, Otime: one, Target: `t\7`, FSFlags: -1},
		{Path: "chr", Ino: 259, Kind: filetree.CharDev, Mode: 0o4600, Nlink: 1, Mtime: one, Ctime: one, Otime: one, FSFlags: -1, Major: 4000, Minor: 300000},
		{Path: "f", Ino: 260, Kind: filetree.File, Mode: 0o644, Size: 5000, Nlink: 1, Mtime: one, Ctime: one, Otime: one, FSFlags: 128,
			Extents: []filetree.Segment{{Range: filetree.Range{Offset: 0, Length: 4096}}, {Range: filetree.Range{Offset: 4096, Length: 904}, Hole: true}},
			SHA256:  hash([]byte("\xff\xc9\x18\x30\xae\x8d\x1c\x65\x40\xbc\xf4\x3c\xe2\x4d\x4f\x6e\x4c\xf0\xca\x66\x21\xd2\xa3\xbd\x78\x17\x1a\xa8\x89\xba\xb0\xec")),
			Xattrs:  []filetree.Xattr{{Name: "user.a", Value: []byte{}}, {Name: "user.\xff", Value: []byte("1")}}},
		{Path: "huge", Ino: 261, Kind: filetree.File, Mode: 0o644, Size: 1099511615431, Nlink: 1, Mtime: one, Ctime: one, Otime: one,
			Extents: []filetree.Segment{{Range: filetree.Range{Length: 1099511615431}, Hole: true}}, SHA256: sha256.Sum256(nil), Sparse: true},
		{Path: "nested", Ino: 2, Kind: filetree.Dir, Mode: 0o755, Nlink: 1, Mtime: one, Ctime: one, FSFlags: -1, Nested: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	var b bytes.Buffer
	if err := Write(&b, got); err != nil {
		t.Fatal(err)
	}
	again, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("written and read (-want +got):\n%s", diff)
	}
	for _, bad := range []string{`{`, `{}`, strings.Replace(sample, `"hole"`, `"whole"`, 1), strings.Replace(sample, `0755`, `0799`, 1), strings.Replace(sample, `\\xff1`, `\\xf`, 1)} {
		if _, err := Read(strings.NewReader(bad)); err == nil {
			t.Errorf("read %.40q", bad)
		}
	}
}

func TestDiff(t *testing.T) {
	read := func(s string) []Entry {
		t.Helper()
		all, err := Read(strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	want := read(sample)
	for _, tt := range []struct {
		name     string
		old, new string
		ignore   Ignore
		diff     string
	}{
		{name: "same"},
		{name: "path", old: `"chr", "ino"`, new: `"chs", "ino"`, diff: `"chr": missing: chr (inode 259)
"chs": unexpected: chr (inode 259)
`},
		{name: "mode", old: `0644`, new: `0600`, diff: "\"f\": mode: want 0644, got 0600\n"},
		{name: "size", old: `"size": 5000`, new: `"size": 5001`, diff: "\"f\": size: want 5000, got 5001\n"},
		{name: "directory size", old: `"size": 52`, new: `"size": 51`, ignore: Ignore{DirSize: true}},
		{name: "mtime", old: `"mtime_ns": -1`, new: `"mtime_ns": 1`, diff: "\"\": mtime: want -1.999999999, got 0.000000001\n"},
		{name: "ctime", old: `"ctime_ns": -2000000000`, new: `"ctime_ns": 1`, ignore: Ignore{Ctime: true}},
		{name: "otime", old: `17179869183999999999`, new: `1`, ignore: Ignore{Otime: true}},
		{name: "target", old: `t\\x5c7`, new: `u`, diff: "\"\\xff1\": target: want \"t\\x5c7\", got \"u\"\n"},
		{name: "rdev", old: `[4000`, new: `[4001`, diff: "\"chr\": rdev: want 4000:300000, got 4001:300000\n"},
		{name: "hash", old: `"ffc9`, new: `"ffca`, diff: "\"f\": sha256: want ffc91830ae8d1c65, got ffca1830ae8d1c65\n"},
		{name: "extents", old: `["hole", 4096, 904]`, new: `["data", 4096, 904]`, ignore: Ignore{Extents: true}},
		{name: "flags", old: `"fsflags": 128`, new: `"fsflags": 0`, ignore: Ignore{FSFlags: true}},
		{name: "nested", old: `"path": "nested"`, new: `"path": "moved"`, ignore: Ignore{Nested: true}},
		{name: "xattr", old: `"MQ=="`, new: `"Mg=="`, diff: "\"f\": xattr user.\\xff: want 1 bytes \"1\", got 1 bytes \"2\"\n"},
		{name: "xattr gone", old: `, "user.a": ""`, diff: "\"f\": xattr user.a: want 0 bytes \"\", got none\n"},
		{name: "ino", old: `"ino": 259`, new: `"ino": 300`, ignore: Ignore{Ino: true}},
		{name: "ino compared", old: `"ino": 259`, new: `"ino": 300`, diff: "\"chr\": ino: want 259, got 300\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := read(strings.Replace(sample, tt.old, tt.new, 1))
			if diff := cmp.Diff(tt.diff, Report(Diff(want, got, tt.ignore), 0)); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
			if tt.ignore != (Ignore{}) && len(Diff(want, got, Ignore{})) == 0 {
				t.Error("nothing to ignore")
			}
		})
	}
	t.Run("links", func(t *testing.T) {
		link := func(path string, ino uint64) Entry {
			return Entry{Path: path, Ino: ino, Kind: filetree.Fifo, Nlink: 2}
		}
		want := []Entry{link("a", 1), link("b", 2), link("c", 1), link("d", 2)}
		if all := Diff(want, []Entry{link("d", 8), link("c", 9), link("b", 8), link("a", 9)}, Ignore{Ino: true}); all != nil {
			t.Errorf("other numbers: %v", all)
		}
		all := Diff(want, []Entry{link("a", 1), link("b", 2), link("c", 2), link("d", 1)}, Ignore{Ino: true})
		if got, want := Report(all, 1), "\"c\": link of: want \"a\", got \"b\"\nand 1 more\n"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestScan(t *testing.T) {
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{})
	root := filepath.Join(fs.Dir, "root")
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(root, name) }
	must(os.Mkdir(root, 0o750), os.Mkdir(at("a"), 0o755), os.Mkdir(at("mounted"), 0o755), os.Mkdir(at("subvolume"), 0o755))
	must(os.WriteFile(at("a/f"), []byte("text"), 0o640), os.Chown(at("a/f"), 3, 4), os.Link(at("a/f"), at("a.f")))
	must(os.Symlink("\xff", at("l")), unix.Lsetxattr(at("l"), "trusted.t", []byte("v"), 0))
	must(unix.Mknod(at("chr"), unix.S_IFCHR|0o600, int(unix.Mkdev(40, 3000))), unix.Mkfifo(at("fifo"), 0o604))
	must(unix.Lsetxattr(at("a"), "user.x", nil, 0), unix.Lsetxattr(at("a"), "user.\xfe", bytes.Repeat([]byte("v"), 3000), 0))
	must(os.Chmod(at("a"), 0o755|os.ModeSticky))
	must(unix.UtimesNanoAt(unix.AT_FDCWD, at("a/f"), []unix.Timespec{{}, {Sec: -5, Nsec: 3}}, 0))
	f, err := os.Create(at("sparse"))
	must(err)
	_, err1 := f.WriteAt([]byte{1}, 5<<20)
	_, err2 := f.WriteAt(bytes.Repeat([]byte{2}, 5000), 1<<30)
	must(err1, err2, f.Close())
	must(unix.Mount("none", at("mounted"), "tmpfs", 0, "size=1M"))
	defer unix.Unmount(at("mounted"), 0)
	must(os.WriteFile(at("mounted/not me"), nil, 0o600))

	got, err := Scan(root)
	must(err)
	again, err := Scan(root)
	must(err)
	if all := Diff(got, again, Ignore{}); all != nil {
		t.Errorf("scanned twice:\n%s", Report(all, 0))
	}
	byPath := map[string]Entry{}
	var paths []string
	for _, e := range got {
		byPath[e.Path] = e
		paths = append(paths, e.Path)
	}
	if diff := cmp.Diff([]string{"", "a", "a/f", "a.f", "chr", "fifo", "l", "mounted", "sparse", "subvolume"}, reorder(paths)); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
	af := byPath["a/f"]
	if af.Ino != byPath["a.f"].Ino || af.Nlink != 2 || af.Mode != 0o640 || af.UID != 3 || af.GID != 4 || af.Size != 4 ||
		af.SHA256 != sha256.Sum256([]byte("text")) || af.Mtime != (filetree.Time{Sec: -5, Nsec: 3}) || af.Otime.IsZero() || af.FSFlags != 0 {
		t.Errorf("a/f: %+v", af)
	}
	if a := byPath["a"]; a.Mode != 0o1755 || len(a.Xattrs) != 2 || a.Xattrs[1].Name != "user.\xfe" || len(a.Xattrs[1].Value) != 3000 {
		t.Errorf("a: %+v", a)
	}
	if l := byPath["l"]; l.Target != "\xff" || len(l.Xattrs) != 1 || l.FSFlags != -1 {
		t.Errorf("l: %+v", l)
	}
	if c := byPath["chr"]; c.Kind != filetree.CharDev || c.Major != 40 || c.Minor != 3000 {
		t.Errorf("chr: %+v", c)
	}
	if m := byPath["mounted"]; !m.Nested || m.Ino != 2 {
		t.Errorf("mounted: %+v", m)
	}
	h := sha256.New()
	block := func(n int64, b []byte) {
		binary.Write(h, binary.LittleEndian, n)
		h.Write(append(b, make([]byte, 4096-len(b))...))
	}
	block(5<<20/4096, []byte{1})
	block(1<<30/4096, bytes.Repeat([]byte{2}, 4096))
	block(1<<30/4096+1, bytes.Repeat([]byte{2}, 904))
	if s := byPath["sparse"]; !s.Sparse || s.SHA256 != [32]byte(h.Sum(nil)) || len(s.Extents) != 4 || s.Extents[3].End() != s.Size {
		t.Errorf("sparse: %+v", s)
	}
}

// reorder undoes nothing: it only shows that Scan's order is that of comparePaths.
func reorder(paths []string) []string {
	for i := 1; i < len(paths); i++ {
		if comparePaths(paths[i-1], paths[i]) >= 0 {
			return []string{"out of order: " + paths[i]}
		}
	}
	return paths
}

// TestCorpus gives recorded streams to the file system's own tool and compares what
// comes out with the manifests that were recorded with them. SECRATE_CORPUS names the
// directory of another corpus than the one that is here.
func TestCorpus(t *testing.T) {
	corpus := os.Getenv("SECRATE_CORPUS")
	if corpus == "" {
		corpus = "../../sendstream/btrfs/testdata/corpus"
	}
	testenv.Need(t, append(loopfs.Needs(loopfs.Btrfs), testenv.Tool("btrfs"), testenv.Tool("zstd"))...)
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{})
	for name, nested := range map[string]bool{"special": false, "xattrs": false, "meta": false, "sparse-1t": false, "hardlinks": false, "random-a": false, "holes": false, "nested-subvol": true} {
		t.Run(name, func(t *testing.T) {
			streams, err := filepath.Glob(filepath.Join(corpus, name, "*-v2.bsend.zst"))
			if err != nil || len(streams) == 0 {
				t.Fatalf("no streams: %v", err)
			}
			to := filepath.Join(fs.Dir, name)
			if err := os.Mkdir(to, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, stream := range streams {
				parts := strings.Split(strings.TrimSuffix(filepath.Base(stream), "-v2.bsend.zst"), "-")
				if len(parts) != 3 {
					continue
				}
				cmd := exec.Command("sh", "-c", `zstd -dc "$1" | btrfs -q receive "$2"`, "sh", stream, to)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", stream, err, out)
				}
				want, err := ReadFile(filepath.Join(filepath.Dir(stream), parts[2]+".manifest.jsonl.zst"))
				if err != nil {
					t.Fatal(err)
				}
				got, err := Scan(filepath.Join(to, parts[2]))
				if err != nil {
					t.Fatal(err)
				}
				ignore := Ignore{Ino: true, Ctime: true, Otime: true, DirSize: true, FSFlags: true, Extents: true, Nested: nested}
				if all := Diff(want, got, ignore); all != nil {
					t.Errorf("%s:\n%s", filepath.Base(stream), Report(all, 10))
				}
			}
		})
	}
}
