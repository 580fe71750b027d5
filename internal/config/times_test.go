package config

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestUploadAt(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	u := Upload{Limit: 9}
	for i, text := range []string{"mon-fri 08:00-18:00 1 B/s", "sat,sun 12:00-12:01 none", "fri 22:00-06:00 3 B/s", "00:00-24:00 4 B/s"} {
		l, err := ParseLimit(text)
		if err != nil {
			t.Fatal(err)
		}
		u.Limits = append(u.Limits, l)
		if i < 3 {
			continue
		}
		for _, tt := range []struct {
			at   string // 2026-11-20 is a Friday
			want Rate
		}{
			{"2026-11-20 07:59:59", 4},
			{"2026-11-20 08:00:00", 1},
			{"2026-11-20 17:59:59", 1},
			{"2026-11-20 18:00:00", 4},
			{"2026-11-20 22:00:00", 3},
			{"2026-11-21 00:00:00", 3}, // the Saturday, still the night of Friday
			{"2026-11-21 05:59:59", 3},
			{"2026-11-21 06:00:00", 4},
			{"2026-11-21 12:00:30", 0},
			{"2026-11-21 12:01:00", 4},
			{"2026-11-21 22:30:00", 4}, // the night of Saturday is another
			{"2026-11-20 05:00:00", 4}, // and so is that of Thursday
		} {
			at, err := time.ParseInLocation(time.DateTime, tt.at, berlin)
			if err != nil {
				t.Fatal(err)
			}
			if got := u.At(at); got != tt.want {
				t.Errorf("%s: %d, want %d", tt.at, got, tt.want)
			}
			// Wherever the time comes from, the zone of the configuration counts.
			c := &Config{Upload: u, Daemon: Daemon{TimeZone: "Europe/Berlin"}}
			if got := c.UploadLimit(at.In(time.FixedZone("", 11*3600))); got != tt.want {
				t.Errorf("%s elsewhere: %d, want %d", tt.at, got, tt.want)
			}
		}
	}
	u.Limits = u.Limits[:1]
	if got := u.At(time.Date(2026, 11, 21, 12, 0, 0, 0, berlin)); got != 9 {
		t.Errorf("outside of all limits: %d, want 9", got)
	}
}

func TestParseLimit(t *testing.T) {
	for text, want := range map[string]string{
		"08:00-18:00 2 MiB/s":               "08:00-18:00 2 MiB/s",
		" 8:00-24:00  1MB ":                 "08:00-24:00 1000000 B/s",
		"MON-fri 08:00-18:00 none":          "mon,tue,wed,thu,fri 08:00-18:00 none",
		"fri-mon, wed 22:00-06:30 1 B/s":    "mon,wed,fri,sat,sun 22:00-06:30 1 B/s",
		"sun-sat 00:00-24:00 0":             "00:00-24:00 none",
		"tue 00:00-00:01 20 Mbit/s":         "tue 00:00-00:01 2500000 B/s",
		"mon,mon-tue 23:59-00:00 500 KiB/s": "mon,tue 23:59-00:00 500 KiB/s",
	} {
		l, err := ParseLimit(text)
		if err != nil || l.String() != want {
			t.Errorf("ParseLimit(%q) = %v, %v; want %s", text, l, err, want)
			continue
		}
		if again, err := ParseLimit(l.String()); err != nil || again != l {
			t.Errorf("%v reads back as %v, %v", l, again, err)
		}
	}
	for _, text := range []string{
		"", "none", "2 MiB/s", "08:00-18:00", "08:00 1 B/s", "08:00-08:00 1 B/s", "24:00-08:00 1 B/s", "08:00-25:00 1 B/s", "08:60-09:00 1 B/s",
		"8-18 1 B/s", "008:00-9:00 1 B/s", "08:0-09:00 1 B/s", "08:00-24:01 1 B/s", "mo 08:00-18:00 1 B/s", "mon- 08:00-18:00 1 B/s", "mon,, 08:00-18:00 1 B/s",
		"08:00-18:00 ten", "08:00-18:00 1 B/s mon", "-1:00-09:00 1 B/s", "08:00 - 18:00 1 B/s", strings.Repeat("mon,", 99) + "mon 08:00-18:00 1 B/s",
	} {
		if l, err := ParseLimit(text); err == nil {
			t.Errorf("ParseLimit(%q) = %v, want an error", text, l)
		}
	}
}

func FuzzParseLimit(f *testing.F) {
	f.Add("fri-mon,wed 22:00-06:30 1.5 MiB/s")
	f.Add("08:00-18:00 none")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLimit(text)
		if err != nil {
			return
		}
		if again, err := ParseLimit(l.String()); err != nil || again != l {
			t.Errorf("%q: %v reads back as %v, %v", text, l, again, err)
		}
		// A limit covers a part of the week, as long as it says.
		minutes, want := 0, (l.To-l.From+day)%day
		if want == 0 {
			want = day
		}
		for at := range 7 * day {
			if l.Covers(time.Date(2026, 11, 22, 0, at, 0, 0, time.UTC)) {
				minutes++
			}
		}
		days := 0
		for d := range 7 {
			days += int(l.Days>>d) & 1
		}
		if minutes != want*days {
			t.Errorf("%q covers %d minutes of a week, want %d on %d days", text, minutes, want, days)
		}
	})
}

