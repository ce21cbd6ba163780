package collector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/transferlab/transferlab/bus"
)

// positionKey is where the position stands in the bucket COLLECTOR.
const positionKey = "events"

// position is the collector's memory: how far it is in the event stream, and
// what it is about to insert.
type position struct {
	// Created is the identity of the stream the numbers belong to.
	Created time.Time `json:"stream_created"`
	// Done is the last message up to which every one is stored or buried.
	Done uint64 `json:"done"`
	// Intents are the inserts that may or may not have happened, in order,
	// without gaps, from Done+1 on.
	Intents []intent `json:"intents,omitempty"`
	// Owner is the collector at work; empty when it has left in good order.
	Owner string `json:"owner,omitempty"`
	// Writes and Updated show a collector that stands by that the owner lives.
	Writes  uint64    `json:"writes"`
	Updated time.Time `json:"updated"`
}

// intent is one insert: all the messages From..To that hold up, under Token.
type intent struct {
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Token string `json:"token"`
	Rows  int    `json:"rows"`
}

// token names an insert so that the database knows it again.
func token(created time.Time, from, to uint64) string {
	return fmt.Sprintf("%s@%d:%d-%d", bus.StreamEvents, created.UnixNano(), from, to)
}

// Errors that end a collector's turn.
var (
	errSuperseded = errors.New("another collector has taken over")
	errReplaced   = errors.New("the event stream was replaced by another one")
)

// keeper writes the position. Only the collector that wrote last can write
// again.
type keeper struct {
	bucket   *bus.Bucket[position]
	owner    string
	current  position // as stored
	revision uint64
}

// claim makes this collector the one at work, whoever was before.
func (k *keeper) claim(ctx context.Context, created time.Time) (reset bool, err error) {
	for {
		e, err := k.bucket.Get(ctx, positionKey)
		switch {
		case errors.Is(err, bus.ErrNotFound):
			k.current, k.revision = position{Created: created}, 0
		case err != nil:
			return false, err
		default:
			k.current, k.revision = e.Value, e.Revision
		}
		next := k.current
		if reset = !next.Created.Equal(created); reset {
			next = position{Created: created, Writes: next.Writes}
		}
		next.Owner = k.owner
		err = k.write(ctx, next)
		if !errors.Is(err, errSuperseded) {
			return reset, err
		}
	}
}

// write replaces the position. It fails with [errSuperseded] when another
// collector has written since.
func (k *keeper) write(ctx context.Context, next position) error {
	next.Writes = k.current.Writes + 1
	next.Updated = time.Now().UTC()
	var revision uint64
	var err error
	if k.revision == 0 {
		revision, err = k.bucket.Create(ctx, positionKey, next)
	} else {
		revision, err = k.bucket.Update(ctx, positionKey, next, k.revision)
	}
	if err == nil {
		k.current, k.revision = next, revision
		return nil
	}
	// Whether a write whose answer was lost has happened shows in what stands
	// there now.
	e, readErr := k.bucket.Get(ctx, positionKey)
	switch {
	case readErr != nil && !errors.Is(readErr, bus.ErrNotFound):
		return errors.Join(err, readErr)
	case readErr == nil && e.Value.Owner == k.owner && e.Value.Writes == next.Writes:
		k.current, k.revision = next, e.Revision
		return nil
	case errors.Is(err, bus.ErrConflict), e.Revision != k.revision:
		return errSuperseded
	}
	return err
}

// standBy returns once the collector at work has left or has been silent for
// the lease.
func (k *keeper) standBy(ctx context.Context, lease time.Duration) error {
	var revision uint64
	changed := time.Now()
	poll := time.NewTicker(lease / 10)
	defer poll.Stop()
	for {
		e, err := k.bucket.Get(ctx, positionKey)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, bus.ErrNotFound):
			return nil
		case err != nil:
			// Not to hear from the bus says nothing about the other.
			changed = time.Now()
		case e.Value.Owner == "":
			return nil
		case e.Revision != revision:
			revision, changed = e.Revision, time.Now()
		case time.Since(changed) >= lease:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
		}
	}
}
