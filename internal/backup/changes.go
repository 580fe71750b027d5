package backup

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/s3history"
)

// Changes are the names in a tree of which somebody who watches it says that they have
// changed since the newest state. Paths are relative to its root, with slashes between names;
// "" is the root. They are hints of where to look: what is there is found out by the scan, and
// to name too much costs time only.
type Changes struct {
	Paths []string // names that were made, changed or taken away; of a directory it and its attributes
	Trees []string // directories in which anything may have changed
	// Moved are names that something was moved from or to, perhaps long ago, and that need not be
	// looked at by themselves: a file that is written to all the time, say. Where what is missed
	// under another name is there, or what is found under another was, they are looked at as well.
	// Else there would be a snapshot that has it nowhere.
	Moved []string
}

// follows reports whether to look at what has changed is enough to come from head to what the
// tree has.
func (j *Job) follows(head s3history.Snapshot, c *Changes) bool {
	if head.Seq == 0 || head.Partial || !slices.Equal(head.Info.Exclude, j.o.Exclude) || slices.Contains(c.Trees, "") {
		return false
	}
	f := filter{o: &j.o}
	// What is said in the root is of everything, also what a directory was that has its name now.
	return !slices.ContainsFunc(c.Paths, f.says) && !slices.ContainsFunc(c.Trees, f.says)
}

// scanChanges is scan where only some names can have changed. Work is proportional to these,
// and to what is below those of them that are new.
func (r *reader) scanChanges(c *Changes) error {
	w := r.scanner()
	w.live.few, w.live.part = true, true
	p := w.looks()
	if err := p.plan(c); err != nil {
		return err
	}
	if slices.SortFunc(w.live.inodes, compareInodes); !w.live.few {
		w.live.inodes = nil
	}
	if err := p.look(); err != nil {
		return err
	}
	if err := w.otherNames(); err != nil {
		return err
	}
	return w.live.settle()
}

// look looks at what was planned.
func (p *looks) look() error {
	return p.w.r.run(func(give func(*task) error) error {
		for _, l := range p.order() {
			if err := p.w.some(l, give); err != nil {
				return err
			}
		}
		return nil
	})
}

// otherNames looks at the files that are to lose a name and have others, by these. Whatever was
// done to them by the name that goes, no later hint of it would lead to them.
func (w *walker) otherNames() error {
	p := w.looks()
	few, inodes := w.live.few, w.live.inodes
	more := 0
	err := w.live.eachGone(func(e catalog.Entry, n filetree.NodeID) error {
		has, _, err := w.r.u.Lookup(e.Dir, e.Name)
		if err != nil || has != n {
			return ignoreNotExist(err)
		}
		return p.losing(e, n, &more)
	})
	if err != nil {
		return err
	}
	for _, n := range w.live.replaced {
		if err := p.others(catalog.Entry{}, n, &more); ignoreNotExist(err) != nil {
			return err
		}
	}
	if more > maxLosing {
		w.r.j.o.Observer.Warn(w.r.j.o.Source, fmt.Sprintf("%d files with several names have lost some: %d of them are looked at now, all by the next scan of everything", more, maxLosing))
	}
	// What was known of moves is enough: these have not been.
	w.live.few, w.live.inodes = few, inodes
	if len(p.at) == 0 {
		return nil
	}
	return p.look()
}

// maxLosing is of how many files the other names are looked at.
const maxLosing = 100_000

