package scheduler

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
)

// trial executes one trial, in as many attempts as the experiment allows.
func (s *Scheduler) trial(ctx context.Context, run *schemas.Run, e *schemas.Experiment, t *plan.Trial) error {
	// An attempt that an earlier start of the scheduler began goes on.
	adopt := run.Attempt > 0
	for failures := 0; ; failures++ {
		placements := run.Placements
		if !adopt {
			var err error
			if placements, err = s.place(ctx, run, e, t); err != nil {
				return err
			}
			changed, err := s.change(ctx, run.ID, func(r *schemas.Run) error {
				r.Attempt, r.Placements = r.Attempt+1, placements
				return nil
			})
			if err != nil {
				return err
			}
			*run = changed
		}
		adopt = false
		err := s.attempt(ctx, run, e, t, placements)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if failures >= *e.Trials.Retries {
			return fmt.Errorf("trial %d failed %d times, the last time: %w", t.Index, failures+1, err)
		}
		s.retried.Inc()
		s.log.Warn("trial failed; will be tried again", "run", run.ID, "trial", t.Index, "attempt", run.Attempt, "error", err)
		if err := s.announce(run, schemas.RunProgress{Trial: t.Index, Attempt: run.Attempt, Note: "tried again: " + err.Error()}); err != nil {
			return err
		}
		if err := pause(ctx, time.Duration(min(failures+1, 5))*time.Second); err != nil {
			return err
		}
	}
}

