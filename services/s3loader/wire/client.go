package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// Options of a client. Store is required.
type Options struct {
	Store *objectstore.Store
	// Fresh gives every request a connection of its own.
	Fresh bool
	// Copy reads bodies into memory even where the kernel could drop them.
	Copy bool
	// Checksum compares the content of downloads, and has the store compare
	// that of uploads.
	Checksum bool
	// MaxIdle is how many connections are kept for further requests; 64 if 0.
	MaxIdle int
	// Buffer is the size of reads and writes, in bytes; 1 MiB if 0. Every
	// request under way may need one.
	Buffer int
	// Seed makes the pauses before retries repeatable.
	Seed uint64
}

const (
	// maxIdle is how long a connection is kept unused.
	maxIdle = 90 * time.Second
	// quietRace is from when on a connection that breaks before any response
	// counts as one that the store had closed for being idle: the request is
	// sent again (RFC 9112, 9.5) even if no retries are allowed.
	quietRace           = time.Second
	defaultContinueWait = time.Second
)

// Client sends requests to one store. It is safe for concurrent use.
type Client struct {
	o       Options
	tls     *tls.Config // nil: plain HTTP
	signer  *signer
	buffers *sync.Pool

	mu      sync.Mutex
	idle    []*conn            // the last used at the end
	open    map[*conn]struct{} // all of them
	stopped bool

	// continueWait is how long a store may take to say whether an upload is
	// welcome; RFC 9110 forbids to wait for ever, as not all of them say so.
	continueWait time.Duration

	randomMu sync.Mutex
	random   *rand.Rand
}

// New returns a client. It opens no connection before the first request.
func New(o Options) *Client {
	if o.MaxIdle <= 0 {
		o.MaxIdle = 64
	}
	if o.Buffer <= 0 {
		o.Buffer = 1 << 20
	}
	c := &Client{
		o: o, open: map[*conn]struct{}{},
		signer:  &signer{store: o.Store, close: o.Fresh, heads: map[headKey]signed{}},
		buffers: &sync.Pool{New: func() any { b := make([]byte, o.Buffer); return &b }},
		random:  retryRandom(o.Seed), continueWait: defaultContinueWait,
	}
	if o.Store.BaseURL().Scheme == "https" {
		c.tls = o.Store.TLSConfig()
		c.tls.NextProtos = []string{"http/1.1"}
	}
	return c
}

// Sibling returns a client of the same store with connections of its own, that
// shares signatures and memory with c.
func (c *Client) Sibling(seed uint64) *Client {
	return &Client{
		o: c.o, tls: c.tls, signer: c.signer, buffers: c.buffers,
		open: map[*conn]struct{}{}, random: retryRandom(seed), continueWait: c.continueWait,
	}
}

func retryRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x7265747279)) }

// Interrupt ends all that is under way, at once and for good. Requests return
// with an error; whether they were cancelled is for their context to say.
func (c *Client) Interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	for cn := range c.open {
		cn.interrupt()
	}
}

// Close closes the connections that no request uses; no request may follow.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	for _, cn := range c.idle {
		delete(c.open, cn)
		_ = cn.Close()
	}
	c.idle = nil
}

// Request is what to do.
type Request struct {
	Put         bool
	Bucket, Key string
	// Size is what a download must have, or an upload has.
	Size int64
	// Sum is the content's CRC-64/NVME: of an upload always, of a download if
	// Summed is set (else what the store says the object has is taken).
	Sum    uint64
	Summed bool
	// Content is what is uploaded.
	Content *objectstore.Content
	// Deadline bounds it all, retries included.
	Deadline time.Time
	Retries  int
	// PartSize, when smaller than Size, has the object fetched in ranges, Parallel
	// at a time, each on a connection of its own.
	PartSize int64
	Parallel int
}

// Result is what a request came to.
type Result struct {
	Status string // a status word of objectstore
	Err    error  // nil if ok
	HTTP   int    // last HTTP status; 0 if there was no response
	// Bytes of payload that the last attempt moved.
	Bytes   int64
	Retries int
	Parts   int // ranges; 0: the object as a whole

	// Begin is when work began: before name resolution, connection and
	// signature. Written is when the request was out (uploads: with its body),
	// FirstByte when the response began. Zero if it never came to that.
	Begin, Written, FirstByte, Done time.Time

	// Opened is set if a connection was opened for the request (the last
	// attempt); then the phases say how long each took, 0 if there was none.
	Opened            bool
	DNS, Connect, TLS time.Duration
}

