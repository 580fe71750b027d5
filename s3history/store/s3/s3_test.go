package s3_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/s3"
	"github.com/secrate/secrate/s3history/store/storetest"
	"github.com/secrate/secrate/testenv/s3test"
)

// fixed are credentials that need no environment.
func fixed(id, secret string) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, nil
	})
}

var prefixes atomic.Int64

// options are those for a fresh prefix of srv's bucket, seen through endpoint,
// with pauses that are short.
func options(t testing.TB, srv *s3test.Server, endpoint string) s3.Options {
	return s3.Options{
		Bucket: srv.Bucket, Prefix: fmt.Sprintf("test/%d", prefixes.Add(1)), Endpoint: endpoint, Region: srv.Region,
		Credentials: fixed(srv.AccessKey, srv.SecretKey),
		Backoff:     time.Millisecond, Attempts: 5,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

func open(t testing.TB, o s3.Options) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(ctx context.Context, s store.Store, key, content string) error {
	return s.Put(ctx, key, strings.NewReader(content), int64(len(content)))
}

func get(ctx context.Context, s store.Store, key string, off, n int64) (string, error) {
	r, err := s.Get(ctx, key, off, n)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	return string(b), errors.Join(err, r.Close())
}

func list(ctx context.Context, s store.Store, prefix string) (keys []string, err error) {
	for o, err := range s.List(ctx, prefix) {
		if err != nil {
			return keys, err
		}
		keys = append(keys, o.Key)
	}
	return keys, nil
}

func TestContract(t *testing.T) {
	contract(t, s3test.Start(t, s3test.VersityGW))
}

func contract(t *testing.T, srv *s3test.Server) {
	t.Run("Plain", func(t *testing.T) {
		storetest.Run(t, func(t testing.TB) store.Store { return open(t, options(t, srv, srv.Endpoint)) })
	})
	t.Run("Conditional", func(t *testing.T) {
		newStore := func(t testing.TB) store.Store {
			o := options(t, srv, srv.Endpoint)
			o.ConditionalPut = true
			return open(t, o)
		}
		storetest.Run(t, newStore)
		storetest.RunExclusive(t, newStore)
	})
	t.Run("Restart", func(t *testing.T) {
		s := open(t, options(t, srv, srv.Endpoint))
		if err := put(t.Context(), s, "a", "before"); err != nil {
			t.Fatal(err)
		}
		if err := srv.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := put(t.Context(), s, "b", "meanwhile"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Put without a server: %v, want ErrUnavailable", err)
		}
		if err := srv.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := get(t.Context(), s, "a", 0, -1); err != nil || got != "before" {
			t.Errorf("Get after the restart: %q, %v", got, err)
		}
	})
	t.Run("Probe", func(t *testing.T) { probe(t, srv) })
}

// TestFaults meets each fault once, or a few in a row, and succeeds all the same.
func TestFaults(t *testing.T) {
	srv := s3test.Start(t, s3test.VersityGW)
	proxy := s3test.NewProxy(t, srv.Endpoint, nil)
	content := strings.Repeat("0123456789abcdef", 20_000) // 320 kB
	o := options(t, srv, proxy.URL)
	o.IdleTimeout = 300 * time.Millisecond
	s := open(t, o)
	if err := put(t.Context(), s, "there/a", content); err != nil {
		t.Fatal(err)
	}
	checkPut := func(t *testing.T) {
		key := strings.ToLower(strings.NewReplacer("/", "-", " ", "-", ",", "").Replace(t.Name()))
		if err := put(t.Context(), s, key, content); err != nil {
			t.Fatal(err)
		}
		hits := proxy.Hits()
		if got, err := get(t.Context(), s, key, 0, -1); err != nil || got != content {
			t.Errorf("stored %d bytes, %v; want the %d that were put", len(got), err, len(content))
		}
		if hits == 0 {
			t.Error("no fault was met")
		}
	}
	checkGet := func(t *testing.T) {
		if got, err := get(t.Context(), s, "there/a", 0, -1); err != nil || got != content {
			t.Errorf("Get: %d bytes, %v; want %d", len(got), err, len(content))
		}
	}
	checkPart := func(t *testing.T) {
		if got, err := get(t.Context(), s, "there/a", 1001, 200_000); err != nil || got != content[1001:201_001] {
			t.Errorf("Get of a part: %d bytes, %v; want 200000", len(got), err)
		}
	}
	checkStat := func(t *testing.T) {
		want := store.Object{Key: "there/a", Size: int64(len(content))}
		if got, err := s.Stat(t.Context(), "there/a"); err != nil || got != want {
			t.Errorf("Stat: %v, %v, want %v", got, err, want)
		}
	}
	checkList := func(t *testing.T) {
		if got, err := list(t.Context(), s, "there/"); err != nil || !cmp.Equal(got, []string{"there/a"}) {
			t.Errorf("List: %v, %v", got, err)
		}
	}
	slowDown, broken := s3test.Answer(503, "SlowDown"), s3test.Answer(500, "InternalError")
	for _, tt := range []struct {
		name   string
		method string
		faults []s3test.Fault
		check  func(t *testing.T)
	}{
		{"put, 500 and 503", "PUT", []s3test.Fault{broken, slowDown, s3test.Answer(429, "TooManyRequests")}, checkPut},
		{"put, bad digest", "PUT", []s3test.Fault{s3test.Answer(400, "BadDigest")}, checkPut},
		{"put, conflict", "PUT", []s3test.Fault{s3test.Answer(409, "ConditionalRequestConflict")}, checkPut},
		{"put, reset", "PUT", []s3test.Fault{s3test.Reset, s3test.Reset}, checkPut},
		{"put, reply lost", "PUT", []s3test.Fault{s3test.LoseReply}, checkPut},
		{"put, stalled", "PUT", []s3test.Fault{s3test.Stall(0)}, checkPut},
		{"put, login page", "PUT", []s3test.Fault{s3test.Garbage("<html>please log in</html>")}, checkPut},
		{"put, clock", "PUT", []s3test.Fault{s3test.Answer(403, "RequestTimeTooSkewed")}, checkPut},
		{"get, 500 and 503", "GET", []s3test.Fault{broken, slowDown}, checkGet},
		{"get, reset", "GET", []s3test.Fault{s3test.Reset}, checkGet},
		{"get, cut", "GET", []s3test.Fault{s3test.Truncate(100_001)}, checkGet},
		{"get, cut again and again", "GET", []s3test.Fault{s3test.Truncate(70_000), s3test.Truncate(0), s3test.Truncate(1), broken}, checkGet},
		{"get, stalled", "GET", []s3test.Fault{s3test.Stall(100_000)}, checkGet},
		{"get, slow", "GET", []s3test.Fault{s3test.Slow(100_000, 100*time.Millisecond)}, checkGet},
		{"part, cut", "GET", []s3test.Fault{s3test.Truncate(100_001)}, checkPart},
		{"part, other range", "GET", []s3test.Fault{s3test.ShiftRange}, checkPart},
		{"part, no range", "GET", []s3test.Fault{s3test.IgnoreRange}, checkPart},
		{"part, half of it", "GET", []s3test.Fault{s3test.ShortRange}, checkPart},
		{"stat, 500 and reset", "HEAD", []s3test.Fault{broken, s3test.Reset}, checkStat},
		{"stat, login page", "HEAD", []s3test.Fault{s3test.Garbage("<html/>")}, checkStat},
		{"list, 500 and cut", "GET", []s3test.Fault{broken, s3test.Truncate(200)}, checkList},
		{"list, login page", "GET", []s3test.Fault{s3test.Garbage("<html><body>please log in</body></html>")}, checkList},
		{"list, not XML", "GET", []s3test.Fault{s3test.Garbage("hello")}, checkList},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proxy.SetSchedule(s3test.On(tt.method, tt.faults...))
			tt.check(t)
			if tt.method != "PUT" && proxy.Hits() != len(tt.faults) {
				t.Errorf("%d of %d faults were met", proxy.Hits(), len(tt.faults))
			}
		})
	}
}

