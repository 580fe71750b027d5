//go:build linux

package zfs

import (
	"errors"
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
	// There is an empty directory where the kernel could not mount, and the snapshot of another
	// dataset where that is mounted over this one.
	if source, err := sourceOf(f); err != nil || source != s.String() {
		f.Close()
		return nil, fmt.Errorf("zfs: %s is not mounted below .zfs, but %q: %w", s, source, errors.Join(err, ErrNotZFS))
	}
	return f, nil
}

// sourceOf returns what is mounted where an open directory is, by the kernel's list of mounts
// (proc_pid_mountinfo(5)).
func sourceOf(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return sourceIn(string(info), fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))), nil
}

// sourceIn returns the source of the mount of a device, major:minor.
func sourceIn(mountinfo, device string) string {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields, rest := strings.Split(before, " "), strings.Split(after, " ")
		if ok && len(fields) > 2 && fields[2] == device && len(rest) > 1 && rest[0] == "zfs" {
			return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(rest[1])
		}
	}
	return ""
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
