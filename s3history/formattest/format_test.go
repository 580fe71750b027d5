// Package formattest proves that docs/format.md is enough to restore a repository: a
// decoder that follows it, and shares nothing with the product, restores what the
// product has made, now (TestDecoder) and long ago (TestGolden).
package formattest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store/dir"
)

var update = flag.Bool("update", false, "make the golden repository if it is missing; one that is there is never changed")

func hashOf(b []byte) [32]byte { return sha256.Sum256(b) }

// TestIndependent: the decoder must not import what it is to check.
func TestIndependent(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "decoder_test.go", nil, parser.ImportsOnly)
	must(err)
	for _, imp := range f.Imports {
		if strings.Contains(imp.Path.Value, "secrate") {
			t.Errorf("decoder_test.go imports %s", imp.Path.Value)
		}
	}
	if len(f.Imports) < 10 {
		t.Errorf("%d imports: is this the decoder?", len(f.Imports))
	}
}

// TestVectors: the decoder computes what the vectors say, and docs/format.md quotes
// all of them but the long ones.
func TestVectors(t *testing.T) {
	doc := string(get(os.ReadFile("../../docs/format.md")))
	sc := bufio.NewScanner(bytes.NewReader(get(os.ReadFile("../../internal/seal/testdata/vectors.txt"))))
	sc.Buffer(nil, 1<<20)
	word := func(s string) []byte {
		if s == "-" {
			return nil
		} else if s, ok := strings.CutPrefix(s, ":"); ok {
			return []byte(s)
		}
		return get(hex.DecodeString(s))
	}
	count := 0
	for sc.Scan() {
		line := sc.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		key, rest, want := word(f[1]), f[2:len(f)-1], word(f[len(f)-1])
		var got []byte
		switch f[0] {
		case "derive":
			var context [][]byte
			for _, c := range rest[1:] {
				context = append(context, word(c))
			}
			got = derive(key, string(word(rest[0])), context...)
		case "seal":
			var err error
			if got, err = aesGCM(key).Open(nil, make([]byte, 12), want, word(rest[0])); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			want = word(rest[1])
		case "contentid":
			var all []byte
			for _, d := range rest {
				all = append(all, word(d)...)
			}
			got = contentID(key, all)
		default:
			t.Errorf("operation %q", f[0])
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %x", line, got)
		}
		if len(line) < 400 && !strings.Contains(doc, line) {
			t.Errorf("docs/format.md does not quote %q", line)
		}
		count++
	}
	if must(sc.Err()); count < 10 {
		t.Errorf("%d vectors", count)
	}
}

// decodeAll decodes every snapshot of a source with the decoder.
func decodeAll(t testing.TB, repository, identityFile, name string) map[uint64]string {
	t.Helper()
	r := get(openRepository(os.DirFS(repository), []byte(identityFile)))
	out := map[uint64]string{}
	for _, s := range get(r.sources()) {
		if s.name != name {
			continue
		}
		for seq := range s.roots {
			tr, err := s.at(seq, true)
			if errors.Is(err, errGap) {
				out[seq] = "a gap"
				continue
			}
			out[seq] = listing(get(get(tr, err).items()))
		}
		for seq := range s.checkpoints {
			if s.roots[seq] == nil {
				out[seq] = listing(get(get(s.at(seq, true)).items()))
			}
		}
	}
	return out
}

