// Package zfsvolume makes a ZFS dataset a backup.Sender, and a unit of a ZFS send stream a
// backup.Unit: it joins package snapshot/zfs, which takes snapshots and sends them, to
// sendstream/zfs, which understands streams.
package zfsvolume

import (
	"context"
	"errors"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
	stream "github.com/secrate/secrate/sendstream/zfs"
)

// ErrExclude is wrapped by the error of a unit that is applied with excludes.
var ErrExclude = errors.New("a ZFS send stream brings names after content, and nothing of it can be left out: remove the excludes of the source")

// UnitOf makes a unit of a send stream one that can be ingested. failed is told of what
// the history cannot hold.
func UnitOf(u *stream.Unit, failed func(what string, err error)) backup.Unit {
	return unitOf(u, stream.Options{}, failed)
}

func unitOf(u *stream.Unit, o stream.Options, failed func(what string, err error)) backup.Unit {
	b := backup.Unit{Name: u.Name, GUID: stream.GUID(u.ToGUID), Time: filetree.Time{Sec: int64(u.Creation)}, StateKey: stream.StateKey,
		Apply: func(ctx context.Context, up *s3history.Update, excluded func(string, bool) bool, _ []byte) ([]string, []byte, error) {
			if excluded != nil {
				return nil, nil, ErrExclude
			}
			res, err := u.Apply(ctx, up, o)
			for _, f := range res.Failed {
				failed(f.What, f.Err)
			}
			return nil, nil, err
		}}
	if u.Head() {
		b.GUID = [16]byte{} // that of the dataset, whatever it holds
	}
	if u.Incremental() {
		from := stream.GUID(u.FromGUID)
		b.Parent = &from
	}
	return b
}
