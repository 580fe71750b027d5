//go:build linux

package btrfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/treegen"
)

// TestMain lets the test binary be the process that is stopped by TestSendStopped.
func TestMain(m *testing.M) {
	if path := os.Getenv("BTRFS_TEST_SEND"); path != "" {
		sendSlowly(path)
		return
	}
	os.Exit(m.Run())
}

func TestNames(t *testing.T) {
	at := time.Date(2027, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600))
	name := SnapshotName("ho@me", at, "065d436d")
	if want := "ho@me@20270102T020405.000000060Z.065d436d"; name != want {
		t.Errorf("SnapshotName = %q, want %q", name, want)
	}
	if source, got, owner, ok := ParseName(name); source != "ho@me" || !got.Equal(at) || owner != "065d436d" || !ok {
		t.Errorf("ParseName = %q, %v, %q, %v", source, got, owner, ok)
	}
	for _, bad := range []string{"", "@", "home", "home@", "home@20270102T020405Z", "home@20270102T020405.000000060",
		"home@20270102T020405.000000060Z", "home@20270102T020405.000000060Z.", "home@20270102T020405.000000060Z.065D436D", "home.0@"} {
		if _, _, _, ok := ParseName(bad); ok {
			t.Errorf("ParseName(%q) is ok", bad)
		}
	}
}

func TestParseUUID(t *testing.T) {
	const s = "00112233-4455-6677-8899-aabbccddeeff"
	if u, err := ParseUUID(s); err != nil || u.String() != s {
		t.Errorf("ParseUUID(%q) = %v, %v", s, u, err)
	}
	for _, bad := range []string{"", s[1:], s + "0", strings.Repeat("0", 36), strings.Replace(s, "00", "0-", 1), strings.Replace(s, "00", "xx", 1)} {
		if _, err := ParseUUID(bad); err == nil {
			t.Errorf("ParseUUID(%q) is ok", bad)
		}
	}
}

// newSource makes a Btrfs file system with a subvolume "src".
func newSource(t *testing.T) (top string, src *Subvolume) {
	t.Helper()
	top = loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir
	return top, newSubvolume(t, top, "src")
}

