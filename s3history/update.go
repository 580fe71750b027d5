package s3history

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
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
	u.touched = u.touched[:0]
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

// inlineSize is how much of a body fits into the root.
const inlineSize = 256 << 10

func (u *Update) maybeFlush() error {
	if u.recs.size < u.w.opts.segmentSize() {
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

// Whole nodes and pieces.

// Add makes a new node with all its attributes, Size among them, and an entry that
// was never there before. Its content follows by Put.
func (u *Update) Add(dir filetree.NodeID, name string, a *filetree.Attr) (filetree.NodeID, error) {
	if err := filetree.CheckName(name); err != nil {
		return 0, fmt.Errorf("%w: %w", err, filetree.ErrInvalid)
	}
	n := u.next
	if err := u.v.AddNode(n, a); err != nil {
		return 0, err
	}
	u.next++
	if err := u.v.AddEntry(dir, name, n); err != nil {
		return 0, err
	}
	u.fresh, u.filled = n, 0
	if k := len(u.added); k > 0 && u.added[k-1].last == n-1 {
		u.added[k-1].last = n
	} else {
		u.added = append(u.added, nodeRange{n, n})
	}
	u.owner(a)
	d := catalog.Diff(nil, a)
	u.recs.attr(n, &d)
	u.recs.got(n, catalog.Entry{Dir: dir, Name: name})
	if a.Kind != filetree.Dir {
		u.stats.Files++
	}
	return n, u.maybeFlush()
}

// isAdded reports whether Add made a node in this update: all of it was recorded at once.
func (u *Update) isAdded(n filetree.NodeID) bool {
	i, ok := slices.BinarySearchFunc(u.added, n, func(r nodeRange, n filetree.NodeID) int { return cmp.Compare(r.last, n) })
	return ok || i < len(u.added) && u.added[i].first <= n
}

// removeEntry takes a name from a node. If that it got it was recorded at once, that it
// lost it is recorded, too.
func (u *Update) removeEntry(dir filetree.NodeID, name string, n filetree.NodeID) error {
	u.touch(n)
	if u.linked[n] || u.isAdded(n) {
		e := catalog.Entry{Dir: dir, Name: name}
		u.recs.lost(n, e)
		u.unsaid[e] = true
	}
	return u.v.RemoveEntry(dir, name, n)
}

// addEntry gives a node a name. Mostly that is recorded at the end.
func (u *Update) addEntry(dir filetree.NodeID, name string, n filetree.NodeID) error {
	u.touch(n)
	if e := (catalog.Entry{Dir: dir, Name: name}); u.unsaid[e] {
		// If the node had it in the snapshot before, the end would find nothing new.
		u.linked[n] = true
		u.recs.got(n, e)
	}
	return u.v.AddEntry(dir, name, n)
}

// Replace sets all attributes of a node, Size among them. Content beyond the new
// size becomes a hole.
func (u *Update) Replace(n filetree.NodeID, a *filetree.Attr) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.attr(n)
	if err != nil {
		return err
	}
	if a.Kind != c.Kind {
		return fmt.Errorf("a %v for a %v: %w", a.Kind, c.Kind, filetree.ErrInvalid)
	}
	if a.Size < c.Size {
		if err := u.put(n, a.Size, []catalog.Part{{Length: c.Size - a.Size}}, nil); err != nil {
			return err
		}
	}
	u.touch(n)
	c.Attr, c.dirty = *a, true
	u.owner(a)
	return nil
}

// AddLink makes one more entry for a node, where no file system is asked whether it can be.
func (u *Update) AddLink(dir filetree.NodeID, name string, n filetree.NodeID) error {
	if err := filetree.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", err, filetree.ErrInvalid)
	}
	if err := u.v.AddEntry(dir, name, n); err != nil {
		return err
	}
	if !u.isAdded(n) {
		u.linked[n] = true
	}
	u.recs.got(n, catalog.Entry{Dir: dir, Name: name})
	return u.maybeFlush()
}

