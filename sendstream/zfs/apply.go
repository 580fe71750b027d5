package zfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
)

// ErrState is wrapped by Apply's error when what is kept of earlier units is not the state
// that the unit starts from.
var ErrState = errors.New("not the state that the stream starts from")

// ErrResumed is wrapped by Apply's error for a unit that goes on in the midst of a snapshot.
var ErrResumed = errors.New("the stream begins in the midst of a snapshot, and of its beginning nothing was kept: send it from the beginning, without -t")

// A Result says what a unit brought.
type Result struct {
	Counts [numTypes]int64 // records, by type
	Bytes  int64           // of data, decoded, that were handed on

	// Failed has what a history cannot hold, the first MaxFailed; Failures says how many.
	Failed   []Failure
	Failures int
}

// A Failure is something that was left out.
type Failure struct {
	What string // a name, or an object
	Err  error
}

// MaxFailed bounds the failures that a Result names.
const MaxFailed = 1000

func (r *Result) fail(what string, err error) {
	r.Failures++
	if len(r.Failed) < MaxFailed {
		r.Failed = append(r.Failed, Failure{what, err})
	}
}

// VolumeName is the name of the one file of a volume's tree: its content.
const VolumeName = "volume"

// An applier is the state of one Apply.
type applier struct {
	unit  *Unit
	tree  Tree
	state *state
	order binary.ByteOrder
	dec   Decoder
	res   Result

	full   bool
	noData bool  // see Options
	past   *past // of a full unit
	tables tables

	touched map[dirBlock]bool
	ended   []endedNode
	moved   []filetree.NodeID // directories that got a name
	owners  map[uint64]bool   // objects whose extended attributes are to be put together
	spilled numberSet         // objects of which a SPILL record came
}

// An endedNode is that of an object that is no more, or another one now.
type endedNode struct {
	number uint64
	node   filetree.NodeID
}

// Options say how a unit is applied.
type Options struct {
	// NoData says where the content of files has changed, by Tree.Changed, in place of
	// writing it: the caller reads it elsewhere. A full unit is applied with its data all the
	// same, and so is that of a volume.
	NoData bool
}

// Apply runs the records of u on t. An incremental unit needs the state that Apply has
// left in t of the unit it starts from; a full one is compared with what t has, whatever
// that is: what is the same is not touched.
//
// A stream that is malformed, or whose objects make no file system, gives a
// [*FormatError] with the offset of the record; it wraps [filetree.ErrInvalid] in the
// latter case. Other errors are those of ctx, the input and t, [ErrState] and
// [ErrResumed]. After an error t holds a part of the unit and has to be dropped.
func (u *Unit) Apply(ctx context.Context, t Tree, o Options) (Result, error) {
	if _, _, resumed := u.Resume(); resumed {
		return Result{}, &FormatError{u.Offset, ErrResumed}
	}
	a := &applier{unit: u, tree: t, order: binary.LittleEndian, full: !u.Incremental(),
		noData:  o.NoData && u.Incremental() && u.ObjectSet == FileSystem,
		touched: map[dirBlock]bool{}, owners: map[uint64]bool{}, spilled: numberSet{}}
	if u.BigEndian {
		a.order = binary.BigEndian
	}
	if err := a.begin(); err != nil {
		return a.res, err
	}
	for n := 0; ; n++ {
		if n%64 == 0 {
			if err := ctx.Err(); err != nil {
				return a.res, err
			}
		}
		rec, err := u.Next()
		if err == io.EOF {
			err := a.finish(ctx)
			if err != nil {
				err = refused(u.Offset, "snapshot "+u.Name, err)
			}
			return a.res, err
		}
		if err != nil {
			return a.res, err
		}
		a.res.Counts[rec.Type]++
		if err := a.record(&rec); err != nil {
			return a.res, refused(rec.Offset, fmt.Sprintf("%v of object %d", rec.Type, rec.Object), err)
		}
	}
}

