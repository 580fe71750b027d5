package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secrate/secrate/testenv/loopfs"
)

// TestCrashScan kills secrate snap of an ordinary directory at each of its crash points in turn,
// after things were moved, edited, made and removed. The same command again must complete it:
// the history has what the directory has, in one point in time more, and no more than that.
func TestCrashScan(t *testing.T) {
	needs(t)
	m := writer(t, "")
	to := newTarget(t)
	base := loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 1 << 30}).Dir
	log := filepath.Join(m.dir, "points")
	var points []string
	for n := 1; ; n++ {
		source := fmt.Sprint("d", n)
		dir := filepath.Join(base, source)
		p := func(name string) string { return filepath.Join(dir, name) }
		write := func(name, text string) error { return os.WriteFile(p(name), []byte(text), 0o644) }
		text := strings.Repeat(fmt.Sprintf("line %d of a text\n", n), 5000)
		err := errors.Join(os.MkdirAll(p("a/b"), 0o755), write("a/b/text", text), write("a/gone", "x"), write("edited", text+"1"), os.Link(p("edited"), p("linked")))
		if err != nil {
			t.Fatal(err)
		}
		m.must("source", "add", source, dir, "--mode", "files")
		m.must("snap", source)
		err = errors.Join(os.Rename(p("a/b"), p("moved")), os.RemoveAll(p("a")), write("a", "a file now"), write("edited", text+"2"),
			os.Mkdir(p("new"), 0o700), write("new/text", strings.Repeat(fmt.Sprintf("more %d\n", n), 9000)))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(log); err != nil {
			t.Fatal(err)
		}
		o := m.run(fmt.Sprint("SECRATE_CRASH=", n), "SECRATE_CRASH_COUNT="+log, "snap", source)
		killed := o.status == -1
		if killed {
			passed, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(passed)), "\n")
			points = append(points, lines[len(lines)-1])
			o = m.run("snap", source)
		}
		o.expect(t, 0)
		if all := m.must("snapshots", source, "--json").snapshots(t); len(all) != 2 {
			t.Errorf("killed at %d: %d snapshots", n, len(all))
		}
		m.checkRestored(to, source, 2, scan(t, dir), unset)
		if left, err := filepath.Glob(filepath.Join(m.state(), "journal", "*")); err != nil || len(left) > 0 {
			t.Errorf("killed at %d: the journal still has %q, %v", n, left, err)
		}
		if !killed {
			break
		}
	}
	t.Logf("killed at %s", shorten(points))
	if len(points) < 10 {
		t.Errorf("killed at %d points only", len(points))
	}
	m.must("verify", "--read-data", "--identity", m.identity)
}
