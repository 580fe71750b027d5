//go:build linux

package treegen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv/manifest"
)

// An op is an operation. do returns false, having changed nothing, if the tree has
// nothing for it to work on.
type op struct {
	weight  int
	shrinks bool
	do      func(g *Gen) (bool, error)
}

// operations are all there are. Their weights are how often they come.
var operations = []op{
	{weight: 30, do: (*Gen).create},
	{weight: 12, do: (*Gen).createText},
	{weight: 2, do: (*Gen).createLarge},
	{weight: 4, do: (*Gen).createUnnamed},
	{weight: 20, do: (*Gen).overwrite},
	{weight: 12, do: (*Gen).appendData},
	{weight: 4, do: (*Gen).sameBytes},
	{weight: 8, do: (*Gen).editLarge},
	{weight: 12, do: (*Gen).editText},
	{weight: 6, do: (*Gen).insert},
	{weight: 6, shrinks: true, do: (*Gen).truncate},
	{weight: 5, do: (*Gen).grow},
	{weight: 5, do: (*Gen).writePastEnd},
	{weight: 6, do: (*Gen).punch},
	{weight: 6, do: (*Gen).allocate},
	{weight: 12, do: (*Gen).clone},
	{weight: 9, do: (*Gen).mkdir},
	{weight: 1, do: (*Gen).mkdirDeep},
	{weight: 6, do: (*Gen).symlink},
	{weight: 5, do: (*Gen).special},
	{weight: 10, do: (*Gen).link},
	{weight: 25, do: (*Gen).rename},
	{weight: 8, shrinks: true, do: (*Gen).replace},
	{weight: 8, do: (*Gen).exchange},
	{weight: 4, do: (*Gen).storm},
	{weight: 4, do: (*Gen).invert},
	{weight: 3, do: (*Gen).awayAndBack},
	{weight: 4, do: (*Gen).changeKind},
	{weight: 20, shrinks: true, do: (*Gen).unlink},
	{weight: 10, shrinks: true, do: (*Gen).rmdir},
	{weight: 2, shrinks: true, do: (*Gen).removeTree},
	{weight: 8, do: (*Gen).chmod},
	{weight: 5, do: (*Gen).chown},
	{weight: 6, do: (*Gen).utimes},
	{weight: 8, do: (*Gen).setXattr},
	{weight: 4, do: (*Gen).removeXattr},
	{weight: 3, do: (*Gen).acl},
	{weight: 2, do: (*Gen).capability},
	{weight: 3, do: (*Gen).flags},
	{weight: 2, do: (*Gen).moveOut},
	{weight: 2, do: (*Gen).moveIn},
}

