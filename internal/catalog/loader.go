package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// A Loader makes the changes of one snapshot as a [View] does, and leaves the same
// rows, but is made for very many of them: where nothing can be there already it does
// not look, and rows go in by the hundred.
//
// That nothing can be there follows from the rows alone, whatever a manifest claims. Of
// a node or directory whose number is higher than all there were when the Loader was
// made, every row is of this snapshot: there is none to end, and to add one is to
// replace the one that has its key. If the number is also higher than those that came
// since, or the offset is beyond all extents of the file that came last, there is no row
// at all. Everything else goes the View's way.
//
// Until Flush the state is to be asked of the Loader alone, and nothing else may change
// the source.
type Loader struct {
	v    View
	old  filetree.NodeID // the highest that any row was of before
	attr filetree.NodeID // no higher node has attributes
	file filetree.NodeID // no higher node has extents, and
	end  int64           // this one, if it is higher than old, none at or beyond here

	nodes, entries, extents batch

	content      []contentRow
	contentBytes int // in their parts
}

// NewLoader returns a Loader of the changes that snapshot v.Seq() makes. It is made
// within a transaction.
func (v View) NewLoader() (*Loader, error) {
	l := &Loader{v: v, nodes: batch{insert: insertNodes}, entries: batch{insert: insertEntries},
		extents: batch{insert: insertExtents}}
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if err := v.db.unindex(); err != nil {
		return nil, err
	}
	for _, q := range []string{
		"SELECT max(node) FROM nodes WHERE node >= ?1 AND node < ?2",
		"SELECT max(dir) FROM entries WHERE dir >= ?1 AND dir < ?2",
		"SELECT max(node) FROM extents WHERE node >= ?1 AND node < ?2",
	} {
		err := v.db.query(q, func(r *sqlite.Stmt) bool {
			l.old = max(l.old, nodeOf(r.ColumnInt64(0)))
			return false
		}, v.source<<nodeBits, (v.source+1)<<nodeBits)
		if err != nil {
			return nil, err
		}
	}
	l.attr, l.file = l.old, l.old
	return l, nil
}

// Flush writes the rows that were held back.
func (l *Loader) Flush() error {
	if err := l.writeContent(); err != nil {
		return err
	}
	return l.write(&l.nodes, &l.entries, &l.extents)
}

func (l *Loader) write(batches ...*batch) error {
	l.v.db.mu.Lock()
	defer l.v.db.mu.Unlock()
	for _, b := range batches {
		if err := b.write(l.v); err != nil {
			return err
		}
	}
	return nil
}

// add puts a row into a batch.
func (l *Loader) add(b *batch, row ...value) error {
	b.values = append(b.values, row...)
	for _, x := range row {
		b.bytes += len(x.b)
	}
	if len(b.values) < batchRows*len(row) && b.bytes < batchBytes {
		return nil
	}
	return l.write(b)
}

// Attr is View.Attr; it says whether there is such a node.
func (l *Loader) Attr(n filetree.NodeID) (a filetree.Attr, ok bool, err error) {
	if n > l.attr {
		return a, false, nil
	}
	if err := l.write(&l.nodes); err != nil {
		return a, false, err
	}
	a, err = l.v.Attr(n)
	if errors.Is(err, filetree.ErrNotExist) {
		return a, false, nil
	}
	return a, err == nil, err
}

// SetAttr is View.SetAttr.
func (l *Loader) SetAttr(n filetree.NodeID, a *filetree.Attr) error {
	if n <= l.old {
		return l.v.SetAttr(n, a)
	}
	b, err := encodeAttr(a)
	if err != nil {
		return fmt.Errorf("node %d: %w", n, err)
	}
	l.attr = max(l.attr, n)
	return l.add(&l.nodes, integer(l.v.key(n)), blob(b))
}

// AddEntry is View.AddEntry.
func (l *Loader) AddEntry(dir filetree.NodeID, name string, n filetree.NodeID) error {
	if dir <= l.old {
		return l.v.AddEntry(dir, name, n)
	}
	return l.add(&l.entries, integer(l.v.key(dir)), blob([]byte(name)), integer(l.v.key(n)))
}

// RemoveEntry is View.RemoveEntry.
func (l *Loader) RemoveEntry(dir filetree.NodeID, name string, n filetree.NodeID) error {
	if err := l.write(&l.entries); err != nil {
		return err
	}
	return l.v.RemoveEntry(dir, name, n)
}

// EndNode is View.EndNode.
func (l *Loader) EndNode(n filetree.NodeID) error {
	if err := l.write(&l.nodes, &l.entries, &l.extents); err != nil {
		return err
	}
	return l.v.EndNode(n)
}

// beyond reports whether a file has no extent at or after an offset.
func (l *Loader) beyond(n filetree.NodeID, off int64) bool {
	return n > l.file || n == l.file && n > l.old && off >= l.end
}

// Punch is View.Punch.
func (l *Loader) Punch(n filetree.NodeID, from, to int64) error {
	if l.beyond(n, from) {
		return nil
	}
	if err := l.write(&l.extents); err != nil {
		return err
	}
	return l.v.Punch(n, from, to)
}

