package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SECRATE_TEST_HOLD_LOCK"); dir != "" {
		if _, err := Lock(context.Background(), dir, "snap home", 0); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		select {} // until killed
	}
	os.Exit(m.Run())
}

func TestEnsureStateDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "secrate")
	for range 2 {
		if err := EnsureStateDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	err := EnsureStateDir(dir)
	var me *ModeError
	if !errors.As(err, &me) || me.Hint() != "chmod 0700 "+dir || !strings.Contains(err.Error(), "mode 0750 is wider than 0700") {
		t.Errorf("with mode 0750: %v", err)
	}
}

func TestReadSecretFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "it's a key")
	if err := CreateSecretFile(path, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if err := CreateSecretFile(path, []byte("other")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	for _, tt := range []struct {
		mode fs.FileMode
		ok   bool
	}{{0o600, true}, {0o400, true}, {0o640, false}, {0o604, false}, {0o620, false}, {0o602, false}, {0o700, false}, {0o644, false}} {
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		b, err := ReadSecretFile(path)
		var me *ModeError
		switch {
		case tt.ok && (err != nil || string(b) != "secret"):
			t.Errorf("mode %v: %q, %v", tt.mode, b, err)
		case !tt.ok && (!errors.As(err, &me) || b != nil || me.Hint() != `chmod 0600 '`+dir+`/it'\''s a key'`):
			t.Errorf("mode %v: %q, %v", tt.mode, b, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		var oe *OwnerError
		if _, err := ReadSecretFile(path); !errors.As(err, &oe) || oe.UID != 12345 {
			t.Errorf("of another owner: %v", err)
		}
	}
	if _, err := ReadSecretFile(dir); err == nil {
		t.Error("read a directory")
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecretFile(fifo); err == nil {
		t.Error("read a fifo")
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, bytes.Repeat([]byte("x"), maxSecret+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecretFile(big); err == nil {
		t.Error("read a file that is too large")
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	l, err := Lock(t.Context(), dir, "snap home", 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Lock(t.Context(), dir, "snap", 0)
	var le *LockedError
	if !errors.As(err, &le) || le.PID != os.Getpid() || le.Command != "snap home" || time.Since(le.Since) > time.Minute {
		t.Errorf("locked twice: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	l, err = Lock(t.Context(), dir, "snap", 0)
	if err != nil {
		t.Fatalf("after Unlock: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestLockWaits(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l, err := Lock(t.Context(), dir, "first", 0)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var le *LockedError
		if _, err := Lock(t.Context(), dir, "second", 5*time.Second); !errors.As(err, &le) || le.Command != "first" {
			t.Errorf("the wait is over: %v", err)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("waited for %v, want 5s", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Lock(ctx, dir, "second", time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the context has ended: %v", err)
		}
		time.AfterFunc(time.Minute, func() { l.Unlock() })
		second, err := Lock(t.Context(), dir, "second", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Unlock(); err != nil {
			t.Error(err)
		}
	})
}

// TestLockDies kills a process that holds the lock.
func TestLockDies(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SECRATE_TEST_HOLD_LOCK="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("locked"))
	if _, err := out.Read(line); err != nil || string(line) != "locked" {
		t.Errorf("the other process says %q, %v", line, err)
	}
	var le *LockedError
	if _, err := Lock(t.Context(), dir, "snap", 0); !errors.As(err, &le) || le.PID != cmd.Process.Pid || le.Command != "snap home" {
		t.Errorf("while another process holds the lock: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // says that it was killed
	l, err := Lock(t.Context(), dir, "snap", 0)
	if err != nil {
		t.Fatalf("after it was killed: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Error(err)
	}
}
