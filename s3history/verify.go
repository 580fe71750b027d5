package s3history

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"strings"

	"filippo.io/age"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store"
)

// VerifyOptions of Verify. The zero value looks at the listing only.
type VerifyOptions struct {
	ReadData   bool           // read every object and compare its hash with its name
	Identities []age.Identity // also decrypt, and compare content ids; implies ReadData
	Step       func(objects int, bytes int64)
}

// A VerifyResult is what Verify saw.
type VerifyResult struct {
	Objects int   // looked at
	Bytes   int64 // their size
	Read    int64 // bytes that were read
}

// A Damage is an object that is not as it should be.
type Damage struct {
	Key  string
	Pack catalog.PackID // not 0 for a pack
	Err  error
	// Copy is true when another copy of the object is whole: nothing is lost.
	Copy bool
}

func (d Damage) Error() string { return d.Key + ": " + d.Err.Error() }

// Verify compares what is stored with what the history names: every pack that the
// catalog knows, both copies of every manifest of the index. It yields each damage;
// an error that ends it is yielded as a Damage without a key. result is valid when
// the iteration has ended.
func Verify(ctx context.Context, s store.Store, x *Index, cat *catalog.DB, o VerifyOptions, result *VerifyResult) iter.Seq[Damage] {
	return func(yield func(Damage) bool) {
		v := &verifier{ctx: ctx, store: s, x: x, cat: cat, o: o, result: result, yield: yield}
		if v.manifests() {
			v.packs()
		}
	}
}

type verifier struct {
	ctx    context.Context
	store  store.Store
	x      *Index
	cat    *catalog.DB
	o      VerifyOptions
	result *VerifyResult
	yield  func(Damage) bool
}

func (v *verifier) saw(o store.Object) {
	v.result.Objects++
	v.result.Bytes += o.Size
	if v.o.Step != nil {
		v.o.Step(v.result.Objects, v.result.Bytes)
	}
}

// manifests checks both copies of every manifest object. It reports whether to go on.
func (v *verifier) manifests() bool {
	listed := make([]map[metaName]int64, len(metaPrefixes))
	for i, prefix := range metaPrefixes {
		listed[i] = map[metaName]int64{}
		for o, err := range v.store.List(v.ctx, prefix+v.x.writer.ID+"/") {
			if err != nil {
				v.yield(Damage{Err: err})
				return false
			}
			if n, err := parseMetaName(o.Key[len(prefix):]); err == nil {
				listed[i][n] = o.Size
			}
		}
	}
	roots := map[metaName]bool{}
	for i := range v.x.Sources {
		for n, err := range v.x.objects(v.ctx, &v.x.Sources[i]) {
			if err == nil && n.kind == kindRoot {
				roots[n] = true
			}
			// Where a checkpoint cannot be read it is a damage itself.
			if err == nil && !v.manifest(n, listed) {
				return false
			}
		}
	}
	// What the index does not have any more the catalog may still know.
	sources, err := v.cat.Sources()
	if err != nil {
		v.yield(Damage{Err: err})
		return false
	}
	for _, s := range sources {
		if s.Writer != v.x.writer.ID {
			continue
		}
		snaps, err := v.cat.Snapshots(s.ID)
		if err != nil {
			v.yield(Damage{Err: err})
			return false
		}
		for _, sn := range snaps {
			n := metaName{s.Writer, s.Ident, sn.Seq, kindRoot, sn.Root}
			if !roots[n] && !v.manifest(n, listed) {
				return false
			}
		}
	}
	return true
}

// manifest checks both copies of one manifest object. It reports whether to go on.
func (v *verifier) manifest(n metaName, listed []map[metaName]int64) bool {
	var bad []Damage
	for j, prefix := range metaPrefixes {
		key := prefix + n.String()
		size, ok := listed[j][n]
		if !ok {
			bad = append(bad, Damage{Key: key, Err: store.ErrNotExist})
			continue
		}
		v.saw(store.Object{Key: key, Size: size})
		if v.o.ReadData || v.o.Identities != nil {
			if _, err := getObject(v.ctx, v.store, key, n.sha, maxManifestObj); err != nil {
				bad = append(bad, Damage{Key: key, Err: err})
			}
			v.result.Read += size
		}
	}
	for _, d := range bad {
		d.Copy = len(bad) < len(metaPrefixes)
		if !v.yield(d) {
			return false
		}
	}
	if v.ctx.Err() != nil {
		v.yield(Damage{Err: v.ctx.Err()})
		return false
	}
	return true
}

