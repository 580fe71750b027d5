// Package backup brings what a file system or a send stream says into a history.
//
//	              ┌─ a base is at hand: changes by send stream, bytes from the snapshot ─┐
//	snapshot ─────┤                                                                      ├─► Update ─► commit
//	              └─ none: walk it, compare with the newest state                        │
//	send stream ───── apply it, bytes come with it ──────────────────────────────────────┘
//
// Files are read by several workers, each with one file at a time; what they find is
// recorded in the order of the tree by one. A worker holds at most a few MiB: the piece
// of 1 MiB it looks at, and the old bytes around it.
//
// It knows histories, local trees and the filetree.Update; how snapshots are taken and
// what a send stream looks like is the [Volume]'s to know, which the command picks.
package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/internal/exclude"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
)

// A Volume is a file system that takes snapshots of one source.
type Volume interface {
	// Take makes a snapshot now.
	Take(ctx context.Context) (Snapshot, error)
	// List returns the snapshots that Take made and Release has not taken away, in
	// the order they were made.
	List(ctx context.Context) ([]Snapshot, error)
	// Nested returns the paths, relative to the source's root and sorted, of what looks
	// like a part of the source and is in no snapshot of it.
	Nested(ctx context.Context) ([]string, error)
	// Release takes a snapshot away.
	Release(ctx context.Context, s Snapshot) error
	// Changes applies to u what changed from base to s, without file data: for that it
	// calls Changed. The lists it returns are paths that have to be looked at again
	// because of excludes: unknown where content or attributes are not known, moved
	// where a directory now is. An error that wraps [ErrMisfit] says that u is not what
	// base was.
	Changes(ctx context.Context, s, base Snapshot, u *s3history.Update, excluded func(string, bool) bool) (unknown, moved []string, err error)
}

// ErrMisfit is wrapped by an error of Volume.Changes: the changes cannot be made in what
// the history has of the base.
var ErrMisfit = errors.New("the history has not what the changes start from")

// A Snapshot is one that a Volume took.
type Snapshot struct {
	Name string
	GUID [16]byte // what the file system knows it by for ever
	Time time.Time
	Path string // where it can be read
}

// An Observer hears how a source comes along. Its methods may be called concurrently.
type Observer interface {
	// Phase says what is being done now; total is the bytes or files of it, -1 when
	// nobody knows.
	Phase(source, phase string)
	// Seen counts files looked at and bytes read.
	Seen(files, bytes int64)
	// Warn says something a person should know that is no failure.
	Warn(source, message string)
}

// Options of a Job. The zero value of each field that is not said to be needed is its
// default.
type Options struct {
	Writer   *s3history.Writer // needed
	Source   string            // needed: the source's name
	Exclude  []string          // patterns in gitignore's syntax
	Host     string
	Workers  int // files read at once; 0 means 4
	Observer Observer
	Log      *slog.Logger
}

// A Job backs up one source.
type Job struct {
	o       Options
	exclude *exclude.Matcher
	w       *s3history.Writer
}

