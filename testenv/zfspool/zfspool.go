//go:build linux

// Package zfspool makes ZFS pools and datasets to test on. It needs root and OpenZFS:
// the guest of package zfsvm has both, and nothing else.
//
//	pool := zfspool.New(t, zfspool.Options{})
//	home := pool.Create(t, "home", "recordsize=16K", "xattr=sa")
//	… // files in home.Dir
//	home.Snapshot(t, "one")
//	zfspool.Run(t, "zfs", "hold", "keep", home.Name+"@one")
//
// A pool lies in a file below the test's temporary directory, which in the guest is
// memory, or on the guest's scratch disk. Its name is random, it is mounted below the
// test's temporary directory and nowhere else, and it is not in the cache file by
// which pools are imported at boot. It is destroyed when the test ends.
package zfspool

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv"
)

// DiskVariable is the environment variable that names the partition for pools with
// [Options.Disk].
const DiskVariable = "SECRATE_ZFS_DISK"

// Options say how a pool is made.
type Options struct {
	Size int64 // of the file; 0 means 256 MiB. OpenZFS refuses less than 64 MiB
	// Disk puts the pool on the disk that SECRATE_ZFS_DISK names. One test at a
	// time has it; others wait.
	Disk bool
	// Pool holds properties of the pool: "ashift=12", "feature@large_blocks=disabled".
	Pool []string
	// FS holds properties of its root dataset, which those below it inherit:
	// "compression=off". Access times are not kept (atime=off) unless said here.
	FS []string
}

// A Pool is an imported pool.
type Pool struct {
	Name string
	Dir  string // where its root dataset is mounted
	vdev string
}

// A Dataset is a mounted file system of a pool.
type Dataset struct {
	Name string // pool/name
	Dir  string // where it is mounted
}

// Needs returns what making a pool takes.
func Needs(o Options) []testenv.Requirement {
	needs := []testenv.Requirement{testenv.Root, testenv.Kernel("zfs"), testenv.Tool("zpool"), testenv.Tool("zfs")}
	if o.Disk {
		needs = append(needs, testenv.Requirement{Name: DiskVariable, Check: func() error {
			_, err := os.Stat(os.Getenv(DiskVariable))
			return err
		}})
	}
	return needs
}

// New makes a pool that is destroyed when t ends. It skips t when something is
// missing.
func New(t testing.TB, o Options) *Pool {
	t.Helper()
	testenv.Need(t, Needs(o)...)
	if o.Size == 0 {
		o.Size = 256 << 20
	}
	base := t.TempDir()
	vdev := filepath.Join(base, "vdev")
	if o.Disk {
		vdev = os.Getenv(DiskVariable)
		lockDisk(t, vdev)
	} else if err := makeFile(vdev, o.Size); err != nil {
		t.Fatal(err)
	}
	p := &Pool{Name: "secrate-" + strings.ToLower(rand.Text()[:10]), Dir: filepath.Join(base, "pool"), vdev: vdev}
	args := []string{"create", "-f", "-m", p.Dir, "-o", "cachefile=none"}
	if !slices.ContainsFunc(o.FS, func(p string) bool { return strings.HasPrefix(p, "atime=") }) {
		args = append(args, "-O", "atime=off") // twice is an error
	}
	for _, property := range o.Pool {
		args = append(args, "-o", property)
	}
	for _, property := range o.FS {
		args = append(args, "-O", property)
	}
	Run(t, "zpool", append(args, p.Name, vdev)...)
	t.Cleanup(func() {
		// With -f what is mounted elsewhere, such as a snapshot, is unmounted.
		if out, err := exec.Command("zpool", "destroy", "-f", p.Name).CombinedOutput(); err != nil {
			t.Errorf("zpool destroy %s: %v: %s", p.Name, err, out)
		}
	})
	return p
}

func makeFile(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// lockDisk waits until no other test has the disk. It is let go after the pool is
// destroyed: the last thing that is set up is cleaned up first.
func lockDisk(t testing.TB, name string) {
	t.Helper()
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "secrate-zfspool-"+filepath.Base(name)), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatalf("lock %s: %v", lock.Name(), err)
	}
}

// File returns the path of what the pool lies in.
func (p *Pool) File() string { return p.vdev }

// Reimport exports the pool and imports it again: nothing of it is in memory then. No
// file of it may be open, and no snapshot mounted.
func (p *Pool) Reimport(t testing.TB) {
	t.Helper()
	Run(t, "zpool", "export", p.Name)
	Run(t, "zpool", "import", "-d", p.vdev, "-o", "cachefile=none", p.Name)
}

// Create makes a dataset with these properties, as in "recordsize=1M".
func (p *Pool) Create(t testing.TB, name string, properties ...string) *Dataset {
	t.Helper()
	args := []string{"create"}
	for _, property := range properties {
		args = append(args, "-o", property)
	}
	d := p.Dataset(name)
	Run(t, "zfs", append(args, d.Name)...)
	return d
}

// Dataset returns the dataset of that name, which something else has made or will
// make.
func (p *Pool) Dataset(name string) *Dataset {
	return &Dataset{Name: p.Name + "/" + name, Dir: filepath.Join(p.Dir, name)}
}

// Snapshot takes a snapshot and returns its whole name.
func (d *Dataset) Snapshot(t testing.TB, name string) string {
	t.Helper()
	full := d.Name + "@" + name
	Run(t, "zfs", "snapshot", full)
	return full
}

// Mount mounts a snapshot of the dataset, read-only, until t ends, and returns where.
func (d *Dataset) Mount(t testing.TB, snapshot string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(d.Name+"@"+snapshot, dir, "zfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("mount %s@%s: %v", d.Name, snapshot, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
			t.Errorf("unmount %s@%s: %v", d.Name, snapshot, err)
		}
	})
	return dir
}

// Send writes the stream of zfs send with these arguments to w. An error has what
// the command wrote to its standard error.
func Send(w io.Writer, args ...string) error {
	cmd := exec.Command("zfs", append([]string{"send"}, args...)...)
	cmd.Stdout = w
	return run(cmd)
}

// Receive gives the stream r to zfs receive with these arguments.
func Receive(r io.Reader, args ...string) error {
	cmd := exec.Command("zfs", append([]string{"receive"}, args...)...)
	cmd.Stdin = r
	return run(cmd)
}

func run(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

// Run runs a command and returns what it writes to its standard output, without the
// newline at the end. If it fails so does t.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if err := run(cmd); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(stdout.String(), "\n")
}
