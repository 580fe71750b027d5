package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
)

// A walker records a whole tree, or all below one directory of it, against what the
// history has: nothing, for the first snapshot, or a state to compare with.
type walker struct {
	r     *reader
	state catalog.View          // to compare with
	first bool                  // there is no state: nothing is asked
	part  bool                  // the rest of the tree has been recorded already
	links map[uint64]linkedNode // of nodes with several names, by inode
	live  *scan                 // of a tree that is in use; nil for a snapshot's
}

// A linkedNode is a node with several names, and when it was made.
type linkedNode struct {
	node filetree.NodeID
	born filetree.Time
}

// A place is a directory of the walk.
type place struct {
	node filetree.NodeID // set by the recorder before it comes to what is in it
	old  filetree.NodeID // what the history has there; 0 for none
	name string

	// Of a scan:
	level *level // what it says of what is in it
	// known is what old has in it and the walk has not come by yet; nil where there is too
	// much: that is skimmed.
	known   map[string]known
	named   bool // known are some names only, and which they are in the directory is not known
	held    int  // how many it was
	skimmed *skimmed
}

// walk records the whole tree.
func (r *reader) walk() error {
	return r.walkWith(&walker{r: r, state: r.u.Before(), first: r.u.Head().Seq == 0, links: r.links})
}

func (r *reader) walkWith(w *walker) error {
	root := &place{node: filetree.RootNode, old: filetree.RootNode}
	if w.first {
		root.old = 0
	}
	return r.run(func(give func(*task) error) error {
		if err := give(w.rootTask()); err != nil {
			return err
		}
		var err error
		if root.level, err = r.filter.levelOf(r.tree.Root(), ""); err != nil {
			return err
		}
		return w.below(r.tree.Root(), "", root, give)
	})
}

// rootTask sets the attributes of the source's root.
func (w *walker) rootTask() *task {
	return &task{
		look: func(_ context.Context, t *task) {
			t.found(w.r.tree.Stat(""))
			close(t.pieces)
		},
		record: func(t *task) error {
			if t.err != nil {
				return t.err
			}
			if err := w.r.u.Replace(filetree.RootNode, &t.stat.Attr); err != nil {
				return err
			}
			return w.r.put(t, filetree.RootNode)
		},
	}
}

// below gives out everything below a directory, of which at has the level.
func (w *walker) below(dir *localfs.Dir, prefix string, at *place, give func(*task) error) error {
	r := w.r
	stack := []*place{at}
	if err := w.removals(dir, prefix, at, give); err != nil {
		return err
	}
	for it, err := range dir.Walk() {
		if r.ctx.Err() != nil { // nothing may be given out for long
			return context.Cause(r.ctx)
		}
		if err != nil {
			if it == nil {
				return err
			}
			if it.Parent == nil {
				w.failed(prefix+it.Path(), err)
				stack[0].unseen()
				continue
			}
		}
		path := it.Path()
		depth := strings.Count(path, "/")
		if err != nil && len(stack) > depth+1 && stack[depth+1].name == it.Name { // nor of this one
			stack[depth+1].unseen()
		}
		for len(stack) > depth+1 {
			w.live.left(stack[len(stack)-1])
			stack = stack[:len(stack)-1]
		}
		path = prefix + path
		if r.filter.excludes(stack[depth].level, path, it.Kind, it.Nodump) {
			it.SkipDir()
			continue
		}
		if err != nil {
			w.failed(path, err)
		}
		if it.Boundary != nil { // warnNested names it, or scan
			if w.live != nil {
				w.live.mounts = append(w.live.mounts, path)
				w.live.present(stack[depth], it.Name)
			}
			continue
		}
		if err != nil {
			if err := w.shut(it, path, stack[depth], err, give); err != nil {
				return err
			}
			w.live.present(stack[depth], it.Name) // it stays what it was
			continue
		}
		if p := w.live.same(it, stack[depth]); p != nil {
			if it.Dir != nil {
				p.level = r.filter.enter(stack[depth].level, it.Dir, path)
				stack = append(stack, p)
				if err := w.removals(it.Dir, path+"/", p, give); err != nil {
					return err
				}
			}
			continue
		}
		p, err := w.entry(it, path, stack[depth], give)
		if err != nil {
			return err
		}
		if it.Dir != nil {
			p.level = r.filter.enter(stack[depth].level, it.Dir, path)
			stack = append(stack, p)
			if err := w.removals(it.Dir, path+"/", p, give); err != nil {
				return err
			}
		}
	}
	for _, p := range stack {
		w.live.left(p)
	}
	return nil
}

