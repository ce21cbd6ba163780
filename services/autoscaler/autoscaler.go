package autoscaler

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
)

// ServiceName is the service's name on the bus and on the command line.
const ServiceName = "autoscaler"

// Service is the autoscaler's entry in the list of services.
func Service() node.Service {
	cfg := DefaultConfig()
	return node.Service{
		Name: ServiceName, Short: "keep as many detectors as the queue of clips needs", Role: bus.RoleAutoscaler, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}

// Autoscaler is the service.
type Autoscaler struct {
	cfg  Config
	node *node.Node
}

// New returns an autoscaler; Run starts it.
func New(cfg Config, n *node.Node) *Autoscaler { return &Autoscaler{cfg: cfg, node: n} }

// Run scales until ctx ends. Processes end with it; containers and instances stay,
// for the next one to go on with.
func (a *Autoscaler) Run(ctx context.Context) error {
	if err := a.cfg.Validate(); err != nil {
		return err
	}
	c, log := a.node.Bus, a.node.Log
	if err := c.AwaitProvisioned(ctx, "KV_"+bus.BucketDetectors); err != nil {
		return err
	}
	driver, err := a.cfg.open(ctx, log)
	if err != nil {
		return err
	}
	defer func() {
		finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.StopGrace+10*time.Second)
		defer cancel()
		if err := driver.Close(finish); err != nil {
			log.Error("end the workers", "error", err)
		}
	}()
	recorder := bus.NewRecorder(c, bus.RecorderOptions{Service: ServiceName, Producer: ServiceName + "/" + rand.Text()[:12], InFlight: 1, Log: log})
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := recorder.Close(flush); err != nil {
			log.Error("events not stored", "error", err)
		}
	}()
	board, err := watchBoard(ctx, c, log)
	if err != nil {
		return err
	}
	l := NewLoop(a.cfg.policy(), a.cfg.Every, Parts{
		Queue: queue{c}, Workers: board, Drainer: drainer{c}, Driver: driver, Record: recorder.Record, Log: log,
	})
	a.node.Check("observation", l.Healthy)
	a.node.Ready()
	return l.Run(ctx)
}
