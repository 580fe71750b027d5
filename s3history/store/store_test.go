package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/storetest"
)

func put(ctx context.Context, s store.Store, key string, size int) error {
	return s.Put(ctx, key, strings.NewReader(strings.Repeat("x", size)), int64(size))
}

func TestContract(t *testing.T) {
	newStore := func(testing.TB) store.Store {
		log := slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug}))
		return store.Observe(store.Limit(store.Log(storetest.NewMem(), log), 1<<30), store.Observer{})
	}
	storetest.Run(t, newStore)
	storetest.RunExclusive(t, newStore)
}

func TestLog(t *testing.T) {
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == "took" {
			return slog.Attr{}
		}
		return a
	}}))
	s := store.Log(storetest.NewMem(), log)
	ctx := t.Context()
	if err := put(ctx, s, "a", 100); err != nil {
		t.Fatal(err)
	}
	rc, err := s.Get(ctx, "a", 10, 20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, rc); err != nil {
		t.Fatal(err)
	}
	rc.Close()
	rc.Close()
	s.Stat(ctx, "b")
	for range s.List(ctx, "a") {
	}
	want := `msg=store op=put key=a size=100
msg=store op=get key=a size=20
msg=store op=stat key=b size=0 error="stat b at mem:: no such object"
msg=store op=list key=a size=1
`
	if got := out.String(); got != want {
		t.Errorf("logged:\n%s\nwant:\n%s", got, want)
	}
	if s := storetest.NewMem(); store.Log(s, nil) != store.Store(s) {
		t.Error("wrapped where nobody hears")
	}
}

func TestCheckKey(t *testing.T) {
	for _, key := range storetest.BadKeys {
		if err := store.CheckKey(key); !errors.Is(err, store.ErrKey) {
			t.Errorf("CheckKey(%q): %v, want ErrKey", key, err)
		}
	}
	for _, key := range []string{"a", "a/b", "...", ".a/-/_", strings.Repeat("k", store.MaxKeyLen)} {
		if err := store.CheckKey(key); err != nil {
			t.Errorf("CheckKey(%q): %v", key, err)
		}
	}
	for prefix, ok := range map[string]bool{
		"": true, "a": true, "a/": true, "a/.": true, ".": true, "a/..": true,
		"/": false, "a//": false, "../": false, "./a": false, "A": false,
	} {
		if err := store.CheckPrefix(prefix); (err == nil) != ok {
			t.Errorf("CheckPrefix(%q): %v, want ok: %v", prefix, err, ok)
		}
	}
}

func FuzzCheckKey(f *testing.F) {
	for _, key := range storetest.BadKeys {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if store.CheckKey(key) != nil {
			return
		}
		for i := range key {
			if err := store.CheckPrefix(key[:i]); err != nil {
				t.Errorf("%q is a key, but cannot start with %q: %v", key, key[:i], err)
			}
		}
	})
}

// TestLimit measures with a clock that jumps when everyone waits.
func TestLimit(t *testing.T) {
	const perSecond = 1 << 20
	for _, tt := range []struct {
		name  string
		limit int64
		puts  int // at once
		size  int
		want  time.Duration
	}{
		{"one", perSecond, 1, 10 << 20, 10 * time.Second},
		{"many share it", perSecond, 5, 2 << 20, 10 * time.Second},
		{"slow", 1000, 1, 50_000, 46 * time.Second}, // the first burst is free
		{"none", 0, 5, 10 << 20, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := store.Limit(storetest.NewMem(), tt.limit)
				start := time.Now()
				var wg sync.WaitGroup
				for i := range tt.puts {
					wg.Go(func() {
						if err := put(t.Context(), s, fmt.Sprint("k", i), tt.size); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if d := time.Since(start); d < tt.want*9/10 || d > tt.want*11/10 {
					t.Errorf("took %v, want about %v", d, tt.want)
				}
			})
		})
	}
	t.Run("canceled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			err := put(ctx, store.Limit(storetest.NewMem(), 1000), "a", 1<<20)
			if err == nil || time.Since(start) > time.Second {
				t.Errorf("error is %v after %v, want one after at most a second", err, time.Since(start))
			}
		})
	})
	t.Run("hashing", func(t *testing.T) {
		r := strings.NewReader("x")
		s := store.Observe(store.Limit(unmeteredOnly{storetest.NewMem(), r}, 1), store.Observer{})
		if err := s.Put(t.Context(), "a", r, 1); err != nil {
			t.Error(err)
		}
	})
}

