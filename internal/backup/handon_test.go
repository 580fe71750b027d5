package backup

import (
	"encoding/binary"
	"testing"
)

type noteMap map[string][]byte

func (m noteMap) Note(name string) ([]byte, error)    { return m[name], nil }
func (m noteMap) SetNote(name string, v []byte) error { m[name] = v; return nil }
func (m noteMap) has(n int) bool                      { return len(m[outsideNote(guidOf(n))]) > 0 }
func guidOf(n int) (g [16]byte)                       { binary.BigEndian.PutUint64(g[:], uint64(n)); return g }
func keepOf(t *testing.T, m noteMap, n int, size int) {
	t.Helper()
	if err := handOn(m, guidOf(n), make([]byte, size)); err != nil {
		t.Fatal(err)
	}
}

// TestKeep expects that of what streams hand on the newest is kept.
func TestKeep(t *testing.T) {
	m := noteMap{}
	for n := range keepOutside + 10 {
		keepOf(t, m, n, 1)
	}
	keepOf(t, m, 10, 2) // again: it is the newest now
	for n, want := range map[int]bool{0: false, 9: false, 10: true, 11: true, keepOutside + 9: true} {
		if m.has(n) != want {
			t.Errorf("%d is kept: %v", n, !want)
		}
	}
	if n := len(m[outsideIndex]) / 24; n != keepOutside {
		t.Errorf("%d are in the index", n)
	}
	if v := m[outsideNote(guidOf(10))]; len(v) != 2 {
		t.Errorf("the newest is of %d bytes", len(v))
	}

	m = noteMap{}
	for n := range 4 {
		keepOf(t, m, n, keepOutsideBytes/3)
	}
	if m.has(0) || !m.has(1) || !m.has(3) {
		t.Error("not the three newest are kept")
	}
	keepOf(t, m, 4, 2*keepOutsideBytes)
	if m.has(3) || !m.has(4) {
		t.Error("not the newest alone is kept")
	}
}
