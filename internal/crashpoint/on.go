//go:build secrate_crash

package crashpoint

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// Enabled reports whether the program was built with the tag secrate_crash.
const Enabled = true

// mu guards passed, and makes the log's order the order of the count.
var (
	mu     sync.Mutex
	passed int
)

// Here passes the point called name. It does not return from the point at which
// the process is to die, nor from any that other goroutines reach meanwhile.
func Here(name string) {
	mu.Lock()
	defer mu.Unlock()
	passed++
	if path := os.Getenv("SECRATE_CRASH_COUNT"); path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err == nil {
			_, err = fmt.Fprintln(f, name)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			panic("crashpoint: " + err.Error())
		}
	}
	at := os.Getenv("SECRATE_CRASH")
	if at == "" {
		return
	}
	n, err := strconv.Atoi(at)
	if err != nil || n < 1 {
		panic("crashpoint: SECRATE_CRASH is not a positive number: " + at)
	}
	if passed == n {
		Kill()
	}
}

// Kill ends the process as a power cut would: no deferred call, no signal
// handler and no exit function runs.
func Kill() {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		panic("crashpoint: " + err.Error())
	}
	time.Sleep(time.Hour) // the signal arrives first
}
