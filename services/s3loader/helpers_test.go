package s3loader

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// section is a small closed loop; change alters it.
func section(change func(*schemas.S3)) schemas.S3 {
	s := schemas.S3{Buckets: []string{"bucket1", "bucket2"}, Size: 100_000, Requests: 8, Objects: 2}
	if change != nil {
		change(&s)
	}
	s.SetDefaults()
	return s
}

func task(t testing.TB, s schemas.S3, clients int) *schemas.Task {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	tk := &schemas.Task{
		Run: uuid.Must(uuid.NewV7()), Trial: 3, Attempt: 1, Workload: schemas.WorkloadS3, Agent: "agent-1",
		Section: data, Seed: 7, Timeout: time.Minute,
	}
	for i := range clients {
		tk.Clients = append(tk.Clients, schemas.Client{Index: i, Group: "g", Site: "oregon", Labels: map[string]string{"instance_type": "t3.small"}})
	}
	return tk
}

func config(srv *embedded.Server) Config {
	c := srv.Credentials()
	cfg := DefaultConfig()
	cfg.Endpoint, cfg.Region, cfg.AccessKey, cfg.SecretKey = srv.Endpoint(), srv.Region(), c.AccessKey, c.SecretKey
	return cfg
}

// log is what a job has recorded.
type log struct {
	mu     sync.Mutex
	events []schemas.Event
	seen   func(n int)
}

func (l *log) record(e *schemas.Event) error {
	if err := e.Validate(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := *e
	c.Attrs = slices.Clone(e.Attrs)
	l.events = append(l.events, c)
	if l.seen != nil {
		l.seen(len(l.events))
	}
	return nil
}

func (l *log) statuses() map[string]int {
	counts := map[string]int{}
	for i := range l.events {
		counts[l.events[i].Status]++
	}
	return counts
}

func attr(e *schemas.Event, key string) string {
	for _, a := range e.Attrs {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

// run prepares and runs a task to its end.
func run(t testing.TB, cfg Config, tk *schemas.Task) (*log, schemas.TaskResult) {
	t.Helper()
	l := &log{}
	res, err := runWith(t, t.Context(), cfg, tk, l, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l, res
}

// runWith calls prepared between preparation and start.
func runWith(t testing.TB, ctx context.Context, cfg Config, tk *schemas.Task, l *log, prepared func()) (schemas.TaskResult, error) {
	t.Helper()
	job, err := NewWorker(cfg, slog.New(slog.DiscardHandler)).Prepare(ctx, tk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := job.Close(); err != nil {
			t.Error(err)
		}
	}()
	if prepared != nil {
		prepared()
	}
	var last schemas.Progress
	res, err := job.Run(ctx, agent.Start{At: time.Now()}, l.record, func(p schemas.Progress) { last = p })
	if int(res.Issued) != len(l.events) {
		t.Errorf("%d requests issued, %d events", res.Issued, len(l.events))
	}
	if last.Done != res.Issued || last.Errors != res.Errors || last.Bytes != res.Bytes {
		t.Errorf("last progress %+v does not agree with the result %+v", last, res)
	}
	return res, err
}

func durations(l *log, of func(*schemas.Event) time.Duration) []time.Duration {
	var out []time.Duration
	for i := range l.events {
		out = append(out, of(&l.events[i]))
	}
	slices.Sort(out)
	return out
}

func quantile[T cmp.Ordered](sorted []T, q float64) T {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func service(e *schemas.Event) time.Duration   { return e.Duration }
func corrected(e *schemas.Event) time.Duration { return e.Wait + e.Duration }

// startServer returns a store and the configuration of a loader for it.
func startServer(t testing.TB, options ...func(*embedded.Options)) (*embedded.Server, Config) {
	t.Helper()
	srv := s3test.Start(t, options...)
	return srv, config(srv)
}
