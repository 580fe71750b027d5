package schedule

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // the tests are of these zones, also where the machine has no database

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func parse(t testing.TB, spec string) Schedule {
	t.Helper()
	s, err := Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const layout = "2006-01-02 15:04:05 -0700"

func at(t testing.TB, text string, loc *time.Location) time.Time {
	t.Helper()
	v, err := time.Parse(layout, text)
	if err != nil {
		t.Fatal(err)
	}
	return v.In(loc)
}

// TestNext is of days on which clocks are changed, and some on which they are not.
func TestNext(t *testing.T) {
	tests := []struct {
		name, zone, spec, after string
		want                    []string
	}{
		// Berlin: on 29 March 2026 from 2:00 to 3:00, on 25 October from 3:00 to 2:00.
		{"a plain day", "Europe/Berlin", "0 3 * * *", "2026-06-01 03:00:00 +0200",
			[]string{"2026-06-02 03:00:00 +0200", "2026-06-03 03:00:00 +0200"}},
		{"left out", "Europe/Berlin", "30 2 * * *", "2026-03-28 02:30:00 +0100",
			[]string{"2026-03-29 03:00:00 +0200", "2026-03-30 02:30:00 +0200"}},
		{"several left out are one", "Europe/Berlin", "*/10 2 * * *", "2026-03-28 02:50:00 +0100",
			[]string{"2026-03-29 03:00:00 +0200", "2026-03-30 02:00:00 +0200"}},
		{"left out, and right after it", "Europe/Berlin", "0 2,3 * * *", "2026-03-29 01:59:59 +0100",
			[]string{"2026-03-29 03:00:00 +0200", "2026-03-30 02:00:00 +0200"}},
		{"at the change", "Europe/Berlin", "0 2 * * *", "2026-03-29 01:59:59 +0100",
			[]string{"2026-03-29 03:00:00 +0200"}},
		{"asked right after the change", "Europe/Berlin", "30 2 * * *", "2026-03-29 03:00:00 +0200",
			[]string{"2026-03-30 02:30:00 +0200"}},
		{"twice on the clock, once run", "Europe/Berlin", "30 2 * * *", "2026-10-24 02:30:00 +0200",
			[]string{"2026-10-25 02:30:00 +0200", "2026-10-26 02:30:00 +0100"}},
		{"asked in the second hour", "Europe/Berlin", "30 2 * * *", "2026-10-25 02:10:00 +0100",
			[]string{"2026-10-26 02:30:00 +0100"}},
		{"the end of the second hour", "Europe/Berlin", "*/30 2,3 * * *", "2026-10-25 02:30:00 +0200",
			[]string{"2026-10-25 03:00:00 +0100", "2026-10-25 03:30:00 +0100", "2026-10-26 02:00:00 +0100"}},
		{"every hour, back", "Europe/Berlin", "0 * * * *", "2026-10-25 01:00:00 +0200",
			[]string{"2026-10-25 02:00:00 +0200", "2026-10-25 02:00:00 +0100", "2026-10-25 03:00:00 +0100"}},
		{"every hour, forward", "Europe/Berlin", "@hourly", "2026-03-29 00:30:00 +0100",
			[]string{"2026-03-29 01:00:00 +0100", "2026-03-29 03:00:00 +0200", "2026-03-29 04:00:00 +0200"}},
		{"every hour, forward, at half past", "Europe/Berlin", "30 * * * *", "2026-03-29 00:30:00 +0100",
			[]string{"2026-03-29 01:30:00 +0100", "2026-03-29 03:30:00 +0200"}},
		{"every so often", "Europe/Berlin", "@every 45m", "2026-10-25 02:30:00 +0200",
			[]string{"2026-10-25 02:15:00 +0100", "2026-10-25 03:00:00 +0100"}},
		{"the day", "Europe/Berlin", "@daily", "2026-03-29 00:00:00 +0100",
			[]string{"2026-03-30 00:00:00 +0200"}},
		{"names", "Europe/Berlin", "15 4 * jan,jul mon-fri", "2026-01-30 04:15:00 +0100",
			[]string{"2026-07-01 04:15:00 +0200"}},
		{"the 29th of February", "Europe/Berlin", "0 0 29 2 *", "2096-03-01 00:00:00 +0100",
			[]string{"2104-02-29 00:00:00 +0100"}},
		// New York: on 8 March 2026 from 2:00 to 3:00, on 1 November from 2:00 to 1:00.
		{"left out", "America/New_York", "5 2 * * sun", "2026-03-01 02:05:00 -0500",
			[]string{"2026-03-08 03:00:00 -0400", "2026-03-15 02:05:00 -0400"}},
		{"twice", "America/New_York", "0,59 1 * * *", "2026-11-01 00:00:00 -0400",
			[]string{"2026-11-01 01:00:00 -0400", "2026-11-01 01:59:00 -0400", "2026-11-02 01:00:00 -0500"}},
		{"every quarter", "America/New_York", "*/15 * * * *", "2026-11-01 01:45:00 -0400",
			[]string{"2026-11-01 01:00:00 -0500", "2026-11-01 01:15:00 -0500"}},
		// Lord Howe: on 4 October 2026 from 2:00 to 2:30, on 5 April from 2:00 to 1:30.
		{"half an hour left out", "Australia/Lord_Howe", "15 2 * * *", "2026-10-03 02:15:00 +1030",
			[]string{"2026-10-04 02:30:00 +1100", "2026-10-05 02:15:00 +1100"}},
		{"not left out", "Australia/Lord_Howe", "45 2 * * *", "2026-10-03 02:45:00 +1030",
			[]string{"2026-10-04 02:45:00 +1100"}},
		{"half an hour twice", "Australia/Lord_Howe", "45 1 * * *", "2026-04-05 01:00:00 +1100",
			[]string{"2026-04-05 01:45:00 +1100", "2026-04-06 01:45:00 +1030"}},
		{"every real hour, forward", "Australia/Lord_Howe", "0 * * * *", "2026-10-04 00:00:00 +1030",
			[]string{"2026-10-04 01:00:00 +1030", "2026-10-04 02:30:00 +1100", "2026-10-04 03:00:00 +1100"}},
		{"every real hour, back", "Australia/Lord_Howe", "45 * * * *", "2026-04-05 00:45:00 +1100",
			[]string{"2026-04-05 01:45:00 +1100", "2026-04-05 01:45:00 +1030", "2026-04-05 02:45:00 +1030"}},
		// Samoa had no 30 December 2011, São Paulo no midnight on 4 November 2018.
		{"a day left out", "Pacific/Apia", "0 12 * * *", "2011-12-29 12:00:00 -1000",
			[]string{"2011-12-31 00:00:00 +1400", "2011-12-31 12:00:00 +1400"}},
		{"no midnight", "America/Sao_Paulo", "@daily", "2018-11-03 00:00:00 -0300",
			[]string{"2018-11-04 01:00:00 -0200", "2018-11-05 00:00:00 -0200"}},
		{"no zone at all", "UTC", "30 2 * * *", "2026-03-29 02:30:00 +0000",
			[]string{"2026-03-30 02:30:00 +0000"}},
	}
	for _, tt := range tests {
		t.Run(tt.zone+" "+tt.name, func(t *testing.T) {
			loc, s := zone(t, tt.zone), parse(t, tt.spec)
			var got []string
			next := at(t, tt.after, loc)
			for range tt.want {
				next = s.Next(next, loc)
				got = append(got, next.Format(layout))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s after %s (-want +got):\n%s", tt.spec, tt.after, diff)
			}
		})
	}
}

// changes are instants near which the clocks of a zone are changed.
var changes = map[string][]string{
	"Europe/Berlin":       {"2026-03-29", "2026-10-25"},
	"America/New_York":    {"2026-03-08", "2026-11-01"},
	"Australia/Lord_Howe": {"2026-04-05", "2026-10-04"},
	"America/Sao_Paulo":   {"2018-02-18", "2018-11-04"},
	"Pacific/Apia":        {"2011-12-30"},
	"Asia/Kathmandu":      {"1986-01-01"}, // a quarter of an hour
	"Africa/Casablanca":   {"2026-02-15", "2026-03-22"},
	"UTC":                 {"2026-03-29"},
}

// TestNextEachMinute holds Next against clocks that are watched minute by minute.
func TestNextEachMinute(t *testing.T) {
	fields := func(t *rapid.T) string {
		minute := rapid.SampledFrom([]string{"0", "30", "15,45", "*/10", "*", "59", "7-9"}).Draw(t, "minute")
		hour := rapid.SampledFrom([]string{"*", "0", "1", "2", "3", "1-3", "*/2", "23", "0-23", "2,14"}).Draw(t, "hour")
		dow := rapid.SampledFrom([]string{"*", "*", "sun", "sat,mon"}).Draw(t, "day of the week")
		return minute + " " + hour + " * * " + dow
	}
	rapid.Check(t, func(rt *rapid.T) {
		name := rapid.SampledFrom([]string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Pacific/Apia", "Asia/Kathmandu", "Africa/Casablanca", "UTC"}).Draw(rt, "zone")
		loc, s := zone(t, name), parse(t, fields(rt))
		day := rapid.SampledFrom(changes[name]).Draw(rt, "day")
		begin, err := time.Parse(time.DateOnly, day)
		if err != nil {
			t.Fatal(err)
		}
		begin = begin.Add(-36 * time.Hour)
		end := begin.Add(84 * time.Hour)

		var want []string
		w := &watcher{s: s}
		for now := begin.Add(-26 * time.Hour); now.Before(end); now = now.Add(time.Minute) {
			if w.runs(now.In(loc)) && now.After(begin) {
				want = append(want, now.In(loc).Format(layout))
			}
		}
		var got []string
		for next := s.Next(begin, loc); next.Before(end); next = s.Next(next, loc) {
			got = append(got, next.Format(layout))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("%s in %s (-minute by minute, +Next):\n%s", s, name, diff)
		}
		// It does not matter when it is asked.
		ask := begin.Add(time.Duration(rapid.Int64Range(0, int64(80*time.Hour)).Draw(rt, "ask")))
		var first string
		for _, w := range want {
			if at(t, w, loc).After(ask) {
				first = w
				break
			}
		}
		if got := s.Next(ask, loc); got.Before(end) && got.Format(layout) != first {
			rt.Fatalf("%s in %s, after %s: %s, want %s", s, name, ask.In(loc), got.Format(layout), first)
		}
	})
}

// A watcher looks at a clock minute by minute.
type watcher struct {
	s      Schedule
	fixed  bool
	last   time.Time          // what was shown a minute ago, as a time of UTC
	seen   map[time.Time]bool // all that was ever shown
	gap    time.Time          // when the clock last went forward
	before time.Time          // what would have been shown then
	after  time.Time          // what was
}

// runs reports whether s runs at now, a minute after it was last asked.
func (w *watcher) runs(now time.Time) bool {
	matches := func(wall time.Time) bool { return w.s.cron.Next(wall.Add(-time.Second)).Equal(wall) }
	wall := time.Date(now.Year(), now.Month(), now.Day(), now.Hour(), now.Minute(), 0, 0, time.UTC)
	if w.seen == nil {
		w.seen, w.last = map[time.Time]bool{}, wall.Add(-time.Minute)
		for h := range 24 {
			w.fixed = w.fixed || w.s.cron.Hour&(1<<h) == 0
		}
	}
	again, jumped := w.seen[wall], wall.Sub(w.last) > time.Minute
	if jumped {
		w.gap, w.before, w.after = now, w.last.Add(time.Minute), wall
	}
	w.last = wall
	w.seen[wall] = true
	if !w.fixed {
		shifted := w.before.Add(now.Sub(w.gap)) // on a clock that was not changed
		return matches(wall) || shifted.Before(w.after) && matches(shifted)
	}
	if jumped {
		for left := w.before; left.Before(w.after); left = left.Add(time.Minute) {
			if matches(left) {
				return true
			}
		}
	}
	return matches(wall) && !again
}

func TestParse(t *testing.T) {
	for spec, want := range map[string]string{
		"none": "none", " None ": "none", "0  3 * * *": "0 3 * * *", "@hourly": "@hourly", "@every  1h30m": "@every 1h30m",
		"@midnight": "@midnight", "0 0 29 2 *": "0 0 29 2 *", "*/15 8-18 * * mon-fri": "*/15 8-18 * * mon-fri", "? ? ? ? ?": "? ? ? ? ?",
	} {
		s, err := Parse(spec)
		if err != nil || s.String() != want || s.None() != (want == "none") {
			t.Errorf("Parse(%q) = %v, %v; want %s", spec, s, err, want)
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Errorf("%v reads back as %v, %v", s, again, err)
		}
	}
	for _, spec := range []string{
		"", " ", "hourly", "@", "@every", "@every ", "@every x", "@every -5m", "@every 0s", "@every 1500ms", "@every 9000h", "@reboot", "@EVERY 5m",
		"* * * *", "* * * * * *", "60 * * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 8", "*/0 * * * *", "5-1 * * * *", "a * * * *",
		"0 0 30 2 *", "0 0 31 apr,jun *", "TZ=UTC 0 3 * * *", "CRON_TZ=UTC", "TZ=", strings.Repeat("1,", 300) + "1 * * * *",
	} {
		if s, err := Parse(spec); err == nil || s != (Schedule{}) {
			t.Errorf("Parse(%q) = %v, %v; want an error", spec, s, err)
		}
	}
	if next := (Schedule{}).Next(time.Now(), time.UTC); !next.IsZero() {
		t.Errorf("none is next at %v", next)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"0 3 * * *", "*/15 8-18 1,15 jan-jun mon-fri", "@hourly", "@every 15m", "none", "CRON_TZ=UTC", "* * 29 2 0", "?/3 * * * *"} {
		f.Add(s, int64(1_774_746_000))
	}
	loc := zone(f, "Australia/Lord_Howe")
	f.Fuzz(func(t *testing.T, spec string, unix int64) {
		s, err := Parse(spec)
		if err != nil {
			return
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Fatalf("%q: %v reads back as %v, %v", spec, s, again, err)
		}
		if s.None() {
			return
		}
		after := time.Unix(unix%(1<<33), 0) // up to the year 2242
		next := s.Next(after, loc)
		if !next.After(after) {
			t.Fatalf("%q: next after %v is %v", spec, after, next)
		}
		if !s.Next(next.Add(-time.Second), loc).Equal(next) && s.every == 0 {
			t.Fatalf("%q: next after %v is %v, but not a second before", spec, after, next)
		}
	})
}

func TestDue(t *testing.T) {
	const never = ""
	tests := []struct {
		name, spec, last, now string
		missed, next          string
	}{
		{"not yet", "0 3 * * *", "2026-06-01 03:00:00 +0200", "2026-06-01 09:00:00 +0200", never, "2026-06-02 03:00:00 +0200"},
		{"now", "0 3 * * *", "2026-06-01 03:00:00 +0200", "2026-06-02 03:00:00 +0200", "2026-06-02 03:00:00 +0200", "2026-06-03 03:00:00 +0200"},
		{"days were missed", "0 3 * * *", "2026-06-01 03:00:00 +0200", "2026-06-09 09:00:00 +0200", "2026-06-02 03:00:00 +0200", "2026-06-10 03:00:00 +0200"},
		{"never run", "0 3 * * *", never, "2026-06-09 09:00:00 +0200", "2026-06-09 09:00:00 +0200", "2026-06-10 03:00:00 +0200"},
		{"every", "@every 1h", "2026-06-01 03:00:00 +0200", "2026-06-01 03:59:59 +0200", never, "2026-06-01 04:00:00 +0200"},
		{"every, missed", "@every 1h", "2026-06-01 03:00:00 +0200", "2026-06-01 07:30:00 +0200", "2026-06-01 04:00:00 +0200", "2026-06-01 08:30:00 +0200"},
		{"set back by seconds", "@hourly", "2026-06-01 03:00:01 +0200", "2026-06-01 02:59:58 +0200", never, "2026-06-01 04:00:00 +0200"},
		{"set back by days", "@every 1h", "2026-06-09 03:00:00 +0200", "2026-06-01 12:10:00 +0200", "2026-06-01 12:10:00 +0200", "2026-06-01 13:10:00 +0200"},
		{"none", "none", "2026-06-09 03:00:00 +0200", "2026-06-01 12:10:00 +0200", never, never},
		{"none, never run", "none", never, "2026-06-01 12:10:00 +0200", never, never},
	}
	loc := zone(t, "Europe/Berlin")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var last time.Time
			if tt.last != never {
				last = at(t, tt.last, loc)
			}
			missed, next := Due(parse(t, tt.spec), last, at(t, tt.now, loc), loc)
			got := [2]string{}
			for i, v := range []time.Time{missed, next} {
				if !v.IsZero() {
					got[i] = v.Format(layout)
				}
			}
			if want := [2]string{tt.missed, tt.next}; got != want {
				t.Errorf("missed, next: %q, want %q", got, want)
			}
		})
	}
}

