package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/schemas"
)

func TestHumanUnits(t *testing.T) {
	for _, c := range []struct {
		got, want string
	}{
		{duration(0), "0 ns"},
		{duration(999), "999 ns"},
		{duration(1000), "1.00 µs"},
		{duration(71_300), "71.3 µs"},
		{duration(999_600), "1.00 ms"},
		{duration(4.56e6), "4.56 ms"},
		{duration(123.4e6), "123 ms"},
		{duration(1.23e9), "1.23 s"},
		{duration(4000e9), "4000 s"},
		{humanBytes(0), "0 B"},
		{humanBytes(1000), "1.00 kB"},
		{humanBytes(1.5e9), "1.50 GB"},
		{humanBytes(3e15), "3.00 PB"},
		{inUnit(.0123, "ratio"), "1.23 %"},
		{inUnit(5e6, "bytes/s"), "5.00 MB/s"},
		{inUnit(12.34, "requests/s"), "12.3/s"},
		{digits(.00042), "0.00042"},
		{probability(.00001), "< 0.0001"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func sample() *Report {
	cell := 0
	observed, highest := 2.5e9, 1e9
	q := &Quantiles{P50: 1e6, P90: 2e6, P99: 3e6, P999: 4e6, Max: 5e6}
	return &Report{
		Run:      Run{Name: "x", State: schemas.RunDone, ScheduleHash: "abc", Trials: 2, TrialsDone: 2, Retried: 1},
		Verdict:  schemas.VerdictInvalid,
		Validity: Validity{Reasons: []Reason{{ReasonDispatchLag, "too late"}}},
		Placements: []Placement{
			{Group: "g", Site: "oregon", Agent: "a", Emulated: true},
		},
		Cells: []Cell{
			{
				Values: []Value{{"size", "1MB"}}, Planned: 2, Trials: 2, Requests: 10, OK: 9, Errors: 1, ErrorRate: .1,
				Statuses: map[string]uint64{"ok": 9, "timeout": 1}, Corrected: q, Service: q, FirstByte: q, Wait: q, DispatchLag: &Lag{1, 2, 3},
			},
			// A cell in which nothing succeeded.
			{Index: 1, Values: []Value{{"size", "2MB"}}, Planned: 2, Requests: 1, Errors: 1, ErrorRate: 1, Statuses: map[string]uint64{"refused": 1}},
		},
		Thresholds: []Threshold{
			{Metric: "corrected_p99", Cell: &cell, Values: []Value{{"size", "1MB"}}, Max: &highest, Observed: &observed, Unit: "ns"},
			{Metric: "error_rate", Text: "no cell has it", Unit: "ratio"},
		},
	}
}

func TestReportRendering(t *testing.T) {
	r := sample()
	var table, rows, doc bytes.Buffer
	for format, w := range map[string]*bytes.Buffer{FormatTable: &table, FormatCSV: &rows, FormatJSON: &doc} {
		if err := r.Write(w, format); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"INVALID", "· too late", "EMULATED", "timeout=1", "refused=1", "MISSED", "≤ 1.00 s", "2.50 s", "no cell has it", "p99.9", "–", "repeated 1"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	records, err := csv.NewReader(&rows).ReadAll()
	if err != nil || len(records) != 3 {
		t.Fatalf("CSV: %v, %d records", err, len(records))
	}
	column := func(name string) int { return slices.Index(records[0], name) }
	if records[1][column("corrected_p999_ns")] != "4000000" || records[2][column("corrected_p999_ns")] != "" ||
		records[1][column("cell.size")] != "1MB" || records[1][column("statuses")] != "ok=9 timeout=1" {
		t.Errorf("CSV: %v", records)
	}
	var back Report
	if err := json.Unmarshal(doc.Bytes(), &back); err != nil || back.Cells[0].Corrected.P999 != 4e6 || back.Cells[1].Corrected != nil {
		t.Errorf("JSON: %v\n%s", err, doc.String())
	}
	if err := r.Write(&table, "pdf"); err == nil {
		t.Error("pdf is taken")
	}
	if err := (&Report{}).Write(&bytes.Buffer{}, FormatTable); err != nil {
		t.Error(err)
	}
	if err := (&Report{}).Write(&bytes.Buffer{}, FormatCSV); err != nil {
		t.Error(err)
	}
}

func TestMetric(t *testing.T) {
	c := &sample().Cells[0]
	c.Elapsed, c.BytesPerS, c.RequestsPer = 1e9, 7, 8
	for name, want := range map[string]float64{
		"corrected_p50": 1e6, "service_p90": 2e6, "first_byte_p999": 4e6, "service_max": 5e6, "error_rate": .1, "bytes_per_s": 7, "requests_per_s": 8,
	} {
		if got, ok := c.Metric(name); !ok || got != want {
			t.Errorf("%s: %g, %v, want %g", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "corrected_", "corrected_p95", "nothing_p50"} {
		if _, ok := c.Metric(name); ok {
			t.Errorf("%q is a metric", name)
		}
	}
	if _, ok := sample().Cells[1].Metric("service_p50"); ok {
		t.Error("a cell without successes has a latency")
	}
}

func TestComparisonRendering(t *testing.T) {
	ratio, low, high := 1.5, 1.2, 1.8
	c := &Comparison{
		A: Compared{Valid: true}, B: Compared{Reasons: []Reason{{"x", "late"}}}, Alpha: .05, MinEffect: .05, Confidence: .95, Notes: []string{"look"},
		Results: []Difference{
			{Values: []Value{{"size", "1MB"}}, Metric: "service", Unit: "ns", Over: "trials", NA: 5, NB: 6, MedianA: 1e6, MedianB: 1.5e6, Ratio: &ratio, RatioLow: &low, RatioHigh: &high, PHolm: .01, Verdict: Worse},
			{Values: []Value{{"size", "1MB"}}, Metric: "throughput", Unit: "bytes/s", Over: "trials", Verdict: Underpowered, Caveat: "few"},
		},
	}
	var table, rows bytes.Buffer
	if err := c.Write(&table, FormatTable); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"look", "INVALID", "· late", "+50.0 %", "+20.0 … +80.0 %", "worse", "underpowered", "Caveat: few", "5, 6 trials"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	if err := c.Write(&rows, FormatCSV); err != nil {
		t.Fatal(err)
	}
	if records, err := csv.NewReader(&rows).ReadAll(); err != nil || len(records) != 3 {
		t.Errorf("CSV: %v, %d records", err, len(records))
	}
	if err := c.Write(&rows, "x"); err == nil {
		t.Error("format x is taken")
	}
}
