package catalog

import (
	"path/filepath"
	"testing"

	"github.com/secrate/secrate/internal/filetree"
)

func TestRolling(t *testing.T) {
	db := must(Open(filepath.Join(t.TempDir(), "catalog.db"), Options{Temporary: true}))
	defer db.Close()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, v View, n filetree.NodeID, want string, seq uint64) {
		t.Helper()
		sig, of, err := v.Rolling(n)
		check(err)
		if string(sig) != want || of.Seq() != seq {
			t.Errorf("%s: %q of #%d, expected %q of #%d", what, sig, of.Seq(), want, seq)
		}
	}
	one, two, other := db.At(1, 1), db.At(1, 2), db.At(2, 7)
	check(one.SetRolling(5, []byte("a")))
	check(one.SetRolling(6, []byte("b")))
	check(other.SetRolling(5, []byte("c")))
	expect("from a later snapshot", two, 5, "a", 1)
	check(two.SetRolling(5, []byte("a again")))
	expect("another", two, 5, "a again", 2)
	expect("another file's", two, 6, "b", 1)
	expect("another source's", other, 5, "c", 7)
	expect("none", other, 6, "", 0)
	check(two.DropRolling(5))
	expect("dropped", two, 5, "", 0)
	check(two.EndNode(6))
	expect("of an ended file", two, 6, "", 0)
	expect("another source's", other, 5, "c", 7)
	check(one.SetRolling(5, []byte("a")))
	check(db.At(1, 3).EndAll())
	expect("of a source that is told anew", two, 5, "", 0)
	expect("another source's", other, 5, "c", 7)
}
