package collector

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

// deadLetters returns what was buried of the event stream, by position there.
func (r *rig) deadLetters() map[uint64]bus.DeadLetter {
	r.t.Helper()
	letters := map[uint64]bus.DeadLetter{}
	err := r.bus.DeadLetters(r.t.Context(), func(l bus.DeadLetter) error {
		if _, twice := letters[l.From]; twice {
			r.t.Errorf("message %d was buried twice", l.From)
		}
		letters[l.From] = l
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return letters
}

// publishRaw speaks the bus's own protocol, as a hostile client would.
func (r *rig) publishRaw(header, data string) {
	r.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.nats.URL(), "nats://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	head := "NATS/1.0\r\n" + header + "\r\n\r\n"
	fmt.Fprintf(conn, "CONNECT {\"verbose\":false,\"headers\":true,\"user\":%q,\"pass\":%q}\r\nHPUB %s %d %d\r\n%s%s\r\nPING\r\n",
		bus.RoleAgent, r.nats.Password(bus.RoleAgent), bus.SubjectEvents("s3-loader"), len(head), len(head)+len(data), head, data)
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if lines.Text() == "PONG" {
			return
		}
		if strings.HasPrefix(lines.Text(), "-ERR") {
			r.t.Fatal(lines.Text())
		}
	}
	r.t.Fatal("no answer from the bus")
}

func TestHostileBatchesAreBuriedAndHoldUpNothing(t *testing.T) {
	r := newRig(t)
	good := r.native("victim", 1, 50)
	patched := func(edit func([]byte) []byte) []byte { return edit(bytes.Clone(good)) }
	two := func() []byte {
		a := schemas.NewBlock(r.producer("x"))
		a.Append(r.event(1), 1)
		b := schemas.NewBlock(r.producer("y"))
		b.Append(r.event(1), 1)
		data, err := a.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Replace(data, []byte("/x"), []byte("/"), 1)
	}
	holed := patched(func(b []byte) []byte {
		binary.LittleEndian.PutUint64(b[len(b)-8:], 51)
		return b
	})
	for _, c := range []struct {
		name, format string
		data         []byte
		reason       string
	}{
		{"garbage", bus.FormatNative, bytes.Repeat([]byte{0xff}, 1000), "header"},
		{"empty", bus.FormatNative, nil, "header"},
		{"text", bus.FormatNative, []byte("INSERT INTO events VALUES (1)"), "columns"},
		{"too large", bus.FormatNative, make([]byte, schemas.MaxBatchBytes+1), "at most"},
		{"as large as the bus allows", bus.FormatNative, make([]byte, bus.MaxMessage-1024), "at most"},
		{"another column", bus.FormatNative, patched(func(b []byte) []byte { return bytes.Replace(b, []byte("wait_ns"), []byte("waitXns"), 1) }), "wait_ns"},
		{"another type", bus.FormatNative, patched(func(b []byte) []byte { return bytes.Replace(b, []byte("UInt32"), []byte("UInt16"), 1) }), "UInt32"},
		{"cut short", bus.FormatNative, good[:len(good)-1], "ends early"},
		{"too long", bus.FormatNative, append(bytes.Clone(good), 0), "after the last column"},
		{"no rows", bus.FormatNative, []byte{18, 0}, "rows"},
		{"a billion rows", bus.FormatNative, binary.AppendUvarint([]byte{18}, 1_000_000_000), "rows"},
		{"no producer", bus.FormatNative, patched(func(b []byte) []byte {
			name := append([]byte{byte(len(r.producer("victim")))}, r.producer("victim")...)
			return bytes.Replace(b, name, []byte{0}, 1)
		}), "producer"},
		{"holes in the numbers", bus.FormatNative, holed, "rise by one"},
		{"unknown format", "Parquet", good, "Parquet"},
		{"no format", "", good, bus.HeaderFormat},
		{"JSON, but not", bus.FormatJSON, []byte("]["), "line 1"},
		{"broken dictionary", bus.FormatNative, two(), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := accept(bus.EventBatch{Format: c.format, Data: c.data}, nil)
			if err == nil || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%v, want an error with %q in it", err, c.reason)
			}
		})
		r.publish(c.format, c.data)
	}
	buried := 17
	// Random damage: whatever is not rejected must be stored, and whole.
	random := rand.New(rand.NewPCG(1, 2))
	var stored, rows uint64
	for range 200 {
		damaged := bytes.Clone(good)
		for range 1 + random.IntN(3) {
			damaged[random.IntN(len(damaged))] ^= byte(1 + random.IntN(255))
		}
		if info, _, err := accept(bus.EventBatch{Format: bus.FormatNative, Data: damaged}, nil); err == nil {
			stored++
			rows += uint64(info.Rows)
		} else {
			buried++
		}
		r.publish(bus.FormatNative, damaged)
	}
	r.publishEvents("good", 1, 100)

	before := r.count()
	if err := r.start(r.testConfig(), killAt("insert", 1)).wait(t); !errors.Is(err, errKill) {
		t.Fatal(err)
	}
	c := r.start(r.testConfig(), nil)
	r.expect("good", 100)
	r.settled()
	if got := r.count() - before; got != rows+100 {
		t.Errorf("%d events stored, want %d of %d damaged batches that hold up and 100 good ones", got, rows, stored)
	}
	letters := r.deadLetters()
	if len(letters) != buried {
		t.Errorf("%d dead letters, want %d", len(letters), buried)
	}
	for _, l := range letters {
		if l.Reason == "" || l.Stream != bus.StreamEvents {
			t.Errorf("dead letter of %d says %q of %q", l.From, l.Reason, l.Stream)
		}
	}
	if err := c.node.Health(); err != nil {
		t.Errorf("health: %v", err)
	}
}

