package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/transferlab/transferlab/bench/internal/figures"
	"github.com/transferlab/transferlab/bench/internal/lab"
	"github.com/transferlab/transferlab/schemas"
)

const (
	mbit  = schemas.BitRate(1_000_000)
	large = 50_000_000 // bytes: fewer rounds from here on
)

// interleave has every contestant do a cell in every round, in an order that
// rotates. A peer that fails is left out from then on; ours must not.
func (b *bench) interleave(ctx context.Context, c cell, contestants []contestant, rounds int) (map[string][]measured, error) {
	results := map[string][]measured{}
	failed := map[string]bool{}
	for round := range rounds {
		say("  %s, %d leechers: round %d of %d", c.size, c.leechers, round+1, rounds)
		for i := range contestants {
			one := contestants[(i+round)%len(contestants)]
			if failed[one.name] {
				continue
			}
			m, err := one.run(ctx, c, round)
			if err != nil && one.name != oursName && ctx.Err() == nil {
				fmt.Fprintf(b.W, "without %s from here on, which fails: %v\n", one.name, err)
				b.Note("failed", one.name+": "+err.Error())
				failed[one.name] = true
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", one.name, c.size, err)
			}
			for _, l := range m.Leechers {
				if l.Elapsed < 0 {
					b.Note("unfinished", one.name+", "+c.size.String()+": "+l.Error)
				}
			}
			results[one.name] = append(results[one.name], m)
			b.record(one.name, c, &m)
		}
	}
	return results, nil
}

// warm has every contestant do a small cell that does not count: the first
// measurement of a process pays for its start.
func (b *bench) warm(ctx context.Context, contestants []contestant) error {
	for _, one := range contestants {
		if _, err := one.run(ctx, cell{size: 1_000_000, leechers: 1}, 0); err != nil {
			return fmt.Errorf("%s, to warm up: %w", one.name, err)
		}
	}
	return nil
}

func (b *bench) roundsOf(size schemas.Size) int {
	if size >= large {
		return b.largeRounds
	}
	return b.rounds
}

// compare prints a cell's table.
func (b *bench) compare(c cell, contestants []contestant, results map[string][]measured) error {
	t := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "contestant\tp50 ms\tleast\tmost\tours/it\tlast ms\tMB/s\tratio\tCPU s\tpiece KiB\tn\tunfinished\t")
	ours := median(pooled(results[oursName]))
	for _, one := range contestants {
		ms := results[one.name]
		if len(ms) == 0 {
			continue
		}
		times := pooled(ms)
		unfinished := 0
		for i := range ms {
			unfinished += ms[i].unfinished()
		}
		p50, piece := median(times), "-"
		if ms[0].Piece > 0 {
			piece = fmt.Sprint(ms[0].Piece >> 10)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.3f\t%s\t%d\t%d\t\n", one.name, milli(p50), milli(quantile(times, 0)), milli(quantile(times, 1)),
			number("%.2f", ours/p50), milli(medianOf(ms, (*measured).last)), number("%.0f", float64(c.size)/1e6/(p50/1e9)),
			number("%.3f", medianOf(ms, (*measured).ratio)), medianOf(ms, (*measured).cpu), piece, len(times), unfinished)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// measureTransfer compares small swarms.
func measureTransfer(ctx context.Context, b *bench) error {
	sizes, err := b.parseSizes()
	if err != nil {
		return err
	}
	const leechers = 3
	contestants := b.present(contestantNames()...)
	if err := b.warm(ctx, contestants); err != nil {
		return err
	}
	for _, size := range sizes {
		c := cell{size: size, leechers: leechers}
		results, err := b.interleave(ctx, c, contestants, b.roundsOf(size))
		if err != nil {
			return err
		}
		fmt.Fprintf(b.W, "\n%s, 1 seeder, %d leechers: times of leechers in %d rounds; ratio and CPU: medians of rounds\n", size, leechers, b.roundsOf(size))
		if err := b.compare(c, contestants, results); err != nil {
			return err
		}
		ours := results[oursName]
		if len(ours) == 0 {
			continue
		}
		for _, name := range []string{libDefaultName, libTunedName} {
			if peer := results[name]; len(peer) > 0 {
				mine, its := median(pooled(ours)), median(pooled(peer))
				b.Goal(mine < its, "%s: our median below that of %s: %s ms to %s ms", size, name, milli(mine), milli(its))
			}
		}
		if size == 10_000_000 {
			ratio := medianOf(ours, (*measured).ratio)
			b.Goal(ratio <= 1.02, "%s: ratio at most 1.02: %.4f", size, ratio)
		}
	}
	fmt.Fprintf(b.W, "n: times of leechers; %s has one receiver; ratio: bytes on leechers' sockets for each byte of content (of anacrolix without the tracker's)\n", rawName)
	return nil
}

// measureSingle compares one leecher with a plain copy.
func measureSingle(ctx context.Context, b *bench) error {
	size := schemas.Size(100_000_000)
	if b.quick {
		size = 10_000_000
	}
	c := cell{size: size, leechers: 1}
	contestants := b.present(oursName, libTunedName, anaTunedName, rawName)
	if err := b.warm(ctx, contestants); err != nil {
		return err
	}
	rounds := max(b.roundsOf(size), min(b.rounds, 5))
	results, err := b.interleave(ctx, c, contestants, rounds)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.W, "%s, 1 seeder, 1 leecher: %d rounds\n", size, rounds)
	if err := b.compare(c, contestants, results); err != nil {
		return err
	}
	if ours, raw := results[oursName], results[rawName]; len(ours) > 0 && len(raw) > 0 {
		share := median(pooled(raw)) / median(pooled(ours))
		b.Goal(share >= 0.7, "at least 70 %% of a plain TCP copy: %.1f %%", 100*share)
	}
	return nil
}

