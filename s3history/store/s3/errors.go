package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/secrate/secrate/s3history/store"
)

// credentials mark the errors of a provider as its own.
type credentials struct{ aws.CredentialsProvider }

func (c credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if c.CredentialsProvider == nil {
		return aws.Credentials{}, &credentialsError{errors.New("there is no source of them")}
	}
	v, err := c.CredentialsProvider.Retrieve(ctx)
	if err != nil && ctx.Err() == nil {
		err = &credentialsError{err}
	}
	return v, err
}

type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// A plain error says in a few words what its cause takes many for. It is one of
// the store's sentinels, if is is not nil.
type plain struct {
	text  string
	is    error
	cause error
}

func (e *plain) Error() string { return e.text }

func (e *plain) Unwrap() []error {
	if e.is == nil {
		return []error{e.cause}
	}
	return []error{e.is, e.cause}
}

// explain says in the store's own terms what went wrong, and what to do.
func (s *Store) explain(op, key string, err error) error {
	e := &store.Error{Op: op, Key: key, At: s.String()}
	say := func(is error, text, hint string) error {
		e.Err, e.Hint = &plain{text: text, is: is, cause: err}, hint
		return e
	}
	if errors.Is(err, context.Canceled) || errors.As(err, new(*sourceError)) || errors.As(err, new(*beyondError)) {
		e.Err = err
		return e
	}
	if errors.As(err, new(*credentialsError)) {
		return say(store.ErrPermission, "no credentials found",
			"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to ~/.aws/credentials; a service has another home and environment than your shell")
	}
	if errors.Is(err, errNonsense) {
		return say(nil, err.Error(), "is "+s.endpoint()+" an S3 server, and is there a proxy or a login page in between?")
	}
	if a := answerOf(err); a != nil && !(a.StatusCode < 300 && brokenOff(err)) {
		return s.explainAnswer(say, a, op, err)
	}
	return s.explainNetwork(say, err)
}

func (s *Store) explainAnswer(say func(error, string, string) error, a *smithyhttp.Response, op string, err error) error {
	code, status := errorCode(err), a.StatusCode
	answer := fmt.Sprintf("the server answers %d %s", status, code)
	if ae, ok := errors.AsType[smithy.APIError](err); ok && ae.ErrorMessage() != "" && ae.ErrorMessage() != http.StatusText(status) {
		answer += ": " + ae.ErrorMessage()
	}
	const checkKeys = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile in ~/.aws/credentials"
	switch code {
	case "InvalidAccessKeyId", "InvalidClientTokenId", "XAdminUserNotFound": // the last with 404, by versitygw
		return say(store.ErrPermission, "the server does not know this access key", checkKeys)
	case "SignatureDoesNotMatch":
		return say(store.ErrPermission, "the secret key is wrong (SignatureDoesNotMatch)",
			checkKeys+"; a proxy that alters requests has the same effect")
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired":
		return say(store.ErrPermission, "the session's credentials have expired or are not valid ("+code+")", "log in again, or use long-lived keys for a service")
	case "RequestTimeTooSkewed":
		return say(nil, "this machine's clock and the server's differ by more than 15 minutes", "set the clock: timedatectl set-ntp true")
	case "NoSuchBucket":
		return say(nil, "there is no bucket "+s.o.Bucket, "create it, or check the address; secrate creates no buckets")
	case "InvalidBucketName":
		return say(nil, s.o.Bucket+" cannot be the name of a bucket", "check the address: s3://BUCKET/PREFIX")
	case "InvalidObjectState":
		return say(nil, "the object is archived and must be restored before it can be read", "restore it to a readable storage class first (aws s3api restore-object)")
	case "PreconditionFailed":
		return say(store.ErrExist, store.ErrExist.Error(), "")
	case "XMinioStorageFull", "QuotaExceeded":
		return say(nil, "the destination is full ("+code+")", "make room there or raise the quota; secrate deletes nothing")
	case "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect":
		return s.wrongRegion(say, a, err)
	}
	switch {
	case status == http.StatusMovedPermanently, status == http.StatusTemporaryRedirect, status == http.StatusPermanentRedirect:
		return s.wrongRegion(say, a, err)
	case status == http.StatusNotFound && (op == "get" || op == "stat") && (code == "NoSuchKey" || code == "NotFound" || code == ""):
		return say(store.ErrNotExist, store.ErrNotExist.Error(), "")
	case status == http.StatusPreconditionFailed:
		return say(store.ErrExist, store.ErrExist.Error(), "")
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return say(store.ErrPermission, fmt.Sprintf("permission denied (%d %s)", status, code),
			"do the keys belong to this bucket, and does its policy allow this? secrate policy prints one that does. Without the right to list, objects that do not exist look like this too")
	case status == http.StatusInsufficientStorage:
		return say(nil, "the destination is full", "make room there or raise the quota; secrate deletes nothing")
	case status == http.StatusTooManyRequests, status >= 500 && status != http.StatusNotImplemented:
		return say(store.ErrUnavailable, answer, "the server is busy or out of order; the same command goes on later where it stopped")
	case classify(err) == nonsense:
		return say(nil, "the answer is not what S3 sends: "+err.Error(), "is "+s.endpoint()+" an S3 server, and is there a proxy or a login page in between?")
	}
	return say(nil, answer, "")
}

