package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/s3test"
	"github.com/secrate/secrate/testenv/treegen"
)

// A service is a daemon that runs.
type service struct {
	m    *machine
	cmd  *exec.Cmd
	out  *lines
	done chan struct{} // closed when it has ended
}

// lines are what a process writes, while it does.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// daemon starts a daemon, and returns when it answers.
func (m *machine) daemon() *service {
	m.t.Helper()
	return m.serve(m.cmd("daemon"))
}

// inNamespace starts one where so many directories can be watched.
func (m *machine) inNamespace(watches int) *service {
	m.t.Helper()
	cmd := m.cmd("daemon")
	cmd.Args = append([]string{"sh", "-c", fmt.Sprintf("echo %d > /proc/sys/user/max_inotify_watches && exec \"$@\"", watches), "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	root := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: root, GidMappings: root}
	try := exec.Command("sh", "-c", "test -w /proc/sys/user/max_inotify_watches")
	if try.SysProcAttr = attr; try.Run() != nil {
		m.t.Skip("SKIP-MISSING: limits in a user namespace")
	}
	cmd.SysProcAttr = attr
	return m.serve(cmd)
}

func (m *machine) serve(cmd *exec.Cmd) *service {
	m.t.Helper()
	s := &service{m: m, cmd: cmd, out: &lines{}, done: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		s.cmd.Wait()
	}()
	m.t.Cleanup(func() { s.signal(syscall.SIGKILL) })
	wait(m.t, s, "it answers", func() bool { return m.status().Daemon != nil })
	return s
}

// signal sends a signal that ends it, and waits for that.
func (s *service) signal(sig syscall.Signal) {
	s.cmd.Process.Signal(sig)
	<-s.done
}

// stop ends it in order.
func (s *service) stop() {
	s.m.t.Helper()
	began := time.Now()
	s.signal(syscall.SIGTERM)
	if took := time.Since(began); took > 10*time.Second {
		s.m.t.Errorf("it took %v to stop", took)
	}
	if status := s.cmd.ProcessState.ExitCode(); status != 0 {
		s.m.t.Errorf("exit status %d:\n%s", status, s.out)
	}
	s.sane()
}

// sane reports what no daemon should say.
func (s *service) sane() {
	s.m.t.Helper()
	for _, w := range []string{"panic:", "goroutine ", "internal error", "DATA RACE"} {
		if strings.Contains(s.out.String(), w) {
			s.m.t.Errorf("the daemon says %q:\n%s", w, s.out)
		}
	}
}

// What secrate status --json says.
type (
	stateOf struct {
		Daemon *struct {
			Problems []struct {
				Error, Hint string
			}
		}
		Sources map[string]*sourceState
	}
	sourceState struct {
		Source  string
		Last    *snapshot
		Pending *int
		Error   *struct {
			Error, Hint string
			Current     bool
		}
		Hooks []struct {
			Hook, Error, Output string
		}
		Daemon *struct {
			Next    string
			Waiting string
			Take    taskState
			Bring   taskState
			Pending int
			Unread  int
			Runs    int
			Watch   *struct {
				Watching    bool
				Reason      string
				Directories int
				Unwatched   int
				Remedy      string
				Waiting     int
				Oldest      string
				All         string
			}
		}
	}
	taskState struct {
		Running bool
		Failing *struct {
			Tries       int
			Error, Hint string
		}
	}
)

func (m *machine) status() stateOf {
	m.t.Helper()
	o := m.must("status", "--json")
	st := stateOf{Sources: map[string]*sourceState{}}
	for line := range strings.Lines(o.stdout) {
		var x struct {
			stateOf
			sourceState
			Daemon json.RawMessage
		}
		err := json.Unmarshal([]byte(line), &x)
		if err == nil && x.Source != "" {
			s := &sourceState{}
			err = json.Unmarshal([]byte(line), s)
			st.Sources[s.Source] = s
		} else if err == nil && x.Daemon != nil {
			err = json.Unmarshal(x.Daemon, &st.Daemon)
		}
		if err != nil {
			m.t.Fatalf("%v: %s", err, line)
		}
	}
	return st
}

// patience is how long anything may take on a machine that does much else.
const patience = 2 * time.Minute

// wait waits until something is so.
func wait(t testing.TB, s *service, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		if is() {
			return
		}
		select {
		case <-s.done:
			t.Fatalf("the daemon ended before %s:\n%s", what, s.out)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			status := s.m.run("status")
			t.Fatalf("not within %v: %s\n%s%s", patience, what, status.stdout, s.out)
		}
	}
}

// quiet waits until all that has changed in a source is stored.
func (s *service) quiet(source string) {
	s.m.t.Helper()
	time.Sleep(100 * time.Millisecond) // what has just happened may not have been told yet
	wait(s.m.t, s, source+" is stored", func() bool {
		x := s.m.status().Sources[source]
		if x == nil || x.Daemon == nil {
			return false
		}
		d := x.Daemon
		w := d.Watch
		return d.Waiting == "" && !d.Bring.Running && !d.Take.Running && d.Bring.Failing == nil && (w == nil || w.Watching && w.Waiting == 0 && w.Oldest == "")
	})
}

// configure changes the text of the configuration.
func (m *machine) configure(old, text string) {
	m.t.Helper()
	path := filepath.Join(m.dir, "config.toml")
	b, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		m.t.Fatalf("%q is not in\n%s", old, b)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), old, text, 1)), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// watched adds a source that is watched.
