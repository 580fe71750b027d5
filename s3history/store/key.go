package store

import (
	"errors"
	"fmt"
	"strings"
)

// MaxKeyLen is the length of the longest key, S3's own limit. An address may
// have a prefix of its own that counts towards it at the destination.
const MaxKeyLen = 1024

// ErrKey is wrapped by errors about keys that no object can have.
var ErrKey = errors.New("not a key")

// CheckKey says whether key is one, as [Store] has it. The error wraps [ErrKey].
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKeyLen {
		return fmt.Errorf("%w: %d bytes long, want 1 to %d", ErrKey, len(key), MaxKeyLen)
	}
	if i := strings.IndexFunc(key, notInKey); i >= 0 {
		return fmt.Errorf("%w: %q holds byte %#02x", ErrKey, key, key[i])
	}
	for c := range strings.SplitSeq(key, "/") {
		if c == "" || c == "." || c == ".." {
			return fmt.Errorf("%w: %q has the component %q", ErrKey, key, c)
		}
	}
	return nil
}

// CheckPrefix says whether a key can start with prefix. The error wraps [ErrKey].
func CheckPrefix(prefix string) error {
	// What is missing of the last component may well be a letter.
	if err := CheckKey(prefix + "x"); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	return nil
}

func notInKey(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
		return false
	}
	return !strings.ContainsRune("-_./", r)
}

// CheckRange says whether off and n make sense as the arguments of a Get.
func CheckRange(off, n int64) error {
	if off < 0 {
		return fmt.Errorf("range: offset %d is negative", off)
	}
	if n > 0 && off+n < off {
		return fmt.Errorf("range: %d bytes from %d on end beyond all numbers", n, off)
	}
	return nil
}
