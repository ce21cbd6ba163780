// Package agenttest gives the tests of a measuring service what is around it: a
// real bus with a clock to go by, agents on it, and a scheduler for one trial.
package agenttest

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
)

// Bus runs a bus until the test ends, with the scheduler's clock on it, which is
// this machine's. The connection is an operator's.
func Bus(t testing.TB) (*embedded.Server, *bus.Conn) {
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

// Serve runs a service until the test ends; it returns when the service is ready
// for tasks.
func Serve(t testing.TB, server *embedded.Server, service node.Service) {
	t.Helper()
	n, err := node.New(service, "1.0.0", bustest.Join(t, server, service.Role), prometheus.NewRegistry(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		// Nobody waits for a service to be ready that has ended.
		defer cancel()
		ended <- service.Run(ctx, n)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	if err := n.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// startAhead is how long before a trial's start its agents are told of it.
const startAhead = 200 * time.Millisecond

// Conduct plays the scheduler for the tasks of one trial, one for each agent, and
// returns how they ended, by agent. Tasks that have not ended after patience, and
// a trial without any event on the bus, fail the test.
func Conduct(t testing.TB, operator *bus.Conn, tasks []*schemas.Task, patience time.Duration) map[string]schemas.TaskState {
	t.Helper()
	states, err := bus.OpenBucket[schemas.TaskState](t.Context(), operator, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	starts, err := bus.OpenBucket[schemas.Start](t.Context(), operator, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if err := operator.Publish(t.Context(), bus.SubjectTasks(task.Agent), task.Key(), task); err != nil {
			t.Fatal(err)
		}
	}
	watch, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	ready, last := map[string]schemas.TaskState{}, map[string]schemas.TaskState{}
	ended := func() bool {
		for _, task := range tasks {
			if s := last[task.Agent]; !s.Ended() {
				return false
			}
		}
		return true
	}
	err = states.Watch(watch, "task.>", func(e bus.Entry[schemas.TaskState]) error {
		s := e.Value
		last[s.Agent] = s
		if ended() {
			stop()
			return nil
		}
		if s.Phase != schemas.TaskReady {
			return nil
		}
		if ready[s.Agent] = s; len(ready) < len(tasks) {
			return nil
		}
		start := schemas.Start{At: time.Now().Add(startAhead), Key: []byte("a secret of this trial")}
		for _, task := range tasks {
			r := ready[task.Agent]
			start.Peers = append(start.Peers, schemas.Peer{Agent: task.Agent, Endpoint: r.Endpoint, Clock: r.Clock, Clients: task.Clients})
		}
		_, err := starts.Put(watch, schemas.StartKey(tasks[0].Run, tasks[0].Trial, tasks[0].Attempt), start)
		return err
	})
	if !ended() {
		t.Fatalf("the trial has not ended after %s at most: %v: %+v", patience, err, last)
	}
	stream, err := operator.EventStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stream.Last == 0 {
		t.Errorf("no events on the bus: %+v", stream)
	}
	return last
}