func TestDelay(t *testing.T) {
	when := time.Unix(1_774_746_000, 0)
	const most = 5 * time.Minute
	var sum time.Duration
	seen := map[time.Duration]bool{}
	for i := range 1000 {
		d := Delay(most, fmt.Sprint(i), when)
		if d < 0 || d > most {
			t.Fatalf("delay %v, want 0 to %v", d, most)
		}
		if again := Delay(most, fmt.Sprint(i), when.UTC()); again != d {
			t.Fatalf("delay %v, then %v", d, again)
		}
		seen[d] = true
		sum += d
	}
	if mean := sum / 1000; len(seen) < 990 || mean < 2*time.Minute || mean > 3*time.Minute {
		t.Errorf("%d different delays of 1000, %v on average", len(seen), mean)
	}
	if Delay(most, "a", when) == Delay(most, "a", when.Add(time.Hour)) {
		t.Error("the same delay an hour later")
	}
	for _, most := range []time.Duration{0, -1} {
		if d := Delay(most, "a", when); d != 0 {
			t.Errorf("delay of at most %v: %v", most, d)
		}
	}
	for i := range 100 {
		if d := Delay(1, fmt.Sprint(i), when); d < 0 || d > 1 {
			t.Errorf("delay of at most 1ns: %v", d)
		}
	}
	if d := Delay(1<<63-1, "a", when); d < 0 {
		t.Errorf("delay %v", d)
	}
}

