package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
)

// ErrDrop, wrapped in a handler's error, ends the delivery of a message for
// good: it is kept in the dead-letter stream with the reason.
var ErrDrop = errors.New("message rejected")

// ErrAgain, wrapped in a handler's error, makes a message come again however
// often it has: what went wrong is not the message's fault. When the consumer's
// ctx has ended it comes soon, for another to take.
var ErrAgain = errors.New("message handed back")

// Validator is a message that can check itself.
type Validator interface{ Validate() error }

// Header names of ours.
const (
	HeaderFormat = "Transferlab-Format" // how a batch of events is encoded
	HeaderReason = "Transferlab-Reason" // why a dead letter was rejected
	HeaderStream = "Transferlab-Stream" // where a dead letter comes from
	HeaderSeq    = "Transferlab-Seq"    // its sequence there
)

// Announce sends a message to whoever listens now; nothing keeps it.
func (c *Conn) Announce(subject string, msg Validator) error {
	data, err := encode(msg)
	if err != nil {
		return err
	}
	if err := c.nc.Publish(subject, data); err != nil {
		return fmt.Errorf("announce on %s: %w", subject, err)
	}
	return nil
}

// Listen calls handle for every announcement that matches subject until ctx
// ends. Messages that don't decode are skipped.
func Listen[T any](ctx context.Context, c *Conn, subject string, handle func(T)) error {
	ch := make(chan *nats.Msg, 256)
	sub, err := c.nc.ChanSubscribe(subject, ch)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", subject, err)
	}
	go func() {
		defer func() { _ = sub.Unsubscribe() }()
		for {
			select {
			case <-ctx.Done():
				return
			case m := <-ch:
				var msg T
				if json.Unmarshal(m.Data, &msg) == nil {
					handle(msg)
				}
			}
		}
	}()
	return nil
}

// Publish stores a message in the stream that has the subject; id makes a
// repetition within the duplicate window harmless.
func (c *Conn) Publish(ctx context.Context, subject, id string, msg Validator) error {
	data, err := encode(msg)
	if err != nil {
		return err
	}
	if _, err := c.js.Publish(ctx, subject, data, jetstream.WithMsgID(id)); err != nil {
		return fmt.Errorf("publish on %s: %w", subject, err)
	}
	return nil
}

// PublishScheduled stores a message that the server repeats on target by a
// cron expression (six fields: seconds first) or `@every 10m`, in a time zone
// ("" is UTC), until [Conn.Purge] of subject removes it.
func (c *Conn) PublishScheduled(ctx context.Context, subject, target, cron, zone string, msg Validator) error {
	data, err := encode(msg)
	if err != nil {
		return err
	}
	opts := []jetstream.PublishOpt{jetstream.WithScheduleCron(cron), jetstream.WithScheduleTarget(target)}
	// The server refuses a zone beside an interval, which has none.
	if zone != "" && !strings.HasPrefix(cron, "@every ") {
		opts = append(opts, jetstream.WithScheduleTimeZone(zone))
	}
	if _, err := c.js.Publish(ctx, subject, data, opts...); err != nil {
		return fmt.Errorf("schedule %q on %s: %w", cron, subject, err)
	}
	return nil
}

// Purge removes the messages of one subject from a stream.
func (c *Conn) Purge(ctx context.Context, stream, subject string) error {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return fmt.Errorf("open stream %s: %w", stream, err)
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
		return fmt.Errorf("purge %s: %w", subject, err)
	}
	return nil
}

// Consumption says what a durable consumer reads and how patient it is.
type Consumption struct {
	Stream   string
	Durable  string
	Subject  string
	Parallel int           // messages handled at a time; 0 is 1
	Lease    time.Duration // how long a message may go without a sign of life; 0 is 30 s
	Tries    int           // deliveries before it becomes a dead letter; 0 is 5
	// Shared lets other processes take from the same durable consumer: Parallel
	// bounds this one alone.
	Shared bool
	// Overflow makes the consumer one of two kinds of takers (JetStream's priority
	// groups, policy overflow): Near ones get whatever waits, others only get
	// something while more than Backlog messages wait.
	Overflow bool
	Near     bool
	Backlog  int64
	// Acknowledged is called for every message that was, once the server has
	// said so.
	Acknowledged func(ctx context.Context, d Delivery)
}

