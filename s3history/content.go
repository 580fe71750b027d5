package s3history

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/delta"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store"
)

// Content reads the bytes that a catalog's parts refer to. Its methods may be called
// concurrently. It keeps the last blobs it read, CacheBlobs of them.
type Content struct {
	store      store.Store
	repo       RepoID
	meta       seal.Key
	cat        *catalog.DB
	identities []age.Identity

	mu    sync.Mutex // guards what follows
	packs map[catalog.PackID]*packReader
	cache map[blobID]*cachedBlob
	order []blobID // in the order they came

	decoders sync.Pool
}

// cacheBlobs is how many blobs, of up to 1 MiB, a Content keeps.
const cacheBlobs = 24

type blobID struct {
	pack catalog.PackID
	blob uint32
}

type cachedBlob struct {
	once sync.Once
	data []byte
	err  error
}

// A packReader is a pack with its key opened.
type packReader struct {
	pack catalog.Pack
	key  seal.Key
	offs []int64 // of each blob
}

// NewContent returns a Content for the packs of a writer's catalog.
func NewContent(s store.Store, w WriterIdentity, cat *catalog.DB, identities []age.Identity) *Content {
	return &Content{store: s, repo: w.Repo, meta: w.Key, cat: cat, identities: identities,
		packs: map[catalog.PackID]*packReader{}, cache: map[blobID]*cachedBlob{},
		decoders: sync.Pool{New: func() any { return newDecoder(maxBlob) }}}
}

// maxPackReaders bounds the packs whose keys are kept.
const maxPackReaders = 4096

func (c *Content) open(ctx context.Context, id catalog.PackID) (*packReader, error) {
	c.mu.Lock()
	p := c.packs[id]
	c.mu.Unlock()
	if p != nil {
		return p, nil
	}
	pack, err := c.cat.Pack(id)
	if err != nil {
		return nil, err
	}
	if pack.Size == 0 {
		if pack, err = c.heal(ctx, pack); err != nil {
			return nil, err
		}
	}
	plain, err := seal.OpenWith(c.identities, pack.Key)
	if err != nil {
		return nil, fmt.Errorf("key of pack %x: %w", pack.SHA, err)
	}
	p = &packReader{pack: pack}
	if len(plain) != len(p.key) {
		return nil, fmt.Errorf("key of pack %x: %d bytes: %w", pack.SHA, len(plain), ErrFormat)
	}
	copy(p.key[:], plain)
	off := int64(packHeader + len(pack.Key))
	for _, b := range pack.Blobs {
		p.offs = append(p.offs, off)
		off += int64(b.Length)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.packs) >= maxPackReaders {
		clear(c.packs)
	}
	c.packs[id] = p
	return p, nil
}

// heal reads the sealed key and the table of a pack from the pack itself: the manifest
// that told of it is lost. It reads all of the pack, since no manifest says whether the
// key in it is this pack's or another's.
func (c *Content) heal(ctx context.Context, pack catalog.Pack) (catalog.Pack, error) {
	key := packKey(pack.SHA)
	o, err := c.store.Stat(ctx, key)
	if err != nil {
		return pack, err
	}
	sealed, index, err := readPackIndex(ctx, c.store, c.meta, c.repo, key, o.Size)
	if err != nil {
		return pack, fmt.Errorf("pack %x: %w", pack.SHA, err)
	}
	rc, err := c.store.Get(ctx, key, 0, -1)
	if err != nil {
		return pack, err
	}
	defer rc.Close()
	h := sha256.New()
	head := make([]byte, packHeader+len(sealed))
	all := io.TeeReader(rc, h)
	if _, err = io.ReadFull(all, head); err == nil {
		_, err = io.Copy(io.Discard, all)
	}
	if err != nil {
		return pack, fmt.Errorf("read %s: %w", key, noEOF(err))
	}
	if [32]byte(h.Sum(nil)) != pack.SHA || !bytes.Equal(head[packHeader:], sealed) {
		return pack, fmt.Errorf("%s: its bytes are not those its name says: %w", key, ErrFormat)
	}
	pack.Key, pack.Size = sealed, o.Size
	pack.Blobs, err = parseBlobs(index.Blobs)
	return pack, err
}

