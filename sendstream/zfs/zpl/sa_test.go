package zpl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secrate/secrate/internal/filetree"
)

// exampleBonus is the bonus of the worked example (section 10.3).
const exampleBonus = `
	5a50 2f00 0508 1800 3800 0000 0000 0000
	a481 0000 0000 0000 0c00 0000 0000 0000
	0a00 0000 0000 0000 0000 0000 0000 0000
	0000 0000 0000 0000 2200 0000 0000 0000
	0400 0000 0884 0000 cf2c 036b 0000 0000
	075a 963b 0000 0000 d02c 036b 0000 0000
	0799 3800 0000 0000 d02c 036b 0000 0000
	06cf a601 0000 0000 cf2c 036b 0000 0000
	075a 963b 0000 0000 0100 0000 0000 0000
	0000 0000 0000 0000 0300 0000 0000 0000
	0000 0010 9f01 1e00 0000 4020 8900 1200
	0000 0040 8900 1200 0101 0000 0000 0000
	0000 0001 0000 0024 0000 0028 0000 0009
	7573 6572 2e6e 6f74 6500 0000 0000 000a
	0000 0002 6869 0000 0000 0000 0000 0000`

// exampleAttr is what it says.
func exampleAttr() Attr {
	return Attr{
		Present: HasAtime | HasMtime | HasCtime | HasCrtime | HasGen | HasMode | HasSize | HasParent | HasLinks |
			HasFlags | HasUID | HasGID | HasDACLCount | HasDACLACEs | HasDXattr | HasProjID,
		Mode: 0o100644, Size: 12, Gen: 10, Parent: 34, Links: 1,
		Flags: FlagACLTrivial | FlagArchive | FlagAVModified | FlagProjID,
		Atime: filetree.Time{Sec: 0x6b032ccf, Nsec: 0x3b965a07}, Mtime: filetree.Time{Sec: 0x6b032cd0, Nsec: 0x389907},
		Ctime: filetree.Time{Sec: 0x6b032cd0, Nsec: 0x1a6cf06}, Crtime: filetree.Time{Sec: 0x6b032ccf, Nsec: 0x3b965a07},
	}
}

// onlyFields leaves out of a comparison of Attrs what is not exported, and packed.
var onlyFields = cmp.Options{cmpopts.IgnoreUnexported(Attr{}), cmpopts.IgnoreFields(Attr{}, "DXattr")}

func TestSA(t *testing.T) {
	r := exampleRegistry(t)
	little := unhex(t, exampleBonus)
	for name, buf := range map[string][]byte{"little": little, "big": swapSA(r, little)} {
		t.Run(name, func(t *testing.T) {
			a, err := r.Decode(TypeSA, buf, nil, binary.LittleEndian)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(exampleAttr(), a, onlyFields); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
			xattrs, err := a.Xattrs()
			if diff := cmp.Diff([]filetree.Xattr{{Name: "user.note", Value: []byte("hi")}}, xattrs); err != nil || diff != "" {
				t.Errorf("extended attributes: %v (-want +got):\n%s", err, diff)
			}
			acl, err := a.ACL()
			want := ACL{Version: 1, Count: 3, ACEs: []ACE{
				{Flags: ACEOwner, Mask: 0x1e019f}, {Flags: ACEOwnGroup | ACEGroup, Mask: 0x120089}, {Flags: ACEEveryone, Mask: 0x120089},
			}}
			if diff := cmp.Diff(want, acl); err != nil || diff != "" {
				t.Errorf("ACL: %v (-want +got):\n%s", err, diff)
			}
			head, ok := DecodeHead(TypeSA, buf, binary.LittleEndian)
			if want := (Head{a.Mode, a.Size, a.Gen, a.UID, a.GID, a.Parent, a.Flags}); !ok || head != want {
				t.Errorf("head %+v %v, want %+v", head, ok, want)
			}
		})
	}
}

// spill returns a spill block of layout 6: extended attributes, and a link's target.
func spill(order binary.ByteOrder, target string, xattrs []byte) []byte {
	w := builder{order: order}
	w.u32(saMagic)
	w.u16(6|16/8<<10, uint16(len(xattrs)), uint16(len(target)), 0, 0, 0)
	w.b = append(w.b, xattrs...)
	w.pad(8)
	w.bytes(target)
	w.pad(512)
	return w.b
}

