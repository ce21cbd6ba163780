package edgerunner

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/transferlab/transferlab/edge/camera"
	"github.com/transferlab/transferlab/edge/footage"
	"github.com/transferlab/transferlab/services/internal/plan"
)

// planned is one clip that an edge will record.
type planned struct {
	id   string
	at   time.Time // of the trigger
	clip *footage.Clip
	// begun is when the trigger really came, once begun is known.
	begun time.Time
}

// schedule is a camera that sees what the plan says, when the plan says so.
type schedule struct {
	clips  []*planned
	length time.Duration // of a recording; 0: the clip is there at once
	mu     sync.Mutex
	lag    func(time.Duration)
	failed func(p *planned, err error)
}

// Run implements [camera.Source]: clips overlap when triggers come faster than
// clips end.
func (s *schedule) Run(ctx context.Context, sink camera.Sink) error {
	var recordings sync.WaitGroup
	defer recordings.Wait()
	for _, p := range s.clips {
		if err := sleepUntil(ctx, p.at); err != nil {
			return nil
		}
		recordings.Go(func() {
			if err := s.record(ctx, sink, p); err != nil && ctx.Err() == nil {
				s.failed(p, err)
			}
		})
	}
	return nil
}

// chunks of a recording: a camera gives its bytes as they come.
const chunkEvery = 100 * time.Millisecond

func (s *schedule) record(ctx context.Context, sink camera.Sink, p *planned) error {
	begun := time.Now()
	s.mu.Lock()
	p.begun = begun
	s.mu.Unlock()
	s.lag(begun.Sub(p.at))
	data, err := os.ReadFile(p.clip.Path)
	if err != nil {
		return fmt.Errorf("read the clip to record: %w", err)
	}
	w, err := sink.Begin(ctx, camera.Start{ID: p.id, Trigger: begun, Type: p.clip.Type})
	if err != nil {
		return fmt.Errorf("begin clip %s: %w", p.id, err)
	}
	chunks := max(1, int(s.length/chunkEvery))
	for i := range chunks {
		from, to := len(data)*i/chunks, len(data)*(i+1)/chunks
		if err := sleepUntil(ctx, begun.Add(s.length*time.Duration(i+1)/time.Duration(chunks))); err != nil {
			return w.Abort()
		}
		if _, err := w.Write(data[from:to]); err != nil {
			_ = w.Abort()
			return fmt.Errorf("record clip %s: %w", p.id, err)
		}
	}
	if err := w.Commit(ctx, camera.End{Recorded: time.Now(), Length: p.clip.Length}); err != nil {
		return fmt.Errorf("close clip %s: %w", p.id, err)
	}
	return nil
}

func sleepUntil(ctx context.Context, t time.Time) error {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// clips are what an edge will record, by the plan.
func clips(prefix string, start time.Time, triggers []plan.Trigger, made []footage.Clip) []*planned {
	all := make([]*planned, len(triggers))
	for i, t := range triggers {
		all[i] = &planned{id: fmt.Sprintf("%s-%d", prefix, i), at: start.Add(t.At), clip: &made[t.Scene%len(made)]}
	}
	return all
}
