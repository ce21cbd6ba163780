package gateway

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/report"
)

// Every figure of a report against a computation of its own.
func TestReportFigures(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: madeFile, requests: 200, failing: .07})
	got, err := r.client.Report(t.Context(), x.run.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Validity.Reasons) != 0 || !got.Validity.Valid {
		t.Errorf("validity %+v, want a valid run", got.Validity)
	}
	if got.Verdict != schemas.VerdictHeld {
		t.Errorf("verdict %s, want held; thresholds %+v", got.Verdict, got.Thresholds)
	}
	total := uint64(len(x.requests))
	want := report.Accounting{Issued: total, Requests: total, Recorded: total + 2*12, Stored: total + 2*12, Settled: true}
	if got.Accounting != want {
		t.Errorf("accounting %+v, want %+v", got.Accounting, want)
	}
	if got.Run.ScheduleHash != x.run.ScheduleHash || got.Run.Seed != x.run.Seed || got.Versions.ClickHouse == "" || got.Machine.CPUs == 0 {
		t.Errorf("head %+v %+v %+v", got.Run, got.Versions, got.Machine)
	}
	if len(got.Cells) != 4 {
		t.Fatalf("%d cells, want 4", len(got.Cells))
	}
	for i := range got.Cells {
		c := &got.Cells[i]
		var corrected, service, first, wait []uint64
		var payload, failed uint64
		statuses := map[string]uint64{}
		ends := map[uint32]time.Duration{}
		for _, q := range x.requests {
			if q.cell != i {
				continue
			}
			statuses[q.status]++
			wait = append(wait, uint64(q.wait))
			ends[q.trial] = max(ends[q.trial], q.at+q.wait+q.duration)
			if q.status != schemas.StatusOK {
				failed++
				continue
			}
			payload += q.bytes
			corrected = append(corrected, uint64(q.wait+q.duration))
			service = append(service, uint64(q.duration))
			first = append(first, uint64(q.firstByte))
		}
		var elapsed time.Duration
		for _, d := range ends {
			elapsed += d
		}
		quantiles := func(v []uint64) report.Quantiles {
			return report.Quantiles{P50: quantile(v, .5), P90: quantile(v, .9), P99: quantile(v, .99), P999: quantile(v, .999), Max: quantile(v, 1)}
		}
		for _, q := range []struct {
			name      string
			got, want report.Quantiles
		}{
			{"corrected", *c.Corrected, quantiles(corrected)},
			{"service", *c.Service, quantiles(service)},
			{"first byte", *c.FirstByte, quantiles(first)},
			{"wait", *c.Wait, quantiles(wait)},
		} {
			if q.got != q.want {
				t.Errorf("cell %d: %s %+v, want %+v", i, q.name, q.got, q.want)
			}
		}
		if c.Requests != uint64(len(wait)) || c.OK != uint64(len(service)) || c.Errors != failed || c.Bytes != payload || c.Elapsed != int64(elapsed) {
			t.Errorf("cell %d: %d requests, %d ok, %d errors, %d bytes, %d ns; want %d, %d, %d, %d, %d",
				i, c.Requests, c.OK, c.Errors, c.Bytes, c.Elapsed, len(wait), len(service), failed, payload, elapsed)
		}
		if fmt.Sprint(c.Statuses) != fmt.Sprint(statuses) {
			t.Errorf("cell %d: statuses %v, want %v", i, c.Statuses, statuses)
		}
		near := func(name string, got, want float64) {
			if math.Abs(got-want) > 1e-9*want {
				t.Errorf("cell %d: %s %g, want %g", i, name, got, want)
			}
		}
		near("bytes_per_s", c.BytesPerS, float64(payload)/elapsed.Seconds())
		near("requests_per_s", c.RequestsPer, float64(len(service))/elapsed.Seconds())
		near("error_rate", c.ErrorRate, float64(failed)/float64(len(wait)))
		var lag report.Lag
		for key, s := range x.states {
			var trial uint32
			parts := strings.Split(key, ".")
			_, _ = fmt.Sscan(parts[2], &trial)
			if x.plan.Trials[trial].Cell == i {
				lag = report.Lag{P50: max(lag.P50, uint64(s.Result.LagP50)), P99: max(lag.P99, uint64(s.Result.LagP99)), Max: max(lag.Max, uint64(s.Result.LagMax))}
			}
		}
		if *c.DispatchLag != lag {
			t.Errorf("cell %d: lag %+v, want %+v", i, *c.DispatchLag, lag)
		}
		if c.Clients != 5 || c.Trials != 3 || c.Planned != 3 {
			t.Errorf("cell %d: %d clients, %d of %d trials; want 5, 3 of 3", i, c.Clients, c.Trials, c.Planned)
		}
	}
	// service_p99 and bytes_per_s on 4 cells, error_rate where size is 1 MB.
	if len(got.Thresholds) != 10 {
		t.Errorf("%d thresholds, want 10: %+v", len(got.Thresholds), got.Thresholds)
	}
	for _, name := range []string{"json", "csv", "table"} {
		var b bytes.Buffer
		if err := r.client.WriteReport(t.Context(), "latest", name, &b); err != nil {
			t.Fatal(err)
		}
		checkRendered(t, name, b.Bytes(), got)
	}
}