// place finds agents for every group, waiting for them for a while.
func (s *Scheduler) place(ctx context.Context, run *schemas.Run, e *schemas.Experiment, t *plan.Trial) ([]schemas.Placement, error) {
	deadline := time.Now().Add(s.cfg.AgentPatience)
	told := false
	for {
		agents, err := s.present(ctx)
		if err != nil {
			return nil, err
		}
		agents = slices.DeleteFunc(agents, func(a schemas.Agent) bool { return !mayServe(&a, run, e) })
		placements, missing := Place(t.Groups, run.Workload, agents)
		if missing == "" {
			return placements, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no agents after %s: %s", s.cfg.AgentPatience, missing)
		}
		if !told {
			told = true
			if err := s.announce(run, schemas.RunProgress{Trial: t.Index, Note: "waiting for agents: " + missing}); err != nil {
				return nil, err
			}
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (s *Scheduler) present(ctx context.Context) ([]schemas.Agent, error) {
	entries, err := s.agents.List(ctx, ">")
	if err != nil {
		return nil, err
	}
	agents := make([]schemas.Agent, len(entries))
	for i, e := range entries {
		agents[i] = e.Value
	}
	return agents, nil
}

// mayServe reports whether an agent may take part in a run: those that exist for
// one run alone take part in no other, and a run that has such agents is done by
// no others.
func mayServe(a *schemas.Agent, run *schemas.Run, e *schemas.Experiment) bool {
	if e.NeedsPlace() {
		return a.Run == run.ID
	}
	return a.Run == uuid.Nil
}

// Place chooses agents for groups: agents that are at the site with the labels,
// the least busy first; only if there are none, agents that stand in for any
// site. A text says what is missing.
func Place(groups []schemas.Group, workload string, agents []schemas.Agent) (placements []schemas.Placement, missing string) {
	var lacks []string
	for _, g := range groups {
		var real, emulated []schemas.Agent
		for _, a := range agents {
			if !slices.Contains(a.Workloads, workload) {
				continue
			}
			switch can, truly := a.Stands(g); {
			case truly:
				real = append(real, a)
			case can:
				emulated = append(emulated, a)
			}
		}
		chosen := real
		if len(real) == 0 {
			chosen = emulated
		}
		order := func(a, b schemas.Agent) int {
			return cmp.Or(cmp.Compare(a.Busy, b.Busy), cmp.Compare(a.Name, b.Name))
		}
		slices.SortFunc(chosen, order)
		// One agent that stands in for any site plays as many as are asked for.
		if len(chosen) == 0 || (len(real) > 0 && len(real) < g.Agents) {
			lacks = append(lacks, fmt.Sprintf("group %s wants %d agents at site %s with labels %v that do %s, there are %d",
				g.Name, g.Agents, g.Site, g.Labels, workload, len(real)))
			continue
		}
		for i := range min(g.Agents, len(chosen)) {
			placements = append(placements, schemas.Placement{Group: g.Name, Site: g.Site, Agent: chosen[i].Name, Emulated: len(real) == 0})
		}
	}
	return placements, strings.Join(lacks, "; ")
}

// assign deals the clients of every group to its agents.
func assign(run *schemas.Run, t *plan.Trial, timeout time.Duration, placements []schemas.Placement) ([]*schemas.Task, error) {
	section, err := json.Marshal(t.Section)
	if err != nil {
		return nil, fmt.Errorf("encode section: %w", err)
	}
	tasks := map[string]*schemas.Task{}
	index := 0
	for _, g := range t.Groups {
		var agents []string
		for _, p := range placements {
			if p.Group == g.Name {
				agents = append(agents, p.Agent)
			}
		}
		if len(agents) == 0 {
			return nil, fmt.Errorf("group %s has no agent", g.Name)
		}
		for i := range g.Clients {
			name := agents[i%len(agents)]
			task := tasks[name]
			if task == nil {
				task = &schemas.Task{
					Run: run.ID, Trial: t.Index, Attempt: run.Attempt, Workload: run.Workload, Agent: name,
					Section: section, Seed: run.Seed, Timeout: timeout,
				}
				tasks[name] = task
			}
			task.Clients = append(task.Clients, schemas.Client{Index: index, Group: g.Name, Site: g.Site, Labels: g.Labels})
			index++
		}
	}
	for _, task := range tasks {
		task.Agents = len(tasks)
	}
	return slices.SortedFunc(maps.Values(tasks), func(a, b *schemas.Task) int { return cmp.Compare(a.Agent, b.Agent) }), nil
}

// attempt hands out the tasks of a trial and follows them to their end.
func (s *Scheduler) attempt(ctx context.Context, run *schemas.Run, e *schemas.Experiment, t *plan.Trial, placements []schemas.Placement) error {
	began := time.Now()
	tasks, err := assign(run, t, time.Duration(e.Trials.Timeout), placements)
	if err != nil {
		return err
	}
	for _, task := range tasks {
		// The message id makes handing out again after a kill harmless.
		if err := s.node.Bus.Publish(ctx, bus.SubjectTasks(task.Agent), task.Key(), task); err != nil {
			return err
		}
	}
	states, err := s.follow(ctx, run, e, t, tasks)
	// When it is the scheduler that ends, its successor finds the agents still
	// at it.
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errCancelled) {
		return context.Cause(ctx)
	}
	if err != nil {
		if stopErr := s.abandon(ctx, run, t, tasks); stopErr != nil {
			err = errors.Join(err, stopErr)
		}
		return err
	}
	flush, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.recorder.Record(trialEvent(run, t, placements, states, began)); err != nil {
		return err
	}
	return s.recorder.Flush(flush)
}

// follow waits until every task is ready, starts them together and waits until
// every one is done.
func (s *Scheduler) follow(ctx context.Context, run *schemas.Run, e *schemas.Experiment, t *plan.Trial, tasks []*schemas.Task) (map[string]schemas.TaskState, error) {
	states := map[string]schemas.TaskState{}
	started, err := s.starts.Get(ctx, schemas.StartKey(run.ID, t.Index, run.Attempt))
	switch {
	case err == nil && started.Value.Cancelled:
		return nil, errors.New("the attempt was given up earlier")
	case err != nil && !errors.Is(err, bus.ErrNotFound):
		return nil, err
	}
	start := started.Value.At

	watching, stop := context.WithCancel(ctx)
	updates := make(chan schemas.TaskState)
	watched := make(chan error, 1)
	go func() {
		watched <- s.tasks.Watch(watching, fmt.Sprintf("task.%s.%d.%d.*", run.ID, t.Index, run.Attempt), func(u bus.Entry[schemas.TaskState]) error {
			select {
			case updates <- u.Value:
			case <-watching.Done():
			}
			return nil
		})
	}()
	defer func() { stop(); <-watched }()

	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	prepared := time.Now().Add(s.cfg.PreparePatience)
	var absent map[string]time.Time
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case err := <-watched:
			watched <- err
			return nil, fmt.Errorf("follow tasks: %w", err)
		case u := <-updates:
			states[u.Agent] = u
			if u.Phase == schemas.TaskFailed || u.Phase == schemas.TaskCancelled {
				return nil, fmt.Errorf("agent %s: %s %s", u.Agent, u.Phase, u.Error)
			}
			if u.Phase == schemas.TaskGone && !survives(run, tasks, states, start) {
				return nil, fmt.Errorf("agent %s: %s", u.Agent, u.Error)
			}
			if start.IsZero() && all(tasks, states, func(p schemas.TaskState) bool { return p.Phase == schemas.TaskReady }) {
				if start, err = s.start(ctx, run, t, tasks, states); err != nil {
					return nil, err
				}
			}
			if over(tasks, states) {
				return states, s.announceTrial(run, t, states)
			}
		case now := <-tick.C:
			if err := s.announceTrial(run, t, states); err != nil {
				return nil, err
			}
			var gone []string
			if gone, absent, err = s.missing(ctx, tasks, states, absent); err != nil {
				return nil, err
			}
			if err := s.bereave(ctx, run, tasks, states, gone, start); err != nil {
				return nil, err
			}
			if over(tasks, states) {
				return states, s.announceTrial(run, t, states)
			}
			if start.IsZero() && now.After(prepared) {
				return nil, fmt.Errorf("not every agent was ready within %s", s.cfg.PreparePatience)
			}
			// Agents end their tasks themselves at the timeout; this is for
			// those that don't.
			if !start.IsZero() && now.After(start.Add(time.Duration(e.Trials.Timeout)+2*time.Minute)) {
				return nil, fmt.Errorf("not done within %s", time.Duration(e.Trials.Timeout))
			}
		}
	}
}

