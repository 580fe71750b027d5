package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// Totals are what a source has stored, and what for.
type Totals struct {
	Packs     int64 // that it refers to
	PackBytes int64 // their size

	Files    int64 // in the newest snapshot
	Newest   int64 // their bytes
	Versions int64 // of files, in all snapshots
	All      int64 // the bytes of the files of every snapshot, summed up; at most 2^62
}

// Totals returns those of a source.
func (db *DB) Totals(ctx context.Context, source int64) (t Totals, err error) {
	snaps, err := db.Snapshots(source)
	if err != nil || len(snaps) == 0 {
		return t, err
	}
	head := snaps[len(snaps)-1].Seq
	before := func(seq uint64) int { // how many snapshots are before it
		return sort.Search(len(snaps), func(i int) bool { return snaps[i].Seq >= seq })
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	var bad error
	err = db.query("SELECT born, died, attr FROM nodes WHERE node >= ? AND node < ?", func(r *sqlite.Stmt) bool {
		var a filetree.Attr
		if a, bad = decodeAttr(column(r, 2)); bad == nil {
			bad = ctx.Err()
		}
		if a.Kind != filetree.File || bad != nil {
			return bad == nil
		}
		born, died := uint64(r.ColumnInt64(0)), uint64(r.ColumnInt64(1))
		end := len(snaps)
		if died != 0 {
			end = before(died)
		}
		t.Versions++
		if born <= head && (died == 0 || died > head) {
			t.Files++
			t.Newest = saturated(t.Newest, a.Size, 1)
		}
		t.All = saturated(t.All, a.Size, int64(max(end-before(born), 0)))
		return true
	}, source<<nodeBits, (source+1)<<nodeBits)
	if err = errors.Join(err, bad); err != nil {
		return t, err
	}
	err = db.query("SELECT count(*), total(size) FROM told JOIN packs ON id = pack WHERE source = ?", func(r *sqlite.Stmt) bool {
		t.Packs, t.PackBytes = r.ColumnInt64(0), r.ColumnInt64(1)
		return false
	}, source)
	return t, err
}

// saturated is sum + size·n, or 2^62 if that is less.
func saturated(sum, size, n int64) int64 {
	const most = 1 << 62
	if f := float64(sum) + float64(size)*float64(n); f >= most {
		return most
	}
	return sum + size*n
}

// PackTotals returns how many packs there are, of all sources, and their size.
func (db *DB) PackTotals() (packs, bytes int64, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err = db.query("SELECT count(*), total(size) FROM packs WHERE sha IS NOT NULL", func(r *sqlite.Stmt) bool {
		packs, bytes = r.ColumnInt64(0), r.ColumnInt64(1)
		return false
	})
	return packs, bytes, err
}

// A Usage is what is stored of a file, or of all that is in a directory, in all its
// versions.
type Usage struct {
	Path   string // the last it had
	Node   filetree.NodeID
	Plain  int64 // bytes of content, each once
	Stored int64 // what they take in packs, about: the share of it that they have in blobs
	Gone   bool  // it is not in the newest snapshot
}

// usageTables are the temporary tables of Usage.
var usageTables = []struct{ name, columns string }{
	// Slices of blobs: which node was the first to need them.
	{"usage_slices", "(pack INTEGER NOT NULL, blob INTEGER NOT NULL, boff INTEGER NOT NULL, len INTEGER NOT NULL, born INTEGER NOT NULL, node INTEGER NOT NULL)"},
	// What comes of it.
	{"usage_nodes", "(node INTEGER PRIMARY KEY, plain INTEGER NOT NULL, stored INTEGER NOT NULL)"},
}

// Usage attributes what is stored of a source to files, and sums it up for directories.
// It returns the largest of both, at most so many of each, largest first.
//
// A byte of a blob belongs to the file that was the first to need it, in the history and
// then by the number of its node: a copy costs nothing, and a patch what the patch takes.
// A file is counted under its last name, where it last was. Of directories those are left
// out of which nine tenths are in one directory below, which says more.
//
// It reads all extents. Memory is bounded by the number of directories, a hundred bytes
// each.
func (db *DB) Usage(ctx context.Context, source int64, limit int) (files, dirs []Usage, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.index(); err != nil {
		return nil, nil, err
	}
	// One transaction, of which nothing is to stay.
	if err := db.exec("SAVEPOINT usage"); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, db.exec("ROLLBACK TO usage"), db.exec("RELEASE usage")) }()
	for _, t := range usageTables {
		if err := db.exec("CREATE TEMP TABLE " + t.name + " " + t.columns); err != nil {
			return nil, nil, err
		}
	}
	u := &usage{ctx: ctx, db: db, source: source, sums: map[int64]nodeSum{}}
	if err := u.slices(); err != nil {
		return nil, nil, err
	}
	if err := u.attribute(); err != nil {
		return nil, nil, err
	}
	return u.largest(limit)
}

