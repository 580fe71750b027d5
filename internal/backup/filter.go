package backup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/exclude"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
)

// A filter decides what of a tree is left out of its history, by whatever:
//
//	patterns of the configuration   they have the last word over those of files, also where
//	                                one with a ! keeps something
//	files of patterns in the tree   of the directory that they are in and of all below; see
//	                                [exclude.Dir]
//	CACHEDIR.TAG                    beside it nothing is kept; bford.info/cachedir
//	the flag nodump                 of a file, or of a directory with all below
//
// Where one leaves something out no other brings it back, and below it nothing is looked at. The
// root of the source is never left out, nor what it has by a tag of its own: whoever names a
// directory means it, and a file of 43 bytes must not end a history.
//
// It is of one goroutine, and of one scan: it may remember what it has read.
type filter struct {
	o    *Options
	tree *localfs.Tree
	m    *exclude.Matcher

	wrong []string // what of files is no pattern, or cannot be read: for warnings
	last  []*level // of the directory that leftOut was asked of, from the root down
}

// A level is what one directory says of what is in it.
type level struct {
	name   string // of the directory in that above it
	ignore *exclude.Dir
	cache  bool
}

// cacheTag is the name of a file that begins with cacheSignature and says that what is beside it
// can be made again.
const (
	cacheTag       = "CACHEDIR.TAG"
	cacheSignature = "Signature: 8a477f597d28d172789f06886806bc55"
)

// maxWrong bounds what is remembered for warnings.
const maxWrong = 100

// says reports whether a file of that name may say what else of its directory is left out.
func (f *filter) says(name string) bool {
	return f.o.SkipCaches && name == cacheTag || slices.Contains(f.o.ExcludeFiles, name)
}

// deep reports whether directories have a say.
func (f *filter) deep() bool { return f.o.SkipCaches || len(f.o.ExcludeFiles) > 0 }

// enter returns the level of a directory, whose path is relative to the root of the source; up is
// that of the directory above it.
func (f *filter) enter(up *level, d *localfs.Dir, path string) *level {
	if !f.deep() {
		return nil
	}
	l := &level{name: path[strings.LastIndexByte(path, '/')+1:]}
	if up != nil {
		l.ignore = up.ignore
	}
	for _, name := range f.o.ExcludeFiles {
		text, err := readSmall(d, name, exclude.MaxFile+1)
		if err == nil {
			l.ignore, err = l.ignore.With(path, text)
		}
		f.note(path, name, err, "excludes nothing")
	}
	if f.o.SkipCaches && path != "" {
		text, err := readSmall(d, cacheTag, len(cacheSignature))
		l.cache = err == nil && string(text) == cacheSignature
		if !errors.Is(err, localfs.ErrNotFile) { // what is no file is no tag
			f.note(path, cacheTag, err, "is taken for no tag")
		}
	}
	return l
}

// note remembers what is wrong with a file of a directory.
func (f *filter) note(dir, name string, err error, so string) {
	if err == nil || vanished(err) {
		return
	}
	if dir != "" {
		name = dir + "/" + name
	}
	what := fmt.Sprintf("%s %s: %v", name, so, err)
	if fe, ok := errors.AsType[*exclude.FileError](err); ok && fe.Line > 0 {
		what = fmt.Sprintf("%s: %v: it excludes nothing, the other lines do", name, err)
	}
	if len(f.wrong) < maxWrong {
		f.wrong = append(f.wrong, what)
	}
}

// readSmall reads at most max bytes of a regular file.
func readSmall(d *localfs.Dir, name string, max int) ([]byte, error) {
	file, err := d.OpenFile(name)
	if errors.Is(err, unix.ELOOP) {
		err = localfs.ErrNotFile
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.NewSectionReader(file, 0, int64(max)))
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", name, err)
	}
	return b, nil
}

// excludes reports whether an entry of a directory that is not left out is; l is the level of that.
// nodump is asked for the flag, if it matters.
func (f *filter) excludes(l *level, path string, kind filetree.Kind, nodump func() (bool, error)) bool {
	v := f.m.Match(path, kind == filetree.Dir)
	if l != nil {
		if v == exclude.Undecided {
			v = l.ignore.Match(path, kind == filetree.Dir)
		}
		if l.cache && (kind != filetree.File || path[strings.LastIndexByte(path, '/')+1:] != cacheTag) {
			return true
		}
	}
	if v == exclude.Excluded {
		return true
	}
	if f.o.SkipNodump && (kind == filetree.File || kind == filetree.Dir) {
		has, err := nodump()
		return err == nil && has // else it is kept, or found to be gone
	}
	return false
}

// leftOut reports whether what is at path is left out, by what is said of it or of a directory
// above it. Nothing on the way need have been walked: what those directories say is read. An error
// says that the way to it is gone, or cannot be read.
func (f *filter) leftOut(path string, kind filetree.Kind) (bool, error) {
	if !f.deep() && !f.o.SkipNodump {
		return f.m.Excluded(path, kind == filetree.Dir), nil
	}
	dir := f.tree.Root()
	if len(f.last) == 0 {
		f.last = append(f.last, f.enter(nil, dir, ""))
	}
	for depth, at := 1, 0; ; depth++ {
		n := strings.IndexByte(path[at:], '/')
		here, what := path, kind
		if n >= 0 {
			here, what = path[:at+n], filetree.Dir
		}
		name := here[at:]
		if f.excludes(f.last[depth-1], here, what, func() (bool, error) { return dir.Nodump(name) }) {
			return true, nil
		}
		if n < 0 {
			return false, nil
		}
		sub, err := dir.OpenDir(name)
		if err != nil {
			return false, err
		}
		defer sub.Close()
		if len(f.last) > depth && (f.last[depth] == nil || f.last[depth].name != name) {
			f.last = f.last[:depth]
		}
		if len(f.last) == depth {
			f.last = append(f.last, f.enter(f.last[depth-1], sub, here))
		}
		dir, at = sub, at+n+1
	}
}

// errLeftOut is of a directory that was not left out a moment ago.
var errLeftOut = fmt.Errorf("left out by now: %w", fs.ErrNotExist)

// levelOf returns the level of a directory that is not left out. If it is by now, since the tree
// has changed, that is an error as if it had gone.
func (f *filter) levelOf(d *localfs.Dir, path string) (*level, error) {
	if !f.deep() {
		return nil, nil
	}
	if path == "" {
		return f.enter(nil, d, ""), nil
	}
	if left, err := f.leftOut(path, filetree.Dir); err != nil {
		return nil, err
	} else if left {
		return nil, errLeftOut
	}
	return f.enter(f.last[strings.Count(path, "/")], d, path), nil
}
