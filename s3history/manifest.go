package s3history

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
)

// The structs below are the CBOR of docs/format.md, one to one; their names there
// are in the comments.

// root is root.
type root struct {
	Version  uint64            `cbor:"1,keyasint"`
	Source   []byte            `cbor:"2,keyasint"`
	Seq      uint64            `cbor:"3,keyasint"`
	Prev     []byte            `cbor:"4,keyasint,omitempty"`
	Time     [2]int64          `cbor:"5,keyasint"`
	Origin   []byte            `cbor:"6,keyasint,omitempty"`
	GUID     []byte            `cbor:"7,keyasint,omitempty"`
	Flags    uint64            `cbor:"8,keyasint,omitempty"`
	Stats    stats             `cbor:"9,keyasint"`
	Next     uint64            `cbor:"10,keyasint"`
	Segments []segmentRef      `cbor:"11,keyasint,omitempty"`
	Body     *body             `cbor:"12,keyasint,omitempty"`
	Exclude  [][]byte          `cbor:"13,keyasint,omitempty"`
	Users    map[uint32][]byte `cbor:"14,keyasint,omitempty"`
	Groups   map[uint32][]byte `cbor:"15,keyasint,omitempty"`
	Key      []byte            `cbor:"16,keyasint,omitempty"`
	Host     []byte            `cbor:"17,keyasint,omitempty"`
}

// Flags of a root.
const (
	flagFull       = 1 // says all of the state: nothing before it is needed
	flagPartial    = 2 // made while a first upload goes on: files are still missing
	flagCheckpoint = 4 // a checkpoint: the state at Seq, whose root is elsewhere
	flagKnown      = flagFull | flagPartial | flagCheckpoint
)

// stats is stats: what a snapshot did.
type stats struct {
	Files uint64 `cbor:"1,keyasint,omitempty"` // new, changed and ended, directories not counted
	Bytes uint64 `cbor:"2,keyasint,omitempty"` // of data looked at
	Data  uint64 `cbor:"3,keyasint,omitempty"` // of data that was new, before compression

	Packs     uint64 `cbor:"4,keyasint,omitempty"` // that this manifest tells of first
	PackBytes uint64 `cbor:"5,keyasint,omitempty"` // their size
}

// segmentRef is segment-ref.
type segmentRef struct {
	_    struct{} `cbor:",toarray"`
	SHA  []byte
	Size uint64
}

// body is body: the content of a segment, or of a small root.
type body struct {
	Packs []packRec `cbor:"1,keyasint,omitempty"`
	Nodes []nodeRec `cbor:"2,keyasint,omitempty"`
}

// packRec is pack: all of it where it is told first, else its name alone.
type packRec struct {
	SHA   []byte   `cbor:"1,keyasint"`
	Size  uint64   `cbor:"2,keyasint,omitempty"`
	Key   []byte   `cbor:"3,keyasint,omitempty"`
	Blobs []uint32 `cbor:"4,keyasint,omitempty"`
}

// nodeRec is node.
type nodeRec struct {
	ID   uint64        `cbor:"1,keyasint"`
	Attr *catalog.Attr `cbor:"2,keyasint,omitempty"`
	Got  []entryRec    `cbor:"3,keyasint,omitempty"`
	Lost []entryRec    `cbor:"4,keyasint,omitempty"`
	Data []dataRec     `cbor:"5,keyasint,omitempty"`
	End  bool          `cbor:"6,keyasint,omitempty"`
}

// entryRec is entry.
type entryRec struct {
	_    struct{} `cbor:",toarray"`
	Dir  uint64
	Name []byte
}

// dataRec is data: what the bytes of a file from Offset on are now.
type dataRec struct {
	Offset uint64    `cbor:"1,keyasint,omitempty"`
	Parts  []partRec `cbor:"2,keyasint"`
	CID    []byte    `cbor:"3,keyasint,omitempty"` // of all the parts together
}

// partRec is part. Pack counts from 1 in the body's Packs; 0 with no Patch and no
// Keep is a hole.
type partRec struct {
	Length uint64    `cbor:"1,keyasint"`
	Pack   uint32    `cbor:"2,keyasint,omitempty"`
	Blob   uint32    `cbor:"3,keyasint,omitempty"`
	Offset uint32    `cbor:"4,keyasint,omitempty"`
	Keep   bool      `cbor:"5,keyasint,omitempty"`
	Patch  *patchRec `cbor:"6,keyasint,omitempty"`
}

// patchRec is patch.
type patchRec struct {
	Base   []partRec `cbor:"1,keyasint"`
	Pack   uint32    `cbor:"2,keyasint"`
	Blob   uint32    `cbor:"3,keyasint,omitempty"`
	Offset uint32    `cbor:"4,keyasint,omitempty"`
	Length uint32    `cbor:"5,keyasint"`
	Result uint32    `cbor:"6,keyasint"`
}

