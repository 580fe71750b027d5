package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
)

// A scan compares a tree that is in use with the newest state, as a walk does with a
// snapshot's. What it makes is a point in time like any other, but the moment of each file
// is its own. Nothing stands still meanwhile:
//
//	a name that vanishes         is none
//	a file that changes          while it is read is read again
//	what may not be read         stays what it was, and is named
//	what is elsewhere now        is known by its inode number and birth, with all below it,
//	                             so that to move it costs an entry
//
// A name that the tree has no longer is therefore taken away at the end only: what it was of
// may have been moved, to where the scan comes later.
type scan struct {
	w *walker

	// Of the goroutine that walks:
	inodes []inode                           // of the state, by number; nil until asked for
	few    bool                              // inodes are those of what has changed; see changes.go
	gone   map[catalog.Entry]filetree.NodeID // names that the tree has no longer
	mounts []string                          // what is mounted inside

	// Of the goroutine that records:
	limbo  []aside                  // directories whose place another has taken
	placed map[filetree.NodeID]bool // directories that have their new name
	// displaced says that something lost its place and may turn up elsewhere. What there is
	// then is no state to be committed: a node without a name would end with it.
	displaced bool
}

// An aside is a directory that waits in the root, under a name that nobody sees.
type aside struct {
	name string
	node filetree.NodeID
}

// ErrReplaced is wrapped by Scan when the tree is another than it was: its disk is not
// mounted, perhaps. All of it would be ended.
var ErrReplaced = errors.New("another directory than before")

// scanReads is how often a file that changes while it is read is read.
const scanReads = 3

// ScanOptions say how Scan takes the tree.
type ScanOptions struct {
	Replaced bool     // it may be another than before
	Only     *Changes // what has changed since the newest state, where that is known
}

// Scan makes what the tree at path has now the next snapshot.
func (j *Job) Scan(ctx context.Context, path string, o ScanOptions) (Result, error) {
	var res Result
	source, err := j.w.Source(j.o.Source)
	if err != nil {
		return res, err
	}
	tree, err := localfs.Open(path)
	if err != nil {
		return res, err
	}
	defer tree.Close()
	root, err := tree.Stat("")
	if err != nil {
		return res, err
	}
	head, err := j.w.Head(source)
	if err != nil {
		return res, err
	}
	u, err := j.w.Begin(ctx, source, s3history.SnapshotInfo{
		Time: filetree.TimeOf(time.Now()), Origin: path, Exclude: j.o.Exclude, Host: j.o.Host,
	})
	if err != nil {
		return res, err
	}
	defer u.Abort()
	if head.Seq > 0 && !o.Replaced {
		if was, err := u.Before().Attr(filetree.RootNode); err != nil {
			return res, err
		} else if was.Ino != 0 && (was.Ino != root.Ino || was.Btime != root.Btime) {
			return res, fmt.Errorf("%s: %w, as of #%d", path, ErrReplaced, head.Seq)
		}
	}
	j.o.Observer.Phase(j.o.Source, "reading")
	r := j.newReader(ctx, u, tree, &res)
	r.blind = true
	if err := r.beginSigning(); err != nil {
		return res, err
	}
	if o.Only != nil && j.follows(head, o.Only) {
		err = r.scanChanges(o.Only)
	} else {
		err = r.scan()
	}
	if err != nil {
		return res, err
	}
	j.o.Observer.Phase(j.o.Source, "committing")
	s, err := u.Commit()
	if errors.Is(err, s3history.ErrUnchanged) {
		res.Unchanged = true
		return res, nil
	} else if err != nil {
		return res, err
	}
	res.Committed = append(res.Committed, s)
	return res, nil
}

// scan records the tree as it is.
func (r *reader) scan() error {
	w := r.scanner()
	if err := r.walkWith(w); err != nil {
		return err
	}
	if err := w.live.settle(); err != nil {
		return err
	}
	return r.j.warnOnce(r.u, "nested", w.live.mounts, func(p string) string {
		return fmt.Sprintf("another file system is mounted on %s, of which nothing is kept: it needs a source of its own", p)
	})
}

// scanner returns a walker of a tree that is in use.
func (r *reader) scanner() *walker {
	w := &walker{r: r, state: r.u.Before(), first: r.u.Head().Seq == 0, links: r.links}
	w.live = &scan{w: w, gone: map[catalog.Entry]filetree.NodeID{}, placed: map[filetree.NodeID]bool{}}
	return w
}

