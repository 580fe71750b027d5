// Package backup brings what a file system or a send stream says into a history.
//
//	              ┌─ a base is at hand: changes by send stream, bytes from the snapshot ─┐
//	snapshot ─────┤                                                                      ├─► Update ─► commit
//	              └─ none: walk it, compare with the newest state                        │
//	send stream ───── apply it, bytes come with it, or from the snapshot ────────────────┘
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
	"github.com/secrate/secrate/internal/keep"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
)

// A Volume is a file system that takes snapshots of one source. It is a [Differ] or a
// [Sender].
type Volume interface {
	// Take makes a snapshot now.
	Take(ctx context.Context) (Snapshot, error)
	// List returns the snapshots that are the source's, in the order they were made: those
	// that Take made and Release has not taken away.
	List(ctx context.Context) ([]Snapshot, error)
	// Nested returns the paths, relative to the source's root and sorted, of what looks
	// like a part of the source and is in no snapshot of it, and what they are.
	Nested(ctx context.Context) (paths []string, what string, err error)
	// Release says that s is needed no longer. If destroy is set and Take made it, it is
	// taken away; else it is left to whoever wants it.
	Release(ctx context.Context, s Snapshot, destroy bool) error
}

// A Differ is a Volume that says what has changed between two snapshots, which are read.
type Differ interface {
	Volume
	// Changes applies to u what changed from base to s, without file data: for that it
	// calls Changed. The lists it returns are paths that have to be looked at again
	// because of excludes: unknown where content or attributes are not known, moved
	// where a directory now is. An error that wraps [ErrMisfit] says that u is not what
	// base was.
	Changes(ctx context.Context, s, base Snapshot, u *s3history.Update, excluded func(string, bool) bool) (unknown, moved []string, err error)
}

// ErrMisfit is wrapped by an error of Differ.Changes or of a unit's Apply: the changes
// cannot be made in what the history has of the base.
var ErrMisfit = errors.New("the history has not what the changes start from")

// A Snapshot is one that a Volume took.
type Snapshot struct {
	Name string
	GUID [16]byte // what the file system knows it by for ever
	Time time.Time
	Path string // where it can be read; of a Differ
	Held bool   // the file system keeps it from being destroyed, for us
	// Adopted says that something else has taken it: it may be older than others are.
	Adopted bool
}

// ErrUnsendable is wrapped by the error of a snapshot that cannot be read now and perhaps
// never will be. Those that follow it are not kept waiting.
var ErrUnsendable = errors.New("it cannot be sent")

// ErrYielded is wrapped by the error of a run that made room, as Options.Yield told it to.
var ErrYielded = errors.New("others wait: what there is so far is kept as a partial snapshot")

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
	Writer  *s3history.Writer // needed
	Source  string            // needed: the source's name
	Exclude []string          // patterns in gitignore's syntax

	// Of scans, see filter:
	ExcludeFiles []string // names of files in the tree that have such patterns
	SkipCaches   bool     // what is beside a CACHEDIR.TAG is left out
	SkipNodump   bool     // what has the flag nodump is left out

	Host    string
	Keep    keep.Rule // local snapshots that stay, beside those that are needed
	Workers int       // files read at once; 0 means 4
	// Yield is asked after each partial commit whether to make room for something else; nil
	// means never. The error then wraps ErrYielded, and the next run goes on.
	Yield    func() bool
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
	Unchanged bool      // the last snapshot had nothing new
	Failed    []string  // files that could not be read, with the reason
	Failures  int       // how many; Failed names the first
	Pending   int       // snapshots that wait for an upload
	Oldest    time.Time // of these, if there are any
}

// maxFailed bounds the names in a Result.
const maxFailed = 100

func (r *Result) fail(path string, err error) {
	r.Failures++
	if len(r.Failed) < maxFailed {
		r.Failed = append(r.Failed, fmt.Sprintf("%s: %v", path, err))
	}
}

// waiting notes what is pending.
func (r *Result) waiting(l *local) {
	pending := l.pending()
	if r.Pending = len(pending); r.Pending > 0 {
		r.Oldest = pending[0].Time
	}
}

// Take takes a snapshot, which is then pending.
func (j *Job) Take(ctx context.Context, v Volume) (s Snapshot, err error) {
	_, err = j.TakeTogether(func() ([]Snapshot, error) {
		s, err = v.Take(ctx)
		return nil, err
	})
	return s, err
}

