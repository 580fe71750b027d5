package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// SendOptions say what a stream holds. The zero value is a full stream.
type SendOptions struct {
	// Base, if not nil, is the snapshot or bookmark that the stream starts from, of the same
	// dataset and older.
	Base *Snapshot
	// Compressed sends blocks as they are on disk.
	Compressed bool
}

// Send starts to send a snapshot and returns the stream, from its first byte: with large
// blocks (-L) and embedded ones (-e), and decrypted. Reading ends with io.EOF only after the
// command has said that all is well; any error of its comes in the place of that. Cancelling
// ctx ends the stream with the cause of it.
//
// The caller closes the stream, at any time.
func Send(ctx context.Context, s Snapshot, o SendOptions) (io.ReadCloser, error) {
	if err := check(ctx, s); err != nil {
		return nil, err
	}
	args := []string{"send", "-L", "-e"}
	if o.Compressed {
		args = append(args, "-c")
	}
	if o.Base != nil {
		args = append(args, "-i", o.Base.String())
	}
	cmd, err := command(ctx, "zfs", append(args, s.String())...)
	if err != nil {
		return nil, err
	}
	st := &stream{ctx: ctx, pool: Pool(s.Dataset), cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &st.stderr
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	st.r = r
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return nil, failure(cmd.Args, "", err)
	}
	go func() {
		st.err = cmd.Wait()
		close(st.done)
	}()
	go st.watch()
	return st, nil
}

// stallCheck is after how long without a byte the pool is looked at.
const stallCheck = 20 * time.Second

// A stream is what a zfs send writes.
type stream struct {
	ctx    context.Context
	pool   string
	cmd    *exec.Cmd
	r      *os.File
	stderr tail
	done   chan struct{} // closed when the command has ended
	err    error         // how it ended; valid after done

	read      atomic.Int64          // bytes
	stalled   atomic.Pointer[error] // why there will be no more
	closeOnce sync.Once
}

// watch looks whether the pool is suspended when nothing comes any more: the command would
// then wait for ever, and cannot be killed.
func (s *stream) watch() {
	tick := time.NewTicker(stallCheck)
	defer tick.Stop()
	for last := int64(-1); ; {
		select {
		case <-s.done:
			return
		case <-s.ctx.Done():
			// It has been killed. One that waits for its pool does not end by that.
			select {
			case <-s.done:
			case <-time.After(grace):
				s.r.Close()
			}
			return
		case <-tick.C:
		}
		now := s.read.Load()
		if now == last {
			if err := Healthy(s.ctx, s.pool); errors.Is(err, ErrSuspended) {
				s.stalled.Store(&err)
				s.r.Close()
				return
			}
		}
		last = now
	}
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.read.Add(int64(n))
	switch stalled := s.stalled.Load(); {
	case err == nil:
		return n, nil
	case stalled != nil:
		return n, fmt.Errorf("zfs send: %w", *stalled)
	case s.ctx.Err() != nil:
		return n, context.Cause(s.ctx)
	case err != io.EOF:
		return n, err
	}
	<-s.done
	if s.ctx.Err() != nil {
		return n, context.Cause(s.ctx)
	}
	if s.err != nil {
		return n, failure(s.cmd.Args, s.stderr.String(), s.err)
	}
	return n, io.EOF
}

// Close implements io.Closer. It waits until the command has ended, but not for one that the
// kernel does not let go. It returns nil.
func (s *stream) Close() error {
	s.closeOnce.Do(func() {
		s.r.Close()
		s.cmd.Process.Kill() // it may have ended
		select {
		case <-s.done:
		case <-time.After(grace):
		}
	})
	return nil
}

// A tail keeps the last of what is written to it.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// maxTail is how much a tail keeps, at least.
const maxTail = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p)
	if t.b.Len() > 2*maxTail {
		t.b.Next(t.b.Len() - maxTail)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}
