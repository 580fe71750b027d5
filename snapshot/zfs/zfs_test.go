package zfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNames(t *testing.T) {
	at := time.Date(2026, 11, 25, 16, 13, 49, 168e6, time.FixedZone("", 3600))
	const want = "secrate.my.home-2.20261125T151349.168Z.b0f9d85f"
	if got := SnapshotName("my.home-2", at, "b0f9d85f"); got != want {
		t.Errorf("SnapshotName = %q, want %q", got, want)
	}
	source, when, owner, ok := ParseName(want)
	if !ok || source != "my.home-2" || !when.Equal(at) || owner != "b0f9d85f" {
		t.Errorf("ParseName = %q, %v, %q, %v", source, when, owner, ok)
	}
	if got := Tag("my.home-2", "b0f9d85f"); got != "secrate.my.home-2.b0f9d85f" {
		t.Errorf("Tag = %q", got)
	}
	for _, name := range []string{
		"", "secrate", "secrate.", "secrate.home", "autosnap_2026-11-20_00:00:00_hourly",
		"secrate.20261125T151349.168Z.b0f9d85f",      // no source
		"secrate..20261125T151349.168Z.b0f9d85f",     // an empty one
		"secrate.home.20261125T151349.168Z.",         // no owner
		"secrate.home.20261125T151349.168Z.me",       // no number
		"secrate.home.20261325T151349.168Z.b0f9d85f", // no month
		"secrate.home.20261125T151349Z.b0f9d85f",
		"secrate.homx20261125T151349.168Z.b0f9d85f",
		"Secrate.home.20261125T151349.168Z.b0f9d85f",
	} {
		if source, _, _, ok := ParseName(name); ok {
			t.Errorf("ParseName(%q) is of source %q", name, source)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"tank", "tank/a", "a/b c:d.e-f_g", strings.Repeat("x", 255)} {
		if err := CheckName(name); err != nil {
			t.Errorf("CheckName(%q): %v", name, err)
		}
	}
	for _, name := range []string{"", "/", "/tank", "tank/", "a//b", "-r", "a@b", "a#b", "a%b", "a\tb", "a\nb", "é", "./a\x00", strings.Repeat("x", 256)} {
		if err := CheckName(name); err == nil {
			t.Errorf("CheckName(%q) is nil", name)
		}
	}
}

func TestExcluded(t *testing.T) {
	for value, want := range map[string]bool{"": false, "on": true, "yes": true, "TRUE": true, "1": true, "off": false, "no": false, "false": false, "0": false} {
		if got, err := (&Dataset{Exclude: value}).Excluded(); err != nil || got != want {
			t.Errorf("%q: %v, %v", value, got, err)
		}
	}
	if got, err := (&Dataset{Name: "tank/a", Exclude: "maybe"}).Excluded(); err == nil || got || !strings.Contains(err.Error(), "tank/a") {
		t.Errorf("maybe: %v, %v", got, err)
	}
}

func TestParse(t *testing.T) {
	rows, err := parseTable([]byte("tank/a b@c\t8461470814759281949\t14\t1795621884\t2\ntank/a b#c\t8461470814759281949\t14\t1795621884\t-\n"), 5, "zfs list")
	if err != nil {
		t.Fatal(err)
	}
	var got []Snapshot
	for _, r := range rows {
		s, err := parseSnapshot(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, s)
	}
	s := Snapshot{Dataset: "tank/a b", Name: "c", GUID: 8461470814759281949, TXG: 14, Time: time.Unix(1795621884, 0), Holds: 2}
	b := s
	b.Bookmark, b.Holds = true, 0
	if diff := cmp.Diff([]Snapshot{s, b}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s.String() != "tank/a b@c" || b.String() != "tank/a b#c" {
		t.Errorf("%s, %s", s, b)
	}
	for _, bad := range []string{"a@b\t1\t2\t3\n", "a@b\t1\t2\t3\t4\t5\n", "a\t1\t2\t3\t4\n", "a@b\t-1\t2\t3\t4\n", "a@b\t1\tx\t3\t4\n", "a@b\t1\t2\t3\tx\n", "\n"} {
		rows, err := parseTable([]byte(bad), 5, "zfs list")
		if err == nil {
			_, err = parseSnapshot(rows[0])
		}
		if err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("tank/a b@c\t8461470814759281949\t14\t1795621884\t2\ntank/a b#c\t8461470814759281949\t14\t1795621884\t-\n"))
	f.Add([]byte("a@\t1\t2\t3\t4"))
	f.Fuzz(func(t *testing.T, out []byte) {
		rows, err := parseTable(out, 5, "zfs list")
		if err != nil {
			return
		}
		for _, r := range rows {
			if s, err := parseSnapshot(r); err == nil && s.String() != r[0] {
				t.Errorf("%q is called %q", r[0], s)
			}
		}
	})
}

// TestFailures has messages that the commands wrote, of 2.3.2.
func TestFailures(t *testing.T) {
	exit := errors.New("exit status 1")
	for _, tt := range []struct {
		args, stderr string
		want         string
		is           error
	}{
		{"zfs snapshot a@b", "cannot create snapshots : permission denied\n", "zfs snapshot: cannot create snapshots : permission denied", fs.ErrPermission},
		{"zfs list a", "Permission denied the ZFS utilities must be run as root.\n", "zfs list: Permission denied the ZFS utilities must be run as root.", fs.ErrPermission},
		{"zfs list a", "cannot open 'a': dataset does not exist\n", "zfs list: cannot open 'a': dataset does not exist", fs.ErrNotExist},
		{"zpool list a", "cannot open 'a': no such pool\n", "zpool list: cannot open 'a': no such pool", fs.ErrNotExist},
		{"zfs snapshot a@b", "cannot open 'a': pool I/O is currently suspended\nusage:\n\tsnapshot [-r]\n", "zfs snapshot: cannot open 'a': pool I/O is currently suspended", ErrSuspended},
		{"zfs list", "The ZFS modules cannot be auto-loaded.\nTry running 'modprobe zfs' as root to manually load them.\n",
			"zfs list: The ZFS modules cannot be auto-loaded.; Try running 'modprobe zfs' as root to manually load them.", ErrNoZFS},
		{"zfs list /tmp", "'/tmp': not a ZFS filesystem\n", "zfs list: '/tmp': not a ZFS filesystem", ErrNotZFS},
		{"zfs send a@b", "warning: cannot send 'a@b': dataset key must be loaded\n", "zfs send: warning: cannot send 'a@b': dataset key must be loaded", ErrKey},
		{"zfs send a@b", "something new\n", "zfs send: something new", exit},
		{"zfs send a@b", "", "zfs send: exit status 1", exit},
	} {
		err := failure(strings.Fields(tt.args), tt.stderr, exit)
		if err.Error() != tt.want || !errors.Is(err, tt.is) {
			t.Errorf("%s: %v (%v), want %s (%v)", tt.args, err, errors.Unwrap(err), tt.want, tt.is)
		}
	}
}

// TestCommand finds the commands where cron's PATH does not.
func TestCommand(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dir := t.TempDir()
	defer func(was []string) { places = was }(places)
	places = []string{dir}
	if _, err := command(t.Context(), "zfs", "list"); !errors.Is(err, ErrNoZFS) {
		t.Errorf("where there is none: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "zfs"), []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := command(t.Context(), "zfs", "list"); !errors.Is(err, ErrNoZFS) {
		t.Errorf("where it is no program: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, "zfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd, err := command(t.Context(), "zfs", "list")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"zfs", "list"}, cmd.Args); diff != "" || cmd.Path != filepath.Join(dir, "zfs") || cmd.Env[len(cmd.Env)-1] != "LC_ALL=C" {
		t.Errorf("%s %q in %q", cmd.Path, cmd.Args, cmd.Env[len(cmd.Env)-1])
	}
}