func TestSpace(t *testing.T) {
	for _, tt := range []struct {
		text, form string
		of         int64 // 1 TiB
	}{
		{"5%", "5%", 1 << 40 / 20}, {"2.5 %", "2.5%", 1 << 40 / 40}, {"100%", "100%", 1 << 40},
		{"10 GiB", "10 GiB", 10 << 30}, {"1.5KiB", "1536 B", 1536}, {"500 MB", "500000000 B", 5e8}, {"1 B", "1 B", 1},
	} {
		s, err := ParseSpace(tt.text)
		if err != nil || s.String() != tt.form || s.Of(1<<40) != tt.of {
			t.Errorf("ParseSpace(%q) = %v, %v, which is %d; want %s, %d", tt.text, s, err, s.Of(1<<40), tt.form, tt.of)
		}
		if again, err := ParseSpace(s.String()); err != nil || again != s {
			t.Errorf("%v reads back as %v, %v", s, again, err)
		}
	}
	for _, text := range []string{"", "%", "5", "5 percent", "101%", "-1%", "NaN%", "10 GiB/s", "8 Gbit", "1e3 B", "99999999999 TiB"} {
		if s, err := ParseSpace(text); err == nil {
			t.Errorf("ParseSpace(%q) = %v, want an error", text, s)
		}
	}
}

func TestDefaults(t *testing.T) {
	parse := func(text string) *Config {
		c, err := Parse("f", []byte("[repository]\nurl = '/r'\n"+text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := parse("[[source]]\nname='a'\nmode='files'\npath='/a'\nwatch=true\n[[source]]\nname='s'\nmode='stream'")
	a := &c.Sources[0]
	got := []any{
		c.ScheduleOf(a).String(), c.ScheduleOf(&c.Sources[1]).String(), c.VerifySchedule().String(), c.Location(), c.MinFree(), c.UploadLimit(time.Now()),
		a.SettleTime(), a.MaxDelayTime(), a.HookTime(),
	}
	want := []any{"@hourly", "none", "none", time.Local, Space{Percent: 5}, Rate(0), 5 * time.Second, 5 * time.Minute, time.Minute}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b *time.Location) bool { return a == b })); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	c = parse("[daemon]\nschedule='@daily'\nverify='@weekly'\ntime_zone='Australia/Lord_Howe'\nmin_free='1 GiB'\n" +
		"[[source]]\nname='a'\nmode='files'\npath='/a'\nwatch=true\nsettle='10m'\nbefore='true'\nhook_timeout='2m'\n" +
		"[[source]]\nname='b'\nmode='files'\npath='/b'\nschedule='none'\nwatch=true\nmax_delay='1s'")
	a, b := &c.Sources[0], &c.Sources[1]
	got = []any{
		c.ScheduleOf(a).String(), c.ScheduleOf(b).String(), c.VerifySchedule().String(), c.Location().String(), c.MinFree(),
		a.SettleTime(), a.MaxDelayTime(), a.HookTime(), b.SettleTime(), b.MaxDelayTime(),
	}
	want = []any{"@daily", "none", "@weekly", "Australia/Lord_Howe", Space{Bytes: 1 << 30},
		10 * time.Minute, 10 * time.Minute, 2 * time.Minute, time.Second, time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
}

// TestTablesWritten has in a new file what was said, and nothing else.
func TestTablesWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	c := &Config{Repository: Repository{URL: "/r"}, Upload: Upload{Limits: []Limit{{Days: EveryDay, To: day}}}, Daemon: Daemon{MinFree: Space{Percent: 2.5}}}
	if err := Create(path, c); err != nil {
		t.Fatal(err)
	}
	s := Source{Name: "a", Mode: Files, Path: "/a", Schedule: "@every 15m", Delay: 90 * time.Second, Watch: true, Settle: time.Second, MaxDelay: time.Hour,
		Before: "x \"$(y)\"\n", After: "z", HookTimeout: time.Hour, Ping: "https://x/y"}
	if _, err := AddSource(path, s); err != nil {
		t.Fatal(err)
	}
	const want = `# Configuration of secrate. An unknown key is an error.

[repository]
url = "/r"

[upload]
limits = ["00:00-24:00 none"]

[daemon]
min_free = "2.5%"

[[source]]
name = "a"
path = "/a"
mode = "files"
schedule = "@every 15m"
delay = "1m30s"
watch = true
settle = "1s"
max_delay = "1h0m0s"
before = "x \"$(y)\"\n"
after = "z"
hook_timeout = "1h0m0s"
ping = "https://x/y"
`
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	if _, err := AddSource(path, Source{Name: "b", Mode: Files, Path: "/b", Before: "\xff"}); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
		t.Errorf("a command that is not UTF-8: %v", err)
	}
}
