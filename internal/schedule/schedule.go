// Package schedule says when something is due.
//
//	0 3 * * *          five fields of cron: minute, hour, day of the month, month, day of
//	                   the week; lists, ranges, steps, and names such as mon-fri
//	@hourly            and @daily, @weekly, @monthly, @yearly
//	@every 15m         after so long, from the last run on
//	none               never
//
// What the fields mean is robfig/cron's affair, but which instants they are is not: it
// leaves out what the clocks skip. Here fields are matched against the calendar as such,
// and what matches is then looked for among the instants of a zone:
//
//	the clocks go                     2:30 every day        30 minutes past every hour
//	forward, from 2:00 to 3:00        at 3:00, right after  1:30, 3:30: every real hour
//	back, from 3:00 to 2:00           once, the first time  2:30 and 2:30: every real hour
//
// A schedule is of the second kind if it allows every hour of the day; its minutes then go
// on over a change as if the clocks had not been touched, which differs from what they show
// only where a change is not a whole hour. What runs every two hours is of the first kind.
//
// All of it is a function of its arguments, but for [Wait], which sleeps.
package schedule

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// A Schedule says when something runs. The zero Schedule is none: never.
type Schedule struct {
	spec  string            // as it was written; empty for none
	every time.Duration     // of @every, else 0
	cron  cron.SpecSchedule // of the others
}

// MaxSpec is how many bytes the text of a schedule may have.
const MaxSpec = 256

// The bounds of @every.
const (
	MinEvery = time.Second
	MaxEvery = 366 * 24 * time.Hour
)

// Forms is what Parse accepts, for messages.
const Forms = `five fields as in "0 3 * * *" (minute, hour, day of the month, month, day of the week), @hourly, @daily, @weekly, @monthly, @yearly, "@every 15m" or none`

var parser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// Parse reads a schedule. One that never matches, as the 30th of February, is an error.
func Parse(spec string) (Schedule, error) {
	text := strings.Join(strings.Fields(spec), " ")
	switch {
	case len(spec) > MaxSpec:
		return Schedule{}, fmt.Errorf("a schedule of %d bytes, at most %d are allowed", len(spec), MaxSpec)
	case text == "":
		return Schedule{}, errors.New("an empty schedule: want " + Forms)
	case strings.EqualFold(text, "none"):
		return Schedule{}, nil
	case strings.Contains(text, "TZ="): // cron's way, which would hide that two schedules are of two zones
		return Schedule{}, fmt.Errorf("%q: a schedule has no time zone of its own", spec)
	}
	if d, ok := strings.CutPrefix(text, "@every "); ok {
		every, err := time.ParseDuration(d)
		if err != nil {
			return Schedule{}, fmt.Errorf("%q is no schedule: %q is no duration, as in 15m or 1h30m", spec, d)
		}
		if every < MinEvery || every > MaxEvery || every%time.Second != 0 {
			return Schedule{}, fmt.Errorf("%q: want whole seconds, from %v to %v", spec, MinEvery, MaxEvery)
		}
		return Schedule{spec: text, every: every}, nil
	}
	s := Schedule{spec: text}
	parsed, err := parser.Parse(text)
	if err != nil {
		return Schedule{}, fmt.Errorf("%q is no schedule (%v): want %s", spec, err, Forms)
	}
	sc, ok := parsed.(*cron.SpecSchedule)
	if !ok { // @every in another spelling
		return Schedule{}, fmt.Errorf("%q is no schedule: want %s", spec, Forms)
	}
	s.cron = *sc
	s.cron.Location = time.Local // to cron this means that of the time it is asked about
	if s.match(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return Schedule{}, fmt.Errorf("%q never comes: no such day is in any year", spec)
	}
	return s, nil
}

// None reports whether s is never.
func (s Schedule) None() bool { return s.spec == "" }

// String returns s as Parse reads it.
func (s Schedule) String() string {
	if s.None() {
		return "none"
	}
	return s.spec
}

