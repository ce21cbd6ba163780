//go:build linux

package clickhouse

import "syscall"

// childAttributes puts the engine into its own process group, so that Ctrl-C
// at the terminal reaches the lab only and the engine lives until the lab has
// flushed into it; and has the kernel kill it should the lab die without
// closing its standard input.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