func all(tasks []*schemas.Task, states map[string]schemas.TaskState, is func(schemas.TaskState) bool) bool {
	for _, t := range tasks {
		if state, known := states[t.Agent]; !known || !is(state) {
			return false
		}
	}
	return true
}

// over reports whether every task is done or its agent gone.
func over(tasks []*schemas.Task, states map[string]schemas.TaskState) bool {
	return all(tasks, states, func(p schemas.TaskState) bool { return p.Phase == schemas.TaskDone || p.Phase == schemas.TaskGone })
}

// survives reports whether a trial goes on although agents are gone: where what
// the others see of it is what is measured.
func survives(run *schemas.Run, tasks []*schemas.Task, states map[string]schemas.TaskState, start time.Time) bool {
	everyone := all(tasks, states, func(p schemas.TaskState) bool { return p.Phase == schemas.TaskGone })
	return !start.IsZero() && !everyone && schemas.OutlivesAgents(run.Workload)
}

// bereave accounts for agents that are gone: name and fate.
func (s *Scheduler) bereave(ctx context.Context, run *schemas.Run, tasks []*schemas.Task, states map[string]schemas.TaskState, gone []string, start time.Time) error {
	for _, why := range gone {
		name, fate, _ := strings.Cut(why, " ")
		i := slices.IndexFunc(tasks, func(t *schemas.Task) bool { return t.Agent == name })
		state := states[name]
		state.Agent, state.Phase, state.Error, state.Updated = name, schemas.TaskGone, fate, time.Now()
		states[name] = state
		if !survives(run, tasks, states, start) {
			return fmt.Errorf("agent %s", why)
		}
		s.log.Warn("agent gone; the trial goes on", "run", run.ID, "agent", name, "fate", fate)
		if _, err := s.tasks.Put(ctx, tasks[i].Key(), state); err != nil {
			return err
		}
	}
	return nil
}

// start tells every agent when to begin: late enough that the word has reached
// the slowest of them.
func (s *Scheduler) start(ctx context.Context, run *schemas.Run, t *plan.Trial, tasks []*schemas.Task, states map[string]schemas.TaskState) (time.Time, error) {
	begin := schemas.Start{Key: make([]byte, 32)}
	// It never fails.
	_, _ = rand.Read(begin.Key)
	for _, task := range tasks {
		state := states[task.Agent]
		if state.Endpoint.Address == "" {
			continue
		}
		peer := schemas.Peer{Agent: task.Agent, Endpoint: state.Endpoint, Clock: state.Clock}
		for _, c := range task.Clients {
			c.Labels = nil
			peer.Clients = append(peer.Clients, c)
		}
		begin.Peers = append(begin.Peers, peer)
	}
	lead := 100 * time.Millisecond
	for _, state := range states {
		lead = max(lead, 8*state.Clock.Bound)
	}
	begin.At = time.Now().Add(min(lead, 10*time.Second))
	if _, err := s.starts.Put(ctx, schemas.StartKey(run.ID, t.Index, run.Attempt), begin); err != nil {
		return begin.At, err
	}
	return begin.At, nil
}

