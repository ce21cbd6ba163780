package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/autoscaler/drive"
	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

// Queue knows how much work there is.
type Queue interface {
	// Backlog counts the clips that wait and those in work; oldest is when the first
	// that waits came, zero if that is unknown.
	Backlog(ctx context.Context) (waiting, inWork int, oldest time.Time, err error)
}

// Workers knows which workers are there, ours and others.
type Workers interface {
	Workers(ctx context.Context) ([]schemas.DetectorStatus, error)
}

// Drainer tells a worker to finish what it has and take no more. That it was told
// says nothing: it is drained when it says so itself.
type Drainer interface {
	Drain(ctx context.Context, worker string) error
}

// Driver starts and ends instances; see package drive for what is asked of one.
type Driver interface {
	List(ctx context.Context) ([]drive.Instance, error)
	Start(ctx context.Context, n int) error
	Stop(ctx context.Context, id string) error
}

// Parts are what the loop works with.
type Parts struct {
	Queue   Queue
	Workers Workers
	Drainer Drainer
	Driver  Driver
	Record  func(*schemas.Event) error
	Log     *slog.Logger
}

// Bounds of one step.
const (
	lookPatience = 5 * time.Second
	actPatience  = time.Minute
	stopAgain    = 5 * time.Second  // after a Stop that failed
	drainAgain   = 10 * time.Second // a request to drain may be lost
	silent       = time.Minute      // from then on a clip that a worker had is another's
	firstPause   = time.Second      // after a Start that failed; doubles
	longestPause = time.Minute
)

// Loop runs a policy.
type Loop struct {
	policy scale.Policy
	every  time.Duration
	p      Parts

	state scale.State
	meter scale.Meter
	done  map[string]uint64 // clips that workers, by name, have done as far as they said
	total uint64
	known map[string]*tracked

	pause     time.Duration // after a failed start
	nextStart time.Time

	stops sync.WaitGroup
	mu    sync.Mutex // guards what follows, and tracked.stopping and .nextStop
	err   error      // why the last look failed
}

// tracked is what the loop remembers of an instance.
type tracked struct {
	seen     bool      // its worker has been there
	lost     time.Time // since when it no longer is
	idle     time.Time // since when it has had no clips
	asked    time.Time // to drain
	told     bool      // it has said that it drains
	repeated time.Time
	stopping bool
	nextStop time.Time
}

// NewLoop returns a loop; Run starts it. The policy must be valid.
func NewLoop(policy scale.Policy, every time.Duration, p Parts) *Loop {
	return &Loop{policy: policy, every: every, p: p, done: map[string]uint64{}, known: map[string]*tracked{}}
}

