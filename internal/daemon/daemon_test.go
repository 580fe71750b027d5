package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/daemon"
	"github.com/secrate/secrate/internal/schedule"
	"github.com/secrate/secrate/internal/watch"
)

// step is how often a Bring asks whether others wait; not a time at which a schedule comes.
const step = 70 * time.Second

// A recorder is a Worker that does nothing but note when it was asked to, and fail as it is told.
type recorder struct {
	t *testing.T

	mu     sync.Mutex
	calls  []string // "15:04:05 what source"
	events []daemon.Event
	fail   func(what string) error
	takes  time.Duration // how long a Bring takes
	yields bool          // and whether it makes room for others
	busy   int           // Brings at once
}

func (r *recorder) note(what string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, time.Now().Format("15:04:05 ")+what)
	if r.fail != nil {
		return r.fail(what)
	}
	return nil
}

func (r *recorder) Take(_ context.Context, source string) error { return r.note("take " + source) }

func (r *recorder) Bring(ctx context.Context, source string, only *watch.Changes, yield func() bool) (daemon.Outcome, error) {
	err := r.note("bring " + source)
	r.mu.Lock()
	r.busy++
	if r.busy > 1 {
		r.t.Error("two sources are brought at once")
	}
	r.mu.Unlock()
	for left := r.takes; left > 0 && ctx.Err() == nil; left -= step {
		select {
		case <-time.After(min(left, step)):
		case <-ctx.Done():
			err = ctx.Err()
		}
		if r.yields && yield() {
			err = daemon.ErrMore
			break
		}
	}
	r.mu.Lock()
	r.busy--
	r.mu.Unlock()
	return daemon.Outcome{Seq: 1, Snapshots: 1}, err
}

func (r *recorder) Verify(context.Context) error { return r.note("verify") }

func (r *recorder) Tell(_ context.Context, e daemon.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	return nil
}

// since returns what was called after so many calls.
func (r *recorder) since(n int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls[n:])
}

func every(t *testing.T, spec string) schedule.Schedule {
	t.Helper()
	s, err := schedule.Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs a daemon for a while; the clock is that of synctest, which begins at midnight UTC.
func run(t *testing.T, r *recorder, state string, p daemon.Plan, long time.Duration) *daemon.Daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := daemon.New(daemon.Options{Worker: r, StateDir: state, Seed: "seed", Log: slog.New(slog.DiscardHandler)})
	d.Apply(p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.Run(ctx)
	}()
	time.Sleep(long)
	synctest.Wait()
	cancel()
	<-done
	return d
}

// TestSchedules: a volume that has never been kept is at once, then at its times; a directory
// is scanned; snapshots are taken at their time while another source is brought.
func TestSchedules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{t: t, takes: 7 * time.Minute}
		run(t, r, t.TempDir(), daemon.Plan{
			Sources: []daemon.Source{
				{Name: "vol", Volume: true, Schedule: every(t, "*/15 * * * *")},
				{Name: "dir", Schedule: every(t, "@hourly"), Newest: time.Now().Add(-time.Minute)},
				{Name: "never"},
			},
			Verify: every(t, "30 0 * * *"), Location: time.UTC,
		}, 62*time.Minute)
		got := r.since(0)
		for _, w := range []string{"00:00:00 take vol", "00:15:00 take vol", "00:30:00 take vol", "00:45:00 take vol", "01:00:00 take vol", "00:30:00 verify", "00:30:00 bring vol"} {
			if !slices.Contains(got, w) {
				t.Errorf("%q is missing among\n%s", w, strings.Join(got, "\n"))
			}
		}
		for _, g := range got {
			if strings.Contains(g, "never") {
				t.Errorf("%q", g)
			}
		}
	})
}

