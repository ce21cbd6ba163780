package collector

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/transferlab/transferlab/bus"
)

// session is one turn at work. Its loop owns all state; beside it there are
// the reader and, for each insert under way, a goroutine.
type session struct {
	c      *Collector
	keeper *keeper

	done     uint64    // every message up to here is stored or buried
	dirty    bool      // done has moved since the position was written
	written  time.Time // when the position was written
	gather   *load     // what comes next
	held     *arrival  // does not fit in it any more
	flights  []*flight // inserts under way, in order
	stored   []checkpoint
	arrivals chan arrival
	finished chan *flight
	lanes    sync.WaitGroup
}

// flight is an insert under way.
type flight struct {
	load   *load
	intent intent
	ended  bool
	err    error
}

// checkpoint says which messages may be removed from the stream, and when.
type checkpoint struct {
	to     uint64
	stored time.Time
	bytes  uint64
}

const (
	// flushPatience bounds what is stored after the end was asked for. What is
	// left is on the bus and comes with the next start.
	flushPatience = 10 * time.Second
	// insertPatience bounds one attempt: a server that hangs is asked again.
	insertPatience = 2 * time.Minute
)

func newSession(c *Collector, k *keeper) *session {
	return &session{
		c: c, keeper: k, done: k.current.Done, gather: &load{}, written: time.Now(),
		arrivals: make(chan arrival, 4), finished: make(chan *flight, c.cfg.Lanes),
	}
}

func (s *session) run(ctx context.Context) error {
	// Inserts outlive ctx, to be flushed, but not the session.
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer s.lanes.Wait()
	defer abandon()
	if err := s.replay(ctx); err != nil {
		return err
	}
	s.stored = append(s.stored, checkpoint{to: s.done, stored: time.Now()})

	s.c.report(faultBus, nil)

	reading, stopReading := context.WithCancel(ctx)
	readerGone := make(chan struct{})
	go func() {
		defer close(readerGone)
		s.read(reading, s.done+1)
	}()
	defer func() { stopReading(); <-readerGone }()
	s.c.node.Ready()

	beat := time.NewTicker(s.c.cfg.Lease / 4)
	defer beat.Stop()
	house := time.NewTicker(s.c.house)
	defer house.Stop()
	for {
		if err := s.launch(work, ctx, false); err != nil {
			return err
		}
		var arrivals <-chan arrival
		if s.held == nil {
			arrivals = s.arrivals
		}
		var due <-chan time.Time
		if s.gather.messages > 0 && len(s.flights) < s.c.cfg.Lanes {
			due = time.After(s.c.cfg.MaxAge - time.Since(s.gather.since))
		}
		select {
		case <-ctx.Done():
			stopReading()
			return s.flush(work, abandon)
		case a := <-arrivals:
			s.add(a)
		case f := <-s.finished:
			if err := s.settle(f); err != nil {
				return err
			}
		case <-due:
		case <-beat.C:
			if time.Since(s.written) >= s.c.cfg.Lease/4 {
				if err := s.write(ctx, s.keeper.owner); err != nil {
					return err
				}
			}
		case <-house.C:
			if err := s.keepHouse(ctx); err != nil {
				return err
			}
		}
	}
}

// replay inserts again what the position says may or may not have been
// inserted: the same messages under the same token.
func (s *session) replay(ctx context.Context) error {
	for _, in := range s.keeper.current.Intents {
		l, err := s.collect(ctx, in)
		if err != nil {
			return err
		}
		s.c.log.Info("repeating the insert that was under way", "from", in.From, "to", in.To, "rows", l.rows)
		if l.rows != in.Rows {
			s.c.log.Warn("an insert is repeated with other rows", "token", in.Token, "rows", l.rows, "before", in.Rows)
		}
		f := &flight{load: l, intent: in}
		if l.rows > 0 {
			s.insert(ctx, f, true)
		}
		if f.err != nil {
			return f.err
		}
		s.done, s.dirty = in.To, true
	}
	if !s.dirty {
		return nil
	}
	if err := s.c.step("position"); err != nil {
		return err
	}
	return s.write(ctx, s.keeper.owner)
}

