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
	Attempts   = "attempts"      // stored events by producer, trial and attempt
	Statements = "statements"    // what agents and scheduler said of tasks and trials
	S3Cells    = "s3_cells"      // exact quantiles by cell
	S3Statuses = "s3_statuses"   // requests by cell and status
	S3Elapsed  = "s3_elapsed"    // duration of trials
	S3Trials   = "s3_trials"     // medians by trial
	S3Samples  = "s3_samples"    // a sample of requests by cell
	Placements = "s3_placements" // which agent acted at which site
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
