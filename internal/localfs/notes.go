package localfs

import (
	"cmp"
	"slices"
	"sync"
)

// What a Note can say was not restored. Attributes have one for each namespace, see
// [LostXattr].
const (
	LostOwner   = "owner"
	LostMode    = "mode"
	LostFlags   = "file flags"
	LostProject = "project id"
	LostACL     = "NFSv4 ACL" // of every node that has one: Linux has no way to set it
	LostTime    = "modification time"
	LostBirth   = "birth and change time" // of every node, on every Linux
)

// LostXattr is what a Note says of attributes of a namespace: user, trusted,
// security, system or btrfs.
func LostXattr(namespace string) string {
	switch namespace {
	case "user", "trusted", "security", "system", "btrfs":
		return "attribute " + namespace + ".*"
	}
	return "attribute"
}

// A Note says how often something was not restored because the target could not
// hold it, and names the first nodes.
type Note struct {
	What  string // one of the constants above, or a LostXattr
	Count int64
	Names []string // at most [MaxNames], paths below the target
}

// MaxNames is how many names a Note has at most.
const MaxNames = 5

// Notes returns what could not be restored so far, sorted by What. Nodes that could
// not be made at all are errors, not notes.
func (t *Target) Notes() []Note {
	t.notes.mu.Lock()
	defer t.notes.mu.Unlock()
	var ns []Note
	for _, n := range t.notes.m {
		ns = append(ns, Note{n.What, n.Count, slices.Clone(n.Names)})
	}
	slices.SortFunc(ns, func(a, b Note) int { return cmp.Compare(a.What, b.What) })
	return ns
}

type notes struct {
	mu sync.Mutex // guards m
	m  map[string]*Note
}

func (ns *notes) add(what string, name func() string) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	n := ns.m[what]
	if n == nil {
		if ns.m == nil {
			ns.m = map[string]*Note{}
		}
		n = &Note{What: what}
		ns.m[what] = n
	}
	n.Count++
	if len(n.Names) < MaxNames {
		n.Names = append(n.Names, name())
	}
}
