package store

import (
	"context"
	"io"

	"golang.org/x/time/rate"
)

// Limit wraps s so that all Puts together send at most bytesPerSecond, averaged
// over about a second. What is sent again after a fault counts again, since the
// uplink carries it again. Zero or less means no limit.
func Limit(s Store, bytesPerSecond int64) Store {
	if bytesPerSecond <= 0 {
		return s
	}
	// A burst is what may go out at once after a pause: an eighth of a second's
	// worth keeps the uplink usable for others, a few KiB keeps reads sensible.
	burst := min(max(bytesPerSecond/8, 4<<10), 1<<20)
	return &limited{Store: s, bucket: rate.NewLimiter(rate.Limit(bytesPerSecond), int(burst))}
}

type limited struct {
	Store
	bucket *rate.Limiter
}

func (l *limited) Unwrap() Store { return l.Store }

func (l *limited) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	return l.Store.Put(ctx, key, &limitedReader{ctx: ctx, r: r, bucket: l.bucket}, size)
}

// A limitedReader belongs to one Put, whose context ends its waits.
type limitedReader struct {
	ctx    context.Context
	r      io.ReaderAt
	bucket *rate.Limiter
}

func (l *limitedReader) unmetered() io.ReaderAt { return l.r }

func (l *limitedReader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		chunk := p[n:min(n+l.bucket.Burst(), len(p))]
		m, err := l.r.ReadAt(chunk, off+int64(n))
		// Only what is there is paid for; a reader that was asked for more than
		// the object has would otherwise wait for nothing.
		if werr := l.bucket.WaitN(l.ctx, m); werr != nil {
			return n, werr
		}
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
