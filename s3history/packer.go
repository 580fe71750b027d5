package s3history

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store"
)

// A packer puts pieces of files into blobs, blobs into packs, and packs into the
// store. Pieces are taken one after the other; compressing, sealing and uploading go
// on behind them. In memory are at most the open pack and those on their way.
type packer struct {
	w      *Writer
	ctx    context.Context // of the group: done when one of its goroutines failed
	group  *errgroup.Group
	jobs   chan blobJob
	upload chan struct{} // a token for each pack on its way
	source string
	seq    uint64

	cur   *openPack
	ours  map[catalog.PackID]*openPack // that have no name yet, perhaps
	solid []byte                       // plain bytes of the open blob
	free  chan []byte                  // buffers for blobs

	mu      sync.Mutex // guards what follows
	objects int
	bytes   int64
}

type blobJob struct {
	pack  *openPack
	n     int
	plain []byte
}

// An openPack is being filled, or was and is not in the store yet.
type openPack struct {
	id     catalog.PackID
	key    seal.Key
	sealed []byte
	slices []indexEntry
	// patches are those of slices that are patches, with the ids of the patches' own
	// bytes: for the journal, that they are not uploaded twice. In the pack's index
	// an id is that of content.
	patches []indexEntry

	mu      sync.Mutex // guards what follows
	blobs   [][]byte
	table   []catalog.Blob
	size    int64
	waiting int // blobs still to be sealed, and one while it is open

	known chan struct{} // closed when its name is in the catalog
}

const blobWorkers = 2

// maxPackSlices is how many slices a pack gets before it is closed, so that its index
// stays well below what a reader accepts.
const maxPackSlices = 1 << 18

func (w *Writer) newPacker(ctx context.Context, source string, seq uint64) *packer {
	g, ctx := errgroup.WithContext(ctx)
	p := &packer{
		w: w, ctx: ctx, group: g, source: source, seq: seq, ours: map[catalog.PackID]*openPack{},
		jobs:   make(chan blobJob, blobWorkers),
		upload: make(chan struct{}, w.opts.uploads()),
		free:   make(chan []byte, 2*blobWorkers),
	}
	p.solid = p.buffer()
	for range blobWorkers {
		g.Go(p.seal)
	}
	return p
}

// buffer returns an empty buffer for a blob.
func (p *packer) buffer() []byte {
	select {
	case b := <-p.free:
		return b
	default:
		return make([]byte, 0, maxBlob)
	}
}

// add puts a piece into a blob and returns where it will be. id is that of the piece's
// bytes; of a patch it is for the journal alone.
func (p *packer) add(data []byte, n filetree.NodeID, at int64, id seal.ContentID, patch bool) (catalog.Part, error) {
	if len(data) == 0 || len(data) > maxBlob {
		panic(fmt.Sprintf("s3history: internal error: piece of %d bytes", len(data)))
	}
	if len(p.solid)+len(data) > maxBlob {
		if err := p.cutBlob(); err != nil {
			return catalog.Part{}, err
		}
	}
	if p.cur == nil {
		if err := p.open(); err != nil {
			return catalog.Part{}, err
		}
	}
	c := p.cur
	part := catalog.Part{Length: int64(len(data)), Pack: c.id, Blob: uint32(len(c.table)), Offset: uint32(len(p.solid))}
	p.solid = append(p.solid, data...)
	e := indexEntry{Blob: part.Blob, Offset: part.Offset, Length: uint32(len(data)), CID: id[:]}
	if patch {
		c.patches = append(c.patches, e)
		e.CID = nil
	}
	e.Node, e.At = uint64(n), at
	c.slices = append(c.slices, e)
	if len(p.solid) == maxBlob {
		return part, p.cutBlob()
	}
	return part, nil
}

func (p *packer) open() error {
	id, err := p.w.cat.ReservePack()
	if err != nil {
		return err
	}
	c := &openPack{id: id, key: seal.NewKey(), waiting: 1, known: make(chan struct{})}
	if c.sealed, err = p.w.recipients.SealTo(c.key[:]); err != nil {
		return err
	}
	if len(c.sealed) > maxSealedKey {
		return fmt.Errorf("a key sealed to all recipients has %d bytes, more than %d: too many recipients", len(c.sealed), maxSealedKey)
	}
	p.cur = c
	p.ours[id] = c
	return nil
}

