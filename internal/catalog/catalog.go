// Package catalog keeps histories as temporal tables in an SQLite file, so that
// questions about them are queries and memory does not grow with them.
//
// Every row was born at a snapshot and may have died at a later one; it is alive at
// snapshot S if born <= S and not died <= S:
//
//	nodes     (node, born, died) -> attributes
//	entries   (directory, name, born, died) -> node
//	extents   (node, offset, born, died) -> length, where the bytes are
//	recipes   patches that extents refer to
//	content   content id -> parts
//	packs     name, size, sealed key, table of blobs
//	snapshots (source, seq) -> time, name, statistics, hash of the manifest
//	kept      what a reader of streams remembers, and no manifest tells
//	signed    sums of blocks, of bytes that cannot be read; no manifest tells them
//	rolling   signatures of whole files, for the same; no manifest tells them
//
// What no extent covers is a hole. A node's key holds its source in the upper bits,
// so one file serves all sources of a writer (and a reader's all writers).
//
// The catalog is a view: package s3history rebuilds it from manifests at any time,
// and nothing is lost with it. It trusts its file, not the manifests: what goes in
// was checked by whoever put it there.
package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/secrate/secrate/internal/filetree"
)

// schemaVersion is kept in the file's user_version. A catalog of an earlier version gets
// what it has not; one of a later version is not read but made anew.
const schemaVersion = 4

// schemas are what each version has brought.
var schemas = [schemaVersion]string{schema, keptSchema, signaturesSchema, rollingSchema}

const schema = `
CREATE TABLE sources (
	id     INTEGER PRIMARY KEY,
	writer TEXT NOT NULL,
	ident  TEXT NOT NULL,
	name   TEXT NOT NULL,
	next   INTEGER NOT NULL,
	UNIQUE (writer, ident)
);
CREATE TABLE snapshots (
	source  INTEGER NOT NULL,
	seq     INTEGER NOT NULL,
	sec     INTEGER NOT NULL,
	nsec    INTEGER NOT NULL,
	root    BLOB NOT NULL,
	info    BLOB NOT NULL,
	PRIMARY KEY (source, seq)
) WITHOUT ROWID;
CREATE TABLE nodes (
	node INTEGER NOT NULL,
	born INTEGER NOT NULL,
	died INTEGER NOT NULL,
	attr BLOB NOT NULL,
	PRIMARY KEY (node, born)
) WITHOUT ROWID;
CREATE TABLE entries (
	dir  INTEGER NOT NULL,
	name BLOB NOT NULL,
	born INTEGER NOT NULL,
	died INTEGER NOT NULL,
	node INTEGER NOT NULL,
	PRIMARY KEY (dir, name, born)
) WITHOUT ROWID;
CREATE INDEX entries_node ON entries (node);
CREATE TABLE extents (
	node INTEGER NOT NULL,
	off  INTEGER NOT NULL,
	born INTEGER NOT NULL,
	died INTEGER NOT NULL,
	len  INTEGER NOT NULL,
	pack INTEGER NOT NULL, -- negative: the recipe of that number
	blob INTEGER NOT NULL,
	boff INTEGER NOT NULL,
	PRIMARY KEY (node, off, born)
) WITHOUT ROWID;
CREATE TABLE recipes (
	id    INTEGER PRIMARY KEY,
	patch BLOB NOT NULL
);
CREATE TABLE content (
	cid   BLOB PRIMARY KEY,
	parts BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE packs (
	id    INTEGER PRIMARY KEY,
	sha   BLOB UNIQUE,
	size  INTEGER NOT NULL,
	key   BLOB NOT NULL,
	blobs BLOB NOT NULL
);
CREATE TABLE told (
	source INTEGER NOT NULL,
	pack   INTEGER NOT NULL,
	PRIMARY KEY (source, pack)
) WITHOUT ROWID;
CREATE TABLE meta (
	name  TEXT PRIMARY KEY,
	value BLOB NOT NULL
) WITHOUT ROWID;
`

