package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/sendtest"
)

// apply applies the first unit of stream to m.
func apply(t tester, m filetree.Update, stream []byte, o Options) (Result, error) {
	t.Helper()
	u, err := NewUnits(bytes.NewReader(stream)).Next()
	if err != nil {
		t.Fatal(err)
	}
	return u.Apply(context.Background(), m, o)
}

// base returns the tree of a parent: d/f with 3 blocks, d/g, e, l => d/f.
func base(t testing.TB) *sendtest.Model {
	t.Helper()
	m := sendtest.NewModel()
	b := newStream(2).subvol().dir("d", 257).file("d/f", 258).file("d/g", 259).dir("e", 260).link("l", "d/f").
		write("d/f", 0, repeat("x", 3*4096))
	if _, err := apply(t, m, b.end(), Options{}); err != nil {
		t.Fatal(err)
	}
	return m.Copy()
}

// listing returns the paths of m, files with size, and the blocks that are no holes.
func listing(m *sendtest.Model) string {
	var b strings.Builder
	m.Walk(func(p string, n *sendtest.Node) {
		switch {
		case p == "":
			return
		case n.Attr.Kind == filetree.File:
			fmt.Fprintf(&b, "%s(%d %v) ", p, n.Attr.Size, n.Blocks())
		case n.Attr.Kind == filetree.Dir:
			fmt.Fprintf(&b, "%s/ ", p)
		default:
			fmt.Fprintf(&b, "%s %v ", p, n.Attr.Kind)
		}
	})
	return strings.TrimSpace(b.String())
}

