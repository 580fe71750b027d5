package localfs

import (
	"sync"

	"github.com/secrate/secrate/internal/filetree"
)

// A walk that is asked what it comes by looks at the entries of a directory before that, several
// at once: where the inodes are not in memory each look waits for the disk, or for a server.
const (
	aheadChunk = 32 // entries that one goroutine looks at, one after the other
	aheadMost  = 4  // chunks that are looked at, besides the one that is asked for
)

// An ahead looks at the entries of one directory, as far as they are asked for.
type ahead struct {
	dir     *Dir
	entries []Entry
	chunks  []*lookChunk // of those that are begun and not passed
	first   int          // the number of chunks[0]
	running *sync.WaitGroup
}

type lookChunk struct {
	looks [aheadChunk]Stat
	errs  [aheadChunk]error
	done  chan struct{}
}

// look is LookAt of entry i, which is no directory. It is asked in ascending order.
func (a *ahead) look(i int) (Stat, error) {
	n := i / aheadChunk
	if skip := n - a.first; skip > 0 {
		a.chunks = a.chunks[min(skip, len(a.chunks)):]
		a.first = n
	}
	for len(a.chunks) <= aheadMost {
		from := (a.first + len(a.chunks)) * aheadChunk
		if from >= len(a.entries) {
			break
		}
		a.chunks = append(a.chunks, a.begin(a.entries[from:min(from+aheadChunk, len(a.entries))]))
	}
	c := a.chunks[0]
	<-c.done
	return c.looks[i%aheadChunk], c.errs[i%aheadChunk]
}

func (a *ahead) begin(entries []Entry) *lookChunk {
	c := &lookChunk{done: make(chan struct{})}
	dir := a.dir.Retain()
	a.running.Go(func() {
		defer dir.Close()
		defer close(c.done)
		for i, e := range entries {
			if e.Kind != filetree.Dir { // that is looked at when it is opened
				c.looks[i], c.errs[i] = dir.LookAt(e.Name)
			}
		}
	})
	return c
}
