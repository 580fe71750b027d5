package zfsvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseList(t *testing.T) {
	const list = `# a comment
deb http://a.example/debian bookworm main contrib # and one behind
deb-src http://a.example/debian bookworm main
	deb	[ arch=amd64 signed-by=/usr/share/keyrings/k.gpg ]	https://b.example/debian/ stable  main
deb [trusted=yes] http://c.example/debian ./
deb [signed-by=/a.gpg,/b.gpg trusted=no] http://d.example/debian sid main
deb cdrom:[Debian GNU/Linux 12 _Bookworm_]/ bookworm main
deb [arch=amd64 http://open.example/debian bookworm main
deb
deb http://alone.example
debian http://x.example bookworm main
deb http://last.example/debian bookworm`
	got, err := parseList(strings.NewReader(list))
	if err != nil {
		t.Fatal(err)
	}
	want := []source{
		{URIs: []string{"http://a.example/debian"}, Suites: []string{"bookworm"}, Components: []string{"main", "contrib"}},
		{URIs: []string{"https://b.example/debian/"}, Suites: []string{"stable"}, Components: []string{"main"}, Keyring: "/usr/share/keyrings/k.gpg"},
		{URIs: []string{"http://c.example/debian"}, Suites: []string{"./"}, Components: []string{}, Trusted: true},
		{URIs: []string{"http://d.example/debian"}, Suites: []string{"sid"}, Components: []string{"main"}},
		{URIs: []string{"cdrom:[Debian"}, Suites: []string{"GNU/Linux"}, Components: []string{"12", "_Bookworm_]/", "bookworm", "main"}},
		{URIs: []string{"http://last.example/debian"}, Suites: []string{"bookworm"}, Components: []string{}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

func TestParseDeb822(t *testing.T) {
	const stanzas = "Types: deb deb-src\r\nURIs: http://a.example/debian http://b.example/debian\r\n" +
		"Suites: bookworm\n bookworm-updates\n# in the middle\nComponents: main\nSigned-By: /k.gpg\n\n" +
		"types: deb\nuris: http://c.example/debian\nsuites: sid\ncomponents: main\nenabled: no\n\n" +
		" a continuation of nothing\nTypes: deb-src\nURIs: http://d.example/debian\nSuites: sid\nComponents: main\n \t \n" +
		"Types: deb\nURIs: http://e.example/debian\nSuites: sid\nComponents: main\nTrusted: yes\nSigned-By:\n" +
		" -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----\n\n\n" +
		"Types: deb\nSuites: sid\nComponents: main"
	got, err := parseDeb822(strings.NewReader(stanzas))
	if err != nil {
		t.Fatal(err)
	}
	want := []source{
		{
			URIs: []string{"http://a.example/debian", "http://b.example/debian"}, Suites: []string{"bookworm", "bookworm-updates"},
			Components: []string{"main"}, Keyring: "/k.gpg",
		},
		{URIs: []string{"http://e.example/debian"}, Suites: []string{"sid"}, Components: []string{"main"}, Trusted: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [trusted=yes] http://a.example/debian bookworm main")
	f.Add("Types: deb\nURIs: http://a.example/debian\nSuites: bookworm\nComponents: main\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines, _ := parseList(strings.NewReader(text))
		stanzas, _ := parseDeb822(strings.NewReader(text))
		for _, s := range append(lines, stanzas...) {
			if len(s.URIs) == 0 || len(s.Suites) == 0 {
				t.Errorf("a source without an address or a suite: %+v", s)
			}
			if s.Keyring != "" && !filepath.IsAbs(s.Keyring) {
				t.Errorf("keyring %q", s.Keyring)
			}
		}
		m, err := findMirror(append(lines, stanzas...), "bookworm")
		if err == nil && !strings.HasPrefix(strings.ToLower(m.Main), "http") {
			t.Errorf("mirror %q", m.Main)
		}
	})
}

func TestFindMirror(t *testing.T) {
	tests := []struct {
		name, list string
		want       mirror // zero: an error
	}{
		{name: "none", list: ""},
		{name: "only other distributions", list: "deb http://u.example/ubuntu noble main\ndeb https://v.example nodistro main"},
		{name: "only what is not fetched", list: "deb file:/srv/debian bookworm main\ndeb cdrom:[x]/ bookworm main\ndeb mirror+file:/m bookworm main"},
		{name: "not main", list: "deb https://v.example/linux/debian bookworm stable"},
		{name: "no host", list: "deb http:///debian bookworm main\ndeb http: bookworm main\ndeb http://%zz/ bookworm main"},
		{
			name: "the usual", list: "deb http://a.example/debian bookworm main\ndeb http://s.example/debian-security bookworm-security main",
			want: mirror{Main: "http://a.example/debian", Security: "http://s.example/debian-security"},
		},
		{
			name: "a vendor that looks like Debian, first", list: "deb http://v.example/debian bookworm main\n" +
				"deb http://a.example/debian bookworm main\ndeb http://a.example/debian bookworm-updates main",
			want: mirror{Main: "http://a.example/debian"},
		},
		{
			name: "the archive's keys", list: "deb http://v.example/debian bookworm main\n" +
				"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://a.example/debian trixie main",
			want: mirror{Main: "https://a.example/debian", Keyring: "/usr/share/keyrings/debian-archive-keyring.gpg"},
		},
		{
			name: "another release, whose security is not ours", list: "deb http://a.example/debian trixie main\n" +
				"deb http://s.example/debian-security trixie-security main",
			want: mirror{Main: "http://a.example/debian"},
		},
		{
			name: "trusted", list: "deb [trusted=yes] http://a.example/debian stable main",
			want: mirror{Main: "http://a.example/debian", Trusted: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sources, err := parseList(strings.NewReader(tt.list))
			if err != nil {
				t.Fatal(err)
			}
			got, err := findMirror(sources, "bookworm")
			if (err != nil) != (tt.want == mirror{}) {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("mirror (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostSources(t *testing.T) {
	etc := t.TempDir()
	for name, text := range map[string]string{
		"sources.list":                  "deb http://1.example/debian bookworm main",
		"sources.list.d/a.list":         "deb http://2.example/debian bookworm main",
		"sources.list.d/b.sources":      "Types: deb\nURIs: http://3.example/debian\nSuites: bookworm\nComponents: main",
		"sources.list.d/c.list.save":    "deb http://4.example/debian bookworm main",
		"sources.list.d/d.sources.save": "Types: deb\nURIs: http://5.example/debian\nSuites: bookworm\nComponents: main",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(etc, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all, err := hostSources(etc)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range all {
		got = append(got, s.URIs...)
	}
	want := []string{"http://1.example/debian", "http://2.example/debian", "http://3.example/debian"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if all, err := hostSources(filepath.Join(etc, "nothing")); err != nil || all != nil {
		t.Errorf("a machine without apt: %v, %v", all, err)
	}
}
