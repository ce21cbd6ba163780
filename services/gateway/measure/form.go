package measure

import (
	"context"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/report"
)

// form is what a workload's report has of its own.
type form struct {
	// measure computes what comes after the cells.
	measure func(*builder, context.Context, *Source) error
	// subjects are what thresholds are held against.
	subjects func(*report.Report) []subject
}

// subject is what a threshold is about: a cell, or a pair of sites in it.
type subject struct {
	cell   int
	where  []report.Value
	metric func(name string) (float64, bool)
}

func formOf(workload string) form {
	switch workload {
	case schemas.WorkloadProbe:
		return form{(*builder).measurePaths, func(r *report.Report) []subject {
			return subjects(r.Paths, func(p *report.Path) subject { return subject{p.Cell, p.Where(), p.Metric} })
		}}
	case schemas.WorkloadSwarm:
		return form{(*builder).measureSwarm, func(r *report.Report) []subject {
			return subjects(r.Swarm, func(c *report.SwarmCell) subject { return subject{c.Cell, c.Values, c.Metric} })
		}}
	case schemas.WorkloadOffload:
		return form{(*builder).measureOffload, func(r *report.Report) []subject {
			return subjects(r.Offload, func(c *report.OffloadCell) subject { return subject{c.Cell, c.Values, c.Metric} })
		}}
	}
	return form{func(*builder, context.Context, *Source) error { return nil }, func(r *report.Report) []subject {
		return subjects(r.Cells, func(c *report.Cell) subject { return subject{c.Index, c.Values, c.Metric} })
	}}
}

func subjects[T any](all []T, of func(*T) subject) []subject {
	list := make([]subject, len(all))
	for i := range all {
		list[i] = of(&all[i])
	}
	return list
}
