package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/s3test"
)

// update rewrites the expectations of scripts.
var update = flag.Bool("update", false, "rewrite what scripts compare with")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"secrate": main})
}

// TestScripts runs those that need nothing: their snapshots come from recorded streams.
func TestScripts(t *testing.T) { runScripts(t, "any", nil) }

// TestBtrfsScripts runs those on a real Btrfs, on which each has the directory $POOL.
func TestBtrfsScripts(t *testing.T) {
	testenv.Need(t, testenv.Tool("btrfs"), testenv.Tool("setpriv"))
	base := t.TempDir()
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{Base: base})
	// One of them is not root for a while.
	if err := openPath(fs.Dir); err != nil {
		t.Fatal(err)
	}
	openCommand(t)
	runScripts(t, "btrfs", func(env *testscript.Env) error {
		pool, err := os.MkdirTemp(fs.Dir, "script-")
		env.Setenv("POOL", pool)
		return errors.Join(err, os.Chmod(pool, 0o755), openPath(env.WorkDir))
	})
}

// TestS3Scripts runs those that need an S3 server: $S3 is an address of its own for
// each, and the credentials are in the environment.
func TestS3Scripts(t *testing.T) {
	s := s3test.Start(t, s3test.VersityGW)
	runScripts(t, "s3", func(env *testscript.Env) error {
		for _, kv := range s.Env() {
			k, v, _ := strings.Cut(kv, "=")
			env.Setenv(k, v)
		}
		env.Setenv("S3", s.URL(filepath.Base(env.WorkDir)))
		return nil
	})
}

// TestDeviceScripts runs those that restore onto a loop device of 1 MiB, $DEVICE.
func TestDeviceScripts(t *testing.T) {
	testenv.Need(t, loopfs.Needs(loopfs.Ext4)...)
	dev := loopfs.NewDevice(t, 1<<20)
	runScripts(t, "device", func(env *testscript.Env) error {
		env.Setenv("DEVICE", dev)
		return nil
	})
}

// openCommand lets other users run the command, with the script command as.
func openCommand(t *testing.T) {
	bin, err := exec.LookPath("secrate")
	if err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(openPath(bin), openPath(real)); err != nil {
		t.Fatal(err)
	}
}

// openPath lets other users get at path, which is below the directory of temporary files.
func openPath(path string) error {
	for ; path != os.TempDir() && len(path) > 1; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func runScripts(t *testing.T, dir string, setup func(*testscript.Env) error) {
	corpus, err := filepath.Abs("../../sendstream/btrfs/testdata/corpus")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script", dir),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("SECRATE_CONFIG", filepath.Join(env.WorkDir, "etc", "config.toml"))
			env.Setenv("SECRATE_STATE", filepath.Join(env.WorkDir, "state"))
			env.Setenv("TZ", "UTC")
			env.Setenv("CORPUS", corpus)
			env.Setenv("ZFS_CORPUS", filepath.Join(corpus, "../../../zfs/zpl/testdata/corpus"))
			if setup != nil {
				return setup(env)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"stream": recorded, "cut": cut, "flip": flip, "hold": hold, "scrub": scrub, "mode": mode, "as": as, "spoil": spoil,
		},
	})
}

// stream OUT CASE/STREAM… writes recorded send streams, one behind the other; those of ZFS
// are called zfs:CASE/STREAM.
func recorded(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: stream OUT CASE/STREAM...")
	}
	var all []byte
	for _, name := range args[1:] {
		path := filepath.Join(ts.Getenv("CORPUS"), name+".bsend.zst")
		if zfs, ok := strings.CutPrefix(name, "zfs:"); ok {
			path = filepath.Join(ts.Getenv("ZFS_CORPUS"), zfs+".zsend.zst")
		}
		f, err := os.Open(path)
		ts.Check(err)
		r, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
		ts.Check(err)
		b, err := io.ReadAll(r)
		ts.Check(err)
		r.Close()
		f.Close()
		all = append(all, b...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), all, 0o600))
}

// cut FILE takes the last 10 bytes of a file away.
func cut(ts *testscript.TestScript, neg bool, args []string) {
	b := read(ts, neg, args)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b[:len(b)-10], 0o600))
}

// flip FILE changes a bit near the end of a file.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	b := read(ts, neg, args)
	b[len(b)-40] ^= 4
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

func read(ts *testscript.TestScript, neg bool, args []string) []byte {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: cut FILE or flip FILE")
	}
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	return b
}

// hold DIR COMMAND locks a state directory until the script ends, as the command does.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: hold DIR COMMAND")
	}
	lock, err := config.Lock(context.Background(), ts.MkAbs(args[0]), args[1], 0)
	ts.Check(err)
	ts.Defer(func() { ts.Check(lock.Unlock()) })
}

// scrubs are what differs from run to run.
var scrubs = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{9})?Z`), "TIME"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "TIME"},
	{regexp.MustCompile(`"(uploaded_bytes|bytes|read|pack_bytes|metadata_bytes)":[1-9]\d*`), `"$1":N`},
	{regexp.MustCompile(`("stat":.*"stored_bytes"):[1-9]\d*`), "$1:N"}, // compressed
	{regexp.MustCompile(`"period":"\d{4}-\d\d(-\d\d)?"`), `"period":"PERIOD"`},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "SHA256"},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "ID"},
	{regexp.MustCompile(`"host":"[^"]*"`), `"host":"HOST"`},
}

// scrub FROM TO copies a file, or stdout or stderr, without what differs from run to
// run.
func scrub(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: scrub FROM TO")
	}
	text := ts.ReadFile(args[0])
	for _, s := range scrubs {
		text = s.re.ReplaceAllString(text, s.by)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}

// mode TEXT FILE… asserts permission bits, written as ls does: rw-------.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode TEXT FILE...")
	}
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := info.Mode().Perm().String()[1:]; got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", name, info.Mode().Perm(), args[0])
		}
	}
}

// spoil FILE TEXT changes a byte of every TEXT that is in FILE, which may be large.
func spoil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: spoil FILE TEXT")
	}
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	text := []byte(args[1])
	b := make([]byte, 1<<20)
	found := 0
	for off := int64(0); ; {
		n, err := f.ReadAt(b, off)
		for at := 0; ; {
			i := bytes.Index(b[at:n], text)
			if i < 0 {
				break
			}
			at += i + 1
			_, err := f.WriteAt([]byte{text[1] ^ 1}, off+int64(at))
			ts.Check(err)
			found++
		}
		if err == io.EOF {
			break
		}
		ts.Check(err)
		off += int64(n - len(text) + 1)
	}
	if found == 0 {
		ts.Fatalf("%q is not in %s", text, args[0])
	}
}

// as UID COMMAND… runs a command as another user, who owns what secrate keeps here.
func as(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: as UID command [args...]")
	}
	uid, err := strconv.Atoi(args[0])
	ts.Check(err)
	path, err := exec.LookPath(args[1])
	ts.Check(err)
	cmd := exec.Command(path, args[2:]...)
	for _, name := range []string{"HOME", "PATH", "SECRATE_CONFIG", "SECRATE_STATE", "TMPDIR"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Dir = ts.MkAbs(".")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	out, err := cmd.CombinedOutput()
	ts.Check(os.WriteFile(ts.MkAbs("as.out"), out, 0o666))
	ts.Logf("%s%v", out, err)
	if neg == (err == nil) {
		ts.Fatalf("as %s: %v", strings.Join(args, " "), err)
	}
}
