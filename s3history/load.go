package s3history

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history/store"
)

// An Index is what the manifests of one writer say without their segments: its
// sources and their snapshots.
type Index struct {
	store   store.Store
	writer  WriterIdentity
	Sources []IndexedSource
	// Problems are what is wrong with the history: manifests that are missing,
	// damaged or forked. What can be read is read all the same.
	Problems []error
}

// An IndexedSource is one source in an Index.
type IndexedSource struct {
	Name  string
	ident string
	roots []indexedRoot // by seq
	check []metaName    // checkpoints, by seq
}

type indexedRoot struct {
	name metaName
	size int64  // of the object
	obj  []byte // nil if it is read again when it is wanted
	root root   // without its body
}

// keepRoot is the size up to which a root is kept in memory once it is read.
const keepRoot = 8 << 10

// Snapshots returns what can be said of the source's snapshots, in order.
func (s *IndexedSource) Snapshots() []Snapshot {
	var out []Snapshot
	for _, r := range s.roots {
		out = append(out, r.snapshot(s.Name))
	}
	return out
}

func (r *indexedRoot) snapshot(source string) Snapshot {
	s := Snapshot{Source: source, Seq: r.root.Seq, Root: r.name.sha, Partial: r.root.Flags&flagPartial != 0,
		Files: r.root.Stats.Files, Bytes: r.root.Stats.Bytes,
		Manifest: r.root.manifestSize(r.size),
		Objects:  int(r.root.Stats.Packs) + len(metaPrefixes)*(1+len(r.root.Segments)),
		Info: SnapshotInfo{Time: filetree.Time{Sec: r.root.Time[0], Nsec: uint32(r.root.Time[1])},
			Origin: string(r.root.Origin), Host: string(r.root.Host)}}
	copy(s.Info.GUID[:], r.root.GUID)
	s.Uploaded = int64(r.root.Stats.PackBytes) + int64(len(metaPrefixes))*s.Manifest
	return s
}

// parallelRoots is how many roots are read at once.
const parallelRoots = 16

