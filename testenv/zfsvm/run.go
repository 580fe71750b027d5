//go:build linux

package zfsvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv/zfsvm/wire"
)

// Host is the address at which the guest reaches what listens on this machine's
// 127.0.0.1.
const Host = "10.0.2.2"

// Disk is what the scratch disk is called in the guest: a partition, as OpenZFS
// waits half a minute for one when it is given a whole disk and there is no udev.
const Disk = "/dev/vda1"

// bootTimeout is how long the guest may take until it says hello. On an idle
// machine that takes 6 s, on a very busy one half a minute.
const bootTimeout = 3 * time.Minute

// Options say what a virtual machine is like.
type Options struct {
	Image  *Image
	CPUs   int   // 0 means 1, which is best where several machines share few cores
	Memory int64 // bytes; 0 means 2 GiB
	Disk   int64 // bytes of the scratch disk; 0 means 4 GiB, less than 0 that there is none. It takes as much space as is written to it
	// Files are put into the guest, by their path there: contents of files and of
	// directories on this machine, with their permissions. They take memory.
	Files map[string]string
	// Console, if not nil, gets what the guest's serial console has to say, which
	// is little unless something is wrong.
	Console io.Writer
	// Terminal connects the serial console with this process's standard input and
	// output instead. A program run with [Command.Terminal] uses it.
	Terminal bool
}

// A VM is a virtual machine that is up.
type VM struct {
	Kernel string        // release of the guest's kernel
	ZFS    string        // version of its OpenZFS
	Boot   time.Duration // from the start of QEMU until the guest was ready

	mu      sync.Mutex // held while a program runs: one at a time
	port    *os.File
	cmd     *exec.Cmd
	ended   chan struct{} // closed when QEMU has ended
	console *tail
	dir     string
}

// A Command is a program to be run in the guest.
type Command struct {
	Args           []string // Args[0] is looked up in PATH
	Env            []string // besides PATH, HOME, TMPDIR, …
	Dir            string   // "" means /
	Stdout, Stderr io.Writer
	Terminal       bool // the program has the console for its terminal
	Rows, Cols     int  // of the terminal
}

// An ExitError reports a program that ended with a status other than 0.
type ExitError struct {
	Args   []string
	Status int // 128 and the number of the signal if it was killed by one
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("zfsvm: %s: exit status %d", strings.Join(e.Args, " "), e.Status)
}

// ErrGone is wrapped by errors that report a virtual machine that has ended.
var ErrGone = errors.New("the virtual machine has ended")

