package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
)

func newFind(a *app) *cobra.Command {
	var f readFlags
	var o findOptions
	cmd := &cobra.Command{
		Use:   "find PATTERN [NAME[:PATH]]...",
		Short: "Find files by name, also those that are no more",
		Long: `Find what has a name, in the sources or below the paths that are given, or in all
sources. Shown are the size, the time of modification, and the path as NAME:PATH.

PATTERN is a shell pattern, in quotes for the shell: * and ? and [a-z] match within a
name, and all of the name has to match. If there is a slash in it, it is matched with
the whole path in the source instead; ** then stands for any number of directories, as
in "**/mail/*.mbox". Case counts, unless --ignore-case is given.

With --deleted those are found that an earlier snapshot has and that are not there at T
any more, with the number and time of the last snapshot that has them: give that number
to secrate restore as --at. If the file is there under another name, it is said. A
directory that was renamed or is no more is found; what was in one that was renamed is
found where it is now.

Names are looked through one after the other, without looking at anything else: a
second or two for a million. With --deleted it is those alone that ended. Only metadata
is read.

` + readingHelp + `
With --repo and --deleted this is the metadata of all snapshots up to T.

Nothing is changed.

Exit statuses:

    0  done, also if nothing was found
    2  usage, such as a source that has no history
    3  nothing could be read`,
		Example: `  secrate find "*.odt" home:docs
  secrate find --deleted "letter*"
  secrate find "**/mail/*" --at "2026-11-20 15:04" --json`,
		Args: arguments(1, 1<<20, "a pattern"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeSources(cmd, args, toComplete)
		},
	}
	at := atFlag(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&o.deleted, "deleted", false, "find what is no more there at T")
	fl.BoolVarP(&o.fold, "ignore-case", "i", false, "let case make no difference")
	f.add(cmd)
	fl.BoolVar(&a.json, "json", false, "write one object a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.pattern, o.where, o.at = args[0], args[1:], *at
		return a.find(cmd.Context(), f, o)
	}
	return cmd
}

type findOptions struct {
	pattern, at string
	where       []string
	deleted     bool
	fold        bool
}

