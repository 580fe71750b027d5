// Secrate keeps every version of every file of a file system: encrypted, in objects
// that are written once, on S3 or in a directory.
//
// There is one file a subcommand. It takes flags and arguments, calls a pipeline and
// writes what came of it; what several of them need is in these:
//
//	main.go      flags of all commands, exit statuses, errors and hints
//	open.go      what a writer is made of: configuration, state, store, catalog
//	history.go   what readers ask: the catalog of this machine, or manifests alone
//	volume.go    Btrfs and ZFS as internal/backup knows them: what a source has of volumes
//	streams.go   units of their streams
//	hooks.go     commands before and after snapshots
//	daemon.go    the daemon: what package daemon asks to be done; daemonstatus.go, metrics.go
//	             and tell.go say what came of it
//	follow.go    how a run comes along, for the person and for secrate status
//	output.go    the one way in which snapshots and names are written
//
// Results go to stdout, all else to stderr.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store"
)

// The exit statuses. Help texts say what they mean for each command.
const (
	exitDone    = 0
	exitPartly  = 1
	exitUsage   = 2
	exitNothing = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first interrupt ends things in order, the second one at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:]))
}

// run is the command with its arguments; it returns the exit status.
func run(ctx context.Context, args []string) int {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	root := newRoot(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if a.display != nil {
		err = errors.Join(err, a.display.Close())
	}
	switch {
	case err == nil:
		return exitDone
	case !a.began: // flags and arguments were not taken
		err = &usageError{err.Error(), cmd.CommandPath() + " --help"}
	}
	if status, ok := errors.AsType[exitError](err); ok {
		return int(status)
	}
	a.fail(ctx, err)
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	return exitNothing
}

// An app is one run of the command: where its words go, and the flags that all
// subcommands have.
type app struct {
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer

	configFlag string
	quiet      bool
	json       bool // a flag of the subcommands that have it
	progress   string
	limit      string
	logLevel   string
	verbose    bool

	began     bool // flags and arguments were taken
	display   *progress.Display
	log       *slog.Logger
	limitRate *config.Rate // nil when not given

	onInterrupt string // the hint when the command is interrupted

	releasing atomic.Int32 // commands after snapshots that run, and should come to their end
}

const rootLong = `Secrate keeps every version of every file of a file system: encrypted before it
leaves the machine, in objects that are written once and never changed or
deleted, on S3 or in a directory.

On a machine whose files are kept, begin with

    secrate init --repo URL --identity-out FILE
    secrate source add home /home
    secrate snap

and from then on let cron run secrate snap, or secrate daemon do all by itself.
Anywhere else the address and the identity are enough to have everything back:

    secrate restore --repo URL --identity FILE --at latest --to DIR home

Exit statuses, of all commands:

    0  all done
    1  some of it failed and was named, the rest is done
    2  the command line cannot be meant: nothing was begun
    3  nothing could be done

Environment:

    SECRATE_CONFIG     the configuration file; else /etc/secrate/config.toml for
                       root and $XDG_CONFIG_HOME/secrate/config.toml for others
    SECRATE_STATE      the directory of catalog, keys and journal; else
                       /var/lib/secrate for root and $XDG_STATE_HOME/secrate
    SECRATE_IDENTITY   an identity file, where --identity is not given
    AWS_…              credentials and region for S3, as for every AWS tool`

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "secrate",
		Short: "Keep every version of every file, encrypted, on S3",
		Long:  rootLong,
		Example: `  secrate snap                              # all sources
  secrate restore --at "2d ago" --to /tmp/back home:docs/letter.odt`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.begin() },
	}
	group(root)
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&a.configFlag, "config", "", "configuration `FILE`")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "neither progress nor results of snap, upload and ingest; warnings and errors stay")
	f.StringVar(&a.progress, "progress", "auto", "`MODE` of progress on stderr: auto, bars, plain, json or none")
	f.StringVar(&a.limit, "limit-upload", "", "upload at most `RATE`, such as \"10 MiB/s\" or \"20 Mbit/s\"; 0 is no limit (default: what the configuration says)")
	f.StringVar(&a.logLevel, "log-level", "error", "log from `LEVEL` on to stderr: debug, info, warn or error")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "the same as --log-level info")
	root.AddCommand(newInit(a), newSource(a), newSnap(a), newUpload(a), newIngest(a),
		newSnapshots(a), newLs(a), newCat(a), newLog(a), newDiff(a), newFind(a), newRestore(a), newVerify(a),
		newDaemon(a), newStatus(a), newStats(a),
		newCatalog(a), newVersion(a), newMan())
	return root
}

