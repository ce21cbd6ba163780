package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// lab is a scheduler, agents and somebody who asks, on a real bus.
type lab struct {
	*testing.T
	server *embedded.Server
	asking *bus.Conn
	runs   *bus.Bucket[schemas.Run]
}

func start(t *testing.T) *lab {
	l := &lab{T: t, server: bustest.Start(t)}
	l.asking = bustest.Join(t, l.server, bus.RoleGateway)
	var err error
	if l.runs, err = bus.OpenBucket[schemas.Run](t.Context(), l.asking, bus.BucketRuns); err != nil {
		t.Fatal(err)
	}
	return l
}

// run starts a service and returns what ends it.
func (l *lab) run(role, name string, serve func(context.Context, *node.Node) error) (stop func()) {
	l.Helper()
	conn := bustest.Join(l, l.server, role)
	s := node.Service{Name: name, Run: serve}
	n, err := node.New(s, "1.0.0", conn, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(l.Output(), nil)))
	if err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.Run(ctx, s); err != nil && ctx.Err() == nil {
			l.Errorf("%s: %v", name, err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	l.Cleanup(stop)
	ready, cancelReady := context.WithTimeout(l.Context(), 20*time.Second)
	defer cancelReady()
	if err := n.AwaitReady(ready); err != nil {
		l.Fatal(err)
	}
	return stop
}

func (l *lab) scheduler() (stop func()) {
	cfg := DefaultConfig()
	cfg.AgentPatience = 500 * time.Millisecond
	return l.run(bus.RoleScheduler, "scheduler", func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) })
}

func (l *lab) agent(name, site string, w *worker) (stop func()) {
	return l.agentFor(schemas.WorkloadS3, agent.Config{Name: name, Site: site, Parallel: 4}, w)
}

func (l *lab) agentFor(workload string, cfg agent.Config, w *worker) (stop func()) {
	return l.run(bus.RoleAgent, schemas.ServiceOf(workload), func(ctx context.Context, n *node.Node) error {
		return agent.New(cfg, n, workload, w).Run(ctx)
	})
}

// worker is a workload that does what the test says.
type worker struct {
	work    func(ctx context.Context, t *schemas.Task, attempt int) error
	begun   atomic.Int32
	mu      sync.Mutex
	started []time.Time
	met     []schemas.Peer
	key     []byte
}

func (w *worker) Prepare(_ context.Context, t *schemas.Task) (agent.Job, error) {
	return &job{w, t}, nil
}

type job struct {
	w *worker
	t *schemas.Task
}

func (j *job) Run(ctx context.Context, start agent.Start, record func(*schemas.Event) error, _ func(schemas.Progress)) (schemas.TaskResult, error) {
	j.w.mu.Lock()
	j.w.started = append(j.w.started, start.At)
	j.w.met, j.w.key = start.Peers, start.Key
	j.w.mu.Unlock()
	n := int(j.w.begun.Add(1))
	e := schemas.Event{
		Intended: start.At, Run: j.t.Run, Trial: j.t.Trial, Attempt: j.t.Attempt, Workload: j.t.Workload, Service: "s3-loader", Kind: schemas.KindOf(j.t.Workload), Status: schemas.StatusOK,
	}
	if err := record(&e); err != nil {
		return schemas.TaskResult{Issued: 1}, err
	}
	if j.w.work == nil {
		return schemas.TaskResult{Issued: 1}, nil
	}
	return schemas.TaskResult{Issued: 1}, j.w.work(ctx, j.t, n)
}

func (*job) Close() error { return nil }

func (*job) Ports() map[string]uint16 { return map[string]uint16{"udp": 862} }

func file(sites string, extra string) string {
	return fmt.Sprintf("name: test\nworkload: s3\ngroups: [%s]\n%ss3: {buckets: [alpha], size: 1kB, requests: 1}\n", sites, extra)
}

