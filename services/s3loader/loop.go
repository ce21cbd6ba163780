package s3loader

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/pace"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/s3loader/wire"
)

// loop is one client at work.
type loop struct {
	job    *job
	client *schemas.Client
	wire   *wire.Client
	attrs  []schemas.Attr // of every event; bucket, object and op to be filled in

	mu       sync.Mutex
	schedule *plan.S3Requests
}

// Positions in the attributes of an event.
const (
	attrBucket = iota
	attrObject
	attrOp
	attrSize
	attrClient
)

func (j *job) loop(c *schemas.Client) *loop {
	l := &loop{job: j, client: c, wire: j.client.Sibling(j.task.Seed + uint64(c.Index)), schedule: j.schedule(c.Index)}
	l.attrs = []schemas.Attr{
		attrBucket: {Key: "bucket"}, attrObject: {Key: "object"}, attrOp: {Key: "op"},
		attrSize: {Key: "size", Value: j.size}, attrClient: {Key: "client", Value: strconv.Itoa(c.Index)},
	}
	for _, label := range slices.Sorted(maps.Keys(c.Labels)) {
		l.attrs = append(l.attrs, schemas.Attr{Key: label, Value: c.Labels[label]})
	}
	j.onStop(l.wire.Interrupt)
	return l
}

func (l *loop) run() {
	defer l.wire.Close()
	if l.job.section.Loop == "open" {
		l.open()
		return
	}
	var workers sync.WaitGroup
	for range l.job.section.Concurrency {
		workers.Go(l.closed)
	}
	workers.Wait()
}

func (l *loop) next() (plan.Request, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.schedule.Next()
}

// closed takes the schedule's next request whenever the last one has ended and
// the think time is over.
func (l *loop) closed() {
	j := l.job
	s := j.sleeper(len(j.task.Clients) * j.section.Concurrency)
	defer j.closeSleeper(s)
	w := l.worker()
	free := j.start
	for {
		r, ok := l.next()
		if !ok {
			return
		}
		intended := free.Add(r.At)
		if j.section.Duration > 0 && intended.Sub(j.start) >= time.Duration(j.section.Duration) {
			return
		}
		if !s.Until(intended) {
			return
		}
		free = w.execute(r, intended, intended)
	}
}

// arrival is a request of an open loop and when it is due.
type arrival struct {
	request  plan.Request
	intended time.Time
}

// open starts requests when they are due. When as many are under way as are
// allowed, arrivals wait in their order; that none is dropped, and that their
// waiting is in their events, is what makes the loop open.
func (l *loop) open() {
	j := l.job
	s := j.sleeper(len(j.task.Clients))
	defer j.closeSleeper(s)
	work := make(chan arrival)
	var workers sync.WaitGroup
	running := 0
	for {
		r, ok := l.next()
		if !ok {
			break
		}
		a := arrival{r, j.start.Add(r.At)}
		if !s.Until(a.intended) {
			l.abandon(a)
			break
		}
		select {
		case work <- a:
			continue
		default:
		}
		if running < j.section.Concurrency {
			running++
			workers.Go(func() { l.serve(a, work) })
			continue
		}
		select {
		case work <- a:
			continue
		case <-j.end:
			l.abandon(a)
		}
		break
	}
	close(work)
	workers.Wait()
}

func (l *loop) serve(a arrival, work <-chan arrival) {
	w := l.worker()
	// Before the first arrival nothing kept this worker from being on time.
	free := a.intended
	for ok := true; ok; a, ok = <-work {
		due := a.intended
		if free.After(due) {
			due = free
		}
		free = w.execute(a.request, a.intended, due)
	}
}

// abandon accounts for the arrivals, from a on, that have come due and were
// not sent before the job was cut off.
func (l *loop) abandon(a arrival) {
	w := l.worker()
	cut := time.Now()
	for ok := true; ok && !a.intended.After(cut); {
		w.abandon(a, cut)
		var r plan.Request
		if r, ok = l.next(); ok {
			a = arrival{r, l.job.start.Add(r.At)}
		}
	}
}

func (j *job) sleeper(count int) *pace.Sleeper {
	s := pace.NewSleeper(count <= maxPreciseSleepers)
	j.onStop(s.Wake)
	return s
}

func (j *job) closeSleeper(s *pace.Sleeper) {
	if err := s.Close(); err != nil {
		j.log.Warn("close", "error", err)
	}
}

