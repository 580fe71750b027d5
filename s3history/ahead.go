package s3history

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/secrate/secrate/internal/seal"
)

// objectsAhead is how many manifest objects are read at once, and so how many are in
// memory before their turn; each has at most maxManifestObj bytes.
const objectsAhead = 4

// ahead yields what read returns for 0 to n-1, in that order. While one is looked at the
// next are being read.
func ahead(ctx context.Context, n int, read func(ctx context.Context, i int) ([]byte, error)) iter.Seq2[[]byte, error] {
	type result struct {
		obj []byte
		err error
	}
	return func(yield func([]byte, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		var reading []chan result
		for i, next := 0, 0; i < n; i++ {
			for ; next < min(i+objectsAhead, n); next++ {
				done, i := make(chan result, 1), next
				reading = append(reading, done)
				wg.Go(func() {
					obj, err := read(ctx, i)
					done <- result{obj, err}
				})
			}
			r := <-reading[0]
			reading = reading[1:]
			if !yield(r.obj, r.err) {
				return
			}
		}
	}
}

// segments yields the bodies of a root's segments, in order, up to the first error. While
// one is applied the next is opened. CBOR may be a hundred times larger decoded than it
// was: so of the two together no more is decoded than one may have.
func (r *root) segments(ctx context.Context, meta seal.Key, place metaPlace,
	read func(ctx context.Context, ref segmentRef) ([]byte, error)) iter.Seq2[*body, error] {
	type opened struct {
		body body
		size int64 // of its CBOR
		err  error
	}
	return func(yield func(*body, error) bool) {
		if len(r.Segments) == 0 {
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		decoded := semaphore.NewWeighted(maxManifest)
		next := make(chan *opened)
		wg.Go(func() {
			defer close(next)
			n := 0
			for obj, err := range ahead(ctx, len(r.Segments), func(ctx context.Context, i int) ([]byte, error) { return read(ctx, r.Segments[i]) }) {
				o := &opened{err: err}
				if err == nil {
					place.number = uint32(n)
					var plain []byte
					if plain, o.err = openPlain(meta, place, obj); o.err == nil {
						o.size = int64(len(plain))
						if decoded.Acquire(ctx, o.size) != nil {
							return
						}
						o.err = unmarshalManifest(plain, &o.body)
					}
					if o.err != nil {
						o.err = fmt.Errorf("segment %x: %w", r.Segments[n].SHA, o.err)
					}
				}
				select {
				case next <- o:
				case <-ctx.Done():
					return
				}
				if o.err != nil {
					return
				}
				n++
			}
		})
		for n := 0; n < len(r.Segments); n++ {
			o, ok := <-next
			if !ok {
				yield(nil, ctx.Err())
				return
			}
			if !yield(&o.body, o.err) || o.err != nil {
				return
			}
			decoded.Release(o.size)
		}
	}
}
