package open_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/open"
)

func TestStore(t *testing.T) {
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	t.Setenv("AWS_PROFILE", "")
	d := t.TempDir()
	t.Chdir(d)
	if err := os.Mkdir(filepath.Join(d, "50% off"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		address string
		o       open.Options
		want    string // String of the store
		is      error
		err     string
	}{
		{address: d, want: "file://" + d},
		{address: ".", want: "file://" + d},
		{address: "file://" + d, want: "file://" + d},
		{address: "file://" + d + "/50%25%20off", want: "file://" + d + "/50%25%20off"},
		{address: filepath.Join(d, "50% off"), want: "file://" + d + "/50%25%20off"},
		{address: d + "/new", is: store.ErrNotExist, err: "no such directory"},
		{address: d + "/new/er", o: open.Options{Create: true}, want: "file://" + d + "/new/er"},
		{address: "s3://b/p", o: open.Options{UploadLimit: 1000}, want: "s3://b/p"},
		{address: "s3://id:secret@b/p", err: "credentials do not belong"},
		{address: "file://relative/path", err: "not an absolute path"},
		{address: "file:///a?b", err: "not an absolute path"},
		{address: "sftp://host/p", err: `no kind of destination called "sftp"`},
		{address: "", err: "address is empty"},
	} {
		t.Run(tt.address, func(t *testing.T) {
			s, err := open.Store(t.Context(), tt.address, tt.o)
			if tt.err != "" {
				if err == nil || s != nil || !strings.Contains(err.Error(), tt.err) || tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("%v, error %v, want %q in it", s, err, tt.err)
				} else if store.Hint(err) == "" {
					t.Errorf("error %v has no hint", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.String() != tt.want {
				t.Errorf("String is %s, want %s", s, tt.want)
			}
			if err := open.Close(s); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

// TestUploadLimitAt has a limit by time asked about, and counts it instead of the other.
func TestUploadLimitAt(t *testing.T) {
	var asked atomic.Int32
	s, err := open.Store(t.Context(), t.TempDir(), open.Options{UploadLimit: 1, UploadLimitAt: func(time.Time) int64 {
		asked.Add(1)
		return 0
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close(s)
	// At one byte a second this would take longer than any test may.
	const size = 1 << 20
	if err := s.Put(t.Context(), "a", strings.NewReader(strings.Repeat("x", size)), size); err != nil {
		t.Fatal(err)
	}
	if asked.Load() == 0 {
		t.Error("nobody asked for the limit")
	}
}
