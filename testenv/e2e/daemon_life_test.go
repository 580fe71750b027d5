package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/s3test"
)

func mustWrite(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// has waits until the newest snapshot of a source has a file with this text.
func (s *service) has(source, path, text string) {
	s.m.t.Helper()
	wait(s.m.t, s, source+" has "+path, func() bool {
		o := s.m.run("cat", source+":"+path, "--identity", s.m.identity)
		return o.status == 0 && o.stdout == text
	})
}

// failing waits until a source fails in these words, and returns what can be done about it.
func (s *service) failing(source string, words ...string) (hint string) {
	s.m.t.Helper()
	wait(s.m.t, s, fmt.Sprintf("%s fails: %s", source, words), func() bool {
		x := s.m.status().Sources[source]
		if x == nil || x.Daemon == nil {
			return false
		}
		for _, j := range []taskState{x.Daemon.Take, x.Daemon.Bring} {
			if f := j.Failing; f != nil {
				all := true
				for _, w := range words {
					all = all && strings.Contains(f.Error, w)
				}
				if hint = f.Hint; all {
					return true
				}
			}
		}
		return false
	})
	return hint
}

// well waits until a source does not fail any more.
func (s *service) well(source string) {
	s.m.t.Helper()
	wait(s.m.t, s, source+" is well", func() bool {
		x := s.m.status().Sources[source]
		return x != nil && x.Daemon != nil && x.Daemon.Take.Failing == nil && x.Daemon.Bring.Failing == nil
	})
}

// TestDaemonLife is what people do with a daemon.
func TestDaemonLife(t *testing.T) {
	m := writer(t, "")
	a, b := filepath.Join(m.dir, "a"), filepath.Join(m.dir, "b")
	mustWrite(t, filepath.Join(a, "x"), "one")
	mustWrite(t, filepath.Join(b, "y"), "two")
	m.watched("a", a)
	s := m.daemon()
	s.has("a", "x", "one")
	m.run("daemon").expect(t, 3, "secrate daemon (process", "hint: there is one daemon for each state directory")
	m.must("snap", "a")
	o := m.must("status")
	for _, w := range []string{"daemon: running since", "a: #1 of", "next: ", "by @hourly", "watched: 1 directory"} {
		if !strings.Contains(o.stdout, w) {
			t.Errorf("status does not say %q:\n%s", w, o.stdout)
		}
	}

	// The configuration is read again.
	m.watched("b", b)
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.has("b", "y", "two")
	path := filepath.Join(m.dir, "config.toml")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(good, "\n[nonsense]\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	s.cmd.Process.Signal(syscall.SIGHUP)
	wait(t, s, "the fault is told", func() bool {
		words := s.out.String() // secrate status cannot read the configuration either
		return strings.Contains(words, "the configuration as it was stays in force") && strings.Contains(words, "nonsense: unknown key")
	})
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if st := m.status(); len(st.Daemon.Problems) != 1 || !strings.Contains(st.Daemon.Problems[0].Error, "nonsense") {
		t.Errorf("problems are %+v", st.Daemon.Problems)
	}
	mustWrite(t, filepath.Join(b, "y"), "three") // and goes on by the old one
	s.has("b", "y", "three")
	m.must("source", "remove", "b")
	s.cmd.Process.Signal(syscall.SIGHUP)
	wait(t, s, "all is well again", func() bool {
		st := m.status()
		return len(st.Daemon.Problems) == 0 && st.Sources["b"] == nil
	})

	// Killed, it leaves nothing that is in the way; stopped, nothing at all.
	s.signal(syscall.SIGKILL)
	if st := m.status(); st.Daemon != nil {
		t.Errorf("it is killed, and answers %+v", st.Daemon)
	}
	s = m.daemon()
	mustWrite(t, filepath.Join(a, "x"), "four")
	s.has("a", "x", "four")
	s.stop()
	if exists(filepath.Join(m.state(), "daemon.sock")) {
		t.Error("it has left its socket")
	}
}

// TestDaemonStops stops it while an upload hangs.
func TestDaemonStops(t *testing.T) {
	server := s3test.Start(t, s3test.VersityGW)
	proxy := s3test.NewProxy(t, server.Endpoint, nil)
	m := writer(t, server.URLVia(proxy.URL, "stops"), server.Env()...)
	dir := filepath.Join(m.dir, "a")
	mustWrite(t, filepath.Join(dir, "x"), strings.Repeat("text", 1<<20))
	m.watched("a", dir)
	proxy.SetSchedule(s3test.Always("PUT", s3test.Stall(0)))
	s := m.daemon()
	wait(t, s, "it uploads", func() bool { return m.status().Sources["a"].Daemon.Bring.Running && proxy.Hits() > 0 })
	s.stop()
	proxy.SetSchedule(nil)
	s = m.daemon()
	s.quiet("a")
	s.stop()
	if all := m.history("a"); len(all) != 1 {
		t.Errorf("%d snapshots", len(all))
	}
	m.must("verify", "--read-data", "--identity", m.identity)
}

// TestDaemonHooks runs commands before and after snapshots, and tells monitors.
func TestDaemonHooks(t *testing.T) {
	var mu sync.Mutex // guards heard
	var heard []string
	monitor := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, r.URL.Path+" "+string(b))
	}))
	t.Cleanup(monitor.Close)
	told := func(prefix, word string) bool {
		mu.Lock()
		defer mu.Unlock()
		for _, h := range heard {
			if strings.HasPrefix(h, prefix) && strings.Contains(h, word) {
				return true
			}
		}
		return false
	}
	m := writer(t, "")
	dir := filepath.Join(m.dir, "a")
	mustWrite(t, filepath.Join(dir, "x"), "one")
	m.must("source", "add", "a", dir, "--mode", "files")
	log, broken := filepath.Join(m.dir, "log"), filepath.Join(m.dir, "broken")
	m.configure("[[source]]", fmt.Sprintf("[daemon]\nping = %q\nwebhook = %q\non_failure = %q\n\n[[source]]", monitor.URL+"/all", monitor.URL+"/hook",
		`echo "failure $SECRATE_SOURCE $SECRATE_ERROR" >> `+log))
	m.configure(fmt.Sprintf("path = %q\n", dir), fmt.Sprintf("path = %q\nschedule = \"@every 1s\"\nping = %q\nhook_timeout = \"2s\"\nbefore = %q\nafter = %q\n",
		dir, monitor.URL+"/a", "date >> "+filepath.Join(dir, "dump")+"; echo frozen; test ! -e "+broken, `echo "after $SECRATE_SOURCE $SECRATE_RESULT $SECRATE_PATH" >> `+log))
	s := m.daemon()
	wait(t, s, "monitors hear of it", func() bool { return told("/a ", "#1, ") && told("/a/start ", "") && told("/all ", "a: #1, ") })
	if o := m.must("ls", "a:"); !strings.Contains(o.stdout, "dump") {
		t.Errorf("what the command before it made is not in the snapshot: %v", o)
	}
	mustWrite(t, broken, "")
	if hint := s.failing("a", "no snapshot was taken, the command before it failed", "exit status 1"); !strings.Contains(hint, "before") {
		t.Errorf("hint: %s", hint)
	}
	wait(t, s, "somebody is told", func() bool {
		b, _ := os.ReadFile(log)
		return told("/a/fail ", "exit status 1") && told("/all/fail ", "a: ") && told("/hook ", `"event":"failing"`) &&
			strings.Contains(string(b), "failure a a: no snapshot was taken") && strings.Contains(string(b), "after a done "+dir) && strings.Contains(string(b), "after a failed")
	})
	hooks := m.status().Sources["a"].Hooks
	if len(hooks) != 2 || hooks[0].Hook != "before" || hooks[0].Error == "" || hooks[0].Output != "frozen" || hooks[1].Error != "" {
		t.Errorf("status has %+v", hooks)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	s.well("a")
	wait(t, s, "and that it is over", func() bool { return told("/hook ", `"event":"recovered"`) })
	s.stop()

	// They are the same for secrate snap.
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	m.configure("test ! -e ", "sleep 60; test ! -e ")
	began := time.Now()
	m.run("snap", "a").expect(t, 3, "the command before it failed", "2s")
	if took := time.Since(began); took > 40*time.Second {
		t.Errorf("a command that hangs was left after %v", took)
	}
	if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), "after a failed") {
		t.Errorf("the command after it: %q, %v", b, err)
	}
}