// group makes cmd one that is nothing without a subcommand.
func group(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("there is no command %s %s", cmd.CommandPath(), progress.Printable(args[0]))
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// begin takes the flags that all commands have.
func (a *app) begin() error {
	mode, ok := map[string]progress.Mode{"auto": progress.Auto, "bars": progress.Bars, "plain": progress.Plain,
		"json": progress.JSON, "none": progress.Quiet}[a.progress]
	switch {
	case !ok:
		return fmt.Errorf("--progress %q: want auto, bars, plain, json or none", a.progress)
	case a.quiet:
		mode = progress.Quiet
	case a.json && mode == progress.Auto:
		mode = progress.JSON
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q: want debug, info, warn or error", a.logLevel)
	}
	if a.verbose {
		level = min(level, slog.LevelInfo)
	}
	if a.limit != "" {
		r, err := config.ParseRate(a.limit)
		if err != nil {
			return fmt.Errorf("--limit-upload: %w", err)
		}
		a.limitRate = &r
	}
	a.display = progress.New(a.stderr, mode)
	a.log = slog.New(slog.NewTextHandler(a.display, &slog.HandlerOptions{Level: level}))
	a.began = true
	return nil
}

// results is where the outcome of snap, upload and ingest goes.
func (a *app) results() io.Writer {
	if a.quiet && !a.json {
		return io.Discard
	}
	return a.display.Results(a.stdout)
}

// warn says what a person should know that is no failure.
func (a *app) warn(format string, args ...any) {
	a.say("warning", fmt.Sprintf(format, args...))
}

// say writes text, a line or more, with what it is in front.
func (a *app) say(what, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(a.errorOutput(), "secrate: %s: %s\n", what, strings.TrimSuffix(line, "\n"))
	}
}

// fail says that something failed, and what to do about it.
func (a *app) fail(ctx context.Context, err error) {
	hint := hintFor(err)
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))) {
		err, hint = errors.New("interrupted"), a.onInterrupt
	}
	a.say("error", err.Error())
	if hint != "" {
		a.say("hint", hint)
	}
}

func (a *app) errorOutput() io.Writer {
	if a.display != nil {
		return a.display
	}
	return a.stderr
}

// resumeUpload is the hint when an upload was interrupted.
const resumeUpload = "what was uploaded is kept; the same command goes on from there"

// An exitError ends the command with a status when all has been said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// A usageError is a command line that cannot be meant.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }
func (e *usageError) Hint() string  { return e.hint }

// A hintedError is an error with a word on what to do.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }
func (e *hintedError) Hint() string  { return e.hint }

// hinted adds a hint to err, unless it is nil.
func hinted(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintedError{err, fmt.Sprintf(format, args...)}
}

// hintFor returns what can be done about err: the error's own word, or what is known
// of its kind.
func hintFor(err error) string {
	var h interface {
		error
		Hint() string
	}
	if errors.As(err, &h) && h.Hint() != "" {
		return h.Hint()
	}
	if hint := store.Hint(err); hint != "" {
		return hint
	}
	for _, k := range []struct {
		is   error
		hint string
	}{
		{s3history.ErrNoRepository, "check the address; secrate init makes a new repository"},
		{s3history.ErrNewer, "install a newer secrate"},
		{catalog.ErrVersion, "secrate catalog rebuild makes it anew from what is stored"},
		{seal.ErrNoIdentity, "the identity file must be the one whose recipient was given to secrate init: its \"# public key\" line and recipients in the configuration are the same"},
		{seal.ErrPassphrase, "it is asked for on a terminal: try it again there"},
		{localfs.ErrNoDevice, "lsblk shows those there are"},
		{localfs.ErrNotEmpty, "name a new directory, or say --into-existing: what is not in the history is then left as it is"},
		{unix.ENOSPC, "the disk is full: see df and df -i"},
		{unix.EDQUOT, "the quota is used up"},
		{unix.EROFS, "the file system is mounted read-only"},
		{store.ErrUnavailable, "the same command goes on later where it stopped"},
	} {
		if errors.Is(err, k.is) {
			return k.hint
		}
	}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 && !strings.Contains(err.Error(), "run as root") {
		return "run it as root"
	}
	return ""
}

// count is n things, such as 1 file or 2 files.
func count[N int | int64 | uint64](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
