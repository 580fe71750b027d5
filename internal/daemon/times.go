package daemon

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The times of schedules outlive the daemon, so that what was missed while it did not run is
// made up for:
//
//	{"snap home": "2026-11-25T14:00:03.1Z", "verify": "2026-11-22T00:00:00.2Z"}
//
// Without the file a source's newest snapshot is what it goes by.

// load reads the times that are kept; none where there are none to be read.
func (d *Daemon) load() map[string]time.Time {
	times := map[string]time.Time{}
	b, err := os.ReadFile(d.o.State)
	if err == nil {
		err = json.Unmarshal(b, &times)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.o.Log.Warn("times of schedules not read: they are taken from the newest snapshots", "file", d.o.State, "error", err)
		times = nil
	}
	if times == nil { // the file may say null, too
		times = map[string]time.Time{}
	}
	return times
}

// save keeps the times. If it cannot, they are known as long as the daemon runs.
func (d *Daemon) save() {
	b, err := json.MarshalIndent(d.times, "", "  ")
	if err == nil {
		err = replace(d.o.State, append(b, '\n'))
	}
	if err != nil && d.saved == nil {
		d.o.Log.Warn("times of schedules not kept", "file", d.o.State, "error", err)
	}
	d.saved = err
}

// replace makes b what is in a file. After a crash there is what was, what is, or, if the
// whole machine crashed, perhaps nothing, which load makes good.
func replace(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
