package scheduler

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
)

// Scheduler plans runs and sees them through.
type Scheduler struct {
	cfg  Config
	node *node.Node
	log  *slog.Logger

	runs      *bus.Bucket[schemas.Run]
	tasks     *bus.Bucket[schemas.TaskState]
	starts    *bus.Bucket[schemas.Start]
	agents    *bus.Bucket[schemas.Agent]
	schedules *bus.Bucket[schemas.Recurring]
	wants     *bus.Bucket[schemas.PlaceWanted]
	places    *bus.Bucket[schemas.Place]
	recorder  *bus.Recorder

	mu     sync.Mutex
	open   map[uuid.UUID]schemas.Run // runs that have not ended
	wake   chan struct{}
	cancel map[uuid.UUID]context.CancelCauseFunc // of the run in work

	trialsDone prometheus.Counter
	retried    prometheus.Counter
}

// New returns a scheduler; Run starts it.
func New(cfg Config, n *node.Node) *Scheduler {
	s := &Scheduler{
		cfg: cfg, node: n, log: n.Log,
		open: map[uuid.UUID]schemas.Run{}, wake: make(chan struct{}, 1), cancel: map[uuid.UUID]context.CancelCauseFunc{},
		trialsDone: prometheus.NewCounter(prometheus.CounterOpts{Name: "transferlab_trials_total", Help: "Trials finished."}),
		retried:    prometheus.NewCounter(prometheus.CounterOpts{Name: "transferlab_trial_retries_total", Help: "Attempts of trials that failed."}),
	}
	n.Metrics.MustRegister(s.trialsDone, s.retried)
	return s
}

// Run serves requests and executes runs until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	if err := s.openBuckets(ctx); err != nil {
		return err
	}
	s.recorder = bus.NewRecorder(s.node.Bus, bus.RecorderOptions{
		Service: s.node.Service, Producer: "scheduler/" + rand.Text()[:12], InFlight: 1, Log: s.log,
	})
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := s.recorder.Close(flush); err != nil {
			s.log.Error("events not stored", "error", err)
		}
	}()
	if err := s.serve(ctx); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() {
		if err := s.runs.Watch(ctx, ">", s.changed); err != nil {
			stop(err)
		}
	})
	parts.Go(func() {
		err := bus.Consume(ctx, s.node.Bus, bus.Consumption{
			Stream: bus.StreamSchedules, Durable: "scheduler-due", Subject: bus.SubjectAnyDue,
		}, s.due)
		if err != nil {
			stop(err)
		}
	})
	s.node.Ready()
	s.work(ctx)
	return context.Cause(ctx)
}

func (s *Scheduler) openBuckets(ctx context.Context) (err error) {
	c := s.node.Bus
	if err := c.AwaitProvisioned(ctx, "KV_"+bus.BucketSchedules); err != nil {
		return err
	}
	if s.runs, err = bus.OpenBucket[schemas.Run](ctx, c, bus.BucketRuns); err != nil {
		return err
	}
	if s.tasks, err = bus.OpenBucket[schemas.TaskState](ctx, c, bus.BucketTrials); err != nil {
		return err
	}
	if s.starts, err = bus.OpenBucket[schemas.Start](ctx, c, bus.BucketTrials); err != nil {
		return err
	}
	if s.agents, err = bus.OpenBucket[schemas.Agent](ctx, c, bus.BucketAgents); err != nil {
		return err
	}
	if s.wants, err = bus.OpenBucket[schemas.PlaceWanted](ctx, c, bus.BucketPlaces); err != nil {
		return err
	}
	if s.places, err = bus.OpenBucket[schemas.Place](ctx, c, bus.BucketPlaces); err != nil {
		return err
	}
	s.schedules, err = bus.OpenBucket[schemas.Recurring](ctx, c, bus.BucketSchedules)
	return err
}

func (s *Scheduler) serve(ctx context.Context) error {
	r := s.node.Registration
	return errors.Join(
		bus.Respond(ctx, r, "clock", bus.SubjectClock, func(context.Context, schemas.ClockQuery) (schemas.ClockAnswer, error) {
			return schemas.ClockAnswer{Now: time.Now()}, nil
		}),
		bus.Respond(ctx, r, "submit", bus.SubjectSubmit, func(ctx context.Context, q schemas.Submit) (schemas.Run, error) {
			return s.submit(ctx, q, "")
		}),
		bus.Respond(ctx, r, "cancel", bus.SubjectCancel, s.cancelRun),
		bus.Respond(ctx, r, "resume", bus.SubjectResume, s.resume),
		bus.Respond(ctx, r, "schedule", bus.SubjectSchedule, s.schedule),
	)
}

func invalid(err error) error { return &bus.RequestError{Code: "invalid", Text: err.Error()} }

