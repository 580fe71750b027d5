package formattest

// This file restores a repository by following docs/format.md, section "Restoring by
// hand", and nothing else. It imports nothing of this module, and TestIndependent
// keeps it so: it is the proof that the document is enough. The numbers of steps in
// the comments are those of the document.
//
// It is written to be read beside the document: it keeps everything in memory, and
// knows no limits but those that the document says a reader must enforce.

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"filippo.io/age"
	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// Keys, section 4 of the document.

func derive(key []byte, label string, context ...[]byte) []byte {
	info := binary.BigEndian.AppendUint32(nil, uint32(len(label)))
	info = append(info, label...)
	for _, c := range context {
		info = binary.BigEndian.AppendUint32(info, uint32(len(c)))
		info = append(info, c...)
	}
	out, err := hkdf.Key(sha256.New, key, nil, string(info), 32)
	if err != nil {
		panic(err)
	}
	return out
}

func aesGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	g, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return g
}

func unseal(key, box []byte) ([]byte, error) {
	return aesGCM(key).Open(nil, make([]byte, 12), box, nil)
}

func contentID(key, data []byte) []byte {
	h, err := blake3.NewKeyed(key)
	if err != nil {
		panic(err)
	}
	h.Write(data)
	return h.Sum(nil)[:16]
}

// Framing, section 5.

func unframe(b []byte, limit int) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("frame of no bytes")
	}
	out := b[1:]
	switch b[0] {
	case 0:
	case 1:
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(limit)))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		if out, err = d.DecodeAll(b[1:], nil); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("method %d", b[0])
	}
	if len(out) > limit {
		return nil, fmt.Errorf("%d bytes, may be %d", len(out), limit)
	}
	return out, nil
}

// Section 3: a field that the document does not name is an error here, so that the
// document stays complete.
var cborMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 64, MaxArrayElements: 4 << 20, MaxMapPairs: 1 << 20, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// The CDDL of section 9, as Go has it.

type keyFile struct {
	Version    uint64 `cbor:"1,keyasint"`
	Repository []byte `cbor:"2,keyasint"`
	Writer     []byte `cbor:"3,keyasint"`
	Name       []byte `cbor:"4,keyasint"`
	Key        []byte `cbor:"5,keyasint"`
	Created    int64  `cbor:"6,keyasint"`
}

type rootRec struct {
	Version  uint64            `cbor:"1,keyasint"`
	Source   []byte            `cbor:"2,keyasint"`
	Seq      uint64            `cbor:"3,keyasint"`
	Prev     []byte            `cbor:"4,keyasint"`
	Time     [2]int64          `cbor:"5,keyasint"`
	Origin   []byte            `cbor:"6,keyasint"`
	GUID     []byte            `cbor:"7,keyasint"`
	Flags    uint64            `cbor:"8,keyasint"`
	Stats    map[uint64]uint64 `cbor:"9,keyasint"`
	Next     uint64            `cbor:"10,keyasint"`
	Segments []segmentRef      `cbor:"11,keyasint"`
	Body     *bodyRec          `cbor:"12,keyasint"`
	Exclude  [][]byte          `cbor:"13,keyasint"`
	Users    map[uint32][]byte `cbor:"14,keyasint"`
	Groups   map[uint32][]byte `cbor:"15,keyasint"`
	Host     []byte            `cbor:"17,keyasint"`
}

const (
	full       = 1
	partial    = 2
	checkpoint = 4
)

type segmentRef struct {
	_    struct{} `cbor:",toarray"`
	SHA  []byte
	Size uint64
}

type bodyRec struct {
	Packs []packRec `cbor:"1,keyasint"`
	Nodes []nodeRec `cbor:"2,keyasint"`
}

type packRec struct {
	SHA   []byte   `cbor:"1,keyasint"`
	Size  uint64   `cbor:"2,keyasint"`
	Key   []byte   `cbor:"3,keyasint"`
	Blobs []uint32 `cbor:"4,keyasint"`
}

type nodeRec struct {
	Node uint64          `cbor:"1,keyasint"`
	Attr cbor.RawMessage `cbor:"2,keyasint"`
	Got  []entryRec      `cbor:"3,keyasint"`
	Lost []entryRec      `cbor:"4,keyasint"`
	Data []dataRec       `cbor:"5,keyasint"`
	End  bool            `cbor:"6,keyasint"`
}

