package gateway

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	migrations "github.com/transferlab/transferlab/schemas/clickhouse"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
	"github.com/transferlab/transferlab/services/internal/plan"
)

func TestMain(m *testing.M) { chtest.Main(m) }

const testToken = "a-token-of-more-than-20-characters"

// rig is a gateway on a bus of its own and the package's database.
type rig struct {
	t        testing.TB
	nats     *embedded.Server
	operator *bus.Conn
	runs     *bus.Bucket[schemas.Run]
	tasks    *bus.Bucket[schemas.TaskState]
	gateway  *Gateway
	client   *client.Client
	url      string
	insert   *clickhouse.Inserter
}

var migrated sync.Once

func newRig(t testing.TB, edit func(*Config)) *rig {
	t.Helper()
	server := chtest.Start(t)
	var failure error
	migrated.Do(func() { failure = clickhouse.Migrate(t.Context(), chtest.Conn(t), migrations.Migrations) })
	if failure != nil {
		t.Fatal(failure)
	}
	r := &rig{t: t, nats: bustest.Start(t)}
	r.operator = bustest.Join(t, r.nats, bus.RoleOperator)
	r.runs = must(bus.OpenBucket[schemas.Run](t.Context(), r.operator, bus.BucketRuns))
	r.tasks = must(bus.OpenBucket[schemas.TaskState](t.Context(), r.operator, bus.BucketTrials))
	r.insert = must(clickhouse.NewInserter(server.LabDSN()))
	t.Cleanup(func() { _ = r.insert.Close() })

	cfg := DefaultConfig()
	cfg.Listen, cfg.Token = "127.0.0.1:0", testToken
	cfg.ClickHouse, cfg.ClickHouseWriter = server.ReaderDSN(), server.LabDSN()
	cfg.Settle = time.Second
	if edit != nil {
		edit(&cfg)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	registry := prometheus.NewRegistry()
	n := must(node.New(node.Service{Name: "gateway", Short: "test"}, "0.1.0", bustest.Join(t, r.nats, bus.RoleGateway), registry, log))
	r.gateway = New(cfg, n)
	r.gateway.Observe(node.Handler(registry, n))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.gateway.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != context.Canceled {
			t.Errorf("the gateway ended with %v", err)
		}
	})
	ready, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := n.AwaitReady(ready); err != nil {
		t.Fatalf("%v; %v", err, n.Health())
	}
	r.url = "http://" + r.gateway.Addr().String()
	r.client = must(client.New(r.url, cfg.Token))
	return r
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// request sends a request with the token and returns the answer.
func (r *rig) request(method, path, body string, header ...string) *http.Response {
	r.t.Helper()
	req := must(http.NewRequestWithContext(r.t.Context(), method, r.url+path, strings.NewReader(body)))
	req.Header.Set("Authorization", "Bearer "+testToken)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// scheduler answers as the scheduler does, without ever executing anything.
type scheduler struct {
	r     *rig
	mu    sync.Mutex
	asked []string
}

func (r *rig) startScheduler() *scheduler {
	r.t.Helper()
	conn := bustest.Join(r.t, r.nats, bus.RoleScheduler)
	registration := must(conn.Register("scheduler", "0.1.0", "test", nil))
	r.t.Cleanup(func() { _ = registration.Stop() })
	s := &scheduler{r: r}
	runs := must(bus.OpenBucket[schemas.Run](r.t.Context(), conn, bus.BucketRuns))
	schedules := must(bus.OpenBucket[schemas.Recurring](r.t.Context(), conn, bus.BucketSchedules))
	change := func(to string, from ...string) func(context.Context, schemas.RunRef) (schemas.Run, error) {
		return func(ctx context.Context, q schemas.RunRef) (schemas.Run, error) {
			e, err := runs.Get(ctx, q.Run.String())
			if err != nil {
				return e.Value, &bus.RequestError{Code: "not_found", Text: "no run " + q.Run.String()}
			}
			if !slices.Contains(from, e.Value.State) {
				return e.Value, &bus.RequestError{Code: "conflict", Text: "run is " + e.Value.State}
			}
			e.Value.State = to
			_, err = runs.Put(ctx, q.Run.String(), e.Value)
			return e.Value, err
		}
	}
	ctx := r.t.Context()
	for _, err := range []error{
		bus.Respond(ctx, registration, "submit", bus.SubjectSubmit, func(ctx context.Context, q schemas.Submit) (schemas.Run, error) {
			run, err := newRun(q.File, q.Seed)
			if err != nil {
				return run, &bus.RequestError{Code: "invalid", Text: err.Error()}
			}
			_, err = runs.Create(ctx, run.ID.String(), run)
			return run, err
		}),
		bus.Respond(ctx, registration, "cancel", bus.SubjectCancel, change(schemas.RunCancelled, schemas.RunQueued, schemas.RunRunning)),
		bus.Respond(ctx, registration, "resume", bus.SubjectResume, change(schemas.RunQueued, schemas.RunCancelled, schemas.RunFailed)),
		bus.Respond(ctx, registration, "schedule", bus.SubjectSchedule, func(ctx context.Context, q schemas.Recurring) (schemas.Recurring, error) {
			s.mu.Lock()
			s.asked = append(s.asked, q.Name+" "+q.Cron)
			s.mu.Unlock()
			if q.Cron == "" {
				return q, schedules.Delete(ctx, q.Name)
			}
			if q.Cron == "nonsense" {
				return q, &bus.RequestError{Code: "invalid", Text: `schedule.cron: "nonsense", want five fields`}
			}
			_, err := schedules.Put(ctx, q.Name, q)
			return q, err
		}),
	} {
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return s
}

func newRun(file string, seed uint64) (schemas.Run, error) {
	e, err := schemas.ParseExperiment([]byte(file))
	if err != nil {
		return schemas.Run{}, err
	}
	p, err := plan.New(e, seed)
	if err != nil {
		return schemas.Run{}, err
	}
	return schemas.Run{
		ID: uuid.Must(uuid.NewV7()), Name: e.Name, Workload: e.Workload, Seed: p.Seed, ScheduleHash: p.Hash, File: file,
		State: schemas.RunQueued, Created: time.Now().UTC(), Trials: len(p.Trials), Version: "0.1.0",
	}, nil
}

// request is one synthetic request of a made run.
type madeRequest struct {
	trial                     uint32
	cell                      int
	agent, site, status       string
	at                        time.Duration // after the start
	wait, firstByte, duration time.Duration
	bytes                     uint64
}

// made is a run whose every number is known.
type made struct {
	run      schemas.Run
	plan     *plan.Plan
	requests []madeRequest
	started  map[uint32]time.Time // by trial
	states   map[string]schemas.TaskState
	events   map[string][]schemas.Event // by producer
}

// making says how to make a run.
type making struct {
	file string
	seed uint64
	// requests of one trial on one agent.
	requests int
	failing  float64 // share
	slower   float64 // factor on durations; 0 is 1
	// edit may change what is stored and said, before it is.
	edit func(*made)
}

const madeFile = `name: made
workload: s3
groups:
  - {site: oregon, clients: 3}
  - {site: dublin, clients: 2}
matrix:
  size: [100kB, 1MB]
  wait: [0s, 2s]
trials: {repeat: 3}
thresholds:
  - {metric: service_p99, max: 10s}
  - {metric: error_rate, max: "0.5", where: {size: 1000kB}}
  - {metric: bytes_per_s, min: 1kB/s}
s3:
  buckets: [bucket1, bucket2, bucket3]
  size: 1MB
  requests: 10
`

// make stores the events of a made run, its task states and its document.
func (r *rig) make(m making) *made {
	r.t.Helper()
	if m.slower == 0 {
		m.slower = 1
	}
	run, err := newRun(m.file, m.seed)
	if err != nil {
		r.t.Fatal(err)
	}
	e := must(schemas.ParseExperiment([]byte(m.file)))
	x := &made{
		run: run, plan: must(plan.New(e, run.Seed)), started: map[uint32]time.Time{},
		states: map[string]schemas.TaskState{}, events: map[string][]schemas.Event{},
	}
	random := rand.New(rand.NewPCG(run.Seed, 7))
	start := time.Now().UTC().Add(-time.Hour).Truncate(time.Millisecond)
	agents := map[string]string{}
	for _, g := range e.Groups {
		agents[g.Site] = g.Site + "-1"
	}
	for i := range x.plan.Trials {
		t := &x.plan.Trials[i]
		start = start.Add(time.Minute)
		x.started[t.Index] = start
		for _, g := range t.Groups {
			agent := agents[g.Site]
			producer := agent + "/" + run.ID.String()[24:]
			// Each agent's clock is its own.
			offset := time.Duration(len(agent)) * time.Second
			state := schemas.TaskState{
				Agent: agent, Start: "s", Phase: schemas.TaskDone, Clock: schemas.Clock{Offset: -offset, Bound: 200 * time.Microsecond},
				Result: schemas.TaskResult{
					Producer: producer, LagP50: 10 * time.Microsecond,
					LagP99: time.Duration(100+random.IntN(900)) * time.Microsecond, LagMax: 2 * time.Millisecond, CPU: .1,
				},
			}
			for range m.requests {
				q := madeRequest{
					trial: t.Index, cell: t.Cell, agent: agent, site: g.Site, status: schemas.StatusOK,
					at: time.Duration(random.IntN(5_000_000_000)), wait: time.Duration(random.IntN(1_000_000)),
					duration: time.Duration(m.slower * (1e6 + float64(t.Cell)*1e6 + random.ExpFloat64()*5e6)), bytes: 1_000_000,
				}
				q.firstByte = q.duration / 4
				if random.Float64() < m.failing {
					q.status, q.bytes = []string{schemas.StatusTimeout, schemas.StatusReset}[random.IntN(2)], 0
					q.firstByte = 0
					state.Result.Errors++
				}
				state.Result.Issued++
				state.Result.Bytes += q.bytes
				x.requests = append(x.requests, q)
				x.events[producer] = append(x.events[producer], schemas.Event{
					Intended: start.Add(offset + q.at), Run: run.ID, Trial: t.Index, Attempt: 1, Workload: "s3", Service: "s3-loader",
					Site: q.site, Agent: agent, Kind: schemas.KindRequest, Wait: q.wait, FirstByte: q.firstByte, Duration: q.duration,
					Bytes: q.bytes, Status: q.status, Attrs: []schemas.Attr{
						{Key: "bucket", Value: fmt.Sprintf("bucket%d", 1+random.IntN(3))}, {Key: "op", Value: "get"}, {Key: "size", Value: "1000000"},
					},
				})
			}
			state.Result.Recorded = state.Result.Issued + 1
			state.Result.Acknowledged = state.Result.Recorded
			x.events[producer] = append(x.events[producer], schemas.Event{
				Intended: start.Add(offset), Run: run.ID, Trial: t.Index, Attempt: 1, Workload: "s3", Service: "s3-loader", Site: "*",
				Agent: agent, Kind: schemas.KindTask, Duration: 6 * time.Second, Status: schemas.StatusOK, Attrs: []schemas.Attr{
					{Key: "issued", Value: fmt.Sprint(state.Result.Issued)},
					{Key: "recorded", Value: fmt.Sprint(state.Result.Recorded)},
					{Key: "lag_p50_ns", Value: fmt.Sprint(int64(state.Result.LagP50))},
					{Key: "lag_p99_ns", Value: fmt.Sprint(int64(state.Result.LagP99))},
					{Key: "lag_max_ns", Value: fmt.Sprint(int64(state.Result.LagMax))},
					{Key: "cpu", Value: "0.1000"},
					{Key: "clock_bound_ns", Value: "200000"},
					{Key: "clock_offset_ns", Value: fmt.Sprint(int64(-offset))},
				},
			})
			x.states[fmt.Sprintf("task.%s.%d.1.%s", run.ID, t.Index, agent)] = state
			x.run.Placements = placed(x.run.Placements, schemas.Placement{Group: g.Name, Site: g.Site, Agent: agent})
		}
		x.events["scheduler/"+run.ID.String()[24:]] = append(x.events["scheduler/"+run.ID.String()[24:]], schemas.Event{
			Intended: start, Run: run.ID, Trial: t.Index, Attempt: 1, Workload: "s3", Service: "scheduler", Kind: schemas.KindTrial,
			Duration: 7 * time.Second, Status: schemas.StatusOK,
			Attrs: []schemas.Attr{{Key: "cell", Value: fmt.Sprint(t.Cell)}, {Key: "repeat", Value: fmt.Sprint(t.Repeat)}},
		})
	}
	x.run.State, x.run.TrialsDone = schemas.RunDone, x.run.Trials
	x.run.Started, x.run.Finished = x.started[0], start.Add(time.Minute)
	if m.edit != nil {
		m.edit(x)
	}
	for producer, events := range x.events {
		block := schemas.NewBlock(producer)
		for i := range events {
			block.Append(&events[i], uint64(i+1))
		}
		r.store(producer, must(block.Encode()))
	}
	for key, state := range x.states {
		if _, err := r.tasks.Put(r.t.Context(), key, state); err != nil {
			r.t.Fatal(err)
		}
	}
	if _, err := r.runs.Put(r.t.Context(), x.run.ID.String(), x.run); err != nil {
		r.t.Fatal(err)
	}
	// `latest` follows the bucket a moment later.
	for deadline := time.Now().Add(10 * time.Second); !r.lists(x.run.ID); {
		if time.Now().After(deadline) {
			r.t.Fatal("the gateway does not list a run that is stored")
		}
		runtime.Gosched()
	}
	return x
}

func (r *rig) lists(id uuid.UUID) bool {
	all := r.gateway.index.newest(func(run *schemas.Run) bool { return run.ID == id })
	return len(all) == 1
}

func placed(all []schemas.Placement, p schemas.Placement) []schemas.Placement {
	if slices.Contains(all, p) {
		return all
	}
	return append(all, p)
}

func (r *rig) store(name string, block []byte) {
	r.t.Helper()
	if len(block) == 0 {
		return
	}
	if err := r.insert.Insert(r.t.Context(), "events", uuid.NewString()+name, [][]byte{block}); err != nil {
		r.t.Fatal(err)
	}
}

// quantile is the definition the reports state: rank floor(p*n), from 0.
func quantile[T cmp.Ordered](values []T, p float64) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}
