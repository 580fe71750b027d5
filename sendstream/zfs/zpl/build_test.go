package zpl

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// unhex decodes a dump as the specification prints it: spaces are left out.
func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// orders are both byte orders.
var orders = map[string]binary.ByteOrder{"little": binary.LittleEndian, "big": binary.BigEndian}

// A builder appends integers in a byte order.
type builder struct {
	b     []byte
	order binary.ByteOrder
}

func (w *builder) u16(v ...uint16) {
	for _, v := range v {
		w.b = append(w.b, 0, 0)
		w.order.PutUint16(w.b[len(w.b)-2:], v)
	}
}

func (w *builder) u32(v ...uint32) {
	for _, v := range v {
		w.b = append(w.b, make([]byte, 4)...)
		w.order.PutUint32(w.b[len(w.b)-4:], v)
	}
}

func (w *builder) u64(v ...uint64) {
	for _, v := range v {
		w.b = append(w.b, make([]byte, 8)...)
		w.order.PutUint64(w.b[len(w.b)-8:], v)
	}
}

func (w *builder) bytes(s string) { w.b = append(w.b, s...) }

// pad appends zeros up to a multiple of n.
func (w *builder) pad(n int) {
	for len(w.b)%n != 0 {
		w.b = append(w.b, 0)
	}
}

// usualIDs are the ids of attributes in datasets of OpenZFS on Linux (section 4.3).
var usualIDs = []string{
	"ZPL_ATIME", "ZPL_MTIME", "ZPL_CTIME", "ZPL_CRTIME", "ZPL_GEN", "ZPL_MODE", "ZPL_SIZE", "ZPL_PARENT",
	"ZPL_LINKS", "ZPL_XATTR", "ZPL_RDEV", "ZPL_FLAGS", "ZPL_UID", "ZPL_GID", "ZPL_PAD", "ZPL_ZNODE_ACL",
	"ZPL_DACL_COUNT", "ZPL_SYMLINK", "ZPL_SCANSTAMP", "ZPL_DACL_ACES", "ZPL_DXATTR", "ZPL_PROJID", "ZPL_SEQ",
}

// registryEntries returns the entries of a registry with the usual ids.
func registryEntries() []Entry {
	var entries []Entry
	for id, name := range usualIDs {
		var class Class
		switch name {
		case "ZPL_SYMLINK", "ZPL_DXATTR", "ZPL_ZNODE_ACL", "ZPL_SCANSTAMP":
			class = ClassBytes
		case "ZPL_DACL_ACES":
			class = ClassACL
		}
		v := uint64(known[name].length)<<24 | uint64(class)<<16 | uint64(id)
		entries = append(entries, Entry{Name: []byte(name), IntSize: 8, Value: v})
	}
	return entries
}

// layoutEntry returns the entry of a layout.
func layoutEntry(number string, ids ...uint64) Entry {
	return Entry{Name: []byte(number), IntSize: 2, Value: ids[0], Values: ids}
}

// The layouts of the worked example (section 10.6), and one for a spill block.
func exampleRegistry(tb testing.TB) *Registry {
	tb.Helper()
	r, err := NewRegistry(registryEntries(), []Entry{
		layoutEntry("2", 5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 21, 16, 19),
		layoutEntry("4", 5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 16, 19, 17),
		layoutEntry("5", 5, 6, 4, 12, 13, 7, 11, 0, 1, 2, 3, 8, 21, 16, 19, 20),
		layoutEntry("6", 20, 17),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// xdrXattrs packs attributes as ZFS packs them into DXATTR.
func xdrXattrs(xattrs ...filetree.Xattr) []byte {
	w := builder{b: []byte{1, 1, 0, 0}, order: binary.BigEndian}
	w.u32(0, 1)
	for _, x := range xattrs {
		at := len(w.b)
		w.u32(0, 1, uint32(len(x.Name)))
		w.bytes(x.Name)
		w.pad(4)
		w.u32(uint32(nvlist.ByteArray), uint32(len(x.Value)))
		w.bytes(string(x.Value))
		w.pad(4)
		w.order.PutUint32(w.b[at:], uint32(len(w.b)-at))
	}
	w.u32(0, 0)
	return w.b
}

// swapped returns the dataset as a machine of the other byte order would have sent
// it. Attributes are swapped if sa, everything else if rest.
func (d *dataset) swapped(tb testing.TB, sa, rest bool) *dataset {
	tb.Helper()
	entries, err := d.entries(MasterNodeObject)
	if err != nil {
		tb.Fatal(err)
	}
	m, err := DecodeMaster(entries)
	if err != nil {
		tb.Fatal(err)
	}
	registry, err := d.registry(&m)
	if err != nil {
		tb.Fatal(err)
	}
	c := d.clone()
	if rest {
		c.order = binary.BigEndian
	}
	for _, o := range c.objects {
		if sa && o.bonusType == TypeSA {
			o.bonus, o.spill = swapSA(registry, o.bonus), swapSA(registry, o.spill)
		}
		for i, b := range o.zap {
			if rest {
				o.zap[i] = swapZAP(b)
			}
		}
	}
	return c
}

// swap turns round n integers of size bytes at off.
func swap(b []byte, off, size, n int) {
	for ; n > 0; n-- {
		slices.Reverse(b[off : off+size])
		off += size
	}
}

// swapSA swaps a little endian buffer, by the classes of its attributes.
func swapSA(r *Registry, buf []byte) []byte {
	le := binary.LittleEndian
	if len(buf) < 8 || le.Uint64(buf) == 0 {
		return buf
	}
	b := slices.Clone(buf)
	l := r.layouts[le.Uint16(buf[4:])&maxLayout]
	if l == nil {
		l = &layout{} // 0 or 1, which are empty
	}
	swap(b, 0, 4, 1)
	swap(b, 4, 2, 1+l.variable)
	p := roundup8(6 + 2*l.variable)
	lengths := buf[6:]
	for _, f := range l.fields {
		n := int(f.length)
		if n == 0 {
			n = int(le.Uint16(lengths))
			lengths = lengths[2:]
		}
		switch f.class {
		case ClassUint64:
			swap(b, p, 8, n/8)
		case ClassUint32:
			swap(b, p, 4, n/4)
		case ClassUint16:
			swap(b, p, 2, n/2)
		case ClassACL: // entries of 8 bytes, in all that was recorded
			for i := p; i < p+n; i += shortACESize {
				swap(b, i, 2, 2)
				swap(b, i+4, 4, 1)
			}
		}
		p += roundup8(n)
	}
	return b
}

// swapZAP swaps a little endian block.
func swapZAP(block []byte) []byte {
	le := binary.LittleEndian
	b := slices.Clone(block)
	switch le.Uint64(block) {
	case zapMicro:
		swap(b, 0, 8, 8)
		for off := slotSize; off < len(b); off += slotSize {
			swap(b, off, 8, 1)
			swap(b, off+8, 4, 1)
		}
	case zapLeaf:
		swap(b, 0, 8, 3)
		swap(b, 24, 4, 1)
		swap(b, 28, 2, 4)
		heads := len(b) / 32
		swap(b, leafHeads, 2, heads)
		for off := leafHeads + 2*heads; off < len(b); off += chunkSize {
			switch b[off] {
			case chunkEntry:
				swap(b, off+2, 2, 5)
				swap(b, off+12, 4, 1)
				swap(b, off+16, 8, 1)
			default:
				swap(b, off+arrayNext, 2, 1)
			}
		}
	default:
		swap(b, 0, 8, len(b)/8)
	}
	return b
}
