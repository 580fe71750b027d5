//go:build linux

package zfsvm

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Version is one of OpenZFS, as a Debian has it.
type Version string

// The versions that an image can be made of.
const (
	V23 Version = "2.3" // bookworm-backports
	V21 Version = "2.1" // bookworm
)

// Default is the version that tests run with.
const Default = V23

const suite = "bookworm"

var zfsSuites = map[Version]string{V23: suite + "-backports", V21: suite}

// layout is part of what an image is known by. Change it with what [pack] makes of
// a chroot.
const layout = 1

//go:embed recipe.sh
var recipe []byte

// An Image is what a virtual machine boots.
type Image struct {
	Kernel string `json:"-"` // path of the kernel
	Initrd string `json:"-"` // path of its first file system, without an init

	Version       Version
	Packages      map[string]string // the version of each that is named here or in the recipe
	KernelRelease string
	Built         time.Time
	Took          time.Duration
}

// CacheDir is the directory that images are kept in: zfsvm below SECRATE_CACHE if
// that is set, else below secrate in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("SECRATE_CACHE"); dir != "" {
		dir, err := filepath.Abs(dir)
		return filepath.Join(dir, "zfsvm"), err
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("zfsvm: no place to keep an image: %w; set SECRATE_CACHE", err)
	}
	return filepath.Join(dir, "secrate", "zfsvm"), nil
}

// key names the image of a version. It stands for everything that this package
// puts into it, but not for the versions that the archive has of the packages: an
// image that is there stays until it is removed.
func key(v Version, recipe []byte) string {
	h := sha256.New()
	// With %q, what belongs to one list cannot pass for a part of the next.
	fmt.Fprintf(h, "%d %q %q %q %q %q %q %q %q", layout, v, suite, zfsSuites[v], recipe, packages, programs, modules, files)
	return fmt.Sprintf("zfs-%s-%x", v, h.Sum(nil)[:8])
}

// Build returns the image of a version of OpenZFS. Unless it is in the cache, it
// is made, which takes about 7 minutes, 1.2 GB of disk for as long, root, debootstrap
// and a mirror of Debian, whose address is read from this machine's apt sources. What
// goes on is said on log.
//
// An image appears in the cache when it is whole. Of several processes that want
// the same one, one makes it and the others wait. What a killed one leaves behind,
// the next one removes.
func Build(ctx context.Context, v Version, log io.Writer) (*Image, error) {
	if zfsSuites[v] == "" {
		return nil, fmt.Errorf("zfsvm: no recipe for OpenZFS %q: there are %s and %s", v, V23, V21)
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, fmt.Errorf("zfsvm: %w", err)
	}
	dir := filepath.Join(cache, key(v, recipe))
	if img, err := open(dir); !errors.Is(err, fs.ErrNotExist) {
		return img, err
	}
	lock, err := lock(ctx, dir+".lock", log)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if img, err := open(dir); !errors.Is(err, fs.ErrNotExist) {
		return img, err
	}
	if err := build(ctx, v, dir, log); err != nil {
		return nil, fmt.Errorf("zfsvm: build an image with OpenZFS %s: %w", v, err)
	}
	return open(dir)
}

// building is in the name of what an image is made in, between the image's own name
// and a random one.
const building = ".building-"

// sweep removes what builds have left behind that were killed: of the image dir,
// whose lock is held, and of others whose lock nobody holds.
func sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "*"+building+"*"))
	if err != nil {
		return err
	}
	for _, l := range left {
		image, _, _ := strings.Cut(l, building)
		if image != dir {
			f, err := os.OpenFile(image+".lock", os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
				continue
			}
		}
		if err := os.RemoveAll(l); err != nil {
			return err
		}
	}
	return nil
}

// open returns the image in dir.
func open(dir string) (*Image, error) {
	b, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if err != nil {
		return nil, fmt.Errorf("zfsvm: %w", err)
	}
	img := &Image{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd")}
	if err := json.Unmarshal(b, img); err != nil {
		return nil, fmt.Errorf("zfsvm: %s: %w", dir, err)
	}
	return img, nil
}

// lock takes the lock of that name, which goes with the process.
func lock(ctx context.Context, name string, log io.Writer) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("zfsvm: %w", err)
	}
	said := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("zfsvm: lock %s: %w", name, err)
		}
		if !said {
			fmt.Fprintln(log, "zfsvm: another process is making the image; waiting for it")
			said = true
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("zfsvm: wait for %s: %w", name, ctx.Err())
		}
	}
}

// build makes the image dir. The lock is held.
func build(ctx context.Context, v Version, dir string, log io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("a chroot is made for it, which takes root; run this as root once, with SECRATE_CACHE set to " + filepath.Dir(filepath.Dir(dir)))
	}
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("the guest is amd64, and its programs have to run here on %s", runtime.GOARCH)
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		return fmt.Errorf("%w: on Debian, apt-get install debootstrap", err)
	}
	sources, err := hostSources("/etc/apt")
	if err != nil {
		return err
	}
	m, err := findMirror(sources, suite)
	if err != nil {
		return err
	}
	if err := sweep(dir); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+building)
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	start := time.Now()
	fmt.Fprintf(log, "zfsvm: making a virtual machine with OpenZFS %s, once; this takes about 7 minutes\n", v)
	root := filepath.Join(work, "root")
	if err := os.Mkdir(root, 0o755); err != nil { // MkdirTemp's mode is not for a root
		return err
	}
	if err := cook(ctx, v, m, work, root, log); err != nil {
		return err
	}
	fmt.Fprintln(log, "zfsvm: 4/4 packing the image")
	out := filepath.Join(work, "image")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	img, err := pack(root, out)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	img.Version, img.Built, img.Took = v, start.UTC().Truncate(time.Second), time.Since(start).Round(time.Second)
	b, err := json.MarshalIndent(img, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "image.json"), append(b, '\n'), 0o644); err != nil {
		return err
	}
	if err := syncTree(out); err != nil {
		return err
	}
	if err := os.Rename(out, dir); err != nil {
		return err
	}
	fmt.Fprintf(log, "zfsvm: made %s in %v\n", dir, img.Took)
	return nil
}

// cook runs the recipe in namespaces of its own.
func cook(ctx context.Context, v Version, m mirror, work, root string, log io.Writer) error {
	logName := filepath.Join(work, "log")
	output, err := os.Create(logName)
	if err != nil {
		return err
	}
	defer output.Close()
	said, say, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	defer say.Close()
	trusted := ""
	if m.Trusted {
		trusted = "yes"
	}
	cmd := exec.CommandContext(ctx, "/bin/bash", "-s")
	cmd.Stdin = strings.NewReader(string(recipe))
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = output, output, []*os.File{say}
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "root="+root, "suite="+suite, "zfs_suite="+zfsSuites[v],
		"mirror="+m.Main, "security="+m.Security, "keyring="+m.Keyring, "trusted="+trusted,
		"packages="+strings.Join(packages, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run the recipe: %w", err)
	}
	say.Close()
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		prefixLines(log, said, "zfsvm: ")
	}()
	err = cmd.Wait()
	said.SetReadDeadline(time.Now().Add(time.Second)) // nobody is left to write
	<-copied
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("the recipe: %w\n%s", err, tailOf(logName, 3000))
	}
	return nil
}

// tailOf returns the last n bytes of a file.
func tailOf(name string, n int) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
