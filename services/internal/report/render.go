package report

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/transferlab/transferlab/schemas"
)

// Formats of a report and of a comparison.
const (
	FormatJSON  = "json"
	FormatCSV   = "csv"
	FormatTable = "table"
)

// Write renders the report; an unknown format is an error.
func (r *Report) Write(w io.Writer, format string) error {
	switch format {
	case FormatJSON:
		return writeJSON(w, r)
	case FormatCSV:
		return formOf(r.Run.Workload).csv(r, w)
	case FormatTable:
		return r.writeTable(w)
	}
	return fmt.Errorf("format %q, want json, csv or table", format)
}

// Write renders the comparison; an unknown format is an error.
func (c *Comparison) Write(w io.Writer, format string) error {
	switch format {
	case FormatJSON:
		return writeJSON(w, c)
	case FormatCSV:
		return c.writeCSV(w)
	case FormatTable:
		return c.writeTable(w)
	}
	return fmt.Errorf("format %q, want json, csv or table", format)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// quantileColumns are a latency's figures in the order of every table.
func quantileColumns() []string { return []string{"p50", "p90", "p99", "p999", "max"} }

// form is how a workload's figures are shown.
type form struct {
	tables func(*Report, *page)
	csv    func(*Report, io.Writer) error
	// definitions are those beside and instead of the general ones.
	definitions func() map[string]string
}

func formOf(workload string) form {
	switch workload {
	case schemas.WorkloadProbe:
		return form{(*Report).probeTables, (*Report).writeProbeCSV, probeDefinitions}
	case schemas.WorkloadSwarm:
		return form{(*Report).swarmTables, (*Report).writeSwarmCSV, swarmDefinitions}
	case schemas.WorkloadOffload:
		return form{(*Report).offloadTables, (*Report).writeOffloadCSV, offloadDefinitions}
	}
	return form{(*Report).loadTables, (*Report).writeLoadCSV, func() map[string]string { return nil }}
}

func (r *Report) writeLoadCSV(w io.Writer) error {
	columns := []string{"trials_planned", "trials", "clients", "requests", "ok", "errors", "error_rate", "bytes", "elapsed_ns", "bytes_per_s", "requests_per_s"}
	columns = append(columns, quantileHeader("corrected", "service", "first_byte", "wait")...)
	columns = append(columns, "dispatch_lag_p50_ns", "dispatch_lag_p99_ns", "dispatch_lag_max_ns", "statuses")
	var first []Value
	if len(r.Cells) > 0 {
		first = r.Cells[0].Values
	}
	sheet, err := r.sheet(w, first, columns)
	if err != nil {
		return err
	}
	for i := range r.Cells {
		c := &r.Cells[i]
		row := []string{
			strconv.Itoa(c.Planned), strconv.Itoa(c.Trials), strconv.Itoa(c.Clients), whole(c.Requests), whole(c.OK), whole(c.Errors),
			number(c.ErrorRate), whole(c.Bytes), strconv.FormatInt(c.Elapsed, 10), number(c.BytesPerS), number(c.RequestsPer),
		}
		for _, q := range []*Quantiles{c.Corrected, c.Service, c.FirstByte, c.Wait} {
			row = append(row, q.csv()...)
		}
		if l := c.DispatchLag; l != nil {
			row = append(row, whole(l.P50), whole(l.P99), whole(l.Max))
		} else {
			row = append(row, "", "", "")
		}
		if err := sheet.row(c.Index, c.Values, append(row, statuses(c.Statuses))); err != nil {
			return err
		}
	}
	return sheet.end()
}

// sheet is a table of a report as CSV: each row begins with the run and the cell
// it is of.
type sheet struct {
	out    *csv.Writer
	report *Report
	axes   int
}

// sheet writes the header; values are those of any cell.
func (r *Report) sheet(w io.Writer, values []Value, columns []string) (*sheet, error) {
	header := []string{"run", "name", "seed", "schedule_hash", "verdict", "cell"}
	for _, v := range values {
		header = append(header, "cell."+v.Name)
	}
	s := &sheet{out: csv.NewWriter(w), report: r, axes: len(values)}
	return s, s.out.Write(append(header, columns...))
}

func (s *sheet) row(cell int, values []Value, fields []string) error {
	run := &s.report.Run
	row := []string{run.ID.String(), run.Name, whole(run.Seed), run.ScheduleHash, s.report.Verdict, strconv.Itoa(cell)}
	for _, v := range values[:s.axes] {
		row = append(row, v.Value)
	}
	return s.out.Write(append(row, fields...))
}

func (s *sheet) end() error {
	s.out.Flush()
	return s.out.Error()
}

func whole(n uint64) string { return strconv.FormatUint(n, 10) }

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// quantileHeader names the columns of latencies.
func quantileHeader(latencies ...string) []string {
	var columns []string
	for _, l := range latencies {
		for _, q := range quantileColumns() {
			columns = append(columns, l+"_"+q+"_ns")
		}
	}
	return columns
}

// csv are the figures as fields, empty when there are none.
func (q *Quantiles) csv() []string {
	var fields []string
	for _, name := range quantileColumns() {
		text := ""
		if v, ok := q.at(name); ok {
			text = strconv.FormatFloat(v, 'f', 0, 64)
		}
		fields = append(fields, text)
	}
	return fields
}

func statuses(counts map[string]uint64) string {
	parts := make([]string, 0, len(counts))
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s=%d", s, counts[s]))
	}
	return strings.Join(parts, " ")
}