// exchange is one attempt at one request or range.
type exchange struct {
	offset, length int64 // range; length 0: all
	group          *group

	bytes              int64
	sum                uint64 // of what arrived
	storeSum           uint64 // as the store says it
	storeSummed        bool
	status             int
	written, firstByte time.Time
	opened             bool
	took               dialled
	raced              bool // broke on a connection that may have been closed for being idle
}

// group is the ranges of one request: the first to fail ends the others.
type group struct {
	mu     sync.Mutex
	failed bool
	active map[*conn]struct{}
}

func (g *group) enter(c *conn) bool {
	if g == nil {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed {
		return false
	}
	g.active[c] = struct{}{}
	return true
}

func (g *group) leave(c *conn) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.active, c)
}

func (g *group) fail() (first bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	first = !g.failed
	g.failed = true
	for c := range g.active {
		c.interrupt()
	}
	return first
}

// Do executes a request. It returns soon after ctx has ended only if Interrupt
// is called then.
func (c *Client) Do(ctx context.Context, r *Request, res *Result) {
	*res = Result{Begin: time.Now()}
	if !r.Put && r.PartSize > 0 && r.Size > r.PartSize {
		c.ranges(ctx, r, res)
	} else {
		c.whole(ctx, r, res)
	}
	res.Done = time.Now()
}

func (c *Client) whole(ctx context.Context, r *Request, res *Result) {
	var x exchange
	retries := retrying{left: int64(r.Retries)}
	err := c.attempts(ctx, r, &x, &retries)
	if err == nil && !r.Put {
		err = c.compare(r, x.sum, x.storeSum, x.storeSummed)
	}
	res.Retries = int(retries.done)
	res.HTTP, res.Bytes = x.status, x.bytes
	res.Written, res.FirstByte = x.written, x.firstByte
	res.Opened, res.DNS, res.Connect, res.TLS = x.opened, x.took.dns, x.took.connect, x.took.tls
	res.Status, res.Err = classify(ctx, err), err
}

// compare checks a download's content.
func (c *Client) compare(r *Request, sum, storeSum uint64, storeSummed bool) error {
	if !c.o.Checksum {
		return nil
	}
	want := r.Sum
	if !r.Summed {
		if !storeSummed {
			return errors.New("the object has no CRC-64/NVME checksum to compare its content with")
		}
		want = storeSum
	}
	if sum != want {
		return fmt.Errorf("%w: CRC-64/NVME is %s, must be %s", objectstore.ErrCorrupt, objectstore.EncodeCRC64(sum), objectstore.EncodeCRC64(want))
	}
	return nil
}

// ranges fetches an object in parts.
func (c *Client) ranges(ctx context.Context, r *Request, res *Result) {
	parts := int((r.Size + r.PartSize - 1) / r.PartSize)
	var (
		g       = group{active: map[*conn]struct{}{}}
		retries = retrying{left: int64(r.Retries)}
		done    = make([]exchange, parts)
		next    atomic.Int64
		workers sync.WaitGroup
		failure error
		failed  exchange
	)
	for range min(max(r.Parallel, 1), parts) {
		workers.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(parts) {
					return
				}
				x := &done[i]
				x.group, x.offset = &g, i*r.PartSize
				x.length = min(r.PartSize, r.Size-x.offset)
				if err := c.attempts(ctx, r, x, &retries); err != nil {
					if g.fail() {
						failure, failed = err, *x
					}
					return
				}
			}
		})
	}
	workers.Wait()
	var sum, storeSum uint64
	storeSummed := false
	for i := range done {
		x := &done[i]
		res.Bytes += x.bytes
		res.Written = later(res.Written, x.written)
		if !x.firstByte.IsZero() && (res.FirstByte.IsZero() || x.firstByte.Before(res.FirstByte)) {
			res.FirstByte = x.firstByte
		}
		if x.opened {
			res.Opened = true
			res.DNS, res.Connect, res.TLS = max(res.DNS, x.took.dns), max(res.Connect, x.took.connect), max(res.TLS, x.took.tls)
		}
		if c.o.Checksum {
			sum = objectstore.CombineCRC64(sum, x.sum, x.length)
			if x.storeSummed {
				storeSum, storeSummed = x.storeSum, true
			}
		}
	}
	res.HTTP = done[0].status
	if failure == nil {
		failure = c.compare(r, sum, storeSum, storeSummed)
	} else {
		res.HTTP = failed.status
	}
	res.Parts, res.Retries = parts, int(retries.done)
	res.Status, res.Err = classify(ctx, failure), failure
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// classify says what a request came to. If it was being cut off, only what can
// no longer change stands.
func classify(ctx context.Context, err error) string {
	status := objectstore.Classify(err)
	if err == nil || ctx.Err() == nil {
		return status
	}
	switch status {
	case objectstore.StatusTruncated, objectstore.StatusCorrupt, objectstore.StatusDenied, objectstore.StatusNoBucket, objectstore.StatusNoObject:
		return status
	}
	return objectstore.StatusCancelled
}

