// Package status lets one process see what another is doing, and what came of the
// last run: secrate status beside a secrate snap that cron has started.
//
// In the state directory, all of mode 0600:
//
//	status.json    what the running command does, rewritten at most once a second
//	status.lock    locked as long as that command lives
//	results.json   of each source, the last success and the last failure
//	results.lock   locked while results.json is rewritten
//	schedule.json  of the daemon: until when the times of schedules are dealt with
//
// status.json is removed when its writer is done. If it is there and nobody holds
// the lock, the writer was killed; the kernel releases the lock of a process
// however it ends, which process ids and their start times cannot promise across
// containers. Both files are replaced by renaming, so a reader sees a whole one.
//
// None of this is needed to write or read a history: a caller may go on when it
// fails.
package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The phases of a source, in their order. Other words may be used.
const (
	Snapshot   = "snapshot"   // a snapshot is being taken
	Reading    = "reading"    // its changes are being read
	Uploading  = "uploading"  // packs are being uploaded
	Committing = "committing" // the manifest is being written
)

// A Status is what a command does.
type Status struct {
	PID     int       `json:"pid"`
	Command string    `json:"command"`
	Started time.Time `json:"started"`
	Updated time.Time `json:"updated"`
	Sources []Source  `json:"sources"` // in the order they were begun

	// Alive is whether the command still runs. If not, it was killed.
	Alive bool `json:"-"`
}

// A Source is what a command does with one source.
type Source struct {
	Name  string    `json:"name"`
	Phase string    `json:"phase"`
	Since time.Time `json:"since"` // when the phase began
	Item  string    `json:"item"`  // file or object it is at
	Done  int64     `json:"done"`  // bytes, in this phase
	Total int64     `json:"total"` // -1 when not known
	Files int64     `json:"files"` // in this phase
	Rate  float64   `json:"rate"`  // bytes per second, the last seconds counting most
	Ended bool      `json:"ended"` // nothing is done with it any more
	Error string    `json:"error"` // why it failed, if it did
}

// Left returns how much longer the phase will take at the present rate; ok is
// false when that cannot be told.
func (s *Source) Left() (left time.Duration, ok bool) {
	if s.Ended || s.Total < 0 || s.Done >= s.Total || s.Rate <= 0 {
		return 0, false
	}
	seconds := float64(s.Total-s.Done) / s.Rate
	if seconds > 1e9 {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

const (
	statusFile = "status.json"
	statusLock = "status.lock"
)

// ErrIdle is returned by Read when no command runs and none was killed.
var ErrIdle = errors.New("no command is running")

// ErrBusy is returned by Start when another command writes its status.
var ErrBusy = errors.New("another command is running")

// Read returns what the command that runs does, or what the last one did when it
// was killed. The error is [ErrIdle] when there is no such command.
func Read(dir string) (*Status, error) {
	alive, err := held(filepath.Join(dir, statusLock))
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, statusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrIdle
	}
	if err != nil {
		return nil, err
	}
	s := &Status{Alive: alive}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, statusFile), err)
	}
	return s, nil
}

// How often the file is written at most, how long after the last change the rate
// is still left to fall, and after how long a measurement weighs 1/e.
const (
	writeEvery = time.Second
	fallFor    = 30 * time.Second
	rateMemory = 10 * time.Second
)

// A Writer writes the status of this process. Its methods may be called
// concurrently.
type Writer struct {
	dir  string
	lock *os.File
	stop chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex // guards what follows
	status  Status
	sources []*SourceWriter
	changed time.Time
	wrote   time.Time
	closed  bool
	err     error // the last one of writing
}

// Start begins to write what command ("snap home", say) does into the directory.
// The caller calls Close. The error is [ErrBusy] when another process does so.
func Start(dir, command string) (*Writer, error) {
	lock, err := lockFile(filepath.Join(dir, statusLock), 2*time.Second)
	if err != nil {
		return nil, err
	}
	removeTemps(filepath.Join(dir, statusFile))
	now := time.Now().Round(0)
	w := &Writer{dir: dir, lock: lock, stop: make(chan struct{}), changed: now}
	w.status = Status{PID: os.Getpid(), Command: command, Started: now, Sources: []Source{}}
	w.write(now)
	if w.err != nil {
		lock.Close()
		return nil, w.err
	}
	w.done.Go(w.run)
	return w, nil
}

func (w *Writer) run() {
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			return
		case now := <-tick.C:
			w.mu.Lock()
			if w.changed.After(w.wrote) || now.Sub(w.changed) < fallFor {
				w.write(now)
			}
			w.mu.Unlock()
		}
	}
}

