package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"

	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

const (
	headerSize = 312
	sumAt      = 280 // of the running checksum in a header

	magic = 0x00000002F5BACBAC // DMU_BACKUP_MAGIC

	// The limits of section 8.
	maxSubstreamList = 1 << 20
	maxPackageList   = 64 << 20
	maxObject        = 1<<48 - 1
	maxSlots         = 32
	minBlock         = 512
	maxSmallBlock    = 128 << 10
	maxBlock         = 16 << 20
	maxEmbedded      = 112
)

// Errors that a [FormatError] may wrap, besides [io.ErrUnexpectedEOF] for a stream
// that just stops.
var (
	// ErrEmpty reports an input without a single byte.
	ErrEmpty = errors.New("empty input")
	// ErrMagic reports that no stream begins where one has to.
	ErrMagic = errors.New("not a zfs send stream")
	// ErrFeature reports a stream with features that nothing is known of.
	ErrFeature = errors.New("unknown feature of the zfs send stream")
	// ErrChecksum reports a Fletcher-4 mismatch. What is wrong lies in the record at
	// the offset or in the one before it.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrSequence reports a record at a place where it cannot be.
	ErrSequence = errors.New("record out of sequence")
	// ErrLimit reports a value outside the bounds of section 8 of the specification.
	ErrLimit = errors.New("out of bounds")
	// ErrPartial reports a stream that stops between two records. It wraps
	// [io.ErrUnexpectedEOF].
	ErrPartial = fmt.Errorf("stream has no end: either it was cut or it is a partial one, and then leave out --saved (-S): %w", io.ErrUnexpectedEOF)
)

// A FormatError reports bytes that are not a send stream, or a stream that cannot
// be used, and where they are.
type FormatError struct {
	Offset int64 // of the first byte of the bad record
	Err    error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("zfs: record at offset %d: %v", e.Offset, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

// A header is that of a record.
type header struct {
	b   [headerSize]byte
	big bool
}

func (h *header) u32(off int) uint32 {
	if h.big {
		return binary.BigEndian.Uint32(h.b[off:])
	}
	return binary.LittleEndian.Uint32(h.b[off:])
}

func (h *header) u64(off int) uint64 {
	if h.big {
		return binary.BigEndian.Uint64(h.b[off:])
	}
	return binary.LittleEndian.Uint64(h.b[off:])
}

func (h *header) sum(off int) fletcher4 {
	return fletcher4{h.u64(off), h.u64(off + 8), h.u64(off + 16), h.u64(off + 24)}
}

func (h *header) typ() Type { return Type(h.u32(0)) }

// payload returns how many bytes follow the header, which nobody has bounded yet.
func (h *header) payload() uint64 {
	switch h.typ() {
	case Begin:
		return uint64(h.u32(4))
	case Object:
		if raw := h.u32(36); raw != 0 {
			return uint64(raw)
		}
		return roundup8(h.u32(28))
	case Write:
		if h.b[50] != 0 {
			return h.u64(96)
		}
		return h.u64(32)
	case Spill:
		if n := h.u64(40); n != 0 {
			return n
		}
		return h.u64(16)
	case WriteEmbedded:
		return roundup8(h.u32(52))
	}
	return 0
}

func roundup8(n uint32) uint64 { return (uint64(n) + 7) &^ 7 }

// A Reader reads the records of one or more send streams, one behind the other.
//
// What it yields has passed these checks: the sums of the record's own header and
// of the next, which proves the payload, in streams that have them, and END's in
// all; the record may come at this place and with these features; object numbers
// are 1 to 2^48-1; sizes and lengths are within section 8's bounds; ranges do not
// wrap, or are cut at 2^64-1 where that says "to the end". What a bonus buffer
// holds is not looked at.
//
// The sums keep off damage, not enemies: nothing in them is secret.
type Reader struct {
	r   io.Reader
	off int64 // of the next byte
	err error

	head   header // read ahead, if ahead
	headAt int64  // where it began
	ahead  bool
	sum    fletcher4 // of all from BEGIN to what was read last

	pkg *Header // the open package
	sub *Header // the open substream, or pkg between its own BEGIN and END
	buf []byte  // the payload
}

// MagicLen is how many bytes IsStream looks at.
const MagicLen = 16

// IsStream reports whether an input that starts with these bytes is meant to be a send
// stream of ZFS.
func IsStream(start []byte) bool {
	if len(start) < MagicLen || [4]byte(start) != [4]byte{} { // BEGIN is type 0
		return false
	}
	return binary.LittleEndian.Uint64(start[8:]) == magic || binary.BigEndian.Uint64(start[8:]) == magic
}

// NewReader returns a Reader of r. It reads r in pieces of a record's header and
// its payload: a file or pipe wants a [bufio.Reader] around it.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Offset returns how many bytes have been read: up to one header more than those
// of the records returned.
func (r *Reader) Offset() int64 { return r.off }

// Next returns the next record. After the last stream it returns [io.EOF]; every
// error is final and returned again. Bytes that are not a send stream give a
// [*FormatError].
func (r *Reader) Next() (Record, error) {
	if r.err != nil {
		return Record{}, r.err
	}
	rec, err := r.next()
	if err != nil {
		r.err = err
		return Record{}, err
	}
	return rec, nil
}

// All returns an iterator over the records left in the input. An error is yielded
// once, with the zero Record, and ends the iteration.
func (r *Reader) All() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			rec, err := r.Next()
			if err == io.EOF || !yield(rec, err) || err != nil {
				return
			}
		}
	}
}

