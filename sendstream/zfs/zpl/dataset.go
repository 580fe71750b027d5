package zpl

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/secrate/secrate/internal/filetree"
)

// MaxObject is the highest object number.
const MaxObject = 1<<48 - 1

// MaxVersion is the last ZPL version that is known.
const MaxVersion = 5

// ErrVersion is wrapped by the error of [DecodeMaster] for a ZPL version above
// [MaxVersion].
var ErrVersion = errors.New("unknown version of the file system")

// Case says how a dataset compares names. Entries are stored as they were made.
type Case uint64

// How names are compared.
const (
	CaseSensitive   Case = 0
	CaseInsensitive Case = 1
	CaseMixed       Case = 2 // as the client likes
)

// A Master is what the master node says, object 1 of every file system (section 4.9).
// Numbers are objects; 0 is none.
type Master struct {
	Root          uint64
	Version       uint64 // of the ZPL, 1 to 5
	DeleteQueue   uint64
	SAAttrs       uint64 // see DecodeSAMaster
	FUID          uint64 // see ParseDomains
	Shares        uint64 // of SMB; a directory that is not part of the tree
	Normalization uint64 // 0 none, 0x10 formD, 0x20 formKD, 0x50 formC, 0x60 formKC
	UTF8Only      bool
	Case          Case
}

// DecodeMaster finds in the entries of the master node what it says. Other entries,
// such as quotas, mean nothing here. Errors are *FormatError, or wrap ErrVersion.
func DecodeMaster(entries []Entry) (Master, error) {
	var m Master
	var utf8 uint64
	fields := map[string]*uint64{
		"ROOT": &m.Root, "VERSION": &m.Version, "DELETE_QUEUE": &m.DeleteQueue, "SA_ATTRS": &m.SAAttrs,
		"FUID": &m.FUID, "SHARES": &m.Shares, "normalization": &m.Normalization, "utf8only": &utf8,
		"casesensitivity": (*uint64)(&m.Case),
	}
	if err := decodeFields("master node", entries, fields); err != nil {
		return Master{}, err
	}
	m.UTF8Only = utf8 != 0
	if m.Version > MaxVersion {
		return Master{}, fmt.Errorf("zpl: %w: %d", ErrVersion, m.Version)
	}
	for _, object := range []uint64{m.Root, m.DeleteQueue, m.SAAttrs, m.FUID, m.Shares} {
		if object > MaxObject {
			return Master{}, bad("master node", 0, "object %d", object)
		}
	}
	if m.Root == 0 {
		return Master{}, bad("master node", 0, "no ROOT")
	}
	return m, nil
}

// DecodeSAMaster finds the objects of registry and layouts in the entries of the
// object SAAttrs of the master node. Either can be 0 when nothing has attributes yet.
// Errors are *FormatError.
func DecodeSAMaster(entries []Entry) (registry, layouts uint64, err error) {
	err = decodeFields("SA master node", entries, map[string]*uint64{"REGISTRY": &registry, "LAYOUTS": &layouts})
	return registry, layouts, err
}

// decodeFields puts the values of entries where fields says.
func decodeFields(what string, entries []Entry, fields map[string]*uint64) error {
	for i := range entries {
		e := &entries[i]
		f := fields[string(e.Name)]
		if f == nil {
			continue
		}
		v, ok := e.Uint64()
		if !ok {
			return bad(what, 0, "%s is not one integer of 64 bits", e.Name)
		}
		*f = v
	}
	return nil
}

// DecodeDeleteQueue returns the objects in the delete queue, ascending: they have no
// name any more, but something still has them open. Errors are *FormatError.
func DecodeDeleteQueue(entries []Entry) ([]uint64, error) {
	objects := make([]uint64, 0, len(entries))
	for i := range entries {
		e := &entries[i]
		n, err := strconv.ParseUint(string(e.Name), 16, 64)
		if v, ok := e.Uint64(); err != nil || !ok || v != n {
			return nil, bad("delete queue", 0, "entry %q has the value %d", e.Name, e.Value)
		}
		objects = append(objects, n)
	}
	slices.Sort(objects)
	return objects, nil
}

// A Dirent is where an entry of a directory leads.
type Dirent struct {
	Object uint64
	// Kind is 0 if the entry does not say: ZPL version 1 does not. The mode of the
	// object knows better.
	Kind filetree.Kind
}

// Dirent decodes the value of an entry of a directory and checks its name (section
// 5.4): 1 to 1023 bytes, no slash, not "." or "..". Errors are *FormatError.
func (e *Entry) Dirent() (Dirent, error) {
	switch {
	case len(e.Name) == 0 || len(e.Name) > maxEntryName:
		return Dirent{}, bad("directory entry", 0, "name of %d bytes", len(e.Name))
	case bytes.IndexByte(e.Name, '/') >= 0 || string(e.Name) == "." || string(e.Name) == "..":
		return Dirent{}, bad("directory entry", 0, "name %q", e.Name)
	}
	v, ok := e.Uint64()
	d := Dirent{Object: v & MaxObject, Kind: kinds[v>>60]}
	if !ok || v>>48&0xfff != 0 || d.Object == 0 {
		return Dirent{}, bad("directory entry", 0, "%q has the value %#x", e.Name, v)
	}
	return d, nil
}
