package s3loader

import (
	"context"
	"log/slog"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// ServiceName is the service's name on the bus, in events and on the command
// line.
const ServiceName = "s3-loader"

// Service is the entry in the list of services.
func Service() node.Service {
	cfg := DefaultConfig()
	return node.Service{
		Name: ServiceName, Short: "download and upload objects under load, timing every request", Role: bus.RoleAgent, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}

// Loader is the running service.
type Loader struct {
	cfg   Config
	agent *agent.Agent
}

// New does no I/O. Keys that cfg lacks are taken from the environment.
func New(cfg Config, n *node.Node) *Loader {
	cfg = cfg.withEnvironment()
	return &Loader{cfg: cfg, agent: agent.New(cfg.Config, n, schemas.WorkloadS3, NewWorker(cfg, n.Log))}
}

// Run takes tasks until ctx ends.
func (l *Loader) Run(ctx context.Context) error {
	if err := l.cfg.Validate(); err != nil {
		return err
	}
	return l.agent.Run(ctx)
}

// NewWorker returns what executes the service's tasks.
func NewWorker(cfg Config, log *slog.Logger) *Worker { return &Worker{cfg: cfg, log: log} }
