package catalog

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"strconv"

	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// A View is the state of one source at one snapshot.
type View struct {
	db     *DB
	source int64
	seq    uint64
}

// At returns the view of a source at snapshot seq. Within a transaction that is
// making snapshot seq, it is the state so far.
func (db *DB) At(source int64, seq uint64) View { return View{db, source, seq} }

// Seq returns the snapshot's number.
func (v View) Seq() uint64 { return v.seq }

// key is a node's key in the tables.
func (v View) key(n filetree.NodeID) int64 { return v.source<<nodeBits | int64(n)&(1<<nodeBits-1) }

func nodeOf(key int64) filetree.NodeID { return filetree.NodeID(key & (1<<nodeBits - 1)) }

// CheckNode returns an error unless n can be the number of a node.
func CheckNode(n filetree.NodeID) error {
	if n == 0 || n >= 1<<nodeBits {
		return fmt.Errorf("node number %d", n)
	}
	return nil
}

const alive = " AND born <= ?2 AND (died = 0 OR died > ?2) "

// Lookup returns the node under a name of a directory, or an error that wraps
// filetree.ErrNotExist.
func (v View) Lookup(dir filetree.NodeID, name string) (n filetree.NodeID, err error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	err = v.db.query("SELECT node FROM entries WHERE dir = ?1"+alive+"AND name = ?3", func(r *sqlite.Stmt) bool {
		n = nodeOf(r.ColumnInt64(0))
		return false
	}, v.key(dir), v.seq, []byte(name))
	if err == nil && n == 0 {
		err = fmt.Errorf("%q: %w", name, filetree.ErrNotExist)
	}
	return n, err
}

// Attr returns a node's attributes, or an error that wraps filetree.ErrNotExist.
func (v View) Attr(n filetree.NodeID) (a filetree.Attr, err error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	err = fmt.Errorf("node %d: %w", n, filetree.ErrNotExist)
	qerr := v.db.query("SELECT attr FROM nodes WHERE node = ?1"+alive, func(r *sqlite.Stmt) bool {
		a, err = decodeAttr(column(r, 0))
		return false
	}, v.key(n), v.seq)
	return a, errors.Join(qerr, err)
}

// A Child is an entry of a directory and what it leads to.
type Child struct {
	Name string
	Node filetree.NodeID
	Attr filetree.Attr
}

// Child returns the entry under a name of a directory, or an error that wraps
// filetree.ErrNotExist.
func (v View) Child(dir filetree.NodeID, name string) (c Child, err error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	err = fmt.Errorf("%q: %w", name, filetree.ErrNotExist)
	qerr := v.db.query(`SELECT e.node, n.attr FROM entries e JOIN nodes n ON n.node = e.node
		WHERE e.dir = ?1 AND e.born <= ?2 AND (e.died = 0 OR e.died > ?2)
		AND n.born <= ?2 AND (n.died = 0 OR n.died > ?2) AND e.name = ?3`,
		func(r *sqlite.Stmt) bool {
			c = Child{Name: name, Node: nodeOf(r.ColumnInt64(0))}
			c.Attr, err = decodeAttr(column(r, 1))
			return false
		}, v.key(dir), v.seq, []byte(name))
	return c, errors.Join(qerr, err)
}

// Children yields a directory's entries, by name in byte order.
func (v View) Children(dir filetree.NodeID) iter.Seq2[Child, error] {
	const batchSize = 512 // in the query as well: a limit that is bound makes SQLite prepare it anew
	return func(yield func(Child, error) bool) {
		last, op := []byte{}, ">="
		for {
			var batch []Child
			var err error
			v.db.mu.Lock()
			qerr := v.db.query(`SELECT e.name, e.node, n.attr FROM entries e JOIN nodes n ON n.node = e.node
				WHERE e.dir = ?1 AND e.born <= ?2 AND (e.died = 0 OR e.died > ?2)
				AND n.born <= ?2 AND (n.died = 0 OR n.died > ?2) AND e.name `+op+` ?3 ORDER BY e.name LIMIT 512`,
				func(r *sqlite.Stmt) bool {
					c := Child{Name: columnString(r, 0), Node: nodeOf(r.ColumnInt64(1))}
					c.Attr, err = decodeAttr(column(r, 2))
					batch = append(batch, c)
					return err == nil
				}, v.key(dir), v.seq, last)
			v.db.mu.Unlock()
			if err = errors.Join(qerr, err); err != nil {
				yield(Child{}, err)
				return
			}
			for _, c := range batch {
				if !yield(c, nil) {
					return
				}
			}
			if len(batch) < batchSize {
				return
			}
			last, op = []byte(batch[len(batch)-1].Name), ">"
		}
	}
}

