package zfs

import (
	"errors"
	"fmt"
	"math"

	"github.com/secrate/secrate/internal/filetree"
)

// A volume has two objects: its content, and a table with its size.
const (
	volumeObject = 1
	volumeProps  = 2
)

// Their types (DMU_OT_ZVOL and DMU_OT_ZVOL_PROP, section 4.1).
const (
	typeVolume      = 23
	typeVolumeProps = 24
)

// volumeNode makes sure that the content of a volume has a node.
func (a *applier) volumeNode(o *object) (err error) {
	if o.typ != typeVolume {
		return fmt.Errorf("the content of a volume is of type %d: %w", o.typ, filetree.ErrInvalid)
	}
	if o.node == 0 && a.full {
		if o.node, err = a.past.claim(a.tree, volumeObject, 0, filetree.File); err != nil {
			return err
		}
	}
	if o.node == 0 {
		attr := filetree.Attr{Kind: filetree.File, Mode: 0o600, Mtime: filetree.Time{Sec: int64(a.unit.Creation)}, Ino: volumeObject}
		o.node, err = a.tree.NewNode(attr)
	} else if a.full && !a.past.seen.has(o.number) {
		a.past.gaps[o.number] = 0
	}
	return err
}

// dropVolume takes the name from the content of a volume that is no more: no directory
// says that it has it.
func (a *applier) dropVolume() error {
	err := a.tree.DropName(filetree.RootNode, VolumeName)
	if errors.Is(err, filetree.ErrNotExist) { // it never got it
		return nil
	}
	return err
}

func (a *applier) writeVolume(o *object, rec *Record, data []byte) error {
	if o.number != volumeObject || o.node == 0 {
		return nil
	}
	if rec.Start > math.MaxInt64-uint64(len(data)) {
		return fmt.Errorf("data at %d: %w", rec.Start, filetree.ErrInvalid)
	}
	return a.content(o, rec.Start, data)
}

// volume ends the unit of a volume: the size is known, and the name.
func (a *applier) volume() error {
	o, err := a.state.get(volumeObject)
	if err != nil {
		return err
	}
	if o == nil || o.node == 0 {
		return fmt.Errorf("the volume has no content: %w", filetree.ErrInvalid)
	}
	size, ok := uint64(0), false
	for _, e := range a.entries(volumeProps) {
		if string(e.Name) == "size" {
			size, ok = e.Uint64()
		}
	}
	if !ok || size > math.MaxInt64 {
		return fmt.Errorf("the volume does not say how large it is: %w", filetree.ErrInvalid)
	}
	names, err := a.tree.Names(o.node, 1)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		if err := a.tree.AddName(filetree.RootNode, VolumeName, o.node); err != nil {
			return err
		}
	}
	if a.res.Counts[Write]+a.res.Counts[WriteEmbedded] > 0 { // a volume has no times of its own
		err := a.tree.SetAttr(o.node, func(attr *filetree.Attr) { attr.Mtime = filetree.Time{Sec: int64(a.unit.Creation)} })
		if err != nil {
			return err
		}
	}
	if a.full { // there may have been a file system
		err := a.tree.SetAttr(filetree.RootNode, func(r *filetree.Attr) { *r = filetree.Attr{Kind: filetree.Dir, Mode: 0o755} })
		if err != nil {
			return err
		}
	}
	return a.tree.Truncate(o.node, int64(size))
}
