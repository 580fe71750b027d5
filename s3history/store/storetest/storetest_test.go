package storetest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/dir"
)

func TestMem(t *testing.T) {
	newMem := func(testing.TB) store.Store { return NewMem() }
	Run(t, newMem)
	RunExclusive(t, newMem)
}

func TestFault(t *testing.T) {
	for _, tt := range []struct {
		name    string
		n       int64
		applied bool
		stored  int
	}{
		{name: "lost request", n: 2, stored: 2},
		{name: "lost reply", n: 2, applied: true, stored: 3},
		{name: "never", n: 4, stored: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := NewMem()
			f := &Fault{Store: mem, N: tt.n, Applied: tt.applied}
			for i, key := range []string{"a", "b", "c"} {
				err := putString(t.Context(), f, key, key)
				if want := int64(i+1) == tt.n; errors.Is(err, ErrFault) != want {
					t.Errorf("Put %s: %v, want a fault: %v", key, err, want)
				}
			}
			if f.Hit() != (tt.n <= 3) {
				t.Errorf("Hit is %v", f.Hit())
			}
			if got := len(mem.Keys()); got != tt.stored {
				t.Errorf("%d objects stored, want %d", got, tt.stored)
			}
		})
	}
}

// TestKillFromEnv runs itself as the process that is killed.
func TestKillFromEnv(t *testing.T) {
	if path := os.Getenv("STORETEST_CHILD"); path != "" {
		d, err := dir.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s, err := KillFromEnv(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"a", "b", "c"} {
			mustPut(t, s, key, key)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kill   string
		stored int
		lives  bool
	}{
		{"put:1:before", 0, false}, {"put:2:before", 1, false}, {"put:2:after", 2, false}, {"put:4:after", 3, true}, {"", 3, true},
	} {
		path := t.TempDir()
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestKillFromEnv$")
		cmd.Env = append(os.Environ(), "STORETEST_CHILD="+path, KillEnv+"="+tt.kill)
		out, err := cmd.CombinedOutput()
		if (err == nil) != tt.lives {
			t.Errorf("%s: %v\n%s", tt.kill, err, out)
		}
		stored, err := filepath.Glob(filepath.Join(path, "[a-z]"))
		if err != nil || len(stored) != tt.stored {
			t.Errorf("%s: %v stored, %v, want %d", tt.kill, stored, err, tt.stored)
		}
	}
	t.Setenv(KillEnv, "put:0:before")
	if _, err := KillFromEnv(NewMem()); err == nil {
		t.Error("KillFromEnv takes put:0:before")
	}
}
