package zfs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
)

// A modelTree is a Tree in memory that holds whoever uses it to what Tree promises.
type modelTree struct {
	nodes   map[filetree.NodeID]*modelNode
	entries map[filetree.NodeID]map[string]filetree.NodeID // by directory
	names   map[filetree.NodeID]map[filetree.Entry]bool    // the same, by node
	kept    map[string][]byte
	next    filetree.NodeID
	volume  bool     // a file may be written beyond its end
	broken  []string // promises

	unread []changedRange // what Changed was told
}

type changedRange struct {
	node     filetree.NodeID
	off, end int64
}

type modelNode struct {
	attr  filetree.Attr
	pages map[int64][]byte // of the content, those that are not zero, by number
}

const modelPage = 4096

func newModel() *modelTree {
	root := &modelNode{attr: filetree.Attr{Kind: filetree.Dir, Mode: 0o755}}
	return &modelTree{nodes: map[filetree.NodeID]*modelNode{filetree.RootNode: root}, entries: map[filetree.NodeID]map[string]filetree.NodeID{},
		names: map[filetree.NodeID]map[filetree.Entry]bool{},
		kept:  map[string][]byte{}, next: 2}
}

func (m *modelTree) clone() *modelTree {
	c := *m
	c.nodes, c.entries = map[filetree.NodeID]*modelNode{}, map[filetree.NodeID]map[string]filetree.NodeID{}
	for n, x := range m.nodes {
		c.nodes[n] = &modelNode{x.attr, maps.Clone(x.pages)} // pages are not changed in place
	}
	for d, e := range m.entries {
		c.entries[d] = maps.Clone(e)
	}
	c.names = map[filetree.NodeID]map[filetree.Entry]bool{}
	for n, e := range m.names {
		c.names[n] = maps.Clone(e)
	}
	c.kept = maps.Clone(m.kept)
	c.unread = nil
	return &c
}

func (m *modelTree) promise(format string, args ...any) {
	m.broken = append(m.broken, fmt.Sprintf(format, args...))
}

func (m *modelTree) node(n filetree.NodeID) (*modelNode, error) {
	x := m.nodes[n]
	if x == nil {
		return nil, fmt.Errorf("node %d: %w", n, filetree.ErrNotExist)
	}
	return x, nil
}

func (m *modelTree) checkAttr(a *filetree.Attr) {
	if !a.Kind.Valid() || a.Mode > 0o7777 || len(a.Target) > filetree.MaxTarget || strings.IndexByte(a.Target, 0) >= 0 || len(a.Xattrs) > 4096 {
		m.promise("attributes %+v", a)
	}
	for i, x := range a.Xattrs {
		if x.Name == "" || len(x.Name) > filetree.MaxName || len(x.Value) > 64<<10 || i > 0 && x.Name <= a.Xattrs[i-1].Name {
			m.promise("extended attribute %q of %d bytes", x.Name, len(x.Value))
		}
	}
}

func (m *modelTree) NewNode(a filetree.Attr) (filetree.NodeID, error) {
	a.Size = 0
	filetree.SortXattrs(a.Xattrs)
	m.checkAttr(&a)
	n := m.next
	m.next++
	m.nodes[n] = &modelNode{a, map[int64][]byte{}}
	return n, nil
}

func (m *modelTree) EndNode(n filetree.NodeID) error {
	if _, err := m.node(n); err != nil {
		return err
	}
	if n == filetree.RootNode || len(m.entries[n]) > 0 {
		m.promise("node %d ends with %d names in it", n, len(m.entries[n]))
	}
	for e := range m.names[n] {
		delete(m.entries[e.Dir], e.Name)
	}
	delete(m.names, n)
	delete(m.nodes, n)
	return nil
}

func (m *modelTree) AddName(dir filetree.NodeID, name string, n filetree.NodeID) error {
	d, err := m.node(dir)
	if err != nil {
		return err
	}
	if _, err := m.node(n); err != nil {
		m.promise("name %q of a node that is not there", name)
		return err
	}
	if err := filetree.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", err, filetree.ErrInvalid)
	}
	if d.attr.Kind != filetree.Dir {
		return fmt.Errorf("%q in a %v: %w", name, d.attr.Kind, filetree.ErrInvalid)
	}
	if m.entries[dir][name] != 0 {
		return fmt.Errorf("%q exists: %w", name, filetree.ErrInvalid)
	}
	if m.entries[dir] == nil {
		m.entries[dir] = map[string]filetree.NodeID{}
	}
	if m.names[n] == nil {
		m.names[n] = map[filetree.Entry]bool{}
	}
	m.entries[dir][name] = n
	m.names[n][filetree.Entry{Dir: dir, Name: name}] = true
	return nil
}

