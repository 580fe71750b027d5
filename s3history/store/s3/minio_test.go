//go:build minio

package s3_test

import (
	"testing"

	"github.com/secrate/secrate/testenv/s3test"
)

// TestContractMinIO is TestContract with a server that takes minutes to build.
func TestContractMinIO(t *testing.T) { contract(t, s3test.Start(t, s3test.MinIO)) }
