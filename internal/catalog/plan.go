package catalog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// A Plan is what a restore has to do, in temporary tables, so that memory does not
// grow with the tree:
//
//	plan_stack   directories that wait for their turn
//	plan_dirs    directories that were made, each after the one it is in
//	plan_files   everything else, once for each node
//	plan_links   further names of nodes in plan_files
//	plan_whole   files that are one slice of a blob, by pack and blob
//	plan_pieced  files that are anything else, by the first place they are at
//	plan_pieces  what those are made of, for each by pack and blob
//
// Directories and files have numbers of the plan's own, from 1 on: a node's number may
// be anything, and a directory may be met twice in a history that lies.
//
// A DB has one Plan at a time. Between Sort and the next call that adds or finishes
// something, the other methods may be called concurrently.
type Plan struct {
	v     View
	dirs  int64     // the last that was numbered, as are those that follow
	files int64     //
	links int64     //
	rows  []planRow // to be written

	stack   []PlanDir // the upper end of it; the rest is in plan_stack
	spilled int64     // how many are there

	sorted int64 // the last file that Sort has seen
	pinned int64 // the last file that Pin has seen
}

type planRow struct {
	query string
	args  []any
}

// planTables are the temporary tables and their columns.
var planTables = []struct{ name, columns string }{
	{"plan_stack", "(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL, depth INTEGER NOT NULL)"},
	{"plan_dirs", "(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL, pinned INTEGER NOT NULL)"},
	{"plan_files", "(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, dir INTEGER NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL, failed INTEGER NOT NULL)"},
	{"plan_links", "(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, dir INTEGER NOT NULL, name BLOB NOT NULL)"},
	{"plan_whole", "(pack INTEGER, blob INTEGER, boff INTEGER, file INTEGER, PRIMARY KEY (pack, blob, boff, file)) WITHOUT ROWID"},
	{"plan_pieced", "(pack INTEGER, blob INTEGER, file INTEGER, PRIMARY KEY (pack, blob, file)) WITHOUT ROWID"},
	{"plan_pieces", "(file INTEGER, pack INTEGER, blob INTEGER, boff INTEGER, off INTEGER, len INTEGER NOT NULL, PRIMARY KEY (file, pack, blob, boff, off)) WITHOUT ROWID"},
}

// planBatch is how many rows are read or written at once.
const planBatch = 512

// NewPlan returns an empty plan for a view. The caller closes it.
func (db *DB) NewPlan(v View) (*Plan, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	p := &Plan{v: v}
	if v.db != db {
		return nil, errors.New("catalog: plan for a view of another catalog")
	}
	var create []string
	for _, t := range planTables {
		create = append(create, "CREATE TEMP TABLE "+t.name+" "+t.columns)
	}
	if err := db.all(create); err != nil {
		return nil, fmt.Errorf("plan of a restore: %w", err)
	}
	return p, nil
}

// Close drops the plan.
func (p *Plan) Close() error {
	p.v.db.mu.Lock()
	defer p.v.db.mu.Unlock()
	var drop []string
	for _, t := range planTables {
		drop = append(drop, "DROP TABLE temp."+t.name)
	}
	return p.v.db.all(drop)
}

// all runs statements that are all done or not at all. The caller holds mu.
func (db *DB) all(queries []string) error {
	return db.atomically(func() error {
		for _, q := range queries {
			if err := db.exec(q); err != nil {
				return err
			}
		}
		return nil
	})
}

// atomically runs do within a savepoint: a transaction of its own unless there is one.
// The caller holds mu.
func (db *DB) atomically(do func() error) error {
	if err := db.exec("SAVEPOINT plan"); err != nil {
		return err
	}
	err := do()
	if err != nil {
		err = errors.Join(err, db.exec("ROLLBACK TO plan"))
	}
	return errors.Join(err, db.exec("RELEASE plan"))
}

func (p *Plan) add(query string, args ...any) error {
	p.rows = append(p.rows, planRow{query, args})
	if len(p.rows) < planBatch {
		return nil
	}
	return p.flush()
}

