package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
)

// outcome runs an experiment and returns its run's id.
func (b *bench) run(ctx context.Context, text string) (string, error) {
	o, err := b.lab.Run(ctx, text)
	if err != nil {
		return "", err
	}
	if !o.Validity.Valid {
		return "", fmt.Errorf("the run is INVALID: %s", o.Reasons())
	}
	return o.Run.ID, nil
}

func span(text string) (time.Duration, error) {
	ns, err := strconv.ParseFloat(text, 64)
	return time.Duration(ns), err
}

// detect compares what the lab's detector takes with a bare loop.
func (b *bench) detect(ctx context.Context) error {
	const file = `name: bench-detect
workload: offload
groups: [{site: pi}]
trials: {retries: 0}
offload: {policy: cloud, clips: 1, recorded: true, scenes: [dog]}
`
	var ours, bare, network, decode []time.Duration
	for round := range b.rounds {
		measure := []func() error{
			func() error {
				id, err := b.run(ctx, file)
				if err != nil {
					return err
				}
				rows, err := b.lab.SQL(ctx, "SELECT at_inferred - at_taken, at_stored - at_inferred, clip_sha256 FROM offload_clips WHERE status = 'ok' AND run = '"+id+"'")
				if err != nil {
					return err
				}
				if len(rows) != 1 {
					return fmt.Errorf("%d clips came of one", len(rows))
				}
				took, err := span(rows[0][0])
				if err != nil {
					return err
				}
				ours = append(ours, took)
				b.Add("transferlab", 1, []figures.Value{{V: float64(took), Unit: "ns"}})
				if b.clip == "" {
					b.clip, err = findClip(rows[0][2])
				}
				return err
			},
			func() error {
				m, err := b.bare(ctx)
				if err != nil {
					return err
				}
				bare, decode, network = append(bare, m.total), append(decode, m.decode), append(network, m.infer)
				b.Add("gocv", 1, []figures.Value{{V: float64(m.total), Unit: "ns"}})
				return nil
			},
		}
		if round%2 == 1 {
			slices.Reverse(measure)
		}
		for _, m := range measure {
			if err := m(); err != nil {
				return err
			}
		}
	}
	middle := func(all []time.Duration) time.Duration {
		return time.Duration(figures.Median(all, func(d time.Duration) float64 { return float64(d) }))
	}
	fmt.Fprintf(b.W, "one clip of 10.5 MB, medians of %d: taken to inferred %s; bare loop %s (decoding %s, network %s): %.2f of it\n",
		b.rounds, middle(ours), middle(bare), middle(decode), middle(network), float64(middle(ours))/float64(middle(bare)))
	b.Goal(float64(middle(ours)) <= 1.05*float64(middle(bare)), "fetching, decoding and inference within 5 %% of a bare loop")
	return nil
}

// loop is what the bare loop says.
type loop struct{ total, decode, infer time.Duration }

