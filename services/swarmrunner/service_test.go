package swarmrunner

import (
	"context"
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
func serve(t *testing.T, server *embedded.Server, name string) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Name, cfg.Site = name, "home"
	service := Service()
	service.Run = func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) }
	agenttest.Serve(t, server, service)
}

// The whole service on a real bus: two agents are given a task each, find each
// other by what the start says, and account for every transfer.
func TestService(t *testing.T) {
	t.Parallel()
	server, operator := agenttest.Bus(t)
	tr := &trial{section: schemas.Swarm{Size: 200_000}, stations: []*station{
		{name: "agent-1", address: "127.0.0.1", clients: clients("home", 0, 2)}, {name: "agent-2", address: "127.0.0.1", clients: clients("home", 2, 1)},
	}}
	for _, s := range tr.stations {
		serve(t, server, s.name)
	}
	states := agenttest.Conduct(t, operator, tr.tasks(t), 30*time.Second)
	for _, s := range tr.stations {
		state, want := states[s.name], uint64(len(s.clients))
		if r := state.Result; state.Phase != schemas.TaskDone || r.Issued != want || r.Errors != 0 || r.Bytes != want*200_000 || r.Recorded != r.Acknowledged {
			t.Errorf("%s: %+v", s.name, state)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	service := Service()
	parser, err := kong.New(&struct{}{}, kong.Embed(service.Config))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := parser.Parse([]string{"--swarm-dir", dir, "--address", "127.0.0.7"}); err != nil {
		t.Fatal(err)
	}
	cfg := service.Config.(*Config)
	if err := cfg.Validate(); err != nil || cfg.dir() != dir || cfg.Address != "127.0.0.7" {
		t.Errorf("%+v, %v", cfg, err)
	}
	cfg.WorkDir, cfg.Parallel = filepath.Join(dir, "absent"), 0
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "--swarm-dir") || !strings.Contains(err.Error(), "--parallel") {
		t.Errorf("%v, want every fault", err)
	}
}
