package zfs

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/filetree"
)

// A Tree is the tree that a unit is applied to, and what is kept beside it from one unit
// to the next. Its nodes are there from NewNode to EndNode, whatever names they have.
type Tree interface {
	// NewNode makes a node without a name. Of a.Size nothing is taken.
	NewNode(a filetree.Attr) (filetree.NodeID, error)
	// EndNode ends a node with its names and its content.
	EndNode(n filetree.NodeID) error
	// AddName makes a name for a node, in a directory where it is free.
	AddName(dir filetree.NodeID, name string, n filetree.NodeID) error
	// DropName takes a name from whatever node has it.
	DropName(dir filetree.NodeID, name string) error
	// Names returns the names that a node has, at most limit of them (0: all).
	Names(n filetree.NodeID, limit int) ([]filetree.Entry, error)
	// Attr returns the attributes that a node has.
	Attr(n filetree.NodeID) (filetree.Attr, error)

	// Nodes yields the nodes that there are.
	Nodes() iter.Seq2[filetree.NodeID, error]

	// The following are those of filetree.Update.

	Children(dir filetree.NodeID) iter.Seq2[filetree.Child, error]
	SetAttr(n filetree.NodeID, change func(a *filetree.Attr)) error
	Write(n filetree.NodeID, off int64, data []byte) error
	Changed(n filetree.NodeID, off, length int64) error
	Hole(n filetree.NodeID, off, length int64) error
	Truncate(n filetree.NodeID, size int64) error

	// Kept returns what was kept under a key, or nil; Keep keeps a value, or nothing
	// any more if it is empty; KeptFrom yields, in order, what is kept from a key on
	// and below another. What is kept meanwhile may or may not be among it.
	Kept(key []byte) ([]byte, error)
	Keep(key, value []byte) error
	KeptFrom(from, to []byte) iter.Seq2[filetree.Kept, error]
}

// Keys of what is kept: a letter, then numbers in big endian, so that they sort.
const (
	keyObject = 'o' // object: what is known of it
	keyBlock  = 'z' // object, block: of a directory the names in it, of other ZAPs the block
	keyNames  = 'x' // object: the extended attributes that it has in a directory of their own
	keyValue  = 'd' // object: the value of an extended attribute
	keySpill  = 's' // object: its spill block

	// Within one unit only:

	keyOld   = 'Z' // object, node, block: the names that were in it before the unit
	keyBonus = 'b' // object: its bonus, to be decoded at the end
	keySmall = 'w' // object: its content, of few bytes
)

// StateKey is the key under which Apply keeps the GUID of the snapshot whose state it has
// left, as [GUID] returns it: an incremental unit starts from that one or not at all.
// Behind it, newest first, are those of snapshots before it that had the very same state.
var StateKey = []byte("G")

// maxSame bounds the snapshots that are remembered to have the same state.
const maxSame = 1024

// stateOf reports whether what is kept under StateKey says that it is the state of guid.
func stateOf(kept []byte, guid [16]byte) bool {
	for same := range slices.Chunk(kept, len(guid)) {
		if string(same) == string(guid[:]) {
			return true
		}
	}
	return false
}

// GUID returns the 16 bytes by which a snapshot of ZFS is known in a history: 8 zeros and
// its GUID in big endian.
func GUID(guid uint64) (g [16]byte) {
	binary.BigEndian.PutUint64(g[8:], guid)
	return g
}

func key(kind byte, numbers ...uint64) []byte {
	k := []byte{kind}
	for _, n := range numbers {
		k = binary.BigEndian.AppendUint64(k, n)
	}
	return k
}

// number returns the i-th number of a key.
func number(k []byte, i int) uint64 {
	if k = k[1:]; len(k) < 8*(i+1) {
		return 0
	}
	return binary.BigEndian.Uint64(k[8*i:])
}

// An object is what is kept of one.
type object struct {
	number    uint64
	node      filetree.NodeID // 0 for what is no file: tables, extended attributes
	typ       uint32
	bonusType uint32
	blockSize uint32 // of a ZAP
	slots     uint8
	hasGen    bool
	gen       uint64 // with number it identifies a file
	xattr     bool   // a directory of extended attributes, or a value in one
	parent    uint64 // of an xattr: of a directory what it belongs to, of a value the directory
	size      uint64 // of the value of an extended attribute
	xdir      uint64 // the directory of its extended attributes
	spill     bool   // there is a spill block

	saved string // as it was kept last
}

// zap reports whether the object's data is a ZAP that is kept.
func (o *object) zap() bool { return keepsBlocks(o.typ) }

