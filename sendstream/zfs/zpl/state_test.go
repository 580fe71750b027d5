package zpl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/secrate/secrate/internal/filetree"
)

// This file applies records to a dataset as sections 3 and 7.3 of the specification
// say, the plain way: it keeps everything, block by block, and decodes a tree from it
// when a stream has ended. It is what a cleverer reader can be compared with.

// A dataset is the state of a file system after a stream.
type dataset struct {
	order   binary.ByteOrder
	objects map[uint64]*object
	base    *dataset // what the stream was applied to
	// Of the stream that is being applied:
	flags   uint32
	spilled map[uint64]bool // objects whose spill block came
}

// An object is what a stream has said of one.
type object struct {
	typ, bonusType uint32
	blockSize      uint64
	slots          uint64
	hasSpill       bool // as OBJECT says
	bonus, spill   []byte
	zap            map[uint64][]byte // blocks of a ZAP, by number
	content        content           // of everything else
}

func newDataset(order binary.ByteOrder) *dataset {
	return &dataset{order: order, objects: make(map[uint64]*object)}
}

// clone returns a copy that another stream can be applied to.
func (d *dataset) clone() *dataset {
	c := newDataset(d.order)
	c.base = d
	for n, o := range d.objects {
		p := *o
		p.zap, p.content = maps.Clone(o.zap), slices.Clone(o.content)
		c.objects[n] = &p
	}
	return c
}

// start begins a stream with those flags.
func (d *dataset) start(flags uint32) {
	d.flags, d.spilled = flags, make(map[uint64]bool)
}

// add returns a+b, or the highest number.
func add(a, b uint64) uint64 {
	if a+b < a {
		return math.MaxUint64
	}
	return a + b
}

// apply applies a record between BEGIN and END.
func (d *dataset) apply(r *record) error {
	if r.typ == recObject {
		return d.setObject(r)
	}
	if r.typ == recFreeObjects {
		first, end := r.u64(8), add(r.u64(8), r.u64(16))
		maps.DeleteFunc(d.objects, func(n uint64, _ *object) bool { return n >= first && n < end })
		return nil
	}
	n := r.u64(8)
	o := d.objects[n]
	if o == nil {
		return fmt.Errorf("object %d is not there", n)
	}
	switch r.typ {
	case recWrite:
		return o.write(r.u64(24), blob{r.payload, r.u8(50), r.u64(32)})
	case recEmbedded:
		off, length := r.u64(16), r.u64(24)
		data := blob{r.payload[:r.u32(52)], r.u8(40), uint64(r.u32(48))}
		if off < 1<<63 {
			return o.write(off, data)
		}
		// A spill block in the wrong record (section 1.7).
		b, err := data.bytes()
		if err != nil {
			return err
		}
		if _, layout, _, err := saHeader(b); off == -(2*length) && o.hasSpill && !d.spilled[n] && err == nil && layout != 0 {
			o.spill, d.spilled[n] = b, true
		}
	case recFree:
		o.free(r.u64(16), add(r.u64(16), r.u64(24)))
	case recSpill:
		if d.flags&flagSpillBlock == 0 || r.u8(32)&spillUnmodified == 0 {
			o.spill, d.spilled[n] = r.payload, true
		}
	default:
		return fmt.Errorf("record of type %d", r.typ)
	}
	return nil
}

// setObject applies an OBJECT record.
func (d *dataset) setObject(r *record) error {
	n := r.u64(8)
	o := &object{
		typ: r.u32(16), bonusType: r.u32(20), blockSize: uint64(r.u32(24)), slots: max(1, uint64(r.u8(34))),
		hasSpill: r.u8(35)&objectSpill != 0, bonus: r.payload[:r.u32(28)],
	}
	for i := n + 1; i < n+o.slots; i++ {
		delete(d.objects, i)
	}
	if old := d.objects[n]; old != nil && old.same(o, d.order) {
		o.spill, o.content = old.spill, old.content
		if old.blockSize == o.blockSize {
			o.zap = old.zap
		}
		if d.flags&flagSpillBlock != 0 && !o.hasSpill {
			o.spill = nil
		}
	}
	if o.zap == nil && IsZAP(o.typ) {
		o.zap = make(map[uint64][]byte)
	}
	d.objects[n] = o
	return nil
}

// same reports whether next, which has the same number, is the same object (section
// 3.3).
func (o *object) same(next *object, order binary.ByteOrder) bool {
	if o.slots != next.slots || o.typ != next.typ {
		return false
	}
	if o.hasAttrs() && next.hasAttrs() {
		a, aOK := DecodeHead(o.bonusType, o.bonus, order)
		b, bOK := DecodeHead(next.bonusType, next.bonus, order)
		return aOK == bOK && a.Gen == b.Gen
	}
	return o.bonusType == next.bonusType
}

