package camera

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func pidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// gone waits until the process has ended.
func gone(f *os.File, most time.Duration) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, int(most.Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("still there after %s", most)
		default:
			return nil
		}
	}
}
