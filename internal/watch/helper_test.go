package watch

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// A mirror is what somebody knows of a tree who looks at nothing but what batches tell:
// for each path what lstat says. If the watcher misses nothing, it is the tree.
type mirror struct {
	dir   string
	names map[string]look
	inos  map[uint64]map[string]bool // paths by inode number: other names of a file are the caller's business
	// namesOnly: of what is no directory check compares the inode number alone.
	namesOnly bool
}

type look struct {
	dir bool
	ino uint64
	all string // everything that is compared
}

func newMirror(dir string) *mirror {
	m := &mirror{dir: dir, names: map[string]look{}, inos: map[uint64]map[string]bool{}}
	m.tree("")
	return m
}

func (m *mirror) at(path string) string { return filepath.Join(m.dir, path) }

func (m *mirror) set(path string, l look) {
	m.names[path] = l
	if m.inos[l.ino] == nil {
		m.inos[l.ino] = map[string]bool{}
	}
	m.inos[l.ino][path] = true
}

func (m *mirror) forget(path string) {
	if l, ok := m.names[path]; ok {
		delete(m.inos[l.ino], path)
		delete(m.names, path)
	}
}

func (m *mirror) forgetBelow(path string) {
	for p := range m.names {
		if below(p, path) {
			m.forget(p)
		}
	}
}

func below(p, dir string) bool { return p != dir && (dir == "" || strings.HasPrefix(p, dir+"/")) }

