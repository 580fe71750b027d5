package s3history

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
)

// MinContent is the fewest bytes that get a content id: to say that fewer are known
// takes as much as to store them again.
const MinContent = 64

// An Update makes one snapshot. It is a [filetree.Update], for send streams; and it
// has ways to say whole nodes and pieces of files at once, for callers that can read
// the new tree. Its state is an open transaction of the catalog: [Update.Commit] makes
// it the next snapshot, [Update.Abort] leaves everything as it was (but for packs,
// which the journal remembers).
//
// Known, Before and ContentID may be called concurrently with everything; the rest
// is for one goroutine.
type Update struct {
	w       *Writer
	ctx     context.Context
	source  catalog.Source
	info    SnapshotInfo
	head    Snapshot // the one before
	v       catalog.View
	next    filetree.NodeID
	first   filetree.NodeID           // the first that is new in this update
	fresh   filetree.NodeID           // the last that Add made: it has what Put gave it and no more
	filled  int64                     // where that ends
	added   []nodeRange               // nodes that Add made, whose records are there already
	linked  map[filetree.NodeID]bool  // others, whose names AddLink has recorded
	unsaid  map[catalog.Entry]bool    // names that were recorded as got, and as lost again
	guids   map[[16]byte]catalog.View // that CloneFrom has found
	flags   uint64
	stats   stats
	started time.Time
	enc     *zstd.Encoder

	packer   *packer
	segments []segmentRef
	packs    packSum
	recs     recorder

	touched []filetree.NodeID // nodes whose records are made at the end; may repeat
	attrs   map[filetree.NodeID]*cachedAttr
	uids    map[uint32]bool
	gids    map[uint32]bool
	changed map[filetree.NodeID][]filetree.Range
	punched map[filetree.NodeID]bool // that Hole or Truncate took bytes from
	notes   map[string][]byte        // that SetNote was given
	write   writeBuffer
	signed  int64                    // bytes of which there are new signatures
	rolled  map[filetree.NodeID]bool // files that SetSignature was called for
	closed  bool

	nameless bool // nodes are ended by EndNode and not with their last name
	keeps    bool // Keep was called
}

type cachedAttr struct {
	filetree.Attr
	dirty bool
}

// A nodeRange is the nodes from first to last.
type nodeRange struct{ first, last filetree.NodeID }

// maxCachedAttrs bounds the attributes that wait to be written to the catalog.
const maxCachedAttrs = 512

func (u *Update) start(seq uint64) {
	u.v = u.w.cat.At(u.source.ID, seq)
	u.packer = u.w.newPacker(u.ctx, u.source.Name, seq)
	u.segments, u.packs, u.stats, u.flags = nil, packSum{}, stats{}, 0
	u.recs = recorder{cost: u.packCost}
	u.nameless, u.keeps = false, false
	u.rolled = map[filetree.NodeID]bool{}
	u.touched, u.signed = u.touched[:0], 0
	u.added, u.linked, u.unsaid = nil, map[filetree.NodeID]bool{}, map[catalog.Entry]bool{}
	u.uids, u.gids = map[uint32]bool{}, map[uint32]bool{}
	u.started = time.Now()
	u.first, u.fresh, u.filled = u.next, 0, 0
}

// packCost is what it takes to tell of a pack in this snapshot's manifest.
func (u *Update) packCost(id catalog.PackID) int {
	if p := u.packer.ours[id]; p != nil {
		return tellCost(len(p.sealed), len(p.table))
	}
	// An error is met again, and said, when the body is made.
	if told, err := u.w.cat.Told(u.source.ID, id); told || err != nil {
		return 0
	}
	p, err := u.w.cat.Pack(id)
	if err != nil {
		return 0
	}
	return tellCost(len(p.Key), len(p.Blobs))
}

// View returns the state so far.
func (u *Update) View() catalog.View { return u.v }

// At returns the state of a snapshot of the source, which does not change.
func (u *Update) At(seq uint64) catalog.View { return u.w.cat.At(u.source.ID, seq) }

// Before returns the state of the snapshot before, which does not change.
func (u *Update) Before() catalog.View { return u.w.cat.At(u.source.ID, u.head.Seq) }

// Note returns what SetNote of an earlier update of the source has kept under a name, or
// nil. It is kept in the catalog alone, and gone when that is rebuilt.
func (u *Update) Note(name string) ([]byte, error) {
	return u.w.Note(u.source, name)
}

// SetNote keeps something for later updates of the source, if this one is committed.
func (u *Update) SetNote(name string, v []byte) error {
	if u.notes == nil {
		u.notes = map[string][]byte{}
	}
	u.notes[name] = v
	return u.w.SetNote(u.source, name, v)
}

