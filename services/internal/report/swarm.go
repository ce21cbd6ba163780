package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/transferlab/transferlab/schemas"
)

// SwarmCell is what was measured of the swarms of one cell, over all its trials.
// Times are nanoseconds, throughput kbit/s, shares and efficiencies 0 to 1. A
// figure is null when nothing counts for it.
type SwarmCell struct {
	Cell      int               `json:"cell"`
	Values    []Value           `json:"values"`
	Trials    uint64            `json:"trials"`
	Leechers  uint32            `json:"leechers"` // of one trial
	Transfers uint64            `json:"transfers"`
	OK        uint64            `json:"ok"`
	Statuses  map[string]uint64 `json:"statuses"`

	Transfer *Quantiles `json:"transfer"`
	Least    *uint64    `json:"transfer_min_ns"`
	Mean     *float64   `json:"transfer_mean_ns"`
	SD       *float64   `json:"transfer_sd_ns"`

	Throughput   *float64 `json:"throughput_mean_kbps"`
	ThroughputSD *float64 `json:"throughput_sd_kbps"`
	Ratio        *float64 `json:"ratio_mean"`
	RatioSD      *float64 `json:"ratio_sd"`
	Spread       *float64 `json:"spread"`

	Bound           *uint64  `json:"bound_ns"`
	BoundEfficiency *float64 `json:"bound_efficiency"`
	Copy            *uint64  `json:"copy_ns"`
	CopyEfficiency  *float64 `json:"copy_efficiency"`

	Unattributed *float64 `json:"unattributed"`
	PayloadShare *float64 `json:"payload_share"`
	HeadersShare *float64 `json:"headers_share"`
	OtherShare   *float64 `json:"other_share"`

	Phases []SwarmPhase `json:"phases"` // in the order in which they come
	Wire   []SwarmWire  `json:"wire"`   // most bytes first
}

// SwarmPhase is when one phase of the transfers that succeeded came, after their
// beginning.
type SwarmPhase struct {
	Phase     string `json:"phase"`
	Transfers uint64 `json:"transfers"` // that had it
	Quantiles
}

// SwarmWire is what was sent for one purpose.
type SwarmWire struct {
	Class           string  `json:"class"`
	Bytes           int64   `json:"bytes"` // below 0: more was accounted for than the interfaces counted
	Share           float64 `json:"share"` // of all classes
	Messages        uint64  `json:"messages"`
	LeecherBytes    uint64  `json:"leecher_bytes"`
	LeecherMessages uint64  `json:"leecher_messages"`
	SeederBytes     uint64  `json:"seeder_bytes"`
	SeederMessages  uint64  `json:"seeder_messages"`
	TrackerBytes    uint64  `json:"tracker_bytes"`
	TrackerMessages uint64  `json:"tracker_messages"`
}

// Classes of bytes that reports single out: content, and what only interfaces
// count.
const (
	classPayload = "payload"
	classHeaders = "ip_headers"
)

// Name is the cell's values in one line.
func (c *SwarmCell) Name() string { return nameOf(c.Values) }

// Share computes the shares of payload, headers and everything else from what was
// sent.
func (c *SwarmCell) Share() {
	c.PayloadShare, c.HeadersShare, c.OtherShare = nil, nil, nil
	if len(c.Wire) == 0 {
		return
	}
	payload, other := 0.0, 0.0
	for i := range c.Wire {
		switch w := &c.Wire[i]; w.Class {
		case classPayload:
			payload += w.Share
		case classHeaders:
			c.HeadersShare = &w.Share
		default:
			other += w.Share
		}
	}
	c.PayloadShare, c.OtherShare = &payload, &other
}

// phase is the named one, nil when no transfer had it.
func (c *SwarmCell) phase(name string) *Quantiles {
	i := slices.IndexFunc(c.Phases, func(p SwarmPhase) bool { return p.Phase == name })
	if i < 0 {
		return nil
	}
	return &c.Phases[i].Quantiles
}

