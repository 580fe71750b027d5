//go:build linux

package zfsvm

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// What the image is made of. All of it goes into its key.
var (
	// packages are those of Debian beside kernel and OpenZFS.
	packages = []string{"busybox-static", "acl", "attr", "e2fsprogs", "mount", "util-linux"}

	// programs are taken as they are. For every other name that busybox has there is
	// a link to it. The shell is not busybox's: that one runs its own cp and mv
	// whatever PATH says.
	programs = []string{
		"bash", "chattr", "cp", "dash", "dd", "df", "du", "findmnt", "getfacl", "getfattr", "losetup", "ls", "lsattr",
		"lsblk", "mkfs.ext4", "mount", "mount.zfs", "mv", "setfacl", "setfattr", "stat", "sync", "tar", "touch",
		"truncate", "umount", "zdb", "zfs", "zpool", "zstream",
	}

	// modules are loaded at boot, with the parameters behind them, after those that
	// they need. The cache of OpenZFS would else take the memory of the tests.
	modules = []string{
		"virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng", "loop", "zfs zfs_arc_max=268435456",
	}

	// files are taken with what is below them. OpenZFS opens libgcc_s by itself to
	// end a thread: no program says that it needs it.
	files = []string{
		"etc/passwd", "etc/group", "etc/debian_version", "usr/lib/terminfo", "usr/share/zfs/compatibility.d",
		"usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
	}
)

// pack makes kernel and initrd in out of the chroot root.
func pack(root, out string) (*Image, error) {
	boot, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(boot) != 1 {
		return nil, fmt.Errorf("%d kernels in %s", len(boot), filepath.Join(root, "boot"))
	}
	img := &Image{KernelRelease: strings.TrimPrefix(filepath.Base(boot[0]), "vmlinuz-"), Packages: map[string]string{}}
	if err := copyFile(filepath.Join(out, "vmlinuz"), boot[0]); err != nil {
		return nil, err
	}
	query := append([]string{root, "dpkg-query", "-W", "-f", "${Package} ${Version}\n",
		"linux-image-" + img.KernelRelease, "zfs-dkms", "zfsutils-linux"}, packages...)
	versions, err := exec.Command("chroot", query...).Output()
	if err != nil {
		return nil, fmt.Errorf("dpkg-query: %w", err)
	}
	for line := range strings.Lines(string(versions)) {
		name, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		img.Packages[name] = version
	}

	f, err := os.Create(filepath.Join(out, "initrd"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// A window of 8 MiB at most is what every kernel unpacks.
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20))
	if err != nil {
		return nil, err
	}
	// Links inside the chroot must not lead out of it.
	inside, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	p := packer{root: inside, dir: root, cpio: newCPIO(z), has: map[string]bool{}}
	if err := errors.Join(p.all(img.KernelRelease), p.cpio.Close(), z.Close()); err != nil {
		return nil, err
	}
	// What follows in an initrd has to begin at a multiple of 4.
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate((size + 3) / 4 * 4); err != nil {
		return nil, err
	}
	return img, f.Close()
}

// A packer puts files of a chroot into an archive under the names they have there.
type packer struct {
	root *os.Root
	dir  string // its path
	cpio *cpioWriter
	has  map[string]bool // that were added
}

func (p *packer) all(release string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := p.cpio.Symlink(name, "usr/"+name); err != nil {
			return err
		}
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "mnt", "root", "usr/bin", "usr/sbin", "usr/lib64"} {
		if err := p.cpio.Dir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := p.cpio.Dir("tmp", 0o1777); err != nil {
		return err
	}
	if err := p.programs(); err != nil {
		return err
	}
	for _, name := range files {
		if err := p.tree(name); err != nil {
			return err
		}
	}
	return p.modules(release)
}

// programs adds the programs, their libraries, and busybox under all of its names.
func (p *packer) programs() error {
	there := map[string]bool{"busybox": true, "sh": true}
	for _, name := range append(slices.Clone(programs), "busybox") {
		found := false
		for _, dir := range []string{"usr/bin", "usr/sbin"} {
			full := path.Join(dir, name)
			if _, err := p.root.Stat(full); err != nil {
				continue
			}
			if err := p.binary(full); err != nil {
				return err
			}
			found, there[name] = true, true
		}
		if !found {
			return fmt.Errorf("no program %s", name)
		}
	}
	if err := p.cpio.Symlink("usr/bin/sh", "dash"); err != nil {
		return err
	}
	applets, err := exec.Command("chroot", p.dir, "busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	for _, name := range strings.Fields(string(applets)) {
		if !there[name] {
			if err := p.cpio.Symlink("usr/bin/"+name, "busybox"); err != nil {
				return err
			}
		}
	}
	return nil
}

