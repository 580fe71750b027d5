package backup

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/delta"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
	"github.com/secrate/secrate/internal/rolling"
	"github.com/secrate/secrate/s3history"
)

// What an item of a piece costs in the manifest, about, both copies counted. It must
// agree with what delta is told.
const itemCost = 18

// maxFragments is how many extents a stretch of 1 MiB may have before all of it is
// stored whole again: each is a row to keep and to read.
const maxFragments = 1024

// oldReach is how far around its place the old version of a piece is searched.
const oldReach = 1 << 20

// A differ turns the bytes of one file into pieces that say as little as possible.
type differ struct {
	r     *reader
	t     *task
	f     *localfs.File
	old   *oldFile
	fresh bool  // see readFile
	shift int64 // where the last piece was found in the old file, relative to its place

	oldF   *localfs.File
	d      delta.Differ
	window []byte

	signer *rolling.Signer // of what is read, or nil
	sample bool            // whether it is worth it, the first bytes say
	roll   *roller         // what the file was is looked for; or nil
}

// segment sends the pieces of a segment, cut at multiples of 1 MiB.
func (d *differ) segment(ctx context.Context, s filetree.Segment) error {
	if s.Length == 0 {
		return nil
	}
	if d.roll != nil && !s.Hole {
		return d.roll.segment(ctx, s)
	}
	if s.Hole {
		if d.fresh {
			return nil
		}
		if d.roll != nil {
			if err := d.roll.flush(ctx); err != nil {
				return err
			}
		}
		return d.t.send(ctx, s3history.Piece{Offset: s.Offset, Items: []s3history.Item{{Hole: s.Length}}})
	}
	return d.plain(ctx, s.Range)
}

