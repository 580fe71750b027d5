package localfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Freeze makes what is read of f from now on what is in it at this moment, whoever writes to it:
// a file without a name, made in the file system of dir, that shares f's blocks (FICLONE). It goes
// with f, also when the process is killed, and dir does not change by it. What f tells of itself
// is then of the same moment. May be called again, for a later one.
//
// still says that f did not change meanwhile. If it did, what it tells of itself, but for its
// size, is that of just before: no later change can then be taken for what is recorded.
//
// After an error f is not frozen. It wraps [errors.ErrUnsupported] if no file in that file system
// can be frozen, by this process.
func (f *File) Freeze(dir *Dir) (still bool, err error) {
	f.thaw()
	fd, err := f.unnamed(dir)
	if err != nil {
		return false, err
	}
	if still, err = f.clone(fd); err != nil {
		unix.Close(fd)
		return false, err
	}
	f.frozen = &fd
	return still, nil
}

// Frozen reports whether f is frozen.
func (f *File) Frozen() bool { return f.frozen != nil }

func (f *File) thaw() {
	if f.frozen != nil {
		unix.Close(*f.frozen)
		f.frozen = nil
	}
}

// unnamed makes a file that can hold what f does.
func (f *File) unnamed(dir *Dir) (int, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(dir.h.fd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	})
	switch {
	case unsupported(err), err == unix.EISDIR, err == unix.EROFS:
		return -1, fmt.Errorf("freeze: %w: %w", errors.ErrUnsupported, err)
	case err != nil:
		return -1, fmt.Errorf("freeze: %w", err)
	}
	// Btrfs shares blocks only between files that both have sums, or both have not.
	flags, ok, err := getFlags(f.h.fd)
	if err == nil && ok {
		setFlags(fd, flags, flagNocow)
	}
	return fd, nil
}

// clone makes the empty file fd have what f has.
func (f *File) clone(fd int) (still bool, err error) {
	var before, after, clone unix.Statx_t
	if err := f.h.statx(&before); err != nil {
		return false, err
	}
	_, err = retry(func() (int, error) { return 0, unix.IoctlFileClone(fd, f.h.fd) })
	switch {
	case err == unix.EXDEV, err == unix.EOPNOTSUPP, err == unix.ENOTTY, err == unix.ENOSYS:
		return false, fmt.Errorf("freeze: %w: %w", errors.ErrUnsupported, err)
	case err != nil:
		return false, fmt.Errorf("freeze: %w", err)
	}
	if err := errors.Join(f.h.statx(&after), statx(fd, "", &clone)); err != nil {
		return false, err
	}
	f.st = before
	f.st.Size = clone.Size
	return before.Ctime == after.Ctime && before.Mtime == after.Mtime && before.Size == after.Size && before.Size == clone.Size, nil
}

// Moved reports whether the file itself, which may be frozen, is not what f tells any more.
func (f *File) Moved() (bool, error) {
	var st unix.Statx_t
	if err := f.h.statx(&st); err != nil {
		return false, err
	}
	return st.Ctime != f.st.Ctime || st.Mtime != f.st.Mtime || st.Size != f.st.Size, nil
}

// WriteOut has the kernel begin to write what of f is in memory alone. A page that waits to be written
// can be changed by way of a mapping again and again, and the file's times stay those of the first
// time; from now on the next change sets them. Not so on overlayfs and tmpfs.
//
// It says nothing of what cannot be written: whoever wrote it is told. What is frozen is written out.
func (f *File) WriteOut() {
	if f.frozen == nil {
		retry(func() (int, error) {
			return 0, unix.SyncFileRange(f.h.fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE)
		})
	}
}
