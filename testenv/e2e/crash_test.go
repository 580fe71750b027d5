package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/s3test"
)

var strideFlag = flag.Int("stride", 0, "the crash sweeps kill at every nth point; 0 means at all in a directory, but for what comes twice, and at some on S3")

// TestCrash kills the command at each of its crash points in turn, in each of several
// situations, in a history that grows all the while. What a killed run leaves must be
// whole as far as it is committed; the same command again must complete it, without
// uploading a second time what is there.
func TestCrash(t *testing.T) {
	needs(t)
	for _, on := range []string{"directory", "S3"} {
		t.Run(on, func(t *testing.T) {
			var server *s3test.Server
			if on == "S3" {
				server = s3test.Start(t, s3test.VersityGW)
			}
			for _, c := range scenarios {
				if *strideFlag == 0 && (c.long || on == "S3" && !c.s3) {
					continue
				}
				t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
					stride := max(1, *strideFlag)
					if *strideFlag == 0 {
						stride = max(1, c.stride)
						if on == "S3" {
							stride = 5
						}
					}
					newSweep(t, server).run(c, stride)
				})
			}
		})
	}
}

// A scenario is a situation in which a command is killed.
type scenario struct {
	name string
	// prepare makes the situation, for the nth time.
	prepare func(s *sweep, n int)
	// command returns the command's arguments.
	command func(s *sweep, n int) []string
	s3      bool               // on S3 too, when no -stride is given
	long    bool               // only when -stride is given
	stride  int                // of a run in a directory, unless -stride says another
	source  func(n int) string // "vol" if nil
}

var scenarios = []scenario{
	{
		name:   "first snapshot",
		stride: 3,
		prepare: func(s *sweep, n int) {
			s.sub = newSubvolume(s.t, filepath.Join(s.dir, fmt.Sprintf("first%d", n)))
			s.grow(n)
			s.m.must("source", "add", fmt.Sprintf("first%d", n), s.sub)
		},
		command: func(s *sweep, n int) []string { return []string{"snap", fmt.Sprintf("first%d", n), "--json"} },
		source:  func(n int) string { return fmt.Sprintf("first%d", n) },
	},
	{
		name: "next snapshot",
		s3:   true,
		prepare: func(s *sweep, n int) {
			if n == 1 {
				s.start()
			}
			s.grow(n)
		},
		command: func(s *sweep, n int) []string { return []string{"snap", "vol", "--json"} },
	},
	{
		name: "unchanged",
		prepare: func(s *sweep, n int) {
			if n == 1 {
				s.start()
			}
		},
		command: func(s *sweep, n int) []string { return []string{"snap", "vol", "--json"} },
	},
	{
		name: "without upload",
		prepare: func(s *sweep, n int) {
			if n == 1 {
				s.start()
			}
			s.grow(n)
		},
		command: func(s *sweep, n int) []string { return []string{"snap", "vol", "--no-upload", "--json"} },
	},
	{
		name:   "upload of two",
		stride: 6, // it is "next snapshot" twice
		prepare: func(s *sweep, n int) {
			if n == 1 {
				s.start()
			}
			for i := range 2 {
				s.grow(2*n + i)
				s.m.must("snap", "vol", "--no-upload")
			}
		},
		command: func(s *sweep, n int) []string { return []string{"upload", "vol", "--json"} },
	},
	{
		name:   "base gone",
		stride: 4,
		prepare: func(s *sweep, n int) {
			if n == 1 {
				s.start()
			}
			s.grow(n)
			for _, name := range local(s.t, s.sub) {
				btrfs(s.t, "subvolume", "delete", filepath.Join(s.sub, ".secrate", name))
			}
		},
		command: func(s *sweep, n int) []string { return []string{"snap", "vol", "--json"} },
	},
	{
		name:   "ingest",
		s3:     true,
		stride: 2,
		prepare: func(s *sweep, n int) {
			if n == 1 {
				s.sub = newSubvolume(s.t, filepath.Join(s.dir, "fed"))
				s.m.must("source", "add", "fed", "--mode", "stream")
				s.send(0)
				s.m.ingest(s.stream, "fed")
			}
			s.send(n)
		},
		command: func(s *sweep, n int) []string { return []string{"ingest", "fed", "--json"} },
		source:  func(int) string { return "fed" },
	},
	{
		name:   "several packs",
		stride: 8,
		prepare: func(s *sweep, n int) {
			s.sub = newSubvolume(s.t, filepath.Join(s.dir, fmt.Sprintf("several%d", n)))
			s.grow(n)
			for i := range 4 {
				s.write(fmt.Sprint("large", i), 9<<20)
			}
			s.m.must("source", "add", fmt.Sprintf("several%d", n), s.sub)
		},
		command: func(s *sweep, n int) []string { return []string{"snap", fmt.Sprintf("several%d", n), "--json"} },
		source:  func(n int) string { return fmt.Sprintf("several%d", n) },
	},
	{
		// What is written is more than fits into a root, and so much since the last
		// checkpoint that one is due each time.
		name: "segments and a checkpoint",
		long: true,
		prepare: func(s *sweep, n int) {
			if n == 1 {
				s.start()
			}
			// A killed run may have left its checkpoint to the next one: twice, so that it
			// is due now.
			for _, n := range []int{3000, 1800, 3000} {
				s.names(n)
				s.m.must("snap", "vol")
				s.note()
			}
			s.names(1800)
		},
		command: func(s *sweep, n int) []string { return []string{"snap", "vol", "--json"} },
	},
	{
		name: "catalog rebuild",
		prepare: func(s *sweep, n int) {
			if n == 1 {
				s.start()
				s.grow(2)
				s.m.must("snap", "vol")
				s.note()
			}
		},
		command: func(s *sweep, n int) []string { return []string{"catalog", "rebuild"} },
	},
}

