package prober

import (
	"context"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// ServiceName is the service's name on the bus, in events and on the command
// line.
const ServiceName = "prober"

// Service is the entry in the list of services.
func Service() node.Service {
	cfg := DefaultConfig()
	return node.Service{
		Name: ServiceName, Short: "measure paths between sites, every probe an event", Role: bus.RoleAgent, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}

// Prober is the running service.
type Prober struct {
	cfg   Config
	agent *agent.Agent
}

// New does no I/O.
func New(cfg Config, n *node.Node) *Prober {
	if cfg.Address == "" {
		cfg.Address = n.Bus.LocalAddress()
	}
	return &Prober{cfg: cfg, agent: agent.New(cfg.Config, n, schemas.WorkloadProbe, NewWorker(cfg, n.Log))}
}

// Run takes tasks until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	if err := p.cfg.Validate(); err != nil {
		return err
	}
	return p.agent.Run(ctx)
}