func (l *lab) submit(file string) schemas.Run {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), 10*time.Second)
	defer cancel()
	run, err := bus.Request[schemas.Run](ctx, l.asking, bus.SubjectSubmit, &schemas.Submit{File: file})
	if err != nil {
		l.Fatal(err)
	}
	return run
}

// await returns the run once it is as wanted.
func (l *lab) await(id uuid.UUID, what string, is func(schemas.Run) bool) schemas.Run {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), 40*time.Second)
	defer cancel()
	found := errors.New("found")
	var last schemas.Run
	err := l.runs.Watch(ctx, id.String(), func(e bus.Entry[schemas.Run]) error {
		last = e.Value
		if is(e.Value) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		l.Fatalf("run never %s: state %s, %s", what, last.State, last.Error)
	}
	return last
}

func (l *lab) ended(id uuid.UUID) schemas.Run {
	l.Helper()
	return l.await(id, "ended", func(r schemas.Run) bool { return r.Ended() })
}

func (l *lab) tell(subject string, id uuid.UUID) (schemas.Run, error) {
	ctx, cancel := context.WithTimeout(l.Context(), 10*time.Second)
	defer cancel()
	return bus.Request[schemas.Run](ctx, l.asking, subject, &schemas.RunRef{Run: id})
}

func TestAgentsStartTogether(t *testing.T) {
	l := start(t)
	l.scheduler()
	var oregon, dublin worker
	l.agent("oregon-1", "oregon", &oregon)
	l.agent("dublin-1", "dublin", &dublin)
	run := l.ended(l.submit(file("{site: oregon, clients: 3}, {site: dublin}", "trials: {repeat: 3}\n")).ID)
	if run.State != schemas.RunDone || run.TrialsDone != 3 {
		t.Fatalf("run %s with %d trials: %s", run.State, run.TrialsDone, run.Error)
	}
	for i := range 3 {
		if d := oregon.started[i].Sub(dublin.started[i]).Abs(); d > 20*time.Millisecond {
			t.Errorf("trial %d: agents started %s apart", i, d)
		}
	}
	if len(run.Placements) != 2 || run.Placements[0].Emulated {
		t.Errorf("placements %+v", run.Placements)
	}
}

func TestFailedTrialIsTriedAgain(t *testing.T) {
	l := start(t)
	l.scheduler()
	w := worker{work: func(_ context.Context, _ *schemas.Task, n int) error {
		if n == 1 {
			return errors.New("first time fails")
		}
		return nil
	}}
	l.agent("a", schemas.SiteAny, &w)
	run := l.ended(l.submit(file("{site: oregon}", "")).ID)
	if run.State != schemas.RunDone || w.begun.Load() != 2 {
		t.Errorf("run %s after %d attempts: %s", run.State, w.begun.Load(), run.Error)
	}
	if !run.Placements[0].Emulated {
		t.Error("an agent that stands in for any site does not count as emulated")
	}
}

func TestHopelessTrialFailsTheRun(t *testing.T) {
	l := start(t)
	l.scheduler()
	w := worker{work: func(context.Context, *schemas.Task, int) error { return errors.New("always fails") }}
	l.agent("a", schemas.SiteAny, &w)
	for retries := range int32(2) {
		w.begun.Store(0)
		run := l.ended(l.submit(file("{site: oregon}", fmt.Sprintf("trials: {retries: %d}\n", retries))).ID)
		if run.State != schemas.RunFailed || !strings.Contains(run.Error, "always fails") || w.begun.Load() != 1+retries {
			t.Errorf("%d retries: run %s after %d attempts: %s", retries, run.State, w.begun.Load(), run.Error)
		}
	}
}

func TestNoAgent(t *testing.T) {
	l := start(t)
	l.scheduler()
	l.agent("a", "dublin", &worker{})
	run := l.ended(l.submit(file("{site: oregon}", "")).ID)
	if run.State != schemas.RunFailed || !strings.Contains(run.Error, "group oregon wants 1 agents at site oregon") {
		t.Errorf("run %s: %s", run.State, run.Error)
	}
}

