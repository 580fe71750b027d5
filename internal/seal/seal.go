// Package seal is all of secrate's cryptography: symmetric keys and what is
// derived from them, and small messages sealed to people.
//
//	metadata key ──┬─ Derive("…") ──► Key ── ContentID(data) ──► 16 bytes
//	               └─ Derive("…", place) ──► Key ── Seal ──► manifest, pack index
//	pack key ──────── Derive("…", blob number) ──► Key ── Seal ──► blob
//	metadata key, pack key ── Recipients.SealTo ──► age file ── OpenWith ──► key
//
// A [Key] is 32 random bytes, or derived from such. Three operations use one.
//
// [Key.Derive] is HKDF-SHA-256 (RFC 5869) with the key as input keying material,
// no salt, and 32 bytes of output. Its info is the label and then each context,
// every one after its length in bytes:
//
//	+-------------------+-------+------------------------+-----------+--- ... ---+
//	| label len (4B BE) | label | context 1 len (4B BE)  | context 1 | context 2 |
//	+-------------------+-------+------------------------+-----------+--- ... ---+
//
// [Key.Seal] is AES-256-GCM (NIST SP 800-38D) with a nonce of 12 zero bytes. It
// gives the ciphertext, as long as the plaintext, and then the 16-byte tag. The
// nonce never varies, so a key must seal one message and no other: derive a key
// for each.
//
// [Key.ContentID] is BLAKE3 in its keyed mode: the first 16 bytes of the output.
//
// A message sealed to recipients is a binary age file (age-encryption.org/v1) of
// at most [MaxSealed] bytes. For a 32-byte key that is 232 bytes with one X25519
// recipient and 1691 with one hybrid, post-quantum one; each further recipient
// adds 98 or 1557. Whoever knows the recipients can seal to them, so an age
// file that opens says nothing of who made it.
//
// The caller chooses labels, contexts and additional data, and sees to it that
// none is used twice where it must not be. docs/format.md lists them, and quotes
// the vectors in testdata.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/zeebo/blake3"
)

// Overhead is the number of bytes by which a sealed message is longer than
// what was sealed.
const Overhead = 16

// ErrAuthentication is returned by [Key.Open] for a message that was not sealed
// under this key with this additional data, or was altered since.
var ErrAuthentication = errors.New("message authentication failed")

// A Key is a 256-bit secret. It prints as "[key]" whatever the verb, except
// inside an unexported field, where package fmt cannot know.
type Key [32]byte

// NewKey returns a random key.
func NewKey() Key {
	var k Key
	rand.Read(k[:]) // never fails: it crashes the program first
	return k
}

// String returns "[key]".
func (k Key) String() string { return "[key]" }

// Format writes "[key]", for %x and %#v too.
func (k Key) Format(f fmt.State, _ rune) { f.Write([]byte(k.String())) }

// LogValue keeps the key out of logs, the JSON ones too.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Derive returns the key that k, a label and a context determine. No two lists
// of label and contexts give the same info to HKDF: Derive("a", x, y),
// Derive("a", xy) and Derive("a", x, y, nil) are unrelated keys.
func (k Key) Derive(label string, context ...[]byte) Key {
	info := appendPart(nil, label)
	for _, c := range context {
		info = appendPart(info, c)
	}
	out, err := hkdf.Key(sha256.New, k[:], nil, string(info), len(k))
	if err != nil {
		panic("seal: internal error: " + err.Error())
	}
	return Key(out)
}

// appendPart appends a part of the info, and its length first.
func appendPart[T string | []byte](info []byte, part T) []byte {
	info = binary.BigEndian.AppendUint32(info, uint32(len(part)))
	return append(info, part...)
}

// zeroNonce is the nonce of every message. See [Key.Seal] for why it may be.
var zeroNonce [12]byte

// Seal encrypts plain, binds aad to it, and appends both ciphertext and tag to
// dst. To encrypt in place, pass plain[:0] as dst; else they must not overlap.
//
// The nonce is all zero. Seal must be called once in the life of a key, with a
// key derived for that one message: two messages under one key would reveal
// their difference and let anyone forge more.
func (k Key) Seal(dst, aad, plain []byte) []byte {
	return k.aead().Seal(dst, zeroNonce[:], plain, aad)
}

// Open authenticates box and aad, and appends what was sealed to dst. To
// decrypt in place, pass box[:0] as dst; else they must not overlap. Its error
// is [ErrAuthentication]; then nothing of the plaintext is handed out.
func (k Key) Open(dst, aad, box []byte) ([]byte, error) {
	plain, err := k.aead().Open(dst, zeroNonce[:], box, aad)
	if err != nil {
		return nil, ErrAuthentication
	}
	return plain, nil
}

func (k Key) aead() cipher.AEAD {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		panic("seal: internal error: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("seal: internal error: " + err.Error())
	}
	return aead
}

// A ContentID names bytes to those who have the key it was made with. To
// others it is random: it confirms no guess at the content.
type ContentID [16]byte

// String returns the id in hexadecimal.
func (id ContentID) String() string { return hex.EncodeToString(id[:]) }

// A keyedHasher is a hasher, ready to use, and the key it was made with.
type keyedHasher struct {
	key Key
	h   *blake3.Hasher
}

// hashers holds keyedHashers. One is 10 KB and cannot be given a new key; as
// good as all content ids of a process are made with one key, so nearly
// every Get finds what fits.
var hashers sync.Pool

// ContentID returns the id of the concatenation of data. It may be called
// concurrently and does not allocate in the long run, unless calls with
// several keys alternate.
func (k Key) ContentID(data ...[]byte) ContentID {
	kh, _ := hashers.Get().(*keyedHasher)
	if kh == nil || kh.key != k {
		h, err := blake3.NewKeyed(k[:])
		if err != nil {
			panic("seal: internal error: " + err.Error())
		}
		kh = &keyedHasher{key: k, h: h}
	}
	for _, d := range data {
		kh.h.Write(d)
	}
	var sum [32]byte
	kh.h.Sum(sum[:0])
	kh.h.Reset()
	hashers.Put(kh)
	return ContentID(sum[:16])
}
