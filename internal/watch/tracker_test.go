package watch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const (
	testSettle = 2 * time.Second
	testDelay  = 10 * time.Second
)

// A modelMark is what the model knows of a name: all its marks, one after the other.
type modelMark struct {
	at   time.Duration
	path string
	tree bool
	all  bool
}

func (m modelMark) key() string {
	if m.all {
		return "*"
	}
	return m.path
}

// TestTracker: every mark is in a batch after it, and forgotten by a durable one alone;
// batches come neither too early nor too late.
func TestTracker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Unix(1e9, 0)
		var now time.Duration
		tr := newTracker(testSettle, testDelay, start)
		var open []modelMark  // not yet durable
		var taken []modelMark // of open, at the last take
		inFlight := false
		lastTake := time.Duration(-1 << 40)

		covers := func(c Changes, m modelMark) bool {
			if c.All {
				return true
			}
			if m.all {
				return false
			}
			if !m.tree && slices.Contains(c.Paths, m.path) {
				return true
			}
			return slices.ContainsFunc(c.Trees, func(top string) bool {
				return m.path == top || strings.HasPrefix(m.path, top+"/")
			})
		}
		// due is by the model: of each name the first and the last mark.
		due := func(waiting []modelMark) (at time.Duration, ok bool) {
			first, last := map[string]time.Duration{}, map[string]time.Duration{}
			for _, m := range waiting {
				k := m.key()
				if f, ok := first[k]; !ok || m.at < f {
					first[k] = m.at
				}
				last[k] = max(last[k], m.at)
			}
			for k := range first {
				d := min(last[k]+testSettle, first[k]+testDelay)
				if !ok || d < at {
					at, ok = d, true
				}
			}
			return max(at, lastTake+testSettle), ok
		}
		// Once everything is to be looked at, single names are not told apart.
		sawAll := false

		check := func() {
			n, all, oldest := tr.pending()
			if (n > 0 || all) != (len(open)+len(taken) > 0) {
				t.Fatalf("pending: %d names, all %t; the model has %v and %v", n, all, open, taken)
			}
			if len(open)+len(taken) > 0 {
				first := slices.MinFunc(slices.Concat(open, taken), func(a, b modelMark) int { return int(a.at - b.at) }).at
				if got := oldest.Sub(start); got != first {
					t.Fatalf("oldest at %v, want %v", got, first)
				}
			}
			next, ok := tr.nextDue()
			want, wantOK := due(open)
			if inFlight {
				wantOK = false
			}
			if ok != wantOK {
				t.Fatalf("next: %t, want %t", ok, wantOK)
			}
			if ok && !sawAll && next.Sub(start) != want {
				t.Fatalf("next due at %v, want %v", next.Sub(start), want)
			}
		}
		add := func(m modelMark) {
			if m.all {
				sawAll = true
			}
			open = append(open, m)
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { check() },
			"mark": func(t *rapid.T) {
				m := modelMark{
					at:   now,
					path: rapid.SampledFrom([]string{"a", "a/b", "a/b/c", "ab", "d", "d/e", "f"}).Draw(t, "path"),
					tree: rapid.IntRange(0, 4).Draw(t, "tree") == 0,
				}
				tr.mark(start.Add(now), m.path, m.tree)
				add(m)
			},
			"root": func(t *rapid.T) {
				tr.mark(start.Add(now), "", false)
				add(modelMark{at: now})
			},
			"all": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "really") == 0 {
					tr.markAll(start.Add(now))
					add(modelMark{at: now, all: true})
				}
			},
			"wait": func(t *rapid.T) {
				now += time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond
			},
			"take": func(t *rapid.T) {
				next, ok := tr.nextDue()
				c, took := tr.take(start.Add(now))
				if want := ok && !start.Add(now).Before(next); took != want {
					t.Fatalf("take: %t, want %t", took, want)
				}
				if !took {
					return
				}
				if now < lastTake+testSettle {
					t.Fatalf("two batches within %v", now-lastTake)
				}
				if !c.All && !sawAll {
					// All that is due and nothing else.
					for _, m := range open {
						var same []modelMark
						for _, o := range open {
							if o.key() == m.key() {
								same = append(same, o)
							}
						}
						d := min(same[len(same)-1].at+testSettle, minAt(same)+testDelay)
						if is := slices.Contains(c.Paths, m.path) || slices.Contains(c.Trees, m.path); is && d > now {
							t.Fatalf("%v taken before it is due", m)
						}
						if d <= now && !covers(c, m) {
							t.Fatalf("%v is due and was not taken: %+v", m, c)
						}
					}
				}
				var rest []modelMark
				for _, m := range open {
					if covers(c, m) && (c.All || ripe(open, m, now)) {
						taken = append(taken, m)
					} else {
						rest = append(rest, m)
					}
				}
				open, inFlight, lastTake = rest, true, now
				sawAll = sawAll && slices.ContainsFunc(open, func(m modelMark) bool { return m.all })
			},
			"done": func(t *rapid.T) {
				if !inFlight {
					return
				}
				durable := rapid.Bool().Draw(t, "durable")
				tr.done(durable)
				if !durable {
					for _, m := range taken {
						add(m)
					}
					slices.SortStableFunc(open, func(a, b modelMark) int { return int(a.at - b.at) })
				}
				taken, inFlight = nil, false
			},
		})
	})
}