type entryRec struct {
	_    struct{} `cbor:",toarray"`
	Dir  uint64
	Name []byte
}

type dataRec struct {
	Offset uint64    `cbor:"1,keyasint"`
	Parts  []partRec `cbor:"2,keyasint"`
	CID    []byte    `cbor:"3,keyasint"`
}

type partRec struct {
	Length uint64    `cbor:"1,keyasint"`
	Pack   uint32    `cbor:"2,keyasint"`
	Blob   uint32    `cbor:"3,keyasint"`
	Offset uint32    `cbor:"4,keyasint"`
	Keep   bool      `cbor:"5,keyasint"`
	Patch  *patchRec `cbor:"6,keyasint"`
}

type patchRec struct {
	Base   []partRec `cbor:"1,keyasint"`
	Pack   uint32    `cbor:"2,keyasint"`
	Blob   uint32    `cbor:"3,keyasint"`
	Offset uint32    `cbor:"4,keyasint"`
	Length uint32    `cbor:"5,keyasint"`
	Result uint32    `cbor:"6,keyasint"`
}

// attrRec is node-attr. Decoding into one that is there changes what is said and
// leaves the rest, which is what node-attr means.
type attrRec struct {
	Kind   uint8       `cbor:"1,keyasint"`
	Mode   uint32      `cbor:"2,keyasint"`
	UID    uint32      `cbor:"3,keyasint"`
	GID    uint32      `cbor:"4,keyasint"`
	Size   uint64      `cbor:"5,keyasint"`
	Mtime  [2]int64    `cbor:"6,keyasint"`
	Ctime  [2]int64    `cbor:"7,keyasint"`
	Btime  [2]int64    `cbor:"8,keyasint"`
	MCtime *[2]int64   `cbor:"9,keyasint"`
	Rdev   [2]uint32   `cbor:"10,keyasint"`
	Flags  uint32      `cbor:"11,keyasint"`
	Target []byte      `cbor:"12,keyasint"`
	Xattrs [][2][]byte `cbor:"13,keyasint"`
	Ino    uint64      `cbor:"14,keyasint"`
	Gen    uint64      `cbor:"15,keyasint"`
	Lacks  bool        `cbor:"16,keyasint"`
}

type indexRec struct {
	Source []byte       `cbor:"1,keyasint"`
	Seq    uint64       `cbor:"2,keyasint"`
	Blobs  []uint32     `cbor:"3,keyasint"`
	Slices []indexSlice `cbor:"4,keyasint"`
}

type indexSlice struct {
	_      struct{} `cbor:",toarray"`
	Blob   uint32
	Offset uint32
	Length uint32
	Node   uint64
	At     int64
	CID    []byte
}

// Steps 1 and 2.

// A repository is one that was opened as one writer.
type repository struct {
	files      fs.FS
	identities []age.Identity
	id         []byte
	writer     string
	key        []byte // the metadata key
	packs      map[string]*openedPack
}

func openRepository(files fs.FS, identityFile []byte) (*repository, error) {
	r := &repository{files: files, packs: map[string]*openedPack{}}
	var err error
	if r.identities, err = age.ParseIdentities(bytes.NewReader(identityFile)); err != nil {
		return nil, err
	}
	// Step 1: the repository's id.
	if b, err := fs.ReadFile(files, "secrate.json"); err == nil {
		var conf struct {
			Format     int    `json:"secrate_format"`
			Repository string `json:"repository"`
		}
		if err := json.Unmarshal(b, &conf); err != nil {
			return nil, err
		}
		if conf.Format != 1 {
			return nil, fmt.Errorf("format %d", conf.Format)
		}
		if r.id, err = hex.DecodeString(conf.Repository); err != nil || len(r.id) != 16 {
			return nil, fmt.Errorf("repository id %q", conf.Repository)
		}
	}
	// Step 2: the writer's metadata key.
	names, err := fs.Glob(files, "keys*/*/*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		box, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		plain, err := r.ageOpen(box)
		if err != nil {
			continue // sealed to others
		}
		var k keyFile
		if err := cborMode.Unmarshal(plain, &k); err != nil {
			return nil, err
		}
		if k.Version != 1 || len(k.Key) != 32 || string(k.Writer) != path.Base(path.Dir(name)) {
			return nil, fmt.Errorf("key file %s", name)
		}
		if len(k.Repository) != 16 {
			return nil, fmt.Errorf("repository id in %s", name)
		}
		// secrate.json says the same, unless it is lost or altered.
		r.id, r.writer, r.key = k.Repository, string(k.Writer), k.Key
		return r, nil
	}
	return nil, errors.New("no key that the identity opens")
}

