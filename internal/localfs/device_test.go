package localfs

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv/loopfs"
)

// fill writes to all of a device and returns what is on it then.
func fill(t *testing.T, dev string, size int64) []byte {
	t.Helper()
	b := make([]byte, size)
	rand.Read(b)
	must(t, os.WriteFile(dev, b, 0))
	return b
}

// Writes and zeros, aligned and not, by every way to make zeros, with what was there
// before around them.
func TestDevice(t *testing.T) {
	const size = 8 << 20
	testDevice(t, loopfs.NewDevice(t, size), size, zeroPunch)
}

// testDevice has a device of size bytes, of which best is the best way to make zeros.
func testDevice(t *testing.T, dev string, size int64, best zeroWay) {
	const end = 5<<20 + 1234
	for _, way := range []zeroWay{zeroPunch, zeroRange, zeroWrite} {
		want := fill(t, dev, size)
		d, err := OpenDevice(dev, end, true)
		must(t, err)
		d.zero = way
		data := make([]byte, 300_000)
		rand.Read(data)
		for _, off := range []int64{0, 1 << 20, 3<<20 + 17, end - 300_000} {
			_, err := d.WriteAt(data, off)
			must(t, err)
			copy(want[off:], data)
		}
		for _, r := range [][2]int64{{400_000, 500}, {500_000, 4096}, {2 << 20, 1 << 20}, {2<<20 - 5, 10}, {1 << 20, 4097},
			{4<<20 + 511, 128<<10 + 2}, {end - 5000, 5000}, {end, 0}} {
			must(t, d.Zero(r[0], r[1]))
			clear(want[r[0] : r[0]+r[1]])
		}
		if want := max(way, best); d.zero != want {
			t.Errorf("of ways %d and after the device took %d, want %d", way, d.zero, want)
		}
		for _, r := range [][2]int64{{-1, 1}, {0, end + 1}, {end, 1}, {1, 1<<63 - 1}, {1<<63 - 1, 1}, {5, -1}} {
			if err := d.Zero(r[0], r[1]); err == nil {
				t.Errorf("zeroed %d bytes at %d", r[1], r[0])
			}
		}
		if _, err := d.WriteAt([]byte("xx"), end-1); err == nil {
			t.Error("wrote beyond the end")
		}
		must(t, d.Sync())
		must(t, d.Close())
		got, err := os.ReadFile(dev)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("way %d: other bytes than were written", way)
		}
	}
}

// Holes give the space back.
func TestDeviceSparse(t *testing.T) {
	const size = 16 << 20
	dev := loopfs.NewDevice(t, size)
	fill(t, dev, size)
	must(t, exec.Command("sync", dev).Run())
	d, err := OpenDevice(dev, size, true)
	must(t, err)
	must(t, d.Zero(0, size))
	must(t, d.Sync())
	must(t, d.Close())
	image, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(strings.TrimSpace(string(image)), &st))
	if st.Blocks*512 > size/4 {
		t.Errorf("%d bytes of %d are still allocated", st.Blocks*512, size)
	}
}

// What is refused, and what is said of it. Nothing is written.
func TestDeviceRefused(t *testing.T) {
	const size = 1 << 20
	dev := loopfs.NewDevice(t, size)
	before := fill(t, dev, size)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dev, link))
	mounted := loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 24 << 20})
	btrfs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{})
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))

	for _, tt := range []struct {
		name, path string
		size       int64
		keep       bool
		want       error
		text       string
	}{
		{"not said", link, size, true, ErrOverwrites, dev + ") of 1048576 bytes, for a file of 1048576 bytes"},
		{"too small", dev, size + 1, false, ErrTooSmall, "of 1048576 bytes, for a file of 1048577 bytes: it is too small"},
		{"too small, not said", dev, size + 1, true, ErrTooSmall, ""},
		{"mounted", mounted.Device, 100, false, ErrInUse, "in use, mounted on " + mounted.Dir},
		{"mounted, not said", mounted.Device, 100, true, ErrInUse, ""},
		{"Btrfs", btrfs.Device, 100, false, ErrInUse, "in use, mounted on " + btrfs.Dir},
		{"file", file, 0, false, ErrNotDevice, ""},
		{"directory", t.TempDir(), 0, false, ErrNotDevice, ""},
		{"character device", "/dev/null", 0, false, ErrNotDevice, ""},
		{"nothing", file + "x", 0, false, fs.ErrNotExist, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := OpenDevice(tt.path, tt.size, !tt.keep)
			if err == nil {
				d.Close()
			}
			if _, ok := errors.AsType[*DeviceError](err); !ok || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v, with %q", err, tt.want, tt.text)
			}
			if want := !errors.Is(tt.want, ErrNotDevice) && !errors.Is(tt.want, fs.ErrNotExist); IsDevice(tt.path) != want {
				t.Errorf("is a device: %v", !want)
			}
		})
	}
	t.Run("open alone elsewhere", func(t *testing.T) {
		fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		_, err = OpenDevice(dev, 1, true)
		wantErr(t, err, ErrInUse)
	})
	t.Run("read-only", func(t *testing.T) {
		setReadOnly(t, dev, 1)
		defer setReadOnly(t, dev, 0)
		for _, overwrite := range []bool{false, true} {
			_, err := OpenDevice(dev, 1, overwrite)
			wantErr(t, err, ErrReadOnly)
		}
	})
	after, err := os.ReadFile(dev)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("something was written")
	}
	// While it is written to nobody else gets it.
	d, err := OpenDevice(link, size, true)
	must(t, err)
	defer d.Close()
	if d.Name() != dev || d.Size() != size || d.Begun() {
		t.Errorf("%s of %d bytes, begun %v", d.Name(), d.Size(), d.Begun())
	}
	_, err = OpenDevice(dev, size, true)
	wantErr(t, err, ErrInUse)
}

func setReadOnly(t *testing.T, dev string, on int) {
	t.Helper()
	f, err := os.Open(dev)
	must(t, err)
	defer f.Close()
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, on))
}

// A name in /dev that nothing has is no directory to be made.
func TestNoDevice(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink("/dev", link))
	for _, path := range []string{"/dev/secrate-no-such-device", "/dev/../dev/secrate-no-such-device/", link + "/secrate-no-such-device"} {
		target, err := OpenTarget(path, TargetOptions{})
		wantErr(t, err, ErrNoDevice)
		if err == nil {
			target.Close()
			os.Remove(path)
		}
	}
}
