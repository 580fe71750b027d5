package config

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A LockedError reports that another process is at work on the state.
type LockedError struct {
	PID     int // 0 when the holder has not said yet who it is
	Command string
	Since   time.Time
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return "another process is at work"
	}
	return fmt.Sprintf("secrate %s (process %d, since %s) is at work", e.Command, e.PID, e.Since.Local().Format("2006-01-02 15:04:05"))
}

// Hint says what can be done.
func (e *LockedError) Hint() string {
	return "wait until it is done; secrate status shows how far it is"
}

// A StateLock keeps other processes from changing the state. The kernel releases
// it when the process ends, however it does.
type StateLock struct {
	f *os.File
}

// holder is what the lock file says of who holds it. It means something only
// while the file is locked.
type holder struct {
	PID     int       `json:"pid"`
	Command string    `json:"command"`
	Since   time.Time `json:"since"`
}

// lockPoll is how often a waiting Lock tries again.
const lockPoll = 200 * time.Millisecond

// Lock locks the state directory for command, which is what another process is
// told: "snap home", say. While somebody else has the lock it waits, as long as
// wait at most; then the error is a [*LockedError] that says who has it. ctx ends
// the waiting earlier, with its own error.
func Lock(ctx context.Context, stateDir, command string, wait time.Duration) (*StateLock, error) {
	return lock(ctx, filepath.Join(stateDir, "lock"), command, wait)
}

// LockDaemon is Lock for the one daemon of a state directory, which has the state itself only
// while it works. It does not wait.
func LockDaemon(ctx context.Context, stateDir string) (*StateLock, error) {
	return lock(ctx, filepath.Join(stateDir, "daemon.lock"), "daemon", 0)
}

func lock(ctx context.Context, path, command string, wait time.Duration) (*StateLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(wait)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
		left := time.Until(deadline)
		if left <= 0 {
			locked := readHolder(f)
			f.Close()
			return nil, locked
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(min(left, lockPoll)):
		}
	}
	// The file stays when the lock is released: to remove it could take it from
	// under one who has opened it and is about to lock it.
	b, err := json.Marshal(holder{PID: os.Getpid(), Command: command, Since: time.Now().Round(0)})
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(append(b, '\n'), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &StateLock{f: f}, nil
}

// Unlock releases the lock.
func (l *StateLock) Unlock() error {
	// Closing releases it even if this fails, and nobody reads it unlocked.
	_ = l.f.Truncate(0)
	return l.f.Close()
}

func readHolder(f *os.File) *LockedError {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<10))
	var h holder
	if err != nil || json.Unmarshal(b, &h) != nil {
		return new(LockedError) // taken this moment, and not yet written
	}
	return &LockedError{PID: h.PID, Command: h.Command, Since: h.Since}
}
