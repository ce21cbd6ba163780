//go:build linux

package vision

import "syscall"

// childAttributes puts a child into its own process group, so that Ctrl-C at the
// terminal does not end it before its clip, and has the kernel kill it with its
// parent.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
