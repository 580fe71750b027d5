package store

import (
	"errors"
)

// ErrUnavailable is wrapped by errors that say the destination could not be
// reached, did not answer in time, or was too busy, until the attempts ran out.
// The same call may succeed later.
var ErrUnavailable = errors.New("destination is not available")

// An Error is what went wrong with one object at one destination, and what a
// person can do about it. The sentinels of this package are tested for with
// [errors.Is], through it.
type Error struct {
	Op   string // put, get, stat, list, open or probe
	Key  string // of the object, or the prefix of a listing; may be empty
	At   string // the destination's address, without secrets
	Err  error
	Hint string // what to try; may be empty
}

// Error names the object and the destination. It leaves out the hint, which the
// command prints on a line of its own.
func (e *Error) Error() string {
	s := e.Op
	if e.Key != "" {
		s += " " + e.Key
	}
	if e.At != "" {
		s += " at " + e.At
	}
	return s + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Hint is the first hint that err carries, or "".
func Hint(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Hint
	}
	return ""
}
