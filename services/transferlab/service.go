package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/services"
)

// serviceCmd runs one service as a process of its own, on a bus that is there.
type serviceCmd struct {
	Args []string `arg:"" optional:"" name:"name" help:"The service and its flags; service NAME --help shows them."`
}

// serviceFlags are those of every service, beside its own.
type serviceFlags struct {
	busFlags
	MetricsAddr string `help:"Address of /healthz and /metrics; empty serves none." env:"TRANSFERLAB_METRICS_ADDR" default:"127.0.0.1:0"`
	WithParent  bool   `help:"End when standard input does: for a process that another one starts and feeds." env:"TRANSFERLAB_WITH_PARENT" hidden:""`
	Provision   bool   `help:"Create or update the bus's streams and buckets first (needs the rights to)." env:"TRANSFERLAB_PROVISION"`
}

func (s *serviceCmd) Run(ctx context.Context) error {
	all := services.All()
	names := make([]string, len(all))
	for i, entry := range all {
		names[i] = entry.Name
	}
	if len(s.Args) == 0 || strings.HasPrefix(s.Args[0], "-") {
		fmt.Println("transferlab service NAME [flags]")
		for _, entry := range all {
			fmt.Printf("  %-14s %s\n", entry.Name, entry.Short)
		}
		return nil
	}
	at := slices.Index(names, s.Args[0])
	if at < 0 {
		return usage("service %q, want one of %s", s.Args[0], strings.Join(names, ", "))
	}
	service := all[at]
	var flags serviceFlags
	options := []kong.Option{kong.Name("transferlab service " + service.Name), kong.Description(service.Short)}
	if service.Config != nil {
		options = append(options, kong.Embed(service.Config))
	}
	parser, err := kong.New(&flags, options...)
	if err != nil {
		return fmt.Errorf("flags of %s: %w", service.Name, err)
	}
	if _, err := parser.Parse(s.Args[1:]); err != nil {
		return usage("%v", err)
	}
	if v, ok := service.Config.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return usage("%v", err)
		}
	}
	return flags.run(ctx, service)
}

func (f *serviceFlags) run(ctx context.Context, service node.Service) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if f.WithParent {
		var end context.CancelFunc
		ctx, end = context.WithCancel(ctx)
		defer end()
		go func() {
			// However the parent ends, this does too.
			_, err := io.Copy(io.Discard, os.Stdin)
			log.Debug("standard input ended", "error", err)
			end()
		}()
	}
	options := f.options()
	if options.URL == "" {
		return usage("--nats: missing, want the address of a bus such as nats://host:4222 (or TRANSFERLAB_NATS)")
	}
	if options.User == "" && options.CredsFile == "" {
		options.User = service.Role
	}
	options.Name, options.Log = service.Name, log
	conn, err := bus.Connect(ctx, options)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if f.Provision {
		if err := conn.Provision(ctx, bus.DefaultLimits()); err != nil {
			return err
		}
	}
	metrics := node.Registry()
	n, err := node.New(service, version(), conn, metrics, log)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	if f.MetricsAddr != "" {
		addr, served, err := node.Serve(ctx, f.MetricsAddr, node.Handler(metrics, n), log)
		if err != nil {
			return err
		}
		log.Info("health and metrics", "address", addr.String())
		// A service may end before it is told to.
		defer func() { end(); <-served }()
	}
	log.Info("starting", "service", service.Name, "version", version())
	err = n.Run(ctx, service)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