func (a *app) find(ctx context.Context, f readFlags, o findOptions) error {
	pattern, err := catalog.ParsePattern(o.pattern, o.fold)
	if err != nil {
		return &usageError{fmt.Sprintf("pattern %s: %v", progress.Printable(o.pattern), err), `a bracket or a backslash is open; \ before * ? [ and \ takes their meaning away`}
	}
	point, err := parseAt(o.at)
	if err != nil {
		return err
	}
	h, err := a.openHistory(ctx, f)
	if err != nil {
		return err
	}
	defer h.close()
	search := &search{a: a, h: h, pattern: pattern, deleted: o.deleted, namer: namerFor(a.stdout)}
	type place struct {
		past *past
		path []string
	}
	var places []place
	for _, arg := range o.where {
		t := parseTarget(arg)
		p, err := h.source(t.name)
		if err != nil {
			return err
		}
		places = append(places, place{p, t.path})
	}
	if len(o.where) == 0 {
		if len(h.sources) == 0 {
			_, err := h.source("")
			return err
		}
		for _, p := range h.sources {
			if len(p.snapshots) > 0 {
				places = append(places, place{p, nil})
			}
		}
	}
	w := bufio.NewWriter(a.stdout)
	search.w = w
	var views []catalog.View
	var snaps []s3history.Snapshot
	for i := range places {
		snap, err := places[i].past.pick(point)
		if err != nil && len(o.where) == 0 && len(places) > 1 { // it is younger than that
			snaps, views = append(snaps, s3history.Snapshot{}), append(views, catalog.View{})
			continue
		} else if err != nil {
			return err
		}
		v, err := search.view(ctx, places[i].past, snap)
		if err != nil {
			return err
		}
		snaps, views = append(snaps, snap), append(views, v)
	}
	if err := a.display.Close(); err != nil {
		return err
	}
	for i, x := range places {
		if snaps[i].Seq == 0 {
			continue
		}
		if err := search.source(ctx, x.past, snaps[i], views[i], strings.Join(x.path, "/")); err != nil {
			return errors.Join(err, w.Flush())
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !a.json && !a.quiet {
		search.hint(f, o)
	}
	return nil
}

// A search is one run of secrate find.
type search struct {
	a       *app
	h       *history
	w       io.Writer
	pattern catalog.Pattern
	deleted bool
	namer   namer

	found    int
	first    target // that was found
	firstSeq uint64
}

// view makes known what is to be searched.
func (s *search) view(ctx context.Context, p *past, snap s3history.Snapshot) (v catalog.View, err error) {
	if !s.deleted {
		return s.h.at(ctx, p, snap)
	}
	if err := s.h.load(ctx, p, 1, snap.Seq); err != nil {
		return v, err
	}
	return s.h.db.At(p.source.ID, snap.Seq), nil
}

// A foundObject is what --json says of what was found.
type foundObject struct {
	Source    string   `json:"source"`
	Path      string   `json:"path"`
	PathBytes string   `json:"path_base64,omitempty"` // where path is not UTF-8
	Type      string   `json:"type"`
	Mode      string   `json:"mode"`
	Size      int64    `json:"size"`
	Mtime     string   `json:"mtime"`
	Deleted   bool     `json:"deleted,omitempty"`
	Seq       uint64   `json:"seq"`  // the snapshot that has it: the one that was asked for, or the last
	Time      string   `json:"time"` // of that
	Now       []string `json:"now,omitempty"`
}

func (s *search) source(ctx context.Context, p *past, snap s3history.Snapshot, v catalog.View, under string) error {
	for m, err := range v.Find(ctx, s.pattern, s.deleted) {
		if err != nil {
			return err
		}
		if !below(m.Path, []string{under}) {
			continue
		}
		in := snap
		if s.deleted {
			in = p.upTo(m.Last)
		}
		t := target{p.name, s3history.SplitPath(m.Path)}
		if s.found++; s.found == 1 {
			s.first, s.firstSeq = t, in.Seq
		}
		if s.a.json {
			o := foundObject{Source: p.name, Type: m.Attr.Kind.String(), Mode: fmt.Sprintf("%04o", m.Attr.Mode), Size: m.Attr.Size,
				Mtime: when.FormatTime(m.Attr.Mtime.Time()), Deleted: s.deleted, Seq: in.Seq, Time: when.FormatTime(in.Info.Time.Time()), Now: m.Now}
			o.Path, o.PathBytes = jsonName(m.Path)
			if err := writeJSON(s.w, o); err != nil {
				return err
			}
			continue
		}
		size, text := "-", s.namer.name(p.name+":"+m.Path)
		if m.Attr.Kind == filetree.File {
			size = fmt.Sprint(m.Attr.Size)
		}
		if m.Attr.Kind == filetree.Dir {
			text += "/"
		}
		if len(m.Now) > 0 {
			text += "  (now " + s.namer.name(m.Now[0]) + ")"
		}
		if s.deleted {
			text = fmt.Sprintf("last in %s of %s  %s", fmt.Sprintf("#%d", in.Seq), localTime(in.Info.Time.Time()), text)
		}
		if _, err := fmt.Fprintf(s.w, "%12s %s %s\n", size, localTime(m.Attr.Mtime.Time()), text); err != nil {
			return err
		}
	}
	return nil
}

// upTo returns the newest snapshot of which the number is not higher: one may be lost.
func (p *past) upTo(seq uint64) s3history.Snapshot {
	s := s3history.Snapshot{Seq: seq}
	for _, x := range p.snapshots {
		if x.Seq <= seq {
			s = x
		}
	}
	return s
}

// hint says how to go on.
func (s *search) hint(f readFlags, o findOptions) {
	if s.found == 0 {
		s.a.say("note", "nothing was found")
		switch {
		case !strings.ContainsAny(o.pattern, "*?["):
			s.a.say("hint", "all of a name has to match: "+quote("*"+o.pattern+"*")+" finds what has it in its name")
		case !o.deleted:
			s.a.say("hint", "--deleted finds what is no more there")
		}
		return
	}
	repo, identity := "", " --identity FILE"
	if f.repo != "" {
		repo = " --repo " + quote(f.repo)
	}
	switch {
	case len(f.identities) > 0:
		identity = " --identity " + quote(f.identities[0])
	case os.Getenv("SECRATE_IDENTITY") != "":
		identity = ""
	}
	s.a.say("hint", fmt.Sprintf("to have it back: secrate restore %s --at '#%d' --to DIR%s%s", progress.Printable(quote(s.first.String())), s.firstSeq, repo, identity))
}
