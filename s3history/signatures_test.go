package s3history

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
)

// letters returns a block of each letter.
func letters(s string) []byte {
	var b []byte
	for _, c := range []byte(s) {
		b = append(b, bytes.Repeat([]byte{c}, catalog.SumBlock)...)
	}
	return b
}

func hashSum(b []byte) catalog.Sum {
	sum := hashOf(b)
	return catalog.Sum(sum[:])
}

// signatureOf signs bytes that are at a place of a file and in a slice.
func signatureOf(off int64, p catalog.Part, content []byte) catalog.Signature {
	p.Length = int64(len(content))
	s := catalog.Signature{Extent: catalog.Extent{Offset: off, Part: p}}
	for b := range slices.Chunk(content, catalog.SumBlock) {
		s.Sums = append(s.Sums, hashSum(b))
	}
	return s
}

func describeItems(items []Item) string {
	var all []string
	for _, it := range items {
		if it.Keep > 0 {
			all = append(all, fmt.Sprint("keep ", it.Keep))
		} else {
			all = append(all, fmt.Sprint("data ", len(it.Data)))
		}
	}
	return strings.Join(all, ", ")
}

func TestKeepBlocks(t *testing.T) {
	const block = catalog.SumBlock
	slice := catalog.Part{Pack: 1, Blob: 2, Offset: 1000}
	extent := func(off int64, p catalog.Part, length int64) catalog.Extent {
		p.Length = length
		return catalog.Extent{Offset: off, Part: p}
	}
	many := letters(strings.Repeat("ab", 1024))
	other := letters(strings.Repeat("xb", 1024))
	for _, tt := range []struct {
		name  string
		old   []catalog.Extent
		known []catalog.Signature
		off   int64
		data  []byte
		want  string
	}{
		{
			name: "the same", old: []catalog.Extent{extent(0, slice, 4*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcd"))},
			data:  letters("abcd"), want: "keep 2048",
		},
		{
			name: "a byte in the middle", old: []catalog.Extent{extent(0, slice, 8*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcdefgh"))},
			data:  slices.Concat(letters("abc"), []byte("!"), letters("dddd")[:511], letters("efgh")), want: "keep 1536, data 512, keep 2048",
		},
		{
			name: "at both ends", old: []catalog.Extent{extent(0, slice, 8*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcdefgh"))},
			data:  letters("xbcdefgx"), want: "data 512, keep 3072, data 512",
		},
		{
			name: "everything", old: []catalog.Extent{extent(0, slice, 4*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcd"))},
			data:  letters("efgh"), want: "",
		},
		{
			name: "the blocks of another place", old: []catalog.Extent{extent(0, slice, 4*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcd"))},
			data:  letters("dabc"), want: "",
		},
		{
			name: "longer by a little", old: []catalog.Extent{extent(0, slice, 1000)},
			known: []catalog.Signature{signatureOf(0, slice, letters("ab")[:1000])},
			data:  slices.Concat(letters("ab")[:1000], []byte("one more line\n")), want: "keep 1000, data 14",
		},
		{
			name: "shorter by a little", old: []catalog.Extent{extent(0, slice, 4*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcd"))},
			data:  letters("abcd")[:4*block-10], want: "keep 1536, data 502",
		},
		{
			name: "what is written begins and ends within blocks", old: []catalog.Extent{extent(0, slice, 8*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcdefgh"))},
			off:   100, data: letters("abcdefgh")[100 : 8*block-100], want: "data 412, keep 3072, data 412",
		},
		{
			name: "slices that follow each other, one of them not signed",
			old: []catalog.Extent{extent(block, slice, 3*block), extent(4*block, catalog.Part{Pack: 5}, 2*block),
				extent(6*block, catalog.Part{Pack: 6, Offset: 77}, 2*block)},
			known: []catalog.Signature{signatureOf(block, slice, letters("bcd")), signatureOf(6*block, catalog.Part{Pack: 6, Offset: 77}, letters("gh"))},
			data:  letters("abcdefgh"), want: "data 512, keep 1536, data 1024, keep 1024",
		},
		{
			name:  "a piece of a slice that was signed at another place",
			old:   []catalog.Extent{extent(0, catalog.Part{Pack: 1, Blob: 2, Offset: 1000 + 2*block}, 6*block)},
			known: []catalog.Signature{signatureOf(5*block, slice, letters("abcdefgh"))},
			data:  letters("cdefgx"), want: "keep 2560, data 512",
		},
		{
			name:  "a slice of which a piece is signed",
			old:   []catalog.Extent{extent(0, slice, 8*block)},
			known: []catalog.Signature{signatureOf(9*block, catalog.Part{Pack: 1, Blob: 2, Offset: 1000 + 2*block}, letters("cdef"))},
			data:  letters("abcdefgh"), want: "data 1024, keep 2048, data 1024",
		},
		{
			name: "signatures that overlap", old: []catalog.Extent{extent(0, slice, 8*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcdef")),
				signatureOf(0, catalog.Part{Pack: 1, Blob: 2, Offset: 1000 + 2*block}, letters("cdefgh"))},
			data: letters("abcdefgh"), want: "keep 4096",
		},
		{
			name: "the same bytes in another pack", old: []catalog.Extent{extent(0, catalog.Part{Pack: 9, Blob: 2, Offset: 1000}, 4*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcd"))},
			data:  letters("abcd"), want: "",
		},
		{
			name: "in another blob", old: []catalog.Extent{extent(0, catalog.Part{Pack: 1, Blob: 3, Offset: 1000}, 4*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcd"))},
			data:  letters("abcd"), want: "",
		},
		{
			name: "behind it in the blob", old: []catalog.Extent{extent(0, catalog.Part{Pack: 1, Blob: 2, Offset: 1000 + 4*block}, 4*block)},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcd"))},
			data:  letters("abcd"), want: "",
		},
		{
			name: "of a patch", old: []catalog.Extent{{Offset: 0, Part: catalog.Part{Length: 4 * block, Offset: 1000,
				Patch: &catalog.Patch{Pack: 1, Blob: 2, ResultLength: 1000 + 4*block}}}},
			known: []catalog.Signature{signatureOf(0, slice, letters("abcd")), signatureOf(0, catalog.Part{Offset: 1000}, letters("abcd"))},
			data:  letters("abcd"), want: "",
		},
		{
			name: "too little to be worth it", old: []catalog.Extent{extent(0, slice, block+minKeep-1)},
			known: []catalog.Signature{signatureOf(0, slice, letters("ab")[:block+minKeep-1])},
			data:  letters("xb")[:block+minKeep-1], want: "",
		},
		{
			name: "just enough", old: []catalog.Extent{extent(0, slice, block+200)},
			known: []catalog.Signature{signatureOf(0, slice, letters("ab")[:block+200])},
			data:  letters("xb")[:block+200], want: "data 512, keep 200",
		},
		{
			name: "too many pieces", old: []catalog.Extent{extent(0, catalog.Part{Pack: 1}, 1<<20)},
			known: []catalog.Signature{signatureOf(0, catalog.Part{Pack: 1}, many)},
			data:  other, want: "",
		},
		{
			name: "half of that", old: []catalog.Extent{extent(0, catalog.Part{Pack: 1}, 1<<20)},
			known: []catalog.Signature{signatureOf(0, catalog.Part{Pack: 1}, many)},
			data:  other[:4*block], want: "data 512, keep 512, data 512, keep 512",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Signatures are of no more than MaxSigned bytes, as the catalog has them.
			var known []catalog.Signature
			for _, s := range tt.known {
				for i := 0; len(s.Sums) > 0; i++ {
					k := min(len(s.Sums), catalog.MaxSigned/block)
					part := s
					part.Part = s.Part.Slice(int64(i*catalog.MaxSigned), min(catalog.MaxSigned, s.Length-int64(i*catalog.MaxSigned)))
					part.Sums, s.Sums = s.Sums[:k], s.Sums[k:]
					known = append(known, part)
				}
			}
			items := keepBlocks(tt.off, tt.data, tt.old, indexSignatures(known), newSummer(tt.data, hashSum))
			if diff := cmp.Diff(tt.want, describeItems(items)); diff != "" {
				t.Errorf("items (-want +got):\n%s", diff)
			}
			at := 0
			for _, it := range items {
				if it.Data != nil && !bytes.Equal(it.Data, tt.data[at:at+len(it.Data)]) {
					t.Errorf("the %d bytes at %d are others", len(it.Data), at)
				}
				at += len(it.Data) + int(it.Keep)
			}
		})
	}
}

// allSignatures returns the signatures of a source.
func (f *fixture) allSignatures(source catalog.Source) map[filetree.NodeID][]catalog.Signature {
	f.t.Helper()
	all := map[filetree.NodeID][]catalog.Signature{}
	for n := range must(f.cat.NextNode(source.ID)) {
		if rows := must(f.cat.At(source.ID, 0).Signatures(n, 0, math.MaxInt64)); len(rows) > 0 {
			all[n] = rows
		}
	}
	return all
}

// checkSignatures reads what signatures are of, and expects it to be what they say. It
// returns how many there are.
func (f *fixture) checkSignatures(source catalog.Source) (count int) {
	f.t.Helper()
	c := f.content(f.cat)
	for n, rows := range f.allSignatures(source) {
		count += len(rows)
		for _, s := range rows {
			b, err := c.Read(f.t.Context(), s.Part)
			if err != nil {
				f.t.Fatalf("signed part %+v of node %d: %v", s.Part, n, err)
			}
			i := 0
			for block := range slices.Chunk(b, catalog.SumBlock) {
				if len(block) < MinContent {
					f.t.Errorf("a sum of %d bytes, which can be guessed", len(block))
				}
				id := f.identity.Key.Derive(labelBlockSum, f.identity.Repo[:]).ContentID(block)
				if s.Sums[i] != catalog.Sum(id[:12]) {
					f.t.Fatalf("block %d of %+v of node %d is not what its signature says", i, s.Part, n)
				}
				i++
			}
		}
	}
	return count
}

// TestOneByte: of a record in which a byte changed, a block is stored, once it is known
// what it was.
func TestOneByte(t *testing.T) {
	const record = 128 << 10
	prose := bytes.Repeat([]byte("It was a dark and stormy night. "), 1<<15) // a piece that is signed at once
	for _, tt := range []struct {
		name    string
		content []byte
		want    []int64 // bytes stored for each further byte
	}{
		{"looks compressed", noise(1, 3*record), []int64{record, catalog.SumBlock, catalog.SumBlock}},
		{"does not", prose, []int64{catalog.SumBlock, catalog.SumBlock, catalog.SumBlock}},
		{"does not, but is small", prose[:3*record], []int64{record, catalog.SumBlock, catalog.SumBlock}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			w := f.writer()
			var n filetree.NodeID
			now := bytes.Clone(tt.content)
			must(f.commit(w, 0, func(u *Update) {
				n = must(u.Create(filetree.RootNode, "f", fileAttr))
				must(0, u.Write(n, 0, now))
			}))
			for i, want := range tt.want {
				packs, stored := packBytes(f.mem), int64(0)
				now[record+1000+i*5000]++
				s := must(f.commit(w, int64(i+1), func(u *Update) {
					must(0, u.Write(n, record, now[record:2*record]))
					must(0, u.flushWrite())
					stored = int64(u.stats.Data)
				}))
				packs = packBytes(f.mem) - packs
				t.Logf("byte %d: %d bytes, in a pack of %d, %d in all", i, stored, packs, s.Uploaded)
				if stored != want || want < 1000 && packs > 2000 {
					t.Errorf("byte %d: %d bytes stored in a pack of %d, want %d", i, stored, packs, want)
				}
			}
			f.checkSignatures(must(w.Source("s")))
			f.checkRebuild()
		})
	}
}

// TestAppend: of a log that grows, what is new is stored.
func TestAppend(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	var n filetree.NodeID
	log := noise(1, 140_000)
	stored := uint64(0)
	for i := range 40 {
		size := len(log)
		log = append(log, noise(i, 3000)...)
		must(f.commit(w, int64(i), func(u *Update) {
			if i == 0 {
				n = must(u.Create(filetree.RootNode, "log", fileAttr))
				size = 0
			}
			from := size / (128 << 10) * (128 << 10) // all of the record in which it ended
			must(0, u.Write(n, int64(from), log[from:]))
			must(0, u.flushWrite())
			if i > 1 {
				stored += u.stats.Data
			}
		}))
	}
	// Once it is at a record's end, what of the next came first is not signed.
	if want := uint64(38 * 3000); stored < want || stored > want+6000 {
		t.Errorf("%d bytes stored of %d that are new", stored, want)
	}
	f.checkSignatures(must(w.Source("s")))
	f.checkRebuild()
}

// TestSignaturesAborted: what an update that was given up has signed is not taken for what
// gets its place in the catalog.
func TestSignaturesAborted(t *testing.T) {
	f := newFixture(t)
	f.options.PackSize = 1 // a pack for each piece
	w := f.writer()
	source := must(w.Source("s"))
	a, b, c := noise(1, 100_000), noise(2, 100_000), noise(3, 100_000)
	copy(c[50_000:], b[50_000:]) // what would be kept, if it were there
	var n filetree.NodeID
	must(f.commit(w, 1, func(u *Update) {
		n = must(u.Create(filetree.RootNode, "f", fileAttr))
		must(0, u.Write(n, 0, noise(0, 100_000)))
	}))
	must(f.commit(w, 2, func(u *Update) { must(0, u.Write(n, 0, a)) }))
	before := f.allSignatures(source)
	u := must(w.Begin(t.Context(), source, SnapshotInfo{}))
	must(0, u.Write(n, 0, b))
	must(0, u.flushWrite())
	given := must(u.View().Extents(n, 0, 1))[0].Pack
	u.Abort()
	if diff := cmp.Diff(before, f.allSignatures(source)); diff != "" {
		t.Errorf("after it was given up (-want +got):\n%s", diff)
	}
	must(f.commit(w, 3, func(u *Update) {
		must(0, u.Write(n, 0, c))
		must(0, u.flushWrite())
		if got := must(u.View().Extents(n, 0, 1))[0].Pack; got != given {
			t.Errorf("it is in pack %d, not %d: not what this test is for", got, given)
		}
	}))
	f.checkSignatures(source)
	must(f.commit(w, 4, func(u *Update) { must(0, u.Write(n, 0, b)) }))
	f.checkSignatures(source)
	for seq, want := range map[uint64][]byte{2: a, 3: c, 4: b} {
		if got := f.bytesOf(source, n, seq); !bytes.Equal(got, want) {
			t.Errorf("#%d has other bytes", seq)
		}
	}
	f.checkRebuild()
}

// bytesOf returns the content of a file at a snapshot.
func (f *fixture) bytesOf(source catalog.Source, n filetree.NodeID, seq uint64) []byte {
	f.t.Helper()
	v := f.cat.At(source.ID, seq)
	var b bytes.Buffer
	must(0, f.content(f.cat).WriteFile(f.t.Context(), v, n, must(v.Attr(n)).Size, &b))
	return b.Bytes()
}

// TestOverwrite writes over one file, again and again, bytes of which few are others, as a
// stream does; in between it makes holes, goes back to older snapshots and gives up.
func TestOverwrite(t *testing.T) {
	for seed := range uint64(*modelSeeds) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			f := newFixture(t)
			r := rand.New(rand.NewPCG(seed, 3))
			f.options = WriterOptions{PackSize: 1 + r.Int64N(100<<10), SegmentSize: 100 + r.IntN(8000), PartialAfter: -1}
			w := f.writer()
			source := must(w.Source("s"))
			var n filetree.NodeID
			var now []byte
			states := map[uint64][]byte{}
			resize := func(size int) {
				if size < len(now) {
					now = now[:size:size] // what was behind it does not come back
				}
				now = append(now, make([]byte, size-len(now))...)
			}
			var written, stored uint64
			signatures := 0
			for range 30 {
				if r.IntN(5) == 0 {
					w = f.writer()
				}
				before := bytes.Clone(now)
				u := must(w.Begin(t.Context(), source, SnapshotInfo{Time: filetree.Time{Sec: 1}}))
				head := u.Head().Seq
				switch {
				case head == 0:
					n = must(u.Create(filetree.RootNode, "f", fileAttr))
				case r.IntN(8) == 0:
					seq := 1 + r.Uint64N(head)
					must(0, u.Revert(seq))
					now = bytes.Clone(states[seq])
				}
				for range 1 + r.IntN(12) {
					size := max(len(now), 1)
					off, length := r.IntN(size), 1+r.IntN([]int{100, 5000, 300_000}[r.IntN(3)])
					if r.IntN(2) == 0 {
						off &^= 4095
					}
					switch k := r.IntN(20); {
					case k == 0:
						length = min(length, len(now)-off)
						if length <= 0 {
							continue
						}
						must(0, u.Hole(n, int64(off), int64(length)))
						clear(now[off : off+length])
					case k == 1:
						size := min(len(now), 2<<20) + r.IntN(100_000) - 50_000
						resize(max(size, 0))
						must(0, u.Truncate(n, int64(len(now))))
					case k == 2 && len(now) > 0:
						from := r.IntN(len(now))
						length = min(length, len(now)-from)
						must(0, u.Clone(n, int64(off), n, int64(from), int64(length)))
						moved := bytes.Clone(now[from : from+length])
						resize(max(len(now), off+length))
						copy(now[off:], moved)
					case k == 3:
						fresh := noise(r.IntN(20), length)
						resize(max(len(now), off+length))
						copy(now[off:], fresh)
						must(0, u.Write(n, int64(off), fresh))
					default: // most of it is what it was
						resize(max(len(now), off+length))
						for range r.IntN(4) {
							now[off+r.IntN(length)] ^= byte(1 + r.IntN(3))
						}
						must(0, u.Write(n, int64(off), now[off:off+length]))
						written += uint64(length)
					}
				}
				must(0, u.flushWrite())
				data := u.stats.Data
				if r.IntN(5) == 0 && head > 0 {
					u.Abort()
					now = before
				} else if s, err := u.Commit(); err == nil {
					states[s.Seq] = bytes.Clone(now)
					stored += data
				} else if !errors.Is(err, ErrUnchanged) {
					t.Fatal(err)
				} else if !bytes.Equal(now, states[head]) {
					t.Fatal("said to be unchanged")
				}
				signatures = max(signatures, f.checkSignatures(source))
			}
			for seq, want := range states {
				if got := f.bytesOf(source, n, seq); !bytes.Equal(got, want) {
					t.Errorf("#%d has other bytes", seq)
				}
			}
			t.Logf("%d bytes stored of %d, at most %d signatures", stored, written, signatures)
			if stored > written*2/3 || signatures == 0 {
				t.Errorf("%d bytes stored of %d, %d signatures: nothing is kept", stored, written, signatures)
			}
			f.checkRebuild()
		})
	}
}

// TestSignaturesCrash goes on from copies made before and after each upload: what is
// signed there is right, and what is written then comes back.
func TestSignaturesCrash(t *testing.T) {
	f := newFixture(t)
	d := &dying{Mem: f.mem, dir: f.dir}
	f.store = d
	f.options.PackSize = 1
	w := f.writer()
	var n filetree.NodeID
	content := func(i int) []byte {
		b := noise(1, 1<<20+50_000)
		for k := range i {
			copy(b[k*9000:], noise(k+2, 600))
		}
		return b
	}
	must(f.commit(w, 1, func(u *Update) {
		n = must(u.Create(filetree.RootNode, "f", fileAttr))
		must(0, u.Write(n, 0, content(0)))
	}))
	for i := 1; i < 4; i++ {
		must(f.commit(w, int64(i)+1, func(u *Update) {
			must(0, u.Write(n, 0, content(i)[:60_000+i]))
			must(0, u.Write(n, 1<<20, content(i)[1<<20:]))
		}))
	}
	with, without := 0, 0
	for i := range d.states {
		g := f.at(&d.states[i])
		w := g.writer()
		source := must(w.Source("s"))
		head := must(w.Head(source))
		if head.Seq > 1 {
			if g.checkSignatures(source) > 0 {
				with++
			} else {
				without++
			}
		}
		if head.Seq > 0 {
			s := must(g.commit(w, 9, func(u *Update) { must(0, u.Write(n, 0, content(5)[:65_000])) }))
			want := slices.Concat(content(5)[:65_000], content(0)[65_000:])
			if got := g.bytesOf(source, n, s.Seq); !bytes.Equal(got, want) {
				t.Errorf("%s: after #%d it has other bytes", d.states[i].what, head.Seq)
			}
			g.checkSignatures(source)
			g.checkRebuild()
		}
		g.cat.Close()
	}
	if with == 0 || without == 0 {
		t.Errorf("%d crashes left signatures, %d did not: not what this test is for", with, without)
	}
}

// TestSignaturesGo: with what they are of.
func TestSignaturesGo(t *testing.T) {
	const record = 128 << 10
	content := noise(1, 4*record)
	for name, change := range map[string]func(u *Update, n filetree.NodeID){
		"hole":      func(u *Update, n filetree.NodeID) { must(0, u.Hole(n, 0, 4*record)) },
		"truncated": func(u *Update, n filetree.NodeID) { must(0, u.Truncate(n, 0)) },
		"removed":   func(u *Update, n filetree.NodeID) { must(0, u.Unlink(filetree.RootNode, "f")) },
		"cleared":   func(u *Update, n filetree.NodeID) { must(0, u.Clear()) },
		"put": func(u *Update, n filetree.NodeID) {
			must(0, u.Put(n, Piece{Items: []Item{{Data: noise(7, 4*record)}}}))
		},
		"reverted": func(u *Update, n filetree.NodeID) { must(0, u.Revert(1)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			w := f.writer()
			source := must(w.Source("s"))
			var n filetree.NodeID
			for i := range 2 {
				must(f.commit(w, int64(i), func(u *Update) {
					if i == 0 {
						n = must(u.Create(filetree.RootNode, "f", fileAttr))
					}
					must(0, u.Write(n, 0, content[i*9:]))
				}))
			}
			if got := f.checkSignatures(source); got != 4*record/catalog.MaxSigned {
				t.Fatalf("%d signatures", got)
			}
			must(f.commit(w, 3, func(u *Update) { change(u, n) }))
			if got := f.checkSignatures(source); got > 0 {
				t.Errorf("%d signatures are left", got)
			}
		})
	}
}

// TestSignaturesReplaced: one goes with the last of what it is of, also where no write was
// over all of it.
func TestSignaturesReplaced(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	source := must(w.Source("s"))
	var n filetree.NodeID
	content := noise(1, catalog.MaxSigned)
	for i, want := range []int{
		0: 0,
		1: 1, // all of it
		2: 2, // that, and its first half
		3: 2, // both halves
		4: 3, // and a block in the midst of the second
	} {
		for k := range content {
			if i == 1 || i == 2 && k < catalog.MaxSigned/2 || i == 3 && k >= catalog.MaxSigned/2 || i == 4 && k == 20_000 {
				content[k] += byte(1 + k%100)
			}
		}
		must(f.commit(w, int64(i), func(u *Update) {
			if i == 0 {
				n = must(u.Create(filetree.RootNode, "f", fileAttr))
			}
			must(0, u.Write(n, 0, content))
		}))
		if got := f.checkSignatures(source); got != want {
			t.Errorf("%d: %d signatures, want %d", i, got, want)
		}
	}
}

// TestSignaturesBounded: what an update signs, and what of a source is signed at once, is
// no more than its bound, to the byte.
func TestSignaturesBounded(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	source := must(w.Source("s"))
	prose := bytes.Repeat([]byte("It was a dark and stormy night. "), 2<<15)
	var n filetree.NodeID
	must(0, w.SetNote(source, signedNote, binary.BigEndian.AppendUint64(nil, maxFirst-catalog.MaxPart)))
	must(f.commit(w, 1, func(u *Update) {
		n = must(u.Create(filetree.RootNode, "f", fileAttr))
		prose[0]++ // so that no piece is known from before
		must(0, u.Write(n, 0, prose))
	}))
	const rows = catalog.MaxPart / catalog.MaxSigned
	if got := f.checkSignatures(source); got != rows {
		t.Errorf("%d signatures of what is first, want %d", got, rows)
	}
	must(f.commit(w, 2, func(u *Update) {
		u.signed = maxSigned - 3*catalog.MaxSigned
		for i := range 4 {
			must(0, u.Write(n, catalog.MaxPart+int64(i)*100_000, noise(i, catalog.MaxSigned)))
		}
	}))
	if got := f.checkSignatures(source); got != rows+3 {
		t.Errorf("%d signatures, want 3 more than %d", got, rows)
	}
	f.checkRebuild()
}

// BenchmarkOverwrite writes 128 records of an existing file in each of which a byte
// changed.
func BenchmarkOverwrite(b *testing.B) {
	const record, records = 128 << 10, 128
	for _, tt := range []struct {
		name  string
		bytes int // that change
	}{{"byte", 1}, {"everything", record}} {
		b.Run(tt.name, func(b *testing.B) {
			f := newFixture(b)
			w := f.writer()
			var n filetree.NodeID
			now := noise(1, record*records)
			commit := func() Snapshot {
				return must(f.commit(w, 1, func(u *Update) {
					if n == 0 {
						n = must(u.Create(filetree.RootNode, "f", fileAttr))
					}
					for off := 0; off < len(now); off += record {
						must(0, u.Write(n, int64(off), now[off:off+record]))
					}
				}))
			}
			r := rand.New(rand.NewPCG(1, 1))
			change := func() {
				for off := 0; off < len(now); off += record {
					at := off + r.IntN(record-tt.bytes+1)
					for i := range tt.bytes {
						now[at+i] += byte(1 + r.IntN(255))
					}
				}
			}
			commit()
			change()
			commit() // from here on it is signed
			b.SetBytes(int64(len(now)))
			b.ReportAllocs()
			var uploaded int64
			for b.Loop() {
				b.StopTimer()
				change()
				b.StartTimer()
				uploaded += commit().Uploaded
			}
			b.ReportMetric(float64(uploaded)/float64(b.N)/records, "uploaded-B/record")
		})
	}
}

// BenchmarkDatabase makes snapshots of an SQLite file of 41 MiB, in between of which 300
// rows change and 30 come. All records that differ are written, as zfs send does. The
// figures of docs/design.md, section r, are of -benchtime 100x.
func BenchmarkDatabase(b *testing.B) {
	const record, rows = 128 << 10, 150_000
	r := rand.New(rand.NewPCG(1, 1))
	text := func(n int) []byte {
		var b []byte
		for len(b) < n {
			b = fmt.Append(b, []string{"alpha ", "beta ", "order ", "customer ", "2026-11-", "paid ", "open ", "street "}[r.IntN(8)], r.Uint32()>>(4*r.IntN(12)))
		}
		return b[:n]
	}
	path := filepath.Join(b.TempDir(), "database")
	c := must(sqlite.OpenConn(path, sqlite.OpenReadWrite, sqlite.OpenCreate))
	defer c.Close()
	run := func(query string, args ...any) {
		must(0, sqlitex.Execute(c, query, &sqlitex.ExecOptions{Args: args}))
	}
	change := func(updates, inserts int) []byte {
		run("BEGIN")
		for range inserts {
			run("INSERT INTO t (k, n, v) VALUES (?, ?, ?)", fmt.Sprint(r.Uint64()), r.IntN(1000), text(150+r.IntN(100)))
		}
		for range updates {
			id := r.IntN(rows)
			if r.IntN(5) > 0 { // most of them in a tenth of it
				id /= 10
			}
			run("UPDATE t SET n = n + 1, v = ? WHERE id = ?", text(200), id)
		}
		run("COMMIT")
		return must(os.ReadFile(path))
	}
	run("CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT, n INTEGER, v BLOB)")
	run("CREATE INDEX tk ON t (k)")
	f := newFixture(b)
	f.openStore(b)
	w := f.writer()
	var n filetree.NodeID
	old := change(0, rows)
	must(f.commit(w, 0, func(u *Update) {
		n = must(u.Create(filetree.RootNode, "database", fileAttr))
		must(0, u.Write(n, 0, old))
	}))
	var written, uploaded int64
	for b.Loop() {
		b.StopTimer()
		now := change(300, 30)
		b.StartTimer()
		s := must(f.commit(w, 1, func(u *Update) {
			for off := 0; off < len(now); off += record {
				end := min(off+record, len(now))
				if off < len(old) && bytes.Equal(now[off:end], old[off:min(end, len(old))]) {
					continue
				}
				must(0, u.Write(n, int64(off), now[off:end]))
				written += int64(end - off)
			}
		}))
		uploaded += s.Uploaded
		old = now
	}
	b.ReportMetric(float64(written)/float64(b.N), "written-B/op")
	b.ReportMetric(float64(uploaded)/float64(b.N), "uploaded-B/op")
}
