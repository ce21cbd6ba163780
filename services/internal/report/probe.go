package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/transferlab/transferlab/schemas"
)

// Path is what was measured from one site to another, or to a target, by one
// protocol, in one cell: over all lines of probes between them. Times are
// nanoseconds, shares 0 to 1.
type Path struct {
	Cell     int     `json:"cell"`
	Values   []Value `json:"values"` // of the cell
	Protocol string  `json:"protocol"`
	From     string  `json:"src_site"`
	To       string  `json:"dst_site"` // a target as it is written in the file
	Lines    uint64  `json:"paths"`    // lines of probes

	Sent       uint64            `json:"sent"`
	OK         uint64            `json:"ok"`
	Loss       float64           `json:"loss"`
	Duplicates uint64            `json:"duplicates"`
	Duplicated float64           `json:"duplicated"`
	Late       uint64            `json:"reordered_packets"`
	Reordered  float64           `json:"reordered"`
	Statuses   map[string]uint64 `json:"statuses"`

	// RTT is null when nothing was answered, Forward and Backward when the
	// clocks of both ends are known too badly.
	RTT      *Quantiles `json:"rtt"`
	Min      uint64     `json:"rtt_min_ns"`
	Jitter   float64    `json:"jitter_ns"`
	Forward  *Quantiles `json:"forward"`
	Backward *Quantiles `json:"backward"`
}

// Where is what a threshold can choose a path by.
func (p *Path) Where() []Value {
	return append(slices.Clone(p.Values), Value{"protocol", p.Protocol}, Value{"src_site", p.From}, Value{"dst_site", p.To})
}

// Metric returns the figure a threshold names (`rtt_p99`, `loss`, …); false when
// the path has none.
func (p *Path) Metric(name string) (float64, bool) {
	switch name {
	case "loss":
		return p.Loss, p.Sent > 0
	case "duplicated":
		return p.Duplicated, p.Sent > 0
	case "reordered":
		return p.Reordered, p.OK > 0
	case "jitter":
		return p.Jitter, p.OK > 1
	}
	for prefix, q := range map[string]*Quantiles{"rtt_": p.RTT, "forward_": p.Forward, "backward_": p.Backward} {
		if quantile, found := strings.CutPrefix(name, prefix); found {
			return q.at(quantile)
		}
	}
	return 0, false
}

// Ratio is how much longer the way to another site is than the way inside one.
type Ratio struct {
	Cell     int     `json:"cell"`
	Protocol string  `json:"protocol"`
	Near     string  `json:"near"` // the site
	Far      string  `json:"far"`  // the other one
	NearRTT  uint64  `json:"near_rtt_p50_ns"`
	FarRTT   uint64  `json:"far_rtt_p50_ns"`
	Ratio    float64 `json:"ratio"`
}

// Ratios compares, for each site inside which something was measured, the
// median round trip to every other site with the one inside.
func Ratios(paths []Path) []Ratio {
	var all []Ratio
	for _, near := range paths {
		if near.From != near.To || near.RTT == nil || near.RTT.P50 == 0 {
			continue
		}
		for _, far := range paths {
			if far.From != near.From || far.To == near.To || far.Cell != near.Cell || far.Protocol != near.Protocol || far.RTT == nil {
				continue
			}
			all = append(all, Ratio{
				Cell: near.Cell, Protocol: near.Protocol, Near: near.From, Far: far.To, NearRTT: near.RTT.P50, FarRTT: far.RTT.P50,
				Ratio: float64(far.RTT.P50) / float64(near.RTT.P50),
			})
		}
	}
	return all
}

func probeDefinitions() map[string]string {
	return map[string]string{
		"rtt":        "sent to answer, by the kernel's clock readings where there are any (column stamps), of answered probes; for udp without the time the reflector took",
		"forward":    "one way there, backward: one way back; only of probes where the bound of the clocks' offset is at most 10 % of the value",
		"jitter":     "interarrival jitter of RFC 3550, section 6.4.1, of round trips at the end of a line of probes; the worst line between the two sites",
		"loss":       "probes without an answer that counts / probes sent",
		"duplicated": "further answers / probes sent",
		"reordered":  "answers that came after the answer to a later probe of their line (RFC 4737, section 3) / answers",
	}
}

// pathGroup is the paths of one cell and protocol.
type pathGroup struct {
	cell     int
	name     string // of the cell
	protocol string
	paths    []*Path
}

