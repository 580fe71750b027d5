package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/daemon"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/watch"
	"github.com/secrate/secrate/internal/when"
)

// A daemonObject is what a daemon says of itself, at its socket.
type daemonObject struct {
	PID      int            `json:"pid"`
	Version  string         `json:"version"`
	Started  string         `json:"started"`
	Reloaded string         `json:"reloaded,omitempty"` // when the configuration was read again
	Problems []problem      `json:"problems,omitempty"`
	Verify   *taskObject    `json:"verify,omitempty"`
	Sources  []daemonSource `json:"sources,omitempty"`
}

// A problem is something that is wrong and of no source.
type problem struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

// A daemonSource is what a daemon does with a source.
type daemonSource struct {
	Source   string       `json:"source"`
	Schedule string       `json:"schedule"`
	Next     string       `json:"next,omitempty"`    // when the schedule comes next
	Waiting  string       `json:"waiting,omitempty"` // since when it waits for its turn
	Take     taskObject   `json:"take"`              // local snapshots
	Bring    taskObject   `json:"bring"`             // what makes them points in time
	Pending  int          `json:"pending"`           // local snapshots, as of the last time
	Oldest   string       `json:"oldest_pending,omitempty"`
	Unread   int          `json:"unread"` // files that could not be read, the last time
	Watch    *watchObject `json:"watch,omitempty"`
	Runs     int64        `json:"runs"` // since the daemon was started, as are those that follow
	Failures int64        `json:"failures"`
	Uploaded int64        `json:"uploaded_bytes"`
}

// A taskObject is what is done by schedule.
type taskObject struct {
	Running bool     `json:"running"`
	Since   string   `json:"since,omitempty"`
	Last    string   `json:"last,omitempty"` // when it was begun the last time
	Seconds float64  `json:"seconds,omitempty"`
	Next    string   `json:"next,omitempty"`
	Held    string   `json:"held,omitempty"` // what it waits for to end
	Failing *failing `json:"failing,omitempty"`
}

