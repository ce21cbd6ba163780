// Bench s3 compares downloads by the lab's s3-loader with those of other S3
// clients, on the same store, in the same minutes: throughput, requests a
// second and processor time of the client's process for each gigabyte.
//
//	go run ./bench/s3 [--rounds 5] [--clients ours,net/http,…] [--cells 1MiB/8,…] [--raw FILE]
//
// The server is a lab of its own (`transferlab up`), the s3-loader a process of
// its own (`transferlab service s3-loader`) that is handed experiments by the
// lab's scheduler; every event it records is looked for in the lab's database.
// The other clients' libraries run in processes of their own too, tools as
// found on the PATH. Rounds are interleaved: in each, every client does every
// cell, in an order that changes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
)

// cell is one measurement: so many objects of a size, each fetched once.
type cell struct {
	name    string // of the size: 1MiB
	size    int64
	objects int
	// concurrency is how many downloads are under way at a time; tools that
	// split objects take it for parts.
	concurrency int
}

func (c cell) String() string { return fmt.Sprintf("%s/%d", c.name, c.concurrency) }

func (c cell) bytes() int64 { return c.size * int64(c.objects) }

func cells() []cell {
	var out []cell
	for _, concurrency := range []int{8, 64} {
		out = append(out,
			cell{"1MiB", 1 << 20, 2000, concurrency},
			cell{"100MiB", 100 << 20, 8, concurrency},
			cell{"1GiB", 1 << 30, 1, concurrency})
	}
	return out
}

// measured is what one client did in one cell of one round.
type measured struct {
	Bytes    int64         `json:"bytes"`
	Requests int64         `json:"requests"` // objects, however often they were split
	Elapsed  time.Duration `json:"elapsed_ns"`
	CPU      time.Duration `json:"cpu_ns"` // of the client's process; negative: not known
}

func (m measured) rate() float64 { return float64(m.Bytes) / 1e6 / m.Elapsed.Seconds() }

func (m measured) requestRate() float64 { return float64(m.Requests) / m.Elapsed.Seconds() }

func (m measured) cpuPerGB() float64 { return m.CPU.Seconds() / (float64(m.Bytes) / 1e9) }

// client downloads the objects of a cell.
type client struct {
	name string
	what string // version and how it is used
	run  func(ctx context.Context, c cell) (measured, error)
}

// ceiling is the client that the others are compared with.
const ceiling = "net/http"

type options struct {
	rounds                      int
	clients, cells, raw, binary string
	verbose, listed             bool
}

