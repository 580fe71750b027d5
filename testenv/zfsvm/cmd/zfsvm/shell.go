//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/secrate/secrate/testenv/s3test"
	"github.com/secrate/secrate/testenv/zfsvm"
)

// setup makes the pool and the repository in the guest. The repository's address is
// its argument.
const setup = `set -e
zpool create -f -o cachefile=none -O atime=off -m /tank tank ` + zfsvm.Disk + `
zfs create tank/home
secrate init --repo "$1" --identity-out /root/secrate.key >/root/init.txt 2>&1 || { cat /root/init.txt; exit 1; }
secrate source add home tank/home --recursive
`

// greeting is what the shell begins with. %s are the versions of OpenZFS and Linux,
// and the repository's address.
const greeting = `
  A virtual machine with OpenZFS %s on Linux %s. You are root in it.

  tank           a pool on the scratch disk, with a dataset tank/home on /tank/home
  secrate        this tree's, with a repository on an S3 server outside of the machine:
                 %s
                 The identity is /root/secrate.key; what init said is in /root/init.txt.
                 Its source home is tank/home with its children: secrate snap

  All of it is gone when you leave: by exit, ^D or poweroff.

`

// profile is run by the shell.
const profile = `
export PS1='[\u@\h \w]\$ ' PAGER=more
alias ll='ls -l'
cat /etc/motd
`

// shell gives a person the guest's console, with a pool, an S3 server on this machine,
// and secrate set up to use it.
func shell(ctx context.Context, o zfsvm.Options) error {
	in := int(os.Stdin.Fd())
	if !term.IsTerminal(in) {
		return errors.New("shell: the standard input is no terminal; to run one program there is zfsvm run")
	}
	tmp, err := os.MkdirTemp("", "secrate-zfsvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	bin := filepath.Join(tmp, "secrate")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", bin, "github.com/secrate/secrate/cmd/secrate")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build secrate: %w\n%s", err, out)
	}
	server, err := s3test.Serve(ctx, s3test.VersityGW, "", os.Stderr)
	if err != nil {
		return err
	}
	defer server.Close()
	u, err := url.Parse(server.Endpoint)
	if err != nil {
		return err
	}
	repo := server.URLVia("http://"+zfsvm.Host+":"+u.Port(), "tank")

	rc := filepath.Join(tmp, "profile")
	if err := os.WriteFile(rc, []byte(profile), 0o644); err != nil {
		return err
	}
	o.Files = map[string]string{"/usr/local/bin/secrate": bin, "/etc/zfsvm/profile": rc}
	o.Terminal = true

	// QEMU sets the terminal up for the guest. If it is killed it cannot undo that.
	state, err := term.GetState(in)
	if err != nil {
		return err
	}
	defer term.Restore(in, state)
	fmt.Fprintln(os.Stderr, "zfsvm: starting the virtual machine")
	vm, err := zfsvm.Start(ctx, o)
	if err != nil {
		return err
	}
	defer vm.Close()

	env := server.Env()
	var out strings.Builder
	err = vm.Run(ctx, zfsvm.Command{Args: []string{"sh", "-c", setup, "sh", repo}, Env: env, Stdout: &out, Stderr: &out})
	if err != nil {
		return fmt.Errorf("set the guest up: %w: %s", err, out.String())
	}
	motd := fmt.Sprintf(greeting, vm.ZFS, vm.Kernel, repo)
	err = vm.Run(ctx, zfsvm.Command{Args: []string{"sh", "-c", `printf %s "$1" >/etc/motd`, "sh", motd}, Stdout: io.Discard})
	if err != nil {
		return err
	}
	cols, rows, err := term.GetSize(in)
	if err != nil {
		cols, rows = 80, 24
	}
	terminal := os.Getenv("TERM")
	if terminal == "" {
		terminal = "vt100"
	}
	err = vm.Run(ctx, zfsvm.Command{
		Args: []string{"bash", "--rcfile", "/etc/zfsvm/profile", "-i"}, Dir: "/root",
		Env: append(env, "TERM="+terminal), Terminal: true, Rows: rows, Cols: cols,
	})
	// How the shell ended, and whether it was by poweroff, is the person's affair.
	if exit := (*zfsvm.ExitError)(nil); errors.As(err, &exit) || errors.Is(err, zfsvm.ErrGone) && ctx.Err() == nil {
		return nil
	}
	return err
}