// TestLimitAt puts one large object while the rate changes.
func TestLimitAt(t *testing.T) {
	const slow, fast = 100_000, 1_000_000
	type step struct {
		after time.Duration // since the begin
		rate  int64
	}
	for _, tt := range []struct {
		name  string
		steps []step
		size  int
		want  time.Duration
	}{
		{"faster", []step{{0, slow}, {time.Minute, fast}}, 60*slow + 60*fast, 120 * time.Second},
		{"slower", []step{{0, fast}, {20 * time.Second, slow}}, 20*fast + 600*slow, 620 * time.Second},
		{"no more", []step{{0, slow}, {time.Minute, 0}}, 50 << 20, time.Minute},
		{"from below nothing to one byte a second, and back", []step{{0, -1}, {-1, 1}, {time.Hour, fast}}, 3600 + 30*fast, time.Hour + 30*time.Second},
	} {
		for _, puts := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s, %d at once", tt.name, puts), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					asked, lastAsked := 0, time.Time{}
					s := store.LimitAt(storetest.NewMem(), func(now time.Time) int64 { // one at a time: the race detector sees to it
						if asked++; now.Sub(lastAsked) < time.Second {
							t.Errorf("asked again after %v", now.Sub(lastAsked))
						}
						lastAsked = now
						var r int64
						for _, s := range tt.steps {
							if now.Sub(start) >= s.after {
								r = s.rate
							}
						}
						return r
					})
					var wg sync.WaitGroup
					for i := range puts {
						wg.Go(func() {
							if err := put(t.Context(), s, fmt.Sprint("k", i), tt.size/puts); err != nil {
								t.Error(err)
							}
						})
					}
					wg.Wait()
					// Each change is followed within two seconds; a burst is free with each.
					if d := time.Since(start); d < tt.want*95/100 || d > tt.want*105/100 {
						t.Errorf("took %v, want about %v", d, tt.want)
					}
					if most := int(time.Since(start)/time.Second) + 1; asked > most {
						t.Errorf("asked %d times in %v", asked, time.Since(start))
					}
				})
			})
		}
	}
}

// unmeteredOnly checks that what it is given to put is want, when unwrapped.
type unmeteredOnly struct {
	store.Store
	want io.ReaderAt
}

func (u unmeteredOnly) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if got := store.Unmetered(r); r == u.want || got != u.want {
		return fmt.Errorf("Unmetered(%v) is %v, want %v", r, got, u.want)
	}
	return nil
}

func TestObserve(t *testing.T) {
	mem := storetest.NewMem()
	var sent, received int64
	var stored []store.Object
	s := store.Observe(mem, store.Observer{
		Sent:     func(_ string, n int64) { sent += n },
		Stored:   func(o store.Object) { stored = append(stored, o) },
		Received: func(_ string, n int64) { received += n },
	})
	if err := put(t.Context(), s, "a", 1000); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), s, "a", 1000); !errors.Is(err, store.ErrExist) {
		t.Fatal(err)
	}
	fault := &storetest.Fault{Store: mem, N: 1, Applied: true}
	if err := put(t.Context(), store.Observe(fault, store.Observer{Sent: func(_ string, n int64) { sent += n }}), "b", 50); !errors.Is(err, storetest.ErrFault) {
		t.Fatal(err)
	}
	r, err := s.Get(t.Context(), "a", 100, 300)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	if sent != 1000 || received != 300 {
		t.Errorf("%d bytes sent and %d received, want 1000 and 300", sent, received)
	}
	if diff := cmp.Diff([]store.Object{{Key: "a", Size: 1000}}, stored); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
}

func TestCapabilitiesJSON(t *testing.T) {
	got, err := json.Marshal(store.Capabilities{Put: store.Yes, Get: store.No, List: store.Unknown, ConditionalPut: store.Yes, Range: store.Yes, ObjectLock: "compliance 30d", Versioning: "enabled"})
	const want = `{"put":"yes","get":"no","list":"unknown","conditional_put":"yes","range":"yes","object_lock":"compliance 30d","versioning":"enabled"}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestProbeOfMem(t *testing.T) {
	if _, err := store.Probe(t.Context(), store.Limit(storetest.NewMem(), 1), "probe"); err == nil {
		t.Error("a store that cannot be probed was probed")
	}
}
