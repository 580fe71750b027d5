// Package when reads the points in time that people write, and writes the ones
// they read.
//
//	latest                      the newest snapshot
//	#12                         the snapshot with that sequence number
//	2026-11-20T15:04:05.123Z    RFC 3339, any offset, down to the nanosecond
//	2026-11-20 15:04[:05]       local time
//	2026-11-20                  the end of that day, local time
//	90m ago, 3h ago, 2d ago     before now: s, m, h, d, w; also 1h30m ago
//
// A point in time stands for the newest snapshot not after it; that is why a date
// is the last nanosecond of its day. Days and weeks are the calendar's: 1d ago is
// yesterday at this time of the day, also when the day had 23 or 25 hours.
//
// A local time that came twice, when the clocks went back, is the second of the
// two, so that no snapshot which showed that time is left out. One that never was,
// when they went forward, is the moment of the change.
package when

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Point is what --at names. Exactly one of its fields is set.
type Point struct {
	Latest bool
	Seq    uint64 // of a snapshot, from 1
	Time   time.Time
}

// String returns the point as Parse reads it.
func (p Point) String() string {
	switch {
	case p.Latest:
		return "latest"
	case p.Seq != 0:
		return "#" + strconv.FormatUint(p.Seq, 10)
	}
	return FormatTime(p.Time)
}

// Forms is the list of what Parse accepts, for help texts and hints.
const Forms = "2026-11-20T15:04:05Z (RFC 3339), \"2026-11-20 15:04\" (local time), 2026-11-20 (the end of that day), 3h ago, 2d ago, latest or #12 (a sequence number)"

// A ParseError reports a text that is no point in time.
type ParseError struct {
	Text   string
	Reason string // empty when the text looks like none of the forms
}

func (e *ParseError) Error() string {
	if e.Reason != "" {
		return fmt.Sprintf("time %q: %s", e.Text, e.Reason)
	}
	return fmt.Sprintf("time %q: not one of the accepted forms", e.Text)
}

// Hint lists the forms.
func (e *ParseError) Hint() string { return "accepted are " + Forms }

// Parse reads s. What is local is so in the location of now, and what is ago is
// so before now. The error is a [*ParseError].
func Parse(s string, now time.Time) (Point, error) {
	text := strings.TrimSpace(s)
	fail := func(reason string) (Point, error) { return Point{}, &ParseError{Text: s, Reason: reason} }
	if strings.EqualFold(text, "latest") {
		return Point{Latest: true}, nil
	}
	if digits, ok := strings.CutPrefix(text, "#"); ok {
		seq, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || seq == 0 {
			return fail("a sequence number is # and a number from 1 on")
		}
		return Point{Seq: seq}, nil
	}
	if rest, ok := strings.CutSuffix(strings.ToLower(text), "ago"); ok {
		t, reason := ago(rest, now)
		if reason != "" {
			return fail(reason)
		}
		return Point{Time: t}, nil
	}
	if len(text) > len("2006-01-02") && text[len("2006-01-02")] == ' ' {
		text = text[:len("2006-01-02")] + "T" + text[len("2006-01-02")+1:]
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return Point{Time: t}, nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if wall, err := time.Parse(layout, text); err == nil {
			_, last := instants(wall, now.Location())
			return Point{Time: last}, nil
		}
	}
	day, err := time.Parse("2006-01-02", text)
	if err == nil {
		first, _ := instants(day.AddDate(0, 0, 1), now.Location())
		return Point{Time: first.Add(-1)}, nil
	}
	if pe, ok := err.(*time.ParseError); ok && strings.HasSuffix(pe.Message, "out of range") {
		return fail(strings.TrimPrefix(pe.Message, ": "))
	}
	return fail("")
}

// ago reads the units before "ago" and counts them back from now.
func ago(s string, now time.Time) (t time.Time, reason string) {
	const want = "before ago there is a number and one of s, m, h, d and w"
	s = strings.ReplaceAll(s, " ", "")
	if s == "" {
		return t, want
	}
	var days, seconds uint64
	for s != "" {
		i := 0
		for i < len(s) && '0' <= s[i] && s[i] <= '9' {
			i++
		}
		if i == 0 || i == len(s) {
			return t, want
		}
		// The bound keeps every sum and product below within its type, and the
		// time within what RFC 3339 can say.
		n, err := strconv.ParseUint(s[:i], 10, 64)
		if err != nil || n > 1e9 {
			return t, "too long ago"
		}
		switch s[i] {
		case 's':
			seconds += n
		case 'm':
			seconds += n * 60
		case 'h':
			seconds += n * 3600
		case 'd':
			days += n
		case 'w':
			days += n * 7
		default:
			return t, want
		}
		s = s[i+1:]
		if days > 500_000 || seconds > 500_000*24*3600 {
			return t, "too long ago"
		}
	}
	t = now
	if days > 0 {
		wall := time.Date(now.Year(), now.Month(), now.Day()-int(days), now.Hour(), now.Minute(), now.Second(), now.Nanosecond(), time.UTC)
		_, t = instants(wall, now.Location())
	}
	t = t.Add(-time.Duration(seconds) * time.Second).Round(0)
	if t.Year() < 1 {
		return t, "too long ago"
	}
	return t, ""
}

// instants returns the first and the last instant at which clocks in loc show
// what wall shows in UTC. If they never do, both are the moment at which the
// clocks went past it.
func instants(wall time.Time, loc *time.Location) (first, last time.Time) {
	near := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), wall.Second(), wall.Nanosecond(), loc)
	start, end := near.ZoneBounds()
	offsets := []int{offset(near)}
	if !start.IsZero() {
		offsets = append(offsets, offset(start.Add(-1)))
	}
	if !end.IsZero() {
		offsets = append(offsets, offset(end))
	}
	found := false
	for _, o := range offsets {
		t := wall.Add(-time.Duration(o) * time.Second)
		if offset(t.In(loc)) != o {
			continue
		}
		if !found || t.Before(first) {
			first = t
		}
		if !found || t.After(last) {
			last = t
		}
		found = true
	}
	if !found {
		// In the gap near is either side of the change, in the zone before or after.
		change := start
		if near.Sub(start) > end.Sub(near) && !end.IsZero() || start.IsZero() {
			change = end
		}
		first, last = change, change
	}
	return first.In(loc), last.In(loc)
}

func offset(t time.Time) int {
	_, o := t.Zone()
	return o
}

// FormatTime writes t in RFC 3339, in UTC and always with nine digits, so that
// times sort as text. It is the form of all output that programs read.
func FormatTime(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// FormatLocal writes t for people: local time in loc, to the second.
func FormatLocal(t time.Time, loc *time.Location) string {
	return t.In(loc).Format("2006-01-02 15:04:05")
}
