package exclude

import (
	"bytes"
	"fmt"
	"strings"
)

// Limits of what the files of a tree may say. Everything in them is the word of whoever can write
// there, and each file is held against all patterns above it.
const (
	MaxFile     = 256 << 10 // bytes of one file
	maxPattern  = 4096      // bytes of one pattern
	maxPatterns = 10000     // that hold in one directory, those of the directories above among them
	maxFiles    = 64        // in which they are
)

// A FileError reports what is wrong with the text of a file of patterns. What it is about excludes
// nothing.
type FileError struct {
	Line   int // the first bad one, from 1; 0 when it is the whole file
	Reason string
	More   int // bad lines after that
}

func (e *FileError) Error() string {
	switch {
	case e.Line == 0:
		return e.Reason
	case e.More > 0:
		return fmt.Sprintf("line %d %s, and %d more are wrong", e.Line, e.Reason, e.More)
	}
	return fmt.Sprintf("line %d %s", e.Line, e.Reason)
}

// A Dir is what files of patterns say of what is in one directory: the files in it and those in
// the directories above. The nil Dir says nothing. A Dir does not change.
type Dir struct {
	up       *Dir
	at       int // where in a path what is relative to the file's directory begins
	rules    rules
	patterns int // of it and those above
	files    int
}

// With returns d with the patterns of one file more, which the directory at path has: relative to
// the root of the source, "" for that itself. It has the last word. As in git, spaces at the end
// of a line, a carriage return there and a byte order mark at the start are not of a pattern.
//
// The error is a [*FileError]. If it is about lines, the Dir has the others, as in git.
func (d *Dir) With(path string, text []byte) (*Dir, error) {
	next := &Dir{up: d}
	if path != "" {
		next.at = len(path) + 1
	}
	if d != nil {
		next.patterns, next.files = d.patterns, d.files
	}
	if len(text) > MaxFile {
		return d, &FileError{Reason: fmt.Sprintf("has more than %d KiB", MaxFile>>10)}
	}
	if next.files++; next.files > maxFiles {
		return d, &FileError{Reason: fmt.Sprintf("is one more than %d files of patterns in the directories above it", maxFiles)}
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	var bad *FileError
	n := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		n++
		line = strings.TrimSuffix(line, "\r")
		r, reason := parse(line)
		if reason == "" && len(line) > maxPattern && r.how != never {
			reason = fmt.Sprintf("has a pattern of more than %d bytes", maxPattern)
		}
		switch {
		case reason != "" && bad == nil:
			bad = &FileError{Line: n, Reason: reason}
		case reason != "":
			bad.More++
		case r.how != never:
			next.rules = append(next.rules, r)
		}
	}
	if next.patterns += len(next.rules); next.patterns > maxPatterns {
		return d, &FileError{Reason: fmt.Sprintf("makes more than %d patterns, with those of the directories above it", maxPatterns)}
	}
	if len(next.rules) == 0 {
		next = d
	}
	if bad != nil {
		return next, bad
	}
	return next, nil
}

// Match says what the patterns mean for path, without regard to what becomes of the directories
// above it. It is relative to the root of the source and in the directory or below; dir says that
// it is a directory. The file that is the deepest decides, if it says anything.
func (d *Dir) Match(path string, dir bool) Verdict {
	for ; d != nil; d = d.up {
		if v := d.rules.match(path[d.at:], dir); v != Undecided {
			return v
		}
	}
	return Undecided
}
