package peer

import (
	"net/netip"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/transport"
	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// Report is what a peer did. Times that are zero did not come.
type Report struct {
	Begun     time.Time // Start was called
	Announced time.Time // the tracker's first answer was there
	Handshake time.Time // the first handshake was complete
	Unchoked  time.Time // the first other was willing to send
	FirstByte time.Time // the first byte of content came
	// FirstPiece is when the first piece was verified, Deciles when a tenth, two
	// tenths, … nine tenths of the bytes were, Completed when all were.
	FirstPiece time.Time
	Deciles    [9]time.Time
	LastBlock  time.Time // the last byte of content that was missing came
	Completed  time.Time
	Left       time.Time // everything was closed

	Have  int64 // bytes verified
	Bytes int64 // of the file

	Pieces []Piece // in the order in which they were verified
	// Wire is what all connections carried, without the tracker's part.
	Wire wire.Ledger
	// Sockets is the same as the operating system counted it.
	Sockets transport.SocketStats

	Wasted       int64 // bytes of content that came twice or were wrong
	HashFailures int   // pieces that were wrong
	Banned       int   // others that sent them
	FromSeeds    int64 // bytes of content from peers that had all of it when they said hello
	Connections  int   // that got as far as a handshake
	TrackerError error // the last one, nil after an answer
	Err          error // why the peer ended by itself
}

// Piece is the story of one piece.
type Piece struct {
	Index    int
	Asked    time.Time // the first block was asked for
	Verified time.Time
	From     netip.AddrPort // who sent its last block
	FromID   [20]byte
}