// retrying is the budget of a request, over all its ranges.
type retrying struct {
	mu         sync.Mutex
	left, done int64
}

// take uses one retry up; a free one is counted but not taken from the budget.
func (r *retrying) take(free bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !free {
		if r.left == 0 {
			return false
		}
		r.left--
	}
	r.done++
	return true
}

func retriable(status string) bool {
	return slices.Contains([]string{
		objectstore.StatusThrottled, objectstore.StatusServerError, objectstore.StatusReset, objectstore.StatusRefused,
	}, status)
}

func (c *Client) attempts(ctx context.Context, r *Request, x *exchange, retries *retrying) error {
	free := true
	for n := 0; ; n++ {
		begun := exchange{offset: x.offset, length: x.length, group: x.group}
		*x = begun
		err := c.attempt(ctx, r, x)
		if err == nil || ctx.Err() != nil || !retriable(objectstore.Classify(err)) {
			return err
		}
		if x.raced && free && retries.take(true) {
			free = false
			continue
		}
		pause := c.pause(n)
		if time.Until(r.Deadline) <= pause || !retries.take(false) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// pause is the time before retry n: exponential, half of it random.
func (c *Client) pause(n int) time.Duration {
	const shortest, longest = 50 * time.Millisecond, 5 * time.Second
	d := min(shortest<<min(n, 10), longest)
	c.randomMu.Lock()
	defer c.randomMu.Unlock()
	return d/2 + time.Duration(c.random.Int64N(int64(d/2)+1))
}

var errInterrupted = errors.New("interrupted")

func (c *Client) attempt(ctx context.Context, r *Request, x *exchange) error {
	h, err := c.signer.head(ctx, headKey{
		put: r.Put, bucket: r.Bucket, key: r.Key, offset: x.offset, bytes: x.length,
		checksum: r.Sum, check: c.o.Checksum,
	}, r.Size, time.Now())
	if err != nil {
		return err
	}
	cn, err := c.acquire(ctx, &h, r.Deadline, x)
	if err != nil {
		return err
	}
	if !x.group.enter(cn) {
		c.release(cn, true)
		return errInterrupted
	}
	quiet := !x.opened && time.Since(cn.idle) > quietRace
	if err = cn.until(r.Deadline); err != nil {
		err = fmt.Errorf("set deadline: %w", err)
	}
	reusable := false
	if err == nil && r.Put {
		reusable, err = c.put(cn, r, &h, x)
	} else if err == nil {
		reusable, err = c.get(cn, r, &h, x)
	}
	x.group.leave(cn)
	c.release(cn, reusable && !cn.head.close && cn.in.Buffered() == 0)
	if err != nil && quiet && x.firstByte.IsZero() {
		x.raced = objectstore.Classify(err) == objectstore.StatusReset
	}
	return err
}

// acquire takes an idle connection or opens one.
func (c *Client) acquire(ctx context.Context, h *signed, deadline time.Time, x *exchange) (*conn, error) {
	for {
		cn := c.takeIdle(h.address)
		if cn == nil {
			break
		}
		if cn.usable(time.Now()) {
			return cn, nil
		}
		c.release(cn, false)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	config := c.tls
	if config != nil {
		config = config.Clone()
		config.ServerName = h.name
	}
	x.opened = true
	cn, took, err := dial(ctx, h.address, config)
	x.took = took
	if err != nil {
		return nil, err
	}
	cn.sums = c.o.Checksum
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[cn] = struct{}{}
	if c.stopped {
		cn.interrupt()
	}
	return cn, nil
}

func (c *Client) takeIdle(address string) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.idle) - 1; i >= 0; i-- {
		if cn := c.idle[i]; cn.address == address {
			c.idle = slices.Delete(c.idle, i, i+1)
			return cn
		}
	}
	return nil
}

// release gives a connection back, or closes it. Of too many idle ones the one
// that was used least recently goes: with the bucket in the host's name there
// are several addresses.
func (c *Client) release(cn *conn, reusable bool) {
	c.mu.Lock()
	if reusable && !c.o.Fresh && !c.stopped && !cn.wasInterrupted() {
		cn.idle = time.Now()
		c.idle = append(c.idle, cn)
		cn = nil
		if len(c.idle) > c.o.MaxIdle {
			cn = c.idle[0]
			c.idle = slices.Delete(c.idle, 0, 1)
		}
	}
	if cn != nil {
		delete(c.open, cn)
	}
	c.mu.Unlock()
	if cn != nil {
		_ = cn.Close()
	}
}

func (c *Client) get(cn *conn, r *Request, h *signed, x *exchange) (reusable bool, err error) {
	if _, err := cn.Write(h.text); err != nil {
		return false, fmt.Errorf("send the request: %w", err)
	}
	x.written = time.Now()
	if err := cn.awaitByte(); err != nil {
		return false, err
	}
	x.firstByte = time.Now()
	if err := cn.readFinalHead(); err != nil {
		return false, unanswered(err)
	}
	x.status = cn.head.status
	want, wantStatus := r.Size, http.StatusOK
	if x.length > 0 {
		want, wantStatus = x.length, http.StatusPartialContent
	}
	if x.status != wantStatus {
		return c.refusal(cn, x)
	}
	if x.length > 0 && (!cn.head.ranged || cn.head.first != x.offset || cn.head.last != x.offset+x.length-1) {
		return false, malformed("bytes %d to %d came instead of %d to %d", cn.head.first, cn.head.last, x.offset, x.offset+x.length-1)
	}
	if cn.head.length >= 0 && cn.head.length != want {
		return false, fmt.Errorf("%w: the response has %d bytes, must have %d", objectstore.ErrCorrupt, cn.head.length, want)
	}
	x.storeSum, x.storeSummed = cn.head.sum, cn.head.summed
	b := body{c: cn}
	if c.o.Checksum {
		b.see = func(p []byte) { x.sum = objectstore.UpdateCRC64(x.sum, p) }
	}
	// Chunks have to be looked at to find their ends.
	if canDiscard && cn.raw != nil && !c.o.Copy && !c.o.Checksum && cn.head.length >= 0 {
		b.kernel = true
	} else {
		buffer := c.buffers.Get().(*[]byte)
		defer c.buffers.Put(buffer)
		b.buffer = *buffer
	}
	x.bytes, reusable, err = b.read(want)
	if err == nil && x.bytes != want {
		// A body that ends with its connection may have been cut; one that says
		// itself where it ends is of another size.
		err = io.ErrUnexpectedEOF
		if cn.head.chunked || x.bytes > want {
			err = objectstore.ErrCorrupt
		}
		err = fmt.Errorf("the response has %d bytes, must have %d: %w", x.bytes, want, err)
	}
	return reusable, err
}

// unanswered tells a connection that ends within a response's head, where
// nothing was announced yet, from a body that is too short.
func unanswered(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read the response's head: %w", io.EOF)
	}
	return err
}

