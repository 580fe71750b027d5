package backup

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"slices"
	"sync/atomic"
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
	inodes []inode // of the state, by number; nil until asked for
	few    bool    // inodes are those of what has changed; see changes.go
	gone   gone
	held   int      // names in all maps of what is known
	mounts []string // what is mounted inside

	// Of the workers: files of this file system cannot be frozen.
	noFreeze atomic.Bool

	// Of the goroutine that records:
	limbo  []aside                  // directories whose place another has taken
	placed map[filetree.NodeID]bool // directories that have their new name
	// displaced says that something lost its place and may turn up elsewhere. What there is
	// then is no state to be committed: a node without a name would end with it.
	displaced bool
	part      bool              // only what has changed is looked at
	replaced  []filetree.NodeID // then: files that something else has a name of
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
	return errors.Join(
		r.j.warnOnce(r.u, "filter", r.filter.wrong, func(w string) string { return w }),
		r.j.warnOnce(r.u, "nested", w.live.mounts, func(p string) string {
			return fmt.Sprintf("another file system is mounted on %s, of which nothing is kept: it needs a source of its own", p)
		}))
}

// scanner returns a walker of a tree that is in use.
func (r *reader) scanner() *walker {
	w := &walker{r: r, state: r.u.Before(), first: r.u.Head().Seq == 0, links: r.links}
	w.live = &scan{w: w, gone: gone{names: map[catalog.Entry]filetree.NodeID{}}, placed: map[filetree.NodeID]bool{}}
	return w
}

// missed reports whether an error says that something has gone since it was listed, or that
// something else has its name.
func (s *scan) missed(err error) bool {
	return s != nil && (vanished(err) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE) ||
		errors.Is(err, localfs.ErrNotFile))
}

// Bounds of what a scan keeps in mind. Tests set them.
var (
	maxKnown = 100000 // names of the state, of all directories from the root to where it is
	maxNames = 10000  // names that are gone
)

// A known is what the state has under a name.
type known struct {
	catalog.Child
	at uint32 // which one it is in its directory, in the order of [catalog.View.Children]
}

// A gone is names that the tree has no longer. Some are kept as they are, of all others which they
// are in their directory: a million then take 4 MB.
type gone struct {
	names map[catalog.Entry]filetree.NodeID
	many  []manyGone
}

// A manyGone is names of one directory.
type manyGone struct {
	dir filetree.NodeID
	at  []uint32 // ascending
	// back is what came by all the same, if anything did.
	back *skimmed
}

// A skimmed is what is known of a directory of which the state has too much to keep it in mind.
type skimmed struct {
	same []uint64 // inode numbers of what is as it was, but for directories; sorted
	// back is which names the walk has come by that are not as they were, by their hash: some may
	// be gone when it was skimmed and are there again.
	back map[uint64]bool
	seed maphash.Seed
}

// compare brings to mind what the state has in a directory, or skims it.
func (s *scan) compare(dir *localfs.Dir, prefix string, p *place) error {
	all := map[string]known{}
	for c, err := range s.w.state.Children(p.old) {
		if err != nil {
			return err
		}
		if s.held+len(all) == maxKnown {
			return s.skim(dir, prefix, p)
		}
		all[c.Name] = known{c, uint32(len(all))}
	}
	p.known, p.held = all, len(all)
	s.held += p.held
	return nil
}

// skim looks in a directory at each name that the state has there. What has not changed is then
// known by its inode number, when the walk comes by.
func (s *scan) skim(dir *localfs.Dir, prefix string, p *place) error {
	k := &skimmed{back: map[uint64]bool{}, seed: maphash.MakeSeed()}
	lost := manyGone{dir: p.old, back: k}
	at := uint32(0)
	for c, err := range s.w.state.Children(p.old) {
		if err != nil {
			return err
		}
		if at%1024 == 0 && s.w.r.ctx.Err() != nil {
			return context.Cause(s.w.r.ctx)
		}
		st, err := dir.LookAt(c.Name)
		switch {
		case vanished(err),
			err == nil && s.w.r.filter.excludes(p.level, prefix+c.Name, st.Kind, func() (bool, error) { return dir.Nodump(c.Name) }):
			lost.at = append(lost.at, at)
		case err == nil && st.Kind != filetree.Dir && st.Nlink == 1 && unchanged(&c.Attr, &st.Attr):
			k.same = append(k.same, st.Ino)
		}
		at++
	}
	slices.Sort(k.same)
	p.skimmed = k
	if len(lost.at) > 0 {
		s.gone.many = append(s.gone.many, lost)
	}
	return nil
}

