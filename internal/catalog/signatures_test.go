package catalog

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/secrate/secrate/internal/filetree"
)

func signature(off int64, pack PackID, boff uint32, length int64) Signature {
	s := Signature{Extent: Extent{Offset: off, Part: Part{Length: length, Pack: pack, Blob: 3, Offset: boff}}}
	for i := range sumsOf(length) {
		s.Sums = append(s.Sums, Sum{byte(i), 11: byte(pack)})
	}
	return s
}

func TestSignatures(t *testing.T) {
	db := must(Open(filepath.Join(t.TempDir(), "catalog.db"), Options{Temporary: true}))
	defer db.Close()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	v := db.At(1, 1)
	expect := func(what string, n filetree.NodeID, from, to int64, want ...Signature) {
		t.Helper()
		if diff := cmp.Diff(want, must(v.Signatures(n, from, to))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	a, b, c, short := signature(0, 1, 700, MaxSigned), signature(0, 2, 0, 512), signature(MaxSigned, 1, 700+MaxSigned, 513), signature(1<<20, 7, 0, 1)
	for _, s := range []Signature{c, short, b, a} {
		check(v.AddSignature(5, s))
	}
	check(v.AddSignature(6, a))
	check(db.At(2, 1).AddSignature(5, b))
	expect("all", 5, 0, math.MaxInt64, a, b, c, short)
	expect("some", 5, 1, 1<<20, c)
	expect("another file's", 6, 0, math.MaxInt64, a)
	check(v.DropSignature(5, b))
	expect("without one", 5, 0, math.MaxInt64, a, c, short)

	// They go with what they are of, but only where all of it goes.
	for _, e := range []Extent{{0, Part{Length: MaxSigned + 513, Pack: 1, Blob: 3, Offset: 700}}, {1 << 20, short.Part}} {
		check(v.SetParts(5, e.Offset, []Part{e.Part}))
	}
	check(v.AddSignature(5, a)) // which were not of what is there now
	check(v.AddSignature(5, c))
	check(v.AddSignature(5, short))
	check(v.Punch(5, 512, MaxSigned))
	expect("a hole in one", 5, 0, math.MaxInt64, a, c, short)
	check(v.Punch(5, 0, MaxSigned+512))
	expect("a hole in two", 5, 0, math.MaxInt64, c, short)
	check(v.SetParts(5, MaxSigned, []Part{{Length: 1000, Pack: 9}}))
	expect("written over", 5, 0, math.MaxInt64, short)
	check(v.EndNode(6))
	expect("ended", 6, 0, math.MaxInt64)
	check(v.EndAll())
	expect("ended all", 5, 0, math.MaxInt64)
	v = db.At(2, 1)
	expect("another source's", 5, 0, math.MaxInt64, b)

	// A row that is not what was written.
	db.mu.Lock()
	check(db.exec("UPDATE signed SET sums = x'00'"))
	db.mu.Unlock()
	if _, err := v.Signatures(5, 0, 1); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

// TestUpgrade opens catalogs that earlier versions have made.
func TestUpgrade(t *testing.T) {
	for version := 1; version < schemaVersion; version++ {
		path := filepath.Join(t.TempDir(), "catalog.db")
		c := must(sqlite.OpenConn(path, sqlite.OpenReadWrite, sqlite.OpenCreate))
		for _, s := range schemas[:version] {
			if err := sqlitex.ExecuteScript(c, s, nil); err != nil {
				t.Fatal(err)
			}
		}
		err := errors.Join(sqlitex.ExecuteTransient(c, "INSERT INTO sources VALUES (1, 'w', 'i', 'name', 2)", nil),
			sqlitex.ExecuteTransient(c, fmt.Sprintf("PRAGMA user_version = %d", version), nil), c.Close())
		if err != nil {
			t.Fatal(err)
		}
		for _, readOnly := range []bool{true, false, true, false} {
			db, err := Open(path, Options{ReadOnly: readOnly})
			if err != nil {
				t.Fatalf("version %d, read-only %v: %v", version, readOnly, err)
			}
			if all, err := db.Sources(); err != nil || len(all) != 1 {
				t.Errorf("version %d: %v, %v", version, all, err)
			}
			if !readOnly {
				v := db.At(1, 1)
				if err := errors.Join(v.Keep([]byte("k"), []byte("v")), v.AddSignature(2, signature(0, 1, 0, 9)), v.SetRolling(2, []byte("s")), v.EndNode(2)); err != nil {
					t.Errorf("version %d: %v", version, err)
				}
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
