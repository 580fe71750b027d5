package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/exclude"
	"github.com/secrate/secrate/internal/keep"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/schedule"
	"github.com/secrate/secrate/internal/status"
	"github.com/secrate/secrate/internal/zfsvolume"
	"github.com/secrate/secrate/snapshot/btrfs"
	"github.com/secrate/secrate/snapshot/zfs"
)

func newSource(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "source",
		Short: "Say what is kept: add, list and remove sources",
		Long: `A source is one Btrfs subvolume, one ZFS dataset, one ordinary directory, or what is
fed by secrate ingest, with a history of its own. Sources are written in the
configuration file, which may as well be edited by hand.`,
		Example: `  secrate source add home /home
  secrate source add tank tank/data --recursive
  secrate source list`,
	}
	group(cmd)
	cmd.AddCommand(newSourceAdd(a), newSourceList(a), newSourceRemove(a))
	return cmd
}

func newSourceAdd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add NAME [PATH|DATASET]",
		Short: "Add a source",
		Long: `Write a source into the configuration: NAME, by which all commands call it, and what
it is: PATH, the root of a Btrfs subvolume, where a ZFS dataset is mounted, or a
directory of any other file system; or DATASET, a file system or volume as zfs list
shows it. With --mode stream there is neither, and secrate ingest NAME feeds it.

Patterns of --exclude are those of gitignore(5), relative to PATH: "*.tmp" at any
depth, "/build/" only at the top. What is excluded is neither read nor stored.
Patterns may also stand in the directories themselves, in files called as
--exclude-files says: they hold for where the file is and all below, as with git.
--exclude has the last word over them.

Btrfs: Subvolumes inside PATH are not part of it: they need sources of their own. A
directory inside of a subvolume is kept with --mode files only.

Ordinary directories are looked through at each secrate snap: what has the size,
times and inode number that it had is not read. What is mounted inside is not part
of it. It need not be root's, but what may not be read is not kept. --skip-caches
leaves out what is beside a CACHEDIR.TAG (bford.info/cachedir), as many programs make
it, --skip-nodump what has been marked by chattr +d.

ZFS: With --recursive every child, now and later, is kept as well, with a history of
its own called NAME/CHILD; snapshots of all are taken in one transaction. A child
with the property secrate:exclude=on is left out, with those below it:
    zfs set secrate:exclude=on tank/home/scratch
An encrypted dataset is read decrypted, while its key is loaded. With --adopt no
snapshots are taken: the newest whose name behind the @ matches PATTERN is, and is
held until the next one is committed. Such are those of sanoid ("autosnap_*"), zrepl
("zrepl_*") or an appliance ("auto-*"). It works as root, or after
    zfs allow -u USER ` + zfsRights + ` DATASET
for that user; with --adopt, send,hold,release,bookmark are enough, though bookmarks
then pile up.

Of local snapshots that secrate took the newest committed one stays, and those that
--keep names: "24 hourly, 7 daily, 4 weekly" keeps the newest of each of the newest
24 hours that have one, and so on. It has no bearing on what is stored: nothing there
is ever deleted.

secrate daemon keeps a source every hour, or by --schedule: five fields of cron, minute,
hour, day of the month, month and day of the week, as in "0 3 * * *"; @hourly, @daily,
@weekly, @monthly; "@every 15m"; or none. What was missed while the machine was off is
done once, as soon as it is on. With --delay each run begins later by chance, so that
many machines do not come at once. With --watch a directory is kept soon after something
in it has changed, too: when nothing has for the time of --settle, and at the latest
after that of --max-delay.

--before and --after are commands of /bin/sh that are run before and after a snapshot,
to bring a database to rest for example. If the first fails there is no snapshot; the
second is run whatever came of it. Each may take a minute, or what hook_timeout says in
the configuration file.

Looked at is what is added; changed is the configuration file, of which everything
else stays as it is. Nothing is read or uploaded before secrate snap. If the history
has a source of that name, from an earlier time, it goes on.

Exit statuses:

    0  done
    2  usage, such as a name that cannot be
    3  not done: it cannot be kept, or the name is taken`,
		Example: `  secrate source add home /home --exclude "*.tmp" --exclude /ann/.cache/
  secrate source add tank tank/data --recursive --keep "24 hourly, 7 daily"
  secrate source add vm tank/vm --adopt "autosnap_*_hourly"
  secrate source add docs /srv/docs --watch
  secrate source add db /srv/db --schedule "0 3 * * *" --before "systemctl stop db" --after "systemctl start db"
  secrate source add docs /srv/docs --skip-caches --exclude-files .secrateignore
  secrate source add nas --mode stream`,
		Args: arguments(1, 2, "a name and a path"),
	}
	s := config.Source{}
	mode := cmd.Flags().String("mode", "auto", "`MODE`: auto, btrfs, zfs, files, stream")
	cmd.Flags().StringArrayVar(&s.Exclude, "exclude", nil, "of Btrfs and directories: leave out what matches `PATTERN`; may be repeated")
	cmd.Flags().StringArrayVar(&s.ExcludeFiles, "exclude-files", nil, "of directories: read patterns from files called `NAME` in them; may be repeated")
	cmd.Flags().BoolVar(&s.SkipCaches, "skip-caches", false, "of directories: leave out what is beside a CACHEDIR.TAG")
	cmd.Flags().BoolVar(&s.SkipNodump, "skip-nodump", false, "of directories: leave out what has the flag nodump, chattr +d")
	cmd.Flags().StringVar(&s.Snapshots, "snapshots", "", "of Btrfs: keep local snapshots in `DIR` on the same file system instead of PATH/.secrate")
	cmd.Flags().BoolVar(&s.Recursive, "recursive", false, "of ZFS: keep all children, too")
	cmd.Flags().StringArrayVar(&s.Adopt, "adopt", nil, "of ZFS: take no snapshots but the newest that is called like `PATTERN`; may be repeated")
	cmd.Flags().StringVar(&s.Keep, "keep", "", "let local snapshots stay by `RULE`, such as \"24 hourly, 7 daily\"")
	cmd.Flags().StringVar(&s.Schedule, "schedule", "", "let the daemon keep it by `SCHEDULE`, such as \"0 3 * * *\" or \"@every 15m\" (default: what the configuration says, or @hourly)")
	cmd.Flags().DurationVar(&s.Delay, "delay", 0, "begin later by chance, by at most `TIME`")
	cmd.Flags().BoolVar(&s.Watch, "watch", false, "of directories: let the daemon keep it soon after it has changed, too")
	cmd.Flags().DurationVar(&s.Settle, "settle", 0, "with --watch: when nothing has changed for `TIME` (default: 5s)")
	cmd.Flags().DurationVar(&s.MaxDelay, "max-delay", 0, "with --watch: at most `TIME` after a change (default: 5m)")
	cmd.Flags().StringVar(&s.Before, "before", "", "run `COMMAND` before each snapshot, which there is none of if it fails")
	cmd.Flags().StringVar(&s.After, "after", "", "run `COMMAND` after each snapshot, whatever came of it")
	wait := waitFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, flag := range []string{"settle", "max-delay"} { // 0 is the default, and cannot be meant
			if d, err := cmd.Flags().GetDuration(flag); err == nil && d == 0 && cmd.Flags().Changed(flag) {
				return &usageError{fmt.Sprintf("--%s: want %v to %v", flag, config.MinSettle, config.MaxTime), ""}
			}
		}
		s.Name, s.Mode = args[0], config.Mode(*mode)
		if len(args) > 1 {
			s.Path = args[1]
		}
		return a.addSource(cmd.Context(), s, *wait)
	}
	return cmd
}

