package s3history

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store"
)

// WriterOptions of NewWriter. The zero value of each field that is not said to be
// needed is its default.
type WriterOptions struct {
	Store      store.Store      // needed
	StateDir   string           // needed: where the journal is
	Catalog    *catalog.DB      // needed; the Writer does not close it
	Identity   WriterIdentity   // needed
	Recipients *seal.Recipients // needed

	Uploads  int   // packs on their way at once; 0 means 3
	PackSize int64 // stored bytes at which a pack is closed; 0 means 16 MiB
	// PartialAfter is how long a full snapshot may take before what there is of it
	// is committed as a partial one; 0 means 10 minutes, negative means never.
	PartialAfter time.Duration
	SegmentSize  int          // bytes of records at which a segment is written; 0 means 3 MiB
	Log          *slog.Logger // nil means none
}

func (o WriterOptions) uploads() int {
	if o.Uploads > 0 {
		return o.Uploads
	}
	return 3
}

func (o WriterOptions) packSize() int64 {
	if o.PackSize > 0 {
		return o.PackSize
	}
	return 16 << 20
}

func (o WriterOptions) segmentSize() int {
	if o.SegmentSize > 0 {
		return o.SegmentSize
	}
	return flushSize
}

func (o WriterOptions) level() zstd.EncoderLevel { return zstd.SpeedDefault }

func (o WriterOptions) partialAfter() time.Duration {
	if o.PartialAfter == 0 {
		return 10 * time.Minute
	}
	return o.PartialAfter
}

// A WriterIdentity is who a writer is: what its state directory keeps.
type WriterIdentity struct {
	Repo RepoID
	ID   string   // 16 hex digits
	Name string   // for people: the host
	Key  seal.Key // the metadata key
}

// A Writer adds snapshots to the histories of one writer. It makes one [Update] at a
// time; nothing of it is safe for concurrent use.
type Writer struct {
	opts       WriterOptions
	store      store.Store
	cat        *catalog.DB
	journal    *journal
	repo       RepoID
	id         string
	meta       seal.Key
	content    seal.Key
	blockSum   seal.Key
	rollingSum seal.Key
	recipients *seal.Recipients
	log        *slog.Logger
	busy       bool
}

// NewWriter opens the journal in the state directory and looks at what earlier runs
// left there.
func NewWriter(ctx context.Context, o WriterOptions) (*Writer, error) {
	w := &Writer{opts: o, store: o.Store, cat: o.Catalog, repo: o.Identity.Repo, id: o.Identity.ID,
		meta: o.Identity.Key, recipients: o.Recipients, log: o.Log}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	w.content = w.meta.Derive(labelContent, w.repo[:])
	w.blockSum = w.meta.Derive(labelBlockSum, w.repo[:])
	w.rollingSum = w.meta.Derive(labelRolling, w.repo[:])
	var err error
	if w.journal, err = openJournal(o.StateDir); err != nil {
		return nil, err
	}
	return w, w.journal.load(ctx, w.store, w.cat)
}

// Source returns the source of that name, made in the catalog if it is new.
func (w *Writer) Source(name string) (catalog.Source, error) {
	return w.cat.AddSource(w.id, sourceIdent(w.meta, w.repo, name), name)
}

// Recover finishes what a crash or a lost network stopped between the decision to
// commit and the end of it: it puts the roots that the journal has and brings the
// catalog up to them. It returns the snapshots so completed.
func (w *Writer) Recover(ctx context.Context) ([]Snapshot, error) {
	commits, err := w.journal.commits()
	if err != nil {
		return nil, err
	}
	var done []Snapshot
	for _, c := range commits {
		s, err := w.recover(ctx, c)
		if err != nil {
			return done, fmt.Errorf("complete snapshot #%d of %s: %w", c.Seq, c.Name, err)
		}
		done = append(done, s...)
	}
	return done, nil
}

