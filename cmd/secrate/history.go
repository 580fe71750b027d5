package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/open"
)

// A readFlags is where a command that reads a history finds it.
type readFlags struct {
	repo       string
	identities []string
	writer     string
}

// readingHelp is the part of help texts that is about readFlags.
const readingHelp = `On the machine that wrote the history, its catalog answers. With --repo and an
identity it can be asked on any machine: then the metadata that is needed is read
from the repository and kept in a temporary directory until the end. The identity is
what --identity names, or the file in SECRATE_IDENTITY.`

func (f *readFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.repo, "repo", "", "read the repository at `URL`, needing nothing of this machine")
	cmd.Flags().StringArrayVar(&f.identities, "identity", nil, "decrypt with the identity in `FILE`; may be repeated")
	cmd.Flags().StringVar(&f.writer, "writer", "", "with --repo: the writer, by `NAME` or id, where several have written")
}

// A history is what readers ask.
type history struct {
	a          *app
	identities []age.Identity
	site       *site       // nil with --repo
	store      store.Store // opened when it is needed
	db         *catalog.DB // with --repo a temporary one
	sources    []*past
	problems   int // of all indexes, that were said
	indexes    []*s3history.Index
	temp       string // directory of the temporary catalog
}

// A past is one source of a history.
type past struct {
	name      string
	writer    s3history.WriterIdentity
	snapshots []s3history.Snapshot
	source    catalog.Source           // in the catalog of this machine
	index     *s3history.Index         // with --repo
	indexed   *s3history.IndexedSource // with --repo
}

// openHistory opens what f says. The caller closes it.
func (a *app) openHistory(ctx context.Context, f readFlags) (_ *history, err error) {
	h := &history{a: a}
	if h.identities, err = a.identities(f.identities); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if f.repo != "" {
		return h, h.openBare(ctx, f)
	}
	if f.writer != "" {
		return nil, &usageError{"--writer goes with --repo", "without --repo the history is that of this machine"}
	}
	if h.site, err = a.site(); err != nil {
		return nil, err
	}
	if h.db, err = h.site.openCatalog(catalog.Options{ReadOnly: true}); err != nil {
		return nil, err
	}
	sources, err := h.db.Sources()
	if err != nil {
		return nil, err
	}
	for _, src := range sources {
		p := &past{name: src.Name, writer: h.site.me, source: src}
		if p.snapshots, err = s3history.Snapshots(h.db, src); err != nil {
			return nil, err
		}
		if len(p.snapshots) > 0 {
			h.sources = append(h.sources, p)
		}
	}
	return h, nil
}

// openBare reads the manifests' roots of every writer that the identities open.
func (h *history) openBare(ctx context.Context, f readFlags) (err error) {
	if len(h.identities) == 0 {
		return &usageError{"to read a repository takes an identity", "--identity FILE, or SECRATE_IDENTITY=FILE"}
	}
	if h.store, err = open.Store(ctx, f.repo, open.Options{Log: h.a.log}); err != nil {
		return err
	}
	repo, err := s3history.Open(ctx, h.store, h.identities)
	if err != nil {
		return err
	}
	writers, err := pickWriters(repo.Writers, f.writer)
	if err != nil {
		return err
	}
	step := h.a.display.Step(progress.Files)
	step.Start("read the index", -1)
	defer step.Done(nil)
	for _, w := range writers {
		x, err := s3history.ReadIndex(ctx, h.store, w)
		if err != nil {
			return err
		}
		h.indexes = append(h.indexes, x)
		for i := range x.Sources {
			src := &x.Sources[i]
			h.sources = append(h.sources, &past{name: src.Name, writer: w, snapshots: src.Snapshots(), index: x, indexed: src})
		}
	}
	h.sayProblems()
	if h.temp, err = os.MkdirTemp("", "secrate-"); err != nil { // mode 0700
		return err
	}
	h.db, err = catalog.Open(filepath.Join(h.temp, catalogFile), catalog.Options{Temporary: true, NoContent: true})
	return err
}

// pickWriters returns the writers of that name or id, all if it is empty.
func pickWriters(all []s3history.WriterIdentity, want string) ([]s3history.WriterIdentity, error) {
	if want == "" {
		return all, nil
	}
	var picked []s3history.WriterIdentity
	var names []string
	for _, w := range all {
		if w.Name == want || w.ID == want {
			picked = append(picked, w)
		}
		names = append(names, fmt.Sprintf("%s (%s)", progress.Printable(w.Name), w.ID))
	}
	if len(picked) == 0 {
		return nil, &usageError{"no writer called " + progress.Printable(want), "writers are " + strings.Join(names, ", ")}
	}
	return picked, nil
}

