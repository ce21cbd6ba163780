package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/transferlab/transferlab/schemas"
)

// RecorderOptions bound a recorder. Zero values take the defaults.
type RecorderOptions struct {
	Service  string        // whose events: the subject they go to
	Producer string        // unique for every start of every producer
	MaxRows  int           // events a batch at most; 16,384
	MaxBytes int           // bytes a batch, about; 2 MiB
	MaxAge   time.Duration // an event waits no longer than this for its batch; 200 ms
	InFlight int           // batches under way at a time; 8
	Log      *slog.Logger
}

// Recorder gathers events in columnar batches, numbers them batch by batch and
// stores them on the bus. It holds a bounded number of batches: when the bus is slow or full,
// Record blocks, which its caller's lag shows. Safe for concurrent use.
type Recorder struct {
	conn *Conn
	o    RecorderOptions

	mu     sync.Mutex
	block  *schemas.Block
	oldest time.Time // when the block got its first event
	next   uint64
	first  uint64 // number of the block's first event
	closed bool

	free    *freeBlocks
	sealed  chan sealed
	sent    chan sent
	senders sync.WaitGroup
	ticking chan struct{}
	ticker  sync.WaitGroup
	stop    context.CancelFunc // gives up on batches that cannot be sent

	acked  atomic.Uint64
	bytes  atomic.Uint64
	failed atomic.Pointer[error]

	// A lock of its own: mu is held while seal waits for a sender.
	settling sync.Mutex
	settled  *sync.Cond
	open     int // batches sealed and not yet settled
}

type sealed struct {
	block *schemas.Block
	first uint64
}

// sent is a batch on its way.
type sent struct {
	sealed
	data []byte
	ack  jetstream.PubAckFuture
	err  error
}

// RecorderStats counts since the recorder's start.
type RecorderStats struct {
	Recorded     uint64 // events taken, which is also the last number given
	Acknowledged uint64 // events the bus has stored
	Bytes        uint64 // encoded and compressed bytes stored
}

