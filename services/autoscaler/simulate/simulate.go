package simulate

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

// World is what policies cannot choose.
type World struct {
	Boot  time.Duration // from asking for an instance until it takes clips
	Cap   int
	Slots int           // clips an instance works on at a time; 0 stands for 1
	Wait  time.Duration // acceptable at the 95th percentile
}

// Controller is a policy with its pace.
type Controller interface {
	Every() time.Duration
	Step(v View) Order
}

// View is what a controller sees.
type View struct {
	At              time.Time
	Waiting, InWork int
	Leaving         int // of those in work: on instances that drain
	Done            uint64
	Instances       []scale.Instance
	Slots           int
}

// Order is what a controller wants done.
type Order struct {
	Start int
	Drain []string
}

// Result is what a policy has cost and made of the waits.
type Result struct {
	Clips         int
	Cost          time.Duration // instances times time
	P50, P95, Max time.Duration // waits, from coming until in work
	// Reversals is how often more were asked for after fewer, or the reverse.
	Reversals int
	// Decided is how long after the first clip the first instance was asked for, Worst the
	// longest time between a backlog that could not be worked off within the
	// acceptable wait by what was there or on its way, and asking for more.
	Decided, Worst time.Duration
	// Full is how long after the first clip as many were asked for as the oracle
	// has; -1 if never.
	Full time.Duration
	Peak int
	// Started is how many instances were asked for.
	Started int
}

// epoch is when virtual time begins.
func epoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// ErrEndless says that a policy left clips without an instance for a day.
var ErrEndless = errors.New("clips are still waiting a day after the last has come")

type happening int

const (
	booted happening = iota
	finished
)

type event struct {
	at   time.Duration
	seq  int // of two at the same time the one planned first
	what happening
	on   *instance
}

type agenda []event

func (a agenda) Len() int { return len(a) }

func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(event)) }

func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

type instance struct {
	id      string
	started time.Duration
	phase   scale.Phase
	since   time.Duration
	busy    int
}

type simulation struct {
	w     World
	t     *Trace
	now   time.Duration
	plan  agenda
	seq   int
	all   []*instance
	next  int   // of the clips to come
	queue []int // of the clips that wait
	head  int
	work  int // clips in work
	done  uint64

	waits     []time.Duration
	direction int
	crossed   time.Duration // -1 while the backlog is acceptable
	r         Result
}

// Run replays a trace against a controller; phase, from 0 to 1, is where between two
// of its steps time begins.
func Run(t *Trace, w World, c Controller, phase float64) (Result, error) {
	w.Slots = max(1, w.Slots)
	s := &simulation{w: w, t: t, crossed: -1, waits: make([]time.Duration, 0, len(t.Clips))}
	s.r.Decided, s.r.Full = -1, -1
	most := oracleSize(t, w)
	last := t.Clips[len(t.Clips)-1].At
	tick := time.Duration(phase * float64(c.Every()))
	for {
		arrival := s.next < len(t.Clips) && t.Clips[s.next].At <= tick
		planned := len(s.plan) > 0 && s.plan[0].at <= tick && (!arrival || s.plan[0].at <= t.Clips[s.next].At)
		switch {
		case planned:
			e := heap.Pop(&s.plan).(event)
			s.now = e.at
			s.happen(e)
		case arrival:
			s.now = t.Clips[s.next].At
			s.queue = append(s.queue, s.next)
			s.next++
		default:
			s.now = tick
			tick += c.Every()
			s.order(c.Step(s.view()), most)
			if s.now > last && s.idle() {
				return s.result(), nil
			}
			if s.now > last+24*time.Hour {
				return Result{}, ErrEndless
			}
		}
		s.assign()
		s.watch()
	}
}

// idle reports that nothing is left to do and nobody is left to end.
func (s *simulation) idle() bool {
	return int(s.done) == len(s.t.Clips) && len(s.all) == 0
}

func (s *simulation) happen(e event) {
	i := e.on
	switch e.what {
	case booted:
		if i.phase == scale.Starting {
			i.phase, i.since = scale.Idle, s.now
		}
	case finished:
		i.busy--
		s.work--
		s.done++
		if i.busy == 0 && i.phase == scale.Busy {
			i.phase, i.since = scale.Idle, s.now
		}
	}
	if i.phase == scale.Draining && i.busy == 0 {
		s.end(i)
	}
}

func (s *simulation) end(i *instance) {
	at := slices.Index(s.all, i)
	if at < 0 {
		return // it booted after it was given up
	}
	s.all = slices.Delete(s.all, at, at+1)
	s.r.Cost += s.now - i.started
}

