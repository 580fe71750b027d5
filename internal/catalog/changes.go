package catalog

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// A Change is a kind of difference.
type Change uint8

// The kinds of differences, in the order in which those of one path come.
const (
	Removed  Change = 1 // the path is no more
	Added    Change = 2 // the path was not there
	Modified Change = 3 // what is there is not as it was
	Renamed  Change = 4 // what is there had another name, or was in another directory
)

// A Difference is one between two snapshots.
type Difference struct {
	Change        Change
	Path          string          // at the later snapshot; of what was removed, at the earlier
	From          string          // of what was renamed: the path at the earlier snapshot
	Node          filetree.NodeID // that has Path
	Before, After filetree.Attr   // of what was added no Before, of what was removed no After
	What          Aspects         // of what was modified, and perhaps of what was renamed
	Bytes         int64           // of content that are not what they were, of the later size
	Link          bool            // of what was added or removed: the node has other names
}

// diffTables are the temporary tables of Since.
var diffTables = []struct{ name, columns string }{
	// Nodes of which something began or ended.
	{"diff_nodes", "(node INTEGER PRIMARY KEY)"},
	// Extents that are there at one time and not at the other: later says at which.
	{"diff_extents", "(node INTEGER, off INTEGER, later INTEGER, len INTEGER NOT NULL, pack INTEGER NOT NULL, blob INTEGER NOT NULL, boff INTEGER NOT NULL, PRIMARY KEY (node, later, off)) WITHOUT ROWID"},
	// What came of it.
	{"diff_rows", "(id INTEGER PRIMARY KEY, path BLOB NOT NULL, change INTEGER NOT NULL, old BLOB NOT NULL, node INTEGER NOT NULL, what INTEGER NOT NULL, bytes INTEGER NOT NULL, link INTEGER NOT NULL)"},
}

// diffQueries fill diff_nodes and diff_extents with what began or ended after snapshot ?2,
// up to ?3, of source ?1. Each reads one of changeIndexes.
var diffQueries = []string{
	`INSERT OR IGNORE INTO diff_nodes SELECT node FROM nodes
		WHERE node >> 40 = ?1 AND born <> 1 AND born > ?2 AND born <= ?3`,
	`INSERT OR IGNORE INTO diff_nodes SELECT node FROM entries
		WHERE dir >> 40 = ?1 AND born <> 1 AND born > ?2 AND born <= ?3 AND (died = 0 OR died > ?3)`,
	`INSERT OR IGNORE INTO diff_nodes SELECT node FROM entries
		WHERE dir >> 40 = ?1 AND died <> 0 AND died > ?2 AND died <= ?3 AND born <= ?2`,
	`INSERT OR IGNORE INTO diff_extents SELECT node, off, 1, len, pack, blob, boff FROM extents
		WHERE node >> 40 = ?1 AND born <> 1 AND born > ?2 AND born <= ?3 AND (died = 0 OR died > ?3)`,
	`INSERT OR IGNORE INTO diff_extents SELECT node, off, 0, len, pack, blob, boff FROM extents
		WHERE node >> 40 = ?1 AND died <> 0 AND died > ?2 AND died <= ?3 AND born <= ?2`,
}

// Since yields what differs from an earlier snapshot, from 1 on, by path in byte order.
//
// It is worked out from the rows that began or ended in between, so work is proportional
// to what changed. A directory that was renamed is one difference, whatever is in it. A
// path that was removed and added is modified, if a node of the same kind is there again.
// A node of several names that was modified is yielded once.
//
// What is found is kept in temporary tables, so that memory does not grow with it; a DB
// answers one such question at a time.
func (v View) Since(ctx context.Context, seq uint64) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		d := &sinceRun{differ: newDiffer(v.db.At(v.source, seq), v)}
		err := d.run(ctx, yield)
		if err != nil {
			yield(Difference{}, err)
		}
	}
}

// A sinceRun is one question of Since.
type sinceRun struct {
	*differ
	rows []planRow // to be written
}

var errStopped = errors.New("catalog: internal error: stopped")

