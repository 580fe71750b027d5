// S3serve runs an S3 server to try secrate with. It prints what to set in a
// shell, and ends, with all that was stored unless -dir names a place, at the
// first interrupt.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/secrate/secrate/testenv/s3test"
)

func main() {
	kind := flag.String("kind", string(s3test.VersityGW), "`server` to run: versitygw or minio")
	dir := flag.String("dir", "", "`directory` to keep objects in; temporary if empty")
	flag.Parse()
	if err := run(s3test.Kind(*kind), *dir); err != nil {
		fmt.Fprintln(os.Stderr, "s3serve: error:", err)
		os.Exit(1)
	}
}

func run(kind s3test.Kind, dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := s3test.Serve(ctx, kind, dir, os.Stderr)
	if err != nil {
		return err
	}
	for _, kv := range s.Env() {
		k, v, _ := strings.Cut(kv, "=")
		fmt.Printf("export %s='%s'\n", k, v)
	}
	fmt.Printf("export SECRATE_DEMO_URL='%s'\n", s.URL("demo"))
	<-ctx.Done()
	return s.Close()
}
