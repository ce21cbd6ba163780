package edgerunner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/edge"
	"github.com/transferlab/transferlab/edge/footage"
	"github.com/transferlab/transferlab/edge/uplink"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/plan"
)

// job is one prepared task.
type job struct {
	log     *slog.Logger
	cfg     Config
	conn    *bus.Conn
	task    *schemas.Task
	section *schemas.Offload
	made    []footage.Clip
	dir     string
	players []*player
	direct  *uplink.Client // to the lab without a relay

	mu       sync.Mutex
	lag      *hdrhistogram.Histogram
	progress schemas.Progress
	left     int
	done     chan struct{} // closed when every clip has been told of
	record   func(*schemas.Event) error
	failed   error // the first event that could not be recorded
}

// Run implements agent.Job: it ends when every clip has been told of, or patience
// has.
func (j *job) Run(ctx context.Context, start agent.Start, record func(*schemas.Event) error, progress func(schemas.Progress)) (schemas.TaskResult, error) {
	j.lag, j.record, j.done = hdrhistogram.New(1000, int64(time.Hour), 3), record, make(chan struct{})
	last := start.At
	for _, p := range j.players {
		triggers := plan.Triggers(j.task.Seed, j.task.Trial, p.client.Index, j.section)
		p.source = &schedule{
			clips:  clips(p.name, start.At, triggers, j.made),
			lag:    j.late,
			failed: func(c *planned, err error) { j.lose(p, c, schemas.StatusError, err) },
		}
		if !j.section.Recorded {
			p.source.length = time.Duration(j.section.Length)
		}
		for _, c := range p.source.clips {
			p.clips[c.id] = c
			if c.at.After(last) {
				last = c.at
			}
		}
		j.left += len(p.source.clips)
	}
	j.progress.Total = uint64(j.left)
	running, stop := context.WithDeadline(ctx, last.Add(time.Duration(j.section.Patience)))
	defer stop()
	reporting := j.tick(running, progress)

	parts, running := errgroup.WithContext(running)
	if j.section.Backlog > 0 {
		parts.Go(func() error { return j.others(running) })
	}
	for _, p := range j.players {
		if p.relay != nil && j.section.OutageEvery > 0 {
			p.relay.outages(running, time.Duration(j.section.OutageEvery), time.Duration(j.section.OutageFor))
		}
		p.station = edge.Assemble(j.config(p), j.parts(p))
		parts.Go(func() error { return p.station.Run(running) })
	}
	parts.Go(func() error {
		select {
		case <-running.Done():
		case <-j.done:
			stop()
		}
		return nil
	})
	err := parts.Wait()
	stop()
	<-reporting
	progress(j.soFar())
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	for _, p := range j.players {
		for _, c := range p.source.clips {
			// Whoever has been told of is no longer there.
			why := errors.New("no result within the trial's patience")
			if ctx.Err() != nil {
				why = context.Cause(ctx)
			}
			j.lose(p, c, schemas.StatusLost, why)
		}
	}
	return j.result(), errors.Join(err, j.failed)
}

func (j *job) config(p *player) edge.Config {
	o := j.section
	cfg := edge.DefaultConfig()
	cfg.Name = j.cfg.Account
	cfg.Policy.Kind, cfg.Policy.Behind = o.Policy, o.Behind
	cfg.Detection = o.Detection()
	cfg.Local.Enabled, cfg.Local.Slots = p.vision != nil, o.LocalSlots
	return cfg
}

func (j *job) parts(p *player) edge.Parts {
	parts := edge.Parts{
		Queue: p.name, Took: p.took, Source: p.source, Spool: p.spool, Lab: p.lab, Bus: j.conn, Log: j.log.With("edge", p.client.Index),
		Tell: func(ctx context.Context, o *schemas.ClipOutcome) error { return j.told(ctx, p, o) },
	}
	if p.vision != nil {
		parts.Detector = p.vision
	}
	return parts
}

func (j *job) late(d time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	_ = j.lag.RecordValue(max(0, min(int64(d), j.lag.HighestTrackableValue())))
}

// told records what became of a clip, with how right its result is.
func (j *job) told(ctx context.Context, p *player, o *schemas.ClipOutcome) error {
	j.mu.Lock()
	c, mine := p.clips[o.Clip.ID]
	j.mu.Unlock()
	if !mine {
		return nil
	}
	e := o.Event()
	if o.Status == schemas.StatusOK {
		seen, err := j.direct.Detections(ctx, o.Clip.ID)
		if err != nil {
			return fmt.Errorf("read the result of clip %s: %w", o.Clip.ID, err)
		}
		score := footage.Score(*c.clip, seen.Frames, truthMargin)
		for _, count := range []struct {
			key string
			n   int
		}{{"tp", score.Frames.Found}, {"fp", score.Frames.False}, {"fn", score.Frames.Missed}} {
			e.Attrs = append(e.Attrs, schemas.Attr{Key: count.key, Value: strconv.Itoa(count.n)})
		}
	}
	j.finish(p, c, e)
	return nil
}

