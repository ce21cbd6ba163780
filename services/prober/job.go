package prober

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/prober/packet"
	"github.com/transferlab/transferlab/services/prober/stream"
)

// job is one prepared task.
type job struct {
	log      *slog.Logger
	task     *schemas.Task
	section  *schemas.Probe
	targets  []schemas.Target // of the section
	stream   stream.Options
	names    *names
	prepared time.Time

	responders    *stream.Responders
	reflector     *packet.Reflector
	stopReflector context.CancelFunc
	reflecting    sync.WaitGroup

	start  time.Time
	own    schemas.Clock
	token  string
	mesh   *mesh
	ctx    context.Context
	cancel context.CancelCauseFunc

	engines []*packet.Engine
	running sync.WaitGroup // engines

	issued, bytes, failed atomic.Uint64

	lagMu sync.Mutex
	lag   *hdrhistogram.Histogram // of what is no packet

	recording sync.Mutex
	record    func(*schemas.Event) error
	event     schemas.Event
	attrs     []schemas.Attr
	numbers   numbers
	small     [256]string // numbers that need no memory of their own
}

// Run implements agent.Job.
func (j *job) Run(ctx context.Context, start agent.Start, record func(*schemas.Event) error, progress func(schemas.Progress)) (schemas.TaskResult, error) {
	if j.reflector != nil {
		j.reflector.SetKey(start.Key)
	}
	if j.responders != nil {
		j.responders.SetKey(start.Key)
	}
	j.start, j.own, j.token, j.record = start.At, start.Clock, stream.Token(start.Key), record
	j.ctx, j.cancel = context.WithCancelCause(ctx)
	defer j.cancel(nil)
	j.mesh = newMesh(j.task, j.section, &start)
	for i := range j.small {
		j.small[i] = strconv.Itoa(i)
	}
	j.event = schemas.Event{
		Run: j.task.Run, Trial: j.task.Trial, Attempt: j.task.Attempt, Workload: j.task.Workload, Service: ServiceName,
		Agent: j.task.Agent, Kind: schemas.KindProbe,
	}

	var beside sync.WaitGroup
	finished := make(chan struct{})
	beside.Go(func() { j.report(progress, finished) })
	looking, stopLooking := context.WithCancel(j.ctx)
	beside.Go(func() { j.names.watch(looking) })

	j.probe(start.Key)
	j.linger()
	close(finished)
	stopLooking()
	beside.Wait()

	result := schemas.TaskResult{
		Issued: j.issued.Load(), Bytes: j.bytes.Load(), Errors: j.failed.Load(),
		LagP50: time.Duration(j.lag.ValueAtQuantile(50)), LagP99: time.Duration(j.lag.ValueAtQuantile(99)),
		LagMax: time.Duration(j.lag.Max()),
	}
	errs := []error{context.Cause(j.ctx)}
	for _, e := range j.engines {
		p50, p99, longest := e.Lag()
		result.LagP50, result.LagP99, result.LagMax = max(result.LagP50, p50), max(result.LagP99, p99), max(result.LagMax, longest)
		errs = append(errs, e.Close())
	}
	return result, errors.Join(errs...)
}

// probe does everything that is due, and returns when all of it has its event.
func (j *job) probe(key []byte) {
	d := j.newDispatcher()
	defer d.close()
	var mesh, targets []packet.Flow
	for i := range j.mesh.paths {
		p := &j.mesh.paths[i]
		if p.count == 0 {
			continue
		}
		isPacket := p.Protocol == schemas.ProtocolICMP || p.Protocol == schemas.ProtocolUDP
		if p.To >= 0 {
			addr, absent := j.mesh.endpoint(p)
			switch {
			case absent != "":
				d.add(i, absentLine)
			case isPacket:
				mesh = append(mesh, j.flow(i, addr, 0))
			default:
				d.add(i, streamLine)
			}
			continue
		}
		t := &j.targets[p.Target]
		addr, err := j.names.get(t.Host)
		switch {
		case looksUp(t.Protocol):
			d.add(i, streamLine)
		case err != nil:
			d.add(i, namedLine)
		case isPacket:
			targets = append(targets, j.flow(i, netip.AddrPortFrom(addr, t.Port), 0))
		default:
			d.add(i, streamLine)
		}
	}
	// Whatever answers at a target does not have the trial's key.
	if err := errors.Join(j.send(mesh, key), j.send(targets, nil)); err != nil {
		j.cancel(err)
	}
	d.run()
	j.running.Wait()
}

