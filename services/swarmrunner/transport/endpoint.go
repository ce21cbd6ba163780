package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/anacrolix/utp"
)

// Endpoint is one peer's foot in a network: an address, a listener there, and
// connections from there.
type Endpoint struct {
	network *Network
	addr    netip.AddrPort
	tally   *tally

	listener net.Listener
	tcp      *tcpListener // nil with uTP
	utp      *utpSocket   // nil with TCP
}

// Endpoint makes one for TCP or uTP at an address; with port 0 the kernel chooses
// the port.
func (n *Network) Endpoint(ctx context.Context, protocol string, addr netip.AddrPort) (*Endpoint, error) {
	e := &Endpoint{network: n, tally: newTally(n.tally)}
	switch protocol {
	case ProtocolTCP:
		l, err := n.listen(ctx, addr, e.tally)
		if err != nil {
			return nil, err
		}
		e.tcp, e.listener = l, l
	case ProtocolUTP:
		c, err := n.listenPacket(ctx, addr, e.tally)
		if err != nil {
			return nil, err
		}
		if e.utp, err = newUTPSocket(c, e.tally); err != nil {
			return nil, errors.Join(fmt.Errorf("uTP at %s: %w", addr, err), c.Close())
		}
		e.listener = (*utpListener)(e.utp)
	default:
		return nil, fmt.Errorf("endpoint at %s: protocol %q is neither tcp nor utp", addr, protocol)
	}
	var err error
	if e.addr, err = netip.ParseAddrPort(e.listener.Addr().String()); err != nil {
		return nil, errors.Join(fmt.Errorf("endpoint at %s: %w", addr, err), e.Close())
	}
	return e, nil
}

// Addr is where the endpoint is reached.
func (e *Endpoint) Addr() netip.AddrPort { return e.addr }

// Listener hands out the connections of others. Its Close ends that and nothing
// else.
func (e *Endpoint) Listener() net.Listener { return e.listener }

// Dial connects to another endpoint of the same protocol: by TCP from the same
// address and a port of its own, by uTP from the same port. Where nobody is, TCP
// is refused at once on loopback, while uTP asks until ctx ends or for 15 s.
func (e *Endpoint) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if e.utp != nil {
		return e.utp.dial(ctx, plain(to))
	}
	return e.network.dialTCP(ctx, e.addr.Addr(), to, e.tally)
}

// Usage is what all sockets of the endpoint did, the closed ones too.
func (e *Endpoint) Usage() Usage { return e.tally.usage() }

// Datagrams are what uTP sent and received; what they have more than the streams
// is uTP's headers and what it sent again.
func (e *Endpoint) Datagrams() Datagrams { return e.tally.usage().UDP }

// Close closes the listener and every connection. What those have taken is still
// sent: by the kernel with TCP, and with uTP before Close returns, for up to a
// second.
func (e *Endpoint) Close() error {
	err := e.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	for _, m := range e.tally.close() {
		// The packets of connections still to be closed go through the socket.
		if _, ok := m.(*packetConn); !ok {
			_ = m.Close()
		}
	}
	if e.utp != nil {
		err = errors.Join(err, e.utp.close())
	}
	return err
}

// utpLinger is how long an endpoint that closes waits for what has been sent to
// be acknowledged.
const utpLinger = time.Second

// utpWaiting is how many connections wait to be accepted.
const utpWaiting = 64

// utpSocket is one UDP socket with all of an endpoint's connections on it.
type utpSocket struct {
	conn   *packetConn
	socket *utp.Socket
	tally  *tally

	accepted chan *utpConn
	deaf     chan struct{} // closed by the listener's Close
	deafen   sync.Once
	finished chan struct{} // closed when no more connections are taken
}

func newUTPSocket(c *packetConn, t *tally) (*utpSocket, error) {
	socket, err := utp.NewSocketFromPacketConn(c)
	if err != nil {
		return nil, err
	}
	s := &utpSocket{
		conn: c, socket: socket, tally: t,
		accepted: make(chan *utpConn, utpWaiting),
		deaf:     make(chan struct{}),
		finished: make(chan struct{}),
	}
	go s.accept()
	return s, nil
}

// accept takes connections for as long as the socket is there, and turns away
// those that nobody listens for: the library would keep them waiting.
func (s *utpSocket) accept() {
	defer close(s.finished)
	for {
		c, err := s.socket.Accept()
		if err != nil {
			return
		}
		u, err := newUTP(c, s.tally)
		if err != nil {
			continue
		}
		select {
		case <-s.deaf:
			_ = u.Close()
			continue
		default:
		}
		select {
		case s.accepted <- u:
		case <-s.deaf:
			_ = u.Close()
		}
	}
}

func (s *utpSocket) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := s.socket.DialContext(ctx, "", to.String())
	if err != nil {
		return nil, fmt.Errorf("dial utp %s: %w", to, err)
	}
	return counted(newUTP(c, s.tally))
}

// close waits for connections whose last bytes are under way.
func (s *utpSocket) close() error {
	// The library closes its socket below with the last connection.
	err := s.socket.Close()
	timer := time.NewTimer(utpLinger)
	select {
	case <-s.conn.closed:
	case <-timer.C:
	}
	timer.Stop()
	err = errors.Join(err, s.socket.CloseNow(), s.conn.Close())
	<-s.finished
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// utpListener is what others see of the socket.
type utpListener utpSocket

func (l *utpListener) Accept() (net.Conn, error) {
	select {
	case <-l.deaf:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.deaf:
	case <-l.finished:
	}
	return nil, net.ErrClosed
}

func (l *utpListener) Addr() net.Addr { return l.conn.LocalAddr() }

// Close turns away who waits, too.
func (l *utpListener) Close() error {
	l.deafen.Do(func() { close(l.deaf) })
	for {
		select {
		case c := <-l.accepted:
			_ = c.Close()
		default:
			return nil
		}
	}
}
