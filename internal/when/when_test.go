package when

import (
	"errors"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // so that the zones below are there on every machine

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		s    string
		zone string // Europe/Berlin when empty
		now  string // 2026-11-20T12:00:00Z when empty
		want string // an RFC 3339 time, or what String gives
	}{
		{name: "latest", s: "latest", want: "latest"},
		{name: "a number", s: "#12", want: "#12"},
		{name: "UTC", s: "2026-11-20T15:04:05Z", want: "2026-11-20T15:04:05Z"},
		{name: "an offset", s: "2026-11-20T15:04:05+05:30", want: "2026-11-20T09:34:05Z"},
		{name: "nanoseconds", s: "2026-11-20T15:04:05.000000001-01:00", want: "2026-11-20T16:04:05.000000001Z"},
		{name: "a space for the T", s: "2026-11-20 15:04:05Z", want: "2026-11-20T15:04:05Z"},
		{name: "local", s: "2026-11-20 15:04", want: "2026-11-20T15:04:00+01:00"},
		{name: "local with seconds", s: "2026-07-20 15:04:05", want: "2026-07-20T15:04:05+02:00"},
		{name: "local with a T", s: "2026-07-20T15:04", want: "2026-07-20T15:04:00+02:00"},
		{name: "a date", s: "2026-11-20", want: "2026-11-20T23:59:59.999999999+01:00"},
		{name: "the day of 23 hours", s: "2026-03-29", want: "2026-03-29T23:59:59.999999999+02:00"},
		{name: "the last day of a year", s: "2026-12-31", want: "2026-12-31T23:59:59.999999999+01:00"},
		{name: "a date before a day without a midnight", s: "2018-11-03", zone: "America/Sao_Paulo", want: "2018-11-03T23:59:59.999999999-03:00"},
		{name: "a date before a day with two midnights", s: "2026-10-31", zone: "America/Havana", want: "2026-10-31T23:59:59.999999999-04:00"},
		{name: "a date whose last hour comes twice", s: "2018-02-17", zone: "America/Sao_Paulo", want: "2018-02-17T23:59:59.999999999-03:00"},
		{name: "a local time that came twice", s: "2026-10-25 02:30", want: "2026-10-25T02:30:00+01:00"},
		{name: "a local time that never was", s: "2026-03-29 02:30", want: "2026-03-29T03:00:00+02:00"},
		{name: "the same by half an hour", s: "2026-10-04 02:15", zone: "Australia/Lord_Howe", want: "2026-10-04T02:30:00+11:00"},
		{name: "in UTC", s: "2026-03-29 02:30", zone: "UTC", want: "2026-03-29T02:30:00Z"},
		{name: "hours", s: "3h ago", want: "2026-11-20T09:00:00Z"},
		{name: "minutes", s: "90m ago", want: "2026-11-20T10:30:00Z"},
		{name: "seconds", s: "5s ago", want: "2026-11-20T11:59:55Z"},
		{name: "two units", s: "1h30m ago", want: "2026-11-20T10:30:00Z"},
		{name: "without the space", s: "1hago", want: "2026-11-20T11:00:00Z"},
		{name: "weeks", s: "1w ago", want: "2026-11-13T12:00:00Z"},
		{name: "days", s: "2d ago", want: "2026-11-18T12:00:00Z"},
		{name: "a day of 25 hours", s: "1d ago", now: "2026-10-25T12:00:00+01:00", want: "2026-10-24T12:00:00+02:00"},
		{name: "24 hours of it", s: "24h ago", now: "2026-10-25T12:00:00+01:00", want: "2026-10-24T13:00:00+02:00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.zone == "" {
				tt.zone = "Europe/Berlin"
			}
			if tt.now == "" {
				tt.now = "2026-11-20T12:00:00Z"
			}
			loc, err := time.LoadLocation(tt.zone)
			if err != nil {
				t.Fatal(err)
			}
			want := tt.want
			if tm, err := time.Parse(time.RFC3339Nano, want); err == nil {
				want = FormatTime(tm)
			}
			got, err := Parse(tt.s, mustTime(t, tt.now).In(loc))
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != want {
				t.Errorf("Parse(%q) = %v, want %v", tt.s, got, want)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	now := mustTime(t, "2026-11-20T12:00:00Z")
	for _, s := range []string{
		"", "yesterday", "#", "#0", "#-1", "#x", "#99999999999999999999", "ago", "3 ago", "h ago", "3y ago", "-3h ago",
		"99999999999d ago", "999999999w ago", "900000000s 1000000000h ago", "2026-13-01", "2026-02-30", "2026-11-20 25:00", "2026-11-20T15", "15:04", "20.11.2026",
	} {
		p, err := Parse(s, now)
		var pe *ParseError
		if !errors.As(err, &pe) || pe.Text != s || !strings.Contains(pe.Hint(), "RFC 3339") {
			t.Errorf("Parse(%q) = %v, %v; want a ParseError with the forms", s, p, err)
		}
	}
}

// TestDates: whatever the zone does at midnight, a date ends where the next day
// begins, and a local time that exists reads back as itself.
func TestDates(t *testing.T) {
	var zones []*time.Location
	for _, name := range []string{"UTC", "Europe/Berlin", "America/Sao_Paulo", "America/Havana", "Asia/Beirut", "Africa/Casablanca", "Australia/Lord_Howe", "Pacific/Kiritimati"} {
		loc, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		zones = append(zones, loc)
	}
	rapid.Check(t, func(t *rapid.T) {
		loc := rapid.SampledFrom(zones).Draw(t, "zone")
		tm := time.Unix(rapid.Int64Range(0, 2e9).Draw(t, "unix"), 0).In(loc)

		p, err := Parse(tm.Format("2006-01-02"), tm)
		if err != nil {
			t.Fatal(err)
		}
		if next := p.Time.Add(1).In(loc); p.Time.Before(tm) || p.Time.Day() != tm.Day() || next.Day() == tm.Day() {
			t.Errorf("the day of %v ends at %v", tm, p.Time)
		}

		p, err = Parse(tm.Format("2006-01-02 15:04:05"), tm)
		if err != nil {
			t.Fatal(err)
		}
		if p.Time.Before(tm) || p.Time.Sub(tm) > 2*time.Hour || FormatLocal(p.Time, loc) != FormatLocal(tm, loc) {
			t.Errorf("%v read back as %v", tm, p.Time)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"latest", "#1", "3h ago", "2026-11-20", "2026-11-20 15:04", "2026-11-20T15:04:05.1+01:00"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s, now)
		if err != nil {
			return
		}
		again, err := Parse(p.String(), now)
		if err != nil || again.String() != p.String() {
			t.Errorf("Parse(%q) = %v, which reads back as %v, %v", s, p, again, err)
		}
	})
}

func TestFormatTime(t *testing.T) {
	tm := time.Date(2026, 11, 20, 15, 4, 5, 100, time.FixedZone("", 3600))
	if got, want := FormatTime(tm), "2026-11-20T14:04:05.000000100Z"; got != want {
		t.Errorf("FormatTime: %s, want %s", got, want)
	}
	if got, want := FormatLocal(tm, tm.Location()), "2026-11-20 15:04:05"; got != want {
		t.Errorf("FormatLocal: %s, want %s", got, want)
	}
}

func mustTime(t *testing.T, s string) time.Time {
	t.Helper()
	tm, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return tm
}