func TestApply(t *testing.T) {
	zero := func(n int) string { return repeat("\x00", n) }
	tests := []struct {
		name    string
		version uint32
		build   func(b *builder)
		want    string
	}{
		{"nothing", 1, func(b *builder) {}, "d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])"},
		{"child before its directory", 1, func(b *builder) {
			b.cmd(MkFile, at("o300-9-0"), u64(aIno, 300)).cmd(MkDir, at("o301-9-0"), u64(aIno, 301))
			b.rename("o300-9-0", "o301-9-0/c").rename("o301-9-0", "e/n").write("e/n/c", 0, "hi")
		}, "d/ d/f(12288 [0 1 2]) d/g(0 []) e/ e/n/ e/n/c(2 [0]) l(12288 [0 1 2])"},
		{"exchange", 1, func(b *builder) {
			b.rename("d/g", "o259-9-1").link("d/g", "d/f").cmd(Unlink, at("d/f")).rename("o259-9-1", "d/f")
		}, "d/ d/f(0 []) d/g(12288 [0 1 2]) e/ l(12288 [0 1 2])"},
		{"directory moves and moves back", 1, func(b *builder) {
			b.utimes("d/f", 1).rename("d", "e/d").write("e/d/g", 0, "x").rename("e/d", "d").write("d/g", 1, "y")
		}, "d/ d/f(12288 [0 1 2]) d/g(2 [0]) e/ l(12288 [0 1 2])"},
		{"another directory takes the path", 1, func(b *builder) {
			b.utimes("d/f", 1).rename("d", "o257-9-0").rename("e", "d").file("d/new", 300).rename("o257-9-0", "e").write("e/g", 0, "x")
		}, "d/ d/new(0 []) e/ e/f(12288 [0 1 2]) e/g(1 [0]) l(12288 [0 1 2])"},
		{"unlink and make again", 1, func(b *builder) {
			b.cmd(Unlink, at("d/g")).file("d/g", 300).write("d/g", 5, "x")
		}, "d/ d/f(12288 [0 1 2]) d/g(6 [0]) e/ l(12288 [0 1 2])"},
		{"kinds", 1, func(b *builder) {
			b.mk(MkFifo, "1", 301, u64(aRdev, 0), u64(aMode, 0o010644))
			b.mk(MkSock, "2", 302, u64(aRdev, 0), u64(aMode, 0o140644))
			b.mk(MkNod, "3", 303, u64(aRdev, 0), u64(aMode, 0o020644))
			b.mk(MkNod, "4", 304, u64(aRdev, 0), u64(aMode, 0o060644))
			b.mk(Symlink, "5", 305, str(aPathLink, "d/f"))
		}, "1 fifo 2 sock 3 chr 4 blk 5 symlink d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])"},

		{"zeros in version 1", 1, func(b *builder) { b.write("d/f", 4096, zero(4096)) },
			"d/ d/f(12288 [0 2]) d/g(0 []) e/ l(12288 [0 2])"},
		{"zeros in version 2", 2, func(b *builder) { b.write("d/f", 4096, zero(4096)) },
			"d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])"},
		{"zeros in a new file", 1, func(b *builder) { b.file("n", 300).write("n", 0, zero(8192)) },
			"d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2]) n(8192 [0 1])"},
		{"zeros between data", 1, func(b *builder) { b.write("d/f", 0, "a"+zero(4095)+zero(4096)+zero(4095)+"b") },
			"d/ d/f(12288 [0 2]) d/g(0 []) e/ l(12288 [0 2])"},
		{"zeros not on a block", 1, func(b *builder) { b.write("d/f", 100, zero(4096+3000)) },
			"d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])"},
		{"zeros make a file grow", 1, func(b *builder) { b.write("d/g", 0, zero(8192)).write("d/g", 8192, "x"+zero(4095)+zero(10)) },
			"d/ d/f(12288 [0 1 2]) d/g(12298 [2]) e/ l(12288 [0 1 2])"},
		{"zeros beyond the end", 1, func(b *builder) { b.write("d/f", 16384, zero(100)) },
			"d/ d/f(16484 [0 1 2]) d/g(0 []) e/ l(16484 [0 1 2])"},
		{"zeros after truncate", 1, func(b *builder) {
			b.write("d/f", 0, zero(4096)).cmd(Truncate, at("d/f"), u64(aSize, 4096)).write("d/f", 4096, zero(5))
		}, "d/ d/f(4101 []) d/g(0 []) e/ l(4101 [])"},
		{"hole", 2, func(b *builder) {
			b.cmd(Fallocate, at("d/f"), u32(aFallocateMode, 3), offset(4096), u64(aSize, 1<<40))
		}, "d/ d/f(12288 [0]) d/g(0 []) e/ l(12288 [0])"},
		{"clone in the unit", 2, func(b *builder) { b.clone("d/g", 4096, 8192, ownUUID, "d/f", 0) },
			"d/ d/f(12288 [0 1 2]) d/g(12288 [1 2]) e/ l(12288 [0 1 2])"},
		{"clone from the parent", 2, func(b *builder) {
			b.cmd(Truncate, at("d/f"), u64(aSize, 0)).clone("d/g", 0, 4096, parentUUID, "d/f", 0)
		}, "d/ d/f(0 []) d/g(4096 [0]) e/ l(0 [])"},
		{"encoded", 2, func(b *builder) {
			b.cmd(EncodedWrite, at("d/g"), offset(4096), u64(aUnencodedFileLen, 4), u64(aUnencodedLen, 6),
				u64(aUnencodedOffset, 1), u32(aCompression, 1), str(aData, string(zlibOf("hello"))))
		}, "d/ d/f(12288 [0 1 2]) d/g(4100 [1]) e/ l(12288 [0 1 2])"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := base(t)
			m.Snapshots = map[[16]byte]*sendtest.Model{{15: parentUUID}: m.Copy()}
			b := newStream(tt.version).snapshot()
			tt.build(b)
			if _, err := apply(t, m, b.end(), Options{}); err != nil {
				t.Fatal(err)
			}
			if got := listing(m); got != tt.want {
				t.Errorf("tree is\n%s, want\n%s", got, tt.want)
			}
		})
	}
}

