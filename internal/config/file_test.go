package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestPaths(t *testing.T) {
	tests := []struct {
		name          string
		root          bool
		env           map[string]string
		flag          string
		config, state string
	}{
		{name: "root", root: true, config: "/etc/secrate/config.toml", state: "/var/lib/secrate"},
		{name: "root has no XDG place", root: true, env: map[string]string{"XDG_CONFIG_HOME": "/x", "XDG_STATE_HOME": "/y"}, config: "/etc/secrate/config.toml", state: "/var/lib/secrate"},
		{name: "others", config: "/home/ann/.config/secrate/config.toml", state: "/home/ann/.local/state/secrate"},
		{name: "XDG", env: map[string]string{"XDG_CONFIG_HOME": "/x", "XDG_STATE_HOME": "/y"}, config: "/x/secrate/config.toml", state: "/y/secrate"},
		{name: "a relative XDG place does not count", env: map[string]string{"XDG_CONFIG_HOME": "x"}, config: "/home/ann/.config/secrate/config.toml", state: "/home/ann/.local/state/secrate"},
		{name: "environment", root: true, env: map[string]string{"SECRATE_CONFIG": "/c", "SECRATE_STATE": "/s"}, config: "/c", state: "/s"},
		{name: "flag", env: map[string]string{"SECRATE_CONFIG": "/c"}, flag: "/f", config: "/f", state: "/home/ann/.local/state/secrate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := places{root: tt.root, getenv: func(k string) string { return tt.env[k] }, home: func() (string, error) { return "/home/ann", nil }}
			if got, err := p.config(tt.flag); got != tt.config || err != nil {
				t.Errorf("config: %s, %v; want %s", got, err, tt.config)
			}
			if got, err := p.state(); got != tt.state || err != nil {
				t.Errorf("state: %s, %v; want %s", got, err, tt.state)
			}
		})
	}
	p := places{getenv: func(string) string { return "" }, home: func() (string, error) { return "", errors.New("no home") }}
	if _, err := p.config(""); err == nil || !strings.Contains(err.Error(), "SECRATE_CONFIG") {
		t.Errorf("config without a home: %v", err)
	}
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etc", "secrate", "config.toml")
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load before: %v", err)
	}
	if err := Create(path, exampleConfig()); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(exampleConfig(), got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	before := read(t, path)
	if err := Create(path, &Config{Repository: Repository{URL: "/other"}}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create again: %v", err)
	}
	if read(t, path) != before {
		t.Error("Create overwrote a file")
	}
	checkAlone(t, path)
	for p, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %v", p, info.Mode().Perm(), want)
		}
	}
	if err := Create(filepath.Join(t.TempDir(), "c"), &Config{}); err == nil {
		t.Error("Create wrote a configuration that cannot be read")
	}
}

func TestWriteNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := writeNew(path, []byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := writeNew(path, []byte("b")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: %v", err)
	}
	if got := read(t, path); got != "a" {
		t.Errorf("content %q", got)
	}
}

func TestSources(t *testing.T) {
	// The text as somebody might have written it.
	const text = "# mine\n\n[repository]   # where\n  url='/r' \n\n\n# The\n# pictures.\n[[source]]\n   name = 'pics'\n# why btrfs?\n   mode=\"btrfs\"\n   path = \"/pics\"  # big\n# end of pictures\n\n# The rest.\n[[ source ]]\nname = \"rest\"\nmode = \"stream\"\nexclude = [\n  # none\n]\n# The end.\n"
	path := filepath.Join(t.TempDir(), "c.toml")
	put(t, path, text)

	added := Source{Name: "new", Path: "/n \"ew\"\n", Mode: Btrfs, Exclude: []string{`*.o`, `\#`}, Snapshots: "/s"}
	c, err := AddSource(path, added)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(added, c.Sources[2]); diff != "" {
		t.Errorf("source (-want +got):\n%s", diff)
	}
	want := text + "\n[[source]]\nname = \"new\"\npath = \"/n \\\"ew\\\"\\n\"\nmode = \"btrfs\"\nexclude = [\"*.o\", \"\\\\#\"]\nsnapshots = \"/s\"\n"
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("text after adding (-want +got):\n%s", diff)
	}

	tank := Source{Name: "tank", Mode: ZFS, Keep: "24 hourly, 7 daily", Dataset: "tank/a b", Recursive: true}
	vm := Source{Name: "vm", Mode: ZFS, Dataset: "vm", Adopt: []string{"auto*", "zrepl_*"}}
	for _, s := range []Source{tank, vm} {
		if c, err = AddSource(path, s); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]Source{added, tank, vm}, c.Sources[2:]); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	const datasets = "\n[[source]]\nname = \"tank\"\nmode = \"zfs\"\nkeep = \"24 hourly, 7 daily\"\ndataset = \"tank/a b\"\nrecursive = true\n" +
		"\n[[source]]\nname = \"vm\"\nmode = \"zfs\"\ndataset = \"vm\"\nadopt = [\"auto*\", \"zrepl_*\"]\n"
	if diff := cmp.Diff(want+datasets, read(t, path)); diff != "" {
		t.Errorf("text after adding datasets (-want +got):\n%s", diff)
	}
	for _, name := range []string{"vm", "tank"} {
		if _, err := RemoveSource(path, name); err != nil {
			t.Fatal(err)
		}
	}

	if _, err := RemoveSource(path, "pics"); err != nil {
		t.Fatal(err)
	}
	want = strings.Replace(want, "[[source]]\n   name = 'pics'\n# why btrfs?\n   mode=\"btrfs\"\n   path = \"/pics\"  # big\n", "", 1)
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("text after removing one with comments around it (-want +got):\n%s", diff)
	}

	if _, err := RemoveSource(path, "new"); err != nil {
		t.Fatal(err)
	}
	want, _, _ = strings.Cut(want, "\n[[source]]\nname = \"new\"")
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("text after removing what was added (-want +got):\n%s", diff)
	}
	checkAlone(t, path)
}

