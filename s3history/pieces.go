package s3history

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
)

// Whole nodes and pieces of files, for callers that can read the new tree.

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

// Overwrite is Put for new bytes whose old version cannot be read: where the catalog knows
// sums of what is there, what is the same is kept. The piece has one Item with Data, and lies
// between two multiples of [catalog.MaxPart].
func (u *Update) Overwrite(n filetree.NodeID, p Piece) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	return u.putWritten(n, p)
}

func (u *Update) putPiece(n filetree.NodeID, p Piece) error {
	if len(p.Items) == 1 && p.Items[0].Parts != nil && p.CID == (seal.ContentID{}) { // perhaps it has them
		return u.put(n, p.Offset, p.Items[0].Parts, nil)
	}
	if done, err := u.putKnown(n, &p); done || err != nil {
		return err
	}
	return u.putItems(n, p)
}

// putKnown is putPiece if the content of the piece is known, and reports whether it is.
func (u *Update) putKnown(n filetree.NodeID, p *Piece) (bool, error) {
	if p.CID == (seal.ContentID{}) {
		return false, nil
	}
	// Perhaps a file just before this one had the same.
	parts, err := u.known(p.CID)
	if parts == nil || err != nil {
		return false, err
	}
	return true, u.put(n, p.Offset, parts, p.CID[:])
}

// putItems is putPiece if it is not known.
func (u *Update) putItems(n filetree.NodeID, p Piece) error {
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

// record records what was done to the content of a file. Whatever does that comes by.
func (u *Update) record(n filetree.NodeID, d dataRec) error {
	if err := u.unsign(n); err != nil {
		return err
	}
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