// A fault that does not pass becomes an error that says what it is.
func TestLastingFaults(t *testing.T) {
	srv := s3test.Start(t, s3test.VersityGW)
	proxy := s3test.NewProxy(t, srv.Endpoint, nil)
	o := options(t, srv, proxy.URL)
	o.Attempts, o.IdleTimeout = 3, 100*time.Millisecond
	s := open(t, o)
	content := strings.Repeat("x", 100_000)
	if err := put(t.Context(), s, "a", content); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		fault   s3test.Fault
		n       int64 // of a Get from byte 10 on, or -1 for a whole one
		is      error
		message string
	}{
		{name: "500", fault: s3test.Answer(500, "InternalError"), n: -1, is: store.ErrUnavailable, message: "the server answers 500 InternalError"},
		{name: "reset", fault: s3test.Reset, n: -1, is: store.ErrUnavailable, message: "the connection broke"},
		{name: "cut", fault: s3test.Truncate(0), n: -1, is: io.ErrUnexpectedEOF},
		{name: "cut a part", fault: s3test.Truncate(5), n: 20, is: io.ErrUnexpectedEOF},
		{name: "stalled", fault: s3test.Stall(0), n: -1, is: store.ErrUnavailable, message: "not a byte moved"},
		{name: "stalled within", fault: s3test.Stall(3), n: 20, is: store.ErrUnavailable, message: "not a byte moved"},
		{name: "no ranges", fault: s3test.IgnoreRange, n: 20, message: "does the server know ranges?"},
		{name: "other range", fault: s3test.ShiftRange, n: 20, message: "makes no sense"},
		{name: "half a range", fault: s3test.ShortRange, n: 20, message: "makes no sense"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proxy.SetSchedule(s3test.Always("GET", tt.fault))
			off := int64(10)
			if tt.n < 0 {
				off = 0
			}
			got, err := get(t.Context(), s, "a", off, tt.n)
			if err == nil {
				t.Fatalf("Get gave %d bytes and no error", len(got))
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error is %v, want one that is %v", err, tt.is)
			}
			if !strings.Contains(err.Error(), tt.message) {
				t.Errorf("error is %q, want %q in it", err, tt.message)
			}
		})
	}
	proxy.SetSchedule(nil)
	if err := put(t.Context(), s, "b", "x"); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// TestErrors is what a person reads when something is wrong.