func (m *modelTree) DropName(dir filetree.NodeID, name string) error {
	if m.entries[dir][name] == 0 {
		return fmt.Errorf("%q: %w", name, filetree.ErrNotExist)
	}
	delete(m.names[m.entries[dir][name]], filetree.Entry{Dir: dir, Name: name})
	delete(m.entries[dir], name)
	return nil
}

func (m *modelTree) Names(n filetree.NodeID, limit int) (names []filetree.Entry, err error) {
	for e := range m.names[n] {
		if limit == 0 || len(names) < limit {
			names = append(names, e)
		}
	}
	return names, nil
}

func (m *modelTree) Attr(n filetree.NodeID) (filetree.Attr, error) {
	x, err := m.node(n)
	if err != nil {
		return filetree.Attr{}, err
	}
	return x.attr, nil
}

func (m *modelTree) Nodes() iter.Seq2[filetree.NodeID, error] {
	return func(yield func(filetree.NodeID, error) bool) {
		for _, n := range slices.Sorted(maps.Keys(m.nodes)) {
			if !yield(n, nil) {
				return
			}
		}
	}
}

func (m *modelTree) Children(dir filetree.NodeID) iter.Seq2[filetree.Child, error] {
	return func(yield func(filetree.Child, error) bool) {
		for _, name := range slices.Sorted(maps.Keys(m.entries[dir])) {
			n := m.entries[dir][name]
			if !yield(filetree.Child{Name: name, Node: n, Kind: m.nodes[n].attr.Kind}, nil) {
				return
			}
		}
	}
}

func (m *modelTree) SetAttr(n filetree.NodeID, change func(*filetree.Attr)) error {
	x, err := m.node(n)
	if err != nil {
		return err
	}
	kind, size := x.attr.Kind, x.attr.Size
	x.attr.Xattrs = slices.Clone(x.attr.Xattrs)
	change(&x.attr)
	x.attr.Kind, x.attr.Size = kind, size
	filetree.SortXattrs(x.attr.Xattrs)
	m.checkAttr(&x.attr)
	return nil
}

func (m *modelTree) file(n filetree.NodeID, off, length int64) (*modelNode, error) {
	x, err := m.node(n)
	if err != nil {
		return nil, err
	}
	if off < 0 || length < 0 || off+length < off || x.attr.Kind != filetree.File {
		return nil, fmt.Errorf("%d bytes at %d of a %v: %w", length, off, x.attr.Kind, filetree.ErrInvalid)
	}
	return x, nil
}

// set writes data, which may be nil for zeros, to a part of a page.
func (x *modelNode) set(off, length int64, data []byte) {
	i := off / modelPage
	page := make([]byte, modelPage)
	copy(page, x.pages[i])
	part := page[off%modelPage:][:length]
	clear(part)
	copy(part, data)
	if len(bytes.Trim(page, "\x00")) == 0 {
		delete(x.pages, i)
		return
	}
	x.pages[i] = page
}

func (m *modelTree) Write(n filetree.NodeID, off int64, data []byte) error {
	x, err := m.file(n, off, int64(len(data)))
	if err != nil {
		return err
	}
	end := off + int64(len(data))
	if end > x.attr.Size && !m.volume {
		m.promise("node %d of %d bytes is written up to %d", n, x.attr.Size, end)
	}
	x.attr.Size = max(x.attr.Size, end)
	for len(data) > 0 {
		k := min(modelPage-off%modelPage, int64(len(data)))
		x.set(off, k, data[:k])
		off, data = off+k, data[k:]
	}
	return nil
}

func (m *modelTree) Changed(n filetree.NodeID, off, length int64) error {
	x, err := m.file(n, off, length)
	if err != nil {
		return err
	}
	if off+length > x.attr.Size {
		m.promise("node %d of %d bytes has changed up to %d", n, x.attr.Size, off+length)
	}
	m.unread = append(m.unread, changedRange{n, off, off + length})
	return nil
}

// read takes what Changed told of from a tree that has it, and all of what is new since the
// node next.
func (m *modelTree) read(from *modelTree, next filetree.NodeID) {
	for n, x := range m.nodes {
		if n >= next {
			m.unread = append(m.unread, changedRange{n, 0, x.attr.Size})
		}
	}
	for _, r := range m.unread {
		x, y := m.nodes[r.node], from.nodes[r.node]
		if x == nil || y == nil {
			continue // it is gone again
		}
		for off := r.off; off < min(r.end, x.attr.Size); {
			k := min(modelPage-off%modelPage, r.end-off, x.attr.Size-off)
			page := y.pages[off/modelPage]
			if page != nil {
				page = page[off%modelPage:][:k]
			}
			x.set(off, k, page)
			off += k
		}
	}
	m.unread = nil
}

func (m *modelTree) Hole(n filetree.NodeID, off, length int64) error {
	x, err := m.file(n, off, length)
	if err != nil {
		return err
	}
	if off+length > x.attr.Size {
		m.promise("node %d of %d bytes has a hole up to %d", n, x.attr.Size, off+length)
	}
	x.punch(off, off+length)
	return nil
}

