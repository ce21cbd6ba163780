//go:build !linux

package motion

import "errors"

// OpenLine is for Linux.
func OpenLine(Config) (Line, error) {
	return nil, errors.New("GPIO lines are read on Linux only")
}
