//go:build linux

// Package loopfs makes file systems to test on: a sparse image, formatted, on a
// loop device, mounted. It needs root.
//
//	<base>/secrate-loopfs-<random>/
//	    image   the sparse file
//	    lock    locked for as long as the process that made it lives
//	    mnt     where it is mounted
//
// Formatting runs mkfs(8); everything else is done by system calls. The loop
// device is set to let go of the image by itself as soon as the file system is
// unmounted, so there is only the mount to clean up. A process that is killed
// leaves it behind; the next [Mount] of any process finds it by the lock that
// nobody holds, and unmounts it.
//
// Tests that run at the same time, in one process or in several, do not see each
// other: two that are given the same free loop device notice and ask again.
package loopfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv"
)

// A Kind is a file system, by its name for mount(2).
type Kind string

// The kinds that can be made. Xfs is made with reflinks.
const (
	Btrfs Kind = "btrfs"
	Ext4  Kind = "ext4"
	XFS   Kind = "xfs"
)

// Options say how a file system is made and mounted.
type Options struct {
	Size int64 // of the image; 0 means 512 MiB. mkfs refuses less than 109 MiB (Btrfs), 300 MiB (XFS)
	// Base is the directory to put image and mount point under; "" means
	// os.TempDir. It should be on a file system with sparse files.
	Base string
	// Mkfs holds arguments for mkfs besides the quiet and force ones.
	Mkfs []string
	// Mount holds mount options of the file system, as in "compress=zstd". Access
	// times are never kept (noatime).
	Mount string
}

// An FS is a mounted file system.
type FS struct {
	Dir    string // its root directory
	Kind   Kind
	Device string // /dev/loopN

	base string
	lock *os.File
}

// Needs returns what making a file system of kind k takes.
func Needs(k Kind) []testenv.Requirement {
	return []testenv.Requirement{
		testenv.Root, testenv.LoopDevices, testenv.Kernel(string(k)), testenv.Tool("mkfs." + string(k)),
	}
}

