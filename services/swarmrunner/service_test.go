package swarmrunner

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
)

// serve runs the service until the test ends.
func serve(t *testing.T, server *embedded.Server, name string) {
	t.Helper()
	service := Service()
	n, err := node.New(service, "1.0.0", bustest.Join(t, server, service.Role), prometheus.NewRegistry(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Name, cfg.Site = name, "home"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(cfg, n).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	if err := n.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The whole service on a real bus: two agents are given a task each, find each
// other by what the start says, and account for every transfer.
func TestService(t *testing.T) {
	t.Parallel()
	server := bustest.Start(t)
	operator := bustest.Join(t, server, bus.RoleOperator)
	registration, err := operator.Register("scheduler", "1.0.0", "clock", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Respond(t.Context(), registration, "clock", bus.SubjectClock, func(context.Context, schemas.ClockQuery) (schemas.ClockAnswer, error) {
		return schemas.ClockAnswer{Now: time.Now()}, nil
	}); err != nil {
		t.Fatal(err)
	}
	tr := &trial{section: schemas.Swarm{Size: 200_000}, stations: []*station{
		{name: "agent-1", address: "127.0.0.1", clients: clients("home", 0, 2)}, {name: "agent-2", address: "127.0.0.1", clients: clients("home", 2, 1)},
	}}
	for _, s := range tr.stations {
		serve(t, server, s.name)
	}
	states, err := bus.OpenBucket[schemas.TaskState](t.Context(), operator, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	starts, err := bus.OpenBucket[schemas.Start](t.Context(), operator, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	tasks := tr.tasks(t)
	clientsOf := map[string][]schemas.Client{}
	for _, task := range tasks {
		clientsOf[task.Agent] = task.Clients
		if err := operator.Publish(t.Context(), bus.SubjectTasks(task.Agent), task.Key(), task); err != nil {
			t.Fatal(err)
		}
	}
	watch, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	ready, last := map[string]schemas.Peer{}, map[string]schemas.TaskState{}
	err = states.Watch(watch, "task.>", func(e bus.Entry[schemas.TaskState]) error {
		s := e.Value
		last[s.Agent] = s
		if s.Phase == schemas.TaskReady {
			ready[s.Agent] = schemas.Peer{Agent: s.Agent, Endpoint: s.Endpoint, Clock: s.Clock, Clients: clientsOf[s.Agent]}
			if len(ready) == len(tasks) {
				start := schemas.Start{At: time.Now().Add(100 * time.Millisecond), Key: []byte("a secret of this trial")}
				for _, name := range []string{"agent-1", "agent-2"} {
					start.Peers = append(start.Peers, ready[name])
				}
				_, err := starts.Put(watch, schemas.StartKey(tasks[0].Run, 0, 1), start)
				return err
			}
		}
		first, second := last["agent-1"], last["agent-2"]
		if first.Ended() && second.Ended() {
			stop()
		}
		return nil
	})
	if err != nil && watch.Err() == nil {
		t.Fatal(err)
	}
	for _, s := range tr.stations {
		state, want := last[s.name], uint64(len(s.clients))
		if r := state.Result; state.Phase != schemas.TaskDone || r.Issued != want || r.Errors != 0 || r.Bytes != want*200_000 || r.Recorded != r.Acknowledged {
			t.Errorf("%s: %+v", s.name, state)
		}
	}
	stream, err := operator.EventStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stream.Last == 0 {
		t.Errorf("no events on the bus: %+v", stream)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	service := Service()
	parser, err := kong.New(&struct{}{}, kong.Embed(service.Config))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := parser.Parse([]string{"--swarm-dir", dir, "--address", "127.0.0.7"}); err != nil {
		t.Fatal(err)
	}
	cfg := service.Config.(*Config)
	if err := cfg.Validate(); err != nil || cfg.dir() != dir || cfg.Address != "127.0.0.7" {
		t.Errorf("%+v, %v", cfg, err)
	}
	cfg.WorkDir, cfg.Parallel = filepath.Join(dir, "absent"), 0
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "--swarm-dir") || !strings.Contains(err.Error(), "--parallel") {
		t.Errorf("%v, want every fault", err)
	}
}
