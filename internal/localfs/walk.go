package localfs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// Limits of a walk: the most entries of a directory that are sorted, how many are
// read at a time of a larger one, and how many directories are open at once.
const (
	maxSorted = 65536
	walkBatch = 4096
	walkOpen  = 128
)

// An Item is an entry that a walk came by. It and its directories are lent until
// the next item; [Dir.Retain] keeps a directory open.
type Item struct {
	Entry
	// Parent is the directory that the entry is in. It may be nil beside an error.
	Parent *Dir
	// Dir is the directory that the entry leads to. It is nil for every other kind,
	// and for a directory that is not entered.
	Dir *Dir
	// Boundary is ErrMount or ErrSubvolume for a directory that is not entered
	// because it does not belong to the tree.
	Boundary error

	w    *walker
	skip bool
	look *Stat // see Look
	from *frame
	at   int // in from.ahead
}

// Look returns what LookAt says of the entry, or Look of the directory it leads to. The file
// system is asked once, perhaps some entries before.
func (it *Item) Look() (Stat, error) {
	if it.look == nil {
		var st Stat
		if it.Dir != nil {
			st = it.Dir.Look()
		} else {
			var err error
			if it.from != nil && it.Kind != filetree.Dir {
				st, err = it.from.look(it.at, it.w)
			} else {
				st, err = it.Parent.LookAt(it.Name)
			}
			if err != nil {
				return Stat{}, err
			}
		}
		it.look = &st
	}
	return *it.look, nil
}

// Nodump reports whether a file or directory has the flag nodump, as chattr(1) sets it.
func (it *Item) Nodump() (bool, error) {
	st, err := it.Look()
	if err != nil {
		return false, err
	}
	return it.Parent.nodump(it.Name, &st)
}

// SkipDir makes the walk not enter the directory it.Dir.
func (it *Item) SkipDir() { it.skip = true }

// Path returns the names from where the walk began, with slashes between them.
func (it *Item) Path() string {
	var b strings.Builder
	for _, f := range it.w.stack[1:] {
		b.WriteString(f.name)
		b.WriteByte('/')
	}
	b.WriteString(it.Name)
	return b.String()
}

// sortEntries brings entries into an order in which similar content is near each
// other and which two walks share: files and the like by extension, then by name;
// then directories by name.
func sortEntries(es []Entry) {
	slices.SortFunc(es, func(a, b Entry) int {
		aDir, bDir := a.Kind == filetree.Dir, b.Kind == filetree.Dir
		switch {
		case aDir && bDir:
			return cmp.Compare(a.Name, b.Name)
		case aDir:
			return 1
		case bDir:
			return -1
		}
		return cmp.Or(cmp.Compare(extension(a.Name), extension(b.Name)), cmp.Compare(a.Name, b.Name))
	})
}

// extension returns what follows the last dot, if anything stands before it.
func extension(name string) string {
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		return name[i+1:]
	}
	return ""
}

// Walk returns an iterator over all that is below d, a directory before what is in
// it. Directories of up to 65,536 entries are sorted: files by extension and name,
// then directories. Larger ones come in the order of the file system.
//
// An error does not end the iteration: one that comes with an Item is about that
// entry, which is not entered then; where what has been begun cannot be read to its
// end, the Item is that directory once more, without a Dir. A tree in use always has
// some.
func (d *Dir) Walk() iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		w := &walker{}
		defer w.close()
		root, err := d.Again()
		if err != nil {
			yield(&Item{w: &walker{stack: []*frame{{}}}}, err) // as of one that cannot be read to its end
			return
		}
		w.push("", root)
		for len(w.stack) > 0 {
			it, err := w.next()
			if it == nil {
				return
			}
			if !yield(it, err) {
				if it.Dir != nil {
					it.Dir.Close()
				}
				return
			}
			switch {
			case it.Dir == nil:
			case it.skip:
				it.Dir.Close()
			default:
				w.push(it.Name, it.Dir)
			}
		}
	}
}

// At returns the one entry of that name as Walk does, beside the error that is about it.
// The caller closes the Item's Dir, if it has one.
func (d *Dir) At(name string) (*Item, error) {
	st, err := d.LookAt(name)
	if err != nil {
		return nil, err
	}
	it := &Item{Entry: Entry{Name: name, Kind: st.Kind, Ino: st.Ino}, Parent: d, w: &walker{stack: []*frame{{}}}}
	return it, it.enter()
}

// Again opens d a second time, so that reading it has a position of its own.
func (d *Dir) Again() (*Dir, error) {
	fd, err := openRead(d.h.fd, ".", unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open again: %w", err)
	}
	sub := newDir(d.t, fd)
	sub.st = d.st
	return sub, nil
}

// A walker is the state of a walk. Its stack leads from where the walk began to
// where it is; only the directories at its end are open, and the first.
type walker struct {
	stack   []*frame
	running sync.WaitGroup // what looks ahead
}

// A frame is a directory that is being walked.
type frame struct {
	name    string
	dir     *Dir // nil while it is closed
	ino     uint64
	begun   bool
	entries []Entry // read and still to come
	more    bool    // there are others after them, from pos on
	pos     int64

	all   []Entry // entries, with those of them that have come
	ahead *ahead  // of all; nil until it is asked for
}

