package transport

import "net"

// SocketStats is what the operating system counted of TCP connections.
type SocketStats struct {
	Sent, Received uint64 // bytes of the stream, without what was sent again
	SentAgain      uint64 // bytes sent again
	SegmentsOut    uint64 // packets, those without content too
	SegmentsIn     uint64
	HeaderOut      uint64 // bytes of IP and TCP headers that SegmentsOut had
	Connections    uint64
}

// Add adds other connections'.
func (s *SocketStats) Add(o SocketStats) {
	s.Sent += o.Sent
	s.Received += o.Received
	s.SentAgain += o.SentAgain
	s.SegmentsOut += o.SegmentsOut
	s.SegmentsIn += o.SegmentsIn
	s.HeaderOut += o.HeaderOut
	s.Connections += o.Connections
}

// Datagrams counts UDP; the bytes are those that UDP carried, without its own
// and IP's headers.
type Datagrams struct {
	Sent, Received           uint64
	SentBytes, ReceivedBytes uint64
}

// Add adds another socket's.
func (d *Datagrams) Add(o Datagrams) {
	d.Sent += o.Sent
	d.Received += o.Received
	d.SentBytes += o.SentBytes
	d.ReceivedBytes += o.ReceivedBytes
}

// Usage is what sockets did.
type Usage struct {
	TCP SocketStats
	UDP Datagrams // uTP's too
}

// Add adds other sockets'.
func (u *Usage) Add(o Usage) {
	u.TCP.Add(o.TCP)
	u.UDP.Add(o.UDP)
}

// Since is what has come on top of an earlier usage of the same sockets.
func (u Usage) Since(before Usage) Usage {
	return Usage{
		TCP: SocketStats{
			Sent:        u.TCP.Sent - before.TCP.Sent,
			Received:    u.TCP.Received - before.TCP.Received,
			SentAgain:   u.TCP.SentAgain - before.TCP.SentAgain,
			SegmentsOut: u.TCP.SegmentsOut - before.TCP.SegmentsOut,
			SegmentsIn:  u.TCP.SegmentsIn - before.TCP.SegmentsIn,
			HeaderOut:   u.TCP.HeaderOut - before.TCP.HeaderOut,
			Connections: u.TCP.Connections - before.TCP.Connections,
		},
		UDP: Datagrams{
			Sent:          u.UDP.Sent - before.UDP.Sent,
			Received:      u.UDP.Received - before.UDP.Received,
			SentBytes:     u.UDP.SentBytes - before.UDP.SentBytes,
			ReceivedBytes: u.UDP.ReceivedBytes - before.UDP.ReceivedBytes,
		},
	}
}

// StatsOf is what was counted of one connection, until now or until it was
// closed. It looks through wrappers that have NetConn() net.Conn. Of uTP only the
// bytes of the stream are known: its packets belong to the endpoint
// ([Endpoint.Datagrams]). false: nothing is known of such a connection, or on
// this system.
func StatsOf(c net.Conn) (SocketStats, bool) {
	for {
		switch t := c.(type) {
		case *tcpConn:
			return t.stats()
		case *utpConn:
			return t.stats(), true
		case *net.TCPConn:
			s, _, ok := socketStats(t)
			return s, ok
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return SocketStats{}, false
		}
	}
}

// Sizes of headers, in bytes.
const (
	ipv4Header     = 20
	ipv6Header     = 40
	tcpHeader      = 20
	tcpTimestamps  = 12
	udpHeader      = 8
	ethernetHeader = 14
	// synOptions is what the first packet of each direction has more than later
	// ones: segment size, selective acknowledgements and window scale are
	// agreed on there.
	synOptions = 8
	// usualHeader is of a TCP packet where nothing is known of it.
	usualHeader = ipv4Header + tcpHeader + tcpTimestamps
)
