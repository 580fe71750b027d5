package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
)

func newLog(a *app) *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "log NAME:PATH",
		Short: "Show every version of a file, directory or link",
		Long: `Show every version of what has PATH, newest first: the number and time of the
snapshot, the size, what the version has added to the repository, and what changed.
NAME may be left out where there is only one source.

It follows a file through renames, also of directories that it is in, back to where it
was created. If another file had PATH before, as where an editor writes a new file and
renames it over the old one, that one's versions come next, under a heading of their
own. What is no more there has a last version, removed; secrate find --deleted finds
such paths. --at T takes the history as it was at T.

What a version has added is the bytes of its content in packs that no earlier snapshot
of the source refers to, before compression, each counted once. So a copy of a file
that was there adds nothing, and one changed byte a few: of a patch it is its size.
Metadata is not counted. To know this all extents of the source are looked through, a
second or so for a million files.

Of a directory it is told what became of itself, and how many entries were new and
gone. Only metadata is read.

` + readingHelp + `
With --repo this is the metadata of all snapshots up to T.

Nothing is changed.

Exit statuses:

    0  done
    2  usage, such as a source that has no history
    3  nothing could be read, or the path was never there`,
		Example: `  secrate log home:docs/letter.txt
  secrate log home:docs --at "2d ago" --json`,
		Args:              arguments(1, 1, "a path as NAME:PATH"),
		ValidArgsFunction: a.completeSources,
	}
	at := atFlag(cmd)
	f.add(cmd)
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line for each version")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.showVersions(cmd.Context(), f, args[0], *at)
	}
	return cmd
}

// A chapter is what a log has of one node.
type chapter struct {
	node     filetree.NodeID
	until    uint64 // the snapshot in which another had the path; 0 if none had
	versions []catalog.Version
}

// chapters returns those of a path, newest first.
func chapters(ctx context.Context, v catalog.View, path []string) ([]chapter, error) {
	held, err := v.Holders(path)
	if err != nil {
		return nil, err
	}
	var all []chapter
	for i, h := range slices.Backward(held) {
		if slices.ContainsFunc(all, func(c chapter) bool { return c.node == h.Node }) {
			continue // it had the path twice
		}
		c := chapter{node: h.Node}
		if c.versions, err = v.Versions(ctx, h.Node, strings.Join(path, "/")); err != nil {
			return nil, err
		}
		if i < len(held)-1 {
			c.until = held[i+1].From
			// What became of it elsewhere afterwards is another path's.
			c.versions = slices.DeleteFunc(c.versions, func(x catalog.Version) bool { return x.Seq > h.To })
		}
		slices.Reverse(c.versions)
		all = append(all, c)
	}
	return all, nil
}

func (a *app) showVersions(ctx context.Context, f readFlags, arg, at string) error {
	point, err := parseAt(at)
	if err != nil {
		return err
	}
	h, err := a.openHistory(ctx, f)
	if err != nil {
		return err
	}
	defer h.close()
	t := parseTarget(arg)
	p, err := h.source(t.name)
	if err != nil {
		return err
	}
	t.name = p.name
	snap, err := p.pick(point)
	if err != nil {
		return err
	}
	if err := h.load(ctx, p, 1, snap.Seq); err != nil {
		return err
	}
	all, err := chapters(ctx, h.db.At(p.source.ID, snap.Seq), t.path)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		name := ""
		if len(t.path) > 0 {
			name = t.path[len(t.path)-1]
		}
		return hinted(fmt.Errorf("%s: was never there, up to #%d of %s", progress.Printable(t.String()), snap.Seq, localTime(snap.Info.Time.Time())),
			"secrate find %s %s finds names, and with --deleted those that are no more", quote("*"+name+"*"), quote(p.name))
	}
	if err := a.display.Close(); err != nil {
		return err
	}
	w := bufio.NewWriter(a.stdout)
	l := &versionLister{w: w, past: p, target: t, namer: namerFor(a.stdout), json: a.json}
	for i, c := range all {
		if err := l.chapter(i, c); err != nil {
			return err
		}
	}
	return w.Flush()
}

// A versionLister writes versions.
type versionLister struct {
	w      io.Writer
	past   *past
	target target
	namer  namer
	json   bool
}

func (l *versionLister) chapter(i int, c chapter) error {
	if !l.json {
		head := l.namer.name(l.target.String())
		if i > 0 {
			head = fmt.Sprintf("\n%s, another, before #%d", head, c.until)
		}
		if _, err := fmt.Fprintln(l.w, head); err != nil {
			return err
		}
	}
	for _, x := range c.versions {
		if err := l.version(c, x); err != nil {
			return err
		}
	}
	return nil
}

