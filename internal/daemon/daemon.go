// Package daemon runs by itself what the configuration says: snapshots by schedules, what
// is watched soon after it changes, uploads that had to wait, verifying.
//
//	schedules ─┐    ┌─► take       a local snapshot, at its time, whatever else is going on
//	watchers  ─┼────┤
//	retries   ─┘    └─► bring      into the history: one source at a time, those that have
//	                               waited longest first
//
// A source of which the first upload takes days makes room for the others whenever it has
// committed a part.
//
// One loop decides, under one lock, what is to be begun; what takes time runs in goroutines
// that tell the loop when they are done. It sleeps at most half a minute at a time, since
// clocks jump and machines sleep, and what is due is reckoned anew by the clock on the wall.
//
// A source that fails is tried again after ten seconds, then twenty, forty and so on up to a
// quarter of an hour, and at its times. Nothing that fails stops the daemon or another source. What is
// done is a [Worker]'s to know: there is no file system, repository or network here.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/secrate/secrate/internal/schedule"
	"github.com/secrate/secrate/internal/watch"
)

// A Worker does what is due. Its methods may be called concurrently, but for one source Take
// is not called twice at once, and Bring never is.
type Worker interface {
	// Take takes a local snapshot of a source that has them.
	Take(ctx context.Context, source string) error
	// Bring makes the local snapshots of a source points in time of the history; or, of a
	// directory, what it has now: only what has changed, if that is not nil. What takes long
	// may ask yield from time to time whether other sources wait, and return ErrMore.
	Bring(ctx context.Context, source string, only *watch.Changes, yield func() bool) (Outcome, error)
	// Verify checks what is stored.
	Verify(ctx context.Context) error
	// Tell tells a person or a monitor. It may take its time.
	Tell(ctx context.Context, e Event) error
}

// ErrLater is wrapped by an error of a Worker that is none: it could not begin, since something
// else is at work. It is asked again soon.
var ErrLater = errors.New("not now")

// ErrMore is wrapped by an error of Bring that is none: it made room for others, and goes on when
// it is called again.
var ErrMore = errors.New("there is more to be done")

// An Outcome is what came of one Bring.
type Outcome struct {
	Seq       uint64    // the newest snapshot in the history
	Snapshots int       // that were added
	Files     uint64    // that changed in them
	Uploaded  int64     // bytes
	Unread    int       // files that could not be read, or not whole
	Pending   int       // local snapshots that still wait
	Oldest    time.Time // of those, when there are any
}

// A Plan is what the configuration says.
type Plan struct {
	Sources  []Source
	Verify   schedule.Schedule
	Location *time.Location // of all schedules
}

// A Source is one that is kept.
type Source struct {
	Name     string
	Schedule schedule.Schedule
	Delay    time.Duration // at most so much after its times it begins
	Volume   bool          // it has local snapshots, which wait for being brought; else it is a directory
	Watch    *Watch        // of a directory; nil if it is not watched
	Newest   time.Time     // its newest snapshot in the history, if there is one
}

// A Watch says how a directory is watched.
type Watch struct {
	Root    string
	Options watch.Options
	// Same tells two apart, of which the functions in Options cannot be compared.
	Same string
}

// Options of a Daemon.
type Options struct {
	Worker   Worker       // needed
	StateDir string       // the state directory, in which the times of schedules are kept
	Seed     string       // random delays are of it
	Log      *slog.Logger // needed
}

// A Daemon is what runs. Its methods may be called concurrently.
type Daemon struct {
	o    Options
	wake chan struct{} // something has changed: the loop looks again
	jobs sync.WaitGroup
	tell chan Event

	mu       sync.Mutex // guards what follows
	loc      *time.Location
	sources  []*source // in the order of the configuration
	busy     *source   // the one that is brought
	verify   job
	verifies schedule.Schedule
	times    map[string]time.Time // of jobs: until when their times are dealt with
	saved    error                // why times could not be written
	beat     time.Time            // when the loop was last seen
	told     error                // why a monitor could not be told
	ctx      context.Context      // of Run: what it begins ends with it
}