// changeIndexes find the rows that began or ended in a snapshot of a source, so that
// what differs between two of them is asked for without reading all there is. The rows
// of the first snapshot, in which no question about changes can be interested, are in
// none of them: they are most of all, and cost their writer nothing. A question has the
// condition <> 1 or <> 0 itself, or SQLite could not use the index.
//
// A catalog that has been written before there were any gets them when it is opened to
// be written to; until then, and in a temporary one, the questions read whole tables.
const changeIndexes = `
CREATE INDEX IF NOT EXISTS nodes_born ON nodes (node >> 40, born, node) WHERE born <> 1;
CREATE INDEX IF NOT EXISTS entries_born ON entries (dir >> 40, born, dir, name) WHERE born <> 1;
CREATE INDEX IF NOT EXISTS entries_died ON entries (dir >> 40, died, dir, name) WHERE died <> 0;
CREATE INDEX IF NOT EXISTS extents_born ON extents (node >> 40, born, node, off) WHERE born <> 1;
CREATE INDEX IF NOT EXISTS extents_died ON extents (node >> 40, died, node, off) WHERE died <> 0;
`

// ErrVersion is wrapped by Open when the file was made by another version of
// secrate; it is to be removed and rebuilt.
var ErrVersion = errors.New("catalog of another version")

// ErrDamaged is wrapped by errors that say that the file is not what was written.
// Nothing is lost with it.
var ErrDamaged = errors.New("the catalog is damaged: run secrate catalog rebuild")

// failed says more of an error of SQLite's.
func failed(err error) error {
	switch sqlite.ErrCode(err).ToPrimary() {
	case sqlite.ResultCorrupt, sqlite.ResultNotADB:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return fmt.Errorf("catalog: %w", err)
}

// nodeBits is how much of a node's key is the node; the rest is the source.
const nodeBits = 40

// A DB is an open catalog. Its methods may be called concurrently; they wait for
// one another.
type DB struct {
	mu    sync.Mutex // guards all below
	conn  *sqlite.Conn
	stmts map[string]*sqlite.Stmt
	path  string

	noContent bool
	temporary bool
	indexed   bool // entries_node is there; false: it may not be
	changes   bool // changeIndexes are there
}

// KeepsContent reports whether SetContent is of use.
func (db *DB) KeepsContent() bool { return !db.noContent }

// Options of Open. The zero value is the default.
type Options struct {
	ReadOnly   bool
	CacheBytes int64 // SQLite's page cache; 0 means 24 MiB
	Temporary  bool  // not kept: no durability is asked for
	NoContent  bool  // only read from: what only a writer needs, content ids, is not kept
}

// Open opens the catalog at path, and makes it if it is missing.
func Open(path string, o Options) (*DB, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = 24 << 20
	}
	flags := []sqlite.OpenFlags{sqlite.OpenReadWrite, sqlite.OpenCreate}
	if o.ReadOnly {
		flags = []sqlite.OpenFlags{sqlite.OpenReadOnly}
	} else {
		// SQLite would make it with the umask's mode.
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open catalog: %w", err)
		}
		f.Close()
	}
	conn, err := sqlite.OpenConn(path, flags...)
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", path, failed(err))
	}
	db := &DB{conn: conn, stmts: map[string]*sqlite.Stmt{}, path: path, noContent: o.NoContent, temporary: o.Temporary, indexed: o.ReadOnly}
	if err := db.setup(o); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open catalog %s: %w", path, err)
	}
	return db, nil
}

