package s3history

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/delta"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
)

// Deltas where the old bytes cannot be read. A send stream brings all of a record in which
// one byte changed, and a host that may only write cannot ask for what the record was. It
// can remember: of what was written over once, and may be again, the catalog has a sum for
// each block of 512 bytes. Blocks of the same sum stay as they are; only the others are
// stored.
//
//	there    |  slice of blob 1, signed            |  slice of blob 2, not signed  |
//	written  |  same  | other |  same              |  other                        |
//	stored   |  keep  | data  |  keep              |  data                         |
//
// What is stored is signed in turn. Of what is written for the first time, which is most of
// all data and mostly stays what it is, only some is: see maxFirst.

// A sum is the first 12 bytes of a keyed BLAKE3. A block is compared with the one block
// that is in its place, and not with all there are, so that other bytes are taken for the
// same with a probability of 2⁻⁹⁶, however large the history is: after 2⁴⁰ blocks that
// changed, half a pebibyte of them, it has happened with one of 2⁻⁵⁶. Who chooses the bytes
// and has not got the key can do no better than chance. The key is not that of content ids:
// the two need not know of each other.
func (u *Update) blockSum(block []byte) catalog.Sum {
	id := u.w.blockSum.ContentID(block)
	return catalog.Sum(id[:len(catalog.Sum{})])
}

// A summer makes sums of blocks of some bytes. What begins at a multiple of a block is
// looked at once, for as good as all are asked for twice.
type summer struct {
	sum  func([]byte) catalog.Sum
	data []byte
	made []catalog.Sum
	has  []bool
}

func newSummer(data []byte, sum func([]byte) catalog.Sum) *summer {
	blocks := len(data) / catalog.SumBlock
	return &summer{sum, data, make([]catalog.Sum, blocks), make([]bool, blocks)}
}

func (s *summer) of(at, length int64) catalog.Sum {
	if at%catalog.SumBlock != 0 || length != catalog.SumBlock {
		return s.sum(s.data[at : at+length])
	}
	i := at / catalog.SumBlock
	if !s.has[i] {
		s.made[i], s.has[i] = s.sum(s.data[at:at+length]), true
	}
	return s.made[i]
}

// maxSigned bounds the bytes that one update signs of what was written over, so that the
// catalog does not grow by more than 24 MiB of sums with a snapshot, whatever that brings.
// What it leaves out of files larger than this comes to be signed as later ones change it.
const maxSigned = 1 << 30

// maxFirst bounds the bytes that are signed of what is written for the first time, of a
// source for good: 24 MiB of sums. It saves each record of a database once, at its first
// change, but of a file that never changes it is lost. So only whole pieces are signed that
// do not look like pictures, films and archives, which are compressed.
const maxFirst = 1 << 30

const (
	// What an item of a piece costs in the manifest, about, both copies counted; package
	// backup counts the same.
	itemCost = 18
	// minKeep is how few bytes are stored again rather than kept. Among new bytes it
	// takes two items to keep some, and they are compressed to half their size, about.
	minKeep = 4 * itemCost
	// maxFragments is how many extents a stretch of 1 MiB may have before what is written
	// there is stored whole.
	maxFragments = 1024
)

