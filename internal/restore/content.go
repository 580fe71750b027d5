package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/secrate/secrate/internal/catalog"
)

// content restores the files that have some.
func (r *run) content(ctx context.Context) error {
	total, err := r.plan.Sort(ctx, func(f catalog.PlanFile, err error) error { return r.failFile(ctx, f, err) })
	if err != nil {
		return err
	}
	return r.write(ctx, total)
}

// write restores the files that have been planned and looked up, of total bytes.
func (r *run) write(ctx context.Context, total int64) (err error) {
	r.Progress.Start("restore", total)
	defer func() { r.Progress.Done(err) }()
	if err := r.whole(ctx); err != nil {
		return err
	}
	return r.pieced(ctx)
}

// written counts bytes of content.
func (r *run) written(n int64) {
	r.Progress.Add(n)
	r.mu.Lock()
	r.res.Bytes += n
	r.mu.Unlock()
}

func (r *run) restored() {
	r.mu.Lock()
	r.res.Files++
	r.mu.Unlock()
}

// minWanted is the fewest blobs of a pack that are shared out among workers: about
// what one request asks for.
const minWanted = 8

// whole restores the files that are one slice of a blob.
func (r *run) whole(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.workers())
	for pack, err := range r.plan.Packs() {
		var blobs []uint32
		if err == nil {
			blobs, err = r.plan.Blobs(pack)
		}
		if err == nil {
			err = gctx.Err()
		}
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		// A history of one pack is work for all, too.
		share := max(minWanted, (len(blobs)+r.workers()-1)/r.workers())
		for wanted := range slices.Chunk(blobs, share) {
			g.Go(func() error {
				return r.Content.Blobs(gctx, pack, wanted, func(n uint32, data []byte, err error) error {
					return r.wholeOf(gctx, pack, n, data, err)
				})
			})
		}
	}
	return g.Wait()
}

// wholeOf restores the files that are a slice of one blob, or fails all of them if it
// could not be read.
func (r *run) wholeOf(ctx context.Context, pack catalog.PackID, blob uint32, data []byte, blobErr error) error {
	for w, err := range r.plan.Whole(pack, blob) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if err = blobErr; err == nil {
			err = r.wholeFile(ctx, w, data)
		}
		if err == nil {
			r.restored()
			r.written(w.Size)
		} else if err := r.failFile(ctx, w.PlanFile, err); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) wholeFile(ctx context.Context, w catalog.Whole, data []byte) error {
	if w.Err != nil {
		return w.Err
	}
	slice, err := r.Content.ReadWith(ctx, w.Part, w.Part.Pack, w.Part.Blob, data)
	if err != nil {
		return err
	}
	if r.device != nil {
		_, err := r.device.WriteAt(slice, 0)
		return err
	}
	return r.target.WriteFile(targetID(w.Dir), w.Name, &w.Attr, slice)
}

// An output is where the pieces of a file are put together. Finish or Abort ends its use.
type output interface {
	WriteAt(data []byte, off int64) (int, error)
	Finish() error
	Abort()
}

func (r *run) create(f catalog.PlanFile) (output, error) {
	if r.device != nil {
		return deviceOutput{r.device}, nil
	}
	a, err := r.View.Attr(f.Node)
	if err != nil {
		return nil, err
	}
	return r.target.Create(targetID(f.Dir), f.Name, &a)
}

// A piecedFile is a file that is being put together.
type piecedFile struct {
	r    *run
	file catalog.PlanFile
	out  output

	mu   sync.Mutex // guards what follows
	left int        // who is at work on it
	data int64      // bytes written
	err  error      // the first
}

// pieced restores the files that are not one slice. No more files are open than there
// are workers, and one.
func (r *run) pieced(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.workers())
	for f, err := range r.plan.Pieced() {
		if err == nil {
			err = r.startPieces(gctx, g, f)
		}
		if err != nil {
			g.Go(func() error { return err })
			break
		}
	}
	return g.Wait()
}

// startPieces begins a file and hands out its pieces. Who is done last finishes it.
func (r *run) startPieces(ctx context.Context, g *errgroup.Group, f catalog.PlanFile) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	out, err := r.create(f)
	if err != nil {
		return r.failFile(ctx, f, err)
	}
	p := &piecedFile{r: r, file: f, out: out, left: 1}
	start := func(job []catalog.Extent) {
		p.mu.Lock()
		p.left++
		p.mu.Unlock()
		g.Go(func() error { return p.done(ctx, p.write(ctx, job)) })
	}
	var job []catalog.Extent
	size := int64(0)
	for e, err := range r.plan.Pieces(f.ID) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return p.done(ctx, err)
		}
		if len(job) > 0 && (e.Pack != job[0].Pack || size+e.Length > maxJob || len(job) == maxJobPieces) {
			if p.failed() {
				break
			}
			start(job)
			job, size = nil, 0
		}
		job = append(job, e)
		size += e.Length
	}
	if len(job) > 0 {
		start(job)
	}
	return p.done(ctx, nil)
}

// maxJob and maxJobPieces bound what one worker is given of a file.
const (
	maxJob       = 8 << 20 // bytes
	maxJobPieces = 1024
)

func (p *piecedFile) failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

// done is called by everyone who was at work on the file, with what came of it. Its
// error ends the restore.
func (p *piecedFile) done(ctx context.Context, err error) error {
	p.mu.Lock()
	if p.err == nil {
		p.err = err
	}
	p.left--
	last := p.left == 0
	err = p.err
	p.mu.Unlock()
	if !last {
		return nil
	}
	if err == nil {
		err = p.out.Finish()
	}
	if err != nil {
		p.out.Abort()
		return p.r.failFile(ctx, p.file, err)
	}
	p.r.restored()
	p.r.mu.Lock()
	p.r.res.Holes += p.file.Size - p.data
	p.r.mu.Unlock()
	return nil
}

// write writes pieces of one pack, or patches.
func (p *piecedFile) write(ctx context.Context, job []catalog.Extent) error {
	if p.failed() {
		return nil
	}
	var blobs []uint32
	size := int64(0)
	for _, e := range job {
		if n := len(blobs); n == 0 || blobs[n-1] != e.Blob {
			blobs = append(blobs, e.Blob)
		}
		size += e.Length
	}
	// Where little of each blob is wanted, other files want the rest: Read keeps it.
	if job[0].Patch != nil || size < int64(len(blobs))*catalog.MaxPart/2 {
		for _, e := range job {
			data, err := p.r.Content.Read(ctx, e.Part)
			if err != nil {
				return err
			}
			if err := p.writeAt(data, e.Offset); err != nil {
				return err
			}
		}
		return nil
	}
	err := p.r.Content.Blobs(ctx, job[0].Pack, blobs, func(n uint32, data []byte, err error) error {
		for len(job) > 0 && job[0].Blob == n && err == nil {
			var slice []byte
			slice, err = p.r.Content.ReadWith(ctx, job[0].Part, job[0].Pack, n, data)
			if err == nil {
				err = p.writeAt(slice, job[0].Offset)
			}
			job = job[1:]
		}
		return errors.Join(err, ctx.Err())
	})
	if err == nil && len(job) > 0 {
		err = fmt.Errorf("blob %d of pack %d was not read", job[0].Blob, job[0].Pack)
	}
	return err
}

func (p *piecedFile) writeAt(data []byte, off int64) error {
	n, err := p.out.WriteAt(data, off)
	p.r.written(int64(n))
	p.mu.Lock()
	p.data += int64(n)
	p.mu.Unlock()
	return err
}