func (p *Plan) flush() error {
	if len(p.rows) == 0 {
		return nil
	}
	p.v.db.mu.Lock()
	defer p.v.db.mu.Unlock()
	err := p.v.db.atomically(func() error {
		for _, r := range p.rows {
			if err := p.v.db.exec(r.query, r.args...); err != nil {
				return err
			}
		}
		return nil
	})
	clear(p.rows)
	p.rows = p.rows[:0]
	return err
}

// A PlanDir is a directory in a plan. The first one has no parent and no name.
type PlanDir struct {
	ID     int64
	Node   filetree.NodeID
	Parent int64
	Name   string
	Depth  int
}

// PushDir adds a directory to those that wait. Its number is higher than that of the
// one it is in.
func (p *Plan) PushDir(parent PlanDir, name string, n filetree.NodeID) error {
	p.dirs++
	d := PlanDir{ID: p.dirs, Node: n, Parent: parent.ID, Name: name}
	if parent.ID != 0 {
		d.Depth = parent.Depth + 1
	}
	p.stack = append(p.stack, d)
	if len(p.stack) < 2*planBatch {
		return nil
	}
	for _, d := range p.stack[:planBatch] {
		err := p.add("INSERT INTO plan_stack (id, node, parent, name, depth) VALUES (?, ?, ?, ?, ?)",
			d.ID, p.v.key(d.Node), d.Parent, []byte(d.Name), d.Depth)
		if err != nil {
			return err
		}
	}
	p.stack = append(p.stack[:0], p.stack[planBatch:]...)
	p.spilled += planBatch
	return nil
}

// PopDir takes the directory that was pushed last, so that a tree is walked in depth.
// There is none if its number is 0.
func (p *Plan) PopDir() (PlanDir, error) {
	if len(p.stack) == 0 && p.spilled > 0 {
		if err := p.flush(); err != nil {
			return PlanDir{}, err
		}
		p.v.db.mu.Lock()
		err := p.v.db.query("SELECT id, node, parent, name, depth FROM plan_stack ORDER BY id DESC LIMIT ?", func(r *sqlite.Stmt) bool {
			p.stack = append(p.stack, PlanDir{r.ColumnInt64(0), nodeOf(r.ColumnInt64(1)), r.ColumnInt64(2), columnString(r, 3), int(r.ColumnInt64(4))})
			return true
		}, planBatch)
		if err == nil && len(p.stack) == 0 {
			err = errors.New("catalog: internal error: plan without its directories")
		}
		if err == nil {
			slices.Reverse(p.stack)
			err = p.v.db.exec("DELETE FROM plan_stack WHERE id >= ?", p.stack[0].ID)
		}
		p.v.db.mu.Unlock()
		if err != nil {
			return PlanDir{}, err
		}
		p.spilled -= int64(len(p.stack))
	}
	n := len(p.stack)
	if n == 0 {
		return PlanDir{}, nil
	}
	d := p.stack[n-1]
	p.stack = p.stack[:n-1]
	return d, nil
}

// AddDir records that a directory was made.
func (p *Plan) AddDir(d PlanDir) error {
	return p.add("INSERT INTO plan_dirs (id, node, parent, name, pinned) VALUES (?, ?, ?, ?, 0)",
		d.ID, p.v.key(d.Node), d.Parent, []byte(d.Name))
}

// AddFile adds what is no directory, under its first name. size is 0 when nothing
// remains to be done but links to it. It returns the file's number.
func (p *Plan) AddFile(dir int64, name string, n filetree.NodeID, size int64) (int64, error) {
	p.files++
	return p.files, p.add("INSERT INTO plan_files (id, node, dir, name, size, failed) VALUES (?, ?, ?, ?, ?, 0)",
		p.files, p.v.key(n), dir, []byte(name), size)
}

// AddLink adds a further name of a node.
func (p *Plan) AddLink(dir int64, name string, n filetree.NodeID) error {
	p.links++
	return p.add("INSERT INTO plan_links (id, node, dir, name) VALUES (?, ?, ?, ?)", p.links, p.v.key(n), dir, []byte(name))
}

