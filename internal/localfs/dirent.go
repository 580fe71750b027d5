package localfs

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// A struct linux_dirent64 is
//
//	| ino (8B) | position of the next (8B) | length (2B) | type (1B) | name, NUL, padding |
const direntHeader = 19

func parseDirent(b []byte) (e Entry, rest []byte, err error) {
	if len(b) < direntHeader {
		return Entry{}, nil, errors.New("directory entry cut off")
	}
	size := int(binary.NativeEndian.Uint16(b[16:]))
	if size < direntHeader || size > len(b) {
		return Entry{}, nil, errors.New("directory entry of impossible length")
	}
	name, _, _ := bytes.Cut(b[direntHeader:size], []byte{0})
	e = Entry{Name: string(name), Kind: direntKind(b[18]), Ino: binary.NativeEndian.Uint64(b)}
	return e, b[size:], nil
}

func direntKind(t byte) filetree.Kind {
	switch t {
	case unix.DT_REG:
		return filetree.File
	case unix.DT_DIR:
		return filetree.Dir
	case unix.DT_LNK:
		return filetree.Symlink
	case unix.DT_FIFO:
		return filetree.Fifo
	case unix.DT_SOCK:
		return filetree.Socket
	case unix.DT_CHR:
		return filetree.CharDev
	case unix.DT_BLK:
		return filetree.BlkDev
	}
	return 0
}