func (w *Writer) recover(ctx context.Context, c commitFile) ([]Snapshot, error) {
	source, err := w.cat.AddSource(w.id, c.Ident, c.Name)
	if err != nil {
		return nil, err
	}
	head, err := w.cat.Head(source.ID)
	if err != nil {
		return nil, err
	}
	for _, sha := range c.Segments {
		w.journal.started = append(w.journal.started, fmt.Sprintf("segment-%x", sha))
	}
	if head.Seq >= c.Seq { // killed after the catalog's commit
		return nil, w.journal.committed(c.Ident)
	}
	if head.Seq != c.Seq-1 {
		return nil, fmt.Errorf("the catalog is at #%d: run secrate catalog rebuild", head.Seq)
	}
	if err := w.putRoot(ctx, source, c.Seq, kindRoot, c.Root); err != nil {
		return nil, err
	}
	var r root
	place := w.place(source, c.Seq, labelRoot, 0)
	if err := openManifest(w.meta, place, c.Root, &r); err != nil {
		return nil, err
	}
	if err := w.cat.Begin(); err != nil {
		return nil, err
	}
	defer w.cat.Rollback()
	segment := func(ctx context.Context, ref segmentRef) ([]byte, error) {
		// A power cut may have taken the file back; what is in the store stays.
		if b, err := w.journal.segment(ref.SHA); err == nil && hashOf(b) == [32]byte(ref.SHA) {
			return b, nil
		}
		return readManifest(ctx, w.store, metaName{source.Writer, source.Ident, c.Seq, kindSegment, [32]byte(ref.SHA)})
	}
	info, err := applyRoot(ctx, w.cat, source, w.meta, place, &r, c.Root, segment, nil)
	if err != nil {
		return nil, err
	}
	if err := w.journal.kept(c.Ident, w.cat.At(source.ID, c.Seq).Keep); err != nil {
		return nil, err
	}
	for name, v := range c.Notes {
		if err := w.SetNote(source, name, v); err != nil {
			return nil, err
		}
	}
	if err := w.cat.Commit(); err != nil {
		return nil, err
	}
	return []Snapshot{info}, errors.Join(w.journal.committed(c.Ident), w.journal.dropKnown(w.cat))
}

func (w *Writer) place(s catalog.Source, seq uint64, label string, n uint32) metaPlace {
	return metaPlace{w.repo, s.Writer, s.Ident, seq, label, n}
}

// putMeta puts a manifest object in both places.
func (w *Writer) putMeta(ctx context.Context, name metaName, obj []byte) error {
	for _, prefix := range metaPrefixes {
		key := prefix + name.String()
		err := w.store.Put(ctx, key, bytes.NewReader(obj), int64(len(obj)))
		if err != nil && !errors.Is(err, store.ErrExist) {
			return fmt.Errorf("upload %s: %w", key, err)
		}
	}
	return nil
}

func (w *Writer) putRoot(ctx context.Context, s catalog.Source, seq uint64, kind rootKind, obj []byte) error {
	return w.putMeta(ctx, metaName{s.Writer, s.Ident, seq, kind, sha256.Sum256(obj)}, obj)
}

// ErrBehind is wrapped by Begin when the store has a snapshot that the catalog does not
// know: to number the next one like it would fork the history.
var ErrBehind = errors.New("the catalog is behind what is stored: run secrate catalog rebuild; if another machine writes with a copy of this state, it needs a state of its own")

// checkAhead looks for a root that another Writer, or this one before its catalog was
// lost, has put under the number of the next snapshot.
func (w *Writer) checkAhead(ctx context.Context, s catalog.Source, seq uint64) error {
	for o, err := range w.store.List(ctx, fmt.Sprintf("%s%s/%s/%010d-", metaPrefixes[0], s.Writer, s.Ident, seq)) {
		if errors.Is(err, store.ErrPermission) {
			return nil // then nobody can know
		} else if err != nil {
			return err
		}
		return fmt.Errorf("snapshot #%d of %s is stored as %s: %w", seq, s.Name, o.Key, ErrBehind)
	}
	return nil
}

