package schedule

import (
	"context"
	"time"
)

// step is how long Wait sleeps at most: so much later than at it returns, at worst, after
// a machine was asleep.
const step = 30 * time.Second

// Wait returns nil when now says that at has come, or that the clock was set back since Wait
// began: whoever waits then asks [Due] again. It returns the error of ctx when that ends
// before.
//
// A timer alone would not do. It counts the time that a machine is awake, and knows nothing
// of a clock that is set.
func Wait(ctx context.Context, at time.Time, now func() time.Time) error {
	last := now().Round(0)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		left := at.Round(0).Sub(last)
		if left <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(left, step)):
		}
		t := now().Round(0)
		if t.Before(last) {
			return nil
		}
		last = t
	}
}
