package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/testenv/loopfs"
)

// TestFound are cases that once failed, reduced: what is in the tree at a first
// snapshot, what is done to it, and whether the first snapshot is still there at the
// second.
func TestFound(t *testing.T) {
	needs(t)
	data := bytes.Repeat([]byte("some data "), 100_000)
	punch := func(name string, off, n int64) error {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return errors.Join(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n), f.Close())
	}
	for _, tt := range []struct {
		name     string
		exclude  []string
		baseGone bool
		before   func(dir string) error
		change   func(dir string) error
	}{
		{
			name:     "a walk removes names",
			baseGone: true,
			before: func(dir string) error {
				return errors.Join(os.Mkdir(dir+"/d", 0o755), os.WriteFile(dir+"/d/f", data, 0o644), os.WriteFile(dir+"/g", nil, 0o644))
			},
			change: func(dir string) error { return errors.Join(os.Remove(dir+"/d/f"), os.Remove(dir+"/g")) },
		},
		{
			name:     "a walk meets a new hole",
			baseGone: true,
			before:   func(dir string) error { return os.WriteFile(dir+"/f", data, 0o644) },
			change:   func(dir string) error { return punch(dir+"/f", 1<<16, 1<<18) },
		},
		{
			name:     "a walk meets a file cut and grown again",
			baseGone: true,
			before:   func(dir string) error { return os.WriteFile(dir+"/f", data, 0o644) },
			change:   func(dir string) error { return errors.Join(os.Truncate(dir+"/f", 0), os.Truncate(dir+"/f", 1<<19)) },
		},
		{
			name:   "an increment meets a new hole",
			before: func(dir string) error { return os.WriteFile(dir+"/f", data, 0o644) },
			change: func(dir string) error { return punch(dir+"/f", 1<<16, 1<<18) },
		},
		{
			name:    "a directory with a file of a new hole is moved below excludes",
			exclude: []string{"*.tmp"},
			before: func(dir string) error {
				return errors.Join(os.Mkdir(dir+"/d", 0o755), os.WriteFile(dir+"/d/f", data, 0o644))
			},
			change: func(dir string) error {
				return errors.Join(punch(dir+"/d/f", 1<<16, 1<<18), os.Rename(dir+"/d", dir+"/e"))
			},
		},
		{
			name:    "a second name of a file is no longer excluded",
			exclude: []string{"*.tmp"},
			before: func(dir string) error {
				return errors.Join(os.WriteFile(dir+"/f", data, 0o644), os.Link(dir+"/f", dir+"/g.tmp"))
			},
			change: func(dir string) error { return os.Rename(dir+"/g.tmp", dir+"/g") },
		},
		{
			name:    "both names of a file are no longer excluded",
			exclude: []string{"*.tmp"},
			before: func(dir string) error {
				return errors.Join(os.WriteFile(dir+"/f.tmp", data, 0o644), os.Link(dir+"/f.tmp", dir+"/g.tmp"))
			},
			change: func(dir string) error {
				return errors.Join(os.Rename(dir+"/f.tmp", dir+"/f"), os.Rename(dir+"/g.tmp", dir+"/g"))
			},
		},
		{
			name:    "a directory with a second name of a file is no longer excluded",
			exclude: []string{"*.tmp"},
			before: func(dir string) error {
				return errors.Join(os.WriteFile(dir+"/f", data, 0o644), os.Mkdir(dir+"/d.tmp", 0o755), os.Link(dir+"/f", dir+"/d.tmp/f"),
					os.WriteFile(dir+"/d.tmp/g", data, 0o644), os.Link(dir+"/d.tmp/g", dir+"/d.tmp/h"))
			},
			change: func(dir string) error { return os.Rename(dir+"/d.tmp", dir+"/d") },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sub := newSubvolume(t, filepath.Join(loopfs.New(t, loopfs.Btrfs, loopfs.Options{}).Dir, "sub"))
			to, m := newTarget(t), writer(t, "")
			args := []string{"source", "add", "vol", sub}
			for _, p := range tt.exclude {
				args = append(args, "--exclude", p)
			}
			m.must(args...)
			r := &randomRun{t: t, m: m, to: to, sub: sub, exclude: tt.exclude}
			r.compile()
			for _, change := range []func(string) error{tt.before, tt.change} {
				if err := change(sub); err != nil {
					t.Fatal(err)
				}
				r.snap("")
				if tt.baseGone {
					for _, name := range local(t, sub) {
						btrfs(t, "subvolume", "delete", filepath.Join(sub, ".secrate", name))
					}
				}
			}
			if len(r.want) != 2 {
				t.Errorf("%d snapshots were committed", len(r.want))
			}
			for i, want := range r.want {
				m.checkRestored(to, "vol", uint64(i+1), want, unset)
			}
		})
	}
}
