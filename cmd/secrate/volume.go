package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/btrfsvolume"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/keep"
	"github.com/secrate/secrate/internal/zfsvolume"
	"github.com/secrate/secrate/snapshot/zfs"
)

// A member is what has a history of its own: a source of the configuration, or a child
// dataset of one that is recursive.
type member struct {
	name string // of the child, that of the source, a slash and the rest of the dataset's
	src  *config.Source
	vol  backup.Volume // nil for an ordinary directory, which is scanned, and for streams
	size int64         // of what a first snapshot has to read, about; -1 if that cannot be told
	err  error         // why there is no vol
}

// A selection is a source of the configuration, or one child of it.
type selection struct {
	*config.Source
	child string // the member's name; empty for all members
}

// members opens what is selected: one member, or that of a dataset and those of its children.
func (a *app) members(ctx context.Context, s *site, sel selection) []member {
	m := member{name: sel.Name, src: sel.Source, size: -1}
	switch sel.Mode {
	case config.Btrfs:
		v, err := btrfsvolume.Open(s.me.ID, sel.Name, sel.Path, sel.Snapshots)
		if m.vol = v; err != nil {
			m.vol, m.err = nil, hinted(err, "is it mounted? secrate source list shows the paths")
		}
		m.size = usedOf(sel.Path)
	case config.ZFS:
		all, err := a.datasets(ctx, s, sel)
		if err == nil {
			return all
		}
		m.err = zfsHint(err, sel.Dataset)
	case config.Files:
		m.size = usedOf(sel.Path)
	}
	return []member{m}
}

