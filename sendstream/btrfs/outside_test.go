package btrfs

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/sendtest"
)

// outsideText says what is handed on: names, and one that is kept of the same file.
func outsideText(t testing.TB, m *sendtest.Model, outside []byte) string {
	t.Helper()
	first := make(map[filetree.NodeID]string)
	m.Walk(func(p string, n *sendtest.Node) {
		if _, ok := first[n.ID]; !ok {
			first[n.ID] = p
		}
	})
	var text string
	err := decodeOutside(outside, func(o outsider) error {
		switch {
		case o.node == 0:
			text += fmt.Sprintf("%s=? ", o.path)
		case first[o.node] == "":
			text += fmt.Sprintf("%s=gone ", o.path)
		default:
			text += fmt.Sprintf("%s=%s ", o.path, first[o.node])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestOutside has files with names that are excluded. What is below x is, and d/x. Each
// case is some units; the tree and what is handed on are compared after each.
func TestOutside(t *testing.T) {
	const none = "d/ d/f(12288 [0 1 2]) d/g(0 []) e/ l(12288 [0 1 2])"
	excluded := func(p string, _ bool) bool { return p == "x" || p == "y" || p == "d/x" || p == "d/h" }
	type unit struct {
		build   func(b *builder)
		want    string // the tree
		outside string
		unknown []string
	}
	linked := unit{func(b *builder) { b.link("x/g", "d/g") }, none, "x/g=d/g ", nil}
	long := func(tree string) string { return "d/ d/f(12288 [0 1 2]) " + tree + "e/ l(12288 [0 1 2])" }
	tests := []struct {
		name  string
		units []unit
	}{
		{"written by the excluded name", []unit{linked,
			{func(b *builder) { b.write("x/g", 0, "12345").utimes("x/g", 5) }, long("d/g(5 [0]) "), "x/g=d/g ", nil},
			{func(b *builder) { b.cmd(Truncate, at("x/g"), u64(aSize, 2)) }, long("d/g(2 [0]) "), "x/g=d/g ", nil},
			{func(b *builder) { b.clone("x/g", 4096, 4096, ownUUID, "d/f", 0) }, long("d/g(8192 [0 1]) "), "x/g=d/g ", nil},
		}},
		{"linked and written in one unit", []unit{
			{func(b *builder) { b.link("x/g", "d/g").write("x/g", 0, "1").link("x/g2", "x/g").write("x/g2", 1, "2") }, long("d/g(2 [0]) "), "x/g=d/g x/g2=d/g ", nil},
		}},
		{"cloned from by the excluded name", []unit{linked,
			{func(b *builder) { b.write("x/g", 0, "12345") }, long("d/g(5 [0]) "), "x/g=d/g ", nil},
			{func(b *builder) {
				b.file("n", 300).clone("n", 0, 4096, ownUUID, "x/g", 0).file("m", 301).clone("m", 0, 4096, parentUUID, "x/g", 0)
			}, long("d/g(5 [0]) ") + " m(4096 [0]) n(4096 [0])", "x/g=d/g ", nil},
		}},
		{"moved to a name that is excluded", []unit{linked,
			{func(b *builder) { b.cmd(Unlink, at("d/g")).write("x/g", 0, "1").utimes("x/g", 1) }, long(""), "", nil},
			{func(b *builder) { b.write("x/g", 0, "1") }, long(""), "", nil},
			{func(b *builder) { b.link("e/g", "x/g") }, long(""), "e/g=? ", []string{"e/g"}},
			{func(b *builder) { b.write("e/g", 0, "1") }, long(""), "e/g=? ", []string{"e/g"}},
			{func(b *builder) { b.cmd(Unlink, at("e/g")) }, long(""), "", nil},
		}},
		{"between its names the file has none that is kept", []unit{linked,
			{func(b *builder) { b.write("d/g", 0, "123") }, long("d/g(3 [0]) "), "x/g=d/g ", nil},
			{func(b *builder) { b.cmd(Unlink, at("d/g")).dir("d/g", 300).link("e/g", "x/g").write("x/g", 3, "4") },
				"d/ d/f(12288 [0 1 2]) d/g/ e/ e/g(4 [0]) l(12288 [0 1 2])", "x/g=e/g ", nil},
		}},
		{"renamed out by way of a temporary name", []unit{linked,
			{func(b *builder) {
				b.rename("x/g", "o259-9-0").cmd(Unlink, at("d/g")).write("o259-9-0", 0, "1").rename("o259-9-0", "e/g")
			}, "d/ d/f(12288 [0 1 2]) e/ e/g(1 [0]) l(12288 [0 1 2])", "", nil},
		}},
		{"renamed by way of a temporary name, and back", []unit{linked,
			{func(b *builder) { b.rename("x/g", "o259-9-0").rename("o259-9-0", "x/g2").write("x/g2", 0, "1") }, long("d/g(1 [0]) "), "x/g2=d/g ", nil},
		}},
		{"unlinked by the excluded name", []unit{linked,
			{func(b *builder) { b.cmd(Unlink, at("x/g")).write("d/g", 0, "1") }, long("d/g(1 [0]) "), "", nil},
			{func(b *builder) { b.file("x/g", 300).write("x/g", 0, "other") }, long("d/g(1 [0]) "), "", nil},
		}},
		{"excluded directories are renamed", []unit{
			{func(b *builder) { b.dir("x/a", 300).dir("x/a/b", 301).link("x/a/b/g", "d/g") }, none, "x/a/b/g=d/g ", nil},
			{func(b *builder) { b.rename("x/a", "x/c") }, none, "x/c/b/g=d/g ", nil},
			{func(b *builder) { b.rename("x", "y").write("y/c/b/g", 0, "1") }, long("d/g(1 [0]) "), "y/c/b/g=d/g ", nil},
			{func(b *builder) { b.rename("y/c/b", "z") }, long("d/g(1 [0]) "), "z=? z/g=d/g ", []string{"z"}},
			{func(b *builder) { b.write("z/g", 0, "123").rename("z", "x/z") }, long("d/g(3 [0]) "), "x/z/g=d/g ", nil},
		}},
		{"a directory above both names is renamed", []unit{
			{func(b *builder) { b.link("d/h", "d/g") }, none, "d/h=d/g ", nil},
			{func(b *builder) { b.utimes("d/h", 1).rename("d", "e/d") }, "e/ e/d/ e/d/f(12288 [0 1 2]) e/d/g(0 []) e/d/h(0 []) l(12288 [0 1 2])", "", nil},
			{func(b *builder) { b.write("e/d/h", 0, "1").rename("e/d", "d").write("d/h", 1, "2") }, long("d/g(2 [0]) "), "d/h=d/g ", nil},
		}},
		{"a directory is moved to where what is in it is excluded", []unit{
			{func(b *builder) {
				b.dir("n", 300).link("n/h", "d/g").dir("n/x", 301).link("n/x/l", "l").file("n/x/own", 302)
			},
				none + " n/ n/h(0 []) n/x/ n/x/l(12288 [0 1 2]) n/x/own(0 [])", "", nil},
			{func(b *builder) { b.rename("d", "dd").rename("n", "d") },
				"d/ dd/ dd/f(12288 [0 1 2]) dd/g(0 []) e/ l(12288 [0 1 2])", "d/h=dd/g d/x/l=dd/f ", nil},
			{func(b *builder) { b.write("d/h", 0, "1").cmd(Truncate, at("d/x/l"), u64(aSize, 1)) },
				"d/ dd/ dd/f(1 [0]) dd/g(1 [0]) e/ l(1 [0])", "d/h=dd/g d/x/l=dd/f ", nil},
		}},
		{"a directory is excluded, and files in it have other names", []unit{
			{func(b *builder) { b.rename("d", "x/d").write("x/d/f", 0, "1") }, "e/ l(12288 [0 1 2])", "x/d/f=l ", nil},
			{func(b *builder) { b.write("x/d/f", 4096*3, "1") }, "e/ l(12289 [0 1 2 3])", "x/d/f=l ", nil},
		}},
		{"a new file with an excluded name first", []unit{
			{func(b *builder) {
				b.file("x/n", 300).link("x/n2", "x/n").cmd(MkDir, at("o301-9-0"), u64(aIno, 301)).link("o301-9-0/n", "x/n").link("x/n3", "x/n2").
					write("x/n", 0, "123").utimes("x/n", 4).rename("o301-9-0", "dir")
			}, "d/ d/f(12288 [0 1 2]) d/g(0 []) dir/ dir/n(3 [0]) e/ l(12288 [0 1 2])", "x/n=dir/n x/n2=dir/n x/n3=dir/n ", nil},
		}},
		{"a new file is moved out", []unit{
			{func(b *builder) { b.file("x/n", 300).link("x/m", "x/n").rename("x/n", "n").write("x/m", 0, "1") }, none + " n(1 [0])", "x/m=n ", nil},
		}},
		{"a new file gets a name that is kept when its content is gone", []unit{
			{func(b *builder) { b.file("x/n", 300).write("x/n", 0, "1").link("n", "x/n") }, none, "n=? ", []string{"n"}},
			{func(b *builder) { b.file("x/m", 301).utimes("x/m", 1).link("m", "x/m") }, none, "m=? n=? ", []string{"m", "n"}},
		}},
		{"content that is not known", []unit{
			{func(b *builder) { b.clone("d/g", 0, 4096, ownUUID, "x/other", 0).link("x/g", "d/g") }, long("d/g(4096 []) "), "d/g=d/g x/g=d/g ", []string{"d/g"}},
			{func(b *builder) { b.file("n", 300).clone("n", 0, 4096, parentUUID, "d/g", 0).rename("d/g", "e/g") },
				"d/ d/f(12288 [0 1 2]) e/ e/g(4096 []) l(12288 [0 1 2]) n(4096 [])", "e/g=e/g n=n x/g=e/g ", []string{"e/g", "n"}},
			{func(b *builder) { b.cmd(Truncate, at("x/g"), u64(aSize, 0)).write("x/g", 0, "1").cmd(Unlink, at("n")) },
				"d/ d/f(12288 [0 1 2]) e/ e/g(1 [0]) l(12288 [0 1 2])", "x/g=e/g ", nil},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := base(t)
			var outside []byte
			for i, u := range tt.units {
				m.Snapshots = map[[16]byte]*sendtest.Model{{15: parentUUID}: m.Copy()}
				b := newStream(2).snapshot()
				u.build(b)
				res, err := apply(t, m, b.end(), Options{Excluded: excluded, Outside: outside})
				if err != nil {
					t.Fatalf("unit %d: %v", i, err)
				}
				outside = res.Outside
				if got := listing(m); got != u.want {
					t.Errorf("after unit %d the tree is\n%s, want\n%s", i, got, u.want)
				}
				if got := outsideText(t, m, outside); got != u.outside {
					t.Errorf("after unit %d outside is %s, want %s", i, got, u.outside)
				}
				if diff := gocmp.Diff(u.unknown, res.Unknown); diff != "" {
					t.Errorf("unit %d: unknown (-want +got):\n%s", i, diff)
				}
			}
		})
	}
}

// TestOutsideAttributes sets attributes by a name that is excluded.
func TestOutsideAttributes(t *testing.T) {
	m := base(t)
	stream := newStream(2).snapshot().link("x/g", "d/g").cmd(Chmod, at("x/g"), u64(aMode, 0o640)).cmd(Chown, at("x/g"), u64(aUID, 7), u64(aGID, 8)).
		cmd(SetXattr, at("x/g"), str(aXattrName, "user.a"), str(aXattrData, "v")).utimes("x/g", 9).end()
	if _, err := apply(t, m, stream, Options{Excluded: func(p string, _ bool) bool { return p == "x" }}); err != nil {
		t.Fatal(err)
	}
	a := byPath(m)["d/g"].Attr
	if a.Mode != 0o640 || a.UID != 7 || a.GID != 8 || len(a.Xattrs) != 1 || a.Mtime.Sec != 9 {
		t.Errorf("attributes are %+v", a)
	}
}

// TestOutsideErrors has streams that fit no tree, as far as can be told of one of which a
// part is not known.
func TestOutsideErrors(t *testing.T) {
	m := base(t)
	g := byPath(m)["d/g"].ID
	list := func(o ...outsider) []byte { return encodeOutside(o) }
	name := outsider{"x/g", g, filetree.File}
	tests := []struct {
		name    string
		outside []byte
		build   func(b *builder)
		err     error
	}{
		{"linked where a name is", list(name), func(b *builder) { b.link("x/g", "l") }, filetree.ErrInvalid},
		{"renamed to where a name is", list(name), func(b *builder) { b.rename("l", "x/g") }, filetree.ErrInvalid},
		{"made where a name is", list(name), func(b *builder) { b.file("x/g", 300) }, filetree.ErrInvalid},
		{"its directory is removed", list(name), func(b *builder) { b.cmd(RmDir, at("x")) }, filetree.ErrInvalid},
		{"its directory is made again", list(name), func(b *builder) { b.rename("e", "x") }, filetree.ErrInvalid},
		{"removed as a directory", list(name), func(b *builder) { b.cmd(RmDir, at("x/g")) }, filetree.ErrInvalid},
		{"a directory", list(name), func(b *builder) { b.write("x/g/h", 0, "1") }, filetree.ErrInvalid},
		{"of another tree", list(outsider{"d/g", 999, filetree.File}), func(b *builder) {}, errOutside},
		{"below a file", list(outsider{"d/g/h", g, filetree.File}), func(b *builder) {}, errOutside},
		{"not known and there", list(outsider{"d/g", 0, filetree.File}), func(b *builder) {}, errOutside},
		{"another version", []byte{9}, func(b *builder) {}, errOutside},
		{"cut", list(name)[:5], func(b *builder) {}, errOutside},
		{"twice", append(list(name), list(name)[1:]...), func(b *builder) {}, errOutside},
		{"no name", list(outsider{"x/../g", g, filetree.File}), func(b *builder) {}, errOutside},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newStream(2).snapshot()
			tt.build(b)
			_, err := apply(t, m.Copy(), b.end(), Options{Outside: tt.outside, Excluded: func(p string, _ bool) bool { return p == "x" }})
			if !errors.Is(err, tt.err) {
				t.Errorf("error is %v, want %v", err, tt.err)
			}
		})
	}
}

// TestOutsideNoLonger applies a unit after the excludes were taken back.
func TestOutsideNoLonger(t *testing.T) {
	m := base(t)
	outside := encodeOutside([]outsider{{"x/g", byPath(m)["d/g"].ID, filetree.File}, {"xx", byPath(m)["l"].ID, filetree.File}})
	res, err := apply(t, m, newStream(2).snapshot().write("x/g", 0, "1").end(), Options{Outside: outside})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := listing(m), "d/ d/f(12288 [0 1 2]) d/g(1 [0]) e/ l(12288 [0 1 2]) xx(12288 [0 1 2])"; got != want {
		t.Errorf("tree is\n%s, want\n%s", got, want)
	}
	if diff := gocmp.Diff([]string{"x"}, res.Unknown); diff != "" {
		t.Errorf("unknown (-want +got):\n%s", diff)
	}
}

// FuzzOutside decodes lists: what is one comes out the same when it is encoded again.
func FuzzOutside(f *testing.F) {
	f.Add(encodeOutside([]outsider{{"x/g", 7, filetree.File}, {"x/gg", 300, filetree.Symlink}, {"y", 0, 0}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var list []outsider
		err := decodeOutside(b, func(o outsider) error {
			list = append(list, o)
			return nil
		})
		if err != nil {
			if err != errOutside {
				t.Fatal(err)
			}
			return
		}
		var again []outsider
		if err := decodeOutside(encodeOutside(list), func(o outsider) error { again = append(again, o); return nil }); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(list, again, gocmp.AllowUnexported(outsider{})); diff != "" {
			t.Fatal(diff)
		}
		// The tree takes it, or says why not.
		m := base(t)
		if _, err := apply(t, m, newStream(2).snapshot().end(), Options{Outside: b}); err != nil && !errors.Is(err, errOutside) && !errors.Is(err, filetree.ErrInvalid) && !errors.Is(err, filetree.ErrNotExist) {
			t.Fatal(err)
		}
		if strings.Contains(listing(m), parkedPrefix) {
			t.Fatal("something is left")
		}
	})
}