func minAt(ms []modelMark) time.Duration {
	return slices.MinFunc(ms, func(a, b modelMark) int { return int(a.at - b.at) }).at
}

// ripe reports whether the name of m is due by all its marks.
func ripe(all []modelMark, m modelMark, now time.Duration) bool {
	first, last := m.at, m.at
	for _, o := range all {
		if o.key() == m.key() {
			first, last = min(first, o.at), max(last, o.at)
		}
	}
	return now >= min(last+testSettle, first+testDelay)
}

func TestTrackerBounds(t *testing.T) {
	start := time.Unix(1e9, 0)
	for _, tt := range []struct {
		name string
		len  int
		max  int
	}{
		{"names", 8, maxNames},
		{"bytes", 4096, maxBytes / 4096},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTracker(testSettle, testDelay, start)
			for i := range tt.max {
				if tr.mark(start.Add(time.Duration(i)), fmt.Sprintf("%0*d", tt.len, i), false) {
					t.Fatalf("too many at %d", i)
				}
			}
			if !tr.mark(start.Add(time.Second), fmt.Sprintf("%0*d", tt.len, tt.max), false) {
				t.Fatal("one more is not too many")
			}
			n, all, oldest := tr.pending()
			if n != 0 || !all || !oldest.Equal(start) {
				t.Errorf("pending %d %t %v", n, all, oldest)
			}
			c, ok := tr.take(start.Add(time.Hour))
			if diff := cmp.Diff(Changes{All: true}, c); !ok || diff != "" {
				t.Errorf("taken %t (-want +got):\n%s", ok, diff)
			}
			// Names that come back together with new ones are bounded as well.
			tr.done(true)
			for round := range 2 {
				for i := range tt.max/2 + 1 {
					tr.mark(start.Add(2*time.Hour), fmt.Sprintf("%0*d", tt.len, round*tt.max+i), false)
				}
				if round == 0 {
					tr.take(start.Add(3 * time.Hour))
				}
			}
			tr.done(false)
			if n, all, _ := tr.pending(); n != 0 || !all {
				t.Errorf("%d wait, all %t", n, all)
			}
		})
	}
}

