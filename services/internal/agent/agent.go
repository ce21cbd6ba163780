// Package agent is what every measuring service has in common: it announces
// itself, takes the tasks assigned to it, prepares them, starts together with
// the trial's other agents, and accounts for what it did.
//
// It consumes tasks.assigned.v1.<agent> and start.* of the bucket TRIALS; it
// publishes events, and its states in task.* of that bucket. A task is reported
// as failed rather than executed twice: whatever was recorded for an attempt
// was recorded once.
package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/fleet"
)

// Worker turns a task into a job, without doing any of it yet.
type Worker interface {
	// Prepare does what must not be timed: it reads the section, resolves
	// credentials, makes objects that are missing.
	Prepare(ctx context.Context, task *schemas.Task) (Job, error)
}

// Job is one prepared task.
type Job interface {
	// Run does the work from the start on and returns its account. It records
	// an event for every operation it has begun, also when ctx ends in the
	// middle. Progress may be called at any time.
	Run(ctx context.Context, start Start, record func(*schemas.Event) error, progress func(schemas.Progress)) (schemas.TaskResult, error)
	// Close frees what Prepare took.
	Close() error
}

// Listener is a job that others of the trial reach, from the end of Prepare on.
type Listener interface {
	// Ports are where it listens, in the workload's own words.
	Ports() map[string]uint16
}

// Start is what an agent knows when a trial begins.
type Start struct {
	// At is by the local clock and carries a monotonic reading: a wall clock
	// that is set in the middle changes nothing for who goes by it.
	At    time.Time
	Clock schemas.Clock // the local clock against the scheduler's
	// Peers are all agents of the trial with their clients, this one included.
	Peers []schemas.Peer
	Key   []byte // a secret that the trial's agents share
}

// Config is what an agent says of itself.
type Config struct {
	Name      string            `help:"Name of this agent, unique in the lab; host name and a number if not given." env:"TRANSFERLAB_AGENT"`
	Site      string            `help:"Site this agent stands at; * stands in for any site (one machine plays them all)." env:"TRANSFERLAB_SITE" default:"local"`
	Labels    map[string]string `help:"Labels of this agent, such as instance_type=t3.small." env:"TRANSFERLAB_LABELS"`
	Parallel  int               `help:"Tasks in work at a time." env:"TRANSFERLAB_PARALLEL" default:"8"`
	Address   string            `help:"IP address at which agents elsewhere reach this one; the one it reaches the bus from if not given." env:"TRANSFERLAB_ADDRESS" placeholder:"IP"`
	Placement string            `help:"Who says where this agent really is: ec2 asks the instance's metadata for its region and addresses." env:"TRANSFERLAB_PLACEMENT" placeholder:"ec2"`
	Run       string            `help:"The run that this agent exists for; it takes part in no other." env:"TRANSFERLAB_RUN" hidden:""`
	NoCapture bool              `help:"Drop events instead of recording them, to measure what recording costs; such a run is INVALID." env:"TRANSFERLAB_NO_CAPTURE" hidden:""`
}

// DefaultConfig stands in for any site.
func DefaultConfig() Config {
	return Config{Site: schemas.SiteAny, Parallel: 8}
}

// Validate reports every fault.
func (c *Config) Validate() error {
	var errs []error
	name := regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	if c.Name != "" && !name.MatchString(c.Name) {
		errs = append(errs, fmt.Errorf("--name: %q, want lower-case letters, digits, hyphens and underscores, at most 63", c.Name))
	}
	if c.Site != schemas.SiteAny && !name.MatchString(c.Site) {
		errs = append(errs, fmt.Errorf("--site: %q, want * or lower-case letters, digits and hyphens, at most 63", c.Site))
	}
	if c.Address != "" {
		if _, err := netip.ParseAddr(c.Address); err != nil {
			errs = append(errs, fmt.Errorf("--address: %q, want an IP address", c.Address))
		}
	}
	if c.Placement != "" && c.Placement != "ec2" {
		errs = append(errs, fmt.Errorf("--placement: %q, want ec2", c.Placement))
	}
	if c.Run != "" {
		if _, err := uuid.Parse(c.Run); err != nil {
			errs = append(errs, fmt.Errorf("--run: %q, want the id of a run", c.Run))
		}
	}
	if c.Parallel < 1 || c.Parallel > 1024 {
		errs = append(errs, fmt.Errorf("--parallel: %d, want 1 to 1024", c.Parallel))
	}
	return errors.Join(errs...)
}

