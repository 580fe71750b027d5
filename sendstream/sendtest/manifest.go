package sendtest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
)

// An Entry is a line of the manifest of a recorded snapshot: what was seen by
// walking it. The README of the corpus describes the fields.
type Entry struct {
	Path     string            `json:"path"`
	Ino      uint64            `json:"ino"`
	Type     string            `json:"type"`
	Mode     string            `json:"mode"`
	UID      uint32            `json:"uid"`
	GID      uint32            `json:"gid"`
	Size     int64             `json:"size"`
	Nlink    int               `json:"nlink"`
	MtimeNs  json.Number       `json:"mtime_ns"`
	CtimeNs  json.Number       `json:"ctime_ns"`
	OtimeNs  json.Number       `json:"otime_ns"`
	FSFlags  *uint32           `json:"fsflags"`
	Target   string            `json:"target"`
	Rdev     [2]uint32         `json:"rdev"`
	Extents  [][3]any          `json:"extents"`
	SHA256   string            `json:"sha256"`
	NZ4K     string            `json:"nz4k_sha256"`
	Xattrs64 map[string]string `json:"xattrs"`
	Xattrs   []filetree.Xattr  `json:"-"`
}

// ReadManifest reads a manifest. Paths, targets and attribute names are bytes again.
func ReadManifest(r io.Reader) ([]Entry, error) {
	var entries []Entry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("manifest line %d: %w", len(entries)+1, err)
		}
		e.Path, e.Target = Unescape(e.Path), Unescape(e.Target)
		for name, value := range e.Xattrs64 {
			b, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return nil, fmt.Errorf("manifest line %d: %w", len(entries)+1, err)
			}
			e.Xattrs = append(e.Xattrs, filetree.Xattr{Name: Unescape(name), Value: b})
		}
		filetree.SortXattrs(e.Xattrs)
		entries = append(entries, e)
	}
	return entries, lines.Err()
}

// Unescape undoes the escaping of manifests: \xff is a byte.
func Unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Nanoseconds returns t as manifests have it, which is more than an int64 holds.
func Nanoseconds(t filetree.Time) string {
	n := big.NewInt(t.Sec)
	n.Mul(n, big.NewInt(1e9))
	return n.Add(n, big.NewInt(int64(t.Nsec))).String()
}

// Lines returns the tree in lines of text, one for each entry and ordered by path,
// with every field that streams and manifests have in common. Inode numbers, birth
// times and flags are left out: only some nodes have them.
func (m *Model) Lines() []string {
	var lines []string
	m.Walk(func(path string, n *Node) {
		a := &n.Attr
		l := line{
			path: path, kind: a.Kind.String(), mode: fmt.Sprintf("%04o", a.Mode), uid: a.UID, gid: a.GID,
			mtime: Nanoseconds(a.Mtime), ctime: Nanoseconds(a.Ctime), target: a.Target, xattrs: a.Xattrs,
		}
		switch a.Kind {
		case filetree.Dir:
		case filetree.File:
			l.size, l.sum, l.nlink = a.Size, n.Sum(), n.Nlink
		case filetree.Symlink:
			l.size, l.nlink = int64(len(a.Target)), n.Nlink
		case filetree.CharDev, filetree.BlkDev:
			l.nlink, l.dev = n.Nlink, [2]uint32{a.Major, a.Minor}
		default:
			l.nlink = n.Nlink
		}
		lines = append(lines, l.String())
	})
	slices.Sort(lines)
	return lines
}

// Lines returns the lines that a Model with the same tree gives.
func Lines(manifest []Entry) []string {
	var lines []string
	for _, e := range manifest {
		l := line{
			path: e.Path, kind: e.Type, mode: e.Mode, uid: e.UID, gid: e.GID, size: e.Size, nlink: e.Nlink,
			mtime: e.MtimeNs.String(), ctime: e.CtimeNs.String(), target: e.Target, dev: e.Rdev,
			sum: cmp.Or(e.SHA256, e.NZ4K), xattrs: e.Xattrs,
		}
		if e.Type == "dir" {
			l.size, l.nlink = 0, 0
		}
		lines = append(lines, l.String())
	}
	slices.Sort(lines)
	return lines
}

type line struct {
	path, kind, mode     string
	uid, gid             uint32
	size                 int64
	nlink                int
	mtime, ctime, target string
	dev                  [2]uint32
	sum                  string
	xattrs               []filetree.Xattr
}

func (l line) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %s %s %d:%d size=%d nlink=%d mtime=%s ctime=%s", l.path, l.kind, l.mode, l.uid, l.gid,
		l.size, l.nlink, l.mtime, l.ctime)
	if l.target != "" {
		fmt.Fprintf(&b, " target=%q", l.target)
	}
	if l.dev != [2]uint32{} {
		fmt.Fprintf(&b, " dev=%d:%d", l.dev[0], l.dev[1])
	}
	if l.sum != "" {
		fmt.Fprintf(&b, " sum=%.16s", l.sum)
	}
	for _, x := range l.xattrs {
		sum := sha256.Sum256(x.Value)
		fmt.Fprintf(&b, " %q=%d:%x", x.Name, len(x.Value), sum[:4])
	}
	return b.String()
}

// maxWhole is the size up to which a manifest has the sum of the whole content.
const maxWhole = 64 << 20

// Sum returns the checksum that manifests have: SHA-256 of the content, or of the
// blocks that are not zero if the file is above 64 MiB.
func (n *Node) Sum() string {
	h := sha256.New()
	if n.Attr.Size <= maxWhole {
		for off := int64(0); off < n.Attr.Size; off += BlockSize {
			h.Write(n.Block(off / BlockSize)[:min(BlockSize, n.Attr.Size-off)])
		}
		return hex.EncodeToString(h.Sum(nil))
	}
	for _, block := range slices.Sorted(maps.Keys(n.blocks)) {
		if b := n.blocks[block]; !bytes.Equal(b[:], zeroBlock[:]) {
			h.Write(binary.LittleEndian.AppendUint64(nil, uint64(block)))
			h.Write(b[:])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

var zeroBlock [BlockSize]byte

// Block returns the content of a block; what is a hole is zeros.
func (n *Node) Block(block int64) *[BlockSize]byte {
	if b := n.blocks[block]; b != nil {
		return b
	}
	return &zeroBlock
}

// Blocks returns the blocks that are not holes, ascending.
func (n *Node) Blocks() []int64 { return slices.Sorted(maps.Keys(n.blocks)) }
