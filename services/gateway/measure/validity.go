package measure

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/report"
)

// judge decides on validity, thresholds and the verdict.
func (b *builder) judge() {
	b.validity()
	b.thresholds()
	r := b.report
	switch {
	case !b.in.Run.Ended():
		r.Verdict = report.VerdictRunning
	case !r.Validity.Valid:
		r.Verdict = schemas.VerdictInvalid
	case slices.ContainsFunc(r.Thresholds, func(t report.Threshold) bool { return !t.Held }):
		r.Verdict = schemas.VerdictMissed
	default:
		r.Verdict = schemas.VerdictHeld
	}
}

// validity collects every reason not to believe the figures. Of a run that has
// not ended, only what more time cannot cure counts.
func (b *builder) validity() {
	r := b.report
	bad := func(code, format string, args ...any) {
		r.Validity.Reasons = append(r.Validity.Reasons, report.Reason{Code: code, Text: fmt.Sprintf(format, args...)})
	}
	ended := b.in.Run.Ended()
	if ended {
		b.checkTrials(bad)
	}
	b.checkAgents(bad)
	b.checkNetwork(bad)
	capture := b.checkCapture(bad)
	if ended {
		b.checkAccounting(bad, capture)
	}
	b.checkHealth(bad)
	r.Validity.Valid = len(r.Validity.Reasons) == 0
}

type complaint func(code, format string, args ...any)

func (b *builder) checkTrials(bad complaint) {
	var missing []string
	for i, closed := range b.closed {
		if !closed {
			missing = append(missing, fmt.Sprint(i))
		}
	}
	run := &b.in.Run
	why := ""
	if run.Error != "" {
		why = ": " + run.Error
	}
	switch {
	case len(missing) > 0:
		bad(report.ReasonTrials, "%d of %d trials are missing (%s), the run is %s%s", len(missing), len(b.closed), shorten(missing), run.State, why)
	case run.State != schemas.RunDone:
		bad(report.ReasonTrials, "the run is %s%s", run.State, why)
	}
}

func shorten(list []string) string {
	const most = 8
	if len(list) > most {
		return strings.Join(list[:most], ", ") + ", …"
	}
	return strings.Join(list, ", ")
}

// checkAgents names those that were gone before the end of a trial: what they
// measured last is missing, and what others saw of them is in the figures.
func (b *builder) checkAgents(bad complaint) {
	for _, t := range b.tasks {
		if t.phase == schemas.TaskGone {
			bad(report.ReasonAgentGone, "agent %s %s, in trial %d", t.agent, t.err, t.key.trial)
		}
	}
}

// checkNetwork reports what an emulated network did that nobody asked for.
func (b *builder) checkNetwork(bad complaint) {
	for _, st := range b.network {
		if st.Status == schemas.StatusOK {
			continue
		}
		bad(report.ReasonNetwork, "%s", st.Error)
	}
}

// checkCapture reports whether events were recorded at all.
func (b *builder) checkCapture(bad complaint) bool {
	var off []string
	for _, t := range b.tasks {
		if t.recorded > 0 && t.acknowledged == 0 && !slices.Contains(off, t.agent) {
			off = append(off, t.agent)
		}
	}
	if len(off) > 0 {
		bad(report.ReasonCapture, "events of %s were dropped: capture was off", shorten(off))
	}
	return len(off) == 0
}

func (b *builder) checkAccounting(bad complaint, capture bool) {
	a := b.report.Accounting
	if capture && a.Lost > 0 {
		text := "%d of %d events that agents recorded are not stored"
		if !a.Settled {
			text += fmt.Sprintf(" after %s", b.in.Settle)
		}
		bad(report.ReasonLost, text, a.Lost, a.Recorded)
	}
	if a.Duplicated > 0 {
		bad(report.ReasonDuplicated, "%d events are stored more than once", a.Duplicated)
	}
	if capture && a.Issued != a.Requests {
		bad(report.ReasonUnaccounted, "%d requests were issued and %d are stored", a.Issued, a.Requests)
	}
}

func (b *builder) checkHealth(bad complaint) {
	limits := b.layout.Experiment.Health
	agents := map[string]bool{}
	for _, t := range b.tasks {
		agents[t.agent] = true
	}
	// worst names the task that is furthest above a limit.
	worst := func(code, what string, limit float64, of func(*task) float64, show func(float64) string) {
		above := 0
		var top *task
		for i := range b.tasks {
			t := &b.tasks[i]
			if of(t) <= limit {
				continue
			}
			above++
			if top == nil || of(t) > of(top) {
				top = t
			}
		}
		if top != nil {
			bad(code, "%s %s in trial %d on agent %s is above the limit of %s (%d of %d tasks are)",
				what, show(of(top)), top.key.trial, top.agent, show(limit), above, len(b.tasks))
		}
	}
	span := func(v float64) string { return time.Duration(v).String() }
	worst(report.ReasonDispatchLag, "dispatch lag p99", float64(limits.DispatchLag), func(t *task) float64 { return float64(t.lag.P99) }, span)
	if len(agents) > 1 {
		worst(report.ReasonClock, "clock uncertainty", float64(limits.ClockBound), func(t *task) float64 { return float64(t.clock.Bound) }, span)
	}
	if limits.CPU > 0 {
		worst(report.ReasonGeneratorCPU, "the generator's share of its machine's CPU,", limits.CPU, func(t *task) float64 { return t.cpu },
			func(v float64) string { return fmt.Sprintf("%.2f", v) })
	}
}

func (b *builder) thresholds() {
	r := b.report
	for _, t := range b.layout.Experiment.Thresholds {
		lowest, highest, err := t.Bounds()
		entry := report.Threshold{Metric: t.Metric, Values: []report.Value{}, Min: lowest, Max: highest, Unit: report.UnitOf(t.Metric)}
		if err != nil {
			entry.Text = err.Error()
			r.Thresholds = append(r.Thresholds, entry)
			continue
		}
		matched := false
		for _, x := range formOf(b.in.Run.Workload).subjects(r) {
			if !matches(x.where, t.Where) {
				continue
			}
			matched = true
			one := entry
			one.Cell, one.Values = &x.cell, x.where
			v, ok := x.metric(t.Metric)
			switch {
			case !ok:
				one.Text = "there is no such figure: nothing that counts for it"
			default:
				one.Observed = &v
				one.Held = (lowest == nil || v >= *lowest) && (highest == nil || v <= *highest)
				one.Text = "held"
				if !one.Held {
					one.Text = "missed"
				}
			}
			r.Thresholds = append(r.Thresholds, one)
		}
		if !matched {
			entry.Text = fmt.Sprintf("no cell or pair of sites has %v: the threshold checks nothing", t.Where)
			r.Thresholds = append(r.Thresholds, entry)
		}
	}
}

// matches compares values as sizes or time spans where they are: `1000kB` is
// `1MB`.
func matches(values []report.Value, where map[string]string) bool {
	for name, want := range where {
		i := slices.IndexFunc(values, func(v report.Value) bool { return v.Name == name })
		if i < 0 || !schemas.SameValue(values[i].Value, want) {
			return false
		}
	}
	return true
}