// refused makes of an error that the stream is to blame for a FormatError.
func refused(offset int64, what string, err error) error {
	if _, ok := errors.AsType[*FormatError](err); ok {
		return err
	}
	err = fmt.Errorf("%s: %w", what, err)
	if _, ok := errors.AsType[*zpl.FormatError](err); ok || errors.Is(err, filetree.ErrInvalid) || errors.Is(err, filetree.ErrNotExist) || errors.Is(err, ErrEncoded) {
		return &FormatError{offset, err}
	}
	return err
}

// begin makes sure that the unit starts from what is there.
func (a *applier) begin() error {
	var err error
	if a.state, err = newState(a.tree); err != nil {
		return err
	}
	if a.full {
		return a.beginFull()
	}
	have, err := a.tree.Kept(StateKey)
	if err != nil {
		return err
	}
	if !stateOf(have, GUID(a.unit.FromGUID)) {
		return fmt.Errorf("zfs: %s starts from the snapshot with GUID %d: %w", a.unit.Name, a.unit.FromGUID, ErrState)
	}
	return nil
}

func (a *applier) record(rec *Record) error {
	switch rec.Type {
	case Object:
		return a.object(rec)
	case FreeObjects:
		end := rec.Object + rec.Count
		if end < rec.Object {
			end = math.MaxUint64
		}
		return a.state.each(rec.Object, end, a.drop)
	case ObjectRange:
		return nil
	}
	o, err := a.state.get(rec.Object)
	if err != nil {
		return err
	}
	if o == nil {
		return fmt.Errorf("the stream has not described it: %w", filetree.ErrInvalid)
	}
	switch rec.Type {
	case Write:
		return a.write(o, rec)
	case WriteEmbedded:
		if rec.EmbeddedSpill() {
			return a.spill(o, rec)
		}
		if rec.Start > math.MaxInt64 {
			return nil // no part of a file
		}
		return a.write(o, rec)
	case Free:
		return a.free(o, rec)
	case Spill:
		return a.spill(o, rec)
	}
	return fmt.Errorf("record in the midst of a snapshot: %w", filetree.ErrInvalid)
}

// object is OBJECT: it describes an object that is new, or changed, or neither (section
// 3.3).
func (a *applier) object(rec *Record) error {
	n := rec.Object
	if rec.Slots > 1 {
		if err := a.state.each(n+1, n+uint64(rec.Slots), a.drop); err != nil {
			return err
		}
	}
	head, hasHead := zpl.DecodeHead(rec.BonusType, rec.Payload, a.order)
	old, err := a.state.get(n)
	if err != nil {
		return err
	}
	o := &object{number: n, typ: rec.ObjectType, bonusType: rec.BonusType, blockSize: rec.BlockSize, slots: rec.Slots,
		hasGen: hasHead, gen: head.Gen}
	if old != nil {
		same, err := a.same(old, o, &head)
		if err == nil && !same {
			err = a.drop(n)
		}
		if err != nil {
			return err
		}
		if !same {
			old = nil
		}
	}
	if old != nil {
		o.node, o.xdir, o.size, o.spill, o.saved = old.node, old.xdir, old.size, old.spill, old.saved
		// A full unit brings all blocks, and all come anew where they have another size.
		if o.zap() && (a.full || old.blockSize != o.blockSize) {
			if err := a.dropBlocks(old, 0, math.MaxUint64); err != nil {
				return err
			}
		}
		if o.spill && (a.full || a.tellsSpill() && !rec.HasSpill) {
			if err := a.tree.Keep(key(keySpill, n), nil); err != nil {
				return err
			}
			o.spill = false
		}
	}
	if hasHead && isFile(o) {
		if err := a.file(o, &head, rec); err != nil {
			return err
		}
	} else if a.unit.ObjectSet == Volume && n == volumeObject {
		if err := a.volumeNode(o); err != nil {
			return err
		}
	}
	if a.full {
		a.past.seen.add(n)
	}
	return a.state.set(o)
}

// tellsSpill reports whether OBJECT says whether there is a spill block. Senders before
// 0.8 do not.
func (a *applier) tellsSpill() bool { return a.unit.Flags&FlagSpillBlock != 0 }

