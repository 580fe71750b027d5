package status

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SECRATE_TEST_WRITE_STATUS"); dir != "" {
		w, err := Start(dir, "snap home")
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		w.Source("home").Start(Uploading, 100)
		fmt.Println("started")
		select {} // until killed
	}
	os.Exit(m.Run())
}

func TestStatus(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		if _, err := Read(dir); err != ErrIdle {
			t.Errorf("Read before: %v", err)
		}
		start := time.Now()
		w, err := Start(dir, "snap")
		if err != nil {
			t.Fatal(err)
		}
		want := &Status{PID: os.Getpid(), Command: "snap", Started: start, Updated: start, Sources: []Source{}, Alive: true}
		check := func(what string) {
			t.Helper()
			got, err := Read(dir)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		check("at the start")

		home, nas := w.Source("home"), w.Source("nas")
		if w.Source("home") != home {
			t.Error("two writers for one source")
		}
		home.Start(Snapshot, -1)
		home.Start(Uploading, 1000)
		for range 10 {
			home.Add(10)
		}
		home.AddFiles(3)
		home.Item("packs/ab")
		synctest.Wait()
		check("written within the first second")

		sleep := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		sleep(time.Second)
		want.Updated = start.Add(time.Second)
		want.Sources = []Source{
			{Name: "home", Phase: Uploading, Since: start, Item: "packs/ab", Done: 100, Total: 1000, Files: 3, Rate: 100},
			{Name: "nas", Since: start, Total: -1},
		}
		check("after a second")
		if left, ok := want.Sources[0].Left(); left != 9*time.Second || !ok {
			t.Errorf("left %v, %v", left, ok)
		}

		sleep(time.Second)
		want.Updated = start.Add(2 * time.Second)
		want.Sources[0].Rate = 90 // and falling
		check("after a second without progress")

		sleep(10 * time.Minute)
		want.Updated = start.Add(29 * time.Second)
		want.Sources[0].Rate = 6
		check("when nothing happens it is not written")

		nas.Done(errors.New("lost"))
		home.SetTotal(100)
		sleep(time.Second)
		want.Updated = start.Add(10*time.Minute + 3*time.Second)
		want.Sources[0].Total, want.Sources[0].Rate = 100, 0
		want.Sources[1].Ended, want.Sources[1].Error = true, "lost"
		check("after an error")

		if _, err := Start(dir, "other"); err != ErrBusy {
			t.Errorf("a second Start: %v", err)
		}
		for range 2 {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
		home.Add(1)
		if _, err := Read(dir); err != ErrIdle {
			t.Errorf("Read after: %v", err)
		}
		w, err = Start(dir, "again")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestMode(t *testing.T) {
	dir := t.TempDir()
	w, err := Start(dir, "snap")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := RecordFailure(dir, "home", errors.New("lost"), ""); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s: mode %v", e.Name(), info.Mode())
		}
	}
	if diff := cmp.Diff([]string{resultsFile, resultsLock, statusFile, statusLock}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestKilled reads the status of a process before and after it is killed.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SECRATE_TEST_WRITE_STATUS="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("started"))
	if _, err := out.Read(line); err != nil || string(line) != "started" {
		t.Errorf("the other process says %q, %v", line, err)
	}
	for _, alive := range []bool{true, false} {
		if !alive {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait() // says that it was killed
		}
		got, err := Read(dir)
		if err != nil {
			t.Fatal(err)
		}
		want := &Status{PID: cmd.Process.Pid, Command: "snap home", Alive: alive}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Status{}, "Started", "Updated", "Sources")); diff != "" {
			t.Errorf("alive %v (-want +got):\n%s", alive, diff)
		}
	}
	// What it left behind is cleared away by the next.
	left := filepath.Join(dir, "."+statusFile+".123")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := Start(dir, "snap")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("a temporary file is left")
	}
}

func TestResults(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		check := func(want map[string]Result) {
			t.Helper()
			got, err := Results(dir)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
		}
		check(map[string]Result{})
		start := time.Now()
		if err := RecordSuccess(dir, "home", Success{Seq: 3, Snapshot: "s3", Uploaded: 17}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := RecordFailure(dir, "home", errors.New("lost"), ""); err != nil {
			t.Fatal(err)
		}
		if err := RecordFailure(dir, "nas", errors.New("gone"), ""); err != nil {
			t.Fatal(err)
		}
		home := Result{Success: &Success{Time: start, Seq: 3, Snapshot: "s3", Uploaded: 17}, Failure: &Failure{Time: start.Add(time.Hour), Error: "lost"}}
		nas := Result{Failure: &Failure{Time: start.Add(time.Hour), Error: "gone"}}
		check(map[string]Result{"home": home, "nas": nas})
		if !home.Failing() || !nas.Failing() || (Result{}).Failing() {
			t.Error("Failing is wrong")
		}
		time.Sleep(time.Hour)
		if err := RecordSuccess(dir, "home", Success{Seq: 4}); err != nil {
			t.Fatal(err)
		}
		if err := Forget(dir, "nas"); err != nil {
			t.Fatal(err)
		}
		home.Success = &Success{Time: start.Add(2 * time.Hour), Seq: 4}
		check(map[string]Result{"home": home})
		if home.Failing() {
			t.Error("Failing after a success")
		}
	})

	// One that says nothing is none.
	if err := os.WriteFile(filepath.Join(dir, resultsFile), []byte("null"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RecordFailure(dir, "home", errors.New("lost"), ""); err != nil {
		t.Error(err)
	}

	// A file that is broken is reported, and is in no run's way.
	if err := os.WriteFile(filepath.Join(dir, resultsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Results(dir); err == nil {
		t.Error("a broken file: no error")
	}
	if err := RecordFailure(dir, "home", errors.New("lost"), ""); err != nil {
		t.Error(err)
	}
	if r, err := Results(dir); err != nil || len(r) != 1 {
		t.Errorf("after a broken file: %v, %v", r, err)
	}
}

// TestConcurrent is for the race detector, and for results that get lost.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	w, err := Start(dir, "snap")
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	for i := range 4 {
		g.Go(func() {
			name := fmt.Sprint("s", i)
			s := w.Source(name)
			s.Start(Uploading, 100)
			for range 100 {
				s.Add(1)
				s.Item("x")
			}
			s.Done(nil)
			if err := RecordSuccess(dir, name, Success{}); err != nil {
				t.Error(err)
			}
			if _, err := Read(dir); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if r, err := Results(dir); err != nil || len(r) != 4 {
		t.Errorf("results %v, %v", r, err)
	}
}

// TestTimes: what was kept is read again, and what one that was killed has left goes.
func TestTimes(t *testing.T) {
	dir := t.TempDir()
	if got, err := Times(dir); err != nil || len(got) != 0 {
		t.Errorf("at first there are %v, %v", got, err)
	}
	left := filepath.Join(dir, "."+timesFile+".123")
	if err := os.WriteFile(left, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := map[string]time.Time{"snap home": time.Date(2026, 11, 25, 3, 0, 0, 1, time.UTC)}
	if err := RecordTimes(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := Times(dir)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a killed one has left: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, timesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Times(dir); err == nil {
		t.Error("half a file is read")
	}
}
