//go:build unix

package stream

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mark sets what every packet of a socket carries, from the first on.
func mark(network string, raw syscall.RawConn, dscp, ttl int) error {
	var err error
	set := func(fd uintptr) {
		level, class, hops := unix.IPPROTO_IP, unix.IP_TOS, unix.IP_TTL
		if strings.HasSuffix(network, "6") {
			level, class, hops = unix.IPPROTO_IPV6, unix.IPV6_TCLASS, unix.IPV6_UNICAST_HOPS
		}
		if dscp > 0 {
			err = unix.SetsockoptInt(int(fd), level, class, dscp<<2)
		}
		if ttl > 0 {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), level, hops, ttl))
		}
	}
	if controlErr := raw.Control(set); controlErr != nil {
		return controlErr
	}
	if err != nil {
		return fmt.Errorf("set DSCP %d and TTL %d: %w", dscp, ttl, err)
	}
	return nil
}
