//go:build !linux

package transport

import "net"

func socketStats(*net.TCPConn) (s SocketStats, queued uint64, ok bool) {
	return SocketStats{}, 0, false
}
