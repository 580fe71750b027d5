package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"math"
	"math/bits"
	"slices"

	"github.com/secrate/secrate/internal/filetree"
)

// MaxVersion is the highest version of the protocol that a Reader understands.
const MaxVersion = 3

const (
	magic      = "btrfs-stream\x00"
	headerSize = len(magic) + 4 // of a stream
	cmdSize    = 4 + 2 + 4      // of a command's header

	// The format sets no limit to a payload. Version 1 kernels stay below 64 KiB
	// with the header, version 2 kernels below 192 KiB.
	maxPayloadV1 = 64 << 10
	maxPayload   = 1 << 20

	maxPath      = 4095
	maxExtent    = 128 << 10 // of an encoded extent, before and after
	maxXattrName = 255
)

// Errors that a [FormatError] may wrap, besides [io.ErrUnexpectedEOF] for a stream
// that just stops.
var (
	// ErrEmpty reports an input without a single byte.
	ErrEmpty = errors.New("empty input")
	// ErrMagic reports that there is no stream header where one has to be.
	ErrMagic = errors.New("not a btrfs send stream")
	// ErrVersion reports a version of the protocol that is not understood.
	ErrVersion = errors.New("unknown version of the btrfs send stream")
	// ErrChecksum reports a command whose CRC does not match.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrSequence reports a command at a place where it cannot be.
	ErrSequence = errors.New("command out of sequence")
	// ErrLimit reports a value outside the bounds of section 10 of the
	// specification.
	ErrLimit = errors.New("out of bounds")
	// ErrAttribute reports an attribute that is cut, unknown, missing or there
	// twice.
	ErrAttribute = errors.New("malformed attribute")
)