// packs walks the listing and the catalog's packs side by side, both by name.
func (v *verifier) packs() {
	next, stop := iter.Pull2(v.store.List(v.ctx, "packs/"))
	defer stop()
	o, err, ok := next()
	for p, perr := range v.cat.PacksByName() {
		if perr != nil {
			v.yield(Damage{Err: perr})
			return
		}
		key := packKey(p.SHA)
		for ok && err == nil && o.Key < key {
			o, err, ok = next() // of another writer, or not named by any manifest
		}
		if err != nil {
			v.yield(Damage{Err: err})
			return
		}
		var bad error
		switch {
		case !ok || o.Key != key:
			bad = store.ErrNotExist
		case p.Size != 0 && o.Size != p.Size:
			bad = fmt.Errorf("%d bytes instead of %d: %w", o.Size, p.Size, ErrFormat)
		default:
			v.saw(o)
			if v.o.ReadData || v.o.Identities != nil {
				bad = v.readPack(p, key, o.Size)
				v.result.Read += o.Size
			}
		}
		if v.ctx.Err() != nil {
			v.yield(Damage{Err: v.ctx.Err()})
			return
		}
		if bad != nil && !v.yield(Damage{Key: key, Pack: p.ID, Err: bad}) {
			return
		}
	}
}

// maxPack bounds the size of a pack that is read whole.
const maxPack = 1 << 30

func (v *verifier) readPack(p catalog.Pack, key string, size int64) error {
	rc, err := v.store.Get(v.ctx, key, 0, -1)
	if err != nil {
		return err
	}
	defer rc.Close()
	h := sha256.New()
	if v.o.Identities == nil {
		if _, err := io.Copy(h, rc); err != nil {
			return err
		}
	}
	var obj []byte
	if v.o.Identities != nil {
		if size > maxPack {
			return fmt.Errorf("pack of %d bytes: %w", size, ErrFormat)
		}
		if obj, err = io.ReadAll(io.LimitReader(rc, size+1)); err != nil {
			return err
		}
		h.Write(obj)
	}
	if !bytes.Equal(h.Sum(nil), p.SHA[:]) {
		return fmt.Errorf("its bytes are not those its name says: %w", ErrFormat)
	}
	if v.o.Identities == nil {
		return nil
	}
	return v.checkPack(p, obj)
}

// checkPack opens all of a pack: every blob, and of every slice the content id.
func (v *verifier) checkPack(p catalog.Pack, obj []byte) error {
	w := v.x.writer
	sealed, err := parsePackHeader(obj)
	if err != nil {
		return err
	}
	if len(obj) < packHeader+len(sealed)+packFooter {
		return fmt.Errorf("pack of %d bytes: %w", len(obj), ErrFormat)
	}
	n := int64(binary.LittleEndian.Uint32(obj[len(obj)-packFooter:]))
	at := int64(len(obj)) - int64(packFooter) - n
	if at < int64(packHeader+len(sealed)) {
		return fmt.Errorf("index of %d bytes: %w", n, ErrFormat)
	}
	index, err := openIndex(w.Key, w.Repo, sealed, obj[at:int64(len(obj))-int64(packFooter)])
	if err != nil {
		return err
	}
	c := NewContent(v.store, w, v.cat, v.o.Identities)
	r, err := c.open(v.ctx, p.ID)
	if err != nil {
		return err
	}
	content := w.Key.Derive(labelContent, w.Repo[:])
	slices := index.Slices
	for n := range r.pack.Blobs {
		off := r.offs[n]
		end := off + int64(r.pack.Blobs[n].Length)
		if end > at {
			return fmt.Errorf("blob %d: beyond the pack: %w", n, ErrFormat)
		}
		data, err := c.decode(r, uint32(n), obj[off:end])
		if err != nil {
			return err
		}
		for len(slices) > 0 && slices[0].Blob == uint32(n) {
			s := slices[0]
			slices = slices[1:]
			if uint64(s.Offset)+uint64(s.Length) > uint64(len(data)) {
				return fmt.Errorf("slice of %d bytes at %d of blob %d: %w", s.Length, s.Offset, n, ErrFormat)
			}
			id := content.ContentID(data[s.Offset : s.Offset+s.Length])
			if len(s.CID) == len(seal.ContentID{}) && !bytes.Equal(id[:], s.CID) {
				return fmt.Errorf("slice at %d of blob %d: content id differs: %w", s.Offset, n, ErrFormat)
			}
		}
	}
	if len(slices) > 0 {
		return fmt.Errorf("slice at %d of blob %d: not where the index has it: %w", slices[0].Offset, slices[0].Blob, ErrFormat)
	}
	return nil
}

// Affected returns the files of a source that need a pack, at the snapshots at which
// they do: a path for each, the newest it had.
func Affected(cat *catalog.DB, source catalog.Source, pack catalog.PackID, limit int) ([]string, error) {
	uses, err := cat.UsesOf(source.ID, pack, limit)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, u := range uses {
		path, err := cat.At(source.ID, u.LastSeq).Path(u.Node)
		if err != nil {
			out = append(out, fmt.Sprintf("node %d", u.Node))
			continue
		}
		out = append(out, strings.Join(path, "/"))
	}
	return out, nil
}