// A sweep kills one command in one situation.
type sweep struct {
	t       *testing.T
	m, o    *machine // the writer, and one with nothing
	server  *s3test.Server
	to      *target
	dir     string // a Btrfs
	sub     string
	rng     *rand.Rand
	want    map[string][]manifest.Entry // by origin
	stream  []byte                      // for ingest
	sent    string
	ig      manifest.Ignore
	checked map[string]bool // source and seq
}

func newSweep(t *testing.T, server *s3test.Server) *sweep {
	s := &sweep{t: t, server: server, to: newTarget(t), rng: rand.New(rand.NewPCG(1, 2)), want: map[string][]manifest.Entry{},
		checked: map[string]bool{}, ig: unset}
	s.ig.FSFlags, s.ig.Extents = true, true // of streams
	s.dir = loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 4 << 30}).Dir
	if server != nil {
		s.m = writer(t, server.URL(strings.ToLower(t.Name())), server.Env()...)
	} else {
		s.m = writer(t, "")
	}
	s.o = s.m.other(t)
	return s
}

// start makes a source with one snapshot.
func (s *sweep) start() {
	s.sub = newSubvolume(s.t, filepath.Join(s.dir, "vol"))
	s.grow(0)
	s.m.must("source", "add", "vol", s.sub)
	s.m.must("snap", "vol")
	s.note()
}

// send changes the tree for the nth time and makes a stream of that.
func (s *sweep) send(n int) {
	s.t.Helper()
	s.grow(n)
	snap := filepath.Join(s.dir, fmt.Sprintf("sent%d", n))
	btrfs(s.t, "subvolume", "snapshot", "-r", s.sub, snap)
	s.want[filepath.Base(snap)] = scan(s.t, snap)
	args := []string{"--proto", "2", snap}
	if s.sent != "" {
		args = append(args, "-p", s.sent)
	}
	s.sent = snap
	s.stream = sendStream(s.t, args...)
}

// newBytes is about what a change by grow has of content that cannot be compressed and
// is nowhere else.
const newBytes = 200 << 10

