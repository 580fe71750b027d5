package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
	// Where a file names a zone it must be readable, and no other time be taken for it, on
	// machines without a zone database, too: our command is one static file that needs none.
	// The machine's own, if there is one, comes first.
	_ "time/tzdata"

	"github.com/secrate/secrate/internal/schedule"
)

// Daemon is what secrate daemon does beside keeping sources.
type Daemon struct {
	Schedule  string `toml:"schedule,omitempty"`  // of sources without their own; see [Config.ScheduleOf]
	Verify    string `toml:"verify,omitempty"`    // see [Config.VerifySchedule]
	TimeZone  string `toml:"time_zone,omitempty"` // see [Config.Location]
	Listen    string `toml:"listen,omitempty"`    // host:port of the metrics; empty means none
	MinFree   Space  `toml:"min_free,omitempty"`  // the zero Space means the default: see [Config.MinFree]
	Ping      string `toml:"ping,omitempty"`      // the address of a monitor, which is a secret
	Webhook   string `toml:"webhook,omitempty"`   // as secret
	OnFailure string `toml:"on_failure,omitempty"`
}

// What is meant where the file says nothing.
const (
	DefaultSchedule    = "@hourly"
	DefaultSettle      = 5 * time.Second
	DefaultMaxDelay    = 5 * time.Minute
	DefaultHookTimeout = time.Minute
)

// DefaultMinFree is what MinFree returns where the file says nothing.
var DefaultMinFree = Space{Percent: 5}

// The bounds of the times in a file.
const (
	MinSettle = 100 * time.Millisecond
	MaxTime   = 24 * time.Hour // of settle, max_delay, delay and hook_timeout
)

// ScheduleOf returns the schedule of s: its own, or that of the daemon, or every hour. It
// is none in Stream mode. Its times are of [Config.Location].
func (c *Config) ScheduleOf(s *Source) schedule.Schedule {
	for _, spec := range []string{s.Schedule, c.Daemon.Schedule, DefaultSchedule} {
		// Parse has refused what is none.
		if when, err := schedule.Parse(spec); err == nil && s.Mode != Stream {
			return when
		}
	}
	return schedule.Schedule{}
}

// VerifySchedule returns when the repository is verified; none when the file says nothing.
func (c *Config) VerifySchedule() schedule.Schedule {
	when, err := schedule.Parse(c.Daemon.Verify)
	if err != nil {
		return schedule.Schedule{}
	}
	return when
}

// Location returns the zone of all schedules and limits.
func (c *Config) Location() *time.Location {
	if c.Daemon.TimeZone == "" {
		return time.Local
	}
	loc, err := time.LoadLocation(c.Daemon.TimeZone)
	if err != nil { // it was there when the file was read
		return time.Local
	}
	return loc
}

// MinFree returns the free space below which no more local snapshots are taken while some
// wait for an upload.
func (c *Config) MinFree() Space {
	if c.Daemon.MinFree == (Space{}) {
		return DefaultMinFree
	}
	return c.Daemon.MinFree
}

// UploadLimit returns the rate of uploads at a point in time, by the clock of
// [Config.Location]; 0 is no limit.
func (c *Config) UploadLimit(t time.Time) Rate { return c.Upload.At(t.In(c.Location())) }

// SettleTime returns how long nothing must have changed before a watched source is kept.
func (s *Source) SettleTime() time.Duration {
	return or(s.Settle, min(DefaultSettle, s.MaxDelayTime()))
}

// MaxDelayTime returns how long after the first change a watched source is kept at the
// latest, however much goes on changing.
func (s *Source) MaxDelayTime() time.Duration { return or(s.MaxDelay, max(DefaultMaxDelay, s.Settle)) }

