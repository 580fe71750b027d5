package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// timesFile is read and written by the one daemon of a state directory.
const timesFile = "schedule.json"

// Times returns until when the times of schedules are dealt with, by the names of what they are
// of; none before RecordTimes.
func Times(dir string) (map[string]time.Time, error) {
	path := filepath.Join(dir, timesFile)
	b, err := os.ReadFile(path)
	times := map[string]time.Time{}
	if err == nil {
		err = json.Unmarshal(b, &times)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return map[string]time.Time{}, nil
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case times == nil: // the file may say null
		times = map[string]time.Time{}
	}
	return times, nil
}

// RecordTimes replaces the times. After a crash of the whole machine there may be none: then the
// newest snapshots tell.
func RecordTimes(dir string, times map[string]time.Time) error {
	path := filepath.Join(dir, timesFile)
	removeTemps(path)
	return writeJSON(path, times, false)
}