func (s *Scheduler) submit(ctx context.Context, q schemas.Submit, recurring string) (schemas.Run, error) {
	var none schemas.Run
	e, err := schemas.ParseExperiment([]byte(q.File))
	if err != nil {
		return none, invalid(err)
	}
	p, err := plan.New(e, q.Seed)
	if err != nil {
		return none, invalid(err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return none, fmt.Errorf("make an id: %w", err)
	}
	run := schemas.Run{
		ID: id, Name: e.Name, Workload: e.Workload, Seed: p.Seed, ScheduleHash: p.Hash, File: q.File, Recurring: recurring,
		State: schemas.RunQueued, Created: time.Now().UTC(), Trials: len(p.Trials), Version: s.node.Version,
	}
	if _, err := s.runs.Create(ctx, id.String(), run); err != nil {
		return none, err
	}
	s.log.Info("run submitted", "run", id, "name", run.Name, "trials", run.Trials)
	return run, nil
}

// change applies f to a run by compare-and-set, as often as it takes.
func (s *Scheduler) change(ctx context.Context, id uuid.UUID, f func(*schemas.Run) error) (schemas.Run, error) {
	for {
		e, err := s.runs.Get(ctx, id.String())
		if errors.Is(err, bus.ErrNotFound) {
			return e.Value, &bus.RequestError{Code: "not_found", Text: fmt.Sprintf("no run %s", id)}
		}
		if err != nil {
			return e.Value, err
		}
		run := e.Value
		if err := f(&run); err != nil {
			return run, err
		}
		_, err = s.runs.Update(ctx, id.String(), run, e.Revision)
		if err == nil || !errors.Is(err, bus.ErrConflict) {
			return run, err
		}
	}
}

func conflict(run *schemas.Run, verb string) error {
	return &bus.RequestError{Code: "conflict", Text: fmt.Sprintf("run %s is %s: it cannot be %s", run.ID, run.State, verb)}
}

func (s *Scheduler) cancelRun(ctx context.Context, q schemas.RunRef) (schemas.Run, error) {
	return s.change(ctx, q.Run, func(r *schemas.Run) error {
		switch r.State {
		case schemas.RunQueued:
			r.State, r.Finished = schemas.RunCancelled, time.Now().UTC()
		case schemas.RunRunning:
			r.State = schemas.RunCancelling
		case schemas.RunCancelling:
		default:
			return conflict(r, "cancelled")
		}
		return nil
	})
}

func (s *Scheduler) resume(ctx context.Context, q schemas.RunRef) (schemas.Run, error) {
	return s.change(ctx, q.Run, func(r *schemas.Run) error {
		switch r.State {
		case schemas.RunCancelled, schemas.RunFailed:
			r.State, r.Error, r.Invalid, r.Finished = schemas.RunQueued, "", false, time.Time{}
		case schemas.RunQueued, schemas.RunRunning:
			// It goes on already, as after a kill of the whole lab.
		default:
			return conflict(r, "resumed")
		}
		return nil
	})
}

func (s *Scheduler) schedule(ctx context.Context, q schemas.Recurring) (schemas.Recurring, error) {
	subject := bus.SubjectSchedules(q.Name)
	if q.Cron == "" {
		if err := s.node.Bus.Purge(ctx, bus.StreamSchedules, subject); err != nil {
			return q, err
		}
		return q, s.schedules.Delete(ctx, bus.Token(q.Name))
	}
	e, err := schemas.ParseExperiment([]byte(q.File))
	if err != nil {
		return q, invalid(err)
	}
	if _, err := plan.New(e, q.Seed); err != nil {
		return q, invalid(err)
	}
	cron := q.Cron
	// The server's expressions have a field for seconds in front.
	if len(strings.Fields(cron)) == 5 && !strings.HasPrefix(cron, "@") {
		cron = "0 " + cron
	}
	if err := s.node.Bus.PublishScheduled(ctx, subject, bus.SubjectDue(q.Name), cron, q.Zone, &q); err != nil {
		return q, invalid(fmt.Errorf("schedule.cron: %q, want minute hour day month weekday, or @every 10m: %w", q.Cron, err))
	}
	if _, err := s.schedules.Put(ctx, bus.Token(q.Name), q); err != nil {
		return q, err
	}
	return q, nil
}

// due submits a recurring experiment, unless its last run has not ended: runs
// that are slower than their interval must not pile up.
func (s *Scheduler) due(ctx context.Context, q schemas.Recurring) error {
	s.mu.Lock()
	for _, r := range s.open {
		if r.Recurring == q.Name {
			s.mu.Unlock()
			s.log.Warn("recurring run skipped: the last one has not ended", "schedule", q.Name, "run", r.ID)
			return nil
		}
	}
	s.mu.Unlock()
	_, err := s.submit(ctx, schemas.Submit{File: q.File, Seed: q.Seed}, q.Name)
	var refused *bus.RequestError
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", bus.ErrDrop, err)
	}
	return err
}

