package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/schedule"
)

const example = `# All of it.
[repository]
url = "s3://bucket/prefix?region=eu-1" # the bucket
recipients = [
  "age1one", # laptop
  "age1two",
]

[upload]
limit = "10 MiB/s"
limits = [
  "08:00-18:00 2 MiB/s", # all days
  "Sat, sun 22:00-06:00 none",
]
parallel = 8

[prices]
storage_gb_month = 0.006
put_1000 = 5 # whole numbers, too
get_1000 = 0
currency = "EUR"

[daemon]
schedule = "@daily"
verify = "@weekly"
time_zone = "Europe/Berlin"
listen = "[::1]:9120"
min_free = "10 GiB"
ping = "https://hc-ping.com/uuid"
webhook = "http://localhost:8080/hook?x=1"
on_failure = "mail -s secrate root"

# Everybody's files.
[[source]]
name = "home"
path = "/home"
mode = "btrfs"
exclude = ["*.tmp", "/ann/.cache/"]
snapshots = "/mnt/pool/.secrate"
schedule = "*/15 * * * *"
delay = "5m"
before = "pg_dump -f /home/db"
after = "rm /home/db"
hook_timeout = "10m"
ping = "https://hc-ping.com/other"

[[source]]
name = "docs"
path = "/srv/docs"
mode = "files"
schedule = "none"
watch = true
settle = "200ms"
max_delay = "1h"
exclude_files = [".gitignore", ".secrateignore"]
skip_caches = true
skip_nodump = true

[[source]]
name = "nas"
mode = "stream"
`

func exampleConfig() *Config {
	return &Config{
		Repository: Repository{URL: "s3://bucket/prefix?region=eu-1", Recipients: []string{"age1one", "age1two"}},
		Upload: Upload{Limit: 10 << 20, Parallel: 8, Limits: []Limit{
			{Days: EveryDay, From: 8 * 60, To: 18 * 60, Rate: 2 << 20},
			{Days: 1<<time.Saturday | 1<<time.Sunday, From: 22 * 60, To: 6 * 60},
		}},
		Prices: Prices{StorageGBMonth: 0.006, Put1000: 5, Currency: "EUR"},
		Daemon: Daemon{Schedule: "@daily", Verify: "@weekly", TimeZone: "Europe/Berlin", Listen: "[::1]:9120", MinFree: Space{Bytes: 10 << 30},
			Ping: "https://hc-ping.com/uuid", Webhook: "http://localhost:8080/hook?x=1", OnFailure: "mail -s secrate root"},
		Sources: []Source{
			{Name: "home", Path: "/home", Mode: Btrfs, Exclude: []string{"*.tmp", "/ann/.cache/"}, Snapshots: "/mnt/pool/.secrate",
				Schedule: "*/15 * * * *", Delay: 5 * time.Minute, Before: "pg_dump -f /home/db", After: "rm /home/db", HookTimeout: 10 * time.Minute, Ping: "https://hc-ping.com/other"},
			{Name: "docs", Path: "/srv/docs", Mode: Files, Schedule: "none", Watch: true, Settle: 200 * time.Millisecond, MaxDelay: time.Hour,
				ExcludeFiles: []string{".gitignore", ".secrateignore"}, SkipCaches: true, SkipNodump: true},
			{Name: "nas", Mode: Stream},
		},
	}
}

// TestDocumented: every key is in docs/configuration.md.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for key := range schema {
		if _, last, ok := strings.Cut(key, "."); ok && !strings.Contains(string(text), "`"+last+"`") {
			t.Errorf("%s is not in docs/configuration.md", key)
		}
	}
}

