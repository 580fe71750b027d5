package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
)

// A tree remembers what paths lead to, so that not every component of every path
// is looked up in the Update. It is itself a tree: a directory that moves takes
// what is known below it along, and nothing has to be invalidated.
//
// What only saves lookups is dropped when there is too much of it. Nodes that are
// pinned stay: what is known of them is known nowhere else.
type tree struct {
	up       filetree.Update
	excludes excludes
	root     *node
	count    int // of nodes, without root
	limit    int // of count, before the next prune
	pinned   []*node
}

// A node is a name in the tree. Hard links are several nodes with one id.
type node struct {
	id      filetree.NodeID // 0 for a ghost
	outside bool            // the Update has the node, but under other names: this one is excluded
	kind    filetree.Kind   // 0 for a ghost of unknown kind; File may be any but Dir
	parent  *node           // nil for the root, and for what was removed
	name    string
	entries map[string]*node // those that are known
	pinned  bool             // do not forget
	listed  bool             // is in tree.pinned, perhaps for longer than it is pinned
	keep    bool             // has pinned nodes below; used by prune

	// base is the path at the beginning of the unit of a directory that moved:
	// what is excluded below it was excluded under that path.
	base  string
	moved bool

	// parked is the name under which the Update has the node in the root, while
	// the directory that it belongs to is a ghost.
	parked string
}

const (
	cacheNodes = 1 << 14
	// Pinned nodes cost memory. Each takes a command of its own.
	maxPinned = 1 << 22
)

func newTree(up filetree.Update, excluded func(string, bool) bool) *tree {
	return &tree{
		up:       up,
		excludes: excludes{match: excluded},
		root:     &node{id: filetree.RootNode, kind: filetree.Dir},
		limit:    cacheNodes,
	}
}

// ghost reports whether the Update does not have n: it is excluded, or was.
func (n *node) ghost() bool { return n.id == 0 }

// path returns the path that n has now. It follows pointers upwards and not a
// recursion: moves can nest directories deeper than any path says.
func (n *node) path() string {
	var names []string
	for ; n.parent != nil; n = n.parent {
		names = append(names, n.name)
	}
	return joinReversed(names)
}

// basePath returns the path of the entry name of n when the unit began, as far as
// anyone has to know: directories that are new have the one they have now.
func (n *node) basePath(name string) string {
	names := []string{name}
	for ; n.parent != nil; n = n.parent {
		if n.moved {
			names = append(names, n.base)
			break
		}
		names = append(names, n.name)
	}
	return joinReversed(names)
}

