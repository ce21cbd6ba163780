package transport

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// meter is a socket that counts.
type meter interface {
	usage() Usage
	Close() error
}

// tally is the sum over sockets, those that are closed included; each socket is
// in its endpoint's and in its network's.
type tally struct {
	parent *tally

	mu     sync.Mutex
	ended  Usage
	live   map[meter]struct{}
	closed bool
}

func newTally(parent *tally) *tally {
	return &tally{parent: parent, live: map[meter]struct{}{}}
}

// enter is false, and changes nothing, when the tally is closed.
func (t *tally) enter(m meter) bool {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	t.live[m] = struct{}{}
	t.mu.Unlock()
	return t.parent == nil || t.parent.enter(m)
}

// leave takes a socket's last figures in its place.
func (t *tally) leave(m meter, last Usage) {
	for ; t != nil; t = t.parent {
		t.mu.Lock()
		if _, ok := t.live[m]; ok {
			delete(t.live, m)
			t.ended.Add(last)
		}
		t.mu.Unlock()
	}
}

func (t *tally) usage() Usage {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := t.ended
	for m := range t.live {
		sum.Add(m.usage())
	}
	return sum
}

// close lets no more in and returns who is left.
func (t *tally) close() []meter {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	left := make([]meter, 0, len(t.live))
	for m := range t.live {
		left = append(left, m)
	}
	return left
}

// tcpConn embeds the real type, not an interface, since net.Buffers and io.Copy
// ask for that to have one system call for many pieces.
type tcpConn struct {
	*net.TCPConn
	tally *tally

	mu      sync.Mutex
	aborted bool
	ended   bool
	last    SocketStats
	known   bool
}

// newTCP closes the connection when the tally is closed.
func newTCP(c *net.TCPConn, t *tally) (*tcpConn, error) {
	counted := &tcpConn{TCPConn: c, tally: t}
	if !t.enter(counted) {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	return counted, nil
}

func (c *tcpConn) stats() (SocketStats, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return c.last, c.known
	}
	s, _, ok := socketStats(c.TCPConn)
	return s, ok
}

func (c *tcpConn) usage() Usage {
	s, _ := c.stats()
	return Usage{TCP: s}
}

// SetLinger is net.TCPConn's.
func (c *tcpConn) SetLinger(seconds int) error {
	c.mu.Lock()
	c.aborted = seconds == 0
	c.mu.Unlock()
	return c.TCPConn.SetLinger(seconds)
}

// lingerLimit bounds how long a close waits for what has not been sent.
const (
	lingerLimit = 250 * time.Millisecond
	lingerPoll  = time.Millisecond
)

// Close closes the connection; its figures stay. What the kernel has taken and
// not sent yet is sent first, as far as the other side takes it in time: of what
// becomes of the rest after the close nobody tells, so that it counts as sent.
func (c *tcpConn) Close() error {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return c.TCPConn.Close()
	}
	var queued uint64
	c.last, queued, c.known = socketStats(c.TCPConn)
	if queued > 0 && !c.aborted {
		c.last, queued, c.known = c.linger()
		c.last.Sent += queued
	}
	c.ended = true
	last := c.last
	c.mu.Unlock()
	c.tally.leave(c, Usage{TCP: last})
	return c.TCPConn.Close()
}

// linger ends the stream and waits until all of it is sent or the other side has
// reset the connection; what comes in the meantime is dropped.
func (c *tcpConn) linger() (s SocketStats, queued uint64, ok bool) {
	over := time.Now().Add(lingerLimit)
	if c.TCPConn.CloseWrite() == nil && c.TCPConn.SetReadDeadline(over) == nil {
		// However it ends, the figures tell.
		_, _ = io.Copy(io.Discard, c.TCPConn)
	}
	for {
		s, queued, ok = socketStats(c.TCPConn)
		left := time.Until(over)
		if !ok || queued == 0 || left <= 0 {
			return s, queued, ok
		}
		time.Sleep(min(left, lingerPoll)) // the kernel tells nobody when it has sent something
	}
}

// Abort closes a connection at once: what has not been sent is dropped, and by
// TCP the other side is told so (RST). It looks through wrappers that have
// NetConn() net.Conn.
func Abort(c net.Conn) error {
	for inner := c; ; {
		if l, ok := inner.(interface{ SetLinger(seconds int) error }); ok {
			// What fails here is closed already, or will be all the same.
			_ = l.SetLinger(0)
			break
		}
		w, ok := inner.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		inner = w.NetConn()
	}
	return c.Close()
}

