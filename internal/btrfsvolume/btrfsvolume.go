// Package btrfsvolume makes a Btrfs subvolume a backup.Volume, and a unit of a Btrfs
// send stream a backup.Unit: it joins package snapshot/btrfs, which takes snapshots and
// lets the kernel say what changed, to sendstream/btrfs, which understands the answer.
package btrfsvolume

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/s3history"
	sendstream "github.com/secrate/secrate/sendstream/btrfs"
	snapshot "github.com/secrate/secrate/snapshot/btrfs"
)

// A Volume takes snapshots of one subvolume for one source.
type Volume struct {
	source string
	sub    *snapshot.Subvolume
	dir    string
}

// Open opens the subvolume at path for the source of that name. Snapshots are kept in
// dir, or where snapshot/btrfs puts them if dir is empty; they are told from those of
// other sources by their names.
func Open(source, path, dir string) (*Volume, error) {
	sub, err := snapshot.Open(path)
	if err != nil {
		return nil, err
	}
	if dir == "" {
		if dir, err = sub.SnapshotDir(); err != nil {
			return nil, err
		}
	}
	return &Volume{source, sub, dir}, nil
}

func of(s *snapshot.Subvolume, taken time.Time) backup.Snapshot {
	return backup.Snapshot{Name: s.Name, GUID: s.StreamUUID(), Time: taken, Path: s.Path}
}

// Take implements backup.Volume.
func (v *Volume) Take(ctx context.Context) (backup.Snapshot, error) {
	now := time.Now()
	s, err := v.sub.Snapshot(v.dir, snapshot.SnapshotName(v.source, now))
	if err != nil {
		return backup.Snapshot{}, err
	}
	return of(s, now), nil
}

// List implements backup.Volume.
func (v *Volume) List(ctx context.Context) ([]backup.Snapshot, error) {
	all, err := snapshot.List(v.dir)
	if err != nil {
		return nil, err
	}
	var ours []backup.Snapshot
	for _, s := range all {
		source, taken, ok := snapshot.ParseName(s.Name)
		if ok && source == v.source && s.IsSnapshot() && s.ParentUUID == v.sub.UUID {
			ours = append(ours, of(s, taken))
		}
	}
	return ours, nil
}

// Release implements backup.Volume.
func (v *Volume) Release(ctx context.Context, s backup.Snapshot) error {
	return snapshot.Destroy(v.dir, s.Name)
}

// Changes implements backup.Volume.
func (v *Volume) Changes(ctx context.Context, s, base backup.Snapshot, u *s3history.Update, excluded func(string, bool) bool) (unknown, moved []string, err error) {
	to, err := snapshot.Open(s.Path)
	if err != nil {
		return nil, nil, err
	}
	from, err := snapshot.Open(base.Path)
	if err != nil {
		return nil, nil, err
	}
	stream, err := snapshot.Send(ctx, to, snapshot.SendOptions{Parent: from, NoData: true})
	if err != nil {
		return nil, nil, err
	}
	defer stream.Close()
	units := sendstream.NewUnits(stream)
	unit, err := units.Next()
	if err != nil {
		return nil, nil, err
	}
	if !unit.Incremental || unit.ParentUUID != base.GUID || unit.UUID != s.GUID {
		return nil, nil, fmt.Errorf("send of %s from %s: the stream is of %x from %x", s.Name, base.Name, unit.UUID, unit.ParentUUID)
	}
	res, err := unit.Apply(ctx, u, sendstream.Options{NoData: true, Excluded: excluded, Remove: u.RemoveName})
	if err != nil {
		return nil, nil, fmt.Errorf("send of %s from %s: %w", s.Name, base.Name, err)
	}
	// The stream must come to its end: what is missing could be anything.
	if _, err := units.Next(); err != io.EOF {
		if err == nil {
			err = fmt.Errorf("a second snapshot follows")
		}
		return nil, nil, fmt.Errorf("send of %s from %s: %w", s.Name, base.Name, err)
	}
	return res.Unknown, res.Moved, nil
}

// Unit makes a unit of a stream ready for backup.Job.Ingest.
func Unit(u *sendstream.Unit) backup.Unit {
	unit := backup.Unit{Name: u.Name, GUID: u.UUID,
		Apply: func(ctx context.Context, up *s3history.Update, excluded func(string, bool) bool) ([]string, error) {
			res, err := u.Apply(ctx, up, sendstream.Options{Excluded: excluded, Remove: up.RemoveName})
			return res.Unknown, err
		}}
	if u.Incremental {
		parent := u.ParentUUID
		unit.Parent = &parent
	}
	return unit
}

// Path returns where the snapshot of that name is to be read.
func (v *Volume) Path(name string) string { return filepath.Join(v.dir, name) }
