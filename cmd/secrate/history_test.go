package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
)

func TestPick(t *testing.T) {
	day := func(d int) time.Time { return time.Date(2026, 11, d, 12, 0, 0, 0, time.UTC) }
	snap := func(seq uint64, d int) s3history.Snapshot {
		return s3history.Snapshot{Seq: seq, Info: s3history.SnapshotInfo{Time: filetree.TimeOf(day(d))}}
	}
	// #3 is lost; before #5 the clock was set back.
	p := &past{name: "home", snapshots: []s3history.Snapshot{snap(1, 10), snap(2, 12), snap(4, 20), snap(5, 15)}}
	tests := []struct {
		name string
		at   when.Point
		want uint64
		err  string
	}{
		{"the latest", when.Point{Latest: true}, 5, ""},
		{"a number", when.Point{Seq: 2}, 2, ""},
		{"a number that is lost", when.Point{Seq: 3}, 0, "home has no snapshot #3"},
		{"a number that is to come", when.Point{Seq: 6}, 0, "home has no snapshot #6"},
		{"the very moment", when.Point{Time: day(12)}, 2, ""},
		{"just before", when.Point{Time: day(12).Add(-1)}, 1, ""},
		{"between", when.Point{Time: day(13)}, 2, ""},
		{"the highest number counts", when.Point{Time: day(21)}, 5, ""},
		{"also where others are nearer", when.Point{Time: day(16)}, 5, ""},
		{"before the first", when.Point{Time: day(9)}, 0, "the first, #1, is of 2026-11-10T12:00:00.000000000Z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := p.pick(tt.at)
			if got.Seq != tt.want {
				t.Errorf("#%d, want #%d", got.Seq, tt.want)
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q in it", err, tt.err)
			}
			if err != nil && hintFor(err) == "" {
				t.Errorf("error %v has no hint", err)
			}
		})
	}
}

func TestFullAddress(t *testing.T) {
	t.Setenv("AWS_REGION", "eu-1")
	for _, tt := range []struct {
		repo, want string
		s3         bool
	}{
		{"/mnt/disk", "/mnt/disk", false},
		{"s3://b/p", "s3://b/p?region=eu-1", true},
		{"s3://b/p?endpoint=https://h", "s3://b/p?endpoint=https://h&region=eu-1", true},
		{"s3://b/p?region=us-2", "s3://b/p?region=us-2", true},
	} {
		if got, isS3 := fullAddress(tt.repo); got != tt.want || isS3 != tt.s3 {
			t.Errorf("fullAddress(%q) = %q, %v, want %q, %v", tt.repo, got, isS3, tt.want, tt.s3)
		}
	}
}

func TestModeText(t *testing.T) {
	for _, tt := range []struct {
		kind filetree.Kind
		mode uint32
		want string
	}{
		{filetree.File, 0o640, "-rw-r-----"},
		{filetree.Dir, 0o1777, "drwxrwxrwt"},
		{filetree.Dir, 0o1776, "drwxrwxrwT"},
		{filetree.File, 0o4755, "-rwsr-xr-x"},
		{filetree.File, 0o6644, "-rwSr-Sr--"},
		{filetree.CharDev, 0, "c---------"},
		{filetree.Symlink, 0o777, "lrwxrwxrwx"},
	} {
		if got := modeText(&filetree.Attr{Kind: tt.kind, Mode: tt.mode}); got != tt.want {
			t.Errorf("%v %04o: %s, want %s", tt.kind, tt.mode, got, tt.want)
		}
	}
}

func TestHintFor(t *testing.T) {
	if got := hintFor(hinted(errors.Join(errors.New("x"), s3history.ErrNoRepository), "do %s", "that")); got != "do that" {
		t.Errorf("the nearest hint is %q", got)
	}
	if hintFor(errors.New("x")) != "" {
		t.Error("there is a hint for what is not known")
	}
}

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{"/a/b-c.d_e": "/a/b-c.d_e", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "s3://b?x=1&y": "'s3://b?x=1&y'"} {
		if got := quote(s); got != want {
			t.Errorf("quote(%q) = %s, want %s", s, got, want)
		}
	}
}
