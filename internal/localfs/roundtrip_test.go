package localfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/internal/filetree"
)

// Everything that a file system holds comes back as it was, through a Tree into a
// Target, into a new directory and over an existing one.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	for _, fs := range []struct {
		name string
		dir  func(t *testing.T) string
	}{
		{name: "tmp", dir: func(t *testing.T) string { return t.TempDir() }},
		{name: "btrfs", dir: func(t *testing.T) string { return mountLoop(t, "mkfs.btrfs", "-q") }},
		{name: "xfs", dir: func(t *testing.T) string { return mountLoop(t, "mkfs.xfs", "-q", "-m", "bigtime=1") }},
		{name: "tmpfs", dir: func(t *testing.T) string { return mountTmpfs(t, "size=64m") }},
	} {
		t.Run(fs.name, func(t *testing.T) {
			base := fs.dir(t)
			t.Cleanup(func() { clearFlags(t, base) })
			source := filepath.Join(base, "source")
			must(t, os.Mkdir(source, 0o755))
			makeSource(t, source)
			want := see(t, source)

			dir := filepath.Join(base, "target")
			target := openTestTarget(t, dir, TargetOptions{})
			if !target.Fresh() {
				t.Error("a directory just made is not fresh")
			}
			copyTree(t, source, target)
			must(t, target.Sync())
			if diff := cmp.Diff(want, see(t, dir)); diff != "" {
				t.Errorf("restored (-want +got):\n%s", diff)
			}
			for _, n := range target.Notes() {
				if n.What != LostBirth {
					t.Errorf("note: %+v", n)
				}
			}

			clearFlags(t, dir) // what is immutable cannot be replaced
			must(t, os.WriteFile(filepath.Join(dir, "kept"), nil, 0o600))
			again := openTestTarget(t, dir, TargetOptions{IntoExisting: true})
			if again.Fresh() {
				t.Error("a directory with entries is fresh")
			}
			copyTree(t, source, again)
			must(t, os.Remove(filepath.Join(dir, "kept")))
			got := see(t, dir)
			root := got[""]
			root.Mtime = want[""].Mtime // Remove changed it
			got[""] = root
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("restored over itself (-want +got):\n%s", diff)
			}
		})
	}
}

// What the parent of a target hands down does not get into what is restored.
func TestInherited(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	source := filepath.Join(base, "source")
	must(t, os.Mkdir(source, 0o755))
	must(t, os.Mkdir(filepath.Join(source, "dir"), 0o755))
	for _, f := range []string{"f", "dir/f"} {
		must(t, os.WriteFile(filepath.Join(source, f), []byte(f), 0o604))
	}
	want := see(t, source)
	for _, existing := range []bool{false, true} {
		heir := filepath.Join(t.TempDir(), "heir")
		must(t, os.Mkdir(heir, 0o755))
		must(t, os.Chmod(heir, 0o755|os.ModeSetgid))
		must(t, os.Chown(heir, 0, 1234))
		h, err := os.Open(heir)
		must(t, err)
		if err := (handle{fd: int(h.Fd())}).setxattr(xattrDefaultACL, acl()); err != nil {
			t.Skip("SKIP-MISSING: ACLs:", err)
		}
		setFlags(int(h.Fd()), flagNodump, flagNodump)
		must(t, h.Close())
		dir := filepath.Join(heir, "new")
		if existing {
			dir = heir
		}
		target := openTestTarget(t, dir, TargetOptions{})
		copyTree(t, source, target)
		if diff := cmp.Diff(want, see(t, dir)); diff != "" {
			t.Errorf("existing %v (-want +got):\n%s", existing, diff)
		}
	}
}

// The bytes of an ACL are the kernel's affair: what it takes is what it gives.
func TestACLBytes(t *testing.T) {
	needRoot(t)
	target := openTestTarget(t, filepath.Join(t.TempDir(), "t"), TargetOptions{})
	a := filetree.Attr{Kind: filetree.File, Mode: 0o750, Xattrs: []filetree.Xattr{{Name: xattrACL, Value: acl()}}}
	must(t, target.WriteFile(1, "good", &a, nil))
	h, err := openPath(target.rootFD(), "good")
	must(t, err)
	defer h.close()
	got, err := h.xattrs()
	must(t, err)
	if diff := cmp.Diff(a.Xattrs, got); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	a.Xattrs[0].Value = []byte("no ACL")
	must(t, target.WriteFile(1, "bad", &a, nil))
	want := []Note{{What: LostXattr("system"), Count: 1, Names: []string{"bad"}}}
	if diff := cmp.Diff(want, target.Notes()); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}
