package s3history

import (
	"fmt"
	"iter"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
)

// The tree for senders that speak of nodes by numbers of their own and of names last: a
// node is there from NewNode to EndNode, whatever names it has. One that has none, since
// it was unlinked while it was open, is in the history and in no directory.

// NewNode makes a node that has no name yet. Of a.Size nothing is taken: a new file is
// empty.
func (u *Update) NewNode(a filetree.Attr) (filetree.NodeID, error) {
	n := u.next
	a.Size = 0
	filetree.SortXattrs(a.Xattrs)
	if err := u.v.AddNode(n, &a); err != nil {
		return 0, err
	}
	u.next++
	u.nameless = true
	u.touch(n)
	return n, nil
}

// EndNode ends a node with its names and its content. What is in a directory is to be
// taken out of it first.
func (u *Update) EndNode(n filetree.NodeID) error {
	if err := u.flushWrite(); err != nil { // it may be into what is ended
		return err
	}
	u.nameless = true
	return u.end(n)
}

// AddName makes a name for a node, in a directory where it is free. That directories form
// a tree is for the caller to see to.
func (u *Update) AddName(dir filetree.NodeID, name string, n filetree.NodeID) error {
	if err := u.free(dir, name); err != nil {
		return err
	}
	u.nameless = true
	return u.addEntry(dir, name, n)
}

// DropName takes a name from whatever node has it, which it leaves as it is.
func (u *Update) DropName(dir filetree.NodeID, name string) error {
	n, err := u.v.Lookup(dir, name)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	u.nameless = true
	return u.removeEntry(dir, name, n)
}

// Attr returns the attributes a node has now.
func (u *Update) Attr(n filetree.NodeID) (filetree.Attr, error) {
	c, err := u.attr(n)
	if err != nil {
		return filetree.Attr{}, err
	}
	return c.Attr, nil
}

// Nodes yields the nodes that there are, in order. What is made or ended meanwhile may or
// may not be among them.
func (u *Update) Nodes() iter.Seq2[filetree.NodeID, error] {
	return func(yield func(filetree.NodeID, error) bool) {
		for c, err := range u.v.Nodes() {
			if !yield(c.Node, err) || err != nil {
				return
			}
		}
	}
}

// Kept returns what Keep of this or an earlier update of the source has kept under a key,
// or nil. It is kept in the catalog alone, and gone when that is rebuilt.
func (u *Update) Kept(key []byte) ([]byte, error) { return u.v.Kept(key) }

// Keep keeps a value under a key, for later updates of the source; one that is empty takes
// the key away. It is kept if the update is committed, and also if nothing changed.
func (u *Update) Keep(key, value []byte) error {
	u.keeps = true
	u.nameless = true // it is kept of nodes, and one that was unlinked while it is open stays
	return u.v.Keep(key, value)
}

// KeptFrom yields what is kept under keys from from on and below to, in order.
func (u *Update) KeptFrom(from, to []byte) iter.Seq2[filetree.Kept, error] {
	return func(yield func(filetree.Kept, error) bool) {
		for k, err := range u.v.KeptFrom(from, to) {
			if !yield(filetree.Kept(k), err) || err != nil {
				return
			}
		}
	}
}

// ForgetKept takes away all that is kept: it is not of what there is.
func (u *Update) ForgetKept() error {
	u.keeps = true
	return u.v.EndKept()
}

// KeptAt returns what was kept under a key at a snapshot.
func (w *Writer) KeptAt(source catalog.Source, seq uint64, key []byte) ([]byte, error) {
	return w.cat.At(source.ID, seq).Kept(key)
}