// assign gives the clips that wait to who has waited longest for one.
func (s *simulation) assign() {
	for s.head < len(s.queue) {
		var to *instance
		for _, i := range s.all {
			if i.phase != scale.Idle && (i.phase != scale.Busy || i.busy >= s.w.Slots) {
				continue
			}
			if to == nil || cmp.Or(cmp.Compare(i.busy, to.busy), cmp.Compare(i.since, to.since)) < 0 {
				to = i
			}
		}
		if to == nil {
			return
		}
		clip := s.t.Clips[s.queue[s.head]]
		s.head++
		if to.phase == scale.Idle {
			to.phase, to.since = scale.Busy, s.now
		}
		to.busy++
		s.work++
		s.waits = append(s.waits, s.now-clip.At)
		s.schedule(s.now+clip.Service, finished, to)
	}
}

func (s *simulation) schedule(at time.Duration, what happening, on *instance) {
	s.seq++
	heap.Push(&s.plan, event{at, s.seq, what, on})
}

// watch notes since when the backlog is too long for what is there.
func (s *simulation) watch() {
	slots := 0
	for _, i := range s.all {
		if i.phase != scale.Draining {
			slots += s.w.Slots
		}
	}
	waiting := len(s.queue) - s.head
	acceptable := waiting == 0 || len(s.all) >= s.w.Cap || slots > 0 && time.Duration(waiting)*s.t.Service/time.Duration(slots) <= s.w.Wait
	switch {
	case acceptable:
		s.crossed = -1
	case s.crossed < 0:
		s.crossed = s.now
	}
}

func (s *simulation) view() View {
	v := View{At: epoch().Add(s.now), Waiting: len(s.queue) - s.head, InWork: s.work, Done: s.done, Slots: s.w.Slots, Instances: make([]scale.Instance, len(s.all))}
	for n, i := range s.all {
		if i.phase == scale.Draining {
			v.Leaving += i.busy
		}
		v.Instances[n] = scale.Instance{ID: i.id, Phase: i.phase, Since: epoch().Add(i.since)}
	}
	return v
}

func (s *simulation) order(o Order, most int) {
	n := min(o.Start, s.w.Cap-len(s.all))
	for range n {
		s.r.Started++
		i := &instance{id: strconv.Itoa(s.r.Started), started: s.now, phase: scale.Starting, since: s.now}
		s.all = append(s.all, i)
		s.schedule(s.now+s.w.Boot, booted, i)
	}
	if n > 0 {
		s.turn(1)
		if s.r.Decided < 0 {
			s.r.Decided = s.now - s.t.Clips[0].At
		}
		if s.crossed >= 0 {
			s.r.Worst, s.crossed = max(s.r.Worst, s.now-s.crossed), -1
		}
		s.r.Peak = max(s.r.Peak, len(s.all))
		if s.r.Full < 0 && len(s.all) >= most {
			s.r.Full = s.now - s.t.Clips[0].At
		}
	}
	for _, id := range o.Drain {
		at := slices.IndexFunc(s.all, func(i *instance) bool { return i.id == id })
		if at < 0 {
			continue
		}
		s.turn(-1)
		i := s.all[at]
		i.phase, i.since = scale.Draining, s.now
		if i.busy == 0 {
			s.end(i)
		}
	}
}

func (s *simulation) turn(to int) {
	if s.direction == -to {
		s.r.Reversals++
	}
	s.direction = to
}

func (s *simulation) result() Result {
	s.r.Clips = len(s.waits)
	s.r.P50, s.r.P95, s.r.Max = spread(s.waits)
	return s.r
}

// spread sorts the waits.
func spread(waits []time.Duration) (p50, p95, most time.Duration) {
	slices.Sort(waits)
	n := len(waits)
	return waits[(n-1)/2], waits[min(n-1, n*95/100)], waits[n-1]
}

// stepper runs a policy of package scale as the service does.
type stepper struct {
	policy scale.Policy
	every  time.Duration
	state  scale.State
	meter  scale.Meter
}

// Policy is the controller that the autoscaler is.
func Policy(p scale.Policy, every time.Duration) (Controller, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("policy %s: %w", p.Name, err)
	}
	if every <= 0 {
		return nil, fmt.Errorf("policy %s: a step every %s", p.Name, every)
	}
	return &stepper{policy: p, every: every}, nil
}

func (c *stepper) Every() time.Duration { return c.every }

func (c *stepper) Step(v View) Order {
	c.meter.Observe(v.At, v.Waiting, v.InWork, v.Done)
	var d scale.Decision
	c.state, d = c.policy.Step(c.state, scale.Observation{
		At: v.At, Waiting: v.Waiting, InWork: v.InWork - v.Leaving, Instances: v.Instances, Slots: v.Slots,
		Service: c.meter.Service(), Arrivals: c.meter.Arrivals(),
	})
	return Order{d.Start, d.Drain}
}

// Seeded is a source of random numbers that gives the same ones for a seed.
func Seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x7472616e73666572)) }