func checkRendered(t *testing.T, format string, data []byte, want *report.Report) {
	t.Helper()
	switch format {
	case "json":
		var doc struct {
			Cells []struct {
				Corrected map[string]uint64 `json:"corrected"`
				Elapsed   int64             `json:"elapsed_ns"`
			} `json:"cells"`
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		if len(doc.Cells) != 4 || doc.Cells[0].Corrected["p99_ns"] != want.Cells[0].Corrected.P99 || doc.Cells[0].Elapsed == 0 {
			t.Errorf("JSON: %+v", doc)
		}
	case "csv":
		rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
		if err != nil || len(rows) != 5 {
			t.Fatalf("CSV: %v, %d rows, want a header and 4", err, len(rows))
		}
		for i, name := range rows[0] {
			if name == "corrected_p999_ns" && rows[1][i] != fmt.Sprint(want.Cells[0].Corrected.P999) {
				t.Errorf("CSV: %s %s, want %d", name, rows[1][i], want.Cells[0].Corrected.P999)
			}
		}
	case "table":
		t.Logf("\n%s", data)
		for _, s := range []string{want.Run.ID.String(), want.Run.ScheduleHash, "held", "p99.9", "size=1MB wait=2s", "oregon-1"} {
			if !strings.Contains(string(data), s) {
				t.Errorf("the table lacks %q", s)
			}
		}
	}
}

// Each kind of unhealthy run is INVALID with its reason.
func TestReportInvalid(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Settle = 0 })
	first := func(x *made) (string, schemas.TaskState) {
		key := fmt.Sprintf("task.%s.0.1.oregon-1", x.run.ID)
		return key, x.states[key]
	}
	agent := func(x *made) string { _, s := first(x); return s.Result.Producer }
	for _, c := range []struct {
		name, reason, text string
		edit               func(*made)
	}{
		{"lost", report.ReasonLost, "3 of ", func(x *made) {
			// The last three events never came: two requests and the closing statement.
			p := agent(x)
			x.events[p] = x.events[p][:len(x.events[p])-3]
		}},
		{"unaccounted", report.ReasonUnaccounted, "issued", func(x *made) {
			key, s := first(x)
			s.Result.Issued++
			x.states[key] = s
		}},
		{"dispatch lag", report.ReasonDispatchLag, "26ms", func(x *made) {
			key, s := first(x)
			s.Result.LagP99 = 26 * time.Millisecond
			x.states[key] = s
		}},
		{"clock", report.ReasonClock, "150ms", func(x *made) {
			key, s := first(x)
			s.Clock.Bound = 150 * time.Millisecond
			x.states[key] = s
		}},
		{"capture off", report.ReasonCapture, "capture was off", func(x *made) {
			p := agent(x)
			for key, s := range x.states {
				if s.Agent == "oregon-1" {
					s.Result.Acknowledged = 0
					x.states[key] = s
				}
			}
			delete(x.events, p)
		}},
		{"trial missing", report.ReasonTrials, "1 of 12 trials are missing (11), the run is cancelled", func(x *made) {
			for p, events := range x.events {
				if strings.HasPrefix(p, "scheduler/") {
					x.events[p] = events[:11]
				}
			}
			x.run.State, x.run.TrialsDone = schemas.RunCancelled, 11
		}},
		{"failed", report.ReasonTrials, "the run is failed: no agents", func(x *made) {
			x.run.State, x.run.Error = schemas.RunFailed, "no agents"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := r.make(making{file: madeFile, requests: 5, edit: c.edit})
			got, err := r.client.Report(t.Context(), x.run.ID.String())
			if err != nil {
				t.Fatal(err)
			}
			if got.Verdict != schemas.VerdictInvalid || len(got.Validity.Reasons) == 0 {
				t.Fatalf("verdict %s %+v, want invalid", got.Verdict, got.Validity)
			}
			found := false
			for _, reason := range got.Validity.Reasons {
				found = found || reason.Code == c.reason && strings.Contains(reason.Text, c.text)
			}
			if !found {
				t.Errorf("reasons %+v, want %s with %q", got.Validity.Reasons, c.reason, c.text)
			}
		})
	}
	t.Run("duplicated", func(t *testing.T) {
		x := r.make(making{file: madeFile, requests: 5})
		p := agent(x)
		block := schemas.NewBlock(p)
		block.Append(&x.events[p][0], 1)
		r.store("again", must(block.Encode()))
		got, err := r.client.Report(t.Context(), x.run.ID.String())
		if err != nil {
			t.Fatal(err)
		}
		if got.Accounting.Duplicated != 1 || got.Verdict != schemas.VerdictInvalid {
			t.Errorf("verdict %s, %+v, want invalid for 1 duplicate", got.Verdict, got.Accounting)
		}
	})
}