func (r *Report) pathGroups() []pathGroup {
	var groups []pathGroup
	for i := range r.Paths {
		p := &r.Paths[i]
		at := slices.IndexFunc(groups, func(g pathGroup) bool { return g.cell == p.Cell && g.protocol == p.Protocol })
		if at < 0 {
			at = len(groups)
			groups = append(groups, pathGroup{cell: p.Cell, name: nameOf(p.Values), protocol: p.Protocol})
		}
		groups[at].paths = append(groups[at].paths, p)
	}
	return groups
}

// ends are the sites a group's paths begin and end at, in order.
func (g *pathGroup) ends() (from, to []string) {
	for _, p := range g.paths {
		if !slices.Contains(from, p.From) {
			from = append(from, p.From)
		}
		if !slices.Contains(to, p.To) {
			to = append(to, p.To)
		}
	}
	slices.Sort(from)
	slices.Sort(to)
	return from, to
}

func (g *pathGroup) path(from, to string) *Path {
	for _, p := range g.paths {
		if p.From == from && p.To == to {
			return p
		}
	}
	return nil
}

// A matrix with more columns does not fit a terminal.
const maxMatrix = 8

func (r *Report) probeTables(p *page) {
	p.table(1, table.Row{"cell", "trials", "clients", "probes", "answered", "failures", "lag p50", "p99", "max"}, r.probeLoad())
	for _, g := range r.pathGroups() {
		from, to := g.ends()
		p.line("\n%s, %s", g.protocol, g.name)
		if len(to) <= maxMatrix && len(from) <= 4*maxMatrix {
			g.matrix(p, from, to)
		} else {
			g.list(p)
		}
		g.heat(p, from, to)
	}
	r.ratioTable(p)
}

func (r *Report) probeLoad() []table.Row {
	var rows []table.Row
	for i := range r.Cells {
		c := &r.Cells[i]
		failed := maps.Clone(c.Statuses)
		delete(failed, schemas.StatusOK)
		rows = append(rows, append(table.Row{c.Name(), fmt.Sprintf("%d/%d", c.Trials, c.Planned), c.Clients, c.Requests, c.OK, statuses(failed)}, c.DispatchLag.texts()...))
	}
	return rows
}

// matrix shows from each site (rows) to each site (columns) median, p99, loss and
// jitter, and the medians of both ways where the clocks allow.
func (g *pathGroup) matrix(p *page, from, to []string) {
	header := table.Row{"from \\ to", ""}
	for _, t := range to {
		header = append(header, t)
	}
	var rows []table.Row
	type figure struct {
		name string
		of   func(*Path) string
	}
	figures := []figure{
		{"p50", func(x *Path) string { return rttText(x, func(q *Quantiles) uint64 { return q.P50 }) }},
		{"p99", func(x *Path) string {
			if x.RTT == nil {
				return "–"
			}
			return duration(float64(x.RTT.P99))
		}},
		{"loss", func(x *Path) string { return percent(x.Loss) }},
		{"jitter", func(x *Path) string {
			if x.OK < 2 {
				return "–"
			}
			return duration(x.Jitter)
		}},
	}
	if slices.ContainsFunc(g.paths, func(x *Path) bool { return x.Forward != nil || x.Backward != nil }) {
		oneWay := func(q *Quantiles) string {
			if q == nil {
				return "withheld"
			}
			return duration(float64(q.P50))
		}
		figures = append(figures, figure{"there p50", func(x *Path) string { return oneWay(x.Forward) }}, figure{"back p50", func(x *Path) string { return oneWay(x.Backward) }})
	}
	for _, f := range from {
		for i, figure := range figures {
			name := ""
			if i == 0 {
				name = f
			}
			row := table.Row{name, figure.name}
			for _, t := range to {
				text := ""
				if x := g.path(f, t); x != nil {
					text = figure.of(x)
				}
				row = append(row, text)
			}
			rows = append(rows, row)
		}
	}
	p.table(2, header, rows)
}

func rttText(x *Path, of func(*Quantiles) uint64) string {
	if x.RTT == nil {
		failed := maps.Clone(x.Statuses)
		delete(failed, schemas.StatusOK)
		return statuses(failed)
	}
	return duration(float64(of(x.RTT)))
}

// Of many paths, the slowest are shown.
const maxListed = 20