func (r *Reader) next() (Record, error) {
	if !r.ahead {
		if err := r.readHeader(); err != nil {
			return Record{}, err
		}
	}
	r.ahead = false
	rec := Record{Type: r.head.typ(), Offset: r.headAt}
	fail := func(err error) (Record, error) {
		return Record{}, &FormatError{Offset: rec.Offset, Err: fmt.Errorf("%v: %w", rec.Type, err)}
	}
	if err := r.sequence(&rec); err != nil {
		return fail(err)
	}
	if err := r.parse(&rec); err != nil {
		return fail(err)
	}
	if rec.Type == End {
		return rec, nil
	}
	if err := r.readPayload(&rec); err != nil {
		return Record{}, err
	}
	if h := rec.Header; h != nil && len(rec.Payload) > 0 {
		var err error
		if h.List, err = nvlist.Parse(rec.Payload); err != nil {
			return fail(err)
		}
	}
	// The sum in the next header proves this record.
	if err := r.readHeader(); err != nil {
		return Record{}, err
	}
	r.ahead = true
	return rec, nil
}

// readHeader reads the next header and checks what it says of the bytes before it.
// It returns io.EOF where the input may end and does.
func (r *Reader) readHeader() error {
	r.headAt = r.off
	n, err := io.ReadFull(r.r, r.head.b[:])
	r.off += int64(n)
	fail := func(err error) error { return &FormatError{Offset: r.headAt, Err: err} }
	outside := r.sub == nil && r.pkg == nil
	if outside && n > 0 && !r.begins(n) {
		return fail(ErrMagic)
	}
	switch {
	case err == io.EOF && outside && r.headAt > 0:
		return io.EOF
	case err == io.EOF && outside:
		return fail(ErrEmpty)
	case err == io.EOF && r.sub == nil:
		return fail(fmt.Errorf("package has no end: %w", io.ErrUnexpectedEOF))
	case err == io.EOF:
		return fail(ErrPartial)
	case err == io.ErrUnexpectedEOF:
		return fail(err)
	case err != nil:
		return fmt.Errorf("zfs: read at offset %d: %w", r.off, err)
	}

	if r.sub == nil { // BEGIN, or a package's last END, which is in no sum
		r.sum = fletcher4{}
		r.sum.update(r.head.b[:], r.head.big)
		return nil
	}
	if h := &r.head; h.typ() == End && h.sum(8) != r.sum {
		return fail(fmt.Errorf("%w: %x, not %x", ErrChecksum, r.sum, h.sum(8)))
	}
	r.sum.update(r.head.b[:sumAt], r.head.big)
	if want := r.head.sum(sumAt); want != (fletcher4{}) && want != r.sum {
		return fail(fmt.Errorf("%w: %x, not %x", ErrChecksum, r.sum, want))
	}
	r.sum.update(r.head.b[sumAt:], r.head.big)
	return nil
}

// begins reports whether the n bytes that the header has are those of a BEGIN, as
// far as they go, and learns the byte order from its magic number.
func (r *Reader) begins(n int) bool {
	var want [16]byte // type 0, any length, magic
	for _, r.head.big = range []bool{false, true} {
		if r.head.big {
			binary.BigEndian.PutUint64(want[8:], magic)
		} else {
			binary.LittleEndian.PutUint64(want[8:], magic)
		}
		if bytes.Equal(want[:min(n, 4)], r.head.b[:min(n, 4)]) &&
			(n <= 8 || bytes.Equal(want[8:min(n, 16)], r.head.b[8:min(n, 16)])) {
			return true
		}
	}
	return false
}

