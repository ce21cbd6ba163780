package bus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/schemas"
)

func task(agent string) *schemas.Task {
	return &schemas.Task{
		Run: uuid.New(), Attempt: 1, Workload: "s3", Agent: agent, Timeout: time.Minute, Clients: []schemas.Client{{Site: "oregon"}},
	}
}

func TestConsumeAcknowledges(t *testing.T) {
	s := bustest.Start(t)
	scheduler, agent := bustest.Join(t, s, bus.RoleScheduler), bustest.Join(t, s, bus.RoleAgent)
	sent := task("one")
	for range 2 { // the second is a repetition
		if err := scheduler.Publish(t.Context(), bus.SubjectTasks("one"), sent.Key(), sent); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var tries atomic.Int32
	got := make(chan schemas.Task, 4)
	done := make(chan error, 1)
	go func() {
		done <- bus.Consume(ctx, agent, bus.Consumption{Stream: bus.StreamTasks, Durable: "agent-one", Subject: bus.SubjectTasks("one")},
			func(_ context.Context, m schemas.Task) error {
				if tries.Add(1) == 1 {
					return errors.New("not now")
				}
				got <- m
				return nil
			})
	}()
	if m := <-got; m.Key() != sent.Key() {
		t.Errorf("got task %s", m.Key())
	}
	// A second task after it proves that the first came once more and no more.
	next := task("one")
	if err := scheduler.Publish(t.Context(), bus.SubjectTasks("one"), next.Key(), next); err != nil {
		t.Fatal(err)
	}
	if m := <-got; m.Key() != next.Key() {
		t.Errorf("got task %s, want the second one", m.Key())
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := tries.Load(); n != 3 {
		t.Errorf("handled %d times, want 3", n)
	}
}

func TestRejectedMessageIsKept(t *testing.T) {
	s := bustest.Start(t)
	operator, agent := bustest.Join(t, s, bus.RoleOperator), bustest.Join(t, s, bus.RoleAgent)
	sent := task("one")
	if err := operator.Publish(t.Context(), bus.SubjectTasks("one"), sent.Key(), sent); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		_ = bus.Consume(ctx, agent, bus.Consumption{Stream: bus.StreamTasks, Durable: "agent-one", Subject: bus.SubjectTasks("one")},
			func(context.Context, schemas.Task) error { return fmt.Errorf("%w: no such thing\nat all", bus.ErrDrop) })
	}()
	dead := make(chan schemas.Task, 1)
	err := bus.Consume(ctx, operator, bus.Consumption{Stream: bus.StreamDead, Durable: "dead", Subject: bus.SubjectDead(bus.StreamTasks)},
		func(_ context.Context, m schemas.Task) error {
			dead <- m
			stop()
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	if m := <-dead; m.Key() != sent.Key() {
		t.Errorf("dead letter %s", m.Key())
	}
}

func TestBucketCompareAndSet(t *testing.T) {
	s := bustest.Start(t)
	b, err := bus.OpenBucket[schemas.Run](t.Context(), bustest.Join(t, s, bus.RoleScheduler), bus.BucketRuns)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), "absent"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("get of an absent key: %v", err)
	}
	first, err := b.Create(t.Context(), "run", schemas.Run{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), "run", schemas.Run{Name: "two"}); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("create of a present key: %v", err)
	}
	if _, err := b.Update(t.Context(), "run", schemas.Run{Name: "three"}, first); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Update(t.Context(), "run", schemas.Run{Name: "four"}, first); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("update of an old revision: %v", err)
	}
	all, err := b.List(t.Context(), ">")
	if err != nil || len(all) != 1 || all[0].Value.Name != "three" {
		t.Errorf("list: %+v, %v", all, err)
	}
	if err := b.Delete(t.Context(), "run"); err != nil {
		t.Fatal(err)
	}
	if all, err := b.List(t.Context(), ">"); err != nil || len(all) != 0 {
		t.Errorf("list after delete: %+v, %v", all, err)
	}
}