// Start boots a virtual machine and waits until it is up. When ctx is done, it is
// killed. It ends with this process, whatever happens to that. The caller closes it.
func Start(ctx context.Context, o Options) (_ *VM, err error) {
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.Memory == 0 {
		o.Memory = 2 << 30
	}
	if o.Disk == 0 {
		o.Disk = 4 << 30
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, fmt.Errorf("zfsvm: %w: on Debian, apt-get install qemu-system-x86", err)
	}
	dir, err := os.MkdirTemp("", "secrate-zfsvm-")
	if err != nil {
		return nil, fmt.Errorf("zfsvm: %w", err)
	}
	vm := &VM{dir: dir, ended: make(chan struct{}), console: &tail{w: o.Console}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("zfsvm: start: %w", errors.Join(err, vm.Close()))
		}
	}()
	initrd := filepath.Join(dir, "initrd")
	if err := makeInitrd(ctx, initrd, o); err != nil {
		return nil, err
	}
	// A pair of sockets needs no name that others could connect to.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	vm.port = os.NewFile(uintptr(fds[0]), "virtio port")
	theirs := os.NewFile(uintptr(fds[1]), "virtio port of the guest")
	defer theirs.Close()

	kernelArgs := []string{"console=ttyS0", "quiet", "panic=-1", "mitigations=off", "random.trust_cpu=on", "net.ifnames=0"}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", "tcg", "-smp", fmt.Sprint(o.CPUs), "-m", fmt.Sprintf("%dk", o.Memory>>10),
		"-kernel", o.Image.Kernel, "-initrd", initrd,
		"-device", "virtio-rng-pci",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-chardev", "socket,id=port,fd=3", // the first of ExtraFiles
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=" + wire.Port,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
	}
	if o.Disk > 0 {
		disk := filepath.Join(dir, "disk")
		if err := makeDisk(disk, o.Disk); err != nil {
			return nil, err
		}
		// It is gone with the machine: nothing has to reach this machine's disk.
		args = append(args, "-drive", "if=virtio,format=raw,cache=unsafe,discard=unmap,file="+strings.ReplaceAll(disk, ",", ",,"))
		kernelArgs = append(kernelArgs, "zfsvm.disk")
	}
	args = append(args, "-append", strings.Join(kernelArgs, " "))

	cmd := exec.Command(qemu, args...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if o.Terminal {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	} else {
		cmd.Stdout, cmd.Stderr = vm.console, vm.console
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	vm.cmd = cmd
	go func() {
		cmd.Wait() // how it ended does not matter: it is the guest that says how it went
		close(vm.ended)
	}()
	theirs.Close() // or the end of QEMU would not show

	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	defer vm.killWhenDone(ctx)()
	kind, payload, err := wire.Read(vm.port)
	if err == nil && kind != wire.KindHello {
		err = fmt.Errorf("%w: kind %q for a hello", wire.ErrFrame, kind)
	}
	var hello wire.Hello
	if err == nil {
		err = json.Unmarshal(payload, &hello)
	}
	if err == nil && hello.Error != "" {
		err = errors.New(hello.Error)
	}
	if err != nil {
		return nil, vm.gone(ctx, err)
	}
	vm.Kernel, vm.ZFS, vm.Boot = hello.Kernel, hello.ZFS, time.Since(begin)
	// QEMU has its files open. Without names they end with it, even when this
	// process is killed.
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	return vm, nil
}

// Run runs a program to its end. A status other than 0 is an [*ExitError]. What
// the program writes has been written to c.Stdout and c.Stderr when Run returns,
// byte for byte, so that files are brought out of the guest by running cat or tar.
//
// When ctx is done the machine is killed, since what would go on in it would be in
// the way of the next program. That, and any other end of the machine, is an error
// that wraps [ErrGone] and has the end of what the console said.
func (vm *VM) Run(ctx context.Context, c Command) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	defer vm.killWhenDone(ctx)()
	exit, err := vm.run(c)
	if err != nil {
		return fmt.Errorf("zfsvm: run %s: %w", strings.Join(c.Args, " "), vm.gone(ctx, err))
	}
	if exit.Error != "" {
		return fmt.Errorf("zfsvm: run %s: %s", strings.Join(c.Args, " "), exit.Error)
	}
	if exit.Status != 0 {
		return &ExitError{Args: c.Args, Status: exit.Status}
	}
	return nil
}

func (vm *VM) run(c Command) (exit wire.Exit, err error) {
	err = wire.WriteJSON(vm.port, wire.KindRun, wire.Run{
		Args: c.Args, Env: c.Env, Dir: c.Dir, Terminal: c.Terminal, Rows: c.Rows, Cols: c.Cols, Now: time.Now().UnixNano(),
	})
	if err != nil {
		return exit, err
	}
	var lost error // an output that could not be written: the program goes on
	for {
		kind, payload, err := wire.Read(vm.port)
		if err != nil {
			return exit, errors.Join(err, lost)
		}
		var w io.Writer
		switch kind {
		case wire.KindStdout:
			w = c.Stdout
		case wire.KindStderr:
			w = c.Stderr
		case wire.KindExit:
			return exit, errors.Join(json.Unmarshal(payload, &exit), lost)
		default:
			return exit, fmt.Errorf("%w: kind %q while a program runs", wire.ErrFrame, kind)
		}
		if w != nil && lost == nil {
			_, lost = w.Write(payload)
		}
	}
}

// killWhenDone kills QEMU when ctx is done, until the function it returns is called.
func (vm *VM) killWhenDone(ctx context.Context) (stop func()) {
	release := context.AfterFunc(ctx, func() { vm.cmd.Process.Kill() })
	return func() { release() }
}

