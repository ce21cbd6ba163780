package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/transport"
	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

var (
	errSelf    = errors.New("that is this peer itself")
	errTwice   = errors.New("already connected")
	errBanned  = errors.New("sent pieces that were wrong")
	errFull    = errors.New("no room for another connection")
	errTorrent = errors.New("has another torrent")
	errRequest = errors.New("asks for what is not in the file")
)

// request is a block asked for.
type request struct {
	piece, begin, n int32
	at              time.Time
}

// conn is a connection to another peer. Its reader runs on the goroutine of
// [conn.run], its writer on one of its own; all but the ledger's halves is
// guarded by the peer's mu.
type conn struct {
	p        *Peer
	c        net.Conn
	outgoing bool
	remote   netip.AddrPort
	id       [20]byte
	fast     bool
	seed     bool // had everything when it said hello
	// roundTrip is how long the first answer took: not more than a round trip and
	// what the other needs for it.
	roundTrip time.Duration
	entered   time.Time
	ledger    wire.Ledger

	wake   *sync.Cond // of p.mu: there is something to write, or closed
	closed bool
	ending bool // closed once everything is written

	out     []byte // messages to write
	classes [wire.Classes]wire.Tally

	// What we want of the other.
	bits        wire.Bits
	wanted      int // pieces it has that we lack
	interesting bool
	choked      bool
	pending     []request // asked for, in order, and not begun to come
	inFlight    int64
	window      int64
	stray       int64 // bytes that nobody asked for
	optimistic  int
	moved       int64 // content in either direction
	movedBefore int64
	rate        int64

	// What the other wants of us.
	choking    bool
	interested bool
	requests   []request
	granted    []request // of requests, when uploads are limited
	shows      wire.Bits // pieces shown while super-seeding
	shown      int       // of these, not sent yet
}

func newConn(p *Peer, c net.Conn, outgoing bool) *conn {
	o := &conn{p: p, c: c, outgoing: outgoing, choked: true, choking: true, bits: wire.NewBits(len(p.pieces))}
	o.wake = sync.NewCond(&p.mu)
	o.window = max(firstWindow, p.t.PieceLength/2)
	if p.opt.Window > 0 {
		o.window = p.opt.Window
	}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		o.remote = a
	}
	return o
}

// call connects to another and says hello.
func (p *Peer) call(to netip.AddrPort) (*conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, dialPatience)
	defer cancel()
	nc, err := p.opt.Dial(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	c := newConn(p, nc, true)
	if p.opt.Secure != nil {
		secured, overhead, err := p.opt.Secure(ctx, nc, true)
		c.encrypted(overhead)
		switch {
		case errors.Is(err, transport.ErrRedialPlain):
			p.bury(c)
			if nc, err = p.opt.Dial(ctx, to); err != nil {
				return nil, fmt.Errorf("dial %s: %w", to, err)
			}
			c = newConn(p, nc, true)
		case err != nil:
			p.bury(c)
			return nil, fmt.Errorf("agree on encryption with %s: %w", to, err)
		default:
			c.c = secured
		}
	}
	c.remote = to
	said := time.Now()
	err = c.greet(ctx, func() error {
		if err := c.write(p.hello.Append(nil), wire.Handshake); err != nil {
			return err
		}
		return c.readHello()
	})
	if err != nil {
		p.bury(c)
		return nil, err
	}
	c.roundTrip = time.Since(said)
	return c, nil
}

// welcome serves a connection that another has made.
func (p *Peer) welcome(nc net.Conn) {
	ctx, cancel := context.WithTimeout(p.ctx, helloPatience)
	defer cancel()
	c := newConn(p, nc, false)
	if p.opt.Secure != nil {
		secured, overhead, err := p.opt.Secure(ctx, nc, false)
		c.encrypted(overhead)
		if err != nil {
			p.bury(c)
			return
		}
		c.c = secured
	}
	err := c.greet(ctx, func() error {
		if err := c.readHello(); err != nil {
			return err
		}
		// What follows the hello goes with it.
		c.out = p.hello.Append(c.out)
		c.classes[wire.Handshake].Messages++
		c.classes[wire.Handshake].Bytes += wire.HandshakeSize
		return nil
	})
	if err != nil {
		p.bury(c)
		return
	}
	// Its end concerns nobody: the other may come again.
	_ = c.run()
}

// greet runs f with a deadline that is also ctx's.
func (c *conn) greet(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = c.c.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return err
}

