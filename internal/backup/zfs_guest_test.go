//go:build linux && zfs

package backup_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/sendstream/zfs"
	"github.com/secrate/secrate/sendstream/zfs/zpl"
	"github.com/secrate/secrate/testenv/manifest"
	"github.com/secrate/secrate/testenv/treegen"
	"github.com/secrate/secrate/testenv/zfspool"
)

var zfsSeedsFlag = flag.Int("zfs-seeds", len(zfsKindsOfFS), "how many seeds TestZFSRandom tries beside those it found")

// foundZFSSeeds once failed. What a seed does depends on the file systems below, too.
var foundZFSSeeds = []uint64{1795617182538310627}

// zfsKindsOfFS are the file systems of TestZFSRandom. A seed has the one at the index that
// is its remainder, so that as many seeds in a row have all of them.
var zfsKindsOfFS = []struct {
	name       string
	properties []string
	record     int64 // its recordsize
}{
	{"4K, lz4, attributes in the dnode", []string{"recordsize=4K", "compression=lz4", "xattr=sa", "acltype=posixacl", "dnodesize=auto"}, 4 << 10},
	{"128K, zstd, attributes in directories", []string{"recordsize=128K", "compression=zstd", "xattr=on", "acltype=posixacl"}, 128 << 10},
	{"1M, zstd, attributes in the dnode", []string{"recordsize=1M", "compression=zstd", "xattr=sa"}, 1 << 20},
	{"1M, lz4, attributes in directories", []string{"recordsize=1M", "compression=lz4", "xattr=on", "acltype=posixacl"}, 1 << 20},
	{"128K, uncompressed, attributes in the dnode", []string{"recordsize=128K", "compression=off", "xattr=sa", "acltype=posixacl"}, 128 << 10},
}

// TestZFSRandom changes a real ZFS at random, takes a snapshot every few changes, and
// ingests what zfs send makes of it. Every snapshot of the history is compared with the
// mounted one, and so is what zfs receive makes of the same stream, where it can.
func TestZFSRandom(t *testing.T) {
	for _, seed := range seedsOf(foundZFSSeeds, *zfsSeedsFlag) {
		kind := zfsKindsOfFS[seed%uint64(len(zfsKindsOfFS))]
		t.Run(fmt.Sprintf("%s/%d", kind.name, seed), func(t *testing.T) {
			z := newZFSRandom(t, seed, kind.properties, kind.record)
			for _, round := range z.rounds() {
				z.round(round)
				if t.Failed() {
					break // the rest would fail with it
				}
			}
			z.compareRebuilt()
			if t.Failed() {
				t.Logf("-seed=%d; the last operations:\n%s", seed, lastLines(z.gen.Log(), 60))
			}
		})
	}
}

// seedsOf returns the seeds of a test: those it found and n others, or the one that was asked
// for.
func seedsOf(found []uint64, n int) []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	seeds, now := slices.Clone(found), uint64(time.Now().UnixNano())
	for i := range n {
		seeds = append(seeds, now+uint64(i))
	}
	return seeds
}

// lastLines returns the last n lines of a log, the middle of long ones cut out.
func lastLines(log string, n int) string {
	lines := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, l := range lines {
		if len(l) > 160 {
			lines[i] = l[:80] + "…" + l[len(l)-79:]
		}
	}
	return strings.Join(lines, "\n")
}

// A zfsRandom is a file system under random change with its history.
type zfsRandom struct {
	*zfsCase
	t      *testing.T
	rng    *rand.Rand
	gen    *treegen.Gen
	pool   *zfspool.Pool
	fs     *zfspool.Dataset
	record int64

	taken  int
	copies int
	last   *zfsSnapshot // nil before the first
	older  *zfsSnapshot // the one before it, if it is there
	all    []*zfsSnapshot
}

// A zfsSnapshot was taken and is in the history.
type zfsSnapshot struct {
	name   string // after the @
	seq    uint64
	want   []manifest.Entry
	copied *zfspool.Dataset // where zfs receive made it
}