// New is [Mount] for a test: under t's temporary directory unless o.Base says
// otherwise, closed when t ends, skipping t when something is missing.
func New(t testing.TB, k Kind, o Options) *FS {
	t.Helper()
	testenv.Need(t, Needs(k)...)
	if o.Base == "" {
		o.Base = t.TempDir()
	}
	f, err := Mount(k, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// Mount makes a file system and mounts it. The caller closes it.
func Mount(k Kind, o Options) (_ *FS, err error) {
	if o.Size == 0 {
		o.Size = 512 << 20
	}
	sweep()
	base, err := os.MkdirTemp(o.Base, prefix)
	if err != nil {
		return nil, err
	}
	f := &FS{Dir: filepath.Join(base, "mnt"), Kind: k, base: base}
	defer func() {
		if err != nil {
			f.remove()
			err = fmt.Errorf("loopfs: make a file system %s: %w", k, err)
		}
	}()
	if f.lock, err = lockFile(filepath.Join(base, "lock")); err != nil {
		return nil, err
	}
	if err := os.Mkdir(f.Dir, 0o755); err != nil {
		return nil, err
	}
	image := filepath.Join(base, "image")
	img, err := os.OpenFile(image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	if err := img.Truncate(o.Size); err != nil {
		return nil, err
	}
	if err := mkfs(k, image, o.Mkfs); err != nil {
		return nil, err
	}
	dev, err := attach(img)
	if err != nil {
		return nil, err
	}
	// Closing the last descriptor of an unmounted device lets go of the image;
	// once mounted, unmounting does.
	defer dev.Close()
	f.Device = dev.Name()
	if err := unix.Mount(f.Device, f.Dir, string(k), unix.MS_NOATIME, o.Mount); err != nil {
		return nil, fmt.Errorf("mount %s: %w", f.Device, err)
	}
	return f, nil
}

// Close unmounts the file system and removes its image. If something still uses
// it, it is taken out of sight at once and goes when the last use ends.
func (f *FS) Close() error {
	err := unmount(f.Dir)
	if err != nil {
		return fmt.Errorf("loopfs: unmount %s: %w", f.Dir, err)
	}
	return f.remove()
}

// NewDevice is a loop device of size bytes with nothing on it, for a test: it returns its
// name, such as /dev/loop0. When t ends the device is let go.
func NewDevice(t testing.TB, size int64) string {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.LoopDevices)
	img, err := os.OpenFile(filepath.Join(t.TempDir(), "image"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if err := img.Truncate(size); err != nil {
		t.Fatal(err)
	}
	dev, err := attach(img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Close(); err != nil { // the last one lets go of the image
			t.Error(err)
		}
	})
	return dev.Name()
}

// blockSize is the unit of checksums on Btrfs, and of what else these file systems place
// data by.
const blockSize = 4096

// Damage overwrites the one block of the device that has those 4096 bytes, as a disk does
// that forgets, and makes the kernel forget what it has in memory.
func (f *FS) Damage(block []byte) error {
	unix.Sync()
	dev, err := os.OpenFile(f.Device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	var places []int64
	buf := make([]byte, 1<<20)
	for off := int64(0); err == nil; off += int64(len(buf)) {
		var n int
		n, err = dev.ReadAt(buf, off)
		for at := 0; at+blockSize <= n; at += blockSize {
			if bytes.Equal(buf[at:at+blockSize], block) {
				places = append(places, off+int64(at))
			}
		}
	}
	if err != io.EOF {
		return err
	}
	if len(places) != 1 {
		return fmt.Errorf("loopfs: the block is %d times on %s", len(places), f.Device)
	}
	if _, err := dev.WriteAt(make([]byte, blockSize), places[0]); err != nil {
		return err
	}
	if err := dev.Sync(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// remove never descends into a file system that is still mounted: it takes away
// three names one by one.
func (f *FS) remove() error {
	if f.lock != nil {
		f.lock.Close()
	}
	return removeBase(f.base)
}

const prefix = "secrate-loopfs-"

func removeBase(base string) error {
	var errs []error
	for _, name := range []string{"mnt", "image", "lock", "."} {
		if err := os.Remove(filepath.Join(base, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// mkfs formats the image.
func mkfs(k Kind, image string, args []string) error {
	var quiet []string
	switch k {
	case Btrfs, XFS:
		quiet = []string{"-q", "-f"}
	case Ext4:
		quiet = []string{"-q", "-F"}
	}
	out, err := exec.Command("mkfs."+string(k), append(append(quiet, args...), image)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.%s: %w: %s", k, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// attach puts img on a free loop device and returns the device, open.
func attach(img *os.File) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	for range 100 {
		// The kernel makes a new device when none is free.
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := openLoop(n)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{
			Fd:   uint32(img.Fd()),
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if err != unix.EBUSY {
			return nil, fmt.Errorf("set up %s: %w", dev.Name(), err)
		}
		// Someone else was given the same device and was faster.
	}
	return nil, errors.New("no free loop device in 100 tries")
}

// openLoop opens /dev/loop<n>. In containers and chroots nobody makes the node for
// a device that is new: then it makes it.
func openLoop(n int) (*os.File, error) {
	name := fmt.Sprintf("/dev/loop%d", n)
	dev, err := os.OpenFile(name, os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return dev, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", n))
	if err != nil {
		return nil, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
		return nil, fmt.Errorf("device number of loop%d: %w", n, err)
	}
	err = unix.Mknod(name, unix.S_IFBLK|0o660, int(unix.Mkdev(major, minor)))
	if err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("mknod %s: %w", name, err)
	}
	return os.OpenFile(name, os.O_RDWR, 0)
}

// unmount unmounts dir, lazily if it stays busy. It waits a little first, as the
// last user of a file system is often a process that is just ending, and a file
// system that is really gone has been checked by its own unmounting.
func unmount(dir string) error {
	for wait := time.Millisecond; wait < 300*time.Millisecond; wait *= 2 {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err != unix.EBUSY {
			return err
		}
		time.Sleep(wait)
	}
	return unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

// sweep unmounts what processes left behind that did not get to Close. It is a
// courtesy: errors are for the next sweep.
func sweep() {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		dir := unescape(fields[4])
		base := filepath.Dir(dir)
		if filepath.Base(dir) != "mnt" || !strings.HasPrefix(filepath.Base(base), prefix) {
			continue
		}
		// The lock is made before the mount: where there is a mount and no lock
		// file, somebody is removing it.
		name := filepath.Join(base, "lock")
		if _, err := os.Lstat(name); err != nil {
			continue
		}
		lock, err := lockFile(name)
		if err != nil {
			continue
		}
		if unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
			removeBase(base)
		}
		lock.Close()
	}
}

// unescape undoes the octal escapes of mountinfo (proc(5)).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
