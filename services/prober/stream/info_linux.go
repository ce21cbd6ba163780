package stream

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// tcpRTT is what the kernel made of the connection's handshake, by its own
// clock; its unit is the microsecond.
func tcpRTT(c *net.TCPConn) time.Duration {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	var rtt time.Duration
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			rtt = time.Duration(info.Rtt) * time.Microsecond
		}
	})
	return rtt
}
