package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
	"github.com/transferlab/transferlab/bench/internal/lab"
	"github.com/transferlab/transferlab/schemas"
)

// measured is what one tool did in one round. Times are in nanoseconds, negative if
// they are not known.
type measured struct {
	sent, answered int
	p50, p99       float64
	rate           float64 // probes a second
	cpu            time.Duration
	elapsed        time.Duration // of sending
	peak           int64
}

func (m measured) cores() float64    { return m.cpu.Seconds() / m.elapsed.Seconds() }
func (m measured) perProbe() float64 { return float64(m.cpu.Nanoseconds()) / float64(m.sent) }

func p50(m measured) float64 { return m.p50 }
func p99(m measured) float64 { return m.p99 }

func ofSamples(s samples, u usage) measured {
	return measured{
		sent: s.sent, answered: len(s.rtts), p50: float64(s.quantile(0.50)), p99: float64(s.quantile(0.99)),
		rate: float64(s.sent) / u.elapsed.Seconds(), cpu: u.cpu, elapsed: u.elapsed, peak: u.peak,
	}
}

func ofStored(s *stored, c *cost) measured {
	return measured{
		sent: int(s.rows), answered: int(s.answered), p50: s.p50, p99: s.p99, rate: s.rate,
		cpu: c.prober, elapsed: time.Duration(float64(s.rows) / s.rate * 1e9), peak: c.memory.Peak,
	}
}

func (b *bench) record(tool string, m measured) {
	values := []figures.Value{
		{V: m.rate, Unit: "probes/s"},
		{V: float64(m.sent - m.answered), Unit: "unanswered"},
		{V: m.perProbe(), Unit: "cpu-ns/probe"},
		{V: m.cores(), Unit: "cores"},
		{V: float64(m.peak), Unit: "peak-bytes"},
	}
	for _, q := range []figures.Value{{V: m.p50, Unit: "p50-ns"}, {V: m.p99, Unit: "p99-ns"}} {
		if q.V >= 0 {
			values = append(values, q)
		}
	}
	b.Add(tool, m.sent, values)
}

const oneTarget = "127.0.0.1"

// measureRTT compares round trips.
func measureRTT(ctx context.Context, b *bench) error {
	prober, err := b.lab.prober(ctx, "bench")
	if err != nil {
		return err
	}
	defer func() { _ = prober.Stop() }()
	const interval = 10 * time.Millisecond
	complete, stamps := true, ""
	tools := []string{toolOurs, toolFping, toolPing}
	probe := map[string]func() (measured, error){
		toolOurs: func() (measured, error) {
			o, c, err := b.lab.run(ctx, prober, experiment("bench-rtt", "bench", []string{"icmp://" + oneTarget}, interval, b.probes))
			if err != nil {
				return measured{}, err
			}
			s, err := b.lab.stored(ctx, o.Run.ID)
			if err != nil {
				return measured{}, err
			}
			complete = complete && s.complete(b.probes)
			stamps = s.stamps
			if !o.Validity.Valid {
				b.Note("invalid", fmt.Sprint(o.Validity.Reasons))
			}
			return ofStored(s, c), nil
		},
		toolFping: func() (measured, error) {
			s, u, err := fping(ctx, []string{oneTarget}, interval, b.probes, "")
			return ofSamples(s, u), err
		},
		toolPing: func() (measured, error) {
			s, u, err := ping(ctx, oneTarget, interval, b.probes)
			return ofSamples(s, u), err
		},
	}
	tools = b.present(ctx, tools)
	results := map[string][]measured{}
	for round := range b.rounds {
		say("  round %d of %d", round+1, b.rounds)
		for i := range tools {
			tool := tools[(i+round)%len(tools)]
			m, err := probe[tool]()
			if err != nil {
				return err
			}
			results[tool] = append(results[tool], m)
			b.record(tool, m)
		}
	}
	fmt.Fprintf(b.W, "ICMP echo to %s, 56 bytes, every %s, %d probes each in every round; medians of %d rounds (least to most)\n", oneTarget, interval, b.probes, b.rounds)
	t := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "tool\tp50 µs\t\tp99 µs\t\tours/it p50\tours/it p99\tn\tunanswered\tCPU µs/probe\t")
	ours := results[toolOurs]
	for _, tool := range tools {
		ms := results[tool]
		n, lost := total(ms)
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t\n", tool, micro(figures.Median(ms, p50)), extremes(ms, p50), micro(figures.Median(ms, p99)), extremes(ms, p99),
			ratio(figures.Median(ours, p50), figures.Median(ms, p50)), ratio(figures.Median(ours, p99), figures.Median(ms, p99)), n, lost, micro(figures.Median(ms, measured.perProbe)))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	fmt.Fprintf(b.W, "percentiles: nearest rank, of each round's samples; fping and ping print steps of 1 µs and read the time of sending themselves, before the system call; stamps of ours: %s (kernel: when the packet left and when it came)\n", stamps)
	fmt.Fprintln(b.W, "CPU of ours is of the whole run, with its preparation and the publishing of every row")
	for _, tool := range tools {
		if tool == toolOurs {
			continue
		}
		ms := results[tool]
		d50, d99 := figures.Median(ours, p50)-figures.Median(ms, p50), figures.Median(ours, p99)-figures.Median(ms, p99)
		b.Goal(d50 <= 5000, "our median at most 5 µs above that of %s: %+.2f µs", tool, d50/1e3)
		b.Goal(d99 < 0, "our p99 below that of %s: %+.2f µs", tool, d99/1e3)
	}
	b.Goal(complete, "every probe of ours is a row, once")
	return nil
}

