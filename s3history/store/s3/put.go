package s3

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"

	"github.com/secrate/secrate/internal/crashpoint"
	"github.com/secrate/secrate/s3history/store"
)

// Put implements [store.Store]. Without conditional writes it replaces what is
// there. It reads r twice: once to hash it, once to send it.
func (s *Store) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	err := store.CheckKey(key)
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return s.explain("put", key, err)
	}
	h := sha256.New()
	if err := hashAll(h, r, size); err != nil {
		return s.explain("put", key, err)
	}
	u := &upload{s: s, key: key, r: r, size: size, sha256: hex.EncodeToString(h.Sum(nil))}
	crashpoint.HereKey("put before", key)
	err = s.retry(ctx, "put", key, func() error { return u.try(ctx) })
	if err != nil {
		return s.explain("put", key, err)
	}
	crashpoint.HereKey("put after", key)
	return nil
}

// A sourceError is what reading the object to be put came to.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "read what is to be put: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// hashAll writes size bytes of r to h, past any meters.
func hashAll(h hash.Hash, r io.ReaderAt, size int64) error {
	n, err := io.Copy(h, io.NewSectionReader(store.Unmetered(r), 0, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return &sourceError{err}
	}
	return nil
}

// An upload is one Put.
type upload struct {
	s      *Store
	key    string
	r      io.ReaderAt
	size   int64
	sha256 string // in hexadecimal digits
	md5    string // in base64, if the bucket was found to want it
}

// try sends the object, and again at once where the server's answer says what it
// would rather have.
func (u *upload) try(ctx context.Context) error {
	for {
		conditional := u.s.conditional.Load()
		if u.s.needMD5.Load() && u.md5 == "" {
			h := md5.New()
			if err := hashAll(h, u.r, u.size); err != nil {
				return err
			}
			u.md5 = base64.StdEncoding.EncodeToString(h.Sum(nil))
		}
		err := u.send(ctx, conditional)
		switch {
		case conditional && status(err) == http.StatusNotImplemented:
			// The server says that it knows no conditions, so it has stored nothing.
			u.s.conditional.Store(false)
		case u.md5 == "" && status(err) == http.StatusBadRequest && strings.Contains(err.Error(), "Content-MD5"):
			u.s.needMD5.Store(true)
		default:
			return err
		}
	}
}

func (u *upload) send(ctx context.Context, conditional bool) error {
	b := &body{r: io.NewSectionReader(u.r, 0, u.size)}
	// The transport may read on after a reply; the caller's reader is the caller's
	// again when we return.
	defer b.end()
	in := &awss3.PutObjectInput{
		Bucket: &u.s.o.Bucket, Key: u.s.name(u.key), Body: b, ContentLength: &u.size,
		ContentType: aws.String("application/octet-stream"),
	}
	if conditional {
		in.IfNoneMatch = aws.String("*")
	}
	if u.md5 != "" {
		in.ContentMD5 = &u.md5
	}
	out, err := u.s.client.PutObject(ctx, in, withPayloadHash(u.sha256))
	if failed := b.end(); failed != nil {
		return &sourceError{failed}
	}
	if err != nil {
		return err
	}
	if aws.ToString(out.ETag) == "" {
		// Something in between said 200: a proxy, or a hotel's login page.
		return fmt.Errorf("%w: a put was acknowledged without an ETag", errNonsense)
	}
	return nil
}

// withPayloadHash makes the hash part of the signature and the header
// x-amz-content-sha256. By itself the client would send UNSIGNED-PAYLOAD over TLS.
func withPayloadHash(sum string) func(*awss3.Options) {
	return awss3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("PayloadHash",
			func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
				return next.HandleFinalize(v4.SetPayloadHash(ctx, sum), in)
			}), "ComputePayloadHash", middleware.Before)
	})
}

var errEnded = errors.New("the upload has ended")

// A body is what one attempt sends. It remembers whether it was the object that
// could not be read.
type body struct {
	mu     sync.Mutex // guards the fields below, and is held while r is read
	r      *io.SectionReader
	ended  bool
	failed error
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return 0, errEnded
	}
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.failed = err
	}
	return n, err
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.r.Seek(offset, whence)
}

// end waits for a Read under way and lets no other begin.
func (b *body) end() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	return b.failed
}
