package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", Module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	var packages []Package
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatal("go list lists no package")
	}
	for _, f := range Check(packages, Rules) {
		t.Error(f)
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		imports string // "a -> b"
		want    string
	}{
		{"internal/filetree -> internal/when", "internal/filetree imports internal/when, which the rule for internal/filetree does not allow"},
		{"internal/when -> internal/filetree", ""},
		{"internal/when -> internal/exclude", "internal/when imports internal/exclude, which the rule for internal/when does not allow"},
		{"sendstream/btrfs -> sendstream", ""},
		{"sendstream/btrfs -> sendstream/zfs", "sendstream/btrfs imports sendstream/zfs, which the rule for sendstream/* does not allow"},
		{"sendstream/btrfs -> internal/filetree", ""},
		{"sendstream/btrfs -> s3history", "sendstream/btrfs imports s3history, which the rule for sendstream/* does not allow"},
		{"s3history/store/s3 -> s3history/store", ""},
		{"s3history/store/s3 -> s3history/store/dir", "s3history/store/s3 imports s3history/store/dir, which the rule for s3history/store/* does not allow"},
		{"s3history/store/open -> s3history/store/dir", ""},
		{"s3history -> s3history/store", ""},
		{"s3history -> s3history/store/dir", "s3history imports s3history/store/dir, which the rule for s3history does not allow"},
		{"sendstream/zfs -> sendstream/zfs/zpl", ""},
		{"sendstream/zfs/zpl -> sendstream/zfs/nvlist", ""},
		{"sendstream/zfs/zpl -> sendstream/zfs", "sendstream/zfs/zpl imports sendstream/zfs, which the rule for sendstream/zfs/* does not allow"},
		{"internal/backup -> snapshot", ""},
		{"internal/backup -> sendstream/btrfs", ""},
		{"internal/backup -> snapshot/btrfs", "internal/backup imports snapshot/btrfs, which the rule for internal/backup does not allow"},
		{"internal/restore -> s3history/store/open", "internal/restore imports s3history/store/open, which the rule for internal/restore does not allow"},
		{"cmd/secrate -> snapshot/btrfs", ""},
		{"cmd/secrate -> s3history/store/s3", ""},
		{"cmd/secrate -> testenv", "cmd/secrate imports testenv, which only tests may"},
		{"cmd/secrate -> s3history/store/storetest", "cmd/secrate imports s3history/store/storetest, which only tests may"},
		{"testenv/ops -> testenv", ""},
		{"sendstream/btrfs -> sendstream/sendtest", "sendstream/btrfs imports sendstream/sendtest, which only tests may"},
		{"s3history/store/dir -> internal/crashpoint", ""},
		{"testenv -> s3history", ""},
		{"s3history/store/storetest -> s3history/store", ""},
		{"internal/new -> internal/filetree", "internal/new imports internal/filetree and has no rule: give it one in internal/archtest"},
	}
	for _, tt := range tests {
		from, to, _ := strings.Cut(tt.imports, " -> ")
		got := strings.Join(Check([]Package{{ImportPath: Module + "/" + from, Imports: []string{"fmt", Module + "/" + to}}}, Rules), "\n")
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.imports, diff)
		}
	}
	if got := Check([]Package{{ImportPath: Module, Imports: []string{"fmt"}}, {ImportPath: "example.org/x", Imports: []string{Module}}}, Rules); got != nil {
		t.Errorf("packages that import nothing of ours: %v", got)
	}
}

// TestRules: a rule that another one hides is never looked at.
func TestRules(t *testing.T) {
	for i, r := range Rules {
		for _, before := range Rules[:i] {
			if !strings.Contains(r.Package, "*") && match(before.Package, r.Package) {
				t.Errorf("the rule for %s hides the one for %s", before.Package, r.Package)
			}
		}
	}
}
