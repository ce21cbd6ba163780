package prober

import (
	"context"
	"log/slog"
	"os"
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
func serve(t testing.TB, server *embedded.Server, name string) {
	t.Helper()
	service := Service()
	n, err := node.New(service, "1.0.0", bustest.Join(t, server, service.Role), prometheus.NewRegistry(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Name, cfg.Site = name, "oregon"
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

// startBus runs a bus with a clock to go by.
func startBus(t testing.TB) (*embedded.Server, *bus.Conn) {
	t.Helper()
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
	return server, operator
}

// conduct plays the scheduler for one trial and returns how its tasks ended.
func conduct(t testing.TB, operator *bus.Conn, tasks []*schemas.Task, patience time.Duration) map[string]schemas.TaskState {
	t.Helper()
	states, err := bus.OpenBucket[schemas.TaskState](t.Context(), operator, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	starts, err := bus.OpenBucket[schemas.Start](t.Context(), operator, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	clients := map[string][]schemas.Client{}
	for _, tk := range tasks {
		if err := operator.Publish(t.Context(), bus.SubjectTasks(tk.Agent), tk.Key(), tk); err != nil {
			t.Fatal(err)
		}
		clients[tk.Agent] = tk.Clients
	}
	watch, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	ready, last := map[string]schemas.Peer{}, map[string]schemas.TaskState{}
	err = states.Watch(watch, "task.>", func(e bus.Entry[schemas.TaskState]) error {
		s := e.Value
		last[s.Agent] = s
		if s.Phase == schemas.TaskReady {
			ready[s.Agent] = schemas.Peer{Agent: s.Agent, Endpoint: s.Endpoint, Clock: s.Clock, Clients: clients[s.Agent]}
			if len(ready) == len(tasks) {
				start := schemas.Start{At: time.Now().Add(200 * time.Millisecond), Key: []byte("a secret of this trial")}
				for _, p := range ready {
					start.Peers = append(start.Peers, p)
				}
				_, err := starts.Put(watch, schemas.StartKey(tasks[0].Run, tasks[0].Trial, tasks[0].Attempt), start)
				return err
			}
		}
		ended := 0
		for _, s := range last {
			if s.Ended() {
				ended++
			}
		}
		if ended == len(tasks) {
			stop()
		}
		return nil
	})
	if err != nil && watch.Err() == nil {
		t.Fatal(err)
	}
	return last
}

// The whole service on a real bus: two agents are given a task each, learn of
// each other, and account for every probe.
func TestService(t *testing.T) {
	t.Parallel()
	server, operator := startBus(t)
	tr := &trial{section: section(nil), members: []*member{
		{name: "agent-1", site: "oregon", clients: []int{0, 1}}, {name: "agent-2", site: "oregon", clients: []int{2}},
	}}
	for _, m := range tr.members {
		serve(t, server, m.name)
	}
	// For the tasks only: the jobs that matter are the services' own.
	tr.prepare(t, t.Context())
	states := conduct(t, operator, []*schemas.Task{tr.members[0].task, tr.members[1].task}, 30*time.Second)
	for _, m := range tr.members {
		s := states[m.name]
		want := uint64(len(m.clients) * 2 * 6 * 5)
		if r := s.Result; s.Phase != schemas.TaskDone || r.Issued != want || r.Recorded != want+1 || r.Acknowledged != want+1 || r.Errors != 0 {
			t.Errorf("%s: %+v", m.name, s)
		}
		if len(s.Endpoint.Ports) != 5 || s.Endpoint.Address != "127.0.0.1" {
			t.Errorf("%s: %+v", m.name, s.Endpoint)
		}
	}
	stream, err := operator.EventStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stream.Last == 0 {
		t.Fatalf("no events on the bus: %+v", stream)
	}
}

func TestConfig(t *testing.T) {
	service := Service()
	parser, err := kong.New(&struct{}{}, kong.Embed(service.Config))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"--probe-ca-file=/ca.pem", "--site=oregon", "--address=192.0.2.1"}); err != nil {
		t.Fatal(err)
	}
	if cfg := service.Config.(*Config); cfg.CAFile != "/ca.pem" || cfg.Site != "oregon" || cfg.Address != "192.0.2.1" {
		t.Errorf("%+v", cfg)
	}
}

func TestConfigFaults(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"/no/such/file", empty} {
		bad := DefaultConfig()
		bad.Site, bad.Parallel, bad.CAFile = "Not A Site", 0, file
		err := bad.Validate()
		if err == nil {
			t.Fatal("no error")
		}
		for _, want := range []string{"--site", "--parallel", "--probe-ca-file", file} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: does not say %q", err, want)
			}
		}
	}
}
