package report

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/transferlab/transferlab/schemas"
)

func wideSwarms(bound bool, names ...string) *Report {
	r := &Report{Run: Run{Workload: schemas.WorkloadSwarm, State: schemas.RunDone}, Verdict: schemas.VerdictHeld}
	some := func(v float64) *float64 { return &v }
	for i, name := range names {
		c := SwarmCell{
			Cell: i, Values: []Value{{"size", name}}, Trials: 333, Leechers: 3, Transfers: 999, OK: 998, Statuses: map[string]uint64{"ok": 998, "stalled": 1},
			Transfer: &Quantiles{P50: 123e6, P90: 456e6, P99: 789e6, P999: 900e6, Max: 950e6}, Mean: some(12.3e6), SD: some(45.6e6),
			Throughput: some(12_345_678), Ratio: some(1.02345), Spread: some(12.34), Copy: new(uint64), CopyEfficiency: some(.999),
		}
		if bound {
			c.Bound, c.BoundEfficiency = new(uint64), some(.999)
		}
		for _, phase := range swarmPhases() {
			c.Phases = append(c.Phases, SwarmPhase{Phase: phase, Transfers: 998, Quantiles: *c.Transfer})
		}
		c.Wire = []SwarmWire{{Class: "payload", Bytes: 999_000_000, Share: .97}, {Class: "not_interested", Bytes: 10, Share: .01}, {Class: "ip_headers", Bytes: 20, Share: .02}}
		c.Share()
		r.Swarm = append(r.Swarm, c)
		r.Cells = append(r.Cells, Cell{Index: i, Values: c.Values, Planned: 333})
	}
	return r
}

// The tables fit a terminal of 120 columns, whatever of them there is.
func TestSwarmTablesFit(t *testing.T) {
	for _, bound := range []bool{false, true} {
		r := wideSwarms(bound, "10kB", "100kB", "1MB", "10MB", "100MB", "1GB", "2GB")
		var b bytes.Buffer
		p := &page{w: &b}
		if r.swarmTables(p); p.err != nil {
			t.Fatal(p.err)
		}
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > pageWidth {
				t.Errorf("%d columns: %s", n, line)
			}
		}
		if got := strings.Contains(b.String(), "of bound"); got != bound {
			t.Errorf("a column for the bound is %v, want %v:\n%s", got, bound, b.String())
		}
		if n := strings.Count(b.String(), "bytes sent"); n != 2 {
			t.Errorf("%d tables of bytes, want the cells in 2:\n%s", n, b.String())
		}
		for _, want := range []string{"12.3 ± 45.6 ms", "998/999", "did not succeed, size=1MB: stalled=1", "999 MB  97.00 %"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("the tables lack %q:\n%s", want, b.String())
			}
		}
		if strings.Contains(b.String(), "333/333") || strings.Contains(b.String(), "IP and TCP headers are not") {
			t.Errorf("the tables say more than there is to say:\n%s", b.String())
		}
	}
}

// A cell in which nothing succeeded has no figures and takes none for zero.
func TestSwarmCellWithoutFigures(t *testing.T) {
	r := wideSwarms(false, "10kB", "100kB")
	r.Swarm[1] = SwarmCell{Cell: 1, Values: r.Cells[1].Values, Trials: 1, Leechers: 3, Transfers: 3, Statuses: map[string]uint64{schemas.StatusNoTracker: 3}}
	for _, metric := range []string{"transfer_p50", "first_piece_max", "ratio", "spread", "copy_efficiency", "bound_efficiency", "unattributed", "nonsense"} {
		if v, ok := r.Swarm[1].Metric(metric); ok {
			t.Errorf("%s is %g, want none", metric, v)
		}
	}
	if v, ok := r.Swarm[1].Metric("error_rate"); !ok || v != 1 {
		t.Errorf("error_rate %g, %v, want 1", v, ok)
	}
	for _, format := range []string{FormatTable, FormatCSV, FormatJSON} {
		var b bytes.Buffer
		if err := r.Write(&b, format); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), schemas.StatusNoTracker) {
			t.Errorf("%s lacks the status:\n%s", format, b.String())
		}
	}
}
