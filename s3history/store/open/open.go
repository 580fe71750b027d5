// Package open makes a store of an address, whatever kind it is.
//
// It is the one place that knows all kinds of destinations; commands use it, and
// libraries take the [store.Store] it returns.
package open

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/dir"
	"github.com/secrate/secrate/s3history/store/s3"
)

// Options are what an address leaves open.
type Options struct {
	// Create makes the directory of a file address, if it is missing. Buckets are
	// never made.
	Create bool
	// UploadLimit is the bytes a second that all Puts together may send; 0 means
	// no limit.
	UploadLimit int64
	// UploadLimitAt is that limit where it changes with time: UploadLimit does not count
	// then. It may be called concurrently; 0 means no limit.
	UploadLimitAt func(time.Time) int64
	// ConditionalPut makes Put ask an S3 server never to replace an object. Files
	// are never replaced.
	ConditionalPut bool
	// Observer hears of what is sent and received.
	Observer store.Observer
	// Log hears of retries and, at level debug, of every request; nil means nobody does.
	Log *slog.Logger
}

const hint = "write s3://BUCKET/PREFIX, file:///DIRECTORY or the path of a directory"

// Store opens the destination at address: s3://BUCKET/PREFIX with the parameters
// that [s3.ParseURL] knows, file:///DIRECTORY, or the path of a directory. Where
// it holds something open it implements [io.Closer]; see [Close].
func Store(ctx context.Context, address string, o Options) (store.Store, error) {
	s, err := open(ctx, address, o)
	if err != nil {
		return nil, err
	}
	s = store.Log(s, o.Log)
	if o.UploadLimitAt != nil {
		s = store.LimitAt(s, o.UploadLimitAt)
	} else {
		s = store.Limit(s, o.UploadLimit)
	}
	if o.Observer.Sent != nil || o.Observer.Stored != nil || o.Observer.Received != nil {
		s = store.Observe(s, o.Observer)
	}
	return s, nil
}

func open(ctx context.Context, address string, o Options) (store.Store, error) {
	scheme, rest, isURL := strings.Cut(address, "://")
	if !isURL {
		if address == "" {
			return nil, &store.Error{Op: "open", Err: errors.New("the address is empty"), Hint: hint}
		}
		return openDir(address, o)
	}
	switch scheme {
	case "s3":
		so, err := s3.ParseURL(address)
		if err != nil {
			return nil, err
		}
		so.ConditionalPut = so.ConditionalPut || o.ConditionalPut
		so.Log = o.Log
		return typed(s3.Open(ctx, so))
	case "file":
		u, err := url.Parse(address)
		if err != nil || u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !filepath.IsAbs(u.Path) {
			return nil, &store.Error{Op: "open", Err: fmt.Errorf("file address: %q is not an absolute path", rest),
				Hint: "write file:///DIRECTORY, with three slashes; % ? and # in it as %25, %3F and %23"}
		}
		return openDir(u.Path, o)
	}
	return nil, &store.Error{Op: "open", Err: fmt.Errorf("there is no kind of destination called %q", scheme), Hint: hint}
}

func openDir(path string, o Options) (store.Store, error) {
	if o.Create {
		return typed(dir.Create(path))
	}
	return typed(dir.Open(path))
}

// typed keeps a nil pointer from becoming a store that is not nil.
func typed[S store.Store](s S, err error) (store.Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Close gives back what s, or a store that it wraps, holds open.
func Close(s store.Store) error {
	for {
		if c, ok := s.(io.Closer); ok {
			return c.Close()
		}
		w, ok := s.(interface{ Unwrap() store.Store })
		if !ok {
			return nil
		}
		s = w.Unwrap()
	}
}
