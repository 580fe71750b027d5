package localfs

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
)

// A File is a regular file, open for reading. Its methods, but for Refresh and Freeze, may be
// called concurrently.
type File struct {
	h      handle
	st     unix.Statx_t // when it was opened, refreshed or frozen
	frozen *int         // the descriptor of what is read, if it is frozen
}

// Close closes f.
func (f *File) Close() error {
	f.thaw()
	return f.h.close()
}

// data is the descriptor of what is read.
func (f *File) data() int {
	if f.frozen != nil {
		return *f.frozen
	}
	return f.h.fd
}

// Size returns the size that the file had when it was opened.
func (f *File) Size() int64 { return int64(f.st.Size) }

// Stat returns the attributes that the file had when it was opened.
func (f *File) Stat() (Stat, error) { return f.h.stat(&f.st) }

// Changed reports whether content or attributes have changed since the file was
// opened. What is frozen never does. Kernels before 6.13 do not tell changes within one tick (up to 10 ms)
// from each other.
func (f *File) Changed() (bool, error) {
	if f.frozen != nil {
		return false, nil
	}
	return f.Moved()
}

// Refresh makes what f tells of itself what is true now, and returns the attributes. It is not
// frozen then.
func (f *File) Refresh() (Stat, error) {
	f.thaw()
	if err := f.h.statx(&f.st); err != nil {
		return Stat{}, err
	}
	return f.Stat()
}

// ReadAt reads as io.ReaderAt says.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := retry(func() (int, error) { return unix.Pread(f.data(), p[n:], off+int64(n)) })
		if err != nil {
			return n, fmt.Errorf("read at %d: %w", off+int64(n), err)
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// Segments returns what is data and what is a hole from from to to, or to the size
// the file had when it was opened. The segments have no gaps, and data and holes
// alternate. A file system that has no holes, or does not tell, has only data.
//
// There may be a segment for every 4 KiB: whoever does not trust the file asks
// for a part of it at a time.
func (f *File) Segments(from, to int64) ([]filetree.Segment, error) {
	to = min(to, f.Size())
	if from < 0 || from >= to {
		return nil, nil
	}
	// That enough blocks are allocated does not say that there is no hole: those that
	// were allocated ahead and not written yet count, too, and are holes.
	var segs []filetree.Segment
	add := func(start, end int64, hole bool) {
		if n := len(segs); n > 0 && segs[n-1].Hole == hole {
			segs[n-1].Length = end - segs[n-1].Offset
		} else if end > start {
			segs = append(segs, segment(start, end, hole))
		}
	}
	for pos := from; pos < to; {
		// Data is asked for first. Of a range that was reflinked from one allocated
		// ahead, Btrfs says to SEEK_HOLE that it is data and to SEEK_DATA that it is
		// none (Linux 6.18); there is nothing in it, so the second is right.
		data, err := f.seek(pos, to, unix.SEEK_DATA)
		if err != nil {
			return nil, err
		}
		add(pos, data, true)
		if data == to {
			break
		}
		hole, err := f.seek(data, to, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		if hole == data { // punched between the two calls
			hole = min(to, data+1<<20)
		}
		add(data, hole, false)
		pos = hole
	}
	return segs, nil
}

// NextData returns where the first byte from from on is that is not in a hole; the size if there is
// none. It takes one call, whatever the length of the hole.
func (f *File) NextData(from int64) (int64, error) { return f.seek(from, f.Size(), unix.SEEK_DATA) }

func segment(from, to int64, hole bool) filetree.Segment {
	return filetree.Segment{Range: filetree.Range{Offset: from, Length: to - from}, Hole: hole}
}

// seek returns where, from pos on, the next data or hole begins; to at the latest.
func (f *File) seek(pos, to int64, whence int) (int64, error) {
	next, err := unix.Seek(f.data(), pos, whence)
	switch {
	case err == unix.ENXIO: // no more data, or the file has become shorter
		return to, nil
	case err != nil && unsupported(err) && whence == unix.SEEK_DATA:
		return pos, nil // all data
	case err != nil && unsupported(err):
		return to, nil
	case err != nil:
		return 0, fmt.Errorf("holes after %d: %w", pos, err)
	}
	return max(pos, min(next, to)), nil
}