// hasAttrs reports whether the bonus is one of files.
func (o *object) hasAttrs() bool { return o.bonusType == TypeZnode || o.bonusType == TypeSA }

func (o *object) write(off uint64, data blob) error {
	if o.zap == nil {
		o.content.put(off, data)
		return nil
	}
	if off%o.blockSize != 0 || data.size != o.blockSize {
		return fmt.Errorf("%d bytes at %d of a ZAP with blocks of %d", data.size, off, o.blockSize)
	}
	b, err := data.bytes()
	o.zap[off/o.blockSize] = b
	return err
}

func (o *object) free(off, end uint64) {
	o.content.punch(off, end)
	maps.DeleteFunc(o.zap, func(i uint64, _ []byte) bool {
		return i*o.blockSize >= off && (i+1)*o.blockSize <= end
	})
}

// A blob is data as it came.
type blob struct {
	payload     []byte
	compression uint8
	size        uint64
}

func (b blob) bytes() ([]byte, error) { return decompress(b.compression, b.payload, int(b.size)) }

// A content is the data of an object: pieces in order that do not overlap, with holes
// between them.
type content []piece

// A piece is the bytes from off to end: those of a blob, but for the first skip ones.
type piece struct {
	off, end uint64
	blob     blob
	skip     uint64
}

// after returns the index of the first piece that ends behind off.
func (c content) after(off uint64) int {
	i, _ := slices.BinarySearchFunc(c, off, func(p piece, off uint64) int {
		if p.end <= off {
			return -1
		}
		return 1
	})
	return i
}

// punch makes a hole.
func (c *content) punch(off, end uint64) {
	i := c.after(off)
	j := i
	var rest []piece
	for ; j < len(*c) && (*c)[j].off < end; j++ {
		p := (*c)[j]
		if p.off < off {
			q := p
			q.end = off
			rest = append(rest, q)
		}
		if p.end > end {
			p.skip += end - p.off
			p.off = end
			rest = append(rest, p)
		}
	}
	*c = slices.Replace(*c, i, j, rest...)
}

func (c *content) put(off uint64, data blob) {
	c.punch(off, off+data.size)
	*c = slices.Insert(*c, c.after(off), piece{off: off, end: off + data.size, blob: data})
}

// each calls f with the bytes from off to end, in pieces; holes are zeros.
func (c content) each(off, end uint64, f func([]byte)) error {
	var zeros [1 << 16]byte
	hole := func(to uint64) {
		for off < to {
			n := min(to-off, uint64(len(zeros)))
			f(zeros[:n])
			off += n
		}
	}
	for _, p := range c[c.after(off):] {
		if p.off >= end {
			break
		}
		hole(p.off)
		b, err := p.blob.bytes()
		if err != nil {
			return err
		}
		to := min(p.end, end)
		f(b[p.skip+off-p.off : p.skip+to-p.off])
		off = to
	}
	hole(end)
	return nil
}

// bytes returns the first size bytes.
func (c content) bytes(size uint64) ([]byte, error) {
	if size > 1<<20 {
		return nil, fmt.Errorf("%d bytes are too many for a name or an attribute", size)
	}
	b := make([]byte, 0, size)
	err := c.each(0, size, func(p []byte) { b = append(b, p...) })
	return b, err
}

// A node is a path of the tree of a dataset.
type node struct {
	path   string
	number uint64
	object *object
	attr   *Attr
	target string
	xattrs []filetree.Xattr
}

// A tree is what is decoded from a dataset when a stream has ended.
type tree struct {
	*dataset
	master Master
	attrs  map[uint64]*Attr // of all objects that have some
	nodes  []node
	seen   map[uint64]bool // in the tree, or part of it
}

// decode decodes the tree and checks that nothing is left over.
func (d *dataset) decode() (*tree, error) {
	t := &tree{dataset: d, attrs: make(map[uint64]*Attr), seen: make(map[uint64]bool)}
	if err := t.decodeAttrs(); err != nil {
		return nil, err
	}
	if err := t.walk(t.master.Root, ".", 0); err != nil {
		return nil, err
	}
	return t, t.checkRest()
}

