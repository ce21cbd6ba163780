package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// Bounds of one round of mending.
const (
	mendMost     = 1000
	mendParallel = 8
	// mendAge is how long a clip is left alone: somebody may be at it.
	mendAge = 30 * time.Second
)

// mend looks after clips that nothing has happened to for a while, and does what
// whoever was killed in between has left undone.
func (c *clips) mend(ctx context.Context) {
	now := time.Now()
	idle, empty := c.drained(ctx)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(mendParallel)
	for id, l := range c.index.stuck(now.Add(-min(mendAge, 2*c.cfg.Mend)), mendMost) {
		g.Go(func() error {
			missing, err := c.mendOne(gctx, id, l, now, idle && empty)
			switch {
			case err != nil && gctx.Err() == nil:
				c.log.Warn("mend a clip", "clip", id, "missing", missing, "error", err)
			case missing != "":
				c.metrics.mended.WithLabelValues(missing).Inc()
				c.log.Info("clip mended", "clip", id, "edge", l.edge, "missing", missing)
			}
			return nil
		})
	}
	_ = g.Wait()
}

// drained reports whether the queue of the detectors is there and empty: then a
// clip that counts as queued is not in it.
func (c *clips) drained(ctx context.Context) (known, empty bool) {
	waiting, inWork, err := c.node.Bus.Backlog(ctx, bus.StreamClips, bus.ConsumerDetectors)
	return err == nil, waiting == 0 && inWork == 0
}

// mendOne returns what was missing and is not any more.
func (c *clips) mendOne(ctx context.Context, id string, l liveClip, now time.Time, lost bool) (missing string, err error) {
	unlock := c.locks.lock(id)
	defer unlock()
	k, err := c.document(ctx, id)
	if err != nil {
		return "", err
	}
	if !k.found {
		c.index.forget(id)
		return "", nil
	}
	s := &k.state
	if !s.Updated.Equal(l.updated) {
		return "", nil
	}
	switch {
	case s.Upload != "" && now.Sub(s.Updated) > c.cfg.UploadTTL:
		return "rest", c.giveUp(ctx, k)
	case s.State == schemas.ClipUploading && received(s) && s.Where == schemas.WhereCloud:
		_, err := c.queue(ctx, k)
		return "job", err
	case s.State != schemas.ClipQueued:
		return "", nil
	}
	d, stored, err := c.result(ctx, id)
	switch {
	case err == nil:
		_, err = c.change(ctx, id, k, func(s *schemas.ClipState) (bool, error) {
			if s.Ended() {
				return false, nil
			}
			if s.Stamps.Stored.IsZero() {
				s.Stamps.Stored = stored
			}
			ended(s, d)
			return true, nil
		})
		return "result", err
	case !errors.Is(err, objectstore.ErrNoObject):
		return "", err
	// Within the window of message ids the stream would take the job for one
	// that it had.
	case !lost || now.Sub(s.Updated) < bus.DuplicateWindow:
		return "", nil
	}
	job := &schemas.ClipJob{Clip: s.Clip, Edge: s.Edge, Bucket: bucketClips, Key: id, Queued: time.Now().UTC()}
	if err := c.node.Bus.Publish(ctx, bus.SubjectClips(s.Edge), fmt.Sprintf("clip-%s-%d", id, k.revision), job); err != nil {
		return "", err
	}
	_, err = c.change(ctx, id, k, func(s *schemas.ClipState) (bool, error) {
		again := s.State == schemas.ClipQueued && s.Stamps.Taken.Equal(k.state.Stamps.Taken)
		if again {
			s.Stamps.Queued = job.Queued
		}
		return again, nil
	})
	return "lost job", err
}

// giveUp drops the parts of an upload that did not go on.
func (c *clips) giveUp(ctx context.Context, k known) error {
	upload := k.state.Upload
	k, err := c.change(ctx, k.state.Clip.ID, k, func(s *schemas.ClipState) (bool, error) {
		gone := s.Upload == upload
		if gone {
			s.Upload = ""
		}
		return gone, nil
	})
	if err == nil {
		c.abandon(ctx, k.state.Clip.ID, upload)
	}
	return err
}