func (b *bench) bare(ctx context.Context) (loop, error) {
	// The lab's detector has looked at clips before: the second run counts.
	out, err := exec.CommandContext(ctx, b.barecv, "--n", "2", "--model", b.model, b.clip).Output()
	if err != nil {
		return loop{}, fmt.Errorf("%s: %w", b.barecv, err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var said struct {
		Total  int64 `json:"total_ns"`
		Decode int64 `json:"decode_ns"`
		Infer  int64 `json:"infer_ns"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &said); err != nil {
		return loop{}, fmt.Errorf("%s: %w", b.barecv, err)
	}
	return loop{time.Duration(said.Total), time.Duration(said.Decode), time.Duration(said.Infer)}, nil
}

// findClip finds a made clip by the hash of its bytes.
func findClip(hash string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	found := ""
	root := filepath.Join(cache, "transferlab", "edge-runner", "clips")
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".json" {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), hash) {
			found = strings.TrimSuffix(path, ".json") + ".mp4"
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no clip with the hash %s below %s", hash, root)
	}
	return found, err
}

// far runs the experiment of an edge that is far away.
func (b *bench) far(ctx context.Context) error {
	text, err := b.example("far")
	if err != nil {
		return err
	}
	id, err := b.run(ctx, text)
	if err != nil {
		return err
	}
	rows, err := b.lab.SQL(ctx, `SELECT count(), quantileExact(0.5)(overhead_ns), quantileExact(0.95)(overhead_ns), max(overhead_ns), quantileExact(0.5)(upload_ns), quantileExact(0.95)(upload_ns)
		FROM offload_clips WHERE final AND status = 'ok' AND run = '`+id+`'`)
	if err != nil {
		return err
	}
	var times []time.Duration
	for _, cell := range rows[0][1:] {
		d, err := span(cell)
		if err != nil {
			return err
		}
		times = append(times, d)
	}
	n, err := strconv.Atoi(rows[0][0])
	if err != nil {
		return err
	}
	fmt.Fprintf(b.W, "%d clips of 10.5 MB over 50 ms: clip closed to result stored without decoding and inference p50 %s, p95 %s, max %s; upload p50 %s, p95 %s\n",
		n, times[0], times[1], times[2], times[3], times[4])
	b.Add("transferlab", n, []figures.Value{{V: float64(times[0]), Unit: "p50-ns"}, {V: float64(times[1]), Unit: "p95-ns"}})
	b.Goal(times[1] <= 500*time.Millisecond, "p95 of everything but decoding and inference at most 0.5 s")
	return nil
}

// place is one cell of the surface.
type place struct{ rtt, uplink, backlog string }

// seen is what a policy did in one cell.
type seen struct {
	took                              []time.Duration // decision to result
	arrivals                          []time.Duration
	local, upload, cloud, store, tell time.Duration
	detectorFree                      time.Duration
	atEdge                            int
}

// surface compares the policies cell by cell.
func (b *bench) surface(ctx context.Context) error {
	text, err := b.example("surface")
	if err != nil {
		return err
	}
	id, err := b.run(ctx, text)
	if err != nil {
		return err
	}
	cells, err := b.read(ctx, id)
	if err != nil {
		return err
	}
	order := []place{}
	for p := range cells {
		order = append(order, p)
	}
	slices.SortFunc(order, func(x, y place) int { return strings.Compare(x.key(), y.key()) })
	table := tabwriter.NewWriter(b.W, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "rtt\tuplink\tbacklog\tlocal p95\tcloud p95\tadaptive p95\tlocal mean\tcloud mean\tadaptive mean\toracle mean\tof oracle\tat edge\t")
	better, near := 0, 0
	for _, p := range order {
		local, cloud, adaptive := cells[p]["local"], cells[p]["cloud"], cells[p]["adaptive"]
		if local == nil || cloud == nil || adaptive == nil {
			return fmt.Errorf("%+v: a policy is missing", p)
		}
		c := costs{
			arrivals: adaptive.arrivals, local: local.local, upload: cloud.upload, cloud: cloud.cloud, store: cloud.store, tell: local.tell, backlog: cloud.detectorFree,
		}
		_, oracle := c.best()
		ratio := float64(mean(adaptive.took)) / float64(mean(oracle))
		if p95(adaptive.took) <= p95(local.took) && p95(adaptive.took) <= p95(cloud.took) {
			better++
		}
		if ratio <= 1.10 {
			near++
		}
		round := func(d time.Duration) string { return d.Round(10 * time.Millisecond).String() }
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%d/%d\t\n", p.rtt, p.uplink, p.backlog,
			round(p95(local.took)), round(p95(cloud.took)), round(p95(adaptive.took)),
			round(mean(local.took)), round(mean(cloud.took)), round(mean(adaptive.took)), round(mean(oracle)), ratio, adaptive.atEdge, len(adaptive.took))
		b.Add("adaptive", len(adaptive.took), []figures.Value{
			{V: float64(mean(adaptive.took)), Unit: "mean-ns"}, {V: float64(p95(adaptive.took)), Unit: "p95-ns"}, {V: ratio, Unit: "of-oracle"},
		}, "rtt="+p.rtt, "uplink="+p.uplink, "backlog="+p.backlog)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	b.Goal(near == len(order), "adaptive within 10 %% of the oracle in %d of %d cells", near, len(order))
	b.Goal(float64(better) >= 0.8*float64(len(order)), "adaptive no worse than both on p95 in %d of %d cells (aim: 80 %%)", better, len(order))
	return nil
}

func (p place) key() string {
	return fmt.Sprintf("%8s %8s %4s", p.rtt, p.uplink, p.backlog)
}

// read takes what the policies did from the lab's database.
func (b *bench) read(ctx context.Context, id string) (map[place]map[string]*seen, error) {
	rows, err := b.lab.SQL(ctx, `SELECT axes['rtt'], axes['uplink'], axes['backlog'], policy, seen_by,
			toInt64(at_stored - at_decided), toInt64(toUnixTimestamp64Nano(ts) + wait_ns + at_decided), toInt64(at_inferred - at_taken),
			toInt64(ifNull(upload_ns, 0)), toInt64(at_stored - at_inferred), toInt64(at_taken)
		FROM offload_clips AS c INNER JOIN (SELECT run, trial, axes FROM trials WHERE final AND run = '`+id+`') AS t ON c.run = t.run AND c.trial = t.trial
		WHERE c.final AND c.status = 'ok' AND c.run = '`+id+`' ORDER BY ts, at_decided`)
	if err != nil {
		return nil, err
	}
	cells := map[place]map[string]*seen{}
	type raw struct{ arrivals, looked, upload, after []time.Duration }
	all := map[*seen]*raw{}
	for _, row := range rows {
		p := place{row[0], row[1], row[2]}
		if cells[p] == nil {
			cells[p] = map[string]*seen{}
		}
		at := cells[p][row[3]]
		if at == nil {
			at = &seen{}
			cells[p][row[3]], all[at] = at, &raw{}
		}
		var v []time.Duration
		for _, text := range row[5:] {
			d, err := span(text)
			if err != nil {
				return nil, err
			}
			v = append(v, d)
		}
		at.took = append(at.took, v[0])
		r := all[at]
		r.arrivals, r.looked, r.after = append(r.arrivals, v[1]), append(r.looked, v[2]), append(r.after, v[4])
		r.upload = append(r.upload, v[3])
		if row[4] == "edge" {
			at.atEdge++
		}
	}
	for at, r := range all {
		first := slices.Min(r.arrivals)
		for _, a := range r.arrivals {
			at.arrivals = append(at.arrivals, a-first)
		}
		at.local, at.cloud = mean(r.looked), mean(r.looked)
		at.store, at.tell = mean(r.after), mean(r.after)
		// The uplink is shared: what one clip takes of it is what all take until the
		// last is up, but for waiting for the next clip.
		var up time.Duration
		last := time.Duration(0)
		for i, u := range r.upload {
			begin := at.arrivals[i]
			end := begin + u
			up += max(0, end-max(begin, last))
			last = max(last, end)
		}
		at.upload = up / time.Duration(max(1, len(r.upload)))
	}
	return cells, nil
}
