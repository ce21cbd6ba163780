// Bench probe compares probes of the lab's prober with those of other tools, on
// the same machine, in the same minutes.
//
//	go run ./bench/probe [--binary .build/transferlab] [--out DIR] [--rounds 6] [--scenarios rtt,load,limit,mesh]
//
// Scenarios:
//
//	rtt    round trips of ICMP echo over the loopback interface beside fping and
//	       ping, interleaved: in each round every tool probes, in an order that rotates
//	load   10,000 probes a second beside fping, and cloudprober at what it can do:
//	       rate, processor time, memory, rows in the database
//	limit  1,000 probes a second with half a processor (cgroup), alone and with a
//	       busy loop in the same group
//	mesh   services/prober/examples/mesh-100.yaml: 600,000 rows
//
// The prober is a process of its own (`transferlab service prober`), a new one for
// each scenario, that is handed experiments by the scheduler of a lab of its own
// (`transferlab up`). Its figures are those of the lab's database; processor time and
// memory are the kernel's account of the process, from before the experiment is
// submitted until every row is stored.
//
// --out receives a file for each scenario, a line for each measurement as
// benchstat reads them, and conditions.txt.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
)

type options struct {
	binary, out, scenarios, cloudprober, meshFile string
	rounds, probes, loadRounds                    int
	loadDuration                                  time.Duration
}

func main() {
	o := options{}
	flag.StringVar(&o.binary, "binary", "", "a transferlab binary; built if not given")
	flag.StringVar(&o.out, "out", "", "directory for raw figures and conditions")
	flag.StringVar(&o.scenarios, "scenarios", strings.Join(scenarioNames(), ","), "which, separated by commas")
	flag.IntVar(&o.rounds, "rounds", 6, "rounds of rtt")
	flag.IntVar(&o.probes, "probes", 500, "probes of each tool in a round of rtt")
	flag.IntVar(&o.loadRounds, "load-rounds", 3, "rounds of load")
	flag.DurationVar(&o.loadDuration, "load-duration", 10*time.Second, "how long load and limit last")
	flag.StringVar(&o.cloudprober, "cloudprober", "cloudprober", "the cloudprober program")
	flag.StringVar(&o.meshFile, "mesh", "services/prober/examples/mesh-100.yaml", "experiment of mesh")
	if len(os.Args) == 2 && os.Args[1] == spinArgument {
		spin()
		return
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench/probe:", err)
		os.Exit(1)
	}
}

// bench is what the scenarios share.
type bench struct {
	*options
	figures.Sheet // of the scenario under way
	lab           *rig
}

func (b *bench) scenarios() []figures.Scenario {
	return []figures.Scenario{
		{Name: "rtt", Run: func(ctx context.Context) error { return measureRTT(ctx, b) }},
		{Name: "load", Run: func(ctx context.Context) error { return measureLoad(ctx, b) }},
		{Name: "limit", Run: func(ctx context.Context) error { return measureLimit(ctx, b) }},
		{Name: "mesh", Run: func(ctx context.Context) error { return measureMesh(ctx, b) }},
	}
}

func scenarioNames() []string { return []string{"rtt", "load", "limit", "mesh"} }

func (o *options) validate() error {
	var errs []error
	for _, name := range strings.Split(o.scenarios, ",") {
		if !slices.Contains(scenarioNames(), name) {
			errs = append(errs, fmt.Errorf("--scenarios: %q, want some of %s", name, strings.Join(scenarioNames(), ",")))
		}
	}
	for _, n := range []struct {
		name    string
		v, most int
	}{{"rounds", o.rounds, 1000}, {"probes", o.probes, 100_000}, {"load-rounds", o.loadRounds, 1000}} {
		if n.v < 1 || n.v > n.most {
			errs = append(errs, fmt.Errorf("--%s: %d, want 1 to %d", n.name, n.v, n.most))
		}
	}
	if o.loadDuration < time.Second || o.loadDuration > time.Hour {
		errs = append(errs, fmt.Errorf("--load-duration: %s, want 1s to 1h", o.loadDuration))
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, o *options, w io.Writer) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	if o.out != "" {
		if err := os.MkdirAll(o.out, 0o755); err != nil {
			return fmt.Errorf("make --out: %w", err)
		}
	}
	dir, err := os.MkdirTemp("", "transferlab-bench-probe-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := startRig(ctx, dir, o.binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()

	b := &bench{options: o, lab: l}
	fixed := append(machine(), figures.Condition{Name: "transferlab", Value: l.Version(ctx)})
	fixed = append(fixed, peerVersions(ctx, o)...)
	b.W = w
	return b.Measure(ctx, fixed, b.scenarios(), strings.Split(o.scenarios, ","), o.out)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
