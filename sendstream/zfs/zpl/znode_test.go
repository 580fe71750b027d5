package zpl

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

// Old znodes are not in the corpus. These are written by the table of section 4.4.

// znodeBonus returns a bonus of type 17 with rest behind it.
func znodeBonus(order binary.ByteOrder, mode, size uint64, flags Flags, acl []byte, rest string) []byte {
	w := builder{order: order}
	w.u64(100, 1, 200, 2, 300, 3, ^uint64(0), 4) // atime, mtime, ctime, crtime
	w.u64(77, mode, size, 34, 2, 99, 8<<20|17, uint64(flags))
	w.u64(1000, 5<<32|1001) // uid, gid
	w.u64(0, 0, 0, 0)
	w.b = append(w.b, acl...)
	w.b = append(w.b, make([]byte, znodeSize-len(w.b))...)
	w.bytes(rest)
	return w.b
}

// trivialACL returns the 88 bytes with the usual entries of mode 0644.
func trivialACL(order binary.ByteOrder, version uint16) []byte {
	w := builder{order: order}
	w.u64(0)
	if version == 0 {
		w.u32(3)
		w.u16(0, 36)
		for _, e := range []struct {
			flags uint16
			mask  uint32
		}{{ACEOwner, 0x1e019f}, {ACEOwnGroup | ACEGroup, 0x120089}, {ACEEveryone, 0x120089}} {
			w.u32(^uint32(0), e.mask)
			w.u16(e.flags, ACEAllow)
		}
		return w.b
	}
	w.u32(24)
	w.u16(1, 3)
	w.u16(ACEAllow, ACEOwner)
	w.u32(0x1e019f)
	w.u16(ACEAllow, ACEOwnGroup|ACEGroup)
	w.u32(0x120089)
	w.u16(ACEAllow, ACEEveryone)
	w.u32(0x120089)
	return w.b
}

func TestZnode(t *testing.T) {
	base := Attr{
		Present: HasAtime | HasMtime | HasCtime | HasCrtime | HasGen | HasMode | HasSize | HasParent |
			HasLinks | HasXattr | HasRdev | HasFlags | HasUID | HasGID | HasZnodeACL,
		Atime: filetree.Time{Sec: 100, Nsec: 1}, Mtime: filetree.Time{Sec: 200, Nsec: 2},
		Ctime: filetree.Time{Sec: 300, Nsec: 3}, Crtime: filetree.Time{Sec: -1, Nsec: 4},
		Gen: 77, Parent: 34, Links: 2, Xattr: 99, Rdev: 8<<20 | 17, UID: 1000, GID: 5<<32 | 1001,
	}
	tests := []struct {
		name  string
		mode  uint64
		size  uint64
		flags Flags
		rest  string
		want  func(*Attr)
	}{
		{name: "file", mode: 0o100644, size: 5, want: func(*Attr) {}},
		{name: "file with more behind", mode: 0o100644, size: 5, rest: strings.Repeat("s", 40), want: func(*Attr) {}},
		{name: "scanned file", mode: 0o100644, flags: FlagScanStamp, rest: strings.Repeat("s", 40), want: func(a *Attr) {
			a.ScanStamp, a.Present = []byte(strings.Repeat("s", 32)), a.Present|HasScanStamp
		}},
		{name: "stamp cut off", mode: 0o100644, flags: FlagScanStamp, rest: "stamp", want: func(*Attr) {}},
		{name: "link", mode: 0o120777, size: 7, rest: "tar/get\x00", want: func(a *Attr) {
			a.Symlink, a.Present = []byte("tar/get"), a.Present|HasSymlink
		}},
		{name: "link that fills the bonus", mode: 0o120777, size: 56, rest: strings.Repeat("x", 56), want: func(a *Attr) {
			a.Symlink, a.Present = []byte(strings.Repeat("x", 56)), a.Present|HasSymlink
		}},
		{name: "link with its target elsewhere", mode: 0o120777, size: 57, rest: strings.Repeat("x", 56), want: func(*Attr) {}},
		{name: "link of absurd size", mode: 0o120777, size: ^uint64(0), rest: "x", want: func(*Attr) {}},
		{name: "directory", mode: 0o040755, size: 3, want: func(*Attr) {}},
	}
	for orderName, order := range orders {
		for version := range uint16(2) {
			for _, tt := range tests {
				t.Run(orderName+"/"+tt.name, func(t *testing.T) {
					want := base
					want.Mode, want.Size, want.Flags = tt.mode, tt.size, tt.flags
					tt.want(&want)
					bonus := znodeBonus(order, tt.mode, tt.size, tt.flags, trivialACL(order, version), tt.rest)
					// Spill and registry mean nothing to a znode.
					got, err := (*Registry)(nil).Decode(TypeZnode, bonus, []byte("spill"), order)
					if diff := cmp.Diff(want, got, onlyFields); err != nil || diff != "" {
						t.Errorf("%v (-want +got):\n%s", err, diff)
					}
					head, ok := DecodeHead(TypeZnode, bonus, order)
					if want := (Head{want.Mode, want.Size, 77, 1000, 5<<32 | 1001, 34, want.Flags}); !ok || head != want {
						t.Errorf("head %+v, want %+v", head, want)
					}
					acl, err := got.ACL()
					wantACL := ACL{Version: version, Count: 3, ACEs: []ACE{
						{Flags: ACEOwner, Mask: 0x1e019f}, {Flags: ACEOwnGroup | ACEGroup, Mask: 0x120089},
						{Flags: ACEEveryone, Mask: 0x120089},
					}}
					if diff := cmp.Diff(wantACL, acl); err != nil || diff != "" {
						t.Errorf("ACL: %v (-want +got):\n%s", err, diff)
					}
				})
			}
		}
	}
}

func TestZnodeCut(t *testing.T) {
	bonus := znodeBonus(binary.BigEndian, 0o100644, 0, 0, nil, "")
	_, err := DecodeZnode(bonus[:263], binary.BigEndian)
	if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Offset != 263 || !errors.Is(err, errShort) {
		t.Error(err)
	}
	if _, ok := DecodeHead(TypeZnode, bonus[:263], binary.BigEndian); ok {
		t.Error("a head of 263 bytes")
	}
}
