package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/transferlab/transferlab/schemas"
)

// OffloadCell is what was measured of the clips of one cell, over all its
// trials. Times are nanoseconds, shares 0 to 1. A figure is null when nothing
// counts for it.
type OffloadCell struct {
	Cell     int               `json:"cell"`
	Values   []Value           `json:"values"`
	Clips    uint64            `json:"clips"`
	OK       uint64            `json:"ok"`
	Statuses map[string]uint64 `json:"statuses"`

	EndToEnd *Span    `json:"end_to_end"`
	Mean     *float64 `json:"end_to_end_mean_ns"`
	Overhead *Span    `json:"overhead"`
	Detect   *Span    `json:"detect"`

	LocalShare  *float64 `json:"local_share"`
	Unaccounted *float64 `json:"unaccounted"`
	Precision   *float64 `json:"precision"`
	Recall      *float64 `json:"recall"`
	Differing   *float64 `json:"differing"`
	Misjudged   *float64 `json:"misjudged"`

	Stages []OffloadStage `json:"stages"` // in the order in which clips pass them
}

// Span are quantiles of a time, in nanoseconds.
type Span struct {
	Quantiles
	P95 uint64 `json:"p95_ns"`
}

// SpanOf takes the quantiles 0.5, 0.9, 0.95, 0.99, 0.999 and 1; other numbers of
// them give nil.
func SpanOf(q []uint64) *Span {
	if len(q) != 6 {
		return nil
	}
	return &Span{Quantiles: Quantiles{P50: q[0], P90: q[1], P99: q[3], P999: q[4], Max: q[5]}, P95: q[2]}
}

func (s *Span) at(name string) (float64, bool) {
	if s == nil {
		return 0, false
	}
	if name == "p95" {
		return float64(s.P95), true
	}
	return s.Quantiles.at(name)
}

func (s *Span) csv() []string {
	if s == nil {
		return append((*Quantiles)(nil).csv(), "")
	}
	return append(s.Quantiles.csv(), strconv.FormatUint(s.P95, 10))
}

// OffloadStage is what one stage added to the clips that passed it.
type OffloadStage struct {
	Stage string  `json:"stage"` // what the clip was at its end
	Clips uint64  `json:"clips"`
	Mean  float64 `json:"mean_ns"`
	P50   uint64  `json:"p50_ns"`
	P95   uint64  `json:"p95_ns"`
	Max   uint64  `json:"max_ns"`
}

// sourceAverage is the average end to end time of the source experiment's ten
// clips.
const sourceAverage = 6*time.Minute + 55*time.Second

// Name is the cell's values in one line.
func (c *OffloadCell) Name() string { return nameOf(c.Values) }

// Metric returns the figure a threshold names; false when the cell has none.
func (c *OffloadCell) Metric(name string) (float64, bool) {
	if name == "error_rate" {
		return float64(c.Clips-c.OK) / float64(max(c.Clips, 1)), c.Clips > 0
	}
	figures := map[string]*float64{
		"precision": c.Precision, "recall": c.Recall, "local_share": c.LocalShare, "unaccounted": c.Unaccounted, "differing": c.Differing,
	}
	if v, found := figures[name]; found {
		if v == nil {
			return 0, false
		}
		return *v, true
	}
	for prefix, s := range map[string]*Span{"end_to_end_": c.EndToEnd, "overhead_": c.Overhead, "detect_": c.Detect} {
		if quantile, found := strings.CutPrefix(name, prefix); found {
			return s.at(quantile)
		}
	}
	return 0, false
}

func offloadDefinitions() map[string]string {
	return map[string]string{
		"first_byte":  "nothing: clips have stages",
		"end_to_end":  "trigger to result stored, of clips with a detection",
		"overhead":    "clip closed to result stored, without what decoding and inference added",
		"detect":      "what decoding and inference added, one after the other: where they overlap each other or the fetching it counts once",
		"stages":      "what each stage added after the one before it, by the clock of who ended it: recorded (the clip is closed), spooled (on disk and journalled), decided, uploaded (all bytes stored), queued, taken (by a detector), fetched, decoded, inferred, stored (the result), acknowledged (the job), confirmed (the edge has heard of the result)",
		"unaccounted": "|trigger to confirmed by the edge's own clock - sum of the stages| / the former; the worst clip of the cell",
		"local_share": "clips that their edge looked at itself / clips with a detection",
		"precision":   "labels seen in frames that were there / labels seen, over all frames looked at",
		"recall":      "labels seen in frames that were there / labels there, over all frames looked at",
		"differing":   "contents of which two results differ / contents; edge and cloud together",
		"misjudged":   "|predicted - actual| / actual, decision to result, of decisions with a prediction; the median",
		"error_rate":  "clips without a detection / all clips",
	}
}

