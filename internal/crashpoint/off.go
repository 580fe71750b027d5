//go:build !secrate_crash

package crashpoint

// Enabled reports whether the program was built with the tag secrate_crash.
const Enabled = false

// Here passes the point called name.
func Here(name string) {}
