package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/s3history"
)

func newVerify(a *app) *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that all that the history names is stored, and whole",
		Long: `Compare every object that the history names with what is stored: whether it is there
and as long as it should be; and look whether secrate.json and the writer's key can be
read. With --read-data every object is read and its SHA-256
compared with its name, which takes no identity. With --identity everything is also
decrypted and its content ids compared; SECRATE_IDENTITY does not do that by itself.

Of each damaged pack the files that need its bytes are named, by the newest path they
had. Metadata is stored twice: where one copy is whole nothing is lost, but it counts
as damage, since it wants looking after.

` + readingHelp + `

The repository is only read; with --read-data and --identity, all of it.

Exit statuses:

    0  all is well
    1  something is damaged, and is named
    2  usage
    3  it could not be found out`,
		Example: `  secrate verify
  secrate verify --read-data --identity secrate.key`,
		Args: arguments(0, 0, ""),
	}
	readData := cmd.Flags().Bool("read-data", false, "read every object and check its SHA-256")
	f.add(cmd)
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line for each damage, and the counts as the last")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.verify(cmd.Context(), f, *readData)
	}
	return cmd
}

func (a *app) verify(ctx context.Context, f readFlags, readData bool) error {
	h, err := a.openHistory(ctx, f)
	if err != nil {
		return err
	}
	defer h.close()
	if err := h.loadAll(ctx); err != nil {
		return err
	}
	v := &verification{a: a, h: h, out: a.display.Results(a.stdout)}
	v.options = s3history.VerifyOptions{ReadData: readData, KeyIdentities: h.identities}
	if len(f.identities) > 0 {
		v.options.Identities = h.identities
	}
	for _, x := range h.indexes {
		if err := v.index(ctx, x); err != nil {
			return err
		}
	}
	return v.end(ctx)
}

// loadAll makes the indexes of a history known, and with --repo all that they index.
func (h *history) loadAll(ctx context.Context) error {
	if !h.bare() {
		if err := h.openStore(ctx); err != nil {
			return err
		}
		x, err := s3history.ReadIndex(ctx, h.store, h.site.me)
		if err != nil {
			return err
		}
		h.indexes = []*s3history.Index{x}
		h.sayProblems()
		return nil
	}
	step := h.a.display.Step(progress.Files)
	step.Start("read the metadata", -1)
	defer step.Done(nil)
	for _, p := range h.sources {
		var err error
		p.source, err = p.index.LoadAll(ctx, h.db, p.indexed, func(string, uint64, uint64) { step.Add(1) })
		if err != nil {
			return err
		}
	}
	h.sayProblems()
	return nil
}

// A verification is one run of secrate verify.
type verification struct {
	a       *app
	h       *history
	out     io.Writer
	options s3history.VerifyOptions
	result  s3history.VerifyResult
	lost    int // objects of which no copy is whole
	copies  int // copies that are not, of objects that are
}

func (v *verification) index(ctx context.Context, x *s3history.Index) error {
	step := v.a.display.Step(progress.Bytes)
	step.Start("verify", -1)
	o := v.options
	var seen int64
	o.Step = func(_ int, bytes int64) {
		step.Add(bytes - seen)
		seen = bytes
	}
	var res s3history.VerifyResult
	for d := range s3history.Verify(ctx, v.h.store, x, v.h.db, o, &res) {
		if d.Key == "" {
			step.Done(d.Err)
			return d.Err
		}
		if err := v.damage(d); err != nil {
			step.Done(err)
			return err
		}
	}
	step.Done(nil)
	v.result.Objects += res.Objects
	v.result.Bytes += res.Bytes
	v.result.Read += res.Read
	return nil
}

// maxAffected bounds the files that are named for a pack.
const maxAffected = 1000

// An affected is a file that needs a damaged pack.
type affected struct {
	Source    string `json:"source"`
	Path      string `json:"path"`
	PathBytes string `json:"path_base64,omitempty"`
}

func (v *verification) damage(d s3history.Damage) error {
	if d.Copy {
		v.copies++
	} else {
		v.lost++
	}
	files, err := v.affected(d.Pack)
	if err != nil {
		return err
	}
	if v.a.json {
		return writeJSON(v.out, struct {
			Key      string     `json:"key"`
			Error    string     `json:"error"`
			Copy     bool       `json:"copy"`
			Affected []affected `json:"affected,omitempty"`
		}{d.Key, d.Err.Error(), d.Copy, files})
	}
	note := ""
	if d.Copy {
		note = " (the other copy is whole)"
	}
	fmt.Fprintf(v.out, "damaged: %s%s\n", d, note)
	for _, f := range files {
		fmt.Fprintf(v.out, "    %s:%s\n", f.Source, namerFor(v.a.stdout).name(f.Path))
	}
	return nil
}

func (v *verification) affected(pack catalog.PackID) ([]affected, error) {
	if pack == 0 {
		return nil, nil
	}
	var all []affected
	for _, p := range v.h.sources {
		paths, err := s3history.Affected(v.h.db, p.source, pack, maxAffected)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			f := affected{Source: p.name}
			f.Path, f.PathBytes = jsonName(path)
			all = append(all, f)
		}
		if len(paths) == maxAffected {
			v.a.warn("%s: more than %d files need this pack; only so many are named", p.name, maxAffected)
		}
	}
	return all, nil
}

// end writes the counts.
func (v *verification) end(ctx context.Context) error {
	var err error
	if v.a.json {
		err = writeJSON(v.out, struct {
			Objects  int   `json:"objects"`
			Bytes    int64 `json:"bytes"`
			Read     int64 `json:"read"`
			Lost     int   `json:"lost"`
			Copies   int   `json:"copies"`
			Problems int   `json:"problems"`
		}{v.result.Objects, v.result.Bytes, v.result.Read, v.lost, v.copies, v.h.problems})
	} else {
		text := count(v.result.Objects, "object") + ", " + progress.Size(v.result.Bytes)
		if v.options.ReadData || v.options.Identities != nil {
			text += ", " + progress.Size(v.result.Read) + " read"
		}
		if v.lost+v.copies+v.h.problems == 0 {
			text += ": all is well"
		}
		_, err = fmt.Fprintln(v.out, text)
	}
	switch {
	case err != nil:
		return err
	case v.lost > 0:
		v.a.fail(ctx, hinted(fmt.Errorf("%s lost or damaged", count(v.lost, "object")),
			"whatever does not need them can be restored; an object that is put back under its name, from another copy of the repository, heals the history"))
		return exitError(exitPartly)
	case v.h.problems > 0:
		v.a.fail(ctx, fmt.Errorf("the history has %s, named above", count(v.h.problems, "fault")))
		return exitError(exitPartly)
	case v.copies > 0:
		v.a.fail(ctx, hinted(errors.New(count(v.copies, "copy")+" of metadata damaged; nothing is lost"),
			"put the object back from its other copy, under keys/ and keys2/, or meta/ and meta2/"))
		return exitError(exitPartly)
	}
	return nil
}
