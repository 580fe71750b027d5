// Package restore brings the state of a source at one snapshot into a directory, or one
// file of it onto a block device.
//
//	catalog.View ─► walk ─┬─► directories, links, special and empty files ─► localfs.Target
//	                      └─► catalog.Plan: where the content of files is
//	Plan ─► whole files, pack by pack ─► s3history.Content.Blobs ─► Target.WriteFile
//	     └► files in pieces, one after the other ─► Create, WriteAt…, Finish
//	Plan ─► further names of files ─► directories' attributes, from the leaves up
//
// Most files are one slice of a blob. They are written in the order in which packs
// have them, whatever directories they are in, so that each pack is read once and in
// large requests. Every other file (it is large, or its pieces are from several
// snapshots, or patches) is put together from its pieces, those of one pack at a time,
// several at once.
//
// Memory does not grow with the tree, but for a bit or two a node and what
// [localfs.Target] keeps of directories that are not finished: the plan is in temporary
// tables of the catalog, and of a very large tree one part after the other is restored. In flight are a few blobs of at most 1 MiB for each worker.
//
// A history is not believed. Names and places are checked by package localfs, so that
// nothing is written outside the target; here each directory is entered once, so that
// a circle ends, and what cannot be is an error of the file it is about. A file that
// fails is named and leaves nothing behind; the others are restored all the same.
package restore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/s3history"
)

// Options of Run. The zero value of each field that is not said to be needed is its
// default.
type Options struct {
	Catalog *catalog.DB        // needed: that View is of
	View    catalog.View       // needed: what is restored
	Content *s3history.Content // needed
	// Path is what to restore, its components from the source's root down; none
	// means all. What is in a directory is restored into the target, which gets its
	// attributes; anything else is restored in the target under its own name.
	Path []string
	// To is the directory to restore into. It is made if it does not exist; what it
	// is in must. If it leads to a block device, Path has to name a regular file: its
	// content is restored onto the device, holes as zeros, and made durable. There are
	// no attributes then, and what lies behind its end on the device is left alone.
	To           string
	IntoExisting bool // allow a To that is not empty, or that is a device
	Workers      int  // files, or pieces of files, at once; 0 means 4
	Sync         bool // make all durable before Run returns
	// Failed is called for each failure, one at a time. nil means none is told but
	// those in the Result.
	Failed   func(Failure)
	Progress progress.Progress // of the content, in bytes; nil means none
}

func (o *Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return 4
}

// A Result says what Run has done.
type Result struct {
	Files     int64 // regular files
	Dirs      int64 // with the target itself
	Links     int64 // symbolic ones
	HardLinks int64 // further names of nodes that are counted above or below
	Special   int64 // fifos, sockets, devices
	Bytes     int64 // of content that were written
	Holes     int64 // bytes of files that were not, since they are holes
	// Device is the device that was restored onto, nil if To is none, or was refused.
	Device *Device

	Failures int64     // how many nodes or names could not be restored, or are incomplete
	Failed   []Failure // the first of them, at most MaxFailed
	Notes    []localfs.Note
}

// A Device is what a Result says of one.
type Device struct {
	Name string // its own, where To leads
	Size int64
	// Begun is set if anything on it may have changed. If Run returns an error, neither
	// what it had before nor the file is there whole.
	Begun bool
}

// ErrIncomplete is the error of a [Failure] that was restored as far as the history has it.
var ErrIncomplete = errors.New("not all of it could be read when the snapshot was made; where content is missing is a hole")

// MaxFailed bounds the failures that a Result names.
const MaxFailed = 1000

// A Failure is something that could not be restored. Of a directory, nothing that is
// in it was then either.
type Failure struct {
	Path string // within the source: names with slashes between them
	Err  error
}

func (f Failure) Error() string { return f.Path + ": " + f.Err.Error() }

func (f Failure) Unwrap() error { return f.Err }

// maxDepth bounds how deep directories nest.
const maxDepth = 16384

// A run is one call of Run. Directories have the numbers of the plan in the target.
type run struct {
	Options
	plan   *catalog.Plan
	target *localfs.Target // nil with a device
	device *localfs.Device // nil with a directory

	mu  sync.Mutex // guards what follows
	res Result
}

// Run restores as o says. That single files fail is no error: Result counts and names
// them. The error wraps filetree.ErrNotExist if there is no o.Path, localfs.ErrNotEmpty
// if o.To has entries and o does not allow them, and unix.ENOSPC, EDQUOT or EROFS if
// nothing more can be written; the Result then says how far it came. What was begun is
// taken away, directories that were made stay.
//
// A device is refused with a *localfs.DeviceError before anything on it changes. Whatever
// fails later is an error, and leaves it with what was written so far.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Progress == nil {
		o.Progress = progress.Discard
	}
	r := &run{Options: o}
	err := r.restore(ctx)
	if r.target != nil {
		r.res.Notes = r.target.Notes()
		err = errors.Join(err, r.target.Close())
	}
	if r.device != nil {
		r.res.Device = &Device{r.device.Name(), r.device.Size(), r.device.Begun()}
		err = errors.Join(err, r.device.Close())
	}
	return r.res, err
}

