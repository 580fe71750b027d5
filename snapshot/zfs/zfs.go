// Package zfs takes, finds, holds, marks, sends and destroys snapshots of ZFS datasets.
//
// A dataset is a file system or a volume, with children below it in the name space. A
// snapshot of several datasets of a pool is taken in one transaction. A hold, under a tag of
// ours, keeps one from being destroyed, by whomever; a bookmark takes next to no space and
// can still be what an increment starts from when the snapshot is gone:
//
//	tank/home                              the dataset
//	tank/home@secrate.home.20060102T150405.000Z.065d436d
//	                                       a snapshot, and whose it is
//	tank/home#secrate.home.20060102T150405.000Z.065d436d
//	                                       a bookmark of it
//	secrate.home.065d436d                  the tag of a hold
//
// zfs(8) and zpool(8) are asked, for the output that is made for scripts (-H -p), in the C
// locale. What a person is told is in the words of the command, which error texts carry; what
// is decided on is asked for anew: whether a hold is there, not what the message said.
//
// What is trusted is the commands, and those who may change snapshots of the dataset. What a
// stream says is package sendstream/zfs's to know.
//
// Errors wrap [fs.ErrPermission] for lack of rights (root's, or those that zfs allow gives),
// [fs.ErrNotExist] for what is not there, and what stands below.
package zfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Errors that callers may test for.
var (
	// ErrNoZFS says that there is no ZFS on this machine, or not now.
	ErrNoZFS = errors.New("ZFS is not to be had on this machine")
	// ErrNotZFS says that a path is on another file system.
	ErrNotZFS = errors.New("not on ZFS")
	// ErrKey says that the key of an encrypted dataset is not loaded.
	ErrKey = errors.New("the key is not loaded")
	// ErrSuspended says that a pool waits for its devices.
	ErrSuspended = errors.New("the pool is suspended: too many of its devices do not answer")
	// ErrDamaged says that the pool has not got what is to be sent, or not as it was written.
	ErrDamaged = errors.New("the pool cannot read what it has stored")
	// ErrReplaced says that a name now means another snapshot than before.
	ErrReplaced = errors.New("another snapshot has this name now")
)

// A Dataset is a file system or a volume, as it was when it was asked for.
type Dataset struct {
	Name       string
	GUID       uint64
	Volume     bool
	Mountpoint string // where it is mounted; empty if it is not
	NeedsKey   bool   // it is encrypted, and its key is not loaded
	Exclude    string // the value of the property secrate:exclude; empty if it has none
	Size       int64  // bytes of its content, before compression, about; -1 if that is not known
}

// ExcludeProperty is the user property by which a child is left out of a recursive source.
// It is inherited, as all are.
const ExcludeProperty = "secrate:exclude"

// Excluded reports what ExcludeProperty says: yes, on, true and 1 exclude, no, off, false, 0
// and nothing do not.
func (d *Dataset) Excluded() (bool, error) {
	switch strings.ToLower(d.Exclude) {
	case "yes", "on", "true", "1":
		return true, nil
	case "", "no", "off", "false", "0":
		return false, nil
	}
	return false, fmt.Errorf("zfs: the property %s of %s is %q: want on or off", ExcludeProperty, d.Name, d.Exclude)
}

// Pool returns the name of the pool that a dataset is in.
func Pool(dataset string) string {
	pool, _, _ := strings.Cut(dataset, "/")
	return pool
}

// CheckName returns an error unless name can name a dataset.
func CheckName(name string) error {
	if name == "" || len(name) > 255 || strings.Trim(name, "/") != name || strings.Contains(name, "//") || name[0] == '-' {
		return fmt.Errorf("zfs: %q is not the name of a dataset", name)
	}
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("/_-.: ", c) >= 0) {
			return fmt.Errorf("zfs: %q is not the name of a dataset", name)
		}
	}
	return nil
}

