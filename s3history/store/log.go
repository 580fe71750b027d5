package store

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"time"
)

// Log wraps s so that each request is logged when it ends, at level debug: what was asked
// for, how many bytes of it went over, how long it took, and the error if there was one.
func Log(s Store, log *slog.Logger) Store {
	if log == nil || !log.Enabled(context.Background(), slog.LevelDebug) {
		return s
	}
	return &logged{Store: s, log: log}
}

type logged struct {
	Store
	log *slog.Logger
}

func (l *logged) Unwrap() Store { return l.Store }

func (l *logged) did(ctx context.Context, op, key string, size int64, since time.Time, err error) {
	attrs := []slog.Attr{slog.String("op", op), slog.String("key", key), slog.Int64("size", size),
		slog.Duration("took", time.Since(since).Round(time.Microsecond))}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	l.log.LogAttrs(ctx, slog.LevelDebug, "store", attrs...)
}

func (l *logged) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	start := time.Now()
	err := l.Store.Put(ctx, key, r, size)
	l.did(ctx, "put", key, size, start, err)
	return err
}

func (l *logged) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	start := time.Now()
	r, err := l.Store.Get(ctx, key, off, n)
	if err != nil {
		l.did(ctx, "get", key, 0, start, err)
		return nil, err
	}
	return &loggedReader{ReadCloser: r, done: func(size int64, err error) { l.did(ctx, "get", key, size, start, err) }}, nil
}

func (l *logged) Stat(ctx context.Context, key string) (Object, error) {
	start := time.Now()
	o, err := l.Store.Stat(ctx, key)
	l.did(ctx, "stat", key, o.Size, start, err)
	return o, err
}

func (l *logged) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		start := time.Now()
		var objects int64
		var last error
		for o, err := range l.Store.List(ctx, prefix) {
			if last = err; err == nil {
				objects++
			}
			if !yield(o, err) {
				break
			}
		}
		l.did(ctx, "list", prefix, objects, start, last)
	}
}

// A loggedReader says how much was read when it is closed.
type loggedReader struct {
	io.ReadCloser
	size int64
	err  error
	done func(size int64, err error)
}

func (r *loggedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.size += int64(n)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

func (r *loggedReader) Close() error {
	if r.done != nil {
		r.done(r.size, r.err)
		r.done = nil
	}
	return r.ReadCloser.Close()
}
