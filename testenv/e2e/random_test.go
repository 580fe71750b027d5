package e2e

import (
	"flag"
	"fmt"
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

	send  []string           // options of btrfs send
	last  string             // the snapshot that was sent last
	plain [][]manifest.Entry // what was sent
}

func newRandomRun(t *testing.T, m *machine, seed uint64, dir string, to *target) *randomRun {
	r := &randomRun{t: t, m: m, to: to, seed: seed, rng: rand.New(rand.NewPCG(seed, 1))}
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
	m.must("source", "add", "fed", "--mode", "stream")
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
	links := map[uint64]uint64{}
	var kept []manifest.Entry
	for _, e := range all { // directories come before what is in them
		if e.Path != "" && (gone[filepath.Dir(e.Path)] || r.matcher.Excluded(e.Path, e.Kind == filetree.Dir)) {
			gone[e.Path] = true
			continue
		}
		links[e.Ino]++
		kept = append(kept, e)
	}
	for i := range kept { // a name that is excluded is no link
		if kept[i].Kind != filetree.Dir {
			kept[i].Nlink = links[kept[i].Ino]
		}
	}
	return kept
}

// ingest sends the tree as it is to the other source.
func (r *randomRun) ingest(n int) {
	r.t.Helper()
	snap := filepath.Join(filepath.Dir(r.sub), fmt.Sprintf("%d-sent-%d", r.seed, n))
	btrfs(r.t, "subvolume", "snapshot", "-r", r.sub, snap)
	args := append(slices.Clone(r.send), snap)
	if r.last != "" && n%4 != 3 { // and a full one now and then
		args = append(args, "-p", r.last)
	}
	o := r.m.ingest(sendStream(r.t, args...), "fed")
	if len(o.committed(r.t)) > 0 {
		r.plain = append(r.plain, scan(r.t, snap))
	}
	if r.last != "" {
		btrfs(r.t, "subvolume", "delete", r.last)
	}
	r.last = snap
}

func (r *randomRun) check() {
	r.m.t = r.t
	for i, want := range r.want {
		r.m.checkRestored(r.to, "vol", uint64(i+1), want, unset)
	}
	// Flags come in no stream, holes not in version 1.
	ig := unset
	ig.FSFlags, ig.Extents = true, true
	for i, want := range r.plain {
		r.m.checkRestored(r.to, "fed", uint64(i+1), want, ig)
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
