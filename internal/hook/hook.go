// Package hook runs the commands and calls the addresses that a configuration names, at
// which other programs hear of what is done.
//
// [Run] is a command of /bin/sh: its output is bounded, its time too, and what it has
// started is ended with it. [Ping] is a monitor as that of healthchecks.io, which raises
// an alarm when it hears nothing. [Webhook] is JSON to any address. The path of an address
// is a secret, since who knows it may report what he likes: no error contains it.
package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// MaxOutput is how much of the end of its output is kept of a command, in bytes.
const MaxOutput = 4 << 10

// Grace is how long a command that is to end may take for it before it is killed.
const Grace = 5 * time.Second

// drain is how long the output of a command that has ended is waited for. What it wrote is
// in the pipe by then; only who holds the pipe open, such as a server that it has started,
// makes it last so long.
const drain = time.Second

// A Hook is a command to run.
type Hook struct {
	Command string        // by /bin/sh -c
	Timeout time.Duration // 0 means none
	Env     []string      // KEY=VALUE, beside what we have ourselves
}

// A Result is what became of a command.
type Result struct {
	Took   time.Duration
	Output string // the end of standard output and error, at most [MaxOutput] bytes, and printable
}

// ErrTimeout is wrapped by errors that report a command which took longer than it might.
var ErrTimeout = errors.New("timed out")

// An Error reports a command that failed. Err is an [*exec.ExitError], or wraps [ErrTimeout]
// or what ended the context.
type Error struct {
	Err    error
	Output string // as that of the Result
}

// lastLines is how many lines of output an error shows.
const lastLines = 3

func (e *Error) Error() string {
	lines := strings.Split(strings.TrimSpace(e.Output), "\n")
	lines = lines[max(0, len(lines)-lastLines):]
	if text := strings.Join(lines, "; "); text != "" {
		return e.Err.Error() + ": " + text
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Run runs h. Its standard input is empty. It is a process group of its own, of which all
// gets SIGTERM when the time is over or ctx ends, and SIGKILL after [Grace]. What it leaves
// running when it ends by itself stays. The error is an [*Error] if it did not exit with 0.
func Run(ctx context.Context, h Hook) (Result, error) {
	if ctx.Err() != nil {
		return Result{}, &Error{Err: context.Cause(ctx)}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return Result{}, fmt.Errorf("hook: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", h.Command) // not CommandContext, which would kill the shell alone
	cmd.Env = append(os.Environ(), h.Env...)
	// Both are the pipe itself: Wait waits for the shell, and not for who else has the pipe.
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	err = cmd.Start()
	w.Close() // ours, or the pipe would never end
	if err != nil {
		return Result{}, fmt.Errorf("hook: %w", err)
	}
	var out tail
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(&out, r)
	}()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	var over <-chan time.Time
	if h.Timeout > 0 {
		timer := time.NewTimer(h.Timeout)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case err = <-exited:
	case <-over:
		end(cmd.Process.Pid, exited)
		err = fmt.Errorf("%w after %v", ErrTimeout, h.Timeout)
	case <-ctx.Done():
		end(cmd.Process.Pid, exited)
		err = context.Cause(ctx)
	}
	// The goroutine that reads ends with the pipe, whoever has the other end.
	r.SetReadDeadline(time.Now().Add(drain))
	<-read
	res := Result{Took: time.Since(began), Output: out.String()}
	if err != nil {
		return res, &Error{Err: err, Output: res.Output}
	}
	return res, nil
}

// end ends a process group, whose first process is waited for by who sends to exited.
func end(group int, exited <-chan error) {
	unix.Kill(-group, unix.SIGTERM)
	grace := time.NewTimer(Grace)
	defer grace.Stop()
	waited := exited
	for {
		select {
		case <-waited:
			waited = nil
		case <-grace.C:
			unix.Kill(-group, unix.SIGKILL)
			if waited != nil {
				<-waited
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
		// A group is there as long as one of its processes is, and so long its number is
		// not given to another.
		if waited == nil && errors.Is(unix.Kill(-group, 0), unix.ESRCH) {
			return
		}
	}
}

// A tail keeps the last bytes that are written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte // the newest bytes, at most twice MaxOutput
	cut bool   // there were more
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-MaxOutput):]...)
	t.cut = t.cut || len(p) > MaxOutput
	if n := len(t.buf) - MaxOutput; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
		t.cut = true
	}
	return len(p), nil
}

// String returns what was kept, with no byte in it that could do something to a terminal.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buf
	if t.cut { // perhaps in the middle of a character
		for len(b) > 0 && !utf8.RuneStart(b[0]) {
			b = b[1:]
		}
	}
	return printable(string(b))
}

// printable replaces what is neither text nor a line's end or a tab by question marks.
func printable(s string) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return '?' // one byte, so that nothing grows
	}, s)
}
