package catalog

import (
	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// The rolling signatures of files (package rolling), for those that are read by themselves
// and have no base to be compared with. No manifest tells them, and a catalog that was
// rebuilt has none.
//
// A row is of what a file was at one snapshot, and is made in the transaction that makes
// that: it is rolled back with it. What a snapshot has of a file never changes. So no row
// can become wrong, whatever happens to the file afterwards; and what its blocks are, the
// extents of that snapshot say.
const rollingSchema = `
CREATE TABLE rolling (
	node INTEGER PRIMARY KEY,
	seq  INTEGER NOT NULL,
	sig  BLOB NOT NULL
);
`

// Rolling returns the newest signature of a file, as SetRolling was given it, and the
// snapshot it is of; nil if there is none.
func (v View) Rolling(n filetree.NodeID) (sig []byte, of View, err error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	err = v.db.query("SELECT sig, seq FROM rolling WHERE node = ?", func(r *sqlite.Stmt) bool {
		sig, of = column(r, 0), View{v.db, v.source, uint64(r.ColumnInt64(1))}
		return false
	}, v.key(n))
	return sig, of, err
}

// SetRolling keeps the signature of a file as this snapshot has it.
func (v View) SetRolling(n filetree.NodeID, sig []byte) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	return v.db.exec("INSERT OR REPLACE INTO rolling (node, seq, sig) VALUES (?, ?, ?)", v.key(n), v.seq, sig)
}

// DropRolling takes the signature of a file away.
func (v View) DropRolling(n filetree.NodeID) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	return v.dropRolling(n)
}

// dropRolling is DropRolling for a caller that holds mu.
func (v View) dropRolling(n filetree.NodeID) error {
	return v.db.exec("DELETE FROM rolling WHERE node = ?", v.key(n))
}
