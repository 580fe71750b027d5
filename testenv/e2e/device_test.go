package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/s3test"
)

// newImage is a source with a sparse image, which it returns.
func newImage(t *testing.T, m *machine) []byte {
	t.Helper()
	sub := newSubvolume(t, filepath.Join(loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir, "sub"))
	image := make([]byte, 48<<20)
	random := rand.NewChaCha8([32]byte{1})
	f, err := os.Create(filepath.Join(sub, "volume"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int{{1 << 20, 3 << 20}, {10<<20 + 4096, 4096}, {20 << 20, 5 << 20}, {40 << 20, 1 << 20}} {
		data := image[r[0]:][:r[1]]
		random.Read(data)
		if _, err := f.WriteAt(data, int64(r[0])); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(len(image))); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m.must("source", "add", "vm", sub)
	m.must("snap", "vm")
	return image
}

// dirtyDevice is a loop device that is full of something else, larger than an image.
func dirtyDevice(t *testing.T, image []byte) (dev string, refill func() []byte) {
	t.Helper()
	full := bytes.Repeat([]byte{0xa5}, len(image)+1<<20)
	dev = loopfs.NewDevice(t, int64(len(full)))
	return dev, func() []byte {
		if err := os.WriteFile(dev, full, 0); err != nil {
			t.Fatal(err)
		}
		return full
	}
}

func checkDevice(t *testing.T, dev string, image []byte) {
	t.Helper()
	b, err := os.ReadFile(dev)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[:len(image)], image) {
		t.Errorf("%s is not the image", dev)
	}
	if rest := b[len(image):]; len(bytes.Trim(rest, "\xa5")) > 0 {
		t.Errorf("%s is not as it was behind the image", dev)
	}
}

// TestCrashDevice kills a restore onto a device at some of the writes to it. The same
// command again completes it, whatever is there by then.
func TestCrashDevice(t *testing.T) {
	needs(t)
	m := writer(t, "")
	image := newImage(t, m)
	dev, refill := dirtyDevice(t, image)
	restore := []string{"restore", "vm:volume", "--at", "latest", "--to", dev, "--into-existing", "--identity", m.identity}
	refill()
	m.must(restore...)
	checkDevice(t, dev, image)
	killed := 0
	for n := 1; ; n += 2 {
		full := refill()
		o := m.run(append([]string{fmt.Sprint("SECRATE_CRASH=", n)}, restore...)...)
		if o.status != -1 {
			o.expect(t, 0)
			break
		}
		killed++
		if b, err := os.ReadFile(dev); err != nil || bytes.Equal(b, full) {
			t.Errorf("killed at %d: nothing has changed, %v", n, err)
		}
		m.must(restore...)
		checkDevice(t, dev, image)
	}
	if killed < 5 {
		t.Errorf("killed at %d points", killed)
	}
}

// TestInterruptDevice interrupts a restore onto a device when nothing more comes from the
// repository. It says what has become of the device.
func TestInterruptDevice(t *testing.T) {
	needs(t)
	server := s3test.Start(t, s3test.VersityGW)
	m := writer(t, server.URL("device"), server.Env()...)
	image := newImage(t, m)
	dev, refill := dirtyDevice(t, image)
	refill()
	var once sync.Once
	stalled := make(chan struct{})
	stall := s3test.Stall(1000)
	proxy := s3test.NewProxy(t, server.Endpoint, func(_ int, r *http.Request) s3test.Fault {
		if r.Method != "GET" || !strings.Contains(r.URL.Path, "/packs/") {
			return nil
		}
		once.Do(func() { close(stalled) })
		return stall
	})
	bare := m.other(t)
	args := func(repo string) []string {
		return []string{"restore", "vm:volume", "--at", "latest", "--to", dev, "--into-existing", "--repo", repo, "--identity", m.identity}
	}
	c := bare.cmd(args(server.URLVia(proxy.URL, "device"))...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stalled:
	case <-time.After(time.Minute):
		t.Error("it does not read a pack")
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	c.Wait() // the status says it
	o := outcome{args: c.Args[1:], status: c.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	o.expect(t, 3, dev+" IS INCOMPLETE", "error: interrupted", "hint: the same command writes all of it again")
	if o.stdout != "" {
		t.Errorf("it says that something was done: %v", o)
	}
	bare.must(args(server.URL("device"))...)
	checkDevice(t, dev, image)
}
