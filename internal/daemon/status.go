package daemon

import (
	"time"

	"github.com/secrate/secrate/internal/watch"
)

// A Run is what came of a job the last time.
type Run struct {
	Began time.Time
	Took  time.Duration
	Err   error
}

// Totals count since the daemon was started.
type Totals struct {
	Runs      int64
	Failures  int64
	Snapshots int64
	Files     int64
	Uploaded  int64 // bytes
}

// A Status is what a daemon does and what came of it.
type Status struct {
	Sources  []SourceStatus
	Verify   JobStatus
	Verifies bool      // there is a schedule for it
	Beat     time.Time // when the loop was last seen: it looks every half a minute
	// What else is wrong:
	Times error // the times of schedules cannot be kept
	Told  error // a monitor could not be told
}

// A SourceStatus is that of one source.
type SourceStatus struct {
	Name     string
	Volume   bool
	Schedule string
	Take     JobStatus // of a volume: local snapshots
	Bring    JobStatus
	Next     time.Time // when its schedule comes next; zero: never
	Waiting  time.Time // since when it waits to be brought; zero: it does not
	Outcome  Outcome   // of the last Bring
	Total    Totals
	Watch    *watch.State // nil if it is not watched
}

// A JobStatus is that of one job.
type JobStatus struct {
	Running bool
	Since   time.Time // when it was begun, if it runs
	Fails   int       // one after the other, up to now
	Failing time.Time // since when
	Retry   time.Time // when it is tried again
	Next    time.Time
	Last    Run
	Held    error // why it could not begin the last time: something else is at work
}

func (j *job) status() JobStatus {
	s := JobStatus{Running: j.running, Fails: j.fails, Failing: j.failing, Next: j.next, Last: j.last, Held: j.held}
	if j.running {
		s.Since = j.since
	} else if j.fails > 0 {
		s.Retry = j.retry
	}
	return s
}

// Status returns what is going on.
func (d *Daemon) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := Status{Verify: d.verify.status(), Verifies: !d.verifies.None(), Beat: d.beat, Times: d.saved, Told: d.told}
	for _, s := range d.sources {
		x := SourceStatus{Name: s.Name, Volume: s.Volume, Schedule: s.Schedule.String(), Take: s.take.status(), Bring: s.bring.status(),
			Next: s.take.next, Waiting: s.wanted, Outcome: s.outcome, Total: s.total}
		if s.watcher != nil {
			state := s.watcher.State()
			x.Watch = &state
		}
		st.Sources = append(st.Sources, x)
	}
	return st
}

// Alive reports whether the loop is at work.
func (s Status) Alive() bool { return time.Since(s.Beat) < 4*nap }

// Failure is since when a source fails, and why; nil if it does not.
func (s *SourceStatus) Failure() (since time.Time, err error) {
	for _, j := range []*JobStatus{&s.Bring, &s.Take} {
		if j.Fails > 0 && j.Last.Err != nil {
			return j.Failing, j.Last.Err
		}
	}
	return time.Time{}, nil
}
