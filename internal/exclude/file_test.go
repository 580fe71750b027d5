package exclude

import (
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

// lineGen makes lines of a file that patterns of a configuration may not be, too. Of a range that
// ends before it starts git takes the first byte: we do not.
var lineGen = rapid.OneOf(patternGen, patternGen, patternGen,
	rapid.SampledFrom([]string{"# a.o", "", " ", "/", "!", "!/", "./a", "a//b", "../a", `a\`, "[a", "[]", "[[:no:]]", "[[:alpha", "a\t", "*.o\r", "a \r", `b\ `, "[!a"}))

// TestFilesGit asks git what it makes of files of patterns on several levels of the same tree,
// lines that can be no patterns among them; and of patterns that are given beside.
func TestFilesGit(t *testing.T) {
	testenv.Need(t, testenv.Tool("git"))
	const git = "git"
	top := t.TempDir()
	run := gitIn(t, git, top)
	if _, err := run("", "init", "-q"); err != nil {
		t.Fatal(err)
	}
	paths := makeTree(t, top)
	dirs := []string{""}
	var stdin strings.Builder
	for _, p := range paths {
		if dir, ok := strings.CutSuffix(p, "/"); ok {
			dirs = append(dirs, dir)
		}
		stdin.WriteString(strings.TrimSuffix(p, "/") + "\x00")
	}
	decided := 0
	rapid.Check(t, func(t *rapid.T) {
		texts := map[string][]byte{}
		for _, dir := range append(rapid.SliceOfN(rapid.SampledFrom(dirs), 1, 4).Draw(t, "dirs"), "") {
			lines := rapid.SliceOfN(lineGen, 1, 4).Draw(t, dir)
			text := strings.Join(lines, "\n")
			if rapid.Bool().Draw(t, "line break at the end") {
				text += "\n"
			}
			if rapid.IntRange(0, 9).Draw(t, "byte order mark") == 0 {
				text = "\ufeff" + text
			}
			texts[dir] = []byte(text)
		}
		for dir, text := range texts {
			name := filepath.Join(top, dir, ".gitignore")
			if err := os.WriteFile(name, text, 0o600); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(name)
		}
		out, err := run(stdin.String(), "check-ignore", "--no-index", "-z", "--stdin")
		if ee, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || ee.ExitCode() != 1) {
			t.Fatal(err)
		}
		got := treeExcluded(paths, nil, texts)
		if diff := cmp.Diff(split(out), got); diff != "" {
			t.Fatalf("files %q: excluded (-git +we):\n%s", texts, diff)
		}
		decided += len(got)

		// Patterns that are given beside have the last word: --exclude of git ls-files.
		patterns := rapid.SliceOfN(patternGen, 1, 2).Draw(t, "patterns")
		m, err := Compile(patterns)
		if err != nil {
			return
		}
		args := []string{"ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"}
		for _, p := range patterns {
			// There git takes them as they are, without the rules for lines.
			if p = trimSpaces(p); p == "" || p[0] == '#' {
				return
			}
			args = append(args, "--exclude="+p)
		}
		if out, err = run("", args...); err != nil {
			t.Fatal(err)
		}
		kept := split(out)
		slices.Sort(kept)
		kept = slices.DeleteFunc(kept, func(p string) bool { return filepath.Base(p) == ".gitignore" })
		left := treeExcluded(paths, m, texts)
		var want []string
		for _, p := range paths {
			if !strings.HasSuffix(p, "/") && !slices.Contains(left, p) {
				want = append(want, p)
			}
		}
		if diff := cmp.Diff(kept, want); diff != "" {
			t.Fatalf("files %q, patterns %q: kept (-git +we):\n%s", texts, patterns, diff)
		}
	})
	if decided == 0 {
		t.Error("nothing was excluded in any round")
	}
}

func split(out string) []string {
	if out == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
}

// treeExcluded returns those of paths, which are sorted, that are left out by what m says and by
// the files, by directory.
func treeExcluded(paths []string, m *Matcher, texts map[string][]byte) []string {
	dirs := map[string]*Dir{}
	dirs[""], _ = (*Dir)(nil).With("", texts[""])
	gone := map[string]bool{}
	var out []string
	for _, p := range paths {
		name, dir := strings.CutSuffix(p, "/")
		up := ""
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			up = name[:i]
		}
		v := m.Match(name, dir)
		if v == Undecided {
			v = dirs[up].Match(name, dir)
		}
		if gone[up] || v == Excluded {
			out, gone[name] = append(out, name), dir
			continue
		}
		if dir {
			dirs[name], _ = dirs[up].With(name, texts[name])
		}
	}
	return out
}

func TestFileErrors(t *testing.T) {
	full, err := (*Dir)(nil).With("", []byte(strings.Repeat("x\n", maxPatterns)))
	if err != nil {
		t.Fatal(err)
	}
	deep := (*Dir)(nil)
	for range maxFiles {
		if deep, err = deep.With("", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		up   *Dir
		text string
		err  string
	}{
		{"a bad line", nil, "y\na//b\nz", "line 2 has an empty name between two slashes"},
		{"several", nil, "[\ny\n[\nz\n[", "line 1 has a [ without its ], and 2 more are wrong"},
		{"a long one", nil, "y\nz\n" + strings.Repeat("a", maxPattern+1), "line 3 has a pattern of more than 4096 bytes"},
		{"no text at all", nil, "y\nz\n\x00\x01\x02", "line 3 has a NUL or a line break"},
		{"a long comment", nil, "y\nz\n#" + strings.Repeat("a", maxPattern), ""},
		{"too large", deep.up, "y\nz\n#" + strings.Repeat("a", MaxFile), "has more than 256 KiB"},
		{"too many patterns", full, "y\nz", "makes more than 10000 patterns, with those of the directories above it"},
		{"too deep", deep, "y\nz", "is one more than 64 files of patterns in the directories above it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := tt.up.With("", []byte(tt.text))
			fe, _ := errors.AsType[*FileError](err)
			if tt.err == "" && err != nil || tt.err != "" && (fe == nil || err.Error() != tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			whole := fe != nil && fe.Line == 0
			if whole && d != tt.up {
				t.Error("a file that is refused says something")
			}
			for _, name := range []string{"y", "z"} {
				if got := d.Match(name, false) == Excluded; got == whole {
					t.Errorf("%s is excluded: %v", name, got)
				}
			}
		})
	}
}

func FuzzWith(f *testing.F) {
	f.Add([]byte("*.o\n!a.o\n/b/\r\n#c\n"), "d/a.o")
	f.Add([]byte("\ufeff[!a-z]/**/x\n\\"), "A/x")
	f.Fuzz(func(t *testing.T, text []byte, path string) {
		d, err := (*Dir)(nil).With("d", text)
		if fe, ok := errors.AsType[*FileError](err); err != nil && (!ok || fe.Line < 0 || fe.Line > 1+strings.Count(string(text), "\n")) {
			t.Fatalf("error %v", err)
		}
		if d != nil && len(d.rules) > len(text) {
			t.Fatalf("%d rules of %d bytes", len(d.rules), len(text))
		}
		path = "d/" + path
		// In a directory further up the same text says the same of the same path below it.
		up, _ := (*Dir)(nil).With("d/e", text)
		if got, want := up.Match("d/e/"+path[2:], true), d.Match(path, true); got != want {
			t.Errorf("%q: %v in d, %v in d/e", path, want, got)
		}
	})
}
