package uplink

import (
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tune sets what makes a long, fat or broken path bearable, where the kernel
// allows it.
func tune(timeout time.Duration) func(network, address string, c syscall.RawConn) error {
	buffer := sendBuffer()
	return func(_, _ string, c syscall.RawConn) error {
		_ = c.Control(func(fd uintptr) {
			_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr")
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
			if buffer > 0 {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, buffer)
			}
		})
		return nil
	}
}

// sendBuffer is what to ask for so that more is in flight than the kernel would
// allow by itself; 0 where asking would give less. What is given is twice as much.
func sendBuffer() int {
	const most = 4 << 20
	last := func(path string) int {
		data, err := os.ReadFile(path)
		if err != nil {
			return 0
		}
		fields := strings.Fields(string(data))
		if len(fields) == 0 {
			return 0
		}
		n, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			return 0
		}
		return n
	}
	n, own := min(last("/proc/sys/net/core/wmem_max"), most), last("/proc/sys/net/ipv4/tcp_wmem")
	if own == 0 || 2*n <= own {
		return 0
	}
	return n
}

// kernel is what the system knows of a connection.
type kernel struct{ raw syscall.RawConn }

func kernelOf(c net.Conn) kernel {
	if t, ok := c.(*net.TCPConn); ok {
		if raw, err := t.SyscallConn(); err == nil {
			return kernel{raw}
		}
	}
	return kernel{}
}

func (k kernel) tells() bool { return k.raw != nil }

func (k kernel) acked() (int64, bool) {
	var n int64
	var failed error
	err := k.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if failed = err; err == nil {
			n = int64(info.Bytes_acked)
		}
	})
	return n, err == nil && failed == nil
}