// page writes lines and tables and keeps the first error.
type page struct {
	w   io.Writer
	err error
}

func (p *page) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *page) field(name, format string, args ...any) {
	p.line("%-13s %s", name, fmt.Sprintf(format, args...))
}

func (p *page) table(left int, header table.Row, rows []table.Row) {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options = table.Options{SeparateColumns: true, SeparateHeader: true, DrawBorder: true}
	t.AppendHeader(header)
	t.AppendRows(rows)
	var columns []table.ColumnConfig
	for i := range header {
		if i >= left {
			columns = append(columns, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
	}
	t.SetColumnConfigs(columns)
	p.line("%s", t.Render())
}

func (r *Report) writeTable(w io.Writer) error {
	p := &page{w: w}
	p.field("run", "%s  %s", r.Run.ID, r.Run.Name)
	p.field("verdict", "%s", verdictText(r.Verdict, r.Run.State))
	for _, reason := range r.Validity.Reasons {
		p.field("", "· %s", reason.Text)
	}
	if r.Run.Error != "" {
		p.field("error", "%s", r.Run.Error)
	}
	took := ""
	if !r.Run.Finished.IsZero() && !r.Run.Started.IsZero() {
		took = ", took " + r.Run.Finished.Sub(r.Run.Started).Round(10*time.Millisecond).String()
	}
	if !r.Run.Started.IsZero() {
		p.field("started", "%s%s", r.Run.Started.UTC().Format("2006-01-02 15:04:05 MST"), took)
	}
	p.field("seed", "%d, schedule %s", r.Run.Seed, r.Run.ScheduleHash)
	retried := ""
	if r.Run.Retried > 0 {
		retried = fmt.Sprintf(", attempts given up and repeated %d", r.Run.Retried)
	}
	p.field("trials", "%d of %d, cells %d%s", r.Run.TrialsDone, r.Run.Trials, len(r.Cells), retried)
	p.field("versions", "run %s, gateway %s, ClickHouse %s", r.Versions.Run, r.Versions.Gateway, r.Versions.ClickHouse)
	machine := []string{r.Machine.OS + "/" + r.Machine.Arch, fmt.Sprintf("%d CPUs", r.Machine.CPUs)}
	for _, s := range []string{r.Machine.CPUModel, r.Machine.Kernel} {
		if s != "" {
			machine = append(machine, s)
		}
	}
	p.field("machine", "%s", strings.Join(machine, ", "))
	for i, place := range r.Placements {
		name, emulated := "", ""
		if i == 0 {
			name = "sites"
		}
		if place.Emulated {
			emulated = " EMULATED: the agent is not at the site, distance is not measured"
		}
		p.field(name, "%s at %s by %s%s", place.Group, place.Site, place.Agent, emulated)
	}
	a := r.Accounting
	settled := ""
	if !a.Settled {
		settled = " (events were still on their way)"
	}
	p.field("events", "%d recorded, %d stored, %d lost, %d duplicated; %s: %d issued, %d stored%s",
		a.Recorded, a.Stored, a.Lost, a.Duplicated, schemas.OperationsOf(r.Run.Workload), a.Issued, a.Requests, settled)
	r.networkLine(p)
	for _, note := range r.Notes {
		p.field("note", "%s", note)
	}
	p.line("")
	formOf(r.Run.Workload).tables(r, p)
	r.thresholdTable(p)
	return p.err
}

// texts are the lag's cells of a table.
func (l *Lag) texts() []any {
	if l == nil {
		return []any{"–", "–", "–"}
	}
	return []any{duration(float64(l.P50)), duration(float64(l.P99)), duration(float64(l.Max))}
}

func verdictText(verdict, state string) string {
	switch verdict {
	case schemas.VerdictInvalid:
		return "INVALID: the run was not healthy, its figures mean nothing"
	case VerdictRunning:
		return "none yet: the run is " + state
	}
	return verdict
}

func (r *Report) loadTables(p *page) {
	var load, latency []table.Row
	left, header := 1, table.Row{"cell"}
	failing := slices.ContainsFunc(r.Cells, func(c Cell) bool { return c.Errors > 0 })
	if failing {
		left, header = 2, append(header, "failures")
	}
	header = append(header, "trials", "clients", "n", "throughput", "req/s", "errors", "lag p50", "p99", "max")
	for i := range r.Cells {
		c := &r.Cells[i]
		trials := strconv.Itoa(c.Trials)
		if c.Trials != c.Planned {
			trials += "/" + strconv.Itoa(c.Planned)
		}
		failed := ""
		if c.Errors > 0 {
			counts := maps.Clone(c.Statuses)
			delete(counts, schemas.StatusOK)
			failed = statuses(counts)
		}
		row := table.Row{c.Name()}
		if failing {
			row = append(row, failed)
		}
		row = append(row, trials, c.Clients, c.Requests, humanBytes(c.BytesPerS)+"/s", digits(c.RequestsPer), percent(c.ErrorRate))
		load = append(load, append(row, c.DispatchLag.texts()...))
		for j, l := range []struct {
			name string
			q    *Quantiles
		}{{"corrected", c.Corrected}, {"service", c.Service}, {"first byte", c.FirstByte}} {
			name := ""
			if j == 0 {
				name = c.Name()
			}
			row := table.Row{name, l.name}
			for _, q := range quantileColumns() {
				if v, ok := l.q.at(q); ok {
					row = append(row, duration(v))
				} else {
					row = append(row, "–")
				}
			}
			latency = append(latency, row)
		}
	}
	p.table(left, header, load)
	p.table(2, table.Row{"cell", "latency", "p50", "p90", "p99", "p99.9", "max"}, latency)
}

func (r *Report) thresholdTable(p *page) {
	if len(r.Thresholds) == 0 {
		return
	}
	var rows []table.Row
	for _, t := range r.Thresholds {
		held := "held"
		if !t.Held {
			held = "MISSED"
		}
		cell := nameOf(t.Values)
		if t.Cell == nil {
			cell = "no cell: " + t.Text
		}
		observed := "–"
		if t.Observed != nil {
			observed = inUnit(*t.Observed, t.Unit)
		}
		var bounds []string
		if t.Min != nil {
			bounds = append(bounds, "≥ "+inUnit(*t.Min, t.Unit))
		}
		if t.Max != nil {
			bounds = append(bounds, "≤ "+inUnit(*t.Max, t.Unit))
		}
		rows = append(rows, table.Row{held, t.Metric, cell, strings.Join(bounds, ", "), observed})
	}
	p.table(4, table.Row{"threshold", "metric", "cell", "wanted", "observed"}, rows)
}

func (c *Comparison) writeCSV(w io.Writer) error {
	var axes []string
	if len(c.Results) > 0 {
		for _, v := range c.Results[0].Values {
			axes = append(axes, v.Name)
		}
	}
	header := []string{"run_a", "run_b"}
	for _, a := range axes {
		header = append(header, "cell."+a)
	}
	header = append(header, "metric", "unit", "sample_unit", "n_a", "n_b", "median_a", "median_b", "ratio", "ratio_low", "ratio_high", "shift", "cliffs_delta", "p", "p_holm", "verdict")
	out := csv.NewWriter(w)
	if err := out.Write(header); err != nil {
		return err
	}
	maybe := func(v *float64) string {
		if v == nil {
			return ""
		}
		return number(*v)
	}
	for i := range c.Results {
		d := &c.Results[i]
		row := []string{c.A.Run.ID.String(), c.B.Run.ID.String()}
		for j := range axes {
			row = append(row, d.Values[j].Value)
		}
		row = append(row, d.Metric, d.Unit, d.Over, strconv.Itoa(d.NA), strconv.Itoa(d.NB), number(d.MedianA), number(d.MedianB),
			maybe(d.Ratio), maybe(d.RatioLow), maybe(d.RatioHigh), number(d.Shift), number(d.CliffsDelta), number(d.P), number(d.PHolm), d.Verdict)
		if err := out.Write(row); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

func (c *Comparison) writeTable(w io.Writer) error {
	p := &page{w: w}
	for _, side := range []struct {
		name string
		of   *Compared
	}{{"A", &c.A}, {"B", &c.B}} {
		valid := ""
		if !side.of.Valid {
			valid = "  INVALID: the run was not healthy, its figures mean nothing"
		}
		p.field(side.name, "%s  %s%s", side.of.Run.ID, side.of.Run.Name, valid)
		for _, reason := range side.of.Reasons {
			p.field("", "· %s", reason.Text)
		}
	}
	for _, n := range c.Notes {
		p.field("note", "%s", n)
	}
	p.line("")
	var rows []table.Row
	caveats := map[string]bool{}
	last := ""
	for i := range c.Results {
		d := &c.Results[i]
		name := d.Name()
		if name == last {
			name = ""
		} else {
			last = name
		}
		change, interval := "–", "–"
		if d.Ratio != nil {
			change = fmt.Sprintf("%+.1f %%", change100(*d.Ratio))
		}
		if d.RatioLow != nil && d.RatioHigh != nil {
			interval = fmt.Sprintf("%+.1f … %+.1f %%", change100(*d.RatioLow), change100(*d.RatioHigh))
		}
		if d.Caveat != "" {
			caveats[d.Caveat] = true
		}
		rows = append(rows, table.Row{
			name, d.Metric, d.Verdict, inUnit(d.MedianA, d.Unit), inUnit(d.MedianB, d.Unit), change, interval,
			fmt.Sprintf("%.2f", d.CliffsDelta), probability(d.PHolm), fmt.Sprintf("%d, %d %s", d.NA, d.NB, d.Over),
		})
	}
	p.table(3, table.Row{
		"cell", "metric", "B is", "median A", "median B", "change", fmt.Sprintf("%.0f %% interval", 100*c.Confidence), "Cliff's δ", "p (Holm)", "n",
	}, rows)
	for _, caveat := range slices.Sorted(maps.Keys(caveats)) {
		p.line("Caveat: %s", caveat)
	}
	p.line("Verdicts at level %g after Holm's correction; differences below %s do not count.", c.Alpha, percent(c.MinEffect))
	return p.err
}

// change100 is a ratio's change in per cent, to one digit, without a negative
// zero.
func change100(ratio float64) float64 { return math.Round(1000*(ratio-1))/10 + 0 }

func probability(v float64) string {
	if v < 0.0001 {
		return "< 0.0001"
	}
	return fmt.Sprintf("%.4f", v)
}