// ReadIndex reads all roots of a writer.
func ReadIndex(ctx context.Context, s store.Store, w WriterIdentity) (*Index, error) {
	x := &Index{store: s, writer: w}
	names := map[metaName]bool{}
	var listErrs []error
	for _, prefix := range metaPrefixes {
		for o, err := range s.List(ctx, prefix+w.ID+"/") {
			if err != nil {
				listErrs = append(listErrs, err)
				break
			}
			n, err := parseMetaName(o.Key[len(prefix):])
			if err != nil {
				x.Problems = append(x.Problems, err)
				continue
			}
			names[n] = true
		}
	}
	if len(listErrs) == len(metaPrefixes) {
		return nil, listErrs[0]
	}
	x.Problems = append(x.Problems, listErrs...)
	bySource := map[string][]metaName{}
	for n := range names {
		if n.kind != kindSegment {
			bySource[n.source] = append(bySource[n.source], n)
		}
	}
	for _, ident := range slices.Sorted(maps.Keys(bySource)) {
		if err := x.readSource(ctx, ident, bySource[ident]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(x.Sources, func(a, b IndexedSource) int { return cmp.Compare(a.Name, b.Name) })
	return x, nil
}

func (x *Index) readSource(ctx context.Context, ident string, names []metaName) error {
	src := IndexedSource{ident: ident}
	var mu sync.Mutex // guards src and x.Problems
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelRoots)
	for _, n := range names {
		if n.kind == kindCheckpoint {
			src.check = append(src.check, n)
			continue
		}
		g.Go(func() error {
			r := indexedRoot{name: n}
			obj, err := readManifest(gctx, x.store, n)
			mu.Lock() // one is decoded at a time: it may need many times its size
			defer mu.Unlock()
			if err == nil {
				r.root, err = x.openRoot(n, obj)
				r.root.Body = nil
				r.size = int64(len(obj))
				if len(obj) <= keepRoot {
					r.obj = obj
				}
			}
			switch {
			case gctx.Err() != nil:
				return gctx.Err()
			case err != nil:
				x.Problems = append(x.Problems, fmt.Errorf("manifest of #%d: %w", n.seq, err))
			default:
				src.roots = append(src.roots, r)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortFunc(src.roots, func(a, b indexedRoot) int {
		return cmp.Or(cmp.Compare(a.name.seq, b.name.seq), slices.Compare(a.name.sha[:], b.name.sha[:]))
	})
	slices.SortFunc(src.check, func(a, b metaName) int { return cmp.Compare(a.seq, b.seq) })
	if len(src.roots) > 0 {
		src.Name = string(src.roots[0].root.Source)
	} else if name, err := x.checkpointName(ctx, src.check); err == nil {
		src.Name = name
	} else {
		x.Problems = append(x.Problems, fmt.Errorf("source %s: no manifest can be read", ident))
		return nil
	}
	x.findForks(&src)
	x.Sources = append(x.Sources, src)
	return nil
}

func (x *Index) openRoot(n metaName, obj []byte) (r root, err error) {
	place := metaPlace{x.writer.Repo, n.writer, n.source, n.seq, labelRoot, 0}
	if err := openManifest(x.writer.Key, place, obj, &r); err != nil {
		return r, err
	}
	return r, r.check(place)
}

func (x *Index) checkpointName(ctx context.Context, names []metaName) (string, error) {
	err := error(filetree.ErrNotExist)
	for _, n := range names {
		var r root
		if _, r, err = x.readCheckpoint(ctx, n); err == nil {
			return string(r.Source), nil
		}
	}
	return "", err
}

// findForks drops, of several roots with one number, those that the next root does not
// follow, and says so.
func (x *Index) findForks(src *IndexedSource) {
	var groups [][]indexedRoot // of one number each
	for _, r := range src.roots {
		if k := len(groups); k > 0 && groups[k-1][0].name.seq == r.name.seq {
			groups[k-1] = append(groups[k-1], r)
		} else {
			groups = append(groups, []indexedRoot{r})
		}
	}
	// From the newest back, so that what is taken is one chain.
	src.roots = make([]indexedRoot, len(groups))
	for i := len(groups) - 1; i >= 0; i-- {
		g := groups[i]
		pick := -1
		if i+1 < len(groups) {
			pick = slices.IndexFunc(g, func(r indexedRoot) bool { return bytes.Equal(src.roots[i+1].root.Prev, r.name.sha[:]) })
		}
		if pick < 0 && i > 0 {
			pick = slices.IndexFunc(g, func(r indexedRoot) bool {
				return slices.ContainsFunc(groups[i-1], func(p indexedRoot) bool { return bytes.Equal(r.root.Prev, p.name.sha[:]) })
			})
		}
		src.roots[i] = g[max(pick, 0)]
	}
	last := uint64(0)
	for i, r := range src.roots {
		seq := r.name.seq
		if len(groups[i]) > 1 {
			var others []string
			for _, o := range groups[i] {
				if o.name != r.name {
					others = append(others, metaPrefixes[0]+o.name.String())
				}
			}
			x.Problems = append(x.Problems, fmt.Errorf("%s: the history is forked: of #%d, %s is taken, and there is %s",
				src.Name, seq, metaPrefixes[0]+r.name.String(), strings.Join(others, ", ")))
		}
		switch {
		case seq == last+2:
			x.Problems = append(x.Problems, fmt.Errorf("%s: #%d is missing", src.Name, seq-1))
		case seq > last+2:
			x.Problems = append(x.Problems, fmt.Errorf("%s: #%d to #%d are missing", src.Name, last+1, seq-1))
		case i > 0 && !bytes.Equal(r.root.Prev, src.roots[i-1].name.sha[:]):
			x.Problems = append(x.Problems, fmt.Errorf("%s: #%d does not follow the #%d that is stored: the history was changed", src.Name, seq, last))
		}
		last = seq
	}
}

// readManifest reads a manifest object, from the first place that has it whole.
func readManifest(ctx context.Context, s store.Store, n metaName) ([]byte, error) {
	var errs []error
	for _, prefix := range metaPrefixes {
		obj, err := getObject(ctx, s, prefix+n.String(), n.sha, maxManifestObj)
		if err == nil {
			return obj, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (x *Index) readCheckpoint(ctx context.Context, n metaName) (obj []byte, r root, err error) {
	if obj, err = readManifest(ctx, x.store, n); err != nil {
		return nil, r, err
	}
	place := metaPlace{x.writer.Repo, n.writer, n.source, n.seq, labelCheckpoint, 0}
	if err := openManifest(x.writer.Key, place, obj, &r); err != nil {
		return nil, r, err
	}
	if r.Flags&flagCheckpoint == 0 {
		return nil, r, fmt.Errorf("%s is no checkpoint: %w", n, ErrFormat)
	}
	return obj, r, r.check(place)
}

// A LoadStep says how far Load has come.
type LoadStep func(source string, seq, of uint64)

// LoadAll brings the whole history of a source into a catalog, in a transaction of
// its own. What is missing is healed by the next checkpoint.
func (x *Index) LoadAll(ctx context.Context, db *catalog.DB, src *IndexedSource, step LoadStep) (catalog.Source, error) {
	return x.load(ctx, db, src, 1, lastSeq(src), step)
}

// LoadAt brings as much of a source's history into a catalog as is needed to know its
// state at snapshot seq.
func (x *Index) LoadAt(ctx context.Context, db *catalog.DB, src *IndexedSource, seq uint64, step LoadStep) (catalog.Source, error) {
	return x.load(ctx, db, src, seq, seq, step)
}

// LoadBetween brings as much of a source's history into a catalog as is needed to know its
// states from one snapshot to another.
func (x *Index) LoadBetween(ctx context.Context, db *catalog.DB, src *IndexedSource, from, to uint64, step LoadStep) (catalog.Source, error) {
	return x.load(ctx, db, src, from, to, step)
}

func lastSeq(src *IndexedSource) uint64 {
	last := uint64(0)
	if n := len(src.roots); n > 0 {
		last = src.roots[n-1].name.seq
	}
	if n := len(src.check); n > 0 {
		last = max(last, src.check[n-1].seq)
	}
	return last
}

// load makes the catalog know the states at from and all after it up to to. Where
// something is missing, what follows is brought into the state before it as well as
// can be, until a full snapshot or a checkpoint says all.
func (x *Index) load(ctx context.Context, db *catalog.DB, src *IndexedSource, from, to uint64, step LoadStep) (catalog.Source, error) {
	source, err := db.AddSource(x.writer.ID, src.ident, src.Name)
	if err != nil {
		return source, err
	}
	if err := db.Begin(); err != nil {
		return source, err
	}
	defer db.Rollback()
	have := uint64(0) // the state in the catalog; 0 is the empty one
	torn := false     // something is missing in it
	if n, err := x.startAt(ctx, db, source, src, from); err != nil {
		return source, err
	} else if n > 0 {
		have = n
	}
	object, stop := x.rootObjects(ctx, src, have, to)
	defer stop()
	for i := range src.roots {
		r := &src.roots[i]
		seq := r.name.seq
		if seq <= have || seq > to {
			continue
		}
		full := r.root.Flags&flagFull != 0
		if (torn || seq != have+1) && !full {
			// Something is missing before it: a checkpoint may know better.
			n, err := x.startAt(ctx, db, source, src, seq)
			if err != nil {
				return source, err
			}
			if n > have {
				have, torn = n, false
			}
			if seq <= have {
				continue
			}
			if seq != have+1 {
				x.Problems = append(x.Problems, fmt.Errorf("%s: state at #%d: a manifest before it is missing; files changed there are shown as they were", src.Name, seq))
				torn = true
			}
		}
		if step != nil {
			step(src.Name, seq, to)
		}
		var unknown *int
		if torn && !full {
			unknown = new(int)
		}
		obj, err := object(r)
		if err == nil {
			err = x.applySeq(ctx, db, source, r, obj, unknown)
		}
		if err != nil {
			if ctx.Err() != nil {
				return source, ctx.Err()
			}
			x.Problems = append(x.Problems, fmt.Errorf("%s: #%d: %w", src.Name, seq, err))
			continue
		}
		have, torn = seq, torn && !full
	}
	// What is missing at the end may be in a checkpoint.
	if have < to {
		if _, err := x.startAt(ctx, db, source, src, to); err != nil {
			return source, err
		}
	}
	return source, db.Commit()
}

// startAt brings the catalog to the newest checkpoint at or before seq, if that is
// newer than what it has, and returns its number; 0 when there is none.
func (x *Index) startAt(ctx context.Context, db *catalog.DB, source catalog.Source, src *IndexedSource, seq uint64) (uint64, error) {
	head, err := db.Head(source.ID)
	if err != nil {
		return 0, err
	}
	for _, n := range slices.Backward(src.check) {
		if n.seq > seq || n.seq <= head.Seq {
			continue
		}
		obj, r, err := x.readCheckpoint(ctx, n)
		if err == nil {
			err = x.apply(ctx, db, source, &r, obj, labelCheckpoint, nil)
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err != nil {
			x.Problems = append(x.Problems, fmt.Errorf("%s: checkpoint #%d: %w", src.Name, n.seq, err))
			continue
		}
		return n.seq, nil
	}
	return 0, nil
}

// rootObjects returns what gives the objects of the roots after from up to to, of which
// some may be left out, in their order. What is not in memory is read ahead. The caller
// calls stop at the end.
func (x *Index) rootObjects(ctx context.Context, src *IndexedSource, from, to uint64) (object func(r *indexedRoot) ([]byte, error), stop func()) {
	var read []*indexedRoot
	for i := range src.roots {
		if r := &src.roots[i]; r.obj == nil && r.name.seq > from && r.name.seq <= to {
			read = append(read, r)
		}
	}
	next, stop := iter.Pull2(ahead(ctx, len(read), func(ctx context.Context, i int) ([]byte, error) {
		return readManifest(ctx, x.store, read[i].name)
	}))
	n := 0
	return func(r *indexedRoot) ([]byte, error) {
		if r.obj != nil {
			return r.obj, nil
		}
		for {
			obj, err, _ := next()
			if n++; read[n-1] == r {
				return obj, err
			}
		}
	}, stop
}

// applySeq is apply for a root of the index, of which obj is the object.
func (x *Index) applySeq(ctx context.Context, db *catalog.DB, source catalog.Source, r *indexedRoot, obj []byte, unknown *int) error {
	whole, err := x.openRoot(r.name, obj)
	if err != nil {
		return err
	}
	if unknown != nil {
		// The root directory may have been told by what is missing.
		v := db.At(source.ID, r.name.seq)
		if _, err := v.Attr(filetree.RootNode); errors.Is(err, filetree.ErrNotExist) {
			if err := v.AddNode(filetree.RootNode, &filetree.Attr{Kind: filetree.Dir, Mode: 0o755}); err != nil {
				return err
			}
		}
	}
	if err := x.apply(ctx, db, source, &whole, obj, labelRoot, unknown); err != nil {
		return err
	}
	if unknown != nil && *unknown > 0 {
		x.Problems = append(x.Problems, fmt.Errorf("%s: #%d: changes of %d files are left out: only what is missing told of them", source.Name, r.name.seq, *unknown))
	}
	return nil
}

func (x *Index) apply(ctx context.Context, db *catalog.DB, source catalog.Source, r *root, obj []byte, label string, unknown *int) error {
	place := metaPlace{x.writer.Repo, source.Writer, source.Ident, r.Seq, label, 0}
	if err := db.Savepoint(); err != nil {
		return err
	}
	_, err := applyRoot(ctx, db, source, x.writer.Key, place, r, obj, func(ctx context.Context, ref segmentRef) ([]byte, error) {
		return readManifest(ctx, x.store, metaName{source.Writer, source.Ident, r.Seq, kindSegment, [32]byte(ref.SHA)})
	}, unknown)
	return errors.Join(err, db.Release(err == nil))
}

// objects yields the names of all manifest objects that the history has or refers to.
// An error says that those a checkpoint refers to are not known.
func (x *Index) objects(ctx context.Context, src *IndexedSource) iter.Seq2[metaName, error] {
	return func(yield func(metaName, error) bool) {
		with := func(n metaName, segments []segmentRef) bool {
			if !yield(n, nil) {
				return false
			}
			for _, s := range segments {
				if !yield(metaName{n.writer, n.source, n.seq, kindSegment, [32]byte(s.SHA)}, nil) {
					return false
				}
			}
			return true
		}
		for _, r := range src.roots {
			if !with(r.name, r.root.Segments) {
				return
			}
		}
		for _, n := range src.check {
			_, r, err := x.readCheckpoint(ctx, n)
			if err != nil {
				r.Segments = nil
			}
			if !with(n, r.Segments) || err != nil && !yield(n, err) {
				return
			}
		}
	}
}