func (r *run) restore(ctx context.Context) (err error) {
	node, err := r.View.Resolve(r.Path)
	if err != nil {
		return fmt.Errorf("%s: %w", r.source(), err)
	}
	attr, err := r.View.Attr(node)
	single := attr.Kind != filetree.Dir
	if err == nil && single && len(r.Path) == 0 {
		err = fmt.Errorf("the history says that it is a %v, not a directory", attr.Kind)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.source(), err)
	}
	if r.plan, err = r.Catalog.NewPlan(r.View); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.plan.Close()) }()
	if localfs.IsDevice(r.To) {
		return r.ontoDevice(ctx, node, attr)
	}
	r.target, err = localfs.OpenTarget(r.To, localfs.TargetOptions{IntoExisting: r.IntoExisting, Root: rootID})
	if err != nil {
		return err
	}
	w := walker{run: r}
	if single {
		name := r.Path[len(r.Path)-1]
		r.Path = r.Path[:len(r.Path)-1] // of what is in the target
		err = w.entry(ctx, catalog.PlanDir{ID: rootID}, catalog.Listed{Child: catalog.Child{Name: name, Node: node, Attr: attr}})
	} else if err = r.plan.PushDir(catalog.PlanDir{}, "", node); err == nil {
		err = w.walk(ctx)
	}
	if err != nil {
		return err
	}
	if err := r.content(ctx); err != nil {
		return err
	}
	if err := r.links(ctx); err != nil {
		return err
	}
	if err := r.finishDirs(ctx, true); err != nil {
		return err
	}
	if r.Sync {
		return r.target.Sync()
	}
	return nil
}

func (r *run) source() string { return "/" + strings.Join(r.Path, "/") }

// rootID is the target directory, in the plan and in the target.
const rootID = 1

// targetID is the plan's directory, as the target knows it.
func targetID(dir int64) filetree.NodeID { return filetree.NodeID(dir) }

// A walker makes directories and what has no content, and plans the rest.
type walker struct {
	*run
	dirs, others nodeSet // that have been met
}

// windowDirs is how many directories are made before what is in them is restored, and
// those that are whole are finished and forgotten: the target keeps some 100 bytes of
// each. It is a variable for tests.
var windowDirs = 1 << 16

func (w *walker) walk(ctx context.Context) error {
	for made := 0; ; made++ {
		dir, err := w.plan.PopDir()
		if err != nil || dir.ID == 0 {
			return err
		}
		if err := w.makeDir(dir); err != nil {
			if err := w.fail(ctx, dir.Parent, dir.Name, err); err != nil {
				return err
			}
			continue
		}
		if err := w.plan.AddDir(dir); err != nil {
			return err
		}
		if err := w.list(ctx, dir); err != nil {
			return err
		}
		if made > 0 && made%windowDirs == 0 {
			if err := w.finishWindow(ctx); err != nil {
				return err
			}
		}
	}
}

// list deals with the entries of a directory.
func (w *walker) list(ctx context.Context, dir catalog.PlanDir) error {
	last, any := "", false
	for c, err := range w.View.List(dir.Node) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if any && c.Name == last {
			c.Err = errTwice
		}
		last, any = c.Name, true
		if err := w.entry(ctx, dir, c); err != nil {
			return err
		}
	}
	return nil
}

// finishWindow finishes what can be, so that memory does not grow with the number of
// directories. A directory that has a hard link, or may get one, has to wait.
func (r *run) finishWindow(ctx context.Context) error {
	if err := r.content(ctx); err != nil {
		return err
	}
	if err := r.plan.Pin(ctx); err != nil {
		return err
	}
	return r.finishDirs(ctx, false)
}

var (
	errTwice = errors.New("the history has this name twice")
	errLoop  = errors.New("the history has this directory in more than one place")
	errDeep  = fmt.Errorf("more than %d directories below one another", maxDepth)
)