func TestRequests(t *testing.T) {
	s := bustest.Start(t)
	serving, asking := bustest.Join(t, s, bus.RoleScheduler), bustest.Join(t, s, bus.RoleGateway)
	r, err := serving.Register("scheduler", "1.2.3", "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	err = bus.Respond(t.Context(), r, "submit", bus.SubjectSubmit, func(_ context.Context, q schemas.Submit) (schemas.Run, error) {
		switch q.File {
		case "refuse":
			return schemas.Run{}, &bus.RequestError{Code: "conflict", Text: "no\nway"}
		case "break":
			return schemas.Run{}, errors.New("broken")
		}
		return schemas.Run{Name: q.File}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	run, err := bus.Request[schemas.Run](ctx, asking, bus.SubjectSubmit, &schemas.Submit{File: "hello"})
	if err != nil || run.Name != "hello" {
		t.Errorf("reply %+v, %v", run, err)
	}
	for file, code := range map[string]string{"refuse": "conflict", "break": "internal"} {
		_, err := bus.Request[schemas.Run](ctx, asking, bus.SubjectSubmit, &schemas.Submit{File: file})
		var refused *bus.RequestError
		if !errors.As(err, &refused) || refused.Code != code {
			t.Errorf("%s: %v, want a refusal %q", file, err, code)
		}
	}
	if _, err := bus.Request[schemas.Run](ctx, asking, bus.SubjectCancel, &schemas.RunRef{Run: uuid.New()}); err == nil || !strings.Contains(err.Error(), "no service answers") {
		t.Errorf("request nobody serves: %v", err)
	}
	if _, err := bus.Request[schemas.Run](ctx, asking, bus.SubjectSubmit, &schemas.Submit{}); err == nil {
		t.Error("an invalid request was sent")
	}
}

// A role must not be able to do another's work.
func TestPermissions(t *testing.T) {
	s := bustest.Start(t)
	agent, gateway, collector := bustest.Join(t, s, bus.RoleAgent), bustest.Join(t, s, bus.RoleGateway), bustest.Join(t, s, bus.RoleCollector)
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if err := agent.Publish(short(), bus.SubjectTasks("other"), "x", task("other")); err == nil {
		t.Error("an agent hands out tasks")
	}
	if _, err := bus.OpenBucket[schemas.Run](short(), agent, bus.BucketRuns); err == nil {
		t.Error("an agent reads runs")
	}
	if err := gateway.Publish(short(), bus.SubjectTasks("other"), "x", task("other")); err == nil {
		t.Error("the gateway hands out tasks")
	}
	if err := gateway.PublishBatch(short(), "s3-loader", "id", bus.FormatNative, []byte("x")); err == nil {
		t.Error("the gateway publishes events")
	}
	if err := collector.PublishBatch(short(), "s3-loader", "id", bus.FormatNative, []byte("x")); err == nil {
		t.Error("the collector publishes events")
	}
	detector, edge := bustest.Join(t, s, bus.RoleDetector), bustest.Join(t, s, bus.RoleEdge)
	if err := detector.Publish(short(), bus.SubjectClips("pi"), "x", &schemas.ClipOffer{ID: "a", Edge: "pi"}); err == nil {
		t.Error("a detector queues clips")
	}
	if err := edge.Publish(short(), bus.SubjectClips("pi"), "x", &schemas.ClipOffer{ID: "a", Edge: "pi"}); err == nil {
		t.Error("an edge queues clips")
	}
	if _, err := bus.OpenBucket[schemas.EdgeAccount](short(), detector, bus.BucketEdges); err == nil {
		t.Error("a detector reads the accounts of edges")
	}
	if err := agent.PurgeEvents(short(), 10); err == nil {
		t.Error("an agent purges events")
	}
	starts, err := bus.OpenBucket[schemas.Start](t.Context(), agent, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := starts.Put(short(), "start.x.0.1", schemas.Start{At: time.Now()}); err == nil {
		t.Error("an agent starts trials")
	}
	if err := agent.PublishBatch(t.Context(), "s3-loader", "id", bus.FormatNative, []byte("x")); err != nil {
		t.Errorf("an agent cannot publish events: %v", err)
	}
}

func TestWrongPassword(t *testing.T) {
	s := bustest.Start(t)
	_, err := bus.Connect(t.Context(), bus.Options{URL: s.URL(), User: bus.RoleAgent, Password: "guess"})
	if err == nil || !strings.Contains(err.Error(), "refuses these credentials") || strings.Contains(err.Error(), "guess") {
		t.Errorf("error %v", err)
	}
}

func TestServerKeepsCredentialsAndMessages(t *testing.T) {
	dir := t.TempDir()
	s := bustest.StartIn(t, dir, 0)
	password := s.Password(bus.RoleAgent)
	c := bustest.Join(t, s, bus.RoleOperator)
	if err := c.PublishBatch(t.Context(), "s3-loader", "batch-1", bus.FormatNative, []byte("x")); err != nil {
		t.Fatal(err)
	}
	bustest.Close(t, c)
	s.Close()
	info, err := os.Stat(filepath.Join(dir, "credentials.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials: %v, %v", info, err)
	}
	s = bustest.StartIn(t, dir, 0)
	t.Cleanup(s.Close)
	if s.Password(bus.RoleAgent) != password {
		t.Error("another password after a restart")
	}
	c = bustest.Join(t, s, bus.RoleOperator)
	// The same id again: the window outlives the server.
	if err := c.PublishBatch(t.Context(), "s3-loader", "batch-1", bus.FormatNative, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if state, err := c.EventStream(t.Context()); err != nil || state.Last != 1 {
		t.Errorf("stream %+v, %v; want the batch once", state, err)
	}
}

func TestTakenPort(t *testing.T) {
	s := bustest.Start(t)
	port := 0
	if _, err := fmt.Sscanf(s.URL()[strings.LastIndex(s.URL(), ":")+1:], "%d", &port); err != nil {
		t.Fatal(err)
	}
	_, err := embedded.Start(t.Context(), embedded.Options{Dir: t.TempDir(), Port: port})
	var taken *embedded.PortError
	if !errors.As(err, &taken) || taken.Port != port {
		t.Errorf("error %v, want port %d named", err, port)
	}
}

func TestToken(t *testing.T) {
	if got := bus.Token("a.b c*>é-Z_9"); got != "a_b_c___-Z_9" {
		t.Errorf("token %q", got)
	}
}
