package zpl

import (
	"errors"
	"slices"
	"strings"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// Xattrs decodes the extended attributes that are kept among the attributes
// (section 4.8), by their names on Linux and sorted. Those in a directory of their own
// ([Attr.Xattr]) are not among them: see [MergeXattrs]. Values are copies. Errors are
// *FormatError.
func (a *Attr) Xattrs() ([]filetree.Xattr, error) {
	if len(a.DXattr) == 0 {
		return nil, nil
	}
	list, err := nvlist.Parse(a.DXattr)
	if err != nil {
		return nil, &FormatError{"extended attributes", 0, err}
	}
	xattrs := make([]filetree.Xattr, 0, len(list))
	for i := range list {
		value, ok := list[i].Value.([]byte)
		if !ok || list[i].Type != nvlist.ByteArray || list[i].Name == "" {
			return nil, &FormatError{"extended attributes", 0, errors.New("a value is no array of bytes, or has no name")}
		}
		xattrs = append(xattrs, filetree.Xattr{Name: XattrName(list[i].Name), Value: value})
	}
	filetree.SortXattrs(xattrs)
	for i := 1; i < len(xattrs); i++ {
		if xattrs[i].Name == xattrs[i-1].Name {
			return nil, bad("extended attributes", 0, "%q is there twice", xattrs[i].Name)
		}
	}
	return xattrs, nil
}

// MergeXattrs returns the attributes of a file that has some among its attributes and
// some in a directory, sorted. Of two with the same name the first kind counts.
func MergeXattrs(inline, dir []filetree.Xattr) []filetree.Xattr {
	all := slices.Concat(inline, dir)
	slices.SortStableFunc(all, func(a, b filetree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(all, func(a, b filetree.Xattr) bool { return a.Name == b.Name })
}

var namespaces = []string{"user.", "trusted.", "security.", "system.", "freebsd:"}

// XattrName returns the name that an extended attribute has on Linux. FreeBSD, illumos
// and Linux with zfs_xattr_compat leave away user. in what they store. POSIX ACLs are
// the attributes system.posix_acl_access and system.posix_acl_default, with the values
// that Linux gives (section 4.6).
func XattrName(stored string) string {
	for _, ns := range namespaces {
		if strings.HasPrefix(stored, ns) {
			return stored
		}
	}
	return "user." + stored
}
