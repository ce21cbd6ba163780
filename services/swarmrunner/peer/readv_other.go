//go:build !linux

package peer

import "golang.org/x/sys/unix"

// readv reads into the first of several places.
func readv(fd int, places [][]byte) (int, error) { return unix.Read(fd, places[0]) }
