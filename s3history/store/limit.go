package store

import (
	"context"
	"io"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limit wraps s so that all Puts together send at most bytesPerSecond, averaged
// over about a second. What is sent again after a fault counts again, since the
// uplink carries it again. Zero or less means no limit.
func Limit(s Store, bytesPerSecond int64) Store {
	if bytesPerSecond <= 0 {
		return s
	}
	return LimitAt(s, func(time.Time) int64 { return bytesPerSecond })
}

// LimitAt is Limit for a rate that changes with time: a Put that is under way follows
// it within two seconds, also from no limit to one and back. The function may be called
// concurrently, about once a second.
func LimitAt(s Store, bytesPerSecond func(time.Time) int64) Store {
	return &limited{Store: s, bucket: &bucket{perSecond: bytesPerSecond}}
}

type limited struct {
	Store
	bucket *bucket
}

func (l *limited) Unwrap() Store { return l.Store }

func (l *limited) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	return l.Store.Put(ctx, key, &limitedReader{ctx: ctx, r: r, bucket: l.bucket}, size)
}

// maxBurst is the most that is read at once.
const maxBurst = 1 << 20

// askEvery is how often a bucket asks for the rate.
const askEvery = time.Second

// A bucket is what may be sent, by the rate of the time.
type bucket struct {
	perSecond func(time.Time) int64

	mu      sync.Mutex    // guards what follows
	asked   time.Time     // when perSecond was called, the zero Time if never
	rate    int64         // what it said
	limiter *rate.Limiter // nil if there is no limit
}

// limiterAt returns the limiter for now, which is another one when the rate has changed,
// and what may go out at once.
func (b *bucket) limiterAt(now time.Time) (l *rate.Limiter, burst int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// A clock that was set back is asked for at once.
	if since := now.Sub(b.asked); b.asked.IsZero() || since < 0 || since >= askEvery {
		perSecond := max(b.perSecond(now), 0)
		if b.asked.IsZero() || perSecond != b.rate {
			// A new one, and not another rate for the one there is: what was taken of that
			// in advance could at a lower rate be a debt of hours.
			b.rate, b.limiter = perSecond, nil
			if perSecond > 0 {
				// A burst is what may go out at once after a pause: an eighth of a second's
				// worth keeps the uplink usable for others, a few KiB keeps reads sensible.
				burst := min(max(perSecond/8, 4<<10), maxBurst)
				b.limiter = rate.NewLimiter(rate.Limit(perSecond), int(burst))
			}
		}
		b.asked = now
	}
	if b.limiter == nil {
		return nil, maxBurst
	}
	return b.limiter, b.limiter.Burst()
}

// wait waits until n bytes may be sent. Where the rate changes meanwhile, it is the new one
// that counts.
func (b *bucket) wait(ctx context.Context, n int) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		l, burst := b.limiterAt(time.Now())
		if l == nil {
			return nil
		}
		part := min(n, burst) // the burst may have become less than what was read
		r := l.ReserveN(time.Now(), part)
		for {
			left := r.Delay()
			if left <= 0 {
				n -= part
				break
			}
			select {
			case <-ctx.Done():
				r.Cancel()
				return ctx.Err()
			case <-time.After(min(left, askEvery)):
			}
			if now, _ := b.limiterAt(time.Now()); now != l {
				break // what was taken is of a limiter that nobody asks any more
			}
		}
	}
	return nil
}

// A limitedReader belongs to one Put, whose context ends its waits.
type limitedReader struct {
	ctx    context.Context
	r      io.ReaderAt
	bucket *bucket
}

func (l *limitedReader) unmetered() io.ReaderAt { return l.r }

func (l *limitedReader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		_, burst := l.bucket.limiterAt(time.Now())
		chunk := p[n:min(n+burst, len(p))]
		m, err := l.r.ReadAt(chunk, off+int64(n))
		// Only what is there is paid for; a reader that was asked for more than
		// the object has would otherwise wait for nothing.
		if werr := l.bucket.wait(l.ctx, m); werr != nil {
			return n, werr
		}
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
