package collector

import (
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// arrival is one message of the stream, read and judged.
type arrival struct {
	seq    uint64
	stored time.Time          // when the bus took it
	wire   int                // bytes of the message
	bytes  int                // bytes it takes here
	block  *schemas.BatchInfo // nil when it was rejected, and is buried
	memory []byte             // of the block
}

// load is what one insert takes: consecutive messages of the stream.
type load struct {
	from, to uint64
	blocks   []schemas.BatchInfo
	memory   [][]byte // of the blocks
	accepted int      // messages that hold up
	rows     int
	wire     int // bytes of all messages, rejected ones included
	bytes    int // bytes they take here
	messages int
	since    time.Time // when the first arrived here
	stored   time.Time // when the bus took the last
}

// maxMessages bounds a load beside what is configured.
const maxMessages = 1 << 14

// fits reports whether the arrival may join the load. The first one always may.
func (l *load) fits(a arrival, cfg *Config) bool {
	if l.messages == 0 {
		return true
	}
	rows := 0
	if a.block != nil {
		rows = a.block.Rows
	}
	return l.rows+rows <= cfg.MaxRows && l.bytes+a.bytes <= cfg.MaxBytes && l.messages < maxMessages
}

func (l *load) add(a arrival, now time.Time) {
	if l.messages == 0 {
		l.from, l.since = a.seq, now
	}
	l.to, l.stored = a.seq, a.stored
	l.messages++
	l.wire += a.wire
	l.bytes += a.bytes
	if a.block == nil {
		return
	}
	l.blocks = append(l.blocks, *a.block)
	l.memory = append(l.memory, a.memory)
	l.accepted++
	l.rows += a.block.Rows
}