func (r *rig) count() uint64 {
	r.t.Helper()
	var n uint64
	if err := r.db.QueryRow(r.t.Context(), "SELECT count() FROM events").Scan(&n); err != nil && clickhouse.Code(err) != 60 {
		r.t.Fatal(err)
	}
	return n
}

// Orders to the server in a rejected message's headers must not be carried out,
// or refused, again when it is buried; and one that fills the bus's limit must
// still find room for the reason.
func TestHostileHeadersAreNotObeyed(t *testing.T) {
	r := newRig(t)
	r.publishRaw("Nats-Expected-Stream: "+bus.StreamEvents, "garbage")
	r.publishRaw("Other: "+strings.Repeat("x", 60<<10), "garbage")
	r.publishRaw(bus.HeaderFormat+": "+strings.Repeat("y", 60<<10), "garbage")
	r.publishRaw("Other: "+strings.Repeat("x", 60<<10), strings.Repeat("z", bus.MaxMessage-62<<10))
	r.publishRaw("Other: x", strings.Repeat("z", bus.MaxMessage-64))
	r.publishEvents("a", 1, 1)
	stream, err := r.bus.EventStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.start(r.testConfig(), nil)
	r.expect("a", 1)
	if letters := r.deadLetters(); uint64(len(letters)) != stream.Last-1 || stream.Last != 6 {
		t.Errorf("%d dead letters of %d messages, want all but one", len(letters), stream.Last)
	}
}

func TestDatabaseAwayAndBack(t *testing.T) {
	r := newRig(t)
	own := chtest.StartOwn(t, nil)
	cfg := r.testConfig()
	cfg.ClickHouse, cfg.MaxRows = own.LabDSN(), 1000
	var err error
	if r.db, err = clickhouse.Open(t.Context(), own.LabDSN()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.db.Close() })
	c := r.start(cfg, nil)
	if err := c.node.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.publishEvents("a", 1, 500)
	r.expect("a", 500)

	// Killed, it is started again by its supervisor; meanwhile batches come that
	// it does not get.
	engine, err := os.FindProcess(own.PID())
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Kill(); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(20) {
		r.publishEvents("a", 501+i*400, 500+(i+1)*400)
	}
	eventually(t, func() bool { return own.Restarts() > 0 }, func() string { return "the engine was not started again" })
	r.expect("a", 8500)
	r.settled()
	eventually(t, func() bool { return c.node.Health() == nil }, func() string { return c.node.Health().Error() })
}