// Empty reports whether a directory has no entries.
func (v View) Empty(dir filetree.NodeID) (bool, error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	empty := true
	err := v.db.query("SELECT 1 FROM entries WHERE dir = ?1"+alive+"LIMIT 1", func(*sqlite.Stmt) bool {
		empty = false
		return false
	}, v.key(dir), v.seq)
	return empty, err
}

// An Entry is a name of a node.
type Entry = filetree.Entry

// Entries returns the names of a node, at most limit of them (0: all).
func (v View) Entries(n filetree.NodeID, limit int) ([]Entry, error) {
	if limit == 0 {
		limit = -1
	}
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if err := v.db.index(); err != nil {
		return nil, err
	}
	var all []Entry
	// SQLite prepares a statement anew whenever a limit is bound.
	err := v.db.query("SELECT dir, name FROM entries WHERE node = ?1"+alive+"LIMIT "+strconv.Itoa(limit), func(r *sqlite.Stmt) bool {
		all = append(all, Entry{Dir: nodeOf(r.ColumnInt64(0)), Name: columnString(r, 1)})
		return true
	}, v.key(n), v.seq)
	return all, err
}

// maxDirDepth bounds how deep directories nest; more is a loop.
const maxDirDepth = 16384

// Path returns one path of a node, its components from the root down; none for the
// root itself.
func (v View) Path(n filetree.NodeID) ([]string, error) {
	var path []string
	for at := n; at != filetree.RootNode; {
		e, err := v.Entries(at, 1)
		if err != nil {
			return nil, err
		}
		if len(e) == 0 {
			return nil, fmt.Errorf("node %d has no name: %w", at, filetree.ErrNotExist)
		}
		if path = append(path, e[0].Name); len(path) > maxDirDepth {
			return nil, fmt.Errorf("node %d: directories go in a circle", n)
		}
		at = e[0].Dir
	}
	for i, j := 0, len(path)-1; i < j; i, j = i+1, j-1 {
		path[i], path[j] = path[j], path[i]
	}
	return path, nil
}

