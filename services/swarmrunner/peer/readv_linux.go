package peer

import "golang.org/x/sys/unix"

// readv reads into several places by one call of the system.
func readv(fd int, places [][]byte) (int, error) { return unix.Readv(fd, places) }