func newZFSRandom(t *testing.T, seed uint64, properties []string, record int64) *zfsRandom {
	pool := zfspool.New(t, zfspool.Options{FS: properties})
	z := &zfsRandom{zfsCase: &zfsCase{fixture: newFixture(t)}, t: t, rng: rand.New(rand.NewPCG(seed, 1)), pool: pool, record: record}
	// The mount point is its own, so that it stays when the dataset has another name.
	dir := filepath.Join(t.TempDir(), "fs")
	z.fs = pool.Create(t, "fs", "mountpoint="+dir)
	z.fs.Dir = dir
	outside, tree := filepath.Join(dir, "outside"), filepath.Join(dir, "tree")
	for _, d := range []string{outside, tree} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	z.gen, err = treegen.New(tree, treegen.Options{Seed: seed, Outside: outside, Entries: 120, Bytes: 4 << 20, Large: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// rounds are what is done between two snapshots and how the later one is sent, in random
// order but for the first.
func (z *zfsRandom) rounds() []string {
	rounds := []string{"incremental", "incremental", "incremental", "bookmark", "older", "full", "rollback", "rename", "reimport", "unchanged"}
	z.rng.Shuffle(len(rounds), func(i, j int) { rounds[i], rounds[j] = rounds[j], rounds[i] })
	return append([]string{"full"}, rounds...)
}

func (z *zfsRandom) round(what string) {
	z.gen.Note("round: %s", what)
	from := z.last
	switch what {
	case "rollback":
		z.rollback()
	case "rename":
		name := z.pool.Dataset(fmt.Sprintf("fs%d", z.taken)).Name
		zfspool.Run(z.t, "zfs", "rename", z.fs.Name, name)
		z.fs.Name = name
	case "reimport":
		z.pool.Reimport(z.t)
	case "older":
		// Of two snapshots without a change between them the state is the later one's.
		if z.older != nil && z.older.seq != z.last.seq {
			from = z.older
		}
	}
	if what != "unchanged" {
		if err := z.gen.Step(25); err != nil {
			z.t.Fatal(err)
		}
	}
	switch {
	case what == "full":
		z.snapshot(nil, "")
	case what == "bookmark":
		base := z.fs.Name + "@" + from.name
		mark := z.fs.Name + "#" + from.name
		zfspool.Run(z.t, "zfs", "bookmark", base, mark)
		zfspool.Run(z.t, "zfs", "destroy", base)
		z.snapshot(from, mark)
		z.older = nil
	default:
		z.snapshot(from, z.fs.Name+"@"+from.name)
	}
}

// rollback lets the tree go another way for a snapshot or two, and then back to where it
// was: to numbers of objects that the history knows as others.
func (z *zfsRandom) rollback() {
	base, older := z.last, z.older
	for i := range 1 + z.rng.IntN(2) {
		dir := filepath.Join(z.fs.Dir, fmt.Sprintf("wild%d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			z.t.Fatal(err)
		}
		z.removeSome(filepath.Join(z.fs.Dir, "tree"))
		g, err := treegen.New(dir, treegen.Options{Seed: z.rng.Uint64(), Entries: 60, Bytes: 2 << 20, Large: 1 << 20})
		if err != nil {
			z.t.Fatal(err)
		}
		if err := g.Step(40); err != nil {
			z.t.Fatal(err)
		}
		z.snapshot(z.last, z.fs.Name+"@"+z.last.name)
	}
	zfspool.Run(z.t, "zfs", "rollback", "-r", z.fs.Name+"@"+base.name)
	z.last, z.older = base, older
}

// removeSome removes about half of what is in dir, as far as it can be.
func (z *zfsRandom) removeSome(dir string) {
	names, err := os.ReadDir(dir)
	if err != nil {
		z.t.Fatal(err)
	}
	for _, n := range names {
		if z.rng.IntN(2) == 0 {
			os.RemoveAll(filepath.Join(dir, n.Name())) // some things are immutable
		}
	}
}

// snapshot takes one, and brings it to the history and to the copy by a stream from a base,
// a snapshot or bookmark that has what from had. Without one the stream is full.
func (z *zfsRandom) snapshot(from *zfsSnapshot, base string) {
	z.t.Helper()
	z.taken++
	s := &zfsSnapshot{name: fmt.Sprint(z.taken)}
	full := z.fs.Snapshot(z.t, s.name)
	s.want = z.scan(z.fs, s.name)
	flags := [][]string{{}, {"-L", "-e"}, {"-L", "-e", "-c"}}[z.rng.IntN(3)]
	z.gen.Note("snapshot %s from %q, flags %q", s.name, base, flags)
	stream := z.send(full, base, flags)

	u, err := zfs.NewUnits(bytes.NewReader(stream)).Next()
	if err != nil {
		z.t.Fatal(err)
	}
	res, failed, err := z.ingest(z.t, "s", u)
	if err != nil {
		z.t.Fatalf("ingest %s: %v", u.Name, err)
	}
	for _, f := range failed {
		z.t.Errorf("%s: left out: %s", s.name, f)
	}
	src := z.source("s")
	if res.Unchanged {
		if s.seq, err = z.w.Alias(src, zfs.GUID(u.ToGUID)); err != nil {
			z.t.Fatal(err)
		}
		if s.seq == 0 {
			z.t.Fatalf("%s changed nothing, and nothing knows which snapshot it is", s.name)
		}
	} else {
		s.seq = res.Committed[0].Seq
	}
	z.compare(z.cat, src, s)

	if again := receivable(flags, z.record); !slices.Equal(again, flags) {
		stream = z.send(full, base, again)
	}
	z.receive(stream, from, s)
	if d := manifest.Diff(s.want, z.scan(s.copied, s.name), manifest.Ignore{}); len(d) > 0 {
		z.t.Errorf("what zfs receive made of %s:\n%s", s.name, manifest.Report(d, 10))
	}
	z.all = append(z.all, s)
	z.last, z.older = s, z.last
}

// receivable are the flags of a stream that zfs receive makes the snapshot of, in place of
// flags. It does not take a spill block for one that comes as WRITE_EMBEDDED, as -e sends
// those that compress well: extended attributes are lost, and files that have other
// attributes there, too, cannot be looked at any more (2.3.2). And where there are records of more
// than 128K all streams have to be sent with -L, or none.
func receivable(flags []string, record int64) []string {
	var out []string
	if record > 128<<10 || slices.Contains(flags, "-L") {
		out = append(out, "-L")
	}
	if slices.Contains(flags, "-c") {
		out = append(out, "-c")
	}
	return out
}

func (z *zfsRandom) send(snapshot, base string, flags []string) []byte {
	z.t.Helper()
	args := slices.Clone(flags)
	if base != "" {
		args = append(args, "-i", base)
	}
	var b bytes.Buffer
	if err := zfspool.Send(&b, append(args, snapshot)...); err != nil {
		z.t.Fatal(err)
	}
	return b.Bytes()
}

// receive gives a stream of s from another snapshot, or nil, to zfs receive.
func (z *zfsRandom) receive(stream []byte, from, s *zfsSnapshot) {
	z.t.Helper()
	if from == nil {
		z.copies++
		s.copied = z.pool.Dataset(fmt.Sprintf("copy%d", z.copies))
	} else {
		s.copied = from.copied
		zfspool.Run(z.t, "zfs", "rollback", "-r", s.copied.Name+"@"+from.name)
	}
	if err := zfspool.Receive(bytes.NewReader(stream), "-u", "-o", "readonly=on", s.copied.Name); err != nil {
		z.t.Fatal(err)
	}
}

// scan makes the manifest of a snapshot. The root of one that is mounted has a number that
// nothing else has.
func (z *zfsRandom) scan(d *zfspool.Dataset, snapshot string) []manifest.Entry {
	z.t.Helper()
	dir := z.t.TempDir()
	if err := unix.Mount(d.Name+"@"+snapshot, dir, "zfs", unix.MS_RDONLY, ""); err != nil {
		z.t.Fatalf("mount %s@%s: %v", d.Name, snapshot, err)
	}
	all, err := manifest.Scan(dir)
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
		z.t.Fatal(err)
	}
	if err != nil {
		z.t.Fatal(err)
	}
	all[0].Ino = 0
	return all
}

// compare compares a snapshot of the history with the mounted one, in all but the size and
// the links of directories: those are numbers of what is in them.
func (z *zfsRandom) compare(cat *catalog.DB, src catalog.Source, s *zfsSnapshot) {
	z.t.Helper()
	got := z.entries(cat, src, s.seq)
	got[0].Ino = 0
	for i := range got {
		got[i].Xattrs = slices.DeleteFunc(got[i].Xattrs, func(x filetree.Xattr) bool {
			return x.Name == zpl.ACLXattr || x.Name == zfs.ProjectXattr // ours: Linux shows none
		})
	}
	z.sameHoles(s.want, got)
	if d := manifest.Diff(s.want, got, manifest.Ignore{DirSize: true, DirNlink: true}); len(d) > 0 {
		z.t.Errorf("snapshot %s, #%d:\n%s", s.name, s.seq, manifest.Report(d, 10))
	}
}

// sameHoles makes the extents of got those of want where they say the same. ZFS knows holes
// by whole records, and in a file of one record, if its size is no power of two, none; the
// history has a hole in a record where a file ended in the midst of it before it grew.
func (z *zfsRandom) sameHoles(want, got []manifest.Entry) {
	byPath := map[string]*manifest.Entry{}
	for i := range got {
		byPath[got[i].Path] = &got[i]
	}
	for i := range want {
		w, g := &want[i], byPath[want[i].Path]
		if g == nil || w.Size != g.Size {
			continue
		}
		same := true
		for _, x := range g.Extents {
			for _, y := range w.Extents {
				from, to := max(x.Offset, y.Offset), min(x.End(), y.End())
				if from >= to || x.Hole == y.Hole {
					continue
				}
				oneRecord := from/z.record == (to-1)/z.record
				same = same && x.Hole && oneRecord && (to-from < z.record || w.Size <= z.record)
			}
		}
		if same {
			g.Extents = w.Extents
		}
	}
}

// compareRebuilt compares some of all with a catalog made from what is stored, the last
// among them.
func (z *zfsRandom) compareRebuilt() {
	z.t.Helper()
	rebuilt, src := z.rebuilt()
	for i, s := range z.all {
		if (len(z.all)-1-i)%4 == 0 {
			z.compare(rebuilt, src, s)
		}
	}
}

// TestZFSVolume writes to a volume, gives blocks of it back, and changes its size, and
// compares every snapshot of the history byte for byte.
func TestZFSVolume(t *testing.T) {
	pool := zfspool.New(t, zfspool.Options{})
	for _, tt := range []struct {
		blockSize string
		flags     []string
	}{{"8K", nil}, {"64K", []string{"-L", "-e", "-c"}}} {
		t.Run(tt.blockSize, func(t *testing.T) {
			seed := *seedFlag
			if seed == 0 {
				seed = uint64(time.Now().UnixNano())
			}
			t.Logf("-seed=%d", seed)
			v := &zfsVolume{zfsCase: &zfsCase{fixture: newFixture(t)}, t: t, rng: rand.New(rand.NewPCG(seed, 2)), flags: tt.flags,
				name: pool.Name + "/volume" + tt.blockSize, image: make([]byte, 8<<20)}
			known := volumeDevices(t)
			zfspool.Run(t, "zfs", "create", "-s", "-V", "8M", "-o", "volblocksize="+tt.blockSize, "-o", "compression=lz4", v.name)
			v.device = newVolumeDevice(t, known)
			for i := range 3 {
				v.change(10)
				v.snapshot(fmt.Sprint(i))
			}
			v.resize(12 << 20)
			v.snapshot("grown")
			v.change(10)
			v.snapshot("written")
			v.resize(4 << 20)
			v.snapshot("shrunk")
			v.resize(6 << 20)
			v.change(3)
			v.snapshot("grown again")
		})
	}
}

// A zfsVolume is a volume, what is on it, and its history.
type zfsVolume struct {
	*zfsCase
	t            *testing.T
	rng          *rand.Rand
	flags        []string
	name, device string
	image        []byte
	last         string
}

// change writes, writes zeros and discards at random.
func (v *zfsVolume) change(n int) {
	v.t.Helper()
	f, err := os.OpenFile(v.device, os.O_RDWR, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	for range n {
		const (
			sector    = 4096
			discarded = 64 << 10
		)
		off := v.rng.IntN(len(v.image)/sector) * sector
		part := v.image[off:min(off+sector*(1+v.rng.IntN(64)), len(v.image))]
		switch v.rng.IntN(5) {
		case 0: // whole blocks of the volume only: of others ZFS leaves what it likes
			off &^= discarded - 1
			part = v.image[off:min(off+discarded*(1+v.rng.IntN(4)), len(v.image))]
			clear(part)
			if err := f.Sync(); err != nil {
				v.t.Fatal(err)
			}
			if err := discard(f, uint64(off), uint64(len(part))); err != nil {
				v.t.Fatal(err)
			}
			continue
		case 1:
			clear(part)
		case 2: // compresses
			copy(part, bytes.Repeat(binary.LittleEndian.AppendUint64(nil, v.rng.Uint64()), len(part)/8))
		default:
			for i := 0; i < len(part); i += 8 {
				binary.LittleEndian.PutUint64(part[i:], v.rng.Uint64())
			}
		}
		if _, err := f.WriteAt(part, int64(off)); err != nil {
			v.t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		v.t.Fatal(err)
	}
}

func (v *zfsVolume) resize(size int) {
	v.t.Helper()
	zfspool.Run(v.t, "zfs", "set", fmt.Sprintf("volsize=%d", size), v.name)
	if size > len(v.image) {
		v.image = append(v.image, make([]byte, size-len(v.image))...)
	}
	v.image = v.image[:size]
}

func (v *zfsVolume) snapshot(name string) {
	v.t.Helper()
	name = strings.ReplaceAll(name, " ", "-")
	device, err := os.ReadFile(v.device)
	if err != nil || !bytes.Equal(device, v.image) {
		v.t.Fatalf("%s: the device is not what was written to it: %d bytes, %v", name, len(device), err)
	}
	full := v.name + "@" + name
	zfspool.Run(v.t, "zfs", "snapshot", full)
	args := slices.Clone(v.flags)
	if v.last != "" {
		args = append(args, "-i", v.last)
	}
	v.last = full
	var stream bytes.Buffer
	if err := zfspool.Send(&stream, append(args, full)...); err != nil {
		v.t.Fatal(err)
	}
	u, err := zfs.NewUnits(&stream).Next()
	if err != nil {
		v.t.Fatal(err)
	}
	res, failed, err := v.ingest(v.t, "v", u)
	if err != nil || len(failed) > 0 || res.Unchanged {
		v.t.Fatalf("%s: %+v, left out %q, %v", name, res, failed, err)
	}
	if got := v.contentAt("v", res.Committed[0].Seq, zfs.VolumeName); !bytes.Equal(got, v.image) {
		v.t.Errorf("%s: %d bytes that are not the %d of the volume; the first at %d", name, len(got), len(v.image), differAt(got, v.image))
	}
}

func differAt(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// discard gives a range of a block device back.
func discard(f *os.File, off, n uint64) error {
	const blkDiscard = 0x1277 // BLKDISCARD of linux/fs.h
	r := [2]uint64{off, n}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), blkDiscard, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return fmt.Errorf("discard: %w", errno)
	}
	return nil
}

// volumeDevices returns the devices of volumes that there are.
func volumeDevices(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/dev/zd*")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// newVolumeDevice returns the one that is not among those known. It is made some time
// after the volume.
func newVolumeDevice(t *testing.T, known []string) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, d := range volumeDevices(t) {
			if !slices.Contains(known, d) {
				return d
			}
		}
	}
	t.Fatal("there is no device for the volume")
	return ""
}
