package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

type bench struct {
	options
	lab *rig
	out io.Writer

	pool [][]schemas.Event // of each producer, drawn once, used again later in time
}

// poolRows is how many different rows a producer has.
const poolRows = 1 << 17

func (b *bench) conditions(ctx context.Context) error {
	version, err := b.lab.query(ctx, "SELECT version()", nil)
	if err != nil {
		return err
	}
	nats := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/nats-io/nats.go" {
				nats = m.Version
			}
		}
	}
	fmt.Fprintf(b.out, "%s; ClickHouse %s, nats.go %s; %d producers\n", machine(), version, nats, b.Producers)
	s := defaultShape()
	s.Agents = b.Producers
	for a := range b.Producers {
		b.pool = append(b.pool, agentRows(s, 1, a, poolRows, time.Now().UTC(), uuid.Nil))
	}
	return nil
}

// rows passes on n events of producer a, in a run.
func (b *bench) rows(a, n int, run uuid.UUID, each func(*schemas.Event) error) error {
	pool := b.pool[a]
	span := pool[len(pool)-1].Intended.Sub(pool[0].Intended)
	var shift time.Duration
	var e schemas.Event // one for all, as in a loader: the recorder keeps none
	for i := range n {
		e = pool[i%len(pool)]
		if i > 0 && i%len(pool) == 0 {
			shift += span
		}
		e.Intended, e.Run = e.Intended.Add(shift), run
		if err := each(&e); err != nil {
			return err
		}
	}
	return nil
}

// record has every producer record its share of n events of a run, as fast as
// the bus takes them, and returns when the bus has them.
func (b *bench) record(ctx context.Context, n, batch int, run uuid.UUID) error {
	var producers sync.WaitGroup
	errs := make([]error, b.Producers)
	for a := range b.Producers {
		producers.Go(func() { errs[a] = b.produce(ctx, a, n/b.Producers, batch, run) })
	}
	producers.Wait()
	return errors.Join(errs...)
}

func (b *bench) produce(ctx context.Context, a, n, batch int, run uuid.UUID) (err error) {
	recorder, leave, err := b.recorder(ctx, a, batch, run)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave()) }()
	return b.rows(a, n, run, recorder.Record)
}

func (b *bench) recorder(ctx context.Context, a, batch int, run uuid.UUID) (*bus.Recorder, func() error, error) {
	conn, err := b.lab.Connect(ctx, "bench")
	if err != nil {
		return nil, nil, err
	}
	recorder := bus.NewRecorder(conn, bus.RecorderOptions{Service: "s3-loader", Producer: producer(a, run), MaxRows: batch})
	return recorder, func() error {
		err := recorder.Close(ctx)
		leave, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return errors.Join(err, conn.Close(leave))
	}, nil
}

func producer(a int, run uuid.UUID) string { return fmt.Sprintf("bench-%d/%s", a, run) }

