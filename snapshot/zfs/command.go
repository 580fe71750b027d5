package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A CommandError reports a command that failed.
type CommandError struct {
	Args   []string // the command, too
	Stderr string   // what it had to say, without the newline at the end
	Err    error
}

func (e *CommandError) Error() string {
	text := e.Stderr
	if text == "" {
		text = e.Err.Error()
	}
	return strings.Join(e.Args[:min(2, len(e.Args))], " ") + ": " + text
}

func (e *CommandError) Unwrap() error { return e.Err }

// kinds are what parts of the commands' messages mean, for what is said to a person. Only
// the C locale is read.
var kinds = []struct {
	text string
	err  error
}{
	{"cannot be auto-loaded", ErrNoZFS},
	{"must be run as root", fs.ErrPermission},
	{"ermission denied", fs.ErrPermission},
	{"does not exist", fs.ErrNotExist},
	{"could not find any snapshots to destroy", fs.ErrNotExist},
	{"no such pool", fs.ErrNotExist},
	{"not a ZFS filesystem", ErrNotZFS},
	{"suspended", ErrSuspended},
	{"already exists", fs.ErrExist},
	{"key must be loaded", ErrKey},
	{"key not loaded", ErrKey},
	{"dataset key", ErrKey},
	{"Input/output error", ErrDamaged},
	{"checksum mismatch", ErrDamaged},
}

func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrReplaced) }

// failure makes an error of what became of a command.
func failure(args []string, stderr string, err error) error {
	stderr = strings.TrimSpace(stderr)
	// A usage text says nothing that the line before it does not.
	if i := strings.Index(stderr, "\nusage:"); i >= 0 {
		stderr = strings.TrimSpace(stderr[:i])
	}
	stderr = strings.ReplaceAll(stderr, "\n", "; ")
	text := stderr // without names: they may be anything
	for _, arg := range args {
		if strings.ContainsAny(arg, "/@#") {
			text = strings.ReplaceAll(text, arg, "")
		}
	}
	for _, k := range kinds {
		if strings.Contains(text, k.text) {
			err = k.err
			break
		}
	}
	return &CommandError{args, stderr, err}
}

// places are where the commands are when PATH does not say: cron's often does not.
var places = []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"}

// command prepares one of the commands.
func command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		i := slices.IndexFunc(places, func(dir string) bool {
			st, err := os.Stat(filepath.Join(dir, name))
			return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
		})
		if i < 0 {
			return nil, fmt.Errorf("%s(8) is not installed: %w", name, ErrNoZFS)
		}
		path = filepath.Join(places[i], name)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Args[0] = name
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	// Ctrl-C is for us: we end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd, nil
}

// run runs a command.
func run(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

// output runs a command and returns what it printed. It does not wait for one that the kernel
// does not let go: that is what becomes of them when a pool is suspended.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd, err := command(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return nil, failure(cmd.Args, "", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(stallCheck)
	defer tick.Stop()
	cancelled := ctx.Done()
	var giveUp <-chan time.Time
	for {
		select {
		case err := <-done:
			if err != nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if err != nil {
				return nil, failure(cmd.Args, stderr.String(), err)
			}
			return stdout.Bytes(), nil
		case <-cancelled: // it has been killed
			cancelled, giveUp = nil, time.After(grace)
		case <-giveUp:
			return nil, failure(cmd.Args, "", context.Cause(ctx))
		case <-tick.C:
			if name == "zfs" {
				if pools := suspended(ctx); len(pools) > 0 {
					cmd.Process.Kill()
					return nil, failure(cmd.Args, "", fmt.Errorf("pool %s: %w", strings.Join(pools, ", "), ErrSuspended))
				}
			}
		}
	}
}

// grace is how long a command that has been killed is waited for.
const grace = 5 * time.Second

// suspended returns the pools that are.
func suspended(ctx context.Context) []string {
	rows, err := table(ctx, 2, "zpool", "list", "-Hp", "-o", "name,health")
	if err != nil {
		return nil
	}
	var pools []string
	for _, r := range rows {
		if r[1] == "SUSPENDED" {
			pools = append(pools, r[0])
		}
	}
	return pools
}

// table runs a command that prints so many columns, separated by tabs.
func table(ctx context.Context, columns int, name string, args ...string) ([][]string, error) {
	out, err := output(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	return parseTable(out, columns, name+" "+args[0])
}

func parseTable(out []byte, columns int, what string) ([][]string, error) {
	var rows [][]string
	for line := range strings.Lines(string(out)) {
		r := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(r) != columns {
			return nil, fmt.Errorf("%s: %d columns in place of %d: %q", what, len(r), columns, line)
		}
		rows = append(rows, r)
	}
	return rows, nil
}
