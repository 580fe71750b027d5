package catalog

import (
	"context"
	"errors"
	"math"
	"slices"

	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// A Holder is a node that had a path for a while.
type Holder struct {
	Node filetree.NodeID
	From uint64 // the snapshot in which it got the path
	To   uint64 // the snapshot in which it had it no more; 0 if it has it still
}

// Holders returns the nodes that had a path, up to the view's snapshot, oldest first. A
// node that lost the path and got it back is there twice.
func (v View) Holders(path []string) ([]Holder, error) {
	const still = math.MaxInt64
	held := []Holder{{filetree.RootNode, 1, still}}
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	for _, name := range path {
		var next []Holder
		for _, dir := range held {
			err := v.db.query(`SELECT node, max(born, ?3), CASE died WHEN 0 THEN ?4 ELSE min(died, ?4) END FROM entries
				WHERE dir = ?1 AND name = ?2 AND born < ?4 AND born <= ?5 AND (died = 0 OR died > ?3) ORDER BY born`, func(r *sqlite.Stmt) bool {
				x := Holder{nodeOf(r.ColumnInt64(0)), uint64(r.ColumnInt64(1)), uint64(r.ColumnInt64(2))}
				if k := len(next) - 1; k >= 0 && next[k].Node == x.Node && next[k].To == x.From {
					next[k].To = x.To
				} else {
					next = append(next, x)
				}
				return true
			}, v.key(dir.Node), []byte(name), dir.From, dir.To, v.seq)
			if err != nil {
				return nil, err
			}
		}
		held = next
	}
	for i := range held {
		if held[i].To > v.seq {
			held[i].To = 0
		}
	}
	return held, nil
}

// A Version is what became of a node in a snapshot.
type Version struct {
	Seq  uint64
	Path string        // of several the one that was asked for; of what was removed, before
	From string        // the path before, if it is another
	Attr filetree.Attr // of what was removed, before

	Created bool // it was not there, or nowhere in the tree
	Removed bool // it is no more
	What    Aspects
	Bytes   int64    // of content that are not what they were
	Stored  int64    // of content that this snapshot has brought into the repository
	Got     []string // further names that it got
	Lost    []string // and lost

	Added, Gone int // of a directory: entries that are new, and those that are no more
}

// Versions returns what became of a node, up to the view's snapshot, oldest first. Of
// several paths the preferred one is told of. A directory that it is in may have moved it.
//
// Stored are plain bytes, of slices and patches that are referred to from this snapshot
// on, in packs to which no earlier snapshot of the source refers; each once. To know that
// takes a look at all extents of the source.
func (v View) Versions(ctx context.Context, n filetree.NodeID, prefer string) ([]Version, error) {
	seqs, err := v.versionSeqs(n)
	if err != nil {
		return nil, err
	}
	first, err := v.firstSeen(n)
	if err != nil {
		return nil, err
	}
	var all []Version
	for _, seq := range seqs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		x, ok, err := v.version(n, seq, prefer, first)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, x)
		}
	}
	return all, nil
}

// versionSeqs returns the snapshots in which something of a node began or ended, or a
// name of a directory that it was in.
func (v View) versionSeqs(n filetree.NodeID) ([]uint64, error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if err := errors.Join(v.db.index(), v.db.indexChanges()); err != nil {
		return nil, err
	}
	seqs := map[uint64]bool{}
	collect := func(query string, key int64) error {
		return v.db.query(query, func(r *sqlite.Stmt) bool {
			if seq := uint64(r.ColumnInt64(0)); seq > 0 && seq <= v.seq {
				seqs[seq] = true
			}
			return true
		}, key)
	}
	for _, q := range []string{
		"SELECT born FROM nodes WHERE node = ?1 UNION SELECT died FROM nodes WHERE node = ?1",
		"SELECT born FROM extents WHERE node = ?1 UNION SELECT died FROM extents WHERE node = ?1",
		"SELECT born FROM entries WHERE dir = ?1 UNION SELECT died FROM entries WHERE dir = ?1",
	} {
		if err := collect(q, v.key(n)); err != nil {
			return nil, err
		}
	}
	// Up through all directories that it, or one of them, was ever in.
	seen := map[int64]bool{v.key(n): true}
	for up := []int64{v.key(n)}; len(up) > 0; {
		key := up[0]
		up = up[1:]
		if err := collect("SELECT born FROM entries WHERE node = ?1 UNION SELECT died FROM entries WHERE node = ?1", key); err != nil {
			return nil, err
		}
		err := v.db.query("SELECT DISTINCT dir FROM entries WHERE node = ?1", func(r *sqlite.Stmt) bool {
			if dir := r.ColumnInt64(0); !seen[dir] {
				seen[dir] = true
				up = append(up, dir)
			}
			return true
		}, key)
		if err != nil {
			return nil, err
		}
	}
	all := make([]uint64, 0, len(seqs))
	for seq := range seqs {
		all = append(all, seq)
	}
	slices.Sort(all)
	return all, nil
}

