package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/status"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
)

func newStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is committed, pending, going on and failing",
		Long: `Show of each source the newest snapshot in the history, how many snapshots wait for
an upload and since when, what another process does with it now, with its rate and the
time it will still take, and the last error with what can be done about it. Of a first
snapshot the time is a rough guess, from what is used of its file system.

If a daemon runs it is asked, too: when each source comes next, what has changed and is
not stored yet, what is not watched, what fails and when it is tried again.

Read are the configuration, the state directory and the list of local snapshots; the
destination is not asked. Nothing is changed. Another command is not held up.

Exit statuses:

    0  done, whatever there is to be shown
    3  the configuration or the state cannot be read`,
		Example: `  secrate status
  secrate status --watch
  secrate status --json`,
		Args: arguments(0, 0, ""),
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line: the daemon and the command at work, if there are any, then each source")
	again := cmd.Flags().BoolP("watch", "w", false, "show it again and again until interrupted; with --json an empty line follows each time")
	every := cmd.Flags().Duration("interval", 2*time.Second, "with --watch, how often: `TIME`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *every < minInterval {
			return &usageError{fmt.Sprintf("--interval %v is too short", *every), fmt.Sprintf("%v is the least", minInterval)}
		}
		if !*again {
			return a.status(cmd.Context(), a.stdout)
		}
		return a.watchStatus(cmd.Context(), *every)
	}
	return cmd
}

// minInterval is how often the status can be shown: local snapshots are listed each time.
const minInterval = 100 * time.Millisecond

// watchStatus shows the status until ctx ends.
func (a *app) watchStatus(ctx context.Context, every time.Duration) error {
	file, _ := a.stdout.(*os.File)
	screen := !a.json && file != nil && term.IsTerminal(int(file.Fd()))
	for {
		var text bytes.Buffer // at once, so that it does not flicker
		if err := a.status(ctx, &text); err != nil && ctx.Err() == nil {
			return err
		}
		if ctx.Err() != nil { // that is how it ends
			return nil
		}
		shown := text.String()
		switch {
		case screen: // home, each line to its end, and what is below
			shown = "\x1b[H" + strings.ReplaceAll(shown, "\n", "\x1b[K\n") + "\x1b[J"
		default:
			shown += "\n"
		}
		if _, err := io.WriteString(a.stdout, shown); err != nil {
			return err
		}
		sleep(ctx, every)
	}
}

// A sourceStatus is what is known of one source.
type sourceStatus struct {
	Source       string          `json:"source"`
	Mode         config.Mode     `json:"mode"`
	Last         *snapshotObject `json:"last"`
	Pending      *int            `json:"pending"` // null when it cannot be told
	Oldest       string          `json:"oldest_pending,omitempty"`
	PendingError string          `json:"pending_error,omitempty"`
	Activity     *activity       `json:"activity"`
	Error        *lastError      `json:"error"`
	Hooks        []hookObject    `json:"hooks,omitempty"`
	Daemon       *daemonSource   `json:"daemon,omitempty"`

	last time.Time
}

type activity struct {
	Phase string  `json:"phase"`
	Since string  `json:"since"`
	Item  string  `json:"item,omitempty"`
	Done  int64   `json:"done"`
	Total int64   `json:"total"` // -1 when not known
	Files int64   `json:"files"`
	Rate  float64 `json:"rate"`         // bytes per second
	Left  *int64  `json:"left_seconds"` // null when it cannot be told
}

type lastError struct {
	Time  string `json:"time"`
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	// Current is false when the source has succeeded since.
	Current bool `json:"current"`

	at time.Time
}

