package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/progress"
)

func newIngest(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ingest NAME",
		Short: "Bring a send stream of Btrfs or ZFS into the history",
		Long: `Read send streams from standard input, full or incremental, one or several behind
one another, and make every snapshot in them a point in time of the history of NAME,
which was made with secrate source add --mode stream. The machine that sends needs
nothing of secrate, and this one neither Btrfs nor ZFS.

An incremental stream starts from a snapshot that the history must have. One that
the history has already is passed over, so the same stream may come twice.

Btrfs: versions 1 to 3, with data. The time of a snapshot is that of its arrival: a
stream does not say when it was taken.

ZFS: whatever zfs send writes of a file system or a volume, also with -L, -e, -c, -p
and -I, but not -w of an encrypted dataset (load its key and leave -w out), nor
--redact, -t or -D. Of a package (-R) the first dataset is taken; the others are
named. The time of a snapshot is its own. Of a volume the history has one file,
called volume. Patterns of excludes are not possible. What a later stream needs is
remembered in the catalog alone: after secrate catalog rebuild the next stream has to
be a full one, of which only what is not known is uploaded.

Where something is excluded, a stream may name a file by an excluded name that has
another one, too. Which do is known to the catalog alone: after secrate catalog
rebuild the next stream has to be a full one. What is no longer excluded, but was
when its content came, is named every time, until a full stream brings it.

Read is standard input only; changed are the destination, where objects are added,
and the state directory. A stream that is cut or damaged is refused with the offset
in it. The snapshots before the damage are kept, of the damaged one nothing.

Exit statuses:

    0  all done
    1  the stream was bad, but snapshots at its beginning are in the history; or all
       of it is, but for what was excluded when it came, for other datasets in it, or
       for what a history cannot hold: each is named
    2  usage, such as a terminal as standard input
    3  nothing of it could be brought into the history`,
		Example: `  ssh nas btrfs send -p /pool/snap1 /pool/snap2 | secrate ingest nas
  ssh nas zfs send -L -e tank/home@mon | secrate ingest home
  ssh nas zfs send -L -e -i @mon tank/home@tue | secrate ingest home`,
		Args:              arguments(1, 1, "the name of a source"),
		ValidArgsFunction: a.completeSources,
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line for each snapshot committed")
	wait := waitFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.ingest(cmd.Context(), args[0], *wait)
	}
	return cmd
}

func (a *app) ingest(ctx context.Context, name string, wait time.Duration) error {
	s, err := a.site()
	if err != nil {
		return err
	}
	src, err := s.source(name)
	if err != nil {
		return err
	}
	if src.Mode != config.Stream {
		return &usageError{fmt.Sprintf("source %s takes its own snapshots", name), "secrate snap " + name + "; a source for streams is made by secrate source add NAME --mode stream"}
	}
	if progress.IsTerminal(a.stdin) {
		return &usageError{"standard input is a terminal, not a send stream", "zfs send SNAPSHOT | secrate ingest " + name + ", or btrfs send"}
	}
	command := "ingest " + name
	lock, err := s.lock(ctx, command, wait)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	w := a.follow(s.stateDir, command)
	defer w.close()
	out := a.results()
	a.onInterrupt = resumeUpload
	wr, err := a.openRecovered(ctx, s, w, out)
	if err != nil {
		return err
	}
	defer wr.close()
	in := &ingest{a: a, s: s, wr: wr, src: src, out: out, follow: w.source(name)}
	n, err := in.all(ctx)
	in.follow.done(err)
	if err == nil {
		if len(in.passed) > 0 {
			a.fail(ctx, hinted(fmt.Errorf("%s: the stream has other datasets, too, which were passed over: %s", name, progress.Printable(strings.Join(in.passed, ", "))),
				"each is a source of its own: zfs send without -R, into secrate ingest of another source"))
		}
		if in.unread || len(in.passed) > 0 {
			return exitError(exitPartly)
		}
		return nil
	}
	if ctx.Err() == nil {
		a.recordFailure(s, name, err)
	}
	if n == 0 {
		return fmt.Errorf("%s: %w", name, err)
	}
	a.fail(ctx, fmt.Errorf("%s: %w; %s before it in the stream %s in the history", name, err, count(n, "snapshot"), isOrAre(n)))
	return exitError(exitPartly)
}

func isOrAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// An ingest is one run of secrate ingest.
type ingest struct {
	a      *app
	s      *site
	wr     *writing
	src    *config.Source
	out    io.Writer
	follow *sourceFollower
	unread bool     // something is not known for want of it in the stream
	passed []string // other datasets in a ZFS stream
}

// all ingests every unit of standard input. It returns how many of them are in the
// history, and why it stopped.
func (in *ingest) all(ctx context.Context) (n int, err error) {
	j, err := backup.New(backup.Options{Writer: in.wr.writer, Source: in.src.Name, Exclude: in.src.Exclude, Host: hostname(), Observer: in.follow, Log: in.a.log})
	if err != nil {
		return 0, err
	}
	for unit, err := range in.units(&interruptible{ctx, in.a.stdin, in.follow}) {
		if err != nil {
			return n, in.explain(err)
		}
		if err := in.unit(ctx, j, unit); err != nil {
			return n, fmt.Errorf("snapshot %s: %w", progress.Printable(unit.Name), in.explain(err))
		}
		n++
	}
	return n, nil
}

func (in *ingest) unit(ctx context.Context, j *backup.Job, unit backup.Unit) error {
	before, err := in.wr.head(in.src.Name)
	if err != nil {
		return err
	}
	var res backup.Result
	err = j.Ingest(ctx, unit, filetree.TimeOf(time.Now()), &res)
	in.unread = in.a.reportUnread(in.src.Name, res) || in.unread
	if err != nil {
		return err
	}
	fresh, err := in.wr.since(before, in.src.Name)
	if err != nil {
		return err
	}
	head, sent := before, int64(0)
	for _, s := range fresh {
		in.a.reportCommitted(in.out, s)
		head, sent = s, sent+s.Uploaded
	}
	if res.Unchanged {
		in.a.reportUnchanged(in.out, head)
	}
	in.a.recordSuccess(in.s, head, sent)
	return nil
}

// interruptible reads standard input until ctx ends, and shows how much came.
type interruptible struct {
	ctx    context.Context
	r      io.Reader
	follow *sourceFollower
}

// Read implements io.Reader. A read of a pipe cannot be broken off: when ctx ends it is
// left to end with the process, and nobody looks at p any more.
func (r *interruptible) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := r.r.Read(p)
		done <- result{n, err}
	}()
	select {
	case got := <-done:
		r.follow.Seen(0, int64(got.n))
		return got.n, got.err
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
}
