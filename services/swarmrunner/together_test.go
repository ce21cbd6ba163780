package swarmrunner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// spread is a trial of three agents: the seeders' and two with leechers.
func spread(section schemas.Swarm) *trial {
	section.SeedGroups = []string{"origin"}
	return &trial{section: section, stations: []*station{
		{name: "agent-1", address: "127.0.0.11", clients: clients("origin", 0, 2)},
		{name: "agent-2", address: "127.0.0.12", clients: clients("near", 2, 2)},
		{name: "agent-3", address: "127.0.0.13", clients: clients("far", 4, 1)},
	}}
}

// Several agents are one swarm.
func TestSeveralAgents(t *testing.T) {
	t.Parallel()
	mixed := schemas.Swarm{Size: 600_000, Faults: []schemas.SwarmFault{{Do: schemas.FaultKillLeecher, Peer: 2, Progress: 0.2}}, SeedUpload: 24_000_000}
	for name, c := range map[string]struct {
		trial *trial
		want  []string
	}{
		"seeders elsewhere":  {spread(schemas.Swarm{Size: 600_000}), []string{"ok", "ok", "ok"}},
		"udp tracker":        {spread(schemas.Swarm{Size: 600_000, Tracker: "udp", OnComplete: "leave"}), []string{"ok", "ok", "ok"}},
		"processes":          {spread(schemas.Swarm{Size: 600_000, Isolation: "process"}), []string{"ok", "ok", "ok"}},
		"utp, encrypted":     {spread(schemas.Swarm{Size: 100_000, Protocol: "utp", Encryption: "require"}), []string{"ok", "ok", "ok"}},
		"a fault at another": {spread(mixed), []string{"ok", "ok", "killed"}},
		"a seeder beside the clients": {&trial{section: schemas.Swarm{Size: 600_000}, stations: []*station{
			{name: "agent-1", address: "127.0.0.11", clients: clients("near", 1, 2)},
			{name: "agent-2", address: "127.0.0.12", clients: clients("far", 0, 1)},
		}}, []string{"ok", "ok", "ok"}},
		"seeders at both": {&trial{section: schemas.Swarm{Size: 600_000, SeedGroups: []string{"origin", "mirror"}}, stations: []*station{
			{name: "agent-1", address: "127.0.0.11", clients: append(clients("near", 1, 1), clients("mirror", 3, 1)...)},
			{name: "agent-2", address: "127.0.0.12", clients: append(clients("origin", 2, 1), clients("near", 0, 1)...)},
		}}, []string{"ok", "ok"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.trial.run(t, t.Context())
			c.trial.demand(t, c.want...)
			if c.trial.section.Faults == nil {
				c.trial.checkOrdinary(t)
			}
			for _, e := range c.trial.all(schemas.KindInterface) {
				if attr(e, "network") != "host" || attr(e, "exclusive") != "false" {
					t.Errorf("%+v", e)
				}
			}
		})
	}
}

// A seeder is stopped as soon as a leecher elsewhere has so much.
func TestFaultByAnothersProgress(t *testing.T) {
	t.Parallel()
	tr := spread(schemas.Swarm{Size: 1_000_000, SeedUpload: 8_000_000, Patience: patience, Faults: []schemas.SwarmFault{
		{Do: schemas.FaultStopSeeder, Peer: 0, Progress: 0.2}, {Do: schemas.FaultStopSeeder, Peer: 1, Progress: 0.2},
	}})
	tr.run(t, t.Context())
	tr.demand(t, "no_peers", "no_peers", "no_peers")
}

