package zfsvm

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
)

// A cpioWriter writes an archive that the kernel unpacks into its first file system:
// "newc" of cpio(5), see the kernel's Documentation/driver-api/early-userspace/
// buffer-format.rst. Each entry is a header of 110 bytes in ASCII, then the name and
// the content, each padded to a multiple of 4. Everything belongs to root and is of
// 1970, so that the same files make the same bytes.
//
// Directories above an entry are made as needed.
type cpioWriter struct {
	w    io.Writer
	off  int64
	ino  uint32
	seen map[string]bool
}

func newCPIO(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, seen: map[string]bool{}}
}

// The kinds of files, as in stat(2).
const (
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// errCPIO is wrapped by errors that say what an archive cannot hold.
var errCPIO = errors.New("no entry of a cpio archive")

// Dir adds a directory.
func (c *cpioWriter) Dir(name string, perm uint32) error {
	return c.entry(name, modeDir|perm&0o7777, 0, nil)
}

// Symlink adds a symbolic link.
func (c *cpioWriter) Symlink(name, target string) error {
	return c.entry(name, modeSymlink|0o777, int64(len(target)), strings.NewReader(target))
}

// File adds a file with the size bytes that r has.
func (c *cpioWriter) File(name string, perm uint32, size int64, r io.Reader) error {
	return c.entry(name, modeRegular|perm&0o7777, size, r)
}

// Close writes the end of the archive, padded so that another one may follow.
func (c *cpioWriter) Close() error {
	if err := c.header("TRAILER!!!", 0, 0); err != nil {
		return err
	}
	return c.pad(512)
}

func (c *cpioWriter) entry(name string, mode uint32, size int64, r io.Reader) error {
	name = strings.TrimPrefix(name, "/")
	switch {
	case name == "" || name == "." || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../"):
		return fmt.Errorf("%w: name %q", errCPIO, name)
	case strings.ContainsRune(name, 0) || len(name) >= 4096 || name == "TRAILER!!!": // PATH_MAX
		return fmt.Errorf("%w: name %.100q", errCPIO, name)
	case size < 0 || size > math.MaxUint32:
		return fmt.Errorf("%w: %s has %d bytes", errCPIO, name, size)
	case c.seen[name] && mode&modeDir != 0:
		return nil
	case c.seen[name]:
		return fmt.Errorf("%w: %s comes twice", errCPIO, name)
	}
	if dir := path.Dir(name); dir != "." && !c.seen[dir] {
		if err := c.Dir(dir, 0o755); err != nil {
			return err
		}
	}
	c.seen[name] = true
	if err := c.header(name, mode, size); err != nil {
		return err
	}
	if size > 0 {
		n, err := io.CopyN(c.w, r, size)
		c.off += n
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return c.pad(4)
}

func (c *cpioWriter) header(name string, mode uint32, size int64) error {
	c.ino++
	links := 1
	if mode&modeDir != 0 {
		links = 2
	}
	n, err := fmt.Fprintf(c.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	c.off += int64(n)
	if err != nil {
		return err
	}
	return c.pad(4)
}

func (c *cpioWriter) pad(to int64) error {
	n, err := c.w.Write(make([]byte, (to-c.off%to)%to))
	c.off += int64(n)
	return err
}
