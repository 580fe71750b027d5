package zfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
)

// A directory is a ZAP, and a unit brings those blocks of it that changed. What changed in
// it is the difference between the names that were in these blocks and those that are:
// names that moved from one block to another, as when a leaf is split, are in both.

// A link is a name in a directory and the object that it leads to.
type link struct {
	name   string
	object uint64
}

// appendLinks encodes links, sorted by name.
func appendLinks(b []byte, links []link) []byte {
	for _, l := range links {
		b = binary.AppendUvarint(b, uint64(len(l.name)))
		b = append(b, l.name...)
		b = binary.AppendUvarint(b, l.object)
	}
	return b
}

func decodeLinks(b []byte) ([]link, error) {
	b, err := unpack(b)
	if err != nil {
		return nil, err
	}
	var links []link
	for len(b) > 0 {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return nil, errKept
		}
		l := link{name: string(b[k : k+int(n)])}
		b = b[k+int(n):]
		if l.object, k = binary.Uvarint(b); k <= 0 {
			return nil, errKept
		}
		links, b = append(links, l), b[k:]
	}
	return links, nil
}

// linksOf decodes the names in a block of a directory.
func linksOf(block []byte, index uint64, order binary.ByteOrder) ([]link, error) {
	z, err := zpl.DecodeBlock(block, index, order)
	if err != nil {
		return nil, err
	}
	links := make([]link, 0, len(z.Entries))
	for i := range z.Entries {
		e, err := z.Entries[i].Dirent()
		if err != nil {
			return nil, err
		}
		links = append(links, link{string(z.Entries[i].Name), e.Object})
	}
	slices.SortFunc(links, func(a, b link) int { return strings.Compare(a.name, b.name) })
	return links, nil
}

// keepsBlocks reports whether blocks of objects of this type are kept: of directories,
// of the tables that say how attributes are laid out, and of how large a volume is.
func keepsBlocks(typ uint32) bool {
	return zpl.IsZAP(typ) && typ != zpl.TypeDeleteQueue || typ == typeVolumeProps
}

// A dirBlock is a block of a directory, which is the object's as long as it has that node:
// numbers are given again. Node is 0 for directories of extended attributes.
type dirBlock struct {
	object uint64
	node   filetree.NodeID
	block  uint64
}

// setBlock makes value what is kept of a block of a ZAP; nil is no block. What was kept
// of a directory's before the unit is put aside.
func (a *applier) setBlock(o *object, block uint64, value []byte) error {
	k := key(keyBlock, o.number, block)
	if o.typ != zpl.TypeDirectory {
		a.tables = tables{}
		return a.tree.Keep(k, value)
	}
	at := dirBlock{o.number, o.node, block}
	if !a.touched[at] {
		a.touched[at] = true
		old, err := a.tree.Kept(k)
		if err != nil {
			return err
		}
		if old != nil {
			if err := a.tree.Keep(key(keyOld, o.number, uint64(o.node), block), old); err != nil {
				return err
			}
		}
	}
	return a.tree.Keep(k, value)
}