// Next returns the first run after a point in time, by the calendar of loc and in loc; the
// zero Time if s is none.
func (s Schedule) Next(after time.Time, loc *time.Location) time.Time {
	// Without the monotonic clock, which does not count what a machine sleeps.
	after = after.Round(0).In(loc)
	switch {
	case s.None():
		return time.Time{}
	case s.every > 0:
		return after.Add(s.every)
	}
	// From one change of the clocks to the next they are ahead of UTC by the same.
	for t := after; ; {
		start, end := t.ZoneBounds()
		if !end.IsZero() && !end.After(t) {
			// Beyond the changes that a zone lists, Go has every year end after 365 days,
			// so that the last one of a leap year lies behind its end.
			end = t.Add(24 * time.Hour)
		}
		ahead, before := offset(t), offset(t)
		if !start.IsZero() {
			before = offset(start.Add(-1))
		}
		next := s.within(after, start, before, ahead)
		if next.IsZero() || end.IsZero() || next.Before(end) {
			return next.In(loc)
		}
		t = end
	}
}

// within returns the first run that is after a point in time and not before start, at
// which what the clocks are ahead of UTC went from before to ahead, and stayed so. The zero
// start is none, where nothing ever changed before.
func (s Schedule) within(after, start time.Time, before, ahead time.Duration) time.Time {
	from := after
	if !start.IsZero() && from.Before(start) {
		from = start.Add(-time.Second)
	}
	if !s.everyHour() && ahead < before && !start.IsZero() {
		// Clocks that went back show again what they showed: it was run then.
		if again := start.Add(before - ahead - time.Second); from.Before(again) {
			from = again
		}
	}
	wall := s.match(clock(from, ahead))
	if wall.IsZero() {
		return wall
	}
	next := instant(wall, ahead)
	if ahead <= before || start.IsZero() {
		return next
	}
	// What the clocks skipped, when they went forward.
	if s.everyHour() {
		if left := s.match(clock(from, before)); left.Before(clock(start, ahead)) && instant(left, before).Before(next) {
			return instant(left, before)
		}
	} else if after.Before(start) && s.match(clock(start, before).Add(-time.Second)).Before(clock(start, ahead)) {
		return start
	}
	return next
}

// everyHour reports whether s allows every hour of the day.
func (s Schedule) everyHour() bool {
	const all = 1<<24 - 1
	return s.cron.Hour&all == all
}

// match returns the first time after wall that the fields match, on a clock that is never
// changed, which UTC is; the zero Time if there is none in the next decades.
func (s Schedule) match(wall time.Time) time.Time {
	// A cron schedule looks five years ahead. Between two leap years there may be eight.
	for range 4 {
		if t := s.cron.Next(wall); !t.IsZero() {
			return t
		}
		wall = wall.AddDate(4, 0, 0)
	}
	return time.Time{}
}

// clock returns what clocks that are ahead of UTC show at t, as a time of UTC.
func clock(t time.Time, ahead time.Duration) time.Time { return t.UTC().Add(ahead) }

// instant is the inverse of clock.
func instant(wall time.Time, ahead time.Duration) time.Time { return wall.Add(-ahead) }

// offset returns what clocks at t, in its zone, are ahead of UTC.
func offset(t time.Time) time.Duration {
	_, seconds := t.Zone()
	return time.Duration(seconds) * time.Second
}

// Ahead is how far the last run may lie in the future before it is taken for a lie: clocks
// are corrected by seconds all the time.
const Ahead = 5 * time.Minute

// Due returns the run that was missed since the last one, which is the zero Time if none
// was, and the next one after now. Both are zero if s is none. Any number of runs that were
// missed are one: missed is the time of the first of them, from which a [Delay] counts.
//
// If there was no last run, which the zero Time says, one is due at once. So it is if last
// is in the future: the clock was set back, and to wait until it is there again could be to
// wait for years.
func Due(s Schedule, last, now time.Time, loc *time.Location) (missed, next time.Time) {
	now = now.Round(0).In(loc)
	next = s.Next(now, loc)
	if s.None() {
		return missed, next
	}
	if last.IsZero() || last.Sub(now) > Ahead {
		return now, next
	}
	first := s.Next(last, loc)
	if first.After(now) {
		return missed, first
	}
	return first, next
}

// Delay returns how long after at to begin, from 0 to max: many machines with one schedule
// do not all come at once. It depends on its arguments alone, so that a restart does not
// shuffle it; seed is what differs between machines and sources.
func Delay(max time.Duration, seed string, at time.Time) time.Duration {
	if max <= 0 {
		return 0
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", at.Unix(), seed))
	n, _ := bits.Mul64(binary.BigEndian.Uint64(sum[:]), uint64(max)+1)
	return time.Duration(n)
}