func (s *Store) wrongRegion(say func(error, string, string) error, a *smithyhttp.Response, err error) error {
	right := a.Header.Get("X-Amz-Bucket-Region")
	if right == "" {
		// AuthorizationHeaderMalformed: …; expecting 'eu-west-1'
		if _, rest, ok := strings.Cut(err.Error(), "expecting '"); ok {
			right, _, _ = strings.Cut(rest, "'")
		}
	}
	if right == "" {
		return say(nil, fmt.Sprintf("the bucket is not in region %s, or elsewhere (%d %s)", s.o.Region, a.StatusCode, errorCode(err)),
			"add ?region=REGION to the address, and check the endpoint")
	}
	return say(nil, fmt.Sprintf("the bucket is in region %s, not %s", right, s.o.Region), "add ?region="+right+" to the address")
}

func (s *Store) explainNetwork(say func(error, string, string) error, err error) error {
	endpoint := s.endpoint()
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return say(store.ErrUnavailable, "no address is known for "+dns.Name, "check the network, the endpoint and the name server: getent hosts "+dns.Name)
	}
	if ce, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return say(nil, "the certificate of "+endpoint+" is not trusted: "+ce.Err.Error(), "a private authority's certificate goes into the system's store, or name its file in SSL_CERT_FILE")
	}
	switch {
	case errors.As(err, new(tls.RecordHeaderError)) || errors.Is(err, http.ErrSchemeMismatch):
		return say(nil, endpoint+" does not speak TLS", "write http:// in the endpoint, if the network in between is yours")
	case errors.Is(err, syscall.ECONNREFUSED):
		return say(store.ErrUnavailable, "nothing listens at "+endpoint+" (connection refused)", "is the server running, and is the port right?")
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return say(store.ErrUnavailable, "there is no way to "+endpoint+" from here", "check the network: ip route")
	case errors.Is(err, errStalled):
		return say(store.ErrUnavailable, errStalled.Error(), "")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return say(store.ErrUnavailable, endpoint+" does not answer in time", "check the network, and whether a firewall drops the packets")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return say(store.ErrUnavailable, "the connection broke: "+innermost(err), "")
	case classify(err) == unreachable:
		return say(store.ErrUnavailable, innermost(err), "")
	}
	return say(nil, err.Error(), "")
}

// endpoint is where requests go, for people.
func (s *Store) endpoint() string {
	if s.o.Endpoint == "" {
		return "s3." + s.o.Region + ".amazonaws.com"
	}
	return s.o.Endpoint
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// innermost is what a chain of errors ends in: without the client's account of
// operations, attempts and URLs.
func innermost(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}
