package watch

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Changes are what is to be compared with the history. Paths are relative to the root,
// names as the file system has them with slashes between; "" is the root itself. A path
// may lead to nothing any more, and need not have changed.
type Changes struct {
	All   bool     // everything; the others are empty
	Paths []string // what was made, changed, renamed or removed; of a directory only its own attributes and whether it is there
	Trees []string // directories that are new here: they and everything below
	// Moved are names that something was moved from or to, and that wait still, since they
	// change all the time: what is missed elsewhere may be there. They come again when they
	// are due. There are some of them, if there are many.
	Moved []string
}

// Options change how a directory is watched. The zero value is the default.
type Options struct {
	// Excluded says what is left out: such directories are not watched, such names
	// never in Changes. It is asked from one goroutine. nil excludes nothing.
	Excluded func(path string, dir bool) bool
	// Settle is for how long a name has to be left alone before it is due, and the
	// least time between two batches; 0 means 2 s.
	Settle time.Duration
	// MaxDelay is after how long it is due although it goes on changing; 0 means 1 min.
	MaxDelay time.Duration
	// Poll is how often to see whether the root is still the same directory; 0 means
	// 5 s. It is one system call.
	Poll time.Duration
	// Retry is how often to try again to watch what could not be; 0 means 10 min.
	// A limit that was raised is noticed after Poll.
	Retry time.Duration
	Log   *slog.Logger // nil: none
}

// A Watcher watches a directory and all below it that belongs to the same file system
// and subvolume. Its methods may be called concurrently.
type Watcher struct {
	path string
	o    Options
	m    *master

	mu sync.Mutex // guards what follows
	st State

	maxQueue int // of instances
	pause    atomic.Pointer[pause]
}

// A pause makes a test's events wait: where they are read, or where they are dealt with,
// until the channel is closed.
type pause struct{ reading, dealing chan struct{} }

// Open returns a Watcher of the directory at path, which need not be there yet. Links in
// path itself are followed. Nothing is watched before Run.
func Open(path string, o Options) (*Watcher, error) {
	path, err := filepath.Abs(path) // Run must not depend on what is current then
	if err != nil {
		return nil, err
	}
	if o.Excluded == nil {
		o.Excluded = func(string, bool) bool { return false }
	}
	if o.Settle == 0 {
		o.Settle = 2 * time.Second
	}
	if o.MaxDelay == 0 {
		o.MaxDelay = time.Minute
	}
	if o.Poll == 0 {
		o.Poll = 5 * time.Second
	}
	if o.Retry == 0 {
		o.Retry = 10 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Watcher{
		path: path, o: o, m: newMaster(o.Settle, o.MaxDelay), maxQueue: maxRead,
		st: State{Reason: "not begun"},
	}, nil
}

// Due returns a channel that gets a word when there may be something to Take.
func (w *Watcher) Due() <-chan struct{} { return w.m.due }

// A Batch is what is due at one time.
type Batch struct {
	Changes
	m    *master
	once sync.Once
}

// Take returns the changes that are due. They are being dealt with until Done is
// called; until then there is nothing more to take.
func (w *Watcher) Take() (*Batch, bool) {
	c, ok := w.m.take()
	if !ok {
		return nil, false
	}
	return &Batch{Changes: c, m: w.m}, true
}

// Done says that b was dealt with. If it is durable it is forgotten, but for what has
// changed since it was taken. If not it is due again, at once or when the settle time
// is over since it was taken; it is for the caller to wait longer before he takes it.
// Only the first call counts.
func (b *Batch) Done(durable bool) { b.once.Do(func() { b.m.done(durable) }) }

// A State is what a person may want to know of a Watcher.
type State struct {
	// Watching says that the root and what is below it is watched, but for Unwatched.
	// Otherwise Reason says why not.
	Watching bool
	Reason   string
	Dirs     int // that are watched

	// Unwatched are directories that are not, and so is nothing below them: what
	// changes there is found by scans alone. Some are named, in no order.
	Unwatched int
	Named     []Unwatched
	// Remedy is the command that would help, or "".
	Remedy string

	// Waiting is how many names are not yet durably dealt with, Oldest since when;
	// All that everything is among them.
	Waiting int
	All     bool
	Oldest  time.Time

	// Reconcile is why everything was to be looked at last, and when that was.
	Reconcile   string
	ReconcileAt time.Time

	// Blind says which changes this file system tells nothing about, or "".
	Blind string
}

// Unwatched is a directory that is not watched.
type Unwatched struct {
	Path   string
	Reason string
}

// Begun is the reason for which everything is due at first.
const Begun = "watching has begun"

// State returns how it is.
func (w *Watcher) State() State {
	w.mu.Lock()
	st := w.st
	w.mu.Unlock()
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	st.Waiting, st.All, st.Oldest = w.m.t.pending()
	st.Reconcile, st.ReconcileAt = w.m.reason, w.m.reasonAt
	return st
}

func (w *Watcher) setState(st State) {
	w.mu.Lock()
	w.st = st
	w.mu.Unlock()
}

// maxBackoff is how long Run waits at most before it tries again to get an instance.
const maxBackoff = 5 * time.Minute

// Run watches until ctx ends, and then returns nil. It may be called once. If the root is
// not there, or the kernel gives no inotify instance, it tries again from time to
// time; State tells. Each time it begins to watch a root, everything is due.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.m.close()
	reason := Begun
	wait := w.o.Poll
	logged := ""
	for {
		why, err := w.session(ctx, reason)
		if ctx.Err() != nil {
			w.setState(State{Reason: "ended"})
			return nil
		}
		var end *endError
		if errors.As(err, &end) { // the root: it was watched until now, or is not there
			wait = w.o.Poll
		} else {
			wait = min(2*wait, maxBackoff)
		}
		reason = why
		if logged != err.Error() { // a disk may be away for days
			logged = err.Error()
			w.o.Log.WarnContext(ctx, "not watched", "path", w.path, "error", err)
			if end != nil { // whoever looks finds out what is to be said about it
				w.m.markAll(time.Now(), why)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}
