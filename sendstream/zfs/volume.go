package zfs

import (
	"fmt"
	"math"

	"github.com/secrate/secrate/internal/filetree"
)

// A volume has two objects: its content, and a table with its size.
const (
	volumeObject = 1
	volumeProps  = 2

	typeVolumeProps = 24 // DMU_OT_ZVOL_PROP
)

func (a *applier) writeVolume(o *object, rec *Record, data []byte) error {
	switch o.number {
	case volumeObject:
		if rec.Start > math.MaxInt64-uint64(len(data)) {
			return fmt.Errorf("data at %d: %w", rec.Start, filetree.ErrInvalid)
		}
		a.res.Bytes += int64(len(data))
		return a.tree.Write(o.node, int64(rec.Start), data)
	case volumeProps:
		return a.tree.Keep(key(keyBlock, o.number, rec.Start/uint64(max(o.blockSize, 1))), pack(data))
	}
	return nil
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
	return a.tree.Truncate(o.node, int64(size))
}
