package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
)

// Ignore says what Diff does not compare. The zero value compares everything.
type Ignore struct {
	// Ino leaves out inode numbers. Which names are links to one file is compared
	// all the same.
	Ino      bool
	Mtime    bool
	Ctime    bool
	Otime    bool
	DirSize  bool // directories have a size of the file system's choice
	DirNlink bool // directories of Btrfs have 1 link
	Owner    bool
	FSFlags  bool
	Extents  bool // where the holes are
	Xattrs   bool
	Nested   bool // the directories where nested subvolumes start
}

// A Difference is one thing that is not as wanted.
type Difference struct {
	Path  string // plain bytes
	Field string // as in a manifest file; "missing" or "unexpected" for the whole entry
	Want  string
	Got   string
}

// String returns one line. Long names are cut in it, not in Path.
func (d Difference) String() string {
	switch d.Field {
	case "missing":
		return fmt.Sprintf("%s: missing: %s", quote(d.Path), d.Want)
	case "unexpected":
		return fmt.Sprintf("%s: unexpected: %s", quote(d.Path), d.Got)
	}
	return fmt.Sprintf("%s: %s: want %s, got %s", quote(d.Path), d.Field, d.Want, d.Got)
}

// Diff compares two manifests, in any order, and returns what differs, by path.
func Diff(want, got []Entry, ig Ignore) []Difference {
	w, g := prepare(want, ig), prepare(got, ig)
	var all []Difference
	for i, j := 0, 0; i < len(w) || j < len(g); {
		c := 0
		switch {
		case j == len(g):
			c = -1
		case i == len(w):
			c = 1
		default:
			c = comparePaths(w[i].Path, g[j].Path)
		}
		switch {
		case c < 0:
			all = append(all, Difference{Path: w[i].Path, Field: "missing", Want: w[i].Entry.String()})
			i++
		case c > 0:
			all = append(all, Difference{Path: g[j].Path, Field: "unexpected", Got: g[j].Entry.String()})
			j++
		default:
			all = compare(all, &w[i], &g[j], ig)
			i++
			j++
		}
	}
	return all
}

// Report returns up to limit differences (0: all), a line each, and how many there
// are more.
func Report(all []Difference, limit int) string {
	var b strings.Builder
	for i, d := range all {
		if limit > 0 && i == limit {
			fmt.Fprintf(&b, "and %d more\n", len(all)-i)
			break
		}
		fmt.Fprintln(&b, d)
	}
	return b.String()
}

// A linked is an Entry with the first path of the same file.
type linked struct {
	*Entry
	first string
}

// prepare returns the entries that count, sorted.
func prepare(entries []Entry, ig Ignore) []linked {
	all := make([]linked, 0, len(entries))
	for i := range entries {
		if e := &entries[i]; !e.Nested || !ig.Nested {
			all = append(all, linked{e, e.Path})
		}
	}
	slices.SortFunc(all, func(a, b linked) int { return comparePaths(a.Path, b.Path) })
	first := map[uint64]string{}
	for i, e := range all {
		if e.Kind == filetree.Dir || e.Nlink < 2 {
			continue
		}
		if p, ok := first[e.Ino]; ok {
			all[i].first = p
		} else {
			first[e.Ino] = e.Path
		}
	}
	return all
}

// comparePaths orders paths as a walk does: what is in a directory comes directly after
// it, before a name that only starts with the directory's name.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