// flow is a packet path from its probe number next on.
func (j *job) flow(i int, addr netip.AddrPort, next int) packet.Flow {
	p := &j.mesh.paths[i]
	return packet.Flow{
		ID: i, Protocol: p.Protocol, Dst: addr, Client: p.From, Count: p.count - next,
		Phase: p.Phase + time.Duration(next)*time.Duration(j.section.Interval),
	}
}

// send starts what sends the packets of flows, whose ids are those of paths.
func (j *job) send(flows []packet.Flow, key []byte) error {
	payload, least := int(j.section.Payload), packet.MinSTAMP
	if len(key) > 0 {
		least = packet.MinSTAMPAuth
	}
	if payload >= least {
		return j.engine(flows, key, payload)
	}
	// An engine's packets are all of one size, and echoes may be smaller than
	// what STAMP needs.
	var echo, stamp []packet.Flow
	for _, f := range flows {
		if f.Protocol == schemas.ProtocolUDP {
			stamp = append(stamp, f)
		} else {
			echo = append(echo, f)
		}
	}
	return errors.Join(j.engine(echo, key, payload), j.engine(stamp, key, least))
}

func (j *job) engine(flows []packet.Flow, key []byte, payload int) error {
	if len(flows) == 0 {
		return nil
	}
	paths := make([]int32, len(flows))
	for i := range flows {
		f := &flows[i]
		p := &j.mesh.paths[f.ID]
		p.bytes = uint64(payload)
		if addr := f.Dst.Addr(); p.Target >= 0 && j.targets[p.Target].Host != addr.String() {
			p.addr = addr.String()
		}
		paths[i], f.ID = int32(f.ID), i
	}
	e, err := packet.NewEngine(packet.Options{
		Interval: time.Duration(j.section.Interval), Timeout: time.Duration(j.section.Timeout), Payload: payload,
		DSCP: j.section.DSCP, TTL: j.section.TTL, Key: key, Log: j.log,
	}, flows)
	if err != nil {
		return fmt.Errorf("open sockets for packets: %w", err)
	}
	j.engines = append(j.engines, e)
	j.running.Go(func() {
		var emitted atomic.Uint64
		account, err := e.Run(j.ctx, j.start, func(r *packet.Result) {
			emitted.Add(1)
			j.packet(&j.mesh.paths[paths[r.Flow]], r)
		})
		if err != nil && j.ctx.Err() == nil {
			j.cancel(fmt.Errorf("probe by packets: %w", err))
		}
		if n := emitted.Load(); account.Issued != n {
			j.cancel(fmt.Errorf("%d probes by packets came due, %d were accounted for", account.Issued, n))
		}
		j.log.Debug("packets", "account", account)
	})
	return nil
}

// How long after they are due probes of others are answered at most.
const maxLinger = 5 * time.Second

// linger goes on answering until what others send can have come.
func (j *job) linger() {
	if j.mesh.late == 0 || j.ctx.Err() != nil {
		return
	}
	left := time.Until(j.start.Add(j.mesh.late + min(time.Duration(j.section.Timeout), maxLinger)))
	if left <= 0 {
		return
	}
	over := time.NewTimer(left)
	defer over.Stop()
	select {
	case <-over.C:
	case <-j.ctx.Done():
	}
}

const progressEvery = 250 * time.Millisecond

func (j *job) report(progress func(schemas.Progress), finished <-chan struct{}) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-finished:
			ended = true
		case <-tick.C:
		}
		progress(schemas.Progress{Done: j.issued.Load(), Total: j.mesh.total, Bytes: j.bytes.Load(), Errors: j.failed.Load()})
	}
}

func (j *job) late(d time.Duration) {
	j.lagMu.Lock()
	defer j.lagMu.Unlock()
	// Beyond its range the histogram counts nothing: an hour is late enough.
	_ = j.lag.RecordValue(int64(min(max(d, 0), time.Hour)))
}

// packet records what became of a packet. It is the hot path: what a path's
// events have in common is not made anew, and a packet's own numbers share one
// string.
func (j *job) packet(p *path, r *packet.Result) {
	j.recording.Lock()
	defer j.recording.Unlock()
	e := j.begin(p, r.Intended)
	e.Wait, e.Duration, e.Status, e.Error = max(r.Wait, 0), max(r.RTT, 0), r.Status, clip(r.Err)
	if p.addr != "" {
		j.add("addr", p.addr)
	}
	if r.TTL > 0 && r.TTL < len(j.small) {
		j.add("ttl", j.small[r.TTL])
	}
	if r.Duplicates > 0 {
		j.numbers.add("duplicates", int64(r.Duplicates))
	}
	if r.Reordered {
		j.add("reordered", "1")
	}
	if r.Status == schemas.StatusOK {
		e.Bytes = p.bytes
		j.add("stamps", [4]string{"user", "tx", "rx", "kernel"}[r.Stamps&3])
		if r.HasOneWay {
			j.oneWays(p, r)
		}
	}
	j.commit()
}