// TestDaemonDisk takes the disk away that a source is on, and brings it back.
func TestDaemonDisk(t *testing.T) {
	needs(t)
	m := writer(t, "")
	fs := loopfs.New(t, loopfs.Ext4, loopfs.Options{})
	place := filepath.Join(m.dir, "disk")
	mount := func() {
		t.Helper()
		if err := unix.Mount(fs.Device, place, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	unmount := func() {
		t.Helper()
		if err := unix.Unmount(place, 0); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, filepath.Join(place, "under"), "what is there when the disk is not")
	mount()
	t.Cleanup(func() { unix.Unmount(place, unix.MNT_DETACH) })
	mustWrite(t, filepath.Join(place, "d/x"), "one")
	m.watched("a", place)
	s := m.daemon()
	s.has("a", "d/x", "one")
	s.quiet("a")
	before := len(m.history("a"))
	unmount()
	if hint := s.failing("a", "another directory than before"); !strings.Contains(hint, "is its disk mounted?") {
		t.Errorf("hint: %s", hint)
	}
	if all := m.history("a"); len(all) != before {
		t.Errorf("%d snapshots, and %d when the disk is not there", before, len(all))
	}
	mount()
	s.well("a")
	mustWrite(t, filepath.Join(place, "d/x"), "two")
	s.has("a", "d/x", "two")
	s.quiet("a")
	if o := m.must("log", "a:d/x", "--json"); strings.Count(o.stdout, "\n") != 2 {
		t.Errorf("d/x has another history than its two versions: %v", o)
	}
	s.stop()
}

// TestDaemonFullState fills the disk that the state is on.
func TestDaemonFullState(t *testing.T) {
	needs(t)
	m := bare(t, filepath.Join(t.TempDir(), "repo"))
	disk := loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 24 << 20}).Dir
	m.env = append(m.env, "SECRATE_STATE="+filepath.Join(disk, "state"))
	m.must("init", "--repo", m.repo, "--classic", "--identity-out", m.identity)
	dir := filepath.Join(m.dir, "a")
	mustWrite(t, filepath.Join(dir, "x"), "one")
	m.watched("a", dir)
	s := m.daemon()
	s.has("a", "x", "one")
	empty := fill(t, disk)
	mustWrite(t, filepath.Join(dir, "x"), "two")
	if hint := s.failing("a", "no space left on device"); !strings.Contains(hint, "the disk is full") {
		if hint2 := s.failing("a"); !strings.Contains(hint2, "the disk is full") {
			t.Errorf("hint: %s", hint)
		}
	}
	empty()
	s.has("a", "x", "two")
	s.well("a")
	s.stop()
}

