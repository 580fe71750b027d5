package crashpoint_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The program under test passes three points and says so.
const program = `package main

import "github.com/secrate/secrate/internal/crashpoint"

func main() {
	crashpoint.Here("start")
	crashpoint.HereKey("put before", "packs/3f/3f00")
	println("put")
	crashpoint.HereKey("put after", "packs/3f/3f00")
}
`

func TestSweep(t *testing.T) {
	// The overlay puts the program inside the module, where it may import an
	// internal package, without writing into the tree.
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	json := `{"Replace": {` + strconv.Quote(filepath.Join(here, "sweep", "main.go")) + `: ` + strconv.Quote(source) + `}}`
	if err := os.WriteFile(overlay, []byte(json), 0o600); err != nil {
		t.Fatal(err)
	}
	build := func(tags string) string {
		bin := filepath.Join(dir, "sweep"+tags)
		cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", tags, "-overlay", overlay, "-o", bin, "./sweep")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		return bin
	}

	points := []string{"start", "put before packs", "put after packs"}
	tagged := build("secrate_crash")
	for n := 1; n <= len(points)+1; n++ {
		log := filepath.Join(dir, "log"+strconv.Itoa(n))
		cmd := exec.CommandContext(t.Context(), tagged)
		cmd.Env = append(os.Environ(), "SECRATE_CRASH="+strconv.Itoa(n), "SECRATE_CRASH_COUNT="+log)
		out, err := cmd.CombinedOutput()
		died := errors.As(err, new(*exec.ExitError))
		if want := n <= len(points); died != want {
			t.Errorf("SECRATE_CRASH=%d: died is %v, want %v (%v)", n, died, want, err)
		}
		if want := n > 2; bytes.Contains(out, []byte("put")) != want {
			t.Errorf("SECRATE_CRASH=%d: output is %q", n, out)
		}
		passed, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		var want []byte
		for _, p := range points[:min(n, len(points))] {
			want = append(want, p+"\n"...)
		}
		if diff := cmp.Diff(string(want), string(passed)); diff != "" {
			t.Errorf("SECRATE_CRASH=%d: points passed (-want +got):\n%s", n, diff)
		}
	}

	plain := build("")
	cmd := exec.CommandContext(t.Context(), plain)
	cmd.Env = append(os.Environ(), "SECRATE_CRASH=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a plain build obeys SECRATE_CRASH: %v\n%s", err, out)
	}
}
