package localfs

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// A TargetFile is a regular file that is being restored, sparse: what is not
// written is a hole, and nothing is allocated ahead. WriteAt may be called
// concurrently; Finish or Abort ends its use.
type TargetFile struct {
	n    node
	d    *openDir
	h    handle
	tmp  string
	size int64
	done atomic.Bool
}

// Create begins a file with the attributes and the size that a says. It is under a
// temporary name with mode 0600 until Finish.
func (t *Target) Create(dir filetree.NodeID, name string, a *filetree.Attr) (*TargetFile, error) {
	f, err := t.create(dir, name, a, false)
	if err != nil {
		return nil, t.fail("create", dir, name, err)
	}
	if a.Size > 0 {
		if err := unix.Ftruncate(f.h.fd, a.Size); err != nil {
			f.Abort()
			return nil, t.fail("create", dir, name, err)
		}
	}
	return f, nil
}

// WriteFile restores a file without holes at once; data must be a.Size bytes. It
// is made under its own name where that is free for sure, which saves a rename.
func (t *Target) WriteFile(dir filetree.NodeID, name string, a *filetree.Attr, data []byte) error {
	if int64(len(data)) != a.Size {
		return t.fail("create", dir, name, fmt.Errorf("%d bytes of data for a size of %d", len(data), a.Size))
	}
	f, err := t.create(dir, name, a, true)
	if err != nil {
		return t.fail("create", dir, name, err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Abort()
		return err
	}
	return f.Finish()
}

func (t *Target) create(dir filetree.NodeID, name string, a *filetree.Attr, direct bool) (*TargetFile, error) {
	if err := filetree.CheckName(name); err != nil {
		return nil, err
	}
	if a.Size < 0 {
		return nil, fmt.Errorf("size %d", a.Size)
	}
	d, err := t.dir(dir)
	if err != nil {
		return nil, err
	}
	f := &TargetFile{
		n:    node{t: t, dir: dir, name: name, kind: filetree.File, attr: a, prune: d.inherits},
		d:    d,
		size: a.Size,
	}
	const flags = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	f.tmp, err = d.create(name, direct && d.fresh, func(name string) (err error) {
		f.h.fd, err = retry(func() (int, error) { return unix.Openat(d.fd, name, flags, 0o600) })
		return err
	})
	if err != nil {
		t.release(d)
		return nil, err
	}
	if d.inherits || a.Flags&flagsOfData != 0 {
		f.n.setFlags(f.h, flagsOfData)
	}
	return f, nil
}

// WriteAt writes data at off, within the size.
func (f *TargetFile) WriteAt(data []byte, off int64) (int, error) {
	if off < 0 || off > f.size || int64(len(data)) > f.size-off {
		return 0, f.fail("write", fmt.Errorf("%d bytes at %d: beyond the size of %d", len(data), off, f.size))
	}
	n, err := writeAt(f.h.fd, data, off)
	if err != nil {
		return n, f.fail("write", err)
	}
	return n, nil
}

func (f *TargetFile) fail(op string, err error) error {
	return f.n.t.fail(op, f.n.dir, f.n.name, err)
}

// Finish sets the attributes and puts the file in its place. If it returns an error
// the file has been aborted.
func (f *TargetFile) Finish() error {
	if f.done.Swap(true) {
		panic("localfs: TargetFile finished or aborted twice")
	}
	defer f.n.t.release(f.d)
	if err := f.finish(); err != nil {
		unix.Unlinkat(f.d.fd, f.tmp, 0)
		return f.fail("finish", err)
	}
	return nil
}

func (f *TargetFile) finish() error {
	err := f.n.setAttr(f.h)
	// It has to stay open for what is set under its final name. NFS reports write errors
	// on close, so they are asked for here; it has no projects.
	forbids, project := f.n.attr.Flags&flagsLast != 0, f.n.hasProject() && hasProjects(f.h.fd)
	last := forbids || project
	if err == nil && forbids {
		err = unix.Fsync(f.h.fd)
	}
	if err != nil {
		f.h.close()
		return err
	}
	if !last {
		if err := f.h.close(); err != nil {
			return err
		}
	}
	if err := f.d.place(f.tmp, f.n.name); err != nil {
		if last {
			f.h.close()
		}
		return err
	}
	if last {
		f.n.setLast(f.h)
		return f.h.close()
	}
	if f.n.hasProject() {
		f.n.note(LostProject)
	}
	return nil
}

// Abort gives the file up and leaves nothing of it. After Finish or Abort it does
// nothing, so it can be deferred.
func (f *TargetFile) Abort() {
	if f.done.Swap(true) {
		return
	}
	f.h.close()
	unix.Unlinkat(f.d.fd, f.tmp, 0)
	f.n.t.release(f.d)
}