func (a *app) addSource(ctx context.Context, src config.Source, wait time.Duration) error {
	if err := config.CheckName(src.Name); err != nil {
		return &usageError{err.Error(), hintFor(err)}
	}
	switch src.Mode {
	case "auto", config.Btrfs, config.Stream, config.ZFS, config.Files:
	default:
		return &usageError{fmt.Sprintf("--mode %q: want auto, btrfs, zfs, files or stream", string(src.Mode)), ""}
	}
	switch stream := src.Mode == config.Stream; {
	case stream && src.Path != "":
		return &usageError{"a source with --mode stream has no path", "secrate source add " + src.Name + " --mode stream"}
	case !stream && src.Path == "":
		return &usageError{"the path or dataset of the source is missing", "secrate source add " + src.Name + " PATH"}
	}
	if _, err := exclude.Compile(src.Exclude); err != nil {
		return &usageError{fmt.Sprintf("--exclude: %v", err), "patterns are those of gitignore(5)"}
	}
	if _, err := keep.Parse(src.Keep); err != nil {
		return &usageError{fmt.Sprintf("--keep: %v", err), ""}
	}
	if _, err := schedule.Parse(src.Schedule); err != nil && src.Schedule != "" {
		return &usageError{fmt.Sprintf("--schedule: %v", err), ""}
	}
	s, err := a.site()
	if err != nil {
		return err
	}
	if src.Mode != config.Stream {
		if err := checkVolume(ctx, &src); err != nil {
			return err
		}
	}
	if src.Snapshots, err = absolute(src.Snapshots); err != nil {
		return err
	}
	if err := src.Check(); err != nil { // such as a flag that is for another mode
		return &usageError{err.Error(), ""}
	}
	lock, err := s.lock(ctx, "source add "+src.Name, wait)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if _, err := config.AddSource(s.configPath, src); err != nil {
		return err
	}
	switch src.Mode {
	case config.Stream:
		fmt.Fprintf(a.stdout, "%s: added; feed it with: zfs send SNAPSHOT | secrate ingest %s, or btrfs send\n", src.Name, src.Name)
	case config.ZFS:
		fmt.Fprintf(a.stdout, "%s: added, the ZFS dataset %s; keep it with: secrate snap %s\n", src.Name, src.Dataset, src.Name)
		if src.Recursive {
			for _, m := range a.members(ctx, s, selection{Source: &src})[1:] {
				fmt.Fprintf(a.stdout, "%s: with its child %s\n", src.Name, m.name)
			}
		}
	case config.Files:
		fmt.Fprintf(a.stdout, "%s: added, the directory %s; keep it with: secrate snap %s\n", src.Name, progress.Printable(src.Path), src.Name)
	default:
		fmt.Fprintf(a.stdout, "%s: added, the Btrfs subvolume %s; keep it with: secrate snap %s\n", src.Name, progress.Printable(src.Path), src.Name)
	}
	if seq := s.historyOf(src.Name); seq > 0 {
		fmt.Fprintf(a.stdout, "%s: its history, up to #%d, goes on\n", src.Name, seq)
	}
	a.tellDaemon(ctx, s)
	return nil
}

