package backup_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/testenv"
	"github.com/secrate/secrate/testenv/loopfs"
)

// options makes a job of the case's source with o, which says what it heard.
func (c *scanCase) options(o backup.Options) (*backup.Job, *[]string) {
	c.f.t.Helper()
	var said []string
	o.Writer, o.Source, o.Observer = c.f.w, "s", hearer{logger{c.f.t}, &said}
	j, err := backup.New(o)
	c.must(err)
	return j, &said
}

// paths are those that the newest snapshot has, directories with a slash at the end.
func (c *scanCase) paths() []string {
	src := c.f.source("s")
	head, err := c.f.w.Head(src)
	c.must(err)
	var all []string
	for _, e := range c.f.entries(c.f.cat, src, head.Seq) {
		if p := e.Path; p != "" && p != "." {
			if e.Kind == filetree.Dir {
				p += "/"
			}
			all = append(all, p)
		}
	}
	slices.Sort(all)
	return all
}

// TestFilter leaves out by each kind of thing, and brings back what is so no longer.
func TestFilter(t *testing.T) {
	c := newScanCase(t)
	c.dir = filepath.Join(loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 64 << 20}).Dir, "tree")
	tag := "Signature: 8a477f597d28d172789f06886806bc55\n# made by a test\n"
	c.write("a/x.o", "x")
	c.write("a/x.c", "x")
	c.write("a/.ignore", "*.o\n")
	c.write("a/b/x.o", "x")
	c.write("a/b/y.o", "x")
	c.write("a/b/.ignore", "!x.o\n")
	c.write("cache/CACHEDIR.TAG", tag)
	c.write("cache/big", "x")
	c.write("cache/deep/CACHEDIR.TAG", "no")
	c.write("untagged/CACHEDIR.TAG", tag[1:])
	c.write("untagged/x", "x")
	c.must(os.MkdirAll(c.path("linked"), 0o755))
	c.must(os.Symlink("../cache/CACHEDIR.TAG", c.path("linked/CACHEDIR.TAG")))
	c.write("linked/x", "x")
	c.write("dump/no/x", "x")
	c.write("dump/no2", "x")
	c.write("dump/yes", "x")
	nodump := func(name string, flags int) {
		f, err := os.Open(c.path(name))
		c.must(err)
		defer f.Close()
		c.must(unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags))
	}
	const extents, nodumpFlag = 0x80000, 0x40
	nodump("dump/no", extents|nodumpFlag)
	nodump("dump/no2", extents|nodumpFlag)
	c.write("CACHEDIR.TAG", tag) // of the root: it does not count

	all := backup.Options{ExcludeFiles: []string{".none", ".ignore"}, SkipCaches: true, SkipNodump: true}
	scan := func(o backup.Options, want ...string) {
		t.Helper()
		j, said := c.options(o)
		res, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{})
		c.must(err)
		if len(res.Failed) > 0 || len(*said) > 0 {
			t.Errorf("failed %q, said %q", res.Failed, *said)
		}
		if diff := cmp.Diff(want, c.paths()); diff != "" {
			t.Errorf("kept (-want +got):\n%s", diff)
		}
		if res, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{}); err != nil || !res.Unchanged {
			t.Errorf("scanned again: %+v, %v", res, err)
		}
		// One by one they are the same.
		var kept []string
		c.must(filepath.WalkDir(c.dir, func(p string, d os.DirEntry, err error) error {
			if err != nil || p == c.dir {
				return err
			}
			p = strings.TrimPrefix(p, c.dir+"/")
			kind := filetree.File
			switch {
			case d.IsDir():
				kind = filetree.Dir
			case !d.Type().IsRegular():
				kind = filetree.Symlink
			}
			if backup.LeftOut(t, c.dir, o, p, kind) {
				return nil // but what is below is asked of, too
			}
			if d.IsDir() {
				p += "/"
			}
			kept = append(kept, p)
			return nil
		}))
		slices.Sort(kept)
		if diff := cmp.Diff(want, kept); diff != "" {
			t.Errorf("kept one by one (-want +got):\n%s", diff)
		}
	}
	common := []string{"CACHEDIR.TAG", "a/", "a/.ignore", "a/b/", "a/b/.ignore", "a/b/x.o", "a/x.c", "cache/", "cache/CACHEDIR.TAG", "dump/", "dump/yes",
		"linked/", "linked/CACHEDIR.TAG", "linked/x", "untagged/", "untagged/CACHEDIR.TAG", "untagged/x"}
	with := func(more ...string) []string {
		w := append(slices.Clone(common), more...)
		slices.Sort(w)
		return w
	}
	scan(all, with()...)
	o := all
	o.SkipNodump = false
	scan(o, with("dump/no/", "dump/no/x", "dump/no2")...)
	o.SkipCaches = false
	caches := []string{"cache/big", "cache/deep/", "cache/deep/CACHEDIR.TAG"}
	scan(o, with(append(caches, "dump/no/", "dump/no/x", "dump/no2")...)...)
	o.ExcludeFiles = nil
	scan(o, with(append(caches, "a/x.o", "a/b/y.o", "dump/no/", "dump/no/x", "dump/no2")...)...)
	scan(all, with()...)
	nodump("dump/no", extents)
	c.must(os.Remove(c.path("cache/CACHEDIR.TAG")))
	c.write("a/b/.ignore", "!*.o\n")
	common = slices.DeleteFunc(common, func(p string) bool { return p == "cache/CACHEDIR.TAG" })
	scan(all, with(append(caches, "dump/no/", "dump/no/x", "a/b/y.o")...)...)
	// The configuration has the last word, both ways.
	o = all
	o.Exclude = []string{"/a/b/y.o", "!/a/x.o"}
	scan(o, with(append(caches, "dump/no/", "dump/no/x", "a/x.o")...)...)
}

