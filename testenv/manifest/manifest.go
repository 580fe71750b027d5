// Package manifest describes a directory tree exactly, one entry a path, so that two
// trees can be compared: a snapshot and what was restored from its history.
//
// A manifest is a list of entries, the root first, then depth first with names in
// byte order. As a file it is one JSON object a line, as a rule compressed with zstd
// (*.manifest.jsonl.zst); the corpora of send streams have one beside each snapshot:
//
//	{"path": "d/\\xff1", "ino": 263, "type": "file", "mode": "0644", "uid": 0, "gid": 0,
//	 "size": 29471, "nlink": 1, "mtime_ns": -1, "ctime_ns": …, "otime_ns": …, "fsflags": 0,
//	 "extents": [["data", 0, 16384], ["hole", 16384, 13087]], "sha256": "787239f0…",
//	 "xattrs": {"user.one": "MQ=="}}
//
// Names, link targets and names of attributes are bytes. Those that are not UTF-8, and
// the backslash, are written \xff. Times are nanoseconds since 1970 and may not fit
// into 64 bits. Of files above 64 MiB, which may be sparse and huge, sha256 is null
// and nz4k_sha256 takes its place: the SHA-256 over, for each block of 4 KiB that is
// not all zero, its number as 8 bytes little endian and then its bytes.
//
// [Read] and [Write] do files, [Scan] makes a manifest of a tree, [Diff] compares.
// A hundred thousand entries take seconds to scan and less to compare.
package manifest

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/filetree"
)

// An Entry describes what one path leads to. Names are plain bytes, not escaped.
type Entry struct {
	Path    string // relative to the root, which has ""
	Ino     uint64 // entries that are no directory and have the same one are one file
	Kind    filetree.Kind
	Mode    uint32 // permission, set-id and sticky bits
	UID     uint32
	GID     uint32
	Size    int64
	Nlink   uint64
	Mtime   filetree.Time
	Ctime   filetree.Time
	Otime   filetree.Time // birth; zero where it is not kept
	FSFlags int64         // of files and directories: FS_IOC_GETFLAGS; -1 when not known
	Target  string        // of a symbolic link
	Major   uint32        // of a device
	Minor   uint32
	// Extents covers a file from 0 to Size, as SEEK_DATA and SEEK_HOLE see it.
	Extents []filetree.Segment
	// SHA256 is that of a file's content, or if Sparse that of its blocks that are not
	// zero.
	SHA256 [32]byte
	Sparse bool
	Xattrs []filetree.Xattr // sorted by name
	// Nested says that a nested subvolume, or something else that is mounted, starts
	// here. What is in it is not part of the manifest.
	Nested bool
}

// sparseSize is the size above which a file has nz4k_sha256.
const sparseSize = 64 << 20

// nestedIno is the inode number that Btrfs shows in a snapshot where there is a
// subvolume in the source.
const nestedIno = 2

