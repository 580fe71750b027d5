package s3test

import "syscall"

// dieWithParent makes a server end with a test that was killed or has panicked.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