// Pin keeps FinishDirs from the directories that may still be wanted for hard links,
// and from those that they are in.
func (p *Plan) Pin(ctx context.Context) error {
	if err := p.flush(); err != nil {
		return err
	}
	p.v.db.mu.Lock()
	err := p.v.db.index()
	p.v.db.mu.Unlock()
	if err != nil {
		return err
	}
	const step = 20 * planBatch
	for ; p.pinned < p.files; p.pinned = min(p.pinned+step, p.files) {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.v.db.mu.Lock()
		err := p.v.db.exec(`WITH RECURSIVE up (id) AS (
				SELECT f.dir FROM plan_files f WHERE f.id > ?1 AND f.id <= ?3
				AND (SELECT count(*) FROM (SELECT 1 FROM entries WHERE node = f.node`+alive+`LIMIT 2)) > 1
			UNION SELECT d.parent FROM up JOIN plan_dirs d ON d.id = up.id)
			UPDATE plan_dirs SET pinned = 1 WHERE id IN (SELECT id FROM up)`, p.pinned, p.v.seq, p.pinned+step)
		p.v.db.mu.Unlock()
		if err != nil {
			return err
		}
	}
	p.v.db.mu.Lock()
	defer p.v.db.mu.Unlock()
	return p.v.db.exec(`WITH RECURSIVE up (id) AS (SELECT dir FROM plan_links UNION SELECT d.parent FROM up JOIN plan_dirs d ON d.id = up.id)
		UPDATE plan_dirs SET pinned = 1 WHERE id IN (SELECT id FROM up)`)
}

// A PlanAttr is a directory and its attributes, or why they are not known.
type PlanAttr struct {
	ID   int64
	Attr filetree.Attr
	Err  error
}

// FinishDirs yields directories with their attributes, each before the one it is in,
// and forgets them; with all all that are left. Else it leaves out those in which
// something still waits for its turn, and those that are pinned.
func (p *Plan) FinishDirs(all bool) iter.Seq2[PlanAttr, error] {
	return func(yield func(PlanAttr, error) bool) {
		busy, err := p.busy()
		if err == nil {
			err = p.flush()
		}
		if err != nil {
			yield(PlanAttr{}, err)
			return
		}
		pinned := 0
		if all {
			busy, pinned = nil, 1
		}
		for last := p.dirs + 1; ; {
			var batch []PlanAttr
			p.v.db.mu.Lock()
			err := p.v.db.query(`SELECT d.id, n.attr FROM plan_dirs d
				LEFT JOIN nodes n ON n.node = d.node AND n.born <= ?2 AND (n.died = 0 OR n.died > ?2)
				WHERE d.id < ?1 AND d.pinned <= ?3 ORDER BY d.id DESC LIMIT ?4`, func(r *sqlite.Stmt) bool {
				a := PlanAttr{ID: r.ColumnInt64(0)}
				a.Attr, a.Err = attrColumn(r, 1)
				batch = append(batch, a)
				return true
			}, last, p.v.seq, pinned, planBatch)
			p.v.db.mu.Unlock()
			for _, d := range batch {
				if err != nil {
					break
				}
				if d.ID == last { // of a node that is there twice
					continue
				}
				last = d.ID
				if busy[d.ID] {
					continue
				}
				if !yield(d, nil) {
					return
				}
				err = p.add("DELETE FROM plan_dirs WHERE id = ?", d.ID)
			}
			if err == nil && len(batch) < planBatch {
				err = p.flush()
				batch = nil
			}
			if err != nil {
				yield(PlanAttr{}, err)
			}
			if err != nil || len(batch) == 0 {
				return
			}
		}
	}
}

// busy returns the directories that those which wait are in: as the tree is walked in
// depth, they are the one whose turn is next is in, and what that is in, and so on.
func (p *Plan) busy() (map[int64]bool, error) {
	d, err := p.PopDir()
	if err != nil || d.ID == 0 {
		return nil, err
	}
	p.stack = append(p.stack, d)
	if err := p.flush(); err != nil {
		return nil, err
	}
	p.v.db.mu.Lock()
	defer p.v.db.mu.Unlock()
	busy := map[int64]bool{}
	for at := d.Parent; at != 0 && !busy[at] && err == nil; {
		busy[at] = true
		parent := int64(0)
		err = p.v.db.query("SELECT parent FROM plan_dirs WHERE id = ?", func(r *sqlite.Stmt) bool {
			parent = r.ColumnInt64(0)
			return false
		}, at)
		at = parent
	}
	return busy, err
}

