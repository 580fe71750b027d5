package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
)

func newStats(a *app) *cobra.Command {
	var f readFlags
	var o statsOptions
	cmd := &cobra.Command{
		Use:   "stats [NAME]",
		Short: "Show what is stored, how it grew, and what it costs",
		Long: `Show of a source, or of all, how much is stored and for what:

    stored   the size of its objects, and their number
    newest   the size of the files in the newest snapshot
    all      the size that all snapshots would have, if each were a copy of its own
    growth   what was uploaded, by month (or --by day, --by snapshot), in local time
    largest  the directories and files for which most is stored, in all their versions

What is stored is attributed to the file that was the first to need it: a copy costs
nothing, a small change in a large file what the change takes. The figures are about
what the bytes take in packs, compressed. A file counts where it was last. A directory
counts with all below it, and is left out if nine tenths of it are in one directory
below, which says more. A pack that several sources refer to is counted for each of
them, and once in the total. Checkpoints of metadata are not counted; they are a few
percent of it.

What a month costs is reckoned with prices in the configuration; there are none built
in:

    [prices]
    storage_gb_month = 0.006    # for 1,000,000,000 bytes
    put_1000 = 0.005            # for 1,000 requests that write or list
    get_1000 = 0.0004           # for 1,000 that read
    currency = "EUR"

It counts what is stored, the objects that were written in the 30 days before the newest
snapshot with a list request for each snapshot, and, once, a request for each object, as
to read them all takes. What providers ask for traffic is not in it.

` + readingHelp + `
With --repo this is the metadata of all snapshots, and there are no prices.

Only metadata is read. Nothing is changed.

Exit statuses:

    0  done
    2  usage, such as a source that has no history
    3  nothing could be read`,
		Example: `  secrate stats
  secrate stats home --by day --top 20
  secrate stats --json`,
		Args:              arguments(0, 1, "the name of a source"),
		ValidArgsFunction: a.completeSources,
	}
	fl := cmd.Flags()
	fl.StringVar(&o.by, "by", "month", "sum up growth by `PERIOD`: month, day or snapshot")
	fl.IntVar(&o.top, "top", 10, "show the `N` largest directories and files; 0 shows none, and takes 2 seconds for a million files instead of 20")
	f.add(cmd)
	fl.BoolVar(&a.json, "json", false, "write one object a line: periods, directories, files, sources, then the total")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			o.name = args[0]
		}
		return a.stats(cmd.Context(), f, o)
	}
	return cmd
}

type statsOptions struct {
	name, by string
	top      int
}

// A period is what was uploaded in one.
type period struct {
	name      string // as --by has it
	snapshots int
	files     uint64
	uploaded  int64
	objects   int
}

// periods sums snapshots up, in their order.
func periods(snaps []s3history.Snapshot, name func(s3history.Snapshot) string) []period {
	var all []period
	for _, s := range snaps {
		n := name(s)
		if k := len(all); k == 0 || all[k-1].name != n {
			all = append(all, period{name: n})
		}
		p := &all[len(all)-1]
		p.snapshots++
		p.files += s.Files
		p.uploaded += s.Uploaded
		p.objects += s.Objects
	}
	return all
}

// A holding is what is stored, of a source or of all.
type holding struct {
	snapshots    int
	first, last  time.Time
	packs        int64
	packBytes    int64
	metaObjects  int64
	metaBytes    int64
	newestFiles  int64
	newest       int64
	fileVersions int64
	all          int64
	recent       int64 // requests that wrote or listed in the last 30 days
}

func (h *holding) stored() int64  { return h.packBytes + h.metaBytes }
func (h *holding) objects() int64 { return h.packs + h.metaObjects }

// newHolding returns what snapshots, of which there is one at least, and totals make.
// recent counts from since on.
func newHolding(snaps []s3history.Snapshot, t catalog.Totals, since time.Time) holding {
	h := holding{snapshots: len(snaps), first: snaps[0].Info.Time.Time(), last: snaps[len(snaps)-1].Info.Time.Time(),
		packs: t.Packs, packBytes: t.PackBytes, newestFiles: t.Files, newest: t.Newest, fileVersions: t.Versions, all: t.All}
	for _, s := range snaps {
		h.metaObjects += int64(s.Objects)
		h.metaBytes += 2 * s.Manifest // both copies
		if s.Info.Time.Time().After(since) {
			h.recent += int64(s.Objects) + 1
		}
	}
	h.metaObjects = max(h.metaObjects-t.Packs, 0)
	return h
}

// add adds what another source holds; packs are not added, as both may have them.
func (h *holding) add(o holding) {
	if h.snapshots == 0 || o.first.Before(h.first) {
		h.first = o.first
	}
	if o.last.After(h.last) {
		h.last = o.last
	}
	h.snapshots += o.snapshots
	h.metaObjects += o.metaObjects
	h.metaBytes += o.metaBytes
	h.newestFiles += o.newestFiles
	h.newest = min(h.newest+o.newest, 1<<62)
	h.fileVersions += o.fileVersions
	h.all = min(h.all+o.all, 1<<62)
	h.recent += o.recent
}

