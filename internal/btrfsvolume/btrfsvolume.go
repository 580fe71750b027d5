// Package btrfsvolume makes a Btrfs subvolume a backup.Differ, and a unit of a Btrfs
// send stream a backup.Unit: it joins package snapshot/btrfs, which takes snapshots and
// lets the kernel say what changed, to sendstream/btrfs, which understands the answer.
package btrfsvolume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
	stream "github.com/secrate/secrate/sendstream/btrfs"
	"github.com/secrate/secrate/snapshot/btrfs"
)

// A Volume takes snapshots of one subvolume for one source.
type Volume struct {
	source string // the source's name: part of the names of its snapshots
	owner  string // whose they are: another part
	sub    *btrfs.Subvolume
	where  string // directory of the snapshots that is configured; empty means inside
}

// ownerDigits is how much of a writer's id is in a snapshot's name: enough to tell those
// apart who keep one subvolume.
const ownerDigits = 8

// Open opens the subvolume at path for a writer's source of that name. Its snapshots are
// kept in dir, on the same file system, or where snapshot/btrfs puts them if dir is empty.
// Those of other writers and sources are left alone.
func Open(writer, source, path, dir string) (*Volume, error) {
	sub, err := btrfs.Open(path)
	if err != nil {
		return nil, err
	}
	return &Volume{source: source, owner: writer[:ownerDigits], sub: sub, where: dir}, nil
}

// dir is where the snapshots are, if there are any.
func (v *Volume) dir() string {
	if v.where == "" {
		return filepath.Join(v.sub.Path, btrfs.DirName)
	}
	return v.where
}

// Path returns where the snapshot of that name is to be read.
func (v *Volume) Path(name string) string { return filepath.Join(v.dir(), name) }

// snapshotDir returns the directory of the snapshots, made if it is not there.
func (v *Volume) snapshotDir() (string, error) {
	if v.where == "" {
		return v.sub.SnapshotDir()
	}
	if err := os.Mkdir(v.where, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("snapshot directory: %w", err)
	}
	// The same is asked of it as of the state: others could read what has been deleted
	// since, or exchange what is in it.
	return v.where, config.EnsureStateDir(v.where)
}

// Take implements backup.Volume.
func (v *Volume) Take(ctx context.Context) (backup.Snapshot, error) {
	dir, err := v.snapshotDir()
	if err != nil {
		return backup.Snapshot{}, err
	}
	for {
		t := time.Now()
		snap, err := v.sub.Snapshot(dir, btrfs.SnapshotName(v.source, t, v.owner))
		if errors.Is(err, fs.ErrExist) && ctx.Err() == nil {
			continue // a clock that is set back comes by the same times again
		}
		if err != nil {
			return backup.Snapshot{}, err
		}
		return v.snapshot(snap, t), nil
	}
}

func (v *Volume) snapshot(s *btrfs.Subvolume, t time.Time) backup.Snapshot {
	return backup.Snapshot{Name: s.Name, GUID: s.UUID, Time: t, Path: s.Path}
}

// List implements backup.Volume. It makes nothing: there are no snapshots where there
// is no directory for them.
func (v *Volume) List(ctx context.Context) ([]backup.Snapshot, error) {
	subs, err := btrfs.List(v.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []backup.Snapshot
	for _, s := range subs {
		if source, t, owner, ok := btrfs.ParseName(s.Name); ok && source == v.source && owner == v.owner && s.IsSnapshot() {
			all = append(all, v.snapshot(s, t))
		}
	}
	return all, nil
}

// Nested implements backup.Volume.
func (v *Volume) Nested(context.Context) ([]string, string, error) {
	all, err := v.sub.Nested()
	return slices.DeleteFunc(all, func(p string) bool { return filepath.Join(v.sub.Path, p) == v.dir() }), "subvolume", err
}

// Release implements backup.Volume.
func (v *Volume) Release(ctx context.Context, s backup.Snapshot, destroy bool) error {
	if !destroy {
		return nil
	}
	return btrfs.Destroy(filepath.Dir(s.Path), s.Name)
}

// Changes implements backup.Differ: the kernel is asked for a stream without data.
func (v *Volume) Changes(ctx context.Context, s, base backup.Snapshot, u *s3history.Update,
	excluded func(string, bool) bool) (unknown, moved []string, err error) {
	snap, err := openSnapshot(s)
	if err != nil {
		return nil, nil, err
	}
	parent, err := openSnapshot(base)
	if err != nil {
		return nil, nil, err
	}
	r, err := btrfs.Send(ctx, snap, btrfs.SendOptions{Parent: parent, NoData: true})
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	units := stream.NewUnits(bufio.NewReaderSize(r, 256<<10))
	unit, err := units.Next()
	if err != nil {
		return nil, nil, err
	}
	res, err := unit.Apply(ctx, u, stream.Options{NoData: true, Excluded: excluded})
	if errors.Is(err, filetree.ErrNotExist) || errors.Is(err, filetree.ErrInvalid) {
		// The kernel's stream fits the kernel's snapshot.
		return nil, nil, fmt.Errorf("%w: %w", backup.ErrMisfit, err)
	} else if err != nil {
		return nil, nil, err
	}
	// The kernel says that it has sent everything only at the end of the stream.
	switch _, err := units.Next(); {
	case err == nil:
		return nil, nil, fmt.Errorf("send %s: the kernel sent more than one snapshot", s.Path)
	case err != io.EOF:
		return nil, nil, err
	}
	return res.Unknown, res.Moved, nil
}

// openSnapshot opens the snapshot that s was when it was listed.
func openSnapshot(s backup.Snapshot) (*btrfs.Subvolume, error) {
	sub, err := btrfs.Open(s.Path)
	if err == nil && sub.UUID != s.GUID {
		err = fmt.Errorf("%s: %w", s.Path, btrfs.ErrReplaced)
	}
	return sub, err
}

// UnitOf makes a unit of a send stream one that can be ingested. moved is told of
// directories below which something may no longer be excluded that the history does not
// have.
func UnitOf(u *stream.Unit, moved func(paths []string)) backup.Unit {
	b := backup.Unit{Name: u.Name, GUID: u.UUID,
		Apply: func(ctx context.Context, up *s3history.Update, excluded func(string, bool) bool, before []byte) ([]string, []byte, error) {
			res, err := u.Apply(ctx, up, stream.Options{Excluded: excluded, Outside: before})
			if err == nil && len(res.Moved) > 0 {
				moved(res.Moved)
			}
			return res.Unknown, res.Outside, err
		}}
	if u.Incremental {
		b.Parent = &u.ParentUUID
	}
	return b
}
