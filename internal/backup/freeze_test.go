package backup_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/secrate/secrate/internal/backup"
	"github.com/secrate/secrate/testenv/loopfs"
)

// TestScanFrozen scans a file that somebody writes to without end: the number of the round at its
// front, then at its end. Where the file system can share blocks, what is kept is what the file was
// at one moment.
func TestScanFrozen(t *testing.T) {
	for _, tt := range []struct {
		kind   loopfs.Kind
		frozen bool
	}{{loopfs.XFS, true}, {loopfs.Btrfs, true}, {loopfs.Ext4, false}} {
		t.Run(string(tt.kind), func(t *testing.T) {
			c := newScanCase(t)
			c.dir = filepath.Join(loopfs.New(t, tt.kind, loopfs.Options{}).Dir, "tree")
			const size = 12 << 20
			still := randomBytes(1, size-16)
			c.write("db", string(make([]byte, 8))+string(still)+string(make([]byte, 8)))
			f, err := os.OpenFile(c.path("db"), os.O_RDWR, 0)
			c.must(err)
			defer f.Close()
			stop := endless(t, func(i int64) error {
				b := binary.BigEndian.AppendUint64(nil, uint64(i+1))
				_, err := f.WriteAt(b, 0)
				if err == nil {
					_, err = f.WriteAt(b, size-8)
				}
				return err
			})
			var last uint64
			torn := 0
			for range 6 {
				res, err := c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{})
				c.must(err)
				torn += res.Failures
				src := c.f.source("s")
				head, err := c.f.w.Head(src)
				c.must(err)
				v := c.f.cat.At(src.ID, head.Seq)
				n, err := v.Resolve([]string{"db"})
				c.must(err)
				a, err := v.Attr(n)
				c.must(err)
				if a.Incomplete != (res.Failures > 0) || a.Incomplete && tt.frozen {
					t.Errorf("#%d: incomplete %v, failed %q", head.Seq, a.Incomplete, res.Failed)
				}
				if !tt.frozen {
					continue
				}
				got := c.f.contentAt("s", head.Seq, "db")
				front, end := binary.BigEndian.Uint64(got), binary.BigEndian.Uint64(got[size-8:])
				if len(got) != size || front != end && front != end+1 {
					t.Errorf("#%d: %d bytes, round %d at the front, %d at the end", head.Seq, len(got), front, end)
				}
				if !bytes.Equal(got[8:size-8], still) {
					t.Errorf("#%d: what is between is not what it was", head.Seq)
				}
				if front <= last {
					t.Errorf("#%d: round %d, after %d", head.Seq, front, last)
				}
				last = front
			}
			if torn == 0 && !tt.frozen {
				t.Error("never was the file changed while it was read")
			}
			stop()
			c.f.scan("s", c.dir, backup.ScanOptions{})
			c.same(t, "after it stands still")
			if res := c.f.scan("s", c.dir, backup.ScanOptions{}); !res.Unchanged {
				t.Errorf("scanned again: %+v", res)
			}
		})
	}
}

// TestScanFrozenSize scans files that grow and shrink all the while, each byte the round in which
// it was written: none has bytes of another round than its size says.
func TestScanFrozenSize(t *testing.T) {
	for _, kind := range []loopfs.Kind{loopfs.XFS, loopfs.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			c := newScanCase(t)
			c.dir = filepath.Join(loopfs.New(t, kind, loopfs.Options{}).Dir, "tree")
			const least, step = 2 << 20, 4096
			c.write("log", string(make([]byte, least)))
			f, err := os.OpenFile(c.path("log"), os.O_RDWR, 0)
			c.must(err)
			defer f.Close()
			// 100 blocks grow, each with its number, then all go at once.
			stop := endless(t, func(i int64) error {
				k := i % 101
				if k == 100 {
					return f.Truncate(least)
				}
				_, err := f.WriteAt(bytes.Repeat([]byte{byte(k + 1)}, step), least+k*step)
				return err
			})
			for range 8 {
				res, err := c.f.job("s").Scan(t.Context(), c.dir, backup.ScanOptions{})
				c.must(err)
				if res.Failures > 0 {
					t.Errorf("failed %q", res.Failed)
				}
				head, err := c.f.w.Head(c.f.source("s"))
				c.must(err)
				got := c.f.contentAt("s", head.Seq, "log")
				want := make([]byte, least)
				for k := 0; len(want) < len(got); k++ {
					want = append(want, bytes.Repeat([]byte{byte(k + 1)}, step)...)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("#%d: %d bytes are not those that were written", head.Seq, len(got))
				}
			}
			stop()
			c.f.scan("s", c.dir, backup.ScanOptions{})
			c.same(t, "after it stands still")
		})
	}
}