// Agent runs one worker.
type Agent struct {
	cfg      Config
	node     *node.Node
	workload string
	worker   Worker
	log      *slog.Logger

	self     schemas.Agent
	recorder *bus.Recorder
	trials   *bus.Bucket[schemas.TaskState]
	starts   *bus.Bucket[schemas.Start]
	busy     atomic.Int64
}

// New returns an agent for one workload; Run starts it.
func New(cfg Config, n *node.Node, workload string, w Worker) *Agent {
	if cfg.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "agent"
		}
		cfg.Name = bus.Token(host) + "-" + workload
	}
	if cfg.Address == "" {
		cfg.Address = n.Bus.LocalAddress()
	}
	// Validate has seen it: what is no id is none.
	run, err := uuid.Parse(cfg.Run)
	if err != nil {
		run = uuid.Nil
	}
	return &Agent{
		cfg: cfg, node: n, workload: workload, worker: w, log: n.Log.With("agent", cfg.Name),
		self: schemas.Agent{
			Name: cfg.Name, Start: rand.Text()[:12], Service: n.Service, Site: cfg.Site, Labels: maps.Clone(cfg.Labels),
			Workloads: []string{workload}, Version: n.Version, CPUs: runtime.GOMAXPROCS(0),
			Run: run, Address: cfg.Address,
		},
	}
}

// Producer is the identity of this start of the agent in its events.
func (a *Agent) Producer() string { return a.self.Name + "/" + a.self.Start }

// Run takes tasks until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.node.Bus.AwaitProvisioned(ctx, bus.StreamTasks); err != nil {
		return err
	}
	if a.cfg.Placement != "" {
		if err := a.locate(ctx); err != nil {
			return err
		}
	}
	agents, err := bus.OpenBucket[schemas.Agent](ctx, a.node.Bus, bus.BucketAgents)
	if err != nil {
		return err
	}
	if a.trials, err = bus.OpenBucket[schemas.TaskState](ctx, a.node.Bus, bus.BucketTrials); err != nil {
		return err
	}
	if a.starts, err = bus.OpenBucket[schemas.Start](ctx, a.node.Bus, bus.BucketTrials); err != nil {
		return err
	}
	a.recorder = bus.NewRecorder(a.node.Bus, bus.RecorderOptions{Service: a.node.Service, Producer: a.Producer(), Log: a.log})
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		if err := a.recorder.Close(flush); err != nil {
			a.log.Error("events not stored", "error", err)
		}
	}()
	a.node.Check("recorder", a.recorder.Failed)

	announced, stopAnnouncing := context.WithCancel(ctx)
	gone := make(chan struct{})
	if err := a.announce(ctx, agents); err != nil {
		stopAnnouncing()
		return err
	}
	go func() {
		defer close(gone)
		a.keepAnnouncing(announced, agents)
	}()
	defer func() { stopAnnouncing(); <-gone }()

	a.node.Ready()
	return bus.Consume(ctx, a.node.Bus, bus.Consumption{
		Stream: bus.StreamTasks, Durable: "agent-" + a.self.Name, Subject: bus.SubjectTasks(a.self.Name), Parallel: a.cfg.Parallel,
	}, a.task)
}

// locate asks the machine's cloud where the machine is: what it says goes before
// what the command line says.
func (a *Agent) locate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	labels, address, err := fleet.Placement(ctx)
	if err != nil {
		return fmt.Errorf("ask the cloud where this machine is: %w", err)
	}
	if a.self.Labels == nil {
		a.self.Labels = map[string]string{}
	}
	maps.Copy(a.self.Labels, labels)
	if address.IsValid() {
		a.cfg.Address = address.String()
		a.self.Address = a.cfg.Address
	}
	return nil
}

func (a *Agent) announce(ctx context.Context, agents *bus.Bucket[schemas.Agent]) error {
	self := a.self
	self.Seen, self.Busy = time.Now(), int(a.busy.Load())
	_, err := agents.Put(ctx, bus.Token(self.Name), self)
	return err
}

func (a *Agent) keepAnnouncing(ctx context.Context, agents *bus.Bucket[schemas.Agent]) {
	tick := time.NewTicker(bus.AgentTTL / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := agents.Delete(leave, bus.Token(a.self.Name)); err != nil {
				a.log.Debug("leave", "error", err)
			}
			return
		case <-tick.C:
			if err := a.announce(ctx, agents); err != nil && ctx.Err() == nil {
				a.log.Warn("announce", "error", err)
			}
		}
	}
}

