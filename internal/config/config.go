// Package config reads and writes the one configuration file, and looks after the
// directory that holds the state.
//
// The file is TOML:
//
//	[repository]
//	url = "s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-1"
//	recipients = ["age1pq1…"]        # who can restore
//
//	[upload]
//	limit = "10 MiB/s"               # none when missing
//	limits = [                       # by the time of day; the first that matches, else limit
//	  "mon-fri 08:00-18:00 2 MiB/s",
//	  "22:00-06:00 none",            # every night, till the next morning
//	]
//	parallel = 4                     # 4 when missing
//
//	[prices]                         # what secrate stats reckons with; there are none in it
//	storage_gb_month = 0.006         # for 1,000,000,000 bytes
//	put_1000 = 0.005                 # for 1,000 requests that write or list
//	get_1000 = 0.0004                # for 1,000 that read
//	currency = "EUR"
//
//	[daemon]                         # what secrate daemon does
//	schedule = "@hourly"             # of sources without their own; this one when missing
//	verify = "@weekly"               # never when missing
//	time_zone = "Europe/Berlin"      # of all schedules and limits; the machine's when missing
//	listen = "127.0.0.1:9120"        # metrics; none when missing
//	min_free = "5%"                  # or a size: below it no snapshots are taken while some wait; 5% when missing
//	ping = "https://hc-ping.com/…"   # a monitor that hears of every run
//	webhook = "https://example.org/" # hears what failed, in JSON
//	on_failure = "mail -s secrate root"
//
//	[[source]]
//	name = "home"
//	path = "/home"
//	mode = "btrfs"                   # btrfs, zfs, files or stream
//	exclude = ["*.tmp", "/ann/.cache/"]
//	snapshots = "/mnt/pool/.secrate" # inside the subvolume when missing
//	keep = "24 hourly, 7 daily"      # local snapshots that stay; only the newest when missing
//	schedule = "*/15 * * * *"        # or "@every 15m", "none"; as package schedule reads it
//	delay = "5m"                     # begins later by chance, by so much at most; at once when missing
//	before = "pg_dump … > /home/db"  # run before the snapshot, by /bin/sh; no snapshot if it fails
//	after = "rm /home/db"            # run after it, whatever came of it
//	hook_timeout = "1m"              # of each of both; 1m when missing
//	ping = "https://hc-ping.com/…"   # a monitor of this source
//
//	[[source]]
//	name = "tank"
//	dataset = "tank/data"            # of ZFS, in place of a path
//	mode = "zfs"
//	recursive = true                 # with its children, each a source tank/CHILD
//	adopt = ["autosnap_*"]           # take no snapshots, but those that are called so
//
//	[[source]]
//	name = "docs"
//	path = "/srv/docs"
//	mode = "files"
//	watch = true                     # files only: kept soon after they change, and by schedule
//	settle = "5s"                    # when nothing has changed for so long; 5s when missing
//	max_delay = "5m"                 # or so long after the first change; 5m when missing
//	exclude_files = [".secrateignore"] # files in it that have patterns for where they are
//	skip_caches = true               # what is beside a CACHEDIR.TAG
//	skip_nodump = true               # what has the flag nodump, chattr +d
//
//	[[source]]
//	name = "nas"
//	mode = "stream"                  # fed by secrate ingest; has no path
//
// What is not in this list is an error that names the line: a misspelt exclude
// must not pass for none. [AddSource] and [RemoveSource] edit the text and leave
// every other byte of it as the user wrote it.
//
// The file names recipients, and the state directory holds keys. Whoever can write
// the one decides who can restore, whoever can read the other reads the
// metadata: both are refused when others have access to them. What the values
// mean, whether a recipient can be parsed, a repository be reached or a path be
// snapshotted, is left to those who use them.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"github.com/secrate/secrate/internal/keep"
)

// A Config is the content of a configuration file.
type Config struct {
	Repository Repository `toml:"repository"`
	Upload     Upload     `toml:"upload,omitempty"`
	Prices     Prices     `toml:"prices,omitempty"`
	Daemon     Daemon     `toml:"daemon,omitempty"`
	Sources    []Source   `toml:"source,omitempty"` // in the order of the file
}

// Repository says where the objects are and who may decrypt them.
type Repository struct {
	URL        string   `toml:"url"`
	Recipients []string `toml:"recipients"`
}