// TakeTogether takes snapshots of the source and of others, as take does.
func (j *Job) TakeTogether(take func() ([]Snapshot, error)) ([]Snapshot, error) {
	j.o.Observer.Phase(j.o.Source, "snapshot")
	crashpoint.Here("snapshot before")
	all, err := take()
	if err == nil {
		crashpoint.Here("snapshot after")
	}
	return all, err
}

// Upload makes every pending snapshot a point in time of the history, and then takes
// away those that are no longer needed: all before the newest committed one, which is
// kept as the base of the next, but for what the rule keeps.
func (j *Job) Upload(ctx context.Context, v Volume) (Result, error) {
	var res Result
	source, err := j.w.Source(j.o.Source)
	if err != nil {
		return res, err
	}
	l, err := j.local(ctx, v, source)
	if err != nil {
		return res, err
	}
	res.waiting(l)
	// What cannot be taken away is no reason to go without a snapshot.
	left := j.settle(ctx, v, l)
	var skipped []error
	for _, s := range l.pending() {
		if l.late(s) {
			skipped = append(skipped, j.skipLate(ctx, v, s, l))
			continue
		}
		var committed bool
		var err error
		switch v := v.(type) {
		case Differ:
			committed, err = j.upload(ctx, v, source, s, l.all, &res)
		case Sender:
			committed, err = j.send(ctx, v, source, s, &res)
		default:
			panic(fmt.Sprintf("backup: internal error: a volume that is a %T", v))
		}
		if err != nil {
			res.Unchanged = false // what an earlier one had is not what there is
		}
		if errors.Is(err, ErrUnsendable) {
			skipped = append(skipped, fmt.Errorf("snapshot %s: %w", s.Name, err))
			continue
		}
		if err != nil {
			return res, errors.Join(append(skipped, fmt.Errorf("snapshot %s: %w", s.Name, err), left)...)
		}
		res.Unchanged = !committed
		if _, reads := v.(Differ); reads && !committed {
			// The base has the same in it and stays.
			if err := j.release(ctx, v, s, true); err != nil {
				return res, err
			}
		}
		if l, err = j.local(ctx, v, source); err != nil {
			return res, err
		}
		res.waiting(l)
		left = j.settle(ctx, v, l)
	}
	return res, errors.Join(append(skipped, left)...)
}

// A local is what the file system has of a source's snapshots.
type local struct {
	all  []Snapshot
	seqs []uint64 // of each the number in the history; 0 for one that is pending
	head s3history.Snapshot
}

// local asks for them.
func (j *Job) local(ctx context.Context, v Volume, source catalog.Source) (*local, error) {
	all, err := v.List(ctx)
	if err != nil {
		return nil, err
	}
	known, err := j.w.Known(source)
	if err != nil {
		return nil, err
	}
	l := &local{all: all, seqs: make([]uint64, len(all))}
	if n := len(known.All); n > 0 {
		l.head = known.All[n-1]
	}
	for i, s := range all {
		have, _, err := known.ByGUID(s.GUID)
		if err != nil {
			return nil, err
		}
		l.seqs[i] = have.Seq
	}
	return l, nil
}

// pending are the snapshots that are not in the history, oldest first.
func (l *local) pending() []Snapshot {
	var pending []Snapshot
	for i, s := range l.all {
		if l.seqs[i] == 0 {
			pending = append(pending, s)
		}
	}
	return pending
}

// late reports whether a pending snapshot is older than what the history has already, so that
// it cannot become its newest. Only one that was adopted, or that could not be sent when its
// turn came, is: of others the order is that in which they were taken.
func (l *local) late(s Snapshot) bool {
	at, newest := -1, -1
	for i := range l.all {
		if l.all[i].GUID == s.GUID {
			at = i
		}
		if l.seqs[i] != 0 && l.seqs[i] == l.head.Seq {
			newest = i
		}
	}
	if newest < 0 { // there is only the time to go by
		return s.Adopted && l.head.Seq > 0 && s.Time.Before(l.head.Info.Time.Time())
	}
	return at < newest
}

