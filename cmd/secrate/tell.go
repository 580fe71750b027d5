package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/secrate/secrate/internal/daemon"
	"github.com/secrate/secrate/internal/hook"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/when"
)

// tellTimeout bounds what a command on_failure may take.
const tellTimeout = time.Minute

// Tell implements daemon.Worker: monitors hear of every run by a ping, a person of what begins
// to fail, once a day while it does, and of its end.
//
// Of changes that were watched monitors hear nothing, as they come and go all the time, but for
// failures and their end.
func (r *running) Tell(ctx context.Context, e daemon.Event) error {
	conf := r.current().conf
	var errs []error
	if !e.Changes || e.New {
		own := ""
		if src, err := conf.Source(e.Source); err == nil {
			own = src.Ping
		}
		state, text := hook.Start, ""
		switch e.Kind {
		case daemon.Succeeded:
			state, text = hook.Success, tellOutcome(&e)
			if e.Outcome.Unread > 0 {
				state = hook.Failure
			}
		case daemon.Failed:
			state, text = hook.Failure, e.Err.Error()
		}
		if own != "" {
			errs = append(errs, hook.Ping(ctx, own, state, text))
		}
		// The monitor of all hears of a start only as of one run, and there are several sources.
		if conf.Daemon.Ping != "" && state != hook.Start {
			if state == hook.Success && !e.AllWell {
				state, text = hook.Failure, "something else fails; "+text
			}
			errs = append(errs, hook.Ping(ctx, conf.Daemon.Ping, state, e.Source+": "+text))
		}
	}
	if e.New {
		errs = append(errs, r.tellPerson(ctx, &e))
	}
	return errors.Join(errs...)
}

func tellOutcome(e *daemon.Event) string {
	o := &e.Outcome
	text := "nothing changed"
	if o.Snapshots > 0 {
		text = fmt.Sprintf("#%d, %s changed, %s uploaded", o.Seq, count(o.Files, "file"), progress.Size(o.Uploaded))
	}
	if o.Unread > 0 {
		text += fmt.Sprintf(", %s could not be read", count(o.Unread, "file"))
	}
	return text
}

// tellPerson says that something fails, or does so no longer.
func (r *running) tellPerson(ctx context.Context, e *daemon.Event) error {
	d := &r.current().conf.Daemon
	what := struct {
		Host   string `json:"host"`
		Source string `json:"source"` // or verify
		Event  string `json:"event"`  // failing or recovered
		Since  string `json:"since"`  // when it began to fail
		Error  string `json:"error,omitempty"`
		Hint   string `json:"hint,omitempty"`
		Time   string `json:"time"`
	}{Host: hostname(), Source: e.Source, Event: "recovered", Since: when.FormatTime(e.Since), Time: when.FormatTime(time.Now())}
	if e.Kind == daemon.Failed {
		what.Event, what.Error, what.Hint = "failing", e.Err.Error(), hintFor(e.Err)
	}
	var errs []error
	if d.Webhook != "" {
		errs = append(errs, hook.Webhook(ctx, d.Webhook, what))
	}
	if d.OnFailure != "" && e.Kind == daemon.Failed {
		_, err := hook.Run(ctx, hook.Hook{Command: d.OnFailure, Timeout: tellTimeout, Env: []string{
			"SECRATE_HOOK=on_failure", "SECRATE_SOURCE=" + e.Source, "SECRATE_ERROR=" + what.Error, "SECRATE_HINT=" + what.Hint, "SECRATE_SINCE=" + what.Since}})
		if err != nil {
			err = fmt.Errorf("on_failure: %w", err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