func TestErrors(t *testing.T) {
	srv := s3test.Start(t, s3test.VersityGW)
	proxy := s3test.NewProxy(t, srv.Endpoint, nil)
	closed := closedEndpoint(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(secure.Close)

	for _, tt := range []struct {
		name    string
		change  func(o *s3.Options)
		fault   s3test.Fault
		is      error
		message string
		hint    string
	}{
		{name: "access key", change: func(o *s3.Options) { o.Credentials = fixed("UNKNOWN", "secret") },
			is: store.ErrPermission, message: "the server does not know this access key", hint: "AWS_ACCESS_KEY_ID"},
		{name: "secret key", change: func(o *s3.Options) { o.Credentials = fixed(srv.AccessKey, "wrong") },
			is: store.ErrPermission, message: "the secret key is wrong", hint: "AWS_SECRET_ACCESS_KEY"},
		{name: "bucket", change: func(o *s3.Options) { o.Bucket = "no-such-bucket" },
			message: "there is no bucket no-such-bucket", hint: "create it"},
		{name: "refused", change: func(o *s3.Options) { o.Endpoint = closed },
			is: store.ErrUnavailable, message: "nothing listens at " + closed, hint: "is the server running"},
		{name: "name", change: func(o *s3.Options) { o.Endpoint = "http://s3.nowhere.invalid" },
			is: store.ErrUnavailable, message: "no address is known for s3.nowhere.invalid", hint: "check the network"},
		{name: "no TLS", change: func(o *s3.Options) { o.Endpoint = strings.Replace(plain.URL, "http:", "https:", 1) },
			message: "does not speak TLS", hint: "http://"},
		{name: "strange certificate", change: func(o *s3.Options) { o.Endpoint = secure.URL },
			message: "is not trusted", hint: "SSL_CERT_FILE"},
		{name: "denied", fault: s3test.Answer(403, "AccessDenied"), is: store.ErrPermission, message: "permission denied (403 AccessDenied)", hint: "secrate policy"},
		{name: "expired", fault: s3test.Answer(400, "ExpiredToken"), is: store.ErrPermission, message: "expired", hint: "log in again"},
		{name: "clock", fault: s3test.Answer(403, "RequestTimeTooSkewed"), message: "clock", hint: "set the clock"},
		{name: "full", fault: s3test.Answer(507, "XMinioStorageFull"), message: "the destination is full", hint: "make room"},
		{name: "busy", fault: s3test.Answer(503, "SlowDown"), is: store.ErrUnavailable, message: "the server answers 503 SlowDown", hint: "later"},
		{name: "region by header", fault: regionFault(301, "PermanentRedirect", "eu-west-1", ""), message: "the bucket is in region eu-west-1, not us-east-1", hint: "region=eu-west-1"},
		{name: "region by message", fault: regionFault(400, "AuthorizationHeaderMalformed", "", "the region 'us-east-1' is wrong; expecting 'eu-west-2'"), message: "the bucket is in region eu-west-2", hint: "region=eu-west-2"},
		{name: "redirect", fault: s3test.Answer(307, "TemporaryRedirect"), message: "the bucket is not in region us-east-1", hint: "region=REGION"},
		{name: "login page", fault: s3test.Garbage("<html/>"), message: "makes no sense", hint: "login page"},
		{name: "unknown", fault: s3test.Answer(418, "Teapot"), message: "the server answers 418 Teapot: Teapot, as told"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proxy.SetSchedule(s3test.Always("PUT", tt.fault))
			o := options(t, srv, proxy.URL)
			if tt.change != nil {
				tt.change(&o)
			}
			start := time.Now()
			err := put(t.Context(), open(t, o), "a", "x")
			if err == nil {
				t.Fatal("no error")
			}
			t.Logf("%v\nhint: %s", err, store.Hint(err))
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error is not %v", tt.is)
			}
			if !strings.Contains(err.Error(), tt.message) {
				t.Errorf("error lacks %q", tt.message)
			}
			if h := store.Hint(err); !strings.Contains(h, tt.hint) {
				t.Errorf("hint lacks %q", tt.hint)
			}
			if strings.Contains(err.Error(), srv.SecretKey) {
				t.Error("error tells the secret key")
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestNoCredentials(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	s := open(t, s3.Options{Bucket: "b", Endpoint: closedEndpoint(t)})
	err := put(t.Context(), s, "a", "x")
	if !errors.Is(err, store.ErrPermission) || !strings.Contains(err.Error(), "no credentials found") || !strings.Contains(store.Hint(err), "AWS_ACCESS_KEY_ID") {
		t.Errorf("error is %v, hint %q", err, store.Hint(err))
	}
}

// closedEndpoint is one at which nothing listens.
func closedEndpoint(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func regionFault(status int, code, header, message string) s3test.Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		if header != "" {
			w.Header().Set("X-Amz-Bucket-Region", header)
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
	}
}

// TestPutRequest looks at what goes over the wire, without and with TLS.
func TestPutRequest(t *testing.T) {
	const content = "some bytes"
	for _, secure := range []bool{false, true} {
		for _, conditional := range []bool{false, true} {
			t.Run(fmt.Sprintf("TLS=%v,conditional=%v", secure, conditional), func(t *testing.T) {
				var seen *http.Request
				var body []byte
				handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					seen, body = r, nil
					body, _ = io.ReadAll(r.Body)
					w.Header().Set("ETag", `"1"`)
				})
				srv := httptest.NewUnstartedServer(handler)
				if secure {
					srv.StartTLS()
				} else {
					srv.Start()
				}
				defer srv.Close()
				s := open(t, s3.Options{
					Bucket: "b", Prefix: "p/q", Endpoint: srv.URL, Region: "us-east-1", Credentials: fixed("id", "secret"),
					Transport: srv.Client().Transport, ConditionalPut: conditional,
				})
				if err := put(t.Context(), s, "packs/a", content); err != nil {
					t.Fatal(err)
				}
				if string(body) != content {
					t.Errorf("body is %q: is it chunked?", body)
				}
				none := ""
				if conditional {
					none = "*"
				}
				want := map[string]string{
					"Path": "/b/p/q/packs/a", "Length": fmt.Sprint(len(content)),
					"X-Amz-Content-Sha256": fmt.Sprintf("%x", sha256.Sum256([]byte(content))),
					"If-None-Match":        none, "Content-Encoding": "", "X-Amz-Trailer": "",
					"X-Amz-Sdk-Checksum-Algorithm": "", "X-Amz-Checksum-Crc32": "", "Content-Md5": "",
				}
				got := map[string]string{"Path": seen.URL.Path, "Length": fmt.Sprint(seen.ContentLength)}
				for h := range want {
					if h != "Path" && h != "Length" {
						got[h] = seen.Header.Get(h)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("request (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestAdapts has servers that lack something, or want more.
func TestAdapts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		refuse func(r *http.Request) (status int, code, message string)
		asked  int64 // requests for two Puts
	}{
		{"no conditions", func(r *http.Request) (int, string, string) {
			if r.Header.Get("If-None-Match") != "" {
				return 501, "NotImplemented", "A header you provided implies functionality that is not implemented"
			}
			return 0, "", ""
		}, 3},
		{"wants MD5", func(r *http.Request) (int, string, string) {
			if r.Header.Get("Content-MD5") != "mgNkuembtIDdJeHwKEyFVQ==" {
				return 400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"
			}
			return 0, "", ""
		}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				io.Copy(io.Discard, r.Body)
				if status, code, message := tt.refuse(r); status != 0 {
					w.WriteHeader(status)
					fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
					return
				}
				w.Header().Set("ETag", `"1"`)
			}))
			defer srv.Close()
			s := open(t, s3.Options{Bucket: "b", Endpoint: srv.URL, Region: "us-east-1", Credentials: fixed("id", "secret"), ConditionalPut: true})
			for _, key := range []string{"a", "b"} {
				if err := put(t.Context(), s, key, "content"); err != nil {
					t.Fatal(err)
				}
			}
			if got := asked.Load(); got != tt.asked {
				t.Errorf("%d requests for two Puts, want %d: what it learns it should remember", got, tt.asked)
			}
		})
	}
}

// A Put that ends early leaves the caller's reader alone from then on. A server
// that refuses before it has read the body should close the connection; one that
// does not may be taken for one that broke, but not waited for.
func TestRefusedEarly(t *testing.T) {
	for _, closes := range []bool{true, false} {
		t.Run(fmt.Sprintf("closes=%v", closes), func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if closes {
					w.Header().Set("Connection", "close")
				}
				http.Error(w, "", http.StatusForbidden)
			}))
			defer srv.Close()
			s := open(t, s3.Options{
				Bucket: "b", Endpoint: srv.URL, Region: "us-east-1", Credentials: fixed("id", "secret"),
				Backoff: time.Millisecond, Attempts: 2,
			})
			content := make([]byte, 16<<20)
			for range 3 {
				err := s.Put(t.Context(), "a", bytes.NewReader(content), int64(len(content)))
				if err == nil || closes && !errors.Is(err, store.ErrPermission) {
					t.Fatalf("Put: %v, want ErrPermission", err)
				}
				clear(content) // the race detector sees a transport that still reads
			}
		})
	}
}

