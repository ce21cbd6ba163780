package measure

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/report"
)

// Input is what a report needs beside the events.
type Input struct {
	Run      schemas.Run
	Accounts []Account       // of all tasks of the run that the bus still knows
	Agents   []schemas.Agent // present now
	Machine  report.Machine
	Version  string // of the gateway
	// Settle is how long to wait for the events of an ended run.
	Settle time.Duration
}

// poll is how often a report looks for events that are still on their way.
const poll = 200 * time.Millisecond

// Report computes the report of a run.
func (s *Source) Report(ctx context.Context, in Input) (*report.Report, error) {
	b, err := s.prepare(ctx, in)
	if err != nil {
		return nil, err
	}
	r := b.report
	if err := b.measure(ctx, s); err != nil {
		return nil, err
	}
	if err := formOf(in.Run.Workload).measure(b, ctx, s); err != nil {
		return nil, err
	}
	b.judge()
	if r.Versions.ClickHouse, err = s.Version(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// Select says which attempts count and what each trial was, after waiting for
// the events of an ended run, with the run's validity already judged.
func (s *Source) Select(ctx context.Context, in Input) (*Layout, Selection, *report.Report, error) {
	b, err := s.prepare(ctx, in)
	if err != nil {
		return nil, Selection{}, nil, err
	}
	b.validity()
	return b.layout, b.selection, b.report, nil
}

type builder struct {
	in        Input
	layout    *Layout
	report    *report.Report
	selection Selection
	closed    []bool // by trial
	tasks     []task // of the attempts that count
	stored    map[attemptKey]Attempt
	network   []*Statement // what was measured of a network made for the run
}

type attemptKey struct {
	producer string
	trial    uint32
	attempt  uint16
}

// task is one task's account, from its state on the bus or, when that is gone,
// from its closing statement.
type task struct {
	key                            attemptKey
	agent, phase, err              string
	issued, recorded, acknowledged uint64
	lag                            report.Lag
	cpu                            float64
	clock                          schemas.Clock
}

func (s *Source) prepare(ctx context.Context, in Input) (*builder, error) {
	kind := schemas.KindOf(in.Run.Workload)
	b := &builder{in: in}
	deadline := time.Now().Add(in.Settle)
	for {
		attempts, err := s.Attempts(ctx, in.Run.ID, kind)
		if err != nil {
			return nil, err
		}
		statements, err := s.Statements(ctx, in.Run.ID)
		if err != nil {
			return nil, err
		}
		if b.layout == nil {
			// Once: a plan costs time and the file does not change.
			if b.layout, err = NewLayout(&in.Run, statements); err != nil {
				return nil, err
			}
		}
		b.assign(attempts, statements)
		if b.settled() {
			b.head(true)
			break
		}
		if !in.Run.Ended() || time.Now().After(deadline) {
			b.head(false)
			break
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the run's events: %w", ctx.Err())
		case <-time.After(poll):
		}
	}
	acting, err := s.Placements(ctx, in.Run.ID, kind)
	if err != nil {
		return nil, err
	}
	b.placements(acting)
	return b, nil
}

// assign sorts out which attempt of each trial counts and what its tasks said.
func (b *builder) assign(attempts []Attempt, statements []Statement) {
	trials := len(b.layout.TrialCell)
	last := make([]uint16, trials)
	closed := make([]uint16, trials)
	b.stored = map[attemptKey]Attempt{}
	for _, a := range attempts {
		if int(a.Trial) >= trials {
			continue
		}
		b.stored[attemptKey{a.Producer, a.Trial, a.Attempt}] = a
		last[a.Trial] = max(last[a.Trial], a.Attempt)
		if a.Closed > 0 {
			closed[a.Trial] = max(closed[a.Trial], a.Attempt)
		}
	}
	for _, a := range b.in.Accounts {
		if int(a.Trial) < trials {
			last[a.Trial] = max(last[a.Trial], a.Attempt)
		}
	}
	b.selection = Selection{Run: b.in.Run.ID, Kind: schemas.KindOf(b.in.Run.Workload), Cells: b.layout.TrialCell, Attempts: last}
	b.closed = make([]bool, trials)
	for i := range last {
		if closed[i] > 0 {
			last[i], b.closed[i] = closed[i], true
		}
	}
	b.network = b.network[:0]
	for i := range statements {
		if k := statements[i].Kind; k == schemas.KindGate || k == schemas.KindLink {
			b.network = append(b.network, &statements[i])
		}
	}
	b.tasks = b.tasks[:0]
	known := map[attemptKey]bool{} // by agent instead of producer
	for _, a := range b.in.Accounts {
		if int(a.Trial) >= trials || a.Attempt != last[a.Trial] {
			continue
		}
		known[attemptKey{a.State.Agent, a.Trial, a.Attempt}] = true
		result := a.State.Result
		b.tasks = append(b.tasks, task{
			key: attemptKey{result.Producer, a.Trial, a.Attempt}, agent: a.State.Agent, phase: a.State.Phase, err: a.State.Error,
			issued: result.Issued, recorded: result.Recorded, acknowledged: result.Acknowledged,
			lag: report.Lag{P50: unsigned(result.LagP50), P99: unsigned(result.LagP99), Max: unsigned(result.LagMax)},
			cpu: result.CPU, clock: a.State.Clock,
		})
	}
	for i := range statements {
		st := &statements[i]
		if st.Kind != schemas.KindTask || int(st.Trial) >= trials || st.Attempt != last[st.Trial] || known[attemptKey{st.Agent, st.Trial, st.Attempt}] {
			continue
		}
		phase := schemas.TaskDone
		if st.Status != schemas.StatusOK {
			phase = schemas.TaskFailed
		}
		b.tasks = append(b.tasks, task{
			key: attemptKey{st.Producer, st.Trial, st.Attempt}, agent: st.Agent, phase: phase, err: st.Error,
			issued: st.number("issued"), recorded: st.number("recorded"), acknowledged: st.number("recorded"),
			lag: report.Lag{P50: st.number("lag_p50_ns"), P99: st.number("lag_p99_ns"), Max: st.number("lag_max_ns")}, cpu: st.real("cpu"),
			clock: schemas.Clock{Offset: time.Duration(st.signed("clock_offset_ns")), Bound: time.Duration(st.signed("clock_bound_ns"))},
		})
	}
	slices.SortFunc(b.tasks, func(x, y task) int {
		return cmp.Or(cmp.Compare(x.key.trial, y.key.trial), cmp.Compare(x.agent, y.agent))
	})
}

func unsigned(d time.Duration) uint64 { return uint64(max(d, 0)) }

// settled reports whether everything that agents and scheduler say they
// recorded is stored.
func (b *builder) settled() bool {
	// Sites that were not as declared were measured, or nobody would know.
	if b.in.Run.Invalid && len(b.network) == 0 {
		return false
	}
	for _, t := range b.tasks {
		if t.acknowledged > 0 && b.stored[t.key].Stored < t.recorded {
			return false
		}
	}
	for i := range min(b.in.Run.TrialsDone, len(b.closed)) {
		if !b.closed[i] {
			return false
		}
	}
	return true
}

func (b *builder) head(settled bool) {
	r := &report.Report{
		Run: report.RunOf(&b.in.Run), Generated: time.Now().UTC(), Machine: b.in.Machine,
		Versions:   report.Versions{Run: b.in.Run.Version, Gateway: b.in.Version},
		Validity:   report.Validity{Reasons: []report.Reason{}},
		Agents:     []report.Agent{},
		Placements: []report.Placement{},
		Cells:      []report.Cell{}, Thresholds: []report.Threshold{}, Definitions: report.Definitions(b.in.Run.Workload),
		Network: b.checks(),
	}
	r.Accounting.Settled = settled
	for _, attempt := range b.selection.Attempts {
		if attempt > 1 {
			r.Run.Retried += int(attempt) - 1
		}
	}
	mine, gone := map[attemptKey]bool{}, map[string]bool{}
	for _, t := range b.tasks {
		if mine[t.key] {
			continue
		}
		mine[t.key] = true
		gone[t.agent] = gone[t.agent] || t.phase == schemas.TaskGone
		r.Accounting.Issued += t.issued
		r.Accounting.Recorded += t.recorded
		if stored := b.stored[t.key]; stored.Distinct < t.recorded {
			r.Accounting.Lost += t.recorded - stored.Distinct
		}
	}
	for key, a := range b.stored {
		if a.Attempt != b.selection.Attempts[a.Trial] {
			continue
		}
		r.Accounting.Duplicated += a.Stored - a.Distinct
		// An agent that is gone has made no statement to hold its events against.
		if agent, _, _ := strings.Cut(key.producer, "/"); gone[agent] {
			continue
		}
		r.Accounting.Requests += a.Requests
		// The scheduler's own statements are recorded by no task.
		if mine[key] || a.Requests > 0 {
			r.Accounting.Stored += a.Stored
		}
	}
	byAgent := map[string]*report.Agent{}
	for _, t := range b.tasks {
		a := byAgent[t.agent]
		if a == nil {
			a = &report.Agent{Name: t.agent}
			byAgent[t.agent] = a
		}
		a.CPU = max(a.CPU, t.cpu)
		if bound := int64(t.clock.Bound); bound >= a.ClockBound {
			a.ClockBound, a.ClockOffset = bound, int64(t.clock.Offset)
		}
	}
	for _, present := range b.in.Agents {
		if a := byAgent[present.Name]; a != nil {
			a.Site, a.Version, a.CPUs = present.Site, present.Version, present.CPUs
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byAgent)) {
		r.Agents = append(r.Agents, *byAgent[name])
	}
	b.report = r
}

// placements are those of the last trial as the scheduler keeps them, and every
// other agent and site that the events name.
func (b *builder) placements(acting []Acting) {
	r := b.report
	emulates := map[string]bool{}
	seen := map[[2]string]bool{}
	for _, p := range b.in.Run.Placements {
		r.Placements = append(r.Placements, report.Placement{Group: p.Group, Site: p.Site, Agent: p.Agent, Emulated: p.Emulated})
		seen[[2]string{p.Site, p.Agent}] = true
		emulates[p.Agent] = emulates[p.Agent] || p.Emulated
	}
	for _, a := range acting {
		if a.Agent == "" || seen[[2]string{a.Site, a.Agent}] {
			continue
		}
		r.Placements = append(r.Placements, report.Placement{Group: b.groupAt(a.Site), Site: a.Site, Agent: a.Agent, Emulated: emulates[a.Agent]})
	}
	for _, p := range r.Placements {
		r.Emulated = r.Emulated || p.Emulated
	}
}

func (b *builder) groupAt(site string) string {
	var names []string
	for _, g := range b.layout.Experiment.Groups {
		if g.Site == site {
			names = append(names, g.Name)
		}
	}
	if len(names) == 0 {
		return site
	}
	return strings.Join(names, "|")
}

func (b *builder) measure(ctx context.Context, s *Source) error {
	figures, err := s.cells(ctx, b.selection)
	if err != nil {
		return err
	}
	statuses, err := s.statuses(ctx, b.selection)
	if err != nil {
		return err
	}
	elapsed, err := s.elapsed(ctx, b.selection)
	if err != nil {
		return err
	}
	r := b.report
	for i, c := range b.layout.Cells {
		r.Cells = append(r.Cells, report.Cell{Index: i, Values: c.Values, Planned: c.Trials, Clients: c.Clients, Statuses: map[string]uint64{}})
	}
	for i, cell := range b.selection.Cells {
		if int(cell) >= len(r.Cells) {
			continue
		}
		c := &r.Cells[cell]
		if b.closed[i] {
			c.Trials++
		}
		c.Elapsed += elapsed[uint32(i)]
	}
	for _, t := range b.tasks {
		cell := b.selection.Cells[t.key.trial]
		if int(cell) >= len(r.Cells) || t.key.producer == "" {
			continue
		}
		c := &r.Cells[cell]
		if c.DispatchLag == nil {
			c.DispatchLag = &report.Lag{}
		}
		c.DispatchLag.P50 = max(c.DispatchLag.P50, t.lag.P50)
		c.DispatchLag.P99 = max(c.DispatchLag.P99, t.lag.P99)
		c.DispatchLag.Max = max(c.DispatchLag.Max, t.lag.Max)
	}
	for _, f := range figures {
		if int(f.cell) >= len(r.Cells) {
			continue
		}
		c := &r.Cells[f.cell]
		c.Requests, c.OK, c.Bytes = f.requests, f.ok, f.payload
		c.Errors = f.requests - f.ok
		c.Statuses = statuses[f.cell]
		if f.requests > 0 {
			c.ErrorRate = float64(c.Errors) / float64(f.requests)
			c.Wait = quantiles(f.wait)
		}
		if c.Elapsed > 0 {
			seconds := float64(c.Elapsed) / 1e9
			c.BytesPerS, c.RequestsPer = float64(c.Bytes)/seconds, float64(c.OK)/seconds
		}
		if f.ok > 0 {
			c.Corrected, c.Service = quantiles(f.corrected), quantiles(f.service)
		}
		if f.answered > 0 {
			c.FirstByte = quantiles(f.firstByte)
		}
	}
	return nil
}

func quantiles(v []uint64) *report.Quantiles {
	if len(v) != 5 {
		return nil
	}
	return &report.Quantiles{P50: v[0], P90: v[1], P99: v[2], P999: v[3], Max: v[4]}
}
