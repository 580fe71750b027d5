package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
)

// What the Update cannot say of a tree, because of excludes, and what the next unit
// has to know of it:
//
//	a name that is excluded of a node that is kept    path, node
//	a node that is kept and not known                 path, no node
//	a node whose content is not known                 path, node; the Update has the path
//
// Encoded, that is a byte 1 and then, for each path in byte order: how many bytes it has
// in common with the one before, how many follow, these, the kind (0: not known) as a
// byte, and the node (0: none). Numbers are uvarints.
type outsider struct {
	path string
	node filetree.NodeID
	kind filetree.Kind
}

const outsideVersion = 1

// encodeOutside sorts list.
func encodeOutside(list []outsider) []byte {
	slices.SortFunc(list, func(x, y outsider) int { return strings.Compare(x.path, y.path) })
	b := []byte{outsideVersion}
	last := ""
	for _, o := range list {
		same := 0
		for same < min(len(last), len(o.path)) && last[same] == o.path[same] {
			same++
		}
		b = binary.AppendUvarint(b, uint64(same))
		b = binary.AppendUvarint(b, uint64(len(o.path)-same))
		b = append(b, o.path[same:]...)
		b = append(b, byte(o.kind))
		b = binary.AppendUvarint(b, uint64(o.node))
		last = o.path
	}
	return b
}

var errOutside = errors.New("btrfs: the names that are excluded of files that are not are given in bytes that are no such list")

// decodeOutside calls each for every entry of b, which may be empty.
func decodeOutside(b []byte, each func(o outsider) error) error {
	if len(b) == 0 {
		return nil
	}
	if b[0] != outsideVersion {
		return errOutside
	}
	b = b[1:]
	bad := false
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad = true
			return 0
		}
		b = b[n:]
		return v
	}
	last := ""
	for len(b) > 0 {
		same, more := number(), number()
		// A byte for the kind and one of the node follow the path.
		if bad || same > uint64(len(last)) || len(b) < 2 || more > uint64(len(b)-2) {
			return errOutside
		}
		o := outsider{path: last[:same] + string(b[:more]), kind: filetree.Kind(b[more])}
		b = b[more+1:]
		o.node = filetree.NodeID(number())
		if bad || o.path <= last || o.kind != 0 && !o.kind.Valid() || o.node != 0 && o.kind == 0 {
			return errOutside
		}
		for name := range strings.SplitSeq(o.path, "/") {
			if filetree.CheckName(name) != nil {
				return errOutside
			}
		}
		if err := each(o); err != nil {
			return err
		}
		last = o.path
	}
	return nil
}

// load brings what was outside at the end of the parent into the tree.
func (a *applier) load(b []byte) error {
	return decodeOutside(b, func(o outsider) error {
		if err := a.loadOne(o); err != nil {
			return fmt.Errorf("btrfs: %q, whose name is excluded or whose content is not known: %w", o.path, err)
		}
		return nil
	})
}

func (a *applier) loadOne(o outsider) error {
	d, name := a.root, o.path
	for {
		dir, rest, more := strings.Cut(name, "/")
		if !more {
			break
		}
		n, err := a.known(d, dir)
		if err != nil {
			return err
		}
		if n == nil {
			n = a.attach(d, dir, &node{kind: filetree.Dir})
		}
		if n.kind != filetree.Dir && n.kind != 0 {
			return fmt.Errorf("%q is no directory: %w", n.path(), errOutside)
		}
		d, name = n, rest
	}
	n, err := a.known(d, name)
	switch {
	case err != nil:
		return err
	case o.node == 0 && n == nil:
		return a.pinAll(a.attach(d, name, &node{kind: o.kind}))
	case o.node == 0 || n != nil && n.id != o.node:
		return errOutside
	case n != nil:
		a.lost[o.node] = struct{}{}
		return nil
	default:
		return a.putOutside(a.attach(d, name, &node{kind: o.kind}), o.node)
	}
}

