package testenv

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNeed(t *testing.T) {
	skips := filepath.Join(t.TempDir(), "skips")
	t.Setenv("SECRATE_SKIPS", skips)
	t.Setenv("SECRATE_NO_SKIP", "")
	there := Requirement{"air", func() error { return nil }}
	gone := Requirement{"SECRATE_WATER", func() error { return errors.New("dried up") }}
	ran := 0
	t.Run("there", func(t *testing.T) { Need(t, there); ran++ })
	t.Run("gone", func(t *testing.T) { Need(t, there, gone); ran += 10 })
	t.Run("again", func(t *testing.T) { Need(t, gone, Tool("no-such-tool-at-all")); ran += 10 })
	if ran != 1 {
		t.Errorf("the wrong tests ran: %d", ran)
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