func (db *DB) setup(o Options) error {
	db.conn.SetBusyTimeout(30e9)
	pragmas := []string{fmt.Sprintf("PRAGMA cache_size = -%d", o.CacheBytes>>10), "PRAGMA temp_store = FILE"}
	switch {
	case o.ReadOnly:
	case o.Temporary:
		// With no journal at all nothing could be rolled back, which a damaged manifest
		// asks for. In a file that starts empty it costs little.
		pragmas = append(pragmas, "PRAGMA journal_mode = TRUNCATE", "PRAGMA synchronous = OFF", "PRAGMA locking_mode = EXCLUSIVE")
	default:
		// FULL, not NORMAL: a commit that a power cut takes back would let the
		// next snapshot get the same number again.
		pragmas = append(pragmas, "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA wal_autocheckpoint = 4096")
	}
	for _, p := range pragmas {
		if err := sqlitex.ExecuteTransient(db.conn, p, nil); err != nil {
			return failed(err)
		}
	}
	version := int64(-1)
	err := sqlitex.ExecuteTransient(db.conn, "PRAGMA user_version", &sqlitex.ExecOptions{
		ResultFunc: func(s *sqlite.Stmt) error { version = s.ColumnInt64(0); return nil }})
	if err != nil {
		return failed(err)
	}
	if version >= 0 && version < schemaVersion && !o.ReadOnly {
		script := strings.Join(schemas[version:], "") + fmt.Sprintf("PRAGMA user_version = %d;", schemaVersion)
		if err := sqlitex.ExecuteScript(db.conn, script, nil); err != nil {
			return failed(err)
		}
		version = schemaVersion
	}
	if version >= 1 && version < schemaVersion { // which a reader has no need to change
		version = schemaVersion
	}
	if version == schemaVersion && !o.ReadOnly && !o.Temporary {
		if err := sqlitex.ExecuteScript(db.conn, changeIndexes, nil); err != nil {
			return failed(err)
		}
		db.changes = true
	}
	if o.ReadOnly {
		err := sqlitex.ExecuteTransient(db.conn, "SELECT 1 FROM sqlite_schema WHERE name = 'extents_died'", &sqlitex.ExecOptions{
			ResultFunc: func(*sqlite.Stmt) error { db.changes = true; return nil }}) // it is the last one
		if err != nil {
			return failed(err)
		}
	}
	if version != schemaVersion {
		return fmt.Errorf("%w: %d, this secrate reads %d: run secrate catalog rebuild", ErrVersion, version, schemaVersion)
	}
	return nil
}

// Close closes the catalog. A transaction that is open is rolled back.
func (db *DB) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.reset()
	return db.conn.Close()
}

// Path returns the file's name.
func (db *DB) Path() string { return db.path }

func (db *DB) reset() {
	for _, s := range db.stmts {
		s.Finalize()
	}
	clear(db.stmts)
}

// stmt returns the prepared statement for query, with args bound. The caller holds
// mu and resets it when done.
func (db *DB) stmt(query string, args ...any) (*sqlite.Stmt, error) {
	s := db.stmts[query]
	if s == nil {
		var err error
		if s, _, err = db.conn.PrepareTransient(query); err != nil {
			return nil, failed(err)
		}
		db.stmts[query] = s
	}
	for i, a := range args {
		switch a := a.(type) {
		case int64:
			s.BindInt64(i+1, a)
		case uint64:
			s.BindInt64(i+1, int64(a))
		case int:
			s.BindInt64(i+1, int64(a))
		case uint32:
			s.BindInt64(i+1, int64(a))
		case PackID:
			s.BindInt64(i+1, int64(a))
		case string:
			s.BindText(i+1, a)
		case []byte:
			if len(a) == 0 { // an empty BLOB, not NULL
				s.BindZeroBlob(i+1, 0)
			} else {
				s.BindBytes(i+1, a)
			}
		default:
			panic(fmt.Sprintf("catalog: internal error: argument of type %T", a))
		}
	}
	return s, nil
}

// exec runs a statement that gives no rows. The caller holds mu.
func (db *DB) exec(query string, args ...any) error {
	s, err := db.stmt(query, args...)
	if err != nil {
		return err
	}
	_, err = s.Step()
	s.Reset()
	if err != nil {
		return failed(err)
	}
	return nil
}

// query calls row for each row, until it returns false. The caller holds mu; row
// must not call the DB.
func (db *DB) query(query string, row func(*sqlite.Stmt) bool, args ...any) error {
	s, err := db.stmt(query, args...)
	if err != nil {
		return err
	}
	defer s.Reset()
	for {
		more, err := s.Step()
		if err != nil {
			return failed(err)
		}
		if !more || !row(s) {
			return nil
		}
	}
}

func column(s *sqlite.Stmt, i int) []byte {
	b := make([]byte, s.ColumnLen(i))
	s.ColumnBytes(i, b)
	return b
}