func (r *Report) offloadTables(p *page) {
	share := func(v *float64) string {
		if v == nil {
			return "–"
		}
		return fmt.Sprintf("%.1f %%", 100**v)
	}
	time := func(s *Span, quantile string) string {
		if v, ok := s.at(quantile); ok {
			return duration(v)
		}
		return "–"
	}
	rows := make([]table.Row, 0, len(r.Offload))
	for i := range r.Offload {
		c := &r.Offload[i]
		mean := "–"
		if c.Mean != nil {
			mean = duration(*c.Mean)
		}
		rows = append(rows, table.Row{
			c.Name(), fmt.Sprintf("%d/%d", c.OK, c.Clips), mean, time(c.EndToEnd, "p50"), time(c.EndToEnd, "p95"), time(c.EndToEnd, "max"),
			time(c.Overhead, "p95"), time(c.Detect, "p50"), share(c.LocalShare), share(c.Precision), share(c.Recall), share(c.Unaccounted),
		})
	}
	p.line("trigger to result stored")
	p.table(1, table.Row{"cell", "ok", "mean", "p50", "p95", "max", "overhead p95", "detect p50", "at edge", "precision", "recall", "unaccounted"}, rows)
	p.line("the source's ten clips took %s on average (8 to 12 min by network)", sourceAverage)
	for i := range r.Offload {
		c := &r.Offload[i]
		if failed := maps.Clone(c.Statuses); c.OK < c.Clips {
			delete(failed, schemas.StatusOK)
			p.line("without a detection, %s: %s", c.Name(), statuses(failed))
		}
		if c.Differing != nil && *c.Differing > 0 {
			p.line("edge and cloud or two looks at the same bytes differ, %s: %s of the contents", c.Name(), share(c.Differing))
		}
		if c.Misjudged != nil {
			p.line("decisions of %s: predicted within %s of what came (median)", c.Name(), share(c.Misjudged))
		}
	}
	r.lagLine(p)
	r.stageTable(p)
}

// stageTable has a row for each stage and a column for each cell: what the stage
// added on average.
func (r *Report) stageTable(p *page) {
	cells := slices.DeleteFunc(slices.Clone(r.Offload), func(c OffloadCell) bool { return len(c.Stages) == 0 })
	for len(cells) > 0 {
		n, width := 0, 16
		for n < len(cells) {
			width += max(len(cells[n].Name()), 19) + 3
			if n > 0 && width > pageWidth {
				break
			}
			n++
		}
		header := table.Row{"stage"}
		for i := range cells[:n] {
			header = append(header, cells[i].Name())
		}
		var rows []table.Row
		for _, stage := range offloadStages() {
			row, found := table.Row{stage}, false
			for i := range cells[:n] {
				text := "–"
				if s := cells[i].stage(stage); s != nil {
					text, found = fmt.Sprintf("%s / %s", duration(s.Mean), duration(float64(s.P95))), true
				}
				row = append(row, text)
			}
			if found {
				rows = append(rows, row)
			}
		}
		p.line("\nwhat each stage added to the clips that passed it, mean / p95")
		p.table(1, header, rows)
		cells = cells[n:]
	}
}

func (c *OffloadCell) stage(name string) *OffloadStage {
	i := slices.IndexFunc(c.Stages, func(s OffloadStage) bool { return s.Stage == name })
	if i < 0 {
		return nil
	}
	return &c.Stages[i]
}

func offloadStages() []string {
	return []string{
		"recorded", "spooled", "decided", "uploaded", "queued", "taken", "fetched", "decoded", "inferred", "stored", "acknowledged", "confirmed",
	}
}

func (r *Report) writeOffloadCSV(w io.Writer) error {
	columns := []string{"clips", "ok", "end_to_end_mean_ns"}
	for _, name := range []string{"end_to_end", "overhead", "detect"} {
		columns = append(append(columns, quantileHeader(name)...), name+"_p95_ns")
	}
	columns = append(columns, "local_share", "unaccounted", "precision", "recall", "differing", "misjudged")
	for _, stage := range offloadStages() {
		columns = append(columns, stage+"_clips", stage+"_mean_ns", stage+"_p95_ns")
	}
	var first []Value
	if len(r.Offload) > 0 {
		first = r.Offload[0].Values
	}
	sheet, err := r.sheet(w, first, append(columns, "statuses"))
	if err != nil {
		return err
	}
	text := func(v *float64) string {
		if v == nil {
			return ""
		}
		return number(*v)
	}
	for i := range r.Offload {
		c := &r.Offload[i]
		row := []string{whole(c.Clips), whole(c.OK), text(c.Mean)}
		row = slices.Concat(row, c.EndToEnd.csv(), c.Overhead.csv(), c.Detect.csv())
		for _, v := range []*float64{c.LocalShare, c.Unaccounted, c.Precision, c.Recall, c.Differing, c.Misjudged} {
			row = append(row, text(v))
		}
		for _, name := range offloadStages() {
			s := cmp.Or(c.stage(name), &OffloadStage{})
			row = append(row, whole(s.Clips), number(s.Mean), whole(s.P95))
		}
		if err := sheet.row(c.Cell, c.Values, append(row, statuses(c.Statuses))); err != nil {
			return err
		}
	}
	return sheet.end()
}
