package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
)

// A Sender is a Volume whose snapshots come as send streams.
type Sender interface {
	Volume
	// Hold keeps s from being destroyed until it is released. It may be held already.
	Hold(ctx context.Context, s Snapshot) error
	// Bases returns the GUIDs of what a stream of s can start from, newest first.
	Bases(ctx context.Context, s Snapshot) ([][16]byte, error)
	// StateKey is that of the units that Send returns.
	StateKey() []byte
	// Send begins a stream of s, from one of its bases or, if that is nil, of all of it.
	Send(ctx context.Context, s Snapshot, base *[16]byte, told Told) (*Stream, error)
	// Mark makes it possible to start a stream from s when s is there no longer. It may have
	// been done already.
	Mark(ctx context.Context, s Snapshot) error
}

// Told is what is told of a stream.
type Told struct {
	Failed func(what string, err error) // what the history cannot hold
	Read   func(n int64)                // bytes of the stream, where it brings content
}

// A Stream is the one unit of a send stream, from a process that Close ends.
type Stream struct {
	Unit  Unit
	Close func()
}

// send commits one snapshot of a Sender. It reports false when nothing changed.
//
// The order of the steps, each of which may be the last before a crash: it is held, so that
// it stays; committed; and then, by settle, marked, so that an increment can start from it
// also if it is destroyed, and the base before it let go of. A further run takes each of them
// again, to no effect where it was done.
func (j *Job) send(ctx context.Context, v Sender, source catalog.Source, s Snapshot, res *Result) (bool, error) {
	crashpoint.Here("hold before")
	if err := v.Hold(ctx, s); err != nil {
		return false, err
	}
	crashpoint.Here("hold after")
	base, err := j.base(ctx, v, source, s)
	if err != nil {
		return false, err
	}
	before, failed, failures := len(res.Committed), slices.Clone(res.Failed), res.Failures
	err = j.sendFrom(ctx, v, source, s, base, res)
	if base != nil && errors.Is(err, ErrMisfit) {
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("reading everything, and uploading only what is not known yet: %v", err))
		res.Failed, res.Failures = failed, failures
		err = j.sendFrom(ctx, v, source, s, nil, res)
	}
	return len(res.Committed) > before, err
}

// mark marks the base.
func (j *Job) mark(ctx context.Context, v Sender, s Snapshot) {
	crashpoint.Here("mark before")
	if err := v.Mark(ctx, s); err != nil && ctx.Err() == nil { // the next run makes it
		// What it is for is rare, and costs time only.
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("should snapshot %s be destroyed before the next one is taken, all is read: %v", s.Name, err))
	}
	crashpoint.Here("mark after")
}

func (j *Job) sendFrom(ctx context.Context, v Sender, source catalog.Source, s Snapshot, base *[16]byte, res *Result) error {
	j.o.Observer.Phase(j.o.Source, "reading")
	st, err := v.Send(ctx, s, base, Told{res.fail, func(n int64) { j.o.Observer.Seen(0, n) }})
	if err != nil {
		return err
	}
	defer st.Close()
	return j.ingest(ctx, source, st.Unit, filetree.TimeOf(time.Now()), res, func(u *s3history.Update) { j.warnNested(ctx, v, u) })
}

// base returns what a stream of s is to start from: the newest that the file system has, and
// of which the history remembers enough. If there is none it is nil.
func (j *Job) base(ctx context.Context, v Sender, source catalog.Source, s Snapshot) (*[16]byte, error) {
	known, err := j.w.Known(source)
	if err != nil || len(known.All) == 0 {
		return nil, err
	}
	bases, err := v.Bases(ctx, s)
	if err != nil {
		return nil, err
	}
	for _, g := range bases {
		snap, ok, err := known.ByGUID(g)
		if err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		kept, err := j.w.KeptAt(source, snap.Seq, v.StateKey())
		if err != nil {
			return nil, err
		}
		if slices.Contains(guidsIn(kept), g) {
			return &g, nil
		}
	}
	head := known.All[len(known.All)-1]
	j.o.Observer.Warn(j.o.Source, fmt.Sprintf("neither the snapshot %s of #%d is there nor a mark of it, or what the next stream needs is not remembered: reading everything, and uploading only what is not known yet",
		head.Info.Origin, head.Seq))
	return nil, nil
}