// RemoveName takes a name away, and with the last one its node and everything below.
func (u *Update) RemoveName(dir filetree.NodeID, name string) error {
	n, kind, err := u.Lookup(dir, name)
	if err != nil {
		return err
	}
	if kind == filetree.Dir {
		return u.Remove(n)
	}
	return u.removeEntry(dir, name, n)
}

// Remove ends a node with everything below it.
func (u *Update) Remove(n filetree.NodeID) error {
	if err := u.flushWrite(); err != nil { // it may be into what is removed
		return err
	}
	for c, err := range u.v.Children(n) {
		if err != nil {
			return err
		}
		if c.Attr.Kind == filetree.Dir {
			err = u.Remove(c.Node)
		} else { // it may have a name elsewhere
			err = u.RemoveName(n, c.Name)
		}
		if err != nil {
			return err
		}
	}
	return u.end(n)
}

func (u *Update) end(n filetree.NodeID) error {
	a, err := u.v.Attr(n)
	if err != nil {
		return err
	}
	if c := u.attrs[n]; c != nil {
		a = c.Attr
		delete(u.attrs, n)
	}
	if err := u.v.EndNode(n); err != nil {
		return err
	}
	if n >= u.first && !u.told(n, &a) {
		return nil
	}
	u.recs.node(n).End = true
	if a.Kind != filetree.Dir {
		u.stats.Files++
	}
	return u.maybeFlush()
}

// told reports whether there may be records of a node that is new in this snapshot.
func (u *Update) told(n filetree.NodeID, a *filetree.Attr) bool {
	return a.Size > 0 || u.punched[n] || u.linked[n] || u.isAdded(n)
}

// A Piece is the new content of a range of a file: its Items one after the other.
type Piece struct {
	Offset int64
	Items  []Item
	// CID is the id of all items together, when there are at most MaxPart bytes and
	// none of them is a hole. The zero id is none.
	CID seal.ContentID
}

// An Item is a run of bytes of a Piece. One of Data, Parts, Patch, Hole and Keep is set.
type Item struct {
	Data  []byte         // new bytes
	CID   seal.ContentID // of Data, where it is MinContent or longer; else zero
	Parts []catalog.Part // bytes that are in the store
	Patch *NewPatch
	Hole  int64 // so many bytes of hole
	Keep  int64 // so many bytes as they were
}

// A NewPatch is a patch to be stored.
type NewPatch struct {
	Patch  []byte
	Base   []catalog.Part
	Result int // bytes it gives
}

// Put sets the content of a range of a file. The file's size is not changed by it.
func (u *Update) Put(n filetree.NodeID, p Piece) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	return u.putPiece(n, p)
}

func (u *Update) putPiece(n filetree.NodeID, p Piece) error {
	if p.CID != (seal.ContentID{}) {
		// Perhaps a file just before this one had the same.
		parts, err := u.known(p.CID)
		if err != nil {
			return err
		}
		if parts != nil {
			return u.put(n, p.Offset, parts, p.CID[:])
		}
	}
	if len(p.Items) == 1 && p.Items[0].Hole > 0 {
		return u.punchHole(n, p.Offset, p.Items[0].Hole)
	}
	var parts []catalog.Part
	var recs []partRec
	kept := false
	off := p.Offset
	for _, it := range p.Items {
		var add []catalog.Part
		switch {
		case it.Keep > 0:
			recs = append(recs, partRec{Length: uint64(it.Keep), Keep: true})
			off += it.Keep
			kept = true
			continue
		case it.Hole > 0:
			add = []catalog.Part{{Length: it.Hole}}
		case it.Parts != nil:
			add = it.Parts
		case it.Patch != nil:
			s, err := u.storePatch(n, off, it.Patch.Patch)
			if err != nil {
				return err
			}
			patch := &catalog.Patch{Base: it.Patch.Base, Pack: s.Pack, Blob: s.Blob, Offset: s.Offset,
				Length: uint32(s.Length), ResultLength: uint32(it.Patch.Result)}
			add = []catalog.Part{{Length: int64(it.Patch.Result), Patch: patch}}
		case it.Data != nil:
			var err error
			if add, err = u.store(n, off, it.Data, it.CID); err != nil {
				return err
			}
		default:
			continue
		}
		if err := u.setParts(n, off, add); err != nil {
			return err
		}
		for _, q := range add {
			recs = append(recs, u.recs.part(q))
			off += q.Length
		}
		parts = append(parts, add...)
	}
	for len(recs) > 0 && recs[len(recs)-1].Keep && p.CID == (seal.ContentID{}) {
		recs = recs[:len(recs)-1]
	}
	start := p.Offset
	for len(recs) > 0 && recs[0].Keep && p.CID == (seal.ContentID{}) {
		start += int64(recs[0].Length)
		recs = recs[1:]
	}
	if len(recs) == 0 {
		return nil
	}
	d := dataRec{Offset: uint64(start), Parts: recs}
	if p.CID != (seal.ContentID{}) {
		d.CID = bytes.Clone(p.CID[:])
		if kept {
			var err error
			if parts, err = u.v.Parts(n, p.Offset, off); err != nil {
				return err
			}
		}
		if err := u.w.cat.SetContent(p.CID, parts); err != nil {
			return err
		}
	}
	return u.record(n, d)
}

