package progress

import (
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// bars draws the steps that run, one below the other. A bar goes when its step
// is done: what is worth keeping on the screen is the result.
type bars struct {
	p *mpb.Progress
}

func newBars(w io.Writer, options ...mpb.ContainerOption) *bars {
	options = append([]mpb.ContainerOption{mpb.WithOutput(w), mpb.WithRefreshRate(200 * time.Millisecond)}, options...)
	return &bars{mpb.New(options...)}
}

func (b *bars) Write(p []byte) (int, error) { return b.p.Write(p) }

// Close takes all bars off the screen and stops drawing.
func (b *bars) Close() { b.p.Shutdown() }

// bar draws one step. The nil bar, of a display that is closed, draws nothing.
type bar struct {
	b *mpb.Bar
}

// add draws a bar for the step that s began at started.
func (b *bars) add(s *step, what string, total int64, started time.Time) *bar {
	text := func(f func(time.Time) string) decor.Decorator {
		return decor.Any(func(decor.Statistics) string {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !s.running || s.started != started { // s is on to something else
				return ""
			}
			return " " + f(time.Now())
		})
	}
	filler := mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]").Build()
	if total < 0 {
		filler = mpb.NopStyle().Build()
	}
	mb, err := b.p.Add(max(total, 0), filler,
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(what+" ", decor.WCSyncSpaceR)),
		mpb.AppendDecorators(
			text(func(time.Time) string { return s.counts() }),
			text(s.speed),
		),
	)
	if err != nil { // drawn no more
		return nil
	}
	return &bar{mb}
}

func (b *bar) add(n int64) {
	if b != nil {
		b.b.IncrInt64(n)
	}
}

func (b *bar) remove() {
	if b != nil {
		b.b.Abort(true)
	}
}
