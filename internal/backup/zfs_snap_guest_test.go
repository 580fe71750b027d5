//go:build linux && zfs

package backup_test

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/keep"
	"github.com/secrate/secrate/internal/zfsvolume"
	"github.com/secrate/secrate/snapshot/zfs"
	"github.com/secrate/secrate/testenv/zfspool"
)

var snapSeedsFlag = flag.Int("snap-seeds", len(zfsKindsOfFS), "how many seeds TestZFSSnapRandom tries beside those it found")

// foundSnapSeeds once failed.
var foundSnapSeeds = []uint64{}

// TestZFSSnapRandom is TestZFSRandom for snapshots that secrate takes itself: with the base
// destroyed and its bookmark left, both gone, rollbacks of the head, other names of the
// dataset and remounts in between, snapshots that wait, and content that is read from the
// mounted snapshots or comes with the stream.
func TestZFSSnapRandom(t *testing.T) {
	for _, seed := range seedsOf(foundSnapSeeds, *snapSeedsFlag) {
		kind := zfsKindsOfFS[seed%uint64(len(zfsKindsOfFS))]
		t.Run(fmt.Sprintf("%s/%d", kind.name, seed), func(t *testing.T) {
			s := &snapRandom{zfsRandom: newZFSRandom(t, seed, kind.properties, kind.record)}
			for _, round := range s.snapRounds() {
				s.snapRound(round)
				if t.Failed() {
					break
				}
			}
			s.compareRebuilt()
			if t.Failed() {
				t.Logf("-seed=%d; the last operations:\n%s", seed, lastLines(s.gen.Log(), 60))
			}
		})
	}
}

// A snapRandom is a zfsRandom of which secrate takes the snapshots.
type snapRandom struct {
	*zfsRandom
	number   int
	noMounts bool
}

func (s *snapRandom) snapRounds() []string {
	rounds := []string{"next", "next", "next", "base destroyed", "bookmark, too", "rollback", "nameless", "rename", "reimport", "unchanged", "two", "nothing mounted", "destroyed while it waits"}
	s.rng.Shuffle(len(rounds), func(i, j int) { rounds[i], rounds[j] = rounds[j], rounds[i] })
	return append([]string{"first"}, rounds...)
}

// volume opens the dataset as it is now.
func (s *snapRandom) volume() *zfsvolume.Volume {
	s.t.Helper()
	d, err := zfs.Datasets(s.t.Context(), s.fs.Name, false)
	if err != nil {
		s.t.Fatal(err)
	}
	return zfsvolume.New(d[0], zfsvolume.Options{Writer: "0123456789abcdef", Source: "s", NoMounts: s.noMounts})
}

// local returns the snapshots of the dataset that are secrate's.
func (s *snapRandom) local(bookmarks bool) []zfs.Snapshot {
	s.t.Helper()
	all, err := zfs.Snapshots(s.t.Context(), s.fs.Name)
	if err != nil {
		s.t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(z zfs.Snapshot) bool { return z.Bookmark != bookmarks || !strings.HasPrefix(z.Name, "secrate.") })
}

