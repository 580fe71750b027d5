package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
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

	// Outside is what the Result of the unit that made the parent had. It is not
	// needed when nothing was excluded until then, and not where all that has names
	// that are excluded is looked at anyway. Nil says nothing.
	Outside []byte
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
	// be excluded after all. Outside hands them on, so that they are named again by
	// every unit until they are known.
	Unknown []string

	// Moved has the paths of directories that were moved, sorted, if Options.Excluded
	// is set. Below them may be nodes that are no longer excluded, of which the stream
	// does not speak and the Update does not know.
	Moved []string

	// Outside is what Options.Outside has to be for a unit that starts from this one, to
	// be kept and not read: the excluded names of files that have others, and what is
	// not known. With NoData it is nil, since the caller looks for himself.
	Outside []byte

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
		unit:    u,
		up:      up,
		o:       o,
		tree:    newTree(up, o.Excluded),
		temps:   make(map[string]int64),
		outside: make(map[filetree.NodeID]int),
		held:    make(map[filetree.NodeID]string),
		dropped: make(map[filetree.NodeID]struct{}),
		lost:    make(map[filetree.NodeID]struct{}),
		holes:   u.Version == 1 && u.Incremental && !o.NoData,
	}
	units := u.units
	u.units = nil // a second Apply is a mistake
	if err := a.load(o.Outside); err != nil {
		return a.res, err
	}
	a.lostBefore = maps.Clone(a.lost)
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
	parked  int              // names given to nodes that wait in the root

	// outside counts the names outside of nodes that have any. The last name that such a
	// node has in the Update is held until the end, under the name of a parked one: the
	// node may get others.
	outside map[filetree.NodeID]int
	held    map[filetree.NodeID]string
	dropped map[filetree.NodeID]struct{} // those that may have no name that is kept any more
	unborn  unborn

	// lost has the files whose content is not known.
	lost, lostBefore map[filetree.NodeID]struct{}

	parentNames map[string]filetree.NodeID // see parentNode
	keptOf      filetree.NodeID            // the node that kept was last asked for; 0: ask again
	keptIs      bool

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
		a.keptOf = 0
		return a.rename(c)
	case Link:
		a.keptOf = 0
		return a.link(c)
	case Unlink, RmDir:
		a.keptOf = 0
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
		return a.conceive(d, name, attr)
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
		a.attrs.apply(&n.attr)
		a.attrs = attrs{}
		return a.conceive(d, name, n.attr)
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
	hidden := d.ghost() || a.excludes.hides(c.PathTo, n.kind)
	switch {
	case n.outside:
		return a.renameOutside(n, d, name, c.PathTo, hidden)
	case n.ghost() && !hidden && a.isUnborn(n):
		a.unname(n)
		return a.bear(d, name, c.PathTo)
	case n.ghost():
		if err := a.free(d, name); err != nil {
			return err
		}
		a.detach(n)
		a.attach(d, name, n)
		if hidden {
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
		return a.pinAll(n)
	}
	if n.kind == filetree.Dir {
		a.settle(n)
	}
	return a.loose(n, c.PathTo)
}

const parkedPrefix = "\x01secrate-parked-"

// parkingName returns a name that is free in the root and that nobody gives.
func (a *applier) parkingName() (string, error) {
	for {
		name := fmt.Sprintf("%s%d", parkedPrefix, a.parked)
		a.parked++
		switch _, _, err := a.up.Lookup(filetree.RootNode, name); {
		case errors.Is(err, filetree.ErrNotExist):
			return name, nil
		case err != nil:
			return "", err
		}
	}
}

// link makes a name. One that is excluded is remembered, but not made.
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
	}
	hidden := d.ghost() || a.excludes.hides(c.Path, n.kind)
	switch {
	case n.ghost() && a.isUnborn(n):
		if !hidden {
			return a.bear(d, name, c.Path)
		}
		if err := d.taken(name); err != nil {
			return err
		}
		m := a.attach(d, name, &node{kind: n.kind})
		a.unborn.names = append(a.unborn.names, m)
		return a.pin(m)
	case n.ghost() && hidden:
		return nil
	case n.ghost():
		if err := a.free(d, name); err != nil {
			return err
		}
		return a.pin(a.attach(d, name, &node{kind: n.kind}))
	}
	if err := d.taken(name); err != nil {
		return err
	}
	if hidden {
		return a.putOutside(a.attach(d, name, &node{kind: n.kind}), n.id)
	}
	if err := a.up.Link(d.id, name, n.id); err != nil {
		return err
	}
	return a.loose(a.attach(d, name, &node{id: n.id, kind: n.kind}), c.Path)
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
	switch {
	case n.outside:
		a.takeOutside(n)
	case n.ghost():
		a.unname(n)
		return nil
	default:
		if err := a.setAttrs(); err != nil {
			return err
		}
		if err := a.unlinkOrHold(n); err != nil {
			return err
		}
		if n.parent == a.root {
			delete(a.temps, n.name)
		}
	}
	a.detach(n)
	return nil
}