// look is LookAt of entry i of f.all.
func (f *frame) look(i int, w *walker) (Stat, error) {
	if f.ahead == nil {
		f.ahead = &ahead{entries: f.all, running: &w.running}
	}
	f.ahead.dir = f.dir // it may have been closed and opened again
	return f.ahead.look(i)
}

func (w *walker) push(name string, d *Dir) {
	w.stack = append(w.stack, &frame{name: name, dir: d, ino: d.st.Ino})
	if i := len(w.stack) - walkOpen; i > 0 {
		w.stack[i].dir.Close()
		w.stack[i].dir = nil
	}
}

func (w *walker) pop() {
	last := len(w.stack) - 1
	if d := w.stack[last].dir; d != nil {
		d.Close()
	}
	w.stack = w.stack[:last]
}

func (w *walker) close() {
	w.running.Wait()
	for len(w.stack) > 0 {
		w.pop()
	}
}

// next returns the next item; nil when there is none.
func (w *walker) next() (*Item, error) {
	for len(w.stack) > 0 {
		f := w.stack[len(w.stack)-1]
		if err := w.fill(f); err != nil {
			return w.lost(f), err
		}
		if len(f.entries) == 0 {
			w.pop()
			continue
		}
		e := f.entries[0]
		f.entries = f.entries[1:]
		it := &Item{Entry: e, Parent: f.dir, w: w, from: f, at: len(f.all) - len(f.entries) - 1}
		return it, it.enter()
	}
	return nil, nil
}

// lost gives up on the directory at the end of the stack, whose rest cannot be
// read, and returns the item that says so.
func (w *walker) lost(f *frame) *Item {
	it := &Item{Entry: Entry{Name: f.name, Kind: filetree.Dir, Ino: f.ino}, w: w}
	w.pop()
	if len(w.stack) == 0 { // where the walk began has no name
		it.w = &walker{stack: []*frame{{}}}
		return it
	}
	it.Parent = w.stack[len(w.stack)-1].dir
	return it
}

// enter opens the directory that an item leads to, if it does.
func (it *Item) enter() error {
	if it.Kind == 0 { // the file system does not say
		var st unix.Statx_t
		if err := statx(it.Parent.h.fd, it.Name, &st); err != nil {
			return fmt.Errorf("stat %q: %w", it.Name, err)
		}
		it.Kind = kindOf(uint32(st.Mode))
	}
	if it.Kind != filetree.Dir {
		return nil
	}
	d, err := it.Parent.OpenDir(it.Name)
	switch {
	case errors.Is(err, ErrMount):
		it.Boundary = ErrMount
		return nil
	case errors.Is(err, ErrSubvolume):
		it.Boundary = ErrSubvolume
		return nil
	}
	it.Dir = d
	return err
}

// fill makes sure that f is open and has its next entries.
func (w *walker) fill(f *frame) error {
	if f.dir == nil && (len(f.entries) > 0 || f.more) {
		if err := w.reopen(); err != nil {
			return err
		}
	}
	if len(f.entries) > 0 {
		return nil
	}
	var err error
	switch {
	case !f.begun:
		f.begun = true
		var all bool
		f.entries, all, err = f.dir.ReadAll(maxSorted)
		f.more = !all
	case f.more:
		f.entries, err = f.dir.ReadDir(walkBatch)
		if err == io.EOF {
			f.more, err = false, nil
		}
	}
	if err == nil && f.more {
		err = f.drain()
	}
	f.all, f.ahead = f.entries, nil
	return err
}

// drain takes over what has been read from the kernel and notes the position after
// it, at which reading can go on in a directory opened again.
func (f *frame) drain() error {
	for len(f.dir.rest) > 0 {
		e, rest, err := parseDirent(f.dir.rest)
		if err != nil {
			return err
		}
		f.dir.rest = rest
		if e.Name != "." && e.Name != ".." {
			f.entries = append(f.entries, e)
		}
	}
	pos, err := unix.Seek(f.dir.h.fd, 0, unix.SEEK_CUR)
	f.pos = pos
	return err
}

// reopen opens the directory at the end of the stack again, and those before it
// that come next: on the way back from a deep place, going all the way from the
// first for each would take time in the square of the depth.
func (w *walker) reopen() error {
	d := w.stack[0].dir
	for i, f := range w.stack[1:] {
		i++
		if f.dir != nil {
			d = f.dir
			continue
		}
		sub, err := d.OpenDir(f.name)
		if err == nil && sub.st.Ino != f.ino {
			err = fmt.Errorf("open %q: another directory since", f.name)
			sub.Close()
		}
		if err == nil && f.more {
			if err = sub.seek(f.pos); err != nil {
				sub.Close()
			}
		}
		if prev := w.stack[i-1]; prev.dir != nil && i-1 > 0 && len(w.stack)-i >= walkOpen/2 {
			prev.dir.Close()
			prev.dir = nil
		}
		if err != nil {
			return err
		}
		f.dir, d = sub, sub
	}
	return nil
}
