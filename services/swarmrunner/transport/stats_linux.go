package transport

import (
	"net"

	"golang.org/x/sys/unix"
)

const (
	// optTimestamps is TCPI_OPT_TIMESTAMPS of TCPInfo.Options.
	optTimestamps = 1
	// States in which the other side has ended its stream.
	stateCloseWait, stateLastAck, stateClosing = 8, 9, 11
	stateClosed                                = 7
)

// socketStats asks the kernel. queued is what it has taken but not yet sent.
func socketStats(c *net.TCPConn) (s SocketStats, queued uint64, ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return SocketStats{}, 0, false
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil || infoErr != nil {
		return SocketStats{}, 0, false
	}
	header := uint64(ipv4Header + tcpHeader)
	if a, isTCP := c.LocalAddr().(*net.TCPAddr); isTCP && a.IP.To4() == nil {
		header = ipv6Header + tcpHeader
	}
	if info.Options&optTimestamps != 0 {
		header += tcpTimestamps
	}
	received := info.Bytes_received
	switch info.State {
	case stateCloseWait, stateLastAck, stateClosing:
		// The end of the stream takes a sequence number, which counts there.
		received -= min(1, received)
	}
	queued = uint64(info.Notsent_bytes)
	if info.State == stateClosed {
		// The other side has reset the connection: nothing more is sent.
		queued = 0
	}
	return SocketStats{
		Sent:        info.Bytes_sent - min(info.Bytes_retrans, info.Bytes_sent),
		Received:    received,
		SentAgain:   info.Bytes_retrans,
		SegmentsOut: uint64(info.Segs_out),
		SegmentsIn:  uint64(info.Segs_in),
		HeaderOut:   uint64(info.Segs_out)*header + synOptions,
		Connections: 1,
	}, queued, true
}
