package zpl

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// richACL is an ACL with everything that section 4.6 lists. No real stream at hand has
// one.
var richACL = []ACE{
	{Type: ACEDeny, Flags: ACEOwner, Mask: 2},
	{Type: ACEAllow, Flags: 3, Mask: 1, Who: 1000},
	{Type: ACEAllow, Flags: ACEGroup, Mask: 0x120089, Who: 1<<32 | 513},
	{Type: 5, Flags: ACEOwner, Mask: 4, Who: 7, Object: [16]byte{1, 2}, InheritedObject: [16]byte{15: 9}},
	{Type: 2, Flags: ACEEveryone, Mask: 8, Who: 5},
	{Type: ACEAllow, Flags: ACEOwnGroup | ACEGroup, Mask: 0x10},
	{Type: ACEAllow, Flags: ACEEveryone | 0xb, Mask: 0x20},
}

// pack writes entries of version 1 in any order.
func pack(order binary.ByteOrder, aces []ACE) []byte {
	w := builder{order: order}
	for _, e := range aces {
		w.u16(e.Type, e.Flags)
		w.u32(e.Mask)
		switch who := e.Flags & 0x7040; {
		case e.Type <= 1 && (who == 0x1000 || who == 0x2040 || who == 0x4000):
		case e.Type >= 5 && e.Type <= 8:
			w.u64(uint64(e.Who))
			w.b = append(append(w.b, e.Object[:]...), e.InheritedObject[:]...)
		default:
			w.u64(uint64(e.Who))
		}
	}
	return w.b
}

func TestACEs(t *testing.T) {
	for name, order := range orders {
		b := pack(order, richACL)
		if len(b) != 8+16+16+48+16+8+8 {
			t.Fatalf("%d bytes", len(b))
		}
		got, err := ParseACEs(b, 1, uint64(len(richACL)), order)
		if diff := cmp.Diff(richACL, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if diff := cmp.Diff(pack(binary.LittleEndian, richACL), AppendACEs(nil, got)); diff != "" {
			t.Errorf("%s: written (-want +got):\n%s", name, diff)
		}
		for n := range len(b) {
			_, err := ParseACEs(b[:n], 1, uint64(len(richACL)), order)
			if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Offset > n {
				t.Fatalf("%s: cut at %d: %v", name, n, err)
			}
		}
	}
	for _, count := range []uint64{22, 1 << 60, ^uint64(0)} {
		if _, err := ParseACEs(make([]byte, 168), 1, count, binary.LittleEndian); err == nil {
			t.Errorf("%d entries in 168 bytes", count)
		}
	}
	if _, err := ParseACEs(nil, 2, 0, binary.LittleEndian); err == nil {
		t.Error("version 2")
	}
}

func TestACLXattr(t *testing.T) {
	packed := pack(binary.BigEndian, richACL)
	rich := Attr{Present: HasDACLACEs | HasDACLCount, dacl: packed, daclCount: uint64(len(richACL)), order: binary.BigEndian}
	trivial := rich
	trivial.Flags = FlagACLTrivial
	damaged := rich
	damaged.daclCount++
	// One whose entries are in another object.
	w := builder{order: binary.BigEndian}
	w.u64(4711)
	w.u32(uint32(len(packed)))
	w.u16(1, uint16(len(richACL)))
	external := Attr{Present: HasZnodeACL, znodeACL: append(w.b, make([]byte, 72)...), order: binary.BigEndian}

	x, ok, err := rich.ACLXattr()
	want := filetree.Xattr{Name: "secrate.zfs_acl", Value: pack(binary.LittleEndian, richACL)}
	if diff := cmp.Diff(want, x); !ok || err != nil || diff != "" {
		t.Errorf("%v %v (-want +got):\n%s", ok, err, diff)
	}
	for name, a := range map[string]*Attr{"none": {}, "trivial": &trivial, "external": &external} {
		if x, ok, err := a.ACLXattr(); ok || err != nil {
			t.Errorf("%s: %v %v", name, x, err)
		}
	}
	if _, ok, err := damaged.ACLXattr(); ok || err == nil {
		t.Errorf("damaged: %v %v", ok, err)
	}
	acl, err := external.ACL()
	if diff := cmp.Diff(ACL{External: 4711, Version: 1, Count: uint64(len(richACL))}, acl); err != nil || diff != "" {
		t.Errorf("external: %v (-want +got):\n%s", err, diff)
	}
}

func TestXattrNames(t *testing.T) {
	for stored, want := range map[string]string{
		"user.x": "user.x", "x": "user.x", "trusted.a": "trusted.a", "security.selinux": "security.selinux",
		"system.posix_acl_access": "system.posix_acl_access", "freebsd:system:x": "freebsd:system:x",
		"users.x": "user.users.x", "user": "user.user",
	} {
		if got := XattrName(stored); got != want {
			t.Errorf("%q: %q, want %q", stored, got, want)
		}
	}
}

func TestXattrs(t *testing.T) {
	x := func(name, value string) filetree.Xattr { return filetree.Xattr{Name: name, Value: []byte(value)} }
	a := Attr{DXattr: xdrXattrs(x("user.b", "2"), x("user.a", ""), x("c", "three"))}
	got, err := a.Xattrs()
	if diff := cmp.Diff([]filetree.Xattr{x("user.a", ""), x("user.b", "2"), x("user.c", "three")}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	merged := MergeXattrs(got, []filetree.Xattr{x("user.b", "other"), x("security.x", "4")})
	if diff := cmp.Diff([]filetree.Xattr{x("security.x", "4"), x("user.a", ""), x("user.b", "2"), x("user.c", "three")}, merged); diff != "" {
		t.Errorf("merged (-want +got):\n%s", diff)
	}

	number := builder{b: []byte{1, 1, 0, 0}, order: binary.BigEndian}
	number.u32(0, 1, 28, 8, 1)
	number.bytes("n\x00\x00\x00")
	number.u32(uint32(nvlist.Uint32), 1, 7, 0, 0)
	for name, b := range map[string][]byte{
		"twice":          xdrXattrs(x("user.a", ""), x("a", "")),
		"without a name": xdrXattrs(x("", "v")),
		"a number":       number.b,
		"cut":            a.DXattr[:len(a.DXattr)-1],
	} {
		got, err := (&Attr{DXattr: b}).Xattrs()
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}