// A refusal that no repetition can cure (the table is not what it should be)
// must show, and must not cost a single event.
func TestRefusalShowsAndLosesNothing(t *testing.T) {
	r := newRig(t)
	own := chtest.StartOwn(t, nil)
	cfg := r.testConfig()
	cfg.ClickHouse = own.LabDSN()
	var err error
	if r.db, err = clickhouse.Open(t.Context(), own.LabDSN()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.db.Close() })
	c := r.start(cfg, nil)
	if err := c.node.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.db.Exec(t.Context(), "ALTER TABLE events RENAME COLUMN bytes TO octets"); err != nil {
		t.Fatal(err)
	}
	r.publishEvents("a", 1, 10)
	eventually(t, func() bool { return c.metric("insert_retries_total") >= 2 }, func() string { return "no second attempt" })
	if c.node.Health() == nil {
		t.Error("healthy although nothing can be stored")
	}
	if err := r.db.Exec(t.Context(), "ALTER TABLE events RENAME COLUMN octets TO bytes"); err != nil {
		t.Fatal(err)
	}
	r.expect("a", 10)
	if letters := r.deadLetters(); len(letters) != 0 {
		t.Errorf("%d dead letters, want none", len(letters))
	}
}

// The database may be away for longer than the bus has room: then producers
// wait, the collector's memory stays bounded, and in the end all is there.
func TestFullStreamHoldsProducersBack(t *testing.T) {
	r := newRig(t)
	if err := r.bus.Provision(t.Context(), bus.Limits{Events: 1 << 20, Dead: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	cfg := r.testConfig()
	cfg.MaxRows = 2000
	var away atomic.Bool
	away.Store(true)
	c := r.start(cfg, func(c *Collector) {
		c.open = func(ctx context.Context, dsn string) (store, error) {
			s, err := openStore(ctx, dsn)
			return &switched{store: s, away: &away}, err
		}
	})
	if err := c.node.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	recorder := bus.NewRecorder(bustest.Join(t, r.nats, bus.RoleAgent), bus.RecorderOptions{
		Service: "s3-loader", Producer: r.producer("a"), MaxRows: 1000, InFlight: 2, Log: r.log,
	})
	const events = 50_000
	var recorded atomic.Int64
	finished := make(chan error, 1)
	go func() {
		random := rand.New(rand.NewPCG(11, 12))
		for i := range events {
			e := r.event(i)
			e.Wait, e.Duration, e.Bytes = time.Duration(random.Int64()), time.Duration(random.Int64()), random.Uint64()
			if err := recorder.Record(e); err != nil {
				finished <- err
				return
			}
			recorded.Add(1)
		}
		finished <- recorder.Close(t.Context())
	}()
	eventually(t, func() bool {
		stream, err := r.bus.EventStream(t.Context())
		return err == nil && float64(stream.Bytes) > 0.9*float64(stream.MaxBytes) && c.metric("insert_retries_total") > 0
	}, func() string { return "the stream did not fill" })
	if held := c.metric("held_events"); held > float64(2*cfg.MaxRows) {
		t.Errorf("%v events in memory, want at most %d", held, 2*cfg.MaxRows)
	}
	if n := recorded.Load(); n == events {
		t.Error("the producer was not held back")
	}
	away.Store(false)
	if err := <-finished; err != nil {
		t.Fatal(err)
	}
	r.expect("a", events)
}

// switched is a database that can be away.
type switched struct {
	store
	away *atomic.Bool
}

func (s *switched) Insert(ctx context.Context, table, token string, data [][]byte) error {
	if s.away.Load() {
		return errors.New("the database is away")
	}
	return s.store.Insert(ctx, table, token, data)
}