// Resolve follows the components of a path from the root. Links are not followed.
func (v View) Resolve(path []string) (filetree.NodeID, error) {
	n := filetree.RootNode
	for _, name := range path {
		var err error
		if n, err = v.Lookup(n, name); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// An Extent is a Part at its place in a file.
type Extent struct {
	Offset int64
	Part
}

func (v View) scanExtent(r *sqlite.Stmt, col int) (Extent, error) {
	e := Extent{Offset: r.ColumnInt64(col), Part: Part{Length: r.ColumnInt64(col + 1), Blob: uint32(r.ColumnInt64(col + 3)), Offset: uint32(r.ColumnInt64(col + 4))}}
	pack := r.ColumnInt64(col + 2)
	if pack > 0 {
		e.Pack = PackID(pack)
		return e, nil
	}
	var err error
	qerr := v.db.query("SELECT patch FROM recipes WHERE id = ?", func(r *sqlite.Stmt) bool {
		e.Patch, err = decodePatch(column(r, 0))
		return false
	}, -pack)
	if qerr == nil && err == nil && e.Patch == nil {
		err = errParts
	}
	return e, errors.Join(qerr, err)
}

// Extents returns the extents of a file that have bytes in [from, to), in order and
// whole. Between them are holes.
func (v View) Extents(n filetree.NodeID, from, to int64) ([]Extent, error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	return v.extents(n, from, to)
}

func (v View) extents(n filetree.NodeID, from, to int64) ([]Extent, error) {
	var all []Extent
	var err error
	// No extent is longer than MaxPart, so none that starts earlier reaches from.
	qerr := v.db.query("SELECT off, len, pack, blob, boff FROM extents WHERE node = ?1"+alive+
		"AND off > ?3 AND off < ?4 AND off + len > ?5 ORDER BY off",
		func(r *sqlite.Stmt) bool {
			var e Extent
			e, err = v.scanExtent(r, 0)
			all = append(all, e)
			return err == nil
		}, v.key(n), v.seq, from-MaxPart, to, from)
	return all, errors.Join(qerr, err)
}

// Parts returns what the bytes [from, to) of a file are, holes among them.
func (v View) Parts(n filetree.NodeID, from, to int64) ([]Part, error) {
	ext, err := v.Extents(n, from, to)
	if err != nil {
		return nil, err
	}
	var parts []Part
	at := from
	for _, e := range ext {
		if e.Offset > at {
			parts = AppendPart(parts, Part{Length: e.Offset - at})
			at = e.Offset
		}
		end := min(e.Offset+e.Length, to)
		parts = AppendPart(parts, e.Part.Slice(at-e.Offset, end-at))
		at = end
	}
	if at < to {
		parts = AppendPart(parts, Part{Length: to - at})
	}
	return parts, nil
}

// NextExtent returns the first offset, from on, at which a file has no hole;
// math.MaxInt64 when there is none.
func (v View) NextExtent(n filetree.NodeID, from int64) (int64, error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	next := int64(math.MaxInt64)
	err := v.db.query("SELECT off FROM extents WHERE node = ?1"+alive+"AND off > ?3 AND off + len > ?4 ORDER BY off LIMIT 1",
		func(r *sqlite.Stmt) bool { next = max(r.ColumnInt64(0), from); return false }, v.key(n), v.seq, from-MaxPart, from)
	return next, err
}

// Fragments counts the extents of [from, to).
func (v View) Fragments(n filetree.NodeID, from, to int64) (count int, err error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	err = v.db.query("SELECT count(*) FROM extents WHERE node = ?1"+alive+"AND off >= ?3 AND off < ?4",
		func(r *sqlite.Stmt) bool { count = int(r.ColumnInt64(0)); return false }, v.key(n), v.seq, from, to)
	return count, err
}

// AddNode records a node that is new in this snapshot.
func (v View) AddNode(n filetree.NodeID, a *filetree.Attr) error {
	b, err := encodeAttr(a)
	if err != nil {
		return fmt.Errorf("node %d: %w", n, err)
	}
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	return v.db.exec("INSERT OR REPLACE INTO nodes (node, born, died, attr) VALUES (?, ?, 0, ?)", v.key(n), v.seq, b)
}

// SetAttr replaces the attributes of a node.
func (v View) SetAttr(n filetree.NodeID, a *filetree.Attr) error {
	v.db.mu.Lock()
	err := v.db.exec("UPDATE nodes SET died = ?2 WHERE node = ?1 AND died = 0 AND born < ?2", v.key(n), v.seq)
	v.db.mu.Unlock()
	if err != nil {
		return err
	}
	return v.AddNode(n, a)
}

// AddEntry makes a name for a node. What had that name loses it.
func (v View) AddEntry(dir filetree.NodeID, name string, n filetree.NodeID) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	key := v.key(dir)
	err := v.db.exec("UPDATE entries SET died = ?2 WHERE dir = ?1 AND name = ?3 AND died = 0 AND born < ?2", key, v.seq, []byte(name))
	if err != nil {
		return err
	}
	// A name taken away and given back to the same node in one snapshot was never away.
	err = v.db.exec("UPDATE entries SET died = 0 WHERE dir = ?1 AND name = ?3 AND died = ?2 AND born < ?2 AND node = ?4",
		key, v.seq, []byte(name), v.key(n))
	if err != nil {
		return err
	}
	if v.db.conn.Changes() > 0 { // and what had it in between is no more
		return v.db.exec("DELETE FROM entries WHERE dir = ?1 AND name = ?3 AND born = ?2", key, v.seq, []byte(name))
	}
	return v.db.exec("INSERT OR REPLACE INTO entries (dir, name, born, died, node) VALUES (?1, ?3, ?2, 0, ?4)",
		key, v.seq, []byte(name), v.key(n))
}

// AddNewEntry is AddEntry where it is known that the name was never given before.
func (v View) AddNewEntry(dir filetree.NodeID, name string, n filetree.NodeID) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	return v.db.exec("INSERT INTO entries (dir, name, born, died, node) VALUES (?, ?, ?, 0, ?)", v.key(dir), []byte(name), v.seq, v.key(n))
}

// RemoveEntry takes a name from a node. Not to have it is no error.
func (v View) RemoveEntry(dir filetree.NodeID, name string, n filetree.NodeID) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	err := v.db.exec("DELETE FROM entries WHERE dir = ?1 AND name = ?3 AND born = ?2 AND node = ?4", v.key(dir), v.seq, []byte(name), v.key(n))
	if err != nil {
		return err
	}
	return v.db.exec("UPDATE entries SET died = ?2 WHERE dir = ?1 AND name = ?3 AND died = 0 AND node = ?4", v.key(dir), v.seq, []byte(name), v.key(n))
}

