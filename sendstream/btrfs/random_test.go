package btrfs

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/secrate/secrate/sendstream/sendtest"
)

// TestRandomExcludes applies random units to a whole tree and to the tree without
// what is excluded. The units are valid but wilder than any kernel's: nodes go in
// and out of what is excluded, through temporary names or not. There are no hard
// links, for the reason in the package comment.
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
		truth := before.Copy()
		b := newStream(2).snapshot()
		for n := range rapid.IntRange(1, 30).Draw(t, "commands") {
			one := newStream(2).snapshot()
			add := func(b *builder, kind int, p, to string) {
				switch kind {
				case 0:
					b.cmd(MkFile, at(p), u64(aIno, uint64(5000+n)))
				case 1:
					b.cmd(MkDir, at(p), u64(aIno, uint64(5000+n)))
				case 2:
					b.cmd(Unlink, at(p))
				case 3:
					b.cmd(RmDir, at(p))
				case 4:
					b.write(p, uint64(n), "data")
				case 5:
					b.utimes(p, int64(n))
				case 6:
					b.clone(p, uint64(4096*n), 5, ownUUID, to, 0)
				default:
					b.rename(p, to)
				}
			}
			kind, p, to := rapid.IntRange(0, 12).Draw(t, "kind"), paths.Draw(t, "path"), paths.Draw(t, "to")
			add(one, kind, p, to)
			try := truth.Copy()
			if _, err := apply(t, try, one.end(), Options{}); err == nil {
				truth = try
				add(b, kind, p, to)
			}
		}
		m := filtered(t, before, e)
		res, err := apply(t, m, b.end(), Options{Excluded: rule, Remove: m.RemoveAll})
		if err != nil {
			t.Fatal(err)
		}
		compareExcluded(t, "random", m, filtered(t, truth, e), truth, res, map[string]bool{})
		checkApplied(t, m, e, res)
	})
}
