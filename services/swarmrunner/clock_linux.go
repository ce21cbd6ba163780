package swarmrunner

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is a clock that all processes of this machine share, in nanoseconds.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return time.Now().UnixNano()
	}
	return t.Nano()
}
