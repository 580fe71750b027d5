package zfs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// corpusDir has the recorded streams: a part of them, unless SECRATE_CORPUS_ZFS
// names a directory with all.
func corpusDir() string { return cmp.Or(os.Getenv("SECRATE_CORPUS_ZFS"), "testdata/corpus") }

// A recording is a stream of the corpus.
type recording struct {
	dir, name string // name without .zsend.zst
}

func (r recording) String() string { return filepath.Base(r.dir) + "/" + r.name }

func (r recording) stream(tb testing.TB) []byte {
	tb.Helper()
	return readZst(tb, filepath.Join(r.dir, r.name+".zsend.zst"))
}

// refusal returns the error that Units is to refuse the stream with, or nil.
func (r recording) refusal() error {
	switch {
	case strings.HasSuffix(r.dir, "h_encrypted") && strings.HasSuffix(r.name, ".w"):
		return ErrRaw // elsewhere -w is of datasets that are not encrypted
	case strings.HasSuffix(r.name, ".redacted"), strings.HasSuffix(r.name, ".frombook"):
		return ErrRedacted
	case strings.HasSuffix(r.name, ".saved"):
		return ErrPartial
	}
	return nil
}

func readZst(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		tb.Fatal(err)
	}
	defer dec.Close()
	if b, err = dec.DecodeAll(b, nil); err != nil {
		tb.Fatalf("%s: %v", path, err)
	}
	return b
}

func recordings(tb testing.TB) []recording {
	tb.Helper()
	paths, err := filepath.Glob(filepath.Join(corpusDir(), "*", "*.zsend.zst"))
	if err != nil || len(paths) == 0 {
		tb.Fatalf("no streams in %s: %v", corpusDir(), err)
	}
	var rs []recording
	for _, p := range paths {
		rs = append(rs, recording{filepath.Dir(p), strings.TrimSuffix(filepath.Base(p), ".zsend.zst")})
	}
	return rs
}

// TestReadCorpus reads every stream, in the byte order it has and the other one,
// and compares it with what zstream dump -v printed. To a Reader also a raw stream
// and a redacted one are streams.
func TestReadCorpus(t *testing.T) {
	streams, records, dumps := 0, 0, 0
	for _, rec := range recordings(t) {
		stream := rec.stream(t)
		r := NewReader(bytes.NewReader(stream))
		sw := NewReader(bytes.NewReader(bigEndian(t, stream)))
		d := &dump{}
		for {
			got, err := r.Next()
			if err == nil && d.last != nil {
				d.add(got.Offset)
			}
			swapped, swerr := sw.Next()
			if !sameRecord(got, swapped) || fmt.Sprint(errors.Unwrap(err)) != fmt.Sprint(errors.Unwrap(swerr)) {
				if !errors.Is(err, ErrChecksum) || !errors.Is(swerr, ErrChecksum) {
					t.Fatalf("%v: in big endian %+v, %v; else %+v, %v", rec, swapped, swerr, got, err)
				}
			}
			if err == io.EOF || errors.Is(err, ErrPartial) && rec.refusal() == ErrPartial {
				break
			}
			if err != nil {
				t.Fatalf("%v: %v", rec, err)
			}
			got.Payload = slices.Clone(got.Payload)
			d.last = &got
			records++
		}
		d.add(int64(len(stream)))
		if r.Offset() != int64(len(stream)) {
			t.Errorf("%v: stopped at %d of %d", rec, r.Offset(), len(stream))
		}
		streams++
		path := filepath.Join(rec.dir, rec.name+".dump.txt.zst")
		if _, err := os.Stat(path); err != nil {
			t.Logf("%v: no dump", rec)
			continue
		}
		dumps++
		want, got := dumpLines(string(readZst(t, path))), slices.Concat(d.lines, d.summary())
		if rec.refusal() == ErrPartial {
			// The last record is not handed out: there is no sum behind it.
			got = d.lines
			want = want[:slices.IndexFunc(want, func(l string) bool { return strings.HasPrefix(l, "Total ") })-1]
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			if len(diff) > 4000 {
				diff = diff[:4000]
			}
			t.Errorf("%v: (-dump +read):\n%s", rec, diff)
		}
	}
	t.Logf("%d streams, %d records, %d dumps", streams, records, dumps)
}