// cutBlob ends the open blob, and the open pack when it is large enough.
func (p *packer) cutBlob() error {
	if len(p.solid) == 0 {
		return nil
	}
	c := p.cur
	c.mu.Lock()
	job := blobJob{c, len(c.table), p.solid}
	c.table = append(c.table, catalog.Blob{Plain: uint32(len(p.solid))})
	c.blobs = append(c.blobs, nil)
	c.waiting++
	full := c.size >= p.w.opts.packSize() || len(c.table) >= maxPackBlobs || len(c.slices) >= maxPackSlices
	c.mu.Unlock()
	p.solid = p.buffer()
	select {
	case p.jobs <- job:
	case <-p.ctx.Done():
		return p.failure()
	}
	if full {
		return p.cutPack()
	}
	return nil
}

// cutPack ends the open pack. It waits until fewer than the permitted number of
// packs are on their way.
func (p *packer) cutPack() error {
	if p.cur == nil {
		return nil
	}
	if err := p.cutBlob(); err != nil || p.cur == nil {
		return err
	}
	select {
	case p.upload <- struct{}{}:
	case <-p.ctx.Done():
		return p.failure()
	}
	c := p.cur
	p.cur = nil
	p.release(c)
	return nil
}

// release takes one from c.waiting; whoever takes the last one starts the upload.
func (p *packer) release(c *openPack) {
	c.mu.Lock()
	c.waiting--
	last := c.waiting == 0
	c.mu.Unlock()
	if last {
		p.group.Go(func() error {
			err := p.put(c)
			<-p.upload
			return err
		})
	}
}

// seal compresses and seals blobs until there are no more.
func (p *packer) seal() error {
	e := newEncoder(p.w.opts.level())
	defer e.Close()
	var buf []byte
	for {
		var job blobJob
		var ok bool
		select {
		case job, ok = <-p.jobs:
			if !ok {
				return nil
			}
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
		buf = compress(e, buf, job.plain)
		c := job.pack
		box := blobKey(c.key, p.w.repo, uint32(job.n)).Seal(make([]byte, 0, len(buf)+seal.Overhead), nil, buf)
		select {
		case p.free <- job.plain[:0]:
		default:
		}
		c.mu.Lock()
		c.blobs[job.n] = box
		c.table[job.n].Length = uint32(len(box))
		c.size += int64(len(box))
		c.mu.Unlock()
		p.release(c)
	}
}

// put names a pack, notes it in the journal, and uploads it. A crash before the
// journal knows of it leaves nothing, one after leaves a pack that the next run
// looks for and uses.
func (p *packer) put(c *openPack) error {
	e := newEncoder(zstd.SpeedFastest)
	index := packIndex{Source: []byte(p.source), Seq: p.seq, Blobs: flatBlobs(c.table), Slices: c.slices}
	obj, err := buildPack(p.w.meta, p.w.repo, c.sealed, c.blobs, index, e)
	e.Close()
	if err != nil {
		return err
	}
	c.key = seal.Key{} // from here on nobody here can read it
	c.blobs = nil
	pack := catalog.Pack{ID: c.id, SHA: obj.sum(), Size: obj.size, Key: c.sealed, Blobs: c.table}
	if err := p.w.cat.FillPack(pack); err != nil {
		return err
	}
	close(c.known)
	done, err := p.w.journal.packStarted(pack, c.slices, c.patches)
	if err != nil {
		return err
	}
	c.slices, c.patches = nil, nil
	key := packKey(pack.SHA)
	err = p.w.store.Put(p.ctx, key, obj, obj.size)
	if err != nil && !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("upload pack %s: %w", key, err)
	}
	p.mu.Lock()
	p.objects++
	p.bytes += pack.Size
	p.mu.Unlock()
	return done()
}

// failure returns why the group is done.
func (p *packer) failure() error {
	if err := context.Cause(p.ctx); err != nil {
		return err
	}
	return p.ctx.Err()
}

// flush waits until every one of packs has its name, and ends the open one if it is
// among them.
func (p *packer) flush(packs []catalog.PackID) error {
	if p.cur != nil && slices.Contains(packs, p.cur.id) {
		if err := p.cutPack(); err != nil {
			return err
		}
	}
	for _, id := range packs {
		c := p.ours[id]
		if c == nil {
			continue
		}
		select {
		case <-c.known:
			delete(p.ours, id)
		case <-p.ctx.Done():
			return p.failure()
		}
	}
	return nil
}

// finish ends the open pack and waits until all are in the store.
func (p *packer) finish() error {
	if err := p.cutPack(); err != nil {
		p.abort()
		return err
	}
	close(p.jobs)
	return p.group.Wait()
}

// abort stops everything and waits for it.
func (p *packer) abort() {
	p.group.Go(func() error { return errAborted })
	p.group.Wait()
}

var errAborted = errors.New("given up")