// A job is something that is done by schedule, and may fail.
type job struct {
	next    time.Time // zero: never
	running bool
	since   time.Time // when it was begun
	fails   int       // one after the other
	retry   time.Time // not before this, after it failed
	last    Run
	held    error     // why it could not begin, wrapping ErrLater
	failing time.Time // since when it fails
	nagged  time.Time // when somebody was last told that it fails
}

// A source is what is known of one.
type source struct {
	Source
	take  job
	bring job // next is not used

	wanted  time.Time // since when it is to be brought; zero: it is not
	outcome Outcome
	total   Totals
	again   time.Time // when all of it is to be compared once more; zero: never
	watcher *watch.Watcher
	stop    func()    // ends watcher, and waits for it
	later   bool      // it is begun again, of which nobody need be told
	asked   time.Time // since when what is brought was wanted
}

// New returns a daemon that does nothing until Run.
func New(o Options) *Daemon {
	d := &Daemon{o: o, wake: make(chan struct{}, 1), tell: make(chan Event, 256), loc: time.Local, beat: time.Now()}
	d.times = d.load()
	return d
}

// Apply makes the daemon do what a plan says. What is being done goes on; a source of which
// nothing was changed is not disturbed.
func (d *Daemon) Apply(p Plan) {
	var stops []func() // called without the lock, for which what they wait for may wait
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.loc, d.verifies = p.Location, p.Verify
	old := map[string]*source{}
	for _, s := range d.sources {
		old[s.Name] = s
	}
	d.sources = nil
	for _, c := range p.Sources {
		s := old[c.Name]
		if s == nil || s.Volume != c.Volume {
			s = &source{Source: c}
			if c.Volume {
				s.wanted = now // an earlier run may have left snapshots
			}
		} else {
			delete(old, c.Name)
			c.Newest = s.Newest
		}
		if s.watcher != nil && (c.Watch == nil || c.Watch.Same != s.Watch.Same) {
			stops = append(stops, s.unwatch())
		}
		s.Source = c
		if c.Watch != nil && s.watcher == nil && d.ctx != nil {
			d.watch(s)
		}
		d.sources = append(d.sources, s)
	}
	for _, s := range old {
		stops = append(stops, s.unwatch())
	}
	d.nudge()
}

// nudge makes the loop look again.
func (d *Daemon) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// nap is the longest that the loop sleeps: the clock may be set, or the machine have slept.
const nap = 30 * time.Second

// Run runs until ctx ends, and returns when all that was begun has ended.
func (d *Daemon) Run(ctx context.Context) {
	d.mu.Lock()
	d.ctx = ctx
	for _, s := range d.sources {
		if s.Watch != nil && s.watcher == nil {
			d.watch(s)
		}
	}
	d.mu.Unlock()
	d.jobs.Go(func() { d.teller(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-d.wake:
		}
		timer.Reset(d.look(ctx))
	}
	d.mu.Lock()
	var stops []func()
	for _, s := range d.sources {
		stops = append(stops, s.unwatch())
	}
	d.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
	d.jobs.Wait()
}

// look begins what is due, and returns when to look again.
func (d *Daemon) look(ctx context.Context) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.beat = now
	if ctx.Err() != nil {
		return 0
	}
	wait := nap
	until := func(t time.Time) {
		if !t.IsZero() {
			wait = min(wait, max(t.Sub(now), 10*time.Millisecond))
		}
	}
	for _, s := range d.sources {
		if d.due(&s.take, s.Schedule, "snap "+s.Name, s.Newest, s.Delay, now) {
			d.scheduled(ctx, s, now)
		}
		until(s.take.next)
		if s.take.fails > 0 && !s.take.running {
			if !now.Before(s.take.retry) {
				d.scheduled(ctx, s, now)
			}
			until(s.take.retry)
		}
		if !s.wanted.IsZero() && now.Before(s.bring.retry) {
			until(s.bring.retry)
		}
		if until(s.again); s.watcher != nil && !s.again.IsZero() && !now.Before(s.again) {
			s.again = time.Time{}
			s.watcher.Reconcile("something that had changed could not be read")
		}
	}
	verify := d.due(&d.verify, d.verifies, "verify", now, 0, now)
	if again := d.verify.fails > 0 && d.verify.fails <= verifyTries; again {
		verify = verify || !now.Before(d.verify.retry)
		until(d.verify.retry)
	}
	if verify && !d.verify.running {
		d.begin(&d.verify, now)
		d.jobs.Go(func() {
			err := d.o.Worker.Verify(ctx)
			d.ended(ctx, &d.verify, nil, Outcome{}, false, err)
		})
	}
	until(d.verify.next)
	d.bringNext(ctx, now)
	return wait
}

