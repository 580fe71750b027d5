// Package dir keeps objects as files under a directory, which may be on another
// disk, a NAS, or a medium that is carried away.
//
//	DIR/packs/3f/3f00…   an object: its key is its path
//	DIR/~tmp/…           objects that are being written; no key can start so
//
// An object is written to a file in ~tmp, synced, linked to its final name, and
// the directory is synced: two syncs an object, and a few more when a directory
// is new. A link never replaces a file, so that of two who put one key one wins,
// whatever process or host they are in. A crash at any moment leaves either no
// object or a whole one, and perhaps a file in ~tmp, which [Open] removes when it
// is a day old.
//
// The file system is trusted to keep what it has synced. Directories are made
// with mode 0700 and files with 0400, since no one changes them again. All access
// is by [os.Root]: a symbolic link in the directory leads nowhere outside of it,
// and is no object itself.
//
// Two limits are the file system's: a component of a key is at most 255 bytes
// long, and no key may be another's directory, such as a and a/b.
package dir

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/s3history/store"
)

const (
	// tmpDir is where objects are written. A tilde is in no key.
	tmpDir = "~tmp"
	// staleAfter is how long a file in tmpDir may go unwritten before it counts
	// as left by a crash.
	staleAfter = 24 * time.Hour
	// copySize is how much is written between two looks at the context.
	copySize = 1 << 20
)

// A Store is a directory of objects. It implements [store.Store] and [store.Prober].
type Store struct {
	root *os.Root
	path string

	mu    sync.Mutex      // guards ready, and is held while directories are made
	ready map[string]bool // directories whose names are known to be on the disk
}

// Create makes the directory at path, unless it exists, and opens it.
func Create(path string) (*Store, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, explain("open", "", path, err)
	}
	// The directories above it may be new too. Syncing costs little if not.
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		err := syncPath(filepath.Dir(p))
		if p == filepath.Dir(p) || errors.Is(err, fs.ErrPermission) {
			break // what we may not read we did not make
		}
		if err != nil {
			return nil, explain("open", "", path, err)
		}
	}
	return Open(path)
}

// Open opens the directory at path, which must exist: what is missing may be a
// disk that is not mounted, and then nothing must be written in its place.
func Open(path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, explain("open", "", path, err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, explain("open", "", path, err)
	}
	s := &Store{root: root, path: path, ready: map[string]bool{".": true}}
	s.removeStale()
	return s, nil
}

// Close gives the directory back. The Store is not used afterwards.
func (s *Store) Close() error { return s.root.Close() }

// String is the directory's path as a URL.
func (s *Store) String() string {
	u := url.URL{Scheme: "file", Path: s.path}
	return u.String()
}

// Put implements [store.Store]. It never replaces an object.
func (s *Store) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if err := s.put(ctx, key, r, size); err != nil {
		return explain("put", key, s.String(), err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	// Most objects that exist already are found here, before they are written.
	if _, err := s.root.Lstat(key); err == nil {
		return s.taken(key)
	}
	tmp, err := s.write(ctx, r, size)
	if err != nil {
		return err
	}
	// From here on a crash leaves the file in ~tmp behind, at worst.
	defer s.root.Remove(tmp)

	if err := s.mkdir(path.Dir(key)); err != nil {
		return err
	}
	crashpoint.HereKey("put before", key)
	// The object appears under its key, whole, or not at all.
	err = s.publish(tmp, key)
	if errors.Is(err, fs.ErrExist) {
		return s.taken(key)
	}
	if err != nil {
		return err
	}
	crashpoint.HereKey("put unsynced", key)
	// A power cut before this may take the name away again, not the bytes.
	if err := s.sync(path.Dir(key)); err != nil {
		return err
	}
	crashpoint.HereKey("put after", key)
	return nil
}

// taken is the error for a key that has an object. Whoever put it may not have
// synced its name yet, and the caller will rely on it.
func (s *Store) taken(key string) error {
	fi, err := s.root.Lstat(key)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("the place of the object is taken by a %s", typeName(fi.Mode()))
	}
	for d := path.Dir(key); ; d = path.Dir(d) {
		if err := s.sync(d); err != nil {
			return err
		}
		if d == "." {
			return store.ErrExist
		}
	}
}

// write writes size bytes of r to a new file in ~tmp and syncs it.
func (s *Store) write(ctx context.Context, r io.ReaderAt, size int64) (tmp string, err error) {
	name := path.Join(tmpDir, rand.Text())
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.root.Mkdir(tmpDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		f, err = s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	}
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			s.root.Remove(name)
		}
	}()
	section := io.NewSectionReader(r, 0, size)
	buf := make([]byte, min(size, copySize))
	for left := size; ; {
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		if left == 0 {
			break
		}
		n, err := io.ReadFull(section, buf[:min(left, copySize)])
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", fmt.Errorf("read what is to be put: %w", err)
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return "", err
		}
		left -= int64(n)
	}
	return name, f.Sync()
}