// putWritten is putPiece for what Write has gathered: new bytes, and nothing is known but
// the catalog of what they replace.
func (u *Update) putWritten(n filetree.NodeID, p Piece) error {
	data := p.Items[0].Data
	from := p.Offset - p.Offset%catalog.MaxPart // Write has cut the piece there, and before the next
	var old []catalog.Extent
	if n < u.first {
		var err error
		if old, err = u.v.Extents(n, from, from+catalog.MaxPart); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(old, func(e catalog.Extent) bool { return overlap(e, p.Offset, int64(len(data))) > 0 }) {
		return u.putFirst(n, p)
	}
	rows, err := u.v.Signatures(n, from, from+catalog.MaxPart)
	if err != nil {
		return err
	}
	known, sums := indexSignatures(rows), newSummer(data, u.blockSum)
	done, err := u.putKnown(n, &p)
	if !done && err == nil {
		if items := keepBlocks(p.Offset, data, old, known, sums); items != nil {
			p.Items = items
			if items[0].Keep == int64(len(data)) {
				return nil // it is what it was
			}
			// An id in the catalog takes as much room as there are parts. It pays for what may be
			// found in a copy: all that is between two cuts.
			if whole, err := u.isWhole(n, p.Offset, len(data)); err != nil {
				return err
			} else if !whole {
				p.CID = seal.ContentID{}
			}
		}
		err = u.putItems(n, p)
	}
	if err != nil {
		return err
	}
	now, err := u.v.Extents(n, from, from+catalog.MaxPart)
	if err != nil || slices.Equal(now, old) {
		return err
	}
	return u.sign(n, p.Offset, sums, now, known, &u.signed, maxSigned)
}

// isWhole reports whether a piece is all that a file has between two multiples of 1 MiB.
func (u *Update) isWhole(n filetree.NodeID, off int64, length int) (bool, error) {
	if off%catalog.MaxPart != 0 || length == catalog.MaxPart {
		return length == catalog.MaxPart, nil
	}
	a, err := u.attr(n)
	return err == nil && off+int64(length) == a.Size, err
}

// putFirst is putWritten where nothing was before.
func (u *Update) putFirst(n filetree.NodeID, p Piece) error {
	done, err := u.putKnown(n, &p)
	if done || err != nil {
		return err
	}
	data := p.Items[0].Data
	if err := u.putItems(n, p); err != nil || len(data) < catalog.MaxPart {
		return err
	}
	note, err := u.w.Note(u.source, signedNote)
	if err != nil {
		return err
	}
	var signed int64
	if len(note) == 8 {
		signed = int64(binary.BigEndian.Uint64(note))
	}
	if signed >= maxFirst || !delta.Compresses(data) {
		return nil
	}
	now, err := u.v.Extents(n, p.Offset, p.Offset+catalog.MaxPart)
	if err != nil {
		return err
	}
	if err := u.sign(n, p.Offset, newSummer(data, u.blockSum), now, nil, &signed, maxFirst); err != nil {
		return err
	}
	return u.w.SetNote(u.source, signedNote, binary.BigEndian.AppendUint64(nil, uint64(signed)))
}

// signedNote is the note that says how many bytes putFirst has signed.
const signedNote = "signed when written first"

// sign makes the signatures of a stretch, of which those it had are given, fit what it has
// now: the bytes of sums from off on, and around that what was there. It signs new bytes
// until signed, to which they are added, would come to more than limit.
func (u *Update) sign(n filetree.NodeID, off int64, sums *summer, now []catalog.Extent, known signatures, signed *int64, limit int64) error {
	for _, e := range now {
		if e.Patch != nil {
			continue // its bytes are no slice's
		}
		if rows := known.of(e.Part); len(rows) > 0 {
			for _, s := range rows {
				s.used = true
			}
			continue
		}
		length := overlap(e, off, int64(len(sums.data)))
		// Who takes over the host has the key, and could find out few bytes by their sum. So
		// fewer than have a content id have no sum.
		if last := length % catalog.SumBlock; last < MinContent {
			length -= last
		}
		if length == 0 || *signed+length > limit {
			continue
		}
		*signed += length
		at := max(e.Offset, off)
		for p := e.Part.Slice(at-e.Offset, length); p.Length > 0; {
			k := min(p.Length, catalog.MaxSigned)
			s := catalog.Signature{Extent: catalog.Extent{Offset: at, Part: p.Slice(0, k)}}
			for from := int64(0); from < k; from += catalog.SumBlock {
				s.Sums = append(s.Sums, sums.of(at-off+from, min(catalog.SumBlock, k-from)))
			}
			if err := u.v.AddSignature(n, s); err != nil {
				return err
			}
			at, p = at+k, p.Slice(k, p.Length-k)
		}
	}
	for _, rows := range known {
		for _, s := range rows {
			if s.used {
				continue
			}
			if err := u.v.DropSignature(n, s.Signature); err != nil {
				return err
			}
		}
	}
	return nil
}

// overlap returns how many bytes of an extent are among the length bytes at off.
func overlap(e catalog.Extent, off, length int64) int64 {
	return max(0, min(e.Offset+e.Length, off+length)-max(e.Offset, off))
}

// signatures are those of a stretch, for each blob in order of the slices they are of.
type signatures map[blobID][]*signature

type signature struct {
	catalog.Signature
	used bool // something of it is in the file
}

func indexSignatures(rows []catalog.Signature) signatures {
	all := signatures{}
	for _, s := range rows {
		k := blobID{s.Pack, s.Blob}
		all[k] = append(all[k], &signature{Signature: s})
	}
	for _, rows := range all {
		slices.SortFunc(rows, func(a, b *signature) int { return cmp.Compare(a.Part.Offset, b.Part.Offset) })
	}
	return all
}

// of returns those that have bytes of a part in them.
func (s signatures) of(p catalog.Part) []*signature {
	rows := s[blobID{p.Pack, p.Blob}]
	byOffset := func(s *signature, off int64) int { return cmp.Compare(int64(s.Part.Offset), off) }
	i, _ := slices.BinarySearchFunc(rows, int64(p.Offset)-catalog.MaxSigned, byOffset)
	j, _ := slices.BinarySearchFunc(rows, int64(p.Offset)+p.Length, byOffset)
	for i < j && int64(rows[i].Part.Offset)+rows[i].Length <= int64(p.Offset) {
		i++
	}
	return rows[i:j]
}

// keepBlocks returns items that give data at off, where the extents of old are, of whose
// bytes the signatures are known: what has the same sums is kept. It returns nil where
// data is to be stored as it is. It is a function of its arguments alone.
func keepBlocks(off int64, data []byte, old []catalog.Extent, known signatures, sums *summer) []Item {
	end := off + int64(len(data))
	var kept []filetree.Range // in order, those that follow one another as one
	keep := func(from, length int64) {
		if k := len(kept); k > 0 && kept[k-1].End() == from {
			kept[k-1].Length += length
			return
		}
		kept = append(kept, filetree.Range{Offset: from, Length: length})
	}
	for _, e := range old {
		if e.Patch != nil {
			continue
		}
		from, to := max(e.Offset, off), min(e.Offset+e.Length, end)
		for _, s := range known.of(e.Part) {
			first := e.Offset + int64(s.Part.Offset) - int64(e.Part.Offset) // where s would begin
			for k := max(0, (from-first+catalog.SumBlock-1)/catalog.SumBlock); k < int64(len(s.Sums)); k++ {
				at := first + k*catalog.SumBlock
				length := min(catalog.SumBlock, s.Length-k*catalog.SumBlock)
				if at+length > to {
					break
				}
				if sums.of(at-off, length) == s.Sums[k] {
					keep(at, length)
					from = at + length
				}
			}
		}
	}
	if len(kept) == 1 && kept[0].Length == int64(len(data)) {
		return []Item{{Keep: int64(len(data))}}
	}
	kept = slices.DeleteFunc(kept, func(r filetree.Range) bool { return r.Length < minKeep })
	if len(kept) == 0 {
		return nil
	}
	var items []Item
	at, fresh := off, int64(0)
	data = slices.Clip(data)
	insert := func(to int64) {
		if at < to {
			items = append(items, Item{Data: data[at-off : to-off]})
			fresh += to - at
		}
	}
	for _, r := range kept {
		insert(r.Offset)
		items = append(items, Item{Keep: r.Length})
		at = r.End()
	}
	insert(end)
	cost, whole := itemCost*int64(len(items))+fresh/2, int64(len(data))/2
	if cost >= whole-whole/8 || fragments(off, end, old, kept)+len(items)-len(kept) > maxFragments {
		return nil
	}
	return items
}

// fragments counts the extents of old that are there still when of those in [off, end) only
// the ranges that are kept are. One that is so in two places is counted twice.
func fragments(off, end int64, old []catalog.Extent, kept []filetree.Range) (n int) {
	for _, e := range old {
		to := e.Offset + e.Length
		if e.Offset < off {
			n++
		}
		if to > end {
			n++
		}
		for len(kept) > 0 && kept[0].End() <= e.Offset {
			kept = kept[1:]
		}
		for _, r := range kept {
			if r.Offset >= to {
				break
			}
			n++
		}
	}
	return n
}
