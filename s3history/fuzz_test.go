package s3history

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store/storetest"
)

var fuzzKey = func() (k seal.Key) { copy(k[:], "a key that every fuzz target uses"); return k }()

// realManifests returns the plaintext of all manifests of a small history.
func realManifests(f *testing.F) (roots, bodies [][]byte) {
	fx := newFixture(f)
	smallObjects(fx)
	w := fx.writer()
	for i, step := range steps {
		must(fx.commit(w, int64(i+1), step))
	}
	must(fx.commit(w, 9, func(u *Update) {
		n := must(u.Create(filetree.RootNode, "p", filetree.Attr{Kind: filetree.File, Xattrs: []filetree.Xattr{{Name: "user.x", Value: []byte("v")}}}))
		must(0, u.Write(n, 0, noise(1, 500)))
		base := must(u.View().Parts(n, 0, 500))
		must(0, u.flushWrite())
		must(0, u.Put(n, Piece{Items: []Item{{Keep: 10}, {Hole: 5}, {Patch: &NewPatch{Patch: []byte("patch"), Base: base, Result: 100}}}}))
	}))
	for _, name := range append(rootKeys(fx.mem, kindRoot), rootKeys(fx.mem, kindSegment)...) {
		n := must(parseMetaName(name))
		for label, number := range map[string]uint32{labelRoot: 0, labelSegment: 0, labelCheckSeg: 0} {
			p := metaPlace{fx.identity.Repo, n.writer, n.source, n.seq, label, number}
			obj := fx.mem.Bytes("meta/" + name)[len(manifestMagic):]
			if plain, err := p.key(fx.identity.Key, obj[:saltSize]).Open(nil, nil, obj[saltSize:]); err == nil {
				plain = must(decompress(newDecoder(maxManifest), plain, -1, maxManifest))
				if label == labelRoot {
					roots = append(roots, plain)
				} else {
					bodies = append(bodies, plain)
				}
			}
		}
	}
	return roots, bodies
}

// fuzzCatalog opens a catalog that fuzz targets use again and again, in a transaction
// that is dropped.
func fuzzCatalog(f *testing.F) *catalog.DB {
	db, err := catalog.Open(filepath.Join(f.TempDir(), "catalog.db"), catalog.Options{Temporary: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { db.Close() })
	return db
}

// walkSome reads as much of a state as a restore would, without its data.
func walkSome(v catalog.View) {
	for ch, err := range v.Nodes() {
		if err != nil {
			return
		}
		v.Path(ch.Node)
		v.NextExtent(ch.Node, 0)
		parts, err := v.Parts(ch.Node, 0, 1<<40)
		for _, p := range parts {
			if err == nil {
				p.Check()
				p.Depth()
			}
		}
		for range v.List(ch.Node) {
		}
	}
}

// FuzzBody applies the plaintext of a segment to a catalog that has a snapshot already.
func FuzzBody(f *testing.F) {
	_, bodies := realManifests(f)
	for _, b := range bodies {
		f.Add(b)
	}
	file, size := uint8(filetree.File), uint64(1<<62)
	deep := &patchRec{Pack: 1, Length: 1, Result: 1}
	for range 20 {
		deep = &patchRec{Pack: 1, Length: 1, Result: 1, Base: []partRec{{Length: 1, Patch: deep}}}
	}
	for _, b := range []body{
		{},
		{Packs: []packRec{{SHA: make([]byte, 32), Size: 1 << 39, Key: []byte{1}, Blobs: []uint32{1000, 1000}}},
			Nodes: []nodeRec{{ID: 2, Attr: &catalog.Attr{Kind: &file, Size: &size}, Got: []entryRec{{Dir: 1, Name: []byte("a")}},
				Data: []dataRec{{Offset: 1 << 62, Parts: []partRec{{Length: 1 << 62}, {Length: 1}}}, {Parts: []partRec{{Length: 9, Pack: 1}}, CID: make([]byte, 16)}}}}},
		{Packs: []packRec{{SHA: make([]byte, 32)}}, Nodes: []nodeRec{{ID: 2, Data: []dataRec{{Parts: []partRec{{Length: 1, Patch: deep}}}}}}},
		{Nodes: []nodeRec{{ID: 1, End: true}, {ID: 1 << 40}, {ID: 3, Got: []entryRec{{Dir: 3, Name: []byte("loop")}}}}},
		{Nodes: []nodeRec{{ID: 1, Lost: []entryRec{{Dir: 1 << 63, Name: []byte("../x")}}, Got: []entryRec{{Dir: 1, Name: []byte("..")}}}}},
		{Nodes: []nodeRec{{ID: 2, Data: []dataRec{{Offset: 1 << 63, Parts: []partRec{{Length: 5, Keep: true}}}, {Offset: 1<<63 - 3, Parts: []partRec{{Length: 5}}}}}}},
	} {
		f.Add(must(encMode.Marshal(&b)))
	}
	db := fuzzCatalog(f)
	source := must(db.AddSource("w", "s", "s"))
	must(0, db.Begin())
	v := db.At(source.ID, 1)
	must(0, v.AddNode(filetree.RootNode, &filetree.Attr{Kind: filetree.Dir}))
	must(0, v.AddNode(2, &filetree.Attr{Kind: filetree.File, Size: 100}))
	must(0, v.AddEntry(1, "a", 2))
	must(0, db.Commit())
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) > 64<<10 {
			return
		}
		var b body
		if err := decMode.Unmarshal(plain, &b); err != nil {
			return
		}
		must(0, db.Begin())
		defer db.Rollback()
		var unknown int
		l := must(db.At(source.ID, 2).NewLoader())
		err := errors.Join(applyBody(db, source, l, &b, &unknown), l.Flush())
		if err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, filetree.ErrInvalid) {
			t.Fatal(err)
		}
		walkSome(db.At(source.ID, 2))
		walkSome(db.At(source.ID, 1))
	})
}

