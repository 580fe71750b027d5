package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/secrate/secrate/internal/exclude"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/s3test"
	"github.com/secrate/secrate/testenv/treegen"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run the property test with this seed only")
	seedsFlag = flag.Int("seeds", 2, "how many new seeds the property test tries, beside those it found")
	s3Flag    = flag.Bool("s3", false, "with -seed: run the property test on S3")
	snapsFlag = flag.Int("snaps", 7, "how many snapshots the property test takes with each seed")
)

// foundSeeds once failed.
var foundSeeds = []uint64{1795384229631693219, 1795384229631694477, 1795386968005760233, 1795388383198271367}

// TestRandom changes a tree at random, takes a snapshot every few changes, and
// compares every snapshot with what comes back of it: by the writer, by a machine
// with nothing but the identity and the repository's address, and from the streams of
// btrfs send. The seed decides what else happens. The last one is kept on S3.
func TestRandom(t *testing.T) {
	needs(t)
	seeds := slices.Clone(foundSeeds)
	for i := range *seedsFlag {
		seeds = append(seeds, uint64(time.Now().UnixNano())+uint64(i))
	}
	onS3 := len(seeds) - 1
	if *seedFlag != 0 {
		seeds, onS3 = []uint64{*seedFlag}, -1
	}
	if *s3Flag {
		onS3 = 0
	}
	fs := loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 4 << 30})
	to := newTarget(t)
	for i, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var m *machine
			if i == onS3 {
				s := s3test.Start(t, s3test.VersityGW)
				m = writer(t, s.URL("random"), s.Env()...)
			} else {
				m = writer(t, "")
			}
			newRandomRun(t, m, seed, fs.Dir, to).run()
		})
	}
}

// A randomRun is one seed.
type randomRun struct {
	t    *testing.T
	m    *machine
	to   *target
	rng  *rand.Rand
	g    *treegen.Gen
	seed uint64

	sub     string
	exclude []string
	matcher *exclude.Matcher
	want    [][]manifest.Entry // by seq, from 1

	send  []string // options of btrfs send
	last  string   // the snapshot that was sent last
	fed   []fed
	prev  []manifest.Entry // all that was in it
	blind map[uint64]bool  // inodes that are no longer excluded, below directories that moved
	known bool             // the catalog has what streams leave unsaid
}

// A fed is a snapshot that came by a stream.
type fed struct {
	full   bool
	want   []manifest.Entry
	unsure map[string]bool // paths of which the command said that it does not know them
}

func newRandomRun(t *testing.T, m *machine, seed uint64, dir string, to *target) *randomRun {
	r := &randomRun{t: t, m: m, to: to, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), known: true}
	t.Cleanup(func() {
		if t.Failed() {
			log := filepath.Join(os.TempDir(), fmt.Sprintf("secrate-e2e-seed-%d.log", seed))
			if err := os.WriteFile(log, []byte(r.g.Log()), 0o600); err == nil {
				t.Logf("-seed %d; operations in %s", seed, log)
			}
		}
	})
	r.sub = newSubvolume(t, filepath.Join(dir, fmt.Sprintf("%d", seed)))
	var err error
	if r.g, err = treegen.New(r.sub, treegen.Options{Seed: seed}); err != nil {
		t.Fatal(err)
	}
	add := []string{"source", "add", "vol", r.sub}
	if r.rng.IntN(3) == 0 {
		r.exclude = []string{"*[aeiou]", "!*[sdf]*", "/[a-m]*/*3*"}
		for _, p := range r.exclude {
			add = append(add, "--exclude", p)
		}
	}
	r.compile()
	m.must(add...)
	m.must(append([]string{"source", "add", "fed", "--mode", "stream"}, add[4:]...)...)
	r.send = [][]string{nil, {"--proto", "2"}, {"--proto", "2", "--compressed-data"}}[r.rng.IntN(3)]
	t.Logf("exclude %q, btrfs send %q", r.exclude, r.send)
	return r
}

func (r *randomRun) compile() {
	var err error
	if r.matcher, err = exclude.Compile(r.exclude); err != nil {
		r.t.Fatal(err)
	}
}