// sharedInWork bounds the messages in work of a consumer that several take
// from, in all of them.
const sharedInWork = 10_000

// overflowGroup is the one group of takers that overflow consumers have.
const overflowGroup = "takers"

// Delivery is what a handler may know of the message it handles.
type Delivery struct {
	Sequence uint64    // in the stream
	Tries    int       // which delivery this is, from 1
	Last     bool      // an error now makes it a dead letter
	Stored   time.Time // by the server's clock
	Data     []byte
}

type deliveryKey struct{}

// DeliveryOf is the message that the handler with this context handles.
func DeliveryOf(ctx context.Context) Delivery {
	d, _ := ctx.Value(deliveryKey{}).(Delivery)
	return d
}

func (o *Consumption) delivery(m jetstream.Msg) Delivery {
	meta, err := m.Metadata()
	if err != nil {
		return Delivery{Data: m.Data()}
	}
	return Delivery{
		Sequence: meta.Sequence.Stream, Tries: int(meta.NumDelivered), Last: meta.NumDelivered >= uint64(o.Tries),
		Stored: meta.Timestamp, Data: m.Data(),
	}
}

// Consume handles messages until ctx ends; the handler's error is the
// acknowledgement: nil acknowledges, an error that wraps [ErrDrop] ends the
// message as a dead letter, any other makes it come again, later and later, and
// on the last try a dead letter unless it wraps [ErrAgain].
// While a handler runs its lease is extended. Messages in work when ctx ends
// are finished first (their handler's ctx ends too).
func Consume[T any](ctx context.Context, c *Conn, o Consumption, handle func(context.Context, T) error) error {
	if o.Parallel <= 0 {
		o.Parallel = 1
	}
	if o.Lease <= 0 {
		o.Lease = 30 * time.Second
	}
	if o.Tries <= 0 {
		o.Tries = 5
	}
	config := jetstream.ConsumerConfig{
		Durable: o.Durable, FilterSubject: o.Subject, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: o.Lease, MaxAckPending: o.Parallel, MaxDeliver: -1,
	}
	pull := []jetstream.PullMessagesOpt{jetstream.PullMaxMessages(o.Parallel)}
	if o.Shared || o.Overflow {
		// What one has asked for and cannot handle yet would be nobody's.
		config.MaxAckPending, pull = sharedInWork, []jetstream.PullMessagesOpt{jetstream.PullMaxMessages(1)}
	}
	if o.Overflow {
		config.PriorityPolicy, config.PriorityGroups = jetstream.PriorityPolicyOverflow, []string{overflowGroup}
		pull = append(pull, jetstream.PullPriorityGroup(overflowGroup))
		if !o.Near {
			pull = append(pull, jetstream.PullMinPending(o.Backlog+1))
		}
	}
	consumer, err := c.js.CreateOrUpdateConsumer(ctx, o.Stream, config)
	if err != nil {
		return fmt.Errorf("consume %s from %s: %w", o.Subject, o.Stream, err)
	}
	messages, err := consumer.Messages(pull...)
	if err != nil {
		return fmt.Errorf("consume %s from %s: %w", o.Subject, o.Stream, err)
	}
	end := messages.Stop
	if o.Shared {
		// What is on its way here goes through the handler, to be handed back:
		// others would wait for the end of its lease.
		end = messages.Drain
	}
	stop := context.AfterFunc(ctx, end)
	defer stop()
	slots := make(chan struct{}, o.Parallel)
	for {
		// A message that nobody handles yet would lose its lease.
		slots <- struct{}{}
		m, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			<-slots
			break
		}
		if err != nil {
			<-slots
			c.log.Warn("read from the bus", "stream", o.Stream, "error", err)
			continue
		}
		go func() {
			defer func() { <-slots }()
			in := context.WithValue(ctx, deliveryKey{}, o.delivery(m))
			c.settle(in, o, m, handleMessage(in, o.Lease, m, handle))
		}()
	}
	for range o.Parallel {
		slots <- struct{}{}
	}
	return nil
}