// sameRecord compares all but the byte order.
func sameRecord(a, b Record) bool {
	ah, bh := a.Header, b.Header
	if (ah == nil) != (bh == nil) {
		return false
	}
	if ah != nil {
		x, y := *ah, *bh
		x.BigEndian, y.BigEndian = false, false
		if !gocmp.Equal(x, y) {
			return false
		}
	}
	same := bytes.Equal(a.Payload, b.Payload)
	a.Header, b.Header, a.Payload, b.Payload = nil, nil, nil, nil
	return same && fmt.Sprint(a) == fmt.Sprint(b)
}

// A dump prints records as zstream dump -v does, cut to what a Record has.
type dump struct {
	last  *Record // not yet printed: its length is known when the next begins
	lines []string
	count [numTypes]int
	bytes [numTypes]int64
}

// add prints the last record, behind whose payload comes next.
func (d *dump) add(next int64) {
	r := d.last
	size := next - r.Offset - headerSize
	d.count[r.Type]++
	d.bytes[r.Type] += size
	pf := func(format string, args ...any) { d.lines = append(d.lines, fmt.Sprintf(format, args...)) }
	length := int64(r.Length)
	if r.Start+r.Length == 1<<64-1 {
		length = -1
	}
	switch h := r.Header; r.Type {
	case Begin:
		hdrtype := 1
		if h.Package {
			hdrtype = 2
		}
		pf("BEGIN hdrtype=%d features=%x creation_time=%x type=%d flags=%#x toguid=%x fromguid=%x toname=%s payloadlen=%d",
			hdrtype, uint64(h.Features), h.Creation, h.ObjectSet, uint32(h.Flags), h.ToGUID, h.FromGUID, h.Name, size)
		d.list(h.List)
	case Object:
		pf("OBJECT object=%d type=%d bonustype=%d blksz=%d bonuslen=%d dn_slots=%d", r.Object, r.ObjectType, r.BonusType,
			r.BlockSize, len(r.Payload), r.Slots)
	case FreeObjects:
		pf("FREEOBJECTS firstobj=%d numobjs=%d", r.Object, r.Count)
	case Write:
		pf("WRITE object=%d type=%d compression type=%d offset=%d logical_size=%d payload_size=%d", r.Object, r.ObjectType,
			r.Compression, r.Start, length, len(r.Payload))
	case Free, Redact:
		pf("%v object=%d offset=%d length=%d", r.Type, r.Object, r.Start, length)
	case End:
		pf("END")
	case Spill:
		pf("SPILL object=%d length=%d compression type=%d payload_size=%d", r.Object, r.Length, r.Compression, len(r.Payload))
	case WriteEmbedded:
		pf("WRITE_EMBEDDED object=%d offset=%d length=%d comp=%d lsize=%d psize=%d", r.Object, r.Start, r.Length,
			r.Compression, r.LogicalSize, len(r.Payload))
	case ObjectRange:
		pf("OBJECT_RANGE firstobj=%d numslots=%d", r.Object, r.Count)
	}
}

func (d *dump) list(l nvlist.List) {
	for _, p := range l {
		v := ""
		switch x := p.Value.(type) {
		case nil:
			v = "1"
		case uint64:
			v = fmt.Sprintf("%#x", x)
		case string:
			v = x
		case nvlist.List:
			d.lines = append(d.lines, p.Name+" {")
			d.list(x)
			d.lines = append(d.lines, "}")
			continue
		case []uint8:
			for _, e := range x {
				v += fmt.Sprintf("%#x ", e)
			}
		case []uint64:
			for _, e := range x {
				v += fmt.Sprintf("%#x ", e)
			}
		default:
			v = fmt.Sprintf("%T", x)
		}
		d.lines = append(d.lines, p.Name+" = "+strings.TrimSpace(v))
	}
}

