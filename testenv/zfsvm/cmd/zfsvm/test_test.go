//go:build linux

package main

import (
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Tests are found by the tag of their file, and only those.
func TestFind(t *testing.T) {
	const pkg = "github.com/secrate/secrate/testenv/zfsvm"
	for _, tt := range []struct {
		pattern, match string
		want           []string
	}{
		{pkg, "", []string{"TestSendReceive", "TestRandomTrees", "TestGuest"}},
		{pkg, "Trees$", []string{"TestRandomTrees"}},
		{pkg, "TestVM", nil}, // without the tag
		{pkg + "/wire", "", nil},
	} {
		found, err := find(t.Context(), []string{tt.pattern}, regexp.MustCompile(tt.match))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range found {
			if p.ImportPath != pkg {
				t.Errorf("found package %s", p.ImportPath)
			}
			got = append(got, p.Tests...)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.pattern, tt.match, diff)
		}
	}
	if _, err := find(t.Context(), []string{"./no-such-directory"}, regexp.MustCompile("")); err == nil {
		t.Error("no error for a package that is not there")
	}
}
