// Bench offload measures the way of a clip from motion to result, beside peers
// on the same machine, in the same minutes.
//
//	go run ./bench/offload [--binary .build/transferlab] [--out DIR] [--rounds 7] [--scenarios detect,far,surface]
//
// Scenarios:
//
//	detect   decoding and inference of a 10.5 MB clip in the lab's detector beside a
//	         bare loop over gocv's VideoCapture and network, interleaved
//	far      services/detector/examples/far.yaml: an edge 50 ms away
//	surface  services/detector/examples/surface.yaml: local, cloud and adaptive over
//	         round trip, uplink and the lab's queue, beside the best assignment of
//	         clips in hindsight (oracle.go)
//
// The lab is a process of its own (`transferlab up`), with its own detector and
// edges; figures are those of its database. What the autoscaler's policies do beside
// KEDA's and an oracle is `go run ./services/autoscaler/simulate/autoscale-sim`.
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
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/transferlab/transferlab/bench/internal/figures"
	"github.com/transferlab/transferlab/bench/internal/lab"
)

type options struct {
	binary, out, scenarios, barecv, model, examples string
	rounds                                          int
}

func main() {
	o := options{}
	flag.StringVar(&o.binary, "binary", "", "a transferlab binary; built if not given")
	flag.StringVar(&o.out, "out", "", "directory for raw figures and conditions")
	flag.StringVar(&o.scenarios, "scenarios", strings.Join(scenarioNames(), ","), "which, separated by commas")
	flag.StringVar(&o.barecv, "barecv", ".build/barecv", "the bare loop's program (task bench builds it)")
	flag.StringVar(&o.model, "model", defaultModel(), "NanoDet's file, for the bare loop")
	flag.StringVar(&o.examples, "examples", "services/detector/examples", "folder of the experiments")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds of detect")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench/offload:", err)
		os.Exit(1)
	}
}

// defaultModel is where task opencv puts it.
func defaultModel() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "transferlab", "models", "nanodet-g-416-coco.onnx")
}

// bench is what the scenarios share.
type bench struct {
	*options
	figures.Sheet // of the scenario under way
	lab           *lab.Lab
	clip          string // that detect looks at
}

func (b *bench) measurements() []figures.Scenario {
	return []figures.Scenario{
		{Name: "detect", Run: b.detect},
		{Name: "far", Run: b.far},
		{Name: "surface", Run: b.surface},
	}
}

func scenarioNames() []string { return []string{"detect", "far", "surface"} }

func (o *options) validate() error {
	var errs []error
	for _, name := range strings.Split(o.scenarios, ",") {
		if !slices.Contains(scenarioNames(), name) {
			errs = append(errs, fmt.Errorf("--scenarios: %q, want some of %s", name, strings.Join(scenarioNames(), ",")))
		}
	}
	if o.rounds < 1 || o.rounds > 1000 {
		errs = append(errs, fmt.Errorf("--rounds: %d, want 1 to 1000", o.rounds))
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
	dir, err := os.MkdirTemp("", "transferlab-bench-offload-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary, err := lab.Build(ctx, dir, o.binary, os.Stderr)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "starting the lab")
	l, err := lab.Start(ctx, dir, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	b := &bench{options: o, lab: l}
	fixed := append(figures.Machine(), figures.Condition{Name: "transferlab", Value: l.Version(ctx)},
		figures.Condition{Name: "ffmpeg", Value: firstLine(ctx, "ffmpeg", "-version")})
	b.W = w
	return b.Measure(ctx, fixed, b.measurements(), strings.Split(o.scenarios, ","), o.out)
}

func firstLine(ctx context.Context, program string, args ...string) string {
	out, err := exec.CommandContext(ctx, program, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil || line == "" {
		return "unknown"
	}
	return line
}

// example is the text of one of the experiments.
func (b *bench) example(name string) (string, error) {
	text, err := os.ReadFile(b.examples + "/" + name + ".yaml")
	if err != nil {
		return "", fmt.Errorf("read the experiment: %w", err)
	}
	return string(text), nil
}
