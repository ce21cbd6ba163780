package scheduler

import (
	"context"
	"errors"
	"fmt"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// errUnfit says that a place could be made and is not what was asked for.
var errUnfit = errors.New("the sites are not as declared")

// makePlace has the run's place made and waits until it is ready.
func (s *Scheduler) makePlace(ctx context.Context, run *schemas.Run) error {
	// What is told of an earlier time of this run is no answer.
	before, err := s.places.Get(ctx, schemas.PlaceKey(run.ID))
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return err
	}
	want := schemas.PlaceWanted{Run: run.ID, Seed: run.Seed, File: run.File}
	_, err = s.wants.Create(ctx, schemas.WantKey(run.ID), want)
	switch {
	case errors.Is(err, bus.ErrConflict):
		// It was asked for before the scheduler was killed: its state counts.
		before.Revision = 0
	case err != nil:
		return err
	}
	waiting, stop := context.WithTimeoutCause(ctx, s.cfg.PlacePatience, fmt.Errorf("the sites were not ready within %s; is a provisioner running?", s.cfg.PlacePatience))
	defer stop()
	var place schemas.Place
	err = s.places.Watch(waiting, schemas.PlaceKey(run.ID), func(u bus.Entry[schemas.Place]) error {
		if u.Deleted || u.Revision <= before.Revision {
			return nil
		}
		place = u.Value
		switch place.State {
		case schemas.PlaceReady, schemas.PlaceFailed:
			return errAnswered
		}
		return s.announce(run, schemas.RunProgress{Note: "sites: " + place.Note})
	})
	switch {
	case !errors.Is(err, errAnswered) && err != nil:
		return err
	case err == nil:
		return context.Cause(waiting)
	case place.State == schemas.PlaceReady:
		return nil
	case place.Invalid:
		return fmt.Errorf("%w: %s", errUnfit, place.Error)
	}
	return fmt.Errorf("make the sites: %s", place.Error)
}

var errAnswered = errors.New("answered")

// leavePlace gives the run's place up and waits until it is gone: a run that has
// ended has left nothing behind. When it is the scheduler that ends, the place
// stays for its successor.
func (s *Scheduler) leavePlace(ctx context.Context, run *schemas.Run) error {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errCancelled) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.PlacePatience)
	defer cancel()
	if err := s.wants.Delete(ctx, schemas.WantKey(run.ID)); err != nil {
		return err
	}
	var last schemas.Place
	err := s.places.Watch(ctx, schemas.PlaceKey(run.ID), func(u bus.Entry[schemas.Place]) error {
		last = u.Value
		if u.Deleted || last.State == schemas.PlaceGone {
			return errAnswered
		}
		if last.State == schemas.PlaceReady && last.Note == "ready" {
			return nil // not taken notice yet
		}
		return s.announce(run, schemas.RunProgress{Note: "sites: " + last.Note})
	})
	if errors.Is(err, errAnswered) {
		if last.Error != "" {
			s.log.Warn("sites", "run", run.ID, "error", last.Error)
		}
		return nil
	}
	return errors.Join(err, fmt.Errorf("the sites of the run were not gone within %s: %s", s.cfg.PlacePatience, last.Note))
}