// decode opens one blob's stored bytes.
func (c *Content) decode(p *packReader, n uint32, box []byte) ([]byte, error) {
	k := blobKey(p.key, c.repo, n)
	plain, err := k.Open(nil, nil, box)
	if err != nil {
		return nil, fmt.Errorf("blob %d of pack %x: %w", n, p.pack.SHA, err)
	}
	d := c.decoders.Get().(*zstd.Decoder)
	defer c.decoders.Put(d)
	out, err := decompress(d, plain, int(p.pack.Blobs[n].Plain), maxBlob)
	if err != nil {
		return nil, fmt.Errorf("blob %d of pack %x: %w", n, p.pack.SHA, err)
	}
	return out, nil
}

// blob returns a blob's plain bytes, which are not to be changed.
func (c *Content) blob(ctx context.Context, id catalog.PackID, n uint32) ([]byte, error) {
	key := blobID{id, n}
	c.mu.Lock()
	e := c.cache[key]
	if e == nil {
		e = &cachedBlob{}
		c.remember(key, e)
	}
	c.mu.Unlock()
	e.once.Do(func() { e.data, e.err = c.fetch(ctx, id, n) })
	if e.err != nil {
		c.mu.Lock()
		delete(c.cache, key) // it may be there the next time
		c.mu.Unlock()
	}
	return e.data, e.err
}

// remember puts a blob into the cache. The caller holds mu.
func (c *Content) remember(key blobID, e *cachedBlob) {
	if _, ok := c.cache[key]; !ok {
		c.order = append(c.order, key)
	}
	c.cache[key] = e
	for len(c.order) > cacheBlobs {
		delete(c.cache, c.order[0])
		c.order = c.order[1:]
	}
}

func (c *Content) fetch(ctx context.Context, id catalog.PackID, n uint32) ([]byte, error) {
	p, err := c.open(ctx, id)
	if err != nil {
		return nil, err
	}
	if n >= uint32(len(p.offs)) {
		return nil, fmt.Errorf("blob %d of %d of pack %x: %w", n, len(p.offs), p.pack.SHA, ErrFormat)
	}
	box, err := getRange(ctx, c.store, packKey(p.pack.SHA), p.offs[n], int64(p.pack.Blobs[n].Length))
	if err != nil {
		return nil, err
	}
	return c.decode(p, n, box)
}

// maxPrefetch bounds what Prefetch asks for in one request, in stored bytes.
const maxPrefetch = 8 << 20

// prefetchGap is how many bytes that nobody wants are read rather than asking twice.
const prefetchGap = 128 << 10

// Blobs reads the blobs of a pack whose numbers are given in ascending order, with as
// few requests as is sensible, and calls got with each. An error of one blob is given
// to got, with no data, and does not end the others; got's own error ends it.
func (c *Content) Blobs(ctx context.Context, id catalog.PackID, wanted []uint32, got func(n uint32, data []byte, err error) error) error {
	p, err := c.open(ctx, id)
	if err != nil {
		for _, n := range wanted {
			if err := got(n, nil, err); err != nil {
				return err
			}
		}
		return nil
	}
	for len(wanted) > 0 {
		if wanted[0] >= uint32(len(p.offs)) {
			bad := fmt.Errorf("blob %d of %d of pack %x: %w", wanted[0], len(p.offs), p.pack.SHA, ErrFormat)
			if err := got(wanted[0], nil, bad); err != nil {
				return err
			}
			wanted = wanted[1:]
			continue
		}
		from := p.offs[wanted[0]]
		k, to := 0, from
		for k < len(wanted) && wanted[k] < uint32(len(p.offs)) {
			start := p.offs[wanted[k]]
			stop := start + int64(p.pack.Blobs[wanted[k]].Length)
			if start > to+prefetchGap || k > 0 && stop-from > maxPrefetch {
				break
			}
			k, to = k+1, stop
		}
		if err := c.run(ctx, p, from, to, wanted[:k], got); err != nil {
			return err
		}
		wanted = wanted[k:]
	}
	return nil
}

