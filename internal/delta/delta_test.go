package delta

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(b)
	return b
}

// textBytes returns n bytes of lines, alike but not the same.
func textBytes(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "\tline %d sets value[%d] = %#x // as before\n", i, r.IntN(100), r.Uint32())
	}
	return b.Bytes()[:n]
}

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

func overwrite(b []byte, at int, with []byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], with)
	return b
}

// scatter changes a byte every gap bytes or so.
func scatter(b []byte, gap int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b = bytes.Clone(b)
	for i := r.IntN(gap); i < len(b); i += gap/2 + r.IntN(gap) {
		b[i] += 1 + byte(r.IntN(255))
	}
	return b
}

// relinked changes an address every 40 to 400 bytes and moves functions of 2 to
// 10 KB by a few bytes, as a linker does after a small change of the source.
func relinked(b []byte) []byte {
	r := rand.New(rand.NewPCG(4, 5))
	var out []byte
	for len(b) > 0 {
		f := bytes.Clone(b[:min(len(b), 2000+r.IntN(8000))])
		b = b[len(f):]
		for i := r.IntN(400); i+4 < len(f); i += 40 + r.IntN(360) {
			f[i] += 16
			f[i+1] += 3
		}
		out = append(out, f...)
		out = append(out, make([]byte, r.IntN(3)*8)...)
	}
	return out
}

// versions draws a base and a new version of it.
func versions(t *rapid.T) (base, data []byte) {
	piece := rapid.OneOf(
		rapid.SliceOfN(rapid.Byte(), 0, 100),
		rapid.SliceOfN(rapid.ByteRange('a', 'b'), 0, 200),
		rapid.Custom(func(t *rapid.T) []byte { return make([]byte, rapid.IntRange(0, 500).Draw(t, "zeros")) }),
		rapid.Custom(func(t *rapid.T) []byte {
			return randomBytes(rapid.Uint64Range(0, 5).Draw(t, "seed"), rapid.IntRange(0, 3000).Draw(t, "random"))
		}),
		rapid.Custom(func(t *rapid.T) []byte { return textBytes(rapid.IntRange(0, 3000).Draw(t, "text")) }),
	)
	base = slices.Concat(rapid.SliceOfN(piece, 0, 6).Draw(t, "base")...)
	var parts [][]byte
	for range rapid.IntRange(0, 8).Draw(t, "parts") {
		from := rapid.IntRange(0, len(base)).Draw(t, "from")
		n := rapid.IntRange(0, len(base)-from).Draw(t, "n")
		if rapid.Bool().Draw(t, "kept") {
			parts = append(parts, base[from:from+n])
		} else {
			parts = append(parts, piece.Draw(t, "piece"))
		}
	}
	return base, slices.Concat(parts...)
}

// check reports how ops break the promises of Diff.
func check(base, data []byte, ops []Op, o Options) error {
	copyCost, minCopy := o.CopyCost, o.MinCopy
	if copyCost <= 0 {
		copyCost = 18
	}
	if minCopy <= 0 {
		minCopy = 32
	}
	at := 0
	for i, op := range ops {
		if op.NewOffset != at || op.Length <= 0 || op.Length > len(data)-at {
			return fmt.Errorf("op %d of %v: does not continue at %d", i, ops, at)
		}
		if op.Copy {
			if op.BaseOffset < 0 || op.BaseOffset > len(base)-op.Length {
				return fmt.Errorf("op %d of %v: base has %d bytes", i, ops, len(base))
			}
			if !bytes.Equal(base[op.BaseOffset:][:op.Length], data[at:][:op.Length]) {
				return fmt.Errorf("op %d of %v: makes other bytes", i, ops)
			}
			cost := 0
			if i > 0 && !ops[i-1].Copy {
				cost += copyCost
			}
			if i+1 < len(ops) && !ops[i+1].Copy {
				cost += copyCost
			}
			if op.Length < minCopy || op.Length <= cost {
				return fmt.Errorf("op %d of %v: does not pay", i, ops)
			}
			if i > 0 && ops[i-1].Copy && ops[i-1].BaseOffset+ops[i-1].Length == op.BaseOffset {
				return fmt.Errorf("op %d of %v: continues the one before", i, ops)
			}
		} else {
			if op.BaseOffset != 0 {
				return fmt.Errorf("op %d of %v: an insert from the base", i, ops)
			}
			if i > 0 && !ops[i-1].Copy {
				return fmt.Errorf("op %d of %v: two inserts", i, ops)
			}
		}
		at += op.Length
	}
	if at != len(data) {
		return fmt.Errorf("%v: cover %d of %d bytes", ops, at, len(data))
	}
	return nil
}

