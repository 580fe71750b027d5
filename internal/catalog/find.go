package catalog

import (
	"context"
	"errors"
	"iter"
	"path"
	"slices"
	"strings"

	"zombiezen.com/go/sqlite"

	"github.com/secrate/secrate/internal/filetree"
)

// A Pattern matches names or paths as a shell does: * and ? match what has no slash, a
// class in brackets one of its characters, ** as a whole component any number of them.
type Pattern struct {
	fold  bool
	name  string   // matches the last component, if parts is nil
	parts []string // of a pattern that has a slash
}

// ParsePattern reads a pattern. One with a slash matches whole paths, others names; with
// fold case makes no difference. The error is path.ErrBadPattern.
func ParsePattern(text string, fold bool) (Pattern, error) {
	p := Pattern{fold: fold}
	if fold {
		text = strings.ToLower(text)
	}
	if !strings.Contains(text, "/") {
		p.name = text
		_, err := path.Match(text, "")
		return p, err
	}
	p.parts = strings.Split(strings.Trim(text, "/"), "/")
	for _, part := range p.parts {
		if _, err := path.Match(part, ""); err != nil {
			return p, err
		}
	}
	return p, nil
}

// last is what the last component of a path has to match, or else the path does not.
func (p Pattern) last() string {
	switch {
	case p.parts == nil:
		return p.name
	case p.parts[len(p.parts)-1] == "**":
		return "*"
	}
	return p.parts[len(p.parts)-1]
}

// matchName reports whether a path may match of which name is the last component.
func (p Pattern) matchName(name string) bool {
	if p.fold {
		name = strings.ToLower(name)
	}
	ok, _ := path.Match(p.last(), name)
	return ok
}

// Match reports whether a path, without a slash before it, matches.
func (p Pattern) Match(name string) bool {
	if p.parts == nil {
		return p.matchName(name[strings.LastIndexByte(name, '/')+1:])
	}
	if p.fold {
		name = strings.ToLower(name)
	}
	return matchParts(p.parts, strings.Split(name, "/"))
}

