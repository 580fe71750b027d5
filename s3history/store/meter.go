package store

import "io"

// A meteredReader is an object on its way to the destination. Reading it is
// what the wrappers of this package take for sending it.
type meteredReader interface {
	io.ReaderAt
	unmetered() io.ReaderAt
}

// Unmetered is what lies beneath the wrappers of an object that is being put.
// An implementation reads from it what it does not send, to hash it for example,
// so that a limit does not hold that up and progress does not show it.
func Unmetered(r io.ReaderAt) io.ReaderAt {
	for {
		m, ok := r.(meteredReader)
		if !ok {
			return r
		}
		r = m.unmetered()
	}
}
