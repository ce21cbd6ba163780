package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/edge"
	"github.com/transferlab/transferlab/edge/camera"
	"github.com/transferlab/transferlab/edge/spool"
	"github.com/transferlab/transferlab/edge/uplink"
	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/schemas"
)

type runCmd struct {
	configFlag `embed:""`
}

// The collector works harder than usual, to leave a small machine its memory:
// there is little to do for it.
const (
	heapGrowth = 50 // percent
	heapLimit  = 48 << 20
)

func (r *runCmd) Run(ctx context.Context) error {
	cfg, err := r.load()
	if err != nil {
		return err
	}
	debug.SetGCPercent(heapGrowth)
	debug.SetMemoryLimit(heapLimit)
	return run(ctx, cfg, newLog(cfg.LogLevel))
}

// run opens the parts, works, and closes them.
func run(ctx context.Context, cfg edge.Config, log *slog.Logger) (err error) {
	parts := edge.Parts{Log: log}
	closing := func(what string, c func() error) {
		if e := c(); e != nil {
			err = errors.Join(err, fmt.Errorf("close %s: %w", what, e))
		}
	}
	parts.Source, err = camera.New(camera.Options{Name: cfg.Name, Source: cfg.Source, Clip: cfg.Clip, Motion: cfg.Motion, Log: log})
	if err != nil {
		return err
	}
	if parts.Lab, err = uplink.New(uplinkOptions(cfg, log)); err != nil {
		return err
	}
	defer parts.Lab.Close()
	if cfg.Local.Enabled {
		detector, err := vision.New(visionOptions(cfg, log))
		if err != nil {
			return fmt.Errorf("local.enabled: %w", err)
		}
		defer closing("the detector", detector.Close)
		parts.Detector = detector
	}
	parts.Spool, err = spool.Open(ctx, spool.Options{
		Dir: cfg.Spool.Dir, MaxBytes: int64(cfg.Spool.MaxBytes), MaxAge: time.Duration(cfg.Spool.MaxAge), Policy: cfg.Spool.WhenFull,
		Detection: cfg.Detection, Log: log,
	})
	if err != nil {
		return err
	}
	defer closing("the spool", parts.Spool.Close)
	if cfg.NATS.URL != "" && cfg.Policy.Kind == schemas.PolicyOverflow {
		if parts.Bus = join(ctx, cfg, log); parts.Bus != nil {
			defer closing("the bus", func() error {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
				defer cancel()
				return parts.Bus.Close(ctx)
			})
		}
	}
	log.Info("started", "version", version(), "name", cfg.Name, "source", cfg.Source.Kind, "motion", cfg.Motion.Kind, "policy", cfg.Policy.Kind)
	group, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group.Go(func() error {
		defer stop()
		return edge.Assemble(cfg, parts).Run(ctx)
	})
	group.Go(func() error {
		if err := tell(ctx, cfg, parts); err != nil {
			log.Warn("the command status will not work", "error", err)
		}
		return nil
	})
	return group.Wait()
}

// join connects to the bus. An edge that is switched on without a network works
// all the same: by the source's rule, until its next start.
func join(ctx context.Context, cfg edge.Config, log *slog.Logger) *bus.Conn {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	conn, err := bus.Connect(ctx, busOptions(cfg, log))
	if err != nil {
		log.Error("the policy overflow works without the queue, as the policy source, until the next start", "error", err)
		return nil
	}
	return conn
}

func busOptions(cfg edge.Config, log *slog.Logger) bus.Options {
	return bus.Options{
		URL: cfg.NATS.URL, User: cfg.NATS.User, Password: cfg.NATS.Password, CredsFile: cfg.NATS.CredsFile, CAFile: cfg.NATS.CAFile,
		Name: "edge-" + cfg.Name, Log: log,
	}
}

func uplinkOptions(cfg edge.Config, log *slog.Logger) uplink.Options {
	return uplink.Options{
		Gateway: cfg.Gateway, Token: cfg.Token, CAFile: cfg.CAFile, StoreAddr: cfg.Uplink.StoreAddress,
		Connections: cfg.Uplink.Connections, Path: cfg.Uplink.Path, Log: log,
	}
}

func visionOptions(cfg edge.Config, log *slog.Logger) vision.Options {
	return vision.Options{
		Model: cfg.Detection.Model, Sample: cfg.Detection.Sample, Threshold: cfg.Detection.Threshold,
		Threads: cfg.Local.Threads, Slots: cfg.Local.Slots, Dirs: cfg.Local.Models, Program: cfg.Local.Program, Nice: cfg.Local.Nice, Log: log,
	}
}