// gone makes of an error on the port one that says what became of the machine.
func (vm *VM) gone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.EPIPE) ||
		errors.Is(err, unix.ECONNRESET) || ctx.Err() != nil {
		<-vm.ended
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	if said := vm.console.String(); said != "" {
		err = fmt.Errorf("%w; the console said:\n%s", err, said)
	}
	return err
}

// Close kills the machine and waits for its end, with which its disk goes.
func (vm *VM) Close() error {
	if vm.cmd != nil {
		vm.cmd.Process.Kill() // it may have ended
		<-vm.ended
	}
	if vm.port != nil {
		vm.port.Close()
	}
	if err := os.RemoveAll(vm.dir); err != nil {
		return fmt.Errorf("zfsvm: %w", err)
	}
	return nil
}

// makeInitrd writes the image's first file system, then an archive with the init
// and the files. The kernel unpacks one after the other.
func makeInitrd(ctx context.Context, name string, o Options) error {
	if err := copyFile(name, o.Image.Initrd); err != nil {
		return err
	}
	init := name + ".init"
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init,
		"github.com/secrate/secrate/testenv/zfsvm/guestinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build of the init: %w\n%s", err, out)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	c := newCPIO(f)
	all := map[string]string{"init": init}
	for in, from := range o.Files {
		all[strings.TrimPrefix(in, "/")] = from
	}
	names := make([]string, 0, len(all))
	for in := range all {
		names = append(names, in)
	}
	slices.Sort(names)
	for _, in := range names {
		if err := addFiles(c, in, all[in]); err != nil {
			return err
		}
	}
	return errors.Join(c.Close(), f.Close(), os.Remove(init))
}

// addFiles adds the file or directory from, by the name in.
func addFiles(c *cpioWriter, in, from string) error {
	return filepath.WalkDir(from, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, full)
		if err != nil {
			return err
		}
		name := filepath.Join(in, rel)
		st, err := os.Stat(full)
		if err != nil {
			return err
		}
		switch {
		case st.IsDir():
			if full != from && d.Type() == fs.ModeSymlink {
				return fmt.Errorf("%s is a link to a directory", full)
			}
			return c.Dir(name, uint32(st.Mode().Perm()))
		case !st.Mode().IsRegular():
			return fmt.Errorf("%s is no file", full)
		}
		f, err := os.Open(full)
		if err != nil {
			return err
		}
		defer f.Close()
		return c.File(name, uint32(st.Mode().Perm()), st.Size(), f)
	})
}

// makeDisk makes a disk of that size, which is all holes but for a table with one
// partition.
func makeDisk(name string, size int64) error {
	table, err := partitionTable(size)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(table)
	return errors.Join(err, f.Truncate(size), f.Close())
}

// partitionTable returns the first sector of a disk: a master boot record with one
// partition, from 1 MiB to the end.
func partitionTable(size int64) ([]byte, error) {
	const sector, start = 512, 1 << 20
	sectors := (size - start) / sector
	if sectors < 1 || sectors > math.MaxUint32 {
		return nil, fmt.Errorf("a disk of %d bytes: it must be larger than 1 MiB and smaller than 2 TiB", size)
	}
	mbr := make([]byte, sector)
	p := mbr[446:462]
	// The fields for cylinders, heads and sectors say that they do not fit.
	copy(p[1:4], []byte{0xfe, 0xff, 0xff})
	p[4] = 0xbf // Solaris, and OpenZFS
	copy(p[5:8], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(p[8:], start/sector)
	binary.LittleEndian.PutUint32(p[12:], uint32(sectors))
	copy(mbr[510:], []byte{0x55, 0xaa})
	return mbr, nil
}

// A tail keeps the end of what is written to it, and hands it on to w if that is
// not nil.
type tail struct {
	mu sync.Mutex // guards b and w
	b  []byte
	w  io.Writer
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = slices.Clone(t.b[max(0, len(t.b)-tailSize):])
	if t.w != nil {
		t.w.Write(p) // whether it listens does not matter to the machine
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}