func (r *randomRun) run() {
	for n := range *snapsFlag {
		if err := r.g.Step(30); err != nil {
			r.t.Fatal(err)
		}
		r.g.Note("snapshot %d", n+1)
		r.snap(r.mishap())
		r.ingest(n)
		if r.t.Failed() {
			break
		}
	}
	r.check()
}

// mishap lets something happen between two snapshots, and returns what the next one
// has to say.
func (r *randomRun) mishap() string {
	if len(r.want) == 0 {
		return ""
	}
	switch r.rng.IntN(6) {
	case 0:
		for _, name := range local(r.t, r.sub) {
			btrfs(r.t, "subvolume", "delete", filepath.Join(r.sub, ".secrate", name))
		}
		r.g.Note("base deleted")
		return "is gone: reading everything"
	case 1:
		r.m.must("catalog", "rebuild")
		r.g.Note("catalog rebuilt")
		r.known = false
	case 2:
		r.m.must("snap", "vol", "--no-upload")
		r.g.Note("snapshot pending")
		pending := local(r.t, r.sub)
		before := scan(r.t, filepath.Join(r.sub, ".secrate", pending[len(pending)-1]))
		if err := r.g.Step(10); err != nil {
			r.t.Fatal(err)
		}
		o := r.m.must("upload", "vol", "--json")
		r.committed(o, map[string][]manifest.Entry{pending[len(pending)-1]: before})
	}
	return ""
}

func (r *randomRun) snap(say string) {
	r.t.Helper()
	o := r.m.must("snap", "vol", "--json")
	if say != "" && !strings.Contains(o.stderr, say) {
		r.t.Errorf("it does not say %q: %v", say, o)
	}
	r.committed(o, nil)
}

// committed notes what the snapshots that a run committed should be.
func (r *randomRun) committed(o outcome, known map[string][]manifest.Entry) {
	r.t.Helper()
	for _, s := range o.committed(r.t) {
		if s.Seq != uint64(len(r.want)+1) || s.Partial {
			r.t.Fatalf("%+v is not #%d: %v", s, len(r.want)+1, o)
		}
		all := known[s.Origin]
		if all == nil {
			all = scan(r.t, filepath.Join(r.sub, ".secrate", s.Origin))
		}
		r.want = append(r.want, r.without(all))
	}
	if names := local(r.t, r.sub); len(names) != 1 {
		r.t.Errorf("local snapshots are %q after %v", names, o)
	}
}

// without returns what is left of a tree without what is excluded.
func (r *randomRun) without(all []manifest.Entry) []manifest.Entry {
	if len(r.exclude) == 0 {
		return all
	}
	gone := map[string]bool{}
	var kept []manifest.Entry
	for _, e := range all { // directories come before what is in them
		if e.Path != "" && (gone[filepath.Dir(e.Path)] || r.matcher.Excluded(e.Path, e.Kind == filetree.Dir)) {
			gone[e.Path] = true
			continue
		}
		kept = append(kept, e)
	}
	return relinked(kept)
}

// relinked counts the names of files again: one that is not there is no link.
func relinked(all []manifest.Entry) []manifest.Entry {
	links := map[uint64]uint64{}
	for _, e := range all {
		links[e.Ino]++
	}
	for i := range all {
		if all[i].Kind != filetree.Dir {
			all[i].Nlink = links[all[i].Ino]
		}
	}
	return all
}

