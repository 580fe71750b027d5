package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/s3test"
)

// A plant is a source with one snapshot, and a file that is new since.
type plant struct {
	t   *testing.T
	m   *machine
	to  *target
	sub string
}

func newPlant(t *testing.T, m *machine) *plant {
	p := &plant{t: t, m: m, to: newTarget(t)}
	p.sub = newSubvolume(t, filepath.Join(loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir, "sub"))
	p.write("first", 100<<10)
	m.must("source", "add", "vol", p.sub)
	m.must("snap")
	p.write("second", 100<<10)
	return p
}

// write makes a file of n bytes that do not compress well.
func (p *plant) write(name string, n int) {
	p.t.Helper()
	b := make([]byte, n)
	x := uint64(len(name) + n)
	for i := range b {
		x = x*6364136223846793005 + 1442695040888963407
		b[i] = byte(x >> 56)
	}
	if err := os.WriteFile(filepath.Join(p.sub, name), b, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// heals takes a snapshot now that all is well again: everything that was pending is
// committed, the newest snapshot is the tree as it is, and nothing is left over.
func (p *plant) heals() {
	p.t.Helper()
	p.m.t = p.t
	p.write("healed", 1000)
	o := p.m.must("snap", "--json")
	all := o.committed(p.t)
	if len(all) == 0 {
		p.t.Fatal(o)
	}
	last := all[len(all)-1]
	p.m.checkRestored(p.to, "vol", last.Seq, scan(p.t, filepath.Join(p.sub, ".secrate", last.Origin)), unset)
	for i, s := range p.m.history("vol") {
		if s.Seq != uint64(i+1) {
			p.t.Errorf("#%d is in the place of #%d", s.Seq, i+1)
		}
	}
	if names := local(p.t, p.sub); len(names) != 1 {
		p.t.Errorf("local snapshots are %q", names)
	}
	p.m.must("verify")
	if err := os.Remove(filepath.Join(p.sub, "healed")); err != nil {
		p.t.Fatal(err)
	}
}

// TestBadDisk is about a source with a block that cannot be read: it is named by whatever
// meets it, and hinders nothing.
func TestBadDisk(t *testing.T) {
	needs(t)
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{})
	m := writer(t, "")
	p := &plant{t: t, m: m, to: newTarget(t), sub: newSubvolume(t, filepath.Join(fs.Dir, "sub"))}
	p.write("bad", 100<<10)
	p.write("good", 50<<10)
	want, err := os.ReadFile(filepath.Join(p.sub, "bad"))
	if err != nil {
		t.Fatal(err)
	}
	m.must("source", "add", "vol", p.sub)
	if err := fs.Damage(want[8192:][:4096]); err != nil {
		t.Fatal(err)
	}
	clear(want[8192:][:4096])
	m.run("snap").expect(t, 1, "vol: not read: bad: not all of it is kept", "vol: #1 2 files changed")
	m.run("snap").expect(t, 1, "vol: not read: bad: not all of it is kept", "nothing changed since #1")
	m.must("ls", "vol").expect(t, 0, "bad  (incomplete")
	m.must("ls", "vol", "--json").expect(t, 0, `"incomplete":true`)
	id := "SECRATE_IDENTITY=" + m.identity
	o := m.run(id, "cat", "vol:bad")
	if o.stdout != string(want) {
		t.Error("cat does not write what could be read")
	}
	o.stdout = ""
	o.expect(t, 3, "not all of it could be read when #1 was made", "hint:")
	out := filepath.Join(p.to.dir, "out")
	m.run(id, "restore", "vol", "--at", "latest", "--to", out).expect(t, 1, "restored in part: bad: ", "1 file incomplete", "2 files (")
	good, err := os.ReadFile(filepath.Join(p.sub, "good"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"bad": want, "good": good} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("restored %s is not what could be read: %v", name, err)
		}
	}
	m.must("verify", "--read-data", "--identity", m.identity)
	p.write("bad", 100<<10)
	p.heals()
}

