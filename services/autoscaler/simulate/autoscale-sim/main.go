// Command autoscale-sim replays bursts, or a recorded trace, against every policy
// and against an oracle, and prints a table for each.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/transferlab/transferlab/services/autoscaler/simulate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "autoscale-sim:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("autoscale-sim", flag.ContinueOnError)
	seeds := flags.Int("seeds", 200, "seeds to run")
	first := flags.Uint64("first", 1001, "first of them; the policies' settings were chosen on seeds below 1000")
	only := flags.String("scenario", "", "run this scenario alone")
	file := flags.String("trace", "", "replay this CSV (columns at_s and, if measured, service_s) instead of the bursts")
	service := flags.Duration("service", 10*time.Second, "mean time in work where the trace has none; exponential")
	load := flags.Float64("load", 0, "offered load in Erlang of a burst of your own, instead of the usual ones")
	length := flags.Duration("length", 20*time.Minute, "length of the burst, with -load")
	boot := flags.Duration("boot", 45*time.Second, "boot time, with -trace and -load")
	most := flags.Int("cap", 19, "most instances, with -trace and -load")
	wait := flags.Duration("wait", 10*time.Second, "acceptable wait at the 95th percentile, with -trace and -load")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *seeds < 1 || *seeds > 100_000 || *most < 1 || *most > 1000 || *boot < 0 || *wait <= 0 || *service < time.Millisecond || !(*load >= 0 && *load <= 1000) || *length <= 0 {
		return errors.New("want -seeds 1 to 100000, -cap 1 to 1000, -load 0 to 1000, -boot of 0 or more, -service from 1ms on, -wait and -length above 0")
	}
	world := simulate.World{Boot: *boot, Cap: *most, Wait: *wait}
	scenarios := simulate.Bursts()
	switch {
	case *file != "":
		scenarios = []simulate.Scenario{recorded(*file, *service, world)}
	case *load > 0:
		about := fmt.Sprintf("%g Erlang for %s, clips of %s, boot of %s", *load, *length, *service, *boot)
		scenarios = []simulate.Scenario{simulate.Poisson("burst", about, simulate.Burst{
			Quiet: time.Minute, Length: *length, Load: *load, Mean: *service, Service: simulate.Exponential(*service),
		}, world)}
	}
	shown := 0
	for _, s := range scenarios {
		if *only != "" && s.Name != *only {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		t, err := simulate.Compare(s, simulate.Contenders(s.World), *first, *seeds)
		if err != nil {
			return err
		}
		if err := show(out, &t); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		shown++
	}
	if shown == 0 {
		return fmt.Errorf("-scenario: %q is none of them", *only)
	}
	return nil
}

func recorded(file string, service time.Duration, w simulate.World) simulate.Scenario {
	return simulate.Scenario{
		Name: "trace", About: file, World: w,
		Trace: func(r *rand.Rand) (simulate.Trace, error) {
			f, err := os.Open(file)
			if err != nil {
				return simulate.Trace{}, err
			}
			defer func() { _ = f.Close() }()
			return simulate.ReadTrace(f, r, simulate.Exponential(service))
		},
	}
}

func show(out io.Writer, t *simulate.Table) error {
	fmt.Fprintf(out, "%s: %s\n", t.Scenario.Name, t.Scenario.About)
	fmt.Fprintf(out, "%d seeds, median and its 95 %% interval; oracle: %d instances, p95 wait by theory %.1f s; shares are of seeds within the target\n",
		t.Seeds, t.Instances, t.Theory.Seconds())
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join([]string{
		"policy", "p50 s", "p95 s", "max s", "p95 / oracle (≤1.25 in)", "p95 / all at once", "cost / oracle (≤1.15 in)",
		"reversals (≤2 in)", "decided s (≤1 in)", "worst s", "full s", "peak",
	}, "\t"))
	for _, r := range t.Rows {
		fmt.Fprintln(w, strings.Join([]string{
			r.Policy, one(r.P50), interval(r.P95), one(r.Max),
			interval(r.WaitRatio) + share(r.WaitHeld), interval(r.AtOnceRatio), interval(r.CostRatio) + share(r.CostHeld),
			fmt.Sprintf("%.0f", r.Reversals.Median) + share(r.Turns), fmt.Sprintf("%.2f", r.Decided.Median) + share(r.Now),
			one(r.Worst), one(r.Full), fmt.Sprintf("%.0f", r.Peak.Median),
		}, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out)
	return err
}

func one(e simulate.Estimate) string { return fmt.Sprintf("%.1f", e.Median) }

func interval(e simulate.Estimate) string {
	return fmt.Sprintf("%.2f [%.2f, %.2f]", e.Median, e.Low, e.High)
}

func share(s float64) string { return fmt.Sprintf(" %.0f%%", 100*s) }
