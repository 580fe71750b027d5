package s3history

import (
	"bytes"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
)

// A recorder collects node records for one body, a segment's or a root's. Its zero
// value is ready.
type recorder struct {
	nodes []nodeRec
	size  int // about, in bytes of CBOR
	ids   map[catalog.PackID]uint32
	packs []catalog.PackID
	// cost is how many bytes it takes to tell of a pack, where it is known that the
	// body will: a sealed key may be larger than all else.
	cost func(catalog.PackID) int
}

// tellCost is how many bytes it takes to tell all of a pack, about.
func tellCost(key, blobs int) int { return key + 10*blobs }

// node returns the record of n to add to: the last one if it is its.
func (r *recorder) node(n filetree.NodeID) *nodeRec {
	if k := len(r.nodes); k > 0 && r.nodes[k-1].ID == uint64(n) {
		return &r.nodes[k-1]
	}
	r.nodes = append(r.nodes, nodeRec{ID: uint64(n)})
	r.size += 8
	return &r.nodes[len(r.nodes)-1]
}

func (r *recorder) attr(n filetree.NodeID, d *catalog.Attr) {
	r.node(n).Attr = d
	r.size += 48 + len(d.Target)
	if d.Xattrs != nil {
		for _, x := range *d.Xattrs {
			r.size += len(x[0]) + len(x[1]) + 4
		}
	}
}

func (r *recorder) got(n filetree.NodeID, e catalog.Entry) {
	rec := r.node(n)
	rec.Got = append(rec.Got, entryRec{Dir: uint64(e.Dir), Name: []byte(e.Name)})
	r.size += 8 + len(e.Name)
}

func (r *recorder) lost(n filetree.NodeID, e catalog.Entry) {
	rec := r.node(n)
	if len(rec.Got) > 0 { // a record's losses come before what it gets
		r.nodes = append(r.nodes, nodeRec{ID: uint64(n)})
		r.size += 8
		rec = &r.nodes[len(r.nodes)-1]
	}
	rec.Lost = append(rec.Lost, entryRec{Dir: uint64(e.Dir), Name: []byte(e.Name)})
	r.size += 8 + len(e.Name)
}

func (r *recorder) data(n filetree.NodeID, d dataRec) {
	rec := r.node(n)
	rec.Data = append(rec.Data, d)
	r.size += 12 + len(d.CID)
}

// extent records an extent that stands as it is.
func (r *recorder) extent(n filetree.NodeID, e catalog.Extent) {
	part := r.part(e.Part)
	rec := r.node(n)
	if k := len(rec.Data); k > 0 && rec.Data[k-1].end() == uint64(e.Offset) {
		rec.Data[k-1].Parts = append(rec.Data[k-1].Parts, part)
		return
	}
	r.data(n, dataRec{Offset: uint64(e.Offset), Parts: []partRec{part}})
}

func (d *dataRec) end() uint64 {
	n := d.Offset
	for _, p := range d.Parts {
		n += p.Length
	}
	return n
}

// pack returns the number that a pack has in the body.
func (r *recorder) pack(id catalog.PackID) uint32 {
	if n, ok := r.ids[id]; ok {
		return n
	}
	if r.ids == nil {
		r.ids = map[catalog.PackID]uint32{}
	}
	r.packs = append(r.packs, id)
	r.ids[id] = uint32(len(r.packs))
	r.size += 40
	if r.cost != nil {
		r.size += r.cost(id)
	}
	return uint32(len(r.packs))
}

func (r *recorder) part(p catalog.Part) partRec {
	r.size += 16
	q := partRec{Length: uint64(p.Length), Blob: p.Blob, Offset: p.Offset}
	switch {
	case p.Patch != nil:
		q.Patch = &patchRec{Pack: r.pack(p.Patch.Pack), Blob: p.Patch.Blob, Offset: p.Patch.Offset,
			Length: p.Patch.Length, Result: p.Patch.ResultLength}
		for _, b := range p.Patch.Base {
			q.Patch.Base = append(q.Patch.Base, r.part(b))
		}
	case p.Pack != 0:
		q.Pack = r.pack(p.Pack)
	}
	return q
}

// body ends the collection: it returns what there is, with a table in which every
// pack has its name, and those for which tell says so all that is known of them.
func (r *recorder) body(db *catalog.DB, tell func(catalog.PackID) (bool, error)) (*body, error) {
	b := &body{Nodes: r.nodes}
	for _, id := range r.packs {
		p, err := db.Pack(id)
		if err != nil {
			return nil, err
		}
		rec := packRec{SHA: bytes.Clone(p.SHA[:])}
		all, err := tell(id)
		if err != nil {
			return nil, err
		}
		if all {
			rec.Size, rec.Key, rec.Blobs = uint64(p.Size), p.Key, flatBlobs(p.Blobs)
		}
		b.Packs = append(b.Packs, rec)
	}
	*r = recorder{cost: r.cost}
	return b, nil
}