// ErrPending is wrapped by Begin while there is something for Recover to do.
var ErrPending = errors.New("a commit was interrupted")

// Begin opens an Update that makes the next snapshot of a source.
func (w *Writer) Begin(ctx context.Context, source catalog.Source, info SnapshotInfo) (*Update, error) {
	if w.busy {
		panic("s3history: internal error: two updates at once")
	}
	if c, err := w.journal.commits(); err != nil {
		return nil, err
	} else if len(c) > 0 {
		return nil, fmt.Errorf("snapshot #%d of %s is to be completed first: %w", c[0].Seq, c[0].Name, ErrPending)
	}
	head, err := w.Head(source)
	if err != nil {
		return nil, err
	}
	if err := w.checkAhead(ctx, source, head.Seq+1); err != nil {
		return nil, err
	}
	next, err := w.cat.NextNode(source.ID)
	if err != nil {
		return nil, err
	}
	if err := w.cat.Begin(); err != nil {
		return nil, err
	}
	w.busy = true
	u := &Update{
		w: w, ctx: ctx, source: source, info: info, head: head, next: next,
		started: time.Now(), attrs: map[filetree.NodeID]*cachedAttr{},
		enc: newEncoder(zstd.SpeedBetterCompression),
	}
	u.start(head.Seq + 1)
	if head.Seq == 0 {
		u.flags |= flagFull
		root := filetree.Attr{Kind: filetree.Dir, Mode: 0o755}
		if err := u.v.AddNode(filetree.RootNode, &root); err != nil {
			u.Abort()
			return nil, err
		}
		u.touch(filetree.RootNode)
	}
	return u, nil
}

// Head returns the newest snapshot of a source; its Seq is 0 when there is none.
func (w *Writer) Head(source catalog.Source) (Snapshot, error) {
	s, err := w.cat.Head(source.ID)
	if err != nil || s.Seq == 0 {
		return Snapshot{}, err
	}
	return decodeSnapshot(source, s)
}

// A SnapshotInfo is what the source's file system says of a snapshot.
type SnapshotInfo struct {
	Time    filetree.Time
	Origin  string   // the file system's name of it
	GUID    [16]byte // the file system's identity of it; zero when it has none
	Exclude []string // patterns of what was left out
	Host    string
}

// A Snapshot is one committed point in time of a source.
type Snapshot struct {
	Source   string
	Seq      uint64
	Info     SnapshotInfo
	Root     [32]byte
	Partial  bool
	Files    uint64 // new, changed and ended, directories not counted
	Bytes    uint64 // of data looked at
	Uploaded int64  // bytes that its objects have, both copies of manifests counted
	Objects  int
	Manifest int64 // bytes of its manifest, one copy
}

// storedInfo is a Snapshot as the catalog keeps it.
type storedInfo struct {
	Origin   []byte   `cbor:"1,keyasint,omitempty"`
	GUID     []byte   `cbor:"2,keyasint,omitempty"`
	Exclude  [][]byte `cbor:"3,keyasint,omitempty"`
	Partial  bool     `cbor:"4,keyasint,omitempty"`
	Files    uint64   `cbor:"5,keyasint,omitempty"`
	Bytes    uint64   `cbor:"6,keyasint,omitempty"`
	Uploaded int64    `cbor:"7,keyasint,omitempty"`
	Objects  int      `cbor:"8,keyasint,omitempty"`
	Host     []byte   `cbor:"9,keyasint,omitempty"`
	Manifest int64    `cbor:"10,keyasint,omitempty"`
}