// A hookObject is what came of a command before or after the last snapshot.
type hookObject struct {
	Hook    string  `json:"hook"`
	Time    string  `json:"time"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
	Output  string  `json:"output,omitempty"`

	at time.Time
}

func (a *app) status(ctx context.Context, out io.Writer) error {
	s, err := a.site()
	if err != nil {
		return err
	}
	running, err := status.Read(s.stateDir)
	if errors.Is(err, status.ErrIdle) {
		running = nil
	} else if err != nil {
		return err
	}
	results, err := status.Results(s.stateDir)
	if err != nil {
		return err
	}
	d, err := askDaemon(ctx, s.stateDir)
	if err != nil {
		a.warn("%v", err)
	}
	if err := a.showDaemon(out, d); err != nil {
		return err
	}
	if err := a.showRunning(out, running); err != nil {
		return err
	}
	db, err := s.openCatalog(catalog.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	for i := range s.conf.Sources {
		src := &s.conf.Sources[i]
		members := []member{{name: src.Name, src: src}}
		if src.Mode != config.Stream {
			members = a.members(ctx, s, selection{Source: src})
		}
		for _, m := range members {
			st, err := s.statusOf(ctx, db, &m)
			if err != nil {
				return err
			}
			st.addRun(running, results[st.Source])
			st.Daemon = d.source(st.Source)
			if a.json {
				err = writeJSON(out, st)
			} else {
				err = st.write(out)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// showDaemon shows what a daemon says of itself.
func (a *app) showDaemon(out io.Writer, d *daemonObject) error {
	if d == nil {
		return nil
	}
	if a.json {
		o := *d
		o.Sources = nil // they follow
		return writeJSON(out, struct {
			Daemon *daemonObject `json:"daemon"`
		}{&o})
	}
	_, err := fmt.Fprintln(out, strings.Join(d.lines(), "\n"))
	return err
}

// showRunning shows the command that is at work, or that was killed.
func (a *app) showRunning(out io.Writer, r *status.Status) error {
	if r == nil {
		return nil
	}
	if a.json {
		return writeJSON(out, struct {
			Command string `json:"command"`
			PID     int    `json:"pid"`
			Started string `json:"started"`
			Alive   bool   `json:"alive"`
		}{r.Command, r.PID, when.FormatTime(r.Started), r.Alive})
	}
	line := fmt.Sprintf("at work: secrate %s (process %d, since %s)", r.Command, r.PID, localTime(r.Started))
	if !r.Alive {
		line = fmt.Sprintf("killed: secrate %s (it was begun at %s); the next run goes on from there", r.Command, localTime(r.Started))
	}
	_, err := fmt.Fprintln(out, line)
	return err
}

// statusOf finds out what catalog and file system say of a member.
func (s *site) statusOf(ctx context.Context, db *catalog.DB, m *member) (*sourceStatus, error) {
	st := &sourceStatus{Source: m.name, Mode: m.src.Mode}
	known, err := s.known(db, m.name)
	if err != nil {
		return nil, err
	}
	if n := len(known.All); n > 0 {
		o := objectOf(known.All[n-1])
		st.Last, st.last = &o, known.All[n-1].Info.Time.Time()
	}
	if m.src.Mode == config.Stream {
		return st, nil
	}
	n, oldest, err := m.pending(ctx, known)
	if err != nil {
		st.PendingError = err.Error()
		return st, nil
	}
	st.Pending, st.Oldest = &n, timeOrNone(oldest)
	return st, nil
}

// known returns what the catalog knows of a source of ours.
func (s *site) known(db *catalog.DB, name string) (*s3history.Known, error) {
	sources, err := db.Sources()
	if err != nil {
		return nil, err
	}
	for _, src := range sources {
		if src.Name == name && src.Writer == s.me.ID {
			return s3history.ReadKnown(db, src)
		}
	}
	return &s3history.Known{}, nil
}

// pending counts the local snapshots of a member that are not in its history, and returns when
// the oldest was taken.
func (m *member) pending(ctx context.Context, known *s3history.Known) (n int, oldest time.Time, err error) {
	if m.err != nil || m.vol == nil {
		return 0, oldest, m.err
	}
	all, err := m.vol.List(ctx)
	if err != nil {
		return 0, oldest, err
	}
	for _, snap := range all {
		if _, ok, err := known.ByGUID(snap.GUID); err != nil {
			return 0, oldest, err
		} else if ok {
			continue
		}
		if n++; n == 1 {
			oldest = snap.Time
		}
	}
	return n, oldest, nil
}

// pendingOf is pending for who has no catalog open.
func (a *app) pendingOf(ctx context.Context, s *site, m *member) (n int, oldest time.Time, err error) {
	db, err := s.openCatalog(catalog.Options{ReadOnly: true})
	if err != nil {
		return 0, oldest, err
	}
	defer db.Close()
	known, err := s.known(db, m.name)
	if err != nil {
		return 0, oldest, err
	}
	return m.pending(ctx, known)
}

// addRun adds what is going on, and what came of the last runs.
func (st *sourceStatus) addRun(r *status.Status, res status.Result) {
	if r != nil && r.Alive {
		for _, src := range r.Sources {
			if src.Name != st.Source || src.Ended {
				continue
			}
			act := &activity{Phase: src.Phase, Since: when.FormatTime(src.Since), Item: src.Item, Done: src.Done, Total: src.Total, Files: src.Files, Rate: src.Rate}
			if left, ok := src.Left(); ok {
				seconds := int64(left.Seconds())
				act.Left = &seconds
			}
			st.Activity = act
		}
	}
	if f := res.Failure; f != nil {
		st.Error = &lastError{Time: when.FormatTime(f.Time), Error: f.Error, Hint: f.Hint, Current: res.Failing(), at: f.Time}
	}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(res.Hooks))) { // before, after
		h := res.Hooks[name]
		st.Hooks = append(st.Hooks, hookObject{Hook: name, Time: when.FormatTime(h.Time), Seconds: h.Took.Seconds(), Error: h.Error, Output: h.Output, at: h.Time})
	}
}

// write writes it for people.
func (st *sourceStatus) write(w io.Writer) error {
	line := st.Source + ": "
	if st.Last == nil {
		line += "no snapshot yet"
	} else {
		line += fmt.Sprintf("#%d of %s (%s ago)", st.Last.Seq, localTime(st.last), progress.Duration(time.Since(st.last)))
		if st.Last.Partial {
			line += ", partial"
		}
	}
	switch {
	case st.PendingError != "":
		line += ", pending not known: " + st.PendingError
	case st.Pending != nil && *st.Pending > 0:
		line += fmt.Sprintf(", %d pending", *st.Pending)
		if st.Oldest != "" && st.Daemon == nil {
			line += ", the oldest of " + localTime(parsed(st.Oldest))
		}
	}
	if act := st.Activity; act != nil {
		line += "\n    now: " + act.String()
	}
	for _, l := range st.Daemon.lines() {
		line += "\n" + l
	}
	for _, h := range st.Hooks {
		if h.Error != "" {
			line += fmt.Sprintf("\n    the command %s the snapshot failed, %s: %s", h.Hook, localTime(h.at), progress.Printable(h.Error))
		}
	}
	if e := st.Error; e != nil && !(e.Current && st.Daemon.fails()) { // which has said it
		when := "last error"
		if !e.Current {
			when = "error before the last success"
		}
		line += fmt.Sprintf("\n    %s, %s: %s", when, localTime(e.at), e.Error)
		if e.Current && e.Hint != "" {
			line += "\n        hint: " + e.Hint
		}
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

func (act *activity) String() string {
	text := act.Phase
	if act.Done > 0 || act.Files > 0 {
		text += ", " + progress.Size(act.Done)
		if act.Total >= 0 {
			text += " of about " + progress.Size(act.Total)
		}
		text += ", " + count(act.Files, "file") + ", " + progress.Rate(act.Rate)
	}
	if act.Left != nil {
		text += ", " + progress.Duration(time.Duration(*act.Left)*time.Second) + " left"
	}
	if act.Item != "" {
		text += "; " + act.Item
	}
	return text
}
