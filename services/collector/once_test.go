package collector

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

var errKill = errors.New("killed by the test")

// killAt ends a collector the nth time it comes to a step.
func killAt(step string, n int64) func(*Collector) {
	var count atomic.Int64
	return func(c *Collector) {
		c.at = func(s string) error {
			if s == step && count.Add(1) == n {
				return errKill
			}
			return nil
		}
	}
}

func TestKilledAtEveryStepStoresOnce(t *testing.T) {
	r := newRig(t)
	cfg := r.testConfig()
	cfg.MaxRows = 1000
	var next uint64 = 1
	for _, lanes := range []int{1, 3} {
		cfg.Lanes = lanes
		for _, step := range []string{"intent", "insert", "confirm", "position"} {
			for n := int64(1); n <= 3; n++ {
				for range 5 {
					r.publishEvents("a", next, next+399)
					next += 400
				}
				c := r.start(cfg, killAt(step, n))
				if err := c.wait(t); !errors.Is(err, errKill) {
					t.Fatalf("%s %d: the collector ended with %v", step, n, err)
				}
			}
		}
	}
	r.start(cfg, nil)
	r.expect("a", next-1)
	r.settled()
	r.expect("a", next-1)
}

// Events of all ages in one insert are still one part, there or not.
func TestRepeatedInsertOverYearsStoresOnce(t *testing.T) {
	r := newRig(t)
	var events []schemas.Event
	for i := range 300 {
		e := *r.event(i)
		e.Intended = time.Date(1970+i%200, time.Month(1+i%12), 1+i%28, 0, 0, i, 0, time.UTC)
		events = append(events, e)
	}
	r.publishAll("a", 1, events...)
	for _, step := range []string{"confirm", "confirm", "position"} {
		if err := r.start(r.testConfig(), killAt(step, 1)).wait(t); !errors.Is(err, errKill) {
			t.Fatal(err)
		}
	}
	r.start(r.testConfig(), nil)
	r.settled()
	r.expect("a", 300)
}

// dropping is a database whose answers get lost.
type dropping struct {
	store
	mu    sync.Mutex
	drop  int // this many answers
	fails int // this many inserts that are not even done
}

func (d *dropping) Insert(ctx context.Context, table, token string, data [][]byte) error {
	d.mu.Lock()
	fail, drop := d.fails > 0, d.drop > 0
	if fail {
		d.fails--
	} else if drop {
		d.drop--
	}
	d.mu.Unlock()
	if fail {
		return errors.New("the database is away")
	}
	err := d.store.Insert(ctx, table, token, data)
	if err == nil && drop {
		return errors.New("connection reset by peer")
	}
	return err
}

func (d *dropping) wrap(c *Collector) {
	c.open = func(ctx context.Context, dsn string) (store, error) {
		var err error
		d.store, err = openStore(ctx, dsn)
		return d, err
	}
}

func TestLostAnswersAndFailedInsertsStoreOnce(t *testing.T) {
	r := newRig(t)
	d := &dropping{drop: 2, fails: 2}
	c := r.start(r.testConfig(), d.wrap)
	if err := c.node.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.publishEvents("a", 1, 100)
	eventually(t, func() bool { return c.node.Health() != nil }, func() string { return "healthy although inserts fail" })
	r.publishEvents("a", 101, 300)
	r.expect("a", 300)
	r.settled()
	r.expect("a", 300)
	if err := c.node.Health(); err != nil {
		t.Errorf("health after the database is back: %v", err)
	}
}

// torn is a database that was killed in the middle of committing the first
// insert: between the part and the token, in one order or the other.
type torn struct {
	store
	first  sync.Once
	insert func(token string, data [][]byte) error
}

func (d *torn) Insert(ctx context.Context, table, token string, data [][]byte) error {
	err := errors.New("not the first")
	d.first.Do(func() {
		if err = d.insert(token, data); err == nil {
			err = errKill
		}
	})
	if errors.Is(err, errKill) {
		return errors.New("connection reset by peer")
	}
	return d.store.Insert(ctx, table, token, data)
}

func TestDatabaseKilledBetweenPartAndToken(t *testing.T) {
	r := newRig(t)
	direct, err := openStore(t.Context(), r.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = direct.Close() })
	for name, insert := range map[string]func(token string, data [][]byte) error{
		"the rows are there, the token is not known": func(token string, data [][]byte) error {
			return direct.Insert(t.Context(), table, token+" forgotten", data)
		},
		"the token is known, the rows are not there": func(token string, _ [][]byte) error {
			info, err := schemas.InspectBatch(r.native("ghost", 1, 1))
			if err != nil {
				return err
			}
			return direct.Insert(t.Context(), table, token, merge([]schemas.BatchInfo{info}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			broken := &torn{insert: insert}
			r.start(r.testConfig(), func(c *Collector) {
				c.open = func(ctx context.Context, dsn string) (store, error) {
					var err error
					broken.store, err = openStore(ctx, dsn)
					return broken, err
				}
			})
			r.publishEvents("a", 1, 100)
			r.publishEvents("b", 1, 50)
			r.publishEvents("a", 101, 200)
			r.expect("a", 200)
			r.expect("b", 50)
			r.settled()
			r.expect("a", 200)
		})
	}
}

