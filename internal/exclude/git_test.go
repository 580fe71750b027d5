package exclude

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/secrate/secrate/testenv"
)

// names are what the trees and the patterns of the property tests are made of.
var names = []string{"a", "b", "ab", "abc", "a.o", "b.o", "é", "\xff", "a b", "[x]", "#c", "!d", "{a,b}", "-"}

var pieceGen = rapid.OneOf(
	rapid.SampledFrom(names),
	rapid.SampledFrom([]string{
		"*", "?", "**", "a*", "*b", "*.o", "?.o", "a?c", "*b*", "**c",
		"[ab]", "[!a]", "[a-c]*", "[^.]", "[[:alpha:]]", "[]x]", "[!\xf0-\xff]", `\a`, `\[x\]`, `\#c`, `\!d`, `[\]-a]*`, "[--a]",
		"{a,b}", "{a,b}*",
	}),
)

var patternGen = rapid.Custom(func(t *rapid.T) string {
	p := strings.Join(rapid.SliceOfN(pieceGen, 1, 3).Draw(t, "pieces"), "/")
	return rapid.SampledFrom([]string{"", "", "!", "/", "!/", "**/"}).Draw(t, "before") + p +
		rapid.SampledFrom([]string{"", "", "/", "/**", "/*", "  "}).Draw(t, "after")
})

// gitIn returns what runs git in the repository at top.
func gitIn(t *testing.T, git, top string) func(stdin string, args ...string) (string, error) {
	return func(stdin string, args ...string) (string, error) {
		cmd := exec.Command(git, args...)
		cmd.Dir = top
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_DIR="+filepath.Join(top, ".git"), "GIT_WORK_TREE="+top)
		cmd.Stdin = strings.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil && stderr.Len() > 0 {
			t.Fatalf("git %s: %v: %s", args[0], err, &stderr)
		}
		return string(out), err
	}
}

// TestGit asks git what it makes of the same patterns on the same tree.
func TestGit(t *testing.T) {
	testenv.Need(t, testenv.Tool("git"))
	const git = "git"
	top := t.TempDir()
	run := gitIn(t, git, top)
	if _, err := run("", "init", "-q"); err != nil {
		t.Fatal(err)
	}
	paths := makeTree(t, top)
	var stdin strings.Builder
	for _, p := range paths {
		stdin.WriteString(strings.TrimSuffix(p, "/") + "\x00")
	}

	rapid.Check(t, func(t *rapid.T) {
		patterns := rapid.SliceOfN(patternGen, 1, 5).Draw(t, "patterns")
		m, err := Compile(patterns)
		if err != nil {
			t.Skip(err)
		}
		text := strings.Join(patterns, "\n") + "\n"
		if err := os.WriteFile(filepath.Join(top, ".git", "info", "exclude"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := run(stdin.String(), "check-ignore", "--no-index", "-z", "--stdin")
		if ee, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || ee.ExitCode() != 1) { // 1: nothing is ignored
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
		if out == "" {
			want = nil
		}
		var got []string
		for _, p := range excluded(m, paths) {
			got = append(got, strings.TrimSuffix(p, "/"))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("patterns %q: excluded (-git +we):\n%s", patterns, diff)
		}
	})
}

// makeTree makes a tree of names, three levels deep, and returns its paths;
// a slash at the end marks a directory.
func makeTree(t *testing.T, top string) []string {
	t.Helper()
	var paths []string
	var fill func(dir string, depth int)
	fill = func(dir string, depth int) {
		for i, n := range names {
			p := dir + n
			if depth > 0 && i%3 == depth%3 {
				if err := os.Mkdir(filepath.Join(top, p), 0o700); err != nil {
					t.Fatal(err)
				}
				paths = append(paths, p+"/")
				fill(p+"/", depth-1)
				continue
			}
			if err := os.WriteFile(filepath.Join(top, p), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			paths = append(paths, p)
		}
	}
	fill("", 3)
	slices.Sort(paths)
	return paths
}
