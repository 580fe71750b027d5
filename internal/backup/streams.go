package backup

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/s3history"
)

// A stream names a file by any of its names, also by one that is excluded. So the one that
// applies streams hands on, from a snapshot to those that start from it, what it has to
// know of such names, as bytes of its own (see [Unit]). They are kept as notes of the
// source, under the UUID of the snapshot; a further note, the index, has the UUID and the
// size of each, oldest first. Any of the newest can be what a stream starts from.
const (
	keepOutside      = 4096     // so many of them
	keepOutsideBytes = 16 << 20 // and so many bytes, but the newest always
	outsideIndex     = "streams"
)

func outsideNote(guid [16]byte) string { return fmt.Sprintf("stream-%x", guid) }

// Notes are what an [s3history.Update] keeps for later, or the writer without one.
type notes interface {
	Note(name string) ([]byte, error)
	SetNote(name string, v []byte) error
}

type sourceNotes struct {
	w      *s3history.Writer
	source catalog.Source
}

func (n sourceNotes) Note(name string) ([]byte, error)    { return n.w.Note(n.source, name) }
func (n sourceNotes) SetNote(name string, v []byte) error { return n.w.SetNote(n.source, name, v) }

// handOn keeps what is handed on from a snapshot, and drops what is too old.
func handOn(n notes, guid [16]byte, outside []byte) error {
	const entry = 16 + 8
	index, err := n.Note(outsideIndex)
	if err != nil {
		return err
	}
	fresh := binary.BigEndian.AppendUint64(bytes.Clone(guid[:]), uint64(len(outside)))
	total := uint64(len(outside))
	var kept [][]byte // newest first
	for len(index) >= entry {
		e := index[len(index)-entry:]
		index = index[:len(index)-entry]
		if bytes.Equal(e[:16], guid[:]) {
			continue
		}
		if total += binary.BigEndian.Uint64(e[16:]); total <= keepOutsideBytes && len(kept) < keepOutside-1 {
			kept = append(kept, e)
		} else if err := n.SetNote(outsideNote([16]byte(e)), []byte{}); err != nil {
			return err
		}
	}
	var b []byte
	for i := len(kept) - 1; i >= 0; i-- {
		b = append(b, kept[i]...)
	}
	if err := n.SetNote(outsideIndex, append(b, fresh...)); err != nil {
		return err
	}
	return n.SetNote(outsideNote(guid), outside)
}
