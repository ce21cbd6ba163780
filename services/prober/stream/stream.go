// Package stream measures what is not a packet: TCP connections, TLS
// handshakes, HTTP requests and DNS queries; and it has the responders that
// agents answer each other with.
//
// One probe is one attempt on a socket of its own: nothing is retried, reused or
// raced against another address, since each would hide what the path did.
package stream

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Options hold for all probes of a prober.
type Options struct {
	Timeout  time.Duration // from the probe's begin to its end
	DSCP     int           // of packets sent, 0 to 63
	TTL      int           // of packets sent; 0 leaves the system's
	IP       string        // version that names are resolved to: any, 4 or 6
	Insecure bool          // certificates need nobody to vouch for them
	Roots    *x509.CertPool
	Resolver *net.Resolver // nil takes the system's
}

// Target is what is probed.
type Target struct {
	Protocol string // tcp, tls, http, https or dns
	// Addr is where it is. Without an address (http and https) each probe looks
	// Host up, and that is a phase of it.
	Addr netip.AddrPort
	Host string // name for TLS and HTTP
	Path string // of http and https
	Name string // that dns asks for
	// Mesh says that the target is an agent's responder: its certificate is
	// made up, and the connection may be reset rather than closed.
	Mesh  bool
	Token string // for HTTP's Authorization, if any
}

// Result is what became of a probe.
type Result struct {
	Begin, End time.Time
	// Phases; 0 where there was none. FirstByte is from the begin to the first
	// byte of the answer.
	DNS, Connect, TLS, FirstByte time.Duration
	TCPRTT                       time.Duration // the kernel's estimate after the handshake; 0 where it does not tell
	Status, Err                  string
	Bytes                        int64 // of the body, or of the DNS answer
	HTTPStatus                   int
	Addr                         netip.Addr // the address probed, also when it was looked up
}

// Limits on answers.
const (
	maxHead  = 256 << 10
	maxBody  = 64 << 20
	maxInter = 8 // interim responses (1xx)
)

// Prober does one probe after the other. It is not safe for concurrent use: its
// buffers are reused.
type Prober struct {
	o       Options
	reader  *bufio.Reader
	limited io.LimitedReader
	request []byte
	scratch []byte
}

// New does no I/O.
func New(o Options) *Prober {
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	return &Prober{o: o}
}

// buffers makes what the first probe that needs it uses, and all after it.
func (p *Prober) buffers() {
	if p.reader == nil {
		p.reader = bufio.NewReaderSize(&p.limited, 4<<10)
		p.scratch = make([]byte, 16<<10)
	}
}

// Do probes the target and fills r, whatever was in it. It returns by the
// timeout, and at once when ctx ends.
func (p *Prober) Do(ctx context.Context, t *Target, r *Result) {
	*r = Result{Begin: time.Now(), Addr: t.Addr.Addr()}
	err := p.do(ctx, t, r)
	r.End = time.Now()
	r.Status = schemas.StatusOK
	if err != nil {
		r.Status, r.Err = Classify(ctx, err), err.Error()
	}
}

func (p *Prober) do(ctx context.Context, t *Target, r *Result) error {
	deadline := r.Begin.Add(p.o.Timeout)
	switch t.Protocol {
	case schemas.ProtocolTCP:
		return p.tcp(ctx, t, deadline, r, func(net.Conn) error { return nil })
	case schemas.ProtocolTLS:
		return p.tcp(ctx, t, deadline, r, func(c net.Conn) error {
			_, err := p.handshake(c, t, r)
			return err
		})
	case schemas.ProtocolHTTP:
		return p.tcp(ctx, t, deadline, r, func(c net.Conn) error { return p.exchange(c, t, r) })
	case schemas.ProtocolHTTPS:
		return p.tcp(ctx, t, deadline, r, func(c net.Conn) error {
			secure, err := p.handshake(c, t, r)
			if err != nil {
				return err
			}
			return p.exchange(secure, t, r)
		})
	case schemas.ProtocolDNS:
		return p.dns(ctx, t, deadline, r)
	}
	return fmt.Errorf("no probes of protocol %q", t.Protocol)
}

