package gateway

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/report"
)

const swarmFile = `name: swarms
workload: swarm
groups: [{site: oregon, clients: 3}]
matrix: {size: [10kB, 100kB]}
trials: {repeat: 3, order: listed, repeats: [{where: {size: 100kB}, count: 2}]}
thresholds:
  - {metric: transfer_p50, max: 30ms, where: {size: 10kB}}
  - {metric: first_piece_p99, max: 44ms, where: {size: 10000B}}
  - {metric: error_rate, max: "0"}
  - {metric: ratio, max: "1.1"}
  - {metric: spread, max: "1.5"}
  - {metric: copy_efficiency, min: "25%", where: {size: 10kB}}
  - {metric: bound_efficiency, min: "50%", where: {size: 10kB}}
  - {metric: unattributed, max: "1%"}
swarm: {size: 1MB}
`

// madeSwarm is one synthetic trial: times in ms, in the order of the leechers.
type madeSwarm struct {
	size      int
	ms        []int
	received  []int
	killed    int // leecher, -1: none
	bound     time.Duration
	copied    time.Duration // 0: the copy failed
	exclusive bool
	// unattributed bytes of the interface.
	unattributed int
}

func madeSwarms() [][]madeSwarm {
	return [][]madeSwarm{
		{
			{10_000, []int{10, 20, 30}, []int{11_000, 11_000, 11_000}, -1, 6 * time.Millisecond, 5 * time.Millisecond, true, 10},
			{10_000, []int{20, 40, 60}, []int{10_000, 11_000, 12_000}, -1, 6 * time.Millisecond, 4 * time.Millisecond, true, -200},
			{10_000, []int{30, 30, 90}, []int{12_000, 12_000, 12_000}, -1, 6 * time.Millisecond, 0, true, 0},
		},
		{
			{100_000, []int{100, 200, 300}, []int{100_500, 100_500, 100_500}, -1, 0, 0, false, 7},
			{100_000, []int{100, 250, 400}, []int{100_500, 50_000, 101_500}, 1, 50 * time.Millisecond, 0, true, 70_000},
		},
	}
}

func attrs(pairs ...any) []schemas.Attr {
	var all []schemas.Attr
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, schemas.Attr{Key: fmt.Sprint(pairs[i]), Value: fmt.Sprint(pairs[i+1])})
	}
	return all
}