func (m *machine) watched(name, dir string) {
	m.t.Helper()
	m.must("source", "add", name, dir, "--mode", "files")
	m.configure(fmt.Sprintf("path = %q\n", dir), fmt.Sprintf("path = %q\nwatch = true\nsettle = \"200ms\"\nmax_delay = \"2s\"\n", dir))
}

// stateOfFile is what a file has been for a while.
type stateOfFile struct {
	ino   uint64
	birth filetree.Time
	sum   [32]byte
	size  int64
}

// remember adds what the files of a tree are.
func remember(states map[stateOfFile]bool, all []manifest.Entry) {
	for _, e := range all {
		if e.Kind == filetree.File && !e.Sparse {
			states[stateOfFile{e.Ino, e.Otime, e.SHA256, e.Size}] = true
		}
	}
}

// TestDaemonWatches changes trees at random while the daemon watches them. After a quiet moment
// the history has what the tree has, and whatever file is in any snapshot once was so.
func TestDaemonWatches(t *testing.T) {
	needs(t)
	to := newTarget(t)
	for _, kind := range []loopfs.Kind{loopfs.Ext4, loopfs.XFS} {
		t.Run(string(kind), func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			base := loopfs.New(t, kind, loopfs.Options{Size: 1 << 30}).Dir
			dir, outside := filepath.Join(base, "tree"), filepath.Join(base, "outside")
			if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(outside, 0o755)); err != nil {
				t.Fatal(err)
			}
			m := writer(t, "")
			m.watched("w", dir)
			s := m.daemon()
			g, err := treegen.New(dir, treegen.Options{Seed: seed, Outside: outside, Entries: 80})
			if err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(seed, 2))
			states := map[stateOfFile]bool{}
			for round := range 4 {
				for range 50 {
					if err := g.Step(1); err != nil {
						t.Fatal(err)
					}
					remember(states, scan(t, dir))
					time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
				}
				s.quiet("w")
				head := m.history("w")
				// That flags have changed is told by nothing.
				m.checkRestored(to, "w", head[len(head)-1].Seq, scan(t, dir), unlike)
				if t.Failed() {
					t.Fatalf("in round %d, operations:\n%s\n%s", round, g.Log(), s.out)
				}
			}
			s.stop()
			m.must("snap", "w")
			all := m.history("w")
			m.checkRestored(to, "w", all[len(all)-1].Seq, scan(t, dir), unlike)
			t.Logf("%d snapshots", len(all))
			if len(all) < 12 {
				t.Errorf("%d snapshots only", len(all))
			}
			for _, h := range all {
				_, got := m.restored(to, "w", h.Seq)
				checkStates(t, m, h.Seq, got, states)
			}
			m.must("verify", "--read-data", "--identity", m.identity)
		})
	}
}