const maxErrorBody = 64 << 10

// refusal reads a response that is not the one wanted.
func (c *Client) refusal(cn *conn, x *exchange) (reusable bool, err error) {
	var text bytes.Buffer
	buffer := make([]byte, 4096)
	b := body{c: cn, buffer: buffer, see: func(p []byte) { text.Write(p) }}
	_, reusable, err = b.read(maxErrorBody)
	if err != nil && text.Len() == 0 && cn.head.status < 300 {
		return false, err
	}
	response := objectstore.ReadError(&http.Response{StatusCode: cn.head.status, Body: io.NopCloser(&text)})
	if cn.head.status < 300 {
		want := "200"
		if x.length > 0 {
			want = "206: it does not serve ranges"
		}
		return false, malformed("the store answers %d, not %s", cn.head.status, want)
	}
	return reusable, response
}

func (c *Client) put(cn *conn, r *Request, h *signed, x *exchange) (reusable bool, err error) {
	buffer := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buffer)
	b := *buffer
	// Head and body in one write, but for a body that may not be wanted.
	n := copy(b, h.text)
	if n < len(h.text) {
		return false, fmt.Errorf("the request's head has %d bytes, the buffer %d", len(h.text), len(b))
	}
	if r.Size >= expectFrom {
		if _, err := cn.Write(b[:n]); err != nil {
			return false, fmt.Errorf("send the request: %w", err)
		}
		n = 0
		answered, err := c.awaitContinue(cn, r, x)
		if err != nil {
			return false, err
		}
		if answered {
			// Without its body the request is not complete: nothing can follow.
			_, err := c.answer(cn, x)
			return false, err
		}
	}
	for sent := int64(0); sent < r.Size || n > 0; {
		fill := b[n : n+int(min(int64(len(b)-n), r.Size-sent))]
		if len(fill) > 0 {
			if _, err := r.Content.ReadAt(fill, sent); err != nil && !errors.Is(err, io.EOF) {
				return false, err
			}
		}
		m, err := cn.Write(b[:n+len(fill)])
		x.bytes += int64(max(m-n, 0))
		if err != nil {
			return false, c.brokenOff(cn, r, x, fmt.Errorf("send the body, at byte %d of %d: %w", x.bytes, r.Size, err))
		}
		sent += int64(len(fill))
		n = 0
	}
	x.written = time.Now()
	if err := cn.awaitByte(); err != nil {
		return false, err
	}
	x.firstByte = time.Now()
	if err := cn.readFinalHead(); err != nil {
		return false, unanswered(err)
	}
	return c.answer(cn, x)
}

