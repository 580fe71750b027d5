package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
)

// A reader brings what is in a snapshot's tree into an update: workers read, one
// goroutine records, in the order in which the work was given out.
type reader struct {
	j    *Job
	ctx  context.Context
	u    *s3history.Update
	tree *localfs.Tree
	base *localfs.Tree // the base snapshot's tree, or nil
	// before is the state that base is of. That is mostly that of the snapshot before, but not
	// where the file system went back to an older one.
	before catalog.View
	told   bool // attributes are those that the stream told, and not looked at
	// blind says that of what a file was only the sums of its blocks can be known.
	blind bool
	mu    sync.Mutex // guards what res has of failures
	res   *Result

	filter *filter
	links  map[uint64]linkedNode      // see walker
	again  map[filetree.NodeID]bool   // incomplete nodes: to be looked at in every increment
	nlinks map[filetree.NodeID]uint32 // of nodes looked at that have several names: how many
	inodes []inode                    // see nodeOf; nil until it is asked for

	signing signing
}

func (j *Job) newReader(ctx context.Context, u *s3history.Update, tree *localfs.Tree, res *Result) *reader {
	return &reader{j: j, ctx: ctx, u: u, tree: tree, res: res, before: u.Before(), filter: &filter{o: &j.o, tree: tree, m: j.exclude},
		links: map[uint64]linkedNode{}, again: map[filetree.NodeID]bool{}}
}

// fail notes what could not be read. Who walks and who records call it.
func (r *reader) fail(path string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.res.fail(path, err)
}

// A task is one node to be looked at. A worker fills in what it finds; the recorder
// takes it from there.
type task struct {
	path  string
	kind  filetree.Kind
	moved bool                               // it is a node of the state that had another name, if it is that at all
	look  func(ctx context.Context, t *task) // by a worker: calls found, sends pieces, closes them

	stat   localfs.Stat
	err    error
	ready  chan struct{} // closed when stat and err are set
	pieces chan s3history.Piece
	broken error         // why the pieces are not all there; set before they are closed
	lacks  error         // why the node is incomplete; set before they are closed
	later  *localfs.Stat // what stat has become meanwhile, or nil; set before they are closed
	most   int64         // of a scan: the largest size that it was read with; set before they are closed
	olds   olds          // of a scan: what the file may have been
	sign   signed        // set before they are closed

	record func(t *task) error // by the recorder
}