// A limit and an observer see through retries: every byte is counted once, and
// hashing is neither limited nor counted.
func TestWrapped(t *testing.T) {
	srv := s3test.Start(t, s3test.VersityGW)
	proxy := s3test.NewProxy(t, srv.Endpoint, s3test.On("PUT", s3test.LoseReply, s3test.Answer(503, "SlowDown")))
	var sent, received, calls atomic.Int64
	inner := open(t, options(t, srv, proxy.URL))
	s := store.Observe(store.Limit(inner, 10<<20), store.Observer{
		Sent:     func(_ string, n int64) { sent.Add(n); calls.Add(1) },
		Received: func(_ string, n int64) { received.Add(n) },
	})
	content := make([]byte, 3<<20)
	start := time.Now()
	if err := s.Put(t.Context(), "a", bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	// Two or three times 3 MiB go out at 10 MiB/s, all but a burst.
	if d := time.Since(start); d < 400*time.Millisecond {
		t.Errorf("took %v: not limited", d)
	}
	if got := sent.Load(); got != int64(len(content)) || calls.Load() < 3 {
		t.Errorf("%d bytes sent in %d calls, want %d bytes, in pieces", got, calls.Load(), len(content))
	}
	if _, err := get(t.Context(), s, "a", 0, -1); err != nil || received.Load() != int64(len(content)) {
		t.Errorf("%d bytes received, %v, want %d", received.Load(), err, len(content))
	}
	if err := put(t.Context(), s, "a/../b", "x"); err == nil || sent.Load() != int64(len(content)) {
		t.Errorf("after a Put that failed (%v) %d bytes are counted", err, sent.Load())
	}
}

func probe(t *testing.T, srv *s3test.Server) {
	for _, tt := range []struct {
		bucket string
		mode   types.ObjectLockRetentionMode
		locked bool
		want   store.Capabilities
	}{
		{bucket: srv.Bucket, want: store.Capabilities{ObjectLock: "none", Versioning: "off"}},
		{bucket: "secrate-locked", locked: true, want: store.Capabilities{ObjectLock: "enabled", Versioning: "enabled"}},
		{bucket: "secrate-governed", locked: true, mode: types.ObjectLockRetentionModeGovernance,
			want: store.Capabilities{ObjectLock: "governance 1d", Versioning: "enabled"}},
	} {
		t.Run(tt.bucket, func(t *testing.T) {
			if tt.locked {
				if err := srv.CreateLockedBucket(t.Context(), tt.bucket, tt.mode); err != nil {
					t.Skipf("SKIP-MISSING: Object Lock in %s over this file system: %v", srv.Kind, err)
				}
			}
			o := options(t, srv, srv.Endpoint)
			o.Bucket = tt.bucket
			s := open(t, o)
			got, err := store.Probe(t.Context(), s, "probe")
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Put, tt.want.Get, tt.want.List = store.Yes, store.Yes, store.Yes
			tt.want.ConditionalPut, tt.want.Range = store.Yes, store.Yes
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Probe (-want +got):\n%s", diff)
			}
			if keys, err := list(t.Context(), s, ""); err != nil || len(keys) != 1 {
				t.Errorf("Probe left %v, %v, want one object", keys, err)
			}
			if err := put(t.Context(), s, "packs/a", "x"); err != nil {
				t.Errorf("Put: %v", err)
			}
		})
	}
}

