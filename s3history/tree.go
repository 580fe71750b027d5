package s3history

import (
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
)

// The tree that changes step by step, for send streams: filetree.Update.

var _ filetree.Update = (*Update)(nil)

// attr returns a node's attributes, to be changed by the caller.
func (u *Update) attr(n filetree.NodeID) (*cachedAttr, error) {
	if c, ok := u.attrs[n]; ok {
		return c, nil
	}
	a, err := u.v.Attr(n)
	if err != nil {
		return nil, err
	}
	if len(u.attrs) >= maxCachedAttrs {
		if err := u.flushAttrs(); err != nil {
			return nil, err
		}
	}
	c := &cachedAttr{Attr: a}
	u.attrs[n] = c
	return c, nil
}

func (u *Update) flushAttrs() error {
	for n, c := range u.attrs {
		if c.dirty {
			if err := u.v.SetAttr(n, &c.Attr); err != nil {
				return err
			}
		}
	}
	clear(u.attrs)
	return nil
}

// Lookup implements filetree.Update.
func (u *Update) Lookup(dir filetree.NodeID, name string) (filetree.NodeID, filetree.Kind, error) {
	n, err := u.v.Lookup(dir, name)
	if err != nil {
		return 0, 0, err
	}
	c, err := u.attr(n)
	if err != nil {
		return 0, 0, err
	}
	return n, c.Kind, nil
}

// Children implements filetree.Update.
func (u *Update) Children(dir filetree.NodeID) iter.Seq2[filetree.Child, error] {
	return func(yield func(filetree.Child, error) bool) {
		for c, err := range u.v.Children(dir) {
			if !yield(filetree.Child{Name: c.Name, Node: c.Node, Kind: c.Attr.Kind}, err) {
				return
			}
		}
	}
}

// Names implements filetree.Update.
func (u *Update) Names(n filetree.NodeID, limit int) ([]filetree.Entry, error) {
	return u.v.Entries(n, limit)
}

// free returns an error unless dir is a directory that has no entry name.
func (u *Update) free(dir filetree.NodeID, name string) error {
	if err := filetree.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", err, filetree.ErrInvalid)
	}
	d, err := u.attr(dir)
	if err != nil {
		return err
	}
	if d.Kind != filetree.Dir {
		return fmt.Errorf("%q in a %v: %w", name, d.Kind, filetree.ErrInvalid)
	}
	if _, err := u.v.Lookup(dir, name); err == nil {
		return fmt.Errorf("%q exists: %w", name, filetree.ErrInvalid)
	} else if !errors.Is(err, filetree.ErrNotExist) {
		return err
	}
	return nil
}

// Create implements filetree.Update.
func (u *Update) Create(dir filetree.NodeID, name string, a filetree.Attr) (filetree.NodeID, error) {
	if err := u.free(dir, name); err != nil {
		return 0, err
	}
	n := u.next
	a.Size = 0
	filetree.SortXattrs(a.Xattrs)
	if err := u.v.AddNode(n, &a); err != nil {
		return 0, err
	}
	u.next++
	return n, u.addEntry(dir, name, n)
}

// Link implements filetree.Update.
func (u *Update) Link(dir filetree.NodeID, name string, n filetree.NodeID) error {
	if err := u.free(dir, name); err != nil {
		return err
	}
	a, err := u.attr(n)
	if err != nil {
		return err
	}
	if a.Kind == filetree.Dir {
		return fmt.Errorf("second name %q for a directory: %w", name, filetree.ErrInvalid)
	}
	return u.addEntry(dir, name, n)
}

// Rename implements filetree.Update.
func (u *Update) Rename(dir filetree.NodeID, name string, toDir filetree.NodeID, toName string) error {
	n, kind, err := u.Lookup(dir, name)
	if err != nil {
		return err
	}
	if err := u.free(toDir, toName); err != nil {
		return err
	}
	if kind == filetree.Dir {
		for at, depth := toDir, 0; at != filetree.RootNode; depth++ {
			if at == n || depth > 1<<14 {
				return fmt.Errorf("directory %q moved into itself: %w", name, filetree.ErrInvalid)
			}
			e, err := u.v.Entries(at, 1)
			if err != nil {
				return err
			}
			if len(e) == 0 {
				return fmt.Errorf("node %d: %w", at, filetree.ErrNotExist)
			}
			at = e[0].Dir
		}
	}
	if err := u.removeEntry(dir, name, n); err != nil {
		return err
	}
	return u.addEntry(toDir, toName, n)
}

// Unlink implements filetree.Update.
func (u *Update) Unlink(dir filetree.NodeID, name string) error {
	n, kind, err := u.Lookup(dir, name)
	if err != nil {
		return err
	}
	if kind == filetree.Dir {
		empty, err := u.v.Empty(n)
		if err != nil {
			return err
		}
		if !empty {
			return fmt.Errorf("directory %q is not empty: %w", name, filetree.ErrInvalid)
		}
	}
	return u.removeEntry(dir, name, n)
}

