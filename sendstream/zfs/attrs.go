package zfs

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
)

// ProjectXattr is the name under which a project id is kept with the extended attributes,
// in decimal. It is ours, as [zpl.ACLXattr] is.
const ProjectXattr = "secrate.project"

// headAttr is what the beginning of a bonus says.
func headAttr(h *zpl.Head) filetree.Attr {
	return filetree.Attr{Kind: zpl.KindOf(h.Mode), Mode: uint32(h.Mode & 0o7777), UID: h.UID.RID(), GID: h.GID.RID(), Flags: h.Flags.FS()}
}

// entries returns the entries of a table, or nil if it is not there, or not all of it.
func (a *applier) entries(n uint64) []zpl.Entry {
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

// tables returns the master node, or nil while it is not known.
func (a *applier) tables() *zpl.Master {
	if a.master == nil {
		if m, err := zpl.DecodeMaster(a.entries(zpl.MasterNodeObject)); err == nil {
			a.master = &m
		}
	}
	return a.master
}

// layouts returns how attributes are laid out, or nil while it is not known.
func (a *applier) layouts() *zpl.Registry {
	if a.registry != nil {
		return a.registry
	}
	m := a.tables()
	if m == nil || m.SAAttrs == 0 {
		return nil
	}
	registry, layouts, err := zpl.DecodeSAMaster(a.entries(m.SAAttrs))
	if err != nil || registry == 0 || layouts == 0 {
		return nil
	}
	if r, err := zpl.NewRegistry(a.entries(registry), a.entries(layouts)); err == nil {
		a.registry = r
	}
	return a.registry
}

// setAttr sets the attributes of an object's node, all but its size. kept is what the node
// has of attributes that are not among those at hand, if they are not all; else nil.
func (a *applier) setAttr(o *object, za *zpl.Attr, kept *filetree.Attr) error {
	attr, err := attrOf(za)
	if err != nil {
		a.res.fail(fmt.Sprintf("object %d", o.number), err)
		attr.Incomplete = true
	}
	if kept != nil {
		attr.Target = kept.Target
		attr.Xattrs = zpl.MergeXattrs(attr.Xattrs, kept.Xattrs)
	}
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
		if to.Kind == filetree.Symlink && !za.Present.Has(zpl.HasSymlink) && kept == nil {
			attr.Target = to.Target // it is the link's data
		}
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
	var numbers []uint64
	for k, err := range a.tree.KeptFrom([]byte{keyBonus}, []byte{keyBonus + 1}) {
		if err != nil {
			return err
		}
		numbers = append(numbers, number(k.Key, 0))
	}
	for _, n := range numbers {
		if err := a.putAsideOne(n); err != nil {
			return fmt.Errorf("object %d: %w", n, err)
		}
	}
	// A spill block of an object that did not announce one.
	var left [][]byte
	for k, err := range a.tree.KeptFrom([]byte{keySpill}, []byte{keySpill + 1}) {
		if err != nil {
			return err
		}
		left = append(left, k.Key)
	}
	for _, k := range left {
		if err := a.tree.Keep(k, nil); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) putAsideOne(n uint64) error {
	o, err := a.state.get(n)
	if err != nil || o == nil {
		return err
	}
	bonus, err := a.tree.Kept(key(keyBonus, n))
	if err != nil || len(bonus) < 5 {
		return err
	}
	packedSpill, err := a.tree.Kept(key(keySpill, n))
	if err != nil {
		return err
	}
	spill, err := unpack(packedSpill)
	if err != nil {
		return err
	}
	za, err := a.layouts().Decode(binary.BigEndian.Uint32(bonus), bonus[5:], spill, a.order)
	if err != nil {
		return err
	}
	var kept *filetree.Attr
	if spill == nil && bonus[4] != 0 { // there is one, and it is what it was
		now, err := a.tree.Attr(o.node)
		if err != nil {
			return err
		}
		kept = &now
		if za.Present.Has(zpl.HasSymlink) {
			kept.Target = string(za.Symlink)
		}
	}
	if err := a.setAttr(o, &za, kept); err != nil {
		return err
	}
	for _, k := range []byte{keyBonus, keySpill} {
		if err := a.tree.Keep(key(k, n), nil); err != nil {
			return err
		}
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