// HookTime returns how long Before and After may take, each.
func (s *Source) HookTime() time.Duration { return or(s.HookTimeout, DefaultHookTimeout) }

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// check returns what is wrong with the daemon's table.
func (d Daemon) check(l layout) []fault {
	var faults []fault
	add := func(key, format string, args ...any) {
		faults = append(faults, fault{key, fmt.Sprintf(format, args...)})
	}
	for _, x := range []struct{ key, value string }{
		{"schedule", d.Schedule}, {"verify", d.Verify}, {"time_zone", d.TimeZone}, {"listen", d.Listen},
		{"ping", d.Ping}, {"webhook", d.Webhook}, {"on_failure", d.OnFailure},
	} {
		if x.value == "" && l.has("daemon", 0, x.key) {
			add(x.key, "is empty; leave the line out instead")
		}
	}
	if d.MinFree == (Space{}) && l.has("daemon", 0, "min_free") {
		add("min_free", "is nothing; to go on to the last byte write \"1 B\"; a missing line means %v", DefaultMinFree)
	}
	for _, x := range []struct{ key, spec string }{{"schedule", d.Schedule}, {"verify", d.Verify}} {
		if _, err := schedule.Parse(x.spec); err != nil && x.spec != "" {
			add(x.key, "%v", err)
		}
	}
	if d.TimeZone != "" {
		if _, err := time.LoadLocation(d.TimeZone); err != nil {
			add("time_zone", "%q is no time zone; write one as in Europe/Berlin or UTC", d.TimeZone)
		}
	}
	if d.Listen != "" {
		if err := checkListen(d.Listen); err != nil {
			add("listen", "%v", err)
		}
	}
	for _, x := range []struct{ key, address string }{{"ping", d.Ping}, {"webhook", d.Webhook}} {
		if err := checkAddress(x.address); err != nil {
			add(x.key, "%v", err)
		}
	}
	if strings.ContainsRune(d.OnFailure, 0) {
		add("on_failure", "has a NUL")
	}
	return faults
}

