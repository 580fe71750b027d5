// Package sendtest has what tests of send streams share: a tree in memory that is
// a [filetree.Update], and the manifests of recorded snapshots to compare it with.
//
// A [Model] is the reference for what an Update has to do. It keeps content in
// blocks of 4 KiB, so that a sparse file of 1 TiB costs what is in it, and refuses
// what the interface says is refused.
package sendtest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"

	"github.com/secrate/secrate/internal/filetree"
)

// BlockSize is the granularity of holes in a Model.
const BlockSize = 4096

// ErrFull is returned when a Model holds more than its limits allow.
var ErrFull = errors.New("model is full")

// A Model is a tree in memory. The zero Model is not ready for use: see [NewModel].
type Model struct {
	// Snapshots are the sources of CloneFrom.
	Snapshots map[[16]byte]*Model
	// MaxBlocks and MaxNodes bound memory; 0 means no limit.
	MaxBlocks, MaxNodes int
	// Calls counts the calls of methods that change something.
	Calls map[string]int

	nodes  map[filetree.NodeID]*Node
	next   filetree.NodeID
	blocks int
}

// A Node is a node of a Model.
type Node struct {
	ID      filetree.NodeID
	Attr    filetree.Attr
	Nlink   int
	Entries map[string]filetree.NodeID // of a directory
	Parent  filetree.NodeID            // of a directory
	// Changed are the ranges that were passed to Changed, in this order.
	Changed []filetree.Range

	blocks map[int64]*[BlockSize]byte // never changed, but replaced
}

// NewModel returns a tree that has only a root.
func NewModel() *Model {
	root := &Node{
		ID:      filetree.RootNode,
		Attr:    filetree.Attr{Kind: filetree.Dir},
		Nlink:   1,
		Entries: make(map[string]filetree.NodeID),
	}
	return &Model{
		Snapshots: make(map[[16]byte]*Model),
		Calls:     make(map[string]int),
		nodes:     map[filetree.NodeID]*Node{filetree.RootNode: root},
		next:      filetree.RootNode + 1,
	}
}

// Copy returns a copy that shares nothing that changes. Changed ranges and calls are
// forgotten, as by a commit.
func (m *Model) Copy() *Model {
	c := *m
	c.Calls = make(map[string]int)
	c.nodes = make(map[filetree.NodeID]*Node, len(m.nodes))
	for id, n := range m.nodes {
		d := *n
		d.Changed = nil
		d.Entries = maps.Clone(n.Entries)
		d.blocks = maps.Clone(n.blocks)
		c.nodes[id] = &d
	}
	return &c
}

// Node returns a node by its id, or nil.
func (m *Model) Node(id filetree.NodeID) *Node { return m.nodes[id] }

// Len returns the number of nodes, the root included.
func (m *Model) Len() int { return len(m.nodes) }

// Walk calls visit for every entry, the root first with the empty path, then depth
// first with names in byte order.
func (m *Model) Walk(visit func(path string, n *Node)) {
	type item struct {
		path string
		id   filetree.NodeID
	}
	for todo := []item{{"", filetree.RootNode}}; len(todo) > 0; {
		it := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		n := m.nodes[it.id]
		visit(it.path, n)
		for _, name := range slices.SortedFunc(maps.Keys(n.Entries), func(a, b string) int { return cmp.Compare(b, a) }) {
			path := name
			if it.path != "" {
				path = it.path + "/" + name
			}
			todo = append(todo, item{path, n.Entries[name]})
		}
	}
}

// RemoveAll takes an entry away with all that is below it.
func (m *Model) RemoveAll(dir filetree.NodeID, name string) error {
	n, err := m.entry(dir, name)
	if err != nil {
		return err
	}
	delete(m.nodes[dir].Entries, name)
	for todo := []*Node{n}; len(todo) > 0; {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, id := range n.Entries {
			todo = append(todo, m.nodes[id])
		}
		m.drop(n)
	}
	return nil
}

func (m *Model) drop(n *Node) {
	if n.Nlink--; n.Nlink == 0 {
		m.blocks -= len(n.blocks)
		delete(m.nodes, n.ID)
	}
}

