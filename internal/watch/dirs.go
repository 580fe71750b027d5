package watch

import (
	"hash/maphash"
	"strings"
)

// root is the number of the root's dir.
const root = 1

// A dir is a directory that is watched: a watch descriptor and a place. Dirs are
// kept in a slice and refer to each other by number, 0 being none, since there may be
// hundreds of thousands.
type dir struct {
	name       string
	parent     int32 // 0: the root, or adrift
	first      int32 // of what is in it
	next, prev int32 // in the same parent
	chain      int32 // the next in the bucket; of free numbers the next one
	wd         int32 // 0: the number is free
}

// dirs are the directories that are watched, by descriptor and by place. A dir that has
// lost its place and has not yet been seen in another is adrift, with all below it.
type dirs struct {
	all     []dir
	free    int32
	byWD    map[int32]int32
	buckets []int32 // heads of chains, by the hash of parent and name
	seed    maphash.Seed
	adrift  map[int32]struct{}
	// The path asked for last: events come in runs.
	pathOf int32
	path   string
}

func newDirs() *dirs {
	return &dirs{
		all:     make([]dir, 1, 64),
		byWD:    map[int32]int32{},
		buckets: make([]int32, 64),
		seed:    maphash.MakeSeed(),
		adrift:  map[int32]struct{}{},
	}
}

func (d *dirs) len() int { return len(d.byWD) }

func (d *dirs) bucket(parent int32, name string) *int32 {
	h := maphash.String(d.seed, name) ^ uint64(parent)*0x9e3779b97f4a7c15
	h ^= h >> 32
	return &d.buckets[h&uint64(len(d.buckets)-1)]
}

// lookup returns the dir at a place, or 0.
func (d *dirs) lookup(parent int32, name string) int32 {
	for n := *d.bucket(parent, name); n != 0; n = d.all[n].chain {
		if d.all[n].parent == parent && d.all[n].name == name {
			return n
		}
	}
	return 0
}

// add makes a dir, adrift. The first is the root, and is never adrift.
func (d *dirs) add(wd int32) int32 {
	n := d.free
	if n != 0 {
		d.free = d.all[n].chain
	} else {
		n = int32(len(d.all))
		d.all = append(d.all, dir{})
	}
	d.all[n] = dir{wd: wd}
	d.byWD[wd] = n
	if n != root {
		d.adrift[n] = struct{}{}
	}
	if len(d.byWD) > len(d.buckets) {
		d.grow()
	}
	return n
}

func (d *dirs) grow() {
	d.buckets = make([]int32, 2*len(d.buckets))
	for i := range d.all {
		if e := &d.all[i]; e.parent != 0 {
			b := d.bucket(e.parent, e.name)
			e.chain, *b = *b, int32(i)
		}
	}
}

// link gives n a place. What had it is adrift.
func (d *dirs) link(n, parent int32, name string) {
	if old := d.lookup(parent, name); old == n {
		return
	} else if old != 0 {
		d.cut(old)
	}
	d.cut(n)
	delete(d.adrift, n)
	e := &d.all[n]
	// What the name is part of, an event or a whole listing, is not kept for it.
	e.parent, e.name = parent, strings.Clone(name)
	b := d.bucket(parent, name)
	e.chain, *b = *b, n
	p := &d.all[parent]
	if e.next = p.first; e.next != 0 {
		d.all[e.next].prev = n
	}
	p.first = n
}

// cut sets n adrift.
func (d *dirs) cut(n int32) {
	d.pathOf = 0
	e := &d.all[n]
	if e.parent == 0 {
		return
	}
	at := d.bucket(e.parent, e.name)
	for *at != n {
		at = &d.all[*at].chain
	}
	*at = e.chain
	if e.prev != 0 {
		d.all[e.prev].next = e.next
	} else {
		d.all[e.parent].first = e.next
	}
	if e.next != 0 {
		d.all[e.next].prev = e.prev
	}
	e.parent, e.next, e.prev, e.chain, e.name = 0, 0, 0, 0, ""
	d.adrift[n] = struct{}{}
}

// remove forgets n. What is in it is adrift.
func (d *dirs) remove(n int32) {
	for d.all[n].first != 0 {
		d.cut(d.all[n].first)
	}
	d.cut(n)
	delete(d.adrift, n)
	delete(d.byWD, d.all[n].wd)
	d.all[n] = dir{chain: d.free}
	d.free = n
}

// within reports whether n is top or below it.
func (d *dirs) within(n, top int32) bool {
	for ; n != 0; n = d.all[n].parent {
		if n == top {
			return true
		}
	}
	return false
}

// pathTo returns the path of n, and false if it is adrift.
func (d *dirs) pathTo(n int32) (string, bool) {
	if n == root {
		return "", true
	}
	if d.pathOf == n {
		return d.path, true
	}
	size, top := -1, n
	for ; d.all[top].parent != 0; top = d.all[top].parent {
		size += 1 + len(d.all[top].name)
	}
	if top != root {
		return "", false
	}
	b := make([]byte, size)
	for at := n; at != root; at = d.all[at].parent {
		size -= copy(b[size-len(d.all[at].name):], d.all[at].name)
		if size > 0 {
			size--
			b[size] = '/'
		}
	}
	d.pathOf, d.path = n, string(b)
	return d.path, true
}

// find returns the dir at path, or 0.
func (d *dirs) find(path string) int32 {
	n := int32(root)
	if path == "" {
		return n
	}
	for name := range strings.SplitSeq(path, "/") {
		if n = d.lookup(n, name); n == 0 {
			break
		}
	}
	return n
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// split returns the path of the directory that path is in, and the last name.
func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}
