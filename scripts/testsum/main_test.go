package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSummary(t *testing.T) {
	tests := []struct {
		name   string
		events string // action package test output, a line each
		ci     bool
		want   string
		ok     bool
	}{
		{
			name: "all passed",
			events: `run p A
output p A === RUN A
pass p A
output p - ok  	p	0.1s
pass p -`,
			ci: true, ok: true,
			want: "ok  \tp\t0.1s\n1 passed, 0 failed, 0 skipped\n",
		},
		{
			name: "subtests count, their parents do not",
			events: `run p A
run p A/x
run p A/y
output p A/y it broke
pass p A/x
fail p A/y
fail p A
fail p -`,
			want: "it broke\nfailed: p A/y\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "a parent that fails by itself",
			events: `run p A
run p A/x
output p A after x
pass p A/x
fail p A
fail p -`,
			want: "after x\nfailed: p A\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "a package that dies",
			events: `run p A
pass p A
output p - panic: in TestMain
fail p -`,
			want: "panic: in TestMain\nfailed: p\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "a test that never ends",
			events: `run p A
output p A panic: test timed out
output p - FAIL
fail p -`,
			want: "panic: test timed out\nfailed: p A\n0 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "skipped",
			events: `run p A
output p A     a_test.go:12: SKIP-MISSING: git
output p A --- SKIP: A (0.00s)
skip p A
run p B
output p B     a_test.go:12: because
skip p B
run p C
pass p C
pass p -`,
			ok:   true,
			want: "skipped 1, missing: because\n\tp B\nskipped 1, missing: git\n\tp A\n1 passed, 0 failed, 2 skipped\n",
		},
		{
			name: "skipped in CI",
			events: `run p A
output p A     a_test.go:12: SKIP-MISSING: git
skip p A
pass p -`,
			ci:   true,
			want: "skipped 1, missing: git\n\tp A\nCI=true: this machine should have all that tests need, and 1 were skipped\n0 passed, 0 failed, 1 skipped\n",
		},
		{
			name:   "nothing",
			events: `skip p -`,
			want:   "no tests were run\n0 passed, 0 failed, 0 skipped\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var in, out strings.Builder
			for line := range strings.SplitSeq(tt.events, "\n") {
				f := strings.SplitN(line, " ", 4)
				for len(f) < 4 {
					f = append(f, "")
				}
				fmt.Fprintf(&in, "{\"Action\":%q,\"Package\":%q,\"Test\":%q,\"Output\":%q}\n", f[0], f[1], strings.TrimPrefix(f[2], "-"), f[3]+"\n")
			}
			s := newSummary(&out)
			if err := s.read(strings.NewReader(in.String())); err != nil {
				t.Fatal(err)
			}
			if ok := s.finish(tt.ci); ok != tt.ok {
				t.Errorf("finish: %v, want %v", ok, tt.ok)
			}
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}