// missing tells which agents of the trial are gone or were restarted: name and
// fate. An announcement that is only late does not count: the agent must be
// absent for as long as its announcements live, seen from here too.
func (s *Scheduler) missing(ctx context.Context, tasks []*schemas.Task, states map[string]schemas.TaskState, absent map[string]time.Time) (gone []string, _ map[string]time.Time, _ error) {
	agents, err := s.present(ctx)
	if err != nil {
		return nil, absent, err
	}
	still := map[string]time.Time{}
	for _, task := range tasks {
		state, known := states[task.Agent]
		if known && state.Ended() {
			continue
		}
		i := slices.IndexFunc(agents, func(a schemas.Agent) bool { return a.Name == task.Agent })
		if i >= 0 {
			if known && agents[i].Start != state.Start {
				gone = append(gone, task.Agent+" was restarted in the middle")
			}
			continue
		}
		since, before := absent[task.Agent]
		if !before {
			since = time.Now()
		}
		if time.Since(since) > bus.AgentTTL {
			gone = append(gone, task.Agent+" is gone: no word from it for "+bus.AgentTTL.String())
		}
		still[task.Agent] = since
	}
	return gone, still, nil
}

// abandon tells the agents that an attempt is over and waits a little for them
// to stop, so that the next attempt is not disturbed.
func (s *Scheduler) abandon(ctx context.Context, run *schemas.Run, t *plan.Trial, tasks []*schemas.Task) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	if _, err := s.starts.Put(ctx, schemas.StartKey(run.ID, t.Index, run.Attempt), schemas.Start{Cancelled: true}); err != nil {
		return err
	}
	states := map[string]schemas.TaskState{}
	ended := errors.New("every task has ended")
	wait, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	err := s.tasks.Watch(wait, fmt.Sprintf("task.%s.%d.%d.*", run.ID, t.Index, run.Attempt), func(u bus.Entry[schemas.TaskState]) error {
		states[u.Value.Agent] = u.Value
		if all(tasks, states, func(p schemas.TaskState) bool { return p.Ended() }) {
			return ended
		}
		return nil
	})
	if err != nil && !errors.Is(err, ended) {
		return err
	}
	return nil
}

func (s *Scheduler) announceTrial(run *schemas.Run, t *plan.Trial, states map[string]schemas.TaskState) error {
	p := schemas.RunProgress{Trial: t.Index, Attempt: run.Attempt, Cell: cellName(t.Values)}
	for _, state := range states {
		p.Progress.Done += state.Progress.Done
		p.Progress.Total += state.Progress.Total
		p.Progress.Bytes += state.Progress.Bytes
		p.Progress.Errors += state.Progress.Errors
	}
	return s.announce(run, p)
}

func cellName(values []schemas.Attr) string {
	parts := make([]string, len(values))
	for i, v := range values {
		parts[i] = v.Key + "=" + v.Value
	}
	return strings.Join(parts, " ")
}

// trialEvent is the scheduler's statement that a trial is done.
func trialEvent(run *schemas.Run, t *plan.Trial, placements []schemas.Placement, states map[string]schemas.TaskState, began time.Time) *schemas.Event {
	e := &schemas.Event{
		Intended: began, Run: run.ID, Trial: t.Index, Attempt: run.Attempt, Workload: run.Workload, Service: "scheduler",
		Kind: schemas.KindTrial, Duration: time.Since(began), Status: schemas.StatusOK,
		Attrs: []schemas.Attr{
			{Key: "cell", Value: strconv.Itoa(t.Cell)},
			{Key: "repeat", Value: strconv.Itoa(t.Repeat)},
			{Key: "agents", Value: strconv.Itoa(len(states))},
		},
	}
	emulated := 0
	for _, p := range placements {
		if p.Emulated {
			emulated++
		}
	}
	e.Attrs = append(e.Attrs, schemas.Attr{Key: "emulated", Value: strconv.Itoa(emulated)})
	for _, state := range states {
		e.Bytes += state.Result.Bytes
	}
	for _, v := range t.Values[:min(len(t.Values), schemas.MaxEventAttrs-len(e.Attrs))] {
		e.Attrs = append(e.Attrs, schemas.Attr{Key: "cell." + v.Key, Value: v.Value})
	}
	return e
}
