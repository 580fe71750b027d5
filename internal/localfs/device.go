package localfs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/internal/filetree"
)

// What a [DeviceError] can be about.
var (
	ErrNotDevice  = errors.New("it is no block device")
	ErrInUse      = errors.New("it is in use")
	ErrTooSmall   = errors.New("it is too small")
	ErrReadOnly   = errors.New("it is read-only")
	ErrOverwrites = errors.New("what is on it would be overwritten")
)

// A DeviceError says why a device was not opened to be written to. Nothing on it has
// changed.
type DeviceError struct {
	Path string // as it was named
	Name string // the device's own name, where Path is another one
	Size int64  // of the device, in bytes; 0 if it was not asked
	Need int64  // how many bytes were to be written
	Err  error  // wraps one of those above, or an errno
}

func (e *DeviceError) Error() string {
	s := fmt.Sprintf("device %q", e.Path)
	if e.Name != "" && e.Name != e.Path {
		s += fmt.Sprintf(" (%s)", e.Name)
	}
	if e.Size > 0 {
		s += fmt.Sprintf(" of %d bytes", e.Size)
	}
	return fmt.Sprintf("%s, for a file of %d bytes: %v", s, e.Need, e.Err)
}

func (e *DeviceError) Unwrap() error { return e.Err }

// IsDevice reports whether path leads to a block device. Whoever names a link, such as
// /dev/zvol/tank/v, means where it leads.
func IsDevice(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && kindOf(st.Mode) == filetree.BlkDev
}

// A Device is a block device onto which the content of one file is restored. WriteAt may
// be called concurrently. What lies behind the end of the file is left alone, and so is
// what nobody writes to: holes are for Zero.
type Device struct {
	path  string // as it was named
	name  string // where that leads
	size  int64  // of the device
	end   int64  // of the file
	fd    int
	align int64 // what is zeroed without writing begins and ends at multiples of it
	zvol  bool  // it is a volume of ZFS, all of it
	zero  zeroWay
	begun atomic.Bool
}

// OpenDevice opens the device that path leads to, for a file of size bytes. Nothing else
// has it in use then, and nothing else that asks for it alone can: no mount, pool, volume
// group or swap. The error is a *[DeviceError]. It wraps [ErrOverwrites] where all is well
// but overwrite is not set.
func OpenDevice(path string, size int64, overwrite bool) (*Device, error) {
	d := &Device{path: path, end: size, fd: -1}
	if err := d.open(overwrite); err != nil {
		if d.fd >= 0 {
			unix.Close(d.fd)
		}
		return nil, &DeviceError{Path: d.path, Name: d.name, Size: d.size, Need: size, Err: err}
	}
	return d, nil
}

func (d *Device) open(overwrite bool) error {
	fd, err := retry(func() (int, error) { return unix.Open(d.path, unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return err
	}
	h := handle{fd, procPath(fd)}
	defer h.close()
	if err := needProc(fd); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kindOf(st.Mode) != filetree.BlkDev {
		return ErrNotDevice
	}
	if d.name, err = os.Readlink(h.path); err != nil {
		return err
	}
	// Until it is said that it may be, it is not opened for writing: at the end of that
	// udev looks at a device anew.
	flags := unix.O_EXCL
	if overwrite {
		flags |= unix.O_WRONLY
	}
	d.fd, err = h.reopen(flags)
	if err == unix.EBUSY {
		return inUse(uint64(st.Rdev), d.name)
	}
	if err == unix.EROFS {
		return ErrReadOnly
	}
	if err != nil {
		return err
	}
	if d.size, err = deviceSize(d.fd); err != nil {
		return err
	}
	if d.size < d.end {
		return ErrTooSmall
	}
	if locked, err := unix.IoctlGetInt(d.fd, unix.BLKROGET); err == nil && locked != 0 {
		return ErrReadOnly
	}
	if !overwrite {
		return ErrOverwrites
	}
	d.align = 4096 // so that no page is half zeroed and half written
	if sector, err := unix.IoctlGetInt(d.fd, unix.BLKSSZGET); err == nil {
		d.align = max(d.align, int64(sector))
	}
	if block, ok := zvolBlock(uint64(st.Rdev)); ok {
		d.zvol, d.align = true, max(d.align, block)
	}
	return nil
}

// deviceSize is that of a device that is open.
func deviceSize(fd int) (int64, error) {
	return unix.Seek(fd, 0, unix.SEEK_END)
}

// zvolBlock returns the size of the blocks of a volume of ZFS; ok is not set for another
// device, or a partition.
func zvolBlock(rdev uint64) (size int64, ok bool) {
	devices, err := os.ReadFile("/proc/devices")
	if err != nil {
		return 0, false
	}
	_, block, _ := strings.Cut(string(devices), "Block devices:")
	for line := range strings.Lines(block) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == "zvol" && f[0] == strconv.Itoa(int(unix.Major(rdev))) {
			ok = true
		}
	}
	if !ok {
		return 0, false
	}
	sys := fmt.Sprintf("/sys/dev/block/%d:%d/", unix.Major(rdev), unix.Minor(rdev))
	if _, err := os.Stat(sys + "partition"); err == nil {
		return 0, false
	}
	text, err := os.ReadFile(sys + "queue/discard_granularity")
	if err != nil {
		return 0, false
	}
	size, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return size, err == nil && size > 0 && size <= 16<<20 && size&(size-1) == 0
}

// inUse is ErrInUse, with the place where the device is mounted if that can be found.
func inUse(rdev uint64, name string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ErrInUse
	}
	defer f.Close()
	number := fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		mount, source := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(source) < 2 {
			continue
		}
		if mount[2] == number || source[1] == name { // Btrfs has a number of its own
			return fmt.Errorf("%w, mounted on %s", ErrInUse, mount[4])
		}
	}
	return fmt.Errorf("%w: mounted elsewhere, or part of a pool, a volume group, an array or swap", ErrInUse)
}