// A failing is why something fails.
type failing struct {
	Since string `json:"since"`
	Tries int    `json:"tries"`
	Retry string `json:"retry,omitempty"` // when it is tried again
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

// A watchObject is how a directory is watched.
type watchObject struct {
	Watching  bool           `json:"watching"`
	Reason    string         `json:"reason,omitempty"` // why not
	Dirs      int            `json:"directories"`
	Unwatched int            `json:"unwatched"`
	Named     []unwatchedDir `json:"unwatched_directories,omitempty"` // some of them
	Remedy    string         `json:"remedy,omitempty"`
	Waiting   int            `json:"waiting"` // names that have changed and are not stored yet
	Oldest    string         `json:"oldest,omitempty"`
	All       string         `json:"all,omitempty"` // why everything was to be compared the last time
	AllTime   string         `json:"all_time,omitempty"`
	Blind     string         `json:"blind,omitempty"` // which changes nobody is told of
}

type unwatchedDir struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

func timeOrNone(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return when.FormatTime(t)
}

// object is what the daemon answers secrate status.
func (r *running) object() *daemonObject {
	st := r.d.Status()
	r.mu.Lock()
	o := &daemonObject{PID: os.Getpid(), Version: versionOf(debug.ReadBuildInfo()).Version, Started: when.FormatTime(r.began), Reloaded: timeOrNone(r.reloaded), Sources: []daemonSource{}}
	fault, deaf := r.fault, r.deaf
	r.mu.Unlock()
	for _, p := range []struct {
		what string
		err  error
		hint string
	}{
		{"the configuration was not read again", fault, "correct it, then: systemctl reload secrate, or kill -HUP"},
		{"no metrics", deaf, "listen, in the configuration, is the address"},
		{"the times of schedules are not kept", st.Times, ""},
		{"a monitor was not told", st.Told, "ping, webhook and on_failure are in the configuration"},
	} {
		if p.err != nil {
			if p.hint == "" {
				p.hint = hintFor(p.err)
			}
			o.Problems = append(o.Problems, problem{fmt.Sprintf("%s: %v", p.what, p.err), p.hint})
		}
	}
	if st.Verifies {
		t := taskOf(&st.Verify)
		t.Next = timeOrNone(st.Verify.Next)
		o.Verify = &t
	}
	for i := range st.Sources {
		s := &st.Sources[i]
		d := daemonSource{Source: s.Name, Schedule: s.Schedule, Next: timeOrNone(s.Next), Waiting: timeOrNone(s.Waiting), Take: taskOf(&s.Take), Bring: taskOf(&s.Bring),
			Pending: s.Outcome.Pending, Oldest: timeOrNone(s.Outcome.Oldest), Unread: s.Outcome.Unread,
			Runs: s.Total.Runs, Failures: s.Total.Failures, Uploaded: s.Total.Uploaded}
		if s.Watch != nil {
			d.Watch = watchOf(s.Watch)
		}
		o.Sources = append(o.Sources, d)
	}
	return o
}

func taskOf(j *daemon.JobStatus) taskObject {
	t := taskObject{Running: j.Running, Since: timeOrNone(j.Since), Last: timeOrNone(j.Last.Began), Seconds: j.Last.Took.Seconds()}
	if locked, ok := errors.AsType[*config.LockedError](j.Held); ok {
		t.Held = locked.Error()
	}
	if j.Fails > 0 && j.Last.Err != nil {
		t.Failing = &failing{Since: timeOrNone(j.Failing), Tries: j.Fails, Retry: timeOrNone(j.Retry), Error: j.Last.Err.Error(), Hint: hintFor(j.Last.Err)}
	}
	return t
}

func watchOf(w *watch.State) *watchObject {
	o := &watchObject{Watching: w.Watching, Reason: w.Reason, Dirs: w.Dirs, Unwatched: w.Unwatched, Remedy: w.Remedy, Waiting: w.Waiting,
		Oldest: timeOrNone(w.Oldest), All: w.Reconcile, AllTime: timeOrNone(w.ReconcileAt), Blind: w.Blind}
	for _, u := range w.Named {
		path, _ := jsonName(u.Path)
		o.Named = append(o.Named, unwatchedDir{path, u.Reason})
	}
	return o
}

func (r *running) statusHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(r.object())
	})
	return mux
}

// maxDaemonStatus bounds what is read from a daemon's socket.
const maxDaemonStatus = 16 << 20

// askDaemon asks the daemon of a state directory what it does; nil if there is none.
func askDaemon(ctx context.Context, stateDir string) (*daemonObject, error) {
	path := filepath.Join(stateDir, socketFile)
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, path) },
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/status", nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) { // none, or one that was killed
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	defer res.Body.Close()
	o := &daemonObject{}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxDaemonStatus)).Decode(o); err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	return o, nil
}

// source returns what a daemon does with a source; nil if it does nothing with it, or is not there.
func (o *daemonObject) source(name string) *daemonSource {
	if o != nil {
		for i := range o.Sources {
			if o.Sources[i].Source == name {
				return &o.Sources[i]
			}
		}
	}
	return nil
}

// parsed returns a time that a daemonObject has; the zero Time for none.
func parsed(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return t
}

// ago is how long ago a time of a daemonObject was.
func ago(text string) string { return progress.Duration(time.Since(parsed(text))) + " ago" }

// at is such a time, with how long it is until then.
func at(text string) string {
	t := parsed(text)
	left := time.Until(t)
	if left < time.Second {
		return localTime(t) + " (now)"
	}
	return fmt.Sprintf("%s (in %s)", localTime(t), progress.Duration(left))
}

