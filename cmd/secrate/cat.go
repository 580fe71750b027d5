package main

import (
	"bufio"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/progress"
)

func newCat(a *app) *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "cat NAME:PATH",
		Short: "Write a file of the history to standard output",
		Long: `Write the content of one file, as it was at a point in time, to standard output. It
takes an identity. NAME may be left out where there is only one source.

` + readingHelp + `

Nothing is changed. What could not be authenticated is not written; if that happens
in the midst of a file, the output ends before it.

Exit statuses:

    0  all of the file was written
    2  usage, such as no identity
    3  it was not, or only its beginning, or not all of it could be read when the
       snapshot was made`,
		Example: `  secrate cat home:docs/letter.txt --at "2026-11-20 15:04" --identity secrate.key
  secrate cat :etc/fstab --repo /mnt/disk/secrate --identity secrate.key`,
		Args: arguments(1, 1, "a path as NAME:PATH"),
	}
	at := atFlag(cmd)
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.cat(cmd.Context(), f, args[0], *at)
	}
	return cmd
}

// atFlag gives cmd the flag for a point in time.
func atFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("at", "latest", "show it as it was at `T`: \"2026-11-20 15:04\", 2026-11-20, \"3h ago\", \"2d ago\", latest, '#12' (a number, quoted for the shell) or RFC 3339; the newest snapshot not after it counts")
}

func (a *app) cat(ctx context.Context, f readFlags, arg, at string) error {
	r, err := a.read(ctx, f, arg, at)
	if err != nil {
		return err
	}
	defer r.close()
	node, err := r.view.Resolve(r.path)
	if err != nil {
		return r.missing(err)
	}
	attr, err := r.view.Attr(node)
	if err != nil {
		return err
	}
	if attr.Kind != filetree.File {
		what := attr.Kind.String()
		if attr.Kind == filetree.Dir {
			what = "directory"
		}
		return hinted(fmt.Errorf("%s is a %s, not a file", progress.Printable(arg), what), "secrate ls %s shows it", quote(arg))
	}
	content, err := r.content(ctx, r.past)
	if err != nil {
		return err
	}
	if err := a.display.Close(); err != nil {
		return err
	}
	w := bufio.NewWriter(a.stdout)
	if err := content.WriteFile(ctx, r.view, node, attr.Size, w); err != nil {
		return fmt.Errorf("%s: %w", progress.Printable(arg), err)
	}
	if err := w.Flush(); err != nil || !attr.Incomplete {
		return err
	}
	return hinted(fmt.Errorf("%s: not all of it could be read when #%d was made: where it could not, zeros are written", progress.Printable(arg), r.snap.Seq),
		"an earlier snapshot may have all of it: secrate snapshots %s", r.past.name)
}
