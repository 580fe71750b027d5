// Package e2e proves the main job of secrate on real things: the command as people
// run it, Btrfs on loop devices, repositories in directories and on an S3 server.
//
//	random_test.go  every snapshot of a tree under random change is restored and
//	                compared, by several ways into the history and out of it
//	crash_test.go   the command is killed after one step more each time
//	lost_test.go    objects are taken away, one at a time
//	device_test.go  a file is restored onto a device, killed and interrupted
//	faults_test.go  everything around the command is wrong in turn
//
// There are tests only. The command is built once a run, with the tag secrate_crash
// (package internal/crashpoint). What the machine lacks skips a test.
package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
)

// buildDir is where the command is built; "" until it is.
var buildDir string

func TestMain(m *testing.M) {
	status := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(status)
}

// command builds the command and returns its path.
var command = sync.OnceValues(func() (string, error) {
	var err error
	if buildDir, err = os.MkdirTemp("", "secrate-e2e-"); err != nil {
		return "", err
	}
	bin := filepath.Join(buildDir, "secrate")
	out, err := exec.Command("go", "build", "-tags", "secrate_crash", "-o", bin, "github.com/secrate/secrate/cmd/secrate").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
})

// needs is what the tests of this package need.
func needs(t testing.TB) {
	t.Helper()
	testenv.Need(t, append(loopfs.Needs(loopfs.Btrfs), testenv.Tool("btrfs"))...)
}

// A machine is where the command runs: its configuration, its state, and the address
// of its repository.
type machine struct {
	t        testing.TB
	dir      string
	repo     string // its address
	identity string // the identity's file
	env      []string
}

// bare returns a machine that has nothing.
func bare(t testing.TB, repo string, env ...string) *machine {
	t.Helper()
	dir := t.TempDir()
	return &machine{t: t, dir: dir, repo: repo, identity: filepath.Join(dir, "identity"), env: env}
}

// writer returns a machine that has been made a writer of the repository at the
// address repo; "" makes one in a directory.
func writer(t testing.TB, repo string, env ...string) *machine {
	t.Helper()
	m := bare(t, repo, env...)
	if m.repo == "" {
		m.repo = filepath.Join(t.TempDir(), "repo")
	}
	m.must("init", "--repo", m.repo, "--classic", "--identity-out", m.identity)
	return m
}

// other returns a bare machine with the same repository and identity.
func (m *machine) other(t testing.TB) *machine {
	o := bare(t, m.repo, m.env...)
	o.identity = m.identity
	return o
}

func (m *machine) state() string { return filepath.Join(m.dir, "state") }

// An outcome is what a run of the command said.
type outcome struct {
	args   []string
	status int // -1 when it was killed
	stdout string
	stderr string
	took   time.Duration
}

func (o outcome) String() string {
	return fmt.Sprintf("secrate %s: exit status %d\n%s%s", strings.Join(o.args, " "), o.status, o.stdout, o.stderr)
}

// cmd is the command, ready to be run.
func (m *machine) cmd(args ...string) *exec.Cmd {
	m.t.Helper()
	bin, err := command()
	if err != nil {
		m.t.Fatal(err)
	}
	c := exec.CommandContext(m.t.Context(), bin, args...)
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); !strings.HasPrefix(name, "SECRATE_") && !strings.HasPrefix(name, "AWS_") {
			c.Env = append(c.Env, kv)
		}
	}
	c.Env = append(c.Env, "HOME="+m.dir, "XDG_CONFIG_HOME=", "XDG_STATE_HOME=", "TMPDIR="+m.dir, "AWS_EC2_METADATA_DISABLED=true",
		"SECRATE_CONFIG="+filepath.Join(m.dir, "config.toml"), "SECRATE_STATE="+m.state())
	c.Env = append(c.Env, m.env...)
	return c
}

// run runs the command, with variables of the environment in front of its arguments.
func (m *machine) run(args ...string) outcome { return m.feed(nil, args...) }

// feed is run with standard input.
func (m *machine) feed(in io.Reader, args ...string) outcome {
	m.t.Helper()
	n := slices.IndexFunc(args, func(s string) bool { return !strings.Contains(s, "=") })
	c := m.cmd(args[n:]...)
	c.Env = append(c.Env, args[:n]...)
	c.Stdin = in
	return finish(m.t, c)
}

// finish runs c.
func finish(t testing.TB, c *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	start := time.Now()
	err := c.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return outcome{c.Args[1:], c.ProcessState.ExitCode(), stdout.String(), stderr.String(), time.Since(start)}
}

// must runs the command, which has to succeed.
func (m *machine) must(args ...string) outcome {
	m.t.Helper()
	o := m.run(args...)
	if o.status != 0 {
		m.t.Fatal(o)
	}
	return o
}