// A run without task states on the bus is judged by what the events say.
func TestReportWithoutTaskStates(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: madeFile, requests: 10, edit: func(x *made) { clear(x.states) }})
	got, err := r.client.Report(t.Context(), x.run.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if got.Verdict != schemas.VerdictHeld || got.Accounting.Issued != uint64(len(x.requests)) || got.Cells[0].DispatchLag.P99 == 0 {
		t.Errorf("verdict %s %+v, accounting %+v", got.Verdict, got.Validity, got.Accounting)
	}
}

// A report on a run that has just ended waits for events on their way.
func TestReportWaitsForEvents(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Settle = 30 * time.Second })
	var late []schemas.Event
	var producer string
	x := r.make(making{file: madeFile, requests: 10, edit: func(x *made) {
		producer = x.states[fmt.Sprintf("task.%s.0.1.oregon-1", x.run.ID)].Result.Producer
		late = x.events[producer]
		x.events[producer] = nil
	}})
	done := make(chan *report.Report, 1)
	go func() {
		got, err := r.client.Report(t.Context(), x.run.ID.String())
		if err != nil {
			t.Error(err)
		}
		done <- got
	}()
	block := schemas.NewBlock(producer)
	for i := range late {
		block.Append(&late[i], uint64(i+1))
	}
	r.store(producer, must(block.Encode()))
	got := <-done
	if got.Verdict != schemas.VerdictHeld || !got.Accounting.Settled || got.Accounting.Lost != 0 {
		t.Errorf("verdict %s %+v, accounting %+v", got.Verdict, got.Validity, got.Accounting)
	}
}

// Only the last attempt of a trial counts.
func TestReportLastAttempt(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: madeFile, requests: 10, edit: func(x *made) {
		// An attempt 0 before the others became attempt 1 of trial 0 and the
		// counting one attempt 2.
		for p, events := range x.events {
			for i := range events {
				if events[i].Trial == 0 {
					events[i].Attempt = 2
				}
			}
			x.events[p] = events
		}
		for key, s := range x.states {
			if strings.HasPrefix(key, fmt.Sprintf("task.%s.0.", x.run.ID)) {
				delete(x.states, key)
				x.states[strings.Replace(key, ".0.1.", ".0.2.", 1)] = s
			}
		}
		abandoned := x.events[x.states[fmt.Sprintf("task.%s.1.1.oregon-1", x.run.ID)].Result.Producer][0]
		abandoned.Trial, abandoned.Attempt, abandoned.Duration = 0, 1, time.Hour
		x.events["abandoned/1"] = []schemas.Event{abandoned}
	}})
	got, err := r.client.Report(t.Context(), x.run.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if got.Verdict != schemas.VerdictHeld || got.Run.Retried != 1 {
		t.Errorf("verdict %s %+v, %d attempts repeated, want held and 1", got.Verdict, got.Validity, got.Run.Retried)
	}
	for i := range got.Cells {
		if got.Cells[i].Requests != 60 || got.Cells[i].Corrected.Max > uint64(time.Minute) {
			t.Errorf("cell %d: %d requests, max %d", i, got.Cells[i].Requests, got.Cells[i].Corrected.Max)
		}
	}
}

