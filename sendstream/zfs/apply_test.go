package zfs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

// apply brings the units of a stream into a tree, each whole or not at all.
func apply(t testing.TB, m *modelTree, stream []byte) (*modelTree, error) {
	t.Helper()
	units := NewUnits(bytes.NewReader(stream))
	for {
		u, err := units.Next()
		if err == io.EOF {
			return m, nil
		}
		if err != nil {
			return m, err
		}
		if m, err = applyUnit(t, m, u); err != nil {
			return m, err
		}
	}
}

func applyUnit(t testing.TB, m *modelTree, u *Unit) (*modelTree, error) {
	t.Helper()
	return applyWith(t, m, u, Options{})
}

func applyWith(t testing.TB, m *modelTree, u *Unit, o Options) (*modelTree, error) {
	t.Helper()
	next := m.clone()
	next.volume = u.ObjectSet == Volume
	_, err := u.Apply(t.Context(), next, o)
	if len(next.broken) > 0 {
		t.Fatalf("%s: %q", u.Name, next.broken)
	}
	if err != nil {
		return m, err
	}
	if wrong := next.check(); len(wrong) > 0 {
		t.Fatalf("%s: %q", u.Name, wrong)
	}
	return next, nil
}

// sameAgain expects that a full stream that made m makes the same on top of it, whether
// what is kept is there or lost, of the same nodes.
func sameAgain(t testing.TB, m *modelTree, stream []byte) {
	t.Helper()
	for _, lost := range []bool{false, true} {
		again := m.clone()
		if lost {
			again.forget()
		}
		again, err := apply(t, again, stream)
		if err != nil {
			t.Fatalf("lost=%v: %v", lost, err)
		}
		if diff := gocmp.Diff(m.dump(), again.dump()); diff != "" {
			t.Fatalf("lost=%v (-first +again):\n%s", lost, diff)
		}
		if again.next != m.next {
			t.Errorf("lost=%v: %d new nodes", lost, again.next-m.next)
		}
		if diff := gocmp.Diff(m.kept, again.kept); diff != "" {
			t.Errorf("lost=%v: kept (-first +again):\n%s", lost, diff)
		}
	}
}

// sameWithoutData expects that a stream of one unit that made m of base makes the same where
// content is read elsewhere.
func sameWithoutData(t testing.TB, base, m *modelTree, stream []byte) {
	t.Helper()
	u, err := NewUnits(bytes.NewReader(stream)).Next()
	if err != nil {
		t.Fatal(err)
	}
	again, err := applyWith(t, base, u, Options{NoData: true})
	if err != nil {
		t.Fatalf("%s without data: %v", u.Name, err)
	}
	if u.Incremental() && u.ObjectSet == FileSystem {
		again.read(m, base.next)
	}
	if diff := gocmp.Diff(m.dump(), again.dump()); diff != "" {
		t.Errorf("%s (-with data +without):\n%s", u.Name, diff)
	}
	if diff := gocmp.Diff(m.kept, again.kept); diff != "" {
		t.Errorf("%s: kept (-with data +without):\n%s", u.Name, diff)
	}
}