// checkVolume finds the mode of src, and makes its path absolute or a dataset of it, or
// says why it cannot be kept.
func checkVolume(ctx context.Context, src *config.Source) error {
	path, err := absolute(src.Path)
	if err != nil {
		return err
	}
	_, missing := os.Stat(path)
	asName := !filepath.IsAbs(src.Path) && zfs.CheckName(src.Path) == nil
	switch {
	case src.Mode == config.Files:
		return checkDir(src, path)
	case src.Mode == config.ZFS && asName, src.Mode == "auto" && asName && errors.Is(missing, fs.ErrNotExist):
		found, err := zfs.Datasets(ctx, src.Path, false)
		if err != nil && src.Mode == "auto" && errors.Is(err, zfs.ErrNoZFS) {
			return hinted(missing, "nor can it be a dataset: %v", err)
		}
		if err != nil {
			return zfsHint(err, src.Path)
		}
		src.Mode, src.Dataset, src.Path = config.ZFS, found[0].Name, ""
		return nil
	case src.Mode == config.ZFS && !filepath.IsAbs(src.Path) && errors.Is(missing, fs.ErrNotExist):
		return zfs.CheckName(src.Path)
	case src.Mode == config.ZFS, src.Mode == "auto" && isZFS(path):
		d, err := zfs.DatasetAt(ctx, path)
		if err != nil && src.Mode == "auto" {
			return hinted(err, "add the dataset it is in, or keep it without snapshots: --mode files")
		} else if err != nil {
			return zfsHint(err, src.Path)
		}
		src.Mode, src.Dataset, src.Path = config.ZFS, d.Name, ""
		return nil
	}
	src.Path = path
	place, err := btrfs.Detect(path)
	switch {
	case err != nil:
		return err
	case place == btrfs.Root:
		src.Mode = config.Btrfs
		return nil
	}
	_, err = btrfs.Open(path)
	switch {
	case err == nil: // it has become one meanwhile
		src.Mode = config.Btrfs
		return nil
	case place == btrfs.Inside:
		return hinted(err, "add the subvolume it is in, or make it one of its own: btrfs subvolume create; or keep it without snapshots: --mode files")
	case src.Mode == config.Btrfs:
		return hinted(err, "--mode files keeps any directory, without snapshots")
	}
	return checkDir(src, path)
}

// checkDir makes src a source of mode files, if path is a directory.
func checkDir(src *config.Source, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return hinted(fmt.Errorf("%s is not a directory", path), "keep the directory that it is in, without the rest: --exclude")
	}
	if isKernels(path) {
		return fmt.Errorf("%s is no place for files, but what the kernel tells of itself", path)
	}
	src.Mode, src.Path = config.Files, path
	return nil
}