// TestDestination is about a server that refuses or is not there.
func TestDestination(t *testing.T) {
	needs(t)
	server := s3test.Start(t, s3test.VersityGW)
	m := writer(t, server.URL("dest"), server.Env()...)
	p := newPlant(t, m)
	step := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			m.t, p.t, p.to = t, t, newTarget(t)
			f(t)
		})
	}
	step("wrong credentials", func(t *testing.T) {
		m.run("AWS_SECRET_ACCESS_KEY=wrong", "snap").expect(t, 1, "hint:", "pending")
		o := m.run("AWS_ACCESS_KEY_ID=wrong", "upload")
		o.expect(t, 3, "hint:")
		p.heals()
	})
	step("no credentials", func(t *testing.T) {
		p.write("third", 1000)
		m.run("AWS_SECRET_ACCESS_KEY=", "AWS_ACCESS_KEY_ID=", "snap").expect(t, 1, "hint:", "pending")
		p.heals()
	})
	step("server down", func(t *testing.T) {
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		done := make(chan outcome)
		go func() { done <- m.run("snap", "--json") }()
		select {
		case o := <-done:
			o.expect(t, 1, "hint:", `"pending":true`)
			t.Logf("gives up after %v", o.took)
		case <-time.After(3 * time.Minute):
			t.Error("does not give up")
			<-done
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.heals()
	})
	step("missing bucket", func(t *testing.T) {
		n := bare(t, strings.Replace(server.URL("x"), server.Bucket, "not-there", 1), server.Env()...)
		n.run("init", "--repo", n.repo, "--identity-out", n.identity).expect(t, 3, "hint:", "not-there")
		for _, name := range []string{n.identity, filepath.Join(n.dir, "config.toml"), filepath.Join(n.state(), "writer.json")} {
			if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
		}
		n.repo = server.URL("later")
		n.must("init", "--repo", n.repo, "--identity-out", n.identity) // nothing is in its way
		o := m.other(t)
		o.repo = strings.Replace(server.URL("dest"), server.Bucket, "not-there", 1)
		o.run(append([]string{"snapshots"}, o.bareFlags()...)...).expect(t, 3, "hint:", "not-there")
	})
	step("no repository", func(t *testing.T) {
		o := m.other(t)
		o.repo = server.URL("elsewhere")
		o.run(append([]string{"snapshots"}, o.bareFlags()...)...).expect(t, 3, "hint:", "no repository")
	})
	step("wrong identity", func(t *testing.T) {
		n := writer(t, "")
		dir := filepath.Join(p.to.dir, "not-made")
		for _, args := range [][]string{{"--repo", m.repo}, nil} {
			o := m.run(append([]string{"restore", "vol", "--at", "latest", "--to", dir, "--identity", n.identity}, args...)...)
			o.expect(t, 3, "hint:")
			if list, err := os.ReadDir(dir); err == nil && len(list) > 0 {
				t.Errorf("there is something in DIR: %v: %v", list, o)
			}
		}
		p.heals()
	})
	step("replies cut", func(t *testing.T) {
		proxy := s3test.NewProxy(t, server.Endpoint, s3test.On("PUT", s3test.LoseReply, s3test.Reset, s3test.Answer(503, "SlowDown")))
		config := filepath.Join(m.dir, "config.toml")
		b, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		via := strings.ReplaceAll(string(b), server.URL("dest"), server.URLVia(proxy.URL, "dest"))
		if via == string(b) {
			t.Fatalf("the address is not in %s", b)
		}
		if err := os.WriteFile(config, []byte(via), 0o600); err != nil {
			t.Fatal(err)
		}
		p.heals()
		if proxy.Hits() != 3 {
			t.Errorf("%d requests met a fault", proxy.Hits())
		}
		if err := os.WriteFile(config, b, 0o600); err != nil {
			t.Fatal(err)
		}
		p.heals()
	})
}

