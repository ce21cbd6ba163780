package prober

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/plan"
)

// section is a short full mesh; change alters it.
func section(change func(*schemas.Probe)) schemas.Probe {
	s := schemas.Probe{
		Mesh: "full", Protocols: schemas.MeshProtocols(), Interval: schemas.Duration(20 * time.Millisecond), Count: 5,
		Timeout: schemas.Duration(time.Second),
	}
	if change != nil {
		change(&s)
	}
	s.SetDefaults()
	return s
}

// member is an agent of a trial.
type member struct {
	name    string
	site    string
	clients []int
	worker  *Worker
	machine string        // another than that of all others, if given
	clock   schemas.Clock // as it has measured it
	edit    func(*schemas.Peer)

	job  agent.Job
	log  log
	task *schemas.Task
	res  schemas.TaskResult
	err  error
}

func worker() *Worker { return NewWorker(DefaultConfig(), slog.New(slog.DiscardHandler)) }

// log is what a job has recorded.
type log struct {
	mu     sync.Mutex
	events []schemas.Event
	seen   func(n int) error
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
		return l.seen(len(l.events))
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

// trial is several agents in one process.
type trial struct {
	section schemas.Probe
	members []*member
	key     []byte
	peers   []schemas.Peer
	start   time.Time
}

func (tr *trial) prepare(t testing.TB, ctx context.Context) {
	t.Helper()
	data, err := json.Marshal(tr.section)
	if err != nil {
		t.Fatal(err)
	}
	run := uuid.Must(uuid.NewV7())
	for _, m := range tr.members {
		m.task = &schemas.Task{
			Run: run, Trial: 3, Attempt: 1, Workload: schemas.WorkloadProbe, Agent: m.name, Section: data, Seed: 7, Timeout: time.Minute,
		}
		for _, i := range m.clients {
			m.task.Clients = append(m.task.Clients, schemas.Client{Index: i, Group: m.site, Site: m.site, Labels: map[string]string{"zone": "a", "instance_type": "t3.small"}})
		}
		if m.worker == nil {
			m.worker = worker()
		}
		if m.job, err = m.worker.Prepare(ctx, m.task); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.job.Close(); err != nil {
				t.Error(err)
			}
		})
		peer := schemas.Peer{
			Agent: m.name, Clock: m.clock,
			Endpoint: schemas.Endpoint{Address: "127.0.0.1", Ports: m.job.(agent.Listener).Ports(), Machine: "machine" + m.machine},
		}
		for _, c := range m.task.Clients {
			c.Labels = nil
			peer.Clients = append(peer.Clients, c)
		}
		if m.edit != nil {
			m.edit(&peer)
		}
		tr.peers = append(tr.peers, peer)
	}
}

// run prepares and runs all to their end.
func (tr *trial) run(t testing.TB, ctx context.Context) {
	t.Helper()
	tr.prepare(t, ctx)
	tr.start = time.Now().Add(100 * time.Millisecond)
	var running sync.WaitGroup
	for _, m := range tr.members {
		running.Go(func() {
			var last schemas.Progress
			m.res, m.err = m.job.Run(ctx, agent.Start{At: tr.start, Clock: m.clock, Peers: tr.peers, Key: tr.key}, m.log.record, func(p schemas.Progress) { last = p })
			if int(m.res.Issued) != len(m.log.events) {
				t.Errorf("%s: %d probes issued, %d events", m.name, m.res.Issued, len(m.log.events))
			}
			if last.Done != m.res.Issued || last.Errors != m.res.Errors || last.Bytes != m.res.Bytes {
				t.Errorf("%s: last progress %+v does not agree with the result %+v", m.name, last, m.res)
			}
		})
	}
	running.Wait()
}

// checkSchedule demands that every path of the member has exactly the probes
// that the plan has due before the cut (all of them, if it is zero); around the
// cut, within slack, either will do.
func (tr *trial) checkSchedule(t testing.TB, m *member, begun, cut time.Time) {
	t.Helper()
	groups := map[int]string{}
	for _, other := range tr.members {
		for _, i := range other.clients {
			groups[i] = other.site
		}
	}
	var clients []string
	for i := range len(groups) {
		clients = append(clients, groups[i])
	}
	seen := map[int]map[time.Duration]int{}
	for i := range m.log.events {
		e := &m.log.events[i]
		path, err := strconv.Atoi(attr(e, "path"))
		if err != nil {
			t.Fatalf("%+v", e)
		}
		if seen[path] == nil {
			seen[path] = map[time.Duration]int{}
		}
		seen[path][e.Intended.Sub(tr.start)]++
	}
	for _, p := range plan.Paths(m.task.Seed, m.task.Trial, clients, &tr.section) {
		if !slices.Contains(m.clients, p.From) {
			continue
		}
		for k := range tr.section.Probes(p.Phase) {
			at := p.Phase + time.Duration(k)*time.Duration(tr.section.Interval)
			due := tr.start.Add(at)
			n := seen[p.Index][at]
			delete(seen[p.Index], at)
			switch {
			case cut.IsZero() || due.Before(begun):
				if n != 1 {
					t.Fatalf("path %d has %d events for its probe %d at %s", p.Index, n, k, at)
				}
			case due.After(cut):
				if n != 0 {
					t.Fatalf("path %d has %d events for its probe %d at %s, which was not due", p.Index, n, k, at)
				}
			case n > 1:
				t.Fatalf("path %d has %d events for its probe %d", p.Index, n, k)
			}
		}
		if len(seen[p.Index]) > 0 {
			t.Fatalf("path %d has events that are not planned: %v", p.Index, seen[p.Index])
		}
	}
}

// resolver knows the names that known says, all at 127.0.0.1.
func resolver(t testing.TB, known func(name string) bool) *net.Resolver {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			var q dnsmessage.Message
			if q.Unpack(buf[:n]) != nil || len(q.Questions) != 1 {
				continue
			}
			name := q.Questions[0].Name
			a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RecursionAvailable: true}, Questions: q.Questions}
			switch {
			case !known(strings.TrimSuffix(name.String(), ".")):
				a.RCode = dnsmessage.RCodeNameError
			case q.Questions[0].Type == dnsmessage.TypeA:
				a.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
					Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
				}}
			}
			if data, err := a.Pack(); err == nil {
				_, _ = c.WriteToUDPAddrPort(data, from)
			}
		}
	})
	t.Cleanup(func() { _ = c.Close(); serving.Wait() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}
