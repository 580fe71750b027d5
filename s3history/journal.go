package s3history

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/s3history/store"
)

// The journal remembers, over a crash, what is in the store and not yet named by any
// manifest. It is a directory of small files:
//
//	pack-<sha>.new   written before the pack is put: it may be in the store
//	pack-<sha>.done  renamed after: it is
//	segment-<sha>    a manifest segment that is in the store
//	kept-<source>    what Update.Keep has kept with the snapshot of commit-<source>
//	commit-<source>  the root that is about to be put: the snapshot is as good as made
//
// Losing a pack file costs an upload, losing a commit file (to a power cut, before it
// was synced) nothing, since the root is put after the sync.
type journal struct {
	dir string
	// leftover is what packs of earlier, unfinished runs hold, by content id.
	leftover map[[16]byte]leftoverSlice
	patches  map[[16]byte]leftoverSlice // and patches, by the id of their own bytes
	packs    []*leftoverPack
	mu       sync.Mutex // guards started
	started  []string   // files of the packs and segments of the update at work
}

type leftoverPack struct {
	pack catalog.Pack
	id   catalog.PackID // 0 until it is used
}

type leftoverSlice struct {
	pack                 *leftoverPack
	blob, offset, length uint32
}

// packFile is a pack-<sha> file.
type packFile struct {
	SHA    []byte       `cbor:"1,keyasint"`
	Size   int64        `cbor:"2,keyasint"`
	Key    []byte       `cbor:"3,keyasint"`
	Blobs  []uint32     `cbor:"4,keyasint"`
	Slices []indexEntry `cbor:"5,keyasint"`
	// Patches have no content id in Slices. Here they have that of their own bytes.
	Patches []indexEntry `cbor:"6,keyasint,omitempty"`
}

// commitFile is a commit-<source> file.
type commitFile struct {
	Name     string   `cbor:"1,keyasint"` // of the source
	Ident    string   `cbor:"2,keyasint"`
	Seq      uint64   `cbor:"3,keyasint"`
	Root     []byte   `cbor:"4,keyasint"` // the object
	Segments [][]byte `cbor:"5,keyasint"` // their names
	// Notes are what Update.SetNote was given, which no manifest tells.
	Notes map[string][]byte `cbor:"6,keyasint,omitempty"`
}

func openJournal(stateDir string) (*journal, error) {
	j := &journal{dir: filepath.Join(stateDir, "journal"), leftover: map[[16]byte]leftoverSlice{},
		patches: map[[16]byte]leftoverSlice{}}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return j, nil
}

