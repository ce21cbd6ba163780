// Command collector measures how events get from producers to the database, on
// the real program: it starts `transferlab up` in a directory of its own and
// talks to it as any producer and any SQL client would.
//
//	go run ./bench/collector [--binary PATH] [--rounds 5] [--rows 8000000] [--raw FILE]
//
// Rows are requests of the s3 workload as the s3-loader records them; see
// shape. It prints
//
//   - the bare engine: the same rows in blocks of the size of the collector's
//     inserts, encoded before the clock starts, one after the other straight into
//     a table of the same definition. Once as recorded, which is how any columnar
//     client would send them: row by row as they come, producers mixed. Once as
//     the collector sends them: grouped and sorted, which spares the engine most of
//     its work; what that costs is in the collector's figure;
//   - the collector: the same rows recorded event by event, encoded, stored on
//     the bus, inspected, merged, inserted: rows divided by the time from the first
//     event recorded to the last one in the answer of a query;
//   - event to queryable at a steady rate, from the moment an event is recorded
//     to the first query that sees it;
//   - bytes of disk an event takes, before and after the database has merged.
//
// Rounds of the first three alternate; figures are medians. --raw writes every
// round in the format of benchstat.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	if err := o.parse(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench/collector:", err)
		}
		os.Exit(2)
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/collector:", err)
		os.Exit(1)
	}
}

type options struct {
	Binary    string        // of transferlab; built if empty
	Rounds    int           // of each rate
	Rows      int           // of a round
	Block     int           // rows of the engine's blocks: what the collector inserts at most
	Producers int           // recorders, each with a connection of its own
	Rate      int           // events a second while latency is measured
	Steady    time.Duration // how long that is
	Disk      int           // rows for the measurement of bytes
	Raw       string        // file for benchstat
}

