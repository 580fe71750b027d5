package catalog

import (
	"fmt"
	"maps"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// keptAt returns all that is kept at a snapshot.
func keptAt(t rapid.TB, v View) map[string]string {
	all := map[string]string{}
	last := ""
	for k, err := range v.KeptFrom(nil, []byte{0xff}) {
		if err != nil {
			t.Fatal(err)
		}
		if string(k.Key) <= last {
			t.Fatalf("key %q after %q", k.Key, last)
		}
		last = string(k.Key)
		all[last] = string(k.Value)
	}
	return all
}

// changed returns what before is after the changes of a snapshot.
func changed(t rapid.TB, v View, before map[string]string) map[string]string {
	all := maps.Clone(before)
	for k, err := range v.KeptChanges() {
		if err != nil {
			t.Fatal(err)
		}
		if k.Value == nil {
			delete(all, string(k.Key))
		} else {
			all[string(k.Key)] = string(k.Value)
		}
	}
	return all
}

// TestKeptModel holds what is kept against maps: a snapshot's stays what it was whatever
// later ones keep, take away, set again and revert to.
func TestKeptModel(t *testing.T) {
	db, err := Open(filepath.Join(t.TempDir(), "catalog.db"), Options{Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	source := int64(0)
	rapid.Check(t, func(t *rapid.T) {
		source++ // another one each time, in the midst of the others
		history := []map[string]string{{}}
		check := func(now map[string]string) {
			t.Helper()
			for seq, want := range history {
				if diff := cmp.Diff(want, keptAt(t, db.At(source, uint64(seq)))); diff != "" {
					t.Fatalf("at #%d (-want +got):\n%s", seq, diff)
				}
			}
			v := db.At(source, uint64(len(history)))
			if diff := cmp.Diff(now, keptAt(t, v)); diff != "" {
				t.Fatalf("now (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(now, changed(t, v, history[len(history)-1])); diff != "" {
				t.Fatalf("by the changes (-want +got):\n%s", diff)
			}
		}
		for range rapid.IntRange(1, 6).Draw(t, "updates") {
			seq := len(history)
			v := db.At(source, uint64(seq))
			now := maps.Clone(history[seq-1])
			if rapid.IntRange(0, 2).Draw(t, "revert") == 0 {
				to := rapid.IntRange(0, seq-1).Draw(t, "to")
				if err := v.RevertKept(uint64(to)); err != nil {
					t.Fatal(err)
				}
				now = maps.Clone(history[to])
				check(now)
			}
			for range rapid.IntRange(0, 8).Draw(t, "keeps") {
				key := rapid.SampledFrom([]string{"a", "b", "b\x00", "c"}).Draw(t, "key")
				value := rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "value")
				if err := v.Keep([]byte(key), []byte(value)); err != nil {
					t.Fatal(err)
				}
				if now[key] = value; value == "" {
					delete(now, key)
				}
				if got, err := v.Kept([]byte(key)); err != nil || string(got) != value || (got == nil) != (value == "") {
					t.Fatalf("%q: %q, %v", key, got, err)
				}
			}
			check(now)
			if seq > 1 && rapid.Bool().Draw(t, "unchanged") {
				if err := v.KeepBefore(); err != nil {
					t.Fatal(err)
				}
				history[seq-1] = now
			} else {
				history = append(history, now)
			}
			check(history[len(history)-1])
		}
	})
}

// TestKeptMany goes over the batches in which rows are read, and takes away what is ahead.
func TestKeptMany(t *testing.T) {
	db, err := Open(filepath.Join(t.TempDir(), "catalog.db"), Options{Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	v, later := db.At(1, 1), db.At(1, 2)
	want := map[string]string{}
	for n := range 1500 {
		key := fmt.Sprintf("%06d", n)
		want[key] = key
		if err := v.Keep([]byte(key), []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, changed(t, v, map[string]string{})); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	n := 0
	for k, err := range later.KeptFrom([]byte("000010"), []byte("001400")) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if err := later.Keep(k.Key, nil); err != nil {
			t.Fatal(err)
		}
	}
	if left := len(keptAt(t, later)); n != 1390 || left != 110 {
		t.Errorf("%d taken away, %d left", n, left)
	}
	if diff := cmp.Diff(want, keptAt(t, v)); diff != "" {
		t.Errorf("before (-want +got):\n%s", diff)
	}
	if got := changed(t, later, want); len(got) != 110 {
		t.Errorf("%d by the changes", len(got))
	}
}