// FuzzRoot brings the plaintext of a root through all that reads one.
func FuzzRoot(f *testing.F) {
	roots, _ := realManifests(f)
	for _, r := range roots {
		f.Add(r)
	}
	f.Add(must(encMode.Marshal(&root{Seq: 4, Next: 1 << 63, Segments: []segmentRef{{SHA: []byte("short")}}})))
	f.Add(must(encMode.Marshal(&root{Seq: 4, Flags: flagFull | flagCheckpoint, Prev: make([]byte, 32), Time: [2]int64{-1 << 63, 999999999},
		Segments: []segmentRef{{SHA: make([]byte, 32), Size: 1<<64 - 1}}, Users: map[uint32][]byte{0: []byte("root")}})))
	db := fuzzCatalog(f)
	place := metaPlace{RepoID{1}, "0123456789abcdef", "s", 4, labelRoot, 0}
	enc := newEncoder(zstd.SpeedFastest)
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) > 64<<10 {
			return
		}
		salt := make([]byte, saltSize)
		obj := append([]byte(manifestMagic), salt...)
		obj = place.key(fuzzKey, salt).Seal(obj, nil, compress(enc, nil, plain))
		name := metaName{place.writer, place.source, 4, kindRoot, hashOf(obj)}
		m := storetest.NewMem()
		m.Set("meta/"+name.String(), obj)
		x, err := ReadIndex(t.Context(), m, WriterIdentity{Repo: place.repo, ID: place.writer, Key: fuzzKey})
		if err != nil {
			t.Fatal(err)
		}
		if len(x.Problems) == 0 {
			t.Fatal("nobody misses #1 to #3")
		}
		for i := range x.Sources {
			x.Sources[i].Snapshots()
			must(0, db.Begin())
			source := must(db.AddSource(place.writer, place.source, "s"))
			if err := x.applySeq(t.Context(), db, source, &x.Sources[i].roots[0], obj, new(int)); err == nil {
				must(Snapshots(db, source))
				walkSome(db.At(source.ID, 4))
			}
			must(0, db.Rollback())
		}
	})
}

// FuzzManifest opens what is no manifest.
func FuzzManifest(f *testing.F) {
	place := metaPlace{RepoID{1}, "w", "s", 4, labelRoot, 0}
	f.Add(must(sealManifest(fuzzKey, place, &root{Seq: 4}, newEncoder(zstd.SpeedFastest))))
	f.Add([]byte(manifestMagic))
	f.Add([]byte("scrm\x02" + strings.Repeat("x", 100)))
	f.Fuzz(func(t *testing.T, obj []byte) {
		var r root
		err := openManifest(fuzzKey, place, obj, &r)
		if err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrNewer) && !errors.Is(err, seal.ErrAuthentication) {
			t.Fatal(err)
		}
	})
}