// Metric returns the figure a threshold names (`transfer_p99`, `ratio`, …); false
// when the cell has none.
func (c *SwarmCell) Metric(name string) (float64, bool) {
	if name == "error_rate" {
		return c.errorRate(), c.Transfers > 0
	}
	figures := map[string]*float64{
		"ratio": c.Ratio, "spread": c.Spread, "copy_efficiency": c.CopyEfficiency, "bound_efficiency": c.BoundEfficiency, "unattributed": c.Unattributed,
	}
	if v, found := figures[name]; found {
		if v == nil {
			return 0, false
		}
		return *v, true
	}
	for prefix, q := range map[string]*Quantiles{"transfer_": c.Transfer, "first_piece_": c.phase("first_piece")} {
		if quantile, found := strings.CutPrefix(name, prefix); found {
			return q.at(quantile)
		}
	}
	return 0, false
}

func (c *SwarmCell) errorRate() float64 {
	if c.Transfers == 0 {
		return 0
	}
	return float64(c.Transfers-c.OK) / float64(c.Transfers)
}

func swarmDefinitions() map[string]string {
	return map[string]string{
		"first_byte":       "beginning of the transfer to the first byte of content, of transfers that succeeded",
		"transfer":         "beginning of a leecher's transfer to the last piece verified, of transfers that succeeded; mean and sd (of a sample: n - 1) over all of the cell",
		"throughput_kbps":  "size * 8 * leechers / (transfer in s * 1000), of each transfer that succeeded; mean and sd over all of the cell",
		"ratio":            "of a trial: bytes that its leechers received on their sockets, tracker included, IP and TCP headers not / (size * leechers), of the leechers that succeeded; mean and sd over trials",
		"spread":           "of a trial: p99 / p50 of its transfers; the median of the cell's trials",
		"bound_ns":         "fluid lower bound max(F/u_s, F/d_min, N*F/(u_s + sum of u)) on the time until all leechers have the file, from the rates set; none without rates; the median of the cell's trials",
		"bound_efficiency": "of a trial in which every leecher succeeded: bound / its slowest transfer; the median of the cell's trials",
		"copy_ns":          "the same bytes over one plain TCP connection, after the swarm of the same trial; the median of the cell's trials",
		"copy_efficiency":  "of a trial: copy / its median transfer; the median of the cell's trials",
		"phases":           "after the beginning of the transfer, of transfers that succeeded: the tracker's first answer, first handshake, first unchoke, first piece verified, tenths of the bytes verified (d10 to d90), last missing byte, last piece verified (complete), SHA-256 of the file checked (verified), connections closed (seed_out)",
		"wire":             "bytes that leechers, seeders and tracker sent, by class of message; where nothing else uses the interfaces also IP, TCP and UDP headers (ip_headers), TCP's retransmissions (sent_again) and what nothing accounts for (unattributed): then shares are of all that the interfaces sent",
		"unattributed":     "absolute value of (interface counter - bytes sent on sockets - retransmissions - headers) / interface counter; the worst agent and trial of the cell, of interfaces that nothing else uses",
		"error_rate":       "transfers that did not succeed / all transfers",
	}
}

// swarmColumn is a column of figures that is left out when no cell has any.
type swarmColumn struct {
	name string
	of   func(*SwarmCell) string
}