// run reads blobs that lie in [from, to) of a pack.
func (c *Content) run(ctx context.Context, p *packReader, from, to int64, wanted []uint32, got func(uint32, []byte, error) error) error {
	fail := func(wanted []uint32, err error) error {
		for _, n := range wanted {
			if err := got(n, nil, err); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	key := packKey(p.pack.SHA)
	rc, err := c.store.Get(ctx, key, from, to-from)
	if err != nil {
		return fail(wanted, err)
	}
	defer rc.Close()
	at := from
	for i, n := range wanted {
		if _, err := io.CopyN(io.Discard, rc, p.offs[n]-at); err != nil {
			return fail(wanted[i:], fmt.Errorf("read %s: %w", key, noEOF(err)))
		}
		box := make([]byte, p.pack.Blobs[n].Length)
		if _, err := io.ReadFull(rc, box); err != nil {
			return fail(wanted[i:], fmt.Errorf("read %s: %w", key, noEOF(err)))
		}
		at = p.offs[n] + int64(len(box))
		data, err := c.decode(p, n, box)
		if err := got(n, data, err); err != nil {
			return err
		}
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Read returns the bytes of a part, at most MaxPart of them. They are not to be changed.
func (c *Content) Read(ctx context.Context, p catalog.Part) ([]byte, error) {
	return c.read(ctx, p, nil)
}

// ReadWith is Read for a caller that has the plain bytes of one blob, of p or of the
// patch that p is a piece of.
func (c *Content) ReadWith(ctx context.Context, p catalog.Part, pack catalog.PackID, blob uint32, data []byte) ([]byte, error) {
	return c.read(ctx, p, &heldBlob{blobID{pack, blob}, data})
}

type heldBlob struct {
	blobID
	data []byte
}

func (c *Content) slice(ctx context.Context, pack catalog.PackID, blob, off uint32, length int64, held *heldBlob) ([]byte, error) {
	var data []byte
	if held != nil && held.blobID == (blobID{pack, blob}) {
		data = held.data
	} else {
		var err error
		if data, err = c.blob(ctx, pack, blob); err != nil {
			return nil, err
		}
	}
	if int64(off)+length > int64(len(data)) {
		return nil, fmt.Errorf("%d bytes at %d of a blob of %d: %w", length, off, len(data), ErrFormat)
	}
	return data[off : int64(off)+length], nil
}

func (c *Content) read(ctx context.Context, p catalog.Part, held *heldBlob) ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrFormat)
	}
	switch {
	case p.Hole():
		return make([]byte, p.Length), nil
	case p.Patch == nil:
		return c.slice(ctx, p.Pack, p.Blob, p.Offset, p.Length, held)
	}
	q := p.Patch
	patch, err := c.slice(ctx, q.Pack, q.Blob, q.Offset, int64(q.Length), held)
	if err != nil {
		return nil, err
	}
	var base []byte
	for _, b := range q.Base {
		piece, err := c.read(ctx, b, held)
		if err != nil {
			return nil, err
		}
		base = append(base, piece...)
	}
	out, err := delta.ApplyPatch(base, patch, int(q.ResultLength))
	if err != nil {
		return nil, fmt.Errorf("patch in pack %d: %w: %w", q.Pack, ErrFormat, err)
	}
	return out[p.Offset : int64(p.Offset)+p.Length], nil
}

// readAhead is how much of a file is looked up at once.
const readAhead = 64 << 20

// WriteFile writes the bytes of a file as it is in a view, holes as zeros.
func (c *Content) WriteFile(ctx context.Context, v catalog.View, n filetree.NodeID, size int64, w io.Writer) error {
	zeros := make([]byte, 64<<10)
	for from := int64(0); from < size; {
		next, err := v.NextExtent(n, from)
		if err != nil {
			return err
		}
		k := min(size-from, readAhead)
		parts := []catalog.Part{{Length: k}}
		if hole := min(next, size) - from; hole > 0 {
			k = hole // in one step, however long it is
			parts[0].Length = k
		} else if parts, err = v.Parts(n, from, from+k); err != nil {
			return err
		}
		from += k
		for _, p := range parts {
			if p.Hole() {
				for left := p.Length; left > 0; {
					if err := ctx.Err(); err != nil {
						return err
					}
					k, err := w.Write(zeros[:min(left, int64(len(zeros)))])
					if err != nil {
						return err
					}
					left -= int64(k)
				}
				continue
			}
			b, err := c.Read(ctx, p)
			if err != nil {
				return err
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}
