// Package report holds what a report and a comparison say, and turns them into
// JSON, CSV and text. The figures are computed by the gateway; everything here
// works on finished documents, so that the command line renders what it got
// over HTTP exactly as the gateway would.
package report

import (
	"maps"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

// Report is what a run measured, and whether it may be
// believed. Times are nanoseconds, sizes bytes, rates per second.
type Report struct {
	Run       Run       `json:"run"`
	Generated time.Time `json:"generated"`
	// Verdict is held, missed or invalid; running as long as the run has not
	// ended.
	Verdict  string   `json:"verdict"`
	Validity Validity `json:"validity"`
	// Notes are what a reader should know that makes no figure wrong.
	Notes      []string    `json:"notes,omitempty"`
	Versions   Versions    `json:"versions"`
	Machine    Machine     `json:"machine"`
	Agents     []Agent     `json:"agents"`
	Placements []Placement `json:"placements"`
	// Emulated is set when an agent stood in for a site it is not at: then the
	// figures say nothing about the distance between sites.
	Emulated   bool       `json:"emulated"`
	Accounting Accounting `json:"accounting"`
	Cells      []Cell     `json:"cells"`
	// Paths and Ratios are of the probe workload.
	Paths  []Path  `json:"paths,omitempty"`
	Ratios []Ratio `json:"ratios,omitempty"`
	// Swarm is of the swarm workload: one for each cell.
	Swarm []SwarmCell `json:"swarm,omitempty"`
	// Offload is of the offload workload: one for each cell.
	Offload []OffloadCell `json:"offload,omitempty"`
	// Network is what was measured of a network made for the run.
	Network     []schemas.PlaceCheck `json:"network,omitempty"`
	Thresholds  []Threshold          `json:"thresholds"`
	Definitions map[string]string    `json:"definitions"`
}

// VerdictRunning is the verdict on a run that has not ended.
const VerdictRunning = "running"

// Run is the head of a run's document.
type Run struct {
	ID           uuid.UUID `json:"id"`
	Name         string    `json:"name"`
	Workload     string    `json:"workload"`
	Seed         uint64    `json:"seed"`
	ScheduleHash string    `json:"schedule_hash"`
	State        string    `json:"state"`
	Error        string    `json:"error,omitempty"`
	Recurring    string    `json:"recurring,omitempty"`
	Created      time.Time `json:"created"`
	Started      time.Time `json:"started,omitzero"`
	Finished     time.Time `json:"finished,omitzero"`
	Trials       int       `json:"trials"`
	TrialsDone   int       `json:"trials_done"`
	// Attempts beyond the first of each trial; only the last of a trial counts.
	Retried int `json:"retried_attempts"`
}

// RunOf takes the head of a run's document.
func RunOf(r *schemas.Run) Run {
	return Run{
		ID: r.ID, Name: r.Name, Workload: r.Workload, Seed: r.Seed, ScheduleHash: r.ScheduleHash, State: r.State, Error: r.Error,
		Recurring: r.Recurring, Created: r.Created, Started: r.Started, Finished: r.Finished, Trials: r.Trials, TrialsDone: r.TrialsDone,
	}
}

// Validity says whether the run was healthy. A run that was not is INVALID: its
// figures are shown and mean nothing.
type Validity struct {
	Valid   bool     `json:"valid"`
	Reasons []Reason `json:"reasons"`
}

// Reasons of invalidity.
const (
	ReasonTrials       = "trials"      // a trial failed, is missing or was cancelled
	ReasonLost         = "events_lost" // an event recorded by an agent is not stored
	ReasonDuplicated   = "events_duplicated"
	ReasonUnaccounted  = "requests_unaccounted" // requests issued are not requests stored
	ReasonDispatchLag  = "dispatch_lag"         // our own generator sent late
	ReasonClock        = "clock"                // clocks of several agents are too uncertain
	ReasonGeneratorCPU = "generator_cpu"
	ReasonCapture      = "capture_off" // events were dropped on purpose
	ReasonAgentGone    = "agent_gone"  // an agent disappeared in the middle
	ReasonNetwork      = "network"     // the network made for the run was not as declared
)

// Reason is one thing that was not right.
type Reason struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// Versions of the programs that took part.
type Versions struct {
	Run        string `json:"run"`     // of the scheduler that planned it
	Gateway    string `json:"gateway"` // of the program that computed the report
	ClickHouse string `json:"clickhouse"`
}

// Machine is where the report was computed: in a lab of one process, where
// everything ran.
type Machine struct {
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	CPUs     int    `json:"cpus"`
	CPUModel string `json:"cpu_model,omitempty"`
	Kernel   string `json:"kernel,omitempty"`
}

// Agent is one that took part. Version and CPUs are known only while it is
// present.
type Agent struct {
	Name    string `json:"name"`
	Site    string `json:"site,omitempty"` // its own; * stands in for any
	Version string `json:"version,omitempty"`
	CPUs    int    `json:"cpus,omitempty"`
	// CPU is the largest share of its machine the agent's process used.
	CPU         float64 `json:"cpu"`
	ClockOffset int64   `json:"clock_offset_ns"`
	ClockBound  int64   `json:"clock_bound_ns"`
}

// Placement says which agent stood for a group in the last trial.
type Placement struct {
	Group    string `json:"group"`
	Site     string `json:"site"`
	Agent    string `json:"agent"`
	Emulated bool   `json:"emulated"`
}

// Accounting is whether every event is where it should be: over the last
// attempts of all trials.
type Accounting struct {
	Issued     uint64 `json:"requests_issued"`
	Requests   uint64 `json:"requests_stored"`
	Recorded   uint64 `json:"events_recorded"`
	Stored     uint64 `json:"events_stored"`
	Lost       uint64 `json:"events_lost"`
	Duplicated uint64 `json:"events_duplicated"`
	// Settled is false when events were still missing at the end of the time a
	// report waits for them.
	Settled bool `json:"settled"`
}

// Value is one axis's value of a cell.
type Value struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Cell is one combination of the matrix, over all its trials.
type Cell struct {
	Index   int     `json:"cell"`
	Values  []Value `json:"values"`
	Planned int     `json:"trials_planned"`
	Trials  int     `json:"trials"`
	Clients int     `json:"clients"`

	Requests uint64 `json:"requests"`
	OK       uint64 `json:"ok"`
	Bytes    uint64 `json:"bytes"` // of successful requests
	// Elapsed is the sum over trials of the time from the common start to the
	// last completion.
	Elapsed     int64   `json:"elapsed_ns"`
	BytesPerS   float64 `json:"bytes_per_s"`
	RequestsPer float64 `json:"requests_per_s"` // successful ones

	Errors    uint64            `json:"errors"`
	ErrorRate float64           `json:"error_rate"`
	Statuses  map[string]uint64 `json:"statuses"`

	// Latencies are null when no request succeeded.
	Corrected *Quantiles `json:"corrected"`
	Service   *Quantiles `json:"service"`
	FirstByte *Quantiles `json:"first_byte"`
	// Wait is intended → sent of all requests: our lateness and waiting for a
	// free connection.
	Wait *Quantiles `json:"wait"`
	// DispatchLag is how late our own generator was, by its own account: the
	// worst of the tasks.
	DispatchLag *Lag `json:"dispatch_lag"`
}

// Name is the cell's values in one line, `size=1MB wait=2s`.
func (c *Cell) Name() string { return nameOf(c.Values) }

func nameOf(values []Value) string {
	if len(values) == 0 {
		return "all"
	}
	parts := make([]string, len(values))
	for i, v := range values {
		parts[i] = v.Name + "=" + v.Value
	}
	return strings.Join(parts, " ")
}

// Quantiles of a latency, in nanoseconds.
type Quantiles struct {
	P50  uint64 `json:"p50_ns"`
	P90  uint64 `json:"p90_ns"`
	P99  uint64 `json:"p99_ns"`
	P999 uint64 `json:"p999_ns"`
	Max  uint64 `json:"max_ns"`
}

// at returns the quantile with a threshold's name for it.
func (q *Quantiles) at(name string) (float64, bool) {
	if q == nil {
		return 0, false
	}
	switch name {
	case "p50":
		return float64(q.P50), true
	case "p90":
		return float64(q.P90), true
	case "p99":
		return float64(q.P99), true
	case "p999":
		return float64(q.P999), true
	case "max":
		return float64(q.Max), true
	}
	return 0, false
}

// Lag is the generator's lateness, in nanoseconds.
type Lag struct {
	P50 uint64 `json:"p50_ns"`
	P99 uint64 `json:"p99_ns"`
	Max uint64 `json:"max_ns"`
}

// Metric returns the figure a threshold names (`corrected_p99`, `error_rate`,
// …); false when the cell has none.
func (c *Cell) Metric(name string) (float64, bool) {
	switch name {
	case "error_rate":
		return c.ErrorRate, c.Requests > 0
	case "requests_per_s":
		return c.RequestsPer, c.Elapsed > 0
	case "bytes_per_s":
		return c.BytesPerS, c.Elapsed > 0
	}
	for prefix, q := range map[string]*Quantiles{"corrected_": c.Corrected, "service_": c.Service, "first_byte_": c.FirstByte} {
		if quantile, found := strings.CutPrefix(name, prefix); found {
			return q.at(quantile)
		}
	}
	return 0, false
}

// Threshold is one condition of the file on one cell.
type Threshold struct {
	Metric string   `json:"metric"`
	Cell   *int     `json:"cell"` // null when no cell matches
	Values []Value  `json:"values"`
	Min    *float64 `json:"min"`
	Max    *float64 `json:"max"`
	// Observed is null when the cell has no such figure; then the threshold is
	// missed.
	Observed *float64 `json:"observed"`
	Unit     string   `json:"unit"` // ns, bytes/s, requests/s, ratio (a share) or number
	Held     bool     `json:"held"`
	Text     string   `json:"text"`
}

// UnitOf is the unit of a threshold's metric.
func UnitOf(metric string) string {
	switch metric {
	case "error_rate", "loss", "duplicated", "reordered", "copy_efficiency", "bound_efficiency", "unattributed",
		"precision", "recall", "local_share", "unaccounted", "differing":
		return "ratio"
	case "ratio", "spread":
		return "number"
	case "requests_per_s":
		return "requests/s"
	case "bytes_per_s":
		return "bytes/s"
	}
	return "ns"
}

// Definitions say how the figures of a workload are computed.
func Definitions(workload string) map[string]string {
	definitions := map[string]string{
		"quantile":       "the sample at rank floor(p*n), counted from 0 in ascending order, of all n samples of the cell: no interpolation, no sketch (ClickHouse quantileExact); max is the largest sample",
		"corrected":      "intended start to completion of successful requests: waiting in our own queue counts (no coordinated omission)",
		"service":        "sent to completion of successful requests",
		"first_byte":     "sent to first byte of the answer, of successful requests that had one",
		"wait":           "intended start to sent, of all requests",
		"dispatch_lag":   "how late the generator itself sent, by each task's own account; the worst task of the cell",
		"elapsed":        "common start of the trial to the last completion of any agent, summed over the cell's trials",
		"bytes_per_s":    "payload of successful requests / elapsed",
		"requests_per_s": "successful requests / elapsed",
		"error_rate":     "requests that did not succeed / all requests",
		"attempts":       "only the last attempt of each trial counts",
	}
	maps.Copy(definitions, formOf(workload).definitions())
	return definitions
}
