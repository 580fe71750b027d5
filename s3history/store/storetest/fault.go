package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/secrate/secrate/s3history/store"
)

// ErrFault is wrapped by the errors that a [Fault] makes up.
var ErrFault = errors.New("injected fault")

// A Fault passes all calls on but the Nth that changes something, which fails
// once: as a request that was lost, or with Applied as a reply that was.
// Calls are counted from 1, in the order in which they begin.
type Fault struct {
	store.Store
	N       int64
	Applied bool

	calls atomic.Int64
	hit   atomic.Bool
}

// Hit reports whether the fault has happened.
func (f *Fault) Hit() bool { return f.hit.Load() }

// Unwrap returns the store beneath.
func (f *Fault) Unwrap() store.Store { return f.Store }

// Put implements [store.Store].
func (f *Fault) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if f.calls.Add(1) != f.N {
		return f.Store.Put(ctx, key, r, size)
	}
	f.hit.Store(true)
	what := "request lost"
	if f.Applied {
		what = "reply lost"
		if err := f.Store.Put(ctx, key, r, size); err != nil && !errors.Is(err, store.ErrExist) {
			return err
		}
	}
	return &store.Error{Op: "put", Key: key, At: f.String(), Err: fmt.Errorf("%w: %s", ErrFault, what)}
}

// KillEnv names the variable that [KillFromEnv] reads: "put:N:before" or
// "put:N:after".
const KillEnv = "SECRATE_TEST_KILL"

// KillFromEnv wraps s so that the process kills itself, as SIGKILL does, right
// before the Nth Put or right after it was applied, as [KillEnv] says. Puts are
// counted from 1 over all stores that were wrapped. If the variable is not set,
// it returns s.
func KillFromEnv(s store.Store) (store.Store, error) {
	v := os.Getenv(KillEnv)
	if v == "" {
		return s, nil
	}
	k := &killer{Store: s}
	call, rest, _ := strings.Cut(v, ":")
	at, when, _ := strings.Cut(rest, ":")
	n, err := strconv.ParseInt(at, 10, 64)
	if call != "put" || err != nil || n < 1 || (when != "before" && when != "after") {
		return nil, fmt.Errorf("%s=%q: want put:N:before or put:N:after", KillEnv, v)
	}
	k.n, k.after = n, when == "after"
	return k, nil
}

type killer struct {
	store.Store
	n     int64
	after bool
}

var killerPuts atomic.Int64

func (k *killer) Unwrap() store.Store { return k.Store }

func (k *killer) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	mine := killerPuts.Add(1) == k.n
	if mine && !k.after {
		kill()
	}
	err := k.Store.Put(ctx, key, r, size)
	if mine {
		kill()
	}
	return err
}

var kill = sync.OnceFunc(func() {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		panic("storetest: " + err.Error())
	}
	time.Sleep(time.Hour) // the signal arrives first
})
