package zfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
)

// A simObject is an object of a dataset that a test changes and sends as ZFS does: of
// version 4, with znodes and directories of one block.
type simObject struct {
	gen, ctime uint64
	dir, xattr bool
	slots      uint64
	parent     uint64
	xdir       uint64
	data       []byte
	names      map[string]uint64 // of a directory
}

func (o *simObject) clone() *simObject {
	c := *o
	c.data, c.names = bytes.Clone(o.data), maps.Clone(o.names)
	return &c
}

func (o *simObject) kind() filetree.Kind {
	if o.dir {
		return filetree.Dir
	}
	return filetree.File
}

// A simSet is a dataset: its objects, but for the master node.
type simSet struct {
	objects map[uint64]*simObject
	root    uint64
	txg     uint64
}

func (s *simSet) clone() *simSet {
	c := &simSet{map[uint64]*simObject{}, s.root, s.txg}
	for n, o := range s.objects {
		c.objects[n] = o.clone()
	}
	return c
}

func newSimSet(root, txg uint64) *simSet {
	s := &simSet{objects: map[uint64]*simObject{}, root: root, txg: txg}
	s.objects[root] = &simObject{gen: txg, ctime: txg, dir: true, slots: 1, parent: root, names: map[string]uint64{}}
	return s
}

const (
	simMaster = 1
	simHigh   = 80 // objects are below
)

// taken reports whether a number, or some slots from it on, are in use.
func (s *simSet) taken(n, slots uint64) bool {
	for m, o := range s.objects {
		if m < n+slots && n < m+o.slots {
			return true
		}
	}
	return n <= simMaster || n+slots > simHigh
}

// free is what becomes of an object that nothing holds any more.
func (s *simSet) free(n uint64) {
	o := s.objects[n]
	if x := s.objects[o.xdir]; o.xdir != 0 && x != nil {
		for _, v := range x.names {
			delete(s.objects, v)
		}
		delete(s.objects, o.xdir)
	}
	delete(s.objects, n)
}

func (s *simSet) links(n uint64) (dirs []uint64, names []string) {
	for _, d := range slices.Sorted(maps.Keys(s.objects)) {
		if o := s.objects[d]; o.dir && !o.xattr {
			for _, name := range slices.Sorted(maps.Keys(o.names)) {
				if o.names[name] == n {
					dirs, names = append(dirs, d), append(names, name)
				}
			}
		}
	}
	return dirs, names
}

// below reports whether a directory is another one or below it.
func (s *simSet) below(n, top uint64) bool {
	for n != top {
		dirs, _ := s.links(n)
		if len(dirs) == 0 {
			return false
		}
		n = dirs[0]
	}
	return true
}

