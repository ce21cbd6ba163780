package transport

// SocketStats is what the operating system counted of a connection.
type SocketStats struct {
	Sent, Received uint64 // bytes of the stream, without what was sent again
	SentAgain      uint64 // bytes sent again
	SegmentsOut    uint64
	SegmentsIn     uint64
	HeaderOut      uint64 // bytes of IP and TCP headers that SegmentsOut had
}

// Add adds another connection's.
func (s *SocketStats) Add(o SocketStats) {
	s.Sent += o.Sent
	s.Received += o.Received
	s.SentAgain += o.SentAgain
	s.SegmentsOut += o.SegmentsOut
	s.SegmentsIn += o.SegmentsIn
	s.HeaderOut += o.HeaderOut
}
