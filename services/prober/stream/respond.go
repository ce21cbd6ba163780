package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Limits of the responders: whoever reaches an agent's address may connect.
const (
	maxConnections = 1024 // of each responder; more are closed at once
	patience       = 10 * time.Second
	maxHeaderBytes = 8 << 10
)

// Responders answer the probes of other agents, with nothing of value. TCP and
// TLS connections are held until the other side ends them or 10 s are over. Off
// the loopback interface, HTTP answers only who has the token of the trial's key.
type Responders struct {
	log   *slog.Logger
	open  bool // nobody else can reach them
	token atomic.Pointer[string]
	ports map[string]uint16

	stop    context.CancelFunc
	ctx     context.Context
	closers []io.Closer
	serving sync.WaitGroup
}

// Listen opens responders for those of the protocols that this package knows
// (tcp, tls, http, https), each at a port of its own. At an address that is not
// this machine's (one that a router translates) they listen at all of its own.
func Listen(addr netip.Addr, protocols []string, log *slog.Logger) (*Responders, error) {
	ctx, stop := context.WithCancel(context.Background())
	r := &Responders{log: log, open: addr.IsLoopback(), ports: map[string]uint16{}, ctx: ctx, stop: stop}
	for _, protocol := range protocols {
		if err := r.listen(addr, protocol); err != nil {
			return nil, errors.Join(fmt.Errorf("open %s responder: %w", protocol, err), r.Close())
		}
	}
	return r, nil
}

// Ports are where the responders listen, by protocol.
func (r *Responders) Ports() map[string]uint16 { return r.ports }

// SetKey tells the secret that the trial's agents share.
func (r *Responders) SetKey(key []byte) {
	token := Token(key)
	r.token.Store(&token)
}

// Token is what HTTP probes of a trial show as their right to an answer; empty
// without a key.
func Token(key []byte) string {
	if len(key) == 0 {
		return ""
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("http"))
	return hex.EncodeToString(mac.Sum(nil))
}

// Close ends the responders and every connection to them.
func (r *Responders) Close() error {
	r.stop()
	var errs []error
	for _, c := range r.closers {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	r.closers = nil
	r.serving.Wait()
	return errors.Join(errs...)
}

func (r *Responders) listen(addr netip.Addr, protocol string) error {
	var secure *tls.Config
	switch protocol {
	case schemas.ProtocolTCP, schemas.ProtocolHTTP:
	case schemas.ProtocolTLS, schemas.ProtocolHTTPS:
		certificate, err := selfSigned(addr)
		if err != nil {
			return err
		}
		secure = &tls.Config{Certificates: []tls.Certificate{certificate}}
	default:
		return nil
	}
	l, err := listen(addr)
	if err != nil {
		return err
	}
	_, text, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	r.ports[protocol] = uint16(port)
	bounded := &boundedListener{Listener: l}
	switch protocol {
	case schemas.ProtocolTCP, schemas.ProtocolTLS:
		r.closers = append(r.closers, bounded)
		r.serving.Go(func() { r.accept(bounded, protocol, secure) })
	default:
		r.serve(bounded, protocol, secure)
	}
	return nil
}

func listen(addr netip.Addr) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", netip.AddrPortFrom(addr, 0).String())
	if errors.Is(err, syscall.EADDRNOTAVAIL) && !addr.IsLoopback() {
		l, err = config.Listen(context.Background(), "tcp", netip.AddrPortFrom(Unspecified(addr), 0).String())
	}
	return l, err
}

// Unspecified is the address that stands for all of the machine's in addr's
// version of IP.
func Unspecified(addr netip.Addr) netip.Addr {
	if addr.Is4() || addr.Is4In6() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// accept holds connections until the other side ends them.
func (r *Responders) accept(l net.Listener, protocol string, secure *tls.Config) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory, which others may give back.
			r.log.Warn("accept", "protocol", protocol, "error", err)
			select {
			case <-r.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		r.serving.Go(func() { r.hold(c, secure) })
	}
}

func (r *Responders) hold(c net.Conn, secure *tls.Config) {
	defer c.Close()
	defer context.AfterFunc(r.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return
	}
	reader := io.Reader(c)
	if secure != nil {
		t := tls.Server(c, secure)
		if t.Handshake() != nil {
			return
		}
		reader = t
	}
	// The other side closes first, so that no port of ours lingers.
	var one [1]byte
	_, _ = reader.Read(one[:])
}

func (r *Responders) serve(l net.Listener, protocol string, secure *tls.Config) {
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	s := &http.Server{
		Handler: http.HandlerFunc(r.answer), ReadTimeout: patience, ReadHeaderTimeout: patience, WriteTimeout: patience,
		IdleTimeout: patience, MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // probes speak HTTP/1.1
	}
	r.closers = append(r.closers, s, l)
	r.serving.Go(func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			r.log.Error("responder ended", "protocol", protocol, "error", err)
		}
	})
}

func (r *Responders) answer(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	if !r.open {
		token := r.token.Load()
		if token == nil || *token == "" || !hmac.Equal([]byte(q.Header.Get("Authorization")), []byte("Bearer "+*token)) {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusForbidden)
			return
		}
	}
	_, _ = io.WriteString(w, "ok\n")
}

// boundedListener closes what comes beyond its limit.
type boundedListener struct {
	net.Listener
	open atomic.Int64
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= maxConnections {
			return &boundedConn{Conn: c, listener: l}, nil
		}
		l.open.Add(-1)
		_ = c.Close()
	}
}

type boundedConn struct {
	net.Conn
	listener *boundedListener
	once     sync.Once
}

func (c *boundedConn) Close() error {
	c.once.Do(func() { c.listener.open.Add(-1) })
	return c.Conn.Close()
}

// selfSigned makes a certificate that nobody vouches for.
func selfSigned(addr netip.Addr) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{addr.AsSlice()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
