package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/hook"
	"github.com/secrate/secrate/internal/status"
)

// hooked calls do, which takes a snapshot, between the commands that a source has for before
// and after it. If the first fails nothing is done; the second is run whatever came of it,
// since it may have to let go of what the first one held. refuse is called with the error for
// which do was not.
//
// Changes that were watched are brought without them: a command that writes into the directory
// would never come to an end.
func (a *app) hooked(ctx context.Context, s *site, src *config.Source, do func() error, refuse func(error)) {
	err := a.hook(ctx, s, src, "before", src.Before, nil)
	if err == nil {
		err = do()
	} else {
		refuse(hinted(fmt.Errorf("no snapshot was taken, the command before it failed: %w", err),
			"it is \"before\" of source %s in the configuration", src.Name))
	}
	// What was begun has to be ended, also when we are to stop.
	a.releasing.Add(1)
	defer a.releasing.Add(-1)
	if err := a.hook(context.WithoutCancel(ctx), s, src, "after", src.After, err); err != nil {
		a.fail(ctx, hinted(fmt.Errorf("%s: the command after the snapshot failed: %w", src.Name, err),
			"the snapshot is not touched by it; it is \"after\" of source %s in the configuration", src.Name))
	}
}

// hook runs one of a source's commands, if it has it, and keeps what came of it for secrate
// status.
func (a *app) hook(ctx context.Context, s *site, src *config.Source, when, command string, result error) error {
	if command == "" {
		return nil
	}
	what := src.Path
	if what == "" {
		what = src.Dataset
	}
	env := []string{"SECRATE_HOOK=" + when, "SECRATE_SOURCE=" + src.Name, "SECRATE_PATH=" + what}
	if when == "after" {
		env = append(env, "SECRATE_RESULT=done")
		if result != nil {
			env[len(env)-1] = "SECRATE_RESULT=failed"
			env = append(env, "SECRATE_ERROR="+result.Error())
		}
	}
	began := time.Now().Round(0)
	res, err := hook.Run(ctx, hook.Hook{Command: command, Timeout: src.HookTime(), Env: env})
	h := status.Hook{Time: began, Took: res.Took, Output: strings.TrimSpace(res.Output)}
	if err != nil {
		h.Error = err.Error()
	}
	if rerr := status.RecordHook(s.stateDir, src.Name, when, h); rerr != nil {
		a.log.Warn("result not recorded", "source", src.Name, "error", rerr)
	}
	return err
}