// worker executes one request after the other. What a request needs is
// allocated once.
type worker struct {
	loop    *loop
	event   schemas.Event
	attrs   []schemas.Attr
	request wire.Request
	result  wire.Result
}

func (l *loop) worker() *worker {
	j := l.job
	s := j.section
	return &worker{
		loop: l,
		event: schemas.Event{
			Run: j.task.Run, Trial: j.task.Trial, Attempt: j.task.Attempt, Workload: j.task.Workload, Service: ServiceName,
			Site: l.client.Site, Agent: j.task.Agent, Kind: schemas.KindRequest,
		},
		attrs: append(make([]schemas.Attr, 0, len(l.attrs)+8), l.attrs...),
		request: wire.Request{
			Size: int64(s.Size), Retries: s.Retries, PartSize: int64(s.PartSize), Parallel: s.PartParallel,
		},
	}
}

// execute sends a request and records it. It was due at a moment when nothing
// but the generator itself could keep it from being sent; its end is returned.
func (w *worker) execute(r plan.Request, intended, due time.Time) time.Time {
	j := w.loop.job
	j.issued.Add(1)
	w.prepare(r)
	begin := time.Now()
	j.late(begin.Sub(due))
	w.request.Deadline = begin.Add(time.Duration(j.section.Timeout))
	w.loop.wire.Do(j.ctx, &w.request, &w.result)
	w.request.Content = nil
	w.account(intended)
	return w.result.Done
}

func (w *worker) prepare(r plan.Request) {
	j := w.loop.job
	bucket, key := j.section.Buckets[r.Bucket], j.key(r.Object)
	w.request.Put, w.request.Bucket, w.request.Key = r.Put, bucket, key
	w.request.Sum, w.request.Summed = j.sums[object{r.Bucket, r.Object}]
	w.request.Content = nil
	op := "get"
	if r.Put {
		op = "put"
		w.request.Content = objectstore.NewContent(contentSeed(bucket, key), int64(j.section.Size))
		if !w.request.Summed {
			w.request.Sum = w.request.Content.Checksum()
		}
	}
	w.attrs[attrBucket].Value, w.attrs[attrObject].Value, w.attrs[attrOp].Value = bucket, key, op
}

func (w *worker) abandon(a arrival, cut time.Time) {
	w.loop.job.issued.Add(1)
	w.prepare(a.request)
	w.result = wire.Result{Status: schemas.StatusCancelled, Err: errNotSent, Begin: cut, Done: cut}
	w.account(a.intended)
}

// account records the result.
func (w *worker) account(intended time.Time) {
	j, e, res := w.loop.job, &w.event, &w.result
	e.Intended, e.Wait, e.Duration = intended, max(res.Begin.Sub(intended), 0), res.Done.Sub(res.Begin)
	e.FirstByte = 0
	if !res.FirstByte.IsZero() {
		e.FirstByte = res.FirstByte.Sub(res.Begin)
	}
	e.Bytes, e.Status, e.Error = uint64(res.Bytes), res.Status, ""
	if res.Err != nil {
		e.Error = clip(res.Err.Error())
		j.failed.Add(1)
	}
	e.Attrs = w.results()
	j.bytes.Add(e.Bytes)
	j.done.Add(1)
	if err := j.record(e); err != nil {
		j.cancel(err)
	}
}

// results are the event's attributes.
func (w *worker) results() []schemas.Attr {
	res := &w.result
	attrs := w.attrs
	add := func(key, value string) { attrs = append(attrs, schemas.Attr{Key: key, Value: value}) }
	if h := res.HTTP; h != 0 && h != 200 && h != 206 {
		add("http_status", strconv.Itoa(h))
	}
	if res.Retries > 0 {
		add("retries", strconv.Itoa(res.Retries))
	}
	if res.Parts > 0 {
		add("parts", strconv.Itoa(res.Parts))
	}
	if res.Opened {
		add("conn", "new")
		for _, phase := range []struct {
			name string
			took time.Duration
		}{{"dns_ns", res.DNS}, {"connect_ns", res.Connect}, {"tls_ns", res.TLS}} {
			if phase.took > 0 {
				add(phase.name, strconv.FormatInt(int64(phase.took), 10))
			}
		}
	}
	return attrs
}

// maxErrorText bounds what an event says of an error: stores may say a lot.
const maxErrorText = 512

func clip(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxErrorText)], "\ufffd")
}