// setParts is View.SetParts, and faster for a node that is being filled.
func (u *Update) setParts(n filetree.NodeID, off int64, parts []catalog.Part) error {
	if n != u.fresh {
		return u.v.SetParts(n, off, parts)
	}
	end := off
	for _, p := range parts {
		end += p.Length
	}
	beyond := off >= u.filled
	u.filled = max(u.filled, end)
	if !beyond {
		return u.v.SetParts(n, off, parts)
	}
	return u.v.AddParts(n, off, parts)
}

// maxRecordParts bounds the parts that one record tells of.
const maxRecordParts = 4096

// maxHole bounds the hole that one part tells of: a reader refuses a longer one.
const maxHole = 1 << 62

// punchHole makes a range a hole. If it is one, nothing is said.
func (u *Update) punchHole(n filetree.NodeID, off, length int64) error {
	for length > 0 {
		k := min(length, maxHole)
		next, err := u.v.NextExtent(n, off)
		if err != nil {
			return err
		}
		if next < off+k {
			if err := u.v.Punch(n, off, off+k); err != nil {
				return err
			}
			if err := u.record(n, dataRec{Offset: uint64(off), Parts: []partRec{{Length: uint64(k)}}}); err != nil {
				return err
			}
		}
		off, length = off+k, length-k
	}
	return nil
}

// put sets a range to parts that are in the store. If it has them, nothing is said.
func (u *Update) put(n filetree.NodeID, off int64, parts []catalog.Part, cid []byte) error {
	if len(parts) == 1 && parts[0].Hole() {
		return u.punchHole(n, off, parts[0].Length)
	}
	for cid == nil && len(parts) > maxRecordParts {
		if err := u.put(n, off, parts[:maxRecordParts], nil); err != nil {
			return err
		}
		for _, p := range parts[:maxRecordParts] {
			off += p.Length
		}
		parts = parts[maxRecordParts:]
	}
	if n != u.fresh || off < u.filled {
		end := off
		for _, p := range parts {
			end += p.Length
		}
		have, err := u.v.Parts(n, off, end)
		if err != nil || catalog.EqualParts(have, parts) {
			return err
		}
	}
	if err := u.setParts(n, off, parts); err != nil {
		return err
	}
	d := dataRec{Offset: uint64(off), CID: bytes.Clone(cid)}
	for _, p := range parts {
		d.Parts = append(d.Parts, u.recs.part(p))
	}
	return u.record(n, d)
}

func (u *Update) record(n filetree.NodeID, d dataRec) error {
	u.recs.data(n, d)
	return u.maybeFlush()
}