// shut gives out a directory of a tree in use that may not be read, if it was moved: all below stays
// what it was, in its new place. It could not be looked for there.
func (w *walker) shut(it *localfs.Item, path string, parent *place, why error, give func(*task) error) error {
	if w.live == nil || it.Kind != filetree.Dir || it.Parent == nil || !denied(why) {
		return nil
	}
	if c, ok, err := w.child(parent, it.Name); err != nil || ok && c.Attr.Ino == it.Ino {
		return err
	}
	n, old, err := w.live.moved(it)
	if err != nil || n == 0 {
		return err
	}
	st, err := it.Parent.LookAt(it.Name)
	if err != nil || !sameNode(&old, &st.Attr) {
		return nil
	}
	name := it.Name
	return give(&task{
		path: path,
		look: func(_ context.Context, t *task) { t.found(st, nil); close(t.pieces) },
		record: func(*task) error {
			if parent.node == 0 {
				return nil
			}
			_, err := w.live.place(parent.node, name, n, filetree.Dir)
			return err
		},
	})
}

// failed notes what could not be read. A snapshot cannot change: then it is the disk.
func (w *walker) failed(path string, err error) {
	if !w.live.missed(err) {
		w.r.fail(path, err)
	}
}

// unseen notes that the rest of a directory has not been seen: nothing of it is gone.
func (p *place) unseen() { p.known = nil }

// entry gives out one entry. For a directory it returns its place.
func (w *walker) entry(it *localfs.Item, path string, parent *place, give func(*task) error) (*place, error) {
	self := &place{name: it.Name}
	var old filetree.Attr
	if c, ok, err := w.child(parent, it.Name); err != nil {
		return nil, err
	} else if ok {
		self.old, old = c.Node, c.Attr
	}
	var was filetree.NodeID // a file that had the name: what is there now may be what an editor made of it
	if old.Kind == filetree.File {
		was = self.old
	}
	// What the state has under this name may be another node than what is there now;
	// then nothing of it, and nothing below it, is to be compared.
	if self.old != 0 && (old.Kind != it.Kind || old.Ino != 0 && it.Ino != 0 && old.Ino != it.Ino) {
		self.old = 0
	}
	if self.old != 0 && w.live != nil && it.Dir != nil {
		// A directory may have got the number of the one that was here. What is in it is not then
		// to be looked for in that one, which goes.
		if born := it.Dir.Look().Btime; born != old.Btime && !born.IsZero() && !old.Btime.IsZero() {
			self.old = 0
		}
	}
	w.live.present(parent, it.Name)
	moved := false
	if self.old == 0 && w.live != nil {
		var err error
		if self.old, old, err = w.live.moved(it); err != nil {
			return nil, err
		}
		if moved = self.old != 0; moved && it.Dir != nil {
			// What is in it is compared with what that node has, if it is that.
			st, err := it.Dir.Stat()
			if err != nil || !sameNode(&old, &st.Attr) {
				self.old, moved = 0, false
			}
		}
	}
	t := &task{path: path, kind: it.Kind, moved: moved}
	if w.live != nil && !w.first && it.Kind == filetree.File {
		t.olds = olds{state: w.state, nodes: [2]filetree.NodeID{self.old, was}}
	}
	name, kind, has := it.Name, it.Kind, self.old != 0
	dir := it.Parent.Retain()
	if it.Dir != nil {
		sub := it.Dir.Retain()
		t.look = func(_ context.Context, t *task) {
			defer close(t.pieces)
			t.found(sub.Stat())
			sub.Close()
			dir.Close()
		}
	} else {
		t.look = func(ctx context.Context, t *task) {
			defer dir.Close()
			if kind != filetree.File {
				defer close(t.pieces)
				st, err := dir.StatAt(name, kind)
				if err == nil && st.Kind == filetree.File {
					err = localfs.ErrNotFile // the file system said otherwise
				}
				t.found(st, err)
				return
			}
			w.lookFile(ctx, t, dir, name, has, &old)
		}
	}
	t.record = func(t *task) error { return w.record(t, parent, self, name, &old) }
	return self, give(t)
}

