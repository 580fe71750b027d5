package s3

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// errStalled says that a connection was open and nothing moved.
var errStalled = errors.New("the connection stalled: not a byte moved for too long")

func newHTTPClient(rt http.RoundTripper, idle time.Duration) *http.Client {
	if rt == nil {
		rt = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   15 * time.Second,
			ExpectContinueTimeout: time.Second,
			IdleConnTimeout:       90 * time.Second,
			MaxIdleConnsPerHost:   64,
			DisableCompression:    true, // objects are their bytes
		}
	}
	return &http.Client{
		Transport: &watchdog{next: rt, idle: idle},
		// A redirect is an answer: the signature holds for one host only.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// A watchdog cancels requests on which nothing moves for the time idle: no byte
// of the request's body is taken, no reply comes, no byte of its body follows.
// It does not count the time in which we have nothing to send, or do not read.
type watchdog struct {
	next http.RoundTripper
	idle time.Duration
}

func (w *watchdog) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := &watch{idle: w.idle, ctx: ctx, cancel: cancel}
	timer.t = time.AfterFunc(w.idle, func() { cancel(errStalled) })

	watched := req.Clone(ctx)
	// The client leaves the version out, and net/http waits for "100 Continue" only
	// if it is there: without, what a server refuses would be sent all the same.
	watched.Proto, watched.ProtoMajor, watched.ProtoMinor = "HTTP/1.1", 1, 1
	if req.Body != nil && req.Body != http.NoBody {
		watched.Body = &watchedRequest{ReadCloser: req.Body, watch: timer}
	}
	resp, err := w.next.RoundTrip(watched)
	timer.answered()
	if err != nil {
		err = timer.cause(err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &watchedResponse{ReadCloser: resp.Body, watch: timer}
	return resp, nil
}

type watch struct {
	idle   time.Duration
	ctx    context.Context // of this one request
	cancel context.CancelCauseFunc

	mu   sync.Mutex // guards the fields below
	t    *time.Timer
	over bool // the reply has come: the transport may still read the request's body
}

func (w *watch) sending(wait bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.over:
	case wait:
		w.t.Reset(w.idle)
	default:
		w.t.Stop()
	}
}

func (w *watch) answered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.t.Stop()
}

func (w *watch) cause(err error) error {
	if context.Cause(w.ctx) == errStalled {
		return errStalled
	}
	return err
}

// A watchedRequest is read by the transport when it can send more.
type watchedRequest struct {
	io.ReadCloser
	watch *watch
}

func (r *watchedRequest) Read(p []byte) (int, error) {
	r.watch.sending(false)
	defer r.watch.sending(true)
	return r.ReadCloser.Read(p)
}

// A watchedResponse is read by the caller, who may take its time between reads.
type watchedResponse struct {
	io.ReadCloser
	watch *watch
}

func (r *watchedResponse) Read(p []byte) (int, error) {
	r.watch.t.Reset(r.watch.idle)
	defer r.watch.t.Stop()
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = r.watch.cause(err)
	}
	return n, err
}

func (r *watchedResponse) Close() error {
	r.watch.cancel(nil)
	return r.ReadCloser.Close()
}
