package collector

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
)

// Service describes the collector to the binary that runs it.
func Service() node.Service {
	cfg := DefaultConfig()
	return node.Service{
		Name: "collector", Short: "store events in ClickHouse", Role: bus.RoleCollector, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}

// Collector moves events from the bus to the database.
type Collector struct {
	cfg     Config
	node    *node.Node
	log     *slog.Logger
	metrics *metrics
	owner   string

	open   func(ctx context.Context, dsn string) (store, error)
	db     store
	bucket *bus.Bucket[position]

	spare sync.Pool // of *[]byte: memory of batches that are stored

	// at is called before each step that a test may want to end at; an error
	// ends the collector there as if it had been killed.
	at func(step string) error

	// house is how often the stream as a whole is looked at.
	house time.Duration

	mu     sync.Mutex
	faults map[string]error // what hinders storing at the moment
}

// New returns a collector; Run starts it.
func New(cfg Config, n *node.Node) *Collector {
	return &Collector{
		cfg: cfg, node: n, log: n.Log, metrics: newMetrics(n.Metrics), owner: rand.Text()[:12],
		at: func(string) error { return nil }, open: openStore, house: time.Second, faults: map[string]error{},
	}
}

// Run collects until ctx ends, then stores what it holds. The error is nil
// unless it was killed.
func (c *Collector) Run(ctx context.Context) error {
	c.node.Check("events", c.health)
	if err := c.node.Bus.AwaitProvisioned(ctx, bus.StreamEvents); err != nil {
		return ended(ctx, err)
	}
	var err error
	if c.bucket, err = bus.OpenBucket[position](ctx, c.node.Bus, bus.BucketCollector); err != nil {
		return ended(ctx, err)
	}
	if c.db, err = c.connect(ctx); err != nil {
		return ended(ctx, err)
	}
	defer func() { _ = c.db.Close() }()
	wait := minBackoff
	for ctx.Err() == nil {
		started := time.Now()
		err := c.turn(ctx)
		var kill *killed
		switch {
		case errors.As(err, &kill):
			return err
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errSuperseded):
			c.log.Warn("another collector is at work; standing by")
			if err := c.standBy(ctx); err != nil {
				return ended(ctx, err)
			}
			continue
		}
		if time.Since(started) > maxBackoff {
			wait = minBackoff
		}
		c.report(faultBus, err)
		if pause(ctx, wait) != nil {
			return nil
		}
		wait = min(2*wait, maxBackoff)
	}
	return nil
}

// Bounds of the time between two attempts at anything.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// connect opens the database and brings its schema up to date; it tries for as
// long as ctx allows, for the database may start after us.
func (c *Collector) connect(ctx context.Context) (store, error) {
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		db, err := c.open(ctx, c.cfg.ClickHouse)
		if err == nil {
			c.report(faultDatabase, nil)
			return db, nil
		}
		if ctx.Err() != nil || errors.Is(err, clickhouse.ErrMigrations) {
			return nil, err
		}
		c.report(faultDatabase, err)
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// turn works from claiming the position to losing it.
func (c *Collector) turn(ctx context.Context) error {
	stream, err := c.node.Bus.EventStream(ctx)
	if err != nil {
		return err
	}
	keeper := &keeper{bucket: c.bucket, owner: c.owner}
	reset, err := keeper.claim(ctx, stream.Created)
	if err != nil {
		return err
	}
	if reset {
		c.log.Warn("the event stream is a new one; starting at its beginning", "created", stream.Created)
	}
	s := newSession(c, keeper)
	return s.run(ctx)
}

func (c *Collector) standBy(ctx context.Context) error {
	c.report(faultBus, nil)
	c.node.Ready()
	keeper := &keeper{bucket: c.bucket, owner: c.owner}
	return keeper.standBy(ctx, c.cfg.Lease)
}

// What can hinder storing.
const (
	faultBus      = "bus"
	faultDatabase = "database"
)

// report keeps what hinders storing, for health, and logs when it changes.
func (c *Collector) report(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.faults[what]
	switch {
	case err == nil && before != nil:
		c.log.Info("events are stored again", "after", before)
	case err != nil && (before == nil || before.Error() != err.Error()):
		c.log.Error("events are not stored; will try again", "from", what, "error", err, "permanent", clickhouse.IsPermanent(err))
	}
	if c.faults[what] = err; err == nil {
		delete(c.faults, what)
	}
}

func (c *Collector) health() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, what := range []string{faultBus, faultDatabase} {
		if err := c.faults[what]; err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	return errors.Join(errs...)
}

// step is where a test may end the collector.
func (c *Collector) step(name string) error {
	if err := c.at(name); err != nil {
		return &killed{step: name, err: err}
	}
	return nil
}

// killed ends the collector at once: nothing is flushed or written any more.
type killed struct {
	step string
	err  error
}

func (k *killed) Error() string { return fmt.Sprintf("ended before %s: %v", k.step, k.err) }

func (k *killed) Unwrap() error { return k.err }

// ended is nil when the error only says that ctx ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