// EndNode ends a node with its names and its content.
func (v View) EndNode(n filetree.NodeID) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if err := v.db.index(); err != nil {
		return err
	}
	key := v.key(n)
	for _, q := range []string{
		"DELETE FROM nodes WHERE node = ?1 AND born = ?2",
		"UPDATE nodes SET died = ?2 WHERE node = ?1 AND died = 0",
		"DELETE FROM extents WHERE node = ?1 AND born = ?2",
		"UPDATE extents SET died = ?2 WHERE node = ?1 AND died = 0",
		"DELETE FROM entries WHERE node = ?1 AND born = ?2",
		"UPDATE entries SET died = ?2 WHERE node = ?1 AND died = 0",
	} {
		if err := v.db.exec(q, key, v.seq); err != nil {
			return err
		}
	}
	if err := v.dropRolling(n); err != nil {
		return err
	}
	return v.db.exec("DELETE FROM signed WHERE node = ?", key)
}

// SetParts makes the bytes of a file from off on be parts.
func (v View) SetParts(n filetree.NodeID, off int64, parts []Part) error {
	total := int64(0)
	for _, p := range parts {
		total += p.Length
	}
	if err := v.Punch(n, off, off+total); err != nil {
		return err
	}
	return v.AddParts(n, off, parts)
}

// AddParts is SetParts where it is known that nothing is there.
func (v View) AddParts(n filetree.NodeID, off int64, parts []Part) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	for _, p := range parts {
		if err := v.addExtent(n, Extent{off, p}); err != nil {
			return err
		}
		off += p.Length
	}
	return nil
}

func (v View) addExtent(n filetree.NodeID, e Extent) error {
	if e.Hole() {
		return nil
	}
	pack := int64(e.Pack)
	if e.Patch != nil {
		var err error
		if pack, err = v.db.addRecipe(e.Patch); err != nil {
			return err
		}
	}
	return v.db.exec("INSERT OR REPLACE INTO extents (node, off, born, died, len, pack, blob, boff) VALUES (?, ?, ?, 0, ?, ?, ?, ?)",
		v.key(n), e.Offset, v.seq, e.Length, pack, e.Blob, e.Part.Offset)
}

// addRecipe returns what stands for a patch in the column of packs. The caller holds mu.
func (db *DB) addRecipe(q *Patch) (int64, error) {
	err := db.exec("INSERT INTO recipes (patch) VALUES (?)", appendPatch(nil, q))
	return -db.conn.LastInsertRowID(), err
}

// Punch makes the bytes [from, to) of a file a hole.
func (v View) Punch(n filetree.NodeID, from, to int64) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if from >= to {
		return nil
	}
	// Of what is there only the first and the last may reach beyond; the others, and
	// there may be any number of them, are ended without looking. Extents that are alive
	// do not overlap, so that the last one to begin before a place is the only one that
	// may reach it: that is looked for from the place back, not over all that ever was.
	last, err := v.extentBefore(n, from-MaxPart, to)
	if err != nil || last.Offset+last.Length <= from {
		return err
	}
	first := last
	if first.Offset > from {
		if first, err = v.extentBefore(n, from-MaxPart, from+1); err != nil {
			return err
		}
	}
	start := from
	if first.Offset+first.Length > from {
		start = first.Offset
	}
	for _, q := range []string{
		"DELETE FROM extents WHERE node = ?1 AND born = ?2 AND off >= ?3 AND off < ?4 AND off + len > ?5",
		"UPDATE extents SET died = ?2 WHERE node = ?1 AND died = 0 AND off >= ?3 AND off < ?4 AND off + len > ?5",
	} {
		if err := v.db.exec(q, v.key(n), v.seq, start, to, from); err != nil {
			return err
		}
	}
	if err := v.dropSignatures(n, from, to); err != nil {
		return err
	}
	if start < from {
		if err := v.addExtent(n, Extent{first.Offset, first.Part.Slice(0, from-first.Offset)}); err != nil {
			return err
		}
	}
	if last.Offset+last.Length > to {
		return v.addExtent(n, Extent{to, last.Part.Slice(to-last.Offset, last.Offset+last.Length-to)})
	}
	return nil
}

// extentBefore returns the last extent of a file that begins in (after, before), one of no
// bytes at after if there is none. The caller holds mu.
func (v View) extentBefore(n filetree.NodeID, after, before int64) (Extent, error) {
	e := Extent{Offset: after}
	var err error
	qerr := v.db.query("SELECT off, len, pack, blob, boff FROM extents WHERE node = ?1"+alive+"AND off > ?3 AND off < ?4 ORDER BY off DESC LIMIT 1",
		func(r *sqlite.Stmt) bool {
			e, err = v.scanExtent(r, 0)
			return false
		}, v.key(n), v.seq, after, before)
	return e, errors.Join(qerr, err)
}