// A usage is one question of Usage. The caller holds mu.
type usage struct {
	ctx    context.Context
	db     *DB
	source int64
	sums   map[int64]nodeSum // not in usage_nodes yet
}

type nodeSum struct{ plain, stored int64 }

// slices fills usage_slices.
func (u *usage) slices() error {
	from, to := u.source<<nodeBits, (u.source+1)<<nodeBits
	err := u.db.exec(`INSERT INTO usage_slices SELECT pack, blob, boff, len, born, node FROM extents
		WHERE node >= ? AND node < ? AND pack > 0`, from, to)
	if err != nil {
		return err
	}
	last := []any{from, int64(-1), int64(-1)}
	for {
		var rows [][]any
		var bad error
		n := 0
		err := u.db.query(`SELECT node, off, born, patch FROM extents JOIN recipes ON id = -pack
			WHERE (node, off, born) > (?1, ?2, ?3) AND node < ?4 AND pack < 0 ORDER BY node, off, born`+limitBatch, func(r *sqlite.Stmt) bool {
			n++
			var q *Patch
			last = []any{r.ColumnInt64(0), r.ColumnInt64(1), r.ColumnInt64(2)}
			if q, bad = decodePatch(column(r, 3)); bad != nil {
				return false
			}
			rows = append(rows, []any{q.Pack, q.Blob, q.Offset, q.Length, last[2], last[0]})
			return true
		}, append(last, to)...)
		if err = errors.Join(err, bad, u.ctx.Err()); err != nil {
			return err
		}
		for _, row := range rows {
			if err := u.db.exec("INSERT INTO usage_slices (pack, blob, boff, len, born, node) VALUES (?, ?, ?, ?, ?, ?)", row...); err != nil {
				return err
			}
		}
		if n < planBatch {
			return nil
		}
	}
}

// usageSums is how many sums are kept in memory.
const usageSums = 1 << 16

// attribute fills usage_nodes.
func (u *usage) attribute() error {
	type row struct {
		id           blobID
		boff, length int64
		node         int64
	}
	var at blobID
	var covered spans
	var blobs []Blob
	var plain map[int64]int64 // of this blob, by node
	end := func() {
		for node, n := range plain {
			s := u.sums[node]
			s.plain += n
			if int(at.blob) < len(blobs) && blobs[at.blob].Plain > 0 {
				s.stored += int64(math.Round(float64(n) * float64(blobs[at.blob].Length) / float64(blobs[at.blob].Plain)))
			}
			u.sums[node] = s
		}
		covered, plain = covered[:0], map[int64]int64{}
	}
	if err := u.db.exec("CREATE INDEX temp.usage_order ON usage_slices (pack, blob, born, node, boff, len)"); err != nil {
		return err
	}
	last := []any{int64(-1), int64(0), int64(0), int64(0), int64(0), int64(0)}
	for {
		var rows []row
		err := u.db.query(`SELECT pack, blob, born, node, boff, len FROM usage_slices
			WHERE (pack, blob, born, node, boff, len) > (?, ?, ?, ?, ?, ?) ORDER BY pack, blob, born, node, boff, len LIMIT 8192`, func(r *sqlite.Stmt) bool {
			for i := range last {
				last[i] = r.ColumnInt64(i)
			}
			rows = append(rows, row{blobID{PackID(r.ColumnInt64(0)), uint32(r.ColumnInt64(1))}, r.ColumnInt64(4), r.ColumnInt64(5), r.ColumnInt64(3)})
			return true
		}, last...)
		if err = errors.Join(err, u.ctx.Err()); err != nil {
			return err
		}
		for _, x := range rows {
			if x.id != at {
				end()
				if x.id.pack != at.pack {
					if blobs, err = u.blobs(x.id.pack); err != nil {
						return err
					}
				}
				at = x.id
			}
			plain[x.node] += covered.add(x.boff, x.boff+x.length)
		}
		if len(rows) < 8192 {
			end()
			return u.flush()
		}
		if len(u.sums) >= usageSums {
			if err := u.flush(); err != nil {
				return err
			}
		}
	}
}

func (u *usage) blobs(id PackID) (blobs []Blob, err error) {
	qerr := u.db.query("SELECT blobs FROM packs WHERE id = ?", func(r *sqlite.Stmt) bool {
		blobs, err = decodeBlobs(column(r, 0))
		return false
	}, id)
	return blobs, errors.Join(qerr, err)
}

func (u *usage) flush() error {
	nodes := make([]int64, 0, len(u.sums))
	for n := range u.sums {
		nodes = append(nodes, n)
	}
	slices.Sort(nodes)
	for _, n := range nodes {
		s := u.sums[n]
		err := u.db.exec(`INSERT INTO usage_nodes (node, plain, stored) VALUES (?1, ?2, ?3)
			ON CONFLICT (node) DO UPDATE SET plain = plain + ?2, stored = stored + ?3`, n, s.plain, s.stored)
		if err != nil {
			return err
		}
	}
	clear(u.sums)
	return nil
}

