package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/localfs"
)

// An endError ends a session for a reason that lies with the root.
type endError struct{ reason string }

func (e *endError) Error() string { return e.reason }

// An identity tells whether a path still leads to the same directory in the same mount.
type identity struct {
	dev, ino, mount uint64
	born            unix.StatxTimestamp
}

func identify(path string) (identity, error) {
	var st unix.Statx_t
	for {
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_BTIME|unix.STATX_MNT_ID, &st)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return identity{}, err
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return identity{}, unix.ENOTDIR
	}
	id := identity{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.born = st.Btime
	}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		id.mount = st.Mnt_id
	}
	return id, nil
}

// How long a directory that has lost its place is kept: the other half of a rename may
// still be on its way. Too short a time costs watching it anew.
const adriftFor = 200 * time.Millisecond

// How many directories that are not watched are remembered by name, to try them again,
// and how many of them State names.
const (
	maxNamed   = 1000
	stateNamed = 10
)

// A session is the time for which one root is watched.
type session struct {
	w    *Watcher
	in   *instance
	id   identity
	dirs *dirs
	tree *localfs.Tree // open only while there is something to do: it would hold up umount(8)

	out     map[string]error // directories that are not watched, by path
	outMore int              // and those that are not in out
	mounts  map[string]bool  // what is mounted below the root: not ours until it is unmounted
	full    bool             // the limit on watches has been reached
	limit   limit            // that limit, then

	again      string    // why all directories are to be walked again, or ""
	againAfter time.Time // not before
	end        *endError
	blind      string
}

// session watches the root while it is the same. It returns why, in words that suit
// State.Reconcile, and as an error.
func (w *Watcher) session(ctx context.Context, reason string) (string, error) {
	id, err := identify(w.path)
	if err != nil {
		err := &endError{"the directory cannot be looked at: " + err.Error()}
		w.setState(State{Reason: err.reason})
		return "the directory is there now", err
	}
	in, err := openInstance(w.maxQueue)
	if err != nil {
		st := State{Reason: err.Error()}
		if errors.Is(err, unix.EMFILE) {
			st.Reason = "all inotify instances of this user are taken"
			st.Remedy = instanceLimit().remedy(1024)
		}
		w.setState(st)
		return reason, errors.New(st.Reason)
	}
	started := false
	defer func() { in.close(started) }()
	s := &session{
		w: w, in: in, id: id, dirs: newDirs(),
		out: map[string]error{}, mounts: map[string]bool{}, blind: blindness(w.path),
	}
	defer s.closeTree()
	in.start(&w.pause)
	started = true

	s.walk(ctx, step{})
	if s.end == nil && ctx.Err() == nil {
		w.m.markAll(time.Now(), reason)
		w.o.Log.InfoContext(ctx, "watched", "path", w.path, "directories", s.dirs.len(), "not watched", s.outs())
		s.publish()
		s.loop(ctx)
	}
	if s.end == nil {
		return reason, ctx.Err()
	}
	w.setState(State{Reason: s.end.reason})
	return s.end.reason, s.end
}

func (s *session) loop(ctx context.Context) {
	poll := time.NewTicker(s.w.o.Poll)
	defer poll.Stop()
	retry := time.NewTicker(s.w.o.Retry)
	defer retry.Stop()
	soon := time.NewTimer(0) // for what is adrift and for walks that are put off
	defer soon.Stop()
	armed := true // events without end do not put it off
	for s.end == nil && ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-s.in.ready:
			s.drain(ctx)
		case <-poll.C:
			s.checkRoot()
			if s.full && watchLimit().n > s.limit.n {
				s.again = "the limit on watches was raised"
			}
		case <-retry.C:
			s.retry(ctx)
		case <-soon.C:
			armed = false
			s.drain(ctx)
			s.purge()
		}
		if s.again != "" && s.end == nil && !time.Now().Before(s.againAfter) {
			s.walkAgain(ctx)
		}
		s.closeTree()
		s.publish()
		if !armed && (s.again != "" || len(s.dirs.adrift) > 0) {
			armed = true
			soon.Reset(adriftFor)
		}
	}
}

// checkRoot ends the session if the path leads elsewhere.
func (s *session) checkRoot() {
	id, err := identify(s.w.path)
	switch {
	case err != nil:
		s.end = &endError{"the directory cannot be looked at: " + err.Error()}
	case id != s.id:
		s.end = &endError{"another directory was in its place"}
	}
}