// Servers that do not do what they seem to, or that refuse.
func TestProbeOthers(t *testing.T) {
	srv := s3test.Start(t, s3test.VersityGW)
	dropCondition := func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("ETag", `"1"`)
	}
	for _, tt := range []struct {
		name     string
		schedule s3test.Schedule
		want     store.Capabilities
	}{
		{"ignores conditions", s3test.Always("PUT", dropCondition),
			store.Capabilities{Put: store.Yes, ConditionalPut: store.No}},
		{"knows no conditions", func(_ int, r *http.Request) s3test.Fault {
			if r.Header.Get("If-None-Match") != "" {
				return s3test.Answer(501, "NotImplemented")
			}
			return nil
		}, store.Capabilities{Put: store.Yes, Get: store.Yes, ConditionalPut: store.No, Range: store.Yes}},
		{"write-only", func(_ int, r *http.Request) s3test.Fault {
			if r.Method == http.MethodGet {
				return s3test.Answer(403, "AccessDenied")
			}
			return nil
		}, store.Capabilities{Put: store.Yes, Get: store.No, List: store.No, ConditionalPut: store.Yes, ObjectLock: "unknown", Versioning: "unknown"}},
		{"ranges ignored", func(_ int, r *http.Request) s3test.Fault {
			if r.Header.Get("Range") != "" {
				return s3test.IgnoreRange
			}
			return nil
		}, store.Capabilities{Put: store.Yes, Get: store.Yes, ConditionalPut: store.Yes, Range: store.No}},
		{"read-only", s3test.Always("PUT", s3test.Answer(403, "AccessDenied")),
			store.Capabilities{Put: store.No}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proxy := s3test.NewProxy(t, srv.Endpoint, tt.schedule)
			got, err := open(t, options(t, srv, proxy.URL)).Probe(t.Context(), "probe")
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Detail) == 0 {
				t.Error("no detail says why")
			}
			t.Log(got.Detail)
			// Fields that the case does not speak of are not compared.
			if tt.want.Get == "" {
				got.Get = ""
			}
			if tt.want.Range == "" {
				got.Range = ""
			}
			if tt.want.List == "" {
				got.List = ""
			}
			if tt.want.ObjectLock == "" {
				got.ObjectLock, got.Versioning = "", ""
			}
			if tt.want.ConditionalPut == "" {
				got.ConditionalPut = ""
			}
			got.Detail = nil
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Probe (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPages has more objects than a page, and a server whose pages never end.
func TestPages(t *testing.T) {
	page := func(keys []string, next string) string {
		var b strings.Builder
		fmt.Fprintf(&b, "<ListBucketResult><Name>b</Name><KeyCount>%d</KeyCount><EncodingType>url</EncodingType><IsTruncated>%v</IsTruncated><NextContinuationToken>%s</NextContinuationToken>", len(keys), next != "", next)
		for _, k := range keys {
			fmt.Fprintf(&b, "<Contents><Key>%s</Key><Size>3</Size></Contents>", k)
		}
		return b.String() + "</ListBucketResult>"
	}
	for _, tt := range []struct {
		name  string
		pages map[string]string // by continuation token
		want  []string
		err   string
	}{
		{name: "three", pages: map[string]string{"": page([]string{"p/a", "p/b"}, "1"), "1": page(nil, "2"), "2": page([]string{"p/c%2Fd"}, "")},
			want: []string{"a", "b", "c/d"}},
		{name: "strangers", pages: map[string]string{"": page([]string{"p/", "p/A", "p/a", "p/b%00c", "p/d+e"}, "")}, want: []string{"a"}},
		{name: "endless", pages: map[string]string{"": page([]string{"p/a"}, "1"), "1": page(nil, "1")}, want: []string{"a"}, err: "no next page"},
		{name: "no token", pages: map[string]string{"": strings.Replace(page([]string{"p/a"}, ""), "false", "true", 1)}, want: []string{"a"}, err: "no next page"},
		{name: "again", pages: map[string]string{"": page([]string{"p/a"}, "1"), "1": page([]string{"p/a"}, "")}, want: []string{"a"}, err: "out of order"},
		{name: "another prefix", pages: map[string]string{"": page([]string{"q/a"}, "")}, err: "not asked for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, tt.pages[r.URL.Query().Get("continuation-token")])
			}))
			defer srv.Close()
			s := open(t, s3.Options{Bucket: "b", Prefix: "p", Endpoint: srv.URL, Region: "us-east-1", Credentials: fixed("id", "secret")})
			got, err := list(t.Context(), s, "")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("List (-want +got):\n%s", diff)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error is %v, want %q in it", err, tt.err)
			}
		})
	}
}