// isFile reports whether an object with attributes is a file of the file system.
func isFile(o *object) bool {
	return (o.bonusType == zpl.TypeSA || o.bonusType == zpl.TypeZnode) && (o.typ == zpl.TypeFile || o.typ == zpl.TypeDirectory)
}

// same reports whether now is the object that old was and not another with its number.
func (a *applier) same(old, now *object, head *zpl.Head) (bool, error) {
	attrs := func(o *object) bool { return o.bonusType == zpl.TypeSA || o.bonusType == zpl.TypeZnode }
	if old.slots != now.slots || old.typ != now.typ {
		return false, nil
	}
	if !attrs(old) || !attrs(now) {
		return old.bonusType == now.bonusType, nil
	}
	if old.hasGen != now.hasGen || old.gen != now.gen || old.xattr != (head.Flags&zpl.FlagXattr != 0) {
		return false, nil
	}
	if !a.full || old.node == 0 {
		return true, nil
	}
	// Of another dataset, perhaps, where numbers and generations are the same by chance:
	// the node is kept if it can be, but not that of the root, which may be another object.
	if old.node == filetree.RootNode {
		return false, nil
	}
	attr, err := a.tree.Attr(old.node)
	return attr.Kind == zpl.KindOf(head.Mode), err
}

// drop forgets an object. Its node is ended when names are dealt with.
func (a *applier) drop(n uint64) error {
	o, err := a.state.get(n)
	if o == nil || err != nil {
		return err
	}
	if o.zap() || o.typ == typeVolumeProps {
		if err := a.dropBlocks(o, 0, math.MaxUint64); err != nil {
			return err
		}
	}
	if o.node == filetree.RootNode {
		if !a.full {
			return fmt.Errorf("the root of the file system is gone: %w", filetree.ErrInvalid)
		}
		// Another object will be it, or this one again.
	} else if o.node != 0 {
		a.ended = append(a.ended, endedNode{n, o.node})
	}
	if o.node != 0 && o.typ == typeVolume {
		if err := a.dropVolume(); err != nil {
			return err
		}
	}
	if o.xattr {
		if err := a.touchXattrs(n); err != nil {
			return err
		}
	}
	if a.full {
		a.past.forget(n)
	}
	for _, k := range []byte{keyNames, keyValue, keyBonus, keySpill, keySmall} {
		if err := a.tree.Keep(key(k, n), nil); err != nil {
			return err
		}
	}
	return a.state.remove(n)
}

// file is the part of OBJECT that is about a file, directory, link or device.
func (a *applier) file(o *object, head *zpl.Head, rec *Record) error {
	if o.xattr = head.Flags&zpl.FlagXattr != 0; o.xattr {
		return a.xattrObject(o, head)
	}
	attr := headAttr(head)
	if !attr.Kind.Valid() {
		return fmt.Errorf("mode %#o: %w", head.Mode, filetree.ErrInvalid)
	}
	if (attr.Kind == filetree.Dir) != (o.typ == zpl.TypeDirectory) {
		return fmt.Errorf("a %v of type %d: %w", attr.Kind, o.typ, filetree.ErrInvalid)
	}
	if attr.Kind == filetree.File && head.Size > math.MaxInt64 {
		return fmt.Errorf("size %d: %w", head.Size, filetree.ErrInvalid)
	}
	was, err := a.nodeOf(o, attr)
	if err != nil {
		return err
	}
	if was != nil && was.Kind != attr.Kind {
		return fmt.Errorf("a %v that was a %v: %w", attr.Kind, was.Kind, filetree.ErrInvalid)
	}
	za, err := a.layouts().Decode(rec.BonusType, rec.Payload, nil, a.order)
	if attr.Kind == filetree.File {
		small := false
		if a.full && was != nil {
			small = a.compare(o, was, head, &za, err)
		}
		if !small {
			if err := a.tree.Truncate(o.node, int64(head.Size)); err != nil {
				return err
			}
		}
	}
	// The layout may come yet, and a spill block, even where nothing is said of one.
	if err != nil || rec.HasSpill || rec.BonusType == zpl.TypeSA && !a.tellsSpill() {
		return a.later(o, rec)
	}
	return a.setAttr(o, &za)
}