// A wall is a clock that can be set, and stands apart from what timers count.
type wall struct{ ahead atomic.Int64 }

func (w *wall) now() time.Time          { return time.Now().Add(time.Duration(w.ahead.Load())) }
func (w *wall) forward(d time.Duration) { w.ahead.Add(int64(d)) }

// drive is a loop as of a daemon: it runs what is due and waits for the next, until ctx ends.
func drive(ctx context.Context, s Schedule, loc *time.Location, last time.Time, now func() time.Time, run func(time.Time)) error {
	for {
		missed, next := Due(s, last, now(), loc)
		if !missed.IsZero() {
			last = now()
			run(last.In(loc))
			continue
		}
		if err := Wait(ctx, next, now); err != nil {
			return err
		}
	}
}

// TestLoop drives timers over both changes of the clocks, a machine that sleeps, and clocks
// that are set.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loc := zone(t, "Europe/Berlin")
		var w wall
		set := func(text string) { w.forward(at(t, text, loc).Sub(w.now())) }
		var got []string
		start := func(spec string) (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			s, last := parse(t, spec), w.now()
			go func() {
				done <- drive(ctx, s, loc, last, w.now, func(now time.Time) { got = append(got, now.Format(layout)) })
			}()
			return func() {
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("loop ended with %v", err)
				}
			}
		}
		check := func(name string, want ...string) {
			t.Helper()
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
			got = nil
		}

		set("2026-03-27 12:00:00 +0100")
		stop := start("30 2 * * *")
		time.Sleep(4 * 24 * time.Hour)
		stop()
		check("forward", "2026-03-28 02:30:00 +0100", "2026-03-29 03:00:00 +0200", "2026-03-30 02:30:00 +0200", "2026-03-31 02:30:00 +0200")

		set("2026-10-25 00:45:00 +0200")
		stop = start("@hourly")
		time.Sleep(4 * time.Hour)
		stop()
		check("back", "2026-10-25 01:00:00 +0200", "2026-10-25 02:00:00 +0200", "2026-10-25 02:00:00 +0100", "2026-10-25 03:00:00 +0100")

		// Asleep for two days: timers stand still, the clock does not. One run, as soon as a
		// step of Wait is over.
		set("2026-06-01 02:59:50 +0200")
		stop = start("0 3 * * *")
		time.Sleep(15 * time.Second)
		w.forward(50 * time.Hour) // it is 5:00:05 two days later
		time.Sleep(2 * time.Hour)
		stop()
		check("asleep", "2026-06-01 03:00:00 +0200", "2026-06-03 05:00:30 +0200")

		// Set back by a week: it is run once, and goes on by the new clock.
		set("2026-06-08 02:00:00 +0200")
		stop = start("0 3 * * *")
		time.Sleep(90*time.Minute + 5*time.Second) // not when Wait looks, too
		w.forward(-7 * 24 * time.Hour)             // it is 3:30:05 on the 1st
		time.Sleep(24 * time.Hour)
		w.forward(9 * 24 * time.Hour) // and then on the 11th
		time.Sleep(time.Hour)
		stop()
		check("set", "2026-06-08 03:00:00 +0200", "2026-06-01 03:30:30 +0200", "2026-06-02 03:00:00 +0200", "2026-06-11 03:30:30 +0200")
	})
}

func TestWaitEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Wait(ctx, time.Now().Add(time.Hour), time.Now); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	if err := Wait(t.Context(), time.Now(), time.Now); err != nil {
		t.Errorf("Wait for now: %v", err)
	}
}
