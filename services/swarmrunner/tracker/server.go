package tracker

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A swarm in a lab lives for seconds: what is usual elsewhere, half an hour, would be never.
	defaultInterval       = 30 * time.Second
	defaultMinInterval    = time.Second
	defaultMaxTorrents    = 1024
	defaultMaxPeers       = 100_000
	defaultMaxConnections = 1024
	defaultWant           = 50
	maxWant               = 200

	// requestTime is for each of: the request to come, the answer to go. A request
	// is one segment.
	requestTime    = 5 * time.Second
	maxHeaderBytes = 8 << 10
	// closeGrace is what Close gives announces that are under way.
	closeGrace = 250 * time.Millisecond
)

// Options say what a server admits.
type Options struct {
	// Interval is how often peers are to announce, 30 s if not given; who has
	// not for twice as long is dropped. MinInterval is how often they may, 1 s
	// if not given.
	Interval, MinInterval time.Duration
	// InfoHashes says which torrents there are; nil admits any.
	InfoHashes func(infoHash [20]byte) bool
	// MaxTorrents is how many there may be, 1024 if not given.
	MaxTorrents int
	// MaxPeers is how many all torrents may have together, 100 000 if not given.
	MaxPeers int
	// MaxConnections is how many are open over TCP at a time, 1024 if not given;
	// more wait until the kernel's backlog is full.
	MaxConnections int
	// Token is what announces must have in their path (see URL); empty: nothing.
	// Letters, digits and - _ . ~, at most 128.
	Token string
	// Log gets what is refused; nil: nobody does.
	Log *slog.Logger
}

// Validate reports every fault.
func (o Options) Validate() error {
	var faults []error
	for _, f := range []struct {
		name string
		v    time.Duration
	}{{"Interval", o.Interval}, {"MinInterval", o.MinInterval}} {
		if f.v != 0 && (f.v < time.Second || f.v > 24*time.Hour || f.v%time.Second != 0) {
			faults = append(faults, fmt.Errorf("%s: %s, want whole seconds from 1s to 24h", f.name, f.v))
		}
	}
	for _, f := range []struct {
		name string
		v    int
	}{{"MaxTorrents", o.MaxTorrents}, {"MaxPeers", o.MaxPeers}, {"MaxConnections", o.MaxConnections}} {
		if f.v < 0 || f.v > 10_000_000 {
			faults = append(faults, fmt.Errorf("%s: %d, want 1 to 10000000", f.name, f.v))
		}
	}
	if err := checkToken(o.Token); err != nil {
		faults = append(faults, fmt.Errorf("token: %w", err))
	}
	return errors.Join(faults...)
}

// checkToken admits what stands in a path as it is.
func checkToken(token string) error {
	if len(token) > 128 {
		return fmt.Errorf("%d bytes, want at most 128", len(token))
	}
	for _, c := range []byte(token) {
		if !unreserved(c) {
			return errors.New("want letters, digits and - _ . ~ only")
		}
	}
	return nil
}

// Server is a tracker. It listens where Serve and ServePacket are told to, on as
// many sockets as wanted.
type Server struct {
	interval, minInterval time.Duration
	log                   *slog.Logger
	registry              registry
	meter                 meter
	token                 atomic.Pointer[string]
	secret                [32]byte  // of connection ids
	began                 time.Time // what their ages count from

	http  *http.Server
	slots chan struct{} // one for each open connection

	mu      sync.Mutex
	down    bool
	closed  bool
	closing chan struct{}
	conns   map[*conn]struct{}
	packets map[net.PacketConn]struct{}
	serving sync.WaitGroup
}

// NewServer returns a server that listens nowhere yet. The error is that of
// Options.Validate.
func NewServer(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("options of tracker: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		interval:    orDefault(o.Interval, defaultInterval),
		minInterval: orDefault(o.MinInterval, defaultMinInterval),
		log:         o.Log,
		registry: registry{
			maxTorrents: orDefault(o.MaxTorrents, defaultMaxTorrents),
			maxPeers:    orDefault(o.MaxPeers, defaultMaxPeers),
			allowed:     o.InfoHashes,
			swarms:      map[[20]byte]*swarm{},
		},
		began:   time.Now(),
		slots:   make(chan struct{}, orDefault(o.MaxConnections, defaultMaxConnections)),
		closing: make(chan struct{}),
		conns:   map[*conn]struct{}{},
		packets: map[net.PacketConn]struct{}{},
	}
	s.registry.life = 2 * s.interval
	s.token.Store(&o.Token)
	// crypto/rand.Read never fails.
	_, _ = rand.Read(s.secret[:])
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serveHTTP),
		ReadHeaderTimeout: requestTime,
		ReadTimeout:       requestTime,
		WriteTimeout:      requestTime,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	// Peers announce twice in a swarm's life; a connection kept for that would
	// only take one of the slots.
	s.http.SetKeepAlivesEnabled(false)
	return s, nil
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Serve answers announces and scrapes over HTTP on l until Close, and closes l.
func (s *Server) Serve(l net.Listener) error {
	if !s.begin(nil) {
		_ = l.Close()
		return nil
	}
	defer s.serving.Done()
	err := s.http.Serve(&listener{Listener: l, server: s})
	select {
	case <-s.closing:
		return nil
	default:
		return fmt.Errorf("serve tracker on %s: %w", l.Addr(), err)
	}
}

