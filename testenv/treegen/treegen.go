//go:build linux

// Package treegen changes a directory tree at random, the way programs and people do
// and the way they never would.
//
//	g, err := treegen.New(dir, treegen.Options{Seed: seed})
//	err = g.Step(200) // snapshot, g.Step(200), snapshot, …
//	…
//	t.Errorf("seed %d:\n%s", seed, g.Log())
//
// The operations are real system calls on real files: writes of all sorts, holes,
// preallocation, reflinks, hard links, renames and exchanges of files and directories,
// replacing by rename, names that change their kind, special files, owners, times,
// attributes, ACLs, names that are no text. They come by weight from a generator
// that is seeded, and depend on nothing but the seed, the options and the operations
// before: the same seed gives the same names and contents. What the file system at
// hand cannot do (reflinks, holes, O_TMPFILE, exchanges) is done in a plain way
// with the same result; attributes it cannot hold are left out.
//
// Every operation is a line of the log, with names as [manifest.Show] has them.
// Devices, owners and trusted attributes need root.
package treegen

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv/manifest"
)

// Options bound a tree. The zero value makes a small one.
type Options struct {
	Seed    uint64
	Entries int   // names in the tree, about, at most; 0 means 200
	Bytes   int64 // sizes of all files together, about, at most; 0 means 8 MiB
	Large   int64 // size of large files; 0 means 2 MiB, less than 0 that there are none
	PathMax int   // bytes of a path relative to the tree; 0 means 1000
	// Outside is a directory on the same file system, outside the tree, that things
	// are moved to and come back from; "" for none.
	Outside string
	NoLinks bool // no file gets a second name
	// Log, if not nil, gets each line of the log before its operation is done.
	Log io.Writer
}

// A Gen changes one tree. Nobody else may change it meanwhile.
type Gen struct {
	o    Options
	dir  string
	rng  *rand.Rand
	log  strings.Builder
	root *node
	// On ZFS nothing is cloned from a file to itself. Up to OpenZFS 2.3.2 at least,
	// the process then waits for ever for a lock that it holds, if the file has one
	// block and grows: the writer's lock is on the whole file.
	zfs bool

	all     []*entry // every name but the root's, in no order, but the same for the same seed
	total   int64    // bytes in files
	serial  int      // for names that never come twice
	outside []outer
	ops     []op
	shrink  []op // those of ops that make room
}

// A node is what one or more entries lead to.
type node struct {
	kind  filetree.Kind
	size  int64
	text  bool     // made of lines
	attrs []string // names of the extended attributes it may have
	names []*entry // none: the root; a directory has one
	// Of a directory:
	list   []*entry
	byName map[string]*entry
}

// An entry is a name in a directory.
type entry struct {
	parent *node
	name   string
	n      *node
	inDir  int // index in parent.list
	inAll  int // index in Gen.all
}

// An outer is a node that was moved to Options.Outside.
type outer struct {
	name string
	n    *node
}

// New starts with the empty directory dir.
func New(dir string, o Options) (*Gen, error) {
	if o.Entries == 0 {
		o.Entries = 200
	}
	if o.Bytes == 0 {
		o.Bytes = 8 << 20
	}
	if o.Large == 0 {
		o.Large = 2 << 20
	}
	if o.PathMax == 0 {
		o.PathMax = 1000
	}
	if list, err := os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("treegen: %w", err)
	} else {
		for _, e := range list {
			if e.Name() != ".secrate" { // snapshots
				return nil, fmt.Errorf("treegen: %s is not empty", dir)
			}
		}
	}
	g := &Gen{
		o:    o,
		dir:  dir,
		rng:  rand.New(rand.NewPCG(o.Seed, 0x736563726174650a)),
		root: &node{kind: filetree.Dir, byName: map[string]*entry{}},
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("treegen: statfs %s: %w", dir, err)
	}
	g.zfs = uint32(st.Type) == zfsMagic
	for _, op := range operations {
		g.ops = append(g.ops, op)
		if op.shrinks {
			g.shrink = append(g.shrink, op)
		}
	}
	return g, nil
}