// unlike is what a restore onto another kind of file system may not have: how directories count
// links, and where something was allocated ahead. Flags are not all the same.
var unlike = func() manifest.Ignore {
	ig := unset
	ig.DirNlink, ig.Extents, ig.FSFlags = true, true, true
	return ig
}()

// checkStates reports files of a snapshot that never were what they are in it.
func checkStates(t *testing.T, m *machine, seq uint64, got []manifest.Entry, states map[stateOfFile]bool) {
	t.Helper()
	type content struct {
		sum  [32]byte
		size int64
	}
	were := map[content]bool{}
	for s := range states {
		were[content{s.sum, s.size}] = true
	}
	for _, e := range got {
		if e.Kind == filetree.File && !e.Sparse && !were[content{e.SHA256, e.Size}] {
			t.Errorf("#%d: %s never was what it is there, %d bytes", seq, manifest.Show(e.Path), e.Size)
		}
	}
}

// TestDaemonKilled kills the daemon again and again while files come and change. Nothing is
// lost, and nothing is uploaded twice.
func TestDaemonKilled(t *testing.T) {
	needs(t)
	to := newTarget(t)
	base := loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 1 << 30}).Dir
	dir := filepath.Join(base, "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m := writer(t, "")
	m.watched("w", dir)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	var fresh int64 // bytes that nobody can compress, nor has seen before
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		rng := rand.New(rand.NewPCG(seed, 4))
		done <- func() error {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return nil
				case <-time.After(time.Duration(20+rng.IntN(60)) * time.Millisecond):
				}
				b := make([]byte, 1+rng.IntN(600_000))
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				fresh += int64(len(b))
				sub := filepath.Join(dir, fmt.Sprint("d", rng.IntN(5)))
				if err := os.MkdirAll(sub, 0o755); err != nil {
					return err
				}
				// Whole at once, as an editor does: what is read twice is the same.
				tmp := filepath.Join(base, "tmp")
				err := os.WriteFile(tmp, b, 0o644)
				if err == nil {
					err = os.Rename(tmp, filepath.Join(sub, fmt.Sprint("f", rng.IntN(60))))
				}
				if err == nil && n%9 == 8 {
					from, err2 := filepath.Join(dir, fmt.Sprint("d", rng.IntN(5))), filepath.Join(dir, fmt.Sprint("moved", n))
					if err2 := os.Rename(from, err2); err2 != nil && !errors.Is(err2, os.ErrNotExist) {
						err = err2
					}
				}
				if err != nil {
					return err
				}
			}
		}()
	}()
	for range 15 {
		s := m.daemon()
		time.Sleep(time.Duration(rng.IntN(1200)) * time.Millisecond)
		s.signal(syscall.SIGKILL)
		s.sane()
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s := m.daemon()
	s.quiet("w")
	s.stop()
	all := m.history("w")
	m.checkRestored(to, "w", all[len(all)-1].Seq, scan(t, dir), unlike)
	m.must("verify", "--read-data", "--identity", m.identity)
	var stored int64
	err := filepath.WalkDir(filepath.Join(m.repo, "packs"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			info, err2 := d.Info()
			if err = err2; err == nil {
				stored += info.Size()
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d snapshots, %d bytes were written, packs have %d", len(all), fresh, stored)
	if stored > fresh+fresh/50+64<<10 {
		t.Errorf("%d bytes of data were written, and packs have %d", fresh, stored)
	}
	if o := m.must("snap", "w"); !strings.Contains(o.stdout, "nothing changed") {
		t.Errorf("a scan finds more: %v", o)
	}
}

// TestDaemonDay is a day in a minute: three sources under load, and a server that comes and
// goes. In the end each point in time is what it should be.
func TestDaemonDay(t *testing.T) {
	needs(t)
	to := newTarget(t)
	server := s3test.Start(t, s3test.VersityGW)
	proxy := s3test.NewProxy(t, server.Endpoint, nil)
	m := writer(t, server.URLVia(proxy.URL, "day"), server.Env()...)
	btr := loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 1 << 30}).Dir
	ext := loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 1 << 30}).Dir
	vol, live, scanned := filepath.Join(btr, "vol"), filepath.Join(ext, "live"), filepath.Join(ext, "scanned")
	newSubvolume(t, vol)
	kept := filepath.Join(btr, "kept")
	if err := errors.Join(os.Mkdir(kept, 0o755), os.Mkdir(live, 0o755), os.Mkdir(scanned, 0o755)); err != nil {
		t.Fatal(err)
	}
	m.must("source", "add", "vol", vol)
	m.must("source", "add", "scanned", scanned, "--mode", "files")
	m.watched("live", live)
	m.configure(fmt.Sprintf("path = %q\n", vol), fmt.Sprintf("path = %q\nschedule = \"@every 2s\"\n", vol))
	m.configure(fmt.Sprintf("path = %q\n", scanned), fmt.Sprintf("path = %q\nschedule = \"@every 3s\"\n", scanned))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	gens := map[string]*treegen.Gen{}
	for i, dir := range []string{vol, live, scanned} {
		g, err := treegen.New(dir, treegen.Options{Seed: seed + uint64(i), Entries: 60})
		if err != nil {
			t.Fatal(err)
		}
		gens[dir] = g
	}
	// Each snapshot of the subvolume is kept aside before secrate takes it away.
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			for _, name := range local(t, vol) {
				if to := filepath.Join(kept, name); !exists(to) {
					exec.Command("btrfs", "subvolume", "snapshot", "-r", filepath.Join(vol, ".secrate", name), to).Run()
				}
			}
		}
	})
	states := map[string]map[stateOfFile]bool{}
	var mu sync.Mutex // guards states
	load := make(chan struct{})
	for dir, g := range gens {
		states[dir] = map[stateOfFile]bool{}
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(len(dir))))
			for {
				select {
				case <-load:
					return
				case <-time.After(time.Duration(rng.IntN(80)) * time.Millisecond):
				}
				if err := g.Step(1); err != nil {
					t.Error(err)
					return
				}
				if dir == vol {
					continue
				}
				now := scan(t, dir)
				mu.Lock()
				remember(states[dir], now)
				mu.Unlock()
			}
		})
	}
	s := m.daemon()
	for _, fault := range []s3test.Fault{nil, s3test.Answer(503, "SlowDown"), nil, s3test.Reset, nil, s3test.Answer(403, "AccessDenied"), nil} {
		if fault == nil {
			proxy.SetSchedule(nil)
		} else {
			proxy.SetSchedule(func(int, *http.Request) s3test.Fault { return fault })
		}
		time.Sleep(5 * time.Second)
	}
	close(load)
	for _, name := range []string{"vol", "live", "scanned"} {
		wait(t, s, name+" is well", func() bool {
			d := m.status().Sources[name].Daemon
			return d.Bring.Failing == nil && d.Take.Failing == nil && d.Pending == 0
		})
		s.quiet(name)
	}
	time.Sleep(4 * time.Second) // one more time of each schedule
	for _, name := range []string{"vol", "scanned"} {
		s.quiet(name)
	}
	close(stop)
	all.Wait()
	s.stop()
	for name, dir := range map[string]string{"live": live, "scanned": scanned} {
		history := m.history(name)
		m.checkRestored(to, name, history[len(history)-1].Seq, scan(t, dir), unlike)
		for _, h := range history {
			_, got := m.restored(to, name, h.Seq)
			checkStates(t, m, h.Seq, got, states[dir])
		}
		t.Logf("%s: %d snapshots", name, len(history))
	}
	history := m.history("vol")
	checked := 0
	for _, h := range history {
		// A snapshot that was there for less than a moment nobody has kept.
		if aside := filepath.Join(kept, h.Origin); exists(aside) {
			m.checkRestored(to, "vol", h.Seq, without(scan(t, aside), ".secrate"), unset)
			checked++
		}
	}
	t.Logf("vol: %d snapshots, %d compared", len(history), checked)
	if checked < 5 || checked < len(history)/2 {
		t.Errorf("%d snapshots of %d could be compared", checked, len(history))
	}
	m.must("verify", "--read-data", "--identity", m.identity)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// without leaves a directory out, with what is in it.
func without(all []manifest.Entry, dir string) []manifest.Entry {
	return slices.DeleteFunc(all, func(e manifest.Entry) bool { return e.Path == dir || strings.HasPrefix(e.Path, dir+"/") })
}
