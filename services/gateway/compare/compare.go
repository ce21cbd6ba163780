// Package compare judges whether one run is better or worse than another,
// metric by metric, with an effect size, an interval and a test.
//
// The unit of resampling is the trial where both runs have at least five trials
// of a cell: requests of one trial share its conditions and are not independent.
// With fewer trials it is the request, and every verdict carries the caveat.
package compare

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/measure"
	"github.com/transferlab/transferlab/services/internal/report"
)

// Options of a comparison.
type Options struct {
	Alpha     float64 // level of the tests after correction
	MinEffect float64 // smallest relative difference of interest

	resamples int // of the bootstrap; 0 is 2000
}

// Sizes that bound time and memory.
const (
	minTrials  = 5    // from here on the trial is the unit
	maxSamples = 4096 // requests of a cell and run, on average
	// mostSamples is the most of a cell of the matrix, whatever pairs it has.
	mostSamples = 64 * maxSamples
	manyDraws   = 2000 // of the bootstrap
	confidence  = 0.95
)

// CaveatRequests is said of verdicts that rest on requests.
const CaveatRequests = "fewer than 5 trials of the cell in one of the runs: requests were resampled, which share the conditions of their trial, " +
	"so the interval shows chance within a trial only, not from one trial to the next; repeat trials (trials.repeat: 5) for a verdict that holds"

// CaveatThroughput is said of throughput with few trials.
const CaveatThroughput = "fewer than 5 trials of the cell in one of the runs: a trial has one throughput, so there is no interval"

// Metrics that are compared.
const (
	Corrected  = "corrected"
	Service    = "service"
	FirstByte  = "first_byte"
	Throughput = "throughput"
	RTT        = "rtt"
	Transfer   = "transfer"
	FirstPiece = "first_piece"
	Confirmed  = "confirmed" // trigger until the edge has heard of the result
)

// Data is what one run has to say on one metric of one cell: groups of values,
// one group if the values are trials, one group a trial if they are requests.
type Data [][]float64

func (d Data) values() []float64 {
	all := slices.Concat(d...)
	slices.Sort(all)
	return all
}

// Test is one question: does B differ from A?
type Test struct {
	Values []report.Value
	Metric string
	Over   string // trials or requests
	A, B   Data
	Caveat string
}

// Judge answers all tests of a comparison, corrected for their number. Same
// tests and seed, same answers.
func Judge(tests []Test, o Options, seed string) ([]report.Difference, error) {
	results := make([]report.Difference, len(tests))
	apart := make([]bool, len(tests))
	faults := make([]error, len(tests))
	draws := o.resamples
	if draws == 0 {
		draws = manyDraws
	}
	var workers sync.WaitGroup
	next := make(chan int)
	for range min(runtime.GOMAXPROCS(0), max(len(tests), 1)) {
		workers.Go(func() {
			for i := range next {
				key := sha256.Sum256(fmt.Appendf(nil, "compare 1 %s %v %s", seed, tests[i].Values, tests[i].Metric))
				results[i], faults[i] = measureDifference(&tests[i], draws, rand.New(rand.NewChaCha8(key)))
				apart[i] = tests[i].Over == overTrials || separated(tests[i].A, tests[i].B)
			}
		})
	}
	for i := range tests {
		next <- i
	}
	close(next)
	workers.Wait()
	p := make([]float64, len(tests))
	for i, err := range faults {
		if err != nil {
			return nil, fmt.Errorf("test %s of cell %d: %w", tests[i].Metric, i, err)
		}
		p[i] = results[i].P
	}
	for i, corrected := range holm(p) {
		d := &results[i]
		d.PHolm = corrected
		d.Verdict = verdict(d, apart[i], o)
		if d.Over == overTrials && d.Caveat == "" && d.Verdict == report.Underpowered && leastP(d.NA, d.NB)*float64(len(tests)) >= o.Alpha {
			d.Caveat = tooFewTrials(d.NA, d.NB, len(tests), o.Alpha)
		}
	}
	return results, nil
}

func measureDifference(t *Test, draws int, random *rand.Rand) (report.Difference, error) {
	a, b := t.A.values(), t.B.values()
	d := report.Difference{
		Values: t.Values, Metric: t.Metric, Unit: "ns", Over: t.Over, NA: len(a), NB: len(b),
		MedianA: median(a), MedianB: median(b), Caveat: t.Caveat, P: 1,
	}
	if t.Metric == Throughput {
		d.Unit = "bytes/s"
	}
	if len(a) == 0 || len(b) == 0 {
		return d, nil
	}
	if d.MedianA > 0 {
		ratio := d.MedianB / d.MedianA
		d.Ratio = &ratio
	}
	d.Shift, d.CliffsDelta = hodgesLehmann(a, b), cliffsDelta(a, b)
	if t.Over == overTrials && (len(a) < minTrials || len(b) < minTrials) {
		return d, nil
	}
	var err error
	if d.P, err = mannWhitney(a, b); err != nil {
		return d, err
	}
	if low, high, ok := bootstrapRatio(t.A, t.B, confidence, draws, random); ok {
		d.RatioLow, d.RatioHigh = &low, &high
	}
	return d, nil
}