func columnString(s *sqlite.Stmt, i int) string { return string(column(s, i)) }

// Begin starts a transaction: what is changed from here on is seen by other
// connections when it is committed, and never if it is not.
func (db *DB) Begin() error { return db.script("BEGIN IMMEDIATE") }

// Commit makes the transaction durable, with the index that unindex may have dropped.
func (db *DB) Commit() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if !db.temporary {
		if err := db.index(); err != nil {
			return err
		}
	}
	return db.exec("COMMIT")
}

// Rollback drops the transaction, if there is one.
func (db *DB) Rollback() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.indexed = false // SQLite may have rolled back by itself
	if db.conn.AutocommitEnabled() {
		return nil
	}
	return db.exec("ROLLBACK")
}

func (db *DB) script(q string) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.exec(q)
}

// SetInterrupt makes running statements stop when ctx is done.
func (db *DB) SetInterrupt(ctx context.Context) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.conn.SetInterrupt(ctx.Done())
}

// A Source is one dataset, subvolume or directory of a writer.
type Source struct {
	ID     int64
	Writer string // the writer's id
	Ident  string // as it stands in object names
	Name   string
}

// AddSource returns the source of that writer and ident, made if it is not there.
func (db *DB) AddSource(writer, ident, name string) (Source, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	s := Source{Writer: writer, Ident: ident, Name: name}
	err := db.exec("INSERT OR IGNORE INTO sources (writer, ident, name, next) VALUES (?, ?, ?, 2)", writer, ident, name)
	if err != nil {
		return s, err
	}
	err = db.query("SELECT id, name FROM sources WHERE writer = ? AND ident = ?", func(r *sqlite.Stmt) bool {
		s.ID, s.Name = r.ColumnInt64(0), columnString(r, 1)
		return true
	}, writer, ident)
	if err == nil && s.ID >= 1<<(62-nodeBits) {
		err = errors.New("catalog: too many sources")
	}
	return s, err
}

// Sources returns all sources, by name.
func (db *DB) Sources() ([]Source, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	var all []Source
	err := db.query("SELECT id, writer, ident, name FROM sources ORDER BY name, id", func(r *sqlite.Stmt) bool {
		all = append(all, Source{r.ColumnInt64(0), columnString(r, 1), columnString(r, 2), columnString(r, 3)})
		return true
	})
	return all, err
}

// A Snapshot is one committed point in time of a source.
type Snapshot struct {
	Seq  uint64
	Time filetree.Time
	Root [32]byte // SHA-256 of the manifest's root object
	Info []byte   // what package s3history keeps beside it
}

// AddSnapshot records a snapshot.
func (db *DB) AddSnapshot(source int64, s Snapshot) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.exec("INSERT INTO snapshots (source, seq, sec, nsec, root, info) VALUES (?, ?, ?, ?, ?, ?)",
		source, s.Seq, s.Time.Sec, s.Time.Nsec, s.Root[:], s.Info)
}

// Snapshots returns a source's snapshots in order.
func (db *DB) Snapshots(source int64) ([]Snapshot, error) {
	return db.snapshots("SELECT seq, sec, nsec, root, info FROM snapshots WHERE source = ? ORDER BY seq", source)
}

// SnapshotsAfter returns those of a source's snapshots whose numbers are higher than seq, in order.
func (db *DB) SnapshotsAfter(source int64, seq uint64) ([]Snapshot, error) {
	return db.snapshots("SELECT seq, sec, nsec, root, info FROM snapshots WHERE source = ? AND seq > ? ORDER BY seq", source, seq)
}

// Head returns a source's newest snapshot; Seq is 0 when there is none.
func (db *DB) Head(source int64) (Snapshot, error) {
	all, err := db.snapshots("SELECT seq, sec, nsec, root, info FROM snapshots WHERE source = ? ORDER BY seq DESC LIMIT 1", source)
	if len(all) == 0 {
		return Snapshot{}, err
	}
	return all[0], nil
}

