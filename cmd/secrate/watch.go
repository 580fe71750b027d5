package main

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/status"
	"github.com/secrate/secrate/s3history/store"
)

// A watch shows how a run comes along: to the person by progress, to secrate status
// by the status file. It is the observer of a store and, by its sourceWatches, of
// backup jobs.
type watch struct {
	a      *app
	status *status.Writer // nil when there is none: nothing depends on it

	mu      sync.Mutex // guards what follows
	current *sourceWatch
	upload  progress.Progress // nil before the first byte
	sent    int64             // bytes, of the current source
	told    time.Time         // when status was last told what is uploaded
}

func (a *app) watch(stateDir, command string) *watch {
	w := &watch{a: a}
	var err error
	if w.status, err = status.Start(stateDir, command); err != nil {
		a.log.Warn("secrate status will not show this run", "error", err)
	}
	return w
}

func (w *watch) close() {
	w.mu.Lock()
	upload := w.upload
	w.mu.Unlock()
	if upload != nil {
		upload.Done(nil)
	}
	if w.status != nil {
		if err := w.status.Close(); err != nil {
			w.a.log.Warn("status was not written", "error", err)
		}
	}
}

// observer hears of what is uploaded.
func (w *watch) observer() store.Observer { return store.Observer{Sent: w.onSent} }

// statusEvery is how often status is told of the object that is uploaded.
const statusEvery = 500 * time.Millisecond

func (w *watch) onSent(key string, n int64) {
	w.mu.Lock()
	if w.upload == nil {
		w.upload = w.a.display.Step(progress.Bytes)
		w.upload.Start("uploaded", -1)
	}
	upload, s := w.upload, w.current
	w.sent += n
	var item string
	if now := time.Now(); s != nil && s.status != nil && now.Sub(w.told) >= statusEvery {
		w.told = now
		item = fmt.Sprintf("%s (%s uploaded so far, %s)", key, progress.Size(w.sent), progress.Rate(float64(w.sent)/now.Sub(s.began).Seconds()))
	}
	w.mu.Unlock()
	upload.Add(n)
	if item != "" {
		s.status.Item(item)
	}
}

// source returns the observer of a source's job.
func (w *watch) source(name string) *sourceWatch {
	s := &sourceWatch{w: w, name: name, step: w.a.display.Step(progress.Bytes), total: -1, began: time.Now()}
	if w.status != nil {
		s.status = w.status.Source(name)
	}
	return s
}

// A sourceWatch shows how one source comes along.
type sourceWatch struct {
	w      *watch
	name   string
	step   progress.Progress
	status *status.SourceWriter
	total  int64 // bytes to be read, -1 when not known
	began  time.Time
}

var _ backup.Observer = (*sourceWatch)(nil)

// Phase implements backup.Observer.
func (s *sourceWatch) Phase(_, phase string) {
	s.w.mu.Lock()
	if s.w.current != s {
		s.w.current, s.w.sent, s.began = s, 0, time.Now()
	}
	s.w.mu.Unlock()
	total := int64(-1)
	if phase == status.Reading {
		total = s.total
	}
	s.step.Start(s.name+": "+phase, total)
	if s.status != nil {
		s.status.Start(phase, total)
	}
}

// Seen implements backup.Observer.
func (s *sourceWatch) Seen(files, bytes int64) {
	s.step.Add(bytes)
	if s.status != nil {
		s.status.Add(bytes)
		s.status.AddFiles(files)
	}
}

// Warn implements backup.Observer.
func (s *sourceWatch) Warn(source, message string) { s.w.a.warn("%s: %s", source, message) }

func (s *sourceWatch) done(err error) {
	s.step.Done(err)
	if s.status != nil {
		s.status.Done(err)
	}
}

// guess estimates how much a first snapshot has to read: what is used of the file
// system at path, which may hold more than the source. It is good enough to tell
// hours from days.
func (s *sourceWatch) guess(path string) {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) == nil {
		s.total = int64(st.Blocks-st.Bfree) * st.Bsize
	}
}
