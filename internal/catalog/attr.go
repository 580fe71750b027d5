package catalog

import (
	"bytes"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/secrate/secrate/internal/filetree"
)

// Attr is a node's attributes, or what changed in them, in the CBOR form that
// docs/format.md calls node-attr: every key that is missing is unchanged, or for a
// new node zero. Times are [seconds, nanoseconds].
type Attr struct {
	Kind   *uint8       `cbor:"1,keyasint,omitempty"`
	Mode   *uint32      `cbor:"2,keyasint,omitempty"`
	UID    *uint32      `cbor:"3,keyasint,omitempty"`
	GID    *uint32      `cbor:"4,keyasint,omitempty"`
	Size   *uint64      `cbor:"5,keyasint,omitempty"`
	Mtime  *[2]int64    `cbor:"6,keyasint,omitempty"`
	Ctime  *[2]int64    `cbor:"7,keyasint,omitempty"`
	Btime  *[2]int64    `cbor:"8,keyasint,omitempty"`
	MCtime *[2]int64    `cbor:"9,keyasint,omitempty"` // mtime and ctime, where they are the same
	Rdev   *[2]uint32   `cbor:"10,keyasint,omitempty"`
	Flags  *uint32      `cbor:"11,keyasint,omitempty"`
	Target []byte       `cbor:"12,keyasint,omitempty"`
	Xattrs *[][2][]byte `cbor:"13,keyasint,omitempty"` // all of them, sorted by name
	Ino    *uint64      `cbor:"14,keyasint,omitempty"`
	Gen    *uint64      `cbor:"15,keyasint,omitempty"`
	Lacks  *bool        `cbor:"16,keyasint,omitempty"` // not all of it could be read
}

func pair(t filetree.Time) *[2]int64 { return &[2]int64{t.Sec, int64(t.Nsec)} }

// Diff returns what must be said to turn old into a. With no old, that is all that
// is not zero.
func Diff(old *filetree.Attr, a *filetree.Attr) Attr {
	var w Attr
	var zero filetree.Attr
	if old == nil {
		old = &zero
	}
	if old.Kind != a.Kind {
		k := uint8(a.Kind)
		w.Kind = &k
	}
	diff32 := func(dst **uint32, old, new uint32) {
		if old != new {
			*dst = &new
		}
	}
	diff64 := func(dst **uint64, old, new uint64) {
		if old != new {
			*dst = &new
		}
	}
	diff32(&w.Mode, old.Mode, a.Mode)
	diff32(&w.UID, old.UID, a.UID)
	diff32(&w.GID, old.GID, a.GID)
	diff32(&w.Flags, old.Flags, a.Flags)
	diff64(&w.Size, uint64(old.Size), uint64(a.Size))
	diff64(&w.Ino, old.Ino, a.Ino)
	diff64(&w.Gen, old.Gen, a.Gen)
	if old.Incomplete != a.Incomplete {
		w.Lacks = &a.Incomplete
	}
	m, c := old.Mtime != a.Mtime, old.Ctime != a.Ctime
	if m && c && a.Mtime == a.Ctime {
		w.MCtime = pair(a.Mtime)
	} else {
		if m {
			w.Mtime = pair(a.Mtime)
		}
		if c {
			w.Ctime = pair(a.Ctime)
		}
	}
	if old.Btime != a.Btime {
		w.Btime = pair(a.Btime)
	}
	if old.Major != a.Major || old.Minor != a.Minor {
		w.Rdev = &[2]uint32{a.Major, a.Minor}
	}
	if old.Target != a.Target {
		w.Target = []byte(a.Target)
	}
	if !filetree.EqualXattrs(old.Xattrs, a.Xattrs) {
		x := make([][2][]byte, len(a.Xattrs))
		for i, xa := range a.Xattrs {
			x[i] = [2][]byte{[]byte(xa.Name), xa.Value}
		}
		w.Xattrs = &x
	}
	return w
}

// Empty reports whether w says nothing.
func (w *Attr) Empty() bool {
	return w.Kind == nil && w.Mode == nil && w.UID == nil && w.GID == nil && w.Size == nil &&
		w.Mtime == nil && w.Ctime == nil && w.Btime == nil && w.MCtime == nil && w.Rdev == nil &&
		w.Flags == nil && w.Target == nil && w.Xattrs == nil && w.Ino == nil && w.Gen == nil && w.Lacks == nil
}

const (
	maxXattrs     = 4096
	maxXattrValue = 64 << 10
)

func timeOf(p *[2]int64) (filetree.Time, error) {
	if p[1] < 0 || p[1] > 999_999_999 {
		return filetree.Time{}, fmt.Errorf("%d nanoseconds in a time", p[1])
	}
	return filetree.Time{Sec: p[0], Nsec: uint32(p[1])}, nil
}