// write writes the status as it is now. The caller has locked w.
func (w *Writer) write(now time.Time) {
	for i, s := range w.sources {
		s.measure(now)
		w.status.Sources[i] = s.source
	}
	w.status.Updated = now.Round(0)
	w.wrote = now
	w.err = writeJSON(filepath.Join(w.dir, statusFile), &w.status, false)
}

// Source returns the writer for one source; the same one for the same name.
func (w *Writer) Source(name string) *SourceWriter {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sources {
		if s.source.Name == name {
			return s
		}
	}
	now := time.Now().Round(0)
	s := &SourceWriter{w: w, source: Source{Name: name, Total: -1, Since: now}, at: now}
	w.sources = append(w.sources, s)
	w.status.Sources = append(w.status.Sources, s.source)
	w.changed = time.Now()
	return s
}

// Close ends the writing: there is no status any more. The error is that of the
// last attempt to write, if it failed; there is no need to act on it.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	w.mu.Unlock()
	close(w.stop)
	w.done.Wait()
	// Before the lock is released: after that, the file may be another's.
	err := os.Remove(filepath.Join(w.dir, statusFile))
	if err == nil {
		err = w.err
	}
	return errors.Join(err, w.lock.Close())
}

// A SourceWriter tells of one source. It is a Progress, too: Start begins a
// phase. Its methods may be called concurrently.
type SourceWriter struct {
	w *Writer // its mu guards what follows

	source Source
	rate   float64   // as Source.Rate, not rounded
	at     time.Time // of the last measurement of the rate
	had    int64     // Done at that time
	known  bool      // that there was one, in this phase
}

// Start begins a phase of total bytes, -1 when nobody knows.
func (s *SourceWriter) Start(phase string, total int64) {
	s.change(func(now time.Time) {
		s.source = Source{Name: s.source.Name, Phase: phase, Since: now, Total: max(total, -1)}
		s.at, s.had, s.known = now, 0, false
	})
}

// Add says that n more bytes are done.
func (s *SourceWriter) Add(n int64) {
	s.change(func(time.Time) { s.source.Done += n })
}

// AddFiles says that n more files are done.
func (s *SourceWriter) AddFiles(n int64) {
	s.change(func(time.Time) { s.source.Files += n })
}

// SetTotal says how many bytes the phase has after all.
func (s *SourceWriter) SetTotal(total int64) {
	s.change(func(time.Time) { s.source.Total = max(total, -1) })
}

// Item says which file or object is dealt with now.
func (s *SourceWriter) Item(name string) {
	s.change(func(time.Time) { s.source.Item = name })
}

// Done says that nothing more is done with the source, until the next Start.
func (s *SourceWriter) Done(err error) {
	s.change(func(time.Time) {
		s.source.Ended, s.source.Rate, s.source.Item = true, 0, ""
		if err != nil {
			s.source.Error = err.Error()
		}
	})
}

func (s *SourceWriter) change(f func(now time.Time)) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.changed = time.Now()
	f(s.w.changed.Round(0))
}

func (s *SourceWriter) measure(now time.Time) {
	d := now.Sub(s.at)
	if s.source.Ended || d <= 0 {
		return
	}
	rate := float64(s.source.Done-s.had) / d.Seconds()
	if s.known {
		rate = s.rate + (rate-s.rate)*(1-math.Exp(-d.Seconds()/rateMemory.Seconds()))
	}
	// Before the first byte nothing is known: a slow start is no slow rate.
	s.known = s.known || s.source.Done > 0
	s.rate, s.source.Rate = rate, math.Round(rate)
	s.at, s.had = now, s.source.Done
}

// lockFile locks the file at path for this process alone. It tries for a while: a
// reader that looks whether the file is locked locks it for a moment itself.
func lockFile(path string, patience time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		case time.Since(start) >= patience:
			f.Close()
			return nil, ErrBusy
		default:
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// held reports whether a process has locked the file at path.
func held(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // which also unlocks it
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		switch {
		case err == nil:
			return false, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return true, nil
		default:
			return false, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
	}
}

// writeJSON replaces the file at path. If durable is not set, a crash of the whole
// machine may leave it empty.
func writeJSON(path string, v any, durable bool) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil && durable {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// removeTemps removes what writers that were killed have left of the file at path.
// The caller holds the file's lock.
func removeTemps(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return // they are in nobody's way
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+filepath.Base(path)+".") {
			os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}
