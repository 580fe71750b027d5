package daemon

import (
	"testing"
	"time"
)

// SetAgainAfter sets how soon everything is compared again for a test.
func SetAgainAfter(t *testing.T, d time.Duration) {
	was := againAfter
	againAfter = d
	t.Cleanup(func() { againAfter = was })
}
