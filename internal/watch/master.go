package watch

import (
	"sync"
	"time"
)

// A master is a tracker with a clock: it says on a channel when something is due.
type master struct {
	due chan struct{} // holds one: look

	mu    sync.Mutex // guards what follows
	t     *tracker
	timer *time.Timer
	// armed: the timer runs, or due holds a word that take has not followed yet. New
	// marks are due later than it fires, as none is sooner than settle from now.
	armed  bool
	closed bool
	// Why everything is to be looked at, and since when.
	reason   string
	reasonAt time.Time
}

func newMaster(settle, maxDelay time.Duration) *master {
	m := &master{due: make(chan struct{}, 1), t: newTracker(settle, maxDelay, time.Now())}
	m.timer = time.AfterFunc(time.Hour, m.fire)
	m.timer.Stop()
	return m
}

func (m *master) mark(now time.Time, path string, tree bool) { m.markAs(now, path, mark{tree: tree}) }

// markAs is mark of a name of which more is known.
func (m *master) markAs(now time.Time, path string, what mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.t.markAs(now, path, what) {
		m.reason, m.reasonAt = "more names changed than are kept one by one", now
	}
	m.arm()
}

func (m *master) markAll(now time.Time, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.t.markAll(now)
	m.reason, m.reasonAt = reason, now
	m.arm()
}

// arm starts the timer if it has something to wait for. m.mu is held.
func (m *master) arm() {
	if m.armed || m.closed {
		return
	}
	at, ok := m.t.nextDue()
	if !ok {
		return
	}
	m.armed = true
	if d := time.Until(at); d > 0 {
		m.timer.Reset(d)
		return
	}
	select {
	case m.due <- struct{}{}:
	default: // there is one already
	}
}

func (m *master) fire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.armed = false
	m.arm()
}

func (m *master) take() (Changes, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.t.take(time.Now())
	m.timer.Stop()
	m.armed = false
	m.arm() // only if nothing was taken
	return c, ok
}

func (m *master) done(durable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.t.done(durable)
	m.arm()
}

// close stops the timer. What waits still does.
func (m *master) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.timer.Stop()
}
