package schemas

import "slices"

// workload is what the rest of the program needs to know of one.
type workload struct {
	name       string
	service    string // that executes it
	kind       string // of the events that are its timed operations
	operations string // what people call these
	// latencies and others are the metrics of its report that thresholds may
	// name; each latency stands for its quantiles.
	latencies, others []string
	// outlivesAgents: a trial goes on when one of its agents is gone.
	outlivesAgents bool
	// section is the part of an experiment that is the workload's own; nil when
	// the file has none.
	section func(*Experiment) section
}

// section is what every workload's section can do.
type section interface {
	SetDefaults()
	// check reports faults of the values under the path of the section.
	check(at string) faultList
	// checkGroups reports faults that show only beside the groups that take part.
	checkGroups(at string, groups []Group) faultList
}

func workloads() []workload {
	return []workload{
		{
			name: WorkloadS3, service: "s3-loader", kind: KindRequest, operations: "requests",
			latencies: []string{"corrected", "service", "first_byte"},
			others:    []string{"error_rate", "requests_per_s", "bytes_per_s"},
			section:   func(e *Experiment) section { return given(e.S3) },
		},
		{
			// To a mesh an agent that is gone is a finding.
			name: WorkloadProbe, service: "prober", kind: KindProbe, operations: "probes", outlivesAgents: true,
			latencies: []string{"rtt", "forward", "backward"},
			others:    []string{"loss", "duplicated", "reordered", "jitter"},
			section:   func(e *Experiment) section { return given(e.Probe) },
		},
		{
			name: WorkloadSwarm, service: "swarm-runner", kind: KindTransfer, operations: "transfers",
			latencies: []string{"transfer", "first_piece"},
			others:    []string{"error_rate", "ratio", "spread", "copy_efficiency", "bound_efficiency", "unattributed"},
			section:   func(e *Experiment) section { return given(e.Swarm) },
		},
		{
			name: WorkloadOffload, service: "edge-runner", kind: KindClip, operations: "clips",
			latencies: []string{"end_to_end", "overhead", "detect"},
			others:    []string{"end_to_end_p95", "overhead_p95", "detect_p95", "error_rate", "precision", "recall", "local_share", "unaccounted", "differing"},
			section:   func(e *Experiment) section { return given(e.Offload) },
		},
	}
}

// given keeps a section that is not there from becoming an interface that is.
func given[T any, P interface {
	*T
	section
}](s P) section {
	if s == nil {
		return nil
	}
	return s
}

func find(name string) workload {
	all := workloads()
	i := slices.IndexFunc(all, func(w workload) bool { return w.name == name })
	if i < 0 {
		return workload{}
	}
	return all[i]
}

// Workloads lists what an experiment can measure.
func Workloads() []string {
	var names []string
	for _, w := range workloads() {
		names = append(names, w.name)
	}
	return names
}

// KindOf is the kind of the events that are a workload's timed operations.
func KindOf(workload string) string { return find(workload).kind }

// ServiceOf is the name of the service that executes a workload.
func ServiceOf(workload string) string { return find(workload).service }

// OperationsOf is what a workload's timed operations are called.
func OperationsOf(workload string) string { return find(workload).operations }

// OutlivesAgents reports whether a trial of the workload goes on when one of its
// agents is gone: to a mesh that is a finding, to a load it is a failure.
func OutlivesAgents(workload string) bool { return find(workload).outlivesAgents }

// Section is the workload's own part of the experiment: a pointer to a struct,
// or nil.
func (e *Experiment) Section() any {
	of := find(e.Workload).section
	if of == nil {
		return nil
	}
	// An interface without a value would not be nil in another interface.
	if s := of(e); s != nil {
		return s
	}
	return nil
}

// thresholdMetrics are the metrics of a workload's report that thresholds may
// name.
func thresholdMetrics(workload string) []string {
	w := find(workload)
	var names []string
	for _, latency := range w.latencies {
		for _, q := range []string{"p50", "p90", "p99", "p999", "max"} {
			names = append(names, latency+"_"+q)
		}
	}
	return append(names, w.others...)
}