// Head returns the snapshot before; its Seq is 0 for the first.
func (u *Update) Head() Snapshot { return u.head }

// ContentID returns the id of some content.
func (u *Update) ContentID(data []byte) seal.ContentID { return u.w.content.ContentID(data) }

// Known returns the parts that have the content of that id, or nil.
func (u *Update) Known(cid seal.ContentID) ([]catalog.Part, error) { return u.w.cat.Content(cid) }

func (u *Update) touch(n filetree.NodeID) {
	if k := len(u.touched); k > 0 && u.touched[k-1] == n {
		return
	}
	u.touched = append(u.touched, n)
	if k := len(u.touched); k >= 1<<16 && k&(k-1) == 0 { // at each doubling
		slices.Sort(u.touched)
		u.touched = slices.Compact(u.touched)
	}
}

// flushSize is how much a segment may hold before it is written: well below the
// 8 MiB that a reader accepts.
const flushSize = 3 << 20

// maxRecords is how many nodes a segment may tell of. Of a node that is ended its number is all
// that is written, but here it takes as much as every other: some 150 bytes.
const maxRecords = 1 << 17

// inlineSize is how much of a body fits into the root.
const inlineSize = 256 << 10

func (u *Update) maybeFlush() error {
	if u.recs.size < u.w.opts.segmentSize() && len(u.recs.nodes) < maxRecords {
		return nil
	}
	return u.flushSegment()
}

// body ends the collection of records. It waits until every pack they name has its
// name, and ends the open one if it is among them.
func (u *Update) body() (*body, error) {
	if err := u.packer.flush(u.recs.packs); err != nil {
		return nil, err
	}
	b, err := u.recs.body(u.w.cat, func(id catalog.PackID) (bool, error) { return u.w.cat.Tell(u.source.ID, id) })
	if err == nil {
		u.packs.add(b)
	}
	return b, err
}

// flushSegment writes the records so far. A crash after it leaves a segment that
// nothing names.
func (u *Update) flushSegment() error {
	b, err := u.body()
	if err != nil {
		return err
	}
	obj, err := sealManifest(u.w.meta, u.w.place(u.source, u.v.Seq(), labelSegment, uint32(len(u.segments))), b, u.enc)
	if err != nil {
		return err
	}
	sha := sha256.Sum256(obj)
	name := fmt.Sprintf("segment-%x", sha)
	u.w.journal.mu.Lock()
	u.w.journal.started = append(u.w.journal.started, name)
	u.w.journal.mu.Unlock()
	if err := u.w.journal.write(name, obj, false); err != nil {
		return err
	}
	u.segments = append(u.segments, segmentRef{SHA: sha[:], Size: uint64(len(obj))})
	return u.w.putMeta(u.ctx, metaName{u.source.Writer, u.source.Ident, u.v.Seq(), kindSegment, sha}, obj)
}

// Clear ends all there is: the snapshot is told from nothing, as a full stream does.
// It comes before everything else.
func (u *Update) Clear() error {
	if u.head.Seq == 0 {
		return nil
	}
	u.flags |= flagFull
	if err := u.v.EndAll(); err != nil {
		return err
	}
	u.touch(filetree.RootNode)
	return u.v.AddNode(filetree.RootNode, &filetree.Attr{Kind: filetree.Dir, Mode: 0o755})
}