// child returns what the history has under a name of a directory.
func (w *walker) child(dir *place, name string) (catalog.Child, bool, error) {
	if dir.old == 0 {
		return catalog.Child{}, false, nil
	}
	if dir.known != nil {
		c, ok := dir.known[name]
		return c.Child, ok, nil
	}
	c, err := w.state.Child(dir.old, name)
	return c, err == nil, ignoreNotExist(err)
}

// unchanged reports whether a node is what the history has: then its content is the
// same, too.
func unchanged(old, now *filetree.Attr) bool {
	return !old.Incomplete && old.Kind == now.Kind && old.Ino == now.Ino && old.Size == now.Size && old.Mtime == now.Mtime &&
		old.Ctime == now.Ctime && (old.Btime == now.Btime || old.Btime.IsZero())
}

func (w *walker) lookFile(ctx context.Context, t *task, dir *localfs.Dir, name string, has bool, old *filetree.Attr) {
	defer close(t.pieces)
	f, err := dir.OpenFile(name)
	if err != nil {
		t.found(localfs.Stat{}, err)
		return
	}
	defer f.Close()
	// A file that got another name is read: that has set its ctime, so that nothing says any more
	// whether it was written to, and its mtime set back, before.
	st, err := f.Stat()
	has = has && (!t.moved || err == nil && sameNode(old, &st.Attr))
	t.found(st, err)
	if err != nil || has && unchanged(old, &st.Attr) {
		return
	}
	if w.live != nil {
		err = w.live.readStill(ctx, t, dir, f, !has)
	} else {
		err = w.r.readFile(ctx, t, f, nil, nil, !has)
	}
	if err != nil {
		t.broken = fmt.Errorf("%s: %w", t.path, err)
	}
}

// record brings one entry into the update.
func (w *walker) record(t *task, parent, self *place, name string, old *filetree.Attr) error {
	u := w.r.u
	// The walk reads self.old: it is written no more.
	was := self.old
	if w.live != nil && (parent.node == 0 || t.err == nil && t.stat.Kind != t.kind) { // it went away, or something else took its place
		return nil
	}
	if t.err != nil {
		if vanished(t.err) || w.live.missed(t.err) {
			return nil
		}
		if w.live != nil && denied(t.err) { // it stays what it was
			self.node = was
			w.r.fail(t.path, t.err)
			return nil
		}
		if was != 0 {
			self.node = was
			return w.r.incomplete(t.path, was, t.err)
		}
		w.r.fail(t.path, t.err)
		return nil
	}
	a := &t.stat.Attr
	w.r.j.o.Observer.Seen(1, 0)
	if t.moved {
		// Of a directory entry has found out that it is the same.
		there := a.Kind == filetree.Dir || sameNode(old, a)
		if there {
			var err error
			if there, err = w.live.place(parent.node, name, was, a.Kind); err != nil {
				return err
			}
		}
		if !there {
			was = 0
		}
	}
	if a.Kind != filetree.Dir && t.stat.Nlink > 1 {
		l, ok := w.links[a.Ino]
		n := l.node
		if !l.born.IsZero() && !a.Btime.IsZero() && l.born != a.Btime { // it is gone, and has left its number to another
			ok = false
		}
		if ok && w.live != nil {
			_, err := u.Attr(n)
			if ignoreNotExist(err) != nil {
				return err
			}
			ok = err == nil // it may have ended meanwhile
		}
		if !ok && w.part && was == 0 {
			// A name that the update has is to be read again, whatever has it.
			_, _, err := u.Lookup(parent.node, name)
			if errors.Is(err, filetree.ErrNotExist) {
				n, ok, err = w.r.nodeOf(a)
			}
			if err != nil {
				return err
			}
			if ok {
				return w.relink(t, parent, self, name, n)
			}
		}
		if ok {
			return w.link(parent.node, name, n)
		}
	}
	var err error
	if was != 0 && (old.Btime == a.Btime || old.Btime.IsZero() || a.Btime.IsZero()) {
		self.node = was
		err = u.Replace(self.node, a)
	} else {
		self.node, err = w.replace(parent.node, name, a)
	}
	if err != nil {
		return err
	}
	w.r.linked(self.node, &t.stat)
	if a.Kind != filetree.Dir && t.stat.Nlink > 1 {
		w.links[a.Ino] = linkedNode{self.node, a.Btime}
	}
	if err := w.r.put(t, self.node); err != nil {
		return err
	}
	if w.live != nil && w.live.displaced {
		return nil
	}
	return w.r.maybePartial()
}