// tcpListener hands out counted connections.
type tcpListener struct {
	*net.TCPListener
	tally *tally
}

func (l *tcpListener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return counted(newTCP(c, l.tally))
}

// packetConn is a UDP socket that counts. It has no more methods than are
// counted.
type packetConn struct {
	c      *net.UDPConn
	tally  *tally
	once   sync.Once
	closed chan struct{}

	sent, received, sentBytes, receivedBytes atomic.Uint64
}

func newUDP(c *net.UDPConn, t *tally) (*packetConn, error) {
	p := &packetConn{c: c, tally: t, closed: make(chan struct{})}
	if !t.enter(p) {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	return p, nil
}

func (p *packetConn) countSent(n int, err error) {
	if err == nil {
		p.sent.Add(1)
		p.sentBytes.Add(uint64(n))
	}
}

func (p *packetConn) countReceived(n int, err error) {
	if err == nil {
		p.received.Add(1)
		p.receivedBytes.Add(uint64(n))
	}
}

func (p *packetConn) datagrams() Datagrams {
	return Datagrams{
		Sent: p.sent.Load(), Received: p.received.Load(),
		SentBytes: p.sentBytes.Load(), ReceivedBytes: p.receivedBytes.Load(),
	}
}

func (p *packetConn) usage() Usage { return Usage{UDP: p.datagrams()} }

func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, a, err := p.c.ReadFrom(b)
	p.countReceived(n, err)
	return n, a, err
}

func (p *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := p.c.WriteTo(b, to)
	p.countSent(n, err)
	return n, err
}

// ReadFromUDPAddrPort is net.UDPConn's.
func (p *packetConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, a, err := p.c.ReadFromUDPAddrPort(b)
	p.countReceived(n, err)
	return n, a, err
}

// WriteToUDPAddrPort is net.UDPConn's.
func (p *packetConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	n, err := p.c.WriteToUDPAddrPort(b, to)
	p.countSent(n, err)
	return n, err
}

func (p *packetConn) Read(b []byte) (int, error) {
	n, err := p.c.Read(b)
	p.countReceived(n, err)
	return n, err
}

func (p *packetConn) Write(b []byte) (int, error) {
	n, err := p.c.Write(b)
	p.countSent(n, err)
	return n, err
}

func (p *packetConn) Close() error {
	err := p.c.Close()
	p.once.Do(func() {
		p.tally.leave(p, p.usage())
		close(p.closed)
	})
	return err
}

func (p *packetConn) LocalAddr() net.Addr                { return p.c.LocalAddr() }
func (p *packetConn) RemoteAddr() net.Addr               { return p.c.RemoteAddr() }
func (p *packetConn) SetDeadline(t time.Time) error      { return p.c.SetDeadline(t) }
func (p *packetConn) SetReadDeadline(t time.Time) error  { return p.c.SetReadDeadline(t) }
func (p *packetConn) SetWriteDeadline(t time.Time) error { return p.c.SetWriteDeadline(t) }

// utpConn counts the bytes of its stream; its packets are counted by the
// endpoint's socket.
type utpConn struct {
	net.Conn
	tally *tally
	once  sync.Once

	// One Write at a time: the library sends a long one in parts, between which
	// another's would get.
	writing        sync.Mutex
	sent, received atomic.Uint64
}

func newUTP(c net.Conn, t *tally) (*utpConn, error) {
	u := &utpConn{Conn: c, tally: t}
	if !t.enter(u) {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	return u, nil
}

func (u *utpConn) stats() SocketStats {
	return SocketStats{Sent: u.sent.Load(), Received: u.received.Load(), Connections: 1}
}

func (u *utpConn) usage() Usage { return Usage{} }

func (u *utpConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil // the library would wait
	}
	n, err := u.Conn.Read(b)
	u.received.Add(uint64(n))
	return n, inTerms(err)
}

func (u *utpConn) Write(b []byte) (int, error) {
	u.writing.Lock()
	defer u.writing.Unlock()
	n, err := u.Conn.Write(b)
	u.sent.Add(uint64(n))
	return n, inTerms(err)
}

// inTerms makes the library's error of a deadline the one that everybody asks
// for; a peer that no longer answers is a timeout there, too, but not that.
func inTerms(err error) error {
	if err != nil && err.Error() == "i/o timeout" {
		return os.ErrDeadlineExceeded
	}
	return err
}

func (u *utpConn) Close() error {
	err := u.Conn.Close()
	u.once.Do(func() { u.tally.leave(u, Usage{}) })
	return err
}
