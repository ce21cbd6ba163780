package scale

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// Phase is where an instance is in its life.
type Phase string

// Phases of an instance.
const (
	Starting Phase = "starting" // asked for; takes no clips yet
	Busy     Phase = "busy"     // has a clip in work
	Idle     Phase = "idle"     // could take one, has none
	Draining Phase = "draining" // takes no more; goes when its clips are done
)

// Instance is one of those that the policy may start and drain.
type Instance struct {
	ID    string
	Phase Phase
	Since time.Time // in this phase
}

// Observation is what is known at a moment.
type Observation struct {
	At time.Time
	// Waiting and InWork are clips, without those in work on instances that drain.
	Waiting, InWork int
	Instances       []Instance
	// Others are workers that somebody else has started and ends.
	Others int
	// Slots is how many clips an instance works on at a time; 0 stands for 1.
	Slots int
	// Service is the mean time that a clip is in work, 0 while it is unknown.
	Service time.Duration
	// Arrivals is how many clips have ever come: only differences count. Always 0
	// when that is not known.
	Arrivals uint64
}

// State is what a policy remembers. The zero value knows nothing.
type State struct {
	since    time.Time // when it began to look without a gap
	last     time.Time
	enough   []enough // of the last cool-down, falling
	arrivals rate
}

// enough says how many instances would have been at a moment.
type enough struct {
	at    time.Time
	count int
}

// Decision says what to do now. Drained are only instances that are idle or have
// not come up yet.
type Decision struct {
	Start  int
	Drain  []string
	Reason string
}

// Acts reports whether there is anything to do.
func (d Decision) Acts() bool { return d.Start > 0 || len(d.Drain) > 0 }

// quantile is whose wait is to be acceptable.
const quantile = 0.95

