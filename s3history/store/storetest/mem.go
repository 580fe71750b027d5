package storetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/secrate/secrate/s3history/store"
)

// A Mem is a store in memory that counts what is done to it, and that a test may
// damage. The zero Mem is empty and ready.
type Mem struct {
	mu      sync.Mutex // guards the fields below
	objects map[string][]byte
	counts  Counts
}

// Counts are the calls a [Mem] has answered without error, and their bytes.
type Counts struct {
	Puts, Gets, Stats, Lists int64
	PutBytes, GotBytes       int64 // GotBytes are those asked for
}

// NewMem returns an empty store.
func NewMem() *Mem { return new(Mem) }

func (m *Mem) String() string { return "mem:" }

// Put implements [store.Store].
func (m *Mem) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	fail := func(err error) error { return &store.Error{Op: "put", Key: key, At: m.String(), Err: err} }
	if err := store.CheckKey(key); err != nil {
		return fail(err)
	}
	var b bytes.Buffer
	n, err := b.ReadFrom(io.NewSectionReader(r, 0, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fail(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; ok {
		return fail(store.ErrExist)
	}
	if m.objects == nil {
		m.objects = make(map[string][]byte)
	}
	m.objects[key] = b.Bytes()
	m.counts.Puts++
	m.counts.PutBytes += size
	return nil
}

// Get implements [store.Store].
func (m *Mem) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	fail := func(err error) (io.ReadCloser, error) {
		return nil, &store.Error{Op: "get", Key: key, At: m.String(), Err: err}
	}
	if err := cmp.Or(store.CheckKey(key), store.CheckRange(off, n), context.Cause(ctx)); err != nil {
		return fail(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[key]
	if !ok {
		return fail(store.ErrNotExist)
	}
	size := int64(len(b))
	if n < 0 {
		n = max(size-off, 0)
	}
	if off > size || n > size-off {
		return fail(fmt.Errorf("%d bytes from %d on of %d: %w", n, off, size, io.ErrUnexpectedEOF))
	}
	m.counts.Gets++
	m.counts.GotBytes += n
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

// Stat implements [store.Store].
func (m *Mem) Stat(ctx context.Context, key string) (store.Object, error) {
	fail := func(err error) (store.Object, error) {
		return store.Object{}, &store.Error{Op: "stat", Key: key, At: m.String(), Err: err}
	}
	if err := cmp.Or(store.CheckKey(key), context.Cause(ctx)); err != nil {
		return fail(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[key]
	if !ok {
		return fail(store.ErrNotExist)
	}
	m.counts.Stats++
	return store.Object{Key: key, Size: int64(len(b))}, nil
}

// List implements [store.Store]. It yields what there was when it began.
func (m *Mem) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		fail := func(err error) {
			yield(store.Object{}, &store.Error{Op: "list", Key: prefix, At: m.String(), Err: err})
		}
		if err := store.CheckPrefix(prefix); err != nil {
			fail(err)
			return
		}
		m.mu.Lock()
		var objects []store.Object
		for _, key := range slices.Sorted(maps.Keys(m.objects)) {
			if strings.HasPrefix(key, prefix) {
				objects = append(objects, store.Object{Key: key, Size: int64(len(m.objects[key]))})
			}
		}
		m.counts.Lists++
		m.mu.Unlock()
		for _, o := range objects {
			if err := context.Cause(ctx); err != nil {
				fail(err)
				return
			}
			if !yield(o, nil) {
				return
			}
		}
		if err := context.Cause(ctx); err != nil {
			fail(err)
		}
	}
}

// Counts says what was done to the store so far.
func (m *Mem) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts
}

// Size is the sum of the sizes of all objects.
func (m *Mem) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var n int64
	for _, b := range m.objects {
		n += int64(len(b))
	}
	return n
}

// Keys are the keys of all objects, in order.
func (m *Mem) Keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.objects))
}

// Bytes is a copy of the object under key, or nil.
func (m *Mem) Bytes(key string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.objects[key])
}

// Set puts b in the place of the object under key, as a hostile storage may.
func (m *Mem) Set(key string, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.objects == nil {
		m.objects = make(map[string][]byte)
	}
	m.objects[key] = bytes.Clone(b)
}

// Lose forgets the object under key, as a careless storage may.
func (m *Mem) Lose(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
}

// Clone returns a store of the same objects, with its counts at zero.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Mem{objects: maps.Clone(m.objects)} // no object's bytes are ever written to
}
