package catalog

import "slices"

// Spans are ranges of a blob's plain bytes: sorted, apart from one another.
type spans []span

type span struct{ from, to int64 }

// add adds a range, and returns how many of its bytes were in none before.
func (s *spans) add(from, to int64) (fresh int64) {
	if from >= to {
		return 0
	}
	// All that touch the range become one with it.
	i, _ := slices.BinarySearchFunc(*s, from, func(x span, from int64) int {
		if x.to < from {
			return -1
		}
		return 1
	})
	j := i
	fresh = to - from
	whole := span{from, to}
	for ; j < len(*s) && (*s)[j].from <= to; j++ {
		x := (*s)[j]
		fresh -= max(min(x.to, to)-max(x.from, from), 0)
		whole.from, whole.to = min(whole.from, x.from), max(whole.to, x.to)
	}
	*s = slices.Replace(*s, i, j, whole)
	return fresh
}
