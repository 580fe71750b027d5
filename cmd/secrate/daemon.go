package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/daemon"
	"github.com/secrate/secrate/internal/exclude"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/status"
	"github.com/secrate/secrate/internal/watch"
)

func newDaemon(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Do all of it by itself: snapshots by schedule, watching, uploads",
		Long: `Keep every source of the configuration until it is stopped: take its snapshots
when its schedule says so (every hour, if nothing is said), upload what is pending,
verify the repository, and tell monitors. A run that was missed, since the machine
was off or asleep, is made up for once. Sources with watch = true are kept soon
after something in them has changed; on their schedule all of them is compared.

Without a network local snapshots of Btrfs and ZFS are taken all the same, and each
becomes a point in time of its own later; as long as some wait, no more are taken when
the disk has less free space than min_free. What fails is tried again after ten
seconds, then less and less often, up to every quarter of an hour; secrate status says
what, and why, and what is not watched.

Read and changed is what secrate snap, upload and verify read and change, and in the
state directory daemon.lock, daemon.sock and schedule.json. Other commands may be used
beside it: the state is locked only while it works. A second daemon is refused.

SIGHUP makes it read the configuration again; if that has a fault the old one stays in
force. SIGTERM and SIGINT stop it within 10 seconds, or when the command that a source
has for after a snapshot is done; nothing is lost by that, nor if it is killed: the next
run goes on. Systemd is told when it is ready and that it is alive. With listen in the
configuration, http://ADDRESS/metrics is for Prometheus, and http://ADDRESS/healthz
answers 200 if all is well and 503 if a source fails, or the daemon is stuck.

What can be set is in docs/configuration.md: below [daemon], and of each source.

Exit statuses:

    0  it was stopped
    2  usage
    3  it could not be begun: the configuration has a fault, or another one runs`,
		Example: `  systemctl enable --now secrate     # as installed by make install
  secrate daemon
  secrate status --watch`,
		Args: arguments(0, 0, ""),
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if a.progress == "auto" { // nobody looks; secrate status shows it
			a.progress = "none"
			if err := a.begin(); err != nil {
				return err
			}
		}
		return a.runDaemon(cmd.Context())
	}
	return cmd
}

// stopWithin is how long what is being done may take to stop. Whatever it is can be killed.
const stopWithin = 8 * time.Second

func (a *app) runDaemon(ctx context.Context) error {
	s, err := a.site()
	if err != nil {
		return err
	}
	lock, err := config.LockDaemon(ctx, s.stateDir)
	if locked, ok := errors.AsType[*config.LockedError](err); ok {
		return hinted(locked, "there is one daemon for each state directory; secrate status shows what it does")
	} else if err != nil {
		return err
	}
	defer lock.Unlock()
	r := &running{a: a, site: s, began: time.Now()}
	plan, err := r.plan(s)
	if err != nil {
		return err
	}
	r.d = daemon.New(daemon.Options{Worker: r, StateDir: s.stateDir, Seed: s.me.ID, Log: a.log})
	r.d.Apply(plan)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	stop, err := r.serve(ctx)
	if err != nil {
		return err
	}
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.d.Run(ctx)
	}()
	fmt.Fprintf(a.stdout, "secrate daemon: %s\n", count(len(plan.Sources), "source"))
	notify(sd.SdNotifyReady)
	var alive <-chan time.Time
	if every, err := sd.SdWatchdogEnabled(false); err == nil && every > 0 {
		tick := time.NewTicker(every / 2)
		defer tick.Stop()
		alive = tick.C
	}
	for {
		select {
		case <-hup:
			notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
			r.reload()
			notify(sd.SdNotifyReady)
		case <-alive:
			if r.d.Status().Alive() {
				notify(sd.SdNotifyWatchdog)
			}
		case <-ctx.Done():
			notify(sd.SdNotifyStopping)
			r.stopped(done)
			fmt.Fprintln(a.stdout, "secrate daemon: stopped")
			return nil
		}
	}
}

