package zfs

import (
	"fmt"
	"maps"
	"slices"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
)

// Extended attributes that are not among a file's attributes are files in a directory of
// their own, which belongs to the file. Their values are kept, since a later unit may
// bring the one without the other.

// maxValue bounds the value of an extended attribute, in bytes: Linux has no longer ones.
const maxValue = 64 << 10

// xattrObject is the part of OBJECT that is about a directory of extended attributes or a
// value in one.
func (a *applier) xattrObject(o *object, head *zpl.Head) error {
	cut := head.Size < o.size || a.full // what is cut off is zero if the value grows again
	o.parent, o.size = head.Parent, head.Size
	if err := a.state.set(o); err != nil {
		return err
	}
	if cut && o.typ == zpl.TypeFile {
		err := a.changeValue(o, func(value []byte) []byte {
			if a.full {
				return nil
			}
			return value[:min(uint64(len(value)), o.size)]
		})
		if err != nil {
			return err
		}
	}
	return a.touchXattrs(o.number)
}

// touchXattrs notes that the extended attributes of what a directory of them, or a value
// in one, belongs to are to be put together again.
func (a *applier) touchXattrs(n uint64) error {
	o, err := a.state.get(n)
	if err != nil || o == nil || !o.xattr {
		return err
	}
	if o.typ == zpl.TypeDirectory {
		a.owners[o.parent] = true
		return nil
	}
	dir, err := a.state.get(o.parent)
	if err != nil {
		return err
	}
	if dir == nil { // it has not come yet, and brings its owner along
		return nil
	}
	a.owners[dir.parent] = true
	return nil
}

// writeValue is a WRITE to the value of an extended attribute.
func (a *applier) writeValue(o *object, start uint64, data []byte) error {
	if start >= min(o.size, maxValue) {
		return nil
	}
	return a.changeValue(o, func(value []byte) []byte {
		end := min(start+uint64(len(data)), o.size, maxValue)
		if end > uint64(len(value)) {
			value = append(value, make([]byte, end-uint64(len(value)))...)
		}
		copy(value[start:end], data)
		return value
	})
}

// freeValue is a FREE of a part of it.
func (a *applier) freeValue(o *object, start, end uint64) error {
	return a.changeValue(o, func(value []byte) []byte {
		if start < uint64(len(value)) {
			clear(value[start:min(end, uint64(len(value)))])
		}
		return value
	})
}

func (a *applier) changeValue(o *object, change func([]byte) []byte) error {
	kept, err := a.tree.Kept(key(keyValue, o.number))
	if err != nil {
		return err
	}
	value, err := unpack(kept)
	if err != nil {
		return err
	}
	var packed []byte
	if value = change(slices.Clone(value)); len(value) > 0 {
		packed = pack(value)
	}
	if err := a.tree.Keep(key(keyValue, o.number), packed); err != nil {
		return err
	}
	return a.touchXattrs(o.number)
}

// xattrs puts together the extended attributes of the objects for which something of
// theirs has changed.
func (a *applier) xattrs() error {
	for _, n := range slices.Sorted(maps.Keys(a.owners)) {
		if err := a.ownXattrs(n); err != nil {
			return fmt.Errorf("extended attributes of object %d: %w", n, err)
		}
	}
	return nil
}

func (a *applier) ownXattrs(n uint64) error {
	o, err := a.state.get(n)
	if err != nil || o == nil || o.node == 0 {
		return err
	}
	namesBefore, err := a.linksAt(key(keyNames, n))
	if err != nil {
		return err
	}
	dir, err := a.dirXattrs(o)
	if err != nil {
		return err
	}
	var names []link
	for _, x := range dir {
		names = append(names, link{name: x.Name})
	}
	value := []byte(nil)
	if names != nil {
		value = pack(appendLinks(nil, names))
	}
	if err := a.tree.Keep(key(keyNames, n), value); err != nil {
		return err
	}
	return a.tree.SetAttr(o.node, func(attr *filetree.Attr) {
		inline := slices.DeleteFunc(slices.Clone(attr.Xattrs), func(x filetree.Xattr) bool {
			return slices.ContainsFunc(namesBefore, func(l link) bool { return l.name == x.Name })
		})
		attr.Xattrs = zpl.MergeXattrs(inline, dir)
	})
}

// dirXattrs returns the extended attributes that an object has in a directory.
func (a *applier) dirXattrs(o *object) ([]filetree.Xattr, error) {
	if o.xdir == 0 {
		return nil, nil
	}
	var all []filetree.Xattr
	for k, err := range a.tree.KeptFrom(key(keyBlock, o.xdir), key(keyBlock, o.xdir+1)) {
		if err != nil {
			return nil, err
		}
		links, err := decodeLinks(k.Value)
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			v, err := a.state.get(l.object)
			if err != nil {
				return nil, err
			}
			name := zpl.XattrName(l.name)
			switch {
			case v == nil || !v.xattr:
				return nil, fmt.Errorf("%q leads to object %d, which is none: %w", l.name, l.object, filetree.ErrInvalid)
			case v.size > maxValue || len(name) > filetree.MaxName:
				a.res.fail(fmt.Sprintf("object %d", o.number), fmt.Errorf("extended attribute %q of %d bytes is left out: Linux has none like it", name, v.size))
				continue
			}
			kept, err := a.tree.Kept(key(keyValue, l.object))
			if err != nil {
				return nil, err
			}
			value, err := unpack(kept)
			if err != nil {
				return nil, err
			}
			value = slices.Clone(value[:min(uint64(len(value)), v.size)])
			value = append(value, make([]byte, int(v.size)-len(value))...)
			all = append(all, filetree.Xattr{Name: name, Value: value})
		}
	}
	filetree.SortXattrs(all)
	return all, nil
}