func (db *DB) snapshots(q string, args ...any) ([]Snapshot, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	var all []Snapshot
	err := db.query(q, func(r *sqlite.Stmt) bool {
		s := Snapshot{Seq: uint64(r.ColumnInt64(0)), Info: column(r, 4),
			Time: filetree.Time{Sec: r.ColumnInt64(1), Nsec: uint32(r.ColumnInt64(2))}}
		copy(s.Root[:], column(r, 3))
		all = append(all, s)
		return true
	}, args...)
	return all, err
}

// NextNode returns the number the source's next new node gets.
func (db *DB) NextNode(source int64) (n filetree.NodeID, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err = db.query("SELECT next FROM sources WHERE id = ?", func(r *sqlite.Stmt) bool {
		n = filetree.NodeID(r.ColumnInt64(0))
		return true
	}, source)
	return n, err
}

// SetNextNode records it.
func (db *DB) SetNextNode(source int64, n filetree.NodeID) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.exec("UPDATE sources SET next = ? WHERE id = ?", int64(n), source)
}

// Meta returns a value kept by SetMeta, or nil.
func (db *DB) Meta(name string) (v []byte, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err = db.query("SELECT value FROM meta WHERE name = ?", func(r *sqlite.Stmt) bool { v = column(r, 0); return true }, name)
	return v, err
}

// SetMeta keeps a value under a name of the caller's.
func (db *DB) SetMeta(name string, v []byte) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.exec("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", name, v)
}

// A Pack is what is known of one.
type Pack struct {
	ID    PackID
	SHA   [32]byte
	Size  int64  // of the object, in bytes
	Key   []byte // sealed to the recipients
	Blobs []Blob
}

// A Blob is one entry of a pack's table.
type Blob struct {
	Length uint32 // as stored
	Plain  uint32 // decrypted and decompressed
}

// AddPack returns the id of the pack named sha, and adds it if it is not known yet
// or was known without its table.
func (db *DB) AddPack(p Pack) (PackID, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	var id PackID
	var size int64
	find := func() error {
		return db.query("SELECT id, size FROM packs WHERE sha = ?", func(r *sqlite.Stmt) bool {
			id, size = PackID(r.ColumnInt64(0)), r.ColumnInt64(1)
			return true
		}, p.SHA[:])
	}
	if err := find(); err != nil {
		return 0, err
	}
	switch {
	case id == 0:
		err := db.exec("INSERT INTO packs (sha, size, key, blobs) VALUES (?, ?, ?, ?)", p.SHA[:], p.Size, p.Key, appendBlobs(nil, p.Blobs))
		return PackID(db.conn.LastInsertRowID()), err
	case size == 0 && p.Size != 0:
		return id, db.exec("UPDATE packs SET size = ?, key = ?, blobs = ? WHERE id = ?", p.Size, p.Key, appendBlobs(nil, p.Blobs), id)
	}
	return id, nil
}

// ReservePack returns an id for a pack that is still being filled.
func (db *DB) ReservePack() (PackID, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err := db.exec("INSERT INTO packs (sha, size, key, blobs) VALUES (NULL, 0, x'', x'')")
	return PackID(db.conn.LastInsertRowID()), err
}

// FillPack sets what is known of a reserved pack now that it is closed.
func (db *DB) FillPack(p Pack) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.exec("UPDATE packs SET sha = ?, size = ?, key = ?, blobs = ? WHERE id = ?",
		p.SHA[:], p.Size, p.Key, appendBlobs(nil, p.Blobs), p.ID)
}

const packColumns = "SELECT id, sha, size, key, blobs FROM packs "

func scanPack(r *sqlite.Stmt) (Pack, error) {
	p := Pack{ID: PackID(r.ColumnInt64(0)), Size: r.ColumnInt64(2), Key: column(r, 3)}
	copy(p.SHA[:], column(r, 1))
	var err error
	p.Blobs, err = decodeBlobs(column(r, 4))
	return p, err
}

// Pack returns a pack, or an error that wraps filetree.ErrNotExist.
func (db *DB) Pack(id PackID) (p Pack, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err = fmt.Errorf("pack %d: %w", id, filetree.ErrNotExist)
	qerr := db.query(packColumns+"WHERE id = ?", func(r *sqlite.Stmt) bool {
		p, err = scanPack(r)
		return false
	}, id)
	return p, errors.Join(qerr, err)
}

