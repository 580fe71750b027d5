// Package s3history is the history: every version of every file of a source, in
// objects that are written once and never changed.
//
//	secrate.json                              format version, repository id
//	keys/<writer>/<n>                         a writer's metadata key, sealed to the recipients
//	packs/<2 hex>/<sha256>                    data: a sealed key, blobs, an index
//	meta/<writer>/<source>/<seq>-<sha256>     manifest: the root of one snapshot
//	meta/<writer>/<source>/<seq>s-<sha256>    a segment of it, when it is large
//	meta/<writer>/<source>/<seq>c-<sha256>    checkpoint: the root of a whole state
//	keys2/…, meta2/…                          the second copy of every key and manifest
//
// A manifest is a list of node records; what they mean is said by package catalog,
// whose tables they become. A [Writer] makes snapshots through an [Update]:
//
//	changes ─► Update ─┬─► solid blobs ─► compress, seal ─► packs ─┐
//	                   └─► catalog rows ─► node records ─► segments ┴─► root, last
//
// A [Reader] needs identities and a store, and makes a catalog from manifests; on the
// writer the catalog is at hand. docs/format.md specifies every byte.
//
// The order of writes is the commit: packs, then segments, then the root. What a
// crash leaves behind is said where each is written.
package s3history

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/secrate/secrate/internal/seal"
)

// FormatVersion is the version of the format that this package writes, and the
// newest it reads.
const FormatVersion = 1

// ErrFormat is wrapped by errors that say that an object is not what its name or
// its place says: altered, cut, swapped, or of a newer format.
var ErrFormat = errors.New("object is damaged")

// ErrNewer is wrapped by errors that say that an object needs a newer secrate.
var ErrNewer = errors.New("made by a newer version of secrate")

const (
	packMagic     = "scrp\x01"
	packEndMagic  = "scre"
	manifestMagic = "scrm\x01"
	saltSize      = 16
)

// Labels of key derivation; the contexts that follow are in docs/format.md.
const (
	labelBlob       = "secrate blob"
	labelIndex      = "secrate pack index"
	labelContent    = "secrate content id"
	labelBlockSum   = "secrate block sum"   // in the catalog alone
	labelRolling    = "secrate rolling sum" // in the catalog alone
	labelSource     = "secrate source id"
	labelRoot       = "secrate root"
	labelSegment    = "secrate segment"
	labelCheckpoint = "secrate checkpoint"
	labelCheckSeg   = "secrate checkpoint segment"
)

const (
	maxSealedKey   = 1<<16 - 1     // bytes of a pack's sealed key: its length has 2 bytes
	maxBlob        = 1 << 20       // plain bytes of a blob
	maxBlobObject  = maxBlob + 256 // stored bytes of a blob
	maxPackBlobs   = 1 << 16
	maxManifest    = 8 << 20 // plain bytes of a root or segment
	maxManifestObj = maxManifest + 1024
	maxIndex       = 64 << 20 // plain bytes of a pack's index
)

// A RepoID names a repository. It is bound into every key that is derived.
type RepoID [16]byte

func (id RepoID) String() string { return hex.EncodeToString(id[:]) }

func parseHex(s string, out []byte) error {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(out) || strings.ToLower(s) != s {
		return fmt.Errorf("%q is not %d bytes in hex", s, len(out))
	}
	copy(out, b)
	return nil
}

// MetaPrefixes are the places that hold a copy of each manifest.
var metaPrefixes = []string{"meta/", "meta2/"}

// keyPrefixes are the places that hold a copy of each writer's metadata key.
var keyPrefixes = []string{"keys/", "keys2/"}

const configKey = "secrate.json"

func packKey(sha [32]byte) string {
	h := hex.EncodeToString(sha[:])
	return "packs/" + h[:2] + "/" + h
}

// rootKind says which manifest object a name stands for.
type rootKind string

const (
	kindRoot       rootKind = ""
	kindSegment    rootKind = "s"
	kindCheckpoint rootKind = "c"
)

// A metaName is the name of a manifest object below a prefix of metaPrefixes.
type metaName struct {
	writer, source string
	seq            uint64
	kind           rootKind
	sha            [32]byte
}

func (n metaName) String() string {
	return fmt.Sprintf("%s/%s/%010d%s-%x", n.writer, n.source, n.seq, n.kind, n.sha)
}

func parseMetaName(key string) (n metaName, err error) {
	f := strings.Split(key, "/")
	bad := fmt.Errorf("object name %q: %w", key, ErrFormat)
	if len(f) != 3 {
		return n, bad
	}
	n.writer, n.source = f[0], f[1]
	num, hash, ok := strings.Cut(f[2], "-")
	if !ok || len(num) < 10 {
		return n, bad
	}
	if last := num[len(num)-1:]; last == string(kindSegment) || last == string(kindCheckpoint) {
		n.kind, num = rootKind(last), num[:len(num)-1]
	}
	if n.seq, err = strconv.ParseUint(num, 10, 63); err != nil || n.seq == 0 || len(num) < 10 {
		return n, bad
	}
	if parseHex(hash, n.sha[:]) != nil || n.String() != key {
		return n, bad
	}
	return n, nil
}

// sourceIdent is the name of a source in object names: opaque, and always the same
// for one writer, so that a source that is added again goes on.
func sourceIdent(meta seal.Key, repo RepoID, name string) string {
	k := meta.Derive(labelSource, repo[:], []byte(name))
	return hex.EncodeToString(k[:8])
}
