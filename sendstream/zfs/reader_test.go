package zfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"testing"
	"testing/iotest"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// allFeatures are those that records may need. Redacted is no more than a word to
// a Reader.
const allFeatures = FeatureEmbedData | FeatureLZ4 | FeatureLargeBlocks | FeatureCompressed | FeatureLargeDnode |
	FeatureZstd | FeatureRedacted | FeatureDedup | FeatureSASpill

// readAll returns the records of an input, copied, and the error that ended them,
// nil if they just ended.
func readAll(stream []byte) ([]Record, error) {
	var recs []Record
	for rec, err := range NewReader(bytes.NewReader(stream)).All() {
		if err != nil {
			return recs, err
		}
		rec.Payload = slices.Clone(rec.Payload)
		recs = append(recs, rec)
	}
	return recs, nil
}

// resumeList is the list of section 10.7.
var resumeList = []byte("\x00\x01\x00\x00" + "\x00\x00\x00\x00\x01\x00\x00\x00" +
	"\x28\x00\x00\x00\x0e\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00resume_object\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00" +
	"\x28\x00\x00\x00\x0e\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00resume_offset\x00\x00\x00\x00\x00\x14\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00")

// seq returns n bytes.
func seq(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestReader(t *testing.T) {
	features := allFeatures | FeatureResuming
	little := newStream(features, u32(36, uint64(FlagSpillBlock|FlagClone)), u64(48, 77), payload(resumeList...)).
		object(2, u32(28, 13), u8(35, 4), u8(34, 0), zeros(16)).
		object(32, u32(16, 20), u32(20, 17), u32(24, 16<<20), u8(34, 32), u32(28, 16192), payload(seq(16192)...)).
		freeObjects(3, 5).
		freeObjects(0, math.MaxUint64).
		freeObjects(9, math.MaxUint64).
		write(2, 1024, seq(512)).
		write(2, 1<<63, seq(16), u64(32, 1024), u64(96, 16), u8(50, 15)).
		free(2, 512, 1024).
		free(2, 512, math.MaxUint64).
		rec(WriteByRef, u64(8, 2), u64(16, 4096), u64(24, 512), u64(32, ownGUID), u64(40, 1), u64(48, 2), u64(56, 3)).
		spill(2, seq(512), u8(32, 4)).
		embedded(2, 512, 1024, 600, LZ4, seq(13)).
		embedded(2, math.MaxUint64-1023, 512, 512, Zstd, seq(112)).
		rec(Redact, u64(8, 2), u64(16, 512), u64(24, 512), u64(32, ownGUID)).
		end()
	want := []Record{
		{Type: Begin, Header: &Header{Features: features, Flags: FlagSpillBlock | FlagClone, ObjectSet: FileSystem, Creation: 1000,
			ToGUID: ownGUID, FromGUID: 77, Name: "t/fs@s", List: nvlist.List{
				{Name: "resume_object", Type: nvlist.Uint64, Value: uint64(4)},
				{Name: "resume_offset", Type: nvlist.Uint64, Value: uint64(1310720)}}}, Payload: resumeList},
		{Type: Object, Object: 2, ObjectType: 19, BonusType: 44, BlockSize: 512, Slots: 1, HasSpill: true, Payload: make([]byte, 13)},
		{Type: Object, Object: 32, ObjectType: 20, BonusType: 17, BlockSize: 16 << 20, Slots: 32, Payload: seq(16192)},
		{Type: FreeObjects, Object: 3, Count: 5},
		{Type: FreeObjects, Object: 0, Count: math.MaxUint64},
		{Type: FreeObjects, Object: 9, Count: math.MaxUint64 - 9},
		{Type: Write, Object: 2, ObjectType: 19, Start: 1024, Length: 512, LogicalSize: 512, Payload: seq(512)},
		{Type: Write, Object: 2, ObjectType: 19, Start: 1 << 63, Length: 1024, LogicalSize: 1024, Compression: LZ4, Payload: seq(16)},
		{Type: Free, Object: 2, Start: 512, Length: 1024},
		{Type: Free, Object: 2, Start: 512, Length: math.MaxUint64 - 512},
		{Type: WriteByRef, Object: 2, Start: 4096, Length: 512, RefGUID: 1, RefObject: 2, RefStart: 3},
		{Type: Spill, Object: 2, Length: 512, LogicalSize: 512, Unmodified: true, Payload: seq(512)},
		{Type: WriteEmbedded, Object: 2, Start: 512, Length: 1024, LogicalSize: 600, Compression: LZ4, Payload: seq(13)},
		{Type: WriteEmbedded, Object: 2, Start: math.MaxUint64 - 1023, Length: 512, LogicalSize: 512, Compression: Zstd, Payload: seq(112)},
		{Type: Redact, Object: 2, Start: 512, Length: 512},
		{Type: End},
	}
	big := bigEndian(t, little)
	for _, tt := range []struct {
		name   string
		stream []byte
		big    bool
	}{
		{"little endian", little, false},
		{"big endian", big, true},
		{"old, little endian", mend(slices.Clone(little), true), false},
		{"old, big endian", mend(slices.Clone(big), true), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll(tt.stream)
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range splitRecords(little) {
				if i < len(got) && got[i].Offset != int64(r.at) {
					t.Errorf("%v at %d, want %d", got[i].Type, got[i].Offset, r.at)
				}
			}
			for i := range got {
				got[i].Offset = 0
				if got[i].Payload != nil && len(got[i].Payload) == 0 {
					got[i].Payload = nil
				}
			}
			want[0].Header.BigEndian = tt.big
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			var spills []bool
			for _, r := range got {
				if r.Type == WriteEmbedded {
					spills = append(spills, r.EmbeddedSpill())
				}
			}
			if !slices.Equal(spills, []bool{false, true}) {
				t.Errorf("embedded spills %v", spills)
			}
		})
	}
}

