package backup

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/delta"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/rolling"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history"
)

// Files of a scan that have changed. Of what they were there is nothing to be read, but the
// catalog may have a signature of it. Then the file is read once, a window at a time:
//
//	|  context  |  stretch  |  stretch  |  stretch  |  stretch  |  ahead  |
//	 a block      1 MiB each, between two cuts                    a block
//
// A stretch whose content id is known is that. In the others the blocks of the signature are
// looked for at every offset, and become the parts that the old state has of them; what is not
// found is new, and compared with the sums of the smaller blocks that were in its place
// (Update.Overwrite). Parts follow one another across cuts, so that a file that was shifted
// has as many extents as before, and a few more.

const (
	// minSigned is the size below which a file has no signature: to store it again costs
	// little.
	minSigned = 64 << 10
	// maxSignedNew bounds what the signatures of files that are new take in the catalog, of a
	// source for good, in bytes. Most files never change.
	maxSignedNew = 24 << 20
	// maxSignedAgain bounds what the signatures take that one scan makes of files that have
	// changed, which are likely to change again.
	maxSignedAgain = 24 << 20
	// windowStretches is how many stretches are looked at together.
	windowStretches = 4
	// minCopied is how few bytes are stored again rather than named by a part, of what has moved:
	// with the name of its pack, which often is told for it alone, one takes 50 bytes, twice.
	minCopied = 128
	// maxCopied bounds the parts that are sent together.
	maxCopied = 256
)

// signing is what is left of the bounds above, in bytes. Workers take from it.
type signing struct{ fresh, again atomic.Int64 }

func (r *reader) beginSigning() error {
	so, err := r.u.SignedNew()
	r.signing.fresh.Store(max(maxSignedNew-so, 0))
	r.signing.again.Store(maxSignedAgain)
	return err
}

// take reserves so many bytes of a bound.
func take(of *atomic.Int64, n int64) bool {
	if of.Add(-n) >= 0 {
		return true
	}
	of.Add(n)
	return false
}

// olds are files of the state before of which a file may be what has become.
type olds struct {
	state catalog.View
	nodes [2]filetree.NodeID // the file itself, what had its name; 0 for none

	loaded bool
	sig    *rolling.Signature
	of     catalog.View // the state that sig is of
	node   filetree.NodeID
}

// load finds the signature of what the file was.
func (o *olds) load(u *s3history.Update) (err error) {
	for _, n := range o.nodes {
		if n == 0 || o.loaded {
			continue
		}
		if o.sig, o.of, err = u.Signature(n, o.state); err != nil {
			return err
		}
		o.node, o.loaded = n, o.sig != nil
	}
	o.loaded = true
	return nil
}

// signed is the signature of what a task has read.
type signed struct {
	asked, granted bool // whether there is to be one; it may be read several times
	isNew          bool // nothing was there before
	sig            *rolling.Signature
}

// beginRolling prepares for the content of a file of a scan: what is looked for in it, and
// whether it is signed.
func (d *differ) beginRolling(size int64) error {
	t := d.t
	t.sign.sig = nil
	if !d.r.blind || size < minSigned || size > rolling.MaxFile {
		return nil
	}
	if err := t.olds.load(d.r.u); err != nil {
		return err
	}
	if t.olds.sig != nil && len(t.olds.sig.Blocks) > 0 {
		d.roll = newRoller(d)
	}
	s := &t.sign
	if !s.asked {
		s.asked, s.isNew = true, t.olds.nodes == [2]filetree.NodeID{}
		bound := &d.r.signing.again
		if s.isNew {
			bound = &d.r.signing.fresh
		}
		s.granted = take(bound, rolling.EncodedSize(size))
		d.sample = s.isNew
	}
	if s.granted {
		d.signer = rolling.NewSigner(rolling.BlockSize(size), d.r.u.RollingSum)
	}
	return nil
}

// note signs what was read. Of a file that is new, and will perhaps never change, nothing is
// signed if it looks as if it were compressed, as films and archives are.
func (d *differ) note(off int64, data []byte) {
	if d.signer == nil {
		return
	}
	if d.sample {
		d.sample = false
		if !delta.Compresses(data) {
			d.signer, d.t.sign.granted = nil, false
			d.r.signing.fresh.Add(rolling.EncodedSize(d.f.Size()))
			return
		}
	}
	d.signer.Write(off, data)
}

// oldExtent returns the first extent across a cut that a file of which there is no signature
// had from off on, if it begins before end; else end. Only in a file that was shifted are there
// any, and what is known of that, when its catalog was lost, are the content ids of what lay
// between cuts before: these extents.
func (d *differ) oldExtent(off, end int64) (at, to int64, err error) {
	o := &d.t.olds
	node := cmp.Or(o.nodes[0], o.nodes[1])
	if d.roll != nil || node == 0 || d.f.Size() < minSigned {
		return end, end, nil
	}
	all, err := o.state.Extents(node, off, end)
	for _, e := range all {
		if to := e.Offset + e.Length; e.Offset >= off && to > nextCut(e.Offset) {
			return e.Offset, to, err
		}
	}
	return end, end, err
}

