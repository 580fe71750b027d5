//go:build linux && (amd64 || arm64 || riscv64 || loong64)

package btrfs

import (
	"testing"
	"unsafe"
)

// Sizes, offsets and numbers as a C compiler gives them for linux/btrfs.h.
func TestLayout(t *testing.T) {
	var (
		v1   volArgs
		v2   volArgsV2
		info subvolInfo
		send sendArgs
		refs rootRefs
		look inoLookup
	)
	for _, tt := range []struct {
		name      string
		got, want uintptr
	}{
		{"sizeof vol_args", unsafe.Sizeof(v1), 4096},
		{"vol_args.name", unsafe.Offsetof(v1.name), 8},
		{"sizeof vol_args_v2", unsafe.Sizeof(v2), 4096},
		{"vol_args_v2.flags", unsafe.Offsetof(v2.flags), 16},
		{"vol_args_v2.name", unsafe.Offsetof(v2.name), 56},
		{"sizeof get_subvol_info_args", unsafe.Sizeof(info), 504},
		{"get_subvol_info_args.parent_id", unsafe.Offsetof(info.parentID), 264},
		{"get_subvol_info_args.generation", unsafe.Offsetof(info.generation), 280},
		{"get_subvol_info_args.flags", unsafe.Offsetof(info.flags), 288},
		{"get_subvol_info_args.uuid", unsafe.Offsetof(info.uuid), 296},
		{"get_subvol_info_args.received_uuid", unsafe.Offsetof(info.receivedUUID), 328},
		{"get_subvol_info_args.ctransid", unsafe.Offsetof(info.ctransid), 344},
		{"get_subvol_info_args.ctime", unsafe.Offsetof(info.ctime), 376},
		{"get_subvol_info_args.otime", unsafe.Offsetof(info.otime), 392},
		{"sizeof send_args", unsafe.Sizeof(send), 72},
		{"send_args.clone_sources", unsafe.Offsetof(send.cloneSources), 16},
		{"send_args.parent_root", unsafe.Offsetof(send.parentRoot), 24},
		{"send_args.flags", unsafe.Offsetof(send.flags), 32},
		{"send_args.version", unsafe.Offsetof(send.version), 40},
		{"BTRFS_IOC_SUBVOL_CREATE", ioctlSubvolCreate, 0x5000940e},
		{"BTRFS_IOC_SNAP_DESTROY", ioctlSnapDestroy, 0x5000940f},
		{"BTRFS_IOC_SNAP_CREATE_V2", ioctlSnapCreateV2, 0x50009417},
		{"BTRFS_IOC_SEND", ioctlSend, 0x40489426},
		{"BTRFS_IOC_GET_SUBVOL_INFO", ioctlGetSubvolInfo, 0x81f8943c},
		{"sizeof get_subvol_rootref_args", unsafe.Sizeof(refs), 4096},
		{"get_subvol_rootref_args.num_items", unsafe.Offsetof(refs.count), 4088},
		{"sizeof ino_lookup_user_args", unsafe.Sizeof(look), 4096},
		{"ino_lookup_user_args.path", unsafe.Offsetof(look.path), 272},
		{"BTRFS_IOC_GET_SUBVOL_ROOTREF", ioctlGetRootRef, 0xd000943d},
		{"BTRFS_IOC_INO_LOOKUP_USER", ioctlInoLookup, 0xd000943e},
		{"BTRFS_IOC_SNAP_DESTROY_V2", ioctlSnapDestroyV2, 0x5000943f},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, tt.got, tt.want)
		}
	}
}