func TestCancelAndResume(t *testing.T) {
	l := start(t)
	l.scheduler()
	cancelled := make(chan error, 1)
	w := worker{}
	w.work = func(ctx context.Context, _ *schemas.Task, n int) error {
		if n == 2 { // the second trial hangs
			<-ctx.Done()
			cancelled <- context.Cause(ctx)
			return ctx.Err()
		}
		return nil
	}
	l.agent("a", schemas.SiteAny, &w)
	id := l.submit(file("{site: oregon}", "trials: {repeat: 3}\n")).ID
	l.await(id, "in its second trial", func(r schemas.Run) bool {
		return r.TrialsDone == 1 && w.begun.Load() == 2 || r.Attempt == 1 && r.TrialsDone == 1
	})
	for w.begun.Load() < 2 {
		l.await(id, "there", func(schemas.Run) bool { return true })
	}
	if _, err := l.tell(bus.SubjectCancel, id); err != nil {
		t.Fatal(err)
	}
	run := l.ended(id)
	if run.State != schemas.RunCancelled || run.TrialsDone != 1 {
		t.Fatalf("run %s with %d trials: %s", run.State, run.TrialsDone, run.Error)
	}
	<-cancelled
	var refused *bus.RequestError
	if _, err := l.tell(bus.SubjectCancel, id); !errors.As(err, &refused) || refused.Code != "conflict" {
		t.Errorf("second cancel: %v", err)
	}
	for range 2 { // to resume what goes on already is no error
		if _, err := l.tell(bus.SubjectResume, id); err != nil {
			t.Fatal(err)
		}
	}
	run = l.await(id, "done", func(r schemas.Run) bool { return r.State == schemas.RunDone })
	if run.TrialsDone != 3 || w.begun.Load() != 4 {
		t.Errorf("%d trials in %d executions, want 3 in 4 (the first is not repeated)", run.TrialsDone, w.begun.Load())
	}
	if _, err := l.tell(bus.SubjectCancel, uuid.New()); !errors.As(err, &refused) || refused.Code != "not_found" {
		t.Errorf("cancel of no run: %v", err)
	}
}

// A scheduler that ends in the middle of a trial costs nothing: its successor
// goes on with the same attempt.
func TestSchedulerRestart(t *testing.T) {
	l := start(t)
	stop := l.scheduler()
	release, running := make(chan struct{}), make(chan struct{})
	w := worker{work: func(context.Context, *schemas.Task, int) error {
		close(running)
		<-release
		return nil
	}}
	l.agent("a", schemas.SiteAny, &w)
	id := l.submit(file("{site: oregon}", "")).ID
	<-running
	stop()
	l.scheduler()
	close(release)
	run := l.ended(id)
	if run.State != schemas.RunDone || w.begun.Load() != 1 {
		t.Errorf("run %s after %d executions, want done after 1: %s", run.State, w.begun.Load(), run.Error)
	}
}

// An agent that is restarted in the middle of a trial costs one attempt.
func TestAgentRestart(t *testing.T) {
	l := start(t)
	l.scheduler()
	running := make(chan struct{})
	w := worker{work: func(ctx context.Context, _ *schemas.Task, n int) error {
		if n == 1 {
			close(running)
			<-ctx.Done()
		}
		return ctx.Err()
	}}
	stop := l.agent("a", schemas.SiteAny, &w)
	id := l.submit(file("{site: oregon}", "")).ID
	<-running
	stop()
	l.agent("a", schemas.SiteAny, &w)
	run := l.ended(id)
	if run.State != schemas.RunDone || w.begun.Load() != 2 {
		t.Errorf("run %s after %d executions, want done after 2: %s", run.State, w.begun.Load(), run.Error)
	}
}

