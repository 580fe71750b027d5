package btrfs

import (
	"errors"
	"io"
	"iter"
)

// A Unit is the part of a stream that makes one snapshot.
type Unit struct {
	Name     string // the last component of the path it was sent from
	UUID     [16]byte
	CTransID uint64 // a hint: a received snapshot keeps its UUID but not this

	// Incremental says that the unit starts from the snapshot ParentUUID and not
	// from nothing. Nothing proves that the parent at hand is what the sender had.
	Incremental    bool
	ParentUUID     [16]byte
	ParentCTransID uint64

	Version uint32 // of the protocol
	Offset  int64  // of SUBVOL or SNAPSHOT in the input

	units *Units
}

// Units splits an input into units, be they in one stream or in several.
type Units struct {
	r    *Reader
	cur  *Unit // whose commands come next
	next *Unit // whose beginning ended the one before
	err  error
}

// NewUnits returns the units of r.
func NewUnits(r io.Reader) *Units { return &Units{r: NewReader(r)} }

// Offset returns how many bytes have been read.
func (u *Units) Offset() int64 { return u.r.Offset() }

// Next returns the next unit, and skips what has not been read of the one before.
// After the last one it returns [io.EOF]. Errors are those of [Reader.Next]; they
// are final.
func (u *Units) Next() (*Unit, error) {
	if u.err != nil {
		return nil, u.err
	}
	for u.cur != nil {
		if _, err := u.command(); err != nil && err != io.EOF {
			return nil, err
		}
	}
	if u.next == nil {
		// The Reader sees to it that it is SUBVOL or SNAPSHOT.
		c, err := u.r.Next()
		if err != nil {
			u.err = err
			return nil, err
		}
		u.begin(&c)
	}
	u.cur, u.next = u.next, nil
	return u.cur, nil
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

// command returns the next command of the current unit, and io.EOF behind its
// last, which is when END or the next unit has been seen.
func (u *Units) command() (Command, error) {
	if u.err != nil {
		return Command{}, u.err
	}
	c, err := u.r.Next()
	switch {
	case err != nil:
		u.err, u.cur = err, nil
		return Command{}, err
	case c.Type == End:
		u.cur = nil
		return Command{}, io.EOF
	case c.Type == Subvol || c.Type == Snapshot:
		u.begin(&c)
		u.cur = nil
		return Command{}, io.EOF
	}
	return c, nil
}

func (u *Units) begin(c *Command) {
	u.next = &Unit{
		Name:           string(c.Path),
		UUID:           c.UUID,
		CTransID:       c.CTransID,
		Incremental:    c.Type == Snapshot,
		ParentUUID:     c.CloneUUID,
		ParentCTransID: c.CloneCTransID,
		Version:        c.Version,
		Offset:         c.Offset,
		units:          u,
	}
}

// errPassed is a mistake of the caller, not of the stream.
var errPassed = errors.New("btrfs: unit is not the one last returned by Next, or was applied before")