// New checks the options.
func New(o Options) (*Job, error) {
	m, err := exclude.Compile(o.Exclude)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", o.Source, err)
	}
	if o.Workers <= 0 {
		o.Workers = 4
	}
	if o.Observer == nil {
		o.Observer = silent{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Job{o: o, exclude: m, w: o.Writer}, nil
}

type silent struct{}

func (silent) Phase(string, string) {}
func (silent) Seen(int64, int64)    {}
func (silent) Warn(string, string)  {}

// A Result is what became of one source.
type Result struct {
	Committed []s3history.Snapshot
	Unchanged bool     // the last snapshot had nothing new
	Failed    []string // files that could not be read, with the reason
	Failures  int      // how many; Failed names the first
	Pending   int      // snapshots that wait for an upload
}

// maxFailed bounds the names in a Result.
const maxFailed = 100

func (r *Result) fail(path string, err error) {
	r.Failures++
	if len(r.Failed) < maxFailed {
		r.Failed = append(r.Failed, fmt.Sprintf("%s: %v", path, err))
	}
}

// Take takes a snapshot, which is then pending.
func (j *Job) Take(ctx context.Context, v Volume) (Snapshot, error) {
	j.o.Observer.Phase(j.o.Source, "snapshot")
	crashpoint.Here("snapshot before")
	s, err := v.Take(ctx)
	if err != nil {
		return s, err
	}
	crashpoint.Here("snapshot after")
	return s, nil
}

// Pending returns the snapshots of v that are not in the history, oldest first, and
// all that are there.
func (j *Job) Pending(ctx context.Context, v Volume) (pending, all []Snapshot, err error) {
	if all, err = v.List(ctx); err != nil {
		return nil, nil, err
	}
	source, err := j.w.Source(j.o.Source)
	if err != nil {
		return nil, nil, err
	}
	known, err := j.w.Snapshots(source)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range all {
		if !slices.ContainsFunc(known, func(k s3history.Snapshot) bool { return k.Info.GUID == s.GUID && !k.Partial }) {
			pending = append(pending, s)
		}
	}
	return pending, all, nil
}

// Upload makes every pending snapshot a point in time of the history, and then takes
// away those that are no longer needed: all before the newest committed one, which is
// kept as the base of the next.
func (j *Job) Upload(ctx context.Context, v Volume) (Result, error) {
	var res Result
	pending, all, err := j.Pending(ctx, v)
	if err != nil {
		return res, err
	}
	res.Pending = len(pending)
	if all, err = j.releaseOld(ctx, v, pending, all); err != nil {
		return res, err
	}
	for _, s := range pending {
		committed, err := j.upload(ctx, v, s, all, &res)
		if err != nil {
			return res, fmt.Errorf("snapshot %s: %w", s.Name, err)
		}
		res.Pending--
		res.Unchanged = !committed
		if !committed {
			// The base has the same in it and stays.
			if err := j.release(ctx, v, s); err != nil {
				return res, err
			}
			all = slices.DeleteFunc(all, func(o Snapshot) bool { return o.GUID == s.GUID })
			continue
		}
		for len(all) > 0 && all[0].GUID != s.GUID {
			if err := j.release(ctx, v, all[0]); err != nil {
				return res, err
			}
			all = all[1:]
		}
	}
	return res, nil
}

// releaseOld takes away what a run that was killed after its commit could not: the
// committed snapshots before the newest of them. It returns those that are left.
func (j *Job) releaseOld(ctx context.Context, v Volume, pending, all []Snapshot) ([]Snapshot, error) {
	source, err := j.w.Source(j.o.Source)
	if err != nil {
		return nil, err
	}
	head, err := j.w.Head(source)
	if err != nil {
		return nil, err
	}
	newest := slices.IndexFunc(all, func(s Snapshot) bool { return s.GUID == head.Info.GUID })
	var left []Snapshot
	for i, s := range all {
		if i >= newest || slices.ContainsFunc(pending, func(p Snapshot) bool { return p.GUID == s.GUID }) {
			left = append(left, s)
		} else if err := j.release(ctx, v, s); err != nil {
			return nil, err
		}
	}
	return left, nil
}

func (j *Job) release(ctx context.Context, v Volume, s Snapshot) error {
	crashpoint.Here("release before")
	if err := v.Release(ctx, s); err != nil {
		return fmt.Errorf("release snapshot %s: %w", s.Name, err)
	}
	crashpoint.Here("release after")
	return nil
}

// upload commits one snapshot. It reports false when nothing changed.
func (j *Job) upload(ctx context.Context, v Volume, s Snapshot, all []Snapshot, res *Result) (bool, error) {
	source, err := j.w.Source(j.o.Source)
	if err != nil {
		return false, err
	}
	head, err := j.w.Head(source)
	if err != nil {
		return false, err
	}
	if head.Seq > 0 && s.Time.Before(head.Info.Time.Time()) && head.Info.GUID != s.GUID {
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("the clock was set back: snapshot %s is of %s, before #%d of %s; it is kept as #%d, and --at finds the highest number not after its time",
			s.Name, s.Time.Format(time.RFC3339), head.Seq, head.Info.Time.Time().Format(time.RFC3339), head.Seq+1))
	}
	tree, err := localfs.Open(s.Path)
	if err != nil {
		return false, err
	}
	defer tree.Close()
	done, err := j.commit(ctx, v, source, s, all, head, tree, res)
	if errors.Is(err, ErrMisfit) {
		// A node could not be read at all, perhaps, and is now spoken of.
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("reading everything, and uploading only what is not known yet: %v", err))
		done, err = j.commit(ctx, v, source, s, nil, head, tree, res)
	}
	if errors.Is(err, s3history.ErrUnchanged) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	res.Committed = append(res.Committed, done)
	return true, nil
}