// plain sends the pieces of a range that is data.
func (d *differ) plain(ctx context.Context, r filetree.Range) error {
	for off := r.Offset; off < r.End(); {
		end := min(nextCut(off), r.End())
		at, to, err := d.oldExtent(off, end)
		if err != nil {
			return err
		}
		if at == off {
			if to = min(to, r.End()); to != end {
				if ok, err := d.known(ctx, off, to-off); err != nil {
					return err
				} else if ok {
					off = to
					continue
				}
			}
		} else {
			end = at
		}
		if err := d.piece(ctx, off, end-off); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// nextCut returns the first place behind off where pieces are cut.
func nextCut(off int64) int64 { return off - off%catalog.MaxPart + catalog.MaxPart }

func (d *differ) piece(ctx context.Context, off, length int64) error {
	// The recorder keeps the bytes until they are in a blob: a new buffer for each.
	data, err := readFull(d.f, make([]byte, length), off)
	if unreadable(err) {
		return d.salvage(ctx, off, length, err)
	}
	if err != nil || len(data) == 0 {
		return err
	}
	d.r.j.o.Observer.Seen(0, int64(len(data)))
	d.note(off, data)
	p := s3history.Piece{Offset: off}
	// An id for a stretch that may be found again: all of what lies between two cuts.
	if len(data) >= s3history.MinContent && (off%catalog.MaxPart == 0 || d.old == nil) {
		p.CID = d.r.u.ContentID(data)
		parts, err := d.r.u.Known(p.CID)
		if err != nil {
			return err
		}
		if parts != nil {
			p.Items = []s3history.Item{{Parts: parts}}
			return d.t.send(ctx, p)
		}
	}
	if d.old != nil {
		if p.Items, err = d.compare(off, data); err != nil {
			return err
		}
	}
	if p.Items == nil {
		p.Items = []s3history.Item{{Data: data, CID: p.CID}}
	}
	return d.t.send(ctx, p)
}

// salvageBlock is how much is given up for one fault: a Btrfs checksum is of so much, and
// disks have no larger sectors.
const salvageBlock = 4096

// salvage sends what can be read of a piece. The rest becomes a hole, and the file is
// incomplete.
func (d *differ) salvage(ctx context.Context, off, length int64, cause error) error {
	d.t.lack(cause)
	d.signer = nil
	data := make([]byte, length)
	start := int64(0) // of what could be read up to from
	run := func(to int64) error {
		if start == to {
			return nil
		}
		p := s3history.Piece{Offset: off + start, Items: []s3history.Item{{Data: data[start:to]}}}
		if to-start >= s3history.MinContent {
			p.CID = d.r.u.ContentID(data[start:to])
			p.Items[0].CID = p.CID
		}
		d.r.j.o.Observer.Seen(0, to-start)
		return d.t.send(ctx, p)
	}
	for from := int64(0); from < length; {
		// Blocks are those of the file: off may be in the midst of one.
		to := min(from+salvageBlock-(off+from)%salvageBlock, length)
		switch _, err := readFull(d.f, data[from:to], off+from); {
		case unreadable(err):
			if err := run(from); err != nil {
				return err
			}
			if err := d.t.send(ctx, s3history.Piece{Offset: off + from, Items: []s3history.Item{{Hole: to - from}}}); err != nil {
				return err
			}
			start = to
		case err != nil:
			return err
		}
		from = to
	}
	return run(length)
}

// unreadable reports whether the disk has not got what was asked for, or not as it was
// written. Whatever else it has can be kept.
func unreadable(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG)
}

// compare returns how data comes from the old file, or nil if it should be stored as
// it is.
func (d *differ) compare(off int64, data []byte) ([]s3history.Item, error) {
	if d.oldF == nil {
		var err error
		if d.oldF, err = d.r.base.OpenFile(d.old.path); err != nil {
			if vanished(err) || unreadable(err) {
				return nil, nil
			}
			return nil, err
		}
	}
	if d.old.same {
		start := off - off%catalog.MaxPart
		n, err := d.old.view.Fragments(d.old.node, start, start+catalog.MaxPart)
		if err != nil {
			return nil, err
		}
		if n > maxFragments {
			return nil, nil
		}
	}
	// In place first: it is all that most changes need, and touches the fewest old bytes.
	base, at, err := d.oldBytes(off, off+int64(len(data)))
	if unreadable(err) {
		return nil, nil // what is new is stored whole
	} else if err != nil {
		return nil, err
	}
	ops := d.d.Diff(base, data, delta.Options{CopyCost: itemCost, InPlace: int(off - at)})
	if inserted(ops) > len(data)/16 {
		from := off + d.shift - oldReach
		base, at, err = d.oldBytes(from, off+d.shift+int64(len(data))+oldReach)
		if unreadable(err) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		in := min(max(off+d.shift-at, 0), int64(len(base)))
		ops = d.d.Diff(base, data, delta.Options{CopyCost: itemCost, InPlace: int(in)})
	}
	items, err := d.items(ops, off, at, data)
	if err != nil {
		return nil, err
	}
	cost := itemCost * len(items)
	cost += inserted(ops) / 2 // compressed, about
	if cost <= 128+len(data)/256 || len(base) == 0 {
		return items, nil
	}
	return d.cheapest(items, cost, base, at, data)
}

// cheapest chooses between items, a patch, and the data itself.
func (d *differ) cheapest(items []s3history.Item, cost int, base []byte, at int64, data []byte) ([]s3history.Item, error) {
	whole := len(data)
	if whole > 512 {
		whole = len(delta.Patch(nil, data))
	}
	parts, err := d.old.view.Parts(d.old.node, at, at+int64(len(base)))
	if err != nil {
		return nil, err
	}
	depth := 0
	for _, p := range parts {
		depth = max(depth, p.Depth())
	}
	if depth < catalog.MaxDepth && len(parts) <= maxFragments && len(base) <= catalog.MaxBase {
		patch := delta.Patch(base, data)
		if c := len(patch) + itemCost*(1+len(parts)); c < cost && c < whole-whole/8 && len(patch) <= catalog.MaxPart {
			return []s3history.Item{{Patch: &s3history.NewPatch{Patch: patch, Base: parts, Result: len(data)}}}, nil
		}
	}
	if cost < whole-whole/8 {
		return items, nil
	}
	return nil, nil
}

// oldBytes reads the old file from from to to, as far as it has them, and returns
// where they begin.
func (d *differ) oldBytes(from, to int64) ([]byte, int64, error) {
	from = min(max(from, 0), d.old.size)
	to = min(max(to, from), d.old.size)
	n := int(to - from)
	if cap(d.window) < n {
		d.window = make([]byte, n)
	}
	b, err := readFull(d.oldF, d.window[:n], from)
	return b, from, err
}

// items turns ops into items: base is the old file from at on, data the new from off on.
func (d *differ) items(ops []delta.Op, off, at int64, data []byte) ([]s3history.Item, error) {
	var items []s3history.Item
	insert := func(b []byte) {
		if k := len(items); k > 0 && items[k-1].Data != nil {
			// The bytes follow each other in data.
			last := items[k-1].Data
			items[k-1].Data = last[:len(last)+len(b)]
			return
		}
		items = append(items, s3history.Item{Data: b})
	}
	longest := 0
	for _, op := range ops {
		fresh := data[op.NewOffset : op.NewOffset+op.Length]
		if !op.Copy {
			insert(fresh)
			continue
		}
		from := at + int64(op.BaseOffset)
		parts, err := d.old.view.Parts(d.old.node, from, from+int64(op.Length))
		if err != nil {
			return nil, err
		}
		inPlace := d.old.keep && from == off+int64(op.NewOffset)
		if !inPlace && op.Length > longest {
			longest = op.Length
			d.shift = from - off - int64(op.NewOffset)
		}
		for _, p := range parts {
			switch {
			case p.Hole(): // zeros in the old file, but data in the new one
				insert(fresh[:p.Length])
			case inPlace:
				items = append(items, s3history.Item{Keep: p.Length})
			default:
				if k := len(items); k > 0 && items[k-1].Parts != nil {
					items[k-1].Parts = catalog.AppendPart(items[k-1].Parts, p)
				} else {
					items = append(items, s3history.Item{Parts: []catalog.Part{p}})
				}
			}
			fresh = fresh[p.Length:]
		}
	}
	for i := range items {
		if b := items[i].Data; len(b) >= s3history.MinContent {
			items[i].CID = d.r.u.ContentID(b)
		}
	}
	return items, nil
}

func inserted(ops []delta.Op) int {
	n := 0
	for _, op := range ops {
		if !op.Copy {
			n += op.Length
		}
	}
	return n
}

func (d *differ) close() {
	if d.oldF != nil {
		d.oldF.Close()
	}
}
