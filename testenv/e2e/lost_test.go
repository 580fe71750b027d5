package e2e

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/testenv/loopfs"
	"github.com/secrate/secrate/testenv/manifest"
)

// A keep is a source whose snapshots have a pack each, and of which is known what
// every file needs.
type keep struct {
	t     *testing.T
	m     *machine
	to    *target
	sub   string
	want  [][]manifest.Entry    // by seq, from 1
	needs []map[string][]string // by seq: packs by path
	packs []string              // by seq
}

// newKeep makes a source with so many snapshots, and so many empty files in it.
func newKeep(t *testing.T, snapshots, empty int) *keep {
	k := &keep{t: t, m: writer(t, ""), to: newTarget(t)}
	k.sub = newSubvolume(t, filepath.Join(loopfs.New(t, loopfs.Btrfs, loopfs.Options{Size: 1 << 30}).Dir, "sub"))
	k.m.must("source", "add", "vol", k.sub)
	rng := rand.New(rand.NewPCG(3, 4))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	var errs []error
	p := func(name string) string { return filepath.Join(k.sub, name) }
	write := func(name string, b []byte) { errs = append(errs, os.WriteFile(p(name), b, 0o644)) }
	change := func(name string, flags int, b []byte, off int64) {
		f, err := os.OpenFile(p(name), os.O_WRONLY|flags, 0)
		if flags&os.O_APPEND == 0 {
			_, werr := f.WriteAt(b, off)
			err = errors.Join(err, werr)
		} else {
			_, werr := f.Write(b)
			err = errors.Join(err, werr)
		}
		errs = append(errs, err, f.Close())
	}
	needs := map[string][]int{} // snapshots by path
	old := map[string]int64{}
	for i := range snapshots {
		if i == 0 {
			write("log", nil)
			for j := range snapshots {
				name := fmt.Sprint("edited", j)
				write(name, random(64<<10))
				needs[name] = []int{0}
			}
			errs = append(errs, os.Mkdir(p("dir"), 0o755))
			for j := range empty {
				write(fmt.Sprintf("dir/empty%d%s", j, strings.Repeat("-", 150)), nil)
			}
			write("dir/small", random(3000))
			needs["dir/small"] = []int{0}
		} else {
			name := fmt.Sprint("edited", i)
			change(name, 0, random(40), 20_000)
			needs[name] = append(needs[name], i)
			b, err := os.ReadFile(p(fmt.Sprint("new", i-1)))
			errs = append(errs, err)
			name = fmt.Sprint("copy", i)
			write(name, b)
			needs[name] = []int{i - 1}
			errs = append(errs, os.Rename(p(fmt.Sprint("new", i-1)), p(fmt.Sprint("dir/new", i-1))))
			needs[fmt.Sprint("dir/new", i-1)] = needs[fmt.Sprint("new", i-1)]
			delete(needs, fmt.Sprint("new", i-1))
		}
		change("log", os.O_APPEND, random(50<<10), 0)
		needs["log"] = append(needs["log"], i)
		name := fmt.Sprint("new", i)
		write(name, random(100<<10))
		errs = append(errs, os.Link(p(name), p(fmt.Sprint("link", i))))
		needs[name], needs[fmt.Sprint("link", i)] = []int{i}, []int{i}
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		snap := k.m.must("snap", "vol", "--json").committed(t)
		k.want = append(k.want, scan(t, filepath.Join(k.sub, ".secrate", snap[0].Origin)))
		now := objectsIn(t, k.m.repo)
		for key := range now {
			if _, ok := old[key]; !ok && strings.HasPrefix(key, "packs/") {
				k.packs = append(k.packs, key)
			}
		}
		if len(k.packs) != i+1 {
			t.Fatalf("there are %d packs after snapshot #%d: %q", len(k.packs), i+1, k.packs)
		}
		old = now
		of := map[string][]string{}
		for name, snaps := range needs {
			for _, s := range snaps {
				of[name] = append(of[name], k.packs[s])
			}
		}
		k.needs = append(k.needs, of)
	}
	return k
}

// lose moves an object away, calls f, and puts it back.
func (k *keep) lose(key string, f func()) {
	k.t.Helper()
	name, away := filepath.Join(k.m.repo, key), filepath.Join(k.m.dir, "away")
	if err := os.Rename(name, away); err != nil {
		k.t.Fatal(err)
	}
	f()
	if err := os.Rename(away, name); err != nil {
		k.t.Fatal(err)
	}
}

var notRestored = regexp.MustCompile(`(?m)^secrate: error: not restored: ([^:]*): `)