// TestStream is about streams that are cut, damaged, or do not fit.
func TestStream(t *testing.T) {
	needs(t)
	m, to := writer(t, ""), newTarget(t)
	dir := loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir
	p := &plant{t: t, m: m, sub: newSubvolume(t, filepath.Join(dir, "sub"))}
	m.must("source", "add", "fed", "--mode", "stream")
	var want [][]manifest.Entry
	var streams [][]byte
	last := ""
	for _, name := range []string{"one", "two", "three"} {
		p.write(name, 300<<10)
		snap := filepath.Join(dir, name)
		btrfs(t, "subvolume", "snapshot", "-r", p.sub, snap)
		want = append(want, scan(t, snap))
		args := []string{snap}
		if last != "" {
			args = append(args, "-p", last)
		}
		streams = append(streams, sendStream(t, args...))
		last = snap
	}
	ingest := func(stream []byte) outcome { return m.feed(bytes.NewReader(stream), "ingest", "fed", "--json") }
	ingest(nil).expect(t, 3, "hint:", "pipefail")
	ingest([]byte("\x28\xb5\x2f\xfd what zstd makes")).expect(t, 3, "hint:", "zstd")
	ingest(streams[1]).expect(t, 3, "hint:", "full stream")
	one := streams[0]
	for _, n := range []int{1, 16, 17, 40, len(one) / 2, len(one) - 1} {
		ingest(one[:n]).expect(t, 3, "hint:", "cut")
	}
	for _, n := range []int{20, len(one) / 3, len(one) - 5} {
		bad := slices.Clone(one)
		bad[n] ^= 1
		ingest(bad).expect(t, 3, "hint:", "offset")
	}
	if o := m.run("snapshots", "fed", "--json"); o.stdout != "" {
		t.Errorf("there are snapshots of bad streams: %v", o)
	}
	// What is before the damage stays.
	two := slices.Clone(streams[1])
	two[len(two)/2] ^= 1
	o := ingest(slices.Concat(one, two))
	o.expect(t, 1, "hint:", "1 snapshot before it")
	if got := o.committed(t); len(got) != 1 || got[0].Origin != "one" {
		t.Errorf("%v", o)
	}
	// The same again, whole, with what has come already in front.
	o = ingest(slices.Concat(one, streams[1], streams[2]))
	o.expect(t, 0)
	if got := o.committed(t); len(got) != 2 {
		t.Errorf("%v", o)
	}
	ig := unset
	ig.FSFlags, ig.Extents = true, true
	for i, w := range want {
		m.checkRestored(to, "fed", uint64(i+1), w, ig)
	}
	m.must("verify", "--read-data")
}

// TestTwoAtOnce holds a command at its work and starts others.
func TestTwoAtOnce(t *testing.T) {
	needs(t)
	p := newPlant(t, writer(t, ""))
	m := p.m
	m.must("source", "add", "fed", "--mode", "stream")
	first := m.cmd("ingest", "fed")
	in, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	first.Stderr = &said
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for { // until the first has the lock
		o := m.run("snap", "--wait", "0s")
		if o.status == 3 {
			o.expect(t, 3, "hint:", "ingest fed", "is at work")
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the first never took the lock: %v", o)
		}
		p.write("third", 5000)
	}
	m.must("status")
	m.must("snapshots", "vol") // readers do not wait
	// One that waits goes on when the first ends; four at once do so one after the other.
	done := make(chan outcome)
	for range 4 {
		go func() { done <- m.run("snap", "--wait", "1m", "--json") }()
	}
	if _, err := io.WriteString(in, "no stream"); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := first.Wait(); err == nil || !strings.Contains(said.String(), "secrate: error:") {
		t.Errorf("%v: %s", err, &said)
	}
	for range 4 {
		o := <-done
		o.expect(t, 0)
	}
	p.heals()
}

// TestClockSetBack meets a snapshot of the future.
func TestClockSetBack(t *testing.T) {
	needs(t)
	p := newPlant(t, writer(t, ""))
	future := time.Now().Add(24 * time.Hour).UTC()
	_, owner, _ := strings.Cut(p.m.history("vol")[0].Origin, "Z.")
	name := "vol@" + future.Format("20060102T150405.000000000Z.") + owner
	btrfs(t, "subvolume", "snapshot", "-r", p.sub, filepath.Join(p.sub, ".secrate", name))
	o := p.m.must("upload", "--json")
	if got := o.committed(t); len(got) != 1 || got[0].Origin != name {
		t.Fatal(o)
	}
	p.write("third", 1000)
	o = p.m.must("snap", "--json")
	if !strings.Contains(o.stderr, "the clock was set back") {
		t.Errorf("no word of the clock: %v", o)
	}
	p.heals()
	all := p.m.history("vol")
	if len(all) != 4 {
		t.Errorf("%v", all)
	}
	// Everything can be named: by number, and the newest by the word.
	if o := p.m.must("ls", "vol:", "--at", "latest"); !strings.Contains(o.stdout, "third") {
		t.Error(o)
	}
	if o := p.m.must("ls", "vol:", "--at", "#2"); strings.Contains(o.stdout, "third") {
		t.Error(o)
	}
}