// TestRawRecords has what only raw streams carry.
func TestRawRecords(t *testing.T) {
	stream := newStream(FeatureRaw|FeatureCompressed, payload(resumeList...)).
		rec(ObjectRange, u64(8, 32), u64(16, 32), u64(24, ownGUID)).
		object(2, u32(28, 13), u32(36, 320), u8(48, 17), u8(49, 6), u8(50, 3), payload(seq(320)...)).
		write(2, 0, seq(512), u64(96, 512), u8(50, 2)).
		spill(2, seq(512), u64(16, 1024), u64(40, 512), u8(33, 15)).
		end()
	got, err := readAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i].Offset = 0
	}
	want := []Record{
		{Type: ObjectRange, Object: 32, Count: 32, Payload: []byte{}},
		{Type: Object, Object: 2, ObjectType: 19, BonusType: 44, BlockSize: 512, Slots: 1, Payload: seq(320)[:13]},
		{Type: Write, Object: 2, ObjectType: 19, Length: 512, LogicalSize: 512, Compression: Off, Payload: seq(512)},
		{Type: Spill, Object: 2, Length: 1024, LogicalSize: 1024, Compression: LZ4, Payload: seq(512)},
		{Type: End},
	}
	if diff := gocmp.Diff(want, got[1:]); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestReaderErrors has a stream for each thing that section 8 of the specification
