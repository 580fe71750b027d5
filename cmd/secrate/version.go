package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/s3history"
)

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of secrate and of its format",
		Long: `Show the version of secrate, the revision it was built from, the version of the format
that it writes and reads, and the version of Go.

Exit statuses:

    0  done`,
		Example: `  secrate version
  secrate version --json`,
		Args: arguments(0, 0, ""),
	}
	cmd.Flags().BoolVar(&a.json, "json", false, "write one object")
	cmd.RunE = func(*cobra.Command, []string) error {
		v := versionOf(debug.ReadBuildInfo())
		if a.json {
			return writeJSON(a.stdout, v)
		}
		_, err := fmt.Fprintln(a.stdout, v)
		return err
	}
	return cmd
}

// A version says what this program is.
type version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"` // built from more than the revision
	Format   int    `json:"format"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func versionOf(info *debug.BuildInfo, ok bool) version {
	v := version{Version: "unknown", Format: s3history.FormatVersion, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func (v version) String() string {
	text := "secrate " + v.Version
	if v.Revision != "" {
		text += " (" + v.Revision[:min(12, len(v.Revision))]
		if v.Modified {
			text += ", modified"
		}
		text += ")"
	}
	return fmt.Sprintf("%s, format %d, %s, %s", text, v.Format, v.Go, v.Platform)
}
