package autoscaler

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// queue is the detectors' work queue.
type queue struct{ conn *bus.Conn }

func (q queue) Backlog(ctx context.Context) (waiting, inWork int, oldest time.Time, err error) {
	waiting, inWork, err = q.conn.Backlog(ctx, bus.StreamClips, bus.ConsumerDetectors)
	return waiting, inWork, time.Time{}, err
}

// drainer tells detectors to finish.
type drainer struct{ conn *bus.Conn }

func (d drainer) Drain(_ context.Context, worker string) error {
	return d.conn.Announce(bus.SubjectDrain(worker), &schemas.Drain{Reason: "not needed any more"})
}

// board is what detectors say of themselves, kept up to date by a watch: asking
// twice a second would make a consumer each time.
type board struct {
	mu      sync.Mutex
	workers map[string]heard
	err     error
}

type heard struct {
	status schemas.DetectorStatus
	at     time.Time
}

// watchBoard follows the bucket of detectors until ctx ends.
func watchBoard(ctx context.Context, c *bus.Conn, log *slog.Logger) (*board, error) {
	detectors, err := bus.OpenBucket[schemas.DetectorStatus](ctx, c, bus.BucketDetectors)
	if err != nil {
		return nil, err
	}
	b := &board{workers: map[string]heard{}}
	go func() {
		for pause := time.Second; ctx.Err() == nil; pause = min(2*pause, 30*time.Second) {
			err := detectors.Watch(ctx, ">", func(e bus.Entry[schemas.DetectorStatus]) error {
				b.hear(e.Key, e.Value, e.Deleted)
				return nil
			})
			if ctx.Err() != nil {
				return
			}
			log.Warn("watch the detectors", "error", err)
			b.mu.Lock()
			b.err = err
			b.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	return b, nil
}

func (b *board) hear(key string, s schemas.DetectorStatus, left bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = nil
	if left {
		delete(b.workers, key)
		return
	}
	b.workers[key] = heard{s, time.Now()}
}

// Workers returns those that were heard of lately.
func (b *board) Workers(context.Context) ([]schemas.DetectorStatus, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return nil, b.err
	}
	var all []schemas.DetectorStatus
	for key, h := range b.workers {
		// The bucket forgets who is silent without telling who watches.
		if time.Since(h.at) > bus.AgentTTL {
			delete(b.workers, key)
			continue
		}
		all = append(all, h.status)
	}
	return all, nil
}