// collect reads the messages of an intent once more. Some may be gone: then
// someone else has removed them, since the collector keeps what is not stored.
func (s *session) collect(ctx context.Context, in intent) (*load, error) {
	l := &load{}
	take := func(m bus.EventBatch) error {
		a, err := s.judge(ctx, m)
		if err != nil {
			return err
		}
		l.add(a, time.Now())
		return nil
	}
	last, err := s.c.node.Bus.EventAt(ctx, in.To)
	switch {
	case errors.Is(err, bus.ErrNotFound):
		for seq := in.From; seq < in.To; seq++ {
			m, err := s.c.node.Bus.EventAt(ctx, seq)
			if errors.Is(err, bus.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if err := take(m); err != nil {
				return nil, err
			}
		}
		return l, nil
	case err != nil:
		return nil, err
	}
	reached := errors.New("reached")
	err = s.c.node.Bus.ReadEvents(ctx, in.From, func(m bus.EventBatch) error {
		if m.Seq >= last.Seq {
			return reached
		}
		return take(m)
	})
	if errors.Is(err, reached) {
		err = take(last)
	} else if err == nil {
		err = ctx.Err()
	}
	return l, err
}

// read passes on what the stream holds from a position, until ctx ends.
func (s *session) read(ctx context.Context, next uint64) {
	for wait := minBackoff; ctx.Err() == nil; wait = min(2*wait, maxBackoff) {
		err := s.c.node.Bus.ReadEvents(ctx, next, func(m bus.EventBatch) error {
			wait = minBackoff
			if m.Seq > next {
				s.c.metrics.missing.Add(float64(m.Seq - next))
				s.c.log.Error("batches were removed from the event stream before they were stored", "from", next, "to", m.Seq-1)
			}
			a, err := s.judge(ctx, m)
			if err != nil {
				return err
			}
			next = m.Seq + 1
			select {
			case s.arrivals <- a:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil && ctx.Err() == nil {
			s.c.log.Warn("read the event stream; will try again", "in", wait, "error", err)
		}
		_ = pause(ctx, wait)
	}
}

// judge inspects a message and buries it if it does not hold up.
func (s *session) judge(ctx context.Context, m bus.EventBatch) (arrival, error) {
	a := arrival{seq: m.Seq, stored: m.Stored, bytes: len(m.Data), wire: len(m.Data)}
	var spare []byte
	if b, ok := s.c.spare.Get().(*[]byte); ok {
		spare = *b
	}
	info, memory, reason := accept(m, spare)
	if reason == nil {
		a.block, a.bytes, a.memory = &info, info.Bytes, memory
		return a, nil
	}
	s.c.log.Warn("batch rejected", "sequence", m.Seq, "error", reason)
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		err := s.bury(ctx, m, reason)
		if err == nil {
			s.c.metrics.rejected.Inc()
			return a, nil
		}
		s.c.log.Warn("keep dead letter; will try again", "sequence", m.Seq, "in", wait, "error", err)
		if err := pause(ctx, wait); err != nil {
			return a, err
		}
	}
}

// What is kept of a message that is itself too large.
const deadLetterBytes = 1 << 20

// bury keeps a rejected message. Only headers of ours go with it: one that
// gives orders to the server would be obeyed, or refused, again.
func (s *session) bury(ctx context.Context, m bus.EventBatch, reason error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text, data := reason.Error(), m.Data
	if size := len(data) + headerBytes(m.Header); size > bus.MaxMessage-8<<10 {
		data = data[:min(len(data), deadLetterBytes)]
		text = fmt.Sprintf("%s (the first %d of %d bytes are kept)", text, len(data), len(m.Data))
	}
	header := map[string][]string{}
	for name, value := range map[string]string{bus.HeaderFormat: m.Format, bus.HeaderEncoding: m.Encoding} {
		if value != "" && len(value) <= 64 {
			header[name] = []string{value}
		}
	}
	return s.c.node.Bus.Bury(ctx, bus.StreamEvents, m.Seq, header, data, text)
}

func headerBytes(h map[string][]string) int {
	n := 0
	for k, values := range h {
		for _, v := range values {
			n += len(k) + len(v) + 4
		}
	}
	return n
}

func (s *session) add(a arrival) {
	if !s.gather.fits(a, &s.c.cfg) {
		s.held = &a
		return
	}
	s.gather.add(a, time.Now())
	s.c.metrics.held.Set(float64(s.inMemory()))
}

// inMemory counts the events read and not stored yet.
func (s *session) inMemory() int {
	n := s.gather.rows
	for _, f := range s.flights {
		n += f.load.rows
	}
	return n
}

// launch starts the insert of what was gathered if it is time to, and writes
// the position if that has moved.
func (s *session) launch(work, ctx context.Context, now bool) error {
	cfg := &s.c.cfg
	for len(s.flights) < cfg.Lanes && s.gather.messages > 0 &&
		(now || s.held != nil || s.gather.rows >= cfg.MaxRows || time.Since(s.gather.since) >= cfg.MaxAge) {
		f := &flight{load: s.gather}
		f.intent = intent{
			From: s.gather.from, To: s.gather.to, Rows: s.gather.rows,
			Token: token(s.keeper.current.Created, s.gather.from, s.gather.to),
		}
		s.gather = &load{}
		if s.held != nil {
			s.gather.add(*s.held, time.Now())
			s.held = nil
		}
		s.flights = append(s.flights, f)
		if f.load.rows == 0 {
			f.ended = true
			s.land()
			continue
		}
		if err := s.c.step("intent"); err != nil {
			return err
		}
		if err := s.write(ctx, s.keeper.owner); err != nil {
			return err
		}
		s.lanes.Go(func() {
			s.insert(work, f, false)
			s.finished <- f
		})
	}
	if s.dirty {
		return s.write(ctx, s.keeper.owner)
	}
	return nil
}

// insert stores a flight's load, however long that takes; f.err is set when
// ctx ended before. again says that it may be stored already.
func (s *session) insert(ctx context.Context, f *flight, again bool) {
	if f.err = s.c.step("insert"); f.err != nil {
		return
	}
	m := s.c.metrics
	block := merge(f.load.blocks)
	first := !again
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		started := time.Now()
		attempt, cancel := context.WithTimeout(ctx, insertPatience)
		err := s.attempt(attempt, f, block, again)
		cancel()
		m.inserts.Observe(time.Since(started).Seconds())
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			f.err = ctx.Err()
			return
		}
		s.c.report(faultDatabase, err)
		m.retries.Inc()
		again, first = true, false
		if f.err = pause(ctx, wait); f.err != nil {
			return
		}
	}
	if f.err = s.c.step("confirm"); f.err != nil {
		return
	}
	s.c.report(faultDatabase, nil)
	// A request that was given up may still be reading what it was to send.
	if first {
		for i := range f.load.memory {
			s.c.spare.Put(&f.load.memory[i])
		}
	}
	f.load.blocks, f.load.memory = nil, nil
	m.events.Add(float64(f.load.rows))
	m.batches.Add(float64(f.load.accepted))
	m.bytes.Add(float64(f.load.wire))
}

// maxTokens bounds how often the database may have been killed in the middle of
// the same insert.
const maxTokens = 10

// attempt inserts once. The token alone makes a repetition harmless for as long
// as the database lives. One that was killed has written the part and the token
// to disk one after the other (which first depends on its version), so
// a repetition looks for the events before and after: stored without a token
// they must not be inserted again, and a token without events must not keep them
// from being inserted.
func (s *session) attempt(ctx context.Context, f *flight, block [][]byte, again bool) error {
	if !again {
		return s.c.db.Insert(ctx, table, f.intent.Token, block)
	}
	name := f.intent.Token
	for n := 2; n <= maxTokens; n++ {
		stored, err := s.c.db.Holds(ctx, f.load.blocks)
		if err != nil || stored {
			return err
		}
		if err := s.c.db.Insert(ctx, table, name, block); err != nil {
			return err
		}
		name = fmt.Sprintf("%s/%d", f.intent.Token, n)
	}
	stored, err := s.c.db.Holds(ctx, f.load.blocks)
	if err == nil && !stored {
		err = fmt.Errorf("the database takes events %d to %d of the stream and does not have them", f.intent.From, f.intent.To)
	}
	return err
}

// settle takes note of an insert that has ended.
func (s *session) settle(f *flight) error {
	if f.err != nil {
		return f.err
	}
	f.ended = true
	s.land()
	return s.c.step("position")
}

// land moves on over the first flights that have ended.
func (s *session) land() {
	for len(s.flights) > 0 && s.flights[0].ended {
		l := s.flights[0].load
		s.flights = s.flights[1:]
		s.done, s.dirty = l.to, true
		s.stored = append(s.stored, checkpoint{to: l.to, stored: l.stored, bytes: uint64(l.wire)})
	}
	s.c.metrics.held.Set(float64(s.inMemory()))
}

// write stores the position, however long that takes.
func (s *session) write(ctx context.Context, owner string) error {
	next := position{Created: s.keeper.current.Created, Done: s.done, Owner: owner}
	for _, f := range s.flights {
		next.Intents = append(next.Intents, f.intent)
	}
	for wait := minBackoff; ; wait = min(2*wait, maxBackoff) {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := s.keeper.write(attempt, next)
		cancel()
		switch {
		case err == nil:
			s.dirty, s.written = false, time.Now()
			s.c.metrics.position.Set(float64(s.done))
			return nil
		case errors.Is(err, errSuperseded), ctx.Err() != nil:
			return err
		}
		s.c.log.Warn("write the collector's position; will try again", "in", wait, "error", err)
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// flush stores what is here already and leaves.
func (s *session) flush(work context.Context, abandon context.CancelFunc) error {
	if s.c.health() != nil {
		abandon()
	}
	finish, cancel := context.WithTimeout(work, flushPatience)
	defer cancel()
	for len(s.flights) > 0 || s.gather.messages > 0 {
		if err := s.launch(finish, finish, true); err != nil {
			return err
		}
		if len(s.flights) == 0 {
			continue
		}
		select {
		case <-finish.Done():
			return fmt.Errorf("flush: %w", finish.Err())
		case f := <-s.finished:
			if err := s.settle(f); err != nil {
				return err
			}
		}
	}
	return s.write(finish, "")
}

// keepHouse looks at the stream as a whole: whether it still is the same, how
// far behind we are, what can be removed from it.
func (s *session) keepHouse(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := s.c.node.Bus.EventStream(ctx)
	if err != nil {
		s.c.log.Debug("look at the event stream", "error", err)
		return nil
	}
	if !stream.Created.Equal(s.keeper.current.Created) {
		return errReplaced
	}
	s.c.metrics.lag.Set(float64(stream.Last - min(stream.Last, s.done)))
	s.c.metrics.backlog.Set(float64(stream.Bytes))
	seq := s.removable(stream, time.Now())
	if seq < stream.First {
		return nil
	}
	if err := s.c.node.Bus.PurgeEvents(ctx, seq+1); err != nil {
		s.c.log.Warn("remove what is stored from the event stream", "error", err)
	}
	return nil
}

// removable is the last message that can be removed from the stream: it is
// stored, that is written down, and no repetition of it can come any more; or
// the stream needs the room. A stream that is more than half full gives up its
// oldest messages first.
func (s *session) removable(stream bus.EventStreamState, now time.Time) uint64 {
	var seq uint64
	left, half := stream.Bytes, uint64(max(stream.MaxBytes, 0))/2
	for len(s.stored) > 0 {
		c := s.stored[0]
		if c.to > s.keeper.current.Done {
			break
		}
		crowded := half > 0 && left > half
		if !crowded && now.Sub(c.stored) < bus.DuplicateWindow+time.Minute {
			break
		}
		seq = c.to
		left -= min(left, c.bytes)
		s.stored = s.stored[1:]
	}
	return seq
}