// expect reports an outcome that is not of the status, or says not what it should. It
// must also look like an outcome that is documented.
func (o outcome) expect(t testing.TB, status int, words ...string) {
	t.Helper()
	var faults []string
	if o.status != status {
		faults = append(faults, fmt.Sprintf("exit status is not %d", status))
	}
	for _, w := range words {
		if !strings.Contains(o.stderr+o.stdout, w) {
			faults = append(faults, fmt.Sprintf("it does not say %q", w))
		}
	}
	if status != 0 && !strings.Contains(o.stderr, "secrate: error: ") {
		faults = append(faults, "it does not say what is wrong")
	}
	for _, w := range []string{"panic:", "goroutine ", "internal error"} {
		if strings.Contains(o.stderr, w) {
			faults = append(faults, fmt.Sprintf("it says %q", w))
		}
	}
	if len(faults) > 0 {
		t.Errorf("%s:\n%s", strings.Join(faults, ", "), o)
	}
}

// A snapshot is what --json says of one.
type snapshot struct {
	Source        string `json:"source"`
	Seq           uint64 `json:"seq"`
	Time          string `json:"time"`
	Origin        string `json:"origin"`
	UploadedBytes int64  `json:"uploaded_bytes"`
	Objects       int    `json:"objects"`
	Partial       bool   `json:"partial"`
	Unchanged     bool   `json:"unchanged"`
	Pending       bool   `json:"pending"`
}

// snapshots are the objects in what a command wrote to its standard output.
func (o outcome) snapshots(t testing.TB) []snapshot {
	t.Helper()
	var all []snapshot
	for line := range strings.Lines(o.stdout) {
		if !strings.HasSuffix(line, "\n") && o.status < 0 {
			break // killed while it wrote
		}
		var s snapshot
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v: %s", err, o)
		}
		all = append(all, s)
	}
	return all
}

// committed are those of snapshots that are in the history.
func (o outcome) committed(t testing.TB) []snapshot {
	t.Helper()
	return slices.DeleteFunc(o.snapshots(t), func(s snapshot) bool { return s.Unchanged || s.Pending })
}

// history returns the snapshots of a source. A machine that is no writer reads the
// repository.
func (m *machine) history(source string, args ...string) []snapshot {
	m.t.Helper()
	return m.must(append([]string{"snapshots", source, "--json"}, args...)...).snapshots(m.t)
}

// bareFlags are those that a machine with nothing else needs.
func (m *machine) bareFlags() []string { return []string{"--repo", m.repo, "--identity", m.identity} }

// A target is a Btrfs to restore to.
type target struct {
	dir string
	n   int
}

func newTarget(t testing.TB) *target {
	t.Helper()
	return &target{dir: loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 4 << 30}).Dir}
}

// fresh returns a directory that is not there yet, and takes the one before away.
func (g *target) fresh(t testing.TB) string {
	t.Helper()
	sub := filepath.Join(g.dir, fmt.Sprint(g.n))
	if g.n > 0 {
		btrfs(t, "subvolume", "delete", sub) // whatever flags are on what is in it
	}
	g.n++
	sub = filepath.Join(g.dir, fmt.Sprint(g.n))
	btrfs(t, "subvolume", "create", sub)
	return filepath.Join(sub, "restored")
}

// restored restores snapshot seq of a source and returns what came of it and the
// manifest.
func (m *machine) restored(g *target, source string, seq uint64, args ...string) (outcome, []manifest.Entry) {
	m.t.Helper()
	dir := g.fresh(m.t)
	args = append([]string{"restore", source, "--at", fmt.Sprintf("#%d", seq), "--to", dir, "--identity", m.identity}, args...)
	o := m.run(args...)
	if o.status != 0 && o.status != 1 {
		m.t.Fatal(o)
	}
	return o, scan(m.t, dir)
}

// unset is what nothing can set, or what is the file system's choice.
var unset = manifest.Ignore{Ino: true, Ctime: true, Otime: true, DirSize: true, Nested: true}

// checkRestored restores a snapshot and compares it with what it was.
func (m *machine) checkRestored(g *target, source string, seq uint64, want []manifest.Entry, ig manifest.Ignore, args ...string) {
	m.t.Helper()
	o, got := m.restored(g, source, seq, args...)
	if o.status != 0 {
		m.t.Errorf("%v", o)
	}
	if d := manifest.Diff(want, got, ig); len(d) > 0 {
		m.t.Errorf("%s #%d:\n%s%s", source, seq, manifest.Report(d, 10), o.stderr)
	}
}

func scan(t testing.TB, dir string) []manifest.Entry {
	t.Helper()
	all, err := manifest.Scan(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// btrfs runs btrfs(8).
func btrfs(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("btrfs %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// newSubvolume makes a subvolume at dir.
func newSubvolume(t testing.TB, dir string) string {
	t.Helper()
	btrfs(t, "subvolume", "create", dir)
	return dir
}

// local returns the snapshots that secrate has of a subvolume, by name.
func local(t testing.TB, sub string) []string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(sub, ".secrate"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// sendStream returns what btrfs send writes.
func sendStream(t testing.TB, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	c := exec.CommandContext(t.Context(), "btrfs", append([]string{"send", "-q"}, args...)...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("btrfs send: %v: %s", err, &stderr)
	}
	return out
}

// ingest feeds a stream to a source.
func (m *machine) ingest(stream []byte, source string) outcome {
	m.t.Helper()
	o := m.feed(bytes.NewReader(stream), "ingest", source, "--json")
	if o.status != 0 {
		m.t.Fatal(o)
	}
	return o
}
