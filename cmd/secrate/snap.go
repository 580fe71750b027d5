package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/status"
	"github.com/secrate/secrate/internal/zfsvolume"
	"github.com/secrate/secrate/s3history"
)

func newSnap(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snap [NAME...]",
		Short: "Take a snapshot of every source and upload what changed",
		Long: `Take a read-only snapshot of each named source, of all if none is named, and make
it a point in time of the history: find out what changed since the last one,
encrypt it, upload it, commit. Snapshots that an earlier run could not upload are
uploaded first, each as a point in time of its own. What is fed by secrate ingest
is left out. Of a ZFS dataset with --recursive its children are kept as well, each
as NAME/CHILD, in snapshots of one transaction; NAME/CHILD alone may be named, too.

An ordinary directory has no snapshots: it is compared with the newest state of the
history, and what is new is read and uploaded at once, so that --no-upload does
nothing. The moment of each file is its own. One that changes while it is read is
read again; one that may not be read stays as it was, and is named. If the whole
directory is another than before, because its disk is not mounted, say, nothing is
done until --replaced says that it is meant.

Read are the sources' snapshots; changed are the destination, where objects are
added, the state directory, and the local snapshots that secrate took: those in
.secrate below each Btrfs source, those of ZFS called @secrate.NAME.*. The newest
committed one is kept as the base of the next; older ones are destroyed, but for what
the source's keep rule names. One of ZFS that is needed has a hold (zfs holds) and,
when committed, a bookmark. Nothing else on the source is touched, and nothing stored
is ever changed.

A run that is interrupted or loses the network goes on where it stopped. A source
that fails does not keep the others from being done.

Exit statuses:

    0  all done; also when nothing had changed
    1  a source failed or a file could not be read, and is named; or a snapshot
       was taken but not uploaded: secrate upload does that later
    2  usage, such as a source that is not there
    3  nothing could be done, for example because another secrate is at work`,
		Example: `  secrate snap
  secrate snap --no-upload home && secrate upload home`,
		ValidArgsFunction: a.completeSources,
	}
	o := runOptions{take: true, upload: true}
	noUpload := cmd.Flags().Bool("no-upload", false, "take the snapshots only; secrate upload does the rest")
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line for each snapshot committed")
	cmd.Flags().BoolVar(&o.replaced, "replaced", false, "of an ordinary directory: it is meant that it is another than before")
	wait := waitFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o.replaced && len(args) == 0 {
			return &usageError{"--replaced takes the name of a source", ""}
		}
		o.upload, o.wait = !*noUpload, *wait
		return a.runSources(cmd.Context(), "snap", args, o)
	}
	return cmd
}

func newUpload(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upload [NAME...]",
		Short: "Upload the snapshots that are pending",
		Long: `Upload every snapshot that secrate snap took and that is not in the history yet,
of each named source or of all, oldest first, each as a point in time of its own.
No new snapshot is taken. What is read, changed and never touched is as with
secrate snap.

Exit statuses:

    0  all done; also when nothing was pending
    1  a source failed or a file could not be read, and is named
    2  usage, such as a source that is not there
    3  nothing could be done`,
		Example: `  secrate upload
  secrate upload --limit-upload "2 MiB/s" home`,
		ValidArgsFunction: a.completeSources,
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line for each snapshot committed")
	wait := waitFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.runSources(cmd.Context(), "upload", args, runOptions{upload: true, wait: *wait})
	}
	return cmd
}

type runOptions struct {
	take, upload bool
	replaced     bool            // an ordinary directory may be another than before
	only         *backup.Changes // what has changed in it, where that is known
	yield        func() bool     // whether a long run should make room for others
	room         bool            // none is taken if too little space is free while others wait
	brief        bool            // that nothing has changed is not worth a line
	wait         time.Duration
}

// A sourceRun is one member in a run of snap or upload.
type sourceRun struct {
	member
	follow  *sourceFollower
	taken   *backup.Snapshot
	untaken error // why no snapshot could be taken; what is pending can be uploaded all the same
	told    bool  // what untaken says has been said of another of the family
	did     bool  // something of it was done
	worse   bool  // some of it was not
	res     backup.Result
	head    s3history.Snapshot // the newest in the history, as far as it is known
}