// Apply changes a as w says. It believes nothing: what no file system could hold
// is an error, and a is then not to be used.
func (w *Attr) Apply(a *filetree.Attr) error {
	if w.Kind != nil {
		a.Kind = filetree.Kind(*w.Kind)
	}
	if !a.Kind.Valid() {
		return fmt.Errorf("node of kind %d", a.Kind)
	}
	set32 := func(dst *uint32, v *uint32) {
		if v != nil {
			*dst = *v
		}
	}
	set64 := func(dst *uint64, v *uint64) {
		if v != nil {
			*dst = *v
		}
	}
	set32(&a.Mode, w.Mode)
	set32(&a.UID, w.UID)
	set32(&a.GID, w.GID)
	set32(&a.Flags, w.Flags)
	set64(&a.Ino, w.Ino)
	set64(&a.Gen, w.Gen)
	if a.Mode > 0o7777 {
		return fmt.Errorf("mode %#o", a.Mode)
	}
	if w.Lacks != nil {
		a.Incomplete = *w.Lacks
	}
	if w.Size != nil {
		if *w.Size > 1<<63-1 {
			return fmt.Errorf("size %d", *w.Size)
		}
		a.Size = int64(*w.Size)
	}
	for _, t := range []struct {
		from *[2]int64
		to   []*filetree.Time
	}{
		{w.Mtime, []*filetree.Time{&a.Mtime}},
		{w.Ctime, []*filetree.Time{&a.Ctime}},
		{w.Btime, []*filetree.Time{&a.Btime}},
		{w.MCtime, []*filetree.Time{&a.Mtime, &a.Ctime}},
	} {
		if t.from == nil {
			continue
		}
		v, err := timeOf(t.from)
		if err != nil {
			return err
		}
		for _, to := range t.to {
			*to = v
		}
	}
	if w.Rdev != nil {
		a.Major, a.Minor = w.Rdev[0], w.Rdev[1]
	}
	if w.Target != nil {
		if len(w.Target) > filetree.MaxTarget || bytes.IndexByte(w.Target, 0) >= 0 {
			return fmt.Errorf("link target of %d bytes, or with a NUL", len(w.Target))
		}
		a.Target = string(w.Target)
	}
	if w.Xattrs != nil {
		if len(*w.Xattrs) > maxXattrs {
			return fmt.Errorf("%d extended attributes", len(*w.Xattrs))
		}
		a.Xattrs = nil
		last := ""
		for _, x := range *w.Xattrs {
			name := string(x[0])
			if name <= last || len(name) > filetree.MaxName || bytes.IndexByte(x[0], 0) >= 0 {
				return fmt.Errorf("extended attribute name %q", name)
			}
			if len(x[1]) > maxXattrValue {
				return fmt.Errorf("extended attribute %q of %d bytes", name, len(x[1]))
			}
			last = name
			a.Xattrs = append(a.Xattrs, filetree.Xattr{Name: name, Value: x[1]})
		}
	}
	return nil
}

var encMode, decMode = func() (cbor.EncMode, cbor.DecMode) {
	e, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic("catalog: internal error: " + err.Error())
	}
	d, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden, MaxNestedLevels: 16,
	}.DecMode()
	if err != nil {
		panic("catalog: internal error: " + err.Error())
	}
	return e, d
}()

// All returns what says all of a, whatever was said of the node before.
func All(a *filetree.Attr) Attr {
	w := Diff(nil, a)
	kind, size := uint8(a.Kind), uint64(a.Size)
	w.Kind, w.Size, w.Mode, w.UID, w.GID, w.Flags, w.Ino, w.Gen = &kind, &size, &a.Mode, &a.UID, &a.GID, &a.Flags, &a.Ino, &a.Gen
	w.Mtime, w.Ctime, w.MCtime, w.Btime = pair(a.Mtime), pair(a.Ctime), nil, pair(a.Btime)
	w.Rdev = &[2]uint32{a.Major, a.Minor}
	w.Lacks = &a.Incomplete
	if w.Xattrs == nil {
		w.Xattrs = &[][2][]byte{}
	}
	return w
}

// maxAttr bounds the attributes of one node, in bytes of CBOR: they have to fit into a
// manifest.
const maxAttr = 4 << 20

// CheckAttr returns an error if a is more than the history can hold.
func CheckAttr(a *filetree.Attr) error {
	_, err := encodeAttr(a)
	return err
}

// encodeAttr refuses what decodeAttr would: it would make the history unreadable.
func encodeAttr(a *filetree.Attr) ([]byte, error) {
	w := Diff(nil, a)
	var same filetree.Attr
	if err := w.Apply(&same); err != nil {
		return nil, fmt.Errorf("%w: %w", err, filetree.ErrInvalid)
	}
	b, err := encMode.Marshal(&w)
	if err == nil && len(b) > maxAttr {
		err = fmt.Errorf("attributes of %d bytes, may be %d: %w", len(b), maxAttr, filetree.ErrInvalid)
	}
	return b, err
}

func decodeAttr(b []byte) (filetree.Attr, error) {
	var w Attr
	var a filetree.Attr
	err := decMode.Unmarshal(b, &w)
	if err == nil {
		err = w.Apply(&a)
	}
	if err != nil {
		return filetree.Attr{}, fmt.Errorf("attributes: %w: %w", ErrDamaged, err)
	}
	return a, nil
}