// TestDaemonOffline has no network for a while: snapshots are taken, and each becomes a point in
// time; but not more than there is space for.
func TestDaemonOffline(t *testing.T) {
	needs(t)
	server := s3test.Start(t, s3test.VersityGW)
	proxy := s3test.NewProxy(t, server.Endpoint, nil)
	m := writer(t, server.URLVia(proxy.URL, "offline"), server.Env()...)
	vol := newSubvolume(t, filepath.Join(loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir, "vol"))
	m.must("source", "add", "vol", vol)
	m.configure(fmt.Sprintf("path = %q\n", vol), fmt.Sprintf("path = %q\nschedule = \"@every 1s\"\n", vol))
	mustWrite(t, filepath.Join(vol, "x"), "0")
	s := m.daemon()
	s.has("vol", "x", "0")
	denied := s3test.Answer(403, "AccessDenied")
	proxy.SetSchedule(func(int, *http.Request) s3test.Fault { return denied })
	n := 0
	wait(t, s, "snapshots wait", func() bool {
		n++
		mustWrite(t, filepath.Join(vol, "x"), fmt.Sprint(n))
		p := m.status().Sources["vol"].Pending
		return p != nil && *p >= 4
	})
	if hint := s.failing("vol", "AccessDenied"); hint == "" {
		t.Error("there is no hint about a bucket that denies")
	}
	if st := m.status().Sources["vol"]; *st.Pending < 4 {
		t.Errorf("%d wait", *st.Pending)
	}
	// There is never so much space.
	m.configure("[[source]]", "[daemon]\nmin_free = \"99.9%\"\n\n[[source]]")
	s.cmd.Process.Signal(syscall.SIGHUP)
	if hint := s.failing("vol", "no snapshot was taken", "snapshots wait for an upload"); !strings.Contains(hint, "min_free") {
		t.Errorf("hint: %s", hint)
	}
	waiting := *m.status().Sources["vol"].Pending
	time.Sleep(3 * time.Second)
	if now := *m.status().Sources["vol"].Pending; now != waiting {
		t.Errorf("%d wait, and %d did when there was too little space", now, waiting)
	}
	before := len(m.history("vol"))
	proxy.SetSchedule(nil)
	s.well("vol")
	wait(t, s, "all is uploaded", func() bool { return *m.status().Sources["vol"].Pending == 0 })
	// One in which nothing has changed since the one before is none, and there may be some.
	if now := len(m.history("vol")); now < before+3 {
		t.Errorf("%d snapshots waited, and %d became points in time", waiting, now-before)
	}
	mustWrite(t, filepath.Join(vol, "x"), "last")
	s.has("vol", "x", "last") // and it goes on
	s.stop()
	m.must("verify", "--read-data", "--identity", m.identity)
}

