package s3history

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history/store"
)

// ErrNoRepository is wrapped by Open when there is nothing at the address.
var ErrNoRepository = errors.New("no repository here")

// repoConfig is secrate.json. Nothing in it is secret.
type repoConfig struct {
	Format     int    `json:"secrate_format"`
	Repository string `json:"repository"`
	Created    string `json:"created"`
}

// maxConfig bounds secrate.json, in bytes.
const maxConfig = 64 << 10

// ReadRepoID returns the id of the repository in a store, or an error that wraps
// ErrNoRepository when there is none.
func ReadRepoID(ctx context.Context, s store.Store) (RepoID, error) {
	var id RepoID
	rc, err := s.Get(ctx, configKey, 0, -1)
	if errors.Is(err, store.ErrNotExist) {
		return id, fmt.Errorf("%s: %w", s, ErrNoRepository)
	} else if err != nil {
		return id, err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, maxConfig))
	if err != nil {
		return id, err
	}
	var c repoConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return id, fmt.Errorf("%s: %w: %w", configKey, ErrFormat, err)
	}
	if c.Format > FormatVersion {
		return id, fmt.Errorf("repository format %d: %w", c.Format, ErrNewer)
	}
	if err := parseHex(c.Repository, id[:]); err != nil {
		return id, fmt.Errorf("%s: repository: %w: %w", configKey, err, ErrFormat)
	}
	return id, nil
}

// InitRepository makes a repository in a store that has none, or returns the id of
// the one it has.
func InitRepository(ctx context.Context, s store.Store) (id RepoID, made bool, err error) {
	id, err = ReadRepoID(ctx, s)
	if err == nil || !errors.Is(err, ErrNoRepository) {
		return id, false, err
	}
	rand.Read(id[:])
	b, err := json.MarshalIndent(repoConfig{FormatVersion, id.String(), time.Now().UTC().Format(time.RFC3339)}, "", "  ")
	if err != nil {
		return id, false, err
	}
	b = append(b, '\n')
	err = s.Put(ctx, configKey, bytes.NewReader(b), int64(len(b)))
	if errors.Is(err, store.ErrExist) { // somebody was faster
		id, err = ReadRepoID(ctx, s)
		return id, false, err
	}
	if err != nil {
		return id, false, fmt.Errorf("upload %s: %w", configKey, err)
	}
	// A store without conditional writes may have let two through: what is there counts.
	id, err = ReadRepoID(ctx, s)
	return id, true, err
}

// keyFile is key-file: what keys/<writer>/<n> holds, sealed to the recipients.
type keyFile struct {
	Version uint64 `cbor:"1,keyasint"`
	Repo    []byte `cbor:"2,keyasint"`
	Writer  []byte `cbor:"3,keyasint"`
	Name    []byte `cbor:"4,keyasint"`
	Key     []byte `cbor:"5,keyasint"`
	Created int64  `cbor:"6,keyasint"` // seconds since 1970
}

// NewWriterIdentity makes a writer of a repository: its metadata key, sealed to the
// recipients, is stored twice before it is returned.
func NewWriterIdentity(ctx context.Context, s store.Store, repo RepoID, name string, to *seal.Recipients) (WriterIdentity, error) {
	var id [8]byte
	rand.Read(id[:])
	w := WriterIdentity{Repo: repo, ID: hex.EncodeToString(id[:]), Name: name, Key: seal.NewKey()}
	plain, err := encMode.Marshal(keyFile{FormatVersion, repo[:], []byte(w.ID), []byte(name), w.Key[:], time.Now().Unix()})
	if err != nil {
		return w, err
	}
	box, err := to.SealTo(plain)
	if err != nil {
		return w, err
	}
	for _, prefix := range keyPrefixes {
		key := prefix + w.ID + "/1"
		if err := s.Put(ctx, key, bytes.NewReader(box), int64(len(box))); err != nil {
			return w, fmt.Errorf("upload %s: %w", key, err)
		}
	}
	return w, nil
}

