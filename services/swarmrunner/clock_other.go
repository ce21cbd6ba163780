//go:build !linux

package swarmrunner

import "time"

// monotonic is a clock that all processes of this machine share, in nanoseconds.
func monotonic() int64 { return time.Now().UnixNano() }
