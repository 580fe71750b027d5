package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/restore"
)

func newRestore(a *app) *cobra.Command {
	var f readFlags
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore [NAME[:PATH]] --at T --to DIR|DEVICE",
		Short: "Restore a source, a directory or a file as it was at a point in time",
		Long: `Restore everything of a source, or what PATH names in it, as it was at T into the
directory DIR. What was in a directory comes into DIR; a file comes into DIR under
its own name. NAME may be left out where there is only one source. It takes an
identity.

T is a local time such as "2026-11-20 15:04", a date (the end of that day), "3h ago",
"2d ago", latest, '#12' (a number, in quotes for the shell), or RFC 3339. The newest
snapshot not after T is restored.

` + readingHelp + `

DIR is made if it is not there, and refused if it is not empty, unless --into-existing
is given: then what is in the history is put in place of what has its name, and
whatever else is in DIR stays as it is. Nothing outside DIR is ever written. Contents,
names, modes, owners (as root), times, attributes, ACLs, links and holes come back;
what DIR cannot hold is counted and said at the end. Birth times are in the history
but cannot be set on Linux. Files that cannot be restored are named, and the others
are restored all the same. The repository is only read.

--to may also be a block device, by its name or by a link that leads to it, such as
/dev/zvol/tank/v. Onto it goes the content of one file: of a volume of ZFS, that is
NAME:volume. It is refused if it is mounted or otherwise in use, read-only, or smaller
than the file, and unless --into-existing says that what is on it may be overwritten.
Holes become zeros, which are not written where the device can be told. What is behind
the end of the file on a larger device is left alone. Attributes are not set. At the
end all of it is on the device; until then, or if restoring is broken off, neither what
was on it nor the file is there whole. The same command then writes all of it again.

Exit statuses:

    0  everything was restored
    1  some of it was not and is named, the rest was
    2  usage, such as no identity
    3  nothing was restored, or restoring was broken off`,
		Example: `  secrate restore home:docs --at "2d ago" --to /tmp/docs --identity secrate.key
  secrate restore tank-vm:volume --at latest --to /dev/zvol/tank/vm --into-existing --identity secrate.key
  secrate restore --repo "s3://backups/nas?endpoint=https://s3.example.org&region=eu-1" --identity secrate.key --at latest --to /mnt/new home`,
		Args:              arguments(0, 1, "a source or path as NAME:PATH"),
		ValidArgsFunction: a.completeSources,
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&o.at, "at", "", "the point in time `T` (needed)")
	fl.StringVar(&o.to, "to", "", "restore into the directory `DIR`, or a file onto the block device of that name (needed)")
	fl.BoolVar(&o.intoExisting, "into-existing", false, "allow a DIR that is not empty, or a device, what is on which is overwritten")
	f.add(cmd)
	fl.BoolVar(&a.json, "json", false, "write the counts as one object, and an object for each failure before it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			o.what = args[0]
		}
		return a.restore(cmd.Context(), f, o)
	}
	return cmd
}

type restoreOptions struct {
	what, at, to string
	intoExisting bool
}