// TestFilterWarns reads files of patterns that are none: each is named once, and excludes nothing.
func TestFilterWarns(t *testing.T) {
	c := newScanCase(t)
	c.write("bad/.ignore", "*.o\na//b\n[\n")
	c.write("bad/x.o", "x")
	c.write("bad/x.c", "x")
	c.write("large/.ignore", "*\n#"+strings.Repeat("x", 1<<20))
	c.must(os.MkdirAll(c.path("link"), 0o755))
	c.must(os.Symlink("../bad/.ignore", c.path("link/.ignore")))
	c.write("link/x.o", "x")
	c.must(os.MkdirAll(c.path("dir/.ignore"), 0o755))
	c.must(unix.Mkfifo(c.path("bad/fifo"), 0o644))
	c.must(os.MkdirAll(c.path("pipe"), 0o755))
	c.must(unix.Mkfifo(c.path("pipe/.ignore"), 0o644)) // nothing waits for it
	j, said := c.options(backup.Options{ExcludeFiles: []string{".ignore"}})
	if _, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(*said)
	want := []string{
		"bad/.ignore: line 2 has an empty name between two slashes, and 1 more are wrong: it excludes nothing, the other lines do",
		"dir/.ignore excludes nothing: open \".ignore\": not a regular file",
		"large/.ignore excludes nothing: has more than 256 KiB",
		"link/.ignore excludes nothing: not a regular file",
		"pipe/.ignore excludes nothing: open \".ignore\": not a regular file",
	}
	if diff := cmp.Diff(want, *said); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"bad/", "bad/.ignore", "bad/fifo", "bad/x.c", "dir/", "dir/.ignore/", "large/", "large/.ignore", "link/", "link/.ignore", "link/x.o", "pipe/", "pipe/.ignore"}, c.paths()); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	*said = nil
	c.write("bad/x.c", "changed")
	if _, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{}); err != nil || len(*said) > 0 {
		t.Errorf("again said %q, %v", *said, err)
	}
}

// TestFilterGit scans a tree whose files of patterns change at random, and asks git which files
// there should be.
func TestFilterGit(t *testing.T) {
	testenv.Need(t, testenv.Tool("git"))
	const git = "git"
	for _, known := range []int{100000, 3} {
		t.Run(fmt.Sprint(known), func(t *testing.T) {
			backup.SetMaxKnown(t, known, known)
			seed := *seedFlag
			if seed == 0 {
				seed = uint64(time.Now().UnixNano())
			}
			t.Logf("-seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 1))
			c := newScanCase(t)
			run := func(args ...string) []string {
				cmd := exec.Command(git, args...)
				cmd.Dir = c.dir
				cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_DIR="+c.dir+".git", "GIT_WORK_TREE="+c.dir)
				out, err := cmd.Output()
				if ee, ok := errors.AsType[*exec.ExitError](err); ok {
					t.Fatalf("git: %v: %s", err, ee.Stderr)
				}
				c.must(err)
				return slices.DeleteFunc(strings.Split(string(out), "\x00"), func(p string) bool { return p == "" })
			}
			run("init", "-q")
			names := []string{"a", "b", "c.o", "d.o", "e"}
			patterns := []string{"*.o", "!c.o", "/a", "b/", "!b/", "a/b", "**/e", "*", "!*.o", "!*/", "a/**", "[", "c?o"}
			dirs := []string{""}
			for range 12 {
				dirs = append(dirs, filepath.Join(dirs[r.IntN(len(dirs))], names[r.IntN(len(names))]))
			}
			for _, d := range dirs {
				c.must(os.MkdirAll(c.path(d), 0o755))
			}
			for _, d := range dirs {
				for _, n := range names {
					if _, err := os.Lstat(c.path(filepath.Join(d, n))); err != nil {
						c.write(filepath.Join(d, n), d+n)
					}
				}
			}
			seen := map[string]bool{}
			for range 25 {
				d := dirs[r.IntN(len(dirs))]
				if r.IntN(3) == 0 {
					os.Remove(c.path(filepath.Join(d, ".secrateignore")))
				} else {
					var lines []string
					for range 1 + r.IntN(3) {
						lines = append(lines, patterns[r.IntN(len(patterns))])
					}
					c.write(filepath.Join(d, ".secrateignore"), strings.Join(lines, "\n"))
				}
				j, _ := c.options(backup.Options{ExcludeFiles: []string{".secrateignore"}})
				if _, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{}); err != nil {
					t.Fatal(err)
				}
				want := run("ls-files", "-z", "--others", "--exclude-per-directory=.secrateignore")
				slices.Sort(want)
				got := slices.DeleteFunc(c.paths(), func(p string) bool { return strings.HasSuffix(p, "/") })
				if !slices.Equal(want, got) {
					t.Fatalf("kept (-git +we):\n%s", cmp.Diff(want, got))
				}
				seen[fmt.Sprint(got)] = true
			}
			if len(seen) < 5 {
				t.Errorf("only %d different states: %q", len(seen), slices.Collect(maps.Keys(seen)))
			}
			c.must(filepath.WalkDir(c.dir, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.Name() == ".secrateignore" {
					err = os.Remove(p)
				}
				return err
			}))
			j, _ := c.options(backup.Options{ExcludeFiles: []string{".secrateignore"}})
			if _, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{}); err != nil {
				t.Fatal(err)
			}
			c.same(t, "without any")
		})
	}
}

