package gateway

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/report"
)

const offloadFile = `name: clips
workload: offload
groups: [{site: pi}]
matrix: {policy: [source, cloud]}
trials: {order: listed}
thresholds:
  - {metric: end_to_end_p95, max: 1500ms}
  - {metric: overhead_p50, max: 200ms, where: {policy: source}}
  - {metric: error_rate, max: "0"}
  - {metric: unaccounted, max: "1%"}
  - {metric: differing, max: "0"}
  - {metric: recall, min: "60%", where: {policy: source}}
offload: {clips: 4}
`

// makeClips fills a made run with clips whose every number is known, in ms: each
// is recorded 100 after its trigger, and 1, 2, 3 … times its number later stored.
func makeClips(x *made) {
	clear(x.events)
	clear(x.states)
	const agent = "pi-1"
	producer := agent + "/" + x.run.ID.String()[24:]
	for i := range x.plan.Trials {
		trial := &x.plan.Trials[i]
		event := func(kind string, duration time.Duration, attrs []schemas.Attr) schemas.Event {
			return schemas.Event{
				Intended: x.started[trial.Index].Add(time.Second), Run: x.run.ID, Trial: trial.Index, Attempt: 1, Workload: "offload", Service: "edge-runner",
				Site: "pi", Agent: agent, Kind: kind, Duration: duration, Bytes: 1000, Status: schemas.StatusOK, Attrs: attrs,
			}
		}
		var events []schemas.Event
		for n := 1; n <= 4; n++ {
			ms := func(v int) int64 { return int64(v) * 1e6 }
			list := attrs("clip", fmt.Sprintf("%d-%d", trial.Index, n), "client", 0, "group", "pi", "sha256", []string{"x", "y"}[n%2], "hash", "h",
				"policy", "source", "recorded_ns", ms(100), "spooled_ns", ms(110), "decided_ns", ms(120), "tp", 3, "fp", 1, "fn", 1)
			stored := 120 + 100*n + 300
			if n%2 == 1 {
				list = append(list, attrs("decision", "edge", "seen_by", "edge", "taken_ns", ms(120+100*n), "fetched_ns", ms(120+100*n), "decoded_ns", ms(320+100*n),
					"inferred_ns", ms(410+100*n), "stored_ns", ms(stored), "uploaded_ns", ms(stored+500), "confirmed_ns", ms(stored+600),
					"predicted_edge_ns", ms(100*n+300), "predicted_cloud_ns", ms(9000))...)
			} else {
				list = append(list, attrs("decision", "cloud", "seen_by", "cloud", "uploaded_ns", ms(120+100*n), "queued_ns", ms(121+100*n), "taken_ns", ms(122+100*n),
					"fetched_ns", ms(132+100*n), "decoded_ns", ms(332+100*n), "inferred_ns", ms(400+100*n), "stored_ns", ms(stored),
					"acknowledged_ns", ms(stored+1), "confirmed_ns", ms(stored+600))...)
			}
			e := event(schemas.KindClip, time.Duration(ms(stored+600)), list)
			if trial.Cell == 1 && n == 4 {
				e.Status, e.Attrs = schemas.StatusLost, attrs("clip", "gone", "policy", "cloud", "sha256", "x")
			}
			if trial.Cell == 1 && n == 3 {
				// Another look at the same bytes, and a clock that was set by 100 ms.
				for i := range e.Attrs {
					switch e.Attrs[i].Key {
					case "hash":
						e.Attrs[i].Value = "other"
					case "confirmed_ns":
						e.Attrs[i].Value = fmt.Sprint(ms(stored + 700))
					}
				}
			}
			events = append(events, e)
		}
		events = append(events, event(schemas.KindTask, time.Second, nil))
		x.events[producer] = append(x.events[producer], events...)
		x.states[fmt.Sprintf("task.%s.%d.1.%s", x.run.ID, trial.Index, agent)] = schemas.TaskState{Agent: agent, Phase: schemas.TaskDone, Result: schemas.TaskResult{
			Issued: 4, Recorded: uint64(len(events)), Acknowledged: uint64(len(events)), Producer: producer, LagP99: time.Millisecond,
		}}
		closing := event(schemas.KindTrial, time.Second, attrs("cell", trial.Cell))
		closing.Service, closing.Agent = "scheduler", ""
		x.events["scheduler/x"] = append(x.events["scheduler/x"], closing)
	}
}