// due reports whether a time of a schedule has come, and sets when the next one will. first is
// from when on it counts for one that was never run: the zero Time makes it due now.
func (d *Daemon) due(j *job, s schedule.Schedule, name string, first time.Time, delay time.Duration, now time.Time) bool {
	if s.None() {
		j.next = time.Time{}
		return false
	}
	last, ok := d.times[name]
	if !ok {
		last = first
		if !first.IsZero() {
			d.times[name] = first
		}
	}
	missed, next := schedule.Due(s, last, now, d.loc)
	if missed.IsZero() {
		j.next = next.Add(schedule.Delay(delay, d.o.Seed+name, next))
		return false
	}
	if !last.IsZero() && !last.After(now) { // else there is no run to go by
		if at := missed.Add(schedule.Delay(delay, d.o.Seed+name, missed)); now.Before(at) {
			j.next = at
			return false
		}
	}
	j.next = next.Add(schedule.Delay(delay, d.o.Seed+name, next))
	d.times[name] = now
	d.save()
	return true
}

// BySchedule is why all of a watched directory is compared at its times.
const BySchedule = "its schedule says so"

// scheduled does what a source's schedule asks for.
func (d *Daemon) scheduled(ctx context.Context, s *source, now time.Time) {
	switch {
	case s.watcher != nil:
		s.watcher.Reconcile(BySchedule)
	case !s.Volume:
		d.want(s, now)
	case !s.take.running:
		d.begin(&s.take, now)
		d.jobs.Go(func() {
			err := d.o.Worker.Take(ctx, s.Name)
			d.ended(ctx, &s.take, s, Outcome{}, false, err)
		})
	}
}

// want says that a source is to be brought.
func (d *Daemon) want(s *source, now time.Time) {
	if s.wanted.IsZero() {
		s.wanted = now
	}
}

func (d *Daemon) begin(j *job, now time.Time) { j.running, j.since = true, now }

// bringNext begins to bring the source that has waited longest, unless one is being brought.
func (d *Daemon) bringNext(ctx context.Context, now time.Time) {
	if d.busy != nil {
		return
	}
	var first *source
	for _, s := range d.sources {
		if !s.wanted.IsZero() && !now.Before(s.bring.retry) && (first == nil || s.wanted.Before(first.wanted)) {
			first = s
		}
	}
	if first == nil {
		return
	}
	s := first
	s.wanted, s.asked = time.Time{}, s.wanted
	var batch *watch.Batch
	var only *watch.Changes
	if s.watcher != nil {
		b, ok := s.watcher.Take()
		if !ok {
			d.nudge()
			return
		}
		if batch = b; !b.All {
			only = &b.Changes
		}
	}
	d.busy = s
	d.begin(&s.bring, now)
	if !s.later {
		d.event(Event{Source: s.Name, Kind: Started, Changes: only != nil})
	}
	d.jobs.Go(func() {
		out, err := d.o.Worker.Bring(ctx, s.Name, only, func() bool { return d.othersWait(s) })
		if batch != nil {
			batch.Done(err == nil)
		}
		d.ended(ctx, &s.bring, s, out, only != nil, err)
	})
}

// verifyTries is how often verifying is tried again when it failed: if something is damaged it
// is so the next time, and asking costs.
const verifyTries = 2

// The pauses after failures.
const (
	firstPause = 10 * time.Second
	lastPause  = 15 * time.Minute
	soon       = 15 * time.Second // after ErrLater
)

// againAfter is how long after something that had changed could not be read everything is
// compared. Tests set it.
var againAfter = lastPause

// pause is how long to wait after so many failures.
func pause(fails int) time.Duration {
	return min(firstPause<<min(fails-1, 10), lastPause)
}