// jsonEntry is an Entry as it is in a file.
type jsonEntry struct {
	Path    string            `json:"path"`
	Ino     uint64            `json:"ino"`
	Type    string            `json:"type"`
	Mode    string            `json:"mode"`
	UID     uint32            `json:"uid"`
	GID     uint32            `json:"gid"`
	Size    int64             `json:"size"`
	Nlink   uint64            `json:"nlink"`
	Mtime   nanoseconds       `json:"mtime_ns"`
	Ctime   nanoseconds       `json:"ctime_ns"`
	Otime   nanoseconds       `json:"otime_ns"`
	FSFlags *int64            `json:"fsflags,omitempty"`
	Target  *string           `json:"target,omitempty"`
	Rdev    *[2]uint32        `json:"rdev,omitempty"`
	Extents *[]extent         `json:"extents,omitempty"`
	SHA256  *string           `json:"sha256,omitempty"`
	NZ4K    *string           `json:"nz4k_sha256,omitempty"`
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`
}

// nanoseconds is a time as a number of any size.
type nanoseconds filetree.Time

func (n nanoseconds) MarshalJSON() ([]byte, error) {
	v := big.NewInt(n.Sec)
	v.Mul(v, big.NewInt(1e9))
	v.Add(v, big.NewInt(int64(n.Nsec)))
	return v.Append(nil, 10), nil
}

func (n *nanoseconds) UnmarshalJSON(b []byte) error {
	if v, err := strconv.ParseInt(string(b), 10, 64); err == nil {
		sec, nsec := v/1e9, v%1e9
		if nsec < 0 {
			sec, nsec = sec-1, nsec+1e9
		}
		*n = nanoseconds{sec, uint32(nsec)}
		return nil
	}
	v, ok := new(big.Int).SetString(string(b), 10)
	if !ok {
		return fmt.Errorf("time %s is not a number", b)
	}
	sec, nsec := v.DivMod(v, big.NewInt(1e9), new(big.Int)) // rounds down
	if !sec.IsInt64() {
		return fmt.Errorf("time %s is out of range", b)
	}
	*n = nanoseconds{sec.Int64(), uint32(nsec.Uint64())}
	return nil
}

// extent is ["data" or "hole", offset, length].
type extent filetree.Segment

func (e extent) MarshalJSON() ([]byte, error) {
	kind := "data"
	if e.Hole {
		kind = "hole"
	}
	return fmt.Appendf(nil, `[%q,%d,%d]`, kind, e.Offset, e.Length), nil
}

func (e *extent) UnmarshalJSON(b []byte) error {
	var kind string
	var off, length int64
	list := []any{&kind, &off, &length}
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	if len(list) != 3 || kind != "data" && kind != "hole" {
		return fmt.Errorf("%s is not an extent", b)
	}
	*e = extent{filetree.Range{Offset: off, Length: length}, kind == "hole"}
	return nil
}

var kinds = func() map[string]filetree.Kind {
	m := map[string]filetree.Kind{}
	for k := filetree.File; k.Valid(); k++ {
		m[k.String()] = k
	}
	return m
}()

func (j *jsonEntry) entry() (Entry, error) {
	e := Entry{
		Ino: j.Ino, UID: j.UID, GID: j.GID, Size: j.Size, Nlink: j.Nlink,
		Mtime: filetree.Time(j.Mtime), Ctime: filetree.Time(j.Ctime), Otime: filetree.Time(j.Otime),
		FSFlags: -1,
	}
	var err error
	if e.Path, err = Unescape(j.Path); err != nil {
		return e, err
	}
	var ok bool
	if e.Kind, ok = kinds[j.Type]; !ok {
		return e, fmt.Errorf("type %q", j.Type)
	}
	mode, err := strconv.ParseUint(j.Mode, 8, 12)
	if err != nil {
		return e, fmt.Errorf("mode: %w", err)
	}
	e.Mode = uint32(mode)
	if j.FSFlags != nil {
		e.FSFlags = *j.FSFlags
	}
	if j.Target != nil {
		if e.Target, err = Unescape(*j.Target); err != nil {
			return e, err
		}
	}
	if j.Rdev != nil {
		e.Major, e.Minor = j.Rdev[0], j.Rdev[1]
	}
	if j.Extents != nil {
		for _, x := range *j.Extents {
			e.Extents = append(e.Extents, filetree.Segment(x))
		}
	}
	sum := j.SHA256
	if j.NZ4K != nil {
		sum, e.Sparse = j.NZ4K, true
	}
	if sum != nil {
		b, err := hex.DecodeString(*sum)
		if err != nil || len(b) != len(e.SHA256) {
			return e, fmt.Errorf("hash %q", *sum)
		}
		copy(e.SHA256[:], b)
	} else if e.Kind == filetree.File {
		return e, fmt.Errorf("a file without a hash")
	}
	for name, value := range j.Xattrs {
		if name, err = Unescape(name); err != nil {
			return e, err
		}
		e.Xattrs = append(e.Xattrs, filetree.Xattr{Name: name, Value: value})
	}
	filetree.SortXattrs(e.Xattrs)
	e.Nested = e.Ino == nestedIno && e.Kind == filetree.Dir && e.Path != ""
	return e, nil
}

func (e *Entry) json() *jsonEntry {
	j := &jsonEntry{
		Path: Escape(e.Path), Ino: e.Ino, Type: e.Kind.String(), Mode: fmt.Sprintf("%04o", e.Mode),
		UID: e.UID, GID: e.GID, Size: e.Size, Nlink: e.Nlink,
		Mtime: nanoseconds(e.Mtime), Ctime: nanoseconds(e.Ctime), Otime: nanoseconds(e.Otime),
	}
	if e.FSFlags >= 0 {
		j.FSFlags = &e.FSFlags
	}
	switch e.Kind {
	case filetree.Symlink:
		target := Escape(e.Target)
		j.Target = &target
	case filetree.CharDev, filetree.BlkDev:
		j.Rdev = &[2]uint32{e.Major, e.Minor}
	case filetree.File:
		extents := make([]extent, 0, len(e.Extents))
		for _, x := range e.Extents {
			extents = append(extents, extent(x))
		}
		j.Extents = &extents
		sum := hex.EncodeToString(e.SHA256[:])
		if e.Sparse {
			j.NZ4K = &sum
		} else {
			j.SHA256 = &sum
		}
	}
	if len(e.Xattrs) > 0 {
		j.Xattrs = map[string][]byte{}
		for _, x := range e.Xattrs {
			j.Xattrs[Escape(x.Name)] = x.Value
		}
	}
	return j
}

// Read reads a manifest.
func Read(r io.Reader) ([]Entry, error) {
	var all []Entry
	br := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		line, err := br.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("manifest: line %d: %w", n, err)
		}
		if len(bytes.TrimSpace(line)) > 0 {
			var j jsonEntry
			if err := json.Unmarshal(line, &j); err != nil {
				return nil, fmt.Errorf("manifest: line %d: %w", n, err)
			}
			e, err := j.entry()
			if err != nil {
				return nil, fmt.Errorf("manifest: line %d: %s: %w", n, j.Path, err)
			}
			all = append(all, e)
		}
		if err == io.EOF {
			return all, nil
		}
	}
}

// ReadFile reads the manifest file name, which is compressed if it ends in .zst.
func ReadFile(name string) ([]Entry, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(name, ".zst") {
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	}
	all, err := Read(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return all, nil
}

// Write writes a manifest, uncompressed.
func Write(w io.Writer, entries []Entry) error {
	bw := bufio.NewWriter(w)
	enc := json.NewEncoder(bw)
	enc.SetEscapeHTML(false)
	for i := range entries {
		if err := enc.Encode(entries[i].json()); err != nil {
			return err
		}
	}
	return bw.Flush()
}

// Escape returns name with each byte that is not part of valid UTF-8, and the
// backslash, as \xff.
func Escape(name string) string {
	if utf8.ValidString(name) && !strings.Contains(name, `\`) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 || r == '\\' {
			fmt.Fprintf(&b, `\x%02x`, name[i])
		} else {
			b.WriteString(name[i : i+n])
		}
		i += n
	}
	return b.String()
}

// Show is Escape for a person to read in one line: control characters are escaped
// too. Unescape undoes it as well.
func Show(name string) string {
	var b strings.Builder
	for _, c := range []byte(Escape(name)) {
		if c < 0x20 || c == 0x7f {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Unescape undoes Escape.
func Unescape(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i+4 > len(s) || s[i+1] != 'x' {
			return "", fmt.Errorf("bad escape in %q", s)
		}
		c, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
		if err != nil {
			return "", fmt.Errorf("bad escape in %q", s)
		}
		b.WriteByte(byte(c))
		i += 3
	}
	return b.String(), nil
}

// String returns what tells entries apart at a glance, without the path.
func (e *Entry) String() string {
	switch e.Kind {
	case filetree.File:
		return fmt.Sprintf("%v (inode %d, %d bytes, sha256 %x…)", e.Kind, e.Ino, e.Size, e.SHA256[:8])
	case filetree.Symlink:
		return fmt.Sprintf("%v (inode %d) -> %s", e.Kind, e.Ino, quote(e.Target))
	}
	return fmt.Sprintf("%v (inode %d)", e.Kind, e.Ino)
}