// Revert makes the state that of an older snapshot, from which the changes that follow
// start. It comes before everything else.
func (u *Update) Revert(seq uint64) error {
	if seq == u.head.Seq {
		return nil
	}
	if err := u.v.RevertKept(seq); err != nil {
		return err
	}
	old := u.w.cat.At(u.source.ID, seq)
	nodes, err := u.v.ChangedSince(seq)
	if err != nil {
		return err
	}
	// What was not there goes first, so that its names are free.
	for _, there := range []bool{false, true} {
		for _, n := range nodes {
			a, err := old.Attr(n)
			if was := err == nil; err != nil && !errors.Is(err, filetree.ErrNotExist) {
				return err
			} else if was != there {
				continue
			}
			if !there {
				if err := u.end(n); err != nil && !errors.Is(err, filetree.ErrNotExist) {
					return err
				}
				continue
			}
			if err := u.revertNode(old, n, &a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *Update) revertNode(old catalog.View, n filetree.NodeID, a *filetree.Attr) error {
	now, err := u.v.Attr(n)
	if err != nil && !errors.Is(err, filetree.ErrNotExist) {
		return err
	}
	u.touch(n)
	if err := u.v.SetAttr(n, a); err != nil {
		return err
	}
	have, err := u.v.Entries(n, 0)
	if err != nil {
		return err
	}
	want, err := old.Entries(n, 0)
	if err != nil {
		return err
	}
	for _, e := range have {
		if !slices.Contains(want, e) {
			if err := u.v.RemoveEntry(e.Dir, e.Name, n); err != nil {
				return err
			}
		}
	}
	for _, e := range want {
		if !slices.Contains(have, e) {
			if err := u.v.AddEntry(e.Dir, e.Name, n); err != nil {
				return err
			}
		}
	}
	size := max(a.Size, now.Size)
	for from := int64(0); ; {
		then, err := old.NextExtent(n, from)
		if err != nil {
			return err
		}
		now, err := u.v.NextExtent(n, from)
		if err != nil {
			return err
		}
		if from = min(then, now); from >= size {
			return nil
		}
		to := from + min(cloneStep, size-from)
		parts, err := old.Parts(n, from, to)
		if err != nil {
			return err
		}
		if err := u.put(n, from, parts, nil); err != nil {
			return err
		}
		from = to
	}
}

// Touched yields the nodes that calls of the filetree.Update kind have changed so
// far and that are still there.
func (u *Update) Touched() ([]filetree.NodeID, error) {
	if err := errors.Join(u.flushWrite(), u.flushAttrs()); err != nil {
		return nil, err
	}
	slices.Sort(u.touched)
	u.touched = slices.Compact(u.touched)
	return slices.Clone(u.touched), nil
}

// New reports whether a node was made by this update.
func (u *Update) New(n filetree.NodeID) bool { return n >= u.first }

// Unread returns the ranges of a file that Changed named, in the order it did. Of a
// new file it knows none: all of it is to be read.
func (u *Update) Unread(n filetree.NodeID) []filetree.Range { return u.changed[n] }

// finishTouched makes the records of touched nodes.
func (u *Update) finishTouched() error {
	nodes, err := u.Touched()
	if err != nil {
		return err
	}
	u.touched = u.touched[:0]
	for _, n := range nodes {
		if err := u.finishNode(n); err != nil {
			return err
		}
	}
	return nil
}

func (u *Update) finishNode(n filetree.NodeID) error {
	before, was, err := u.v.Before(n)
	if err != nil {
		return err
	}
	if u.flags&flagFull != 0 {
		was = false // the manifest stands alone
	}
	a, err := u.v.Attr(n)
	if errors.Is(err, filetree.ErrNotExist) {
		return nil // it was ended, and that is recorded
	} else if err != nil {
		return err
	}
	if n != filetree.RootNode && !u.nameless {
		names, err := u.v.Entries(n, 1)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			if was && a.Kind != filetree.Dir {
				u.stats.Files++
			}
			if was || u.told(n, &a) {
				u.recs.node(n).End = true
			}
			if err := u.v.EndNode(n); err != nil {
				return err
			}
			return u.maybeFlush()
		}
	}
	var old *filetree.Attr
	if was {
		old = &before
	}
	d := catalog.Diff(old, &a)
	got, lost, err := u.v.EntryChanges(n)
	if err != nil {
		return err
	}
	if was && d.Empty() {
		if err := u.v.ReviveAttr(n); err != nil {
			return err
		}
		if len(got)+len(lost) == 0 {
			return nil
		}
	}
	u.owner(&a)
	if u.isAdded(n) {
		d = catalog.All(&a) // of what was said of it before something may be zero now
	}
	if !d.Empty() || !was {
		u.recs.attr(n, &d)
	}
	for _, e := range lost {
		u.recs.lost(n, e)
		if err := u.maybeFlush(); err != nil {
			return err
		}
	}
	for _, e := range got {
		u.recs.got(n, e)
		if err := u.maybeFlush(); err != nil {
			return err
		}
	}
	if a.Kind != filetree.Dir && !u.isAdded(n) { // which Add has counted
		u.stats.Files++
	}
	return u.maybeFlush()
}

func (u *Update) owner(a *filetree.Attr) {
	u.uids[a.UID] = true
	u.gids[a.GID] = true
}

// newNames returns the names of owners that no manifest has told yet.
func (u *Update) newNames() (users, groups map[uint32][]byte, err error) {
	told, err := loadNames(u.w.cat, u.source)
	if err != nil {
		return nil, nil, err
	}
	pick := func(ids map[uint32]bool, told map[uint32][]byte, name func(string) (string, error)) map[uint32][]byte {
		out := map[uint32][]byte{}
		for id := range ids {
			if _, ok := told[id]; ok {
				continue
			}
			if s, err := name(strconv.FormatUint(uint64(id), 10)); err == nil {
				out[id] = []byte(s)
			}
		}
		return out
	}
	users = pick(u.uids, told.Users, func(id string) (string, error) {
		p, err := user.LookupId(id)
		if err != nil {
			return "", err
		}
		return p.Username, nil
	})
	groups = pick(u.gids, told.Groups, func(id string) (string, error) {
		g, err := user.LookupGroupId(id)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
	return users, groups, nil
}

// ErrUnchanged is returned by Commit when there is nothing to commit: nothing was
// written, and the newest snapshot is still the one before.
var ErrUnchanged = errors.New("nothing changed")

// Commit makes the snapshot. When it returns nil, all of it is in the store. On an
// error other than ErrUnchanged nothing is lost: what was uploaded is remembered, and
// where the root may have been put, [Writer.Recover] completes the snapshot.
func (u *Update) Commit() (Snapshot, error) {
	defer u.Abort()
	s, err := u.commit(0)
	if err != nil {
		return Snapshot{}, err
	}
	u.closed = true
	u.w.busy = false
	u.enc.Close()
	if err := u.w.maybeCheckpoint(u.ctx, u.source); err != nil {
		// The snapshot is made; the checkpoint is tried again after the next one.
		u.w.log.WarnContext(u.ctx, "checkpoint not written", "source", u.source.Name, "err", err)
	}
	return s, nil
}

// MaybePartial commits what there is as a partial snapshot if it is time to, and goes
// on with the next one. Only a full snapshot that is put together with Add and Put
// may be committed in parts.
func (u *Update) MaybePartial() error {
	if after := u.w.opts.partialAfter(); after < 0 || time.Since(u.started) < after {
		return nil
	}
	s, err := u.commit(flagPartial)
	if errors.Is(err, ErrUnchanged) {
		return nil
	} else if err != nil {
		return err
	}
	if err := u.w.cat.Begin(); err != nil {
		return err
	}
	u.head = s
	u.start(s.Seq + 1)
	return nil
}

func (u *Update) commit(flags uint64) (Snapshot, error) {
	if err := errors.Join(u.flushWrite(), u.flushAttrs()); err != nil {
		return Snapshot{}, err
	}
	if err := u.finishTouched(); err != nil {
		return Snapshot{}, err
	}
	wasPartial := u.head.Partial && flags&flagPartial == 0
	if len(u.recs.nodes) == 0 && len(u.segments) == 0 && u.head.Seq > 0 && !wasPartial {
		if u.keeps {
			// The next stream starts from this one, whatever it is called here. The alias must
			// not be missing then: what is kept is no longer of the snapshot before.
			err := u.v.KeepBefore()
			if u.info.GUID != ([16]byte{}) {
				err = errors.Join(err, u.w.SetAlias(u.source, u.info.GUID, u.head.Seq))
			}
			if err := errors.Join(err, u.w.cat.Commit()); err != nil {
				return Snapshot{}, err
			}
		}
		return Snapshot{}, ErrUnchanged
	}
	if u.recs.size > min(inlineSize, u.w.opts.segmentSize()) {
		if err := u.flushSegment(); err != nil {
			return Snapshot{}, err
		}
	}
	r := &root{
		Version: FormatVersion, Source: []byte(u.source.Name), Seq: u.v.Seq(),
		Time:   [2]int64{u.info.Time.Sec, int64(u.info.Time.Nsec)},
		Origin: []byte(u.info.Origin), Flags: u.flags | flags, Stats: u.stats, Next: uint64(u.next),
		Segments: u.segments, Exclude: bytesOf(u.info.Exclude), Host: []byte(u.info.Host),
	}
	if u.head.Seq > 0 {
		r.Prev = u.head.Root[:]
	}
	if u.info.GUID != ([16]byte{}) {
		r.GUID = u.info.GUID[:]
	}
	var err error
	if len(u.recs.nodes) > 0 {
		if r.Body, err = u.body(); err != nil {
			return Snapshot{}, err
		}
	}
	if r.Users, r.Groups, err = u.newNames(); err != nil {
		return Snapshot{}, err
	}
	// The root names packs and segments: they must be in the store before it is.
	r.Segments = u.segments
	r.Stats.Packs, r.Stats.PackBytes = uint64(u.packs.count), uint64(u.packs.bytes)
	if err := u.packer.finish(); err != nil {
		return Snapshot{}, err
	}
	return u.w.commit(u.ctx, u, r)
}

// Abort gives the snapshot up. After Commit it does nothing.
func (u *Update) Abort() {
	if u.closed {
		return
	}
	u.closed = true
	u.packer.abort()
	u.w.cat.Rollback()
	if err := u.w.journal.rolledBack(); err != nil {
		u.w.log.WarnContext(u.ctx, "journal not read", "err", err)
	}
	u.w.busy = false
	u.enc.Close()
}

// SplitPath returns the components of a slash-separated path; none for the root.
func SplitPath(path string) []string {
	var out []string
	for _, c := range bytes.Split([]byte(path), []byte("/")) {
		if len(c) > 0 && string(c) != "." {
			out = append(out, string(c))
		}
	}
	return out
}