// known returns the parts that have the content of that id, in the catalog or in what
// an unfinished run has uploaded.
func (u *Update) known(cid seal.ContentID) ([]catalog.Part, error) {
	parts, err := u.w.cat.Content(cid)
	if parts != nil || err != nil {
		return parts, err
	}
	if parts, err = u.w.journal.find(u.w.cat, cid); parts != nil && err == nil {
		err = u.w.cat.SetContent(cid, parts) // for whoever has the same after the journal is gone
	}
	return parts, err
}

// store puts new bytes into a blob, unless an unfinished run has uploaded the same.
func (u *Update) store(n filetree.NodeID, off int64, data []byte, cid seal.ContentID) ([]catalog.Part, error) {
	if cid == (seal.ContentID{}) {
		cid = u.ContentID(data)
	}
	if len(u.w.journal.leftover) > 0 {
		if parts, err := u.w.journal.find(u.w.cat, cid); parts != nil || err != nil {
			return parts, err
		}
	}
	u.stats.Data += uint64(len(data))
	p, err := u.packer.add(data, n, off, cid, false)
	return []catalog.Part{p}, err
}

// storePatch is store for the bytes of a patch.
func (u *Update) storePatch(n filetree.NodeID, off int64, patch []byte) (catalog.Part, error) {
	id := u.ContentID(patch)
	if parts, err := u.w.journal.findPatch(u.w.cat, id); err != nil {
		return catalog.Part{}, err
	} else if parts != nil {
		return parts[0], nil
	}
	u.stats.Data += uint64(len(patch))
	return u.packer.add(patch, n, off, id, true)
}

// CountBytes adds to the statistics bytes of data that were looked at.
func (u *Update) CountBytes(n int64) { u.stats.Bytes += uint64(n) }

// The stream's view: filetree.Update.

var _ filetree.Update = (*Update)(nil)

// attr returns a node's attributes, to be changed by the caller.
func (u *Update) attr(n filetree.NodeID) (*cachedAttr, error) {
	if c, ok := u.attrs[n]; ok {
		return c, nil
	}
	a, err := u.v.Attr(n)
	if err != nil {
		return nil, err
	}
	if len(u.attrs) >= maxCachedAttrs {
		if err := u.flushAttrs(); err != nil {
			return nil, err
		}
	}
	c := &cachedAttr{Attr: a}
	u.attrs[n] = c
	return c, nil
}

func (u *Update) flushAttrs() error {
	for n, c := range u.attrs {
		if c.dirty {
			if err := u.v.SetAttr(n, &c.Attr); err != nil {
				return err
			}
		}
	}
	clear(u.attrs)
	return nil
}

// Lookup implements filetree.Update.
func (u *Update) Lookup(dir filetree.NodeID, name string) (filetree.NodeID, filetree.Kind, error) {
	n, err := u.v.Lookup(dir, name)
	if err != nil {
		return 0, 0, err
	}
	c, err := u.attr(n)
	if err != nil {
		return 0, 0, err
	}
	return n, c.Kind, nil
}

// Children implements filetree.Update.
func (u *Update) Children(dir filetree.NodeID) iter.Seq2[filetree.Child, error] {
	return func(yield func(filetree.Child, error) bool) {
		for c, err := range u.v.Children(dir) {
			if !yield(filetree.Child{Name: c.Name, Node: c.Node, Kind: c.Attr.Kind}, err) {
				return
			}
		}
	}
}

// Names implements filetree.Update.
func (u *Update) Names(n filetree.NodeID, limit int) ([]filetree.Entry, error) {
	return u.v.Entries(n, limit)
}

// free returns an error unless dir is a directory that has no entry name.
func (u *Update) free(dir filetree.NodeID, name string) error {
	if err := filetree.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", err, filetree.ErrInvalid)
	}
	d, err := u.attr(dir)
	if err != nil {
		return err
	}
	if d.Kind != filetree.Dir {
		return fmt.Errorf("%q in a %v: %w", name, d.Kind, filetree.ErrInvalid)
	}
	if _, err := u.v.Lookup(dir, name); err == nil {
		return fmt.Errorf("%q exists: %w", name, filetree.ErrInvalid)
	} else if !errors.Is(err, filetree.ErrNotExist) {
		return err
	}
	return nil
}