// change is one thing that happens to the dataset.
func (s *simSet) change(t *rapid.T) {
	s.txg++
	pick := func(what string, ok func(n uint64, o *simObject) bool) uint64 {
		var all []uint64
		for _, n := range slices.Sorted(maps.Keys(s.objects)) {
			if ok(n, s.objects[n]) {
				all = append(all, n)
			}
		}
		if len(all) == 0 {
			return 0
		}
		return rapid.SampledFrom(all).Draw(t, what)
	}
	alloc := func() (n, slots uint64) {
		slots = rapid.SampledFrom([]uint64{1, 1, 1, 2, 4}).Draw(t, "slots")
		for range 8 {
			if n = rapid.Uint64Range(2, simHigh).Draw(t, "number"); !s.taken(n, slots) {
				return n, slots
			}
		}
		return 0, 0
	}
	isDir := func(n uint64, o *simObject) bool {
		d, _ := s.links(n)
		return o.dir && !o.xattr && (n == s.root || len(d) > 0)
	}
	isFile := func(_ uint64, o *simObject) bool { return !o.dir && !o.xattr }
	touch := func(n uint64) { s.objects[n].ctime = s.txg }
	dir := pick("dir", isDir)
	d := s.objects[dir]
	name := rapid.SampledFrom([]string{"a", "b", "c", "d", "a name of forty-nine bytes, the longest that fits"}).Draw(t, "name")
	drop := func() { // what has that name loses it
		n := d.names[name]
		delete(d.names, name)
		touch(dir)
		if dirs, _ := s.links(n); len(dirs) == 0 && rapid.IntRange(0, 3).Draw(t, "open") > 0 {
			s.free(n)
		}
	}
	taken := d.names[name]
	if taken != 0 && s.objects[taken].dir && len(s.objects[taken].names) > 0 {
		return // a directory that is not empty
	}
	switch rapid.IntRange(0, 8).Draw(t, "change") {
	case 0, 1: // create, over what is there
		if taken != 0 {
			drop()
		}
		if n, slots := alloc(); n != 0 {
			s.objects[n] = &simObject{gen: s.txg, ctime: s.txg, slots: slots, parent: dir, dir: rapid.IntRange(0, 2).Draw(t, "kind") == 0}
			if s.objects[n].dir {
				s.objects[n].names = map[string]uint64{}
			}
			d.names[name] = n
			touch(dir)
		}
	case 2:
		if taken != 0 {
			drop()
		}
	case 3: // rename over what is there
		from := pick("from", isDir)
		names := slices.Sorted(maps.Keys(s.objects[from].names))
		if len(names) == 0 {
			return
		}
		old := rapid.SampledFrom(names).Draw(t, "old")
		n := s.objects[from].names[old]
		if n == taken || s.objects[n].dir && s.below(dir, n) || taken != 0 && s.below(from, taken) {
			return
		}
		if taken != 0 {
			drop()
		}
		delete(s.objects[from].names, old)
		d.names[name] = n
		s.objects[n].parent = dir
		touch(from)
		touch(dir)
		touch(n)
	case 4: // link, perhaps of what has no name
		if n := pick("file", isFile); n != 0 && taken == 0 {
			d.names[name] = n
			touch(dir)
			touch(n)
		}
	case 5, 6: // write, cut, punch
		n := pick("file", isFile)
		if n == 0 {
			return
		}
		o := s.objects[n]
		touch(n)
		size := rapid.SampledFrom([]int{0, 1, 20, 64, 65, 511, 512, 513, 1500, 3000}).Draw(t, "size")
		if size < len(o.data) {
			o.data = o.data[:size:size]
		} else {
			o.data = append(o.data, make([]byte, size-len(o.data))...)
		}
		if off := rapid.SampledFrom([]int{0, 0, 100, 512, 1024, 2048, 2600}).Draw(t, "off"); off < size {
			fill := rapid.SampledFrom([]byte{0, byte(s.txg) | 1}).Draw(t, "fill")
			for i := off; i < min(size, off+1100); i++ {
				o.data[i] = fill
			}
		}
	case 7: // an extended attribute comes, or is another
		owner := pick("owner", func(_ uint64, o *simObject) bool { return !o.xattr })
		o := s.objects[owner]
		if o.xdir == 0 {
			n, slots := alloc()
			if n == 0 {
				return
			}
			o.xdir = n
			s.objects[n] = &simObject{gen: s.txg, ctime: s.txg, slots: slots, parent: owner, dir: true, xattr: true, names: map[string]uint64{}}
			touch(owner)
		}
		x := s.objects[o.xdir]
		v := x.names["user."+name[:1]]
		if v == 0 {
			n, slots := alloc()
			if n == 0 {
				return
			}
			v = n
			s.objects[n] = &simObject{gen: s.txg, slots: slots, parent: o.xdir, xattr: true}
			x.names["user."+name[:1]] = n
			touch(o.xdir)
		}
		touch(v)
		s.objects[v].data = bytes.Repeat([]byte{byte(s.txg)}, rapid.SampledFrom([]int{0, 1, 300, 700}).Draw(t, "length"))
	case 8: // one goes, or what was open is closed
		if n := pick("closed", func(n uint64, o *simObject) bool {
			d, _ := s.links(n)
			return n != s.root && !o.xattr && len(d) == 0
		}); n != 0 {
			s.free(n)
			return
		}
		x := pick("xdir", func(_ uint64, o *simObject) bool { return o.xattr && o.dir && len(o.names) > 0 })
		if x == 0 {
			return
		}
		one := slices.Sorted(maps.Keys(s.objects[x].names))[0]
		delete(s.objects, s.objects[x].names[one])
		delete(s.objects[x].names, one)
		touch(x)
	}
}