// small are changes of every kind, in a few KB; each function is a snapshot.
func (w *world) small() []func() {
	file, dirAttr := attr, attr
	file.Kind, dirAttr.Kind, dirAttr.Mode = filetree.File, filetree.Dir, 0o2750
	first := text(1, 4000)
	return []func(){
		func() { // everything there is
			w.setAttr("", func(a *filetree.Attr) { a.Mode, a.Mtime, a.Ino = 0o711, attr.Mtime, 256 })
			w.create("/dir", dirAttr, nil)
			w.create("/dir/text", file, first)
			w.create("/dir/tiny", file, []byte("tiny"))
			w.create("/empty", file, nil)
			w.create("/\xff\xfe not UTF-8 \n", file, []byte("bytes"))
			w.create("/sparse", file, nil)
			w.truncate("/sparse", 100_000)
			w.write("/sparse", 50_000, text(2, 500))
			w.link("/dir/text", "/dir/hard")
			w.link("/dir/text", "/hard too")
			a := attr
			a.Kind, a.Mode, a.Target = filetree.Symlink, 0o777, "dir/\xe9 nowhere"
			w.create("/link", a, nil)
			for _, k := range []filetree.Kind{filetree.Fifo, filetree.Socket, filetree.CharDev, filetree.BlkDev} {
				a := attr
				a.Kind = k
				if k == filetree.CharDev || k == filetree.BlkDev {
					a.Major, a.Minor = 8, 300_000
				}
				w.create("/"+k.String(), a, nil)
			}
			a = file
			a.Flags, a.Ino, a.Gen = 0x800010, 1<<40, 77
			a.Xattrs = []filetree.Xattr{{Name: "security.capability", Value: []byte("\x01\x00\x00\x02")}, {Name: "user.\xff", Value: []byte{}},
				{Name: "user.none"}, {Name: "user.note", Value: []byte("a\x00b")}}
			w.create("/attributes", a, []byte("x"))
			a = file
			a.Incomplete = true
			w.create("/incomplete", a, []byte("what could be read"))
			w.add("/walked", file, text(3, 3000))
		},
		func() { // slices, keep, holes, new names
			w.put("/dir/text", s3history.Piece{Offset: 1000, Items: []s3history.Item{{Data: []byte("y")}}}, []byte("y"), false)
			parts := get(w.u.View().Parts(w.node("/walked"), 100, 400))
			want := slices.Concat(w.now["/walked"].data[:50], []byte("inserted"), w.now["/walked"].data[100:400], w.now["/walked"].data[408-50:500])
			want = want[:500]
			copy(want[358:], w.now["/walked"].data[358:500])
			w.put("/walked", s3history.Piece{Items: []s3history.Item{{Keep: 50}, {Data: []byte("inserted")}, {Parts: parts}, {Keep: 142}}}, want, true)
			w.punch("/walked", 2000, 500)
			w.rename("/dir", "/renamed")
			w.unlink("/hard too")
			w.rename("/fifo", "/renamed/fifo")
			w.setAttr("/attributes", func(a *filetree.Attr) {
				a.Xattrs = nil
				a.Flags, a.Mtime, a.Ctime = 0, filetree.Time{Sec: 1785000000, Nsec: 9}, filetree.Time{Sec: 1785000000, Nsec: 9}
			})
		},
		func() { // patches, clones, an exchange of names, deletions
			w.patch("/renamed/text", 0, 4000, func(b []byte) []byte { return append(b[:2000:2000], append([]byte("patched in"), b[2000:3990]...)...) })
			w.clone("/empty", 10, "/sparse", 49_900, 700)
			w.rename("/link", "/other")
			w.rename("/sock", "/link")
			w.rename("/other", "/sock")
			w.remove("/chr")
			w.truncate("/sparse", 50_100)
		},
		func() { // a patch on a patch, and on a hole; a piece cut out of a patch
			w.patch("/renamed/text", 500, 3500, func(b []byte) []byte { b[10]++; return b[:2999] })
			w.patch("/empty", 0, 600, func(b []byte) []byte { copy(b[50:], "on a hole"); return b })
			w.write("/renamed/text", 700, []byte("in the middle of a patch"))
			w.truncate("/sparse", 60_000) // grows again, by a hole
		},
	}
}

// check compares what a reader says of every snapshot with what there was.
func check(t *testing.T, what string, want, got map[uint64]string) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%s: %d snapshots, want %d", what, len(got), len(want))
	}
	for seq := range want {
		if diff := cmp.Diff(want[seq], got[seq]); diff != "" {
			t.Errorf("%s: #%d (-want +got):\n%s", what, seq, diff)
		}
	}
}