// Create implements filetree.Update.
func (u *Update) Create(dir filetree.NodeID, name string, a filetree.Attr) (filetree.NodeID, error) {
	if err := u.free(dir, name); err != nil {
		return 0, err
	}
	n := u.next
	a.Size = 0
	filetree.SortXattrs(a.Xattrs)
	if err := u.v.AddNode(n, &a); err != nil {
		return 0, err
	}
	u.next++
	return n, u.addEntry(dir, name, n)
}

// Link implements filetree.Update.
func (u *Update) Link(dir filetree.NodeID, name string, n filetree.NodeID) error {
	if err := u.free(dir, name); err != nil {
		return err
	}
	a, err := u.attr(n)
	if err != nil {
		return err
	}
	if a.Kind == filetree.Dir {
		return fmt.Errorf("second name %q for a directory: %w", name, filetree.ErrInvalid)
	}
	return u.addEntry(dir, name, n)
}

// Rename implements filetree.Update.
func (u *Update) Rename(dir filetree.NodeID, name string, toDir filetree.NodeID, toName string) error {
	n, kind, err := u.Lookup(dir, name)
	if err != nil {
		return err
	}
	if err := u.free(toDir, toName); err != nil {
		return err
	}
	if kind == filetree.Dir {
		for at, depth := toDir, 0; at != filetree.RootNode; depth++ {
			if at == n || depth > 1<<14 {
				return fmt.Errorf("directory %q moved into itself: %w", name, filetree.ErrInvalid)
			}
			e, err := u.v.Entries(at, 1)
			if err != nil {
				return err
			}
			if len(e) == 0 {
				return fmt.Errorf("node %d: %w", at, filetree.ErrNotExist)
			}
			at = e[0].Dir
		}
	}
	if err := u.removeEntry(dir, name, n); err != nil {
		return err
	}
	return u.addEntry(toDir, toName, n)
}

// Unlink implements filetree.Update.
func (u *Update) Unlink(dir filetree.NodeID, name string) error {
	n, kind, err := u.Lookup(dir, name)
	if err != nil {
		return err
	}
	if kind == filetree.Dir {
		empty, err := u.v.Empty(n)
		if err != nil {
			return err
		}
		if !empty {
			return fmt.Errorf("directory %q is not empty: %w", name, filetree.ErrInvalid)
		}
	}
	return u.removeEntry(dir, name, n)
}

// SetAttr implements filetree.Update.
func (u *Update) SetAttr(n filetree.NodeID, change func(*filetree.Attr)) error {
	c, err := u.attr(n)
	if err != nil {
		return err
	}
	kind, size := c.Kind, c.Size
	c.Xattrs = slices.Clone(c.Xattrs)
	change(&c.Attr)
	c.Kind, c.Size = kind, size
	filetree.SortXattrs(c.Xattrs)
	c.dirty = true
	u.touch(n)
	return nil
}

// A writeBuffer gathers writes that follow one another.
type writeBuffer struct {
	node filetree.NodeID
	off  int64
	data []byte
}

func (u *Update) file(n filetree.NodeID, off, length int64) (*cachedAttr, error) {
	if off < 0 || length < 0 || off+length < off {
		return nil, fmt.Errorf("%d bytes at %d: %w", length, off, filetree.ErrInvalid)
	}
	c, err := u.attr(n)
	if err != nil {
		return nil, err
	}
	if c.Kind != filetree.File {
		return nil, fmt.Errorf("data of a %v: %w", c.Kind, filetree.ErrInvalid)
	}
	u.touch(n)
	return c, nil
}

func (c *cachedAttr) grow(end int64) {
	if end > c.Size {
		c.Size, c.dirty = end, true
	}
}

