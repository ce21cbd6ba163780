package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

func TestMain(m *testing.M) { chtest.Main(m) }

// rig is a bus of its own and the package's database, in which every test uses
// producers of its own.
type rig struct {
	t    testing.TB
	nats *embedded.Server
	bus  *bus.Conn // as the lab itself
	db   driver.Conn
	dsn  string
	name string // begins the names of the test's producers
	log  *slog.Logger
}

func newRig(t testing.TB) *rig {
	t.Helper()
	server := chtest.Start(t)
	r := &rig{t: t, dsn: server.LabDSN(), name: uuid.NewString()[:8], log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	r.db = chtest.Conn(t)
	r.nats = bustest.Start(t)
	r.bus = bustest.Join(t, r.nats, bus.RoleOperator)
	return r
}

// testConfig makes waiting short.
func (r *rig) testConfig() Config {
	cfg := DefaultConfig()
	cfg.ClickHouse, cfg.MaxAge, cfg.Lease = r.dsn, 20*time.Millisecond, 500*time.Millisecond
	return cfg
}

// running is a collector at work.
type running struct {
	*Collector
	t        testing.TB
	node     *node.Node
	registry *prometheus.Registry
	stop     context.CancelFunc
	done     chan error
}

// metric is the value of one of the collector's counters or gauges.
func (c *running) metric(name string) float64 {
	c.t.Helper()
	families, err := c.registry.Gather()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "transferlab_collector_"+name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	c.t.Fatalf("no metric %s", name)
	return 0
}

// start runs a collector; prepare may change it before.
func (r *rig) start(cfg Config, prepare func(*Collector)) *running {
	r.t.Helper()
	registry := prometheus.NewRegistry()
	n, err := node.New(node.Service{Name: "collector", Short: "test"}, "0.0.0", bustest.Join(r.t, r.nats, bus.RoleCollector), registry, r.log)
	if err != nil {
		r.t.Fatal(err)
	}
	c := New(cfg, n)
	c.house = 50 * time.Millisecond
	if prepare != nil {
		prepare(c)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	running := &running{Collector: c, t: r.t, node: n, registry: registry, stop: cancel, done: make(chan error, 1)}
	go func() { running.done <- c.Run(ctx) }()
	r.t.Cleanup(func() { cancel(); running.wait(r.t) })
	return running
}

// wait returns how the collector ended.
func (c *running) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-c.done:
		c.done <- err
		return err
	case <-time.After(30 * time.Second):
		t.Error("the collector does not end")
		return errors.New("does not end")
	}
}

// events returns consecutive events of the test's kind.
func (r *rig) event(i int) *schemas.Event {
	return &schemas.Event{
		Intended: time.Date(2026, 3, 1, 12, 0, 0, i, time.UTC), Run: uuid.MustParse("0190a000-0000-7000-8000-000000000001"), Trial: 1, Attempt: 1,
		Workload: "s3", Service: "s3-loader", Site: "oregon", Agent: "oregon-1", Kind: schemas.KindRequest,
		Wait: time.Duration(i), FirstByte: 2 * time.Millisecond, Duration: 5 * time.Millisecond, Bytes: 1_000_000, Status: schemas.StatusOK,
		Attrs: []schemas.Attr{{Key: "bucket", Value: fmt.Sprintf("bucket%d", i%3+1)}, {Key: "op", Value: "get"}},
	}
}

func (r *rig) producer(name string) string { return r.name + "/" + name }

// native encodes events first..last of a producer.
func (r *rig) native(producer string, first, last uint64) []byte {
	r.t.Helper()
	b := schemas.NewBlock(r.producer(producer))
	for seq := first; seq <= last; seq++ {
		b.Append(r.event(int(seq)), seq)
	}
	data, err := b.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	return append([]byte(nil), data...)
}

// publish sends a batch as an agent would, under an id of its own.
func (r *rig) publish(format string, data []byte) {
	r.t.Helper()
	if err := r.bus.PublishBatch(r.t.Context(), "s3-loader", uuid.NewString(), format, data); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) publishEvents(producer string, first, last uint64) {
	r.t.Helper()
	r.publish(bus.FormatNative, r.native(producer, first, last))
}

// integrity is a row of the view of that name.
type integrity struct{ Received, Lost, Duplicated uint64 }

func (r *rig) integrity(producer string) integrity {
	r.t.Helper()
	var i integrity
	row := r.db.QueryRow(r.t.Context(), "SELECT sum(received), sum(lost), sum(duplicated) FROM integrity WHERE producer = ?", r.producer(producer))
	if err := row.Scan(&i.Received, &i.Lost, &i.Duplicated); err != nil && !strings.Contains(err.Error(), "UNKNOWN_TABLE") && !strings.Contains(err.Error(), "code: 60") {
		r.t.Fatal(err)
	}
	return i
}

// expect waits until exactly n events of the producer are there, from 1
// without gap or duplicate.
func (r *rig) expect(producer string, n uint64) {
	r.t.Helper()
	var last integrity
	eventually(r.t, func() bool {
		last = r.integrity(producer)
		return last.Received >= n
	}, func() string { return fmt.Sprintf("%d of %d events of %s", last.Received, n, producer) })
	if want := (integrity{Received: n}); last != want {
		r.t.Fatalf("events of %s: %+v, want %+v", producer, last, want)
	}
}

// settled waits until the position has reached the stream's end and is not
// moving any more, with no intent open.
func (r *rig) settled() position {
	r.t.Helper()
	bucket, err := bus.OpenBucket[position](r.t.Context(), r.bus, bus.BucketCollector)
	if err != nil {
		r.t.Fatal(err)
	}
	var p position
	eventually(r.t, func() bool {
		stream, err := r.bus.EventStream(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		e, err := bucket.Get(r.t.Context(), positionKey)
		p = e.Value
		return err == nil && p.Done == stream.Last && len(p.Intents) == 0
	}, func() string { return fmt.Sprintf("position %+v", p) })
	return p
}

func eventually(t testing.TB, condition func() bool, state func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %s", state())
		}
		<-tick.C
	}
}
