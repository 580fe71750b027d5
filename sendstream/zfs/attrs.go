package zfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
)

// ProjectXattr is the name under which a project id is kept with the extended attributes.
const ProjectXattr = filetree.ProjectXattr

// headAttr is what the beginning of a bonus says.
func headAttr(h *zpl.Head) filetree.Attr {
	return filetree.Attr{Kind: zpl.KindOf(h.Mode), Mode: uint32(h.Mode & 0o7777), UID: h.UID.RID(), GID: h.GID.RID(), Flags: h.Flags.FS()}
}

// entries returns the entries of a table, or nil if it is not there, or not all of it.
func (a *applier) entries(n uint64) []zpl.Entry {
	if a.full && !a.past.seen.has(n) {
		return nil // what is kept is another snapshot's, perhaps of another dataset
	}
	blocks := map[uint64][]byte{}
	size := 0
	for k, err := range a.tree.KeptFrom(key(keyBlock, n), key(keyBlock, n+1)) {
		if err != nil {
			return nil
		}
		b, err := unpack(k.Value)
		if size += len(b); err != nil || size > maxTable {
			return nil
		}
		blocks[number(k.Key, 1)] = b
	}
	if len(blocks) == 0 {
		return nil
	}
	entries, err := zpl.DecodeZAP(blocks, a.order)
	if err != nil {
		return nil
	}
	return entries
}

// maxTable bounds the tables that are looked at as a whole, in bytes.
const maxTable = 64 << 20

// tables are what is known of the master node and of those that say how attributes are
// laid out, and whether they were looked up since a block of any came.
type tables struct {
	master                   *zpl.Master
	registry                 *zpl.Registry
	masterKnown, layoutKnown bool
}

// master returns the master node, or nil while it is not there.
func (a *applier) master() *zpl.Master {
	t := &a.tables
	if !t.masterKnown {
		t.masterKnown = true
		if m, err := zpl.DecodeMaster(a.entries(zpl.MasterNodeObject)); err == nil {
			t.master = &m
		}
	}
	return t.master
}

// layouts returns how attributes are laid out, or nil while it is not known.
func (a *applier) layouts() *zpl.Registry {
	t := &a.tables
	if t.layoutKnown {
		return t.registry
	}
	t.layoutKnown = true
	m := a.master()
	if m == nil || m.SAAttrs == 0 {
		return nil
	}
	registry, layouts, err := zpl.DecodeSAMaster(a.entries(m.SAAttrs))
	if err != nil || registry == 0 || layouts == 0 {
		return nil
	}
	if r, err := zpl.NewRegistry(a.entries(registry), a.entries(layouts)); err == nil {
		t.registry = r
	}
	return t.registry
}

// setAttr sets the attributes of an object's node, all but its size.
func (a *applier) setAttr(o *object, za *zpl.Attr) error {
	attr, err := attrOf(za)
	if err != nil {
		a.res.fail(fmt.Sprintf("object %d", o.number), err)
		attr.Incomplete = true
	}
	if len(attr.Target) > filetree.MaxTarget || strings.IndexByte(attr.Target, 0) >= 0 {
		return fmt.Errorf("target of %d bytes, or with a NUL: %w", len(attr.Target), filetree.ErrInvalid)
	}
	attr.Xattrs = slices.DeleteFunc(attr.Xattrs, func(x filetree.Xattr) bool {
		if len(x.Name) <= filetree.MaxName {
			return false
		}
		a.res.fail(fmt.Sprintf("object %d", o.number), fmt.Errorf("extended attribute with a name of %d bytes is left out: Linux has none like it", len(x.Name)))
		return true
	})
	attr.Ino, attr.Gen = o.number, o.gen
	if o.xdir != 0 || za.Xattr != 0 {
		a.owners[o.number] = true
		if err := a.tree.Keep(key(keyNames, o.number), nil); err != nil { // attr has none of them
			return err
		}
	}
	o.xdir = za.Xattr
	if err := a.state.set(o); err != nil {
		return err
	}
	return a.tree.SetAttr(o.node, func(to *filetree.Attr) {
		if to.Kind == filetree.Symlink && !za.Present.Has(zpl.HasSymlink) {
			attr.Target = to.Target // it is the link's data
		}
		// What is missing of the content is not in an increment; a full unit brings all of it.
		attr.Incomplete = attr.Incomplete || to.Incomplete && !a.full
		*to = attr
	})
}