func (c *conn) encrypted(o Overhead) {
	if o.Sent > 0 {
		c.ledger.Sent[wire.Encryption] = wire.Tally{Messages: 1, Bytes: o.Sent}
	}
	if o.Received > 0 {
		c.ledger.Received[wire.Encryption] = wire.Tally{Messages: 1, Bytes: o.Received}
	}
}

func (c *conn) write(b []byte, class wire.Class) error {
	n, err := c.c.Write(b)
	c.ledger.Sent[class].Bytes += uint64(n)
	c.ledger.Sent[class].Messages++
	return err
}

// readHello reads the other's handshake and looks whether it is welcome.
func (c *conn) readHello() error {
	var b [wire.HandshakeSize]byte
	n, err := io.ReadFull(c.c, b[:])
	c.ledger.Received[wire.Handshake].Bytes += uint64(n)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	c.ledger.Received[wire.Handshake].Messages++
	h, err := wire.ParseHello(b[:])
	switch {
	case err != nil:
		return err
	case h.InfoHash != c.p.hello.InfoHash:
		return errTorrent
	case h.ID == c.p.hello.ID:
		return errSelf
	}
	c.id, c.fast = h.ID, h.Fast()
	return nil
}

// enter makes the connection one of the peer's and says what the peer has.
func (c *conn) enter() error {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	twin := p.byID[c.id]
	switch {
	case p.ended:
		return net.ErrClosed
	case p.banned[c.id]:
		return errBanned
	case twin != nil && !c.outranks(twin):
		return errTwice
	case twin == nil && len(p.conns) >= p.opt.Connections:
		return errFull
	}
	if twin != nil {
		twin.shut(false)
	}
	c.entered = time.Now()
	p.byID[c.id] = c
	p.conns = append(p.conns, c)
	p.report.Connections++
	if p.report.Handshake.IsZero() {
		p.report.Handshake = time.Now()
	}
	c.announceBits()
	if p.opt.Slots == 0 {
		// Nobody has to ask for what everybody gets.
		c.choking = false
		c.say(wire.Message{ID: wire.IDUnchoke})
	}
	return nil
}

// outranks says which of two connections between the same peers stays: both
// ends come to the same answer, the one begun by the lower id.
func (c *conn) outranks(twin *conn) bool {
	if c.outgoing == twin.outgoing {
		return false
	}
	lower := string(c.p.hello.ID[:]) < string(c.id[:])
	return c.outgoing == lower
}

// announceBits says what we have; p.mu is held.
func (c *conn) announceBits() {
	p := c.p
	n := len(p.pieces)
	have := n - p.missing
	switch {
	case !p.open:
		c.shows = wire.NewBits(n)
		if c.fast {
			c.say(wire.Message{ID: wire.IDHaveNone})
		}
		p.reveal(c)
	case have == n && c.fast:
		c.say(wire.Message{ID: wire.IDHaveAll})
	case have == 0 && c.fast:
		c.say(wire.Message{ID: wire.IDHaveNone})
	case have > 0:
		c.say(wire.Message{ID: wire.IDBitfield, Bits: slices.Clone(p.have)})
	}
}

// say queues a message; p.mu is held.
func (c *conn) say(m wire.Message) {
	if c.closed || c.ending {
		return
	}
	before := len(c.out)
	c.out = m.Append(c.out)
	t := &c.classes[wire.ClassOf(m.ID)]
	t.Messages++
	t.Bytes += uint64(len(c.out) - before)
	c.wake.Signal()
}

// finish closes the connection once what is queued is written; p.mu is held.
func (c *conn) finish() {
	c.ending = true
	c.wake.Signal()
}

// shut closes the connection from any goroutine; what belongs to it is given
// back by its reader.
func (c *conn) shut(abort bool) {
	if abort {
		_ = transport.Abort(c.c)
		return
	}
	_ = c.c.Close()
}

// run serves the connection until it ends.
func (c *conn) run() error {
	p := c.p
	if err := c.enter(); err != nil {
		p.bury(c)
		return err
	}
	// The end of the peer may have come while it was not one of its connections.
	stop := context.AfterFunc(p.ctx, func() { c.shut(!errors.Is(context.Cause(p.ctx), errLeft)) })
	defer stop()
	var writing sync.WaitGroup
	writing.Go(c.send)
	r := newReader(c)
	err := r.run()
	p.mu.Lock()
	c.closed = true
	c.wake.Signal()
	p.drop(c)
	p.mu.Unlock()
	_ = c.c.Close()
	writing.Wait()
	p.bury(c)
	return err
}

