package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
)

// Options say how a unit is applied. The zero value is a stream with data of which
// everything is kept.
type Options struct {
	// NoData says that the stream was made with --no-data. Its clones are then
	// changed ranges like all others: the source may be one itself.
	NoData bool

	// Excluded reports whether a path is not kept, as a directory if dir is true.
	// What is below an excluded directory is not asked for. It must answer the
	// same for the same path in all units of a history. Nil excludes nothing.
	Excluded func(path string, dir bool) bool

	// Remove takes an entry away with all that is below it. It is called for
	// directories that moved to where they are excluded. If it is nil, Update.Unlink
	// is called, which refuses a directory that is not empty.
	Remove func(dir filetree.NodeID, name string) error
}

// A Result says what a unit brought.
type Result struct {
	Counts  [EnableVerity + 1]int64 // commands, by type
	Bytes   int64                   // of data, decoded, that were handed on
	Skipped int64                   // of data, decoded or not, for nodes that are excluded

	// Unknown has the paths of nodes whose content or attributes are not known,
	// sorted: nodes that are no longer excluded, and files of which a part was
	// cloned from what the Update does not have. A directory stands for all below
	// it. What the Update does not have has to be read elsewhere and created; what it
	// has, read again. What is not known may be the kind, too, so that the path may
	// be excluded after all.
	Unknown []string

	// Moved has the paths of directories that were moved, sorted, if Options.Excluded
	// is set. Below them, nodes that the stream does not speak of may be excluded
	// now, or no longer be.
	Moved []string

	// Verity has what ENABLE_VERITY said, up to MaxVerity files. Counts has how many
	// there were.
	Verity []Verity
}

// MaxVerity bounds the number of verity notes in a [Result].
const MaxVerity = 1000

// A Verity notes that a file had fs-verity turned on. It is not kept otherwise.
type Verity struct {
	Path      string // when the command came
	Algorithm uint8
	BlockSize uint32
}

// maxTemporary bounds the temporary names that are in use at one time.
const maxTemporary = 1 << 20

// Apply runs the commands of u on up. The parent must be the present state of
// up if the unit is incremental, and up must be empty if it is not.
//
// A stream that is malformed, or that does what no file system could have
// done, gives a [*FormatError] with the offset of the command; it wraps
// [filetree.ErrNotExist] or [filetree.ErrInvalid] in the latter case. Other errors
// are those of ctx, the input and up. After an error up holds a part of the unit
// and has to be dropped.
func (u *Unit) Apply(ctx context.Context, up filetree.Update, o Options) (Result, error) {
	if u.units == nil || u.units.cur != u {
		return Result{}, errPassed
	}
	a := &applier{
		unit:  u,
		up:    up,
		o:     o,
		tree:  newTree(up, o.Excluded),
		temps: make(map[string]int64),
		holes: u.Version == 1 && u.Incremental && !o.NoData,
	}
	units := u.units
	u.units = nil // a second Apply is a mistake
	for n := 0; ; n++ {
		if n%64 == 0 {
			if err := ctx.Err(); err != nil {
				return a.res, err
			}
			if !a.creating { // newborn points into the tree
				a.prune()
			}
		}
		c, err := units.command()
		switch {
		case err == io.EOF:
			return a.res, a.finish()
		case err != nil:
			return a.res, err
		}
		a.res.Counts[c.Type]++
		if err := a.command(&c); err != nil {
			return a.res, refused(c.Offset, fmt.Sprintf("%v %q", c.Type, c.Path), err)
		}
	}
}

// refused says of err which command it is about, unless it says so already. What
// the stream is to blame for becomes a FormatError.
func refused(offset int64, what string, err error) error {
	fe, ce := (*FormatError)(nil), (*commandError)(nil)
	if errors.As(err, &fe) || errors.As(err, &ce) {
		return err
	}
	for _, is := range []error{filetree.ErrInvalid, filetree.ErrNotExist, ErrLimit, ErrEncoded} {
		if errors.Is(err, is) {
			return &FormatError{Offset: offset, Err: fmt.Errorf("%s: %w", what, err)}
		}
	}
	return &commandError{offset, what, err}
}

