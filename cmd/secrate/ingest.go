package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/btrfsvolume"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/progress"
	stream "github.com/secrate/secrate/sendstream/btrfs"
)

func newIngest(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ingest NAME",
		Short: "Bring a Btrfs send stream into the history",
		Long: `Read Btrfs send streams from standard input, full or incremental, of version 1 to
3, one or several behind one another, and make every snapshot in them a point in
time of the history of NAME, which was made with secrate source add --mode stream.
The machine that sends needs nothing of secrate.

An incremental stream starts from a snapshot that the history must have. One that
the history has already is passed over, so the same stream may come twice. The time
of a snapshot is that of its arrival: a stream does not say when it was taken.

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
       of it is, but for what was excluded when it came
    2  usage, such as a terminal as standard input
    3  nothing of it could be brought into the history`,
		Example: `  btrfs send /mnt/pool/snap1 | secrate ingest nas
  ssh nas btrfs send -p /pool/snap1 /pool/snap2 | secrate ingest nas`,
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
		return &usageError{"standard input is a terminal, not a send stream", "btrfs send SNAPSHOT | secrate ingest " + name}
	}
	command := "ingest " + name
	lock, err := s.lock(ctx, command, wait)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	w := a.watch(s.stateDir, command)
	defer w.close()
	out := a.results()
	a.onInterrupt = resumeUpload
	wr, err := a.openRecovered(ctx, s, w, out)
	if err != nil {
		return err
	}
	defer wr.close()
	in := &ingest{a: a, s: s, wr: wr, src: src, out: out, watch: w.source(name)}
	n, err := in.all(ctx)
	in.watch.done(err)
	if err == nil {
		if in.unread {
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
	watch  *sourceWatch
	unread bool // something is not known for want of it in the stream
}

// all ingests every unit of standard input. It returns how many of them are in the
// history, and why it stopped.
func (in *ingest) all(ctx context.Context) (n int, err error) {
	j, err := backup.New(backup.Options{Writer: in.wr.writer, Source: in.src.Name, Exclude: in.src.Exclude, Host: hostname(), Observer: in.watch, Log: in.a.log})
	if err != nil {
		return 0, err
	}
	units := stream.NewUnits(bufio.NewReaderSize(&interruptible{ctx, in.a.stdin, in.watch}, 1<<20))
	for unit, err := range units.All() {
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

func (in *ingest) unit(ctx context.Context, j *backup.Job, unit *stream.Unit) error {
	before, err := in.wr.head(in.src.Name)
	if err != nil {
		return err
	}
	var res backup.Result
	err = j.Ingest(ctx, btrfsvolume.UnitOf(unit, func(paths []string) {
		if len(in.src.Exclude) > 0 {
			in.a.warn("%s: directories were moved; what is no longer excluded below them is not in the history until a full stream brings it: %s", in.src.Name, progress.Printable(strings.Join(paths, ", ")))
		}
	}), filetree.TimeOf(time.Now()), &res)
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

// explain adds to an error what can be done.
func (in *ingest) explain(err error) error {
	switch {
	case errors.Is(err, stream.ErrEmpty):
		return hinted(err, "did the command that sends fail? set -o pipefail shows it")
	case errors.Is(err, stream.ErrMagic):
		return hinted(err, "is it compressed? pipe it through zstd -d or the like first")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return hinted(fmt.Errorf("the stream is cut: %w", err), "send it again; of this snapshot nothing was kept")
	case errors.Is(err, backup.ErrNames):
		return hinted(err, "send this snapshot as a full stream, without -p")
	case errors.Is(err, backup.ErrBase):
		return hinted(err, "send a full stream, without -p, or one that starts from a snapshot the history has")
	}
	if _, ok := errors.AsType[*stream.FormatError](err); ok && errors.Is(err, filetree.ErrNotExist) {
		return hinted(err, "the history lacks what was no longer excluded since, or is not of the same tree: send this snapshot as a full stream, without -p")
	} else if ok {
		return hinted(err, "send it again; of this snapshot nothing was kept")
	}
	return err
}

// interruptible reads standard input until ctx ends, and shows how much came.
type interruptible struct {
	ctx   context.Context
	r     io.Reader
	watch *sourceWatch
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
		r.watch.Seen(0, int64(got.n))
		return got.n, got.err
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
}