// drain deals with all that has been read.
func (s *session) drain(ctx context.Context) {
	if p := s.w.pause.Load(); p != nil && p.dealing != nil {
		<-p.dealing
	}
	read, lost, err := s.in.take()
	for _, b := range read {
		now := time.Now()
		for e, err := range events(b) {
			if err != nil {
				s.again = "the kernel sent events that cannot be read"
				break
			}
			s.event(ctx, e, now)
			if s.end != nil || ctx.Err() != nil {
				return
			}
		}
	}
	if lost {
		s.again = "events came faster than they could be dealt with"
	}
	if err != nil && s.end == nil {
		s.end = &endError{"reading events: " + err.Error()}
	}
}

// event marks what e is about. What has become of the name of a directory is not taken
// from e but looked up: there may be newer events about it, on their way.
func (s *session) event(ctx context.Context, e event, now time.Time) {
	switch {
	case e.mask&unix.IN_Q_OVERFLOW != 0:
		s.again = "the kernel's queue of events ran over (fs.inotify.max_queued_events)"
		return
	case e.mask&unix.IN_UNMOUNT != 0:
		s.end = &endError{"the file system was unmounted"}
		return
	}
	n, ok := s.dirs.byWD[e.wd]
	if !ok {
		return // a watch that was ended; if there is another, all was looked at after it began
	}
	dir, placed := s.dirs.pathTo(n)
	if e.mask&unix.IN_IGNORED != 0 {
		// It was removed, as its parent says too, or the kernel has taken the watch.
		if n == root {
			s.end = &endError{"the directory was removed"}
			return
		}
		s.dirs.remove(n)
		if placed {
			s.w.m.mark(now, dir, false)
		}
		return
	}
	if !placed {
		return // if it comes back, all of it is looked at
	}
	if len(e.name) == 0 {
		if e.mask&(unix.IN_MOVE_SELF|unix.IN_DELETE_SELF) != 0 {
			s.checkRoot()
		}
		if e.mask&unix.IN_ATTRIB != 0 {
			s.w.m.mark(now, dir, false)
		}
		return
	}
	name := string(e.name)
	path := join(dir, name)
	isDir := e.mask&unix.IN_ISDIR != 0
	const entries = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	child := s.dirs.lookup(n, name)
	if isDir && (e.mask&entries != 0 || child == 0) || !isDir && e.mask&entries != 0 && child != 0 {
		s.walk(ctx, step{parent: n, name: name})
	}
	if s.w.o.Excluded(path, isDir) {
		return
	}
	// What has come is looked at with all below even if it is watched in this place already:
	// it may have been away for a while, in which somebody has seen that it is gone.
	s.w.m.markAs(now, path, mark{
		tree:  isDir && e.mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0,
		moved: e.mask&(unix.IN_MOVED_FROM|unix.IN_MOVED_TO) != 0,
		ended: isDir && e.mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0,
	})
	if e.mask&entries != 0 {
		s.w.m.mark(now, dir, false) // its times
	}
}

// A step of a walk is a name to look at. The zero step is the root.
type step struct {
	parent int32
	name   string
	below  bool // a directory above is in the walk's tops
}

// walk looks at a name. If there is a directory that is not watched in this place, it and
// all below is: each directory from before it is listed, so that what is made in it is
// listed or told. They are marked when all of them are watched; were it sooner, they could
// be compared before.
func (s *session) walk(ctx context.Context, first step) { s.walkAll(ctx, first, false) }

func (s *session) walkAll(ctx context.Context, first step, again bool) {
	var tops []string
	for stack := []step{first}; len(stack) > 0 && s.end == nil && ctx.Err() == nil; {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if at.parent != 0 && s.dirs.all[at.parent].wd == 0 {
			continue // given up meanwhile
		}
		dir, placed := s.dirs.pathTo(at.parent)
		if at.parent == 0 {
			placed = true
		}
		if !placed {
			continue
		}
		path := join(dir, at.name)
		n, fresh, d := s.look(at, path)
		if fresh && !at.below {
			tops = append(tops, path)
		}
		if d == nil {
			continue
		}
		// Below what is new here all is, even if it is in the place that it had in there:
		// events about it may have come when its path was not known.
		if below := at.below || fresh; below || again {
			var err error
			stack, err = s.list(d, n, below, stack)
			if err != nil {
				s.leaveOut(path, err)
			}
		}
		d.Close()
	}
	now := time.Now()
	for _, path := range tops {
		if path != "" { // of the root, who has asked for it says why
			s.w.m.mark(now, path, true)
		}
	}
}

