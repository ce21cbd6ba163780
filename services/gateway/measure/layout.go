package measure

import (
	"fmt"
	"strconv"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/internal/report"
)

// Validate says what an experiment would do.
func Validate(e *schemas.Experiment, seed uint64) (api.Validation, error) {
	p, err := plan.New(e, seed)
	if err != nil {
		return api.Validation{}, err
	}
	return api.Validation{
		Name: e.Name, Workload: e.Workload, Seed: p.Seed, Trials: len(p.Trials), Cells: p.Cells,
		ScheduleHash: p.Hash,
	}, nil
}

// Layout is which cells a run has and which of them each trial is of.
type Layout struct {
	Experiment *schemas.Experiment
	Cells      []LayoutCell
	TrialCell  []uint32 // by trial
}

// LayoutCell is one cell.
type LayoutCell struct {
	Values  []report.Value
	Clients int
	Trials  int // planned
}

// NewLayout derives a run's layout from its file and seed: the plan. Should
// this version plan another schedule than the one the run followed, what the
// scheduler recorded at the end of each trial counts.
func NewLayout(run *schemas.Run, statements []Statement) (*Layout, error) {
	e, err := schemas.ParseExperiment([]byte(run.File))
	if err != nil {
		return nil, fmt.Errorf("read the run's experiment: %w", err)
	}
	cells, err := e.Cells()
	if err != nil {
		return nil, fmt.Errorf("expand the run's matrix: %w", err)
	}
	l := &Layout{Experiment: e}
	trials := 0
	for _, c := range cells {
		cell := LayoutCell{Values: []report.Value{}, Clients: clientsOf(c.Groups), Trials: e.RepeatsOf(c.Values)}
		for _, v := range c.Values {
			cell.Values = append(cell.Values, report.Value{Name: v.Key, Value: v.Value})
		}
		l.Cells = append(l.Cells, cell)
		trials += cell.Trials
	}
	l.TrialCell = make([]uint32, trials)
	p, err := plan.New(e, run.Seed)
	if err != nil {
		return nil, fmt.Errorf("plan the run again: %w", err)
	}
	if p.Hash == run.ScheduleHash {
		for i := range p.Trials {
			l.TrialCell[i] = uint32(p.Trials[i].Cell)
		}
		return l, nil
	}
	const unknown = ^uint32(0)
	for i := range l.TrialCell {
		l.TrialCell[i] = unknown
	}
	for _, s := range statements {
		cell, err := strconv.ParseUint(s.Attrs["cell"], 10, 32)
		if s.Kind == schemas.KindTrial && err == nil && int(s.Trial) < len(l.TrialCell) && int(cell) < len(cells) {
			l.TrialCell[s.Trial] = uint32(cell)
		}
	}
	return l, nil
}

func clientsOf(groups []schemas.Group) int {
	n := 0
	for _, g := range groups {
		n += g.Clients
	}
	return n
}