// Write implements filetree.Update.
func (u *Update) Write(n filetree.NodeID, off int64, data []byte) error {
	c, err := u.file(n, off, int64(len(data)))
	if err != nil || len(data) == 0 {
		return err
	}
	b := &u.write
	if len(b.data) > 0 && (b.node != n || b.off+int64(len(b.data)) != off) {
		if err := u.flushWrite(); err != nil {
			return err
		}
	}
	c.grow(off + int64(len(data)))
	u.stats.Bytes += uint64(len(data))
	for len(data) > 0 {
		if len(b.data) == 0 {
			b.node, b.off = n, off
		}
		// Cut at multiples of 1 MiB, so that the same content is cut the same.
		room := catalog.MaxPart - (b.off+int64(len(b.data)))%catalog.MaxPart
		k := min(room, int64(len(data)))
		b.data = append(b.data, data[:k]...)
		data, off = data[k:], off+k
		if k == room {
			if err := u.flushWrite(); err != nil {
				return err
			}
		}
	}
	return nil
}

// flushWrite stores what Write gathered.
func (u *Update) flushWrite() error {
	b := &u.write
	if len(b.data) == 0 {
		return nil
	}
	p := Piece{Offset: b.off, Items: []Item{{Data: b.data}}}
	if len(b.data) >= MinContent {
		p.CID = u.ContentID(b.data)
		p.Items[0].CID = p.CID
	}
	err := u.putPiece(b.node, p)
	b.data = b.data[:0]
	return err
}

// Changed implements filetree.Update. What it says is asked for by [Update.Unread].
func (u *Update) Changed(n filetree.NodeID, off, length int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.file(n, off, length)
	if err != nil || length == 0 {
		return err
	}
	c.grow(off + length)
	if n >= u.first {
		return nil // all of a new file is read
	}
	if u.changed == nil {
		u.changed = map[filetree.NodeID][]filetree.Range{}
	}
	r := u.changed[n]
	if k := len(r); k > 0 && r[k-1].End() == off {
		r[k-1].Length += length
		return nil
	}
	u.changed[n] = append(r, filetree.Range{Offset: off, Length: length})
	return nil
}

// Hole implements filetree.Update.
func (u *Update) Hole(n filetree.NodeID, off, length int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.file(n, off, length)
	if err != nil {
		return err
	}
	if length = min(length, c.Size-off); length <= 0 {
		return nil
	}
	u.punch(n)
	return u.put(n, off, []catalog.Part{{Length: length}}, nil)
}

func (u *Update) punch(n filetree.NodeID) {
	if u.punched == nil {
		u.punched = map[filetree.NodeID]bool{}
	}
	u.punched[n] = true
}

// Punched reports whether Hole or Truncate took bytes from a file: then it is not, even
// where nothing has been Put, what it was in the snapshot before.
func (u *Update) Punched(n filetree.NodeID) bool { return u.punched[n] }

// Truncate implements filetree.Update.
func (u *Update) Truncate(n filetree.NodeID, size int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.file(n, 0, size)
	if err != nil {
		return err
	}
	if size < c.Size {
		u.punch(n)
		if err := u.put(n, size, []catalog.Part{{Length: c.Size - size}}, nil); err != nil {
			return err
		}
	}
	c.Size, c.dirty = size, true
	return nil
}

// Clone implements filetree.Update.
func (u *Update) Clone(n filetree.NodeID, off int64, src filetree.NodeID, srcOff, length int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.attr(src)
	if err != nil {
		return err
	}
	if src == n && length > 0 && off < srcOff+length && srcOff < off+length {
		return u.cloneOver(n, off, srcOff, length)
	}
	return u.clone(n, off, u.v, src, c.Kind, srcOff, length)
}

// cloneOver is Clone for ranges that overlap: all of it is looked up before any of it is
// overwritten, so it cannot be long.
func (u *Update) cloneOver(n filetree.NodeID, off, srcOff, length int64) error {
	if length > cloneStep || srcOff < 0 {
		return fmt.Errorf("clone of %d bytes at %d to %d of the same file: %w", length, srcOff, off, filetree.ErrInvalid)
	}
	c, err := u.file(n, off, length)
	if err != nil {
		return err
	}
	parts, err := u.v.Parts(n, srcOff, srcOff+length)
	if err != nil {
		return err
	}
	c.grow(off + length)
	return u.put(n, off, parts, nil)
}