func (g *pathGroup) list(p *page) {
	paths := slices.Clone(g.paths)
	slices.SortStableFunc(paths, func(a, b *Path) int { return cmp.Compare(slowness(b), slowness(a)) })
	var rows []table.Row
	for _, x := range paths[:min(len(paths), maxListed)] {
		rows = append(rows, table.Row{
			x.From, x.To, x.Sent, rttText(x, func(q *Quantiles) uint64 { return q.P50 }), rttText(x, func(q *Quantiles) uint64 { return q.P99 }),
			percent(x.Loss), duration(x.Jitter),
		})
	}
	if left := len(paths) - len(rows); left > 0 {
		p.line("the slowest %d of %d pairs; the others: --format csv", len(rows), len(paths))
	}
	p.table(2, table.Row{"from", "to", "probes", "p50", "p99", "loss", "jitter"}, rows)
}

func slowness(x *Path) float64 {
	if x.RTT == nil {
		return math.Inf(1)
	}
	return float64(x.RTT.P50)
}

// heat draws the medians as shades, on a logarithmic scale from the shortest to
// the longest.
func (g *pathGroup) heat(p *page, from, to []string) {
	shades := []string{"  ", "░░", "▒▒", "▓▓", "██"}
	low, high := math.Inf(1), 0.0
	for _, x := range g.paths {
		if x.RTT != nil && x.RTT.P50 > 0 {
			low, high = min(low, float64(x.RTT.P50)), max(high, float64(x.RTT.P50))
		}
	}
	const widest = 64
	if len(g.paths) < 2 || high == 0 || len(to) > widest {
		return
	}
	width := 0
	for _, f := range from {
		width = max(width, len(f))
	}
	for _, f := range from {
		var b strings.Builder
		for _, t := range to {
			x := g.path(f, t)
			switch {
			case x == nil:
				b.WriteString(" ·")
			case x.RTT == nil:
				b.WriteString("××")
			default:
				place := 0.0
				if high > low {
					place = math.Log(float64(x.RTT.P50)/low) / math.Log(high/low)
				}
				b.WriteString(shades[1+min(int(place*float64(len(shades)-1)), len(shades)-2)])
			}
		}
		p.line("%*s %s", width, f, b.String())
	}
	p.line("%*s ░░ %s … ██ %s, columns %s; ×× no answer", width, "", duration(low), duration(high), strings.Join(to, ", "))
}

func (r *Report) ratioTable(p *page) {
	if len(r.Ratios) == 0 {
		return
	}
	var rows []table.Row
	for _, x := range r.Ratios {
		name := "all"
		if x.Cell < len(r.Cells) {
			name = r.Cells[x.Cell].Name()
		}
		rows = append(rows, table.Row{
			name, x.Protocol, x.Near, x.Far, duration(float64(x.NearRTT)), duration(float64(x.FarRTT)), fmt.Sprintf("%.1f ×", x.Ratio),
		})
	}
	p.line("\nfar against near, medians")
	p.table(4, table.Row{"cell", "protocol", "site", "to", "inside", "there", "longer"}, rows)
}

func (r *Report) networkLine(p *page) {
	if len(r.Network) == 0 {
		return
	}
	fit := 0
	for _, c := range r.Network {
		if c.OK {
			fit++
		}
	}
	p.field("network", "emulated on one machine as the file declares; %d of %d checks before the run held", fit, len(r.Network))
	for _, c := range r.Network {
		unit := func(v float64) string { return duration(v) }
		if c.Unit == "bit/s" {
			unit = func(v float64) string { return schemas.BitRate(v).String() }
		}
		verdict := ""
		if !c.OK {
			verdict = "  NOT WITHIN " + unit(c.Tolerance)
		}
		p.field("", "%s %s: set %s, measured %s%s", c.Link, c.What, unit(c.Set), unit(c.Measured), verdict)
	}
}

func (r *Report) writeProbeCSV(w io.Writer) error {
	columns := []string{"protocol", "src_site", "dst_site", "paths", "sent", "ok", "loss", "duplicated", "reordered", "jitter_ns", "rtt_min_ns"}
	columns = append(append(columns, quantileHeader("rtt", "forward", "backward")...), "statuses")
	var first []Value
	if len(r.Paths) > 0 {
		first = r.Paths[0].Values
	}
	sheet, err := r.sheet(w, first, columns)
	if err != nil {
		return err
	}
	for i := range r.Paths {
		x := &r.Paths[i]
		row := []string{
			x.Protocol, x.From, x.To, whole(x.Lines), whole(x.Sent), whole(x.OK), number(x.Loss), number(x.Duplicated), number(x.Reordered),
			number(x.Jitter), whole(x.Min),
		}
		for _, q := range []*Quantiles{x.RTT, x.Forward, x.Backward} {
			row = append(row, q.csv()...)
		}
		if err := sheet.row(x.Cell, x.Values, append(row, statuses(x.Statuses))); err != nil {
			return err
		}
	}
	return sheet.end()
}