func (d *sinceRun) run(ctx context.Context, yield func(Difference, error) bool) (err error) {
	if d.was.seq > d.is.seq {
		return fmt.Errorf("catalog: internal error: #%d is after #%d", d.was.seq, d.is.seq)
	}
	if err := d.begin(); err != nil {
		return fmt.Errorf("find what changed: %w", err)
	}
	defer func() {
		if dropErr := d.end(); err == nil {
			err = dropErr
		}
		if err == errStopped {
			err = nil
		}
	}()
	if err := d.compare(ctx); err != nil {
		return err
	}
	return d.yield(ctx, yield)
}

func (d *sinceRun) begin() error {
	db := d.is.db
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.index(); err != nil { // which is to stay
		return err
	}
	// All that follows is one transaction, which sees one state and locks once.
	if err := db.exec("SAVEPOINT since"); err != nil {
		return err
	}
	var err error
	for _, t := range diffTables {
		if err == nil {
			err = db.exec("CREATE TEMP TABLE " + t.name + " " + t.columns)
		}
	}
	for _, q := range diffQueries {
		if err == nil {
			err = db.exec(q, d.is.source, d.was.seq, d.is.seq)
		}
	}
	if err == nil {
		err = db.exec("INSERT OR IGNORE INTO diff_nodes SELECT node FROM diff_extents")
	}
	if err != nil {
		return errors.Join(err, d.drop())
	}
	return nil
}

func (d *sinceRun) end() error {
	db := d.is.db
	db.mu.Lock()
	defer db.mu.Unlock()
	return d.drop()
}

// drop ends the transaction, of which nothing is to stay. The caller holds mu.
func (d *sinceRun) drop() error {
	return errors.Join(d.is.db.exec("ROLLBACK TO since"), d.is.db.exec("RELEASE since"))
}

// compare compares each node that may be another, and notes what differs.
func (d *sinceRun) compare(ctx context.Context) error {
	type candidate struct {
		node          filetree.NodeID
		before, after *filetree.Attr
		content       bool
	}
	db := d.is.db
	for last := int64(-1); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var batch []candidate
		var bad error
		db.mu.Lock()
		err := db.query(`SELECT d.node, a.attr, b.attr, EXISTS (SELECT 1 FROM diff_extents e WHERE e.node = d.node) FROM diff_nodes d
			LEFT JOIN nodes a ON a.node = d.node AND a.born <= ?2 AND (a.died = 0 OR a.died > ?2)
			LEFT JOIN nodes b ON b.node = d.node AND b.born <= ?3 AND (b.died = 0 OR b.died > ?3)
			WHERE d.node > ?1 ORDER BY d.node`+limitBatch, func(r *sqlite.Stmt) bool {
			c := candidate{node: nodeOf(r.ColumnInt64(0)), content: r.ColumnInt64(3) != 0}
			var err error
			c.before, err = attrOrNone(r, 1)
			bad = errors.Join(bad, err)
			c.after, err = attrOrNone(r, 2)
			bad = errors.Join(bad, err)
			last = r.ColumnInt64(0)
			batch = append(batch, c)
			return bad == nil
		}, last, d.was.seq, d.is.seq)
		db.mu.Unlock()
		if err = errors.Join(err, bad); err != nil {
			return err
		}
		for _, c := range batch {
			var content func() (was, is extentList)
			if c.content {
				content = func() (was, is extentList) { return d.changed(c.node, 0), d.changed(c.node, 1) }
			}
			x, err := d.node(c.node, c.before, c.after, content)
			if err != nil {
				return err
			}
			d.note(c.node, &x)
			if len(d.rows) >= planBatch {
				if err := d.flush(); err != nil {
					return err
				}
			}
		}
		if len(batch) < planBatch {
			return d.flush()
		}
	}
}

// changed returns the extents of a file that are not at both times.
func (d *sinceRun) changed(n filetree.NodeID, later int) extentList {
	return d.is.db.extentRows(`SELECT off, len, pack, blob, boff FROM diff_extents
		WHERE node = ?1 AND later = ?2 AND off > ?3 ORDER BY off`+limitBatch, d.is.key(n), later)
}

