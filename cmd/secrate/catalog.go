package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/open"
)

func newCatalog(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "catalog",
		Short: "Look after this machine's view of the history",
		Long: `The catalog is a database in the state directory that says what is stored where. It
is a view of the metadata in the repository: nothing is lost with it.`,
		Example: `  secrate catalog rebuild
  secrate catalog rebuild --verbose`,
	}
	group(cmd)
	cmd.AddCommand(newCatalogRebuild(a))
	return cmd
}

func newCatalogRebuild(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "Make the catalog anew from what is stored",
		Long: `Read all metadata of this writer from the repository and make the catalog anew. It
takes no identity: the writer's own key opens it. The old catalog is used until the
new one is complete, and is replaced then.

Read is the metadata in the repository; changed is the catalog in the state
directory. What is wrong with the history is said, and whatever can be read is taken.

Exit statuses:

    0  done
    1  done, but the history has damages, which are named
    3  not done: the old catalog is as it was`,
		Example: `  secrate catalog rebuild
  SECRATE_STATE=/srv/state secrate catalog rebuild`,
		Args: arguments(0, 0, ""),
	}
	wait := waitFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.rebuildCatalog(cmd.Context(), *wait)
	}
	return cmd
}

func (a *app) rebuildCatalog(ctx context.Context, wait time.Duration) error {
	s, err := a.site()
	if err != nil {
		return err
	}
	lock, err := s.lock(ctx, "catalog rebuild", wait)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	st, err := a.openSiteStore(ctx, s, store.Observer{})
	if err != nil {
		return err
	}
	defer open.Close(st)
	if err := s.checkRepository(ctx, st); err != nil {
		return err
	}
	x, err := s3history.ReadIndex(ctx, st, s.me)
	if err != nil {
		return err
	}
	path := filepath.Join(s.stateDir, catalogFile)
	if err := removeDatabase(path + ".new"); err != nil {
		return err
	}
	if err := a.loadCatalog(ctx, x, path+".new"); err != nil {
		return errors.Join(err, removeDatabase(path+".new"))
	}
	crashpoint.Here("rebuild loaded")
	// The old one goes as a whole before the new one has its name: without its log it
	// would be older than the history, and the next snapshot would get a number that is
	// taken. A crash in between leaves none, and an error that says to rebuild.
	if err := removeDatabase(path); err != nil {
		return err
	}
	crashpoint.Here("rebuild removed")
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	crashpoint.Here("rebuild after")
	for _, src := range x.Sources {
		snaps := src.Snapshots()
		if len(snaps) > 0 {
			fmt.Fprintf(a.results(), "%s: %s, up to #%d\n", src.Name, count(len(snaps), "snapshot"), snaps[len(snaps)-1].Seq)
		}
	}
	for _, p := range x.Problems {
		a.warn("the history is damaged: %v", p)
	}
	if len(x.Problems) > 0 {
		return exitError(exitPartly)
	}
	return nil
}

// loadCatalog makes a catalog of all that x indexes.
func (a *app) loadCatalog(ctx context.Context, x *s3history.Index, path string) error {
	db, err := catalog.Open(path, catalog.Options{})
	if err != nil {
		return err
	}
	step := a.display.Step(progress.Files)
	step.Start("rebuild the catalog", -1)
	for i := range x.Sources {
		crashpoint.Here("rebuild source")
		if _, err = x.LoadAll(ctx, db, &x.Sources[i], func(string, uint64, uint64) { step.Add(1) }); err != nil {
			break
		}
	}
	step.Done(err)
	// The last connection to close brings all into the file itself.
	return errors.Join(err, db.Close())
}

// removeDatabase removes an SQLite database and then what stands beside it.
func removeDatabase(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		crashpoint.Here("rebuild remove")
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