// TestMissed: what was missed while no daemon ran is made up for once.
func TestMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{t: t}
		state := t.TempDir()
		p := daemon.Plan{Sources: []daemon.Source{{Name: "dir", Schedule: every(t, "0 3 * * *"), Newest: time.Now()}}, Location: time.UTC}
		run(t, r, state, p, 4*time.Hour)
		if diff := cmp.Diff([]string{"03:00:00 bring dir"}, r.since(0)); diff != "" {
			t.Errorf("the first day (-want +got):\n%s", diff)
		}
		time.Sleep(3*24*time.Hour + 5*time.Hour) // it is 09:00
		run(t, r, state, p, time.Hour)
		if diff := cmp.Diff([]string{"09:00:00 bring dir"}, r.since(1)); diff != "" {
			t.Errorf("days later (-want +got):\n%s", diff)
		}
		run(t, r, state, p, 12*time.Hour)
		if len(r.since(2)) > 0 {
			t.Errorf("and again: %q", r.since(2))
		}
	})
}

// TestDelay: the random delay is the same after a restart, and no longer than it may be.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{t: t}
		state := t.TempDir()
		p := daemon.Plan{Sources: []daemon.Source{{Name: "dir", Schedule: every(t, "0 * * * *"), Delay: 50 * time.Minute, Newest: time.Now()}}, Location: time.UTC}
		for range 24 * 6 {
			run(t, r, state, p, 10*time.Minute)
		}
		restarted := r.since(0)
		if len(restarted) < 22 || len(restarted) > 24 {
			t.Errorf("%d runs in a day: %q", len(restarted), restarted)
		}
		hours, minutes := map[string]bool{}, map[string]bool{}
		for _, c := range restarted {
			if hours[c[:2]] {
				t.Errorf("twice in one hour: %q", restarted)
			}
			hours[c[:2]], minutes[c[3:5]] = true, true
			if c[3:5] > "50" {
				t.Errorf("too late: %s", c)
			}
		}
		if len(minutes) < 8 {
			t.Errorf("not much of a chance: %q", restarted)
		}
	})
}

// TestRetries: what fails is tried again, less and less often, and keeps nothing else waiting;
// somebody is told once a day, and when it is over.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := errors.New("the network is gone")
		r := &recorder{t: t, fail: func(what string) error {
			if what == "bring vol" && time.Now().Before(time.Date(2000, 1, 2, 12, 0, 0, 0, time.UTC)) {
				return lost
			}
			return nil
		}}
		run(t, r, t.TempDir(), daemon.Plan{Sources: []daemon.Source{
			{Name: "vol", Volume: true, Schedule: every(t, "0 */6 * * *")},
			{Name: "dir", Schedule: every(t, "0 * * * *"), Newest: time.Now()},
		}, Location: time.UTC}, 40*time.Hour)
		var tries []string
		dirs := 0
		for _, c := range r.since(0) {
			switch {
			case strings.HasSuffix(c, "bring vol"):
				tries = append(tries, c[:8])
			case strings.HasSuffix(c, "bring dir"):
				dirs++
			}
		}
		if diff := cmp.Diff([]string{"00:00:00", "00:00:10", "00:00:30", "00:01:10", "00:02:30", "00:05:10", "00:10:30", "00:21:10", "00:36:10", "00:51:10"}, tries[:10]); diff != "" {
			t.Errorf("tries (-want +got):\n%s", diff)
		}
		if dirs != 40 {
			t.Errorf("the other source was kept %d times", dirs)
		}
		var told []string
		for _, e := range r.events {
			if e.New {
				told = append(told, fmt.Sprint(e.Kind, " ", e.Source, " ", e.Err, " ", e.Since.Format("02 15:04"), " ", e.AllWell))
			}
		}
		if diff := cmp.Diff([]string{"failed vol the network is gone 01 00:00 false", "failed vol the network is gone 01 00:00 false", "succeeded vol <nil> 01 00:00 true"}, told); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
	})
}

// TestLater: what cannot be begun is no failure, and begun soon.
func TestLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		r := &recorder{t: t, fail: func(string) error {
			if n++; n <= 3 {
				return fmt.Errorf("%w: somebody else is at work", daemon.ErrLater)
			}
			return nil
		}}
		d := run(t, r, t.TempDir(), daemon.Plan{Sources: []daemon.Source{{Name: "dir", Schedule: every(t, "@daily")}}, Location: time.UTC}, 10*time.Minute)
		if diff := cmp.Diff([]string{"00:00:00 bring dir", "00:00:15 bring dir", "00:00:30 bring dir", "00:00:45 bring dir"}, r.since(0)); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		var told []daemon.Kind
		for _, e := range r.events {
			told = append(told, e.Kind)
		}
		if diff := cmp.Diff([]daemon.Kind{daemon.Started, daemon.Succeeded}, told); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		if st := d.Status(); st.Sources[0].Total.Failures != 0 || st.Sources[0].Bring.Fails != 0 {
			t.Errorf("status %+v", st.Sources[0])
		}
	})
}