// decodeAttrs decodes the master node, and the attributes of all objects.
func (t *tree) decodeAttrs() error {
	d := t.dataset
	entries, err := d.entries(MasterNodeObject)
	if err != nil {
		return err
	}
	if t.master, err = DecodeMaster(entries); err != nil {
		return err
	}
	registry, err := d.registry(&t.master)
	if err != nil {
		return err
	}
	for n, o := range d.objects {
		if !o.hasAttrs() {
			continue
		}
		a, err := registry.Decode(o.bonusType, o.bonus, o.spill, d.order)
		if err != nil {
			return fmt.Errorf("object %d: %w", n, err)
		}
		if err := checkAttr(o, &a, d.order); err != nil {
			return fmt.Errorf("object %d: %w", n, err)
		}
		t.attrs[n] = &a
	}
	return nil
}

// checkBase checks that the rule for what is the same object as in the base (section
// 3.3) says of each what the time of its creation says.
func (t *tree) checkBase() error {
	if t.base == nil {
		return nil
	}
	base := &tree{dataset: t.base, attrs: make(map[uint64]*Attr)}
	if err := base.decodeAttrs(); err != nil {
		return err
	}
	for n, a := range t.attrs {
		b := base.attrs[n]
		if b == nil {
			continue
		}
		same := base.objects[n].same(t.objects[n], t.order)
		if same != (a.Crtime == b.Crtime) {
			return fmt.Errorf("object %d: same %v, created at %v and %v", n, same, b.Crtime, a.Crtime)
		}
	}
	return nil
}

// registry reads the layouts of the dataset.
func (d *dataset) registry(m *Master) (*Registry, error) {
	if m.SAAttrs == 0 {
		return nil, nil
	}
	entries, err := d.entries(m.SAAttrs)
	if err != nil {
		return nil, err
	}
	registry, layouts, err := DecodeSAMaster(entries)
	if err != nil {
		return nil, err
	}
	attrs, err := d.entries(registry)
	if err != nil {
		return nil, err
	}
	lists, err := d.entries(layouts)
	if err != nil {
		return nil, err
	}
	return NewRegistry(attrs, lists)
}

// entries returns the entries of a ZAP, after checking what real ones promise.
func (d *dataset) entries(n uint64) ([]Entry, error) {
	o := d.objects[n]
	if o == nil || o.zap == nil {
		return nil, fmt.Errorf("object %d is no ZAP", n)
	}
	entries, err := DecodeZAP(o.zap, d.order)
	if err == nil {
		err = checkZAP(o.zap, d.order)
	}
	if err != nil {
		return nil, fmt.Errorf("object %d: %w", n, err)
	}
	return entries, nil
}

// walk adds the object n at path, and what is below it.
func (t *tree) walk(n uint64, path string, depth int) error {
	o, a := t.objects[n], t.attrs[n]
	if o == nil || a == nil {
		return fmt.Errorf("%q: object %d is not there", path, n)
	}
	nd := node{path: path, number: n, object: o, attr: a}
	kind := KindOf(a.Mode)
	if t.seen[n] && kind == filetree.Dir || depth > 4096 {
		return fmt.Errorf("%q: directory %d is there twice", path, n)
	}
	t.seen[n] = true
	var err error
	if nd.xattrs, err = t.xattrs(a); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if kind == filetree.Symlink {
		target := a.Symlink
		if !a.Present.Has(HasSymlink) {
			if target, err = o.content.bytes(a.Size); err != nil {
				return fmt.Errorf("%q: %w", path, err)
			}
		}
		if uint64(len(target)) != a.Size {
			return fmt.Errorf("%q: target of %d bytes, size %d", path, len(target), a.Size)
		}
		nd.target = string(target)
	}
	t.nodes = append(t.nodes, nd)
	if kind != filetree.Dir {
		return nil
	}
	if o.typ != TypeDirectory {
		return fmt.Errorf("%q: a directory of type %d", path, o.typ)
	}
	entries, err := t.entries(n)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	for i := range entries {
		e, err := entries[i].Dirent()
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		child := string(entries[i].Name)
		if path != "." {
			child = path + "/" + child
		}
		if err := t.walk(e.Object, child, depth+1); err != nil {
			return err
		}
		if k := KindOf(t.attrs[e.Object].Mode); k != e.Kind {
			return fmt.Errorf("%q: %v, but %v in its directory", child, k, e.Kind)
		}
	}
	return nil
}

