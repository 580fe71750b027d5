package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// A State is what a monitor is told.
type State string

// The states. Each run is a Start, then a Success or a Failure.
const (
	Start   State = "start"
	Success State = ""
	Failure State = "fail"
)

// MaxText is how many bytes of a text a monitor is sent.
const MaxText = 10 << 10

const (
	tries   = 3
	timeout = 10 * time.Second // of each try
	backoff = 2 * time.Second  // before the second try; twice that before the third
)

// Ping tells the monitor at address of a state, with a text of which the first [MaxText]
// bytes are sent: POST to the address, or to start or fail below it. It tries three times
// if the network or the server fails.
func Ping(ctx context.Context, address string, state State, text string) error {
	return newPoster().ping(ctx, address, state, text)
}

// Webhook posts v, as JSON, to address. It tries three times if the network or the server
// fails.
func Webhook(ctx context.Context, address string, v any) error {
	return newPoster().webhook(ctx, address, v)
}

// A poster is how Ping and Webhook speak.
type poster struct {
	client  *http.Client
	backoff time.Duration
}

func newPoster() *poster {
	return &poster{client: &http.Client{Timeout: timeout, CheckRedirect: checkRedirect}, backoff: backoff}
}

func (p *poster) ping(ctx context.Context, address string, state State, text string) error {
	u, err := parse(address)
	if err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	if state != Success {
		u = u.JoinPath(string(state))
	}
	if len(text) > MaxText {
		text = text[:MaxText]
		for r, n := utf8.DecodeLastRuneInString(text); r == utf8.RuneError && n == 1; r, n = utf8.DecodeLastRuneInString(text) {
			text = text[:len(text)-1]
		}
	}
	if err := p.post(ctx, u, "text/plain; charset=utf-8", []byte(text)); err != nil {
		return fmt.Errorf("ping %s: %w", u.Host, err)
	}
	return nil
}

func (p *poster) webhook(ctx context.Context, address string, v any) error {
	u, err := parse(address)
	if err != nil {
		return fmt.Errorf("webhook: %w", err)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("webhook %s: %w", u.Host, err)
	}
	if err := p.post(ctx, u, "application/json", body); err != nil {
		return fmt.Errorf("webhook %s: %w", u.Host, err)
	}
	return nil
}

func parse(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		// The error of url.Parse would have all of it.
		return nil, errors.New("its address is none of a web server")
	}
	return u, nil
}

// A statusError is an answer that is not of the 2xx.
type statusError int

func (e statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("answered %d %s", int(e), http.StatusText(int(e))))
}

// errRedirect is what checkRedirect refuses.
var errRedirect = errors.New("redirects to where it is not followed; configure the address that it means")

// checkRedirect follows three redirects that take the request along as it is. One to
// another scheme may show to the network what is secret, or is not HTTP at all.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > 3 || req.URL.Scheme != via[0].URL.Scheme || req.Method != via[0].Method {
		return errRedirect
	}
	req.Header.Del("Referer") // it would tell the next server the address of this one
	return nil
}

// post tries to have body taken. Its error does not contain the path of u.
func (p *poster) post(ctx context.Context, u *url.URL, kind string, body []byte) error {
	for try := 1; ; try++ {
		err := p.once(ctx, u, kind, body)
		status, answered := errors.AsType[statusError](err)
		again := !answered || status >= 500 || status == http.StatusTooManyRequests
		if err == nil || !again || errors.Is(err, errRedirect) || ctx.Err() != nil || try == tries {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(p.backoff << (try - 1)):
		}
	}
}

func (p *poster) once(ctx context.Context, u *url.URL, kind string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return errors.New("its address is none of a web server")
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("User-Agent", "secrate")
	resp, err := p.client.Do(req)
	if err != nil {
		return hide(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return statusError(resp.StatusCode)
	}
	return nil
}

// hide takes addresses out of an error of the client, which puts them into all of its own.
func hide(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		if ue.Timeout() {
			return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
		}
		err = ue.Err
	}
	switch {
	case errors.Is(err, errRedirect), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case strings.Contains(err.Error(), "Location"): // of a redirect that net/http cannot read, quoted
		return errRedirect
	}
	return err
}
