package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/secrate/secrate/testenv/loopfs"
)

// TestDaemonOverflow has more events than the kernel keeps while the daemon does not run: it says
// so, compares everything, and nothing is missed.
func TestDaemonOverflow(t *testing.T) {
	needs(t)
	to := newTarget(t)
	dir := filepath.Join(loopfs.New(t, loopfs.Ext4, loopfs.Options{}).Dir, "tree")
	p := func(format string, args ...any) string { return filepath.Join(dir, fmt.Sprintf(format, args...)) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		mustWrite(t, p("d%d/f", i), fmt.Sprint("file ", i))
	}
	m := writer(t, "")
	m.watched("w", dir)
	s := m.daemon()
	s.quiet("w")
	must(s.cmd.Process.Signal(syscall.SIGSTOP))
	for i := range 50_000 { // made, written to, closed, removed
		name := p("d%d/t%d", i%100, i)
		must(os.WriteFile(name, []byte("x"), 0o644))
		must(os.Remove(name))
	}
	// What matters comes last, when the queue has long been full.
	for i := range 50 {
		must(os.Rename(p("d%d", i), p("e%d", i)))
		mustWrite(t, p("e%d/g", i), fmt.Sprint("new in ", i))
		mustWrite(t, p("d%d/f", 50+i), fmt.Sprint("changed ", i))
	}
	must(s.cmd.Process.Signal(syscall.SIGCONT))
	wait(t, s, "it says what happened", func() bool {
		w := m.status().Sources["w"].Daemon.Watch
		return strings.Contains(w.All, "the kernel's queue of events ran over")
	})
	s.quiet("w")
	all := m.history("w")
	m.checkRestored(to, "w", all[len(all)-1].Seq, scan(t, dir), unlike)
	// And it goes on: what was moved is watched where it is.
	mustWrite(t, p("e7/g"), "after that")
	s.has("w", "e7/g", "after that")
	s.stop()
}
