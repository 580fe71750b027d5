// Package progress tells a person, or a program, how far a command has come.
//
//	Bars   on a terminal: one bar a step, with rate and time left
//	Plain  elsewhere: a line for a step now and then, nothing for a short one, so
//	       that cron has nothing to mail
//	JSON   one object a line
//	Quiet  nothing
//
// It writes to one writer, standard error as a rule. Results go elsewhere, and on
// a terminal both are on one screen: [Display.Results] keeps them apart.
//
// The objects of the JSON mode have these members:
//
//	event   "start", "progress" or "done"
//	what    the step
//	done    bytes, or files if unit says so
//	total   the same, -1 when not known
//	unit    "bytes" or "files"
//	rate    of the last seconds, per second; of the whole step when it is done
//	error   why it failed; only in "done"
//
// The package also has the one way in which sizes, rates and times are written
// for people: [Size], [Rate], [Duration], [Printable].
package progress

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// A Progress hears how far a step has come. Its methods may be called concurrently.
type Progress interface {
	// Start begins a step. total is -1 when nobody knows. A step that has not been
	// done is done by the Start of the next.
	Start(what string, total int64)
	// Add says that n more are done.
	Add(n int64)
	// Done ends the step. Why it failed is for the caller to say in full.
	Done(err error)
}

// Discard is a Progress that nobody looks at.
var Discard Progress = discard{}

type discard struct{}

func (discard) Start(string, int64) {}
func (discard) Add(int64)           {}
func (discard) Done(error)          {}

// Multi returns a Progress that tells all of ps.
func Multi(ps ...Progress) Progress { return multi(ps) }

type multi []Progress

func (m multi) Start(what string, total int64) {
	for _, p := range m {
		p.Start(what, total)
	}
}

func (m multi) Add(n int64) {
	for _, p := range m {
		p.Add(n)
	}
}

func (m multi) Done(err error) {
	for _, p := range m {
		p.Done(err)
	}
}

// A Mode is a way to show progress.
type Mode int

// The modes.
const (
	Auto  Mode = iota // Bars if the writer is a terminal, else Plain
	Bars              // bars that move
	Plain             // lines, seldom
	JSON              // objects, one a line
	Quiet             // nothing
)

// A Unit is what a step counts.
type Unit int

// The units.
const (
	Bytes Unit = iota
	Files
)

func (u Unit) String() string {
	if u == Files {
		return "files"
	}
	return "bytes"
}

func (u Unit) format(n float64) string {
	if u == Files {
		return fmt.Sprintf("%.0f files", n)
	}
	return Size(int64(n))
}

// How often a step writes at most.
const (
	plainEvery = 5 * time.Second
	jsonEvery  = time.Second
)

// A Display shows the progress of steps that run at the same time. Its methods may
// be called concurrently.
type Display struct {
	mode Mode
	w    io.Writer
	bars *bars // in Bars mode

	mu      sync.Mutex // guards writing to w in the other modes, and what follows
	closed  bool
	results []*heldWriter
}

// New returns a Display that writes to w. The caller closes it.
func New(w io.Writer, mode Mode) *Display {
	if mode == Auto {
		mode = Plain
		if IsTerminal(w) && os.Getenv("TERM") != "dumb" {
			mode = Bars
		}
	}
	d := &Display{mode: mode, w: w}
	if mode == Bars {
		d.bars = newBars(w)
	}
	return d
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Mode returns how d shows progress; never Auto.
func (d *Display) Mode() Mode { return d.mode }

// Step returns a Progress for one step at a time. Steps that run at the same time
// need one each.
func (d *Display) Step(unit Unit) Progress {
	if d.mode == Quiet {
		return Discard
	}
	return &step{d: d, unit: unit}
}

// Write writes p, which should be whole lines, above the bars: warnings and log
// lines that go to the same terminal go through it. In the other modes it writes p
// as it is, Quiet too.
func (d *Display) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mode == Bars && !d.closed {
		return d.bars.Write(p)
	}
	return d.w.Write(p)
}

// Results returns a writer for what the command is run for. If bars are on
// the screen that out is also on, it is held back until Close; else it is written
// to out at once.
func (d *Display) Results(out io.Writer) io.Writer {
	if d.mode != Bars || !IsTerminal(out) {
		return out
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	h := &heldWriter{d: d, out: out}
	d.results = append(d.results, h)
	return h
}

// Close takes bars that are left off the screen and writes the results that were
// held back. Steps may still be told of progress; nobody sees it.
func (d *Display) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.mode == Bars {
		d.bars.Close()
	}
	for _, h := range d.results {
		if _, err := h.out.Write(h.held); err != nil {
			return err
		}
		h.held = nil
	}
	return nil
}

type heldWriter struct {
	d    *Display
	out  io.Writer
	held []byte // guarded by d.mu
}

func (h *heldWriter) Write(p []byte) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.closed {
		return h.out.Write(p)
	}
	h.held = append(h.held, p...)
	return len(p), nil
}

// step is a Progress of a Display.
type step struct {
	d    *Display
	unit Unit

	// order is held by Start and Done from beginning to end. mu guards what follows
	// and is not held while bars are told of something: they lock it to draw.
	order sync.Mutex
	mu    sync.Mutex

	running bool
	what    string
	done    int64
	total   int64
	started time.Time
	wrote   time.Time // the last line or object
	lines   int       // written since Start
	rate    meter
	bar     *bar
}