// sequence checks that the record may come here, and opens and closes substreams
// and packages.
func (r *Reader) sequence(rec *Record) error {
	switch {
	case rec.Type >= numTypes:
		return ErrLimit
	case rec.Type == Begin && r.sub != nil:
		return fmt.Errorf("in a stream: %w", ErrSequence)
	case rec.Type == Begin:
		return nil // parse opens it
	case rec.Type == End && r.sub == nil:
		r.pkg = nil
		return nil
	case rec.Type == End:
		r.sub = nil
		return nil
	case r.sub == nil || r.sub.Package:
		return fmt.Errorf("in a package, outside of a stream: %w", ErrSequence)
	}
	return nil
}

// readPayload reads the payload of the current record. The buffer grows with what
// has arrived, not with what is promised.
func (r *Reader) readPayload(rec *Record) error {
	n := int(r.head.payload()) // parse has bounded it
	r.buf = r.buf[:0]
	for len(r.buf) < n {
		have := len(r.buf)
		step := min(n-have, max(have, cap(r.buf)-have, 64<<10))
		r.buf = slices.Grow(r.buf, step)
		got, err := io.ReadFull(r.r, r.buf[have:have+step])
		r.buf = r.buf[:have+got]
		r.off += int64(got)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return &FormatError{Offset: rec.Offset, Err: fmt.Errorf("%v: %w", rec.Type, io.ErrUnexpectedEOF)}
		case err != nil:
			return fmt.Errorf("zfs: read at offset %d: %w", r.off, err)
		}
	}
	r.sum.update(r.buf, r.head.big)
	rec.Payload = r.buf
	switch rec.Type {
	case Object:
		rec.Payload = r.buf[:r.head.u32(28)]
	case WriteEmbedded:
		rec.Payload = r.buf[:r.head.u32(52)]
	}
	return nil
}

// bound returns an error that wraps ErrLimit.
func bound(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrLimit)...)
}

// parse fills in the fields of rec from the header, and bounds them and the length
// of the payload. The offsets are those of sections 1.4 to 1.7.
func (r *Reader) parse(rec *Record) error {
	h := &r.head
	if rec.Type == Begin {
		return r.parseBegin(rec)
	}
	if rec.Type == End {
		return nil
	}

	// The toguid that each record repeats is not looked at: in what --saved sends it is
	// another than BEGIN's.
	rec.Object = h.u64(8)
	if rec.Type == FreeObjects || rec.Type == ObjectRange {
		rec.Count = min(h.u64(16), math.MaxUint64-rec.Object)
		if rec.Type == ObjectRange && !r.sub.Features.Has(FeatureRaw) {
			return bound("in a stream that is not raw")
		}
		return nil
	}
	if rec.Object == 0 || rec.Object > maxObject {
		return bound("object %d", rec.Object)
	}

	var err error
	switch rec.Type {
	case Object:
		err = r.parseObject(rec)
	case Write:
		err = r.parseWrite(rec)
	case Spill:
		err = r.parseSpill(rec)
	case WriteEmbedded:
		err = r.parseEmbedded(rec)
	case Free, Redact:
		rec.Start = h.u64(16)
		rec.Length = min(h.u64(24), math.MaxUint64-rec.Start)
	case WriteByRef:
		rec.Start, rec.Length = h.u64(16), h.u64(24)
		rec.RefGUID, rec.RefObject, rec.RefStart = h.u64(40), h.u64(48), h.u64(56)
		if rec.Length > maxBlock || rec.Start > math.MaxUint64-rec.Length || rec.RefStart > math.MaxUint64-rec.Length {
			err = bound("%d bytes at %d from %d", rec.Length, rec.Start, rec.RefStart)
		}
	}
	if err != nil {
		return fmt.Errorf("object %d: %w", rec.Object, err)
	}
	return nil
}

func (r *Reader) parseBegin(rec *Record) error {
	h := &r.head
	version := h.u64(16)
	b := &Header{
		BigEndian: h.big,
		Features:  Features(version >> 2),
		Creation:  h.u64(24),
		ObjectSet: ObjectSet(h.u32(32)),
		Flags:     Flags(h.u32(36)),
		ToGUID:    h.u64(40),
		FromGUID:  h.u64(48),
	}
	name, _, _ := bytes.Cut(h.b[56:], []byte{0})
	b.Name = string(name)
	limit := uint64(maxSubstreamList)
	if version&3 == 2 {
		b.Package = true
		limit = maxPackageList
	}
	switch n := h.payload(); {
	case h.u64(8) != magic:
		return ErrMagic // or in another byte order than the package it is in
	case version&3 != 1 && version&3 != 2:
		return bound("header type %d", version&3)
	case b.Package && r.pkg != nil:
		return fmt.Errorf("a package in a package: %w", ErrSequence)
	case b.Features&^knownFeatures != 0:
		return fmt.Errorf("%w: %#x", ErrFeature, uint64(b.Features&^knownFeatures))
	case n > limit || n%4 != 0:
		return bound("payload of %d bytes", n)
	}
	r.sub, rec.Header = b, b
	if b.Package {
		r.pkg = b
	}
	return nil
}