// A commandError is an error of the Update while it took a good command.
type commandError struct {
	offset int64
	what   string
	err    error
}

func (e *commandError) Error() string {
	return fmt.Sprintf("btrfs: %s at offset %d: %v", e.what, e.offset, e.err)
}

func (e *commandError) Unwrap() error { return e.err }

// An applier is the state of one Apply.
type applier struct {
	*tree
	unit *Unit
	up   filetree.Update
	o    Options
	res  Result
	dec  Decoder

	// Creation waits for what follows: a RENAME to the final path, attributes.
	creating bool
	newborn  newborn

	// Attributes wait for more of the same node: of newborn if creating is true.
	attrsOf filetree.NodeID // 0: none
	attrs   attrs

	temps   map[string]int64 // temporary names in use, and where they were made
	created idSet            // by this unit
	parked  int              // names given to nodes whose directory is a ghost

	// lost has the files whose content is not known. Each has a pinned node.
	lost map[filetree.NodeID]struct{}

	holes  bool // zeros in files of the parent stand for holes
	sizeOf filetree.NodeID
	size   int64 // of sizeOf
}

// A newborn is a node that is not created yet.
type newborn struct {
	offset int64 // of the command
	what   string
	path   []byte
	dir    *node
	name   string
	attr   filetree.Attr
	temp   bool // name is temporary
}

func (a *applier) command(c *Command) error {
	switch c.Type {
	case Rename:
		if a.creating && a.newborn.temp && bytes.Equal(c.Path, a.newborn.path) {
			return a.renameNewborn(c)
		}
	case SetXattr, RemoveXattr, Chmod, Chown, Utimes, FileAttr:
		return a.attribute(c)
	}
	if err := a.create(); err != nil {
		return err
	}
	switch c.Type {
	case MkFile, MkDir, MkNod, MkFifo, MkSock, Symlink:
		return a.make(c)
	case Rename:
		return a.rename(c)
	case Link:
		return a.link(c)
	case Unlink, RmDir:
		return a.unlink(c)
	case EnableVerity:
		return a.verity(c)
	default:
		return a.data(c)
	}
}

// make begins a new node. Whether its name is free is seen when it is created; a
// temporary name that is left right away is taken to be free, as the sender saw to
// it.
func (a *applier) make(c *Command) error {
	if err := a.setAttrs(); err != nil {
		return err
	}
	d, name, err := a.parentOf(c.Path)
	if err != nil {
		return err
	}
	attr := filetree.Attr{Kind: kindOf(c), Ino: c.Ino, Mode: c.Mode & 0o7777}
	switch attr.Kind {
	case filetree.CharDev, filetree.BlkDev:
		attr.Major, attr.Minor = c.Major, c.Minor
	case filetree.Symlink:
		attr.Target = string(c.Link)
		attr.Mode = 0o777 // links have no other, and no CHMOD
	}
	if d.ghost() || a.excludes.hides(c.Path, attr.Kind) {
		return nil // never created: what comes of it is a ghost
	}
	a.creating = true
	a.newborn = newborn{
		offset: c.Offset,
		what:   fmt.Sprintf("%v %q", c.Type, c.Path),
		path:   append(a.newborn.path[:0], c.Path...),
		dir:    d,
		name:   name,
		attr:   attr,
		temp:   d == a.root && isTemporary(name, c.Ino),
	}
	return nil
}

// isTemporary reports whether the sender gives this name to inode ino at first.
// A file of the user that looks like that is created under another name.
func isTemporary(name string, ino uint64) bool {
	return strings.HasPrefix(name, "o"+strconv.FormatUint(ino, 10)+"-") && looksTemporary([]byte(name))
}