// zfsMagic is what statfs(2) says of ZFS.
const zfsMagic = 0x2fc12fc1

// Step does n operations. After an error the Gen no longer knows the tree.
func (g *Gen) Step(n int) error {
	for range n {
		if err := g.step(); err != nil {
			return err
		}
	}
	return nil
}

// Log returns the operations done so far, a line each.
func (g *Gen) Log() string { return g.log.String() }

// Note adds a line to the log: "snapshot s3".
func (g *Gen) Note(format string, args ...any) {
	line := fmt.Sprintf(format, args...) + "\n"
	g.log.WriteString(line)
	if g.o.Log != nil {
		io.WriteString(g.o.Log, line)
	}
}

// Fill makes files small files, a hundred in a directory, fast. They count as
// entries, and are changed by the Steps that follow.
func (g *Gen) Fill(files int) error {
	g.Note("fill files=%d", files)
	g.o.Entries += files + files/100 + 1
	var dir *node
	for i := range files {
		if i%100 == 0 {
			name := fmt.Sprintf("fill%d", g.next())
			if err := unix.Mkdir(g.path(g.root, name), 0o755); err != nil {
				return fmt.Errorf("treegen: fill: %w", err)
			}
			dir = g.add(g.root, name, newDir()).n
		}
		n := &node{kind: filetree.File, text: true}
		data := g.lines(g.rng.IntN(40))
		e := g.add(dir, fmt.Sprintf("file%d", i), n)
		if err := os.WriteFile(g.at(e), data, 0o644); err != nil {
			return fmt.Errorf("treegen: fill: %w", err)
		}
		g.o.Bytes += int64(len(data))
		g.resize(n, int64(len(data)))
	}
	return nil
}

// step does one operation: those drawn that find nothing to work on do not count.
func (g *Gen) step() error {
	ops := g.ops
	if len(g.all) > g.o.Entries || g.total > g.o.Bytes {
		ops = g.shrink
	}
	sum := 0
	for _, op := range ops {
		sum += op.weight
	}
	for range 1000 {
		x := g.rng.IntN(sum)
		i := 0
		for x >= ops[i].weight {
			x -= ops[i].weight
			i++
		}
		done, err := ops[i].do(g)
		if err != nil {
			return fmt.Errorf("treegen: seed %d: %s: %w", g.o.Seed, g.lastLine(), err)
		}
		if done {
			return nil
		}
	}
	return fmt.Errorf("treegen: seed %d: nothing to do", g.o.Seed)
}