// Step decides. It changes nothing that it is given; the same arguments give the
// same answer, whatever the order of the instances.
func (p Policy) Step(s State, o Observation) (State, Decision) {
	o.Slots = max(1, o.Slots)
	s.arrivals = s.arrivals.observe(o.At, o.Arrivals)

	var overdue, candidates []Instance
	staying := 0
	for _, i := range o.Instances {
		switch {
		case i.Phase == Draining:
		case i.Phase == Starting && o.At.Sub(i.Since) > p.Patience:
			overdue = append(overdue, i)
		default:
			staying++
			if i.Phase != Busy {
				candidates = append(candidates, i)
			}
		}
	}

	n := p.need(&s, o)
	n.low, n.high = n.low-o.Others, n.high-o.Others
	low := min(max(n.low, p.Floor), p.Cap)
	high := min(max(n.high, low), p.Cap)
	s = s.remember(o.At, high, p.CoolDown)

	d := Decision{Reason: n.why}
	for _, i := range overdue {
		d.Drain = append(d.Drain, i.ID)
	}
	if len(overdue) > 0 {
		d.Reason = fmt.Sprintf("%s; %d not there after %s", n.why, len(overdue), p.Patience)
	}
	if staying < low {
		d.Start = max(0, min(low-staying, p.Cap-len(o.Instances)))
		return s, d
	}
	drain := p.excess(s, o, staying, candidates)
	slices.SortFunc(candidates, func(a, b Instance) int {
		// Those that boot have no clips' data in any cache; then the longest idle.
		return cmp.Or(-cmp.Compare(boots(a), boots(b)), a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	if p.Name == PolicySource {
		candidates = slices.DeleteFunc(candidates, func(i Instance) bool { return i.Phase != Idle || o.At.Sub(i.Since) < sourceEmpty })
		drain = min(len(candidates), max(0, staying-p.Floor))
	}
	for _, i := range candidates[:min(drain, len(candidates))] {
		d.Drain = append(d.Drain, i.ID)
	}
	return s, d
}

func boots(i Instance) int {
	if i.Phase == Starting {
		return 1
	}
	return 0
}

// excess is how many of the staying instances are not needed, surely enough to
// drain them.
func (p Policy) excess(s State, o Observation, staying int, candidates []Instance) int {
	if staying > p.Cap {
		return staying - p.Cap
	}
	if len(candidates) == 0 || o.At.Sub(s.since) < p.CoolDown {
		return 0
	}
	most := s.enough[0].count
	if float64(most) > float64(staying)*(1-p.Hysteresis) || most >= staying {
		return 0
	}
	return staying - most
}

// remember adds what would be enough now and forgets what is older than the
// cool-down; the first entry is the most of the time since.
func (s State) remember(at time.Time, count int, coolDown time.Duration) State {
	if s.since.IsZero() || at.Before(s.last) || at.Sub(s.last) > max(coolDown, time.Minute) {
		s.since, s.enough = at, nil
	}
	s.last = at
	kept := make([]enough, 0, len(s.enough)+1)
	for _, e := range s.enough {
		if at.Sub(e.at) <= coolDown && e.count > count {
			kept = append(kept, e)
		}
	}
	s.enough = append(kept, enough{at, count})
	return s
}

// need is how many instances, of all that take clips, there should be at least and
// at most.
type need struct {
	low, high int
	why       string
}

func (p Policy) need(s *State, o Observation) need {
	work := o.Waiting + o.InWork
	switch p.Name {
	case PolicyFixed:
		n := p.Count + o.Others
		return need{n, n, fmt.Sprintf("%d, fixed", p.Count)}
	case PolicySource:
		running := o.Others
		for _, i := range o.Instances {
			if i.Phase != Draining {
				running++
			}
		}
		n := running + max(0, o.Waiting-running)
		return need{n, n, fmt.Sprintf("%d waiting − %d running", o.Waiting, running)}
	case PolicyPredictive:
		if o.Service > 0 && o.Arrivals > 0 {
			return p.predict(s, o)
		}
	}
	// Waits of clips that do wait are about exponential: their 95th percentile is
	// ln 20 times the mean.
	per := 1.0
	if o.Service > 0 {
		per += p.Wait.Seconds() / math.Log(1/(1-quantile)) / o.Service.Seconds()
	}
	n := instances(float64(work)/per, o.Slots)
	return need{n, n, fmt.Sprintf("%d waiting and in work, %.2f for each of a worker's %d", work, per, o.Slots)}
}

// predict sizes for the arrivals to come.
func (p Policy) predict(s *State, o Observation) need {
	service := o.Service.Seconds()
	likely, most := s.arrivals.between(o.At, o.Arrivals)
	steady := func(rate float64) int {
		load := rate * service
		// Of a worker that would idle nine tenths of its time nothing is kept.
		if load < 0.1 {
			return 0
		}
		return (Servers(load, o.Service, p.Wait, quantile, MaxCap*o.Slots) + o.Slots - 1) / o.Slots
	}
	// How much work there will be once an instance that starts now is there, if
	// those that are there or on their way go on.
	ahead, served := p.Warmup.Seconds(), float64(o.Others)*p.Warmup.Seconds()
	for _, i := range o.Instances {
		switch i.Phase {
		case Busy, Idle:
			served += ahead
		case Starting:
			served += min(ahead, max(0, o.At.Sub(i.Since).Seconds()))
		}
	}
	work := float64(o.Waiting + o.InWork)
	later := max(0, work+likely*ahead-served*float64(o.Slots)/service)
	// A clip that comes when n workers have w clips waits about (w−n)·service/n.
	per := 1 + p.Wait.Seconds()/service
	behind := instances(later/per, o.Slots)
	n := need{low: max(steady(likely), behind)}
	n.high = max(n.low, steady(most), instances(work/per, o.Slots))
	if o.Waiting+o.InWork > 0 {
		n.low, n.high = max(1, n.low), max(1, n.high)
	}
	n.why = fmt.Sprintf("%.3g to %.3g arrivals/s of %s; %.0f clips in %s", likely, most, o.Service.Round(time.Millisecond), later, p.Warmup)
	return n
}

// instances is how many have so many slots.
func instances(slots float64, each int) int {
	// An insignificant excess by rounding is none.
	return int(math.Ceil(slots/float64(each) - 1e-9))
}
