// Package keep says which of a source's local snapshots stay.
//
// A rule is a list of numbers and periods, as in "24 hourly, 7 daily, 4 weekly": of each
// of the newest 24 hours that have a snapshot the newest one stays, and so on. A snapshot
// stays if any part of the rule wants it. What is stored in a repository is not its concern:
// nothing there is ever deleted.
package keep

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Period is a stretch of the calendar, in local time.
type Period int

// The periods. Last is none: each snapshot is one of its own. A week begins on Monday.
const (
	Last Period = iota
	Hourly
	Daily
	Weekly
	Monthly
	Yearly
	periods
)

var names = [periods]string{"last", "hourly", "daily", "weekly", "monthly", "yearly"}

// MaxCount is how many of a period a rule may ask for.
const MaxCount = 100000

// A Rule says how many of each period stay; the zero Rule keeps none.
type Rule [periods]int

// Forms is what Parse accepts, for messages.
const Forms = `numbers and periods, as in "24 hourly, 7 daily"; the periods are last, hourly, daily, weekly, monthly and yearly`

// Parse reads a rule.
func Parse(text string) (r Rule, err error) {
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Fields(part)
		if len(words) == 0 && strings.TrimSpace(text) == "" {
			continue
		}
		if len(words) != 2 {
			return Rule{}, fmt.Errorf("%q is no rule: want %s", text, Forms)
		}
		p := -1
		for i, name := range names {
			if strings.EqualFold(words[1], name) {
				p = i
			}
		}
		n, err := strconv.Atoi(words[0])
		switch {
		case p < 0:
			return Rule{}, fmt.Errorf("%q is no period: want %s", words[1], Forms)
		case err != nil || n < 1 || n > MaxCount:
			return Rule{}, fmt.Errorf("%q is no number from 1 to %d: want %s", words[0], MaxCount, Forms)
		case r[p] > 0:
			return Rule{}, fmt.Errorf("%q has %s twice", text, names[p])
		}
		r[p] = n
	}
	return r, nil
}

// String returns the rule as Parse reads it.
func (r Rule) String() string {
	var parts []string
	for p, n := range r {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, names[p]))
		}
	}
	return strings.Join(parts, ", ")
}

// MarshalText writes the rule as String does.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what Parse does.
func (r *Rule) UnmarshalText(text []byte) (err error) {
	*r, err = Parse(string(text))
	return err
}

// Select reports for each of some times, oldest first, whether the snapshot of that time
// stays. A clock that was set back may put them out of order: their order in times counts.
func (r Rule) Select(times []time.Time) []bool {
	stays := make([]bool, len(times))
	for p, n := range r {
		var last string
		for i := len(times) - 1; i >= 0 && n > 0; i-- {
			if now := Period(p).of(times[i], i); now != last {
				stays[i], last = true, now
				n--
			}
		}
	}
	return stays
}

// of names the period that a time lies in; i is the number of the snapshot.
func (p Period) of(t time.Time, i int) string {
	switch p {
	case Hourly: // with the offset: when the clocks go back an hour comes twice
		return t.Format("2006-01-02T15Z07:00")
	case Daily:
		return t.Format("2006-01-02")
	case Weekly:
		y, w := t.ISOWeek()
		return fmt.Sprintf("%d-%d", y, w)
	case Monthly:
		return t.Format("2006-01")
	case Yearly:
		return t.Format("2006")
	}
	return strconv.Itoa(i)
}