func (o *options) parse(args []string) error {
	set := flag.NewFlagSet("bench/collector", flag.ContinueOnError)
	set.StringVar(&o.Binary, "binary", "", "transferlab to measure; built from this tree if not given")
	set.IntVar(&o.Rounds, "rounds", 5, "rounds of each rate")
	set.IntVar(&o.Rows, "rows", 8_000_000, "events of a round")
	set.IntVar(&o.Block, "block", 1<<19, "rows of a block sent to the bare engine")
	set.IntVar(&o.Producers, "producers", 2, "producers at a time")
	set.IntVar(&o.Rate, "rate", 100_000, "events a second while latency is measured")
	set.DurationVar(&o.Steady, "steady", 20*time.Second, "how long latency is measured")
	set.IntVar(&o.Disk, "disk", 1_000_000, "events for the measurement of bytes")
	set.StringVar(&o.Raw, "raw", "", "file to write every round to, for benchstat")
	if err := set.Parse(args); err != nil {
		return err
	}
	var errs []error
	for _, f := range []struct {
		name       string
		value, low int
	}{
		{"--rounds", o.Rounds, 1},
		{"--rows", o.Rows, 1000},
		{"--block", o.Block, 1000},
		{"--producers", o.Producers, 1},
		{"--rate", o.Rate, 1},
		{"--disk", o.Disk, 1000},
	} {
		if f.value < f.low {
			errs = append(errs, fmt.Errorf("%s: %d, want at least %d", f.name, f.value, f.low))
		}
	}
	if o.Steady < time.Second {
		errs = append(errs, fmt.Errorf("--steady: %s, want at least 1s", o.Steady))
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "bench-collector-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	l, err := startRig(ctx, dir, o.Binary)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	// The rows wait in memory; no loader would look through so many over and over.
	debug.SetGCPercent(400)
	b := &bench{options: o, lab: l, out: os.Stdout}
	if err := b.conditions(ctx); err != nil {
		return err
	}
	// First, while the table holds nothing else.
	disk, err := b.disk(ctx)
	if err != nil {
		return fmt.Errorf("bytes an event: %w", err)
	}
	fmt.Fprintf(b.out, "bytes an event on disk, %d events of %d a second: %.2f as inserted, %.2f merged\n",
		o.Disk, int(defaultShape().Rate), disk.inserted, disk.merged)

	recorded := series{name: "EngineAsRecorded"}
	collected := series{name: "EngineAsCollected"}
	whole := series{name: "Collector"}
	for i := range o.Rounds {
		for _, m := range []struct {
			s       *series
			measure func() (round, error)
		}{
			{&recorded, func() (round, error) { return b.engine(ctx, b.asRecorded) }},
			{&collected, func() (round, error) { return b.engine(ctx, b.asCollected) }},
			{&whole, func() (round, error) { return b.collector(ctx) }},
		} {
			r, err := m.measure()
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", m.s.name, i+1, err)
			}
			m.s.rounds = append(m.s.rounds, r)
			fmt.Fprintf(b.out, "round %d of %d: %-17s %8.0f events/s, %.2f CPU s per 1M\n", i+1, o.Rounds, m.s.name, r.rate(), r.cpu())
		}
	}
	late, err := b.latency(ctx)
	if err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	er, ec, c := recorded.median(), collected.median(), whole.median()
	fmt.Fprintf(b.out, `
medians of %d rounds of %d events
  bare engine, rows as recorded       %8.0f events/s   %.2f CPU s per 1M events
  bare engine, rows as collected      %8.0f events/s   %.2f CPU s per 1M events
  producers to queryable              %8.0f events/s   %.2f CPU s per 1M events (producers %.2f, lab %.2f, engine %.2f)
  ratio to the engine: %.0f %% of the rate for rows as recorded, %.0f %% of that for rows as collected
event to queryable at %d events/s: p50 %s, p99 %s, max %s (%d samples over %s; %d events/s recorded)
bytes an event on disk: %.2f merged, %.2f as inserted
`, o.Rounds, o.Rows, er.rate(), er.cpu(), ec.rate(), ec.cpu(), c.rate(), c.cpu(),
		c.perMillion(c.producerCPU), c.perMillion(c.labCPU), c.perMillion(c.engineCPU),
		100*c.rate()/er.rate(), 100*c.rate()/ec.rate(), o.Rate, late.p50, late.p99, late.max, late.samples, o.Steady, late.rate, disk.merged, disk.inserted)
	if o.Raw == "" {
		return nil
	}
	return writeRaw(o.Raw, []series{recorded, collected, whole}, late, disk)
}

// round is one measurement of a rate.
type round struct {
	rows                           int
	took                           time.Duration
	labCPU, engineCPU, producerCPU time.Duration
}

func (r round) rate() float64 { return float64(r.rows) / r.took.Seconds() }

func (r round) cpu() float64 { return r.perMillion(r.labCPU + r.engineCPU + r.producerCPU) }

func (r round) perMillion(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(r.rows) }

// series is the rounds of one rate.
type series struct {
	name   string
	rounds []round
}

// median is the round of the median rate.
func (s series) median() round {
	sorted := slices.Clone(s.rounds)
	slices.SortFunc(sorted, func(x, y round) int { return cmp.Compare(x.rate(), y.rate()) })
	return sorted[len(sorted)/2]
}

// writeRaw writes a line for every round, as `go test -bench` would.
func writeRaw(path string, rates []series, late latency, d diskUse) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	fmt.Fprintln(f, "pkg: github.com/transferlab/transferlab/bench/collector")
	for _, s := range rates {
		for _, r := range s.rounds {
			fmt.Fprintf(f, "Benchmark%s\t%d\t%.2f ns/op\t%.0f events/s\t%.3f CPU-s/1M\n", s.name, r.rows, float64(r.took)/float64(r.rows), r.rate(), r.cpu())
		}
	}
	fmt.Fprintf(f, "BenchmarkLatency\t%d\t%d p50-ns\t%d p99-ns\t%d max-ns\n", late.samples, late.p50, late.p99, late.max)
	fmt.Fprintf(f, "BenchmarkDisk\t1\t%.3f B/event\t%.3f inserted-B/event\n", d.merged, d.inserted)
	return f.Close()
}