func TestSASpill(t *testing.T) {
	r := exampleRegistry(t)
	bonus := unhex(t, exampleBonus)
	binary.LittleEndian.PutUint16(bonus[4:], 2|1<<10) // without extended attributes: one length
	bonus = slices.Delete(bonus, 8, 16)
	for name, order := range orders {
		want := exampleAttr()
		want.Present |= HasSymlink
		want.Symlink = []byte("a/b")
		s := spill(order, "a/b", xdrXattrs(filetree.Xattr{Name: "x", Value: []byte{1, 2, 3}}))
		a, err := r.Decode(TypeSA, bonus, s, binary.LittleEndian)
		if diff := cmp.Diff(want, a, onlyFields); err != nil || diff != "" {
			t.Errorf("%s: %v, attributes (-want +got):\n%s", name, err, diff)
		}
		xattrs, err := a.Xattrs()
		if diff := cmp.Diff([]filetree.Xattr{{Name: "user.x", Value: []byte{1, 2, 3}}}, xattrs); err != nil || diff != "" {
			t.Errorf("%s: %v, extended attributes (-want +got):\n%s", name, err, diff)
		}
	}
}

// TestSANothing is about objects that have no attributes yet.
func TestSANothing(t *testing.T) {
	r := exampleRegistry(t)
	empty := builder{order: binary.BigEndian}
	empty.u32(saMagic)
	empty.u16(1|1<<10, 0)
	for name, bonus := range map[string][]byte{"empty": {}, "zeros": make([]byte, 176), "layout 1": empty.b} {
		a, err := r.Decode(TypeSA, bonus, nil, binary.LittleEndian)
		if diff := cmp.Diff(Attr{}, a, onlyFields); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if h, ok := DecodeHead(TypeSA, bonus, binary.LittleEndian); ok {
			t.Errorf("%s: head %+v", name, h)
		}
	}
	if a, err := r.Decode(TypeFUIDSize, make([]byte, 8), nil, binary.LittleEndian); err != nil || a.Present != 0 {
		t.Errorf("bonus of another type: %+v, %v", a, err)
	}
}

func TestSAErrors(t *testing.T) {
	edit := func(f func([]byte) []byte) []byte { return f(unhex(t, exampleBonus)) }
	put16 := func(off int, v uint16) []byte {
		return edit(func(b []byte) []byte { binary.LittleEndian.PutUint16(b[off:], v); return b })
	}
	tests := []struct {
		name  string
		bonus []byte
		spill []byte
		at    int
		is    error
	}{
		{name: "cut in the header", bonus: edit(func(b []byte) []byte { return b[:6] }), at: 6, is: errShort},
		{name: "magic", bonus: edit(func(b []byte) []byte { b[0]++; return b }), at: 0},
		{name: "header behind the end", bonus: edit(func(b []byte) []byte { return b[:15] }), at: 4},
		{name: "header of another size", bonus: put16(4, 5|24/8<<10), at: 4},
		{name: "unknown layout", bonus: put16(4, 9|16/8<<10), at: 4, is: ErrLayout},
		{name: "cut in an attribute", bonus: edit(func(b []byte) []byte { return b[:100] }), at: 88},
		{name: "attribute longer than the rest", bonus: put16(8, 57), at: 184},
		{name: "cut after the lengths", bonus: edit(func(b []byte) []byte { return b[:16] }), at: 16},
		{
			name: "in bonus and spill", bonus: unhex(t, exampleBonus),
			spill: spill(binary.LittleEndian, "t", xdrXattrs()), at: 16, is: ErrTwice,
		},
	}
	r := exampleRegistry(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.Decode(TypeSA, tt.bonus, tt.spill, binary.LittleEndian)
			fe, ok := errors.AsType[*FormatError](err)
			if !ok || fe.Offset != tt.at || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v, want an error at %d", err, tt.at)
			}
		})
	}
	_, err := (*Registry)(nil).Decode(TypeSA, unhex(t, exampleBonus), nil, binary.LittleEndian)
	if !errors.Is(err, ErrLayout) || err.Error() != "zpl: SA bonus at offset 4: unknown layout 5" {
		t.Errorf("without a registry: %v", err)
	}
}