// measureCrowd looks at a large swarm of ours.
func measureCrowd(ctx context.Context, b *bench) error {
	if !b.wants(oursName) {
		fmt.Fprintln(b.W, "ours is not wanted")
		return nil
	}
	c := cell{size: 10_000_000, leechers: b.leechers}
	rounds := min(b.rounds, 3)
	fmt.Fprintf(b.W, "%s, 1 seeder, %d leechers, no limits: %d rounds\n", c.size, c.leechers, rounds)
	t := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "round\tfinished\tp50 ms\tp99 ms\tlast ms\tp99/p50\tratio\tCPU s\tpeak MB\trun\t")
	var spreads []float64
	all := true
	for round := range rounds {
		say("  round %d of %d", round+1, rounds)
		m, o, err := b.lab.swarm(ctx, c, round)
		if err != nil {
			return err
		}
		mem, err := lab.MemoryOf(b.lab.agents[swarmService].PID())
		if err != nil {
			return err
		}
		times := m.times()
		p50, p99 := quantile(times, 0.5), quantile(times, 0.99)
		spreads = append(spreads, p99/p50)
		all = all && m.unfinished() == 0
		verdict := o.Verdict
		if why := o.Reasons(); why != "" {
			verdict += " INVALID: " + why
		}
		fmt.Fprintf(t, "%d\t%d of %d\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.0f\t%s\t\n", round+1, len(times), len(m.Leechers), milli(p50), milli(p99), milli(m.last()),
			number("%.2f", p99/p50), number("%.3f", m.ratio()), m.cpu(), float64(mem.Peak)/1e6, verdict)
		b.record(oursName, c, &m, figures.Value{V: p99, Unit: "p99-ns"}, figures.Value{V: float64(mem.Peak), Unit: "peak-bytes"})
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	fmt.Fprintln(b.W, "CPU and memory are of the process with the seeder, the tracker and every leecher; memory is its peak since its start, all leechers' files in it")
	b.Goal(all, "all %d leechers finish", c.leechers)
	b.Goal(median(spreads) <= 1.8, "p99/p50 at most 1.8: %.2f", median(spreads))
	return nil
}

// shape is a set of limits.
type shape struct {
	name                         string
	seedUpload, upload, download schemas.BitRate
	peers                        bool // libtorrent does it too
}

func shapes() []shape {
	return []shape{
		{"all up 20 Mbit/s, down unlimited", 20 * mbit, 20 * mbit, 0, true},
		{"seeder up 100, leechers up 20, down 100", 100 * mbit, 20 * mbit, 100 * mbit, true},
		{"seeder up 20, leechers up 10, down 50", 20 * mbit, 10 * mbit, 50 * mbit, false},
	}
}