// bonus is an object's znode.
func (o *simObject) bonus(links int) []byte {
	b := make([]byte, 264)
	put := func(off int, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }
	put(16, o.ctime)
	put(32, o.ctime)
	put(48, o.gen)
	put(64, o.gen)
	put(72, 0o100644)
	put(80, uint64(len(o.data)))
	if o.dir {
		put(72, 0o040755)
		put(80, uint64(len(o.names)+2))
	}
	put(88, o.parent)
	put(96, uint64(links))
	put(104, o.xdir)
	put(120, 4) // the ACL is trivial
	if o.xattr {
		put(120, 5)
	}
	return b
}

// microZAP packs a table of one block.
func microZAP(values map[string]uint64) []byte {
	b := make([]byte, 64)
	binary.LittleEndian.PutUint64(b, 1<<63|3)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		slot := make([]byte, 64)
		binary.LittleEndian.PutUint64(slot, values[name])
		copy(slot[14:], name)
		b = append(b, slot...)
	}
	return padTo(b, 512)
}

func padTo(b []byte, n int) []byte { return append(b, make([]byte, (n-len(b)%n)%n)...) }

// block returns the blocks of an object's data, and their size.
func (s *simSet) blocks(o *simObject) (data []byte, size int) {
	if !o.dir {
		return padTo(bytes.Clone(o.data), 512), 512
	}
	values := map[string]uint64{}
	for name, n := range o.names {
		kind := uint64(8)
		if s.objects[n].dir {
			kind = 4
		}
		values[name] = kind<<60 | n
	}
	data = microZAP(values)
	return data, len(data)
}

// send returns the stream of a dataset, from what it was or, if that is nil, full. An old
// sender has no flags, and tells of all objects of a block before their data.
func (s *simSet) send(was *simSet, to, from uint64, old bool) []byte {
	b := newStream(FeatureLargeDnode, u64(40, to), u64(48, from))
	if old {
		b = newStream(FeatureLargeDnode, u64(40, to), u64(48, from), u32(36, 0))
	}
	if was == nil {
		was = &simSet{objects: map[uint64]*simObject{}}
	}
	for first := uint64(0); first < simHigh+32; first += 32 {
		dirty := from == 0
		for n := first; n < first+32; n++ {
			x, y := was.objects[n], s.objects[n]
			if (x == nil) != (y == nil) || x != nil && (x.gen != y.gen || x.ctime != y.ctime) {
				dirty = true
			}
		}
		if !dirty {
			continue
		}
		data := new(builder)
		tell := func(n uint64, o *simObject) {
			typ, bonus := uint64(zpl.TypeFile), []byte(nil)
			content, size := []byte(nil), 0
			if n == simMaster {
				typ = zpl.TypeMasterNode
				content, size = microZAP(map[string]uint64{"ROOT": s.root, "VERSION": 4}), 512
				b.object(n, u32(16, typ), u32(20, 0), u32(24, 512))
			} else {
				dirs, _ := s.links(n)
				if bonus = o.bonus(len(dirs)); o.dir {
					typ = zpl.TypeDirectory
				}
				content, size = s.blocks(o)
				b.object(n, u32(16, typ), u32(20, zpl.TypeZnode), u32(24, uint64(size)), u32(28, 264), u8(34, o.slots), payload(bonus...))
			}
			if !old || from != 0 {
				b.free(n, uint64(len(content)), math.MaxUint64)
			}
			var had []byte
			if x := was.objects[n]; x != nil && o != nil && x.gen == o.gen {
				if had, _ = was.blocks(x); o.dir && !bytes.Equal(had, content) {
					had = nil
				}
			} else if n == simMaster && from != 0 {
				had = content
			}
			to := b
			if old {
				to = data
			}
			for off := 0; off < len(content); off += size {
				block := content[off : off+size]
				switch {
				case off < len(had) && bytes.Equal(block, had[off:off+size]):
				case typ == zpl.TypeFile && len(bytes.Trim(block, "\x00")) == 0:
					if !old || from != 0 {
						to.free(n, uint64(off), uint64(size))
					}
				default:
					if typ == zpl.TypeFile && off+size > len(o.data) { // what is behind the end may be anything
						block = bytes.Clone(block)
						for i := len(o.data) - off; i < size; i++ {
							block[i] = 0xa5
						}
					}
					to.write(n, uint64(off), block, u32(16, typ))
				}
			}
		}
		for n := first; n < first+32; {
			o := s.objects[n]
			switch {
			case n == simMaster:
				tell(n, nil)
				n++
			case o != nil:
				tell(n, o)
				n += o.slots
			default:
				end := n
				for end < first+32 && s.objects[end] == nil && end != simMaster {
					end++
				}
				count := end - n
				if end == first+32 && first+32 > simHigh && from == 0 {
					count = math.MaxUint64 - n
				}
				b.freeObjects(n, count)
				n = end
			}
		}
		b.b = append(b.b, data.b...)
	}
	return b.end()
}

