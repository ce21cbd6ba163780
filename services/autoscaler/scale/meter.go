package scale

import "time"

const (
	// memory is over about how many clips the mean service time is taken: an error of
	// a tenth in it is an error of a tenth in the number of instances, and times in
	// work vary as much as their mean.
	memory = 1000
	// known is how many clips must be done before anything is said: one or two may
	// be anything.
	known = 10
)

// Meter derives what a policy wants to know and no queue tells: how many clips have
// come, and how long one is in work. The zero value is ready.
//
// Clips in work count as far as they have got: the mean over those that are done
// would at first be that of the short ones.
type Meter struct {
	last    time.Time
	inWork  int
	done    uint64
	come    uint64
	busy    float64 // seconds in work, forgotten slowly
	endings float64 // of clips, forgotten likewise
}

// Observe takes how many clips wait, are in work and have ever been done.
func (m *Meter) Observe(at time.Time, waiting, inWork int, done uint64) {
	if !m.last.IsZero() {
		if dt := at.Sub(m.last); dt > 0 {
			m.busy += dt.Seconds() * float64(m.inWork+inWork) / 2
		}
		for ; m.done < done; m.done++ {
			m.busy *= 1 - 1.0/memory
			m.endings = m.endings*(1-1.0/memory) + 1
		}
	}
	m.last, m.inWork, m.done = at, inWork, max(m.done, done)
	m.come = max(m.come, uint64(max(0, waiting+inWork))+m.done)
}

// Arrivals is how many clips have come; only differences mean anything.
func (m *Meter) Arrivals() uint64 { return m.come }

// Service is the mean time a clip is in work, 0 while too few have been done.
func (m *Meter) Service() time.Duration {
	if m.endings < known {
		return 0
	}
	return time.Duration(m.busy / m.endings * float64(time.Second))
}
