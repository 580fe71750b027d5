package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

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
an upload, what a snap, upload or ingest at work in another process does now, with its
rate and the time it will still take, and the last error. Of a first snapshot the
time is a rough guess, from what is used of its file system.

Read are the configuration, the state directory and the list of local snapshots; the
destination is not asked. Nothing is changed. Another command is not held up.

Exit statuses:

    0  done, whatever there is to be shown
    3  the configuration or the state cannot be read`,
		Example: `  secrate status
  secrate status --json`,
		Args: arguments(0, 0, ""),
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line: the command at work, if there is one, then each source")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) }
	return cmd
}

// A sourceStatus is what is known of one source.
type sourceStatus struct {
	Source       string          `json:"source"`
	Mode         config.Mode     `json:"mode"`
	Last         *snapshotObject `json:"last"`
	Pending      *int            `json:"pending"` // null when it cannot be told
	PendingError string          `json:"pending_error,omitempty"`
	Activity     *activity       `json:"activity"`
	Error        *lastError      `json:"error"`

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
	// Current is false when the source has succeeded since.
	Current bool `json:"current"`

	at time.Time
}

func (a *app) status(ctx context.Context) error {
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
	db, err := s.openCatalog(catalog.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	if err := a.showRunning(running); err != nil {
		return err
	}
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
			if a.json {
				err = writeJSON(a.stdout, st)
			} else {
				err = st.write(a.stdout)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// showRunning shows the command that is at work, or that was killed.
func (a *app) showRunning(r *status.Status) error {
	if r == nil {
		return nil
	}
	if a.json {
		return writeJSON(a.stdout, struct {
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
	_, err := fmt.Fprintln(a.stdout, line)
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
	n, err := m.pending(ctx, known)
	if err != nil {
		st.PendingError = err.Error()
		return st, nil
	}
	st.Pending = &n
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

// pending counts the local snapshots of a member that are not in its history.
func (m *member) pending(ctx context.Context, known *s3history.Known) (int, error) {
	if m.err != nil || m.vol == nil {
		return 0, m.err
	}
	all, err := m.vol.List(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, snap := range all {
		if _, ok, err := known.ByGUID(snap.GUID); err != nil {
			return 0, err
		} else if !ok {
			n++
		}
	}
	return n, nil
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
		st.Error = &lastError{Time: when.FormatTime(f.Time), Error: f.Error, Current: res.Failing(), at: f.Time}
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
	}
	if act := st.Activity; act != nil {
		line += "\n    now: " + act.String()
	}
	if e := st.Error; e != nil {
		when := "last error"
		if !e.Current {
			when = "error before the last success"
		}
		line += fmt.Sprintf("\n    %s, %s: %s", when, localTime(e.at), e.Error)
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