// entry makes or plans one entry of a directory. Its error ends the restore.
func (w *walker) entry(ctx context.Context, dir catalog.PlanDir, c catalog.Listed) error {
	err := c.Err
	if err == nil {
		err = filetree.CheckName(c.Name)
	}
	if err == nil && c.Attr.Incomplete {
		if err := w.fail(ctx, dir.ID, c.Name, ErrIncomplete); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
	case c.Attr.Kind == filetree.Dir:
		return w.plan.PushDir(dir, c.Name, c.Node)
	case !w.others.add(c.Node):
		return w.plan.AddLink(dir.ID, c.Name, c.Node)
	case c.Attr.Kind == filetree.File && c.Attr.Size > 0:
		_, err := w.plan.AddFile(dir.ID, c.Name, c.Node, c.Attr.Size)
		return err
	default:
		file, planErr := w.plan.AddFile(dir.ID, c.Name, c.Node, 0)
		if planErr != nil {
			return planErr
		}
		if err = w.make(targetID(dir.ID), c.Child); err != nil {
			return w.failFile(ctx, catalog.PlanFile{ID: file, Dir: dir.ID, Name: c.Name}, err)
		}
	}
	if err != nil {
		return w.fail(ctx, dir.ID, c.Name, err)
	}
	return nil
}

func (w *walker) makeDir(d catalog.PlanDir) error {
	switch {
	case d.Depth > maxDepth:
		return errDeep
	case w.dirs.has(d.Node):
		return errLoop
	case d.ID != rootID:
		if err := w.target.Mkdir(targetID(d.Parent), d.Name, targetID(d.ID)); err != nil {
			return err
		}
	}
	w.dirs.add(d.Node)
	return nil
}

// make makes what has no content.
func (w *walker) make(dir filetree.NodeID, c catalog.Child) error {
	count := &w.res.Special
	var err error
	switch c.Attr.Kind {
	case filetree.File:
		count, err = &w.res.Files, w.target.WriteFile(dir, c.Name, &c.Attr, nil)
	case filetree.Symlink:
		count, err = &w.res.Links, w.target.Symlink(dir, c.Name, &c.Attr)
	default:
		err = w.target.Mknod(dir, c.Name, &c.Attr)
	}
	if err == nil {
		*count++ // nobody else is at work yet
	}
	return err
}

func (r *run) links(ctx context.Context) error {
	for l, err := range r.plan.Links() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if l.Failed {
			err = fmt.Errorf("its first name is %q, which failed", r.path(l.First.Dir, l.First.Name))
		} else {
			err = r.target.Link(targetID(l.First.Dir), l.First.Name, targetID(l.Dir), l.Name)
		}
		if err == nil {
			r.res.HardLinks++
		} else if err := r.fail(ctx, l.Dir, l.Name, err); err != nil {
			return err
		}
	}
	return nil
}

// finishDirs finishes the directories that are whole, and with all all that are left.
func (r *run) finishDirs(ctx context.Context, all bool) error {
	for d, err := range r.plan.FinishDirs(all) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if err = d.Err; err == nil {
			err = r.target.FinishDir(targetID(d.ID), &d.Attr)
		}
		if err == nil {
			r.res.Dirs++
		} else if err := r.fail(ctx, d.ID, "", err); err != nil {
			return err
		}
		r.target.Forget(targetID(d.ID))
	}
	return nil
}

// path returns the path of an entry within the source; with no name that of dir, which
// is "." for the source itself.
func (r *run) path(dir int64, name string) string {
	names := r.Path
	if below, err := r.plan.Path(dir); err == nil {
		names = append(names[:len(names):len(names)], below...)
	}
	if name != "" {
		names = append(names[:len(names):len(names)], name)
	}
	if len(names) == 0 {
		return "."
	}
	return strings.Join(names, "/")
}

// fail records that something could not be restored. It returns an error if that ends
// everything.
func (r *run) fail(ctx context.Context, dir int64, name string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, fatal := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		if errors.Is(err, fatal) {
			return err
		}
	}
	if r.device != nil && !errors.Is(err, ErrIncomplete) { // there is no other file
		return Failure{r.path(dir, name), err}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.res.Failures++
	if r.Failed == nil && len(r.res.Failed) >= MaxFailed {
		return nil
	}
	f := Failure{r.path(dir, name), err}
	if len(r.res.Failed) < MaxFailed {
		r.res.Failed = append(r.res.Failed, f)
	}
	if r.Failed != nil {
		r.Failed(f)
	}
	return nil
}

// failFile is fail for a file in the plan: nothing can be linked to it.
func (r *run) failFile(ctx context.Context, f catalog.PlanFile, err error) error {
	if err := r.fail(ctx, f.Dir, f.Name, err); err != nil {
		return err
	}
	return r.plan.Fail(f.ID)
}

// A nodeSet is a set of nodes: a bit for each where their numbers are near one
// another, as they are in an honest history, a few words where they are not.
type nodeSet struct {
	bits map[filetree.NodeID]uint64
}

func (s *nodeSet) has(n filetree.NodeID) bool { return s.bits[n>>6]&(1<<(n&63)) != 0 }

// add adds n and reports whether it was not there.
func (s *nodeSet) add(n filetree.NodeID) bool {
	if s.has(n) {
		return false
	}
	if s.bits == nil {
		s.bits = map[filetree.NodeID]uint64{}
	}
	s.bits[n>>6] |= 1 << (n & 63)
	return true
}
