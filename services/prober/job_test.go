package prober

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/prober/examples"
)

// Two agents with three clients, every protocol: everything is answered, and
// every event says where it was.
func TestMesh(t *testing.T) {
	t.Parallel()
	tr := &trial{section: section(nil), key: []byte("a secret of the trial's"), members: []*member{
		{name: "agent-1", site: "oregon", clients: []int{0, 1}},
		{name: "agent-2", site: "dublin", clients: []int{2}},
	}}
	tr.run(t, t.Context())
	sites := map[string]string{"0": "oregon", "1": "oregon", "2": "dublin"}
	agents := map[string]string{"0": "agent-1", "1": "agent-1", "2": "agent-2"}
	for _, m := range tr.members {
		if m.err != nil {
			t.Fatal(m.err)
		}
		if want := len(m.clients) * 2 * 6 * 5; int(m.res.Issued) != want || m.res.Errors != 0 {
			t.Errorf("%s: %+v, want %d without errors: %v", m.name, m.res, want, m.log.statuses())
		}
		tr.checkSchedule(t, m, time.Time{}, time.Time{})
		var bytes uint64
		for i := range m.log.events {
			e := &m.log.events[i]
			bytes += e.Bytes
			var keys []string
			for _, a := range e.Attrs {
				keys = append(keys, a.Key)
			}
			if first := []string{"protocol", "dst_site", "dst", "client", "dst_client", "path", "instance_type", "zone"}; !slices.Equal(keys[:len(first)], first) {
				t.Fatalf("attributes %v, want %v first", keys, first)
			}
			from, to, protocol := attr(e, "client"), attr(e, "dst_client"), attr(e, "protocol")
			if e.Site != sites[from] || attr(e, "dst_site") != sites[to] || e.Agent != agents[from] || attr(e, "dst") != agents[to] || from == to {
				t.Errorf("%+v", e)
			}
			if e.Status != schemas.StatusOK || e.Duration <= 0 || e.Kind != schemas.KindProbe || e.Service != ServiceName || e.Trial != 3 || e.Attempt != 1 {
				t.Errorf("%+v", e)
			}
			for _, c := range []struct {
				key       string
				protocols []string
			}{
				{"ttl", []string{"icmp", "udp"}},
				{"stamps", []string{"icmp", "udp"}},
				{"reflected_ns", []string{"udp"}},
				{"offset_ns", []string{"udp"}},
				{"connect_ns", []string{"tcp", "tls", "http", "https"}},
				{"tls_ns", []string{"tls", "https"}},
				{"addr", nil},
				{"http_status", nil},
				{"dns_ns", nil},
			} {
				if said := attr(e, c.key) != ""; said != slices.Contains(c.protocols, protocol) {
					t.Errorf("%s: %s is %q", protocol, c.key, attr(e, c.key))
				}
			}
			if web := protocol == "http" || protocol == "https"; (e.FirstByte > 0) != web {
				t.Errorf("%s: first byte %s", protocol, e.FirstByte)
			}
			if want := map[string]uint64{"icmp": 56, "udp": 112, "http": 3, "https": 3}[protocol]; e.Bytes != want {
				t.Errorf("%s: %d bytes, want %d", protocol, e.Bytes, want)
			}
			if protocol == "udp" && (attr(e, "offset_ns") != "0" || attr(e, "offset_bound_ns") != "0") {
				t.Errorf("agents of one machine have one clock: %+v", e.Attrs)
			}
		}
		if bytes != m.res.Bytes {
			t.Errorf("%d bytes in events, %d in the result", bytes, m.res.Bytes)
		}
	}
}

// The same seed has the same probes due at the same moments, whoever runs them.
func TestScheduleIsThePlans(t *testing.T) {
	t.Parallel()
	var due [2][]string
	for i := range due {
		tr := &trial{section: section(func(s *schemas.Probe) {
			s.Protocols, s.Count, s.Duration = []string{"tcp", "icmp"}, 0, schemas.Duration(50*time.Millisecond)
		}), members: []*member{{name: "agent-" + strconv.Itoa(i), site: "oregon", clients: []int{0, 1, 2}}}}
		tr.run(t, t.Context())
		for k := range tr.members[0].log.events {
			e := &tr.members[0].log.events[k]
			due[i] = append(due[i], attr(e, "path")+" "+attr(e, "protocol")+" "+e.Intended.Sub(tr.start).String())
		}
		slices.Sort(due[i])
	}
	if len(due[0]) == 0 || !slices.Equal(due[0], due[1]) {
		t.Errorf("once %v, then %v", due[0], due[1])
	}
}

