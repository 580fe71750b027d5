package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
)

func newDiff(a *app) *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "diff NAME[:PATH]",
		Short: "Show what differs between two points in time",
		Long: `Show what differs in a source, or at and below PATH, between two points in time, by
path: a sign, the size before, the size after, the path, and what of it differs.

    +  added         the path was not there
    -  removed       the path is no more
    M  modified      what is there is not as it was; "replaced" if it is another file
    R  renamed       the same file had another name, or was in another directory

A directory that was renamed is one line, whatever is in it; what was in one that is no
more is a line each. PATH also stands for what was there and is elsewhere now, and for
what is there now and was elsewhere. Content is compared by where in the repository it
is; the bytes that changed are counted. Changes of ctime, birth time and inode number
alone are not shown, nor is mtime of directories. A file with several names that was
modified is shown under one of them.

--to is the newest snapshot where it is not given, --from the one before --to. The
last line sums up. Only metadata is read, on the machine that wrote the history only of
what changed. A million changes take a minute or less, and temporary files, not memory.

` + readingHelp + `

Nothing is changed.

Exit statuses:

    0  done, whether something differs or not
    2  usage, such as a source that has no history
    3  nothing could be read, or the path was there at neither time`,
		Example: `  secrate diff home
  secrate diff home:docs --from "2026-11-20 15:04" --to '#12' --json`,
		Args:              arguments(1, 1, "a source or path as NAME:PATH"),
		ValidArgsFunction: a.completeSources,
	}
	from := cmd.Flags().String("from", "", "compare from the state at `T`, as --at of secrate ls takes it (default: the snapshot before --to)")
	to := cmd.Flags().String("to", "latest", "compare to the state at `T`")
	f.add(cmd)
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line for each difference")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.diff(cmd.Context(), f, args[0], *from, *to)
	}
	return cmd
}

// endpoints returns the snapshots that --from and --to stand for.
func (p *past) endpoints(from, to string) (first, last s3history.Snapshot, err error) {
	point, err := parsePoint("--to", to)
	if err != nil {
		return first, last, err
	}
	if last, err = p.pick(point); err != nil {
		return first, last, err
	}
	if from == "" {
		first, err = p.before(last)
		return first, last, err
	}
	if point, err = parsePoint("--from", from); err != nil {
		return first, last, err
	}
	if first, err = p.pick(point); err == nil && first.Seq > last.Seq {
		err = &usageError{fmt.Sprintf("--from is #%d, and --to, #%d, is before it", first.Seq, last.Seq), "exchange them"}
	}
	return first, last, err
}

func (a *app) diff(ctx context.Context, f readFlags, arg, from, to string) error {
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
	first, last, err := p.endpoints(from, to)
	if err != nil {
		return err
	}
	if err := h.load(ctx, p, first.Seq, last.Seq); err != nil {
		return err
	}
	for _, s := range []s3history.Snapshot{first, last} {
		if s.Partial {
			a.warn("%s #%d IS PARTIAL: files that had not been reached when it was made are missing in it", p.name, s.Seq)
		}
	}
	was, is := h.db.At(p.source.ID, first.Seq), h.db.At(p.source.ID, last.Seq)
	within, err := newScope(was, is, t.path)
	if errors.Is(err, filetree.ErrNotExist) {
		return hinted(fmt.Errorf("%s: %w in #%d or #%d", progress.Printable(t.String()), filetree.ErrNotExist, first.Seq, last.Seq),
			"secrate log %s shows when it was there", quote(t.String()))
	} else if err != nil {
		return err
	}
	users, groups, err := s3history.Names(h.db, p.source)
	if err != nil {
		return err
	}
	if err := a.display.Close(); err != nil {
		return err
	}
	w := bufio.NewWriter(a.stdout)
	l := &differenceLister{w: w, namer: namerFor(a.stdout), json: a.json, source: p.name, users: users, groups: groups}
	for d, err := range is.Since(ctx, first.Seq) {
		if err == nil && within.has(d) {
			err = l.difference(d)
		}
		if err != nil {
			return errors.Join(err, w.Flush())
		}
	}
	if !a.json {
		fmt.Fprintf(w, "%s: #%d of %s to #%d of %s: %s\n", p.name, first.Seq, localTime(first.Info.Time.Time()),
			last.Seq, localTime(last.Info.Time.Time()), l.sum())
	}
	return w.Flush()
}

// A scope is what a path stands for: at each of two times what has it then, and what has
// it at the other time.
type scope struct{ was, is []string }

// newScope returns the scope of a path. The error wraps filetree.ErrNotExist if it is
// there at neither time.
func newScope(was, is catalog.View, path []string) (scope, error) {
	text := strings.Join(path, "/")
	s := scope{[]string{text}, []string{text}}
	found := false
	for _, x := range []struct {
		here, there catalog.View
		list        *[]string
	}{{is, was, &s.was}, {was, is, &s.is}} {
		n, err := x.here.Resolve(path)
		if err == nil {
			found = true
			var other []string
			if other, err = x.there.Path(n); err == nil {
				*x.list = append(*x.list, strings.Join(other, "/"))
			}
		}
		if err != nil && !errors.Is(err, filetree.ErrNotExist) {
			return s, err
		}
	}
	if !found {
		return s, filetree.ErrNotExist
	}
	return s, nil
}