func (r *Reader) parseObject(rec *Record) error {
	h := &r.head
	rec.ObjectType = h.u32(16)
	rec.BonusType = h.u32(20)
	rec.BlockSize = h.u32(24)
	rec.Slots = max(h.b[34], 1) // senders before 0.7 say 0
	rec.HasSpill = h.b[35]&4 != 0 && r.sub.Flags&FlagSpillBlock != 0
	bonus, raw := h.u32(28), h.u32(36)
	room := uint32(rec.Slots)*512 - 192
	switch {
	case rec.Slots > maxSlots || rec.Object+uint64(rec.Slots) > maxObject+1,
		rec.Slots > 1 && !r.sub.Features.Has(FeatureLargeDnode):
		return bound("%d slots", rec.Slots)
	case rec.BlockSize < minBlock || rec.BlockSize > r.sub.maxBlock() || rec.BlockSize%512 != 0:
		return bound("block size %d", rec.BlockSize)
	case bonus > room:
		return bound("bonus of %d bytes", bonus)
	case r.sub.Features.Has(FeatureRaw):
		if raw > room || raw%8 != 0 || raw < bonus && raw != 0 {
			return bound("raw bonus of %d bytes for %d", raw, bonus)
		}
	case raw != 0 || h.b[48] != 0 || h.b[49] != 0 || h.b[50] != 0:
		return bound("shape of a raw object in a stream that is not raw")
	}
	return nil
}

// payloadBound bounds the length of a payload by that of what it is to become.
// All are multiples of the source's sectors or blocks.
func (r *Reader) payloadBound(logical uint64, limit uint32) error {
	switch n := r.head.payload(); {
	case logical < minBlock || logical > uint64(limit):
		return bound("%d bytes", logical)
	case n == 0 || n > logical || n%8 != 0:
		return bound("payload of %d bytes for %d", n, logical)
	}
	return nil
}

func (r *Reader) parseWrite(rec *Record) error {
	h := &r.head
	rec.ObjectType = h.u32(16)
	rec.Start, rec.Length = h.u64(24), h.u64(32)
	rec.Compression = Compression(h.b[50])
	if err := r.payloadBound(rec.Length, r.sub.maxBlock()); err != nil {
		return err
	}
	rec.LogicalSize = uint32(rec.Length)
	features := r.sub.Features
	switch c := rec.Compression; {
	case rec.Start > math.MaxUint64-rec.Length:
		return bound("%d bytes at %d", rec.Length, rec.Start)
	case c == Plain && h.u64(96) != 0:
		return bound("%d compressed bytes without compression", h.u64(96))
	case !c.valid(),
		c != Plain && !features.Has(FeatureCompressed),
		c == LZ4 && !features.Has(FeatureLZ4),
		c == Zstd && !features.Has(FeatureZstd):
		return bound("%v with features %#x", c, uint64(features))
	}
	return nil
}

func (r *Reader) parseSpill(rec *Record) error {
	h := &r.head
	rec.Length = h.u64(16)
	rec.Unmodified = h.b[32]&4 != 0 && r.sub.Flags&FlagSpillBlock != 0
	rec.Compression = Compression(h.b[33])
	if err := r.payloadBound(rec.Length, maxSmallBlock); err != nil {
		return err
	}
	rec.LogicalSize = uint32(rec.Length)
	switch c := rec.Compression; {
	case !c.valid():
		return bound("%v", c)
	case !r.sub.Features.Has(FeatureRaw) && (c != Plain || h.u64(40) != 0):
		return bound("compressed in a stream that is not raw")
	}
	return nil
}

func (r *Reader) parseEmbedded(rec *Record) error {
	h := &r.head
	rec.Start, rec.Length = h.u64(16), h.u64(24)
	rec.Compression = Compression(h.b[40])
	rec.LogicalSize = h.u32(48)
	size := h.u32(52) // of the payload
	switch c := rec.Compression; {
	case !r.sub.Features.Has(FeatureEmbedData):
		return bound("without the feature")
	case h.b[41] != 0:
		return bound("embedded type %d", h.b[41])
	case size > maxEmbedded || size > rec.LogicalSize || uint64(rec.LogicalSize) > rec.Length || rec.Length > maxBlock:
		return bound("payload of %d bytes for %d of %d", size, rec.LogicalSize, rec.Length)
	case rec.Start > math.MaxUint64-rec.Length:
		return bound("%d bytes at %d", rec.Length, rec.Start)
	case !c.valid(), (c == Plain || c == Off) && size != rec.LogicalSize:
		return bound("%v from %d bytes to %d", c, size, rec.LogicalSize)
	}
	return nil
}
