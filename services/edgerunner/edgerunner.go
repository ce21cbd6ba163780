package edgerunner

import (
	"context"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// ServiceName is the service's name on the bus, in events and on the command
// line.
const ServiceName = "edge-runner"

// Service is the entry in the list of services.
func Service() node.Service {
	// Before the flags are there: whoever reads them validates all of it.
	cfg := DefaultConfig().withEnvironment()
	return node.Service{
		Name: ServiceName, Short: "play edges that record clips, every clip an event", Role: bus.RoleAgent, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}

// Runner is the running service.
type Runner struct {
	cfg   Config
	agent *agent.Agent
}

// New does no I/O. The token, if cfg lacks it, is taken from the environment.
func New(cfg Config, n *node.Node) *Runner {
	cfg = cfg.withEnvironment()
	return &Runner{cfg: cfg, agent: agent.New(cfg.Config, n, schemas.WorkloadOffload, NewWorker(cfg, n.Bus, n.Log))}
}

// Run takes tasks until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.cfg.Validate(); err != nil {
		return err
	}
	return r.agent.Run(ctx)
}