// Upload bounds what an upload takes of the network.
type Upload struct {
	Limit    Rate    `toml:"limit,omitzero"`    // 0 means no limit
	Limits   []Limit `toml:"limits,omitempty"`  // by the time of day, before Limit
	Parallel int     `toml:"parallel,omitzero"` // objects in flight; 0 means the default
}

// Prices are what the repository's provider asks for. The zero Prices are not known.
type Prices struct {
	StorageGBMonth float64 `toml:"storage_gb_month,omitempty"` // for 10^9 bytes
	Put1000        float64 `toml:"put_1000,omitempty"`         // for 1,000 requests that write or list
	Get1000        float64 `toml:"get_1000,omitempty"`         // for 1,000 that read
	Currency       string  `toml:"currency,omitempty"`
}

// A Source is one subvolume, dataset or directory with a history of its own.
type Source struct {
	Name    string   `toml:"name"`
	Path    string   `toml:"path,omitempty"` // absolute; empty in ZFS and Stream mode
	Mode    Mode     `toml:"mode"`
	Exclude []string `toml:"exclude,omitempty"` // patterns of package exclude

	// In Files mode, what else is left out:
	ExcludeFiles []string `toml:"exclude_files,omitempty"` // names of files in the tree that have such patterns
	SkipCaches   bool     `toml:"skip_caches,omitempty"`   // what is beside a CACHEDIR.TAG
	SkipNodump   bool     `toml:"skip_nodump,omitempty"`   // what has the flag nodump

	Snapshots string `toml:"snapshots,omitempty"` // directory of the local snapshots; empty means inside Path
	Keep      string `toml:"keep,omitempty"`      // a rule of package keep: local snapshots that stay when they are committed

	Dataset   string   `toml:"dataset,omitempty"`   // in ZFS mode, in place of Path
	Recursive bool     `toml:"recursive,omitempty"` // in ZFS mode: each child is a source as well
	Adopt     []string `toml:"adopt,omitempty"`     // in ZFS mode: patterns of path.Match for snapshots that something else takes

	// When it is kept. All modes but Stream have these.
	Schedule string        `toml:"schedule,omitempty"` // of package schedule; empty means that of Daemon: see [Config.ScheduleOf]
	Delay    time.Duration `toml:"delay,omitzero"`     // at most so much later, by chance
	Watch    bool          `toml:"watch,omitempty"`    // in Files mode: soon after it changes, too
	Settle   time.Duration `toml:"settle,omitzero"`    // with Watch; 0 means the default: see [Source.SettleTime]
	MaxDelay time.Duration `toml:"max_delay,omitzero"` // with Watch; 0 means the default: see [Source.MaxDelayTime]

	Before      string        `toml:"before,omitempty"` // commands of /bin/sh
	After       string        `toml:"after,omitempty"`
	HookTimeout time.Duration `toml:"hook_timeout,omitzero"` // of each; 0 means the default: see [Source.HookTime]
	Ping        string        `toml:"ping,omitempty"`        // the address of a monitor, which is a secret
}

// A Mode says how the changes of a source are found.
type Mode string

// The modes.
const (
	Btrfs  Mode = "btrfs"  // a subvolume
	ZFS    Mode = "zfs"    // a dataset
	Files  Mode = "files"  // a directory on any file system
	Stream Mode = "stream" // send streams from standard input
)

// Modes lists the modes.
var Modes = []Mode{Btrfs, ZFS, Files, Stream}

// Source returns the source of that name, or an [*UnknownSourceError].
func (c *Config) Source(name string) (*Source, error) {
	var known []string
	for i := range c.Sources {
		if c.Sources[i].Name == name {
			return &c.Sources[i], nil
		}
		known = append(known, c.Sources[i].Name)
	}
	return nil, &UnknownSourceError{Name: name, Known: known}
}

// An UnknownSourceError reports a name that no source has.
type UnknownSourceError struct {
	Name  string
	Known []string // the names there are
}

func (e *UnknownSourceError) Error() string { return "no source named " + e.Name }

// Hint says which names there are.
func (e *UnknownSourceError) Hint() string {
	if len(e.Known) == 0 {
		return "there are no sources yet: secrate source add NAME PATH"
	}
	hint := "sources are " + strings.Join(e.Known, ", ")
	if n := nearest(e.Name, e.Known); n != "" {
		hint = fmt.Sprintf("did you mean %s? %s", n, hint)
	}
	return hint
}