// awaitRows returns when a query counts n events of a run.
func (b *bench) awaitRows(ctx context.Context, n int, run uuid.UUID) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		have, err := b.lab.number(ctx, fmt.Sprintf("SELECT count() FROM events WHERE run = '%s'", run))
		if err != nil {
			return err
		}
		if int(have) >= n {
			if int(have) > n {
				return fmt.Errorf("%d events are there, %d were recorded", int(have), n)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// quiet waits until the database has nothing to merge, so that no round pays
// for the one before.
func (b *bench) quiet(ctx context.Context) error {
	patience := time.After(time.Minute)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for calm := 0; calm < 5; {
		merging, err := b.lab.number(ctx, "SELECT count() FROM system.merges")
		if err != nil {
			return err
		}
		if calm++; merging > 0 {
			calm = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-patience:
			return nil
		case <-tick.C:
		}
	}
	return nil
}

// engine measures the bare engine on blocks that are encoded already.
func (b *bench) engine(ctx context.Context, blocks func(run uuid.UUID) ([][]byte, error)) (round, error) {
	const table = "events_bare"
	if _, err := b.lab.query(ctx, "CREATE TABLE IF NOT EXISTS "+table+" AS events", nil); err != nil {
		return round{}, err
	}
	defer func() { _, _ = b.lab.query(context.WithoutCancel(ctx), "DROP TABLE "+table+" SYNC", nil) }()
	run := uuid.Must(uuid.NewV7())
	encoded, err := blocks(run)
	if err != nil {
		return round{}, err
	}
	if err := b.quiet(ctx); err != nil {
		return round{}, err
	}
	r := round{}
	_, before := b.lab.usage()
	began := time.Now()
	for i := range max(1, b.Rows/b.Block) {
		// A token of its own, or the table would take the block for a repetition.
		statement := fmt.Sprintf("INSERT INTO %s SETTINGS insert_deduplication_token = '%s-%d' FORMAT Native", table, run, i)
		if _, err := b.lab.query(ctx, statement, encoded[i%len(encoded)]); err != nil {
			return round{}, err
		}
		r.rows += b.Block
	}
	r.took = time.Since(began)
	_, after := b.lab.usage()
	r.engineCPU = after - before
	have, err := b.lab.number(ctx, "SELECT count() FROM "+table)
	if err == nil && int(have) != r.rows {
		err = fmt.Errorf("%d rows are there, %d were sent", int(have), r.rows)
	}
	return r, err
}

// distinctBlocks is how many different blocks are sent over and over.
const distinctBlocks = 2

// asRecorded encodes rows in the order in which all producers record them.
func (b *bench) asRecorded(run uuid.UUID) ([][]byte, error) {
	var blocks [][]byte
	for i := range distinctBlocks {
		share := b.Block / b.Producers
		rows := make([][]schemas.Event, b.Producers)
		for a := range b.Producers {
			err := b.rows(a, (i+1)*share, run, func(e *schemas.Event) error {
				rows[a] = append(rows[a], *e)
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		var events []*schemas.Event
		var names []string
		var numbers []uint64
		for n := range b.Block {
			a, seq := n%b.Producers, i*share+n/b.Producers
			if seq >= len(rows[a]) {
				a, seq = 0, len(rows[0])-1
			}
			events, names, numbers = append(events, &rows[a][seq]), append(names, producer(a, run)), append(numbers, uint64(seq+1))
		}
		block, err := clientBlock(events, names, numbers)
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, block)
	}
	return blocks, nil
}

// asCollected encodes rows the way the collector sends them: grouped and in the
// order of the table.
func (b *bench) asCollected(run uuid.UUID) ([][]byte, error) {
	var blocks [][]byte
	for i := range distinctBlocks {
		block := schemas.NewBlock(producer(i, run))
		seq := uint64(0)
		err := b.rows(i%b.Producers, b.Block, run, func(e *schemas.Event) error {
			seq++
			block.Append(e, seq)
			return nil
		})
		if err != nil {
			return nil, err
		}
		block.Group()
		data, err := block.Encode()
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, data)
	}
	return blocks, nil
}

// collector measures the way from the producers to the answer of a query.
func (b *bench) collector(ctx context.Context) (round, error) {
	if err := b.quiet(ctx); err != nil {
		return round{}, err
	}
	run := uuid.Must(uuid.NewV7())
	r := round{rows: b.Rows / b.Producers * b.Producers}
	lab, engine := b.lab.usage()
	own := selfCPU()
	began := time.Now()
	if err := b.record(ctx, b.Rows, 0, run); err != nil {
		return round{}, err
	}
	if err := b.awaitRows(ctx, r.rows, run); err != nil {
		return round{}, err
	}
	r.took = time.Since(began)
	labAfter, engineAfter := b.lab.usage()
	r.labCPU, r.engineCPU, r.producerCPU = labAfter-lab, engineAfter-engine, selfCPU()-own
	return r, b.whole(ctx, run, r.rows)
}

// whole checks that a run's events are there once each.
func (b *bench) whole(ctx context.Context, run uuid.UUID, n int) error {
	answer, err := b.lab.query(ctx, fmt.Sprintf("SELECT sum(received), sum(lost), sum(duplicated) FROM integrity WHERE endsWith(producer, '%s')", run), nil)
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%d\t0\t0", n); answer != want {
		return fmt.Errorf("received, lost, duplicated are %q, want %q", answer, want)
	}
	return nil
}

// diskUse is bytes an event.
type diskUse struct{ inserted, merged float64 }

// disk measures what events take on disk when they come at the rate of the
// shape, so in batches of what a producer records until its batch is due.
func (b *bench) disk(ctx context.Context) (diskUse, error) {
	const due = 200 * time.Millisecond // bus.RecorderOptions.MaxAge
	batch := int(defaultShape().Rate / float64(b.Producers) * due.Seconds())
	run := uuid.Must(uuid.NewV7())
	n := b.Disk / b.Producers * b.Producers
	if err := b.record(ctx, n, batch, run); err != nil {
		return diskUse{}, err
	}
	if err := b.awaitRows(ctx, n, run); err != nil {
		return diskUse{}, err
	}
	const size = "SELECT sum(bytes_on_disk) / sum(rows) FROM system.parts WHERE database = currentDatabase() AND table = 'events' AND active"
	var d diskUse
	var err error
	if d.inserted, err = b.lab.number(ctx, size); err != nil {
		return d, err
	}
	if _, err := b.lab.query(ctx, "OPTIMIZE TABLE events FINAL", nil); err != nil {
		return d, err
	}
	d.merged, err = b.lab.number(ctx, size)
	return d, err
}

// latency is the time from recording an event to the first query that sees it.
type latency struct {
	p50, p99, max time.Duration
	samples       int
	rate          int // events recorded a second
}

// sampling is every how many events one is watched.
const sampling = 64

// watched is what is known of a producer's events.
type watched struct {
	mu       sync.Mutex
	recorded []time.Time // of every sampling-th event
	seen     int         // of these
}

func (b *bench) latency(ctx context.Context) (latency, error) {
	if err := b.quiet(ctx); err != nil {
		return latency{}, err
	}
	run := uuid.Must(uuid.NewV7())
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	each := b.Rate / b.Producers
	n := int(float64(each) * b.Steady.Seconds())
	producers := make([]*watched, b.Producers)
	var working sync.WaitGroup
	began := time.Now()
	for a := range producers {
		producers[a] = &watched{}
		working.Go(func() {
			if err := b.paced(ctx, a, n, each, run, producers[a]); err != nil {
				cancel(err)
			}
		})
	}
	recorded := make(chan time.Duration, 1)
	go func() {
		working.Wait()
		recorded <- time.Since(began)
	}()
	var late []time.Duration
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for total := 0; total < n*b.Producers; {
		select {
		case <-ctx.Done():
			return latency{}, context.Cause(ctx)
		case <-tick.C:
		}
		// Batches of a producer come in its order, so the count says which events
		// are there.
		answer, err := b.lab.query(ctx, fmt.Sprintf("SELECT producer, count() FROM events WHERE run = '%s' GROUP BY producer", run), nil)
		if err != nil {
			return latency{}, err
		}
		now := time.Now()
		total = 0
		for line := range strings.Lines(answer) {
			name, count, _ := strings.Cut(strings.TrimSpace(line), "\t")
			have, err := strconv.Atoi(count)
			if err != nil {
				return latency{}, err
			}
			total += have
			for a, w := range producers {
				if name == producer(a, run) {
					late = append(late, w.arrived(have, now)...)
				}
			}
		}
	}
	slices.Sort(late)
	if len(late) == 0 {
		return latency{}, errors.New("too few events to sample")
	}
	at := func(q float64) time.Duration {
		return late[min(len(late)-1, int(q*float64(len(late))))].Round(time.Millisecond)
	}
	took := <-recorded
	return latency{p50: at(0.5), p99: at(0.99), max: at(1), samples: len(late), rate: int(float64(n*b.Producers) / took.Seconds())}, nil
}

// arrived returns how late the events are of which the last ones were just
// seen, have of the producer's in all.
func (w *watched) arrived(have int, now time.Time) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var late []time.Duration
	for w.seen < len(w.recorded) && (w.seen+1)*sampling <= have {
		late = append(late, now.Sub(w.recorded[w.seen]))
		w.seen++
	}
	return late
}

// paced records n events at a rate, in steps of a millisecond.
func (b *bench) paced(ctx context.Context, a, n, rate int, run uuid.UUID, w *watched) (err error) {
	recorder, leave, err := b.recorder(ctx, a, 0, run)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave()) }()
	began := time.Now()
	done := 0
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	return b.rows(a, n, run, func(e *schemas.Event) error {
		for float64(done) > time.Since(began).Seconds()*float64(rate) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
		e.Intended = time.Now()
		if done++; done%sampling == 0 {
			w.mu.Lock()
			w.recorded = append(w.recorded, e.Intended)
			w.mu.Unlock()
		}
		return recorder.Record(e)
	})
}