func TestSourcesRefused(t *testing.T) {
	const text = "[repository]\nurl = '/r'\n[[source]]\nname = 'a'\nmode = 'stream'\n"
	path := filepath.Join(t.TempDir(), "c.toml")
	put(t, path, text)
	if _, err := AddSource(path, Source{Name: "a", Mode: Stream}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second a: %v", err)
	}
	for _, s := range []Source{{}, {Name: "-", Mode: Stream}, {Name: "b"}, {Name: "b", Mode: Btrfs}, {Name: "b", Mode: Btrfs, Path: "/\xff"}} {
		if _, err := AddSource(path, s); err == nil {
			t.Errorf("AddSource(%+v): no error", s)
		}
	}
	var ue *UnknownSourceError
	if _, err := RemoveSource(path, "b"); !errors.As(err, &ue) {
		t.Errorf("no b to remove: %v", err)
	}
	if read(t, path) != text {
		t.Error("the file was changed")
	}

	const inline = "source = [{name = 'a', mode = 'stream'}]\nrepository = {url = '/r'}\n"
	put(t, path, inline)
	if _, err := Load(path); err != nil {
		t.Error(err)
	}
	if _, err := AddSource(path, Source{Name: "b", Mode: Stream}); err == nil || !strings.Contains(err.Error(), "left unchanged") {
		t.Errorf("AddSource to an inline list: %v", err)
	}
	if _, err := RemoveSource(path, "a"); err == nil {
		t.Error("RemoveSource from an inline list: no error")
	}
	if read(t, path) != inline {
		t.Error("the file was changed")
	}
}

func TestEditThroughLink(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real.toml"), filepath.Join(dir, "link.toml")
	put(t, real, "[repository]\nurl = '/r'\n")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if _, err := AddSource(link, Source{Name: "a", Mode: Stream}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Readlink(link); err != nil {
		t.Errorf("the link was replaced: %v", err)
	}
	if !strings.Contains(read(t, real), `"a"`) {
		t.Error("the file behind the link was not written")
	}
}

// TestEdits adds and removes at random; what the user wrote is always still there.
func TestEdits(t *testing.T) {
	const text = "# first\n[repository]\nurl = '''/r'''\n\n# [[source]]\n# name = 'commented out'\n\n[[source]]\nname = 'own'\nmode = 'stream'\nexclude = ['[[source]]', \"\"\"\n[[source]]\n\"\"\"]\n\n# last\n[upload]\nparallel = 3"
	top := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		path := filepath.Join(top, "c.toml")
		put(t, path, text)
		want, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		for n := range rapid.IntRange(1, 8).Draw(t, "steps") {
			var got *Config
			if len(want.Sources) > 1 && rapid.Bool().Draw(t, "remove") {
				i := rapid.IntRange(1, len(want.Sources)-1).Draw(t, "which")
				got, err = RemoveSource(path, want.Sources[i].Name)
				want.Sources = append(want.Sources[:i:i], want.Sources[i+1:]...)
			} else {
				s := Source{Name: fmt.Sprint("s", n), Mode: Files, Path: "/" + rapid.StringMatching(`[a-z"'\[\]#\\\t é=]*`).Draw(t, "path")}
				got, err = AddSource(path, s)
				want.Sources = append(want.Sources, s)
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("config (-want +got):\n%s", diff)
			}
			if !strings.HasPrefix(read(t, path), text+"\n") {
				t.Fatalf("what was there is no more:\n%s", read(t, path))
			}
		}
		for len(want.Sources) > 1 {
			if _, err := RemoveSource(path, want.Sources[1].Name); err != nil {
				t.Fatal(err)
			}
			want.Sources = append(want.Sources[:1:1], want.Sources[2:]...)
		}
		if diff := cmp.Diff(text+"\n", read(t, path)); diff != "" {
			t.Fatalf("text when all is removed (-want +got):\n%s", diff)
		}
	})
}

type fataler interface{ Fatal(...any) }

func put(t fataler, path, text string) {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t fataler, path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// checkAlone fails if there are other files beside path.
func checkAlone(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("left beside %s: %v", path, entries)
	}
}
