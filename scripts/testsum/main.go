// Testsum reads what go test -json writes and says what came of it: the output of
// what failed, why tests were skipped, and how many there were of each kind. A test
// with subtests counts as its subtests.
//
// Its exit status is 1 if a test or a package failed, if there were no tests, and,
// with CI=true, if a test was skipped: that machine has all that tests need.
//
// A test says what it lacks with a line that starts with SKIP-MISSING: as in
// t.Skip("SKIP-MISSING: git").
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	s := newSummary(os.Stdout)
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
	if !s.finish(os.Getenv("CI") == "true") {
		os.Exit(1)
	}
}

// An event is a line of go test -json: go doc test2json, go help buildjson.
type event struct {
	Action     string
	Package    string
	ImportPath string // instead of Package, of a build
	Test       string
	Output     string
}

type test struct{ pkg, name string }

type summary struct {
	out     io.Writer
	output  map[test][]string // of those that are not done yet
	parents map[test]bool     // have subtests
	failed  map[test]bool
	passed  map[test]bool
	skipped map[test]string // the reason
}

func newSummary(out io.Writer) *summary {
	return &summary{
		out:     out,
		output:  map[test][]string{},
		parents: map[test]bool{},
		failed:  map[test]bool{},
		passed:  map[test]bool{},
		skipped: map[test]string{},
	}
}

func (s *summary) read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(s.out, line) // of the go command itself
			} else {
				s.add(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) add(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "run":
		if i := strings.LastIndexByte(e.Test, '/'); i >= 0 {
			s.parents[test{e.Package, e.Test[:i]}] = true
		}
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "output":
		switch {
		case e.Test != "":
			s.output[t] = append(s.output[t], e.Output)
		case strings.HasPrefix(e.Output, "ok ") || strings.HasPrefix(e.Output, "FAIL\t"):
			fmt.Fprint(s.out, e.Output)
		case e.Output != "PASS\n" && e.Output != "FAIL\n" && !strings.HasPrefix(e.Output, "?"):
			s.output[t] = append(s.output[t], e.Output)
		}
	case "pass":
		if e.Test != "" {
			s.passed[t] = true
		}
		delete(s.output, t)
	case "skip":
		if e.Test != "" {
			s.skipped[t] = reason(s.output[t])
		}
		delete(s.output, t)
	case "fail":
		if e.Test == "" {
			s.failUnfinished(e.Package)
		}
		// A package fails with its tests. If none has, it did not build, or
		// died outside of them.
		if e.Test != "" || !s.anyFailed(e.Package) {
			s.failed[t] = true
		}
		fmt.Fprint(s.out, strings.Join(s.output[t], ""))
		delete(s.output, t)
	}
}

// failUnfinished makes failures of the tests that were running when the process
// of their package died, of a time limit for one.
func (s *summary) failUnfinished(pkg string) {
	var running []test
	for t := range s.output {
		if t.pkg == pkg && t.name != "" {
			running = append(running, t)
		}
	}
	slices.SortFunc(running, func(a, b test) int { return strings.Compare(a.name, b.name) })
	for _, t := range running {
		s.failed[t] = true
		fmt.Fprint(s.out, strings.Join(s.output[t], ""))
		delete(s.output, t)
	}
}

func (s *summary) anyFailed(pkg string) bool {
	for t := range s.failed {
		if t.pkg == pkg {
			return true
		}
	}
	return false
}

// reason finds in the output of a skipped test why it was.
func reason(output []string) string {
	last := ""
	for _, line := range output {
		line = strings.TrimSpace(line)
		if _, after, ok := strings.Cut(line, "SKIP-MISSING:"); ok {
			return strings.TrimSpace(after)
		}
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			last = line
		}
	}
	// file_test.go:12: the reason
	if _, after, ok := strings.Cut(last, ": "); ok {
		last = after
	}
	if last == "" {
		return "no reason given"
	}
	return last
}

// finish prints the summary and reports whether all is well.
func (s *summary) finish(ci bool) bool {
	passed, failed := 0, 0
	for t := range s.passed {
		if !s.parents[t] {
			passed++
		}
	}
	var names []string
	for t := range s.failed {
		// A parent fails with its subtests, or by itself.
		child := false
		for f := range s.failed {
			child = child || f.pkg == t.pkg && strings.HasPrefix(f.name, t.name+"/")
		}
		if !child {
			failed++
			names = append(names, strings.TrimSpace(t.pkg+" "+t.name))
		}
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintln(s.out, "failed:", n)
	}
	s.printSkipped()
	ok := failed == 0
	if passed+failed+len(s.skipped) == 0 {
		fmt.Fprintln(s.out, "no tests were run")
		ok = false
	}
	if ci && len(s.skipped) > 0 {
		fmt.Fprintf(s.out, "CI=true: this machine should have all that tests need, and %d were skipped\n", len(s.skipped))
		ok = false
	}
	fmt.Fprintf(s.out, "%d passed, %d failed, %d skipped\n", passed, failed, len(s.skipped))
	return ok
}

// printSkipped lists the reasons and the tests of each.
func (s *summary) printSkipped() {
	reasons := map[string][]string{}
	for t, why := range s.skipped {
		reasons[why] = append(reasons[why], t.pkg+" "+t.name)
	}
	keys := make([]string, 0, len(reasons))
	for why := range reasons {
		keys = append(keys, why)
	}
	slices.Sort(keys)
	for _, why := range keys {
		tests := reasons[why]
		slices.Sort(tests)
		fmt.Fprintf(s.out, "skipped %d, missing: %s\n", len(tests), why)
		const most = 5
		for i, t := range tests {
			if i == most {
				fmt.Fprintf(s.out, "\tand %d more\n", len(tests)-most)
				break
			}
			fmt.Fprintf(s.out, "\t%s\n", t)
		}
	}
}