// TestApplyErrors has what no file system could have done. The error is that of
// the last command before END, or of the one that mark is called at.
func TestApplyErrors(t *testing.T) {
	tests := []struct {
		name  string
		build func(b *builder, mark func())
		err   error
	}{
		{"rename onto a file", func(b *builder, mark func()) { mark(); b.rename("e", "d/g") }, filetree.ErrInvalid},
		{"new file onto a file", func(b *builder, mark func()) { mark(); b.file("d/g", 300) }, filetree.ErrInvalid},
		{"new file through a file", func(b *builder, mark func()) { mark(); b.file("d/g", 300).rename("d/g", "n") }, filetree.ErrInvalid},
		{"make onto a file", func(b *builder, mark func()) { mark(); b.cmd(MkFile, at("l"), u64(aIno, 300)) }, filetree.ErrInvalid},
		{"link onto a file", func(b *builder, mark func()) { mark(); b.link("l", "d/g") }, filetree.ErrInvalid},
		{"rename of nothing", func(b *builder, mark func()) { mark(); b.rename("no", "yes") }, filetree.ErrNotExist},
		{"rename into nothing", func(b *builder, mark func()) { mark(); b.rename("e", "no/e") }, filetree.ErrNotExist},
		{"rename into a file", func(b *builder, mark func()) { mark(); b.rename("e", "l/e") }, filetree.ErrInvalid},
		{"rename below itself", func(b *builder, mark func()) { mark(); b.rename("d", "d/d") }, filetree.ErrInvalid},
		{"rename to itself", func(b *builder, mark func()) { mark(); b.rename("d", "d") }, filetree.ErrInvalid},
		{"new directory below itself", func(b *builder, mark func()) {
			b.cmd(MkDir, at("o300-9-0"), u64(aIno, 300))
			mark()
			b.rename("o300-9-0", "o300-9-0/x")
		}, filetree.ErrInvalid},
		{"unlink of nothing", func(b *builder, mark func()) { mark(); b.cmd(Unlink, at("no")) }, filetree.ErrNotExist},
		{"unlink of a directory", func(b *builder, mark func()) { mark(); b.cmd(Unlink, at("e")) }, filetree.ErrInvalid},
		{"rmdir of a file", func(b *builder, mark func()) { mark(); b.cmd(RmDir, at("l")) }, filetree.ErrInvalid},
		{"rmdir of a full directory", func(b *builder, mark func()) { mark(); b.cmd(RmDir, at("d")) }, filetree.ErrInvalid},
		{"link to a directory", func(b *builder, mark func()) { mark(); b.link("x", "e") }, filetree.ErrInvalid},
		{"write to a directory", func(b *builder, mark func()) { mark(); b.write("e", 0, "x") }, filetree.ErrInvalid},
		{"truncate of a link", func(b *builder, mark func()) {
			b.mk(Symlink, "s", 300, str(aPathLink, "l"))
			mark()
			b.cmd(Truncate, at("s"), u64(aSize, 0))
		}, filetree.ErrInvalid},
		{"through a link", func(b *builder, mark func()) {
			b.mk(Symlink, "s", 300, str(aPathLink, "d"))
			mark()
			b.utimes("s/f", 1)
		}, filetree.ErrInvalid},
		{"through a file", func(b *builder, mark func()) { mark(); b.utimes("l/x", 1) }, filetree.ErrInvalid},
		{"clone from nothing", func(b *builder, mark func()) { mark(); b.clone("l", 0, 1, ownUUID, "no", 0) }, filetree.ErrNotExist},
		{"clone from a directory", func(b *builder, mark func()) { mark(); b.clone("l", 0, 1, ownUUID, "d", 0) }, filetree.ErrInvalid},
		{"bad encoding", func(b *builder, mark func()) {
			mark()
			b.cmd(EncodedWrite, at("l"), offset(0), u64(aUnencodedFileLen, 1), u64(aUnencodedLen, 1),
				u64(aUnencodedOffset, 0), u32(aCompression, 2), data("garbage"))
		}, ErrEncoded},
		{"temporary name left", func(b *builder, mark func()) {
			mark()
			b.cmd(MkFile, at("o300-9-0"), u64(aIno, 300)).write("o300-9-0", 0, "x").utimes("", 1)
		}, filetree.ErrInvalid},
		{"error of a collected attribute", func(b *builder, mark func()) {
			mark()
			b.cmd(MkDir, at("l"), u64(aIno, 300)).cmd(Chmod, at("l"), u64(aMode, 0)).utimes("e", 1)
		}, filetree.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newStream(2).snapshot()
			want := int64(-1)
			tt.build(b, func() { want = b.pos() })
			_, err := apply(t, base(t), b.end(), Options{})
			fe, ok := errors.AsType[*FormatError](err)
			if !ok || !errors.Is(err, tt.err) || fe.Offset != want {
				t.Errorf("error is %v, want %v at %d", err, tt.err, want)
			}
		})
	}
}