// known returns what the entry name of d leads to, or nil if neither tree nor Update
// know.
func (a *applier) known(d *node, name string) (*node, error) {
	if n := d.entries[name]; n != nil {
		return n, nil
	}
	if d.ghost() {
		return nil, nil
	}
	id, kind, err := a.up.Lookup(d.id, name)
	if errors.Is(err, filetree.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return a.attach(d, name, &node{id: id, kind: kind}), nil
}

// parentNode returns the node that had a path in the parent, which the Update did not
// have there.
func (a *applier) parentNode(path string) (filetree.NodeID, error) {
	if a.parentNames == nil {
		a.parentNames = make(map[string]filetree.NodeID)
		err := decodeOutside(a.o.Outside, func(o outsider) error {
			if o.node != 0 {
				a.parentNames[o.path] = o.node
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	n, ok := a.parentNames[path]
	if !ok {
		return 0, fmt.Errorf("%q: %w", path, filetree.ErrNotExist)
	}
	return n, nil
}

// putOutside makes n, which is in the tree, a name outside of the node id.
func (a *applier) putOutside(n *node, id filetree.NodeID) error {
	n.id, n.outside = id, true
	a.outside[id]++
	return a.pinAll(n)
}

// renameOutside moves a name outside, perhaps to where it is kept.
func (a *applier) renameOutside(n, d *node, name string, path []byte, hidden bool) error {
	if err := d.taken(name); err != nil {
		return err
	}
	if !hidden {
		if err := a.up.Link(d.id, name, n.id); err != nil {
			return err
		}
		a.takeOutside(n)
	}
	a.detach(n)
	a.attach(d, name, n)
	if hidden {
		return a.pinAll(n)
	}
	n.pinned = false
	return a.loose(n, path)
}

// takeOutside makes n a name like others, or is the end of it.
func (a *applier) takeOutside(n *node) {
	n.outside = false
	if a.outside[n.id]--; a.outside[n.id] == 0 {
		delete(a.outside, n.id)
	}
}

// pinAll pins n and the ghosts above it, which are known to exist from now on.
func (a *applier) pinAll(n *node) error {
	if err := a.pin(n); err != nil {
		return err
	}
	for n = n.parent; n.ghost() || n.parked != ""; n = n.parent {
		if err := a.pin(n); err != nil {
			return err
		}
	}
	return nil
}

// An unborn is a new node of which all names are excluded so far. The sender tells all
// names of a node before it goes on with it, so that only the newest has to be known.
type unborn struct {
	names []*node
	attr  filetree.Attr
}

// conceive notes that a new node would be the entry name of d, if that were not
// excluded.
func (a *applier) conceive(d *node, name string, attr filetree.Attr) error {
	if attr.Kind == filetree.Dir {
		return nil
	}
	if len(a.unborn.names) > 0 {
		a.forget(a.unborn.names[0])
	}
	if err := d.taken(name); err != nil {
		return err
	}
	n := a.attach(d, name, &node{kind: attr.Kind})
	a.unborn = unborn{append(a.unborn.names[:0], n), attr}
	return a.pin(n)
}

func (a *applier) isUnborn(n *node) bool { return slices.Contains(a.unborn.names, n) }

// forget makes the unborn a ghost like others, if n is a name of it.
func (a *applier) forget(n *node) {
	if !a.isUnborn(n) {
		return
	}
	for _, n := range a.unborn.names {
		n.pinned = false
	}
	a.unborn.names = a.unborn.names[:0]
}

// unname takes a name of a ghost away.
func (a *applier) unname(n *node) {
	a.detach(n)
	a.unborn.names = slices.DeleteFunc(a.unborn.names, func(m *node) bool { return m == n })
}

// bear creates the unborn as the entry name of d.
func (a *applier) bear(d *node, name string, path []byte) error {
	if err := d.taken(name); err != nil {
		return err
	}
	id, err := a.up.Create(d.id, name, a.unborn.attr)
	if err != nil {
		return err
	}
	a.created.add(id)
	n := a.attach(d, name, &node{id: id, kind: a.unborn.attr.Kind})
	for _, m := range a.unborn.names {
		if err := a.putOutside(m, id); err != nil {
			return err
		}
	}
	a.unborn.names = a.unborn.names[:0]
	return a.loose(n, path)
}

// kept reports whether a node has a name that is kept, as far as can be said now. It is
// asked when a command names the node by a path that is excluded.
func (a *applier) kept(id filetree.NodeID) (bool, error) {
	if a.keptOf == id {
		return a.keptIs, nil
	}
	names, err := a.up.Names(id, 0)
	if err != nil {
		return false, err
	}
	is := false
	for _, e := range names {
		path, err := a.pathOf(e)
		if err != nil {
			return false, err
		}
		if !strings.HasPrefix(path, parkedPrefix) && !a.excludes.hides([]byte(path), filetree.File) {
			is = true
			break
		}
	}
	a.keptOf, a.keptIs = id, is
	return is, nil
}

// pathOf returns the path that an entry has in the Update.
func (a *applier) pathOf(e filetree.Entry) (string, error) {
	names := []string{e.Name}
	for e.Dir != filetree.RootNode {
		up, err := a.up.Names(e.Dir, 1)
		if err != nil {
			return "", err
		}
		if len(up) == 0 {
			return "", fmt.Errorf("btrfs: node %d has no name: %w", e.Dir, filetree.ErrNotExist)
		}
		e = up[0]
		names = append(names, e.Name)
	}
	return joinReversed(names), nil
}
