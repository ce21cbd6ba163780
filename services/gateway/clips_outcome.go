package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// Bounds of recording what edges report.
const (
	outcomeBatch = 50 * time.Millisecond // gathered before they are stored
	outcomeMost  = 1000
	// eventService is whose events they are, whoever records them.
	eventService = "edge"
)

// outcome is a report on its way to the event stream.
type outcome struct {
	clip  string
	event *schemas.Event
	done  chan<- error
}

// report records a clip's event, once: a report that comes again finds the mark
// in the clip's document. Only a gateway that is killed between the two records
// it twice.
func (c *clips) report(ctx context.Context, a *account, o *schemas.ClipOutcome) error {
	id := o.Clip.ID
	unlock := c.locks.lock(id)
	defer unlock()
	k, err := c.look(ctx, id)
	if err != nil {
		return err
	}
	if k.found {
		if err := sameClip(&k.state, a.name, &o.Clip); err != nil {
			return err
		}
	} else if o.Status == schemas.StatusOK {
		return problem(http.StatusNotFound, "no clip %s of edge %s: one that never came has a status that says why", id, a.name)
	}
	if !k.state.Reported.IsZero() {
		return nil
	}
	e := o.Event()
	e.Service, e.Site, e.Agent = eventService, a.name, a.name
	if err := e.Validate(); err != nil {
		return invalid("body", err)
	}
	if err := c.record(ctx, id, e); err != nil {
		return err
	}
	mark, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepPatience)
	defer cancel()
	_, err = c.change(mark, id, k, func(s *schemas.ClipState) (bool, error) {
		if s.State == "" {
			s.Clip, s.Edge, s.State = o.Clip, a.name, schemas.ClipDead
			s.Result = &schemas.ClipResult{Status: o.Status, Error: o.Error}
		}
		s.Reported = time.Now().UTC()
		return true, nil
	})
	return err
}

// record returns once the bus has the event.
func (c *clips) record(ctx context.Context, id string, e *schemas.Event) error {
	done := make(chan error, 1)
	select {
	case c.outcomes <- outcome{id, e, done}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// recordOutcomes stores reports in batches until ctx ends.
func (c *clips) recordOutcomes(ctx context.Context) {
	recorder := c.newRecorder()
	defer func() { c.closeRecorder(ctx, recorder) }()
	// Reports that the recorder has and the bus has not confirmed: one that comes
	// again meanwhile is the same.
	pending := map[string]bool{}
	for {
		var batch []outcome
		select {
		case <-ctx.Done():
			return
		case o := <-c.outcomes:
			batch = append(batch, o)
		}
		window := time.After(outcomeBatch)
		for open := true; open && len(batch) < outcomeMost; {
			select {
			case o := <-c.outcomes:
				batch = append(batch, o)
			case <-window:
				open = false
			case <-ctx.Done():
				open = false
			}
		}
		var failed error
		for _, o := range batch {
			if !pending[o.clip] {
				failed = errors.Join(failed, recorder.Record(o.event))
				pending[o.clip] = failed == nil
			}
		}
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepPatience)
		failed = errors.Join(failed, recorder.Flush(flush))
		cancel()
		for _, o := range batch {
			o.done <- failed
		}
		if recorder.Failed() != nil {
			// It has given up on a batch and takes no more.
			c.closeRecorder(ctx, recorder)
			recorder = c.newRecorder()
			clear(pending)
		}
		if failed == nil {
			clear(pending)
		}
	}
}

func (c *clips) newRecorder() *bus.Recorder {
	return bus.NewRecorder(c.node.Bus, bus.RecorderOptions{
		Service: eventService, Producer: "gateway-" + strings.ToLower(rand.Text()[:16]), InFlight: 2, Log: c.log,
	})
}

func (c *clips) closeRecorder(ctx context.Context, r *bus.Recorder) {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := r.Close(end); err != nil {
		c.log.Warn("store the last reports of edges", "error", err)
	}
}