// absolute returns path as it is to be written into the configuration: links in it are
// left, since they may be there to be changed.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// historyOf returns the number of the newest snapshot of a source, 0 if there is none
// or that cannot be told.
func (s *site) historyOf(name string) uint64 {
	db, err := s.openCatalog(catalog.Options{ReadOnly: true})
	if err != nil {
		return 0
	}
	defer db.Close()
	sources, err := db.Sources()
	if err != nil {
		return 0
	}
	for _, src := range sources {
		if head, err := db.Head(src.ID); err == nil && src.Name == name && src.Writer == s.me.ID {
			return head.Seq
		}
	}
	return 0
}

func newSourceList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the sources",
		Long: `List the sources of the configuration. Nothing is changed.

Exit statuses:

    0  done
    3  the configuration cannot be read`,
		Example: `  secrate source list
  secrate source list --json`,
		Args: arguments(0, 0, ""),
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line for each source")
	cmd.RunE = func(*cobra.Command, []string) error {
		s, err := a.site()
		if err != nil {
			return err
		}
		return a.listSources(s)
	}
	return cmd
}

// A sourceRecord is a source as --json shows it: what the configuration says of it, but for
// the address of its monitor, which is a secret.
type sourceRecord struct {
	Name    string      `json:"name"`
	Path    string      `json:"path,omitempty"`
	Mode    config.Mode `json:"mode"`
	Exclude []string    `json:"exclude,omitempty"`

	ExcludeFiles []string `json:"exclude_files,omitempty"`
	SkipCaches   bool     `json:"skip_caches,omitempty"`
	SkipNodump   bool     `json:"skip_nodump,omitempty"`

	Snapshots   string   `json:"snapshots,omitempty"`
	Keep        string   `json:"keep,omitempty"`
	Dataset     string   `json:"dataset,omitempty"`
	Recursive   bool     `json:"recursive,omitempty"`
	Adopt       []string `json:"adopt,omitempty"`
	Schedule    string   `json:"schedule,omitempty"`
	Delay       duration `json:"delay,omitzero"`
	Watch       bool     `json:"watch,omitempty"`
	Settle      duration `json:"settle,omitzero"`
	MaxDelay    duration `json:"max_delay,omitzero"`
	Before      string   `json:"before,omitempty"`
	After       string   `json:"after,omitempty"`
	HookTimeout duration `json:"hook_timeout,omitzero"`
}

