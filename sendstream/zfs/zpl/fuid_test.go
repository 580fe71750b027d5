package zpl

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// A domain is a row of a FUID table.
type domain struct {
	index  uint64
	domain string
}

// fuidTable packs a FUID table in XDR. A row without a domain has but an index.
func fuidTable(name string, rows ...domain) []byte {
	w := builder{b: []byte{1, 1, 0, 0}, order: binary.BigEndian}
	pair := func(name string, typ nvlist.Type, n int, value func()) {
		at := len(w.b)
		w.u32(0, 1, uint32(len(name)))
		w.bytes(name)
		w.pad(4)
		w.u32(uint32(typ), uint32(n))
		value()
		w.order.PutUint32(w.b[at:], uint32(len(w.b)-at))
	}
	w.u32(0, 1)
	pair(name, nvlist.NestedArray, len(rows), func() {
		for _, r := range rows {
			w.u32(0, 1)
			pair("fuid_idx", nvlist.Uint64, 1, func() { w.u64(r.index) })
			if r.domain != "" {
				pair("fuid_domain", nvlist.String, 1, func() {
					w.u32(uint32(len(r.domain)))
					w.bytes(r.domain)
					w.pad(4)
				})
			}
			pair("fuid_offset", nvlist.Uint64, 1, func() { w.u64(0) })
			w.u32(0, 0)
		}
	})
	w.u32(0, 0)
	return w.b
}

func TestDomains(t *testing.T) {
	const name = "fuid_nvlist"
	b := fuidTable(name, domain{1, "S-1-5-21-1-2-3"}, domain{2, "S-1-5-32"})
	d, err := ParseDomains(append(b, make([]byte, 100)...), uint64(len(b)))
	if diff := cmp.Diff(Domains{1: "S-1-5-21-1-2-3", 2: "S-1-5-32"}, d); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for f, want := range map[FUID]string{1<<32 | 513: "S-1-5-21-1-2-3-513", 2 << 32: "S-1-5-32-0", 3 << 32: "", 1000: ""} {
		if got, ok := d.SID(f); got != want || ok != (want != "") {
			t.Errorf("%#x: %q %v", uint64(f), got, ok)
		}
	}
	if id, ok := FUID(1<<32 - 1).POSIX(); id != 1<<32-1 || !ok {
		t.Errorf("highest id: %d %v", id, ok)
	}
	if _, ok := FUID(1<<32 | 5).POSIX(); ok {
		t.Error("an id with a domain is no POSIX one")
	}
	if d, err := ParseDomains(nil, 0); d != nil || err != nil {
		t.Errorf("no table: %v, %v", d, err)
	}
	for name, f := range map[string]func() (Domains, error){
		"size": func() (Domains, error) { return ParseDomains(b, uint64(len(b))+1) },
		"twice": func() (Domains, error) {
			t := fuidTable(name, domain{1, "a"}, domain{1, "b"})
			return ParseDomains(t, uint64(len(t)))
		},
		"index": func() (Domains, error) {
			t := fuidTable(name, domain{1 << 32, "a"})
			return ParseDomains(t, uint64(len(t)))
		},
		"no domain": func() (Domains, error) { t := fuidTable(name, domain{1, ""}); return ParseDomains(t, uint64(len(t))) },
		"other list": func() (Domains, error) {
			t := fuidTable("other", domain{1, "a"})
			return ParseDomains(t, uint64(len(t)))
		},
		"cut": func() (Domains, error) { return ParseDomains(b, uint64(len(b))-4) },
	} {
		if d, err := f(); err == nil {
			t.Errorf("%s: %v", name, d)
		}
	}
}
