// Package store is the contract between the history and the places its objects
// are kept in: immutable objects by key, put once, read whole or in part, listed.
//
// Implementations are packages below: [github.com/secrate/secrate/s3history/store/dir]
// and [github.com/secrate/secrate/s3history/store/s3]. The contract as code is
// package storetest.
package store

import (
	"context"
	"errors"
	"io"
	"iter"
)

// ErrExist is wrapped by Put when the key is taken.
var ErrExist = errors.New("object exists already")

// ErrNotExist is wrapped by Get and Stat when there is no object under the key.
var ErrNotExist = errors.New("no such object")

// ErrPermission is wrapped by errors that say the credentials may not do this: a
// writer that can only put objects meets it on Get and Stat of packs.
var ErrPermission = errors.New("permission denied")

// An Object is what a listing says of one.
type Object struct {
	Key  string
	Size int64 // in bytes
}

// A Store holds immutable objects by key. A key is 1 to 1024 bytes of lower-case
// letters, digits, and "-_./"; it neither starts nor ends with a slash and has no
// empty, "." or ".." component. Methods may be called concurrently, and retry
// what is worth retrying before they return an error. There is no Delete:
// nothing that was stored is ever taken away.
type Store interface {
	// Put stores size bytes of r under key. The object is durable when Put
	// returns nil. If key is taken, Put changes nothing and returns an error
	// that wraps [ErrExist]; a destination that cannot tell may return nil
	// without having changed anything that matters, since every key that is
	// put twice names the same bytes.
	Put(ctx context.Context, key string, r io.ReaderAt, size int64) error
	// Get reads n bytes of the object from off on; n < 0 reads to its end.
	// Reading beyond the end of the object gives io.ErrUnexpectedEOF from the
	// reader or an error from Get. The caller closes what it gets.
	Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)
	// Stat says how large an object is, without reading it.
	Stat(ctx context.Context, key string) (Object, error)
	// List yields the objects whose keys start with prefix, in key order. An
	// error is yielded once, with the zero Object, and ends the iteration.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
	// String is the address for people, without secrets.
	String() string
}