// unhold lets go of all snapshots, as a person does who wants to destroy them.
func (s *snapRandom) unhold() {
	s.t.Helper()
	for _, z := range s.local(false) {
		if err := zfs.Release(s.t.Context(), zfs.Tag("s", "01234567"), z); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *snapRandom) snapRound(what string) {
	s.t.Helper()
	s.gen.Note("round: %s", what)
	switch what {
	case "base destroyed", "bookmark, too":
		s.unhold()
		for _, z := range s.local(false) {
			zfspool.Run(s.t, "zfs", "destroy", z.String())
		}
		if what == "bookmark, too" {
			for _, z := range s.local(true) {
				zfspool.Run(s.t, "zfs", "destroy", z.String())
			}
		}
	case "rollback":
		// To where it was before something that is in the history, too.
		zfspool.Run(s.t, "zfs", "snapshot", s.fs.Name+"@back")
		s.removeSome(filepath.Join(s.fs.Dir, "tree"))
		s.scribble(filepath.Join(s.fs.Dir, "tree"))
		if err := os.WriteFile(filepath.Join(s.fs.Dir, fmt.Sprint("wild", s.number)), []byte("wild"), 0o600); err != nil {
			s.t.Fatal(err)
		}
		s.take()
		s.upload()
		s.unhold()
		zfspool.Run(s.t, "zfs", "rollback", "-r", s.fs.Name+"@back")
		zfspool.Run(s.t, "zfs", "destroy", s.fs.Name+"@back")
	case "nameless":
		// A file is written, a snapshot taken, and then it gets its name.
		f, err := unix.Open(s.fs.Dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err != nil {
			s.t.Fatal(err)
		}
		defer unix.Close(f)
		if _, err := unix.Write(f, bytes.Repeat([]byte("nameless "), 30000)); err != nil {
			s.t.Fatal(err)
		}
		s.take()
		s.upload()
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f), unix.AT_FDCWD,
			filepath.Join(s.fs.Dir, fmt.Sprint("named", s.number)), unix.AT_SYMLINK_FOLLOW); err != nil {
			s.t.Fatal(err)
		}
	case "rename":
		name := s.pool.Dataset(fmt.Sprintf("fs%d", s.number)).Name
		zfspool.Run(s.t, "zfs", "rename", s.fs.Name, name)
		s.fs.Name = name
	case "reimport":
		s.pool.Reimport(s.t)
	}
	if what != "unchanged" {
		if err := s.gen.Step(25); err != nil {
			s.t.Fatal(err)
		}
	}
	switch what {
	case "two":
		s.take()
		if err := s.gen.Step(25); err != nil {
			s.t.Fatal(err)
		}
	case "destroyed while it waits":
		s.take()
		s.unhold()
		all := s.local(false)
		zfspool.Run(s.t, "zfs", "destroy", all[len(all)-1].String())
		s.all = s.all[:len(s.all)-1]
		if err := s.gen.Step(5); err != nil {
			s.t.Fatal(err)
		}
	}
	s.take()
	s.noMounts = what == "nothing mounted"
	s.upload()
	s.noMounts = false
}

// scribble writes over about half of the files below dir, as far as it can.
func (s *snapRandom) scribble(dir string) {
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || s.rng.IntN(2) == 0 {
			return nil
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil // some things are immutable
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || st.Size() == 0 {
			return nil
		}
		b := make([]byte, 1+s.rng.IntN(20000))
		for i := range b {
			b[i] = byte(s.rng.Uint32())
		}
		f.WriteAt(b, s.rng.Int64N(st.Size()))
		return nil
	})
}

// take takes a snapshot, and scans it.
func (s *snapRandom) take() {
	s.t.Helper()
	taken, err := s.newJob().Take(s.t.Context(), s.volume())
	if err != nil {
		s.t.Fatal(err)
	}
	_, name, _ := strings.Cut(taken.Name, "@")
	s.number++
	s.all = append(s.all, &zfsSnapshot{name: name, want: s.scan(s.fs, name)})
}

func (s *snapRandom) newJob() *backup.Job {
	s.t.Helper()
	rule, err := keep.Parse("2 last")
	if err != nil {
		s.t.Fatal(err)
	}
	j, err := backup.New(backup.Options{Writer: s.w, Source: "s", Keep: rule, Observer: logger{s.t}})
	if err != nil {
		s.t.Fatal(err)
	}
	return j
}

// upload uploads what waits, and compares it.
func (s *snapRandom) upload() {
	s.t.Helper()
	res, err := s.newJob().Upload(s.t.Context(), s.volume())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range res.Failed {
		s.t.Errorf("left out: %s", f)
	}
	if res.Pending != 0 {
		s.t.Errorf("%d wait", res.Pending)
	}
	known, err := s.w.Known(s.source("s"))
	if err != nil {
		s.t.Fatal(err)
	}
	byName := map[string]uint64{}
	for _, k := range known.All {
		_, name, _ := strings.Cut(k.Info.Origin, "@")
		byName[name] = k.Seq
	}
	for _, z := range s.all {
		if z.seq != 0 {
			continue
		}
		if z.seq = byName[z.name]; z.seq == 0 { // nothing had changed: it is what the last one is
			z.seq = known.All[len(known.All)-1].Seq
		}
		s.compare(s.cat, s.source("s"), z)
	}
	// The base, and one more by the rule; marked both, and the base is held.
	local := s.local(false)
	if len(local) > 2 {
		s.t.Errorf("%d snapshots are left: %v", len(local), local)
	}
	for i, z := range local {
		if held := i == len(local)-1; (z.Holds > 0) != held {
			s.t.Errorf("%s has %d holds, and is the base: %v", z, z.Holds, held)
		}
	}
	if marks := s.local(true); len(marks) == 0 || marks[len(marks)-1].GUID != local[len(local)-1].GUID {
		s.t.Errorf("the last bookmark is not of the base: %v", marks)
	}
}
