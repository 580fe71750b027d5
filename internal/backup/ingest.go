package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
)

// A Unit is the part of a send stream that makes one snapshot.
type Unit struct {
	Name   string
	GUID   [16]byte
	Parent *[16]byte // what it starts from; nil for a full one
	// Apply brings the unit into u. unknown are the paths of which the stream does not
	// say enough.
	Apply func(ctx context.Context, u *s3history.Update, excluded func(string, bool) bool) (unknown []string, err error)
}

// ErrBase is wrapped by Ingest when a stream starts from a snapshot that the history
// does not have.
var ErrBase = errors.New("the history does not have what the stream starts from")

// Ingest commits the snapshot that a unit makes. It reports false in the result's
// Unchanged when the history has it already, or it changes nothing; the unit is then
// not read.
func (j *Job) Ingest(ctx context.Context, unit Unit, now filetree.Time, res *Result) error {
	source, err := j.w.Source(j.o.Source)
	if err != nil {
		return err
	}
	known, err := j.w.Snapshots(source)
	if err != nil {
		return err
	}
	byGUID := func(g [16]byte) int {
		if seq, err := j.w.Alias(source, g); err == nil && seq != 0 {
			return lastIndex(known, func(s s3history.Snapshot) bool { return s.Seq == seq })
		}
		return lastIndex(known, func(s s3history.Snapshot) bool { return s.Info.GUID == g && !s.Partial })
	}
	if i := byGUID(unit.GUID); i >= 0 && unit.GUID != [16]byte{} {
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("snapshot %s is in the history already, as #%d", unit.Name, known[i].Seq))
		res.Unchanged = true
		return nil
	}
	var base uint64
	if unit.Parent != nil {
		i := byGUID(*unit.Parent)
		if i < 0 {
			have := "nothing yet"
			if n := len(known); n > 0 {
				have = fmt.Sprintf("up to #%d, snapshot %s with UUID %x", known[n-1].Seq, known[n-1].Info.Origin, known[n-1].Info.GUID)
			}
			return fmt.Errorf("stream of %s starts from the snapshot with UUID %x; source %s has %s: %w", unit.Name, *unit.Parent, j.o.Source, have, ErrBase)
		}
		base = known[i].Seq
	}
	u, err := j.w.Begin(ctx, source, s3history.SnapshotInfo{Time: now, Origin: unit.Name, GUID: unit.GUID, Exclude: j.o.Exclude, Host: j.o.Host})
	if err != nil {
		return err
	}
	defer u.Abort()
	if unit.Parent == nil {
		err = u.Clear()
	} else {
		err = u.Revert(base)
	}
	if err != nil {
		return err
	}
	j.o.Observer.Phase(j.o.Source, "reading")
	var excluded func(string, bool) bool
	if patterns := j.o.Exclude; len(patterns) > 0 {
		excluded = j.exclude.Excluded
	}
	unknown, err := unit.Apply(ctx, u, excluded)
	if err != nil {
		return err
	}
	for _, p := range unknown {
		res.fail(p, errors.New("was excluded when its content came, and is no longer: it is stored without what is not known; a full stream brings it"))
	}
	j.o.Observer.Phase(j.o.Source, "committing")
	s, err := u.Commit()
	if errors.Is(err, s3history.ErrUnchanged) {
		// Nothing is written, but a later stream may start from this one.
		res.Unchanged = true
		return j.w.SetAlias(source, unit.GUID, u.Head().Seq)
	} else if err != nil {
		return err
	}
	res.Committed = append(res.Committed, s)
	return nil
}

func lastIndex[T any](s []T, f func(T) bool) int {
	for i, v := range slices.Backward(s) {
		if f(v) {
			return i
		}
	}
	return -1
}