// known sends length bytes at off if their content is known, and reports whether it is.
func (d *differ) known(ctx context.Context, off, length int64) (bool, error) {
	data, err := readFull(d.f, make([]byte, length), off)
	if err != nil || int64(len(data)) < length {
		return false, ignoreUnreadable(err)
	}
	cid := d.r.u.ContentID(data)
	parts, err := d.r.u.Known(cid)
	if parts == nil || err != nil {
		return false, err
	}
	d.r.j.o.Observer.Seen(0, length)
	d.note(off, data)
	return true, d.t.send(ctx, s3history.Piece{Offset: off, CID: cid, Items: []s3history.Item{{Parts: parts}}})
}

func ignoreUnreadable(err error) error {
	if unreadable(err) {
		return nil
	}
	return err
}

// endRolling sends what is left and keeps the signature.
func (d *differ) endRolling(ctx context.Context) error {
	if d.roll != nil {
		if err := d.roll.flush(ctx); err != nil {
			return err
		}
	}
	if d.signer != nil {
		d.t.sign.sig = d.signer.Signature()
	}
	return nil
}

// A roller sends what a file has by what another was.
type roller struct {
	d     *differ
	olds  *olds
	m     *rolling.Matcher
	block int64

	buf  []byte // of the file, from at on
	at   int64
	sent int64 // where what was sent ends

	// What is not sent yet begins where what was sent ends: length bytes that were found, or are
	// new.
	length int64
	parts  []catalog.Part // of bytes that were found; nil: they are new, and in buf
	still  bool           // they are where they were

	all []stretchID // of the window
	ids []stretchID // of stretches of several pieces, to be remembered when they are sent
}

// A stretchID is the content id of a stretch.
type stretchID struct {
	filetree.Range
	cid   seal.ContentID // zero for fewer bytes than have one
	parts []catalog.Part // that are known to have it
}

func newRoller(d *differ) *roller {
	o := &d.t.olds
	return &roller{d: d, olds: o, m: rolling.NewMatcher(o.sig, d.r.u.RollingSum), block: int64(o.sig.Length)}
}

// done is where what is sent or noted ends. It may be in a stretch that comes.
func (r *roller) done() int64 { return r.sent + r.length }

// segment sends a segment of data.
func (r *roller) segment(ctx context.Context, s filetree.Segment) error {
	if err := r.flush(ctx); err != nil {
		return err
	}
	r.buf, r.at, r.sent = r.buf[:0], s.Offset, s.Offset
	for pos, end := s.Offset, s.End(); pos < end; {
		to := min(pos-pos%catalog.MaxPart+windowStretches*catalog.MaxPart, end)
		if keep := max(pos-max(r.block, minCopied), r.at); keep > r.at {
			r.buf, r.at = r.buf[:copy(r.buf, r.buf[keep-r.at:])], keep
		}
		k, want := len(r.buf), int(min(to+r.block, end)-r.at)
		r.buf = slices.Grow(r.buf, max(want-k, 0))[:max(want, k)]
		b, err := readFull(r.d.f, r.buf[k:], r.at+int64(k))
		r.buf = r.buf[:k+len(b)]
		if unreadable(err) { // then it is found out what of it is
			if err := r.flush(ctx); err != nil {
				return err
			}
			return r.d.plain(ctx, filetree.Range{Offset: pos, Length: end - pos})
		} else if err != nil {
			return err
		}
		if len(r.buf) < want { // it has become shorter
			end = r.at + int64(len(r.buf))
			to = min(to, end)
		}
		if err := r.window(ctx, pos, to); err != nil {
			return err
		}
		pos = max(pos, to)
	}
	return nil
}

// window sends the stretches from pos to to.
func (r *roller) window(ctx context.Context, pos, to int64) error {
	r.all = r.all[:0]
	for pos < to {
		s := stretchID{Range: filetree.Range{Offset: pos, Length: min(nextCut(pos), to) - pos}}
		data := r.bytes(s.Offset, s.End())
		r.d.r.j.o.Observer.Seen(0, s.Length)
		r.d.note(pos, data)
		if len(data) >= s3history.MinContent {
			s.cid = r.d.r.u.ContentID(data)
			var err error
			if s.parts, err = r.d.r.u.Known(s.cid); err != nil {
				return err
			}
		}
		r.all = append(r.all, s)
		pos = s.End()
	}
	for all := r.all; len(all) > 0; {
		k := slices.IndexFunc(all, func(s stretchID) bool { return s.parts != nil })
		switch {
		case k == 0:
			if err := r.flush(ctx); err != nil {
				return err
			}
			s := all[0]
			if err := r.d.t.send(ctx, s3history.Piece{Offset: s.Offset, CID: s.cid, Items: []s3history.Item{{Parts: s.parts}}}); err != nil {
				return err
			}
			r.sent = max(r.sent, s.End())
			k = 1
		case k < 0:
			k = len(all)
			fallthrough
		default:
			if err := r.unknown(ctx, all[:k]); err != nil {
				return err
			}
		}
		all = all[k:]
	}
	if r.parts == nil { // what is new does not stay in the buffer
		return r.flush(ctx)
	}
	return nil
}