// PackNamed returns the id of the pack of that name if it is known with its table,
// else 0.
func (db *DB) PackNamed(sha [32]byte) (id PackID, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err = db.query("SELECT id FROM packs WHERE sha = ? AND size > 0", func(r *sqlite.Stmt) bool {
		id = PackID(r.ColumnInt64(0))
		return false
	}, sha[:])
	return id, err
}

// Packs yields all packs that have a name.
func (db *DB) Packs() iter.Seq2[Pack, error] {
	return func(yield func(Pack, error) bool) {
		for last := PackID(0); ; {
			var batch []Pack
			var err error
			db.mu.Lock()
			qerr := db.query(packColumns+"WHERE id > ? AND sha IS NOT NULL ORDER BY id LIMIT 256", func(r *sqlite.Stmt) bool {
				var p Pack
				p, err = scanPack(r)
				batch = append(batch, p)
				return err == nil
			}, last)
			db.mu.Unlock()
			if err = errors.Join(qerr, err); err != nil {
				yield(Pack{}, err)
				return
			}
			if len(batch) == 0 {
				return
			}
			for _, p := range batch {
				if !yield(p, nil) {
					return
				}
				last = p.ID
			}
		}
	}
}

// Tell records that a manifest of the source has told all of a pack, and reports
// whether that was news.
func (db *DB) Tell(source int64, p PackID) (news bool, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err = db.exec("INSERT OR IGNORE INTO told (source, pack) VALUES (?, ?)", source, p)
	return db.conn.Changes() > 0, err
}

// Told reports whether a manifest of the source has told all of a pack.
func (db *DB) Told(source int64, p PackID) (told bool, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	err = db.query("SELECT 1 FROM told WHERE source = ? AND pack = ?", func(*sqlite.Stmt) bool {
		told = true
		return false
	}, source, p)
	return told, err
}

func appendBlobs(b []byte, blobs []Blob) []byte {
	for _, x := range blobs {
		b = append(b, byte(x.Length), byte(x.Length>>8), byte(x.Length>>16), byte(x.Length>>24),
			byte(x.Plain), byte(x.Plain>>8), byte(x.Plain>>16), byte(x.Plain>>24))
	}
	return b
}

func decodeBlobs(b []byte) ([]Blob, error) {
	if len(b)%8 != 0 {
		return nil, errParts
	}
	blobs := make([]Blob, len(b)/8)
	u32 := func(b []byte) uint32 {
		return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
	}
	for i := range blobs {
		blobs[i] = Blob{u32(b[8*i:]), u32(b[8*i+4:])}
	}
	return blobs, nil
}

// Content returns the parts that give the content of that id, or nil.
func (db *DB) Content(cid [16]byte) (parts []Part, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	qerr := db.query("SELECT parts FROM content WHERE cid = ?", func(r *sqlite.Stmt) bool {
		parts, err = decodeParts(column(r, 0))
		return false
	}, cid[:])
	return parts, errors.Join(qerr, err)
}

// SetContent records where content is, unless that is known already.
func (db *DB) SetContent(cid [16]byte, parts []Part) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.exec("INSERT OR IGNORE INTO content (cid, parts) VALUES (?, ?)", cid[:], appendParts(nil, parts))
}

// Savepoint starts a part of a transaction that can be dropped alone.
func (db *DB) Savepoint() error { return db.script("SAVEPOINT part") }

// Release ends the part that Savepoint started: it is kept, or dropped.
func (db *DB) Release(keep bool) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if !keep {
		db.indexed = false
		if err := db.exec("ROLLBACK TO part"); err != nil {
			return err
		}
	}
	return db.exec("RELEASE part")
}

// index makes sure that the names of a node can be found by it: entries_node may be
// missing after unindex. The caller holds mu.
func (db *DB) index() error {
	if db.indexed {
		return nil
	}
	err := db.exec("CREATE INDEX IF NOT EXISTS entries_node ON entries (node)")
	db.indexed = err == nil
	return err
}