func (m *mirror) path(path string, links bool) {
	old, had := m.names[path]
	m.forget(path)
	var st unix.Stat_t
	fd, err := unix.Openat2(unix.AT_FDCWD, m.at(path), &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err == nil {
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
	}
	if err == nil {
		l := look{dir: st.Mode&unix.S_IFMT == unix.S_IFDIR, ino: st.Ino}
		// Not the time of change: flags and links change it, which no event tells.
		l.all = fmt.Sprint(st.Ino, st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim, xattrs(m.at(path)))
		if !l.dir {
			l.all += fmt.Sprint(" ", st.Size)
		}
		m.set(path, l)
	}
	if had && old.dir && (err != nil || !m.names[path].dir) {
		m.forgetBelow(path)
	}
	if links {
		for _, ino := range []uint64{old.ino, m.names[path].ino} {
			for p := range maps.Clone(m.inos[ino]) {
				if p != path {
					m.path(p, false)
				}
			}
		}
	}
}

func xattrs(path string) string {
	var list, value [64 << 10]byte
	n, err := unix.Llistxattr(path, list[:])
	if err != nil || n == 0 {
		return ""
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(path, name, value[:])
		all = append(all, fmt.Sprintf("%q=%q %v", name, value[:max(n, 0)], err))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (m *mirror) tree(path string) {
	m.path(path, true)
	m.forgetBelow(path)
	filepath.WalkDir(m.at(path), func(p string, _ fs.DirEntry, err error) error {
		if rel, rerr := filepath.Rel(m.dir, p); rerr == nil && rel != path && rel != "." {
			m.path(rel, true)
		}
		return nil
	})
}

func (m *mirror) apply(c Changes) {
	if c.All {
		m.tree("")
	}
	for _, p := range c.Paths {
		m.path(p, true)
	}
	for _, p := range c.Trees {
		m.tree(p)
	}
}

// check compares the mirror with the tree.
func (m *mirror) check(t *testing.T) {
	t.Helper()
	now := newMirror(m.dir)
	for _, p := range slices.Sorted(maps.Keys(now.names)) {
		switch l, ok := m.names[p]; {
		case !ok:
			t.Errorf("missed: %q", p)
		case m.namesOnly && !l.dir && !now.names[p].dir && l.ino == now.names[p].ino:
		case l != now.names[p]:
			t.Errorf("missed a change of %q: %v, is %v", p, l.all, now.names[p].all)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(m.names)) {
		if _, ok := now.names[p]; !ok {
			t.Errorf("missed that %q is gone", p)
		}
	}
}

// A bench watches a directory and keeps a mirror of it.
type bench struct {
	t      *testing.T
	w      *Watcher
	dir    string
	mirror *mirror
	got    []Changes // but for the one of the beginning
	n      int
	stop   func()
}

var quick = Options{Settle: 20 * time.Millisecond, MaxDelay: 200 * time.Millisecond, Poll: 50 * time.Millisecond, Retry: 100 * time.Millisecond}

// start watches dir until the test ends, and returns when it does.
func start(t *testing.T, dir string, o Options, prepare ...func(*Watcher)) *bench {
	t.Helper()
	b := startUnwatched(t, dir, o, prepare...)
	b.until("everything at the beginning", func(c Changes) bool { return c.All })
	b.got = nil
	return b
}

// startUnwatched is start, but does not wait.
func startUnwatched(t *testing.T, dir string, o Options, prepare ...func(*Watcher)) *bench {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	w, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range prepare {
		f(w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	b := &bench{t: t, w: w, dir: dir}
	b.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		ended <- nil
	}
	t.Cleanup(b.stop)
	b.mirror = &mirror{dir: dir, names: map[string]look{}, inos: map[uint64]map[string]bool{}}
	return b
}

// next waits for a batch and deals with it.
func (b *bench) next(what string) Changes {
	b.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case <-b.w.Due():
		case <-timeout:
			b.t.Fatalf("no batch with %s; state %+v; got %+v", what, b.w.State(), b.got)
		}
		if batch, ok := b.w.Take(); ok {
			b.mirror.apply(batch.Changes)
			b.got = append(b.got, batch.Changes)
			batch.Done(true)
			return batch.Changes
		}
	}
}

func (b *bench) until(what string, ok func(Changes) bool) {
	b.t.Helper()
	for !ok(b.next(what)) {
	}
}

// settle waits until all that has happened so far is dealt with: the kernel tells in the
// order in which things happen, so that when it has told of one more file it has told
// of all before.
func (b *bench) settle() {
	b.t.Helper()
	name := fmt.Sprintf(".settle%d", b.n)
	b.n++
	b.write(name, "")
	b.until(name, func(c Changes) bool { return c.All || slices.Contains(c.Paths, name) })
	for b.w.State().Waiting > 0 || b.w.State().All {
		b.next("the rest")
	}
}

// paths returns all that was told since the beginning, without what settle makes.
func (b *bench) paths() (paths, trees []string) {
	p, t := map[string]bool{}, map[string]bool{}
	for _, c := range b.got {
		if c.All {
			b.t.Errorf("all was to be looked at: %+v", b.w.State())
		}
		for _, x := range c.Paths {
			if !strings.HasPrefix(x, ".settle") {
				p[x] = true
			}
		}
		for _, x := range c.Trees {
			t[x] = true
		}
	}
	return slices.Sorted(maps.Keys(p)), slices.Sorted(maps.Keys(t))
}

func (b *bench) at(path string) string { return filepath.Join(b.dir, path) }

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) write(path, data string) {
	b.t.Helper()
	b.must(os.WriteFile(b.at(path), []byte(data), 0o644))
}

func (b *bench) mkdir(path string) { b.t.Helper(); b.must(os.MkdirAll(b.at(path), 0o755)) }

func (b *bench) mv(from, to string) { b.t.Helper(); b.must(os.Rename(b.at(from), b.at(to))) }

// eventually waits for a state, taking batches meanwhile.
func (b *bench) eventually(what string, ok func(State) bool) {
	b.t.Helper()
	timeout := time.After(patience)
	for !ok(b.w.State()) {
		select {
		case <-b.w.Due():
			if batch, ok := b.w.Take(); ok {
				b.mirror.apply(batch.Changes)
				b.got = append(b.got, batch.Changes)
				batch.Done(true)
			}
		case <-time.After(5 * time.Millisecond): // a state has no channel
		case <-timeout:
			b.t.Fatalf("never: %s; state %+v", what, b.w.State())
		}
	}
}