// TestMaster: a file that is written without end is due after MaxDelay, one that is left
// alone after Settle, and a word on Due comes just then.
func TestMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMaster(testSettle, testDelay)
		defer m.close()
		start := time.Now()
		due := func() time.Duration {
			<-m.due
			return time.Since(start)
		}
		stop := make(chan struct{})
		stopped := make(chan struct{})
		go func() { // the log
			defer close(stopped)
			for {
				m.mark(time.Now(), "log", false)
				select {
				case <-stop:
					return
				case <-time.After(500 * time.Millisecond):
				}
			}
		}()
		time.Sleep(time.Second)
		m.mark(time.Now(), "file", false)
		if at := due(); at != 3*time.Second {
			t.Errorf("the file is due at %v", at)
		}
		c, ok := m.take()
		if diff := cmp.Diff(Changes{Paths: []string{"file"}}, c); !ok || diff != "" {
			t.Errorf("taken %t (-want +got):\n%s", ok, diff)
		}
		if _, ok := m.take(); ok {
			t.Error("taken twice")
		}
		m.done(true)
		if at := due(); at != testDelay {
			t.Errorf("the log is due at %v", at)
		}
		c, ok = m.take()
		if diff := cmp.Diff(Changes{Paths: []string{"log"}}, c); !ok || diff != "" {
			t.Errorf("taken %t (-want +got):\n%s", ok, diff)
		}
		time.Sleep(time.Second)
		close(stop)
		<-stopped
		m.done(false)
		if at := due(); at != testDelay+testSettle { // not sooner after the batch before
			t.Errorf("what failed is due at %v", at)
		}
		c, ok = m.take()
		if diff := cmp.Diff(Changes{Paths: []string{"log"}}, c); !ok || diff != "" {
			t.Errorf("taken %t (-want +got):\n%s", ok, diff)
		}
		m.done(true)
		time.Sleep(time.Hour)
		select {
		case <-m.due:
			t.Error("due without a mark")
		default:
		}
		// A word that nobody hears stays; a take that comes too early loses nothing.
		m.markAll(time.Now(), "test")
		start = time.Now()
		if _, ok := m.take(); ok {
			t.Error("taken before it settled")
		}
		time.Sleep(time.Minute)
		m.mark(time.Now(), "x", false)
		due()
		if c, ok := m.take(); !ok || !c.All {
			t.Errorf("taken %t %+v", ok, c)
		}
		m.done(true)
	})
}

// TestTrackerMoved takes one end of a move while the other is written to: it is told of, and
// comes when it is due.
func TestTrackerMoved(t *testing.T) {
	start := time.Now()
	tr := newTracker(2*time.Second, time.Minute, start)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	tr.markAs(at(0), "from", mark{moved: true})
	tr.markAs(at(0), "to", mark{moved: true})
	tr.mark(at(0), "busy", false)
	tr.mark(at(1), "to", false)
	tr.mark(at(1), "busy", false)
	c, ok := tr.take(at(2))
	if diff := cmp.Diff(Changes{Paths: []string{"from"}, Moved: []string{"to"}}, c); !ok || diff != "" {
		t.Errorf("taken (-want +got): %v\n%s", ok, diff)
	}
	tr.done(true)
	c, ok = tr.take(at(5))
	if diff := cmp.Diff(Changes{Paths: []string{"busy", "to"}}, c); !ok || diff != "" {
		t.Errorf("taken then (-want +got): %v\n%s", ok, diff)
	}
}

// TestTrackerEnded takes a directory that ended with what waits below it: alone it would lead to
// nothing then.
func TestTrackerEnded(t *testing.T) {
	start := time.Now()
	tr := newTracker(2*time.Second, 10*time.Second, start)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	for s := range 10 { // files come and go in it
		tr.mark(at(s), "d", false)
	}
	tr.mark(at(9), "d/link", false)
	tr.mark(at(9), "e/other", false)
	tr.markAs(at(9), "d", mark{ended: true})
	c, ok := tr.take(at(10))
	if diff := cmp.Diff(Changes{Paths: []string{"d", "d/link"}}, c); !ok || diff != "" {
		t.Errorf("taken (-want +got): %v\n%s", ok, diff)
	}
	tr.done(false)
	c, ok = tr.take(at(12))
	if diff := cmp.Diff(Changes{Paths: []string{"d", "d/link", "e/other"}}, c); !ok || diff != "" {
		t.Errorf("taken again (-want +got): %v\n%s", ok, diff)
	}
}