// dropBlocks forgets the blocks of a ZAP from one on and below another.
func (a *applier) dropBlocks(o *object, first, end uint64) error {
	for k, err := range a.tree.KeptFrom(key(keyBlock, o.number, first), key(keyBlock, o.number, end)) {
		if err == nil {
			err = a.setBlock(o, number(k.Key, 1), nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeBlock is a WRITE to a ZAP.
func (a *applier) writeBlock(o *object, rec *Record, data []byte) error {
	if o.blockSize == 0 || rec.Start%uint64(o.blockSize) != 0 || len(data) != int(o.blockSize) {
		return fmt.Errorf("%d bytes at %d of a table with blocks of %d: %w", len(data), rec.Start, o.blockSize, filetree.ErrInvalid)
	}
	block := rec.Start / uint64(o.blockSize)
	if o.typ != zpl.TypeDirectory {
		return a.setBlock(o, block, pack(data))
	}
	links, err := linksOf(data, block, a.order)
	if err != nil {
		return err
	}
	return a.setBlock(o, block, pack(appendLinks(nil, links))) // never empty: there was a block
}

// A dirChange is what changed in one directory.
type dirChange struct {
	object        uint64
	node          filetree.NodeID
	removed, made []link
}

// eachDir calls f with the change of every directory that was touched.
func (a *applier) eachDir(f func(c *dirChange) error) error {
	blocks := make([]dirBlock, 0, len(a.touched))
	for b := range a.touched {
		blocks = append(blocks, b)
	}
	slices.SortFunc(blocks, func(x, y dirBlock) int {
		if x.object != y.object {
			return compare(x.object, y.object)
		}
		if x.node != y.node {
			return compare(uint64(x.node), uint64(y.node))
		}
		return compare(x.block, y.block)
	})
	for len(blocks) > 0 {
		n := 1
		for n < len(blocks) && blocks[n].object == blocks[0].object && blocks[n].node == blocks[0].node {
			n++
		}
		c, err := a.dirChange(blocks[:n])
		if err == nil {
			err = f(c)
		}
		if err != nil {
			return fmt.Errorf("directory, object %d: %w", blocks[0].object, err)
		}
		blocks = blocks[n:]
	}
	return nil
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (a *applier) dirChange(blocks []dirBlock) (*dirChange, error) {
	c := &dirChange{object: blocks[0].object, node: blocks[0].node}
	now, err := a.state.get(c.object)
	if err != nil {
		return nil, err
	}
	alive := now != nil && now.typ == zpl.TypeDirectory && now.node == c.node
	for _, b := range blocks {
		old, err := a.linksAt(key(keyOld, b.object, uint64(b.node), b.block))
		if err != nil {
			return nil, err
		}
		var new []link
		if alive {
			if new, err = a.linksAt(key(keyBlock, b.object, b.block)); err != nil {
				return nil, err
			}
		}
		cancel(&old, &new)
		c.removed, c.made = append(c.removed, old...), append(c.made, new...)
	}
	byName := func(a, b link) int { return strings.Compare(a.name, b.name) }
	slices.SortFunc(c.removed, byName)
	slices.SortFunc(c.made, byName)
	for i := 1; i < len(c.made); i++ {
		if c.made[i].name == c.made[i-1].name {
			return nil, fmt.Errorf("name %q is there twice: %w", c.made[i].name, filetree.ErrInvalid)
		}
	}
	cancel(&c.removed, &c.made)
	return c, nil
}

func (a *applier) linksAt(k []byte) ([]link, error) {
	b, err := a.tree.Kept(k)
	if err != nil {
		return nil, err
	}
	return decodeLinks(b)
}

// cancel takes from x and y, both sorted by name, what is in both.
func cancel(x, y *[]link) {
	var left, right []link
	a, b := *x, *y
	for len(a) > 0 && len(b) > 0 {
		switch strings.Compare(a[0].name, b[0].name) {
		case -1:
			left, a = append(left, a[0]), a[1:]
		case 1:
			right, b = append(right, b[0]), b[1:]
		default:
			if a[0].object != b[0].object {
				left, right = append(left, a[0]), append(right, b[0])
			}
			a, b = a[1:], b[1:]
		}
	}
	*x, *y = append(left, a...), append(right, b...)
}

// names brings the names of the tree to what the directories say now. Names go before
// others come, so that they are free.
func (a *applier) names() error {
	// A node that took the number of another has the names of that which are still there:
	// in no directory did anything change with them.
	type inherited struct {
		filetree.Entry
		heir filetree.NodeID
	}
	var heirs []inherited
	err := a.eachDir(func(c *dirChange) error {
		if c.node == 0 {
			return a.touchXattrs(c.object)
		}
		for _, l := range c.removed {
			err := a.tree.DropName(c.node, l.name)
			if err != nil && !(errors.Is(err, filetree.ErrNotExist) && len(l.name) > filetree.MaxName) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range a.ended {
		now, err := a.state.get(e.number)
		if err != nil {
			return err
		}
		names, err := a.tree.Names(e.node, 0)
		if err != nil {
			return err
		}
		for _, name := range names {
			if now == nil || now.node == 0 {
				return fmt.Errorf("object %d is gone, and still has the name %q: %w", e.number, name.Name, filetree.ErrInvalid)
			}
			heirs = append(heirs, inherited{name, now.node})
		}
		if err := a.tree.EndNode(e.node); err != nil {
			return err
		}
	}
	for _, e := range heirs {
		if err := a.addName(e.Dir, e.Name, e.heir); err != nil {
			return err
		}
	}
	return a.eachDir(func(c *dirChange) error {
		if c.node == 0 {
			return nil
		}
		for _, l := range c.made {
			o, err := a.state.get(l.object)
			if err != nil {
				return err
			}
			if o == nil || o.node == 0 {
				return fmt.Errorf("%q leads to object %d, which is no file: %w", l.name, l.object, filetree.ErrInvalid)
			}
			if err := a.addName(c.node, l.name, o.node); err != nil {
				return err
			}
		}
		return nil
	})
}

// addName makes a name. One that no other system could hold is told of instead.
func (a *applier) addName(dir filetree.NodeID, name string, n filetree.NodeID) error {
	if len(name) > filetree.MaxName {
		a.res.fail(name, fmt.Errorf("name of %d bytes, and a history has names of at most %d: it is kept without this name", len(name), filetree.MaxName))
		return nil
	}
	if n == filetree.RootNode {
		return fmt.Errorf("%q leads to the root: %w", name, filetree.ErrInvalid)
	}
	if err := a.tree.AddName(dir, name, n); err != nil {
		return err
	}
	attr, err := a.tree.Attr(n)
	if err == nil && attr.Kind == filetree.Dir {
		a.moved = append(a.moved, n)
	}
	return err
}

// maxDepth bounds how deep directories nest.
const maxDepth = 16384

// checkDirs makes sure that the directories that got names have one each, and form a tree.
func (a *applier) checkDirs() error {
	good := map[filetree.NodeID]bool{filetree.RootNode: true}
	for _, n := range a.moved {
		var above []filetree.NodeID
		for at := n; !good[at]; {
			if above = append(above, at); len(above) > maxDepth {
				return fmt.Errorf("directories go in a circle: %w", filetree.ErrInvalid)
			}
			names, err := a.tree.Names(at, 2)
			if err != nil {
				return err
			}
			if len(names) > 1 {
				return fmt.Errorf("a directory with two names, %q and %q: %w", names[0].Name, names[1].Name, filetree.ErrInvalid)
			}
			if len(names) == 0 { // without a place in the tree, like that of shares, or unlinked while open
				break
			}
			at = names[0].Dir
		}
		for _, d := range above {
			good[d] = true
		}
	}
	return nil
}
