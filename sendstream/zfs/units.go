package zfs

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// Errors of [Units] that say which streams files cannot be had from, and how to
// send them so that they can. A [FormatError] wraps them.
var (
	// ErrRaw reports a stream of ciphertext.
	ErrRaw = errors.New("raw stream of an encrypted dataset, in which names and data cannot be read: leave out --raw (-w), with the key loaded")
	// ErrRedacted reports a stream that leaves out blocks, or whose base did. Its
	// ToGUID is that of the whole snapshot.
	ErrRedacted = errors.New("redacted stream, in which blocks are missing: leave out --redact (-d), and send from a snapshot that is not redacted")
	// ErrDedup reports a stream that refers to data elsewhere.
	ErrDedup = errors.New("deduplicated stream, which refers to data that came before: leave out --dedup (-D)")
	// ErrObjectSet reports what is neither a file system nor a volume.
	ErrObjectSet = errors.New("neither a file system nor a volume")
)

// A Unit is the part of a stream that makes one snapshot: a substream.
//
// Its Header has names, GUIDs, features and list. A unit with a FromGUID wants the
// state that the snapshot of that GUID left, also if FlagClone says that this was
// in another dataset. A resumed one, see [Header.Resume], wants what a first part
// with the same ToGUID left. Both are the caller's to check, as is ObjectSet,
// which is FileSystem or Volume.
type Unit struct {
	Header

	Offset  int64       // of BEGIN in the input
	Package nvlist.List // of the package that the unit is in; nil if none

	units    *Units
	complete bool
}

// Incremental reports whether the unit starts from another snapshot and not from
// nothing.
func (u *Unit) Incremental() bool { return u.FromGUID != 0 }

// Complete reports whether all records of the unit have been read and the sum at
// its END was right. Until then nothing that came of it may be kept.
func (u *Unit) Complete() bool { return u.complete }

// Next returns the next record of the unit, and [io.EOF] in place of its END, when
// the unit is complete. BEGIN is not among them. Other errors are those of
// [Units.Next].
func (u *Unit) Next() (Record, error) {
	switch {
	case u.complete:
		return Record{}, io.EOF
	case u.units.err != nil:
		return Record{}, u.units.err
	case u.units.cur != u:
		return Record{}, errPassed
	}
	return u.units.record()
}

// All returns an iterator over the records left in the unit. An error is yielded
// once, with the zero Record, and ends the iteration; if there is none, the unit
// is complete.
func (u *Unit) All() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			rec, err := u.Next()
			if err == io.EOF || !yield(rec, err) || err != nil {
				return
			}
		}
	}
}

// errPassed is a mistake of the caller, not of the stream.
var errPassed = errors.New("zfs: unit is not the one last returned by Next")

// Units splits an input into units, be they in one stream, in a package or in
// several of either.
type Units struct {
	r   *Reader
	pkg *Header // that the reader is in
	cur *Unit   // whose records come next
	err error
}

// NewUnits returns the units of r.
func NewUnits(r io.Reader) *Units { return &Units{r: NewReader(r)} }

// Offset returns how many bytes have been read.
func (u *Units) Offset() int64 { return u.r.Offset() }

// Next returns the next unit, and skips what has not been read of the one before.
// After the last one it returns [io.EOF]. Errors are those of [Reader.Next] and
// [ErrRaw], [ErrRedacted], [ErrDedup] and [ErrObjectSet]; they are final. What was
// complete before stays good.
func (u *Units) Next() (*Unit, error) {
	for u.err == nil && u.cur != nil {
		u.record()
	}
	if u.err != nil {
		return nil, u.err
	}
	for {
		rec, err := u.r.Next()
		if err == nil && rec.Type == Begin {
			err = refuse(rec.Header, rec.Offset)
		}
		switch {
		case err != nil:
			u.err = err
			return nil, err
		case rec.Type == Begin && rec.Header.Package:
			u.pkg = rec.Header
			if _, u.err = u.r.Next(); u.err != nil { // END, the Reader sees to it
				return nil, u.err
			}
		case rec.Type == Begin:
			u.cur = &Unit{Header: *rec.Header, Offset: rec.Offset, units: u}
			if u.pkg != nil {
				u.cur.Package = u.pkg.List
			}
			return u.cur, nil
		default: // END of the package
			u.pkg = nil
		}
	}
}

// All returns an iterator over the units left in the input. An error is yielded
// once, with a nil Unit, and ends the iteration.
func (u *Units) All() iter.Seq2[*Unit, error] {
	return func(yield func(*Unit, error) bool) {
		for {
			unit, err := u.Next()
			if err == io.EOF || !yield(unit, err) || err != nil {
				return
			}
		}
	}
}

// record returns the next record of the current unit, or io.EOF and no current
// unit any more.
func (u *Units) record() (Record, error) {
	rec, err := u.r.Next()
	switch {
	case err != nil:
	case rec.Type == End:
		u.cur.complete = true
		u.cur = nil
		return Record{}, io.EOF
	case rec.Type == Redact:
		err = &FormatError{Offset: rec.Offset, Err: ErrRedacted}
	case rec.Type == WriteByRef:
		err = &FormatError{Offset: rec.Offset, Err: ErrDedup}
	}
	if err != nil {
		u.err, u.cur = err, nil
		return Record{}, err
	}
	return rec, nil
}

// refuse says why a stream cannot be used.
func refuse(h *Header, offset int64) error {
	var err error
	switch {
	case h.Features.Has(FeatureRaw) || h.List.Has("crypt_keydata"):
		err = ErrRaw
	case h.Features.Has(FeatureRedacted) || h.List.Has("redact_snaps") || h.List.Has("redact_from_snaps"):
		err = ErrRedacted
	case h.Features.Has(FeatureDedup):
		err = ErrDedup
	case !h.Package && h.ObjectSet != FileSystem && h.ObjectSet != Volume:
		err = fmt.Errorf("%v: %w", h.ObjectSet, ErrObjectSet)
	default:
		return nil
	}
	return &FormatError{Offset: offset, Err: err}
}
