//go:build linux && zfsvm

package zfsvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv"
)

// version is a flag of the tests: make test-zfs tries what it was told to make.
var version = flag.String("zfs", string(Default), "`version` of OpenZFS in the machine")

// start starts a virtual machine for a test.
func start(t *testing.T, o Options) *VM {
	t.Helper()
	testenv.Need(t, testenv.Tool("qemu-system-x86_64"))
	var err error
	if o.Image, err = Build(t.Context(), Version(*version), t.Output()); err != nil {
		t.Fatal(err)
	}
	o.Memory = 768 << 20
	vm, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(vm.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s would stay if this process were killed", vm.dir)
	}
	t.Logf("OpenZFS %s, Linux %s, up in %v", vm.ZFS, vm.Kernel, vm.Boot)
	return vm
}

func TestVM(t *testing.T) {
	noise := make([]byte, 3<<20)
	for i, sum := 0, sha256.Sum256(nil); i < len(noise); i, sum = i+len(sum), sha256.Sum256(sum[:]) {
		copy(noise[i:], sum[:]) // all bytes, also those that a terminal would take for something
	}
	file := filepath.Join(t.TempDir(), "noise")
	if err := os.WriteFile(file, noise, 0o640); err != nil {
		t.Fatal(err)
	}
	vm := start(t, Options{Files: map[string]string{"/in/noise": file}, Disk: -1})

	t.Run("bytes", func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		err := vm.Run(t.Context(), Command{
			Args: []string{"sh", "-c", "cat noise & cat noise >&2; wait"}, Dir: "/in", Stdout: &stdout, Stderr: &stderr,
		})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(stdout.Bytes(), noise) || !bytes.Equal(stderr.Bytes(), noise) {
			t.Errorf("%d and %d bytes came out, which are not the %d that went in", stdout.Len(), stderr.Len(), len(noise))
		}
	})
	t.Run("status", func(t *testing.T) {
		for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -9 $$": 137} {
			err := vm.Run(t.Context(), Command{Args: []string{"sh", "-c", script}})
			got := 0
			if exit := (*ExitError)(nil); errors.As(err, &exit) {
				got, err = exit.Status, nil
			}
			if got != want || err != nil {
				t.Errorf("%s: %d, %v", script, got, err)
			}
		}
		for _, c := range []Command{{Args: []string{"no-such-program"}}, {Args: []string{"true"}, Dir: "/nowhere"}, {}} {
			if err := vm.Run(t.Context(), c); err == nil || errors.Is(err, ErrGone) {
				t.Errorf("%q in %q: %v", c.Args, c.Dir, err)
			}
		}
	})
	t.Run("environment", func(t *testing.T) {
		var out strings.Builder
		err := vm.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo $A$HOME; date +%s"}, Env: []string{"A=a b"}, Stdout: &out})
		said, date, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
		sec, _ := strconv.ParseInt(date, 10, 64)
		if err != nil || said != "a b/root" || time.Since(time.Unix(sec, 0)).Abs() > time.Minute {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
	t.Run("background", func(t *testing.T) { // what is left behind does not write into the next one's output
		err := vm.Run(t.Context(), Command{Args: []string{"sh", "-c", "(sleep 5; echo late) &"}, Stdout: io.Discard})
		if err == nil {
			t.Error("a process that holds the output is no error")
		}
		var out strings.Builder
		if err := vm.Run(t.Context(), Command{Args: []string{"sh", "-c", "sleep 3; echo mine"}, Stdout: &out}); err != nil || out.String() != "mine\n" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
	t.Run("network", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err == nil {
				fmt.Fprintln(c, "hello")
				c.Close()
			}
		}()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		var out strings.Builder
		if err := vm.Run(t.Context(), Command{Args: []string{"busybox", "nc", Host, port}, Stdout: &out}); err != nil || out.String() != "hello\n" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
	t.Run("panic", func(t *testing.T) { // last: the machine is gone then
		err := vm.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo c >/proc/sysrq-trigger"}})
		if !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "sysrq triggered crash") {
			t.Errorf("a kernel that panics: %v", err)
		}
		if err := vm.Run(t.Context(), Command{Args: []string{"true"}}); !errors.Is(err, ErrGone) {
			t.Errorf("a program on a machine that is gone: %v", err)
		}
	})
}

// When the context of a program ends, the machine does, and nothing is left of it.
func TestCancel(t *testing.T) {
	vm := start(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	began := make(chan struct{}, 1)
	go func() { <-began; cancel() }()
	err := vm.Run(ctx, Command{Args: []string{"sh", "-c", "echo; sleep 1000"}, Stdout: writerFunc(func() { began <- struct{}{} })})
	if !errors.Is(err, ErrGone) || !errors.Is(err, context.Canceled) {
		t.Errorf("a program that is cancelled: %v", err)
	}
	if err := unix.Kill(vm.cmd.Process.Pid, 0); err != unix.ESRCH {
		t.Errorf("QEMU is still there: %v", err)
	}
}

type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) { f(); return len(p), nil }

// A machine dies with the process that started it, even if that is killed.
func TestDiesWithParent(t *testing.T) {
	const variable = "SECRATE_TEST_ZFSVM_CHILD"
	if os.Getenv(variable) == "1" {
		vm := start(t, Options{})
		fmt.Printf("qemu %d\n", vm.cmd.Process.Pid)
		vm.Run(t.Context(), Command{Args: []string{"sleep", "1000"}})
		return
	}
	testenv.Need(t, testenv.Tool("qemu-system-x86_64"))
	child := exec.Command(os.Args[0], "-test.run=^TestDiesWithParent$", "-zfs="+*version)
	child.Env = append(os.Environ(), variable+"=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "qemu %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatalf("QEMU is not there before: %v", err)
	}
	child.Process.Kill()
	child.Wait()
	// It is nobody's child now: whether it has ended is only to be asked again and again.
	for deadline := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) != unix.ESRCH; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("QEMU goes on after its parent was killed")
		}
	}
}
