package zfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

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

	full bool
	seen numberSet // of a full unit that meets an older state: the objects it has

	master   *zpl.Master   // nil: to be looked up
	registry *zpl.Registry // likewise

	touched map[dirBlock]bool
	ended   []endedNode
	moved   []filetree.NodeID // directories that got a name
	owners  map[uint64]bool   // objects whose extended attributes are to be put together
	rootWas filetree.NodeID   // the node that the root had before it was known to be it
}

// An endedNode is that of an object that is no more, or another one now.
type endedNode struct {
	number uint64
	node   filetree.NodeID
}

// Apply runs the records of u on t. An incremental unit needs the state that Apply has
// left in t of the unit it starts from; a full one is compared with what t has, whatever
// that is: what is the same is not touched.
//
// A stream that is malformed, or whose objects make no file system, gives a
// [*FormatError] with the offset of the record; it wraps [filetree.ErrInvalid] in the
// latter case. Other errors are those of ctx, the input and t, [ErrState] and
// [ErrResumed]. After an error t holds a part of the unit and has to be dropped.
func (u *Unit) Apply(ctx context.Context, t Tree) (Result, error) {
	if _, _, resumed := u.Resume(); resumed {
		return Result{}, &FormatError{u.Offset, ErrResumed}
	}
	a := &applier{unit: u, tree: t, order: binary.LittleEndian, full: !u.Incremental(), seen: numberSet{},
		touched: map[dirBlock]bool{}, owners: map[uint64]bool{}}
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
	if a.state, err = newState(a.tree); err != nil || a.full {
		return err
	}
	have, err := a.tree.Kept(StateKey)
	if err != nil {
		return err
	}
	if from := GUID(a.unit.FromGUID); string(have) != string(from[:]) {
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
		all, err := a.state.between(rec.Object, end)
		for _, n := range all {
			err = errors.Join(err, a.drop(n))
		}
		return err
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
		inside, err := a.state.between(n+1, n+uint64(rec.Slots))
		for _, m := range inside {
			err = errors.Join(err, a.drop(m))
		}
		if err != nil {
			return err
		}
	}
	head, hasHead := zpl.DecodeHead(rec.BonusType, rec.Payload, a.order)
	old, err := a.state.get(n)
	if err != nil {
		return err
	}
	if a.full && !a.state.empty {
		a.seen.add(n)
	}
	o := &object{number: n, typ: rec.ObjectType, bonusType: rec.BonusType, blockSize: rec.BlockSize, slots: rec.Slots,
		hasGen: hasHead, gen: head.Gen}
	if old != nil && !a.same(old, o, &head) {
		if err := a.drop(n); err != nil {
			return err
		}
		old = nil
	}
	if old != nil {
		o.node, o.xdir, o.size, o.saved = old.node, old.xdir, old.size, old.saved
		if o.zap() && old.blockSize != o.blockSize { // all its blocks come anew
			if err := a.dropBlocks(old, 0, math.MaxUint64); err != nil {
				return err
			}
		}
	}
	if hasHead && isFile(o) {
		if err := a.file(o, &head, rec); err != nil {
			return err
		}
	} else if a.unit.ObjectSet == Volume && n == volumeObject && o.node == 0 {
		attr := filetree.Attr{Kind: filetree.File, Mode: 0o600, Mtime: filetree.Time{Sec: int64(a.unit.Creation)}}
		if o.node, err = a.tree.NewNode(attr); err != nil {
			return err
		}
	}
	return a.state.set(o)
}

// isFile reports whether an object with attributes is a file of the file system.
func isFile(o *object) bool {
	return (o.bonusType == zpl.TypeSA || o.bonusType == zpl.TypeZnode) && (o.typ == zpl.TypeFile || o.typ == zpl.TypeDirectory)
}

// same reports whether now is the object that old was and not another with its number.
func (a *applier) same(old, now *object, head *zpl.Head) bool {
	attrs := func(o *object) bool { return o.bonusType == zpl.TypeSA || o.bonusType == zpl.TypeZnode }
	if old.slots != now.slots || old.typ != now.typ {
		return false
	}
	if !attrs(old) || !attrs(now) {
		return old.bonusType == now.bonusType
	}
	return old.hasGen == now.hasGen && old.gen == now.gen && old.xattr == (head.Flags&zpl.FlagXattr != 0)
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
		return fmt.Errorf("the root of the file system is gone: %w", filetree.ErrInvalid)
	}
	if o.node != 0 {
		a.ended = append(a.ended, endedNode{n, o.node})
	}
	if o.xattr {
		if err := a.touchXattrs(n); err != nil {
			return err
		}
	}
	for _, k := range []byte{keyNames, keyValue, keyBonus, keySpill} {
		if err := a.tree.Keep(key(k, n), nil); err != nil {
			return err
		}
	}
	return a.state.remove(n)
}

