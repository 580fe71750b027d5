package dir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/storetest"
	"github.com/secrate/secrate/testenv/loopfs"
)

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(ctx context.Context, s store.Store, key, content string) error {
	return s.Put(ctx, key, strings.NewReader(content), int64(len(content)))
}

func TestContract(t *testing.T) {
	newDir := func(t testing.TB) store.Store { return open(t, t.TempDir()) }
	storetest.Run(t, newDir)
	storetest.RunExclusive(t, newDir)
}

// TestContractElsewhere runs the contract on other file systems: those that can be made
// here, and SECRATE_TEST_DIRS, a list of directories on more, such as a FAT, an NFS or a
// ZFS mount.
func TestContractElsewhere(t *testing.T) {
	dirs := filepath.SplitList(os.Getenv("SECRATE_TEST_DIRS"))
	for _, k := range []loopfs.Kind{loopfs.Btrfs, loopfs.Ext4, loopfs.XFS} {
		dirs = append(dirs, loopfs.New(t, k, loopfs.Options{}).Dir)
	}
	for _, d := range dirs {
		t.Run(d, func(t *testing.T) {
			newDir := func(t testing.TB) store.Store {
				tmp, err := os.MkdirTemp(d, "secrate-")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(tmp) })
				return open(t, tmp)
			}
			storetest.Run(t, newDir)
			storetest.RunExclusive(t, newDir)
		})
	}
}

