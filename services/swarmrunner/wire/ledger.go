package wire

// Class is what a byte on the wire is for.
type Class uint8

// Classes of bytes. A piece message is its header (with length and id) and its
// payload; every other message is counted whole, with its length prefix.
const (
	Payload       Class = iota // file content of piece messages
	PieceHeader                // 13 bytes before each block
	Handshake                  // BEP 3, 68 bytes
	Extension                  // BEP 10
	KeepAlive                  //
	Choke                      //
	Unchoke                    //
	Interested                 //
	NotInterested              //
	Have                       //
	Bitfield                   // with have-all and have-none of BEP 6
	Request                    //
	Cancel                     //
	Reject                     // BEP 6
	Fast                       // suggest and allowed-fast of BEP 6
	Port                       // BEP 5
	Unknown                    // messages nobody knows
	Encryption                 // MSE handshake: keys and padding
	UTP                        // headers and control packets of BEP 29, below the stream
	Tracker                    // announces and their answers, with their HTTP or UDP tracker headers
	Classes                    // how many there are
)

// String is the class's name in events.
func (c Class) String() string {
	names := [Classes]string{
		"payload", "piece_header", "handshake", "extension", "keep_alive", "choke", "unchoke", "interested", "not_interested",
		"have", "bitfield", "request", "cancel", "reject", "fast", "port", "unknown", "encryption", "utp", "tracker",
	}
	if c >= Classes {
		return "unknown"
	}
	return names[c]
}

// Tally is how many messages and bytes of one class there were.
type Tally struct{ Messages, Bytes uint64 }

// Ledger is what one side of a connection, or a peer in all, sent and received
// by class. It is not safe for use by several goroutines.
type Ledger struct {
	Sent, Received [Classes]Tally
}

// Add adds another ledger.
func (l *Ledger) Add(other *Ledger) {
	for c := range Classes {
		l.Sent[c].Messages += other.Sent[c].Messages
		l.Sent[c].Bytes += other.Sent[c].Bytes
		l.Received[c].Messages += other.Received[c].Messages
		l.Received[c].Bytes += other.Received[c].Bytes
	}
}

// SentBytes is the sum over all classes.
func (l *Ledger) SentBytes() uint64 { return total(&l.Sent) }

// ReceivedBytes is the sum over all classes.
func (l *Ledger) ReceivedBytes() uint64 { return total(&l.Received) }

func total(tallies *[Classes]Tally) uint64 {
	var n uint64
	for i := range tallies {
		n += tallies[i].Bytes
	}
	return n
}
