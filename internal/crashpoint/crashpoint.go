// Package crashpoint names the places at which a test wants the process to die.
//
// A crash sweep is a test that runs the real command again and again, killed
// after one step more each time, and checks after every run that all the history
// names can be restored and that a further run completes. The steps are the
// calls of [Here] and [HereKey]: before and after every write that another
// process could see.
//
// In a plain build both do nothing and cost nothing. Built with the tag
// secrate_crash the process counts the calls, and
//
//	SECRATE_CRASH=N           it kills itself with SIGKILL at the Nth
//	SECRATE_CRASH_COUNT=FILE  it appends each point's name to FILE, a line each
//
// A clean run with only the log says how many points there are. A killed run's
// log ends with the point at which it died.
package crashpoint

import "strings"

// HereKey passes the point that is named by what happens and by the first
// component of the key it happens to, such as "put before packs".
func HereKey(what, key string) {
	if Enabled {
		first, _, _ := strings.Cut(key, "/")
		Here(what + " " + first)
	}
}