// makeSwarms fills a made run with swarms whose every number is known. The first
// trial was given up once and tried again.
func makeSwarms(x *made, cells [][]madeSwarm) {
	clear(x.events)
	clear(x.states)
	const agent = "oregon-1"
	producer := agent + "/" + x.run.ID.String()[24:]
	for i := range x.plan.Trials {
		trial := &x.plan.Trials[i]
		m := cells[trial.Cell][trial.Repeat]
		start := x.started[trial.Index]
		attempt := uint16(1)
		if trial.Index == 0 {
			attempt = 2
		}
		event := func(kind string, duration time.Duration, bytes int, attrs []schemas.Attr) schemas.Event {
			return schemas.Event{
				Intended: start.Add(time.Second), Run: x.run.ID, Trial: trial.Index, Attempt: attempt, Workload: "swarm", Service: "swarm-runner",
				Site: "oregon", Agent: agent, Kind: kind, Duration: duration, Bytes: uint64(bytes), Status: schemas.StatusOK, Attrs: attrs,
			}
		}
		var events []schemas.Event
		for leecher, ms := range m.ms {
			d := time.Duration(ms) * time.Millisecond
			list := attrs("client", leecher, "leecher", leecher, "leechers", len(m.ms), "group", "oregon", "file", "A_"+schemas.Size(m.size).String(), "size", m.size,
				"received", m.received[leecher], "sent", 500, "announce_ns", 1_000_000, "handshake_ns", 2_000_000, "unchoke_ns", 3_000_000,
				"first_piece_ns", int64(d/2), "last_block_ns", int64(d-1000), "complete_ns", int64(d), "verified_ns", int64(d+time.Millisecond))
			for k := 1; k < 10; k++ {
				list = append(list, attrs(fmt.Sprintf("d%d0_ns", k), int64(d)*int64(k)/10)...)
			}
			if leecher > 0 {
				list = append(list, attrs("seed_out_ns", 700_000_000)...)
			}
			if m.bound > 0 {
				list = append(list, attrs("bound_ns", int64(m.bound))...)
			}
			e := event(schemas.KindTransfer, d, m.size, list)
			e.Wait, e.FirstByte = time.Microsecond, d/4
			if leecher == m.killed {
				e.Status = schemas.StatusKilled
			}
			events = append(events, e)
		}
		issued := len(events)
		for _, w := range []struct {
			peer, role, direction, class string
			bytes, messages              int
		}{
			{"leecher 0", "leecher", "sent", "payload", 5000, 5},
			{"leecher 0", "leecher", "sent", "have", 90, 10},
			{"leecher 0", "leecher", "sent", "tracker", 200, 1},
			{"leecher 0", "leecher", "received", "payload", 25_000, 2},
			{"seeder 0", "seeder", "sent", "payload", 25_000, 25},
			{"seeder 0", "seeder", "sent", "piece_header", 39, 3},
			{"seeder 0", "seeder", "received", "have", 90, 10},
			{"tracker", "tracker", "sent", "tracker", 300, 1},
		} {
			events = append(events, event(schemas.KindWire, 0, w.bytes, attrs("peer", w.peer, "role", w.role, "direction", w.direction, "class", w.class, "messages", w.messages)))
		}
		const sockets, headers, again = 30_629, 2000, 100
		events = append(events, event(schemas.KindInterface, 0, sockets+headers+again+m.unattributed, attrs("network", "private", "exclusive", m.exclusive,
			"sockets_sent", sockets, "headers", headers, "sent_again", again, "tx_packets", 38, "unattributed", m.unattributed)))
		duplicate := event(schemas.KindCopy, m.copied, m.size, attrs("from", agent, "to", agent))
		if m.copied == 0 {
			duplicate.Status, duplicate.Duration = schemas.StatusRefused, time.Nanosecond
		}
		events = append(events, duplicate, event(schemas.KindTask, time.Second, 0, nil))
		x.events[producer] = append(x.events[producer], events...)
		x.states[fmt.Sprintf("task.%s.%d.%d.%s", x.run.ID, trial.Index, attempt, agent)] = schemas.TaskState{Agent: agent, Phase: schemas.TaskDone, Result: schemas.TaskResult{
			Issued: uint64(issued), Recorded: uint64(len(events)), Acknowledged: uint64(len(events)), Producer: producer, LagP99: time.Millisecond,
		}}
		closing := event(schemas.KindTrial, time.Second, 0, attrs("cell", trial.Cell))
		closing.Service, closing.Agent = "scheduler", ""
		x.events["scheduler/x"] = append(x.events["scheduler/x"], closing)
		if attempt > 1 {
			given := events[0]
			given.Attempt, given.Duration = 1, time.Hour
			x.events["abandoned/1"] = []schemas.Event{given}
		}
	}
}

// figures of a report by name, as text of seven digits.
func figures(c *report.SwarmCell) map[string]string {
	all := map[string]string{
		"trials": fmt.Sprint(c.Trials), "leechers": fmt.Sprint(c.Leechers), "ok": fmt.Sprintf("%d/%d", c.OK, c.Transfers), "statuses": fmt.Sprint(c.Statuses),
		"transfer": fmt.Sprint(*c.Transfer), "min": fmt.Sprint(*c.Least),
	}
	for name, v := range map[string]*float64{
		"mean": c.Mean, "sd": c.SD, "throughput": c.Throughput, "throughput sd": c.ThroughputSD, "ratio": c.Ratio, "ratio sd": c.RatioSD, "spread": c.Spread,
		"of bound": c.BoundEfficiency, "of copy": c.CopyEfficiency, "unattributed": c.Unattributed,
		"payload": c.PayloadShare, "headers": c.HeadersShare, "other": c.OtherShare,
	} {
		all[name] = "none"
		if v != nil {
			all[name] = fmt.Sprintf("%.7g", *v)
		}
	}
	for name, v := range map[string]*uint64{"bound": c.Bound, "copy": c.Copy} {
		all[name] = "none"
		if v != nil {
			all[name] = fmt.Sprint(*v)
		}
	}
	for _, p := range c.Phases {
		all[p.Phase] = fmt.Sprintf("%d of %d: %d %d", p.P50, p.Transfers, p.P99, p.Max)
	}
	for _, w := range c.Wire {
		all["wire "+w.Class] = fmt.Sprintf("%d in %d, %.6f: %d %d %d in %d %d %d", w.Bytes, w.Messages, w.Share,
			w.LeecherBytes, w.SeederBytes, w.TrackerBytes, w.LeecherMessages, w.SeederMessages, w.TrackerMessages)
	}
	return all
}

