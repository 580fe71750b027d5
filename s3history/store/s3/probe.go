package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/secrate/secrate/s3history/store"
)

// rivals is how many put one key at once to see whether exactly one wins. Some
// servers check first and store later, which two in a row do not show.
const rivals = 8

// Probe implements [store.Prober]. It puts one small object, eight times at once,
// and reads what it can of it and of the bucket's configuration. An error means
// that nothing could be found out, not that an answer is no.
func (s *Store) Probe(ctx context.Context, prefix string) (store.Capabilities, error) {
	c := store.Capabilities{
		Put: store.Unknown, Get: store.Unknown, List: store.Unknown,
		ConditionalPut: store.Unknown, Range: store.Unknown,
		ObjectLock: "unknown", Versioning: "unknown",
	}
	note := func(what string, err error) {
		c.Detail = append(c.Detail, what+": "+s.explain("probe", "", err).(*store.Error).Err.Error())
	}
	// Random, so that the key is free.
	content := []byte("secrate probe " + rand.Text() + "\n")
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	key := prefix + "/" + sum
	if err := store.CheckKey(key); err != nil {
		return c, s.explain("probe", prefix, err)
	}

	c.Versioning, c.ObjectLock = s.versioning(ctx, note), s.objectLock(ctx, note)
	s.probePut(ctx, &c, note, key, content)
	if err := context.Cause(ctx); err != nil {
		return c, s.explain("probe", prefix, err)
	}
	if c.Put == store.Unknown {
		// Nothing below would mean anything; a plain Put says best what is wrong.
		if err := s.Put(ctx, key, bytes.NewReader(content), int64(len(content))); err != nil {
			return c, err
		}
		c.Put = store.Yes
	}
	if c.Put == store.Yes {
		s.probeGet(ctx, &c, note, key, content)
	}
	c.List = store.Yes
	for _, err := range s.List(ctx, prefix+"/") {
		if err != nil {
			c.List = answerTo(err)
			note("list", err)
		}
	}
	return c, nil
}

// probePut finds out whether a condition on a Put holds.
func (s *Store) probePut(ctx context.Context, c *store.Capabilities, note func(string, error), key string, content []byte) {
	errs := make([]error, rivals)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			u := &upload{s: s, key: key, r: bytes.NewReader(content), size: int64(len(content)), sha256: fmt.Sprintf("%x", sha256.Sum256(content))}
			errs[i] = u.send(ctx, true)
		})
	}
	wg.Wait()
	var won, refused, busy int
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case status(err) == http.StatusPreconditionFailed:
			refused++
		case status(err) == http.StatusConflict:
			busy++
		case status(err) == http.StatusNotImplemented:
			c.ConditionalPut = store.No
		case status(err) == http.StatusForbidden:
			c.Put = store.No
			note("put", err)
			return
		default:
			note("conditional put", err)
		}
	}
	switch {
	case c.ConditionalPut == store.No:
		c.Detail = append(c.Detail, "conditional put: the server says it does not know it")
	case won > 1:
		c.Put, c.ConditionalPut = store.Yes, store.No
		c.Detail = append(c.Detail, fmt.Sprintf("conditional put: %d of %d who put one key at once succeeded", won, rivals))
	case won == 1 && won+refused+busy == rivals:
		c.Put, c.ConditionalPut = store.Yes, store.Yes
	case won == 1:
		c.Put = store.Yes
	}
}

// probeGet finds out whether the object can be read, and in part.
func (s *Store) probeGet(ctx context.Context, c *store.Capabilities, note func(string, error), key string, content []byte) {
	const off, n = 3, 5
	r, err := s.Get(ctx, key, off, n)
	if err == nil {
		var b []byte
		b, err = io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err == nil && !bytes.Equal(b, content[off:off+n]) {
			err = fmt.Errorf("%w: other bytes than those asked for", errNonsense)
		}
	}
	c.Get, c.Range = store.Yes, store.Yes
	switch {
	case err == nil:
		return
	case errors.Is(err, errNonsense):
		c.Range = store.No
	default:
		c.Get, c.Range = answerTo(err), store.Unknown
	}
	note("get", err)
}

func (s *Store) versioning(ctx context.Context, note func(string, error)) string {
	out, err := s.client.GetBucketVersioning(ctx, &awss3.GetBucketVersioningInput{Bucket: &s.o.Bucket})
	switch {
	case err != nil:
		note("versioning", err)
		return "unknown"
	case out.Status == "":
		return "off"
	}
	return strings.ToLower(string(out.Status))
}

func (s *Store) objectLock(ctx context.Context, note func(string, error)) string {
	out, err := s.client.GetObjectLockConfiguration(ctx, &awss3.GetObjectLockConfigurationInput{Bucket: &s.o.Bucket})
	switch {
	case status(err) == http.StatusNotFound, status(err) == http.StatusNotImplemented, errorCode(err) == "InvalidRequest":
		return "none" // ObjectLockConfigurationNotFoundError, or no such thing at all
	case err != nil:
		note("object lock", err)
		return "unknown"
	}
	lock := out.ObjectLockConfiguration
	if lock == nil || lock.ObjectLockEnabled != types.ObjectLockEnabledEnabled {
		return "none"
	}
	if lock.Rule == nil || lock.Rule.DefaultRetention == nil {
		return "enabled"
	}
	d := lock.Rule.DefaultRetention
	mode := strings.ToLower(string(d.Mode))
	switch {
	case d.Days != nil && *d.Days > 0:
		return fmt.Sprintf("%s %dd", mode, *d.Days)
	case d.Years != nil && *d.Years > 0:
		return fmt.Sprintf("%s %dy", mode, *d.Years)
	}
	return mode
}

// answerTo is what a refusal says.
func answerTo(err error) store.Answer {
	if errors.Is(err, store.ErrPermission) {
		return store.No
	}
	return store.Unknown
}