// Lookup resolves a name to the address that is to be probed. version is any, 4
// or 6.
func Lookup(ctx context.Context, r *net.Resolver, version, host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a, nil
	}
	network := "ip"
	if version == "4" || version == "6" {
		network += version
	}
	all, err := r.LookupNetIP(ctx, network, host)
	if err != nil {
		return netip.Addr{}, err
	}
	return all[0].Unmap(), nil
}

func (p *Prober) dialer(deadline time.Time) *net.Dialer {
	return &net.Dialer{Deadline: deadline, KeepAlive: -1, Control: p.control}
}

func (p *Prober) control(network, _ string, raw syscall.RawConn) error {
	return mark(network, raw, p.o.DSCP, p.o.TTL)
}

// tcp connects and has then do the rest, on a connection that is closed by the
// deadline or when ctx ends.
func (p *Prober) tcp(ctx context.Context, t *Target, deadline time.Time, r *Result, then func(net.Conn) error) error {
	addr := t.Addr
	if !addr.Addr().IsValid() {
		lookup, cancel := context.WithDeadline(ctx, deadline)
		found, err := Lookup(lookup, p.o.Resolver, p.o.IP, t.Host)
		cancel()
		r.DNS = time.Since(r.Begin)
		if err != nil {
			return err
		}
		addr = netip.AddrPortFrom(found, t.Addr.Port())
		r.Addr = found
	}
	begin := time.Now()
	c, err := p.dialer(deadline).DialTCP(ctx, "tcp", netip.AddrPort{}, addr)
	if err != nil {
		return err
	}
	r.Connect = time.Since(begin)
	r.TCPRTT = tcpRTT(c)
	err = c.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	if err == nil {
		err = then(c)
	}
	stop()
	if t.Mesh {
		// A connection in TIME_WAIT holds a port for a minute: at a thousand
		// probes a second there would be none left.
		_ = c.SetLinger(0)
	}
	_ = c.Close()
	return err
}

// errHandshake marks what failed in TLS itself.
type errHandshake struct{ error }

func (e errHandshake) Unwrap() error { return e.error }

func (p *Prober) handshake(c net.Conn, t *Target, r *Result) (*tls.Conn, error) {
	begin := time.Now()
	secure := tls.Client(c, &tls.Config{
		ServerName: t.Host, RootCAs: p.o.Roots,
		InsecureSkipVerify: t.Mesh || p.o.Insecure, // an agent's certificate is of its own making, and its answers are worth nothing
	})
	err := secure.Handshake()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, statusError{schemas.StatusReset, errors.New("TLS handshake: connection closed")}
	}
	if err != nil {
		return nil, errHandshake{fmt.Errorf("TLS handshake: %w", err)}
	}
	r.TLS = time.Since(begin)
	return secure, nil
}

// Classify names what went wrong, in the words of events.
func Classify(ctx context.Context, err error) string {
	var handshake errHandshake
	var named *net.DNSError
	var rcode rcodeError
	var status statusError
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return schemas.StatusOK
	case ctx.Err() != nil:
		return schemas.StatusCancelled
	case errors.As(err, &status):
		return status.status
	case errors.As(err, &named), errors.As(err, &rcode):
		return schemas.StatusDNS
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return schemas.StatusTimeout
	case errors.Is(err, syscall.ECONNREFUSED):
		return schemas.StatusRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETDOWN), errors.Is(err, syscall.EHOSTDOWN):
		return schemas.StatusUnreachable
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return schemas.StatusReset
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return schemas.StatusDenied
	case errors.As(err, &handshake):
		return schemas.StatusTLS
	}
	return schemas.StatusError
}

// statusError carries a status that the error itself does not tell.
type statusError struct {
	status string
	error
}

func (e statusError) Unwrap() error { return e.error }