// Every figure of swarms against what was computed by hand from madeSwarms.
func TestSwarmReportFigures(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: swarmFile, edit: func(x *made) { makeSwarms(x, madeSwarms()) }})
	got, err := r.client.Report(t.Context(), x.run.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if !got.Validity.Valid || got.Accounting.Issued != 15 || got.Accounting.Requests != 15 || got.Accounting.Lost != 0 || got.Run.Retried != 1 {
		t.Errorf("validity %+v, accounting %+v, %d attempts repeated", got.Validity, got.Accounting, got.Run.Retried)
	}
	if len(got.Swarm) != 2 || len(got.Cells) != 2 || got.Cells[1].Errors != 1 || got.Cells[0].DispatchLag.P99 != 1e6 {
		t.Fatalf("cells %+v, swarms %+v", got.Cells, got.Swarm)
	}
	// 10, 20, 20, 30, 30, 30, 40, 60 and 90 ms; rates of 24,000, 12,000 … kbit/s.
	// By trial: ratios 1.1, 1.1, 1.2; p99/p50 30/20, 60/40, 90/30; bound 6 ms of 30, 60, 90; copies of 5 and 4 ms against 20 and 40.
	// Sent in all 97,997 bytes: three times 30,629 and 2,100 below the sockets, less 190 that were accounted for too much.
	of := func(bytes int) string { return fmt.Sprintf("%.6f", float64(bytes)/97_997) }
	want := []map[string]string{{
		"trials": "3", "leechers": "3", "ok": "9/9", "statuses": "map[ok:9]",
		"transfer": "{30000000 90000000 90000000 90000000 90000000}", "min": "10000000", "mean": "3.666667e+07", "sd": "2.44949e+07",
		"throughput": "9407.407", "throughput sd": "6310.876", "ratio": "1.133333", "ratio sd": "0.05773503", "spread": "1.5",
		"bound": "6000000", "of bound": "0.1", "copy": "5000000", "of copy": "0.25", "unattributed": fmt.Sprintf("%.7g", 200./32_529),
		"payload": "0.9183955", "headers": "0.06122636", "other": "0.02037817",
		"announce": "1000000 of 9: 1000000 1000000", "handshake": "2000000 of 9: 2000000 2000000", "unchoke": "3000000 of 9: 3000000 3000000",
		"first_piece": "15000000 of 9: 45000000 45000000", "d10": "3000000 of 9: 9000000 9000000", "d20": "6000000 of 9: 18000000 18000000",
		"d30": "9000000 of 9: 27000000 27000000", "d40": "12000000 of 9: 36000000 36000000", "d50": "15000000 of 9: 45000000 45000000",
		"d60": "18000000 of 9: 54000000 54000000", "d70": "21000000 of 9: 63000000 63000000", "d80": "24000000 of 9: 72000000 72000000",
		"d90": "27000000 of 9: 81000000 81000000", "last_block": "29999000 of 9: 89999000 89999000", "complete": "30000000 of 9: 90000000 90000000",
		"verified": "31000000 of 9: 91000000 91000000", "seed_out": "700000000 of 6: 700000000 700000000",
		"wire payload":      "90000 in 90, " + of(90_000) + ": 15000 75000 0 in 15 75 0",
		"wire ip_headers":   "6000 in 114, " + of(6000) + ": 0 0 0 in 0 0 0",
		"wire tracker":      "1500 in 6, " + of(1500) + ": 600 0 900 in 3 0 3",
		"wire sent_again":   "300 in 0, " + of(300) + ": 0 0 0 in 0 0 0",
		"wire have":         "270 in 30, " + of(270) + ": 270 0 0 in 30 0 0",
		"wire piece_header": "117 in 9, " + of(117) + ": 0 117 0 in 0 9 0",
		"wire unattributed": "-190 in 0, " + of(-190) + ": 0 0 0 in 0 0 0",
	}, {
		// 100, 100, 200, 300 and 400 ms and one killed, so that nothing is held against the bound. In one trial other programs used the interfaces, so there are no headers.
		"trials": "2", "leechers": "3", "ok": "5/6", "statuses": "map[killed:1 ok:5]",
		"transfer": "{200000000 400000000 400000000 400000000 400000000}", "min": "100000000", "mean": "2.2e+08", "sd": "1.30384e+08",
		"throughput": "14800", "throughput sd": "8671.793", "ratio": "1.0075", "ratio sd": "0.003535534", "spread": "1.5",
		"bound": "50000000", "of bound": "none", "copy": "none", "of copy": "none", "unattributed": fmt.Sprintf("%.7g", 70_000./102_729),
		"payload": fmt.Sprintf("%.7g", 60_000./61_258), "headers": "none", "other": fmt.Sprintf("%.7g", 1258./61_258),
		"first_piece": "100000000 of 5: 200000000 200000000", "seed_out": "700000000 of 3: 700000000 700000000",
	}}
	for i := range want {
		have := figures(&got.Swarm[i])
		for name, text := range want[i] {
			if have[name] != text {
				t.Errorf("cell %d: %s %q, want %q", i, name, have[name], text)
			}
		}
		if i == 0 && len(have) != len(want[0]) {
			t.Errorf("cell 0 has %d figures, want %d: %v", len(have), len(want[0]), have)
		}
	}
	held := map[string]bool{}
	for _, h := range got.Thresholds {
		held[fmt.Sprintf("%s %d", h.Metric, *h.Cell)] = h.Held
	}
	if want := map[string]bool{
		"transfer_p50 0": true, "first_piece_p99 0": false, "error_rate 0": true, "error_rate 1": false, "ratio 0": false, "ratio 1": true, "spread 0": true,
		"spread 1": true, "copy_efficiency 0": true, "bound_efficiency 0": false, "unattributed 0": true, "unattributed 1": false,
	}; fmt.Sprint(held) != fmt.Sprint(want) || got.Verdict != schemas.VerdictMissed {
		t.Errorf("verdict %s, thresholds held %v, want %v", got.Verdict, held, want)
	}
	if len(got.Notes) != 1 || !strings.Contains(got.Notes[0], "size=100kB: in the worst trial 68.14 %") {
		t.Errorf("notes %q, want one on the second cell", got.Notes)
	}
	checkSwarmRendered(t, r)
}

