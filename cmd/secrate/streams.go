package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/btrfsvolume"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/zfsvolume"
	"github.com/secrate/secrate/sendstream/btrfs"
	"github.com/secrate/secrate/sendstream/zfs"
)

// units yields what comes on standard input, be it of Btrfs or of ZFS.
func (in *ingest) units(r io.Reader) iter.Seq2[backup.Unit, error] {
	br := bufio.NewReaderSize(r, 1<<20)
	// What cannot be looked at is met again when it is read.
	if start, _ := br.Peek(zfs.MagicLen); zfs.IsStream(start) {
		return in.zfsUnits(br)
	}
	return in.btrfsUnits(br)
}

func (in *ingest) btrfsUnits(r io.Reader) iter.Seq2[backup.Unit, error] {
	return func(yield func(backup.Unit, error) bool) {
		for u, err := range btrfs.NewUnits(r).All() {
			var b backup.Unit
			if err == nil {
				b = btrfsvolume.UnitOf(u, func(paths []string) {
					if len(in.src.Exclude) > 0 {
						in.a.warn("%s: directories were moved, and what is excluded may not be the same below them: %s", in.src.Name, progress.Printable(strings.Join(paths, ", ")))
					}
				})
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// zfsUnits yields the snapshots of one dataset, the first in the stream. A package may have
// others behind it: each is to have a source of its own.
func (in *ingest) zfsUnits(r io.Reader) iter.Seq2[backup.Unit, error] {
	return func(yield func(backup.Unit, error) bool) {
		dataset := ""
		for u, err := range zfs.NewUnits(r).All() {
			if err != nil {
				yield(backup.Unit{}, err)
				return
			}
			if dataset == "" {
				dataset = u.Dataset()
				in.compareDataset(dataset)
			}
			if u.Dataset() != dataset {
				if !slices.Contains(in.passed, u.Dataset()) {
					in.passed = append(in.passed, u.Dataset())
				}
				continue
			}
			unit := zfsvolume.UnitOf(u, func(what string, err error) {
				in.unread = true
				in.a.warn("%s: %s: %v", in.src.Name, progress.Printable(what), err)
			})
			if !yield(unit, nil) {
				return
			}
		}
	}
}

// compareDataset warns of a dataset that is not the one whose history it is to go on.
func (in *ingest) compareDataset(dataset string) {
	head, err := in.wr.head(in.src.Name)
	if err != nil || head.Seq == 0 {
		return // an error is met again
	}
	if before, _, ok := strings.Cut(head.Info.Origin, "@"); ok && before != dataset {
		in.a.warn("%s: the stream is of %s, and #%d was of %s: was it renamed, or is this another one?", in.src.Name,
			progress.Printable(dataset), head.Seq, progress.Printable(before))
	}
}

// explain adds to an error what can be done.
func (in *ingest) explain(err error) error {
	const again = "send it again; of this snapshot nothing was kept"
	switch {
	case errors.Is(err, btrfs.ErrEmpty), errors.Is(err, zfs.ErrEmpty):
		return hinted(err, "did the command that sends fail? set -o pipefail shows it")
	case errors.Is(err, btrfs.ErrMagic), errors.Is(err, zfs.ErrMagic):
		return hinted(fmt.Errorf("no send stream, neither of Btrfs nor of ZFS: %w", err), "is it compressed? pipe it through zstd -d or the like first")
	case errors.Is(err, zfs.ErrResumed):
		return hinted(err, "zfs send without -t; what is known of the snapshot already is not uploaded again")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return hinted(fmt.Errorf("the stream is cut: %w", err), again)
	case errors.Is(err, backup.ErrNames):
		return hinted(err, "send this snapshot as a full stream, without -p")
	case errors.Is(err, backup.ErrBase):
		return hinted(err, "send a full stream, without -p or -i, or one that starts from a snapshot the history has")
	case errors.Is(err, backup.ErrState), errors.Is(err, zfs.ErrState):
		return hinted(err, "zfs send SNAPSHOT without -i")
	case errors.Is(err, zfs.ErrRaw), errors.Is(err, zfs.ErrRedacted), errors.Is(err, zfs.ErrDedup), errors.Is(err, zfsvolume.ErrExclude):
		return err // it says what to do
	}
	if _, ok := errors.AsType[*btrfs.FormatError](err); ok && errors.Is(err, filetree.ErrNotExist) {
		return hinted(err, "the history lacks what was no longer excluded since, or is not of the same tree: send this snapshot as a full stream, without -p")
	} else if ok {
		return hinted(err, again)
	}
	if _, ok := errors.AsType[*zfs.FormatError](err); ok {
		return hinted(err, again)
	}
	return err
}