func (h *history) close() error {
	var err error
	if h.db != nil {
		err = h.db.Close()
	}
	if h.store != nil {
		err = errors.Join(err, open.Close(h.store))
	}
	if h.temp != "" {
		err = errors.Join(err, os.RemoveAll(h.temp))
	}
	return err
}

// sayProblems warns of what is wrong with the history and was not said before.
func (h *history) sayProblems() {
	n := 0
	for _, x := range h.indexes {
		for _, p := range x.Problems {
			if n++; n > h.problems {
				h.a.warn("the history is damaged: %v", p)
			}
		}
	}
	h.problems = n
}

// bare reports whether the history is read from manifests alone.
func (h *history) bare() bool { return h.site == nil }

// openStore opens the repository of this machine's history.
func (h *history) openStore(ctx context.Context) error {
	if h.store != nil {
		return nil
	}
	s, err := h.a.openSiteStore(ctx, h.site, store.Observer{})
	if err != nil {
		return err
	}
	h.store = s
	return h.site.checkRepository(ctx, s)
}

// A target is what an argument such as NAME:PATH names.
type target struct {
	name string
	path []string // components
}

func parseTarget(arg string) target {
	name, path, _ := strings.Cut(arg, ":") // a name has no colon
	return target{name, s3history.SplitPath(path)}
}

// String is the path as it is written.
func (t target) String() string { return t.name + ":/" + strings.Join(t.path, "/") }

// source returns the source called name, or the only one if that is empty.
func (h *history) source(name string) (*past, error) {
	var found []*past
	var names []string
	for _, p := range h.sources {
		if p.name == name || name == "" {
			found = append(found, p)
		}
		if !slices.Contains(names, p.name) {
			names = append(names, p.name)
		}
	}
	switch {
	case len(h.sources) == 0:
		return nil, hinted(errors.New("there are no snapshots yet"), "secrate snap takes the first")
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		hint := "sources are " + strings.Join(names, ", ")
		if strings.ContainsAny(name, "/") {
			hint += "; a path is written NAME:PATH"
		}
		return nil, &usageError{"no source named " + progress.Printable(name) + " has a history", hint}
	case name == "" && len(names) > 1:
		return nil, &usageError{"there are several sources, and none was named", "sources are " + strings.Join(names, ", ")}
	}
	var writers []string
	for _, p := range found {
		writers = append(writers, fmt.Sprintf("%s (%s)", progress.Printable(p.writer.Name), p.writer.ID))
	}
	return nil, &usageError{fmt.Sprintf("%s writers have a source named %s", fmt.Sprint(len(found)), found[0].name),
		"--writer NAME or ID says which: " + strings.Join(writers, ", ")}
}

// parseAt reads the value of --at.
func parseAt(text string) (when.Point, error) { return parsePoint("--at", text) }

// parsePoint reads the value of a flag that is a point in time.
func parsePoint(flag, text string) (when.Point, error) {
	p, err := when.Parse(text, time.Now())
	if err != nil {
		return p, &usageError{flag + ": " + err.Error(), hintFor(err)}
	}
	return p, nil
}

// pick returns the snapshot that a point in time stands for: the newest not after
// it. Snapshots are in the order of their numbers, which counts where a clock was set
// back.
func (p *past) pick(at when.Point) (s3history.Snapshot, error) {
	first, last := p.snapshots[0], p.snapshots[len(p.snapshots)-1]
	switch {
	case at.Latest:
		return last, nil
	case at.Seq > 0:
		for _, s := range p.snapshots {
			if s.Seq == at.Seq {
				return s, nil
			}
		}
		return s3history.Snapshot{}, hinted(fmt.Errorf("%s has no snapshot #%d", p.name, at.Seq),
			"it has #%d of %s to #%d of %s", first.Seq, localTime(first.Info.Time.Time()), last.Seq, localTime(last.Info.Time.Time()))
	}
	for _, s := range slices.Backward(p.snapshots) {
		if !s.Info.Time.Time().After(at.Time) {
			return s, nil
		}
	}
	return s3history.Snapshot{}, hinted(fmt.Errorf("%s has no snapshot as early as %s: the first, #%d, is of %s", p.name,
		localTime(at.Time), first.Seq, when.FormatTime(first.Info.Time.Time())), "--at '#%d' is the first", first.Seq)
}

