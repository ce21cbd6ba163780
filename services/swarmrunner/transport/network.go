package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"syscall"
)

// Protocols.
const (
	ProtocolTCP = "tcp"
	ProtocolUTP = "utp"
	ProtocolUDP = "udp"
)

// ErrNotPermitted is why there is no private network: this system has none, or
// this process may not make one.
var ErrNotPermitted = errors.New("private network not permitted")

// Network is where sockets are made. It counts what all of them did, so that a
// trial that is to be accounted for has a Network of its own.
type Network struct {
	space *namespace // nil: the process's own
	tally *tally
}

// Host is the process's own network.
func Host() *Network { return &Network{tally: newTally(nil)} }

// Private makes a network that nothing else is in, with only a loopback interface
// (127.0.0.0/8 and ::1): a network namespace of Linux, for which the process
// must be root or have CAP_SYS_ADMIN. Otherwise the error is [ErrNotPermitted].
// It goes when it is closed and its last socket and process are.
func Private() (*Network, error) {
	space, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("private network: %w", err)
	}
	return &Network{space: space, tally: newTally(nil)}, nil
}

// Close ends the making of sockets, and the counters, of a private network;
// sockets that are there go on. For the host's it does nothing.
func (n *Network) Close() error {
	if n.space == nil {
		return nil
	}
	return n.space.close()
}

// Private tells whether the network was made by [Private].
func (n *Network) Private() bool { return n.space != nil }

// Name is "private" or "host".
func (n *Network) Name() string {
	if n.Private() {
		return "private"
	}
	return "host"
}

// Usage is what all sockets made here did, the closed ones too.
func (n *Network) Usage() Usage { return n.tally.usage() }

// Start starts a command inside the network: its [Host] is this one. It must not
// have a Pdeathsig, which would end it with a thread of this process.
func (n *Network) Start(cmd *exec.Cmd) error {
	if n.space == nil {
		return cmd.Start()
	}
	var startErr error
	if err := n.space.do(func() { startErr = cmd.Start() }); err != nil {
		return fmt.Errorf("start %s in the private network: %w", cmd.Path, err)
	}
	return startErr
}

type control func(network, address string, c syscall.RawConn) error

// of names the protocol with its version of IP, so that nothing is left to be
// looked up.
func of(protocol string, a netip.Addr) string {
	if a.Is4() {
		return protocol + "4"
	}
	return protocol + "6"
}

func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Listen takes TCP connections at an address. With port 0 the kernel chooses one.
func (n *Network) Listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	l, err := n.listen(ctx, addr, n.tally)
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (n *Network) listen(ctx context.Context, addr netip.AddrPort, t *tally) (*tcpListener, error) {
	addr = plain(addr)
	config := net.ListenConfig{Control: n.control(listening), KeepAlive: -1}
	// Go's listeners are MPTCP where the kernel has it: nobody here speaks that.
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, of(ProtocolTCP, addr.Addr()), addr.String())
	if err != nil {
		return nil, err
	}
	return &tcpListener{TCPListener: l.(*net.TCPListener), tally: t}, nil
}

// ListenPacket is a UDP socket at an address.
func (n *Network) ListenPacket(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	c, err := n.listenPacket(ctx, addr, n.tally)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (n *Network) listenPacket(ctx context.Context, addr netip.AddrPort, t *tally) (*packetConn, error) {
	addr = plain(addr)
	config := net.ListenConfig{Control: n.control(receiving)}
	c, err := config.ListenPacket(ctx, of(ProtocolUDP, addr.Addr()), addr.String())
	if err != nil {
		return nil, err
	}
	return newUDP(c.(*net.UDPConn), t)
}

// Dial connects by TCP or, for a tracker's client, UDP, from the address given;
// the zero one leaves that to the kernel. TCP connections send no keep-alives:
// BitTorrent has its own, and packets of unknown purpose would be counted.
func (n *Network) Dial(ctx context.Context, protocol string, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	switch protocol {
	case ProtocolTCP:
		return n.dialTCP(ctx, local, to, n.tally)
	case ProtocolUDP:
		to, local := plain(to), netip.AddrPortFrom(local.Unmap(), 0)
		dialer := net.Dialer{Control: n.control(dialing)}
		c, err := dialer.DialUDP(ctx, of(ProtocolUDP, to.Addr()), local, to)
		if err != nil {
			return nil, err
		}
		return counted(newUDP(c, n.tally))
	default:
		return nil, fmt.Errorf("dial %s: protocol %q is neither tcp nor udp", to, protocol)
	}
}

func (n *Network) dialTCP(ctx context.Context, local netip.Addr, to netip.AddrPort, t *tally) (net.Conn, error) {
	to = plain(to)
	dialer := net.Dialer{Control: n.control(dialing), KeepAlive: -1}
	c, err := dialer.DialTCP(ctx, of(ProtocolTCP, to.Addr()), netip.AddrPortFrom(local.Unmap(), 0), to)
	if err != nil {
		return nil, err
	}
	return counted(newTCP(c, t))
}

// counted keeps a nil pointer from becoming a connection that is not nil.
func counted[C interface {
	comparable
	net.Conn
}](c C, err error,
) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// purpose is what a socket is made for.
type purpose int

const (
	dialing purpose = iota
	listening
	receiving
)
