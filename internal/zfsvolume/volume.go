//go:build linux

package zfsvolume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
	stream "github.com/secrate/secrate/sendstream/zfs"
	"github.com/secrate/secrate/snapshot/zfs"
)

// Options say whose snapshots a Volume takes, and which.
type Options struct {
	Writer string // the writer's id
	Source string // the source's name: of a child, that of the source it is a child in
	// Adopt, if not empty, are patterns of path.Match for the names of snapshots that
	// something else takes: then the newest that matches is held, and none is taken.
	Adopt []string
	// Nested are children of the dataset that no source keeps, for a warning.
	Nested []string
	// NoMounts lets streams bring content also where it could be read from snapshots.
	NoMounts bool
	Log      *slog.Logger
}

// ownerDigits is how much of a writer's id is in names: enough to tell those apart who keep
// one dataset.
const ownerDigits = 8

// A Volume is a dataset whose snapshots are a source's.
type Volume struct {
	zfs.Dataset
	source, owner string
	o             Options

	known []zfs.Snapshot // what snapshots has found; nil when it has to be asked for anew
}

var _ backup.Sender = (*Volume)(nil)

// New returns the Volume of a dataset.
func New(d zfs.Dataset, o Options) *Volume {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Volume{Dataset: d, source: o.Source, owner: o.Writer[:ownerDigits], o: o}
}

func (v *Volume) tag() string { return zfs.Tag(v.source, v.owner) }

// own reports whether a snapshot or bookmark is one that this source's Take or Mark has
// made.
func (v *Volume) own(s zfs.Snapshot) bool {
	source, _, owner, ok := zfs.ParseName(s.Name)
	return ok && source == v.source && owner == v.owner
}

func (v *Volume) snapshot(s zfs.Snapshot, held bool) backup.Snapshot {
	return backup.Snapshot{Name: s.String(), GUID: stream.GUID(s.GUID), Time: s.Time, Held: held, Adopted: !v.own(s)}
}

// Take takes snapshots of some datasets of one source, all in one transaction, and holds
// them. Or it adopts snapshots of them, where they are to be adopted.
func Take(ctx context.Context, all []*Volume) ([]backup.Snapshot, error) {
	if len(all[0].o.Adopt) > 0 {
		return adopt(ctx, all)
	}
	first := all[0]
	var name string
	for tries := 1; ; tries++ {
		name = zfs.SnapshotName(first.source, time.Now(), first.owner)
		names := make([]string, len(all))
		for i, v := range all {
			names[i] = v.Name
		}
		err := zfs.Take(ctx, names, name)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) || ctx.Err() != nil || tries == 5 {
			return nil, err
		}
		time.Sleep(time.Millisecond) // a clock that is set back comes by the same times again
	}
	names := make([]string, len(all))
	for i, v := range all {
		names[i] = v.Name + "@" + name
		v.known = nil
	}
	found, err := zfs.Named(ctx, names)
	if err == nil {
		err = zfs.Hold(ctx, first.tag(), found...)
	}
	if err != nil {
		return nil, err
	}
	taken := make([]backup.Snapshot, len(all))
	for i, v := range all {
		taken[i] = v.snapshot(found[i], true)
	}
	return taken, nil
}

// adopt holds the newest snapshot of each that matches. A dataset that has none, such as a
// child that is new, gets no Snapshot, but one of them has to.
func adopt(ctx context.Context, all []*Volume) ([]backup.Snapshot, error) {
	taken := make([]backup.Snapshot, len(all))
	some := false
	for i, v := range all {
		s, err := v.find(ctx, func(s zfs.Snapshot) bool {
			return !s.Bookmark && slices.ContainsFunc(v.o.Adopt, func(p string) bool { ok, _ := path.Match(p, s.Name); return ok })
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			crashpoint.Here("adopt before")
			err = zfs.Hold(ctx, v.tag(), s)
			v.known = nil
			crashpoint.Here("adopt after")
		}
		if err != nil {
			return nil, err
		}
		taken[i], some = v.snapshot(s, true), true
	}
	if !some {
		return nil, fmt.Errorf("no snapshot of %s is called %s: %w", all[0].Name, strings.Join(all[0].o.Adopt, " or "), ErrNothing)
	}
	return taken, nil
}

// ErrNothing is wrapped by Take's error when there is nothing to adopt.
var ErrNothing = errors.New("there is nothing to adopt")

// snapshots returns the snapshots and bookmarks of the dataset, oldest first, as they were at
// the last List or change. Whoever changes one makes sure that it is there still.
func (v *Volume) snapshots(ctx context.Context) ([]zfs.Snapshot, error) {
	if v.known == nil {
		all, err := zfs.Snapshots(ctx, v.Name)
		if err != nil {
			return nil, err
		}
		v.known = all
	}
	return slices.Clone(v.known), nil
}

// find returns the newest snapshot or bookmark that is the one; the error wraps
// [fs.ErrNotExist] if none is.
func (v *Volume) find(ctx context.Context, is func(zfs.Snapshot) bool) (zfs.Snapshot, error) {
	all, err := v.snapshots(ctx)
	if err != nil {
		return zfs.Snapshot{}, err
	}
	for _, s := range slices.Backward(all) {
		if is(s) {
			return s, nil
		}
	}
	return zfs.Snapshot{}, fmt.Errorf("snapshot of %s: %w", v.Name, fs.ErrNotExist)
}

// byGUID returns the snapshot that s was when it was listed.
func (v *Volume) byGUID(ctx context.Context, s backup.Snapshot) (zfs.Snapshot, error) {
	found, err := v.find(ctx, func(z zfs.Snapshot) bool { return !z.Bookmark && stream.GUID(z.GUID) == s.GUID })
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s is there no longer: somebody has destroyed it: %w", s.Name, fs.ErrNotExist)
	}
	return found, err
}