// measureBound compares with the best that rates allow.
func measureBound(ctx context.Context, b *bench) error {
	const goal = 0.8
	rounds := min(b.rounds, 3)
	for _, s := range shapes() {
		c := cell{size: 10_000_000, leechers: 50, seedUpload: s.seedUpload, upload: s.upload, download: s.download}
		names := []string{oursName}
		if s.peers {
			names = append(names, libTunedName)
		}
		contestants := b.present(names...)
		results, err := b.interleave(ctx, c, contestants, rounds)
		if err != nil {
			return err
		}
		bound := float64(c.bound())
		fmt.Fprintf(b.W, "\n%s, %d leechers; %s: fluid bound %s ms; medians of %d rounds\n", c.size, c.leechers, s.name, milli(bound), rounds)
		t := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "contestant\tlast ms\tbound/last\tp50 ms\tratio\tCPU s\tn\tunfinished\t")
		for _, one := range contestants {
			ms := results[one.name]
			if len(ms) == 0 {
				continue
			}
			last, unfinished := medianOf(ms, (*measured).last), 0
			for i := range ms {
				unfinished += ms[i].unfinished()
			}
			times := pooled(ms)
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%.2f\t%d\t%d\t\n", one.name, milli(last), number("%.3f", bound/last), milli(median(times)),
				number("%.3f", medianOf(ms, (*measured).ratio)), medianOf(ms, (*measured).cpu), len(times), unfinished)
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		if ours := results[oursName]; len(ours) > 0 {
			share := bound / medianOf(ours, (*measured).last)
			b.Goal(share >= goal, "%s: at least 80 %% of the bound: %s %%", s.name, number("%.1f", 100*share))
		}
	}
	fmt.Fprintln(b.W, "limits are each session's own (token buckets), not the network's; libtorrent's settings are those tuned for swarms without limits")
	return nil
}

// measureCrossover asks from how many receivers on a swarm is faster than S3.
func measureCrossover(ctx context.Context, b *bench) error {
	if !b.wants(oursName) {
		fmt.Fprintln(b.W, "ours is not wanted")
		return nil
	}
	const size = schemas.Size(10_000_000)
	numbers := []int{1, 2, 4, 8, 16, 32}
	// Limits are not quite the same thing on both sides: see below.
	const margin = 1.1
	rounds := min(b.rounds, 3)
	for _, uplink := range []schemas.BitRate{100 * mbit, 0} {
		what := "no limits"
		if uplink > 0 {
			what = "100 Mbit/s up for the seeder, each leecher, and the store"
		}
		if uplink > 0 && os.Geteuid() != 0 {
			fmt.Fprintln(b.W, "not measured with an uplink of 100 Mbit/s: the emulated network of the store needs root")
			b.Note("not-measured", "uplink: needs root")
			continue
		}
		times := map[string]map[int][]float64{"swarm": {}, "s3": {}}
		for round := range rounds {
			for _, n := range numbers {
				say("  %s, %d receivers: round %d of %d", what, n, round+1, rounds)
				for i := range 2 {
					way := []string{"swarm", "s3"}[(i+round)%2]
					ns, err := b.lab.deliver(ctx, way, size, n, uplink, round)
					if err != nil {
						return fmt.Errorf("%s to %d: %w", way, n, err)
					}
					times[way][n] = append(times[way][n], ns)
					b.Add(way, n, []figures.Value{{V: ns, Unit: "last-ns"}}, "size="+size.String(), fmt.Sprintf("receivers=%d", n), "uplink="+uplink.String())
				}
			}
		}
		fmt.Fprintf(b.W, "\n%s to N receivers, %s: until all have it, medians of %d rounds\n", size, what, rounds)
		t := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "N\tswarm ms\tS3 ms\tS3/swarm\tfaster\t")
		var swarm, s3 []float64
		for _, n := range numbers {
			x, y := median(times["swarm"][n]), median(times["s3"][n])
			swarm, s3 = append(swarm, x*margin), append(s3, y)
			faster := "even"
			switch {
			case x*margin < y:
				faster = "swarm"
			case y*margin < x:
				faster = "S3"
			}
			fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t\n", n, milli(x), milli(y), number("%.2f", y/x), faster)
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		verdict := "the swarm is not faster for good at any of these N"
		if n := crossing(numbers, swarm, s3); n > 0 {
			verdict = fmt.Sprintf("the swarm is faster from N = %d on", n)
		}
		fmt.Fprintf(b.W, "%s: %s\n", what, verdict)
		b.Note("crossover", what+": "+verdict)
	}
	fmt.Fprintln(b.W, "S3: one GET of each client on a connection of its own; its uplink is an emulated link (headers included), the swarm's are its sessions' limits (without headers, and with a burst at the start): less than 10 % is called even")
	return nil
}

// deliver brings a payload to n receivers and returns the nanoseconds until all
// have it.
func (l *rig) deliver(ctx context.Context, way string, size schemas.Size, n int, uplink schemas.BitRate, round int) (float64, error) {
	text, view := swarmExperiment(cell{size: size, leechers: n, seedUpload: uplink, upload: uplink}, round), "swarm_transfers"
	service := swarmService
	if way == "s3" {
		text, view, service = s3Experiment(size, n, uplink, round), "s3_requests", s3Service
	}
	// At an emulated site the lab starts the agent.
	if way != "s3" || uplink == 0 {
		if _, err := l.agent(ctx, service); err != nil {
			return 0, err
		}
	}
	o, err := l.Run(ctx, text)
	if err != nil {
		return 0, err
	}
	return l.hadByAll(ctx, o.Run.ID, view, n)
}