func kindOf(c *Command) filetree.Kind {
	switch c.Type {
	case MkFile:
		return filetree.File
	case MkDir:
		return filetree.Dir
	case Symlink:
		return filetree.Symlink
	case MkFifo:
		return filetree.Fifo
	case MkSock:
		return filetree.Socket
	}
	if c.Mode&^0o7777 == typeChr {
		return filetree.CharDev
	}
	return filetree.BlkDev
}

// renameNewborn gives the newborn the path that it is to be created at.
func (a *applier) renameNewborn(c *Command) error {
	if below(c.PathTo, c.Path) {
		return fmt.Errorf("to %q, itself or below: %w", c.PathTo, filetree.ErrInvalid)
	}
	d, name, err := a.parentOf(c.PathTo)
	if err != nil {
		return err
	}
	n := &a.newborn
	if d.ghost() || a.excludes.hides(c.PathTo, n.attr.Kind) {
		a.creating = false
		a.attrs = attrs{}
		return nil
	}
	n.path = append(n.path[:0], c.PathTo...)
	n.dir, n.name, n.temp = d, name, false
	return nil
}

// create makes the newborn real.
func (a *applier) create() error {
	if !a.creating {
		return nil
	}
	a.creating = false
	n := &a.newborn
	a.attrs.apply(&n.attr)
	a.attrs = attrs{}
	err := n.dir.taken(n.name)
	var id filetree.NodeID
	if err == nil {
		id, err = a.up.Create(n.dir.id, n.name, n.attr)
	}
	if err != nil {
		return refused(n.offset, n.what, err)
	}
	a.created.add(id)
	made := a.attach(n.dir, n.name, &node{id: id, kind: n.attr.Kind})
	if n.temp {
		if len(a.temps) == maxTemporary {
			return fmt.Errorf("more than %d temporary names: %w", maxTemporary, ErrLimit)
		}
		a.temps[n.name] = n.offset
	}
	return a.loose(made, n.path)
}

// loose pins a node that is, or may turn out to be, where it is excluded. In a
// stream that is whatever goes through a temporary directory.
func (a *applier) loose(n *node, path []byte) error {
	if a.o.Excluded == nil {
		return nil
	}
	if temporaryPath(path) || a.excludes.covers(string(path), n.kind) {
		return a.pin(n)
	}
	return nil
}

// below reports whether path is dir or below it.
func below(path, dir []byte) bool {
	rest, ok := bytes.CutPrefix(path, dir)
	return ok && (len(rest) == 0 || rest[0] == '/')
}

// rename moves a node. What goes below a ghost is parked in the root until the
// end of the unit, since it may move on.
func (a *applier) rename(c *Command) error {
	if below(c.PathTo, c.Path) {
		return fmt.Errorf("to %q, itself or below: %w", c.PathTo, filetree.ErrInvalid)
	}
	n, err := a.resolve(c.Path)
	if err != nil {
		return err
	}
	d, name, err := a.parentOf(c.PathTo)
	if err != nil {
		return err
	}
	if n.ghost() {
		if err := a.free(d, name); err != nil {
			return err
		}
		a.detach(n)
		a.attach(d, name, n)
		if d.ghost() || a.excludes.hides(c.PathTo, n.kind) {
			return nil
		}
		return a.pin(n)
	}

	if err := d.taken(name); err != nil {
		return err
	}
	fromDir, fromName := n.place()
	toDir, toName, parked := d.id, name, ""
	if d.ghost() {
		if parked = n.parked; parked == "" {
			if parked, err = a.parkingName(); err != nil {
				return err
			}
		}
		toDir, toName = filetree.RootNode, parked
	}
	if fromDir != toDir || fromName != toName {
		if err := a.up.Rename(fromDir, fromName, toDir, toName); err != nil {
			return err
		}
	}
	if n.parent == a.root {
		delete(a.temps, n.name)
	}
	if n.kind == filetree.Dir && a.o.Excluded != nil && !n.moved && !(a.created.has(n.id) && temporaryPath(c.Path)) {
		n.base, n.moved = n.parent.basePath(n.name), true
		if err := a.pin(n); err != nil {
			return err
		}
	}
	a.detach(n)
	a.attach(d, name, n)
	n.parked = parked
	if parked != "" {
		// The ghosts above are known to exist from now on.
		for ; n.parked != "" || n.ghost(); n = n.parent {
			if err := a.pin(n); err != nil {
				return err
			}
		}
		return nil
	}
	if n.kind == filetree.Dir {
		a.settle(n)
	}
	return a.loose(n, c.PathTo)
}