// TestLookalike checks that files of the user may have a temporary name: made
// under another and moved there, or there before.
func TestLookalike(t *testing.T) {
	m := base(t)
	b := newStream(1).snapshot().file("o300-9-1", 300).rename("e", "o260-9-0")
	b.cmd(MkFile, at("o999-9-0"), u64(aIno, 301)) // of another inode
	if _, err := apply(t, m, b.end(), Options{}); err != nil {
		t.Fatal(err)
	}
	want := "d/ d/f(12288 [0 1 2]) d/g(0 []) l(12288 [0 1 2]) o260-9-0/ o300-9-1(0 []) o999-9-0(0 [])"
	if got := listing(m); got != want {
		t.Errorf("tree is\n%s, want\n%s", got, want)
	}
}

// TestFewCalls checks that what belongs together is one call of the Update.
func TestFewCalls(t *testing.T) {
	m := base(t)
	b := newStream(2).snapshot()
	attrs := func(p string) {
		b.cmd(SetXattr, at(p), str(aXattrName, "user.b"), str(aXattrData, "1"))
		b.cmd(SetXattr, at(p), str(aXattrName, "user.a"), str(aXattrData, "2"))
		b.cmd(SetXattr, at(p), str(aXattrName, "user.b"), str(aXattrData, "3"))
		b.cmd(RemoveXattr, at(p), str(aXattrName, "user.none"))
		b.cmd(Chown, at(p), u64(aUID, 7), u64(aGID, 8)).cmd(Chmod, at(p), u64(aMode, 0o4755))
		b.cmd(FileAttr, at(p), u64(aFileAttr, 0x1|0x10|0x80|0x2))
		b.cmd(Utimes, at(p), when(aAtime, 1, 1), when(aMtime, 2, 2), when(aCtime, 3, 3), when(aOtime, 4, 4))
	}
	b.dir("new", 300)
	attrs("new") // with the creation
	b.write("d/g", 0, "x")
	attrs("d/g") // one SetAttr, though data come in between
	b.write("d/g", 1, "y").cmd(Chmod, at("d/g"), u64(aMode, 0o600))
	b.cmd(Chmod, at(""), u64(aMode, 0o700))
	if _, err := apply(t, m, b.end(), Options{}); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"Create": 1, "SetAttr": 2, "Write": 2}
	if diff := gocmp.Diff(want, m.Calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	id, _, err := m.Lookup(filetree.RootNode, "new")
	if err != nil {
		t.Fatal(err)
	}
	attr := filetree.Attr{Kind: filetree.Dir, Mode: 0o4755, UID: 7, GID: 8, Ino: 300,
		Mtime: filetree.Time{Sec: 2, Nsec: 2}, Ctime: filetree.Time{Sec: 3, Nsec: 3}, Btime: filetree.Time{Sec: 4, Nsec: 4},
		Flags:  0x00800000 | 0x20,
		Xattrs: []filetree.Xattr{{Name: "user.a", Value: []byte("2")}, {Name: "user.b", Value: []byte("3")}}}
	if diff := gocmp.Diff(attr, m.Node(id).Attr); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	d, _, _ := m.Lookup(filetree.RootNode, "d")
	g, _, _ := m.Lookup(d, "g")
	attr.Kind, attr.Ino, attr.Mode, attr.Size = filetree.File, 259, 0o600, 2
	if diff := gocmp.Diff(attr, m.Node(g).Attr); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
}

