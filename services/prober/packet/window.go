package packet

// slot is a probe that has come due and has no result yet. There may be
// rate × timeout of them, hence the packing.
type slot struct {
	due      int64 // ns after the start
	sent     int64 // ns after the start, by our clock just before the call
	wall     int64 // the same by the wall clock, ns since 1970
	tx       int64 // the kernel's stamp, wall clock; 0 none
	rx       int64 // of the answer, wall clock: the kernel's stamp, or ours without flagRx
	answered int64 // ns after the start, by our clock when the answer was seen
	t2, t3   int64 // of STAMP, wall clock of the reflector
	flow     uint32
	seq      uint32
	key      uint32 // number of the transmit stamp
	refSeq   uint32
	estimate uint16 // of the reflector's clock
	text     uint16 // index of the error's text
	dups     uint16
	ttl      uint8
	state    state
	flags    uint8
	socket   uint8
}

type state uint8

const (
	stateDue         state = iota // not sent yet
	stateSent                     // sent, no answer yet
	stateOK                       // answered
	stateCorrupt                  // answered with another payload
	stateUnreachable              // the states from here on are failures with a text
	stateRefused
	stateDenied
	stateError
	stateCancelled
)

const (
	flagRx        = 1 << iota // rx is the kernel's
	flagStepped               // the wall clock was set while it was under way
	flagReordered             // a later probe of the flow was answered before
	flagPTP                   // the reflector's times are not of UTC
)

// window holds the slots in the order of the schedule, numbered from 0. All
// probes have the same timeout, so they leave in the order they came.
type window struct {
	buf  []slot // length a power of two
	head uint64 // oldest
	tail uint64 // one past the newest
}

func newWindow(expect int) *window {
	size := 64
	for size < expect {
		size *= 2
	}
	return &window{buf: make([]slot, size)}
}

func (w *window) len() int { return int(w.tail - w.head) }

func (w *window) at(n uint64) *slot { return &w.buf[n&uint64(len(w.buf)-1)] }

// holds reports whether n has a slot.
func (w *window) holds(n uint64) bool { return n-w.head < w.tail-w.head }

// push adds a slot; pointers to others are void thereafter.
func (w *window) push(p probe) uint64 {
	if w.len() == len(w.buf) {
		bigger := make([]slot, 2*len(w.buf))
		for n := w.head; n != w.tail; n++ {
			bigger[n&uint64(len(bigger)-1)] = *w.at(n)
		}
		w.buf = bigger
	}
	n := w.tail
	w.tail++
	*w.at(n) = slot{due: p.due, flow: p.flow, seq: p.seq}
	return n
}

// find returns the slot of a probe, by bisection of the schedule's order.
func (w *window) find(s *schedule, flow, seq uint32) (uint64, bool) {
	low, high := w.head, w.tail
	for low < high {
		mid := low + (high-low)/2
		m := w.at(mid)
		switch {
		case m.flow == flow && m.seq == seq:
			return mid, true
		case s.before(m.flow, m.seq, flow, seq):
			low = mid + 1
		default:
			high = mid
		}
	}
	return 0, false
}
