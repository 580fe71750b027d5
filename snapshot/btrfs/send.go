//go:build linux

package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SendOptions say what a stream holds. The zero value is a full stream with data.
type SendOptions struct {
	// Parent, if not nil, is the read-only snapshot that the stream starts from.
	Parent *Subvolume
	// CloneFromParent lets the stream clone data from Parent, as that of btrfs(8)
	// does. Without it what is changed is written, and only what is cloned within the
	// snapshot is a clone: the simpler stream for finding out what changed.
	CloneFromParent bool
	// NoData leaves file data out: a stream says where it changed. Version 1 cuts
	// the lengths of holes to 32 bits in such a stream.
	NoData bool
	// Compressed sends compressed extents as they are on disk. It needs version 2.
	Compressed bool
	// Version of the stream; 0 means 2, or 1 where the kernel has no 2 (before
	// Linux 6.0).
	Version uint32
}

// SendVersion returns the highest version of streams that the kernel says it has.
func SendVersion() uint32 {
	b, err := os.ReadFile("/sys/fs/btrfs/features/send_stream_version")
	if err != nil {
		return 1 // the file is as old as version 2
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return 1
	}
	return uint32(v)
}

// Send starts to send snap and returns the stream, from its first byte. Reading
// ends with io.EOF only after the kernel has said that all is sent; any error of
// the kernel's comes in its place. Cancelling ctx ends the stream with the
// cause of it.
//
// The caller closes the stream, at any time; Close waits until the kernel is
// out of it. Until then neither snap nor the parent can be destroyed.
//
// If the process is stopped or the system suspended while the kernel waits for a
// slow reader, the stream ends with [ErrInterrupted].
func Send(ctx context.Context, snap *Subvolume, o SendOptions) (io.ReadCloser, error) {
	if o.CloneFromParent && o.Parent == nil {
		return nil, fmt.Errorf("btrfs: send %s: no parent to clone from", snap.Path)
	}
	s := &stream{path: snap.Path}
	var err error
	if s.snap, err = openSnapshot(snap); err != nil {
		return nil, err
	}
	var parent uint64
	if o.Parent != nil {
		// Open until the end: an ID is given to no other subvolume while the file
		// system is mounted.
		if s.parent, err = openSnapshot(o.Parent); err != nil {
			s.closeFiles()
			return nil, err
		}
		parent = o.Parent.ID
	}
	version := o.Version
	if version == 0 {
		version = min(2, SendVersion())
	}
	if o.Compressed && version < 2 {
		s.closeFiles()
		return nil, fmt.Errorf("btrfs: send %s: compressed data needs version 2 of the stream: Linux 6.0", snap.Path)
	}

	wait := 100 * time.Millisecond
	for tries := 1; ; {
		err := s.start(ctx, newSendArgs(o, parent, version))
		if err == nil {
			return s, nil
		}
		switch {
		case err == unix.EAGAIN && tries < 6: // 3 seconds in all
			select {
			case <-time.After(wait):
				wait *= 2
				tries++
				continue
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		case (err == unix.EPROTO || err == unix.EINVAL || err == unix.EOPNOTSUPP) &&
			version == 2 && o.Version == 0 && !o.Compressed:
			version = 1
			continue
		}
		s.closeFiles()
		return nil, explain("send", snap.Path, err)
	}
}

// openSnapshot opens s, which has to be read-only.
func openSnapshot(s *Subvolume) (*os.File, error) {
	now, f, err := s.reopen()
	if err != nil {
		return nil, err
	}
	if !now.ReadOnly {
		f.Close()
		return nil, fmt.Errorf("btrfs: send %s: %w: only what cannot change can be sent", s.Path, ErrNotSnapshot)
	}
	return f, nil
}

func newSendArgs(o SendOptions, parent uint64, version uint32) *sendArgs {
	a := &sendArgs{parentRoot: parent}
	if o.CloneFromParent {
		a.cloneSources = &parent
		a.cloneSourcesCount = 1
	}
	if o.NoData {
		a.flags |= sendNoFileData
	}
	if o.Compressed {
		a.flags |= sendCompressed
	}
	// Kernels without version 2 refuse the flag.
	if version > 1 {
		a.flags |= sendVersion
		a.version = version
	}
	return a
}

// A stream is the reading end of a pipe into which a goroutine lets the kernel write.
type stream struct {
	path         string
	snap, parent *os.File

	r         *os.File
	head      []byte        // read from r already
	done      chan struct{} // closed when the kernel is out of the ioctl
	err       error         // of the ioctl; valid after done
	stop      func() bool   // takes back what is to happen when ctx is cancelled
	cancelled atomic.Pointer[error]
	closeOnce sync.Once
}

// headerSize is that of the header that every stream starts with.
const headerSize = 17

// start runs the ioctl until the stream's header is there. An error of the ioctl's
// is a bare unix.Errno; then nothing runs any more.
func (s *stream) start(ctx context.Context, a *sendArgs) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// Not os.Pipe: the kernel's end has to block and ours must not.
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return err
	}
	// A bigger pipe saves changes between two threads. It works without.
	unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 1<<20)
	r := os.NewFile(uintptr(p[0]), "btrfs send "+s.path)
	s.r = r
	s.done = make(chan struct{})
	s.err = nil
	a.fd = int64(p[1])
	go func() {
		defer close(s.done)
		s.err = send(s.snap, a)
		unix.Close(p[1])
	}()
	s.stop = context.AfterFunc(ctx, func() {
		err := context.Cause(ctx)
		s.cancelled.Store(&err)
		r.Close()
	})

	head := make([]byte, headerSize)
	n, err := io.ReadFull(s.r, head)
	if err != nil {
		s.halt()
		switch cancelled := s.cancelled.Load(); {
		case cancelled != nil:
			return *cancelled
		case s.err != nil:
			return s.err
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	s.head = head[:n]

	// The kernel restarts an ioctl that a stop of the process or a suspend of the
	// system takes out of its waiting, and would then send all from the beginning
	// into the middle of the stream. It has read its argument by now, so it does
	// not miss the descriptor; it would in a second start.
	atomic.StoreInt64(&a.fd, -1)
	return nil
}

// send lets the kernel write a stream of snap as a says. The error is a
// unix.Errno.
func send(snap *os.File, a *sendArgs) error {
	// A signal to this thread while the pipe is full would end the waiting just as
	// well, and the runtime sends some of its own. So they are blocked. The thread
	// ends with the goroutine, as it is not unlocked: nothing has to be restored,
	// and a SIGPIPE that waits is lost with it.
	runtime.LockOSThread()
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	// 32 to 34 are the C library's and the runtime's to make every thread do
	// something; somebody waits until this one has done it too.
	for sig := 32; sig <= 34; sig++ {
		bits := int(unsafe.Sizeof(all.Val[0])) * 8
		all.Val[(sig-1)/bits] &^= 1 << ((sig - 1) % bits)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return err
	}
	err := ioctl(snap.Fd(), ioctlSend, unsafe.Pointer(a))
	runtime.KeepAlive(snap)
	runtime.KeepAlive(a)
	return err
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if len(s.head) > 0 {
		n := copy(p, s.head)
		s.head = s.head[n:]
		return n, nil
	}
	n, err := s.r.Read(p)
	if err == nil {
		return n, nil
	}
	if cancelled := s.cancelled.Load(); cancelled != nil {
		return n, fmt.Errorf("btrfs: send %s: %w", s.path, *cancelled)
	}
	if err != io.EOF {
		if errors.Is(err, os.ErrClosed) {
			return n, os.ErrClosed
		}
		return n, fmt.Errorf("btrfs: send %s: %w", s.path, err)
	}
	<-s.done
	switch s.err {
	case nil:
		return n, io.EOF
	case unix.EBADF, unix.EINTR: // EBADF is from a second start, see start
		return n, fmt.Errorf("btrfs: send %s: %w", s.path, ErrInterrupted)
	}
	return n, explain("send", s.path, s.err)
}

// Close implements io.Closer. It returns nil.
func (s *stream) Close() error {
	s.closeOnce.Do(func() {
		s.halt()
		s.closeFiles()
	})
	return nil
}

// halt ends the ioctl, which gets EPIPE with its next write, and waits for it.
func (s *stream) halt() {
	s.stop()
	s.r.Close()
	<-s.done
}

func (s *stream) closeFiles() {
	s.snap.Close()
	if s.parent != nil {
		s.parent.Close()
	}
}
