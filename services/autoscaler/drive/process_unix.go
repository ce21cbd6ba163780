//go:build unix

package drive

import "golang.org/x/sys/unix"

// endProcess asks a process to end, or ends it. One that is gone is no error.
func endProcess(pid int, force bool) {
	signal := unix.SIGTERM
	if force {
		signal = unix.SIGKILL
	}
	_ = unix.Kill(pid, signal)
}

// endGroup ends a child and every process of its group. The group's number cannot
// be another's: it is not given out again as long as a member is there.
func endGroup(pid int) { _ = unix.Kill(-pid, unix.SIGKILL) }