// run gives out the tasks that each yields, until it returns.
func (r *reader) run(each func(give func(*task) error) error) error {
	g, ctx := errgroup.WithContext(r.ctx)
	queue := make(chan *task, 4*r.j.o.Workers) // for the workers
	order := make(chan *task, 4*r.j.o.Workers) // for the recorder
	g.Go(func() error {
		defer close(queue)
		defer close(order)
		return each(func(t *task) error {
			t.pieces = make(chan s3history.Piece, 1)
			t.ready = make(chan struct{})
			for _, c := range []chan *task{order, queue} {
				select {
				case c <- t:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return nil
		})
	})
	for range r.j.o.Workers {
		g.Go(func() error {
			for {
				select {
				case t, ok := <-queue:
					if !ok {
						return nil
					}
					t.look(ctx, t)
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		})
	}
	g.Go(func() error {
		for {
			select {
			case t, ok := <-order:
				if !ok {
					return nil
				}
				select {
				case <-t.ready:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				if err := t.record(t); err != nil {
					return err
				}
				for range t.pieces { // what the recorder did not want
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	return g.Wait()
}

// maybePartial commits what there is, if it is time to, and makes room for others if they wait.
func (r *reader) maybePartial() error {
	seq := r.u.Head().Seq
	if err := r.u.MaybePartial(); err != nil {
		return err
	}
	if r.u.Head().Seq != seq && r.j.o.Yield != nil && r.j.o.Yield() {
		return ErrYielded
	}
	return nil
}

// send hands a piece to the recorder.
func (t *task) send(ctx context.Context, p s3history.Piece) error {
	select {
	case t.pieces <- p:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// manyXattrs is how many extended attributes a node may have without a look at whether
// they are too much: none has more than 64 KiB.
const manyXattrs = 32

// found ends the first half of a look: stat and err stand. A node with more attributes
// than a history can hold is kept without.
func (t *task) found(st localfs.Stat, err error) {
	t.stat, t.err = st, err
	if a := &t.stat.Attr; len(a.Xattrs) > manyXattrs {
		if err := catalog.CheckAttr(a); err != nil {
			a.Xattrs, a.Incomplete = nil, true
			t.lack(err)
		}
	}
	close(t.ready)
}

// lack notes why the node is incomplete. A worker calls it.
func (t *task) lack(err error) {
	if t.lacks == nil {
		t.lacks = err
	}
}

// put records the pieces that come.
func (r *reader) put(t *task, n filetree.NodeID) error {
	for p := range t.pieces {
		put := r.u.Put
		if r.blind && len(p.Items) == 1 {
			switch it := p.Items[0]; {
			case it.Data != nil:
				put = r.u.Overwrite
			case it.Keep > 0:
				put = r.u.Remember
			}
		}
		if err := put(n, p); err != nil {
			return fmt.Errorf("%s: %w", t.path, err)
		}
	}
	if t.broken != nil {
		return t.broken
	}
	if t.later != nil {
		if err := r.u.Replace(n, &t.later.Attr); err != nil {
			return err
		}
		if beyond := t.most - t.later.Size; beyond > 0 { // it was longer when it was read before
			if err := r.u.Put(n, s3history.Piece{Offset: t.later.Size, Items: []s3history.Item{{Hole: beyond}}}); err != nil {
				return err
			}
		}
	}
	if t.lacks != nil {
		return r.incomplete(t.path, n, t.lacks)
	}
	delete(r.again, n)
	if t.sign.sig != nil {
		return r.u.SetSignature(n, t.sign.sig, t.sign.isNew)
	}
	return nil
}

// incomplete says of a node that not all of it could be read. It is looked at again in
// the next snapshot: perhaps the disk has been mended.
func (r *reader) incomplete(path string, n filetree.NodeID, err error) error {
	r.fail(path, fmt.Errorf("not all of it is kept: %w", err))
	r.again[n] = true
	return r.u.SetAttr(n, func(a *filetree.Attr) { a.Incomplete = true })
}

// readFile sends what is in ranges of a file, all of it when they are nil. old is what
// the pieces are compared with. fresh says that the history has nothing of the node yet:
// it is a hole where nothing is sent. Of every other one the holes are sent too, or what
// was there before would stay.
func (r *reader) readFile(ctx context.Context, t *task, f *localfs.File, ranges []filetree.Range, old *oldFile, fresh bool) error {
	size := f.Size()
	if ranges == nil || size <= catalog.MaxPart {
		ranges = []filetree.Range{{Length: size}}
	}
	ranges = widen(ranges)
	d := &differ{r: r, t: t, f: f, old: old, fresh: fresh}
	defer d.close()
	if err := d.beginRolling(size); err != nil {
		return err
	}
	var run filetree.Segment // of one kind, across the steps
	for _, rg := range ranges {
		for from := rg.Offset; from < min(rg.End(), size); {
			// A segment list is asked for a part at a time: it can be long.
			to := min(from+segmentStep, rg.End(), size)
			segs, err := f.Segments(from, to)
			if err == nil && len(segs) == 1 && segs[0].Hole { // it may be longer than one could ask for in steps
				var next int64
				if next, err = f.NextData(to); err == nil {
					to = min(next, rg.End(), size)
					segs[0].Length = to - from
				}
			}
			if unreadable(err) { // then it is found out which part of it is
				segs, err = []filetree.Segment{{Range: filetree.Range{Offset: from, Length: to - from}}}, nil
			}
			if err != nil {
				return err
			}
			for _, s := range segs {
				if s.Hole == run.Hole && s.Offset == run.End() {
					run.Length += s.Length
					continue
				}
				if err := d.segment(ctx, run); err != nil {
					return err
				}
				run = s
			}
			from = to
		}
	}
	if err := d.segment(ctx, run); err != nil {
		return err
	}
	return d.endRolling(ctx)
}

// maxWiden is how many stretches between two cuts are read whole where a part of each is
// said to have changed.
const maxWiden = 8

// widen makes of ranges, which need no order, whole stretches between two cuts,
// if there are few: each then has a content id, and a copy of the file is known. Where
// there are many, reading proportional to what changed is worth more.
func widen(ranges []filetree.Range) []filetree.Range {
	var pieces []int64 // the numbers of the stretches, as they come
	for _, r := range ranges {
		first, last := r.Offset/catalog.MaxPart, (r.End()-1)/catalog.MaxPart
		if last-first >= maxWiden {
			return ranges
		}
		for i := first; i <= last; i++ {
			if !slices.Contains(pieces, i) {
				pieces = append(pieces, i)
			}
		}
		if len(pieces) > maxWiden {
			return ranges
		}
	}
	slices.Sort(pieces)
	var wide []filetree.Range
	for _, i := range pieces {
		if k := len(wide); k > 0 && wide[k-1].End() == i*catalog.MaxPart {
			wide[k-1].Length += catalog.MaxPart
		} else {
			wide = append(wide, filetree.Range{Offset: i * catalog.MaxPart, Length: catalog.MaxPart})
		}
	}
	return wide
}

// segmentStep bounds the range for which holes are asked at once.
const segmentStep = 1 << 30

// changes records what an increment touched.
func (r *reader) changes(unknown, moved []string) error {
	nodes, err := r.u.Touched()
	if err != nil {
		return err
	}
	outside, _, err := r.loadOutside()
	if err != nil {
		return err
	}
	if r.again, _, err = r.loadNodes(noteAgain); err != nil {
		return err
	}
	maps.Copy(outside, r.again)
	err = r.run(func(give func(*task) error) error {
		for _, n := range nodes {
			t, err := r.changed(n, outside[n])
			if err != nil {
				return err
			}
			delete(outside, n)
			if t != nil {
				if err := give(t); err != nil {
					return err
				}
			}
		}
		for n := range outside {
			t, err := r.unspoken(n)
			if err != nil {
				return err
			}
			if t != nil {
				if err := give(t); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, path := range moved {
		if err := r.compare(path, false); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, path := range unknown {
		if err := r.compare(path, true); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// taskOf begins a task for a node, of which it returns what the update has; nil if the
// node is gone.
func (r *reader) taskOf(n filetree.NodeID) (*task, *filetree.Attr, error) {
	v := r.u.View()
	names, err := v.Path(n)
	if err != nil {
		return nil, nil, ignoreNotExist(err)
	}
	a, err := v.Attr(n)
	if err != nil {
		return nil, nil, err
	}
	return &task{path: strings.Join(names, "/")}, &a, nil
}

// changed makes the task for a touched node; nil if it is gone. whole says that all of
// its content is looked at, whatever was said to have changed.
func (r *reader) changed(n filetree.NodeID, whole bool) (*task, error) {
	t, a, err := r.taskOf(n)
	if t == nil && err == nil && r.told {
		return nil, r.nameless(n)
	}
	if t == nil {
		return nil, err
	}
	t.record = func(t *task) error {
		if unreadable(t.err) {
			return r.incomplete(t.path, n, t.err)
		}
		if t.err != nil {
			return r.misfit(fmt.Errorf("%s: %w", t.path, t.err))
		}
		if a.Ino != 0 && t.stat.Ino != a.Ino && n != filetree.RootNode {
			return r.misfit(fmt.Errorf("%s: inode %d in the snapshot, %d in the stream: they do not belong together", t.path, t.stat.Ino, a.Ino))
		}
		if err := r.replace(n, &t.stat.Attr); err != nil {
			return err
		}
		r.j.o.Observer.Seen(1, 0)
		r.linked(n, &t.stat)
		return r.put(t, n)
	}
	ranges := r.u.Unread(n)
	fresh := r.u.New(n)
	if r.told && (a.Kind != filetree.File || !fresh && !whole && len(ranges) == 0) {
		return nil, nil
	}
	switch {
	case a.Kind == filetree.File && (fresh || whole || len(ranges) > 0):
		old, err := r.findOld(n, fresh)
		if err != nil {
			return nil, err
		}
		if fresh || whole {
			ranges = nil
		}
		t.look = func(ctx context.Context, t *task) {
			r.lookFile(ctx, t, func() (*localfs.File, error) { return r.tree.OpenFile(t.path) }, ranges, old, fresh)
		}
	default:
		t.look = func(_ context.Context, t *task) {
			t.found(r.tree.Stat(t.path))
			close(t.pieces)
		}
	}
	return t, nil
}

// nameless sees to a file that is in no directory, since it was unlinked while it is open, or
// has got no name yet: there is no path by which it could be read. Should it get one, all of it
// is read.
func (r *reader) nameless(n filetree.NodeID) error {
	a, err := r.u.View().Attr(n)
	if err != nil {
		return ignoreNotExist(err)
	}
	if a.Kind != filetree.File || r.again[n] || !r.u.New(n) && len(r.u.Unread(n)) == 0 {
		return nil
	}
	r.again[n] = true
	return r.u.SetAttr(n, func(a *filetree.Attr) { a.Incomplete = true })
}

// misfit makes of what does not fit the stream an error that says so.
func (r *reader) misfit(err error) error {
	if r.told {
		return fmt.Errorf("%w: %w", ErrMisfit, err)
	}
	return err
}

// replace gives a node the attributes that the tree has. Where the stream has told them, all
// that can be new is that a node whose content was not known is complete now.
func (r *reader) replace(n filetree.NodeID, a *filetree.Attr) error {
	switch {
	case !r.told:
		return r.u.Replace(n, a)
	case r.again[n]:
		return r.u.SetAttr(n, func(a *filetree.Attr) { a.Incomplete = false })
	}
	return nil
}

// lookFile opens a file, says what it is, and sends what is in it.
func (r *reader) lookFile(ctx context.Context, t *task, open func() (*localfs.File, error), ranges []filetree.Range, old *oldFile, fresh bool) {
	defer close(t.pieces)
	f, err := open()
	if err != nil {
		t.found(localfs.Stat{}, err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	t.found(st, err)
	if err != nil {
		return
	}
	if err := r.readFile(ctx, t, f, ranges, old, fresh); err != nil {
		t.broken = fmt.Errorf("%s: %w", t.path, err)
	}
}

// findOld finds the bytes that a file had before: in the base snapshot, of the same
// node, or of the node that had its path. Editors save by writing a new file and
// renaming it over the old one.
func (r *reader) findOld(n filetree.NodeID, fresh bool) (*oldFile, error) {
	if r.base == nil {
		return nil, nil
	}
	before := r.before
	node := n
	if fresh {
		names, err := r.u.View().Entries(n, 8)
		if err != nil {
			return nil, err
		}
		node = 0
		for _, e := range names {
			if m, err := before.Lookup(e.Dir, e.Name); err == nil {
				node = m
				break
			}
		}
		if node == 0 {
			return nil, nil
		}
	}
	a, err := before.Attr(node)
	if err != nil || a.Kind != filetree.File || a.Size == 0 || a.Incomplete { // then its bytes are not those of the base
		return nil, ignoreNotExist(err)
	}
	names, err := before.Path(node)
	if err != nil {
		return nil, ignoreNotExist(err)
	}
	return &oldFile{node: node, same: !fresh, keep: !fresh && !r.u.Punched(n), path: strings.Join(names, "/"), size: a.Size, view: before}, nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, filetree.ErrNotExist) {
		return nil
	}
	return err
}

// An oldFile is a file of the base snapshot.
type oldFile struct {
	node filetree.NodeID
	same bool // the node itself
	keep bool // and what stays in its place need not be said
	path string
	size int64
	view catalog.View
}

// A failure to read one file of a walk is not the end of it.
func vanished(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// readFull reads len(b) bytes at off, or to the end of the file, and returns them.
func readFull(f *localfs.File, b []byte, off int64) ([]byte, error) {
	n, err := f.ReadAt(b, off)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}
