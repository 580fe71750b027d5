package zpl

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secrate/secrate/internal/filetree"
)

// checkError checks that an error is a FormatError that points into size bytes.
func checkError(t *testing.T, err error, size int) {
	t.Helper()
	if err == nil {
		return
	}
	if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Offset < 0 || fe.Offset > size {
		t.Fatalf("%v of %d bytes", err, size)
	}
}

// eachSeed calls f with the last dataset of each case of the corpus.
func eachSeed(f *testing.F, use func(d *dataset)) {
	f.Helper()
	for _, paths := range recordings(f) {
		if last := lastDataset(f, paths); last != nil {
			use(last)
		}
	}
}

func byteOrder(big bool) binary.ByteOrder {
	if big {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// FuzzSA decodes a bonus and a spill block. Layout 7 is made of the input.
func FuzzSA(f *testing.F) {
	seen := make(map[uint16]bool)
	eachSeed(f, func(d *dataset) {
		for _, o := range d.objects {
			_, layout, _, _ := saHeader(o.bonus)
			if o.bonusType == TypeSA && !seen[layout] {
				seen[layout] = true
				f.Add(o.bonus, o.spill, []byte{5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 16, 19, 20})
			}
		}
	})
	example := unhex(f, exampleBonus)
	f.Add(example, []byte{}, []byte{})
	f.Add(swapSA(exampleRegistry(f), example), spill(binary.BigEndian, "t", xdrXattrs()), []byte{17, 20})
	f.Fuzz(func(t *testing.T, bonus, spill, layout []byte) {
		ids := make([]uint64, 0, len(layout))
		for _, id := range layout {
			ids = append(ids, uint64(id))
		}
		layouts := []Entry{
			layoutEntry("2", 5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 21, 16, 19),
			layoutEntry("4", 5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 16, 19, 17),
			layoutEntry("5", 5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 21, 16, 19, 20),
			layoutEntry("6", 20, 17),
			{Name: []byte("7"), IntSize: 2, Values: ids},
		}
		registry := append(registryEntries(), Entry{Name: []byte("X"), IntSize: 8, Value: 4<<24 | 1<<16 | 40},
			Entry{Name: []byte("Y"), IntSize: 8, Value: 41})
		r, err := NewRegistry(registry, layouts)
		if err != nil {
			t.Fatal(err)
		}
		if len(spill) == 0 {
			spill = nil
		}
		a, err := r.Decode(TypeSA, bonus, spill, binary.LittleEndian)
		checkError(t, err, max(len(bonus), len(spill)))
		DecodeHead(TypeSA, bonus, binary.LittleEndian)
		if err != nil {
			return
		}
		checkParts(t, &a)

		// The same in the other order, unless there is something swapSA cannot do.
		order, _, _, _ := saHeader(bonus)
		spillOrder, _, _, _ := saHeader(spill)
		if order != binary.LittleEndian || spill != nil && spillOrder != binary.LittleEndian || len(a.Other) > 0 {
			return
		}
		b, err := r.Decode(TypeSA, swapSA(r, bonus), swapSA(r, spill), binary.LittleEndian)
		if diff := cmp.Diff(a, b, cmpopts.IgnoreUnexported(Attr{})); err != nil || diff != "" {
			t.Fatalf("swapped: %v (-before +after):\n%s", err, diff)
		}
	})
}

// checkParts decodes what is packed in attributes.
func checkParts(t *testing.T, a *Attr) {
	_, err := a.Xattrs()
	checkError(t, err, len(a.DXattr))
	acl, err := a.ACL()
	checkError(t, err, max(len(a.dacl), len(a.znodeACL)))
	if err == nil {
		packed := AppendACEs(nil, acl.ACEs)
		again, err := ParseACEs(packed, 1, uint64(len(acl.ACEs)), binary.LittleEndian)
		if diff := cmp.Diff(acl.ACEs, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Fatalf("ACL: %v (-before +after):\n%s", err, diff)
		}
	}
	_, _, err = a.ACLXattr()
	checkError(t, err, max(len(a.dacl), len(a.znodeACL)))
	if a.Atime.Nsec > 999_999_999 || a.Mtime.Nsec > 999_999_999 {
		t.Fatalf("times %v %v", a.Atime, a.Mtime)
	}
}

func FuzzZAPBlock(f *testing.F) {
	large := 0
	eachSeed(f, func(d *dataset) {
		for _, o := range d.objects {
			for i, b := range o.zap {
				if len(b) <= 1024 || len(b) <= 16384 && large < 8 {
					f.Add(b, i, false)
					if len(b) > 1024 {
						large++
					}
				}
			}
		}
	})
	for _, order := range orders {
		leaf, _ := leafBlock(order, 1024, Entry{Name: []byte("a rather long name of 30 bytes"), IntSize: 8, Value: 5},
			layoutEntry("2", 5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 21, 16, 19))
		f.Add(leaf, uint64(1), order == binary.BigEndian)
		f.Add(headerBlock(order, 1024, 2), uint64(0), order == binary.BigEndian)
	}
	f.Fuzz(func(t *testing.T, block []byte, index uint64, big bool) {
		before := slices.Clone(block)
		b, err := DecodeBlock(block, index, byteOrder(big))
		checkError(t, err, len(block))
		if !slices.Equal(before, block) {
			t.Fatal("the block was changed")
		}
		if err != nil {
			return
		}
		size := 0
		for i := range b.Entries {
			e := &b.Entries[i]
			size += len(e.Name) + len(e.Values)
			if _, err := e.Dirent(); err == nil && filetree.CheckName(string(e.Name)) != nil && len(e.Name) <= filetree.MaxName {
				t.Fatalf("name %q", e.Name)
			}
		}
		if size > len(block) {
			t.Fatalf("names and values of %d bytes in a block of %d", size, len(block))
		}
		for range b.Pointers() {
		}
		if _, err := DecodeMaster(b.Entries); !errors.Is(err, ErrVersion) {
			checkError(t, err, 0)
		}
		_, _, err = DecodeSAMaster(b.Entries)
		checkError(t, err, 0)
		_, err = DecodeDeleteQueue(b.Entries)
		checkError(t, err, 0)
		_, err = NewRegistry(b.Entries, nil)
		checkError(t, err, 0)
		_, err = NewRegistry(registryEntries(), b.Entries)
		checkError(t, err, 0)
		if b.Order == binary.LittleEndian && b.Kind != PointerTable {
			again, err := DecodeBlock(swapZAP(block), index, byteOrder(big))
			if diff := cmp.Diff(b.Entries, again.Entries); err != nil || diff != "" {
				t.Fatalf("swapped: %v (-before +after):\n%s", err, diff)
			}
		}
	})
}

func FuzzZnode(f *testing.F) {
	for _, order := range orders {
		for version := range uint16(2) {
			big := order == binary.BigEndian
			f.Add(znodeBonus(order, 0o120777, 7, 0, trivialACL(order, version), "tar/get\x00"), big)
			f.Add(znodeBonus(order, 0o100644, 7, FlagScanStamp, trivialACL(order, version), string(make([]byte, 32))), big)
		}
	}
	f.Fuzz(func(t *testing.T, bonus []byte, big bool) {
		order := byteOrder(big)
		a, err := DecodeZnode(bonus, order)
		checkError(t, err, len(bonus))
		h, ok := DecodeHead(TypeZnode, bonus, order)
		if ok != (err == nil) {
			t.Fatalf("head %v, %v", ok, err)
		}
		if err != nil {
			return
		}
		if h != (Head{a.Mode, a.Size, a.Gen, a.UID, a.GID, a.Parent, a.Flags}) {
			t.Fatalf("head %+v of %+v", h, a)
		}
		if a.Present.Has(HasSymlink) && uint64(len(a.Symlink)) != a.Size {
			t.Fatalf("target of %d bytes, size %d", len(a.Symlink), a.Size)
		}
		checkParts(t, &a)
	})
}

func FuzzFUID(f *testing.F) {
	table := fuidTable("fuid_nvlist", domain{1, "S-1-5-21-1-2-3"}, domain{2, "S-1-5-32"})
	f.Add(table, uint64(len(table)), uint64(1<<32|513))
	f.Fuzz(func(t *testing.T, data []byte, size, id uint64) {
		d, err := ParseDomains(data, size)
		checkError(t, err, len(data))
		sid, ok := d.SID(FUID(id))
		if _, posix := FUID(id).POSIX(); ok && (posix || sid == "") {
			t.Fatalf("%#x is %q", id, sid)
		}
	})
}