// checkLoss restores snapshot seq where pack is damaged: what needs it is named, and
// the rest is there.
func (k *keep) checkLoss(m *machine, seq int, pack string, args ...string) {
	k.t.Helper()
	var want []string
	for name, packs := range k.needs[seq-1] {
		if slices.Contains(packs, pack) {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	o, got := m.restored(k.to, "vol", uint64(seq), args...)
	var named []string
	for _, s := range notRestored.FindAllStringSubmatch(o.stderr, -1) {
		named = append(named, s[1])
	}
	slices.Sort(named)
	if diff := cmp.Diff(want, named); diff != "" {
		k.t.Errorf("#%d without %s: files named (-want +got):\n%s%s", seq, pack, diff, o.stderr)
	}
	if status := min(len(want), 1); o.status != status {
		k.t.Errorf("#%d without %s: exit status is not %d: %v", seq, pack, status, o)
	}
	rest := slices.DeleteFunc(slices.Clone(k.want[seq-1]), func(e manifest.Entry) bool { return slices.Contains(want, e.Path) })
	if d := manifest.Diff(rest, got, unset); len(d) > 0 {
		k.t.Errorf("#%d without %s:\n%s", seq, pack, manifest.Report(d, 10))
	}
}

// TestLostPack takes away one pack after the other, and then damages each.
func TestLostPack(t *testing.T) {
	needs(t)
	k := newKeep(t, 5, 3)
	bare := k.m.other(t)
	for i, pack := range k.packs {
		k.lose(pack, func() {
			for seq := 1; seq <= len(k.want); seq += 2 {
				k.checkLoss(k.m, seq, pack)
			}
			k.checkLoss(bare, len(k.want), pack, "--repo", bare.repo)
			o := k.m.run("verify")
			o.expect(t, 1, pack, "1 object lost or damaged")
			named := map[string]bool{}
			for _, f := range regexp.MustCompile(`(?m)^    vol:(.*)$`).FindAllStringSubmatch(o.stdout, -1) {
				named[f[1]] = true
				if !slices.Contains(k.needs[len(k.want)-1][f[1]], pack) {
					t.Errorf("without %s: %s is named: %v", pack, f[1], o)
				}
			}
			for name, packs := range k.needs[len(k.want)-1] {
				other := strings.Replace(filepath.Base(name), "new", "link", 1) // of the same file
				if slices.Contains(packs, pack) && !named[name] && !named[other] && !strings.HasPrefix(name, "link") {
					t.Errorf("without %s: %s is not named: %v", pack, name, o)
				}
			}
		})
		k.damage(pack, func() {
			o, got := k.m.restored(k.to, "vol", uint64(len(k.want)))
			o.expect(t, 1)
			for _, s := range notRestored.FindAllStringSubmatch(o.stderr, -1) {
				if !slices.Contains(k.needs[len(k.want)-1][s[1]], pack) {
					t.Errorf("pack %d damaged: %s is named: %v", i, s[1], o)
				}
			}
			rest := slices.DeleteFunc(slices.Clone(k.want[len(k.want)-1]), func(e manifest.Entry) bool {
				return strings.Contains(o.stderr, "not restored: "+e.Path+": ")
			})
			if d := manifest.Diff(rest, got, unset); len(d) > 0 {
				t.Errorf("pack %d damaged:\n%s", i, manifest.Report(d, 10))
			}
			k.m.run("verify", "--read-data").expect(t, 1, pack)
		})
	}
	k.m.must("verify", "--read-data", "--identity", k.m.identity)
}

// damage changes one byte in the midst of an object, calls f, and puts it right.
func (k *keep) damage(key string, f func()) {
	k.t.Helper()
	name := filepath.Join(k.m.repo, key)
	flip := func() {
		b, err := os.ReadFile(name)
		if err == nil {
			b[len(b)/2] ^= 1
			err = errors.Join(os.Chmod(name, 0o600), os.WriteFile(name, b, 0o600))
		}
		if err != nil {
			k.t.Fatal(err)
		}
	}
	flip()
	f()
	flip()
}

// TestLostCopy takes away, and damages, one copy after the other of everything that is
// stored twice: nothing fails, and verify names it.
func TestLostCopy(t *testing.T) {
	needs(t)
	k := newKeep(t, 3, 2000) // names enough to make a segment
	bare := k.m.other(t)
	newest := len(k.want)
	n := 0
	for _, key := range slices.Sorted(maps.Keys(objectsIn(t, k.m.repo))) {
		if strings.HasPrefix(key, "packs/") || strings.HasPrefix(key, "probe") {
			continue
		}
		n++
		check := func(how string) {
			t.Helper()
			k.checkLoss(bare, 1+n%newest, "none", "--repo", bare.repo)
			if got := len(bare.history("vol", bare.bareFlags()...)); got != newest {
				t.Errorf("%s %s: there are %d snapshots", key, how, got)
			}
			if key == "secrate.json" {
				// Without it a writer cannot know that it is where it belongs.
				k.m.run("verify", "--read-data").expect(t, 3, "repository")
			} else {
				k.m.run("verify", "--read-data").expect(t, 1, key)
			}
			o := bare.run("SECRATE_IDENTITY="+bare.identity, "verify", "--read-data", "--repo", bare.repo)
			if o.status != 1 || !strings.Contains(o.stdout+o.stderr, key) {
				t.Errorf("%s %s: it is not named: %v", key, how, o)
			}
		}
		k.lose(key, func() { check("lost") })
		k.damage(key, func() { check("damaged") })
	}
	t.Logf("%d objects", n)
	k.m.must("verify")
}