// How long an agent waits for the start of a trial it is ready for.
const startPatience = 5 * time.Minute

func (a *Agent) task(ctx context.Context, t schemas.Task) error {
	earlier, err := a.trials.Get(ctx, t.Key())
	switch {
	case err == nil && earlier.Value.Ended():
		return nil
	case err == nil:
		// This very task was begun and not finished, by an earlier start of
		// this agent or a delivery that lost its lease: its attempt is over.
		state := earlier.Value
		state.Phase, state.Error = schemas.TaskGone, "was restarted in the middle"
		return a.say(ctx, &t, &state)
	case !errors.Is(err, bus.ErrNotFound):
		return err
	}
	a.busy.Add(1)
	defer a.busy.Add(-1)
	state := schemas.TaskState{Agent: a.self.Name, Start: a.self.Start}
	result, err := a.execute(ctx, &t, &state)
	state.Result = result
	switch {
	case err == nil:
		state.Phase = schemas.TaskDone
	case errors.Is(err, errCancelled):
		state.Phase = schemas.TaskCancelled
	case ctx.Err() != nil:
		state.Phase, state.Error = schemas.TaskGone, "was stopped in the middle"
	default:
		state.Phase, state.Error = schemas.TaskFailed, err.Error()
		a.log.Warn("task failed", "run", t.Run, "trial", t.Trial, "attempt", t.Attempt, "error", err)
	}
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return a.say(finish, &t, &state)
}

var errCancelled = errors.New("cancelled")

func (a *Agent) say(ctx context.Context, t *schemas.Task, s *schemas.TaskState) error {
	s.Updated = time.Now()
	_, err := a.trials.Put(ctx, t.Key(), *s)
	return err
}

func (a *Agent) execute(ctx context.Context, t *schemas.Task, state *schemas.TaskState) (schemas.TaskResult, error) {
	var none schemas.TaskResult
	if t.Workload != a.workload {
		return none, fmt.Errorf("workload %q, this agent does %q", t.Workload, a.workload)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started := make(chan schemas.Start, 1)
	go a.awaitStart(ctx, t, started, cancel)

	clock, err := measureClock(ctx, a.node.Bus)
	if err != nil {
		return none, err
	}
	state.Clock = clock
	job, err := a.worker.Prepare(ctx, t)
	if err != nil {
		return none, cause(ctx, fmt.Errorf("prepare: %w", err))
	}
	defer func() {
		if err := job.Close(); err != nil {
			a.log.Warn("close task", "error", err)
		}
	}()
	state.Phase = schemas.TaskReady
	if l, ok := job.(Listener); ok {
		state.Endpoint = schemas.Endpoint{Address: a.cfg.Address, Ports: l.Ports(), Machine: machine()}
	}
	if err := a.say(ctx, t, state); err != nil {
		return none, err
	}
	var start Start
	select {
	case <-ctx.Done():
		return none, cause(ctx, ctx.Err())
	case <-time.After(startPatience):
		return none, fmt.Errorf("no start within %s", startPatience)
	case s := <-started:
		now := time.Now()
		start = Start{At: now.Add(s.At.Add(-clock.Offset).Sub(now.Round(0))), Clock: clock, Peers: s.Peers, Key: s.Key}
	}
	return a.run(ctx, t, state, job, start)
}

func (a *Agent) run(ctx context.Context, t *schemas.Task, state *schemas.TaskState, job Job, start Start) (schemas.TaskResult, error) {
	limited, cancel := context.WithDeadlineCause(ctx, start.At.Add(t.Timeout), fmt.Errorf("not done %s after the start", t.Timeout))
	defer cancel()

	var latest atomic.Pointer[schemas.Progress]
	state.Phase = schemas.TaskRunning
	running := *state
	reporting, stopReporting := context.WithCancel(ctx)
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			if p := latest.Load(); p != nil {
				running.Progress = *p
			}
			if err := a.say(reporting, t, &running); err != nil && reporting.Err() == nil {
				a.log.Warn("report progress", "error", err)
			}
			select {
			case <-reporting.Done():
				return
			case <-tick.C:
			}
		}
	}()
	defer func() { stopReporting(); <-reported }()

	var recorded atomic.Uint64
	record := func(e *schemas.Event) error {
		recorded.Add(1)
		if a.cfg.NoCapture {
			return nil
		}
		return a.recorder.Record(e)
	}
	before := processCPU()
	result, err := job.Run(limited, start, record, func(p schemas.Progress) { latest.Store(&p) })
	result.Elapsed = max(time.Since(start.At), 0)
	if result.Elapsed > 0 {
		result.CPU = float64(processCPU()-before) / float64(result.Elapsed) / float64(runtime.NumCPU())
	}
	if err == nil && limited.Err() != nil {
		err = context.Cause(limited)
	}
	err = cause(ctx, err)
	if p := latest.Load(); p != nil {
		state.Progress = *p
	}
	closing := a.closing(t, state, &result, start.At, recorded.Load()+1, err)
	flush, cancelFlush := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancelFlush()
	recordErr := record(closing)
	if recordErr == nil && !a.cfg.NoCapture {
		recordErr = a.recorder.Flush(flush)
	}
	result.Producer, result.Recorded = a.Producer(), recorded.Load()
	if recordErr != nil {
		return result, errors.Join(err, recordErr)
	}
	result.Acknowledged = result.Recorded
	if a.cfg.NoCapture {
		result.Acknowledged = 0
	}
	return result, err
}