// tree says what a dataset has by path, as modelTree.files does.
func (s *simSet) tree() map[string]string {
	all := map[string]string{}
	var walk func(n uint64, path string)
	walk = func(n uint64, path string) {
		o := s.objects[n]
		var xattrs []string
		if x := s.objects[o.xdir]; o.xdir != 0 {
			for _, name := range slices.Sorted(maps.Keys(x.names)) {
				xattrs = append(xattrs, fmt.Sprintf("%s=%x", name, s.objects[x.names[name]].data))
			}
		}
		all[path] = fmt.Sprintf("object %d of %d, changed %d, %v %q %x", n, o.gen, o.ctime, o.kind(), xattrs, o.data)
		for name, m := range o.names {
			walk(m, path+"/"+name)
		}
	}
	walk(s.root, "")
	for n, o := range s.objects {
		if d, _ := s.links(n); len(d) == 0 && n != s.root && !o.xattr {
			walk(n, fmt.Sprintf("nameless %d", n))
		}
	}
	return all
}

// files says what a tree has, as simSet.tree does.
func (m *modelTree) files() map[string]string {
	all := map[string]string{}
	var walk func(n filetree.NodeID, path string)
	walk = func(n filetree.NodeID, path string) {
		a := m.nodes[n].attr
		var xattrs []string
		for _, x := range a.Xattrs {
			xattrs = append(xattrs, fmt.Sprintf("%s=%x", x.Name, x.Value))
		}
		data := make([]byte, a.Size)
		for i, page := range m.nodes[n].pages {
			copy(data[i*modelPage:], page)
		}
		all[path] = fmt.Sprintf("object %d of %d, changed %d, %v %q %x", a.Ino, a.Gen, a.Ctime.Sec, a.Kind, xattrs, data)
		for c := range m.Children(n) {
			walk(c.Node, path+"/"+c.Name)
		}
	}
	walk(filetree.RootNode, "")
	for n, x := range m.nodes {
		if names, _ := m.Names(n, 1); len(names) == 0 && n != filetree.RootNode {
			walk(n, fmt.Sprintf("nameless %d", x.attr.Ino))
		}
	}
	return all
}

// TestApplyModel changes a dataset at random, sends it as old and new senders do, and
// holds what the streams make against it: increments, full streams on top of what is
// there, also of another dataset, and after what is kept was lost.
func TestApplyModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m, other := newModel(), newSimSet(rapid.SampledFrom([]uint64{2, 3, 34}).Draw(rt, "other root"), 5)
		s := newSimSet(rapid.SampledFrom([]uint64{2, 34}).Draw(rt, "root"), 5)
		var was *simSet
		from := uint64(0)
		for guid := uint64(1); guid <= 8; guid++ {
			for range rapid.IntRange(0, 6).Draw(rt, "changes") {
				s.change(rt)
			}
			old := rapid.Bool().Draw(rt, "old sender")
			how := rapid.IntRange(0, 9).Draw(rt, "how")
			if how == 0 { // from here on, the other dataset
				s, other, was = other, s, nil
			}
			if how <= 3 {
				was = nil
			}
			if how == 1 {
				m.forget()
			}
			if was == nil {
				from = 0
			}
			next, err := apply(t, m, s.send(was, guid, from, old))
			if err != nil {
				rt.Fatalf("stream %d from %d, old %v: %v", guid, from, old, err)
			}
			if diff := gocmp.Diff(s.tree(), next.files()); diff != "" {
				rt.Fatalf("stream %d from %d, old %v (-want +got):\n%s", guid, from, old, diff)
			}
			for k := range next.kept {
				if n := number([]byte(k), 0); strings.IndexByte("ozxd", k[0]) >= 0 && n != simMaster && s.objects[n] == nil {
					rt.Fatalf("%q is kept of an object that is no more", k)
				}
			}
			m, was, from = next, s.clone(), guid
		}
	})
}