// SetPart is View.SetParts for one part.
func (l *Loader) SetPart(n filetree.NodeID, off int64, p Part) error {
	if !l.beyond(n, off) {
		if n == l.file {
			l.end = max(l.end, off+p.Length)
		}
		if err := l.write(&l.extents); err != nil {
			return err
		}
		return l.v.SetParts(n, off, []Part{p})
	}
	if p.Hole() {
		return nil
	}
	l.file, l.end = n, off+p.Length
	pack := int64(p.Pack)
	if p.Patch != nil {
		var err error
		l.v.db.mu.Lock()
		pack, err = l.v.db.addRecipe(p.Patch)
		l.v.db.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return l.add(&l.extents, integer(l.v.key(n)), integer(off), integer(p.Length), integer(pack), integer(int64(p.Blob)), integer(int64(p.Offset)))
}

// Parts is View.Parts.
func (l *Loader) Parts(n filetree.NodeID, from, to int64) ([]Part, error) {
	if err := l.write(&l.extents); err != nil {
		return nil, err
	}
	return l.v.Parts(n, from, to)
}

// SetContent is DB.SetContent.
func (l *Loader) SetContent(cid [16]byte, parts []Part) error {
	b := appendParts(nil, parts)
	l.content = append(l.content, contentRow{cid, b})
	if l.contentBytes += len(b); len(l.content) < contentRows && l.contentBytes < contentBytes {
		return nil
	}
	return l.writeContent()
}

// writeContent inserts the content ids in their order: one by one, each would be on
// another page of the table. The first of equal ones stays the first.
func (l *Loader) writeContent() error {
	slices.SortStableFunc(l.content, func(a, b contentRow) int { return bytes.Compare(a.cid[:], b.cid[:]) })
	b := batch{insert: insertContent}
	for i := range l.content {
		c := &l.content[i]
		if err := l.add(&b, blob(c.cid[:]), blob(c.parts)); err != nil {
			return err
		}
	}
	if err := l.write(&b); err != nil { // its values are in l.content
		return err
	}
	clear(l.content)
	l.content, l.contentBytes = l.content[:0], 0
	return nil
}

const (
	contentRows  = 1 << 16 // that are held back
	contentBytes = 4 << 20 // of their parts: more rows are then not waited for
)

// A contentRow is a content id on its way into the catalog.
type contentRow struct {
	cid   [16]byte
	parts []byte
}

const (
	batchRows  = 512       // that go into a table with one statement
	batchBytes = 256 << 10 // of names and such, after which no more rows are waited for
)

// A batch is rows on their way into a table.
type batch struct {
	insert *insertion
	values []value
	bytes  int // in values
}

// A value is what a column has.
type value struct {
	n    int64
	b    []byte
	blob bool
}

func integer(n int64) value { return value{n: n} }
func blob(b []byte) value   { return value{b: b, blob: true} }

// An insertion is a statement that inserts rows.
type insertion struct {
	columns int           // values that each row has of its own
	one     string        // the statement for one row
	many    func() string // for batchRows of them
}

// newInsertion makes it of what stands before the rows and of a row, in which ?1 is the
// snapshot's number and each # a value of the row's own.
func newInsertion(into, row string) *insertion {
	text := func(rows int) string {
		var s strings.Builder
		s.WriteString(into)
		parameter := 1
		for i := range rows {
			if i > 0 {
				s.WriteByte(',')
			}
			for _, c := range []byte(row) {
				if c != '#' {
					s.WriteByte(c)
					continue
				}
				parameter++
				fmt.Fprintf(&s, "?%d", parameter)
			}
		}
		return s.String()
	}
	return &insertion{strings.Count(row, "#"), text(1), sync.OnceValue(func() string { return text(batchRows) })}
}

var (
	insertNodes   = newInsertion("INSERT OR REPLACE INTO nodes (node, born, died, attr) VALUES ", "(#, ?1, 0, #)")
	insertEntries = newInsertion("INSERT OR REPLACE INTO entries (dir, name, born, died, node) VALUES ", "(#, #, ?1, 0, #)")
	insertExtents = newInsertion("INSERT OR REPLACE INTO extents (node, off, born, died, len, pack, blob, boff) VALUES ", "(#, #, ?1, 0, #, #, #, #)")
	insertContent = newInsertion("INSERT OR IGNORE INTO content (cid, parts) VALUES ", "(#, #)")
)

// write inserts the rows, in their order. The caller holds mu.
func (b *batch) write(v View) error {
	query, size := b.insert.one, b.insert.columns
	if len(b.values) == batchRows*size {
		query, size = b.insert.many(), len(b.values)
	}
	for values := range slices.Chunk(b.values, size) {
		if err := v.db.insert(query, v.seq, values); err != nil {
			return err
		}
	}
	clear(b.values)
	b.values, b.bytes = b.values[:0], 0
	return nil
}

// insert runs a statement of a batch. The caller holds mu.
func (db *DB) insert(query string, seq uint64, values []value) error {
	s, err := db.stmt(query, seq)
	if err != nil {
		return err
	}
	for i, x := range values {
		switch {
		case !x.blob:
			s.BindInt64(i+2, x.n)
		case len(x.b) == 0:
			s.BindZeroBlob(i+2, 0)
		default:
			s.BindBytes(i+2, x.b)
		}
	}
	_, err = s.Step()
	s.Reset()
	if err != nil {
		return failed(err)
	}
	return nil
}
