// Package reports holds the queries behind reports, as files with ClickHouse's
// own parameters `{name:Type}`: each can be run as it is by any client.
package reports

import (
	"embed"
	"fmt"
)

//go:embed *.sql
var files embed.FS

// Names of the queries.
const (
	Attempts   = "attempts"    // stored events by producer, trial and attempt
	Statements = "statements"  // what agents, scheduler and provisioner said
	Cells      = "cells"       // exact quantiles by cell
	Statuses   = "statuses"    // operations by cell and status
	Elapsed    = "elapsed"     // duration of trials
	Trials     = "trials"      // medians by trial
	Samples    = "samples"     // a sample of operations by cell
	Placements = "placements"  // which agent acted at which site
	ProbePaths = "probe_paths" // what was measured between sites

	SwarmCells  = "swarm_cells"  // what was measured of swarms, by cell
	SwarmPhases = "swarm_phases" // when transfers got how far, by cell
	SwarmWire   = "swarm_wire"   // what bytes were for, by cell

	OffloadCells  = "offload_cells"  // what was measured of clips, by cell
	OffloadStages = "offload_stages" // what each stage added, by cell

	// The three files of the source experiment.
	SwarmSourceResults    = "swarm_source_results"
	SwarmSourceComparison = "swarm_source_comparison"
	SwarmSourceSummary    = "swarm_source_summary"
)

// Query returns the text of a query. Unknown names are a programming error and
// come back as an error.
func Query(name string) (string, error) {
	text, err := files.ReadFile(name + ".sql")
	if err != nil {
		return "", fmt.Errorf("report query %s: %w", name, err)
	}
	return string(text), nil
}