// Every figure of clips against what was computed by hand from makeClips.
func TestOffloadReportFigures(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: offloadFile, edit: makeClips})
	got, err := r.client.Report(t.Context(), x.run.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	// ClickHouse compiles what it has executed a few times, which must go well too.
	for range 8 {
		if _, err := r.client.Report(t.Context(), x.run.ID.String()); err != nil {
			t.Fatal(err)
		}
	}
	if !got.Validity.Valid || got.Accounting.Issued != 8 || len(got.Offload) != 2 {
		t.Fatalf("validity %+v, accounting %+v, cells %+v", got.Validity, got.Accounting, got.Offload)
	}
	span := func(s *report.Span) string { return fmt.Sprintf("%d %d %d", s.P50/1e6, s.P95/1e6, s.Max/1e6) }
	share := func(v *float64) string {
		if v == nil {
			return "none"
		}
		return fmt.Sprintf("%.4f", *v)
	}
	for i, want := range []string{
		// Stored at 520, 620, 720, 820; without decoding and inference of 290 or 268
		// and the recording's 100: 130, 252, 330, 452.
		"4/4 mean 670; end 720 820 820; overhead 330 452 452; detect 290 290 290; edge 0.5000; unaccounted 0.0000; precision 0.7500; recall 0.7500; differing 0.0000; misjudged 0.0000",
		// One lost; the third's sum is 100 of its 1320 off, and its bytes' other look (the first) differs.
		"3/4 mean 620; end 620 720 720; overhead 252 330 330; detect 290 290 290; edge 0.6667; unaccounted 0.0758; precision 0.7500; recall 0.7500; differing 0.5000; misjudged 0.0000",
	} {
		c := &got.Offload[i]
		have := fmt.Sprintf("%d/%d mean %.0f; end %s; overhead %s; detect %s; edge %s; unaccounted %s; precision %s; recall %s; differing %s; misjudged %s", c.OK, c.Clips,
			*c.Mean/1e6, span(c.EndToEnd), span(c.Overhead), span(c.Detect), share(c.LocalShare), share(c.Unaccounted), share(c.Precision), share(c.Recall), share(c.Differing), share(c.Misjudged))
		if have != want {
			t.Errorf("cell %d:\n%s, want\n%s", i, have, want)
		}
	}
	stages := map[string]string{}
	for _, s := range got.Offload[0].Stages {
		stages[s.Stage] = fmt.Sprintf("%d: %.0f %d", s.Clips, s.Mean/1e6, s.P95/1e6)
	}
	// Uploading: 500 and 500 of those seen at the edge, 200 and 400 of the others.
	if want := map[string]string{
		"recorded": "4: 100 100", "spooled": "4: 10 10", "decided": "4: 10 10", "uploaded": "4: 400 500", "queued": "2: 1 1", "taken": "4: 100 300",
		"fetched": "4: 5 10", "decoded": "4: 200 200", "inferred": "4: 79 90", "stored": "4: 15 20", "acknowledged": "2: 1 1", "confirmed": "4: 350 599",
	}; !maps.Equal(stages, want) {
		t.Errorf("stages %v, want %v", stages, want)
	}
	held := []string{}
	for _, h := range got.Thresholds {
		held = append(held, fmt.Sprintf("%s %d %v", h.Metric, *h.Cell, h.Held))
	}
	if want := []string{
		"end_to_end_p95 0 true", "end_to_end_p95 1 true", "overhead_p50 0 false", "error_rate 0 true", "error_rate 1 false", "unaccounted 0 true",
		"unaccounted 1 false", "differing 0 true", "differing 1 false", "recall 0 true",
	}; !slices.Equal(held, want) {
		t.Errorf("thresholds %v, want %v", held, want)
	}
	for _, format := range []string{"table", "csv"} {
		var text bytes.Buffer
		if err := got.Write(&text, format); err != nil {
			t.Fatal(err)
		}
		for _, part := range map[string][]string{
			"table": {"policy=cloud", "3/4", "without a detection, policy=cloud: lost=1", "6m55s", "acknowledged"},
			"csv":   {"end_to_end_p95_ns", "acknowledged_mean_ns", "0.75"},
		}[format] {
			if !strings.Contains(text.String(), part) {
				t.Errorf("%s lacks %q:\n%s", format, part, text.String())
			}
		}
	}
	var rows bytes.Buffer
	if err := r.client.Export(t.Context(), x.run.ID.String(), client.ExportOptions{}, &rows); err != nil || !strings.Contains(rows.String(), `"end_to_end_ns"`) {
		t.Errorf("an export without a view is not of clips: %v\n%.300s", err, rows.String())
	}
}
