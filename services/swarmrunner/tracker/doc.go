// Package tracker tells the peers of a swarm of each other: a server and a client
// of the tracker protocol over HTTP (BEP 3, 7, 23 and 48) and UDP (BEP 15 and 41).
//
// It is a lab's: a swarm lives for seconds there, its peers may all have
// addresses of one machine, and every byte that its sockets carry is counted.
// Peers are answered in the compact form only, which every client of today reads.
package tracker

import (
	"net"
	"strings"
	"sync/atomic"
)

// Traffic is what sockets carried. Bytes are those of TCP's stream and UDP's
// payload; messages are HTTP requests or answers and UDP packets.
type Traffic struct {
	Sent, Received                 uint64
	MessagesSent, MessagesReceived uint64
}

// meter counts traffic, also of several goroutines.
type meter struct{ sent, received, messagesSent, messagesReceived atomic.Uint64 }

func (m *meter) traffic() Traffic {
	return Traffic{
		Sent: m.sent.Load(), Received: m.received.Load(),
		MessagesSent: m.messagesSent.Load(), MessagesReceived: m.messagesReceived.Load(),
	}
}

// metered counts what a connection carries.
type metered struct {
	net.Conn
	meter *meter
}

func (c metered) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.meter.received.Add(uint64(max(n, 0)))
	return n, err
}

func (c metered) Write(p []byte) (int, error) {
	// Counted before: whoever has the bytes may ask for the count at once.
	c.meter.sent.Add(uint64(len(p)))
	n, err := c.Conn.Write(p)
	c.meter.sent.Add(-uint64(len(p) - max(n, 0)))
	return n, err
}

// URL is where peers announce to a server: protocol is http or udp, address its
// host and port, token what Options.Token is.
//
// The token comes last because libtorrent refuses HTTP trackers on loopback whose
// path does not begin with /announce.
func URL(protocol, address, token string) string {
	path := "/announce"
	if token != "" {
		path += "/" + token
	}
	return protocol + "://" + address + path
}

// splitPath splits the path of an announce or scrape URL into its token and which
// of the two it is for. The token may come first as well: clients find the URL
// for scrapes by what is after the last slash.
func splitPath(path string) (token, what string) {
	first, last, two := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch {
	case first == "announce" || first == "scrape":
		return last, first
	case two && (last == "announce" || last == "scrape"):
		return first, last
	}
	return "", ""
}