// TestDecoder makes a repository that has everything the format has, and decodes it.
func TestDecoder(t *testing.T) {
	repository := t.TempDir()
	w, identity := newWorld(t, repository)
	for _, change := range w.small() {
		w.snap("home", change)
	}
	file := attr
	file.Kind = filetree.File
	// Two segments and a body in the root, of a full snapshot in two parts.
	w.options.PartialAfter = time.Nanosecond
	w.options.PackSize = 256 << 10
	w.reopen()
	w.begin("large \xff")
	a := file
	for i := range 20 {
		a.Xattrs = []filetree.Xattr{{Name: "user.large", Value: bytes.Repeat([]byte{byte(i)}, 60_000)}}
		w.add(fmt.Sprintf("/%d", i), a, noise(uint64(i), 20_000))
	}
	must(w.u.MaybePartial())
	w.note("large \xff", 1)
	for i := range 56 {
		a.Xattrs = []filetree.Xattr{{Name: "user.large", Value: bytes.Repeat([]byte{byte(i)}, 60_000)}}
		w.add(fmt.Sprintf("/more %d", i), a, text(uint64(i), 3000))
	}
	w.add("/big", file, slices.Concat(noise(1, 1<<20+5), text(7, 1<<19)))
	w.note("large \xff", get(w.u.Commit()).Seq)
	// The other source has content that this one has, and is told anew as a stream does.
	w.snap("home", func() {
		must(w.u.Clear())
		for p := range w.now {
			delete(w.now, p)
		}
		w.now[""] = &file0
		w.setAttr("", func(a *filetree.Attr) { a.Mode = 0o755 })
		w.create("/big", file, noise(1, 1<<20+5))
		w.create("/walked", file, text(3, 3000))
	})
	if get(w.w.Checkpoint(t.Context(), get(w.w.Source("large \xff")), 2)) == 0 {
		t.Error("no checkpoint")
	}
	w.snap("large \xff", func() {
		w.patch("/big", 1<<19, 3<<19, func(b []byte) []byte { b[100]++; return b })
		for i := range 19 {
			w.remove(fmt.Sprintf("/%d", i))
		}
	})
	for round := range 7 { // as many patches on one another as there may be
		w.snap("large \xff", func() {
			w.patch("/big", 1<<19, 3<<19, func(b []byte) []byte { b[1000*round]++; return b })
		})
	}
	for name := range w.states {
		check(t, "the decoder", w.states[name], decodeAll(t, repository, identity, name))
		check(t, "our reader", w.states[name], ours(t, repository, []byte(identity), name))
	}
	var segments, checkpoints int
	r := get(openRepository(os.DirFS(repository), []byte(identity)))
	for _, s := range get(r.sources()) {
		checkpoints += len(s.checkpoints)
		for _, root := range s.roots {
			segments += len(root.Segments)
		}
	}
	if segments < 2 || checkpoints == 0 {
		t.Errorf("%d segments, %d checkpoints: the repository does not have all that it should", segments, checkpoints)
	}
	checkPacks(t, r)
	t.Run("damage", func(t *testing.T) { testDamage(t, w, repository, identity) })
}

var file0 = file{attr: filetree.Attr{Kind: filetree.Dir, Mode: 0o755}}

// checkPacks opens every pack by itself, and compares all content ids of its index.
func checkPacks(t *testing.T, r *repository) {
	t.Helper()
	ids := derive(r.key, "secrate content id", r.id)
	names := get(fs.Glob(r.files, "packs/*/*"))
	count := 0
	for _, name := range names {
		_, index, err := r.packIndex(get(fs.ReadFile(r.files, name)))
		must(err)
		p := get(r.openPack(packRec{SHA: get(hex.DecodeString(filepath.Base(name)))}))
		for _, s := range index.Slices {
			b := get(p.blob(r.id, s.Blob))[s.Offset:][:s.Length]
			if s.CID == nil {
				continue // a patch
			}
			count++
			if !bytes.Equal(contentID(ids, b), s.CID) {
				t.Errorf("%s: content id of the slice at %d of blob %d", name, s.Offset, s.Blob)
			}
		}
	}
	if len(names) < 3 || count < 10 {
		t.Errorf("%d packs, %d content ids", len(names), count)
	}
}

