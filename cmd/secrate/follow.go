package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/status"
	"github.com/secrate/secrate/s3history/store"
)

// A follower shows how a run comes along: to the person by progress, to secrate status
// by the status file. It hears of reading from backup jobs, by its sourceWatches, and
// of uploading from the store.
//
// While a source is read, that is what is shown, with what is uploaded beside it: the
// reader waits for the uploads. When all is read, it is what remains to be uploaded.
type follower struct {
	a      *app
	status *status.Writer // nil when there is none: nothing depends on it

	mu      sync.Mutex // guards what follows
	current *sourceFollower
	upload  progress.Progress // nil before the first byte
	queued  int64             // bytes of Puts that were begun, of the current source
	sent    int64             // of them
	told    time.Time         // when status was last told what is uploaded
}

func (a *app) follow(stateDir, command string) *follower {
	w := &follower{a: a}
	var err error
	if w.status, err = status.Start(stateDir, command); err != nil {
		a.log.Warn("secrate status will not show this run", "error", err)
	}
	return w
}

func (w *follower) close() {
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
func (w *follower) observer() store.Observer { return store.Observer{Sent: w.onSent} }

// wrap makes w hear of Puts before they begin.
func (w *follower) wrap(s store.Store) store.Store { return &followedStore{s, w} }

// A followedStore tells a follower how much there is to be uploaded.
type followedStore struct {
	store.Store
	w *follower
}

func (s *followedStore) Unwrap() store.Store { return s.Store }

func (s *followedStore) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	s.w.onQueued(size)
	err := s.Store.Put(ctx, key, r, size)
	if err != nil { // the store has taken back what was sent of it
		s.w.onQueued(-size)
	}
	return err
}

func (w *follower) onQueued(n int64) {
	w.mu.Lock()
	w.queued += n
	s := w.current
	if s == nil || !s.uploading {
		w.mu.Unlock()
		return
	}
	total, done := w.queued-s.sentBefore, w.sent-s.sentBefore
	w.mu.Unlock()
	if n >= worthShowing { // a step cannot be made longer
		s.step.Start(s.name+": "+status.Uploading, total)
		s.step.Add(done)
	}
	if s.status != nil {
		s.status.SetTotal(total)
	}
}

// worthShowing is from how many bytes on an object gets a bar of its own.
const worthShowing = 1 << 20

// statusEvery is how often status is told of the object that is uploaded.
const statusEvery = 500 * time.Millisecond

func (w *follower) onSent(key string, n int64) {
	w.mu.Lock()
	if w.upload == nil {
		w.upload = w.a.display.Step(progress.Bytes)
		w.upload.Start("uploaded", -1)
	}
	upload, s := w.upload, w.current
	w.sent += n
	var item string
	if now := time.Now(); now.Sub(w.told) >= statusEvery && s != nil {
		w.told = now
		item = fmt.Sprintf("%s (%s uploaded so far, %s)", key, progress.Size(w.sent), progress.Rate(float64(w.sent)/now.Sub(s.began).Seconds()))
	}
	remaining := s != nil && s.uploading
	w.mu.Unlock()
	upload.Add(n)
	if remaining {
		s.step.Add(n)
	}
	if s == nil || s.status == nil {
		return
	}
	if remaining {
		s.status.Add(n)
	}
	if item != "" {
		s.status.Item(item)
	}
}

// source returns the observer of a source's job.
func (w *follower) source(name string) *sourceFollower {
	s := &sourceFollower{w: w, name: name, step: w.a.display.Step(progress.Bytes), total: -1, began: time.Now()}
	if w.status != nil {
		s.status = w.status.Source(name)
	}
	return s
}

// A sourceFollower shows how one source comes along.
type sourceFollower struct {
	w      *follower
	name   string
	step   progress.Progress
	status *status.SourceWriter
	total  int64 // bytes to be read, -1 when not known
	began  time.Time

	uploading  bool  // all is read; guarded by w.mu
	sentBefore int64 // bytes, when that was; guarded by w.mu
}

var _ backup.Observer = (*sourceFollower)(nil)

// Phase implements backup.Observer.
func (s *sourceFollower) Phase(_, phase string) {
	total := int64(-1)
	s.w.mu.Lock()
	if s.w.current != s {
		s.w.current, s.w.queued, s.w.sent, s.began = s, 0, 0, time.Now()
	}
	s.uploading = phase == status.Committing
	switch {
	case s.uploading:
		// What remains to be done for the commit is uploading, nearly all of it.
		phase, s.sentBefore = status.Uploading, s.w.sent
		if left := s.w.queued - s.w.sent; left > 0 {
			total = left
		}
	case phase == status.Reading:
		total = s.total
	}
	s.w.mu.Unlock()
	s.step.Start(s.name+": "+phase, total)
	if s.status != nil {
		s.status.Start(phase, total)
	}
}

// Seen implements backup.Observer.
func (s *sourceFollower) Seen(files, bytes int64) {
	s.step.Add(bytes)
	if s.status != nil {
		s.status.Add(bytes)
		s.status.AddFiles(files)
	}
}

// Warn implements backup.Observer.
func (s *sourceFollower) Warn(source, message string) { s.w.a.warn("%s: %s", source, message) }

func (s *sourceFollower) done(err error) {
	s.step.Done(err)
	if s.status != nil {
		s.status.Done(err)
	}
}

// expect says how much a first snapshot has to read, about; -1 says nothing.
func (s *sourceFollower) expect(total int64) { s.total = total }
