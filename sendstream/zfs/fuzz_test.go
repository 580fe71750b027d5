package zfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// FuzzReader: no input makes it panic, errors point inside of the input, records
// follow each other, and what is cut is no stream.
func FuzzReader(f *testing.F) {
	f.Add(testStream())
	f.Add(bigEndian(f, testStream()))
	for _, rec := range recordings(f) {
		// What is small when packed and large when not is no good seed either.
		if st, err := os.Stat(filepath.Join(rec.dir, rec.name+".zsend.zst")); err != nil || st.Size() > 4096 {
			continue
		}
		if s := rec.stream(f); len(s) <= 6<<10 {
			f.Add(s)
			f.Add(bigEndian(f, s))
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		for _, s := range [][]byte{stream, mend(bytes.Clone(stream), false), mend(bytes.Clone(stream), true)} {
			r := NewReader(bytes.NewReader(s))
			var d Decoder
			var last int64 = -1
			var err error
			for {
				var rec Record
				if rec, err = r.Next(); err != nil {
					break
				}
				if rec.Offset <= last || rec.Offset >= r.Offset() || r.Offset() > int64(len(s)) {
					t.Fatalf("record at %d after %d; %d of %d bytes read", rec.Offset, last, r.Offset(), len(s))
				}
				last = rec.Offset
				if rec.Start > rec.End() || rec.Object+rec.Count < rec.Object || rec.LogicalSize > maxBlock {
					t.Fatalf("%+v", rec)
				}
				if rec.Type == Write || rec.Type == WriteEmbedded || rec.Type == Spill {
					got, err := d.Decode(&rec)
					if err == nil && uint64(len(got)) != rec.Length || err != nil && !errors.Is(err, ErrEncoded) {
						t.Fatalf("%d bytes for %d, %v", len(got), rec.Length, err)
					}
				}
			}
			checkError(t, err, s)
			if err == io.EOF {
				if _, err := readAll(s[:len(s)-1]); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("without its last byte: %v", err)
				}
			}

			units := NewUnits(bytes.NewReader(s))
			for u, err := range units.All() {
				for err == nil {
					_, err = u.Next()
				}
				checkError(t, err, s)
				if (err == io.EOF) != (u != nil && u.Complete()) {
					t.Fatalf("complete %v with %v", u.Complete(), err)
				}
			}
		}
	})
}

func checkError(t *testing.T, err error, s []byte) {
	t.Helper()
	fe, ok := errors.AsType[*FormatError](err)
	if err != io.EOF && (!ok || fe.Offset < 0 || fe.Offset > int64(len(s))) {
		t.Fatalf("%v of %d bytes", err, len(s))
	}
}

// FuzzDecode: no data make a codec panic, yield another length than was promised,
// or depend on what it decoded before.
func FuzzDecode(f *testing.F) {
	text := []byte("all work and no play all work and no play all work and no play")
	f.Add(byte(LZ4), uint32(101+5), lz4Of(lz4Seq("x", 1, 100), lz4Seq("12345", 0, 0)))
	f.Add(byte(LZJB), uint32(len(text)), lzjbOf(text))
	f.Add(byte(ZLE), uint32(len(text)), zleOf(text))
	f.Add(byte(Gzip1), uint32(len(text)), gzipOf(text))
	f.Add(byte(Zstd), uint32(len(text)), zstdOf(f, text))
	f.Add(byte(Off), uint32(len(text)), text)
	seen := make(map[Compression]int)
	for _, rec := range recordings(f) {
		if st, err := os.Stat(filepath.Join(rec.dir, rec.name+".zsend.zst")); err != nil || st.Size() > 48<<10 {
			continue
		}
		recs, _ := readAll(rec.stream(f))
		for _, r := range recs {
			if (r.Type == Write || r.Type == WriteEmbedded) && r.Compression != Plain && len(r.Payload) <= 4096 && seen[r.Compression] < 20 {
				seen[r.Compression]++
				f.Add(byte(r.Compression), r.LogicalSize, r.Payload)
			}
		}
	}
	var d Decoder
	f.Fuzz(func(t *testing.T, by byte, size uint32, data []byte) {
		rec := write(Compression(by%18), int(size%(256<<10)), data)
		got, err := d.Decode(rec)
		switch {
		case err != nil && !errors.Is(err, ErrEncoded):
			t.Fatal(err)
		case err == nil && len(got) != int(rec.LogicalSize):
			t.Fatalf("%d bytes for %d", len(got), rec.LogicalSize)
		case err != nil:
			return
		}
		first := slices.Clone(got)
		for i := range d.out[:cap(d.out)] {
			d.out[:cap(d.out)][i] = 0xa5
		}
		if again, err := d.Decode(rec); err != nil || !bytes.Equal(again, first) {
			t.Fatalf("the second time it is something else: %v", err)
		}
	})
}

// FuzzApply: no stream makes it panic or break what it promises to the tree, an error
// leaves what there was, and what it makes is a tree. Sums are made right, so that more
// than they is tried. What a full stream made it makes again.
func FuzzApply(f *testing.F) {
	for seed := range 6 {
		streams := rapid.Custom(func(t *rapid.T) []byte {
			s, was := newSimSet(2, 5), (*simSet)(nil)
			var all []byte
			for guid := range uint64(3) {
				for range 5 {
					s.change(t)
				}
				all = append(all, s.send(was, guid+1, guid, seed%2 == 0)...)
				was = s.clone()
			}
			return all
		})
		f.Add(streams.Example(seed))
	}
	for _, rec := range recordings(f) {
		if st, err := os.Stat(filepath.Join(rec.dir, rec.name+".zsend.zst")); err != nil || st.Size() > 4096 {
			continue
		}
		if s := rec.stream(f); len(s) <= 64<<10 {
			f.Add(s)
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		stream = mend(bytes.Clone(stream), false)
		m := newModel()
		units := NewUnits(bytes.NewReader(stream))
		for u, err := range units.All() {
			if err != nil {
				checkError(t, err, stream)
				return
			}
			next, err := applyUnit(t, m, u)
			if err != nil {
				if !errors.Is(err, ErrState) {
					checkError(t, err, stream)
				}
				continue
			}
			if m = next; u.Incremental() {
				continue
			}
			begin, end := u.Offset, units.Offset()
			for _, lost := range []bool{false, true} {
				again := m.clone()
				if lost {
					again.forget()
				}
				v, err := NewUnits(bytes.NewReader(stream[begin:end])).Next()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := applyUnit(t, again, v); err != nil {
					t.Fatalf("again, lost=%v: %v", lost, err)
				}
			}
		}
	})
}