// A Repository is a store opened with identities: everything in it can be read.
type Repository struct {
	Store   store.Store
	ID      RepoID
	Writers []WriterIdentity // that the identities open, by id
	Sealed  []string         // ids of writers whose keys they do not open
}

// Open reads the keys of all writers. A damaged or foreign one does not hinder the
// others.
func Open(ctx context.Context, s store.Store, identities []age.Identity) (*Repository, error) {
	r := &Repository{Store: s}
	id, idErr := ReadRepoID(ctx, s)
	if idErr != nil && (errors.Is(idErr, store.ErrPermission) || !errors.Is(idErr, ErrNoRepository) && !errors.Is(idErr, ErrFormat)) {
		return nil, idErr
	}
	r.ID = id
	var found []WriterIdentity
	seen := map[string]bool{}
	opened := map[string]bool{}
	var problem error
	for _, prefix := range keyPrefixes {
		for o, err := range s.List(ctx, prefix) {
			if err != nil {
				return nil, err
			}
			writer, _, ok := strings.Cut(strings.TrimPrefix(o.Key, prefix), "/")
			if !ok || opened[writer] || o.Size > seal.MaxSealed {
				continue
			}
			seen[writer] = true
			w, err := openKey(ctx, s, o.Key, o.Size, identities)
			if err == nil && w.ID != writer {
				err = fmt.Errorf("%s: holds the key of writer %s: %w", o.Key, w.ID, ErrFormat)
			}
			if err != nil {
				problem = err
				continue
			}
			opened[writer] = true
			found = append(found, w)
		}
	}
	if idErr != nil && len(found) == 0 {
		return nil, idErr
	}
	// secrate.json may be lost or altered: the repository's id is in every key too.
	if len(found) > 0 && !slices.ContainsFunc(found, func(w WriterIdentity) bool { return w.Repo == id }) {
		r.ID = found[0].Repo
	}
	for _, w := range found {
		if w.Repo != r.ID {
			opened[w.ID] = false
			problem = fmt.Errorf("%s%s/1: is of repository %s: %w", keyPrefixes[0], w.ID, w.Repo, ErrFormat)
			continue
		}
		r.Writers = append(r.Writers, w)
	}
	for w := range seen {
		if !opened[w] {
			r.Sealed = append(r.Sealed, w)
		}
	}
	slices.Sort(r.Sealed)
	slices.SortFunc(r.Writers, func(a, b WriterIdentity) int { return strings.Compare(a.ID, b.ID) })
	if len(r.Writers) == 0 && problem != nil {
		return nil, fmt.Errorf("no key of %s can be opened: %w", s, problem)
	}
	return r, nil
}

func openKey(ctx context.Context, s store.Store, key string, size int64, identities []age.Identity) (w WriterIdentity, err error) {
	box, err := getRange(ctx, s, key, 0, size)
	if err != nil {
		return w, err
	}
	return parseKey(key, box, identities)
}

// parseKey opens the bytes of the key file of that name.
func parseKey(key string, box []byte, identities []age.Identity) (w WriterIdentity, err error) {
	plain, err := seal.OpenWith(identities, box)
	if err != nil {
		return w, fmt.Errorf("%s: %w", key, err)
	}
	var f keyFile
	if err := decMode.Unmarshal(plain, &f); err != nil {
		return w, fmt.Errorf("%s: %w: %w", key, ErrFormat, err)
	}
	if f.Version > FormatVersion {
		return w, fmt.Errorf("%s: %w", key, ErrNewer)
	}
	if len(f.Repo) != len(w.Repo) || len(f.Key) != len(w.Key) || len(f.Writer) != 16 {
		return w, fmt.Errorf("%s: %w", key, ErrFormat)
	}
	copy(w.Repo[:], f.Repo)
	copy(w.Key[:], f.Key)
	w.ID, w.Name = string(f.Writer), string(f.Name)
	return w, nil
}

// hashOf is the name that an object of those bytes has.
func hashOf(b []byte) [32]byte { return sha256.Sum256(b) }