// TestYields: what takes long makes room for others, and goes on behind them.
func TestYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{t: t, takes: 10 * time.Minute, yields: true}
		run(t, r, t.TempDir(), daemon.Plan{Sources: []daemon.Source{
			{Name: "long", Schedule: every(t, "@daily")},
			{Name: "other", Schedule: every(t, "5 0 * * *"), Newest: time.Now()},
		}, Location: time.UTC}, 9*time.Minute)
		want := []string{"00:00:00 bring long", "00:05:50 bring other", "00:07:00 bring long", "00:08:10 bring other"}
		if diff := cmp.Diff(want, r.since(0)); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		for _, e := range r.events {
			if e.Kind != daemon.Started {
				t.Errorf("nothing was done yet, and told is %v %v", e.Kind, e.Err)
			}
		}
	})
}

// TestApply changes the configuration under way: what stays is not disturbed, what goes is left
// alone, and a source that comes is kept at once.
func TestApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{t: t}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		d := daemon.New(daemon.Options{Worker: r, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
		hourly := every(t, "0 * * * *")
		d.Apply(daemon.Plan{Sources: []daemon.Source{{Name: "a", Schedule: hourly}, {Name: "b", Schedule: hourly}}, Location: time.UTC})
		go d.Run(ctx)
		time.Sleep(90 * time.Minute)
		d.Apply(daemon.Plan{Sources: []daemon.Source{{Name: "c", Schedule: hourly}, {Name: "a", Schedule: hourly}}, Location: time.UTC})
		time.Sleep(time.Hour)
		synctest.Wait()
		got := r.since(0)
		slices.Sort(got)
		want := []string{"00:00:00 bring a", "00:00:00 bring b", "01:00:00 bring a", "01:00:00 bring b", "01:30:00 bring c", "02:00:00 bring a", "02:00:00 bring c"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

// TestStop: what is being done is stopped with the daemon, and is done by the next one.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{t: t, takes: time.Hour}
		state := t.TempDir()
		p := daemon.Plan{Sources: []daemon.Source{{Name: "vol", Volume: true, Schedule: every(t, "@daily"), Newest: time.Now()}}, Location: time.UTC}
		run(t, r, state, p, 5*time.Minute) // what an earlier run may have left
		run(t, r, state, p, 5*time.Minute)
		if diff := cmp.Diff([]string{"00:00:00 bring vol", "00:05:00 bring vol"}, r.since(0)); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		for _, e := range r.events {
			if e.Kind == daemon.Failed {
				t.Errorf("to be stopped is no failure: %+v", e)
			}
		}
	})
}

// TestFullDisk: that times cannot be kept stops nothing, and is said.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{t: t}
		state := filepath.Join(t.TempDir(), "gone")
		d := run(t, r, state, daemon.Plan{Sources: []daemon.Source{{Name: "dir", Schedule: every(t, "*/10 * * * *")}}, Location: time.UTC}, 35*time.Minute)
		if got := len(r.since(0)); got != 4 {
			t.Errorf("%d runs: %q", got, r.since(0))
		}
		if !errors.Is(d.Status().Times, os.ErrNotExist) {
			t.Errorf("status says %v", d.Status().Times)
		}
	})
}

// A watching is a daemon that watches a real directory.
type watching struct {
	t    *testing.T
	r    *watcherRecorder
	d    *daemon.Daemon
	dir  string
	stop func()
}