// Name returns the device's own name, where what was named leads.
func (d *Device) Name() string { return d.name }

// Size returns the device's size in bytes.
func (d *Device) Size() int64 { return d.size }

// Begun reports whether anything on the device may have changed.
func (d *Device) Begun() bool { return d.begun.Load() }

func (d *Device) fail(op string, err error) error {
	return fmt.Errorf("%s %q: %w", op, d.path, err)
}

func (d *Device) check(op string, off, n int64) error {
	if off < 0 || n < 0 || off > d.end || n > d.end-off {
		return d.fail(op, fmt.Errorf("%d bytes at %d: beyond the size of %d", n, off, d.end))
	}
	return nil
}

// WriteAt writes data at off, within the size of the file.
func (d *Device) WriteAt(data []byte, off int64) (int, error) {
	if err := d.check("write", off, int64(len(data))); err != nil {
		return 0, err
	}
	d.begun.Store(true)
	n, err := writeAt(d.fd, data, off)
	if err != nil {
		return n, d.fail("write", err)
	}
	crashpoint.Here("device written") // a second run writes all of it again
	return n, nil
}

// A zeroWay is how ranges of a device are made zeros: the best that it has not refused.
type zeroWay int

const (
	zeroPunch   zeroWay = iota // the device is told, and may give the space back
	zeroDiscard                // a volume of ZFS is told, which has no other way
	zeroRange                  // the device is told, or the kernel writes
	zeroWrite
)

// Zero makes n bytes at off zeros, without writing them where the device can be told to.
// It is not called concurrently. One call cannot be interrupted: ranges should not be
// large.
func (d *Device) Zero(off, n int64) error {
	if err := d.check("zero", off, n); err != nil {
		return err
	}
	d.begun.Store(true)
	end := off + n
	from, to := min(end, (off+d.align-1)/d.align*d.align), end/d.align*d.align
	if from >= to {
		from, to = end, end
	}
	// Whatever is wrong shows again when zeros are written.
	for from < to && d.zero < zeroWrite && d.zeroBy(d.zero, from, to-from) != nil {
		d.zero++
	}
	if d.zero == zeroWrite {
		from, to = end, end
	}
	for _, r := range [][2]int64{{off, from}, {to, end}} {
		if err := d.writeZeros(r[0], r[1]); err != nil {
			return d.fail("zero", err)
		}
	}
	crashpoint.Here("device zeroed")
	return nil
}

func (d *Device) zeroBy(way zeroWay, off, n int64) error {
	mode := uint32(unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE)
	switch way {
	case zeroDiscard:
		return d.discard(off, n)
	case zeroRange:
		mode = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_ZERO_RANGE
	}
	_, err := retry(func() (int, error) { return 0, unix.Fallocate(d.fd, mode, off, n) })
	return err
}

// discard gives blocks back. Of other devices nobody knows what is read from there
// afterwards; whole blocks of a volume of ZFS are zeros, and both ends are looked at to see
// that they were whole.
func (d *Device) discard(off, n int64) error {
	if !d.zvol {
		return unix.EOPNOTSUPP
	}
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	fd, err := unix.Open(procPath(d.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var page [4096]byte // n is no less
	for _, at := range []int64{off, off + n - int64(len(page))} {
		m, err := retry(func() (int, error) { return unix.Pread(fd, page[:], at) })
		if err != nil {
			return err
		}
		if m != len(page) || page != [4096]byte{} {
			return unix.EIO
		}
	}
	return nil
}

var zeros [64 << 10]byte

func (d *Device) writeZeros(from, to int64) error {
	for from < to {
		n, err := writeAt(d.fd, zeros[:min(to-from, int64(len(zeros)))], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// Sync makes durable what has been written. It reports write errors that came after the
// call that wrote.
func (d *Device) Sync() error {
	if _, err := retry(func() (int, error) { return 0, unix.Fsync(d.fd) }); err != nil {
		return d.fail("sync", err)
	}
	return nil
}

// Close closes the device.
func (d *Device) Close() error {
	if err := unix.Close(d.fd); err != nil {
		return d.fail("close", err)
	}
	return nil
}