// before returns the snapshot before another.
func (p *past) before(s s3history.Snapshot) (s3history.Snapshot, error) {
	i := slices.IndexFunc(p.snapshots, func(x s3history.Snapshot) bool { return x.Seq == s.Seq })
	if i <= 0 {
		return s3history.Snapshot{}, hinted(fmt.Errorf("%s has no snapshot before #%d", p.name, s.Seq), "secrate ls -r %s --at '#%d' shows all that is in it", p.name, s.Seq)
	}
	return p.snapshots[i-1], nil
}

// load makes the states of a source known, from one snapshot to another. A command does
// so once for each source.
func (h *history) load(ctx context.Context, p *past, from, to uint64) (err error) {
	if p.indexed == nil || p.source.ID != 0 {
		return nil
	}
	step := h.a.display.Step(progress.Files)
	step.Start("read the metadata", -1)
	p.source, err = p.index.LoadBetween(ctx, h.db, p.indexed, from, to, func(string, uint64, uint64) { step.Add(1) })
	step.Done(err)
	h.sayProblems()
	return err
}

// at returns the state of a source at a snapshot.
func (h *history) at(ctx context.Context, p *past, s s3history.Snapshot) (v catalog.View, err error) {
	if err := h.load(ctx, p, s.Seq, s.Seq); err != nil {
		return v, err
	}
	if s.Partial {
		h.a.warn("%s #%d IS PARTIAL: it was made in the midst of the first snapshot, and files that had not been reached are missing. secrate snapshots %s shows which are whole", p.name, s.Seq, p.name)
	}
	return h.db.At(p.source.ID, s.Seq), nil
}

// content returns what reads the bytes of files; it takes an identity.
func (h *history) content(ctx context.Context, p *past) (*s3history.Content, error) {
	if len(h.identities) == 0 {
		return nil, &usageError{"to read files takes an identity: this machine can write them and not read them", "--identity FILE, or SECRATE_IDENTITY=FILE"}
	}
	if err := h.openStore(ctx); err != nil {
		return nil, err
	}
	if !h.bare() {
		if err := h.checkIdentities(ctx); err != nil {
			return nil, err
		}
	}
	return s3history.NewContent(h.store, p.writer, h.db, h.identities), nil
}

// checkIdentities makes sure that the identities are those of this writer's
// recipients, before anything is made that a wrong one would leave empty. With --repo
// opening the repository has shown it.
func (h *history) checkIdentities(ctx context.Context) error {
	repo, err := s3history.Open(ctx, h.store, h.identities)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(repo.Writers, func(w s3history.WriterIdentity) bool { return w.ID == h.site.me.ID }) {
		return nil
	}
	return fmt.Errorf("the key of this writer, keys/%s: %w", h.site.me.ID, seal.ErrNoIdentity)
}

// A reading is a history with one of its sources at one point in time.
type reading struct {
	*history
	past *past
	snap s3history.Snapshot
	view catalog.View
	path []string
}

// read opens the history, and what arg (NAME:PATH) names in it at a point in time.
func (a *app) read(ctx context.Context, f readFlags, arg, at string) (_ *reading, err error) {
	point, err := parseAt(at)
	if err != nil {
		return nil, err
	}
	h, err := a.openHistory(ctx, f)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	t := parseTarget(arg)
	r := &reading{history: h, path: t.path}
	if r.past, err = h.source(t.name); err != nil {
		return nil, err
	}
	if r.snap, err = r.past.pick(point); err != nil {
		return nil, err
	}
	r.view, err = h.at(ctx, r.past, r.snap)
	return r, err
}

// missing explains that a path is not in the history at that time.
func (r *reading) missing(err error) error {
	t := target{r.past.name, r.path}
	return hinted(fmt.Errorf("%s: %w in #%d of %s", progress.Printable(t.String()), err, r.snap.Seq, localTime(r.snap.Info.Time.Time())),
		"secrate ls %s --at '#%d' shows what there is", quote(target{r.past.name, r.path[:max(len(r.path)-1, 0)]}.String()), r.snap.Seq)
}