func (r *Report) swarmTables(p *page) {
	share := func(v *float64) string {
		if v == nil {
			return ""
		}
		return fmt.Sprintf("%.1f %%", 100**v)
	}
	quantile := func(name string) func(*SwarmCell) string {
		return func(c *SwarmCell) string {
			if v, ok := c.Transfer.at(name); ok {
				return duration(v)
			}
			return ""
		}
	}
	figure := func(of func(*SwarmCell) *float64, format string) func(*SwarmCell) string {
		return func(c *SwarmCell) string {
			if v := of(c); v != nil {
				return fmt.Sprintf(format, *v)
			}
			return ""
		}
	}
	r.swarmTable(p, []swarmColumn{
		{"trials", func(c *SwarmCell) string {
			if planned := r.planned(c.Cell); uint64(planned) != c.Trials {
				return fmt.Sprintf("%d/%d", c.Trials, planned)
			}
			return whole(c.Trials)
		}},
		{"ok", func(c *SwarmCell) string { return fmt.Sprintf("%d/%d", c.OK, c.Transfers) }},
		{"mean ± sd", func(c *SwarmCell) string { return meanText(c.Mean, c.SD) }},
		{"p50", quantile("p50")},
		{"p99", quantile("p99")},
		{"kbit/s", figure(func(c *SwarmCell) *float64 { return c.Throughput }, "%.0f")},
		{"ratio", figure(func(c *SwarmCell) *float64 { return c.Ratio }, "%.4f")},
		{"p99/p50", figure(func(c *SwarmCell) *float64 {
			if c.Leechers < 2 {
				return nil
			}
			return c.Spread
		}, "%.2f")},
		{"of copy", func(c *SwarmCell) string { return share(c.CopyEfficiency) }},
		{"of bound", func(c *SwarmCell) string { return share(c.BoundEfficiency) }},
	})
	for i := range r.Swarm {
		c := &r.Swarm[i]
		if failed := maps.Clone(c.Statuses); c.OK < c.Transfers {
			delete(failed, schemas.StatusOK)
			p.line("did not succeed, %s: %s", c.Name(), statuses(failed))
		}
	}
	r.lagLine(p)

	p.line("\nmedians after the beginning of a transfer")
	var phases []swarmColumn
	for _, phase := range []struct{ name, title string }{
		{"announce", "announce"},
		{"handshake", "handshake"},
		{"unchoke", "unchoke"},
		{"first_piece", "first piece"},
		{"d50", "50 %"},
		{"d90", "90 %"},
		{"complete", "complete"},
		{"verified", "verified"},
		{"seed_out", "left"},
	} {
		phases = append(phases, swarmColumn{phase.title, func(c *SwarmCell) string {
			if v, ok := c.phase(phase.name).at("p50"); ok {
				return duration(v)
			}
			return ""
		}})
	}
	r.swarmTable(p, phases)
	r.wireTables(p)
}

func (r *Report) planned(cell int) int {
	if cell < len(r.Cells) {
		return r.Cells[cell].Planned
	}
	return 0
}

// lagLine says how late the generator was in the worst of all tasks.
func (r *Report) lagLine(p *page) {
	var worst *Lag
	for i := range r.Cells {
		if l := r.Cells[i].DispatchLag; l != nil && (worst == nil || l.P99 > worst.P99) {
			worst = l
		}
	}
	if worst != nil {
		p.line("dispatch lag of the worst task: p50 %s, p99 %s, max %s", duration(float64(worst.P50)), duration(float64(worst.P99)), duration(float64(worst.Max)))
	}
}

// meanText is mean and deviation in the mean's unit.
func meanText(mean, sd *float64) string {
	if mean == nil {
		return ""
	}
	if sd == nil {
		return duration(*mean)
	}
	number, unit := durationIn(*mean, *mean)
	deviation, _ := durationIn(*sd, *mean)
	return fmt.Sprintf("%s ± %s %s", number, deviation, unit)
}

// swarmTable has a row for each cell and those columns of which any cell has a
// figure.
func (r *Report) swarmTable(p *page, columns []swarmColumn) {
	header := table.Row{"cell"}
	rows := make([]table.Row, len(r.Swarm))
	for i := range r.Swarm {
		rows[i] = table.Row{r.Swarm[i].Name()}
	}
	for _, column := range columns {
		texts := make([]string, len(r.Swarm))
		for i := range r.Swarm {
			texts[i] = column.of(&r.Swarm[i])
		}
		if !slices.ContainsFunc(texts, func(s string) bool { return s != "" }) {
			continue
		}
		header = append(header, column.name)
		for i, text := range texts {
			rows[i] = append(rows[i], cmp.Or(text, "–"))
		}
	}
	p.table(1, header, rows)
}

// pageWidth is how wide a table may be.
const pageWidth = 120