// commit makes a snapshot a point in time of the history: from the base, if it is among
// all, else by reading everything.
func (j *Job) commit(ctx context.Context, v Volume, source catalog.Source, s Snapshot, all []Snapshot, head s3history.Snapshot,
	tree *localfs.Tree, res *Result) (s3history.Snapshot, error) {
	u, err := j.w.Begin(ctx, source, s3history.SnapshotInfo{
		Time: filetree.TimeOf(s.Time), Origin: s.Name, GUID: s.GUID, Exclude: j.o.Exclude, Host: j.o.Host,
	})
	if err != nil {
		return s3history.Snapshot{}, err
	}
	defer u.Abort()
	j.o.Observer.Phase(j.o.Source, "reading")
	if err := j.read(ctx, v, u, s, all, head, tree, res); err != nil {
		return s3history.Snapshot{}, err
	}
	j.o.Observer.Phase(j.o.Source, "committing")
	return u.Commit()
}

// read brings what is in the snapshot into the update.
func (j *Job) read(ctx context.Context, v Volume, u *s3history.Update, s Snapshot, all []Snapshot, head s3history.Snapshot,
	tree *localfs.Tree, res *Result) error {
	r := j.newReader(ctx, u, tree, res)
	if err := j.bring(ctx, v, u, s, all, head, r); err != nil {
		return err
	}
	j.warnNested(ctx, v, u)
	return errors.Join(r.saveOutside(), r.saveAgain())
}

// warnNested names what looks like a part of the source and is not, once each.
func (j *Job) warnNested(ctx context.Context, v Volume, u *s3history.Update) {
	const note = "nested"
	all, err := v.Nested(ctx)
	if err == nil {
		all = slices.DeleteFunc(all, func(p string) bool { return j.exclude.Excluded(p, true) })
		var said []byte
		said, err = u.Note(note)
		for _, p := range all {
			if !slices.Contains(strings.Split(string(said), "\x00"), p) {
				j.o.Observer.Warn(j.o.Source, fmt.Sprintf("%s is a subvolume of its own, which no snapshot of this source holds: it needs a source of its own", p))
			}
		}
		err = errors.Join(err, u.SetNote(note, []byte(strings.Join(all, "\x00"))))
	}
	if err != nil { // no reason to go without a snapshot
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("subvolumes inside, which need sources of their own, were not looked for: %v", err))
	}
}

// bring chooses between the increment from the base and a walk.
func (j *Job) bring(ctx context.Context, v Volume, u *s3history.Update, s Snapshot, all []Snapshot, head s3history.Snapshot, r *reader) error {
	i := slices.IndexFunc(all, func(b Snapshot) bool { return b.GUID == head.Info.GUID })
	switch {
	case head.Seq == 0:
		return r.walk()
	case head.Partial:
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("#%d is partial: going on with what is missing", head.Seq))
		return r.walk()
	case all == nil:
		return r.walk()
	case i < 0:
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("the local snapshot %s of #%d is gone: reading everything, and uploading only what is not known yet",
			head.Info.Origin, head.Seq))
		return r.walk()
	case !slices.Equal(head.Info.Exclude, j.o.Exclude):
		j.o.Observer.Warn(j.o.Source, "what is excluded has changed: reading everything, and uploading only what is not known yet")
		return r.walk()
	}
	if _, known, err := r.loadOutside(); err != nil {
		return err
	} else if !known {
		j.o.Observer.Warn(j.o.Source, "looking at every file once, for those that have excluded names, too")
		return r.walk()
	}
	base, err := localfs.Open(all[i].Path)
	if err != nil {
		return err
	}
	defer base.Close()
	r.base = base
	var excluded func(string, bool) bool
	if len(j.o.Exclude) > 0 {
		excluded = j.exclude.Excluded
	}
	unknown, moved, err := v.Changes(ctx, s, all[i], u, excluded)
	if err != nil {
		return err
	}
	return r.changes(unknown, moved)
}
