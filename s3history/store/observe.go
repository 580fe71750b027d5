package store

import (
	"context"
	"io"
	"sync"
)

// An Observer is told what a store is used for. Its functions may be nil, and may
// be called concurrently; they hold up the transfer that they are told of.
type Observer struct {
	// Sent hears that n more bytes of the object under key went out. What is
	// sent twice, after a fault, is counted once. The sum over one Put is the
	// object's size if Put returned nil and 0 if it did not: then a last call
	// takes back what was counted, with a negative n.
	Sent func(key string, n int64)
	// Stored hears of each object that Put stored.
	Stored func(o Object)
	// Received hears that n more bytes of the object under key were read.
	Received func(key string, n int64)
}

// Observe wraps s so that o hears of what is put and got.
func Observe(s Store, o Observer) Store {
	return &observed{Store: s, o: o}
}

type observed struct {
	Store
	o Observer
}

func (w *observed) Unwrap() Store { return w.Store }

func (w *observed) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	sent := &sentReader{r: r, sent: func(n int64) {
		if w.o.Sent != nil && n != 0 {
			w.o.Sent(key, n)
		}
	}}
	err := w.Store.Put(ctx, key, sent, size)
	if err != nil {
		sent.settle(0)
		return err
	}
	sent.settle(size)
	if w.o.Stored != nil {
		w.o.Stored(Object{Key: key, Size: size})
	}
	return nil
}

func (w *observed) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := w.Store.Get(ctx, key, off, n)
	if err != nil || w.o.Received == nil {
		return r, err
	}
	return &receivedReader{ReadCloser: r, received: func(n int64) { w.o.Received(key, n) }}, nil
}

// A sentReader counts how far into the object any read has come. Senders read
// forwards, and start over after a fault.
type sentReader struct {
	r    io.ReaderAt
	sent func(n int64)

	mu   sync.Mutex // guards the fields below and keeps the calls of sent in order
	high int64      // how much has been counted
	done bool       // Put has returned: a transport may still be reading
}

func (s *sentReader) unmetered() io.ReaderAt { return s.r }

func (s *sentReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.r.ReadAt(p, off)
	s.mu.Lock()
	defer s.mu.Unlock()
	if end := off + int64(n); n > 0 && end > s.high && !s.done {
		s.sent(end - s.high)
		s.high = end
	}
	return n, err
}

// settle makes the count come to total, for good.
func (s *sentReader) settle(total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent(total - s.high)
	s.high, s.done = total, true
}

type receivedReader struct {
	io.ReadCloser
	received func(n int64)
}

func (r *receivedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 {
		r.received(int64(n))
	}
	return n, err
}
