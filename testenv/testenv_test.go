package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// A skipper is a test that is not counted as one when it is skipped.
type skipper struct {
	testing.TB
	name, why string
}

func (s *skipper) Name() string { return s.name }

func (s *skipper) Skipf(format string, v ...any) {
	s.why = fmt.Sprintf(format, v...)
	runtime.Goexit()
}

func TestNeed(t *testing.T) {
	skips := filepath.Join(t.TempDir(), "skips")
	t.Setenv("SECRATE_SKIPS", skips)
	t.Setenv("SECRATE_NO_SKIP", "")
	there := Requirement{"air", func() error { return nil }}
	gone := Requirement{"SECRATE_WATER", func() error { return errors.New("dried up") }}
	var ran, skipped []string
	run := func(name string, reqs ...Requirement) {
		tb := &skipper{TB: t, name: "TestNeed/" + name}
		done := make(chan struct{})
		go func() {
			defer close(done)
			Need(tb, reqs...)
			ran = append(ran, name)
		}()
		<-done
		if strings.HasPrefix(tb.why, "SKIP-MISSING: ") {
			skipped = append(skipped, name)
		}
	}
	run("there", there)
	run("gone", there, gone)
	run("again", gone, Tool("no-such-tool-at-all"))
	if !slices.Equal(ran, []string{"there"}) || !slices.Equal(skipped, []string{"gone", "again"}) {
		t.Errorf("ran %q, skipped %q", ran, skipped)
	}
	b, err := os.ReadFile(skips)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) != 3 || lines[0] != "github.com/secrate/secrate/testenv TestNeed/gone SECRATE_WATER (dried up)" || !strings.Contains(lines[1], "no-such-tool-at-all") {
		t.Errorf("recorded %q", lines)
	}
	if err := Missing(there, Kernel("no-such-fs")); err == nil || !strings.Contains(err.Error(), "no-such-fs") {
		t.Errorf("Missing: %v", err)
	}
}