func main() {
	if spec := os.Getenv(peerVariable); spec != "" {
		if err := runPeer(context.Background(), spec, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "rounds")
	flag.StringVar(&o.clients, "clients", "", "only these clients, by name, separated by commas")
	flag.StringVar(&o.cells, "cells", "", "only these cells, such as 1MiB/8")
	flag.StringVar(&o.raw, "raw", "", "write every measurement to this file, for benchstat")
	flag.StringVar(&o.binary, "binary", "", "a transferlab binary; built if not given")
	flag.BoolVar(&o.verbose, "v", false, "print every measurement")
	flag.BoolVar(&o.listed, "list", false, "list clients and cells")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/s3:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "transferlab-bench-s3-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := startRig(ctx, dir, o.binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()

	todo := selected(cells(), o.cells, cell.String)
	clients := selected(append(append(l.loaders(), peers(l.Lab)...), tools(l.Lab)...), o.clients, func(c client) string { return c.name })
	if o.listed {
		for _, c := range clients {
			fmt.Printf("%-20s %s\n", c.name, c.what)
		}
		return nil
	}
	if len(todo) == 0 || len(clients) == 0 {
		return errors.New("nothing to measure: see --list")
	}
	say("populating")
	for _, c := range todo {
		if err := l.populate(ctx, c); err != nil {
			return err
		}
	}
	results, err := measure(ctx, o, todo, clients)
	if err != nil {
		return err
	}
	conditions := describe(ctx, l, o, clients)
	if o.raw != "" {
		if err := writeRaw(o.raw, conditions, todo, clients, results); err != nil {
			return err
		}
	}
	return report(os.Stdout, conditions, todo, clients, results)
}

// selected keeps what a comma-separated list names, all if it is empty.
func selected[T any](all []T, names string, name func(T) string) []T {
	if names == "" {
		return all
	}
	return slices.DeleteFunc(all, func(v T) bool { return !slices.Contains(strings.Split(names, ","), name(v)) })
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

type key struct{ cell, client string }

func measure(ctx context.Context, o options, todo []cell, clients []client) (map[key][]measured, error) {
	results := map[key][]measured{}
	random := rand.New(rand.NewPCG(1, 2))
	for round := range o.rounds {
		say("round %d of %d", round+1, o.rounds)
		for _, c := range todo {
			for _, i := range random.Perm(len(clients)) {
				cl := clients[i]
				m, err := cl.run(ctx, c)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", cl.name, c, err)
				}
				if m.Bytes != c.bytes() {
					return nil, fmt.Errorf("%s, %s: %d bytes, want %d", cl.name, c, m.Bytes, c.bytes())
				}
				if o.verbose {
					say("  %-10s %-20s %8.0f MB/s %8.0f requests/s %6.3f CPU s/GB", c, cl.name, m.rate(), m.requestRate(), m.cpuPerGB())
				}
				k := key{c.String(), cl.name}
				results[k] = append(results[k], m)
			}
		}
	}
	return results, nil
}

func describe(ctx context.Context, l *rig, o options, clients []client) []figures.Condition {
	out := append(figures.Machine(),
		figures.Condition{Name: "transferlab", Value: l.Version(ctx)},
		figures.Condition{Name: "rounds", Value: strconv.Itoa(o.rounds)},
		figures.Condition{Name: "load", Value: figures.Load()},
		figures.Condition{Name: "date", Value: time.Now().UTC().Format(time.RFC3339)})
	for _, c := range clients {
		out = append(out, figures.Condition{Name: "client-" + strings.ReplaceAll(c.name, "/", "-"), Value: c.what})
	}
	return out
}

// report prints medians and, of throughput and processor time, their ratio to
// the ceiling's.
func report(w io.Writer, conditions []figures.Condition, todo []cell, clients []client, results map[key][]measured) error {
	for _, c := range conditions {
		fmt.Fprintf(w, "%s: %s\n", c.Name, c.Value)
	}
	for _, c := range todo {
		fmt.Fprintf(w, "\n%d x %s, concurrency %d: medians of %d rounds\n", c.objects, c.name, c.concurrency, len(results[key{c.String(), clients[0].name}]))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "client\tMB/s\tof "+ceiling+"\trequests/s\tCPU s/GB\tof "+ceiling+"\t")
		base := results[key{c.String(), ceiling}]
		for _, cl := range clients {
			ms := results[key{c.String(), cl.name}]
			ratio := func(of func(measured) float64) string {
				if len(base) == 0 || of(ms[0]) < 0 {
					return "-"
				}
				return fmt.Sprintf("%.2f", figures.Median(ms, of)/figures.Median(base, of))
			}
			cpu := "-"
			if ms[0].CPU >= 0 {
				cpu = fmt.Sprintf("%.3f", figures.Median(ms, measured.cpuPerGB))
			}
			fmt.Fprintf(t, "%s\t%.0f\t%s\t%.0f\t%s\t%s\t\n", cl.name, figures.Median(ms, measured.rate), ratio(measured.rate),
				figures.Median(ms, measured.requestRate), cpu, ratio(measured.cpuPerGB))
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	captureCost(w, todo, results)
	return nil
}

// captureCost is what recording every request costs: the s3-loader with it
// against the s3-loader without, in pairs from the same round and cell. The
// interval is that of the mean logarithm.
func captureCost(w io.Writer, todo []cell, results map[key][]measured) {
	pairs := func(of func(measured) float64) (logs []float64) {
		for _, c := range todo {
			with, without := results[key{c.String(), loaderName}], results[key{c.String(), withoutCapture}]
			for i := range min(len(with), len(without)) {
				logs = append(logs, math.Log(of(with[i])/of(without[i])))
			}
		}
		return logs
	}
	rates, times := pairs(measured.rate), pairs(measured.cpuPerGB)
	if len(rates) < 2 {
		return
	}
	fmt.Fprintf(w, "\ncapture, %d pairs: throughput %s, processor time %s\n", len(rates), change(rates), change(times))
}

func change(logs []float64) string {
	mean, squares := 0.0, 0.0
	for _, v := range logs {
		mean += v / float64(len(logs))
	}
	for _, v := range logs {
		squares += (v - mean) * (v - mean)
	}
	half := 1.96 * math.Sqrt(squares/float64(len(logs)-1)/float64(len(logs)))
	percent := func(v float64) float64 { return 100 * (math.Exp(v) - 1) }
	return fmt.Sprintf("%+.1f %% (95 %%: %+.1f to %+.1f)", percent(mean), percent(mean-half), percent(mean+half))
}

// writeRaw writes one line for each measurement, as benchstat reads them.
func writeRaw(path string, conditions []figures.Condition, todo []cell, clients []client, results map[key][]measured) error {
	var rows []string
	for _, c := range todo {
		for _, cl := range clients {
			for _, m := range results[key{c.String(), cl.name}] {
				row := fmt.Sprintf("BenchmarkGet/size=%s/c=%d/client=%s 1 %d ns/op %.1f MB/s %.1f req/s", c.name, c.concurrency,
					strings.ReplaceAll(cl.name, "/", "-"), m.Elapsed.Nanoseconds(), m.rate(), m.requestRate())
				if m.CPU >= 0 {
					row += fmt.Sprintf(" %.4f CPU-s/GB", m.cpuPerGB())
				}
				rows = append(rows, row)
			}
		}
	}
	return figures.Write(path, conditions, rows)
}