func decodeSnapshot(source catalog.Source, s catalog.Snapshot) (Snapshot, error) {
	var i storedInfo
	if err := decMode.Unmarshal(s.Info, &i); err != nil {
		return Snapshot{}, fmt.Errorf("catalog: %w", err)
	}
	out := Snapshot{Source: source.Name, Seq: s.Seq, Root: s.Root, Partial: i.Partial, Files: i.Files, Bytes: i.Bytes,
		Uploaded: i.Uploaded, Objects: i.Objects, Manifest: i.Manifest,
		Info: SnapshotInfo{Time: s.Time, Origin: string(i.Origin), Host: string(i.Host)}}
	copy(out.Info.GUID[:], i.GUID)
	for _, e := range i.Exclude {
		out.Info.Exclude = append(out.Info.Exclude, string(e))
	}
	return out, nil
}

// Snapshots returns what the catalog knows of a source, in order.
func Snapshots(db *catalog.DB, source catalog.Source) ([]Snapshot, error) {
	return snapshotsAfter(db, source, 0)
}

func snapshotsAfter(db *catalog.DB, source catalog.Source, seq uint64) ([]Snapshot, error) {
	all, err := db.SnapshotsAfter(source.ID, seq)
	if err != nil {
		return nil, err
	}
	var out []Snapshot
	for _, s := range all {
		d, err := decodeSnapshot(source, s)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// recordSnapshot adds a snapshot's row.
func recordSnapshot(db *catalog.DB, source catalog.Source, r *root, rootObj []byte) (Snapshot, error) {
	guid := r.GUID
	i := storedInfo{Origin: r.Origin, GUID: guid, Exclude: r.Exclude, Partial: r.Flags&flagPartial != 0,
		Files: r.Stats.Files, Bytes: r.Stats.Bytes, Host: r.Host}
	i.Manifest = r.manifestSize(int64(len(rootObj)))
	i.Uploaded = int64(r.Stats.PackBytes) + int64(len(metaPrefixes))*i.Manifest
	i.Objects = int(r.Stats.Packs) + len(metaPrefixes)*(1+len(r.Segments))
	b, err := encMode.Marshal(&i)
	if err != nil {
		return Snapshot{}, err
	}
	s := catalog.Snapshot{Seq: r.Seq, Time: filetree.Time{Sec: r.Time[0], Nsec: uint32(r.Time[1])}, Root: sha256.Sum256(rootObj), Info: b}
	if r.Flags&flagCheckpoint != 0 && len(r.Prev) == 32 {
		s.Root = [32]byte(r.Prev) // the snapshot's own root, which the next one follows
	}
	if err := db.AddSnapshot(source.ID, s); err != nil {
		return Snapshot{}, err
	}
	if err := db.SetNextNode(source.ID, filetree.NodeID(r.Next)); err != nil {
		return Snapshot{}, err
	}
	if err := addNames(db, source, r.Users, r.Groups); err != nil {
		return Snapshot{}, err
	}
	return decodeSnapshot(source, s)
}

// manifestSize is the size of a root object of n bytes and its segments.
func (r *root) manifestSize(n int64) int64 {
	for _, s := range r.Segments {
		n += int64(s.Size)
	}
	return n
}

// packSum adds up packs.
type packSum struct {
	bytes int64
	count int
}

func (s *packSum) add(b *body) {
	for _, p := range b.Packs {
		if p.Size != 0 {
			s.bytes += int64(p.Size)
			s.count++
		}
	}
}

// applyRoot brings one snapshot's root and segments into the catalog, within a
// transaction of the caller's. Where unknown is not nil something before it is missing:
// records of nodes that are not known are counted there and left out.
func applyRoot(ctx context.Context, db *catalog.DB, source catalog.Source, meta seal.Key, place metaPlace, r *root, obj []byte,
	segment func(ctx context.Context, ref segmentRef) ([]byte, error), unknown *int) (Snapshot, error) {
	if err := r.check(place); err != nil {
		return Snapshot{}, err
	}
	v := db.At(source.ID, r.Seq)
	if r.Flags&flagFull != 0 {
		if err := v.EndAll(); err != nil {
			return Snapshot{}, err
		}
	}
	l, err := v.NewLoader()
	if err != nil {
		return Snapshot{}, err
	}
	p := place
	p.label = labelSegment
	if r.Flags&flagCheckpoint != 0 {
		p.label = labelCheckSeg
	}
	n := 0
	for b, err := range r.segments(ctx, meta, p, segment) {
		if err != nil {
			return Snapshot{}, err
		}
		if err := applyBody(db, source, l, b, unknown); err != nil {
			return Snapshot{}, fmt.Errorf("segment %x: %w", r.Segments[n].SHA, err)
		}
		n++
	}
	if r.Body != nil {
		if err := applyBody(db, source, l, r.Body, unknown); err != nil {
			return Snapshot{}, err
		}
	}
	if err := l.Flush(); err != nil {
		return Snapshot{}, err
	}
	return recordSnapshot(db, source, r, obj)
}

// commit is the end of an Update: everything is in the store but the root.
func (w *Writer) commit(ctx context.Context, u *Update, r *root) (Snapshot, error) {
	obj, err := sealManifest(w.meta, w.place(u.source, r.Seq, labelRoot, 0), r, u.enc)
	if err != nil {
		return Snapshot{}, err
	}
	s, err := recordSnapshot(w.cat, u.source, r, obj)
	if err != nil {
		return Snapshot{}, err
	}
	c := commitFile{Name: u.source.Name, Ident: u.source.Ident, Seq: r.Seq, Root: obj, Notes: u.notes}
	for _, ref := range r.Segments {
		c.Segments = append(c.Segments, ref.SHA)
	}
	b, err := encMode.Marshal(&c)
	if err != nil {
		return Snapshot{}, err
	}
	if u.keeps {
		if err := w.journal.writeKept(u.source.Ident, u.v.KeptChanges()); err != nil {
			return Snapshot{}, err
		}
	}
	// From here on the snapshot is decided: whatever happens, Recover completes it.
	if err := w.journal.write("commit-"+u.source.Ident, b, true); err != nil {
		return Snapshot{}, err
	}
	if err := w.putRoot(ctx, u.source, r.Seq, kindRoot, obj); err != nil {
		return Snapshot{}, err
	}
	crashpoint.Here("catalog before commit")
	if err := w.cat.Commit(); err != nil {
		return Snapshot{}, err
	}
	crashpoint.Here("catalog after commit")
	w.log.InfoContext(ctx, "snapshot committed", "source", u.source.Name, "seq", r.Seq, "objects", s.Objects, "size", s.Uploaded)
	return s, w.journal.committed(u.source.Ident)
}

// names are the user and group names that manifests have told.
type names struct {
	Users  map[uint32][]byte `cbor:"1,keyasint,omitempty"`
	Groups map[uint32][]byte `cbor:"2,keyasint,omitempty"`
}

func loadNames(db *catalog.DB, source catalog.Source) (n names, err error) {
	b, err := db.Meta(fmt.Sprintf("names-%d", source.ID))
	if err == nil && b != nil {
		err = decMode.Unmarshal(b, &n)
	}
	if n.Users == nil {
		n.Users = map[uint32][]byte{}
	}
	if n.Groups == nil {
		n.Groups = map[uint32][]byte{}
	}
	return n, err
}

func addNames(db *catalog.DB, source catalog.Source, users, groups map[uint32][]byte) error {
	if len(users)+len(groups) == 0 {
		return nil
	}
	n, err := loadNames(db, source)
	if err != nil {
		return err
	}
	for id, name := range users {
		n.Users[id] = name
	}
	for id, name := range groups {
		n.Groups[id] = name
	}
	b, err := encMode.Marshal(&n)
	if err != nil {
		return err
	}
	return db.SetMeta(fmt.Sprintf("names-%d", source.ID), b)
}

// Names returns the user and group names that a source's manifests have told, by id.
func Names(db *catalog.DB, source catalog.Source) (users, groups map[uint32]string, err error) {
	n, err := loadNames(db, source)
	users, groups = map[uint32]string{}, map[uint32]string{}
	for id, b := range n.Users {
		users[id] = string(b)
	}
	for id, b := range n.Groups {
		groups[id] = string(b)
	}
	return users, groups, err
}

func bytesOf(list []string) [][]byte {
	out := make([][]byte, len(list))
	for i, s := range list {
		out[i] = []byte(s)
	}
	return slices.Clip(out)
}

// Snapshots returns the snapshots of a source, in order.
func (w *Writer) Snapshots(source catalog.Source) ([]Snapshot, error) {
	return Snapshots(w.cat, source)
}

// SnapshotsAfter returns those of a source whose numbers are higher than seq, in order.
func (w *Writer) SnapshotsAfter(source catalog.Source, seq uint64) ([]Snapshot, error) {
	return snapshotsAfter(w.cat, source, seq)
}

// SetAlias notes, in this writer's catalog alone, that the file system's snapshot of
// that GUID is the same as snapshot seq: nothing was written for it.
func (w *Writer) SetAlias(source catalog.Source, guid [16]byte, seq uint64) error {
	b, err := encMode.Marshal(seq)
	if err != nil {
		return err
	}
	return w.cat.SetMeta(aliasName(source, guid), b)
}

// Alias returns what SetAlias noted, or 0.
func (w *Writer) Alias(source catalog.Source, guid [16]byte) (seq uint64, err error) {
	return alias(w.cat, source, guid)
}

func alias(db *catalog.DB, source catalog.Source, guid [16]byte) (seq uint64, err error) {
	b, err := db.Meta(aliasName(source, guid))
	if err != nil || b == nil {
		return 0, err
	}
	err = decMode.Unmarshal(b, &seq)
	return seq, err
}

// Known are the snapshots of a source, as the file system knows them. The zero Known has
// none.
type Known struct {
	db     *catalog.DB
	source catalog.Source
	All    []Snapshot // in order
}

// ReadKnown returns what the catalog knows of a source.
func ReadKnown(db *catalog.DB, source catalog.Source) (*Known, error) {
	all, err := Snapshots(db, source)
	return &Known{db, source, all}, err
}

// Known returns what is known of a source.
func (w *Writer) Known(source catalog.Source) (*Known, error) { return ReadKnown(w.cat, source) }

// ByGUID returns the snapshot that the file system knows under a GUID, the newest if there
// are several: itself or one that is the same. One that is only partly there does not count.
func (k *Known) ByGUID(guid [16]byte) (s Snapshot, ok bool, err error) {
	if len(k.All) == 0 {
		return s, false, nil
	}
	seq, err := alias(k.db, k.source, guid)
	if err != nil {
		return s, false, err
	}
	for _, s := range slices.Backward(k.All) {
		if seq != 0 && s.Seq == seq || seq == 0 && s.Info.GUID == guid && !s.Partial {
			return s, true, nil
		}
	}
	return s, false, nil
}

// Note returns what SetNote has kept under a name, here or in an update, or nil. It is
// kept in the catalog alone, and gone when that is rebuilt.
func (w *Writer) Note(source catalog.Source, name string) ([]byte, error) {
	return w.cat.Meta(noteName(source, name))
}

// SetNote keeps something for later updates of the source.
func (w *Writer) SetNote(source catalog.Source, name string, v []byte) error {
	return w.cat.SetMeta(noteName(source, name), v)
}

func noteName(source catalog.Source, name string) string {
	return fmt.Sprintf("note-%d-%s", source.ID, name)
}

func aliasName(source catalog.Source, guid [16]byte) string {
	return fmt.Sprintf("alias-%d-%x", source.ID, guid)
}