// relink gives a node that the update has the name it was found under, and what the tree
// says of it: through names that the stream spoke of and the update did not have, anything
// may have happened to it.
func (w *walker) relink(t *task, parent, self *place, name string, n filetree.NodeID) error {
	u := w.r.u
	if err := w.link(parent.node, name, n); err != nil {
		return err
	}
	self.node = n
	a := &t.stat.Attr
	w.links[a.Ino] = linkedNode{n, a.Btime}
	w.r.linked(n, &t.stat)
	if err := u.Replace(n, a); err != nil {
		return err
	}
	if a.Kind == filetree.File && a.Size > 0 {
		// It was read as a new file is: where nothing comes, there is a hole.
		if err := u.Put(n, s3history.Piece{Items: []s3history.Item{{Hole: a.Size}}}); err != nil {
			return err
		}
	}
	return w.r.put(t, n)
}

// An inode says which node an inode of the file system is.
type inode struct {
	ino  uint64
	node filetree.NodeID
}

// nodeOf returns the node that the update has of a file with several names, of which
// the one at hand is new to it. Only what becomes known because excludes no longer say
// otherwise asks for it: then the nodes are gone through once, and remembered in 16
// bytes each.
func (r *reader) nodeOf(a *filetree.Attr) (n filetree.NodeID, ok bool, err error) {
	v := r.u.View()
	if r.inodes == nil {
		r.inodes = []inode{}
		for c, err := range v.Nodes() {
			if err != nil {
				return 0, false, err
			}
			if c.Attr.Kind != filetree.Dir && c.Attr.Ino != 0 {
				r.inodes = append(r.inodes, inode{c.Attr.Ino, c.Node})
			}
		}
		slices.SortFunc(r.inodes, compareInodes)
	}
	for i := searchInode(r.inodes, a.Ino); i < len(r.inodes) && r.inodes[i].ino == a.Ino; i++ {
		has, err := v.Attr(r.inodes[i].node)
		if ignoreNotExist(err) != nil {
			return 0, false, err
		}
		if err == nil && has.Kind == a.Kind && (has.Btime == a.Btime || has.Btime.IsZero() || a.Btime.IsZero()) {
			return r.inodes[i].node, true, nil
		}
	}
	return 0, false, nil
}

func compareInodes(a, b inode) int {
	return cmp.Or(cmp.Compare(a.ino, b.ino), cmp.Compare(a.node, b.node))
}

// searchInode returns where those of a number begin.
func searchInode(all []inode, ino uint64) int {
	i, _ := slices.BinarySearchFunc(all, ino, func(e inode, ino uint64) int { return cmp.Compare(e.ino, ino) })
	return i
}