// Run looks, decides and acts until ctx ends, and returns when every stop that has
// begun is over.
func (l *Loop) Run(ctx context.Context) error {
	defer l.stops.Wait()
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	for {
		l.Step(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Healthy returns why the last look failed, or nil.
func (l *Loop) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// look is what one step has seen.
type look struct {
	at              time.Time
	waiting, inWork int
	oldest          time.Time
	workers         map[string]schemas.DetectorStatus
	instances       []drive.Instance
}

// Step looks, decides and acts once.
func (l *Loop) Step(ctx context.Context) {
	seen, err := l.look(ctx)
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	if err != nil && l.err == nil {
		l.p.Log.Warn("nothing is changed while this cannot be seen", "error", err)
	}
	l.err = err
	l.mu.Unlock()
	if err != nil {
		return
	}
	o := l.observe(seen)
	var d scale.Decision
	l.state, d = l.policy.Step(l.state, o)
	if seen.at.Before(l.nextStart) {
		d.Start = 0
	}
	if d.Acts() {
		l.act(ctx, seen, &o, d)
	}
	l.finish(ctx, seen)
}

func (l *Loop) look(ctx context.Context) (*look, error) {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	s := &look{at: time.Now(), workers: map[string]schemas.DetectorStatus{}}
	var errs [3]error
	var statuses []schemas.DetectorStatus
	var all sync.WaitGroup
	all.Go(func() { s.waiting, s.inWork, s.oldest, errs[0] = l.p.Queue.Backlog(ctx) })
	all.Go(func() { statuses, errs[1] = l.p.Workers.Workers(ctx) })
	all.Go(func() { s.instances, errs[2] = l.p.Driver.List(ctx) })
	all.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for _, w := range statuses {
		s.workers[w.Name] = w
	}
	return s, nil
}

// observe brings together what was seen and what is remembered.
func (l *Loop) observe(s *look) scale.Observation {
	o := scale.Observation{At: s.at, Waiting: s.waiting, InWork: s.inWork, Slots: 1}
	ours, there := map[string]bool{}, map[string]bool{}
	for _, i := range s.instances {
		ours[i.Worker], there[i.ID] = true, true
		t := l.known[i.ID]
		if t == nil {
			t = &tracked{}
			l.known[i.ID] = t
		}
		status, up := s.workers[i.Worker]
		if up {
			o.Slots = max(o.Slots, status.Slots)
		}
		phase, since := t.phase(s.at, i.Started, status, up)
		o.Instances = append(o.Instances, scale.Instance{ID: i.ID, Phase: phase, Since: since})
	}
	for id := range l.known {
		if !there[id] {
			delete(l.known, id)
		}
	}
	slots, clips, leaving := 0, uint64(0), 0
	var service time.Duration
	for name, w := range s.workers {
		if !ours[name] && !w.Draining {
			slots += w.Slots
		}
		if w.Draining {
			leaving += w.Busy
		}
		if w.Clips > 0 && w.Service > 0 {
			// The mean of means, weighted by clips.
			clips += w.Clips
			service += time.Duration(float64(w.Service-service) * float64(w.Clips) / float64(clips))
		}
		before := l.done[name]
		if w.Clips < before {
			before = 0 // it was started anew under its name
		}
		l.total += w.Clips - before
		l.done[name] = w.Clips
	}
	o.Others = slots / o.Slots
	l.forget(s.workers)
	l.meter.Observe(s.at, s.waiting, s.inWork, l.total)
	o.Arrivals = l.meter.Arrivals()
	// These clips need nobody else.
	o.InWork = max(0, o.InWork-leaving)
	if o.Service = l.meter.Service(); o.Service == 0 {
		o.Service = service
	}
	return o
}

// maxNames bounds the memory of workers that have left.
const maxNames = 10_000

func (l *Loop) forget(workers map[string]schemas.DetectorStatus) {
	if len(l.done) <= maxNames {
		return
	}
	for name := range l.done {
		if _, there := workers[name]; !there {
			delete(l.done, name)
		}
	}
}

// phase says where an instance is in its life and since when.
func (t *tracked) phase(now, started time.Time, w schemas.DetectorStatus, up bool) (scale.Phase, time.Time) {
	if up {
		t.seen, t.lost = true, time.Time{}
	} else if t.seen && t.lost.IsZero() {
		t.lost = now
	}
	switch {
	case !t.asked.IsZero():
		return scale.Draining, t.asked
	case up && w.Draining:
		return scale.Draining, now
	case !up && t.seen:
		// It may come again, like one that boots, and is given up like one.
		return scale.Starting, t.lost
	case !up:
		return scale.Starting, started
	case w.Busy > 0:
		t.idle = time.Time{}
		return scale.Busy, now
	}
	if t.idle.IsZero() {
		t.idle = now
	}
	return scale.Idle, t.idle
}

// act does what was decided and records it.
func (l *Loop) act(ctx context.Context, s *look, o *scale.Observation, d scale.Decision) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, actPatience)
	defer cancel()
	var errs []error
	if d.Start > 0 {
		err := l.p.Driver.Start(ctx, d.Start)
		if err != nil {
			l.pause = min(max(firstPause, 2*l.pause), longestPause)
			l.nextStart = time.Now().Add(l.pause)
			errs = append(errs, err)
		} else {
			l.pause = 0
		}
	}
	for _, id := range d.Drain {
		// Whether it can be told or not: from now on it counts as going.
		l.known[id].asked = s.at
	}
	err := errors.Join(errs...)
	l.p.Log.Info("scaling", "policy", l.policy.Name, "waiting", o.Waiting, "in_work", o.InWork, "instances", len(o.Instances),
		"start", d.Start, "drain", len(d.Drain), "reason", d.Reason, "error", err)
	if err := l.p.Record(l.event(s, o, d, begun, err)); err != nil {
		l.p.Log.Error("event not recorded", "error", err)
	}
}

func (l *Loop) event(s *look, o *scale.Observation, d scale.Decision, begun time.Time, err error) *schemas.Event {
	e := &schemas.Event{
		Intended: s.at, Workload: schemas.WorkloadOffload, Service: ServiceName, Kind: schemas.KindScaling, Attempt: 1,
		Wait: max(0, begun.Sub(s.at)), Duration: max(0, time.Since(begun)), Status: schemas.StatusOK,
	}
	if err != nil {
		e.Status, e.Error = schemas.StatusError, err.Error()[:min(len(err.Error()), schemas.MaxEventString)]
	}
	taking := o.Others
	for _, i := range o.Instances {
		if i.Phase == scale.Busy || i.Phase == scale.Idle {
			taking++
		}
	}
	attr := func(key string, value int) {
		e.Attrs = append(e.Attrs, schemas.Attr{Key: key, Value: strconv.Itoa(value)})
	}
	e.Attrs = append(e.Attrs, schemas.Attr{Key: "policy", Value: l.policy.Name}, schemas.Attr{Key: "reason", Value: d.Reason})
	attr("waiting", o.Waiting)
	attr("in_work", o.InWork)
	if !s.oldest.IsZero() {
		attr("oldest_wait_ns", int(max(0, s.at.Sub(s.oldest))))
	}
	attr("instances", len(o.Instances))
	attr("workers", taking)
	attr("start", d.Start)
	attr("drain", len(d.Drain))
	return e
}

// finish tells workers to drain and ends the instances of those that have.
func (l *Loop) finish(ctx context.Context, s *look) {
	for _, i := range s.instances {
		t := l.known[i.ID]
		w, up := s.workers[i.Worker]
		if t.asked.IsZero() {
			if !up || !w.Draining {
				continue
			}
			// Drained by somebody else, or before this autoscaler came.
			t.asked = s.at
		}
		t.told = t.told || up && w.Draining
		if up && w.Draining && w.Busy == 0 {
			l.stop(ctx, i, t)
			continue
		}
		if !up {
			// Who has left after it was told to has nothing in work, and who never
			// came neither. Who is silent may have, until others get its clips.
			if t.told || !t.seen || s.at.Sub(t.lost) >= silent {
				l.stop(ctx, i, t)
			}
			continue
		}
		if !w.Draining && s.at.Sub(t.repeated) >= drainAgain {
			t.repeated = s.at
			if err := l.p.Drainer.Drain(ctx, i.Worker); err != nil {
				l.p.Log.Warn("drain", "worker", i.Worker, "error", err)
			}
		}
	}
}

// stop ends an instance without keeping the loop.
func (l *Loop) stop(ctx context.Context, i drive.Instance, t *tracked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.stopping || time.Now().Before(t.nextStop) {
		return
	}
	t.stopping = true
	l.stops.Go(func() {
		err := l.p.Driver.Stop(ctx, i.ID)
		if err != nil && ctx.Err() == nil {
			l.p.Log.Warn("stop", "instance", i.ID, "error", fmt.Errorf("of worker %s: %w", i.Worker, err))
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		t.stopping, t.nextStop = false, time.Now().Add(stopAgain)
	})
}
