package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/progress"
)

func newSnapshots(a *app) *cobra.Command {
	var f readFlags
	cmd := &cobra.Command{
		Use:   "snapshots [NAME]",
		Short: "List the points in time of the history",
		Long: `List the snapshots of a source, or of all, oldest first: number, time, how many files
had changed, what was uploaded, and what the file system called it. Snapshots that
wait for an upload are not among them; secrate status counts those.

` + readingHelp + `

Nothing is changed.

Exit statuses:

    0  done
    2  usage, such as a source that has no history
    3  nothing could be read`,
		Example: `  secrate snapshots home
  secrate snapshots --repo "s3://backups/nas" --identity secrate.key --json`,
		Args:              arguments(0, 1, "the name of a source"),
		ValidArgsFunction: a.completeSources,
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object a line for each snapshot")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		return a.listSnapshots(cmd.Context(), f, name)
	}
	return cmd
}

func (a *app) listSnapshots(ctx context.Context, f readFlags, name string) error {
	h, err := a.openHistory(ctx, f)
	if err != nil {
		return err
	}
	defer h.close()
	sources := h.sources
	if name != "" {
		p, err := h.source(name)
		if err != nil {
			return err
		}
		sources = []*past{p}
	}
	if err := a.display.Close(); err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, p := range sources {
		for _, s := range p.snapshots {
			if a.json {
				o := objectOf(s)
				if h.bare() {
					o.Writer = p.writer.ID
				}
				if err := writeJSON(a.stdout, o); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(w, "%s\t#%d%s\t%s\t%s\t%s\n", p.name, s.Seq, partial(s), localTime(s.Info.Time.Time()), uploaded(s), progress.Printable(s.Info.Origin))
		}
	}
	return w.Flush()
}
