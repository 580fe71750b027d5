package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
)

// A Unit is the part of a send stream that makes one snapshot.
type Unit struct {
	Name   string
	GUID   [16]byte
	Parent *[16]byte     // what it starts from; nil for a full one
	Time   filetree.Time // of the snapshot; zero if the stream does not say
	// StateKey is set for units that need more than what manifests tell of the one
	// before. Under this key of what is kept they leave their GUID, and behind it those
	// of snapshots that leave the same. A full one is compared with what there is; others
	// replace it.
	StateKey []byte
	// Apply brings the unit into u. unknown are the paths of which the stream does not
	// say enough. before is what was handed on with the snapshot that it starts from, nil
	// if nothing is known to have been; after is handed on, and not empty.
	Apply func(ctx context.Context, u *s3history.Update, excluded func(string, bool) bool, before []byte) (unknown []string, after []byte, err error)
	// Now and Base, if not nil, are the snapshot that the unit makes and the one it starts
	// from, to be read: then Apply says with Changed where content of files has changed.
	Now, Base *localfs.Tree
}

// ErrBase is wrapped by Ingest when a stream starts from a snapshot that the history
// does not have.
var ErrBase = errors.New("the history does not have what the stream starts from")

// ErrState is wrapped by Ingest when the history has what a stream starts from, but not
// what is remembered of it beside the history: the catalog was rebuilt, perhaps.
var ErrState = errors.New("a full stream makes it anew, and only what is not known yet is uploaded")

// ErrNames is wrapped by Ingest when something is excluded in the snapshot that a stream
// starts from, and which excluded names lead to files that are kept is not known: the
// catalog was rebuilt, or the snapshot is long ago. A change that the stream tells of by
// such a name would not be seen.
var ErrNames = errors.New("it is not known which of the names that are excluded there are names of files that are kept")

// Ingest commits the snapshot that a unit makes. It reports false in the result's
// Unchanged when the history has it already, or it changes nothing; the unit is then
// not read.
func (j *Job) Ingest(ctx context.Context, unit Unit, now filetree.Time, res *Result) error {
	source, err := j.w.Source(j.o.Source)
	if err != nil {
		return err
	}
	return j.ingest(ctx, source, unit, now, res, func(*s3history.Update) {})
}

