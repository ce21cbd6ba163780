package report

import "time"

// Verdicts of a comparison: what B is, seen from A.
const (
	Better       = "better"
	Worse        = "worse"
	NoDifference = "no difference" // any difference is below the minimal effect
	Underpowered = "underpowered"  // too little data to say
)

// Comparison of run B with run A, cell by cell.
type Comparison struct {
	A         Compared  `json:"a"`
	B         Compared  `json:"b"`
	Generated time.Time `json:"generated"`
	// Alpha is the level of the tests after correction, MinEffect the smallest
	// relative difference of interest (0.05 is 5 %).
	Alpha      float64           `json:"alpha"`
	MinEffect  float64           `json:"min_effect"`
	Confidence float64           `json:"confidence"`
	Notes      []string          `json:"notes"`
	Results    []Difference      `json:"results"`
	Methods    map[string]string `json:"methods"`
}

// Compared is one side of a comparison.
type Compared struct {
	Run     Run      `json:"run"`
	Valid   bool     `json:"valid"`
	Reasons []Reason `json:"reasons"` // why it is not
}

// Difference in one metric of one cell.
type Difference struct {
	Values []Value `json:"values"`
	// Metric is corrected, service, first_byte, rtt, transfer, first_piece (lower
	// is better) or throughput (higher is better).
	Metric string `json:"metric"`
	Unit   string `json:"unit"`        // ns or bytes/s
	Over   string `json:"sample_unit"` // trials or requests: what was resampled
	NA     int    `json:"n_a"`
	NB     int    `json:"n_b"`
	// Medians of each side.
	MedianA float64 `json:"median_a"`
	MedianB float64 `json:"median_b"`
	// Ratio is MedianB / MedianA with its bootstrap interval; null when
	// undefined.
	Ratio     *float64 `json:"ratio"`
	RatioLow  *float64 `json:"ratio_low"`
	RatioHigh *float64 `json:"ratio_high"`
	// Shift is the Hodges–Lehmann estimate of B − A in the metric's unit.
	Shift float64 `json:"shift"`
	// CliffsDelta is P(b > a) − P(b < a), from −1 to 1.
	CliffsDelta float64 `json:"cliffs_delta"`
	// P of the two-sided Mann–Whitney test, PHolm corrected over all tests of
	// the comparison.
	P       float64 `json:"p"`
	PHolm   float64 `json:"p_holm"`
	Verdict string  `json:"verdict"`
	Caveat  string  `json:"caveat,omitempty"`
}

// Name is the cell's values in one line.
func (d *Difference) Name() string { return nameOf(d.Values) }
