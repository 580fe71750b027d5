package watch

import (
	"slices"
	"strings"
	"time"
)

// What may wait before it becomes everything: looking at so many single names takes
// about as long as a scan, and memory is bounded.
const (
	maxNames = 100_000
	maxBytes = 16 << 20 // of all names together
	maxMoved = 1000     // in Changes.Moved
)

// A tracker knows what has changed and is not yet dealt with. It is a function of
// what it was told: it has no clock, and is not for concurrent use.
//
//	mark ──► waiting ──take──► taken ──done(true)──► forgotten
//	            ▲                │
//	            └───done(false)──┘
//
// A name is due when its last mark is settle old, or its first one maxDelay. All
// names that are due are taken together, at most once in settle. What is marked while
// they are being dealt with waits apart, so it is not forgotten with them.
type tracker struct {
	settle, maxDelay time.Duration
	epoch            time.Time // of the times in marks
	waiting          names
	taken            *names
	next             time.Duration // nothing is taken before
}

// names is a set of names with their times.
type names struct {
	all   *span // everything; marks is empty then
	marks map[string]mark
	bytes int // of the keys of marks
}

// A span has the times of the first and the last mark, since the tracker's epoch.
type span struct{ first, last time.Duration }

type mark struct {
	span
	tree  bool // all below it, too
	moved bool // something was moved from it or to it
	ended bool // a directory was, that is not there or is another now
}

func newTracker(settle, maxDelay time.Duration, now time.Time) *tracker {
	return &tracker{settle: settle, maxDelay: max(settle, maxDelay), epoch: now}
}

// mark says that path changed, and if tree is set perhaps all that is below it. It
// reports whether that made the names too many to be kept one by one.
func (t *tracker) mark(now time.Time, path string, tree bool) (tooMany bool) {
	return t.markAs(now, path, mark{tree: tree})
}

// markAs is mark of a name of which more is known.
func (t *tracker) markAs(now time.Time, path string, m mark) (tooMany bool) {
	if m.tree && path == "" {
		t.markAll(now)
		return false
	}
	at := now.Sub(t.epoch)
	m.span = span{at, at}
	return t.waiting.add(path, m)
}

// markAll says that anything may have changed.
func (t *tracker) markAll(now time.Time) {
	at := now.Sub(t.epoch)
	t.waiting.addAll(span{at, at})
}

func (s *span) join(o span) { s.first, s.last = min(s.first, o.first), max(s.last, o.last) }

func (n *names) add(path string, m mark) (tooMany bool) {
	if n.all != nil {
		// All is looked at after this; that a name changes does not put that off.
		n.all.first = min(n.all.first, m.first)
		return false
	}
	old, ok := n.marks[path]
	if ok {
		m.span.join(old.span)
		m.tree, m.moved, m.ended = m.tree || old.tree, m.moved || old.moved, m.ended || old.ended
	} else {
		if len(n.marks) >= maxNames || n.bytes+len(path) > maxBytes {
			n.addAll(m.span)
			return true
		}
		if n.marks == nil {
			n.marks = map[string]mark{}
		}
		n.bytes += len(path)
	}
	n.marks[path] = m
	return false
}

func (n *names) addAll(s span) {
	if n.all != nil {
		s.join(*n.all)
	}
	for _, m := range n.marks {
		s.first = min(s.first, m.first)
	}
	*n = names{all: &s}
}

func (t *tracker) due(s span) time.Duration { return min(s.last+t.settle, s.first+t.maxDelay) }

// nextDue returns when there will be something to take, if nothing more is marked.
func (t *tracker) nextDue() (at time.Time, ok bool) {
	if t.taken != nil {
		return time.Time{}, false
	}
	var soonest time.Duration
	if t.waiting.all != nil {
		soonest, ok = t.due(*t.waiting.all), true
	}
	for _, m := range t.waiting.marks {
		if d := t.due(m.span); !ok || d < soonest {
			soonest, ok = d, true
		}
	}
	return t.epoch.Add(max(soonest, t.next)), ok
}

// take returns what is due at now. There is nothing more to take until done.
func (t *tracker) take(now time.Time) (Changes, bool) {
	at := now.Sub(t.epoch)
	if t.taken != nil || at < t.next {
		return Changes{}, false
	}
	var c Changes
	taken := &names{}
	if t.waiting.all != nil {
		if at < t.due(*t.waiting.all) {
			return Changes{}, false
		}
		c.All = true
		*taken, t.waiting = t.waiting, names{}
	} else {
		for path, m := range t.waiting.marks {
			if at >= t.due(m.span) {
				taken.add(path, m)
			}
		}
		if len(taken.marks) == 0 {
			return Changes{}, false
		}
		// Names below a directory that ended lead to nothing once its end is known. If one was
		// written to that is among several of a file, the others are to be looked at before.
		for path, m := range t.waiting.marks {
			if taken.below(path, func(m mark) bool { return m.ended }) {
				taken.add(path, m)
			}
		}
		if len(taken.marks) == len(t.waiting.marks) {
			t.waiting = names{} // the map does not shrink by itself
		} else {
			for path := range taken.marks {
				delete(t.waiting.marks, path)
				t.waiting.bytes -= len(path)
			}
		}
		c = taken.changes()
		c.Moved = t.waiting.moved()
	}
	t.taken, t.next = taken, at+t.settle
	return c, true
}

// done ends what take began. What is not durable waits again, since when it changed
// first.
func (t *tracker) done(durable bool) {
	taken := t.taken
	t.taken = nil
	if durable {
		return
	}
	if taken.all != nil {
		t.waiting.addAll(*taken.all)
		return
	}
	for path, m := range taken.marks {
		t.waiting.add(path, m)
	}
}

// pending returns how many names are not dealt with, and since when the oldest. all says
// that everything is among them.
func (t *tracker) pending() (n int, all bool, oldest time.Time) {
	var first time.Duration
	found := false
	see := func(s span) {
		if !found || s.first < first {
			first, found = s.first, true
		}
	}
	for _, ns := range []*names{&t.waiting, t.taken} {
		if ns == nil {
			continue
		}
		if ns.all != nil {
			all = true
			see(*ns.all)
		}
		n += len(ns.marks)
		for _, m := range ns.marks {
			see(m.span)
		}
	}
	if found {
		oldest = t.epoch.Add(first)
	}
	return n, all, oldest
}

// changes returns the names in order, without those that a tree has anyway.
func (n *names) changes() Changes {
	var c Changes
	for path, m := range n.marks {
		if n.covered(path) {
			continue
		}
		if m.tree {
			c.Trees = append(c.Trees, path)
		} else {
			c.Paths = append(c.Paths, path)
		}
	}
	slices.Sort(c.Paths)
	slices.Sort(c.Trees)
	return c
}

// moved returns names that something was moved from or to, in order.
func (n *names) moved() []string {
	var all []string
	for path, m := range n.marks {
		if m.moved && len(all) < maxMoved {
			all = append(all, path)
		}
	}
	slices.Sort(all)
	return all
}

// covered reports whether a directory above path is there with all below it.
func (n *names) covered(path string) bool {
	return n.below(path, func(m mark) bool { return m.tree })
}

// below reports whether a directory above path is there, and is so.
func (n *names) below(path string, so func(mark) bool) bool {
	for {
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return false
		}
		path = path[:i]
		if so(n.marks[path]) {
			return true
		}
	}
}