// replace makes a new node under a name; what had it loses it.
func (w *walker) replace(dir filetree.NodeID, name string, a *filetree.Attr) (filetree.NodeID, error) {
	if w.live != nil {
		if err := w.live.displace(dir, name); err != nil {
			return 0, err
		}
	} else if !w.first {
		if err := w.r.u.RemoveName(dir, name); ignoreNotExist(err) != nil {
			return 0, err
		}
	}
	return w.r.u.Add(dir, name, a)
}

// link gives a node one more name, unless it has it.
func (w *walker) link(dir filetree.NodeID, name string, n filetree.NodeID) error {
	if !w.first {
		has, _, err := w.r.u.Lookup(dir, name)
		switch {
		case err == nil && has == n:
			return nil
		case err == nil && w.live != nil:
			err = w.live.displace(dir, name)
		case err == nil:
			err = w.r.u.RemoveName(dir, name)
		}
		if ignoreNotExist(err) != nil {
			return err
		}
	}
	return w.r.u.AddLink(dir, name, n)
}

// removals gives out the names that the history has in a directory and the tree no
// longer does, or that are excluded now.
func (w *walker) removals(dir *localfs.Dir, prefix string, p *place, give func(*task) error) error {
	if p.old == 0 {
		return nil
	}
	if w.live != nil {
		return w.live.compare(dir, prefix, p)
	}
	there := map[string]bool{}
	d, err := dir.Again()
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		es, err := d.ReadDir(4096)
		for _, e := range es {
			there[e.Name] = true
		}
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	var gone []string
	for c, err := range w.state.Children(p.old) {
		if err != nil {
			return err
		}
		if !there[c.Name] || w.r.j.exclude.Excluded(prefix+c.Name, c.Attr.Kind == filetree.Dir) {
			gone = append(gone, c.Name)
		}
	}
	for _, name := range gone {
		err := give(&task{
			path:   prefix + name,
			look:   func(_ context.Context, t *task) { t.found(localfs.Stat{}, nil); close(t.pieces) },
			record: func(t *task) error { return ignoreNotExist(w.r.u.RemoveName(p.node, name)) },
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// compare brings one path, and all below it, to what the tree has: the increment could
// not say, because it lies where excludes begin or end. unknown says that what the
// update has of it is not to be believed.
func (r *reader) compare(path string, unknown bool) error {
	names := strings.Split(path, "/")
	v := r.u.View()
	dirNode, err := v.Resolve(names[:len(names)-1])
	if err != nil {
		return ignoreNotExist(err) // its directory is not kept
	}
	name := names[len(names)-1]
	w := &walker{r: r, state: v, part: true, links: r.links}
	parent, self := &place{node: dirNode}, &place{}
	var old filetree.Attr
	st, err := r.tree.Stat(path)
	if vanished(err) {
		return nil
	} else if err != nil {
		return err
	}
	if left, err := r.filter.leftOut(path, st.Kind); vanished(err) {
		return nil
	} else if err != nil {
		return err
	} else if left {
		return ignoreNotExist(r.u.RemoveName(dirNode, name))
	}
	if !unknown {
		if self.old, err = v.Lookup(dirNode, name); err == nil {
			old, err = v.Attr(self.old)
		}
		if ignoreNotExist(err) != nil {
			return err
		}
	}
	t := &task{path: path}
	t.look = func(ctx context.Context, t *task) {
		if st.Kind != filetree.File || self.old != 0 {
			t.found(st, nil)
			close(t.pieces)
			return
		}
		r.lookFile(ctx, t, func() (*localfs.File, error) { return r.tree.OpenFile(path) }, nil, nil, true)
	}
	t.record = func(t *task) error { return w.record(t, parent, self, name, &old) }
	return r.run(func(give func(*task) error) error {
		if err := give(t); err != nil || st.Kind != filetree.Dir {
			return err
		}
		dir, err := r.tree.OpenDir(path)
		if err != nil {
			return err
		}
		defer dir.Close()
		if self.level, err = r.filter.levelOf(dir, path); err != nil {
			return err
		}
		return w.below(dir, path+"/", self, give)
	})
}