// skipLate lets go of a snapshot that is late, without destroying it.
func (j *Job) skipLate(ctx context.Context, v Volume, s Snapshot, l *local) error {
	if s.Held {
		if err := j.release(ctx, v, s, false); err != nil {
			return err
		}
	}
	if s.Adopted {
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("snapshot %s is older than #%d of %s, and is not kept", s.Name, l.head.Seq, l.head.Info.Time.Time().Format(time.RFC3339)))
		return nil
	}
	return fmt.Errorf("snapshot %s was never uploaded, and is older than #%d: it can only be destroyed", s.Name, l.head.Seq)
}

// settled returns the newest committed snapshot, which is the base of the next, and of those
// before it the ones that a rule keeps and the ones that nothing does. As long as the newest
// snapshot of the history is not among all there is no base: any of the older ones may be of
// use.
func (l *local) settled(rule keep.Rule) (base *Snapshot, kept, rest []Snapshot) {
	var done []Snapshot // with the base, the last
	var newest uint64
	for i, s := range l.all {
		if l.seqs[i] != 0 {
			done, newest = append(done, s), l.seqs[i]
		}
	}
	if len(done) == 0 || newest != l.head.Seq {
		return nil, nil, nil
	}
	times := make([]time.Time, len(done))
	for i, s := range done {
		times[i] = s.Time.Local()
	}
	stays := rule.Select(times)
	for i, s := range done[:len(done)-1] {
		if stays[i] {
			kept = append(kept, s)
		} else {
			rest = append(rest, s)
		}
	}
	return &done[len(done)-1], kept, rest
}

// settle lets go of the snapshots that are needed no longer, also of those that a run which
// was killed could not. It goes on after an error.
func (j *Job) settle(ctx context.Context, v Volume, l *local) error {
	var errs []error
	base, kept, rest := l.settled(j.o.Keep)
	if s, ok := v.(Sender); ok && base != nil {
		j.mark(ctx, s, *base)
	}
	for _, s := range kept {
		if s.Held {
			errs = append(errs, j.release(ctx, v, s, false))
		}
	}
	for _, s := range rest {
		errs = append(errs, j.release(ctx, v, s, true))
	}
	return errors.Join(errs...)
}

func (j *Job) release(ctx context.Context, v Volume, s Snapshot, destroy bool) error {
	crashpoint.Here("release before")
	if err := v.Release(ctx, s, destroy); err != nil {
		return fmt.Errorf("release snapshot %s: %w", s.Name, err)
	}
	crashpoint.Here("release after")
	return nil
}

// upload commits one snapshot. It reports false when nothing changed.
func (j *Job) upload(ctx context.Context, v Differ, source catalog.Source, s Snapshot, all []Snapshot, res *Result) (bool, error) {
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
		res.Failed, res.Failures = nil, 0
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
func (j *Job) commit(ctx context.Context, v Differ, source catalog.Source, s Snapshot, all []Snapshot, head s3history.Snapshot,
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
func (j *Job) read(ctx context.Context, v Differ, u *s3history.Update, s Snapshot, all []Snapshot, head s3history.Snapshot,
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
	all, what, err := v.Nested(ctx)
	if err == nil {
		all = slices.DeleteFunc(all, func(p string) bool { return j.exclude.Excluded(p, true) })
		err = j.warnOnce(u, "nested", all, func(p string) string {
			return fmt.Sprintf("%s is a %s of its own, which no snapshot of this source holds: it needs a source of its own", p, what)
		})
	}
	if err != nil { // no reason to go without a snapshot
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("what is inside and needs a source of its own was not looked for: %v", err))
	}
}

// warnOnce warns of what is among all and was not when it was called before, and notes it.
func (j *Job) warnOnce(u *s3history.Update, note string, all []string, warning func(string) string) error {
	said, err := u.Note(note)
	if err != nil {
		return err
	}
	for _, p := range all {
		if !slices.Contains(strings.Split(string(said), "\x00"), p) {
			j.o.Observer.Warn(j.o.Source, warning(p))
		}
	}
	return u.SetNote(note, []byte(strings.Join(all, "\x00")))
}

// bring chooses between the increment from the base and a walk.
func (j *Job) bring(ctx context.Context, v Differ, u *s3history.Update, s Snapshot, all []Snapshot, head s3history.Snapshot, r *reader) error {
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
