package detector

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// Others change a clip's state too, the gateway above all, but not often.
const maxConflicts = 50

// change applies f to the state of the attempt's clip until nobody came in
// between; f returns false if there is nothing to change. A clip that the bus
// does not know, or no longer, is as its job says.
func (d *Detector) change(ctx context.Context, a *attempt, f func(*schemas.ClipState) bool) error {
	key := a.job.Clip.ID
	for range maxConflicts {
		if !a.known {
			if err := d.recall(ctx, a); err != nil {
				return err
			}
		}
		next := a.state.Value
		if !f(&next) {
			return nil
		}
		next.Updated = time.Now()
		var err error
		var revision uint64
		if a.state.Revision == 0 {
			revision, err = d.clips.Create(ctx, key, next)
		} else {
			revision, err = d.clips.Update(ctx, key, next, a.state.Revision)
		}
		if err == nil {
			a.state.Value, a.state.Revision = next, revision
			return nil
		}
		a.known = false
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
		select {
		case <-time.After(rand.N(10 * time.Millisecond)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("state of clip %s: %w, %d times in a row", key, bus.ErrConflict, maxConflicts)
}

// recall reads the state of the attempt's clip.
func (d *Detector) recall(ctx context.Context, a *attempt) error {
	e, err := d.clips.Get(ctx, a.job.Clip.ID)
	if errors.Is(err, bus.ErrNotFound) {
		a.state = bus.Entry[schemas.ClipState]{Value: schemas.ClipState{
			Clip: a.job.Clip, Edge: a.job.Edge, State: schemas.ClipQueued, Stamps: schemas.ClipStamps{Queued: a.job.Queued},
		}}
		a.known = true
		return nil
	}
	if err != nil {
		return err
	}
	a.state, a.known = e, true
	return nil
}

// taken is the state of a clip that a detector has begun with.
func (a *attempt) taken(s *schemas.ClipState) bool {
	if s.Ended() {
		return false
	}
	s.State, s.Where, s.Upload, s.Attempts = schemas.ClipQueued, schemas.WhereCloud, "", a.delivery.Tries
	if s.Stamps.Queued.IsZero() {
		s.Stamps.Queued = a.job.Queued
	}
	s.Stamps = schemas.ClipStamps{Uploaded: s.Stamps.Uploaded, Queued: s.Stamps.Queued, Taken: a.stamps.Taken}
	return true
}

// ended is the state of a clip that has a result.
func (r *result) ended(s *schemas.ClipState) bool {
	if s.Ended() {
		return false
	}
	s.State, s.Upload = schemas.ClipDone, ""
	if r.Status != schemas.StatusOK {
		s.State = schemas.ClipDead
	}
	if r.Where == schemas.WhereEdge || r.Where == schemas.WhereCloud {
		s.Where = r.Where
	}
	s.Result = short(&r.Detections)
	if !r.stamps.Stored.IsZero() {
		t := &s.Stamps
		t.Taken, t.Fetched, t.Decoded, t.Inferred, t.Stored = r.stamps.Taken, r.stamps.Fetched, r.stamps.Decoded, r.stamps.Inferred, r.stamps.Stored
	} else if s.Stamps.Stored.IsZero() {
		s.Stamps.Stored = r.Created
	}
	return true
}

// Bounds of what a clip's state repeats of its result, in bytes: the bus takes
// documents of 64 KiB. The result itself has all of it.
const (
	maxLabels = 16 << 10
	maxText   = 1024
	maxName   = 128
)

func short(d *schemas.Detections) *schemas.ClipResult {
	r := d.Result(resultKey(d.Clip))
	r.Error, r.Worker = clipped(r.Error, maxText), clipped(r.Worker, maxName)
	size := 0
	for label := range r.Labels {
		// And what JSON makes of it.
		size += 6*len(label) + 32
	}
	if size > maxLabels {
		r.Labels = nil
	}
	return r
}

func clipped(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "")
	}
	return s
}