func checkListen(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || strings.ContainsAny(host, " \t\n/") {
		return fmt.Errorf("%q is not HOST:PORT, as in 127.0.0.1:9120 or [::1]:9120", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && port != "0" {
		return fmt.Errorf("%q: the port is a number, up to 65535", address)
	}
	return nil
}

// checkAddress returns an error that does not say the address, which is a secret.
func checkAddress(address string) error {
	if address == "" {
		return nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Fragment != "" {
		return errors.New("is no address of a web server, as in https://hc-ping.com/…")
	}
	return nil
}

// timed returns the keys of s that only the daemon, or one who takes snapshots, has a use for.
func (s *Source) timed() []string {
	var keys []string
	for _, f := range []struct {
		key string
		set bool
	}{
		{"schedule", s.Schedule != ""}, {"delay", s.Delay != 0}, {"watch", s.Watch}, {"settle", s.Settle != 0}, {"max_delay", s.MaxDelay != 0},
		{"before", s.Before != ""}, {"after", s.After != ""}, {"hook_timeout", s.HookTimeout != 0}, {"ping", s.Ping != ""},
	} {
		if f.set {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// checkTimes is check for when a source is kept, and what is run then.
func (s *Source) checkTimes(add func(key, format string, args ...any)) {
	if _, err := schedule.Parse(s.Schedule); err != nil && s.Schedule != "" {
		add("schedule", "%v", err)
	}
	for _, f := range []struct {
		key   string
		value time.Duration
		least time.Duration
	}{{"delay", s.Delay, 0}, {"settle", s.Settle, MinSettle}, {"max_delay", s.MaxDelay, MinSettle}, {"hook_timeout", s.HookTimeout, MinSettle}} {
		if f.value != 0 && (f.value < f.least || f.value > MaxTime) {
			add(f.key, "is %v, must be %v to %v", f.value, f.least, MaxTime)
		}
	}
	switch {
	case s.Watch && s.Mode != Files:
		add("watch", "is for sources of mode files; snapshots of others are cheap: let them have a schedule, as in \"*/5 * * * *\"")
	case s.Watch && s.Settle > 0 && s.MaxDelay > 0 && s.Settle > s.MaxDelay:
		add("settle", "is %v, and max_delay, which is to be no less, is %v", s.Settle, s.MaxDelay)
	}
	for _, f := range []struct {
		key string
		set bool
	}{{"settle", s.Settle != 0}, {"max_delay", s.MaxDelay != 0}} {
		if f.set && !s.Watch {
			add(f.key, "is for sources with watch = true")
		}
	}
	if s.HookTimeout != 0 && s.Before == "" && s.After == "" {
		add("hook_timeout", "is for sources with before or after")
	}
	for _, f := range []struct{ key, command string }{{"before", s.Before}, {"after", s.After}} {
		if strings.ContainsRune(f.command, 0) {
			add(f.key, "has a NUL")
		}
	}
	if err := checkAddress(s.Ping); err != nil {
		add("ping", "%v", err)
	}
}

// checkEmpty returns which keys of the n-th source say nothing, where to leave them out
// means something else.
func (s *Source) checkEmpty(n int, l layout) []fault {
	var faults []fault
	for _, f := range []struct {
		key   string
		empty bool
		msg   string
	}{
		{"schedule", s.Schedule == "", "is empty; write \"none\" if it has none"},
		{"settle", s.Settle == 0, fmt.Sprintf("is 0s, must be %v to %v", MinSettle, MaxTime)},
		{"max_delay", s.MaxDelay == 0, fmt.Sprintf("is 0s, must be %v to %v", MinSettle, MaxTime)},
		{"hook_timeout", s.HookTimeout == 0, fmt.Sprintf("is 0s, must be %v to %v", MinSettle, MaxTime)},
		{"before", s.Before == "", "is empty; leave the line out instead"},
		{"after", s.After == "", "is empty; leave the line out instead"},
		{"ping", s.Ping == "", "is empty; leave the line out instead"},
	} {
		if f.empty && l.has("source", n, f.key) {
			faults = append(faults, fault{f.key, f.msg})
		}
	}
	return faults
}

// At returns the rate at a point in time: that of the first of Limits which it is in, or
// Limit. The time of the day is that in the zone of t.
func (u Upload) At(t time.Time) Rate {
	for _, l := range u.Limits {
		if l.Covers(t) {
			return l.Rate
		}
	}
	return u.Limit
}

// A Limit is a rate by the time of the day: "mon-fri 08:00-18:00 2 MiB/s". It is written as
// days, which are all when there are none, times, which may go over midnight and are then of
// the day on which they begin, and a rate or none.
type Limit struct {
	Days     Days
	From, To int  // minutes from midnight; From is below 24 hours, and To may be 24 hours
	Rate     Rate // 0 is no limit
}

// Days is a set of days of the week: 1<<time.Sunday and so on.
type Days uint8

// EveryDay is all of them.
const EveryDay Days = 1<<7 - 1

var dayNames = [7]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

const day = 24 * 60 // minutes

// Covers reports whether t lies in l, by the clock of t's zone.
func (l Limit) Covers(t time.Time) bool {
	at, today := t.Hour()*60+t.Minute(), t.Weekday()
	on := func(d time.Weekday) bool { return l.Days&(1<<d) != 0 }
	if l.From < l.To {
		return on(today) && l.From <= at && at < l.To
	}
	return on(today) && l.From <= at || on((today+6)%7) && at < l.To
}

// maxLimit is how many bytes a limit may have.
const maxLimit = 128

// ParseLimit reads a limit.
func ParseLimit(s string) (Limit, error) {
	bad := func(format string, args ...any) (Limit, error) {
		return Limit{}, fmt.Errorf("%q is no limit: %s, as in \"08:00-18:00 2 MiB/s\" or \"sat,sun 00:00-24:00 none\"", s, fmt.Sprintf(format, args...))
	}
	if len(s) > maxLimit {
		return Limit{}, fmt.Errorf("a limit of %d bytes, at most %d are allowed", len(s), maxLimit)
	}
	l := Limit{Days: EveryDay}
	words := strings.Fields(s)
	at := 0
	for at < len(words) && !strings.Contains(words[at], ":") {
		at++
	}
	if at == len(words) {
		return bad("want days, times and a rate")
	}
	if at > 0 {
		var err error
		if l.Days, err = parseDays(strings.Join(words[:at], "")); err != nil {
			return bad("%v", err)
		}
	}
	from, to, ok := strings.Cut(words[at], "-")
	var ok1, ok2 bool
	l.From, ok1 = parseClock(from)
	l.To, ok2 = parseClock(to)
	if !ok || !ok1 || !ok2 || l.From == day {
		return bad("%q is not from a time to a time", words[at])
	}
	if l.From == l.To {
		return bad("%s is no time at all; the whole day is 00:00-24:00", words[at])
	}
	switch text := strings.Join(words[at+1:], " "); {
	case text == "":
		return bad("the rate is missing")
	case !strings.EqualFold(text, "none"):
		rate, err := ParseRate(text)
		if err != nil {
			return bad("%v", err)
		}
		l.Rate = rate
	}
	return l, nil
}

// parseDays reads days and ranges of days between commas.
func parseDays(s string) (Days, error) {
	var days Days
	number := func(name string) (int, bool) {
		for i, n := range dayNames {
			if strings.EqualFold(n, name) {
				return i, true
			}
		}
		return 0, false
	}
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, ok1 := number(first)
		to, ok2 := number(last)
		if !ok1 || !ok2 {
			return 0, fmt.Errorf("%q is no day; they are mon, tue, wed, thu, fri, sat and sun", part)
		}
		for d := from; ; d = (d + 1) % 7 { // also over the end of the week: fri-mon
			days |= 1 << d
			if d == to {
				break
			}
		}
	}
	return days, nil
}

// parseClock reads HH:MM, up to 24:00, as minutes.
func parseClock(s string) (minutes int, ok bool) {
	h, m, ok := strings.Cut(s, ":")
	hours, err1 := strconv.ParseUint(h, 10, 8)
	mins, err2 := strconv.ParseUint(m, 10, 8)
	minutes = int(hours)*60 + int(mins)
	return minutes, ok && err1 == nil && err2 == nil && len(h) <= 2 && len(m) == 2 && mins < 60 && minutes <= day
}

// String writes l so that ParseLimit reads the same.
func (l Limit) String() string {
	var b strings.Builder
	if l.Days != EveryDay {
		var names []string
		for i := range 7 { // from Monday on
			if d := (i + 1) % 7; l.Days&(1<<d) != 0 {
				names = append(names, dayNames[d])
			}
		}
		b.WriteString(strings.Join(names, ",") + " ")
	}
	rate := l.Rate.String()
	if l.Rate == 0 {
		rate = "none"
	}
	fmt.Fprintf(&b, "%02d:%02d-%02d:%02d %s", l.From/60, l.From%60, l.To/60, l.To%60, rate)
	return b.String()
}

// MarshalText writes l as String does.
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what ParseLimit does.
func (l *Limit) UnmarshalText(text []byte) error {
	v, err := ParseLimit(string(text))
	if err == nil {
		*l = v
	}
	return err
}

// A Space is room on a file system: a share of it, or bytes. One of the fields is zero.
type Space struct {
	Percent float64 // 0 to 100
	Bytes   int64
}

// Of returns how many bytes s is of a file system of total bytes.
func (s Space) Of(total int64) int64 {
	if s.Percent > 0 {
		return int64(float64(total) * s.Percent / 100)
	}
	return s.Bytes
}

// ParseSpace reads a share or a size: 5%, 10 GiB, 500 MB.
func ParseSpace(s string) (Space, error) {
	text := strings.TrimSpace(s)
	bad := fmt.Errorf("%q is neither a share nor a size; write 5%% or 10 GiB", s)
	digits := len(text) - len(strings.TrimLeft(text, "0123456789."))
	n, err := strconv.ParseFloat(text[:digits], 64)
	if err != nil {
		return Space{}, bad
	}
	unit := strings.TrimSpace(text[digits:])
	if unit == "%" {
		if n > 100 {
			return Space{}, fmt.Errorf("%q is more than there is", s)
		}
		return Space{Percent: n}, nil
	}
	for _, u := range rateUnits {
		if unit != u.name || strings.HasSuffix(unit, "bit") {
			continue
		}
		if b := n * u.bytes; b < math.MaxInt64 {
			return Space{Bytes: int64(b)}, nil
		}
		return Space{}, fmt.Errorf("%q is more than any disk has", s)
	}
	return Space{}, bad
}

// String writes s so that ParseSpace reads the same.
func (s Space) String() string {
	if s.Percent > 0 {
		return strconv.FormatFloat(s.Percent, 'f', -1, 64) + "%"
	}
	if s.Bytes == 0 {
		return "0 B"
	}
	return strings.TrimSuffix(Rate(s.Bytes).String(), "/s")
}

// MarshalText writes s as String does.
func (s Space) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what ParseSpace does.
func (s *Space) UnmarshalText(text []byte) error {
	v, err := ParseSpace(string(text))
	if err == nil {
		*s = v
	}
	return err
}