func (s scope) has(d catalog.Difference) bool {
	switch d.Change {
	case catalog.Removed:
		return below(d.Path, s.was)
	case catalog.Renamed:
		return below(d.Path, s.is) || below(d.From, s.was)
	}
	return below(d.Path, s.is)
}

// below reports whether a path is one of dirs, or below one.
func below(path string, dirs []string) bool {
	for _, dir := range dirs {
		if dir == "" || path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

// A differenceLister writes differences and counts them.
type differenceLister struct {
	w             io.Writer
	namer         namer
	json          bool
	source        string
	users, groups map[uint32]string

	counts       [5]int // by catalog.Change
	more, less   int64  // bytes of files that came and went
	bytesChanged int64
}

// A differenceObject is what --json says of a difference.
type differenceObject struct {
	Source     string   `json:"source"`
	Change     string   `json:"change"` // added, removed, modified, renamed
	Path       string   `json:"path"`
	PathBytes  string   `json:"path_base64,omitempty"` // where path is not UTF-8
	From       *string  `json:"from,omitempty"`        // of what was renamed
	FromBytes  string   `json:"from_base64,omitempty"`
	Type       string   `json:"type"`
	Changed    []string `json:"changed,omitempty"`
	SizeBefore *int64   `json:"size_before,omitempty"`
	Size       *int64   `json:"size,omitempty"`
	Bytes      int64    `json:"changed_bytes,omitempty"`
	ModeBefore string   `json:"mode_before,omitempty"`
	Mode       string   `json:"mode,omitempty"`
	Mtime      string   `json:"mtime,omitempty"`
	Link       bool     `json:"link,omitempty"` // a name of a file that has others
}

var changeWords = map[catalog.Change]struct{ sign, word string }{
	catalog.Added: {"+", "added"}, catalog.Removed: {"-", "removed"}, catalog.Modified: {"M", "modified"}, catalog.Renamed: {"R", "renamed"},
}

func (l *differenceLister) difference(d catalog.Difference) error {
	l.counts[d.Change]++
	if !d.Link {
		l.more += max(d.After.Size-d.Before.Size, 0)
		l.less += max(d.Before.Size-d.After.Size, 0)
	}
	l.bytesChanged += d.Bytes
	kind := d.After.Kind
	if d.Change == catalog.Removed {
		kind = d.Before.Kind
	}
	if l.json {
		o := differenceObject{Source: l.source, Change: changeWords[d.Change].word, Type: kind.String(), Changed: d.What.Names(), Bytes: d.Bytes, Link: d.Link}
		o.Path, o.PathBytes = jsonName(d.Path)
		if d.Change == catalog.Renamed {
			from, bytes := jsonName(d.From)
			o.From, o.FromBytes = &from, bytes
		}
		if d.Change != catalog.Added {
			o.SizeBefore, o.ModeBefore = &d.Before.Size, fmt.Sprintf("%04o", d.Before.Mode)
		}
		if d.Change != catalog.Removed {
			o.Size, o.Mode, o.Mtime = &d.After.Size, fmt.Sprintf("%04o", d.After.Mode), when.FormatTime(d.After.Mtime.Time())
		}
		return writeJSON(l.w, o)
	}
	size := func(a filetree.Attr, there bool) string {
		if !there || a.Kind != filetree.File {
			return ""
		}
		return progress.Size(a.Size)
	}
	name := func(path string) string {
		if path == "" {
			return "/"
		}
		if kind == filetree.Dir {
			path += "/"
		}
		return l.namer.name(path)
	}
	text := name(d.Path)
	if d.Change == catalog.Renamed {
		text = name(d.From) + " -> " + text
	}
	if words := l.words(d); len(words) > 0 {
		text += "  (" + strings.Join(words, ", ") + ")"
	}
	_, err := fmt.Fprintf(l.w, "%s %11s %11s  %s\n", changeWords[d.Change].sign, size(d.Before, d.Change != catalog.Added), size(d.After, d.Change != catalog.Removed), text)
	return err
}

// words says what of it differs.
func (l *differenceLister) words(d catalog.Difference) []string {
	words := aspectWords(d.What, d.Bytes)
	for i, w := range words {
		switch w {
		case "mode":
			words[i] = fmt.Sprintf("mode %04o, was %04o", d.After.Mode, d.Before.Mode)
		case "owner":
			words[i] = fmt.Sprintf("owner %s:%s, was %s:%s", owner(l.users, d.After.UID), owner(l.groups, d.After.GID), owner(l.users, d.Before.UID), owner(l.groups, d.Before.GID))
		case "target":
			words[i] = fmt.Sprintf("target %s, was %s", l.namer.name(d.After.Target), l.namer.name(d.Before.Target))
		}
	}
	if d.Link {
		words = append(words, "a link: the file has other names")
	}
	return words
}

// sum is the last line.
func (l *differenceLister) sum() string {
	var words []string
	for _, c := range []catalog.Change{catalog.Added, catalog.Removed, catalog.Modified, catalog.Renamed} {
		if n := l.counts[c]; n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, changeWords[c].word))
		}
	}
	if len(words) == 0 {
		return "nothing differs"
	}
	text := strings.Join(words, ", ")
	if l.more+l.less+l.bytesChanged > 0 {
		text += fmt.Sprintf("; %s more, %s less, %s changed", progress.Size(l.more), progress.Size(l.less), progress.Size(l.bytesChanged))
	}
	return text
}
