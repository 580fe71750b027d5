package hook

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const secret = "5ec3e7-path"

// A call is what a server has heard.
type call struct{ Method, URL, Kind, Body string }

// A server answers with statuses in turn, the last of them for ever.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	calls []call
}

func newServer(t *testing.T, statuses ...int) *server {
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		status := statuses[min(len(s.calls), len(statuses)-1)]
		s.calls = append(s.calls, call{r.Method, r.URL.String(), r.Header.Get("Content-Type"), string(body)})
		w.WriteHeader(status)
		io.WriteString(w, "an answer with "+secret)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) heard() []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func fast() *poster {
	p := newPoster()
	p.backoff = time.Millisecond
	return p
}

// checkError has no secret in an error, but the host.
func checkError(t *testing.T, err error, host string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
	} else if strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), host) {
		t.Errorf("error %q, want %s in it and not the path", err, host)
	}
}

func TestPing(t *testing.T) {
	s := newServer(t, 200)
	address := s.URL + "/" + secret
	for _, c := range []struct {
		address string
		state   State
		text    string
	}{{address, Start, ""}, {address, Success, "home: #12"}, {address + "/", Failure, "é" + strings.Repeat("é", MaxText)}, {address + "?create=1", Failure, ""}} {
		if err := Ping(t.Context(), c.address, c.state, c.text); err != nil {
			t.Error(err)
		}
	}
	const kind = "text/plain; charset=utf-8"
	want := []call{
		{"POST", "/" + secret + "/start", kind, ""},
		{"POST", "/" + secret, kind, "home: #12"},
		{"POST", "/" + secret + "/fail", kind, strings.Repeat("é", MaxText/2)},
		{"POST", "/" + secret + "/fail?create=1", kind, ""},
	}
	if diff := cmp.Diff(want, s.heard()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestWebhook(t *testing.T) {
	s := newServer(t, 204)
	err := Webhook(t.Context(), s.URL+"/"+secret+"?x=1", map[string]any{"source": "home", "error": nil})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]call{{"POST", "/" + secret + "?x=1", "application/json", `{"error":null,"source":"home"}`}}, s.heard()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	checkError(t, Webhook(t.Context(), s.URL+"/"+secret, func() {}), "127.0.0.1")
}

func TestTries(t *testing.T) {
	tests := []struct {
		name     string
		statuses []int
		calls    int
		err      string
	}{
		{"the third time", []int{503, 429, 200}, 3, ""},
		{"never", []int{500}, 3, "answered 500 Internal Server Error"},
		{"it does not know us", []int{404}, 1, "answered 404 Not Found"},
		{"then it does not", []int{502, 403}, 2, "answered 403 Forbidden"},
		{"no such status", []int{599}, 3, "answered 599"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, tt.statuses...)
			for name, post := range map[string]func() error{
				"ping":    func() error { return fast().ping(t.Context(), s.URL+"/"+secret, Failure, "x") },
				"webhook": func() error { return fast().webhook(t.Context(), s.URL+"/"+secret, "x") },
			} {
				s.mu.Lock()
				s.calls = nil
				s.mu.Unlock()
				err := post()
				if n := len(s.heard()); n != tt.calls {
					t.Errorf("%s: %d calls, want %d", name, n, tt.calls)
				}
				if tt.err == "" && err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if tt.err != "" {
					checkError(t, err, strings.TrimPrefix(s.URL, "http://"))
					if err != nil && !strings.HasSuffix(err.Error(), ": "+tt.err) {
						t.Errorf("%s: error %v, want %s", name, err, tt.err)
					}
				}
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	s := newServer(t, 200)
	s.Close()
	err := fast().ping(t.Context(), s.URL+"/"+secret, Success, "")
	checkError(t, err, strings.TrimPrefix(s.URL, "http://"))
	if err != nil && !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v does not say why", err)
	}
	for _, address := range []string{"http://h\x7f/" + secret, "ftp://h/" + secret, secret, "http:///" + secret, "http://h:port/" + secret} {
		checkError(t, fast().ping(t.Context(), address, Success, ""), "ping")
		checkError(t, fast().webhook(t.Context(), address, 1), "webhook")
	}
}

func TestTimeout(t *testing.T) {
	stop := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-stop }))
	defer s.Close()
	defer close(stop)
	p := fast()
	if p.client.Timeout != 10*time.Second {
		t.Errorf("time-out %v", p.client.Timeout)
	}
	p.client.Timeout = 50 * time.Millisecond
	err := p.ping(t.Context(), s.URL+"/"+secret, Success, "")
	checkError(t, err, "127.0.0.1")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}

	p.client.Timeout, p.backoff = time.Minute, time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	checkError(t, p.ping(ctx, s.URL+"/"+secret, Success, ""), "127.0.0.1")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v after its context had ended", took)
	}
}

func TestRedirects(t *testing.T) {
	target := newServer(t, 200)
	var referer []string
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another scheme was followed") }))
	defer other.Close()
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	defer s.Close()
	to := func(path string, status int, location string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			referer = append(referer, r.Header.Get("Referer"))
			w.Header().Set("Location", location)
			w.WriteHeader(status)
		})
	}
	to("/"+secret+"/moved", 308, "/"+secret+"/again")
	to("/"+secret+"/again", 307, target.URL+"/there")
	to("/"+secret+"/scheme", 308, other.URL+"/"+secret)
	to("/"+secret+"/file", 307, "file:///etc/"+secret)
	to("/"+secret+"/bad", 307, "http://%zz/"+secret)
	to("/"+secret+"/loop", 307, "/"+secret+"/loop")
	to("/"+secret+"/get", 302, target.URL+"/get")

	if err := fast().webhook(t.Context(), s.URL+"/"+secret+"/moved", 1); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]call{{"POST", "/there", "application/json", "1"}}, target.heard()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	for _, r := range referer {
		if r != "" {
			t.Errorf("a server was told of %s", r)
		}
	}
	for _, path := range []string{"scheme", "file", "bad", "loop", "get"} {
		err := fast().webhook(t.Context(), s.URL+"/"+secret+"/"+path, 1)
		checkError(t, err, strings.TrimPrefix(s.URL, "http://"))
		if !errors.Is(err, errRedirect) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if n := len(target.heard()); n != 1 {
		t.Errorf("%d calls that were to lose what they carry", n-1)
	}
}