func (m *Model) dir(id filetree.NodeID) (*Node, error) {
	switch n := m.nodes[id]; {
	case n == nil:
		return nil, fmt.Errorf("node %d: %w", id, filetree.ErrNotExist)
	case n.Attr.Kind != filetree.Dir:
		return nil, fmt.Errorf("node %d is no directory: %w", id, filetree.ErrInvalid)
	default:
		return n, nil
	}
}

func (m *Model) entry(dir filetree.NodeID, name string) (*Node, error) {
	d, err := m.dir(dir)
	if err != nil {
		return nil, err
	}
	id, ok := d.Entries[name]
	if !ok {
		return nil, fmt.Errorf("%q: %w", name, filetree.ErrNotExist)
	}
	return m.nodes[id], nil
}

// free returns dir if the entry name can be made in it.
func (m *Model) free(dir filetree.NodeID, name string) (*Node, error) {
	d, err := m.dir(dir)
	if err != nil {
		return nil, err
	}
	if err := filetree.CheckName(name); err != nil {
		return nil, fmt.Errorf("%w: %w", err, filetree.ErrInvalid)
	}
	if _, taken := d.Entries[name]; taken {
		return nil, fmt.Errorf("%q exists: %w", name, filetree.ErrInvalid)
	}
	return d, nil
}

func (m *Model) file(id filetree.NodeID) (*Node, error) {
	switch n := m.nodes[id]; {
	case n == nil:
		return nil, fmt.Errorf("node %d: %w", id, filetree.ErrNotExist)
	case n.Attr.Kind != filetree.File:
		return nil, fmt.Errorf("node %d is no file: %w", id, filetree.ErrInvalid)
	default:
		return n, nil
	}
}

// Lookup is of [filetree.Update].
func (m *Model) Lookup(dir filetree.NodeID, name string) (filetree.NodeID, filetree.Kind, error) {
	n, err := m.entry(dir, name)
	if err != nil {
		return 0, 0, err
	}
	return n.ID, n.Attr.Kind, nil
}

// Children is of [filetree.Update].
func (m *Model) Children(dir filetree.NodeID) iter.Seq2[filetree.Child, error] {
	return func(yield func(filetree.Child, error) bool) {
		d, err := m.dir(dir)
		if err != nil {
			yield(filetree.Child{}, err)
			return
		}
		for _, name := range slices.Sorted(maps.Keys(d.Entries)) {
			n := m.nodes[d.Entries[name]]
			if !yield(filetree.Child{Name: name, Node: n.ID, Kind: n.Attr.Kind}, nil) {
				return
			}
		}
	}
}

// Names is of [filetree.Update]. It goes through the whole tree.
func (m *Model) Names(id filetree.NodeID, limit int) ([]filetree.Entry, error) {
	var names []filetree.Entry
	for _, d := range slices.Sorted(maps.Keys(m.nodes)) {
		for _, name := range slices.Sorted(maps.Keys(m.nodes[d].Entries)) {
			if m.nodes[d].Entries[name] == id && (limit == 0 || len(names) < limit) {
				names = append(names, filetree.Entry{Dir: d, Name: name})
			}
		}
	}
	return names, nil
}

// Create is of [filetree.Update].
func (m *Model) Create(dir filetree.NodeID, name string, a filetree.Attr) (filetree.NodeID, error) {
	m.Calls["Create"]++
	d, err := m.free(dir, name)
	if err != nil {
		return 0, err
	}
	if !a.Kind.Valid() {
		return 0, fmt.Errorf("%v: %w", a.Kind, filetree.ErrInvalid)
	}
	if m.MaxNodes > 0 && len(m.nodes) >= m.MaxNodes {
		return 0, ErrFull
	}
	a.Size = 0
	n := &Node{ID: m.next, Attr: a, Nlink: 1}
	if a.Kind == filetree.Dir {
		n.Entries, n.Parent = make(map[string]filetree.NodeID), dir
	}
	m.next++
	m.nodes[n.ID] = n
	d.Entries[name] = n.ID
	return n.ID, nil
}