// A FormatError reports bytes that are not a send stream, or a command that does
// not fit the tree it is applied to, and where they are.
type FormatError struct {
	Offset int64 // of the first byte of the bad command or header
	Err    error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("btrfs: command at offset %d: %v", e.Offset, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

// A place is what a Reader expects next.
type place uint8

const (
	atHeader place = iota // a stream header, or the end of the input
	atUnit                // SUBVOL or SNAPSHOT
	inUnit                // any command
)

// A Reader reads the commands of one or more send streams, one behind the other.
//
// What it yields has passed these checks: the CRC; all attributes that the command
// needs are there, once, and of the right size; a path is at most 4095 bytes of
// names that [filetree.CheckName] accepts, and empty only where the root makes
// sense; ranges end below 2^63; the version has the command; and the command may
// come at this place. Attributes that the command has no use for are ignored.
type Reader struct {
	r       io.Reader
	off     int64 // of the next byte
	version uint32
	place   place
	err     error
	buf     []byte
	val     [numAttributes][]byte
	seen    attributeSet
}

// NewReader returns a Reader of r. It reads r in pieces of a command's header and
// its payload: a file or pipe wants a [bufio.Reader] around it.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Offset returns how many bytes have been read.
func (r *Reader) Offset() int64 { return r.off }

// Version returns the version of the stream that the last command belongs to.
func (r *Reader) Version() uint32 { return r.version }

// Next returns the next command. After the last stream it returns [io.EOF]; every
// error is final and returned again. Bytes that are not a send stream give a
// [*FormatError].
func (r *Reader) Next() (Command, error) {
	if r.err != nil {
		return Command{}, r.err
	}
	c, err := r.next()
	if err != nil {
		r.err = err
		return Command{}, err
	}
	return c, nil
}

// All returns an iterator over the commands left in the input. An error is yielded
// once, with the zero Command, and ends the iteration.
func (r *Reader) All() iter.Seq2[Command, error] {
	return func(yield func(Command, error) bool) {
		for {
			c, err := r.Next()
			if err == io.EOF || !yield(c, err) || err != nil {
				return
			}
		}
	}
}

func (r *Reader) next() (Command, error) {
	if r.place == atHeader {
		if err := r.header(); err != nil {
			return Command{}, err
		}
	}
	start := r.off
	r.buf = r.buf[:0]
	fail := func(err error) (Command, error) {
		return Command{}, &FormatError{Offset: start, Err: err}
	}
	if err := r.fill(start, cmdSize); err != nil {
		return Command{}, err
	}
	size := binary.LittleEndian.Uint32(r.buf)
	typ := Type(binary.LittleEndian.Uint16(r.buf[4:]))
	want := binary.LittleEndian.Uint32(r.buf[6:])
	clear(r.buf[6:cmdSize]) // as it was when the sum was made

	limit := uint32(maxPayload)
	if r.version == 1 {
		limit = maxPayloadV1
	}
	if size > limit {
		return fail(fmt.Errorf("payload of %d bytes: %w", size, ErrLimit))
	}
	if err := r.fill(start, cmdSize+int(size)); err != nil {
		return Command{}, err
	}
	// The two inversions undo those of Update.
	if got := ^crc32.Update(math.MaxUint32, castagnoli, r.buf); got != want {
		return fail(fmt.Errorf("%w: %08x, not %08x", ErrChecksum, got, want))
	}

	if typ == 0 || int(typ) >= len(shapes) || shapes[typ].version > r.version {
		return fail(fmt.Errorf("%v in version %d: %w", typ, r.version, ErrLimit))
	}
	begins := typ == Subvol || typ == Snapshot
	if r.place == atUnit && !begins {
		return fail(fmt.Errorf("%v before subvol or snapshot: %w", typ, ErrSequence))
	}
	if err := r.parse(r.buf[cmdSize:], typ); err != nil {
		return fail(fmt.Errorf("%v: %w", typ, err))
	}
	c := Command{Type: typ, Version: r.version, Offset: start}
	if err := r.interpret(&c); err != nil {
		return fail(fmt.Errorf("%v: %w", typ, err))
	}
	r.place = inUnit
	if typ == End {
		r.place = atHeader
	}
	return c, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header reads a stream header. It returns io.EOF where the input ends instead.
func (r *Reader) header() error {
	start := r.off
	r.buf = r.buf[:0]
	err := r.fill(start, headerSize)
	got := r.buf[:min(len(r.buf), len(magic))]
	switch {
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case len(r.buf) == 0 && start > 0:
		return io.EOF
	case len(r.buf) == 0:
		return &FormatError{Err: ErrEmpty}
	case string(got) != magic[:len(got)]:
		return &FormatError{Offset: start, Err: ErrMagic}
	case err != nil:
		return err
	}
	r.version = binary.LittleEndian.Uint32(r.buf[len(magic):])
	if r.version == 0 || r.version > MaxVersion {
		return &FormatError{Offset: start, Err: fmt.Errorf("version %d: %w", r.version, ErrVersion)}
	}
	r.place = atUnit
	return nil
}

// fill reads until r.buf has n bytes. The buffer grows with what has arrived, not
// with n. start is where the command or header began.
func (r *Reader) fill(start int64, n int) error {
	for len(r.buf) < n {
		have := len(r.buf)
		step := min(n-have, max(have, 4<<10))
		r.buf = slices.Grow(r.buf, step)
		got, err := io.ReadFull(r.r, r.buf[have:have+step])
		r.buf = r.buf[:have+got]
		r.off += int64(got)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return &FormatError{Offset: start, Err: io.ErrUnexpectedEOF}
		case err != nil:
			return fmt.Errorf("btrfs: read at offset %d: %w", r.off, err)
		}
	}
	return nil
}

// parse cuts a payload into attributes.
func (r *Reader) parse(p []byte, typ Type) error {
	clear(r.val[:])
	r.seen = 0
	for len(p) > 0 {
		if len(p) < 2 {
			return fmt.Errorf("header of %d byte: %w", len(p), ErrAttribute)
		}
		a := attribute(binary.LittleEndian.Uint16(p))
		p = p[2:]
		if a == 0 || a >= numAttributes {
			return fmt.Errorf("attribute %d: %w", a, ErrAttribute)
		}
		size := len(p)
		if a != aData || r.version == 1 {
			if len(p) < 2 {
				return fmt.Errorf("%s without a length: %w", attributes[a].name, ErrAttribute)
			}
			size = int(binary.LittleEndian.Uint16(p))
			p = p[2:]
		}
		switch {
		case size > len(p):
			return fmt.Errorf("%s of %d bytes, %d left: %w", attributes[a].name, size, len(p), ErrAttribute)
		case attributes[a].size != anySize && attributes[a].size != size:
			return fmt.Errorf("%s of %d bytes: %w", attributes[a].name, size, ErrAttribute)
		case r.seen.has(a):
			return fmt.Errorf("%s twice: %w", attributes[a].name, ErrAttribute)
		}
		r.val[a] = p[:size:size]
		r.seen |= setOf(a)
		p = p[size:]
	}
	if missing := shapes[typ].needs &^ r.seen; missing != 0 {
		return fmt.Errorf("no %s: %w", attributes[bits.TrailingZeros64(uint64(missing))].name, ErrAttribute)
	}
	return nil
}

// interpret fills in the fields of c from the attributes, whose presence and
// sizes parse has checked.
func (r *Reader) interpret(c *Command) error {
	v := values{r: r}
	if c.Type == End {
		if r.seen != 0 {
			return fmt.Errorf("with attributes: %w", ErrAttribute)
		}
		return nil
	}
	c.Path = v.path(aPath, shapes[c.Type].root)
	switch c.Type {
	case Subvol, Snapshot:
		if bytes.IndexByte(c.Path, '/') >= 0 {
			v.bad(aPath, "of more than one name")
		}
		c.UUID = v.uuid(aUUID)
		c.CTransID = v.u64(aCTransID)
		if c.Type == Snapshot {
			c.CloneUUID = v.uuid(aCloneUUID)
			c.CloneCTransID = v.u64(aCloneCTransID)
		}
	case MkFile, MkDir:
		c.Ino = v.u64(aIno)
	case MkNod, MkFifo, MkSock:
		c.Ino = v.u64(aIno)
		c.Mode = v.u32(aMode)
		if t := c.Mode &^ 0o7777; !fits(c.Type, t) {
			v.bad(aMode, fmt.Sprintf("%o", c.Mode))
		}
		// The kernel's 32-bit encoding: minor's low byte, major, the rest of minor.
		dev := v.u32(aRdev)
		c.Major = dev >> 8 & 0xfff
		c.Minor = dev&0xff | dev>>12&0xfff00
	case Symlink:
		c.Ino = v.u64(aIno)
		c.Link = v.bytes(aPathLink, 1, filetree.MaxTarget)
	case Rename:
		c.PathTo = v.path(aPathTo, false)
	case Link:
		c.Link = v.path(aPathLink, false)
	case SetXattr:
		c.XattrName = v.bytes(aXattrName, 1, maxXattrName)
		c.XattrData = r.val[aXattrData] // its length fits 16 bits, which is the limit
	case RemoveXattr:
		c.XattrName = v.bytes(aXattrName, 1, maxXattrName)
	case Write:
		c.Data = r.val[aData]
		c.Range = v.rangeOf(aFileOffset, uint64(len(c.Data)))
	case Clone:
		n := v.u64(aCloneLen)
		c.Range = v.rangeOf(aFileOffset, n)
		c.CloneUUID = v.uuid(aCloneUUID)
		c.CloneCTransID = v.u64(aCloneCTransID)
		c.ClonePath = v.path(aClonePath, false)
		c.CloneOffset = v.rangeOf(aCloneOffset, n).Offset
	case Truncate:
		c.Size = v.i64(aSize)
	case Chmod:
		c.Mode = v.u32(aMode)
		if c.Mode > 0o7777 {
			v.bad(aMode, fmt.Sprintf("%o", c.Mode))
		}
	case Chown:
		c.UID = v.u32(aUID)
		c.GID = v.u32(aGID)
	case Utimes:
		c.Atime, c.Mtime, c.Ctime = v.time(aAtime), v.time(aMtime), v.time(aCtime)
		if c.HasOtime = r.seen.has(aOtime); c.HasOtime {
			c.Otime = v.time(aOtime)
		}
	case UpdateExtent:
		c.Range = v.rangeOf(aFileOffset, v.u64(aSize))
	case Fallocate:
		c.Range = v.rangeOf(aFileOffset, v.u64(aSize))
		c.FallocateMode = v.u32(aFallocateMode)
		if c.FallocateMode != PunchHole {
			v.bad(aFallocateMode, fmt.Sprint(c.FallocateMode))
		}
	case FileAttr:
		c.FileAttr = v.u64(aFileAttr)
	case EncodedWrite:
		v.encoded(c)
	case EnableVerity:
		c.VerityAlgorithm = r.val[aVerityAlgorithm][0]
		c.VerityBlockSize = v.u32(aVerityBlockSize)
		c.VeritySalt = r.val[aVeritySalt]
		c.VeritySig = r.val[aVeritySig]
	}
	return v.err
}

// fits reports whether a node with the type bits t is made by command c.
func fits(c Type, t uint32) bool {
	switch c {
	case MkNod:
		return t == typeChr || t == typeBlk
	case MkFifo:
		return t == typeFifo
	case MkSock:
		return t == typeSock
	}
	return false
}

// The type bits of MODE.
const (
	typeFifo = 0o010000 // S_IFIFO
	typeChr  = 0o020000 // S_IFCHR
	typeBlk  = 0o060000 // S_IFBLK
	typeSock = 0o140000 // S_IFSOCK
)

// values decodes attributes and keeps the first error, so that interpret reads
// like the table in the specification.
type values struct {
	r   *Reader
	err error
}

func (v *values) bad(a attribute, what string) {
	if v.err == nil {
		v.err = fmt.Errorf("%s %s: %w", attributes[a].name, what, ErrLimit)
	}
}

func (v *values) u64(a attribute) uint64 { return binary.LittleEndian.Uint64(v.r.val[a]) }

// u32 is for what the stream keeps in 4 or 8 bytes and file systems in 4.
func (v *values) u32(a attribute) uint32 {
	if attributes[a].size == 4 {
		return binary.LittleEndian.Uint32(v.r.val[a])
	}
	n := v.u64(a)
	if n > math.MaxUint32 {
		v.bad(a, fmt.Sprint(n))
		return 0
	}
	return uint32(n)
}

func (v *values) i64(a attribute) int64 {
	n := v.u64(a)
	if n > math.MaxInt64 {
		v.bad(a, fmt.Sprint(n))
		return 0
	}
	return int64(n)
}

func (v *values) uuid(a attribute) [16]byte { return [16]byte(v.r.val[a]) }

func (v *values) time(a attribute) filetree.Time {
	b := v.r.val[a]
	t := filetree.Time{
		Sec:  int64(binary.LittleEndian.Uint64(b)),
		Nsec: binary.LittleEndian.Uint32(b[8:]),
	}
	if t.Nsec >= 1e9 {
		v.bad(a, fmt.Sprintf("of %d nanoseconds", t.Nsec))
	}
	return t
}

// rangeOf returns the range of n bytes at the offset in a.
func (v *values) rangeOf(a attribute, n uint64) filetree.Range {
	off := v.u64(a)
	if off > math.MaxInt64 || n > math.MaxInt64-off {
		v.bad(a, fmt.Sprintf("%d and %d bytes", off, n))
		return filetree.Range{}
	}
	return filetree.Range{Offset: int64(off), Length: int64(n)}
}

// bytes returns a value of least to most bytes without a NUL.
func (v *values) bytes(a attribute, least, most int) []byte {
	b := v.r.val[a]
	switch {
	case len(b) < least || len(b) > most:
		v.bad(a, fmt.Sprintf("of %d bytes", len(b)))
	case bytes.IndexByte(b, 0) >= 0:
		v.bad(a, "with a NUL")
	}
	return b
}

func (v *values) path(a attribute, root bool) []byte {
	p := v.bytes(a, 0, maxPath)
	if len(p) == 0 {
		if !root {
			v.bad(a, "is empty")
		}
		return p
	}
	// filetree.CheckName, without a string for each name.
	for start := 0; start <= len(p); {
		end := len(p)
		if i := bytes.IndexByte(p[start:], '/'); i >= 0 {
			end = start + i
		}
		switch name := p[start:end]; {
		case len(name) == 0 || string(name) == "." || string(name) == "..":
			v.bad(a, fmt.Sprintf("%q", p))
		case len(name) > filetree.MaxName:
			v.bad(a, fmt.Sprintf("with a name of %d bytes", len(name)))
		}
		start = end + 1
	}
	return p
}

func (v *values) encoded(c *Command) {
	n, off, part := v.u64(aUnencodedLen), v.u64(aUnencodedOffset), v.u64(aUnencodedFileLen)
	c.Data = v.r.val[aData]
	switch {
	case len(c.Data) > maxExtent:
		v.bad(aData, fmt.Sprintf("of %d bytes", len(c.Data)))
	case n > maxExtent:
		v.bad(aUnencodedLen, fmt.Sprint(n))
	case off > n || part > n-off:
		v.bad(aUnencodedOffset, fmt.Sprintf("%d and %d bytes of %d", off, part, n))
	}
	c.Range = v.rangeOf(aFileOffset, part)
	c.UnencodedLen, c.UnencodedOffset = int(n), int(off)
	if v.r.seen.has(aCompression) {
		c.Compression = Compression(v.u32(aCompression))
	}
	if c.Compression > LZO64K {
		v.bad(aCompression, fmt.Sprint(uint32(c.Compression)))
	}
	// Missing for inline extents, and reserved in all others.
	if v.r.seen.has(aEncryption) && v.u32(aEncryption) != 0 {
		v.bad(aEncryption, fmt.Sprint(v.u32(aEncryption)))
	}
}