// A duration is written as the configuration has it: "5m0s".
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (a *app) listSources(s *site) error {
	if a.json {
		for _, src := range s.conf.Sources {
			err := writeJSON(a.stdout, sourceRecord{
				Name: src.Name, Path: src.Path, Mode: src.Mode, Exclude: src.Exclude,
				ExcludeFiles: src.ExcludeFiles, SkipCaches: src.SkipCaches, SkipNodump: src.SkipNodump, Snapshots: src.Snapshots, Keep: src.Keep,
				Dataset: src.Dataset, Recursive: src.Recursive, Adopt: src.Adopt,
				Schedule: src.Schedule, Delay: duration(src.Delay), Watch: src.Watch, Settle: duration(src.Settle), MaxDelay: duration(src.MaxDelay),
				Before: src.Before, After: src.After, HookTimeout: duration(src.HookTimeout),
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	if len(s.conf.Sources) == 0 {
		a.warn("there are no sources yet: secrate source add NAME PATH")
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, src := range s.conf.Sources {
		path := progress.Printable(src.Path)
		switch src.Mode {
		case config.Stream:
			path = "(secrate ingest " + src.Name + ")"
		case config.ZFS:
			if path = src.Dataset; src.Recursive {
				path += " and its children"
			}
		}
		line := fmt.Sprintf("%s\t%s\t%s", src.Name, src.Mode, path)
		if len(src.Exclude) > 0 {
			line += "\twithout " + progress.Printable(strings.Join(src.Exclude, " "))
		}
		if len(src.ExcludeFiles) > 0 {
			line += "\twithout what " + progress.Printable(strings.Join(src.ExcludeFiles, " ")) + " says"
		}
		if src.SkipCaches {
			line += "\twithout caches"
		}
		if src.SkipNodump {
			line += "\twithout nodump"
		}
		if len(src.Adopt) > 0 {
			line += "\tits snapshots " + progress.Printable(strings.Join(src.Adopt, " "))
		}
		if src.Keep != "" {
			line += "\tkeep " + src.Keep
		}
		for _, part := range timesOf(&src) {
			line += "\t" + progress.Printable(part)
		}
		fmt.Fprintln(w, line)
	}
	return w.Flush()
}

// timesOf says when a source is kept and what is run then, as far as the configuration has
// something about it.
func timesOf(src *config.Source) []string {
	var parts []string
	switch src.Schedule {
	case "":
	case "none":
		parts = append(parts, "no schedule")
	default:
		parts = append(parts, "at "+src.Schedule)
	}
	if src.Delay > 0 {
		parts = append(parts, "delayed by up to "+src.Delay.String())
	}
	if src.Watch {
		parts = append(parts, fmt.Sprintf("watched, settled for %v, at most %v late", src.SettleTime(), src.MaxDelayTime()))
	}
	if src.Before != "" {
		parts = append(parts, "before it "+src.Before)
	}
	if src.After != "" {
		parts = append(parts, "after it "+src.After)
	}
	return parts
}

func newSourceRemove(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Keep a source no longer; its history stays",
		Long: `Take a source out of the configuration. No more snapshots are taken of it. All that
is stored of it stays and can be restored as before, and its local snapshots stay
where they are. If the source is added again under the same name, its history goes
on.

Changed is the configuration file, of which everything else stays as it is.

Exit statuses:

    0  done
    2  usage, such as a source that is not there
    3  not done`,
		Example: `  secrate source remove scratch
  secrate source remove scratch && secrate ls scratch    # the history stays`,
		Args:              arguments(1, 1, "the name of a source"),
		ValidArgsFunction: a.completeSources,
	}
	wait := waitFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.removeSource(cmd.Context(), args[0], *wait)
	}
	return cmd
}

func (a *app) removeSource(ctx context.Context, name string, wait time.Duration) error {
	s, err := a.site()
	if err != nil {
		return err
	}
	src, err := s.source(name)
	if err != nil {
		return err
	}
	lock, err := s.lock(ctx, "source remove "+name, wait)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if _, err := config.RemoveSource(s.configPath, name); err != nil {
		return err
	}
	if seq := s.historyOf(name); seq > 0 {
		fmt.Fprintf(a.stdout, "%s: removed; its history up to #%d stays and can be restored\n", name, seq)
	} else {
		fmt.Fprintf(a.stdout, "%s: removed; nothing was stored of it\n", name)
	}
	if left := a.localSnapshots(ctx, s, src); len(left) > 0 {
		fmt.Fprintf(a.stdout, "%s: %s of it stay on this machine:\n", name, count(len(left), "local snapshot"))
		for _, command := range left {
			fmt.Fprintf(a.stdout, "    %s\n", progress.Printable(command))
		}
	}
	if err := status.Forget(s.stateDir, name); err != nil {
		a.log.Warn("not forgotten", "source", name, "error", err)
	}
	a.tellDaemon(ctx, s)
	return nil
}

// localSnapshots returns for each snapshot of a source, as far as they can be seen, the
// command that takes it away.
func (a *app) localSnapshots(ctx context.Context, s *site, src *config.Source) []string {
	var commands []string
	for _, m := range a.members(ctx, s, selection{Source: src}) {
		if m.err != nil || m.vol == nil {
			continue
		}
		all, err := m.vol.List(ctx)
		if err != nil {
			continue
		}
		for _, snap := range all {
			if v, ok := m.vol.(*zfsvolume.Volume); ok {
				commands = append(commands, v.Undo(snap))
			} else {
				commands = append(commands, "btrfs subvolume delete "+snap.Path)
			}
		}
	}
	for v, all := range a.strays(ctx, s, src) {
		for _, snap := range all {
			commands = append(commands, v.Undo(snap))
		}
	}
	slices.Sort(commands)
	return commands
}

// tellDaemon says how a daemon that runs takes up what was changed in the configuration.
func (a *app) tellDaemon(ctx context.Context, s *site) {
	if d, err := askDaemon(ctx, s.stateDir); err == nil && d != nil {
		fmt.Fprintf(a.stdout, "the daemon takes it up with: systemctl reload secrate, or kill -HUP %d\n", d.PID)
	}
}

// arguments checks how many arguments there are: from least to most, which are what.
func arguments(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return errors.New(what + " must be given")
		case len(args) > most && most == 0:
			return fmt.Errorf("there is nothing to say behind %s, but there is %q", cmd.CommandPath(), args[0])
		case len(args) > most:
			return fmt.Errorf("too many arguments: %q is one more than %s", args[most], what)
		}
		return nil
	}
}