// ingest is Ingest for a source; with is called before the commit.
func (j *Job) ingest(ctx context.Context, source catalog.Source, unit Unit, now filetree.Time, res *Result, with func(u *s3history.Update)) error {
	known, err := j.w.Known(source)
	if err != nil {
		return err
	}
	var head s3history.Snapshot
	if n := len(known.All); n > 0 {
		head = known.All[n-1]
	}
	stale := false // what is kept is not of the newest snapshot, or there is nothing
	if head.Seq > 0 && unit.StateKey != nil && unit.Parent == nil {
		if stale, err = j.stale(source, known, head.Seq, unit.StateKey); err != nil {
			return err
		}
	}
	have, ok, err := known.ByGUID(unit.GUID)
	switch {
	case err != nil:
		return err
	case !ok || unit.GUID == [16]byte{}:
	case stale: // it makes anew what later ones need
		if have.Seq < head.Seq {
			j.o.Observer.Warn(j.o.Source, fmt.Sprintf("snapshot %s, which is in the history as #%d, is told once more as the newest: what later streams need of it is not remembered",
				unit.Name, have.Seq))
		}
	default:
		j.o.Observer.Warn(j.o.Source, fmt.Sprintf("snapshot %s is in the history already, as #%d", unit.Name, have.Seq))
		res.Unchanged = true
		return nil
	}
	var base s3history.Snapshot
	var before []byte
	if unit.Parent != nil {
		if base, ok, err = known.ByGUID(*unit.Parent); err != nil {
			return err
		} else if !ok {
			have := "nothing yet"
			if head.Seq > 0 {
				have = fmt.Sprintf("up to #%d, snapshot %s with %s", head.Seq, head.Info.Origin, guidText(head.Info.GUID))
			}
			return fmt.Errorf("stream of %s starts from the snapshot with %s; source %s has %s: %w", unit.Name, guidText(*unit.Parent), j.o.Source, have, ErrBase)
		}
		if before, err = j.handedOn(source, &unit, base); err != nil {
			return err
		}
		if !slices.Equal(base.Info.Exclude, j.o.Exclude) {
			j.o.Observer.Warn(j.o.Source, fmt.Sprintf("what is excluded has changed since #%d: what was until then and is no longer comes with a full stream", base.Seq))
		}
	}
	if unit.Time != (filetree.Time{}) {
		now = unit.Time
	}
	u, err := j.w.Begin(ctx, source, s3history.SnapshotInfo{Time: now, Origin: unit.Name, GUID: unit.GUID, Exclude: j.o.Exclude, Host: j.o.Host})
	if err != nil {
		return err
	}
	defer u.Abort()
	switch {
	case unit.Parent == nil && unit.StateKey == nil:
		err = u.Clear()
	case stale:
		err = u.ForgetKept()
	case unit.Parent != nil:
		err = u.Revert(base.Seq)
	}
	if err != nil {
		return err
	}
	j.o.Observer.Phase(j.o.Source, "reading")
	var excluded func(string, bool) bool
	if patterns := j.o.Exclude; len(patterns) > 0 {
		excluded = j.exclude.Excluded
	}
	unknown, after, err := unit.Apply(ctx, u, excluded, before)
	if err != nil {
		return err
	}
	if unit.Now != nil {
		r := j.newReader(ctx, u, unit.Now, res)
		r.base, r.told = unit.Base, true
		if base.Seq > 0 {
			r.before = u.At(base.Seq)
		}
		if err := errors.Join(r.changes(nil, nil), r.saveAgain()); err != nil {
			return err
		}
	}
	with(u)
	if unit.StateKey == nil {
		if err := handOn(u, unit.GUID, after); err != nil {
			return err
		}
	}
	for _, p := range unknown {
		res.fail(p, errors.New("it was excluded when its content came, or has content of a file that was: what is not known is not stored; a full stream brings what is no longer excluded"))
	}
	j.o.Observer.Phase(j.o.Source, "committing")
	s, err := u.Commit()
	if errors.Is(err, s3history.ErrUnchanged) {
		// Nothing is written, but a later stream may start from this one. What is excluded may
		// have changed, and a crash before the alias leaves a note that nobody asks for.
		res.Unchanged = true
		if unit.StateKey == nil {
			if err := handOn(sourceNotes{j.w, source}, unit.GUID, after); err != nil {
				return err
			}
		}
		if unit.GUID == [16]byte{} { // it has none that another stream could start from
			return nil
		}
		return j.w.SetAlias(source, unit.GUID, u.Head().Seq)
	} else if err != nil {
		return err
	}
	res.Committed = append(res.Committed, s)
	return nil
}

// stale reports whether what is kept at the newest snapshot is not of it.
func (j *Job) stale(source catalog.Source, known *s3history.Known, head uint64, stateKey []byte) (bool, error) {
	kept, err := j.w.KeptAt(source, head, stateKey)
	if err != nil {
		return false, err
	}
	for _, g := range guidsIn(kept) {
		if s, _, err := known.ByGUID(g); err != nil || s.Seq == head {
			return false, err
		}
	}
	return true, nil
}

// guidText is a snapshot's identity as the tools of its file system show it: of ZFS, which
// has 8 bytes, in decimal.
func guidText(g [16]byte) string {
	if [8]byte(g[:8]) == [8]byte{} {
		return fmt.Sprintf("GUID %d", binary.BigEndian.Uint64(g[8:]))
	}
	return fmt.Sprintf("UUID %x", g)
}

// guidsIn returns the identities that are kept under a unit's StateKey.
func guidsIn(kept []byte) (all [][16]byte) {
	for len(kept) >= 16 {
		all, kept = append(all, [16]byte(kept)), kept[16:]
	}
	return all
}

// handedOn returns what was handed on with the snapshot that a unit starts from, after
// making sure that what the unit needs of it is known.
func (j *Job) handedOn(source catalog.Source, unit *Unit, base s3history.Snapshot) ([]byte, error) {
	if unit.StateKey != nil {
		kept, err := j.w.KeptAt(source, base.Seq, unit.StateKey)
		if err == nil && !slices.Contains(guidsIn(kept), *unit.Parent) {
			err = fmt.Errorf("stream of %s starts from #%d, snapshot %s, of which this machine does not remember enough: %w", unit.Name, base.Seq, base.Info.Origin, ErrState)
		}
		return nil, err
	}
	before, err := j.w.Note(source, outsideNote(*unit.Parent))
	if err == nil && len(before) == 0 && len(base.Info.Exclude) > 0 {
		err = fmt.Errorf("stream of %s starts from #%d, snapshot %s: %w", unit.Name, base.Seq, base.Info.Origin, ErrNames)
	}
	return before, err
}
