package gateway

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/report"
)

const probeFile = `name: paths
workload: probe
groups: [{site: oregon, clients: 2}, {site: dublin}]
matrix: {payload: [56B, 1kB]}
thresholds:
  - {metric: rtt_p99, max: 1h}
  - {metric: loss, max: "100%", where: {src_site: oregon, dst_site: dublin, protocol: icmp}}
  - {metric: jitter, max: 1ns, where: {src_site: dublin, payload: 1000B}}
probe: {count: 400, protocols: [icmp, udp]}
`

// madeProbe is one synthetic probe.
type madeProbe struct {
	cell, path    int
	protocol      string
	from, to      string
	at, wait, rtt time.Duration
	forward       time.Duration // 0: withheld
	status        string
	duplicates    int
	arrivedAt     time.Duration
}

// makeProbes fills a made run with probes whose every number is known.
func makeProbes(x *made, slower float64) []madeProbe {
	random := rand.New(rand.NewPCG(3, 9))
	clear(x.events)
	clear(x.states)
	sites := []string{"oregon", "oregon", "dublin"}
	var all []madeProbe
	for i := range x.plan.Trials {
		trial := &x.plan.Trials[i]
		start := x.started[trial.Index]
		issued := map[string]int{}
		path := 0
		for from := range sites {
			agent := fmt.Sprintf("%s-%d", sites[from], from)
			producer := agent + "/" + x.run.ID.String()[24:]
			for to := range sites {
				if from == to {
					continue
				}
				for _, protocol := range []string{"icmp", "udp"} {
					for n := range 400 {
						p := madeProbe{
							cell: trial.Cell, path: path, protocol: protocol, from: sites[from], to: sites[to], status: schemas.StatusOK,
							at: time.Duration(n) * 10 * time.Millisecond, wait: time.Duration(random.IntN(50_000)),
							rtt: time.Duration(500_000 + random.ExpFloat64()*15e6),
						}
						if p.to == "dublin" {
							p.rtt = time.Duration(float64(p.rtt) * slower)
						}
						if random.Float64() < .03 {
							p.status, p.rtt = schemas.StatusTimeout, time.Second
						} else if protocol == "udp" && random.Float64() < .8 {
							p.forward = p.rtt / 3
						}
						if random.Float64() < .02 && p.status == schemas.StatusOK {
							p.duplicates = 1
						}
						p.arrivedAt = p.at + p.wait + p.rtt
						all = append(all, p)
						e := schemas.Event{
							Intended: start.Add(p.at), Run: x.run.ID, Trial: trial.Index, Attempt: 1, Workload: "probe", Service: "prober", Site: p.from, Agent: agent,
							Kind: schemas.KindProbe, Wait: p.wait, Duration: p.rtt, Bytes: 56, Status: p.status, Attrs: []schemas.Attr{
								{Key: "protocol", Value: protocol},
								{Key: "dst_site", Value: p.to},
								{Key: "path", Value: fmt.Sprint(path)},
							},
						}
						if p.forward > 0 {
							e.Attrs = append(e.Attrs, schemas.Attr{Key: "forward_ns", Value: fmt.Sprint(int64(p.forward))})
						}
						if p.duplicates > 0 {
							e.Attrs = append(e.Attrs, schemas.Attr{Key: "duplicates", Value: fmt.Sprint(p.duplicates)})
						}
						x.events[producer] = append(x.events[producer], e)
						issued[agent]++
					}
					path++
				}
			}
			result := schemas.TaskResult{Issued: uint64(issued[agent]), Recorded: uint64(issued[agent] + 1), Acknowledged: uint64(issued[agent] + 1), Producer: producer}
			x.states[fmt.Sprintf("task.%s.%d.1.%s", x.run.ID, trial.Index, agent)] = schemas.TaskState{Agent: agent, Phase: schemas.TaskDone, Result: result}
			x.events[producer] = append(x.events[producer], schemas.Event{
				Intended: start, Run: x.run.ID, Trial: trial.Index, Attempt: 1, Workload: "probe", Service: "prober", Agent: agent, Kind: schemas.KindTask, Status: "ok",
			})
		}
		x.events["scheduler/x"] = append(x.events["scheduler/x"], schemas.Event{
			Intended: start, Run: x.run.ID, Trial: trial.Index, Attempt: 1, Workload: "probe", Service: "scheduler", Kind: schemas.KindTrial, Status: "ok",
			Attrs: []schemas.Attr{{Key: "cell", Value: fmt.Sprint(trial.Cell)}},
		})
	}
	return all
}