func (a *app) restore(ctx context.Context, f readFlags, o restoreOptions) error {
	switch {
	case o.at == "":
		return &usageError{"the point in time is missing", "--at latest, or --at \"2d ago\", or another; see secrate restore --help"}
	case o.to == "":
		return &usageError{"the directory to restore into is missing", "--to DIR; it should not be there, or be empty"}
	}
	r, err := a.read(ctx, f, o.what, o.at)
	if err != nil {
		return err
	}
	defer r.close()
	node, err := r.view.Resolve(r.path)
	if err != nil {
		return r.missing(err)
	}
	device := localfs.IsDevice(o.to)
	if device {
		if err := r.needFile(node, o.to); err != nil {
			return err
		}
	}
	content, err := r.content(ctx, r.past)
	if err != nil {
		return err
	}
	a.onInterrupt = "what was restored stays; the same command with --into-existing goes on"
	if device {
		a.onInterrupt = "the same command writes all of it again"
	}
	step := a.display.Step(progress.Bytes)
	out := a.display.Results(a.stdout)
	var incomplete int64
	res, err := restore.Run(ctx, restore.Options{
		Catalog: r.db, View: r.view, Content: content, Path: r.path, To: o.to, IntoExisting: o.intoExisting, Progress: step,
		Failed: func(f restore.Failure) {
			if errors.Is(f.Err, restore.ErrIncomplete) {
				incomplete++
			}
			a.reportFailure(out, f)
		},
	})
	step.Done(err)
	if err != nil && device {
		return a.deviceFailed(o.to, res, err)
	}
	if err != nil {
		if res.Files+res.Dirs+res.Links+res.Special > 0 {
			a.warn("broken off: %s in %s so far", restoredCounts(res), progress.Printable(o.to))
		}
		return err
	}
	a.reportNotes(res.Notes)
	switch {
	case a.json:
		object := restoredObject{
			Source: r.past.name, Seq: r.snap.Seq, Time: objectOf(r.snap).Time, Files: res.Files, Dirs: res.Dirs, Links: res.Links,
			HardLinks: res.HardLinks, Special: res.Special, Bytes: res.Bytes, Failures: res.Failures,
		}
		if res.Device != nil {
			object.Device, object.Zeros = res.Device.Name, &res.Holes
		}
		err = writeJSON(out, object)
	case res.Device != nil:
		_, err = fmt.Fprintf(out, "%s: %s of #%d of %s restored onto %s\n", r.past.name, progress.Printable(r.path[len(r.path)-1]), r.snap.Seq,
			localTime(r.snap.Info.Time.Time()), deviceCounts(o.to, res))
	default:
		_, err = fmt.Fprintf(out, "%s: #%d of %s restored into %s: %s\n", r.past.name, r.snap.Seq, localTime(r.snap.Info.Time.Time()),
			progress.Printable(o.to), restoredCounts(res))
	}
	if err != nil || res.Failures == 0 {
		return err
	}
	if failed := res.Failures - incomplete; failed > 0 {
		a.fail(ctx, fmt.Errorf("%s could not be restored", count(failed, "file")))
	}
	if incomplete > 0 {
		a.fail(ctx, hinted(fmt.Errorf("%s incomplete since #%d or before", count(incomplete, "file"), r.snap.Seq),
			"an earlier snapshot may have them whole: secrate snapshots %s", r.past.name))
	}
	return exitError(exitPartly)
}

// A restoredObject is what --json says at the end of a restore.
type restoredObject struct {
	Source    string `json:"source"`
	Seq       uint64 `json:"seq"`
	Time      string `json:"time"`
	Files     int64  `json:"files"`
	Dirs      int64  `json:"dirs"`
	Links     int64  `json:"links"`
	HardLinks int64  `json:"hard_links"`
	Special   int64  `json:"special"`
	Bytes     int64  `json:"bytes"`
	Failures  int64  `json:"failures"`
	Device    string `json:"device,omitempty"` // where one was restored onto
	Zeros     *int64 `json:"zeros,omitempty"`  // with a device: bytes of holes
}

// needFile makes sure that a node can go onto a device.
func (r *reading) needFile(node filetree.NodeID, device string) error {
	attr, err := r.view.Attr(node)
	if err != nil || attr.Kind == filetree.File {
		return err
	}
	here := target{r.past.name, r.path}
	hint := "name a file, as NAME:PATH; a tree goes into a directory, which may be on a file system that is on the device"
	if attr.Kind == filetree.Dir { // a volume is a directory with one file
		var names []string
		for c, err := range r.view.Children(node) {
			if err != nil {
				return err
			}
			if names = append(names, c.Name); len(names) > 1 || c.Attr.Kind != filetree.File {
				names = nil
				break
			}
		}
		if len(names) == 1 {
			hint = quote(target{here.name, append(here.path[:len(here.path):len(here.path)], names[0])}.String()) + " is the one file in it"
		}
	}
	return &usageError{fmt.Sprintf("%s is a device, onto which goes one file; %s is none", progress.Printable(device), progress.Printable(here.String())), hint}
}