// One-way delays between machines are given only where the clocks are known well
// enough.
func TestOneWayIsWithheld(t *testing.T) {
	t.Parallel()
	tr := &trial{section: section(func(s *schemas.Probe) { s.Protocols = []string{"udp"} }), members: []*member{
		{name: "agent-1", site: "oregon", clients: []int{0}, machine: "1", clock: schemas.Clock{Offset: time.Millisecond, Bound: time.Second}},
		{name: "agent-2", site: "dublin", clients: []int{1}, machine: "2", clock: schemas.Clock{Offset: 3 * time.Millisecond, Bound: time.Second}},
	}}
	tr.run(t, t.Context())
	for _, m := range tr.members {
		for i := range m.log.events {
			e := &m.log.events[i]
			bound, err := strconv.Atoi(attr(e, "offset_bound_ns"))
			if attr(e, "oneway") != "withheld" || attr(e, "forward_ns") != "" || attr(e, "backward_ns") != "" || err != nil || bound < int(2*time.Second) {
				t.Fatalf("%+v", e)
			}
			if want := map[string]string{"agent-1": "2000000", "agent-2": "-2000000"}[m.name]; attr(e, "offset_ns") != want {
				t.Fatalf("%s: offset %s, want %s", m.name, attr(e, "offset_ns"), want)
			}
		}
	}
}

// An agent that is not there, or not for this protocol, is a finding.
func TestAbsent(t *testing.T) {
	t.Parallel()
	tr := &trial{section: section(func(s *schemas.Probe) { s.Protocols = []string{"icmp", "udp", "tcp"} }), members: []*member{
		{name: "agent-1", site: "oregon", clients: []int{0}},
		{name: "agent-2", site: "dublin", clients: []int{1}, edit: func(p *schemas.Peer) { p.Endpoint = schemas.Endpoint{} }},
		{name: "agent-3", site: "dublin", clients: []int{2}, edit: func(p *schemas.Peer) { delete(p.Endpoint.Ports, "udp") }},
		{name: "agent-4", site: "dublin", clients: []int{3}, edit: func(p *schemas.Peer) { p.Clients = nil }},
		{name: "agent-5", site: "dublin", clients: []int{4}, edit: func(p *schemas.Peer) { p.Endpoint.Address = "nowhere" }},
		{name: "agent-6", site: "dublin", clients: []int{5}},
	}}
	tr.run(t, t.Context())
	m := tr.members[0]
	if m.err != nil {
		t.Fatal(m.err)
	}
	counts := map[string]int{}
	for i := range m.log.events {
		e := &m.log.events[i]
		counts[attr(e, "dst_client")+" "+attr(e, "protocol")+" "+e.Status]++
		if e.Status == schemas.StatusAbsent && (e.Error == "" || e.Duration != 0 || e.Bytes != 0) {
			t.Errorf("%+v", e)
		}
	}
	for _, want := range []string{
		"1 icmp absent", "1 udp absent", "1 tcp absent", "2 icmp ok", "2 udp absent", "2 tcp ok", "3 icmp absent", "3 udp absent", "3 tcp absent",
		"4 icmp absent", "4 udp absent", "4 tcp absent", "5 icmp ok", "5 udp ok", "5 tcp ok",
	} {
		if counts[want] != 5 {
			t.Errorf("%d times %q, want 5", counts[want], want)
		}
	}
}

// Without a word about peers there are only the task's own clients.
func TestNoPeers(t *testing.T) {
	t.Parallel()
	tr := &trial{section: section(func(s *schemas.Probe) { s.Protocols = []string{"tcp"} }), members: []*member{
		{name: "agent-1", site: "oregon", clients: []int{0, 1}, edit: func(p *schemas.Peer) { *p = schemas.Peer{} }},
	}}
	tr.run(t, t.Context())
	m := tr.members[0]
	if m.err != nil || m.log.statuses()[schemas.StatusAbsent] != 10 || m.res.Issued != 10 {
		t.Errorf("%v, %+v, %v", m.err, m.res, m.log.statuses())
	}
}

