// Package archtest keeps the imports of this module as the design draws them: data
// flows from left to right, imports point at the nouns. Its test is the package.
//
//	snapshot ─► sendstream ─┐
//	                        ├─► filetree ─► s3history ─► store
//	watch, scan ────────────┘
//
// [Rules] says, for every package, which others of this module it may import.
// When the test fails, the import is wrong or the table is: a change of the table is
// a change of the design.
package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Module is the path of this module.
const Module = "github.com/secrate/secrate"

// A Rule says what the packages that a pattern names may import.
type Rule struct {
	// Package is a path below the module, in which * stands for one name. The first
	// rule that matches a package is the one for it.
	Package string
	// May is the union of these groups: patterns as above, "dir/..." for a whole
	// tree, "..." for all.
	May []string
}

// The groups of packages that rules speak of.
var (
	// Nouns are what all speak of. They import nothing of ours. So does crashpoint,
	// which is nothing at all outside a crash sweep.
	nouns = []string{"internal/filetree", "s3history/store", "internal/crashpoint"}

	// Leaves do one thing each and know the nouns alone.
	leaves = []string{
		"internal/catalog", "internal/config", "internal/delta", "internal/exclude", "internal/hook", "internal/keep",
		"internal/localfs", "internal/progress", "internal/rolling", "internal/schedule", "internal/seal", "internal/status",
		"internal/watch", "internal/when",
	}

	// Contracts are what pipelines know of what is behind an implementation.
	contracts = []string{"s3history", "sendstream", "sendstream/*", "snapshot"}

	// Tests have the run of the place.
	all = []string{"..."}
)

// Rules is the table. Packages need not exist yet.
var Rules = []Rule{
	{"internal/crashpoint", nil},
	{"internal/filetree", nil},
	{"s3history/store", nil},

	{"internal/catalog", nouns},
	{"internal/config", join(nouns, "internal/keep", "internal/schedule")},
	{"internal/delta", nouns},
	{"internal/exclude", nouns},
	{"internal/hook", nil},
	{"internal/keep", nil},
	{"internal/localfs", nouns},
	{"internal/progress", nouns},
	{"internal/rolling", nil},
	{"internal/schedule", nil},
	{"internal/seal", nouns},
	{"internal/status", nouns},
	{"internal/watch", join(nouns, "internal/localfs")},
	{"internal/when", nouns},

	{"sendstream", nouns},
	{"sendstream/sendtest", nouns},
	// A ZFS stream is a format in formats: records, lists, the file system's own.
	{"sendstream/zfs", join(nouns, "sendstream", "sendstream/zfs/*")},
	{"sendstream/zfs/nvlist", nil},
	{"sendstream/zfs/*", join(nouns, "sendstream/zfs/nvlist")},
	{"sendstream/*", join(nouns, "sendstream")},

	{"snapshot", nouns},
	{"snapshot/*", join(nouns, "snapshot", "internal/localfs")},

	// The one place outside cmd that names implementations of a store: it turns
	// an address into one.
	{"s3history/store/open", join(nouns, "s3history/store/*")},
	{"s3history/store/*", nouns},

	{"s3history", join(nouns, join(leaves, "s3history/*")...)},
	{"s3history/*", join(nouns, join(leaves, "s3history/*")...)},

	{"internal/backup", join(nouns, join(leaves, contracts...)...)},
	{"internal/restore", join(nouns, join(leaves, contracts...)...)},
	// What joins the two implementations that one file system has.
	{"internal/zfsvolume", join(nouns, "internal/backup", "internal/localfs", "s3history", "sendstream/zfs", "snapshot/zfs")},
	{"internal/btrfsvolume", join(nouns, "internal/backup", "internal/config", "s3history", "sendstream/btrfs", "snapshot/btrfs")},
	{"internal/daemon", join(nouns, join(leaves, join(contracts, "internal/backup", "internal/restore", "internal/web")...)...)},
	{"internal/web", join(nouns, join(leaves, join(contracts, "internal/restore")...)...)},

	{"cmd/*", []string{"cmd/...", "internal/...", "s3history/...", "sendstream/...", "snapshot/..."}},

	{"testenv/...", all},
}

// testOnly are packages that nothing but tests, and they themselves, may import.
var testOnly = []string{"testenv/...", "s3history/store/storetest", "sendstream/sendtest"}

// A Package is one of this module, as go list describes it.
type Package struct {
	ImportPath string
	Imports    []string // without those of its tests
}

// Check returns what breaks the rules, a sentence each.
func Check(packages []Package, rules []Rule) []string {
	var faults []string
	for _, p := range packages {
		name, ok := own(p.ImportPath)
		if !ok {
			continue
		}
		var rule *Rule
		if i := slices.IndexFunc(rules, func(r Rule) bool { return match(r.Package, name) }); i >= 0 {
			rule = &rules[i]
		}
		for _, imp := range p.Imports {
			imported, ok := own(imp)
			switch {
			case !ok:
			case matchAny(testOnly, imported) && !matchAny(testOnly, name):
				faults = append(faults, fmt.Sprintf("%s imports %s, which only tests may", name, imported))
			case rule == nil:
				faults = append(faults, fmt.Sprintf("%s imports %s and has no rule: give it one in internal/archtest", name, imported))
			case !matchAny(rule.May, imported):
				faults = append(faults, fmt.Sprintf("%s imports %s, which the rule for %s does not allow", name, imported, rule.Package))
			}
		}
	}
	return faults
}

// own returns the path of a package below the module.
func own(importPath string) (name string, ok bool) {
	if importPath == Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, Module+"/")
}

func matchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, name) })
}

func match(pattern, name string) bool {
	if pattern == "..." {
		return true
	}
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == tree || strings.HasPrefix(name, tree+"/")
	}
	ok, err := path.Match(pattern, name)
	if err != nil {
		panic("archtest: internal error: " + err.Error())
	}
	return ok
}

func join(a []string, b ...string) []string { return slices.Concat(a, b) }
