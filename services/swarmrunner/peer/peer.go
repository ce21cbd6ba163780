package peer

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
)

// Options say who a peer is and what limits it has.
type Options struct {
	Torrent *metainfo.Torrent
	ID      [20]byte
	// Store is the file: its whole content for a seeder, memory of the same
	// length for a leecher. The peer reads and writes it from several goroutines
	// until it is closed.
	Store []byte
	Seed  bool
	// Listener is where others reach the peer; the peer closes it. Its address,
	// or Address if given, is what the peer never dials.
	Listener net.Listener
	Address  netip.AddrPort
	// Dial connects to another peer.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Secure agrees on encryption over a new connection and returns what to go
	// on with; overhead is what the agreement itself sent and received. nil leaves everything plain.
	Secure func(ctx context.Context, c net.Conn, initiator bool) (net.Conn, Overhead, error)
	// Announce tells the tracker and returns who else is there, and after how
	// long to ask again.
	Announce func(ctx context.Context, a Announcement) (peers []netip.AddrPort, interval time.Duration, err error)

	Slots       int   // peers it sends to at a time; 0: all that ask
	Connections int   // at most; 0: 40
	Window      int64 // bytes asked of one other ahead of their coming; 0: follows the rate
	Upload      int64 // bytes a second of content; 0: no limit
	Download    int64
	SuperSeed   bool // as a seeder, show each other a piece that nobody has yet (BEP 16)
	// Corrupt makes a seeder send wrong content, to see what others make of it.
	Corrupt bool
}

// Overhead is how many bytes an agreement on encryption took.
type Overhead struct{ Sent, Received uint64 }

// Announcement is what a peer tells the tracker of itself.
type Announcement struct {
	Event                      string // started, completed, stopped or empty
	Uploaded, Downloaded, Left int64
}
