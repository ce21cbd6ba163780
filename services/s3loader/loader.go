package s3loader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/s3loader/wire"
)

// Limits of one task.
const (
	// maxInFlight is how many requests (ranges count as such) a task may have
	// under way: each is a connection and a goroutine.
	maxInFlight = 65_536
	// maxUpload is the most that S3 takes in one request.
	maxUpload = 5 << 30
	// bufferBytes is what all buffers of a task may take.
	bufferBytes = 256 << 20
	// maxPreciseSleepers is how many timers of their own a task may open; each
	// is a file descriptor.
	maxPreciseSleepers = 1024
)

// Worker executes the service's tasks.
type Worker struct {
	cfg Config
	log *slog.Logger
}

var _ agent.Worker = (*Worker)(nil)

// Prepare reads the section, resolves the store and its credentials, and makes
// the objects that are missing.
func (w *Worker) Prepare(ctx context.Context, task *schemas.Task) (agent.Job, error) {
	if err := task.Validate(); err != nil {
		return nil, err
	}
	var section schemas.S3
	if err := json.Unmarshal(task.Section, &section); err != nil {
		return nil, fmt.Errorf("read the section of the task: %w", err)
	}
	section.SetDefaults()
	if err := section.Validate(); err != nil {
		return nil, err
	}
	if section.Operation != "get" && section.Size > maxUpload {
		return nil, fmt.Errorf("s3.size: %s, but one upload takes at most %s", section.Size, schemas.Size(maxUpload))
	}
	inFlight := len(task.Clients) * section.Concurrency
	if partitioned(&section) {
		inFlight *= section.PartParallel
	}
	if inFlight > maxInFlight {
		return nil, fmt.Errorf("s3.concurrency: the task would have up to %d requests and ranges under way, at most %d are allowed: lower it, or spread the clients over more agents", inFlight, maxInFlight)
	}
	store, err := w.open(ctx, &section)
	if err != nil {
		return nil, err
	}
	j := &job{
		log: w.log, task: task, section: &section, size: section.Size.String(),
		client: wire.New(wire.Options{
			Store: store, Fresh: section.Connections == "fresh", Copy: w.cfg.Copy, Checksum: section.Verify == "checksum",
			MaxIdle: inFlight / len(task.Clients) * len(section.Buckets), Buffer: bufferSize(inFlight, int64(section.Size)), Seed: task.Seed,
		}),
		lag: hdrhistogram.New(64, int64(time.Hour), 3), end: make(chan struct{}),
	}
	if err := j.prepare(ctx, store); err != nil {
		return nil, err
	}
	return j, nil
}

func partitioned(s *schemas.S3) bool {
	return s.Operation != "put" && s.PartSize > 0 && s.Size > s.PartSize
}

// bufferSize shares bufferBytes among all that may be under way: the largest
// is past what makes reads any faster, the least holds any request's head.
func bufferSize(inFlight int, object int64) int {
	const least, most, head = 64 << 10, 1 << 20, 16 << 10
	return int(max(least, min(most, bufferBytes/int64(inFlight), object+head)))
}

// open resolves the section's store.
func (w *Worker) open(ctx context.Context, s *schemas.S3) (*objectstore.Store, error) {
	t := objectstore.Target{Endpoint: s.Target.Endpoint, Region: s.Target.Region, Profile: s.Target.Profile, CAFile: w.cfg.CAFile}
	source := objectstore.Chain()
	if s.Target.IsLab() {
		if w.cfg.Endpoint == "" {
			return nil, errors.New("the experiment names no target and this agent knows no store of the lab's own: set --s3-endpoint on the agent, or s3.target in the experiment")
		}
		if w.cfg.AccessKey == "" {
			return nil, fmt.Errorf("no keys for the lab's own store: set %s and %s on the agent", EnvAccessKey, EnvSecretKey)
		}
		t.Endpoint, t.Region = w.cfg.Endpoint, w.cfg.Region
		source = objectstore.Static(w.cfg.AccessKey, w.cfg.SecretKey, "")
	}
	t.PathStyle = t.Endpoint != ""
	if s.Target.PathStyle != nil {
		t.PathStyle = *s.Target.PathStyle
	}
	store, err := objectstore.Open(ctx, t, source)
	if err != nil {
		return nil, err
	}
	credentials, err := store.Credentials(ctx)
	if err != nil {
		return nil, explain(store, err)
	}
	if !credentials.HasKeys() {
		return nil, explain(store, objectstore.ErrNoCredentials)
	}
	return store, nil
}

