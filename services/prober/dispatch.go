package prober

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/pace"
	"github.com/transferlab/transferlab/services/prober/packet"
	"github.com/transferlab/transferlab/services/prober/stream"
)

// maxUnderWay is how many connections and queries a task has under way at a
// time: each is a socket and a goroutine. What comes due beyond waits, and its
// event says so.
const maxUnderWay = 1024

// Kinds of lines.
const (
	streamLine = iota // probed by package stream
	absentLine        // its other end is not there
	namedLine         // its target's name has no address yet
)

// line is a path as the dispatcher goes along it.
type line struct {
	due  time.Duration // of its next probe, after the start
	path int32
	next int32 // number of that probe
	kind uint8
}

// due is a probe to be sent.
type due struct {
	path     *path
	target   *stream.Target
	intended time.Time
}

// dispatcher has every probe that is no packet sent when it is due, by workers
// of its own.
type dispatcher struct {
	job     *job
	lines   []line // a heap: the one due next is first
	targets map[int32]*stream.Target
	sleeper *pace.Sleeper
	stop    func() bool

	work    chan due
	count   int // workers
	workers sync.WaitGroup
}

func (j *job) newDispatcher() *dispatcher {
	d := &dispatcher{job: j, targets: map[int32]*stream.Target{}, sleeper: pace.NewSleeper(true), work: make(chan due)}
	d.stop = context.AfterFunc(j.ctx, d.sleeper.Wake)
	return d
}

func (d *dispatcher) close() {
	d.stop()
	if err := d.sleeper.Close(); err != nil {
		d.job.log.Warn("close", "error", err)
	}
}

// add has a path dispatched.
func (d *dispatcher) add(i int, kind uint8) {
	d.lines = append(d.lines, line{due: d.job.mesh.paths[i].Phase, path: int32(i), kind: kind})
}

// run returns when every probe has its event.
func (d *dispatcher) run() {
	d.order()
	d.dispatch()
	close(d.work)
	d.workers.Wait()
}

func (d *dispatcher) dispatch() {
	j := d.job
	for len(d.lines) > 0 {
		l := d.lines[0]
		p := &j.mesh.paths[l.path]
		intended := j.start.Add(l.due)
		if !d.sleeper.Until(intended) {
			d.abandon()
			return
		}
		text := ""
		if l.kind == namedLine {
			_, err := j.names.get(j.targets[p.Target].Host)
			if err == nil {
				if err := d.found(); err != nil {
					j.cancel(err)
				}
				continue
			}
			text = err.Error()
		}
		switch l.kind {
		case absentLine:
			_, text = j.mesh.endpoint(p)
			j.unsent(p, intended, time.Now(), schemas.StatusAbsent, text)
		case namedLine:
			j.unsent(p, intended, time.Now(), schemas.StatusDNS, text)
		default:
			if !d.hand(due{p, d.target(l.path), intended}) {
				d.abandon()
				return
			}
		}
		d.advance()
	}
}

func (d *dispatcher) target(i int32) *stream.Target {
	t, ok := d.targets[i]
	if !ok {
		made := d.job.target(&d.job.mesh.paths[i])
		t = &made
		d.targets[i] = t
	}
	return t
}

// hand gives a probe to a worker, and waits for one when there may be no more of
// them. It reports whether it could before the job was cut off.
func (d *dispatcher) hand(p due) bool {
	select {
	case d.work <- p:
		return true
	default:
	}
	if d.count < maxUnderWay {
		d.count++
		d.workers.Go(func() { d.serve(p) })
		return true
	}
	select {
	case d.work <- p:
		return true
	case <-d.job.ctx.Done():
		return false
	}
}

func (d *dispatcher) serve(p due) {
	j := d.job
	prober := stream.New(j.stream)
	var r stream.Result
	for ok := true; ok; p, ok = <-d.work {
		prober.Do(j.ctx, p.target, &r)
		j.late(r.Begin.Sub(p.intended))
		j.connection(p.path, p.intended, &r)
	}
}

const errNotSent = "cancelled before it was sent"

// abandon accounts for the probes that have come due and were not sent before
// the job was cut off.
func (d *dispatcher) abandon() {
	j := d.job
	cut := time.Now()
	for len(d.lines) > 0 {
		intended := j.start.Add(d.lines[0].due)
		if intended.After(cut) {
			return
		}
		j.unsent(&j.mesh.paths[d.lines[0].path], intended, cut, schemas.StatusCancelled, errNotSent)
		d.advance()
	}
}

// found sorts the lines whose names have got an address to where they belong.
func (d *dispatcher) found() error {
	j := d.job
	var flows []packet.Flow
	rest := d.lines[:0]
	for _, l := range d.lines {
		if l.kind == namedLine {
			p := &j.mesh.paths[l.path]
			t := &j.targets[p.Target]
			addr, err := j.names.get(t.Host)
			switch {
			case err != nil:
			case t.Protocol == schemas.ProtocolICMP || t.Protocol == schemas.ProtocolUDP:
				flows = append(flows, j.flow(int(l.path), netip.AddrPortFrom(addr, t.Port), int(l.next)))
				continue
			default:
				l.kind = streamLine
			}
		}
		rest = append(rest, l)
	}
	d.lines = rest
	d.order()
	return j.send(flows, nil)
}

// advance goes on to the first line's next probe.
func (d *dispatcher) advance() {
	l := &d.lines[0]
	l.next++
	l.due += time.Duration(d.job.section.Interval)
	if int(l.next) >= d.job.mesh.paths[l.path].count {
		last := len(d.lines) - 1
		d.lines[0] = d.lines[last]
		d.lines = d.lines[:last]
	}
	d.sink(0)
}

func (d *dispatcher) order() {
	for i := len(d.lines)/2 - 1; i >= 0; i-- {
		d.sink(i)
	}
}

func (d *dispatcher) sink(i int) {
	before := func(a, b int) bool {
		x, y := &d.lines[a], &d.lines[b]
		return x.due < y.due || x.due == y.due && x.path < y.path
	}
	for {
		first := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(d.lines) && before(child, first) {
				first = child
			}
		}
		if first == i {
			return
		}
		d.lines[i], d.lines[first] = d.lines[first], d.lines[i]
		i = first
	}
}