// Take implements backup.Volume.
func (v *Volume) Take(ctx context.Context) (backup.Snapshot, error) {
	taken, err := Take(ctx, []*Volume{v})
	if err != nil {
		return backup.Snapshot{}, err
	}
	return taken[0], nil
}

// List implements backup.Volume: snapshots that are this source's by name, and those that
// were adopted, which its hold tells.
func (v *Volume) List(ctx context.Context) ([]backup.Snapshot, error) {
	v.known = nil
	all, err := v.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s zfs.Snapshot) bool { return s.Bookmark })
	held, err := zfs.Held(ctx, v.tag(), slices.DeleteFunc(slices.Clone(all), func(s zfs.Snapshot) bool { return s.Holds == 0 }))
	if err != nil {
		return nil, err
	}
	var ours []backup.Snapshot
	for _, s := range all {
		if holds := slices.Contains(held, s); holds || v.own(s) {
			ours = append(ours, v.snapshot(s, holds))
		}
	}
	return ours, nil
}

// Nested implements backup.Volume.
func (v *Volume) Nested(context.Context) ([]string, string, error) {
	return slices.Clone(v.o.Nested), "dataset", nil
}

// Hold implements backup.Sender.
func (v *Volume) Hold(ctx context.Context, s backup.Snapshot) error {
	if s.Held {
		return nil
	}
	z, err := v.byGUID(ctx, s)
	if err != nil {
		return err
	}
	v.known = nil
	return zfs.Hold(ctx, v.tag(), z)
}

// Release implements backup.Volume. What was adopted is never destroyed.
func (v *Volume) Release(ctx context.Context, s backup.Snapshot, destroy bool) error {
	z, err := v.byGUID(ctx, s)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	v.known = nil
	if s.Held {
		if err := zfs.Release(ctx, v.tag(), z); err != nil {
			return err
		}
		crashpoint.Here("hold released")
	}
	if !destroy || !v.own(z) {
		return nil
	}
	return zfs.Destroy(ctx, z)
}

// Undo returns the commands with which a person takes a snapshot away that List has returned.
func (v *Volume) Undo(s backup.Snapshot) string {
	_, name, _ := strings.Cut(s.Name, "@")
	var commands []string
	if s.Held {
		commands = append(commands, "zfs release "+v.tag()+" '"+s.Name+"'")
	}
	if v.own(zfs.Snapshot{Name: name}) {
		commands = append(commands, "zfs destroy '"+s.Name+"'")
	}
	return strings.Join(commands, " && ")
}

// Bases implements backup.Sender.
func (v *Volume) Bases(ctx context.Context, s backup.Snapshot) ([][16]byte, error) {
	to, err := v.byGUID(ctx, s)
	if err != nil {
		return nil, err
	}
	all, err := v.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	var guids [][16]byte
	for _, b := range slices.Backward(all) {
		if g := stream.GUID(b.GUID); b.TXG < to.TXG && !slices.Contains(guids, g) {
			guids = append(guids, g)
		}
	}
	return guids, nil
}

// StateKey implements backup.Sender.
func (v *Volume) StateKey() []byte { return stream.StateKey }

// maxBookmarks is how many bookmarks of a source's are kept. One is needed when the newest
// committed snapshot was destroyed, older ones after a rollback past that.
const maxBookmarks = 32

// Mark implements backup.Sender: a bookmark is made, and the oldest go.
func (v *Volume) Mark(ctx context.Context, s backup.Snapshot) error {
	all, err := v.snapshots(ctx)
	if err != nil {
		return err
	}
	marks := slices.DeleteFunc(slices.Clone(all), func(z zfs.Snapshot) bool { return !z.Bookmark || !v.own(z) })
	if slices.ContainsFunc(marks, func(z zfs.Snapshot) bool { return stream.GUID(z.GUID) == s.GUID }) {
		return nil
	}
	i := slices.IndexFunc(all, func(z zfs.Snapshot) bool { return !z.Bookmark && stream.GUID(z.GUID) == s.GUID })
	if i < 0 {
		return fmt.Errorf("%s: %w", s.Name, fs.ErrNotExist)
	}
	name := all[i].Name
	if !v.own(all[i]) {
		// Several may be taken within a second.
		t := all[i].Time.Add(time.Duration(all[i].TXG%1000) * time.Millisecond)
		name = zfs.SnapshotName(v.source, t, v.owner)
	}
	v.known = nil
	if err := zfs.Bookmark(ctx, all[i], name); err != nil {
		return err
	}
	for len(marks) >= maxBookmarks {
		err := zfs.Destroy(ctx, marks[0])
		if errors.Is(err, fs.ErrPermission) {
			v.o.Log.InfoContext(ctx, "old bookmarks stay", "dataset", v.Name, "err", err)
			return nil // the new one is there, and that is what counts
		} else if err != nil {
			return err
		}
		marks = marks[1:]
	}
	return nil
}