// indexChanges makes changeIndexes in a temporary catalog, for those who ask again and
// again. The caller holds mu.
func (db *DB) indexChanges() error {
	if db.changes || !db.temporary {
		return nil
	}
	if err := sqlitex.ExecuteScript(db.conn, changeIndexes, nil); err != nil {
		return failed(err)
	}
	db.changes = true
	return nil
}

// by makes a query read one of changeIndexes, if they are there: where it also says which
// node or directory, SQLite would rather read all rows of that.
func (db *DB) by(index string) string {
	if !db.changes {
		return ""
	}
	return " INDEXED BY " + index
}

// unindex drops entries_node if there are no entries yet. To make the index when it is
// wanted takes much less than to keep it while millions of entries come in, and a
// temporary catalog may never want it. One that is kept gets it with the commit. The
// caller holds mu.
func (db *DB) unindex() error {
	empty := true
	err := db.query("SELECT 1 FROM entries LIMIT 1", func(*sqlite.Stmt) bool { empty = false; return false })
	if err != nil || !empty {
		return err
	}
	db.indexed = false
	return db.exec("DROP INDEX IF EXISTS entries_node")
}

// PacksByName yields all packs that have a name, in order of it.
func (db *DB) PacksByName() iter.Seq2[Pack, error] {
	return func(yield func(Pack, error) bool) {
		for last := []byte{}; ; {
			var batch []Pack
			var err error
			db.mu.Lock()
			qerr := db.query(packColumns+"WHERE sha > ? ORDER BY sha LIMIT 256", func(r *sqlite.Stmt) bool {
				var p Pack
				p, err = scanPack(r)
				batch = append(batch, p)
				return err == nil
			}, last)
			db.mu.Unlock()
			if err = errors.Join(qerr, err); err != nil {
				yield(Pack{}, err)
				return
			}
			if len(batch) == 0 {
				return
			}
			for _, p := range batch {
				if !yield(p, nil) {
					return
				}
			}
			last = batch[len(batch)-1].SHA[:]
		}
	}
}

// A Use says that a file needs a pack, last at LastSeq.
type Use struct {
	Node    filetree.NodeID
	LastSeq uint64
}

// UsesOf returns the files of a source that need a pack in some snapshot, at most
// limit of them. It reads all extents, and looks into all patches.
func (db *DB) UsesOf(source int64, pack PackID, limit int) ([]Use, error) {
	head, err := db.Head(source)
	if err != nil {
		return nil, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	recipes := map[int64]bool{}
	var bad error
	err = db.query("SELECT id, patch FROM recipes", func(r *sqlite.Stmt) bool {
		var q *Patch
		if q, bad = decodePatch(column(r, 1)); bad != nil {
			return false
		}
		if q.uses(pack) {
			recipes[-r.ColumnInt64(0)] = true
		}
		return true
	})
	if err = errors.Join(err, bad); err != nil {
		return nil, err
	}
	last := map[filetree.NodeID]uint64{}
	err = db.query("SELECT node, pack, died FROM extents WHERE node >= ? AND node < ?", func(r *sqlite.Stmt) bool {
		if p := r.ColumnInt64(1); p != int64(pack) && !recipes[p] {
			return true
		}
		seq := head.Seq
		if d := r.ColumnInt64(2); d > 0 {
			seq = uint64(d) - 1
		}
		n := nodeOf(r.ColumnInt64(0))
		if _, ok := last[n]; ok || len(last) < limit {
			last[n] = max(last[n], seq)
		}
		return true
	}, source<<nodeBits, (source+1)<<nodeBits)
	var uses []Use
	for n, seq := range last {
		uses = append(uses, Use{n, seq})
	}
	slices.SortFunc(uses, func(a, b Use) int { return cmp.Compare(a.Node, b.Node) })
	return uses, err
}

func (q *Patch) uses(pack PackID) bool {
	return q.Pack == pack || slices.ContainsFunc(q.Base, func(p Part) bool {
		return p.Pack == pack || p.Patch != nil && p.Patch.uses(pack)
	})
}
