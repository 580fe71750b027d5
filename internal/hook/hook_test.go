package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	tests := []struct {
		name, command string
		output        string
		err           string // empty if there is none
	}{
		{"nothing", "true", "", ""},
		{"both outputs", "echo a; echo b >&2; echo c", "a\nb\nc\n", ""},
		{"environment", `echo "$SECRATE_SOURCE $PATH"`, "home " + os.Getenv("PATH") + "\n", ""},
		{"no input", "cat; echo end", "end\n", ""},
		{"a status", "echo one; echo two; echo three; echo four >&2; exit 3", "one\ntwo\nthree\nfour\n", "exit status 3: two; three; four"},
		{"silent", "exit 1", "", "exit status 1"},
		{"killed by itself", "kill -9 $$", "", "signal: killed"},
		{"no such command", "/no/such/command 2>/dev/null", "", "exit status 127"},
		{"no text", `printf 'a\033[2Jb\377\000c\r\nd\r'`, "a?[2Jb??c\nd?", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res, err := Run(t.Context(), Hook{Command: tt.command, Timeout: time.Minute, Env: []string{"SECRATE_SOURCE=home"}})
			if res.Output != tt.output {
				t.Errorf("output %q, want %q", res.Output, tt.output)
			}
			if res.Took <= 0 || res.Took > 30*time.Second {
				t.Errorf("took %v", res.Took)
			}
			if tt.err == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var he *Error
			var ee *exec.ExitError
			if err == nil || err.Error() != tt.err || !errors.As(err, &he) || !errors.As(err, &ee) {
				t.Errorf("error %v (%T), want %s", err, err, tt.err)
			}
		})
	}
}

func TestRunOutputIsBounded(t *testing.T) {
	res, err := Run(t.Context(), Hook{Command: `i=0; while [ $i -lt 20000 ]; do echo "line $i é"; i=$((i+1)); done`, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(res.Output); n > MaxOutput || n < MaxOutput-8 || !utf8.ValidString(res.Output) || !strings.HasSuffix(res.Output, "line 19998 é\nline 19999 é\n") {
		t.Errorf("%d bytes that end in %q", n, res.Output[max(0, n-40):])
	}
}

// A tail is the same whatever the sizes in which it is written, and never more than it may be.
func FuzzTail(f *testing.F) {
	f.Add([]byte("abc\x00é"), 3, 5000)
	f.Fuzz(func(t *testing.T, text []byte, size, times int) {
		if size < 1 || times < 0 || times > 1<<12 || len(text) > 1<<10 {
			return
		}
		all := []byte(strings.Repeat(string(text), times))
		var whole, parts tail
		whole.Write(all)
		for rest := all; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			parts.Write(rest[:min(size, len(rest))])
		}
		if whole.String() != parts.String() {
			t.Errorf("%q, in parts %q", whole.String(), parts.String())
		}
		if n := len(whole.String()); n > MaxOutput || !utf8.ValidString(whole.String()) {
			t.Errorf("%d bytes: %q", n, whole.String())
		}
	})
}

// pidIn waits for a file with the number of a process in it.
func pidIn(t *testing.T, path string) int {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil && strings.HasSuffix(string(b), "\n") {
			pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("nothing in %s", path)
	return 0
}

// gone reports whether a process has ended; one that nobody has waited for yet has.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}

func TestRunEnds(t *testing.T) {
	cause := errors.New("the machine goes down")
	tests := []struct {
		name, command string
		timeout       time.Duration // 0: ctx ends instead
		is            error
		least, most   time.Duration
	}{
		{"at the time-out", `sleep 1000 & echo $! >pid; wait`, time.Second, ErrTimeout, time.Second, Grace},
		{"when the context ends", `sleep 1000 & echo $! >pid; wait`, 0, cause, 0, Grace},
		{"a child that has nothing of the pipe", `sleep 1000 >/dev/null 2>&1 & echo $! >pid; wait`, time.Second, ErrTimeout, time.Second, Grace},
		{"a child that takes no hint", `(trap '' TERM; echo mine; while :; do sleep 1; done) & echo $! >pid; wait`, time.Second, ErrTimeout, Grace, Grace + 4*time.Second},
		{"a command that takes no hint", `trap '' TERM; echo $$ >pid; while :; do sleep 1; done`, time.Second, ErrTimeout, Grace, Grace + 4*time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			type outcome struct {
				res Result
				err error
			}
			done := make(chan outcome)
			go func() {
				res, err := Run(ctx, Hook{Command: "cd '" + dir + "'; " + tt.command, Timeout: tt.timeout})
				done <- outcome{res, err}
			}()
			pid := pidIn(t, filepath.Join(dir, "pid"))
			if tt.timeout == 0 {
				if gone(pid) {
					t.Error("it did not run")
				}
				cancel(cause)
			}
			o := <-done
			if !errors.Is(o.err, tt.is) {
				t.Errorf("error %v, want %v", o.err, tt.is)
			}
			if o.res.Took < tt.least || o.res.Took > tt.most {
				t.Errorf("took %v, want %v to %v", o.res.Took, tt.least, tt.most)
			}
			// SIGKILL is not waited for where the parent was killed, too.
			for deadline := time.Now().Add(5 * time.Second); !gone(pid); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					unix.Kill(pid, unix.SIGKILL)
					t.Fatalf("process %d was left behind", pid)
				}
			}
		})
	}
}

// TestRunNot begins nothing when its context has ended.
func TestRunNot(t *testing.T) {
	cause := errors.New("the machine goes down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	path := filepath.Join(t.TempDir(), "made")
	_, err := Run(ctx, Hook{Command: "touch '" + path + "'"})
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it was run")
	}
}

// TestRunTerm gives a command the time to clean up.
func TestRunTerm(t *testing.T) {
	res, err := Run(t.Context(), Hook{Command: `trap 'echo cleaned up; exit 7' TERM; echo begun; while :; do sleep 0.1; done`, Timeout: time.Second})
	// A shell may say between the two that its sleep was ended.
	if !errors.Is(err, ErrTimeout) || !strings.HasPrefix(res.Output, "begun\n") || !strings.HasSuffix(res.Output, "cleaned up\n") ||
		!strings.HasPrefix(fmt.Sprint(err), "timed out after 1s: begun; ") {
		t.Errorf("%q, %v", res.Output, err)
	}
}

// TestRunGrandchild ends though what was started goes on, with the pipe in its hand.
func TestRunGrandchild(t *testing.T) {
	dir := t.TempDir()
	res, err := Run(t.Context(), Hook{Command: "cd '" + dir + "'; echo before; sleep 1000 & echo $! >pid; echo after", Timeout: time.Minute})
	pid := pidIn(t, filepath.Join(dir, "pid"))
	defer unix.Kill(pid, unix.SIGKILL)
	if err != nil || res.Output != "before\nafter\n" || res.Took > 20*time.Second {
		t.Errorf("%q after %v, %v", res.Output, res.Took, err)
	}
	if gone(pid) {
		t.Error("what the command left running was ended")
	}
}