// runSources takes snapshots and uploads them, as o says. The snapshots are taken
// before the destination is asked for anything: without a network they wait.
func (a *app) runSources(ctx context.Context, command string, names []string, o runOptions) error {
	s, err := a.site()
	if err != nil {
		return err
	}
	sources, err := s.volumes(names)
	if err != nil {
		return err
	}
	command = strings.Join(append([]string{command}, names...), " ")
	lock, err := s.lock(ctx, command, o.wait)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	w := a.follow(s.stateDir, command)
	defer w.close()
	var runs []*sourceRun
	for _, sel := range sources {
		runs = append(runs, a.prepare(ctx, s, w, sel, o)...)
	}
	out := a.results()
	a.onInterrupt = resumeUpload
	if o.upload {
		a.uploadRuns(ctx, s, w, runs, o, out)
	}
	return a.endRuns(ctx, s, runs, out)
}

// prepare opens what is selected, and takes its snapshots if it is to have any.
func (a *app) prepare(ctx context.Context, s *site, w *follower, sel selection, o runOptions) []*sourceRun {
	var family []*sourceRun
	for _, m := range a.members(ctx, s, sel) {
		family = append(family, &sourceRun{member: m, follow: w.source(m.name)})
	}
	if o.take && family[0].err == nil && sel.Mode != config.Files {
		if o.room {
			for _, r := range family {
				if family[0].untaken = a.room(ctx, s, &r.member); family[0].untaken != nil {
					return family
				}
			}
		}
		a.hooked(ctx, s, sel.Source, func() error {
			takeAll(ctx, family)
			return family[0].untaken
		}, func(err error) { untaken(family, err) })
	}
	if o.take && sel.Recursive { // of others it would take long to look
		for v, all := range a.strays(ctx, s, sel.Source) {
			a.warn("%s: %s is not kept with it any more, and %s of it stay: %s", sel.Name, v.Name, count(len(all), "local snapshot"), v.Undo(all[0]))
		}
	}
	return family
}

// takeAll takes the snapshots of a family, those of datasets all at once.
func takeAll(ctx context.Context, family []*sourceRun) {
	first := family[0]
	// The part of a Job that takes a snapshot needs no Writer.
	j, err := backup.New(backup.Options{Source: first.name, Exclude: first.src.Exclude, Observer: first.follow})
	if err != nil {
		untaken(family, err)
		return
	}
	var taken []backup.Snapshot
	if _, ok := first.vol.(*zfsvolume.Volume); ok {
		var all []*zfsvolume.Volume
		for _, r := range family {
			all = append(all, r.vol.(*zfsvolume.Volume))
		}
		taken, err = j.TakeTogether(func() ([]backup.Snapshot, error) { return zfsvolume.Take(ctx, all) })
		err = zfsHint(err, first.src.Dataset)
	} else {
		taken = make([]backup.Snapshot, 1)
		taken[0], err = j.Take(ctx, first.vol)
	}
	first.follow.step.Done(err)
	if err != nil {
		untaken(family, err)
		return
	}
	for i, r := range family {
		if taken[i] != (backup.Snapshot{}) {
			r.taken, r.did = &taken[i], true
		}
	}
}

// untaken notes why no snapshots of a family were taken, which is said once.
func untaken(family []*sourceRun, err error) {
	for i, r := range family {
		r.untaken, r.told = err, i > 0
	}
}

// uploadRuns uploads what is pending of each of runs.
func (a *app) uploadRuns(ctx context.Context, s *site, w *follower, runs []*sourceRun, o runOptions, out io.Writer) {
	if !slices.ContainsFunc(runs, func(r *sourceRun) bool { return r.err == nil }) {
		return
	}
	wr, err := a.openRecovered(ctx, s, w, out)
	if err == nil {
		defer wr.close()
	}
	for _, r := range runs {
		switch {
		case r.err != nil:
		case err != nil:
			r.err = err
		case r.src.Mode == config.Files && !o.take: // there is nothing that could wait
		default:
			a.uploadRun(ctx, wr, s, r, o, out)
		}
	}
}

// openRecovered opens what is needed to write, and completes what an earlier run had
// decided to commit.
func (a *app) openRecovered(ctx context.Context, s *site, w *follower, out io.Writer) (*writing, error) {
	wr, err := a.openWriting(ctx, s, w)
	if err != nil {
		return nil, err
	}
	recovered, err := wr.writer.Recover(ctx)
	for _, snap := range recovered {
		a.reportCommitted(out, snap)
		a.recordSuccess(s, snap, snap.Uploaded)
	}
	if err != nil {
		return nil, errors.Join(err, wr.close())
	}
	return wr, nil
}