// lines are what a daemon says of itself, for people.
func (o *daemonObject) lines() []string {
	lines := []string{fmt.Sprintf("daemon: running since %s (process %d)", localTime(parsed(o.Started)), o.PID)}
	for _, p := range o.Problems {
		lines = append(lines, "    problem: "+progress.Printable(p.Error))
		if p.Hint != "" {
			lines = append(lines, "        hint: "+p.Hint)
		}
	}
	if v := o.Verify; v != nil {
		line := "    verify: "
		switch {
		case v.Running:
			line += "running since " + localTime(parsed(v.Since))
		case v.Last != "":
			line += "last at " + localTime(parsed(v.Last))
			if v.Failing == nil {
				line += ", all was well"
			}
		default:
			line += "not yet since then"
		}
		if v.Next != "" {
			line += ", next at " + at(v.Next)
		}
		lines = append(lines, line)
		lines = append(lines, v.Failing.lines()...)
	}
	return lines
}

func (f *failing) lines() []string {
	if f == nil {
		return nil
	}
	line := fmt.Sprintf("    fails since %s", localTime(parsed(f.Since)))
	if f.Tries > 1 {
		line += fmt.Sprintf(", %d times", f.Tries)
	}
	if f.Retry != "" {
		line += ", tried again at " + at(f.Retry)
	}
	lines := []string{line + ": " + progress.Printable(f.Error)}
	if f.Hint != "" {
		lines = append(lines, "        hint: "+f.Hint)
	}
	return lines
}

// lines are what a daemon does with a source, for people.
func (d *daemonSource) lines() []string {
	if d == nil {
		return nil
	}
	var lines []string
	switch {
	case d.Take.Running:
		lines = append(lines, "    a snapshot is being taken, since "+localTime(parsed(d.Take.Since)))
	case d.Waiting != "" && d.Bring.Failing == nil:
		line := "    waits for its turn, for " + progress.Duration(time.Since(parsed(d.Waiting)))
		if d.Bring.Held != "" {
			line += ": " + d.Bring.Held
		}
		lines = append(lines, line)
	}
	if d.Next != "" {
		lines = append(lines, "    next: "+at(d.Next)+", by "+d.Schedule)
	}
	if d.Oldest != "" {
		lines = append(lines, fmt.Sprintf("    the oldest snapshot that waits is of %s (%s)", localTime(parsed(d.Oldest)), ago(d.Oldest)))
	}
	if d.Unread > 0 {
		lines = append(lines, fmt.Sprintf("    %s could not be read, or not whole, the last time", count(d.Unread, "file")))
	}
	lines = append(lines, d.Watch.lines()...)
	lines = append(lines, d.Take.Failing.lines()...)
	return append(lines, d.Bring.Failing.lines()...)
}

// fails reports whether a daemon says why the source fails.
func (d *daemonSource) fails() bool {
	return d != nil && (d.Take.Failing != nil || d.Bring.Failing != nil)
}

// maxNamed is how many directories that are not watched are shown to people.
const maxNamed = 3

func (w *watchObject) lines() []string {
	if w == nil {
		return nil
	}
	line := "    not watched: " + w.Reason
	if w.Watching {
		line = "    watched: " + directories(w.Dirs)
	}
	if w.Waiting > 0 || w.Oldest != "" {
		what := count(w.Waiting, "change")
		if w.Waiting == 0 {
			what = "everything"
		}
		line += fmt.Sprintf("; %s to be stored, the oldest was made %s", what, ago(w.Oldest))
	}
	lines := []string{line}
	if w.Unwatched > 0 {
		lines = append(lines, fmt.Sprintf("    not watched, and compared by schedule only: %s, with what is below", directories(w.Unwatched)))
		for _, u := range w.Named[:min(len(w.Named), maxNamed)] {
			lines = append(lines, fmt.Sprintf("        %s: %s", progress.Printable(u.Path), u.Reason))
		}
	}
	if w.Remedy != "" {
		lines = append(lines, "        hint: "+w.Remedy)
	}
	if w.Blind != "" {
		lines = append(lines, "    "+w.Blind)
	}
	if w.All != watch.Begun && w.All != daemon.BySchedule && w.AllTime != "" {
		lines = append(lines, fmt.Sprintf("    everything was compared, or is to be, since %s: %s", localTime(parsed(w.AllTime)), w.All))
	}
	return lines
}

func directories(n int) string {
	if n == 1 {
		return "1 directory"
	}
	return fmt.Sprintf("%d directories", n)
}