var encMode, decMode = func() (cbor.EncMode, cbor.DecMode) {
	e, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic("s3history: internal error: " + err.Error())
	}
	d, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden, MaxNestedLevels: 64, MaxArrayElements: 4 << 20, MaxMapPairs: 1 << 20,
	}.DecMode()
	if err != nil {
		panic("s3history: internal error: " + err.Error())
	}
	return e, d
}()

// A manifest object is the magic, a random salt, and the sealed, compressed CBOR.
// What it is and where it belongs (repository, writer, source, sequence number,
// place among the segments) goes into its key, so that storage cannot swap one for
// another.
type metaPlace struct {
	repo           RepoID
	writer, source string
	seq            uint64
	label          string
	number         uint32 // of a segment; 0 for a root
}

func (p metaPlace) key(meta seal.Key, salt []byte) seal.Key {
	return meta.Derive(p.label, p.repo[:], []byte(p.writer), []byte(p.source),
		binary.LittleEndian.AppendUint64(nil, p.seq), binary.LittleEndian.AppendUint32(nil, p.number), salt)
}

func sealManifest(meta seal.Key, p metaPlace, v any, e *zstd.Encoder) ([]byte, error) {
	plain, err := encMode.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(plain) > maxManifest {
		return nil, fmt.Errorf("manifest of %d bytes: internal error: more than %d", len(plain), maxManifest)
	}
	obj := append(make([]byte, 0, len(plain)/2+64), manifestMagic...)
	salt := make([]byte, saltSize)
	rand.Read(salt) // never fails
	obj = append(obj, salt...)
	return p.key(meta, salt).Seal(obj, nil, compress(e, nil, plain)), nil
}

func openManifest(meta seal.Key, p metaPlace, obj []byte, v any) error {
	plain, err := openPlain(meta, p, obj)
	if err != nil {
		return err
	}
	return unmarshalManifest(plain, v)
}

// openPlain returns the CBOR of a manifest object.
func openPlain(meta seal.Key, p metaPlace, obj []byte) ([]byte, error) {
	if len(obj) < len(manifestMagic)+saltSize+seal.Overhead || !bytes.Equal(obj[:4], []byte(manifestMagic[:4])) {
		return nil, fmt.Errorf("not a manifest: %w", ErrFormat)
	}
	if obj[4] != manifestMagic[4] {
		return nil, fmt.Errorf("manifest of version %d: %w", obj[4], ErrNewer)
	}
	obj = obj[len(manifestMagic):]
	plain, err := p.key(meta, obj[:saltSize]).Open(nil, nil, obj[saltSize:])
	if err != nil {
		return nil, err
	}
	return decompress(newDecoder(maxManifest), plain, -1, maxManifest)
}

