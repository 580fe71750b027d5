package progress

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Size writes a number of bytes for people: 512 B, 1.5 KiB, 12.3 MiB.
func Size(n int64) string {
	if n < 0 {
		return "-" + size(-float64(n))
	}
	return size(float64(n))
}

func size(f float64) string {
	if f < 1024 {
		return fmt.Sprintf("%.0f B", f)
	}
	const units = "KMGTPE"
	for i := range len(units) {
		f /= 1024
		// What would be written as 1024.0 is 1.0 of the next.
		if f < 1023.95 || i == len(units)-1 {
			return fmt.Sprintf("%.1f %ciB", f, units[i])
		}
	}
	panic("unreachable")
}

// Rate writes bytes per second for people: 12.3 MiB/s.
func Rate(perSecond float64) string { return size(max(perSecond, 0)) + "/s" }

// Duration writes d for people, to about a hundredth: 0.3s, 12s, 3m20s, 4h05m,
// 2d07h.
func Duration(d time.Duration) string {
	switch s := int64(d.Round(time.Second) / time.Second); {
	case d < 0:
		return "-" + Duration(-max(d, -1<<62))
	case d < 9950*time.Millisecond:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 24*3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
	default:
		return fmt.Sprintf("%dd%02dh", s/86400, s%86400/3600)
	}
}

// Printable returns s so that it can be shown on a terminal: a name from a file
// system may hold bytes that move the cursor or are no text at all. They are
// written as \xff, \n or \u202e are.
func Printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if unicode.IsPrint(r) && !(r == utf8.RuneError && n == 1) {
			b.WriteString(s[:n])
		} else {
			q := strconv.QuoteToASCII(s[:n])
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return b.String()
}
