// Package exclude says which paths of a source are left out of its history.
//
// Patterns have the syntax and the meaning of a .gitignore file at the root of
// the source, gitignore(5):
//
//	*.o           a name that ends in .o, at any depth
//	/build        only at the root: a slash in front or in the middle anchors
//	cache/        only directories
//	doc/*.pdf     * and ? stop at a slash
//	**/tmp, a/**  any number of directories
//	[a-f0-9]      one byte of a class; [!a] and [^a] are its complement
//	!keep.o       takes back what an earlier pattern excluded
//	\!name, \#x   a backslash takes the next character as it is
//
// The last pattern that matches decides. What is below an excluded directory is
// excluded, whatever a later pattern says, since the directory is not looked
// into. Empty patterns and those that start with # are skipped, spaces at the end
// are dropped unless escaped.
//
// Patterns may also stand in files of the tree itself, where they hold for the directory that the
// file is in and all below it: see [Dir].
//
// Patterns and paths are bytes: nothing is decoded or normalised, and ? stands
// for one byte. There is one departure from git: a pattern that could never match
// is an error here, since it is a slip whose price is a file too many in the
// history, or one too few. In a file of the tree it is one to be told of, and no more.
package exclude

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/bmatcuk/doublestar/v4"
)

// A PatternError reports a pattern that cannot be used.
type PatternError struct {
	Pattern string // as it was given
	Reason  string
}

func (e *PatternError) Error() string {
	return fmt.Sprintf("exclude pattern %q: %s", e.Pattern, e.Reason)
}

// A Matcher decides by the patterns it was compiled from. The nil Matcher
// excludes nothing. Its methods may be called concurrently.
type Matcher struct {
	rules rules
	seed  maphash.Seed
	// dirs remembers what was decided of directories, so that a walk does not
	// decide all the parents of every file again. An entry is replaced by the next
	// directory with its hash.
	dirs [256]atomic.Pointer[decision]
}

type decision struct {
	dir      string
	excluded bool
}

// Compile makes a Matcher of patterns, the first of them first. The error is a
// [*PatternError].
func Compile(patterns []string) (*Matcher, error) {
	m := &Matcher{seed: maphash.MakeSeed()}
	for _, p := range patterns {
		r, reason := parse(p)
		if reason != "" {
			return nil, &PatternError{Pattern: p, Reason: reason}
		}
		if r.how != never {
			m.rules = append(m.rules, r)
		}
	}
	return m, nil
}

// Excluded reports whether path is left out. It is relative to the root of the
// source, with slashes between its names and none at its ends; dir says that it
// is a directory. The root itself, "" or ".", is never excluded.
func (m *Matcher) Excluded(path string, dir bool) bool {
	if m == nil || len(m.rules) == 0 || path == "" || path == "." {
		return false
	}
	if dir {
		return m.dirExcluded(path)
	}
	if i := strings.LastIndexByte(path, '/'); i >= 0 && m.dirExcluded(path[:i]) {
		return true
	}
	return m.Match(path, false) == Excluded
}

// Match says what the patterns mean for path, without regard to what becomes of the directories
// above it.
func (m *Matcher) Match(path string, dir bool) Verdict {
	if m == nil || path == "" || path == "." {
		return Undecided
	}
	return m.rules.match(path, dir)
}

func (m *Matcher) dirExcluded(dir string) bool {
	slot := &m.dirs[maphash.String(m.seed, dir)%uint64(len(m.dirs))]
	if d := slot.Load(); d != nil && d.dir == dir {
		return d.excluded
	}
	excluded := false
	if i := strings.LastIndexByte(dir, '/'); i >= 0 {
		excluded = m.dirExcluded(dir[:i])
	}
	excluded = excluded || m.Match(dir, true) == Excluded
	slot.Store(&decision{strings.Clone(dir), excluded})
	return excluded
}

// A Verdict is what patterns say of a path.
type Verdict int8

// The verdicts.
const (
	Undecided Verdict = iota // no pattern matches
	Excluded
	Kept // one that starts with ! is the last that matches
)

// rules are those of one list or file, the first of them first.
type rules []rule

// match applies the rules to path alone, without its parents.
func (rs rules) match(path string, dir bool) Verdict {
	base := path[strings.LastIndexByte(path, '/')+1:]
	for i := range slices.Backward(rs) {
		r := &rs[i]
		if r.dirOnly && !dir {
			continue
		}
		name := base
		if r.anchored {
			name = path
		}
		if r.matches(name) {
			if r.negated {
				return Kept
			}
			return Excluded
		}
	}
	return Undecided
}

// A rule is one pattern, compiled.
type rule struct {
	negated  bool
	dirOnly  bool
	anchored bool // matched against the whole path, not the last name of it
	how      how
	text     string
}

// how says what a rule's text is.
type how uint8

const (
	never  how = iota // an empty line or a comment
	equal             // the name itself
	suffix            // what the name ends with: *.o without the star
	glob              // a doublestar pattern, in the form that latin1 gives
)

func (r *rule) matches(name string) bool {
	switch r.how {
	case equal:
		return name == r.text
	case suffix:
		return strings.HasSuffix(name, r.text)
	case glob:
		return doublestar.MatchUnvalidated(r.text, latin1(name))
	}
	return false
}

// latin1 makes every byte of s a character of its own, so that a library which
// matches characters matches bytes.
func latin1(s string) string {
	n := 0
	for i := range len(s) {
		if s[i] >= 0x80 {
			n++
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+n)
	for i := range len(s) {
		b = appendLatin1(b, s[i])
	}
	return string(b)
}

func appendLatin1(b []byte, c byte) []byte {
	if c < 0x80 {
		return append(b, c)
	}
	return append(b, 0xc0|c>>6, 0x80|c&0x3f)
}
