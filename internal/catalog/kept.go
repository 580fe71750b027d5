package catalog

import (
	"iter"

	"zombiezen.com/go/sqlite"
)

// What a reader of streams has to remember of a source to understand the next stream, and
// that no manifest tells: rows of bytes by a key of bytes, with a lifetime like all others.
// A catalog that was rebuilt has none; then the source is told from a full stream.
const keptSchema = `
CREATE TABLE kept (
	source INTEGER NOT NULL,
	key    BLOB NOT NULL,
	born   INTEGER NOT NULL,
	died   INTEGER NOT NULL,
	value  BLOB NOT NULL,
	PRIMARY KEY (source, key, born)
) WITHOUT ROWID;
`

// A Kept is a row that Keep has made.
type Kept struct{ Key, Value []byte }

// Kept returns what is kept under a key, or nil.
func (v View) Kept(key []byte) ([]byte, error) {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	var value []byte
	err := v.db.query("SELECT value FROM kept WHERE source = ?1 AND key = ?3"+alive, func(r *sqlite.Stmt) bool {
		value = column(r, 0)
		return false
	}, v.source, v.seq, key)
	return value, err
}

// Keep keeps a value under a key; one that is empty takes the key away.
func (v View) Keep(key, value []byte) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	err := v.db.exec("UPDATE kept SET died = ?2 WHERE source = ?1 AND key = ?3 AND died = 0 AND born < ?2", v.source, v.seq, key)
	if err != nil {
		return err
	}
	if len(value) == 0 {
		return v.db.exec("DELETE FROM kept WHERE source = ?1 AND key = ?3 AND born = ?2", v.source, v.seq, key)
	}
	return v.db.exec("INSERT OR REPLACE INTO kept (source, key, born, died, value) VALUES (?1, ?3, ?2, 0, ?4)", v.source, v.seq, key, value)
}

// KeptFrom yields what is kept under keys from from on and below to, in order. What is
// kept meanwhile may or may not be among it.
func (v View) KeptFrom(from, to []byte) iter.Seq2[Kept, error] {
	const batchSize = 512
	return func(yield func(Kept, error) bool) {
		for op := ">="; ; op = ">" {
			var batch []Kept
			v.db.mu.Lock()
			err := v.db.query("SELECT key, value FROM kept WHERE source = ?1"+alive+"AND key "+op+" ?3 AND key < ?4 ORDER BY key LIMIT ?5",
				func(r *sqlite.Stmt) bool {
					batch = append(batch, Kept{column(r, 0), column(r, 1)})
					return true
				}, v.source, v.seq, from, to, batchSize)
			v.db.mu.Unlock()
			if err != nil {
				yield(Kept{}, err)
				return
			}
			for _, k := range batch {
				if !yield(k, nil) {
					return
				}
			}
			if len(batch) < batchSize {
				return
			}
			from = batch[len(batch)-1].Key
		}
	}
}

// KeptChanges yields the rows that are new in this snapshot and, without a value, those
// that ended in it.
func (v View) KeptChanges() iter.Seq2[Kept, error] {
	const batchSize = 512
	return func(yield func(Kept, error) bool) {
		last, op := []byte{}, ">="
		for {
			var batch []Kept
			v.db.mu.Lock()
			err := v.db.query("SELECT key, max(born) = ?2, max(CASE WHEN born = ?2 THEN value END) FROM kept WHERE source = ?1 AND key "+op+
				" ?3 AND (born = ?2 OR died = ?2) GROUP BY key ORDER BY key LIMIT ?4",
				func(r *sqlite.Stmt) bool {
					k := Kept{Key: column(r, 0)}
					if r.ColumnInt64(1) != 0 {
						k.Value = column(r, 2)
					}
					batch = append(batch, k)
					return true
				}, v.source, v.seq, last, batchSize)
			v.db.mu.Unlock()
			if err != nil {
				yield(Kept{}, err)
				return
			}
			for _, k := range batch {
				if !yield(k, nil) {
					return
				}
			}
			if len(batch) < batchSize {
				return
			}
			last, op = batch[len(batch)-1].Key, ">"
		}
	}
}

// RevertKept makes what is kept what it was at snapshot seq.
func (v View) RevertKept(seq uint64) error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if err := v.db.exec("DELETE FROM kept WHERE source = ?1 AND born = ?2", v.source, v.seq); err != nil {
		return err
	}
	for _, q := range []string{
		"UPDATE kept SET died = ?2 WHERE source = ?1 AND died = 0 AND born > ?3",
		`INSERT INTO kept (source, key, born, died, value) SELECT source, key, ?2, 0, value FROM kept
			WHERE source = ?1 AND born <= ?3 AND died > ?3`,
	} {
		if err := v.db.exec(q, v.source, v.seq, seq); err != nil {
			return err
		}
	}
	return nil
}

// EndKept takes away all that is kept.
func (v View) EndKept() error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	if err := v.db.exec("DELETE FROM kept WHERE source = ?1 AND born = ?2", v.source, v.seq); err != nil {
		return err
	}
	return v.db.exec("UPDATE kept SET died = ?2 WHERE source = ?1 AND died = 0", v.source, v.seq)
}

// KeepBefore makes what was kept in this snapshot what the one before has kept: there is
// nothing else in this one, and it will not be.
func (v View) KeepBefore() error {
	v.db.mu.Lock()
	defer v.db.mu.Unlock()
	for _, q := range []string{
		// What the one before has of the same keys gives way, and what ended is as if it
		// had ended then.
		"DELETE FROM kept WHERE source = ?1 AND born = ?2 - 1 AND died = ?2",
		"UPDATE kept SET died = ?2 - 1 WHERE source = ?1 AND died = ?2",
		"UPDATE kept SET born = ?2 - 1 WHERE source = ?1 AND born = ?2",
	} {
		if err := v.db.exec(q, v.source, v.seq); err != nil {
			return err
		}
	}
	return nil
}