// nodeOf makes sure that an object has a node: that of the source's root for the root.
// It returns what attributes the node had, nil if it is new.
func (a *applier) nodeOf(o *object, attr filetree.Attr) (*filetree.Attr, error) {
	if o.node == 0 {
		m := a.master()
		switch {
		case m != nil && m.Root == o.number:
			o.node = filetree.RootNode
		case a.full:
			var err error
			if o.node, err = a.past.claim(a.tree, o.number, o.gen, attr.Kind); err != nil {
				return nil, err
			}
		}
		if o.node == 0 {
			var err error
			o.node, err = a.tree.NewNode(attr)
			return nil, err
		}
	}
	was, err := a.tree.Attr(o.node)
	return &was, err
}

// later puts the bonus of an object aside until the end, when its spill block and all
// layouts are there.
func (a *applier) later(o *object, rec *Record) error {
	b := binary.BigEndian.AppendUint32(nil, rec.BonusType)
	b = append(b, 0)
	if rec.HasSpill {
		b[4] = 1
	}
	return a.tree.Keep(key(keyBonus, o.number), append(b, rec.Payload...))
}

// spill is SPILL, or what a sender of 2.3 and 2.4 sends in its place: a spill block that
// is small enough to be embedded (section 1.7). Pools that received such a stream may
// send that again, for no object that has it.
func (a *applier) spill(o *object, rec *Record) error {
	data, err := a.dec.Decode(rec)
	if err != nil || !isFile(o) || o.xattr || !o.hasGen {
		return err
	}
	bonus, err := a.tree.Kept(key(keyBonus, o.number))
	if err != nil {
		return err
	}
	if rec.Type == WriteEmbedded {
		if len(bonus) < 5 || bonus[4] == 0 || a.spilled.has(o.number) || !zpl.IsSA(data) {
			return nil
		}
	} else {
		if len(bonus) < 5 || a.tellsSpill() && bonus[4] == 0 {
			return fmt.Errorf("the object has no spill block: %w", filetree.ErrInvalid)
		}
		a.spilled.add(o.number)
	}
	if err := a.tree.Keep(key(keySpill, o.number), pack(data)); err != nil {
		return err
	}
	o.spill = true
	return a.state.set(o)
}

// write is WRITE and WRITE_EMBEDDED.
func (a *applier) write(o *object, rec *Record) error {
	if a.noData && !o.zap() && !o.xattr && o.node != 0 {
		if attr, err := a.tree.Attr(o.node); err != nil {
			return err
		} else if attr.Kind == filetree.File {
			return a.changed(o, rec, attr.Size)
		}
	}
	data, err := a.dec.Decode(rec)
	if err != nil {
		return err
	}
	switch {
	case o.zap():
		return a.writeBlock(o, rec, data)
	case a.unit.ObjectSet == Volume:
		return a.writeVolume(o, rec, data)
	case o.xattr:
		return a.writeValue(o, rec.Start, data)
	case o.node == 0:
		return nil // no file's
	case a.full && a.past.small.has(o.number):
		return a.writeSmall(o, rec.Start, data)
	}
	attr, err := a.tree.Attr(o.node)
	if err != nil {
		return err
	}
	switch attr.Kind {
	case filetree.File:
		if rec.Start >= uint64(attr.Size) {
			return nil
		}
		data = data[:min(uint64(len(data)), uint64(attr.Size)-rec.Start)] // behind the end may be anything
		return a.content(o, rec.Start, data)
	case filetree.Symlink:
		return a.writeTarget(o, rec, data)
	}
	return nil
}

// changed says that content was written, where it is read elsewhere.
func (a *applier) changed(o *object, rec *Record, size int64) error {
	if rec.Start >= uint64(size) {
		return nil
	}
	return a.tree.Changed(o.node, int64(rec.Start), int64(min(rec.Length, uint64(size)-rec.Start)))
}

