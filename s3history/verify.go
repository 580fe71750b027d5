package s3history

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
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
	// KeyIdentities open the writer's key files. Where there are none, or none that
	// does, the copies of a key file are compared with one another.
	KeyIdentities []age.Identity
	Step          func(objects int, bytes int64)
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

// Verify compares what is stored with what the history names: secrate.json, both copies
// of the writer's key files and of every manifest of the index, every pack that the
// catalog knows. It yields each damage; an error that ends it is yielded as a Damage
// without a key. result is valid when the iteration has ended.
func Verify(ctx context.Context, s store.Store, x *Index, cat *catalog.DB, o VerifyOptions, result *VerifyResult) iter.Seq[Damage] {
	return func(yield func(Damage) bool) {
		v := &verifier{ctx: ctx, store: s, x: x, cat: cat, o: o, result: result, yield: yield}
		if v.config() && v.keys() && v.manifests() {
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

// reads reports whether all there is is to be read, not only what no name tells of.
func (v *verifier) reads() bool { return v.o.ReadData || v.o.Identities != nil }

func (v *verifier) read(n int64) {
	if v.reads() {
		v.result.Read += n
	}
}

// config checks secrate.json. Nothing is lost with it, since its id is in every key file.
// It reports whether to go on.
func (v *verifier) config() bool {
	o, err := v.store.Stat(v.ctx, configKey)
	if errors.Is(err, store.ErrPermission) {
		return true // a writer need not be allowed to look
	}
	if err == nil {
		v.saw(o)
		v.read(o.Size)
		var id RepoID
		if id, err = ReadRepoID(v.ctx, v.store); err == nil && id != v.x.writer.Repo {
			err = fmt.Errorf("is of repository %s, and the writer of %s: %w", id, v.x.writer.Repo, ErrFormat)
		}
	}
	return err == nil || v.metadata(Damage{Key: configKey, Err: err, Copy: true})
}

// metadata yields the damage of an object of which the name does not tell the bytes,
// unless it is the store that failed.
func (v *verifier) metadata(d Damage) bool {
	if !errors.Is(d.Err, store.ErrNotExist) && !errors.Is(d.Err, ErrFormat) && !errors.Is(d.Err, ErrNoRepository) {
		v.yield(Damage{Err: d.Err})
		return false
	}
	return v.yield(d)
}

// keys checks both copies of the writer's key files. It reports whether to go on.
func (v *verifier) keys() bool {
	w := v.x.writer
	numbers := map[string]bool{"1": true} // there is always the first
	for _, prefix := range keyPrefixes {
		for o, err := range v.store.List(v.ctx, prefix+w.ID+"/") {
			if errors.Is(err, store.ErrPermission) {
				return true
			} else if err != nil {
				v.yield(Damage{Err: err})
				return false
			}
			numbers[strings.TrimPrefix(o.Key, prefix+w.ID+"/")] = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(numbers)) {
		if !v.keyFile(w.ID + "/" + n) {
			return false
		}
	}
	return true
}

// keyFile checks both copies of one key file. It reports whether to go on.
func (v *verifier) keyFile(name string) bool {
	var bad []Damage
	type copy struct {
		key    string
		box    []byte
		opened bool
	}
	var readable []copy
	opened := false
	for _, prefix := range keyPrefixes {
		c := copy{key: prefix + name}
		var err error
		if c.box, err = v.readKey(c.key); errors.Is(err, store.ErrPermission) {
			return true
		}
		if err == nil && len(v.o.KeyIdentities) > 0 {
			c.opened, err = v.opens(c.key, c.box)
			opened = opened || c.opened
		}
		if err != nil {
			bad = append(bad, Damage{Key: c.key, Err: err})
		} else {
			readable = append(readable, c)
		}
	}
	good := 0
	differ := len(readable) > 1 && !bytes.Equal(readable[0].box, readable[1].box)
	for _, c := range readable {
		switch {
		case opened && !c.opened:
			bad = append(bad, Damage{Key: c.key, Err: fmt.Errorf("does not open, and its other copy does: %w", ErrFormat)})
		case differ && !opened:
			bad = append(bad, Damage{Key: c.key, Err: fmt.Errorf("differs from its other copy; with --identity verify tells which is whole: %w", ErrFormat)})
			good++ // one of them, perhaps
		default:
			good++
		}
	}
	for _, d := range bad {
		d.Copy = good > 0
		if !v.metadata(d) {
			return false
		}
	}
	return true
}

// opens reports whether a key file opens and holds the writer's key. That no identity
// is for it is no error.
func (v *verifier) opens(key string, box []byte) (bool, error) {
	k, err := parseKey(key, box, v.o.KeyIdentities)
	switch w := v.x.writer; {
	case errors.Is(err, seal.ErrNoIdentity):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("%w: %w", ErrFormat, err)
	case k.ID != w.ID || k.Repo != w.Repo || k.Key != w.Key:
		return false, fmt.Errorf("holds another key: %w", ErrFormat)
	}
	return true, nil
}

// readKey reads a key file, which must at least begin as one.
func (v *verifier) readKey(key string) ([]byte, error) {
	o, err := v.store.Stat(v.ctx, key)
	if err != nil {
		return nil, err
	}
	v.saw(o)
	if o.Size > seal.MaxSealed {
		return nil, fmt.Errorf("%d bytes: %w", o.Size, ErrFormat)
	}
	v.read(o.Size)
	box, err := getRange(v.ctx, v.store, key, 0, o.Size)
	if err == nil && !bytes.HasPrefix(box, []byte("age-encryption.org/")) {
		err = fmt.Errorf("is no age file: %w", ErrFormat)
	}
	return box, err
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
			o, err := v.again(key)
			if err != nil {
				v.yield(Damage{Err: err})
				return false
			}
			ok, size = o.Key != "", o.Size
		}
		if !ok {
			bad = append(bad, Damage{Key: key, Err: store.ErrNotExist})
			continue
		}
		v.saw(store.Object{Key: key, Size: size})
		if v.reads() {
			if _, err := getObject(v.ctx, v.store, key, n.sha, maxManifestObj); err != nil {
				bad = append(bad, Damage{Key: key, Err: err})
			}
			v.read(size)
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

// again looks once more for an object that was not listed: somebody may be at work, and the
// catalog know of it already. The zero Object says that there is none.
func (v *verifier) again(key string) (store.Object, error) {
	for o, err := range v.store.List(v.ctx, key) { // who may only write may list
		if err != nil || o.Key == key {
			return o, err
		}
	}
	return store.Object{}, nil
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
		o := o
		if !ok || o.Key != key {
			if o, err = v.again(key); err != nil {
				v.yield(Damage{Err: err})
				return
			}
		}
		switch {
		case o.Key != key:
			bad = store.ErrNotExist
		case p.Size != 0 && o.Size != p.Size:
			bad = fmt.Errorf("%d bytes instead of %d: %w", o.Size, p.Size, ErrFormat)
		default:
			v.saw(o)
			if v.reads() {
				bad = v.readPack(p, key, o.Size)
				v.read(o.Size)
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
	left := index.Slices
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
		for len(left) > 0 && left[0].Blob == uint32(n) {
			s := left[0]
			left = left[1:]
			if uint64(s.Offset)+uint64(s.Length) > uint64(len(data)) {
				return fmt.Errorf("slice of %d bytes at %d of blob %d: %w", s.Length, s.Offset, n, ErrFormat)
			}
			id := content.ContentID(data[s.Offset : s.Offset+s.Length])
			if len(s.CID) == len(seal.ContentID{}) && !bytes.Equal(id[:], s.CID) {
				return fmt.Errorf("slice at %d of blob %d: content id differs: %w", s.Offset, n, ErrFormat)
			}
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("slice at %d of blob %d: not where the index has it: %w", left[0].Offset, left[0].Blob, ErrFormat)
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