// Link is of [filetree.Update].
func (m *Model) Link(dir filetree.NodeID, name string, id filetree.NodeID) error {
	m.Calls["Link"]++
	d, err := m.free(dir, name)
	if err != nil {
		return err
	}
	n := m.nodes[id]
	switch {
	case n == nil:
		return fmt.Errorf("node %d: %w", id, filetree.ErrNotExist)
	case n.Attr.Kind == filetree.Dir:
		return fmt.Errorf("link to a directory: %w", filetree.ErrInvalid)
	}
	n.Nlink++
	d.Entries[name] = id
	return nil
}

// Rename is of [filetree.Update].
func (m *Model) Rename(dir filetree.NodeID, name string, toDir filetree.NodeID, toName string) error {
	m.Calls["Rename"]++
	n, err := m.entry(dir, name)
	if err != nil {
		return err
	}
	d, err := m.free(toDir, toName)
	if err != nil {
		return err
	}
	if n.Attr.Kind == filetree.Dir {
		for up := d; ; up = m.nodes[up.Parent] {
			if up == n {
				return fmt.Errorf("%q below itself: %w", name, filetree.ErrInvalid)
			}
			if up.ID == filetree.RootNode {
				break
			}
		}
		n.Parent = toDir
	}
	delete(m.nodes[dir].Entries, name)
	d.Entries[toName] = n.ID
	return nil
}

// Unlink is of [filetree.Update].
func (m *Model) Unlink(dir filetree.NodeID, name string) error {
	m.Calls["Unlink"]++
	n, err := m.entry(dir, name)
	if err != nil {
		return err
	}
	if len(n.Entries) > 0 {
		return fmt.Errorf("%q is not empty: %w", name, filetree.ErrInvalid)
	}
	delete(m.nodes[dir].Entries, name)
	m.drop(n)
	return nil
}

// SetAttr is of [filetree.Update].
func (m *Model) SetAttr(id filetree.NodeID, change func(a *filetree.Attr)) error {
	m.Calls["SetAttr"]++
	n := m.nodes[id]
	if n == nil {
		return fmt.Errorf("node %d: %w", id, filetree.ErrNotExist)
	}
	a := n.Attr
	change(&a)
	if a.Kind != n.Attr.Kind || a.Size != n.Attr.Size {
		panic("sendtest: SetAttr changed kind or size")
	}
	n.Attr = a
	return nil
}

// Write is of [filetree.Update].
func (m *Model) Write(id filetree.NodeID, off int64, data []byte) error {
	m.Calls["Write"]++
	n, err := m.file(id)
	if err != nil {
		return err
	}
	if err := check(off, int64(len(data))); err != nil {
		return err
	}
	if len(data) > 0 {
		n.Attr.Size = max(n.Attr.Size, off+int64(len(data)))
	}
	return m.put(n, off, data)
}

func check(off, length int64) error {
	if off < 0 || length < 0 || off > math.MaxInt64-length {
		return fmt.Errorf("%d bytes at %d: %w", length, off, filetree.ErrInvalid)
	}
	return nil
}

// put stores data without changing the size.
func (m *Model) put(n *Node, off int64, data []byte) error {
	for len(data) > 0 {
		at := off % BlockSize
		size := min(int64(len(data)), BlockSize-at)
		if err := m.change(n, off/BlockSize, func(b *[BlockSize]byte) { copy(b[at:], data[:size]) }); err != nil {
			return err
		}
		off += size
		data = data[size:]
	}
	return nil
}

func (m *Model) change(n *Node, block int64, change func(b *[BlockSize]byte)) error {
	b := new([BlockSize]byte)
	if old := n.blocks[block]; old != nil {
		*b = *old
	} else {
		if m.MaxBlocks > 0 && m.blocks >= m.MaxBlocks {
			return ErrFull
		}
		m.blocks++
	}
	change(b)
	if n.blocks == nil {
		n.blocks = make(map[int64]*[BlockSize]byte)
	}
	n.blocks[block] = b
	return nil
}

