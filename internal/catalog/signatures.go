package catalog

import (
	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// What is known of bytes that cannot be read any more: sums of the blocks of slices, for
// files that were written to more than once. No manifest tells them, and a catalog that was
// rebuilt has none, which costs bytes and nothing else.
//
// Rows have no lifetime, as only the newest state is ever compared with. A row says what
// the bytes of a slice are, wherever that is used, and a slice never changes: no row can
// become wrong. The file and offset are there to find it by, and to let it go with what
// it is of.
//
// A row is made in the transaction that reserves the slice's pack. So it is rolled back with
// it; and as no row of packs is ever deleted, the number of a pack that a row names is not
// given to another.
const signaturesSchema = `
CREATE TABLE signed (
	node INTEGER NOT NULL,
	off  INTEGER NOT NULL,
	pack INTEGER NOT NULL,
	blob INTEGER NOT NULL,
	boff INTEGER NOT NULL,
	len  INTEGER NOT NULL,
	sums BLOB NOT NULL,
	PRIMARY KEY (node, off, pack, blob, boff)
) WITHOUT ROWID;
`

// SumBlock is how many bytes a Sum is of.
const SumBlock = 512

// MaxSigned bounds the bytes that one Signature is of. With its sums a row then has 800
// bytes: SQLite keeps up to 1,002 in a page of such a table, and begins another page for
// what is longer.
const MaxSigned = 64 * SumBlock

// A Sum tells blocks apart.
type Sum [12]byte

// A Signature has the sums of the blocks of a slice, one of SumBlock bytes after the other;
// the last block may be shorter.
type Signature struct {
	Extent // the slice, and where the file had it first
	Sums   []Sum
}

// Signatures returns those that a file has of slices that begin in [from, to), in order of
// where they do.
func (v View) Signatures(n filetree.NodeID, from, to int64) ([]Signature, error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	var all []Signature
	bad := false
	err := v.db.query("SELECT off, pack, blob, boff, len, sums FROM signed WHERE node = ? AND off >= ? AND off < ? ORDER BY off, pack, blob, boff",
		func(r *sqlite.Stmt) bool {
			s := Signature{Extent: Extent{r.ColumnInt64(0), Part{Pack: PackID(r.ColumnInt64(1)), Blob: uint32(r.ColumnInt64(2)),
				Offset: uint32(r.ColumnInt64(3)), Length: r.ColumnInt64(4)}}}
			sums := column(r, 5)
			for len(sums) >= len(Sum{}) {
				s.Sums, sums = append(s.Sums, Sum(sums)), sums[len(Sum{}):]
			}
			bad = len(sums) > 0 || len(s.Sums) != sumsOf(s.Length)
			all = append(all, s)
			return !bad
		}, v.key(n), from, to)
	if err == nil && bad {
		err = errParts
	}
	return all, err
}

func sumsOf(length int64) int { return int((length + SumBlock - 1) / SumBlock) }

// AddSignature adds a signature of at most MaxSigned bytes.
func (v View) AddSignature(n filetree.NodeID, s Signature) error {
	if s.Pack == 0 || s.Patch != nil || s.Length <= 0 || s.Length > MaxSigned || len(s.Sums) != sumsOf(s.Length) {
		panic("catalog: internal error: signature of what is no slice, or not of all of it")
	}
	sums := make([]byte, 0, len(s.Sums)*len(Sum{}))
	for _, x := range s.Sums {
		sums = append(sums, x[:]...)
	}
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	return v.db.exec("INSERT OR REPLACE INTO signed (node, off, pack, blob, boff, len, sums) VALUES (?, ?, ?, ?, ?, ?, ?)",
		v.key(n), s.Extent.Offset, s.Pack, s.Blob, s.Part.Offset, s.Length, sums)
}

// DropSignature takes one away.
func (v View) DropSignature(n filetree.NodeID, s Signature) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	return v.db.exec("DELETE FROM signed WHERE node = ? AND off = ? AND pack = ? AND blob = ? AND boff = ?",
		v.key(n), s.Extent.Offset, s.Pack, s.Blob, s.Part.Offset)
}

// dropSignatures takes away those of slices that lie in [from, to) of a file. The caller
// holds mu.
func (v View) dropSignatures(n filetree.NodeID, from, to int64) error {
	return v.db.exec("DELETE FROM signed WHERE node = ?1 AND off >= ?2 AND off < ?3 AND off + len <= ?3", v.key(n), from, to)
}
