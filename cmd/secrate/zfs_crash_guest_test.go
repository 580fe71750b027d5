//go:build linux && zfs

package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/secrate/secrate/testenv/zfspool"
)

var zfsStride = flag.Int("zfs-stride", 7, "TestZFSCrash kills at every nth point")

// TestZFSCrash kills secrate snap of ZFS datasets at each of its crash points in turn: around
// the snapshot, the hold, what is sent and committed, the bookmark, and the release of the base.
// The same command again must complete it; then the history has what the dataset has, one
// point in time more than before, and of the local snapshots the base is left, held and
// marked.
func TestZFSCrash(t *testing.T) {
	for _, c := range []crashCase{
		{name: "dataset", add: []string{"d", "$POOL/d"}},
		{name: "children", add: []string{"d", "$POOL/d", "--recursive"}, children: true},
		{name: "adopted", add: []string{"d", "$POOL/d", "--adopt", "auto*"}, adopt: true},
		{name: "unchanged", add: []string{"d", "$POOL/d", "--keep", "2 last"}, unchanged: true},
	} {
		t.Run(c.name, c.run)
	}
}

type crashCase struct {
	name                       string
	add                        []string
	children, adopt, unchanged bool

	t    *testing.T
	dir  string
	pool *zfspool.Pool
	fs   []*zfspool.Dataset
}

// secrate runs the command with a variable or two, and returns what it wrote; killed says
// whether it was killed.
func (c *crashCase) secrate(env []string, args ...string) (out string, killed bool) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), "secrate", args...)
	cmd.Env = append(os.Environ(), append(env, "SECRATE_CONFIG="+filepath.Join(c.dir, "config.toml"), "SECRATE_STATE="+filepath.Join(c.dir, "state"))...)
	b, err := cmd.CombinedOutput()
	exit := (*exec.ExitError)(nil)
	if errors.As(err, &exit) && exit.ExitCode() == -1 {
		return string(b), true
	}
	if err != nil {
		c.t.Fatalf("secrate %s: %v\n%s", strings.Join(args, " "), err, b)
	}
	return string(b), false
}

func (c crashCase) run(t *testing.T) {
	c.t, c.dir, c.pool = t, t.TempDir(), zfspool.New(t, zfspool.Options{})
	c.fs = append(c.fs, c.pool.Create(t, "d"))
	if c.children {
		c.fs = append(c.fs, c.pool.Create(t, "d/ann"), c.pool.Create(t, "d/bob"))
	}
	c.secrate(nil, "init", "--repo", filepath.Join(c.dir, "repo"), "--identity-out", filepath.Join(c.dir, "identity"), "--classic")
	for i, a := range c.add {
		c.add[i] = strings.ReplaceAll(a, "$POOL", c.pool.Name)
	}
	c.secrate(nil, append([]string{"source", "add"}, c.add...)...)
	c.change(0)
	c.secrate(nil, "snap")
	log := filepath.Join(c.dir, "points")
	var all []string
	// Each run takes its own.
	for n := 1 + int(time.Now().UnixNano())%max(1, *zfsStride); ; n += max(1, *zfsStride) {
		before := c.committed()
		if !c.unchanged {
			c.change(n)
		}
		os.Remove(log)
		out, killed := c.secrate([]string{fmt.Sprint("SECRATE_CRASH=", n), "SECRATE_CRASH_COUNT=" + log}, "snap", "--quiet")
		if killed {
			passed, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(passed)), "\n")
			all = append(all, lines[len(lines)-1])
			if more := c.committed() - before; more < 0 || more > len(c.fs) {
				t.Errorf("killed at %d: %d snapshots more", n, more)
			}
			out, _ = c.secrate(nil, "snap")
		}
		c.check(fmt.Sprintf("killed at %d (%v): %s", n, killed, out), before)
		if !killed {
			break
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("killed at %d points: %s", len(all), strings.Join(all, ", "))
	if len(all) < 8/max(1, *zfsStride) {
		t.Errorf("killed at %d points only", len(all))
	}
	c.secrate(nil, "verify", "--read-data", "--identity", filepath.Join(c.dir, "identity"))
}

// change changes the datasets for the nth time.
func (c *crashCase) change(n int) {
	c.t.Helper()
	for _, fs := range c.fs {
		for _, f := range []string{"a", fmt.Sprint("b", n%3)} {
			if err := os.WriteFile(filepath.Join(fs.Dir, f), []byte(fmt.Sprintf("%s %s %d\n", fs.Name, f, n)), 0o600); err != nil {
				c.t.Fatal(err)
			}
		}
		if c.adopt {
			fs.Snapshot(c.t, fmt.Sprint("auto", n))
		}
	}
}

// committed counts the snapshots of all histories.
func (c *crashCase) committed() int {
	out, _ := c.secrate(nil, "snapshots")
	return strings.Count(out, "\n")
}

// check compares the newest snapshots with the datasets.
func (c *crashCase) check(what string, before int) {
	c.t.Helper()
	// A run that was killed may have made a snapshot that the next one commits, and then
	// there is nothing new for that one's own.
	want := before
	if !c.unchanged {
		want += len(c.fs)
	}
	if got := c.committed(); got != want {
		c.t.Errorf("%s: %d snapshots, want %d", what, got, want)
	}
	for _, fs := range c.fs {
		name := strings.TrimPrefix(fs.Name, c.pool.Name+"/")
		files, err := filepath.Glob(filepath.Join(fs.Dir, "[ab][0-9]"))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, f := range append(files, filepath.Join(fs.Dir, "a")) {
			has, err := os.ReadFile(f)
			if err != nil {
				c.t.Fatal(err)
			}
			out, _ := c.secrate(nil, "cat", name+":"+filepath.Base(f), "--at", "latest", "--identity", filepath.Join(c.dir, "identity"))
			if out != string(has) {
				c.t.Errorf("%s: %s has %q, want %q", what, f, out, has)
			}
		}
		local := strings.Fields(zfspool.Run(c.t, "zfs", "list", "-Hp", "-d", "1", "-t", "snapshot", "-s", "createtxg", "-o", "userrefs", fs.Name))
		held := len(local) - 1 - slices.Index(local, "1")
		wantLocal := 1
		if c.unchanged {
			wantLocal = 2 // by the rule
		}
		if !c.adopt && len(local) > wantLocal || held != 0 || slices.Index(local, "1") != len(local)-1 {
			c.t.Errorf("%s: %s has snapshots with holds %q", what, fs.Name, local)
		}
		guid := func(kind string) string {
			all := strings.Fields(zfspool.Run(c.t, "zfs", "list", "-Hp", "-d", "1", "-t", kind, "-s", "createtxg", "-o", "guid", fs.Name))
			if len(all) == 0 {
				return ""
			}
			return all[len(all)-1]
		}
		if s, b := guid("snapshot"), guid("bookmark"); s != b {
			c.t.Errorf("%s: the newest snapshot of %s is %s, the newest bookmark of %s", what, fs.Name, s, b)
		}
	}
	if left, err := filepath.Glob(filepath.Join(c.dir, "state", "journal", "*")); err != nil || len(left) > 0 {
		c.t.Errorf("%s: the journal still has %q, %v", what, left, err)
	}
}
