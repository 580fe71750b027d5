package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
)

func newLs(a *app) *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "ls [NAME[:PATH]]",
		Short: "List a directory of the history, or the sources",
		Long: `List what is in a directory of a source as it was at a point in time, by name: mode,
owner and group, size in bytes, time of modification and name. A file is listed
itself. Without PATH it is the source's root, without NAME the sources that have a
history. Only metadata is read.

On a terminal bytes that are no printable text are shown as \xff, \n or \u202e;
elsewhere names are written as they are. In JSON a name that is not UTF-8 is also
given in base64, as path_base64, and there are the extended attributes, in the same
way: those that no file system can be given, too.

` + readingHelp + `

Nothing is changed.

Exit statuses:

    0  done
    2  usage, such as a source that has no history
    3  nothing could be read, or the path was not there at that time`,
		Example: `  secrate ls home:docs --at "2d ago"
  secrate ls -r home --at '#12' --json`,
		Args:              arguments(0, 1, "a path as NAME:PATH"),
		ValidArgsFunction: a.completeSources,
	}
	at := atFlag(cmd)
	recursive := cmd.Flags().BoolP("recursive", "r", false, "list what is in directories as well")
	f.add(cmd)
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return a.listPast(cmd.Context(), f)
		}
		return a.ls(cmd.Context(), f, args[0], *at, *recursive)
	}
	return cmd
}

// listPast lists the sources that have a history.
func (a *app) listPast(ctx context.Context, f readFlags) error {
	h, err := a.openHistory(ctx, f)
	if err != nil {
		return err
	}
	defer h.close()
	if err := a.display.Close(); err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, p := range h.sources {
		if len(p.snapshots) == 0 {
			continue
		}
		last := p.snapshots[len(p.snapshots)-1]
		if a.json {
			err := writeJSON(a.stdout, struct {
				Source    string `json:"source"`
				Writer    string `json:"writer"`
				Host      string `json:"host"`
				Snapshots int    `json:"snapshots"`
				Seq       uint64 `json:"seq"`
				Time      string `json:"time"`
			}{p.name, p.writer.ID, p.writer.Name, len(p.snapshots), last.Seq, when.FormatTime(last.Info.Time.Time())})
			if err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s\t%s\tlast #%d%s of %s\tby %s\n", p.name, count(len(p.snapshots), "snapshot"), last.Seq, partial(last),
			localTime(last.Info.Time.Time()), namer(true).name(p.writer.Name))
	}
	return w.Flush()
}

func (a *app) ls(ctx context.Context, f readFlags, arg, at string, recursive bool) error {
	r, err := a.read(ctx, f, arg, at)
	if err != nil {
		return err
	}
	defer r.close()
	node, err := r.view.Resolve(r.path)
	if err != nil {
		return r.missing(err)
	}
	attr, err := r.view.Attr(node)
	if err != nil {
		return err
	}
	l := &lister{view: r.view, recursive: recursive, namer: namerFor(a.stdout), json: a.json, seen: map[filetree.NodeID]bool{}}
	if l.users, l.groups, err = s3history.Names(r.db, r.past.source); err != nil {
		return err
	}
	if err := a.display.Close(); err != nil {
		return err
	}
	w := bufio.NewWriter(a.stdout)
	l.w = w
	if attr.Kind == filetree.Dir {
		err = l.dir(ctx, node, strings.Join(r.path, "/"), "")
	} else {
		name := r.path[len(r.path)-1]
		err = l.entry(strings.Join(r.path, "/"), name, &attr)
	}
	if err != nil {
		return err
	}
	return w.Flush()
}

// A lister writes entries.
type lister struct {
	w             io.Writer
	view          catalog.View
	users, groups map[uint32]string
	recursive     bool
	json          bool
	namer         namer
	seen          map[filetree.NodeID]bool // directories we are in: a history may lie
}