// grow changes the tree for the nth time.
func (s *sweep) grow(n int) {
	s.t.Helper()
	p := func(format string, a ...any) string { return filepath.Join(s.sub, fmt.Sprintf(format, a...)) }
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(s.rng.Uint32())
		}
		return b
	}
	write := func(name string, b []byte) error { return os.WriteFile(name, b, 0o640) }
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	if _, err := os.Stat(p("big")); err != nil {
		do(write(p("big"), random(1<<20+12345)))
		do(write(p("text"), bytes.Repeat([]byte("a line of some length\n"), 5000)))
		do(os.Mkdir(p("d0"), 0o700))
		do(os.Symlink("big", p("link")))
	} else {
		f, err := os.OpenFile(p("big"), os.O_WRONLY, 0)
		do(err)
		_, err = f.WriteAt(random(3), int64(s.rng.IntN(1<<20)))
		do(err)
		do(f.Close())
		text, err := os.ReadFile(p("text"))
		do(err)
		at := s.rng.IntN(len(text))
		do(write(p("text~"), slices.Concat(text[:at], []byte(fmt.Sprintf("line %d\n", n)), text[at:])))
		do(os.Rename(p("text~"), p("text")))
	}
	dirs, err := filepath.Glob(p("d*"))
	do(err)
	do(write(filepath.Join(dirs[0], fmt.Sprintf("new%d", n)), random(newBytes)))
	do(write(filepath.Join(dirs[0], fmt.Sprintf("small%d", n)), []byte(fmt.Sprint("small ", n))))
	do(os.Link(filepath.Join(dirs[0], fmt.Sprintf("new%d", n)), p("hard%d", n)))
	do(os.Rename(dirs[0], p("d%d", n+1)))
	if all, _ := filepath.Glob(p("hard*")); len(all) > 3 {
		do(os.Remove(all[0]))
	}
	if all, _ := filepath.Glob(p("d*/*")); len(all) > 6 {
		do(os.Remove(all[s.rng.IntN(len(all))]))
	}
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
}

// write makes a file of n bytes that are nowhere else.
func (s *sweep) write(name string, n int) {
	s.t.Helper()
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], s.rng.Uint64())
	}
	if err := os.WriteFile(filepath.Join(s.sub, name), b, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// names puts n files with long names in the place of those it made before.
func (s *sweep) names(n int) {
	s.t.Helper()
	dir := filepath.Join(s.sub, "names")
	err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755))
	name := make([]byte, 240)
	for range n {
		for i := range name {
			name[i] = byte(1 + s.rng.IntN(255))
			if name[i] == '/' {
				name[i] = 'x'
			}
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, string(name)), nil, 0o644))
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// note scans the local snapshots that are new.
func (s *sweep) note() {
	s.t.Helper()
	for _, name := range local(s.t, s.sub) {
		if s.want[name] == nil {
			s.want[name] = scan(s.t, filepath.Join(s.sub, ".secrate", name))
		}
	}
}