func (d *dump) summary() []string {
	var lines []string
	count, size := 0, int64(0)
	for t := range Type(numTypes) {
		count += d.count[t]
		size += d.bytes[t]
	}
	for _, t := range []Type{Begin, End, Object, FreeObjects, Write, WriteByRef, WriteEmbedded, Free, Spill} {
		lines = append(lines, fmt.Sprintf("Total DRR_%v records = %d (%d bytes)", t, d.count[t], d.bytes[t]))
	}
	return append(lines, fmt.Sprintf("Total records = %d", count), fmt.Sprintf("Total payload size = %d", size),
		fmt.Sprintf("Total header overhead = %d", count*headerSize), fmt.Sprintf("Total stream length = %d", int64(count*headerSize)+size))
}

// kept has what a dump says of each record that a Record has, too.
var kept = map[string][]string{
	"BEGIN":          {"hdrtype", "features", "creation_time", "type", "flags", "toguid", "fromguid", "toname", "payloadlen"},
	"OBJECT":         {"object", "type", "bonustype", "blksz", "bonuslen", "dn_slots"},
	"FREEOBJECTS":    {"firstobj", "numobjs"},
	"WRITE":          {"object", "type", "compression type", "offset", "logical_size", "payload_size"},
	"FREE":           {"object", "offset", "length"},
	"REDACT":         {"object", "offset", "length"},
	"END":            nil,
	"SPILL":          {"object", "length", "compression type", "payload_size"},
	"WRITE_EMBEDDED": {"object", "offset", "length", "comp", "lsize", "psize"},
	"OBJECT_RANGE":   {"firstobj", "numslots"},
}

var (
	dumpField = regexp.MustCompile(`(compression type|\w+) = (\S+)`)
	hexLength = regexp.MustCompile(` \(0x[0-9a-f]+\)$`)
)

// dumpLines cuts a dump to what a dump prints.
func dumpLines(text string) []string {
	var lines []string
	pick := func(what, line string) {
		values := make(map[string]string)
		for _, m := range dumpField.FindAllStringSubmatch(line, -1) {
			if _, ok := values[m[1]]; !ok {
				values[m[1]] = m[2]
			}
		}
		for _, k := range kept[what] {
			what += " " + k + "=" + values[k]
		}
		lines = append(lines, what)
	}
	all := strings.Split(text, "\n")
	for i := 0; i < len(all); i++ {
		line := strings.TrimSpace(all[i])
		what, _, _ := strings.Cut(all[i], " ")
		_, isRecord := kept[what]
		switch {
		case line == "" || line == "SUMMARY:" || strings.HasPrefix(line, "nvlist version: "):
		case line == "BEGIN record":
			block := ""
			for ; strings.TrimSpace(all[i]) != ""; i++ {
				block += all[i]
			}
			pick(what, block)
		case isRecord:
			pick(what, line)
		case strings.HasPrefix(line, "Total "):
			lines = append(lines, hexLength.ReplaceAllString(line, ""))
		case strings.HasSuffix(line, " = (embedded nvlist)"):
			lines = append(lines, strings.TrimSuffix(line, " = (embedded nvlist)")+" {")
		case strings.HasPrefix(line, "(end "):
			lines = append(lines, "}")
		default:
			lines = append(lines, line)
		}
	}
	return lines
}

// blockSize is what payloads are cut to, to be compared: the longest that a stream
// without -L has.
const blockSize = maxSmallBlock

// A place is where data belong: in an object of a snapshot, by the base that the
// stream starts from.
type place struct {
	dir                     string
	to, from, object, from0 uint64
}