func handleMessage[T any](ctx context.Context, lease time.Duration, m jetstream.Msg, handle func(context.Context, T) error) error {
	var msg T
	if err := json.Unmarshal(m.Data(), &msg); err != nil {
		return fmt.Errorf("%w: %w", ErrDrop, err)
	}
	if v, ok := any(&msg).(Validator); ok {
		if err := v.Validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrDrop, err)
		}
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		tick := time.NewTicker(lease / 3)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				_ = m.InProgress()
			}
		}
	}()
	return handle(ctx, msg)
}

func (c *Conn) settle(ctx context.Context, o Consumption, m jetstream.Msg, err error) {
	meta, metaErr := m.Metadata()
	if metaErr != nil {
		c.log.Error("message without metadata", "stream", o.Stream, "error", metaErr)
		return
	}
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	switch {
	case err == nil:
		if err := m.DoubleAck(finish); err != nil {
			c.log.Warn("acknowledge", "stream", o.Stream, "error", err)
			return
		}
		if o.Acknowledged != nil {
			o.Acknowledged(finish, DeliveryOf(ctx))
		}
	case errors.Is(err, ErrAgain) && ctx.Err() != nil:
		c.log.Info("message handed back", "stream", o.Stream, "sequence", meta.Sequence.Stream, "reason", err)
		// Not before the server knows that this one takes no more.
		_ = m.NakWithDelay(100 * time.Millisecond)
	case errors.Is(err, ErrDrop), meta.NumDelivered >= uint64(o.Tries) && !errors.Is(err, ErrAgain):
		if deadErr := c.Bury(finish, o.Stream, meta.Sequence.Stream, m.Headers(), m.Data(), err.Error()); deadErr != nil {
			c.log.Error("keep dead letter", "stream", o.Stream, "error", deadErr)
			_ = m.NakWithDelay(time.Second)
			return
		}
		c.log.Warn("message rejected", "stream", o.Stream, "sequence", meta.Sequence.Stream, "error", err)
		_ = m.TermWithReason(err.Error())
	default:
		delay := min(100*time.Millisecond<<min(meta.NumDelivered, 10), 30*time.Second)
		c.log.Warn("message will come again", "stream", o.Stream, "in", delay, "error", err)
		_ = m.NakWithDelay(delay)
	}
}

// Backlog is how much of a stream a durable consumer has not been given, and
// how much it has been given and not acknowledged. The server that leads the
// consumer answers: the count of a follower may be behind.
func (c *Conn) Backlog(ctx context.Context, stream, durable string) (waiting, inWork int, err error) {
	consumer, err := c.js.Consumer(ctx, stream, durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		// Nobody has ever taken anything: all of it waits.
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return 0, 0, fmt.Errorf("backlog of %s: %w", stream, err)
		}
		return int(s.CachedInfo().State.Msgs), 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("backlog of %s in %s: %w", durable, stream, err)
	}
	info := consumer.CachedInfo()
	return int(info.NumPending), info.NumAckPending, nil
}

// Bury keeps a rejected message in the dead-letter stream. Burying the same
// message twice keeps it once.
func (c *Conn) Bury(ctx context.Context, stream string, seq uint64, header map[string][]string, data []byte, reason string) error {
	h := nats.Header{}
	for k, v := range header {
		// Those of the server tell it what to do with a message, such as to
		// refuse it in another stream.
		if !strings.HasPrefix(strings.ToLower(k), "nats-") {
			h[k] = v
		}
	}
	h.Set(HeaderReason, printable(reason))
	h.Set(HeaderStream, stream)
	h.Set(HeaderSeq, fmt.Sprint(seq))
	id := fmt.Sprintf("%s-%d", stream, seq)
	if _, err := c.js.PublishMsg(ctx, &nats.Msg{Subject: SubjectDead(stream), Header: h, Data: data}, jetstream.WithMsgID(id)); err != nil {
		return fmt.Errorf("publish on %s: %w", SubjectDead(stream), err)
	}
	return nil
}