// An Error reports one thing that is wrong in a configuration file, and where.
type Error struct {
	File string
	Line int    // 0 when it cannot be told
	Key  string // dotted, as in source.name; empty when it is about no key
	Msg  string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// A kind is what may stand behind a key.
type kind string

const (
	kindTable  kind = "a table"
	kindTables kind = "a [[table]]"
	kindString kind = "a string"
	kindInt    kind = "a number"
	kindList   kind = "a list of strings"
	kindBool   kind = "true or false"
	kindInline kind = "a list of tables" // another way to write [[table]]
)

// schema lists every key there is.
var schema = map[string]kind{
	"repository":              kindTable,
	"repository.url":          kindString,
	"repository.recipients":   kindList,
	"upload":                  kindTable,
	"upload.limit":            kindString,
	"upload.limits":           kindList,
	"upload.parallel":         kindInt,
	"prices":                  kindTable,
	"prices.storage_gb_month": kindInt,
	"prices.put_1000":         kindInt,
	"prices.get_1000":         kindInt,
	"prices.currency":         kindString,
	"daemon":                  kindTable,
	"daemon.schedule":         kindString,
	"daemon.verify":           kindString,
	"daemon.time_zone":        kindString,
	"daemon.listen":           kindString,
	"daemon.min_free":         kindString,
	"daemon.ping":             kindString,
	"daemon.webhook":          kindString,
	"daemon.on_failure":       kindString,
	"source":                  kindTables,
	"source.name":             kindString,
	"source.path":             kindString,
	"source.mode":             kindString,
	"source.exclude":          kindList,
	"source.exclude_files":    kindList,
	"source.skip_caches":      kindBool,
	"source.skip_nodump":      kindBool,
	"source.snapshots":        kindString,
	"source.keep":             kindString,
	"source.dataset":          kindString,
	"source.recursive":        kindBool,
	"source.adopt":            kindList,
	"source.schedule":         kindString,
	"source.delay":            kindString,
	"source.watch":            kindBool,
	"source.settle":           kindString,
	"source.max_delay":        kindString,
	"source.before":           kindString,
	"source.after":            kindString,
	"source.hook_timeout":     kindString,
	"source.ping":             kindString,
}

// Parse reads the text of the file called name. The error joins an [*Error] for
// every fault that was found.
func Parse(name string, text []byte) (*Config, error) {
	c, _, err := parse(name, text)
	return c, err
}

func parse(name string, text []byte) (*Config, layout, error) {
	if !utf8.Valid(text) {
		before := []byte(strings.ToValidUTF8(string(text), "\x00"))
		line := 1 + bytes.Count(before[:bytes.IndexByte(before, 0)], []byte("\n"))
		return nil, nil, &Error{File: name, Line: line, Msg: "not UTF-8"}
	}
	// First as a tree of anything: this finds what is no TOML at all.
	if err := toml.Unmarshal(text, new(map[string]any)); err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, nil, &Error{File: name, Line: pe.Position.Line, Msg: pe.Message}
		}
		return nil, nil, &Error{File: name, Msg: err.Error()}
	}
	l := scan(text)
	if err := checkKeys(name, l); err != nil {
		return nil, nil, err
	}
	c := new(Config)
	md, err := toml.Decode(string(text), c)
	if err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, nil, &Error{File: name, Line: pe.Position.Line, Key: pe.LastKey, Msg: pe.Message}
		}
		return nil, nil, &Error{File: name, Msg: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	if rest := md.Undecoded(); len(rest) > 0 { // a key that scan overlooked
		return nil, nil, &Error{File: name, Key: rest[0].String(), Msg: "unknown key"}
	}
	if err := check(name, c, l); err != nil {
		return nil, nil, err
	}
	return c, l, nil
}

// checkKeys reports keys that are not in the schema and values of a wrong kind.
func checkKeys(name string, l layout) error {
	var errs []error
	var unknown []string // what is below an unknown table needs no error of its own
	for _, it := range l {
		key := it.key.String()
		want, ok := schema[key]
		switch {
		case slices.ContainsFunc(unknown, func(u string) bool { return key == u || strings.HasPrefix(key, u+".") }):
			if !it.header && slices.Contains(unknown, key) {
				errs = append(errs, &Error{File: name, Line: it.line, Key: key, Msg: "unknown key"})
			}
		case !ok:
			unknown = append(unknown, key)
			msg := "unknown key"
			if n := nearestKey(key); n != "" {
				msg += fmt.Sprintf(", did you mean %s?", n)
			}
			errs = append(errs, &Error{File: name, Line: it.line, Key: key, Msg: msg})
		case it.kind != want && !(want == kindTables && it.kind == kindInline):
			errs = append(errs, &Error{File: name, Line: it.line, Key: key, Msg: fmt.Sprintf("is %s, must be %s", it.kind, want)})
		}
	}
	return errors.Join(errs...)
}

