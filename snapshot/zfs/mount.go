//go:build linux

package zfs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount opens the root directory of a snapshot of a file system, which is read-only. Nothing
// else sees the mount, and it is gone when the directory and all that was opened from it are
// closed; while it is there the snapshot cannot be destroyed.
//
// It takes Linux 5.2 and the right to mount. Without them the snapshot is looked for below
// .zfs of the dataset that d says is mounted, where the kernel mounts it for whoever looks.
// Whoever may not read every file gets an error that wraps [fs.ErrPermission].
func Mount(d Dataset, s Snapshot) (*os.File, error) {
	if !readsAll() {
		return nil, fmt.Errorf("mount %s: not every file could be read: %w", s, fs.ErrPermission)
	}
	f, err := mount(s)
	if err == nil || d.Mountpoint == "" {
		return f, err
	}
	// The name is a component of a path: it has no slash.
	f, second := os.Open(filepath.Join(d.Mountpoint, ".zfs", "snapshot", s.Name, "."))
	if second != nil {
		return nil, fmt.Errorf("%w; %w", err, second)
	}
	// Below .zfs there is an empty directory where the kernel could not mount.
	var dir, root unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &dir); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Stat(filepath.Join(d.Mountpoint, ".zfs", "snapshot"), &root); err != nil || dir.Dev == root.Dev {
		f.Close()
		return nil, fmt.Errorf("zfs: %s is not mounted below .zfs", s)
	}
	return f, nil
}

// mount mounts a snapshot in no place.
func mount(s Snapshot) (*os.File, error) {
	explain := func(step string, err error) error { return fmt.Errorf("mount %s: %s: %w", s, step, err) }
	fd, err := unix.Fsopen("zfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, explain("fsopen", err)
	}
	defer unix.Close(fd)
	if strings.IndexByte(s.String(), 0) >= 0 {
		return nil, explain("name", unix.EINVAL)
	}
	if err := unix.FsconfigSetString(fd, "source", s.String()); err != nil {
		return nil, explain("source", err)
	}
	if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
		return nil, explain("ro", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, explain("create", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return nil, explain("fsmount", err)
	}
	defer unix.Close(m)
	root, err := unix.Openat(m, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, explain("open", err)
	}
	return os.NewFile(uintptr(root), s.String()), nil
}

// readsAll reports whether permissions of files and directories do not keep this process from
// reading them.
func readsAll() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_DAC_READ_SEARCH|1<<unix.CAP_DAC_OVERRIDE) != 0
}
