package restore

import (
	"context"
	"fmt"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
)

// ontoDevice restores the content of a file onto the device r.To: first zeros where it has
// holes, since a device has something everywhere, then what it has. All that can be known
// to be wrong is looked at before the first of them.
func (r *run) ontoDevice(ctx context.Context, node filetree.NodeID, attr filetree.Attr) error {
	if attr.Kind != filetree.File {
		return fmt.Errorf("%s is no regular file, and %s is a device, which takes nothing else", r.source(), r.To)
	}
	name := r.Path[len(r.Path)-1]
	r.Path = r.Path[:len(r.Path)-1]
	var err error
	if r.device, err = localfs.OpenDevice(r.To, attr.Size, r.IntoExisting); err != nil {
		return err
	}
	if attr.Incomplete {
		if err := r.fail(ctx, rootID, name, ErrIncomplete); err != nil {
			return err
		}
	}
	if attr.Size == 0 {
		r.restored()
		return nil
	}
	if _, err := r.plan.AddFile(rootID, name, node, attr.Size); err != nil {
		return err
	}
	total, err := r.plan.Sort(ctx, func(f catalog.PlanFile, err error) error { return r.failFile(ctx, f, err) })
	if err != nil {
		return err
	}
	if err := r.zeroHoles(ctx, node, attr.Size, total); err != nil {
		return err
	}
	if err := r.write(ctx, total); err != nil {
		return err
	}
	return r.device.Sync()
}

// zeroHoles makes the holes of a file zeros, which has total bytes that are none.
func (r *run) zeroHoles(ctx context.Context, node filetree.NodeID, size, total int64) (err error) {
	if total >= size {
		return nil
	}
	r.Progress.Start("zeros", size-total)
	defer func() { r.Progress.Done(err) }()
	return r.holes(node, size, func(from, to int64) error {
		for from < to {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(to-from, maxZero-from%maxZero) // which end at blocks, whatever their size
			if err := r.device.Zero(from, n); err != nil {
				return err
			}
			r.Progress.Add(n)
			from += n
		}
		return nil
	})
}

const (
	maxZero    = 64 << 20 // bytes that are made zeros at once
	holeWindow = 64 << 20 // bytes whose extents are looked up at once
)

// holes calls f with each hole of a file, in order; a long one may come in parts.
func (r *run) holes(node filetree.NodeID, size int64, f func(from, to int64) error) error {
	for at := int64(0); at < size; {
		extents, err := r.View.Extents(node, at, min(at+holeWindow, size))
		if err != nil {
			return err
		}
		if len(extents) == 0 { // in one step, however long it is
			next, err := r.View.NextExtent(node, at)
			if err != nil {
				return err
			}
			next = min(next, size)
			if err := f(at, next); err != nil {
				return err
			}
			at = next
			continue
		}
		for _, e := range extents {
			if e.Offset > at {
				if err := f(at, e.Offset); err != nil {
					return err
				}
			}
			at = e.Offset + e.Length
		}
	}
	return nil
}

// A deviceOutput is a device, which has no place to be put in when it is finished, and
// nothing that could be taken away.
type deviceOutput struct{ *localfs.Device }

func (deviceOutput) Finish() error { return nil }
func (deviceOutput) Abort()        {}