// publish gives the file tmp the name key, unless that is taken.
func (s *Store) publish(tmp, key string) error {
	err := s.root.Link(tmp, key)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	// FAT, some network and some user-space file systems have no hard links.
	if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EMLINK) {
		return err
	}
	err = renameNoReplace(s.root, tmp, key)
	if err == nil || !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	// Without either, two processes that put one key at the same moment both
	// succeed and the later object stays. Within this one the lock forbids it.
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.root.Lstat(key); err == nil {
		return fs.ErrExist
	}
	return s.root.Rename(tmp, key)
}

// mkdir makes the directory d, and sees to it that a power cut does not take it
// away again. It asks the disk once for each directory: another process may have
// made it and crashed before it synced.
func (s *Store) mkdir(d string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mkdirLocked(d)
}

func (s *Store) mkdirLocked(d string) error {
	if s.ready[d] {
		return nil
	}
	parent := path.Dir(d)
	if err := s.mkdirLocked(parent); err != nil {
		return err
	}
	if err := s.root.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.sync(parent); err != nil {
		return err
	}
	s.ready[d] = true
	return nil
}

// sync writes the names in the directory d to the disk.
func (s *Store) sync(d string) error {
	f, err := s.root.Open(d)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(f), f.Close())
}

func syncPath(d string) error {
	f, err := os.Open(d)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(f), f.Close())
}

// syncDir is f.Sync, but for file systems on which directories cannot be synced
// because they have nothing to sync: they answer EINVAL or ENOTSUP.
func syncDir(f *os.File) error {
	err := f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// removeStale removes what crashes have left in ~tmp. It is no error if it
// cannot: the store may be read-only.
func (s *Store) removeStale() {
	d, err := s.root.Open(tmpDir)
	if err != nil {
		return
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && time.Since(fi.ModTime()) > staleAfter {
			s.root.Remove(path.Join(tmpDir, e.Name()))
		}
	}
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := s.get(ctx, key, off, n)
	if err != nil {
		return nil, explain("get", key, s.String(), err)
	}
	return r, nil
}

func (s *Store) get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := cmp.Or(store.CheckKey(key), store.CheckRange(off, n), context.Cause(ctx)); err != nil {
		return nil, err
	}
	fi, err := s.root.Lstat(key)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, notRegular(fi.Mode())
	}
	// Nonblocking, so that a pipe that has just taken its place does not hold us up.
	f, err := s.root.OpenFile(key, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err = f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = notRegular(fi.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if n < 0 {
		n = max(fi.Size()-off, 0)
	}
	if off > fi.Size() || n > fi.Size()-off {
		return nil, errors.Join(fmt.Errorf("%d bytes from %d on of %d: %w", n, off, fi.Size(), io.ErrUnexpectedEOF), f.Close())
	}
	return &reader{ctx: ctx, f: f, left: n, r: io.NewSectionReader(f, off, n)}, nil
}

// A reader is one Get, whose context ends it.
type reader struct {
	ctx  context.Context
	f    *os.File
	r    *io.SectionReader
	left int64
}

func (r *reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	if err == io.EOF && r.left > 0 {
		err = io.ErrUnexpectedEOF // the file was cut since it was opened
	}
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }

// Stat implements [store.Store].
func (s *Store) Stat(ctx context.Context, key string) (store.Object, error) {
	err := cmp.Or(store.CheckKey(key), context.Cause(ctx))
	if err != nil {
		return store.Object{}, explain("stat", key, s.String(), err)
	}
	fi, err := s.root.Lstat(key)
	if err == nil && !fi.Mode().IsRegular() {
		err = notRegular(fi.Mode())
	}
	if err != nil {
		return store.Object{}, explain("stat", key, s.String(), err)
	}
	return store.Object{Key: key, Size: fi.Size()}, nil
}

// List implements [store.Store]. It holds the names of one directory at a time,
// and of those above it. Files whose names no key can have are left out.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		fail := func(err error) {
			yield(store.Object{}, explain("list", prefix, s.String(), err))
		}
		if err := store.CheckPrefix(prefix); err != nil {
			fail(err)
			return
		}
		dir := path.Dir(prefix + "x")
		if _, err := s.walk(ctx, dir, prefix, yield); err != nil {
			fail(err)
		}
	}
}