// forbids. The bad record is the last before END.
func TestReaderErrors(t *testing.T) {
	const maxU64 = math.MaxUint64
	f := func(features Features, more ...field) func() *builder {
		return func() *builder { return newStream(features, more...) }
	}
	all := f(allFeatures)
	none := f(0)
	raw := f(FeatureRaw | FeatureCompressed)
	tests := []struct {
		name string
		b    *builder // up to the bad record
		bad  func(b *builder) *builder
		err  error
	}{
		{"type 11", none(), func(b *builder) *builder { return b.rec(11, u64(8, 1)) }, ErrLimit},
		{"BEGIN in a stream", none(), func(b *builder) *builder { return b.begin(1, 0) }, ErrSequence},
		{"record in the first pair of a package", new(builder).begin(2, 0), func(b *builder) *builder { return b.free(1, 0, 1).rec(End) }, ErrSequence},
		{"record in a package", new(builder).pkg(), func(b *builder) *builder { return b.free(1, 0, 1) }, ErrSequence},
		{"package in a package", new(builder).pkg(), func(b *builder) *builder { return b.begin(2, 0) }, ErrSequence},
		{"other byte order in a package", new(builder).pkg(), func(b *builder) *builder {
			b.b = append(b.b, bigEndian(t, newStream(0).end())...)
			return b
		}, ErrMagic},
		{"header type 0", new(builder), func(b *builder) *builder { return b.begin(0, 0) }, ErrLimit},
		{"header type 3", new(builder), func(b *builder) *builder { return b.begin(3, 0) }, ErrLimit},
		{"feature 3", new(builder), func(b *builder) *builder { return b.begin(1, 1<<3) }, ErrFeature},
		{"feature 15", new(builder), func(b *builder) *builder { return b.begin(1, 1<<15) }, ErrFeature},
		{"feature 18", new(builder), func(b *builder) *builder { return b.begin(1, 1<<18) }, ErrFeature},
		{"feature 30", new(builder), func(b *builder) *builder { return b.begin(1, 1<<30) }, ErrFeature},
		{"reserved bits", new(builder), func(b *builder) *builder { return b.begin(1, 1<<56) }, ErrFeature},
		{"list of 6 bytes", new(builder), func(b *builder) *builder { return b.begin(1, 0, zeros(6)) }, ErrLimit},
		{"list above 1 MiB", new(builder), func(b *builder) *builder { return b.begin(1, 0, zeros(1<<20+4)) }, ErrLimit},
		{"package list above 64 MiB", new(builder), func(b *builder) *builder { return b.begin(2, 0, u32(4, 64<<20+4)) }, ErrLimit},
		{"malformed list", new(builder), func(b *builder) *builder { return b.begin(1, 0, payload(1, 2, 3, 4)) }, nvlist.ErrMalformed},
		{"not a BEGIN", new(builder), func(b *builder) *builder { return b.free(1, 0, 1) }, ErrMagic},
		{"garbage after a stream", none().rec(End, u64(40, ownGUID)), func(b *builder) *builder { return b.free(1, 0, 1) }, ErrMagic},

		{"object 0", all(), func(b *builder) *builder { return b.object(0) }, ErrLimit},
		{"object 2^48", all(), func(b *builder) *builder { return b.write(1<<48, 0, seq(512)) }, ErrLimit},
		{"33 slots", all(), func(b *builder) *builder { return b.object(1, u8(34, 33)) }, ErrLimit},
		{"2 slots without feature", none(), func(b *builder) *builder { return b.object(1, u8(34, 2)) }, ErrLimit},
		{"slots behind the last object", all(), func(b *builder) *builder { return b.object(1<<48-1, u8(34, 2)) }, ErrLimit},
		{"block size 0", all(), func(b *builder) *builder { return b.object(1, u32(24, 0)) }, ErrLimit},
		{"block size 513", all(), func(b *builder) *builder { return b.object(1, u32(24, 513)) }, ErrLimit},
		{"block size above 16 MiB", all(), func(b *builder) *builder { return b.object(1, u32(24, 16<<20+512)) }, ErrLimit},
		{"block size above 128 KiB without feature", none(), func(b *builder) *builder { return b.object(1, u32(24, 128<<10+512)) }, ErrLimit},
		{"bonus that does not fit", all(), func(b *builder) *builder { return b.object(1, u32(28, 321), zeros(328)) }, ErrLimit},
		{"bonus of 4 GiB", all(), func(b *builder) *builder { return b.object(1, u32(28, math.MaxUint32)) }, ErrLimit},
		{"raw bonus", all(), func(b *builder) *builder { return b.object(1, u32(36, 320), zeros(320)) }, ErrLimit},
		{"levels", all(), func(b *builder) *builder { return b.object(1, u8(49, 1)) }, ErrLimit},
		{"raw bonus that does not fit", raw(), func(b *builder) *builder { return b.object(1, u32(36, 328), zeros(328)) }, ErrLimit},
		{"raw bonus shorter than the bonus", raw(), func(b *builder) *builder { return b.object(1, u32(28, 100), u32(36, 96), zeros(96)) }, ErrLimit},
		{"object range", all(), func(b *builder) *builder { return b.rec(ObjectRange, u64(8, 0), u64(24, ownGUID)) }, ErrLimit},

		{"write of 256 bytes", all(), func(b *builder) *builder { return b.write(1, 0, seq(256)) }, ErrLimit},
		{"write of 516 bytes", all(), func(b *builder) *builder { return b.write(1, 0, seq(516)) }, ErrLimit},
		{"write above 128 KiB", none(), func(b *builder) *builder { return b.write(1, 0, seq(128<<10+512)) }, ErrLimit},
		{"write above 16 MiB", all(), func(b *builder) *builder { return b.write(1, 0, nil, u64(32, 16<<20+512)) }, ErrLimit},
		{"write of 2^64-1", all(), func(b *builder) *builder { return b.write(1, 0, nil, u64(32, maxU64)) }, ErrLimit},
		{"write that wraps", all(), func(b *builder) *builder { return b.write(1, maxU64-510, seq(512)) }, ErrLimit},
		{"compressed size without compression", all(), func(b *builder) *builder { return b.write(1, 0, seq(512), u64(96, 512)) }, ErrLimit},
		{"compressed to nothing", all(), func(b *builder) *builder { return b.write(1, 0, nil, u64(32, 512), u8(50, 15)) }, ErrLimit},
		{"compressed to more", all(), func(b *builder) *builder { return b.write(1, 0, seq(520), u64(32, 512), u64(96, 520), u8(50, 15)) }, ErrLimit},
		{"compressed without feature", none(), func(b *builder) *builder { return b.write(1, 0, seq(512), u64(96, 512), u8(50, 5)) }, ErrLimit},
		{"lz4 without feature", f(FeatureCompressed)(), func(b *builder) *builder { return b.write(1, 0, seq(512), u64(96, 512), u8(50, 15)) }, ErrLimit},
		{"zstd without feature", f(FeatureCompressed)(), func(b *builder) *builder { return b.write(1, 0, seq(512), u64(96, 512), u8(50, 16)) }, ErrLimit},
		{"compression on", all(), func(b *builder) *builder { return b.write(1, 0, seq(512), u64(96, 512), u8(50, 1)) }, ErrLimit},
		{"compression 17", all(), func(b *builder) *builder { return b.write(1, 0, seq(512), u64(96, 512), u8(50, 17)) }, ErrLimit},

		{"spill of 256 bytes", all(), func(b *builder) *builder { return b.spill(1, seq(256)) }, ErrLimit},
		{"spill above 128 KiB", all(), func(b *builder) *builder { return b.spill(1, seq(128<<10+512)) }, ErrLimit},
		{"compressed spill", all(), func(b *builder) *builder { return b.spill(1, seq(512), u64(40, 512)) }, ErrLimit},
		{"spill with compression", all(), func(b *builder) *builder { return b.spill(1, seq(512), u8(33, 15)) }, ErrLimit},
		{"raw spill with compression 17", raw(), func(b *builder) *builder { return b.spill(1, seq(512), u8(33, 17)) }, ErrLimit},

		{"embedded without feature", none(), func(b *builder) *builder { return b.embedded(1, 0, 512, 512, LZ4, seq(100)) }, ErrLimit},
		{"embedded of 113 bytes", all(), func(b *builder) *builder { return b.embedded(1, 0, 512, 512, LZ4, seq(113)) }, ErrLimit},
		{"embedded of another type", all(), func(b *builder) *builder { return b.embedded(1, 0, 512, 512, LZ4, seq(100), u8(41, 1)) }, ErrLimit},
		{"embedded to less", all(), func(b *builder) *builder { return b.embedded(1, 0, 512, 99, LZ4, seq(100)) }, ErrLimit},
		{"embedded to more than the block", all(), func(b *builder) *builder { return b.embedded(1, 0, 512, 513, LZ4, seq(100)) }, ErrLimit},
		{"embedded above 16 MiB", all(), func(b *builder) *builder { return b.embedded(1, 0, 16<<20+1, 512, LZ4, seq(100)) }, ErrLimit},
		{"embedded that wraps", all(), func(b *builder) *builder { return b.embedded(1, maxU64-100, 512, 512, LZ4, seq(100)) }, ErrLimit},
		{"embedded, off, to more", all(), func(b *builder) *builder { return b.embedded(1, 0, 512, 512, Off, seq(100)) }, ErrLimit},
		{"embedded with compression 17", all(), func(b *builder) *builder { return b.embedded(1, 0, 512, 512, 17, seq(100)) }, ErrLimit},

		{"reference that wraps", all(), func(b *builder) *builder {
			return b.rec(WriteByRef, u64(8, 1), u64(16, maxU64), u64(24, 2), u64(32, ownGUID))
		}, ErrLimit},
		{"reference above 16 MiB", all(), func(b *builder) *builder {
			return b.rec(WriteByRef, u64(8, 1), u64(24, 16<<20+1), u64(32, ownGUID))
		}, ErrLimit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			at := tt.b.pos()
			stream := tt.bad(tt.b).end()
			for name, s := range map[string][]byte{"new": stream, "old": mend(slices.Clone(stream), true)} {
				_, err := readAll(s)
				fe, ok := errors.AsType[*FormatError](err)
				if !ok || !errors.Is(err, tt.err) {
					t.Fatalf("%s: error %v, want %v", name, err, tt.err)
				}
				if fe.Offset != at {
					t.Errorf("%s: %v: want offset %d", name, err, at)
				}
			}
		})
	}
}