func (a *applier) unlinkOrHold(n *node) error {
	dir, name := n.place()
	if a.outside[n.id] == 0 || a.held[n.id] != "" {
		return a.up.Unlink(dir, name)
	}
	held, err := a.parkingName()
	if err != nil {
		return err
	}
	a.held[n.id] = held
	return a.up.Rename(dir, name, filetree.RootNode, held)
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
		a.forget(n)
		a.res.Skipped += int64(len(c.Data))
		return nil
	}
	if n.outside || a.excludes.hides(c.Path, n.kind) {
		switch kept, err := a.kept(n.id); {
		case err != nil:
			return err
		case !kept: // so it will go, unless it moves once more
			a.res.Skipped += int64(len(c.Data))
			a.lost[n.id] = struct{}{}
			return nil
		}
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
		if c.Size == 0 {
			delete(a.lost, n.id)
		}
		return a.up.Truncate(n.id, c.Size)
	}
	panic("btrfs: internal error: " + c.Type.String())
}

// changed passes on a range without its content.
func (a *applier) changed(n *node, r filetree.Range) error {
	a.grow(n, r.End())
	return a.up.Changed(n.id, r.Offset, r.Length)
}

func (a *applier) clone(n *node, c *Command) error {
	unknown := func() error {
		a.lost[n.id] = struct{}{}
		return a.changed(n, c.Range)
	}
	if a.o.NoData {
		return a.changed(n, c.Range)
	}
	if c.CloneUUID != a.unit.UUID {
		src, err := a.up.Resolve(c.CloneUUID, string(c.ClonePath))
		ofParent := a.unit.Incremental && c.CloneUUID == a.unit.ParentUUID
		if ofParent && errors.Is(err, filetree.ErrNotExist) {
			src, err = a.parentNode(string(c.ClonePath))
		}
		_, lost := a.lostBefore[src]
		if errors.Is(err, filetree.ErrNotExist) || ofParent && lost {
			return unknown() // a clone source that was never stored
		} else if err != nil {
			return err
		}
		a.grow(n, c.Range.End())
		return a.up.CloneFrom(n.id, c.Range.Offset, c.CloneUUID, src, c.CloneOffset, c.Range.Length)
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

	items := a.items()
	var list []outsider
	// Names first, so that nothing goes that has one that is kept now.
	for _, n := range items {
		if n.outside && !n.out {
			if err := a.up.Link(n.parent.id, n.name, n.id); err != nil {
				return fmt.Errorf("btrfs: link %q, which is no longer excluded: %w", n.path, err)
			}
			a.takeOutside(n.node)
		}
	}
	var moved []item
	for _, n := range items {
		switch {
		case n.outside:
			list = append(list, outsider{n.path, n.id, n.kind})
		case n.ghost() && !n.out:
			a.res.Unknown = append(a.res.Unknown, n.path)
			list = append(list, outsider{n.path, 0, n.kind})
		case n.ghost():
		case n.out:
			dir, name := n.place()
			a.detach(n.node)
			if err := a.remove(dir, name, n.id, n.kind, n.path, &list); err != nil {
				return err
			}
		case n.moved:
			moved = append(moved, n)
			a.res.Moved = append(a.res.Moved, n.path)
		}
	}
	for _, n := range moved {
		if err := a.sweep(n, &list); err != nil {
			return err
		}
	}
	for id, name := range a.held {
		a.dropped[id] = struct{}{}
		if err := a.up.Unlink(filetree.RootNode, name); err != nil {
			return err
		}
	}
	if err := a.reportLost(&list); err != nil {
		return err
	}
	slices.Sort(a.res.Unknown)
	slices.Sort(a.res.Moved)
	if a.o.NoData {
		return nil
	}
	for id := range a.dropped {
		names, err := a.up.Names(id, 1)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			delete(a.dropped, id)
		}
	}
	list = slices.DeleteFunc(list, func(o outsider) bool {
		_, gone := a.dropped[o.node]
		return gone
	})
	a.res.Outside = encodeOutside(list)
	return nil
}