// Changed is of [filetree.Update].
func (m *Model) Changed(id filetree.NodeID, off, length int64) error {
	m.Calls["Changed"]++
	n, err := m.file(id)
	if err != nil {
		return err
	}
	if err := check(off, length); err != nil {
		return err
	}
	n.Changed = append(n.Changed, filetree.Range{Offset: off, Length: length})
	if length > 0 {
		n.Attr.Size = max(n.Attr.Size, off+length)
	}
	return nil
}

// Hole is of [filetree.Update].
func (m *Model) Hole(id filetree.NodeID, off, length int64) error {
	m.Calls["Hole"]++
	n, err := m.file(id)
	if err != nil {
		return err
	}
	if err := check(off, length); err != nil {
		return err
	}
	return m.punch(n, off, off+length)
}

// punch makes [off, end) zeros, and the whole blocks in it holes.
func (m *Model) punch(n *Node, off, end int64) error {
	for block := range n.blocks {
		first := block * BlockSize
		last := first + BlockSize // of a block below 2^63, so it may be 2^63 itself
		from, to := max(first, off), end
		if last > 0 {
			to = min(last, end)
		}
		switch {
		case from >= to:
		case from == first && (to == last || to >= n.Attr.Size):
			delete(n.blocks, block)
			m.blocks--
		default:
			err := m.change(n, block, func(b *[BlockSize]byte) { clear(b[from-first : to-first]) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Truncate is of [filetree.Update].
func (m *Model) Truncate(id filetree.NodeID, size int64) error {
	m.Calls["Truncate"]++
	n, err := m.file(id)
	if err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("size %d: %w", size, filetree.ErrInvalid)
	}
	if size < n.Attr.Size {
		if err := m.punch(n, size, math.MaxInt64); err != nil {
			return err
		}
	}
	n.Attr.Size = size
	return nil
}

// Clone is of [filetree.Update].
func (m *Model) Clone(id filetree.NodeID, off int64, src filetree.NodeID, srcOff, length int64) error {
	m.Calls["Clone"]++
	s, err := m.file(src)
	if err != nil {
		return err
	}
	return m.clone(id, off, s, srcOff, length)
}

// Resolve is of [filetree.Update].
func (m *Model) Resolve(snapshot [16]byte, path string) (filetree.NodeID, error) {
	from := m.Snapshots[snapshot]
	if from == nil {
		return 0, fmt.Errorf("snapshot %x: %w", snapshot, filetree.ErrNotExist)
	}
	n := from.nodes[filetree.RootNode]
	for name := range bytes.SplitSeq([]byte(path), []byte("/")) {
		var err error
		if n, err = from.entry(n.ID, string(name)); err != nil {
			return 0, err
		}
	}
	return n.ID, nil
}

// CloneFrom is of [filetree.Update].
func (m *Model) CloneFrom(id filetree.NodeID, off int64, snapshot [16]byte, src filetree.NodeID, srcOff, length int64) error {
	m.Calls["CloneFrom"]++
	from := m.Snapshots[snapshot]
	if from == nil {
		return fmt.Errorf("snapshot %x: %w", snapshot, filetree.ErrNotExist)
	}
	n, err := from.file(src)
	if err != nil {
		return err
	}
	return m.clone(id, off, n, srcOff, length)
}

func (m *Model) clone(id filetree.NodeID, off int64, src *Node, srcOff, length int64) error {
	n, err := m.file(id)
	if err != nil {
		return err
	}
	if err := errors.Join(check(off, length), check(srcOff, length)); err != nil {
		return err
	}
	if length == 0 {
		return nil
	}
	// What is copied is what was there before: src may be n.
	blocks := maps.Clone(src.blocks)
	n.Attr.Size = max(n.Attr.Size, off+length)
	if err := m.punch(n, off, off+length); err != nil {
		return err
	}
	for block, b := range blocks {
		first := block * BlockSize
		from := max(first, srcOff)
		to := srcOff + length
		if last := first + BlockSize; last > 0 {
			to = min(last, to)
		}
		if from < to {
			if err := m.put(n, off+(from-srcOff), b[from-first:to-first]); err != nil {
				return err
			}
		}
	}
	return nil
}