func TestParseURL(t *testing.T) {
	for _, tt := range []struct {
		address string
		want    s3.Options
		str     string // String of the store, if not the address
		err     string
	}{
		{address: "s3://b", want: s3.Options{Bucket: "b"}},
		{address: "s3://b/", want: s3.Options{Bucket: "b"}, str: "s3://b"},
		{address: "s3://my.bucket/some/prefix/", want: s3.Options{Bucket: "my.bucket", Prefix: "some/prefix"}, str: "s3://my.bucket/some/prefix"},
		{address: "s3://b/p?endpoint=http://127.0.0.1:9000&region=eu-central-1",
			want: s3.Options{Bucket: "b", Prefix: "p", Endpoint: "http://127.0.0.1:9000", Region: "eu-central-1"}, str: "s3://b/p?endpoint=http://127.0.0.1:9000"},
		{address: "s3://b?endpoint=https%3A%2F%2Fh%2F&path-style=false&conditional-put=true",
			want: s3.Options{Bucket: "b", Endpoint: "https://h", VirtualHosts: true, ConditionalPut: true}, str: "s3://b?endpoint=https://h&path-style=false"},
		{address: "s3://key:secret@b/p", err: "credentials do not belong in an address"},
		{address: "s3://key@b/p", err: "credentials do not belong in an address"},
		{address: "s3://b?endpoint=http://key:secret@h", err: "credentials do not belong in an endpoint"},
		{address: "s3://h:9000/b", err: "not the name of a bucket"},
		{address: "s3:///p", err: "no bucket"},
		{address: "s3:b", err: "no bucket"},
		{address: "http://b/p", err: "scheme"},
		{address: "s3://b?endpoint=h:9000", err: "endpoint must be http://"},
		{address: "s3://b?endpoint=http://h?region=x", err: "has parameters"},
		{address: "s3://b?regoin=x", err: `no parameter "regoin"`},
		{address: "s3://b?region=x&region=y", err: "2 times"},
		{address: "s3://b?path-style=maybe", err: "true or false"},
		{address: "s3://b/p#x", err: "#"},
		{address: "s3://b/%zz", err: "invalid URL escape"},
	} {
		t.Run(tt.address, func(t *testing.T) {
			got, err := s3.ParseURL(tt.address)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error is %v, want %q in it", err, tt.err)
				} else if strings.Contains(err.Error()+store.Hint(err), "secret") {
					t.Errorf("error %q tells the secret", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Options (-want +got):\n%s", diff)
			}
			if tt.str == "" {
				tt.str = tt.address
			}
			got.Credentials = fixed("id", "secret")
			if str := open(t, got).String(); str != tt.str {
				t.Errorf("String is %s, want %s", str, tt.str)
			}
		})
	}
}