func matchParts(pattern, parts []string) bool {
	// Where ** does not lead on, it takes one more component: only the last one that was
	// met needs to be tried again.
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(parts) {
		if i < len(pattern) && pattern[i] == "**" {
			star, mark = i, j
			i++
			continue
		}
		if i < len(pattern) {
			if ok, _ := path.Match(pattern[i], parts[j]); ok {
				i, j = i+1, j+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		i, j = star+1, mark
	}
	for i < len(pattern) && pattern[i] == "**" {
		i++
	}
	return i == len(pattern)
}

// A Match is a path that Find has found.
type Match struct {
	Path string
	Node filetree.NodeID
	Attr filetree.Attr
	Last uint64   // of what is no more there: the newest snapshot that has it
	Now  []string // and where the same node still is
}

// findTable is the temporary table of Find: of each path the last that had it.
const findTable = "CREATE TEMP TABLE find_rows (path BLOB PRIMARY KEY, last INTEGER NOT NULL, node INTEGER NOT NULL) WITHOUT ROWID"

// Find yields the paths that match a pattern and are in the tree, by path in byte order.
// With deleted it yields those that were in the tree of an earlier snapshot and are no
// more, each as it was in the last one that had it. What is in a directory that was
// renamed, or is in one that was, is found where it is now and not where it was.
//
// It reads the names of all entries, or of all that ended; what is found is kept in a
// temporary table. A DB answers one such question at a time.
func (v View) Find(ctx context.Context, p Pattern, deleted bool) iter.Seq2[Match, error] {
	return func(yield func(Match, error) bool) {
		err := v.find(ctx, p, deleted, func(m Match) bool { return yield(m, nil) })
		if err != nil {
			yield(Match{}, err)
		}
	}
}

func (v View) find(ctx context.Context, p Pattern, deleted bool, yield func(Match) bool) (err error) {
	v.db.mu.Lock()
	if err = v.db.index(); err == nil {
		err = v.db.exec(findTable)
	}
	v.db.mu.Unlock()
	if err != nil {
		return err
	}
	defer func() {
		v.db.mu.Lock()
		defer v.db.mu.Unlock()
		err = errors.Join(err, v.db.exec("DROP TABLE temp.find_rows"))
	}()
	collect := v.collectAlive
	if deleted {
		collect = v.collectDeleted
	}
	if err := collect(ctx, p); err != nil {
		return err
	}
	for last, op := []byte{}, ">="; ; op = ">" {
		var batch []Match
		v.db.mu.Lock()
		err := v.db.query("SELECT path, last, node FROM find_rows WHERE path "+op+" ? ORDER BY path"+limitBatch, func(r *sqlite.Stmt) bool {
			batch = append(batch, Match{Path: columnString(r, 0), Last: uint64(r.ColumnInt64(1)), Node: nodeOf(r.ColumnInt64(2))})
			return true
		}, last)
		v.db.mu.Unlock()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		for _, m := range batch {
			last = []byte(m.Path)
			if deleted {
				if ok, err := v.gone(&m); err != nil {
					return err
				} else if !ok {
					continue
				}
			}
			if m.Attr, err = v.db.At(v.source, m.Last).Attr(m.Node); err != nil {
				return err
			}
			if !deleted {
				m.Last = 0
			}
			if !yield(m) {
				return nil
			}
		}
		if len(batch) < planBatch {
			return nil
		}
	}
}

// A found is an entry whose name matches.
type found struct {
	dir, node filetree.NodeID
	name      string
	last      uint64
}

// note keeps those of the entries whose path matches. The caller does not hold mu.
func (v View) note(all []found, p Pattern, at func(found) *paths) error {
	var rows []planRow
	for _, e := range all {
		path, ok, err := at(e).entry(e.dir, e.name)
		if err != nil {
			return err
		}
		if ok && p.Match(path) {
			rows = append(rows, planRow{`INSERT INTO find_rows (path, last, node) VALUES (?1, ?2, ?3)
				ON CONFLICT (path) DO UPDATE SET last = excluded.last, node = excluded.node WHERE excluded.last > last`,
				[]any{[]byte(path), e.last, v.key(e.node)}})
		}
	}
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	return v.db.atomically(func() error {
		for _, r := range rows {
			if err := v.db.exec(r.query, r.args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// collectAlive notes the paths that are in the tree.
func (v View) collectAlive(ctx context.Context, p Pattern) error {
	here := newPaths(v)
	dir, name, born := v.source<<nodeBits, []byte{}, int64(-1) // the last that was read
	for {
		var batch []found
		rows := 0
		v.db.mu.Lock()
		err := v.db.query(`SELECT dir, name, born, node, died FROM entries
			WHERE (dir, name, born) > (?1, ?2, ?3) AND dir < ?4 ORDER BY dir, name, born LIMIT 8192`, func(r *sqlite.Stmt) bool {
			rows++
			dir, name, born = r.ColumnInt64(0), column(r, 1), r.ColumnInt64(2)
			died := r.ColumnInt64(4)
			if uint64(born) <= v.seq && (died == 0 || uint64(died) > v.seq) && p.matchName(string(name)) {
				batch = append(batch, found{nodeOf(dir), nodeOf(r.ColumnInt64(3)), string(name), v.seq})
			}
			return true
		}, dir, name, born, (v.source+1)<<nodeBits)
		v.db.mu.Unlock()
		if err == nil {
			err = v.note(batch, p, func(found) *paths { return here })
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || rows < 8192 {
			return err
		}
	}
}

// deletedQuery is for entries that ended, from one on.
func (v View) deletedQuery() string {
	return "SELECT died, dir, name, born, node FROM entries" + v.db.by("entries_died") + `
		WHERE dir >> 40 = ?1 AND died <> 0 AND (died, dir, name, born) > (?2, ?3, ?4, ?5) AND died <= ?6
		ORDER BY died, dir, name, born LIMIT 8192`
}

// collectDeleted notes the paths of entries that ended, as they were before. Below a
// directory that was renamed nothing ended; the directory's own entry did.
func (v View) collectDeleted(ctx context.Context, p Pattern) error {
	v.db.mu.Lock()
	err := v.db.indexChanges()
	v.db.mu.Unlock()
	if err != nil {
		return err
	}
	var then *paths                                                  // those of the snapshot before died
	died, dir, name, born := int64(0), int64(0), []byte{}, int64(-1) // the last that was read
	for {
		var batch []found
		rows := 0
		v.db.mu.Lock()
		err := v.db.query(v.deletedQuery(), func(r *sqlite.Stmt) bool {
			rows++
			died, dir, name, born = r.ColumnInt64(0), r.ColumnInt64(1), column(r, 2), r.ColumnInt64(3)
			if p.matchName(string(name)) {
				batch = append(batch, found{nodeOf(dir), nodeOf(r.ColumnInt64(4)), string(name), uint64(died) - 1})
			}
			return true
		}, v.source, died, dir, name, born, v.seq)
		v.db.mu.Unlock()
		if err == nil {
			err = v.note(batch, p, func(e found) *paths {
				if then == nil || then.v.seq != e.last {
					then = newPaths(v.db.At(v.source, e.last))
				}
				return then
			})
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || rows < 8192 {
			return err
		}
	}
}

// gone reports whether a path is not in the tree, and notes who had it last and where that
// is now.
func (v View) gone(m *Match) (bool, error) {
	// An entry that ended need not be the last: a directory may have been called so since.
	held, err := v.Holders(strings.Split(m.Path, "/"))
	if err != nil || len(held) == 0 {
		return false, err
	}
	last := held[len(held)-1]
	if last.To == 0 {
		return false, nil
	}
	m.Node, m.Last = last.Node, last.To-1
	// Its attributes may be there without a name.
	entries, err := v.Entries(m.Node, 0)
	if err != nil {
		return false, err
	}
	here := newPaths(v)
	for _, e := range entries {
		path, ok, err := here.entry(e.Dir, e.Name)
		if err != nil {
			return false, err
		}
		if ok {
			m.Now = append(m.Now, path)
		}
	}
	slices.Sort(m.Now)
	return true, nil
}
