package zfs

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

func TestUnits(t *testing.T) {
	b := new(builder).pkg(payload(resumeList...)).
		begin(1, FeatureSASpill).free(1, 0, 512).rec(End).
		begin(1, 0, u32(32, 3), u64(40, 2), u64(48, ownGUID), u32(36, uint64(FlagClone)), name("t/vol@--head--")).rec(End).
		rec(End).
		begin(1, FeatureResuming, payload(resumeList...)).free(2, 0, 512).free(3, 0, 512).rec(End)
	units := NewUnits(bytes.NewReader(mend(slices.Clone(b.b), false)))
	var got []Unit
	var objects []uint64
	for u, err := range units.All() {
		if err != nil {
			t.Fatal(err)
		}
		if u.Complete() {
			t.Error("complete before the first record")
		}
		got = append(got, *u)
		for rec, err := range u.All() {
			if err != nil {
				t.Fatal(err)
			}
			objects = append(objects, rec.Object)
			if u.Complete() {
				t.Error("complete before the last record")
			}
		}
		if _, err := u.Next(); err != io.EOF || !u.Complete() {
			t.Errorf("%s: complete %v, then %v", u.Name, u.Complete(), err)
		}
	}
	list, _ := nvlist.Parse(resumeList)
	flags := FlagSpillBlock | FlagFreeRecords
	want := []Unit{
		{Header: Header{Features: FeatureSASpill, Flags: flags, ObjectSet: FileSystem, Creation: 1000, ToGUID: ownGUID, Name: "t/fs@s"},
			Offset: 2*headerSize + int64(len(resumeList)), Package: list},
		{Header: Header{Flags: FlagClone, ObjectSet: Volume, Creation: 1000, ToGUID: 2, FromGUID: ownGUID, Name: "t/vol@--head--"},
			Offset: 5*headerSize + int64(len(resumeList)), Package: list},
		{Header: Header{Features: FeatureResuming, Flags: flags, ObjectSet: FileSystem, Creation: 1000, ToGUID: ownGUID, Name: "t/fs@s", List: list},
			Offset: 8*headerSize + int64(len(resumeList))},
	}
	if diff := gocmp.Diff(want, got, cmpopts.IgnoreUnexported(Unit{})); diff != "" {
		t.Errorf("units (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff([]uint64{1, 2, 3}, objects); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	if _, err := units.Next(); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
	if units.Offset() != int64(len(b.b)) {
		t.Errorf("offset %d of %d", units.Offset(), len(b.b))
	}

	u := &got[1]
	if u.Dataset() != "t/vol" || u.Snapshot() != "--head--" || !u.Head() || !u.Incremental() {
		t.Errorf("dataset %s, snapshot %s, head %v, incremental %v", u.Dataset(), u.Snapshot(), u.Head(), u.Incremental())
	}
	u = &got[2]
	if object, offset, ok := u.Resume(); object != 4 || offset != 1310720 || !ok || u.Head() || u.Incremental() {
		t.Errorf("resume %d, %d, %v, head %v, incremental %v", object, offset, ok, u.Head(), u.Incremental())
	}
}

// TestUnitsSkip: what has not been read of a unit is read, and checked, by Next.
func TestUnitsSkip(t *testing.T) {
	one := newStream(0).free(1, 0, 512).free(2, 0, 512).end()
	units := NewUnits(bytes.NewReader(slices.Concat(one, one, one[:len(one)-headerSize])))
	first, err := units.Next()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Next(); err != nil {
		t.Fatal(err)
	}
	second, err := units.Next()
	if err != nil {
		t.Fatal(err)
	}
	if !first.Complete() || second.Complete() || second.Offset != int64(len(one)) {
		t.Errorf("complete %v and %v, second at %d", first.Complete(), second.Complete(), second.Offset)
	}
	third, err := units.Next()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Next(); err != io.EOF {
		t.Errorf("record of a complete unit: %v", err)
	}
	if _, err := units.Next(); !errors.Is(err, ErrPartial) {
		t.Errorf("unit without END: %v", err)
	}
	if _, err := third.Next(); !errors.Is(err, ErrPartial) || third.Complete() {
		t.Errorf("record of it: %v; complete %v", err, third.Complete())
	}

	units = NewUnits(bytes.NewReader(slices.Concat(one, one)))
	if _, err := units.Next(); err != nil {
		t.Fatal(err)
	}
	stranger := &Unit{units: units}
	if _, err := stranger.Next(); err != errPassed {
		t.Errorf("record of a unit that is not the last: %v", err)
	}
}

// listOf packs a list of one array of two numbers, native, little endian.
func listOf(name string) []byte {
	size := (16+len(name)+1+7)&^7 + 16
	b := append([]byte{0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, byte(size), 0, 0, 0, byte(len(name)+1), 0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0)
	b = append(b, name...)
	b = append(b, make([]byte, 12+size-16-len(b))...)
	return append(b, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

func TestRefusals(t *testing.T) {
	full := func(features Features, more ...field) *builder { return newStream(features, more...) }
	tests := []struct {
		name string
		b    *builder
		at   int64
		err  error
		say  string
	}{
		{"raw", full(FeatureRaw), 0, ErrRaw, "leave out --raw (-w)"},
		{"raw by its list", full(0, payload(listOf("crypt_keydata")...)), 0, ErrRaw, "leave out --raw (-w)"},
		{"raw in a package", new(builder).pkg().begin(1, FeatureRaw), 2 * headerSize, ErrRaw, "leave out --raw (-w)"},
		{"redacted", full(FeatureRedacted), 0, ErrRedacted, "leave out --redact (-d)"},
		{"redacted by its list", full(0, payload(listOf("redact_snaps")...)), 0, ErrRedacted, "leave out --redact (-d)"},
		{"redacted base", full(0, payload(listOf("redact_from_snaps")...)), 0, ErrRedacted, "send from a snapshot that is not redacted"},
		{"redacted by a record", full(0).rec(Redact, u64(8, 1)), headerSize, ErrRedacted, "leave out --redact (-d)"},
		{"dedup", full(FeatureDedup | FeatureDedupProps), 0, ErrDedup, "leave out --dedup (-D)"},
		{"dedup package", new(builder).begin(2, FeatureDedup).rec(End), 0, ErrDedup, "leave out --dedup (-D)"},
		{"dedup by a record", full(0).rec(WriteByRef, u64(8, 1)), headerSize, ErrDedup, "leave out --dedup (-D)"},
		{"object set", full(0, u32(32, 1)), 0, ErrObjectSet, "object set of type 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			units := NewUnits(bytes.NewReader(tt.b.end()))
			var err error
			for err == nil {
				_, err = units.Next()
			}
			fe, ok := errors.AsType[*FormatError](err)
			if !ok || !errors.Is(err, tt.err) || fe.Offset != tt.at || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("error %v, want %v at %d", err, tt.err, tt.at)
			}
			if _, again := units.Next(); again != err {
				t.Errorf("then %v", again)
			}
		})
	}
	// Features that say "may".
	for _, f := range []Features{FeatureDedupProps, FeatureHolds | FeatureSwitchToLargeBlocks, FeatureLongName | FeatureLargeMicroZAP} {
		if _, err := NewUnits(bytes.NewReader(full(f).end())).Next(); err != nil {
			t.Errorf("features %#x: %v", uint64(f), err)
		}
	}
}