func TestResult(t *testing.T) {
	m := base(t)
	stream := newStream(3).snapshot().write("d/f", 0, "12345").utimes("d/f", 1).
		cmd(EnableVerity, at("d/f"), u8(aVerityAlgorithm, 1), u32(aVerityBlockSize, 4096), str(aVeritySalt, "s"), str(aVeritySig, "")).
		cmd(UpdateExtent, at("d/f"), offset(4096), u64(aSize, 10)).
		clone("d/g", 0, 100, 9, "gone", 0).end() // from a snapshot that nobody stored
	res, err := apply(t, m, stream, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d, _, _ := m.Lookup(filetree.RootNode, "d")
	g, _, _ := m.Lookup(d, "g")
	want := Result{Bytes: 5, Unknown: []string{"d/g"}, Outside: encodeOutside([]outsider{{"d/g", g, filetree.File}}), Verity: []Verity{{"d/f", 1, 4096}}}
	for _, c := range []Type{Write, Utimes, EnableVerity, UpdateExtent, Clone} {
		want.Counts[c] = 1
	}
	if diff := gocmp.Diff(want, res); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	if got := m.Node(g).Changed; len(got) != 1 || got[0] != (filetree.Range{Length: 100}) {
		t.Errorf("changed ranges of the clone: %v", got)
	}
}

func TestExcluded(t *testing.T) {
	// In the base tree d is there, and x was excluded all the time.
	under := func(dir string) func(string, bool) bool {
		return func(p string, _ bool) bool { return p == dir }
	}
	tests := []struct {
		name     string
		excluded func(string, bool) bool
		build    func(b *builder)
		want     string
		unknown  []string
		moved    []string
		skipped  int64
	}{
		{"commands below are ignored", under("x"), func(b *builder) {
			b.write("x/a/b", 0, "data").utimes("x", 1).cmd(Unlink, at("x/c")).cmd(RmDir, at("x/d")).rename("x/e", "x/f")
			b.link("x/g", "x/h").cmd(Chmod, at("x/i"), u64(aMode, 0)).cmd(Truncate, at("x/j"), u64(aSize, 1))
		}, "d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])", nil, nil, 4},
		{"new below", under("x"), func(b *builder) {
			b.file("x/new", 300).write("x/new", 0, "data").dir("x/dir", 301).file("x/dir/f", 302).write("x/dir/f", 0, "1")
		}, "d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])", nil, nil, 5},
		{"new directory is created after its child", under("x"), func(b *builder) {
			b.cmd(MkDir, at("o301-9-0"), u64(aIno, 301)).cmd(MkFile, at("o300-9-0"), u64(aIno, 300)).
				rename("o300-9-0", "o301-9-0/c").write("o301-9-0/c", 0, "data").rename("o301-9-0", "x")
		}, "d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])", nil, nil, 0},
		{"child is excluded when its directory gets its name", under("n/c"), func(b *builder) {
			b.cmd(MkDir, at("o301-9-0"), u64(aIno, 301)).cmd(MkFile, at("o300-9-0"), u64(aIno, 300)).
				rename("o300-9-0", "o301-9-0/c").rename("o301-9-0", "n").write("n/c", 0, "data")
		}, "d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2]) n/", nil, nil, 4},
		{"out of it", under("x"), func(b *builder) { b.link("e/new", "x/old").cmd(Unlink, at("x/old")).write("e/new", 0, "1") },
			"d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])", []string{"e/new"}, nil, 1},
		{"it moves away", under("x"), func(b *builder) { b.rename("x", "y").write("y/some/file", 0, "1") },
			"d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])", []string{"y"}, nil, 1},
		{"it moves away and back", under("x"), func(b *builder) { b.rename("x", "o333-9-0").rename("o333-9-0/a", "x").cmd(RmDir, at("o333-9-0")) },
			"d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])", nil, nil, 0},
		{"directory into it", under("x"), func(b *builder) { b.rename("d", "x/d").write("x/d/g", 0, "1") },
			"e/ l(12288 [0 1 2])", nil, nil, 1},
		{"directory into it, and a file out again", under("x"), func(b *builder) {
			b.rename("d", "x/d").link("e/g", "x/d/g").cmd(Unlink, at("x/d/g")).write("e/g", 0, "1")
		}, "e/ e/g(1 [0]) l(12288 [0 1 2])", nil, nil, 0},
		{"through it", under("x"), func(b *builder) { b.rename("d", "x/d").rename("x/d", "x/dd").rename("x/dd", "e/d") },
			"e/ e/d/ e/d/f(12288 [0 1 2]) e/d/g(0 []) l(12288 [0 1 2])", nil, []string{"e/d"}, 0},
		{"through it, and changed there", under("x"), func(b *builder) { b.rename("d", "x/d").write("x/d/g", 0, "1").rename("x/d", "d") },
			"d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])", []string{"d/g"}, []string{"d"}, 1},
		{"a file was excluded where its directory was", under("d/x"), func(b *builder) {
			b.rename("d", "e/d").utimes("e/d/x", 1).rename("e", "ee").utimes("ee/d/x", 1)
		}, "ee/ ee/d/ ee/d/f(12288 [0 1 2]) ee/d/g(0 []) l(12288 [0 1 2])", []string{"ee/d/x"}, []string{"ee", "ee/d"}, 0},
		{"file into it, and the directory above moves", under("d/x"), func(b *builder) { b.rename("l", "d/x/l").rename("d", "dd") },
			"dd/ dd/f(12288 [0 1 2]) dd/g(0 []) e/", []string{"dd/x"}, []string{"dd"}, 0},
		{"clone from it", under("x"), func(b *builder) {
			b.clone("d/g", 0, 4096, ownUUID, "x/src", 0).clone("l", 0, 4096, ownUUID, "d/g", 0)
		},
			"d/ d/f(12288 [0 1 2]) d/g(4096 []) e/ l(12288 [0 1 2])", []string{"d/f", "d/g", "l"}, nil, 0},
		{"clone from it in the parent", under("x"), func(b *builder) { b.clone("d/g", 0, 4096, parentUUID, "x/src", 0) },
			"d/ d/f(12288 [0 1 2]) d/g(4096 []) e/ l(12288 [0 1 2])", []string{"d/g"}, nil, 0},
		{"new name below", under("x"), func(b *builder) { b.link("x/l", "l").cmd(Unlink, at("l")) },
			"d/ d/f(12288 [0 1 2]) d/g(0 []) e/", nil, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := base(t)
			b := newStream(2).snapshot()
			tt.build(b)
			res, err := apply(t, m, b.end(), Options{Excluded: tt.excluded})
			if err != nil {
				t.Fatal(err)
			}
			if got := listing(m); got != tt.want {
				t.Errorf("tree is\n%s, want\n%s", got, tt.want)
			}
			if diff := gocmp.Diff(tt.unknown, res.Unknown); diff != "" {
				t.Errorf("unknown (-want +got):\n%s", diff)
			}
			if diff := gocmp.Diff(tt.moved, res.Moved); diff != "" {
				t.Errorf("moved (-want +got):\n%s", diff)
			}
			if res.Skipped != tt.skipped {
				t.Errorf("%d bytes skipped, want %d", res.Skipped, tt.skipped)
			}
		})
	}
}

