package s3

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	const base = 500 * time.Millisecond
	for _, tt := range []struct {
		attempt int
		x       float64
		want    time.Duration
	}{
		{1, 0.5, base},
		{1, 0, base / 2},
		{2, 0.5, 2 * base},
		{4, 0.5, 8 * base},
		{7, 0.5, maxBackoff},
		{1000, 0.5, maxBackoff},
		{1000, 1, maxBackoff * 3 / 2},
	} {
		if got := backoff(base, tt.attempt, tt.x); got != tt.want {
			t.Errorf("backoff after attempt %d, x %v: %v, want %v", tt.attempt, tt.x, got, tt.want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 3-9/*", "bytes 9-3/10", "bytes 0-9/9", "bytes -1-2/3", "bytes */5", "", "bytes 0-9223372036854775807/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := parseContentRange(s)
		if err == nil && (first < 0 || last < first || total >= 0 && total <= last || total < -1) {
			t.Errorf("%q is taken for %d to %d of %d", s, first, last, total)
		}
	})
}