// A peer that goes away in the middle: its probes fail by name, the run ends.
func TestPeerDisappears(t *testing.T) {
	t.Parallel()
	tr := &trial{section: section(func(s *schemas.Probe) {
		s.Protocols = []string{"udp", "tcp", "tls", "http", "https"}
		s.Count, s.Timeout = 20, schemas.Duration(100*time.Millisecond)
	}), key: []byte("secret")}
	gone := &member{name: "agent-2", site: "dublin", clients: []int{1}}
	tr.members = []*member{{name: "agent-1", site: "oregon", clients: []int{0}}, gone}
	tr.prepare(t, t.Context())
	m := tr.members[0]
	m.log.seen = func(n int) error {
		if n == 40 {
			return gone.job.Close()
		}
		return nil
	}
	// Its job never starts, so its own key is set by hand.
	other := gone.job.(*job)
	other.responders.SetKey(tr.key)
	other.reflector.SetKey(tr.key)
	tr.start = time.Now()
	res, err := m.job.Run(t.Context(), agent.Start{At: tr.start, Peers: tr.peers, Key: tr.key}, m.log.record, func(schemas.Progress) {})
	if err != nil || res.Issued != 100 {
		t.Fatalf("%+v, %v", res, err)
	}
	tr.checkSchedule(t, m, time.Time{}, time.Time{})
	s := m.log.statuses()
	if s[schemas.StatusOK] < 30 || s[schemas.StatusOK] > 60 || s[schemas.StatusRefused] == 0 {
		t.Errorf("%v", s)
	}
	for status := range s {
		if !slices.Contains([]string{"ok", "refused", "reset", "timeout", "unreachable"}, status) {
			t.Errorf("%v", s)
		}
	}
}

// Cut off in the middle, every probe that was due has its event, and no other.
func TestCancel(t *testing.T) {
	t.Parallel()
	silent := hole(t)
	tr := &trial{section: section(func(s *schemas.Probe) {
		s.Count, s.Interval = 10_000, schemas.Duration(2*time.Millisecond)
		s.Targets = []string{"http://" + silent.String() + "/", "tcp://host.invalid:1", "icmp://host.invalid"}
	}), members: []*member{{name: "agent-1", site: "oregon", clients: []int{0, 1}, worker: worker()}}}
	m := tr.members[0]
	m.worker.resolver = resolver(t, func(string) bool { return false })
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	var begun time.Time
	var once sync.Once
	m.log.seen = func(n int) error {
		if n >= 300 {
			once.Do(func() { begun = time.Now(); cancel(why) })
		}
		return nil
	}
	tr.run(t, ctx)
	cut := time.Now()
	if !errors.Is(m.err, why) {
		t.Errorf("%v", m.err)
	}
	if took := cut.Sub(begun); took > 4*time.Second {
		t.Errorf("took %s to end", took)
	}
	tr.checkSchedule(t, m, begun, cut)
	if s := m.log.statuses(); s[schemas.StatusCancelled] == 0 || s[schemas.StatusOK] == 0 || s[schemas.StatusDNS] == 0 {
		t.Errorf("%v", s)
	}
}