// losing has the other names of a file looked at that is to lose the one at e, or of all such files
// below a directory.
func (p *looks) losing(e catalog.Entry, n filetree.NodeID, more *int) error {
	v := p.w.r.u.View()
	a, err := v.Attr(n)
	if err != nil {
		return ignoreNotExist(err)
	}
	if a.Kind == filetree.Dir {
		for c, err := range v.Children(n) {
			if err == nil {
				err = p.losing(catalog.Entry{Dir: n, Name: c.Name}, c.Node, more)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return p.others(e, n, more)
}

// others has the names of a file looked at, but for one.
func (p *looks) others(e catalog.Entry, n filetree.NodeID, more *int) error {
	v := p.w.r.u.View()
	entries, err := v.Entries(n, maxOthers)
	if err != nil || len(entries) == 0 || len(entries) == 1 && entries[0] == e {
		return err
	}
	if *more++; *more > maxLosing {
		return nil
	}
	for _, o := range entries {
		if o == e {
			continue
		}
		// In a directory that is elsewhere now all has been looked at.
		was, err := p.w.state.Path(o.Dir)
		var is []string
		if err == nil {
			is, err = v.Path(o.Dir)
		}
		if err == nil && slices.Equal(was, is) {
			err = p.add(strings.Join(append(is, o.Name), "/"), false)
		}
		if ignoreNotExist(err) != nil {
			return err
		}
	}
	return nil
}

// A look is the names that are looked at in one directory, which the state and the tree both
// have and which is the same in both.
type look struct {
	path  string
	node  filetree.NodeID
	names map[string]bool  // true: with all that is below
	known map[string]known // what the state has of these names
}

// looks are made of Changes before anything is recorded. Of what is gone, or has another inode
// than in the state, the walker remembers the node, which may be found elsewhere.
type looks struct {
	w    *walker
	at   map[string]*look           // by path
	dirs map[string]filetree.NodeID // of directories that are the same in state and tree; else 0
	left map[filetree.NodeID]bool   // nodes that are not in the place they were
	come map[uint64]bool            // inode numbers of what the state has not where it was found
}

func (w *walker) looks() *looks {
	return &looks{w: w, at: map[string]*look{}, dirs: map[string]filetree.NodeID{"": filetree.RootNode}, left: map[filetree.NodeID]bool{}, come: map[uint64]bool{}}
}

func (p *looks) plan(c *Changes) error {
	for _, all := range []struct {
		paths []string
		below bool
	}{{c.Paths, false}, {c.Trees, true}} {
		for _, path := range all.paths {
			if err := p.add(path, all.below); err != nil {
				return err
			}
		}
	}
	return p.moved(c.Moved)
}

// moved has those of paths looked at that are the other end of a move.
func (p *looks) moved(paths []string) error {
	if len(paths) == 0 || len(p.left) == 0 && len(p.come) == 0 {
		return nil
	}
	gone := map[uint64]bool{}
	for n := range p.left {
		a, err := p.w.state.Attr(n)
		if err != nil {
			return err
		}
		gone[a.Ino] = true
	}
	for _, path := range paths {
		dir, name := cutPath(path)
		st, err := p.stat(dir, name)
		other := err == nil && gone[st.Ino]
		if !other && len(p.come) > 0 {
			n, err := p.w.state.Resolve(strings.Split(path, "/"))
			var was filetree.Attr
			if err == nil {
				was, err = p.w.state.Attr(n)
			}
			if ignoreNotExist(err) != nil {
				return err
			}
			other = err == nil && p.come[was.Ino] && was.Ino != st.Ino
		}
		if other {
			if err := p.add(path, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// add has a path looked at; or, where one of the directories that lead to it is not what it
// was in the state, that directory and all below it.
func (p *looks) add(path string, below bool) error {
	if path == "" {
		p.lookIn("", filetree.RootNode)
		return nil
	}
	if dir, name := cutPath(path); p.w.r.filter.says(name) {
		if err := p.add(dir, true); dir != "" || err != nil { // of the root follows has seen to it
			return err
		}
	}
	at, node := "", filetree.RootNode
	names := strings.Split(path, "/")
	for i, name := range names {
		if err := filetree.CheckName(name); err != nil {
			return nil // no file system has it
		}
		here := path
		if i < len(names)-1 {
			here = strings.Join(names[:i+1], "/")
			// An error says that the way to it is gone, which comes out below.
			if left, err := p.w.r.filter.leftOut(here, filetree.Dir); err == nil && left {
				return p.name(at, node, name, false) // it may be in the history
			}
			sub, err := p.dir(here, node, name)
			if err != nil {
				return err
			}
			if sub != 0 {
				at, node = here, sub
				continue
			}
			if err := p.lost(names); err != nil {
				return err
			}
			below = true
		}
		return p.name(at, node, name, below)
	}
	return nil
}

// dir returns the node of a directory if it is the same in the state and in the tree, else 0.
func (p *looks) dir(path string, parent filetree.NodeID, name string) (filetree.NodeID, error) {
	n, ok := p.dirs[path]
	if ok {
		return n, nil
	}
	n, err := p.w.state.Lookup(parent, name)
	var was filetree.Attr
	if err == nil {
		was, err = p.w.state.Attr(n)
	}
	if ignoreNotExist(err) != nil {
		return 0, err
	}
	if err != nil || !p.isDir(path, &was) {
		n = 0
	}
	p.dirs[path] = n
	return n, nil
}

// isDir reports whether the tree has at path the directory that the state has.
func (p *looks) isDir(path string, was *filetree.Attr) bool {
	if was.Kind != filetree.Dir {
		return false
	}
	d, err := p.w.r.tree.OpenDir(path)
	if err != nil {
		return false
	}
	defer d.Close()
	now := d.Look()
	return now.Ino == was.Ino && (now.Btime == was.Btime || now.Btime.IsZero() || was.Btime.IsZero())
}

// lost remembers what the state has at a path that the tree has not: it may have been moved
// out of a directory that has gone since.
func (p *looks) lost(names []string) error {
	n, err := p.w.state.Resolve(names)
	if err != nil {
		return ignoreNotExist(err)
	}
	a, err := p.w.state.Attr(n)
	if err != nil {
		return err
	}
	return p.leaves(n, &a)
}

// leaves notes that a node of the state is not in the place it was. If it has other names,
// these lead to one that has fewer of them now.
func (p *looks) leaves(n filetree.NodeID, a *filetree.Attr) error {
	if p.left[n] {
		return nil
	}
	p.left[n] = true
	p.w.live.remember(n, a)
	if a.Kind == filetree.Dir {
		return nil
	}
	entries, err := p.w.state.Entries(n, maxOthers)
	if err != nil || len(entries) < 2 {
		return err
	}
	for _, e := range entries {
		names, err := p.w.state.Path(e.Dir)
		if err == nil {
			err = p.add(strings.Join(append(names, e.Name), "/"), false)
		}
		if ignoreNotExist(err) != nil {
			return err
		}
	}
	return nil
}

func (p *looks) lookIn(path string, node filetree.NodeID) *look {
	l := p.at[path]
	if l == nil {
		l = &look{path: path, node: node, names: map[string]bool{}, known: map[string]known{}}
		p.at[path] = l
	}
	return l
}

// name has a name in a directory looked at, and finds out what the state has of it.
func (p *looks) name(at string, node filetree.NodeID, name string, below bool) error {
	l := p.lookIn(at, node)
	had, ok := l.names[name]
	l.names[name] = had || below
	if ok {
		return nil
	}
	st, there := p.stat(at, name)
	c, err := p.w.state.Child(node, name)
	if there == nil && (err != nil || st.Ino != c.Attr.Ino) {
		p.come[st.Ino] = true
	}
	if err != nil {
		return ignoreNotExist(err)
	}
	n, a := c.Node, c.Attr
	l.known[name] = known{Child: c}
	if below {
		if same, err := p.dir(joinPath(at, name), node, name); err != nil {
			return err
		} else if same != 0 {
			p.w.live.few = false // things may have been moved out of it that nobody names
		}
	}
	if there == nil && st.Ino == a.Ino {
		return nil
	}
	return p.leaves(n, &a)
}

// maxOthers is how many names of a file are looked at when one is gone. All lead to one node,
// so that two would do, if not the others could be gone, too.
const maxOthers = 64

// stat looks at a name in the tree.
func (p *looks) stat(at, name string) (localfs.Stat, error) {
	d, err := p.w.r.tree.OpenDir(at)
	if err != nil {
		return localfs.Stat{}, err
	}
	defer d.Close()
	return d.LookAt(name)
}

// order returns the looks, a directory before those that are in it, without those below what
// is looked at as a whole.
func (p *looks) order() []*look {
	var all []*look
	for _, path := range slices.SortedFunc(maps.Keys(p.at), comparePaths) {
		if !p.within(path) {
			all = append(all, p.at[path])
		}
	}
	return all
}

// within reports whether a directory is looked at with all that is below one above it.
func (p *looks) within(path string) bool {
	for path != "" {
		at, name := cutPath(path)
		if l := p.at[at]; l != nil && l.names[name] {
			return true
		}
		path = at
	}
	return false
}

// comparePaths orders paths by their names, one after the other.
func comparePaths(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

// cutPath splits a path into the directory's and the last name.
func cutPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// some gives out the names that are looked at in a directory.
func (w *walker) some(l *look, give func(*task) error) error {
	dir, err := w.r.tree.OpenDir(l.path)
	if err != nil {
		w.failed(l.path, err)
		return nil
	}
	defer dir.Close()
	if err := give(w.dirTask(l, dir.Retain())); err != nil {
		return err
	}
	at := &place{node: l.node, old: l.node, known: l.known, named: true}
	if at.level, err = w.r.filter.levelOf(dir, l.path); err != nil {
		w.failed(l.path, err)
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(l.names)) {
		if err := w.one(dir, joinPath(l.path, name), name, at, l.names[name], give); err != nil {
			return err
		}
	}
	w.live.left(at)
	return nil
}

// dirTask sets the attributes of a directory in which something has changed.
func (w *walker) dirTask(l *look, dir *localfs.Dir) *task {
	return &task{
		path: l.path, kind: filetree.Dir,
		look: func(_ context.Context, t *task) {
			defer dir.Close()
			t.found(dir.Stat())
			close(t.pieces)
		},
		record: func(t *task) error {
			if t.err != nil {
				w.failed(t.path, t.err)
				return nil
			}
			if err := w.r.u.Replace(l.node, &t.stat.Attr); err != nil {
				return err
			}
			return w.r.put(t, l.node)
		},
	}
}

// one gives out one name; with everything below, if below says so or if it is a directory that
// was not there.
func (w *walker) one(dir *localfs.Dir, path, name string, at *place, below bool, give func(*task) error) error {
	it, err := dir.At(name)
	if it != nil && it.Dir != nil {
		defer it.Dir.Close()
	}
	switch {
	case it == nil && w.live.missed(err):
		return nil // left takes it for gone
	case it != nil && w.r.filter.excludes(at.level, path, it.Kind, it.Nodump):
		return nil // it is to be gone
	case err != nil:
		w.failed(path, err)
		if it != nil {
			if err := w.shut(it, path, at, err, give); err != nil {
				return err
			}
		}
		w.live.present(at, name)
		return nil
	case it.Boundary != nil:
		w.live.present(at, name)
		return nil
	}
	was, had := at.known[name]
	p := w.live.same(it, at)
	if p == nil {
		if p, err = w.entry(it, path, at, give); err != nil {
			return err
		}
	}
	if it.Dir == nil || had && p.old == was.Node && !below {
		return nil
	}
	p.level = w.r.filter.enter(at.level, it.Dir, path)
	return w.below(it.Dir, path+"/", p, give)
}