// parkingName returns a name that is free in the root and that nobody gives.
func (a *applier) parkingName() (string, error) {
	for {
		name := fmt.Sprintf("\x01secrate-parked-%d", a.parked)
		a.parked++
		switch _, _, err := a.up.Lookup(filetree.RootNode, name); {
		case errors.Is(err, filetree.ErrNotExist):
			return name, nil
		case err != nil:
			return "", err
		}
	}
}

// link makes a name. One that is excluded is not made.
func (a *applier) link(c *Command) error {
	n, err := a.resolve(c.Link)
	if err != nil {
		return err
	}
	d, name, err := a.parentOf(c.Path)
	switch {
	case err != nil:
		return err
	case n.kind == filetree.Dir: // which the Update would refuse, but for a ghost
		return fmt.Errorf("to directory %q: %w", c.Link, filetree.ErrInvalid)
	case d.ghost() || a.excludes.hides(c.Path, n.kind):
		return nil
	}
	if n.ghost() {
		if err := a.free(d, name); err != nil {
			return err
		}
		return a.pin(a.attach(d, name, &node{kind: n.kind}))
	}
	if err := d.taken(name); err != nil {
		return err
	}
	if err := a.up.Link(d.id, name, n.id); err != nil {
		return err
	}
	m := a.attach(d, name, &node{id: n.id, kind: n.kind})
	if _, lost := a.lost[n.id]; lost {
		m.lost = true
		if err := a.pin(m); err != nil {
			return err
		}
	}
	return a.loose(m, c.Path)
}

// unlink is UNLINK and RMDIR.
func (a *applier) unlink(c *Command) error {
	n, err := a.resolve(c.Path)
	if err != nil {
		return err
	}
	switch isDir := n.kind == filetree.Dir; {
	case n.kind == 0: // a ghost: it may be either
	case isDir && c.Type == Unlink:
		return fmt.Errorf("is a directory: %w", filetree.ErrInvalid)
	case !isDir && c.Type == RmDir:
		return fmt.Errorf("is no directory: %w", filetree.ErrInvalid)
	}
	for _, e := range n.entries {
		if e.pinned {
			return fmt.Errorf("%q is not empty: %w", c.Path, filetree.ErrInvalid)
		}
	}
	if !n.ghost() {
		if err := a.setAttrs(); err != nil {
			return err
		}
		if err := a.up.Unlink(n.place()); err != nil {
			return err
		}
		if n.parent == a.root {
			delete(a.temps, n.name)
		}
	}
	a.detach(n)
	return nil
}

func (a *applier) verity(c *Command) error {
	n, err := a.resolve(c.Path)
	if err != nil {
		return err
	}
	if n.ghost() || len(a.res.Verity) == MaxVerity {
		return nil
	}
	a.res.Verity = append(a.res.Verity, Verity{string(c.Path), c.VerityAlgorithm, c.VerityBlockSize})
	return nil
}