func unmarshalManifest(plain []byte, v any) error {
	if err := decMode.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// maxNode bounds the number that the next node gets.
const maxNode = 1 << 40

func (r *root) check(p metaPlace) error {
	switch {
	case r.Version > FormatVersion || r.Flags&^flagKnown != 0:
		return fmt.Errorf("format %d, flags %#x: %w", r.Version, r.Flags, ErrNewer)
	case r.Seq != p.seq:
		return fmt.Errorf("snapshot #%d under the name of #%d: %w", r.Seq, p.seq, ErrFormat)
	case len(r.Prev) != 0 && len(r.Prev) != 32, len(r.GUID) != 0 && len(r.GUID) != 16, r.Time[1] < 0, r.Time[1] > 999_999_999:
		return fmt.Errorf("root of #%d: %w", r.Seq, ErrFormat)
	case r.Next > maxNode:
		return fmt.Errorf("next node %d: %w", r.Next, ErrFormat)
	case len(r.Segments) > 1<<20:
		return fmt.Errorf("%d segments: %w", len(r.Segments), ErrFormat)
	}
	for _, s := range r.Segments {
		if len(s.SHA) != 32 {
			return fmt.Errorf("name of a segment: %w", ErrFormat)
		}
	}
	return nil
}

// packTable turns a body's packs into the catalog's, and back.
type packTable struct {
	ids []catalog.PackID
}

func (t packTable) id(n uint32) (catalog.PackID, error) {
	if n == 0 || int(n) > len(t.ids) {
		return 0, fmt.Errorf("pack %d of %d: %w", n, len(t.ids), ErrFormat)
	}
	return t.ids[n-1], nil
}

// part turns p into the catalog's form. keep is true for a part that is to stay as
// it was; it has a length only.
func (t packTable) part(p partRec, depth int) (q catalog.Part, keep bool, err error) {
	if p.Length == 0 || p.Length > 1<<62 {
		return q, false, fmt.Errorf("part of %d bytes: %w", p.Length, ErrFormat)
	}
	q.Length = int64(p.Length)
	switch {
	case p.Keep:
		return q, true, nil
	case p.Patch != nil:
		q.Offset = p.Offset
		q.Patch, err = t.patch(p.Patch, depth+1)
	case p.Pack != 0:
		q.Blob, q.Offset = p.Blob, p.Offset
		q.Pack, err = t.id(p.Pack)
	}
	return q, false, err
}

func (t packTable) patch(p *patchRec, depth int) (*catalog.Patch, error) {
	if depth > catalog.MaxDepth {
		return nil, fmt.Errorf("more than %d patches on one another: %w", catalog.MaxDepth, ErrFormat)
	}
	q := &catalog.Patch{Blob: p.Blob, Offset: p.Offset, Length: p.Length, ResultLength: p.Result}
	var err error
	if q.Pack, err = t.id(p.Pack); err != nil {
		return nil, err
	}
	for _, b := range p.Base {
		part, keep, err := t.part(b, depth)
		if err != nil {
			return nil, err
		}
		if keep {
			return nil, fmt.Errorf("patch on what is kept: %w", ErrFormat)
		}
		q.Base = append(q.Base, part)
	}
	return q, nil
}

// applyBody brings the records of one body into the catalog, as changes that l makes.
// For unknown see applyRoot.
func applyBody(db *catalog.DB, source catalog.Source, l *catalog.Loader, b *body, unknown *int) error {
	var t packTable
	for _, p := range b.Packs {
		cp := catalog.Pack{Size: int64(p.Size), Key: p.Key}
		if len(p.SHA) != 32 || p.Size > 1<<40 || len(p.Key) > maxSealedKey {
			return fmt.Errorf("pack record: %w", ErrFormat)
		}
		copy(cp.SHA[:], p.SHA)
		var err error
		if cp.Blobs, err = parseBlobs(p.Blobs); err != nil {
			return err
		}
		id, err := db.AddPack(cp)
		if err != nil {
			return err
		}
		if p.Size != 0 {
			if _, err := db.Tell(source.ID, id); err != nil {
				return err
			}
		}
		t.ids = append(t.ids, id)
	}
	for i := range b.Nodes {
		err := applyNode(db, l, t, &b.Nodes[i])
		if unknown != nil && errors.Is(err, errUnknownNode) {
			*unknown++
			continue
		}
		if err != nil {
			return fmt.Errorf("node %d: %w", b.Nodes[i].ID, err)
		}
	}
	return nil
}

var errUnknownNode = fmt.Errorf("no manifest has told of it: %w", ErrFormat)

func applyNode(db *catalog.DB, l *catalog.Loader, t packTable, r *nodeRec) error {
	n := filetree.NodeID(r.ID)
	if err := catalog.CheckNode(n); err != nil {
		return fmt.Errorf("%w: %w", err, ErrFormat)
	}
	if r.End {
		return l.EndNode(n)
	}
	var a filetree.Attr
	if r.Attr != nil {
		var known bool
		var err error
		if a, known, err = l.Attr(n); err != nil {
			return err
		} else if !known && r.Attr.Kind == nil {
			return errUnknownNode
		}
	}
	for _, d := range r.Data {
		if err := applyData(db, l, t, n, d); err != nil {
			return err
		}
	}
	if r.Attr != nil {
		if err := r.Attr.Apply(&a); err != nil {
			return fmt.Errorf("%w: %w", err, ErrFormat)
		}
		if err := l.SetAttr(n, &a); err != nil {
			return err
		}
	}
	for _, e := range r.Lost {
		if err := l.RemoveEntry(filetree.NodeID(e.Dir), string(e.Name), n); err != nil {
			return err
		}
	}
	for _, e := range r.Got {
		err := filetree.CheckName(string(e.Name))
		if err == nil {
			err = catalog.CheckNode(filetree.NodeID(e.Dir))
		}
		if err != nil {
			return fmt.Errorf("%w: %w", err, ErrFormat)
		}
		if err := l.AddEntry(filetree.NodeID(e.Dir), string(e.Name), n); err != nil {
			return err
		}
	}
	return nil
}

func applyData(db *catalog.DB, l *catalog.Loader, t packTable, n filetree.NodeID, d dataRec) error {
	off := int64(d.Offset)
	start := off
	content := db.KeepsContent() && len(d.CID) == 16
	var parts []catalog.Part // what is there afterwards, unless some of it was kept
	kept := false
	for _, p := range d.Parts {
		q, keep, err := t.part(p, 0)
		if err == nil && !keep {
			err = q.Check()
		}
		if err != nil {
			return fmt.Errorf("%w: %w", err, ErrFormat)
		}
		if off < 0 || off+q.Length < off {
			return fmt.Errorf("data beyond the largest offset: %w", ErrFormat)
		}
		switch {
		case keep:
		case q.Hole():
			err = l.Punch(n, off, off+q.Length)
		default:
			err = l.SetPart(n, off, q)
		}
		if err != nil {
			return err
		}
		off += q.Length
		kept = kept || keep
		if content {
			parts = catalog.AppendPart(parts, q)
		}
	}
	if !content || off-start > catalog.MaxPart {
		return nil
	}
	if kept {
		var err error
		if parts, err = l.Parts(n, start, off); err != nil {
			return err
		}
	}
	return l.SetContent([16]byte(d.CID), parts)
}