// present notes that a name is there, whatever was found before.
func (s *scan) present(dir *place, name string) {
	if s == nil {
		return
	}
	delete(dir.known, name)
	if k := dir.skimmed; k != nil {
		k.back[maphash.String(k.seed, name)] = true
	}
}

// left is called when the walk has come by all that is in a directory: what it has not come by
// is gone.
func (s *scan) left(dir *place) {
	if s == nil {
		return
	}
	s.held -= dir.held
	if dir.named || len(s.gone.names)+len(dir.known) <= maxNames {
		for name, c := range dir.known {
			s.gone.names[catalog.Entry{Dir: dir.old, Name: name}] = c.Node
		}
		return
	}
	lost := manyGone{dir: dir.old, at: make([]uint32, 0, len(dir.known))}
	for _, c := range dir.known {
		lost.at = append(lost.at, c.at)
	}
	slices.Sort(lost.at)
	s.gone.many = append(s.gone.many, lost)
}

// same returns the place of an entry that has not changed since the state, which then need not
// be given out; nil for every other. Of names of one node among several it says nothing.
func (s *scan) same(it *localfs.Item, dir *place) *place {
	if s == nil {
		return nil
	}
	if k := dir.skimmed; k != nil && it.Kind != filetree.Dir {
		if _, ok := slices.BinarySearch(k.same, it.Ino); !ok {
			return nil
		}
		s.w.r.j.o.Observer.Seen(1, 0)
		return &place{name: it.Name}
	}
	c, ok, err := s.w.child(dir, it.Name)
	if err != nil || !ok || c.Attr.Kind != it.Kind { // an error comes again
		return nil
	}
	st, err := it.Look()
	if err != nil || it.Dir == nil && st.Nlink > 1 || !unchanged(&c.Attr, &st.Attr) {
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
	st, err := it.Look()
	if err != nil {
		return 0, filetree.Attr{}, nil // whoever looks closer finds out
	}
	if s.few {
		n, a, err := s.find(&st.Attr)
		if n != 0 || err != nil || it.Kind == filetree.Dir || st.Nlink < 2 {
			return n, a, err
		}
		// It may be a further name of a file of which nothing else has changed.
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
	return s.find(&st.Attr)
}

// remember makes a node of the state one that moved may find.
func (s *scan) remember(n filetree.NodeID, a *filetree.Attr) {
	if a.Ino != 0 && n != filetree.RootNode {
		s.inodes = append(s.inodes, inode{a.Ino, n})
	}
}

// find returns the node among the inodes that something is. Another may have had its number
// before it, and be among them as well.
func (s *scan) find(now *filetree.Attr) (filetree.NodeID, filetree.Attr, error) {
	for i := searchInode(s.inodes, now.Ino); i < len(s.inodes) && s.inodes[i].ino == now.Ino; i++ {
		n := s.inodes[i].node
		a, err := s.w.state.Attr(n)
		if err != nil {
			return 0, filetree.Attr{}, err
		}
		if a.Kind == now.Kind && sameNode(&a, now) {
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
// its new name already, or would come to be in itself: it was moved from under the scan.
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
	entries, err := u.View().Entries(n, 1)
	if err != nil {
		return false, err
	}
	if len(entries) == 0 { // no panic: other sources are not to suffer
		return false, fmt.Errorf("internal error: %q was found again, and node %d has ended", name, n)
	}
	err = u.Rename(entries[0].Dir, entries[0].Name, dir, name)
	if errors.Is(err, filetree.ErrInvalid) {
		return false, nil
	}
	s.placed[n] = err == nil
	return err == nil, err
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
		if s.part {
			s.replaced = append(s.replaced, n)
		}
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
func (s *scan) settle() error { return s.eachGone(s.remove) }

// eachGone calls do with each name that the tree has no longer, and what it was of.
func (s *scan) eachGone(do func(e catalog.Entry, n filetree.NodeID) error) error {
	for e, n := range s.gone.names {
		if err := do(e, n); err != nil {
			return err
		}
	}
	for _, m := range s.gone.many {
		if err := s.eachOfMany(m, do); err != nil {
			return err
		}
	}
	for _, a := range s.limbo {
		if err := do(catalog.Entry{Dir: filetree.RootNode, Name: a.name}, a.node); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) eachOfMany(m manyGone, do func(e catalog.Entry, n filetree.NodeID) error) error {
	at := uint32(0)
	for c, err := range s.w.state.Children(m.dir) { // of a state that does not change
		if err != nil {
			return err
		}
		if len(m.at) == 0 {
			break
		}
		if at++; m.at[0] != at-1 {
			continue
		}
		m.at = m.at[1:]
		if k := m.back; k != nil && k.back[maphash.String(k.seed, c.Name)] {
			continue
		}
		if err := do(catalog.Entry{Dir: m.dir, Name: c.Name}, c.Node); err != nil {
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

// freezeFrom is from which size on a file is frozen before it is read, where that can be: what is
// larger than one piece is read by more than one call. It takes 20 to 200 µs, where it takes some 10 ms
// to read and compress so much; what is not on the disk yet is written there first.
const freezeFrom = catalog.MaxPart + 1

// readStill reads all of a file, as it was at one moment or again if it has changed meanwhile, and
// leaves in t the attributes that belong to what was read.
func (s *scan) readStill(ctx context.Context, t *task, dir *localfs.Dir, f *localfs.File, fresh bool) error {
	for n := 1; ; n++ {
		over, err := s.rest(ctx, t, f)
		if err != nil {
			return err
		}
		if f.Size() >= freezeFrom && !s.noFreeze.Load() {
			if err := s.freeze(ctx, t, dir, f); err != nil {
				return err
			}
		}
		t.most = max(t.most, f.Size())
		f.WriteOut() // a later change by a mapping is to show
		if err := s.w.r.readFile(ctx, t, f, nil, nil, fresh); err != nil {
			return err
		}
		changed, err := f.Changed()
		if err != nil || !changed && (over || f.Frozen()) {
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

// freeze freezes a file, or leaves it as it is if that cannot be: for want of space or of rights.
func (s *scan) freeze(ctx context.Context, t *task, dir *localfs.Dir, f *localfs.File) error {
	for n := 1; ; n++ {
		still, err := f.Freeze(dir)
		if err != nil {
			if errors.Is(err, errors.ErrUnsupported) {
				s.noFreeze.Store(true)
			}
			if t.later != nil { // of a moment before, that may have been frozen
				st, err := f.Refresh()
				t.later = &st
				return err
			}
			return nil
		}
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if was := &t.stat; t.later != nil || st.Ctime != was.Ctime || st.Mtime != was.Mtime || st.Size != was.Size {
			t.later = &st
		}
		if !still {
			if n < scanReads { // for times that are exact
				continue
			}
			return nil
		}
		// A change after this one, within the same tick, would not show.
		wait := restOf(&st)
		if wait <= 0 {
			return nil
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		if moved, err := f.Moved(); err != nil || moved {
			return err
		}
	}
}

// A file system notes times by the tick: two changes within one have the same time, and if the
// file is read between them the second would never be seen. So one that has just been changed is
// left alone until the tick is over. Some file systems only have seconds, or two.
const (
	tick     = 20 * time.Millisecond
	longTick = 2 * time.Second
)

// restOf returns how long it takes until the tick is over in which a file was changed.
func restOf(st *localfs.Stat) time.Duration {
	long := tick
	if st.Ctime.Nsec == 0 && st.Mtime.Nsec == 0 {
		long = longTick
	}
	return min(long-time.Since(st.Ctime.Time()), long) // the clock may have been set back
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// rest waits until the tick is over in which a file was changed the last time, and reports whether it
// is: one that is written to without end has been changed in the next one by then.
func (s *scan) rest(ctx context.Context, t *task, f *localfs.File) (over bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	wait := restOf(&st)
	if wait <= 0 {
		return true, nil
	}
	if err := pause(ctx, wait); err != nil {
		return false, err
	}
	if st, err = f.Refresh(); err == nil {
		t.later = &st
	}
	// Where the clock was set back, a change would have an earlier time.
	return restOf(&st) <= 0 || time.Since(st.Ctime.Time()) < 0, err
}

// denied reports whether something may not be read by this process.
func denied(err error) bool { return errors.Is(err, fs.ErrPermission) }
