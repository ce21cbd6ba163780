package swarmrunner

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// TestMain lets the test binary be the process of a peer.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == PeerCommand {
		os.Exit(RunPeer())
	}
	os.Exit(m.Run())
}

// station is an agent of a trial.
type station struct {
	name    string
	address string // empty: alone on the loopback interface
	clients []schemas.Client

	job    agent.Job
	events log
	last   schemas.Progress
	result schemas.TaskResult
	err    error
}

// log is what a job has recorded.
type log struct {
	mu     sync.Mutex
	events []schemas.Event
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
	return nil
}

func (l *log) of(kind string) []*schemas.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []*schemas.Event
	for i := range l.events {
		if l.events[i].Kind == kind {
			found = append(found, &l.events[i])
		}
	}
	return found
}

func attr(e *schemas.Event, key string) string {
	for _, a := range e.Attrs {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

func value(t testing.TB, e *schemas.Event, key string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(attr(e, key), 10, 64)
	if err != nil {
		t.Errorf("%s of %s: %v", key, e.Kind, err)
	}
	return n
}

// trial is a swarm on one agent or several in this process.
type trial struct {
	section  schemas.Swarm
	stations []*station
	seed     uint64
	index    uint32
	timeout  time.Duration
	dir      string
	// started is called when the jobs run.
	started func()
}

// clients are so many of a group, numbered from first.
func clients(group string, first, n int) []schemas.Client {
	all := make([]schemas.Client, n)
	for i := range all {
		all[i] = schemas.Client{Index: first + i, Group: group, Site: group}
	}
	return all
}

// alone is a trial of one agent with so many leechers.
func alone(leechers int, section schemas.Swarm) *trial {
	return &trial{section: section, stations: []*station{{name: "agent-1", clients: clients("home", 0, leechers)}}}
}

// tasks are what the scheduler would hand out.
func (tr *trial) tasks(t testing.TB) []*schemas.Task {
	t.Helper()
	tr.section.SetDefaults()
	data, err := json.Marshal(tr.section)
	if err != nil {
		t.Fatal(err)
	}
	if tr.timeout == 0 {
		tr.timeout = time.Minute
	}
	run := uuid.Must(uuid.NewV7())
	var tasks []*schemas.Task
	for _, s := range tr.stations {
		tasks = append(tasks, &schemas.Task{
			Run: run, Trial: tr.index, Attempt: 1, Workload: schemas.WorkloadSwarm, Agent: s.name, Clients: s.clients,
			Section: data, Seed: tr.seed, Timeout: tr.timeout, Agents: len(tr.stations),
		})
	}
	return tasks
}

func (tr *trial) prepare(t testing.TB, ctx context.Context) {
	t.Helper()
	for i, task := range tr.tasks(t) {
		s := tr.stations[i]
		cfg := DefaultConfig()
		cfg.Address, cfg.WorkDir = s.address, tr.dir
		log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
		var err error
		if s.job, err = NewWorker(cfg, log).Prepare(ctx, task); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.job.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func (tr *trial) peers() []schemas.Peer {
	var peers []schemas.Peer
	for _, s := range tr.stations {
		address := s.address
		if address == "" {
			address = "127.0.0.1"
		}
		peers = append(peers, schemas.Peer{
			Agent: s.name, Clients: s.clients, Endpoint: schemas.Endpoint{Address: address, Ports: s.job.(agent.Listener).Ports()},
		})
	}
	return peers
}

// run prepares and runs all to their end.
func (tr *trial) run(t testing.TB, ctx context.Context) {
	t.Helper()
	tr.prepare(t, ctx)
	tr.resume(t, ctx)
}

// resume runs what is prepared.
func (tr *trial) resume(t testing.TB, ctx context.Context) {
	t.Helper()
	peers := tr.peers()
	start := time.Now().Add(50 * time.Millisecond)
	// As the agents do.
	ctx, cancel := context.WithDeadlineCause(ctx, start.Add(tr.timeout), fmt.Errorf("not done %s after the start", tr.timeout))
	defer cancel()
	var running sync.WaitGroup
	for _, s := range tr.stations {
		running.Go(func() {
			s.result, s.err = s.job.Run(ctx, agent.Start{At: start, Peers: peers, Key: []byte("a secret of the trial's")}, s.events.record,
				func(p schemas.Progress) { s.last = p })
		})
	}
	if tr.started != nil {
		tr.started()
	}
	running.Wait()
	tr.check(t)
}

// check demands what holds of every trial, whatever became of it.
func (tr *trial) check(t testing.TB) {
	t.Helper()
	copies := 0
	for _, s := range tr.stations {
		transfers := s.events.of(schemas.KindTransfer)
		var bytes, failed uint64
		seen := map[string]bool{}
		for _, e := range transfers {
			bytes += e.Bytes
			seen[attr(e, "client")] = true
			if e.Status != schemas.StatusOK {
				failed++
				if e.Error == "" {
					t.Errorf("%s without a text", e.Status)
				}
				if attr(e, "sha256") == "ok" {
					t.Errorf("%s with a right file", e.Status)
				}
				continue
			}
			if attr(e, "sha256") != "ok" || e.Bytes != uint64(tr.section.Size) || e.Duration <= 0 || value(t, e, "complete_ns") != int64(e.Duration) {
				t.Errorf("%+v", e)
			}
		}
		want := map[string]bool{}
		for _, c := range s.clients {
			if !tr.section.Seeds(c.Group) {
				want[strconv.Itoa(c.Index)] = true
			}
		}
		if !maps.Equal(seen, want) || len(transfers) != len(want) {
			t.Errorf("%s: %d transfers of clients %v, want one of each of %v", s.name, len(transfers), slices.Sorted(maps.Keys(seen)), slices.Sorted(maps.Keys(want)))
		}
		r := s.result
		if int(r.Issued) != len(want) || r.Bytes != bytes || r.Errors != failed {
			t.Errorf("%s: %+v, events have %d bytes and %d failures", s.name, r, bytes, failed)
		}
		if int(s.last.Done) != len(want) || s.last.Bytes != bytes || s.last.Errors != failed || int(s.last.Total) != len(want) {
			t.Errorf("%s: the last progress is %+v, the result %+v", s.name, s.last, r)
		}
		copies += len(s.events.of(schemas.KindCopy))
	}
	if copies != 1 {
		t.Errorf("%d plain copies, want 1", copies)
	}
}

// transfers are those of all stations by leecher.
func (tr *trial) transfers(t testing.TB) map[int64]*schemas.Event {
	t.Helper()
	all := map[int64]*schemas.Event{}
	for _, s := range tr.stations {
		for _, e := range s.events.of(schemas.KindTransfer) {
			all[value(t, e, "leecher")] = e
		}
	}
	return all
}

func (tr *trial) all(kind string) []*schemas.Event {
	var all []*schemas.Event
	for _, s := range tr.stations {
		all = append(all, s.events.of(kind)...)
	}
	return all
}

// demand checks the status of every leecher.
func (tr *trial) demand(t testing.TB, want ...string) {
	t.Helper()
	all := tr.transfers(t)
	for i, status := range want {
		if e := all[int64(i)]; e == nil || e.Status != status {
			t.Errorf("leecher %d: %+v, want %s", i, e, status)
		}
	}
	if len(all) != len(want) {
		t.Errorf("%d leechers, want %d", len(all), len(want))
	}
	for _, s := range tr.stations {
		if s.err != nil {
			t.Errorf("%s: %v", s.name, s.err)
		}
	}
}
