// Package s3test starts S3 servers to test against, and stands between one and
// its client to make faults.
//
// A server is built from a pinned version once, runs on a loopback port with
// credentials of its own over a temporary directory, and ends with the test. A
// [Proxy] in front of it answers in its place, cuts connections, loses replies and
// alters bodies, by a schedule that a test can repeat.
package s3test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// A Kind is a program that serves S3.
type Kind string

// The kinds of servers.
const (
	VersityGW Kind = "versitygw"
	MinIO     Kind = "minio"
)

// readyTimeout is how long a server may take until it answers.
const readyTimeout = 30 * time.Second

// A Server is a running S3 server with one empty bucket.
type Server struct {
	Kind      Kind
	Endpoint  string // http://127.0.0.1:PORT
	Bucket    string
	Region    string
	AccessKey string
	SecretKey string

	bin, dir string
	cmd      *exec.Cmd
	output   syncBuffer
	cleanup  func()
}

// Start starts a server that ends with the test. Without the means to build one
// the test is skipped.
func Start(t testing.TB, kind Kind) *Server {
	t.Helper()
	bin, err := Build(t.Context(), kind, t.Output())
	if err != nil {
		t.Skipf("SKIP-MISSING: an S3 server (%s): %v", kind, err)
	}
	s, err := start(t.Context(), kind, bin, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", kind, s.output.tail(4<<10))
		}
	})
	return s
}

// Serve starts a server over the directory dir, or over a temporary one that is
// removed at Close if dir is empty. What takes long is said on log.
func Serve(ctx context.Context, kind Kind, dir string, log io.Writer) (*Server, error) {
	bin, err := Build(ctx, kind, log)
	if err != nil {
		return nil, err
	}
	cleanup := func() {}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "s3test-"); err != nil {
			return nil, fmt.Errorf("s3test: %w", err)
		}
		cleanup = func() { os.RemoveAll(dir) }
	}
	s, err := start(ctx, kind, bin, dir)
	if err != nil {
		cleanup()
		return nil, err
	}
	s.cleanup = cleanup
	return s, nil
}

func start(ctx context.Context, kind Kind, bin, dir string) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("s3test: %w", err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, fmt.Errorf("s3test: %w", err)
	}
	s := &Server{
		Kind: kind, Endpoint: "http://" + addr, Bucket: "secrate-test", Region: "us-east-1",
		AccessKey: "TEST" + rand.Text()[:16], SecretKey: rand.Text() + rand.Text()[:14],
		bin: bin, dir: dir, cleanup: func() {},
	}
	if err := s.Restart(ctx); err != nil {
		return nil, err
	}
	if err := s.CreateBucket(ctx, s.Bucket); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// command is the server's command line. Secrets go by the environment.
func (s *Server) command() (*exec.Cmd, error) {
	data := filepath.Join(s.dir, "data")
	versions := filepath.Join(s.dir, "versions")
	for _, d := range []string{data, versions} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	addr := strings.TrimPrefix(s.Endpoint, "http://")
	var cmd *exec.Cmd
	switch s.Kind {
	case VersityGW:
		cmd = exec.Command(s.bin, "--port", addr, "--region", s.Region, "--quiet",
			"posix", "--versioning-dir", versions, data)
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s.AccessKey, "ROOT_SECRET_ACCESS_KEY="+s.SecretKey)
	case MinIO:
		cmd = exec.Command(s.bin, "server", "--address", addr, "--quiet",
			"--certs-dir", filepath.Join(s.dir, "certs"), data)
		cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.AccessKey, "MINIO_ROOT_PASSWORD="+s.SecretKey,
			"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_SITE_REGION="+s.Region)
	default:
		return nil, fmt.Errorf("s3test: no server is called %q", s.Kind)
	}
	cmd.Dir = s.dir
	cmd.SysProcAttr = dieWithParent()
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	return cmd, nil
}

// Restart starts the server again after a Stop, at the same address with the
// same objects, and waits until it answers.
func (s *Server) Restart(ctx context.Context) error {
	cmd, err := s.command()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("s3test: start %s: %w", s.Kind, err)
	}
	s.cmd = cmd
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		_, err := s.Client().ListBuckets(ctx, nil)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("s3test: %s does not answer: %w\n%s", s.Kind, err, s.output.tail(4<<10)), s.Stop())
		}
	}
}

// Stop kills the server, as a power cut would.
func (s *Server) Stop() error {
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Kill()
	s.cmd.Wait() // killed: the error says so
	s.cmd = nil
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("s3test: stop %s: %w", s.Kind, err)
	}
	return nil
}

// Close stops the server and removes what it has stored, if that was temporary.
func (s *Server) Close() error {
	err := s.Stop()
	s.cleanup()
	return err
}

// Client returns a client of the server that tries once.
func (s *Server) Client() *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(s.Endpoint), Region: s.Region, UsePathStyle: true,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, nil
		}),
		Retryer: aws.NopRetryer{},
	})
}

// CreateBucket makes a bucket beside the one there is.
func (s *Server) CreateBucket(ctx context.Context, name string) error {
	_, err := s.Client().CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name})
	if owned := new(types.BucketAlreadyOwnedByYou); errors.As(err, &owned) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("s3test: create bucket %s: %w", name, err)
	}
	return nil
}

// CreateLockedBucket makes a bucket with versions and Object Lock, and a default
// retention of the mode and of a day unless mode is empty.
func (s *Server) CreateLockedBucket(ctx context.Context, name string, mode types.ObjectLockRetentionMode) error {
	_, err := s.Client().CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: aws.Bool(true)})
	if err != nil {
		return fmt.Errorf("s3test: create bucket %s: %w", name, err)
	}
	if mode == "" {
		return nil
	}
	_, err = s.Client().PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{
		Bucket: &name,
		ObjectLockConfiguration: &types.ObjectLockConfiguration{
			ObjectLockEnabled: types.ObjectLockEnabledEnabled,
			Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{
				Mode: mode, Days: aws.Int32(1),
			}},
		},
	})
	if err != nil {
		return fmt.Errorf("s3test: lock bucket %s: %w", name, err)
	}
	return nil
}

// URL is the address of prefix in the server's bucket, as secrate takes it.
func (s *Server) URL(prefix string) string { return s.URLVia(s.Endpoint, prefix) }

// URLVia is URL with another endpoint, such as that of a [Proxy].
func (s *Server) URLVia(endpoint, prefix string) string {
	q := url.Values{"endpoint": {endpoint}, "region": {s.Region}}
	u := url.URL{Scheme: "s3", Host: s.Bucket, Path: "/" + prefix, RawQuery: q.Encode()}
	return u.String()
}

// Env are the variables with which a client finds the server's credentials, and
// nobody else's.
func (s *Server) Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_SESSION_TOKEN=",
		"AWS_PROFILE=",
		"AWS_CONFIG_FILE=" + os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull,
		"AWS_EC2_METADATA_DISABLED=true",
	}
}

// SetEnv sets Env for the rest of the test.
func (s *Server) SetEnv(t testing.TB) {
	t.Helper()
	for _, kv := range s.Env() {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
}

// A syncBuffer is what a server has said, for when it fails.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) tail(n int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.b.Bytes()
	return string(b[max(0, len(b)-n):])
}
