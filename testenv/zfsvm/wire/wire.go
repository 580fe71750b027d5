// Package wire is what host and guest of a zfsvm say to each other, over a virtio
// serial port: frames, each a kind, a length and that many bytes.
//
//	+-----------+---------------------+--- ... ---+
//	| kind (1B) | length (4B, big     | payload   |
//	|           | endian), ≤ MaxFrame |           |
//	+-----------+---------------------+--- ... ---+
//
// The guest says Hello when it is ready. Then the host sends a Run, and the guest
// answers with the Stdout and Stderr of the program in the order in which they were
// written, and an Exit; and so on, one program at a time. Hello, Run and Exit are JSON.
//
// The port is a queue of bytes between two processes: nothing is lost, altered or
// mixed with what the kernel has to say, which goes to the serial console.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Port is the name of the virtio serial port.
const Port = "secrate.zfsvm"

// MaxFrame bounds the payload of a frame, in bytes.
const MaxFrame = 1 << 20

// A Kind says what a frame is.
type Kind byte

// The kinds of frames.
const (
	KindHello  Kind = 'h'
	KindRun    Kind = 'r'
	KindStdout Kind = 'o'
	KindStderr Kind = 'e'
	KindExit   Kind = 'x'
)

// Hello says that the guest is up.
type Hello struct {
	Kernel string // its release
	ZFS    string // version of the module
	Error  string // what went wrong on the way up; "" if nothing did
}

// Run asks for a program to be run.
type Run struct {
	Args []string
	Env  []string // besides PATH and the like
	Dir  string   // "" means /
	// Terminal gives the program the serial console for its terminal. Then nothing
	// of its output is in frames.
	Terminal   bool
	Rows, Cols int
	Now        int64 // the host's time, in ns since 1970, which the guest's is set to
}

// Exit says how a program ended.
type Exit struct {
	Status int    // 128 and the number of a signal if it was ended by that
	Error  string // why it could not be run or waited for; "" if it could
}

// ErrFrame is wrapped by errors that report bytes that are no frame.
var ErrFrame = errors.New("not a frame")

// Write writes a frame, whose payload must not be longer than MaxFrame.
func Write(w io.Writer, k Kind, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("wire: %w: %d bytes", ErrFrame, len(payload))
	}
	b := make([]byte, 0, 5+len(payload))
	b = append(b, byte(k))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

// WriteJSON writes a frame with v in it.
func WriteJSON(w io.Writer, k Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return Write(w, k, b)
}

// Read reads a frame. At the end of r, between two frames, the error is io.EOF.
func Read(r io.Reader) (Kind, []byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	switch k := Kind(header[0]); k {
	case KindHello, KindRun, KindStdout, KindStderr, KindExit:
	default:
		return 0, nil, fmt.Errorf("wire: %w: kind %#x", ErrFrame, byte(k))
	}
	n := binary.BigEndian.Uint32(header[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("wire: %w: %d bytes", ErrFrame, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Kind(header[0]), b, nil
}

// A Stream is one of a program's outputs as frames of a kind.
type Stream struct {
	W    io.Writer // whose Write may be called by several Streams at once
	Kind Kind
}

// Write writes p in as many frames as it takes.
func (s Stream) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, MaxFrame)
		if err := Write(s.W, s.Kind, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}
