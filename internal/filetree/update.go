package filetree

import (
	"errors"
	"iter"
)

// A NodeID names a node within one source's history. It is given once and never
// again. [RootNode] is the source's root directory.
type NodeID uint64

// RootNode is the root directory of every source.
const RootNode NodeID = 1

// ErrNotExist is wrapped by the errors of an Update's methods when there is no
// entry, node or snapshot of that name.
var ErrNotExist = errors.New("no such file or directory")

// ErrInvalid is wrapped by the errors of an Update's methods that refuse a change
// no file system could have made: an entry made twice, a directory below itself,
// bytes written to a link. The state is then as before the call.
var ErrInvalid = errors.New("impossible change")

// An Entry is a name: the entry Name of directory Dir.
type Entry struct {
	Dir  NodeID
	Name string
}

// A Kept is something that a reader of streams keeps beside a tree, for itself, under a
// key in byte order.
type Kept struct{ Key, Value []byte }

// A Child is what an entry of a directory leads to.
type Child struct {
	Name string
	Node NodeID
	Kind Kind
}

// An Update is a tree under change: it starts as the newest state of a source's
// history, takes changes in the order they come, and is then committed or dropped
// by whoever opened it. Every method sees the changes made before. Its methods are
// not safe for concurrent use.
//
// Send streams are applied to it; what they say of paths is resolved with Lookup.
type Update interface {
	// Lookup returns the node that the entry name of directory dir leads to now.
	Lookup(dir NodeID, name string) (NodeID, Kind, error)
	// Children yields the entries of a directory. Those already yielded may be taken
	// away meanwhile.
	Children(dir NodeID) iter.Seq2[Child, error]
	// Names returns the names of a node, at most limit of them (0: all); none if it is
	// gone. The root has none.
	Names(n NodeID, limit int) ([]Entry, error)
	// Create makes a new node with the given attributes and an entry for it. The
	// entry must not exist. Of a.Size nothing is taken: a new file is empty.
	Create(dir NodeID, name string, a Attr) (NodeID, error)
	// Link makes one more entry for a node that is no directory.
	Link(dir NodeID, name string, n NodeID) error
	// Rename moves an entry; the target must be free. A directory cannot be moved
	// into itself or below.
	Rename(dir NodeID, name string, toDir NodeID, toName string) error
	// Unlink takes an entry away: of a file any of its names, of a directory the
	// only one it has, and only when it is empty.
	Unlink(dir NodeID, name string) error
	// SetAttr changes attributes: change is called with the present ones before
	// SetAttr returns. It may change everything but Kind and Size.
	SetAttr(n NodeID, change func(a *Attr)) error
	// Write stores data at off, growing the file if it ends beyond it. data may be
	// used again after Write returns.
	Write(n NodeID, off int64, data []byte) error
	// Changed says that length bytes at off are not what they were, without saying
	// what they are now: whoever opened the Update reads them elsewhere before it
	// is committed. The file grows if the range ends beyond it.
	Changed(n NodeID, off, length int64) error
	// Hole makes length bytes at off a hole. The size does not change.
	Hole(n NodeID, off, length int64) error
	// Truncate sets the size. What it adds is a hole.
	Truncate(n NodeID, size int64) error
	// Clone makes length bytes at off of n the same as those at srcOff of src, as
	// they are now. n grows if the range ends beyond it. src may be n.
	Clone(n NodeID, off int64, src NodeID, srcOff, length int64) error
	// Resolve returns the node at path (slash-separated, relative to the root) of a
	// committed snapshot, known by the UUID the file system gave it: of this source if
	// it has it, and else of another.
	Resolve(snapshot [16]byte, path string) (NodeID, error)
	// CloneFrom is Clone from a file as it is in such a snapshot.
	CloneFrom(n NodeID, off int64, snapshot [16]byte, src NodeID, srcOff, length int64) error
}