// awaitContinue reports whether the store has answered for good.
func (c *Client) awaitContinue(cn *conn, r *Request, x *exchange) (answered bool, err error) {
	until := time.Now().Add(c.continueWait)
	if until.After(r.Deadline) {
		until = r.Deadline
	}
	if err := cn.readUntil(until); err != nil {
		return false, fmt.Errorf("set deadline: %w", err)
	}
	err = cn.awaitByte()
	if rerr := cn.readUntil(r.Deadline); rerr != nil {
		return false, fmt.Errorf("set deadline: %w", rerr)
	}
	switch {
	case err != nil && objectstore.Classify(err) == objectstore.StatusTimeout && time.Now().Before(r.Deadline) && !cn.wasInterrupted():
		return false, nil
	case err != nil:
		return false, err
	}
	first := time.Now()
	for range maxInterim {
		if err := cn.readHead(); err != nil {
			return false, unanswered(err)
		}
		switch {
		case cn.head.status == http.StatusContinue:
			return false, nil
		case cn.head.status >= 200:
			x.firstByte = first
			return true, nil
		}
	}
	return false, malformed("more than %d interim responses", maxInterim)
}

// answer reads the response to an upload whose head was read.
func (c *Client) answer(cn *conn, x *exchange) (reusable bool, err error) {
	x.status = cn.head.status
	if x.status < 200 || x.status >= 300 {
		return c.refusal(cn, x)
	}
	b := body{c: cn, buffer: make([]byte, 512)}
	_, reusable, err = b.read(maxErrorBody)
	return reusable, err
}

// brokenOff looks whether a store that takes no more of a body has said why.
func (c *Client) brokenOff(cn *conn, r *Request, x *exchange, err error) error {
	if status := objectstore.Classify(err); status != objectstore.StatusReset {
		return err
	}
	until := time.Now().Add(c.continueWait)
	if until.After(r.Deadline) {
		until = r.Deadline
	}
	if cn.readUntil(until) != nil || cn.awaitByte() != nil {
		return err
	}
	x.firstByte = time.Now()
	if cn.readFinalHead() != nil {
		return err
	}
	if _, said := c.answer(cn, x); said != nil {
		return said
	}
	return err
}