// present drops tools that are not there, and says so.
func (b *bench) present(ctx context.Context, tools []string) []string {
	return slices.DeleteFunc(tools, func(tool string) bool {
		if tool == toolOurs || b.version(ctx, tool) != "" {
			return false
		}
		fmt.Fprintf(b.W, "without %s: %s\n", tool, b.missing(tool))
		return true
	})
}

func total(ms []measured) (sent, unanswered int) {
	for _, m := range ms {
		sent, unanswered = sent+m.sent, unanswered+m.sent-m.answered
	}
	return sent, unanswered
}

func extremes(ms []measured, of func(measured) float64) string {
	least, most := math.Inf(1), math.Inf(-1)
	for _, m := range ms {
		least, most = min(least, of(m)), max(most, of(m))
	}
	return "(" + micro(least) + " to " + micro(most) + ")"
}

// measureLoad compares what 10,000 probes a second cost.
func measureLoad(ctx context.Context, b *bench) error {
	const (
		paths    = 100
		interval = 10 * time.Millisecond
		crowd    = 14 // probes of cloudprober: as many packets a second as it takes
	)
	prober, err := b.lab.prober(ctx, "bench-load")
	if err != nil {
		return err
	}
	defer func() { _ = prober.Stop() }()
	idle, err := lab.MemoryOf(prober.PID())
	if err != nil {
		return err
	}
	last := idle
	count := int(b.loadDuration / interval)
	var names, targets []string
	for i := range paths {
		names = append(names, "127.0.0."+strconv.Itoa(i+1))
		targets = append(targets, "icmp://"+names[i])
	}
	complete := true
	var storing, lags []float64
	type contender struct {
		name, tool string
		run        func() (measured, string, string, error) // with p50 and p99 as text where they are bounds
	}
	// fping gives a sequence number again after 10 s at the earliest and has 65,535:
	// one process ends with an error at this rate.
	processes := min(paths, (paths*int(10*time.Second/interval)+60_000-1)/60_000)
	viaFping := func(gap string) func() (measured, string, string, error) {
		return func() (measured, string, string, error) {
			s, u, err := fpings(ctx, names, processes, interval, count, gap)
			return ofSamples(s, u), "", "", err
		}
	}
	viaCloudprober := func(probes int) func() (measured, string, string, error) {
		return func() (measured, string, string, error) {
			path, err := exec.LookPath(b.cloudprober)
			if err != nil {
				return measured{}, "", "", fmt.Errorf("find cloudprober: %w", err)
			}
			dir, err := os.MkdirTemp("", "transferlab-bench-probe-")
			if err != nil {
				return measured{}, "", "", fmt.Errorf("make a directory: %w", err)
			}
			defer os.RemoveAll(dir)
			r, err := runCloudprober(ctx, path, dir, probes, names, b.loadDuration)
			m := measured{
				sent: int(r.sent), answered: int(r.answered), p50: -1, p99: -1, rate: r.sent / r.elapsed.Seconds(),
				cpu: r.cpu, elapsed: r.elapsed, peak: r.peak,
			}
			return m, "<= " + r.within(0.50), "<= " + r.within(0.99), err
		}
	}
	contenders := []contender{
		{toolOurs, toolOurs, func() (measured, string, string, error) {
			o, c, err := b.lab.run(ctx, prober, experiment("bench-load", "bench-load", targets, interval, count))
			if err != nil {
				return measured{}, "", "", err
			}
			s, err := b.lab.stored(ctx, o.Run.ID)
			if err != nil {
				return measured{}, "", "", err
			}
			fmt.Fprintf(b.W, "rows: sent %d, issued %d, stored %d, gaps %d, twice %d, run %s %s\n", paths*count, s.issued, s.rows, s.lost, s.repeated, o.Verdict, o.Reasons())
			complete = complete && s.complete(paths*count)
			last = c.memory
			m := ofStored(s, c)
			storing = append(storing, c.lab.Seconds()/m.elapsed.Seconds())
			lags = append(lags, s.lagP99)
			return m, "", "", nil
		}},
		{"fping -i 0", toolFping, viaFping("0")},
		{"fping -i 0.1", toolFping, viaFping("0.1")},
		{"cloudprober x1", toolCloudprober, viaCloudprober(1)},
		{"cloudprober x" + strconv.Itoa(crowd), toolCloudprober, viaCloudprober(crowd)},
	}
	tools := b.present(ctx, []string{toolOurs, toolFping, toolCloudprober})
	contenders = slices.DeleteFunc(contenders, func(c contender) bool { return !slices.Contains(tools, c.tool) })
	results := map[string][]measured{}
	bounds := map[string][2]string{}
	failed := map[string]bool{}
	for round := range b.loadRounds {
		for i := range contenders {
			c := contenders[(i+round)%len(contenders)]
			if failed[c.name] {
				continue
			}
			say("  round %d of %d: %s", round+1, b.loadRounds, c.name)
			m, low, high, err := c.run()
			if err != nil && c.tool != toolOurs && ctx.Err() == nil {
				fmt.Fprintf(b.W, "without %s, which fails: %v\n", c.name, err)
				b.Note("failed", c.name+": "+err.Error())
				failed[c.name] = true
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			results[c.name] = append(results[c.name], m)
			bounds[c.name] = [2]string{low, high}
			b.record(c.name, m)
		}
	}
	fmt.Fprintf(b.W, "%d targets, ICMP echo, 56 bytes, every %s, for %s; medians of %d rounds\n", paths, interval, b.loadDuration, b.loadRounds)
	t := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "tool\tprobes/s\tCPU cores\tCPU µs/probe\tours/it\tpeak MB\tours/it\tp50 µs\tp99 µs\tn\tunanswered\t")
	peak := func(m measured) float64 { return float64(m.peak) }
	rate := func(m measured) float64 { return m.rate }
	ours := results[toolOurs]
	for _, c := range contenders {
		ms := results[c.name]
		if len(ms) == 0 {
			continue
		}
		n, lost := total(ms)
		low, high := micro(figures.Median(ms, p50)), micro(figures.Median(ms, p99))
		if text := bounds[c.name]; text[0] != "" {
			low, high = text[0], text[1]
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.3f\t%s\t%s\t%.1f\t%s\t%s\t%s\t%d\t%d\t\n", c.name, figures.Median(ms, rate), figures.Median(ms, measured.cores), micro(figures.Median(ms, measured.perProbe)),
			ratio(figures.Median(ours, measured.perProbe), figures.Median(ms, measured.perProbe)), figures.Median(ms, peak)/1e6, ratio(figures.Median(ours, peak), figures.Median(ms, peak)), low, high, n, lost)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	self := func(v float64) float64 { return v }
	fmt.Fprintf(b.W, "ours: the prober alone, which spreads its probes evenly and publishes each; the lab that stores them took %.2f cores; dispatch lag p99 %s µs\n", figures.Median(storing, self), micro(figures.Median(lags, self)))
	text := fmt.Sprintf("memory of the prober: peak %.1f MB before the first run, %.1f MB in the end; resident in the end: its own %.1f MB, of the program's file %.1f MB",
		float64(idle.Peak)/1e6, float64(last.Peak)/1e6, float64(last.Anon)/1e6, float64(last.File)/1e6)
	fmt.Fprintln(b.W, text)
	b.Note("memory", text)
	fmt.Fprintf(b.W, "fping: %d processes that share the targets, since one runs out of sequence numbers; -i 0 sends bursts of all targets, -i 0.1 spreads them. Memory is the sum. It stores nothing\n", processes)
	fmt.Fprintf(b.W, "cloudprober sleeps 1 ms after each packet of a probe: x1 is all that one probe can do, x%d so many of them in one process (ping sockets: %t); it keeps counters and buckets, no single probe\n", crowd, pingSockets())
	b.Goal(complete, "every probe is a row, once: 0 lost by us")
	b.Goal(figures.Median(ours, rate) >= 9900, "10,000 probes/s: %.0f", figures.Median(ours, rate))
	b.Goal(figures.Median(ours, measured.cores) < 1, "below one core: %.3f", figures.Median(ours, measured.cores))
	b.Goal(figures.Median(ours, peak) < 64e6, "below 64 MB resident: %.1f MB", figures.Median(ours, peak)/1e6)
	return nil
}

// measureLimit probes with half a processor.
func measureLimit(ctx context.Context, b *bench) error {
	const (
		cpus     = 0.5
		interval = time.Millisecond
		most     = 200 * time.Microsecond
	)
	count := int(b.loadDuration / interval)
	fmt.Fprintf(b.W, "%d probes of %s, every %s, with %.1f CPU\n", count, oneTarget, interval, cpus)
	t := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "in the group\tp50 µs\tp99 µs\tdispatch lag p99 µs\tprobes/s\tunanswered\trows\tCPU cores\tthrottled\tverdict\t")
	type found struct {
		name string
		s    *stored
		o    *lab.Outcome
	}
	var all []found
	for _, busy := range []bool{false, true} {
		name := "prober"
		if busy {
			name = "prober + busy loop"
		}
		say("  %s", name)
		g, err := newGroup(fmt.Sprintf("transferlab-bench-probe-%d", os.Getpid()), cpus)
		if err != nil {
			fmt.Fprintf(b.W, "not measured: %v\n", err)
			b.Note("not-measured", err.Error())
			return nil
		}
		s, o, err := limited(ctx, b, g, t, name, busy, experiment("bench-limit", site(busy), []string{"icmp://" + oneTarget}, interval, count))
		if gone := g.close(); err == nil {
			err = gone
		}
		if err != nil {
			return err
		}
		all = append(all, found{name, s, o})
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	for _, f := range all {
		if !f.o.Validity.Valid {
			fmt.Fprintf(b.W, "%s: INVALID: %s\n", f.name, f.o.Reasons())
		}
		b.Goal(f.s.complete(count), "%s: every probe is a row, once", f.name)
		b.Goal((f.s.p99 >= 0 && f.s.p99 < float64(most)) || !f.o.Validity.Valid, "%s: p99 below %s (it is %s µs) or the run marked invalid (valid: %t)", f.name, most, micro(f.s.p99), f.o.Validity.Valid)
	}
	return nil
}

func site(busy bool) string {
	if busy {
		return "bench-limit-busy"
	}
	return "bench-limit"
}

// limited runs the experiment in a control group.
func limited(ctx context.Context, b *bench, g *group, t *tabwriter.Writer, name string, busy bool, text string) (*stored, *lab.Outcome, error) {
	prober, err := b.lab.prober(ctx, site(busy))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = prober.Stop() }()
	if err := g.enter(prober.PID()); err != nil {
		return nil, nil, err
	}
	if busy {
		self, err := os.Executable()
		if err != nil {
			return nil, nil, fmt.Errorf("find this program: %w", err)
		}
		loop := exec.CommandContext(ctx, self, spinArgument)
		if err := loop.Start(); err != nil {
			return nil, nil, fmt.Errorf("start the busy loop: %w", err)
		}
		defer func() {
			_ = loop.Process.Kill()
			_ = loop.Wait()
		}()
		if err := g.enter(loop.Process.Pid); err != nil {
			return nil, nil, err
		}
	}
	stoppedBefore, periodsBefore, err := g.throttled()
	if err != nil {
		return nil, nil, err
	}
	o, c, err := b.lab.run(ctx, prober, text)
	if err != nil {
		return nil, nil, err
	}
	stopped, periods, err := g.throttled()
	if err != nil {
		return nil, nil, err
	}
	s, err := b.lab.stored(ctx, o.Run.ID)
	if err != nil {
		return nil, nil, err
	}
	m := ofStored(s, c)
	fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.0f\t%d\t%d\t%.3f\t%d of %d periods\t%s\t\n", name, micro(m.p50), micro(m.p99), micro(s.lagP99), m.rate,
		m.sent-m.answered, s.rows, m.cores(), stopped-stoppedBefore, periods-periodsBefore, o.Verdict)
	b.record(name, m)
	last := &b.Rows[len(b.Rows)-1]
	last.Values = append(last.Values, figures.Value{V: s.lagP99, Unit: "lag-p99-ns"}, figures.Value{V: float64(stopped - stoppedBefore), Unit: "throttled-periods"})
	return s, o, nil
}