// missed reports whether an error says that something has gone since it was listed, or that
// something else has its name.
func (s *scan) missed(err error) bool {
	return s != nil && (vanished(err) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE) ||
		errors.Is(err, localfs.ErrNotFile))
}

// maxKnown is how much may be in a directory for the walk to keep all of it in mind.
const maxKnown = 100000

// children returns what a directory has in the state, or nil if it is too much.
func (s *scan) children(dir filetree.NodeID) (map[string]catalog.Child, error) {
	known := map[string]catalog.Child{}
	for c, err := range s.w.state.Children(dir) {
		if err != nil {
			return nil, err
		}
		if len(known) == maxKnown {
			return nil, nil
		}
		known[c.Name] = c
	}
	return known, nil
}

// present notes that a name is there, whatever a listing before it said.
func (s *scan) present(dir *place, name string) {
	if s != nil {
		delete(dir.known, name)
		delete(s.gone, catalog.Entry{Dir: dir.old, Name: name})
	}
}

// left is called when the walk has come by all that is in a directory: what it has not come by
// is gone.
func (s *scan) left(dir *place) {
	if s == nil {
		return
	}
	for name, c := range dir.known {
		s.gone[catalog.Entry{Dir: dir.old, Name: name}] = c.Node
	}
}

// same returns the place of an entry that has not changed since the state, which then need not
// be given out; nil for every other. Of names of one node among several it says nothing.
func (s *scan) same(it *localfs.Item, dir *place) *place {
	if s == nil {
		return nil
	}
	c, ok := dir.known[it.Name]
	if !ok || c.Attr.Kind != it.Kind {
		return nil
	}
	var st localfs.Stat
	if it.Dir != nil {
		st = it.Dir.Look()
	} else {
		var err error
		if st, err = it.Parent.LookAt(it.Name); err != nil || st.Nlink > 1 {
			return nil
		}
	}
	if !unchanged(&c.Attr, &st.Attr) {
		return nil
	}
	s.present(dir, it.Name)
	s.w.r.j.o.Observer.Seen(1, 0)
	return &place{node: c.Node, old: c.Node, name: it.Name}
}

// moved returns the node of the state that an entry's inode may be, and what it was; 0 if there
// is none. Whether it is, sameNode says.
func (s *scan) moved(it *localfs.Item) (filetree.NodeID, filetree.Attr, error) {
	if s == nil || s.w.first || it.Ino == 0 {
		return 0, filetree.Attr{}, nil
	}
	if s.few {
		n, a, err := s.find(it.Ino, it.Kind)
		if n != 0 || err != nil || it.Kind == filetree.Dir {
			return n, a, err
		}
		// It may be a further name of a file of which nothing else has changed.
		if st, err := it.Parent.LookAt(it.Name); err != nil || st.Nlink < 2 {
			return 0, filetree.Attr{}, nil
		}
		s.inodes, s.few = nil, false
	}
	if s.inodes == nil {
		s.inodes = []inode{}
		for c, err := range s.w.state.Nodes() {
			if err != nil {
				return 0, filetree.Attr{}, err
			}
			s.remember(c.Node, &c.Attr)
		}
		slices.SortFunc(s.inodes, compareInodes)
	}
	return s.find(it.Ino, it.Kind)
}

// remember makes a node of the state one that moved may find.
func (s *scan) remember(n filetree.NodeID, a *filetree.Attr) {
	if a.Ino != 0 && n != filetree.RootNode {
		s.inodes = append(s.inodes, inode{a.Ino, n})
	}
}

// find returns the node of that number and kind among the inodes.
func (s *scan) find(ino uint64, kind filetree.Kind) (filetree.NodeID, filetree.Attr, error) {
	for i := searchInode(s.inodes, ino); i < len(s.inodes) && s.inodes[i].ino == ino; i++ {
		n := s.inodes[i].node
		a, err := s.w.state.Attr(n)
		if err != nil {
			return 0, filetree.Attr{}, err
		}
		if a.Kind == kind {
			return n, a, nil
		}
	}
	return 0, filetree.Attr{}, nil
}