func (r *repository) ageOpen(box []byte) ([]byte, error) {
	d, err := age.Decrypt(bytes.NewReader(box), r.identities...)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(d)
}

// Steps 3 to 5.

type objectName struct {
	source string
	seq    uint64
	kind   string // "", "s" or "c"
	sha    string
}

var manifestName = regexp.MustCompile(`^([0-9a-f]{16})/([0-9]{10,19})([sc]?)-([0-9a-f]{64})$`)

// A source is one source's history.
type source struct {
	repo        *repository
	ident       string
	name        string
	objects     map[objectName][]byte
	roots       map[uint64]*rootRec // that which counts, where there are several
	checkpoints map[uint64]*rootRec
	forks       int
}

func (r *repository) sources() ([]*source, error) {
	byIdent := map[string]*source{}
	// Step 3: read both copies; take those that are what their names say.
	for _, prefix := range []string{"meta", "meta2"} {
		dir := prefix + "/" + r.writer
		err := fs.WalkDir(r.files, dir, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && p == dir {
				return nil // this copy is lost
			} else if err != nil || d.IsDir() {
				return err
			}
			m := manifestName.FindStringSubmatch(strings.TrimPrefix(p, dir+"/"))
			if m == nil {
				return fmt.Errorf("%s is no manifest's name", p)
			}
			obj, err := fs.ReadFile(r.files, p)
			if err != nil {
				return err
			}
			if sum := sha256.Sum256(obj); hex.EncodeToString(sum[:]) != m[4] {
				return nil // damaged: the other copy may be whole
			}
			seq, err := strconv.ParseUint(m[2], 10, 63)
			if err != nil {
				return err
			}
			s := byIdent[m[1]]
			if s == nil {
				s = &source{repo: r, ident: m[1], objects: map[objectName][]byte{},
					roots: map[uint64]*rootRec{}, checkpoints: map[uint64]*rootRec{}}
				byIdent[m[1]] = s
			}
			s.objects[objectName{m[1], seq, m[3], m[4]}] = obj
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var all []*source
	for _, s := range byIdent {
		if err := s.openRoots(); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *source) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

// openManifest is step 4 for one object.
func (s *source) openManifest(obj []byte, label string, seq uint64, number uint32, v any) error {
	if len(obj) < 5+16+16 || string(obj[:4]) != "scrm" {
		return errors.New("not a manifest")
	}
	if obj[4] != 1 {
		return fmt.Errorf("manifest of version %d", obj[4])
	}
	key := derive(s.repo.key, label, s.repo.id, []byte(s.repo.writer), []byte(s.ident),
		binary.LittleEndian.AppendUint64(nil, seq), binary.LittleEndian.AppendUint32(nil, number), obj[5:21])
	framed, err := unseal(key, obj[21:])
	if err != nil {
		return err
	}
	plain, err := unframe(framed, 8<<20)
	if err != nil {
		return err
	}
	return cborMode.Unmarshal(plain, v)
}

func (s *source) openRoots() error {
	type named struct {
		sha  string
		root *rootRec
	}
	bySeq := map[uint64][]named{}
	for name, obj := range s.objects {
		label := "secrate root"
		switch name.kind {
		case "s":
			continue
		case "c":
			label = "secrate checkpoint"
		}
		root := &rootRec{}
		if err := s.openManifest(obj, label, name.seq, 0, root); err != nil {
			return fmt.Errorf("#%d%s: %w", name.seq, name.kind, err)
		}
		if root.Version != 1 || root.Flags&^7 != 0 || root.Seq != name.seq || (root.Flags&checkpoint != 0) != (name.kind == "c") {
			return fmt.Errorf("#%d%s: version %d, flags %d, seq %d", name.seq, name.kind, root.Version, root.Flags, root.Seq)
		}
		for n := range root.Stats {
			if n < 1 || n > 5 {
				return fmt.Errorf("#%d%s: statistic %d", name.seq, name.kind, n)
			}
		}
		s.name = string(root.Source)
		if sum := derive(s.repo.key, "secrate source id", s.repo.id, root.Source); hex.EncodeToString(sum[:8]) != s.ident {
			return fmt.Errorf("source %q under the name %s", root.Source, s.ident)
		}
		if name.kind == "c" {
			s.checkpoints[name.seq] = root
			continue
		}
		bySeq[name.seq] = append(bySeq[name.seq], named{name.sha, root})
	}
	// Step 5: of several roots with one number one is taken, from the newest number back.
	var next *rootRec
	numbers := slices.Sorted(maps.Keys(bySeq))
	for i, seq := range slices.Backward(numbers) {
		all := bySeq[seq]
		slices.SortFunc(all, func(a, b named) int { return strings.Compare(a.sha, b.sha) })
		pick := -1
		if next != nil {
			pick = slices.IndexFunc(all, func(n named) bool { return n.sha == hex.EncodeToString(next.Prev) })
		}
		if pick < 0 && i > 0 {
			pick = slices.IndexFunc(all, func(n named) bool {
				return slices.ContainsFunc(bySeq[numbers[i-1]], func(p named) bool { return p.sha == hex.EncodeToString(n.root.Prev) })
			})
		}
		next = all[max(pick, 0)].root
		s.roots[seq] = next
		s.forks += len(all) - 1
	}
	return nil
}

// errGap says that manifests are missing between what is known and the snapshot that
// is wanted.
var errGap = errors.New("manifests are missing")

// chain returns the roots to apply, in order, for the state at seq.
func (s *source) chain(seq uint64) ([]*rootRec, error) {
	var chain []*rootRec // the last one first
	for n := seq; ; n-- {
		if c := s.checkpoints[n]; c != nil {
			chain = append(chain, c)
			break
		}
		root := s.roots[n]
		if root == nil {
			return nil, fmt.Errorf("#%d of %q: %w", n, s.name, errGap)
		}
		chain = append(chain, root)
		if root.Flags&full != 0 {
			break
		}
	}
	slices.Reverse(chain)
	return chain, nil
}

// Steps 6 and 7.

// A tree is the state of a source at one snapshot.
type tree struct {
	source *source
	nodes  map[uint64]*node
	names  map[uint64]map[string]uint64 // of directories
	packs  map[string]packRec           // by the hash, those that are told whole
	check  bool                         // compare content ids
}

type node struct {
	attr    attrRec
	extents []extent // by offset, none overlaps another
}

// An extent is a part at its place, with the table of packs it counts in.
type extent struct {
	from, to uint64
	part     partRec
	table    []packRec
}

func (s *source) at(seq uint64, check bool) (*tree, error) {
	chain, err := s.chain(seq)
	if err != nil {
		return nil, err
	}
	t := &tree{source: s, packs: map[string]packRec{}, check: check}
	// Step 6: one root after the other; of each, its segments in order, then its body.
	for _, root := range chain {
		if root.Flags&full != 0 {
			t.nodes, t.names = map[uint64]*node{}, map[uint64]map[string]uint64{}
		}
		label := "secrate segment"
		if root.Flags&checkpoint != 0 {
			label = "secrate checkpoint segment"
		}
		for i, ref := range root.Segments {
			obj := s.objects[objectName{s.ident, root.Seq, "s", hex.EncodeToString(ref.SHA)}]
			if obj == nil || uint64(len(obj)) != ref.Size {
				return nil, fmt.Errorf("#%d: segment %x is missing", root.Seq, ref.SHA)
			}
			var b bodyRec
			if err := s.openManifest(obj, label, root.Seq, uint32(i), &b); err != nil {
				return nil, fmt.Errorf("#%d: segment %x: %w", root.Seq, ref.SHA, err)
			}
			if err := t.apply(&b); err != nil {
				return nil, fmt.Errorf("#%d: segment %x: %w", root.Seq, ref.SHA, err)
			}
		}
		if root.Body != nil {
			if err := t.apply(root.Body); err != nil {
				return nil, fmt.Errorf("#%d: %w", root.Seq, err)
			}
		}
	}
	return t, nil
}

// apply is step 7.
func (t *tree) apply(b *bodyRec) error {
	for _, p := range b.Packs {
		if len(p.SHA) != 32 {
			return errors.New("name of a pack")
		}
		if p.Size != 0 {
			t.packs[string(p.SHA)] = p
		}
	}
	for i := range b.Nodes {
		if err := t.applyNode(&b.Nodes[i], b.Packs); err != nil {
			return fmt.Errorf("node %d: %w", b.Nodes[i].Node, err)
		}
	}
	return nil
}

func (t *tree) applyNode(r *nodeRec, table []packRec) error {
	if r.Node == 0 || r.Node >= 1<<40 {
		return errors.New("its number")
	}
	if r.End { // 7a
		delete(t.nodes, r.Node)
		for _, names := range t.names {
			for name, n := range names {
				if n == r.Node {
					delete(names, name)
				}
			}
		}
		return nil
	}
	n := t.nodes[r.Node]
	if n == nil {
		n = &node{}
		t.nodes[r.Node] = n
	}
	for _, d := range r.Data { // 7b
		if err := t.applyData(n, d, table); err != nil {
			return err
		}
	}
	if r.Attr != nil { // 7c
		if err := cborMode.Unmarshal(r.Attr, &n.attr); err != nil {
			return err
		}
		if m := n.attr.MCtime; m != nil {
			n.attr.Mtime, n.attr.Ctime, n.attr.MCtime = *m, *m, nil
		}
		if n.attr.Kind < 1 || n.attr.Kind > 7 || n.attr.Mode > 0o7777 {
			return fmt.Errorf("kind %d, mode %o", n.attr.Kind, n.attr.Mode)
		}
	}
	for _, e := range r.Lost { // 7d
		if t.names[e.Dir][string(e.Name)] == r.Node {
			delete(t.names[e.Dir], string(e.Name))
		}
	}
	for _, e := range r.Got { // 7e
		name := string(e.Name)
		if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("name %q", name)
		}
		if t.names[e.Dir] == nil {
			t.names[e.Dir] = map[string]uint64{}
		}
		t.names[e.Dir][name] = r.Node
	}
	return nil
}

const maxPart = 1 << 20

func (t *tree) applyData(n *node, d dataRec, table []packRec) error {
	at := d.Offset
	for _, p := range d.Parts {
		end := at + p.Length
		if p.Length == 0 || end < at || end > 1<<63-1 {
			return fmt.Errorf("part of %d bytes at %d", p.Length, at)
		}
		if !p.Keep {
			if err := checkPart(p, table, 0); err != nil {
				return err
			}
			n.cut(at, end)
			if p.Pack != 0 || p.Patch != nil {
				n.extents = append(n.extents, extent{at, end, p, table})
			}
		}
		at = end
	}
	slices.SortFunc(n.extents, func(a, b extent) int { return int(int64(a.from) - int64(b.from)) })
	if t.check && d.CID != nil {
		data, err := t.read(n, d.Offset, at)
		if err != nil {
			return err
		}
		key := derive(t.source.repo.key, "secrate content id", t.source.repo.id)
		if !bytes.Equal(contentID(key, data), d.CID) {
			return fmt.Errorf("content id of %d bytes at %d", len(data), d.Offset)
		}
	}
	return nil
}

// checkPart enforces the limits of section 10.
func checkPart(p partRec, table []packRec, depth int) error {
	if p.Pack == 0 && p.Patch == nil {
		return nil
	}
	if p.Length > maxPart || uint64(p.Offset)+p.Length > maxPart || int(p.Pack) > len(table) {
		return fmt.Errorf("part of %d bytes at %d of pack %d", p.Length, p.Offset, p.Pack)
	}
	if p.Patch == nil {
		return nil
	}
	q, total := p.Patch, uint64(0)
	if depth >= 8 || uint64(p.Offset)+p.Length > uint64(q.Result) || q.Result > maxPart || len(q.Base) > 4096 ||
		q.Pack == 0 || int(q.Pack) > len(table) || q.Length == 0 || uint64(q.Offset)+uint64(q.Length) > maxPart {
		return errors.New("patch beyond the limits")
	}
	for _, b := range q.Base {
		if total += b.Length; b.Keep || b.Length == 0 || b.Length > 4<<20 || total > 4<<20 {
			return errors.New("base of a patch")
		}
		if err := checkPart(b, table, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// cut makes [from, to) of a file a hole.
func (n *node) cut(from, to uint64) {
	var left []extent
	for _, e := range n.extents {
		if e.to <= from || e.from >= to {
			left = append(left, e)
			continue
		}
		if e.from < from {
			f := e
			f.to, f.part.Length = from, from-e.from
			left = append(left, f)
		}
		if e.to > to {
			f := e
			f.from, f.part.Length = to, e.to-to
			f.part.Offset += uint32(to - e.from)
			left = append(left, f)
		}
	}
	n.extents = left
}

// Steps 8 to 11.

// read returns the bytes [from, to) of a file: step 9.
func (t *tree) read(n *node, from, to uint64) ([]byte, error) {
	out := make([]byte, to-from) // holes are zeros
	for _, e := range n.extents {
		if e.to <= from || e.from >= to {
			continue
		}
		b, err := t.part(e.part, e.table)
		if err != nil {
			return nil, err
		}
		if e.from < from {
			b, e.from = b[from-e.from:], from
		}
		copy(out[e.from-from:], b)
	}
	return out, nil
}

// part returns the bytes of one part.
func (t *tree) part(p partRec, table []packRec) ([]byte, error) {
	switch {
	case p.Patch != nil: // step 11
		var base []byte
		for _, b := range p.Patch.Base {
			piece, err := t.part(b, table)
			if err != nil {
				return nil, err
			}
			base = append(base, piece...)
		}
		patch, err := t.slice(table[p.Patch.Pack-1].SHA, p.Patch.Blob, p.Patch.Offset, uint64(p.Patch.Length))
		if err != nil {
			return nil, err
		}
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPart), zstd.WithDecoderDictRaw(0, base))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		out, err := d.DecodeAll(patch, nil)
		if err != nil {
			return nil, err
		}
		if len(out) != int(p.Patch.Result) {
			return nil, fmt.Errorf("patch gives %d bytes, not %d", len(out), p.Patch.Result)
		}
		return out[p.Offset:][:p.Length], nil
	case p.Pack != 0:
		return t.slice(table[p.Pack-1].SHA, p.Blob, p.Offset, p.Length)
	}
	return make([]byte, p.Length), nil
}

type openedPack struct {
	object []byte
	key    []byte
	blobs  []uint32
	plain  map[uint32][]byte
}

func (t *tree) slice(sha []byte, blob, offset uint32, length uint64) ([]byte, error) {
	r := t.source.repo
	p := r.packs[string(sha)]
	if p == nil {
		rec, ok := t.packs[string(sha)]
		if !ok {
			rec = packRec{SHA: sha}
		}
		var err error
		if p, err = r.openPack(rec); err != nil {
			return nil, fmt.Errorf("pack %x: %w", sha, err)
		}
		r.packs[string(sha)] = p
	}
	b, err := p.blob(r.id, blob)
	if err != nil {
		return nil, fmt.Errorf("blob %d of pack %x: %w", blob, sha, err)
	}
	if uint64(offset)+length > uint64(len(b)) {
		return nil, fmt.Errorf("slice beyond blob %d of pack %x", blob, sha)
	}
	return b[offset:][:length], nil
}

// openPack is step 10.
func (r *repository) openPack(rec packRec) (*openedPack, error) {
	h := hex.EncodeToString(rec.SHA)
	obj, err := fs.ReadFile(r.files, "packs/"+h[:2]+"/"+h)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(obj); !bytes.Equal(sum[:], rec.SHA) {
		return nil, errors.New("its bytes are not those its name says")
	}
	sealed, index, err := r.packIndex(obj)
	if err != nil {
		return nil, err
	}
	if rec.Size == 0 { // the manifest that told of it is not among those we read
		rec.Key, rec.Blobs, rec.Size = sealed, index.Blobs, uint64(len(obj))
	}
	if !bytes.Equal(rec.Key, sealed) || !slices.Equal(rec.Blobs, index.Blobs) || rec.Size != uint64(len(obj)) {
		return nil, errors.New("manifest and pack do not agree")
	}
	key, err := r.ageOpen(rec.Key)
	if err != nil {
		return nil, err
	}
	if len(key) != 32 {
		return nil, errors.New("length of its key")
	}
	return &openedPack{obj, key, rec.Blobs, map[uint32][]byte{}}, nil
}

// packIndex reads what is at both ends of a pack.
func (r *repository) packIndex(obj []byte) (sealed []byte, index indexRec, err error) {
	if len(obj) < 15 || string(obj[:4]) != "scrp" || obj[4] != 1 || string(obj[len(obj)-4:]) != "scre" {
		return nil, index, errors.New("not a pack")
	}
	keyLen := int(binary.LittleEndian.Uint16(obj[5:]))
	indexLen := int(binary.LittleEndian.Uint32(obj[len(obj)-8:]))
	if keyLen > 16<<10 || 7+keyLen+indexLen+8 > len(obj) {
		return nil, index, errors.New("lengths in a pack")
	}
	sealed = obj[7 : 7+keyLen]
	sum := sha256.Sum256(sealed)
	framed, err := unseal(derive(r.key, "secrate pack index", r.id, sum[:]), obj[len(obj)-8-indexLen:len(obj)-8])
	if err != nil {
		return nil, index, err
	}
	plain, err := unframe(framed, 64<<20)
	if err == nil {
		err = cborMode.Unmarshal(plain, &index)
	}
	return sealed, index, err
}

func (p *openedPack) blob(repo []byte, n uint32) ([]byte, error) {
	if b, ok := p.plain[n]; ok {
		return b, nil
	}
	if int(n) >= len(p.blobs)/2 {
		return nil, errors.New("not in the table")
	}
	// Blobs follow the sealed key, one after the other.
	off := 7 + int(binary.LittleEndian.Uint16(p.object[5:]))
	for i := range n {
		off += int(p.blobs[2*i])
	}
	box := p.object[off:][:p.blobs[2*n]]
	framed, err := unseal(derive(p.key, "secrate blob", repo, binary.LittleEndian.AppendUint32(nil, n)), box)
	if err != nil {
		return nil, err
	}
	b, err := unframe(framed, maxPart)
	if err != nil {
		return nil, err
	}
	if len(b) != int(p.blobs[2*n+1]) {
		return nil, fmt.Errorf("%d bytes, not %d", len(b), p.blobs[2*n+1])
	}
	p.plain[n] = b
	return b, nil
}

// Step 12, but that nothing is written to a disk.

// An item is what a tree has at a path.
type item struct {
	path    string // with a slash before each name; "" is the root
	node    uint64
	attr    attrRec
	data    [][2]uint64 // ranges that are no holes
	content []byte
}

func (t *tree) items() ([]item, error) {
	var all []item
	seen := map[uint64]bool{}
	var walk func(path string, id uint64) error
	walk = func(path string, id uint64) error {
		n := t.nodes[id]
		if n == nil {
			return fmt.Errorf("%q: no node %d", path, id)
		}
		it := item{path: path, node: id, attr: n.attr}
		if n.attr.Kind == 1 {
			for _, e := range n.extents {
				if e.to > n.attr.Size {
					return fmt.Errorf("%q: data to %d of %d", path, e.to, n.attr.Size)
				}
				if k := len(it.data); k > 0 && it.data[k-1][1] == e.from {
					it.data[k-1][1] = e.to
				} else {
					it.data = append(it.data, [2]uint64{e.from, e.to})
				}
			}
			var err error
			if it.content, err = t.read(n, 0, n.attr.Size); err != nil {
				return fmt.Errorf("%q: %w", path, err)
			}
		}
		all = append(all, it)
		if n.attr.Kind != 2 {
			return nil
		}
		if seen[id] {
			return fmt.Errorf("%q: directory %d for the second time", path, id)
		}
		seen[id] = true
		for name, child := range t.names[id] { // step 8, for every path
			if err := walk(path+"/"+name, child); err != nil {
				return err
			}
		}
		return nil
	}
	err := walk("", 1)
	slices.SortFunc(all, func(a, b item) int { return strings.Compare(a.path, b.path) })
	return all, err
}