// Datasets returns the dataset of a name and, if recursive is set, all below it, sorted by
// name: it is the first.
func Datasets(ctx context.Context, name string, recursive bool) ([]Dataset, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := Healthy(ctx, Pool(name)); err != nil {
		return nil, err
	}
	args := []string{"list", "-Hp", "-t", "filesystem,volume", "-o", "name,guid,type,mounted,mountpoint,keystatus,logicalreferenced," + ExcludeProperty}
	if recursive {
		args = append(args, "-r")
	}
	rows, err := table(ctx, 8, "zfs", append(args, name)...)
	if err != nil {
		return nil, err
	}
	all := make([]Dataset, len(rows))
	for i, r := range rows {
		d := &all[i]
		d.Name, d.Volume, d.NeedsKey = r[0], r[2] == "volume", r[5] == "unavailable"
		if d.GUID, err = strconv.ParseUint(r[1], 10, 64); err != nil {
			return nil, fmt.Errorf("zfs list: GUID of %s: %w", d.Name, err)
		}
		if r[3] == "yes" && filepath.IsAbs(r[4]) {
			d.Mountpoint = r[4]
		}
		if d.Size, err = strconv.ParseInt(r[6], 10, 64); err != nil {
			d.Size = -1 // it is not known yet
		}
		if r[7] != "-" {
			d.Exclude = r[7]
		}
	}
	slices.SortFunc(all, func(a, b Dataset) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// DatasetAt returns the dataset that is mounted at path. Another path of a dataset than its
// root is refused.
func DatasetAt(ctx context.Context, path string) (Dataset, error) {
	rows, err := table(ctx, 2, "zfs", "list", "-Hp", "-t", "filesystem", "-o", "name,mountpoint", path)
	if err != nil {
		return Dataset{}, err
	}
	if len(rows) != 1 {
		return Dataset{}, fmt.Errorf("zfs list: %d datasets at %s", len(rows), path)
	}
	all, err := Datasets(ctx, rows[0][0], false)
	if err != nil {
		return Dataset{}, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Dataset{}, err
	}
	if d := all[0]; d.Mountpoint == real {
		return d, nil
	}
	return Dataset{}, fmt.Errorf("zfs: %s is in the dataset %s, and not all of it", path, rows[0][0])
}

// Healthy returns an error that wraps [ErrSuspended] if the pool is suspended: commands would
// then wait for ever.
func Healthy(ctx context.Context, pool string) error {
	rows, err := table(ctx, 2, "zpool", "list", "-Hp", "-o", "name,health", pool)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r[1] == "SUSPENDED" {
			return fmt.Errorf("zfs: pool %s: %w", pool, ErrSuspended)
		}
	}
	return nil
}

// A Snapshot is a snapshot or a bookmark, as it was when it was asked for.
type Snapshot struct {
	Dataset  string
	Name     string // behind the @ or #
	Bookmark bool
	GUID     uint64    // of the snapshot, also of a bookmark's
	TXG      uint64    // the transaction group in which the snapshot was taken: later ones are larger
	Time     time.Time // when it was taken, in seconds
	Holds    int       // how many there are, of all tags
}

// String returns the whole name.
func (s Snapshot) String() string {
	if s.Bookmark {
		return s.Dataset + "#" + s.Name
	}
	return s.Dataset + "@" + s.Name
}

// Snapshots returns the snapshots and bookmarks of a dataset in the order in which the
// snapshots were taken, a snapshot before its bookmarks.
func Snapshots(ctx context.Context, dataset string) ([]Snapshot, error) {
	rows, err := table(ctx, 5, "zfs", "list", "-Hp", "-d", "1", "-t", "snapshot,bookmark", "-o", "name,guid,createtxg,creation,userrefs", dataset)
	if err != nil {
		return nil, err
	}
	all := make([]Snapshot, len(rows))
	for i, r := range rows {
		if all[i], err = parseSnapshot(r); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b Snapshot) int {
		return cmp.Or(cmp.Compare(a.TXG, b.TXG), compareBool(a.Bookmark, b.Bookmark), strings.Compare(a.Name, b.Name))
	})
	return all, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func parseSnapshot(r []string) (s Snapshot, err error) {
	i := strings.IndexAny(r[0], "@#")
	if i < 0 {
		return s, fmt.Errorf("zfs list: %q is neither a snapshot nor a bookmark", r[0])
	}
	s.Dataset, s.Name, s.Bookmark = r[0][:i], r[0][i+1:], r[0][i] == '#'
	var seconds uint64
	for _, f := range []struct {
		text string
		to   *uint64
	}{{r[1], &s.GUID}, {r[2], &s.TXG}, {r[3], &seconds}} {
		if *f.to, err = strconv.ParseUint(f.text, 10, 64); err != nil {
			return s, fmt.Errorf("zfs list: %s: %w", r[0], err)
		}
	}
	s.Time = time.Unix(int64(seconds), 0)
	if r[4] != "-" {
		if s.Holds, err = strconv.Atoi(r[4]); err != nil {
			return s, fmt.Errorf("zfs list: %s: %w", r[0], err)
		}
	}
	return s, nil
}

// Named returns the snapshots or bookmarks that have some names, whole ones, in this order.
// If one is not there the error wraps [fs.ErrNotExist].
func Named(ctx context.Context, names []string) ([]Snapshot, error) {
	rows, err := table(ctx, 5, "zfs", append([]string{"list", "-Hp", "-t", "snapshot,bookmark", "-o", "name,guid,createtxg,creation,userrefs"}, names...)...)
	if err != nil {
		return nil, missing(ctx, names, err)
	}
	found := map[string]Snapshot{}
	for _, r := range rows {
		if found[r[0]], err = parseSnapshot(r); err != nil {
			return nil, err
		}
	}
	all := make([]Snapshot, len(names))
	for i, name := range names {
		s, ok := found[name]
		if !ok {
			return nil, fmt.Errorf("zfs list: %s: %w", name, fs.ErrNotExist)
		}
		all[i] = s
	}
	return all, nil
}

// missing finds out whether a command failed since one of some names is not there.
func missing(ctx context.Context, names []string, err error) error {
	for _, name := range names {
		dataset := name[:max(strings.IndexAny(name, "@#"), 0)]
		all, asked := Snapshots(ctx, dataset)
		if asked == nil && !slices.ContainsFunc(all, func(s Snapshot) bool { return s.String() == name }) {
			return fmt.Errorf("zfs: %s: %w", name, fs.ErrNotExist)
		}
	}
	return err
}

// check returns an error unless the names of some snapshots are theirs still.
func check(ctx context.Context, snapshots ...Snapshot) error {
	names := make([]string, len(snapshots))
	for i, s := range snapshots {
		names[i] = s.String()
	}
	now, err := Named(ctx, names)
	if err != nil {
		return err
	}
	for i, s := range snapshots {
		if now[i].GUID != s.GUID {
			return fmt.Errorf("zfs: %s: %w", s, ErrReplaced)
		}
	}
	return nil
}

// prefix begins the names of what is ours.
const prefix = "secrate."

// nameTime is the time in a snapshot's name.
const nameTime = "20060102T150405.000Z"

// SnapshotName returns the name, without the dataset, of a snapshot at t for a source, which
// belongs to owner: 1 or more hexadecimal digits that tell those apart who keep one dataset.
// It is that of a bookmark, too.
func SnapshotName(source string, t time.Time, owner string) string {
	return prefix + source + "." + t.UTC().Format(nameTime) + "." + owner
}

// ParseName takes a name made by SnapshotName apart.
func ParseName(name string) (source string, t time.Time, owner string, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	i := strings.LastIndexByte(rest, '.')
	at := i - len(nameTime)
	if !ok || at < 2 || rest[at-1] != '.' || i+1 == len(rest) || strings.Trim(rest[i+1:], "0123456789abcdef") != "" {
		return "", time.Time{}, "", false
	}
	t, err := time.Parse(nameTime, rest[at:i])
	if err != nil {
		return "", time.Time{}, "", false
	}
	source, owner = rest[:at-1], rest[i+1:]
	return source, t, owner, SnapshotName(source, t, owner) == name
}

// Tag returns the tag of the holds of owner for a source.
func Tag(source, owner string) string { return prefix + source + "." + owner }

// Take takes a snapshot of that name of each of some datasets of one pool, all in one
// transaction or none.
func Take(ctx context.Context, datasets []string, name string) error {
	args := []string{"snapshot"}
	for _, d := range datasets {
		args = append(args, d+"@"+name)
	}
	return run(ctx, "zfs", args...)
}

// Hold holds snapshots under a tag, those that are not held so already.
func Hold(ctx context.Context, tag string, snapshots ...Snapshot) error {
	if err := check(ctx, snapshots...); err != nil {
		return err
	}
	hold := func(snapshots ...Snapshot) error {
		args := []string{"hold", tag}
		for _, s := range snapshots {
			args = append(args, s.String())
		}
		return run(ctx, "zfs", args...)
	}
	err := hold(snapshots...)
	if err == nil {
		return nil
	}
	for _, s := range snapshots {
		if held, asked := Held(ctx, tag, []Snapshot{s}); asked == nil && len(held) == 1 {
			continue
		}
		if len(snapshots) > 1 {
			err = hold(s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Held returns those of some snapshots that are held under a tag.
func Held(ctx context.Context, tag string, snapshots []Snapshot) ([]Snapshot, error) {
	var held []Snapshot
	for some := range slices.Chunk(snapshots, 256) {
		args := []string{"holds", "-H"}
		for _, s := range some {
			if s.Holds > 0 || len(snapshots) == 1 {
				args = append(args, s.String())
			}
		}
		if len(args) == 2 {
			continue
		}
		rows, err := table(ctx, 3, "zfs", args...)
		if err != nil {
			return nil, err
		}
		for _, s := range some {
			if slices.ContainsFunc(rows, func(r []string) bool { return r[0] == s.String() && r[1] == tag }) {
				held = append(held, s)
			}
		}
	}
	return held, nil
}

// Release takes a hold away, if it is there.
func Release(ctx context.Context, tag string, s Snapshot) error {
	err := run(ctx, "zfs", "release", tag, s.String())
	if err == nil {
		return nil
	}
	// It may be gone, and so may the snapshot: one that somebody has destroyed while it was
	// held goes with its last hold.
	if isGone(check(ctx, s)) {
		return nil
	}
	if held, asked := Held(ctx, tag, []Snapshot{s}); asked == nil && len(held) == 0 {
		return nil
	}
	return err
}

// Bookmark makes a bookmark of a snapshot, if it is not there already.
func Bookmark(ctx context.Context, s Snapshot, name string) error {
	mark := Snapshot{Dataset: s.Dataset, Name: name, Bookmark: true, GUID: s.GUID}
	err := run(ctx, "zfs", "bookmark", s.String(), mark.String())
	if err == nil {
		return nil
	}
	if check(ctx, mark) == nil {
		return nil
	}
	return err
}

// Destroy destroys a snapshot or a bookmark, if it is there: exactly that one, which nothing
// may hold and of which there may be no clone.
func Destroy(ctx context.Context, s Snapshot) error {
	if err := check(ctx, s); isGone(err) {
		return nil
	} else if err != nil {
		return err
	}
	err := run(ctx, "zfs", "destroy", s.String())
	if err != nil && isGone(check(ctx, s)) {
		return nil
	}
	return err
}

// Space returns the bytes that are free in a pool, and those it has in all.
func Space(ctx context.Context, pool string) (free, total int64, err error) {
	rows, err := table(ctx, 2, "zpool", "list", "-Hp", "-o", "free,size", pool)
	if err != nil {
		return 0, 0, err
	}
	if len(rows) != 1 {
		return 0, 0, fmt.Errorf("zpool list: %d pools called %s", len(rows), pool)
	}
	free, err1 := strconv.ParseInt(rows[0][0], 10, 64)
	total, err2 := strconv.ParseInt(rows[0][1], 10, 64)
	return free, total, errors.Join(err1, err2)
}
