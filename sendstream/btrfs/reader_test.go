package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

func TestReader(t *testing.T) {
	b := newStream(2).snapshot().
		cmd(MkNod, at("dev"), u64(aIno, 300), u64(aRdev, 0x12345678), u64(aMode, 0o060640)).
		cmd(Utimes, at(""), when(aAtime, 1, 2), when(aMtime, -3, 4), when(aCtime, 5, 6), when(aOtime, 7, 8)).
		clone("a", 4096, 8192, 9, "b/c", 12288).
		cmd(EncodedWrite, at("a"), offset(8), u64(aUnencodedFileLen, 3), u64(aUnencodedLen, 10),
			u64(aUnencodedOffset, 7), u32(aCompression, 2), u32(aEncryption, 0), data("xyz"))
	got := readAll(t, b.end())
	want := []Command{
		{Type: Snapshot, Path: []byte("s"), UUID: [16]byte{15: 1}, CTransID: 7, CloneUUID: [16]byte{15: 2}, CloneCTransID: 6},
		{Type: MkNod, Path: []byte("dev"), Ino: 300, Mode: 0o060640, Major: 0x456, Minor: 0x12378},
		{Type: Utimes, Path: []byte{}, Atime: filetree.Time{Sec: 1, Nsec: 2}, Mtime: filetree.Time{Sec: -3, Nsec: 4},
			Ctime: filetree.Time{Sec: 5, Nsec: 6}, Otime: filetree.Time{Sec: 7, Nsec: 8}, HasOtime: true},
		{Type: Clone, Path: []byte("a"), Range: filetree.Range{Offset: 4096, Length: 8192}, CloneUUID: [16]byte{15: 9},
			CloneCTransID: 1, ClonePath: []byte("b/c"), CloneOffset: 12288},
		{Type: EncodedWrite, Path: []byte("a"), Range: filetree.Range{Offset: 8, Length: 3}, Data: []byte("xyz"),
			Compression: Zstd, UnencodedLen: 10, UnencodedOffset: 7},
		{Type: End},
	}
	for i := range got {
		got[i].Offset, got[i].Version = 0, 0
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

// readAll returns the commands of a good stream, copied.
func readAll(t *testing.T, stream []byte) []Command {
	t.Helper()
	var cs []Command
	for c, err := range NewReader(bytes.NewReader(stream)).All() {
		if err != nil {
			t.Fatal(err)
		}
		c.Path, c.PathTo, c.Link = slices.Clone(c.Path), slices.Clone(c.PathTo), slices.Clone(c.Link)
		c.Data, c.ClonePath = slices.Clone(c.Data), slices.Clone(c.ClonePath)
		cs = append(cs, c)
	}
	return cs
}

// TestReaderErrors has a stream for each thing that section 10 of the
// specification forbids. The bad command is the last; END never comes.
func TestReaderErrors(t *testing.T) {
	const max = math.MaxInt64
	long := repeat("n", 255)
	deep := strings.TrimSuffix(repeat(long+"/", 16), "/") // 4095 bytes
	encoded := func(more ...value) []value {
		vs := []value{at("a"), offset(0), u64(aUnencodedFileLen, 4), u64(aUnencodedLen, 4), u64(aUnencodedOffset, 0)}
		for _, m := range more {
			if i := slices.IndexFunc(vs, func(v value) bool { return v.a == m.a }); i >= 0 {
				vs[i] = m
			} else {
				vs = append(vs, m)
			}
		}
		if !slices.ContainsFunc(more, func(v value) bool { return v.a == aData }) {
			vs = append(vs, data("1234"))
		}
		return vs
	}
	tests := []struct {
		name    string
		version uint32
		typ     Type
		values  []value
		err     error // nil: the command is good
	}{
		{"longest path", 1, Unlink, []value{at(deep)}, nil},
		{"path too long", 1, Unlink, []value{at(deep + "/")}, ErrLimit},
		{"path too long, of good names", 1, Unlink, []value{at("a/" + deep)}, ErrLimit},
		{"name too long", 1, Unlink, []value{at("d/" + long + "n/f")}, ErrLimit},
		{"empty path", 1, Unlink, []value{at("")}, ErrLimit},
		{"path with NUL", 1, Unlink, []value{at("a\x00b")}, ErrLimit},
		{"absolute path", 1, Unlink, []value{at("/a")}, ErrLimit},
		{"path ends in a slash", 1, Unlink, []value{at("a/")}, ErrLimit},
		{"path with two slashes", 1, Unlink, []value{at("a//b")}, ErrLimit},
		{"path is a slash", 1, Unlink, []value{at("/")}, ErrLimit},
		{"path is dot", 1, Unlink, []value{at(".")}, ErrLimit},
		{"path leads out", 1, Unlink, []value{at("a/../../b")}, ErrLimit},
		{"path ends in dots", 1, Unlink, []value{at("a/..")}, ErrLimit},
		{"three dots are a name", 1, Unlink, []value{at("a/...")}, nil},
		{"any other byte is a name", 1, Unlink, []value{at("\xff\n\\ \x01")}, nil},
		{"chmod of the root", 1, Chmod, []value{at(""), u64(aMode, 0o7777)}, nil},
		{"chown of the root", 1, Chown, []value{at(""), u64(aUID, math.MaxUint32), u64(aGID, 0)}, nil},
		{"set_xattr of the root", 1, SetXattr, []value{at(""), str(aXattrName, "n"), str(aXattrData, "")}, nil},
		{"remove_xattr of the root", 1, RemoveXattr, []value{at(""), str(aXattrName, "n")}, nil},
		{"fileattr of the root", 2, FileAttr, []value{at(""), u64(aFileAttr, 1)}, nil},
		{"write to the root", 1, Write, []value{at(""), offset(0), data("x")}, ErrLimit},
		{"rename of the root", 1, Rename, []value{at(""), str(aPathTo, "a")}, ErrLimit},
		{"rename to the root", 1, Rename, []value{at("a"), str(aPathTo, "")}, ErrLimit},
		{"rename out", 1, Rename, []value{at("a"), str(aPathTo, "../a")}, ErrLimit},
		{"rmdir of the root", 1, RmDir, []value{at("")}, ErrLimit},
		{"link to out", 1, Link, []value{at("a"), str(aPathLink, "../b")}, ErrLimit},
		{"link to the root", 1, Link, []value{at("a"), str(aPathLink, "")}, ErrLimit},
		{"clone from out", 1, Clone, []value{offset(0), u64(aCloneLen, 1), at("a"), uuid(aCloneUUID, 1),
			u64(aCloneCTransID, 1), str(aClonePath, "/etc/passwd"), u64(aCloneOffset, 0)}, ErrLimit},

		{"symlink target may be any bytes", 1, Symlink, []value{at("a"), u64(aIno, 1), str(aPathLink, "/../\xff//")}, nil},
		{"longest symlink target", 1, Symlink, []value{at("a"), u64(aIno, 1), str(aPathLink, repeat("/", 4095))}, nil},
		{"symlink target too long", 1, Symlink, []value{at("a"), u64(aIno, 1), str(aPathLink, repeat("/", 4096))}, ErrLimit},
		{"symlink target empty", 1, Symlink, []value{at("a"), u64(aIno, 1), str(aPathLink, "")}, ErrLimit},
		{"symlink target with NUL", 1, Symlink, []value{at("a"), u64(aIno, 1), str(aPathLink, "a\x00")}, ErrLimit},

		{"longest xattr name", 1, RemoveXattr, []value{at("a"), str(aXattrName, long)}, nil},
		{"xattr name too long", 1, RemoveXattr, []value{at("a"), str(aXattrName, long+"n")}, ErrLimit},
		{"xattr name empty", 1, RemoveXattr, []value{at("a"), str(aXattrName, "")}, ErrLimit},
		{"xattr name with NUL", 1, SetXattr, []value{at("a"), str(aXattrName, "a\x00"), str(aXattrData, "x")}, ErrLimit},

		{"missing attribute", 1, MkFile, []value{at("a")}, ErrAttribute},
		{"missing path", 1, MkFile, []value{u64(aIno, 1)}, ErrAttribute},
		{"missing otime is fine", 2, Utimes, []value{at("a"), when(aAtime, 0, 0), when(aMtime, 0, 0), when(aCtime, 0, 0)}, nil},
		{"attribute twice", 1, Unlink, []value{at("a"), at("a")}, ErrAttribute},
		{"attribute of no use", 1, Unlink, []value{at("a"), u64(aIno, 1)}, nil},
		{"attribute of no use, of a wrong size", 1, Unlink, []value{at("a"), u32(aIno, 1)}, ErrAttribute},
		{"attribute 0", 1, Unlink, []value{at("a"), str(0, "x")}, ErrAttribute},
		{"unknown attribute", 3, Unlink, []value{at("a"), str(numAttributes, "x")}, ErrAttribute},
		{"u64 of 4 bytes", 1, MkFile, []value{at("a"), u32(aIno, 1)}, ErrAttribute},
		{"u32 of 8 bytes", 2, Fallocate, []value{at("a"), u64(aFallocateMode, 3), offset(0), u64(aSize, 1)}, ErrAttribute},
		{"uuid of 15 bytes", 1, Subvol, []value{at("a"), str(aUUID, repeat("u", 15)), u64(aCTransID, 1)}, ErrAttribute},
		{"time of 16 bytes", 1, Utimes, []value{at("a"), str(aAtime, repeat("t", 16)), when(aMtime, 0, 0), when(aCtime, 0, 0)}, ErrAttribute},

		{"data before path", 1, Write, []value{data("x"), at("a"), offset(0)}, nil},
		{"data before path swallow it", 2, Write, []value{data("x"), at("a"), offset(0)}, ErrAttribute},
		{"no data", 2, Write, []value{at("a"), offset(0), data("")}, nil},

		{"last nanosecond", 1, Utimes, []value{at("a"), when(aAtime, 0, 999999999), when(aMtime, math.MinInt64, 0), when(aCtime, max, 0)}, nil},
		{"too many nanoseconds", 1, Utimes, []value{at("a"), when(aAtime, 0, 1000000000), when(aMtime, 0, 0), when(aCtime, 0, 0)}, ErrLimit},
		{"too many nanoseconds of otime", 2, Utimes, []value{at("a"), when(aAtime, 0, 0), when(aMtime, 0, 0), when(aCtime, 0, 0), when(aOtime, 0, math.MaxUint32)}, ErrLimit},

		{"write up to the last byte", 1, Write, []value{at("a"), offset(max - 1), data("x")}, nil},
		{"write beyond the last byte", 1, Write, []value{at("a"), offset(max), data("x")}, ErrLimit},
		{"write at a negative offset", 1, Write, []value{at("a"), offset(1 << 63), data("")}, ErrLimit},
		{"update_extent overflows", 1, UpdateExtent, []value{at("a"), offset(2), u64(aSize, math.MaxUint64)}, ErrLimit},
		{"fallocate overflows", 2, Fallocate, []value{at("a"), u32(aFallocateMode, 3), offset(max), u64(aSize, 1)}, ErrLimit},
		{"fallocate mode 0", 2, Fallocate, []value{at("a"), u32(aFallocateMode, 0), offset(0), u64(aSize, 1)}, ErrLimit},
		{"largest truncate", 1, Truncate, []value{at("a"), u64(aSize, max)}, nil},
		{"truncate to a negative size", 1, Truncate, []value{at("a"), u64(aSize, max+1)}, ErrLimit},
		{"clone overflows", 1, Clone, []value{offset(max), u64(aCloneLen, 1), at("a"), uuid(aCloneUUID, 1),
			u64(aCloneCTransID, 1), str(aClonePath, "b"), u64(aCloneOffset, 0)}, ErrLimit},
		{"clone overflows at the source", 1, Clone, []value{offset(0), u64(aCloneLen, 1), at("a"), uuid(aCloneUUID, 1),
			u64(aCloneCTransID, 1), str(aClonePath, "b"), u64(aCloneOffset, max)}, ErrLimit},

		{"chmod with type bits", 1, Chmod, []value{at("a"), u64(aMode, 0o100644)}, ErrLimit},
		{"mknod of a regular file", 1, MkNod, []value{at("a"), u64(aIno, 1), u64(aRdev, 0), u64(aMode, 0o100644)}, ErrLimit},
		{"mknod without type bits", 1, MkNod, []value{at("a"), u64(aIno, 1), u64(aRdev, 0), u64(aMode, 0o644)}, ErrLimit},
		{"mkfifo of a socket", 1, MkFifo, []value{at("a"), u64(aIno, 1), u64(aRdev, 0), u64(aMode, 0o140644)}, ErrLimit},
		{"mksock of a fifo", 1, MkSock, []value{at("a"), u64(aIno, 1), u64(aRdev, 0), u64(aMode, 0o010644)}, ErrLimit},
		{"rdev of more than 32 bits", 1, MkNod, []value{at("a"), u64(aIno, 1), u64(aRdev, 1<<32), u64(aMode, 0o020644)}, ErrLimit},
		{"uid of more than 32 bits", 1, Chown, []value{at("a"), u64(aUID, 1<<32), u64(aGID, 0)}, ErrLimit},

		{"encoded_write", 2, EncodedWrite, encoded(), nil},
		{"encoded_write, largest", 2, EncodedWrite, encoded(u64(aUnencodedLen, 128<<10), u64(aUnencodedOffset, 128<<10-4), u32(aCompression, 7)), nil},
		{"encoded_write of a large extent", 2, EncodedWrite, encoded(u64(aUnencodedLen, 128<<10+1)), ErrLimit},
		{"encoded_write of much data", 2, EncodedWrite, encoded(data(repeat("x", 128<<10+1))), ErrLimit},
		{"encoded_write outside the extent", 2, EncodedWrite, encoded(u64(aUnencodedOffset, 1)), ErrLimit},
		{"encoded_write far outside the extent", 2, EncodedWrite, encoded(u64(aUnencodedOffset, math.MaxUint64)), ErrLimit},
		{"encoded_write beyond the last byte", 2, EncodedWrite, encoded(offset(max - 3)), ErrLimit},
		{"encoded_write, unknown compression", 2, EncodedWrite, encoded(u32(aCompression, 8)), ErrLimit},
		{"encoded_write, encrypted", 2, EncodedWrite, encoded(u32(aEncryption, 1)), ErrLimit},

		{"command 0", 3, 0, nil, ErrLimit},
		{"command 27", 3, 27, nil, ErrLimit},
		{"fallocate in version 1", 1, Fallocate, []value{at("a"), u32(aFallocateMode, 3), offset(0), u64(aSize, 1)}, ErrLimit},
		{"encoded_write in version 1", 1, EncodedWrite, encoded(), ErrLimit},
		{"enable_verity in version 2", 2, EnableVerity, nil, ErrLimit},
		{"enable_verity", 3, EnableVerity, []value{at("a"), u8(aVerityAlgorithm, 1), u32(aVerityBlockSize, 4096),
			str(aVeritySalt, ""), str(aVeritySig, "")}, nil},
		{"end with attributes", 1, End, []value{u64(aIno, 1)}, ErrAttribute},

		{"subvol in a directory", 1, Subvol, []value{at("a/b"), uuid(aUUID, 1), u64(aCTransID, 1)}, ErrLimit},
		{"subvol without a name", 1, Subvol, []value{at(""), uuid(aUUID, 1), u64(aCTransID, 1)}, ErrLimit},
		{"subvol of two dots", 1, Subvol, []value{at(".."), uuid(aUUID, 1), u64(aCTransID, 1)}, ErrLimit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newStream(tt.version).subvol()
			pos := b.pos()
			checkError(t, b.cmd(tt.typ, tt.values...).b, tt.err, pos)
		})
	}
}

// checkError reads stream, which has to end in an error at an offset. If err is
// nil, the last command is good, and then the stream is cut.
func checkError(t *testing.T, stream []byte, err error, offset int64) {
	t.Helper()
	if err == nil {
		err, offset = io.ErrUnexpectedEOF, int64(len(stream))
	}
	r := NewReader(bytes.NewReader(stream))
	var got error
	for _, e := range r.All() {
		got = e
	}
	fe, ok := errors.AsType[*FormatError](got)
	if !ok || !errors.Is(got, err) || fe.Offset != offset {
		t.Fatalf("error is %v, want %v at offset %d", got, err, offset)
	}
	if _, again := r.Next(); again != got {
		t.Errorf("second error is %v, want the first: %v", again, got)
	}
}

func TestFramingErrors(t *testing.T) {
	good := newStream(1).subvol().end()
	first := int64(headerSize)
	second := newStream(1).subvol().pos()
	change := func(off int, b byte) []byte {
		s := slices.Clone(good)
		s[off] ^= b
		return s
	}
	withSize := func(version uint32, size uint32) []byte {
		s := newStream(version).b
		return append(binary.LittleEndian.AppendUint32(s, size), 1, 0, 0, 0, 0, 0)
	}
	tests := []struct {
		name   string
		stream []byte
		err    error
		offset int64
	}{
		{"empty", nil, ErrEmpty, 0},
		{"cut in the magic", good[:5], io.ErrUnexpectedEOF, 0},
		{"cut in the version", good[:15], io.ErrUnexpectedEOF, 0},
		{"no magic", change(3, 1), ErrMagic, 0},
		{"short and no magic", []byte("PK"), ErrMagic, 0},
		{"version 0", newStream(0).b, ErrVersion, 0},
		{"version 4", newStream(4).subvol().b, ErrVersion, 0},
		{"header alone", good[:first], io.ErrUnexpectedEOF, first},
		{"cut in a command's header", good[:first+9], io.ErrUnexpectedEOF, first},
		{"cut in a payload", good[:second-1], io.ErrUnexpectedEOF, first},
		{"cut before end", good[:second], io.ErrUnexpectedEOF, second},
		{"cut in end", good[:second+3], io.ErrUnexpectedEOF, second},
		{"bit flip in the type", change(headerSize+4, 1), ErrChecksum, first},
		{"bit flip in the sum", change(headerSize+9, 128), ErrChecksum, first},
		{"bit flip in the payload", change(headerSize+20, 1), ErrChecksum, first},
		{"huge payload in version 1", withSize(1, 64<<10+1), ErrLimit, first},
		{"huge payload in version 2", withSize(2, 1<<20+1), ErrLimit, first},
		{"huge payload of 4 GiB", withSize(3, math.MaxUint32), ErrLimit, first},
		{"large payload that does not come", withSize(2, 1<<20), io.ErrUnexpectedEOF, first},
		{"garbage behind end", append(slices.Clone(good), "more"...), ErrMagic, int64(len(good))},
		{"header behind end alone", append(slices.Clone(good), good[:first]...), io.ErrUnexpectedEOF, int64(len(good)) + first},
		{"no subvol", newStream(1).file("a", 257).b, ErrSequence, first},
		{"end alone", newStream(1).end(), ErrSequence, first},
		{"attribute of one byte", newStream(1).raw(Subvol, []byte{15}).b, ErrAttribute, first},
		{"attribute without a length", newStream(1).raw(Subvol, []byte{15, 0, 1}).b, ErrAttribute, first},
		{"attribute longer than the payload", newStream(1).raw(Subvol, []byte{15, 0, 2, 0, 's'}).b, ErrAttribute, first},
		{"data of version 2 cut in its type", newStream(2).raw(Subvol, []byte{19}).b, ErrAttribute, first},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkError(t, tt.stream, tt.err, tt.offset) })
	}
}