// ended notes what came of a job.
func (d *Daemon) ended(ctx context.Context, j *job, s *source, out Outcome, changes bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.nudge()
	now := time.Now()
	j.running = false
	bring := s != nil && j == &s.bring
	if bring {
		d.busy = nil
		s.later = errors.Is(err, ErrMore) || errors.Is(err, ErrLater)
	}
	switch {
	case ctx.Err() != nil:
		return // what it says is that it was stopped
	case errors.Is(err, ErrMore):
		d.want(s, now) // behind those that wait
		s.count(out, changes)
		return
	case errors.Is(err, ErrLater):
		j.held = err
		j.retry = now.Add(soon)
		if bring {
			s.wanted = s.asked // it has been waiting all the time
		} else {
			j.fails = max(j.fails, 1) // that look tries it again
		}
		return
	}
	j.last, j.held = Run{Began: j.since, Took: now.Sub(j.since), Err: err}, nil
	what := "verify"
	if s != nil {
		what = s.Name
	}
	e := Event{Source: what, Kind: Succeeded, Outcome: out, Changes: changes, Err: err, Since: j.failing}
	if err != nil {
		j.fails++
		j.retry = now.Add(pause(j.fails))
		if j.failing.IsZero() {
			j.failing = now
		}
		e.Kind, e.Since, e.New = Failed, j.failing, now.Sub(j.nagged) >= nagEvery
		if e.New {
			j.nagged = now
		}
		if bring {
			d.want(s, now)
		}
	} else {
		e.New = !j.nagged.IsZero()
		j.fails, j.retry, j.failing, j.nagged = 0, time.Time{}, time.Time{}, time.Time{}
	}
	e.AllWell = d.allWell()
	if s == nil || bring || err != nil || e.New { // of a snapshot taken what is told is what becomes of it
		d.event(e)
	}
	if s == nil {
		return
	}
	if j == &s.take && err == nil {
		d.want(s, now)
	}
	if bring && changes && err == nil && out.Unread > 0 && s.again.IsZero() {
		// What could not be read of what had changed is known as dealt with: it is looked for.
		s.again = now.Add(againAfter)
	}
	if bring {
		s.total.Runs++
		if err != nil {
			s.total.Failures++
		}
		s.count(out, changes)
	}
}

// count adds what a Bring has done. What could not be read the last time that it was tried may be
// what has not changed since.
func (s *source) count(out Outcome, changes bool) {
	if changes {
		out.Unread = max(out.Unread, s.outcome.Unread)
	}
	s.total.Snapshots += int64(out.Snapshots)
	s.total.Files += int64(out.Files)
	s.total.Uploaded += out.Uploaded
	seq := s.outcome.Seq
	if s.outcome = out; out.Seq == 0 {
		s.outcome.Seq = seq
	}
}

// othersWait reports whether a source other than the one that is brought could be.
func (d *Daemon) othersWait(busy *source) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, s := range d.sources {
		if s != busy && !s.wanted.IsZero() && !now.Before(s.bring.retry) {
			return true
		}
	}
	return false
}

// allWell reports whether nothing fails.
func (d *Daemon) allWell() bool {
	for _, s := range d.sources {
		if s.take.fails > 0 || s.bring.fails > 0 {
			return false
		}
	}
	return d.verify.fails == 0
}

// watch begins to watch a source.
func (d *Daemon) watch(s *source) {
	w, err := watch.Open(s.Watch.Root, s.Watch.Options)
	if err != nil { // there is no current directory
		d.o.Log.Error("not watched", "source", s.Name, "error", err)
		return
	}
	ctx, cancel := context.WithCancel(d.ctx)
	var done sync.WaitGroup
	done.Go(func() {
		if err := w.Run(ctx); err != nil {
			d.o.Log.Error("not watched", "source", s.Name, "error", err)
		}
	})
	done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.Due():
			}
			d.mu.Lock()
			if s.watcher == w {
				d.want(s, time.Now())
			}
			d.mu.Unlock()
			d.nudge()
		}
	})
	s.watcher = w
	s.stop = func() { cancel(); done.Wait() }
}

// unwatch has a source watched no longer, and returns what ends it.
func (s *source) unwatch() func() {
	stop := s.stop
	s.watcher, s.stop = nil, nil
	if stop == nil {
		return func() {}
	}
	return stop
}
