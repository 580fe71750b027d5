package daemon

import (
	"context"
	"time"
)

// A Kind is what an Event is about.
type Kind string

// The kinds of events.
const (
	Started   Kind = "started"
	Succeeded Kind = "succeeded"
	Failed    Kind = "failed"
)

// An Event is something that others may want to hear of.
type Event struct {
	Source  string // or "verify"
	Kind    Kind
	Changes bool      // only what was watched and has changed was brought
	AllWell bool      // nothing fails now
	Outcome Outcome   // of Succeeded
	Err     error     // of Failed
	Since   time.Time // when it began to fail, of Failed, and of a success after failures
	// New says of a failure that it is the first one, or the first for a day; of a success that
	// somebody was told of a failure before it.
	New bool
}

// nagEvery is how often a person is told of what goes on failing.
const nagEvery = 24 * time.Hour

// event has a worker tell of something, without waiting for it.
func (d *Daemon) event(e Event) {
	select {
	case d.tell <- e:
	default: // a monitor that is so slow misses something
		d.o.Log.Warn("not told, others wait to be told", "source", e.Source, "what", e.Kind)
	}
}

// teller tells, one event after the other.
func (d *Daemon) teller(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-d.tell:
			err := d.o.Worker.Tell(ctx, e)
			if ctx.Err() != nil {
				return
			}
			d.mu.Lock()
			d.told = err
			d.mu.Unlock()
			if err != nil {
				d.o.Log.Warn("not told", "source", e.Source, "what", e.Kind, "error", err)
			}
		}
	}
}