// TestFilterMovedMeanwhile moves the directory above one that is to be looked at with all that is in
// it, after the scan of what has changed has begun: that is no failure, and is told by the watcher.
func TestFilterMovedMeanwhile(t *testing.T) {
	c := newScanCase(t)
	for i := range 200 {
		c.write(fmt.Sprintf("m/n/f%03d", i), "x")
	}
	c.write("m/n/p/f", "x")
	o := backup.Options{ExcludeFiles: []string{".ignore"}}
	j, _ := c.options(o)
	_, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{})
	c.must(err)
	ch := &backup.Changes{Paths: []string{"m/n/p/f", "m/n/q"}, Trees: []string{"m/n/q"}}
	for i := range 200 {
		name := fmt.Sprintf("m/n/f%03d", i)
		c.write(name, "changed")
		ch.Paths = append(ch.Paths, name)
	}
	c.write("m/n/q/f", "new")
	var once sync.Once
	o.Writer, o.Source, o.Observer = c.f.w, "s", during{func() {
		once.Do(func() { c.must(os.Rename(c.path("m"), c.path("m2"))) })
	}}
	j, err = backup.New(o)
	c.must(err)
	if _, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{Only: ch}); err != nil {
		t.Errorf("moved meanwhile: %v", err)
	}
	j, _ = c.options(o)
	_, err = j.Scan(t.Context(), c.dir, backup.ScanOptions{Only: &backup.Changes{Paths: []string{"m", "m2"}, Trees: []string{"m2"}}})
	c.must(err)
	c.same(t, "when its new name is known")
}

// TestFilterLeftOutMeanwhile leaves out a directory above one that is to be looked at, after the scan
// of what has changed has begun: what is in it stays what it was.
func TestFilterLeftOutMeanwhile(t *testing.T) {
	c := newScanCase(t)
	c.dir = filepath.Join(loopfs.New(t, loopfs.Ext4, loopfs.Options{Size: 64 << 20}).Dir, "tree")
	for i := range 200 {
		c.write(fmt.Sprintf("a/b/f%03d", i), "x")
	}
	c.write("m/n/p/f", "x")
	o := backup.Options{ExcludeFiles: []string{".ignore"}, SkipNodump: true}
	j, _ := c.options(o)
	_, err := j.Scan(t.Context(), c.dir, backup.ScanOptions{})
	c.must(err)
	ch := &backup.Changes{Paths: []string{"m/n/p/f"}}
	for i := range 200 {
		name := fmt.Sprintf("a/b/f%03d", i)
		c.write(name, "changed")
		ch.Paths = append(ch.Paths, name)
	}
	var once sync.Once
	o.Writer, o.Source, o.Observer = c.f.w, "s", during{func() {
		once.Do(func() {
			d, err := os.Open(c.path("m"))
			c.must(err)
			defer d.Close()
			flags, err := unix.IoctlGetInt(int(d.Fd()), unix.FS_IOC_GETFLAGS)
			c.must(err)
			c.must(unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, flags|0x40)) // nodump
		})
	}}
	j, err = backup.New(o)
	c.must(err)
	_, err = j.Scan(t.Context(), c.dir, backup.ScanOptions{Only: ch})
	c.must(err)
	if got := c.f.contentAt("s", 2, "m/n/p/f"); string(got) != "x" {
		t.Errorf("left out meanwhile: %q", got)
	}
	j, _ = c.options(o)
	_, err = j.Scan(t.Context(), c.dir, backup.ScanOptions{})
	c.must(err)
	if all := c.paths(); slices.Contains(all, "m/") {
		t.Errorf("scanned again there are %q", all)
	}
}
