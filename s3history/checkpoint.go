package s3history

import (
	"context"
	"fmt"
	"math"

	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
)

// A checkpoint is due when the roots since the last one are so many, or so large, that
// reading it instead is worth what it costs to store.
const (
	checkpointRoots     = 256      // roots, at the least
	checkpointPerRoot   = 64 << 10 // bytes of checkpoint that one more root to read is worth
	checkpointMinGrowth = 1 << 20  // bytes of manifests, at the least
)

// checkpointDue decides from what was written since the last checkpoint (or the
// first, full snapshot), and from its size.
func checkpointDue(roots int, bytes, lastSize int64) bool {
	many := roots >= checkpointRoots && int64(roots)*checkpointPerRoot >= lastSize
	return many || bytes >= checkpointMinGrowth && bytes >= 2*lastSize
}

// checkpointState is kept in the catalog; losing it brings the next checkpoint early.
type checkpointState struct {
	Seq  uint64 `cbor:"1,keyasint"` // of the last one
	Size int64  `cbor:"2,keyasint"`
}

func (w *Writer) maybeCheckpoint(ctx context.Context, source catalog.Source) error {
	name := fmt.Sprintf("checkpoint-%d", source.ID)
	b, err := w.cat.Meta(name)
	if err != nil {
		return err
	}
	var st checkpointState
	if b != nil {
		if err := decMode.Unmarshal(b, &st); err != nil {
			return err
		}
	}
	snaps, err := w.cat.SnapshotsAfter(source.ID, st.Seq)
	if err != nil || len(snaps) == 0 {
		return err
	}
	var roots int
	var bytes int64
	for _, s := range snaps {
		d, err := decodeSnapshot(source, s)
		if err != nil {
			return err
		}
		if s.Seq <= st.Seq {
			continue
		}
		size := d.Manifest
		if st.Seq == 0 && s.Seq == 1 {
			st.Seq, st.Size = 1, size // the first is as good as one
			continue
		}
		roots++
		bytes += size
	}
	head := snaps[len(snaps)-1].Seq
	if !checkpointDue(roots, bytes, st.Size) {
		return nil
	}
	size, err := w.Checkpoint(ctx, source, head)
	if err != nil {
		return err
	}
	if b, err = encMode.Marshal(checkpointState{head, size}); err != nil {
		return err
	}
	return w.cat.SetMeta(name, b)
}

// Checkpoint writes a checkpoint of a source's state at seq and returns its size in
// bytes, of one copy.
func (w *Writer) Checkpoint(ctx context.Context, source catalog.Source, seq uint64) (int64, error) {
	snaps, err := Snapshots(w.cat, source)
	if err != nil {
		return 0, err
	}
	var at *Snapshot
	for i := range snaps {
		if snaps[i].Seq == seq {
			at = &snaps[i]
		}
	}
	if at == nil {
		return 0, fmt.Errorf("snapshot #%d: %w", seq, filetree.ErrNotExist)
	}
	next, err := w.cat.NextNode(source.ID)
	if err != nil {
		return 0, err
	}
	names, err := loadNames(w.cat, source)
	if err != nil {
		return 0, err
	}
	enc := newEncoder(zstd.SpeedBetterCompression)
	defer enc.Close()
	c := &checkpointer{w: w, source: source, seq: seq, enc: enc, v: w.cat.At(source.ID, seq), told: map[catalog.PackID]bool{}}
	c.recs.cost = c.packCost
	for child, err := range c.v.Nodes() {
		if err != nil {
			return 0, err
		}
		if err := c.add(ctx, child); err != nil {
			return 0, err
		}
	}
	r := &root{
		Version: FormatVersion, Source: []byte(source.Name), Seq: seq,
		Time:   [2]int64{at.Info.Time.Sec, int64(at.Info.Time.Nsec)},
		Origin: []byte(at.Info.Origin), GUID: at.Info.GUID[:], Flags: flagFull | flagCheckpoint, Next: uint64(next),
		Exclude: bytesOf(at.Info.Exclude), Host: []byte(at.Info.Host), Users: names.Users, Groups: names.Groups,
		Prev: at.Root[:], Stats: stats{Files: at.Files, Bytes: at.Bytes},
	}
	if at.Partial {
		r.Flags |= flagPartial
	}
	if c.recs.size > min(inlineSize, w.opts.segmentSize()) {
		if err := c.flush(ctx); err != nil {
			return 0, err
		}
	} else if r.Body, err = c.body(); err != nil {
		return 0, err
	}
	r.Segments = c.segments
	obj, err := sealManifest(w.meta, w.place(source, seq, labelCheckpoint, 0), r, enc)
	if err != nil {
		return 0, err
	}
	return c.total + int64(len(obj)), w.putRoot(ctx, source, seq, kindCheckpoint, obj)
}

