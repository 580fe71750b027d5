package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vbauerster/mpb/v8"
)

const mib = 1 << 20

func TestPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		d := New(&out, Auto)
		if d.Mode() != Plain {
			t.Fatalf("mode %v, want Plain", d.Mode())
		}
		p := d.Step(Bytes)
		p.Start("short", 10)
		p.Add(10)
		p.Done(nil)

		p.Start("home\x1b[2J", 40*mib)
		for range 10 {
			time.Sleep(time.Second)
			p.Add(4 * mib)
		}
		p.Done(nil)

		p.Start("unknown", -1)
		time.Sleep(6 * time.Second)
		p.Add(6 * mib)
		p.Done(errors.New("told elsewhere"))

		f := d.Step(Files)
		f.Start("files", 4)
		time.Sleep(5 * time.Second)
		f.Add(1)
		f.Start("the next", 0) // ends the step before
		f.Done(nil)
		f.Done(nil)
		f.Add(1)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		want := `home\x1b[2J: 20.0 MiB of 40.0 MiB (50 %), 4.0 MiB/s, 5.0s left
home\x1b[2J: 40.0 MiB of 40.0 MiB (100 %), 4.0 MiB/s
home\x1b[2J: 40.0 MiB of 40.0 MiB (100 %), done in 10s
unknown: 6.0 MiB, 1.0 MiB/s
unknown: 6.0 MiB, failed after 6.0s
files: 1 of 4 files (25 %), 0 files/s, 15s left
files: 1 of 4 files (25 %), done in 5.0s
`
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
	})
}

func TestJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		d := New(&out, JSON)
		p := d.Step(Bytes)
		p.Start("home", 1000)
		for range 8 {
			time.Sleep(500 * time.Millisecond)
			p.Add(100)
		}
		p.Done(errors.New("lost"))
		want := `{"event":"start","what":"home","done":0,"total":1000,"unit":"bytes","rate":0}
{"event":"progress","what":"home","done":200,"total":1000,"unit":"bytes","rate":200}
{"event":"progress","what":"home","done":400,"total":1000,"unit":"bytes","rate":200}
{"event":"progress","what":"home","done":600,"total":1000,"unit":"bytes","rate":200}
{"event":"progress","what":"home","done":800,"total":1000,"unit":"bytes","rate":200}
{"event":"done","what":"home","done":800,"total":1000,"unit":"bytes","rate":200,"error":"lost"}
`
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
	})
}

func TestQuiet(t *testing.T) {
	var out bytes.Buffer
	d := New(&out, Quiet)
	p := Multi(d.Step(Bytes), Discard)
	p.Start("home", 1)
	p.Add(1)
	p.Done(nil)
	io.WriteString(d, "a warning\n")
	d.Close()
	if out.String() != "a warning\n" {
		t.Errorf("output %q", &out)
	}
}

func TestMeterFalls(t *testing.T) {
	now := time.Unix(0, 0)
	m := meter{at: now}
	for range 5 {
		now = now.Add(time.Second)
		m.add(now, 100)
	}
	if got := m.perSecond(now); got != 100 {
		t.Errorf("rate %v, want 100", got)
	}
	if got := m.perSecond(now.Add(time.Minute)); got > 1 {
		t.Errorf("rate %v after a minute without progress", got)
	}
}

// TestConcurrent is for the race detector; the output must be whole lines.
func TestConcurrent(t *testing.T) {
	for _, mode := range []Mode{Plain, JSON, Bars} {
		var out safeBuffer
		d := New(&out, mode)
		if mode == Bars {
			d.Close()
			d = &Display{mode: Bars, w: &out, bars: newBars(&out, mpb.WithAutoRefresh(), mpb.WithRefreshRate(100*time.Microsecond))}
		}
		var g sync.WaitGroup
		for range 4 {
			g.Go(func() {
				p := d.Step(Bytes)
				for range 3 {
					p.Start("step", 100)
					var inner sync.WaitGroup
					for range 2 {
						inner.Go(func() {
							for range 500 {
								p.Add(1)
							}
						})
					}
					io.WriteString(d, "{}\n")
					inner.Wait()
					p.Done(nil)
				}
			})
		}
		g.Wait()
		d.Close()
		for line := range strings.Lines(out.String()) {
			if mode == JSON && !json.Valid([]byte(line)) {
				t.Errorf("torn: %q", line)
			}
		}
	}
}

func TestBars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out safeBuffer
		d := &Display{mode: Bars, w: &out, bars: newBars(&out, mpb.WithAutoRefresh(), mpb.WithWidth(100))}
		p, q := d.Step(Bytes), d.Step(Files)
		p.Start("upload", 40*mib)
		q.Start("scan", -1)
		for range 5 {
			time.Sleep(time.Second)
			p.Add(4 * mib)
			q.Add(1000)
		}
		time.Sleep(500 * time.Millisecond)
		for _, want := range []string{"upload", "[=", "20.0 MiB of 40.0 MiB (50 %)", "4.0 MiB/s, 5.0s left", "scan", "5000 files", "1000 files/s"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in the output:\n%q", want, out.String())
			}
		}
		p.Add(100 * mib) // more than there was said to be
		io.WriteString(d, "a warning\n")
		p.Done(nil)
		p.Start("again", 1)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(out.String(), "a warning\n") {
			t.Errorf("the warning is lost:\n%q", out.String())
		}
		n := len(out.String())
		p.Add(1)
		p.Done(nil)
		p.Start("after Close", 1)
		p.Add(1)
		p.Done(nil)
		q.Done(nil)
		if len(out.String()) != n {
			t.Errorf("written after Close: %q", out.String()[n:])
		}
		io.WriteString(d, "after Close\n")
		if !strings.HasSuffix(out.String(), "after Close\n") {
			t.Error("a line written after Close is lost")
		}
	})
}

func TestResults(t *testing.T) {
	var out, bars bytes.Buffer
	d := New(&bars, Plain)
	if d.Results(&out) != io.Writer(&out) {
		t.Error("results are held back without bars")
	}
	d = New(&bars, Bars)
	if d.Results(&out) != io.Writer(&out) {
		t.Error("results that go to no terminal are held back")
	}
	h := &heldWriter{d: d, out: &out}
	d.results = append(d.results, h)
	io.WriteString(h, "a\n")
	if out.Len() > 0 {
		t.Error("written before Close")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	io.WriteString(h, "b\n")
	d.Close()
	if out.String() != "a\nb\n" {
		t.Errorf("results %q", &out)
	}
}

func TestIsTerminal(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if IsTerminal(f) || IsTerminal(&bytes.Buffer{}) {
		t.Error("not a terminal")
	}
}

func BenchmarkAdd(b *testing.B) {
	for _, mode := range []Mode{Plain, JSON, Bars} {
		d := New(io.Discard, mode)
		p := d.Step(Bytes)
		p.Start("x", int64(1)<<60)
		b.Run([]string{"", "bars", "plain", "json"}[mode], func(b *testing.B) {
			for b.Loop() {
				p.Add(1)
			}
		})
		d.Close()
	}
}

type safeBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