func (g *Gen) lastLine() string {
	s := strings.TrimSuffix(g.log.String(), "\n")
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// next returns a number that was not returned before.
func (g *Gen) next() int {
	g.serial++
	return g.serial
}

// The model of the tree.

func newDir() *node {
	return &node{kind: filetree.Dir, byName: map[string]*entry{}}
}

// add gives n the name in dir, which has to be free.
func (g *Gen) add(dir *node, name string, n *node) *entry {
	e := &entry{parent: dir, name: name, n: n, inDir: len(dir.list), inAll: len(g.all)}
	dir.list = append(dir.list, e)
	dir.byName[name] = e
	g.all = append(g.all, e)
	n.names = append(n.names, e)
	return e
}

// drop takes the name e away; with the last one of a file goes the file.
func (g *Gen) drop(e *entry) {
	last := e.parent.list[len(e.parent.list)-1]
	e.parent.list[e.inDir] = last
	last.inDir = e.inDir
	e.parent.list = e.parent.list[:len(e.parent.list)-1]
	delete(e.parent.byName, e.name)

	last = g.all[len(g.all)-1]
	g.all[e.inAll] = last
	last.inAll = e.inAll
	g.all = g.all[:len(g.all)-1]

	e.n.forget(e)
	if len(e.n.names) == 0 {
		g.total -= e.n.size
	}
}

func (n *node) forget(e *entry) {
	for i, x := range n.names {
		if x == e {
			n.names = append(n.names[:i], n.names[i+1:]...)
			return
		}
	}
}

// dropTree drops e and all below it.
func (g *Gen) dropTree(e *entry) {
	for e.n.kind == filetree.Dir && len(e.n.list) > 0 {
		g.dropTree(e.n.list[0])
	}
	g.drop(e)
}

// move gives what e names another name, taking away what has that one.
func (g *Gen) move(e *entry, dir *node, name string) {
	if old := dir.byName[name]; old != nil {
		g.drop(old)
	}
	n := e.n
	g.add(dir, name, n) // first: a file without a name would go
	g.drop(e)
}

// swap exchanges what two names lead to.
func (g *Gen) swap(a, b *entry) {
	a.n.forget(a)
	b.n.forget(b)
	a.n, b.n = b.n, a.n
	a.n.names = append(a.n.names, a)
	b.n.names = append(b.n.names, b)
}

func (g *Gen) resize(n *node, size int64) {
	g.total += size - n.size
	n.size = size
}

// rel returns the path of dir, relative to the tree, "" for the root.
func (n *node) rel() string {
	if len(n.names) == 0 {
		return ""
	}
	return n.names[0].rel()
}

func (e *entry) rel() string {
	if p := e.parent.rel(); p != "" {
		return p + "/" + e.name
	}
	return e.name
}

// String returns e's path for the log.
func (e *entry) String() string { return manifest.Show(e.rel()) }

// at returns the path of e.
func (g *Gen) at(e *entry) string { return g.dir + "/" + e.rel() }

// path returns the path of name in dir.
func (g *Gen) path(dir *node, name string) string {
	return filepath.Join(g.dir, dir.rel()) + "/" + name
}

// show returns what path returns for the log.
func show(dir *node, name string) string {
	if p := dir.rel(); p != "" {
		name = p + "/" + name
	}
	return manifest.Show(name)
}

// depth returns the longest path below n, which counts 0 itself.
func (n *node) depth() int {
	d := 0
	for _, e := range n.list {
		d = max(d, 1+len(e.name)+e.n.depth())
	}
	return d
}

// fits reports whether the paths stay within bounds if n gets the name in dir.
func (g *Gen) fits(dir *node, name string, n *node) bool {
	return len(dir.rel())+1+len(name)+n.depth() <= g.o.PathMax
}

// within reports whether dir is d or below it.
func within(dir, d *node) bool {
	for dir != d {
		if len(dir.names) == 0 {
			return false
		}
		dir = dir.names[0].parent
	}
	return true
}

// Drawing from the tree.

// anyDir returns a directory, now and then the root.
func (g *Gen) anyDir() *node {
	if g.rng.IntN(6) > 0 {
		if e := g.pick(isDir); e != nil {
			return e.n
		}
	}
	return g.root
}

// pick returns an entry for whose node ok holds, nil if none is found soon.
func (g *Gen) pick(ok func(*node) bool) *entry {
	if len(g.all) == 0 {
		return nil
	}
	for range 40 {
		if e := g.all[g.rng.IntN(len(g.all))]; ok(e.n) {
			return e
		}
	}
	return nil
}

func isAny(*node) bool        { return true }
func isDir(n *node) bool      { return n.kind == filetree.Dir }
func isNotDir(n *node) bool   { return n.kind != filetree.Dir }
func isFile(n *node) bool     { return n.kind == filetree.File }
func isFilled(n *node) bool   { return n.kind == filetree.File && n.size > 0 }
func isText(n *node) bool     { return n.kind == filetree.File && n.text && n.size > 0 && n.size < 1<<20 }
func isEmptyDir(n *node) bool { return n.kind == filetree.Dir && len(n.list) == 0 }
func (g *Gen) isLarge(n *node) bool {
	return n.kind == filetree.File && g.o.Large > 0 && n.size >= g.o.Large/2
}

// freshName returns a name that is free in dir and fits for n; "" if none is found.
// There are few of them, so that names come back.
func (g *Gen) freshName(dir *node, n *node) string {
	for range 20 {
		if name := g.name(); dir.byName[name] == nil && g.fits(dir, name, n) {
			return name
		}
	}
	return ""
}

func (g *Gen) name() string {
	i := g.rng.IntN(60)
	switch g.rng.IntN(24) {
	case 0:
		return fmt.Sprintf("\xff\xfe%d", i)
	case 1:
		return fmt.Sprintf("ü%d ✓", i)
	case 2:
		return fmt.Sprintf("u\u0308%d", i) // the same to the eye as ü
	case 3:
		return fmt.Sprintf("new\nline %d", i)
	case 4:
		return fmt.Sprintf(`back\slash"%d`, i)
	case 5:
		return fmt.Sprintf("o%d-%d-0", 257+i, 5+g.rng.IntN(10)) // as the Btrfs sender's temporary names
	case 6:
		return fmt.Sprintf("%03d", i) + strings.Repeat("L", 252)
	case 7:
		return fmt.Sprintf("%03d", i) + strings.Repeat("\x80", 252)
	case 8:
		return fmt.Sprintf(".hidden%d", i)
	case 9:
		return fmt.Sprintf("-n %d ", i)
	}
	return fmt.Sprintf("%c%d", 'a'+rune(g.rng.IntN(6)), i)
}

// size returns a size for a new file or a piece of one, mostly small, and often at
// a border.
func (g *Gen) size() int64 {
	switch g.rng.IntN(12) {
	case 0:
		return 0
	case 1, 2, 3:
		return int64(1 + g.rng.IntN(300))
	case 4:
		return int64(2040 + g.rng.IntN(20)) // limit of inline extents on Btrfs
	case 5:
		return 4096*int64(1+g.rng.IntN(4)) - 1 + int64(g.rng.IntN(3))
	case 6:
		return 4096 * int64(1+g.rng.IntN(32))
	case 7, 8:
		return int64(g.rng.IntN(100_000))
	}
	return int64(g.rng.IntN(8000))
}

// offset returns an offset from 0 to limit, often at a block.
func (g *Gen) offset(limit int64) int64 {
	off := g.rng.Int64N(limit + 1)
	if g.rng.IntN(3) == 0 {
		off &^= 4095
	}
	return off
}

// bytes returns data: noise, text or repetition, in equal parts.
func (g *Gen) bytes(n int64) []byte {
	switch g.rng.IntN(3) {
	case 0:
		return g.noise(n)
	case 1:
		b := make([]byte, 0, n+200)
		for int64(len(b)) < n {
			b = append(b, g.line()...)
		}
		return b[:n]
	}
	pattern := g.noise(1 + g.rng.Int64N(64))
	b := make([]byte, n)
	for i := range b {
		b[i] = pattern[i%len(pattern)]
	}
	return b
}

func (g *Gen) noise(n int64) []byte {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(g.rng.Uint32())
	}
	b := make([]byte, n)
	rand.NewChaCha8(seed).Read(b)
	return b
}

func (g *Gen) line() []byte {
	var b []byte
	for range 1 + g.rng.IntN(12) {
		b = append(b, words[g.rng.IntN(len(words))]...)
		b = append(b, ' ')
	}
	b[len(b)-1] = '\n'
	return b
}

func (g *Gen) lines(n int) []byte {
	var b []byte
	for range n {
		b = append(b, g.line()...)
	}
	return b
}

var words = strings.Fields(`a the of and to in is that for it as was with be by on not he his but at are this
	have from or had an they which one you were all her she there would their we him been has when who will
	no more if out so up said what its about than into them can only other time new some could these two may
	first then do any like my now over such our man me even most made after also did many off before must
	func return err nil := == != if { } ( ) range string int bool 0 1 42 error.New import package struct`)
