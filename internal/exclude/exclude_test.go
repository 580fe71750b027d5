package exclude

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestExcluded(t *testing.T) {
	// want lists what of paths is excluded; a slash at the end marks a directory.
	paths := []string{"a.o", "b.c", "build/", "build/x", "src/", "src/a.o", "src/build/", "src/build/keep", "doc/", "doc/a/", "doc/a/b.pdf", "doc/c.pdf"}
	tests := []struct {
		name     string
		patterns []string
		want     []string
	}{
		{"nothing", nil, nil},
		{"a name at any depth", []string{"a.o"}, []string{"a.o", "src/a.o"}},
		{"an ending at any depth", []string{"*.o"}, []string{"a.o", "src/a.o"}},
		{"anchored", []string{"/build"}, []string{"build/", "build/x"}},
		{"anchored by a slash in the middle", []string{"src/build"}, []string{"src/build/", "src/build/keep"}},
		{"a directory at any depth", []string{"build/"}, []string{"build/", "build/x", "src/build/", "src/build/keep"}},
		{"a directory only", []string{"a.o/"}, nil},
		{"a star stops at a slash", []string{"doc/*.pdf"}, []string{"doc/c.pdf"}},
		{"two stars do not", []string{"doc/**/*.pdf"}, []string{"doc/a/b.pdf", "doc/c.pdf"}},
		{"two stars last", []string{"doc/**"}, []string{"doc/a/", "doc/a/b.pdf", "doc/c.pdf"}},
		{"two stars first", []string{"**/keep"}, []string{"src/build/keep"}},
		{"the last pattern decides", []string{"*.o", "!src/a.o"}, []string{"a.o"}},
		{"order matters", []string{"!src/a.o", "*.o"}, []string{"a.o", "src/a.o"}},
		{"nothing comes back from below an excluded directory", []string{"build/", "!keep"}, []string{"build/", "build/x", "src/build/", "src/build/keep"}},
		{"everything but one", []string{"/*", "!/doc/"}, []string{"a.o", "b.c", "build/", "build/x", "src/", "src/a.o", "src/build/", "src/build/keep"}},
		{"comments and empty lines", []string{"# a.o", "", "   ", "b.c"}, []string{"b.c"}},
		{"spaces at the end", []string{"b.c  "}, []string{"b.c"}},
		{"classes", []string{"[ab].[!o]"}, []string{"b.c"}},
		{"a question mark", []string{"?.c"}, []string{"b.c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Compile(tt.patterns)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, excluded(m, paths)); diff != "" {
				t.Errorf("excluded (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, excluded(m, paths)); diff != "" {
				t.Errorf("excluded, asked again (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExcludedNames(t *testing.T) {
	tests := []struct {
		pattern, name string
		want          bool
	}{
		{`\#x`, "#x", true},
		{`\!x`, "!x", true},
		{`!x`, "!x", false},
		{`x\ `, "x ", true},
		{`x\ `, "x", false},
		{`\*`, "*", true},
		{`\*`, "x", false},
		{`a\b`, "ab", true},
		{`{a,b}`, "{a,b}", true},
		{`{a,b}`, "a", false},
		{`{a,b}*`, "{a,b}c", true},
		{`{a,b}*`, "ac", false},
		{`[]x]`, "]", true},
		{`[!]x]`, "]", false},
		{`[a\]]`, "]", true},
		{`[a-]`, "-", true},
		{`[--0]x`, ".x", true},
		{`[[:upper:]0-3]z`, "Gz", true},
		{`[[:upper:]0-3]z`, "2z", true},
		{`[[:upper:]0-3]z`, "gz", false},
		{`[\]-a]`, "^", true},
		{`[^^]`, "^", false},
		{"\xff*", "\xff\xfe", true},
		{"?", "\xff", true},
		{"?", "é", false}, // two bytes
		{"??", "é", true},
		{"[\xc3]\xa9", "é", true},
		{"[!a]", "\xff", true},
		{"*.\xe9", "x.\xe9", true},
		{"*.\xe9", "x.é", false},
		{"a**b", "axb", true},
		{"/a**b", "a/b", false},
		{"***", "x", true},
	}
	for _, tt := range tests {
		m, err := Compile([]string{tt.pattern})
		if err != nil {
			t.Error(err)
		} else if got := m.Excluded(tt.name, false); got != tt.want {
			t.Errorf("%q excludes %q: %v, want %v", tt.pattern, tt.name, got, tt.want)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	for _, p := range []string{
		"/", "!", "!/", "a//b", "./a", "a/..", `a\`, "[a", "[]", "[b-a]", "[[:no:]]", "[[:alpha", "a\nb", "a\x00", `[a\`, "[a-",
	} {
		_, err := Compile([]string{"fine", p})
		var pe *PatternError
		if !errors.As(err, &pe) || pe.Pattern != p || !strings.Contains(err.Error(), pe.Reason) {
			t.Errorf("Compile(%q): %v, want a PatternError for it", p, err)
		}
	}
}

func TestNil(t *testing.T) {
	var m *Matcher
	if m.Excluded("a", false) {
		t.Error("the nil Matcher excludes a")
	}
	m, err := Compile([]string{"*"})
	if err != nil {
		t.Fatal(err)
	}
	if m.Excluded("", true) || m.Excluded(".", true) {
		t.Error("the root is excluded")
	}
}

// TestCache holds the Matcher, whose cache fills up, against fresh ones.
func TestCache(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		patterns := rapid.SliceOfN(patternGen, 1, 4).Draw(t, "patterns")
		m, err := Compile(patterns)
		if err != nil {
			t.Skip(err)
		}
		for range 50 {
			p := strings.Join(rapid.SliceOfN(rapid.SampledFrom(names), 1, 4).Draw(t, "path"), "/")
			dir := rapid.Bool().Draw(t, "dir")
			fresh, err := Compile(patterns)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := m.Excluded(p, dir), fresh.Excluded(p, dir); got != want {
				t.Fatalf("Excluded(%q, %v) = %v, afresh %v", p, dir, got, want)
			}
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add("*.o", "a/b.o")
	f.Add("[!a-z]/**/x", "A/x")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		m, err := Compile([]string{pattern})
		if err != nil {
			return
		}
		got := m.Excluded(path, true)
		if again := m.Excluded(path, true); again != got {
			t.Errorf("%q excludes %q: %v, then %v", pattern, path, got, again)
		}
	})
}

func BenchmarkExcluded(b *testing.B) {
	m, err := Compile([]string{"*.o", "node_modules/", "/var/cache", ".cache", "*.tmp", "**/target/**/*.rlib", "a[0-9]?", "!keep.o"})
	if err != nil {
		b.Fatal(err)
	}
	paths := []string{"home/ann/src/project/main.go", "home/ann/src/project/main_test.go", "home/ann/src/project/util.go"}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		m.Excluded(paths[i%len(paths)], false)
		i++
	}
}

// excluded returns those of paths that m excludes; a slash at the end marks a
// directory.
func excluded(m *Matcher, paths []string) []string {
	var out []string
	for _, p := range paths {
		name, dir := strings.CutSuffix(p, "/")
		if m.Excluded(name, dir) {
			out = append(out, p)
		}
	}
	return out
}