// Before returns the attributes a node had before this snapshot, and whether it was.
func (v View) Before(n filetree.NodeID) (a filetree.Attr, ok bool, err error) {
	a, err = v.db.At(v.source, v.seq-1).Attr(n)
	if errors.Is(err, filetree.ErrNotExist) {
		return a, false, nil
	}
	return a, err == nil, err
}

// EntryChanges returns the names a node got and lost in this snapshot.
func (v View) EntryChanges(n filetree.NodeID) (got, lost []Entry, err error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if err := v.db.index(); err != nil {
		return nil, nil, err
	}
	err = v.db.query("SELECT dir, name, born = ?2 FROM entries WHERE node = ?1 AND (born = ?2 AND died = 0 OR died = ?2 AND born < ?2)", func(r *sqlite.Stmt) bool {
		e := Entry{Dir: nodeOf(r.ColumnInt64(0)), Name: columnString(r, 1)}
		if r.ColumnInt64(2) != 0 {
			got = append(got, e)
		} else {
			lost = append(lost, e)
		}
		return true
	}, v.key(n), v.seq)
	return got, lost, err
}

// ReviveAttr drops the attributes a node got in this snapshot in favour of those it
// had before: they turned out to be the same.
func (v View) ReviveAttr(n filetree.NodeID) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if err := v.db.exec("DELETE FROM nodes WHERE node = ?1 AND born = ?2", v.key(n), v.seq); err != nil {
		return err
	}
	return v.db.exec("UPDATE nodes SET died = 0 WHERE node = ?1 AND died = ?2", v.key(n), v.seq)
}

// Nodes yields every node that is alive, in order of its number.
func (v View) Nodes() iter.Seq2[Child, error] {
	const batchSize = 512
	return func(yield func(Child, error) bool) {
		last := v.key(0)
		for {
			var batch []Child
			var err error
			v.db.mu.Lock()
			qerr := v.db.query("SELECT node, attr FROM nodes WHERE node > ?1"+alive+"AND node < ?3 ORDER BY node LIMIT 512",
				func(r *sqlite.Stmt) bool {
					c := Child{Node: nodeOf(r.ColumnInt64(0))}
					c.Attr, err = decodeAttr(column(r, 1))
					batch = append(batch, c)
					return err == nil
				}, last, v.seq, (v.source+1)<<nodeBits)
			v.db.mu.Unlock()
			if err = errors.Join(qerr, err); err != nil {
				yield(Child{}, err)
				return
			}
			for _, c := range batch {
				if !yield(c, nil) {
					return
				}
			}
			if len(batch) < batchSize {
				return
			}
			last = v.key(batch[len(batch)-1].Node)
		}
	}
}

// EndAll ends everything that is alive before this snapshot: it is to be told anew.
func (v View) EndAll() error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	for _, t := range []struct{ table, column string }{{"nodes", "node"}, {"extents", "node"}, {"entries", "dir"}} {
		err := v.db.exec("UPDATE "+t.table+" SET died = ?3 WHERE "+t.column+" >= ?1 AND "+t.column+" < ?2 AND died = 0",
			v.source<<nodeBits, (v.source+1)<<nodeBits, v.seq)
		if err != nil {
			return err
		}
	}
	for _, table := range []string{"signed", "rolling"} {
		if err := v.db.exec("DELETE FROM "+table+" WHERE node >= ? AND node < ?", v.source<<nodeBits, (v.source+1)<<nodeBits); err != nil {
			return err
		}
	}
	return nil
}

// ChangedSince returns the nodes that are not as they were at snapshot seq, or have
// names or content that are not. It reads all rows of the source.
func (v View) ChangedSince(seq uint64) ([]filetree.NodeID, error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	var all []filetree.NodeID
	err := v.db.query(`SELECT node FROM nodes WHERE node >= ?1 AND node < ?2 AND (born > ?3 OR died > ?3)
		UNION SELECT node FROM entries WHERE node >= ?1 AND node < ?2 AND (born > ?3 OR died > ?3)
		UNION SELECT node FROM extents WHERE node >= ?1 AND node < ?2 AND (born > ?3 OR died > ?3)`,
		func(r *sqlite.Stmt) bool {
			all = append(all, nodeOf(r.ColumnInt64(0)))
			return true
		}, v.source<<nodeBits, (v.source+1)<<nodeBits, seq)
	return all, err
}