// TestApplyCorpus applies every recorded stream of one dataset that there are bases for.
// What they make is compared with manifests in internal/backup; here trees are trees, and
// full streams make the same on top of whatever there is.
func TestApplyCorpus(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(cmp.Or(os.Getenv("SECRATE_CORPUS_ZFS"), "zpl/testdata/corpus"), "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no streams: %v", err)
	}
	var before *modelTree // of another dataset
	for _, dir := range dirs {
		paths, _ := filepath.Glob(filepath.Join(dir, "*.zsend.zst"))
		if len(paths) == 0 {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			trees := map[uint64]*modelTree{}
			for _, path := range paths {
				stream := readZst(t, path)
				name := filepath.Base(path)
				u, err := only(stream)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if u == nil {
					continue
				}
				base := newModel()
				if u.Incremental() {
					if base = trees[u.FromGUID]; base == nil {
						continue
					}
				}
				m, err := apply(t, base, stream)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				sameWithoutData(t, base, m, stream)
				for guid, other := range trees {
					if !u.Incremental() || stateOf(other.kept[string(StateKey)], GUID(u.FromGUID)) {
						continue // from guid, or from one that is the same
					}
					if _, err := apply(t, other, stream); !errors.Is(err, ErrState) {
						t.Errorf("%s on snapshot %d: %v", name, guid, err)
					}
				}
				if !u.Incremental() {
					sameAgain(t, m, stream)
					onTop := []*modelTree{before}
					for _, tree := range trees {
						onTop = append(onTop, tree)
					}
					for _, old := range onTop {
						for _, lost := range []bool{false, true} {
							if old == nil {
								continue
							}
							old = old.clone()
							if lost {
								old.forget()
							}
							top, err := apply(t, old, stream)
							if err != nil {
								t.Fatalf("%s on top, lost=%v: %v", name, lost, err)
							}
							if diff := gocmp.Diff(m.dump(), top.dump()); diff != "" {
								t.Errorf("%s on top, lost=%v (-want +got):\n%s", name, lost, diff)
							}
						}
					}
					before = m
				}
				if was := trees[u.ToGUID]; was != nil {
					if diff := gocmp.Diff(was.dump(), m.dump()); diff != "" {
						t.Errorf("%s (-other stream +this one):\n%s", name, diff)
					}
				}
				trees[u.ToGUID] = m
			}
		})
	}
}