// fill uses up what is free in dir, and returns what gives it back.
func fill(t *testing.T, dir string) func() {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 1<<20); len(b) > 0; {
		if _, err := f.Write(b); errors.Is(err, syscall.ENOSPC) {
			b = b[:len(b)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDisk fills what the command writes to.
func TestFullDisk(t *testing.T) {
	needs(t)
	small := func(t *testing.T) string {
		return loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 24 << 20}).Dir
	}
	t.Run("state", func(t *testing.T) {
		m := bare(t, filepath.Join(t.TempDir(), "repo"))
		disk := small(t)
		m.env = append(m.env, "SECRATE_STATE="+filepath.Join(disk, "state"))
		m.must("init", "--repo", m.repo, "--classic", "--identity-out", m.identity)
		p := newPlant(t, m)
		empty := fill(t, disk)
		o := m.run("snap", "--json")
		if o.status != 1 && o.status != 3 {
			t.Error(o)
		}
		o.expect(t, o.status, "hint:", "full")
		empty()
		p.heals()
	})
	t.Run("repository", func(t *testing.T) {
		disk := small(t)
		p := newPlant(t, writer(t, filepath.Join(disk, "repo")))
		empty := fill(t, disk)
		p.m.run("snap", "--json").expect(t, 1, "hint:", "full", `"pending":true`)
		empty()
		p.heals()
	})
	t.Run("target", func(t *testing.T) {
		p := newPlant(t, writer(t, ""))
		disk := small(t)
		for _, name := range []string{"a", "b", "c"} {
			p.write(name, 8<<20)
		}
		p.m.must("snap")
		dir := filepath.Join(disk, "restored")
		restore := []string{"restore", "--at", "#2", "--to", dir, "--identity", p.m.identity}
		o := p.m.run(restore...)
		o.expect(t, 3, "hint:", "full")
		for _, e := range scan(t, dir) { // what is there is whole
			if want, err := os.Stat(filepath.Join(p.sub, e.Path)); err != nil || e.Path != "" && want.Size() != e.Size {
				t.Errorf("%s has %d bytes: %v", e.Path, e.Size, o)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		p.heals()
	})
}

// TestUsage is about what cannot be meant.
func TestUsage(t *testing.T) {
	needs(t)
	p := newPlant(t, writer(t, ""))
	m := p.m
	if err := os.Mkdir(filepath.Join(p.sub, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.run("source", "add", "dir", filepath.Join(p.sub, "dir")).expect(t, 3, "hint:", "subvolume")
	m.run("source", "add", "proc", "/proc").expect(t, 3, "no place for files")
	m.run("source", "add", "gone", filepath.Join(p.sub, "gone")).expect(t, 3, "no such file")
	m.run("snap", "nobody").expect(t, 2, "no source named nobody")
	m.run("restore", "vol", "--at", "2001-01-01", "--to", "x", "--identity", m.identity).expect(t, 3, "hint:")
	m.run("restore", "vol", "--at", "#99", "--to", "x", "--identity", m.identity).expect(t, 3, "hint:", "#1")
	m.run("restore", "vol", "--at", "latest", "--to", p.sub, "--identity", m.identity).expect(t, 3, "hint:", "not empty")
	m.run("init", "--repo", m.repo, "--identity-out", m.identity).expect(t, 3, "hint:", "already")

	config := filepath.Join(m.dir, "config.toml")
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, slices.Concat(b, []byte("\n[uplaod]\nparallel = 2\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	m.run("snap").expect(t, 3, "uplaod", "config.toml:")
	if err := os.WriteFile(config, b, 0o600); err != nil {
		t.Fatal(err)
	}
	p.heals()

	// Not root: the state is not theirs; with a state of their own the snapshot fails.
	if err := os.Chmod(filepath.Dir(m.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	c := m.cmd("snap")
	bin, err := command()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(bin), 0o755); err != nil {
		t.Fatal(err)
	}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	finish(t, c).expect(t, 3, "root")
	p.heals()
}