// Every figure of a mesh against a computation of its own, to the nanosecond.
func TestProbeReportFigures(t *testing.T) {
	r := newRig(t, nil)
	var probes []madeProbe
	x := r.make(making{file: probeFile, edit: func(x *made) { probes = makeProbes(x, 1) }})
	got, err := r.client.Report(t.Context(), x.run.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if !got.Validity.Valid || got.Accounting.Issued != uint64(len(probes)) || got.Accounting.Requests != uint64(len(probes)) {
		t.Errorf("validity %+v, accounting %+v, %d probes", got.Validity, got.Accounting, len(probes))
	}
	// Two cells, two protocols, three pairs of sites (nobody else is in Dublin).
	if len(got.Paths) != 2*2*3 {
		t.Fatalf("%d paths: %+v", len(got.Paths), got.Paths)
	}
	for i := range got.Paths {
		p := &got.Paths[i]
		var rtt, forward []uint64
		lines := map[int][]madeProbe{}
		var sent, duplicates uint64
		for _, q := range probes {
			if q.cell != p.Cell || q.protocol != p.Protocol || q.from != p.From || q.to != p.To {
				continue
			}
			sent++
			duplicates += uint64(q.duplicates)
			if q.status != schemas.StatusOK {
				continue
			}
			rtt = append(rtt, uint64(q.rtt))
			lines[q.path] = append(lines[q.path], q)
			if q.forward > 0 {
				forward = append(forward, uint64(q.forward))
			}
		}
		quantiles := func(v []uint64) report.Quantiles {
			return report.Quantiles{P50: quantile(v, .5), P90: quantile(v, .9), P99: quantile(v, .99), P999: quantile(v, .999), Max: quantile(v, 1)}
		}
		if *p.RTT != quantiles(rtt) || p.Min != slices.Min(rtt) {
			t.Errorf("%v: rtt %+v (min %d), want %+v", p.Where(), *p.RTT, p.Min, quantiles(rtt))
		}
		if (p.Forward != nil) != (p.Protocol == "udp") || p.Backward != nil {
			t.Errorf("%v: one-way %+v %+v", p.Where(), p.Forward, p.Backward)
		}
		if p.Forward != nil && *p.Forward != quantiles(forward) {
			t.Errorf("%v: forward %+v, want %+v", p.Where(), *p.Forward, quantiles(forward))
		}
		jitter, late := 0.0, uint64(0)
		for _, line := range lines {
			j, latest := 0.0, time.Duration(-1)
			for n, q := range line {
				if n > 0 {
					j += (math.Abs(float64(q.rtt-line[n-1].rtt)) - j) / 16
				}
				if q.arrivedAt < latest {
					late++
				}
				latest = max(latest, q.arrivedAt)
			}
			jitter = max(jitter, j)
		}
		if math.Abs(p.Jitter-jitter) > 1e-6*jitter {
			t.Errorf("%v: jitter %f, want %f", p.Where(), p.Jitter, jitter)
		}
		if p.Late != late || late == 0 {
			t.Errorf("%v: %d reordered, want %d", p.Where(), p.Late, late)
		}
		want := report.Path{Sent: sent, OK: uint64(len(rtt)), Duplicates: duplicates, Lines: uint64(len(lines))}
		if p.Sent != want.Sent || p.OK != want.OK || p.Duplicates != want.Duplicates || p.Lines != want.Lines || p.Statuses[schemas.StatusTimeout] != sent-want.OK {
			t.Errorf("%v: %+v, want %+v", p.Where(), p, want)
		}
		if loss := float64(sent-want.OK) / float64(sent); p.Loss != loss {
			t.Errorf("%v: loss %g, want %g", p.Where(), p.Loss, loss)
		}
	}
	// Far against near: from Oregon, by each protocol, in each cell.
	if len(got.Ratios) != 4 {
		t.Errorf("ratios %+v", got.Ratios)
	}
	for _, q := range got.Ratios {
		if q.Near != "oregon" || q.Far != "dublin" || q.Ratio != float64(q.FarRTT)/float64(q.NearRTT) {
			t.Errorf("ratio %+v", q)
		}
	}
	missed := 0
	for _, h := range got.Thresholds {
		if !h.Held {
			missed++
		}
	}
	// Twelve for rtt_p99, two cells for loss, one pair and cell twice (by protocol) for jitter.
	if len(got.Thresholds) != 12+2+2 || missed != 2 || got.Verdict != schemas.VerdictMissed {
		t.Errorf("%d thresholds, %d missed, verdict %s", len(got.Thresholds), missed, got.Verdict)
	}
	for format, want := range map[string][]string{
		"table": {"from \\ to", "██", "oregon", "far against near", "probes: 9600 issued"},
		"csv":   {"cell.payload", "rtt_p999_ns", "dublin"},
		"json":  {`"ratios"`, `"rtt_min_ns"`},
	} {
		var b bytes.Buffer
		if err := r.client.WriteReport(t.Context(), "latest", format, &b); err != nil {
			t.Fatal(err)
		}
		for _, text := range want {
			if !strings.Contains(b.String(), text) {
				t.Errorf("%s has no %q in it:\n%s", format, text, b.String())
			}
		}
	}
}

// What makes the figures of a mesh worth nothing, or not all there is.
func TestProbeReportInvalid(t *testing.T) {
	r := newRig(t, nil)
	for name, c := range map[string]struct {
		edit func(*made)
		code string
		text string
	}{
		"an agent gone": {func(x *made) {
			for key, state := range x.states {
				if strings.HasSuffix(key, "dublin-2") {
					x.states[key] = schemas.TaskState{Agent: state.Agent, Phase: schemas.TaskGone, Error: "was restarted in the middle"}
				}
			}
		}, report.ReasonAgentGone, "agent dublin-2 was restarted"},
		"an unfit network": {func(x *made) {
			x.events["provisioner/x"] = []schemas.Event{{
				Intended: x.started[0], Run: x.run.ID, Attempt: 1, Workload: "probe", Service: "provisioner", Kind: schemas.KindGate, Status: "unfit",
				Error: "rtt oregon-dublin 3 ms, set 1 ms", Attrs: []schemas.Attr{{Key: "link", Value: "dublin-oregon"}, {Key: "what", Value: "rtt"}, {Key: "unit", Value: "ns"}},
			}}
		}, report.ReasonNetwork, "3 ms, set 1 ms"},
	} {
		t.Run(name, func(t *testing.T) {
			x := r.make(making{file: probeFile, edit: func(x *made) { makeProbes(x, 1); c.edit(x) }})
			got, err := r.client.Report(t.Context(), x.run.ID.String())
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, reason := range got.Validity.Reasons {
				found = found || reason.Code == c.code && strings.Contains(reason.Text, c.text)
				if reason.Code == report.ReasonUnaccounted {
					t.Errorf("and %s", reason.Text)
				}
			}
			if !found || got.Verdict != schemas.VerdictInvalid {
				t.Errorf("verdict %s, reasons %+v", got.Verdict, got.Validity.Reasons)
			}
		})
	}
}

// Two runs of a mesh are compared pair by pair: one way that has become longer
// does not hide among the others.
func TestCompareMeshes(t *testing.T) {
	r := newRig(t, nil)
	a := r.make(making{file: probeFile, edit: func(x *made) { makeProbes(x, 1) }})
	b := r.make(making{file: probeFile, seed: 2, edit: func(x *made) { makeProbes(x, 2) }})
	got, err := r.client.Compare(t.Context(), a.run.ID.String(), b.run.ID.String(), client.CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Results) != 2*2*3 {
		t.Fatalf("%d results, want one for each cell, protocol and pair of sites: %s", len(got.Results), derefs(got))
	}
	for _, d := range got.Results {
		slower := slices.Contains(d.Values, report.Value{Name: "dst_site", Value: "dublin"})
		if d.Metric != "rtt" || slower != (d.Verdict == report.Worse) {
			t.Errorf("%s %s is %s", d.Name(), d.Metric, d.Verdict)
		}
	}
	other := r.make(making{file: madeFile, requests: 5})
	if _, err := r.client.Compare(t.Context(), a.run.ID.String(), other.run.ID.String(), client.CompareOptions{}); err == nil || !strings.Contains(err.Error(), "want two of the same") {
		t.Errorf("a mesh and downloads: %v", err)
	}
}