func (s *step) Start(what string, total int64) {
	s.order.Lock()
	defer s.order.Unlock()
	s.finish(nil)

	s.mu.Lock()
	now := time.Now()
	s.what, s.total, s.done = Printable(what), max(total, -1), 0
	s.started, s.wrote, s.lines, s.running = now, now, 0, true
	s.rate = meter{at: now}
	if s.d.mode == JSON {
		s.event("start", 0, nil)
	}
	s.mu.Unlock()

	if s.d.mode == Bars {
		b := s.d.bars.add(s, s.what, s.total, now)
		s.mu.Lock()
		s.bar = b
		done := s.done // by an Add before there was a bar
		s.mu.Unlock()
		b.add(done)
	}
}

func (s *step) Add(n int64) {
	s.mu.Lock()
	if !s.running {
		s.mu.Unlock()
		return
	}
	s.done += n
	now := time.Now()
	s.rate.add(now, n)
	switch s.d.mode {
	case Plain:
		if now.Sub(s.wrote) >= plainEvery {
			s.wrote = now
			s.line("")
		}
	case JSON:
		if now.Sub(s.wrote) >= jsonEvery {
			s.wrote = now
			s.event("progress", s.rate.perSecond(now), nil)
		}
	}
	b := s.bar
	s.mu.Unlock()
	b.add(n)
}

func (s *step) Done(err error) {
	s.order.Lock()
	defer s.order.Unlock()
	s.finish(err)
}

// finish ends the step that runs, if one does. The caller holds order.
func (s *step) finish(err error) {
	s.mu.Lock()
	if s.running {
		switch s.d.mode {
		case Plain:
			if s.lines > 0 && err != nil {
				s.line("failed after " + Duration(time.Since(s.started)))
			} else if s.lines > 0 {
				s.line("done in " + Duration(time.Since(s.started)))
			}
		case JSON:
			s.event("done", average(s.done, time.Since(s.started)), err)
		}
	}
	s.running = false
	b := s.bar
	s.bar = nil
	s.mu.Unlock()
	b.remove()
}

// line writes how far the step is, or how it ended.
func (s *step) line(end string) {
	s.lines++
	text := s.what + ": " + s.counts()
	if end != "" {
		text += ", " + end
	} else if more := s.speed(time.Now()); more != "" {
		text += ", " + more
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if !s.d.closed {
		io.WriteString(s.d.w, text+"\n") // there is nobody to tell that nobody hears us
	}
}

// counts says how much is done: 12.3 MiB of 40.0 MiB (30 %).
func (s *step) counts() string {
	done := s.unit.format(float64(s.done))
	if s.total < 0 {
		return done
	}
	text := fmt.Sprintf("%d", s.done)
	if s.unit == Bytes {
		text = done
	}
	text += " of " + s.unit.format(float64(s.total))
	if s.total > 0 {
		text += fmt.Sprintf(" (%d %%)", min(int64(float64(s.done)/float64(s.total)*100), 100))
	}
	return text
}

// speed says how fast it goes and how long it will: 2.1 MiB/s, 13s left.
func (s *step) speed(now time.Time) string {
	rate := s.rate.perSecond(now)
	if rate <= 0 {
		return ""
	}
	text := s.unit.format(rate) + "/s"
	if s.total > s.done {
		text += ", " + Duration(seconds(float64(s.total-s.done)/rate)) + " left"
	}
	return text
}

// An event is what the JSON mode writes.
type event struct {
	Event string  `json:"event"`
	What  string  `json:"what"`
	Done  int64   `json:"done"`
	Total int64   `json:"total"`
	Unit  string  `json:"unit"`
	Rate  float64 `json:"rate"`
	Error string  `json:"error,omitempty"`
}

func (s *step) event(name string, rate float64, err error) {
	e := event{Event: name, What: s.what, Done: s.done, Total: s.total, Unit: s.unit.String(), Rate: math.Round(rate)}
	if err != nil {
		e.Error = err.Error()
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic("progress: internal error: " + err.Error())
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if !s.d.closed {
		s.d.w.Write(append(b, '\n'))
	}
}

// A meter measures a rate, the last seconds counting most.
type meter struct {
	at    time.Time // of the last measurement
	since int64     // what came after it
	rate  float64
	known bool
}

// meterEvery is how long a measurement takes; meterMemory is after how long one
// weighs 1/e of what it did.
const (
	meterEvery  = time.Second
	meterMemory = 10 * time.Second
)

func (m *meter) add(now time.Time, n int64) {
	m.since += n
	if now.Sub(m.at) >= meterEvery {
		m.rate, m.known = m.measure(now), true
		m.at, m.since = now, 0
	}
}

// measure returns the rate that a measurement at now gives.
func (m *meter) measure(now time.Time) float64 {
	d := now.Sub(m.at).Seconds()
	rate := float64(m.since) / d
	if m.known {
		rate = m.rate + (rate-m.rate)*(1-math.Exp(-d/meterMemory.Seconds()))
	}
	return rate
}

// perSecond returns the rate at now: one that nothing is added to any more falls.
func (m *meter) perSecond(now time.Time) float64 {
	if now.Sub(m.at) >= 3*meterEvery {
		return m.measure(now)
	}
	return m.rate
}

func average(n int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

func seconds(s float64) time.Duration {
	return time.Duration(min(s, 1e9) * float64(time.Second))
}
