package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/secrate/secrate/s3history/store"
)

// Get implements [store.Store]. The reader goes on with another request where a
// connection breaks.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := s.get(ctx, key, off, n)
	if err != nil {
		return nil, s.explain("get", key, err)
	}
	return r, nil
}

func (s *Store) get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := cmp.Or(store.CheckKey(key), store.CheckRange(off, n)); err != nil {
		return nil, err
	}
	if n == 0 {
		return s.getNothing(ctx, key, off, n) // a range cannot be empty
	}
	body, size, err := s.fetch(ctx, key, off, n)
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return s.getNothing(ctx, key, off, n)
	}
	if err != nil {
		return nil, err
	}
	return &reader{s: s, ctx: ctx, key: key, body: body, off: off, left: size}, nil
}

// getNothing answers a Get that begins at the end of the object, or beyond it.
func (s *Store) getNothing(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	size, err := s.stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if off > size || n > size-off {
		return nil, beyond(off, n, size)
	}
	return http.NoBody, nil
}

// A beyondError reports a Get of more than there is.
type beyondError struct{ off, n, size int64 }

func beyond(off, n, size int64) error { return &beyondError{off, n, size} }

func (e *beyondError) Error() string {
	if e.n < 0 {
		return fmt.Sprintf("from %d on of %d bytes: %v", e.off, e.size, io.ErrUnexpectedEOF)
	}
	return fmt.Sprintf("%d bytes from %d on of %d: %v", e.n, e.off, e.size, io.ErrUnexpectedEOF)
}

func (e *beyondError) Unwrap() error { return io.ErrUnexpectedEOF }

// fetch asks for n bytes of the object from off on, or for the rest if n < 0, and
// says how many will come.
func (s *Store) fetch(ctx context.Context, key string, off, n int64) (body io.ReadCloser, size int64, err error) {
	err = s.retry(ctx, "get", key, func() error {
		body, size, err = s.fetchOnce(ctx, key, off, n)
		return err
	})
	return body, size, err
}

func (s *Store) fetchOnce(ctx context.Context, key string, off, n int64) (io.ReadCloser, int64, error) {
	in := &awss3.GetObjectInput{Bucket: &s.o.Bucket, Key: s.name(key)}
	whole := off == 0 && n < 0
	switch {
	case whole:
	case n < 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", off))
	default:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	out, err := s.client.GetObject(ctx, in)
	if err != nil {
		return nil, 0, err
	}
	size, err := checkAnswer(out, off, n)
	if err != nil {
		out.Body.Close()
		return nil, 0, err
	}
	return out.Body, size, nil
}

// checkAnswer compares an answer with the question, and returns the number of
// bytes that follow. A server may know nothing of ranges and send the whole
// object, and caches in between have been seen to send other ranges.
func checkAnswer(out *awss3.GetObjectOutput, off, n int64) (int64, error) {
	code := answerStatus(out.ResultMetadata)
	if out.ContentLength == nil || *out.ContentLength < 0 {
		return 0, fmt.Errorf("%w: it does not say how long it is", errNonsense)
	}
	length := *out.ContentLength
	if off == 0 && n < 0 {
		if code != http.StatusOK {
			return 0, fmt.Errorf("%w: status %d for a whole object", errNonsense, code)
		}
		return length, nil
	}
	if code != http.StatusPartialContent {
		return 0, fmt.Errorf("%w: status %d for a part of an object; does the server know ranges?", errNonsense, code)
	}
	first, last, total, err := parseContentRange(aws.ToString(out.ContentRange))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNonsense, err)
	}
	switch {
	case first != off, length != last-first+1, n > 0 && length > n:
		return 0, fmt.Errorf("%w: %d bytes, said to be %q, for %d from %d on", errNonsense, length, *out.ContentRange, n, off)
	case n > 0 && length < n && last == total-1:
		return 0, beyond(off, n, total)
	case n > 0 && length < n, n < 0 && total >= 0 && last != total-1:
		return 0, fmt.Errorf("%w: it holds only %d bytes of those from %d on, said to be %q", errNonsense, length, off, *out.ContentRange)
	}
	return length, nil
}

// parseContentRange reads "bytes FIRST-LAST/TOTAL"; TOTAL may be *, which is -1.
func parseContentRange(s string) (first, last, total int64, err error) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, of, ok2 := strings.Cut(rest, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, fmt.Errorf("Content-Range is %q", s)
	}
	// Unsigned, so that no sign is taken for a part of a number.
	f, err1 := strconv.ParseUint(from, 10, 63)
	l, err2 := strconv.ParseUint(to, 10, 63)
	total = -1
	var err3 error
	if of != "*" {
		var t uint64
		t, err3 = strconv.ParseUint(of, 10, 63)
		total = int64(t)
	}
	first, last = int64(f), int64(l)
	if err1 != nil || err2 != nil || err3 != nil || last < first || total >= 0 && total <= last {
		return 0, 0, 0, fmt.Errorf("Content-Range is %q", s)
	}
	return first, last, total, nil
}

func answerStatus(md middleware.Metadata) int {
	if resp, ok := awsmiddleware.GetRawResponse(md).(*smithyhttp.Response); ok {
		return resp.StatusCode
	}
	return 0
}

// progressBeforeRefill is how much must be read after a broken connection for it
// to count as working again.
const progressBeforeRefill = 1 << 20