// look opens a directory and watches it. fresh says that it is new in this place, or that
// it cannot be watched and that is new: it is looked at once, then. d is nil if there is
// nothing to go on with.
func (s *session) look(at step, path string) (n int32, fresh bool, d *localfs.Dir) {
	old := int32(root)
	if at.parent != 0 {
		old = s.dirs.lookup(at.parent, at.name)
	} else if s.dirs.len() == 0 {
		old = 0
	}
	gone := func() {
		if old != 0 && old != root {
			s.dirs.cut(old)
		}
	}
	if path != "" && s.w.o.Excluded(path, true) {
		gone()
		return 0, false, nil
	}
	d, err := s.open(path)
	if s.end != nil {
		return 0, false, nil
	}
	if err == nil {
		mask := uint32(dirMask)
		if at.parent == 0 {
			mask = rootMask
		}
		var wd int32
		if wd, err = s.in.add(d.Fd(), mask); err == nil {
			n, known := s.dirs.byWD[wd]
			if !known {
				n = s.dirs.add(wd)
			}
			fresh = n != old
			switch {
			case at.parent == 0 || !fresh:
			case n == root || s.dirs.within(at.parent, n):
				// The place of the parent is an old one, so what was opened is
				// something else. There will be an event that says so.
				s.again = "directories were moved while they were looked at"
				d.Close()
				return 0, false, nil
			default:
				s.dirs.link(n, at.parent, at.name)
			}
			s.forgive(path)
			return n, fresh, d
		}
		d.Close()
	}
	gone()
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		s.forgive(path)
	case errors.Is(err, localfs.ErrMount), errors.Is(err, localfs.ErrSubvolume):
		s.forgive(path)
		if len(s.mounts) < maxNamed {
			s.mounts[path] = true
		}
	default:
		fresh = s.leaveOut(path, err)
	}
	return 0, fresh, nil
}

// list adds what may be directories in d, which is watched as n, to stack. What is
// watched as one of them and is not there has lost its place.
func (s *session) list(d *localfs.Dir, n int32, below bool, stack []step) ([]step, error) {
	if err := d.Rewind(); err != nil {
		return stack, err
	}
	var seen map[string]bool
	if s.dirs.all[n].first != 0 {
		seen = map[string]bool{}
	}
	for {
		es, err := d.ReadDir(4096)
		if err == io.EOF {
			break
		}
		if err != nil {
			return stack, err
		}
		for _, e := range es {
			if e.Kind != filetree.Dir && e.Kind != 0 {
				continue
			}
			stack = append(stack, step{n, e.Name, below})
			if seen != nil {
				seen[e.Name] = true
			}
		}
	}
	if seen != nil {
		for c := s.dirs.all[n].first; c != 0; {
			next := s.dirs.all[c].next
			if !seen[s.dirs.all[c].name] {
				s.dirs.cut(c)
			}
			c = next
		}
	}
	return stack, nil
}

// open opens a directory of the tree, and ends the session if the tree is another one.
func (s *session) open(path string) (*localfs.Dir, error) {
	if s.tree == nil {
		t, err := localfs.Open(s.w.path)
		if err != nil {
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.EACCES) {
				return nil, err
			}
			s.end = &endError{err.Error()}
			return nil, err
		}
		s.tree = t
		s.checkRoot()
		if st := t.Root().Look(); st.Ino != s.id.ino || st.Dev != s.id.dev {
			s.end = &endError{"another directory was in its place"}
		}
		if s.end != nil {
			return nil, s.end
		}
	}
	return s.tree.OpenDir(path)
}

func (s *session) closeTree() {
	if s.tree != nil {
		s.tree.Close()
		s.tree = nil
	}
}

// leaveOut remembers that path is not watched, and reports whether that is news.
func (s *session) leaveOut(path string, err error) bool {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
		if !s.full {
			s.full, s.limit = true, watchLimit()
		}
		err = errLimit
	}
	_, known := s.out[path]
	if !known && len(s.out) >= maxNamed {
		s.outMore++
		return true
	}
	s.out[path] = err
	return !known
}

var errLimit = errors.New("the limit on watches of this user is reached")

func (s *session) forgive(path string) {
	delete(s.out, path)
	delete(s.mounts, path)
}

func (s *session) outs() int { return len(s.out) + s.outMore }