// note adds the differences that a node makes to diff_rows.
func (d *sinceRun) note(n filetree.NodeID, x *nodeDiff) {
	add := func(c Change, path, from string, what Aspects, bytes int64, link bool) {
		l := 0
		if link {
			l = 1
		}
		d.rows = append(d.rows, planRow{"INSERT INTO diff_rows (path, change, old, node, what, bytes, link) VALUES (?, ?, ?, ?, ?, ?, ?)",
			[]any{[]byte(path), int64(c), []byte(from), d.is.key(n), int64(what), bytes, l}})
	}
	what, bytes := x.what, x.bytes
	moves := x.moves()
	for i := range moves {
		add(Renamed, x.got[i], x.lost[i], what, bytes, false)
		what, bytes = 0, 0
	}
	for _, path := range x.lost[moves:] {
		add(Removed, path, "", 0, 0, len(x.new) > 0)
	}
	for _, path := range x.got[moves:] {
		add(Added, path, "", 0, 0, len(x.old) > 0)
	}
	if what != 0 {
		add(Modified, x.kept[0], "", what, bytes, false)
	}
}

func (d *sinceRun) flush() error {
	db := d.is.db
	db.mu.Lock()
	defer db.mu.Unlock()
	err := db.atomically(func() error {
		for _, r := range d.rows {
			if err := db.exec(r.query, r.args...); err != nil {
				return err
			}
		}
		return nil
	})
	clear(d.rows)
	d.rows = d.rows[:0]
	return err
}

// yield yields what was noted, by path.
func (d *sinceRun) yield(ctx context.Context, yield func(Difference, error) bool) error {
	db := d.is.db
	db.mu.Lock()
	err := db.exec("CREATE INDEX temp.diff_path ON diff_rows (path, change)")
	db.mu.Unlock()
	if err != nil {
		return err
	}
	give := func(x Difference) error {
		if !yield(x, nil) {
			return errStopped
		}
		return nil
	}
	var removed *Difference // not yielded yet: the path may have been taken again
	path, id := []byte{}, int64(0)
	change := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var batch []Difference
		db.mu.Lock()
		var bad error
		err := db.query(`SELECT d.id, d.path, d.change, d.old, d.node, d.what, d.bytes, d.link, a.attr, b.attr FROM diff_rows d
			LEFT JOIN nodes a ON a.node = d.node AND a.born <= ?4 AND (a.died = 0 OR a.died > ?4)
			LEFT JOIN nodes b ON b.node = d.node AND b.born <= ?5 AND (b.died = 0 OR b.died > ?5)
			WHERE (d.path, d.change, d.id) > (?1, ?2, ?3) ORDER BY d.path, d.change, d.id`+limitBatch, func(r *sqlite.Stmt) bool {
			x := Difference{Path: columnString(r, 1), Change: Change(r.ColumnInt64(2)), From: columnString(r, 3), Node: nodeOf(r.ColumnInt64(4)),
				What: Aspects(r.ColumnInt64(5)), Bytes: r.ColumnInt64(6), Link: r.ColumnInt64(7) != 0}
			id, path, change = r.ColumnInt64(0), []byte(x.Path), r.ColumnInt64(2)
			if x.Change != Added {
				x.Before, bad = attrColumn(r, 8)
			}
			if x.Change != Removed && bad == nil {
				x.After, bad = attrColumn(r, 9)
			}
			batch = append(batch, x)
			return bad == nil
		}, path, change, id, d.was.seq, d.is.seq)
		db.mu.Unlock()
		if err = errors.Join(err, bad); err != nil {
			return err
		}
		for _, x := range batch {
			if removed != nil {
				r := *removed
				removed = nil
				if x.Change == Added && x.Path == r.Path && x.After.Kind == r.Before.Kind {
					if x, err = d.replaced(r, x); err != nil {
						return err
					}
					if x.What == Replaced { // by its like
						continue
					}
				} else if err := give(r); err != nil {
					return err
				}
			}
			if x.Change == Removed {
				removed = &x
				continue
			}
			if err := give(x); err != nil {
				return err
			}
		}
		if len(batch) < planBatch {
			break
		}
	}
	if removed != nil {
		return give(*removed)
	}
	return nil
}

// replaced makes one difference of two: of a path that one node lost and another got.
func (d *sinceRun) replaced(r, x Difference) (Difference, error) {
	m := Difference{Change: Modified, Path: x.Path, Node: x.Node, Before: r.Before, After: x.After, What: compareAttr(&r.Before, &x.After) | Replaced}
	if x.After.Kind != filetree.File {
		return m, nil
	}
	later, all, err := d.is.db.differing(d.was.allExtents(r.Node), d.is.allExtents(x.Node), r.Before.Size, x.After.Size)
	if m.Bytes = later; all > 0 {
		m.What |= Content
	}
	return m, err
}