// version returns what became of a node in one snapshot; ok is false if nothing did.
func (v View) version(n filetree.NodeID, seq uint64, prefer string, first map[PackID]uint64) (x Version, ok bool, err error) {
	was, is := v.db.At(v.source, seq-1), v.db.At(v.source, seq)
	before, err := was.attrIf(n)
	if err != nil {
		return x, false, err
	}
	after, err := is.attrIf(n)
	if err != nil {
		return x, false, err
	}
	d, err := newDiffer(was, is).node(n, before, after, func() (extentList, extentList) { return is.ended(n), is.begun(n) })
	if err != nil || len(d.old) == 0 && len(d.new) == 0 {
		return x, false, err
	}
	of := func(paths []string) string {
		if len(paths) == 0 || slices.Contains(paths, prefer) {
			return prefer
		}
		return paths[0]
	}
	x = Version{Seq: seq, Path: of(d.new), Attr: d.after, What: d.what, Bytes: d.bytes}
	switch {
	case len(d.old) == 0:
		x.Created = true
	case len(d.new) == 0:
		x.Removed, x.Path, x.Attr = true, of(d.old), d.before
		return x, true, nil
	default:
		if from := of(d.old); from != x.Path {
			x.From = from
		}
	}
	other := func(names []string, but string) []string {
		return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == but })
	}
	x.Got, x.Lost = other(d.got, x.Path), other(d.lost, x.From)
	if x.Stored, err = is.stored(n, first); err != nil {
		return x, false, err
	}
	if x.Attr.Kind == filetree.Dir {
		if x.Added, x.Gone, err = is.entriesChanged(n); err != nil {
			return x, false, err
		}
	}
	return x, x.Created || x.From != "" || x.What != 0 || len(x.Got)+len(x.Lost)+x.Added+x.Gone > 0, nil
}

func (v View) attrIf(n filetree.NodeID) (*filetree.Attr, error) {
	a, err := v.Attr(n)
	if errors.Is(err, filetree.ErrNotExist) {
		return nil, nil
	}
	return &a, err
}

// begunQuery is for the extents that began in one snapshot, of which the first has no
// rows in the index.
func (v View) begunQuery() string {
	if v.seq == 1 {
		return "SELECT off, len, pack, blob, boff FROM extents WHERE ?1 = node >> 40 AND node = ?2 AND born = ?3 AND off > ?4 ORDER BY off" + limitBatch
	}
	return "SELECT off, len, pack, blob, boff FROM extents" + v.db.by("extents_born") +
		" WHERE node >> 40 = ?1 AND born <> 1 AND born = ?3 AND node = ?2 AND off > ?4 ORDER BY off" + limitBatch
}

// endedQuery is for those that ended in it.
func (v View) endedQuery() string {
	return "SELECT off, len, pack, blob, boff FROM extents" + v.db.by("extents_died") +
		" WHERE node >> 40 = ?1 AND died <> 0 AND died = ?3 AND node = ?2 AND off > ?4 ORDER BY off" + limitBatch
}

// begun returns the extents of a file that began in this snapshot.
func (v View) begun(n filetree.NodeID) extentList {
	return v.db.extentRows(v.begunQuery(), v.source, v.key(n), v.seq)
}

// ended returns those that ended in it.
func (v View) ended(n filetree.NodeID) extentList {
	return v.db.extentRows(v.endedQuery(), v.source, v.key(n), v.seq)
}

// addedQuery counts the entries that a directory got in one snapshot. Those that it lost
// and got back are not counted.
func (v View) addedQuery() string {
	from, not := "entries a"+v.db.by("entries_born"), "a.born <> 1 AND "
	if v.seq == 1 {
		from, not = "entries a", ""
	}
	return "SELECT count(*) FROM " + from + " WHERE a.dir >> 40 = ?1 AND " + not + `a.born = ?3 AND a.dir = ?2
		AND NOT EXISTS (SELECT 1 FROM entries b WHERE b.dir = a.dir AND b.name = a.name AND b.died = ?3 AND b.node = a.node)`
}

