package config

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// A ModeError reports a file or a directory that others have access to.
type ModeError struct {
	Path string
	Mode fs.FileMode // the permission bits it has
	Max  fs.FileMode // those it may have
}

func (e *ModeError) Error() string {
	return fmt.Sprintf("%s: mode %#o is wider than %#o", e.Path, e.Mode, e.Max)
}

// Hint is the command that helps.
func (e *ModeError) Hint() string { return fmt.Sprintf("chmod %#o %s", e.Max, shellQuote(e.Path)) }

// An OwnerError reports a file or a directory that belongs to somebody else.
type OwnerError struct {
	Path string
	UID  uint32
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("%s: belongs to user id %d, neither to you nor to root", e.Path, e.UID)
}

// Hint is the command that helps.
func (e *OwnerError) Hint() string {
	return fmt.Sprintf("look at what it says, then: chown %d %s", os.Geteuid(), shellQuote(e.Path))
}

// EnsureStateDir makes the directory, with mode 0700, unless it is there. One that
// others have access to is a [*ModeError] or an [*OwnerError].
func EnsureStateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return private(dir, info, 0o700)
}

// maxSecret bounds what ReadSecretFile reads.
const maxSecret = 1 << 20

// ReadSecretFile reads a file that only we or root may have written and that
// nobody else can read. The error is a [*ModeError] or an [*OwnerError] when it is
// not so.
func ReadSecretFile(path string) ([]byte, error) {
	// Not to block on a pipe that somebody left there.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	if err := private(path, info, 0o600); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSecret {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxSecret)
	}
	return b, nil
}

// CreateSecretFile writes a new file of mode 0600, which is durable when it
// returns nil. The error wraps [fs.ErrExist] when there is one already: it is left
// alone.
func CreateSecretFile(path string, data []byte) error {
	return writeFile(path, data, true)
}

func private(path string, info fs.FileInfo, limit fs.FileMode) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return &OwnerError{Path: path, UID: st.Uid}
	}
	if mode := info.Mode().Perm(); mode&^limit != 0 {
		return &ModeError{Path: path, Mode: mode, Max: limit}
	}
	return nil
}

// shellQuote writes s so that a shell reads it as one word.
func shellQuote(s string) string {
	plain := s != ""
	for i := range len(s) {
		c := s[i]
		plain = plain && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '/' || c == '.' || c == '-' || c == '_')
	}
	if plain {
		return s
	}
	out := []byte{'\''}
	for i := range len(s) {
		if s[i] == '\'' {
			out = append(out, `'\''`...)
		} else {
			out = append(out, s[i])
		}
	}
	return string(append(out, '\''))
}
