package collector

import (
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// arrival is one message of the stream, read and judged.
type arrival struct {
	seq    uint64
	stored time.Time          // when the bus took it
	bytes  int                // of the message
	block  *schemas.BatchInfo // nil when it was rejected, and is buried
}

// load is what one insert takes: consecutive messages of the stream.
type load struct {
	from, to uint64
	blocks   []schemas.BatchInfo
	rows     int
	bytes    int // of all messages, rejected ones included
	messages int
	months   map[month]struct{}
	since    time.Time // when the first arrived here
	stored   time.Time // when the bus took the last
}

// month is a partition of the table.
type month struct {
	year  int
	month time.Month
}

// Bounds of a load beside the configured ones: every month an insert touches
// is a part of its own, and the database refuses more than 100 of them.
const (
	maxMonths   = 64
	maxMessages = 1 << 14
)

// fits reports whether the arrival may join the load. The first one always may.
func (l *load) fits(a arrival, cfg *Config) bool {
	if l.messages == 0 {
		return true
	}
	rows := 0
	if a.block != nil {
		rows = a.block.Rows
		if len(l.months)+newMonths(l.months, a.block) > maxMonths {
			return false
		}
	}
	return l.rows+rows <= cfg.MaxRows && l.bytes+a.bytes <= cfg.MaxBytes && l.messages < maxMessages
}

func (l *load) add(a arrival, now time.Time) {
	if l.messages == 0 {
		l.from, l.since, l.months = a.seq, now, map[month]struct{}{}
	}
	l.to, l.stored = a.seq, a.stored
	l.messages++
	l.bytes += a.bytes
	if a.block == nil {
		return
	}
	l.blocks = append(l.blocks, *a.block)
	l.rows += a.block.Rows
	eachMonth(a.block, func(m month) { l.months[m] = struct{}{} })
}

func newMonths(known map[month]struct{}, b *schemas.BatchInfo) int {
	n := 0
	eachMonth(b, func(m month) {
		if _, ok := known[m]; !ok {
			n++
		}
	})
	return n
}

func eachMonth(b *schemas.BatchInfo, visit func(month)) {
	last := month{b.Latest.Year(), b.Latest.Month()}
	t := time.Date(b.Earliest.Year(), b.Earliest.Month(), 1, 0, 0, 0, 0, time.UTC)
	for {
		m := month{t.Year(), t.Month()}
		visit(m)
		if m == last {
			return
		}
		t = t.AddDate(0, 1, 0)
	}
}
