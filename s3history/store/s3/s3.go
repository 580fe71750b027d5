// Package s3 keeps objects in a bucket of Amazon S3, or of anything that speaks
// its protocol.
//
//	s3://BUCKET/PREFIX?endpoint=https://minio.example:9000&region=eu-central-1
//
// Every object is stored by a single PUT: nothing is left of an upload that was
// cut off, and no part sizes or composite checksums differ from server to server.
// The request is signed (SigV4) together with the SHA-256 of the object's bytes,
// so that the server refuses what was damaged on the way. There are no chunked
// signatures and no trailing checksums, which many servers do not understand.
//
// With [Options.ConditionalPut] a Put asks the server never to replace an object
// (If-None-Match). Nothing depends on it: keys name content. A reply that was lost
// makes the retry find the object that the first try has stored: Put then returns
// [store.ErrExist], which for such keys is success.
//
// What passes is tried again, with pauses that grow and vary: lost connections,
// timeouts, 5xx, 429, and answers that are no answers. A connection on which
// nothing moves is given up after [Options.IdleTimeout]. A Get that breaks off goes
// on from where it was.
//
// The server is not trusted with anything but to keep what it acknowledged. Its
// lengths and ranges are compared with what was asked for; the bytes themselves
// are for the caller to authenticate.
package s3

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"github.com/secrate/secrate/s3history/store"
)

// Options say where a bucket is and how it is used. All but Bucket may be zero.
type Options struct {
	Bucket string
	Prefix string // of all keys, without slashes at its ends; "" means none

	Endpoint     string // http://HOST:PORT or https://…; "" means Amazon's, by region
	Region       string // "" means what the environment says, or us-east-1
	VirtualHosts bool   // the bucket is part of the host name; always so without Endpoint

	// ConditionalPut makes Put ask for an error if the key is taken. Set it where
	// [Store.Probe] has found that the server keeps the promise. A server that says
	// it cannot (501) is not asked again.
	ConditionalPut bool

	Attempts    int           // tries of one call, at most; 0 means 10
	MaxElapsed  time.Duration // from a call's first failure to its last try; 0 means 30 minutes
	Backoff     time.Duration // mean pause after the first failure, doubled up to 30 s; 0 means 500 ms
	IdleTimeout time.Duration // without a byte moving; 0 means 2 minutes

	// Credentials replace the usual chain: environment, shared files, container
	// and instance roles.
	Credentials aws.CredentialsProvider
	// Transport replaces the HTTP transport.
	Transport http.RoundTripper
	// Log hears of retries; nil means nobody does.
	Log *slog.Logger
}

const (
	defaultRegion      = "us-east-1"
	defaultAttempts    = 10
	defaultMaxElapsed  = 30 * time.Minute
	defaultBackoff     = 500 * time.Millisecond
	maxBackoff         = 30 * time.Second
	defaultIdleTimeout = 2 * time.Minute
)

// ParseURL reads an address: s3://BUCKET/PREFIX and the parameters endpoint,
// region, path-style (true or false; true is the default with an endpoint) and
// conditional-put (true or false). Credentials have no place in it.
func ParseURL(address string) (Options, error) {
	o, err := parseURL(address)
	if err != nil {
		// The address may hold what must not be repeated, so it is not named.
		return Options{}, &store.Error{Op: "open", Err: err, Hint: "write s3://BUCKET/PREFIX or s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION"}
	}
	return o, nil
}

