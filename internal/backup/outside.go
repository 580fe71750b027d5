package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
)

// A file may have one name that is kept and another that is excluded. A stream speaks of
// it by either; by the excluded one it says nothing that the history understands, since
// what is excluded is not looked into. So such nodes, those with more names in the tree
// than in the history, are remembered, and looked at in every increment. They are few, and
// a look is one stat.

// linked notes how many names a node has.
func (r *reader) linked(n filetree.NodeID, st *localfs.Stat) {
	if len(r.j.o.Exclude) == 0 || st.Kind == filetree.Dir {
		return
	}
	if r.nlinks == nil {
		r.nlinks = map[filetree.NodeID]uint32{}
	}
	r.nlinks[n] = st.Nlink // 1 too: it may have had more
}

// loadOutside returns the nodes with names outside the history, and whether they are
// known at all: a catalog that was rebuilt knows none.
func (r *reader) loadOutside() (nodes map[filetree.NodeID]bool, known bool, err error) {
	if len(r.j.o.Exclude) == 0 {
		return map[filetree.NodeID]bool{}, true, nil
	}
	return r.loadNodes(noteOutside)
}

// The notes of nodes that every increment looks at.
const (
	noteOutside = "outside" // with names outside the history
	noteAgain   = "again"   // that are incomplete
)

// loadNodes returns the nodes that a note of the snapshot before names, and whether there
// is one.
func (r *reader) loadNodes(note string) (nodes map[filetree.NodeID]bool, known bool, err error) {
	nodes = map[filetree.NodeID]bool{}
	b, err := r.u.Note(note)
	if err != nil || b == nil {
		return nodes, false, err
	}
	for len(b) > 1 {
		v, k := binary.Uvarint(b[1:])
		if k <= 0 {
			return nodes, false, nil
		}
		nodes[filetree.NodeID(v)] = true
		b = b[k:]
	}
	return nodes, true, nil
}

// saveOutside notes the nodes with names outside the history, with the snapshot that is
// being made: those there were, but for what has been looked at since.
func (r *reader) saveOutside() error {
	if len(r.j.o.Exclude) == 0 {
		return nil
	}
	nodes, _, err := r.loadOutside()
	if err != nil {
		return err
	}
	for n, names := range r.nlinks {
		kept, err := r.u.View().Entries(n, int(names))
		if err != nil {
			return err
		}
		delete(nodes, n)
		if len(kept) > 0 && len(kept) < int(names) {
			nodes[n] = true
		}
	}
	return r.saveNodes(noteOutside, nodes)
}

// saveNodes keeps what loadNodes returns, with the snapshot that is being made.
func (r *reader) saveNodes(note string, nodes map[filetree.NodeID]bool) error {
	b := []byte{1} // never empty: an empty note is none
	for _, n := range slices.Sorted(maps.Keys(nodes)) {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return r.u.SetNote(note, b)
}

// saveAgain notes the nodes that are incomplete, with the snapshot that is being made.
func (r *reader) saveAgain() error {
	for n := range r.again {
		if _, err := r.u.View().Attr(n); errors.Is(err, filetree.ErrNotExist) {
			delete(r.again, n)
		} else if err != nil {
			return err
		}
	}
	return r.saveNodes(noteAgain, r.again)
}

// unspoken makes the task for a node that every increment looks at and of which the
// stream says nothing: nil if it is gone.
func (r *reader) unspoken(n filetree.NodeID) (*task, error) {
	t, a, err := r.taskOf(n)
	if t == nil {
		return nil, err
	}
	old, err := r.findOld(n, false)
	if err != nil {
		return nil, err
	}
	t.look = func(ctx context.Context, t *task) {
		st, err := r.tree.Stat(t.path)
		if err != nil || a.Kind != filetree.File || unchanged(a, &st.Attr) {
			t.found(st, err)
			close(t.pieces)
			return
		}
		r.lookFile(ctx, t, func() (*localfs.File, error) { return r.tree.OpenFile(t.path) }, nil, old, false)
	}
	t.record = func(t *task) error {
		if unreadable(t.err) {
			return r.incomplete(t.path, n, t.err)
		}
		if t.err != nil {
			return r.misfit(fmt.Errorf("%s: %w", t.path, t.err))
		}
		r.linked(n, &t.stat)
		if err := r.replace(n, &t.stat.Attr); err != nil {
			return err
		}
		return r.put(t, n)
	}
	return t, nil
}
