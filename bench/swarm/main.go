// Bench swarm compares the lab's BitTorrent swarms with those of other
// libraries, with a plain TCP copy, with what rates allow at best, and with
// downloads of the same bytes from S3.
//
//	go run ./bench/swarm [--binary .build/transferlab] [--out DIR] [--scenarios transfer,single,swarm200,bound,crossover] [--quick]
//
// Scenarios:
//
//	transfer   one seeder, three leechers, 10 kB to 100 MB: every contestant in
//	           every round, in an order that rotates
//	single     one seeder, one leecher, 100 MB, beside a plain TCP copy
//	swarm200   200 leechers, 10 MB: spread, memory, processor time
//	bound      50 leechers, 10 MB, limits of rates: the fluid lower bound divided
//	           by the time of the last leecher
//	crossover  10 MB to 1 to 32 receivers by swarm and by S3, with an uplink of
//	           100 Mbit/s (needs root) and without limits
//
// The swarm-runner is a process of its own (`transferlab service swarm-runner`)
// that is handed experiments by the scheduler of a lab of its own (`transferlab
// up`); its figures are those of the lab's database. libtorrent (libtorrent.py,
// with Debian's python3-libtorrent) and anacrolix/torrent (anacrolix, built here)
// are one process each, too, that live as long as the bench, and so are warm.
// Their tracker is a handler of the bench. Everybody times a leecher from the
// call that starts it until it is told that the last piece is verified, keeps
// content in memory (libtorrent: files on tmpfs), and looks at the SHA-256 of
// every file afterwards. Processor time is that of the contestant's process for
// the whole measurement: making the torrent, the tracker of ours, and checks
// included.
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

	"github.com/transferlab/transferlab/bench/internal/figures"
	"github.com/transferlab/transferlab/schemas"
)

type options struct {
	binary, out, scenarios, sizes, contestants, script, isolation string
	rounds, largeRounds, leechers                                 int
	quick                                                         bool
}

func main() {
	o := options{}
	flag.StringVar(&o.binary, "binary", "", "a transferlab binary; built if not given")
	flag.StringVar(&o.out, "out", "", "directory for raw figures and conditions")
	flag.StringVar(&o.scenarios, "scenarios", strings.Join(scenarioNames(), ","), "which, separated by commas")
	flag.StringVar(&o.sizes, "sizes", "10kB,100kB,1MB,10MB,100MB", "of the files of transfer, separated by commas")
	flag.StringVar(&o.contestants, "contestants", "", "only these of transfer, single and bound, separated by commas: "+strings.Join(contestantNames(), ","))
	flag.StringVar(&o.script, "libtorrent", "bench/swarm/libtorrent.py", "the script with libtorrent's peers")
	flag.StringVar(&o.isolation, "libtorrent-isolation", "shared", "sessions of libtorrent in one process (shared), no slower and cheaper, or each leecher in its own (process)")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds of transfer, and of bound and crossover 3 at most")
	flag.IntVar(&o.largeRounds, "large-rounds", 3, "rounds at 50 MB and more")
	flag.IntVar(&o.leechers, "leechers", 200, "leechers of swarm200")
	flag.BoolVar(&o.quick, "quick", false, "one round of everything, files up to 10 MB, 50 leechers: a smoke test")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench/swarm:", err)
		os.Exit(1)
	}
}

// bench is what the scenarios share.
type bench struct {
	*options
	figures.Sheet // of the scenario under way
	lab           *rig
	peers         *peers
}

func (b *bench) scenarios() []figures.Scenario {
	return []figures.Scenario{
		{Name: "transfer", Run: func(ctx context.Context) error { return measureTransfer(ctx, b) }},
		{Name: "single", Run: func(ctx context.Context) error { return measureSingle(ctx, b) }},
		{Name: "swarm200", Run: func(ctx context.Context) error { return measureCrowd(ctx, b) }},
		{Name: "bound", Run: func(ctx context.Context) error { return measureBound(ctx, b) }},
		{Name: "crossover", Run: func(ctx context.Context) error { return measureCrossover(ctx, b) }},
	}
}

func scenarioNames() []string {
	return []string{"transfer", "single", "swarm200", "bound", "crossover"}
}

func (o *options) validate() error {
	var errs []error
	for name := range strings.SplitSeq(o.scenarios, ",") {
		if !slices.Contains(scenarioNames(), name) {
			errs = append(errs, fmt.Errorf("--scenarios: %q, want some of %s", name, strings.Join(scenarioNames(), ",")))
		}
	}
	if o.contestants != "" {
		for name := range strings.SplitSeq(o.contestants, ",") {
			if !slices.Contains(contestantNames(), name) {
				errs = append(errs, fmt.Errorf("--contestants: %q, want some of %s", name, strings.Join(contestantNames(), ",")))
			}
		}
	}
	if _, err := o.parseSizes(); err != nil {
		errs = append(errs, err)
	}
	if o.isolation != "shared" && o.isolation != "process" {
		errs = append(errs, fmt.Errorf("--libtorrent-isolation: %q, want shared or process", o.isolation))
	}
	for _, n := range []struct {
		name    string
		v, most int
	}{{"rounds", o.rounds, 1000}, {"large-rounds", o.largeRounds, 1000}, {"leechers", o.leechers, 1000}} {
		if n.v < 1 || n.v > n.most {
			errs = append(errs, fmt.Errorf("--%s: %d, want 1 to %d", n.name, n.v, n.most))
		}
	}
	return errors.Join(errs...)
}

func (o *options) parseSizes() ([]schemas.Size, error) {
	var out []schemas.Size
	for text := range strings.SplitSeq(o.sizes, ",") {
		s, err := schemas.ParseSize(text)
		if err != nil || s < 1 || s > 1<<30 {
			return nil, fmt.Errorf("--sizes: %q, want sizes from 1B to 1GiB, such as 10kB,1MB", text)
		}
		out = append(out, s)
	}
	return out, nil
}

// shorten makes a smoke test of it.
func (o *options) shorten() error {
	sizes, err := o.parseSizes()
	if err != nil {
		return err
	}
	var kept []string
	for _, s := range sizes {
		if s <= 10_000_000 {
			kept = append(kept, s.String())
		}
	}
	if len(kept) > 0 {
		o.sizes = strings.Join(kept, ",")
	}
	o.rounds, o.largeRounds, o.leechers = 1, 1, min(o.leechers, 50)
	return nil
}

func run(ctx context.Context, o *options, w io.Writer) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	if o.quick {
		if err := o.shorten(); err != nil {
			return err
		}
	}
	if o.out != "" {
		if err := os.MkdirAll(o.out, 0o755); err != nil {
			return fmt.Errorf("make --out: %w", err)
		}
	}
	dir, err := os.MkdirTemp("", "transferlab-bench-swarm-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{options: o}
	if b.peers, err = startPeers(ctx, o, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.peers.close()) }()
	fixed := figures.Machine()
	if o.wants(oursName) {
		if b.lab, err = startRig(ctx, dir, o.binary); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.lab.close()) }()
		fixed = append(fixed, figures.Condition{Name: "transferlab", Value: b.lab.Version(ctx)})
	}
	fixed = append(fixed, b.peers.versions...)
	b.W = w
	return b.Measure(ctx, fixed, b.scenarios(), strings.Split(o.scenarios, ","), o.out)
}

// wants reports whether a contestant takes part.
func (o *options) wants(name string) bool {
	return o.contestants == "" || slices.Contains(strings.Split(o.contestants, ","), name)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
