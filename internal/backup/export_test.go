package backup

import (
	"testing"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
)

// SetMaxKnown makes a scan skim directories from so many names on, and keep so many names that
// are gone, until t ends.
func SetMaxKnown(t testing.TB, known, names int) {
	oldKnown, oldNames := maxKnown, maxNames
	maxKnown, maxNames = known, names
	t.Cleanup(func() { maxKnown, maxNames = oldKnown, oldNames })
}

// LeftOut asks a filter of the tree at dir, of nothing before.
func LeftOut(t testing.TB, dir string, o Options, path string, kind filetree.Kind) bool {
	j, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := localfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	f := &filter{o: &j.o, tree: tree, m: j.exclude}
	left, err := f.leftOut(path, kind)
	if err != nil {
		t.Fatal(err)
	}
	// What it has read already says the same.
	if again, err := f.leftOut(path, kind); err != nil || again != left {
		t.Errorf("%s is left out: %v, then %v, %v", path, left, again, err)
	}
	return left
}

// LevelOf asks a filter of a tree for the level of a directory, after it was asked about others
// and the tree has changed.
func LevelOf(t testing.TB, dir string, o Options, path string, asked []string, change func()) error {
	j, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := localfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	d, err := tree.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f := &filter{o: &j.o, tree: tree, m: j.exclude}
	for _, p := range asked {
		if _, err := f.leftOut(p, filetree.Dir); err != nil {
			t.Fatal(err)
		}
	}
	change()
	_, err = f.levelOf(d, path)
	return err
}
