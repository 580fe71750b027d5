package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"

	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// Aspects are the respects in which two states of a node differ.
type Aspects uint16

// The aspects. What has no name here makes no difference: ctime, birth time, inode
// number and generation, and of a directory mtime, which follows from its entries.
const (
	Content    Aspects = 1 << iota // the bytes of a file, or their number
	Mode                           // permission bits
	Owner                          // uid or gid
	Times                          // mtime
	Xattrs                         // extended attributes
	Flags                          // chattr(1)
	Target                         // of a symbolic link
	Device                         // major or minor number
	Complete                       // whether all of it could be read
	Type                           // the kind: a file that became a directory
	Replaced                       // another node has the path
	allAspects = iota
)

// aspectNames are in the order of the bits.
var aspectNames = [allAspects]string{"content", "mode", "owner", "times", "xattrs", "flags", "target", "device", "completeness", "type", "replaced"}

// Names returns the aspects as words.
func (w Aspects) Names() []string {
	var all []string
	for i, name := range aspectNames {
		if w&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	return all
}

// compareAttr returns what differs in attributes.
func compareAttr(a, b *filetree.Attr) Aspects {
	var w Aspects
	for _, c := range []struct {
		aspect Aspects
		same   bool
	}{
		{Content, a.Size == b.Size},
		{Mode, a.Mode == b.Mode},
		{Owner, a.UID == b.UID && a.GID == b.GID},
		{Times, a.Mtime == b.Mtime || a.Kind == filetree.Dir && b.Kind == filetree.Dir},
		{Xattrs, filetree.EqualXattrs(a.Xattrs, b.Xattrs)},
		{Flags, a.Flags == b.Flags},
		{Target, a.Target == b.Target},
		{Device, a.Major == b.Major && a.Minor == b.Minor},
		{Complete, a.Incomplete == b.Incomplete},
		{Type, a.Kind == b.Kind},
	} {
		if !c.same {
			w |= c.aspect
		}
	}
	return w
}

// A differ compares two states of a source, node by node.
type differ struct {
	was, is View
	old     *paths // at was
	new     *paths // at is
}

func newDiffer(was, is View) *differ { return &differ{was, is, newPaths(was), newPaths(is)} }

// A nodeDiff is what differs in one node. Where it has no path, it is not there.
type nodeDiff struct {
	before, after filetree.Attr
	old, new      []string // paths, sorted: at was, at is
	kept          []string // those at is that are no news, though a directory may have moved
	lost, got     []string // names that it had only at was, only at is
	what          Aspects  // where it is there both times
	bytes         int64    // of the later content that are not what they were
}

// moves returns how many of the lost and got names are the old and the new one of a
// rename: all, pair by pair.
func (d *nodeDiff) moves() int { return min(len(d.lost), len(d.got)) }

// node compares a node; before and after are its attributes, nil where it has none, and
// content says whether any of its extents began or ended in between.
func (f *differ) node(n filetree.NodeID, before, after *filetree.Attr, content func() (was, is extentList)) (nodeDiff, error) {
	var d nodeDiff
	names, err := f.names(n)
	if err != nil {
		return d, err
	}
	for _, e := range names {
		var old, new string
		if e.was = e.was && before != nil; e.was {
			if old, e.was, err = f.old.entry(e.dir, e.name); err != nil {
				return d, err
			}
		}
		if e.is = e.is && after != nil; e.is {
			if new, e.is, err = f.new.entry(e.dir, e.name); err != nil {
				return d, err
			}
		}
		switch {
		case e.was && e.is:
			d.kept = append(d.kept, new)
		case e.was:
			d.lost = append(d.lost, old)
		case e.is:
			d.got = append(d.got, new)
		}
		if e.was {
			d.old = append(d.old, old)
		}
		if e.is {
			d.new = append(d.new, new)
		}
	}
	if n == filetree.RootNode { // it has no name
		if before != nil {
			d.old = []string{""}
		}
		if after != nil {
			d.new, d.kept = []string{""}, []string{""}
		}
	}
	for _, list := range [][]string{d.old, d.new, d.kept, d.lost, d.got} {
		slices.Sort(list)
	}
	if len(d.old) > 0 {
		d.before = *before
	}
	if len(d.new) > 0 {
		d.after = *after
	}
	if len(d.old) == 0 || len(d.new) == 0 {
		return d, nil
	}
	d.what = compareAttr(before, after)
	if content == nil || before.Kind != filetree.File || after.Kind != filetree.File {
		return d, nil
	}
	was, is := content()
	changed := int64(0)
	d.bytes, changed, err = f.is.db.differing(was, is, before.Size, after.Size)
	if changed > 0 {
		d.what |= Content
	}
	return d, err
}

// A naming is a name of a node, and when it has it.
type naming struct {
	dir     filetree.NodeID
	name    string
	was, is bool
}

// names returns the names that a node has at either time.
func (f *differ) names(n filetree.NodeID) ([]naming, error) {
	db := f.is.db
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.index(); err != nil {
		return nil, err
	}
	var all []naming
	err := db.query(`SELECT dir, name, born <= ?2 AND (died = 0 OR died > ?2), born <= ?3 AND (died = 0 OR died > ?3)
		FROM entries WHERE node = ?1 ORDER BY dir, name`, func(r *sqlite.Stmt) bool {
		e := naming{nodeOf(r.ColumnInt64(0)), columnString(r, 1), r.ColumnInt64(2) != 0, r.ColumnInt64(3) != 0}
		k := len(all) - 1
		switch {
		case k >= 0 && all[k].dir == e.dir && all[k].name == e.name: // lost and got back
			all[k].was, all[k].is = all[k].was || e.was, all[k].is || e.is
		case e.was || e.is:
			all = append(all, e)
		}
		return true
	}, f.is.key(n), f.was.seq, f.is.seq)
	return all, err
}

// paths finds the paths of directories in one state, and remembers some of them.
type paths struct {
	v     View
	known map[filetree.NodeID]dirPath
	bytes int
}

// A dirPath is the path of a directory, if it is in the tree.
type dirPath struct {
	path string
	ok   bool
}

// pathsBytes bounds what paths remembers.
const pathsBytes = 8 << 20

func newPaths(v View) *paths { return &paths{v: v, known: map[filetree.NodeID]dirPath{}} }

// entry returns the path of an entry, and whether its directory is in the tree.
func (p *paths) entry(dir filetree.NodeID, name string) (string, bool, error) {
	d, err := p.dir(dir, 0)
	if err != nil || !d.ok {
		return "", false, err
	}
	return joinPath(d.path, name), true, nil
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func (p *paths) dir(n filetree.NodeID, depth int) (dirPath, error) {
	if n == filetree.RootNode {
		return dirPath{"", true}, nil
	}
	if d, ok := p.known[n]; ok {
		return d, nil
	}
	if depth > maxDirDepth {
		return dirPath{}, fmt.Errorf("node %d: directories go in a circle", n)
	}
	e, err := p.v.Entries(n, 1)
	if err != nil {
		return dirPath{}, err
	}
	var d dirPath
	if len(e) > 0 {
		if d, err = p.dir(e[0].Dir, depth+1); err != nil {
			return dirPath{}, err
		}
		d.path = joinPath(d.path, e[0].Name)
	}
	if p.bytes += len(d.path) + 64; p.bytes > pathsBytes {
		clear(p.known)
		p.bytes = 0
	}
	p.known[n] = d
	return d, nil
}

// An extentList yields the extents of a file that matter, by offset, and then none: ok is
// false. What is a patch has the number of its recipe, negative, for a pack.
type extentList = func() (e Extent, ok bool, err error)

// limitBatch ends a query that is asked for rows batch by batch. SQLite would prepare a
// statement anew whenever a limit is bound.
var limitBatch = fmt.Sprintf(" LIMIT %d", planBatch)

// extentRows returns the extents that a query gives, which takes the last offset as its
// last parameter and ends in limitBatch.
func (db *DB) extentRows(query string, args ...any) extentList {
	var batch []Extent
	last, done := int64(math.MinInt64), false
	return func() (Extent, bool, error) {
		if len(batch) == 0 && !done {
			db.mu.Lock()
			err := db.query(query, func(r *sqlite.Stmt) bool {
				batch = append(batch, rawExtent(r, 0))
				return true
			}, append(slices.Clip(args), last)...)
			db.mu.Unlock()
			if err != nil {
				return Extent{}, false, err
			}
			if done = len(batch) < planBatch; len(batch) > 0 {
				last = batch[len(batch)-1].Offset
			}
		}
		if len(batch) == 0 {
			return Extent{}, false, nil
		}
		e := batch[0]
		batch = batch[1:]
		return e, true, nil
	}
}

// allExtents returns all extents of a file.
func (v View) allExtents(n filetree.NodeID) extentList {
	return v.db.extentRows("SELECT off, len, pack, blob, boff FROM extents WHERE node = ?1"+alive+"AND off > ?3 ORDER BY off"+limitBatch, v.key(n), v.seq)
}

// differing compares the content that a file has by two lists of extents, of which what
// both have may be left out. It counts the bytes that are not the same: those within the
// later size, and all that are within either. The same are those from the same place.
func (db *DB) differing(a, b extentList, sizeA, sizeB int64) (later, all int64, err error) {
	ea, okA, err := a()
	if err != nil {
		return 0, 0, err
	}
	eb, okB, err := b()
	if err != nil {
		return 0, 0, err
	}
	within := func(from, to, size int64) int64 { return max(min(to, size)-max(from, 0), 0) }
	for okA || okB {
		// Up to where one of them begins or ends it is one or the other, or both.
		var from, to int64
		inA, inB := okA && (!okB || ea.Offset <= eb.Offset), okB && (!okA || eb.Offset <= ea.Offset)
		switch {
		case inA && inB:
			from, to = ea.Offset, min(ea.Offset+ea.Length, eb.Offset+eb.Length)
		case inA:
			if from, to = ea.Offset, ea.Offset+ea.Length; okB {
				to = min(to, eb.Offset)
			}
		default:
			if from, to = eb.Offset, eb.Offset+eb.Length; okA {
				to = min(to, ea.Offset)
			}
		}
		if to <= from {
			return 0, 0, fmt.Errorf("extent of %d bytes at %d: %w", to-from, from, ErrDamaged)
		}
		same := false
		if inA && inB {
			if same, err = db.samePlace(ea.Part, eb.Part); err != nil {
				return 0, 0, err
			}
		}
		if !same {
			later += within(from, to, sizeB)
			all += within(from, to, max(sizeA, sizeB))
		}
		if inA {
			if ea, okA, err = beyond(ea, to, a); err != nil {
				return 0, 0, err
			}
		}
		if inB {
			if eb, okB, err = beyond(eb, to, b); err != nil {
				return 0, 0, err
			}
		}
	}
	return later, all, nil
}

// beyond returns what is left of an extent from an offset on, or the next one.
func beyond(e Extent, off int64, next extentList) (Extent, bool, error) {
	end := e.Offset + e.Length
	if off >= end {
		return next()
	}
	return Extent{off, e.Part.Slice(off-e.Offset, end-off)}, true, nil
}

// samePlace reports whether two parts as rawExtent gives them begin at the same byte.
func (db *DB) samePlace(a, b Part) (bool, error) {
	if a.Offset != b.Offset || a.Blob != b.Blob {
		return false, nil
	}
	if a.Pack == b.Pack || a.Pack > 0 || b.Pack > 0 {
		return a.Pack == b.Pack, nil
	}
	// A recipe is written again when an extent is cut.
	p, err := db.recipe(int64(-a.Pack))
	q, err2 := db.recipe(int64(-b.Pack))
	return bytes.Equal(p, q), errors.Join(err, err2)
}

// recipe returns a recipe as it is kept.
func (db *DB) recipe(id int64) (patch []byte, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err = db.query("SELECT patch FROM recipes WHERE id = ?", func(r *sqlite.Stmt) bool {
		patch = column(r, 0)
		return false
	}, id)
	if err == nil && patch == nil {
		err = errParts
	}
	return patch, err
}

// attrOrNone decodes a column that is NULL where a node is not there.
func attrOrNone(r *sqlite.Stmt, col int) (*filetree.Attr, error) {
	if r.ColumnType(col) == sqlite.TypeNull {
		return nil, nil
	}
	a, err := decodeAttr(column(r, col))
	return &a, err
}
