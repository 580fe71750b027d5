package s3history

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/rolling"
	"github.com/secrate/secrate/internal/seal"
)

// Whole files whose old bytes cannot be read, and of which the catalog has a signature by
// which what was moved within them is found (package rolling). The sums of signatures.go
// tell what stayed in its place, in smaller blocks; both are of use to one file.

// RollingSum is the strong checksum of signatures: a keyed BLAKE3, whose key is that of
// nothing else. It may be called concurrently.
func (u *Update) RollingSum(block []byte) rolling.Sum {
	return rolling.Sum(u.w.rollingSum.ContentID(block))
}

// Signature returns the signature of a file and the state it is of, which does not change: that
// of a snapshot, not later than before. It returns nil if there is none, or it is damaged: what
// is lost with it is bytes. It may be called concurrently.
func (u *Update) Signature(n filetree.NodeID, before catalog.View) (*rolling.Signature, catalog.View, error) {
	b, of, err := before.Rolling(n)
	if b == nil || of.Seq() > before.Seq() || err != nil {
		return nil, of, err
	}
	sig, err := rolling.Decode(b)
	if errors.Is(err, rolling.ErrEncoding) {
		return nil, of, nil
	}
	return sig, of, err
}

// SetSignature keeps the signature of what a file has now, until something is done to it. Of
// a file that is new, which may never change, it counts what that takes (see SignedNew).
func (u *Update) SetSignature(n filetree.NodeID, sig *rolling.Signature, isNew bool) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	b := sig.Encode()
	u.rolled[n] = true
	if err := u.v.SetRolling(n, b); err != nil || !isNew {
		return err
	}
	so, err := u.SignedNew()
	if err != nil {
		return err
	}
	return u.w.SetNote(u.source, rollingNote, binary.BigEndian.AppendUint64(nil, uint64(so)+uint64(len(b))))
}

// rollingNote is the note that says how many bytes signatures of new files have taken.
const rollingNote = "rolling signatures of new files"

// SignedNew returns how many bytes the signatures of new files have taken so far, of all
// that the source ever had.
func (u *Update) SignedNew() (int64, error) {
	note, err := u.w.Note(u.source, rollingNote)
	if len(note) != 8 {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(note)), nil
}

// unsign takes a signature away that this update has made, since it is no longer of what the
// snapshot will have. One of a snapshot before stays right.
func (u *Update) unsign(n filetree.NodeID) error {
	if !u.rolled[n] {
		return nil
	}
	delete(u.rolled, n)
	return u.v.DropRolling(n)
}

// Remember keeps the content id of a stretch that the file has by now, put together of several
// pieces, so that a copy of it is known. It is kept in the catalog alone: in records, ids would be
// most of what a file costs that was shifted. p has its Offset, its CID and one Item, to keep.
func (u *Update) Remember(n filetree.NodeID, p Piece) error {
	if p.CID == (seal.ContentID{}) || len(p.Items) != 1 || p.Items[0].Keep <= 0 {
		panic("s3history: internal error: nothing to remember")
	}
	if err := u.flushWrite(); err != nil {
		return err
	}
	parts, err := u.v.Parts(n, p.Offset, p.Offset+p.Items[0].Keep)
	if err != nil || len(parts) > maxRemembered || slices.ContainsFunc(parts, catalog.Part.Hole) {
		return err
	}
	return u.w.cat.SetContent(p.CID, parts)
}

// maxRemembered bounds the parts that are kept with an id by Remember.
const maxRemembered = 64