// cost is what ops cost to store, before compression.
func cost(ops []Op) int {
	n := 0
	for _, op := range ops {
		n += 18
		if !op.Copy {
			n += op.Length
		}
	}
	return n
}

func TestDiff(t *testing.T) {
	r, text := randomBytes(1, 10000), textBytes(10000)
	ins, x := []byte("a line that was not there\n"), randomBytes(2, 1000)
	zeros := make([]byte, 5000)
	cp := func(base, at, n int) Op { return Op{Copy: true, BaseOffset: base, NewOffset: at, Length: n} }
	in := func(at, n int) Op { return Op{NewOffset: at, Length: n} }

	for _, tt := range []struct {
		name       string
		base, data []byte
		o          Options
		want       []Op
	}{
		{"both empty", nil, nil, Options{}, nil},
		{"empty", r, nil, Options{}, nil},
		{"no base", nil, r, Options{}, []Op{in(0, 10000)}},
		{"equal", r, r, Options{}, []Op{cp(0, 0, 10000)}},
		{"equal but short", r[:31], r[:31], Options{}, []Op{in(0, 31)}},
		{"as short as may be", r[:32], r[:32], Options{}, []Op{cp(0, 0, 32)}},
		{"nothing in common", r, x, Options{}, []Op{in(0, 1000)}},
		{"one byte changed", r, overwrite(r, 4000, []byte{r[4000] + 1}), Options{}, []Op{cp(0, 0, 4000), in(4000, 1), cp(4001, 4001, 5999)}},
		{"first byte changed", r, overwrite(r, 0, []byte{r[0] + 1}), Options{}, []Op{in(0, 1), cp(1, 1, 9999)}},
		{"last byte changed", r, overwrite(r, 9999, []byte{r[9999] + 1}), Options{}, []Op{cp(0, 0, 9999), in(9999, 1)}},
		{"inserted at front", r, join(ins, r), Options{}, []Op{in(0, 26), cp(0, 26, 10000)}},
		{"inserted in the middle", r, join(r[:5001], ins, r[5001:]), Options{}, []Op{cp(0, 0, 5001), in(5001, 26), cp(5001, 5027, 4999)}},
		{"inserted at the end", r, join(r, ins), Options{}, []Op{cp(0, 0, 10000), in(10000, 26)}},
		{"inserted twice", r, join(r[:3001], ins, r[3001:7003], x, r[7003:]), Options{},
			[]Op{cp(0, 0, 3001), in(3001, 26), cp(3001, 3027, 4002), in(7029, 1000), cp(7003, 8029, 2997)}},
		{"deleted at front", r, r[100:], Options{}, []Op{cp(100, 0, 9900)}},
		{"deleted in the middle", r, join(r[:3000], r[3500:]), Options{}, []Op{cp(0, 0, 3000), cp(3500, 3000, 6500)}},
		{"deleted at the end", r, r[:9000], Options{}, []Op{cp(0, 0, 9000)}},
		{"replaced", r, overwrite(r, 3000, x), Options{}, []Op{cp(0, 0, 3000), in(3000, 1000), cp(4000, 4000, 6000)}},
		{"replaced in three places", r, overwrite(overwrite(overwrite(r, 1000, x), 4000, x[:100]), 8000, x), Options{},
			[]Op{cp(0, 0, 1000), in(1000, 1000), cp(2000, 2000, 2000), in(4000, 100), cp(4100, 4100, 3900), in(8000, 1000), cp(9000, 9000, 1000)}},
		{"block moved", r, join(r[:1000], r[6000:7000], r[1000:6000], r[7000:]), Options{},
			[]Op{cp(0, 0, 1000), cp(6000, 1000, 1000), cp(1000, 2000, 5000), cp(7000, 7000, 3000)}},
		{"halves swapped", r, join(r[5000:], r[:5000]), Options{}, []Op{cp(5000, 0, 5000), cp(0, 5000, 5000)}},
		{"duplicated", r, join(r, r), Options{}, []Op{cp(0, 0, 10000), cp(0, 10000, 10000)}},
		{"all zeros, longer", zeros, make([]byte, 7000), Options{}, []Op{cp(0, 0, 5000), cp(3000, 5000, 2000)}},
		{"all zeros, shorter", zeros, zeros[:3000], Options{}, []Op{cp(0, 0, 3000)}},
		{"zeros in the midst", join(r[:3000], zeros, r[3000:]), join(ins, r[:3000], zeros[:4000], r[3000:]), Options{},
			[]Op{in(0, 26), cp(0, 26, 3000), cp(4000, 3026, 11000)}},
		{"changed text", text, join(ins, text[:5000], ins, text[5000:9000], ins), Options{},
			[]Op{in(0, 26), cp(0, 26, 5000), in(5026, 26), cp(5000, 5052, 4000), in(9052, 26)}},
		{"bytes too near each other", r[:50], overwrite(r[:50], 20, []byte("xxx")), Options{}, []Op{in(0, 50)}},
		{"dear copies", r[:100], overwrite(r[:100], 20, []byte("xxx")), Options{CopyCost: 77}, []Op{in(0, 100)}},
		{"cheap copies", r[:50], overwrite(r[:50], 20, []byte("xxx")), Options{CopyCost: 1, MinCopy: 2}, []Op{cp(0, 0, 20), in(20, 3), cp(23, 23, 27)}},
		{"in place in a window", r, overwrite(r[3000:5000], 1000, ins), Options{InPlace: 3000},
			[]Op{cp(3000, 0, 1000), in(1000, 26), cp(4026, 1026, 974)}},
		{"in place among the same", join(r[:500], r[:500], r[:500]), r[:500], Options{InPlace: 500}, []Op{cp(500, 0, 500)}},
		{"in place out of range", r, r[:500], Options{InPlace: 20000}, []Op{cp(0, 0, 500)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Diff(tt.base, tt.data, tt.o)
			if err := check(tt.base, tt.data, got, tt.o); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ops (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDiffProperty(t *testing.T) {
	var d Differ
	rapid.Check(t, func(t *rapid.T) {
		base, data := versions(t)
		o := Options{
			CopyCost: rapid.SampledFrom([]int{0, 1, 18, 100}).Draw(t, "copy cost"),
			MinCopy:  rapid.SampledFrom([]int{0, 1, 8, 200}).Draw(t, "min copy"),
			InPlace:  rapid.IntRange(-1, len(base)+1).Draw(t, "in place"),
		}
		if err := check(base, data, d.Diff(base, data, o), o); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDiffFinds makes random edits that are no nearer to each other than what
// the index promises to find, and asks for an optimal result.
func TestDiffFinds(t *testing.T) {
	var d Differ
	rapid.Check(t, func(t *rapid.T) {
		base := randomBytes(rapid.Uint64().Draw(t, "seed"), 20000)
		var data []byte
		inserted, ops := 0, 0
		for range rapid.IntRange(1, 10).Draw(t, "parts") {
			from := rapid.IntRange(0, 19000).Draw(t, "from")
			data = append(data, base[from:from+rapid.IntRange(60, 1000).Draw(t, "n")]...)
			n := rapid.IntRange(1, 50).Draw(t, "insert")
			data = append(data, randomBytes(rapid.Uint64().Draw(t, "insert seed"), n)...)
			inserted += n
			ops += 2
		}
		got := d.Diff(base, data, Options{})
		if c := cost(got); c > inserted+18*ops {
			t.Errorf("ops cost %d, %d would do: %v", c, inserted+18*ops, got)
		}
	})
}

func TestDiffDoesNotAllocate(t *testing.T) {
	base := randomBytes(1, 200<<10)
	data := scatter(base, 1000, 1)
	data = join(data[100<<10:], data[:100<<10])
	var d Differ
	d.Diff(base, data, Options{})
	if n := testing.AllocsPerRun(10, func() { d.Diff(base, data, Options{}) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestDiffWorstCases has inputs that make naive searches quadratic.
func TestDiffWorstCases(t *testing.T) {
	const n = 1 << 20
	periodic := func(period int) []byte { return bytes.Repeat(randomBytes(9, period), n/period+1)[:n] }
	// Blocks that begin alike and go on differently: every candidate of a
	// chain has to be looked at.
	var forks []byte
	for i := range n / 32 {
		forks = append(forks, "0123456789abcdef"...)
		forks = append(forks, randomBytes(uint64(i), 16)...)
	}
	var others []byte
	for i := range n / 32 {
		others = append(others, "0123456789abcdef"...)
		others = append(others, randomBytes(uint64(i)+40000, 16)...)
	}
	var d Differ
	for _, tt := range []struct {
		name       string
		base, data []byte
	}{
		{"zeros and ones", make([]byte, n), bytes.Repeat([]byte{1}, n)},
		{"zeros with islands", make([]byte, n), scatter(make([]byte, n), 30, 1)},
		{"zeros become islands", scatter(make([]byte, n), 30, 1), scatter(make([]byte, n), 30, 2)},
		{"period 1 longer than 3", periodic(3), periodic(7)},
		{"periods of 24 and islands", periodic(24), scatter(periodic(24), 40, 1)},
		{"shifted period", periodic(48), periodic(48)[5:]},
		{"period 4096 shifted", periodic(4096), join(periodic(4096)[5:], []byte("x"))},
		{"forks", forks, others},
		{"runs just too short", forks, scatter(forks[7:], 33, 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			ops := d.Diff(tt.base, tt.data, Options{})
			took := time.Since(start)
			if err := check(tt.base, tt.data, ops, Options{}); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d ops, cost %d, %v", len(ops), cost(ops), took)
			if took > 5*time.Second { // they take less than a tenth, even under the race detector
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestDiffLongBase(t *testing.T) {
	base := randomBytes(1, 10<<20) // more blocks than are indexed
	data := join(base[9<<20:], []byte("between"), base[2<<20:][:100<<10])
	ops := Diff(base, data, Options{})
	if err := check(base, data, ops, Options{}); err != nil {
		t.Fatal(err)
	}
	if len(ops) != 3 {
		t.Errorf("got %v", ops)
	}
}

func TestMatch(t *testing.T) {
	long := randomBytes(1, 5000)
	for _, n := range []int{0, 1, 7, 8, 9, 63, 64, 65, 511, 512, 575, 576, 577, 1100, 4999, 5000} {
		other := bytes.Clone(long)
		if n < len(other) {
			other[n]++
		}
		if got := matchForward(long, other); got != n {
			t.Errorf("forward: %d, want %d", got, n)
		}
		slices.Reverse(other)
		reversed := bytes.Clone(long)
		slices.Reverse(reversed)
		if got := matchBackward(reversed, other); got != n {
			t.Errorf("backward: %d, want %d", got, n)
		}
		if got := matchForward(long[:n], long); got != n {
			t.Errorf("forward to the end: %d, want %d", got, n)
		}
		if got := matchBackward(long[5000-n:], long); got != n {
			t.Errorf("backward to the start: %d, want %d", got, n)
		}
	}
}

func FuzzDiff(f *testing.F) {
	text := textBytes(500)
	f.Add(text, join(text[100:], text[:200]), 18, 32, 0)
	f.Add(text, text[300:], 18, 32, 300)
	f.Add(make([]byte, 200), make([]byte, 300), 1, 1, 100)
	f.Fuzz(func(t *testing.T, base, data []byte, copyCost, minCopy, inPlace int) {
		o := Options{CopyCost: copyCost & 0xff, MinCopy: minCopy & 0xff, InPlace: inPlace}
		if err := check(base, data, Diff(base, data, o), o); err != nil {
			t.Fatal(err)
		}
	})
}

type benchmark struct {
	name       string
	base, data []byte
}

func benchmarks() []benchmark {
	const n = 1 << 20
	random, text := randomBytes(1, n), textBytes(n)
	program := join(text[:n/2], random[:n/2]) // half of it compresses
	return []benchmark{
		{"1 MiB, a byte changed", random, overwrite(random, n/3, []byte{random[n/3] + 1})},
		{"1 MiB, three 4 KiB overwritten", random, overwrite(overwrite(overwrite(random, 1000, text[:4096]), n/2, text[:4096]), n-9000, text[:4096])},
		{"1 MiB, line inserted at front", text, join([]byte("package new\n"), text)[:n]},
		{"1 MiB, line inserted and byte changed", text, overwrite(join([]byte("package new\n"), text), n-1000, []byte("?"))},
		{"1 MiB, byte in 1000 changed", random, scatter(random, 1000, 1)},
		{"1 MiB, byte in 60 changed", program, scatter(program, 60, 1)},
		{"1 MiB, relinked", program, relinked(program)},
		{"1 MiB, unrelated", random, randomBytes(2, n)},
		{"4 KiB, line inserted", text[:4096], join(text[:1000], []byte("package new\n"), text[1000:4096])},
	}
}

func BenchmarkDiff(b *testing.B) {
	for _, c := range benchmarks() {
		b.Run(c.name, func(b *testing.B) {
			var d Differ
			b.SetBytes(int64(len(c.data)))
			b.ReportAllocs()
			var ops []Op
			for b.Loop() {
				ops = d.Diff(c.base, c.data, Options{})
			}
			b.ReportMetric(float64(cost(ops)), "stored-bytes")
		})
	}
}
