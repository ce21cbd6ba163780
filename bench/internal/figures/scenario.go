package figures

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Scenario is one of a benchmark's measurements.
type Scenario struct {
	Name string
	// Run measures, and puts what it finds on the sheet of [Sheet.Measure].
	Run func(ctx context.Context) error
}

// Measure prints what is fixed and runs the scenarios whose names are chosen, in
// their order, each with the sheet emptied for it. One that fails is noted and
// keeps none of the others from running, unless ctx has ended; the error is that
// of all of them. The directory out, if any, receives NAME.txt of each and
// conditions.txt, as benchstat reads them, after every scenario: those of a
// benchmark that is ended early are there.
func (s *Sheet) Measure(ctx context.Context, fixed []Condition, scenarios []Scenario, chosen []string, out string) error {
	for _, c := range fixed {
		fmt.Fprintf(s.W, "%s: %s\n", c.Name, c.Value)
	}
	all := slices.Clone(fixed)
	var faults []error
	for _, m := range scenarios {
		if !slices.Contains(chosen, m.Name) {
			continue
		}
		before := Load()
		*s = Sheet{W: s.W, Scenario: m.Name, Notes: []Condition{
			{m.Name + "-began", time.Now().UTC().Format(time.RFC3339)},
			{m.Name + "-load-before", before},
		}}
		fmt.Fprintln(os.Stderr, m.Name)
		fmt.Fprintf(s.W, "\n== %s\n", m.Name)
		if err := m.Run(ctx); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", m.Name, err))
			if ctx.Err() != nil {
				break
			}
			fmt.Fprintf(s.W, "failed: %v\n", err)
			s.Note("failed", err.Error())
		}
		s.Notes = append(s.Notes, Condition{m.Name + "-load-after", Load()})
		fmt.Fprintf(s.W, "load average before: %s, after: %s\n", before, Load())
		all = append(all, s.Notes...)
		if out == "" {
			continue
		}
		if err := WriteRows(filepath.Join(out, m.Name+".txt"), append(slices.Clone(fixed), s.Notes...), s.Rows); err != nil {
			return err
		}
		if err := WriteRows(filepath.Join(out, "conditions.txt"), all, nil); err != nil {
			return err
		}
	}
	return errors.Join(faults...)
}