// testDamage takes objects away that the document says can be done without.
func testDamage(t *testing.T, w *world, repository, identity string) {
	const large = "large \xff"
	rm := func(dir, pattern string) {
		t.Helper()
		n := 0
		must(filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			must(err)
			if ok := get(filepath.Match(pattern, filepath.Base(p))); ok && !d.IsDir() {
				must(os.Remove(p))
				n++
			}
			return nil
		}))
		if n == 0 {
			t.Errorf("no %s in %s", pattern, dir)
		}
	}
	t.Run("one copy of all metadata and keys", func(t *testing.T) {
		c := copyTree(t, repository)
		must(os.RemoveAll(filepath.Join(c, "meta")))
		must(os.RemoveAll(filepath.Join(c, "keys")))
		must(os.Remove(filepath.Join(c, "secrate.json")))
		check(t, "the decoder", w.states[large], decodeAll(t, c, identity, large))
	})
	t.Run("a copy that is altered", func(t *testing.T) {
		c := copyTree(t, repository)
		must(filepath.WalkDir(filepath.Join(c, "meta"), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b := get(os.ReadFile(p))
			b[len(b)-1] ^= 1
			must(os.Remove(p))
			return os.WriteFile(p, b, 0o600)
		}))
		check(t, "the decoder", w.states[large], decodeAll(t, c, identity, large))
		check(t, "our reader", w.states[large], ours(t, c, []byte(identity), large))
	})
	t.Run("a root before a checkpoint", func(t *testing.T) {
		c := copyTree(t, repository)
		ident := sourceOf(t, repository, identity, large).ident
		rm(c+"/meta", "0000000001-*") // of both sources
		rm(c+"/meta2", "0000000001-*")
		rm(c+"/meta2", "0000000001s-*")
		want := map[uint64]string{}
		for seq, l := range w.states[large] {
			want[seq] = l
		}
		delete(want, 1)
		check(t, "the decoder, source "+ident, want, decodeAll(t, c, identity, large))
		states, problems := oursWith(t, c, []byte(identity), large)
		if check(t, "our reader, source "+ident, want, states); len(problems) == 0 {
			t.Error("our reader says nothing of what is missing")
		}
		// Of the other one: its last snapshot is full, and what told of the packs it
		// has from #1 is lost.
		want = map[uint64]string{5: w.states["home"][5]}
		for _, seq := range []uint64{2, 3, 4} {
			want[seq] = "a gap"
		}
		check(t, "the decoder, other source", want, decodeAll(t, c, identity, "home"))
		states, problems = oursWith(t, c, []byte(identity), "home")
		if check(t, "our reader, other source", map[uint64]string{5: want[5]}, map[uint64]string{5: states[5]}); len(problems) == 0 {
			t.Error("our reader says nothing of what is missing")
		}
	})
}

func sourceOf(t testing.TB, repository, identity, name string) *source {
	t.Helper()
	r := get(openRepository(os.DirFS(repository), []byte(identity)))
	for _, s := range get(r.sources()) {
		if s.name == name {
			return s
		}
	}
	t.Fatalf("no source %q", name)
	return nil
}