func attrColumn(r *sqlite.Stmt, col int) (filetree.Attr, error) {
	if r.ColumnType(col) == sqlite.TypeNull {
		return filetree.Attr{}, fmt.Errorf("the history has a name but no node for it: %w", filetree.ErrNotExist)
	}
	return decodeAttr(column(r, col))
}

// Path returns the names from the first directory down to dir.
func (p *Plan) Path(dir int64) ([]string, error) {
	if err := p.flush(); err != nil {
		return nil, err
	}
	p.v.db.mu.Lock()
	defer p.v.db.mu.Unlock()
	var path []string
	// A directory's parent has a lower number, so this ends.
	for dir > 1 {
		parent := int64(0)
		err := p.v.db.query("SELECT parent, name FROM plan_dirs WHERE id = ?", func(r *sqlite.Stmt) bool {
			parent = r.ColumnInt64(0)
			path = append(path, columnString(r, 1))
			return false
		}, dir)
		if err != nil {
			return nil, err
		}
		dir = parent
	}
	slices.Reverse(path)
	return path, nil
}

// A Listed is an entry of a directory and what it leads to, or why that is not known.
type Listed struct {
	Child
	Err error
}

// List is Children for a history that is not believed: it yields also the entries that
// lead nowhere, and goes on after them. A name that is there twice is yielded twice.
func (v View) List(dir filetree.NodeID) iter.Seq2[Listed, error] {
	return func(yield func(Listed, error) bool) {
		name, born := []byte{}, int64(-1) // the last that was yielded
		for {
			var batch []Listed
			v.db.mu.Lock()
			err := v.db.query(`SELECT e.name, e.born, e.node, n.attr FROM entries e
				LEFT JOIN nodes n ON n.node = e.node AND n.born <= ?2 AND (n.died = 0 OR n.died > ?2)
				WHERE e.dir = ?1 AND e.born <= ?2 AND (e.died = 0 OR e.died > ?2)
				AND (e.name, e.born) > (?3, ?4) ORDER BY e.name, e.born LIMIT ?5`, func(r *sqlite.Stmt) bool {
				c := Listed{Child: Child{Name: columnString(r, 0), Node: nodeOf(r.ColumnInt64(2))}}
				c.Attr, c.Err = attrColumn(r, 3)
				born = r.ColumnInt64(1)
				batch = append(batch, c)
				return true
			}, v.key(dir), v.seq, name, born, planBatch)
			v.db.mu.Unlock()
			if err != nil {
				yield(Listed{}, err)
				return
			}
			for _, c := range batch {
				if !yield(c, nil) {
					return
				}
			}
			if len(batch) < planBatch {
				return
			}
			name = []byte(batch[len(batch)-1].Name)
		}
	}
}

// A PlanFile is a file in a plan.
type PlanFile struct {
	ID   int64
	Dir  int64
	Name string
	Node filetree.NodeID
	Size int64 // as it was when the file was added
}