// Jobs leave no descriptor open, whether they have run or not.
func TestNothingIsLeftOpen(t *testing.T) {
	before := descriptors(t)
	for i := range 3 {
		tr := &trial{section: section(func(s *schemas.Probe) { s.Targets = []string{"tcp://127.0.0.1:1"} }), members: []*member{
			{name: "agent-1", site: "oregon", clients: []int{0}}, {name: "agent-2", site: "dublin", clients: []int{1}},
		}}
		if i == 0 {
			tr.prepare(t, t.Context())
		} else {
			tr.run(t, t.Context())
		}
		for _, m := range tr.members {
			if err := m.job.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// hole takes connections and never answers.
func hole(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// More probes than may be under way wait, and say so.
func TestUnderWayIsBounded(t *testing.T) {
	t.Parallel()
	tr := &trial{section: section(func(s *schemas.Probe) {
		s.Mesh, s.Protocols, s.Targets = "none", nil, []string{"http://" + hole(t).String() + "/"}
		s.Interval, s.Count, s.Timeout = schemas.Duration(10*time.Microsecond), maxUnderWay+100, schemas.Duration(700*time.Millisecond)
	}), members: []*member{{name: "agent-1", site: "oregon", clients: []int{0}}}}
	tr.run(t, t.Context())
	m := tr.members[0]
	if m.err != nil || m.log.statuses()[schemas.StatusTimeout] != maxUnderWay+100 {
		t.Fatalf("%v, %v", m.err, m.log.statuses())
	}
	tr.checkSchedule(t, m, time.Time{}, time.Time{})
	type edge struct {
		at    time.Time
		delta int
	}
	var edges []edge
	waited := 0
	for i := range m.log.events {
		e := &m.log.events[i]
		if e.Wait > 200*time.Millisecond {
			waited++
		}
		sent := e.Intended.Add(e.Wait)
		edges = append(edges, edge{sent, 1}, edge{sent.Add(e.Duration), -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.Compare(b.at), a.delta-b.delta) })
	most, now := 0, 0
	for _, e := range edges {
		now += e.delta
		most = max(most, now)
	}
	if waited < 100 || m.res.LagMax < 200*time.Millisecond || most > maxUnderWay {
		t.Errorf("%d waited, %d were under way; %+v", waited, most, m.res)
	}
}

// A name that is unknown is what its probes say; one that appears later works
// from then on.
func TestNames(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	var appeared atomic.Bool
	w := worker()
	w.retry = 10 * time.Millisecond
	w.resolver = resolver(t, func(name string) bool {
		return strings.HasPrefix(name, "there.") || strings.HasPrefix(name, "later.") && appeared.Load()
	})
	targets := []string{
		"tcp://there.example:" + port, "tcp://later.example:" + port, "tcp://never.example:" + port,
		"icmp://there.example", "icmp://later.example", "icmp://never.example",
		"http://later.example:1/", "http://never.example:1/",
	}
	tr := &trial{section: section(func(s *schemas.Probe) {
		s.Mesh, s.Protocols, s.Targets, s.Count = "none", nil, targets, 20
	}), members: []*member{{name: "agent-1", site: "oregon", clients: []int{0}, worker: w}}}
	m := tr.members[0]
	m.log.seen = func(n int) error {
		appeared.Store(n >= 40)
		return nil
	}
	tr.run(t, t.Context())
	if m.err != nil {
		t.Fatal(m.err)
	}
	tr.checkSchedule(t, m, time.Time{}, time.Time{})
	counts := map[string]map[string]int{}
	for i := range m.log.events {
		e := &m.log.events[i]
		dst := attr(e, "dst")
		if counts[dst] == nil {
			counts[dst] = map[string]int{}
		}
		counts[dst][e.Status]++
		if known := e.Status != schemas.StatusDNS; (attr(e, "addr") == "127.0.0.1") != known || attr(e, "dst_site") != strings.FieldsFunc(dst, func(r rune) bool { return r == '/' || r == ':' })[1] {
			t.Errorf("%+v", e)
		}
		if web := attr(e, "protocol") == "http"; web != (attr(e, "dns_ns") != "") {
			t.Errorf("%+v", e)
		}
	}
	for _, dst := range targets {
		c := counts[dst]
		answer := schemas.StatusOK
		if strings.HasPrefix(dst, "http") {
			answer = schemas.StatusRefused
		}
		switch {
		case strings.Contains(dst, "there") && c[answer] == 20:
		case strings.Contains(dst, "never") && c[schemas.StatusDNS] == 20:
		case strings.Contains(dst, "later") && c[answer] > 0 && c[schemas.StatusDNS] > 0 && c[answer]+c[schemas.StatusDNS] == 20:
		default:
			t.Errorf("%s: %v", dst, c)
		}
	}
}

// A probe that a foreign reflector answers has times of a clock that nobody has
// compared.
func TestForeignReflector(t *testing.T) {
	t.Parallel()
	other := &trial{section: section(func(s *schemas.Probe) { s.Protocols = []string{"udp"} }), members: []*member{{name: "agent-2", site: "x", clients: []int{0}}}}
	other.prepare(t, t.Context())
	foreign := other.members[0].job.(*job)
	foreign.reflector.SetKey(nil)
	tr := &trial{section: section(func(s *schemas.Probe) {
		s.Mesh, s.Protocols = "none", nil
		s.Targets = []string{"udp://127.0.0.1:" + strconv.Itoa(int(foreign.Ports()["udp"]))}
	}), key: []byte("not the reflector's"), members: []*member{{name: "agent-1", site: "oregon", clients: []int{0}}}}
	tr.run(t, t.Context())
	m := tr.members[0]
	if m.err != nil || m.log.statuses()[schemas.StatusOK] != 5 {
		t.Fatalf("%v, %v", m.err, m.log.statuses())
	}
	for i := range m.log.events {
		e := &m.log.events[i]
		if attr(e, "oneway") != "withheld" || attr(e, "offset_ns") != "" || attr(e, "forward_ns") != "" || attr(e, "reflected_ns") == "" || e.Bytes != 56 {
			t.Errorf("%+v", e)
		}
	}
}

// What the example says that its targets are like is what they are like.
func TestTargetsExample(t *testing.T) {
	t.Parallel()
	data, err := examples.Files.ReadFile("targets.yaml")
	if err != nil {
		t.Fatal(err)
	}
	e, err := schemas.ParseExperiment(data)
	if err != nil {
		t.Fatal(err)
	}
	e.Probe.Interval, e.Probe.Count = schemas.Duration(20*time.Millisecond), 3
	w := worker()
	w.resolver = resolver(t, func(string) bool { return false })
	tr := &trial{section: *e.Probe, members: []*member{{name: "agent-1", site: "local", clients: []int{0}, worker: w}}}
	tr.run(t, t.Context())
	m := tr.members[0]
	if m.err != nil {
		t.Fatal(m.err)
	}
	counts := map[string]int{}
	for i := range m.log.events {
		counts[attr(&m.log.events[i], "dst")+" # "+m.log.events[i].Status]++
	}
	for _, target := range e.Probe.Targets {
		_, comment, _ := strings.Cut(string(data), "- "+target+" # ")
		status, _, _ := strings.Cut(comment, "\n")
		if counts[target+" # "+status] != 3 {
			t.Errorf("%s, want %s: %v", target, status, counts)
		}
	}
}

// What cannot be recorded ends the job.
func TestRecordFails(t *testing.T) {
	t.Parallel()
	full := errors.New("the bus is gone")
	tr := &trial{section: section(func(s *schemas.Probe) { s.Count = 1000 }), members: []*member{{name: "agent-1", site: "oregon", clients: []int{0, 1}}}}
	m := tr.members[0]
	m.log.seen = func(n int) error {
		if n >= 20 {
			return full
		}
		return nil
	}
	begin := time.Now()
	tr.run(t, t.Context())
	if !errors.Is(m.err, full) || time.Since(begin) > 10*time.Second {
		t.Errorf("%v after %s", m.err, time.Since(begin))
	}
}

func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	good := func() *schemas.Task {
		data, err := json.Marshal(section(nil))
		if err != nil {
			t.Fatal(err)
		}
		return &schemas.Task{
			Run: uuid.Must(uuid.NewV7()), Attempt: 1, Workload: schemas.WorkloadProbe, Agent: "agent-1", Section: data, Timeout: time.Minute,
			Clients: []schemas.Client{{Site: "oregon"}},
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx    context.Context
		change func(*schemas.Task, *Worker)
		want   string
	}{
		"no clients":      {t.Context(), func(tk *schemas.Task, _ *Worker) { tk.Clients = nil }, "task.clients"},
		"no section":      {t.Context(), func(tk *schemas.Task, _ *Worker) { tk.Section = []byte("{") }, "section"},
		"bad section":     {t.Context(), func(tk *schemas.Task, _ *Worker) { tk.Section = []byte(`{"mesh":"star"}`) }, "probe.mesh"},
		"bad address":     {t.Context(), func(_ *schemas.Task, w *Worker) { w.cfg.Address = "here" }, "--address"},
		"bad authorities": {t.Context(), func(_ *schemas.Task, w *Worker) { w.cfg.CAFile = "/no/such/file" }, "--probe-ca-file"},
		"cancelled":       {ended, func(*schemas.Task, *Worker) {}, "canceled"},
	} {
		tk, w := good(), worker()
		c.change(tk, w)
		if j, err := w.Prepare(c.ctx, tk); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, j, err)
		}
	}
}

// Targets need no responders, and a mesh only those of its protocols.
func TestPorts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		change func(*schemas.Probe)
		want   []string
	}{
		{func(s *schemas.Probe) { s.Mesh, s.Targets = "none", []string{"icmp://127.0.0.1"} }, nil},
		{func(s *schemas.Probe) { s.Protocols = []string{"icmp"} }, nil},
		{func(s *schemas.Probe) { s.Protocols = []string{"icmp", "udp", "https"} }, []string{"https", "udp"}},
	} {
		tr := &trial{section: section(c.change), members: []*member{{name: "agent-1", site: "oregon", clients: []int{0}}}}
		tr.prepare(t, t.Context())
		var got []string
		for name, port := range tr.members[0].job.(agent.Listener).Ports() {
			if port == 0 {
				t.Errorf("%s at no port", name)
			}
			got = append(got, name)
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("ports for %v, want %v", got, c.want)
		}
		// Closing twice is what a failed preparation and a job's end may do.
		if err := tr.members[0].job.Close(); err != nil {
			t.Error(err)
		}
	}
}
