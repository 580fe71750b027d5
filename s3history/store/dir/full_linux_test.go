package dir

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/secrate/secrate/s3history/store"
)

// A full disk gives an error, leaves no object and no garbage, and what was
// stored before stays.
func TestFull(t *testing.T) {
	d := t.TempDir()
	if err := syscall.Mount("secrate-test", d, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("SKIP-MISSING: the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(d, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := put(t.Context(), s, "a", "before"); err != nil {
		t.Fatal(err)
	}
	err = put(t.Context(), s, "b", strings.Repeat("x", 1<<20))
	if !errors.Is(err, syscall.ENOSPC) || store.Hint(err) == "" {
		t.Errorf("Put on a full disk: %v, hint %q, want ENOSPC and a hint", err, store.Hint(err))
	}
	if _, err := s.Stat(t.Context(), "b"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("Stat of what did not fit: %v, want ErrNotExist", err)
	}
	if err := put(t.Context(), s, "c", strings.Repeat("x", 100<<10)); err != nil {
		t.Errorf("Put of what fits, after what did not: %v", err)
	}
}