func TestRegistry(t *testing.T) {
	entry := func(name string, v uint64) Entry { return Entry{Name: []byte(name), IntSize: 8, Value: v} }
	for _, tt := range []struct {
		name              string
		registry, layouts []Entry
	}{
		{name: "length", registry: []Entry{entry("ZPL_MODE", 4<<24|5)}},
		{name: "id twice", registry: []Entry{entry("ZPL_MODE", 8<<24|5), entry("ZPL_SIZE", 8<<24|5)}},
		{name: "several integers", registry: []Entry{layoutEntry("ZPL_MODE", 5, 6)}},
		{name: "no number", layouts: []Entry{layoutEntry("x", 5)}},
		{name: "number too high", layouts: []Entry{layoutEntry("1024", 5)}},
		{name: "number too low", layouts: []Entry{layoutEntry("1", 5)}},
	} {
		if _, err := NewRegistry(tt.registry, tt.layouts); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}

	// A layout that is damaged harms only those who use it; attributes that are not
	// known are kept.
	other := entry("COM_APPLE", 12<<24|uint64(ClassUint32)<<16|40)
	wide := layoutEntry("4", 5)
	wide.IntSize = 8
	many := layoutEntry("5", slices.Repeat([]uint64{40}, maxFields+1)...)
	r, err := NewRegistry(append(registryEntries(), other), []Entry{
		layoutEntry("2", 40, 5), layoutEntry("3", 5, 41), wide, many, layoutEntry("6", 5, 5),
	})
	if err != nil {
		t.Fatal(err)
	}
	buf := func(layout uint16) []byte {
		w := builder{order: binary.BigEndian}
		w.u32(saMagic)
		w.u16(layout|1<<10, 0)
		w.bytes("twelve bytes")
		w.pad(8)
		w.u64(0o100600)
		return w.b
	}
	want := Attr{Present: HasMode, Mode: 0o100600, Other: []Opaque{{40, ClassUint32, []byte("twelve bytes")}}}
	a, err := r.Decode(TypeSA, buf(2), nil, binary.LittleEndian)
	if diff := cmp.Diff(want, a, onlyFields); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for layout := uint16(3); layout <= 6; layout++ {
		if _, err := r.Decode(TypeSA, buf(layout), nil, binary.LittleEndian); err == nil || errors.Is(err, ErrLayout) || errors.Is(err, ErrTwice) {
			t.Errorf("layout %d: %v", layout, err)
		}
	}
}

func TestRdev(t *testing.T) {
	for rdev, want := range map[uint64][2]uint32{
		1<<20 | 3:       {1, 3},
		259<<20 | 70000: {259, 70000},
		5<<32 | 1:       {5, 1},
		0:               {0, 0},
	} {
		if major, minor := SplitRdev(rdev); want != [2]uint32{major, minor} {
			t.Errorf("%#x: %d:%d, want %v", rdev, major, minor, want)
		}
	}
}

func TestTimes(t *testing.T) {
	for _, tt := range []struct {
		sec, nsec uint64
		want      filetree.Time
	}{
		{^uint64(0), 5, filetree.Time{Sec: -1, Nsec: 5}},
		{1, 1_000_000_000, filetree.Time{Sec: 1, Nsec: 999_999_999}},
		{1, ^uint64(0), filetree.Time{Sec: 1, Nsec: 999_999_999}},
	} {
		if got := timeOf(tt.sec, tt.nsec); got != tt.want {
			t.Errorf("%d, %d: %v", tt.sec, tt.nsec, got)
		}
	}
}

func TestFlags(t *testing.T) {
	f := FlagImmutable | FlagAppendOnly | FlagNoDump | FlagProjectInherit | FlagArchive | FlagHidden
	if got := f.FS(); got != 0x20000070 {
		t.Errorf("%#x", got)
	}
	if got := FlagNoise; fmt.Sprintf("%#x", uint64(got)) != "0x40800000100" {
		t.Errorf("noise %#x", uint64(got))
	}
}