// TestFork makes two snapshots of one number, as storage can that shows an old state to
// a writer whose own was put back from a backup.
func TestFork(t *testing.T) {
	repository := t.TempDir()
	w, identity := newWorld(t, repository)
	file := attr
	file.Kind = filetree.File
	w.snap("s", func() { w.create("/a", file, []byte("one")) })
	must(w.cat.Close())
	state := filepath.Join(t.TempDir(), "state")
	must(os.CopyFS(state, os.DirFS(w.state)))
	before := copyTree(t, repository)
	kept := maps.Clone(w.files["s"])
	w.open()
	w.snap("s", func() { w.create("/b", file, []byte("in the branch that ends")) })
	w.snap("s", func() { w.unlink("/a") })
	must(w.cat.Close())
	s := get(dir.Open(before))
	defer s.Close()
	w.state, w.store = state, s
	w.files["s"] = kept
	w.open()
	w.snap("s", func() { w.create("/c", file, []byte("in the branch that goes on")) })
	w.snap("s", func() { w.create("/d", file, nil) })
	w.snap("s", func() { w.unlink("/c") })
	// And then shows both.
	must(filepath.WalkDir(before, func(p string, d fs.DirEntry, err error) error {
		to := filepath.Join(repository, strings.TrimPrefix(p, before))
		if err != nil || d.IsDir() {
			return errors.Join(err, os.MkdirAll(to, 0o700))
		}
		b := get(os.ReadFile(p))
		if old, err := os.ReadFile(to); err == nil {
			if !bytes.Equal(old, b) {
				t.Errorf("%s differs", p)
			}
			return nil
		}
		return os.WriteFile(to, b, 0o600)
	}))
	check(t, "the decoder", w.states["s"], decodeAll(t, repository, identity, "s"))
	if n := sourceOf(t, repository, identity, "s").forks; n != 2 {
		t.Errorf("%d forks", n)
	}
	states, problems := oursWith(t, repository, []byte(identity), "s")
	check(t, "our reader", w.states["s"], states)
	if len(problems) != 2 {
		t.Errorf("our reader says %v", problems)
	}
}

// TestSwap puts objects where others belong, under names that fit their bytes, as only
// storage can: neither reader takes them.
func TestSwap(t *testing.T) {
	repository := t.TempDir()
	w, identity := newWorld(t, repository)
	for _, change := range w.small()[:2] {
		w.snap("home", change)
	}
	w.snap("other", w.small()[0])
	home, other := sourceOf(t, repository, identity, "home").ident, sourceOf(t, repository, identity, "other").ident
	for _, tt := range []struct{ name, from, to string }{
		{"another number", home + "/0000000002-", home + "/0000000003-"},
		{"another source", home + "/0000000002-", other + "/0000000002-"},
		{"another kind", home + "/0000000002-", home + "/0000000002c-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := copyTree(t, repository)
			for _, meta := range []string{"meta/", "meta2/"} {
				dir := filepath.Join(c, meta+w.who.ID)
				name := get(filepath.Glob(filepath.Join(dir, tt.from+"*")))[0]
				must(os.WriteFile(filepath.Join(dir, tt.to+strings.TrimPrefix(name, filepath.Join(dir, tt.from))), get(os.ReadFile(name)), 0o600))
			}
			r := get(openRepository(os.DirFS(c), []byte(identity)))
			if _, err := r.sources(); err == nil {
				t.Error("the decoder took it")
			}
			for _, source := range []string{"home", "other"} {
				states, problems := oursWith(t, c, []byte(identity), source)
				check(t, "our reader", w.states[source], states)
				if len(problems) == 0 && !strings.HasSuffix(tt.to, "c-") { // a checkpoint is not looked at here
					t.Error("our reader says nothing")
				}
			}
		})
	}
}

// TestWriteOnly: what a writer keeps opens no pack, and has nothing of what is in one.
func TestWriteOnly(t *testing.T) {
	repository := t.TempDir()
	w, identity := newWorld(t, repository)
	for _, change := range w.small() {
		w.snap("home", change)
	}
	var secrets [][]byte
	r := get(openRepository(os.DirFS(repository), []byte(identity)))
	for _, name := range get(fs.Glob(r.files, "packs/*/*")) {
		p := get(r.openPack(packRec{SHA: get(hex.DecodeString(filepath.Base(name)))}))
		blob := get(p.blob(r.id, 0))
		secrets = append(secrets, p.key, blob[:min(len(blob), 16)])
	}
	if len(secrets) < 6 {
		t.Fatalf("%d secrets", len(secrets))
	}
	files := 0
	must(filepath.WalkDir(w.state, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		b := get(os.ReadFile(p))
		for _, s := range secrets {
			if bytes.Contains(b, s) {
				t.Errorf("%s has a pack's key, or what is in it", p)
			}
		}
		return nil
	}))
	if files == 0 {
		t.Error("no state")
	}
}

