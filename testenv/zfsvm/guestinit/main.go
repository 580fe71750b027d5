//go:build linux

// Guestinit is the first process in a zfsvm's guest. It mounts what there is to
// mount, loads the modules that the image lists, brings the network up, says hello
// and then runs what the host asks for, one program after the other, until the
// machine is switched off.
//
// It reaps the processes it starts. Those that they leave behind stay as zombies:
// the machine does not live long enough for that to matter.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv/zfsvm/wire"
)

// environment is what every program has.
var environment = []string{
	"PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin",
	"HOME=/root", "USER=root", "LOGNAME=root", "TMPDIR=/tmp", "LANG=C.UTF-8", "TERM=dumb",
}

func main() {
	err := run()
	fmt.Fprintln(os.Stderr, "guestinit:", err) // on the console
	off()
}

func off() {
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1) // and the kernel panics
}

func run() error {
	// What poweroff and halt of busybox send.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM)
	go func() { <-signals; off() }()

	up := bringUp()
	port, err := openPort(wire.Port)
	if err != nil {
		return errors.Join(up, err)
	}
	hello := wire.Hello{Kernel: contents("/proc/sys/kernel/osrelease"), ZFS: contents("/sys/module/zfs/version")}
	if up != nil {
		hello.Error = up.Error()
	}
	if err := wire.WriteJSON(port, wire.KindHello, hello); err != nil {
		return err
	}
	in := bufio.NewReader(port)
	out := &lockedWriter{w: port}
	for {
		kind, payload, err := wire.Read(in)
		if err != nil {
			return err
		}
		if kind != wire.KindRun {
			return fmt.Errorf("a frame of kind %q from the host", kind)
		}
		var r wire.Run
		if err := json.Unmarshal(payload, &r); err != nil {
			return err
		}
		if err := wire.WriteJSON(out, wire.KindExit, execute(r, out)); err != nil {
			return err
		}
	}
}

func bringUp() error {
	var errs []error
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sys", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"dev", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"pts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmp", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=75%"},
	} {
		err := os.MkdirAll(m.target, 0o755)
		if err == nil {
			err = unix.Mount(m.source, m.target, m.kind, m.flags, m.data)
		}
		if err != nil && err != unix.EBUSY { // the kernel may have mounted /dev
			errs = append(errs, fmt.Errorf("mount %s: %w", m.target, err))
		}
	}
	errs = append(errs, unix.Sethostname([]byte("zfsvm")))
	os.Symlink("/proc/self/fd", "/dev/fd")
	os.Symlink("/proc/self/mounts", "/etc/mtab")
	errs = append(errs, loadModules("/etc/zfsvm/modules"))
	for _, args := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "link", "set", "eth0", "up"},
		{"ip", "addr", "add", "10.0.2.15/24", "dev", "eth0"},
		{"ip", "route", "add", "default", "via", "10.0.2.2"},
	} {
		if out, err := exec.Command("/bin/busybox", args...).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out))
		}
	}
	// A device that is new in the kernel is there a moment later here.
	if strings.Contains(contents("/proc/cmdline"), "zfsvm.disk") {
		errs = append(errs, wait("/dev/vda1"))
	}
	return errors.Join(errs...)
}

// loadModules loads the kernel modules that a file lists, a path and parameters on
// each line, those first that others need.
func loadModules(list string) error {
	for line := range strings.Lines(contents(list)) {
		name, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), params, 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// openPort opens the virtio serial port with that name. There is no udev to make
// links to it.
func openPort(name string) (*os.File, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if contents(n) == name {
				dev := "/dev/" + filepath.Base(filepath.Dir(n))
				// By system call: a descriptor that blocks waits in the kernel
				// until the host takes what it writes.
				fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					return nil, fmt.Errorf("open %s: %w", dev, err)
				}
				return os.NewFile(uintptr(fd), dev), nil
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no virtio serial port is called %s", name)
		}
	}
}

func wait(name string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := os.Stat(name)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// contents returns what is in a file, without the newline at its end, "" if it
// cannot be read.
func contents(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// A lockedWriter lets several goroutines write frames.
type lockedWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// execute runs a program to its end.
func execute(r wire.Run, out io.Writer) wire.Exit {
	if r.Now != 0 {
		tv := unix.NsecToTimeval(r.Now)
		if err := unix.Settimeofday(&tv); err != nil {
			return wire.Exit{Error: fmt.Sprintf("set the time: %v", err)}
		}
	}
	if len(r.Args) == 0 {
		return wire.Exit{Error: "no program named"}
	}
	env := append(environment[:len(environment):len(environment)], r.Env...)
	os.Setenv("PATH", strings.TrimPrefix(environment[0], "PATH=")) // for LookPath
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.Env, cmd.Dir = env, r.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if r.Terminal {
		tty, err := os.OpenFile("/dev/ttyS0", os.O_RDWR, 0)
		if err != nil {
			return wire.Exit{Error: err.Error()}
		}
		defer tty.Close()
		if r.Rows > 0 && r.Cols > 0 {
			unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(r.Rows), Col: uint16(r.Cols)})
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	} else {
		cmd.Stdout = wire.Stream{W: out, Kind: wire.KindStdout}
		cmd.Stderr = wire.Stream{W: out, Kind: wire.KindStderr}
		// A process that the program has left behind may hold its output open.
		cmd.WaitDelay = 3 * time.Second
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			return wire.Exit{Status: 128 + int(ws.Signal())}
		}
		return wire.Exit{Status: exit.ExitCode()}
	}
	if err != nil {
		return wire.Exit{Status: 127, Error: err.Error()}
	}
	return wire.Exit{}
}