// TestEveryCut cuts a stream at every byte: never a clean end, never a panic.
func TestEveryCut(t *testing.T) {
	b := newStream(1).subvol().file("a", 257).write("a", 0, "hello")
	b.end()
	b.version = 2
	stream := b.header().snapshot().write("a", 0, "Jello").end()
	ends := []int64{int64(bytes.LastIndex(stream, []byte(magic))), int64(len(stream))}
	for n := range int64(len(stream) + 1) {
		var err error
		for r := NewReader(iotest.OneByteReader(bytes.NewReader(stream[:n]))); err == nil; {
			_, err = r.Next()
		}
		fe, ok := errors.AsType[*FormatError](err)
		switch {
		case slices.Contains(ends, n):
			if err != io.EOF {
				t.Errorf("%d bytes: %v, want EOF", n, err)
			}
		case !ok || fe.Offset > n:
			t.Errorf("%d bytes: %v", n, err)
		case n > 0 && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("%d bytes: %v, want unexpected EOF", n, err)
		}
	}
}

// TestReadError checks that an error of the input is not taken for a bad stream.
func TestReadError(t *testing.T) {
	stream := newStream(1).subvol().end()
	broken := errors.New("connection reset")
	for _, n := range []int{0, 5, headerSize, headerSize + 12, len(stream)} {
		r := NewReader(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken)))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if _, ok := errors.AsType[*FormatError](err); ok || !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// TestReaderAllocs checks that reading allocates nothing for a command.
