package zpl

import (
	"errors"
	"fmt"
	"math"

	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// A FUID is an owner as ZFS keeps it (section 4.7): a POSIX id, or, above 2^32, the
// index of a domain and an id in it, which is how files of Windows users are owned.
type FUID uint64

// POSIX returns the uid or gid, if it is one.
func (f FUID) POSIX() (id uint32, ok bool) { return uint32(f), f <= math.MaxUint32 }

// Domain returns the index of the domain in the dataset's table; 0 is none.
func (f FUID) Domain() uint32 { return uint32(f >> 32) }

// RID returns the id within the domain.
func (f FUID) RID() uint32 { return uint32(f) }

// Domains are the domains of owners, such as S-1-5-21-1-2-3, by index.
type Domains map[uint32]string

// SID returns the security identifier of a FUID with a domain: the domain and the id
// in it.
func (d Domains) SID(f FUID) (string, bool) {
	domain, ok := d[f.Domain()]
	if !ok || f.Domain() == 0 {
		return "", false
	}
	return fmt.Sprintf("%s-%d", domain, f.RID()), true
}

// ParseDomains decodes a FUID table: the first size bytes of the data of the object of
// type 35, where size is the only integer of its bonus. It is not verified against
// real streams. Errors are *FormatError.
func ParseDomains(data []byte, size uint64) (Domains, error) {
	if size > uint64(len(data)) {
		return nil, &FormatError{"FUID table", len(data), errShort}
	}
	if size == 0 {
		return nil, nil
	}
	list, err := nvlist.Parse(data[:size])
	if err != nil {
		return nil, &FormatError{"FUID table", 0, err}
	}
	table, ok := list.Lists("fuid_nvlist")
	if !ok {
		return nil, &FormatError{"FUID table", 0, errors.New("no fuid_nvlist")}
	}
	domains := make(Domains, len(table))
	for i, l := range table {
		index, hasIndex := l.Uint64("fuid_idx")
		domain, hasDomain := l.String("fuid_domain")
		if _, taken := domains[uint32(index)]; !hasIndex || !hasDomain || index > math.MaxUint32 || taken {
			return nil, bad("FUID table", 0, "domain number %d is damaged", i)
		}
		domains[uint32(index)] = domain
	}
	return domains, nil
}