func (a *app) uploadRun(ctx context.Context, wr *writing, s *site, r *sourceRun, o runOptions, out io.Writer) {
	before, err := wr.head(r.name)
	if err != nil {
		r.err = err
		return
	}
	if before.Seq == 0 || before.Partial {
		r.follow.expect(r.size)
	}
	j, err := backup.New(backup.Options{Writer: wr.writer, Source: r.name, Exclude: r.src.Exclude, Keep: keepRule(r.src),
		ExcludeFiles: r.src.ExcludeFiles, SkipCaches: r.src.SkipCaches, SkipNodump: r.src.SkipNodump,
		Host: hostname(), Observer: r.follow, Log: a.log, Yield: o.yield})
	if err != nil {
		r.err = err
		return
	}
	var res backup.Result
	if r.src.Mode == config.Files {
		scan := func() error {
			res, err = j.Scan(ctx, r.src.Path, backup.ScanOptions{Replaced: o.replaced, Only: o.only})
			err = scanHint(err, r.name)
			return err
		}
		if o.only != nil {
			scan()
		} else {
			a.hooked(ctx, s, r.src, scan, func(e error) { err = e })
		}
	} else {
		res, err = j.Upload(ctx, r.vol)
	}
	r.follow.done(err)
	r.res = res
	if r.src.Mode == config.ZFS {
		err = zfsHint(err, r.vol.(*zfsvolume.Volume).Name)
	}
	fresh, ferr := wr.since(before, r.name)
	r.err = errors.Join(err, ferr)
	if r.worse = a.reportUnread(r.name, res); r.worse {
		a.fail(ctx, hinted(fmt.Errorf("%s: %s could not be read, or not whole", r.name, count(res.Failures, "file")),
			"what could be read is kept; it is tried again with each snapshot"))
	}
	head, sent := before, int64(0)
	for _, snap := range fresh {
		a.reportCommitted(out, snap)
		head, r.did = snap, true
		sent += snap.Uploaded
		if r.taken != nil && snap.Info.GUID == r.taken.GUID && !snap.Partial {
			r.taken = nil
		}
	}
	r.head = head
	if res.Unchanged { // whatever became of others
		if !o.brief {
			a.reportUnchanged(out, head)
		}
		r.taken, r.did = nil, true
	}
	if r.err != nil || r.untaken != nil && len(fresh) == 0 {
		return
	}
	r.taken, r.did = nil, true
	switch {
	case res.Unchanged, o.brief:
	case len(fresh) == 0 && !a.json:
		what := "nothing pending"
		if len(r.src.Adopt) > 0 {
			what = "no snapshot that is newer"
		}
		fmt.Fprintf(out, "%s: %s\n", r.name, what)
	}
	a.recordSuccess(s, head, sent)
}

// scanHint adds to an error of a scan what can be done.
func scanHint(err error, name string) error {
	switch {
	case errors.Is(err, backup.ErrReplaced):
		return hinted(err, "is its disk mounted? If it is meant to be another: secrate snap --replaced %s", name)
	case errors.Is(err, fs.ErrNotExist):
		return hinted(err, "is its disk mounted? secrate source list shows the paths")
	}
	return err
}

// recordSuccess keeps for secrate status that all is well with a source.
func (a *app) recordSuccess(s *site, head s3history.Snapshot, uploaded int64) {
	err := status.RecordSuccess(s.stateDir, head.Source, status.Success{Seq: head.Seq, Snapshot: head.Info.Origin, Uploaded: uploaded})
	if err != nil {
		a.log.Warn("result not recorded", "source", head.Source, "error", err)
	}
}

// recordFailure keeps for secrate status what failed.
func (a *app) recordFailure(s *site, source string, failure error) {
	if err := status.RecordFailure(s.stateDir, source, failure, hintFor(failure)); err != nil {
		a.log.Warn("result not recorded", "source", source, "error", err)
	}
}

// head is the newest snapshot of a source, whose Seq is 0 when there is none.
func (wr *writing) head(name string) (s3history.Snapshot, error) {
	src, err := wr.writer.Source(name)
	if err != nil {
		return s3history.Snapshot{}, err
	}
	head, err := wr.writer.Head(src)
	head.Source = name
	return head, err
}

// since returns the snapshots of a source that are newer than before: partial ones
// are among them.
func (wr *writing) since(before s3history.Snapshot, name string) ([]s3history.Snapshot, error) {
	src, err := wr.writer.Source(name)
	if err != nil {
		return nil, err
	}
	return wr.writer.SnapshotsAfter(src, before.Seq)
}