func TestTwoCollectorsStoreOnce(t *testing.T) {
	r := newRig(t)
	cfg := r.testConfig()
	cfg.MaxRows, cfg.MaxAge = 300, time.Millisecond
	var kill atomic.Bool
	mortal := func(c *Collector) {
		c.at = func(string) error {
			if kill.Load() {
				return errKill
			}
			return nil
		}
	}
	first := r.start(cfg, nil)
	if err := first.node.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	const batches, rows = 300, 50
	published := make(chan struct{})
	go func() {
		defer close(published)
		for i := range uint64(batches) {
			r.publishEvents("a", i*rows+1, (i+1)*rows)
		}
	}()
	collectors := []*running{first}
	for i := range 6 {
		reached := uint64((i + 1) * batches * rows / 10)
		eventually(t, func() bool { return r.integrity("a").Received >= reached }, func() string { return fmt.Sprintf("%+v", r.integrity("a")) })
		switch i {
		case 0, 1, 3:
			collectors = append(collectors, r.start(cfg, nil))
		case 4:
			r.start(cfg, mortal)
		case 2: // the one at work leaves in good order
			collectors[2].stop()
		case 5: // the one at work dies
			kill.Store(true)
		}
	}
	<-published
	r.settled()
	r.expect("a", batches*rows)
}

// A collector that was stopped in the middle (a machine that slept) wakes up
// with an insert in its hands that another has done since.
func TestSleeperStoresNothingTwice(t *testing.T) {
	r := newRig(t)
	asleep, wake := make(chan struct{}), make(chan struct{})
	var once sync.Once
	sleeper := r.start(r.testConfig(), func(c *Collector) {
		c.at = func(step string) error {
			if step == "insert" {
				once.Do(func() { close(asleep); <-wake })
			}
			return nil
		}
	})
	r.publishEvents("a", 1, 100)
	<-asleep
	r.start(r.testConfig(), nil)
	r.publishEvents("a", 101, 200)
	r.expect("a", 200)
	close(wake)
	bucket, err := bus.OpenBucket[position](t.Context(), r.bus, bus.BucketCollector)
	if err != nil {
		t.Fatal(err)
	}
	r.publishEvents("a", 201, 300)
	r.expect("a", 300)
	eventually(t, func() bool {
		e, err := bucket.Get(t.Context(), positionKey)
		return err == nil && e.Value.Owner != sleeper.owner && e.Value.Done == 3
	}, func() string { return "the sleeper is at work again" })
	r.expect("a", 300)
}

func TestStandsInForOneThatFellSilent(t *testing.T) {
	r := newRig(t)
	cfg := r.testConfig()
	first := r.start(cfg, nil)
	r.publishEvents("a", 1, 10)
	r.expect("a", 10)
	second := r.start(cfg, killAt("intent", 1))
	if err := second.node.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The second one dies of the next batch; the first one, which stood by,
	// stores it.
	r.publishEvents("a", 11, 20)
	if err := second.wait(t); !errors.Is(err, errKill) {
		t.Fatal(err)
	}
	r.expect("a", 20)
	if p := r.settled(); p.Owner != first.owner {
		t.Errorf("owner is %q, want the first collector %q", p.Owner, first.owner)
	}
}

func TestLeavesInGoodOrder(t *testing.T) {
	r := newRig(t)
	cfg := r.testConfig()
	cfg.MaxAge = time.Minute
	c := r.start(cfg, nil)
	if err := c.node.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.publishEvents("a", 1, 10)
	// It holds the batch and would for a minute.
	eventually(t, func() bool { return c.metric("held_events") > 0 }, func() string { return "batch not read" })
	c.stop()
	if err := c.wait(t); err != nil {
		t.Fatal(err)
	}
	r.expect("a", 10)
	if p := r.settled(); p.Owner != "" {
		t.Errorf("owner %q has not left the position", p.Owner)
	}
}

func TestAnotherStreamStartsAtItsBeginning(t *testing.T) {
	r := newRig(t)
	bucket, err := bus.OpenBucket[position](t.Context(), r.bus, bus.BucketCollector)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Create(t.Context(), positionKey, position{
		Created: time.Unix(1, 0), Done: 1000, Intents: []intent{{From: 1001, To: 1002, Token: "x", Rows: 1}}, Owner: "gone",
	}); err != nil {
		t.Fatal(err)
	}
	r.publishEvents("a", 1, 10)
	r.start(r.testConfig(), nil)
	r.expect("a", 10)
	if p := r.settled(); p.Done != 1 {
		t.Errorf("position %+v, want 1", p)
	}
}