// Sort looks up the content of the files that were added with a size since it was called
// last, whose content it forgets, and returns how many bytes it is. A file whose extents cannot be (they overlap, or are beyond its
// end) is given to bad and left out.
func (p *Plan) Sort(ctx context.Context, bad func(PlanFile, error) error) (total int64, err error) {
	if err := p.flush(); err != nil {
		return 0, err
	}
	p.v.db.mu.Lock()
	err = p.v.db.all([]string{"DELETE FROM plan_whole", "DELETE FROM plan_pieced", "DELETE FROM plan_pieces"})
	p.v.db.mu.Unlock()
	if err != nil {
		return 0, err
	}
	type file struct {
		id, node, size, count int64
		Extent                // if count is 1
	}
	sum := 0.0 // as whole numbers they may overflow
	last := p.sorted
	p.sorted = p.files
	for last < p.files {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		var batch []file
		p.v.db.mu.Lock()
		err := p.v.db.query(`SELECT f.id, f.node, f.size, count(x.off), max(x.off), max(x.len), max(x.pack), max(x.blob), max(x.boff), total(x.len)
			FROM plan_files f LEFT JOIN extents x ON x.node = f.node AND x.born <= ?2 AND (x.died = 0 OR x.died > ?2)
			WHERE f.id > ?1 AND f.size > 0 GROUP BY f.id ORDER BY f.id LIMIT ?3`, func(r *sqlite.Stmt) bool {
			f := file{id: r.ColumnInt64(0), node: r.ColumnInt64(1), size: r.ColumnInt64(2), count: r.ColumnInt64(3)}
			f.Offset, f.Length, f.Pack = r.ColumnInt64(4), r.ColumnInt64(5), PackID(r.ColumnInt64(6))
			f.Blob, f.Part.Offset = uint32(r.ColumnInt64(7)), uint32(r.ColumnInt64(8))
			sum += min(r.ColumnFloat(9), float64(f.size))
			batch = append(batch, f)
			return true
		}, last, p.v.seq, planBatch)
		p.v.db.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if len(batch) == 0 {
			break
		}
		for _, f := range batch {
			last = f.id
			if f.count == 1 && f.Offset == 0 && f.Length == f.size && f.Pack > 0 && f.Check() == nil {
				err = p.add("INSERT INTO plan_whole (pack, blob, boff, file) VALUES (?, ?, ?, ?)", f.Pack, f.Blob, f.Part.Offset, f.id)
			} else {
				err = p.sortPieces(ctx, f.id, f.node, f.size, bad)
			}
			if err != nil {
				return 0, err
			}
		}
	}
	return int64(min(sum, 1<<62)), p.flush()
}

var errExtents = errors.New("the history's extents of it overlap or are beyond its end")

// sortPieces adds the extents of a file that is not one slice.
func (p *Plan) sortPieces(ctx context.Context, id, node, size int64, bad func(PlanFile, error) error) error {
	first := Extent{} // by place, not by offset
	end := int64(0)
	for last := int64(-1 << 62); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var batch []Extent // Pack may be negative: a recipe
		p.v.db.mu.Lock()
		err := p.v.db.query("SELECT off, len, pack, blob, boff FROM extents WHERE node = ?1"+alive+"AND off > ?3 ORDER BY off LIMIT ?4",
			func(r *sqlite.Stmt) bool {
				batch = append(batch, rawExtent(r, 0))
				return true
			}, node, p.v.seq, last, planBatch)
		p.v.db.mu.Unlock()
		if err != nil {
			return err
		}
		for _, e := range batch {
			// The recipe of a patch is looked at when it is wanted.
			if e.Offset < end || e.Length <= 0 || e.Length > MaxPart || e.Offset > size-e.Length || e.Pack == 0 || e.Pack > 0 && e.Check() != nil {
				if err := p.flush(); err != nil {
					return err
				}
				return p.drop(id, bad)
			}
			end = e.Offset + e.Length
			if first.Pack == 0 || e.Pack < first.Pack || e.Pack == first.Pack && e.Blob < first.Blob {
				first = e
			}
			last = e.Offset
			if err := p.add("INSERT INTO plan_pieces (file, pack, blob, boff, off, len) VALUES (?, ?, ?, ?, ?, ?)",
				id, e.Pack, e.Blob, e.Part.Offset, e.Offset, e.Length); err != nil {
				return err
			}
		}
		if len(batch) < planBatch {
			break
		}
	}
	return p.add("INSERT INTO plan_pieced (pack, blob, file) VALUES (?, ?, ?)", first.Pack, first.Blob, id)
}

func rawExtent(r *sqlite.Stmt, col int) Extent {
	return Extent{Offset: r.ColumnInt64(col), Part: Part{Length: r.ColumnInt64(col + 1), Pack: PackID(r.ColumnInt64(col + 2)),
		Blob: uint32(r.ColumnInt64(col + 3)), Offset: uint32(r.ColumnInt64(col + 4))}}
}