func TestExcludedErrors(t *testing.T) {
	x := func(p string, _ bool) bool { return p == "x" }
	tests := []struct {
		name  string
		build func(b *builder)
		err   error
	}{
		{"not there and not excluded", func(b *builder) { b.utimes("xx/a", 1) }, filetree.ErrNotExist},
		{"ghost onto a file", func(b *builder) { b.rename("x/a", "l") }, filetree.ErrInvalid},
		{"ghost onto a ghost", func(b *builder) { b.rename("x/a", "y").rename("x/b", "y") }, filetree.ErrInvalid},
		{"file onto a ghost", func(b *builder) { b.rename("x/a", "y").rename("l", "y") }, filetree.ErrInvalid},
		{"new file onto a ghost", func(b *builder) { b.rename("x/a", "y").file("y", 300) }, filetree.ErrInvalid},
		{"link onto a ghost", func(b *builder) { b.rename("x/a", "y").link("y", "l") }, filetree.ErrInvalid},
		{"ghost below itself", func(b *builder) { b.rename("x", "x/y") }, filetree.ErrInvalid},
		{"directory with a ghost", func(b *builder) { b.rename("x/a", "e/a").cmd(RmDir, at("e")) }, filetree.ErrInvalid},
		{"ghost with a directory", func(b *builder) { b.rename("d", "x/a/d").cmd(RmDir, at("x/a")) }, filetree.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := base(t)
			b := newStream(2).snapshot()
			tt.build(b)
			if _, err := apply(t, m, b.end(), Options{Excluded: x}); !errors.Is(err, tt.err) {
				t.Errorf("error is %v, want %v", err, tt.err)
			}
		})
	}
}

