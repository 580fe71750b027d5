package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secrate/secrate/testenv"
)

// TestSystemdUnits has systemd read the units as make install installs them.
func TestSystemdUnits(t *testing.T) {
	testenv.Need(t, testenv.Tool("make"), testenv.Tool("systemd-analyze"))
	prefix := filepath.Join(t.TempDir(), "usr")
	install := exec.Command("make", "-C", "../..", "install-systemd", "PREFIX="+prefix)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", install, err, out)
	}
	dir, binary := filepath.Join(prefix, "lib/systemd/system"), filepath.Join(prefix, "bin/secrate")
	if err := os.Mkdir(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, binary); err != nil { // it must be there, and can be run
		t.Fatal(err)
	}

	// verify returns what systemd has to say of our units.
	verify := func(dir string) (faults []string, out string) {
		units, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(units) != 3 {
			t.Fatalf("units %q, %v", units, err)
		}
		b, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "secrate") { // and not of others on this machine
				faults = append(faults, strings.TrimSpace(line))
			}
		}
		if err != nil && faults == nil {
			faults = append(faults, err.Error())
		}
		return faults, string(b)
	}
	if faults, out := verify(dir); faults != nil {
		t.Errorf("%s\nall of it:\n%s", strings.Join(faults, "\n"), out)
	}

	for unit, want := range map[string]string{
		"secrate.service":      "ExecStart=" + binary + " daemon\n",
		"secrate-snap.service": "ExecStart=" + binary + " snap --wait 10m\n",
	} {
		text, err := os.ReadFile(filepath.Join(dir, unit))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\n"+want) {
			t.Errorf("%s has no line %s", unit, want)
		}
		// What is wrong would be said.
		if err := os.WriteFile(filepath.Join(dir, unit), []byte(strings.Replace(string(text), "[Service]\n", "[Service]\nRestrictReal=yes\n", 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		if faults, out := verify(dir); faults == nil {
			t.Errorf("%s with a line that means nothing passes:\n%s", unit, out)
		}
		if err := os.WriteFile(filepath.Join(dir, unit), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