// datasets is members for a dataset.
func (a *app) datasets(ctx context.Context, s *site, sel selection) ([]member, error) {
	found, err := zfs.Datasets(ctx, sel.Dataset, true)
	if err != nil {
		return nil, err
	}
	o := zfsvolume.Options{Writer: s.me.ID, Source: sel.Name, Adopt: sel.Adopt, Log: a.log}
	var children []zfs.Dataset
	for _, d := range found[1:] {
		switch {
		case a.leftOut(s, sel.Source, &d):
		case sel.Recursive:
			children = append(children, d)
		default:
			o.Nested = append(o.Nested, d.Name)
		}
	}
	var all []member
	for _, d := range append(found[:1:1], children...) {
		m := member{name: childName(sel.Source, d.Name), src: sel.Source, vol: zfsvolume.New(d, o), size: d.Size}
		o.Nested = nil
		if sel.child == "" || sel.child == m.name {
			all = append(all, m)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no child that is %s", sel.Name, sel.child)
	}
	return all, nil
}

// leftOut reports whether a dataset below that of src is not to be kept with it.
func (a *app) leftOut(s *site, src *config.Source, d *zfs.Dataset) bool {
	excluded, err := d.Excluded()
	if err != nil {
		a.warn("%s: %v; it is kept", src.Name, err)
	}
	return excluded || s.hasSource(d.Name, src)
}

// strays returns the datasets below that of src that are not kept with it, and of which there
// are local snapshots all the same, since they once were: these are held for ever.
func (a *app) strays(ctx context.Context, s *site, src *config.Source) map[*zfsvolume.Volume][]backup.Snapshot {
	if src.Mode != config.ZFS {
		return nil
	}
	found, err := zfs.Datasets(ctx, src.Dataset, true)
	if err != nil {
		return nil // it is met again
	}
	strays := map[*zfsvolume.Volume][]backup.Snapshot{}
	for _, d := range found[1:] {
		if src.Recursive && !a.leftOut(s, src, &d) {
			continue
		}
		v := zfsvolume.New(d, zfsvolume.Options{Writer: s.me.ID, Source: src.Name, Adopt: src.Adopt, Log: a.log})
		if all, err := v.List(ctx); err == nil && len(all) > 0 {
			strays[v] = all
		}
	}
	return strays
}

// hasSource reports whether a dataset is kept by another source than but.
func (s *site) hasSource(dataset string, but *config.Source) bool {
	return slices.ContainsFunc(s.conf.Sources, func(src config.Source) bool {
		return src.Mode == config.ZFS && src.Name != but.Name &&
			(src.Dataset == dataset || src.Recursive && strings.HasPrefix(dataset, src.Dataset+"/") && len(src.Dataset) > len(but.Dataset))
	})
}

// childName is the name of the history of a dataset that is src's or below it. What a name
// cannot have is written as = and two hexadecimal digits.
func childName(src *config.Source, dataset string) string {
	var b strings.Builder
	b.WriteString(src.Name)
	for _, c := range []byte(strings.TrimPrefix(dataset, src.Dataset)) {
		if c == ' ' || c == ':' {
			fmt.Fprintf(&b, "=%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// keepRule returns the rule of a source, which the configuration's reader has checked.
func keepRule(src *config.Source) keep.Rule {
	r, err := keep.Parse(src.Keep)
	if err != nil {
		panic("secrate: internal error: " + err.Error())
	}
	return r
}

// usedOf is about how much there is to read at path: what is used of its file system, which
// may hold more than the source. It is good enough to tell hours from days.
func usedOf(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return -1
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// space returns the bytes that are free where a member's local snapshots are, and those there
// are in all; 0 where there are none.
func (m *member) space(ctx context.Context) (free, total int64, err error) {
	switch m.src.Mode {
	case config.ZFS:
		return zfs.Space(ctx, zfs.Pool(m.src.Dataset))
	case config.Btrfs:
		var st unix.Statfs_t
		if err := unix.Statfs(m.src.Path, &st); err != nil {
			return 0, 0, err
		}
		return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
	}
	return 0, 0, nil
}

// zfsHint adds to an error about a dataset what can be done.
func zfsHint(err error, dataset string) error {
	var hint string
	_, byZFS := errors.AsType[*zfs.CommandError](err)
	switch {
	case errors.Is(err, zfs.ErrNoZFS):
		hint = "modprobe zfs, if this is the machine with the pool; if not: ssh NAS zfs send SNAPSHOT | secrate ingest NAME, of a source with --mode stream"
	case errors.Is(err, zfs.ErrSuspended):
		hint = fmt.Sprintf("zpool status %[1]s; when its devices are back: zpool clear %[1]s", zfs.Pool(dataset))
	case errors.Is(err, zfs.ErrKey):
		hint = "zfs load-key " + dataset + "; snapshots that are taken meanwhile wait until then"
	case byZFS && errors.Is(err, fs.ErrPermission):
		hint = "run it as root, or let root say once: zfs allow -u USER " + zfsRights + " " + dataset
	case errors.Is(err, zfs.ErrDamaged):
		hint = fmt.Sprintf("zpool status -v %s names the files that are damaged: secrate restore may have them as they were; when they are mended or removed, later snapshots can be kept again; those that have the damage in them can only be taken away, by zfs release and zfs destroy", zfs.Pool(dataset))
	case errors.Is(err, zfsvolume.ErrNothing):
		hint = "zfs list -t snapshot " + dataset + " shows what there is; patterns are in the configuration, as adopt"
	case byZFS && errors.Is(err, fs.ErrNotExist):
		hint = "zfs list shows what there is; if the dataset has another name now, change it in the configuration: the history goes on"
	default:
		return err
	}
	return hinted(err, "%s", hint)
}

// zfsRights is what a user needs who is not root. To destroy takes mount as well.
const zfsRights = "send,snapshot,hold,release,bookmark,destroy,mount"

// isKernels reports whether path is on a file system in which nothing is stored.
func isKernels(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return false
	}
	return slices.Contains([]int64{unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.DEVPTS_SUPER_MAGIC}, int64(st.Type))
}

// zfsMagic is the type that statfs(2) gives for ZFS.
const zfsMagic = 0x2fc12fc1

func isZFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == zfsMagic
}
