package s3test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// A tool is a server that is built from a module of its own.
type tool struct {
	module string // the module's directory, relative to the root of ours
	pkg    string // the package to build
}

var tools = map[Kind]tool{
	VersityGW: {"testenv/s3server", "github.com/versity/versitygw/cmd/versitygw"},
	MinIO:     {"testenv/s3server/minio", "github.com/minio/minio"},
}

// Build returns the path of a server of the kind, which it builds unless that
// was done before for the versions in its go.mod. It says on log how long a build
// took.
func Build(ctx context.Context, kind Kind, log io.Writer) (string, error) {
	tl, ok := tools[kind]
	if !ok {
		return "", fmt.Errorf("s3test: no server is called %q", kind)
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, tl.module)
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", fmt.Errorf("s3test: %w", err)
		}
		h.Write(b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "secrate", "testenv")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", fmt.Errorf("s3test: %w", err)
	}
	bin := filepath.Join(cache, fmt.Sprintf("%s-%x", kind, h.Sum(nil)[:8]))

	// Tests of several packages run at once; one builds, the others wait.
	lock, err := os.OpenFile(bin+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", fmt.Errorf("s3test: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("s3test: lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	start := time.Now()
	fmt.Fprintf(log, "s3test: building %s, once; this takes some minutes\n", tl.pkg)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", bin+".new", tl.pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("s3test: go build %s: %w\n%s", tl.pkg, err, bytes.TrimSpace(out))
	}
	if err := os.Rename(bin+".new", bin); err != nil {
		return "", fmt.Errorf("s3test: %w", err)
	}
	fmt.Fprintf(log, "s3test: built %s in %v\n", tl.pkg, time.Since(start).Round(time.Second))
	return bin, nil
}

// moduleRoot is the directory of secrate's go.mod.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("s3test: go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("s3test: not inside secrate's source tree")
	}
	return filepath.Dir(mod), nil
}
