//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/secrate/secrate/testenv/zfsvm"
)

// tag is the build tag of files whose tests need OpenZFS.
const tag = "zfs"

// grace is how much longer than its own time limit a test binary may take, to say
// that it was reached.
const grace = time.Minute

// A testPackage has tests that need OpenZFS.
type testPackage struct {
	ImportPath, Dir string
	Tests           []string
}

// test runs the tests with the tag in one virtual machine, with args as arguments, and
// prints what go test -json would. It says nothing of how they went: what reads that does.
func test(ctx context.Context, o zfsvm.Options, run string, timeout time.Duration, args, patterns []string) error {
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	match, err := regexp.Compile(run)
	if err != nil {
		return err
	}
	packages, err := find(ctx, patterns, match)
	if err != nil {
		return err
	}
	if len(packages) == 0 {
		return fmt.Errorf("no tests with the build tag %s in %s", tag, strings.Join(patterns, " "))
	}
	tmp, err := os.MkdirTemp("", "secrate-zfsvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)

	o.Files = map[string]string{}
	var built []testPackage
	for i, p := range packages {
		bin := filepath.Join(tmp, fmt.Sprintf("%d.test", i))
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", tag+",secrate_crash", "-o", bin, p.ImportPath)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			event("build-output", p.ImportPath, fmt.Sprintf("go test -c %s: %v\n%s", p.ImportPath, err, out))
			event("fail", p.ImportPath, "")
			continue
		}
		o.Files[guestDir(p)+"/"+binary] = bin
		if data := filepath.Join(p.Dir, "testdata"); exists(data) {
			o.Files[guestDir(p)+"/testdata"] = data
		}
		built = append(built, p)
	}
	if len(built) == 0 {
		return nil
	}
	vm, err := zfsvm.Start(ctx, o)
	if err != nil {
		return err
	}
	defer func() { vm.Close() }()
	fmt.Fprintf(os.Stderr, "zfsvm: OpenZFS %s on Linux %s, up in %.1f s\n", vm.ZFS, vm.Kernel, vm.Boot.Seconds())
	for _, p := range built {
		err := runTests(ctx, vm, p, timeout, args)
		if !errors.Is(err, zfsvm.ErrGone) || ctx.Err() != nil {
			if err != nil {
				return err
			}
			continue
		}
		// One package's tests took the machine down: that is their failure. The
		// others get another machine.
		vm.Close()
		if vm, err = zfsvm.Start(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// binary is what a package's test binary is called in its directory in the guest.
const binary = "secrate.test"

func guestDir(p testPackage) string { return "/src/" + p.ImportPath }

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// event prints a line as of go test -json.
func event(action, pkg, output string) {
	e := map[string]string{"Action": action, "Package": pkg}
	if action == "build-output" {
		e = map[string]string{"Action": action, "ImportPath": pkg, "Output": output}
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic("zfsvm: internal error: " + err.Error())
	}
	fmt.Printf("%s\n", b)
}

// runTests runs the tests of one package. An error is not one of theirs, unless
// it wraps zfsvm.ErrGone.
func runTests(ctx context.Context, vm *zfsvm.VM, p testPackage, timeout time.Duration, args []string) error {
	convert := exec.Command("go", "tool", "test2json", "-t", "-p", p.ImportPath)
	in, err := convert.StdinPipe()
	if err != nil {
		return err
	}
	convert.Stdout, convert.Stderr = os.Stdout, os.Stderr
	if err := convert.Start(); err != nil {
		return err
	}
	start := time.Now()
	limited, cancel := context.WithTimeout(ctx, timeout+grace)
	defer cancel()
	ran := vm.Run(limited, zfsvm.Command{
		Args: append([]string{
			"./" + binary, "-test.v=test2json", "-test.paniconexit0", "-test.timeout=" + timeout.String(),
			"-test.run=^(" + strings.Join(p.Tests, "|") + ")$",
		}, args...),
		Dir: guestDir(p), Env: environment(), Stdout: in, Stderr: in,
	})
	// The last line is that of go test.
	took := time.Since(start).Seconds()
	if ran == nil {
		fmt.Fprintf(in, "ok  \t%s\t%.3fs\n", p.ImportPath, took)
	} else {
		fmt.Fprintf(in, "%v\nFAIL\t%s\t%.3fs\n", ran, p.ImportPath, took)
	}
	converted := errors.Join(in.Close(), convert.Wait())
	if ran != nil {
		// Whatever the tests have said, if they came to say it.
		event("fail", p.ImportPath, "")
	}
	if exit := (*zfsvm.ExitError)(nil); errors.As(ran, &exit) {
		ran = nil
	}
	return errors.Join(ran, converted)
}

// environment are the variables that say how tests are run.
func environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "SECRATE_TEST_") || strings.HasPrefix(kv, "SECRATE_NO_SKIP=") {
			env = append(env, kv)
		}
	}
	return append(env, "SECRATE_ZFS_DISK="+zfsvm.Disk)
}

// find returns the packages that have tests with the tag and a name that matches.
func find(ctx context.Context, patterns []string, match *regexp.Regexp) ([]testPackage, error) {
	tagged, err := testFiles(ctx, append([]string{"-tags", tag}, patterns...))
	if err != nil {
		return nil, err
	}
	// Where there is nothing without the tag, that is no error (-e).
	plain, err := testFiles(ctx, append([]string{"-e"}, patterns...))
	if err != nil {
		return nil, err
	}
	var packages []testPackage
	for path, l := range tagged {
		p := testPackage{ImportPath: path, Dir: l.Dir}
		for _, name := range l.files() {
			if slices.Contains(plain[path].files(), name) {
				continue
			}
			tests, err := testsIn(filepath.Join(l.Dir, name))
			if err != nil {
				return nil, err
			}
			for _, t := range tests {
				if match.MatchString(t) {
					p.Tests = append(p.Tests, t)
				}
			}
		}
		if p.Tests != nil {
			packages = append(packages, p)
		}
	}
	slices.SortFunc(packages, func(a, b testPackage) int { return strings.Compare(a.ImportPath, b.ImportPath) })
	return packages, nil
}

// A listed is what go list says of a package.
type listed struct {
	ImportPath, Dir           string
	TestGoFiles, XTestGoFiles []string
}

func (l listed) files() []string { return slices.Concat(l.TestGoFiles, l.XTestGoFiles) }

func testFiles(ctx context.Context, args []string) (map[string]listed, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, &stderr)
	}
	all := map[string]listed{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		all[l.ImportPath] = l
	}
}

// testsIn returns the names of the tests in a file.
func testsIn(name string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var tests []string
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
			tests = append(tests, fn.Name.Name)
		}
	}
	return tests, nil
}