// TestInputs is about where streams and packages begin and end.
func TestInputs(t *testing.T) {
	one := newStream(0).free(1, 0, 512).end()
	two := bigEndian(t, newStream(0).end())
	pkg := func(n int) []byte {
		b := new(builder).pkg()
		for range n {
			b.b = append(b.b, one...)
		}
		return mend(slices.Clone(b.rec(End).b), false)
	}
	join := func(bs ...[]byte) []byte { return slices.Concat(bs...) }
	tests := []struct {
		name  string
		input []byte
		want  string // the types
		err   error
		at    int
	}{
		{"nothing", nil, "", ErrEmpty, 0},
		{"one", one, "BEGIN FREE END ", nil, 0},
		{"one of each byte order", join(one, two, one), "BEGIN FREE END BEGIN END BEGIN FREE END ", nil, 0},
		{"package of none", pkg(0), "BEGIN END END ", nil, 0},
		{"package of two", pkg(2), "BEGIN END BEGIN FREE END BEGIN FREE END END ", nil, 0},
		{"packages of both byte orders and a stream", join(pkg(1), bigEndian(t, pkg(0)), one), "BEGIN END BEGIN FREE END END BEGIN END END BEGIN FREE END ", nil, 0},
		{"package without end", pkg(1)[:len(pkg(1))-headerSize], "BEGIN END BEGIN FREE END ", io.ErrUnexpectedEOF, len(pkg(1)) - headerSize},
		{"stream without end", one[:2*headerSize], "BEGIN ", ErrPartial, 2 * headerSize},
		{"BEGIN alone", one[:headerSize], "", ErrPartial, headerSize},
		{"zeros", make([]byte, 4096), "", ErrMagic, 0},
		{"zeros behind", join(one, make([]byte, 8)), "BEGIN FREE END ", io.ErrUnexpectedEOF, len(one)},
		{"more zeros behind", join(one, make([]byte, 12)), "BEGIN FREE END ", ErrMagic, len(one)},
		{"a byte behind", join(one, []byte{1}), "BEGIN FREE END ", ErrMagic, len(one)},
		{"part of a stream behind", join(one, two[:100]), "BEGIN FREE END ", io.ErrUnexpectedEOF, len(one)},
		{"text", []byte("internal error: out of memory\n"), "", ErrMagic, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			recs, err := readAll(tt.input)
			got := ""
			for _, r := range recs {
				got += r.Type.String() + " "
			}
			if got != tt.want {
				t.Errorf("records %s, want %s", got, tt.want)
			}
			fe, _ := errors.AsType[*FormatError](err)
			switch {
			case tt.err == nil && err == nil:
			case tt.err == nil || fe == nil || !errors.Is(err, tt.err) || fe.Offset != int64(tt.at):
				t.Errorf("error %v, want %v at %d", err, tt.err, tt.at)
			}
			if tt.err == ErrPartial && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v is no io.ErrUnexpectedEOF", err)
			}
		})
	}
}