// A checkpointer makes the records of a whole state. They need no order: an entry may
// come before the node it leads to.
type checkpointer struct {
	w        *Writer
	source   catalog.Source
	seq      uint64
	enc      *zstd.Encoder
	v        catalog.View
	recs     recorder
	told     map[catalog.PackID]bool
	segments []segmentRef
	total    int64 // bytes of segments, one copy
}

// body ends the collection of records. A checkpoint tells all of every pack it names,
// once: it is to be read without what came before.
func (c *checkpointer) body() (*body, error) {
	return c.recs.body(c.w.cat, func(id catalog.PackID) (bool, error) {
		news := !c.told[id]
		c.told[id] = true
		return news, nil
	})
}

// packCost is what it takes to tell of a pack.
func (c *checkpointer) packCost(id catalog.PackID) int {
	if c.told[id] {
		return 0
	}
	p, err := c.w.cat.Pack(id)
	if err != nil {
		return 0 // it is met again when the body is made
	}
	return tellCost(len(p.Key), len(p.Blobs))
}

func (c *checkpointer) maybeFlush(ctx context.Context) error {
	if c.recs.size < c.w.opts.segmentSize() {
		return nil
	}
	return c.flush(ctx)
}

func (c *checkpointer) flush(ctx context.Context) error {
	b, err := c.body()
	if err != nil {
		return err
	}
	obj, err := sealManifest(c.w.meta, c.w.place(c.source, c.seq, labelCheckSeg, uint32(len(c.segments))), b, c.enc)
	if err != nil {
		return err
	}
	sha := hashOf(obj)
	c.segments = append(c.segments, segmentRef{SHA: sha[:], Size: uint64(len(obj))})
	c.total += int64(len(obj))
	return c.w.putMeta(ctx, metaName{c.source.Writer, c.source.Ident, c.seq, kindSegment, sha}, obj)
}

// checkpointRange is how much of a file is looked up at once.
const checkpointRange = 256 << 20

func (c *checkpointer) add(ctx context.Context, child catalog.Child) error {
	d := catalog.Diff(nil, &child.Attr)
	names, err := c.v.Entries(child.Node, 0)
	if err != nil {
		return err
	}
	c.recs.attr(child.Node, &d)
	for _, e := range names {
		c.recs.got(child.Node, e)
		if err := c.maybeFlush(ctx); err != nil {
			return err
		}
	}
	for from := int64(0); ; {
		if from, err = c.v.NextExtent(child.Node, from); err != nil {
			return err
		}
		if from == math.MaxInt64 {
			return c.maybeFlush(ctx)
		}
		to := from + min(checkpointRange, math.MaxInt64-from)
		ext, err := c.v.Extents(child.Node, from, to)
		if err != nil {
			return err
		}
		for _, e := range ext {
			if e.Offset < from {
				continue // said with the range before
			}
			if err := c.maybeFlush(ctx); err != nil {
				return err
			}
			c.recs.extent(child.Node, e)
		}
		from = to
	}
}