// Send implements backup.Sender. Where both snapshots can be read beside the stream, content
// is read from them.
func (v *Volume) Send(ctx context.Context, s backup.Snapshot, base *[16]byte, told backup.Told) (_ *backup.Stream, err error) {
	if v.NeedsKey {
		return nil, fmt.Errorf("%s is encrypted: %w", v.Name, zfs.ErrKey)
	}
	to, err := v.byGUID(ctx, s)
	if err != nil {
		return nil, err
	}
	var o zfs.SendOptions
	if base != nil {
		from, err := v.find(ctx, func(z zfs.Snapshot) bool { return stream.GUID(z.GUID) == *base && !z.Bookmark })
		if errors.Is(err, fs.ErrNotExist) {
			from, err = v.find(ctx, func(z zfs.Snapshot) bool { return stream.GUID(z.GUID) == *base })
		}
		if err != nil {
			return nil, err
		}
		o.Base = &from
	}
	sent := &sending{v: v}
	defer func() {
		if err != nil {
			sent.close()
		}
	}()
	if o.Base != nil && !o.Base.Bookmark && !v.Volume && !v.o.NoMounts {
		sent.mount(ctx, to, *o.Base)
	}
	// What is not looked at need not be decompressed.
	o.Compressed = sent.now != nil
	if sent.r, err = zfs.Send(ctx, to, o); err != nil {
		return nil, err
	}
	var r io.Reader = sent.r
	if sent.now == nil {
		r = &counter{r, told.Read}
	}
	units := stream.NewUnits(bufio.NewReaderSize(r, 1<<20))
	u, err := units.Next()
	if err != nil {
		return nil, sent.explain(err)
	}
	unit := unitOf(u, stream.Options{NoData: sent.now != nil}, told.Failed)
	if unit.GUID != s.GUID || (unit.Parent == nil) != (base == nil) || base != nil && *unit.Parent != *base {
		return nil, fmt.Errorf("zfs send %s: the stream is of another snapshot, %s, or starts from another", s.Name, unit.Name)
	}
	unit.Now, unit.Base = sent.now, sent.base
	apply := unit.Apply
	unit.Apply = func(ctx context.Context, up *s3history.Update, excluded func(string, bool) bool, before []byte) ([]string, []byte, error) {
		unknown, after, err := apply(ctx, up, excluded, before)
		if err != nil {
			return nil, nil, sent.explain(err)
		}
		// The command says that all is well only at the end of the stream.
		switch _, err := units.Next(); {
		case err == nil:
			return nil, nil, fmt.Errorf("zfs send %s: there is more than one snapshot in the stream", s.Name)
		case err != io.EOF:
			return nil, nil, sent.explain(err)
		}
		return unknown, after, nil
	}
	return &backup.Stream{Unit: unit, Close: sent.close}, nil
}

// A counter tells how much is read.
type counter struct {
	r    io.Reader
	read func(n int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.read(int64(n))
	return n, err
}

// A sending is a stream on its way, with what is mounted meanwhile.
type sending struct {
	v         *Volume
	r         io.ReadCloser
	now, base *localfs.Tree
}

func (s *sending) close() {
	if s.r != nil {
		s.r.Close()
	}
	for _, t := range []*localfs.Tree{s.now, s.base} {
		if t != nil {
			t.Close()
		}
	}
}

// mount makes both snapshots readable, or neither. There are many reasons why they may not
// be, and none to go without a snapshot: then the stream brings the content.
func (s *sending) mount(ctx context.Context, to, base zfs.Snapshot) {
	open := func(z zfs.Snapshot) (*localfs.Tree, error) {
		dir, err := zfs.Mount(s.v.Dataset, z)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		return localfs.OpenFile(dir)
	}
	var err error
	if s.now, err = open(to); err == nil {
		if s.base, err = open(base); err == nil {
			return
		}
		s.now.Close()
		s.now = nil
	}
	s.v.o.Log.InfoContext(ctx, "snapshots cannot be read, the stream brings the content", "dataset", s.v.Name, "err", err)
}

// explain makes of the error of a stream one that says what became of the command, and of
// one that the history does not fit backup.ErrMisfit.
func (s *sending) explain(err error) error {
	if e, ok := errors.AsType[*zfs.CommandError](err); ok {
		if errors.Is(e, zfs.ErrDamaged) {
			return fmt.Errorf("%w: %w", backup.ErrUnsendable, e)
		}
		return e
	}
	if errors.Is(err, stream.ErrState) || errors.Is(err, filetree.ErrInvalid) || errors.Is(err, filetree.ErrNotExist) {
		return fmt.Errorf("%w: %w", backup.ErrMisfit, err)
	}
	return err
}