// nearestKey returns the known key that was probably meant, or "". A key may be
// misspelt, or right and in the wrong table.
func nearestKey(key string) string {
	table, last := cutLast(key)
	var here, elsewhere []string
	for k := range schema {
		if t, l := cutLast(k); t == table {
			here = append(here, l)
		} else {
			elsewhere = append(elsewhere, l)
		}
	}
	slices.Sort(elsewhere)
	slices.Sort(here)
	if n := nearest(last, here); n != "" {
		return strings.TrimPrefix(table+"."+n, ".")
	}
	n := nearest(last, elsewhere)
	var best string
	for k := range schema {
		if _, l := cutLast(k); l == n && n != "" && (best == "" || k < best) {
			best = k
		}
	}
	return best
}

func cutLast(key string) (table, last string) {
	i := strings.LastIndexByte(key, '.')
	return key[:max(i, 0)], key[i+1:]
}

// check reports values that cannot be meant.
func check(name string, c *Config, l layout) error {
	var errs []error
	add := func(line int, key, format string, args ...any) {
		errs = append(errs, &Error{File: name, Line: line, Key: key, Msg: fmt.Sprintf(format, args...)})
	}
	if c.Repository.URL == "" {
		add(l.line("repository", 0, "url"), "repository.url", "missing; it says where the repository is, as in s3://BUCKET/PREFIX or file:///DIR")
	}
	for _, r := range c.Repository.Recipients {
		if strings.TrimSpace(r) == "" {
			add(l.line("repository", 0, "recipients"), "repository.recipients", "has an empty recipient")
		}
	}
	if n := c.Upload.Parallel; n < 0 || n > MaxParallel || n == 0 && l.has("upload", 0, "parallel") {
		add(l.line("upload", 0, "parallel"), "upload.parallel", "is %d, must be 1 to %d", n, MaxParallel)
	}
	for _, f := range c.Prices.check(l) {
		add(l.line("prices", 0, f.key), "prices."+f.key, "%s", f.msg)
	}
	for _, f := range c.Daemon.check(l) {
		add(l.line("daemon", 0, f.key), "daemon."+f.key, "%s", f.msg)
	}
	lines := map[string]int{}
	for i, s := range c.Sources {
		at := func(key string) int { return l.line("source", i, key) }
		for _, f := range s.check() {
			add(at(f.key), "source."+f.key, "%s", f.msg)
		}
		for _, f := range s.checkEmpty(i, l) {
			add(at(f.key), "source."+f.key, "%s", f.msg)
		}
		if first, ok := lines[s.Name]; ok && s.Name != "" {
			add(at("name"), "source.name", "%s is taken by the source in line %d", s.Name, first)
		} else {
			lines[s.Name] = at("name")
		}
	}
	return errors.Join(errs...)
}

// MaxExcludeFiles bounds the names in Source.ExcludeFiles.
const MaxExcludeFiles = 8

// MaxParallel bounds Upload.Parallel.
const MaxParallel = 64

// A fault is something wrong with one key of a table.
type fault struct{ key, msg string }

// maxPrice bounds a price, in any currency.
const maxPrice = 1e9

