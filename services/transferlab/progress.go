package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/transferlab/transferlab/schemas"
)

// progress shows how far a run is: a bar on a terminal, a line now and then
// elsewhere.
type progress struct {
	out   io.Writer
	bars  *mpb.Progress
	bar   *mpb.Bar
	text  string
	last  time.Time
	trial int
	note  string
	word  string // what the workload's operations are called
}

const barSteps = 10_000

func newProgress(ctx context.Context, out io.Writer, run *schemas.Run) *progress {
	p := &progress{out: out, trial: -1, word: schemas.OperationsOf(run.Workload)}
	if isTerminal(out) {
		p.bars = mpb.NewWithContext(ctx, mpb.WithOutput(out), mpb.WithWidth(40))
		p.bar = p.bars.AddBar(barSteps,
			mpb.PrependDecorators(decor.Name(run.Name+" ")),
			mpb.AppendDecorators(decor.Percentage(), decor.Any(func(decor.Statistics) string { return "  " + p.text })))
	}
	return p
}

func (p *progress) update(r schemas.RunProgress) {
	within := 0.0
	if r.Progress.Total > 0 {
		within = min(float64(r.Progress.Done)/float64(r.Progress.Total), 1)
	}
	share := 0.0
	if r.Trials > 0 {
		share = min((float64(r.TrialsDone)+within)/float64(r.Trials), 1)
	}
	parts := []string{fmt.Sprintf("trial %d of %d", min(r.TrialsDone+1, r.Trials), r.Trials)}
	if r.Cell != "" {
		parts = append(parts, r.Cell)
	}
	if r.Attempt > 1 {
		parts = append(parts, fmt.Sprintf("attempt %d", r.Attempt))
	}
	if r.Progress.Total > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d %s", r.Progress.Done, r.Progress.Total, p.word))
	} else if r.Progress.Done > 0 {
		parts = append(parts, fmt.Sprintf("%d %s", r.Progress.Done, p.word))
	}
	if r.Progress.Bytes > 0 {
		parts = append(parts, humanize.Bytes(r.Progress.Bytes))
	}
	if r.Progress.Errors > 0 {
		parts = append(parts, fmt.Sprintf("%d errors", r.Progress.Errors))
	}
	if r.Note != "" {
		parts = append(parts, r.Note)
	}
	text := strings.Join(parts, ", ")
	if p.bar != nil {
		p.text = text
		p.bar.SetCurrent(int64(share * barSteps))
		return
	}
	// A line for every trial and note, and one every few seconds between.
	if r.TrialsDone == p.trial && (r.Note == "" || r.Note == p.note) && time.Since(p.last) < 3*time.Second {
		return
	}
	p.trial, p.note, p.last = r.TrialsDone, r.Note, time.Now()
	fmt.Fprintf(p.out, "%3.0f %%  %s\n", 100*share, text)
}

func (p *progress) end(done bool) {
	if p.bar == nil {
		return
	}
	if done {
		p.bar.SetCurrent(barSteps)
	} else {
		p.bar.Abort(false)
	}
	p.bars.Wait()
}