// deviceFailed says what has become of a device.
func (a *app) deviceFailed(to string, res restore.Result, err error) error {
	if res.Device != nil && res.Device.Begun {
		a.warn("%s IS INCOMPLETE: restoring was broken off after %s of content, and what was on it is overwritten", deviceName(to, res), progress.Size(res.Bytes))
	}
	if e, ok := errors.AsType[*localfs.DeviceError](err); ok {
		switch {
		case errors.Is(err, localfs.ErrOverwrites):
			rest := ""
			if e.Need < e.Size {
				rest = fmt.Sprintf("; the %s behind it stay as they are", progress.Size(e.Size-e.Need))
			}
			return hinted(err, "--into-existing overwrites the first %s of its %s%s", progress.Size(e.Need), progress.Size(e.Size), rest)
		case errors.Is(err, localfs.ErrTooSmall):
			return hinted(err, "it takes a device of %s or more; this one has %s", progress.Size(e.Need), progress.Size(e.Size))
		case errors.Is(err, localfs.ErrInUse):
			return hinted(err, "unmount it, or take it out of what uses it; lsblk shows what that is")
		}
	}
	return err
}

// deviceName is a device as it was named, and where that leads.
func deviceName(to string, res restore.Result) string {
	if res.Device.Name == to {
		return progress.Printable(to)
	}
	return fmt.Sprintf("%s (%s)", progress.Printable(to), progress.Printable(res.Device.Name))
}

func deviceCounts(to string, res restore.Result) string {
	size := res.Bytes + res.Holes
	text := fmt.Sprintf("%s: %s, %s of it zeros for holes", deviceName(to, res), progress.Size(size), progress.Size(res.Holes))
	if behind := res.Device.Size - size; behind > 0 {
		text += fmt.Sprintf("; the %s behind it were left alone", progress.Size(behind))
	}
	return text
}

func restoredCounts(res restore.Result) string {
	text := fmt.Sprintf("%s (%s), ", count(res.Files, "file"), progress.Size(res.Bytes))
	if res.Dirs == 1 {
		text += "1 directory"
	} else {
		text += fmt.Sprintf("%d directories", res.Dirs)
	}
	for _, c := range []struct {
		n    int64
		what string
	}{{res.Links, "symbolic link"}, {res.HardLinks, "hard link"}, {res.Special, "special file"}} {
		if c.n > 0 {
			text += ", " + count(c.n, c.what)
		}
	}
	return text
}

// reportNotes says what the target could not hold. Birth and change times, which
// nothing can set on Linux, are in the help and not worth a line each time.
func (a *app) reportNotes(notes []localfs.Note) {
	for _, n := range notes {
		if n.What == localfs.LostBirth {
			continue
		}
		example := ""
		if len(n.Names) > 0 {
			example = ", such as " + progress.Printable(cmp.Or(n.Names[0], ".")) // the target itself has no name
		}
		a.warn("%s could not be set on %s%s", n.What, count(n.Count, "node"), example)
	}
}

// reportFailure names what could not be restored.
func (a *app) reportFailure(out io.Writer, f restore.Failure) {
	what := "not restored"
	if errors.Is(f.Err, restore.ErrIncomplete) {
		what = "restored in part"
	}
	a.say("error", fmt.Sprintf("%s: %s: %v", what, progress.Printable(f.Path), f.Err))
	if !a.json {
		return
	}
	path, bytes := jsonName(f.Path)
	writeJSON(out, struct {
		Path      string `json:"path"`
		PathBytes string `json:"path_base64,omitempty"`
		Error     string `json:"error"`
	}{path, bytes, f.Err.Error()})
}