// A cost is what a holding costs.
type cost struct {
	Currency string  `json:"currency"`
	Storage  float64 `json:"storage_month"`
	Writes   float64 `json:"writes_month"`
	Reading  float64 `json:"reading_all_once"`
}

func costOf(p config.Prices, h holding) *cost {
	if p == (config.Prices{}) {
		return nil
	}
	return &cost{Currency: p.Currency, Storage: float64(h.stored()) / 1e9 * p.StorageGBMonth,
		Writes: float64(h.recent) / 1000 * p.Put1000, Reading: float64(h.objects()) / 1000 * p.Get1000}
}

func (a *app) stats(ctx context.Context, f readFlags, o statsOptions) error {
	layout, ok := map[string]string{"month": "2006-01", "day": "2006-01-02", "snapshot": ""}[o.by]
	switch {
	case !ok:
		return &usageError{"--by " + progress.Printable(o.by) + ": there is no such period", "--by month, day or snapshot"}
	case o.top < 0:
		return &usageError{"--top: is below 0", "--top 10"}
	}
	h, err := a.openHistory(ctx, f)
	if err != nil {
		return err
	}
	defer h.close()
	var sources []*past
	for _, p := range h.sources {
		if len(p.snapshots) > 0 && o.name == "" {
			sources = append(sources, p)
		}
	}
	if len(sources) == 0 {
		p, err := h.source(o.name)
		if err != nil {
			return err
		}
		sources = []*past{p}
	}
	last := time.Time{}
	for _, p := range sources {
		if err := h.load(ctx, p, 1, p.snapshots[len(p.snapshots)-1].Seq); err != nil {
			return err
		}
		if t := p.snapshots[len(p.snapshots)-1].Info.Time.Time(); t.After(last) {
			last = t
		}
	}
	if err := a.display.Close(); err != nil {
		return err
	}
	w := bufio.NewWriter(a.stdout)
	s := &statsWriter{w: w, namer: namerFor(a.stdout), json: a.json, db: h.db, top: o.top, by: o.by, one: len(sources) == 1, since: last.AddDate(0, 0, -30),
		period: func(s s3history.Snapshot) string {
			if layout == "" {
				return fmt.Sprintf("#%d of %s", s.Seq, localTime(s.Info.Time.Time()))
			}
			return s.Info.Time.Time().Local().Format(layout)
		}}
	if !h.bare() {
		s.prices = h.site.conf.Prices
	}
	for _, p := range sources {
		if err := s.source(ctx, p); err != nil {
			return err
		}
	}
	if err := s.total(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if s.prices == (config.Prices{}) && !a.json && !a.quiet && !h.bare() {
		a.say("hint", "with [prices] in "+h.site.configPath+" it says what a month costs: see secrate stats --help")
	}
	return nil
}

// A statsWriter writes figures.
type statsWriter struct {
	w      io.Writer
	namer  namer
	json   bool
	db     *catalog.DB
	top    int
	by     string
	since  time.Time
	period func(s3history.Snapshot) string
	prices config.Prices
	one    bool // there is one source
	sum    holding
}

// A periodObject, a usageObject and a holdingObject are what --json says; Stat tells them
// apart.
type periodObject struct {
	Stat         string `json:"stat"` // month, day, snapshot
	Source       string `json:"source"`
	Period       string `json:"period"`
	Snapshots    int    `json:"snapshots"`
	FilesChanged uint64 `json:"files_changed"`
	Uploaded     int64  `json:"uploaded_bytes"`
	Objects      int    `json:"objects"`
}

type usageObject struct {
	Stat      string `json:"stat"` // directory, file
	Source    string `json:"source"`
	Path      string `json:"path"`
	PathBytes string `json:"path_base64,omitempty"` // where path is not UTF-8
	Stored    int64  `json:"stored_bytes"`
	Plain     int64  `json:"plain_bytes"`
	Gone      bool   `json:"gone,omitempty"`
}

type holdingObject struct {
	Stat        string `json:"stat"` // source, total
	Source      string `json:"source,omitempty"`
	Snapshots   int    `json:"snapshots"`
	First       string `json:"first"`
	Last        string `json:"last"`
	Stored      int64  `json:"stored_bytes"`
	Objects     int64  `json:"objects"`
	Packs       int64  `json:"packs"`
	PackBytes   int64  `json:"pack_bytes"`
	MetaBytes   int64  `json:"metadata_bytes"`
	Files       int64  `json:"newest_files"`
	Newest      int64  `json:"newest_bytes"`
	Versions    int64  `json:"file_versions"`
	All         int64  `json:"all_snapshots_bytes"`
	WritesMonth int64  `json:"writes_30_days"`
	Cost        *cost  `json:"cost,omitempty"`
}

func (s *statsWriter) source(ctx context.Context, p *past) error {
	t, err := s.db.Totals(ctx, p.source.ID)
	if err != nil {
		return err
	}
	var files, dirs []catalog.Usage
	if s.top > 0 {
		if files, dirs, err = s.db.Usage(ctx, p.source.ID, s.top); err != nil {
			return err
		}
	}
	h := newHolding(p.snapshots, t, s.since)
	if s.one {
		s.sum = h
	} else {
		s.sum.add(h)
	}
	grown := periods(p.snapshots, s.period)
	if s.json {
		for _, x := range grown {
			if err := writeJSON(s.w, periodObject{s.by, p.name, x.name, x.snapshots, x.files, x.uploaded, x.objects}); err != nil {
				return err
			}
		}
		for _, list := range []struct {
			stat string
			all  []catalog.Usage
		}{{"directory", dirs}, {"file", files}} {
			for _, u := range list.all {
				o := usageObject{Stat: list.stat, Source: p.name, Stored: u.Stored, Plain: u.Plain, Gone: u.Gone}
				o.Path, o.PathBytes = jsonName(u.Path)
				if err := writeJSON(s.w, o); err != nil {
					return err
				}
			}
		}
		return s.holding("source", p.name, h)
	}
	if err := s.holding("source", p.name, h); err != nil {
		return err
	}
	fmt.Fprintf(s.w, "\n    %-30s %9s %14s %12s %9s\n", "growth by "+s.by, "snapshots", "files changed", "uploaded", "objects")
	for _, x := range grown {
		fmt.Fprintf(s.w, "    %-30s %9d %14d %12s %9d\n", x.name, x.snapshots, x.files, progress.Size(x.uploaded), x.objects)
	}
	for _, list := range []struct {
		what, slash string
		all         []catalog.Usage
	}{{"directories", "/", dirs}, {"files", "", files}} {
		if len(list.all) == 0 {
			continue
		}
		fmt.Fprintf(s.w, "\n    stored for %s\n", list.what)
		for _, u := range list.all {
			name, gone := s.namer.name(u.Path)+list.slash, ""
			switch {
			case u.Path == "":
				name = "(files that never had a name)"
			case u.Gone:
				gone = "  (no more there)"
			}
			fmt.Fprintf(s.w, "    %12s  %s%s\n", progress.Size(u.Stored), name, gone)
		}
	}
	_, err = fmt.Fprintln(s.w)
	return err
}

// holding writes what is stored of a source, or of all.
func (s *statsWriter) holding(stat, source string, h holding) error {
	if s.json {
		o := holdingObject{Stat: stat, Source: source, Snapshots: h.snapshots, First: when.FormatTime(h.first), Last: when.FormatTime(h.last),
			Stored: h.stored(), Objects: h.objects(), Packs: h.packs, PackBytes: h.packBytes, MetaBytes: h.metaBytes,
			Files: h.newestFiles, Newest: h.newest, Versions: h.fileVersions, All: h.all, WritesMonth: h.recent}
		if stat == "total" {
			o.Cost = costOf(s.prices, h)
		}
		return writeJSON(s.w, o)
	}
	name := source
	if name == "" {
		name = "all sources"
	}
	fmt.Fprintf(s.w, "%s: %s, %s to %s\n", name, count(h.snapshots, "snapshot"), localTime(h.first), localTime(h.last))
	fmt.Fprintf(s.w, "    %-8s %12s  in %s: %s of %s, metadata of %s in both copies\n", "stored", progress.Size(h.stored()), count(h.objects(), "object"),
		count(h.packs, "pack"), progress.Size(h.packBytes), progress.Size(h.metaBytes))
	fmt.Fprintf(s.w, "    %-8s %12s  in %s%s\n", "newest", progress.Size(h.newest), count(h.newestFiles, "file"), ratio(h.newest, h.stored()))
	_, err := fmt.Fprintf(s.w, "    %-8s %12s  in %s of files, if every snapshot were a copy%s\n", "all", progress.Size(h.all), count(h.fileVersions, "version"), ratio(h.all, h.stored()))
	return err
}

func ratio(n, stored int64) string {
	if stored == 0 {
		return ""
	}
	return fmt.Sprintf(": %.1f times what is stored", float64(n)/float64(stored))
}

// total writes what is stored of all sources, and what it costs.
func (s *statsWriter) total() error {
	if !s.one {
		var err error
		if s.sum.packs, s.sum.packBytes, err = s.db.PackTotals(); err != nil {
			return err
		}
	}
	if s.json || !s.one {
		if err := s.holding("total", "", s.sum); err != nil {
			return err
		}
	}
	return s.costs()
}

func (s *statsWriter) costs() error {
	c := costOf(s.prices, s.sum)
	if s.json || c == nil {
		return nil
	}
	_, err := fmt.Fprintf(s.w, "a month costs %.2f %s: %s stored %s, %s written or listed %s; to read all once takes %s, %s\n",
		c.Storage+c.Writes, c.Currency, progress.Size(s.sum.stored()), money(c.Storage), count(s.sum.recent, "request"), money(c.Writes),
		count(s.sum.objects(), "request"), money(c.Reading))
	return err
}

// money is an amount for people, with as many digits as it takes to see something.
func money(v float64) string {
	if v != 0 && v < 0.01 {
		return fmt.Sprintf("%.4f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