// write makes a file of the journal, whole or not at all. Where sync is false a power
// cut may take it back; a crash of the process does not.
func (j *journal) write(name string, b []byte, sync bool) error {
	tmp := filepath.Join(j.dir, "tmp-"+name)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		crashpoint.Here("journal before " + name)
		err = os.Rename(tmp, filepath.Join(j.dir, name))
	}
	if err == nil && sync {
		err = syncDir(j.dir)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("journal: %w", err)
	}
	crashpoint.Here("journal after " + name)
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (j *journal) remove(name string) error {
	err := os.Remove(filepath.Join(j.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// packStarted notes a pack that is about to be put; done notes that it was.
func (j *journal) packStarted(p catalog.Pack, slices, patches []indexEntry) (done func() error, err error) {
	b, err := encMode.Marshal(packFile{p.SHA[:], p.Size, p.Key, flatBlobs(p.Blobs), slices, patches})
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("pack-%x", p.SHA)
	j.mu.Lock()
	j.started = append(j.started, name+".new", name+".done")
	j.mu.Unlock()
	if err := j.write(name+".new", b, false); err != nil {
		return nil, err
	}
	return func() error {
		if err := os.Rename(filepath.Join(j.dir, name+".new"), filepath.Join(j.dir, name+".done")); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		return nil
	}, nil
}

// keepUnused is how long packs that nothing has asked for are remembered.
const keepUnused = 90 * 24 * time.Hour

// load reads what earlier runs left. Packs that were put, or may have been and are
// found in the store, can be used; the others are forgotten.
func (j *journal) load(ctx context.Context, s store.Store, cat *catalog.DB) error {
	names, err := os.ReadDir(j.dir)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	for _, e := range names {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, "tmp-"):
			j.remove(name)
		case strings.HasPrefix(name, "pack-"):
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > keepUnused {
				j.remove(name)
				continue
			}
			if err := j.loadPack(ctx, s, name); err != nil {
				return err
			}
		}
	}
	return errors.Join(j.dropSegments(), j.dropKept(), j.dropKnown(cat))
}

// dropKept removes what was kept without coming to a commit: it must not go with another.
func (j *journal) dropKept() error {
	names, err := filepath.Glob(filepath.Join(j.dir, "kept-*"))
	for _, name := range names {
		ident := strings.TrimPrefix(filepath.Base(name), "kept-")
		if _, serr := os.Stat(filepath.Join(j.dir, "commit-"+ident)); errors.Is(serr, fs.ErrNotExist) {
			err = errors.Join(err, j.remove("kept-"+ident))
		}
	}
	return err
}

// dropSegments removes the segments that no commit waits for: they are sealed anew
// when they are made again.
func (j *journal) dropSegments() error {
	commits, err := j.commits()
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, c := range commits {
		for _, sha := range c.Segments {
			wanted[filepath.Join(j.dir, fmt.Sprintf("segment-%x", sha))] = true
		}
	}
	names, err := filepath.Glob(filepath.Join(j.dir, "segment-*"))
	for _, name := range names {
		if !wanted[name] {
			err = errors.Join(err, j.remove(filepath.Base(name)))
		}
	}
	return err
}

// dropKnown removes the files of packs that the catalog has, which a crash right after
// its commit leaves.
func (j *journal) dropKnown(cat *catalog.DB) error {
	for _, p := range j.packs {
		id, err := cat.PackNamed(p.pack.SHA)
		if err != nil {
			return err
		}
		if id != 0 {
			name := fmt.Sprintf("pack-%x", p.pack.SHA)
			if err := errors.Join(j.remove(name+".new"), j.remove(name+".done")); err != nil {
				return fmt.Errorf("journal: %w", err)
			}
		}
	}
	return nil
}

func (j *journal) loadPack(ctx context.Context, s store.Store, name string) error {
	b, err := os.ReadFile(filepath.Join(j.dir, name))
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	var f packFile
	if err := decMode.Unmarshal(b, &f); err != nil || len(f.SHA) != 32 {
		return j.remove(name) // cut by a power failure
	}
	p := &leftoverPack{pack: catalog.Pack{SHA: [32]byte(f.SHA), Size: f.Size, Key: f.Key}}
	if p.pack.Blobs, err = parseBlobs(f.Blobs); err != nil {
		return j.remove(name)
	}
	if strings.HasSuffix(name, ".new") {
		o, err := s.Stat(ctx, packKey(p.pack.SHA))
		switch {
		case errors.Is(err, store.ErrNotExist), errors.Is(err, store.ErrPermission), err == nil && o.Size != f.Size:
			return j.remove(name)
		case err != nil:
			return fmt.Errorf("look for pack %x: %w", f.SHA, err)
		}
	}
	j.packs = append(j.packs, p)
	for _, of := range []struct {
		slices []indexEntry
		in     map[[16]byte]leftoverSlice
	}{{f.Slices, j.leftover}, {f.Patches, j.patches}} {
		for _, s := range of.slices {
			if len(s.CID) == 16 {
				of.in[[16]byte(s.CID)] = leftoverSlice{p, s.Blob, s.Offset, s.Length}
			}
		}
	}
	return nil
}

// find returns where content is that an unfinished run uploaded.
func (j *journal) find(cat *catalog.DB, cid [16]byte) ([]catalog.Part, error) {
	return j.findIn(j.leftover, cat, cid)
}

// findPatch returns where a patch is that an unfinished run uploaded, by the id of its
// bytes.
func (j *journal) findPatch(cat *catalog.DB, id [16]byte) ([]catalog.Part, error) {
	return j.findIn(j.patches, cat, id)
}

func (j *journal) findIn(all map[[16]byte]leftoverSlice, cat *catalog.DB, id [16]byte) ([]catalog.Part, error) {
	s, ok := all[id]
	if !ok {
		return nil, nil
	}
	if s.pack.id == 0 {
		var err error
		if s.pack.id, err = cat.AddPack(s.pack.pack); err != nil {
			return nil, err
		}
	}
	return []catalog.Part{{Length: int64(s.length), Pack: s.pack.id, Blob: s.blob, Offset: s.offset}}, nil
}

// writeKept makes the file of what an update has kept, before the commit file: without
// that one nobody looks at it.
func (j *journal) writeKept(ident string, rows iter.Seq2[catalog.Kept, error]) error {
	f, err := os.OpenFile(filepath.Join(j.dir, "kept-"+ident), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 64<<10)
	e := encMode.NewEncoder(w)
	for k, err := range rows {
		if err == nil {
			err = e.Encode([2][]byte{k.Key, k.Value})
		}
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	crashpoint.Here("journal kept")
	return nil
}

// kept calls row with what writeKept has written; there may be no such file.
func (j *journal) kept(ident string, row func(key, value []byte) error) error {
	f, err := os.Open(filepath.Join(j.dir, "kept-"+ident))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	d := decMode.NewDecoder(bufio.NewReaderSize(f, 64<<10))
	for {
		var k [2][]byte
		if err := d.Decode(&k); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("journal: kept-%s: %w", ident, err)
		}
		if err := row(k[0], k[1]); err != nil {
			return err
		}
	}
}

// commits returns the snapshots that were as good as made.
func (j *journal) commits() ([]commitFile, error) {
	names, err := filepath.Glob(filepath.Join(j.dir, "commit-*"))
	if err != nil {
		return nil, err
	}
	var all []commitFile
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
		var c commitFile
		if err := decMode.Unmarshal(b, &c); err != nil {
			return nil, fmt.Errorf("journal: %s: %w", name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

func (j *journal) segment(name []byte) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(j.dir, fmt.Sprintf("segment-%x", name)))
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return b, nil
}

// committed forgets what the catalog has now. The commit file goes first; what a crash
// leaves of the others is content that is known twice.
func (j *journal) committed(ident string) error {
	if err := errors.Join(j.remove("commit-"+ident), j.remove("kept-"+ident)); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.mu.Lock()
	names := j.started
	j.started = nil
	j.mu.Unlock()
	for _, p := range j.packs {
		if p.id != 0 {
			names = append(names, fmt.Sprintf("pack-%x.new", p.pack.SHA), fmt.Sprintf("pack-%x.done", p.pack.SHA))
		}
	}
	for _, n := range names {
		if err := j.remove(n); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	return nil
}

// rolledBack forgets the numbers that packs had in a catalog transaction that is no
// more. What they hold can still be used by the next update, and what the one that was
// given up has put in the store, too.
func (j *journal) rolledBack() error {
	for _, p := range j.packs {
		p.id = 0
	}
	j.mu.Lock()
	names := j.started
	j.started = nil
	j.mu.Unlock()
	for _, name := range names {
		if !strings.HasSuffix(name, ".done") {
			continue
		}
		// Those that are still called new are looked for by the next process.
		if err := j.loadPack(context.Background(), nil, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(j.dropSegments(), j.dropKept())
}
