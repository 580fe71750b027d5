package backup

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

func TestWiden(t *testing.T) {
	const mib = 1 << 20
	many := make([]filetree.Range, 0, maxWiden+1)
	for i := range int64(maxWiden + 1) {
		many = append(many, filetree.Range{Offset: 2 * i * mib, Length: 4096})
	}
	for _, tt := range []struct {
		name     string
		in, want []filetree.Range
	}{
		{"none", nil, nil},
		{"a byte", []filetree.Range{{Offset: 5*mib + 7, Length: 1}}, []filetree.Range{{Offset: 5 * mib, Length: mib}}},
		{"across a cut", []filetree.Range{{Offset: mib - 1, Length: 2}}, []filetree.Range{{Length: 2 * mib}}},
		{"up to a cut", []filetree.Range{{Length: mib}}, []filetree.Range{{Length: mib}}},
		{"no order, one twice", []filetree.Range{{Offset: 9 * mib, Length: 1}, {Offset: 4, Length: 1}, {Offset: 9*mib + 50, Length: 1}},
			[]filetree.Range{{Length: mib}, {Offset: 9 * mib, Length: mib}}},
		{"too many", many, many},
		{"too long", []filetree.Range{{Length: 100 * mib}}, []filetree.Range{{Length: 100 * mib}}},
		{"longer than can be", []filetree.Range{{Offset: 1, Length: 1<<63 - 2}}, []filetree.Range{{Offset: 1, Length: 1<<63 - 2}}},
	} {
		if diff := cmp.Diff(tt.want, widen(tt.in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