// A header value must stay on one line.
func printable(s string) string {
	const limit = 1024
	out := make([]rune, 0, min(len(s), limit))
	for _, r := range s {
		if len(out) == limit {
			break
		}
		if r < ' ' {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}

// RequestError is a service's refusal of a request.
type RequestError struct {
	Code string // `invalid`, `not_found`, `conflict`, `internal`
	Text string
}

func (e *RequestError) Error() string { return e.Text }

// Request asks the service that answers on subject. A refusal is a
// [*RequestError]; a subject nobody serves is an error at once.
func Request[Reply any](ctx context.Context, c *Conn, subject string, msg Validator) (Reply, error) {
	var reply Reply
	data, err := encode(msg)
	if err != nil {
		return reply, err
	}
	m, err := c.nc.RequestWithContext(ctx, subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		return reply, fmt.Errorf("request on %s: no service answers there", subject)
	}
	if err != nil {
		return reply, fmt.Errorf("request on %s: %w", subject, err)
	}
	if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
		return reply, &RequestError{Code: code, Text: m.Header.Get(micro.ErrorHeader)}
	}
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return reply, fmt.Errorf("reply on %s: %w", subject, err)
	}
	return reply, nil
}

// Register announces the process as a micro service (ADR-32), so that
// `nats micro ls` and alike see it with its version and stats. It is
// unregistered by the returned function.
func (c *Conn) Register(name, version, description string, metadata map[string]string) (*Registration, error) {
	svc, err := micro.AddService(c.nc, micro.Config{Name: name, Version: version, Description: description, Metadata: metadata})
	if err != nil {
		return nil, fmt.Errorf("register service %s: %w", name, err)
	}
	return &Registration{conn: c, svc: svc}, nil
}

// Registration is a service seen on the bus; endpoints are added to it.
type Registration struct {
	conn *Conn
	svc  micro.Service
}

// Stop unregisters the service.
func (r *Registration) Stop() error { return r.svc.Stop() }

// Respond serves requests on subject. The handler's [*RequestError] reaches
// the requester as it is; any other error reaches it as `internal`.
func Respond[Q, A any](ctx context.Context, r *Registration, name, subject string, handle func(context.Context, Q) (A, error)) error {
	h := micro.HandlerFunc(func(req micro.Request) {
		var q Q
		refuse := func(code, text string) {
			if err := req.Error(code, printable(text), nil); err != nil {
				r.conn.log.Warn("refuse request", "subject", subject, "error", err)
			}
		}
		if err := json.Unmarshal(req.Data(), &q); err != nil {
			refuse("invalid", err.Error())
			return
		}
		if v, ok := any(&q).(Validator); ok {
			if err := v.Validate(); err != nil {
				refuse("invalid", err.Error())
				return
			}
		}
		answer, err := handle(ctx, q)
		var refusal *RequestError
		switch {
		case errors.As(err, &refusal):
			refuse(refusal.Code, refusal.Text)
		case err != nil:
			r.conn.log.Error("request failed", "subject", subject, "error", err)
			refuse("internal", err.Error())
		default:
			if err := req.RespondJSON(answer); err != nil {
				r.conn.log.Warn("answer request", "subject", subject, "error", err)
			}
		}
	})
	if err := r.svc.AddEndpoint(name, h, micro.WithEndpointSubject(subject)); err != nil {
		return fmt.Errorf("serve %s: %w", subject, err)
	}
	// Requests are answered from here on, not a little later.
	if err := r.conn.nc.FlushTimeout(5 * time.Second); err != nil {
		return fmt.Errorf("serve %s: %w", subject, err)
	}
	return nil
}

func encode(msg Validator) ([]byte, error) {
	if err := msg.Validate(); err != nil {
		return nil, fmt.Errorf("message to send: %w", err)
	}
	data, err := json.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", msg, err)
	}
	return data, nil
}