// only returns the one unit of a stream; nil if there are several, or if there are no files
// in it or not all.
func only(stream []byte) (*Unit, error) {
	units := NewUnits(bytes.NewReader(stream))
	u, err := units.Next()
	for _, is := range []error{ErrRaw, ErrRedacted} {
		if errors.Is(err, is) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if _, _, resumed := u.Resume(); resumed {
		return nil, nil
	}
	switch _, err := units.Next(); {
	case err == io.EOF:
		return u, nil
	case errors.Is(err, ErrPartial):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return nil, nil
}

// interleaved returns a stream in the order of senders before 2.0 (section 3.1): of each
// 32 objects first what they are, then their data.
func interleaved(stream []byte) []byte {
	var out, objects, data []byte
	group := uint64(math.MaxUint64)
	flush := func() {
		out = slices.Concat(out, objects, data)
		objects, data = nil, nil
	}
	last := Begin
	for _, r := range splitRecords(stream) {
		b := stream[r.at:r.end]
		if r.typ == Begin || r.typ == End {
			flush()
			out = append(out, b...)
		} else {
			if g := orderOf(r.big).Uint64(b[8:]) >> 5; g != group {
				flush()
				group = g
			}
			if r.typ == Object || r.typ == FreeObjects || r.typ == Free && last == Object {
				objects = append(objects, b...)
			} else {
				data = append(data, b...)
			}
		}
		last = r.typ
	}
	return mend(out, false)
}

// withoutSpillFlag returns a stream as senders before 0.8 made it, which do not say what
// objects have spill blocks.
func withoutSpillFlag(stream []byte) []byte {
	out := bytes.Clone(stream)
	for _, r := range splitRecords(out) {
		switch r.typ {
		case Begin:
			out[r.at+36] &^= byte(FlagSpillBlock)
		case Object:
			out[r.at+35] = 0
		case Spill:
			out[r.at+32] = 0
		}
	}
	return mend(out, false)
}

// withStraySpills returns a stream with what a pool may have that received embedded spill
// blocks as data (section 1.7): behind each spill block, and behind each object that has
// none, one at that offset.
func withStraySpills(stream []byte) []byte {
	stray := func(object uint64) []byte {
		sa := make([]byte, 16)
		binary.LittleEndian.PutUint32(sa, 0x2F505A)
		return new(builder).embedded(object, math.MaxUint64-1023, 512, 16, Off, sa).b
	}
	var out []byte
	for _, r := range splitRecords(stream) {
		b := stream[r.at:r.end]
		out = append(out, b...)
		object := binary.LittleEndian.Uint64(b[8:])
		switch {
		case r.typ == Begin:
			info := out[len(out)-len(b)+16:]
			binary.LittleEndian.PutUint64(info, binary.LittleEndian.Uint64(info)|uint64(FeatureEmbedData)<<2)
		case r.typ == Spill, r.typ == Object && b[35]&4 == 0:
			out = append(out, stray(object)...)
		}
	}
	return mend(out, false)
}

// TestApplyOtherSenders: what other senders make of the same snapshots gives the same.
func TestApplyOtherSenders(t *testing.T) {
	senders := map[string]func([]byte) []byte{"interleaved": interleaved, "no spill flag": withoutSpillFlag, "stray spill blocks": withStraySpills,
		"interleaved, no spill flag": func(s []byte) []byte { return interleaved(withoutSpillFlag(s)) }}
	for _, dir := range []string{"e_grow", "f_dir_16k", "f_reuse", "f_sa_auto", "o_longname"} {
		t.Run(dir, func(t *testing.T) {
			paths, err := filepath.Glob(filepath.Join("zpl/testdata/corpus", dir, "0?0-*.zsend.zst"))
			if err != nil || len(paths) == 0 {
				t.Fatalf("no streams: %v", err)
			}
			want, spills := newModel(), 0
			got := map[string]*modelTree{}
			for name := range senders {
				got[name] = newModel()
			}
			for _, path := range paths {
				stream := readZst(t, path)
				if want, err = apply(t, want, stream); err != nil {
					t.Fatal(err)
				}
				for name, sender := range senders {
					if got[name], err = apply(t, got[name], sender(stream)); err != nil {
						t.Fatalf("%s, %s: %v", filepath.Base(path), name, err)
					}
					if diff := gocmp.Diff(want.dump(), got[name].dump()); diff != "" {
						t.Errorf("%s, %s (-want +got):\n%s", filepath.Base(path), name, diff)
					}
				}
				for k := range want.kept {
					if k[0] == keySpill {
						spills++
					}
				}
			}
			if spills == 0 && dir == "f_sa_auto" {
				t.Error("no spill block is kept")
			}
		})
	}
}

// TestXattrCut: what is cut off the value of an extended attribute is zero if it grows
// again, and no stream has these zeros.
func TestXattrCut(t *testing.T) {
	s := newSimSet(2, 5)
	s.objects[2].names["f"] = 3
	s.objects[3] = &simObject{gen: 5, ctime: 5, slots: 1, parent: 2, xdir: 4}
	s.objects[4] = &simObject{gen: 5, ctime: 5, slots: 1, parent: 3, dir: true, xattr: true, names: map[string]uint64{"user.x": 5}}
	s.objects[5] = &simObject{gen: 5, ctime: 5, slots: 1, parent: 4, xattr: true, data: bytes.Repeat([]byte("x"), 700)}
	m, was := newModel(), (*simSet)(nil)
	for guid, size := range []int{700, 4, 300, 0, 900} {
		v := s.objects[5]
		v.ctime++
		v.data = append(slices.Clip(v.data[:min(size, len(v.data))]), make([]byte, max(0, size-len(v.data)))...)
		var err error
		if m, err = apply(t, m, s.send(was, uint64(guid)+1, uint64(guid), false)); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(s.tree(), m.files()); diff != "" {
			t.Errorf("%d bytes (-want +got):\n%s", size, diff)
		}
		was = s.clone()
	}
}

// volumeStream makes a stream of a volume of size bytes, with what data adds.
func volumeStream(to, from, size uint64, data func(b *builder)) []byte {
	b := newStream(0, u32(32, 3), u64(40, to), u64(48, from))
	b.object(1, u32(16, 23), u32(20, 0))
	data(b)
	b.object(2, u32(16, typeVolumeProps), u32(20, 0))
	return b.write(2, 0, microZAP(map[string]uint64{"size": size}), u32(16, typeVolumeProps)).end()
}

// TestApplyVolume: a volume grows and shrinks, gets holes, is compared with what it was by
// full streams that tell of no hole, and takes turns with a file system.
func TestApplyVolume(t *testing.T) {
	block := func(c byte) []byte { return bytes.Repeat([]byte{c}, 512) }
	x, y, hole := block('x'), block('y'), make([]byte, 512)
	content := func(m *modelTree) []byte {
		n := m.entries[filetree.RootNode][VolumeName]
		if n == 0 {
			t.Fatal("no volume")
		}
		data := make([]byte, m.nodes[n].attr.Size)
		for i, page := range m.nodes[n].pages {
			copy(data[i*modelPage:], page)
		}
		return data
	}
	first := volumeStream(1, 0, 4*512, func(b *builder) { b.write(1, 0, x).write(1, 512, x).write(1, 1536, x) })
	m, err := apply(t, newModel(), first)
	if err != nil {
		t.Fatal(err)
	}
	sameAgain(t, m, first)
	for i, step := range []struct {
		stream []byte
		want   []byte
	}{
		{volumeStream(2, 1, 6*512, func(b *builder) { b.free(1, 0, 512).write(1, 2560, y) }), slices.Concat(hole, x, hole, x, hole, y)},
		{volumeStream(3, 2, 2*512, func(b *builder) { b.free(1, 1024, math.MaxUint64) }), slices.Concat(hole, x)},
		{volumeStream(4, 3, 4*512, func(b *builder) {}), slices.Concat(hole, x, hole, hole)}, // not what was cut off
		{volumeStream(5, 0, 5*512, func(b *builder) { b.write(1, 1536, y) }), slices.Concat(hole, hole, hole, y, hole)},
		{first, slices.Concat(x, x, hole, x)},
	} {
		if m, err = apply(t, m, step.stream); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if diff := gocmp.Diff(step.want, content(m)); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", i, diff)
		}
	}
	s := newSimSet(2, 5)
	s.objects[2].names[VolumeName] = 3
	s.objects[3] = &simObject{gen: 5, ctime: 5, slots: 1, parent: 2, data: []byte("a file")}
	for _, lost := range []bool{false, true} {
		m := m.clone()
		for i, stream := range [][]byte{s.send(nil, 7, 0, false), first, s.send(nil, 7, 0, true)} {
			if lost {
				m.forget()
			}
			if m, err = apply(t, m, stream); err != nil {
				t.Fatalf("in turn %d, lost=%v: %v", i, lost, err)
			}
			if i != 1 {
				if diff := gocmp.Diff(s.tree(), m.files()); diff != "" {
					t.Errorf("in turn %d, lost=%v (-want +got):\n%s", i, lost, diff)
				}
			} else if diff := gocmp.Diff(slices.Concat(x, x, hole, x), content(m)); diff != "" || len(m.nodes) != 2 {
				t.Errorf("in turn %d, lost=%v, %d nodes (-want +got):\n%s", i, lost, len(m.nodes), diff)
			}
		}
	}
	if _, err := apply(t, newModel(), volumeStream(1, 0, 1<<63, func(*builder) {})); !errors.Is(err, filetree.ErrInvalid) {
		t.Errorf("a volume too large: %v", err)
	}
}

// TestApplySame starts a unit from a snapshot after which a unit without a record came: what
// the one left is what the other has left.
func TestApplySame(t *testing.T) {
	one := newSimSet(34, 5)
	two := one.clone()
	two.objects[34].ctime++
	m, err := apply(t, newModel(), one.send(nil, 1, 0, false))
	if err != nil {
		t.Fatal(err)
	}
	for to := uint64(2); to < 5; to++ {
		empty := newStream(FeatureLargeDnode, u64(40, to), u64(48, to-1)).end()
		if m, err = apply(t, m, empty); err != nil {
			t.Fatal(err)
		}
	}
	for from := uint64(1); from < 5; from++ {
		if _, err := apply(t, m, two.send(one, 9, from, false)); err != nil {
			t.Errorf("from %d: %v", from, err)
		}
	}
	after, err := apply(t, m, two.send(one, 9, 2, false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apply(t, after, two.send(one, 10, 2, false)); !errors.Is(err, ErrState) {
		t.Errorf("from what has changed since: error is %v, want ErrState", err)
	}
}
