package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What is asked of the kernel for each directory. IN_CLOSE_WRITE is there for what is
// written by way of a mapping, which is no IN_MODIFY: a mapping keeps its file open.
// Not IN_EXCL_UNLINK: a file that is written to after its name was removed may have
// another one.
const (
	dirMask  = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ONLYDIR
	rootMask = dirMask | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
)

// An event is a struct inotify_event, inotify(7):
//
//	| wd (4B) | mask (4B) | cookie (4B) | length (4B) | name, NULs |
//
// in the byte order of the machine.
type event struct {
	wd   int32
	mask uint32
	name []byte // lent
}

const eventHeader = 16

var errEvents = errors.New("events cut off")

// events yields what one read of an inotify descriptor returned. An error is yielded
// once, at the end.
func events(b []byte) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		for len(b) > 0 {
			if len(b) < eventHeader {
				yield(event{}, errEvents)
				return
			}
			e := event{wd: int32(binary.NativeEndian.Uint32(b)), mask: binary.NativeEndian.Uint32(b[4:])}
			size := binary.NativeEndian.Uint32(b[12:])
			if int64(size) > int64(len(b)-eventHeader) {
				yield(event{}, errEvents)
				return
			}
			e.name, _, _ = bytes.Cut(b[eventHeader:eventHeader+size], []byte{0})
			if !yield(e, nil) {
				return
			}
			b = b[eventHeader+size:]
		}
	}
}

// An instance is an inotify descriptor and what was read from it. A goroutine reads
// and does nothing else, so that the kernel's queue (16,384 events) is empty while a
// large directory is walked.
type instance struct {
	f     *os.File
	ready chan struct{} // holds one: there is something to take, or the reader ended
	limit int           // of bytes that wait

	mu   sync.Mutex // guards what follows
	read [][]byte
	size int
	lost bool  // more came than limit; what follows is dropped until take
	err  error // of the reader, which has ended
	done chan struct{}
}

// maxRead is how much of what was read may wait: some 200,000 events.
const maxRead = 8 << 20

// openInstance errors wrap EMFILE when there are too many instances, or files.
func openInstance(limit int) (*instance, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init: %w", err)
	}
	in := &instance{f: os.NewFile(uintptr(fd), "inotify"), ready: make(chan struct{}, 1), limit: limit, done: make(chan struct{})}
	return in, nil
}

// start starts reading.
func (in *instance) start(p *atomic.Pointer[pause]) { go in.run(p) }

func (in *instance) run(wait *atomic.Pointer[pause]) {
	defer close(in.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := in.f.Read(buf)
		if p := wait.Load(); p != nil && p.reading != nil {
			<-p.reading
		}
		in.mu.Lock()
		switch {
		case err != nil:
			in.err = err
		case in.lost:
		case in.size+n > in.limit:
			in.lost = true
		default:
			in.read = append(in.read, bytes.Clone(buf[:n]))
			in.size += n + 32
		}
		in.mu.Unlock()
		select {
		case in.ready <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// take returns what was read, and whether events were lost after it. The error is that
// of a descriptor that can be read no more.
func (in *instance) take() (read [][]byte, lost bool, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	read, lost, err = in.read, in.lost, in.err
	in.read, in.size, in.lost = nil, 0, false
	return read, lost, err
}

// add watches the directory that is open as fd: this one, whatever its path leads to by
// now. A directory that is watched already has the same descriptor again.
func (in *instance) add(fd int, mask uint32) (wd int32, err error) {
	conn, err := in.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	cerr := conn.Control(func(ifd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(ifd), path, mask)
		wd = int32(n)
	})
	return wd, errors.Join(cerr, err)
}

// remove ends a watch. That it has ended by itself is no error.
func (in *instance) remove(wd int32) {
	if conn, err := in.f.SyscallConn(); err == nil {
		conn.Control(func(ifd uintptr) { unix.InotifyRmWatch(int(ifd), uint32(wd)) })
	}
}

// close ends all watches, and waits for the reader if it was started.
func (in *instance) close(started bool) {
	in.f.Close()
	if started {
		<-in.done
	}
}
