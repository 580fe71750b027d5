package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// zfsStream returns recorded streams of ZFS, one behind the other.
func zfsStream(t *testing.T, names ...string) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var all []byte
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join("../../sendstream/zfs/zpl/testdata/corpus", name+".zsend.zst"))
		if err != nil {
			t.Fatal(err)
		}
		if all, err = d.DecodeAll(b, all); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestCrashZFS kills secrate ingest of ZFS streams at each of its crash points in turn. The
// same command again must complete both snapshots, and the stream after them must be
// understood too: what it needs stands in the catalog alone, which a kill must not cost.
func TestCrashZFS(t *testing.T) {
	needs(t)
	m := writer(t, "")
	two := zfsStream(t, "f_sa_auto/010-full-s1", "f_sa_auto/020-s1-s2")
	third := zfsStream(t, "f_sa_auto/030-s2-s3")
	log := filepath.Join(m.dir, "points")
	ingest := func(source string, stream []byte, env ...string) outcome {
		return m.feed(bytes.NewReader(stream), append(env, "ingest", source, "--quiet")...)
	}
	listing := func(source string) (all string) {
		for seq := 1; seq <= 3; seq++ {
			all += m.must("ls", "-r", source, "--at", fmt.Sprint("#", seq)).stdout
		}
		return all
	}
	var want string
	killed, kept := 0, false
	for n := 0; ; n++ {
		source := fmt.Sprint("tank", n)
		m.must("source", "add", source, "--mode", "stream")
		if err := os.RemoveAll(log); err != nil {
			t.Fatal(err)
		}
		var env []string
		if n > 0 { // the first is the one that the others are compared with
			env = []string{fmt.Sprint("SECRATE_CRASH=", n), "SECRATE_CRASH_COUNT=" + log}
		}
		o := ingest(source, two, env...)
		if o.status == -1 {
			killed++
			if passed, err := os.ReadFile(log); err != nil {
				t.Fatal(err)
			} else if strings.HasSuffix(strings.TrimSpace(string(passed)), "journal kept") {
				kept = true
			}
			ingest(source, two).expect(t, 0)
		} else if o.expect(t, 0); n > 0 {
			break
		}
		ingest(source, third).expect(t, 0)
		if n == 0 {
			want = listing(source)
		} else if got := listing(source); got != want {
			t.Errorf("killed at %d: the history has\n%s\nand not\n%s", n, got, want)
		}
		if left, err := filepath.Glob(filepath.Join(m.state(), "journal", "*")); err != nil || len(left) > 0 {
			t.Errorf("killed at %d: the journal still has %q, %v", n, left, err)
		}
	}
	if killed < 10 || !kept {
		t.Errorf("killed at %d points, with what is kept in the journal: %v", killed, kept)
	}
	t.Logf("killed at %d points", killed)
	m.must("verify", "--read-data", "--identity", m.identity)
}