// bury closes a connection and enters what it has carried in the peer's books.
func (p *Peer) bury(c *conn) {
	_ = c.c.Close()
	// Of a connection that is closed these are the figures at its end.
	sockets, known := transport.StatsOf(c.c)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Wire.Add(&c.ledger)
	if known {
		p.report.Sockets.Add(sockets)
	}
}

// drop takes a connection out of the peer's; p.mu is held.
func (p *Peer) drop(c *conn) {
	p.release(c)
	if p.byID[c.id] == c {
		delete(p.byID, c.id)
	}
	if at := slices.Index(p.conns, c); at >= 0 {
		p.conns = slices.Delete(p.conns, at, at+1)
	}
	for i := range p.pieces {
		if c.bits.Has(i) {
			p.pieces[i].available--
		}
	}
	c.requests, c.granted = nil, nil
	if p.opt.Slots > 0 {
		for _, o := range p.conns {
			p.grant(o)
		}
	}
	p.ask(nil)
}

// cancel takes back a request whose block has come from another; p.mu is held.
func (c *conn) cancel(r request) {
	for k := range c.pending {
		if q := c.pending[k]; q.piece == r.piece && q.begin == r.begin {
			c.pending = slices.Delete(c.pending, k, k+1)
			c.over(q)
			c.say(wire.Message{ID: wire.IDCancel, Index: uint32(r.piece), Begin: uint32(r.begin), Length: uint32(r.n)})
			return
		}
	}
}

// A writer puts at most this many blocks into one call of the system.
const batch = 32

// keepAlive is how long a connection may be silent before something is said
// (BEP 3).
const keepAlive = time.Minute

// send writes what is queued, until the connection is closed.
func (c *conn) send() {
	p := c.p
	var out []byte
	var blocks []request
	headers := make([]byte, batch*wire.PieceHeaderSize)
	var iov net.Buffers
	alive := time.AfterFunc(keepAlive, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(c.out) == 0 && !c.closed {
			c.out = append(c.out, 0, 0, 0, 0)
			c.classes[wire.KeepAlive].Messages++
			c.classes[wire.KeepAlive].Bytes += 4
			c.wake.Signal()
		}
	})
	defer alive.Stop()
	for {
		p.mu.Lock()
		ready := &c.requests
		if p.up != nil {
			ready = &c.granted
		}
		for len(c.out) == 0 && len(*ready) == 0 && !c.closed && !c.ending {
			c.wake.Wait()
		}
		if c.closed || c.ending && len(c.out) == 0 {
			ending := c.ending && !c.closed
			p.mu.Unlock()
			if ending {
				c.shut(false)
			}
			return
		}
		out, c.out = c.out, out[:0]
		classes := c.classes
		c.classes = [wire.Classes]wire.Tally{}
		n := min(len(*ready), batch)
		blocks = append(blocks[:0], (*ready)[:n]...)
		*ready = append((*ready)[:0], (*ready)[n:]...)
		if p.up != nil && n > 0 {
			p.uploads.Signal()
		}
		p.mu.Unlock()

		iov = iov[:0]
		if len(out) > 0 {
			iov = append(iov, out)
		}
		for k, r := range blocks {
			header := headers[k*wire.PieceHeaderSize:][:wire.PieceHeaderSize]
			wire.PutPieceHeader(header, uint32(r.piece), uint32(r.begin), int(r.n))
			at := int64(r.piece)*p.t.PieceLength + int64(r.begin)
			content := p.opt.Store[at : at+int64(r.n) : at+int64(r.n)]
			if p.opt.Corrupt {
				content = slices.Clone(content)
				content[len(content)/2] ^= 0x55
			}
			iov = append(iov, header, content)
		}
		rest := iov
		written, err := rest.WriteTo(c.c)
		c.enterSent(&classes, blocks, uint64(written), len(out))
		alive.Reset(keepAlive)
		if err != nil {
			// The reader ends with the connection.
			_ = c.c.Close()
			return
		}
		if len(blocks) > 0 {
			c.sent(blocks)
		}
	}
}