// changed keeps the picture of open runs.
func (s *Scheduler) changed(e bus.Entry[schemas.Run]) error {
	id, err := uuid.Parse(e.Key)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Deleted || e.Value.Ended() {
		delete(s.open, id)
	} else {
		s.open[id] = e.Value
	}
	if stop := s.cancel[id]; stop != nil && (e.Deleted || e.Value.State == schemas.RunCancelling) {
		stop(errCancelled)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

var errCancelled = errors.New("cancelled")

// next is the run to execute: one that was begun, else the oldest.
func (s *Scheduler) next() (schemas.Run, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []schemas.Run
	for _, r := range s.open {
		all = append(all, r)
	}
	if len(all) == 0 {
		return schemas.Run{}, false
	}
	return slices.MinFunc(all, func(a, b schemas.Run) int {
		begun := func(r schemas.Run) int {
			if r.State == schemas.RunQueued {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(begun(a), begun(b)), cmp.Compare(a.ID.String(), b.ID.String()))
	}), true
}

// work executes runs one after the other.
func (s *Scheduler) work(ctx context.Context) {
	for ctx.Err() == nil {
		run, found := s.next()
		if !found {
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
			continue
		}
		if err := s.execute(ctx, run.ID); err != nil && ctx.Err() == nil {
			// The bus is away or another scheduler has the run; both pass.
			s.log.Error("run interrupted; will go on", "run", run.ID, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// execute sees a run through. An error means that its state could not be
// kept, not that it failed.
func (s *Scheduler) execute(ctx context.Context, id uuid.UUID) error {
	runCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s.mu.Lock()
	s.cancel[id] = stop
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.cancel, id)
		s.mu.Unlock()
	}()

	run, err := s.change(ctx, id, func(r *schemas.Run) error {
		if r.State == schemas.RunQueued {
			r.State = schemas.RunRunning
		}
		if r.Started.IsZero() {
			r.Started = time.Now().UTC()
		}
		return nil
	})
	if err != nil {
		return s.forget(id, err)
	}
	if run.State == schemas.RunCancelling {
		stop(errCancelled)
	}
	failure := s.placed(runCtx, &run)
	if ctx.Err() != nil {
		return nil // the scheduler ends, not the run
	}
	run, err = s.change(ctx, id, func(r *schemas.Run) error {
		r.Finished = time.Now().UTC()
		switch {
		case errors.Is(failure, errCancelled) || r.State == schemas.RunCancelling:
			r.State = schemas.RunCancelled
		case failure != nil:
			r.State, r.Error, r.Invalid = schemas.RunFailed, failure.Error(), errors.Is(failure, errUnfit)
		default:
			r.State = schemas.RunDone
		}
		return nil
	})
	if err != nil {
		return s.forget(id, err)
	}
	s.mu.Lock()
	delete(s.open, id)
	s.mu.Unlock()
	s.log.Info("run ended", "run", id, "state", run.State, "error", run.Error)
	return s.announce(&run, schemas.RunProgress{})
}

// forget drops a run that is no longer there.
func (s *Scheduler) forget(id uuid.UUID, err error) error {
	var refused *bus.RequestError
	if errors.As(err, &refused) && refused.Code == "not_found" {
		s.mu.Lock()
		delete(s.open, id)
		s.mu.Unlock()
		return nil
	}
	return err
}

func (s *Scheduler) announce(run *schemas.Run, p schemas.RunProgress) error {
	p.Run, p.State, p.Trials, p.TrialsDone, p.At = run.ID, run.State, run.Trials, run.TrialsDone, time.Now()
	return s.node.Bus.Announce(bus.SubjectProgress(run.ID.String()), &p)
}

// placed executes a run in the place that its experiment declares, if it does.
// Its error is why the run failed.
func (s *Scheduler) placed(ctx context.Context, run *schemas.Run) error {
	e, err := schemas.ParseExperiment([]byte(run.File))
	if err != nil {
		return fmt.Errorf("read the experiment again: %w", err)
	}
	p, err := plan.New(e, run.Seed)
	if err != nil {
		return fmt.Errorf("plan again: %w", err)
	}
	if p.Hash != run.ScheduleHash {
		return fmt.Errorf("this version plans another schedule (%s) than the one the run began with (%s): submit it anew", p.Hash, run.ScheduleHash)
	}
	if !e.NeedsPlace() {
		return s.trialsOf(ctx, run, e, p)
	}
	if err := s.makePlace(ctx, run); err != nil {
		return errors.Join(err, s.leavePlace(ctx, run))
	}
	return errors.Join(s.trialsOf(ctx, run, e, p), s.leavePlace(ctx, run))
}

// trialsOf executes what is left of a run.
func (s *Scheduler) trialsOf(ctx context.Context, run *schemas.Run, e *schemas.Experiment, p *plan.Plan) error {
	for run.TrialsDone < len(p.Trials) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		t := &p.Trials[run.TrialsDone]
		if t.Index > 0 && e.Trials.Pause > 0 {
			if err := pause(ctx, time.Duration(e.Trials.Pause)); err != nil {
				return err
			}
		}
		if err := s.trial(ctx, run, e, t); err != nil {
			return err
		}
		changed, err := s.change(ctx, run.ID, func(r *schemas.Run) error {
			r.TrialsDone, r.Attempt = int(t.Index)+1, 0
			return nil
		})
		if err != nil {
			return err
		}
		*run = changed
		s.trialsDone.Inc()
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