// NewRecorder starts a recorder. Close it to get the last events out.
func NewRecorder(c *Conn, o RecorderOptions) *Recorder {
	if o.MaxRows <= 0 {
		o.MaxRows = 16384
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 2 << 20
	}
	if o.MaxAge <= 0 {
		o.MaxAge = 200 * time.Millisecond
	}
	if o.InFlight <= 0 {
		o.InFlight = 8
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Recorder{
		conn: c, o: o, next: 1,
		free:   newFreeBlocks(o.Producer, o.InFlight+3),
		sealed: make(chan sealed, 1), sent: make(chan sent, o.InFlight), ticking: make(chan struct{}),
	}
	r.settled = sync.NewCond(&r.settling)
	r.block = r.free.take()
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	r.senders.Go(r.send)
	r.senders.Go(func() { r.settle(ctx) })
	r.ticker.Go(r.tick)
	return r
}

// freeBlocks are the blocks that wait to be filled. The one that came back last
// is taken first: as long as the bus keeps up, few of them ever grow.
type freeBlocks struct {
	there chan struct{} // one for each
	mu    sync.Mutex
	stack []*schemas.Block
}

func newFreeBlocks(producer string, n int) *freeBlocks {
	f := &freeBlocks{there: make(chan struct{}, n)}
	for range n {
		f.put(schemas.NewBlock(producer))
	}
	return f
}

// take waits for a block.
func (f *freeBlocks) take() *schemas.Block {
	<-f.there
	f.mu.Lock()
	defer f.mu.Unlock()
	last := len(f.stack) - 1
	b := f.stack[last]
	f.stack = f.stack[:last]
	return b
}

func (f *freeBlocks) put(b *schemas.Block) {
	f.mu.Lock()
	f.stack = append(f.stack, b)
	f.mu.Unlock()
	f.there <- struct{}{}
}

// ErrRecorderClosed is returned for events that come after Close.
var ErrRecorderClosed = errors.New("recorder is closed")

// Record takes an event. It returns an error only when the event can never be
// stored: it is invalid, the recorder is closed or has given up on a batch.
func (r *Recorder) Record(e *schemas.Event) error {
	if err := r.Failed(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrRecorderClosed
	}
	if r.block.Rows() == 0 {
		r.first, r.oldest = r.next, time.Now()
	}
	r.block.Append(e, r.next)
	r.next++
	if r.block.Rows() >= r.o.MaxRows || r.block.Size() >= r.o.MaxBytes {
		r.seal()
	}
	return nil
}

// seal hands the block to the senders; r.mu is held, also while waiting for a
// free block: that is the back-pressure.
func (r *Recorder) seal() {
	if r.block.Rows() == 0 {
		return
	}
	r.settling.Lock()
	r.open++
	r.settling.Unlock()
	r.sealed <- sealed{r.block, r.first}
	r.block = r.free.take()
}

func (r *Recorder) tick() {
	t := time.NewTicker(r.o.MaxAge / 4)
	defer t.Stop()
	for {
		select {
		case <-r.ticking:
			return
		case now := <-t.C:
			r.mu.Lock()
			if r.block.Rows() > 0 && now.Sub(r.oldest) >= r.o.MaxAge*3/4 {
				r.seal()
			}
			r.mu.Unlock()
		}
	}
}

// send puts batches on the bus in their order, several under way at a time: a
// producer that is killed leaves a beginning of its events, without gaps.
func (r *Recorder) send() {
	defer close(r.sent)
	var scratch []byte
	for s := range r.sealed {
		s.block.Group()
		data, err := s.block.Encode()
		b := sent{sealed: s, err: err}
		if err == nil {
			scratch = s2.Encode(scratch[:cap(scratch)], data)
			b.data = bytes.Clone(scratch)
		}
		if err == nil {
			b.ack, b.err = r.conn.js.PublishMsgAsync(r.message(b), jetstream.WithMsgID(r.id(b)))
		}
		r.sent <- b
	}
}

func (r *Recorder) id(b sent) string { return fmt.Sprintf("%s-%d", r.o.Producer, b.first) }

func (r *Recorder) message(b sent) *nats.Msg {
	return &nats.Msg{Subject: SubjectEvents(r.o.Service), Data: b.data, Header: recorderHeader()}
}

func recorderHeader() nats.Header {
	return nats.Header{HeaderFormat: {FormatNative}, HeaderEncoding: {EncodingS2}}
}

// settle waits for the bus's word on each batch and sees to those it did not
// take.
func (r *Recorder) settle(ctx context.Context) {
	for b := range r.sent {
		rows := uint64(b.block.Rows())
		if err := r.stored(ctx, b); err != nil {
			err = fmt.Errorf("store events %d to %d of %s: %w", b.first, b.first+rows-1, r.o.Producer, err)
			r.failed.CompareAndSwap(nil, &err)
			r.o.Log.Error("events lost", "error", err)
		} else {
			r.acked.Add(rows)
			r.bytes.Add(uint64(len(b.data)))
		}
		b.block.Reset()
		r.free.put(b.block)
		r.settling.Lock()
		r.open--
		r.settled.Broadcast()
		r.settling.Unlock()
	}
}

// How long the bus may take to store a batch before it is sent again.
const storePatience = 10 * time.Second

func (r *Recorder) stored(ctx context.Context, b sent) error {
	if b.data == nil {
		return b.err
	}
	// Giving up before the window closes keeps a repetition from being stored
	// as a second batch.
	ctx, cancel := context.WithTimeout(ctx, DuplicateWindow-time.Minute)
	defer cancel()
	err := b.err
	if err == nil {
		patience := time.NewTimer(storePatience)
		defer patience.Stop()
		select {
		case <-b.ack.Ok():
			return nil
		case err = <-b.ack.Err():
		case <-patience.C:
			err = fmt.Errorf("no answer within %s", storePatience)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		r.o.Log.Warn("bus takes no events; will try again", "in", wait, "error", err)
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
		if err = r.conn.publishBatch(ctx, SubjectEvents(r.o.Service), r.id(b), recorderHeader(), b.data); err == nil {
			return nil
		}
	}
}

func (c *Conn) publishBatch(ctx context.Context, subject, id string, header nats.Header, data []byte) error {
	attempt, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	_, err := c.js.PublishMsg(attempt, &nats.Msg{Subject: subject, Data: data, Header: header}, jetstream.WithMsgID(id), jetstream.WithRetryAttempts(0))
	return err
}

// Failed is the first batch that had to be given up, if any.
func (r *Recorder) Failed() error {
	if p := r.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// Stats counts what was taken and what the bus has.
func (r *Recorder) Stats() RecorderStats {
	r.mu.Lock()
	recorded := r.next - 1
	r.mu.Unlock()
	return RecorderStats{Recorded: recorded, Acknowledged: r.acked.Load(), Bytes: r.bytes.Load()}
}

// Flush returns when the bus has every event recorded before the call.
func (r *Recorder) Flush(ctx context.Context) error {
	wake := context.AfterFunc(ctx, func() {
		r.settling.Lock()
		r.settled.Broadcast()
		r.settling.Unlock()
	})
	defer wake()
	r.mu.Lock()
	r.seal()
	r.mu.Unlock()
	r.settling.Lock()
	for r.open > 0 && ctx.Err() == nil && r.Failed() == nil {
		r.settled.Wait()
	}
	r.settling.Unlock()
	if err := r.Failed(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("flush events of %s: %w", r.o.Producer, err)
	}
	return nil
}

// Close flushes within ctx and ends the recorder.
func (r *Recorder) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	close(r.ticking)
	r.ticker.Wait()
	err := r.Flush(ctx)
	r.stop()
	close(r.sealed)
	r.senders.Wait()
	return err
}