// retry looks again at what is not watched.
func (s *session) retry(ctx context.Context) {
	paths := slices.Concat(slices.Collect(maps.Keys(s.out)), slices.Collect(maps.Keys(s.mounts)))
	more := s.outMore
	for _, path := range paths {
		if s.end != nil || ctx.Err() != nil {
			return
		}
		parent, name := split(path)
		n := s.dirs.find(parent)
		switch {
		case path == "":
			s.walk(ctx, step{})
			if s.dirs.len() > 0 && s.end == nil {
				s.w.m.markAll(time.Now(), "the directory could not be watched before")
			}
		case n == 0: // what it is in is gone, or is not watched itself
			s.forgive(path)
		default:
			s.walk(ctx, step{parent: n, name: name})
		}
	}
	if more > 0 && len(s.out) < maxNamed/2 {
		s.again = "more directories than can be named could not be watched before"
	}
}

// walkAgain walks everything. It makes all places right, whatever was lost.
func (s *session) walkAgain(ctx context.Context) {
	reason := s.again
	s.again = ""
	s.w.o.Log.WarnContext(ctx, "all is walked again", "path", s.w.path, "reason", reason)
	clear(s.out)
	clear(s.mounts)
	s.outMore, s.full = 0, false
	began := time.Now()
	s.walkAll(ctx, step{}, true)
	s.againAfter = time.Now().Add(3 * time.Since(began))
	s.w.m.markAll(time.Now(), reason)
}

// purge ends the watches of what has lost its place and was not found in another.
func (s *session) purge() {
	for len(s.dirs.adrift) > 0 {
		for n := range s.dirs.adrift {
			wd := s.dirs.all[n].wd
			s.dirs.remove(n) // sets adrift what is in it
			s.in.remove(wd)
		}
	}
}

func (s *session) publish() {
	if s.end != nil {
		return
	}
	st := State{Watching: s.dirs.len() > 0, Dirs: s.dirs.len(), Unwatched: s.outs(), Blind: s.blind}
	for path, err := range s.out {
		if len(st.Named) == stateNamed {
			break
		}
		st.Named = append(st.Named, Unwatched{path, err.Error()})
	}
	if !st.Watching {
		st.Reason = "the directory cannot be watched"
		if err := s.out[""]; err != nil {
			st.Reason = err.Error()
		}
	}
	if s.full {
		// How many directories there are is not known: what is below those that are
		// not watched was not looked at.
		st.Remedy = s.limit.remedy(1 << 20)
	}
	s.w.setState(st)
}

// Where limits are read: of the whole machine, and of the user namespace.
const (
	procWatches     = "/proc/sys/fs/inotify/max_user_watches"
	procInstances   = "/proc/sys/fs/inotify/max_user_instances"
	procNSWatches   = "/proc/sys/user/max_inotify_watches"
	procNSInstances = "/proc/sys/user/max_inotify_instances"
)

// A limit is what the kernel allows a user: the lower one of the machine's and the user
// namespace's.
type limit struct {
	n      uint64
	sysctl string // that sets it; "" if neither can be read
}

func readLimit(machine, machineCtl, user, userCtl string) limit {
	var l limit
	for _, c := range []struct{ file, sysctl string }{{machine, machineCtl}, {user, userCtl}} {
		b, err := os.ReadFile(c.file)
		if err != nil {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		if err == nil && (l.sysctl == "" || n < l.n) {
			l = limit{n, c.sysctl}
		}
	}
	return l
}

func watchLimit() limit {
	return readLimit(procWatches, "fs.inotify.max_user_watches", procNSWatches, "user.max_inotify_watches")
}

func instanceLimit() limit {
	return readLimit(procInstances, "fs.inotify.max_user_instances", procNSInstances, "user.max_inotify_instances")
}

// remedy returns the command that sets l to least, or to twice what it is.
func (l limit) remedy(least uint64) string {
	if l.sysctl == "" {
		return ""
	}
	return fmt.Sprintf("sysctl %s=%d", l.sysctl, max(2*l.n, least))
}

// blindness returns which changes below path no event tells of.
func blindness(path string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return ""
	}
	switch uint32(fs.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.CODA_SUPER_MAGIC,
		unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC, gfs2Magic, lustreMagic, vboxMagic:
		return "a network file system: changes made by other machines"
	case unix.FUSE_SUPER_MAGIC:
		return "FUSE: changes that its server makes by itself, or gets from other machines"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay: changes made in its layers"
	}
	return ""
}

// Not in package unix.
const (
	gfs2Magic   = 0x01161970
	lustreMagic = 0x0bd00bd0
	vboxMagic   = 0x786f4256
)
