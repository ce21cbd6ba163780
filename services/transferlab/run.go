package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/internal/report"
	"github.com/transferlab/transferlab/services/s3loader/examples"
)

// readExperiment reads an experiment file; its faults end the program with the
// code of wrong usage, each under the file's name.
func readExperiment(path string) ([]byte, *schemas.Experiment, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, usage("%s: no such file", path)
		}
		return nil, nil, fmt.Errorf("read experiment: %w", err)
	}
	e, err := schemas.ParseExperiment(data)
	if err != nil {
		return nil, nil, usage("%s:\n%v", path, err)
	}
	return data, e, nil
}

type validateCmd struct {
	File string `arg:"" help:"Experiment file (YAML)."`
	Seed uint64 `help:"Instead of the file's seed."`
}

// Run needs no lab: the same code plans here and there.
func (v *validateCmd) Run(c *cli) error {
	_, e, err := readExperiment(v.File)
	if err != nil {
		return err
	}
	p, err := plan.New(e, v.Seed)
	if err != nil {
		return usage("%s:\n%v", v.File, err)
	}
	cells, err := e.Cells()
	if err != nil {
		return usage("%s:\n%v", v.File, err)
	}
	answer := api.Validation{
		Name: e.Name, Workload: e.Workload, Seed: p.Seed, Trials: len(p.Trials), Cells: len(cells), ScheduleHash: p.Hash,
	}
	if c.JSON {
		return show(os.Stdout, answer)
	}
	fmt.Printf("%s is valid: workload %s, %d cells, %d trials, seed %d, schedule %s\n",
		v.File, e.Workload, len(cells), len(p.Trials), p.Seed, p.Hash)
	return nil
}

type runCmd struct {
	File   string `arg:"" help:"Experiment file (YAML)."`
	Seed   uint64 `help:"Instead of the file's seed."`
	Detach bool   `help:"Don't wait for the end (with a lab that is up)."`
}

func (r *runCmd) Run(ctx context.Context, c *cli) error {
	data, _, err := readExperiment(r.File)
	if err != nil {
		return err
	}
	s, err := c.act(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	if r.Detach && s.lab != nil {
		return usage("--detach: no lab is up that would go on with the run; transferlab up starts one")
	}
	run, err := s.Submit(ctx, data, r.Seed)
	if err != nil {
		return err
	}
	if r.Detach {
		if c.JSON {
			return show(os.Stdout, run)
		}
		fmt.Println(run.ID)
		return nil
	}
	return c.see(ctx, s, run)
}

// see follows a run to its end and prints its report.
func (c *cli) see(ctx context.Context, s *session, run schemas.Run) error {
	say("run %s: %s, %d trials, seed %d, schedule %.16s", run.ID, run.Name, run.Trials, run.Seed, run.ScheduleHash)
	p := newProgress(ctx, os.Stderr, &run)
	ended, err := s.Watch(ctx, run.ID.String(), client.Watcher{Progress: p.update})
	p.end(err == nil && ended.State == schemas.RunDone)
	if err != nil {
		return c.interrupted(ctx, s, run.ID, err)
	}
	switch ended.State {
	case schemas.RunCancelled:
		return fmt.Errorf("run %s was cancelled after %d of %d trials; transferlab resume %s goes on", ended.ID, ended.TrialsDone, ended.Trials, ended.ID)
	case schemas.RunFailed:
		if ended.TrialsDone == 0 && !ended.Invalid {
			return fmt.Errorf("run %s failed: %s", ended.ID, ended.Error)
		}
		say("run %s failed: %s", ended.ID, ended.Error)
	}
	return c.report(ctx, s, ended.ID.String(), report.FormatTable)
}

// leavePatience is how long the end of an interrupted run may take: a cloud
// fleet is gone only when the cloud says so.
const leavePatience = 25 * time.Minute

// interrupted leaves a run that can be resumed: on a lab of its own the run
// would have nobody to go on with it.
func (c *cli) interrupted(ctx context.Context, s *session, id uuid.UUID, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if s.lab == nil {
		return &exitError{code: exitFailure, text: fmt.Sprintf("interrupted; run %s goes on in the lab: transferlab report %s, or cancel it", id, id)}
	}
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), leavePatience)
	defer cancel()
	say("interrupted: ending the trial in work (again to end at once)")
	if _, err := s.Cancel(leave, id.String()); err != nil {
		return fmt.Errorf("cancel run %s: %w", id, err)
	}
	note := ""
	_, err = s.Watch(leave, id.String(), client.Watcher{Progress: func(p schemas.RunProgress) {
		if p.Note != "" && p.Note != note {
			note = p.Note
			say("%s", note)
		}
	}})
	if err != nil {
		return fmt.Errorf("cancel run %s: %w", id, err)
	}
	return &exitError{code: exitFailure, text: fmt.Sprintf("interrupted; transferlab resume %s goes on", id)}
}