func startWatching(t *testing.T, unread ...int) *watching {
	w := &watching{t: t, r: &watcherRecorder{changes: make(chan *watch.Changes, 16), unread: unread}, dir: t.TempDir()}
	w.r.t = t
	ctx, cancel := context.WithCancel(t.Context())
	w.d = daemon.New(daemon.Options{Worker: w.r, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	w.d.Apply(daemon.Plan{Sources: []daemon.Source{{Name: "dir", Newest: time.Now(), Watch: &daemon.Watch{Root: w.dir,
		Options: watch.Options{Settle: 100 * time.Millisecond}}}}, Location: time.UTC})
	done := make(chan struct{})
	go func() { defer close(done); w.d.Run(ctx) }()
	w.stop = func() { cancel(); <-done }
	t.Cleanup(w.stop)
	return w
}

// next returns what is brought next.
func (w *watching) next() *watch.Changes {
	w.t.Helper()
	select {
	case c := <-w.r.changes:
		return c
	case <-time.After(30 * time.Second):
		w.t.Fatal("nothing is brought")
		return nil
	}
}

func (w *watching) write(name string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(name), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// TestWatched: what changes is brought, and only that.
func TestWatched(t *testing.T) {
	w := startWatching(t)
	if c := w.next(); c != nil {
		t.Errorf("at first only %+v is brought", c)
	}
	w.write("x")
	if c := w.next(); c == nil || !slices.Contains(c.Paths, "x") {
		t.Errorf("brought is %+v", c)
	}
	w.stop()
	if st := w.d.Status(); st.Sources[0].Watch != nil {
		t.Errorf("it is still watched: %+v", st.Sources[0].Watch)
	}
}

// TestUnread: what could not be read is said until all was looked at again.
func TestUnread(t *testing.T) {
	w := startWatching(t, 3)
	w.next()
	unread := func(runs int64) int {
		for t.Context().Err() == nil {
			if s := w.d.Status().Sources[0]; s.Total.Runs == runs {
				return s.Outcome.Unread
			}
			time.Sleep(time.Millisecond)
		}
		return 0
	}
	if n := unread(1); n != 3 {
		t.Errorf("%d could not be read", n)
	}
	w.write("x")
	if c := w.next(); c == nil {
		t.Error("all is brought")
	}
	if n := unread(2); n != 3 {
		t.Errorf("another file was brought, and of %d is said that they could not be read", n)
	}
}

// TestUnreadChange: what has changed and could not be read is looked for again, with everything
// else, and once.
func TestUnreadChange(t *testing.T) {
	daemon.SetAgainAfter(t, 100*time.Millisecond)
	w := startWatching(t, 0, 1, 1)
	w.next()
	w.write("x")
	if c := w.next(); c == nil {
		t.Error("everything is brought, and not what has changed")
	}
	if c := w.next(); c != nil {
		t.Errorf("then only %+v is brought", c)
	}
	select {
	case c := <-w.r.changes: // what cannot be read at all is no reason to go on and on
		t.Errorf("and then %+v", c)
	case <-time.After(time.Second):
	}
}

type watcherRecorder struct {
	recorder
	changes chan *watch.Changes
	unread  []int // of each Bring
}

func (r *watcherRecorder) Bring(_ context.Context, _ string, only *watch.Changes, _ func() bool) (daemon.Outcome, error) {
	out := daemon.Outcome{}
	if len(r.unread) > 0 {
		out.Unread, r.unread = r.unread[0], r.unread[1:]
	}
	r.changes <- only
	return out, nil
}

// TestNullStateDir: a file of times may be of any bytes.
func TestNullState(t *testing.T) {
	for _, text := range []string{"null", "", "{", "[]", `{"snap dir": 3}`} {
		synctest.Test(t, func(t *testing.T) {
			state := t.TempDir()
			if err := os.WriteFile(filepath.Join(state, "schedule.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r := &recorder{t: t}
			run(t, r, state, daemon.Plan{Sources: []daemon.Source{{Name: "dir", Schedule: every(t, "@daily")}}, Location: time.UTC}, time.Minute)
			if len(r.since(0)) != 1 {
				t.Errorf("%q: %q", text, r.since(0))
			}
		})
	}
}

// TestWaits: what cannot be begun waits since it was wanted, however often it was tried.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{t: t, fail: func(string) error { return daemon.ErrLater }}
		began := time.Now()
		d := run(t, r, t.TempDir(), daemon.Plan{Sources: []daemon.Source{{Name: "dir", Schedule: every(t, "@daily")}}, Location: time.UTC}, 10*time.Minute)
		if since := d.Status().Sources[0].Waiting; !since.Equal(began) {
			t.Errorf("it waits since %v, not %v", since, began)
		}
	})
}