func checkSwarmRendered(t *testing.T, r *rig) {
	t.Helper()
	write := func(format string) []byte {
		var b bytes.Buffer
		if err := r.client.WriteReport(t.Context(), "latest", format, &b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	text := string(write("table"))
	t.Logf("\n%s", text)
	for _, want := range []string{
		"36.7 ± 24.5 ms", "9407", "1.1333", "25.0 %", "10.0 %", "5/6", "size=100kB: killed=1", "first piece", "ip_headers", "90.0 kB  91.84 %", "transfers: 15 issued, 15 stored",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the table lacks %q", want)
		}
	}
	rows, err := csv.NewReader(bytes.NewReader(write("csv"))).ReadAll()
	if err != nil || len(rows) != 3 {
		t.Fatalf("CSV: %v, %d rows, want a header and 2", err, len(rows))
	}
	for name, want := range map[string][2]string{
		"cell.size": {"10kB", "100kB"}, "transfer_p50_ns": {"30000000", "200000000"}, "bound_ns": {"6000000", "50000000"}, "copy_efficiency": {"0.25", ""},
		"d90_p99_ns": {"81000000", "360000000"}, "statuses": {"ok=9", "killed=1 ok=5"}, "spread": {"1.5", "1.5"}, "headers_share": {rows[1][slices.Index(rows[0], "headers_share")], ""},
	} {
		at := slices.Index(rows[0], name)
		if at < 0 || rows[1][at] != want[0] || rows[2][at] != want[1] {
			t.Errorf("CSV: column %s at %d: want %v", name, at, want)
		}
	}
	for _, want := range []string{`"transfer_mean_ns"`, `"leecher_bytes"`, `"phase": "seed_out"`, `"bound_efficiency": null`} {
		if !bytes.Contains(write("json"), []byte(want)) {
			t.Errorf("the JSON lacks %s", want)
		}
	}
}

// The files of the source experiment, to the letter.
func TestSwarmSourceFiles(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: swarmFile, edit: func(x *made) { makeSwarms(x, madeSwarms()) }})
	for file, want := range map[string]string{
		api.SourceResults: `"iteration","file","size_bytes","leecher","transfer_time_s","throughput_kbps","transfer_ratio","status"
1,"A_10kB",10000,0,0.01,24000,1.1,"ok"
1,"A_10kB",10000,1,0.02,12000,1.1,"ok"
1,"A_10kB",10000,2,0.03,8000,1.1,"ok"
2,"A_10kB",10000,0,0.02,12000,1,"ok"
2,"A_10kB",10000,1,0.04,6000,1.1,"ok"
2,"A_10kB",10000,2,0.06,4000,1.2,"ok"
3,"A_10kB",10000,0,0.03,8000,1.2,"ok"
3,"A_10kB",10000,1,0.03,8000,1.2,"ok"
3,"A_10kB",10000,2,0.09,2666.6666666666665,1.2,"ok"
1,"A_100kB",100000,0,0.1,24000,1.005,"ok"
1,"A_100kB",100000,1,0.2,12000,1.005,"ok"
1,"A_100kB",100000,2,0.3,8000,1.005,"ok"
2,"A_100kB",100000,0,0.1,24000,1.005,"ok"
2,"A_100kB",100000,1,,,,"killed"
2,"A_100kB",100000,2,0.4,6000,1.015,"ok"
`,
		// Means and deviations of 10, 20, 30 ms; of 20, 40, 30 ms; of 30, 60, 90 ms; of 100, 100; 200; 300, 400 ms.
		api.SourceComparison: `"file","size_bytes","leecher","iterations","transfers_ok","transfer_time_s_mean","transfer_time_s_sd","throughput_kbps_mean","throughput_kbps_sd","transfer_ratio_mean","transfer_ratio_sd"
"A_10kB",10000,0,3,3,0.02,0.01,14666.67,8326.664,1.1,0.1
"A_10kB",10000,1,3,3,0.03,0.01,8666.667,3055.05,1.133333,0.05773503
"A_10kB",10000,2,3,3,0.06,0.03,4888.889,2775.555,1.166667,0.05773503
"A_100kB",100000,0,2,2,0.1,0,24000,0,1.005,0
"A_100kB",100000,1,2,1,0.2,,12000,,1.005,
"A_100kB",100000,2,2,2,0.35,0.07071068,7000,1414.214,1.01,0.007071068
`,
		api.SourceSummary: `"file","size_bytes","iterations","leechers","transfers","transfers_ok","transfer_time_s_mean","transfer_time_s_sd","throughput_kbps_mean","throughput_kbps_sd","transfer_ratio_mean","transfer_ratio_sd"
"A_10kB",10000,3,3,9,9,0.03666667,0.0244949,9407.407,6310.876,1.133333,0.07071068
"A_100kB",100000,2,3,6,5,0.22,0.130384,14800,8671.793,1.007,0.004472136
`,
	} {
		var b bytes.Buffer
		if err := r.client.ExportSource(t.Context(), "latest", file, &b); err != nil {
			t.Fatal(err)
		}
		got := b.String()
		if file != api.SourceResults {
			got = rounded(got)
		}
		if got != want {
			t.Errorf("%s:\n%swant:\n%s", file, got, want)
		}
	}
	resp := r.request("GET", "/v1/runs/latest/export/source/"+api.SourceSummary, "")
	if resp.Header.Get("Content-Type") != "text/csv; charset=utf-8" || !strings.Contains(resp.Header.Get("Content-Disposition"), `"all_leechers_summary.csv"`) {
		t.Errorf("%v", resp.Header)
	}
	for _, c := range []struct {
		run    *made
		file   string
		status int
	}{
		{x, "passwords.csv", 422},
		{r.make(making{file: madeFile, requests: 1}), api.SourceResults, 422},
		{r.make(making{file: swarmFile, edit: func(x *made) { x.run.State = schemas.RunRunning }}), api.SourceResults, 409},
	} {
		if resp := r.request("GET", fmt.Sprintf("/v1/runs/%s/export/source/%s", c.run.run.ID, c.file), ""); resp.StatusCode != c.status {
			t.Errorf("%s of %s: %s, want %d", c.file, c.run.run.Name, resp.Status, c.status)
		}
	}
}