// binary adds a program or a library and all the libraries it names.
func (p *packer) binary(name string) error {
	if p.has[name] {
		return nil
	}
	if err := p.file(name); err != nil {
		return err
	}
	b, err := p.root.Open(name)
	if err != nil {
		return err
	}
	defer b.Close()
	f, err := elf.NewFile(b)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP {
			b, err := io.ReadAll(prog.Open())
			if err != nil {
				return err
			}
			if err := p.file(p.merged(strings.TrimRight(string(b), "\x00"))); err != nil {
				return err
			}
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, lib := range libs {
		found := false
		for _, dir := range []string{"usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib64"} {
			full := path.Join(dir, lib)
			if _, err := p.root.Stat(full); err == nil {
				if err := p.binary(full); err != nil {
					return err
				}
				found = true
				break
			}
		}
		if !found {
			return fmt.Errorf("%s needs %s, which is not there", name, lib)
		}
	}
	return nil
}

// merged returns the name without its leading slash, and below usr where /lib and
// the like are links to usr/lib.
func (p *packer) merged(name string) string {
	name = strings.TrimPrefix(name, "/")
	if slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, strings.Split(name, "/")[0]) {
		return "usr/" + name
	}
	return name
}

// file adds what is at name: of a link, what it leads to, beside the link if that
// has a path from the root of the chroot.
func (p *packer) file(name string) error {
	if p.has[name] {
		return nil
	}
	p.has[name] = true
	if target, err := p.root.Readlink(name); err == nil && path.IsAbs(target) {
		return errors.Join(p.cpio.Symlink(name, target), p.file(p.merged(target)))
	}
	f, err := p.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return p.cpio.File(name, uint32(st.Mode().Perm()), st.Size(), f)
}

// tree adds name and, of a directory, all below it. Links stay links.
func (p *packer) tree(name string) error {
	return fs.WalkDir(p.root.FS(), name, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if d.Type() == fs.ModeSymlink {
			target, err := p.root.Readlink(name)
			if err != nil {
				return err
			}
			return p.cpio.Symlink(name, target)
		}
		return p.file(name)
	})
}

// modules adds the kernel's modules and the list by which the guest loads them.
func (p *packer) modules(release string) error {
	dir := path.Join("usr/lib/modules", release)
	f, err := p.root.Open(path.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	defer f.Close()
	order, err := loadOrder(f, modules)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, m := range order {
		name, params, _ := strings.Cut(m, " ")
		name = path.Join(dir, name)
		if err := p.file(name); err != nil {
			return err
		}
		fmt.Fprintln(&list, strings.TrimSpace("/"+name+" "+params))
	}
	return p.cpio.File("etc/zfsvm/modules", 0o644, int64(list.Len()), strings.NewReader(list.String()))
}

// loadOrder reads modules.dep(5), in which each line has a module and then those it
// needs, those that have to be loaded first last. It returns the wanted modules and
// all that they need, in the order in which they can be loaded, as paths with the
// parameters of the wanted ones behind.
func loadOrder(dep io.Reader, want []string) ([]string, error) {
	lines := map[string][]string{} // by the name of the module
	for in := bufio.NewScanner(dep); ; {
		if !in.Scan() {
			if err := in.Err(); err != nil {
				return nil, fmt.Errorf("modules.dep: %w", err)
			}
			break
		}
		module, needs, ok := strings.Cut(in.Text(), ":")
		if !ok {
			continue
		}
		name := strings.ReplaceAll(strings.TrimSuffix(path.Base(module), ".ko"), "-", "_")
		lines[name] = append([]string{module}, strings.Fields(needs)...)
	}
	var order []string
	has := map[string]bool{}
	for _, w := range want {
		name, params, _ := strings.Cut(w, " ")
		line := lines[name]
		if line == nil {
			return nil, fmt.Errorf("no kernel module %s that is not compressed", name)
		}
		for i, module := range slices.Backward(line) {
			if has[module] {
				continue
			}
			has[module] = true
			if i == 0 {
				module = strings.TrimSpace(module + " " + params)
			}
			order = append(order, module)
		}
	}
	return order, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