// sameNode reports whether an inode that has the number and kind of a node is it, and not
// another that got the number later.
func sameNode(old, now *filetree.Attr) bool {
	if !old.Btime.IsZero() && !now.Btime.IsZero() {
		return old.Btime == now.Btime
	}
	// Without times of birth what has not been changed since is taken for it.
	return old.Size == now.Size && old.Mtime == now.Mtime
}

// place gives a node that was moved its new name. It reports false for a directory that has
// its new name already: it was moved once more, from under the scan.
func (s *scan) place(dir filetree.NodeID, name string, n filetree.NodeID, kind filetree.Kind) (bool, error) {
	u := s.w.r.u
	if has, _, err := u.Lookup(dir, name); err == nil && has == n {
		return true, nil
	}
	if kind == filetree.Dir && s.placed[n] {
		return false, nil
	}
	if err := s.displace(dir, name); err != nil {
		return false, err
	}
	if kind != filetree.Dir {
		// Names that it has no longer go at the end.
		return true, u.AddLink(dir, name, n)
	}
	s.placed[n] = true
	entries, err := u.View().Entries(n, 1)
	if err != nil {
		return false, err
	}
	return true, u.Rename(entries[0].Dir, entries[0].Name, dir, name)
}

// displace makes a name free. What had it may be found elsewhere: a directory stays, in a
// place of its own, until the end.
func (s *scan) displace(dir filetree.NodeID, name string) error {
	u := s.w.r.u
	n, kind, err := u.Lookup(dir, name)
	if err != nil {
		return ignoreNotExist(err)
	}
	s.displaced = true
	if kind != filetree.Dir {
		return u.RemoveName(dir, name)
	}
	a := aside{fmt.Sprintf(".secrate-%d", n), n}
	for {
		if _, _, err := u.Lookup(filetree.RootNode, a.name); errors.Is(err, filetree.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
		a.name += "~"
	}
	s.limbo = append(s.limbo, a)
	return u.Rename(dir, name, filetree.RootNode, a.name)
}

// settle takes away what the tree has no longer.
func (s *scan) settle() error {
	for e, n := range s.gone {
		if err := s.remove(e, n); err != nil {
			return err
		}
	}
	for _, a := range s.limbo {
		if err := s.remove(catalog.Entry{Dir: filetree.RootNode, Name: a.name}, a.node); err != nil {
			return err
		}
	}
	return nil
}

// remove takes a name away, if it is still that of a node.
func (s *scan) remove(e catalog.Entry, n filetree.NodeID) error {
	u := s.w.r.u
	has, _, err := u.Lookup(e.Dir, e.Name)
	if err == nil && has == n {
		err = u.RemoveName(e.Dir, e.Name)
	}
	return ignoreNotExist(err)
}

// readStill reads all of a file, again if it has changed meanwhile, and leaves in t the
// attributes that belong to what was read.
func (s *scan) readStill(ctx context.Context, t *task, f *localfs.File, fresh bool) error {
	for n := 1; ; n++ {
		if err := s.rest(ctx, t, f); err != nil {
			return err
		}
		if err := s.w.r.readFile(ctx, t, f, nil, nil, fresh); err != nil {
			return err
		}
		changed, err := f.Changed()
		if err != nil || !changed {
			return err
		}
		st, err := f.Refresh()
		if err != nil {
			return err
		}
		t.later = &st
		if n == scanReads {
			t.lack(fmt.Errorf("it was changed each of %d times that it was read: what is kept is not of one moment", n))
			return nil
		}
		fresh = false // what is a hole now may have got bytes
	}
}

// A file system notes times by the tick: two changes within one have the same time, and if the
// file is read between them the second would never be seen. So one that has just been changed is
// left alone until the tick is over. Some file systems only have seconds, or two.
const (
	tick     = 20 * time.Millisecond
	longTick = 2 * time.Second
)

// rest waits until the tick is over in which a file was changed the last time.
func (s *scan) rest(ctx context.Context, t *task, f *localfs.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	long := tick
	if st.Ctime.Nsec == 0 && st.Mtime.Nsec == 0 {
		long = longTick
	}
	wait := long - time.Since(st.Ctime.Time())
	if wait <= 0 {
		return nil
	}
	select {
	case <-time.After(min(wait, long)): // the clock may have been set back
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if st, err = f.Refresh(); err == nil {
		t.later = &st
	}
	return err
}

// denied reports whether something may not be read by this process.
func denied(err error) bool { return errors.Is(err, fs.ErrPermission) }