func newSubvolume(t *testing.T, dir, name string) *Subvolume {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := createSubvolume(d, name); err != nil {
		t.Fatal(err)
	}
	s, err := Open(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

var lastName time.Time

// snap takes a snapshot of src into its own directory.
func snap(t *testing.T, src *Subvolume) *Subvolume {
	t.Helper()
	dir, err := src.SnapshotDir()
	if err != nil {
		t.Fatal(err)
	}
	lastName = lastName.Add(time.Second)
	s, err := src.Snapshot(dir, SnapshotName("src", lastName, "1"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sendAll(t *testing.T, s *Subvolume, o SendOptions) []byte {
	t.Helper()
	r, err := Send(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

// commands returns the version and the command numbers of a stream.
func commands(t *testing.T, stream []byte) (version uint32, cmds []uint16) {
	t.Helper()
	if len(stream) < headerSize || string(stream[:13]) != "btrfs-stream\x00" {
		t.Fatalf("no header: %q", stream[:min(len(stream), headerSize)])
	}
	version = binary.LittleEndian.Uint32(stream[13:])
	for b := stream[headerSize:]; len(b) > 0; {
		if len(b) < 10 {
			t.Fatal("cut in a command's header")
		}
		n := 10 + int(binary.LittleEndian.Uint32(b))
		if len(b) < n {
			t.Fatal("cut in a command")
		}
		cmds = append(cmds, binary.LittleEndian.Uint16(b[4:]))
		b = b[n:]
	}
	return version, cmds
}

// Numbers of commands.
const (
	cmdSnapshot     = 2
	cmdWrite        = 15
	cmdClone        = 16
	cmdEnd          = 21
	cmdUpdateExtent = 22
	cmdEncodedWrite = 25
)

func TestOpen(t *testing.T) {
	top, src := newSource(t)
	sub := filepath.Join(src.Path, "a", "b")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(sub, "file"), nil)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(src.Path, link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path  string
		place Place
		err   error
		msg   string
	}{
		{path: top, place: Root},
		{path: src.Path, place: Root},
		{path: link, place: Root},
		{path: sub, place: Inside, err: ErrNotSubvolume, msg: "it is in the subvolume " + src.Path},
		{path: filepath.Join(top, "src", "a"), place: Inside, err: ErrNotSubvolume, msg: src.Path},
		{path: "/proc", place: Elsewhere, err: ErrNotBtrfs},
	} {
		if got, err := Detect(tt.path); got != tt.place || err != nil {
			t.Errorf("Detect(%s) = %v, %v, want %v", tt.path, got, err, tt.place)
		}
		_, err := Open(tt.path)
		if !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.msg) {
			t.Errorf("Open(%s): %v, want %v with %q", tt.path, err, tt.err, tt.msg)
		}
	}
	for _, path := range []string{filepath.Join(top, "none"), filepath.Join(sub, "file")} {
		if _, err := Open(path); err == nil {
			t.Errorf("Open(%s) is ok", path)
		}
	}
	if s, err := Open(link); err != nil || s.Path != src.Path {
		t.Errorf("Open(%s) = %v, %v", link, s, err)
	}
}

func TestInfo(t *testing.T) {
	top, src := newSource(t)
	before := time.Now().Add(-time.Second)
	s := snap(t, src)
	root, err := Open(top)
	if err != nil {
		t.Fatal(err)
	}
	if root.ID != 5 || root.Name != "" || root.ParentID != 0 || root.ReadOnly || root.IsSnapshot() {
		t.Errorf("top level: %+v", root)
	}
	if src.Name != "src" || src.ParentID != root.ID || src.ReadOnly || src.IsSnapshot() || src.UUID.IsZero() {
		t.Errorf("source: %+v", src)
	}
	if s.Name != filepath.Base(s.Path) || s.ParentUUID != src.UUID || !s.IsSnapshot() || !s.ReceivedUUID.IsZero() || s.StreamUUID() != s.UUID {
		t.Errorf("snapshot: %+v", s)
	}
	if s.OTime.Before(before) || s.OTime.After(time.Now().Add(time.Second)) {
		t.Errorf("snapshot made at %v, now is %v", s.OTime, time.Now())
	}
	if s.OTransID < src.OTransID || s.Generation < s.OTransID || s.CTransID == 0 {
		t.Errorf("transactions: source %+v, snapshot %+v", src, s)
	}
	// The tool says the same.
	if _, err := exec.LookPath("btrfs"); err != nil {
		t.Skip("no btrfs(8) to compare with")
	}
	out, err := exec.Command("btrfs", "subvolume", "show", s.Path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			got[k] = strings.TrimSpace(v)
		}
	}
	for k, want := range map[string]string{
		"Name":            s.Name,
		"UUID":            s.UUID.String(),
		"Parent UUID":     s.ParentUUID.String(),
		"Received UUID":   "-",
		"Subvolume ID":    fmt.Sprint(s.ID),
		"Generation":      fmt.Sprint(s.Generation),
		"Gen at creation": fmt.Sprint(s.OTransID),
		"Parent ID":       fmt.Sprint(s.ParentID),
		"Flags":           "readonly",
	} {
		if got[k] != want {
			t.Errorf("%s: btrfs(8) says %q, we %q", k, got[k], want)
		}
	}
}

func TestSnapshotDir(t *testing.T) {
	top, src := newSource(t)
	defer unix.Umask(unix.Umask(0))
	dir, err := src.SnapshotDir()
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(src.Path, DirName); dir != want {
		t.Errorf("directory %s, want %s", dir, want)
	}
	if _, err := Open(dir); err != nil {
		t.Errorf("not a subvolume: %v", err)
	}
	check := func(dir string) {
		t.Helper()
		fi, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s has mode %v", dir, fi.Mode())
		}
	}
	check(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // as after a crash
		t.Fatal(err)
	}
	if again, err := src.SnapshotDir(); err != nil || again != dir {
		t.Errorf("again: %s, %v", again, err)
	}
	check(dir)

	for name, make := range map[string]func(dir string) error{
		"file":    func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		"link":    func(dir string) error { return os.Symlink("/tmp", dir) },
		"foreign": func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 1, 1)) },
		"open":    func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o770)) },
	} {
		s := newSubvolume(t, top, name)
		dir := filepath.Join(s.Path, DirName)
		if err := make(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SnapshotDir(); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	plain := newSubvolume(t, top, "plain")
	if err := os.Mkdir(filepath.Join(plain.Path, DirName), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := plain.SnapshotDir(); err != nil {
		t.Errorf("a plain directory: %v", err)
	}
	check(filepath.Join(plain.Path, DirName))
}

func TestSnapshotListFindDestroy(t *testing.T) {
	top, src := newSource(t)
	dir, err := src.SnapshotDir()
	if err != nil {
		t.Fatal(err)
	}
	var want []*Subvolume
	for i := range 3 { // names in the other order than ages
		s, err := src.Snapshot(dir, fmt.Sprintf("s%d", 9-i))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, s)
	}
	write(t, filepath.Join(dir, "file"), nil)
	if err := os.Mkdir(filepath.Join(dir, "plain"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("s9", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	got, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if s, err := Find(dir, want[1].UUID); err != nil || s.Path != want[1].Path {
		t.Errorf("Find = %v, %v", s, err)
	}
	if _, err := Find(dir, UUID{1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Find an unknown one: %v", err)
	}

	if _, err := src.Snapshot(dir, "s9"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("name taken: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", strings.Repeat("a", 256)} {
		if _, err := src.Snapshot(dir, bad); err == nil {
			t.Errorf("snapshot with name %q", bad)
		}
		if err := Destroy(dir, bad); err == nil {
			t.Errorf("destroyed %q", bad)
		}
	}
	if _, err := src.Snapshot(t.TempDir(), "a"); !errors.Is(err, ErrNotBtrfs) {
		t.Errorf("snapshot to another file system: %v", err)
	}
	other := loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir
	if _, err := src.Snapshot(other, "a"); !errors.Is(err, unix.EXDEV) {
		t.Errorf("snapshot to another Btrfs: %v", err)
	}

	newSubvolume(t, dir, "writable")
	for name, want := range map[string]error{
		"file": ErrNotSubvolume, "plain": ErrNotSubvolume, "link": ErrNotSubvolume,
		"writable": ErrNotSnapshot, "none": fs.ErrNotExist,
	} {
		if err := Destroy(dir, name); !errors.Is(err, want) {
			t.Errorf("destroy %s: %v, want %v", name, err, want)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil && name != "none" {
			t.Errorf("%s is gone", name)
		}
	}
	if err := Destroy(top, "src"); !errors.Is(err, ErrNotSnapshot) {
		t.Errorf("destroy the source: %v", err)
	}
	if err := Destroy(dir, "s9"); err != nil {
		t.Error(err)
	}
	if err := destroyNamed(dir, "s8"); err != nil { // as on Linux before 5.7
		t.Error(err)
	}
	got, err = List(dir)
	if err != nil || len(got) != 2 || got[0].Name != "s7" {
		t.Errorf("left: %v, %v", got, err)
	}

	// The path leads elsewhere now.
	if err := os.Rename(src.Path, src.Path+"2"); err != nil {
		t.Fatal(err)
	}
	newSubvolume(t, top, "src")
	if _, err := src.Snapshot(top, "a"); !errors.Is(err, ErrReplaced) {
		t.Errorf("snapshot of something else: %v", err)
	}
}

func destroyNamed(dir, name string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return destroyByName(d, name)
}

// TestNested makes more subvolumes than the kernel tells of at once.
func TestNested(t *testing.T) {
	_, src := newSource(t)
	if got, err := src.Nested(); len(got) != 0 || err != nil {
		t.Errorf("of none: %q, %v", got, err)
	}
	deep := filepath.Join(src.Path, "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	want := []string{"a/b/in"}
	in := newSubvolume(t, deep, "in")
	newSubvolume(t, in.Path, "not said") // lies in another
	for i := range 300 {
		name := fmt.Sprintf("n%03d", i)
		newSubvolume(t, src.Path, name)
		want = append(want, name)
	}
	got, err := src.Nested()
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Nested = %q, %v; want %q", got, err, want)
	}
}

func TestSend(t *testing.T) {
	_, src := newSource(t)
	data := bytes.Repeat([]byte("data of a file\n"), 10000)
	write(t, filepath.Join(src.Path, "a"), data)
	s0 := snap(t, src)
	s1 := snap(t, src)
	write(t, filepath.Join(src.Path, "b"), data)
	// The data of c is in the parent too, but no more elsewhere in the snapshot.
	clone(t, filepath.Join(src.Path, "a"), filepath.Join(src.Path, "c"))
	if err := os.Remove(filepath.Join(src.Path, "a")); err != nil {
		t.Fatal(err)
	}
	s2 := snap(t, src)

	tests := []struct {
		name    string
		snap    *Subvolume
		opts    SendOptions
		version uint32
		has     []uint16
		hasNot  []uint16
	}{
		{name: "full", snap: s0, version: 2, has: []uint16{1, cmdWrite, cmdEnd}, hasNot: []uint16{cmdSnapshot}},
		{name: "version 1", snap: s0, opts: SendOptions{Version: 1}, version: 1, has: []uint16{1, cmdWrite, cmdEnd}},
		{name: "compressed", snap: s0, opts: SendOptions{Compressed: true}, version: 2, has: []uint16{cmdWrite}},
		{name: "no data", snap: s0, opts: SendOptions{NoData: true}, version: 2,
			has: []uint16{cmdUpdateExtent, cmdEnd}, hasNot: []uint16{cmdWrite}},
		{name: "increment", snap: s2, opts: SendOptions{Parent: s1}, version: 2,
			has: []uint16{cmdSnapshot, cmdWrite, cmdEnd}, hasNot: []uint16{cmdClone}},
		{name: "increment with clones", snap: s2, opts: SendOptions{Parent: s1, CloneFromParent: true}, version: 2,
			has: []uint16{cmdSnapshot, cmdWrite, cmdClone}},
		{name: "increment without data", snap: s2, opts: SendOptions{Parent: s1, NoData: true}, version: 2,
			has: []uint16{cmdSnapshot, cmdUpdateExtent}, hasNot: []uint16{cmdWrite, cmdClone}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			version, cmds := commands(t, sendAll(t, tt.snap, tt.opts))
			if want := min(tt.version, SendVersion()); version != want {
				t.Errorf("version %d, want %d", version, want)
			}
			for _, c := range tt.has {
				if !slices.Contains(cmds, c) {
					t.Errorf("no command %d in %d", c, cmds)
				}
			}
			for _, c := range tt.hasNot {
				if slices.Contains(cmds, c) {
					t.Errorf("a command %d in %d", c, cmds)
				}
			}
		})
	}

	t.Run("unchanged", func(t *testing.T) {
		_, cmds := commands(t, sendAll(t, s1, SendOptions{Parent: s0}))
		if diff := cmp.Diff([]uint16{cmdSnapshot, cmdEnd}, cmds); diff != "" {
			t.Errorf("commands (-want +got):\n%s", diff)
		}
	})
	t.Run("errors", func(t *testing.T) {
		for name, tt := range map[string]struct {
			snap *Subvolume
			opts SendOptions
			want error
		}{
			"writable":            {src, SendOptions{}, ErrNotSnapshot},
			"parent writable":     {s1, SendOptions{Parent: src}, ErrNotSnapshot},
			"version 9":           {s1, SendOptions{Version: 9}, unix.EPROTO},
			"compressed":          {s1, SendOptions{Version: 1, Compressed: true}, nil},
			"nothing to clone of": {s1, SendOptions{CloneFromParent: true}, nil},
		} {
			r, err := Send(t.Context(), tt.snap, tt.opts)
			if err == nil {
				r.Close()
			}
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", name, err, tt.want)
			}
		}
		if err := Destroy(filepath.Dir(s1.Path), s1.Name); err != nil {
			t.Fatal(err)
		}
		if _, err := Send(t.Context(), s2, SendOptions{Parent: s1}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("parent gone: %v", err)
		}
	})
}

func clone(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		t.Fatal(err)
	}
}

// bigSnapshot returns a snapshot whose stream is several times as long as a pipe.
func bigSnapshot(t *testing.T) *Subvolume {
	t.Helper()
	_, src := newSource(t)
	data := make([]byte, 12<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	write(t, filepath.Join(src.Path, "a"), data)
	return snap(t, src)
}

func TestSendClose(t *testing.T) {
	s := bigSnapshot(t)
	for n := range 4 {
		r, err := Send(t.Context(), s, SendOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, int64(n)<<20); err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			if err := Destroy(filepath.Dir(s.Path), s.Name); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("destroy while it is sent: %v", err)
			}
		}
		r.Close()
		if _, err := r.Read(make([]byte, 1<<20)); n > 0 && !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	r, err := Send(ctx, s, SendOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cause := errors.New("enough")
	time.AfterFunc(10*time.Millisecond, func() { cancel(cause) })
	for err == nil {
		_, err = r.Read(make([]byte, 1))
	}
	if !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := Send(ctx, s, SendOptions{}); !errors.Is(err, cause) {
		t.Errorf("cancelled before: %v", err)
	}
	r.Close()
	if err := Destroy(filepath.Dir(s.Path), s.Name); err != nil {
		t.Errorf("destroy after: %v", err)
	}
}

// Signals to the thread that sends do not end or repeat a send.
func TestSendSignals(t *testing.T) {
	s := bigSnapshot(t)
	want := sha256.Sum256(sendAll(t, s, SendOptions{}))
	r, err := Send(t.Context(), s, SendOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			tasks, _ := os.ReadDir("/proc/self/task")
			for _, task := range tasks {
				tid, _ := strconv.Atoi(task.Name())
				unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	h := sha256.New()
	for buf := make([]byte, 64<<10); err == nil; {
		var n int
		n, err = r.Read(buf)
		h.Write(buf[:n])
		time.Sleep(time.Millisecond) // so that the pipe is full most of the time
	}
	close(stop)
	wg.Wait()
	if err != io.EOF {
		t.Fatal(err)
	}
	if got := [32]byte(h.Sum(nil)); got != want {
		t.Error("another stream")
	}
}

// sendSlowly prints "reading", reads a stream when a line comes, and prints how that
// ended.
func sendSlowly(path string) {
	err := func() error {
		s, err := Open(path)
		if err != nil {
			return err
		}
		r, err := Send(context.Background(), s, SendOptions{})
		if err != nil {
			return err
		}
		defer r.Close()
		fmt.Println("reading")
		fmt.Scanln()
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return err
		}
		fmt.Printf("%x\n", h.Sum(nil))
		return nil
	}()
	switch {
	case errors.Is(err, ErrInterrupted):
		fmt.Println("interrupted")
	case err != nil:
		fmt.Println(err)
	}
}

// A process that is stopped while the pipe is full must not get a stream with a
// second beginning in it.
func TestSendStopped(t *testing.T) {
	s := bigSnapshot(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "BTRFS_TEST_SEND="+s.Path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	line := make([]byte, len("reading\n"))
	if _, err := io.ReadFull(out, line); err != nil {
		t.Fatal(err)
	}
	waitFor(t, cmd.Process.Pid, 'S')
	cmd.Process.Signal(unix.SIGSTOP)
	waitFor(t, cmd.Process.Pid, 'T')
	cmd.Process.Signal(unix.SIGCONT)
	waitFor(t, cmd.Process.Pid, 'S')
	fmt.Fprintln(in)
	got, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != "interrupted\n" {
		t.Errorf("the stopped process says %q", got)
	}
}

// waitFor waits until all threads of a process are in the given state. For S it
// gives the one in the ioctl some time to fill the pipe.
func waitFor(t *testing.T, pid int, state byte) {
	t.Helper()
	for calm := 0; calm < 20; {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(tasks) == 0 {
			t.Fatalf("process %d is gone", pid)
		}
		calm++
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if err != nil {
				continue
			}
			if f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]); f[0][0] != state {
				calm = 0
			}
		}
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestExplain(t *testing.T) {
	err := explain("send", "/a", unix.EAGAIN)
	if !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "dedup") {
		t.Error(err)
	}
	if got, want := explain("open", "/a", unix.ENOENT).Error(), "btrfs: open /a: no such file or directory"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// BenchmarkSnapshot takes a snapshot of a tree of many files after changing one, and
// asks what changed.
func BenchmarkSnapshot(b *testing.B) {
	for _, files := range []int{1000, 100_000} {
		b.Run(strconv.Itoa(files), func(b *testing.B) { benchmarkSnapshot(b, files) })
	}
}

func benchmarkSnapshot(b *testing.B, files int) {
	top := loopfs.New(b, loopfs.Btrfs, loopfs.Options{Size: 4 << 30}).Dir
	g, err := treegen.New(top, treegen.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := g.Fill(files); err != nil {
		b.Fatal(err)
	}
	src, err := Open(top)
	if err != nil {
		b.Fatal(err)
	}
	dir, err := src.SnapshotDir()
	if err != nil {
		b.Fatal(err)
	}
	base, err := src.Snapshot(dir, "base")
	if err != nil {
		b.Fatal(err)
	}
	var create, ask time.Duration
	var bytes int64
	for b.Loop() {
		if err := os.WriteFile(filepath.Join(top, "fill1", "file7"), []byte(time.Now().String()), 0o644); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		s, err := src.Snapshot(dir, SnapshotName("src", start, "1"))
		if err != nil {
			b.Fatal(err)
		}
		create += time.Since(start)
		start = time.Now()
		r, err := Send(b.Context(), s, SendOptions{Parent: base, NoData: true})
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if err != nil {
			b.Fatal(err)
		}
		bytes += n
		r.Close()
		ask += time.Since(start)
		if err := Destroy(dir, base.Name); err != nil {
			b.Fatal(err)
		}
		base = s
	}
	b.ReportMetric(float64(create.Microseconds())/float64(b.N)/1000, "ms/snapshot")
	b.ReportMetric(float64(ask.Microseconds())/float64(b.N)/1000, "ms/send")
	b.ReportMetric(float64(bytes)/float64(b.N), "B/send")
}