func TestReaderAllocs(t *testing.T) {
	b := newStream(2).subvol()
	for range 100 {
		b.write("some/file", 4096, repeat("x", 8192)).utimes("some/file", 1)
	}
	stream := b.end()
	n := testing.AllocsPerRun(10, func() {
		for _, err := range NewReader(bytes.NewReader(stream)).All() {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	if n > 10 {
		t.Errorf("%v allocations for 202 commands", n)
	}
}

func TestUnits(t *testing.T) {
	b := newStream(1).subvol().file("a", 257)
	b.snapshot() // a unit ends where the next begins
	b.file("b", 258)
	b.end()
	b.version = 2
	b.header().snapshot().end()
	units := NewUnits(bytes.NewReader(b.b))
	var got []Unit
	for u, err := range units.All() {
		if err != nil {
			t.Fatal(err)
		}
		c := *u
		c.units, c.Offset = nil, 0
		got = append(got, c)
	}
	own, parent := [16]byte{15: ownUUID}, [16]byte{15: parentUUID}
	want := []Unit{
		{Name: "s", UUID: own, CTransID: 7, Version: 1},
		{Name: "s", UUID: own, CTransID: 7, Incremental: true, ParentUUID: parent, ParentCTransID: 6, Version: 1},
		{Name: "s", UUID: own, CTransID: 7, Incremental: true, ParentUUID: parent, ParentCTransID: 6, Version: 2},
	}
	if diff := gocmp.Diff(want, got, gocmp.AllowUnexported(Unit{})); diff != "" {
		t.Errorf("units (-want +got):\n%s", diff)
	}
	if units.Offset() != int64(len(b.b)) {
		t.Errorf("offset %d of %d", units.Offset(), len(b.b))
	}
	if _, err := units.Next(); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}

func BenchmarkReader(b *testing.B) {
	for _, name := range []string{"000-full-s0", "000-full-s0-v2"} {
		b.Run(name, func(b *testing.B) {
			stream := recording{corpusDir() + "/basic", name}.stream(b)
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range NewReader(bytes.NewReader(stream)).All() {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run("small commands", func(b *testing.B) {
		s := newStream(1).subvol()
		for range 10000 {
			s.utimes("some/directory/and/a/file", 1)
		}
		stream := s.end()
		b.SetBytes(int64(len(stream)))
		b.ReportAllocs()
		for b.Loop() {
			for _, err := range NewReader(bytes.NewReader(stream)).All() {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