// TestPrune checks that a long stream leaves no long memory, and that what is
// forgotten is looked up again.
func TestPrune(t *testing.T) {
	m := sendtest.NewModel()
	b := newStream(2).subvol()
	for d := range 40 {
		dir := fmt.Sprintf("d%d", d)
		b.dir(dir, uint64(1000+d))
		for f := range 1000 {
			b.file(fmt.Sprintf("%s/f%d", dir, f), uint64(100000+1000*d+f))
		}
	}
	b.utimes("d0/f0", 1)
	u, err := NewUnits(bytes.NewReader(b.end())).Next()
	if err != nil {
		t.Fatal(err)
	}
	counted := &lookups{Model: m}
	if _, err := u.Apply(t.Context(), counted, Options{Excluded: func(p string, _ bool) bool { return p == "d7/f7" }}); err != nil {
		t.Fatal(err)
	}
	if m.Len() != 1+40*1001-1 {
		t.Errorf("%d nodes", m.Len())
	}
	// Now and then for a directory; the Update itself refuses names that are taken.
	if counted.n > 200 {
		t.Errorf("%d lookups", counted.n)
	}
}

type lookups struct {
	*sendtest.Model
	n int
}

func (l *lookups) Lookup(dir filetree.NodeID, name string) (filetree.NodeID, filetree.Kind, error) {
	l.n++
	return l.Model.Lookup(dir, name)
}

func TestApplyTwice(t *testing.T) {
	u, err := NewUnits(bytes.NewReader(newStream(1).subvol().end())).Next()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Apply(t.Context(), sendtest.NewModel(), Options{}); err != nil {
		t.Error(err)
	}
	if _, err := u.Apply(t.Context(), sendtest.NewModel(), Options{}); err == nil {
		t.Error("the second time is no error")
	}
}

func TestApplyCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	u, err := NewUnits(bytes.NewReader(newStream(1).subvol().end())).Next()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Apply(ctx, sendtest.NewModel(), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// TestUpdateError checks that an error of the Update is told from a bad stream, and
// names the command that it belongs to.
func TestUpdateError(t *testing.T) {
	b := newStream(1).subvol()
	pos := b.pos()
	stream := b.dir("d", 300).utimes("d", 1).file("f", 301).end()
	m := sendtest.NewModel()
	m.MaxNodes = 1
	_, err := apply(t, m, stream, Options{})
	want := fmt.Sprintf(`btrfs: mkdir "o300-9-0" at offset %d: model is full`, pos)
	if !errors.Is(err, sendtest.ErrFull) || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	if _, ok := errors.AsType[*FormatError](err); ok {
		t.Error("the stream is blamed")
	}
}

func TestLooksTemporary(t *testing.T) {
	for name, want := range map[string]bool{
		"o257-9-0": true, "o1-22-333": true, "o257-9": false, "o257-9-": false, "o-9-0": false, "257-9-0": false,
		"o257-9-0x": false, "o257-9-0-1": false, "": false, "o": false, "o257--0": false, "p257-9-0": false,
	} {
		if got := looksTemporary([]byte(name)); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestIDSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOf(rapid.Uint64Range(1, 40)).Draw(t, "ids")
		var s idSet
		want := make(map[uint64]bool)
		for _, id := range ids {
			s.add(filetree.NodeID(id))
			want[id] = true
		}
		for id := range uint64(42) {
			if got := s.has(filetree.NodeID(id)); got != want[id] {
				t.Fatalf("has %d: %v", id, got)
			}
		}
		for i, sp := range s.spans {
			if sp.first > sp.last || i > 0 && s.spans[i-1].last+1 >= sp.first {
				t.Fatalf("spans %v", s.spans)
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	stream := recording{corpusDir() + "/random-a", "000-full-s0"}.stream(b)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := apply(b, sendtest.NewModel(), stream, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
