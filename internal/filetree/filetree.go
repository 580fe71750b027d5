// Package filetree holds the nouns that every other package speaks of: what a
// file, a directory, a link or a device is, and what a range of a file is.
//
// It knows no file system, no send stream and no history; it imports nothing of
// ours. Names, link targets and attribute names are bytes in a Go string: no
// encoding is promised and none is normalised.
package filetree

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Kind is the type of a node.
type Kind uint8

// The kinds of nodes. The numbers are part of the history format.
const (
	File    Kind = 1
	Dir     Kind = 2
	Symlink Kind = 3
	Fifo    Kind = 4
	Socket  Kind = 5
	CharDev Kind = 6
	BlkDev  Kind = 7
)

var kindNames = [...]string{"", "file", "dir", "symlink", "fifo", "sock", "chr", "blk"}

// String returns file, dir, symlink, fifo, sock, chr or blk.
func (k Kind) String() string {
	if k.Valid() {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Valid reports whether k is one of the kinds above.
func (k Kind) Valid() bool { return k >= File && k <= BlkDev }

// A Time is a point in time as file systems keep it: seconds since 1970 in UTC,
// rounded down, and nanoseconds 0 to 999999999. Unlike an int64 of nanoseconds
// it holds every time a 64-bit file system can.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts t.
func TimeOf(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }

// Time converts t to UTC.
func (t Time) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// IsZero reports whether t is not known (or the first second of 1970).
func (t Time) IsZero() bool { return t == Time{} }

// An Xattr is an extended attribute: its full name, with the namespace
// (user.x, security.capability, system.posix_acl_access), and its value.
type Xattr struct {
	Name  string
	Value []byte
}

// What has no name on every file system is kept among the extended attributes, under
// names of our own. No kernel has them, so that nothing but what knows them takes them for
// what they are.
const (
	// ProjectXattr is the project id, in decimal.
	ProjectXattr = "secrate.project"
	// ACLXattr is the NFSv4 ACL of a ZFS node that says more than the mode. Package
	// sendstream/zfs/zpl says what its bytes are.
	ACLXattr = "secrate.zfs_acl"
)

// Attr is everything that is kept of a node but its names and content.
type Attr struct {
	Kind   Kind
	Mode   uint32 // permission, set-id and sticky bits: 07777
	UID    uint32
	GID    uint32
	Size   int64 // of a file, in bytes; 0 for every other kind
	Mtime  Time
	Ctime  Time
	Btime  Time   // birth; zero when not known
	Major  uint32 // of a device
	Minor  uint32
	Flags  uint32  // FS_IOC_GETFLAGS; 0 when not known
	Target string  // of a symbolic link, as bytes
	Xattrs []Xattr // sorted by name, no name twice
	Ino    uint64  // inode or object number in the source; 0 when not known
	Gen    uint64  // generation of Ino; 0 when not known
	// Incomplete says that not all of the node could be read when it was kept: content
	// is missing, which is a hole then, or extended attributes are.
	Incomplete bool
}

// SortXattrs brings x into the order that Attr promises.
func SortXattrs(x []Xattr) {
	slices.SortFunc(x, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
}

// EqualXattrs reports whether a and b, both sorted, are the same.
func EqualXattrs(a, b []Xattr) bool {
	return slices.EqualFunc(a, b, func(x, y Xattr) bool {
		return x.Name == y.Name && bytes.Equal(x.Value, y.Value)
	})
}

// A Range is a part of a file: Length bytes at Offset. Both are in bytes and not
// negative.
type Range struct {
	Offset int64
	Length int64
}

// End returns the offset of the first byte after r.
func (r Range) End() int64 { return r.Offset + r.Length }

// A Segment is a Range that is all data or all hole, as SEEK_DATA and SEEK_HOLE
// report them.
type Segment struct {
	Range
	Hole bool
}

// MaxName and MaxTarget bound the bytes of a name and of a link target.
const (
	MaxName   = 255
	MaxTarget = 4095
)

// CheckName returns an error unless name can be an entry of a directory: 1 to 255
// bytes, no NUL, no slash, not "." or "..". Whatever comes from a stream or
// from storage passes it before it is used as a name.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("empty name")
	case len(name) > MaxName:
		return fmt.Errorf("name of %d bytes: more than %d", len(name), MaxName)
	case name == "." || name == "..":
		return fmt.Errorf("name %q", name)
	case strings.ContainsAny(name, "\x00/"):
		return fmt.Errorf("name %q: has a slash or a NUL", name)
	}
	return nil
}
