package zfsvm

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A source is an entry of apt's lists for binary packages (sources.list(5)).
type source struct {
	URIs       []string
	Suites     []string
	Components []string
	Keyring    string // path of the keys it is signed with; "" means apt's usual ones
	Trusted    bool   // its signature is not checked
}

// A mirror is where this machine has its Debian from.
type mirror struct {
	Main     string // has the suite and its backports
	Security string // has the suite's security updates; "" if there is none
	Keyring  string
	Trusted  bool
}

// hostSources reads apt's sources below etc, /etc/apt as a rule.
func hostSources(etc string) ([]source, error) {
	var all []source
	names, err := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	if err != nil {
		return nil, err
	}
	for _, name := range append([]string{filepath.Join(etc, "sources.list")}, names...) {
		parse := parseList
		switch filepath.Ext(name) {
		case ".list":
		case ".sources":
			parse = parseDeb822
		default:
			continue // as apt does
		}
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sources, err := parse(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, sources...)
	}
	return all, nil
}

// parseList reads the format with a line for each source. Lines that are none are
// left out.
func parseList(r io.Reader) ([]source, error) {
	var all []source
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")), " ")
		if kind != "deb" {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if after, ok := strings.CutPrefix(rest, "["); ok {
			options, after, ok := strings.Cut(after, "]")
			if !ok {
				continue
			}
			for _, option := range strings.Fields(options) {
				key, value, _ := strings.Cut(option, "=")
				s.option(strings.TrimSuffix(key, "+"), value)
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		s.URIs, s.Suites, s.Components = f[:1], f[1:2], f[2:]
		all = append(all, s)
	}
	return all, lines.Err()
}

// parseDeb822 reads the format with a stanza for each source.
func parseDeb822(r io.Reader) ([]source, error) {
	var all []source
	fields := map[string]string{}
	add := func() {
		s := source{
			URIs:       strings.Fields(fields["uris"]),
			Suites:     strings.Fields(fields["suites"]),
			Components: strings.Fields(fields["components"]),
		}
		for key, value := range fields {
			s.option(key, value)
		}
		off := slices.Contains([]string{"no", "false", "0", "off", "without", "disable"},
			strings.ToLower(strings.TrimSpace(fields["enabled"])))
		if !off && slices.Contains(strings.Fields(fields["types"]), "deb") && len(s.URIs) > 0 && len(s.Suites) > 0 {
			all = append(all, s)
		}
		clear(fields)
	}
	last := ""
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), "\r")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			add()
			last = ""
		case line[0] == ' ' || line[0] == '\t':
			fields[last] += "\n" + line
		default:
			key, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(strings.TrimSpace(key))
			fields[last] = value
		}
	}
	add()
	return all, lines.Err()
}

// option sets what bears on how packages are checked.
func (s *source) option(key, value string) {
	value = strings.TrimSpace(value)
	switch strings.ToLower(key) {
	case "signed-by":
		// A key may stand here itself, or its fingerprint: those of Debian are
		// among the usual ones as well.
		if filepath.IsAbs(value) && !strings.ContainsAny(value, ", \n") {
			s.Keyring = value
		}
	case "trusted":
		s.Trusted = slices.Contains([]string{"yes", "true", "1", "on", "with", "enable"}, strings.ToLower(value))
	}
}

// debianSuites are names under which a mirror of Debian may stand in a machine's
// sources. Every such mirror has all of them.
var debianSuites = []string{
	"bullseye", "bookworm", "trixie", "forky", "sid",
	"oldoldstable", "oldstable", "stable", "testing", "unstable",
}

// findMirror chooses from a machine's sources the mirror of Debian to have suite
// from. What a vendor offers for a release of Debian is no mirror of it, though it
// may look like one: entries with the updates of a release, or signed with the
// archive's keys, come first.
func findMirror(sources []source, suite string) (mirror, error) {
	type candidate struct {
		mirror
		rank int
	}
	var found []candidate
	var security string
	updates := map[string]bool{}
	for _, s := range sources {
		for _, name := range s.Suites {
			if strings.HasSuffix(name, "-updates") {
				for _, u := range s.URIs {
					updates[u] = true
				}
			}
		}
	}
	for _, s := range sources {
		if !slices.Contains(s.Components, "main") {
			continue
		}
		for _, u := range s.URIs {
			if p, err := url.Parse(u); err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" {
				continue
			}
			if security == "" && slices.Contains(s.Suites, suite+"-security") {
				security = u
			}
			for _, name := range s.Suites {
				if !slices.Contains(debianSuites, name) {
					continue
				}
				c := candidate{mirror: mirror{Main: u, Keyring: s.Keyring, Trusted: s.Trusted}}
				if updates[u] {
					c.rank += 4
				}
				if strings.HasPrefix(filepath.Base(s.Keyring), "debian-archive-") {
					c.rank += 2
				}
				if name == suite {
					c.rank++
				}
				found = append(found, c)
			}
		}
	}
	if len(found) == 0 {
		return mirror{}, errors.New("no mirror of Debian that is reached by http or https among this machine's apt sources")
	}
	best := slices.MaxFunc(found, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
	best.Security = security
	return best.mirror, nil
}