// leastP is the smallest p that samples of these sizes can have: that of the two
// most extreme of all arrangements.
func leastP(n, m int) float64 {
	return min(1, 2*math.Exp(-logBinomial(n+m, n)))
}

func logBinomial(n, k int) float64 {
	whole, _ := math.Lgamma(float64(n + 1))
	part, _ := math.Lgamma(float64(k + 1))
	rest, _ := math.Lgamma(float64(n - k + 1))
	return whole - part - rest
}

// tooFewTrials says how many trials it takes to find anything at all.
func tooFewTrials(n, m, tests int, alpha float64) string {
	need := min(n, m)
	for leastP(need, need)*float64(tests) >= alpha {
		need++
	}
	return fmt.Sprintf("%d and %d trials cannot show a difference at level %g over %d tests, however large it is: %d a side can (trials.repeat: %d)",
		n, m, alpha, tests, need, need)
}

// separated reports whether the medians of all trials of one side lie beyond
// those of the other. Where they do not, trials differ among themselves by as
// much as the runs do, which resampled requests cannot show.
func separated(a, b Data) bool {
	bounds := func(d Data) (least, most float64) {
		least, most = math.Inf(1), math.Inf(-1)
		for _, trial := range d {
			m := median(slices.Sorted(slices.Values(trial)))
			least, most = min(least, m), max(most, m)
		}
		return least, most
	}
	leastA, mostA := bounds(a)
	leastB, mostB := bounds(b)
	return mostA < leastB || mostB < leastA
}

// verdict decides. A difference counts when the test finds one, the interval
// excludes equality and the effect is large enough to matter; its absence when
// the whole interval lies within the effects that do not matter.
func verdict(d *report.Difference, apart bool, o Options) string {
	if d.Ratio == nil || d.RatioLow == nil || d.RatioHigh == nil {
		return report.Underpowered
	}
	most := 1 + o.MinEffect
	least := 1 / most
	found := apart && d.PHolm < o.Alpha && (*d.RatioLow > 1 || *d.RatioHigh < 1)
	if *d.RatioLow >= least && *d.RatioHigh <= most {
		return report.NoDifference
	}
	if !found {
		return report.Underpowered
	}
	if *d.Ratio > least && *d.Ratio < most {
		// There is a difference; whether it matters is not settled.
		return report.Underpowered
	}
	if (*d.Ratio < 1) == (d.Metric != Throughput) {
		return report.Better
	}
	return report.Worse
}

const (
	overTrials   = "trials"
	overRequests = "requests"
)

// Runs compares run b with run a, which are of the same workload.
func Runs(ctx context.Context, s *measure.Source, a, b measure.Input, o Options) (*report.Comparison, error) {
	sideA, err := load(ctx, s, a)
	if err != nil {
		return nil, err
	}
	sideB, err := load(ctx, s, b)
	if err != nil {
		return nil, err
	}
	c := &report.Comparison{
		A: sideA.head, B: sideB.head, Generated: time.Now().UTC(),
		Alpha: o.Alpha, MinEffect: o.MinEffect, Confidence: confidence,
		Notes: notes(sideA, sideB), Results: []report.Difference{}, Methods: methods(),
	}
	pairs, unmatched := match(sideA.cells, sideB.cells)
	if len(pairs) == 0 {
		c.Notes = append(c.Notes, "the runs have no cell in common: nothing can be compared")
		return c, nil
	}
	if unmatched > 0 {
		c.Notes = append(c.Notes, fmt.Sprintf("%d cells are in one of the runs only and were left out", unmatched))
	}
	if err := sideA.sample(ctx, s, pairs, sideB, func(p pair) (int, int) { return p.a, p.b }); err != nil {
		return nil, err
	}
	if err := sideB.sample(ctx, s, pairs, sideA, func(p pair) (int, int) { return p.b, p.a }); err != nil {
		return nil, err
	}
	var tests []Test
	for _, p := range pairs {
		tests = append(tests, testsOf(p, sideA, sideB)...)
	}
	c.Results, err = Judge(tests, o, a.Run.ID.String()+" "+b.Run.ID.String())
	return c, err
}