func joinReversed(names []string) string {
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		if b.Len() > 0 {
			b.WriteByte('/')
		}
		b.WriteString(names[i])
	}
	return b.String()
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// resolve returns the node at path.
func (t *tree) resolve(path []byte) (*node, error) {
	n := t.root
	for len(path) > 0 {
		name := path
		if i := bytes.IndexByte(path, '/'); i >= 0 {
			name, path = path[:i], path[i+1:]
		} else {
			path = nil
		}
		var err error
		if n, err = t.child(n, name); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// parentOf returns the directory that path is an entry of, and the entry's name.
func (t *tree) parentOf(path []byte) (*node, string, error) {
	i := bytes.LastIndexByte(path, '/')
	d, err := t.resolve(path[:max(i, 0)])
	if err != nil {
		return nil, "", err
	}
	if !d.ghost() && d.kind != filetree.Dir {
		return nil, "", fmt.Errorf("%q is no directory: %w", path[:i], filetree.ErrInvalid)
	}
	return d, string(path[i+1:]), nil
}

func (t *tree) child(d *node, name []byte) (*node, error) {
	if n := d.entries[string(name)]; n != nil {
		return n, nil
	}
	s := string(name)
	if d.ghost() {
		return t.attach(d, s, &node{}), nil // below a ghost are ghosts
	}
	if d.kind != filetree.Dir {
		return nil, fmt.Errorf("%q is no directory: %w", d.path(), filetree.ErrInvalid)
	}
	id, kind, err := t.up.Lookup(d.id, s)
	if err == nil {
		return t.attach(d, s, &node{id: id, kind: kind}), nil
	}
	if errors.Is(err, filetree.ErrNotExist) {
		if g, err := t.ghostAt(d, s); g != nil || err != nil {
			return g, err
		}
	}
	return nil, err
}

// ghostAt returns a ghost if the entry name of d, which the Update does not have,
// is excluded or was when the unit began. Else it returns nil.
func (t *tree) ghostAt(d *node, name string) (*node, error) {
	if t.excludes.match == nil {
		return nil, nil
	}
	now, base := join(d.path(), name), d.basePath(name)
	dir := t.excludes.covers(now, filetree.Dir) || t.excludes.covers(base, filetree.Dir)
	file := t.excludes.covers(now, filetree.File) || t.excludes.covers(base, filetree.File)
	g := &node{}
	switch {
	case !dir && !file:
		return nil, nil
	case !file:
		g.kind = filetree.Dir
	case !dir:
		g.kind = filetree.File
	}
	t.attach(d, name, g)
	if !t.excludes.covers(now, g.kind) {
		return g, t.pin(g)
	}
	return g, nil
}

// free returns an error unless the name is free in d.
func (t *tree) free(d *node, name string) error {
	if err := d.taken(name); err != nil || d.ghost() {
		return err
	}
	_, _, err := t.up.Lookup(d.id, name)
	switch {
	case errors.Is(err, filetree.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return existsError(d, name)
}

// taken returns an error if d is known to have the entry name, for an Update does
// not know of ghosts and of names outside. A ghost that is not pinned may be long gone.
func (n *node) taken(name string) error {
	if e := n.entries[name]; e != nil && (!e.ghost() || e.pinned) {
		return existsError(n, name)
	}
	return nil
}

func existsError(d *node, name string) error {
	return fmt.Errorf("%q exists: %w", join(d.path(), name), filetree.ErrInvalid)
}

// attach makes n the entry name of d, in the place of a ghost, if any.
func (t *tree) attach(d *node, name string, n *node) *node {
	if d.entries == nil {
		d.entries = make(map[string]*node)
	}
	if old := d.entries[name]; old != nil {
		t.detach(old)
	}
	d.entries[name] = n
	n.parent, n.name = d, name
	t.count++
	return n
}

func (t *tree) detach(n *node) {
	delete(n.parent.entries, n.name)
	n.parent = nil
	t.count--
}

// pin keeps n, to be looked at when the unit ends.
func (t *tree) pin(n *node) error {
	n.pinned = true
	if n.listed {
		return nil
	}
	if len(t.pinned) == maxPinned {
		return fmt.Errorf("more than %d nodes that are or were excluded: %w", maxPinned, ErrLimit)
	}
	n.listed = true
	t.pinned = append(t.pinned, n)
	return nil
}

// settle unpins what is below directory d and was pinned because its path was not
// final. Now that it is, only what is excluded has to be remembered.
func (t *tree) settle(d *node) {
	type item struct {
		*node
		path string
	}
	if t.excludes.match == nil || len(d.entries) == 0 {
		return
	}
	path := d.path()
	if temporaryPath([]byte(path)) {
		return // not final either
	}
	for todo := []item{{d, path}}; len(todo) > 0; {
		it := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for name, n := range it.entries {
			path := join(it.path, name)
			if n.pinned && !n.ghost() && !n.outside && n.parked == "" && !n.moved && !t.excludes.covers(path, n.kind) {
				n.pinned = false
			}
			if len(n.entries) > 0 {
				todo = append(todo, item{n, path})
			}
		}
	}
}

// prune forgets what can be looked up again, if there is much of it.
func (t *tree) prune() {
	if t.count <= t.limit {
		return
	}
	// Nodes that were removed from the tree are not coming back.
	t.pinned = slices.DeleteFunc(t.pinned, func(n *node) bool {
		drop := !n.pinned || n.parent == nil
		n.listed = !drop
		return drop
	})
	for _, n := range t.pinned {
		for ; n != nil && !n.keep; n = n.parent {
			n.keep = true
		}
	}
	t.count = 0
	for todo := []*node{t.root}; len(todo) > 0; {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d.keep = false
		for name, n := range d.entries {
			if !n.keep {
				delete(d.entries, name)
				n.parent = nil
				continue
			}
			t.count++
			todo = append(todo, n)
		}
	}
	t.limit = max(cacheNodes, 2*t.count)
}

// place returns where the Update has the entry n.
func (n *node) place() (filetree.NodeID, string) {
	if n.parked != "" {
		return filetree.RootNode, n.parked
	}
	return n.parent.id, n.name
}

// excludes answers which paths are excluded, and remembers it for directories.
type excludes struct {
	match func(path string, dir bool) bool // nil: nothing is
	dirs  map[string]bool
}

// covers reports whether path or a directory above it is excluded. If the kind is
// not known, it has to be excluded under every kind.
func (e *excludes) covers(path string, k filetree.Kind) bool {
	if e.match == nil || path == "" {
		return false
	}
	if e.dirs == nil || len(e.dirs) > cacheNodes {
		e.dirs = make(map[string]bool)
	}
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		in, known := e.dirs[path[:i]]
		if !known {
			in = e.match(path[:i], true)
			e.dirs[path[:i]] = in
		}
		if in {
			return true
		}
	}
	switch k {
	case 0:
		return e.match(path, true) && e.match(path, false)
	default:
		return e.match(path, k == filetree.Dir)
	}
}

// hides is covers for a path in the middle of a unit. Temporary names say nothing
// about where a node will be.
func (e *excludes) hides(path []byte, k filetree.Kind) bool {
	if e.match == nil {
		return false
	}
	return !temporaryPath(path) && e.covers(string(path), k)
}

// temporaryPath reports whether path leads through a temporary name. These are all
// in the root.
func temporaryPath(path []byte) bool {
	first, _, _ := bytes.Cut(path, []byte("/"))
	return looksTemporary(first)
}

// looksTemporary reports whether name has the form o<ino>-<gen>-<idx>. Files of
// the user may look like that, too.
func looksTemporary(name []byte) bool {
	rest, ok := bytes.CutPrefix(name, []byte("o"))
	for range 2 {
		var num []byte
		if num, rest, ok = bytes.Cut(rest, []byte("-")); !ok || !digits(num) {
			return false
		}
	}
	return ok && name[0] == 'o' && digits(rest)
}

func digits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0
}