// ingest sends the tree as it is to the other source.
func (r *randomRun) ingest(n int) {
	r.t.Helper()
	snap := filepath.Join(filepath.Dir(r.sub), fmt.Sprintf("%d-sent-%d", r.seed, n))
	btrfs(r.t, "subvolume", "snapshot", "-r", r.sub, snap)
	full := append(slices.Clone(r.send), snap)
	all := scan(r.t, snap)
	f := fed{unsure: map[string]bool{}}
	var o outcome
	if r.last != "" && n%4 != 3 { // and a full one now and then
		o = r.m.feed(bytes.NewReader(sendStream(r.t, append(full, "-p", r.last)...)), "ingest", "fed", "--json")
		if len(r.exclude) > 0 && !r.known {
			o.expect(r.t, 3, "names of files that are kept", "hint: send this snapshot as a full stream")
		}
	}
	if o.args == nil || o.status == 3 && (!r.known || len(r.blind) > 0 && strings.Contains(o.stderr, "no such file")) {
		o = r.m.feed(bytes.NewReader(sendStream(r.t, full...)), "ingest", "fed", "--json")
		r.blind, r.prev, f.full = map[uint64]bool{}, nil, true
	}
	if o.status != 0 && (o.status != 1 || !strings.Contains(o.stderr, "not read: ")) {
		r.t.Fatal(o)
	}
	r.known = true
	f.want = r.without(slices.Clone(all))
	r.unsure(o, &f)
	if len(o.committed(r.t)) > 0 {
		r.fed = append(r.fed, f)
	}
	if r.last != "" {
		btrfs(r.t, "subvolume", "delete", r.last)
	}
	r.last, r.prev = snap, all
}

// unsure finds the paths that a stream says too little of. The command names those that it
// can know of; of what was excluded below a directory that moved, only the directory.
func (r *randomRun) unsure(o outcome, f *fed) {
	was, had := map[uint64]bool{}, map[uint64]bool{}
	for _, e := range r.prev {
		was[e.Ino] = true
	}
	for _, e := range r.without(slices.Clone(r.prev)) {
		had[e.Ino] = true
	}
	moved := strings.Contains(o.stderr, "directories were moved")
	for _, e := range f.want {
		said := "not read: " + strings.ReplaceAll(e.Path, "\n", "\nsecrate: warning: ") + ": "
		switch {
		case e.Path == "":
			continue
		case f.unsure[filepath.Dir(e.Path)], strings.Contains(o.stderr, said):
		case r.blind[e.Ino]:
		case moved && was[e.Ino] && !had[e.Ino]:
			r.blind[e.Ino] = true
		default:
			continue
		}
		f.unsure[e.Path] = true
	}
	if len(f.unsure) > 0 {
		r.t.Logf("fed #%d: %d of %d paths are not known: %.200q", len(r.fed)+1, len(f.unsure), len(f.want), slices.Sorted(maps.Keys(f.unsure)))
	}
}

// checkFed compares what came by a stream.
func (r *randomRun) checkFed(seq uint64, f fed) {
	o, got := r.m.restored(r.to, "fed", seq)
	if o.status != 0 {
		r.t.Errorf("%v", o)
	}
	there := map[string]bool{}
	for _, e := range got {
		there[e.Path] = true
	}
	for _, e := range f.want {
		if f.full && !e.Nested && !there[e.Path] { // it may lack content that was cloned from what is excluded, but no names
			r.t.Errorf("fed #%d: a full stream brought no %q", seq, e.Path)
		}
	}
	sure := func(all []manifest.Entry) []manifest.Entry {
		return relinked(slices.DeleteFunc(slices.Clone(all), func(e manifest.Entry) bool { return f.unsure[e.Path] }))
	}
	// Flags come in no stream, holes not in version 1.
	ig := unset
	ig.FSFlags, ig.Extents = true, true
	if d := manifest.Diff(sure(f.want), sure(got), ig); len(d) > 0 {
		r.t.Errorf("fed #%d:\n%s%s", seq, manifest.Report(d, 10), o.stderr)
	}
}

func (r *randomRun) check() {
	r.m.t = r.t
	for i, want := range r.want {
		r.m.checkRestored(r.to, "vol", uint64(i+1), want, unset)
	}
	for i, f := range r.fed {
		r.checkFed(uint64(i+1), f)
	}
	o := r.m.other(r.t)
	got := o.history("vol", o.bareFlags()...)
	if len(got) != len(r.want) {
		r.t.Fatalf("%d snapshots, want %d: %v", len(got), len(r.want), got)
	}
	for i, s := range got {
		if s.Seq == 1 || s.Seq == uint64(len(got)) || r.rng.IntN(2) == 0 {
			o.checkRestored(r.to, "vol", s.Seq, r.want[i], unset, "--repo", o.repo)
		}
	}
	r.m.must("verify", "--read-data")
	o.must(append([]string{"verify"}, o.bareFlags()...)...)
}