// cell is what is compared of a run: a cell of its matrix, of probes each pair of
// ends in it.
type cell struct {
	values []report.Value
	of     uint32 // cell of the matrix
}

type cellKey struct {
	of   uint32
	ends string
}

// side is one run of a comparison.
type side struct {
	head      report.Compared
	metrics   []metric
	cells     []cell
	index     map[cellKey]int
	selection measure.Selection
	trials    [][]measure.Trial                   // by cell
	samples   map[int]map[uint32][]measure.Sample // by cell and trial, where trials are too few
}

func load(ctx context.Context, s *measure.Source, in measure.Input) (*side, error) {
	layout, selection, head, err := s.Select(ctx, in)
	if err != nil {
		return nil, err
	}
	trials, err := s.Trials(ctx, selection)
	if err != nil {
		return nil, err
	}
	r := &side{
		head:      report.Compared{Run: head.Run, Valid: head.Validity.Valid, Reasons: head.Validity.Reasons},
		selection: selection, index: map[cellKey]int{}, metrics: metrics(in.Run.Workload),
	}
	if in.Run.Workload != schemas.WorkloadProbe {
		for i, c := range layout.Cells {
			r.add(cellKey{of: uint32(i)}, c.Values)
		}
	}
	for _, t := range trials {
		of := selection.Cells[t.Trial]
		if t.OK == 0 || int(of) >= len(layout.Cells) {
			continue
		}
		k := cellKey{of, t.Ends}
		if _, known := r.index[k]; !known {
			r.add(k, slices.Concat(layout.Cells[of].Values, ends(t.Ends)))
		}
		at := r.index[k]
		r.trials[at] = append(r.trials[at], t)
	}
	return r, nil
}

func (r *side) add(k cellKey, values []report.Value) {
	r.index[k] = len(r.cells)
	r.cells = append(r.cells, cell{values: values, of: k.of})
	r.trials = append(r.trials, nil)
}

// ends are the two ends of a probe and how it got there, as values of a cell.
func ends(text string) []report.Value {
	var values []report.Value
	for i, part := range strings.Split(text, " ") {
		if names := []string{"protocol", "src_site", "dst_site"}; i < len(names) && text != "" {
			values = append(values, report.Value{Name: names[i], Value: part})
		}
	}
	return values
}

// sample fetches requests of the cells where either run has too few trials.
func (r *side) sample(ctx context.Context, s *measure.Source, pairs []pair, other *side, of func(pair) (mine, theirs int)) error {
	// By cell of the matrix: its pairs of ends share the limit.
	cells := uint32(0)
	for _, c := range r.cells {
		cells = max(cells, c.of+1)
	}
	counts := make([]uint64, cells)
	wanted := false
	for _, p := range pairs {
		mine, theirs := of(p)
		if enough(r.trials[mine], other.trials[theirs]) {
			continue
		}
		wanted = true
		for _, t := range r.trials[mine] {
			counts[r.cells[mine].of] += t.OK
		}
	}
	r.samples = map[int]map[uint32][]measure.Sample{}
	if !wanted {
		return nil
	}
	limit := min(maxSamples*max(1, len(r.cells)/max(1, int(cells))), mostSamples)
	samples, err := s.Samples(ctx, r.selection, counts, limit)
	if err != nil {
		return err
	}
	for _, x := range samples {
		cell, known := r.index[cellKey{x.Cell, x.Ends}]
		if !known {
			continue
		}
		if r.samples[cell] == nil {
			r.samples[cell] = map[uint32][]measure.Sample{}
		}
		r.samples[cell][x.Trial] = append(r.samples[cell][x.Trial], x)
	}
	return nil
}

func enough(a, b []measure.Trial) bool { return len(a) >= minTrials && len(b) >= minTrials }

// pair is a cell that both runs have.
type pair struct {
	a, b   int
	values []report.Value
}

// match pairs cells of equal values; two runs of one cell each are a pair
// whatever its values.
func match(a, b []cell) (pairs []pair, unmatched int) {
	if len(a) == 1 && len(b) == 1 {
		return []pair{{0, 0, a[0].values}}, 0
	}
	at := map[string]int{}
	for i, c := range b {
		at[key(c.values)] = i
	}
	for i, c := range a {
		j, found := at[key(c.values)]
		if !found {
			unmatched++
			continue
		}
		pairs = append(pairs, pair{i, j, c.values})
	}
	return pairs, unmatched + len(b) - len(pairs)
}

// key does not depend on the order of the axes.
func key(values []report.Value) string {
	parts := make([]string, len(values))
	for i, v := range values {
		parts[i] = fmt.Sprintf("%q=%q", v.Name, v.Value)
	}
	slices.Sort(parts)
	return fmt.Sprint(parts)
}