func (a *app) reportCommitted(out io.Writer, s s3history.Snapshot) {
	if a.json {
		writeJSON(out, objectOf(s))
		return
	}
	fmt.Fprintf(out, "%s: #%d%s %s\n", s.Source, s.Seq, partial(s), uploaded(s))
}

func (a *app) reportUnchanged(out io.Writer, head s3history.Snapshot) {
	if a.json {
		writeJSON(out, struct {
			Source    string `json:"source"`
			Unchanged bool   `json:"unchanged"`
			Seq       uint64 `json:"seq"`
		}{head.Source, true, head.Seq})
		return
	}
	fmt.Fprintf(out, "%s: nothing changed since #%d\n", head.Source, head.Seq)
}

func (a *app) reportPending(out io.Writer, source, origin string) {
	if a.json {
		writeJSON(out, struct {
			Source  string `json:"source"`
			Pending bool   `json:"pending"`
			Origin  string `json:"origin"`
		}{source, true, origin})
		return
	}
	fmt.Fprintf(out, "%s: pending, not uploaded\n", source)
}

// reportUnread names the files that could not be read, and says whether there are any.
func (a *app) reportUnread(source string, res backup.Result) bool {
	for _, f := range res.Failed {
		a.warn("%s: not read: %s", source, f)
	}
	if more := res.Failures - len(res.Failed); more > 0 {
		a.warn("%s: and %d more", source, more)
	}
	return res.Failures > 0
}

// endRuns says what failed, and works out the exit status.
func (a *app) endRuns(ctx context.Context, s *site, runs []*sourceRun, out io.Writer) error {
	var done, failed int
	for _, r := range runs {
		if r.taken != nil {
			a.reportPending(out, r.name, r.taken.Name)
		}
		if r.did {
			done++
		}
		if r.err != nil || r.untaken != nil || r.worse {
			failed++
		}
		for _, err := range []error{r.untaken, r.err} {
			if err == nil || ctx.Err() != nil {
				continue
			}
			a.recordFailure(s, r.name, err)
			if err != r.untaken || !r.told {
				a.fail(ctx, fmt.Errorf("%s: %w", r.name, err))
			}
		}
	}
	if failed > 0 && ctx.Err() != nil {
		a.fail(ctx, context.Cause(ctx))
	}
	switch {
	case failed == 0:
		return nil
	case done > 0:
		return exitError(exitPartly)
	}
	return exitError(exitNothing)
}

// volumes returns the sources of these names, or all, but for those that are fed by
// streams: they take no snapshots. A name may be that of a child of a recursive source.
func (s *site) volumes(names []string) ([]selection, error) {
	var all []selection
	if len(names) == 0 {
		for i := range s.conf.Sources {
			if src := &s.conf.Sources[i]; src.Mode != config.Stream {
				all = append(all, selection{Source: src})
			}
		}
		if len(all) == 0 {
			return nil, hinted(errors.New("there is no source to take a snapshot of"), "secrate source add NAME PATH makes one")
		}
		return all, nil
	}
	for _, name := range names {
		sel := selection{}
		root, _, child := strings.Cut(name, "/")
		src, err := s.source(root)
		if child && (err != nil || !src.Recursive) {
			src, err = s.source(name) // it says that there is none of that name
		}
		if err != nil {
			return nil, err
		}
		if sel.Source = src; child {
			sel.child = name
		}
		if src.Mode == config.Stream {
			return nil, &usageError{fmt.Sprintf("source %s is fed by secrate ingest and takes no snapshots", name),
				"zfs send SNAPSHOT | secrate ingest " + name + ", or btrfs send"}
		}
		// Of a source and a child of it the source says all.
		if slices.ContainsFunc(all, func(o selection) bool { return o.Source == src && (o.child == "" || o.child == sel.child) }) {
			continue
		}
		if sel.child == "" {
			all = slices.DeleteFunc(all, func(o selection) bool { return o.Source == src })
		}
		all = append(all, sel)
	}
	return all, nil
}

// source returns the source of that name; one that is not there is a fault of the
// command line.
func (s *site) source(name string) (*config.Source, error) {
	src, err := s.conf.Source(name)
	if err != nil {
		return nil, &usageError{err.Error(), hintFor(err)}
	}
	return src, nil
}

// completeSources completes the names of sources.
func (a *app) completeSources(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	path, _, err := a.paths()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	conf, err := config.Load(path)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, s := range conf.Sources {
		names = append(names, s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