func TestParse(t *testing.T) {
	got, err := Parse("config.toml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(exampleConfig(), got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	s, err := got.Source("nas")
	if err != nil || s != &got.Sources[2] {
		t.Errorf("Source(nas) = %v, %v", s, err)
	}
	_, err = got.Source("hone")
	var ue *UnknownSourceError
	if !errors.As(err, &ue) || ue.Hint() != "did you mean home? sources are home, docs, nas" {
		t.Errorf("Source(hone): %v", err)
	}
}

func TestParseErrors(t *testing.T) {
	const repo = "[repository]\nurl = \"/r\"\n"
	const files = "[[source]]\nname = \"a\"\nmode = \"files\"\npath = \"/a\"\n" // ends in line 6
	tests := []struct {
		name string
		text string
		want string // all lines of the error
	}{
		{"no TOML", repo + "parallel 4\n", "f:3: expected '.' or '=', but got '4' instead"},
		{"a key twice", repo + "url = \"x\"\n", "f:3: Key 'repository.url' has already been defined."},
		{"not UTF-8", repo + "# \xff\n", "f:3: not UTF-8"},
		{"empty", "", "f: repository.url: missing; it says where the repository is, as in s3://BUCKET/PREFIX or file:///DIR"},
		{"no url", "\n[repository]\n", "f:2: repository.url: missing; it says where the repository is, as in s3://BUCKET/PREFIX or file:///DIR"},
		{"an unknown key", repo + "recipient = []\n", "f:3: repository.recipient: unknown key, did you mean repository.recipients?"},
		{"in another case", "[repository]\nURL = \"/r\"\n", "f:2: repository.URL: unknown key, did you mean repository.url?"},
		{"a key in the wrong table", repo + "parallel = 4\n", "f:3: repository.parallel: unknown key, did you mean upload.parallel?"},
		{"a key like no other", repo + "colour = 4\n", "f:3: repository.colour: unknown key"},
		{"unknown in an inline table", "repository = {url = \"/r\", urk = 1}\n", "f:1: repository.urk: unknown key, did you mean repository.url?"},
		{"an unknown table", repo + "[[sources]]\nname = \"a\"\n", "f:3: sources: unknown key, did you mean source?"},
		{"in the second source", repo + "[[source]]\nname = \"a\"\nmode = \"stream\"\n[[source]]\nname = \"b\"\nmode = \"stream\"\nexlude = []\n", "f:9: source.exlude: unknown key, did you mean source.exclude?"},
		{"two at once", repo + "[upload]\nparalel = 1\nlimitt = 2\n", "f:4: upload.paralel: unknown key, did you mean upload.parallel?\nf:5: upload.limitt: unknown key, did you mean upload.limit?"},
		{"a table that is a number", "repository = 1\n", "f:1: repository: is a number, must be a table"},
		{"a number that is a string", repo + "[upload]\nparallel = \"4\"\n", "f:4: upload.parallel: is a string, must be a number"},
		{"a list that is a string", repo + "recipients = \"age1\"\n", "f:3: repository.recipients: is a string, must be a list of strings"},
		{"a list of numbers", repo + "recipients = [1]\n", "f:3: repository.recipients: is a list of something else, must be a list of strings"},
		{"a single source", repo + "[source]\nname = \"a\"\n", "f:3: source: is a table, must be a [[table]]"},
		{"an empty recipient", repo + "recipients = [\"\"]\n", "f:3: repository.recipients: has an empty recipient"},
		{"a limit without a unit", repo + "[upload]\nlimit = \"10\"\n", "f:4: upload.limit: \"10\" is no rate; write a number and a unit, as in 10 MiB/s, 500 kB/s or 20 Mbit/s"},
		{"none in parallel", repo + "[upload]\nparallel = 0\n", "f:4: upload.parallel: is 0, must be 1 to 64"},
		{"a price in words", repo + "[prices]\nstorage_gb_month = \"0.006\"\n", "f:4: prices.storage_gb_month: is a string, must be a number"},
		{"a price below nothing", repo + "[prices]\nstorage_gb_month = 0.01\nput_1000 = -1\ncurrency = \"EUR\"\n", "f:5: prices.put_1000: is -1, must be 0 to 1000000000"},
		{"a price that is none", repo + "[prices]\ncurrency = \"EUR\"\nstorage_gb_month = nan\n", "f:5: prices.storage_gb_month: is NaN, must be 0 to 1000000000"},
		{"no price of storage", repo + "[prices]\nget_1000 = 1\ncurrency = \"EUR\"\n", "f:3: prices.storage_gb_month: missing; it is what 1,000,000,000 bytes cost in a month"},
		{"prices without a price", repo + "[prices]\n", "f:3: prices.storage_gb_month: missing; it is what 1,000,000,000 bytes cost in a month"},
		{"no currency", repo + "[prices]\nstorage_gb_month = 1\n", "f:3: prices.currency: missing; it is what the prices are in, as in EUR"},
		{"no such currency", repo + "[prices]\nstorage_gb_month = 1\ncurrency = \"a b\"\n", "f:5: prices.currency: \"a b\" is no currency; write a sign or a code, as in EUR"},
		{"a misspelt price", repo + "[prices]\nstorage_gb_mont = 1\n", "f:4: prices.storage_gb_mont: unknown key, did you mean prices.storage_gb_month?"},
		{"a name twice", repo + "[[source]]\nname = \"a\"\nmode = \"stream\"\n[[source]]\nmode = \"stream\"\nname = \"a\"\n", "f:8: source.name: a is taken by the source in line 4"},
		{"a bad name", repo + "[[source]]\nname = \"a b\"\nmode = \"stream\"\n", "f:4: source.name: \"a b\" has other characters than A-Z, a-z, 0-9, dot, dash and underscore"},
		{"no name", repo + "[[source]]\nmode = \"stream\"\n", "f:3: source.name: missing"},
		{"no mode", repo + "[[source]]\nname = \"a\"\npath = \"/a\"\n", "f:3: source.mode: missing; it is one of btrfs, zfs, files, stream"},
		{"an unknown mode", repo + "[[source]]\nname = \"a\"\npath = \"/a\"\nmode = \"btfrs\"\n", "f:6: source.mode: \"btfrs\" is not one of btrfs, zfs, files, stream; did you mean btrfs?"},
		{"no path", repo + "[[source]]\nname = \"a\"\nmode = \"btrfs\"\n", "f:3: source.path: missing"},
		{"a relative path", repo + "[[source]]\nname = \"a\"\nmode = \"btrfs\"\npath = \"a\"\n", "f:6: source.path: \"a\" is not absolute"},
		{"a stream with a path", repo + "[[source]]\nname = \"a\"\nmode = \"stream\"\npath = \"/a\"\n", "f:6: source.path: a source of mode stream has none: it is fed by secrate ingest"},
		{"a dataset of a subvolume", repo + "[[source]]\nname = \"a\"\nmode = \"btrfs\"\npath = \"/a\"\nrecursive = true\n", "f:7: source.recursive: is for sources of mode zfs"},
		{"a rule that is none", repo + "[[source]]\nname = \"a\"\nmode = \"btrfs\"\npath = \"/a\"\nkeep = \"7\"\n", "f:7: source.keep: \"7\" is no rule: want numbers and periods, as in \"24 hourly, 7 daily\"; the periods are last, hourly, daily, weekly, monthly and yearly"},
		{"a stream that keeps", repo + "[[source]]\nname = \"a\"\nmode = \"stream\"\nkeep = \"7 daily\"\n", "f:6: source.keep: a source of mode stream takes no snapshots"},
		{"no dataset", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\npath = \"/a\"\n", "f:6: source.path: a source of mode zfs has none, but dataset = \"POOL/NAME\""},
		{"neither", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\n", "f:3: source.dataset: missing; it is the name of a dataset, as zfs list shows it"},
		{"a snapshot", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\ndataset = \"t/a@b\"\n", "f:6: source.dataset: \"t/a@b\" is not the name of a dataset"},
		{"excludes of a dataset", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\ndataset = \"t\"\nexclude = [\"x\"]\n", "f:7: source.exclude: of a dataset nothing can be left out; what is not wanted can be a dataset of its own"},
		{"a directory of snapshots", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\ndataset = \"t\"\nsnapshots = \"/x\"\n", "f:7: source.snapshots: a dataset has its own"},
		{"caches of a subvolume", repo + "[[source]]\nname = \"a\"\nmode = \"btrfs\"\npath = \"/a\"\nskip_caches = true\n", "f:7: source.skip_caches: is for sources of mode files"},
		{"files of patterns of a stream", repo + "[[source]]\nname = \"a\"\nmode = \"stream\"\nexclude_files = [\"x\"]\n", "f:6: source.exclude_files: is for sources of mode files"},
		{"a path of patterns", repo + "[[source]]\nname = \"a\"\nmode = \"files\"\npath = \"/a\"\nexclude_files = [\"a/b\"]\n", "f:7: source.exclude_files: \"a/b\" is no name of a file, as in \".secrateignore\""},
		{"many files of patterns", repo + "[[source]]\nname = \"a\"\nmode = \"files\"\npath = \"/a\"\nexclude_files = [\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]\n", "f:7: source.exclude_files: has 9 names, at most 8 are allowed: each is looked for in every directory"},
		{"recursive in words", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\ndataset = \"t\"\nrecursive = \"yes\"\n", "f:7: source.recursive: is a string, must be true or false"},
		{"a bad pattern", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\ndataset = \"t\"\nadopt = [\"auto[\"]\n", "f:7: source.adopt: \"auto[\" is no pattern for what a snapshot's name has behind the @, as in \"autosnap_*_daily\""},
		{"nothing to adopt", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\ndataset = \"t\"\nadopt = []\n", "f:7: source.adopt: is empty"},
		{"adopted and kept", repo + "[[source]]\nname = \"a\"\nmode = \"zfs\"\ndataset = \"t\"\nadopt = [\"a*\"]\nkeep = \"1 last\"\n", "f:8: source.keep: snapshots that are adopted are kept and destroyed by what takes them"},
		{"a limit that is none", repo + "[upload]\nlimits = [\"8-18 1 MiB/s\"]\n", "f:4: upload.limits: \"8-18 1 MiB/s\" is no limit: want days, times and a rate, as in \"08:00-18:00 2 MiB/s\" or \"sat,sun 00:00-24:00 none\""},
		{"a single limit", repo + "[upload]\nlimits = \"08:00-18:00 1 MiB/s\"\n", "f:4: upload.limits: is a string, must be a list of strings"},
		{"no daemon's schedule", repo + "[daemon]\nschedule = \"\"\n", "f:4: daemon.schedule: is empty; leave the line out instead"},
		{"a schedule that never comes", repo + "[daemon]\nverify = \"0 0 30 2 *\"\n", "f:4: daemon.verify: \"0 0 30 2 *\" never comes: no such day is in any year"},
		{"no such zone", repo + "[daemon]\ntime_zone = \"Europe/Berlim\"\n", "f:4: daemon.time_zone: \"Europe/Berlim\" is no time zone; write one as in Europe/Berlin or UTC"},
		{"no port", repo + "[daemon]\nlisten = \"127.0.0.1\"\n", "f:4: daemon.listen: \"127.0.0.1\" is not HOST:PORT, as in 127.0.0.1:9120 or [::1]:9120"},
		{"no such port", repo + "[daemon]\nlisten = \"127.0.0.1:99999\"\n", "f:4: daemon.listen: \"127.0.0.1:99999\": the port is a number, up to 65535"},
		{"a path to listen at", repo + "[daemon]\nlisten = \"http://a:80\"\n", "f:4: daemon.listen: \"http://a:80\" is not HOST:PORT, as in 127.0.0.1:9120 or [::1]:9120"},
		{"more than all", repo + "[daemon]\nmin_free = \"101%\"\n", "f:4: daemon.min_free: \"101%\" is more than there is"},
		{"less than nothing", repo + "[daemon]\nmin_free = \"-1 GiB\"\n", "f:4: daemon.min_free: \"-1 GiB\" is neither a share nor a size; write 5% or 10 GiB"},
		{"nothing free", repo + "[daemon]\nmin_free = \"0%\"\n", "f:4: daemon.min_free: is nothing; to go on to the last byte write \"1 B\"; a missing line means 5%"},
		{"a secret that is no address", repo + "[daemon]\nping = \"hc-ping.com/5ec3e7\"\nwebhook = \"ftp://x/5ec3e7\"\n", "f:4: daemon.ping: is no address of a web server, as in https://hc-ping.com/…\nf:5: daemon.webhook: is no address of a web server, as in https://hc-ping.com/…"},
		{"a misspelt key of the daemon", repo + "[daemon]\nwebhok = \"x\"\n", "f:4: daemon.webhok: unknown key, did you mean daemon.webhook?"},
		{"a source's schedule", repo + files + "schedule = \"hourly\"\n", "f:7: source.schedule: \"hourly\" is no schedule (expected exactly 5 fields, found 1: [hourly]): want " + schedule.Forms},
		{"an empty schedule", repo + files + "schedule = \"\"\n", "f:7: source.schedule: is empty; write \"none\" if it has none"},
		{"no duration", repo + files + "delay = \"5 minutes\"\n", "f:7: source.delay: invalid duration: \"5 minutes\""},
		{"a bare number", repo + files + "delay = 5\n", "f:7: source.delay: is a number, must be a string"},
		{"a negative delay", repo + files + "delay = \"-1s\"\n", "f:7: source.delay: is -1s, must be 0s to 24h0m0s"},
		{"too soon", repo + files + "watch = true\nsettle = \"99ms\"\n", "f:8: source.settle: is 99ms, must be 100ms to 24h0m0s"},
		{"at once", repo + files + "watch = true\nsettle = \"0s\"\n", "f:8: source.settle: is 0s, must be 100ms to 24h0m0s"},
		{"too late", repo + files + "watch = true\nmax_delay = \"25h\"\n", "f:8: source.max_delay: is 25h0m0s, must be 100ms to 24h0m0s"},
		{"never settled", repo + files + "watch = true\nsettle = \"2m\"\nmax_delay = \"1m\"\n", "f:8: source.settle: is 2m0s, and max_delay, which is to be no less, is 1m0s"},
		{"not watched", repo + files + "settle = \"2m\"\n", "f:7: source.settle: is for sources with watch = true"},
		{"a subvolume that is watched", repo + "[[source]]\nname = \"a\"\nmode = \"btrfs\"\npath = \"/a\"\nwatch = true\n", "f:7: source.watch: is for sources of mode files; snapshots of others are cheap: let them have a schedule, as in \"*/5 * * * *\""},
		{"a time-out of nothing", repo + files + "hook_timeout = \"1m\"\n", "f:7: source.hook_timeout: is for sources with before or after"},
		{"a command that is none", repo + files + "before = \"\"\nafter = \"a\\u0000\"\n", "f:8: source.after: has a NUL\nf:7: source.before: is empty; leave the line out instead"},
		{"a source's secret", repo + files + "ping = \"5ec3e7\"\n", "f:7: source.ping: is no address of a web server, as in https://hc-ping.com/…"},
		{"a stream by schedule", repo + "[[source]]\nname = \"a\"\nmode = \"stream\"\nschedule = \"@daily\"\nafter = \"x\"\n", "f:6: source.schedule: a source of mode stream is kept when secrate ingest is run, and not by the daemon\nf:7: source.after: a source of mode stream is kept when secrate ingest is run, and not by the daemon"},
		{"below a string of many lines", "[repository]\nurl = '''\n/r\n[[source]]\n'''\n[x]\n", "f:6: x: unknown key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.text))
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			var ce *Error
			if !errors.As(err, &ce) || ce.File != "f" {
				t.Errorf("error is %T, want an *Error in it", err)
			}
		})
	}
}

// TestSchema holds the schema against the types.
func TestSchema(t *testing.T) {
	got := map[string]kind{}
	var walk func(prefix string, rt reflect.Type)
	walk = func(prefix string, rt reflect.Type) {
		for i := range rt.NumField() {
			f := rt.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			key := prefix + name
			switch {
			case f.Type == reflect.TypeFor[Rate](), f.Type == reflect.TypeFor[time.Duration](), f.Type == reflect.TypeFor[Space]():
				got[key] = kindString
			case f.Type == reflect.TypeFor[[]Limit]():
				got[key] = kindList
			case f.Type.Kind() == reflect.String:
				got[key] = kindString
			case f.Type.Kind() == reflect.Int, f.Type.Kind() == reflect.Float64:
				got[key] = kindInt
			case f.Type.Kind() == reflect.Bool:
				got[key] = kindBool
			case f.Type.Kind() == reflect.Struct:
				got[key] = kindTable
				walk(key+".", f.Type)
			case f.Type.Elem().Kind() == reflect.String:
				got[key] = kindList
			default:
				got[key] = kindTables
				walk(key+".", f.Type.Elem())
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	if diff := cmp.Diff(got, schema); diff != "" {
		t.Errorf("schema (-types +schema):\n%s", diff)
	}
}

func TestRate(t *testing.T) {
	tests := []struct {
		text string
		want Rate
		form string
	}{
		{"", 0, ""},
		{"0", 0, ""},
		{"10 MiB/s", 10 << 20, "10 MiB/s"},
		{"10MiB", 10 << 20, "10 MiB/s"},
		{" 1.5 KiB/s ", 1536, "1536 B/s"},
		{"1 GB/s", 1e9, "1000000000 B/s"},
		{"20 Mbit/s", 2_500_000, "2500000 B/s"},
		{"500 kB/s", 500_000, "500000 B/s"},
		{"2048 B/s", 2048, "2 KiB/s"},
	}
	for _, tt := range tests {
		got, err := ParseRate(tt.text)
		if err != nil || got != tt.want || got.String() != tt.form {
			t.Errorf("ParseRate(%q) = %d (%v), %v; want %d (%s)", tt.text, got, got, err, tt.want, tt.form)
		}
		if again, err := ParseRate(got.String()); err != nil || again != got {
			t.Errorf("%v reads back as %d, %v", got, again, err)
		}
	}
	for _, s := range []string{"10", "x", "-1 MiB/s", "10 miles", "1.2.3 MiB/s", "MiB/s", "1e3 MiB/s", "0.1 B/s", "9999999 TiB/s", "10 MiB/h"} {
		if r, err := ParseRate(s); err == nil {
			t.Errorf("ParseRate(%q) = %d, want an error", s, r)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "home", "A.b-c_9", "_x", strings.Repeat("x", 64)} {
		if err := CheckName(name); err != nil {
			t.Errorf("CheckName(%q): %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", ".a", "-a", "a/b", "a b", "é", "a\x00", strings.Repeat("x", 65)} {
		if err := CheckName(name); err == nil {
			t.Errorf("CheckName(%q): no error", name)
		}
	}
}

// FuzzScan holds the layout against the library that says what TOML means.
func FuzzScan(f *testing.F) {
	f.Add([]byte(example))
	for _, s := range []string{
		"a = 1", "a.b.'c d' = [[1, 2], {x = 1}]\r\n[t.\"q\\\"\"]\nx = \"\"\"a\n\\\n\"\"\"\"\"\n# c", "[[a]]\nb = {c = {d = [ # x\n{e = 1}]}}\n[a.f]\n",
		"d = 1979-05-27 07:32:00\nt = 07:32:00\nf = 1e5\ninf = -inf",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		l := scan(text)
		lines := strings.Count(string(text), "\n") + 1
		for _, it := range l {
			if it.line < 1 || it.line > lines || it.start < 0 || it.start > len(text) || it.end > len(text) {
				t.Fatalf("item %+v of %d bytes in %d lines", it, len(text), lines)
			}
		}
		var m map[string]any
		md, err := toml.Decode(string(text), &m)
		if err != nil {
			return
		}
		var got []string
		for _, it := range l {
			got = append(got, it.key.String())
			if at := 1 + strings.Count(string(text[:it.start]), "\n"); it.line != at {
				t.Errorf("%s in line %d, its bytes in line %d", it.key, it.line, at)
			}
		}
		for _, key := range md.Keys() {
			if k := key.String(); !slices.Contains(got, k) && !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, k+".") }) {
				t.Errorf("%s is not in the layout: %q", k, got)
			}
		}
		if _, _, ok := l.block(text, "source", 0); ok != (l.nth("source", 0) >= 0) {
			t.Error("block and nth disagree")
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := Parse("f", text); (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
	})
}

func ExampleError() {
	_, err := Parse("/etc/secrate/config.toml", []byte("[repository]\nurl = \"/srv/r\"\nrecipient = [\"age1…\"]\n"))
	fmt.Println(err)
	// Output: /etc/secrate/config.toml:3: repository.recipient: unknown key, did you mean repository.recipients?
}
