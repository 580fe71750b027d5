// Package zfsvm runs programs, tests among them, beside a real OpenZFS: in a virtual
// machine that is made of Debian's packages and of nothing else.
//
//	 this machine                               guest: 1 CPU, 2 GiB, boots in 5 s
//	┌──────────────────────────┐               ┌─────────────────────────────────────┐
//	│ Build: the image, once   │ vmlinuz       │ Linux of Debian (cloud), zfs.ko     │
//	│   debootstrap, zfs-dkms, │ initrd        │ /    the image: zfs, zpool, zdb, …  │
//	│   pack ──────────────────┼──────────────►│      then the init and your files   │
//	│ Start: your files ───────┼──── + cpio ──►│ /tmp in memory                      │
//	│                          │               │                                     │
//	│ Run ◄────────────────────┼─ virtio port ─┼─► guestinit, process 1              │
//	│   arguments, stdout,     │               │     └─ one program at a time        │
//	│   stderr, exit status    │               │                                     │
//	│ Options.Console ◄────────┼──── serial ───┤ what the kernel has to say          │
//	│ a sparse file, then gone ┼─── virtio ───►│ /dev/vda1, for pools                │
//	│ 127.0.0.1:PORT ◄─────────┼──── slirp ────┤ 10.0.2.2:PORT                       │
//	└──────────────────────────┘               └─────────────────────────────────────┘
//
// [Build] gives an [Image], [Start] a [VM] of it, [VM.Run] runs a program there. Files
// go in with [Options.Files] and come out through the output of a program, such as
// tar. The machine dies with the process that started it, and with it all that was
// in it.
//
// # Tests
//
// A test that needs OpenZFS stands in a file with the build tag zfs:
//
//	//go:build linux && zfs
//
// So go test ./... does not know of it. Make test-zfs (scripts/zfsvm.sh test) finds
// all of these by their tag, compiles their packages, and runs them and no others
// in the machine, from the package's directory with its testdata. Package zfspool
// makes pools for them. On a machine that has OpenZFS itself, go test -tags zfs
// as root does without the virtual one. The tests of the machine itself have the tag
// zfsvm: they start it, so that they are not for make test, nor for the machine.
//
// # What is trusted
//
// The archive's signatures, by debootstrap and apt with the keys that the machine's
// own sources name; if these say that they are trusted without one, so is the
// archive here. The mirror is the one in /etc/apt, and its address is written nowhere
// else. The recipe runs as root in a chroot, in namespaces of its own for processes and
// mounts. The guest can reach what the machine can; do not run in it what you would
// not run here. An image holds a kernel under the GPL and modules under the CDDL: make
// it for yourself, do not pass it on.
//
// # Pitfalls
//
//   - The processor is emulated (TCG), some 10 times slower than the real one. KVM is not
//     tried: where this was written it starts and a stock kernel then hangs. Hash
//     and compare large files outside.
//   - There is no udev. Give zpool a partition or a file, not a disk: for a disk it
//     waits half a minute for a partition to appear, then fails. Import pools with -d.
//     /dev/zdN are there, links in /dev/zvol are not.
//   - zfs diff looks every changed object up by a scan of its directory: minutes for
//     some thousand.
//   - Mount a snapshot by mount -t zfs POOL/FS@SNAP DIR rather than go through .zfs.
//   - FICLONERANGE answers EAGAIN for blocks that are not on disk yet; asking for a hole
//     (SEEK_HOLE) has them written. Within one file of one block that grows by it, it waits
//     for ever for a lock of its own (2.3.2), and the process cannot be killed.
//   - zfs receive does not have the properties of the source, unless they are in
//     the stream (-p): without acltype=posixacl there too, ACLs are there and not seen.
//   - Without libgcc_s.so.1 in the image zfs send aborts at its end.
package zfsvm

import (
	"bufio"
	"fmt"
	"io"
)

// prefixLines copies lines from r to w with prefix before each, until r ends.
func prefixLines(w io.Writer, r io.Reader, prefix string) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fmt.Fprintf(w, "%s%s\n", prefix, lines.Text())
	}
}