// testStream has a record of each kind that can be applied.
func testStream() []byte {
	return newStream(allFeatures, payload(resumeList...)).
		object(2, u32(28, 13), payload(seq(16)...)).free(2, 512, math.MaxUint64).write(2, 0, seq(512)).
		spill(2, seq(512)).embedded(2, 512, 512, 512, LZ4, seq(13)).freeObjects(3, 29).end()
}

// begin reports whether recs are the first of all.
func begin(all, recs []Record) bool {
	return len(recs) <= len(all) && (len(recs) == 0 || reflect.DeepEqual(all[:len(recs)], recs))
}

// TestCut cuts a stream and a package everywhere.
func TestCut(t *testing.T) {
	stream := testStream()
	pkg := new(builder).pkg(payload(resumeList...))
	pkg.b = mend(append(pkg.b, stream...), false)
	pkg.rec(End)
	for name, s := range map[string][]byte{"stream": stream, "old": mend(slices.Clone(stream), true), "package": pkg.b} {
		all, err := readAll(s)
		if err != nil {
			t.Fatal(err)
		}
		for n := 1; n < len(s); n++ {
			recs, err := readAll(s[:n])
			fe, ok := errors.AsType[*FormatError](err)
			if !ok || !errors.Is(err, io.ErrUnexpectedEOF) || fe.Offset > int64(n) {
				t.Fatalf("%s: cut at %d: %v", name, n, err)
			}
			if !begin(all, recs) {
				t.Fatalf("%s: cut at %d: records %+v", name, n, recs)
			}
			if boundary := slices.ContainsFunc(all[1:], func(r Record) bool { return r.Offset == int64(n) }); name == "stream" && boundary != errors.Is(err, ErrPartial) {
				t.Fatalf("cut at %d: %v", n, err)
			}
		}
	}
}