// SetAttr implements filetree.Update.
func (u *Update) SetAttr(n filetree.NodeID, change func(*filetree.Attr)) error {
	c, err := u.attr(n)
	if err != nil {
		return err
	}
	kind, size := c.Kind, c.Size
	c.Xattrs = slices.Clone(c.Xattrs)
	change(&c.Attr)
	c.Kind, c.Size = kind, size
	filetree.SortXattrs(c.Xattrs)
	c.dirty = true
	u.touch(n)
	return nil
}

// A writeBuffer gathers writes that follow one another.
type writeBuffer struct {
	node filetree.NodeID
	off  int64
	data []byte
}

func (u *Update) file(n filetree.NodeID, off, length int64) (*cachedAttr, error) {
	if off < 0 || length < 0 || off+length < off {
		return nil, fmt.Errorf("%d bytes at %d: %w", length, off, filetree.ErrInvalid)
	}
	c, err := u.attr(n)
	if err != nil {
		return nil, err
	}
	if c.Kind != filetree.File {
		return nil, fmt.Errorf("data of a %v: %w", c.Kind, filetree.ErrInvalid)
	}
	u.touch(n)
	return c, nil
}

func (c *cachedAttr) grow(end int64) {
	if end > c.Size {
		c.Size, c.dirty = end, true
	}
}

// Write implements filetree.Update.
func (u *Update) Write(n filetree.NodeID, off int64, data []byte) error {
	c, err := u.file(n, off, int64(len(data)))
	if err != nil || len(data) == 0 {
		return err
	}
	b := &u.write
	if len(b.data) > 0 && (b.node != n || b.off+int64(len(b.data)) != off) {
		if err := u.flushWrite(); err != nil {
			return err
		}
	}
	c.grow(off + int64(len(data)))
	u.stats.Bytes += uint64(len(data))
	for len(data) > 0 {
		if len(b.data) == 0 {
			b.node, b.off = n, off
		}
		// Cut at multiples of 1 MiB, so that the same content is cut the same.
		room := catalog.MaxPart - (b.off+int64(len(b.data)))%catalog.MaxPart
		k := min(room, int64(len(data)))
		b.data = append(b.data, data[:k]...)
		data, off = data[k:], off+k
		if k == room {
			if err := u.flushWrite(); err != nil {
				return err
			}
		}
	}
	return nil
}

// flushWrite stores what Write gathered.
func (u *Update) flushWrite() error {
	b := &u.write
	if len(b.data) == 0 {
		return nil
	}
	p := Piece{Offset: b.off, Items: []Item{{Data: b.data}}}
	if len(b.data) >= MinContent {
		p.CID = u.ContentID(b.data)
		p.Items[0].CID = p.CID
	}
	err := u.putWritten(b.node, p)
	b.data = b.data[:0]
	return err
}

// Changed implements filetree.Update. What it says is asked for by [Update.Unread].
func (u *Update) Changed(n filetree.NodeID, off, length int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.file(n, off, length)
	if err != nil || length == 0 {
		return err
	}
	c.grow(off + length)
	if n >= u.first {
		return nil // all of a new file is read
	}
	if u.changed == nil {
		u.changed = map[filetree.NodeID][]filetree.Range{}
	}
	r := u.changed[n]
	if k := len(r); k > 0 && r[k-1].End() == off {
		r[k-1].Length += length
		return nil
	}
	u.changed[n] = append(r, filetree.Range{Offset: off, Length: length})
	return nil
}

// Hole implements filetree.Update.
func (u *Update) Hole(n filetree.NodeID, off, length int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.file(n, off, length)
	if err != nil {
		return err
	}
	if length = min(length, c.Size-off); length <= 0 {
		return nil
	}
	u.punch(n)
	return u.put(n, off, []catalog.Part{{Length: length}}, nil)
}

func (u *Update) punch(n filetree.NodeID) {
	if u.punched == nil {
		u.punched = map[filetree.NodeID]bool{}
	}
	u.punched[n] = true
}

// Punched reports whether Hole or Truncate took bytes from a file: then it is not, even
// where nothing has been Put, what it was in the snapshot before.
func (u *Update) Punched(n filetree.NodeID) bool { return u.punched[n] }

// Truncate implements filetree.Update.
func (u *Update) Truncate(n filetree.NodeID, size int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.file(n, 0, size)
	if err != nil {
		return err
	}
	if size < c.Size {
		u.punch(n)
		if err := u.put(n, size, []catalog.Part{{Length: c.Size - size}}, nil); err != nil {
			return err
		}
	}
	c.Size, c.dirty = size, true
	return nil
}