// objects returns what is stored: sizes by key.
func (s *sweep) objects() map[string]int64 {
	s.t.Helper()
	if s.server == nil {
		return objectsIn(s.t, s.m.repo)
	}
	all := map[string]int64{}
	prefix := strings.ToLower(s.t.Name()) + "/"
	for p := s3.NewListObjectsV2Paginator(s.server.Client(), &s3.ListObjectsV2Input{Bucket: &s.server.Bucket, Prefix: &prefix}); p.HasMorePages(); {
		page, err := p.NextPage(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		for _, o := range page.Contents {
			all[strings.TrimPrefix(*o.Key, prefix)] = aws.ToInt64(o.Size)
		}
	}
	return all
}

func objectsIn(t testing.TB, dir string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		all[path] = info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// data is how many bytes of packs are in objects.
func data(objects map[string]int64) (n int64) {
	for key, size := range objects {
		if strings.HasPrefix(key, "packs/") {
			n += size
		}
	}
	return n
}

func (s *sweep) run(c scenario, stride int) {
	source := c.source
	if source == nil {
		source = func(int) string { return "vol" }
	}
	var points []string
	var costs [][2]int64 // data that the killed run and the one after it uploaded
	var clean int64
	log := filepath.Join(s.m.dir, "points")
	round := 0
	for n := 1; ; n += stride {
		round++
		c.prepare(s, round)
		s.note()
		args := c.command(s, round)
		if err := os.RemoveAll(log); err != nil {
			s.t.Fatal(err)
		}
		before := s.objects()
		o := s.m.feed(bytes.NewReader(s.stream), append([]string{fmt.Sprint("SECRATE_CRASH=", n), "SECRATE_CRASH_COUNT=" + log}, args...)...)
		passed, err := os.ReadFile(log)
		if err != nil {
			s.t.Fatalf("%v: %v", err, o)
		}
		points = strings.Split(strings.TrimSuffix(string(passed), "\n"), "\n")
		s.note()
		if o.status != -1 {
			if o.status != 0 {
				s.t.Error(o)
			}
			clean = data(s.objects()) - data(before)
			s.check(source(round), o, "")
			break
		}
		at := fmt.Sprintf("killed at %d, %s", n, points[len(points)-1])
		s.check(source(round), o, at)
		between := s.objects()
		again := s.m.feed(bytes.NewReader(s.stream), args...)
		s.note()
		if again.status != 0 {
			s.t.Errorf("%s, then %v", at, again)
		}
		s.check(source(round), again, at+", run again")
		after := s.objects()
		costs = append(costs, [2]int64{data(between) - data(before), data(after) - data(between)})
		for key, size := range before {
			if after[key] != size {
				s.t.Errorf("%s: %s had %d bytes and has %d", at, key, size, after[key])
			}
		}
		s.locals(c, at)
		if s.t.Failed() {
			s.t.FailNow()
		}
	}
	s.t.Logf("%d points: %s", len(points), shorten(points))
	s.t.Logf("a run that is not killed uploads %d bytes of data; killed ones and those after them: %v", clean, costs)
	for i, cost := range costs {
		// How content falls into packs may differ, and so do keys and indexes.
		if n := 1 + i*stride; cost[0]+cost[1] > clean+16<<10 {
			s.t.Errorf("killed at %d: %d bytes of data were uploaded, then %d; of a run that is not killed it is %d", n, cost[0], cost[1], clean)
		}
	}
	s.all(source, round)
}

// shorten leaves out hashes.
func shorten(points []string) string {
	var out []string
	for _, p := range points {
		if i := strings.IndexAny(p, "-"); i > 0 {
			p = p[:i] + "-…" + filepath.Ext(p)
		}
		out = append(out, p)
	}
	return strings.Join(out, ", ")
}

// check reads the history as a machine does that has nothing else: what was reported is
// in it, what is in it is whole, and nothing is a fork.
func (s *sweep) check(source string, run outcome, at string) {
	s.t.Helper()
	o := s.o.run(append([]string{"snapshots", source, "--json"}, s.o.bareFlags()...)...)
	if o.status == 2 && strings.Contains(o.stderr, "has a history") || strings.Contains(o.stderr, "no snapshots yet") {
		o = outcome{} // nothing is committed yet
	}
	if o.status != 0 || strings.Contains(o.stderr, "damaged") {
		s.t.Errorf("%s: %v", at, o)
		return
	}
	all := o.snapshots(s.t)
	byOrigin := map[string]uint64{}
	for i, snap := range all {
		if snap.Seq != uint64(i+1) {
			s.t.Errorf("%s: #%d is in the place of #%d", at, snap.Seq, i+1)
		}
		if old := byOrigin[snap.Origin]; old != 0 {
			s.t.Errorf("%s: #%d and #%d are both of %s", at, old, snap.Seq, snap.Origin)
		}
		byOrigin[snap.Origin] = snap.Seq
		if key := fmt.Sprint(source, snap.Seq); !s.checked[key] {
			s.checked[key] = true
			s.restore(source, snap, at)
		}
	}
	if strings.HasPrefix(run.stdout, "{") {
		for _, snap := range run.committed(s.t) {
			if byOrigin[snap.Origin] != snap.Seq {
				s.t.Errorf("%s: #%d of %s was reported, and is not in the history: %v", at, snap.Seq, snap.Origin, o)
			}
		}
	}
	// Between the two copies of a manifest object there is one: nothing is lost. The next
	// run puts the other.
	v := s.o.run("SECRATE_IDENTITY="+s.o.identity, "verify", "--repo", s.o.repo, "--json")
	copies := v.status == 1 && run.status == -1 && strings.Contains(v.stdout, `"lost":0,"copies":1,"problems":0`)
	if v.status != 0 && !copies && len(all) > 0 {
		s.t.Errorf("%s: %v", at, v)
	}
}

func (s *sweep) restore(source string, snap snapshot, at string) {
	s.t.Helper()
	want := s.want[snap.Origin]
	if want == nil {
		s.t.Fatalf("%s: nobody has seen %s", at, snap.Origin)
	}
	ig := unset
	if source == "fed" {
		ig = s.ig
	}
	s.o.checkRestored(s.to, source, snap.Seq, want, ig, "--repo", s.o.repo)
}

// locals looks at what is left on this machine.
func (s *sweep) locals(c scenario, at string) {
	s.t.Helper()
	names := local(s.t, s.sub)
	if c.name == "without upload" {
		s.m.must("upload", "vol")
		names = local(s.t, s.sub)
	}
	if len(names) > 1 {
		s.t.Errorf("%s: local snapshots are %q", at, names)
	}
	left, err := filepath.Glob(filepath.Join(s.m.state(), "journal", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, name := range left {
		s.t.Errorf("%s: the journal still has %s", at, filepath.Base(name))
	}
	left, err = filepath.Glob(filepath.Join(s.m.state(), "*.new*"))
	if err != nil || len(left) > 0 && c.name == "catalog rebuild" {
		s.t.Errorf("%s: still there: %v %v", at, left, err)
	}
}

// all checks everything once more, in depth, at the end.
func (s *sweep) all(source func(int) string, rounds int) {
	names := map[string]bool{}
	for i := range rounds {
		names[source(i+1)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if o := s.m.run("snapshots", name, "--json"); o.status == 0 {
			mine := o.snapshots(s.t)
			bare := s.o.history(name, s.o.bareFlags()...)
			if len(mine) != len(bare) {
				s.t.Errorf("%s: the catalog has %d snapshots, the repository %d", name, len(mine), len(bare))
			}
			for _, snap := range mine {
				if len(mine) < 4 || snap.Seq%4 == 0 { // the others were restored from the repository
					ig := unset
					if name == "fed" {
						ig = s.ig
					}
					s.m.checkRestored(s.to, name, snap.Seq, s.want[snap.Origin], ig)
				}
			}
		}
	}
	s.m.must("verify", "--read-data", "--identity", s.m.identity)
	s.m.must("catalog", "rebuild")
	s.m.must("verify")
}

// TestLeftoverKnown uses what a killed run has uploaded, and then has the same content
// once more: it is known.
func TestLeftoverKnown(t *testing.T) {
	needs(t)
	s := newSweep(t, nil)
	s.start()
	s.write("once", 100<<10)
	if o := s.m.run("SECRATE_CRASH=7", "snap"); o.status != -1 { // when its pack is there
		t.Fatal(o)
	}
	s.m.must("snap")
	before := data(s.objects())
	b, err := os.ReadFile(filepath.Join(s.sub, "once"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.sub, "again"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	s.m.must("snap")
	if n := data(s.objects()) - before; n > 0 {
		t.Errorf("%d bytes were uploaded again", n)
	}
}
