package s3test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Fault answers one request in a way that a working server would not. What the
// server behind the proxy says comes by forward.
type Fault func(w http.ResponseWriter, r *http.Request, forward http.Handler)

// A Schedule says which fault meets the nth request, counted from 1; nil lets it
// through. It is called for one request at a time.
type Schedule func(n int, r *http.Request) Fault

// On gives the first request of the method the first fault, and so on; when the
// faults have run out, all is well. A nil fault lets its request through.
func On(method string, faults ...Fault) Schedule {
	next := 0
	return func(_ int, r *http.Request) Fault {
		if r.Method != method || next == len(faults) {
			return nil
		}
		next++
		return faults[next-1]
	}
}

// Always gives every request of the method the fault.
func Always(method string, fault Fault) Schedule {
	return func(_ int, r *http.Request) Fault {
		if r.Method != method {
			return nil
		}
		return fault
	}
}

// A Seen is what a request looked like on its arrival.
type Seen struct {
	Method string
	URL    *url.URL
	Header http.Header
}

// A Proxy stands in front of a server.
type Proxy struct {
	URL string // for an address's endpoint

	mu       sync.Mutex // guards the fields below and the schedule's state
	schedule Schedule
	seen     []Seen
	hits     int
}

// NewProxy starts a proxy in front of the server at endpoint, which ends with the
// test. A nil schedule lets all through.
func NewProxy(t testing.TB, endpoint string, schedule Schedule) *Proxy {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{
		// The signature covers the Host header, which therefore stays the proxy's.
		Rewrite:  func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host },
		ErrorLog: nil,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	p := &Proxy{schedule: schedule}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := p.next(r); fault != nil {
			fault(w, r, forward)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		srv.CloseClientConnections() // some may hang, on purpose
		srv.Close()
	})
	p.URL = srv.URL
	return p
}

func (p *Proxy) next(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := *r.URL
	p.seen = append(p.seen, Seen{Method: r.Method, URL: &u, Header: r.Header.Clone()})
	if p.schedule == nil {
		return nil
	}
	fault := p.schedule(len(p.seen), r)
	if fault != nil {
		p.hits++
	}
	return fault
}

// SetSchedule starts anew with another schedule, and forgets what was seen.
func (p *Proxy) SetSchedule(s Schedule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.schedule, p.seen, p.hits = s, nil, 0
}

// Seen are the requests so far.
func (p *Proxy) Seen() []Seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Seen(nil), p.seen...)
}

// Hits is how many requests met a fault.
func (p *Proxy) Hits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits
}

// Answer answers in the server's place, which never hears of the request.
func Answer(status int, code string) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, "<?xml version=\"1.0\"?>\n<Error><Code>%s</Code><Message>%s, as told</Message></Error>", code, code)
		}
	}
}

// Garbage answers 200 and the body, like a hotel's login page.
func Garbage(body string) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		if r.Method != http.MethodHead {
			w.Write([]byte(body))
		}
	}
}

// Reset cuts the connection; the server never hears of the request.
func Reset(w http.ResponseWriter, r *http.Request, _ http.Handler) { cut(w) }

// LoseReply lets the server do as it was told, then cuts the connection.
func LoseReply(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	forward.ServeHTTP(httptest.NewRecorder(), r)
	cut(w)
}

// Truncate cuts the connection after n bytes of the reply's body, whose length
// was announced in full.
func Truncate(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		rec := record(r, forward)
		body := rec.Body.Bytes()
		reply(w, rec, body[:min(n, len(body))])
		http.NewResponseController(w).Flush()
		cut(w)
	}
}

// Stall sends n bytes of the reply's body and then nothing, until the client
// gives up.
func Stall(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		rec := record(r, forward)
		body := rec.Body.Bytes()
		if n > 0 {
			reply(w, rec, body[:min(n, len(body))])
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}
}

// Slow sends the reply's body in pieces, with a pause before each.
func Slow(piece int, pause time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		rec := record(r, forward)
		body := rec.Body.Bytes()
		reply(w, rec, nil)
		for len(body) > 0 {
			time.Sleep(pause)
			n := min(piece, len(body))
			if _, err := w.Write(body[:n]); err != nil {
				return
			}
			http.NewResponseController(w).Flush()
			body = body[n:]
		}
	}
}

// IgnoreRange answers 200 with the bytes that were asked for, as if they were
// the whole object.
func IgnoreRange(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	rec := record(r, forward)
	rec.Code = http.StatusOK
	rec.Header().Del("Content-Range")
	reply(w, rec, rec.Body.Bytes())
}

// ShiftRange says that the bytes begin one further on than was asked for.
func ShiftRange(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	rec := record(r, forward)
	var from, to, size int64
	if _, err := fmt.Sscanf(rec.Header().Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); err == nil {
		rec.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from+1, to+1, size+1))
	}
	reply(w, rec, rec.Body.Bytes())
}

// ShortRange sends half of the bytes and says that this is all there is of them,
// though not of the object.
func ShortRange(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	rec := record(r, forward)
	body := rec.Body.Bytes()
	body = body[:len(body)/2]
	var from, to, size int64
	if _, err := fmt.Sscanf(rec.Header().Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); err == nil {
		rec.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+int64(len(body))-1, size))
	}
	rec.Header().Set("Content-Length", strconv.Itoa(len(body)))
	reply(w, rec, body)
}

// Edit lets a test alter the status, the header and the body of the reply.
func Edit(edit func(rec *httptest.ResponseRecorder)) Fault {
	return func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		rec := record(r, forward)
		edit(rec)
		rec.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
		reply(w, rec, rec.Body.Bytes())
	}
}

func record(r *http.Request, forward http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	forward.ServeHTTP(rec, r)
	return rec
}

// reply sends the recorded header with its announced length, and body.
func reply(w http.ResponseWriter, rec *httptest.ResponseRecorder, body []byte) {
	for k, v := range rec.Header() {
		if !strings.EqualFold(k, "Transfer-Encoding") {
			w.Header()[k] = v
		}
	}
	w.WriteHeader(rec.Code)
	w.Write(body) // the client may have gone
}

// cut ends the connection with a reset where the system does that.
func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}