// FuzzPack reads the key, the index and the blobs of something that says it is a pack.
// index is the plaintext of the index, compressed as it is in a pack.
func FuzzPack(f *testing.F) {
	fx := newFixture(f)
	w := fx.writer()
	must(fx.commit(w, 1, steps[0]))
	enc := newEncoder(zstd.SpeedFastest)
	repo := RepoID{1}
	for _, k := range fx.mem.Keys() {
		if !strings.HasPrefix(k, "packs/") {
			continue
		}
		obj := fx.mem.Bytes(k)
		sealed := must(parsePackHeader(obj))
		_, index, err := readPackIndex(f.Context(), fx.mem, fx.identity.Key, fx.identity.Repo, k, int64(len(obj)))
		must(0, err)
		f.Add(sealed, compress(enc, nil, must(encMode.Marshal(index))), []byte(nil), 0)
		f.Add(sealed, compress(enc, nil, must(encMode.Marshal(index))), obj, len(obj)-2)
	}
	f.Add([]byte("key"), compress(enc, nil, must(encMode.Marshal(&packIndex{Blobs: []uint32{1, 2, 3}}))), []byte(packMagic), 3)
	f.Add([]byte{}, []byte{methodStored}, []byte("scrp\x02"), 0)
	f.Add([]byte{}, []byte{7, 1}, []byte("scrp\x01\xff\xff"), 0)
	f.Add([]byte{}, compress(enc, nil, make([]byte, 1<<20)), []byte{}, 0)
	f.Fuzz(func(t *testing.T, sealed, index, over []byte, at int) {
		if len(sealed) > maxSealedKey || len(index) > 1<<20 || len(over) > 1<<20 {
			return
		}
		// A pack whose index is what is given.
		var buf bytes.Buffer
		buf.WriteString(packMagic)
		buf.Write([]byte{byte(len(sealed)), byte(len(sealed) >> 8)})
		buf.Write(sealed)
		box := indexKey(fuzzKey, repo, sealed).Seal(nil, nil, index)
		buf.Write(box)
		n := len(box)
		buf.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
		buf.WriteString(packEndMagic)
		for _, obj := range [][]byte{buf.Bytes(), over, overwritten(buf.Bytes(), over, at)} {
			m := storetest.NewMem()
			key := packKey(hashOf(obj))
			m.Set(key, obj)
			_, got, err := readPackIndex(t.Context(), m, fuzzKey, repo, key, int64(len(obj)))
			if err == nil {
				parseBlobs(got.Blobs)
			} else if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrNewer) && !errors.Is(err, seal.ErrAuthentication) {
				t.Fatal(err)
			}
			db := tempCatalog(t)
			id := must(db.AddPack(catalog.Pack{SHA: hashOf(obj)}))
			c := NewContent(m, WriterIdentity{Repo: repo, Key: fuzzKey}, db, fx.identities)
			c.Read(t.Context(), catalog.Part{Length: 5, Pack: id})
			v := &verifier{ctx: t.Context(), store: m, x: &Index{writer: WriterIdentity{Repo: repo, Key: fuzzKey}}, cat: db, o: VerifyOptions{Identities: fx.identities}}
			v.readPack(must(db.Pack(id)), key, int64(len(obj)))
			db.Close()
		}
	})
}

func overwritten(b, over []byte, at int) []byte {
	b = bytes.Clone(b)
	if at >= 0 && at < len(b) {
		copy(b[at:], over)
	}
	return b
}

// FuzzBlob decodes the plaintext of a blob.
func FuzzBlob(f *testing.F) {
	enc := newEncoder(zstd.SpeedFastest)
	f.Add(compress(enc, nil, noise(1, 100)), 100)
	f.Add(compress(enc, nil, make([]byte, maxBlob)), maxBlob)
	f.Add(compress(enc, nil, make([]byte, 8<<20)), 10)
	f.Add([]byte{methodZstd, 0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, -1)
	d := newDecoder(maxBlob)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if size > maxBlob {
			return
		}
		out, err := decompress(d, b, size, maxBlob)
		if err == nil && (len(out) > maxBlob || size >= 0 && len(out) != size) {
			t.Fatalf("%d bytes instead of %d", len(out), size)
		}
		if err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrNewer) {
			t.Fatal(err)
		}
	})
}

// FuzzMetaName parses names of objects.
func FuzzMetaName(f *testing.F) {
	for _, kind := range []rootKind{kindRoot, kindSegment, kindCheckpoint} {
		f.Add(metaName{"0123456789abcdef", "s", 7, kind, hashOf(nil)}.String())
	}
	f.Add("w/s/9223372036854775807-" + strings.Repeat("0", 64))
	f.Add("w/s/9223372036854775808-" + strings.Repeat("0", 64))
	f.Add("w/s/0000000000-" + strings.Repeat("0", 64))
	f.Add("w/s/+000000001-" + strings.Repeat("0", 64))
	f.Add("w/s/0000000001s-" + strings.Repeat("A", 64))
	f.Add("a/b/c/d")
	f.Add("//-")
	f.Fuzz(func(t *testing.T, key string) {
		n, err := parseMetaName(key)
		if err == nil && (n.String() != key || n.seq == 0 || n.seq > 1<<63-1) {
			t.Fatalf("%q is read as %q", key, n)
		}
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
	})
}

// FuzzJournal lets a writer open a journal with any file in it.
func FuzzJournal(f *testing.F) {
	sha := hashOf(nil)
	f.Add("pack-00.done", must(encMode.Marshal(&packFile{SHA: sha[:], Size: 5, Blobs: []uint32{1000, 1000}, Slices: []indexEntry{{CID: make([]byte, 16)}}})))
	f.Add("pack-00.new", []byte("cut"))
	f.Add("commit-s", must(encMode.Marshal(&commitFile{Name: "s", Ident: "s", Seq: 1, Root: []byte("no root"), Segments: [][]byte{sha[:]}})))
	f.Add("tmp-x", []byte{})
	f.Add("segment-00", []byte{})
	db := fuzzCatalog(f)
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		dir := t.TempDir()
		must(0, os.Mkdir(filepath.Join(dir, "journal"), 0o700))
		if os.WriteFile(filepath.Join(dir, "journal", filepath.Base(name)), b, 0o600) != nil {
			return // not the name of a file
		}
		w, err := NewWriter(t.Context(), WriterOptions{Store: storetest.NewMem(), StateDir: dir, Catalog: db, Identity: WriterIdentity{ID: "0123456789abcdef"}})
		if err != nil {
			return
		}
		w.Recover(t.Context())
		w.journal.find(db, [16]byte{})
		db.Rollback()
	})
}