// data is every command that changes the content of a file.
func (a *applier) data(c *Command) error {
	n, err := a.resolve(c.Path)
	if err != nil {
		return err
	}
	if !n.ghost() && n.kind != filetree.File {
		return fmt.Errorf("is no file: %w", filetree.ErrInvalid)
	}
	if n.ghost() {
		a.res.Skipped += int64(len(c.Data))
		return nil
	}
	if a.excludes.hides(c.Path, n.kind) {
		a.res.Skipped += int64(len(c.Data))
		return a.lose(n)
	}
	switch c.Type {
	case Write:
		return a.write(n, c.Range.Offset, c.Data)
	case EncodedWrite:
		data, err := a.dec.Decode(c)
		if err != nil {
			return err
		}
		return a.write(n, c.Range.Offset, data)
	case Clone:
		return a.clone(n, c)
	case UpdateExtent:
		return a.changed(n, c.Range)
	case Fallocate:
		return a.up.Hole(n.id, c.Range.Offset, c.Range.Length)
	case Truncate:
		a.sizeOf, a.size = n.id, c.Size
		return a.up.Truncate(n.id, c.Size)
	}
	panic("btrfs: internal error: " + c.Type.String())
}

// lose notes that the content of n is not known.
func (a *applier) lose(n *node) error {
	if a.lost == nil {
		a.lost = make(map[filetree.NodeID]struct{})
	}
	a.lost[n.id] = struct{}{}
	n.lost = true
	return a.pin(n)
}

// changed passes on a range without its content.
func (a *applier) changed(n *node, r filetree.Range) error {
	a.grow(n, r.End())
	return a.up.Changed(n.id, r.Offset, r.Length)
}

func (a *applier) clone(n *node, c *Command) error {
	unknown := func() error {
		if err := a.lose(n); err != nil {
			return err
		}
		return a.changed(n, c.Range)
	}
	if a.o.NoData {
		return a.changed(n, c.Range)
	}
	if c.CloneUUID != a.unit.UUID {
		if a.excludes.covers(string(c.ClonePath), filetree.File) {
			return unknown()
		}
		err := a.up.CloneFrom(n.id, c.Range.Offset, c.CloneUUID, string(c.ClonePath), c.CloneOffset, c.Range.Length)
		if errors.Is(err, filetree.ErrNotExist) {
			return unknown() // a clone source that was never stored
		}
		a.grow(n, c.Range.End())
		return err
	}
	src, err := a.resolve(c.ClonePath)
	if err != nil {
		return fmt.Errorf("from %q: %w", c.ClonePath, err)
	}
	if _, lost := a.lost[src.id]; lost || src.ghost() {
		return unknown()
	}
	if src.kind != filetree.File {
		return fmt.Errorf("from %q, which is no file: %w", c.ClonePath, filetree.ErrInvalid)
	}
	a.grow(n, c.Range.End())
	return a.up.Clone(n.id, c.Range.Offset, src.id, c.CloneOffset, c.Range.Length)
}

// holeBlock is the sector size: offsets of data and holes are multiples of it.
const holeBlock = 4096

// write passes data on. See the package comment for what zeros mean in version 1.
func (a *applier) write(n *node, off int64, data []byte) error {
	a.res.Bytes += int64(len(data))
	if !a.holes || a.created.has(n.id) {
		return a.up.Write(n.id, off, data)
	}
	for len(data) > 0 {
		size, zero := run(off, data)
		var err error
		if zero {
			err = a.hole(n, off, int64(size))
		} else {
			a.grow(n, off+int64(size))
			err = a.up.Write(n.id, off, data[:size])
		}
		if err != nil {
			return err
		}
		off += int64(size)
		data = data[size:]
	}
	return nil
}

// run returns how many bytes of data, to be written at off, are all blocks of
// zeros, or all other blocks. What does not begin on a block is another block.
func run(off int64, data []byte) (size int, zero bool) {
	for size < len(data) {
		at := off + int64(size)
		end := min(size+int(holeBlock-at%holeBlock), len(data))
		z := at%holeBlock == 0 && isZero(data[size:end])
		if size > 0 && z != zero {
			break
		}
		size, zero = end, z
	}
	return size, zero
}

