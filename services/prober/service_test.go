package prober

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent/agenttest"
)

// serve runs an agent until the test ends.
func serve(t testing.TB, server *embedded.Server, name string) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Name, cfg.Site = name, "oregon"
	service := Service()
	service.Run = func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) }
	agenttest.Serve(t, server, service)
}

// The whole service on a real bus: two agents are given a task each, learn of
// each other, and account for every probe.
func TestService(t *testing.T) {
	t.Parallel()
	server, operator := agenttest.Bus(t)
	tr := &trial{section: section(nil), members: []*member{
		{name: "agent-1", site: "oregon", clients: []int{0, 1}}, {name: "agent-2", site: "oregon", clients: []int{2}},
	}}
	for _, m := range tr.members {
		serve(t, server, m.name)
	}
	// For the tasks only: the jobs that matter are the services' own.
	tr.prepare(t, t.Context())
	states := agenttest.Conduct(t, operator, []*schemas.Task{tr.members[0].task, tr.members[1].task}, 30*time.Second)
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