// TestUnitsCorpus decodes every payload and compares, block by block, the streams
// that tell the same with different flags: plain, and compressed by any codec, and
// with large and embedded blocks.
func TestUnitsCorpus(t *testing.T) {
	seed := maphash.MakeSeed()
	sums := make(map[place]uint64)
	compared := make(map[Compression]int)
	decoded := make(map[Compression]int)
	var d Decoder
	for _, rec := range recordings(t) {
		want := rec.refusal()
		units := NewUnits(bytes.NewReader(rec.stream(t)))
		var unit *Unit
		var err error
		for unit, err = range units.All() {
			if err != nil {
				break
			}
			if _, _, resumed := unit.Resume(); resumed != strings.HasSuffix(rec.name, ".resumed") {
				t.Errorf("%v: resumed %v", rec, resumed)
			}
			var r Record
			for r, err = range unit.All() {
				if err != nil {
					break
				}
				if r.Type != Write && r.Type != WriteEmbedded && r.Type != Spill {
					continue
				}
				plain, err := d.Decode(&r)
				if err != nil {
					t.Fatalf("%v: record at %d: %v", rec, r.Offset, err)
				}
				if uint64(len(plain)) != r.Length {
					t.Fatalf("%v: record at %d: %d bytes for %d", rec, r.Offset, len(plain), r.Length)
				}
				decoded[r.Compression]++
				if r.Type == Spill {
					continue
				}
				for off := uint64(0); off < r.Length; off += blockSize {
					p := place{rec.dir, unit.ToGUID, unit.FromGUID, r.Object, r.Start + off}
					sum := maphash.Bytes(seed, plain[off:min(off+blockSize, r.Length)])
					if have, ok := sums[p]; !ok {
						sums[p] = sum
					} else if compared[r.Compression]++; have != sum {
						t.Errorf("%v: record at %d: object %d has other data at %d than in another stream", rec, r.Offset, r.Object, r.Start+off)
					}
				}
			}
			if unit.Complete() != (err == nil) {
				t.Errorf("%v: complete %v with error %v", rec, unit.Complete(), err)
			}
			if err != nil {
				break
			}
		}
		if want == nil && err != nil || !errors.Is(err, want) {
			t.Errorf("%v: error %v, want %v", rec, err, want)
		}
		if want != nil && err != nil && testing.Verbose() {
			t.Logf("%v: %v", rec, err)
		}
	}
	t.Logf("decoded %v", decoded)
	t.Logf("compared with another stream %v", compared)
	for _, c := range []Compression{Plain, Gzip1 + 5, ZLE, LZ4, Zstd} {
		if compared[c] == 0 {
			t.Errorf("no block with %v was compared", c)
		}
	}
}

// TestCutCorpus cuts recorded streams at the borders of records and within.
func TestCutCorpus(t *testing.T) {
	cuts := 0
	for _, rec := range recordings(t) {
		stream := rec.stream(t)
		if len(stream) > 200<<10 {
			continue
		}
		splits := splitRecords(stream)
		step := max(1, len(splits)/25)
		for i := 0; i < len(splits); i += step {
			for _, n := range []int{splits[i].at, splits[i].at + 100, splits[i].at + headerSize, splits[i].end - 1} {
				if n == 0 || n >= len(stream) {
					continue
				}
				_, err := readAll(stream[:n])
				if fe, ok := errors.AsType[*FormatError](err); !ok || !errors.Is(err, io.ErrUnexpectedEOF) || fe.Offset > int64(n) {
					t.Errorf("%v: cut at %d: %v", rec, n, err)
				}
				cuts++
			}
		}
	}
	for _, path := range must(filepath.Glob(filepath.Join(corpusDir(), "*", "*.cut.zsend.bin.zst"))) {
		if _, err := readAll(readZst(t, path)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", path, err)
		}
		cuts++
	}
	t.Logf("%d cuts", cuts)
}

// TestFlipCorpus flips bits of recorded streams: there is an error, and what came
// before it is what it was.
func TestFlipCorpus(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	flips := 0
	for _, rec := range recordings(t) {
		stream := rec.stream(t)
		if len(stream) > 100<<10 || rec.refusal() == ErrPartial {
			continue
		}
		all := must(readAll(stream))
		splits := splitRecords(stream)
		for range 50 {
			at := rnd.IntN(len(stream))
			i, _ := slices.BinarySearchFunc(splits, at, func(r split, at int) int { return cmp.Compare(r.end, at+1) })
			// Of the first END of a package nothing is in a sum, nor of its last.
			if r := splits[i]; r.typ == End && (!r.inside || splits[i-1].typ == Begin && all[i-1].Header.Package) {
				continue
			}
			bit := byte(1) << rnd.IntN(8)
			stream[at] ^= bit
			recs, err := readAll(stream)
			if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Offset > int64(len(stream)) || !begin(all, recs) {
				t.Errorf("%v: byte %d, bit %#x: %d records, %v", rec, at, bit, len(recs), err)
			}
			stream[at] ^= bit
			flips++
		}
	}
	t.Logf("%d flips", flips)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
