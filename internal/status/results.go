package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A Result is what came of a source the last times.
type Result struct {
	Success *Success        `json:"success,omitempty"` // nil: never yet
	Failure *Failure        `json:"failure,omitempty"`
	Hooks   map[string]Hook `json:"hooks,omitempty"` // the last ones, by "before" and "after"
}

// A Success is a run that did all it should.
type Success struct {
	Time     time.Time `json:"time"`     // when it ended
	Seq      uint64    `json:"seq"`      // of the newest snapshot in the history
	Snapshot string    `json:"snapshot"` // its name in the file system
	Uploaded int64     `json:"uploaded"` // bytes, in this run
}

// A Failure is a run that did not.
type Failure struct {
	Time  time.Time `json:"time"`
	Error string    `json:"error"`
	Hint  string    `json:"hint,omitempty"` // what can be done
}

// A Hook is what came of a command that is run before or after a snapshot.
type Hook struct {
	Time   time.Time     `json:"time"` // when it was begun
	Took   time.Duration `json:"took"`
	Error  string        `json:"error,omitempty"`
	Output string        `json:"output,omitempty"` // the end of it
}

// Failing reports whether the last run failed.
func (r Result) Failing() bool {
	return r.Failure != nil && (r.Success == nil || r.Failure.Time.After(r.Success.Time))
}

const (
	resultsFile = "results.json"
	resultsLock = "results.lock"
)

// Results returns the results by the names of the sources, which may be none.
func Results(dir string) (map[string]Result, error) {
	path := filepath.Join(dir, resultsFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]Result{}, nil
	}
	if err != nil {
		return nil, err
	}
	results := map[string]Result{}
	if err := json.Unmarshal(b, &results); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if results == nil { // it says null
		results = map[string]Result{}
	}
	return results, nil
}

// RecordSuccess records that a run of the source succeeded; the failure before it
// stays on record. A zero s.Time is now.
func RecordSuccess(dir, source string, s Success) error {
	if s.Time.IsZero() {
		s.Time = time.Now().Round(0)
	}
	return update(dir, func(m map[string]Result) {
		r := m[source]
		r.Success = &s
		m[source] = r
	})
}

// RecordFailure records that a run of the source failed now; the success before
// it stays on record.
func RecordFailure(dir, source string, err error, hint string) error {
	f := &Failure{Time: time.Now().Round(0), Error: err.Error(), Hint: hint}
	return update(dir, func(m map[string]Result) {
		r := m[source]
		r.Failure = f
		m[source] = r
	})
}

// RecordHook records what came of a source's command "before" or "after" a snapshot.
func RecordHook(dir, source, when string, h Hook) error {
	return update(dir, func(m map[string]Result) {
		r := m[source]
		r.Hooks = maps.Clone(r.Hooks)
		if r.Hooks == nil {
			r.Hooks = map[string]Hook{}
		}
		r.Hooks[when] = h
		m[source] = r
	})
}

// Forget removes what is recorded of a source that is no more, and of its children, source/….
func Forget(dir, source string) error {
	return update(dir, func(m map[string]Result) {
		maps.DeleteFunc(m, func(name string, _ Result) bool {
			return name == source || strings.HasPrefix(name, source+"/")
		})
	})
}

func update(dir string, change func(map[string]Result)) error {
	lock, err := lockFile(filepath.Join(dir, resultsLock), 10*time.Second)
	if err != nil {
		return err
	}
	defer lock.Close()
	path := filepath.Join(dir, resultsFile)
	removeTemps(path)
	results, err := Results(dir)
	if err != nil {
		// It says nothing that the next runs will not say again.
		results = map[string]Result{}
	}
	change(results)
	return writeJSON(path, results, true)
}
