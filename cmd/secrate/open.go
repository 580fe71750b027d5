package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/plugin"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/open"
)

// The files in the state directory that are the command's own. Beside them are the
// journal and status files.
const (
	writerFile      = "writer.json"      // who we are, with the metadata key: secret
	catalogFile     = "catalog.db"       // a view of the history
	destinationFile = "destination.json" // what the destination was found to do
)

// A site is a machine whose files are kept: its configuration, and who it is.
type site struct {
	configPath string
	stateDir   string
	conf       *config.Config
	me         s3history.WriterIdentity
	madeFor    string // the repository's address when this writer was made
	recipients *seal.Recipients
	caps       store.Capabilities
}

// paths returns where configuration and state are, be they there or not.
func (a *app) paths() (configPath, stateDir string, err error) {
	if configPath, err = config.Path(a.configFlag); err != nil {
		return "", "", err
	}
	stateDir, err = config.StateDir()
	return configPath, stateDir, err
}

// site reads configuration and state. It changes nothing and speaks to nobody.
func (a *app) site() (*site, error) {
	configPath, stateDir, err := a.paths()
	if err != nil {
		return nil, err
	}
	s := &site{configPath: configPath, stateDir: stateDir}
	s.conf, err = config.Load(configPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hinted(fmt.Errorf("no configuration at %s", configPath),
			"secrate init makes one, --config and SECRATE_CONFIG name another; to read a history on any machine give --repo URL and --identity FILE")
	} else if err != nil {
		return nil, err
	}
	if err := config.EnsureStateDir(stateDir); err != nil {
		return nil, err
	}
	if s.me, s.madeFor, err = readWriter(filepath.Join(stateDir, writerFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, hinted(fmt.Errorf("no writer's key at %s", filepath.Join(stateDir, writerFile)),
			"SECRATE_STATE names another directory; if the state is lost, move %s away and run secrate init with the same recipients: it joins the repository as a new writer, and all that is stored stays", configPath)
	} else if err != nil {
		return nil, err
	}
	if s.recipients, err = seal.ParseRecipients(s.conf.Repository.Recipients, a.sealOptions()); err != nil {
		return nil, fmt.Errorf("%s: %w", configPath, err)
	}
	// Only to know whether to ask for conditional writes: without it we do not.
	if b, err := os.ReadFile(filepath.Join(stateDir, destinationFile)); err == nil {
		if err := json.Unmarshal(b, &s.caps); err != nil {
			a.log.Warn("not readable", "file", destinationFile, "error", err)
		}
	}
	return s, nil
}

// lock keeps other commands from changing the state.
func (s *site) lock(ctx context.Context, command string, wait time.Duration) (*config.StateLock, error) {
	return config.Lock(ctx, s.stateDir, command, wait)
}

// waitFlag gives cmd the flag that says how long to wait for the lock.
func waitFlag(cmd *cobra.Command) *time.Duration {
	return cmd.Flags().Duration("wait", 10*time.Second, "wait at most `TIME`, such as 5m, for another secrate command to end")
}

// openSiteStore opens the destination of the configuration.
func (a *app) openSiteStore(ctx context.Context, s *site, o store.Observer) (store.Store, error) {
	opts := open.Options{ConditionalPut: s.caps.ConditionalPut == store.Yes, Observer: o, Log: a.log}
	opts.UploadLimit, opts.UploadLimitAt = a.uploadLimit(s.conf)
	return open.Store(ctx, s.conf.Repository.URL, opts)
}

// uploadLimit returns what --limit-upload says; else the limits of the configuration, which
// are by the time of day if there is a function.
func (a *app) uploadLimit(conf *config.Config) (always int64, at func(time.Time) int64) {
	switch {
	case a.limitRate != nil:
		return int64(*a.limitRate), nil
	case len(conf.Upload.Limits) == 0:
		return int64(conf.Upload.Limit), nil
	}
	return 0, func(t time.Time) int64 { return int64(conf.UploadLimit(t)) }
}

// checkRepository makes sure that the store holds the repository this writer belongs
// to: what is mounted at a path may be another disk, or none, and an address may have
// been edited.
func (s *site) checkRepository(ctx context.Context, st store.Store) error {
	if s.conf.Repository.URL == s.madeFor && strings.HasPrefix(s.madeFor, "s3://") {
		return nil // a bucket does not turn into another
	}
	id, err := s3history.ReadRepoID(ctx, st)
	switch {
	case errors.Is(err, store.ErrPermission) && strings.HasPrefix(s.conf.Repository.URL, "s3://"):
		return nil // we may only write
	case errors.Is(err, s3history.ErrNoRepository):
		return hinted(err, "is the right disk mounted? The repository of this writer is %s", s.me.Repo)
	case err != nil:
		return err
	case id != s.me.Repo:
		return hinted(fmt.Errorf("%s is repository %s, and this writer belongs to %s", st, id, s.me.Repo),
			"put the former address back, or run secrate init with another --config and SECRATE_STATE to write here too")
	}
	return nil
}

// openCatalog opens the writer's catalog, which must be there: an empty one would
// number the next snapshot as the first.
func (s *site) openCatalog(o catalog.Options) (*catalog.DB, error) {
	path := filepath.Join(s.stateDir, catalogFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, hinted(fmt.Errorf("no catalog at %s", path), "secrate catalog rebuild makes it anew from what is stored")
	}
	db, err := catalog.Open(path, o)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		err = hinted(err, "secrate catalog rebuild makes it anew from what is stored")
	}
	return db, err
}