// file is the part of OBJECT that is about a file, directory, link or device.
func (a *applier) file(o *object, head *zpl.Head, rec *Record) error {
	if o.xattr = head.Flags&zpl.FlagXattr != 0; o.xattr {
		o.parent, o.size = head.Parent, head.Size
		if err := a.state.set(o); err != nil {
			return err
		}
		return a.touchXattrs(o.number)
	}
	attr := headAttr(head)
	if !attr.Kind.Valid() {
		return fmt.Errorf("mode %#o: %w", head.Mode, filetree.ErrInvalid)
	}
	if (attr.Kind == filetree.Dir) != (o.typ == zpl.TypeDirectory) {
		return fmt.Errorf("a %v of type %d: %w", attr.Kind, o.typ, filetree.ErrInvalid)
	}
	if o.node != 0 {
		now, err := a.tree.Attr(o.node)
		if err != nil {
			return err
		}
		if now.Kind != attr.Kind {
			return fmt.Errorf("a %v that was a %v: %w", attr.Kind, now.Kind, filetree.ErrInvalid)
		}
	} else if err := a.newNode(o, attr); err != nil {
		return err
	}
	if attr.Kind == filetree.File {
		if head.Size > math.MaxInt64 {
			return fmt.Errorf("size %d: %w", head.Size, filetree.ErrInvalid)
		}
		if err := a.tree.Truncate(o.node, int64(head.Size)); err != nil {
			return err
		}
	}
	registry := a.layouts()
	if rec.HasSpill || rec.BonusType == zpl.TypeSA && registry == nil {
		return a.later(o, rec)
	}
	za, err := registry.Decode(rec.BonusType, rec.Payload, nil, a.order)
	if err != nil {
		return a.later(o, rec) // the layout may come yet
	}
	return a.setAttr(o, &za, nil)
}

// newNode makes the node of an object: that of the source's root for the root.
func (a *applier) newNode(o *object, attr filetree.Attr) error {
	if m := a.tables(); m != nil && m.Root == o.number {
		o.node = filetree.RootNode
		return nil
	}
	var err error
	o.node, err = a.tree.NewNode(attr)
	return err
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

func (a *applier) spill(o *object, rec *Record) error {
	data, err := a.dec.Decode(rec)
	if err != nil || !isFile(o) {
		return err
	}
	return a.tree.Keep(key(keySpill, o.number), pack(data))
}

// write is WRITE and WRITE_EMBEDDED.
func (a *applier) write(o *object, rec *Record) error {
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
		a.res.Bytes += int64(len(data))
		return a.tree.Write(o.node, int64(rec.Start), data)
	case filetree.Symlink:
		return a.writeTarget(o, rec, data)
	}
	return nil
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
	case o.node == 0:
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
	if a.full && !a.state.empty {
		all, err := a.state.between(0, math.MaxUint64)
		if err != nil {
			return err
		}
		for _, n := range all {
			if !a.seen.has(n) {
				if err := a.drop(n); err != nil {
					return err
				}
			}
		}
	}
	if a.unit.ObjectSet == FileSystem {
		if err := a.root(); err != nil {
			return err
		}
	}
	if err := a.putAside(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if a.unit.ObjectSet == Volume {
		if err := a.volume(); err != nil {
			return err
		}
	}
	for _, step := range []func() error{a.names, a.checkDirs, a.xattrs, a.forget} {
		if err := step(); err != nil {
			return err
		}
	}
	guid := GUID(a.unit.ToGUID)
	return a.tree.Keep(StateKey, guid[:])
}

// root makes sure that there is one, and that it is the root of the tree.
func (a *applier) root() error {
	m := a.tables()
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
	// It came before the master node.
	attr, err := a.tree.Attr(o.node)
	if err != nil {
		return err
	}
	if err := a.tree.SetAttr(filetree.RootNode, func(r *filetree.Attr) { *r = attr }); err != nil {
		return err
	}
	if err := a.tree.EndNode(o.node); err != nil {
		return err
	}
	a.rootWas, o.node = o.node, filetree.RootNode
	return a.state.set(o)
}

// forget takes away what was kept for this unit alone.
func (a *applier) forget() error {
	var old [][]byte
	for k, err := range a.tree.KeptFrom([]byte{keyOld}, []byte{keyOld + 1}) {
		if err != nil {
			return err
		}
		old = append(old, k.Key)
	}
	for _, k := range old {
		if err := a.tree.Keep(k, nil); err != nil {
			return err
		}
	}
	return nil
}