// metric is one figure that is compared.
type metric struct {
	name    string
	trial   func(*measure.Trial) (float64, bool)
	request func(*measure.Sample) (float64, bool)
}

func metrics(workload string) []metric {
	corrected := metric{
		Corrected, func(t *measure.Trial) (float64, bool) { return float64(t.Corrected), true },
		func(s *measure.Sample) (float64, bool) { return float64(s.Corrected), true },
	}
	service := metric{
		Service, func(t *measure.Trial) (float64, bool) { return float64(t.Service), true },
		func(s *measure.Sample) (float64, bool) { return float64(s.Service), true },
	}
	first := metric{
		FirstByte, func(t *measure.Trial) (float64, bool) { return float64(t.FirstByte), t.Answered > 0 },
		func(s *measure.Sample) (float64, bool) { return float64(s.FirstByte), s.FirstByte > 0 },
	}
	throughput := metric{Throughput, func(t *measure.Trial) (float64, bool) {
		return float64(t.Bytes) / (float64(t.Elapsed) / 1e9), t.Elapsed > 0
	}, nil}
	switch workload {
	case schemas.WorkloadProbe:
		return []metric{service.as(RTT)}
	case schemas.WorkloadSwarm:
		return []metric{service.as(Transfer), first.as(FirstPiece)}
	case schemas.WorkloadOffload:
		return []metric{service.as(Confirmed)}
	}
	return []metric{corrected, service, first, throughput}
}

// as is the metric under the name that a workload has for it.
func (m metric) as(name string) metric {
	m.name = name
	return m
}

func testsOf(p pair, a, b *side) []Test {
	byTrial := enough(a.trials[p.a], b.trials[p.b])
	var tests []Test
	for _, m := range a.metrics {
		t := Test{Values: p.values, Metric: m.name, Over: overTrials}
		if byTrial || m.request == nil {
			t.A, t.B = ofTrials(a.trials[p.a], m.trial), ofTrials(b.trials[p.b], m.trial)
			if !byTrial {
				t.Caveat = CaveatThroughput
			}
		} else {
			t.Over, t.Caveat = overRequests, CaveatRequests
			t.A, t.B = ofRequests(a.samples[p.a], m.request), ofRequests(b.samples[p.b], m.request)
		}
		tests = append(tests, t)
	}
	return tests
}

func ofTrials(trials []measure.Trial, of func(*measure.Trial) (float64, bool)) Data {
	var values []float64
	for i := range trials {
		if v, ok := of(&trials[i]); ok {
			values = append(values, v)
		}
	}
	return Data{values}
}

func ofRequests(trials map[uint32][]measure.Sample, of func(*measure.Sample) (float64, bool)) Data {
	indexes := make([]uint32, 0, len(trials))
	for i := range trials {
		indexes = append(indexes, i)
	}
	slices.Sort(indexes)
	var d Data
	for _, i := range indexes {
		var values []float64
		for j := range trials[i] {
			if v, ok := of(&trials[i][j]); ok {
				values = append(values, v)
			}
		}
		if len(values) > 0 {
			d = append(d, values)
		}
	}
	return d
}

// notes are what a reader must know before the figures.
func notes(a, b *side) []string {
	list := []string{}
	for name, s := range map[string]*side{"A": a, "B": b} {
		if !s.head.Valid {
			list = append(list, fmt.Sprintf("run %s is INVALID: its figures mean nothing, nor does this comparison", name))
		}
	}
	slices.Sort(list)
	if a.head.Run.ScheduleHash != b.head.Run.ScheduleHash {
		list = append(list, "the runs followed different schedules")
	}
	return list
}

func methods() map[string]string {
	return map[string]string{
		"ratio":        "median of B / median of A; interval by percentile bootstrap with 2000 resamples, drawn within each trial when requests are resampled (Efron 1979)",
		"shift":        "median of all pairwise differences B - A (Hodges & Lehmann 1963)",
		"cliffs_delta": "P(b > a) - P(b < a) over all pairs (Cliff 1993)",
		"p":            "two-sided Mann-Whitney U test, exact up to 50 values a side without ties and 25 with, else normal approximation with tie and continuity correction (Mann & Whitney 1947)",
		"p_holm":       "corrected for all tests of the comparison (Holm 1979)",
		"sample_unit":  "trials (their medians, their throughput) where both runs have 5 or more of the cell, else requests",
		"verdict":      "better or worse: p_holm below alpha, interval without 1, ratio beyond the minimal effect and, when requests were resampled, the medians of all trials of one run beyond those of the other; no difference: the interval lies within the minimal effect; underpowered: neither",
	}
}
