// Package testenv and the packages below it give tests real things to work on:
// file systems mounted from loop devices (loopfs), a virtual machine with OpenZFS
// (zfsvm) and pools in it (zfspool), trees under random change (treegen), exact
// descriptions of trees (manifest).
//
// # What is missing
//
// Real things need root, kernels and tools that not every machine has. A test
// says what it needs with [Need] and is skipped when something is not there:
//
//	testenv.Need(t, testenv.Root, testenv.Kernel("btrfs"), testenv.Tool("mkfs.btrfs"))
//
// A skip must not look like a success. Each one writes a line that starts with
// SKIP-MISSING to the test's output, where only go test -v shows it, and appends
//
//	<import path of the test's package> <name of the test> <what is missing>
//
// to the file that the environment variable SECRATE_SKIPS names, if it is set.
// A Makefile sets it, counts the lines after the last package and prints them.
// SECRATE_NO_SKIP=1 makes every such skip a failure, for machines that have it all.
//
// Only tests and scripts for tests import these packages. They speak to Linux.
package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// A Requirement is something that a test cannot do without.
type Requirement struct {
	// Name says what is needed: "root".
	Name string
	// Check returns nil if it is there, and otherwise why not.
	Check func() error
}

// Missing returns an error that names every one of reqs that is not there, nil
// if all are.
func Missing(reqs ...Requirement) error {
	var missing []string
	for _, r := range reqs {
		if err := r.Check(); err != nil {
			missing = append(missing, fmt.Sprintf("%s (%v)", r.Name, err))
		}
	}
	if missing == nil {
		return nil
	}
	return errors.New(strings.Join(missing, ", "))
}

// Need skips t unless all of reqs are there, and records the skip as the package
// comment says.
func Need(t testing.TB, reqs ...Requirement) {
	t.Helper()
	err := Missing(reqs...)
	if err == nil {
		return
	}
	if os.Getenv("SECRATE_NO_SKIP") == "1" {
		t.Fatalf("missing: %v", err)
	}
	if name := os.Getenv("SECRATE_SKIPS"); name != "" {
		if err := record(name, t.Name(), err); err != nil {
			t.Errorf("record a skip: %v", err)
		}
	}
	t.Skipf("SKIP-MISSING: %v", err)
}

// record appends one line to the file of skips. It is one write to a file opened
// for appending: lines of test binaries that run side by side do not mix.
func record(file, test string, missing error) error {
	pkg := filepath.Base(os.Args[0])
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Path != "" {
		pkg = strings.TrimSuffix(bi.Path, ".test")
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %s %v\n", pkg, test, missing)
	return errors.Join(err, f.Close())
}

// Root is the need to run as root.
var Root = Requirement{"root", func() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("user id is %d", uid)
	}
	return nil
}}

// LoopDevices is the need for loop devices that can be made and taken.
var LoopDevices = Requirement{"loop devices", func() error {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}}

// Tool is the need for a program in PATH.
func Tool(name string) Requirement {
	return Requirement{name, func() error {
		_, err := exec.LookPath(name)
		return err
	}}
}

// Kernel is the need for a file system that the running kernel can mount:
// "btrfs". One that is a module not yet loaded counts as there if modprobe can
// load it.
func Kernel(fs string) Requirement {
	return Requirement{"file system " + fs, func() error {
		if hasFileSystem(fs) {
			return nil
		}
		out, err := exec.Command("modprobe", "fs-"+fs).CombinedOutput()
		if err == nil && hasFileSystem(fs) {
			return nil
		}
		if msg := bytes.TrimSpace(out); len(msg) > 0 {
			return fmt.Errorf("not in /proc/filesystems: %s", msg)
		}
		return errors.New("not in /proc/filesystems")
	}}
}

func hasFileSystem(fs string) bool {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == fs {
			return true
		}
	}
	return false
}
