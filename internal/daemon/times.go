package daemon

import (
	"time"

	"github.com/secrate/secrate/internal/status"
)

// The times of schedules outlive the daemon, so that what was missed while it did not run is
// made up for:
//
//	{"snap home": "2026-11-25T14:00:03.1Z", "verify": "2026-11-22T00:00:00.2Z"}
//
// Without them a source's newest snapshot is what it goes by.

// load reads the times that are kept; none where there are none to be read.
func (d *Daemon) load() map[string]time.Time {
	times, err := status.Times(d.o.StateDir)
	if err != nil {
		d.o.Log.Warn("times of schedules not read: they are taken from the newest snapshots", "error", err)
		times = map[string]time.Time{}
	}
	return times
}

// save keeps the times. If it cannot, they are known as long as the daemon runs.
func (d *Daemon) save() {
	err := status.RecordTimes(d.o.StateDir, d.times)
	if err != nil && d.saved == nil {
		d.o.Log.Warn("times of schedules not kept", "error", err)
	}
	d.saved = err
}
