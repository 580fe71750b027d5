package progress

import (
	"math"
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB",
		1023 << 10: "1023.0 KiB", 5 << 30: "5.0 GiB", 3 << 40: "3.0 TiB", math.MaxInt64: "8.0 EiB", -2048: "-2.0 KiB", math.MinInt64: "-8.0 EiB",
	} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %s, want %s", n, got, want)
		}
	}
	if got, want := Rate(1.5*1024*1024), "1.5 MiB/s"; got != want {
		t.Errorf("Rate = %s, want %s", got, want)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0s", 300 * time.Millisecond: "0.3s", 9949 * time.Millisecond: "9.9s", 9999 * time.Millisecond: "10s", 59600 * time.Millisecond: "1m00s",
		200 * time.Second: "3m20s", 4*time.Hour + 5*time.Minute: "4h05m", 55 * time.Hour: "2d07h", -time.Minute: "-1m00s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%d) = %s, want %s", d, got, want)
		}
	}
	if Duration(math.MinInt64) == "" || Duration(math.MaxInt64) == "" {
		t.Error("nothing for the longest")
	}
}

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "plain é 日本": "plain é 日本", "a\nb": `a\nb`, "\x1b[31m": `\x1b[31m`, "\xff\xfe": `\xff\xfe`, "a\u202eb": `a\u202eb`, "\ufffd": "\ufffd", "\ufffd\n": "\ufffd\\n",
	} {
		if got := Printable(s); got != want {
			t.Errorf("Printable(%q) = %q, want %q", s, got, want)
		}
	}
}
