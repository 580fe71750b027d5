package main

import (
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newMan returns the command that the Makefile runs.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write man pages",
		Long:   `Write a man page for every command, from its help, into DIR.`,
		Hidden: true,
		Args:   arguments(1, 1, "a directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			date := buildTime()
			return doc.GenManTree(cmd.Root(), &doc.GenManHeader{Title: "SECRATE", Section: "1", Source: "secrate", Manual: "secrate", Date: &date}, args[0])
		},
	}
}

// buildTime is the time of the revision that was built, so that the same revision
// gives the same pages.
func buildTime() time.Time {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil && s.Key == "vcs.time" {
				return t
			}
		}
	}
	return time.Unix(0, 0).UTC()
}