// A dirUsage is what is in a directory and below.
type dirUsage struct {
	nodeSum
	parent  int64
	gone    bool  // it has no name now
	largest int64 // stored of the directory in it that has most
}

// largest sums up directories and picks the largest.
func (u *usage) largest(limit int) (files, dirs []Usage, err error) {
	more := func(a, b Usage) int { return cmp.Or(cmp.Compare(b.Stored, a.Stored), cmp.Compare(a.Node, b.Node)) }
	keep := func(list []Usage, x Usage) []Usage {
		i, _ := slices.BinarySearchFunc(list, x, more)
		if list = slices.Insert(list, i, x); len(list) > limit {
			list = list[:limit]
		}
		return list
	}
	own := map[int64]nodeSum{} // of the files in a directory
	// One row a name; the last name of a node comes last.
	var node, dir int64
	var sum nodeSum
	var died int64
	end := func() {
		if node == 0 {
			return
		}
		s := own[dir]
		own[dir] = nodeSum{s.plain + sum.plain, s.stored + sum.stored}
		if len(files) < limit || limit > 0 && sum.stored > files[len(files)-1].Stored {
			files = keep(files, Usage{Node: nodeOf(node), Plain: sum.plain, Stored: sum.stored, Gone: died < math.MaxInt64})
		}
		node = 0
	}
	err = u.db.query(`SELECT u.node, u.plain, u.stored, e.dir, CASE e.died WHEN 0 THEN ?1 ELSE e.died END
		FROM usage_nodes u LEFT JOIN entries e ON e.node = u.node ORDER BY u.node`, func(r *sqlite.Stmt) bool {
		if n := r.ColumnInt64(0); n != node {
			end()
			node, sum, dir, died = n, nodeSum{r.ColumnInt64(1), r.ColumnInt64(2)}, 0, -1
		}
		if d := r.ColumnInt64(4); r.ColumnType(3) != sqlite.TypeNull && d > died {
			dir, died = r.ColumnInt64(3), d
		}
		return true
	}, int64(math.MaxInt64))
	if err != nil {
		return nil, nil, err
	}
	end()
	all, err := u.sumUp(own)
	if err != nil {
		return nil, nil, err
	}
	root := u.source<<nodeBits | int64(filetree.RootNode)
	for key, d := range all {
		if key == root || key == 0 || float64(d.largest) >= 0.9*float64(d.stored) {
			continue
		}
		dirs = keep(dirs, Usage{Node: nodeOf(key), Plain: d.plain, Stored: d.stored, Gone: d.gone})
	}
	for _, list := range [][]Usage{files, dirs} {
		for i := range list {
			if list[i].Path, err = u.path(u.source<<nodeBits | int64(list[i].Node)); err != nil {
				return nil, nil, err
			}
		}
	}
	return files, dirs, nil
}

// sumUp adds what is in directories to those that they are in, by their last names.
func (u *usage) sumUp(own map[int64]nodeSum) (map[int64]*dirUsage, error) {
	all := map[int64]*dirUsage{}
	at := func(key int64) (*dirUsage, error) {
		if d := all[key]; d != nil {
			return d, nil
		}
		parent, _, gone, err := u.lastName(key)
		d := &dirUsage{parent: parent, gone: gone}
		all[key] = d
		return d, err
	}
	for key, sum := range own {
		for depth := 0; key != 0; depth++ {
			if depth > maxDirDepth {
				return nil, fmt.Errorf("node %d: directories go in a circle", nodeOf(key))
			}
			d, err := at(key)
			if err != nil {
				return nil, err
			}
			d.plain += sum.plain
			d.stored += sum.stored
			key = d.parent
		}
	}
	for _, d := range all {
		if up := all[d.parent]; up != nil {
			up.largest = max(up.largest, d.stored)
		}
	}
	return all, u.ctx.Err()
}

// lastName returns the name that a node has or had last, and whether it has none now.
// Where it never had one, as the root, there is no directory.
func (u *usage) lastName(key int64) (dir int64, name string, gone bool, err error) {
	err = u.db.query("SELECT dir, name, died FROM entries WHERE node = ? ORDER BY died <> 0, died DESC, dir, name LIMIT 1", func(r *sqlite.Stmt) bool {
		dir, name, gone = r.ColumnInt64(0), columnString(r, 1), r.ColumnInt64(2) != 0
		return false
	}, key)
	return dir, name, gone, err
}

// path returns the last path of a node.
func (u *usage) path(key int64) (string, error) {
	path := ""
	for range maxDirDepth {
		dir, name, _, err := u.lastName(key)
		if err != nil || dir == 0 {
			return path, err
		}
		if path == "" {
			path = name
		} else {
			path = name + "/" + path
		}
		key = dir
	}
	return "", fmt.Errorf("node %d: directories go in a circle", nodeOf(key))
}