// begin enters a call of Serve or ServePacket; it reports false after Close.
func (s *Server) begin(c net.PacketConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if c != nil {
		s.packets[c] = struct{}{}
	}
	s.serving.Add(1)
	return true
}

// SetToken changes the token that announces must have. It takes tokens as
// Options.Token does, and checks nothing.
func (s *Server) SetToken(token string) { s.token.Store(&token) }

// authorized compares in a time that says nothing of how much is right.
func (s *Server) authorized(token string) bool {
	return subtle.ConstantTimeCompare([]byte(token), []byte(*s.token.Load())) == 1
}

// Down makes the server as good as not there, or there again: connections are
// reset as soon as they are made, and packets get no answer. What it knows of
// peers it keeps.
func (s *Server) Down(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	if down {
		for c := range s.conns {
			reset(c.Conn)
		}
	}
}

func (s *Server) isDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// Close ends every Serve and ServePacket and waits for them as long as ctx
// lives. Announces under way get a moment to end.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	for c := range s.packets {
		_ = c.Close()
	}
	s.mu.Unlock()
	grace, cancel := context.WithTimeout(ctx, closeGrace)
	defer cancel()
	if s.http.Shutdown(grace) != nil {
		_ = s.http.Close()
	}
	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close tracker: %w", context.Cause(ctx))
	}
}

// Register enters a peer as if it had announced itself. Like all others it is
// dropped when it does not announce within twice the interval.
func (s *Server) Register(infoHash, peerID [20]byte, addr netip.AddrPort, left int64) error {
	addr = netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
	if err := checkAddr(addr); err != nil {
		return fmt.Errorf("register %s: %w", addr, err)
	}
	if _, _, err := s.registry.announce(announcement{infoHash: infoHash, peerID: peerID, addr: addr, left: left, event: eventStarted}, nil); err != nil {
		return fmt.Errorf("register %s: %w", addr, err)
	}
	return nil
}

// Swarm is how many of a torrent's peers have all of it and how many do not. A
// peer that announces an IPv4 and an IPv6 address counts twice.
func (s *Server) Swarm(infoHash [20]byte) (seeders, leechers int) {
	c, _, _ := s.registry.look(infoHash, false)
	return c.seeders, c.leechers
}

// Await returns nil as soon as until holds of a torrent, and an error when ctx
// ends. completed is how many of its peers said that they have completed it.
func (s *Server) Await(ctx context.Context, infoHash [20]byte, until func(seeders, leechers, completed int) bool) error {
	return s.registry.await(ctx, infoHash, until)
}

// Traffic is what all sockets of the server carried.
func (s *Server) Traffic() Traffic { return s.meter.traffic() }

// listener hands its server's connections to net/http, or resets them.
type listener struct {
	net.Listener
	server *Server
}

func (l *listener) Accept() (net.Conn, error) {
	s := l.server
	select {
	case s.slots <- struct{}{}:
	case <-s.closing:
		return nil, net.ErrClosed
	}
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			<-s.slots
			return nil, err
		}
		wrapped := &conn{metered: metered{c, &s.meter}, server: s}
		s.mu.Lock()
		down := s.down
		if !down {
			s.conns[wrapped] = struct{}{}
		}
		s.mu.Unlock()
		if !down {
			return wrapped, nil
		}
		reset(c)
	}
}

// reset closes a connection so that the other side sees a reset and no end.
func reset(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// conn is one of the server's connections.
type conn struct {
	metered
	server *Server
	once   sync.Once
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.server.mu.Lock()
		delete(c.server.conns, c)
		c.server.mu.Unlock()
		<-c.server.slots
	})
	return c.Conn.Close()
}
