package delta

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestPatch(t *testing.T) {
	text, random := textBytes(300<<10), randomBytes(1, 300<<10)
	for _, tt := range []struct {
		name       string
		base, data []byte
		max        int // bytes of the patch
	}{
		{"both empty", nil, nil, 9},
		{"empty", text, nil, 9},
		{"no base", nil, []byte("secrate"), 7 + 9},
		{"tiny base", []byte("s"), []byte("secrate"), 7 + 9},
		{"equal and tiny", []byte("secrate"), []byte("secrate"), 7 + 9},
		{"one byte", random[:1], random[1:2], 1 + 9},
		{"equal", random, random, 100},
		{"equal and small", random[:4096], random[:4096], 30},
		{"one byte changed", random, overwrite(random, 1000, []byte("x")), 100},
		{"scattered", random, scatter(random, 200, 3), len(random) / 20},
		{"inserted at front", random, join([]byte("one line\n"), random), 120},
		{"the last of a long base", random, random[290<<10:], 60},
		{"the first of a long base", random, random[:10<<10], 60},
		{"all zeros", make([]byte, 1<<20), make([]byte, 1<<20), 200},
		{"nothing in common", text, random, len(random) + 30},
		{"a formatted dictionary's magic", join([]byte("\x37\xa4\x30\xec"), random[:4096]), random[:4096], 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			patch := Patch(tt.base, tt.data)
			got, err := ApplyPatch(tt.base, patch, len(tt.data))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, tt.data) {
				t.Fatal("another result")
			}
			if len(patch) > tt.max {
				t.Errorf("patch of %d bytes, want %d at most", len(patch), tt.max)
			}
			for _, size := range []int{len(tt.data) - 1, len(tt.data) + 1, -1, 1 << 40} {
				if got, err := ApplyPatch(tt.base, patch, size); !errors.Is(err, ErrPatch) || got != nil {
					t.Errorf("size %d: %d bytes, %v", size, len(got), err)
				}
			}
			for cut := range min(len(patch), 200) {
				if _, err := ApplyPatch(tt.base, patch[:cut], len(tt.data)); !errors.Is(err, ErrPatch) {
					t.Errorf("cut at %d: %v", cut, err)
				}
			}
		})
	}
}

func TestPatchRefuses(t *testing.T) {
	base := randomBytes(1, 4096)
	for _, tt := range []struct {
		name, patch string
		size        int
	}{
		{"nothing", "", 0},
		{"not zstd", "secrate, secrate", 16},
		{"skippable frame", "\x50\x2a\x4d\x18\x00\x00\x00\x00", 0},
		{"no content size", "\x28\xb5\x2f\xfd\x00\x00\x01\x00\x00", 0},
		{"a dictionary id", "\x28\xb5\x2f\xfd\x21\x07\x00\x01\x00\x00", 0},
		{"more than it says", "\x28\xb5\x2f\xfd\x20\x04\x43\x00\x00A", 4},
		{"less than it says", "\x28\xb5\x2f\xfd\x20\x04\x1b\x00\x00A", 4},
		{"another frame after", "\x28\xb5\x2f\xfd\x20\x04\x23\x00\x00A" + "\x28\xb5\x2f\xfd\x20\x04\x23\x00\x00A", 4},
	} {
		if got, err := ApplyPatch(base, []byte(tt.patch), tt.size); !errors.Is(err, ErrPatch) || got != nil {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
	// The same frame, but right.
	if got, err := ApplyPatch(base, []byte("\x28\xb5\x2f\xfd\x20\x04\x23\x00\x00A"), 4); err != nil || string(got) != "AAAA" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestPatchProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base, data := versions(t)
		got, err := ApplyPatch(base, Patch(base, data), len(data))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Fatal("another result")
		}
	})
}

func TestPatchConcurrently(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			base := randomBytes(uint64(i), 20<<10)
			for n := range 10 {
				data := scatter(base, 300, uint64(n))
				got, err := ApplyPatch(base, Patch(base, data), len(data))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("another result, %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// TestZstdAppliesPatch has the reference decoder apply patches, as docs/recovery.md does by hand.
func TestZstdAppliesPatch(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("no zstd command here")
	}
	dir := t.TempDir()
	random := randomBytes(1, 1<<20)
	for _, tt := range []struct {
		name       string
		base, data []byte
	}{
		{"small", random[:5000], scatter(random[:5000], 200, 1)},
		{"large", random, scatter(random, 200, 1)},
		{"far end of a long base", random, random[:1000]},
		{"empty", random, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base, patch := filepath.Join(dir, "base"), filepath.Join(dir, "patch")
			if err := os.WriteFile(base, tt.base, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(patch, Patch(tt.base, tt.data), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := exec.CommandContext(t.Context(), "zstd", "-q", "-d", "-c", "-D", base, patch).Output()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, tt.data) {
				t.Error("another result")
			}
		})
	}
}

func FuzzApplyPatch(f *testing.F) {
	base := textBytes(2000)
	for _, data := range [][]byte{nil, base, base[100:300], scatter(base, 50, 1), make([]byte, 500)} {
		f.Add(base, Patch(base, data), len(data))
	}
	f.Add([]byte(nil), Patch(nil, base), len(base))
	f.Fuzz(func(t *testing.T, base, patch []byte, size int) {
		size &= 1<<20 - 1 // the caller's to bound
		got, err := ApplyPatch(base, patch, size)
		if err == nil && len(got) != size {
			t.Errorf("%d bytes, want %d", len(got), size)
		}
		if err != nil && (got != nil || !errors.Is(err, ErrPatch)) {
			t.Errorf("%d bytes, error %v", len(got), err)
		}
	})
}

func FuzzPatch(f *testing.F) {
	base := textBytes(2000)
	f.Add(base, base[100:300])
	f.Add(base[:5], scatter(base, 50, 1))
	f.Fuzz(func(t *testing.T, base, data []byte) {
		got, err := ApplyPatch(base, Patch(base, data), len(data))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Error("another result")
		}
	})
}

func BenchmarkPatch(b *testing.B) {
	for _, c := range benchmarks() {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.data)))
			b.ReportAllocs()
			var patch []byte
			for b.Loop() {
				patch = Patch(c.base, c.data)
			}
			b.ReportMetric(float64(len(patch)), "stored-bytes")
		})
	}
}

func BenchmarkApplyPatch(b *testing.B) {
	for _, c := range benchmarks() {
		b.Run(c.name, func(b *testing.B) {
			patch := Patch(c.base, c.data)
			b.SetBytes(int64(len(c.data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ApplyPatch(c.base, patch, len(c.data)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestCompresses(t *testing.T) {
	text, noise := textBytes(1<<20), randomBytes(1, 1<<20)
	for _, tt := range []struct {
		name string
		data []byte
		want bool
	}{{"text", text, true}, {"noise", noise, false}, {"little noise", noise[:100], false}, {"nothing", nil, false}} {
		if got := Compresses(tt.data); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