// wireTables show what bytes were for: a row for each class, a column for each
// cell, as many cells side by side as fit.
func (r *Report) wireTables(p *page) {
	cells := []*SwarmCell{}
	totals := map[string]int64{}
	headers := true
	for i := range r.Swarm {
		if c := &r.Swarm[i]; len(c.Wire) > 0 {
			cells = append(cells, c)
			headers = headers && c.HeadersShare != nil
		}
	}
	for _, c := range cells {
		for _, w := range c.Wire {
			totals[w.Class] += w.Bytes
		}
	}
	classes := slices.SortedFunc(maps.Keys(totals), func(a, b string) int {
		return cmp.Or(cmp.Compare(totals[b], totals[a]), cmp.Compare(a, b))
	})
	left := 0
	for _, class := range classes {
		left = max(left, len(class))
	}
	// A figure such as `12.3 MB  97.31 %` and what is between columns.
	const figure, between = 17, 3
	for len(cells) > 0 {
		n, width := 0, left+between+1
		for n < len(cells) {
			width += max(utf8.RuneCountInString(cells[n].Name()), figure) + between
			if n > 0 && width > pageWidth {
				break
			}
			n++
		}
		p.line("\nbytes sent, of all leechers, seeders and trackers, by what they were for")
		wireTable(p, classes, cells[:n])
		cells = cells[n:]
	}
	if len(classes) > 0 && !headers {
		p.line("IP and TCP headers are not in it where other programs use the interfaces too.")
	}
}

func wireTable(p *page, classes []string, cells []*SwarmCell) {
	header := table.Row{"class"}
	for _, c := range cells {
		header = append(header, c.Name())
	}
	var rows []table.Row
	for _, class := range classes {
		row, found := table.Row{class}, false
		for _, c := range cells {
			text := "–"
			if i := slices.IndexFunc(c.Wire, func(w SwarmWire) bool { return w.Class == class }); i >= 0 {
				text, found = fmt.Sprintf("%s %8s", humanBytes(float64(c.Wire[i].Bytes)), percent(c.Wire[i].Share)), true
			}
			row = append(row, text)
		}
		if found {
			rows = append(rows, row)
		}
	}
	p.table(1, header, rows)
}

func (r *Report) writeSwarmCSV(w io.Writer) error {
	phases := swarmPhases()
	columns := []string{"trials_planned", "trials", "leechers", "transfers", "ok", "error_rate", "transfer_mean_ns", "transfer_sd_ns", "transfer_min_ns"}
	columns = append(columns, quantileHeader("transfer")...)
	columns = append(columns, "throughput_mean_kbps", "throughput_sd_kbps", "ratio_mean", "ratio_sd", "spread", "bound_ns", "bound_efficiency",
		"copy_ns", "copy_efficiency", "unattributed", "payload_share", "headers_share", "other_share")
	columns = append(append(columns, quantileHeader(phases...)...), "statuses")
	var first []Value
	if len(r.Swarm) > 0 {
		first = r.Swarm[0].Values
	}
	sheet, err := r.sheet(w, first, columns)
	if err != nil {
		return err
	}
	floats := func(row []string, values ...*float64) []string {
		for _, v := range values {
			text := ""
			if v != nil {
				text = number(*v)
			}
			row = append(row, text)
		}
		return row
	}
	natural := func(v *uint64) string {
		if v == nil {
			return ""
		}
		return whole(*v)
	}
	for i := range r.Swarm {
		c := &r.Swarm[i]
		row := []string{
			strconv.Itoa(r.planned(c.Cell)), whole(c.Trials), whole(uint64(c.Leechers)), whole(c.Transfers), whole(c.OK), number(c.errorRate()),
		}
		row = append(append(floats(row, c.Mean, c.SD), natural(c.Least)), c.Transfer.csv()...)
		row = append(floats(row, c.Throughput, c.ThroughputSD, c.Ratio, c.RatioSD, c.Spread), natural(c.Bound))
		row = append(floats(row, c.BoundEfficiency), natural(c.Copy))
		row = floats(row, c.CopyEfficiency, c.Unattributed, c.PayloadShare, c.HeadersShare, c.OtherShare)
		for _, phase := range phases {
			row = append(row, c.phase(phase).csv()...)
		}
		if err := sheet.row(c.Cell, c.Values, append(row, statuses(c.Statuses))); err != nil {
			return err
		}
	}
	return sheet.end()
}

// swarmPhases are all that a transfer can have.
func swarmPhases() []string {
	return []string{
		"announce", "handshake", "unchoke", "first_piece", "d10", "d20", "d30", "d40", "d50", "d60", "d70", "d80", "d90",
		"last_block", "complete", "verified", "seed_out",
	}
}