// A run that goes on has figures and no verdict.
func TestReportRunning(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: madeFile, requests: 10, edit: func(x *made) {
		x.run.State, x.run.TrialsDone, x.run.Finished = schemas.RunRunning, 5, time.Time{}
		for p, events := range x.events {
			kept := events[:0]
			for _, e := range events {
				if e.Trial < 5 {
					kept = append(kept, e)
				}
			}
			x.events[p] = kept
		}
		for key := range x.states {
			var trial int
			if _, _ = fmt.Sscan(strings.Split(key, ".")[2], &trial); trial >= 5 {
				delete(x.states, key)
			}
		}
	}})
	got, err := r.client.Report(t.Context(), x.run.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if got.Verdict != report.VerdictRunning || !got.Validity.Valid || got.Accounting.Requests != 5*20 {
		t.Errorf("verdict %s %+v, %+v, want none yet and 100 requests", got.Verdict, got.Validity, got.Accounting)
	}
}

func TestReportThresholds(t *testing.T) {
	r := newRig(t, nil)
	file := strings.Replace(madeFile, "max: 10s", "max: 2ms", 1) + ""
	file = strings.Replace(file, "where: {size: 1000kB}", "where: {size: 7kB}", 1)
	x := r.make(making{file: file, requests: 20})
	got, err := r.client.Report(t.Context(), x.run.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if got.Verdict != schemas.VerdictMissed {
		t.Errorf("verdict %s, want missed", got.Verdict)
	}
	missed, unmatched := 0, 0
	for _, h := range got.Thresholds {
		if h.Metric == "service_p99" && !h.Held && *h.Observed > 2e6 && *h.Max == 2e6 && h.Unit == "ns" {
			missed++
		}
		if h.Cell == nil && strings.Contains(h.Text, "no cell") {
			unmatched++
		}
	}
	if missed != 4 || unmatched != 1 {
		t.Errorf("%d missed, %d without a cell; want 4, 1: %+v", missed, unmatched, got.Thresholds)
	}
}

func TestReportRefusals(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		path   string
		status int
	}{
		{"/v1/runs/latest/report", 404},
		{"/v1/runs/" + uuid.NewString() + "/report", 404},
		{"/v1/runs/xyz/report", 422},
		{"/v1/runs/latest/report?format=pdf", 422},
		{"/v1/runs/latest/report?forma=json", 422},
		{"/v1/compare?a=latest", 422},
		{"/v1/compare?a=latest&b=latest", 404},
		{"/v1/compare?a=latest&b=latest&alpha=2", 422},
	} {
		if resp := r.request("GET", c.path, ""); resp.StatusCode != c.status || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("GET %s: %s %s, want %d and a problem", c.path, resp.Status, resp.Header.Get("Content-Type"), c.status)
		}
	}
}

