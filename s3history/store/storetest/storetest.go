package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/s3history/store"
)

// Run checks that the stores newStore makes keep the contract of [store.Store].
// Each call of newStore gives an empty store, which Run fills with some 25 MiB at
// most.
func Run(t *testing.T, newStore func(t testing.TB) store.Store) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, s store.Store)
	}{
		{"PutGet", testPutGet},
		{"Range", testRange},
		{"List", testList},
		{"PutTwice", testPutTwice},
		{"NotExist", testNotExist},
		{"Concurrent", testConcurrent},
		{"Big", testBig},
		{"Keys", testKeys},
		{"ShortReader", testShortReader},
		{"Canceled", testCanceled},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, newStore(t)) })
	}
}

// RunExclusive checks that the stores newStore makes never let one Put replace
// what another has stored. [store.Store] allows a destination that cannot tell
// to do so; those that promise more are held to it.
func RunExclusive(t *testing.T, newStore func(t testing.TB) store.Store) {
	t.Run("Taken", func(t *testing.T) {
		s := newStore(t)
		mustPut(t, s, "taken/a", "first")
		if err := putString(t.Context(), s, "taken/a", "second"); !errors.Is(err, store.ErrExist) {
			t.Errorf("second Put: %v, want ErrExist", err)
		}
		wantObject(t, s, "taken/a", "first")
	})
	t.Run("Race", func(t *testing.T) {
		s := newStore(t)
		const rivals = 8
		var won atomic.Int64
		var winner atomic.Pointer[string]
		var wg sync.WaitGroup
		for i := range rivals {
			wg.Go(func() {
				content := strings.Repeat(fmt.Sprint(i), 10_000+i)
				switch err := putString(t.Context(), s, "race/a", content); {
				case err == nil:
					won.Add(1)
					winner.Store(&content)
				case !errors.Is(err, store.ErrExist):
					t.Errorf("rival %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if n := won.Load(); n != 1 {
			t.Fatalf("%d of %d rivals won, want 1", n, rivals)
		}
		wantObject(t, s, "race/a", *winner.Load())
	})
}

func testPutGet(t *testing.T, s store.Store) {
	for _, tt := range []struct {
		key, content string
	}{
		{"a", "x"},
		{"empty", ""},
		{"packs/3f/3f00", "some bytes"},
		{"packs/3f/3f01", "\x00\xff\r\n\x1a"},
		{"meta/host.example/home_data/00-1.cbor", strings.Repeat("meta", 1000)},
	} {
		mustPut(t, s, tt.key, tt.content)
		// What was put can be seen at once.
		wantObject(t, s, tt.key, tt.content)
		want := store.Object{Key: tt.key, Size: int64(len(tt.content))}
		got, err := s.Stat(t.Context(), tt.key)
		if err != nil || got != want {
			t.Errorf("Stat %s: %v, %v, want %v", tt.key, got, err, want)
		}
		if listed, err := list(t.Context(), s, tt.key); err != nil || !slices.Contains(listed, want) {
			t.Errorf("List %s: %v, %v, want %v among them", tt.key, listed, err, want)
		}
	}
	if s.String() == "" {
		t.Error("String is empty")
	}
}

func testRange(t *testing.T, s store.Store) {
	const content = "0123456789"
	mustPut(t, s, "r/digits", content)
	mustPut(t, s, "r/empty", "")
	for _, tt := range []struct {
		key    string
		off, n int64
		want   string
		err    error
	}{
		{key: "r/digits", off: 0, n: -1, want: content},
		{key: "r/digits", off: 0, n: 10, want: content},
		{key: "r/digits", off: 0, n: 1, want: "0"},
		{key: "r/digits", off: 3, n: 4, want: "3456"},
		{key: "r/digits", off: 9, n: 1, want: "9"},
		{key: "r/digits", off: 7, n: -1, want: "789"},
		{key: "r/digits", off: 10, n: -1, want: ""},
		{key: "r/digits", off: 0, n: 0, want: ""},
		{key: "r/digits", off: 10, n: 0, want: ""},
		{key: "r/empty", off: 0, n: -1, want: ""},
		{key: "r/empty", off: 0, n: 0, want: ""},
		{key: "r/digits", off: 0, n: 11, err: io.ErrUnexpectedEOF},
		{key: "r/digits", off: 8, n: 3, err: io.ErrUnexpectedEOF},
		{key: "r/digits", off: 10, n: 1, err: io.ErrUnexpectedEOF},
		{key: "r/digits", off: 11, n: 0, err: io.ErrUnexpectedEOF},
		{key: "r/digits", off: 11, n: -1, err: io.ErrUnexpectedEOF},
		{key: "r/digits", off: 1 << 40, n: 5, err: io.ErrUnexpectedEOF},
		{key: "r/empty", off: 0, n: 1, err: io.ErrUnexpectedEOF},
	} {
		got, err := getAll(t.Context(), s, tt.key, tt.off, tt.n)
		if !errors.Is(err, tt.err) || err == nil && string(got) != tt.want {
			t.Errorf("Get %s from %d, %d bytes: %q, %v; want %q, %v", tt.key, tt.off, tt.n, got, err, tt.want, tt.err)
		}
	}
	if _, err := s.Get(t.Context(), "r/digits", -1, 2); err == nil {
		t.Error("Get from a negative offset succeeded")
	}
	// A reader may be left half read.
	r, err := s.Get(t.Context(), "r/digits", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	// And read in any pieces.
	r, err = s.Get(t.Context(), "r/digits", 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := iotest.TestReader(r, []byte(content[1:9])); err != nil {
		t.Error(err)
	}
}

func testList(t *testing.T, s store.Store) {
	if got, err := list(t.Context(), s, ""); err != nil || len(got) != 0 {
		t.Errorf("an empty store lists %v, %v", got, err)
	}
	// In key order "-" and "." come before "/", and digits after it: the order of
	// bytes, which is not that of a directory walk.
	keys := []string{"a-/x", "a.b", "a.b-c/d", "a/1", "a/10", "a/2/x", "a/2/y", "a/b", "a0", "ab", "b/c", "secrate.json"}
	for _, key := range slices.Backward(keys) {
		mustPut(t, s, key, key)
	}
	for _, prefix := range []string{"", "a", "a/", "a/2", "a/2/", "a/1", "a.", "a-/x", "b", "b/c", "b/c/", "c", "a/2/yy"} {
		var want []store.Object
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) {
				want = append(want, store.Object{Key: key, Size: int64(len(key))})
			}
		}
		got, err := list(t.Context(), s, prefix)
		if err != nil {
			t.Errorf("List %q: %v", prefix, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("List %q (-want +got):\n%s", prefix, diff)
		}
	}
	n := 0
	for _, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Error(err)
		}
		if n++; n == 3 {
			break
		}
	}
}

func testPutTwice(t *testing.T, s store.Store) {
	mustPut(t, s, "twice/a", "the same bytes")
	if err := putString(t.Context(), s, "twice/a", "the same bytes"); err != nil && !errors.Is(err, store.ErrExist) {
		t.Errorf("second Put: %v, want nil or ErrExist", err)
	}
	wantObject(t, s, "twice/a", "the same bytes")
	if got, err := list(t.Context(), s, "twice/"); err != nil || len(got) != 1 {
		t.Errorf("List: %v, %v, want one object", got, err)
	}
}

func testNotExist(t *testing.T, s store.Store) {
	mustPut(t, s, "there/a", "x")
	for _, key := range []string{"nowhere", "nowhere/a", "there", "there/b"} {
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("Stat %s: %v, want ErrNotExist", key, err)
		}
		for _, n := range []int64{-1, 0, 5} {
			if _, err := getAll(t.Context(), s, key, 0, n); !errors.Is(err, store.ErrNotExist) {
				t.Errorf("Get %s, %d bytes: %v, want ErrNotExist", key, n, err)
			}
		}
		if got, err := list(t.Context(), s, key+"/c"); err != nil || len(got) != 0 {
			t.Errorf("List %s: %v, %v, want nothing", key, got, err)
		}
	}
}

func testConcurrent(t *testing.T, s store.Store) {
	const workers, each = 8, 8
	content := func(i, j int) string { return strings.Repeat(fmt.Sprintf("%d.%d ", i, j), 1+100*j) }
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for j := range each {
				key := fmt.Sprintf("many/%d/%d", j, i)
				if err := putString(t.Context(), s, key, content(i, j)); err != nil {
					t.Error(err)
				}
				got, err := getAll(t.Context(), s, key, 0, -1)
				if err != nil || string(got) != content(i, j) {
					t.Errorf("Get %s: %d bytes, %v", key, len(got), err)
				}
				for _, err := range s.List(t.Context(), fmt.Sprintf("many/%d/", j)) {
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if got, err := list(t.Context(), s, "many/"); err != nil || len(got) != workers*each {
		t.Errorf("List: %d objects, %v, want %d", len(got), err, workers*each)
	}
}

func testBig(t *testing.T, s store.Store) {
	const size = 20 << 20
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(content)
	if err := s.Put(t.Context(), "big/a", bytes.NewReader(content), size); err != nil {
		t.Fatal(err)
	}
	got, err := getAll(t.Context(), s, "big/a", 0, -1)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("Get: %d bytes, %v; want the %d bytes that were put", len(got), err, size)
	}
	const off, n = 11<<20 + 7, 3<<20 + 1
	got, err = getAll(t.Context(), s, "big/a", off, n)
	if err != nil || !bytes.Equal(got, content[off:off+n]) {
		t.Errorf("Get of a part: %d bytes, %v; want the %d bytes that were put", len(got), err, n)
	}
}

// BadKeys are no keys, each in its own way.
var BadKeys = []string{
	"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/./b", "a/..", "A", "a b", "ä", "a\x00", "a\n",
	"a\\b", "a:b", "a~", "a%2fb", "\xff", strings.Repeat("k", store.MaxKeyLen+1),
}

func testKeys(t *testing.T, s store.Store) {
	for _, key := range BadKeys {
		if err := putString(t.Context(), s, key, "x"); !errors.Is(err, store.ErrKey) {
			t.Errorf("Put %q: %v, want ErrKey", key, err)
		}
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, store.ErrKey) {
			t.Errorf("Stat %q: %v, want ErrKey", key, err)
		}
		if _, err := s.Get(t.Context(), key, 0, -1); !errors.Is(err, store.ErrKey) {
			t.Errorf("Get %q: %v, want ErrKey", key, err)
		}
	}
	for _, prefix := range []string{"/", "../", "a//", "A", "a/../"} {
		if _, err := list(t.Context(), s, prefix); !errors.Is(err, store.ErrKey) {
			t.Errorf("List %q: %v, want ErrKey", prefix, err)
		}
	}
	for _, key := range []string{"...", ".a", "-", "_", "a/...b/c", "tmp/a", strings.Repeat("k", 200), strings.Repeat(strings.Repeat("k", 100)+"/", 8) + "k"} {
		mustPut(t, s, key, key)
		wantObject(t, s, key, key)
	}
}

// A ReaderAt that ends early must not become an object that looks whole.
func testShortReader(t *testing.T, s store.Store) {
	if err := s.Put(t.Context(), "short/a", strings.NewReader("abc"), 4); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Put of a reader that ends early: %v, want io.ErrUnexpectedEOF", err)
	}
	wantErr := errors.New("disk on fire")
	if err := s.Put(t.Context(), "short/b", brokenReader{wantErr}, 4); !errors.Is(err, wantErr) {
		t.Errorf("Put of a broken reader: %v, want its error", err)
	}
	// One that goes on is read only as far as was said.
	if err := s.Put(t.Context(), "short/c", strings.NewReader("abcdef"), 4); err != nil {
		t.Error(err)
	}
	wantObject(t, s, "short/c", "abcd")
	if got, err := list(t.Context(), s, "short/"); err != nil || len(got) != 1 {
		t.Errorf("List: %v, %v, want short/c alone", got, err)
	}
}

type brokenReader struct{ err error }

func (b brokenReader) ReadAt([]byte, int64) (int, error) { return 0, b.err }

func testCanceled(t *testing.T, s store.Store) {
	mustPut(t, s, "there", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := putString(ctx, s, "canceled", "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("Put: %v, want context.Canceled", err)
	}
	if _, err := getAll(ctx, s, "there", 0, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("Get: %v, want context.Canceled", err)
	}
	if _, err := s.Stat(ctx, "there"); !errors.Is(err, context.Canceled) {
		t.Errorf("Stat: %v, want context.Canceled", err)
	}
	if _, err := list(ctx, s, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("List: %v, want context.Canceled", err)
	}
	if _, err := s.Stat(t.Context(), "canceled"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("Stat after a canceled Put: %v, want ErrNotExist", err)
	}
}

func putString(ctx context.Context, s store.Store, key, content string) error {
	return s.Put(ctx, key, strings.NewReader(content), int64(len(content)))
}

func mustPut(t *testing.T, s store.Store, key, content string) {
	t.Helper()
	if err := putString(t.Context(), s, key, content); err != nil {
		t.Fatal(err)
	}
}

func wantObject(t *testing.T, s store.Store, key, want string) {
	t.Helper()
	got, err := getAll(t.Context(), s, key, 0, -1)
	if err != nil || string(got) != want {
		t.Errorf("Get %s: %.40q, %v; want %.40q", key, got, err, want)
	}
}

func getAll(ctx context.Context, s store.Store, key string, off, n int64) ([]byte, error) {
	r, err := s.Get(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// list fails on an error that is not alone and last.
func list(ctx context.Context, s store.Store, prefix string) ([]store.Object, error) {
	var all []store.Object
	var failed error
	for o, err := range s.List(ctx, prefix) {
		switch {
		case failed != nil:
			return all, fmt.Errorf("the listing goes on after %w", failed)
		case err != nil && o != store.Object{}:
			return all, fmt.Errorf("the listing yields %v with %w", o, err)
		case err != nil:
			failed = err
		default:
			all = append(all, o)
		}
	}
	return all, failed
}