// An item is a pinned node at the end of the unit.
type item struct {
	*node
	path  string
	depth int
	out   bool // excluded, or below a ghost
}

// items returns the pinned nodes, the deepest first: a directory has to be empty when it
// is taken away.
func (a *applier) items() []item {
	var items []item
	for _, n := range a.pinned {
		if !n.pinned {
			continue
		}
		it := item{node: n}
		top := n
		for ; top.parent != nil; top = top.parent {
			it.depth++
			it.out = it.out || top.parent.ghost()
		}
		if top == a.root {
			it.path = n.path()
			it.out = it.out || a.excludes.covers(it.path, n.kind)
			items = append(items, it)
		}
	}
	slices.SortFunc(items, func(x, y item) int {
		if x.depth != y.depth {
			return y.depth - x.depth
		}
		return strings.Compare(x.path, y.path)
	})
	return items
}

// remove takes an entry of the Update away with all that is below it. What of that has
// other names, or may have, goes to list.
func (a *applier) remove(dir filetree.NodeID, name string, id filetree.NodeID, kind filetree.Kind, path string, list *[]outsider) error {
	type entry struct {
		filetree.Entry
		id   filetree.NodeID
		path string
		done bool // with what is below
	}
	unlink := func(e filetree.Entry, path string) error {
		if err := a.up.Unlink(e.Dir, e.Name); err != nil {
			return fmt.Errorf("btrfs: remove excluded %q: %w", path, err)
		}
		return nil
	}
	file := func(e filetree.Entry, id filetree.NodeID, kind filetree.Kind, path string) error {
		if err := unlink(e, path); err != nil {
			return err
		}
		left, err := a.up.Names(id, 1)
		if len(left) > 0 {
			*list = append(*list, outsider{path, id, kind})
		}
		if len(left) > 0 || a.outside[id] > 0 {
			a.dropped[id] = struct{}{}
		}
		return err
	}
	top := filetree.Entry{Dir: dir, Name: name}
	if kind != filetree.Dir {
		return file(top, id, kind, path)
	}
	for todo := []entry{{Entry: top, id: id, path: path}}; len(todo) > 0; {
		e := todo[len(todo)-1]
		if e.done {
			if err := unlink(e.Entry, e.path); err != nil {
				return err
			}
			todo = todo[:len(todo)-1]
			continue
		}
		todo[len(todo)-1].done = true
		for c, err := range a.up.Children(e.id) {
			if err != nil {
				return err
			}
			at, path := filetree.Entry{Dir: e.id, Name: c.Name}, join(e.path, c.Name)
			if c.Kind == filetree.Dir {
				todo = append(todo, entry{Entry: at, id: c.Node, path: path})
			} else if err := file(at, c.Node, c.Kind, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweep removes what is excluded now below a directory that was moved.
func (a *applier) sweep(d item, list *[]outsider) error {
	for n := d.parent; n != nil; n = n.parent {
		if n.moved {
			return nil // with that
		}
	}
	type dir struct {
		id   filetree.NodeID
		path string
	}
	for todo := []dir{{d.id, d.path}}; len(todo) > 0; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for c, err := range a.up.Children(at.id) {
			if err != nil {
				return err
			}
			path := join(at.path, c.Name)
			if a.excludes.covers(path, c.Kind) {
				err = a.remove(at.id, c.Name, c.Node, c.Kind, path, list)
			} else if c.Kind == filetree.Dir {
				todo = append(todo, dir{c.Node, path})
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// reportLost names the files whose content is not known, by all names that are left.
func (a *applier) reportLost(list *[]outsider) error {
	for id := range a.lost {
		names, err := a.up.Names(id, 0)
		if err != nil {
			return err
		}
		for _, e := range names {
			path, err := a.pathOf(e)
			if err != nil {
				return err
			}
			a.res.Unknown = append(a.res.Unknown, path)
			*list = append(*list, outsider{path, id, filetree.File})
		}
	}
	return nil
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
