package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// fewAttempts is how often what hardly ever passes is tried: an endpoint that
// was never reached, or a server that makes no sense.
const fewAttempts = 3

// maxRetryAfter bounds what a server can make us wait.
const maxRetryAfter = time.Minute

// A class is how an error is met.
type class int

const (
	final       class = iota // trying again would change nothing
	transient                // it may pass
	unreachable              // no server answered
	nonsense                 // something answered, but not the way S3 does
)

// errNonsense is wrapped by errors about answers that contradict the question.
var errNonsense = errors.New("the answer makes no sense")

// retry calls f until it succeeds, fails for good, or time and attempts run out.
// The error is f's last, or the context's.
func (s *Store) retry(ctx context.Context, op, key string, f func() error) error {
	var failing time.Time // since when
	for attempt := 1; ; attempt++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		err := f()
		if err == nil {
			s.reached.Store(true)
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		c := classify(err)
		if status(err) != 0 || errors.Is(err, errStalled) {
			s.reached.Store(true)
		}
		attempts := s.o.Attempts
		switch {
		case c == final:
			return err
		case c == unreachable && !s.reached.Load(), c == nonsense, errorCode(err) == "RequestTimeTooSkewed":
			attempts = min(attempts, fewAttempts)
		}
		if failing.IsZero() {
			failing = time.Now()
		}
		pause := backoff(s.o.Backoff, attempt, rand.Float64())
		if after := retryAfter(err); after > pause {
			pause = after
		}
		if attempt >= attempts || time.Since(failing)+pause > s.o.MaxElapsed {
			return err
		}
		s.o.Log.WarnContext(ctx, "request failed, trying again",
			"op", op, "key", key, "attempt", attempt, "pause", pause.Round(time.Millisecond), "err", s.explain(op, key, err))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// backoff is the pause after the failed attempt: around base, doubled with each,
// between half and one and a half of it, so that many clients do not come back
// at once. x is random, from 0 to 1.
func backoff(base time.Duration, attempt int, x float64) time.Duration {
	d := maxBackoff
	if attempt < 16 {
		d = min(base<<(attempt-1), maxBackoff)
	}
	return time.Duration(float64(d) * (0.5 + x))
}

// classify says how err is met.
func classify(err error) class {
	if errors.As(err, new(*credentialsError)) || errors.As(err, new(*sourceError)) {
		return final
	}
	if errors.Is(err, errNonsense) {
		return nonsense
	}
	if a := answerOf(err); a != nil {
		return classifyAnswer(a.StatusCode, errorCode(err), err)
	}
	if errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(x509.HostnameError)) ||
		errors.As(err, new(tls.RecordHeaderError)) || errors.Is(err, http.ErrSchemeMismatch) {
		return final
	}
	if errors.As(err, new(*smithy.SerializationError)) || errors.As(err, new(*smithy.InvalidParamsError)) {
		return final
	}
	// What remains is the network: no route, no name, refused, reset, timed out.
	if errors.Is(err, errStalled) {
		return transient
	}
	return unreachable
}

func classifyAnswer(status int, code string, err error) class {
	switch code {
	case "RequestTimeTooSkewed":
		return transient // the client has learnt the server's time from the answer
	case "RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody",
		"ConditionalRequestConflict", "OperationAborted", "SlowDown", "SlowDownRead", "SlowDownWrite",
		"Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError", "ServiceUnavailable":
		return transient
	case "XMinioStorageFull", "QuotaExceeded":
		return final
	}
	switch {
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests:
		return transient
	case status == http.StatusNotImplemented, status == http.StatusInsufficientStorage:
		return final
	case status >= 500:
		return transient
	case status < 300 && brokenOff(err):
		return transient
	case status < 300 && errors.As(err, new(*smithy.DeserializationError)):
		return nonsense
	}
	return final
}

// errorCode is the word S3 has for err, or "".
func errorCode(err error) string {
	if ae, ok := errors.AsType[smithy.APIError](err); ok {
		return ae.ErrorCode()
	}
	return ""
}

// brokenOff reports whether an answer began and the rest of it got lost.
func brokenOff(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errStalled) || errors.As(err, new(net.Error))
}

// answerOf is the server's answer that err is about, or nil. Without an answer
// the client makes one up, with the status 0.
func answerOf(err error) *smithyhttp.Response {
	if re, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && re.HTTPStatusCode() != 0 {
		return re.Response
	}
	return nil
}

// status is the HTTP status of the answer that err is about, or 0.
func status(err error) int {
	if a := answerOf(err); a != nil {
		return a.StatusCode
	}
	return 0
}

// retryAfter is how long the server asks to be left alone.
func retryAfter(err error) time.Duration {
	a := answerOf(err)
	if a == nil {
		return 0
	}
	seconds, err := strconv.Atoi(a.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, maxRetryAfter)
}