func (x *modelNode) punch(off, end int64) {
	for i := range x.pages {
		from, to := max(off, i*modelPage), min(end, (i+1)*modelPage)
		if from < to {
			x.set(from, to-from, nil)
		}
	}
}

func (m *modelTree) Truncate(n filetree.NodeID, size int64) error {
	x, err := m.file(n, 0, size)
	if err != nil {
		return err
	}
	x.punch(size, max(size, x.attr.Size))
	x.attr.Size = size
	return nil
}

func (m *modelTree) Kept(key []byte) ([]byte, error) { return bytes.Clone(m.kept[string(key)]), nil }

func (m *modelTree) Keep(key, value []byte) error {
	if len(value) == 0 {
		delete(m.kept, string(key))
	} else {
		m.kept[string(key)] = bytes.Clone(value)
	}
	return nil
}

func (m *modelTree) KeptFrom(from, to []byte) iter.Seq2[filetree.Kept, error] {
	return func(yield func(filetree.Kept, error) bool) {
		var batch []filetree.Kept // as it was at first
		for k, v := range m.kept {
			if k >= string(from) && k < string(to) {
				batch = append(batch, filetree.Kept{Key: []byte(k), Value: v})
			}
		}
		slices.SortFunc(batch, func(a, b filetree.Kept) int { return bytes.Compare(a.Key, b.Key) })
		for _, k := range batch {
			if !yield(k, nil) {
				return
			}
		}
	}
}

// check returns what is wrong: promises that were broken, and what is no tree.
func (m *modelTree) check() []string {
	wrong := slices.Clone(m.broken)
	names := map[filetree.NodeID]int{}
	parent := map[filetree.NodeID]filetree.NodeID{}
	for dir, entries := range m.entries {
		if len(entries) > 0 && (m.nodes[dir] == nil || m.nodes[dir].attr.Kind != filetree.Dir) {
			wrong = append(wrong, fmt.Sprintf("names in node %d", dir))
		}
		for name, n := range entries {
			if m.nodes[n] == nil {
				wrong = append(wrong, fmt.Sprintf("%q leads nowhere", name))
				continue
			}
			names[n]++
			parent[n] = dir
			if m.nodes[n].attr.Kind == filetree.Dir && names[n] > 1 || n == filetree.RootNode {
				wrong = append(wrong, fmt.Sprintf("directory %d has the name %q, too", n, name))
			}
		}
	}
	for n, x := range m.nodes {
		if x.attr.Kind != filetree.Dir {
			continue
		}
		for at, steps := n, 0; at != 0; at, steps = parent[at], steps+1 {
			if steps > len(m.nodes) {
				wrong = append(wrong, fmt.Sprintf("node %d is in a circle", n))
				break
			}
		}
	}
	for k := range m.kept {
		if strings.IndexByte("Zbw", k[0]) >= 0 {
			wrong = append(wrong, fmt.Sprintf("%q is kept after the unit", k))
		}
	}
	return wrong
}

// dump says what there is, by path, and what has no name.
func (m *modelTree) dump() string {
	var lines []string
	add := func(path string, n filetree.NodeID) {
		x := m.nodes[n]
		a := x.attr
		names, _ := m.Names(n, 0)
		h := sha256.New()
		for _, i := range slices.Sorted(maps.Keys(x.pages)) {
			fmt.Fprintf(h, "%d %x ", i, x.pages[i])
		}
		lines = append(lines, fmt.Sprintf("%s: %d names, %+v %x", path, len(names), a, h.Sum(nil)[:8]))
	}
	var walk func(dir filetree.NodeID, path string)
	walk = func(dir filetree.NodeID, path string) {
		for c := range m.Children(dir) {
			add(path+"/"+c.Name, c.Node)
			if c.Kind == filetree.Dir {
				walk(c.Node, path+"/"+c.Name)
			}
		}
	}
	add("/", filetree.RootNode)
	walk(filetree.RootNode, "")
	var tops []filetree.NodeID
	for _, n := range slices.Sorted(maps.Keys(m.nodes)) {
		if names, _ := m.Names(n, 1); len(names) == 0 && n != filetree.RootNode {
			tops = append(tops, n)
		}
	}
	slices.SortFunc(tops, func(a, b filetree.NodeID) int { return int(m.nodes[a].attr.Ino) - int(m.nodes[b].attr.Ino) })
	for _, n := range tops {
		add(fmt.Sprintf("nameless %d", m.nodes[n].attr.Ino), n)
		walk(n, fmt.Sprintf("nameless %d", m.nodes[n].attr.Ino))
	}
	return strings.Join(lines, "\n") + "\n"
}

// forget takes away all that is kept, as a rebuild of the catalog does.
func (m *modelTree) forget() { clear(m.kept) }