// Clone implements filetree.Update.
func (u *Update) Clone(n filetree.NodeID, off int64, src filetree.NodeID, srcOff, length int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	c, err := u.attr(src)
	if err != nil {
		return err
	}
	if src == n && length > 0 && off < srcOff+length && srcOff < off+length {
		return u.cloneOver(n, off, srcOff, length)
	}
	return u.clone(n, off, u.v, src, c.Kind, srcOff, length)
}

// cloneOver is Clone for ranges that overlap: all of it is looked up before any of it is
// overwritten, so it cannot be long.
func (u *Update) cloneOver(n filetree.NodeID, off, srcOff, length int64) error {
	if length > cloneStep || srcOff < 0 {
		return fmt.Errorf("clone of %d bytes at %d to %d of the same file: %w", length, srcOff, off, filetree.ErrInvalid)
	}
	c, err := u.file(n, off, length)
	if err != nil {
		return err
	}
	parts, err := u.v.Parts(n, srcOff, srcOff+length)
	if err != nil {
		return err
	}
	c.grow(off + length)
	return u.put(n, off, parts, nil)
}

// cloneStep bounds how much of a clone is looked up at once.
const cloneStep = 64 << 20

func (u *Update) clone(n filetree.NodeID, off int64, v catalog.View, src filetree.NodeID, kind filetree.Kind, srcOff, length int64) error {
	c, err := u.file(n, off, length)
	if err != nil {
		return err
	}
	if srcOff < 0 || srcOff+length < srcOff || kind != filetree.File {
		return fmt.Errorf("clone of %d bytes at %d of a %v: %w", length, srcOff, kind, filetree.ErrInvalid)
	}
	if length > 0 {
		c.grow(off + length)
	}
	for length > 0 {
		next, err := v.NextExtent(src, srcOff)
		if err != nil {
			return err
		}
		k := min(length, cloneStep)
		parts := []catalog.Part{{Length: k}}
		if hole := min(next-srcOff, length); hole > 0 {
			k = hole // in one step, however long it is
			parts[0].Length = k
		} else if parts, err = v.Parts(src, srcOff, srcOff+k); err != nil {
			return err
		}
		if err := u.put(n, off, parts, nil); err != nil {
			return err
		}
		off, srcOff, length = off+k, srcOff+k, length-k
	}
	return nil
}

// CloneFrom implements filetree.Update.
func (u *Update) CloneFrom(n filetree.NodeID, off int64, snapshot [16]byte, src filetree.NodeID, srcOff, length int64) error {
	if err := u.flushWrite(); err != nil {
		return err
	}
	v, err := u.snapshot(snapshot)
	if err != nil {
		return err
	}
	a, err := v.Attr(src)
	if err != nil {
		return fmt.Errorf("clone from snapshot %x: %w", snapshot, err)
	}
	return u.clone(n, off, v, src, a.Kind, srcOff, length)
}

// Resolve implements filetree.Update.
func (u *Update) Resolve(snapshot [16]byte, path string) (filetree.NodeID, error) {
	v, err := u.snapshot(snapshot)
	if err != nil {
		return 0, err
	}
	n, err := v.Resolve(SplitPath(path))
	if err != nil {
		return 0, fmt.Errorf("%q in snapshot %x: %w", path, snapshot, err)
	}
	return n, nil
}

// snapshot finds a committed snapshot by its UUID, first among those of this source.
func (u *Update) snapshot(guid [16]byte) (catalog.View, error) {
	if v, ok := u.guids[guid]; ok {
		return v, nil
	}
	v, err := u.w.findGUID(u.source, guid)
	if err != nil {
		return v, err
	}
	if u.guids == nil {
		u.guids = map[[16]byte]catalog.View{}
	}
	u.guids[guid] = v
	return v, nil
}

// findGUID returns the snapshot that the file system knows under a UUID: of a source, or
// else of any of the writer's.
func (w *Writer) findGUID(own catalog.Source, guid [16]byte) (catalog.View, error) {
	sources, err := w.cat.Sources()
	if err != nil {
		return catalog.View{}, err
	}
	for _, s := range append([]catalog.Source{own}, sources...) {
		if seq, err := w.Alias(s, guid); err != nil {
			return catalog.View{}, err
		} else if seq != 0 {
			return w.cat.At(s.ID, seq), nil
		}
		snaps, err := Snapshots(w.cat, s)
		if err != nil {
			return catalog.View{}, err
		}
		for _, sn := range slices.Backward(snaps) {
			if sn.Info.GUID == guid && !sn.Partial {
				return w.cat.At(s.ID, sn.Seq), nil
			}
		}
	}
	return catalog.View{}, fmt.Errorf("snapshot %x: %w", guid, filetree.ErrNotExist)
}
