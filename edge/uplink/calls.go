package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

const (
	confirmMost = 1000
	confirmWait = 25 * time.Second
	warmEvery   = 20 * time.Second
	// lookEvery is how often the gateway is asked while it does not answer.
	lookEvery = 2 * time.Second
)

// State asks what the other side has to do, once.
func (c *Client) State(ctx context.Context) (schemas.OffloadState, error) {
	var s schemas.OffloadState
	if err := c.call(ctx, http.MethodGet, "/v1/offload", nil, &s, 0); err != nil {
		return s, fmt.Errorf("state of the lab: %w", err)
	}
	return s, nil
}

// Clip asks what the lab knows of a clip, once; an error that wraps ErrUnknown says
// nothing.
func (c *Client) Clip(ctx context.Context, id string) (schemas.ClipState, error) {
	var s schemas.ClipState
	if err := c.about(ctx, http.MethodGet, id, "", nil, &s); err != nil {
		return s, fmt.Errorf("state of clip %s: %w", id, err)
	}
	return s, nil
}

// Detections reads the result that is stored of a clip, once.
func (c *Client) Detections(ctx context.Context, id string) (*schemas.Detections, error) {
	d := new(schemas.Detections)
	err := c.about(ctx, http.MethodGet, id, "/result", nil, d)
	if err == nil {
		err = d.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("result of clip %s: %w", id, err)
	}
	return d, nil
}

func (c *Client) about(ctx context.Context, method, id, what string, in, out any) error {
	if err := schemas.ClipID(id); err != nil {
		return err
	}
	err := c.call(ctx, method, "/v1/clips/"+id+what, in, out, 0)
	var r *Refused
	if errors.As(err, &r) && r.Status == http.StatusNotFound {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return err
}

// Result stores the result of a clip that was looked at here, ahead of its
// bytes. It goes on until it is stored, ctx ends, or the lab refuses it.
func (c *Client) Result(ctx context.Context, clip schemas.Clip, result *schemas.Detections) (schemas.ClipState, error) {
	in := struct {
		Clip   schemas.Clip        `json:"clip"`
		Result *schemas.Detections `json:"result"`
	}{clip, result}
	var s schemas.ClipState
	err := c.until(ctx, func() error { return c.about(ctx, http.MethodPost, clip.ID, "/result", in, &s) })
	if err != nil {
		return s, fmt.Errorf("store the result of clip %s: %w", clip.ID, err)
	}
	return s, nil
}

// Outcome tells how a clip went. It goes on until that is noted, ctx ends, or
// the lab refuses it.
func (c *Client) Outcome(ctx context.Context, o schemas.ClipOutcome) error {
	if err := o.Validate(); err != nil {
		return fmt.Errorf("outcome: %w", err)
	}
	err := c.until(ctx, func() error { return c.about(ctx, http.MethodPost, o.Clip.ID, "/outcome", o, nil) })
	if err != nil {
		return fmt.Errorf("outcome of clip %s: %w", o.Clip.ID, err)
	}
	return nil
}

// Confirmation is what the lab says of clips it was asked for.
type Confirmation struct {
	Ended   []schemas.ClipState `json:"clips"`
	Unknown []string            `json:"unknown"` // the lab has nothing of these: upload them again
}

func (c *Confirmation) check() error {
	if len(c.Ended) > confirmMost || len(c.Unknown) > confirmMost {
		return fmt.Errorf("%d ended and %d unknown clips, want at most %d", len(c.Ended), len(c.Unknown), confirmMost)
	}
	return nil
}

// Confirm waits until at least one of the clips has ended, or is not known to
// the lab, and gives all of which that is so. Of more than 1000 clips, the first
// 1000 are asked for. It goes on until ctx ends or the lab refuses.
func (c *Client) Confirm(ctx context.Context, ids []string) (Confirmation, error) {
	ids = ids[:min(len(ids), confirmMost)]
	in := struct {
		Clips []string      `json:"clips"`
		Wait  time.Duration `json:"wait_ns"`
	}{ids, confirmWait}
	asked := make(map[string]bool, len(ids))
	for _, id := range ids {
		asked[id] = true
	}
	var out Confirmation
	for {
		var got Confirmation
		err := c.until(ctx, func() error {
			got = Confirmation{}
			return c.call(ctx, http.MethodPost, "/v1/clips/confirm", in, &got, confirmWait)
		})
		if err != nil {
			return out, fmt.Errorf("confirm clips: %w", err)
		}
		for _, s := range got.Ended {
			// Bytes are deleted on the strength of this.
			if asked[s.Clip.ID] && s.Ended() {
				out.Ended = append(out.Ended, s)
			}
		}
		for _, id := range got.Unknown {
			if asked[id] {
				out.Unknown = append(out.Unknown, id)
			}
		}
		if len(out.Ended)+len(out.Unknown) > 0 {
			return out, nil
		}
		// Answers that tell nothing, at once, are not asked for without end.
		if err := c.sleep(ctx, backoffMin); err != nil {
			return out, fmt.Errorf("confirm clips: %w", err)
		}
	}
}

// until repeats what another try may heal.
func (c *Client) until(ctx context.Context, try func() error) error {
	for failures := 1; ; failures++ {
		err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var r *Refused
		if errors.As(err, &r) && !r.retry() {
			return err
		}
		in := pause(failures, err)
		c.log.Debug("a request is tried again", "in", in, "error", err)
		if err := c.sleep(ctx, in); err != nil {
			return err
		}
	}
}

// Run keeps connections open and the clocks compared until ctx ends, and sees
// soon when a gateway that was away is back.
func (c *Client) Run(ctx context.Context) error {
	for {
		_, err := c.State(ctx)
		every := warmEvery
		if err != nil {
			every = lookEvery
		} else if c.way() == PathDirect {
			c.warm(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// warm uses as many connections to the store at a time as transfers will, so that
// they are there and neither the store nor a NAT on the way forgets them.
func (c *Client) warm(ctx context.Context) {
	c.mu.Lock()
	store := c.store
	c.mu.Unlock()
	if store == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var wait sync.WaitGroup
	for range cap(c.slots) {
		select {
		case c.slots <- struct{}{}:
		default:
			// The others are busy, and so are their connections.
			continue
		}
		wait.Go(func() {
			defer func() { <-c.slots }()
			// Whatever it answers, it has answered.
			_, _, _, _ = c.exchange(ctx, request{method: http.MethodHead, url: store + "/"}, maxProblem)
		})
	}
	wait.Wait()
}