func compare(all []Difference, w, g *linked, ig Ignore) []Difference {
	add := func(field string, want, got any) {
		all = append(all, Difference{w.Path, field, fmt.Sprint(want), fmt.Sprint(got)})
	}
	if w.Kind != g.Kind {
		add("type", w.Entry, g.Entry)
		return all
	}
	dir := w.Kind == filetree.Dir
	if w.Nested != g.Nested {
		add("nested", w.Nested, g.Nested)
	}
	if !ig.Ino && w.Ino != g.Ino {
		add("ino", w.Ino, g.Ino)
	}
	if w.first != g.first {
		add("link of", quote(w.first), quote(g.first))
	}
	if w.Mode != g.Mode {
		add("mode", fmt.Sprintf("%04o", w.Mode), fmt.Sprintf("%04o", g.Mode))
	}
	if !ig.Owner && (w.UID != g.UID || w.GID != g.GID) {
		add("owner", fmt.Sprintf("%d:%d", w.UID, w.GID), fmt.Sprintf("%d:%d", g.UID, g.GID))
	}
	if w.Size != g.Size && !(dir && ig.DirSize) {
		add("size", w.Size, g.Size)
	}
	if w.Nlink != g.Nlink && !(dir && ig.DirNlink) {
		add("nlink", w.Nlink, g.Nlink)
	}
	for _, t := range []struct {
		field     string
		want, got filetree.Time
		ignore    bool
	}{
		{"mtime", w.Mtime, g.Mtime, ig.Mtime},
		{"ctime", w.Ctime, g.Ctime, ig.Ctime},
		{"otime", w.Otime, g.Otime, ig.Otime},
	} {
		if t.want != t.got && !t.ignore {
			add(t.field, fmt.Sprintf("%d.%09d", t.want.Sec, t.want.Nsec), fmt.Sprintf("%d.%09d", t.got.Sec, t.got.Nsec))
		}
	}
	if !ig.FSFlags && w.FSFlags != g.FSFlags {
		add("fsflags", fmt.Sprintf("%#x", w.FSFlags), fmt.Sprintf("%#x", g.FSFlags))
	}
	if w.Target != g.Target {
		add("target", quote(w.Target), quote(g.Target))
	}
	if w.Major != g.Major || w.Minor != g.Minor {
		add("rdev", fmt.Sprintf("%d:%d", w.Major, w.Minor), fmt.Sprintf("%d:%d", g.Major, g.Minor))
	}
	// A file of another size has another content; that is said already.
	if w.Size == g.Size && (w.SHA256 != g.SHA256 || w.Sparse != g.Sparse) {
		add("sha256", fmt.Sprintf("%x", w.SHA256[:8]), fmt.Sprintf("%x", g.SHA256[:8]))
	}
	if !ig.Extents && !slices.Equal(w.Extents, g.Extents) {
		add("extents", w.Extents, g.Extents)
	}
	if !ig.Xattrs {
		all = compareXattrs(all, w.Path, w.Xattrs, g.Xattrs)
	}
	return all
}

func compareXattrs(all []Difference, path string, want, got []filetree.Xattr) []Difference {
	if filetree.EqualXattrs(want, got) {
		return all
	}
	values := func(attrs []filetree.Xattr) map[string]string {
		m := map[string]string{}
		for _, x := range attrs {
			m[x.Name] = fmt.Sprintf("%d bytes %.32q", len(x.Value), x.Value)
		}
		return m
	}
	w, g := values(want), values(got)
	names := map[string]bool{}
	for _, x := range slices.Concat(want, got) {
		names[x.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if cmp.Or(w[name], "none") != cmp.Or(g[name], "none") || !equalValue(name, want, got) {
			all = append(all, Difference{path, "xattr " + Show(name), cmp.Or(w[name], "none"), cmp.Or(g[name], "none")})
		}
	}
	return all
}

func equalValue(name string, a, b []filetree.Xattr) bool {
	find := func(attrs []filetree.Xattr) string {
		for _, x := range attrs {
			if x.Name == name {
				return string(x.Value)
			}
		}
		return ""
	}
	return find(a) == find(b)
}

// quote returns a path for a person to read: escaped, its long names cut.
func quote(path string) string {
	const most = 40
	names := strings.Split(path, "/")
	for i, name := range names {
		if len(name) > most {
			names[i] = fmt.Sprintf("%s…(%d bytes)", Show(name[:most/2]), len(name))
		} else {
			names[i] = Show(name)
		}
	}
	return `"` + strings.Join(names, "/") + `"`
}