// measureMesh runs the example of a large mesh.
func measureMesh(ctx context.Context, b *bench) error {
	text, err := os.ReadFile(b.meshFile)
	if err != nil {
		return fmt.Errorf("read --mesh: %w", err)
	}
	want, err := planned(text)
	if err != nil {
		return err
	}
	// The site of the file; a prober there is preferred to the lab's own, which stands in for
	// any site.
	prober, err := b.lab.prober(ctx, "local")
	if err != nil {
		return err
	}
	defer func() { _ = prober.Stop() }()
	o, c, err := b.lab.run(ctx, prober, string(text))
	if err != nil {
		return err
	}
	if len(o.Agents) != 1 || o.Agents[0].Name != "local-1" {
		return fmt.Errorf("agents of the mesh are %v, want local-1 alone: --mesh wants groups at site local", o.Agents)
	}
	s, err := b.lab.stored(ctx, o.Run.ID)
	if err != nil {
		return err
	}
	m := ofStored(s, c)
	b.record(toolOurs, m)
	t := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "probes planned\tissued\trows\tgaps\ttwice\tunanswered\tprobes/s\tp50 µs\tp99 µs\tdispatch lag p99 µs\tprober CPU cores\tof the lab\tpeak MB\tverdict\t")
	fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\t%.0f\t%s\t%s\t%s\t%.3f\t%.3f\t%.1f\t%s\t\n", want, s.issued, s.rows, s.lost, s.repeated, s.rows-s.answered,
		m.rate, micro(s.p50), micro(s.p99), micro(s.lagP99), m.cores(), c.lab.Seconds()/m.elapsed.Seconds(), float64(m.peak)/1e6, o.Verdict)
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if why := o.Reasons(); why != "" {
		fmt.Fprintln(b.W, "INVALID:", why)
	}
	b.Goal(s.complete(want), "%d rows without a gap: %d rows, %d gaps, %d twice", want, s.rows, s.lost, s.repeated)
	b.Goal(s.answered == s.rows, "no loss: %d unanswered", s.rows-s.answered)
	return nil
}

// planned is how many probes a full mesh has.
func planned(text []byte) (int, error) {
	e, err := schemas.ParseExperiment(text)
	if err != nil {
		return 0, fmt.Errorf("--mesh: %w", err)
	}
	p := e.Probe
	if p == nil || p.Mesh != "full" || p.Count == 0 || p.Duration > 0 || len(e.Matrix) > 0 || e.Trials.Repeat > 1 || e.NeedsPlace() {
		return 0, errors.New("--mesh: want one cell and one trial of a full mesh with a count, without emulated sites and fleets")
	}
	clients := 0
	for _, g := range e.Groups {
		clients += g.Clients
	}
	peers := clients
	if !p.Self {
		peers--
	}
	return clients * (peers*len(p.Protocols) + len(p.Targets)) * p.Count, nil
}