func (o *object) encode() []byte {
	b := make([]byte, 0, 48)
	flags := uint64(0)
	if o.hasGen {
		flags |= 1
	}
	if o.xattr {
		flags |= 2
	}
	if o.spill {
		flags |= 4
	}
	for _, v := range []uint64{flags, uint64(o.node), uint64(o.typ), uint64(o.bonusType), uint64(o.blockSize), uint64(o.slots),
		o.gen, o.parent, o.size, o.xdir} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

var errKept = fmt.Errorf("what is kept of the last stream is damaged: a full stream makes it anew: %w", ErrState)

func decodeObject(number uint64, b []byte) (*object, error) {
	var v [10]uint64
	for i := range v {
		n, k := binary.Uvarint(b)
		if k <= 0 {
			return nil, fmt.Errorf("object %d: %w", number, errKept)
		}
		v[i], b = n, b[k:]
	}
	return &object{number: number, hasGen: v[0]&1 != 0, xattr: v[0]&2 != 0, spill: v[0]&4 != 0, node: filetree.NodeID(v[1]), typ: uint32(v[2]),
		bonusType: uint32(v[3]), blockSize: uint32(v[4]), slots: uint8(v[5]), gen: v[6], parent: v[7], size: v[8], xdir: v[9]}, nil
}

// A state is the objects of a dataset: what is kept of them, and those of late in memory.
type state struct {
	tree  Tree
	late  map[uint64]*object
	empty bool   // nothing was kept before the unit
	high  uint64 // the highest object that was set
}

// maxLate bounds the objects in memory.
const maxLate = 1 << 12

func newState(t Tree) (*state, error) {
	s := &state{tree: t, late: map[uint64]*object{}, empty: true}
	for _, err := range t.KeptFrom([]byte{keyObject}, []byte{keyObject + 1}) {
		s.empty = false
		if err != nil {
			return nil, err
		}
		break
	}
	return s, nil
}

// get returns the object of that number, nil if there is none.
func (s *state) get(n uint64) (*object, error) {
	if o, ok := s.late[n]; ok {
		return o, nil
	}
	if s.empty && n > s.high {
		return nil, nil
	}
	b, err := s.tree.Kept(key(keyObject, n))
	if err != nil || b == nil {
		return nil, err
	}
	o, err := decodeObject(n, b)
	if err == nil {
		o.saved = string(b)
		s.cache(o)
	}
	return o, err
}

func (s *state) cache(o *object) {
	if len(s.late) >= maxLate {
		clear(s.late) // they are kept
	}
	s.late[o.number] = o
}

// set keeps an object, if it is not what is kept.
func (s *state) set(o *object) error {
	s.high = max(s.high, o.number)
	s.cache(o)
	b := o.encode()
	if string(b) == o.saved {
		return nil
	}
	o.saved = string(b)
	return s.tree.Keep(key(keyObject, o.number), b)
}

func (s *state) remove(n uint64) error {
	delete(s.late, n)
	return s.tree.Keep(key(keyObject, n), nil)
}

// each calls f with the numbers of the objects from first on and below end, which f may
// remove.
func (s *state) each(first, end uint64, f func(n uint64) error) error {
	if s.empty && first > s.high {
		return nil
	}
	to := []byte{keyObject + 1}
	if end < math.MaxUint64 {
		to = key(keyObject, end)
	}
	for k, err := range s.tree.KeptFrom(key(keyObject, first), to) {
		if err == nil {
			err = f(number(k.Key, 0))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// packed is how long a value may be before it is compressed.
const packed = 200

var (
	packer, _   = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20))
	unpacker, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(4<<20))
)

// pack makes a value shorter if it can; unpack undoes it.
func pack(b []byte) []byte {
	if len(b) > packed {
		if z := packer.EncodeAll(b, []byte{1}); len(z) < len(b) {
			return z
		}
	}
	return append([]byte{0}, b...)
}

func unpack(b []byte) ([]byte, error) {
	switch {
	case len(b) == 0:
		return nil, nil
	case b[0] == 0:
		return b[1:], nil
	}
	out, err := unpacker.DecodeAll(b[1:], nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errKept, err)
	}
	return out, nil
}

// A numberSet is a set of numbers, most of which are near one another.
type numberSet map[uint64]uint64

func (s numberSet) add(n uint64)      { s[n>>6] |= 1 << (n & 63) }
func (s numberSet) has(n uint64) bool { return s[n>>6]&(1<<(n&63)) != 0 }

func (s numberSet) remove(n uint64) {
	if s.has(n) {
		s[n>>6] &^= 1 << (n & 63)
	}
}