// TestDaemonMetrics reads what Prometheus would, and asks for its health.
func TestDaemonMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // an address that is free
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	m := writer(t, "")
	dir := filepath.Join(m.dir, "a")
	mustWrite(t, filepath.Join(dir, "x"), "one")
	m.watched("a", dir)
	m.configure("[[source]]", fmt.Sprintf("[daemon]\nlisten = %q\n\n[[source]]", address))
	s := m.daemon()
	s.has("a", "x", "one") // though the address is taken
	if st := m.status(); len(st.Daemon.Problems) != 1 || !strings.Contains(st.Daemon.Problems[0].Error, "no metrics") {
		t.Errorf("problems: %+v", st.Daemon.Problems)
	}
	l.Close()
	s.cmd.Process.Signal(syscall.SIGHUP)
	get := func(path string) (int, string) {
		res, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	wait(t, s, "it listens", func() bool { status, _ := get("/healthz"); return status == 200 })
	status, text := get("/metrics")
	for _, w := range []string{`secrate_source_failing{source="a"} 0`, `secrate_source_watched_directories{source="a"} 1`, `secrate_source_snapshot_number{source="a"} 1`, "process_resident_memory_bytes"} {
		if status != 200 || !strings.Contains(text, w) {
			t.Errorf("%d, without %s:\n%s", status, w, text)
		}
	}
	documented(t, text)
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	s.failing("a")
	if status, text := get("/healthz"); status != 503 || !strings.Contains(text, "a fails since") {
		t.Errorf("%d %s", status, text)
	}
	s.stop()
}

// documented reports metrics that docs/metrics.md does not list.
func documented(t *testing.T, text string) {
	t.Helper()
	docs, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# HELP "); ok && strings.HasPrefix(name, "secrate_") {
			name, _, _ = strings.Cut(name, " ")
			if !strings.Contains(string(docs), "`"+name+"`") {
				t.Errorf("%s is not in docs/metrics.md", name)
			}
		}
	}
}

// TestDaemonFewWatches lowers the limit on watches, in a namespace of its own: what is not
// watched is named, with what would help, and the scheduled scan finds what changes there.
func TestDaemonFewWatches(t *testing.T) {
	testenv.Need(t, testenv.Root)
	m := writer(t, "")
	dir := filepath.Join(m.dir, "a")
	for i := range 40 {
		mustWrite(t, filepath.Join(dir, fmt.Sprint("d", i), "x"), "one")
	}
	m.watched("a", dir)
	m.configure("watch = true", "watch = true\nschedule = \"@every 3s\"")
	s := m.inNamespace(20)
	wait(t, s, "it says what is not watched", func() bool {
		x := m.status().Sources["a"]
		return x != nil && x.Daemon != nil && x.Daemon.Watch != nil && x.Daemon.Watch.Unwatched > 15
	})
	w := m.status().Sources["a"].Daemon.Watch
	if !strings.Contains(w.Remedy, "max_user_watches") && !strings.Contains(w.Remedy, "max_inotify_watches") {
		t.Errorf("remedy: %q", w.Remedy)
	}
	for i := range 40 {
		mustWrite(t, filepath.Join(dir, fmt.Sprint("d", i), "x"), fmt.Sprint("two ", i))
	}
	for i := range 40 {
		s.has("a", fmt.Sprint("d", i, "/x"), fmt.Sprint("two ", i))
	}
	s.stop()
}