// oneWays adds what a reflector's time stamps tell.
func (j *job) oneWays(p *path, r *packet.Result) {
	var offset, bound time.Duration
	comparable := false
	if p.To >= 0 {
		switch to := &j.mesh.clients[p.To]; {
		case to.same:
			comparable = true
		case to.clocked:
			offset, bound = clockOffset(j.own, to.clock, r.Intended.Sub(j.prepared))
			comparable = true
		}
	}
	withheld := true
	if comparable {
		forward, forwardKnown := oneWay(r.Forward, offset, bound)
		backward, backwardKnown := oneWay(r.Backward, -offset, bound)
		if forwardKnown {
			j.numbers.add("forward_ns", int64(forward))
		}
		if backwardKnown {
			j.numbers.add("backward_ns", int64(backward))
		}
		j.numbers.add("offset_ns", int64(offset))
		j.numbers.add("offset_bound_ns", int64(bound))
		withheld = !forwardKnown || !backwardKnown
	}
	if withheld {
		j.add("oneway", "withheld")
	}
	j.numbers.add("reflected_ns", int64(r.Reflected))
}

// connection records what became of a probe that is no packet.
func (j *job) connection(p *path, intended time.Time, r *stream.Result) {
	j.recording.Lock()
	defer j.recording.Unlock()
	e := j.begin(p, intended)
	e.Wait, e.Duration, e.FirstByte = max(r.Begin.Sub(intended), 0), r.End.Sub(r.Begin), r.FirstByte
	e.Bytes, e.Status, e.Error = uint64(r.Bytes), r.Status, clip(r.Err)
	if p.Target >= 0 && r.Addr.IsValid() {
		if text := r.Addr.String(); text != j.targets[p.Target].Host {
			j.add("addr", text)
		}
	}
	if r.HTTPStatus != 0 && r.HTTPStatus != 200 {
		j.numbers.add("http_status", int64(r.HTTPStatus))
	}
	for _, phase := range [...]struct {
		name string
		took time.Duration
	}{{"dns_ns", r.DNS}, {"connect_ns", r.Connect}, {"tls_ns", r.TLS}, {"tcp_rtt_ns", r.TCPRTT}} {
		if phase.took > 0 {
			j.numbers.add(phase.name, int64(phase.took))
		}
	}
	j.commit()
}

// unsent records a probe that came due and could not be sent.
func (j *job) unsent(p *path, intended, now time.Time, status, text string) {
	j.recording.Lock()
	defer j.recording.Unlock()
	e := j.begin(p, intended)
	e.Wait, e.Status, e.Error = max(now.Sub(intended), 0), status, clip(text)
	j.commit()
}

// begin starts the event of a path; j.recording is held.
func (j *job) begin(p *path, intended time.Time) *schemas.Event {
	j.attrs = j.appendAttrs(j.attrs[:0], p)
	e := &j.event
	e.Intended, e.Site = intended, j.mesh.clients[p.From].site
	e.Wait, e.FirstByte, e.Duration, e.Bytes = 0, 0, 0, 0
	return e
}

func (j *job) add(key, value string) { j.attrs = append(j.attrs, schemas.Attr{Key: key, Value: value}) }

// commit records the event.
func (j *job) commit() {
	j.attrs = j.numbers.flush(j.attrs)
	j.event.Attrs = j.attrs
	j.issued.Add(1)
	j.bytes.Add(j.event.Bytes)
	if j.event.Status != schemas.StatusOK {
		j.failed.Add(1)
	}
	if err := j.record(&j.event); err != nil {
		j.cancel(err)
	}
}

// numbers turns the numbers of an event into attributes that share one string:
// a recorder holds on to what it is given, so that each event needs memory of its own.
type numbers struct {
	keys   []string
	ends   []int
	digits []byte
}

func (n *numbers) add(key string, v int64) {
	n.keys = append(n.keys, key)
	n.digits = strconv.AppendInt(n.digits, v, 10)
	n.ends = append(n.ends, len(n.digits))
}

func (n *numbers) flush(attrs []schemas.Attr) []schemas.Attr {
	text, at := string(n.digits), 0
	for i, key := range n.keys {
		attrs = append(attrs, schemas.Attr{Key: key, Value: text[at:n.ends[i]]})
		at = n.ends[i]
	}
	n.keys, n.ends, n.digits = n.keys[:0], n.ends[:0], n.digits[:0]
	return attrs
}

// maxErrorText bounds what an event says of an error: servers may say a lot.
const maxErrorText = 512

func clip(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxErrorText)], "\ufffd")
}