// job is one prepared task.
type job struct {
	log     *slog.Logger
	task    *schemas.Task
	section *schemas.S3
	size    string // as written in events
	client  *wire.Client
	keys    []string          // of the first objects
	sums    map[object]uint64 // CRC-64/NVME of contents that are known
	total   uint64

	issued, done, bytes, failed atomic.Uint64

	lagMu sync.Mutex
	lag   *hdrhistogram.Histogram

	start    time.Time
	record   func(*schemas.Event) error
	ctx      context.Context
	cancel   context.CancelCauseFunc
	end      chan struct{} // closed when the job is cut off
	stopping sync.Mutex
	stopped  bool
	wakers   []func() // what ends everything under way
}

// Run implements agent.Job.
func (j *job) Run(ctx context.Context, start agent.Start, record func(*schemas.Event) error, progress func(schemas.Progress)) (schemas.TaskResult, error) {
	j.start, j.record = start.At, record
	j.ctx, j.cancel = context.WithCancelCause(ctx)
	defer j.cancel(nil)
	defer context.AfterFunc(j.ctx, j.stop)()

	reported := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(reported)
		j.report(progress, finished)
	}()
	var loops sync.WaitGroup
	for i := range j.task.Clients {
		l := j.loop(&j.task.Clients[i])
		loops.Go(l.run)
	}
	loops.Wait()
	close(finished)
	<-reported

	result := schemas.TaskResult{
		Issued: j.issued.Load(), Bytes: j.bytes.Load(), Errors: j.failed.Load(),
		LagP50: time.Duration(j.lag.ValueAtQuantile(50)), LagP99: time.Duration(j.lag.ValueAtQuantile(99)),
		LagMax: time.Duration(j.lag.Max()),
	}
	return result, context.Cause(j.ctx)
}

// Close implements agent.Job.
func (j *job) Close() error {
	j.stop()
	j.client.Close()
	return nil
}

// onStop has wake called when the job is cut off, at once if it has been.
func (j *job) onStop(wake func()) {
	j.stopping.Lock()
	defer j.stopping.Unlock()
	if j.stopped {
		wake()
		return
	}
	j.wakers = append(j.wakers, wake)
}

// stop ends everything under way.
func (j *job) stop() {
	j.stopping.Lock()
	defer j.stopping.Unlock()
	if j.stopped {
		return
	}
	j.stopped = true
	close(j.end)
	for _, wake := range j.wakers {
		wake()
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
		progress(schemas.Progress{Done: j.done.Load(), Total: j.total, Bytes: j.bytes.Load(), Errors: j.failed.Load()})
	}
}

func (j *job) late(d time.Duration) {
	j.lagMu.Lock()
	defer j.lagMu.Unlock()
	// Beyond its range the histogram counts nothing: an hour is late enough.
	_ = j.lag.RecordValue(int64(min(max(d, 0), time.Hour)))
}

// object is one object of the section's size.
type object struct{ bucket, index int }

func (j *job) key(index int) string {
	if index < len(j.keys) {
		return j.keys[index]
	}
	return j.section.Key(index)
}

// schedule is a client's, from its beginning.
func (j *job) schedule(client int) *plan.S3Requests {
	return plan.NewS3(j.task.Seed, j.task.Trial, client, j.section)
}
