package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
)

// Config of the scheduler.
type Config struct {
	AgentPatience   time.Duration `help:"How long a run waits for agents at its sites before it fails." env:"TRANSFERLAB_AGENT_PATIENCE" default:"30s"`
	PreparePatience time.Duration `help:"How long agents may prepare a trial (make missing objects)." env:"TRANSFERLAB_PREPARE_PATIENCE" default:"30m"`
	PlacePatience   time.Duration `help:"How long the sites that an experiment declares may take to be made, and to be gone." env:"TRANSFERLAB_PLACE_PATIENCE" default:"20m"`
}

// DefaultConfig is what the flags default to.
func DefaultConfig() Config {
	return Config{AgentPatience: 30 * time.Second, PreparePatience: 30 * time.Minute, PlacePatience: 20 * time.Minute}
}

// Validate reports every fault.
func (c *Config) Validate() error {
	var errs []error
	if c.AgentPatience <= 0 {
		errs = append(errs, fmt.Errorf("--agent-patience: %s, want more than 0", c.AgentPatience))
	}
	if c.PreparePatience <= 0 {
		errs = append(errs, fmt.Errorf("--prepare-patience: %s, want more than 0", c.PreparePatience))
	}
	if c.PlacePatience <= 0 {
		errs = append(errs, fmt.Errorf("--place-patience: %s, want more than 0", c.PlacePatience))
	}
	return errors.Join(errs...)
}

// Service is the scheduler's entry in the list of services.
func Service() node.Service {
	cfg := DefaultConfig()
	return node.Service{
		Name: "scheduler", Short: "plan runs and hand their trials to agents", Role: bus.RoleScheduler, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}