// xattrs returns the extended attributes of a file, wherever they are.
func (t *tree) xattrs(a *Attr) ([]filetree.Xattr, error) {
	inline, err := a.Xattrs()
	if err != nil || a.Xattr == 0 {
		return inline, err
	}
	entries, err := t.entries(a.Xattr)
	if err != nil {
		return nil, err
	}
	t.seen[a.Xattr] = true
	var dir []filetree.Xattr
	for i := range entries {
		e, err := entries[i].Dirent()
		if err != nil {
			return nil, err
		}
		va := t.attrs[e.Object]
		if va == nil || va.Flags&FlagXattr == 0 {
			return nil, fmt.Errorf("object %d is no extended attribute", e.Object)
		}
		value, err := t.objects[e.Object].content.bytes(va.Size)
		if err != nil {
			return nil, err
		}
		t.seen[e.Object] = true
		dir = append(dir, filetree.Xattr{Name: XattrName(string(entries[i].Name)), Value: value})
	}
	return MergeXattrs(inline, dir), nil
}

// checkRest checks that every object with attributes has a place: in the tree, in the
// delete queue, or as an extended attribute of something in the delete queue.
func (t *tree) checkRest() error {
	queue, err := t.entries(t.master.DeleteQueue)
	if err != nil {
		return err
	}
	deleted, err := DecodeDeleteQueue(queue)
	if err != nil {
		return err
	}
	for _, n := range deleted {
		a := t.attrs[n]
		if a == nil || t.seen[n] || a.Links != 0 && a.Flags&FlagXattr == 0 {
			return fmt.Errorf("object %d is in the delete queue and not deleted", n)
		}
		t.seen[n] = true
		if _, err := t.xattrs(a); err != nil {
			return err
		}
	}
	for n, a := range t.attrs {
		if !t.seen[n] && n != t.master.Shares {
			return fmt.Errorf("object %d with %d links has no place", n, a.Links)
		}
	}
	return nil
}

// checkAttr checks what is true of the attributes of every real object.
func checkAttr(o *object, a *Attr, order binary.ByteOrder) error {
	h, ok := DecodeHead(o.bonusType, o.bonus, order)
	if want := (Head{a.Mode, a.Size, a.Gen, a.UID, a.GID, a.Parent, a.Flags}); !ok || h != want {
		return fmt.Errorf("head %+v, want %+v", h, want)
	}
	if (a.Flags&FlagProjID != 0) != a.Present.Has(HasProjID) {
		return fmt.Errorf("flags %#x, attributes %#x", a.Flags, a.Present)
	}
	if len(a.Other) > 0 {
		return fmt.Errorf("attribute %d is not known", a.Other[0].ID)
	}
	acl, err := a.ACL()
	if err != nil {
		return err
	}
	if len(acl.ACEs) == 0 || !a.TrivialACL() {
		return fmt.Errorf("ACL %+v, flags %#x", acl, a.Flags)
	}
	for i := range acl.ACEs {
		if !acl.ACEs[i].short() {
			return fmt.Errorf("trivial ACL %+v", acl)
		}
	}
	if a.order == binary.LittleEndian {
		if got := AppendACEs(nil, acl.ACEs); !bytes.Equal(got, a.dacl) {
			return fmt.Errorf("ACL %x written as %x", a.dacl, got)
		}
	}
	return nil
}

// checkZAP checks what is true of every real ZAP: a pointer table leads to its leaves
// and to nothing else.
func checkZAP(blocks map[uint64][]byte, order binary.ByteOrder) error {
	leaves, pointers := make(map[uint64]bool), make(map[uint64]bool)
	var header Header
	for i, b := range blocks {
		block, err := DecodeBlock(b, i, order)
		if err != nil {
			return err
		}
		switch block.Kind {
		case Micro:
			if len(blocks) != 1 {
				return errors.New("micro ZAP of several blocks")
			}
			return nil
		case FatHeader:
			header = block.Header
		case Leaf:
			leaves[i] = true
			if err := checkPrefix(&block, b); err != nil {
				return err
			}
		}
		for p := range block.Pointers() {
			pointers[p] = true
		}
	}
	if !maps.Equal(leaves, pointers) || uint64(len(leaves)) != header.Leaves {
		return fmt.Errorf("leaves %v, pointers %v, header %+v", leaves, pointers, header)
	}
	return nil
}

// checkPrefix checks that the hashes of a leaf's names begin as its header says.
func checkPrefix(leaf *Block, b []byte) error {
	for off := leafHeads + len(b)/32*2; off < len(b); off += chunkSize {
		hash := leaf.Order.Uint64(b[off+16:])
		if b[off] == chunkEntry && hash>>(64-leaf.PrefixLen) != leaf.Prefix {
			return fmt.Errorf("hash %#x in a leaf of prefix %#x, %d bits", hash, leaf.Prefix, leaf.PrefixLen)
		}
	}
	return nil
}