// check returns what is wrong with the prices in a file.
func (p Prices) check(l layout) []fault {
	if !l.has("prices", 0, "storage_gb_month") {
		if p == (Prices{}) && l.nth("prices", 0) < 0 {
			return nil
		}
		return []fault{{"storage_gb_month", "missing; it is what 1,000,000,000 bytes cost in a month"}}
	}
	var faults []fault
	for _, x := range []struct {
		key   string
		price float64
	}{{"storage_gb_month", p.StorageGBMonth}, {"put_1000", p.Put1000}, {"get_1000", p.Get1000}} {
		if !(x.price >= 0 && x.price <= maxPrice) { // NaN is neither
			faults = append(faults, fault{x.key, fmt.Sprintf("is %v, must be 0 to %v", x.price, int64(maxPrice))})
		}
	}
	switch c := p.Currency; {
	case c == "":
		faults = append(faults, fault{"currency", "missing; it is what the prices are in, as in EUR"})
	case len(c) > 8 || strings.ContainsFunc(c, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		faults = append(faults, fault{"currency", fmt.Sprintf("%q is no currency; write a sign or a code, as in EUR", c)})
	}
	return faults
}

// Check reports what is wrong with s by itself, before it is added to a file.
func (s *Source) Check() error {
	var errs []error
	for _, f := range s.check() {
		errs = append(errs, fmt.Errorf("source %s: %s: %s", s.Name, f.key, f.msg))
	}
	return errors.Join(errs...)
}

func (s *Source) check() []fault {
	var faults []fault
	add := func(key, format string, args ...any) {
		faults = append(faults, fault{key, fmt.Sprintf(format, args...)})
	}
	if err := CheckName(s.Name); err != nil {
		add("name", "%v", err)
	}
	switch {
	case s.Mode == "":
		add("mode", "missing; it is one of %s", modeList())
	case !slices.Contains(Modes, s.Mode):
		msg := fmt.Sprintf("%q is not one of %s", s.Mode, modeList())
		if n := nearest(string(s.Mode), strings.Split(modeList(), ", ")); n != "" {
			msg += fmt.Sprintf("; did you mean %s?", n)
		}
		add("mode", "%s", msg)
	}
	if s.Mode != ZFS {
		for _, f := range []struct {
			key string
			set bool
		}{{"dataset", s.Dataset != ""}, {"recursive", s.Recursive}, {"adopt", s.Adopt != nil}} {
			if f.set {
				add(f.key, "is for sources of mode zfs")
			}
		}
	}
	if s.Mode != Files {
		for _, f := range []struct {
			key string
			set bool
		}{{"exclude_files", s.ExcludeFiles != nil}, {"skip_caches", s.SkipCaches}, {"skip_nodump", s.SkipNodump}} {
			if f.set {
				add(f.key, "is for sources of mode files")
			}
		}
	}
	if len(s.ExcludeFiles) > MaxExcludeFiles {
		add("exclude_files", "has %d names, at most %d are allowed: each is looked for in every directory", len(s.ExcludeFiles), MaxExcludeFiles)
	}
	for _, name := range s.ExcludeFiles {
		if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
			add("exclude_files", "%q is no name of a file, as in \".secrateignore\"", name)
		}
	}
	switch s.Mode {
	case Stream:
		for _, f := range []struct {
			key string
			set bool
		}{{"snapshots", s.Snapshots != ""}, {"keep", s.Keep != ""}} {
			if f.set {
				add(f.key, "a source of mode stream takes no snapshots")
			}
		}
		for _, key := range s.timed() {
			add(key, "a source of mode stream is kept when secrate ingest is run, and not by the daemon")
		}
		if s.Path != "" {
			add("path", "a source of mode stream has none: it is fed by secrate ingest")
		}
	case ZFS:
		s.checkZFS(add)
	default:
		if s.Mode == Files && s.Snapshots != "" {
			add("snapshots", "a source of mode files takes none")
		}
		if s.Mode == Files && s.Keep != "" {
			add("keep", "a source of mode files takes no snapshots")
		}
		switch {
		case s.Path == "":
			add("path", "missing")
		case !filepath.IsAbs(s.Path):
			add("path", "%q is not absolute", s.Path)
		}
		if s.Snapshots != "" && !filepath.IsAbs(s.Snapshots) {
			add("snapshots", "%q is not absolute", s.Snapshots)
		}
	}
	if s.Mode != Stream {
		s.checkTimes(add)
	}
	if _, err := keep.Parse(s.Keep); err != nil {
		add("keep", "%v", err)
	}
	if strings.ContainsRune(s.Path, 0) {
		add("path", "has a NUL")
	}
	if strings.ContainsRune(s.Snapshots, 0) {
		add("snapshots", "has a NUL")
	}
	return faults
}