// A writing is a site with everything open that a writer needs.
type writing struct {
	store   store.Store
	catalog *catalog.DB
	writer  *s3history.Writer
}

func (a *app) openWriting(ctx context.Context, s *site, follow *follower) (_ *writing, err error) {
	w := &writing{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.catalog, err = s.openCatalog(catalog.Options{}); err != nil {
		return nil, err
	}
	st, err := a.openSiteStore(ctx, s, follow.observer())
	if err != nil {
		return nil, err
	}
	w.store = follow.wrap(st)
	if err := s.checkRepository(ctx, w.store); err != nil {
		return nil, err
	}
	w.writer, err = s3history.NewWriter(ctx, s3history.WriterOptions{
		Store: w.store, StateDir: s.stateDir, Catalog: w.catalog, Identity: s.me, Recipients: s.recipients,
		Uploads: s.conf.Upload.Parallel, Log: a.log,
	})
	return w, err
}

func (w *writing) close() error {
	var err error
	if w.catalog != nil {
		err = w.catalog.Close()
	}
	if w.store != nil {
		err = errors.Join(err, open.Close(w.store))
	}
	return err
}

// A writerRecord is writer.json.
type writerRecord struct {
	Format     int    `json:"format"`
	Repository string `json:"repository"` // its id
	URL        string `json:"url"`        // its address when the writer was made
	Writer     string `json:"writer"`
	Name       string `json:"name"`
	Key        string `json:"key"` // the metadata key, base64
	Created    string `json:"created"`
}

// writeWriter makes the file that says who we are. There is none that it could
// overwrite: the error then wraps fs.ErrExist.
func writeWriter(path string, w s3history.WriterIdentity, url string) error {
	b, err := json.MarshalIndent(writerRecord{
		Format: 1, Repository: w.Repo.String(), URL: url, Writer: w.ID, Name: w.Name,
		Key: base64.StdEncoding.EncodeToString(w.Key[:]), Created: time.Now().UTC().Format(time.RFC3339),
	}, "", "  ")
	if err != nil {
		return err
	}
	return config.CreateSecretFile(path, append(b, '\n'))
}

func readWriter(path string) (w s3history.WriterIdentity, url string, err error) {
	b, err := config.ReadSecretFile(path)
	if err != nil {
		return w, "", err
	}
	var r writerRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return w, "", fmt.Errorf("%s: %w", path, err)
	}
	repo, err1 := hex.DecodeString(r.Repository)
	key, err2 := base64.StdEncoding.DecodeString(r.Key)
	if err1 != nil || err2 != nil || len(repo) != len(w.Repo) || len(key) != len(w.Key) || len(r.Writer) != 16 || r.Format != 1 {
		return w, "", fmt.Errorf("%s: is not what secrate init wrote", path)
	}
	w.ID, w.Name = r.Writer, r.Name
	copy(w.Repo[:], repo)
	copy(w.Key[:], key)
	return w, r.URL, nil
}

// identities reads the identity files that were named, or the one that
// SECRATE_IDENTITY names; none if there is neither.
func (a *app) identities(files []string) ([]age.Identity, error) {
	if len(files) == 0 {
		if f := os.Getenv("SECRATE_IDENTITY"); f != "" {
			files = []string{f}
		}
	}
	var all []age.Identity
	for _, name := range files {
		b, err := readIdentityFile(name)
		if err != nil {
			return nil, fmt.Errorf("identity: %w", err)
		}
		ids, err := seal.ParseIdentityFile(b, a.sealOptions())
		if err != nil {
			return nil, fmt.Errorf("identity %s: %w", name, err)
		}
		all = append(all, ids...)
	}
	return all, nil
}

// readIdentityFile reads a file of any mode: identities are kept on sticks whose file
// systems know no modes, and read on the worst of days.
func readIdentityFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, seal.MaxIdentityFile+1))
	if err == nil && len(b) > seal.MaxIdentityFile {
		err = fmt.Errorf("%s: larger than an identity file can be", name)
	}
	return b, err
}

// sealOptions lets keys ask their questions, where there is somebody to answer.
func (a *app) sealOptions() seal.Options {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return seal.Options{}
	}
	tty.Close()
	say := func(format string, v ...any) { fmt.Fprintf(a.errorOutput(), format+"\n", v...) }
	return seal.Options{
		Plugin: plugin.NewTerminalUI(say, say),
		Passphrase: func(what string) ([]byte, error) {
			tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
			if err != nil {
				return nil, err
			}
			defer tty.Close()
			fmt.Fprintf(tty, "Passphrase of the %s: ", what)
			defer fmt.Fprintln(tty)
			return term.ReadPassword(int(tty.Fd()))
		},
	}
}