// cannot reports whether err says that the file system, or a user who is not root,
// cannot do a thing at all.
func cannot(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS, unix.EINVAL, unix.EPERM, unix.EXDEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tolerate drops an error that says a thing cannot be done.
func tolerate(err error) error {
	if cannot(err) {
		return nil
	}
	return err
}

// edit opens the file e for reading and writing.
func (g *Gen) edit(e *entry, do func(f *os.File) error) error {
	f, err := os.OpenFile(g.at(e), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// writeAt writes data to e.
func (g *Gen) writeAt(e *entry, off int64, data []byte) error {
	g.Note("write %v off=%d len=%d", e, off, len(data))
	err := g.edit(e, func(f *os.File) error {
		_, err := f.WriteAt(data, off)
		return err
	})
	if len(data) > 0 {
		g.resize(e.n, max(e.n.size, off+int64(len(data))))
	}
	return err
}

// place draws a directory and a free name in it.
func (g *Gen) place(n *node) (*node, string, bool) {
	dir := g.anyDir()
	name := g.freshName(dir, n)
	return dir, name, name != ""
}

// newFile makes a file.
func (g *Gen) newFile(data []byte, text bool) (bool, error) {
	n := &node{kind: filetree.File, text: text}
	dir, name, ok := g.place(n)
	if !ok {
		return false, nil
	}
	return true, g.newFileAt(dir, name, n, data)
}

func (g *Gen) newFileAt(dir *node, name string, n *node, data []byte) error {
	g.Note("create %s len=%d", show(dir, name), len(data))
	f, err := os.OpenFile(g.path(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	g.add(dir, name, n)
	g.resize(n, int64(len(data)))
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func (g *Gen) create() (bool, error)     { return g.newFile(g.bytes(g.size()), false) }
func (g *Gen) createText() (bool, error) { return g.newFile(g.lines(1+g.rng.IntN(400)), true) }

func (g *Gen) createLarge() (bool, error) {
	if g.o.Large < 0 || g.total+g.o.Large > g.o.Bytes {
		return false, nil
	}
	return g.newFile(g.bytes(g.o.Large+g.rng.Int64N(5000)), false)
}

// createUnnamed writes to a file that has no name and then gives it one.
func (g *Gen) createUnnamed() (bool, error) {
	n := &node{kind: filetree.File}
	dir, name, ok := g.place(n)
	if !ok {
		return false, nil
	}
	data := g.bytes(g.size())
	fd, err := unix.Open(g.path(dir, "."), unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, 0o644)
	if cannot(err) {
		return true, g.newFileAt(dir, name, n, data)
	}
	g.Note("tmpfile %s len=%d", show(dir, name), len(data))
	if err != nil {
		return true, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return true, err
	}
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, g.path(dir, name), unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return true, err
	}
	g.add(dir, name, n)
	g.resize(n, int64(len(data)))
	return true, nil
}

func (g *Gen) overwrite() (bool, error) {
	e := g.pick(isFilled)
	if e == nil {
		return false, nil
	}
	off := g.offset(e.n.size - 1)
	return true, g.writeAt(e, off, g.bytes(min(g.size()+1, e.n.size-off)))
}

func (g *Gen) appendData() (bool, error) {
	e := g.pick(isFile)
	if e == nil {
		return false, nil
	}
	if e.n.text {
		return true, g.writeAt(e, e.n.size, g.lines(1+g.rng.IntN(5)))
	}
	return true, g.writeAt(e, e.n.size, g.bytes(g.size()))
}

func (g *Gen) sameBytes() (bool, error) {
	e := g.pick(isFilled)
	if e == nil {
		return false, nil
	}
	off := g.offset(e.n.size - 1)
	data := make([]byte, min(1+g.size(), e.n.size-off))
	g.Note("same bytes %v off=%d len=%d", e, off, len(data))
	return true, g.edit(e, func(f *os.File) error {
		if _, err := f.ReadAt(data, off); err != nil {
			return err
		}
		_, err := f.WriteAt(data, off)
		return err
	})
}

// editLarge changes a few bytes in a large file, at a few places.
func (g *Gen) editLarge() (bool, error) {
	e := g.pick(g.isLarge)
	if e == nil {
		return false, nil
	}
	for range 1 + g.rng.IntN(4) {
		if err := g.writeAt(e, g.rng.Int64N(e.n.size-16), g.noise(1+g.rng.Int64N(16))); err != nil {
			return true, err
		}
	}
	return true, nil
}

// editText changes a line in a text and saves it, in place or by another file that is
// renamed over it.
func (g *Gen) editText() (bool, error) {
	e := g.pick(isText)
	if e == nil {
		return false, nil
	}
	g.Note("edit %v", e)
	data, err := os.ReadFile(g.at(e))
	if err != nil {
		return true, err
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	i := g.rng.IntN(len(lines))
	switch g.rng.IntN(3) {
	case 0:
		lines = slices.Insert(lines, i, g.line())
	case 1:
		lines[i] = g.line()
	case 2:
		lines = slices.Delete(lines, i, min(i+1+g.rng.IntN(3), len(lines)))
	}
	return true, g.save(e, bytes.Join(lines, nil))
}

// insert puts some bytes into the middle of a file, so that all that follows moves.
func (g *Gen) insert() (bool, error) {
	e := g.pick(isFilled)
	if e == nil || e.n.size > 4<<20 {
		return false, nil
	}
	data, err := os.ReadFile(g.at(e))
	if err != nil {
		return true, err
	}
	off := g.rng.IntN(len(data))
	new := g.noise(1 + g.rng.Int64N(200))
	g.Note("insert %v off=%d len=%d", e, off, len(new))
	return true, g.save(e, slices.Insert(data, off, new...))
}

// save writes the file e anew, in one of three ways.
func (g *Gen) save(e *entry, data []byte) error {
	if g.rng.IntN(2) == 0 {
		g.Note("rewrite %v len=%d", e, len(data))
		err := os.WriteFile(g.at(e), data, 0)
		g.resize(e.n, int64(len(data)))
		return err
	}
	tmp := fmt.Sprintf(".%d.swp", g.next())
	if e.parent.byName[tmp] != nil {
		return fmt.Errorf("%s is there", tmp)
	}
	if err := g.newFileAt(e.parent, tmp, &node{kind: filetree.File, text: e.n.text}, data); err != nil {
		return err
	}
	if g.rng.IntN(3) == 0 { // keep the old one as a backup
		if backup := e.name + "~"; len(backup) <= filetree.MaxName && e.parent.byName[backup] == nil && e.parent.byName[e.name] == e {
			dir, name := e.parent, e.name
			if err := g.doRename(e, dir, backup); err != nil {
				return err
			}
			return g.doRename(dir.byName[tmp], dir, name)
		}
	}
	return g.doRename(e.parent.byName[tmp], e.parent, e.name)
}

func (g *Gen) truncate() (bool, error) {
	e := g.pick(isFilled)
	if e == nil {
		return false, nil
	}
	return true, g.doTruncate(e, g.offset(e.n.size-1))
}

func (g *Gen) doTruncate(e *entry, size int64) error {
	g.Note("truncate %v %d", e, size)
	err := os.Truncate(g.at(e), size)
	g.resize(e.n, size)
	return err
}

func (g *Gen) grow() (bool, error) {
	e := g.pick(isFile)
	if e == nil {
		return false, nil
	}
	return true, g.doTruncate(e, e.n.size+1+g.gap())
}

func (g *Gen) writePastEnd() (bool, error) {
	e := g.pick(isFile)
	if e == nil {
		return false, nil
	}
	return true, g.writeAt(e, e.n.size+1+g.gap(), g.bytes(1+g.size()))
}

// gap returns the length of a hole, sometimes a large one.
func (g *Gen) gap() int64 {
	if g.rng.IntN(10) == 0 {
		return min(g.rng.Int64N(3<<20), g.o.Bytes/4)
	}
	return g.rng.Int64N(40_000)
}

// punch makes a hole, or zeros.
func (g *Gen) punch() (bool, error) {
	e := g.pick(isFilled)
	if e == nil {
		return false, nil
	}
	off := g.offset(e.n.size - 1)
	n := min(1+g.offset(60_000), e.n.size-off)
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if g.rng.IntN(3) == 0 {
		mode = unix.FALLOC_FL_ZERO_RANGE
	}
	g.Note("fallocate %v mode=%#x off=%d len=%d", e, mode, off, n)
	return true, g.edit(e, func(f *os.File) error {
		err := unix.Fallocate(int(f.Fd()), mode, off, n)
		if cannot(err) {
			_, err = f.WriteAt(make([]byte, n), off)
		}
		return err
	})
}

// allocate reserves space: inside, past the end growing the file, past the end and
// not growing it.
func (g *Gen) allocate() (bool, error) {
	e := g.pick(isFile)
	if e == nil {
		return false, nil
	}
	off := g.offset(e.n.size + 20_000)
	n := 1 + g.offset(60_000)
	mode := uint32(0)
	if g.rng.IntN(2) == 0 {
		mode = unix.FALLOC_FL_KEEP_SIZE
	}
	g.Note("fallocate %v mode=%#x off=%d len=%d", e, mode, off, n)
	err := g.edit(e, func(f *os.File) error {
		err := unix.Fallocate(int(f.Fd()), mode, off, n)
		if cannot(err) {
			err = nil
			if mode == 0 && off+n > e.n.size {
				err = f.Truncate(off + n)
			}
		}
		return err
	})
	if mode == 0 {
		g.resize(e.n, max(e.n.size, off+n))
	}
	return true, err
}

// clone lets one file share data with another, or with itself.
func (g *Gen) clone() (bool, error) {
	src := g.pick(isFilled)
	if src == nil {
		return false, nil
	}
	if g.rng.IntN(3) == 0 { // the whole file
		n := &node{kind: filetree.File, text: src.n.text}
		dir, name, ok := g.place(n)
		if !ok {
			return false, nil
		}
		if err := g.newFileAt(dir, name, n, nil); err != nil {
			return true, err
		}
		return true, g.doClone(src, 0, dir.byName[name], 0, src.n.size)
	}
	dst := g.pick(isFile)
	if dst == nil {
		return false, nil
	}
	const block = 4096
	srcOff := g.rng.Int64N(src.n.size) / block * block
	n := min((1+g.rng.Int64N(8))*block, src.n.size-srcOff)
	dstOff := g.rng.Int64N(dst.n.size+4*block) / block * block
	if n%block != 0 && dstOff+n < dst.n.size {
		// A part of a block can be shared only at the end of both files.
		if n = n / block * block; n == 0 {
			return false, nil
		}
	}
	if src.n == dst.n && srcOff < dstOff+n && dstOff < srcOff+n {
		return false, nil // would overlap
	}
	return true, g.doClone(src, srcOff, dst, dstOff, n)
}

func (g *Gen) doClone(src *entry, srcOff int64, dst *entry, dstOff, n int64) error {
	g.Note("clone %v [%d+%d] -> %v @%d", src, srcOff, n, dst, dstOff)
	err := g.edit(src, func(s *os.File) error {
		return g.edit(dst, func(d *os.File) error {
			clone := func() error {
				return unix.IoctlFileCloneRange(int(d.Fd()), &unix.FileCloneRange{
					Src_fd: int64(s.Fd()), Src_offset: uint64(srcOff), Src_length: uint64(n), Dest_offset: uint64(dstOff),
				})
			}
			err := error(unix.EINVAL)
			if !g.zfs || src.n != dst.n {
				err = clone()
			}
			if err == unix.EAGAIN { // ZFS clones only what it has written to disk
				if err := settle(s); err != nil {
					return err
				}
				err = clone()
			}
			if !cannot(err) && err != unix.EAGAIN {
				return err
			}
			_, err = io.Copy(io.NewOffsetWriter(d, dstOff), io.NewSectionReader(s, srcOff, n))
			return err
		})
	})
	g.resize(dst.n, max(dst.n.size, dstOff+n))
	return err
}

// settle has ZFS write to disk what f has in memory. Asking for a hole does that, as
// only then it is known where the holes are; fsync(2) writes no more than a log.
func settle(f *os.File) error {
	_, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	if err == unix.ENXIO { // an empty file
		return nil
	}
	return err
}

func (g *Gen) mkdir() (bool, error) {
	n := newDir()
	dir, name, ok := g.place(n)
	if !ok {
		return false, nil
	}
	return true, g.mkdirAt(dir, name, n)
}

func (g *Gen) mkdirAt(dir *node, name string, n *node) error {
	g.Note("mkdir %s", show(dir, name))
	err := unix.Mkdir(g.path(dir, name), 0o755)
	g.add(dir, name, n)
	return err
}

func (g *Gen) mkdirDeep() (bool, error) {
	dir := g.anyDir()
	done := false
	for range 3 + g.rng.IntN(10) {
		n := newDir()
		name := g.freshName(dir, n)
		if name == "" {
			break
		}
		if err := g.mkdirAt(dir, name, n); err != nil {
			return true, err
		}
		dir, done = n, true
	}
	return done, nil
}

func (g *Gen) symlink() (bool, error) {
	n := &node{kind: filetree.Symlink}
	dir, name, ok := g.place(n)
	if !ok {
		return false, nil
	}
	return true, g.symlinkAt(dir, name, n)
}

func (g *Gen) symlinkAt(dir *node, name string, n *node) error {
	target := g.name()
	switch g.rng.IntN(6) {
	case 0:
		target = "/absolute/" + target
	case 1:
		target = "../../" + target
	case 2:
		target = string(bytes.Repeat([]byte("t"), 1+g.rng.IntN(1000))) // XFS takes 1023
	case 3:
		if e := g.pick(isAny); e != nil {
			target = e.rel()
		}
	}
	g.Note("symlink %s -> %s", show(dir, name), manifest.Show(target))
	err := unix.Symlink(target, g.path(dir, name))
	g.add(dir, name, n)
	return err
}

func (g *Gen) special() (bool, error) {
	kind := []filetree.Kind{filetree.Fifo, filetree.Socket, filetree.CharDev, filetree.BlkDev}[g.rng.IntN(4)]
	n := &node{kind: kind}
	dir, name, ok := g.place(n)
	if !ok {
		return false, nil
	}
	return true, g.specialAt(dir, name, n)
}

// specialAt makes a fifo, a socket or a device. A device that only root may make
// becomes a fifo.
func (g *Gen) specialAt(dir *node, name string, n *node) error {
	types := map[filetree.Kind]uint32{
		filetree.Fifo: unix.S_IFIFO, filetree.Socket: unix.S_IFSOCK, filetree.CharDev: unix.S_IFCHR, filetree.BlkDev: unix.S_IFBLK,
	}
	var dev uint64
	if n.kind == filetree.CharDev || n.kind == filetree.BlkDev {
		dev = unix.Mkdev(g.rng.Uint32N(1<<9), g.rng.Uint32N(1<<18)) // what XFS holds
	}
	g.Note("mknod %s %v %d:%d", show(dir, name), n.kind, unix.Major(dev), unix.Minor(dev))
	err := unix.Mknod(g.path(dir, name), types[n.kind]|0o640, int(dev))
	if err == unix.EPERM {
		n.kind = filetree.Fifo
		err = unix.Mkfifo(g.path(dir, name), 0o640)
	}
	g.add(dir, name, n)
	return err
}

func (g *Gen) link() (bool, error) {
	if g.o.NoLinks {
		return false, nil
	}
	e := g.pick(isNotDir)
	if e == nil || len(e.n.names) > 8 {
		return false, nil
	}
	dir, name, ok := g.place(e.n)
	if !ok {
		return false, nil
	}
	g.Note("link %v => %s", e, show(dir, name))
	err := unix.Link(g.at(e), g.path(dir, name))
	g.add(dir, name, e.n)
	return true, err
}

// doRename renames e; what has the name is replaced.
func (g *Gen) doRename(e *entry, dir *node, name string) error {
	g.Note("rename %v -> %s", e, show(dir, name))
	if old := dir.byName[name]; old != nil && old.n == e.n {
		return errors.New("internal error: the names are links to one file")
	}
	err := unix.Rename(g.at(e), g.path(dir, name))
	g.move(e, dir, name)
	return err
}

func (g *Gen) rename() (bool, error) {
	ok := isAny
	if g.rng.IntN(3) == 0 {
		ok = isDir
	}
	e := g.pick(ok)
	if e == nil {
		return false, nil
	}
	dir := e.parent
	if g.rng.IntN(3) > 0 {
		dir = g.anyDir()
	}
	name := e.name
	if dir.byName[name] != nil || g.rng.IntN(2) == 0 {
		name = g.freshName(dir, e.n)
	}
	if name == "" || !g.fits(dir, name, e.n) || within(dir, e.n) {
		return false, nil
	}
	return true, g.doRename(e, dir, name)
}

// replace renames something over something else.
func (g *Gen) replace() (bool, error) {
	target := g.pick(func(n *node) bool { return n.kind != filetree.Dir || len(n.list) == 0 })
	if target == nil {
		return false, nil
	}
	ok := isNotDir
	if target.n.kind == filetree.Dir {
		ok = isDir
	}
	e := g.pick(ok)
	if e == nil || e.n == target.n || within(target.parent, e.n) || !g.fits(target.parent, target.name, e.n) {
		return false, nil
	}
	return true, g.doRename(e, target.parent, target.name)
}

func (g *Gen) exchange() (bool, error) {
	a, b := g.pick(isAny), g.pick(isAny)
	if a == nil || a.n == b.n || within(a.parent, b.n) || within(b.parent, a.n) ||
		!g.fits(a.parent, a.name, b.n) || !g.fits(b.parent, b.name, a.n) {
		return false, nil
	}
	return true, g.doExchange(a, b)
}

func (g *Gen) doExchange(a, b *entry) error {
	g.Note("exchange %v <-> %v", a, b)
	err := unix.Renameat2(unix.AT_FDCWD, g.at(a), unix.AT_FDCWD, g.at(b), unix.RENAME_EXCHANGE)
	if cannot(err) {
		tmp := g.dir + fmt.Sprintf("/.exchange%d", g.next())
		err = errors.Join(unix.Rename(g.at(a), tmp), unix.Rename(g.at(b), g.at(a)), unix.Rename(tmp, g.at(b)))
	}
	g.swap(a, b)
	return err
}

// storm rotates the names in a directory, or renames one thing many times.
func (g *Gen) storm() (bool, error) {
	dir := g.anyDir()
	if len(dir.list) < 3 || g.rng.IntN(3) == 0 {
		e := g.pick(isAny)
		if e == nil {
			return false, nil
		}
		n := e.n
		for range 2 + g.rng.IntN(8) {
			name := g.freshName(e.parent, n)
			if name == "" {
				break
			}
			dir := e.parent
			if err := g.doRename(e, dir, name); err != nil {
				return true, err
			}
			e = dir.byName[name]
		}
		return true, nil
	}
	list := slices.Clone(dir.list)
	for i := range min(len(list)-1, 2+g.rng.IntN(6)) {
		a, b := list[i], list[i+1]
		if a.n == b.n || !g.fits(dir, a.name, b.n) || !g.fits(dir, b.name, a.n) {
			continue
		}
		if err := g.doExchange(a, b); err != nil {
			return true, err
		}
	}
	return true, nil
}

// invert turns a/b into b/a.
func (g *Gen) invert() (bool, error) {
	b := g.pick(isDir)
	if b == nil || b.parent == g.root {
		return false, nil
	}
	a := b.parent.names[0]
	up, name := a.parent, b.name
	if up.byName[name] != nil {
		if name = g.freshName(up, b.n); name == "" {
			return false, nil
		}
	}
	if b.n.byName[a.name] != nil || !g.fits(up, name, b.n) ||
		len(up.rel())+len(name)+len(a.name)+2+a.n.depth() > g.o.PathMax {
		return false, nil
	}
	n := b.n
	if err := g.doRename(b, up, name); err != nil {
		return true, err
	}
	return true, g.doRename(a, n, a.name)
}

// awayAndBack moves something to another directory, changes it, and moves it back.
func (g *Gen) awayAndBack() (bool, error) {
	e := g.pick(isAny)
	if e == nil {
		return false, nil
	}
	n, home, name := e.n, e.parent, e.name
	away := g.anyDir()
	tmp := g.freshName(away, n)
	if tmp == "" || within(away, n) {
		return false, nil
	}
	if err := g.doRename(e, away, tmp); err != nil {
		return true, err
	}
	e = away.byName[tmp]
	if n.kind == filetree.File && g.rng.IntN(2) == 0 {
		if err := g.writeAt(e, n.size, g.bytes(g.size())); err != nil {
			return true, err
		}
	}
	return true, g.doRename(e, home, name)
}

// changeKind takes something away and makes something else under its name.
func (g *Gen) changeKind() (bool, error) {
	e := g.pick(func(n *node) bool { return n.kind != filetree.Dir || len(n.list) == 0 })
	if e == nil {
		return false, nil
	}
	dir, name, old := e.parent, e.name, e.n.kind
	if err := g.remove(e); err != nil {
		return true, err
	}
	kind := filetree.Kind(1 + g.rng.IntN(int(filetree.BlkDev)))
	if kind == old {
		kind = kind%filetree.BlkDev + 1
	}
	n := &node{kind: kind}
	switch kind {
	case filetree.File:
		return true, g.newFileAt(dir, name, n, g.bytes(g.size()))
	case filetree.Dir:
		return true, g.mkdirAt(dir, name, newDir())
	case filetree.Symlink:
		return true, g.symlinkAt(dir, name, n)
	}
	return true, g.specialAt(dir, name, n)
}

// remove takes away a name, of a directory when it is empty.
func (g *Gen) remove(e *entry) error {
	if e.n.kind == filetree.Dir {
		g.Note("rmdir %v", e)
		err := unix.Rmdir(g.at(e))
		g.drop(e)
		return err
	}
	g.Note("unlink %v", e)
	err := unix.Unlink(g.at(e))
	g.drop(e)
	return err
}

func (g *Gen) unlink() (bool, error) {
	e := g.pick(isNotDir)
	if e == nil {
		return false, nil
	}
	return true, g.remove(e)
}

func (g *Gen) rmdir() (bool, error) {
	e := g.pick(isEmptyDir)
	if e == nil {
		return false, nil
	}
	return true, g.remove(e)
}

func (g *Gen) removeTree() (bool, error) {
	e := g.pick(isDir)
	if e == nil {
		return false, nil
	}
	g.Note("remove tree %v", e)
	err := os.RemoveAll(g.at(e))
	g.dropTree(e)
	return true, err
}

// target draws what has its attributes changed: mostly an entry, sometimes the root.
func (g *Gen) target(ok func(*node) bool) (n *node, path, shown string) {
	if g.rng.IntN(20) == 0 && ok(g.root) {
		return g.root, g.dir, "."
	}
	e := g.pick(ok)
	if e == nil {
		return nil, "", ""
	}
	return e.n, g.at(e), e.String()
}

func (g *Gen) chmod() (bool, error) {
	n, path, shown := g.target(func(n *node) bool { return n.kind != filetree.Symlink })
	if n == nil {
		return false, nil
	}
	mode := []uint32{0o644, 0o600, 0o755, 0o400, 0, 0o777, 0o2750, 0o4711, 0o1777}[g.rng.IntN(9)]
	if n.kind == filetree.Dir || os.Geteuid() != 0 {
		mode |= 0o700 // for those who are not root
	}
	g.Note("chmod %s %o", shown, mode)
	return true, unix.Chmod(path, mode)
}

func (g *Gen) chown() (bool, error) {
	n, path, shown := g.target(isAny)
	if n == nil {
		return false, nil
	}
	uid, gid := g.rng.IntN(3)*1000, g.rng.IntN(3)*1000
	if g.rng.IntN(8) == 0 {
		uid, gid = 4294967294, 3000000000
	}
	g.Note("chown %s %d:%d", shown, uid, gid)
	return true, tolerate(unix.Lchown(path, uid, gid))
}

func (g *Gen) utimes() (bool, error) {
	n, path, shown := g.target(isAny)
	if n == nil {
		return false, nil
	}
	sec := g.rng.Int64N(2_000_000_000)
	switch g.rng.IntN(5) {
	case 0:
		sec = -1 - g.rng.Int64N(2_000_000_000) // before 1970
	case 1:
		sec = 1<<32 + g.rng.Int64N(1<<32) // after 2106
	}
	nsec := g.rng.Int64N(1_000_000_000)
	g.Note("utimes %s %d.%09d", shown, sec, nsec)
	t := unix.NsecToTimespec(nsec) // Sec has no one type on all architectures
	t.Sec += sec
	return true, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

// attrName draws the name of an attribute that n may have.
func (g *Gen) attrName(n *node) string {
	name := []string{"a", "b", "c", "long" + string(bytes.Repeat([]byte("n"), 200)), "ü", "\xff"}[g.rng.IntN(6)]
	if (n.kind == filetree.File || n.kind == filetree.Dir) && g.rng.IntN(3) > 0 {
		return "user." + name
	}
	return "trusted." + name
}

func (g *Gen) setXattr() (bool, error) {
	n, path, shown := g.target(isAny)
	if n == nil {
		return false, nil
	}
	size := g.rng.Int64N(100)
	switch g.rng.IntN(8) {
	case 0:
		size = 0
	case 1:
		size = g.rng.Int64N(3000)
	}
	return true, g.doSetXattr(n, path, shown, g.attrName(n), g.bytes(size))
}

// doSetXattr leaves out what is more than the file system can hold.
func (g *Gen) doSetXattr(n *node, path, shown, name string, value []byte) error {
	g.Note("setxattr %s %s len=%d", shown, manifest.Show(name), len(value))
	err := unix.Lsetxattr(path, name, value, 0)
	if err == nil && !slices.Contains(n.attrs, name) {
		n.attrs = append(n.attrs, name)
	}
	if err == unix.ENOSPC || err == unix.E2BIG {
		return nil
	}
	return tolerate(err)
}

func (g *Gen) removeXattr() (bool, error) {
	n, path, shown := g.target(isAny)
	if n == nil {
		return false, nil
	}
	// Drawn from all names, not from those that are there: what the file system
	// cannot hold must not change what comes next.
	name := g.attrName(n)
	if len(n.attrs) > 0 {
		name = n.attrs[int(g.rng.Uint32())%len(n.attrs)]
	} else {
		g.rng.Uint32()
	}
	g.Note("removexattr %s %s", shown, manifest.Show(name))
	n.attrs = slices.DeleteFunc(n.attrs, func(a string) bool { return a == name })
	err := unix.Lremovexattr(path, name)
	if err == unix.ENODATA { // a write takes capabilities away, a chmod ACLs
		err = nil
	}
	return true, tolerate(err)
}

// acl sets an ACL for access or, of directories, for what is made in them.
func (g *Gen) acl() (bool, error) {
	n, path, shown := g.target(func(n *node) bool { return n.kind != filetree.Symlink })
	if n == nil {
		return false, nil
	}
	name := "system.posix_acl_access"
	if n.kind == filetree.Dir && g.rng.IntN(2) == 0 {
		name = "system.posix_acl_default"
	}
	acl := binary.LittleEndian.AppendUint32(nil, 2) // POSIX_ACL_XATTR_VERSION
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{0x01, 7, ^uint32(0)}, // ACL_USER_OBJ
		{0x02, uint16(g.rng.IntN(8)), uint32(1000 + g.rng.IntN(3))}, // ACL_USER
		{0x04, uint16(g.rng.IntN(8)), ^uint32(0)},                   // ACL_GROUP_OBJ
		{0x10, uint16(g.rng.IntN(8)), ^uint32(0)},                   // ACL_MASK
		{0x20, uint16(g.rng.IntN(8)), ^uint32(0)},                   // ACL_OTHER
	} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	return true, g.doSetXattr(n, path, shown, name, acl)
}

func (g *Gen) capability() (bool, error) {
	n, path, shown := g.target(isFile)
	if n == nil {
		return false, nil
	}
	value := make([]byte, 20) // struct vfs_cap_data, revision 2
	binary.LittleEndian.PutUint32(value, 0x02000001)
	binary.LittleEndian.PutUint32(value[4:], 1<<g.rng.IntN(30))
	return true, g.doSetXattr(n, path, shown, "security.capability", value)
}

// flags turns a flag of chattr(1) on or off: no dump, no access times, and no copy on
// write, which only an empty file takes.
func (g *Gen) flags() (bool, error) {
	n, path, shown := g.target(func(n *node) bool { return n.kind == filetree.File || n.kind == filetree.Dir })
	if n == nil {
		return false, nil
	}
	flag := []uint32{0x40, 0x80}[g.rng.IntN(2)] // FS_NODUMP_FL, FS_NOATIME_FL
	if n.kind == filetree.File && n.size == 0 && g.rng.IntN(2) == 0 {
		flag = 0x800000 // FS_NOCOW_FL
	}
	g.Note("chattr %s %#x", shown, flag)
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return true, err
	}
	defer f.Close()
	old, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return true, tolerate(err)
	}
	return true, tolerate(unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(old^flag)))
}

// moveOut moves something out of the tree.
func (g *Gen) moveOut() (bool, error) {
	if g.o.Outside == "" {
		return false, nil
	}
	e := g.pick(alone)
	if e == nil {
		return false, nil
	}
	name := fmt.Sprintf("out%d", g.next())
	g.Note("move out %v as %s", e, name)
	err := unix.Rename(g.at(e), g.o.Outside+"/"+name)
	kept := g.detach(e)
	g.outside = append(g.outside, outer{name, kept})
	return true, err
}

// alone reports whether no file in n has more than one name: links between what
// is outside and what is not would not be known.
func alone(n *node) bool {
	if n.kind != filetree.Dir {
		return len(n.names) == 1
	}
	for _, e := range n.list {
		if !alone(e.n) {
			return false
		}
	}
	return true
}

// detach drops e and all below it and returns a copy of it to attach again.
func (g *Gen) detach(e *entry) *node {
	n := *e.n
	n.names, n.list = nil, nil
	if n.kind == filetree.Dir {
		n.byName = nil
		for len(e.n.list) > 0 {
			child := e.n.list[0]
			kept := g.detach(child)
			n.list = append(n.list, &entry{name: child.name, n: kept})
		}
	}
	g.drop(e)
	return &n
}

// attach undoes detach, at another place.
func (g *Gen) attach(dir *node, name string, kept *node) {
	n := *kept
	n.list = nil
	if n.kind == filetree.Dir {
		n.byName = map[string]*entry{}
	}
	g.total += n.size
	g.add(dir, name, &n)
	for _, child := range kept.list {
		g.attach(&n, child.name, child.n)
	}
}

// moveIn moves something back into the tree.
func (g *Gen) moveIn() (bool, error) {
	if len(g.outside) == 0 {
		return false, nil
	}
	i := g.rng.IntN(len(g.outside))
	out := g.outside[i]
	dir, name, ok := g.place(out.n)
	if !ok {
		return false, nil
	}
	g.Note("move in %s as %s", out.name, show(dir, name))
	g.outside = slices.Delete(g.outside, i, i+1)
	err := unix.Rename(g.o.Outside+"/"+out.name, g.path(dir, name))
	g.attach(dir, name, out.n)
	return true, err
}