// cloneStep bounds how much of a clone is looked up at once.
const cloneStep = 64 << 20

func (u *Update) clone(n filetree.NodeID, off int64, v catalog.View, src filetree.NodeID, kind filetree.Kind, srcOff, length int64) error {
	c, err := u.file(n, off, length)
	if err != nil {
		return err
	}
	if srcOff < 0 || srcOff+length < srcOff || kind != filetree.File {
		return fmt.Errorf("clone of %d bytes at %d of a %v: %w", length, srcOff, kind, filetree.ErrInvalid)
	}
	if length > 0 {
		c.grow(off + length)
	}
	for length > 0 {
		next, err := v.NextExtent(src, srcOff)
		if err != nil {
			return err
		}
		k := min(length, cloneStep)
		parts := []catalog.Part{{Length: k}}
		if hole := min(next-srcOff, length); hole > 0 {
			k = hole // in one step, however long it is
			parts[0].Length = k
		} else if parts, err = v.Parts(src, srcOff, srcOff+k); err != nil {
			return err
		}
		if err := u.put(n, off, parts, nil); err != nil {
			return err
		}
		off, srcOff, length = off+k, srcOff+k, length-k
	}
	return nil
}

// CloneFrom implements filetree.Update.
func (u *Update) CloneFrom(n filetree.NodeID, off int64, snapshot [16]byte, src filetree.NodeID, srcOff, length int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	v, err := u.snapshot(snapshot)
	if err != nil {
		return err
	}
	a, err := v.Attr(src)
	if err != nil {
		return fmt.Errorf("clone from snapshot %x: %w", snapshot, err)
	}
	return u.clone(n, off, v, src, a.Kind, srcOff, length)
}

// Resolve implements filetree.Update.
func (u *Update) Resolve(snapshot [16]byte, path string) (filetree.NodeID, error) {
	v, err := u.snapshot(snapshot)
	if err != nil {
		return 0, err
	}
	n, err := v.Resolve(SplitPath(path))
	if err != nil {
		return 0, fmt.Errorf("%q in snapshot %x: %w", path, snapshot, err)
	}
	return n, nil
}

// snapshot finds a committed snapshot by its UUID, first among those of this source.
func (u *Update) snapshot(guid [16]byte) (catalog.View, error) {
	if v, ok := u.guids[guid]; ok {
		return v, nil
	}
	v, err := u.w.findGUID(u.source, guid)
	if err != nil {
		return v, err
	}
	if u.guids == nil {
		u.guids = map[[16]byte]catalog.View{}
	}
	u.guids[guid] = v
	return v, nil
}

// findGUID returns the snapshot that the file system knows under a UUID: of a source, or
// else of any of the writer's.
func (w *Writer) findGUID(own catalog.Source, guid [16]byte) (catalog.View, error) {
	sources, err := w.cat.Sources()
	if err != nil {
		return catalog.View{}, err
	}
	for _, s := range append([]catalog.Source{own}, sources...) {
		if seq, err := w.Alias(s, guid); err != nil {
			return catalog.View{}, err
		} else if seq != 0 {
			return w.cat.At(s.ID, seq), nil
		}
		snaps, err := Snapshots(w.cat, s)
		if err != nil {
			return catalog.View{}, err
		}
		for _, sn := range slices.Backward(snaps) {
			if sn.Info.GUID == guid && !sn.Partial {
				return w.cat.At(s.ID, sn.Seq), nil
			}
		}
	}
	return catalog.View{}, fmt.Errorf("snapshot %x: %w", guid, filetree.ErrNotExist)
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
			// The next stream starts from this one, whatever it is called here.
			if err := errors.Join(u.v.KeepBefore(), u.w.cat.Commit()); err != nil {
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