// enterSent enters what was written in the ledger. Of a connection that broke in
// the middle only what was taken counts.
func (c *conn) enterSent(classes *[wire.Classes]wire.Tally, blocks []request, written uint64, messages int) {
	sent := &c.ledger.Sent
	if left := uint64(messages); written < left {
		// Which of the messages it was is not looked up.
		sent[wire.Unknown].Bytes += written
		return
	}
	for k, t := range classes {
		sent[k].Messages += t.Messages
		sent[k].Bytes += t.Bytes
	}
	written -= uint64(messages)
	for _, r := range blocks {
		header := min(written, wire.PieceHeaderSize)
		content := min(written-header, uint64(r.n))
		if header == 0 {
			return
		}
		sent[wire.PieceHeader].Messages++
		sent[wire.PieceHeader].Bytes += header
		sent[wire.Payload].Bytes += content
		written -= header + content
	}
}

// sent takes note of blocks that were written.
func (c *conn) sent(blocks []request) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, r := range blocks {
		p.uploaded += int64(r.n)
		c.moved += int64(r.n)
		if p.open || c.shows == nil || !c.shows.Has(int(r.piece)) {
			continue
		}
		last := k == len(blocks)-1 || blocks[k+1].piece != r.piece
		if queue := c.granted; k == len(blocks)-1 && (len(queue) > 0 && queue[0].piece == r.piece || len(c.requests) > 0 && c.requests[0].piece == r.piece) {
			last = false
		}
		if last && c.shown > 0 {
			c.shown--
			p.reveal(c)
		}
	}
}

// message goes on with a message that is not a piece; p.mu is held.
func (c *conn) message(m wire.Message) error {
	p := c.p
	if c.roundTrip == 0 {
		c.roundTrip = time.Since(c.entered)
	}
	switch m.ID {
	case wire.IDChoke:
		c.choked = true
		// With the fast extension every request is refused by itself (BEP 6).
		if !c.fast {
			p.release(c)
			p.ask(nil)
		}
	case wire.IDUnchoke:
		c.choked = false
		if p.report.Unchoked.IsZero() {
			p.report.Unchoked = time.Now()
		}
		p.ask(c)
	case wire.IDInterested:
		c.interested = true
		p.grant(c)
	case wire.IDNotInterested:
		c.interested = false
		if p.opt.Slots > 0 {
			for _, o := range p.conns {
				p.grant(o)
			}
		}
	case wire.IDHave:
		if int64(m.Index) >= int64(len(p.pieces)) {
			return errRequest
		}
		c.has(int(m.Index))
		c.want()
	case wire.IDBitfield:
		bits := wire.Bits(m.Bits)
		if !bits.Valid(len(p.pieces)) {
			return fmt.Errorf("a bitfield of %d bytes for %d pieces", len(bits), len(p.pieces))
		}
		c.hasMany(bits.Has)
	case wire.IDHaveAll:
		c.hasMany(func(int) bool { return true })
	case wire.IDRequest:
		return c.asked(m)
	case wire.IDCancel:
		same := func(r request) bool { return r.piece == int32(m.Index) && r.begin == int32(m.Begin) }
		c.requests = slices.DeleteFunc(c.requests, same)
	case wire.IDReject:
		c.rejected(m)
	}
	return nil
}

// hasMany takes note of what the other says it has in its first message.
func (c *conn) hasMany(has func(int) bool) {
	all := true
	for i := range c.p.pieces {
		if has(i) {
			c.has(i)
		} else {
			all = false
		}
	}
	c.seed = all
	c.want()
}

func (c *conn) has(i int) {
	p := c.p
	if c.bits.Has(i) {
		return
	}
	c.bits.Set(i)
	p.pieces[i].available++
	if p.pieces[i].state != verified {
		c.wanted++
	}
}

// want says that the other has something of interest, and asks for it. Neither
// has anything for the other when both have all.
func (c *conn) want() {
	p := c.p
	if p.missing == 0 && c.bits.Count() == len(p.pieces) {
		c.finish()
		return
	}
	if c.wanted == 0 {
		return
	}
	if !c.interesting {
		c.interesting = true
		c.say(wire.Message{ID: wire.IDInterested})
	}
	if !c.choked {
		p.ask(c)
	}
}

// rejected takes note of a request that the other refuses; p.mu is held.
func (c *conn) rejected(m wire.Message) {
	for k := range c.pending {
		q := c.pending[k]
		if q.piece != int32(m.Index) || q.begin != int32(m.Begin) {
			continue
		}
		c.pending = slices.Delete(c.pending, k, k+1)
		c.over(q)
		if !slices.ContainsFunc(c.pending, func(o request) bool { return o.piece == q.piece }) {
			c.p.disown(int(q.piece), c)
		}
		return
	}
}

// tcp is the connection as the system knows it, nil for what is no plain TCP.
func (c *conn) tcp() syscall.RawConn {
	t, ok := c.c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
