package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Outcome is what a run's report says, as far as benchmarks want it.
type Outcome struct {
	Run struct {
		ID    string `json:"id"`
		State string `json:"state"`
	} `json:"run"`
	Verdict  string `json:"verdict"`
	Validity struct {
		Valid   bool `json:"valid"`
		Reasons []struct {
			Code string `json:"code"`
			Text string `json:"text"`
		} `json:"reasons"`
	} `json:"validity"`
	Agents []struct {
		Name string `json:"name"`
	} `json:"agents"`
	Accounting struct {
		Lost       uint64 `json:"events_lost"`
		Duplicated uint64 `json:"events_duplicated"`
		Settled    bool   `json:"settled"`
	} `json:"accounting"`
}

// Reasons are why the run is not valid, in one line.
func (o *Outcome) Reasons() string {
	var out []string
	for _, r := range o.Validity.Reasons {
		out = append(out, r.Code+": "+r.Text)
	}
	return strings.Join(out, "; ")
}

// Run has an experiment done (`transferlab run FILE`) and returns once its rows
// are stored.
func (l *Lab) Run(ctx context.Context, text string) (*Outcome, error) {
	path := filepath.Join(l.logs, "experiment.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("write the experiment: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, l.Binary, "--dir", l.Dir, "run", "--json", path)
	cmd.Stdout, cmd.Stderr = &out, &complaints
	// The exit code tells the verdict; a report is there in any case.
	ended := cmd.Run()
	var o Outcome
	if err := json.Unmarshal(out.Bytes(), &o); err != nil || o.Run.ID == "" {
		return nil, fmt.Errorf("run an experiment: %w\n%s", errors.Join(ended, err), complaints.String())
	}
	if o.Run.State != "done" {
		return nil, fmt.Errorf("run %s ended %s\n%s", o.Run.ID, o.Run.State, complaints.String())
	}
	return &o, nil
}

// SQL asks the lab's database (`transferlab sql`) and returns the answer's rows.
func (l *Lab) SQL(ctx context.Context, query string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, l.Binary, "--dir", l.Dir, "sql", query+" FORMAT TSV")
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("ask the database: %w: %s", err, complaints.String())
	}
	return parseRows(out.String()), nil
}

// parseRows reads tab-separated values.
func parseRows(text string) [][]string {
	var rows [][]string
	for line := range strings.Lines(text) {
		rows = append(rows, strings.Split(strings.TrimRight(line, "\n"), "\t"))
	}
	return rows
}