// A versionObject is what --json says of a version.
type versionObject struct {
	Source    string   `json:"source"`
	Seq       uint64   `json:"seq"`
	Time      string   `json:"time"`
	Node      uint64   `json:"node"` // the same as long as it is the same file
	Path      string   `json:"path"`
	PathBytes string   `json:"path_base64,omitempty"` // where path is not UTF-8
	From      *string  `json:"from,omitempty"`        // the path before
	FromBytes string   `json:"from_base64,omitempty"`
	Event     string   `json:"event"` // created, changed, removed
	Changed   []string `json:"changed"`
	Replaced  bool     `json:"replaced,omitempty"` // from here on another has the path
	Type      string   `json:"type"`
	Mode      string   `json:"mode"`
	UID       uint32   `json:"uid"`
	GID       uint32   `json:"gid"`
	Size      int64    `json:"size"`
	Mtime     string   `json:"mtime"`
	Bytes     int64    `json:"changed_bytes"`
	Stored    int64    `json:"stored_bytes"`
	Linked    []string `json:"linked,omitempty"`
	Unlinked  []string `json:"unlinked,omitempty"`
	Added     int      `json:"entries_added,omitempty"`
	Gone      int      `json:"entries_gone,omitempty"`
}

func (l *versionLister) version(c chapter, x catalog.Version) error {
	var time string
	if s, ok := l.past.snapshot(x.Seq); ok {
		time = when.FormatTime(s.Info.Time.Time())
		if !l.json {
			time = localTime(s.Info.Time.Time())
		}
	}
	replaced := c.until != 0 && x.Seq == c.until
	if l.json {
		o := versionObject{Source: l.past.name, Seq: x.Seq, Time: time, Node: uint64(c.node), Event: "changed", Changed: x.What.Names(),
			Replaced: replaced, Type: x.Attr.Kind.String(), Mode: fmt.Sprintf("%04o", x.Attr.Mode), UID: x.Attr.UID, GID: x.Attr.GID,
			Size: x.Attr.Size, Mtime: when.FormatTime(x.Attr.Mtime.Time()), Bytes: x.Bytes, Stored: x.Stored,
			Linked: x.Got, Unlinked: x.Lost, Added: x.Added, Gone: x.Gone}
		o.Path, o.PathBytes = jsonName(x.Path)
		if x.From != "" {
			from, bytes := jsonName(x.From)
			o.From, o.FromBytes = &from, bytes
		}
		switch {
		case x.Created:
			o.Event = "created"
		case x.Removed:
			o.Event = "removed"
		}
		if o.Changed == nil {
			o.Changed = []string{}
		}
		return writeJSON(l.w, o)
	}
	size, stored := "-", ""
	if x.Attr.Kind == filetree.File && !x.Removed {
		size, stored = progress.Size(x.Attr.Size), "+"+progress.Size(x.Stored)
	}
	_, err := fmt.Fprintf(l.w, "%6s  %19s %11s %11s  %s\n", fmt.Sprintf("#%d", x.Seq), time, size, stored, l.what(c, x, replaced))
	return err
}

// what says what became of it.
func (l *versionLister) what(c chapter, x catalog.Version, replaced bool) string {
	path := strings.Join(l.target.path, "/")
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	name := l.namer.name
	switch {
	case x.Created && x.Path == path:
		add("created")
	case x.Created:
		add("created as %s", name(x.Path))
	case x.Removed && x.Path == path:
		add("removed")
	case x.Removed:
		add("removed from %s", name(x.Path))
	case x.From == "":
	case x.Path == path:
		add("renamed from %s", name(x.From))
	case x.From == path:
		add("renamed to %s", name(x.Path))
	default:
		add("renamed from %s to %s", name(x.From), name(x.Path))
	}
	if replaced {
		add("another took the path")
	}
	words = append(words, aspectWords(x.What, x.Bytes)...)
	for _, n := range x.Got {
		add("linked as %s", name(n))
	}
	for _, n := range x.Lost {
		add("no more linked as %s", name(n))
	}
	if x.Attr.Kind == filetree.Dir && x.Added+x.Gone > 0 {
		add("entries +%d -%d", x.Added, x.Gone)
	}
	if x.Attr.Incomplete {
		add("incomplete: not all of it could be read")
	}
	return strings.Join(words, ", ")
}

// aspectWords says for people what differs. New content has a new time.
func aspectWords(what catalog.Aspects, bytes int64) []string {
	var words []string
	if what&catalog.Content != 0 {
		if bytes > 0 {
			words = append(words, "content ("+progress.Size(bytes)+" changed)")
		} else {
			words = append(words, "content (shorter)")
		}
		what &^= catalog.Content | catalog.Times
	}
	return append(words, what.Names()...)
}

// snapshot returns the snapshot of that number, if it is there.
func (p *past) snapshot(seq uint64) (s3history.Snapshot, bool) {
	i, ok := slices.BinarySearchFunc(p.snapshots, seq, func(s s3history.Snapshot, seq uint64) int {
		switch {
		case s.Seq < seq:
			return -1
		case s.Seq > seq:
			return 1
		}
		return 0
	})
	if !ok {
		return s3history.Snapshot{}, false
	}
	return p.snapshots[i], true
}