func parseURL(address string) (Options, error) {
	u, err := url.Parse(address)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // without the address
		}
		return Options{}, fmt.Errorf("s3 address: %w", err)
	}
	switch {
	case u.Scheme != "s3":
		return Options{}, fmt.Errorf("s3 address: its scheme is %q", u.Scheme)
	case u.User != nil:
		return Options{}, errors.New("s3 address: credentials do not belong in an address; put them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or in ~/.aws/credentials")
	case u.Host == "":
		return Options{}, errors.New("s3 address: there is no bucket in it")
	case strings.ContainsAny(u.Host, ":/"):
		return Options{}, fmt.Errorf("s3 address: %q is not the name of a bucket; a host and port go into the parameter endpoint", u.Host)
	case u.Fragment != "":
		return Options{}, errors.New("s3 address: nothing may follow a #")
	}
	o := Options{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Options{}, fmt.Errorf("s3 address: parameters: %w", err)
	}
	pathStyle := true
	for name, values := range q {
		if len(values) != 1 {
			return Options{}, fmt.Errorf("s3 address: parameter %s is given %d times", name, len(values))
		}
		v := values[0]
		switch name {
		case "endpoint":
			if err := checkEndpoint(v); err != nil {
				return Options{}, fmt.Errorf("s3 address: %w", err)
			}
			o.Endpoint = strings.TrimSuffix(v, "/")
		case "region":
			o.Region = v
		case "path-style":
			if pathStyle, err = strconv.ParseBool(v); err != nil {
				return Options{}, fmt.Errorf("s3 address: path-style is %q, want true or false", v)
			}
		case "conditional-put":
			if o.ConditionalPut, err = strconv.ParseBool(v); err != nil {
				return Options{}, fmt.Errorf("s3 address: conditional-put is %q, want true or false", v)
			}
		default:
			return Options{}, fmt.Errorf("s3 address: there is no parameter %q", name)
		}
	}
	o.VirtualHosts = !pathStyle
	return o, nil
}

func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("the endpoint must be http://HOST:PORT or https://HOST:PORT")
	case u.User != nil:
		return errors.New("credentials do not belong in an endpoint")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("the endpoint has parameters; those of the address are separated by &")
	}
	return nil
}

// A Store is a bucket, or what is under a prefix of one. It implements
// [store.Store] and [store.Prober].
type Store struct {
	o      Options
	prefix string // "" or ends in a slash
	client *awss3.Client

	conditional atomic.Bool // ask for If-None-Match
	needMD5     atomic.Bool // the bucket wants Content-MD5, as some with Object Lock do
	reached     atomic.Bool // the server has answered before
}

// Open prepares to use a bucket. It reads the usual configuration files and does
// not speak to the server.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{o: o, prefix: o.Prefix}
	if s.prefix != "" {
		s.prefix += "/"
	}
	if o.Bucket == "" {
		return nil, &store.Error{Op: "open", Err: errors.New("s3: no bucket is named")}
	}
	if o.Attempts == 0 {
		s.o.Attempts = defaultAttempts
	}
	if o.MaxElapsed == 0 {
		s.o.MaxElapsed = defaultMaxElapsed
	}
	if o.Backoff == 0 {
		s.o.Backoff = defaultBackoff
	}
	if o.IdleTimeout == 0 {
		s.o.IdleTimeout = defaultIdleTimeout
	}
	if o.Log == nil {
		s.o.Log = slog.New(slog.DiscardHandler)
	}
	s.conditional.Store(o.ConditionalPut)

	load := []func(*config.LoadOptions) error{config.WithLogger(logging.Nop{})}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.Credentials != nil {
		load = append(load, config.WithCredentialsProvider(o.Credentials))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, &store.Error{Op: "open", At: s.String(), Err: fmt.Errorf("configuration of S3 clients: %w", err),
			Hint: "see AWS_PROFILE, ~/.aws/config and ~/.aws/credentials"}
	}
	if cfg.Region == "" {
		cfg.Region = defaultRegion
	}
	s.o.Region = cfg.Region
	s.client = awss3.NewFromConfig(cfg, func(ao *awss3.Options) {
		if o.Endpoint != "" {
			ao.BaseEndpoint = aws.String(o.Endpoint)
			ao.UsePathStyle = !o.VirtualHosts
		}
		ao.Credentials = credentials{ao.Credentials}
		ao.HTTPClient = newHTTPClient(o.Transport, s.o.IdleTimeout)
		ao.Retryer = aws.NopRetryer{} // retry.go decides
		ao.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		ao.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		ao.DisableLogOutputChecksumValidationSkipped = true
	})
	return s, nil
}

// String is the address, as [ParseURL] takes it.
func (s *Store) String() string {
	u := url.URL{Scheme: "s3", Host: s.o.Bucket}
	if s.o.Prefix != "" {
		u.Path = "/" + s.o.Prefix
	}
	if s.o.Endpoint != "" {
		// A value may hold a slash and a colon, and is easier to read with them.
		u.RawQuery = "endpoint=" + s.o.Endpoint
		if s.o.VirtualHosts {
			u.RawQuery += "&path-style=false"
		}
	}
	return u.String()
}

// name is the key that the bucket has for ours.
func (s *Store) name(key string) *string { return aws.String(s.prefix + key) }
