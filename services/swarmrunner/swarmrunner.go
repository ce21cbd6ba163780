package swarmrunner

import (
	"context"
	"net/netip"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// ServiceName is the service's name on the bus, in events and on the command
// line.
const ServiceName = "swarm-runner"

// Service is the entry in the list of services.
func Service() node.Service {
	cfg := DefaultConfig()
	return node.Service{
		Name: ServiceName, Short: "run BitTorrent swarms, timing every piece of every peer", Role: bus.RoleAgent, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}

// Runner is the running service.
type Runner struct {
	cfg   Config
	agent *agent.Agent
}

// New does no I/O.
func New(cfg Config, n *node.Node) *Runner {
	local := n.Bus.LocalAddress()
	if cfg.Address == "" {
		cfg.Address = local
	}
	w := NewWorker(cfg, n.Log)
	// At a site of an emulated network the bus is reached through a unix socket.
	if addr, err := netip.ParseAddr(local); err == nil {
		w.aside = addr.IsLoopback()
	}
	return &Runner{cfg: cfg, agent: agent.New(cfg.Config, n, schemas.WorkloadSwarm, w)}
}

// Run takes tasks until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.cfg.Validate(); err != nil {
		return err
	}
	return r.agent.Run(ctx)
}