func TestModes(t *testing.T) {
	p := filepath.Join(t.TempDir(), "new", "store")
	s, err := Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := put(t.Context(), s, "packs/3f/a", "x"); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	err = filepath.WalkDir(p, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		rel, _ := filepath.Rel(p, name)
		got[rel] = fi.Mode().String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		".": "drwx------", "packs": "drwx------", "packs/3f": "drwx------", "~tmp": "drwx------",
		"packs/3f/a": "-r--------",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
}

// What is in the directory but is no object is neither shown nor followed.
func TestStrangers(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := t.TempDir()
	s := open(t, d)
	if err := put(t.Context(), s, "a/object", "x"); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{
		"link": secret, "dirlink": outside, "a/up": "../../..", "a/inside": "object", "loop": "loop",
	} {
		if err := os.Symlink(to, filepath.Join(d, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(d, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Upper", "sp ace", "~tmp/x", "a/.#lock"} {
		if err := os.WriteFile(filepath.Join(d, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var keys []string
	for o, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	if diff := cmp.Diff([]string{"a/object"}, keys); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	for _, key := range []string{"link", "dirlink", "a/inside", "loop", "pipe"} {
		if _, err := s.Get(t.Context(), key, 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("Get %s: %v, want ErrNotExist", key, err)
		}
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("Stat %s: %v, want ErrNotExist", key, err)
		}
		if err := put(t.Context(), s, key, "x"); err == nil || errors.Is(err, store.ErrExist) {
			t.Errorf("Put %s: %v, want an error that is not ErrExist", key, err)
		}
	}
	for _, key := range []string{"dirlink/secret", "a/up/etc/passwd"} {
		if _, err := s.Get(t.Context(), key, 0, -1); err == nil {
			t.Errorf("Get %s led out of the store", key)
		}
		if err := put(t.Context(), s, path.Dir(key)+"/new", "x"); err == nil {
			t.Errorf("Put beside %s led out of the store", key)
		}
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside the store there are now %v, %v", entries, err)
	}
}

func TestStale(t *testing.T) {
	d := t.TempDir()
	if err := os.Mkdir(filepath.Join(d, tmpDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"young": time.Hour, "old": staleAfter + time.Hour} {
		f := filepath.Join(d, tmpDir, name)
		if err := os.WriteFile(f, []byte("half an obj"), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(f, then, then); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, d)
	if err := put(t.Context(), s, "a", "x"); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(d, tmpDir, "*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "young" {
		t.Errorf("left in %s: %v, %v; want young alone", tmpDir, left, err)
	}
}

// Without hard links the rename keeps the same promise.
func TestRenameNoReplace(t *testing.T) {
	s := open(t, t.TempDir())
	for _, name := range []string{"a", "b"} {
		if err := s.root.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := renameNoReplace(s.root, "a", "b")
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("SKIP-MISSING: a rename that does not replace, on this system")
	}
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("rename to a name that is taken: %v, want fs.ErrExist", err)
	}
	if err := renameNoReplace(s.root, "a", "c"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"b": "b", "c": "a"} {
		if got, err := s.root.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
		}
	}
}

func TestErrors(t *testing.T) {
	d := t.TempDir()
	if err := os.WriteFile(filepath.Join(d, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, missing := Open(filepath.Join(d, "missing"))
	_, notDir := Open(filepath.Join(d, "file"))
	s := open(t, d)
	for _, tt := range []struct {
		name    string
		err     error
		is      error
		message string // what it says
		hint    string // what the hint says
	}{
		{name: "not mounted", err: missing, is: store.ErrNotExist, message: "there is no such directory", hint: "is the disk mounted?"},
		{name: "not a directory", err: notDir, message: "/file: not a directory"},
		{name: "object in the way", err: put(t.Context(), s, "file/a", "x"), message: "put file/a at file://" + d + ": a component of the key is an object already"},
		{name: "name too long", err: put(t.Context(), s, strings.Repeat("a", 300), "x"), is: syscall.ENAMETOOLONG, message: "file name too long"},
		{name: "no permission", err: explain("put", "a", "b", syscall.EACCES), is: store.ErrPermission, message: "put a at b: permission denied", hint: "must belong to"},
		{name: "read-only", err: explain("put", "a", "b", syscall.EROFS), is: store.ErrPermission, message: "read-only file system", hint: "mounted read-only"},
		{name: "full", err: explain("put", "a", "b", syscall.ENOSPC), is: syscall.ENOSPC, message: "no space left", hint: "add a destination"},
		{name: "quota", err: explain("put", "a", "b", syscall.EDQUOT), is: syscall.EDQUOT, message: "quota", hint: "quota"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.err == nil {
				t.Fatal("no error")
			}
			if tt.is != nil && !errors.Is(tt.err, tt.is) {
				t.Errorf("%v is not %v", tt.err, tt.is)
			}
			if !strings.Contains(tt.err.Error(), tt.message) {
				t.Errorf("error is %q, want %q in it", tt.err, tt.message)
			}
			if h := store.Hint(tt.err); !strings.Contains(h, tt.hint) {
				t.Errorf("hint is %q, want %q in it", h, tt.hint)
			}
		})
	}
}

func TestProbe(t *testing.T) {
	s := open(t, t.TempDir())
	for range 2 {
		got, err := store.Probe(t.Context(), store.Limit(s, 1<<30), "probe")
		if err != nil {
			t.Fatal(err)
		}
		want := store.Capabilities{
			Put: store.Yes, Get: store.Yes, List: store.Yes, ConditionalPut: store.Yes, Range: store.Yes,
			ObjectLock: "none", Versioning: "off",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Probe (-want +got):\n%s", diff)
		}
	}
	n := 0
	for range s.List(t.Context(), "") {
		n++
	}
	if n != 1 {
		t.Errorf("two probes left %d objects, want 1", n)
	}
}

// TestKill runs itself as a process that puts objects as fast as it can, kills it
// at moments of its own choosing, and looks for torn objects.
func TestKill(t *testing.T) {
	if d := os.Getenv("DIR_TEST_CHILD"); d != "" {
		putForever(t, d)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "DIR_TEST_CHILD="+d)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil { // it has begun
			t.Fatal(err)
		}
		// A moment to die at, not a moment to wait for something.
		time.Sleep(time.Duration(rng.IntN(40_000)) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // killed: the error says so
	}
	s := open(t, d)
	objects := 0
	for o, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Get(t.Context(), o.Key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		if name := fmt.Sprintf("%x", sha256.Sum256(content)); path.Base(o.Key) != name {
			t.Errorf("object %s is torn: its %d bytes have the sum %s", o.Key, len(content), name)
		}
		objects++
	}
	if objects == 0 {
		t.Error("no child stored anything")
	}
	left, err := filepath.Glob(filepath.Join(d, tmpDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d kills left %d whole objects and %d files in %s", rounds, objects, len(left), tmpDir)
}

func putForever(t *testing.T, d string) {
	s := open(t, d)
	os.Stdout.Write([]byte("+"))
	var seed [32]byte
	copy(seed[:], fmt.Sprint(os.Getpid(), time.Now().UnixNano()))
	rng := rand.NewChaCha8(seed)
	for n := 0; ; n++ {
		content := make([]byte, 1+rng.Uint64()%(256<<10))
		rng.Read(content)
		sum := fmt.Sprintf("%x", sha256.Sum256(content))
		if err := s.Put(t.Context(), "packs/"+sum[:2]+"/"+sum, bytes.NewReader(content), int64(len(content))); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int64{1 << 10, 16 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := open(b, b.TempDir())
			content := bytes.NewReader(make([]byte, size))
			b.SetBytes(size)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				if err := s.Put(b.Context(), fmt.Sprintf("packs/%d", n), content, size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