// content writes content.
func (a *applier) content(o *object, start uint64, data []byte) error {
	if a.full {
		if a.past.unchanged.has(o.number) {
			return nil
		}
		if err := a.past.fill(a.tree, o, start, start+uint64(len(data))); err != nil {
			return err
		}
	}
	a.res.Bytes += int64(len(data))
	return a.tree.Write(o.node, int64(start), data)
}

// free is FREE: a hole, or the end of an object, or neither (section 3.4).
func (a *applier) free(o *object, rec *Record) error {
	switch {
	case o.zap() && o.blockSize > 0:
		size := uint64(o.blockSize)
		first, end := rec.Start/size, rec.End()/size
		if rec.Start%size != 0 {
			first++
		}
		if rec.End() == math.MaxUint64 {
			end = math.MaxUint64
		}
		if first >= end {
			return nil
		}
		return a.dropBlocks(o, first, end)
	case o.xattr:
		return a.freeValue(o, rec.Start, rec.End())
	case o.node == 0 || a.full && (a.past.small.has(o.number) || a.past.unchanged.has(o.number)):
		return nil
	}
	attr, err := a.tree.Attr(o.node)
	if err != nil || attr.Kind != filetree.File || rec.Start >= uint64(attr.Size) {
		return err
	}
	return a.tree.Hole(o.node, int64(rec.Start), int64(min(rec.End(), uint64(attr.Size))-rec.Start))
}

// finish ends the unit: tables are whole now, and names can be dealt with.
func (a *applier) finish(ctx context.Context) error {
	steps := []func() error{a.putAside, a.names, a.checkDirs, a.xattrs}
	switch a.unit.ObjectSet {
	case FileSystem:
		steps = slices.Insert(steps, 0, a.root)
	case Volume:
		steps = append(steps, a.volume)
	}
	if a.full {
		steps = slices.Insert(steps, 0, a.dropUnseen)
		steps = append(steps, a.fillRest)
	}
	for _, step := range append(steps, a.forget) {
		if err := errors.Join(ctx.Err(), step()); err != nil {
			return err
		}
	}
	guid := GUID(a.unit.ToGUID)
	state := guid[:]
	if a.res.Counts == [numTypes]int64{} && !a.full { // the unit has no records: nothing has changed
		before, err := a.tree.Kept(StateKey)
		if err != nil {
			return err
		}
		state = append(state, before[:min(len(before), maxSame*len(guid))]...)
	}
	return a.tree.Keep(StateKey, state)
}

// root makes sure that there is one, and that it is the root of the tree.
func (a *applier) root() error {
	m := a.master()
	if m == nil {
		return fmt.Errorf("there is no master node: %w", filetree.ErrInvalid)
	}
	o, err := a.state.get(m.Root)
	if err != nil {
		return err
	}
	if o == nil || o.typ != zpl.TypeDirectory || o.node == 0 {
		return fmt.Errorf("the root, object %d, is no directory: %w", m.Root, filetree.ErrInvalid)
	}
	if o.node == filetree.RootNode {
		return nil
	}
	if !a.full {
		return fmt.Errorf("the root is another object, %d: %w", m.Root, filetree.ErrInvalid)
	}
	// It came before the master node. Nothing has a name yet, so that a node gives way.
	attr, err := a.tree.Attr(o.node)
	if err != nil {
		return err
	}
	if err := a.tree.SetAttr(filetree.RootNode, func(r *filetree.Attr) { *r = attr }); err != nil {
		return err
	}
	for b := range a.touched {
		if b.node == o.node && b.object == o.number {
			delete(a.touched, b)
			b.node = filetree.RootNode
			a.touched[b] = true
		}
	}
	a.ended = append(a.ended, endedNode{o.number, o.node})
	o.node = filetree.RootNode
	return a.state.set(o)
}

// forget takes away what was kept for this unit alone.
func (a *applier) forget() error {
	for _, kind := range []byte{keyOld, keyBonus, keySmall} {
		for k, err := range a.tree.KeptFrom([]byte{kind}, []byte{kind + 1}) {
			if err == nil {
				err = a.tree.Keep(k.Key, nil)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
