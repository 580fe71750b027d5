package catalog

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is kept has a lifetime, and what an older snapshot had comes back.
func TestRevertKept(t *testing.T) {
	db, src := open(t)
	other := db.At(src.ID-1, 1)
	check(other.Keep([]byte("a"), []byte("other")))
	kept := func(v View) string {
		var all []string
		for k, err := range v.KeptFrom([]byte("a"), []byte("z")) {
			check(err)
			all = append(all, fmt.Sprintf("%s=%s", k.Key, k.Value))
		}
		return fmt.Sprint(all)
	}
	states := []string{"[]"}
	for i, change := range []map[string]string{
		{"a": "1", "b": "1", "c": "1"},
		{"a": "2", "b": "", "d": "2"},
		{"a": "3", "b": "3", "d": ""},
	} {
		v := db.At(src.ID, uint64(i+1))
		for key, value := range change {
			check(v.Keep([]byte(key), []byte(value)))
		}
		states = append(states, kept(v))
	}
	back := []int{1, 2, 3, 1, 5} // snapshots from 4 on have what these had
	for i, to := range back {
		v := db.At(src.ID, uint64(4+i))
		check(v.Keep([]byte("e"), []byte("of a try before"))) // is not in the snapshot that it goes back to
		check(v.RevertKept(uint64(to)))
		states = append(states, states[to])
	}
	for seq, want := range states {
		if diff := cmp.Diff(want, kept(db.At(src.ID, uint64(seq)))); diff != "" {
			t.Errorf("snapshot %d (-want +got):\n%s", seq, diff)
		}
	}
	if got := kept(other); got != "[a=other]" {
		t.Errorf("another source has %s", got)
	}
}