// rounded is a table with numbers of seven digits.
func rounded(table string) string {
	var b strings.Builder
	for _, line := range strings.SplitAfter(table, "\n") {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), ",")
		for i, f := range fields {
			var v float64
			if n, err := fmt.Sscanf(f, "%g", &v); n == 1 && err == nil && i > 1 {
				fields[i] = fmt.Sprintf("%.7g", v)
				if v == math.Trunc(v) {
					fields[i] = fmt.Sprintf("%.0f", v)
				}
			}
		}
		b.WriteString(strings.Join(fields, ","))
		if strings.HasSuffix(line, "\n") {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// Of a swarm run an export is of its transfers, unless it is said of what else.
func TestSwarmExport(t *testing.T) {
	r := newRig(t, nil)
	r.make(making{file: swarmFile, edit: func(x *made) { makeSwarms(x, madeSwarms()) }})
	for _, c := range []struct {
		options client.ExportOptions
		begins  string
		lines   int
	}{
		{client.ExportOptions{}, `"ts","run","trial","attempt","site","agent","client","client_group","leecher"`, 1 + 16},
		{client.ExportOptions{Kinds: []string{schemas.KindTransfer}}, `"ts","run","trial","attempt","workload"`, 1 + 16},
		{client.ExportOptions{View: "swarm_wire"}, `"ts","run","trial","attempt","site","agent","peer"`, 1 + 5*8},
		{client.ExportOptions{View: "swarm_interfaces"}, `"ts"`, 1 + 5},
		{client.ExportOptions{View: "swarm_copies"}, `"ts"`, 1 + 5},
		{client.ExportOptions{View: "swarm_pieces"}, `"ts"`, 1},
		{client.ExportOptions{View: "swarm_seeds"}, `"ts"`, 1},
	} {
		var b bytes.Buffer
		if err := r.client.Export(t.Context(), "latest", c.options, &b); err != nil || !strings.HasPrefix(b.String(), c.begins) || strings.Count(b.String(), "\n") != c.lines {
			t.Errorf("%+v: %v, want %d lines that begin %s:\n%.300s", c.options, err, c.lines, c.begins, b.String())
		}
	}
}

// Two runs of swarms are compared cell by cell.
func TestCompareSwarms(t *testing.T) {
	r := newRig(t, nil)
	file := strings.NewReplacer("repeat: 3", "repeat: 8", "count: 2", "count: 8").Replace(swarmFile)
	run := func(factor int) *made {
		cells := make([][]madeSwarm, 2)
		for cell := range cells {
			for i := range 8 {
				base := 100 * (cell + 1)
				if cell == 0 {
					base *= factor
				}
				cells[cell] = append(cells[cell], madeSwarm{
					size: 10_000, ms: []int{base, base + i, base + 2*i}, received: []int{1, 1, 1}, killed: -1, exclusive: true,
				})
			}
		}
		return r.make(making{file: file, seed: uint64(factor), edit: func(x *made) { makeSwarms(x, cells) }})
	}
	a, b := run(1), run(2)
	got, err := r.client.Compare(t.Context(), a.run.ID.String(), b.run.ID.String(), client.CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]string{}
	for _, d := range got.Results {
		verdicts[d.Name()+" "+d.Metric] = fmt.Sprintf("%s %.0f %s", d.Verdict, d.MedianA/1e6, d.Over)
	}
	if want := map[string]string{
		"size=10kB transfer": "worse 104 trials", "size=10kB first_piece": "worse 52 trials",
		"size=100kB transfer": "no difference 204 trials", "size=100kB first_piece": "no difference 102 trials",
	}; fmt.Sprint(verdicts) != fmt.Sprint(want) {
		t.Errorf("verdicts %v, want %v", verdicts, want)
	}
}
