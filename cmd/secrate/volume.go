package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/s3history"
	stream "github.com/secrate/secrate/sendstream/btrfs"
	"github.com/secrate/secrate/snapshot/btrfs"
)

// A volume is a Btrfs subvolume as a backup.Volume.
type volume struct {
	source string // the source's name: part of the names of its snapshots
	sub    *btrfs.Subvolume
	where  string // directory of the snapshots that is configured; empty means inside
}

func openVolume(s *config.Source) (*volume, error) {
	if s.Mode != config.Btrfs {
		return nil, notYet(s.Mode)
	}
	sub, err := btrfs.Open(s.Path)
	if err != nil {
		return nil, hinted(err, "is it mounted? secrate source list shows the paths")
	}
	return &volume{source: s.Name, sub: sub, where: s.Snapshots}, nil
}

// snapshotDir returns the directory of the snapshots, made if it is not there.
func (v *volume) snapshotDir() (string, error) {
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
func (v *volume) Take(ctx context.Context) (backup.Snapshot, error) {
	dir, err := v.snapshotDir()
	if err != nil {
		return backup.Snapshot{}, err
	}
	for {
		t := time.Now()
		snap, err := v.sub.Snapshot(dir, btrfs.SnapshotName(v.source, t))
		if errors.Is(err, fs.ErrExist) && ctx.Err() == nil {
			continue // a clock that is set back comes by the same times again
		}
		if err != nil {
			return backup.Snapshot{}, err
		}
		return v.snapshot(snap, t), nil
	}
}

func (v *volume) snapshot(s *btrfs.Subvolume, t time.Time) backup.Snapshot {
	return backup.Snapshot{Name: s.Name, GUID: s.UUID, Time: t, Path: s.Path}
}

// List implements backup.Volume. It makes nothing: there are no snapshots where there
// is no directory for them.
func (v *volume) List(ctx context.Context) ([]backup.Snapshot, error) {
	dir := v.where
	if dir == "" {
		dir = filepath.Join(v.sub.Path, btrfs.DirName)
	}
	subs, err := btrfs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []backup.Snapshot
	for _, s := range subs {
		if source, t, ok := btrfs.ParseName(s.Name); ok && source == v.source && s.IsSnapshot() {
			all = append(all, v.snapshot(s, t))
		}
	}
	return all, nil
}

// Release implements backup.Volume.
func (v *volume) Release(ctx context.Context, s backup.Snapshot) error {
	return btrfs.Destroy(filepath.Dir(s.Path), s.Name)
}

// Changes implements backup.Volume: the kernel is asked for a stream without data.
func (v *volume) Changes(ctx context.Context, s, base backup.Snapshot, u *s3history.Update,
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
	res, err := unit.Apply(ctx, u, stream.Options{NoData: true, Excluded: excluded, Remove: u.RemoveName})
	if err != nil {
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

// unitOf makes a unit of a send stream one that can be ingested. moved is told of
// directories below which excludes may no longer be right.
func unitOf(u *stream.Unit, moved func(paths []string)) backup.Unit {
	b := backup.Unit{Name: u.Name, GUID: u.UUID,
		Apply: func(ctx context.Context, up *s3history.Update, excluded func(string, bool) bool) ([]string, error) {
			res, err := u.Apply(ctx, up, stream.Options{Excluded: excluded, Remove: up.RemoveName})
			if err == nil && len(res.Moved) > 0 {
				moved(res.Moved)
			}
			return res.Unknown, err
		}}
	if u.Incremental {
		b.Parent = &u.ParentUUID
	}
	return b
}

// notYet refuses what other versions will do.
func notYet(m config.Mode) error {
	what := map[config.Mode]string{config.ZFS: "ZFS datasets", config.Files: "ordinary directories"}[m]
	return hinted(fmt.Errorf("%s cannot be kept by this version of secrate yet", what), "%s", notYetHint)
}

const notYetHint = "Btrfs subvolumes can, and with --mode stream whatever secrate ingest is given as a Btrfs send stream"

// zfsMagic is the type that statfs(2) gives for ZFS.
const zfsMagic = 0x2fc12fc1

func isZFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == zfsMagic
}