// TestDaemonSystemd is systemd as far as a service sees it: it is told when the daemon is ready,
// alive, reading its configuration again and stopping.
func TestDaemonSystemd(t *testing.T) {
	m := writer(t, "")
	dir := filepath.Join(m.dir, "a")
	mustWrite(t, filepath.Join(dir, "x"), "one")
	m.watched("a", dir)
	socket := filepath.Join(m.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told := make(chan string, 1000)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	hears := func(what string) {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case s := <-told:
				if strings.Contains(s, what) {
					return
				}
			case <-timeout:
				t.Fatalf("it is never told %s", what)
			}
		}
	}
	m.env = append(m.env, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=200000")
	s := m.daemon()
	hears("READY=1")
	hears("WATCHDOG=1")
	s.cmd.Process.Signal(syscall.SIGHUP)
	hears("RELOADING=1\nMONOTONIC_USEC=")
	hears("READY=1")
	hears("WATCHDOG=1")
	s.stop()
	hears("STOPPING=1")
}

// TestDaemonVerifies damages the repository: the next time it is verified that is told.
func TestDaemonVerifies(t *testing.T) {
	m := writer(t, "")
	dir := filepath.Join(m.dir, "a")
	mustWrite(t, filepath.Join(dir, "x"), strings.Repeat("text", 1000))
	m.watched("a", dir)
	m.configure("[[source]]", "[daemon]\nverify = \"@every 1s\"\n\n[[source]]")
	s := m.daemon()
	s.has("a", "x", strings.Repeat("text", 1000))
	wait(t, s, "it is verified", func() bool { return strings.Contains(m.must("status").stdout, "all was well") })
	packs, err := filepath.Glob(filepath.Join(m.repo, "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	if err := os.Remove(packs[0]); err != nil {
		t.Fatal(err)
	}
	wait(t, s, "the damage is told", func() bool { return strings.Contains(m.must("status").stdout, "the repository is damaged") })
	mustWrite(t, filepath.Join(dir, "x"), "and it goes on")
	s.has("a", "x", "and it goes on")
	s.stop()
}

// TestDaemonEditors saves a file as editors do, and writes to another without end: each save is
// one version of the right file, nothing else is in the history, and what is written without end
// is kept all the same.
func TestDaemonEditors(t *testing.T) {
	m := writer(t, "")
	dir := filepath.Join(m.dir, "a")
	p := func(name string) string { return filepath.Join(dir, name) }
	mustWrite(t, p("letter"), "version 0")
	m.watched("a", dir)
	s := m.daemon()
	s.has("a", "letter", "version 0")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	saves := []func(text string){
		func(text string) { // vim: a swap file, a backup, a new file
			mustWrite(t, p(".letter.swp"), "b0VIM 9.0")
			must(os.Rename(p("letter"), p("letter~")))
			mustWrite(t, p("letter"), text)
			must(os.Remove(p("letter~")))
			must(os.Remove(p(".letter.swp")))
		},
		func(text string) { // emacs: a lock, which is a link to nothing, and auto-save
			must(os.Symlink("ann@host.123:456", p(".#letter")))
			mustWrite(t, p("#letter#"), text)
			mustWrite(t, p("letter"), text)
			must(os.Remove(p("#letter#")))
			must(os.Remove(p(".#letter")))
		},
		func(text string) { // many programs: a new file that is renamed over the old one
			mustWrite(t, p(".goutputstream-XYZ"), text)
			must(os.Rename(p(".goutputstream-XYZ"), p("letter")))
		},
	}
	for i, save := range saves {
		text := fmt.Sprintf("version %d", i+1)
		save(text)
		s.has("a", "letter", text)
		s.quiet("a")
	}
	o := m.must("log", "a:letter", "--json")
	seqs := map[uint64]bool{}
	for _, v := range o.snapshots(t) {
		seqs[v.Seq] = true
	}
	if len(seqs) != 1+len(saves) || len(seqs) != len(m.history("a")) {
		t.Errorf("%d versions were saved in %d snapshots: %v", 1+len(saves), len(m.history("a")), o)
	}
	for _, h := range m.history("a") {
		o := m.must("ls", "a:", "--at", fmt.Sprint("#", h.Seq), "--json")
		if n := strings.Count(o.stdout, "\n"); n != 1 {
			t.Errorf("#%d has more than the letter: %v", h.Seq, o)
		}
	}

	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		f, err := os.OpenFile(p("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		for n := 0; err == nil; n++ {
			select {
			case <-stop:
				done <- f.Close()
				return
			case <-time.After(20 * time.Millisecond): // more often than it takes to settle
				_, err = fmt.Fprintf(f, "line %d\n", n)
			}
		}
		done <- err
	}()
	before := len(m.history("a"))
	wait(t, s, "the log is kept again and again", func() bool { return len(m.history("a")) >= before+3 })
	close(stop)
	must(<-done)
	want, err := os.ReadFile(p("log"))
	must(err)
	s.has("a", "log", string(want))
	s.stop()
}

// TestDaemonReadOnly has the disk of a source become read-only. That of the state cannot, as long
// as the daemon has its lock open; TestDaemonFullState is about a state that cannot be written.
func TestDaemonReadOnly(t *testing.T) {
	needs(t)
	remount := func(dir string, flags uintptr) {
		t.Helper()
		// Who writes this moment has to be waited for.
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "")
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("remount %s: %v", dir, err)
			}
		}
	}
	m := writer(t, "")
	btr := loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir
	vol, dir := newSubvolume(t, filepath.Join(btr, "vol")), filepath.Join(m.dir, "a")
	mustWrite(t, filepath.Join(dir, "x"), "one")
	mustWrite(t, filepath.Join(vol, "y"), "one")
	m.watched("a", dir)
	m.must("source", "add", "vol", vol)
	m.configure(fmt.Sprintf("path = %q\n", vol), fmt.Sprintf("path = %q\nschedule = \"@every 1s\"\n", vol))
	s := m.daemon()
	s.has("a", "x", "one")
	s.has("vol", "y", "one")

	remount(btr, unix.MS_RDONLY)
	s.failing("vol", "read-only file system")
	mustWrite(t, filepath.Join(dir, "x"), "two")
	s.has("a", "x", "two") // the other one goes on
	runs := m.status().Sources["vol"].Daemon.Runs
	time.Sleep(3 * time.Second)
	if now := m.status().Sources["vol"].Daemon.Runs; now > runs+5 {
		t.Errorf("%d attempts within 3 s", now-runs)
	}
	remount(btr, 0)
	mustWrite(t, filepath.Join(vol, "y"), "two")
	s.has("vol", "y", "two")
	s.well("vol")
	s.stop()
}

// TestDaemonRepositoryAway has no repository for a while, since its disk is not mounted: what waits
// is counted all the same.
func TestDaemonRepositoryAway(t *testing.T) {
	needs(t)
	m := writer(t, "")
	vol := newSubvolume(t, filepath.Join(loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir, "vol"))
	m.must("source", "add", "vol", vol)
	m.configure(fmt.Sprintf("path = %q\n", vol), fmt.Sprintf("path = %q\nschedule = \"@every 1s\"\n", vol))
	mustWrite(t, filepath.Join(vol, "x"), "0")
	s := m.daemon()
	s.has("vol", "x", "0")
	away := m.repo + ".away"
	if err := os.Rename(m.repo, away); err != nil {
		t.Fatal(err)
	}
	wait(t, s, "snapshots wait", func() bool {
		p := m.status().Sources["vol"].Pending
		return p != nil && *p >= 3
	})
	s.failing("vol")
	wait(t, s, "the daemon knows", func() bool { return m.status().Sources["vol"].Daemon.Pending >= 3 })
	if err := os.Rename(away, m.repo); err != nil {
		t.Fatal(err)
	}
	s.well("vol")
	s.stop()
}