// attrOf is what attributes say. On error it is all but what the error is about.
func attrOf(za *zpl.Attr) (filetree.Attr, error) {
	attr := headAttr(&zpl.Head{Mode: za.Mode, UID: za.UID, GID: za.GID, Flags: za.Flags})
	attr.Mtime, attr.Ctime, attr.Btime = za.Mtime, za.Ctime, za.Crtime
	if attr.Kind == filetree.CharDev || attr.Kind == filetree.BlkDev {
		attr.Major, attr.Minor = zpl.SplitRdev(za.Rdev)
	}
	if attr.Kind == filetree.Symlink {
		attr.Target = string(za.Symlink)
	}
	var err error
	if attr.Xattrs, err = za.Xattrs(); err != nil {
		return attr, err
	}
	acl, ok, err := za.ACLXattr()
	if err != nil {
		return attr, err
	}
	if ok {
		attr.Xattrs = append(attr.Xattrs, acl)
	}
	if za.ProjID != 0 {
		attr.Xattrs = append(attr.Xattrs, filetree.Xattr{Name: ProjectXattr, Value: strconv.AppendUint(nil, za.ProjID, 10)})
	}
	filetree.SortXattrs(attr.Xattrs)
	return attr, nil
}

// putAside decodes what later has put aside.
func (a *applier) putAside() error {
	for k, err := range a.tree.KeptFrom([]byte{keyBonus}, []byte{keyBonus + 1}) {
		if err != nil {
			return err
		}
		n := number(k.Key, 0)
		if len(k.Value) < 5 {
			return errKept
		}
		if err := a.putAsideOne(n, binary.BigEndian.Uint32(k.Value), k.Value[4] != 0, k.Value[5:]); err != nil {
			return fmt.Errorf("object %d: %w", n, err)
		}
	}
	return nil
}

func (a *applier) putAsideOne(n uint64, bonusType uint32, hasSpill bool, bonus []byte) error {
	o, err := a.state.get(n)
	if err != nil || o == nil {
		return err
	}
	var spill []byte
	if o.spill {
		packed, err := a.tree.Kept(key(keySpill, n))
		if err != nil {
			return err
		}
		if spill, err = unpack(packed); err != nil {
			return err
		}
	} else if hasSpill {
		return fmt.Errorf("its spill block is nowhere: %w", filetree.ErrInvalid)
	}
	za, err := a.layouts().Decode(bonusType, bonus, spill, a.order)
	if errors.Is(err, zpl.ErrTwice) && !a.tellsSpill() {
		// There is no spill block any more (section 3.6).
		o.spill = false
		if err := a.tree.Keep(key(keySpill, n), nil); err != nil {
			return err
		}
		za, err = a.layouts().Decode(bonusType, bonus, nil, a.order)
	}
	if err != nil {
		return err
	}
	was, err := a.tree.Attr(o.node)
	if err != nil {
		return err
	}
	if err := a.setAttr(o, &za); err != nil {
		return err
	}
	if a.full && a.past.small.has(n) {
		return a.setSmall(o, &was, &za)
	}
	return nil
}

// writeTarget is a WRITE to a symbolic link of an old file system: its target.
func (a *applier) writeTarget(o *object, rec *Record, data []byte) error {
	if rec.Start != 0 {
		return nil
	}
	n := 0
	for n < len(data) && data[n] != 0 { // its length is that of the bonus, and there is no NUL in it
		n++
	}
	if n > filetree.MaxTarget {
		return fmt.Errorf("target of more than %d bytes: %w", filetree.MaxTarget, filetree.ErrInvalid)
	}
	target := string(data[:n])
	return a.tree.SetAttr(o.node, func(attr *filetree.Attr) { attr.Target = target })
}