type demoCmd struct {
	Seed uint64 `help:"Instead of the file's seed."`
}

func (d *demoCmd) Run(ctx context.Context, c *cli) error {
	data, err := examples.Files.ReadFile("demo.yaml")
	if err != nil {
		return fmt.Errorf("read the demo: %w", err)
	}
	say("starting the embedded lab in %s", c.Dir)
	s, err := c.act(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	run, err := s.Submit(ctx, data, d.Seed)
	if err != nil {
		return err
	}
	return c.see(ctx, s, run)
}

type runsCmd struct {
	Max int `help:"At most so many." default:"20"`
}

func (r *runsCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	page, err := s.Runs(ctx, client.ListOptions{Limit: r.Max})
	if err != nil {
		return err
	}
	if c.JSON {
		return show(os.Stdout, page.Runs)
	}
	for _, run := range page.Runs {
		fmt.Printf("%s  %s  %-10s %3d of %3d trials  %s\n",
			run.ID, run.Created.UTC().Format("2006-01-02 15:04:05"), run.State, run.TrialsDone, run.Trials, run.Name)
	}
	return nil
}

type runRef struct {
	Run string `arg:"" help:"Id of a run, its beginning, or latest."`
}

type cancelCmd struct{ runRef }

func (r *cancelCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.act(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	run, err := s.Cancel(ctx, r.runRef.Run)
	if err != nil {
		return err
	}
	say("run %s is %s", run.ID, run.State)
	return nil
}

type resumeCmd struct{ runRef }

func (r *resumeCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.act(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	run, err := s.Resume(ctx, r.runRef.Run)
	if err != nil {
		return err
	}
	return c.see(ctx, s, run)
}

type reportCmd struct {
	runRef
	Format string `help:"table, json or csv." enum:"table,json,csv" default:"table"`
}

func (r *reportCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return c.report(ctx, s, r.runRef.Run, r.Format)
}

// report prints a run's report; its verdict becomes the exit code.
func (c *cli) report(ctx context.Context, s *session, id, format string) error {
	if c.JSON {
		format = report.FormatJSON
	}
	r, err := s.Report(ctx, id)
	if err != nil {
		return err
	}
	if err := r.Write(os.Stdout, format); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	switch r.Verdict {
	case schemas.VerdictInvalid:
		return &exitError{code: exitInvalid}
	case schemas.VerdictMissed:
		return &exitError{code: exitMissed}
	}
	return nil
}

type compareCmd struct {
	A         string  `arg:"" help:"The run to compare with."`
	B         string  `arg:"" help:"The run to judge."`
	Format    string  `help:"table, json or csv." enum:"table,json,csv" default:"table"`
	MinEffect float64 `help:"Smallest change that matters, as a share." default:"0.05"`
}

func (r *compareCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	comparison, err := s.Compare(ctx, r.A, r.B, client.CompareOptions{MinEffect: r.MinEffect})
	if err != nil {
		return err
	}
	format := r.Format
	if c.JSON {
		format = report.FormatJSON
	}
	return comparison.Write(os.Stdout, format)
}
