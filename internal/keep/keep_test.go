package keep_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/keep"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{" ", ""},
		{"24 hourly, 7 daily", "24 hourly, 7 daily"},
		{"1 yearly,12 Monthly ,  3   last", "3 last, 12 monthly, 1 yearly"},
		{"100000 weekly", "100000 weekly"},
	} {
		r, err := keep.Parse(tt.text)
		if err != nil || r.String() != tt.want {
			t.Errorf("Parse(%q) = %q, %v; want %q", tt.text, r, err, tt.want)
		}
		if again, err := keep.Parse(r.String()); err != nil || again != r {
			t.Errorf("%q is read as %q, %v", r, again, err)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"daily", "is no rule"},
		{"7", "is no rule"},
		{"7 daily,", "is no rule"},
		{",", "is no rule"},
		{"7 days daily", "is no rule"},
		{"0 daily", `"0" is no number from 1`},
		{"-1 daily", `"-1" is no number`},
		{"100001 daily", "is no number"},
		{"x daily", `"x" is no number`},
		{"7 fortnightly", `"fortnightly" is no period`},
		{"7 daily, 3 daily", "has daily twice"},
	} {
		if r, err := keep.Parse(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q) = %q, %v; want an error with %q", tt.text, r, err, tt.want)
		}
	}
}

func TestSelect(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		rule  string
		times string // of 2026, oldest first
		in    *time.Location
		want  string // the numbers of those that stay, from 0
	}{
		{"no rule", "", "11-20T10:00 11-20T11:00", time.UTC, ""},
		{"no snapshot", "3 daily", "", time.UTC, ""},
		{"the newest ones", "2 last", "11-20T10:00 11-20T10:00 11-20T10:00", time.UTC, "1 2"},
		{"more than there are", "9 last", "11-20T10:00 11-20T10:01", time.UTC, "0 1"},
		{"the newest of an hour", "2 hourly", "11-20T09:10 11-20T10:10 11-20T10:50 11-20T11:05", time.UTC, "2 3"},
		{"hours without one do not count", "2 hourly", "11-18T09:10 11-20T11:05 11-20T11:06", time.UTC, "0 2"},
		{"the newest of a day", "2 daily", "11-18T23:59 11-19T00:00 11-19T23:59 11-20T00:00", time.UTC, "2 3"},
		{"a day is local", "2 daily", "11-18T22:59 11-18T23:00 11-19T22:59", berlin, "0 2"},
		{"weeks begin on Monday", "2 weekly", "11-14T10:00 11-15T10:00 11-16T10:00 11-22T10:00", time.UTC, "1 3"},
		{"months and years", "2 monthly, 1 yearly", "09-01T00:00 10-31T23:59 11-01T00:00 11-02T00:00", time.UTC, "1 3"},
		{"each part by itself", "1 last, 2 daily", "11-18T10:00 11-19T10:00 11-19T11:00 11-20T10:00", time.UTC, "2 3"},
		{"the hour that comes twice", "2 hourly", "10-25T00:30 10-25T01:30", berlin, "0 1"},
		{"a clock set back", "1 last, 1 daily", "11-20T10:00 11-19T10:00", time.UTC, "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rule, err := keep.Parse(tt.rule)
			if err != nil {
				t.Fatal(err)
			}
			var times []time.Time
			for _, s := range strings.Fields(tt.times) {
				at, err := time.Parse("2006-01-02T15:04", "2026-"+s)
				if err != nil {
					t.Fatal(err)
				}
				times = append(times, at.In(tt.in))
			}
			var got []string
			for i, stays := range rule.Select(times) {
				if stays {
					got = append(got, string(rune('0'+i)))
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("stays (-want +got):\n%s", diff)
			}
		})
	}
}