// drop gives a file to bad and forgets its pieces.
func (p *Plan) drop(id int64, bad func(PlanFile, error) error) error {
	f := PlanFile{ID: id}
	p.v.db.mu.Lock()
	err := p.v.db.exec("DELETE FROM plan_pieces WHERE file = ?", id)
	if err == nil {
		err = p.v.db.query("SELECT dir, name, node, size FROM plan_files WHERE id = ?", func(r *sqlite.Stmt) bool {
			f.Dir, f.Name, f.Node, f.Size = r.ColumnInt64(0), columnString(r, 1), nodeOf(r.ColumnInt64(2)), r.ColumnInt64(3)
			return false
		}, id)
	}
	p.v.db.mu.Unlock()
	if err != nil {
		return err
	}
	return bad(f, errExtents)
}

// Packs yields the packs that whole files are in.
func (p *Plan) Packs() iter.Seq2[PackID, error] {
	return func(yield func(PackID, error) bool) {
		for last := PackID(0); ; {
			next := PackID(0)
			p.v.db.mu.Lock()
			err := p.v.db.query("SELECT pack FROM plan_whole WHERE pack > ? ORDER BY pack LIMIT 1", func(r *sqlite.Stmt) bool {
				next = PackID(r.ColumnInt64(0))
				return false
			}, last)
			p.v.db.mu.Unlock()
			if err != nil || next == 0 {
				if err != nil {
					yield(0, err)
				}
				return
			}
			if !yield(next, nil) {
				return
			}
			last = next
		}
	}
}

// Blobs returns the numbers of the blobs of a pack that whole files are in, in order.
func (p *Plan) Blobs(pack PackID) (blobs []uint32, err error) {
	p.v.db.mu.Lock()
	defer p.v.db.mu.Unlock()
	err = p.v.db.query("SELECT DISTINCT blob FROM plan_whole WHERE pack = ? ORDER BY blob", func(r *sqlite.Stmt) bool {
		blobs = append(blobs, uint32(r.ColumnInt64(0)))
		return true
	}, pack)
	return blobs, err
}

// A Whole is a file that is one slice of a blob, with its attributes, or why they are
// not known.
type Whole struct {
	PlanFile
	Part Part
	Attr filetree.Attr
	Err  error
}

// Whole yields the files that are a slice of one blob, in its order.
func (p *Plan) Whole(pack PackID, blob uint32) iter.Seq2[Whole, error] {
	return func(yield func(Whole, error) bool) {
		boff, file := int64(-1), int64(0) // the last that was yielded
		for {
			var batch []Whole
			p.v.db.mu.Lock()
			err := p.v.db.query(`SELECT w.boff, f.id, f.dir, f.name, f.node, f.size, n.attr FROM plan_whole w JOIN plan_files f ON f.id = w.file
				LEFT JOIN nodes n ON n.node = f.node AND n.born <= ?5 AND (n.died = 0 OR n.died > ?5)
				WHERE w.pack = ?1 AND w.blob = ?2 AND (w.boff, w.file) > (?3, ?4) ORDER BY w.boff, w.file LIMIT ?6`, func(r *sqlite.Stmt) bool {
				w := Whole{PlanFile: planFile(r, 1), Part: Part{Pack: pack, Blob: blob, Offset: uint32(r.ColumnInt64(0))}}
				w.Part.Length = w.Size
				w.Attr, w.Err = attrColumn(r, 6)
				batch = append(batch, w)
				return true
			}, pack, blob, boff, file, p.v.seq, planBatch)
			p.v.db.mu.Unlock()
			if err != nil {
				yield(Whole{}, err)
				return
			}
			for _, w := range batch {
				if w.ID != file && !yield(w, nil) {
					return
				}
				boff, file = int64(w.Part.Offset), w.ID
			}
			if len(batch) < planBatch {
				return
			}
		}
	}
}

func planFile(r *sqlite.Stmt, col int) PlanFile {
	return PlanFile{r.ColumnInt64(col), r.ColumnInt64(col + 1), columnString(r, col+2), nodeOf(r.ColumnInt64(col + 3)), r.ColumnInt64(col + 4)}
}