func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// closing is the task's statement of what it did, as an event like any other.
func (a *Agent) closing(t *schemas.Task, state *schemas.TaskState, r *schemas.TaskResult, start time.Time, recorded uint64, err error) *schemas.Event {
	e := &schemas.Event{
		Intended: start, Run: t.Run, Trial: t.Trial, Attempt: t.Attempt, Workload: t.Workload, Service: a.node.Service,
		Site: a.cfg.Site, Agent: a.self.Name, Kind: schemas.KindTask, Duration: r.Elapsed, Bytes: r.Bytes, Status: schemas.StatusOK,
	}
	switch {
	case errors.Is(err, errCancelled):
		e.Status = schemas.StatusCancelled
	case err != nil:
		e.Status, e.Error = schemas.StatusError, truncate(err.Error())
	}
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	duration := func(d time.Duration) string { return strconv.FormatInt(int64(d), 10) }
	e.Attrs = []schemas.Attr{
		{Key: "issued", Value: number(r.Issued)},
		{Key: "recorded", Value: number(recorded)},
		{Key: "errors", Value: number(r.Errors)},
		{Key: "lag_p50_ns", Value: duration(r.LagP50)},
		{Key: "lag_p99_ns", Value: duration(r.LagP99)},
		{Key: "lag_max_ns", Value: duration(r.LagMax)},
		{Key: "cpu", Value: strconv.FormatFloat(r.CPU, 'f', 4, 64)},
		{Key: "clock_offset_ns", Value: duration(state.Clock.Offset)},
		{Key: "clock_bound_ns", Value: duration(state.Clock.Bound)},
		{Key: "clients", Value: strconv.Itoa(len(t.Clients))},
	}
	return e
}

func truncate(s string) string { return s[:min(len(s), schemas.MaxEventString)] }

// awaitStart passes on the start of the trial and ends the task's context when
// the trial is cancelled.
func (a *Agent) awaitStart(ctx context.Context, t *schemas.Task, started chan<- schemas.Start, cancel context.CancelCauseFunc) {
	sent := false
	err := a.starts.Watch(ctx, schemas.StartKey(t.Run, t.Trial, t.Attempt), func(e bus.Entry[schemas.Start]) error {
		if e.Deleted || e.Value.Cancelled {
			cancel(errCancelled)
			return nil
		}
		if !sent {
			sent = true
			started <- e.Value
		}
		return nil
	})
	if err != nil {
		cancel(err)
	}
}

// machine names this machine until it boots again: containers and namespaces
// share it as they share the clock. Empty where it cannot be known.
func machine() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// measureClock estimates the offset of the local clock from the scheduler's by
// the exchange with the shortest round trip.
func measureClock(ctx context.Context, c *bus.Conn) (schemas.Clock, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	const exchanges = 8
	var offsets []schemas.Clock
	for range exchanges {
		sent := time.Now()
		answer, err := bus.Request[schemas.ClockAnswer](ctx, c, bus.SubjectClock, &schemas.ClockQuery{})
		trip := time.Since(sent)
		if err != nil {
			return schemas.Clock{}, fmt.Errorf("ask the scheduler's clock: %w", err)
		}
		middle := sent.Add(trip / 2)
		offsets = append(offsets, schemas.Clock{Offset: answer.Now.Sub(middle), Bound: trip/2 + 1})
	}
	return slices.MinFunc(offsets, func(a, b schemas.Clock) int { return int(a.Bound - b.Bound) }), nil
}
