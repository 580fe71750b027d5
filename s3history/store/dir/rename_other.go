//go:build !linux

package dir

import (
	"errors"
	"os"
)

// renameNoReplace is Linux's alone.
func renameNoReplace(root *os.Root, from, to string) error {
	return &os.LinkError{Op: "rename", Old: from, New: to, Err: errors.ErrUnsupported}
}
