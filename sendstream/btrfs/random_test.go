package btrfs

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/secrate/secrate/sendstream/sendtest"
)

// TestRandomExcludes applies random units, one after the other, to a whole tree and to
// the tree without what is excluded. The units are valid but wilder than any kernel's:
// nodes go in and out of what is excluded, through temporary names or not, and get names
// there and lose them.
func TestRandomExcludes(t *testing.T) {
	names := []string{"a", "b", "c", "x", "o300-9-0"}
	rapid.Check(t, func(t *rapid.T) {
		before := sendtest.NewModel()
		setup := newStream(2).subvol()
		for i, p := range []string{"a", "b", "x", "a/a", "a/x", "x/a", "x/x", "a/a/a"} {
			setup.dir(p, uint64(1000+i))
		}
		for i, p := range []string{"c", "a/c", "x/c", "a/a/c", "a/x/c", "x/x/c"} {
			setup.file(p, uint64(2000+i)).write(p, 0, p)
		}
		if _, err := apply(t, before, setup.end(), Options{}); err != nil {
			t.Fatal(err)
		}
		rule := rapid.SampledFrom([]func(string, bool) bool{
			func(p string, _ bool) bool { return p == "x" },
			func(p string, _ bool) bool { return p == "x" || strings.HasSuffix(p, "/x") },
			func(p string, _ bool) bool { return p == "a/a" || p == "b/c" },
			func(p string, dir bool) bool { return dir && strings.HasSuffix(p, "a/x") },
			func(p string, dir bool) bool { return !dir && strings.HasSuffix(p, "c") },
		}).Draw(t, "rule")
		e := &excludes{match: rule}

		// Commands that the whole tree takes make up the unit.
		paths := rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom(names), 1, 3).Draw(t, "names"), "/")
		})
		m := filtered(t, before, e)
		outside := encodeOutside(outsideOf(before, m))
		for unit := range rapid.IntRange(1, 4).Draw(t, "units") {
			truth := before.Copy()
			truth.Snapshots = map[[16]byte]*sendtest.Model{{15: parentUUID}: before}
			m.Snapshots = map[[16]byte]*sendtest.Model{{15: parentUUID}: m.Copy()}
			b := newStream(2).snapshot()
			for n := range rapid.IntRange(1, 20).Draw(t, "commands") {
				one := newStream(2).snapshot()
				ino := uint64(5000 + 100*unit + n)
				add := func(b *builder, kind int, p, to string) {
					switch kind {
					case 0:
						b.cmd(MkFile, at(p), u64(aIno, ino))
					case 1:
						b.cmd(MkDir, at(p), u64(aIno, ino))
					case 2:
						b.cmd(Unlink, at(p))
					case 3:
						b.cmd(RmDir, at(p))
					case 4:
						b.write(p, uint64(n), fmt.Sprint("data", unit))
					case 5:
						b.utimes(p, int64(10*unit+n))
					case 6:
						b.clone(p, uint64(4096*n), 5, ownUUID, to, 0)
					case 7:
						b.clone(p, uint64(4096*n), 5, parentUUID, to, 0)
					case 8:
						b.cmd(Truncate, at(p), u64(aSize, uint64(n)))
					case 9, 10, 11, 12:
						b.link(to, p)
					default:
						b.rename(p, to)
					}
				}
				kind, p, to := rapid.IntRange(0, 17).Draw(t, "kind"), paths.Draw(t, "path"), paths.Draw(t, "to")
				add(one, kind, p, to)
				try := truth.Copy()
				if res, err := apply(t, try, one.end(), Options{}); err == nil && len(res.Unknown) == 0 {
					truth = try
					add(b, kind, p, to)
				}
			}
			res, err := apply(t, m, b.end(), Options{Excluded: rule, Outside: outside})
			if err != nil {
				t.Fatal(err)
			}
			c := excludedCase{e: e, before: before, after: truth, got: m, res: res}
			c.compare(t, fmt.Sprint("unit ", unit))
			checkApplied(t, m, e, res)
			if c.missing {
				return // what nobody has spoken of yet
			}
			before, outside = truth, res.Outside
		}
	})
}