// TestGolden restores the repository of testdata with the decoder and with our reader.
// A file in testdata is a promise that it will restore.
func TestGolden(t *testing.T) {
	golden := filepath.Join("testdata", "golden-v1")
	repository := filepath.Join(golden, "repository")
	if _, err := os.Stat(golden); errors.Is(err, fs.ErrNotExist) && *update {
		makeGolden(t, golden)
	}
	identity := string(get(os.ReadFile(filepath.Join(golden, "identity.txt"))))
	want := string(get(os.ReadFile(filepath.Join(golden, "expected.txt"))))
	got := goldenText(decodeAll(t, repository, identity, "home"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the decoder (-want +got):\n%s", diff)
	}
	got = goldenText(ours(t, copyTree(t, repository), []byte(identity), "home"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("our reader (-want +got):\n%s", diff)
	}
	checkPacks(t, get(openRepository(os.DirFS(repository), []byte(identity))))
}

// TestGoldenValues: docs/format.md shows how the golden repository is opened, value by
// value; they are what the decoder comes to.
func TestGoldenValues(t *testing.T) {
	doc := string(get(os.ReadFile("../../docs/format.md")))
	golden := os.DirFS("testdata/golden-v1/repository")
	r := get(openRepository(golden, get(os.ReadFile("testdata/golden-v1/identity.txt"))))
	s := get(r.sources())[0]
	values := []string{
		fmt.Sprintf("repository id          %x", r.id),
		fmt.Sprintf("writer                 %s", r.writer),
		fmt.Sprintf("metadata key           %x", r.key),
		fmt.Sprintf("source id              %s", s.ident),
		fmt.Sprintf("content id key         %x", derive(r.key, "secrate content id", r.id)),
	}
	for name, obj := range s.objects {
		if name.seq != 6 {
			continue
		}
		key := derive(r.key, "secrate root", r.id, []byte(r.writer), []byte(s.ident), []byte{6, 0, 0, 0, 0, 0, 0, 0}, []byte{0, 0, 0, 0}, obj[5:21])
		framed := get(unseal(key, obj[21:]))
		values = append(values,
			fmt.Sprintf("salt                   %x", obj[5:21]),
			fmt.Sprintf("key                    %x", key),
			fmt.Sprintf("frame                  %x", framed),
			fmt.Sprintf("plain                  %x", get(unframe(framed, 8<<20))))
	}
	for _, name := range get(fs.Glob(golden, "packs/*/*")) {
		obj := get(fs.ReadFile(golden, name))
		if len(obj) != 338 {
			continue
		}
		sealed, index, err := r.packIndex(obj)
		must(err)
		sum := hashOf(sealed)
		p := get(r.openPack(packRec{SHA: get(hex.DecodeString(filepath.Base(name)))}))
		boxLen := int(index.Blobs[0])
		key := derive(p.key, "secrate blob", r.id, []byte{0, 0, 0, 0})
		values = append(values,
			fmt.Sprintf("pack                   %s", filepath.Base(name)),
			fmt.Sprintf("sealed key             %d bytes, SHA-256 %x", len(sealed), sum),
			fmt.Sprintf("index key              %x", derive(r.key, "secrate pack index", r.id, sum[:])),
			fmt.Sprintf("pack key               %x", p.key),
			fmt.Sprintf("key of blob 0          %x", key),
			fmt.Sprintf("blob 0, sealed         %x", obj[7+len(sealed):][:boxLen]),
			fmt.Sprintf("blob 0, frame          %x", get(unseal(key, obj[7+len(sealed):][:boxLen]))),
			fmt.Sprintf("blob 0, plain          %x", get(p.blob(r.id, 0))),
			fmt.Sprintf("table                  %v", index.Blobs))
	}
	if len(values) != 18 {
		t.Errorf("%d values", len(values))
	}
	for _, v := range values {
		if !strings.Contains(doc, v) {
			t.Errorf("docs/format.md does not have:\n%s", v)
		}
	}
}

// TestByHand runs the program that docs/recovery.md puts together, on the golden
// repository, with the tools it names.
func TestByHand(t *testing.T) {
	// The system's Python is the one that Debian's packages are for.
	python := "/usr/bin/python3"
	if _, err := os.Stat(python); err != nil {
		python = "python3"
	}
	for _, tool := range []string{"age", "zstd", python} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	if err := exec.Command(python, "-c", "import cbor2, cryptography").Run(); err != nil {
		t.Skip("python3-cbor2 and python3-cryptography are not installed")
	}
	var program strings.Builder
	for i, block := range strings.Split(string(get(os.ReadFile("../../docs/recovery.md"))), "\n```") {
		if code, ok := strings.CutPrefix(block, "python\n"); ok && i%2 == 1 {
			program.WriteString(code + "\n")
		}
	}
	golden := copyTree(t, "testdata/golden-v1")
	run := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Dir = filepath.Join(golden, "repository")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("age", "-d", "-i", "../identity.txt", "-o", "key.cbor", filepath.Join("keys", "4370fdc8ba1619be", "1"))
	must(os.WriteFile(filepath.Join(golden, "repository", "program.py"), []byte(program.String()), 0o600))
	size, sum, _ := strings.Cut(strings.TrimSpace(run(python, "program.py")), " ")
	expected := string(get(os.ReadFile(filepath.Join(golden, "expected.txt"))))
	_, third, _ := strings.Cut(expected, "# snapshot 3\n")
	third, _, _ = strings.Cut(third, "# snapshot 4\n")
	if want := fmt.Sprintf("content=%s bytes, sha256 %s", size, sum); sum == "" || !strings.Contains(third, want) {
		t.Errorf("docs/recovery.md gives %q, which no file of the third snapshot is", want)
	}
}

func goldenText(states map[uint64]string) string {
	var b strings.Builder
	for seq := uint64(1); seq <= uint64(len(states)); seq++ {
		fmt.Fprintf(&b, "# snapshot %d\n%s", seq, states[seq])
	}
	return b.String()
}

func makeGolden(t *testing.T, golden string) {
	made := filepath.Join(t.TempDir(), "repository")
	w, identity := newWorld(t, made)
	for _, change := range w.small() {
		w.snap("home", change)
	}
	file := attr
	file.Kind = filetree.File
	w.snap("home", func() { // one segment
		a := file
		for i := range 5 {
			a.Xattrs = []filetree.Xattr{{Name: "user.large", Value: bytes.Repeat([]byte{byte(i)}, 60_000)}}
			w.create(fmt.Sprintf("/large attribute %d", i), a, nil)
		}
		w.add("/added", file, text(9, 100))
	})
	get(w.w.Checkpoint(t.Context(), get(w.w.Source("home")), 5))
	w.snap("home", func() {
		w.rename("/walked", "/walked on")
		for i := range 4 {
			w.unlink(fmt.Sprintf("/large attribute %d", i))
		}
	})
	check(t, "the decoder", w.states["home"], decodeAll(t, made, identity, "home"))
	if t.Failed() {
		return
	}
	must(os.MkdirAll(golden, 0o755))
	must(os.WriteFile(filepath.Join(golden, "identity.txt"), []byte("# Made for this test. It opens nothing else.\n"+identity), 0o644))
	must(os.WriteFile(filepath.Join(golden, "expected.txt"), []byte(goldenText(w.states["home"])), 0o644))
	os.Remove(filepath.Join(made, "~tmp"))
	must(os.CopyFS(filepath.Join(golden, "repository"), os.DirFS(made)))
}