func (r *roller) bytes(from, to int64) []byte { return r.buf[from-r.at : to-r.at] }

// unknown finds what is in stretches whose content is not known.
func (r *roller) unknown(ctx context.Context, all []stretchID) error {
	to := all[len(all)-1].End()
	from := min(r.done(), to) // a block may have reached into them
	for _, c := range r.m.Match(r.buf, int(from-r.at), int(to-r.at), r.at) {
		at := r.at + int64(c.At)
		if err := r.isFresh(ctx, at); err != nil {
			return err
		}
		if err := r.isCopied(ctx, at, int64(c.Length), c.Old); err != nil {
			return err
		}
	}
	if err := r.isFresh(ctx, to); err != nil {
		return err
	}
	for _, s := range all {
		// An id is of use for a stretch that may be found again: all of what lies between two cuts.
		if s.Offset%catalog.MaxPart == 0 && s.cid != (seal.ContentID{}) {
			r.ids = append(r.ids, s)
		}
	}
	return nil
}

// isFresh notes that all up to to is new.
func (r *roller) isFresh(ctx context.Context, to int64) error {
	if r.done() >= to {
		return nil
	}
	if err := r.dropShort(ctx); err != nil {
		return err
	}
	if r.parts != nil {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	r.length = to - r.sent
	return nil
}

// dropShort takes the last part that was noted for new if it is too short to be worth a part.
// Its bytes are in the buffer still.
func (r *roller) dropShort(ctx context.Context) error {
	k := len(r.parts) - 1
	if k < 0 || r.still || r.parts[k].Length >= minCopied {
		return nil
	}
	last := r.parts[k].Length
	r.length -= last
	if r.parts = r.parts[:k]; k == 0 {
		r.parts = nil
	} else if err := r.flush(ctx); err != nil {
		return err
	}
	r.length = last
	return nil
}

// isCopied notes that the length bytes at at are what the old state has at old. What it does
// not have in a piece is taken for new, as the bytes are at hand: what is too short to be worth a
// part, and what would bring more than maxFragments extents to a stretch. So a file that is
// edited again and again does not fall to pieces. Where it stayed in its place nothing is said of
// it, and nothing gets worse.
func (r *roller) isCopied(ctx context.Context, at, length, old int64) error {
	parts, err := r.olds.of.Parts(r.olds.node, old, old+length)
	if err != nil {
		return err
	}
	still := at == old && r.olds.node == r.olds.nodes[0]
	if !still && int64(len(parts)) > 3+length*maxFragments/catalog.MaxPart { // it may begin and end in one
		return r.isFresh(ctx, at+length)
	}
	for _, p := range parts {
		if p.Hole() {
			if err := r.isFresh(ctx, r.done()+p.Length); err != nil {
				return err
			}
			continue
		}
		if err := r.part(ctx, p, still); err != nil {
			return err
		}
	}
	return nil
}

// part notes a part.
func (r *roller) part(ctx context.Context, p catalog.Part, still bool) error {
	if r.parts != nil && still == r.still {
		k := len(r.parts)
		if r.parts = catalog.AppendPart(r.parts, p); len(r.parts) == k { // the last one goes on
			r.length += p.Length
			return nil
		}
		r.parts = r.parts[:k]
		if err := r.dropShort(ctx); err != nil {
			return err
		}
	}
	if r.length > 0 && (r.parts == nil || still != r.still || len(r.parts) == maxCopied) {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	r.parts, r.still = append(r.parts, p), still
	r.length += p.Length
	return nil
}

// flush sends what was noted.
func (r *roller) flush(ctx context.Context) error {
	if r.parts != nil {
		p := s3history.Piece{Offset: r.sent, Items: []s3history.Item{{Parts: r.parts}}}
		if err := r.d.t.send(ctx, p); err != nil {
			return err
		}
		r.sent += r.length
		r.parts, r.length = nil, 0
	}
	for end := r.done(); r.sent < end; {
		to := min(nextCut(r.sent), end)
		data := slices.Clone(r.bytes(r.sent, to)) // the recorder keeps it
		p := s3history.Piece{Offset: r.sent, Items: []s3history.Item{{Data: data}}}
		for i, s := range r.all {
			if s.Offset == p.Offset && s.End() == to {
				p.CID, p.Items[0].CID = s.cid, s.cid
				r.all[i].cid = seal.ContentID{} // it need not be remembered
			}
		}
		if err := r.d.t.send(ctx, p); err != nil {
			return err
		}
		r.sent, r.length = to, end-to
	}
	for len(r.ids) > 0 && r.ids[0].End() <= r.sent {
		p := s3history.Piece{Offset: r.ids[0].Offset, CID: r.ids[0].cid, Items: []s3history.Item{{Keep: r.ids[0].Length}}}
		if err := r.d.t.send(ctx, p); err != nil {
			return err
		}
		r.ids = r.ids[1:]
	}
	return nil
}