// TestFlips flips every bit of a stream. Nothing of a damaged record is handed out.
func TestFlips(t *testing.T) {
	for _, s := range [][]byte{testStream(), bigEndian(t, testStream())} {
		all, err := readAll(s)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range len(s) * 8 {
			s[bit/8] ^= 1 << (bit % 8)
			recs, err := readAll(s)
			s[bit/8] ^= 1 << (bit % 8)
			if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Offset > int64(len(s)) {
				t.Fatalf("bit %d: %v", bit, err)
			}
			if !begin(all, recs) {
				t.Fatalf("bit %d: records %+v", bit, recs)
			}
		}
		// END is what protects an old stream. Until then, damage gets through. END
		// itself is in no sum: what counts is its type and, from 8 to 39, its sum.
		s = mend(s, true)
		end := len(s) - headerSize
		for bit := range (end + 40) * 8 {
			if bit/8 >= end+4 && bit/8 < end+8 {
				continue
			}
			s[bit/8] ^= 1 << (bit % 8)
			_, err := readAll(s)
			s[bit/8] ^= 1 << (bit % 8)
			if err == nil {
				t.Fatalf("old stream, bit %d: no error", bit)
			}
		}
	}
}

// TestReadError checks that an error of the input is not taken for a bad stream.
func TestReadError(t *testing.T) {
	stream := testStream()
	broken := errors.New("connection reset")
	for _, n := range []int{0, 5, headerSize, headerSize + 12, 2*headerSize + 96 + 3, len(stream)} {
		r := NewReader(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken)))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if _, ok := errors.AsType[*FormatError](err); ok || !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
		if _, again := r.Next(); again != err {
			t.Errorf("after %d bytes: then %v", n, again)
		}
	}
	if _, err := readAll(stream); err != nil {
		t.Error(err)
	}
	r := NewReader(iotest.OneByteReader(bytes.NewReader(stream)))
	for _, err := range r.All() {
		if err != nil {
			t.Error(err)
		}
	}
	if r.Offset() != int64(len(stream)) {
		t.Errorf("%d of %d bytes read", r.Offset(), len(stream))
	}
}