// goneQuery counts those that it lost.
func (v View) goneQuery() string {
	return "SELECT count(*) FROM entries a" + v.db.by("entries_died") + ` WHERE a.dir >> 40 = ?1 AND a.died <> 0 AND a.died = ?3 AND a.dir = ?2
		AND NOT EXISTS (SELECT 1 FROM entries b WHERE b.dir = a.dir AND b.name = a.name AND b.born = ?3 AND b.node = a.node)`
}

// entriesChanged counts the entries that a directory got and lost in this snapshot.
func (v View) entriesChanged(n filetree.NodeID) (added, gone int, err error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	to := func(count *int) func(*sqlite.Stmt) bool {
		return func(r *sqlite.Stmt) bool { *count = int(r.ColumnInt64(0)); return false }
	}
	err = v.db.query(v.addedQuery(), to(&added), v.source, v.key(n), v.seq)
	if err == nil {
		err = v.db.query(v.goneQuery(), to(&gone), v.source, v.key(n), v.seq)
	}
	return added, gone, err
}

// A blobID is a blob of a pack.
type blobID struct {
	pack PackID
	blob uint32
}

// stored returns how many plain bytes of a file are in packs that this snapshot is the
// first to refer to, of extents that began in it.
func (v View) stored(n filetree.NodeID, first map[PackID]uint64) (int64, error) {
	if len(first) == 0 {
		return 0, nil
	}
	covered := map[blobID]*spans{}
	total := int64(0)
	next := v.begun(n)
	for {
		e, ok, err := next()
		if err != nil || !ok {
			return total, err
		}
		id, from, length := blobID{e.Pack, e.Blob}, int64(e.Part.Offset), e.Length
		if e.Pack < 0 {
			b, err := v.db.recipe(int64(-e.Pack))
			if err != nil {
				return 0, err
			}
			q, err := decodePatch(b)
			if err != nil {
				return 0, err
			}
			id, from, length = blobID{q.Pack, q.Blob}, int64(q.Offset), int64(q.Length)
		}
		if first[id.pack] != v.seq {
			continue
		}
		if covered[id] == nil {
			covered[id] = &spans{}
		}
		total += covered[id].add(from, from+length)
	}
}

// firstSeen returns the first snapshot of the source that refers to a pack, for all packs
// that a file has slices or patches in.
func (v View) firstSeen(n filetree.NodeID) (map[PackID]uint64, error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	first := map[PackID]uint64{}
	var bad error
	err := v.db.query("SELECT DISTINCT pack, patch FROM extents LEFT JOIN recipes ON id = -pack WHERE node = ?", func(r *sqlite.Stmt) bool {
		pack := PackID(r.ColumnInt64(0))
		if pack < 0 {
			var q *Patch
			if q, bad = decodePatch(column(r, 1)); bad != nil {
				return false
			}
			pack = q.Pack
		}
		first[pack] = math.MaxUint64
		return true
	}, v.key(n))
	if err = errors.Join(err, bad); err != nil || len(first) == 0 {
		return nil, err
	}
	note := func(pack PackID, born int64) {
		if seq, ok := first[pack]; ok {
			first[pack] = min(seq, uint64(born))
		}
	}
	from, to := v.source<<nodeBits, (v.source+1)<<nodeBits
	patches := false
	err = v.db.query("SELECT pack, born FROM extents WHERE node >= ? AND node < ?", func(r *sqlite.Stmt) bool {
		pack := r.ColumnInt64(0)
		if pack < 0 {
			patches = true
			return true
		}
		note(PackID(pack), r.ColumnInt64(1))
		return true
	}, from, to)
	if err != nil || !patches {
		return first, err
	}
	err = v.db.query("SELECT born, patch FROM extents JOIN recipes ON id = -pack WHERE node >= ? AND node < ? AND pack < 0", func(r *sqlite.Stmt) bool {
		var q *Patch
		if q, bad = decodePatch(column(r, 1)); bad != nil {
			return false
		}
		note(q.Pack, r.ColumnInt64(0))
		return true
	}, from, to)
	return first, errors.Join(err, bad)
}
