package zfs

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
)

// A full unit says all there is, and nothing of what was there before. What was there is
// known from what is kept of the last unit; if nothing is, as when the catalog was rebuilt,
// from the tree: its nodes have the number and generation of the object they were.

// A past is what a full unit is compared with.
type past struct {
	seen    numberSet // objects that the unit has
	nodes   []pastNode
	claimed numberSet // nodes among them that are objects of the unit, too

	// Of files that were there, by object:
	unchanged numberSet         // the content is what it was
	small     numberSet         // it is put aside till that is known
	gaps      map[uint64]uint64 // else: up to where the unit has told it
}

// A pastNode is a node whose object is not kept.
type pastNode struct {
	object uint64
	node   filetree.NodeID
}

// maxSmall is the most bytes of content that the unit's end is awaited for, to see whether
// they are others: a history would store them again. What is longer it knows by its hash.
const maxSmall = 64

// beginFull finds out what a full unit is compared with.
func (a *applier) beginFull() error {
	a.past = &past{seen: numberSet{}, claimed: numberSet{}, unchanged: numberSet{}, small: numberSet{}, gaps: map[uint64]uint64{}}
	if !a.state.empty {
		return nil
	}
	for n, err := range a.tree.Nodes() {
		if err != nil {
			return err
		}
		attr, err := a.tree.Attr(n)
		if err != nil {
			return err
		}
		if n != filetree.RootNode {
			a.past.nodes = append(a.past.nodes, pastNode{attr.Ino, n})
		}
		if attr.Kind == filetree.Dir {
			if err := a.linksBefore(attr.Ino, n); err != nil {
				return err
			}
		}
	}
	slices.SortFunc(a.past.nodes, func(x, y pastNode) int {
		return cmp.Or(cmp.Compare(x.object, y.object), cmp.Compare(x.node, y.node))
	})
	return nil
}

// linksBefore puts the names in a directory aside, as setBlock does when one is kept: as
// if they had been in a block that no directory has.
func (a *applier) linksBefore(object uint64, dir filetree.NodeID) error {
	var links []link
	for c, err := range a.tree.Children(dir) {
		if err != nil {
			return err
		}
		attr, err := a.tree.Attr(c.Node)
		if err != nil {
			return err
		}
		links = append(links, link{c.Name, attr.Ino})
	}
	if links == nil {
		return nil
	}
	slices.SortFunc(links, func(a, b link) int { return cmp.Compare(a.name, b.name) })
	a.touched[dirBlock{object, dir, math.MaxUint64}] = true
	return a.tree.Keep(key(keyOld, object, uint64(dir), math.MaxUint64), pack(appendLinks(nil, links)))
}

// claim returns the node that an object is, or 0.
func (p *past) claim(t Tree, object, gen uint64, kind filetree.Kind) (filetree.NodeID, error) {
	i, _ := slices.BinarySearchFunc(p.nodes, object, func(n pastNode, object uint64) int { return cmp.Compare(n.object, object) })
	for ; i < len(p.nodes) && p.nodes[i].object == object; i++ {
		n := p.nodes[i].node
		if p.claimed.has(uint64(n)) {
			continue
		}
		attr, err := t.Attr(n)
		if err != nil {
			return 0, err
		}
		if attr.Gen == gen && attr.Kind == kind {
			p.claimed.add(uint64(n))
			return n, nil
		}
	}
	return 0, nil
}

// compare decides what becomes of the content of a file that was there. A file of the same
// size that neither was written nor had its times set since is what it was. Where the
// times are not known yet, err says why, and little content is put aside; then compare
// reports true.
func (a *applier) compare(o *object, was *filetree.Attr, head *zpl.Head, za *zpl.Attr, err error) bool {
	p := a.past
	if p.seen.has(o.number) { // described for the second time, which no sender does
		p.unchanged.remove(o.number)
		return p.small.has(o.number)
	}
	switch {
	case err == nil && unchanged(was, za):
		p.unchanged.add(o.number)
	case err != nil && head.Size <= maxSmall:
		p.small.add(o.number)
		return true
	default:
		p.gaps[o.number] = 0
	}
	return false
}

func unchanged(was *filetree.Attr, za *zpl.Attr) bool {
	return was.Size >= 0 && uint64(was.Size) == za.Size && was.Mtime == za.Mtime && was.Ctime == za.Ctime && !was.Incomplete
}

// forget forgets what was decided of an object that is no more.
func (p *past) forget(n uint64) {
	p.unchanged.remove(n)
	p.small.remove(n)
	delete(p.gaps, n)
}

// fill makes a hole of what the unit has left out before start, now that it tells the
// content from start to end.
func (p *past) fill(t Tree, o *object, start, end uint64) error {
	at, ok := p.gaps[o.number]
	if !ok {
		return nil
	}
	p.gaps[o.number] = max(at, end)
	if start <= at {
		return nil
	}
	return t.Hole(o.node, int64(at), int64(start-at))
}

// fillRest makes holes of what is left out at the ends of files.
func (a *applier) fillRest() error {
	for _, n := range slices.Sorted(maps.Keys(a.past.gaps)) {
		o, err := a.state.get(n)
		if err != nil || o == nil {
			return errors.Join(err, errKept)
		}
		attr, err := a.tree.Attr(o.node)
		if err != nil {
			return err
		}
		if at := a.past.gaps[n]; at < uint64(attr.Size) {
			if err := a.tree.Hole(o.node, int64(at), attr.Size-int64(at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeSmall puts content aside.
func (a *applier) writeSmall(o *object, start uint64, data []byte) error {
	if start != 0 {
		return nil
	}
	return a.tree.Keep(key(keySmall, o.number), append([]byte{0}, data[:min(len(data), maxSmall)]...))
}

// setSmall decides about it: was are the attributes that the file had.
func (a *applier) setSmall(o *object, was *filetree.Attr, za *zpl.Attr) error {
	if unchanged(was, za) {
		return nil
	}
	if za.Size > maxSmall {
		return fmt.Errorf("%d bytes, and before that there were fewer: %w", za.Size, filetree.ErrInvalid)
	}
	data, err := a.tree.Kept(key(keySmall, o.number))
	if err != nil {
		return err
	}
	if err := a.tree.Truncate(o.node, int64(za.Size)); err != nil {
		return err
	}
	if len(data) == 0 {
		return a.tree.Hole(o.node, 0, int64(za.Size))
	}
	data = data[1:min(uint64(len(data)), za.Size+1)]
	a.res.Bytes += int64(len(data))
	return a.tree.Write(o.node, 0, data)
}

// dropUnseen ends what was there and is not in the unit.
func (a *applier) dropUnseen() error {
	err := a.state.each(0, math.MaxUint64, func(n uint64) error {
		if a.past.seen.has(n) {
			return nil
		}
		return a.drop(n)
	})
	for _, p := range a.past.nodes {
		if !a.past.claimed.has(uint64(p.node)) {
			a.ended = append(a.ended, endedNode{p.object, p.node})
		}
	}
	return err
}
