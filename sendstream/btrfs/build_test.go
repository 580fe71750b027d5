package btrfs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// unquotePath returns the path that a line of a Model begins with.
func unquotePath(line string) string {
	q, err := strconv.QuotedPrefix(line)
	if err != nil {
		panic(err)
	}
	p, err := strconv.Unquote(q)
	if err != nil {
		panic(err)
	}
	return p
}

// A value is an attribute in a payload.
type value struct {
	a attribute
	b []byte
}

func str(a attribute, s string) value { return value{a, []byte(s)} }
func u8(a attribute, n uint8) value   { return value{a, []byte{n}} }
func u32(a attribute, n uint32) value { return value{a, binary.LittleEndian.AppendUint32(nil, n)} }
func u64(a attribute, n uint64) value { return value{a, binary.LittleEndian.AppendUint64(nil, n)} }
func at(s string) value               { return str(aPath, s) }
func uuid(a attribute, n byte) value  { return value{a, append(make([]byte, 15), n)} }
func offset(n uint64) value           { return u64(aFileOffset, n) }
func data(s string) value             { return str(aData, s) }
func when(a attribute, sec int64, nsec uint32) value {
	return value{a, binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, uint64(sec)), nsec)}
}

// A builder makes streams.
type builder struct {
	version uint32
	b       []byte
}

func newStream(version uint32) *builder {
	b := &builder{version: version}
	return b.header()
}

func (b *builder) header() *builder {
	b.b = append(b.b, magic...)
	b.b = binary.LittleEndian.AppendUint32(b.b, b.version)
	return b
}

// cmd appends a command with the attributes in this order.
func (b *builder) cmd(t Type, values ...value) *builder {
	var p []byte
	for _, v := range values {
		p = binary.LittleEndian.AppendUint16(p, uint16(v.a))
		if v.a != aData || b.version == 1 {
			p = binary.LittleEndian.AppendUint16(p, uint16(len(v.b)))
		}
		p = append(p, v.b...)
	}
	return b.raw(t, p)
}

// raw appends a command with a payload of any bytes.
func (b *builder) raw(t Type, payload []byte) *builder {
	start := len(b.b)
	b.b = binary.LittleEndian.AppendUint32(b.b, uint32(len(payload)))
	b.b = binary.LittleEndian.AppendUint16(b.b, uint16(t))
	b.b = append(b.b, 0, 0, 0, 0)
	b.b = append(b.b, payload...)
	sum := ^crc32.Update(math.MaxUint32, castagnoli, b.b[start:])
	binary.LittleEndian.PutUint32(b.b[start+6:], sum)
	return b
}

// ownUUID and parentUUID are those of the units that a builder begins.
const (
	ownUUID    = 1
	parentUUID = 2
)

func (b *builder) subvol() *builder {
	return b.cmd(Subvol, at("s"), uuid(aUUID, ownUUID), u64(aCTransID, 7))
}

func (b *builder) snapshot() *builder {
	return b.cmd(Snapshot, at("s"), uuid(aUUID, ownUUID), u64(aCTransID, 7),
		uuid(aCloneUUID, parentUUID), u64(aCloneCTransID, 6))
}

func (b *builder) end() []byte { return slices.Clone(b.cmd(End).b) }

// mk makes a node as the kernel does: under a temporary name, then at its place.
func (b *builder) mk(t Type, p string, ino uint64, more ...value) *builder {
	tmp := fmt.Sprintf("o%d-9-0", ino)
	b.cmd(t, append([]value{at(tmp), u64(aIno, ino)}, more...)...)
	return b.rename(tmp, p)
}

func (b *builder) file(p string, ino uint64) *builder { return b.mk(MkFile, p, ino) }
func (b *builder) dir(p string, ino uint64) *builder  { return b.mk(MkDir, p, ino) }

func (b *builder) rename(from, to string) *builder {
	return b.cmd(Rename, at(from), str(aPathTo, to))
}

func (b *builder) link(name, to string) *builder {
	return b.cmd(Link, at(name), str(aPathLink, to))
}

func (b *builder) write(p string, off uint64, s string) *builder {
	return b.cmd(Write, at(p), offset(off), data(s))
}

func (b *builder) clone(p string, off, length uint64, from byte, src string, srcOff uint64) *builder {
	return b.cmd(Clone, offset(off), u64(aCloneLen, length), at(p), uuid(aCloneUUID, from),
		u64(aCloneCTransID, 1), str(aClonePath, src), u64(aCloneOffset, srcOff))
}

func (b *builder) utimes(p string, sec int64) *builder {
	return b.cmd(Utimes, at(p), when(aAtime, sec, 0), when(aMtime, sec, 1), when(aCtime, sec, 2))
}

// pos is where the next command begins.
func (b *builder) pos() int64 { return int64(len(b.b)) }

// TestWorkedExample builds the example of the specification and compares sums.
func TestWorkedExample(t *testing.T) {
	b := newStream(1).cmd(End)
	if got := fmt.Sprintf("%x", b.b[headerSize:]); got != "000000001500506cc99d" {
		t.Errorf("END is %s", got)
	}
	b = newStream(1).cmd(MkFile, at("o257-210-0"), u64(aIno, 257))
	want := "1a00000003003dfb02860f000a006f3235372d3231302d30030008000101000000000000"
	if got := fmt.Sprintf("%x", b.b[headerSize:]); got != want {
		t.Errorf("MKFILE is %s", got)
	}
}

func repeat(s string, n int) string { return strings.Repeat(s, n) }

// A tester is what helpers need of a testing.T and of a rapid.T.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Fatal(args ...any)
}