func TestCompare(t *testing.T) {
	r := newRig(t, nil)
	many := strings.Replace(madeFile, "repeat: 3", "repeat: 8", 1)
	base := r.make(making{file: many, requests: 60, seed: 1})
	slower := r.make(making{file: many, requests: 60, seed: 2, slower: 2})
	same := r.make(making{file: many, requests: 60, seed: 3})
	few := r.make(making{file: madeFile, requests: 60, seed: 4, slower: 2})

	compare := func(a, b *made) *report.Comparison {
		t.Helper()
		c, err := r.client.Compare(t.Context(), a.run.ID.String(), b.run.ID.String(), client.CompareOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Results) != 16 {
			t.Fatalf("%d results, want 4 metrics of 4 cells", len(c.Results))
		}
		return c
	}
	for _, d := range compare(base, slower).Results {
		if d.Metric == "throughput" {
			continue
		}
		if d.Verdict != report.Worse || d.Over != "trials" || d.NA != 8 || d.NB != 8 || *d.Ratio < 1.5 {
			t.Errorf("twice as slow: %s of %s: %+v", d.Metric, d.Name(), d)
		}
		// The medians of the trials' medians, computed here.
		var medians []float64
		for i := range base.plan.Trials {
			var values []float64
			for _, q := range base.requests {
				if q.trial != uint32(i) || base.plan.Trials[i].Values[0].Value != d.Values[0].Value || base.plan.Trials[i].Values[1].Value != d.Values[1].Value {
					continue
				}
				v := map[string]time.Duration{"corrected": q.wait + q.duration, "service": q.duration, "first_byte": q.firstByte}[d.Metric]
				values = append(values, float64(v))
			}
			if len(values) > 0 {
				medians = append(medians, quantile(values, .5))
			}
		}
		slices.Sort(medians)
		if want := (medians[3] + medians[4]) / 2; d.MedianA != want {
			t.Errorf("%s of %s: median %g, want %g", d.Metric, d.Name(), d.MedianA, want)
		}
	}
	for _, d := range compare(slower, base).Results {
		if d.Metric != "throughput" && d.Verdict != report.Better {
			t.Errorf("twice as fast: %s of %s is %s", d.Metric, d.Name(), d.Verdict)
		}
	}
	for _, d := range compare(base, same).Results {
		if d.Verdict == report.Better || d.Verdict == report.Worse {
			t.Errorf("the same: %s of %s is %s: %+v", d.Metric, d.Name(), d.Verdict, d)
		}
	}
	c := compare(base, few)
	for _, d := range c.Results {
		switch {
		case d.Metric == "throughput" && (d.Verdict != report.Underpowered || d.Over != "trials"):
			t.Errorf("3 trials: throughput is %s over %s", d.Verdict, d.Over)
		case d.Metric != "throughput" && (d.Over != "requests" || d.NB != 3*2*60 || d.Caveat == "" || d.Verdict != report.Worse):
			t.Errorf("3 trials: %s of %s: %+v, want worse over requests, with its caveat", d.Metric, d.Name(), d)
		}
	}
	if len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "different schedules") {
		t.Errorf("notes %q", c.Notes)
	}
	again := compare(base, few)
	again.Generated = c.Generated
	if fmt.Sprintf("%+v", derefs(c)) != fmt.Sprintf("%+v", derefs(again)) {
		t.Error("the same comparison gave another answer")
	}
	for _, format := range []string{"csv", "table"} {
		resp := r.request("GET", fmt.Sprintf("/v1/compare?a=%s&b=%s&format=%s", base.run.ID, slower.run.ID, format), "")
		body := string(must(io.ReadAll(resp.Body)))
		if resp.StatusCode != 200 || !strings.Contains(body, "worse") || strings.Count(body, "\n") < 17 {
			t.Errorf("%s: %s\n%s", format, resp.Status, body)
		}
		if format == "table" {
			t.Logf("\n%s", body)
		}
	}
	for path, status := range map[string]int{
		fmt.Sprintf("a=%s&b=%s", base.run.ID, base.run.ID): 422,
	} {
		if resp := r.request("GET", "/v1/compare?"+path, ""); resp.StatusCode != status {
			t.Errorf("compare?%s: %s, want %d", path, resp.Status, status)
		}
	}
	running := r.make(making{file: madeFile, requests: 1, edit: func(x *made) { x.run.State = schemas.RunRunning }})
	if resp := r.request("GET", fmt.Sprintf("/v1/compare?a=%s&b=%s", base.run.ID, running.run.ID), ""); resp.StatusCode != 409 {
		t.Errorf("a run that goes on: %s, want 409", resp.Status)
	}
}

// derefs is a comparison's results without pointers, for printing.
func derefs(c *report.Comparison) string { return string(must(json.Marshal(c.Results))) }