// An agent that is gone takes its leechers with it: the others end.
func TestAgentDisappears(t *testing.T) {
	t.Parallel()
	tr := spread(schemas.Swarm{Size: 1_000_000, Patience: patience, SeedUpload: 16_000_000})
	tr.prepare(t, t.Context())
	peers := tr.peers()
	start := agent.Start{At: time.Now().Add(50 * time.Millisecond), Peers: peers, Key: []byte("secret")}
	gone, vanish := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for i, s := range tr.stations {
		running.Go(func() {
			ctx := t.Context()
			if i == 1 {
				ctx = gone
			}
			s.result, s.err = s.job.Run(ctx, start, s.events.record, func(p schemas.Progress) {
				if i == 1 && p.Bytes > 0 {
					vanish()
				}
			})
			if i == 1 {
				if err := s.job.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	vanish()
	for i, s := range tr.stations {
		if i != 1 && s.err != nil {
			t.Errorf("%s: %v", s.name, s.err)
		}
	}
	if e := tr.transfers(t)[2]; e == nil || e.Status != schemas.StatusOK {
		t.Errorf("the leecher that is left: %+v", e)
	}
}

// One that never comes keeps the others no longer than the limit; what the hub is
// told by others than the trial's agents counts for nothing.
func TestHub(t *testing.T) {
	t.Parallel()
	key := []byte("secret")
	h, dial := startHub(t, key, map[string]int{"a": 2, "b": 1, "c": 1, "": 1}, time.Now().Add(time.Hour))
	enter := func(agent string, key []byte) (*line, error) {
		c, err := dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l, err := introduce(t.Context(), c, key, agent, forNotes)
		if err != nil {
			_ = c.Close()
		} else {
			t.Cleanup(func() { _ = l.Close() })
		}
		return l, err
	}
	for _, c := range []struct {
		name, agent string
		key         []byte
	}{{"the wrong key", "a", []byte("guess")}, {"no key", "a", nil}} {
		if _, err := enter(c.agent, c.key); err == nil {
			t.Errorf("%s: let in", c.name)
		}
	}
	// Known by its key, but none of the trial's.
	if l, err := enter("x", key); err == nil {
		if _, err := l.read(); err == nil {
			t.Error("an agent that nobody expects is told something")
		}
	}
	a, err := enter("a", key)
	if err != nil {
		t.Fatal(err)
	}
	ka := newLink(a)
	if l, err := enter("a", key); err == nil {
		if _, err := l.read(); err == nil {
			t.Error("an agent comes twice")
		}
	}
	b, err := enter("b", key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := enter("c", key)
	if err != nil {
		t.Fatal(err)
	}
	kc := newLink(c)
	h.sayShare(0.25)
	h.sayEnded(1)
	ka.say(note{Ended: 1})
	ka.say(note{Ended: 2})
	kc.say(note{Share: 0.5})
	kc.say(note{Ended: 1})
	select {
	case <-ka.over:
		t.Fatal("over, though b has a leecher")
	case <-ka.lost:
		t.Fatal(ka.why)
	case <-pollUntil(t, func() bool { return ka.largest() == 0.5 }):
	}
	// What b says is nonsense: it is gone, and its leecher with it.
	if _, err := b.Write([]byte("{\"ended\":7}\n")); err != nil {
		t.Fatal(err)
	}
	for _, over := range []<-chan struct{}{ka.over, kc.over, h.over} {
		<-over
	}
	ka.say(note{Left: true})
	h.sayLeft()
	// c leaves without a word.
	if err := kc.close(); err != nil {
		t.Error(err)
	}
	<-h.left
	h.askCopy()
	<-ka.copy
	ka.say(note{Copied: true})
	<-h.copied
	if err := ka.close(); err != nil {
		t.Error(err)
	}

	// Nobody comes at all.
	lonely, _ := startHub(t, key, map[string]int{"a": 2}, time.Now().Add(10*time.Millisecond))
	<-lonely.over
	lonely.sayLeft()
	<-lonely.left
	lonely.askCopy()
	<-lonely.copied
}

// pollUntil is closed as soon as something holds.
func pollUntil(t *testing.T, holds func() bool) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !holds() {
			select {
			case <-t.Context().Done():
				return
			case <-tick.C:
			}
		}
		close(done)
	}()
	return done
}

func startHub(t *testing.T, key []byte, leechers map[string]int, absent time.Time) (*hub, func(context.Context) (net.Conn, error)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newHub(l, slog.New(slog.DiscardHandler))
	h.serve(t.Context(), key, leechers, absent, "a", func(context.Context, net.Conn) error { return nil })
	t.Cleanup(func() {
		if err := h.close(); err != nil {
			t.Error(err)
		}
	})
	return h, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
}

// What answers at the hub's place without the key is not believed.
func TestFalseHub(t *testing.T) {
	t.Parallel()
	h, dial := startHub(t, []byte("another"), nil, time.Now().Add(time.Hour))
	defer h.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := dialHub(ctx, dial, []byte("secret"), "a", forNotes); err == nil {
		t.Error("believed")
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		defer theirs.Close()
		_, _ = io.WriteString(theirs, "{\"nonce\":\"00\"}\n")
		r := bufio.NewReader(theirs)
		_, _ = r.ReadString('\n')
		_, _ = io.WriteString(theirs, "{\"mac\":\"00\"}\n")
	}()
	if _, err := introduce(t.Context(), ours, []byte("secret"), "a", forNotes); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("%v", err)
	}
}

// The start must make sense.
func TestCasting(t *testing.T) {
	t.Parallel()
	s := &schemas.Swarm{Size: 1000}
	s.SetDefaults()
	at := func(agent, address string, c ...schemas.Client) schemas.Peer {
		return schemas.Peer{Agent: agent, Endpoint: schemas.Endpoint{Address: address}, Clients: c}
	}
	for name, peers := range map[string][]schemas.Peer{
		"nobody":         {},
		"no address":     {at("a", "", clients("x", 0, 1)...)},
		"a gap":          {at("a", "127.0.0.1", clients("x", 1, 2)...)},
		"twice":          {at("a", "127.0.0.1", clients("x", 0, 1)...), at("a", "127.0.0.2", clients("x", 1, 1)...)},
		"a client twice": {at("a", "127.0.0.1", clients("x", 0, 1)...), at("b", "127.0.0.2", clients("x", 0, 1)...)},
	} {
		if _, err := casting(s, peers); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	c, err := casting(s, []schemas.Peer{at("a", "127.0.0.1", clients("x", 1, 2)...), at("b", "127.0.0.2", clients("x", 0, 1)...)})
	if err != nil || c.hub != "b" || c.receiver != "b" || len(c.leechers) != 3 || len(c.seeders) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	ids := map[[20]byte]bool{}
	for n := range 100 {
		ids[peerID([32]byte{}, true, n)], ids[peerID([32]byte{}, false, n)] = true, true
	}
	if len(ids) != 200 {
		t.Errorf("%d ids of 200 peers", len(ids))
	}
}

func FuzzNote(f *testing.F) {
	for _, line := range []string{`{"ended":3}`, `{"share":0.5,"left":true}`, `{"over":true}`, `{}`, `[]`, `{"ended":-1}`, `{"share":2}`, `{"x":1}`, `{} {}`} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		n, err := parseNote(line)
		if err != nil {
			if !errors.Is(err, errLine) || n != (note{}) {
				t.Errorf("%+v, %v", n, err)
			}
			return
		}
		if n.Ended < 0 || n.Share < 0 || n.Share > 1 {
			t.Errorf("%+v", n)
		}
		again, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := parseNote(again); err != nil || m != n {
			t.Errorf("%+v became %+v, %v", n, m, err)
		}
	})
}

// FuzzWord reads what the process of a peer could say.
func FuzzWord(f *testing.F) {
	s := &spec{Size: 100_000}
	o := outcome{}
	o.Report.Bytes = s.Size
	done, err := json.Marshal(word{Done: &o})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(done)
	for _, line := range []string{
		`{"ready":"127.0.0.1:80"}`, `{"ready":"127.0.0.1:0"}`, `{"armed":{"bad":"x"}}`, `{"begun":"2026-01-01T00:00:00Z"}`, `{"complete":true}`,
		`{"progress":{"Have":1,"Bytes":100000}}`, `{"progress":{"Have":-1,"Bytes":100000}}`, `{"hash":{"sum":"AAAA","took_ns":1}}`,
		`{"fault":"x"}`, `{"done":{"Report":{"Bytes":100000,"Pieces":[{"Index":9}]}}}`, `{"done":{"Report":{"Err":{}}}}`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		w, err := parseWord(line, s, 7)
		if err == nil {
			c := &child{life: newLife(), spec: *s, ready: make(chan struct{}), armed: make(chan armed, 1)}
			first, again := c.take(&w), c.take(&w)
			if first == nil && again == nil && (w.Ready != nil || w.Done != nil || w.Complete || w.Hash != nil) {
				t.Errorf("%s was taken twice", line)
			}
			if o := c.outcome.Report; o.Have > s.Size || len(o.Pieces) > 7 || c.latest.Have > s.Size {
				t.Errorf("%s became %+v", line, c.outcome)
			}
		}
		// A line in pieces of any size is the same line, unless it is too long.
		whole := append(bytes.ReplaceAll(line, []byte("\n"), nil), '\n')
		got, err := readLine(bufio.NewReaderSize(bytes.NewReader(whole), 16), 100)
		if (err == nil) != (len(whole) <= 100) || err == nil && !bytes.Equal(got, whole) {
			t.Errorf("%q was read as %q, %v", whole, got, err)
		}
	})
}
