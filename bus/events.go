package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/transferlab/transferlab/schemas"
)

// Formats of a batch of events, named in [HeaderFormat]: ClickHouse input
// formats.
const (
	FormatNative = "Native"      // one block, columns as schemas.EventColumns
	FormatJSON   = "JSONEachRow" // one JSON object a line, column names as keys
)

// HeaderEncoding says how the bytes of a batch are compressed: [EncodingS2], or
// not at all if it is not there.
const HeaderEncoding = "Transferlab-Encoding"

// EncodingS2 is one block of S2, which Snappy's block format is a part of: what
// a producer writes with any Snappy library is read too. Batches shrink to a
// quarter, and so does what producing them costs the network and the disk.
const EncodingS2 = "s2"

// EventBatch is one message of the event stream.
type EventBatch struct {
	Seq      uint64 // position in the stream
	Format   string
	Encoding string
	Data     []byte    // as it was sent: see Content
	Stored   time.Time // when the bus took it
	Header   map[string][]string
}

// Content is the batch in its format, uncompressed, in the memory of into if
// that is enough. It fails on what cannot be read, and on what would be larger
// than schemas.MaxBatchBytes before any memory is spent on it.
func (b *EventBatch) Content(into []byte) ([]byte, error) {
	switch b.Encoding {
	case "":
		return b.Data, nil
	case EncodingS2:
		size, err := s2.DecodedLen(b.Data)
		if err != nil {
			return nil, fmt.Errorf("header %s: %s: %w", HeaderEncoding, EncodingS2, err)
		}
		if size > schemas.MaxBatchBytes {
			return nil, fmt.Errorf("batch of %d bytes, at most %d are allowed", size, schemas.MaxBatchBytes)
		}
		if size > cap(into) {
			into = make([]byte, size)
		}
		data, err := s2.Decode(into[:size], b.Data)
		if err != nil {
			return nil, fmt.Errorf("header %s: %s: %w", HeaderEncoding, EncodingS2, err)
		}
		return data, nil
	}
	return nil, fmt.Errorf("header %s: %.64q, want %s or none", HeaderEncoding, b.Encoding, EncodingS2)
}

// EventStreamState says what the event stream holds.
type EventStreamState struct {
	Created     time.Time // identity of the stream: positions of another one mean nothing
	First, Last uint64    // positions
	Bytes       uint64
	MaxBytes    int64
}

// EventStream describes the event stream.
func (c *Conn) EventStream(ctx context.Context) (EventStreamState, error) {
	s, err := c.js.Stream(ctx, StreamEvents)
	if err != nil {
		return EventStreamState{}, fmt.Errorf("open stream %s: %w", StreamEvents, err)
	}
	info := s.CachedInfo()
	return EventStreamState{
		Created: info.Created, First: info.State.FirstSeq, Last: info.State.LastSeq,
		Bytes: info.State.Bytes, MaxBytes: info.Config.MaxBytes,
	}, nil
}

// PurgeEvents removes everything before position seq.
func (c *Conn) PurgeEvents(ctx context.Context, seq uint64) error {
	s, err := c.js.Stream(ctx, StreamEvents)
	if err != nil {
		return fmt.Errorf("open stream %s: %w", StreamEvents, err)
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSequence(seq)); err != nil {
		return fmt.Errorf("purge stream %s before %d: %w", StreamEvents, seq, err)
	}
	return nil
}

// EventAt returns the message at a position, or an error that wraps
// [ErrNotFound].
func (c *Conn) EventAt(ctx context.Context, seq uint64) (EventBatch, error) {
	s, err := c.js.Stream(ctx, StreamEvents)
	if err != nil {
		return EventBatch{}, fmt.Errorf("open stream %s: %w", StreamEvents, err)
	}
	m, err := s.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return EventBatch{}, fmt.Errorf("%s at %d: %w", StreamEvents, seq, ErrNotFound)
	}
	if err != nil {
		return EventBatch{}, fmt.Errorf("read %s at %d: %w", StreamEvents, seq, err)
	}
	return eventBatch(m.Sequence, m.Time, m.Header, m.Data), nil
}

func eventBatch(seq uint64, stored time.Time, h nats.Header, data []byte) EventBatch {
	return EventBatch{Seq: seq, Format: h.Get(HeaderFormat), Encoding: h.Get(HeaderEncoding), Data: data, Stored: stored, Header: h}
}

// ReadEvents reads the event stream in order from a position, without gaps and
// without acknowledgements: the reader keeps its own position. It blocks until
// ctx ends (nil) or handle fails (its error).
func (c *Conn) ReadEvents(ctx context.Context, from uint64, handle func(EventBatch) error) error {
	consumer, err := c.js.OrderedConsumer(ctx, StreamEvents, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from, 1),
	})
	if err != nil {
		return fmt.Errorf("read stream %s: %w", StreamEvents, err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(512, 64<<20))
	if err != nil {
		return fmt.Errorf("read stream %s: %w", StreamEvents, err)
	}
	defer messages.Stop()
	stop := context.AfterFunc(ctx, messages.Stop)
	defer stop()
	for {
		m, err := messages.Next()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read stream %s: %w", StreamEvents, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read stream %s: %w", StreamEvents, err)
		}
		if err := handle(eventBatch(meta.Sequence.Stream, meta.Timestamp, m.Headers(), m.Data())); err != nil {
			return err
		}
	}
}

// PublishBatch stores an encoded batch of events; id makes a repetition within
// [DuplicateWindow] harmless.
func (c *Conn) PublishBatch(ctx context.Context, service, id, format string, data []byte) error {
	header := nats.Header{HeaderFormat: {format}}
	if err := c.publishBatch(ctx, SubjectEvents(service), id, header, data); err != nil {
		return fmt.Errorf("publish events of %s: %w", service, err)
	}
	return nil
}

// DeadLetter is a message that was rejected.
type DeadLetter struct {
	Seq    uint64 // position in the dead-letter stream
	Buried time.Time
	Reason string
	Stream string // where it came from
	From   uint64 // its position there
	// Format and Encoding of a batch of events, else empty.
	Format, Encoding string
	Data             []byte
}

// DeadLetters calls handle for everything the dead-letter stream holds at the
// time of the call, oldest first, until handle fails (its error).
func (c *Conn) DeadLetters(ctx context.Context, handle func(DeadLetter) error) error {
	s, err := c.js.Stream(ctx, StreamDead)
	if err != nil {
		return fmt.Errorf("open stream %s: %w", StreamDead, err)
	}
	state := s.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s at %d: %w", StreamDead, seq, err)
		}
		from, _ := strconv.ParseUint(m.Header.Get(HeaderSeq), 10, 64)
		letter := DeadLetter{
			Seq: seq, Buried: m.Time, Reason: m.Header.Get(HeaderReason), Stream: m.Header.Get(HeaderStream), From: from,
			Format: m.Header.Get(HeaderFormat), Encoding: m.Header.Get(HeaderEncoding), Data: m.Data,
		}
		if err := handle(letter); err != nil {
			return err
		}
	}
	return nil
}