// checkZFS is check for what a dataset has and others do not, or the other way round.
func (s *Source) checkZFS(add func(key, format string, args ...any)) {
	switch {
	case s.Path != "":
		add("path", "a source of mode zfs has none, but dataset = \"POOL/NAME\"")
	case s.Dataset == "":
		add("dataset", "missing; it is the name of a dataset, as zfs list shows it")
	}
	if strings.ContainsAny(s.Dataset, "@#\x00\n\t") {
		add("dataset", "%q is not the name of a dataset", s.Dataset)
	}
	if s.Snapshots != "" {
		add("snapshots", "a dataset has its own")
	}
	if len(s.Exclude) > 0 {
		add("exclude", "of a dataset nothing can be left out; what is not wanted can be a dataset of its own")
	}
	if s.Adopt != nil && len(s.Adopt) == 0 {
		add("adopt", "is empty")
	}
	for _, p := range s.Adopt {
		if _, err := path.Match(p, ""); err != nil || p == "" || strings.Contains(p, "@") {
			add("adopt", "%q is no pattern for what a snapshot's name has behind the @, as in \"autosnap_*_daily\"", p)
		}
	}
	if len(s.Adopt) > 0 && s.Keep != "" {
		add("keep", "snapshots that are adopted are kept and destroyed by what takes them")
	}
}

func modeList() string {
	names := make([]string, len(Modes))
	for i, m := range Modes {
		names[i] = string(m)
	}
	return strings.Join(names, ", ")
}

// MaxName is how many bytes the name of a source may have.
const MaxName = 64

// CheckName returns an error unless name can name a source: 1 to 64 letters of
// ASCII, digits, dots, dashes and underscores, neither a dot nor a dash first.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("missing")
	case len(name) > MaxName:
		return fmt.Errorf("%q has %d bytes, at most %d are allowed", name, len(name), MaxName)
	case name[0] == '.' || name[0] == '-':
		return fmt.Errorf("%q starts with a dot or a dash", name)
	}
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_') {
			return fmt.Errorf("%q has other characters than A-Z, a-z, 0-9, dot, dash and underscore", name)
		}
	}
	return nil
}

// A Rate is in bytes per second; 0 is no limit.
type Rate int64

// rateUnits are those of Rate, the larger ones first among the binary ones, which
// String uses.
var rateUnits = []struct {
	name  string
	bytes float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3},
	{"Gbit", 1e9 / 8}, {"Mbit", 1e6 / 8}, {"kbit", 1e3 / 8}, {"bit", 1. / 8},
}

// ParseRate reads a number and a unit, such as 10 MiB/s, 1.5MB/s or 20 Mbit/s.
// The empty text and 0 are no limit. The unit must be there: a bare number could
// be anything.
func ParseRate(s string) (Rate, error) {
	text := strings.TrimSpace(s)
	if text == "" || text == "0" {
		return 0, nil
	}
	bad := fmt.Errorf("%q is no rate; write a number and a unit, as in 10 MiB/s, 500 kB/s or 20 Mbit/s", s)
	digits := len(text) - len(strings.TrimLeft(text, "0123456789."))
	n, err := strconv.ParseFloat(text[:digits], 64)
	if err != nil {
		return 0, bad
	}
	unit := strings.TrimSuffix(strings.TrimSpace(text[digits:]), "/s")
	for _, u := range rateUnits {
		if unit != u.name {
			continue
		}
		r := n * u.bytes
		if n != 0 && (r < 1 || r > 1<<50) {
			return 0, fmt.Errorf("%q is not a rate between 1 B/s and 1024 TiB/s", s)
		}
		return Rate(r), nil
	}
	return 0, bad
}

// String writes r so that ParseRate reads the same.
func (r Rate) String() string {
	if r == 0 {
		return ""
	}
	for _, u := range rateUnits {
		if n := int64(u.bytes); int64(r)%n == 0 {
			return fmt.Sprintf("%d %s/s", int64(r)/n, u.name)
		}
	}
	panic("config: internal error: no unit of one byte")
}

// MarshalText writes r as String does.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what ParseRate does.
func (r *Rate) UnmarshalText(text []byte) error {
	v, err := ParseRate(string(text))
	if err == nil {
		*r = v
	}
	return err
}

// nearest returns the one of words that was probably meant by word, or "".
func nearest(word string, words []string) string {
	best, found := (len(word)+2)/3+1, ""
	for _, w := range words {
		if d := distance(strings.ToLower(word), strings.ToLower(w)); d < best && d < len(w) {
			best, found = d, w
		}
	}
	return found
}

// distance is how many bytes must be put in, taken out, replaced or swapped with
// the next one to make b of a.
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	before, last, row := rows[0], rows[1], rows[2]
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