// walk yields what is under the directory d and starts with prefix. It reports
// whether the listing goes on.
func (s *Store) walk(ctx context.Context, d, prefix string, yield func(store.Object, error) bool) (bool, error) {
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	f, err := s.root.OpenFile(d, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	entries, err := s.entries(f, d, prefix)
	if err = errors.Join(err, f.Close()); err != nil {
		if errors.Is(err, syscall.ENOTDIR) {
			return true, nil
		}
		return false, err
	}
	// A directory takes the place in key order that its name and a slash have.
	sortName := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(sortName(a), sortName(b)) })
	for _, e := range entries {
		key := path.Join(d, e.Name())
		if store.CheckKey(key) != nil {
			continue
		}
		if e.IsDir() {
			if sub := key + "/"; !strings.HasPrefix(sub, prefix) && !strings.HasPrefix(prefix, sub) {
				continue
			}
			if on, err := s.walk(ctx, key, prefix, yield); !on || err != nil {
				return false, err
			}
			continue
		}
		if !e.Type().IsRegular() || !strings.HasPrefix(key, prefix) {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		fi, err := e.Info()
		if err != nil {
			return false, err
		}
		if !yield(store.Object{Key: key, Size: fi.Size()}, nil) {
			return false, nil
		}
	}
	return true, nil
}

// entries returns what is in the directory d that may be under prefix. To look at all is no small
// thing where one object among many thousands is asked for.
func (s *Store) entries(f *os.File, d, prefix string) ([]fs.DirEntry, error) {
	if prefix == "" || strings.HasSuffix(prefix, "/") || path.Dir(prefix) != d {
		return f.ReadDir(-1)
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var some []fs.DirEntry
	for _, name := range names {
		if !strings.HasPrefix(name, path.Base(prefix)) {
			continue
		}
		fi, err := s.root.Lstat(path.Join(d, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		some = append(some, fs.FileInfoToDirEntry(fi))
	}
	return some, nil
}

// Probe implements [store.Prober].
func (s *Store) Probe(ctx context.Context, prefix string) (store.Capabilities, error) {
	c := store.Capabilities{
		Put: store.No, Get: store.Unknown, List: store.Unknown,
		ConditionalPut: store.Unknown, Range: store.Yes, ObjectLock: "none", Versioning: "off",
	}
	content := []byte("secrate probe\n")
	key := fmt.Sprintf("%s/%x", prefix, sha256.Sum256(content))
	err := s.Put(ctx, key, bytes.NewReader(content), int64(len(content)))
	switch {
	case err == nil || errors.Is(err, store.ErrExist):
		c.Put = store.Yes
	case errors.Is(err, store.ErrPermission):
		c.Detail = append(c.Detail, err.Error())
		return c, nil
	default:
		return c, err
	}
	if r, err := s.Get(ctx, key, 0, -1); err == nil {
		c.Get = store.Yes
		r.Close()
	}
	c.List = store.Yes
	for _, err := range s.List(ctx, prefix+"/") {
		if err != nil {
			c.List = store.Unknown
		}
	}
	// Linking over a name that is taken says whether the file system has links.
	switch err := s.root.Link(key, key); {
	case errors.Is(err, fs.ErrExist):
		c.ConditionalPut = store.Yes
	default:
		c.Detail = append(c.Detail, fmt.Sprintf("no hard links: %v", err))
	}
	return c, nil
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "special file"
}

// notRegular is the error for something else in the place of an object.
func notRegular(m fs.FileMode) error {
	return fmt.Errorf("%w: a %s is in its place", store.ErrNotExist, typeName(m))
}

// explain says in the store's own terms what the file system said.
func explain(op, key, at string, err error) error {
	e := &store.Error{Op: op, Key: key, At: at, Err: err}
	if pe, ok := errors.AsType[*fs.PathError](err); ok && op == "open" {
		e.Err = pe.Err // the path is the address, and named already
	}
	switch {
	case op == "open" && errors.Is(err, fs.ErrNotExist):
		e.Err = fmt.Errorf("there is no such directory: %w", store.ErrNotExist)
		e.Hint = "is the disk mounted? A new destination needs its directory made first"
	case errors.Is(err, fs.ErrNotExist), op != "put" && errors.Is(err, syscall.ENOTDIR):
		e.Err = store.ErrNotExist
	case errors.Is(err, syscall.ENOTDIR):
		e.Err = errors.New("a component of the key is an object already")
	case errors.Is(err, fs.ErrPermission):
		e.Err = fmt.Errorf("%w: %w", store.ErrPermission, err)
		e.Hint = "the directory must belong to the user that secrate runs as"
	case errors.Is(err, syscall.EROFS):
		e.Err = fmt.Errorf("%w: %w", store.ErrPermission, err)
		e.Hint = "the file system is mounted read-only; after an error of the disk the kernel does that by itself, see dmesg"
	case errors.Is(err, syscall.ENOSPC):
		e.Hint = "the disk is full, or out of inodes: see df and df -i. secrate deletes nothing; make room or add a destination"
	case errors.Is(err, syscall.EDQUOT):
		e.Hint = "the quota of this user or dataset is used up; raise it or add a destination"
	case errors.Is(err, syscall.EIO):
		e.Hint = "the disk reports an error: see dmesg and smartctl"
	case errors.Is(err, syscall.ESTALE):
		e.Hint = "the network file system was exported or mounted anew; mount it again"
	}
	return e
}