// A reader is one Get. It holds the Get's context, for the requests it makes
// where a connection breaks.
type reader struct {
	s    *Store
	ctx  context.Context
	key  string
	body io.ReadCloser
	off  int64 // of the next byte in the object
	left int64 // bytes still to be read

	breaks int   // of connections, not made good since
	since  int64 // bytes read since the last of them
	err    error // sticky
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		if r.err != nil {
			return 0, r.err
		}
		if r.left == 0 {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
		r.off += int64(n)
		r.left -= int64(n)
		if r.since += int64(n); r.since >= progressBeforeRefill {
			r.breaks = 0
		}
		if err != nil && r.left > 0 {
			r.err = r.resume(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// resume asks for the rest, since broken has ended the body early.
func (r *reader) resume(broken error) error {
	r.body.Close()
	r.body = http.NoBody
	if err := context.Cause(r.ctx); err != nil {
		return r.s.explain("get", r.key, err)
	}
	if broken == io.EOF || errors.Is(broken, io.ErrUnexpectedEOF) {
		broken = fmt.Errorf("the body ends %d bytes early: %w", r.left, io.ErrUnexpectedEOF)
	} else {
		// Whatever cut it off, the caller has got less than it was promised.
		broken = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, broken)
	}
	r.breaks++
	r.since = 0
	if r.breaks >= r.s.o.Attempts {
		return r.s.explain("get", r.key, broken)
	}
	r.s.o.Log.WarnContext(r.ctx, "connection broken, reading on", "key", r.key, "offset", r.off, "err", broken)
	// The first attempt of retry is a new connection; its failures pause.
	body, size, err := r.s.fetch(r.ctx, r.key, r.off, r.left)
	if err != nil {
		return r.s.explain("get", r.key, err)
	}
	if size != r.left {
		body.Close()
		return r.s.explain("get", r.key, fmt.Errorf("%w: the object has changed its size", errNonsense))
	}
	r.body = body
	return nil
}

func (r *reader) Close() error {
	r.err = errors.New("read after close")
	return r.body.Close()
}

// Stat implements [store.Store]. Without the right to list, a server says
// [store.ErrPermission] of objects that do not exist.
func (s *Store) Stat(ctx context.Context, key string) (store.Object, error) {
	err := store.CheckKey(key)
	var size int64
	if err == nil {
		size, err = s.stat(ctx, key)
	}
	if err != nil {
		return store.Object{}, s.explain("stat", key, err)
	}
	return store.Object{Key: key, Size: size}, nil
}

func (s *Store) stat(ctx context.Context, key string) (size int64, err error) {
	err = s.retry(ctx, "stat", key, func() error {
		out, err := s.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: &s.o.Bucket, Key: s.name(key)})
		if err != nil {
			return err
		}
		if out.ContentLength == nil || *out.ContentLength < 0 || aws.ToString(out.ETag) == "" {
			return fmt.Errorf("%w: an object without a size or an ETag", errNonsense)
		}
		size = *out.ContentLength
		return nil
	})
	return size, err
}

// List implements [store.Store]. It holds one page of a thousand objects.
// Objects whose names are no keys are left out: they are not ours.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		fail := func(err error) { yield(store.Object{}, s.explain("list", prefix, err)) }
		if err := store.CheckPrefix(prefix); err != nil {
			fail(err)
			return
		}
		in := &awss3.ListObjectsV2Input{Bucket: &s.o.Bucket, Prefix: s.name(prefix), EncodingType: types.EncodingTypeUrl}
		last := ""
		for {
			var out *awss3.ListObjectsV2Output
			err := s.retry(ctx, "list", prefix, func() (err error) {
				out, err = s.client.ListObjectsV2(ctx, in)
				if err == nil && out.Name == nil && out.IsTruncated == nil && out.KeyCount == nil {
					err = fmt.Errorf("%w: it is not a listing", errNonsense)
				}
				return err
			})
			if err != nil {
				fail(err)
				return
			}
			for _, c := range out.Contents {
				name := aws.ToString(c.Key)
				if out.EncodingType == types.EncodingTypeUrl {
					if name, err = url.QueryUnescape(name); err != nil {
						fail(fmt.Errorf("%w: listed name: %w", errNonsense, err))
						return
					}
				}
				key, ok := strings.CutPrefix(name, s.prefix)
				if !ok || !strings.HasPrefix(key, prefix) {
					fail(fmt.Errorf("%w: it lists %q, which was not asked for", errNonsense, name))
					return
				}
				if store.CheckKey(key) != nil {
					continue
				}
				if key <= last {
					fail(fmt.Errorf("%w: it lists %s after %s, out of order", errNonsense, key, last))
					return
				}
				if c.Size == nil || *c.Size < 0 {
					fail(fmt.Errorf("%w: it lists %s without a size", errNonsense, key))
					return
				}
				last = key
				if err := context.Cause(ctx); err != nil {
					fail(err)
					return
				}
				if !yield(store.Object{Key: key, Size: *c.Size}, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) {
				return
			}
			next := aws.ToString(out.NextContinuationToken)
			if next == "" || next == aws.ToString(in.ContinuationToken) {
				fail(fmt.Errorf("%w: a listing that goes on has no next page", errNonsense))
				return
			}
			in.ContinuationToken = &next
		}
	}
}