// stopped waits until all that was begun has ended: not long, but for commands after a snapshot,
// which end what others have begun and have times of their own.
func (r *running) stopped(done <-chan struct{}) {
	for end := time.Now().Add(stopWithin); ; {
		select {
		case <-done:
			return
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(end) && r.a.releasing.Load() == 0 {
			r.a.warn("something does not stop, and is left: nothing is lost by that")
			return
		}
	}
}

// notify tells systemd, if it is there.
func notify(state string) { sd.SdNotify(false, state) }

// A running is a daemon in this process. It is the Worker of package daemon.
type running struct {
	a     *app
	d     *daemon.Daemon
	began time.Time

	mu       sync.Mutex // guards what follows
	site     *site
	reloaded time.Time
	fault    error     // why the configuration was not read again
	deaf     error     // why there is no listening at its address
	freed    time.Time // when memory was last given back
}

func (r *running) current() *site {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.site
}

// reload reads the configuration again.
func (r *running) reload() {
	s, err := r.a.site()
	var plan daemon.Plan
	if err == nil && s.me.ID != r.current().me.ID {
		err = errors.New("the state directory is another writer's now: stop the daemon and start it again")
	}
	if err == nil {
		plan, err = r.plan(s)
	}
	r.mu.Lock()
	r.fault, r.reloaded = err, time.Now()
	if err == nil {
		r.site = s
	}
	r.mu.Unlock()
	if err != nil {
		r.a.fail(context.Background(), hinted(fmt.Errorf("the configuration as it was stays in force: %w", err), "%s", hintFor(err)))
		return
	}
	r.d.Apply(plan)
	fmt.Fprintf(r.a.stdout, "secrate daemon: read the configuration again: %s\n", count(len(plan.Sources), "source"))
}

// plan is what a site's configuration says, for package daemon.
func (r *running) plan(s *site) (daemon.Plan, error) {
	p := daemon.Plan{Verify: s.conf.VerifySchedule(), Location: s.conf.Location()}
	results, err := status.Results(s.stateDir)
	if err != nil {
		r.a.log.Warn("results not read", "error", err)
	}
	for i := range s.conf.Sources {
		src := &s.conf.Sources[i]
		if src.Mode == config.Stream {
			continue
		}
		c := daemon.Source{Name: src.Name, Schedule: s.conf.ScheduleOf(src), Delay: src.Delay, Volume: src.Mode != config.Files}
		if ok := results[src.Name].Success; ok != nil {
			c.Newest = ok.Time
		}
		if src.Watch {
			m, err := exclude.Compile(src.Exclude)
			if err != nil {
				return p, fmt.Errorf("source %s: %w", src.Name, err)
			}
			c.Watch = &daemon.Watch{Root: src.Path, Options: watch.Options{Excluded: m.Excluded, Settle: src.SettleTime(), MaxDelay: src.MaxDelayTime(), Log: r.a.log}}
			// With other excludes everything is to be compared, as it is when watching begins.
			c.Watch.Same = fmt.Sprintf("%q %v %v %q %q %v %v", src.Path, src.SettleTime(), src.MaxDelayTime(), src.Exclude,
				src.ExcludeFiles, src.SkipCaches, src.SkipNodump)
		}
		p.Sources = append(p.Sources, c)
	}
	return p, nil
}

// lockWait is how long a run waits for a command that a person has begun.
const lockWait = 2 * time.Second

// Take implements daemon.Worker.
func (r *running) Take(ctx context.Context, name string) error {
	a, s := r.a, r.current()
	src, err := s.conf.Source(name)
	if err != nil { // it is being taken out
		return fmt.Errorf("%w: %w", daemon.ErrLater, err)
	}
	w := &follower{a: a} // the status file is that of what is brought
	sel := selection{Source: src}
	family := a.prepare(ctx, s, w, sel, runOptions{take: true, room: true})
	return a.outcome(ctx, s, family)
}

// Bring implements daemon.Worker.
func (r *running) Bring(ctx context.Context, name string, only *watch.Changes, yield func() bool) (daemon.Outcome, error) {
	a, s := r.a, r.current()
	var out daemon.Outcome
	src, err := s.conf.Source(name)
	if err != nil { // it is being taken out
		return out, fmt.Errorf("%w: %w", daemon.ErrLater, err)
	}
	command := "daemon, " + name
	lock, err := s.lock(ctx, command, lockWait)
	if locked, ok := errors.AsType[*config.LockedError](err); ok {
		return out, fmt.Errorf("%w: %w", daemon.ErrLater, locked)
	} else if err != nil {
		return out, err
	}
	defer lock.Unlock()
	defer r.free()
	w := a.follow(s.stateDir, command)
	defer w.close()
	o := runOptions{take: src.Mode == config.Files, upload: true, brief: true, yield: yield}
	if only != nil {
		o.only = &backup.Changes{Paths: only.Paths, Trees: only.Trees, Moved: only.Moved}
	}
	family := a.prepare(ctx, s, w, selection{Source: src}, o)
	a.uploadRuns(ctx, s, w, family, o, a.results())
	for _, m := range family {
		out.Seq = max(out.Seq, m.head.Seq)
		out.Snapshots += len(m.res.Committed)
		for _, c := range m.res.Committed {
			out.Files += c.Files
			out.Uploaded += c.Uploaded
		}
		if m.err != nil && m.vol != nil && m.res.Pending == 0 && ctx.Err() == nil { // it did not come to that
			apart := m.member
			apart.err = nil
			if n, oldest, err := a.pendingOf(ctx, s, &apart); err == nil {
				m.res.Pending, m.res.Oldest = n, oldest
			}
		}
		out.Unread += m.res.Failures
		out.Pending += m.res.Pending
		if m.res.Pending > 0 && (out.Oldest.IsZero() || m.res.Oldest.Before(out.Oldest)) {
			out.Oldest = m.res.Oldest
		}
	}
	return out, a.outcome(ctx, s, family)
}

// outcome says and keeps what failed of a family, and returns it.
func (a *app) outcome(ctx context.Context, s *site, family []*sourceRun) error {
	var errs []error
	for _, r := range family {
		for _, err := range []error{r.untaken, r.err} {
			if err == nil || ctx.Err() != nil || err == r.untaken && r.told {
				continue
			}
			if errors.Is(err, backup.ErrYielded) {
				errs = append(errs, fmt.Errorf("%w: %w", daemon.ErrMore, err))
				continue
			}
			a.recordFailure(s, r.name, err)
			err = fmt.Errorf("%s: %w", r.name, err)
			a.fail(ctx, err)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// free gives memory back that a run has used. An idle daemon has little.
func (r *running) free() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.freed) > time.Minute {
		r.freed = time.Now()
		debug.FreeOSMemory()
	}
}

// Verify implements daemon.Worker.
func (r *running) Verify(ctx context.Context) error {
	err := r.a.verify(ctx, readFlags{}, false)
	if status, ok := errors.AsType[exitError](err); ok {
		err = hinted(fmt.Errorf("the repository is damaged (%w)", status), "secrate verify says what is")
	}
	return err
}

// room returns an error if a member's snapshots wait for an upload and its disk has too little
// space for more.
func (a *app) room(ctx context.Context, s *site, m *member) error {
	free, total, err := m.space(ctx)
	if err != nil || total <= 0 || free >= s.conf.MinFree().Of(total) {
		return nil // what cannot be told is no reason to go without
	}
	n, _, err := a.pendingOf(ctx, s, m)
	if err != nil || n == 0 {
		return nil
	}
	return hinted(fmt.Errorf("no snapshot was taken: %s of %s is free, and %s for an upload", progress.Size(free), progress.Size(total), wait(n)),
		"secrate upload, or why it fails, is what helps; min_free in the configuration says how much has to be free")
}

func wait(n int) string {
	if n == 1 {
		return "1 snapshot waits"
	}
	return fmt.Sprintf("%d snapshots wait", n)
}

// serve answers secrate status at a socket in the state directory, and Prometheus at the
// address in the configuration.
func (r *running) serve(ctx context.Context) (stop func(), err error) {
	path := filepath.Join(r.site.stateDir, socketFile)
	os.Remove(path) // of one that was killed: we have the lock
	l, err := listenUnix(path)
	if err != nil {
		return nil, hinted(err, "the state directory must be on a file system that has sockets; SECRATE_STATE names it")
	}
	server := &http.Server{Handler: r.statusHandler(), ReadHeaderTimeout: 10 * time.Second}
	var all sync.WaitGroup
	all.Go(func() { server.Serve(l) })
	ctx, cancel := context.WithCancel(ctx)
	all.Go(func() { r.listen(ctx) })
	return func() {
		cancel()
		server.Close()
		all.Wait()
		os.Remove(path)
	}, nil
}

// listenEvery is how often to look whether there is another address to listen at, and how often
// one is tried that cannot be had.
const listenEvery = 5 * time.Second

// listen serves metrics until ctx ends. That the address cannot be had keeps nothing else from
// being done.
func (r *running) listen(ctx context.Context) {
	for ctx.Err() == nil {
		address := r.current().conf.Daemon.Listen
		if address == "" {
			r.setDeaf(nil)
			sleep(ctx, listenEvery)
			continue
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if r.setDeaf(err); err != nil {
			sleep(ctx, listenEvery)
			continue
		}
		server := &http.Server{Handler: r.metricsHandler(), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute}
		done := make(chan struct{})
		go func() {
			defer close(done)
			server.Serve(l)
		}()
		for ctx.Err() == nil && r.current().conf.Daemon.Listen == address {
			sleep(ctx, listenEvery)
		}
		server.Close()
		<-done
	}
}

func (r *running) setDeaf(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && r.deaf == nil {
		r.a.warn("no metrics: %v; it is tried again and again", err)
	}
	r.deaf = err
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// socketFile is the socket at which a daemon answers, in the state directory.
const socketFile = "daemon.sock"

// listenUnix listens at a path of any length: an address of a socket has 107 bytes at most.
func listenUnix(path string) (net.Listener, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.Listen("unix", socketAddress(dir, path))
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the name is good only while dir is open
	return l, os.Chmod(path, 0o600)
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return new(net.Dialer).DialContext(ctx, "unix", socketAddress(dir, path))
}

func socketAddress(dir *os.File, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
}