// truthMargin is how near a change of what a clip shows a frame may be and still
// count: whether something that is coming in is there is a matter of taste.
const truthMargin = 200 * time.Millisecond

// lose records a clip that got no result, unless it has been told of.
func (j *job) lose(p *player, c *planned, status string, why error) {
	now := time.Now()
	p.source.mu.Lock()
	begun := c.begun
	p.source.mu.Unlock()
	if begun.IsZero() {
		begun = now
		if status == schemas.StatusLost && now.Before(c.at) {
			status = schemas.StatusCancelled
		}
	}
	o := schemas.ClipOutcome{
		Clip: schemas.Clip{ID: c.id, Size: c.clip.Size, SHA256: c.clip.SHA256}, Trigger: begun, Total: now.Sub(begun),
		Policy: j.section.Policy, Status: status, Error: why.Error(),
	}
	j.finish(p, c, o.Event())
}

// finish records a clip's event once.
func (j *job) finish(p *player, c *planned, e *schemas.Event) {
	j.mu.Lock()
	if _, open := p.clips[c.id]; !open {
		j.mu.Unlock()
		return
	}
	delete(p.clips, c.id)
	j.mu.Unlock()
	e.Run, e.Trial, e.Attempt = j.task.Run, j.task.Trial, j.task.Attempt
	e.Service, e.Site, e.Agent = ServiceName, p.client.Site, j.task.Agent
	// The trigger by plan: how late it came is on us.
	e.Wait = max(0, e.Intended.Sub(c.at))
	e.Intended = c.at
	e.Attrs = append(e.Attrs, schemas.Attr{Key: "client", Value: strconv.Itoa(p.client.Index)},
		schemas.Attr{Key: "group", Value: p.client.Group}, schemas.Attr{Key: "scene", Value: c.clip.Scene})
	err := j.record(e)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil && j.failed == nil {
		j.failed = fmt.Errorf("record clip %s: %w", c.id, err)
	}
	j.progress.Done++
	if e.Status == schemas.StatusOK {
		j.progress.Bytes += e.Bytes
	} else {
		j.progress.Errors++
	}
	if j.left--; j.left == 0 {
		close(j.done)
	}
}

// tick shows progress until ctx ends.
func (j *job) tick(ctx context.Context, progress func(schemas.Progress)) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		every := time.NewTicker(time.Second)
		defer every.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-every.C:
				progress(j.soFar())
			}
		}
	}()
	return ended
}

func (j *job) soFar() schemas.Progress {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.progress
}

func (j *job) result() schemas.TaskResult {
	j.mu.Lock()
	defer j.mu.Unlock()
	return schemas.TaskResult{
		Issued: j.progress.Done, Bytes: j.progress.Bytes, Errors: j.progress.Errors,
		LagP50: time.Duration(j.lag.ValueAtQuantile(50)), LagP99: time.Duration(j.lag.ValueAtQuantile(99)), LagMax: time.Duration(j.lag.Max()),
	}
}

// queueOthers queues clips that are nobody's of the trial.
func (j *job) queueOthers(ctx context.Context) error {
	for i := range j.section.Backlog {
		if err := j.queue(ctx, j.other(i), &j.made[i%len(j.made)]); err != nil {
			return fmt.Errorf("queue the backlog: %w", err)
		}
	}
	return nil
}

func (j *job) other(i int) string {
	return fmt.Sprintf("other-%s-%d-%d-%s-%d", j.task.Run, j.task.Trial, j.task.Attempt, bus.Token(j.task.Agent), i)
}

// others waits for the results of these clips: what they leave behind would be in
// the next trial's way.
func (j *job) others(ctx context.Context) error {
	open := map[string]bool{}
	for i := range j.section.Backlog {
		open[j.other(i)] = true
	}
	for len(open) > 0 {
		var ids []string
		for id := range open {
			ids = append(ids, id)
		}
		said, err := j.direct.Confirm(ctx, ids)
		if err != nil {
			return nil // the trial is over
		}
		for _, s := range said.Ended {
			delete(open, s.Clip.ID)
		}
		for _, id := range said.Unknown {
			delete(open, id)
		}
	}
	return nil
}

func (j *job) queue(ctx context.Context, id string, c *footage.Clip) error {
	f, err := os.Open(c.Path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	clip := schemas.Clip{ID: id, Size: c.Size, SHA256: c.SHA256, Type: c.Type, Trigger: time.Now(), Length: c.Length, Detection: j.section.Detection()}
	_, err = j.direct.Upload(ctx, clip, f, uplink.Progress{}, nil)
	return err
}
