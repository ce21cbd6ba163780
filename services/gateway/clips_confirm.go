package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
)

// Bounds of waiting for results.
const (
	maxConfirm     = 1000
	maxConfirmWait = 30 * time.Second
	// ackPatience is how long a result waits for the word that its job is
	// acknowledged: a stamp that completes the account of a clip, but no more.
	ackPatience = 500 * time.Millisecond
	// lookups of one request at a time.
	confirmLookups = 16
)

// clipIndex follows the bucket of clips: what is under way, and who waits for
// it. Clips to which nothing more happens are not held.
type clipIndex struct {
	mu      sync.Mutex
	live    map[string]liveClip
	open    map[string]int // multipart uploads by edge
	waiters map[string]map[*waiter]struct{}
}

type liveClip struct {
	edge, state, where string
	upload, received   bool
	updated            time.Time
}

func newClipIndex() *clipIndex {
	return &clipIndex{live: map[string]liveClip{}, open: map[string]int{}, waiters: map[string]map[*waiter]struct{}{}}
}

func (x *clipIndex) apply(e bus.Entry[schemas.ClipState]) {
	s := &e.Value
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.live[e.Key].upload {
		if x.open[x.live[e.Key].edge]--; x.open[x.live[e.Key].edge] <= 0 {
			delete(x.open, x.live[e.Key].edge)
		}
	}
	// A clip that ended without its bytes is held while they are on their way.
	if e.Deleted || closed(s) || s.Ended() && s.Upload == "" {
		delete(x.live, e.Key)
	} else {
		x.live[e.Key] = liveClip{edge: s.Edge, state: s.State, where: s.Where, upload: s.Upload != "", received: received(s), updated: s.Updated}
		if s.Upload != "" {
			x.open[s.Edge]++
		}
	}
	for w := range x.waiters[e.Key] {
		if w.edge == s.Edge && closed(s) {
			w.add(e.Key, *s)
		}
	}
}

// forget drops a clip of which there is no document any more.
func (x *clipIndex) forget(id string) { x.apply(bus.Entry[schemas.ClipState]{Key: id, Deleted: true}) }

// uploads counts the open multipart uploads of an edge.
func (x *clipIndex) uploads(edge string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.open[edge]
}

// queued counts the clips that wait for detectors or are with one.
func (x *clipIndex) queued() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := 0
	for _, l := range x.live {
		if l.state == schemas.ClipQueued {
			n++
		}
	}
	return n
}

// stuck lists at most limit clips that nothing happened to since a time.
func (x *clipIndex) stuck(since time.Time, limit int) map[string]liveClip {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := map[string]liveClip{}
	for id, l := range x.live {
		if len(out) == limit {
			break
		}
		if l.updated.Before(since) {
			out[id] = l
		}
	}
	return out
}

// underWay reports whether an edge's clip is known not to have ended.
func (x *clipIndex) underWay(edge, id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, there := x.live[id]
	return there && l.edge == edge
}

// waiter is a request that waits for clips to end.
type waiter struct {
	edge string
	wake chan struct{}

	mu    sync.Mutex
	ended map[string]endedClip
}

type endedClip struct {
	state schemas.ClipState
	since time.Time // when this gateway saw that it had
}

// ready reports whether there is nothing to wait for any more.
func (e *endedClip) ready(now time.Time) bool {
	return e.state.Where == schemas.WhereEdge || !e.state.Stamps.Acknowledged.IsZero() || now.Sub(e.since) >= ackPatience
}

func (w *waiter) add(id string, s schemas.ClipState) {
	w.mu.Lock()
	e := endedClip{state: s, since: time.Now()}
	if old, there := w.ended[id]; there {
		e.since = old.since
	}
	w.ended[id] = e
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what has ended, and how long until more will count as such.
func (w *waiter) take() (states []schemas.ClipState, more time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	more = -1
	for _, e := range w.ended {
		if e.ready(now) {
			states = append(states, e.state)
		} else if left := ackPatience - now.Sub(e.since); more < 0 || left < more {
			more = left
		}
	}
	return states, more
}

func (x *clipIndex) wait(w *waiter, ids []string) (leave func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		if x.waiters[id] == nil {
			x.waiters[id] = map[*waiter]struct{}{}
		}
		x.waiters[id][w] = struct{}{}
	}
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, id := range ids {
			delete(x.waiters[id], w)
			if len(x.waiters[id]) == 0 {
				delete(x.waiters, id)
			}
		}
	}
}

// confirm waits for the first of some clips to end.
func (c *clips) confirm(ctx context.Context, a *account, in *api.ClipConfirm) (api.ClipConfirmed, error) {
	out := api.ClipConfirmed{Clips: []schemas.ClipState{}}
	if n := len(in.Clips); n < 1 || n > maxConfirm {
		return out, invalid("body", fmt.Errorf("clips: %d, want 1 to %d ids", n, maxConfirm))
	}
	if in.Wait < 0 || in.Wait > maxConfirmWait {
		return out, invalid("body", fmt.Errorf("wait_ns: %d, want 0 to %d", in.Wait, maxConfirmWait))
	}
	for i, id := range in.Clips {
		if err := schemas.ClipID(id); err != nil {
			return out, invalid("body", fmt.Errorf("clips[%d]: %w", i, err))
		}
	}
	for i, places := range []chan struct{}{a.waits, c.waits} {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			return out, problem(http.StatusTooManyRequests, "%d requests wait for results, which is the most at a time%s", cap(places), []string{" of one edge", ""}[i])
		}
	}
	timer := time.NewTimer(in.Wait)
	defer timer.Stop()
	w := &waiter{edge: a.name, wake: make(chan struct{}, 1), ended: map[string]endedClip{}}
	leave := c.index.wait(w, in.Clips)
	defer leave()
	var err error
	if out.Unknown, err = c.lookUp(ctx, w, in.Clips); err != nil {
		return out, err
	}
	for {
		states, more := w.take()
		if len(states) > 0 || len(out.Unknown) > 0 {
			out.Clips = append(out.Clips, states...)
			return out, nil
		}
		var soon <-chan time.Time
		if more >= 0 {
			soon = time.After(more)
		}
		select {
		case <-ctx.Done():
			// The gateway ends, or nobody listens any more.
			return out, revoked(ctx)
		case <-timer.C:
			return out, nil
		case <-soon:
		case <-w.wake:
		}
	}
}

func revoked(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errRevoked) {
		return errRevoked
	}
	return nil
}

// lookUp reads the clips that the index does not know to be under way.
func (c *clips) lookUp(ctx context.Context, w *waiter, ids []string) (unknown []string, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(confirmLookups)
	for _, id := range ids {
		if c.index.underWay(w.edge, id) {
			continue
		}
		g.Go(func() error {
			k, err := c.look(ctx, id)
			switch {
			case err != nil:
				return err
			case !k.found || k.state.Edge != w.edge:
				mu.Lock()
				unknown = append(unknown, id)
				mu.Unlock()
			case closed(&k.state):
				if since := time.Since(k.state.Updated); k.revision == 0 || since >= ackPatience || since < 0 {
					// Long ago; nobody will say more of it.
					w.settled(id, k.state)
				} else {
					w.add(id, k.state)
				}
			}
			return nil
		})
	}
	return unknown, g.Wait()
}

// settled adds a clip for which there is nothing to wait.
func (w *waiter) settled(id string, s schemas.ClipState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended[id] = endedClip{state: s, since: time.Now().Add(-ackPatience)}
}