var zeros [holeBlock]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// hole does what a write of zeros does: it makes a hole, and the file grows.
func (a *applier) hole(n *node, off, length int64) error {
	if a.sizeOf != n.id {
		err := a.up.SetAttr(n.id, func(attr *filetree.Attr) { a.size = attr.Size })
		if err != nil {
			return err
		}
		a.sizeOf = n.id
	}
	if off < a.size {
		if err := a.up.Hole(n.id, off, length); err != nil {
			return err
		}
	}
	if off+length <= a.size {
		return nil
	}
	a.size = off + length
	return a.up.Truncate(n.id, a.size)
}

// grow keeps the size up to date, if it is that of n.
func (a *applier) grow(n *node, end int64) {
	if a.sizeOf == n.id {
		a.size = max(a.size, end)
	}
}

// finish ends the unit: what is excluded by its final path is taken away, and the
// Result says what is not known.
func (a *applier) finish() error {
	if err := a.create(); err != nil {
		return err
	}
	if err := a.setAttrs(); err != nil {
		return err
	}
	for name, offset := range a.temps {
		return &FormatError{Offset: offset, Err: fmt.Errorf("temporary name %q is left at the end: %w", name, filetree.ErrInvalid)}
	}

	type item struct {
		*node
		path  string
		depth int
		below bool // a ghost
	}
	var items []item
	for _, n := range a.pinned {
		if !n.pinned {
			continue
		}
		it := item{node: n}
		top := n
		for ; top.parent != nil; top = top.parent {
			it.depth++
			it.below = it.below || top.parent.ghost()
		}
		if top == a.root {
			it.path = n.path()
			items = append(items, it)
		}
	}
	// The deepest first: a directory has to be empty when it is taken away.
	slices.SortFunc(items, func(x, y item) int {
		if x.depth != y.depth {
			return y.depth - x.depth
		}
		return strings.Compare(x.path, y.path)
	})
	for _, n := range items {
		out := n.below || a.excludes.covers(n.path, n.kind)
		switch {
		case n.ghost() && !out:
			a.res.Unknown = append(a.res.Unknown, n.path)
		case n.ghost():
		case out:
			if err := a.remove(n.node); err != nil {
				return fmt.Errorf("btrfs: remove excluded %q: %w", n.path, err)
			}
		default:
			if n.lost {
				a.res.Unknown = append(a.res.Unknown, n.path)
			}
			if n.moved {
				a.res.Moved = append(a.res.Moved, n.path)
			}
		}
	}
	slices.Sort(a.res.Unknown)
	slices.Sort(a.res.Moved)
	return nil
}

func (a *applier) remove(n *node) error {
	dir, name := n.place()
	a.detach(n)
	if n.kind == filetree.Dir && a.o.Remove != nil {
		return a.o.Remove(dir, name)
	}
	return a.up.Unlink(dir, name)
}

// An idSet holds NodeIDs. Those that were given in a row cost nothing.
type idSet struct {
	spans []idSpan // ascending, apart from each other
}

type idSpan struct{ first, last filetree.NodeID }

// find returns the index of the first span that does not end before id.
func (s *idSet) find(id filetree.NodeID) int {
	i, _ := slices.BinarySearchFunc(s.spans, id, func(sp idSpan, id filetree.NodeID) int {
		if sp.last < id {
			return -1
		}
		return 1
	})
	return i
}

func (s *idSet) has(id filetree.NodeID) bool {
	i := s.find(id)
	return i < len(s.spans) && s.spans[i].first <= id
}

func (s *idSet) add(id filetree.NodeID) {
	i := s.find(id)
	if i < len(s.spans) && s.spans[i].first <= id {
		return
	}
	before := i > 0 && s.spans[i-1].last+1 == id
	after := i < len(s.spans) && id != math.MaxUint64 && s.spans[i].first == id+1
	switch {
	case before && after:
		s.spans[i-1].last = s.spans[i].last
		s.spans = slices.Delete(s.spans, i, i+1)
	case before:
		s.spans[i-1].last = id
	case after:
		s.spans[i].first = id
	default:
		s.spans = slices.Insert(s.spans, i, idSpan{id, id})
	}
}