func TestRunsOneAfterTheOther(t *testing.T) {
	l := start(t)
	l.scheduler()
	var together, most atomic.Int32
	w := worker{work: func(context.Context, *schemas.Task, int) error {
		most.Store(max(most.Load(), together.Add(1)))
		defer together.Add(-1)
		return nil
	}}
	l.agent("a", schemas.SiteAny, &w)
	var ids []uuid.UUID
	for range 4 {
		ids = append(ids, l.submit(file("{site: oregon}", "")).ID)
	}
	for _, id := range ids {
		if run := l.ended(id); run.State != schemas.RunDone {
			t.Errorf("run %s: %s", run.State, run.Error)
		}
	}
	if most.Load() != 1 {
		t.Errorf("%d runs at a time", most.Load())
	}
}

func TestRecurring(t *testing.T) {
	l := start(t)
	l.scheduler()
	l.agent("a", schemas.SiteAny, &worker{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ask := func(r schemas.Recurring) error {
		_, err := bus.Request[schemas.Recurring](ctx, l.asking, bus.SubjectSchedule, &r)
		return err
	}
	good := schemas.Recurring{Name: "nightly", Cron: "* * * * * *", File: file("{site: oregon}", "")}
	for name, bad := range map[string]schemas.Recurring{
		"cron": {Name: "x", Cron: "every day", File: good.File},
		"file": {Name: "x", Cron: good.Cron, File: "name: x"},
		"name": {Cron: good.Cron, File: good.File},
	} {
		var refused *bus.RequestError
		if err := ask(bad); err == nil || errors.As(err, &refused) && refused.Code != "invalid" {
			t.Errorf("bad %s: %v", name, err)
		}
	}
	// Each by itself: an interval and an expression are different to the server.
	for name, cron := range map[string]string{"nightly": good.Cron, "often": "@every 1s"} {
		if err := ask(schemas.Recurring{Name: name, Cron: cron, Zone: "UTC", File: good.File}); err != nil {
			t.Fatal(err)
		}
		found := errors.New("found")
		seen := map[string]bool{}
		err := l.runs.Watch(ctx, ">", func(e bus.Entry[schemas.Run]) error {
			if e.Value.Recurring == name && e.Value.State == schemas.RunDone {
				seen[e.Key] = true
			}
			if len(seen) == 2 {
				return found
			}
			return nil
		})
		if !errors.Is(err, found) {
			t.Fatalf("%s ran %d times: %v", cron, len(seen), err)
		}
		if err := ask(schemas.Recurring{Name: name}); err != nil {
			t.Error(err)
		}
	}
}

func TestPlace(t *testing.T) {
	s3 := []string{"s3"}
	agents := []schemas.Agent{
		{Name: "any", Site: schemas.SiteAny, Workloads: s3},
		{Name: "busy", Site: "oregon", Workloads: s3, Busy: 2, Labels: map[string]string{"instance_type": "t2.micro"}},
		{Name: "idle", Site: "oregon", Workloads: s3, Labels: map[string]string{"instance_type": "t2.micro"}},
		{Name: "other", Site: "oregon", Workloads: []string{"probe"}},
	}
	micro := map[string]string{"instance_type": "t2.micro"}
	for name, c := range map[string]struct {
		group schemas.Group
		want  string
	}{
		"least busy first":      {schemas.Group{Site: "oregon", Agents: 1}, "idle"},
		"both":                  {schemas.Group{Site: "oregon", Agents: 2, Labels: micro}, "idle busy"},
		"more than there are":   {schemas.Group{Site: "oregon", Agents: 3}, ""},
		"stands in":             {schemas.Group{Site: "dublin", Agents: 2}, "any*"},
		"stands in for a label": {schemas.Group{Site: "oregon", Agents: 1, Labels: map[string]string{"instance_type": "x"}}, "any*"},
	} {
		placements, missing := Place([]schemas.Group{c.group}, "s3", agents)
		var got []string
		for _, p := range placements {
			n := p.Agent
			if p.Emulated {
				n += "*"
			}
			got = append(got, n)
		}
		if strings.Join(got, " ") != c.want || (missing == "") != (c.want != "") {
			t.Errorf("%s: placed on %v (%s), want %q", name, got, missing, c.want)
		}
	}
}
