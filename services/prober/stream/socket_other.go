//go:build !unix

package stream

import (
	"errors"
	"syscall"
)

// mark sets what every packet of a socket carries, from the first on.
func mark(_ string, _ syscall.RawConn, dscp, ttl int) error {
	if dscp > 0 || ttl > 0 && ttl != 64 {
		return errors.New("DSCP and TTL cannot be set on this system")
	}
	return nil
}