// dir lists a directory; path is relative to the source, shown to what was asked for.
func (l *lister) dir(ctx context.Context, n filetree.NodeID, path, shown string) error {
	if l.seen[n] {
		return fmt.Errorf("directory %q is in itself: %w", path, s3history.ErrFormat)
	}
	l.seen[n] = true
	defer delete(l.seen, n)
	for c, err := range l.view.List(n) {
		if err == nil {
			err = c.Err
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		childPath, childShown := join(path, c.Name), join(shown, c.Name)
		if err := l.entry(childPath, childShown, &c.Attr); err != nil {
			return err
		}
		if l.recursive && c.Attr.Kind == filetree.Dir {
			if err := l.dir(ctx, c.Node, childPath, childShown); err != nil {
				return err
			}
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// An entryObject is what --json says of an entry.
type entryObject struct {
	Path        string  `json:"path"`
	PathBytes   string  `json:"path_base64,omitempty"` // where path is not UTF-8
	Type        string  `json:"type"`
	Mode        string  `json:"mode"`
	UID         uint32  `json:"uid"`
	GID         uint32  `json:"gid"`
	User        string  `json:"user,omitempty"`
	Group       string  `json:"group,omitempty"`
	Size        int64   `json:"size"`
	Mtime       string  `json:"mtime"`
	Ctime       string  `json:"ctime"`
	Btime       string  `json:"btime,omitempty"`
	Target      string  `json:"target,omitempty"`
	TargetBytes string  `json:"target_base64,omitempty"`
	Major       *uint32 `json:"major,omitempty"`
	Minor       *uint32 `json:"minor,omitempty"`
	Incomplete  bool    `json:"incomplete,omitempty"` // not all of it could be read

	Xattrs []xattrObject `json:"xattrs,omitempty"`
}

// An xattrObject is an extended attribute.
type xattrObject struct {
	Name       string `json:"name"`
	NameBytes  string `json:"name_base64,omitempty"` // where name is not UTF-8
	Value      string `json:"value"`
	ValueBytes string `json:"value_base64,omitempty"`
}

// entry writes one entry. Its path is relative to the source.
func (l *lister) entry(path, shown string, a *filetree.Attr) error {
	if !l.json {
		return l.line(shown, a)
	}
	o := entryObject{
		Type: a.Kind.String(), Mode: fmt.Sprintf("%04o", a.Mode), UID: a.UID, GID: a.GID, User: l.users[a.UID], Group: l.groups[a.GID],
		Size: a.Size, Incomplete: a.Incomplete, Mtime: when.FormatTime(a.Mtime.Time()), Ctime: when.FormatTime(a.Ctime.Time()),
	}
	o.Path, o.PathBytes = jsonName(path)
	o.Target, o.TargetBytes = jsonName(a.Target)
	if !a.Btime.IsZero() {
		o.Btime = when.FormatTime(a.Btime.Time())
	}
	if a.Kind == filetree.CharDev || a.Kind == filetree.BlkDev {
		o.Major, o.Minor = &a.Major, &a.Minor
	}
	for _, x := range a.Xattrs {
		var xo xattrObject
		xo.Name, xo.NameBytes = jsonName(x.Name)
		xo.Value, xo.ValueBytes = jsonName(string(x.Value))
		o.Xattrs = append(o.Xattrs, xo)
	}
	return writeJSON(l.w, o)
}

func (l *lister) line(shown string, a *filetree.Attr) error {
	size := fmt.Sprint(a.Size)
	if a.Kind == filetree.CharDev || a.Kind == filetree.BlkDev {
		size = fmt.Sprintf("%d,%d", a.Major, a.Minor)
	}
	name := l.namer.name(shown)
	if a.Kind == filetree.Symlink {
		name += " -> " + l.namer.name(a.Target)
	}
	if a.Incomplete {
		name += "  (incomplete: not all of it could be read)"
	}
	_, err := fmt.Fprintf(l.w, "%s %-8s %-8s %12s %s %s\n", modeText(a), owner(l.users, a.UID), owner(l.groups, a.GID), size, localTime(a.Mtime.Time()), name)
	return err
}

// owner is a user's or group's name on the machine that was kept, or the number.
func owner(names map[uint32]string, id uint32) string {
	if name := names[id]; name != "" {
		return namer(true).name(name)
	}
	return fmt.Sprint(id)
}

// modeText is the mode as ls(1) writes it.
func modeText(a *filetree.Attr) string {
	b := []byte("?rwxrwxrwx")
	b[0] = map[filetree.Kind]byte{filetree.File: '-', filetree.Dir: 'd', filetree.Symlink: 'l', filetree.Fifo: 'p',
		filetree.Socket: 's', filetree.CharDev: 'c', filetree.BlkDev: 'b'}[a.Kind]
	for i := range 9 {
		if a.Mode&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	for _, special := range []struct {
		bit  uint32
		at   int
		char byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if a.Mode&special.bit == 0 {
			continue
		}
		if b[special.at] == '-' {
			b[special.at] = special.char - 'a' + 'A'
		} else {
			b[special.at] = special.char
		}
	}
	return string(b)
}