// Pieced yields the files that are not one slice, neighbours in the store one after
// the other.
func (p *Plan) Pieced() iter.Seq2[PlanFile, error] {
	return func(yield func(PlanFile, error) bool) {
		pack, blob, file := int64(-1<<63), int64(0), int64(0) // the last that was yielded
		for {
			var batch []PlanFile
			p.v.db.mu.Lock()
			err := p.v.db.query(`SELECT f.id, f.dir, f.name, f.node, f.size, w.pack, w.blob FROM plan_pieced w JOIN plan_files f ON f.id = w.file
				WHERE (w.pack, w.blob, w.file) > (?, ?, ?) ORDER BY w.pack, w.blob, w.file LIMIT ?`, func(r *sqlite.Stmt) bool {
				f := planFile(r, 0)
				batch = append(batch, f)
				pack, blob, file = r.ColumnInt64(5), r.ColumnInt64(6), f.ID
				return true
			}, pack, blob, file, planBatch)
			p.v.db.mu.Unlock()
			if err != nil {
				yield(PlanFile{}, err)
				return
			}
			for _, f := range batch {
				if !yield(f, nil) {
					return
				}
			}
			if len(batch) < planBatch {
				return
			}
		}
	}
}

// Pieces yields the extents of a file by pack and blob; those that are patches come
// first.
func (p *Plan) Pieces(file int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		last := []any{file, int64(-1 << 63), int64(0), int64(0), int64(0)}
		for {
			var batch []Extent
			var bad error
			p.v.db.mu.Lock()
			err := p.v.db.query(`SELECT off, len, pack, blob, boff FROM plan_pieces
				WHERE file = ?1 AND (pack, blob, boff, off) > (?2, ?3, ?4, ?5) ORDER BY pack, blob, boff, off LIMIT ?6`, func(r *sqlite.Stmt) bool {
				raw := rawExtent(r, 0)
				last = []any{file, raw.Pack, raw.Blob, raw.Part.Offset, raw.Offset}
				var e Extent
				if e, bad = p.v.scanExtent(r, 0); bad == nil {
					batch = append(batch, e)
				}
				return bad == nil
			}, append(last, planBatch)...)
			p.v.db.mu.Unlock()
			if err == nil {
				err = bad
			}
			for _, e := range batch {
				if !yield(e, nil) {
					return
				}
			}
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if len(batch) < planBatch {
				return
			}
		}
	}
}

// Fail records that a file could not be restored, so that nothing can link to it.
func (p *Plan) Fail(file int64) error {
	if err := p.flush(); err != nil {
		return err
	}
	p.v.db.mu.Lock()
	defer p.v.db.mu.Unlock()
	return p.v.db.exec("UPDATE plan_files SET failed = 1 WHERE id = ?", file)
}

// A PlanLink is a further name of a file.
type PlanLink struct {
	Dir    int64
	Name   string
	First  PlanFile
	Failed bool // the file could not be restored
}

// Links yields the further names, in the order they were added. It is called once, at
// the end.
func (p *Plan) Links() iter.Seq2[PlanLink, error] {
	return func(yield func(PlanLink, error) bool) {
		err := p.flush()
		if err == nil && p.links > 0 {
			p.v.db.mu.Lock()
			err = p.v.db.exec("CREATE INDEX temp.plan_files_node ON plan_files (node)")
			p.v.db.mu.Unlock()
		}
		if err != nil {
			yield(PlanLink{}, err)
			return
		}
		if p.links == 0 {
			return
		}
		for last := int64(0); ; {
			var batch []PlanLink
			p.v.db.mu.Lock()
			err := p.v.db.query(`SELECT l.id, l.dir, l.name, f.id, f.dir, f.name, f.node, f.size, f.failed
				FROM plan_links l JOIN plan_files f ON f.node = l.node WHERE l.id > ? ORDER BY l.id LIMIT ?`, func(r *sqlite.Stmt) bool {
				last = r.ColumnInt64(0)
				batch = append(batch, PlanLink{r.ColumnInt64(1), columnString(r, 2), planFile(r, 3), r.ColumnInt64(8) != 0})
				return true
			}, last, planBatch)
			p.v.db.mu.Unlock()
			if err != nil {
				yield(PlanLink{}, err)
				return
			}
			for _, l := range batch {
				if !yield(l, nil) {
					return
				}
			}
			if len(batch) < planBatch {
				return
			}
		}
	}
}
