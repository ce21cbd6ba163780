package packet

import (
	"math"
	"slices"
	"time"
)

// schedule yields the probes of all flows in the order in which they are due.
// The flows share one interval, so after sorting by phase once it goes round
// and round: no heap, no cost that grows with the flows. The order is that of
// (round, rank), which window relies on to find a probe again.
type schedule struct {
	interval int64
	flows    []Flow
	order    []uint32 // flows by phase within the interval
	rank     []uint32 // of each flow in order at the beginning
	round    int64
	at       int
	used     int // flows of this round that had a probe
	gone     int // flows passed in this round that have no more
	have     bool
	next     probe
}

// probe is one probe of the schedule.
type probe struct {
	flow, seq uint32
	due       int64 // ns after the start
}

func newSchedule(interval time.Duration, flows []Flow) *schedule {
	s := &schedule{interval: int64(interval), flows: flows, order: make([]uint32, 0, len(flows)), rank: make([]uint32, len(flows))}
	for i := range flows {
		if flows[i].Count > 0 {
			s.order = append(s.order, uint32(i))
		}
	}
	slices.SortFunc(s.order, func(a, b uint32) int {
		pa, pb := s.phase(a), s.phase(b)
		switch {
		case pa != pb && pa < pb:
			return -1
		case pa != pb:
			return 1
		}
		return int(a) - int(b)
	})
	for r, f := range s.order {
		s.rank[f] = uint32(r)
	}
	s.skipEmpty()
	s.advance()
	return s
}

func (s *schedule) phase(flow uint32) int64 { return int64(s.flows[flow].Phase) % s.interval }

// firstRound is the round in which the flow has its first probe.
func (s *schedule) firstRound(flow uint32) int64 { return int64(s.flows[flow].Phase) / s.interval }

// peek returns the next probe; ok is false when there is none.
func (s *schedule) peek() (p probe, ok bool) { return s.next, s.have }

// advance goes to the probe after that of peek.
func (s *schedule) advance() {
	for len(s.order) > 0 {
		for ; s.at < len(s.order); s.at++ {
			flow := s.order[s.at]
			seq := s.round - s.firstRound(flow)
			switch {
			case seq >= int64(s.flows[flow].Count):
				s.gone++
			case seq >= 0:
				s.at++
				s.used++
				s.have = true
				s.next = probe{flow: flow, seq: uint32(seq), due: s.round*s.interval + s.phase(flow)}
				return
			}
		}
		s.newRound()
	}
	s.have = false
}

func (s *schedule) newRound() {
	s.round++
	// Flows that have ended are looked at once a round until they are the
	// half, which bounds both that and the copying.
	if s.gone*2 >= len(s.order) {
		s.order = slices.DeleteFunc(s.order, func(flow uint32) bool {
			return s.round-s.firstRound(flow) >= int64(s.flows[flow].Count)
		})
	}
	if s.used == 0 {
		s.skipEmpty()
	}
	s.at, s.used, s.gone = 0, 0, 0
}

// skipEmpty goes to the first round from here that has a probe.
func (s *schedule) skipEmpty() {
	first := int64(math.MaxInt64)
	for _, flow := range s.order {
		from := s.firstRound(flow)
		if s.round-from < int64(s.flows[flow].Count) {
			first = min(first, from)
		}
	}
	if first != math.MaxInt64 {
		s.round = max(s.round, first)
	}
}

// before reports whether a's probe comes before b's.
func (s *schedule) before(aFlow, aSeq, bFlow, bSeq uint32) bool {
	ra, rb := int64(aSeq)+s.firstRound(aFlow), int64(bSeq)+s.firstRound(bFlow)
	if ra != rb {
		return ra < rb
	}
	return s.rank[aFlow] < s.rank[bFlow]
}