// TestPromises checks that memory grows with what has come and not with what is
// announced.
func TestPromises(t *testing.T) {
	stream := newStream(allFeatures).write(2, 0, nil, u64(32, maxBlock)).b
	r := NewReader(bytes.NewReader(mend(stream, false)))
	var err error
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if cap(r.buf) > 128<<10 {
		t.Errorf("buffer of %d bytes for nothing", cap(r.buf))
	}
}

// largeStream has n writes of 128 KiB, each with the records that come with a file.
func largeStream(n int) []byte {
	b := newStream(FeatureSASpill)
	block := seq(128 << 10)
	for i := range uint64(n) {
		b.object(i+1, u32(24, 128<<10), u32(28, 176), zeros(176)).free(i+1, 128<<10, math.MaxUint64).write(i+1, 0, block)
	}
	return b.end()
}

// TestReaderAllocs checks that reading allocates nothing for a record.
func TestReaderAllocs(t *testing.T) {
	count := func(stream []byte) float64 {
		return testing.AllocsPerRun(10, func() {
			for _, err := range NewReader(bytes.NewReader(stream)).All() {
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	few, many := count(largeStream(2)), count(largeStream(50))
	if few != many {
		t.Errorf("%v allocations for 8 records, %v for 152", few, many)
	}
}

func BenchmarkReader(b *testing.B) {
	small := newStream(FeatureSASpill)
	for i := range uint64(10000) {
		small.object(i+1, u32(28, 176), zeros(176)).free(i+1, 512, math.MaxUint64)
	}
	streams := []struct {
		name string
		s    []byte
	}{
		{"128K", largeStream(500)},
		{"128K, big endian", bigEndian(b, largeStream(500))},
		{"objects", small.end()},
	}
	for _, s := range streams {
		b.Run(s.name, func(b *testing.B) {
			b.SetBytes(int64(len(s.s)))
			b.ReportAllocs()
			r := new(Reader)
			in := bytes.NewReader(nil)
			for b.Loop() {
				in.Reset(s.s)
				*r = Reader{r: in, buf: r.buf}
				for _, err := range r.All() {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"WRITE_EMBEDDED": WriteEmbedded, "record type 11": Type(11), "gzip-1": Gzip1, "gzip-9": Gzip9, "zstd": Zstd,
		"compression 17": Compression(17), "volume": Volume, "object set of type 1": ObjectSet(1),
	} {
		if got.String() != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
